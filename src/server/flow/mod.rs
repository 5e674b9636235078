//! The content that a connection moves: uploads into group buffers, downloads out of them.
//!
//! [`Flow`] is the [`Handler`](crate::net::Handler) of its connection. It leases a buffer when bytes of a group come,
//! has the group hashed and written by a disk thread when it is whole, and reads wanted ranges ahead. What a job found
//! comes back as a [`Job`] through [`Flow::poll_job`].

mod content;
mod downloads;
mod hashes;
mod lent;
mod small;
mod uploads;

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::downloads::{Slot, Wanted};
use self::hashes::Run;
pub(super) use self::hashes::{HashRun, Purpose};
use super::commit::{CommittedSmall, Incoming, Opened, SmallUpload};
use super::groups::Groups;
use super::movers::Mover;
use super::newest::{Standing, Turn};
use super::offer::Offer;
use super::quota::Seat;
use super::session::Session;
use super::share::Lease;
use super::shared::{Shared, Who};
use super::source::Source;
use super::{commit, requests};
use crate::access::Action;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHasher, RangeHash, group_offset};
use crate::path::{Component, RemotePath};
use crate::protocol::{Breach, Finish, Get, Kind, Put, Receipt, Stored};
use crate::transfer::Runs;
use crate::{limits, storage};

/// What a job of this connection found.
pub(super) enum Job {
    /// With a receipt when it has ended with that.
    Opened(u32, Result<Opened>, Option<Receipt>),
    Made(u32, Result<storage::Upload>),
    Written(u32, u64, Result<()>),
    /// The beginning of a group is written; the hasher goes on with the rest.
    Spilled(u32, u64, Result<Box<GroupHasher>>),
    Committed(u32, Result<Stored>, Option<Receipt>),
    /// Some groups of zeros are made.
    Zeroed(u32, Result<()>),
    /// Small uploads are committed; the memory that they came into is free again.
    CommittedSmall(CommittedSmall),
    Read(u64, Result<(Bytes, RangeHash)>),
    /// What is to be said ahead of a download's end, if that can be said.
    Foretold(u32, Option<Finish>),
    /// A file whose root is asked for is open.
    OpenedToHash(u32, Result<HashRun>),
    Hashed(u32, Result<HashRun>),
    Offered(u32, Result<Box<Offer>>),
    Answered(u32, Result<Vec<Bytes>>),
    /// Whether a directory was made, or there already.
    MadeDirectory(u32, RemotePath, Result<bool>),
    Listed(u32, Result<requests::ListStep>),
    /// Files that were opened, and requests that there was no room for.
    Got(Vec<(u32, Result<requests::Got>)>, Vec<(u32, Get)>),
}

/// An upload, from its description to its answer.
pub(super) struct Upload {
    pub(super) put: Put,
    pub(super) groups: Arc<Groups>,
    pub(super) phase: Phase,
    /// The content of an unasked upload, as far as it came.
    content: Vec<u8>,
    /// When it was asked for.
    turn: Turn,
    open: Option<OpenGroup>,
    seat: Seat,
    /// What its finish will say, which has not come.
    foretold: Option<Finish>,
    /// It came to more than the principal's quota has room for.
    is_over: bool,
    /// Group jobs that have not come back.
    pub(super) writing: usize,
    /// The file of an upload with a base is being made.
    making: bool,
    /// Groups of zeros that are still to be made.
    pub(super) zeros: Runs,
    /// Where a group goes on that is being thrown away, because it is there or another connection's by now.
    drained: Option<u64>,
}

#[expect(clippy::large_enum_variant, reason = "most uploads that take long are receiving")]
pub(super) enum Phase {
    /// Content comes unasked; it is committed with others.
    Unasked,
    /// The server looks at what is there.
    Opening,
    /// Content may come.
    Receiving(Incoming),
    /// A commit job has it.
    Committing,
    /// It is another connection's, which lends it for the groups that come over this one.
    Lent,
}

/// A group that is being filled. Its beginning may be written already: a buffer that is not filled soon is spilled.
struct OpenGroup {
    index: u64,
    /// Bytes of the group that are written; the buffer holds those after them.
    start: usize,
    /// Over the bytes that are written; none while a spill job has it.
    hasher: Option<Box<GroupHasher>>,
    buffer: Option<Lease>,
    filled: usize,
    leased: Instant,
}

