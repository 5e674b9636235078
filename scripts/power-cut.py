"""The bench behind scripts/power-cut.sh, which says what it does and checks that it can run."""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

DISK_LEN = 640 << 20
OUTER_LEN = 6 << 30
TARGET = os.environ.get("CARGO_TARGET_DIR") or "target"
ABSENT = "absent"
WORKERS = 4
SMALL_NAMES = 60
LARGE_NAMES = 5


class Stop(Exception):
    pass


def run(*command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout.decode(errors='replace').strip()}")
    return done.stdout.decode().strip()


class Disks:
    """Loop devices and mounts; only what was made here is undone, the last first."""

    def __init__(self):
        self.made = []

    def attach(self, image):
        device = run("losetup", "--find", "--show", image)
        self.made.append(("loop", device))
        return device

    def mount(self, device, path, *options):
        os.makedirs(path, exist_ok=True)
        run("mount", *options, device, path)
        self.made.append(("mount", path))

    def undo(self, count=0):
        while len(self.made) > count:
            kind, what = self.made.pop()
            command = ["umount", what] if kind == "mount" else ["losetup", "-d", what]
            for attempt in range(50):
                if subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                print(f"left behind: {' '.join(command)} fails", file=sys.stderr)


class Server:
    def __init__(self, binary, root, certs, log):
        self.log = open(log, "ab")
        self.process = subprocess.Popen(
            [binary, "serve", "--quiet", "--root", root, "--certs", f"{certs}/server", "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=self.log)
        line = self.process.stdout.readline().decode()
        if not line.startswith("listening on "):
            self.stop()
            raise RuntimeError(f"the server does not start on {root}: see {log}")
        self.address = line.split()[-1]

    def at(self, path):
        return f"sealift://{self.address}/{path}"

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


class Log:
    """What was asked for and answered, by name: [content, asked at, answered at or None]."""

    def __init__(self):
        self.lock = threading.Lock()
        self.names = {}
        self.contents = {}
        self.moves = []
        self.answers = 0

    def asked(self, name, content):
        entry = [content, time.monotonic(), None]
        with self.lock:
            self.names.setdefault(name, [[ABSENT, 0.0, 0.0]]).append(entry)
        return entry

    def answered(self, *entries):
        now = time.monotonic()
        with self.lock:
            self.answers += 1
            for entry in entries:
                entry[2] = now

    def allowed(self, before, after):
        """What each name may hold when the power is cut between these times: what was answered last, and every change
        that was asked for since then. The second value are the moves that were under way, the third all contents."""
        with self.lock:
            names = {}
            for name, entries in self.names.items():
                last = max(i for i, entry in enumerate(entries) if entry[2] is not None and entry[2] < before)
                names[name] = {entry[0] for entry in entries[last:] if entry[1] < after}
            moves = [move for move in self.moves if move[3][1] < after and not (move[3][2] or after) < before]
            # Onto a file of the same content (empty ones, most of all), both names are right before the move.
            moves = [move for move in moves if all(
                entry is move[3] or entry[0] != move[2] for entry in self.names[move[1]])]
            return names, moves, dict(self.contents)

    def forget(self, before):
        """Drops what no later cut can need."""
        with self.lock:
            for entries in self.names.values():
                last = max(i for i, entry in enumerate(entries) if entry[2] is not None and entry[2] < before)
                del entries[:last]
            self.moves = [move for move in self.moves if not (move[3][2] or before) < before]


class Worker(threading.Thread):
    """Clients, one after the other, in a directory of their own."""

    def __init__(self, number, seed, binary, server, certs, log, folder, stopping):
        super().__init__(daemon=True)
        self.number, self.binary, self.server, self.certs = number, binary, server, certs
        self.log, self.folder, self.stopping = log, f"{folder}/source{number}", stopping
        self.random = random.Random(seed * 100 + number)
        self.there = {}
        self.count = 0
        self.error = None
        self.client = None
        os.makedirs(self.folder)

    def run(self):
        try:
            while not self.stopping.is_set():
                self.step()
        except Exception as error:  # told by the main thread
            if not self.stopping.is_set():
                self.error = error

    def step(self):
        choice = self.random.random()
        if choice < 0.45:
            count = self.random.choice([1, 3, 30])
            names = self.random.sample(range(SMALL_NAMES), count)
            sizes = [0, 10, 4096, 5000, 70000, 300000]
            self.put([(f"w{self.number}/d{name % 5}/s{name}", self.random.choice(sizes)) for name in names])
        elif choice < 0.7:
            name = f"w{self.number}/large{self.random.randrange(LARGE_NAMES)}"
            self.put([(name, self.random.randrange(1 << 20, 9 << 20))])
        elif choice < 0.9 and self.there:
            self.move()
        elif self.there:
            self.remove()

    def put(self, files):
        top = f"{self.folder}/{self.count}"
        entries = {}
        for name, size in files:
            content = self.random.randbytes(size)
            path = f"{top}/{name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
            key = hashlib.blake2b(content, digest_size=16).hexdigest()
            with self.log.lock:
                self.log.contents[key] = size
            entries[name] = self.log.asked(name, key)
        self.count += 1
        client = self.client = subprocess.Popen(
            [self.binary, "put", "--json", "--timeout", "60s", "--certs", f"{self.certs}/client",
             f"{top}/w{self.number}", self.server.at("")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for line in client.stdout:
            told = json.loads(line)
            if told["type"] == "done" and told["kind"] == "file":
                name = told["name"][len(top) + 1:]
                self.log.answered(entries[name])
                self.there[name] = entries[name][0]
        client.stdout.close()
        self.wait(client, "put")
        shutil.rmtree(top)

    def wait(self, client, what):
        # Without room a file fails, and is told so: that is no answer.
        if client.wait() not in (0, 1) and not self.stopping.is_set():
            raise RuntimeError(f"{what} ended with {client.returncode}")
        return client.returncode == 0

    def call(self, *arguments):
        client = self.client = subprocess.Popen([self.binary, *arguments, "--certs", f"{self.certs}/client"],
                                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self.wait(client, arguments[0])

    def move(self):
        source = self.random.choice(sorted(self.there))
        target = f"w{self.number}/moved{self.random.randrange(4)}/m{self.random.randrange(8)}"
        if source == target:
            return
        content = self.there[source]
        gone, come = self.log.asked(source, ABSENT), self.log.asked(target, content)
        with self.log.lock:
            self.log.moves.append((source, target, content, come))
        if self.call("mv", "--if-exists", "overwrite", self.server.at(source), self.server.at(target)):
            self.log.answered(gone, come)
            del self.there[source]
            self.there[target] = content

    def remove(self):
        name = self.random.choice(sorted(self.there))
        gone = self.log.asked(name, ABSENT)
        if self.call("rm", self.server.at(name)):
            self.log.answered(gone)
            del self.there[name]


def look(root):
    found = {}
    for directory, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name != ".sealift"]
        for name in files:
            if name.startswith(".sealift-"):
                continue
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                content = file.read()
            key = hashlib.blake2b(content, digest_size=16).hexdigest()
            found[os.path.relpath(path, root)] = (key, len(content))
    return found


def judge(found, names, moves, contents):
    wrong = []
    for name, allowed in names.items():
        key, size = found.get(name, (ABSENT, 0))
        if key not in allowed:
            kind = "it is missing" if key == ABSENT else (
                f"it is another version ({size} bytes)" if key in contents else f"it is partial or damaged ({size} bytes)")
            wanted = ", ".join(sorted("absent" if k == ABSENT else f"{contents[k]} bytes" for k in allowed))
            wrong.append(f"{name}: {kind}; allowed: {wanted}")
    for name, (key, size) in found.items():
        if name not in names:
            wrong.append(f"{name}: a name that nobody asked for ({size} bytes)")
    for source, target, content, _ in moves:
        # Under way: it is under one of its names.
        names_now = [name for name in (source, target) if found.get(name, (ABSENT, 0))[0] == content]
        if len(names_now) != 1:
            wrong.append(f"{source} -> {target}: under {len(names_now)} names in the middle of its move")
    return wrong


def use(binary, root, certs, work, found):
    """A server on what is left: it starts, its hashes are right, it gives what is there and stores something new."""
    def client(*arguments):
        done = subprocess.run([binary, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout.decode(errors="replace").strip()

    wrong = []
    server = Server(binary, root, certs, f"{work}/clone.log")
    try:
        code, text = client("scrub", "--rate", "0", "--root", root)
        if code != 0:
            wrong.append(f"scrub ends with {code}: {text}")
        with open(f"{work}/fresh", "wb") as file:
            file.write(os.urandom(100000))
        for name in [*sorted(found)[:1], "fresh"]:
            if name == "fresh":
                code, text = client("put", "--certs", f"{certs}/client", f"{work}/fresh", server.at("fresh"))
                if code != 0:
                    wrong.append(f"put ends with {code}: {text}")
            code, text = client("get", "--certs", f"{certs}/client", server.at(name), f"{work}/got")
            if code != 0:
                wrong.append(f"get {name} ends with {code}: {text}")
    finally:
        server.stop()
    return wrong


def bench(kind, args, work, disks, certs):
    make = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}[kind]
    image, clone = f"{work}/outer/disk.img", f"{work}/outer/clone.img"
    with open(image, "wb") as file:
        file.truncate(DISK_LEN)
    run(*make, image)
    first = len(disks.made)
    disks.mount(disks.attach(image), f"{work}/disk-{kind}")
    root = f"{work}/disk-{kind}/root"
    server = Server(args.binary, root, certs, f"{work}/server-{kind}.log")
    stopping, log = threading.Event(), Log()
    workers = [Worker(number, args.seed, args.binary, server, certs, log, f"{work}/{kind}", stopping)
               for number in range(WORKERS)]
    chance = random.Random(args.seed)
    begun, cuts, violations, checked = time.monotonic(), 0, [], 0
    limit = args.limit or 40 + 8 * args.cuts
    try:
        for worker in workers:
            worker.start()
        while cuts < args.cuts and time.monotonic() - begun < limit:
            time.sleep(chance.uniform(0.05, 0.9))
            before = time.monotonic()
            run("cp", "--reflink=always", image, clone)
            names, moves, contents = log.allowed(before, time.monotonic())
            mark = len(disks.made)
            try:
                options = ["-o", "nouuid"] if kind == "xfs" else []
                disks.mount(disks.attach(clone), f"{work}/clone", *options)
                found = look(f"{work}/clone/root") if os.path.isdir(f"{work}/clone/root") else {}
                wrong = judge(found, names, moves, contents)
                if not wrong:
                    wrong = use(args.binary, f"{work}/clone/root", certs, work, found)
                checked += len(names)
            except RuntimeError as error:
                wrong = [str(error)]
            finally:
                disks.undo(mark)
                os.unlink(clone)
            cuts += 1
            violations += [f"{kind}, cut {cuts}, seed {args.seed}: {text}" for text in wrong]
            log.forget(before)
            for worker in workers:
                if worker.error:
                    raise worker.error
            if server.process.poll() is not None:
                raise RuntimeError(f"the server died: see {work}/server-{kind}.log")
            if violations:
                break
    finally:
        stopping.set()
        server.stop()
        for worker in workers:
            while worker.is_alive():
                # Without its server it would go on trying.
                if worker.client:
                    worker.client.kill()
                worker.join(0.1)
        disks.undo(first)
        os.unlink(image)
    for text in violations[:20]:
        print(f"LOST {text}", file=sys.stderr)
    print(f"power cuts, {kind}: {cuts} cuts, {log.answers} answers, {checked} names compared, "
          f"{len(violations)} violations, {time.monotonic() - begun:.0f} s", flush=True)
    return len(violations)


def main():
    parser = argparse.ArgumentParser(prog="scripts/power-cut.sh", add_help=False)
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--fs", default="ext4,xfs")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--limit", type=float, default=None)
    parser.add_argument("--binary", default=f"{TARGET}/debug/sealift")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1 << 30)
    if not os.path.exists(args.binary):
        run("cargo", "build", "--locked", "--quiet")
    args.binary = os.path.abspath(args.binary)
    for kind in args.fs.split(","):
        if kind not in ("ext4", "xfs"):
            parser.error(f"--fs takes ext4 and xfs, not {kind}")

    def stop(number, frame):
        raise Stop()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    work = tempfile.mkdtemp(prefix="sealift-power-cut-")
    disks, lost, is_whole = Disks(), 0, False
    try:
        certs = f"{work}/certs"
        run(args.binary, "certs", "--dir", f"{certs}/server")
        run(args.binary, "certs", "--dir", f"{certs}/server", "--export", "client", "--to", f"{certs}/client")
        with open(f"{work}/outer.img", "wb") as file:
            file.truncate(OUTER_LEN)
        try:
            run("mkfs.xfs", "-q", "-m", "reflink=1", f"{work}/outer.img")
            disks.mount(disks.attach(f"{work}/outer.img"), f"{work}/outer")
        except RuntimeError as error:
            print(f"skipped, power cuts are not tried: {error}")
            is_whole = True
            return 0
        for kind in args.fs.split(","):
            lost += bench(kind, args, work, disks, certs)
        is_whole = True
        return 1 if lost else 0
    except Stop:
        print("interrupted", file=sys.stderr)
        is_whole = True
        return 130
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        disks.undo()
        if is_whole and not lost:
            shutil.rmtree(work, ignore_errors=True)
        else:
            # The logs of the servers; the images are of no use without what was on them.
            if os.path.exists(f"{work}/outer.img"):
                os.unlink(f"{work}/outer.img")
            print(f"the logs are in {work}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
