//! Which of several uploads to one name is the newest, whatever connection brings it, and when it arrives.
//!
//! A client that gives a connection up and goes on over another cannot call back what is still on its way over the
//! first. So each upload has a *moment* after which its client surely asked for it, counted by the server: for one
//! that was answered before its content came, that of its description; for one that came whole and unasked, the
//! latest at which its connection has shown that its client was there, which is its beginning, or a question that it
//! has answered. Nothing is stored over what another session of the same owner has asked for after that moment:
//!
//! - an upload that was asked for is then the older attempt, and ends as `Superseded`;
//! - one that came unasked may be new or may be late, so it is not believed: `Busy` asks its client to say it again
//!   ([`Standing`]). A client that is there does, and a dead one cannot.
//!
//! Commits to one name are one after the other, or two that began at the same time could end in the wrong order.
//! Different owners have no order between them, nor have the uploads of one session: the last to be committed stays.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::recent::{Key, Recent};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{NEWEST_NAMES_MAX, OPEN_TRANSFERS_MAX};
use crate::path::RemotePath;
use crate::protocol::Bytes16;

/// The moments of a server, and what was asked for when. A key is the hash of owner and name.
#[derive(Clone, Default)]
pub(super) struct Newest(Arc<Inner>);

#[derive(Default)]
struct Inner {
    table: Mutex<Table>,
    /// A commit has ended.
    ended: Condvar,
}

struct Table {
    now: u64,
    /// Those who wait for a commit to end.
    waiting: usize,
    /// The names that somebody stores under, or means to.
    busy: HashMap<Key, Busy>,
    /// The names under which something was committed, in the order of their first commits.
    committed: Recent<Latest>,
    /// What is known of the names that were forgotten, as if they were one.
    forgotten: Latest,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            now: 0,
            waiting: 0,
            busy: HashMap::new(),
            committed: Recent::new(NEWEST_NAMES_MAX),
            forgotten: Latest::default(),
        }
    }
}

/// What is under way under a name.
#[derive(Default)]
struct Busy {
    /// Uploads that were asked for and have not ended.
    described: Vec<Turn>,
    /// The session that commits now, and how many uploads.
    committing: Option<(u64, usize)>,
}

/// The latest moment of a commit, and the latest of any other session.
#[derive(Clone, Copy, Default)]
struct Latest {
    last: Turn,
    others: u64,
}

/// When an upload was surely asked for, and by which session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    moment: u64,
    /// The number of the session's first connection.
    session: u64,
    /// It came whole, before anything was said of it.
    is_unasked: bool,
}

impl Turn {
    /// The number of the session that asked.
    pub(super) fn session(&self) -> u64 {
        self.session
    }
}

/// When the client of a connection was surely there.
pub(super) struct Standing {
    newest: Newest,
    session: u64,
    since: u64,
    /// Uploads whose client was asked to say it again, and when.
    asked: HashMap<Bytes16, u64>,
}

/// An upload that was asked for and is under way. Dropped, it is not.
pub(super) struct Described {
    newest: Newest,
    key: Key,
    turn: Turn,
}

/// The right to commit under a name. Dropped, the next may.
pub(super) struct Entered {
    newest: Newest,
    key: Key,
    turn: Turn,
    is_over: bool,
}

/// Why an upload may not be committed.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: Error,
    /// The moment of the question, if the client may answer it by the same upload.
    pub(super) asked: Option<u64>,
}

impl Newest {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is whole between any two statements that hold the lock.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit has ended.
    fn tell_ended(&self, table: &Table) {
        // Telling nobody is a system call too.
        if table.waiting > 0 {
            self.0.ended.notify_all();
        }
    }

    /// A new session begins: its client is there now.
    pub(super) fn standing(&self, session: u64) -> Standing {
        Standing { newest: self.clone(), session, since: self.lock().tick(), asked: HashMap::new() }
    }

    /// An upload was asked for that may replace what is there.
    pub(super) fn describe(&self, key: Key, turn: Turn) -> Described {
        self.lock().busy.entry(key).or_default().described.push(turn);
        Described { newest: self.clone(), key, turn }
    }

