//! Further connections of a session, and the queue that all its connections take groups from.
//!
//! Groups of uploads of known size lie in one queue; the first connection and each *lane* that has joined take the
//! next one whenever they can write more, so none owns a range and a slow one holds nobody up. A group that a lane
//! took is under way until the server says that it is written; when the lane dies before that, the group is lost and
//! its upload hears of it, to send it again. What the first connection took needs no such word: the finish follows
//! it on the same connection.
//!
//! Groups of a download are asked for over whichever connection has few that it was asked for and has not brought;
//! those that a lane still owes when it dies are asked for again. The last ones are asked for in parts. A lane that has
//! a thread of its own does there with a group what is to be done with it, too.
//!
//! Invariants: a lane never opens or ends a transfer; the queue is bounded by permits, what is under way by what the
//! network holds; when the session ends, so do its lanes; however a lane ends, a panic included, what it owed is told.

mod at_work;
mod front;
mod pace;
mod parts;

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::front::Front;
#[cfg(test)]
pub(crate) use self::front::simulated;
pub(crate) use self::pace::Pace;
use self::pace::{Rate, WANTED_MAX};
use self::parts::Parts;
use crate::buffer::{Buffer, Pool};
use crate::client::life::Life;
use crate::client::session::{end, give_up};
use crate::client::shelf::{Filling, Shelf};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, group_len, group_offset};
use crate::limits::{GROUP_LEN, JOINS_MAX};
use crate::net::Connection;
use crate::protocol::{List, Message, Want};
use crate::transfer::{Seen, Width};

/// Groups of content that wait to be taken: enough to keep TLS busy while the next are read. 4 MiB.
const ROOM: usize = 4;

/// Reports of one transfer that are not looked at: there is at most one for each group that is under way, and one for
/// each part, of which the client's buffers hold fewer than two hundred.
const REPORTS_MAX: usize = ROOM + (JOINS_MAX + 1) * (2 * WANTED_MAX + 4);

/// The lanes of one session.
#[derive(Clone)]
pub(crate) struct Lanes(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    room: Arc<Semaphore>,
    end: CancellationToken,
}

struct State {
    queue: VecDeque<Queued>,
    /// The task of the first connection, when it waits for a group.
    first: Option<Waker>,
    lanes: HashMap<u64, Lane>,
    /// Lanes that are being opened.
    opening: usize,
    /// Lanes that were ever asked for, which the server bounds.
    asked: usize,
    /// The number of the next lane.
    next: u64,
    /// The server takes no more.
    is_full: bool,
    transfers: HashMap<u32, Carried>,
    /// How many connections there should be by what is measured.
    width: Width,
    has_ended: bool,
}

/// A transfer whose groups go over all connections.
struct Carried {
    /// Who is told what became of them.
    reports: mpsc::Sender<Report>,
    /// Where beginnings of groups are laid.
    shelf: Shelf,
    /// What is done with each by a lane that has a thread of its own.
    work: Option<Work>,
    /// Told when its last group in the queue is taken.
    all_taken: Arc<Notify>,
    /// Groups that are fetched in parts.
    parts: Parts,
    /// Lanes begin nothing more of it for now.
    is_resting: bool,
}

impl Carried {
    fn report(&self, report: Report) {
        // Nobody listening any more is all right: the transfer was given up. There always is room.
        let _ = self.reports.try_send(report);
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.parts.give_up(&self.shelf);
    }
}

/// Hashes and writes a group of a download: its index, its content.
pub(crate) type Work = Arc<dyn Fn(u64, Buffer) -> Result<GroupHash> + Send + Sync>;

/// What drives a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A task beside others.
    Task,
    /// A thread that does nothing else, and may so work on what comes.
    Thread,
}

struct Lane {
    waker: Option<Waker>,
    /// Groups that it took and that are not known to be written, and since when.
    under_way: HashMap<(u32, u64), Instant>,
    /// Requests that it is to send.
    requests: Vec<Bytes>,
    /// What was asked for over it and has not come, by transfer.
    wanted: HashMap<u32, Wanted>,
    /// The highest number under which something was asked for.
    asked: u32,
    pace: Pace,
    rate: Rate,
}

impl Lane {
    /// Bytes that were asked for over it and have not come.
    fn owed(&self) -> usize {
        self.wanted.values().flat_map(|wanted| &wanted.ranges).map(|&(_, rest, _)| rest).sum()
    }
}