impl Upload {
    /// One of which nothing has come.
    fn new(put: Put, groups: Arc<Groups>, phase: Phase, turn: Turn, seat: Seat) -> Upload {
        Upload {
            put,
            groups,
            phase,
            content: Vec::new(),
            turn,
            open: None,
            seat,
            foretold: None,
            is_over: false,
            writing: 0,
            making: false,
            zeros: Runs::default(),
            drained: None,
        }
    }

    /// Whether it may be answered before its finish has come.
    pub(super) fn owes_finish(&self) -> bool {
        self.foretold.is_some()
    }

    /// Whether the last group of a stream is begun and can be written now.
    fn is_last_open(&self) -> bool {
        self.groups.lock().receiver.last_open().is_some()
    }
}

/// An open download.
pub(super) struct Download {
    pub(super) path: RemotePath,
    pub(super) source: Arc<Source>,
    /// Group values are due.
    pub(super) is_hashing: bool,
    /// What its client was told ahead of its end.
    pub(super) foretold: Option<Finish>,
}

impl Download {
    /// One of which nothing was sent.
    pub(super) fn new(path: RemotePath, source: Arc<Source>) -> Download {
        Download { path, source, is_hashing: false, foretold: None }
    }
}

/// Transfers that the server has ended, for which the client may still be sending.
#[derive(Default)]
struct Ended {
    set: HashSet<u32>,
    order: VecDeque<u32>,
}

type Leasing = Pin<Box<dyn Future<Output = Lease> + Send>>;

/// Bytes of a connection's first lease.
const LEASE_LEN_FIRST: usize = 64 * limits::KIB;
/// Bytes that are read and hashed, or hashed and written, at once by the connection itself: while they, and what they
/// are copied from or to, are in the cache that its processor has to itself.
const PIECE_HERE: usize = 256 * limits::KIB;
/// Bytes of a lease after one was not filled in time.
const LEASE_LEN_LEAST: usize = 16 * limits::KIB;

/// The content of one connection.
pub(super) struct Flow {
    pub(super) shared: Arc<Shared>,
    pub(super) who: Arc<Who>,
    /// What it shares with the other connections of its session.
    pub(super) session: Arc<Session>,
    /// The number of this connection.
    id: u64,
    /// Whether it has joined the session of another.
    is_lane: bool,
    /// On a lane: groups that its peer need not send again, and has not been told so.
    untold: Vec<(u32, u64)>,
    pub(super) uploads: HashMap<u32, Upload>,
    pub(super) downloads: HashMap<u32, Download>,
    ended: Ended,
    pub(super) jobs: JoinSet<Job>,
    /// A lease that is waited for: for which transfer, how long.
    leasing: Option<(u32, usize, Leasing)>,
    /// Bytes of the next lease: it grows while peers fill their leases, and shrinks when one is spilled.
    lease_len: usize,
    /// Some group may hold a buffer.
    holds_buffers: bool,
    /// Groups that are begun and not whole, those of unasked uploads not counted.
    begun: usize,
    writing: usize,
    /// It moves large files, or did since it was last without a transfer, or a lane was last looked at.
    mover: Option<Mover>,
    /// The client is on this machine.
    is_client_near: bool,
    unasked: u64,
    standing: Standing,
    small: Vec<SmallUpload>,
    /// Batches of small uploads that are being committed.
    committing_small: usize,
    /// The directories that each of them fills.
    filling: Vec<Weak<Vec<Vec<Component>>>>,
    /// Held by the thread that commits one which is counted.
    small_turn: Arc<Mutex<()>>,
    /// What was made for them.
    made: Arc<storage::Made>,
    /// Whether what is stored here lies in memory.
    is_in_memory: bool,
    /// Memory of small uploads that are done, for those that come.
    spare: Vec<Vec<u8>>,
    gets: VecDeque<(u32, Get)>,
    getting: bool,
    /// Files whose next step of hashing waits for its turn; each belongs to a transfer or request that is open.
    hash_runs: VecDeque<(u32, Run)>,
    hashing: usize,
    wants: VecDeque<Wanted>,
    wanted: u64,
    /// Jobs that nobody has asked for: see [`Flow::foretell`].
    foretelling: usize,
    slots: VecDeque<Slot>,
    next_slot: u64,
    /// How many slots there may be: more while the peer takes what was read, none after it has not.
    read_ahead_max: usize,
    /// When the peer last took something, or could begin to.
    taken: Instant,
    /// Told when the latest slot has its buffer.
    latest_lease: Option<oneshot::Receiver<()>>,
}

