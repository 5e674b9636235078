"""Measures sealift and its peers on the same work, interleaved, in one run. Called by bench.sh; see there.

Every sample is one command of one tool: wall time from starting the client to its end, CPU time of all client and all
server processes, their peak memory, and CPU time that the rest of the machine used meanwhile (a sample with much of it
is spoilt, and left out of the medians while there are others). The server is started anew and its directory emptied
before each, and what arrived is compared with its source.
"""
import argparse
import contextlib
import datetime
import getpass
import json
import os
import platform
import re
import selectors
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

MIB, GIB = 1 << 20, 1 << 30
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TICK = os.sysconf("SC_CLK_TCK")
# CPU seconds of others per second of a sample, above which it is spoilt.
OTHER_MAX = 0.25
ENV = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin", LC_ALL="C")
for name in [name for name in ENV if name.startswith("SEALIFT_")]:
    del ENV[name]


def which(name):
    return shutil.which(name, path=ENV["PATH"])


def quiet(argv, **kwargs):
    return subprocess.run(argv, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def must(argv, **kwargs):
    done = quiet(argv, **kwargs)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(argv)} failed: {done.stdout.strip()[-500:]}")
    return done.stdout


# ---- processes -------------------------------------------------------------------------------------------------

def stat_of(pid):
    """Parent and CPU seconds (own and of children that ended); None when it is gone."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return int(fields[1]), sum(map(int, fields[11:15])) / TICK
    return None


def all_stats():
    """All processes, with what `stat_of` says."""
    stats = {int(pid): stat_of(pid) for pid in os.listdir("/proc") if pid.isdigit()}
    return {pid: stat for pid, stat in stats.items() if stat}


def tree_of(root, stats=None):
    """The processes below and including `root`, with what `stat_of` says, of those in this table."""
    stats = all_stats() if stats is None else stats
    found, grew = {root}, True
    while grew:
        more = {pid for pid, stat in stats.items() if stat[0] in found} - found
        found |= more
        grew = bool(more)
    return {pid: stats[pid] for pid in found if pid in stats}


def cpu_of(root):
    return sum(stat[1] for stat in tree_of(root).values())


def peak_of(root, stats=None):
    """Peak resident bytes of the processes that run, by the kernel's own count since each began its program."""
    total = 0
    for pid in tree_of(root, stats):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/status") as file:
                total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return total


def machine_busy():
    with open("/proc/stat") as file:
        values = [int(value) for value in file.readline().split()[1:9]]
    return (sum(values) - values[3] - values[4]) / TICK


