//! A file that is being read for its downloader, over any connection of the session, and what of it was sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::hash::{RangeHash, Root, Sent};
use crate::storage::StoredFile;

pub(super) struct Source {
    pub(super) file: Arc<StoredFile>,
    state: Mutex<State>,
}

struct State {
    sent: Sent,
    /// Its client wants to be told when all of it was sent, and has not been.
    foretells: bool,
    /// Why a lane could not read on.
    failure: Option<Error>,
}

impl Source {
    /// An open file of which nothing was sent, to a client that wants to be told when all of it was, or does not.
    pub(super) fn new(file: StoredFile, foretells: bool) -> Arc<Source> {
        let state = State { sent: Sent::new(file.size()), foretells, failure: None };
        Arc::new(Source { file: Arc::new(file), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is whole between any two insertions.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range was sent. The answer is whether that is to be told, as nothing is missing any more.
    pub(super) fn sent(&self, range: RangeHash) -> bool {
        let mut state = self.state();
        state.sent.insert(range);
        state.foretells && state.sent.is_all()
    }

    /// Whether it is to be told that all was sent. It is only once.
    pub(super) fn take_end(&self) -> bool {
        let mut state = self.state();
        let is_end = state.foretells && state.sent.is_all();
        state.foretells &= !is_end;
        is_end
    }

    /// The root of what was sent, when that was all.
    pub(super) fn root(&self) -> Option<Root> {
        self.state().sent.root()
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
