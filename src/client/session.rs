//! One connection and the exchanges that go over it.
//!
//! A [`Session`] is a handle that many tasks share; one task, [`drive`], owns the connection. Between them stands a
//! desk: what is to be sent lies there in order, and who waits for answers is entered there. Nothing on the desk
//! grows without bound: an [`Exchange`] needs a permit of the server's `open_max`, unasked content one of its
//! `unasked_max`, and a group of content one of [`ROOM`].
//!
//! Invariants: a frame of a transfer leaves after everything that was queued before it; whoever drops an exchange
//! before its end tells the server so; a session ends once, for one reason, which everybody who waits is given.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::available_parallelism;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

use crate::buffer::{Buffer, Pool};
use crate::client::asks::Ask;
use crate::client::lanes::{self, Carrier, Lanes};
use crate::client::life::Life;
use crate::client::receipts::Receipts;
use crate::client::shelf::{Filling, Shelf};
use crate::client::stalls::{Cause, Seen, Stalls};
use crate::client::workplace::{self, Workplace};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::group_len;
use crate::limits::{
    DATA_LEN_MAX, DATA_QUEUE_MAX, FILE_SIZE_MAX, GROUP_LEN, KIB, NEAR_ROUND_TRIP, UNASKED_FILE_MAX, WANTED_MAX,
    ZERO_RUNS_IN_MESSAGE,
};
use crate::net::{Connection, Event, Handler};
use crate::path::RemotePath;
use crate::protocol::{
    Breach, Close, Done, Entries, Entry, FRAME_HEADER_LEN, Failed, Finish, FinishAhead, Get, GetAnswer, Goodbye,
    Header, Invited, Invites, Kind, List, Message, Put, PutAnswer, Receipt, ServerHello, Stored, StoredBatch,
    TreeBegun, Values, Volume, Want, WantValues, Working, Zeros,
};
use crate::tls::{Pin, VerifyingKey};
use crate::transfer::Runs;

/// Groups of content that wait to be written: enough to keep TLS busy while the next are read. 4 MiB.
const ROOM: usize = 4;
/// Groups that all downloads of a connection may have asked for: what the server allows.
const WANTED_GROUPS_MAX: usize = WANTED_MAX as usize / GROUP_LEN;
/// Answers of one exchange that wait to be looked at. Only listings and group values come in numbers; a slot holds
/// one frame (64 KiB at most). A server that gets further ahead than this breaks the protocol.
const REPLIES_MAX: usize = 1024;
/// Frames that are taken before others have their turn.
pub(crate) const EVENTS_MAX: usize = 256;
/// How long the end of a connection may take once everything is answered: it is a courtesy.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// What comes back in an exchange.
#[derive(Debug)]
pub(crate) enum Reply {
    /// What the server holds of a described file.
    PutAnswer(PutAnswer),
    /// Values of what it holds.
    Values(Values),
    /// An upload or link is there, durably.
    Stored(Stored),
    /// The version that a download opened.
    GetAnswer(GetAnswer),
    /// A whole group that was wanted.
    Group(u64, Buffer),
    /// All content of a download was sent.
    Finish(Finish),
    /// The same, told before it was asked.
    FinishAhead(Finish),
    /// One entry.
    Entry(Entry),
    /// Some entries.
    Entries(Vec<Entry>),
    /// The space of a volume.
    Volume(Volume),
    /// A directory is being built.
    TreeBegun(TreeBegun),
    /// An invite was made.
    Invited(Invited),
    /// Some invites.
    Invites(Invites),
    /// A request is done.
    Done(Done),
    /// The exchange failed.
    Failed(Error),
}

impl Reply {
    /// Whether nothing more comes in this exchange.
    fn is_last(&self) -> bool {
        match self {
            Reply::Stored(_)
            | Reply::Finish(_)
            | Reply::Entry(_)
            | Reply::Volume(_)
            | Reply::TreeBegun(_)
            | Reply::Invited(_)
            | Reply::Invites(_)
            | Reply::Done(_)
            | Reply::Failed(_) => true,
            Reply::PutAnswer(_)
            | Reply::Values(_)
            | Reply::GetAnswer(_)
            | Reply::Group(..)
            | Reply::FinishAhead(_)
            | Reply::Entries(_) => false,
        }
    }
}

/// Where the answers of some exchanges go, each with its transfer.
pub(crate) type Replies = mpsc::Sender<(u32, Reply)>;

/// A greeted connection, shared by all who work over it.
#[derive(Clone)]
pub(crate) struct Session(Arc<Shared>);

/// Where receipts are kept, and the key that signs those of this connection.
pub(crate) type Book = (Arc<Receipts>, VerifyingKey);

struct Shared {
    hello: ServerHello,
    /// The server's key, as it proved itself.
    pin: Option<Pin>,
    book: Option<Book>,
    /// Where the server is.
    address: Option<SocketAddr>,
    /// The round trip to it, as the handshake took it.
    round_trip: Duration,
    /// The processors that this side may take for its own.
    processors: usize,
    /// Threads that one download may keep busy.
    threads: usize,
    desk: Mutex<Desk>,
    open: Arc<Semaphore>,
    unasked: Arc<Semaphore>,
    unasked_kib: usize,
    room: Arc<Semaphore>,
    wanted: Arc<Semaphore>,
    stalls: Arc<Stalls>,
    lanes: Lanes,
}

struct Desk {
    outgoing: VecDeque<Outgoing>,
    slots: HashMap<u32, Slot>,
    next_transfer: u32,
    /// Why the session has ended.
    ended: Option<Error>,
    /// Whether the driver shall say goodbye when all is written.
    closing: bool,
    /// What was asked with the hello and nobody has claimed yet.
    asked: Vec<Asked>,
    waker: Option<Waker>,
}

