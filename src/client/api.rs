//! The client as a library: one server, a connection that is made again when it breaks, and plain requests.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::buffer::Pool;
use crate::client::ahead::{Expected, LANES_FROM};
use crate::client::asks::{Described, FirstAsks};
use crate::client::atomic::OpenTree;
use crate::client::connect::{Dialer, Greeted, jittered};
use crate::client::event::{Event, Events, ItemId};
use crate::client::invite::Redemption;
use crate::client::lanes::{Carrier, Place};
use crate::client::receipts::Receipts;
use crate::client::remote::Endpoint;
use crate::client::session::{Reply, Session};
use crate::client::stalls::{Cause, Stalls, Waited};
use crate::client::walk::SourceVersion;
use crate::client::workplace::{AnotherThread, another_thread};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;
use crate::limits::{CLIENT_PROGRESS_TIMEOUT, MIB, NEAR_ROUND_TRIP, RETRY_BACKOFF};
use crate::net::Congestion;
use crate::path::RemotePath;
use crate::protocol::{
    Bytes16, Done, Entry, Hash, IfExists, MakeDirectory, Message, Mtime, Remove, Rename, Rights, SetDirectory, Space,
    Stat, Volume,
};
use crate::tls::{ClientTls, VerifyingKey};
use crate::transfer::{Way, Width};

/// Bytes of content that a client holds at once, in groups: read ahead, on their way, or to be written.
const CLIENT_BUFFERS: usize = 48 * MIB;
/// Attempts at a file that changes every time it is read, or arrives as another one.
const CHANGED_MAX: u32 = 5;
/// How often the progress of an item is told at most.
const TELL_INTERVAL: Duration = Duration::from_millis(50);

/// How long the orderly end of a connection may take: everything is answered by then.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a client is made of.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The server.
    pub endpoint: Endpoint,
    /// Whom we believe and what we show.
    pub tls: ClientTls,
    /// The longest time without progress, reconnects included.
    pub timeout: Duration,
    /// Connections of one transfer; none: as many as make it fast.
    pub streams: Option<u16>,
    /// Where receipts for what is stored are kept; none: they are not asked for.
    pub receipts: Option<Arc<Receipts>>,
    /// What is asked of the system for each connection.
    pub congestion: Congestion,
    /// Bytes of content per second at most, over all connections; none: as many as there can be.
    pub rate: Option<u64>,
    /// Of a client without a certificate: what it keeps to itself, so that the server knows unfinished uploads again
    /// as its own. Each server is shown another number that is made of it.
    pub resume_secret: Option<Bytes16>,
    /// The invite that is redeemed. The client shows no certificate then, and knows the server by the link's pin.
    pub invite: Option<Redemption>,
    /// Bytes of the largest file that is to be moved as soon as there is a connection, as far as that is known. Over a
    /// long link, further connections for it are begun beside the first.
    pub expected: u64,
    /// What it will begin with, as far as that is known. Over a long link it leaves with the hello, and the request that
    /// is the same takes a round trip less; over an invite it does not. Where that is a download, a few further
    /// connections for it are begun beside the first, over a very long link.
    pub first: FirstAsks,
}

impl ClientOptions {
    /// The defaults for this server.
    #[must_use]
    pub fn new(endpoint: Endpoint, tls: ClientTls) -> ClientOptions {
        ClientOptions {
            endpoint,
            tls,
            timeout: CLIENT_PROGRESS_TIMEOUT,
            streams: None,
            congestion: Congestion::default(),
            rate: None,
            resume_secret: None,
            invite: None,
            expected: 0,
            first: FirstAsks::default(),
            receipts: None,
        }
    }
}

/// What a server says of itself and of its client, unchecked: escape it before it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its program and version.
    pub agent: String,
    /// The name by which it knows us.
    pub principal: Option<String>,
    /// What we may do there.
    pub rights: Rights,
    /// Seconds since 1970 by its clock, when the connection was made.
    pub now: i64,
}

