//! A server with canaries around it, and a client that sends whatever it is told to.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sealift::ErrorKind;
use sealift::access::{Access, Principal};
use sealift::hash::Root;
use sealift::path::RemotePath;
use sealift::protocol::*;
use sealift::server::{Control, CrowdLimits, InviteOptions, Server, ServerOptions, listen};
use sealift::storage::{Store, StoreOptions};
use sealift::tls::{self, ClientOptions, ClientTls, ServerTls, folder};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// How long anything may take that the server answers at once.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// Panics of any thread of this process.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
}

/// A server, its certificates, and what lies around its root.
pub(super) struct World {
    folder: TempDir,
    store: Store,
    pub(super) address: std::net::SocketAddr,
    drain: CancellationToken,
    stop: CancellationToken,
    running: JoinSet<()>,
    /// Changes the rules of the server that runs.
    pub(super) control: Control,
    canaries: BTreeMap<PathBuf, Canary>,
    descriptors: usize,
    panics: usize,
}

/// What must not change of a file outside the root.
#[derive(Debug, PartialEq, Eq)]
struct Canary {
    content: Option<Vec<u8>>,
    target: Option<PathBuf>,
    facts: [u64; 4],
    mtime: (i64, i64),
}

impl World {
    /// A server that gives every right to who shows its certificate, and the default ones to others.
    pub(super) async fn new() -> World {
        World::with_rights(Rights::ALL, Some(Access::ANONYMOUS_DEFAULT)).await
    }

    pub(super) async fn with_rights(certified: Rights, anonymous: Option<Rights>) -> World {
        World::with(certified, anonymous, 64 << 20, CrowdLimits::default()).await
    }

    /// A server with so much memory for content, and such bounds for those who connect.
    pub(super) async fn with_limits(memory: usize, crowd: CrowdLimits) -> World {
        World::with(Rights::ALL, Some(Access::ANONYMOUS_DEFAULT), memory, crowd).await
    }

    async fn with(certified: Rights, anonymous: Option<Rights>, memory: usize, crowd: CrowdLimits) -> World {
        let access = Access::same_for_all(certified, anonymous);
        let mut world = World::with_all(access, &[], memory, crowd).await;
        // The first client makes what is made once.
        world.good().await.stat("").await.unwrap();
        world.settle().await;
        world.descriptors = descriptors();
        world
    }

    /// A server with these rules, and certificates for these clients besides `client`.
    pub(super) async fn with_access(access: Access, clients: &[&str]) -> World {
        World::with_all(access, clients, 64 << 20, CrowdLimits::default()).await
    }

    async fn with_all(access: Access, clients: &[&str], memory: usize, crowd: CrowdLimits) -> World {
        World::with_all_and(access, clients, memory, crowd, None).await
    }

    /// As [`World::with_access`], where invites are given and taken.
    pub(super) async fn with_invites(access: Access, clients: &[&str]) -> World {
        let invites = Some(InviteOptions::default());
        World::with_all_and(access, clients, 64 << 20, CrowdLimits::default(), invites).await
    }

    async fn with_all_and(
        access: Access,
        clients: &[&str],
        memory: usize,
        crowd: CrowdLimits,
        invites: Option<InviteOptions>,
    ) -> World {
        count_panics();
        let folder = tempfile::tempdir().unwrap();
        let clients = clients.iter().map(|name| name.parse().unwrap()).collect();
        let request = folder::Request { directory: folder.path().join("certs"), clients, ..folder::Request::default() };
        folder::make(&request, OffsetDateTime::now_utc()).unwrap();
        let root = folder.path().join("root");
        for beside in ["root-old", "canaries/deep"] {
            fs::create_dir_all(folder.path().join(beside)).unwrap();
            fs::write(folder.path().join(beside).join("file"), b"not yours").unwrap();
        }
        std::os::unix::fs::symlink("canaries/deep/file", folder.path().join("link")).unwrap();
        let options = StoreOptions { invites: invites.is_some(), ..StoreOptions::default() };
        let store = Store::open_served(&root, options).unwrap();
        let started = start(&folder, store.clone(), access, memory, crowd, invites);
        let Started { address, drain, stop, running, control } = started;
        let mut world = World {
            canaries: BTreeMap::new(),
            folder,
            store,
            address,
            drain,
            stop,
            running,
            control,
            descriptors: 0,
            panics: PANICS.load(Ordering::Relaxed),
        };
        world.canaries = world.look_around();
        world.descriptors = descriptors();
        world
    }

