//! A server of its own for each test, and the program run against it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_sealift");

/// A command without anything of the environment that would change what it does.
pub(crate) fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"SEALIFT_")) {
        command.env_remove(name);
    }
    // Nothing that a test does is remembered at home.
    command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    // Nobody's own configuration.
    command.env("XDG_CONFIG_HOME", "/nonexistent").env_remove("NO_COLOR");
    command
}

/// Certificates, made once for all tests of the process: `all` for servers, `client` for clients.
fn certificates() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let made = program().args(["certs", "--dir", "all"]).current_dir(&folder).output().unwrap();
            assert!(made.status.success(), "{}", text(&made));
            let export = ["certs", "--dir", "all", "--export", "client", "--to", "client"];
            let made = program().args(export).current_dir(&folder).output().unwrap();
            assert!(made.status.success(), "{}", text(&made));
            folder
        })
        .path()
}

/// What a client machine has.
pub(crate) fn client_certificates() -> PathBuf {
    certificates().join("client")
}

/// What a server has.
pub(crate) fn server_certificates() -> PathBuf {
    certificates().join("all")
}

/// A running server with a root of its own, and a folder for the client beside it.
pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) address: String,
    child: Child,
    arguments: Vec<String>,
}

impl Server {
    /// Starts a server with these flags beside its root and certificates.
    #[track_caller]
    pub(crate) fn start(arguments: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let (child, address) = start(folder.path(), "127.0.0.1:0", &arguments);
        Server { folder, address, child, arguments }
    }

    /// Ends the server without warning, and starts it again on the same port.
    #[track_caller]
    pub(crate) fn crash_and_restart(&mut self) {
        self.kill();
        let (child, address) = start(self.folder.path(), &self.address, &self.arguments);
        (self.child, self.address) = (child, address);
    }

    /// Ends the server without warning.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What is served.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// A path on the client's side.
    pub(crate) fn local(&self, name: &str) -> PathBuf {
        self.folder.path().join("local").join(name)
    }

    /// The name of something on this server.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("sealift://{}/{path}", self.address)
    }

    /// The client with these arguments; `@` at the start of one stands for the server.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = program();
        command.env("SEALIFT_CERTS", client_certificates()).current_dir(self.folder.path().join("local"));
        for argument in arguments {
            match argument.as_ref().as_bytes().strip_prefix(b"@") {
                Some(path) => {
                    let mut url = self.url("").into_bytes();
                    url.extend_from_slice(path);
                    command.arg(OsStr::from_bytes(&url));
                }
                None => {
                    command.arg(argument);
                }
            }
        }
        command
    }

    /// Runs the client, which ends with this exit code. Returns standard output and standard error.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: &[S], exit: i32) -> (String, String) {
        self.run_with(arguments, b"", exit)
    }

    /// As [`Server::run`], with standard input.
    #[track_caller]
    pub(crate) fn run_with<S: AsRef<OsStr>>(&self, arguments: &[S], input: &[u8], exit: i32) -> (String, String) {
        let output = output_of(self.command(arguments), input);
        let shown: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect();
        assert_eq!(output.status.code(), Some(exit), "{shown:?}: {}", text(&output));
        (lossy(&output.stdout), lossy(&output.stderr))
    }

    /// Runs the client with `--json` and returns its summary.
    #[track_caller]
    pub(crate) fn summary<S: AsRef<OsStr>>(&self, arguments: &[S], exit: i32) -> serde_json::Value {
        let mut command = self.command(arguments);
        command.arg("--json");
        let output = output_of(command, b"");
        assert_eq!(output.status.code(), Some(exit), "{}", text(&output));
        let last = lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
        let summary: serde_json::Value = serde_json::from_str(&last).unwrap_or_else(|error| panic!("{error}: {last}"));
        assert_eq!(summary["type"], "summary");
        assert_eq!(summary["exit"], exit);
        summary
    }

    /// Names below the root that no client stored: nothing but the state directory with empty staging.
    #[track_caller]
    pub(crate) fn assert_no_leftovers(&self) {
        for (name, _) in tree(&self.root()) {
            let name = String::from_utf8_lossy(&name).into_owned();
            let is_state = [
                "",
                ".sealift",
                ".sealift/lock",
                ".sealift/receipt-key.pem",
                ".sealift/staging",
                ".sealift/partial",
                ".sealift/trees",
            ]
            .contains(&name.as_str());
            assert!(is_state || !name.contains(".sealift"), "left over: {name}");
        }
        for (name, _) in tree(&self.folder.path().join("local")) {
            assert!(!String::from_utf8_lossy(&name).contains(".sealift-"), "left over here");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[track_caller]
fn start(folder: &Path, listen: &str, arguments: &[String]) -> (Child, String) {
    fs::create_dir_all(folder.join("local")).unwrap();
    let mut child = program()
        .args(["serve", "--quiet", "--root"])
        .arg(folder.join("root"))
        .args(["--listen", listen, "--certs"])
        .arg(server_certificates())
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::from(fs::File::create(folder.join("log")).unwrap()))
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
    let address = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("it says {line:?}: {}", log()));
    (child, address.trim().to_owned())
}

/// Runs a command to its end with this standard input.
pub(crate) fn output_of(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // One that does not read to the end closes the pipe.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output, then standard error.
pub(crate) fn text(output: &Output) -> String {
    lossy(&output.stdout) + &lossy(&output.stderr)
}

/// Bytes that no two seeds share, and that do not repeat.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// One name of a tree, as far as a transfer keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: char,
    pub(crate) mode: u32,
    /// Nanoseconds since 1970; 0 for links, whose times not every file system keeps.
    pub(crate) mtime: i128,
    pub(crate) content: Vec<u8>,
}

/// A tree by the names of what is in it, the top as the empty name.
pub(crate) fn tree(top: &Path) -> BTreeMap<Vec<u8>, Node> {
    fn walk(top: &Path, path: &Path, found: &mut BTreeMap<Vec<u8>, Node>) {
        let metadata = path.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
        let mtime = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        let mode = metadata.permissions().mode() & 0o7777;
        let node = if kind.is_symlink() {
            let target = fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec();
            Node { kind: 'l', mode: 0, mtime: 0, content: target }
        } else if kind.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                walk(top, &entry.unwrap().path(), found);
            }
            Node { kind: 'd', mode, mtime, content: Vec::new() }
        } else if kind.is_file() {
            Node { kind: 'f', mode, mtime, content: fs::read(path).unwrap() }
        } else {
            Node { kind: '?', mode, mtime, content: Vec::new() }
        };
        found.insert(name, node);
    }
    let mut found = BTreeMap::new();
    walk(top, top, &mut found);
    found
}

/// Compares two trees and says which name differs, and how.
#[track_caller]
pub(crate) fn assert_same_tree(got: &BTreeMap<Vec<u8>, Node>, expected: &BTreeMap<Vec<u8>, Node>) {
    let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    for (name, node) in expected {
        let there = got.get(name).unwrap_or_else(|| panic!("{} is missing", shown(name)));
        let facts = |node: &Node| (node.kind, format!("{:o}", node.mode), node.mtime, node.content.len());
        assert_eq!(facts(there), facts(node), "{}", shown(name));
        assert!(there.content == node.content, "the content of {} differs", shown(name));
    }
    for name in got.keys() {
        assert!(expected.contains_key(name), "{} is too much", shown(name));
    }
}
