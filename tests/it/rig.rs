//! What the tests of reliability have in common beside [`crate::kit`]: servers that run under a tracer or a limit and
//! are killed, connections that are cut or stopped at a given byte, file systems that are full, and content that can
//! be made again from a number.
//!
//! Everything lies in a folder of the test's own and ends with it; only processes that a test started are killed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything that should happen may take before a test says that it did not. Generous: machines are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with certificates, a root to serve and room for what a test makes.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> World {
        World::under(&std::env::temp_dir())
    }

    /// One in memory, where the machine has a place for that.
    pub(crate) fn in_memory() -> World {
        let shm = Path::new("/dev/shm");
        if shm.is_dir() { World::under(shm) } else { World::new() }
    }

    fn under(directory: &Path) -> World {
        let folder = tempfile::Builder::new().prefix("sealift-test-").tempdir_in(directory).unwrap();
        let world = World { folder };
        copy(&certificates().join("certs"), &world.path("certs"));
        copy(&certificates().join("client"), &world.path("client"));
        fs::create_dir(world.root()).unwrap();
        world
    }

    /// Runs `sealift certs` on the folder of the server.
    #[track_caller]
    pub(crate) fn certs(&self, args: &[&str]) {
        let output = binary().args(["certs", "--dir"]).arg(self.path("certs")).args(args).output().unwrap();
        assert!(output.status.success(), "certs {args:?}: {output:?}");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What is served.
    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Makes a file of this world, and the directories above it.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A server of this world's root on a free port.
    #[track_caller]
    pub(crate) fn serve(&self) -> Server {
        self.serve_by(binary(), 0)
    }

    /// The same with more flags.
    #[track_caller]
    pub(crate) fn serve_and(&self, more: &[&OsStr]) -> Server {
        let mut command = binary();
        command.arg("serve").arg("--root").arg(self.root()).arg("--certs").arg(self.path("certs"));
        command.args(["--listen", "127.0.0.1:0"]).args(more);
        Server::start(command, self.path("client"))
    }

    /// The same with another certificate, by its name in this world.
    #[track_caller]
    pub(crate) fn serve_with(&self, stem: &str) -> Server {
        let mut command = binary();
        command.arg("serve").arg("--root").arg(self.root()).arg("--client-ca").arg(self.path("certs/ca.pem"));
        command.arg("--cert").arg(self.path(&format!("{stem}.pem")));
        command.arg("--key").arg(self.path(&format!("{stem}-key.pem")));
        command.args(["--listen", "127.0.0.1:0"]);
        Server::start(command, self.path("client"))
    }

    /// A server by a command that says all of it.
    #[track_caller]
    pub(crate) fn started(&self, command: Command) -> Server {
        Server::start(command, self.path("client"))
    }

    /// The same by a command of its own, with further flags.
    #[track_caller]
    pub(crate) fn serve_with_args(&self, mut command: Command, args: &[&str]) -> Server {
        command.arg("serve").arg("--root").arg(self.root()).arg("--certs").arg(self.path("certs"));
        command.args(["--listen", "127.0.0.1:0"]).args(args);
        Server::start(command, self.path("client"))
    }

    /// The same by another command (a tracer, a limit), on this port; 0 is a free one.
    #[track_caller]
    pub(crate) fn serve_by(&self, mut command: Command, port: u16) -> Server {
        command.arg("serve").arg("--root").arg(self.root()).arg("--certs").arg(self.path("certs"));
        command.arg("--listen").arg(format!("127.0.0.1:{port}"));
        Server::start(command, self.path("client"))
    }

    /// The same by a command that says `serve` already, with flags of its own.
    #[track_caller]
    pub(crate) fn serve_as(&self, mut command: Command) -> Server {
        command.arg("--root").arg(self.root()).arg("--certs").arg(self.path("certs"));
        command.args(["--listen", "127.0.0.1:0"]);
        Server::start(command, self.path("client"))
    }
}

/// The real binary, with nothing of the environment that would change what it does.
pub(crate) fn binary() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_sealift")))
}

/// The real binary run by something else: `wrapped("strace", ["-f"])`.
pub(crate) fn wrapped<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = clean(Command::new(program));
    command.args(args).arg(env!("CARGO_BIN_EXE_sealift"));
    command
}

fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"SEALIFT_") || name.as_bytes().starts_with(b"RUST_LOG") {
            command.env_remove(name);
        }
    }
    // Nothing that a test does is remembered at home.
    command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    // Nobody's own configuration.
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command.stdin(Stdio::null());
    command
}