/// What a download has asked for over one lane.
struct Wanted {
    /// The size of the file.
    size: u64,
    /// Where what is to come next begins, how much of it is to come, and when it was asked for.
    ranges: VecDeque<(u64, usize, Instant)>,
}

/// A group that is to be sent.
pub(crate) struct Group {
    transfer: u32,
    index: u64,
    offset: u64,
    content: Bytes,
}

/// A group in the queue. Whoever takes it makes room for another, so that a connection that is slow to send it holds
/// up none of the others; what they hold is bounded by the client's buffers.
struct Queued {
    group: Group,
    _room: OwnedSemaphorePermit,
}

impl Queued {
    fn take(self) -> Group {
        self.group
    }
}

/// What became of a group.
pub(crate) enum Report {
    /// It need not be sent again.
    Sent(u64),
    /// It has come over lanes, whole or in these parts.
    Came(u64, Vec<Buffer>),
    /// It has come over a lane, and the lane's thread has done with it what was to be done.
    Worked(u64, Result<GroupHash>),
    /// The lane that had it, or owed it, has died.
    Lost(u64),
    /// There is a lane that may be asked for more.
    MayAsk,
    /// So many connections would be better than those that there are.
    Wider(usize),
}

/// What is left of a transfer that is taken back from the lanes.
pub(crate) enum Rest {
    /// As [`Report::Came`].
    Came(u64, Vec<Buffer>),
    /// As [`Report::Worked`].
    Worked(u64, Result<GroupHash>),
}

/// What was asked for over lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Groups that are fetched over lanes now, and were not before.
    pub(crate) groups: usize,
    /// The lanes fetch all that is left.
    pub(crate) is_end: bool,
}

/// A transfer whose groups go over all connections. Dropping it takes back those that are still in the queue.
pub(crate) struct Carrier {
    lanes: Lanes,
    transfer: u32,
    reports: mpsc::Receiver<Report>,
    all_taken: Arc<Notify>,
}

