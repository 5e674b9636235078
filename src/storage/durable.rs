//! Which directories are known to survive a power cut: they, and every directory above them, were synced by us.
//!
//! An inode number may be used again after its directory is gone, and a moved directory takes all below it along.
//! So while anything is renamed or removed nothing counts as known, and afterwards everything is forgotten:
//! learning it anew costs one sync per directory.

use std::collections::HashSet;
use std::sync::Mutex;

use super::{Identity, lock};
use crate::limits::DURABLE_DIRECTORIES_MAX;

/// The bounded set. Full, it is emptied.
#[derive(Default)]
pub(super) struct Directories {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashSet<Identity>,
    /// Renames and removals of directories that are going on.
    changes: usize,
    generation: u64,
}

/// The moment at which one began to look at directories; what was learnt from an older one may not hold.
#[derive(Clone, Copy)]
pub(super) struct Generation(u64);

/// A rename or removal of a directory that is going on.
pub(super) struct Change<'a>(&'a Directories);

impl Directories {
    pub(super) fn generation(&self) -> Generation {
        Generation(lock(&self.state).generation)
    }

    pub(super) fn contains(&self, identity: Identity) -> bool {
        let state = lock(&self.state);
        state.changes == 0 && state.known.contains(&identity)
    }

    /// Remembers directories that were seen to be durable since `since`.
    pub(super) fn insert(&self, identities: impl IntoIterator<Item = Identity>, since: Generation) {
        let mut state = lock(&self.state);
        if state.changes > 0 || state.generation != since.0 {
            return;
        }
        for identity in identities {
            if state.known.len() >= DURABLE_DIRECTORIES_MAX {
                state.known.clear();
            }
            state.known.insert(identity);
        }
    }

    /// Forgets a directory that is new under a number that may have been used before.
    pub(super) fn forget(&self, identity: Identity) {
        lock(&self.state).known.remove(&identity);
    }

    /// To be held while directories are renamed or removed.
    pub(super) fn change(&self) -> Change<'_> {
        let mut state = lock(&self.state);
        state.changes += 1;
        state.generation += 1;
        state.known.clear();
        Change(self)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.changes -= 1;
        state.generation += 1;
    }
}