    /// Another server on the same store, with other rules; it ends with the world.
    pub(super) async fn serve_with(&mut self, certified: Rights, anonymous: Option<Rights>) {
        self.stop.cancel();
        let access = Access::same_for_all(certified, anonymous);
        let started = start(&self.folder, self.store.clone(), access, 64 << 20, CrowdLimits::default(), None);
        let Started { address, drain, stop, running, control } = started;
        let mut before = std::mem::replace(&mut self.running, running);
        (self.address, self.drain, self.stop, self.control) = (address, drain, stop, control);
        timeout(SOON, before.join_next()).await.expect("a stopped server ends").unwrap().unwrap();
    }

    pub(super) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Has the running server follow other rules.
    pub(super) fn change(&self, access: Access) {
        self.control.replace(server_tls(&self.folder, &access, false), access).unwrap();
    }

    /// The client's half of TLS with the certificate of this name.
    pub(super) fn client_named(&self, name: &str) -> Arc<ClientConfig> {
        let folder = self.folder.path().join("certs");
        let mut options = ClientOptions::in_folder(&folder);
        options.certificate = Some(folder.join(format!("{name}.pem")));
        options.key = Some(folder.join(format!("{name}-key.pem")));
        ClientTls::load(&options).unwrap().config()
    }

    /// A greeted connection with the certificate of this name.
    pub(super) async fn greeted_as(&self, name: &str) -> Peer {
        self.connect_with(self.client_named(name)).await.unwrap().greet().await
    }

    pub(super) fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends the server, with or without patience. Returns how long that took.
    pub(super) async fn end(mut self, is_hard: bool) -> Duration {
        let begun = std::time::Instant::now();
        if is_hard {
            self.stop.cancel()
        } else {
            self.drain.cancel()
        }
        timeout(2 * SOON, self.running.join_next()).await.expect("a stopped server ends").unwrap().unwrap();
        begun.elapsed()
    }

    /// The client's half of TLS, with its certificate or without.
    pub(super) fn client(&self, certified: bool) -> Arc<ClientConfig> {
        let mut options = ClientOptions::in_folder(&self.folder.path().join("certs"));
        if !certified {
            (options.certificate, options.key) = (None, None);
        }
        ClientTls::load(&options).unwrap().config()
    }

    /// The same with another certificate of the same authority.
    pub(super) fn other_client(&mut self) -> Arc<ClientConfig> {
        let certs = self.folder.path().join("certs");
        let clients = vec!["other".parse::<tls::names::ClientName>().unwrap()];
        let request = folder::Request { directory: certs.clone(), clients, ..folder::Request::default() };
        folder::make(&request, OffsetDateTime::now_utc()).unwrap();
        self.canaries = self.look_around();
        let mut options = ClientOptions::in_folder(&certs);
        (options.certificate, options.key) = (Some(certs.join("other.pem")), Some(certs.join("other-key.pem")));
        ClientTls::load(&options).unwrap().config()
    }

    /// A TLS connection that has said nothing yet.
    pub(super) async fn connect(&self) -> Peer {
        self.connect_with(self.client(true)).await.unwrap()
    }

    pub(super) async fn connect_with(&self, config: Arc<ClientConfig>) -> std::io::Result<Peer> {
        Peer::connect(self.address, config).await
    }

    /// A connection that has been greeted.
    pub(super) async fn greeted(&self) -> Peer {
        self.connect().await.greet().await
    }

    /// A lane of this peer's session.
    pub(super) async fn lane_of(&self, first: &Peer) -> Peer {
        self.connect().await.join(first.token.unwrap()).await.unwrap()
    }

    pub(super) async fn anonymous(&self) -> Peer {
        self.connect_with(self.client(false)).await.unwrap().greet().await
    }

    /// A client that keeps to the rules.
    pub(super) async fn good(&self) -> Peer {
        self.greeted().await
    }

    /// The server serves, nobody panicked, and nothing outside the root or under a final name is other than this.
    pub(super) async fn check(&self, files: &[(&str, &[u8])]) {
        assert_eq!(PANICS.load(Ordering::Relaxed), self.panics, "a task panicked");
        assert_eq!(self.look_around(), self.canaries, "something outside the root changed");
        let mut found = BTreeMap::new();
        collect(&self.root(), &self.root(), &mut found);
        let expected: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        assert_eq!(found, expected, "the files in the root");
        self.check_alive().await;
    }

