"""The bench behind scripts/link-torture.sh, which says what it does."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

MIB = 1 << 20
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.environ.get("CARGO_TARGET_DIR") or os.path.join(HERE, "target")
PIECE_LEN = 128 << 10
ENV = {name: value for name, value in os.environ.items() if not name.startswith("SEALIFT_")}


def end_group(process):
    """Ends a process that was started here as leader of its own group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return


class Rate:
    """So many bytes a second, over all that share it."""

    def __init__(self, per_second):
        self.per_second, self.next, self.lock = per_second, 0.0, threading.Lock()

    def take(self, count):
        with self.lock:
            now = time.monotonic()
            self.next = max(self.next, now) + count / self.per_second
            wait = self.next - now
        if wait > 0.002:
            time.sleep(wait)


class Proxy:
    """Carries connections to a server at a rate, and resets all of them every so many seconds."""

    def __init__(self, server, per_second, every):
        self.server, self.every = server, every
        self.up, self.down = Rate(per_second), Rate(per_second)
        self.carried = 0
        self.lock, self.open, self.cuts, self.severed, self.over = threading.Lock(), set(), 0, 0, threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        for task in (self.accept, self.cut):
            threading.Thread(target=task, daemon=True).start()

    def accept(self):
        while not self.over.is_set():
            try:
                here, _ = self.listener.accept()
                there = socket.create_connection(self.server)
            except OSError:
                time.sleep(0.05)
                continue
            for end in (here, there):
                # A close is a reset, and little lies between the ends: what is under way counts as sent again.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.open.add((here, there))
            for source, target, rate in ((here, there, self.up), (there, here, self.down)):
                threading.Thread(target=self.carry, args=(source, target, rate, (here, there)), daemon=True).start()

    def carry(self, source, target, rate, pair):
        buffer = bytearray(PIECE_LEN)
        with contextlib.suppress(OSError):
            while count := source.recv_into(buffer):
                rate.take(count)
                with self.lock:
                    self.carried += count
                target.sendall(memoryview(buffer)[:count])
        self.sever([pair])

    def sever(self, pairs):
        with self.lock:
            found = [pair for pair in pairs if pair in self.open]
            self.open.difference_update(found)
        for pair in found:
            for end in pair:
                # Whoever waits in a read must notice; then the close resets.
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RD)
                end.close()
        return len(found)

    def cut(self):
        while not self.over.wait(self.every):
            with self.lock:
                pairs = list(self.open)
            if severed := self.sever(pairs):
                self.cuts += 1
                self.severed += severed

    def stop(self):
        self.over.set()
        self.listener.close()
        with self.lock:
            pairs = list(self.open)
        self.sever(pairs)