/// A request that left with the hello, and where its answers come.
struct Asked {
    frame: Bytes,
    transfer: u32,
    receiver: mpsc::Receiver<(u32, Reply)>,
}

enum Outgoing {
    /// Whole frames of one transfer, headers included.
    Frames(u32, Vec<Bytes>),
    /// What is left of a group.
    Content { transfer: u32, offset: u64, content: Bytes, _room: OwnedSemaphorePermit },
}

struct Slot {
    replies: Replies,
    /// Whether the server owes an answer.
    is_due: bool,
    /// Nobody waits for that answer, not even who ends the session.
    is_left: bool,
    /// Ranges of content that are to come, in this order: offset and bytes still to come.
    wanted: VecDeque<(u64, usize)>,
    /// For a download: at most this much may come unasked.
    unasked_max: u64,
    /// The size that the server named.
    size: u64,
    /// For a download: the server has said ahead how it ends.
    is_foretold: bool,
    /// Where the beginning of a group is laid when the connection breaks.
    shelf: Shelf,
    /// For an upload of which a receipt is asked: its name, and the receipt once that has come.
    receipt: Option<(RemotePath, Option<Receipt>)>,
    _permits: Permits,
}

/// Leave to have an exchange open, and to send its content without being asked. What was asked with the hello needed
/// none.
type Permits = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

impl Session {
    /// A session over a connection whose hellos are exchanged, with what was asked with ours, and the work that drives
    /// it until it ends.
    pub(crate) fn new(
        connection: Connection,
        (hello, asked): (ServerHello, Vec<Ask>),
        pin: Option<Pin>,
        book: Option<Book>,
        pool: Pool,
        stalls: Arc<Stalls>,
    ) -> (Session, impl Future<Output = ()>) {
        let socket = connection.socket();
        // Without an address there is one connection, and that works.
        let address = socket.tcp().peer_addr().ok();
        let all = available_parallelism().map_or(1, usize::from);
        let is_shared = socket.stays_on_machine();
        let processors = (workplace::processors(all, is_shared), workplace::threads(all, is_shared));
        let round_trip = connection.socket().info().map_or(Duration::ZERO, |info| info.rtt_min);
        let session = Session::of((hello, pin, book), (address, round_trip), processors, stalls);
        for ask in asked {
            session.enter_asked(ask);
        }
        let work = drive(connection, session.clone(), pool);
        (session, work)
    }

    /// A session that something shall drive.
    fn of(
        (hello, pin, book): (ServerHello, Option<Pin>, Option<Book>),
        (address, round_trip): (Option<SocketAddr>, Duration),
        (processors, threads): (usize, usize),
        stalls: Arc<Stalls>,
    ) -> Session {
        let unasked_kib = usize::try_from(hello.unasked_max / KIB as u64).unwrap_or(usize::MAX).min(64 * KIB);
        let open_max = usize::try_from(hello.open_max).unwrap_or(usize::MAX).clamp(1, 4096);
        let desk = Desk {
            outgoing: VecDeque::new(),
            slots: HashMap::new(),
            next_transfer: 1,
            ended: None,
            closing: false,
            asked: Vec::new(),
            waker: None,
        };
        Session(Arc::new(Shared {
            hello,
            pin,
            book,
            address,
            processors,
            threads,
            round_trip,
            desk: Mutex::new(desk),
            open: Arc::new(Semaphore::new(open_max)),
            unasked: Arc::new(Semaphore::new(unasked_kib)),
            unasked_kib,
            room: Arc::new(Semaphore::new(ROOM)),
            wanted: Arc::new(Semaphore::new(WANTED_GROUPS_MAX)),
            stalls,
            lanes: Lanes::new(),
        }))
    }

    /// What the server said of itself and of us.
    pub(crate) fn hello(&self) -> &ServerHello {
        &self.0.hello
    }

    /// The server's key, as it proved itself.
    pub(crate) fn pin(&self) -> Option<Pin> {
        self.0.pin
    }

