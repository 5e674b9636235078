//! The groups of one upload, which the connections of its session fill together.
//!
//! Invariants: one connection at a time fills a group; whoever begins it anew takes it over, but only while none of
//! its bytes are being written and not all of them have come. So what is recorded as a group's hash is the hash of
//! what stands in the file, whatever two connections send. A group is recorded by the job that wrote it, so it
//! counts though the connection that brought it be gone by then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::held::Sink;
use super::offer::{Found, next_claimed};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, GroupHasher};
use crate::limits::GROUP_LEN;
use crate::protocol::Breach;
use crate::transfer::{Piece, Receiver};

/// One upload's groups. Held by the connection that the upload was described on, and lent to those that joined.
pub(super) struct Groups(Mutex<State>);

pub(super) struct State {
    /// The first connection of the session.
    first: u64,
    pub(super) receiver: Receiver,
    /// Where content goes; none before the file is made, and none after the commit has taken over.
    pub(super) file: Option<Arc<Sink>>,
    /// Which connection fills a group that is begun.
    owners: HashMap<u64, u64>,
    /// Groups that a job writes into now.
    writing: HashMap<u64, usize>,
    /// Connections that wait for a write to end or for the file.
    waiting: Vec<Waker>,
    /// Another connection has content for a file that is not made yet.
    wants_file: bool,
    /// What was claimed to be there (ranges of offset and end), while not all of it is told.
    claimed: Vec<(u64, u64)>,
    /// The first group of that whose value is not told yet.
    told: u64,
    /// Beginnings of groups that are there.
    begun: HashMap<u64, Box<GroupHasher>>,
    /// Why no more can be written.
    failure: Option<Error>,
    /// Content is of no use any more, and thrown away.
    is_over: bool,
}

/// Where a piece goes.
pub(super) enum Place {
    Here(Piece),
    /// It is there already, or of no use.
    Nowhere,
}