impl Lanes {
    pub(crate) fn new() -> Lanes {
        let state = State {
            queue: VecDeque::new(),
            first: None,
            lanes: HashMap::new(),
            opening: 0,
            asked: 0,
            next: 0,
            is_full: false,
            transfers: HashMap::new(),
            width: Width::new(1),
            has_ended: false,
        };
        let (room, end) = (Arc::new(Semaphore::new(ROOM)), CancellationToken::new());
        Lanes(Arc::new(Shared { state: Mutex::new(state), room, end }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No statement between lock and unlock leaves the state half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a transfer. One number is entered once.
    pub(crate) fn carry(&self, transfer: u32, shelf: Shelf) -> Carrier {
        let (sender, reports) = mpsc::channel(REPORTS_MAX);
        let all_taken = Arc::new(Notify::new());
        let (notify, parts) = (Arc::clone(&all_taken), Parts::none());
        let carried = Carried { reports: sender, shelf, work: None, all_taken: notify, parts, is_resting: false };
        self.lock().transfers.insert(transfer, carried);
        Carrier { lanes: self.clone(), transfer, reports, all_taken }
    }

    /// Ends all lanes, and every wait for room.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
        state.queue.clear();
        let transfers = std::mem::take(&mut state.transfers);
        state.wake();
        drop(state);
        drop(transfers);
        self.0.room.close();
        self.0.end.cancel();
    }

    /// Waits until they are ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn ended(&self) {
        self.0.end.cancelled().await;
    }

    /// How many lanes to open so that there are `count` connections. Whoever asks opens them, each of which ends in
    /// [`Lanes::drive`] or [`Lanes::not_opened`].
    pub(crate) fn missing(&self, count: usize) -> usize {
        let mut state = self.lock();
        if state.has_ended || state.is_full {
            return 0;
        }
        let there = 1 + state.lanes.len() + state.opening;
        let missing = count.saturating_sub(there).min(JOINS_MAX - state.asked);
        state.opening += missing;
        state.asked += missing;
        missing
    }

    /// Takes note of how many connections a transfer begins with.
    pub(crate) fn begin_with(&self, count: usize) {
        self.lock().width.begin_with(count);
    }

    /// Looks at the first connection while something is moved over it, and tells the transfers when there should be
    /// more.
    pub(crate) fn look(&self, connection: &Connection, age: Duration) {
        let mut state = self.lock();
        if state.transfers.is_empty() {
            return;
        }
        let socket = connection.socket();
        let Some(info) = socket.info() else { return };
        let is_sender = info.acked > info.received;
        // Loss does not hold it up, so more of it would not help.
        let minds_loss = !is_sender || socket.minds_loss();
        let seen = Seen {
            at: age,
            rtt_min: info.rtt_min,
            rtt: if is_sender { info.rtt } else { info.receive_rtt },
            moved: info.acked + info.received,
            lost: if minds_loss { info.resent + u64::from(info.out_of_order) } else { 0 },
            busy: info.busy,
            limited_by_buffers: info.limited_by_buffers,
        };
        if let Some(count) = state.width.look(seen) {
            let carried = state.transfers.values();
            carried.for_each(|carried| drop(carried.reports.try_send(Report::Wider(count))));
        }
    }

    /// A lane could not be opened: the session goes on with what it has.
    pub(crate) fn not_opened(&self) {
        let mut state = self.lock();
        state.opening -= 1;
        state.is_full = true;
    }

    /// Drives a lane until it or the session ends.
    pub(crate) async fn drive(self, mut connection: Connection, pool: Pool, place: Place) {
        let Some(number) = self.enter(place) else { return };
        let mut front = Front::new(self.clone(), number, place, pool);
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut life = Life::new();
        let ended = {
            let step = std::future::poll_fn(|cx| front.poll_step(cx, &mut connection, &mut ticks, &mut life));
            pin!(step).await
        };
        if !front.is_greeted {
            self.lock().is_full = true;
        }
        drop(front);
        match ended {
            // Nothing is owed to anybody: how the connection goes is a courtesy.
            Ok(()) => end(connection, true).await,
            Err(error) => give_up(&connection, error.kind()),
        }
    }

    fn enter(&self, place: Place) -> Option<u64> {
        let mut state = self.lock();
        state.opening -= 1;
        if state.has_ended {
            return None;
        }
        let number = state.next;
        state.next += 1;
        let lane = Lane {
            waker: None,
            under_way: HashMap::new(),
            requests: Vec::new(),
            wanted: HashMap::new(),
            asked: 0,
            pace: if place == Place::Thread { Pace::steady() } else { Pace::new() },
            rate: Rate::new(),
        };
        state.lanes.insert(number, lane);
        state.transfers.values().for_each(|carried| drop(carried.reports.try_send(Report::MayAsk)));
        Some(number)
    }

    /// Lets go of a transfer.
    fn forget(&self, transfer: u32) {
        let mut state = self.lock();
        let carried = state.transfers.remove(&transfer);
        state.queue.retain(|queued| queued.group.transfer != transfer);
        state.lanes.values_mut().for_each(|lane| {
            lane.under_way.retain(|&(other, _), _| other != transfer);
            lane.wanted.remove(&transfer);
        });
        drop(state);
        // The work may be the last that holds a file.
        drop(carried);
    }

    /// A part that a lane was filling is not filled by it any more.
    fn give_back(&self, transfer: u32, filling: Filling) {
        let (group, start) = (filling.group(), filling.part_start());
        if let Some(carried) = self.lock().transfers.get_mut(&transfer)
            && let Some(start) = start
            && let Some(buffer) = filling.into_buffer()
        {
            carried.parts.give_back(group, start, buffer);
        }
    }

    fn leave(&self, number: u64) {
        let mut state = self.lock();
        let Some(lane) = state.lanes.remove(&number) else { return };
        for (transfer, group) in lane.under_way.into_keys() {
            state.report(transfer, Report::Lost(group));
        }
        for (transfer, wanted) in lane.wanted {
            let Some(carried) = state.transfers.get_mut(&transfer) else { continue };
            for (offset, ..) in wanted.ranges {
                if carried.parts.has(offset) {
                    carried.parts.lost(offset);
                } else {
                    carried.report(Report::Lost(offset / GROUP_LEN as u64));
                }
            }
            carried.report(Report::MayAsk);
        }
        if !state.lanes.is_empty() {
            return;
        }
        // The first connection takes whole groups.
        let carried = state.transfers.iter_mut();
        let split: Vec<_> =
            carried.map(|(&transfer, carried)| (transfer, carried.shelf.clone(), carried.parts.take())).collect();
        drop(state);
        for (transfer, shelf, mut parts) in split {
            for group in parts.give_up(&shelf) {
                self.lock().report(transfer, Report::Lost(group));
            }
        }
    }

    /// How many there are, or will be.
    pub(crate) fn count(&self) -> usize {
        let state = self.lock();
        state.lanes.len() + state.opening
    }

    /// The next group for the first connection, whose task is woken when there is one.
    pub(crate) fn take_first(&self, cx: &Context<'_>) -> Option<Group> {
        let mut state = self.lock();
        let group = state.take(true);
        if group.is_none() {
            state.first = Some(cx.waker().clone());
        }
        group
    }

    /// The next piece, of at most so many bytes, of a group that a connection has taken; the group is gone after its
    /// last.
    pub(crate) fn piece(&self, taken: &mut Option<Group>, is_first: bool, max: usize) -> Option<(u32, u64, Bytes)> {
        let group = taken.as_mut()?;
        let piece = group.content.split_to(group.content.len().min(max));
        let (transfer, offset) = (group.transfer, group.offset);
        group.offset += piece.len() as u64;
        if group.content.is_empty() {
            if is_first {
                self.lock().report(transfer, Report::Sent(group.index));
            }
            *taken = None;
        }
        Some((transfer, offset, piece))
    }

    /// Whether an upload still wants its groups to be sent.
    pub(crate) fn is_carried(&self, group: &Group) -> bool {
        self.lock().transfers.contains_key(&group.transfer)
    }
}

impl State {
    fn wake(&mut self) {
        self.first.take().into_iter().for_each(Waker::wake);
        self.lanes.values_mut().filter_map(|lane| lane.waker.take()).for_each(Waker::wake);
    }

