#!/usr/bin/env python3
"""What an honest client keeps of its rate while others misbehave: a table in Markdown (docs/PERFORMANCE.md).

  scripts/crowd.py [--binary FILE] [--rate 20M] [--seconds 15] [--peers 2000] [MODE ...]

FILE is the release build, if it is not given. Starts a server of its own on this machine's loopback and stops it again.
The honest client comes from 127.0.0.1 and moves content at --rate, which it limits itself: so what it loses is lost to
the others, and not to a processor that they and their load generator share with it. The others come from 127.0.0.2 with
another certificate, or with none.
Modes: trickle, unread, flood, idle (default: all), and `slow`: as many peers as the others', half of --peers, that all
upload 1 MiB as fast as they can to a disk on which every write takes 0.2 s longer (strace), with --memory 64M.
Takes up to 2.2 GiB in the temporary folder, looks whether there is so much, and removes it, also at SIGTERM.
"""
import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time

TARGET = os.environ.get("CARGO_TARGET_DIR") or "target"
OTHER = ("127.0.0.2", 0)
FROM_HELLO = bytes.fromhex("010000000000000000000013a2008101016d7365616c6966742f302e312e30")


def frame(kind, transfer, payload):
    return struct.pack(">B3xII", kind, transfer, len(payload)) + payload