    /// Where the server is, if the system knows.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.0.address
    }

    /// The round trip to the server; zero when the system does not tell.
    pub(crate) fn round_trip(&self) -> Duration {
        self.0.round_trip
    }

    /// Where groups of a file are worked on that lies in memory or not.
    pub(crate) fn workplace(&self, is_in_memory: bool) -> Workplace {
        Workplace::of(is_in_memory, self.0.processors)
    }

    /// How many threads, each with a connection of its own, may work on a download that is worked on here.
    pub(crate) fn threads(&self) -> usize {
        self.0.threads
    }

    /// The further connections of this session.
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.0.lanes
    }

    /// Whether exchanges can still be opened.
    pub(crate) fn is_open(&self) -> bool {
        let desk = self.desk();
        desk.ended.is_none() && !desk.closing
    }

    /// Whether a file of this size, with so many bytes of extended attributes, may be sent without being asked for.
    pub(crate) fn takes_unasked(&self, size: u64, xattrs_len: usize) -> bool {
        size <= UNASKED_FILE_MAX && unasked_cost(size + xattrs_len as u64) <= self.0.unasked_kib
    }

    /// Opens an exchange with a request.
    ///
    /// # Errors
    /// Why the session has ended.
    ///
    /// # Cancel safety
    /// Safe: nothing was sent then.
    pub(crate) async fn open<M: Message>(&self, request: &M) -> Result<Exchange> {
        self.open_with(request, None).await
    }

    /// Opens an upload.
    ///
    /// # Errors
    /// Why the session has ended.
    ///
    /// # Cancel safety
    /// Safe: nothing was sent then.
    pub(crate) async fn open_put(&self, put: &Put) -> Result<Exchange> {
        self.open_with(put, Some(&put.path)).await
    }

    async fn open_with<M: Message>(&self, request: &M, put: Option<&RemotePath>) -> Result<Exchange> {
        if let Some(exchange) = self.claim(request) {
            return Ok(exchange);
        }
        let (replies, receiver) = mpsc::channel(REPLIES_MAX);
        let permit = self.permit(&self.0.open, 1).await?;
        let frames = |transfer| vec![request.to_frame(transfer).into()];
        let transfer = self.enter(replies, (Some(permit), None), 0, put, frames)?;
        Ok(Exchange::new(self, transfer, receiver))
    }

    /// Enters what has left with the hello.
    fn enter_asked(&self, Ask { frame, unasked_max, put }: Ask) {
        let (replies, receiver) = mpsc::channel(REPLIES_MAX);
        // It counts like any other, where there is room for it.
        let permit = Arc::clone(&self.0.open).try_acquire_owned().ok();
        // A session that is new has not ended.
        if let Ok(transfer) = self.enter(replies, (permit, None), unasked_max, put.as_ref(), |_| Vec::new()) {
            self.desk().asked.push(Asked { frame, transfer, receiver });
        }
    }

    /// The exchange of this very request, if it has left with the hello and is nobody's yet.
    pub(crate) fn claim<M: Message>(&self, request: &M) -> Option<Exchange> {
        let mut desk = self.desk();
        let is_it = |asked: &Asked| asked.frame == request.to_frame(asked.transfer);
        let found = desk.asked.iter().position(is_it)?;
        let Asked { transfer, receiver, .. } = desk.asked.swap_remove(found);
        drop(desk);
        Some(Exchange::new(self, transfer, receiver))
    }

    /// Opens a download. At most `unasked_max` bytes may come without being wanted.
    ///
    /// # Errors
    /// Why the session has ended.
    pub(crate) async fn open_get(&self, get: &Get) -> Result<Exchange> {
        if let Some(exchange) = self.claim(get) {
            return Ok(exchange);
        }
        let (replies, receiver) = mpsc::channel(REPLIES_MAX);
        let transfer = self.get_into(get, replies).await?;
        Ok(Exchange::new(self, transfer, receiver))
    }

    /// Opens a download whose answers go where those of others go. The caller has room for them there: at most
    /// three for a download of one group.
    ///
    /// # Errors
    /// Why the session has ended.
    pub(crate) async fn get_into(&self, get: &Get, replies: Replies) -> Result<u32> {
        let permit = self.permit(&self.0.open, 1).await?;
        self.enter(replies, (Some(permit), None), get.unasked_max, None, |transfer| vec![get.to_frame(transfer).into()])
    }

    /// Sends a request whose answer goes where those of others go.
    ///
    /// # Errors
    /// Why the session has ended.
    pub(crate) async fn request_into<M: Message>(&self, request: &M, replies: Replies) -> Result<u32> {
        let permit = self.permit(&self.0.open, 1).await?;
        self.enter(replies, (Some(permit), None), 0, None, |transfer| vec![request.to_frame(transfer).into()])
    }

    /// Sends a small file whole: description, content and finish at once. One answer comes.
    ///
    /// # Errors
    /// Why the session has ended.
    ///
    /// # Cancel safety
    /// Safe: all was queued, or nothing.
    pub(crate) async fn put_unasked(
        &self,
        put: &Put,
        content: Bytes,
        finish: &Finish,
        replies: Replies,
    ) -> Result<u32> {
        let cost = unasked_cost(unasked_len(put, finish.size));
        let unasked = self.permit(&self.0.unasked, cost).await?;
        let open = self.permit(&self.0.open, 1).await?;
        self.enter(replies, (Some(open), Some(unasked)), 0, Some(&put.path), |transfer| {
            let mut frames = vec![put.to_frame(transfer)];
            if !content.is_empty() {
                let header = Header::new(Kind::Data, transfer, 8 + content.len()).encode();
                frames[0].extend_from_slice(&header);
                frames[0].extend_from_slice(&0_u64.to_be_bytes());
            }
            let mut frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            if !content.is_empty() {
                frames.push(content);
            }
            frames.push(finish.to_frame(transfer).into());
            frames
        })
    }

    /// Ends the session in order once what is queued is written. Exchanges that are open get an error.
    pub(crate) fn close(&self) {
        let mut desk = self.desk();
        desk.closing = true;
        desk.wake();
        drop(desk);
        self.0.lanes.end();
    }

    /// Ends the session at once, because the server broke the protocol.
    pub(crate) fn break_off(&self, error: &Error) {
        self.end(error.duplicate());
    }

    fn end(&self, error: Error) {
        let mut desk = self.desk();
        desk.ended.get_or_insert(error);
        // Who waits for answers sees the channel closed and asks for the reason.
        desk.slots.clear();
        desk.outgoing.clear();
        desk.wake();
        drop(desk);
        // Who waits for a permit is woken by this.
        self.0.open.close();
        self.0.unasked.close();
        self.0.room.close();
        self.0.wanted.close();
        self.0.lanes.end();
    }

    /// Why the session has ended.
    pub(crate) fn reason(&self) -> Error {
        let desk = self.desk();
        desk.ended
            .as_ref()
            .map_or_else(|| Error::new(ErrorKind::Connection, "the connection was closed"), Error::duplicate)
    }

    /// Leave to ask for one more group, if there is any now. It is given back when the group has come.
    pub(crate) fn try_want(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.wanted).try_acquire_owned().ok()
    }

    /// Leave to ask for one more group.
    ///
    /// # Errors
    /// Why the session has ended.
    pub(crate) async fn want(&self) -> Result<OwnedSemaphorePermit> {
        self.permit(&self.0.wanted, 1).await
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // No statement between lock and unlock leaves the desk half changed.
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn permit(&self, semaphore: &Arc<Semaphore>, count: usize) -> Result<OwnedSemaphorePermit> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(semaphore).try_acquire_many_owned(count) {
            return Ok(permit);
        }
        let cause = if Arc::ptr_eq(semaphore, &self.0.room) {
            Cause::Room
        } else if Arc::ptr_eq(semaphore, &self.0.wanted) {
            Cause::Content
        } else {
            Cause::Window
        };
        let permit = Arc::clone(semaphore).acquire_many_owned(count);
        self.0.stalls.during(cause, permit).await.map_err(|_| self.reason())
    }

    fn enter(
        &self,
        replies: Replies,
        permits: Permits,
        unasked_max: u64,
        put: Option<&RemotePath>,
        frames: impl FnOnce(u32) -> Vec<Bytes>,
    ) -> Result<u32> {
        let mut desk = self.desk();
        if desk.ended.is_some() || desk.closing {
            drop(desk);
            return Err(self.reason());
        }
        let transfer = desk.next_transfer;
        let Some(next) = transfer.checked_add(1) else {
            drop(desk);
            // The next connection counts anew.
            self.close();
            return Err(Error::new(ErrorKind::Session, "this connection has used up its transfer numbers"));
        };
        desk.next_transfer = next;
        let receipt = put.filter(|_| self.0.book.is_some()).map(|path| (path.clone(), None));
        let slot = Slot {
            replies,
            is_due: true,
            is_left: false,
            wanted: VecDeque::new(),
            unasked_max,
            size: 0,
            is_foretold: false,
            shelf: Shelf::default(),
            receipt,
            _permits: permits,
        };
        desk.slots.insert(transfer, slot);
        desk.outgoing.push_back(Outgoing::Frames(transfer, frames(transfer)));
        desk.wake();
        Ok(transfer)
    }

    /// Queues a frame of an exchange that is open; for one that has ended it is of no use any more.
    fn queue<M: Message>(&self, transfer: u32, message: &M, change: impl FnOnce(&mut Slot)) {
        let mut desk = self.desk();
        if let Some(slot) = desk.slots.get_mut(&transfer) {
            change(slot);
            desk.outgoing.push_back(Outgoing::Frames(transfer, vec![message.to_frame(transfer).into()]));
            desk.wake();
        }
    }

    /// Ends an exchange from our side, if it has not ended.
    pub(crate) fn abort(&self, transfer: u32, error: &Error) {
        let mut desk = self.desk();
        if desk.slots.remove(&transfer).is_some() {
            desk.cut(transfer);
            let failed = Failed::from_error(error).to_frame(transfer);
            desk.outgoing.push_back(Outgoing::Frames(transfer, vec![failed.into()]));
            desk.wake();
        }
    }
}

