//! What a download leaves for another run, and what it finds: its own beginning, and the older version that is here.
//!
//! What is found is hashed before it counts: against its own record when the server still has the version that it
//! came from, and against values that the server tells otherwise. Groups of the older version are copied to their
//! places with the read that hashes them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::api::Item;
use crate::client::blocking::{spawn_blocking, spawn_blocking_in};
use crate::client::session::{Exchange, Reply};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, GroupValue, Tree, group_count, group_len, group_offset};
use crate::limits::{GROUP_LEN, RECORD_COST, RECORD_INTERVAL};
use crate::path::RemotePath;
use crate::storage::{self, Kept, StoredFile, Upload};
use crate::transfer::{Claim, Ledger, Record};

/// Groups whose values are asked for at once: 16 GiB. A server that hashes faster than what is here can be looked at
/// tells of no more than these meanwhile; more would be more answers than a session keeps.
const VALUES_AT_ONCE: u64 = 16 << 10;

/// Records what has come of a download. Dropped, it leaves that for another run.
pub(super) struct Keeper {
    file: Arc<Upload>,
    kept: Arc<Mutex<Writer>>,
    record: Record,
    recorded: Instant,
    /// Bytes since then.
    unrecorded: u64,
    writes: JoinSet<()>,
}

/// Writes records until it is over.
struct Writer {
    kept: Kept,
    is_over: bool,
}

impl Writer {
    fn write(&self, record: &Record, file: &Upload) {
        // Without a record the next run begins anew, which is all that is lost.
        if !self.is_over && self.kept.record(record).is_ok() {
            file.keep(true);
        }
    }
}

/// The record of a download of which nothing has come.
pub(super) fn new_record(path: &RemotePath, size: u64) -> Record {
    Record {
        generation: 0,
        owner: [0; 32],
        owner_name: String::new(),
        path: path.clone(),
        begun: storage::now(),
        touched: storage::now(),
        place: Vec::new(),
        held: Ledger::new(size),
    }
}

/// What stands for a version of a file on the server in a record.
pub(super) fn version_hash(version: &[u8]) -> [u8; 32] {
    *blake3::hash(version).as_bytes()
}

/// The key of a download: the same in every run, and another for another source or target.
pub(super) fn key(server: &str, remote: &RemotePath, target: &RemotePath) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [server.as_bytes(), &remote.to_bytes(), &target.to_bytes()] {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
    }
    *hasher.finalize().as_bytes()
}

impl Keeper {
    /// Keeps what an earlier run has left, as it is recorded, until it is known what of it is right.
    pub(super) fn new(file: &Arc<Upload>, kept: Kept, record: Record) -> Keeper {
        let kept = Arc::new(Mutex::new(Writer { kept, is_over: false }));
        let (file, recorded) = (Arc::clone(file), Instant::now());
        Keeper { file, kept, record, recorded, unrecorded: 0, writes: JoinSet::new() }
    }

    /// From now on what is of this version is kept, and nothing else.
    pub(super) fn restart(&mut self, version: &[u8], size: u64) {
        self.record.owner = version_hash(version);
        self.record.held = Ledger::new(size);
    }

    /// A group is where it belongs. That is recorded from time to time.
    pub(super) fn holds(&mut self, group: u64, value: GroupValue, len: usize) {
        self.record.held.insert(group, value);
        self.unrecorded += len as u64;
        let cost = self.record.held.count() * 32;
        if self.recorded.elapsed() >= RECORD_INTERVAL && self.unrecorded >= cost * RECORD_COST {
            (self.recorded, self.unrecorded) = (Instant::now(), 0);
            self.record.touched = storage::now();
            let (kept, record, file) = (Arc::clone(&self.kept), self.record.clone(), Arc::clone(&self.file));
            while self.writes.try_join_next().is_some() {}
            spawn_blocking_in(&mut self.writes, move || {
                kept.lock().unwrap_or_else(PoisonError::into_inner).write(&record, &file);
                // Whoever stores the file must find nobody else holding it.
                drop(file);
            });
        }
    }

    /// The file is stored, or what has come is of no use. Waits for what is being recorded.
    pub(super) async fn end(mut self) {
        while self.writes.join_next().await.is_some() {}
        let kept = Arc::clone(&self.kept);
        self.file.keep(false);
        drop(self.close());
        // It cannot fail but by a panic, which would have been reported.
        let _ = spawn_blocking(move || kept.lock().unwrap_or_else(PoisonError::into_inner).kept.forget()).await;
    }

    /// Nothing more is recorded.
    fn close(self) -> Keeper {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        self
    }
}

