//! The content that a connection moves: uploads into group buffers, downloads out of them.
//!
//! [`Flow`] is the [`Handler`] of its connection. It leases a buffer when bytes of a group come, has the group hashed
//! and written by a disk thread when it is whole, and reads wanted ranges ahead. What a job found comes back as a
//! [`Job`] through [`Flow::poll_job`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::audited;
use super::commit::{self, CommittedSmall, Incoming, Opened, SmallUpload};
use super::groups::{Groups, Place};
use super::held::Sink;
use super::movers::Mover;
use super::newest::{Standing, Turn};
use super::offer::Offer;
use super::quota::Seat;
use super::requests;
use super::session::{Session, Source, Transfer};
use super::share::Lease;
use super::shared::{Shared, Who};
use super::spent::On;
use crate::access::Action;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, GroupHasher, GroupValue, Root, Tree, group_count, group_len, group_offset};
use crate::limits::{self, BUFFERS_PER_CONNECTION, DATA_LEN_MAX, GROUP_LEN};
use crate::net::Handler;
use crate::path::RemotePath;
use crate::protocol::{Breach, Bytes16, Finish, Get, IfExists, Kind, Put, Receipt, Stored};
use crate::storage::{self, StoredFile};
use crate::transfer::Runs;
use crate::xattrs::Xattrs;

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
    Read(u64, Result<(Bytes, GroupHash)>),
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

/// Bytes of the attributes that come with a description.
fn xattrs_len(put: &Put) -> usize {
    put.xattrs.as_ref().map_or(0, Xattrs::len)
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
}

/// The hashing of a stored file in steps, so that a disk thread is not held for minutes.
pub(super) struct HashRun {
    pub(super) path: RemotePath,
    pub(super) file: Arc<StoredFile>,
    pub(super) tree: Tree,
    /// The first group of the latest step.
    pub(super) from: u64,
    /// The first group that is not hashed.
    pub(super) next: u64,
    pub(super) purpose: Purpose,
}

impl HashRun {
    pub(super) fn new(path: RemotePath, file: Arc<StoredFile>, purpose: Purpose) -> HashRun {
        HashRun { path, file, tree: Tree::new(), from: 0, next: 0, purpose }
    }

    /// The group behind the last one to hash.
    pub(super) fn end(&self) -> u64 {
        match self.purpose {
            Purpose::Values(end) => end,
            Purpose::Root(_) => group_count(self.file.size()),
        }
    }
}

/// Why a stored file is hashed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The client asked for the root, and believes the recorded one or (`true`) does not.
    Root(bool),
    /// The client asked for group values up to here.
    Values(u64),
}

/// Something that is read and hashed in steps.
enum Run {
    Stored(HashRun),
    Offer(Box<Offer>),
}

struct Slot {
    id: u64,
    transfer: u32,
    offset: u64,
    /// Bytes that are still to be sent.
    rest: usize,
    content: Option<Bytes>,
    /// The hash, when the range is a whole group.
    hash: Option<(u64, GroupHash)>,
}

/// Transfers that the server has ended, for which the client may still be sending.
#[derive(Default)]
struct Ended {
    set: HashSet<u32>,
    order: VecDeque<u32>,
}

type Leasing = Pin<Box<dyn Future<Output = Lease> + Send>>;

