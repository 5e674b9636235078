//! Unfinished uploads: who receives one, what is held of it, and what becomes of it when its connection ends.
//!
//! An upload that is asked for belongs to the key of its owner and destination. One attempt at a time has the key;
//! a newer one takes it over at once, with a higher generation, and what an older one still has under way waits at
//! the [`Gate`]: a write, record or commit either was there before the newer attempt looked, or fails with
//! `Superseded`. So no two attempts ever write one file.
//!
//! A [`Sink`] is where the content of one attempt goes. Whoever drops it last, on a disk thread, lays the upload to
//! rest: what is held is synced, then recorded, and found again by the next attempt, of this server or the next.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::time::Instant;
use tracing::warn;

use super::proven::{self, Proven};
use crate::access::Principal;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::GroupHash;
use crate::limits::{CHECKPOINT_INTERVAL, CHECKPOINT_LEN, KEPT_SIZE_MIN, RECORD_COST, RECORD_INTERVAL};
use crate::path::RemotePath;
use crate::protocol::{Bytes16, IfExists, Put};
use crate::storage::{self, PartialKey, Store, Version};
use crate::transfer::{Ledger, Record};

/// The attempts that have a key.
#[derive(Clone, Default)]
pub(super) struct Holds {
    table: Arc<Mutex<HashMap<PartialKey, Arc<Hold>>>>,
    proven: Arc<proven::Resting>,
}

/// One attempt's right to its key.
pub(super) struct Hold {
    key: PartialKey,
    upload_id: Bytes16,
    generation: AtomicU64,
    path: RemotePath,
    gate: RwLock<Gate>,
    keeping: Mutex<Option<Keeping>>,
    /// A newer attempt has been given the content.
    is_handed_over: AtomicBool,
    /// Somebody is recording.
    recording: AtomicBool,
}

/// What an attempt may still do. Read by who writes, written by who ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Committing,
    Superseded,
    /// It rests, or came to its end.
    Over,
}

/// What is to be recorded.
struct Keeping {
    record: Record,
    /// What of it was read back.
    proven: Proven,
    /// Whether a record of this generation is on disk.
    is_recorded: bool,
    recorded: Instant,
    synced: Instant,
    /// Bytes that came since the last record, and since the last checkpoint.
    unrecorded: u64,
    unsynced: u64,
    /// Something has come from the client: what was only copied here is not worth keeping.
    has_come: bool,
}

/// What a new attempt meets.
pub(super) enum Begun {
    /// Nothing: its content is yet to be staged.
    Fresh(Right),
    /// Content that is there, what is claimed of it, and what of that is proven.
    Resumed(Box<Sink>, Ledger, Proven),
}

/// Whose uploads these are: none for a client that nobody would know again. All who hold one invite are one owner, so
/// that they cannot take more room than one may by giving themselves many secrets.
pub(super) fn owner(principal: &Principal, secret: Option<&Bytes16>) -> Option<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    match (principal, secret) {
        (Principal::Certified { key, .. }, _) => hasher.update(&[1]).update(key),
        (Principal::Anonymous, Some(secret)) => hasher.update(&[0]).update(&secret.0),
        (Principal::Invite(invite), Some(_)) => hasher.update(&[2]).update(&invite.id.0),
        (Principal::Anonymous | Principal::Invite(_), None) => return None,
    };
    Some(*hasher.finalize().as_bytes())
}

/// The owner and the key of an upload: all attempts of one owner at one name have the same.
pub(super) fn key(principal: &Principal, put: &Put) -> Option<([u8; 32], PartialKey)> {
    let owner = owner(principal, put.resume.as_ref())?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&owner);
    if let (Principal::Invite(_), Some(secret)) = (principal, &put.resume) {
        // And yet none of them goes on with, or learns of, what another has begun.
        hasher.update(&secret.0);
    }
    hasher.update(&put.path.to_bytes());
    Some((owner, *hasher.finalize().as_bytes()))
}

/// The key of an upload that rests when it is cut.
pub(super) fn partial_key(principal: &Principal, put: &Put) -> Option<PartialKey> {
    let is_kept = put.size.is_none_or(|size| size >= KEPT_SIZE_MIN);
    key(principal, put).filter(|_| is_kept).map(|(_, key)| key)
}