impl Drop for Keeper {
    /// Writes the last record itself: the process may be about to end.
    fn drop(&mut self) {
        let writer = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !writer.is_over && self.record.held.count() > 0 && self.file.is_sound() {
            writer.write(&self.record, &self.file);
        } else if !writer.is_over {
            self.file.keep(false);
            writer.kept.forget();
        }
    }
}

/// What is here of a file before anything is fetched.
pub(super) struct Found {
    /// What an earlier run has left, and whether it is of the version that the server has now.
    pub(super) held: Option<(Ledger, bool)>,
    /// The version that is here under the final name.
    pub(super) old: Option<Arc<StoredFile>>,
}

impl Found {
    fn of_old(&self, size: u64, group: u64) -> Option<&Arc<StoredFile>> {
        self.old.as_ref().filter(|old| group_len(old.size(), group) == group_len(size, group))
    }

    /// Groups before this one may be here.
    fn end(&self, size: u64) -> u64 {
        let held = self.held.as_ref().map_or(0, |(held, _)| held.end());
        let old = self.old.as_ref().map_or(0, |old| old.size());
        group_count(held.max(old).min(size))
    }

    /// Whether it can be told without the server which groups are right.
    fn needs_values(&self) -> bool {
        self.old.is_some() || self.held.as_ref().is_some_and(|(_, is_same)| !is_same)
    }
}

/// Finds out which groups are here, and puts them to their places. They are in the tree afterwards.
///
/// # Errors
/// What reading and writing here can fail with, and why the session has ended.
pub(super) async fn fill(
    exchange: &mut Exchange,
    size: u64,
    found: Found,
    file: &Arc<Upload>,
    item: &mut Item,
) -> Result<Tree> {
    let mut tree = Tree::new();
    let end = found.end(size);
    if end == 0 {
        return Ok(tree);
    }
    if found.held.is_some() {
        let file = Arc::clone(file);
        // What cannot be made durable is given up.
        spawn_blocking(move || file.reread()).await.map_err(panicked)??;
    }
    let found = Arc::new(found);
    let mut values: VecDeque<GroupValue> = VecDeque::new();
    let (mut next, mut asked) = (0, 0);
    while next < end {
        if found.needs_values() && next == asked {
            asked = end.min(next + VALUES_AT_ONCE);
            exchange.want_values(next, asked - next);
        }
        let step: Vec<Option<GroupValue>> = if found.needs_values() {
            match exchange.next().await? {
                Reply::Values(told) if told.first == next + values.len() as u64 => values.extend(told.values.0),
                other => return Err(exchange.unexpected(&other)),
            }
            values.drain(..).map(Some).collect()
        } else {
            vec![None; usize::try_from((end - next).min(64)).unwrap_or(64)]
        };
        let (first, found, file) = (next, Arc::clone(&found), Arc::clone(file));
        next += step.len() as u64;
        let right = spawn_blocking(move || {
            let mut buffer = vec![0; GROUP_LEN];
            let mut right = Vec::new();
            for (group, value) in (first..).zip(step) {
                if let Some(hash) = look(&found, &file, size, group, value, &mut buffer)? {
                    right.push((group, hash));
                }
            }
            Ok::<_, Error>(right)
        });
        for (group, hash) in right.await.map_err(panicked)?? {
            tree.insert(group, hash);
            let len = group_len(size, group);
            item.advance_group(group, len, len);
        }
    }
    Ok(tree)
}

/// The hash of a group that is here, once it is where it belongs. Blocks.
fn look(
    found: &Found,
    file: &Upload,
    size: u64,
    group: u64,
    told: Option<GroupValue>,
    buffer: &mut [u8],
) -> Result<Option<GroupHash>> {
    let Some(content) = buffer.get_mut(..group_len(size, group)) else { return Ok(None) };
    if let Some((held, is_same)) = &found.held
        && let Some(Claim::Whole(recorded)) = held.claim(group)
        && (told.is_none_or(|told| told == recorded) || !is_same)
        // What cannot be read is fetched.
        && file.read_at(group_offset(group), content).is_ok()
    {
        let hash = GroupHash::of(group, content);
        #[cfg(test)]
        let hash = match storage::simulated::planted(storage::simulated::Planted::KeptBelieved) {
            true => GroupHash { value: told.unwrap_or(recorded), ..hash },
            false => hash,
        };
        if hash.value == told.unwrap_or(recorded) {
            return Ok(Some(hash));
        }
    }
    let (Some(old), Some(told)) = (found.of_old(size, group), told) else { return Ok(None) };
    if old.read_at(group_offset(group), content).is_err() {
        return Ok(None);
    }
    let hash = GroupHash::of(group, content);
    if hash.value != told {
        return Ok(None);
    }
    file.write_at(group_offset(group), content)?;
    Ok(Some(hash))
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a task of the download failed").with_source(error)
}