    /// Enters the commit of an upload, after those of other sessions to the same name that have begun. With
    /// `may_replace`, only if nobody has asked for something newer. Blocks; one that came unasked does not wait.
    ///
    /// # Errors
    /// `Superseded` when it is not the newest, `Busy` when it may not be.
    pub(super) fn enter(&self, key: Key, turn: Turn, path: &RemotePath, may_replace: bool) -> Result<Entered, Refused> {
        let mut table = self.lock();
        loop {
            let known = table.committed.get(&key).copied().unwrap_or(table.forgotten);
            let name = table.busy.entry(key).or_default();
            let is_busy = name.committing.is_some_and(|(session, _)| session != turn.session);
            if is_busy && !turn.is_unasked {
                table.waiting += 1;
                table = self.0.ended.wait(table).unwrap_or_else(PoisonError::into_inner);
                table.waiting -= 1;
                continue;
            }
            let mut newest = known.of_others(turn.session);
            if turn.is_unasked {
                let described = name.described.iter().filter(|other| other.session != turn.session);
                newest = described.map(|other| other.moment).fold(newest, u64::max);
            }
            #[cfg(test)]
            let may_replace = may_replace && !super::sim::planted(super::sim::Planted::LateMayCommit);
            if is_busy || may_replace && newest > turn.moment {
                let asked = table.tick();
                table.tidy(&key);
                return Err(Refused::new(path, turn.is_unasked.then_some(asked)));
            }
            name.committing = Some((turn.session, name.committing.map_or(0, |(_, count)| count) + 1));
            let moment = if turn.is_unasked { table.tick() } else { turn.moment };
            return Ok(Entered { newest: self.clone(), key, turn: Turn { moment, ..turn }, is_over: false });
        }
    }
}

impl Refused {
    fn new(path: &RemotePath, asked: Option<u64>) -> Refused {
        let error = match asked {
            Some(_) => {
                let message = format!("{path} is being stored by another connection too: say again that it shall be");
                Error::new(ErrorKind::Busy, message)
            }
            None => {
                let message = format!("a newer upload has taken over the name {path}");
                Error::new(ErrorKind::Superseded, message)
            }
        };
        Refused { error, asked }
    }
}

impl Standing {
    /// The turn of an upload that is described now.
    pub(super) fn turn(&mut self, upload: &Bytes16, is_unasked: bool) -> Turn {
        if let Some(asked) = self.asked.remove(upload) {
            // Who says it again has read the question.
            self.since = self.since.max(asked);
        }
        let moment = if is_unasked { self.since } else { self.newest.lock().tick() };
        Turn { moment, session: self.session, is_unasked }
    }

    /// The client is asked to say again that it wants this upload.
    pub(super) fn ask(&mut self, upload: Bytes16, asked: u64) {
        if self.asked.len() >= OPEN_TRANSFERS_MAX {
            // Those that come now are asked for once more.
            self.asked.clear();
        }
        self.asked.insert(upload, asked);
    }
}

impl Entered {
    /// It is stored: what was asked for before is older. The next may commit.
    pub(super) fn stored(mut self) {
        self.is_over = true;
        let mut table = self.newest.lock();
        table.add(self.key, self.turn);
        table.leave(self.key);
        self.newest.tell_ended(&table);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if !self.is_over {
            let mut table = self.newest.lock();
            table.leave(self.key);
            self.newest.tell_ended(&table);
        }
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        let mut table = self.newest.lock();
        if let Some(name) = table.busy.get_mut(&self.key)
            && let Some(index) = name.described.iter().position(|turn| *turn == self.turn)
        {
            name.described.swap_remove(index);
        }
        table.tidy(&self.key);
    }
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Something was committed.
    fn add(&mut self, key: Key, turn: Turn) {
        if let Some(known) = self.committed.get_mut(&key) {
            return known.add(turn);
        }
        let mut latest = Latest::default();
        latest.add(turn);
        if let Some(oldest) = self.committed.insert(key, latest) {
            self.forgotten.merge(oldest);
        }
    }

    /// A commit has ended.
    fn leave(&mut self, key: Key) {
        if let Entry::Occupied(mut name) = self.busy.entry(key) {
            let committing = name.get().committing.filter(|(_, count)| *count > 1);
            name.get_mut().committing = committing.map(|(session, count)| (session, count - 1));
            if name.get().is_idle() {
                name.remove();
            }
        }
    }

    /// Lets go of a name under which nothing is under way.
    fn tidy(&mut self, key: &Key) {
        if let Entry::Occupied(name) = self.busy.entry(*key)
            && name.get().is_idle()
        {
            name.remove();
        }
    }
}

impl Busy {
    fn is_idle(&self) -> bool {
        self.described.is_empty() && self.committing.is_none()
    }
}

impl Latest {
    fn of_others(&self, session: u64) -> u64 {
        if self.last.session == session { self.others } else { self.last.moment }
    }

    fn add(&mut self, turn: Turn) {
        if self.last.session != turn.session {
            self.others = self.others.max(self.last.moment);
            self.last = Turn { moment: 0, ..turn };
        }
        self.last.moment = self.last.moment.max(turn.moment);
    }