/// Bytes that count against the window of unasked content.
fn unasked_len(put: &Put, size: u64) -> u64 {
    size + put.xattrs.as_ref().map_or(0, |xattrs| xattrs.len() as u64)
}

/// What a file costs of the window of unasked content, in KiB: even an empty one takes some memory of the server.
fn unasked_cost(size: u64) -> usize {
    usize::try_from(size.div_ceil(KIB as u64)).unwrap_or(usize::MAX).max(1)
}

impl Desk {
    /// Takes back the content and the finish of an exchange that is given up: a finish whose content is not sent any
    /// more would be a breach.
    fn cut(&mut self, transfer: u32) {
        let is_finish = |frames: &[Bytes]| matches!(frames, [frame] if frame.first() == Some(&(Kind::Finish as u8)));
        self.outgoing.retain(|outgoing| match outgoing {
            Outgoing::Content { transfer: of, .. } => *of != transfer,
            Outgoing::Frames(of, frames) => *of != transfer || !is_finish(frames),
        });
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// One transfer or request that is open. Dropped before its end, it is ended on the server too.
pub(crate) struct Exchange {
    session: Session,
    transfer: u32,
    receiver: mpsc::Receiver<(u32, Reply)>,
    /// How a download ends, as the server has said ahead.
    foretold: Option<Finish>,
    is_over: bool,
}

impl Exchange {
    fn new(session: &Session, transfer: u32, receiver: mpsc::Receiver<(u32, Reply)>) -> Exchange {
        Exchange { session: session.clone(), transfer, receiver, foretold: None, is_over: false }
    }

    /// The next answer.
    ///
    /// # Errors
    /// The failure that the server reports, or why the session has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self) -> Result<Reply> {
        loop {
            let reply = self.receiver.recv().await;
            if let Some(reply) = self.take(reply)? {
                return Ok(reply);
            }
        }
    }

    /// What has come, but for what is told ahead.
    fn take(&mut self, reply: Option<(u32, Reply)>) -> Result<Option<Reply>> {
        match reply {
            Some((_, Reply::FinishAhead(finish))) => {
                self.foretold = Some(finish);
                Ok(None)
            }
            Some((_, Reply::Failed(error))) => {
                self.is_over = true;
                Err(error)
            }
            Some((_, reply)) => {
                self.is_over |= reply.is_last();
                Ok(Some(reply))
            }
            None => Err(self.session.reason()),
        }
    }

    /// Queues a group, or the part of one that there is.
    ///
    /// # Errors
    /// Why the session has ended.
    ///
    /// # Cancel safety
    /// The content is lost when this is dropped; the exchange must be aborted then.
    pub(crate) async fn send_content(&self, offset: u64, content: Bytes) -> Result<()> {
        let room = self.session.permit(&self.session.0.room, 1).await?;
        let mut desk = self.session.desk();
        if desk.slots.contains_key(&self.transfer) {
            desk.outgoing.push_back(Outgoing::Content { transfer: self.transfer, offset, content, _room: room });
            desk.wake();
        }
        Ok(())
    }

    /// Its number, and where its answers come: as [`Session::get_into`] leaves it.
    pub(crate) fn into_parts(mut self) -> (u32, mpsc::Receiver<(u32, Reply)>) {
        self.is_over = true;
        let (_, nowhere) = mpsc::channel(1);
        (self.transfer, std::mem::replace(&mut self.receiver, nowhere))
    }

    /// Over which session it goes.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Why the session has ended.
    pub(crate) fn reason(&self) -> Error {
        self.session.reason()
    }

    /// Enters this transfer with the queue that all connections of the session take groups from; what they bring of a
    /// group before they break is laid on this shelf.
    pub(crate) fn carry(&self, shelf: &Shelf) -> Carrier {
        if let Some(slot) = self.session.desk().slots.get_mut(&self.transfer) {
            slot.shelf = shelf.clone();
        }
        self.session.lanes().carry(self.transfer, shelf.clone())
    }

    /// Says that all content is sent.
    pub(crate) fn finish(&self, finish: &Finish) {
        self.session.queue(self.transfer, finish, |slot| slot.is_due = true);
    }

    /// Tells what the finish of an upload will say, while some of it is still under way over lanes. The answer may come
    /// from then on.
    pub(crate) fn finish_ahead(&self, finish: &Finish) {
        let ahead = FinishAhead { size: finish.size, root: finish.root };
        self.session.queue(self.transfer, &ahead, |slot| slot.is_due = true);
    }

    /// Tells groups of zeros, which need not come.
    pub(crate) fn zeros(&self, runs: &Runs) {
        let runs: Vec<(u64, u64)> = runs.iter().collect();
        for runs in runs.chunks(ZERO_RUNS_IN_MESSAGE) {
            self.session.queue(self.transfer, &Zeros { runs: List(runs.to_vec()) }, |_| {});
        }
    }

    /// Asks for groups of a download: index and length of each.
    pub(crate) fn want(&self, ranges: &[(u64, u64)]) {
        for ranges in ranges.chunks(1024) {
            let want = Want { ranges: List(ranges.to_vec()) };
            self.session.queue(self.transfer, &want, |slot| {
                slot.is_due = true;
                let ranges = ranges.iter().map(|&(offset, len)| (offset, usize::try_from(len).unwrap_or(GROUP_LEN)));
                slot.wanted.extend(ranges);
            });
        }
    }

    /// Asks for the values of groups of a download, in their order.
    pub(crate) fn want_values(&self, first: u64, count: u64) {
        self.session.queue(self.transfer, &WantValues { first, count }, |slot| slot.is_due = true);
    }

    /// Says that a download needs no more content, and how it ended: finish, done or a failure. What the server has said
    /// ahead, or says before it answers, is not waited for again.
    ///
    /// # Errors
    /// The failure that the server reports, or why the session has ended.
    ///
    /// # Cancel safety
    /// Whoever drops this must drop the exchange.
    pub(crate) async fn end_download(&mut self) -> Result<Reply> {
        self.session.queue(self.transfer, &Close {}, |slot| slot.is_due = true);
        while self.foretold.is_none() {
            let reply = self.receiver.recv().await;
            if let Some(reply) = self.take(reply)? {
                return Ok(reply);
            }
        }
        if let Some(slot) = self.session.desk().slots.get_mut(&self.transfer) {
            slot.is_left = true;
        }
        self.is_over = true;
        self.foretold.take().map(Reply::Finish).ok_or_else(|| self.session.reason())
    }

    /// Ends a download in order of which nothing more has to be known: how the server answers is of no concern.
    pub(crate) fn leave(mut self) {
        self.is_over = true;
        self.session.queue(self.transfer, &Close {}, |slot| (slot.is_due, slot.is_left) = (true, true));
    }

    /// Ends the exchange because of a failure on our side.
    pub(crate) fn abort(mut self, error: &Error) {
        self.is_over = true;
        self.session.abort(self.transfer, error);
    }

    /// An answer that has no place here: the session ends.
    pub(crate) fn unexpected(&self, reply: &Reply) -> Error {
        self.session.unexpected(reply)
    }
}

impl Session {
    /// An answer that has no place: the session ends.
    pub(crate) fn unexpected(&self, reply: &Reply) -> Error {
        let kind = match reply {
            Reply::PutAnswer(_) => Kind::PutAnswer,
            Reply::Values(_) => Kind::Values,
            Reply::Stored(_) => Kind::Stored,
            Reply::GetAnswer(_) => Kind::GetAnswer,
            Reply::Group(..) => Kind::Data,
            Reply::Finish(_) => Kind::Finish,
            Reply::FinishAhead(_) => Kind::FinishAhead,
            Reply::Entry(_) => Kind::Entry,
            Reply::Entries(_) => Kind::Entries,
            Reply::Volume(_) => Kind::Volume,
            Reply::TreeBegun(_) => Kind::TreeBegun,
            Reply::Invited(_) => Kind::Invited,
            Reply::Invites(_) => Kind::Invites,
            Reply::Done(_) => Kind::Done,
            Reply::Failed(_) => Kind::Failed,
        };
        let error = Error::from(Breach::Unexpected { kind, why: "it does not answer what was asked" });
        self.break_off(&error);
        error
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_over {
            let error = Error::new(ErrorKind::Interrupted, "the client does not need this any more");
            self.session.abort(self.transfer, &error);
        }
    }
}

/// The connection's side of the content that moves.
struct Front {
    session: Session,
    /// Frames that the connection shall take next.
    ready: Vec<Bytes>,
    /// The group of the common queue that this connection is sending.
    taken: Option<lanes::Group>,
    /// Groups that are being received, by transfer. One transfer fills one at a time.
    filling: HashMap<u32, Filling>,
    leases: Leases,
    /// What the connection and the server have counted so far.
    seen: Seen,
}

/// A wait for a buffer.
type Lease = std::pin::Pin<Box<dyn Future<Output = Buffer> + Send>>;

impl Front {
    fn new(session: Session, pool: Pool) -> Front {
        let leases = Leases::new(pool);
        Front { session, ready: Vec::new(), taken: None, filling: HashMap::new(), leases, seen: Seen::default() }
    }
}

impl Handler for Front {
    fn poll_space(&mut self, cx: &mut Context<'_>, transfer: u32, offset: u64, len: usize) -> Poll<Result<&mut [u8]>> {
        let (whole, shelf, is_unasked) = {
            let desk = self.session.desk();
            if transfer >= desk.next_transfer || transfer == 0 {
                return Poll::Ready(Err(unexpected(Kind::Data, "nothing was asked for under this number")));
            }
            let Some(slot) = desk.slots.get(&transfer) else {
                // Ended from our side; what was on its way is thrown away.
                drop(desk);
                self.filling.remove(&transfer);
                return Poll::Ready(Ok(&mut []));
            };
            let Some(&(wanted, rest)) = slot.wanted.front() else {
                return Poll::Ready(Err(Breach::Data("content that was not asked for").into()));
            };
            if offset != wanted {
                return Poll::Ready(Err(Breach::Data("content out of order").into()));
            }
            if len > rest {
                return Poll::Ready(Err(Breach::Data("a piece across two groups").into()));
            }
            // What comes unasked is small, is kept by who has asked for it, and is asked for a few batches at a time: it
            // takes none of the buffers that come and go.
            (group_len(slot.size, offset / GROUP_LEN as u64), slot.shelf.clone(), slot.unasked_max > 0)
        };
        if !self.filling.contains_key(&transfer) {
            let filling = std::task::ready!(shelf.poll_filling(offset, || match is_unasked {
                true => Poll::Ready(Buffer::alone(whole)),
                false => self.leases.poll(cx, transfer, whole),
            }));
            self.filling.insert(transfer, filling);
        }
        let Some(filling) = self.filling.get_mut(&transfer) else {
            return Poll::Ready(Err(Error::new(ErrorKind::Internal, "a buffer that was just leased is missing")));
        };
        let is_next = filling.next_offset() == offset;
        match filling.space(len) {
            Some(space) if is_next => Poll::Ready(Ok(space)),
            _ => Poll::Ready(Err(Breach::Data("a piece out of order in its group").into())),
        }
    }