    /// The next group to be sent, by the first connection or by a lane.
    fn take(&mut self, is_first: bool) -> Option<Group> {
        let rests = |transfer| self.transfers.get(&transfer).is_some_and(|carried| carried.is_resting);
        let next = self.queue.iter().position(|queued| is_first || !rests(queued.group.transfer))?;
        let group = self.queue.remove(next).map(Queued::take)?;
        if !self.queue.iter().any(|queued| queued.group.transfer == group.transfer)
            && let Some(carried) = self.transfers.get(&group.transfer)
        {
            carried.all_taken.notify_one();
        }
        Some(group)
    }

    fn report(&self, transfer: u32, report: Report) {
        if let Some(carried) = self.transfers.get(&transfer) {
            carried.report(report);
        }
    }
}

impl Carrier {
    /// Queues a group for whichever connection has room first.
    ///
    /// # Errors
    /// When the session has ended.
    ///
    /// # Cancel safety
    /// The group is lost when this is dropped; the upload must be given up then.
    pub(crate) async fn send(&self, index: u64, offset: u64, content: Bytes) -> Result<()> {
        let room = Arc::clone(&self.lanes.0.room).acquire_owned().await;
        let room = room.map_err(|_| Error::new(ErrorKind::Connection, "the connection was closed"))?;
        let mut state = self.lanes.lock();
        let group = Group { transfer: self.transfer, index, offset, content };
        state.queue.push_back(Queued { group, _room: room });
        state.wake();
        Ok(())
    }

    /// From now on, the last groups are asked for in parts, in buffers of this pool, of a server that is so far away.
    pub(crate) fn let_split(&self, pool: &Pool, round_trip: Duration) {
        if let Some(carried) = self.lanes.lock().transfers.get_mut(&self.transfer) {
            carried.parts.let_split(pool.clone(), round_trip);
        }
    }

    /// Lanes begin no more groups of it from now on, or do again. What they have begun they bring to its end. Not for
    /// groups that may be asked for in parts: a part that is to be asked for again waits for a lane.
    pub(crate) fn rest(&self, is_resting: bool) {
        let mut state = self.lanes.lock();
        let Some(carried) = state.transfers.get_mut(&self.transfer) else { return };
        debug_assert!(!is_resting || !carried.parts.may_be_split(), "a free part would wait for ever");
        if std::mem::replace(&mut carried.is_resting, is_resting) != is_resting {
            state.wake();
        }
    }