/// One server, as its client sees it. Clones share the connection. When the last is dropped, the connection is cut, at
/// the latest when further connections that were being opened are; [`Client::close`] ends it in order.
///
/// Everything that fails in a way that may pass (a broken connection, a busy server) is tried again until nothing
/// has got further for [`ClientOptions::timeout`]; refusals never are.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// Where what this handle does is told.
    events: Events,
}

struct Inner {
    dialer: Dialer,
    receipts: Option<Arc<Receipts>>,
    timeout: Duration,
    streams: Option<u16>,
    resume_key: Option<Bytes16>,
    /// The upload that was described with the hello, if any was.
    described: Option<Described>,
    /// The server, as it was named.
    server: String,
    pool: Pool,
    link: tokio::sync::Mutex<Link>,
    /// The tasks that own connections; they end with the client.
    drivers: Mutex<JoinSet<()>>,
    progress: Mutex<Instant>,
    /// Why nothing more can be done at all.
    dead: Mutex<Option<Error>>,
    next_item: AtomicU64,
    stalls: Arc<Stalls>,
    /// What is being built on the server.
    tree: Mutex<Option<OpenTree>>,
    /// The next request needs another connection: this one sees what was not built to its end.
    leaves: AtomicBool,
    /// Makes connections in a simulation.
    #[cfg(test)]
    dial: Option<Dial>,
}

/// Makes a session, or does not.
#[cfg(test)]
pub(crate) type Dial = Box<dyn Fn(&Client) -> Result<Session> + Send + Sync>;

/// The connection that there is, and how the last attempts went.
struct Link {
    session: Option<Session>,
    since: Instant,
    wait: Duration,
}