    /// The server serves, and what its peers cost has come back.
    pub(super) async fn check_alive(&self) {
        self.good().await.stat("").await.unwrap();
        self.settle().await;
        assert_eq!(PANICS.load(Ordering::Relaxed), self.panics, "a task panicked");
        let mut left = Vec::new();
        for _ in 0..500 {
            left = staging(&self.root());
            if left.is_empty() && (!is_alone() || descriptors() <= self.descriptors + 2) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("left behind: {left:?}, {} descriptors instead of {}", descriptors(), self.descriptors);
    }

    /// Lets blocking threads and ends of connections come to rest.
    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    fn look_around(&self) -> BTreeMap<PathBuf, Canary> {
        let mut found = BTreeMap::new();
        let mut directories = vec![self.folder.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let status = fs::symlink_metadata(&path).unwrap();
                if path == self.root() {
                    continue;
                }
                if status.is_dir() {
                    directories.push(path.clone());
                }
                let canary = Canary {
                    content: status.is_file().then(|| fs::read(&path).unwrap()),
                    target: fs::read_link(&path).ok(),
                    facts: [status.ino(), u64::from(status.mode()), u64::from(status.uid()), status.nlink()],
                    mtime: (status.mtime(), status.mtime_nsec()),
                };
                found.insert(path, canary);
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Started {
    address: std::net::SocketAddr,
    drain: CancellationToken,
    stop: CancellationToken,
    running: JoinSet<()>,
    control: Control,
}

fn server_tls(folder: &TempDir, access: &Access, with_invites: bool) -> ServerTls {
    let mut options = tls::ServerOptions::in_folder(&folder.path().join("certs"));
    options.allow_anonymous = with_invites || access.admit(&Principal::Anonymous).is_ok();
    ServerTls::load(&options).unwrap()
}

fn start(
    folder: &TempDir,
    store: Store,
    access: Access,
    memory: usize,
    crowd: CrowdLimits,
    invites: Option<InviteOptions>,
) -> Started {
    let options = ServerOptions {
        store,
        tls: server_tls(folder, &access, invites.is_some()),
        access,
        listeners: vec![listen("127.0.0.1:0".parse().unwrap()).unwrap()],
        receipt_key: None,
        audit: None,
        invites,
        memory,
        crowd,
        // The clock of the test is that of the connections.
        threads: 0,
        disk_threads: 1,
        congestion: sealift::net::Congestion::default(),
        rate: None,
        rate_of_one: None,
    };
    let server = Server::new(options).unwrap();
    let address = server.addresses().unwrap()[0];
    let control = server.control();
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    let both = (drain.clone(), stop.clone());
    let mut running = JoinSet::new();
    running.spawn(async move {
        let (drain, stop) = both;
        // Stopping is draining without patience.
        let hurry = stop.clone();
        let run = server.run(drain.clone(), stop);
        tokio::pin!(run);
        tokio::select! {
            () = &mut run => {}
            () = hurry.cancelled() => {
                drain.cancel();
                run.await;
            }
        }
    });
    Started { address, drain, stop, running, control }
}

/// Runs a future as a test does.
pub(super) fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// Whether no other test runs in this process, so that its descriptors are this test's.
fn is_alone() -> bool {
    std::env::var_os("NEXTEST_EXECUTION_MODE").is_some_and(|mode| mode == "process-per-test")
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Regular files below a root and what is in them, state and staging left out.
fn collect(root: &Path, directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path == root.join(".sealift") {
            continue;
        }
        let status = fs::symlink_metadata(&path).unwrap();
        if status.is_dir() {
            collect(root, &path, found);
        } else if status.is_file() {
            found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
}

/// Staging files that are there.
fn staging(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    // What was cut is kept for its owner: each with a record.
    let kept = root.join(".sealift/partial");
    let names: Vec<PathBuf> = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    let is_content = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(".sealift-");
    if names.iter().filter(is_content).count() * 2 != names.len() {
        found.extend(names);
    }
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap_or_default().to_owned();
            if path.is_dir() && !path.is_symlink() {
                if path != kept {
                    directories.push(path);
                }
            } else if name.starts_with(".sealift-") {
                found.push(path);
            }
        }
    }
    found
}

/// How a connection was ended by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With this reason.
    Goodbye(ErrorKind),
    /// With TLS's close_notify and no word.
    Closed,
    /// Otherwise.
    Broken,
}

/// The other end: a client that can say anything.
pub(super) struct Peer {
    pub(super) stream: tokio_rustls::client::TlsStream<TcpStream>,
    last: u32,
    buffer: Vec<u8>,
    /// The sentence of the latest failure.
    pub(super) said: String,
    /// What the server gave for others to join with.
    pub(super) token: Option<Bytes16>,
}

/// What an answer to a request is.
pub(super) type Answer = Result<(Kind, Vec<u8>), ErrorKind>;

impl Peer {
    /// A TLS connection to any server, which has said nothing yet.
    pub(super) async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> std::io::Result<Peer> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = timeout(SOON, TlsConnector::from(config).connect(name, tcp)).await.expect("a handshake")?;
        Ok(Peer { stream, last: 0, buffer: Vec::new(), said: String::new(), token: None })
    }

    pub(super) async fn greet(self) -> Peer {
        self.greet_with(hello()).await
    }

    /// Says this hello, which the server takes.
    pub(super) async fn greet_with(mut self, hello: ClientHello) -> Peer {
        self.send(0, &hello).await;
        let (kind, transfer, payload) = self.frame().await.expect("a hello");
        assert_eq!((kind, transfer), (Kind::ServerHello, 0));
        self.token = ServerHello::from_payload(&payload).unwrap().token;
        self
    }

    /// Shows a token instead of beginning a session.
    pub(super) async fn join(mut self, token: Bytes16) -> Result<Peer, End> {
        self.send(0, &ClientHello { join: Some(token), ..hello() }).await;
        match self.frame().await {
            Some((Kind::ServerHello, 0, payload)) => {
                assert_eq!(ServerHello::from_payload(&payload).unwrap().token, None, "a lane gives no token");
                Ok(self)
            }
            Some((Kind::Goodbye, _, payload)) => {
                Err(End::Goodbye(ErrorKind::from_code(Goodbye::from_payload(&payload).unwrap().code)))
            }
            other => panic!("not an answer to a hello: {other:?}"),
        }
    }

    /// The next number for a transfer.
    pub(super) fn number(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// Sends bytes; a server that is gone by now is no matter.
    pub(super) async fn bytes(&mut self, bytes: &[u8]) {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        let _ = timeout(SOON, sent).await.expect("the server reads");
    }

    pub(super) async fn send<M: Message>(&mut self, transfer: u32, message: &M) {
        self.bytes(&message.to_frame(transfer)).await;
    }

    pub(super) async fn data(&mut self, transfer: u32, offset: u64, content: &[u8]) {
        self.bytes(&data(transfer, offset, content)).await;
    }

    /// The next frame; none when the connection is over. `Working` is skipped.
    pub(super) async fn frame(&mut self) -> Option<(Kind, u32, Vec<u8>)> {
        timeout(SOON, self.frame_without_limit()).await.expect("the server says something")
    }

    pub(super) async fn frame_without_limit(&mut self) -> Option<(Kind, u32, Vec<u8>)> {
        loop {
            if let Some((header, rest)) = self.buffer.split_first_chunk::<FRAME_HEADER_LEN>() {
                let header = Header::decode(header).expect("a server keeps to the protocol");
                let len = header.len as usize;
                if rest.len() >= len {
                    let payload = rest[..len].to_vec();
                    self.buffer.drain(..FRAME_HEADER_LEN + len);
                    match header.kind {
                        None | Some(Kind::Working) => continue,
                        Some(kind) => return Some((kind, header.transfer, payload)),
                    }
                }
            }
            let mut more = vec![0; 16 * 1024];
            match self.stream.read(&mut more).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.buffer.extend_from_slice(&more[..count]),
            }
        }
    }

    /// Reads until the server ends the connection.
    pub(super) async fn end(&mut self) -> End {
        let mut reason = None;
        while let Some((kind, _, payload)) = self.frame().await {
            if kind == Kind::Goodbye {
                reason = Some(Goodbye::from_payload(&payload).unwrap());
            }
        }
        match reason {
            Some(goodbye) => End::Goodbye(ErrorKind::from_code(goodbye.code)),
            None => match self.stream.read(&mut [0; 1]).await {
                Ok(0) => End::Closed,
                _ => End::Broken,
            },
        }
    }

    /// The server ends the connection because of a breach.
    #[track_caller]
    pub(super) fn refused(&mut self, what: impl std::fmt::Display) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let end = self.end().await;
            assert_eq!(end, End::Goodbye(ErrorKind::Protocol), "{what} ({caller})");
        }
    }

