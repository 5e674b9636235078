//! A server that lies, and a place with sentinels around what a client may touch.
//!
//! It speaks TLS with the certificates of a good server, and frames as a good one does; of every request a test says
//! what answers it, and what the test says nothing of is answered as a server would that keeps what the test listed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use sealift::ErrorKind;
use sealift::hash::Root;
use sealift::protocol::*;
use sealift::tls;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::kit::{client_certificates, program, server_certificates};

/// How long any command may take here.
pub(super) const SOON: Duration = Duration::from_secs(60);

/// What a server says next.
pub(super) enum Say {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What comes of this, again and again, until the client goes.
    Endless(Box<dyn FnMut() -> Vec<u8> + Send>),
    /// One byte, and then nothing more for this long, over and over.
    Trickle(Vec<u8>, Duration),
    /// Nothing more, without an end.
    Hang,
    /// The end, with TLS's word for it.
    Close,
    /// The end of TCP, without.
    Cut,
}

/// A frame of one message.
pub(super) fn say<M: Message>(transfer: u32, message: &M) -> Say {
    Say::Bytes(message.to_frame(transfer))
}

/// A frame with content.
pub(super) fn content(transfer: u32, offset: u64, bytes: &[u8]) -> Say {
    let header = Header::new(Kind::Data, transfer, OFFSET_LEN + bytes.len());
    Say::Bytes([&header.encode()[..], &offset.to_be_bytes(), bytes].concat())
}

/// A request as it came.
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) transfer: u32,
    pub(super) payload: Vec<u8>,
}

impl Request {
    /// The message, when it is of this kind.
    pub(super) fn is<M: Message>(&self) -> Option<M> {
        (self.kind == M::KIND).then(|| M::from_payload(&self.payload).expect("a client keeps to the protocol"))
    }
}

/// What answers a request; none: as a good server would.
pub(super) type Script = dyn Fn(&Request) -> Option<Vec<Say>> + Send + Sync;

/// What a server says that it has: listings by the names of directories, contents by the names of files.
#[derive(Clone, Default)]
pub(super) struct Tree {
    listings: BTreeMap<Vec<u8>, Vec<Entry>>,
    contents: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a file holds of which nothing else is said.
pub(super) const EVIL: &[u8] = b"written by the server";

impl Tree {
    /// With a directory of this name, of these entries.
    pub(super) fn with(mut self, directory: &str, entries: impl IntoIterator<Item = Entry>) -> Tree {
        self.listings.insert(directory.as_bytes().to_vec(), entries.into_iter().collect());
        self
    }

    /// With this content of a file.
    pub(super) fn holding(mut self, name: &str, content: &[u8]) -> Tree {
        self.contents.insert(name.as_bytes().to_vec(), content.to_vec());
        self
    }

    fn entry(&self, path: &[u8]) -> Entry {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let parent = path.get(..path.len().saturating_sub(name.len() + 1)).unwrap_or_default();
        let listed = self.listings.get(parent).and_then(|entries| entries.iter().find(|entry| entry.name == name));
        if path.is_empty() || (listed.is_none() && self.listings.contains_key(path)) {
            return directory(name);
        }
        listed.cloned().unwrap_or_else(|| file(name))
    }

    fn content(&self, path: &[u8]) -> &[u8] {
        self.contents.get(path).map_or(EVIL, Vec::as_slice)
    }
}

pub(super) fn file(name: impl AsRef<[u8]>) -> Entry {
    let mtime = Mtime { seconds: 1_700_000_000, nanos: 0 };
    let name = name.as_ref().to_vec();
    Entry {
        name,
        kind: EntryKind::File,
        size: EVIL.len() as u64,
        mtime,
        mode: 0o644,
        target: None,
        same: None,
        xattrs_digest: None,
        xattrs: None,
    }
}

pub(super) fn directory(name: impl AsRef<[u8]>) -> Entry {
    Entry { kind: EntryKind::Directory, size: 0, mode: 0o755, ..file(name) }
}

pub(super) fn link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry { kind: EntryKind::Link, size: 0, mode: 0o777, target: Some(target.as_ref().to_vec()), ..file(name) }
}