    fn filled(&mut self, transfer: u32, _: u64, len: usize) -> Result<()> {
        let mut desk = self.session.desk();
        let (Some(slot), Some(filling)) = (desk.slots.get_mut(&transfer), self.filling.get_mut(&transfer)) else {
            return Ok(());
        };
        let is_whole = filling.advance(len);
        if let Some((offset, rest)) = slot.wanted.front_mut() {
            *offset += len as u64;
            *rest -= len;
            if *rest == 0 {
                slot.wanted.pop_front();
            }
        }
        if !is_whole {
            return Ok(());
        }
        if slot.wanted.is_empty() {
            // An unasked download still owes its finish.
            slot.is_due = slot.unasked_max > 0;
        }
        let replies = slot.replies.clone();
        drop(desk);
        let Some(filling) = self.filling.remove(&transfer) else { return Ok(()) };
        let group = filling.group();
        let Some(buffer) = filling.into_buffer() else { return Ok(()) };
        give(&replies, transfer, Reply::Group(group, buffer))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        let mut desk = self.session.desk();
        let Desk { outgoing, slots, .. } = &mut *desk;
        let mut ready_len = 0;
        loop {
            match outgoing.front_mut() {
                None => break,
                Some(Outgoing::Frames(_, frames)) => {
                    if ready_len >= DATA_QUEUE_MAX {
                        return Poll::Pending;
                    }
                    ready_len += frames.iter().map(Bytes::len).sum::<usize>();
                    self.ready.append(frames);
                    outgoing.pop_front();
                }
                Some(Outgoing::Content { transfer, offset, content, .. }) => {
                    if !self.ready.is_empty() {
                        return Poll::Pending;
                    }
                    // One group at a time.
                    if self.taken.is_some() {
                        break;
                    }
                    let (transfer, start) = (*transfer, *offset);
                    if !slots.contains_key(&transfer) {
                        outgoing.pop_front();
                        continue;
                    }
                    let piece = content.split_to(content.len().min(DATA_LEN_MAX));
                    *offset += piece.len() as u64;
                    if content.is_empty() {
                        outgoing.pop_front();
                    }
                    return Poll::Ready((transfer, start, piece));
                }
            }
        }
        drop(desk);
        if !self.ready.is_empty() {
            return Poll::Pending;
        }
        let lanes = self.session.lanes();
        if self.taken.as_ref().is_some_and(|group| !lanes.is_carried(group)) {
            self.taken = None;
        }
        if self.taken.is_none() {
            self.taken = lanes.take_first(cx);
        }
        lanes.piece(&mut self.taken, true, DATA_LEN_MAX).map_or(Poll::Pending, Poll::Ready)
    }
}

/// Where buffers for what comes are leased, one wait at a time.
pub(crate) struct Leases {
    pool: Pool,
    /// A buffer that is waited for: for whom, how long, and the wait itself.
    wait: Option<(u32, usize, Lease)>,
}

impl Leases {
    pub(crate) fn new(pool: Pool) -> Leases {
        Leases { pool, wait: None }
    }