impl Flow {
    /// The content of the connection with this number, which is the first of its session or a lane of it.
    pub(super) fn new(shared: Arc<Shared>, who: Arc<Who>, session: Arc<Session>, id: u64, is_lane: bool) -> Flow {
        Flow {
            standing: shared.newest.standing(id),
            is_in_memory: shared.whole_store().is_in_memory(),
            shared,
            who,
            session,
            id,
            is_lane,
            untold: Vec::new(),
            uploads: HashMap::new(),
            downloads: HashMap::new(),
            ended: Ended::default(),
            jobs: JoinSet::new(),
            leasing: None,
            lease_len: LEASE_LEN_FIRST,
            holds_buffers: false,
            begun: 0,
            writing: 0,
            mover: None,
            is_client_near: false,
            unasked: 0,
            small: Vec::new(),
            committing_small: 0,
            filling: Vec::new(),
            small_turn: Arc::default(),
            made: Arc::default(),
            spare: Vec::new(),
            gets: VecDeque::new(),
            getting: false,
            hash_runs: VecDeque::new(),
            hashing: 0,
            wants: VecDeque::new(),
            wanted: 0,
            foretelling: 0,
            slots: VecDeque::new(),
            next_slot: 0,
            read_ahead_max: 1,
            taken: Instant::now(),
            latest_lease: None,
        }
    }

    /// The client is on the same machine, and needs processors of it.
    pub(super) fn shares_machine(&mut self) {
        self.is_client_near = true;
    }

    /// Whether a job runs, so that the server owes something.
    pub(super) fn is_working(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Whether it holds the peer up: a job runs; or what comes waits for memory, and not for the peer to read its
    /// answers, of which so many bytes are queued.
    pub(super) fn holds_up(&self, queued: usize) -> bool {
        self.is_working() || self.leasing.is_some() && queued <= limits::CONTROL_QUEUE_MAX
    }

    /// Whether nothing is open and nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.is_idle_but_for(0)
    }

    /// Whether nothing is open, and nothing runs but so many jobs.
    pub(super) fn is_idle_but_for(&self, jobs: usize) -> bool {
        let running = self.jobs.len() - self.foretelling;
        self.uploads.is_empty() && self.downloads.is_empty() && self.gets.is_empty() && running <= jobs
    }

    /// Whether something that is wanted is not read yet.
    pub(super) fn is_reading(&self) -> bool {
        !self.wants.is_empty() || self.slots.iter().any(|slot| slot.content.is_none())
    }

    /// Whether a group is being filled, or one that was read waits to be taken.
    pub(super) fn holds_buffers(&self) -> bool {
        self.holds_buffers || self.slots.iter().any(|slot| slot.content.is_some())
    }

    /// The next job that has come back; pending for ever while none runs.
    pub(super) fn poll_job(&mut self, cx: &mut Context<'_>) -> Poll<Result<Job>> {
        match ready!(self.jobs.poll_join_next(cx)) {
            Some(Ok(job)) => Poll::Ready(Ok(job)),
            Some(Err(error)) => {
                Poll::Ready(Err(Error::new(ErrorKind::Internal, "a job of this connection failed").with_source(error)))
            }
            None => Poll::Pending,
        }
    }

    /// Runs something on a disk thread; it comes back through [`Flow::poll_job`].
    pub(super) fn spawn(&mut self, job: impl FnOnce(&Shared, &Who) -> Job + Send + 'static) {
        let (shared, who) = (Arc::clone(&self.shared), Arc::clone(&self.who));
        let job = move || job(&shared, &who);
        #[cfg(test)]
        if storage::simulated::is_on() {
            self.jobs.spawn(storage::simulated::on_disk(job));
            return;
        }
        self.jobs.spawn_blocking(job);
    }

