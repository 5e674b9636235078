//! What became of each upload id: a lost answer is found again, and one attempt at a time may commit.
//!
//! A client gives every file of a run a random upload id and uses it in every attempt. The newest attempt takes the
//! upload over; an older one that is still receiving is told `Superseded` when it tries to commit. While a commit
//! runs, a new attempt is told to come again; after it, it gets the first answer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::recent::{Key, Recent};
use crate::access::Principal;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::OUTCOMES_MAX;
use crate::path::RemotePath;
use crate::protocol::{Bytes16, Stored};

/// The memory of a server. A key is the hash of principal, id and name: another name under the same id is another
/// upload.
#[derive(Clone, Default)]
pub(crate) struct Outcomes(Arc<Mutex<Table>>);

struct Table {
    /// Uploads that have not ended.
    open: HashMap<Key, State>,
    ended: Recent<Stored>,
    generation: u64,
}

impl Default for Table {
    fn default() -> Table {
        Table { open: HashMap::new(), ended: Recent::new(OUTCOMES_MAX), generation: 0 }
    }
}

enum State {
    /// By which attempt, and by which session.
    Receiving(u64, u64),
    Committing(u64),
}

/// What an attempt meets.
pub(crate) enum Begin {
    /// It may go on.
    Go(Attempt),
    /// It is done already: the answer of the attempt that did it.
    Known(Stored),
}

/// The right to receive, and then to commit, one upload. Dropping it gives the right back.
pub(crate) struct Attempt {
    table: Outcomes,
    key: Key,
    generation: u64,
    session: u64,
}

/// Why an attempt that is not the newest ends.
fn superseded(path: &RemotePath) -> Error {
    Error::new(ErrorKind::Superseded, format!("a newer attempt has taken over the upload of {path}"))
}

impl Outcomes {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is whole between any two statements that hold the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an attempt of a session, taking over from one of the same or an older session that is still receiving:
    /// sessions are numbered as they begin.
    ///
    /// # Errors
    /// `Busy` while an earlier attempt commits: its answer will be there soon. `Superseded` when a newer session is
    /// receiving: what its client has said over an older connection before has come late.
    pub(crate) fn begin(&self, principal: &Principal, id: &Bytes16, path: &RemotePath, session: u64) -> Result<Begin> {
        let key = key(principal, id, path);
        let mut table = self.lock();
        if let Some(stored) = table.ended.get(&key) {
            return Ok(Begin::Known(stored.clone()));
        }
        match table.open.get(&key) {
            Some(State::Committing(_)) => {
                return Err(Error::new(ErrorKind::Busy, format!("an earlier attempt at {path} is being committed")));
            }
            Some(State::Receiving(_, newer)) if *newer > session => return Err(superseded(path)),
            Some(State::Receiving(..)) | None => {}
        }
        table.generation += 1;
        let generation = table.generation;
        table.open.insert(key, State::Receiving(generation, session));
        drop(table);
        Ok(Begin::Go(Attempt { table: self.clone(), key, generation, session }))
    }

    /// Whether this upload of the principal was stored under this name, as far as that is remembered.
    pub(crate) fn has_stored(&self, principal: &Principal, id: &Bytes16, path: &RemotePath) -> bool {
        let key = key(principal, id, path);
        self.lock().ended.get(&key).is_some()
    }
}

impl Attempt {
    /// What all attempts at this upload have in common, and no other upload.
    pub(crate) fn key(&self) -> [u8; 32] {
        self.key
    }

    /// The number of this attempt; a later one has a higher number.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Enters the commit; from here on no other attempt can take over.
    ///
    /// # Errors
    /// `Superseded` when another has.
    pub(crate) fn enter_commit(&self, path: &RemotePath) -> Result<()> {
        let mut table = self.table.lock();
        match table.open.get_mut(&self.key) {
            Some(state @ State::Receiving(..)) if state.is(self.generation) => {
                *state = State::Committing(self.generation);
                Ok(())
            }
            _ => Err(superseded(path)),
        }
    }

    /// Goes back to receiving: nothing was committed.
    pub(crate) fn leave_commit(&self) {
        let mut table = self.table.lock();
        if let Some(state) = table.open.get_mut(&self.key).filter(|state| state.is(self.generation)) {
            *state = State::Receiving(self.generation, self.session);
        }
    }

    /// Remembers how a commit ended well.
    pub(crate) fn ended(self, stored: &Stored) {
        // Dropped at the end, it is open no more.
        self.table.lock().ended.insert(self.key, stored.clone());
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        if let Entry::Occupied(open) = table.open.entry(self.key)
            && open.get().is(self.generation)
        {
            open.remove();
        }
    }
}

impl State {
    fn is(&self, attempt: u64) -> bool {
        matches!(self, State::Receiving(generation, _) | State::Committing(generation) if *generation == attempt)
    }
}

fn key(principal: &Principal, id: &Bytes16, path: &RemotePath) -> Key {
    let mut hasher = blake3::Hasher::new();
    match principal {
        Principal::Certified { key, .. } => hasher.update(&[1]).update(key),
        Principal::Invite(invite) => hasher.update(&[2]).update(&invite.id.0).update(&[0; 24]),
        Principal::Anonymous => hasher.update(&[0; 33]),
    };
    hasher.update(&id.0).update(&path.to_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Outcome;

    fn go(outcomes: &Outcomes) -> Attempt {
        match outcomes.begin(&Principal::Anonymous, &Bytes16([7; 16]), &RemotePath::root(), 1) {
            Ok(Begin::Go(attempt)) => attempt,
            _ => panic!("the attempt may begin"),
        }
    }

    #[test]
    fn the_newest_attempt_commits_and_the_answer_is_found_again() {
        let outcomes = Outcomes::default();
        let path = RemotePath::root();
        let (first, second) = (go(&outcomes), go(&outcomes));
        assert!(second.generation() > first.generation());
        assert_eq!(first.enter_commit(&path).unwrap_err().kind(), ErrorKind::Superseded);
        drop(first);
        second.enter_commit(&path).unwrap();
        let begin = || outcomes.begin(&Principal::Anonymous, &Bytes16([7; 16]), &path, 1);
        assert_eq!(begin().map(|_| ()).unwrap_err().kind(), ErrorKind::Busy);
        second.ended(&Stored { outcome: Outcome::Stored, root: None, size: 3, path: None, xattrs_lost: None });
        assert!(matches!(begin(), Ok(Begin::Known(Stored { size: 3, .. }))));
    }

    #[test]
    fn a_failed_commit_may_be_tried_again() {
        let outcomes = Outcomes::default();
        let attempt = go(&outcomes);
        attempt.enter_commit(&RemotePath::root()).unwrap();
        drop(attempt);
        go(&outcomes).enter_commit(&RemotePath::root()).unwrap();
    }
}