    /// Asks for groups of a file of this size over the lanes that owe few: those that `next` gives, of which there are
    /// at most `left`.
    pub(crate) fn ask(&self, size: u64, left: u64, mut next: impl FnMut() -> Option<u64>) -> Asked {
        let mut state = self.lanes.lock();
        let State { lanes, transfers, opening, .. } = &mut *state;
        let mut asked = Asked { groups: 0, is_end: false };
        let Some(Carried { parts, shelf, is_resting: false, .. }) = transfers.get_mut(&self.transfer) else {
            return asked;
        };
        asked.is_end = parts.is_time(left, lanes.len());
        let share = parts.share(left, lanes.len() + *opening);
        for lane in lanes.values_mut() {
            let mut owed = lane.owed();
            if owed == 0 {
                lane.rate.rested();
            }
            let owes_none = lane.wanted.get(&self.transfer).is_none_or(|wanted| wanted.ranges.is_empty());
            let mut ranges = Vec::new();
            loop {
                let is_part = parts.are_free();
                let may_owe = match is_part || asked.is_end {
                    // What it owes to others holds nobody up for ever: from the moment that lanes fetch all that is
                    // left, each has to have something of this.
                    true if owes_none && ranges.is_empty() => true,
                    true => parts.may_owe(owed, lane.rate.per_second, lane.rate.is_starting().then_some(share)),
                    false => owed.div_ceil(GROUP_LEN) < lane.pace.groups(),
                };
                if !may_owe {
                    break;
                }
                if !is_part {
                    let Some(group) = next() else { break };
                    asked.groups += 1;
                    let (begun, whole) = (shelf.begun(group), group_len(size, group));
                    if begun > 0 || !asked.is_end || !parts.split(group, whole) {
                        owed += whole - begun;
                        ranges.push((group_offset(group) + begun as u64, whole - begun));
                        continue;
                    }
                }
                let Some((offset, len)) = parts.ask() else { break };
                owed += len;
                ranges.push((offset, len));
            }
            if ranges.is_empty() {
                continue;
            }
            let wanted = lane.wanted.entry(self.transfer).or_insert_with(|| Wanted { size, ranges: VecDeque::new() });
            let now = Instant::now();
            wanted.ranges.extend(ranges.iter().map(|&(offset, len)| (offset, len, now)));
            lane.asked = lane.asked.max(self.transfer);
            let ranges = List(ranges.into_iter().map(|(offset, len)| (offset, len as u64)).collect());
            lane.requests.push(Want { ranges }.to_frame(self.transfer).into());
            lane.waker.take().into_iter().for_each(Waker::wake);
        }
        asked
    }

    /// How many groups of an upload lanes have taken that are not known to be written. Those that a lane lost are not
    /// among them, whether or not that was told yet.
    pub(crate) fn under_way(&self) -> usize {
        let state = self.lanes.lock();
        let groups = state.lanes.values().flat_map(|lane| lane.under_way.keys());
        groups.filter(|(transfer, _)| *transfer == self.transfer).count()
    }

    /// Is told whenever the last group that was queued has been taken.
    pub(crate) fn all_taken(&self) -> Arc<Notify> {
        Arc::clone(&self.all_taken)
    }

    /// From now on, lanes with threads of their own do this with groups that come.
    pub(crate) fn let_work(&self, work: Work) {
        if let Some(carried) = self.lanes.lock().transfers.get_mut(&self.transfer) {
            carried.work = Some(work);
        }
    }

    /// Takes the transfer back from the lanes, and tells one after the other the groups that have come and were not
    /// told yet, and what becomes of those that a lane is working on. After the last, no lane does anything for this
    /// transfer.
    ///
    /// # Cancel safety
    /// Safe, but for what is said of the end.
    pub(crate) async fn next_of_rest(&mut self) -> Option<Rest> {
        self.lanes.forget(self.transfer);
        // Who is at work holds a sender, and lets go of all else before that.
        loop {
            match self.reports.recv().await? {
                Report::Worked(group, worked) => return Some(Rest::Worked(group, worked)),
                Report::Came(group, parts) => return Some(Rest::Came(group, parts)),
                Report::Sent(_) | Report::Lost(_) | Report::MayAsk | Report::Wider(_) => {}
            }
        }
    }

    /// What became of a group that was queued. Pending for ever once the session has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self) -> Report {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.lanes.forget(self.transfer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc as std_mpsc;
    use std::task::{Poll, Wake};

    use super::front::UNPROVEN_MAX;
    use super::pace::WANTED_MIN;
    use super::*;
    use crate::net::Handler as _;