/// Certificates for all tests of this process: each makes a copy for itself.
fn certificates() -> &'static Path {
    static FOLDER: std::sync::OnceLock<TempDir> = std::sync::OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let certs = |args: &[&str]| {
            let output = binary().args(["certs", "--dir", "certs"]).args(args).current_dir(&folder).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        certs(&[]);
        certs(&["--export", "client", "--to", "client"]);
        folder
    });
    made.path()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // Modes come along: keys stay private.
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A server that runs. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    pub(crate) certs: PathBuf,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    #[track_caller]
    pub(crate) fn start(mut command: Command, certs: PathBuf) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = Arc::clone(&log);
        let stderr = BufReader::new(child.stderr.take().unwrap());
        // Ends with the server's standard error.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let Some(port) = first.trim().rsplit(':').next().and_then(|port| port.parse().ok()) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not start: {first:?} {:?}", log.lock().unwrap());
        };
        Server { child, port, certs, log }
    }

    /// A remote of this server.
    pub(crate) fn at(&self, path: &str) -> String {
        remote(self.port, path)
    }

    /// A client command with the right certificates.
    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = binary();
        command.args(args).arg("--certs").arg(&self.certs);
        command
    }

    /// A command that moves files, with one object a line as its output.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, command: &str, args: impl IntoIterator<Item = S>) -> Ran {
        Ran::of(self.client(&[command, "--json"]).args(args).output().unwrap())
    }

    /// Uploads, and expects success.
    #[track_caller]
    pub(crate) fn put(&self, source: &Path, path: &str) -> Ran {
        let ran = self.run("put", [source.as_os_str(), self.at(path).as_ref()]);
        assert_eq!(ran.code, 0, "put {}: {ran:?}", source.display());
        ran
    }

    /// Downloads, and expects success.
    #[track_caller]
    pub(crate) fn get(&self, path: &str, target: &Path) -> Ran {
        let ran = self.run("get", [self.at(path).as_ref(), target.as_os_str()]);
        assert_eq!(ran.code, 0, "get {path}: {ran:?}");
        ran
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it has logged so far.
    pub(crate) fn said(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// What it has logged, once a line with this text is there.
    #[track_caller]
    pub(crate) fn log_with(&self, text: &str) -> Vec<String> {
        until(&format!("the server logs {text:?}"), || {
            let said = self.said();
            said.iter().any(|line| line.contains(text)).then_some(said)
        })
    }

    /// The most memory that it has had, in bytes.
    pub(crate) fn memory_peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end. Returns the exit code.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Option<i32> {
        kill_process(self.pid(), Signal::TERM).unwrap();
        until("the server ends after SIGTERM", || self.child.try_wait().unwrap().map(|status| status.code()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn remote(port: u16, path: &str) -> String {
    format!("sealift://localhost:{port}/{path}")
}

/// How a client command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) lines: Vec<Value>,
    pub(crate) errors: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Ran {
        let text = String::from_utf8(output.stdout).unwrap();
        // A command that was killed may leave half a line.
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ran {
            code: output.status.code().unwrap_or(-1),
            lines,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The objects of one type.
    pub(crate) fn of_type(&self, kind: &str) -> Vec<&Value> {
        self.lines.iter().filter(|line| line["type"] == kind).collect()
    }

    pub(crate) fn summary(&self) -> &Value {
        self.lines.last().filter(|line| line["type"] == "summary").unwrap_or(&Value::Null)
    }

    /// Every message of a failure, whether of an item or of the whole.
    pub(crate) fn failures(&self) -> String {
        let items = self.of_type("failed").into_iter().filter_map(|line| line["message"].as_str());
        let whole = self.summary()["error"]["message"].as_str();
        items.chain(whole).chain([&*self.errors]).collect::<Vec<_>>().join("\n")
    }

    /// Name and hash of each file that was told as done.
    pub(crate) fn done_files(&self) -> Vec<(String, String)> {
        let files = self.of_type("done").into_iter().filter(|line| line["kind"] == "file");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        files.map(|line| (text(&line["name"]), text(&line["b3"]))).collect()
    }
}

/// Polls until there is an answer.
#[track_caller]
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

#[track_caller]
pub(crate) fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Content that looks random and can be made again from its number.
pub(crate) fn content(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn hash_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Numbers from a seed, which the test prints.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(test: &str) -> Numbers {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).unwrap();
            u64::from_be_bytes(bytes)
        });
        println!("{test}: SEED={seed}");
        Numbers(seed | 1)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % end
    }
}

/// Whether the long forms run; says so when they do not.
pub(crate) fn long(what: &str) -> bool {
    let is_long = std::env::var_os("LONG_TESTS").is_some();
    if !is_long {
        println!("skipped without LONG_TESTS: {what}");
    }
    is_long
}

/// Whether a tool works here; says so when it does not.
pub(crate) fn has(program: &str, args: &[&str], what: &str) -> bool {
    let works = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        println!("skipped, {program} does not work here: {what}");
    }
    works
}

/// Everything below a directory, by name: what two equal trees have in common. The state directory is left out.
pub(crate) fn tree(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path == top.join(".sealift") {
                continue;
            }
            let Ok(status) = fs::symlink_metadata(&path) else { continue };
            let kind = if status.is_dir() {
                waiting.push(path.clone());
                What::Directory
            } else if status.is_symlink() {
                What::Link(fs::read_link(&path).unwrap())
            } else {
                What::File { size: status.len() }
            };
            let mtime = (status.mtime(), status.mtime_nsec());
            let mode = if status.is_symlink() { 0 } else { status.permissions().mode() & 0o7777 };
            found.insert(path.strip_prefix(top).unwrap().to_path_buf(), Seen { kind, mode, mtime });
        }
    }
    found
}

