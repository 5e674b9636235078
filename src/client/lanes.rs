//! Further connections of a session, and the queue that all its connections take groups from.
//!
//! Groups of uploads of known size lie in one queue; the first connection and each *lane* that has joined take the
//! next one whenever they can write more, so none owns a range and a slow one holds nobody up. A group that a lane
//! took is under way until the server says that it is written; when the lane dies before that, the group is lost and
//! its upload hears of it, to send it again. What the first connection took needs no such word: the finish follows
//! it on the same connection.
//!
//! Invariants: a lane never opens or ends a transfer; the queue is bounded by permits, what is under way by what the
//! network holds; when the session ends, so do its lanes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

use crate::client::session::{CLOSE_TIMEOUT, Life};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{DATA_LEN_MAX, JOINS_MAX};
use crate::net::{Connection, Event, Handler};
use crate::protocol::{Breach, Goodbye, Kind, Message, Working, Written};

/// Groups of content that wait to be taken: enough to keep TLS busy while the next are read. 4 MiB.
const ROOM: usize = 4;

/// Groups that a lane has taken and is not told to be written: fills 1 Gbit/s at 500 ms.
const UNDER_WAY_MAX: usize = 64;
/// Reports of one transfer that are not looked at: there is at most one for each group that is under way.
const REPORTS_MAX: usize = ROOM + (JOINS_MAX + 1) * (UNDER_WAY_MAX + 1);

/// The lanes of one session.
#[derive(Clone)]
pub(crate) struct Lanes(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    room: Arc<Semaphore>,
}

struct State {
    queue: VecDeque<Group>,
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
    uploads: HashMap<u32, mpsc::Sender<Report>>,
    has_ended: bool,
}

struct Lane {
    waker: Option<Waker>,
    /// Groups that it took and that are not known to be written.
    under_way: HashSet<(u32, u64)>,
}

/// A group that is to be sent.
pub(crate) struct Group {
    transfer: u32,
    index: u64,
    offset: u64,
    content: Bytes,
    _room: OwnedSemaphorePermit,
}

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// It need not be sent again.
    Sent(u64),
    /// The lane that had it has died.
    Lost(u64),
}