    #[tokio::test]
    async fn a_transfer_ends_when_the_thread_of_a_lane_has_let_go_of_it() {
        const LEN: u64 = 2 * GROUP_LEN as u64;
        let lanes = Lanes::new();
        let mut carrier = lanes.carry(7, Shelf::default());
        let file = Arc::new(());
        let (begun, is_begun) = std_mpsc::channel();
        let (go, may_go) = std_mpsc::channel::<()>();
        let may_go = Mutex::new(may_go);
        let held = Arc::clone(&file);
        carrier.let_work(Arc::new(move |index, buffer| {
            begun.send(index).unwrap();
            may_go.lock().unwrap().recv().unwrap();
            assert!(buffer.iter().all(|&byte| byte == 3));
            let _held = &held;
            Ok(GroupHash::of(index, &buffer))
        }));
        assert_eq!(lanes.missing(2), 1);
        let number = lanes.enter(Place::Thread).unwrap();
        let mut groups = 0..3;
        assert_eq!(
            carrier.ask(LEN + 1, 3, || groups.next()).groups,
            WANTED_MIN,
            "it works on one while the other comes"
        );
        let mut front = Front::let_in(&lanes, number, Place::Thread, &Pool::new(4 * GROUP_LEN));
        let lane = std::thread::spawn(move || {
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready(Ok(space)) = front.poll_space(&mut cx, 7, 0, GROUP_LEN) else { panic!("no space") };
            space.fill(3);
            front.filled(7, 0, GROUP_LEN).unwrap();
            // Given up meanwhile: what still comes is thrown away.
            let Poll::Ready(Ok(space)) = front.poll_space(&mut cx, 7, GROUP_LEN as u64, 9) else { panic!("refused") };
            assert!(space.is_empty());
        });
        assert_eq!(is_begun.recv().unwrap(), 0);
        {
            let mut rest = pin!(carrier.next_of_rest());
            let is_over = std::future::poll_fn(|cx| Poll::Ready(rest.as_mut().poll(cx).is_ready()));
            assert!(!is_over.await, "it waits for who is at work");
            assert!(lanes.0.state.lock().unwrap().transfers.is_empty());
            go.send(()).unwrap();
            let Some(Rest::Worked(group, worked)) = rest.await else { panic!("nobody was at work") };
            assert_eq!(worked.unwrap().value, GroupHash::of(group, &[3; GROUP_LEN]).value);
        }
        assert!(carrier.next_of_rest().await.is_none());
        assert_eq!(Arc::strong_count(&file), 1, "nobody holds the file any more");
        lane.join().unwrap();
    }

    #[tokio::test]
    async fn what_came_and_was_not_looked_at_is_told_at_the_end() {
        let lanes = Lanes::new();
        let mut carrier = lanes.carry(7, Shelf::default());
        assert_eq!(lanes.missing(2), 1);
        let number = lanes.enter(Place::Task).unwrap();
        let mut groups = 0..2;
        assert_eq!(carrier.ask(2 * GROUP_LEN as u64, 2, || groups.next()).groups, 2);
        let mut front = Front::let_in(&lanes, number, Place::Task, &Pool::new(4 * GROUP_LEN));
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(space)) = front.poll_space(&mut cx, 7, 0, GROUP_LEN) else { panic!("no space") };
        space.fill(3);
        front.filled(7, 0, GROUP_LEN).unwrap();
        let Some(Rest::Came(0, parts)) = carrier.next_of_rest().await else { panic!("it is lost") };
        assert!(parts.len() == 1 && parts[0].iter().all(|&byte| byte == 3));
        assert!(carrier.next_of_rest().await.is_none());
    }

