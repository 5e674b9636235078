//! What the end-to-end tests have in common: certificates, a server of the real binary on a free port, clients of
//! the real binary, content that can be made again, and looking at what is there.
//!
//! Everything lies in a folder of the test's own and ends with it; only processes that a test started are killed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything that should happen may take before a test says that it did not. Generous: machines are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Sizes around every boundary: chunk, small file, group, several groups.
pub(crate) const SIZES: [usize; 10] =
    [0, 1, 1023, 1025, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 4097];

/// A folder with certificates, a root to serve and room for what a test makes.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> World {
        let world = World { folder: tempfile::Builder::new().prefix("sealift-test-").tempdir().unwrap() };
        world.certs(&[]);
        world.certs(&["--export", "client", "--to", world.text("client")]);
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

    fn text(&self, name: &str) -> &'static str {
        // A few bytes for each test: flags are easier to write as text.
        self.path(name).to_str().expect("temporary folders have plain names").to_owned().leak()
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

    /// The same by another command (a tracer, a limit), on this port; 0 is a free one.
    #[track_caller]
    pub(crate) fn serve_by(&self, mut command: Command, port: u16) -> Server {
        command.arg("serve").arg("--root").arg(self.root()).arg("--certs").arg(self.path("certs"));
        command.arg("--listen").arg(format!("127.0.0.1:{port}"));
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
    command.stdin(Stdio::null());
    command
}

/// A server that runs. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    certs: PathBuf,
    log: mpsc::Receiver<String>,
    said: Vec<String>,
}

impl Server {
    #[track_caller]
    fn start(mut command: Command, certs: PathBuf) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (line_sender, log) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        // Ends with the server's standard error.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if line_sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let Some(port) = first.trim().rsplit(':').next().and_then(|port| port.parse().ok()) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not start: {first:?} {:?}", log.iter().collect::<Vec<_>>());
        };
        Server { child, port, certs, log, said: Vec::new() }
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
    pub(crate) fn said(&mut self) -> &[String] {
        self.said.extend(self.log.try_iter());
        &self.said
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
        items.chain(whole).collect::<Vec<_>>().join("\n")
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

/// A file whose bytes go on being written while others read it.
pub(crate) fn open_log(path: &Path) -> File {
    File::create(path).unwrap()
}