pub(super) fn hello() -> ServerHello {
    ServerHello {
        version: 1,
        zeros: None,
        finish_ahead: None,
        agent: "evil".into(),
        principal: Some("client".into()),
        rights: Rights::ALL.0,
        token: None,
        unasked_max: 4 << 20,
        open_max: 1024,
        idle_seconds: 300,
        now: 1_700_000_000,
        file_mode: None,
        directory_mode: None,
        receipt_key: None,
        trees: None,
        invites: None,
        xattrs: None,
    }
}

/// A server that lies.
pub(super) struct Evil {
    pub(super) address: String,
    requests: Arc<Mutex<Vec<Kind>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Evil {
    /// A server that has this tree, and answers by this script what that answers.
    pub(super) fn start(tree: Tree, script: impl Fn(&Request) -> Option<Vec<Say>> + Send + Sync + 'static) -> Evil {
        Evil::start_with(hello(), tree, script)
    }

    /// The same with another hello.
    pub(super) fn start_with(
        hello: ServerHello,
        tree: Tree,
        script: impl Fn(&Request) -> Option<Vec<Say>> + Send + Sync + 'static,
    ) -> Evil {
        let options = tls::ServerOptions::in_folder(&server_certificates());
        let acceptor = TlsAcceptor::from(tls::ServerTls::load(&options).unwrap().config());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let noted = Arc::clone(&requests);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let (script, tree): (Arc<Script>, _) = (Arc::new(script), Arc::new(tree));
                let accept = async {
                    let mut connections = JoinSet::new();
                    loop {
                        let (tcp, _) = listener.accept().await.unwrap();
                        tcp.set_nodelay(true).unwrap();
                        let (acceptor, tree, script) = (acceptor.clone(), Arc::clone(&tree), Arc::clone(&script));
                        let (hello, noted) = (hello.clone(), Arc::clone(&noted));
                        connections.spawn(async move {
                            // A client that goes in the middle is no matter.
                            if let Ok(stream) = acceptor.accept(tcp).await {
                                let _ = converse(stream, &hello, &tree, &*script, &noted).await;
                            }
                        });
                    }
                };
                tokio::select! { () = accept => {}, _ = stopped => {} }
            });
        });
        let address = address.recv().unwrap().to_string();
        Evil { address, requests, stop: Some(stop), thread: Some(thread) }
    }

    /// A server that has this tree, and lies in nothing else.
    pub(super) fn with(tree: Tree) -> Evil {
        Evil::start(tree, |_| None)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("sealift://{}/{path}", self.address)
    }

    /// How many requests of this kind came.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.requests.lock().unwrap().iter().filter(|seen| **seen == kind).count()
    }

    /// How many frames came.
    pub(super) fn total(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl Drop for Evil {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn converse(
    mut stream: TlsStream<TcpStream>,
    hello: &ServerHello,
    tree: &Tree,
    script: &Script,
    noted: &Mutex<Vec<Kind>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let mut good = Good { hello, tree, open: HashMap::new(), put: HashMap::new() };
    loop {
        let mut more = vec![0; 64 * 1024];
        let count = stream.read(&mut more).await?;
        if count == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(&more[..count]);
        while let Some(header) = buffer.first_chunk::<FRAME_HEADER_LEN>() {
            let header = Header::decode(header).expect("a client keeps to the protocol");
            let end = FRAME_HEADER_LEN + header.len as usize;
            if buffer.len() < end {
                break;
            }
            let payload = buffer[FRAME_HEADER_LEN..end].to_vec();
            buffer.drain(..end);
            let Some(kind) = header.kind else { continue };
            noted.lock().unwrap().push(kind);
            let request = Request { kind, transfer: header.transfer, payload };
            for said in script(&request).unwrap_or_else(|| good.answer(&request)) {
                match said {
                    Say::Bytes(bytes) => stream.write_all(&bytes).await?,
                    Say::Endless(mut next) => loop {
                        stream.write_all(&next()).await?;
                    },
                    Say::Trickle(bytes, gap) => {
                        for byte in bytes {
                            stream.write_all(&[byte]).await?;
                            stream.flush().await?;
                            tokio::time::sleep(gap).await;
                        }
                    }
                    Say::Hang => {
                        stream.flush().await?;
                        std::future::pending::<()>().await;
                    }
                    Say::Close => return stream.shutdown().await,
                    Say::Cut => {
                        stream.flush().await?;
                        return stream.get_mut().0.shutdown().await;
                    }
                }
            }
            stream.flush().await?;
        }
    }
}

/// What a good server would say.
struct Good<'a> {
    hello: &'a ServerHello,
    tree: &'a Tree,
    /// Downloads that are open.
    open: HashMap<u32, Vec<u8>>,
    /// Uploads that come.
    put: HashMap<u32, Vec<u8>>,
}

impl Good<'_> {
    fn answer(&mut self, request: &Request) -> Vec<Say> {
        let transfer = request.transfer;
        let done = Done { count: 0, ..Done::default() };
        match request.kind {
            Kind::ClientHello => vec![say(0, self.hello)],
            Kind::Stat => vec![say(transfer, &self.tree.entry(&request.is::<Stat>().unwrap().path.to_bytes()))],
            Kind::List => {
                let path = request.is::<ListDirectory>().unwrap().path.to_bytes();
                let entries = self.tree.listings.get(&path).cloned().unwrap_or_default();
                let pages = entries.chunks(200).map(|page| say(transfer, &Entries { entries: List(page.to_vec()) }));
                let end = Done { count: entries.len() as u64, ..done };
                pages.chain([say(transfer, &end)]).collect()
            }
            Kind::Hash
                if self.tree.entry(&request.is::<Hash>().unwrap().path.to_bytes()).kind == EntryKind::Directory =>
            {
                vec![failed(transfer, ErrorKind::IsDirectory, "a directory")]
            }
            Kind::Hash => {
                let content = self.tree.content(&request.is::<Hash>().unwrap().path.to_bytes()).to_vec();
                let end = Done { root: Some(Root::of(&content)), size: Some(content.len() as u64), ..done };
                vec![say(transfer, &end)]
            }
            Kind::Get => {
                let get = request.is::<Get>().unwrap();
                let path = get.path.to_bytes();
                let (bytes, entry) = (self.tree.content(&path).to_vec(), self.tree.entry(&path));
                let unasked = bytes.len() as u64 <= get.unasked_max;
                let answer = get_answer(&entry, bytes.len() as u64, unasked);
                let mut said = vec![say(transfer, &answer)];
                if unasked {
                    if !bytes.is_empty() {
                        said.push(content(transfer, 0, &bytes));
                    }
                    said.push(say(transfer, &finish(&bytes)));
                } else {
                    self.open.insert(transfer, bytes);
                }
                said
            }
            Kind::Want => {
                let Some(bytes) = self.open.get(&transfer) else { return Vec::new() };
                let ranges = request.is::<Want>().unwrap().ranges.0.into_iter();
                ranges
                    .flat_map(|(offset, len)| (offset..offset + len).step_by(DATA).map(move |at| (at, offset + len)))
                    .map(|(at, end)| content(transfer, at, &bytes[at as usize..end.min(at + DATA as u64) as usize]))
                    .collect()
            }
            Kind::Close => {
                self.open.remove(&transfer).map(|bytes| say(transfer, &finish(&bytes))).into_iter().collect()
            }
            Kind::Put => {
                let put = request.is::<Put>().unwrap();
                self.put.insert(transfer, Vec::new());
                let answer = PutAnswer {
                    holding: Holding::Fresh,
                    generation: 1,
                    held_size: 0,
                    compare_only: false,
                    ranges: List(Vec::new()),
                };
                if put.unasked { Vec::new() } else { vec![say(transfer, &answer)] }
            }
            Kind::Data => {
                if let Some(put) = self.put.get_mut(&transfer) {
                    put.extend_from_slice(&request.payload[OFFSET_LEN..]);
                }
                Vec::new()
            }
            Kind::Finish => {
                let Some(bytes) = self.put.remove(&transfer) else { return Vec::new() };
                vec![say(transfer, &stored(&bytes))]
            }
            Kind::MakeLink => {
                vec![say(
                    transfer,
                    &Stored { outcome: Outcome::Stored, root: None, size: 0, path: None, xattrs_lost: None },
                )]
            }
            Kind::MakeDirectory | Kind::SetDirectory | Kind::Remove | Kind::Rename => {
                vec![say(transfer, &Done { count: 1, ..done })]
            }
            Kind::Space => vec![say(transfer, &Volume { free: 1 << 40, total: 1 << 41 })],
            _ => Vec::new(),
        }
    }
}