    #[tokio::test]
    async fn a_lane_that_is_not_let_in_yet_asks_and_sends_a_little() {
        let lanes = Lanes::new();
        let carrier = lanes.carry(7, Shelf::default());
        assert_eq!(lanes.missing(2), 1);
        let number = lanes.enter(Place::Task).unwrap();
        let mut front = Front::new(lanes.clone(), number, Place::Task, Pool::new(4 * GROUP_LEN));
        let mut cx = Context::from_waker(Waker::noop());
        for group in 0..2 {
            let offset = group_offset(group);
            carrier.send(group, offset, Bytes::from(vec![1; UNPROVEN_MAX - 1])).await.unwrap();
        }
        let mut groups = 2..3;
        assert_eq!(carrier.ask(3 * GROUP_LEN as u64, 1, || groups.next()).groups, 1);
        assert_eq!(lanes.lock().lanes[&number].requests.len(), 1);
        let mut send = |front: &mut Front| match front.poll_data(&mut cx) {
            Poll::Ready((_, offset, content)) => Some((offset, content.len())),
            Poll::Pending => None,
        };
        assert_eq!(send(&mut front), Some((0, UNPROVEN_MAX - 1)));
        assert_eq!(send(&mut front), Some((GROUP_LEN as u64, 1)));
        assert_eq!(send(&mut front), None, "it may not be let in");
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Err(refused)) = front.poll_space(&mut cx, 7, 2 * GROUP_LEN as u64, 9) else { panic!("let in") };
        assert_eq!(refused.kind(), ErrorKind::Protocol);
        front.is_greeted = true;
        let Poll::Ready((_, offset, content)) = front.poll_data(&mut cx) else { panic!("held back") };
        assert_eq!((offset, content.len()), (GROUP_LEN as u64 + 1, UNPROVEN_MAX - 2));
        assert!(
            matches!(front.poll_space(&mut cx, 7, 2 * GROUP_LEN as u64, 9), Poll::Ready(Ok(space)) if space.len() == 9)
        );
        assert_eq!(carrier.under_way(), 2);
    }

    #[tokio::test]
    async fn a_session_that_ends_leaves_who_is_at_work_to_be_waited_for() {
        let lanes = Lanes::new();
        let mut carrier = lanes.carry(1, Shelf::default());
        let reports = lanes.lock().transfers[&1].reports.clone();
        lanes.end();
        let at_work = async move {
            tokio::task::yield_now().await;
            drop(reports.try_send(Report::Worked(5, Ok(GroupHash::of(5, b"x")))));
        };
        let (rest, ()) = tokio::join!(carrier.next_of_rest(), at_work);
        assert!(matches!(rest, Some(Rest::Worked(5, Ok(_)))));
        assert!(carrier.next_of_rest().await.is_none());
    }

    /// What a lane takes of an upload, and is asked for of a download.
    #[tokio::test]
    async fn lanes_begin_nothing_more_of_a_transfer_that_rests() {
        let lanes = Lanes::new();
        let carriers = [7, 8].map(|transfer| lanes.carry(transfer, Shelf::default()));
        assert_eq!(lanes.missing(2), 1);
        let number = lanes.enter(Place::Thread).unwrap();
        let mut front = Front::let_in(&lanes, number, Place::Thread, &Pool::new(4 * GROUP_LEN));
        let mut groups = 10..20;
        let mut ask = || carriers[0].ask(20 * GROUP_LEN as u64, 10, || groups.next()).groups;
        carriers[0].rest(true);
        assert_eq!(ask(), 0);
        for (carrier, group) in [(0, 0), (1, 0), (0, 1), (0, 2)] {
            carriers[carrier].send(group, group_offset(group), Bytes::from_static(b"x")).await.unwrap();
        }
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        let mut taken = || match front.poll_data(&mut cx) {
            Poll::Ready((transfer, offset, _)) => Some((transfer, offset / GROUP_LEN as u64)),
            Poll::Pending => None,
        };
        assert_eq!((taken(), taken()), (Some((8, 0)), None), "the other one does not rest");
        let first = |waker| lanes.take_first(&Context::from_waker(waker)).map(|group| (group.transfer, group.index));
        assert_eq!(first(&waker), Some((7, 0)), "the first connection goes on");
        let before = wakes.0.load(Ordering::Relaxed);
        carriers[0].rest(true);
        assert_eq!(wakes.0.load(Ordering::Relaxed), before, "nothing changed");
        carriers[0].rest(false);
        assert_eq!(wakes.0.load(Ordering::Relaxed), before + 1, "there is something to take");
        assert_eq!((taken(), ask()), (Some((7, 1)), WANTED_MIN));
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn lanes_are_counted_on_from_when_they_are_opened() {
        let lanes = Lanes::new();
        assert_eq!(lanes.count(), 0);
        assert_eq!(lanes.missing(3), 2);
        assert_eq!(lanes.count(), 2, "what is asked of the first connection now is its part");
        lanes.not_opened();
        assert_eq!(lanes.count(), 1);
        let number = lanes.enter(Place::Task).unwrap();
        assert_eq!(lanes.count(), 1);
        lanes.leave(number);
        assert_eq!(lanes.count(), 0);
    }
}