    /// The answer to what was sent for this transfer; a `Goodbye` counts as failure.
    pub(super) async fn answer(&mut self, transfer: u32) -> Answer {
        loop {
            let (kind, other, payload) = self.frame().await.ok_or(ErrorKind::Connection)?;
            match kind {
                Kind::Goodbye => {
                    let goodbye = Goodbye::from_payload(&payload).unwrap();
                    self.said = goodbye.text;
                    return Err(ErrorKind::from_code(goodbye.code));
                }
                Kind::Failed if other == transfer => {
                    let failed = Failed::from_payload(&payload).unwrap();
                    self.said = failed.text;
                    return Err(ErrorKind::from_code(failed.code));
                }
                Kind::StoredBatch => {
                    let items = StoredBatch::from_payload(&payload).unwrap().items.0;
                    if let Some(item) = items.into_iter().find(|item| item.transfer == transfer) {
                        let frame = item.stored.to_frame(transfer);
                        return Ok((Kind::Stored, frame[FRAME_HEADER_LEN..].to_vec()));
                    }
                }
                _ if other == transfer => return Ok((kind, payload)),
                _ => {}
            }
        }
    }

    /// The next part of the answer to the latest request.
    pub(super) async fn more(&mut self) -> Answer {
        self.answer(self.last).await
    }