const DATA: usize = 256 << 10;

pub(super) fn get_answer(entry: &Entry, size: u64, unasked: bool) -> GetAnswer {
    GetAnswer {
        size,
        mtime: entry.mtime,
        mode: entry.mode,
        unasked,
        root: None,
        version: vec![1],
        zeros: None,
        first: None,
        xattrs: None,
    }
}

pub(super) fn finish(content: &[u8]) -> Finish {
    Finish { size: content.len() as u64, root: Root::of(content) }
}

pub(super) fn stored(content: &[u8]) -> Stored {
    Stored {
        outcome: Outcome::Stored,
        root: Some(Root::of(content)),
        size: content.len() as u64,
        path: None,
        xattrs_lost: None,
    }
}

/// The failure of one request.
pub(super) fn failed(transfer: u32, kind: ErrorKind, text: &str) -> Say {
    say(transfer, &Failed { code: kind.code(), text: text.to_owned(), retry: None })
}

/// A directory for a client, with sentinels around what it may touch.
pub(super) struct Place {
    folder: TempDir,
    before: BTreeMap<PathBuf, Sentinel>,
    opened: std::os::fd::OwnedFd,
}

/// What must not change of anything that is not the target.
#[derive(Debug, PartialEq, Eq)]
struct Sentinel {
    content: Option<Vec<u8>>,
    points_to: Option<PathBuf>,
    facts: [u64; 5],
    mtime: (i64, i64),
    attributes: Vec<u8>,
}