impl Inner {
    fn progressed(&self) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Client {
    /// Connects to a server. Events of all that this client does go to `events`.
    ///
    /// # Errors
    /// `Connection` or `Timeout` when it cannot be reached, or breaks off again and again, for 30 seconds; `Trust` or `Version` when the two do
    /// not go together; what the server refuses with.
    ///
    /// # Cancel safety
    /// Safe: an unfinished connection is dropped.
    pub async fn connect(options: ClientOptions, events: Events) -> Result<Client> {
        for warning in options.tls.warnings() {
            events.tell(Event::Warning(warning.clone())).await;
        }
        let client = Client::new(options, events);
        let greeted = client.inner.dialer.connect_first(&client.events).await?;
        let session = client.take_up(greeted, true).await?;
        client.inner.link.lock().await.session = Some(session);
        Ok(client)
    }

    /// A client that has no connection yet, and makes them by this.
    #[cfg(test)]
    pub(crate) fn simulated(options: ClientOptions, events: Events, dial: Dial) -> Client {
        let mut client = Client::new(options, events);
        Arc::get_mut(&mut client.inner).expect("a new client is nobody else's").dial = Some(dial);
        client
    }

    fn new(options: ClientOptions, events: Events) -> Client {
        let now = Instant::now();
        let server = options.endpoint.to_string();
        let is_fetch = options.first.is_fetch();
        let expected = Expected { size: options.expected, is_fetch, streams: options.streams };
        let resume_key = options.resume_secret.map(|secret| resume_key(&secret, &options.endpoint));
        Client {
            inner: Arc::new(Inner {
                dialer: Dialer::new(
                    options.endpoint,
                    options.tls,
                    options.congestion,
                    options.rate,
                    options.receipts.is_some(),
                    options.invite,
                )
                .expecting(expected, options.first.frames(resume_key)),
                receipts: options.receipts,
                timeout: options.timeout,
                streams: options.streams,
                resume_key,
                described: options.first.described(),
                server,
                pool: Pool::new(CLIENT_BUFFERS),
                link: tokio::sync::Mutex::new(Link { session: None, since: now, wait: RETRY_BACKOFF.0 }),
                drivers: Mutex::new(JoinSet::new()),
                progress: Mutex::new(now),
                dead: Mutex::new(None),
                next_item: AtomicU64::new(1),
                stalls: Arc::default(),
                tree: Mutex::default(),
                leaves: AtomicBool::new(false),
                #[cfg(test)]
                dial: None,
            }),
            events,
        }
    }

    /// What the server says that we may do, in general.
    pub async fn rights(&self) -> Rights {
        self.inner.link.lock().await.session.as_ref().map_or(Rights::NONE, |session| Rights(session.hello().rights))
    }

    /// The same connection for whoever watches something else: what the returned handle does is told to `events`.
    #[must_use]
    pub fn told_to(&self, events: Events) -> Client {
        Client { inner: Arc::clone(&self.inner), events }
    }

    /// What the server said of itself and of us when the connection was made; nothing without one.
    pub async fn server(&self) -> Option<ServerFacts> {
        let link = self.inner.link.lock().await;
        let hello = link.session.as_ref()?.hello();
        Some(ServerFacts {
            agent: hello.agent.clone(),
            principal: hello.principal.clone(),
            rights: Rights(hello.rights),
            now: hello.now,
        })
    }

    /// Ends the connection in order.
    pub async fn close(&self) {
        let session = self.inner.link.lock().await.session.take();
        if let Some(session) = session {
            session.close();
        }
        let mut drivers = std::mem::take(&mut *self.drivers());
        // A driver that panicked has nothing left to end; one that takes long is cut off.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, async { while drivers.join_next().await.is_some() {} }).await;
    }

    /// What stands under this name.
    ///
    /// # Errors
    /// `NotFound`, `Rights`, and what connecting can fail with.
    pub async fn stat(&self, path: &RemotePath) -> Result<Entry> {
        match self.request(&Stat { path: path.clone(), xattrs: None }).await? {
            (Reply::Entry(entry), _) => Ok(entry),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// The space of the volume that a name is on, or would be.
    ///
    /// # Errors
    /// `Rights`; `Io` when the server's file system does not tell.
    pub async fn space(&self, path: &RemotePath) -> Result<Volume> {
        match self.request(&Space { path: path.clone() }).await? {
            (Reply::Volume(volume), _) => Ok(volume),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// The hash and size of a file's content, which the server reads for it.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `Rights`.
    pub async fn hash(&self, path: &RemotePath) -> Result<(Root, u64)> {
        match self.request(&Hash { path: path.clone(), read: Some(true) }).await? {
            (Reply::Done(Done { root: Some(root), size: Some(size), .. }), _) => Ok((root, size)),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// Removes a file, link or empty directory, or with `recursive` a directory with all that is in it. Returns how
    /// many entries went.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `Rights`.
    pub async fn remove(&self, path: &RemotePath, recursive: bool) -> Result<u64> {
        let request = Remove { path: path.clone(), recursive };
        let mut retry = self.retry();
        let mut lost = false;
        loop {
            let error = match self.request_once(&request).await {
                Ok((Reply::Done(done), _)) => return Ok(done.count),
                Ok((other, session)) => return Err(session.unexpected(&other)),
                // The answer of the first attempt was lost, and it had done its work.
                Err(error) if lost && error.kind() == ErrorKind::NotFound => return Ok(1),
                Err(error) => error,
            };
            lost |= is_of_connection(error.kind());
            retry.after(error).await?;
        }
    }

    /// Gives something another name. Returns the name that it got, or nothing when it was left as it was.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `IsDirectory`, `Rights`.
    pub async fn rename(&self, from: &RemotePath, to: &RemotePath, if_exists: IfExists) -> Result<Option<RemotePath>> {
        let request = Rename { from: from.clone(), to: to.clone(), if_exists, id: random_id()? };
        match self.request(&request).await? {
            (Reply::Done(done), _) => Ok((done.count > 0).then(|| done.path.unwrap_or_else(|| to.clone()))),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// Makes a directory and those above it. One that is there is success.
    ///
    /// # Errors
    /// `NotDirectory`, `Rights`, `Name`.
    pub async fn make_directory(&self, path: &RemotePath) -> Result<()> {
        match self.request(&MakeDirectory { path: path.clone() }).await? {
            (Reply::Done(_), _) => Ok(()),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// Sets the mode and time of a directory.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `Rights`.
    pub async fn set_directory(&self, path: &RemotePath, mode: Option<u32>, mtime: Option<Mtime>) -> Result<()> {
        match self.request(&SetDirectory { path: path.clone(), mode, mtime, xattrs: None }).await? {
            (Reply::Done(_), _) => Ok(()),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// Sends a request that has one answer, again when the connection broke, and returns the answer.
    pub(crate) async fn request<M: Message>(&self, request: &M) -> Result<(Reply, Session)> {
        let mut retry = self.retry();
        loop {
            match self.request_once(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    pub(crate) async fn request_once<M: Message>(&self, request: &M) -> Result<(Reply, Session)> {
        let session = self.session().await?;
        let reply = session.open(request).await?.next().await?;
        self.progressed();
        Ok((reply, session))
    }

    /// The connection that there is, or a new one.
    ///
    /// # Errors
    /// Why none can be made, when nothing has got further for the time that is allowed; then nothing more can be
    /// done with this client.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn session(&self) -> Result<Session> {
        let mut link = self.inner.link.lock().await;
        if self.inner.leaves.swap(false, Ordering::SeqCst)
            && let Some(session) = link.session.take()
        {
            session.close();
            if let Ok(greeted) = self.inner.dialer.connect().await {
                let session = self.take_up(greeted, false).await?;
                link.session = Some(session.clone());
                return Ok(session);
            }
        }
        if let Some(session) = link.session.as_ref().filter(|session| session.is_open()) {
            return Ok(session.clone());
        }
        self.check_alive()?;
        let mut reason = link
            .session
            .take()
            .map_or_else(|| Error::new(ErrorKind::Connection, "the connection was closed"), |session| session.reason());
        // A connection that got something done breaks the row of failures.
        if self.last_progress() > link.since {
            link.wait = RETRY_BACKOFF.0;
        }
        loop {
            if !reason.kind().is_retryable() || self.is_out_of_time() {
                self.die(&reason);
                return Err(reason);
            }
            let wait = jittered(link.wait);
            self.events.tell(Event::Retrying { wait, reason }).await;
            self.stalls().during(Cause::Lost, sleep(wait)).await;
            link.wait = (link.wait * 2).min(RETRY_BACKOFF.1);
            link.since = Instant::now();
            #[cfg(test)]
            if let Some(dial) = &self.inner.dial {
                match dial(self) {
                    Ok(session) => {
                        link.session = Some(session.clone());
                        return Ok(session);
                    }
                    Err(error) => reason = error,
                }
                continue;
            }
            match self.inner.dialer.connect().await {
                Ok(greeted) => {
                    let session = self.take_up(greeted, false).await?;
                    match self.take_up_tree(&session).await {
                        Ok(()) => {
                            link.session = Some(session.clone());
                            return Ok(session);
                        }
                        Err(error) => {
                            session.close();
                            reason = error;
                        }
                    }
                }
                Err(error) => reason = error,
            }
        }
    }

    async fn take_up(&self, greeted: Greeted, is_first: bool) -> Result<Session> {
        let Greeted { connection, hello, asked, pin, description, warnings } = greeted;
        let book = match (&self.inner.receipts, pin, hello.receipt_key) {
            (Some(receipts), Some(pin), Some(key)) => {
                let key = VerifyingKey(key.0);
                receipts.know(pin, key)?;
                Some((Arc::clone(receipts), key))
            }
            _ => None,
        };
        if is_first {
            for warning in warnings {
                self.events.tell(Event::Warning(warning)).await;
            }
        }
        self.events.tell(Event::Note(description)).await;
        let stalls = Arc::clone(&self.inner.stalls);
        let (session, work) = Session::new(connection, (hello, asked), pin, book, self.inner.pool.clone(), stalls);
        let mut drivers = self.drivers();
        drivers.spawn(work);
        // Those of broken connections are done; the set shall not grow with their number.
        while drivers.try_join_next().is_some() {}
        Ok(session)
    }

    /// Opens the further connections that a transfer of this size gets at its beginning. Asked once more, it opens those
    /// that are still missing.
    pub(crate) fn widen(&self, session: &Session, size: u64, way: Way) {
        if size < LANES_FROM {
            return;
        }
        if self.inner.streams.is_none() {
            session.lanes().begin_with(self.width(session, size, way));
        }
        self.open_lanes(session, self.width(session, size, way));
    }

    /// Whether a download of this size gets further connections over a long link at its beginning.
    pub(crate) fn widens_early(&self, session: &Session, size: u64) -> bool {
        size >= LANES_FROM && session.round_trip() >= NEAR_ROUND_TRIP && self.width(session, size, Way::Down) > 1
    }

    fn width(&self, session: &Session, size: u64, way: Way) -> usize {
        // What was begun before the size was known is there, however few this size is worth.
        let computed = || Width::first(session.round_trip(), size, way).max(1 + self.inner.dialer.begun());
        self.inner.streams.map_or_else(computed, usize::from)
    }

    /// No transfer of several connections comes now: those that were begun before the size was known are not needed.
    pub(crate) fn needs_no_lanes(&self) {
        self.inner.dialer.forget_begun();
    }

    /// More connections would be better for a transfer of this size, by what was measured.
    pub(crate) fn widen_to(&self, session: &Session, size: u64, count: usize) {
        if self.inner.streams.is_none() && size >= LANES_FROM {
            self.open_lanes(session, count);
        }
    }

    /// Has another thread work on a transfer of this size whose groups are worked on where its first connection is, over
    /// a connection of its own, or has it rest: see [`another_thread`].
    pub(crate) fn share_out(&self, session: &Session, carrier: &Carrier, size: u64, way: Way, has_room: Option<bool>) {
        match another_thread(size, way, self.inner.streams.map(usize::from), session.threads(), has_room) {
            AnotherThread::AsItIs => {}
            AnotherThread::Rests => carrier.rest(true),
            AnotherThread::Works(count) => {
                carrier.rest(false);
                let place = if way == Way::Up { Place::Task } else { Place::Thread };
                self.open_lanes_on(session, count, place);
            }
        }
    }

    fn open_lanes(&self, session: &Session, count: usize) {
        self.open_lanes_on(session, count, Place::Task);
    }

    fn open_lanes_on(&self, session: &Session, count: usize, place: Place) {
        let (Some(token), Some(address)) = (session.hello().token, session.address()) else { return };
        for _ in 0..session.lanes().missing(count) {
            let (inner, lanes, pool) = (Arc::downgrade(&self.inner), session.lanes().clone(), self.pool().clone());
            let work = async move {
                let Some(joining) = inner.upgrade() else { return };
                let joined = tokio::select! {
                    joined = joining.dialer.join(address, token) => joined,
                    // Nobody waits for one that does not come.
                    () = lanes.ended() => return lanes.not_opened(),
                };
                drop(joining);
                match joined {
                    Ok(joining) => lanes.drive(joining, pool, place).await,
                    // It goes on with the connections that it has.
                    Err(_) => lanes.not_opened(),
                }
            };
            match place {
                Place::Task => drop(self.drivers().spawn(work)),
                Place::Thread => {
                    let lanes = session.lanes().clone();
                    self.drivers().spawn(async move {
                        if on_thread(work).await.is_err() {
                            lanes.not_opened();
                        }
                    });
                }
            }
        }
    }

    fn drivers(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.inner.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something got further than it was: the time without progress begins anew.
    pub(crate) fn progressed(&self) {
        self.inner.progressed();
    }

    /// The same, for what may outlive the client.
    pub(crate) fn progress(&self) -> impl Fn() + Send + Sync + 'static {
        let inner = Arc::downgrade(&self.inner);
        move || {
            if let Some(inner) = inner.upgrade() {
                inner.progressed();
            }
        }
    }

    fn last_progress(&self) -> Instant {
        *self.inner.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_out_of_time(&self) -> bool {
        self.last_progress().elapsed() >= self.inner.timeout
    }

    /// Takes note that nothing more can be done.
    fn die(&self, reason: &Error) {
        let mut dead = self.inner.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.get_or_insert_with(|| reason.duplicate());
    }

    /// Refuses when nothing more can be done.
    ///
    /// # Errors
    /// Why.
    pub(crate) fn check_alive(&self) -> Result<()> {
        let dead = self.inner.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.as_ref().map_or(Ok(()), |reason| Err(reason.duplicate()))
    }

    /// Whether the connections are made on the strength of an invite.
    pub(crate) fn redeems_invite(&self) -> bool {
        self.inner.dialer.redeems_invite()
    }

    /// The server, as it was named.
    pub(crate) fn server_name(&self) -> &str {
        &self.inner.server
    }

    /// By what the server knows unfinished uploads of a client without a certificate again.
    pub(crate) fn resume_key(&self) -> Option<Bytes16> {
        self.inner.resume_key
    }

    /// Under what id this version of a file was described with the hello, if it was.
    pub(crate) fn described(&self, to: &RemotePath, content: &SourceVersion) -> Option<Bytes16> {
        let described = self.inner.described.as_ref();
        let Described { target, version, upload_id } = described?;
        (target == to && version == content).then_some(*upload_id)
    }

    /// Where events are told.
    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// What all that this client has done so far waited for, whichever handle did it.
    #[must_use]
    pub fn waited(&self) -> Waited {
        self.inner.stalls.waited()
    }

    pub(crate) fn stalls(&self) -> &Arc<Stalls> {
        &self.inner.stalls
    }

    /// What was built and not put in its place is seen by nobody any more, this client included.
    pub(crate) fn leave(&self) {
        self.inner.leaves.store(true, Ordering::SeqCst);
    }

    pub(crate) fn open_tree(&self) -> &Mutex<Option<OpenTree>> {
        &self.inner.tree
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    pub(crate) fn retry(&self) -> Retry {
        Retry { client: self.clone(), wait: RETRY_BACKOFF.0, changed: 0 }
    }

    /// An item that is told about under a number of its own.
    pub(crate) fn item(&self, name: Vec<u8>) -> Item {
        let id = self.inner.next_item.fetch_add(1, Ordering::Relaxed);
        let (untold, moved) = (Untold::default(), Moved::default());
        Item { client: self.clone(), id, name, counted: 0, best: 0, untold, told: None, moved }
    }
}

/// Does something on a thread of its own, with a runtime of its own.
///
/// # Errors
/// When the system gives none; nothing was done then.
///
/// # Cancel safety
/// Safe: the work is dropped at its next step.
async fn on_thread(work: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (over, is_over) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("sealift lane".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = stopped => {}
                () = work => {}
            }
        });
        drop(over);
    })?;
    // Either end of it, a panic included.
    let _ = is_over.await;
    drop(stop);
    Ok(())
}

/// Whether a failure is one of the connection rather than of what was asked.
fn is_of_connection(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Connection | ErrorKind::Timeout | ErrorKind::Stopping | ErrorKind::Session)
}

/// What one server is shown of a secret: it is of no use at another.
fn resume_key(secret: &Bytes16, endpoint: &Endpoint) -> Bytes16 {
    let mut hasher = blake3::Hasher::new_derive_key("sealift 2026 resume key of a client without a certificate");
    hasher.update(&secret.0).update(endpoint.to_string().as_bytes());
    let mut key = [0; 16];
    hasher.finalize_xof().fill(&mut key);
    Bytes16(key)
}

/// 128 bits from the operating system.
///
/// # Errors
/// `Internal` when it has none.
pub(crate) fn random_id() -> Result<Bytes16> {
    // One system call for many ids.
    const COUNT: usize = 64;
    thread_local! {
        static IDS: RefCell<Vec<[u8; 16]>> = const { RefCell::new(Vec::new()) };
    }
    IDS.with_borrow_mut(|ids| {
        if ids.is_empty() {
            let mut bytes = [0; 16 * COUNT];
            getrandom::fill(&mut bytes).map_err(|error| {
                Error::new(ErrorKind::Internal, "get random bytes from the system").with_source(error)
            })?;
            ids.extend(bytes.as_chunks().0);
        }
        let id = ids.pop();
        id.map(Bytes16).ok_or_else(|| Error::new(ErrorKind::Internal, "no random bytes came from the system"))
    })
}

/// The attempts at one thing.
pub(crate) struct Retry {
    client: Client,
    wait: Duration,
    changed: u32,
}

impl Retry {
    /// Waits until it may be tried again.
    ///
    /// # Errors
    /// The failure itself, when trying again is of no use or has been of none for too long.
    pub(crate) async fn after(&mut self, error: Error) -> Result<()> {
        if !error.kind().is_retryable() || self.client.check_alive().is_err() {
            return Err(error);
        }
        // A new connection is waited for where it is made.
        if is_of_connection(error.kind()) && !error.is_from_peer() {
            return if self.client.is_out_of_time() { Err(error) } else { Ok(()) };
        }
        self.changed += u32::from(matches!(error.kind(), ErrorKind::Changed | ErrorKind::Mismatch));
        if self.changed >= CHANGED_MAX || self.client.is_out_of_time() {
            return Err(error);
        }
        let wait = jittered(self.wait);
        self.wait = (self.wait * 2).min(RETRY_BACKOFF.1);
        self.client.events.tell(Event::Retrying { wait, reason: error }).await;
        self.client.stalls().during(Cause::Lost, sleep(wait)).await;
        Ok(())
    }
}

/// One file that is moved, as it is told about.
pub(crate) struct Item {
    client: Client,
    pub(crate) id: ItemId,
    pub(crate) name: Vec<u8>,
    /// Bytes that count as done in this attempt.
    counted: u64,
    /// The most that counted as done in any attempt: only what gets beyond it is progress.
    best: u64,
    /// Progress that is not told yet, and when some last was.
    untold: Untold,
    told: Option<Instant>,
    moved: Moved,
}

impl Drop for Item {
    fn drop(&mut self) {
        if self.untold != Untold::default() {
            self.tell_now();
        }
    }
}

/// Progress that was not told yet.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Untold {
    bytes: i64,
    moved: u64,
    resent: u64,
    held: u64,
}

/// What of a file has crossed the wire in this run.
#[derive(Default)]
struct Moved {
    /// Bytes, each counted once.
    once: u64,
    /// Of each group, where what was moved of it ends.
    ends: Vec<u32>,
    /// Of the groups that were begun and not yet seen to have gone, where what is sent of them begins.
    begun: HashMap<u64, usize>,
}

impl Moved {
    fn begin(&mut self, group: u64, from: usize) {
        let begun = self.begun.entry(group).or_insert(from);
        *begun = from.min(*begun);
    }

    /// Counts a group of which all crossed the wire that is behind `from`, or behind where it was begun: how many bytes
    /// that is, and how many of them for the second time.
    fn end(&mut self, group: u64, len: usize, from: usize) -> (u64, u64) {
        let from = self.begun.remove(&group).map_or(from, |begun| begun.min(from));
        let (moved, mut resent) = ((len - from) as u64, 0);
        if let Ok(index) = usize::try_from(group)
            && moved > 0
        {
            if self.ends.len() <= index {
                self.ends.resize(index + 1, 0);
            }
            let end = &mut self.ends[index];
            resent = (*end as usize).min(len).saturating_sub(from) as u64;
            *end = (*end).max(u32::try_from(len).unwrap_or(u32::MAX));
        }
        self.once += moved - resent;
        (moved, resent)
    }
}

impl Item {
    /// So many more bytes count as done, and so many of them crossed the wire.
    pub(crate) fn advance(&mut self, bytes: u64, moved: u64) {
        self.moved.once += moved;
        self.add(bytes, moved, 0);
    }

    /// What is behind `from` of a group begins to cross the wire. It counts once the group does.
    pub(crate) fn begin_group(&mut self, group: u64, from: usize) {
        self.moved.begin(group, from);
    }

    /// A group of so many bytes counts as done. What is behind `from` crossed the wire, or behind where it began to, in
    /// this attempt or an earlier one of this run: the other side would not have it otherwise.
    pub(crate) fn advance_group(&mut self, group: u64, len: usize, from: usize) {
        let (moved, resent) = self.moved.end(group, len, from);
        if moved > resent {
            // It crossed the wire for the first time. Where a link breaks again and again, what was there before may
            // not even be looked at before the next break.
            self.client.progressed();
        }
        self.add(len as u64, moved, resent);
    }

    fn add(&mut self, bytes: u64, moved: u64, resent: u64) {
        self.counted += bytes;
        if self.counted > self.best {
            self.best = self.counted;
            self.client.progressed();
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.tell(Untold { bytes, moved, resent, held: 0 });
    }

    /// The attempt begins anew.
    pub(crate) fn restart(&mut self) {
        let counted = i64::try_from(std::mem::take(&mut self.counted)).unwrap_or(i64::MAX);
        if counted > 0 {
            self.tell(Untold { bytes: -counted, ..Untold::default() });
        }
    }

    fn tell(&mut self, more: Untold) {
        let Untold { bytes, moved, resent, held } = &mut self.untold;
        (*bytes, *moved, *resent, *held) =
            (*bytes + more.bytes, *moved + more.moved, *resent + more.resent, *held + more.held);
        // Each telling wakes a thread.
        if self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            self.told = Some(Instant::now());
            self.tell_now();
        }
    }

    fn tell_now(&mut self) {
        if self.client.events.progress(self.untold.event(self.id)) {
            self.untold = Untold::default();
        }
    }

    /// The file is there whole: what did not cross the wire was there before.
    pub(crate) fn held_rest(&mut self, size: u64) {
        self.untold.held += size.saturating_sub(self.moved.once);
    }

    /// Tells what there was no room for; to be called before the item's end is told.
    pub(crate) async fn settle(&mut self) {
        let untold = std::mem::take(&mut self.untold);
        if untold != Untold::default() {
            self.client.events.tell(untold.event(self.id)).await;
        }
    }

    /// Tells that it is being moved.
    pub(crate) async fn started(&self, size: Option<u64>) {
        self.client.events.tell(Event::Started { item: self.id, name: self.name.clone(), size }).await;
    }

    /// Tells that it failed, unless everything did.
    pub(crate) async fn failed(&mut self, error: Error) {
        self.settle().await;
        if self.client.check_alive().is_ok() || !is_of_connection(error.kind()) {
            let name = self.name.clone();
            self.client.events.tell(Event::Failed { item: Some(self.id), name, error }).await;
        }
    }
}

impl Untold {
    fn event(self, item: ItemId) -> Event {
        let Untold { bytes, moved, resent, held } = self;
        Event::Progress { item, bytes, moved, resent, held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_that_crossed_before_the_break_is_not_taken_for_held() {
        let mut moved = Moved::default();
        moved.begin(0, 0);
        assert_eq!(moved.end(0, 100, 100), (100, 0));
        // The second group broke at 60 and the third before any of it had been told of; the fourth was there.
        moved.begin(1, 0);
        moved.begin(2, 0);
        moved.begin(1, 60);
        assert_eq!(moved.end(1, 100, 100), (100, 0));
        assert_eq!(moved.end(2, 100, 100), (100, 0));
        assert_eq!(moved.end(3, 100, 100), (0, 0));
        assert_eq!(moved.once, 300);
        // What is lost on its way after it counted has to go again.
        moved.begin(0, 40);
        assert_eq!(moved.end(0, 100, 100), (60, 60));
        assert_eq!(moved.end(4, 100, 30), (70, 0));
        assert_eq!(moved.once, 370);
    }

    #[tokio::test]
    async fn a_thread_whose_work_panics_has_let_go_of_what_it_held() {
        let held = Arc::new(());
        let holds = Arc::clone(&held);
        let work = async move {
            let _holds = holds;
            tokio::task::yield_now().await;
            panic!("on purpose");
        };
        on_thread(work).await.unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