    /// As [`Flow::spawn`], but it runs to its end though the connection be gone.
    fn spawn_commit(&mut self, job: impl FnOnce(&Shared, &Who) -> Job + Send + 'static) {
        let (shared, who) = (Arc::clone(&self.shared), Arc::clone(&self.who));
        let tasks = shared.tasks.clone();
        self.jobs.spawn(on_disk(&tasks, move || job(&shared, &who)));
    }

    /// Looks at what runs by the rules that hold now, and tells what must be ended, and why.
    pub(super) fn review(&self) -> Result<Vec<(u32, Error)>> {
        let pass = self.shared.pass(&self.who)?;
        let uploads = self.uploads.iter().filter_map(|(&transfer, upload)| match &upload.phase {
            Phase::Receiving(Incoming { if_exists, base, is_own, .. }) => {
                let still = commit::check_still(&pass, &upload.put, *if_exists);
                Some((transfer, still.and_then(|()| commit::check_base(&pass, &upload.put, base.is_some() && !is_own))))
            }
            // These are looked at when they begin, and end by themselves.
            Phase::Unasked | Phase::Opening | Phase::Committing | Phase::Lent => None,
        });
        let downloads = self.downloads.iter();
        let downloads = downloads.map(|(&transfer, download)| (transfer, pass.decide(Action::Read(&download.path))));
        Ok(uploads.chain(downloads).filter_map(|(transfer, decided)| Some((transfer, decided.err()?))).collect())
    }

    /// Whether what waits for no disk is done by this connection's thread, because disk threads have no processor to
    /// themselves.
    fn works_here(&mut self, each: usize) -> bool {
        #[cfg(test)]
        if storage::simulated::is_on() {
            return false;
        }
        let mover = self.mover.get_or_insert_with(|| self.shared.movers.enter());
        mover.is_one_of_many(each)
    }

    /// As [`Flow::works_here`], for what comes. A client that reads for us on this machine keeps a processor busy; what
    /// goes out is fetched ahead of such a client by disk threads, as it waits for nothing else. Not on a lane, where it
    /// may be the last that lets go of an upload.
    fn writes_here(&mut self) -> bool {
        !self.is_lane && self.works_here(if self.is_client_near { 2 } else { 1 })
    }

    /// Forgets a transfer, whatever it is. Content that still comes for it is thrown away.
    pub(super) fn end(&mut self, transfer: u32) {
        self.end_hash(transfer);
        // Nobody would take it, and others wait.
        self.leasing.take_if(|(waiting, ..)| *waiting == transfer);
        self.session.end(transfer);
        if let Some(upload) = self.uploads.remove(&transfer) {
            self.begun -= usize::from(upload.open.is_some());
            if matches!(upload.phase, Phase::Unasked) {
                self.lessen_unasked(commit::unasked_len(&upload.put, upload.put.size.unwrap_or(0)));
            }
            let is_finished =
                upload.groups.lock().receiver.finish().is_some() || matches!(upload.phase, Phase::Committing);
            if !is_finished || upload.owes_finish() {
                self.ended.insert(transfer);
            }
            let id = self.id;
            elsewhere(&self.shared, move || {
                let groups = Arc::clone(&upload.groups);
                rest(upload, id);
                // Lanes let go of it later, and not on a disk thread.
                groups.end();
            });
        }
        if self.downloads.contains_key(&transfer) {
            self.ended.insert(transfer);
            self.end_reads(transfer);
        }
        if self.uploads.is_empty() && self.downloads.is_empty() {
            self.mover = None;
        }
    }

    /// What has come of an upload is of no use to anybody.
    pub(super) fn discard(&mut self, transfer: u32) {
        if let Some(Upload { phase: Phase::Receiving(Incoming { file: Some(file), .. }), .. }) =
            self.uploads.get(&transfer)
        {
            let file = Arc::clone(file);
            elsewhere(&self.shared, move || file.discard());
        }
    }

    fn slots_and_wants(&self, transfer: u32) -> u64 {
        let wants: usize = self.wants.iter().filter(|want| want.transfer == transfer).map(|want| want.len).sum();
        let slots: usize = self.slots.iter().filter(|slot| slot.transfer == transfer).map(|slot| slot.rest).sum();
        (wants + slots) as u64
    }

    /// An upload that was refused before it began: content that comes for it is thrown away.
    pub(super) fn throw_away(&mut self, transfer: u32) {
        self.ended.insert(transfer);
    }