    /// A buffer for a transfer, now or when there is room.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, transfer: u32, len: usize) -> Poll<Buffer> {
        if let Some(buffer) = self.pool.try_lease(len) {
            self.wait = None;
            return Poll::Ready(buffer);
        }
        // The wait of another transfer that was given up in the meantime is no use.
        if self.wait.as_ref().is_none_or(|(owner, wanted, _)| (*owner, *wanted) != (transfer, len)) {
            let pool = self.pool.clone();
            self.wait = Some((transfer, len, Box::pin(async move { pool.lease(len).await })));
        }
        let Some((_, _, wait)) = &mut self.wait else { return Poll::Pending };
        let buffer = std::task::ready!(wait.as_mut().poll(cx));
        self.wait = None;
        Poll::Ready(buffer)
    }
}

fn unexpected(kind: Kind, why: &'static str) -> Error {
    Breach::Unexpected { kind, why }.into()
}

/// Hands an answer to whoever waits for it. Nobody there any more is all right: the exchange was dropped.
fn give(replies: &Replies, transfer: u32, reply: Reply) -> Result<()> {
    match replies.try_send((transfer, reply)) {
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        Err(mpsc::error::TrySendError::Full(_)) => Err(Breach::Excess("answers").into()),
    }
}

/// Owns the connection until the session ends.
async fn drive(mut connection: Connection, session: Session, pool: Pool) {
    let mut front = Front::new(session.clone(), pool);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut life = Life::new();
    let ended = {
        let step = std::future::poll_fn(|cx| {
            let begun = std::time::Instant::now();
            let step = poll_step(cx, &mut connection, &mut front, &mut ticks, &mut life);
            session.0.stalls.since(Cause::Driving, begun);
            step
        });
        pin!(step).await
    };
    front.seen.look(&connection, &session.0.stalls);
    match ended {
        Ok(()) => {
            let is_answered = session.desk().slots.values().all(|slot| slot.is_left);
            session.end(Error::new(ErrorKind::Connection, "the connection was closed"));
            end(connection, is_answered).await;
        }
        Err(error) => {
            give_up(&connection, error.kind());
            session.end(error);
        }
    }
}