/// An upload whose groups go through the queue. Dropping it takes back those that are still there.
pub(crate) struct Carrier {
    lanes: Lanes,
    transfer: u32,
    reports: mpsc::Receiver<Report>,
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
            uploads: HashMap::new(),
            has_ended: false,
        };
        Lanes(Arc::new(Shared { state: Mutex::new(state), room: Arc::new(Semaphore::new(ROOM)) }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No statement between lock and unlock leaves the state half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters an upload. One number is entered once.
    pub(crate) fn carry(&self, transfer: u32) -> Carrier {
        let (sender, reports) = mpsc::channel(REPORTS_MAX);
        self.lock().uploads.insert(transfer, sender);
        Carrier { lanes: self.clone(), transfer, reports }
    }

    /// Ends all lanes, and every wait for room.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
        state.queue.clear();
        state.uploads.clear();
        state.wake();
        drop(state);
        self.0.room.close();
    }

    /// How many lanes to open so that there are `count` connections. Whoever asks opens them, each of which ends in
    /// [`Lanes::open`] or [`Lanes::not_opened`].
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

    /// A lane could not be opened: the session goes on with what it has.
    pub(crate) fn not_opened(&self) {
        let mut state = self.lock();
        state.opening -= 1;
        state.is_full = true;
    }

    /// Drives a lane until it or the session ends.
    pub(crate) async fn drive(self, mut connection: Connection) {
        let Some(number) = self.enter() else { return };
        let mut front = Front { lanes: self.clone(), number, taken: None };
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut life = Life::new();
        let ended = {
            let step = std::future::poll_fn(|cx| front.poll_step(cx, &mut connection, &mut ticks, &mut life));
            pin!(step).await
        };
        self.leave(number);
        if ended.is_ok() {
            // Nothing is owed to anybody: how the connection goes is a courtesy.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close()).await;
        }
    }

    fn enter(&self) -> Option<u64> {
        let mut state = self.lock();
        state.opening -= 1;
        if state.has_ended {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.lanes.insert(number, Lane { waker: None, under_way: HashSet::new() });
        Some(number)
    }

    fn leave(&self, number: u64) {
        let mut state = self.lock();
        let Some(lane) = state.lanes.remove(&number) else { return };
        for (transfer, group) in lane.under_way {
            state.report(transfer, Report::Lost(group));
        }
    }

    /// The next group for the first connection, whose task is woken when there is one.
    pub(crate) fn take_first(&self, cx: &Context<'_>) -> Option<Group> {
        let mut state = self.lock();
        let group = state.queue.pop_front();
        if group.is_none() {
            state.first = Some(cx.waker().clone());
        }
        group
    }

    /// The next piece of a group that a connection has taken; the group is gone after its last.
    pub(crate) fn piece(&self, taken: &mut Option<Group>, is_first: bool) -> Option<(u32, u64, Bytes)> {
        let group = taken.as_mut()?;
        let piece = group.content.split_to(group.content.len().min(DATA_LEN_MAX));
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
        self.lock().uploads.contains_key(&group.transfer)
    }
}

impl State {
    fn wake(&mut self) {
        self.first.take().into_iter().for_each(Waker::wake);
        self.lanes.values_mut().filter_map(|lane| lane.waker.take()).for_each(Waker::wake);
    }

    fn report(&self, transfer: u32, report: Report) {
        if let Some(reports) = self.uploads.get(&transfer) {
            // Nobody listening any more is all right: the transfer was given up. There always is room.
            let _ = reports.try_send(report);
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
        state.queue.push_back(Group { transfer: self.transfer, index, offset, content, _room: room });
        state.wake();
        Ok(())
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
        let mut state = self.lanes.lock();
        let transfer = self.transfer;
        state.uploads.remove(&transfer);
        state.queue.retain(|group| group.transfer != transfer);
        state.lanes.values_mut().for_each(|lane| lane.under_way.retain(|&(other, _)| other != transfer));
    }
}

/// A lane's side of the content that it moves.
struct Front {
    lanes: Lanes,
    number: u64,
    taken: Option<Group>,
}

impl Handler for Front {
    fn poll_space(&mut self, _: &mut Context<'_>, _: u32, _: u64, _: usize) -> Poll<Result<&mut [u8]>> {
        Poll::Ready(Err(Breach::Data("content that was not asked for").into()))
    }

    fn filled(&mut self, _: u32, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        if self.taken.as_ref().is_some_and(|group| !self.lanes.is_carried(group)) {
            self.taken = None;
        }
        if self.taken.is_none() {
            let mut state = self.lanes.lock();
            let State { queue, lanes, .. } = &mut *state;
            let Some(lane) = lanes.get_mut(&self.number) else { return Poll::Pending };
            let group = if lane.under_way.len() < UNDER_WAY_MAX { queue.pop_front() } else { None };
            match &group {
                Some(group) => drop(lane.under_way.insert((group.transfer, group.index))),
                None => lane.waker = Some(cx.waker().clone()),
            }
            self.taken = group;
        }
        self.lanes.piece(&mut self.taken, false).map_or(Poll::Pending, Poll::Ready)
    }
}

impl Front {
    /// Drives the lane as far as it goes. Ready when it is over.
    fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
        ticks: &mut tokio::time::Interval,
        life: &mut Life,
    ) -> Poll<Result<()>> {
        let is_due = {
            let mut state = self.lanes.lock();
            let has_ended = state.has_ended;
            let Some(lane) = state.lanes.get_mut(&self.number).filter(|_| !has_ended) else {
                return Poll::Ready(Ok(()));
            };
            lane.waker = Some(cx.waker().clone());
            !lane.under_way.is_empty()
        };
        while ticks.poll_tick(cx).is_ready() {
            life.tick(connection, is_due, is_due)?;
        }
        while let Poll::Ready(event) = connection.poll_next(cx, self) {
            match event? {
                Event::Control(Kind::Written, transfer, payload) => {
                    self.written(transfer, &Written::from_payload(&payload)?)?;
                }
                Event::Control(Kind::Working, _, payload) => {
                    Working::from_payload(&payload)?;
                }
                Event::Control(Kind::Goodbye, _, payload) => {
                    return Poll::Ready(Err(Goodbye::from_payload(&payload)?.to_error()));
                }
                Event::Control(kind, ..) => {
                    return Poll::Ready(Err(Breach::Unexpected { kind, why: "a lane carries content only" }.into()));
                }
                Event::Closed => {
                    return Poll::Ready(Err(Error::new(ErrorKind::Connection, "the server ended a lane")));
                }
            }
        }
        Poll::Pending
    }

    fn written(&self, transfer: u32, written: &Written) -> Result<()> {
        let mut state = self.lanes.lock();
        // Given up on our side: what was on its way is of no use.
        let is_carried = state.uploads.contains_key(&transfer);
        for &group in &written.groups.0 {
            let Some(lane) = state.lanes.get_mut(&self.number) else { return Ok(()) };
            if lane.under_way.remove(&(transfer, group)) {
                state.report(transfer, Report::Sent(group));
            } else if is_carried {
                return Err(Breach::Data("a group that was not sent is written").into());
            }
        }
        Ok(())
    }
}