class Bench:
    def __init__(self, binary):
        self.binary, self.state = os.path.abspath(binary), tempfile.mkdtemp(prefix="sealift-links.")
        self.server, self.wrong = None, 0
        certs = f"{self.state}/all"
        self.run(binary, "certs", "--dir", certs, "--host", "127.0.0.1", "--host", "10.77.0.2")
        self.run(binary, "certs", "--dir", certs, "--export", "client", "--to", f"{self.state}/client")
        os.makedirs(f"{self.state}/server", 0o700)
        for name in ("ca.pem", "server.pem", "server-key.pem"):
            shutil.copy2(f"{certs}/{name}", f"{self.state}/server")

    def run(self, *command):
        return subprocess.run(command, env=ENV, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def start(self, address, prefix=()):
        log = open(f"{self.state}/server.log", "ab")
        self.server = subprocess.Popen(
            [*prefix, self.binary, "serve", "--quiet", "--root", f"{self.state}/root", "--certs", f"{self.state}/server",
             "--listen", f"{address}:0"], env=ENV, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        line = self.server.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"the server does not start: {open(log.name).read()[-500:]}")
        return line.split()[-1]

    def stop(self):
        if self.server:
            end_group(self.server)
            self.server = None
        for name in ("root", "got"):
            shutil.rmtree(f"{self.state}/{name}", ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(f"{self.state}/{name}")

    def source(self, mib):
        path = f"{self.state}/source"
        with open(path, "wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
        return path

    def client(self, prefix, *arguments):
        return subprocess.Popen([*prefix, self.binary, arguments[0], "--json", "--certs", f"{self.state}/client", *arguments[1:]],
                                env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)

    def transfer(self, what, mib, prefix, arguments, compare, meanwhile=None, limit=3600):
        """One command, and whether what arrived is right; what it says it sent again. `meanwhile` runs beside it."""
        began = time.monotonic()
        process = self.client(prefix, *arguments)
        timer = threading.Timer(limit, lambda: end_group(process))
        timer.daemon = True
        timer.start()
        beside = threading.Thread(target=meanwhile, daemon=True) if meanwhile else None
        if beside:
            beside.start()
        summary = {}
        try:
            for line in process.stdout:
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    if found.get("type") == "summary":
                        summary = found
            code = process.wait()
        finally:
            timer.cancel()
            # Also when this is ended by a signal.
            end_group(process)
        right = code == 0 and subprocess.run(["cmp", "-s", *compare]).returncode == 0
        self.wrong += not right
        again = summary.get("bytes_resent", 0)
        verdict = "right" if right else f"WRONG (exit {code}: {json.dumps(summary)[-300:]})"
        seconds = time.monotonic() - began
        retries = summary.get("retries", 0)
        print(f"{what}: {mib} MiB in {seconds:.0f} s, connected anew {retries} times, {verdict}", flush=True)
        return again

    def has_room(self, name, mib):
        """Whether three copies fit into the temporary folder: the source, the server's, and what comes back."""
        if shutil.disk_usage(self.state).free > (3 * mib + 1024) * MIB:
            return True
        print(f"skipped: links, {name}: there is no room for {3 * mib} MiB in {tempfile.gettempdir()}")
        return False

    def both_ways(self, name, mib, address, prefix, streams=None, around=contextlib.nullcontext, meanwhile=None):
        """Up and down, and the line for the report. `around` gives the address to use."""
        source, got = self.source(mib), f"{self.state}/got"
        more = ["--streams", str(streams)] if streams else []
        before, again, cuts = self.wrong, 0, 0
        for way in ("up", "down"):
            with around() as link:
                url = f"sealift://{link.address if link else address}/f"
                arguments = ["put", *more, source, url] if way == "up" else ["get", *more, url, got]
                there = f"{self.state}/root/f" if way == "up" else got
                told = self.transfer(f"{name} {way}", mib, prefix, arguments, (source, there), meanwhile)
                # A client counts what it gave to its sockets; the proxy knows what crossed.
                again += link.carried - mib * MIB if link else told
                cuts += link.severed if link else 1 if meanwhile else 0
        what = "sent beyond the content, framing included" if link else "sent again"
        print(f"links, {name}: {2 * mib} MiB, {cuts} cuts, {again / MIB:.2f} MiB {what}, {self.wrong - before} violations",
              flush=True)
        os.unlink(source)
        self.stop()

    def through_proxy(self, name, mib, per_second, streams=None):
        if not self.has_room(name, mib):
            return
        address = self.start("127.0.0.1")
        host, port = address.rsplit(":", 1)

        @contextlib.contextmanager
        def around():
            proxy = Proxy((host, int(port)), per_second, 5)
            try:
                yield proxy
            finally:
                proxy.stop()
        self.both_ways(name, mib, address, (), streams, around)

    def over_link(self, name, mib, options, outage=None):
        emulator, space = os.environ.get("SEALIFT_WANLINK"), f"sltort{os.getpid() % 1000}"
        if not emulator or os.geteuid() != 0:
            print(f"skipped: links, {name}: needs root and SEALIFT_WANLINK=/path/to/wanlink")
            return
        if not self.has_room(name, mib):
            return
        link = subprocess.Popen([emulator, "--prefix", space, *options, "--", "sh", "-c", 'echo "$WAN_CTL"; exec sleep 5000'],
                                env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        try:
            control = link.stdout.readline().strip()
            if not control:
                print(f"skipped: links, {name}: the link emulator does not start")
                return
            inside = [["ip", "netns", "exec", f"{space}-{end}"] for end in "ab"]
            address = self.start("10.77.0.2", inside[1])

            def silence():
                time.sleep(outage[0])
                for word, wait in (("down", outage[1]), ("up", 0)):
                    with open(control, "w") as pipe:
                        pipe.write(word + "\n")
                    time.sleep(wait)
            self.both_ways(name, mib, address, inside[0], meanwhile=silence if outage else None)
        finally:
            self.stop()
            end_group(link)

    def clean(self):
        self.stop()
        shutil.rmtree(self.state, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(prog="scripts/link-torture.sh")
    parser.add_argument("--mib", type=int, default=10240)
    parser.add_argument("--binary", default=os.path.join(TARGET, "release", "sealift"))
    parser.add_argument("--only", default="cuts,slow,outage,lossy,damaged")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    works = {
        "cuts": lambda: bench.through_proxy("a cut every 5 s", options.mib, 125_000_000),
        "slow": lambda: bench.through_proxy("8 Mbit/s, a cut every 5 s", 20, 1_000_000, 8),
        "outage": lambda: bench.over_link("2 minutes without a packet", 1024, ["--delay", "20ms", "--rate", "200mbit"], (10, 120)),
        "lossy": lambda: bench.over_link("5 % loss, 200 ms, reordered, MTU 576", 64, [
            "--delay", "100ms", "--rate", "100mbit", "--loss", "5%", "--reorder", "5%", "--mtu", "576"]),
        "damaged": lambda: bench.over_link("1 of 1,000 packets damaged", 256, [
            "--delay", "10ms", "--rate", "200mbit", "--corrupt", "0.1%"]),
    }
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(works):
        sys.exit(f"link-torture: there is no {', '.join(sorted(unknown))}")
    bench = Bench(options.binary)
    try:
        for name in chosen:
            works[name]()
    finally:
        bench.clean()
    sys.exit(1 if bench.wrong else 0)


if __name__ == "__main__":
    main()