/// What `lstat` says of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: What,
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    File { size: u64 },
    Directory,
    Link(PathBuf),
}

/// The names of staging files that lie open below a directory: nothing that a client would see, but a person would.
pub(crate) fn leftovers(top: &Path) -> Vec<PathBuf> {
    let is_hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".sealift-"));
    tree(top).into_keys().filter(is_hidden).collect()
}

/// What lies in the state directory's staging.
pub(crate) fn staged(root: &Path) -> usize {
    fs::read_dir(root.join(".sealift/staging")).map_or(0, Iterator::count)
}

/// How a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A reset.
    Reset,
    /// An orderly end of the stream, without one of TLS.
    End,
    /// Nothing more comes, and nothing is said about it.
    Silence,
}

pub(crate) type Hook = Arc<dyn Fn() + Send + Sync>;

/// What happens to one connection, by the number of bytes that have passed in one direction.
#[derive(Clone, Default)]
pub(crate) struct Plan {
    /// Cut once the client has got so many bytes.
    pub(crate) cut: Option<(u64, Cut)>,
    /// The same, once so many bytes have gone to the server.
    pub(crate) cut_up: Option<(u64, Cut)>,
    /// A bit of this byte is another one towards the client.
    pub(crate) flip: Option<u64>,
    /// The same towards the server.
    pub(crate) flip_up: Option<u64>,
    /// Called once when so many bytes have gone to the server; none goes on before it returns.
    pub(crate) up: Option<(u64, Hook)>,
    /// The same towards the client.
    pub(crate) down: Option<(u64, Hook)>,
    /// Bytes that go to the server in a second, and that come from it.
    pub(crate) rate: Option<u64>,
}

/// Stands between clients and a server, and does to the n-th connection what the test planned.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<ProxyState>,
}

struct ProxyState {
    target: AtomicU16,
    stopping: AtomicBool,
    connections: AtomicUsize,
    /// Directions that are open.
    pumps: AtomicUsize,
    /// Bytes of all connections together.
    up: AtomicU64,
    down: AtomicU64,
    streams: Mutex<Vec<Arc<TcpStream>>>,
}