    fn merge(&mut self, other: Latest) {
        self.others = self.others.max(other.others);
        self.add(other.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [1; 32];

    fn id(byte: u8) -> Bytes16 {
        Bytes16([byte; 16])
    }

    /// Commits an upload; tells why it may not be.
    #[track_caller]
    fn commit(newest: &Newest, key: Key, turn: Turn) -> Result<(), (ErrorKind, Option<u64>)> {
        let entered = newest.enter(key, turn, &RemotePath::root(), true);
        let entered = entered.map_err(|refused| (refused.error.kind(), refused.asked))?;
        entered.stored();
        Ok(())
    }

    #[test]
    fn what_came_late_and_unasked_has_to_be_said_again() {
        let newest = Newest::default();
        let (mut old, mut new) = (newest.standing(1), newest.standing(2));
        let late = old.turn(&id(1), true);
        assert_eq!(commit(&newest, KEY, new.turn(&id(2), true)), Ok(()));
        let Err((ErrorKind::Busy, Some(asked))) = commit(&newest, KEY, late) else { panic!("a late one was stored") };
        old.ask(id(1), asked);
        let other = old.turn(&id(3), true);
        assert!(commit(&newest, KEY, other).is_err(), "another upload is no answer");
        let again = old.turn(&id(1), true);
        assert_eq!(commit(&newest, KEY, again), Ok(()));
        assert_eq!(commit(&newest, KEY, old.turn(&id(3), true)), Ok(()), "its client is there");
        assert!(commit(&newest, KEY, new.turn(&id(2), true)).is_err(), "now the other is the older");
        assert_eq!(commit(&newest, [2; 32], late), Ok(()), "another name");
    }

    #[test]
    fn of_two_that_were_asked_for_the_later_wins_whoever_is_first() {
        let newest = Newest::default();
        let (mut one, mut two) = (newest.standing(1), newest.standing(2));
        let (older, newer) = (one.turn(&id(1), false), two.turn(&id(2), false));
        let described = [newest.describe(KEY, older), newest.describe(KEY, newer)];
        assert_eq!(commit(&newest, KEY, older), Ok(()));
        assert_eq!(commit(&newest, KEY, newer), Ok(()));
        assert_eq!(commit(&newest, KEY, older), Err((ErrorKind::Superseded, None)));
        let mut early = newest.standing(3);
        let late = one.turn(&id(4), false);
        let asked_for = newest.describe(KEY, late);
        assert!(commit(&newest, KEY, early.turn(&id(5), true)).is_err(), "it may have been sent before");
        drop((described, asked_for));
        assert_eq!(commit(&newest, KEY, early.turn(&id(5), true)), Ok(()));
        assert_eq!(commit(&newest, KEY, late), Err((ErrorKind::Superseded, None)));
    }

    #[test]
    fn commits_to_one_name_are_one_after_the_other() {
        let newest = Newest::default();
        let (mut one, mut two) = (newest.standing(1), newest.standing(2));
        let path = RemotePath::root();
        let running = newest.enter(KEY, one.turn(&id(1), true), &path, true).unwrap();
        let second = newest.enter(KEY, one.turn(&id(2), true), &path, true).unwrap();
        assert!(newest.enter(KEY, two.turn(&id(3), true), &path, false).is_err(), "unasked does not wait");
        let asked_for = two.turn(&id(4), false);
        let waiting = std::thread::spawn({
            let newest = newest.clone();
            move || newest.enter(KEY, asked_for, &RemotePath::root(), true).is_ok()
        });
        drop(running);
        assert!(newest.lock().busy.contains_key(&KEY));
        second.stored();
        assert!(waiting.join().unwrap());
        assert!(newest.lock().busy.is_empty(), "nothing is under way");
    }

    #[test]
    fn what_is_forgotten_is_not_believed() {
        let newest = Newest::default();
        let (mut old, mut new) = (newest.standing(1), newest.standing(2));
        let late = old.turn(&id(1), true);
        let key = |index: usize| *blake3::hash(&index.to_be_bytes()).as_bytes();
        for index in 0..NEWEST_NAMES_MAX + 10 {
            assert_eq!(commit(&newest, key(index), new.turn(&id(2), true)), Ok(()));
        }
        assert_eq!(newest.lock().committed.len(), NEWEST_NAMES_MAX);
        assert!(commit(&newest, key(0), late).is_err());
        assert_eq!(commit(&newest, key(0), new.turn(&id(3), true)), Ok(()), "its own");
        assert_eq!(commit(&newest, key(0), newest.standing(3).turn(&id(4), true)), Ok(()), "a later session");
    }
}