def end_group(process):
    """Ends a process that this script started as leader of its own group, with all of that group."""
    for signum, wait in ((signal.SIGTERM, 2), (signal.SIGKILL, 2)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            return


class Sampler(threading.Thread):
    """Watches the memory of process trees; the tools under test keep most of the machine, so rarely."""

    def __init__(self, sides):
        super().__init__(daemon=True)
        self.sides, self.peak, self.over = sides, dict.fromkeys(sides, 0), threading.Event()

    def run(self):
        while not self.over.wait(0.1):
            stats = all_stats()
            for side, roots in self.sides.items():
                self.peak[side] = max(self.peak[side], sum(peak_of(root, stats) for root in roots))


# ---- tools -----------------------------------------------------------------------------------------------------

class Tool:
    """One way to move files. Commands are argument lists; `shell` marks those that need a shell."""

    needs, hint, scheme = (), "", ""
    address = "127.0.0.1"

    def __init__(self, bench):
        self.bench, self.server, self.port, self.root = bench, None, None, None
        self.state = os.path.join(bench.state, type(self).__name__)
        os.makedirs(self.state, exist_ok=True)

    @classmethod
    def missing(cls):
        return [name for name in cls.needs if not which(name)]

    def start(self, root, prefix=(), address="127.0.0.1"):
        self.root, self.address = root, address
        os.makedirs(root, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        log = open(os.path.join(self.state, "server.log"), "ab")
        self.server = subprocess.Popen([*prefix, *self.serve()], env=ENV, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.server.poll() is None:
            if prefix:
                if quiet([*prefix, "sh", "-c", f"ss -Hltn 'sport = :{self.port}' | grep -q ."]).returncode == 0:
                    return
            else:
                with contextlib.suppress(OSError):
                    socket.create_connection((address, self.port), 0.2).close()
                    return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"{self.name}: the server did not start; see {self.state}/server.log")

    def stop(self):
        if self.server:
            end_group(self.server)
            self.server = None


def without(argv, flag):
    """A command without this flag and its value."""
    where = argv.index(flag)
    return [*argv[:where], *argv[where + 2:]]


class Sealift(Tool):
    name = "sealift"
    extra = ()
    # The congestion control that both sides are told to use.
    control = ()

    @classmethod
    def missing(cls):
        return []

    def serve(self):
        return [self.bench.sealift, "serve", "--quiet", "--listen", f"{self.address}:{self.port}", "--root", self.root,
                "--certs", self.bench.server_certs, "--per-address", "20000", "--per-principal", "20000", *self.control]

    def url(self, name):
        return f"sealift://{self.address}:{self.port}/{name}"

    def client(self, *arguments):
        return [self.bench.sealift, arguments[0], "--quiet", "--certs", self.bench.client_certs, *self.extra, *self.control,
                *arguments[1:]]

    def put(self, source, name):
        return self.client("put", source, self.url(name))

    def get(self, name, target):
        return self.client("get", self.url(name), target)

    put_tree, get_tree = put, get

    def sync(self, source, name):
        return self.client("sync", source, self.url(name))


class SealiftOne(Sealift):
    name = "sealift --streams 1"
    extra = ("--streams", "1")


class SealiftEach(Sealift):
    name = "sealift, a sync per file"

    def serve(self):
        return [*super().serve(), "--sync-each"]


class Nginx(Tool):
    name = "nginx+curl"
    needs, hint = ("nginx", "curl"), "apt-get install nginx curl"

    def serve(self):
        keys, state = self.bench.server_certs, self.state
        temporary = "".join(f"{kind}_temp_path {state}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        user = "user root;" if os.geteuid() == 0 else ""
        # What arrives goes to the file system of its place, so that the last step is a rename.
        text = f"""daemon off; {user} worker_processes auto; pid {state}/pid; error_log stderr;
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; keepalive_timeout 600;
  client_max_body_size 0; client_body_temp_path {self.root}/.body; {temporary}
  server {{
    listen {self.address}:{self.port} ssl backlog=4096; root {self.root};
    ssl_certificate {keys}/server.pem; ssl_certificate_key {keys}/server-key.pem; ssl_protocols TLSv1.3;
    {self.verify()}
    location / {{ dav_methods PUT; create_full_put_path on; dav_access user:rw; }}
  }}
}}
"""
        with open(f"{state}/nginx.conf", "w") as file:
            file.write(text)
        return [which("nginx"), "-c", f"{state}/nginx.conf", "-p", state]

    def verify(self):
        return ""

    def url(self, name):
        return f"https://{self.address}:{self.port}/{name}"

    def curl(self, *arguments):
        return ["curl", "-sS", "--fail", "--http1.1", "--cacert", f"{self.bench.client_certs}/ca.pem", *arguments]

    def put(self, source, name):
        return self.curl("-o", "/dev/null", "-H", "Expect:", "-T", source, self.url(name))

    def get(self, name, target):
        return self.curl("-o", target, self.url(name))

    def tree(self, local, name, upload):
        """Both ways, eight at once; the list of files is made before the clock starts."""
        listed = local if upload else os.path.join(self.root, name)
        config = os.path.join(self.state, "tree.conf")
        with open(config, "w") as file:
            for folder, _, names in os.walk(listed):
                for base in names:
                    below = os.path.relpath(os.path.join(folder, base), listed)
                    what = f'upload-file = "{local}/{below}"\noutput = "/dev/null"' if upload else \
                        f'output = "{local}/{below}"\ncreate-dirs'
                    file.write(f'next\nurl = "{self.url(name)}/{below}"\n{what}\ncacert = "{self.bench.client_certs}/ca.pem"\n'
                               'silent\nfail\nhttp1.1\nheader = "Expect:"\n')
        with open(config) as file:
            text = file.read()
        with open(config, "w") as file:
            file.write(text.removeprefix("next\n"))
        return ["curl", "--parallel", "--parallel-max", "8", "-K", config]

    def put_tree(self, source, name):
        return self.tree(source, name, True)

    def get_tree(self, name, target):
        return self.tree(target, name, False)


class NginxVerifying(Nginx):
    name = "nginx, client certificates"

    def verify(self):
        return f"ssl_verify_client on; ssl_client_certificate {self.bench.server_certs}/ca.pem;"


class Ssh(Tool):
    needs, hint = ("sshd", "ssh", "scp", "sftp"), "apt-get install openssh-server openssh-client"
    cipher = ("-c", "aes256-gcm@openssh.com")

    def serve(self):
        keys = self.bench.ssh_keys()
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        with open(f"{self.state}/sshd_config", "w") as file:
            file.write(f"Port {self.port}\nListenAddress {self.address}\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\n"
                       "PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n"
                       "MaxStartups 200\nSubsystem sftp internal-sftp\n")
        return [which("sshd"), "-D", "-e", "-f", f"{self.state}/sshd_config"]

    @property
    def who(self):
        return f"{getpass.getuser()}@{self.address}"

    def options(self, port):
        keys = self.bench.ssh_keys()
        return ["-F", "none", port, str(self.port), *self.cipher, "-i", f"{keys}/user", "-o", "IdentitiesOnly=yes",
                "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes",
                "-o", "LogLevel=ERROR"]

    def ssh(self):
        return ["ssh", *self.options("-p")]


class Scp(Ssh):
    name = "scp"

    def put(self, source, name):
        return ["scp", "-q", *self.options("-P"), source, f"{self.who}:{self.root}/{name}"]

    def get(self, name, target):
        return ["scp", "-q", *self.options("-P"), f"{self.who}:{self.root}/{name}", target]


class Sftp(Ssh):
    name = "sftp"

    def batch(self, line):
        return ["sh", "-c", f"echo {shlex.quote(line)} | {shlex.join(['sftp', '-q', *self.options('-P'), '-b', '-', self.who])}"]

    def put(self, source, name):
        return self.batch(f"put {source} {self.root}/{name}")

    def get(self, name, target):
        return self.batch(f"get {self.root}/{name} {target}")


class Rsync(Ssh):
    name = "rsync"
    needs, hint = (*Ssh.needs, "rsync"), "apt-get install rsync openssh-server openssh-client"

    def rsync(self, source, target):
        return ["rsync", "-a", "-e", shlex.join(self.ssh()), source, target]

    def put(self, source, name):
        return self.rsync(source, f"{self.who}:{self.root}/{name}")

    def get(self, name, target):
        return self.rsync(f"{self.who}:{self.root}/{name}", target)

    def put_tree(self, source, name):
        return self.put(source + "/", name + "/")

    sync = put_tree

    def get_tree(self, name, target):
        return self.get(name + "/", target + "/")


class TarSsh(Ssh):
    name = "tar | ssh"
    needs, hint = (*Ssh.needs, "tar"), Ssh.hint

    def put_tree(self, source, name):
        there = shlex.quote(f"{self.root}/{name}")
        remote = shlex.join([*self.ssh(), self.who, f"mkdir {there} && tar -C {there} -xf -"])
        return ["bash", "-o", "pipefail", "-c", f"tar -C {shlex.quote(source)} -cf - . | {remote}"]

    def get_tree(self, name, target):
        remote = shlex.join([*self.ssh(), self.who, f"tar -C {shlex.quote(f'{self.root}/{name}')} -cf - ."])
        target = shlex.quote(target)
        return ["bash", "-o", "pipefail", "-c", f"mkdir {target} && {remote} | tar -C {target} -xf -"]


class Copy(Tool):
    name = "cp -r (no network)"

    def start(self, root, prefix=(), address="127.0.0.1"):
        self.root = root
        os.makedirs(root, exist_ok=True)

    def put_tree(self, source, name):
        return ["cp", "-r", source, f"{self.root}/{name}"]

    def get_tree(self, name, target):
        return ["cp", "-r", f"{self.root}/{name}", target]


# ---- the bench -------------------------------------------------------------------------------------------------

class Bench:
    def __init__(self, options):
        self.options = options
        self.sealift = os.path.abspath(options.sealift)
        # Asked before anything is written.
        self.versions = versions(self.sealift)
        self.shm = tempfile.mkdtemp(prefix="sealift-bench.", dir=options.memory_dir)
        self.disk = tempfile.mkdtemp(prefix="sealift-bench.", dir=options.disk_dir)
        self.state = tempfile.mkdtemp(prefix="sealift-bench.")
        self.results, self.mounted, self.sources = {}, None, {}
        # What runs beside client and server and belongs to the work: the emulator of a link.
        self.aside = []
        all_certs = f"{self.state}/certs"
        must([self.sealift, "certs", "--dir", all_certs, "--host", "localhost", "--host", "127.0.0.1", "--host", "10.77.0.2"])
        self.client_certs, self.server_certs = f"{self.state}/client-certs", f"{self.state}/server-certs"
        must([self.sealift, "certs", "--dir", all_certs, "--export", "client", "--to", self.client_certs])
        os.makedirs(self.server_certs, 0o700)
        for name in ("ca.pem", "server.pem", "server-key.pem"):
            shutil.copy2(f"{all_certs}/{name}", self.server_certs)

    def clean(self):
        self.unmount()
        for folder in (self.shm, self.disk, self.state):
            shutil.rmtree(folder, ignore_errors=True)

    def ssh_keys(self):
        folder = f"{self.state}/ssh"
        if not os.path.exists(folder):
            os.makedirs(folder, 0o700)
            for name in ("host", "user"):
                must(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{name}"])
        return folder

    def tools(self, *classes):
        """Those of these tools that are installed; says which are not."""
        found = []
        for cls in classes:
            lacking = cls.missing()
            if lacking:
                self.say_once(f"MISSING {', '.join(lacking)}: {cls.name} is left out ({cls.hint})")
            else:
                found.append(cls(self))
        return found

    said = set()

    def say_once(self, line):
        if line not in self.said:
            self.said.add(line)
            print(line, flush=True)

    # -- sources

    def file(self, size, label="big"):
        path = f"{self.shm}/{label}-{size}"
        if not os.path.exists(path):
            with open(path, "wb") as file:
                for _ in range(size // MIB):
                    file.write(os.urandom(MIB))
                file.write(os.urandom(size % MIB))
        return path

    def tree(self, directories, files, size):
        path = f"{self.shm}/tree-{directories}-{files}-{size}"
        if not os.path.exists(path):
            for directory in range(directories):
                os.makedirs(f"{path}/d{directory:03}")
                for index in range(files):
                    with open(f"{path}/d{directory:03}/f{index:03}.bin", "wb") as file:
                        file.write(os.urandom(size))
        return path

    def warm(self, folder, size):
        """Touches the memory that the run will need, half as much again where there is room for it: in a virtual machine
        the first touch is dear, and a host that takes back what is free takes some before the run gets there."""
        path = f"{folder}/warm"
        block = bytes(MIB)
        with open(path, "wb", buffering=0) as file:
            for _ in range(max(size, min(size * 3 // 2, meminfo("MemAvailable") // 2)) // MIB + 64):
                file.write(block)
        os.unlink(path)

    # -- one sample

    def measure(self, commands, server, limit=600):
        """Runs these commands at once; the figures. `server` is a pid or none."""
        log = open(f"{self.state}/client.log", "ab")
        before = cpu_of(server) if server else 0
        aside = sum(map(cpu_of, self.aside))
        busy, began = machine_busy(), time.monotonic()
        processes = [subprocess.Popen(argv, env=ENV, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
                     for argv in commands]
        sampler = Sampler({"client": [process.pid for process in processes], "server": [server] if server else []})
        sampler.start()
        timer = threading.Timer(limit, lambda: [end_group(process) for process in processes])
        timer.start()
        ended, client_cpu, codes = [], 0.0, []
        left = {process.pid: process for process in processes}
        ends = selectors.DefaultSelector()
        for pid in left:
            ends.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
        try:
            while left:
                # Any of them may end first; the server's own end is noticed by its failure to answer.
                for key, _ in ends.select():
                    _, status, usage = os.wait4(key.data, 0)
                    ended.append(time.monotonic() - began)
                    ends.unregister(key.fd)
                    os.close(key.fd)
                    left.pop(key.data).returncode = os.waitstatus_to_exitcode(status)
                    codes.append(os.waitstatus_to_exitcode(status))
                    client_cpu += usage.ru_utime + usage.ru_stime
        finally:
            timer.cancel()
            for key in list(ends.get_map().values()):
                os.close(key.fd)
            ends.close()
            for process in left.values():
                end_group(process)
        wall = max(ended)
        # What the server does after its answer counts too.
        latest = cpu_of(server) if server else 0
        for _ in range(40 if server else 0):
            time.sleep(0.1)
            now = cpu_of(server)
            if now <= latest:
                break
            latest = now
        server_cpu = latest - before
        others = machine_busy() - busy - client_cpu - server_cpu - (sum(map(cpu_of, self.aside)) - aside)
        sampler.over.set()
        sampler.join()
        return {
            "wall_s": round(wall, 4), "first_s": round(min(ended), 4), "client_cpu_s": round(client_cpu, 3),
            "server_cpu_s": round(server_cpu, 3), "cpu_s": round(client_cpu + server_cpu, 3),
            "client_mib": round(sampler.peak["client"] / MIB, 1),
            "server_mib": round(max(sampler.peak["server"], peak_of(server) if server else 0) / MIB, 1),
            "other_cpu_s": round(others, 2), "spoilt": others > OTHER_MAX * (wall + 0.2) + 0.1, "ok": not any(codes),
        }

    def sample(self, work, tool, round_number, commands, check, size=0, files=0, root=None, prepare=None, label=None,
               prefix=(), address="127.0.0.1", limit=600, targets=()):
        """Starts the tool's server, runs, compares, records. `targets` are what it makes outside the served root."""
        root = root or self.shm
        served = f"{root}/root"
        attempt = 0
        while True:
            attempt += 1
            try:
                tool.start(served, prefix, address)
                if prepare:
                    prepare(served)
                made = commands(served)
                figures = self.measure(made, tool.server.pid if tool.server else None, limit)
                figures["right"] = figures["ok"] and check(served)
            finally:
                tool.stop()
                for path in (served, *targets):
                    remove(path)
            if not figures["spoilt"] or attempt > self.options.retries:
                break
        if size:
            figures["mib_s"] = round(size / MIB / figures["wall_s"], 1)
            figures["cpu_s_per_gib"] = round(figures["cpu_s"] / (size / GIB), 3)
        if files:
            figures["files_s"] = round(files / figures["wall_s"])
        name = label or tool.name
        record = self.results.setdefault(work, {"samples": {}, "commands": {}})
        record["samples"].setdefault(name, []).append(figures)
        record["commands"][name] = self.readable(made[0])
        shown = [f"{key}={figures[key]}" for key in
                 ("wall_s", "mib_s", "files_s", "cpu_s_per_gib", "client_cpu_s", "server_cpu_s", "client_mib", "server_mib",
                  "other_cpu_s") if key in figures]
        flags = "".join(f" {flag}" for flag, on in
                        (("SPOILT", figures["spoilt"]), ("FAILED", not figures["ok"]), ("WRONG", not figures["right"])) if on)
        print(f"{work} round {round_number} {name}: {' '.join(shown)}{flags}", flush=True)
        if not figures["ok"]:
            with contextlib.suppress(OSError), open(f"{self.state}/client.log") as file:
                print("  " + file.read()[-300:].strip().replace("\n", "\n  "), flush=True)
        return figures

    def readable(self, argv):
        """The command without the paths of this machine."""
        text = shlex.join(argv)
        for path, name in ((self.sealift, "sealift"), (self.client_certs, "CERTS"), (self.shm, "MEMORY"), (self.disk, "DISK"),
                           (self.state, "STATE"), (self.mounted or "\0", "IMAGE")):
            text = text.replace(path, name)
        return re.sub(r"(127\.0\.0\.1):\d+", r"\1:PORT", re.sub(r"-([pP]) \d+", r"-\1 PORT", text))

    # -- workloads

    def w1(self):
        size = self.options.mib * MIB
        source = self.file(size)
        tools = self.tools(Sealift, SealiftOne, Nginx, Scp, Sftp, Rsync)
        if self.options.rounds == 1:
            tools = [tool for tool in tools if tool.name not in ("sftp", "sealift --streams 1")]
        for number in range(1, self.options.rounds + 1):
            for tool in rotate(tools, number):
                self.warm(self.shm, size)
                self.sample("W1 up", tool, number, lambda _: [tool.put(source, "f")],
                            lambda root: same(source, f"{root}/f"), size=size)
                target = f"{self.shm}/got"
                self.warm(self.shm, size)
                self.sample("W1 down", tool, number, lambda _: [tool.get("f", target)], lambda _: same(source, target),
                            size=size, prepare=lambda root: os.link(source, f"{root}/f"), targets=[target])

    def w1_disk(self):
        size = self.options.mib * MIB
        source = self.file(size)
        found = self.tools(Sealift, Nginx, Scp)
        for number in range(1, self.options.rounds + 1):
            for tool in rotate(found, number):
                for synced in ((False,) if isinstance(tool, Sealift) else (False, True)):
                    def commands(root, tool=tool, synced=synced):
                        argv = tool.put(source, "f")
                        return [["sh", "-c", f"{shlex.join(argv)} && sync -f {shlex.quote(root)}"] if synced else argv]
                    os.sync()
                    label = f"{tool.name}, then sync -f" if synced else \
                        tool.name if isinstance(tool, Sealift) else f"{tool.name}, not synced"
                    self.sample("W1 disk", tool, number, commands, lambda root: same(source, f"{root}/f"), size=size,
                                root=self.disk, label=label)

    def w2(self):
        directories, files, size = self.options.directories, 100, 10 * 1024
        source = self.tree(directories, files, size)
        count, total = directories * files, directories * files * size
        for number in range(1, self.options.rounds + 1):
            for tool in rotate(self.tools(Sealift, TarSsh, Rsync, Nginx, Copy), number):
                self.warm(self.shm, 2 * total)
                self.sample("W2 up", tool, number, lambda _: [tool.put_tree(source, "t")],
                            lambda root: same_tree(source, f"{root}/t"), size=total, files=count)
                target = f"{self.shm}/got"
                self.sample("W2 down", tool, number, lambda _: [tool.get_tree("t", target)],
                            lambda _: same_tree(source, target), size=total, files=count,
                            prepare=lambda root: shutil.copytree(source, f"{root}/t"), targets=[target])

    def w2_image(self):
        if os.geteuid() != 0 or not which("mkfs.ext4"):
            return self.say_once("SKIPPED W2 on an ext4 image: it needs root and mkfs.ext4")
        directories, files, size = self.options.directories, 100, 10 * 1024
        source = self.tree(directories, files, size)
        count, total = directories * files, directories * files * size
        for number in range(1, self.options.pairs + 1):
            kinds = [(tool, synced) for tool in self.tools(Sealift, SealiftEach, TarSsh)
                     for synced in ((False,) if isinstance(tool, Sealift) else (True, False))]
            for tool, synced in rotate(kinds, number):
                if not self.mount():
                    return None

                def commands(root, tool=tool, synced=synced):
                    argv = tool.put_tree(source, "t")
                    return [["sh", "-c", f"{shlex.join(argv)} && sync -f {shlex.quote(root)}"] if synced else argv]
                label = f"{tool.name}, then sync -f" if synced else \
                    tool.name if isinstance(tool, Sealift) else f"{tool.name}, not synced"
                self.sample("W2 image", tool, number, commands, lambda root: same_tree(source, f"{root}/t"), size=total,
                            files=count, root=self.mounted, label=label)
                self.unmount()
        return None

    def mount(self):
        """A fresh ext4 in a file on the disk."""
        image, point = f"{self.disk}/image", f"{self.disk}/mounted"
        os.makedirs(point, exist_ok=True)
        try:
            if not os.path.exists(image):
                must(["fallocate", "-l", "2G", image])
            must(["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", image])
            must(["mount", "-o", "loop,nodiscard", image, point])
        except RuntimeError as error:
            self.say_once(f"SKIPPED W2 on an ext4 image: {error}")
            return False
        self.mounted = point
        os.sync()
        return True

    def unmount(self):
        if self.mounted:
            quiet(["umount", self.mounted])
            self.mounted = None

    def w3(self):
        size, clients = self.options.client_mib * MIB, self.options.clients
        source = self.file(size, "each")
        for number in range(1, self.options.rounds + 1):
            for tool in rotate(self.tools(Sealift, Nginx), number):
                self.warm(self.shm, size * clients)
                figures = self.sample(
                    "W3 up", tool, number, lambda _: [tool.put(source, f"f{index}") for index in range(clients)],
                    lambda root: all(same(source, f"{root}/f{index}") for index in range(clients)), size=size * clients)
                figures["slowest_to_fastest"] = round(figures["wall_s"] / figures["first_s"], 2)
                targets = [f"{self.shm}/got{index}" for index in range(clients)]
                self.warm(self.shm, size * clients)
                figures = self.sample(
                    "W3 down", tool, number, lambda _: [tool.get("f", target) for target in targets],
                    lambda _: all(same(source, target) for target in targets), size=size * clients,
                    prepare=lambda root: os.link(source, f"{root}/f"), targets=targets)
                figures["slowest_to_fastest"] = round(figures["wall_s"] / figures["first_s"], 2)

    def w6(self):
        """Handshakes per second of server CPU time, and memory of idle connections, from one load generator."""
        seconds = self.options.seconds
        for number in range(1, self.options.rounds + 1):
            for tool in rotate(self.tools(Sealift, Nginx, NginxVerifying), number):
                wants = (("certificate", True),) if isinstance(tool, NginxVerifying) else (("none", False),)
                if isinstance(tool, Sealift):
                    wants = (("certificate", True), ("none", False))
                for who, certificate in wants:
                    for group in ("hybrid", "x25519"):
                        self.handshakes(tool, number, certificate, group, seconds)
        for tool in self.tools(Sealift):
            self.idle(tool)

    def handshakes(self, tool, number, certificate, group, seconds):
        root = f"{self.shm}/root"
        original = tool.serve
        if isinstance(tool, Sealift) and not certificate:
            tool.serve = lambda: [*without(original(), "--certs"), "--cert", f"{self.server_certs}/server.pem", "--key",
                                  f"{self.server_certs}/server-key.pem", "--allow-anonymous"]
        try:
            tool.start(root)
            before, busy = cpu_of(tool.server.pid), machine_busy()
            argv = [self.sealift, "bench", "--load", f"{tool.address}:{tool.port}", "--ca", f"{self.client_certs}/ca.pem",
                    "--seconds", str(seconds), "--key-exchange", group]
            if certificate:
                argv += ["--cert", f"{self.client_certs}/client.pem", "--key", f"{self.client_certs}/client-key.pem"]
            done = quiet(argv, timeout=seconds + 30)
            if done.returncode:
                return self.say_once(f"SKIPPED handshakes with {tool.name}: {done.stdout.strip()[-200:]}")
            count, client_cpu = json.loads(done.stdout)["handshakes"], json.loads(done.stdout)["cpu_s"]
            time.sleep(0.3)
            cpu = cpu_of(tool.server.pid) - before
        finally:
            tool.serve = original
            tool.stop()
            shutil.rmtree(root, ignore_errors=True)
        work = f"handshakes, {group}, {'client certificate' if certificate else 'no client certificate'}"
        figures = {"handshakes": count, "server_cpu_s": round(cpu, 3), "per_server_cpu_s": round(count / max(cpu, 0.01)),
                   "per_s": round(count / seconds), "ok": count > 0, "right": True,
                   "other_cpu_s": round(machine_busy() - busy - cpu - client_cpu, 2), "spoilt": False}
        label = "nginx" if isinstance(tool, Nginx) else tool.name
        record = self.results.setdefault(work, {"samples": {}, "commands": {}})
        record["samples"].setdefault(label, []).append(figures)
        record["commands"][label] = self.readable(argv)
        print(f"{work} round {number} {label}: {count} in {seconds} s, {figures['per_server_cpu_s']} per server CPU second",
              flush=True)
        return None

    def idle(self, tool):
        root, count = f"{self.shm}/root", self.options.idle
        try:
            tool.start(root)
            with open(f"{root}/f", "wb") as file:
                file.write(b"x")
            argv = [self.sealift, "bench", "--hold", str(count), "--load", f"{tool.address}:{tool.port}",
                    "--ca", f"{self.client_certs}/ca.pem", "--cert", f"{self.client_certs}/client.pem",
                    "--key", f"{self.client_certs}/client-key.pem"]
            before, slab = private_of(tool.server.pid), meminfo("Slab", "KernelStack")
            holder = subprocess.Popen(argv, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      start_new_session=True)
            timer = threading.Timer(120, lambda: end_group(holder))
            timer.start()
            line = holder.stdout.readline()
            timer.cancel()
            held = int(line.split()[0]) if line.split() else 0
            time.sleep(2)
            after, slab_after = private_of(tool.server.pid), meminfo("Slab", "KernelStack")
            end_group(holder)
        finally:
            tool.stop()
            shutil.rmtree(root, ignore_errors=True)
        if not held:
            return self.say_once("SKIPPED idle connections: none could be held")
        figures = {"connections": held, "server_kib_each": round((after - before) / 1024 / held, 2),
                   "kernel_kib_each_both_ends": round((slab_after - slab) / 1024 / held, 2), "ok": True, "right": held == count,
                   "spoilt": False}
        record = self.results.setdefault("idle", {"samples": {}, "commands": {}})
        record["samples"].setdefault(tool.name, []).append(figures)
        record["commands"][tool.name] = self.readable(argv)
        print(f"idle {tool.name}: {held} connections, {figures['server_kib_each']} KiB of server memory each, "
              f"{figures['kernel_kib_each_both_ends']} KiB of kernel memory (both ends)", flush=True)
        return None

    # -- again, changed in place

    def w4(self):
        """A large file is stored, 1 MiB in its middle is changed, it is sent again: time, and bytes on the wire."""
        if os.geteuid() != 0 or not which("ip"):
            return self.say_once("SKIPPED W4: the bytes on the wire are counted in a network namespace, which needs root and ip")
        size, name = self.options.mib * MIB, f"slbench-{os.getpid()}"
        source, inside = self.file(size, "changing"), ["ip", "netns", "exec", name]
        must(["ip", "netns", "add", name])
        try:
            must(["ip", "-n", name, "link", "set", "lo", "up"])
            for number in range(1, self.options.rounds + 1):
                for tool in rotate(self.tools(Sealift, Rsync), number):
                    self.changed_in_place(tool, number, source, size, inside)
        finally:
            quiet(["ip", "netns", "delete", name])
            remove(source)
        return None

    def changed_in_place(self, tool, number, source, size, inside):
        counted = []

        def prepare(_):
            must([*inside, *tool.put(source, "f")], timeout=600)
            with open(source, "r+b") as file:
                file.seek(size // 2)
                file.write(os.urandom(MIB))
            os.sync()
            counted.append(loopback_bytes(inside))

        def check(root):
            counted.append(loopback_bytes(inside))
            return same(source, f"{root}/f")

        figures = self.sample("W4", tool, number, lambda _: [[*inside, *tool.put(source, "f")]], check, size=size,
                              root=self.disk, prepare=prepare, prefix=inside)
        figures["wire_mib"] = round((counted[-1] - counted[-2]) / MIB, 2)
        print(f"W4 round {number} {tool.name}: {figures['wire_mib']} MiB on the wire", flush=True)

    # -- long links

    def wan(self, options):
        """The emulator, up until `close`: the commands that run something on either host."""
        emulator = os.environ.get("SEALIFT_WANLINK")
        process = subprocess.Popen([emulator, "--prefix", "slbench", *options, "--", "sh", "-c", "echo ready; exec sleep 1200"],
                                   env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        if process.stdout.readline().strip() != "ready":
            end_group(process)
            return None
        return process

    def w7(self):
        self.long("W7", "1gbit", ["--loss", "0.1%"])

    def w8(self):
        self.long("W8", "100mbit", [])

    def long(self, work, rate, more):
        if not os.environ.get("SEALIFT_WANLINK"):
            return self.say_once(f"SKIPPED {work}: SEALIFT_WANLINK does not name a link emulator")
        if os.geteuid() != 0:
            return self.say_once(f"SKIPPED {work}: network namespaces need root")
        there, here = ["ip", "netns", "exec", "slbench-b"], ["ip", "netns", "exec", "slbench-a"]
        on_link = dict(prefix=there, address="10.77.0.2", limit=400)
        for control in (("bbr", "cubic") if work == "W7" else ("cubic",)):
            link = self.wan(["--delay", "50ms", "--rate", rate, "--queue", "50ms", "--cc", control, "--seed", "1", *more])
            if not link:
                return self.say_once(f"SKIPPED {work}: the link emulator does not start")
            self.aside = [link.pid]
            try:
                for number in range(1, (1 if self.options.rounds == 1 else 3) + 1):
                    if work == "W7":
                        self.w7_round(number, control, here, on_link)
                    else:
                        self.w8_round(number, here, on_link)
            finally:
                self.aside = []
                end_group(link)
        return None

    def w7_round(self, number, control, here, on_link):
        # One lossy CUBIC stream gets a hundredth of the link: less content, the same rate.
        size = self.options.wan_mib * MIB if control == "bbr" else max(self.options.wan_mib // 16, 8) * MIB
        source = self.file(size, "wan")
        kinds = [(Sealift, streams) for streams in ((None,) if control == "bbr" else (None, 8, 16))]
        if number == 1:
            # One connection takes minutes, and hardly differs from round to round.
            kinds += [(Scp, None), (Rsync, None), (Sealift, 1)]
        for cls, streams in rotate(kinds, number):
            for tool in self.tools(cls):
                tool.extra = ("--streams", str(streams)) if streams else ()
                # By itself it asks for BBR on a long link, whatever the host prefers.
                tool.control = ("--cc", control) if control == "cubic" else ()
                label = f"{tool.name} --streams {streams}" if streams else tool.name
                self.sample(f"W7 {control}", tool, number, lambda _: [[*here, *tool.put(source, "f")]],
                            lambda root: same(source, f"{root}/f"), size=size, label=label, **on_link)
                # Of the peers, one direction says enough.
                if cls is Sealift:
                    self.w7_down(number, control, tool, label, source, here, on_link)

    def w7_down(self, number, control, tool, label, source, here, on_link):
        target = f"{self.shm}/got"

        def store(_):
            must([*on_link["prefix"], *tool.put(source, "f")])

        def lay(root):
            os.link(source, f"{root}/f")

        # Of a file that it has stored, a server has the hash; of one that somebody else laid there, it has none.
        ways = [(label, store)]
        if control == "bbr" and label == tool.name:
            ways.append((f"{label}, a file that it has not stored", lay))
        for name, prepare in ways:
            self.sample(f"W7 {control} down", tool, number, lambda _: [[*here, *tool.get("f", target)]],
                        lambda _: same(source, target), size=os.path.getsize(source), label=name, targets=[target],
                        prepare=prepare, **on_link)

    def w8_round(self, number, here, on_link):
        directories = self.options.wan_files // 100
        source = self.tree(directories, 100, 10 * 1024)
        total = directories * 100 * 10 * 1024
        one = self.file(total, "wan")
        for tool in self.tools(Sealift, TarSsh, Rsync):
            self.sample("W8", tool, number, lambda _: [[*here, *tool.put_tree(source, "t")]],
                        lambda root: same_tree(source, f"{root}/t"), size=total, files=directories * 100, **on_link)
        for tool in self.tools(Sealift):
            self.sample("W8", tool, number, lambda _: [[*here, *tool.put(one, "f")]],
                        lambda root: same(one, f"{root}/f"), size=total, label="sealift, one file of the same bytes", **on_link)

    def w9(self):
        """A tree that is there already, with nothing or 100 files changed; and how much memory large trees take."""
        directories, files, changed = 10 * self.options.directories, 100, 100
        source = self.tree(directories, files, 100)
        count = directories * files
        copy = f"{self.shm}/copy"
        must(["cp", "-a", source, copy])

        def change(root):
            for index in range(changed):
                place = index * count // changed
                with open(f"{root}/t/d{place // files:03}/f{place % files:03}.bin", "r+b") as file:
                    file.write(b"changed")

        for number in range(1, self.options.rounds + 1):
            for work, alter in (("W9 nothing changed", None), (f"W9 {changed} changed", change)):
                for tool in rotate(self.tools(Sealift, Rsync), number):
                    def prepare(root, alter=alter):
                        # Links would be broken by what replaces them, and hold the metadata of both.
                        must(["cp", "-a", copy, f"{root}/t"])
                        if alter:
                            alter(root)
                    self.sample(work, tool, number, lambda _: [tool.sync(source, "t")],
                                lambda root: same_tree(source, f"{root}/t"), files=count, prepare=prepare)
        shutil.rmtree(copy)
        shutil.rmtree(source)
        # A million empty files, and a tenth of them in one directory; once, for the memory.
        for work, directories, files in (("W9 many files", 10 * self.options.directories, 1000),
                                         ("W9 one directory", 1, 1000 * self.options.directories)):
            source = self.tree(directories, files, 0)
            for tool in self.tools(Sealift):
                for way in ("up", "down"):
                    target = f"{self.shm}/got"
                    first = FirstFile(f"{self.shm}/root/t" if way == "up" else target)

                    def commands(root, tool=tool, way=way, target=target, first=first):
                        first.start()
                        return [tool.put_tree(source, "t") if way == "up" else tool.get_tree("t", target)]
                    figures = self.sample(
                        f"{work} {way}", tool, 1, commands, files=directories * files, limit=1800, targets=[target],
                        check=lambda root, way=way, target=target: same_names(source if way == "up" else target, f"{root}/t"),
                        # A tmpfs has inodes for about two such trees, so what is served is the source itself.
                        prepare=None if way == "up" else lambda root: os.rename(self.tree(directories, files, 0), f"{root}/t"))
                    figures["first_file_s"] = first.after()
            shutil.rmtree(source, ignore_errors=True)

    def bound(self):
        argv = [self.sealift, "bench", "--json", "--dir", self.disk]
        busy, own, began = machine_busy(), os.times(), time.monotonic()
        done = quiet(argv, timeout=120)
        wall, now = time.monotonic() - began, os.times()
        others = machine_busy() - busy - (now.children_user + now.children_system - own.children_user - own.children_system)
        if done.returncode:
            return self.say_once(f"SKIPPED the bound: {done.stdout.strip()[-200:]}")
        spoilt = others > OTHER_MAX * wall + 0.1
        self.results["bound"] = {"pieces": json.loads(done.stdout), "spoilt": spoilt, "commands": {"sealift": "sealift bench --json --dir DISK"}}
        print(must([self.sealift, "bench", "--explain"], input=done.stdout), flush=True)
        return None


class FirstFile(threading.Thread):
    """Notes when the first file is below a directory."""

    def __init__(self, top):
        super().__init__(daemon=True)
        self.top, self.found, self.over = top, None, threading.Event()

    def start(self):
        # Another try of the same sample keeps the first one's time.
        if not self.ident:
            self.began = time.monotonic()
            super().start()

    def run(self):
        while not self.found and not self.over.wait(0.01):
            with contextlib.suppress(OSError, StopIteration):
                next(names for _, _, names in os.walk(self.top) if any(not name.startswith(".") for name in names))
                self.found = time.monotonic() - self.began

    def after(self):
        self.over.set()
        self.join()
        return round(self.found, 3) if self.found else None


def same_names(first, second):
    """For trees whose files are empty."""
    def names(top):
        return {os.path.relpath(os.path.join(folder, name), top) for folder, _, found in os.walk(top) for name in found}
    return names(first) == names(second)


def private_of(pid):
    """Bytes that only this process holds."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_"))


def meminfo(*names):
    """Bytes that the kernel tells under these names, together."""
    with open("/proc/meminfo") as file:
        found = dict(line.split(":") for line in file)
    return sum(int(found[name].split()[0]) * 1024 for name in names if name in found)


def loopback_bytes(inside):
    """Bytes that loopback has carried in the namespace that `inside` runs commands in, headers included."""
    text = must([*inside, "cat", "/proc/net/dev"])
    return next(int(line.split(":")[1].split()[0]) for line in text.splitlines() if line.strip().startswith("lo:"))


def rotate(items, number):
    """Another order in each round, forwards and backwards in turn, so that no tool always follows the same."""
    start = (number - 1) % max(len(items), 1)
    return (items[start:] + items[:start])[::1 if number % 2 else -1]


def same(first, second):
    return subprocess.run(["cmp", "-s", first, second]).returncode == 0


def same_tree(first, second):
    return subprocess.run(["diff", "-rq", first, second], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def remove(path):
    with contextlib.suppress(OSError):
        os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)


# ---- results ---------------------------------------------------------------------------------------------------

def machine():
    model, memory = platform.machine(), 0
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) // 1024
    with open("/proc/sys/net/ipv4/tcp_congestion_control") as file:
        control = file.read().strip()
    return {"cores": os.cpu_count(), "cpu": model, "kernel": platform.release(), "memory_mib": memory,
            "congestion_control": control}


def versions(sealift):
    found = {"sealift": must([sealift, "--version"]).split()[-1]}
    commit = quiet(["git", "-C", HERE, "describe", "--always", "--dirty"])
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    for name, argv in (("nginx", ["nginx", "-v"]), ("curl", ["curl", "-V"]), ("ssh", ["ssh", "-V"]), ("rsync", ["rsync", "-V"]),
                       ("tar", ["tar", "--version"])):
        if which(name):
            number = re.search(r"\d+\.\d+[\w.]*", quiet(argv).stdout)
            found[name] = number.group(0) if number else "?"
    return found


def good(samples):
    """The samples that count: right ones, undisturbed if there are any."""
    right = [sample for sample in samples if sample["ok"] and sample["right"]]
    return [sample for sample in right if not sample["spoilt"]] or right


def median(samples, key):
    values = [sample[key] for sample in samples if key in sample]
    return statistics.median(values) if values else None


COLUMNS = (("mib_s", "MiB/s", 0), ("files_s", "files/s", 0), ("cpu_s_per_gib", "CPU s/GiB", 2), ("wire_mib", "MiB on the wire", 1),
           ("client_mib", "client MiB", 0), ("server_mib", "server MiB", 0), ("first_file_s", "first file after s", 2),
           ("slowest_to_fastest", "slowest ÷ fastest", 2), ("per_server_cpu_s", "per server CPU s", 0), ("per_s", "per s", 0),
           ("server_kib_each", "server KiB each", 1), ("kernel_kib_each_both_ends", "kernel KiB each, both ends", 1))


def table(work, record):
    """One workload as Markdown: medians, the spread of the rate, and sealift's rate as a multiple of each peer's."""
    samples = {name: good(found) for name, found in record["samples"].items()}
    keys = [column for column in COLUMNS if any(column[0] in sample for found in samples.values() for sample in found)]
    if work.startswith(("W2", "W9")):
        keys = [column for column in keys if column[0] not in ("mib_s", "cpu_s_per_gib")]
    if not keys:
        return ""
    rate = keys[0][0]
    ours = median(samples.get("sealift", []), rate)
    lines = [f"| {work} | " + " | ".join(column[1] for column in keys) + " | spread | runs | sealift is |",
             "|---" * (len(keys) + 4) + "|"]
    for name, found in samples.items():
        cells = []
        for key, _, digits in keys:
            value = median(found, key)
            cells.append("" if value is None else f"{value:,.{digits}f}")
        values = [sample[rate] for sample in found if rate in sample]
        spread = f"{min(values):,.0f}–{max(values):,.0f}" if values else ""
        theirs = median(found, rate)
        ratio = f"{ours / theirs:.2f}×" if ours and theirs and name != "sealift" else ""
        disturbed = "*" if any(sample["spoilt"] for sample in found) else ""
        failed = len(record["samples"][name]) - len([s for s in record["samples"][name] if s["ok"] and s["right"]])
        runs = f"{len(found)}{disturbed}" + (f" ({failed} failed)" if failed else "")
        lines.append(f"| {name.replace('|', chr(92) + '|')} | " + " | ".join(cells) + f" | {spread} | {runs} | {ratio} |")
    paired = pairs(record)
    return "\n".join(lines + ([""] + paired if paired and work == "W2 image" else []))


def pairs(record):
    """Medians of the ratios within each round."""
    ours = record["samples"].get("sealift", [])
    lines = []
    for name, theirs in record["samples"].items():
        ratios = [a["files_s"] / b["files_s"] for a, b in zip(ours, theirs) if a["right"] and b["right"] and "files_s" in a and "files_s" in b]
        if name != "sealift" and ratios:
            lines.append(f"Paired with {name}: median ratio {statistics.median(ratios):.2f} of {len(ratios)} "
                         f"({min(ratios):.2f}–{max(ratios):.2f}).")
    return lines


def bound_table(record):
    found = record["pieces"]
    lines = ["| piece | GiB/s | CPU s/GiB |", "|---|---|---|"]
    lines += [f"| {piece['name']} | {piece['gib_s']:.2f} | {piece['cpu_s_per_gib']:.3f} |" for piece in found["pieces"]]
    lines += ["", "| the small ones | per s | per CPU s |", "|---|---|---|"]
    lines += [f"| {piece['name']} | {piece['per_s']:,.0f} | {piece['per_cpu_s']:,.0f} |" for piece in found["counts"]]
    lines += ["", "| bound | MiB/s | CPU s/GiB | limited by |", "|---|---|---|---|"]
    lines += [f"| {bound['name']} | {bound['mib_s']:,.0f} | {bound['cpu_s_per_gib']:.2f} | {bound['limited_by']} |"
              for bound in found["bounds"]]
    return "\n".join(lines)


# Which bound is that of which workload.
BOUNDS = {"W1 up": "memory to memory", "W1 down": "memory to memory", "W1 disk": "memory to disk, durable"}


def reached(workloads):
    """What part of the bound sealift's transfers reach. Only of the same run: a machine is not as fast every day."""
    bound, lines = workloads.get("bound"), []
    if not bound:
        return lines
    bounds = {found["name"]: found for found in bound["pieces"]["bounds"]}
    for work, name in BOUNDS.items():
        record = workloads.get(work)
        if not record or name not in bounds or record.get("about") != bound.get("about"):
            continue
        samples = good(record["samples"].get("sealift", []))
        rate, cpu, limit = median(samples, "mib_s"), median(samples, "cpu_s_per_gib"), bounds[name]
        if rate and cpu:
            disturbed = bound.get("spoilt") or any(sample["spoilt"] for sample in samples)
            note = " The machine was busy with other things, so this is no measure." if disturbed else ""
            lines.append(f"{work}: {100 * rate / limit['mib_s']:.0f} % of the bound ({rate:,.0f} of {limit['mib_s']:,.0f} MiB/s), "
                         f"with {cpu:.2f} CPU s/GiB where the pieces alone take {limit['cpu_s_per_gib']:.2f}.{note}")
    return lines


def render(results):
    """The generated part of docs/PERFORMANCE.md."""
    parts = []
    for work, record in results["workloads"].items():
        body = "\n\n".join([bound_table(record), *reached(results["workloads"])]) if work == "bound" else table(work, record)
        if body:
            about = record["about"]
            parts.append(f"{body}\n\n<sub>{about['date']}, {about['what']}, commit {about['versions'].get('commit', '?')}</sub>")
    here = results["machine"]
    said = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if name != "commit")
    head = (f"{here['cores']} cores ({here['cpu']}), {here['memory_mib']} MiB of memory, Linux {here['kernel']}, "
            f"congestion control {here['congestion_control']}; {said}.\n"
            "A star marks a median of runs during which the machine was busy with other things.")
    return head + "\n\n" + "\n\n".join(parts)


def write(bench, options):
    path = os.path.join(HERE, "docs", "bench-results.json") if options.write else options.results
    results = {"workloads": {}}
    if options.write and os.path.exists(path):
        with open(path) as file:
            results = json.load(file)
    results["machine"], results["versions"] = machine(), bench.versions
    about = {"date": datetime.date.today().isoformat(), "versions": results["versions"],
             "what": f"file {options.mib} MiB, {options.directories * 100:,} small files of 10 KiB, "
                     f"{options.clients} clients of {options.client_mib} MiB, {options.rounds} rounds"}
    for work, record in bench.results.items():
        results["workloads"][work] = {"about": about, **record}
    with open(path, "w") as file:
        json.dump(results, file, indent=1, ensure_ascii=False)
        file.write("\n")
    if options.write:
        page = os.path.join(HERE, "docs", "PERFORMANCE.md")
        begin, end = "<!-- tables: made by scripts/bench.sh -->", "<!-- end of tables -->"
        with open(page) as file:
            text = file.read()
        before, rest = text.split(begin, 1)
        with open(page, "w") as file:
            file.write(f"{before}{begin}\n\n{render(results)}\n\n{end}{rest.split(end, 1)[1]}")
    return path


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description="Measures sealift beside its peers.")
    parser.add_argument("mode", nargs="?", choices=("all", "quick"), default="all")
    parser.add_argument("--only", help="workloads, with commas: bound,w1,w1_disk,w2,w2_image,w3,w4,w6,w7,w8,w9")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--pairs", type=int, help="rounds on ext4 images")
    parser.add_argument("--mib", type=int, help="MiB of the one large file")
    parser.add_argument("--directories", type=int, help="directories of 100 small files each")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--client-mib", type=int)
    parser.add_argument("--idle", type=int, help="idle connections")
    parser.add_argument("--seconds", type=int, help="of handshakes")
    parser.add_argument("--wan-mib", type=int)
    parser.add_argument("--wan-files", type=int)
    parser.add_argument("--retries", type=int, help="further tries for a sample that was disturbed")
    parser.add_argument("--memory-dir", default="/dev/shm", help="a directory on tmpfs")
    parser.add_argument("--disk-dir", default="/var/tmp", help="a directory on a disk")
    parser.add_argument("--sealift", default=os.environ.get("SEALIFT_BIN", "sealift"))
    parser.add_argument("--results", help="where the results go (default: docs/bench-results.json, with quick a temporary file)")
    options = parser.parse_args()
    full = dict(rounds=3, pairs=10, mib=4096, directories=100, client_mib=512, idle=10000, seconds=5, wan_mib=1024,
                wan_files=5000, retries=2)
    quick_sizes = dict(rounds=1, pairs=2, mib=512, directories=20, client_mib=64, idle=500, seconds=1, wan_mib=64,
                       wan_files=500, retries=0)
    for key, value in (quick_sizes if options.mode == "quick" else full).items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    options.write = options.mode != "quick" and options.results is None
    options.results = options.results or os.path.join(tempfile.gettempdir(), f"sealift-bench-{os.getuid()}.json")
    return options


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    order = ["bound", "w1", "w1_disk", "w2", "w2_image", "w3", "w4", "w6", "w7", "w8", "w9"]
    chosen = options.only.split(",") if options.only else order
    if unknown := set(chosen) - set(order):
        sys.exit(f"bench: no workload {', '.join(unknown)}")
    bench = Bench(options)
    try:
        for name in chosen:
            getattr(bench, name)()
            # What was measured stays, whatever happens to the rest.
            write(bench, options)
        print()
        for work, record in bench.results.items():
            if work != "bound":
                print(table(work, record) + "\n")
        print("\n".join(reached(bench.results)))
        print(f"results: {write(bench, options)}")
    finally:
        bench.clean()


if __name__ == "__main__":
    main()