/// Files of a connection that are hashed at once; the others wait, so that they do not hold all disk threads.
const HASHES_MAX: usize = 4;
/// Bytes of a connection's first lease.
const LEASE_LEN_FIRST: usize = 64 * limits::KIB;
/// Ranges of a connection that are read and not yet taken, once its peer has shown that it takes them.
const READ_AHEAD_MAX: usize = BUFFERS_PER_CONNECTION / 2;
/// The same where they are read by the connection itself: TLS and the socket hold enough to go on with meanwhile.
const READ_AHEAD_HERE: usize = 1;
/// Bytes that are read and hashed, or hashed and written, at once by the connection itself: while they, and what they
/// are copied from or to, are in the cache that its processor has to itself.
const PIECE_HERE: usize = 256 * limits::KIB;
/// Small uploads that are committed at once where nothing waits for a disk: a quarter of what a client has under way
/// when they are of 10 KiB.
const SMALL_BATCH_IN_MEMORY: usize = 96;
/// Pieces of memory of a connection that wait for the next small uploads: as many as are committed at once in memory.
const SPARE_MAX: usize = SMALL_BATCH_IN_MEMORY;
/// Bytes of one of them; what was larger is given back. Together 1.5 MiB, while small uploads come.
const SPARE_LEN_MAX: usize = 16 * limits::KIB;
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
    /// It moves large files, or did since it was last without a transfer.
    mover: Option<Mover>,
    /// The client is on this machine.
    is_client_near: bool,
    unasked: u64,
    standing: Standing,
    small: Vec<SmallUpload>,
    /// Batches of small uploads that are being committed, or will be as soon as the one before them is.
    committing_small: usize,
    /// Held by the thread that commits one.
    small_turn: Arc<Mutex<()>>,
    /// Whether what is stored here lies in memory.
    is_in_memory: bool,
    /// Memory of small uploads that are done, for those that come.
    spare: Vec<Vec<u8>>,
    gets: VecDeque<(u32, Get)>,
    getting: bool,
    /// Files whose next step of hashing waits for its turn; each belongs to a transfer or request that is open.
    hash_runs: VecDeque<(u32, Run)>,
    hashing: usize,
    wants: VecDeque<(u32, u64, usize)>,
    wanted: u64,
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
            small_turn: Arc::default(),
            spare: Vec::new(),
            gets: VecDeque::new(),
            getting: false,
            hash_runs: VecDeque::new(),
            hashing: 0,
            wants: VecDeque::new(),
            wanted: 0,
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

    /// Whether nothing is open and nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.is_idle_but_for(0)
    }

    /// Whether nothing is open, and nothing runs but so many jobs.
    pub(super) fn is_idle_but_for(&self, jobs: usize) -> bool {
        self.uploads.is_empty() && self.downloads.is_empty() && self.gets.is_empty() && self.jobs.len() <= jobs
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

    // ---- uploads -------------------------------------------------------------------------------------------

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

    /// Takes a description.
    pub(super) fn put(&mut self, transfer: u32, put: Put, seat: Seat) -> Result<()> {
        let mut phase = Phase::Opening;
        let turn = self.standing.turn(&put.upload_id, put.unasked);
        if put.unasked {
            let size = put.size.filter(|&size| size <= limits::UNASKED_FILE_MAX);
            let size = size.ok_or(Breach::Excess("unasked content for one file"))?;
            self.unasked += commit::unasked_len(&put, size);
            if self.unasked > limits::UNASKED_CONNECTION_MAX {
                return Err(Breach::Excess("unasked content").into());
            }
            phase = Phase::Unasked;
        } else {
            self.check_xattrs(&put)?;
            let put = put.clone();
            self.spawn(move |shared, who| {
                let (opened, receipt) = audited::open(shared, who, &put, turn);
                Job::Opened(transfer, opened, receipt)
            });
        }
        let upload = Upload {
            groups: Groups::new(put.size, self.id),
            put,
            phase,
            content: Vec::new(),
            turn,
            open: None,
            seat,
            is_over: false,
            writing: 0,
            making: false,
            zeros: Runs::default(),
            drained: None,
        };
        self.uploads.insert(transfer, upload);
        Ok(())
    }

    /// Refuses attributes that would be too many over all uploads that are open here.
    fn check_xattrs(&self, put: &Put) -> Result<()> {
        let len = xattrs_len(put);
        let open = |upload: &Upload| if upload.put.unasked { 0 } else { xattrs_len(&upload.put) };
        if len > 0 && self.uploads.values().map(open).sum::<usize>() + len > limits::XATTRS_CONNECTION_MAX {
            return Err(Breach::Excess("extended attributes").into());
        }
        Ok(())
    }

    /// Takes a finish.
    pub(super) fn finish(&mut self, transfer: u32, finish: Finish) -> Result<()> {
        let Some(upload) = self.uploads.get_mut(&transfer) else {
            return self.ended.forget(transfer).then_some(()).ok_or_else(|| unknown(Kind::Finish));
        };
        match &upload.phase {
            Phase::Unasked | Phase::Receiving(_) => {}
            Phase::Opening | Phase::Committing | Phase::Lent => {
                return Err(Breach::Unexpected { kind: Kind::Finish, why: "no content was asked for" }.into());
            }
        }
        {
            let mut groups = upload.groups.lock();
            if groups.has_failed() {
                // A disk thread knows already; its word ends the transfer. What came since then was not counted.
                return Ok(());
            }
            groups.receiver.set_finish(finish.clone())?;
        }
        if matches!(upload.phase, Phase::Unasked) {
            if upload.groups.lock().receiver.received() != finish.size {
                return Err(Breach::Unexpected { kind: Kind::Finish, why: "content is missing" }.into());
            }
            let Some(upload) = self.uploads.remove(&transfer) else { return Ok(()) };
            let Upload { put, content, seat, turn, .. } = upload;
            // While it is in the cache of this processor, and before its turn comes to be committed.
            let root = self.session.spent.during(On::Processor, || Root::of(&content));
            self.small.push(SmallUpload { transfer, put, content, root, finish, seat, turn });
            self.commit_small();
            return Ok(());
        }
        if upload.is_last_open()
            && let Some(open) = upload.open.take_if(|open| open.hasher.is_some())
        {
            self.begun -= 1;
            self.write(transfer, open);
        }
        self.commit_if_ready(transfer)
    }

    /// Commits what small uploads have come, as soon as the batch before them is done. In memory the next batch waits at
    /// the disk threads: there, one is done sooner than this connection hears of it.
    fn commit_small(&mut self) {
        let count_max = if self.is_in_memory { 2 } else { 1 };
        while self.committing_small < count_max && !self.small.is_empty() {
            self.committing_small += 1;
            let batch = self.next_small();
            let (spent, turn) = (Arc::clone(&self.session.spent), Arc::clone(&self.small_turn));
            self.spawn_commit(move |shared, who| {
                // The one before has a thread already. It changes nothing here, so a panic in it is of no concern.
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                Job::CommittedSmall(spent.during(On::Disk, || audited::commit_small(shared, who, batch)))
            });
        }
    }

    /// The small uploads that are committed next: all that have come where syncing them is what takes time, and few
    /// enough where nothing does that their client hears of them, and sends more, while the others are committed.
    fn next_small(&mut self) -> Vec<SmallUpload> {
        let count = if self.is_in_memory { self.small.len().min(SMALL_BATCH_IN_MEMORY) } else { self.small.len() };
        if count == self.small.len() {
            return std::mem::take(&mut self.small);
        }
        self.small.drain(..count).collect()
    }

    /// A batch is done, and some of its memory is kept for what comes next, if something does.
    pub(super) fn committed_small(&mut self, spare: Vec<Vec<u8>>) {
        self.committing_small -= 1;
        if self.unasked > 0 {
            let fits = spare.into_iter().filter(|memory| (1..=SPARE_LEN_MAX).contains(&memory.capacity()));
            self.spare.extend(fits.take(SPARE_MAX.saturating_sub(self.spare.len())));
        }
        self.commit_small();
    }

    /// An unasked upload is answered: its bytes count no more. Its client may have been asked to say it again.
    pub(super) fn answered_unasked(&mut self, size: u64, asked: Option<(Bytes16, u64)>) {
        self.lessen_unasked(size);
        if let Some((upload, moment)) = asked {
            self.standing.ask(upload, moment);
        }
    }

    fn lessen_unasked(&mut self, len: u64) {
        self.unasked = self.unasked.saturating_sub(len);
        if self.unasked == 0 {
            self.spare = Vec::new();
        }
    }

    /// The server has looked at what is there.
    pub(super) fn opened(&mut self, transfer: u32, mut incoming: Incoming) {
        if let Some(upload) = self.uploads.get_mut(&transfer) {
            if let Some(file) = &incoming.file {
                upload.groups.set_file(Arc::clone(file));
            }
            if !incoming.compare_only {
                self.session.lend(transfer, Transfer::Upload(Arc::clone(&upload.groups)));
            }
            if let Some(base) = &incoming.base {
                upload.groups.lock().receiver.set_base(base.size());
            }
            let offer = incoming.offer.take();
            upload.phase = Phase::Receiving(incoming);
            if let Some(offer) = offer {
                upload.groups.claim(offer.ranges().to_vec());
                self.hash_runs.push_back((transfer, Run::Offer(offer)));
            }
        } else {
            // The client gave up meanwhile: dropping it removes what was staged.
            drop_elsewhere(&self.shared, incoming);
        }
    }

    /// Some more of what is there was hashed. Tells the values that are to be told.
    pub(super) fn offered(&mut self, transfer: u32, mut offer: Box<Offer>) -> Vec<(u64, GroupValue)> {
        let Some(upload) = self.uploads.get_mut(&transfer) else {
            drop_elsewhere(&self.shared, offer);
            return Vec::new();
        };
        let found = std::mem::take(&mut offer.found);
        let values = found.iter().map(|(group, found)| (*group, found.value())).collect();
        let next = (!offer.is_over()).then_some(offer.next);
        let root = offer.base_root();
        if next.is_some() {
            self.hash_runs.push_back((transfer, Run::Offer(offer)));
        } else {
            if let Phase::Receiving(incoming) = &mut upload.phase {
                incoming.base_root = root;
            }
            // Not elsewhere: the commit needs the file for itself. Nothing of this is the last handle.
            drop(offer);
        }
        upload.groups.told(found, next);
        values
    }

    /// Has the file of an upload with a base made, once its first content comes.
    pub(super) fn make_file(&mut self, transfer: u32) {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return };
        if !std::mem::replace(&mut upload.making, true) {
            let Phase::Receiving(Incoming { if_exists, .. }) = &upload.phase else { return };
            let (put, begun) = (upload.put.clone(), *if_exists);
            self.spawn(move |shared, who| Job::Made(transfer, commit::make_file(shared, who, &put, begun)));
        }
    }

    /// The file of an upload with a base is made: its content can be taken.
    pub(super) fn made(&mut self, transfer: u32, file: storage::Upload) {
        if let Some(Upload { phase: Phase::Receiving(incoming), making, groups, .. }) = self.uploads.get_mut(&transfer)
            && let Some(right) = incoming.right.take()
        {
            let file = Arc::new(right.with(file));
            groups.set_file(Arc::clone(&file));
            incoming.file = Some(file);
            *making = false;
        } else {
            drop_elsewhere(&self.shared, file);
        }
    }

    /// Has the rest of a whole group hashed and written.
    fn write(&mut self, transfer: u32, open: OpenGroup) {
        let OpenGroup { index, start, hasher, buffer, filled, .. } = open;
        let Some(mut hasher) = hasher else { return };
        #[cfg(test)]
        let is_lane = self.is_lane;
        let spent = Arc::clone(&self.session.spent);
        self.write_job(transfer, index, move |groups, file| {
            let content = buffer.as_deref().and_then(|buffer| buffer.get(..filled)).unwrap_or(&[]);
            #[cfg(test)]
            let content = if is_lane && super::sim::planted(super::sim::Planted::LaneUnwritten) {
                hasher.update(content);
                &[][..]
            } else {
                content
            };
            let written = spent.write_group(&file, &mut hasher, start, content).map(|()| {
                let hash = hasher.finish();
                file.holds(index, &hash, content.len());
                hash
            });
            // Whoever commits must find nobody else holding the file.
            drop(file);
            groups.written(index, written.as_ref().map(|hash| Some(*hash)));
            Job::Written(transfer, index, written.map(drop))
        });
    }

    /// Has what has come of a group hashed and written, and gives its buffer back.
    fn spill(&mut self, transfer: u32) {
        let Some(open) = self.uploads.get_mut(&transfer).and_then(|upload| upload.open.as_mut()) else { return };
        let (Some(buffer), Some(mut hasher)) = (open.buffer.take(), open.hasher.take()) else { return };
        let (index, start, filled) = (open.index, open.start, std::mem::take(&mut open.filled));
        open.start += filled;
        let spent = Arc::clone(&self.session.spent);
        let has_begun = self.write_job(transfer, index, move |groups, file| {
            let written = spent.write_group(&file, &mut hasher, start, &buffer[..filled]);
            if written.is_ok() {
                file.holds_prefix(index, start + filled, filled);
            }
            drop(file);
            groups.written(index, written.as_ref().map(|()| None));
            Job::Spilled(transfer, index, written.map(|()| hasher))
        });
        if !has_begun {
            self.let_go(transfer);
        }
    }

    /// Hashes and writes what has come of a group, and goes on filling its buffer from the start.
    fn write_piece(&mut self, transfer: u32) {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return };
        let Some(open) = upload.open.as_mut() else { return };
        let (Some(buffer), Some(hasher)) = (&open.buffer, open.hasher.as_deref_mut()) else { return };
        let Some(content) = buffer.get(..open.filled) else { return };
        let Some(file) = upload.groups.begin_write(self.id, open.index) else { return self.let_go(transfer) };
        let (index, end) = (open.index, open.start + open.filled);
        let written = self.session.spent.write_group(&file, hasher, open.start, content);
        if written.is_ok() {
            file.holds_prefix(index, end, content.len());
        }
        drop(file);
        upload.groups.written(index, written.as_ref().map(|()| None));
        (open.start, open.filled) = (end, 0);
        if let Err(error) = written {
            // As if a disk thread had told it.
            self.writing += 1;
            upload.writing += 1;
            self.jobs.spawn(async move { Job::Spilled(transfer, index, Err(error)) });
        }
    }

    /// Runs a job that writes into a group, if that group is still this connection's.
    fn write_job(
        &mut self,
        transfer: u32,
        group: u64,
        job: impl FnOnce(&Groups, Arc<Sink>) -> Job + Send + 'static,
    ) -> bool {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return false };
        let Some(file) = upload.groups.begin_write(self.id, group) else { return false };
        let (groups, session) = (Arc::clone(&upload.groups), Arc::clone(&self.session));
        self.writing += 1;
        upload.writing += 1;
        let is_here = file.is_in_memory() && self.writes_here();
        let write = move || {
            let done = job(&groups, file);
            if groups.failure().is_some() || groups.lock().receiver.finish().is_some() {
                session.news.notify_one();
            }
            done
        };
        if is_here {
            let done = write();
            self.jobs.spawn(async move { done });
        } else {
            // To its end though the connection be gone: what came is there, and others may rely on that.
            self.spawn_commit(move |_, _| write());
        }
        true
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

    /// Forgets what has come of a group that is another connection's by now, or of no use.
    fn let_go(&mut self, transfer: u32) {
        if let Some(upload) = self.uploads.get_mut(&transfer)
            && upload.open.take().is_some()
        {
            self.begun -= 1;
        }
    }

    /// The beginning of a group is written.
    pub(super) fn spilled(
        &mut self,
        transfer: u32,
        group: u64,
        result: Result<Box<GroupHasher>>,
    ) -> Result<(), (u32, Error)> {
        self.writing -= 1;
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        upload.writing -= 1;
        let hasher = result.map_err(|error| (transfer, error))?;
        if let Some(open) = upload.open.as_mut().filter(|open| open.index == group && open.hasher.is_none()) {
            open.hasher = Some(hasher);
        }
        if upload.is_last_open()
            && let Some(open) = upload.open.take()
        {
            self.begun -= 1;
            self.write(transfer, open);
        }
        self.forget_lent(transfer);
        // A finish may have come too early, which nothing else would notice.
        self.commit_if_ready(transfer).map_err(|error| (transfer, error))
    }

    /// Gives back the buffers that were not filled in time: their beginnings go to their places.
    pub(super) fn spill_slow(&mut self) {
        let is_slow = |upload: &Upload| {
            upload.open.as_ref().is_some_and(|open| open.filled > 0 && open.leased.elapsed() >= limits::LEASE_TIMEOUT)
        };
        let slow: Vec<u32> = self.uploads.iter().filter(|(_, upload)| is_slow(upload)).map(|(id, _)| *id).collect();
        self.holds_buffers = self.uploads.values().any(|upload| upload.open.is_some());
        for transfer in slow {
            self.lease_len = LEASE_LEN_LEAST;
            self.spill(transfer);
        }
        self.forget_over();
    }

    /// A group is written, and recorded by who wrote it.
    pub(super) fn written(&mut self, transfer: u32, group: u64, result: Result<()>) -> Result<(), (u32, Error)> {
        self.writing -= 1;
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        upload.writing -= 1;
        result.map_err(|error| (transfer, error))?;
        self.tell_written(transfer, group);
        self.forget_lent(transfer);
        self.commit_if_ready(transfer).map_err(|error| (transfer, error))
    }

    /// Uploads that are finished, and may have waited for what lanes have brought.
    pub(super) fn finished(&self) -> Vec<u32> {
        let is_finished = |upload: &Upload| {
            matches!(upload.phase, Phase::Receiving(_)) && upload.groups.lock().receiver.finish().is_some()
        };
        self.uploads.iter().filter(|(_, upload)| is_finished(upload)).map(|(&transfer, _)| transfer).collect()
    }

    /// All values may be told now, which a finish may have waited for.
    pub(super) fn commit_if_told(&mut self, transfer: u32) -> Result<()> {
        self.commit_if_ready(transfer)
    }

    pub(super) fn commit_if_ready(&mut self, transfer: u32) -> Result<()> {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        if upload.writing > 0
            || !matches!(upload.phase, Phase::Receiving(_))
            || upload.groups.lock().receiver.finish().is_none()
        {
            return Ok(());
        }
        let (is_offering, is_written) = {
            let groups = upload.groups.lock();
            (groups.is_offering(), groups.is_written())
        };
        if is_offering || !is_written {
            // The client was faster with its copy than we are with ours; or what a lane has brought is being written.
            return Ok(());
        }
        if !upload.zeros.is_empty() {
            self.zero_more(transfer);
            return Ok(());
        }
        if !upload.groups.lock().receiver.is_ready() {
            return Err(Breach::Unexpected { kind: Kind::Finish, why: "content is missing" }.into());
        }
        let Phase::Receiving(incoming) = std::mem::replace(&mut upload.phase, Phase::Committing) else {
            return Ok(());
        };
        let receiver = upload.groups.take_receiver();
        self.session.end(transfer);
        let put = upload.put.clone();
        let spent = Arc::clone(&self.session.spent);
        self.spawn_commit(move |shared, who| {
            let (stored, receipt) = spent.during(On::Disk, || audited::commit(shared, who, &put, incoming, receiver));
            Job::Committed(transfer, stored, receipt)
        });
        Ok(())
    }

    // ---- what is lent ----------------------------------------------------------------------------------------

    /// Takes up an upload of the session's first connection, if content may come for it.
    fn borrow_upload(&mut self, transfer: u32) -> Result<()> {
        let Some(Transfer::Upload(groups)) = self.session.borrow(transfer) else { return Ok(()) };
        let Some(size) = groups.lock().receiver.size() else {
            // Its groups come in their order, so they come over one connection.
            return Err(Breach::Unexpected { kind: Kind::Data, why: "a stream comes over one connection" }.into());
        };
        let put = Put {
            path: RemotePath::root(),
            size: Some(size),
            mtime: None,
            mode: None,
            upload_id: Bytes16([0; 16]),
            if_exists: IfExists::Fail,
            unasked: false,
            no_base: false,
            resume: None,
            same_as: None,
            same_root: None,
            xattrs: None,
        };
        let phase = Phase::Lent;
        // Its seat is taken, and its rights are looked at, on the first connection.
        let seat = Seat::default();
        let upload = Upload {
            put,
            groups,
            phase,
            content: Vec::new(),
            turn: Turn::default(),
            open: None,
            seat,
            is_over: false,
            writing: 0,
            making: false,
            zeros: Runs::default(),
            drained: None,
        };
        self.uploads.insert(transfer, upload);
        Ok(())
    }

    /// Takes up a download of the session's first connection, if it is open.
    fn borrow_download(&mut self, transfer: u32) {
        if !self.downloads.contains_key(&transfer)
            && let Some(Transfer::Download(source)) = self.session.borrow(transfer)
        {
            // Whether it may still be read is looked at on the first connection.
            self.downloads.insert(transfer, Download { path: RemotePath::root(), source, is_hashing: false });
        }
    }

    /// Some of a group was thrown away. At its end its sender may be told that it is there.
    ///
    /// # Errors
    /// On a lane, when that was a group that another connection took over and has not brought whole: that one may die
    /// before it does, and this peer would wait in vain to be told. It sends anew what it was not told of.
    fn drained(&mut self, transfer: u32, end: u64) -> Result<()> {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        let size = upload.put.size.unwrap_or(u64::MAX);
        if end < size && !end.is_multiple_of(GROUP_LEN as u64) {
            upload.drained = Some(end);
            return Ok(());
        }
        upload.drained = None;
        let group = (end - 1) / GROUP_LEN as u64;
        let groups = upload.groups.lock();
        let (is_whole, is_over) = (groups.is_whole(group), groups.is_over());
        drop(groups);
        if is_whole {
            self.tell_written(transfer, group);
        }
        self.forget_lent(transfer);
        if self.is_lane && !is_whole && !is_over {
            return Err(Error::new(ErrorKind::Session, "another connection has begun a group that came over this one"));
        }
        Ok(())
    }

    /// The peer of a lane may forget a group.
    fn tell_written(&mut self, transfer: u32, group: u64) {
        if self.is_lane {
            self.untold.push((transfer, group));
        }
    }

    /// Whether there is something to tell.
    pub(super) fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// What the peer of a lane is to be told: the groups of each transfer that it need not send again.
    pub(super) fn take_untold(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.untold)
    }

    /// Lets go of what was lent when nothing of it is in hand.
    fn forget_lent(&mut self, transfer: u32) {
        if !self.is_lane {
            return;
        }
        let is_free = |upload: &mut Upload| upload.open.is_none() && upload.writing == 0 && upload.drained.is_none();
        if self.uploads.get_mut(&transfer).is_some_and(is_free) {
            self.uploads.remove(&transfer);
        }
        if self.downloads.contains_key(&transfer) && self.slots_and_wants(transfer) == 0 {
            self.downloads.remove(&transfer);
        }
    }

    /// On a lane: lets go of what is over on the first connection.
    pub(super) fn forget_over(&mut self) {
        if !self.is_lane {
            return;
        }
        let over: Vec<u32> = self
            .uploads
            .iter()
            .filter(|(_, upload)| upload.groups.lock().is_over())
            .map(|(&number, _)| number)
            .collect();
        for transfer in over {
            self.let_go(transfer);
            self.uploads.remove(&transfer);
        }
        let over: Vec<u32> = self.downloads.keys().copied().filter(|&number| !self.session.is_lent(number)).collect();
        over.into_iter().for_each(|transfer| self.end_reads(transfer));
    }

    // ---- downloads -----------------------------------------------------------------------------------------

    /// Takes a request for a file.
    pub(super) fn get(&mut self, transfer: u32, get: Get) {
        self.gets.push_back((transfer, get));
    }

    /// Whether files wait to be opened and no job opens some.
    pub(super) fn has_gets(&self) -> bool {
        !self.getting && !self.gets.is_empty()
    }

    /// Opens the next files that were asked for, many in one job.
    pub(super) fn get_more(&mut self) {
        const BATCH_MAX: usize = 64;
        if !self.has_gets() {
            return;
        }
        self.getting = true;
        let batch: Vec<_> = self.gets.drain(..self.gets.len().min(BATCH_MAX)).collect();
        let spent = Arc::clone(&self.session.spent);
        self.spawn(move |shared, who| {
            let mut rest = limits::CONTROL_QUEUE_MAX;
            let mut answers = Vec::with_capacity(batch.len());
            let mut left = Vec::new();
            let mut parents = storage::Parents::default();
            for (transfer, get) in batch {
                if rest == 0 {
                    left.push((transfer, get));
                    continue;
                }
                let act = || requests::get(shared, who, &mut parents, transfer, &get);
                let got = spent.during(On::Disk, || audited::request(shared, who, "get", &get.path, act));
                let len: usize = got.iter().flat_map(|got| &got.frames).map(Bytes::len).sum();
                rest = rest.saturating_sub(len);
                answers.push((transfer, got));
            }
            Job::Got(answers, left)
        });
    }

    /// A batch of files is opened; those that there was no room for come next.
    pub(super) fn got_batch(&mut self, left: Vec<(u32, Get)>) {
        self.getting = false;
        left.into_iter().rev().for_each(|get| self.gets.push_front(get));
    }

    /// Takes the ranges that a client wants.
    pub(super) fn want(&mut self, transfer: u32, ranges: &[(u64, u64)]) -> Result<()> {
        if self.is_lane {
            self.borrow_download(transfer);
        }
        let Some(download) = self.downloads.get(&transfer) else {
            return self.has_ended(transfer).then_some(()).ok_or_else(|| unknown(Kind::Want));
        };
        let size = download.source.file.size();
        for &(offset, len) in ranges {
            let end = offset.checked_add(len).filter(|&end| len > 0 && end <= size);
            let end = end.ok_or(Breach::Data("a wanted range past the end of its file"))?;
            if offset / GROUP_LEN as u64 != (end - 1) / GROUP_LEN as u64 {
                return Err(Breach::Data("a wanted range across two groups").into());
            }
            self.wanted += len;
            self.wants.push_back((transfer, offset, usize::try_from(len).unwrap_or(GROUP_LEN)));
        }
        if self.wanted > limits::WANTED_MAX || self.wants.len() > limits::WANTED_RANGES_MAX {
            return Err(Breach::Excess("wanted content").into());
        }
        self.read_ahead();
        Ok(())
    }

    /// Starts reading the next wanted ranges.
    fn read_ahead(&mut self) {
        while self.slots.len() < self.read_ahead_max
            && let Some((transfer, offset, len)) = self.wants.pop_front()
        {
            let Some(download) = self.downloads.get(&transfer) else { continue };
            let file = Arc::clone(&download.source.file);
            let is_here = len > limits::UNASKED_FILE_MAX as usize && file.is_in_memory() && self.works_here(1);
            // What is handed out over an invite is recorded first, on a disk.
            let is_here = is_here && self.who.attendance().is_none();
            if is_here && self.slots.len() >= READ_AHEAD_HERE {
                self.wants.push_front((transfer, offset, len));
                break;
            }
            let (share, id) = (Arc::clone(&self.who.share), self.next_slot);
            let attendance = self.who.attendance().cloned();
            let spent = Arc::clone(&self.session.spent);
            self.next_slot += 1;
            self.slots.push_back(Slot { id, transfer, offset, rest: len, content: None, hash: None });
            let tasks = self.shared.tasks.clone();
            let (leased, next) = oneshot::channel();
            let before = self.latest_lease.replace(next);
            self.jobs.spawn(async move {
                // One after the other: a later range that had the last buffer would wait for the first to be sent.
                if let Some(before) = before {
                    // Its sender is dropped when it has its buffer, or is gone.
                    let _ = before.await;
                }
                let mut buffer = share.lease(len).await;
                drop(leased);
                let read = move || {
                    let mut hasher = GroupHasher::new(offset / GROUP_LEN as u64);
                    let mut at = offset;
                    for piece in buffer[..len].chunks_mut(if is_here { PIECE_HERE } else { GROUP_LEN }) {
                        spent.during(On::Disk, || file.read_at(at, piece))?;
                        spent.during(On::Processor, || hasher.update(piece));
                        at += piece.len() as u64;
                    }
                    let hash = hasher.finish();
                    if let Some(attendance) = attendance {
                        let is_end = offset + len as u64 == file.size();
                        attendance.hand_out(len as u64, is_end)?;
                    }
                    Ok((Bytes::from_owner(buffer), hash))
                };
                if is_here {
                    return Job::Read(id, read());
                }
                Job::Read(id, on_disk(&tasks, read).await)
            });
        }
    }

    /// A wanted range has been read.
    pub(super) fn read(&mut self, id: u64, result: Result<(Bytes, GroupHash)>) -> Result<(), (u32, Error)> {
        if self.slots.front().is_some_and(|slot| slot.id == id) {
            self.taken = Instant::now();
        }
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.id == id) else {
            if let (Some(attendance), Ok((content, _))) = (self.who.attendance(), &result) {
                attendance.take_back(content.len() as u64);
            }
            return Ok(());
        };
        let transfer = slot.transfer;
        let (content, hash) = result.map_err(|error| (transfer, error))?;
        let group = slot.offset / GROUP_LEN as u64;
        if let Some(download) = self.downloads.get(&transfer) {
            let size = download.source.file.size();
            let whole = slot.offset == group_offset(group) && content.len() == group_len(size, group);
            slot.hash = whole.then_some((group, hash));
        }
        slot.content = Some(content);
        Ok(())
    }

    /// Gives back what was read for a peer that has not taken it in time; it is read again when there is room for it.
    /// Tells whether the connection should let go of its buffer too.
    pub(super) fn drop_unread(&mut self) -> bool {
        if self.taken.elapsed() < limits::LEASE_TIMEOUT {
            return false;
        }
        if self.slots.front().is_none_or(|slot| slot.content.is_none()) {
            return true;
        }
        self.read_ahead_max = 0;
        while let Some(slot) = self.slots.pop_back() {
            take_back(&self.who, &slot);
            if let (Some((group, hash)), Some(download)) = (slot.hash, self.downloads.get(&slot.transfer))
                && slot.offset > group_offset(group)
            {
                // Its beginning is sent; should the rest be another by then, the client finds it by the root.
                download.source.tree().insert(group, hash);
            }
            self.wants.push_front((slot.transfer, slot.offset, slot.rest));
        }
        true
    }

    /// Queues the next step of a hash run.
    pub(super) fn hash(&mut self, transfer: u32, run: HashRun) {
        self.hash_runs.push_back((transfer, Run::Stored(run)));
    }

    /// Whether a step could begin.
    pub(super) fn has_hashes(&self) -> bool {
        self.hashing < HASHES_MAX && !self.hash_runs.is_empty()
    }

    /// Begins the next steps.
    pub(super) fn hash_more(&mut self) {
        while self.hashing < HASHES_MAX
            && let Some((transfer, run)) = self.hash_runs.pop_front()
        {
            self.hashing += 1;
            match run {
                Run::Stored(run) => self.hash_step(transfer, run),
                Run::Offer(mut offer) => {
                    let spent = Arc::clone(&self.session.spent);
                    self.spawn(move |_, _| {
                        Job::Offered(transfer, spent.during(On::Disk, || offer.step()).map(|()| offer))
                    });
                }
            }
        }
    }

    /// A step has come back.
    pub(super) fn step_hashed(&mut self) {
        self.hashing -= 1;
    }

    /// Drops the run of a transfer or request that has ended.
    pub(super) fn end_hash(&mut self, transfer: u32) {
        let (ended, rest) = std::mem::take(&mut self.hash_runs).into_iter().partition(|(other, _)| *other == transfer);
        self.hash_runs = rest;
        let ended: VecDeque<(u32, Run)> = ended;
        if !ended.is_empty() {
            drop_elsewhere(&self.shared, ended);
        }
    }

    /// Hashes the next groups of a stored file: 64 MiB in one step.
    fn hash_step(&mut self, transfer: u32, mut run: HashRun) {
        let (shared, who) = (Arc::clone(&self.shared), Arc::clone(&self.who));
        let (share, tasks) = (Arc::clone(&self.who.share), self.shared.tasks.clone());
        self.jobs.spawn(async move {
            // All connections of a principal together hold a part of the disk threads.
            let turn = share.hash().await;
            let step = move || {
                // A file of terabytes takes an hour: who may not read it any more does not learn the rest.
                shared.pass(&who)?.decide(Action::Read(&run.path))?;
                let size = run.file.size();
                run.from = run.next;
                let mut buffer = vec![0; GROUP_LEN];
                while run.next < run.end() && run.next < run.from + 64 {
                    let content = &mut buffer[..group_len(size, run.next)];
                    run.file.read_at(group_offset(run.next), content)?;
                    run.tree.insert(run.next, GroupHash::of(run.next, content));
                    run.next += 1;
                }
                Ok(run)
            };
            let hashed = on_disk(&tasks, step).await;
            drop(turn);
            Job::Hashed(transfer, hashed)
        });
    }

    // ---- ends ----------------------------------------------------------------------------------------------

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
            if upload.groups.lock().receiver.finish().is_none() && !matches!(upload.phase, Phase::Committing) {
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

    /// Reads no more for a download.
    pub(super) fn end_reads(&mut self, transfer: u32) {
        if let Some(download) = self.downloads.remove(&transfer) {
            self.wanted -= self.slots_and_wants(transfer);
            let who = &self.who;
            self.slots.retain(|slot| {
                let is_other = slot.transfer != transfer;
                if !is_other {
                    take_back(who, slot);
                }
                is_other
            });
            self.wants.retain(|want| want.0 != transfer);
            drop_elsewhere(&self.shared, download);
            // Others may have waited for its turns.
            self.read_ahead();
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
        let wants: usize = self.wants.iter().filter(|want| want.0 == transfer).map(|want| want.2).sum();
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
        self.uploads.len() + self.downloads.len() + self.small.len() + self.jobs.len()
    }
}

impl Handler for Flow {
    fn poll_space(&mut self, cx: &mut Context<'_>, transfer: u32, offset: u64, len: usize) -> Poll<Result<&mut [u8]>> {
        if self.is_lane && !self.uploads.contains_key(&transfer) {
            self.borrow_upload(transfer)?;
        }
        let Some(upload) = self.uploads.get_mut(&transfer) else {
            return Poll::Ready(if self.has_ended(transfer) { Ok(&mut []) } else { Err(unknown(Kind::Data)) });
        };
        match &upload.phase {
            Phase::Unasked | Phase::Lent => {}
            Phase::Receiving(incoming) if !incoming.compare_only => {}
            _ => {
                let why = "no content was asked for";
                return Poll::Ready(Err(Breach::Unexpected { kind: Kind::Data, why }.into()));
            }
        }
        let mut groups = upload.groups.lock();
        let at = upload.open.as_ref().map(|open| group_offset(open.index) + (open.start + open.filled) as u64);
        let begun = upload.drained.or(at);
        let place = groups.place(cx, self.id, self.session.is_shared(), begun, (offset, len));
        let piece = match ready!(place)? {
            Place::Here(piece) => piece,
            Place::Nowhere => {
                drop(groups);
                upload.drained = Some(offset);
                self.let_go(transfer);
                return Poll::Ready(Ok(&mut []));
            }
        };
        if matches!(upload.phase, Phase::Lent) && groups.file.is_none() {
            self.session.news.notify_one();
            return groups.wait_for_file(cx);
        }
        drop(groups);
        if matches!(upload.phase, Phase::Receiving(Incoming { file: None, .. })) {
            self.make_file(transfer);
            return Poll::Pending;
        }
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Poll::Ready(Ok(&mut [])) };
        if matches!(upload.phase, Phase::Unasked) {
            // The memory follows the bytes that come.
            if upload.content.capacity() == 0 {
                upload.content = self.spare.pop().unwrap_or_default();
                upload.content.clear();
            }
            let end = piece.start + len.min(LEASE_LEN_FIRST);
            upload.content.resize(end, 0);
            return Poll::Ready(Ok(&mut upload.content[piece.start..end]));
        }
        upload.drained = None;
        if upload.open.as_ref().is_some_and(|open| open.index != piece.group) {
            return Poll::Ready(Err(Breach::Data("pieces of two groups of one file in turn").into()));
        }
        if upload.open.is_none() {
            if self.begun >= limits::OPEN_GROUPS_MAX {
                // Each has content that nobody else can use.
                return Poll::Ready(Err(Breach::Excess("begun groups").into()));
            }
            self.begun += 1;
            let hasher = upload.groups.begin_group(piece)?;
            upload.open = Some(OpenGroup {
                index: piece.group,
                start: piece.start,
                hasher: Some(hasher),
                buffer: None,
                filled: 0,
                leased: Instant::now(),
            });
        }
        let Some(open) = &mut upload.open else { return Poll::Pending };
        if open.buffer.is_none() {
            // A job that comes back wakes this task.
            if self.writing >= BUFFERS_PER_CONNECTION || open.hasher.is_none() {
                return Poll::Pending;
            }
            let whole = upload.put.size.map_or(GROUP_LEN, |size| group_len(size, piece.group));
            let len = self.lease_len.min(whole - open.start);
            let lease = match self.leasing.take() {
                Some((_, leased, mut leasing)) if leased == len => match leasing.as_mut().poll(cx) {
                    Poll::Ready(lease) => lease,
                    Poll::Pending => {
                        self.leasing = Some((transfer, len, leasing));
                        return Poll::Pending;
                    }
                },
                _ => {
                    let mut leasing: Leasing = Box::pin(Arc::clone(&self.who.share).lease(len));
                    match leasing.as_mut().poll(cx) {
                        Poll::Ready(lease) => lease,
                        Poll::Pending => {
                            self.leasing = Some((transfer, len, leasing));
                            return Poll::Pending;
                        }
                    }
                }
            };
            open.buffer = Some(lease);
            self.holds_buffers = true;
            open.leased = Instant::now();
        }
        let (start, leased) = (piece.start - open.start, open.buffer.as_ref().map_or(0, |buffer| buffer.len()));
        let end = leased.min(start + len);
        let space = open.buffer.as_mut().and_then(|buffer| buffer.get_mut(start..end));
        Poll::Ready(space.ok_or_else(|| Error::new(ErrorKind::Internal, "a group buffer that is too small")))
    }

    fn filled(&mut self, transfer: u32, offset: u64, len: usize) -> Result<()> {
        let Some(upload) = self.uploads.get_mut(&transfer) else { return Ok(()) };
        let accepted =
            if upload.drained.is_some() { None } else { upload.groups.lock().accept(self.id, offset, len)? };
        let Some(piece) = accepted else {
            // Thrown away, or taken over by another connection while it came.
            self.let_go(transfer);
            return self.drained(transfer, offset + len as u64);
        };
        if matches!(upload.phase, Phase::Unasked) {
            upload.content.truncate(piece.start + len);
            return Ok(());
        }
        if upload.put.size.is_none()
            && let Phase::Receiving(incoming) = &mut upload.phase
            && !upload.is_over
            && let Err(error) = (incoming.reservation.cover(offset + len as u64))
                .and_then(|()| incoming.claim.cover(offset + len as u64))
        {
            // Its end, as soon as the connection's task hears of it, and that of nothing else.
            upload.is_over = true;
            self.jobs.spawn(async move { Job::Committed(transfer, Err(error), None) });
        }
        let Some(open) = &mut upload.open else { return Ok(()) };
        open.filled += len;
        let is_full = open.buffer.as_ref().is_some_and(|buffer| open.filled == buffer.len());
        if is_full && open.leased.elapsed() < limits::LEASE_TIMEOUT {
            self.lease_len = (self.lease_len * 4).min(GROUP_LEN);
        }
        if piece.completes {
            if let Some(open) = upload.open.take() {
                self.begun -= 1;
                self.write(transfer, open);
            }
        } else if is_full {
            self.spill(transfer);
        } else if open.filled >= PIECE_HERE
            && upload.groups.lock().file.as_ref().is_some_and(|file| file.is_in_memory())
            && self.writes_here()
        {
            self.write_piece(transfer);
        }
        Ok(())
    }

    fn nothing_came(&mut self, transfer: u32) {
        // What was only announced holds no memory.
        let Some(upload) = self.uploads.get_mut(&transfer) else { return };
        if let Some(open) = upload.open.as_mut().filter(|open| open.filled == 0) {
            open.buffer = None;
        }
        if matches!(upload.phase, Phase::Unasked) {
            let received = upload.groups.lock().receiver.received();
            upload.content.truncate(usize::try_from(received).unwrap_or(usize::MAX));
            if upload.content.is_empty() {
                upload.content = Vec::new();
            }
        }
    }

    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        if self.read_ahead_max == 0 {
            // The peer has taken what was before.
            self.read_ahead_max = 1;
            self.read_ahead();
        }
        // A read that comes back wakes this task.
        let Some(slot) = self.slots.front_mut() else { return Poll::Pending };
        let Some(content) = &mut slot.content else { return Poll::Pending };
        let piece = content.split_to(content.len().min(DATA_LEN_MAX));
        let (transfer, offset) = (slot.transfer, slot.offset);
        self.taken = Instant::now();
        slot.offset += piece.len() as u64;
        slot.rest -= piece.len();
        self.wanted = self.wanted.saturating_sub(piece.len() as u64);
        if content.is_empty() {
            if let (Some((group, hash)), Some(download)) = (slot.hash, self.downloads.get(&transfer)) {
                download.source.tree().insert(group, hash);
            }
            self.slots.pop_front();
            self.forget_lent(transfer);
            self.read_ahead_max = (self.read_ahead_max * 2).min(READ_AHEAD_MAX);
            self.read_ahead();
        }
        Poll::Ready((transfer, offset, piece))
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