/// Ends a connection in order. How it goes is a courtesy: where a server that has answered everything would take a round
/// trip to say goodbye, too, that is not waited for.
pub(super) async fn end(connection: Connection, is_answered: bool) {
    let is_far = connection.socket().info().is_some_and(|info| info.rtt_min > NEAR_ROUND_TRIP);
    let ending = async { if is_far && is_answered { connection.leave().await } else { connection.close().await } };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, ending).await;
}

/// What is not sent yet of a connection that broke, or that nobody answers any more, shall not arrive late: what was
/// asked for is asked for again over another.
pub(super) fn give_up(connection: &Connection, why: ErrorKind) {
    if matches!(why, ErrorKind::Connection | ErrorKind::Timeout) {
        connection.socket().give_up();
    }
}

/// Drives the connection as far as it goes. Ready when the session is over.
fn poll_step(
    cx: &mut Context<'_>,
    connection: &mut Connection,
    front: &mut Front,
    ticks: &mut tokio::time::Interval,
    life: &mut Life,
) -> Poll<Result<()>> {
    let session = front.session.clone();
    {
        let mut desk = session.desk();
        if let Some(error) = &desk.ended {
            return Poll::Ready(Err(error.duplicate()));
        }
        desk.waker = Some(cx.waker().clone());
    }
    while ticks.poll_tick(cx).is_ready() {
        let desk = session.desk();
        let (is_open, is_due) = (!desk.slots.is_empty(), desk.slots.values().any(|slot| slot.is_due));
        drop(desk);
        life.tick(connection, is_open, is_due)?;
        session.lanes().look(connection, life.age());
        front.seen.look(connection, &session.0.stalls);
        // What was being received for exchanges that have ended meanwhile.
        let desk = session.desk();
        front.filling.retain(|transfer, _| desk.slots.contains_key(transfer));
    }
    let mut events = 0;
    loop {
        // A server that is faster than we are must not hold up everything else here, an interruption least of all.
        if events >= EVENTS_MAX {
            cx.waker().wake_by_ref();
            break;
        }
        events += 1;
        match connection.poll_next(cx, front) {
            Poll::Ready(event) => match event? {
                Event::Control(Kind::Working, _, payload) => {
                    if let Some(spent) = Working::from_payload(&payload)?.spent {
                        // What ends a transfer comes next: this is the time to look at the link, too.
                        front.seen.told(&spent.0, &session.0.stalls);
                        front.seen.look(connection, &session.0.stalls);
                    }
                    life.heard(payload.len());
                }
                Event::Control(kind, transfer, payload) => {
                    if take(&session, kind, transfer, &payload)? {
                        life.answered();
                    }
                }
                Event::Closed => {
                    return Poll::Ready(Err(Error::new(ErrorKind::Connection, "the server ended the connection")));
                }
            },
            Poll::Pending if front.ready.is_empty() => break,
            Poll::Pending => {}
        }
        for frame in front.ready.drain(..) {
            connection.send_frame(frame);
        }
    }
    let desk = session.desk();
    let is_done = desk.closing && desk.outgoing.is_empty() && connection.is_flushed();
    if is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
}

/// A failure that the server reports. That a person ended this command, or that it tried nothing, is not for a server to
/// say: exit codes tell it.
pub(super) fn reported(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::Usage => error.with_kind(ErrorKind::Refused),
        _ => error,
    }
}

