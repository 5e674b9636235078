//! A file that is being read for its downloader, over any connection of the session, and what of it was sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::hash::{RangeHash, Root, Sent};
use crate::storage::StoredFile;

pub(super) struct Source {
    pub(super) file: Arc<StoredFile>,
    sent: Mutex<Sent>,
    state: Mutex<State>,
}

struct State {
    /// Its client wants to be told when all of it was sent, and has not been.
    foretells: bool,
    /// All of it was sent.
    is_all: bool,
    /// Nothing was sent since that was told.
    is_as_told: bool,
    /// Why a lane could not read on.
    failure: Option<Error>,
}

impl Source {
    /// An open file of which nothing was sent, to a client that wants to be told when all of it was, or does not.
    pub(super) fn new(file: StoredFile, foretells: bool) -> Arc<Source> {
        let sent = Mutex::new(Sent::new(file.size()));
        let state = Mutex::new(State { foretells, is_all: false, is_as_told: false, failure: None });
        Arc::new(Source { file: Arc::new(file), sent, state })
    }

    fn hashes(&self) -> MutexGuard<'_, Sent> {
        // It is whole between any two insertions.
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each statement that holds the lock leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range was sent. The answer is whether that is to be told, as nothing is missing any more.
    pub(super) fn sent(&self, range: RangeHash) -> bool {
        let mut sent = self.hashes();
        sent.insert(range);
        let is_all = sent.is_all();
        drop(sent);
        let mut state = self.state();
        // It was, once it was: another connection may have come here first.
        state.is_all |= is_all;
        state.is_as_told = false;
        state.foretells && state.is_all
    }

    /// Whether it is to be told that all was sent. It is only once.
    pub(super) fn take_end(&self) -> bool {
        let mut state = self.state();
        let is_end = state.foretells && state.is_all;
        if is_end {
            (state.foretells, state.is_as_told) = (false, true);
        }
        is_end
    }

    /// Whether nothing was sent since it was told that all was.
    pub(super) fn is_as_told(&self) -> bool {
        self.state().is_as_told
    }

    /// The root of what was sent, when that was all. Of a large file that takes a while, in which nobody is held up.
    pub(super) fn root(&self) -> Option<Root> {
        let tree = self.hashes().tree().cloned();
        tree.and_then(|tree| tree.root(self.file.size()))
    }

    /// A lane could not read on.
    pub(super) fn failed(&self, error: &Error) {
        self.state().failure.get_or_insert_with(|| error.duplicate());
    }

    /// Why a lane could not read on, if so.
    pub(super) fn failure(&self) -> Option<Error> {
        self.state().failure.as_ref().map(Error::duplicate)
    }
}