impl Proxy {
    pub(crate) fn new(target: u16, plan: impl Fn(usize) -> Plan + Send + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(ProxyState {
            target: AtomicU16::new(target),
            stopping: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            pumps: AtomicUsize::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            streams: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                // A server that is away: the client finds its connection closed.
                let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target.load(Ordering::SeqCst))) else {
                    continue;
                };
                let (client, server) = (Arc::new(client.unwrap()), Arc::new(server));
                shared.streams.lock().unwrap().extend([Arc::clone(&client), Arc::clone(&server)]);
                shared.pumps.fetch_add(2, Ordering::SeqCst);
                let Plan { cut, up, down, cut_up, rate, flip, flip_up } = plan(number);
                let (state, from, to) = (Arc::clone(&shared), Arc::clone(&client), Arc::clone(&server));
                std::thread::spawn(move || {
                    pump(&state, &state.up, (&from, &to), (cut_up, flip_up), up, rate);
                    state.pumps.fetch_sub(1, Ordering::SeqCst);
                });
                let state = Arc::clone(&shared);
                std::thread::spawn(move || {
                    pump(&state, &state.down, (&server, &client), (cut, flip), down, rate);
                    state.pumps.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Proxy { port, state }
    }

    /// Where the next connections go.
    pub(crate) fn aim(&self, port: u16) {
        self.state.target.store(port, Ordering::SeqCst);
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Bytes that went to the server, and that came from it, when every connection has ended.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        until("the connections end", || (self.state.pumps.load(Ordering::SeqCst) == 0).then_some(()));
        (self.state.up.load(Ordering::SeqCst), self.state.down.load(Ordering::SeqCst))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts. It may be gone already.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        for stream in self.state.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pump(
    state: &ProxyState,
    count: &AtomicU64,
    (from, to): (&Arc<TcpStream>, &Arc<TcpStream>),
    (cut, flip): (Option<(u64, Cut)>, Option<u64>),
    mut hook: Option<(u64, Hook)>,
    rate: Option<u64>,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut passed = 0;
    loop {
        if let Some((_, call)) = hook.take_if(|(at, _)| passed >= *at) {
            call();
        }
        if let Some((_, how)) = cut.filter(|(at, _)| passed >= *at) {
            let forget =
                |stream: &Arc<TcpStream>| state.streams.lock().unwrap().retain(|other| !Arc::ptr_eq(other, stream));
            match how {
                Cut::Silence => {
                    until("the test ends", || state.stopping.load(Ordering::SeqCst).then_some(()));
                }
                Cut::Reset => {
                    // Closed by whoever lets go of it last, the other direction's thread perhaps.
                    rustix::net::sockopt::set_socket_linger(to, Some(Duration::ZERO)).unwrap();
                    let _ = to.shutdown(Shutdown::Read);
                    let _ = from.shutdown(Shutdown::Both);
                    forget(to);
                }
                Cut::End => {
                    let _ = to.shutdown(Shutdown::Both);
                    let _ = from.shutdown(Shutdown::Both);
                }
            }
            return;
        }
        let next = [cut.map(|(at, _)| at), hook.as_ref().map(|(at, _)| *at)].into_iter().flatten().min();
        let room = next.map_or(buffer.len(), |next| usize::try_from(next - passed).unwrap().min(buffer.len()));
        match (&**from).read(&mut buffer[..room]) {
            Ok(len @ 1..) => {
                let at = flip.and_then(|at| usize::try_from(at.checked_sub(passed)?).ok());
                if let Some(byte) = at.and_then(|at| buffer[..len].get_mut(at)) {
                    *byte ^= 1 << (passed % 8);
                }
                passed += len as u64;
                count.fetch_add(len as u64, Ordering::SeqCst);
                // Whoever has left does not mind.
                let _ = (&**to).write_all(&buffer[..len]);
                if let Some(rate) = rate {
                    std::thread::sleep(Duration::from_secs_f64(len as f64 / rate as f64));
                }
            }
            Ok(0) | Err(_) => {
                let _ = to.shutdown(Shutdown::Write);
                let _ = from.shutdown(Shutdown::Read);
                return;
            }
        }
    }
}

/// A file system of a test's own in memory. Gone with the value.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Mounts a tmpfs with these options; none, with a word about it, where that is not allowed.
    pub(crate) fn tmpfs(path: &Path, options: &str) -> Option<Mount> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Mount(path.to_path_buf()));
        }
        println!("skipped, no file system can be mounted here");
        None
    }

    /// Mounts a file system in memory that keeps no extended attributes; none, with a word about it, where that is not
    /// allowed.
    pub(crate) fn ramfs(path: &Path) -> Option<Mount> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Mount(path.to_path_buf()));
        }
        println!("skipped, no file system can be mounted here");
        None
    }

    /// A file system of this kind in an image of so many bytes.
    pub(crate) fn image(image: &Path, path: &Path, kind: &str, len: u64) -> Option<Mount> {
        fs::create_dir_all(path).unwrap();
        fs::File::create(image).unwrap().set_len(len).unwrap();
        let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        if works(Command::new(format!("mkfs.{kind}")).arg("-q").arg(image))
            && works(Command::new("mount").args(["-o", "loop", "-t", kind]).arg(image).arg(path))
        {
            // Some have one of their own.
            let _ = fs::remove_dir(path.join("lost+found"));
            return Some(Mount(path.to_path_buf()));
        }
        println!("skipped, no image of {kind} can be mounted here");
        None
    }

    /// A directory a second time.
    pub(crate) fn bind(from: &Path, path: &Path) -> Option<Mount> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount").arg("--bind").arg(from).arg(path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Mount(path.to_path_buf()));
        }
        println!("skipped, no directory can be mounted here");
        None
    }

    /// Mounts an XFS whose files can share blocks, from an image in this folder; none, with a word about it, where that
    /// is not possible.
    pub(crate) fn xfs(path: &Path, image: &Path) -> Option<Mount> {
        fs::create_dir_all(path).unwrap();
        fs::File::create(image).unwrap().set_len(400 << 20).unwrap();
        let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = works(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(image));
        if made && works(Command::new("mount").args(["-o", "loop"]).args([image, path])) {
            return Some(Mount(path.to_path_buf()));
        }
        println!("skipped, no XFS can be made and mounted here");
        None
    }

    pub(crate) fn remount(&self, options: &str) {
        let done = Command::new("mount").arg("-o").arg(format!("remount,{options}")).arg(&self.0).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a server that was just killed may still be on its way out.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