/// Takes a control frame. The answer is whether an exchange has come to its end.
fn take(session: &Session, kind: Kind, transfer: u32, payload: &[u8]) -> Result<bool> {
    let reply = match kind {
        Kind::Goodbye => {
            let goodbye = Goodbye::from_payload(payload)?;
            let error = reported(goodbye.to_error());
            return Err(error.context("the server ended the connection"));
        }
        Kind::StoredBatch => {
            let batch = StoredBatch::from_payload(payload)?;
            let mut has_ended = false;
            for item in batch.items.0 {
                has_ended |= deliver(session, kind, item.transfer, Reply::Stored(item.stored))?;
            }
            return Ok(has_ended);
        }
        Kind::Receipt => {
            take_receipt(session, transfer, Receipt::from_payload(payload)?)?;
            return Ok(false);
        }
        Kind::PutAnswer => Reply::PutAnswer(PutAnswer::from_payload(payload)?),
        Kind::Values => Reply::Values(Values::from_payload(payload)?),
        Kind::Stored => Reply::Stored(Stored::from_payload(payload)?),
        Kind::GetAnswer => Reply::GetAnswer(GetAnswer::from_payload(payload)?),
        Kind::Finish => Reply::Finish(Finish::from_payload(payload)?),
        Kind::FinishAhead => {
            let FinishAhead { size, root } = FinishAhead::from_payload(payload)?;
            Reply::FinishAhead(Finish { size, root })
        }
        Kind::Entry => Reply::Entry(Entry::from_payload(payload)?),
        Kind::Entries => Reply::Entries(Entries::from_payload(payload)?.entries.0),
        Kind::Volume => Reply::Volume(Volume::from_payload(payload)?),
        Kind::TreeBegun => Reply::TreeBegun(TreeBegun::from_payload(payload)?),
        Kind::Invited => Reply::Invited(Invited::from_payload(payload)?),
        Kind::Invites => Reply::Invites(Invites::from_payload(payload)?),
        Kind::Done => Reply::Done(Done::from_payload(payload)?),
        Kind::Failed => {
            let failed = Failed::from_payload(payload)?;
            let error = reported(failed.to_error());
            if transfer == 0 {
                return Err(error);
            }
            // The server knows better than the code whether it may work later.
            let may_retry = failed.retry == Some(true) && !error.kind().is_retryable();
            Reply::Failed(if may_retry { error.with_kind(ErrorKind::Busy) } else { error })
        }
        _ => return Err(unexpected(kind, "only clients send it")),
    };
    deliver(session, kind, transfer, reply)
}

/// Lays a receipt beside the upload that it is for, until the answer comes.
fn take_receipt(session: &Session, transfer: u32, receipt: Receipt) -> Result<()> {
    let mut desk = session.desk();
    if transfer == 0 || transfer >= desk.next_transfer {
        return Err(unexpected(Kind::Receipt, "no exchange has this number"));
    }
    let Some(slot) = desk.slots.get_mut(&transfer) else { return Ok(()) };
    match &mut slot.receipt {
        Some((_, place @ None)) => *place = Some(receipt),
        _ => return Err(unexpected(Kind::Receipt, "none was asked for")),
    }
    Ok(())
}

/// Keeps the receipt of an upload that is stored; without it the upload counts as failed, though it is there.
fn keep_receipt(book: Option<&Book>, slot: &mut Slot, reply: Reply) -> Reply {
    // Skipped uploads, links and directories have none.
    let Reply::Stored(stored @ Stored { root: Some(_), .. }) = &reply else { return reply };
    let (Some((receipts, key)), Some((path, receipt))) = (book, slot.receipt.take()) else { return reply };
    let kept = match receipt {
        Some(receipt) => receipts.keep(*key, &path, stored, &receipt),
        None => {
            Err(Error::new(ErrorKind::Mismatch, format!("{path} is stored, but the server gave no receipt for it")))
        }
    };
    // Trying again would bring another from the same server.
    let is_final = |error: Error| match error.kind() {
        ErrorKind::Mismatch => error.with_kind(ErrorKind::Expectation),
        _ => error,
    };
    kept.map_or_else(|error| Reply::Failed(is_final(error)), |()| reply)
}

/// Gives an answer to the exchange that it belongs to, and says whether that has come to its end.
fn deliver(session: &Session, kind: Kind, transfer: u32, reply: Reply) -> Result<bool> {
    let mut desk = session.desk();
    if transfer == 0 || transfer >= desk.next_transfer {
        return Err(unexpected(kind, "no exchange has this number"));
    }
    // Ended from our side: the answer was on its way.
    let Some(slot) = desk.slots.get_mut(&transfer) else { return Ok(false) };
    match &reply {
        Reply::PutAnswer(answer) => slot.is_due = answer.held_size > 0,
        Reply::GetAnswer(answer) => {
            if answer.size > FILE_SIZE_MAX {
                return Err(Breach::Excess("bytes of a file").into());
            }
            slot.size = answer.size;
            slot.is_due = answer.unasked;
            if answer.unasked {
                if answer.size > slot.unasked_max || !slot.wanted.is_empty() {
                    return Err(Breach::Excess("unasked content").into());
                }
                if answer.size > 0 {
                    slot.wanted.push_back((0, usize::try_from(answer.size).unwrap_or(GROUP_LEN)));
                }
            } else {
                slot.unasked_max = 0;
            }
        }
        Reply::Finish(_) if !slot.wanted.is_empty() => {
            return Err(Breach::Data("a finish before all content").into());
        }
        Reply::FinishAhead(_) => {
            let is_open_download = slot.size > 0 && slot.unasked_max == 0;
            if !is_open_download || std::mem::replace(&mut slot.is_foretold, true) {
                return Err(unexpected(kind, "no open download, or told before"));
            }
        }
        _ => {}
    }
    let replies = slot.replies.clone();
    let reply = keep_receipt(session.0.book.as_ref(), slot, reply);
    let is_last = reply.is_last();
    if is_last {
        desk.slots.remove(&transfer);
    }
    drop(desk);
    give(&replies, transfer, reply)?;
    Ok(is_last)
}

const _: () = assert!(UNASKED_FILE_MAX as usize <= DATA_LEN_MAX, "a small file is one data frame");
const _: () = assert!(FRAME_HEADER_LEN == 12, "the header of unasked content is built here");

#[cfg(test)]
#[path = "../../tests/sim/line.rs"]
pub(crate) mod simulated;