    /// Whether the client may still be sending for a transfer that the server has ended.
    pub(super) fn has_ended(&self, transfer: u32) -> bool {
        // A lane does not learn which ones: all that have been and are not lent any more.
        if self.is_lane { self.session.has_been(transfer) } else { self.ended.contains(transfer) }
    }

    /// As [`Flow::has_ended`], for the last time.
    pub(super) fn forget_ended(&mut self, transfer: u32) -> bool {
        self.ended.forget(transfer)
    }

    /// Whether this number is in use.
    pub(super) fn is_open(&self, transfer: u32) -> bool {
        self.uploads.contains_key(&transfer) || self.downloads.contains_key(&transfer)
    }

    /// Transfers and requests that are open.
    pub(super) fn open_count(&self) -> usize {
        self.uploads.len() + self.downloads.len() + self.small.len() + self.jobs.len() - self.foretelling
    }
}

impl Ended {
    fn insert(&mut self, transfer: u32) {
        if self.set.insert(transfer) {
            self.order.push_back(transfer);
        }
        if self.order.len() > 2 * limits::OPEN_TRANSFERS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    fn contains(&self, transfer: u32) -> bool {
        self.set.contains(&transfer)
    }

    fn forget(&mut self, transfer: u32) -> bool {
        self.set.remove(&transfer)
    }
}

/// What was read for the holder of an invite and did not go out does not count.
fn take_back(who: &Who, slot: &Slot) {
    if let (Some(attendance), Some(content)) = (who.attendance(), &slot.content) {
        attendance.take_back(content.len() as u64);
    }
}

fn unknown(kind: Kind) -> Error {
    Breach::Unexpected { kind, why: "no such transfer is open" }.into()
}

impl Drop for Flow {
    /// On a disk thread, for what is open is laid to rest.
    fn drop(&mut self) {
        let id = self.id;
        self.uploads.drain().for_each(|(_, upload)| rest(upload, id));
    }
}

/// Writes what has come of the group that this connection fills, and lets go of it. With the last connection that
/// does, what is held is recorded. Blocks.
fn rest(upload: Upload, connection: u64) {
    if let Some(open) = &upload.open
        && let (Some(buffer), Some(_)) = (&open.buffer, &open.hasher)
        && let Some(content) = buffer.get(..open.filled).filter(|content| !content.is_empty())
        && let Some(file) = upload.groups.begin_write(connection, open.index)
    {
        // What cannot be written is lost with the connection, which is what the client thinks.
        if file.write_at(group_offset(open.index) + open.start as u64, content).is_ok() {
            file.holds_prefix(open.index, open.start + open.filled, open.filled);
        }
        drop(file);
        upload.groups.written(open.index, Ok(None));
    }
    upload.groups.release(connection);
}

/// Does something on a disk thread, to its end though nobody wait for it. A panic there is one here too, and ends the
/// connection with a report.
pub(super) fn on_disk<T: Send + 'static>(
    tasks: &TaskTracker,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    #[cfg(test)]
    let work = if storage::simulated::is_on() {
        tasks.spawn(storage::simulated::on_disk(work))
    } else {
        tasks.spawn_blocking(work)
    };
    #[cfg(not(test))]
    let work = tasks.spawn_blocking(work);
    async move { work.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) }
}

/// Does something on a disk thread that nobody waits for.
fn elsewhere(shared: &Shared, work: impl FnOnce() + Send + 'static) {
    #[cfg(test)]
    if storage::simulated::is_on() {
        return storage::simulated::start_alone(work);
    }
    shared.tasks.spawn_blocking(work);
}

/// Drops what closes files, removes staging or lays uploads to rest on a disk thread, of which it leaves most to others.
pub(super) fn drop_elsewhere(shared: &Shared, value: impl Send + 'static) {
    #[cfg(test)]
    if storage::simulated::is_on() {
        return storage::simulated::start_alone(move || drop(value));
    }
    let turns = Arc::clone(&shared.drops);
    shared.tasks.spawn(async move {
        // It is never closed.
        let _turn = turns.acquire_owned().await;
        // Deliberate loss: a panic there has said what it had to say, and there is nobody to hear it.
        let _ = tokio::task::spawn_blocking(move || drop(value)).await;
    });
}