def read_exact(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise ConnectionError("closed")
        data += more
    return data


def read_frame(stream):
    kind, transfer, size = struct.unpack(">B3xII", read_exact(stream, 12))
    return kind, transfer, read_exact(stream, size)


def bytes_of(data):
    return (bytes([0x40 + len(data)]) if len(data) < 24 else b"\x58" + bytes([len(data)])) + data


def number(value):
    return b"\x1b" + struct.pack(">Q", value) if value >= 1 << 32 else b"\x1a" + struct.pack(">I", value)


def write_noise(path, size):
    """A file without zeros, which would be told instead of sent."""
    noise = os.urandom(1 << 20)
    with open(path, "wb") as file:
        for offset in range(0, size, len(noise)):
            file.write(noise[:size - offset])


class Crowd:
    def __init__(self, args, wrapper=(), more=()):
        self.args = args
        self.folder = tempfile.mkdtemp(prefix="sealift-crowd-")
        self.call("certs", "--dir", self.path("pki"), "--client", "other")
        for name in ("client", "other"):
            self.call("certs", "--dir", self.path("pki"), "--export", name, "--to", self.path(name))
        os.remove(self.path("pki/ca-key.pem"))
        self.server = subprocess.Popen(
            [*wrapper, args.binary, "serve", "--quiet", "--root", self.path("root"), "--certs", self.path("pki")]
            + ["--listen", "127.0.0.1:0", *more],
            stdout=subprocess.PIPE, stderr=open(self.path("log"), "w"), text=True)
        self.port = int(self.server.stdout.readline().rsplit(":", 1)[1])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.path("other/ca.pem"))
        context.load_cert_chain(self.path("other/client.pem"), self.path("other/client-key.pem"))
        context.set_alpn_protocols(["sealift/1"])
        self.context = context

    def path(self, name):
        return os.path.join(self.folder, name)

    def call(self, *args):
        subprocess.run([self.args.binary, *args], check=True, stdout=subprocess.DEVNULL)

    def pid(self):
        """The server itself, not what traces it."""
        pid = self.server.pid
        children = open(f"/proc/{pid}/task/{pid}/children").read().split()
        return int(children[0]) if children else pid

    def end(self):
        # One that has ended by itself is ended.
        with contextlib.suppress(OSError):
            os.kill(self.pid(), signal.SIGTERM)
        self.server.wait()
        shutil.rmtree(self.folder)

    def honest(self, name, *args):
        """Runs the honest client; its summary."""
        command = [self.args.binary, *args, "--json", "--certs", self.path("client")]
        out = subprocess.run(command, capture_output=True, text=True).stdout
        summary = json.loads(out.strip().splitlines()[-1])
        if summary["exit"] != 0:
            sys.exit(f"{name}: {out}")
        return summary

    def at(self, name):
        return f"sealift://localhost:{self.port}/{name}"

    def rate(self, name):
        """Bytes per second of an honest upload, and of a download, and the slowest of some listings, in seconds."""
        source = self.path("source")
        size = self.args.rate * self.args.seconds // 2
        write_noise(source, size)
        limit = ["--bwlimit", str(self.args.rate)]
        up = size / self.honest(name, "put", *limit, source, self.at(name))["seconds"]
        slowest = 0.0
        for _ in range(20):
            begun = time.monotonic()
            subprocess.run([self.args.binary, "stat", self.at(name), "--certs", self.path("client")], check=True,
                           stdout=subprocess.DEVNULL)
            slowest = max(slowest, time.monotonic() - begun)
        down = size / self.honest(name, "get", *limit, self.at(name), self.path("target"))["seconds"]
        os.remove(self.path("target"))
        self.honest(name, "rm", self.at(name))
        return up, down, slowest

    def peer(self):
        """A connection of the others that has said hello."""
        stream = socket.create_connection(("127.0.0.1", self.port), timeout=60, source_address=OTHER)
        stream = self.context.wrap_socket(stream, server_hostname="localhost")
        stream.sendall(FROM_HELLO)
        if read_frame(stream)[0] != 0x02:
            raise ConnectionError("not greeted")
        return stream

    def peers(self, begin):
        """As many as are asked for, each of which has begun something; made by some threads."""
        made, lock = [], threading.Lock()
        left = iter(range(self.args.peers))

        def work():
            while True:
                with lock:
                    index = next(left, None)
                if index is None:
                    return
                stream = self.peer()
                begin(stream, index)
                with lock:
                    made.append(stream)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return made

    def trickle(self):
        """Uploads of a little over 1 MiB that come by a byte a second."""
        def begin(stream, index):
            put = b"\xa6\x00\x81" + bytes_of(b"t%d" % index) + b"\x01" + number((1 << 20) + 1)
            put += b"\x04" + bytes_of(os.urandom(16)) + b"\x05\x00\x06\xf4\x07\xf4"
            stream.sendall(frame(0x10, 1, put))
            while read_frame(stream)[0] != 0x11:
                pass
            stream.sendall(frame(0x13, 1, struct.pack(">Q", 0) + bytes(262144))[:20])

        made = self.peers(begin)
        over = threading.Event()

        def drip():
            while not over.wait(1):
                for stream in made:
                    try:
                        stream.send(b"\0")
                    except OSError:
                        pass

        thread = threading.Thread(target=drip)
        thread.start()

        def end():
            over.set()
            thread.join()
            for stream in made:
                stream.close()
        return len(made), end

    def unread(self):
        """Downloads of which all is asked for and nothing read."""
        big = self.path("big")
        write_noise(big, 64 << 20)
        self.honest("unread", "put", big, self.at("big"))

        def begin(stream, _):
            stream.sendall(frame(0x20, 1, b"\xa2\x00\x81" + bytes_of(b"big") + b"\x01\x00"))
            while read_frame(stream)[0] != 0x21:
                pass
            stream.sendall(frame(0x22, 1, b"\xa1\x00\x81\x82\x00" + number(64 << 20)))

        made = self.peers(begin)

        def end():
            for stream in made:
                stream.close()
        return len(made), end

    def flood(self):
        """Handshakes that are begun and left, 2,000 a second."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        half = self.context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        try:
            half.do_handshake()
        except ssl.SSLWantReadError:
            pass
        hello = outgoing.read()
        over, count = multiprocessing.Event(), multiprocessing.Value("q", 0)

        def work(rate):
            begun, made = time.monotonic(), 0
            while not over.is_set():
                ahead = made / rate - (time.monotonic() - begun)
                if ahead > 0:
                    time.sleep(ahead)
                stream = socket.socket()
                try:
                    stream.bind(OTHER)
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    stream.settimeout(1)
                    stream.connect(("127.0.0.1", self.port))
                    stream.sendall(hello)
                    stream.recv(1)
                except OSError:
                    pass
                stream.close()
                made += 1
                with count.get_lock():
                    count.value += 1

        workers = [multiprocessing.Process(target=work, args=(500,)) for _ in range(4)]
        begun = time.monotonic()
        for worker in workers:
            worker.start()

        def end():
            self.flooded = count.value / (time.monotonic() - begun)
            over.set()
            for worker in workers:
                worker.join()
        return 0, end

    def idle(self):
        """10,000 connections that say nothing; those that the server closes are made again, once a second."""
        over = threading.Event()
        kept, tried = [], [0]

        def work():
            while not over.is_set():
                while len(kept) < 10_000 and not over.is_set():
                    stream = socket.socket()
                    try:
                        stream.bind(OTHER)
                        stream.settimeout(1)
                        stream.connect(("127.0.0.1", self.port))
                        stream.setblocking(False)
                    except OSError:
                        stream.close()
                        break
                    tried[0] += 1
                    kept.append(stream)
                over.wait(1)
                for stream in kept[:]:
                    try:
                        if stream.recv(1) == b"":
                            raise ConnectionError
                    except BlockingIOError:
                        pass
                    except OSError:
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        stream.close()
                        kept.remove(stream)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(3)

        def end():
            over.set()
            thread.join()
            for stream in kept:
                stream.close()
            self.flooded = tried[0]
        return len(kept), end

    def storm(self, seconds):
        """Has all peers send as fast as they can; how many bytes each could send, on the average."""
        noise = os.urandom(262144)
        content = b"".join(frame(0x13, 1, struct.pack(">Q", offset) + noise) for offset in range(0, 1 << 20, 262144))

        def begin(stream, index):
            put = b"\xa6\x00\x81" + bytes_of(b"s%d" % index) + b"\x01" + number(1 << 20)
            stream.sendall(frame(0x10, 1, put + b"\x04" + bytes_of(os.urandom(16)) + b"\x05\x00\x06\xf4\x07\xf4"))
            while read_frame(stream)[0] != 0x11:
                pass
            stream.setblocking(False)

        made = self.peers(begin)
        sent = [0] * len(made)
        view, until = memoryview(content), time.monotonic() + seconds
        while time.monotonic() < until:
            for index, stream in enumerate(made):
                try:
                    sent[index] += stream.send(view[sent[index]:sent[index] + 65536])
                except OSError:
                    pass
        peak = self.memory()
        for stream in made:
            stream.close()
        return len(made), sum(sent) / len(made), peak

    def memory(self):
        with open(f"/proc/{self.pid()}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return int(lines["VmHWM"].split()[0]) >> 10


def size(text):
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1])
    return int(text[:-1]) << shift if shift else int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=f"{TARGET}/release/sealift")
    parser.add_argument("--rate", type=size, default="10M")
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--peers", type=int, default=2000)
    parser.add_argument("modes", nargs="*", metavar="MODE")
    args = parser.parse_args()
    # Ended by a signal, it cleans up as at its own end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    needed = args.peers * ((1 << 20) + 8192) + 2 * args.rate * args.seconds
    if shutil.disk_usage(tempfile.gettempdir()).free < needed + (8 << 30):
        sys.exit(f"{needed >> 20} MiB and 8 GiB to spare are needed in {tempfile.gettempdir()}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    if args.modes == ["slow"]:
        args.peers //= 2
        slow = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64",
                "-e", "inject=pwrite64:delay_enter=200000")
        crowd = Crowd(args, slow, ("--memory", "64M"))
        try:
            count, sent, peak = crowd.storm(args.seconds)
        finally:
            crowd.end()
        print(f"{count} peers on a slow disk, --memory 64M: {sent / 1048576:.2f} MiB of each in {args.seconds} s, "
              f"peak {peak} MiB")
        sys.exit(0 if peak < 64 + 64 + count // 8 else "the budget does not hold")
    print("| others | up | down | slowest of 20 new clients | server memory |\n|---|---|---|---|---|", flush=True)
    worst = 1.0
    for mode in args.modes or ["trickle", "unread", "flood", "idle"]:
        crowd = Crowd(args)
        crowd.flooded = None
        try:
            before = crowd.rate("alone")
            count, end = getattr(crowd, mode)()
            try:
                during = crowd.rate("beside")
            finally:
                end()
            what = (getattr(Crowd, mode).__doc__ or "").strip().rstrip(".")
            seen = f"{count} of them" if crowd.flooded is None else f"{crowd.flooded:.0f}"
            shares = [now / then for now, then in zip(during[:2], before[:2])]
            worst = min(worst, *shares)
            print(f"| {what} ({seen}) | {shares[0]:.0%} | {shares[1]:.0%} "
                  f"| {during[2]:.2f} s (alone {before[2]:.2f} s) | {crowd.memory()} MiB |", flush=True)
        finally:
            crowd.end()
    sys.exit(0 if worst >= 0.8 else f"an honest client kept {worst:.0%} of its rate; at least 80 % are promised")


if __name__ == "__main__":
    main()