impl Groups {
    /// An upload of this size, none for a stream, whose session has this first connection.
    pub(super) fn new(size: Option<u64>, first: u64) -> Arc<Groups> {
        Arc::new(Groups(Mutex::new(State {
            first,
            receiver: Receiver::new(size),
            file: None,
            owners: HashMap::new(),
            writing: HashMap::new(),
            waiting: Vec::new(),
            wants_file: false,
            claimed: Vec::new(),
            told: 0,
            begun: HashMap::new(),
            failure: None,
            is_over: false,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that hold the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No content is taken any more. Who waits is woken to see it.
    pub(super) fn end(&self) {
        let file = {
            let mut state = self.lock();
            state.is_over = true;
            state.wake();
            state.file.take()
        };
        // Not under the lock, which lanes take on threads that others need: the last handle syncs.
        drop(file);
    }

    /// As [`Groups::end`], but what has come is still to be laid to rest.
    pub(super) fn cut(&self) {
        let mut state = self.lock();
        state.is_over = true;
        state.wake();
    }

    /// These ranges are claimed to be there; until their values are told, nothing is written to their places.
    pub(super) fn claim(&self, ranges: Vec<(u64, u64)>) {
        self.lock().claimed = ranges;
    }

    /// Some of what was claimed is told: all before `next`, or all.
    pub(super) fn told(&self, found: Vec<(u64, Found)>, next: Option<u64>) {
        let mut state = self.lock();
        for (group, found) in found {
            match found {
                Found::InPlace(hash) => state.receiver.hold(group, hash),
                Found::Begun(len, hasher) => {
                    state.receiver.hold_prefix(group, len);
                    state.begun.insert(group, hasher);
                }
                Found::InBase(_) | Found::Nothing => {}
            }
        }
        match next {
            Some(next) => state.told = next,
            None => state.claimed.clear(),
        }
        state.wake();
    }

    /// Begins a group where this piece does, and gives the hasher for what comes.
    ///
    /// # Errors
    /// `Internal` when its beginning is not there after all.
    pub(super) fn begin_group(&self, piece: Piece) -> Result<Box<GroupHasher>> {
        let mut state = self.lock();
        if piece.start > 0 {
            // Kept, in case that the rest does not come whole either.
            let begun = state.begun.get(&piece.group).filter(|hasher| hasher.count() == piece.start as u64);
            return begun.cloned().ok_or_else(|| Error::new(ErrorKind::Internal, "a group without its beginning"));
        }
        state.begun.remove(&piece.group);
        if let Some(file) = &state.file {
            file.loses(piece.group);
        }
        Ok(Box::new(GroupHasher::new(piece.group)))
    }

    /// Ends the upload for a commit, which gets what was received.
    pub(super) fn take_receiver(&self) -> Receiver {
        self.end();
        std::mem::replace(&mut self.lock().receiver, Receiver::new(None))
    }

    /// The file is made.
    pub(super) fn set_file(&self, file: Arc<Sink>) {
        let mut state = self.lock();
        if !state.is_over {
            state.file = Some(file);
        }
        state.wake();
    }

    /// Whether somebody waits for the file to be made.
    pub(super) fn wants_file(&self) -> bool {
        let state = self.lock();
        state.wants_file && state.file.is_none()
    }

    /// Why no more could be written, if so.
    pub(super) fn failure(&self) -> Option<Error> {
        self.lock().failure.as_ref().map(Error::duplicate)
    }

    /// Gives up the groups that a connection has begun and not brought whole.
    pub(super) fn release(&self, connection: u64) {
        let mut state = self.lock();
        let State { owners, receiver, .. } = &mut *state;
        owners.retain(|&group, owner| *owner != connection || receiver.is_whole(group));
        state.wake();
    }

    /// Begins a job that writes into a group; ends with [`Groups::written`]. None when the group is not this
    /// connection's any more.
    pub(super) fn begin_write(&self, connection: u64, group: u64) -> Option<Arc<Sink>> {
        let mut state = self.lock();
        if state.owners.get(&group) != Some(&connection) {
            return None;
        }
        let file = state.file.clone()?;
        *state.writing.entry(group).or_default() += 1;
        Some(file)
    }

    /// A job has written into a group; with the hash when the group is whole.
    pub(super) fn written(&self, group: u64, result: Result<Option<GroupHash>, &Error>) {
        let mut state = self.lock();
        if let Some(count) = state.writing.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                state.writing.remove(&group);
            }
        }
        match result {
            Ok(Some(hash)) => {
                state.owners.remove(&group);
                state.receiver.insert(group, hash);
            }
            Ok(None) => {}
            Err(error) => {
                state.failure.get_or_insert_with(|| error.duplicate());
                state.is_over = true;
            }
        }
        state.wake();
    }
}

impl State {
    fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether no job writes now.
    pub(super) fn is_written(&self) -> bool {
        self.writing.is_empty()
    }

    /// Whether values of what was claimed are still to be told.
    pub(super) fn is_offering(&self) -> bool {
        !self.claimed.is_empty()
    }

    /// Whether the server is still looking at what it claimed to have of this group.
    fn is_untold(&self, group: u64) -> bool {
        group >= self.told && next_claimed(&self.claimed, group) == Some(group)
    }

    /// Whether something could not be written.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether content is of no use any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Says that content waits for the file, and waits for it.
    pub(super) fn wait_for_file<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        self.wants_file = true;
        self.wait(cx)
    }

    /// Whether a group is there, or all its bytes are.
    pub(super) fn is_whole(&self, group: u64) -> bool {
        self.receiver.is_whole(group)
    }

    /// Says where a piece goes that a connection brings, and makes the group that connection's. `is_shared`: other
    /// connections may bring content too. `begun` is the offset at which this connection may go on with a group
    /// that is not its own (any more).
    ///
    /// # Errors
    /// As [`Receiver::check`].
    pub(super) fn place(
        &mut self,
        cx: &Context<'_>,
        connection: u64,
        is_shared: bool,
        begun: Option<u64>,
        (offset, len): (u64, usize),
    ) -> Poll<Result<Place, Breach>> {
        let group = offset / GROUP_LEN as u64;
        let owner = self.owners.get(&group).copied();
        if self.is_over {
            return Poll::Ready(Ok(Place::Nowhere));
        }
        if self.is_untold(group) {
            // What is written to its place now could be written over.
            return self.wait(cx);
        }
        if is_shared && owner != Some(connection) {
            self.receiver.check_range(offset, len)?;
            let is_start = offset.is_multiple_of(GROUP_LEN as u64) || self.receiver.goes_on_at(offset);
            if !is_start && begun == Some(offset) || is_start && self.is_whole(group) {
                return Poll::Ready(Ok(Place::Nowhere));
            }
            if is_start && (owner.is_some() || self.receiver.is_open(group)) {
                if owner == Some(self.first) {
                    // Its finish follows what it brings, and there it must not find that a lane took a group over, and
                    // may have died since.
                    return Poll::Ready(Ok(Place::Nowhere));
                }
                if self.writing.contains_key(&group) {
                    return self.wait(cx);
                }
                // The latest to begin a group has it: the other has given up, or will find that it may.
                self.receiver.reset(group);
                self.owners.remove(&group);
            }
        }
        let piece = self.receiver.check(offset, len)?;
        self.owners.insert(group, connection);
        Poll::Ready(Ok(Place::Here(piece)))
    }

    /// Takes note of a piece that has come. None when the group was taken over meanwhile, or is of no use.
    ///
    /// # Errors
    /// As [`Receiver::accept`].
    pub(super) fn accept(&mut self, connection: u64, offset: u64, len: usize) -> Result<Option<Piece>, Breach> {
        if self.is_over || self.owners.get(&(offset / GROUP_LEN as u64)) != Some(&connection) {
            return Ok(None);
        }
        self.receiver.accept(offset, len).map(Some)
    }
}