    /// Sends a request under a new number and waits for its first answer.
    pub(super) async fn ask<M: Message>(&mut self, message: &M) -> Answer {
        let transfer = self.number();
        self.send(transfer, message).await;
        self.answer(transfer).await
    }

    pub(super) async fn stat(&mut self, name: &str) -> Answer {
        self.ask(&Stat { path: path(name), xattrs: None }).await
    }

    /// Stores a small file in one go.
    pub(super) async fn store(&mut self, put: Put, content: &[u8]) -> Result<Stored, ErrorKind> {
        let transfer = self.number();
        let mut frames = put.to_frame(transfer);
        if !content.is_empty() {
            frames.extend_from_slice(&data(transfer, 0, content));
        }
        frames.extend_from_slice(&finish(content).to_frame(transfer));
        self.bytes(&frames).await;
        let (kind, payload) = self.answer(transfer).await?;
        assert_eq!(kind, Kind::Stored);
        Ok(Stored::from_payload(&payload).unwrap())
    }

    /// Begins an upload and waits until content may come.
    pub(super) async fn begin(&mut self, put: &Put) -> (u32, PutAnswer) {
        let transfer = self.number();
        self.send(transfer, put).await;
        let (kind, payload) = self.answer(transfer).await.unwrap();
        assert_eq!(kind, Kind::PutAnswer);
        (transfer, PutAnswer::from_payload(&payload).unwrap())
    }

    /// The end of a transfer: its first answer that is not values.
    pub(super) async fn outcome(&mut self, transfer: u32) -> Answer {
        loop {
            match self.answer(transfer).await {
                Ok((Kind::Values, _)) => {}
                answer => return answer,
            }
        }
    }

    /// Whether the connection still works.
    pub(super) async fn is_alive(&mut self) -> bool {
        self.stat("").await.is_ok()
    }
}

pub(super) fn hello() -> ClientHello {
    ClientHello {
        versions: List(vec![1]),
        agent: "hostile".into(),
        join: None,
        redeem: None,
        run: None,
        receipts: None,
    }
}

pub(super) fn path(name: &str) -> RemotePath {
    RemotePath::parse(name.as_bytes()).unwrap()
}

/// Asks for a file whose content will be asked for.
pub(super) fn get(name: &str) -> Get {
    Get { path: path(name), unasked_max: 0, finish_ahead: None, first_max: None, xattrs: None }
}

/// Describes a file whose content will be asked for.
pub(super) fn put(name: &str, size: u64) -> Put {
    let mut id = [0; 16];
    getrandom::fill(&mut id).unwrap();
    Put {
        path: path(name),
        size: Some(size),
        mtime: None,
        mode: None,
        upload_id: Bytes16(id),
        if_exists: IfExists::Overwrite,
        unasked: false,
        no_base: false,
        resume: None,
        same_as: None,
        same_root: None,
        xattrs: None,
    }
}

/// Describes a small file whose content follows.
pub(super) fn put_small(name: &str, content: &[u8]) -> Put {
    Put { unasked: true, ..put(name, content.len() as u64) }
}

/// What the finish of this content will say.
pub(super) fn ahead(content: &[u8]) -> FinishAhead {
    FinishAhead { size: content.len() as u64, root: Root::of(content) }
}

pub(super) fn finish(content: &[u8]) -> Finish {
    Finish { size: content.len() as u64, root: Root::of(content) }
}

pub(super) fn data(transfer: u32, offset: u64, content: &[u8]) -> Vec<u8> {
    let header = Header::new(Kind::Data, transfer, OFFSET_LEN + content.len());
    [&header.encode()[..], &offset.to_be_bytes(), content].concat()
}