/// Something of this name was stored in another way: what rests under it will not be gone on with.
pub(super) fn stored_otherwise(store: &Store, principal: &Principal, put: &Put) {
    if store.resting_partials().0 > 0
        && let Some((_, key)) = key(principal, put)
    {
        store.drop_partial(&key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these is whole between any two statements that hold the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holds {
    /// Gives the key of this upload to a new attempt, and what is held with it. None when there is no key: it is too
    /// small, the client could not be known again, or another upload of that name is under way and both are to stay.
    ///
    /// Blocks while an older attempt finishes a write.
    ///
    /// # Errors
    /// `Busy` while an older attempt commits.
    pub(super) fn begin(
        &self,
        store: &Store,
        principal: &Principal,
        owner_name: &str,
        put: &Put,
        if_exists: IfExists,
    ) -> Result<Option<Begun>> {
        if put.size.is_some_and(|size| size < KEPT_SIZE_MIN) {
            // It is stored whole or not at all, and of several the last stays.
            return Ok(None);
        }
        let Some((owner, key)) = key(principal, put) else { return Ok(None) };
        let mut table = lock(&self.table);
        let before = table.get(&key).cloned();
        if if_exists == IfExists::Rename && before.as_ref().is_some_and(|hold| hold.upload_id != put.upload_id) {
            // Each gets a name of its own.
            return Ok(None);
        }
        if before.as_ref().is_some_and(|before| before.is_committing()) {
            return Err(busy(&put.path));
        }
        let hold = Arc::new(Hold {
            key,
            upload_id: put.upload_id,
            generation: AtomicU64::new(before.as_ref().map_or(0, |before| before.generation()) + 1),
            path: put.path.clone(),
            gate: RwLock::new(Gate::Open),
            keeping: Mutex::default(),
            is_handed_over: AtomicBool::new(false),
            recording: AtomicBool::new(false),
        });
        // Whoever comes next waits here until this attempt knows what it has.
        let preparing = hold.shut();
        table.insert(key, Arc::clone(&hold));
        drop(table);
        let taken = match before.as_ref().map(|before| before.supersede()) {
            None => None,
            Some(Ok(record)) => record,
            Some(Err(error)) => {
                let mut table = lock(&self.table);
                if let (Some(before), Some(now)) = (before, table.get_mut(&key).filter(|now| Arc::ptr_eq(now, &hold))) {
                    *now = before;
                }
                return Err(error);
            }
        };
        let right = Right { hold: Some(Arc::clone(&hold)), store: store.clone(), holds: self.clone() };
        // The record names it as it is called below the root, whatever the owner's home.
        let below = store.below_root(&put.path).filter(|_| store.keeps_partials());
        let is_keeping = below.is_some() && put.size.is_some_and(|size| size >= KEPT_SIZE_MIN);
        let below = below.unwrap_or_default();
        let mut resumed = None;
        // What is proven of it: by the attempt that had it just now, or if nothing has touched it since it rested.
        let taken = taken.map(|(record, proven)| (record, Some(proven)));
        if let Some((record, proven)) = taken.or_else(|| store.take_partial(&key).map(|record| (record, None))) {
            if is_keeping && !put.no_base {
                let named = Record { owner_name: owner_name.to_owned(), path: below.clone(), ..record.clone() };
                let proven = |found| proven.unwrap_or_else(|| self.proven.take(&key, found));
                resumed = hold.resume(store, put, if_exists, named, proven).unwrap_or_else(|error| {
                    warn!("what was held of {} is of no use: {}", put.path, error.chain());
                    None
                });
            }
            if resumed.is_none() {
                store.rest_partial(&key, &record, 0);
                // A stream cannot go on from it, but what comes after the stream can.
                if is_keeping {
                    store.drop_partial(&key);
                }
            }
        }
        if is_keeping && resumed.is_none() {
            *lock(&hold.keeping) = put.size.map(|size| {
                Keeping::new(Record {
                    generation: hold.generation(),
                    owner,
                    owner_name: owner_name.to_owned(),
                    path: below.clone(),
                    begun: storage::now(),
                    touched: storage::now(),
                    place: Vec::new(),
                    held: Ledger::new(size),
                })
            });
        }
        drop(preparing);
        Ok(Some(match resumed {
            Some((upload, held, proven)) => Begun::Resumed(Box::new(right.with(upload)), held, proven),
            None => Begun::Fresh(right),
        }))
    }

    /// Takes an attempt out that has come to its end, if it still has the key.
    fn remove(&self, hold: &Arc<Hold>) {
        if let Entry::Occupied(entry) = lock(&self.table).entry(hold.key)
            && Arc::ptr_eq(entry.get(), hold)
        {
            entry.remove();
        }
    }
}

fn busy(path: &RemotePath) -> Error {
    Error::new(ErrorKind::Busy, format!("an earlier attempt at {path} is being committed"))
}

impl Keeping {
    fn new(record: Record) -> Keeping {
        let now = Instant::now();
        let proven = Proven::default();
        let (recorded, synced) = (now, now);
        Keeping { record, proven, is_recorded: false, recorded, synced, unrecorded: 0, unsynced: 0, has_come: false }
    }

    /// What is to be done now: nothing, a record, or a checkpoint.
    fn due(&self) -> Option<bool> {
        if !self.has_come {
            return None;
        }
        #[cfg(test)]
        if let Some(due) = storage::simulated::due() {
            return due;
        }
        let is_checkpoint = self.unsynced >= CHECKPOINT_LEN || self.synced.elapsed() >= CHECKPOINT_INTERVAL;
        if self.unsynced > 0 && is_checkpoint {
            return Some(true);
        }
        let cost = self.record.held.count() * 32;
        let is_due = self.recorded.elapsed() >= RECORD_INTERVAL && self.unrecorded >= cost * RECORD_COST;
        (self.unrecorded > 0 && is_due).then_some(false)
    }
}

impl Hold {
    /// The number of this attempt.
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn shut(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets through what may still be done; held for as long as it takes.
    fn pass(&self) -> Result<RwLockReadGuard<'_, Gate>> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        match *gate {
            Gate::Open | Gate::Committing => Ok(gate),
            Gate::Superseded | Gate::Over => Err(self.superseded()),
        }
    }

    fn superseded(&self) -> Error {
        Error::new(ErrorKind::Superseded, format!("a newer attempt has taken over the upload of {}", self.path))
    }

    fn is_committing(&self) -> bool {
        self.gate.try_read().is_ok_and(|gate| *gate == Gate::Committing)
    }

    /// Ends this attempt for a newer one, and gives it what was kept.
    fn supersede(&self) -> Result<Option<(Record, Proven)>> {
        let mut gate = self.shut();
        match *gate {
            Gate::Committing => Err(busy(&self.path)),
            // What was kept rests, or is another's already.
            Gate::Superseded | Gate::Over => Ok(None),
            Gate::Open => {
                #[cfg(test)]
                let is_left_open = super::sim::planted(super::sim::Planted::OpenGate);
                #[cfg(not(test))]
                let is_left_open = false;
                if !is_left_open {
                    *gate = Gate::Superseded;
                }
                let kept = lock(&self.keeping).take().map(|keeping| (keeping.record, keeping.proven));
                let kept = kept.filter(|(record, _)| !record.place.is_empty());
                self.is_handed_over.store(kept.is_some(), Ordering::SeqCst);
                Ok(kept)
            }
        }
    }

    /// Opens what was kept, under this attempt's generation, durably.
    fn resume(
        &self,
        store: &Store,
        put: &Put,
        if_exists: IfExists,
        mut record: Record,
        proven: impl FnOnce(Version) -> Proven,
    ) -> Result<Option<(storage::Upload, Ledger, Proven)>> {
        let is_resized = put.size != Some(record.held.size());
        record.held.resize(put.size.unwrap_or(0));
        record.generation = record.generation.max(self.generation()) + 1;
        self.generation.store(record.generation, Ordering::SeqCst);
        let if_exists = super::convert::if_exists(if_exists);
        let options = storage::NewFile { size: put.size, if_exists, make_parents: true, mode: put.mode };
        let Some((upload, found)) = store.resume(&put.path, options, &record.place, record.held.bytes())? else {
            return Ok(None);
        };
        // Of another size, its last group may be another one under the same number.
        let proven = if is_resized { Proven::default() } else { proven(found) };
        store.record_partial(&self.key, &record, true)?;
        let held = record.held.clone();
        let mut keeping = Keeping::new(record);
        (keeping.is_recorded, keeping.has_come, keeping.proven) = (true, true, proven.clone());
        *lock(&self.keeping) = Some(keeping);
        Ok(Some((upload, held, proven)))
    }
}

/// Where the content of one attempt goes. Dropped, it is laid to rest: that blocks.
pub(super) struct Sink {
    file: Option<storage::Upload>,
    /// None for an upload without a key: it is not kept, and nobody can take it over.
    hold: Option<Arc<Hold>>,
    store: Store,
    holds: Holds,
}

/// The right to a key without content: before it is staged, and after it was taken for a commit. Dropped, the key is
/// free again, and nothing is kept under it.
pub(super) struct Right {
    hold: Option<Arc<Hold>>,
    store: Store,
    holds: Holds,
}

impl Right {
    /// The right to store something that nobody can take over, and that is not kept.
    pub(super) fn without_key(store: &Store, holds: &Holds) -> Right {
        Right { hold: None, store: store.clone(), holds: holds.clone() }
    }

    /// The number of this attempt.
    pub(super) fn generation(&self) -> Option<u64> {
        self.hold.as_ref().map(|hold| hold.generation())
    }

    /// Goes on with content that is staged.
    pub(super) fn with(mut self, file: storage::Upload) -> Sink {
        if let Some(hold) = &self.hold
            && let Some(keeping) = &mut *lock(&hold.keeping)
            && keeping.record.place.is_empty()
        {
            keeping.record.place = file.place().unwrap_or_default();
        }
        Sink { file: Some(file), hold: self.hold.take(), store: self.store.clone(), holds: self.holds.clone() }
    }
}

impl Drop for Right {
    fn drop(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        forget(&self.store, &hold);
        *hold.shut() = Gate::Over;
        self.holds.remove(&hold);
    }
}

/// Removes what is recorded, as content that will not be gone on with.
fn forget(store: &Store, hold: &Hold) {
    if let Some(keeping) = lock(&hold.keeping).take().filter(|keeping| keeping.is_recorded) {
        store.forget_partial(&hold.key, &keeping.record.place);
    }
}

impl Sink {
    /// The number of this attempt.
    pub(super) fn generation(&self) -> Option<u64> {
        self.hold.as_ref().map(|hold| hold.generation())
    }

    fn file(&self) -> Result<&storage::Upload> {
        self.file.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, "a file that is being committed is written"))
    }

    /// Whether writing to it and recording what it holds waits for no disk.
    pub(super) fn is_in_memory(&self) -> bool {
        self.file.as_ref().is_some_and(storage::Upload::is_in_memory)
    }

    /// Writes content to its place.
    ///
    /// # Errors
    /// `Superseded` when a newer attempt has the key; what writing can fail with.
    pub(super) fn write_at(&self, offset: u64, content: &[u8]) -> Result<()> {
        let _pass = self.hold.as_ref().map(|hold| hold.pass()).transpose()?;
        self.file()?.write_at(offset, content).inspect_err(|_| self.spoiled())
    }

    /// Reads what was written.
    ///
    /// # Errors
    /// What reading can fail with.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file()?.read_at(offset, buffer)
    }

    /// From now on what is read comes from the disk.
    ///
    /// # Errors
    /// As [`Sink::write_at`]; a failed sync is final.
    pub(super) fn reread(&self) -> Result<()> {
        let _pass = self.hold.as_ref().map(|hold| hold.pass()).transpose()?;
        self.file()?.reread().inspect_err(|_| self.spoiled())
    }

    /// A write or sync has failed: nobody goes on with this.
    fn spoiled(&self) {
        if let Some(hold) = self.hold.as_ref().filter(|_| self.file.as_ref().is_none_or(|file| !file.is_sound())) {
            forget(&self.store, hold);
        }
    }

    /// A whole group is where it belongs.
    pub(super) fn holds(&self, group: u64, hash: &GroupHash, len: usize) {
        self.note(len, true, |held| held.insert(group, hash.value));
    }

    /// A whole group that was there was read back from the disk, and is right.
    pub(super) fn proves(&self, group: u64) {
        if let Some(hold) = &self.hold
            && let Some(keeping) = &mut *lock(&hold.keeping)
        {
            keeping.proven.insert(group);
        }
    }

    /// The same of one that did not come, but was copied here.
    pub(super) fn holds_copy(&self, group: u64, hash: &GroupHash, len: usize) {
        self.note(len, false, |held| held.insert(group, hash.value));
    }

    /// The beginning of a group, up to `end` bytes into it, is where it belongs; `len` of them are new.
    pub(super) fn holds_prefix(&self, group: u64, end: usize, len: usize) {
        self.note(len, true, |held| held.insert_prefix(group, end));
    }

    /// A group begins to be written anew, or was found to be damaged.
    pub(super) fn loses(&self, group: u64) {
        if let Some(hold) = &self.hold
            && let Some(keeping) = &mut *lock(&hold.keeping)
        {
            keeping.record.held.remove(group);
            keeping.proven.remove(group);
        }
    }

    /// Changes what is held, and records it when that is due.
    fn note(&self, len: usize, has_come: bool, change: impl FnOnce(&mut Ledger)) {
        let Some(hold) = &self.hold else { return };
        let due = {
            let mut keeping = lock(&hold.keeping);
            let Some(keeping) = &mut *keeping else { return };
            change(&mut keeping.record.held);
            keeping.has_come |= has_come;
            keeping.unrecorded += len as u64;
            keeping.unsynced += len as u64;
            keeping.due()
        };
        if let Some(is_checkpoint) = due
            && !hold.recording.swap(true, Ordering::SeqCst)
        {
            if let Err(error) = self.record(hold, is_checkpoint) {
                warn!("what has come of {} is not recorded: {}", hold.path, error.chain());
            }
            hold.recording.store(false, Ordering::SeqCst);
        }
    }

    /// Records what is held; a checkpoint syncs it first.
    fn record(&self, hold: &Arc<Hold>, is_checkpoint: bool) -> Result<()> {
        let Ok(_pass) = hold.pass() else { return Ok(()) };
        self.record_passed(hold, is_checkpoint).map(|_| ())
    }

    fn record_passed(&self, hold: &Hold, is_checkpoint: bool) -> Result<Option<Record>> {
        let file = self.file()?;
        let taken = {
            let mut keeping = lock(&hold.keeping);
            let Some(keeping) = keeping.as_mut().filter(|keeping| !keeping.record.place.is_empty()) else {
                return Ok(None);
            };
            let now = Instant::now();
            keeping.record.touched = storage::now();
            (keeping.recorded, keeping.unrecorded) = (now, 0);
            if is_checkpoint {
                (keeping.synced, keeping.unsynced) = (now, 0);
            }
            // From here on the content is found again, so it may stay.
            file.keep(true);
            keeping.is_recorded = true;
            keeping.record.clone()
        };
        if is_checkpoint {
            file.sync_content().inspect_err(|_| self.spoiled())?;
        }
        self.store.record_partial(&hold.key, &taken, is_checkpoint)?;
        Ok(Some(taken))
    }

    /// Enters the commit: from here on no other attempt takes over. Gives the file, and what keeps the key until it is
    /// dropped.
    ///
    /// # Errors
    /// `Superseded` when another attempt has.
    pub(super) fn enter_commit(mut self) -> Result<(storage::Upload, Right)> {
        if let Some(hold) = &self.hold {
            let mut gate = hold.shut();
            if *gate != Gate::Open {
                return Err(hold.superseded());
            }
            *gate = Gate::Committing;
        }
        let file = self.file.take().ok_or_else(|| Error::new(ErrorKind::Internal, "a file is committed twice"))?;
        // It gets its name, or is of no use: in both cases nothing is kept.
        file.keep(false);
        Ok((file, Right { hold: self.hold.take(), store: self.store.clone(), holds: self.holds.clone() }))
    }

    /// Nothing of this is of any use: dropped, it leaves nothing.
    pub(super) fn discard(&self) {
        if let Some(hold) = &self.hold
            && let Ok(_pass) = hold.pass()
        {
            forget(&self.store, hold);
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        let Some(file) = &self.file else { return };
        let mut gate = hold.shut();
        if *gate != Gate::Open {
            // What a newer attempt has been given is not ours to remove.
            file.keep(hold.is_handed_over.load(Ordering::SeqCst));
            return;
        }
        let is_worth_it =
            lock(&hold.keeping).as_ref().is_some_and(|keeping| keeping.has_come && keeping.record.held.bytes() > 0);
        let recorded = if file.is_sound() && is_worth_it { self.record_passed(&hold, true) } else { Ok(None) };
        match recorded {
            Ok(Some(record)) => {
                file.trim(record.held.end());
                if let (Some(keeping), Some(version)) = (lock(&hold.keeping).take(), file.version()) {
                    self.holds.proven.put(hold.key, version, keeping.proven);
                }
                self.store.rest_partial(&hold.key, &record, file.disk_size());
            }
            result => {
                if let Err(error) = result {
                    warn!("what has come of {} is not kept: {}", hold.path, error.chain());
                }
                file.keep(false);
                forget(&self.store, &hold);
            }
        }
        *gate = Gate::Over;
        drop(gate);
        self.holds.remove(&hold);
    }
}