impl Place {
    /// A place whose target directory is empty.
    pub(super) fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for directory in ["local/target", "local/outside/deep", "outside/deep", "state"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for beside in ["outside", "local/outside"] {
            for name in ["file", "deep/file"] {
                fs::write(at(beside).join(name), b"not yours").unwrap();
                // Where the file system keeps them.
                let flags = rustix::fs::XattrFlags::empty();
                let _ = rustix::fs::setxattr(at(beside).join(name), "user.sentinel", b"kept", flags);
            }
            fs::set_permissions(at(beside).join("file"), fs::Permissions::from_mode(0o640)).unwrap();
            symlink("file", at(beside).join("link")).unwrap();
            symlink("deep", at(beside).join("link-to-directory")).unwrap();
        }
        fs::write(at("source"), vec![7; 3 << 20]).unwrap();
        let mut place =
            Place { before: BTreeMap::new(), opened: inotify::init(inotify::CreateFlags::NONBLOCK).unwrap(), folder };
        place.before = place.look_around();
        // From here on whoever opens a sentinel is noticed, the test itself too.
        for beside in ["outside", "outside/deep", "local/outside", "local/outside/deep"] {
            let seen = inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS | inotify::WatchFlags::MODIFY;
            inotify::add_watch(&place.opened, place.at(beside), seen).unwrap();
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the client may fill.
    pub(super) fn target(&self) -> PathBuf {
        self.at("local/target")
    }

    /// A file of 3 MiB that may be sent.
    pub(super) fn source(&self) -> String {
        self.at("source").to_str().unwrap().to_owned()
    }

    /// A client with these arguments, in the directory above the target.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.env("SEALIFT_CERTS", client_certificates()).env("XDG_STATE_HOME", self.at("state"));
        command.current_dir(self.at("local")).args(arguments);
        command
    }

    /// Starts a client.
    pub(super) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a client to its end, which must come soon. Returns exit code, standard output, standard error.
    #[track_caller]
    pub(super) fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut child = self.start(arguments);
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = |mut from: Box<dyn std::io::Read + Send>| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                from.read_to_end(&mut text).unwrap();
                text
            })
        };
        let (stdout, stderr) = (read(Box::new(stdout)), read(Box::new(stderr)));
        let code = end_of(&mut child, SOON).unwrap_or_else(|| panic!("{arguments:?} does not end"));
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        assert_harmless(&stderr, &format!("{arguments:?}"));
        // To a pipe `hash` prints what `b3sum` prints, for `b3sum --check`.
        let is_for_programs = arguments[0] == "hash" && !arguments.contains(&"--json");
        if !is_for_programs {
            assert_harmless(&stdout, &format!("{arguments:?}"));
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (stdout, stderr) = (text(stdout), text(stderr));
        if arguments.contains(&"--json") {
            for line in stdout.lines() {
                let parsed = serde_json::from_str::<serde_json::Value>(line);
                assert!(parsed.is_ok(), "{arguments:?}: no JSON: {line}");
            }
        }
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        (code, stdout, stderr)
    }

    /// Nothing but the target changed, and nothing beside it was opened.
    #[track_caller]
    pub(super) fn check(&self, what: &str) {
        let mut space = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.opened, &mut space);
        match events.next() {
            Err(rustix::io::Errno::AGAIN) => {}
            Ok(event) => panic!("{what}: {:?} of {:?} beside the target", event.events(), event.file_name()),
            Err(error) => panic!("{what}: {error}"),
        }
        let now = self.look_around();
        for (path, sentinel) in &now {
            assert_eq!(self.before.get(path), Some(sentinel), "{what}: {}", path.display());
        }
        assert_eq!(now.len(), self.before.len(), "{what}: something is gone");
        // Looking around opened them; what it noted is thrown away.
        let mut events = inotify::Reader::new(&self.opened, &mut space);
        while events.next().is_ok() {}
    }

    /// Names below the target, with `/` behind directories and `@` behind links.
    pub(super) fn found(&self) -> Vec<String> {
        fn walk(top: &Path, directory: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let kind = path.symlink_metadata().unwrap().file_type();
                let mark = if kind.is_dir() {
                    "/"
                } else if kind.is_symlink() {
                    "@"
                } else {
                    ""
                };
                let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes();
                found.push(format!("{}{mark}", String::from_utf8_lossy(name)));
                if kind.is_dir() {
                    walk(top, &path, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.target(), &self.target(), &mut found);
        found.sort();
        found
    }

    fn look_around(&self) -> BTreeMap<PathBuf, Sentinel> {
        let mut found = BTreeMap::new();
        let mut directories = vec![self.folder.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                if path == self.target() || path == self.at("state") {
                    continue;
                }
                let status = fs::symlink_metadata(&path).unwrap();
                if status.is_dir() {
                    directories.push(path.clone());
                }
                let mut attributes = vec![0; 4096];
                let len = rustix::fs::lgetxattr(&path, "user.sentinel", &mut attributes).unwrap_or(0);
                attributes.truncate(len);
                // The directory that the target is in changes when the target is replaced.
                let is_above = path == self.at("local");
                let sentinel = Sentinel {
                    content: status.is_file().then(|| fs::read(&path).unwrap()),
                    points_to: fs::read_link(&path).ok(),
                    facts: [
                        status.ino(),
                        u64::from(status.mode()),
                        u64::from(status.uid()),
                        status.nlink(),
                        status.size(),
                    ],
                    mtime: if is_above { (0, 0) } else { (status.mtime(), status.mtime_nsec()) },
                    attributes,
                };
                found.insert(path, sentinel);
            }
        }
        found
    }
}

/// Waits for the end of a command; none when it does not come in time, and the command is ended then.
pub(super) fn end_of(child: &mut Child, within: Duration) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code().unwrap_or(-1));
        }
        if begun.elapsed() > within {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nothing but lines of visible text.
#[track_caller]
pub(super) fn assert_harmless(bytes: &[u8], what: &str) {
    let text = std::str::from_utf8(bytes).unwrap_or_else(|_| panic!("{what}: not text: {bytes:?}"));
    let bad = text.chars().find(|&c| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}'..='\u{200f}' | '\u{2028}' | '\u{2029}')
    });
    assert_eq!(bad, None, "{what}: {text:?}");
}
