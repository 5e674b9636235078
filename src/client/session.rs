//! One connection and the exchanges that go over it.
//!
//! A [`Session`] is a handle that many tasks share; one task ([`driver`]) owns the connection. Between them stands a
//! desk: what is to be sent lies there in order, and who waits for answers is entered there. Nothing on the desk
//! grows without bound: an [`Exchange`] needs a permit of the server's `open_max`, unasked content one of its
//! `unasked_max`, and a group of content one of [`ROOM`].
//!
//! Invariants: a frame of a transfer leaves after everything that was queued before it; whoever drops an exchange
//! before its end tells the server so; a session ends once, for one reason, which everybody who waits is given.

mod driver;
mod exchange;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::available_parallelism;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

#[cfg(test)]
pub(crate) use self::driver::simulated;
pub(crate) use self::driver::{EVENTS_MAX, Leases};
pub(in crate::client) use self::driver::{end, give_up, reported};
pub(crate) use self::exchange::Exchange;
use crate::buffer::{Buffer, Pool};
use crate::client::asks::Ask;
use crate::client::lanes::Lanes;
use crate::client::receipts::Receipts;
use crate::client::shelf::Shelf;
use crate::client::stalls::{Cause, Stalls};
use crate::client::workplace::{self, Room, Workplace};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{DATA_LEN_MAX, GROUP_LEN, KIB, NEAR_ROUND_TRIP, UNASKED_FILE_MAX, WANTED_MAX};
use crate::net::Connection;
use crate::path::RemotePath;
use crate::protocol::{
    Breach, Done, Entry, FRAME_HEADER_LEN, Failed, Finish, Get, GetAnswer, Header, Invited, Invites, Kind, Message,
    Put, PutAnswer, Receipt, ServerHello, Stored, TreeBegun, Values, Volume,
};
use crate::tls::{Pin, VerifyingKey};
use crate::transfer::Way;

/// Groups of content that wait to be written: enough to keep TLS busy while the next are read. 4 MiB.
const ROOM: usize = 4;
/// Groups that all downloads of a connection may have asked for: what the server allows.
const WANTED_GROUPS_MAX: usize = WANTED_MAX as usize / GROUP_LEN;
/// Answers of one exchange that wait to be looked at. Only listings and group values come in numbers; a slot holds
/// one frame (64 KiB at most). A server that gets further ahead than this breaks the protocol.
const REPLIES_MAX: usize = 1024;

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
    /// The first group of a file of at most so many bytes may come with the answer, or does.
    first: Option<(u64, OwnedSemaphorePermit)>,
    /// For a download: it has been answered.
    is_opened: bool,
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

/// What may come of a download without being asked for.
#[derive(Default)]
struct Unasked {
    /// All of it, if it has at most so many bytes.
    max: u64,
    /// The first group of a larger one of at most so many bytes.
    first: Option<(u64, OwnedSemaphorePermit)>,
}

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
        let work = driver::drive(connection, session.clone(), pool);
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

    /// What looks at whether another thread may work on a transfer, with a connection of its own: where that would be a
    /// second one on this machine. The further connections of a long link are no threads beside the first, and do not
    /// rest.
    pub(crate) fn room(&self, workplace: Workplace, way: Way) -> Option<Room> {
        let is_near = self.round_trip() < NEAR_ROUND_TRIP;
        (workplace == Workplace::Here && is_near && self.threads() > 1).then(|| Room::new(way))
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
        let transfer = self.enter(replies, (Some(permit), None), Unasked::default(), put, frames)?;
        Ok(Exchange::new(self, transfer, receiver))
    }

    /// Enters what has left with the hello.
    fn enter_asked(&self, Ask { frame, unasked_max, first_max, put }: Ask) {
        let (replies, receiver) = mpsc::channel(REPLIES_MAX);
        // It counts like any other, where there is room for it.
        let permit = Arc::clone(&self.0.open).try_acquire_owned().ok();
        // A session that is new has not ended, and has asked for nothing else.
        let unasked = Unasked { max: unasked_max, first: self.want_first(first_max) };
        if let Ok(transfer) = self.enter(replies, (permit, None), unasked, put.as_ref(), |_| Vec::new()) {
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

    /// Leave to have the first group come with an answer.
    fn want_first(&self, max: Option<u64>) -> Option<(u64, OwnedSemaphorePermit)> {
        Some((max?, self.try_want()?))
    }

    /// Gives up the downloads that left with the hello and are nobody's yet: nobody wants them.
    pub(crate) fn give_up_gets(&self) {
        let is_get = |asked: &mut Asked| asked.frame.first() == Some(&(Kind::Get as u8));
        let given_up: Vec<Asked> = self.desk().asked.extract_if(.., is_get).collect();
        for Asked { transfer, receiver, .. } in given_up {
            drop(Exchange::new(self, transfer, receiver));
        }
    }

    /// Opens a download whose answers go where those of others go. The caller has room for them there: at most
    /// three for one that comes unasked.
    ///
    /// # Errors
    /// Why the session has ended.
    pub(crate) async fn get_into(&self, get: &Get, replies: Replies) -> Result<u32> {
        let permit = self.permit(&self.0.open, 1).await?;
        let first = self.want_first(get.first_max);
        let without = (first.is_none() && get.first_max.is_some()).then(|| Get { first_max: None, ..get.clone() });
        let get = without.as_ref().unwrap_or(get);
        let unasked = Unasked { max: get.unasked_max, first };
        self.enter(replies, (Some(permit), None), unasked, None, |transfer| vec![get.to_frame(transfer).into()])
    }

    /// Sends a request whose answer goes where those of others go.
    ///
    /// # Errors
    /// Why the session has ended.
    pub(crate) async fn request_into<M: Message>(&self, request: &M, replies: Replies) -> Result<u32> {
        let permit = self.permit(&self.0.open, 1).await?;
        self.enter(replies, (Some(permit), None), Unasked::default(), None, |transfer| {
            vec![request.to_frame(transfer).into()]
        })
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
        self.enter(replies, (Some(open), Some(unasked)), Unasked::default(), Some(&put.path), |transfer| {
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
        unasked: Unasked,
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
            unasked_max: unasked.max,
            first: unasked.first,
            is_opened: false,
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

const _: () = assert!(UNASKED_FILE_MAX as usize <= DATA_LEN_MAX, "a small file is one data frame");
const _: () = assert!(FRAME_HEADER_LEN == 12, "the header of unasked content is built here");
