//! Unfinished uploads that outlive their connections, and their server.
//!
//! Each has a record in `.sealift/partial`, under the digits of its key, and its content: in the same directory
//! under a hidden name, or under one beside its target where nothing can be renamed from there. A record is replaced
//! by rename, so it is the old one or the new one; content without a record, and a record without content, are
//! removed when the root is served again. Those that nobody works on *rest*: they are counted, go when they have
//! rested too long or are too many, and are taken back by the next attempt of their owner.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::{Errno, Result as IoResult};

use super::sys;
use super::upload::{NewFile, Parents, Place, Staging, Upload};
use super::walk::is_hidden;
use super::{Inner, Kind, STATE_NAME, State, Store, Version, lock};
use crate::error::{Error, IoContext, Result};
use crate::limits::{KEEP_PARTIAL, KEPT_BYTES_MAX, KEPT_COUNT_MAX, KEPT_SHARE, MIB};
use crate::path::{Component, Escaped, RemotePath};
use crate::transfer::Record;

/// The name of the directory in the state directory.
pub(super) const PARTIAL_NAME: &str = "partial";
/// What a record is called until it is whole.
const NEW_SUFFIX: &[u8] = b".new";
/// Bytes of a record that is read: one of a file of 32 TiB. A longer one counts as damaged.
const RECORD_LEN_MAX: u64 = 1024 * MIB as u64;
/// A place in the state directory, and one beside the target: the first byte of [`Record::place`].
const IN_STATE: u8 = b'S';
const BESIDE: u8 = b'B';

/// Names an unfinished upload: a hash of its owner and destination.
pub type PartialKey = [u8; 32];

/// How long and how many unfinished uploads are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepPartial {
    /// How long after something of one last came. Zero: none is kept.
    pub age: Duration,
    /// Bytes on disk of all that rest.
    pub bytes: u64,
    /// How many may rest.
    pub count: usize,
}

impl Default for KeepPartial {
    fn default() -> KeepPartial {
        KeepPartial { age: KEEP_PARTIAL, bytes: KEPT_BYTES_MAX, count: KEPT_COUNT_MAX }
    }
}

/// The unfinished uploads of a served root.
#[derive(Default)]
pub(super) struct Partials {
    pub(super) table: Mutex<Table>,
    /// How often something has begun or ceased to rest.
    pub(super) changes: AtomicU64,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) resting: HashMap<PartialKey, Resting>,
    /// Hidden names beside targets that belong to unfinished uploads: cleaning up leaves them alone.
    beside: HashSet<Vec<u8>>,
}

/// One that nobody works on.
#[derive(Clone, Debug)]
pub(super) struct Resting {
    owner: [u8; 32],
    pub(super) owner_name: String,
    pub(super) path: RemotePath,
    place: Vec<u8>,
    touched: u64,
    /// What it takes on disk, and never more than the file will have.
    pub(super) bytes: u64,
}

impl Resting {
    fn new(record: &Record, disk_size: u64) -> Resting {
        Resting {
            owner: record.owner,
            owner_name: record.owner_name.clone(),
            path: record.path.clone(),
            place: record.place.clone(),
            touched: record.touched,
            bytes: disk_size.min(record.held.size()),
        }
    }
}

impl Partials {
    /// Something has begun or ceased to rest.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// An unfinished upload, for people.
#[derive(Clone, Debug)]
pub struct Partial {
    /// What its record says.
    pub record: Record,
    /// Bytes that it takes on disk.
    pub disk_size: u64,
    /// Whether a server is receiving it at this moment.
    pub is_active: bool,
    /// By what it can be named: the beginning of its key, in digits.
    pub id: String,
    key: PartialKey,
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    #[cfg(test)]
    if let Some(now) = super::simulated::now() {
        return now;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Store {
    /// Whether this store keeps what is cut.
    #[must_use]
    pub fn keeps_partials(&self) -> bool {
        self.inner.state.is_some() && !self.inner.options.keep_partial.age.is_zero()
    }

    /// As [`Store::begin`], for content that is to outlive its connection: see [`Upload::keep`].
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin_kept(&self, path: &RemotePath, options: NewFile) -> Result<Upload> {
        match self.begin_staged(&mut Parents::default(), path, options, true) {
            // What has rested too long makes room.
            Err(error) if error.kind() == crate::error::ErrorKind::NoSpace && self.expire_partials(now()) > 0 => {
                self.begin_staged(&mut Parents::default(), path, options, true)
            }
            upload => upload,
        }
    }

    /// Goes on with content that was kept at this place, and tells which version of the file was found. None when it
    /// is not there any more, or cannot get its name from there.
    ///
    /// # Errors
    /// As [`Store::begin`]. The content stays where it is then.
    pub fn resume(
        &self,
        path: &RemotePath,
        options: NewFile,
        place: &[u8],
        held: u64,
    ) -> Result<Option<(Upload, Version)>> {
        let inner = &self.inner;
        inner.writable()?;
        let Some((directory, name)) = inner.target(&mut Parents::default(), path, options)? else { return Ok(None) };
        let Some((&kind, hidden)) = place.split_first() else { return Ok(None) };
        let Some(hidden) = std::str::from_utf8(hidden).ok().filter(|name| is_hidden(name.as_bytes())) else {
            return Ok(None);
        };
        let place = match kind {
            IN_STATE if inner.can_stage_in_state(&directory) => Place::Kept(hidden.to_owned()),
            BESIDE => Place::Beside(hidden.to_owned()),
            _ => return Ok(None),
        };
        let mut staging = Staging::new(Arc::clone(inner), directory, place, None);
        // Whatever goes wrong from here on: it is not ours to remove.
        staging.set_kept(true);
        let opened = staging.named().map(|(directory, name)| sys::open_at(directory, name, OFlags::RDWR, 0));
        let file = match opened {
            Some(Ok(file)) => file,
            None | Some(Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR)) => return Ok(None),
            Some(Err(errno)) => return Err(Error::io(format!("open what is held of {path}"), errno)),
        };
        let status = sys::status(&file).while_doing(|| format!("look at what is held of {path}"))?;
        if status.kind != Kind::File || status.names != 1 {
            return Ok(None);
        }
        // An older attempt may still have it open, and the lock; its lock protects it as well.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        staging.file = Some(file);
        let upload = Upload::of(staging, path.clone(), name, options, held);
        upload.preallocate()?;
        Ok(Some((upload, status.version())))
    }

    /// Takes an unfinished upload that rests, for another attempt. The record stays until another replaces it.
    pub fn take_partial(&self, key: &PartialKey) -> Option<Record> {
        let state = self.inner.state.as_ref()?;
        let resting = lock(&self.inner.partials.table).resting.remove(key)?;
        self.inner.partials.changed();
        let record = read_record(&state.partial, digits(key).as_bytes());
        if record.is_none() {
            // Damaged, or removed by somebody.
            self.forget_partial(key, &resting.place);
            let _ = self.inner.remove_content(&state.partial, &resting.path, &resting.place);
        }
        record
    }

    /// Records an unfinished upload. With `durable`, it is on disk when this returns.
    ///
    /// # Errors
    /// `NoSpace`, `Io`: the record before stays.
    pub fn record_partial(&self, key: &PartialKey, record: &Record, durable: bool) -> Result<()> {
        let Some(state) = &self.inner.state else { return Ok(()) };
        if record.place.first() == Some(&BESIDE) {
            lock(&self.inner.partials.table).beside.insert(record.place[1..].to_vec());
        }
        write_record(&state.partial, digits(key).as_bytes(), &record.encode(), durable)
            .while_doing(|| format!("record what is held of {}", record.path))
    }

    /// An upload that was recorded rests from now on. Others go if there are too many now.
    pub fn rest_partial(&self, key: &PartialKey, record: &Record, disk_size: u64) {
        lock(&self.inner.partials.table).resting.insert(*key, Resting::new(record, disk_size));
        self.inner.partials.changed();
        while let Some(other) = self.inner.surplus(key) {
            self.drop_partial(&other);
        }
    }

    /// Forgets an upload that came to its end, in whichever way. Its content is gone or has its name.
    pub fn forget_partial(&self, key: &PartialKey, place: &[u8]) {
        self.remove_record(&mut lock(&self.inner.partials.table), key, place);
    }

    fn remove_record(&self, table: &mut Table, key: &PartialKey, place: &[u8]) {
        if let Some((&BESIDE, name)) = place.split_first() {
            table.beside.remove(name);
        }
        if let Some(state) = &self.inner.state {
            // Deliberate loss: a record without content is removed at the next start.
            let _ = sys::unlink(&state.partial, digits(key).as_bytes());
        }
    }

    /// Removes an unfinished upload that rests, content and all. One that is not resting is left alone.
    pub fn drop_partial(&self, key: &PartialKey) {
        self.drop_partial_if(key, |_| true);
    }

    /// As [`Store::drop_partial`], where this holds of what rests now. Tells whether it did.
    fn drop_partial_if(&self, key: &PartialKey, is_to_go: impl Fn(&Resting) -> bool) -> bool {
        let mut table = lock(&self.inner.partials.table);
        let Entry::Occupied(entry) = table.resting.entry(*key) else { return false };
        if !is_to_go(entry.get()) {
            return false;
        }
        let resting = entry.remove();
        // In one step for those that look here: an attempt that begins afterwards has a record of its own by this name.
        self.remove_record(&mut table, key, &resting.place);
        drop(table);
        self.inner.partials.changed();
        if let Some(state) = &self.inner.state {
            // Deliberate loss: content without a record is removed at the next start.
            let _ = self.inner.remove_content(&state.partial, &resting.path, &resting.place);
        }
        true
    }

    /// Removes what has rested too long; tells how many that were.
    pub fn expire_partials(&self, now: u64) -> usize {
        let age = self.inner.options.keep_partial.age.as_secs();
        let is_old = |resting: &Resting| resting.touched.saturating_add(age) <= now;
        let table = lock(&self.inner.partials.table);
        let old: Vec<PartialKey> =
            table.resting.iter().filter(|(_, resting)| is_old(resting)).map(|(key, _)| *key).collect();
        drop(table);
        // One may have been taken up and come to rest again meanwhile.
        old.iter().filter(|key| self.drop_partial_if(key, is_old)).count()
    }

    /// How many unfinished uploads rest, and their bytes on disk.
    #[must_use]
    pub fn resting_partials(&self) -> (usize, u64) {
        let table = lock(&self.inner.partials.table);
        (table.resting.len(), table.resting.values().map(|resting| resting.bytes).sum())
    }
}

// ---- what a client saves ---------------------------------------------------------------------------------------

/// Where a download is staged that is to be found again: beside its target, under names that follow from what is
/// fetched. Held by one process at a time.
pub struct Kept {
    store: Store,
    path: RemotePath,
    key: PartialKey,
}

impl Store {
    /// Begins to save a file that another run may go on with; with what an earlier run has left of it under this key.
    /// None when another process is at it: then it is saved without being kept.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin_found(
        &self,
        path: &RemotePath,
        options: NewFile,
        key: &PartialKey,
    ) -> Result<Option<(Upload, Kept, Option<Record>)>> {
        let inner = &self.inner;
        inner.writable()?;
        let Some((directory, name)) = inner.target(&mut Parents::default(), path, options)? else { return Ok(None) };
        let what = || format!("begin to store {path}");
        let kept = Kept { store: self.clone(), path: path.clone(), key: *key };
        let flags = OFlags::RDWR | OFlags::CREATE;
        let (_, parent) = path.components().split_last().unzip();
        inner.bring_back_hidden(parent.unwrap_or_default(), &directory, [&kept.name(0), &kept.name(1)]);
        let file = sys::open_at(&*directory, kept.name(0).as_bytes(), flags, 0o600).while_doing(what)?;
        let status = sys::status(&file).while_doing(what)?;
        let is_ours = status.kind == Kind::File
            && status.names == 1
            && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            // Whoever had it may have given it its name meanwhile.
            && sys::status_at(&*directory, kept.name(0).as_bytes()).is_ok_and(|now| now.identity == status.identity);
        if !is_ours {
            return Ok(None);
        }
        let record = read_record(&*directory, kept.name(1).as_bytes());
        let held = record.as_ref().map_or(0, |record| record.held.bytes());
        let staging = Staging::new(Arc::clone(inner), directory, Place::Beside(kept.name(0)), Some(file));
        let upload = Upload::of(staging, path.clone(), name, options, held);
        if record.is_none() {
            upload.trim(0);
        }
        upload.preallocate()?;
        Ok(Some((upload, kept, record)))
    }
}

/// The hidden name, beside its target, of what is kept of a download with this key.
pub(crate) fn kept_name(key: &PartialKey) -> String {
    hidden_name(key, 0)
}

fn hidden_name(key: &PartialKey, which: usize) -> String {
    format!("{STATE_NAME}-{}", &digits(key)[32 * which..32 * (which + 1)])
}

impl Kept {
    fn name(&self, which: usize) -> String {
        hidden_name(&self.key, which)
    }

    /// Records what is held, for another run.
    ///
    /// # Errors
    /// `NoSpace`, `Io`: the record before stays.
    pub fn record(&self, record: &Record) -> Result<()> {
        let what = || format!("record what is held of {}", self.path);
        let (_, parent) = self.path.components().split_last().unzip();
        let directory = self.store.inner.directory_of(parent.unwrap_or_default())?;
        write_record_as(&*directory, &hidden_digits(&self.key), self.name(1).as_bytes(), &record.encode(), false)
            .while_doing(what)
    }

    /// Forgets what was recorded: it is stored, or of no use.
    pub fn forget(&self) {
        let (_, parent) = self.path.components().split_last().unzip();
        if let Ok(directory) = self.store.inner.directory_of(parent.unwrap_or_default()) {
            // Deliberate loss: it stays hidden until somebody cleans up, and says nothing without its content.
            let _ = sys::unlink(&*directory, self.name(1).as_bytes());
        }
    }
}

/// The hidden name of a record that is not whole yet.
fn hidden_digits(key: &PartialKey) -> Vec<u8> {
    let digits = blake3::hash(key).to_hex();
    format!("{STATE_NAME}-{}", &digits[..32]).into_bytes()
}

impl Inner {
    /// One that must go because there are too many beside `kept`: of its owner, or of all.
    fn surplus(&self, kept: &PartialKey) -> Option<PartialKey> {
        let limits = &self.options.keep_partial;
        let table = lock(&self.partials.table);
        let owner = table.resting.get(kept)?.owner;
        let excess = |is_counted: &dyn Fn(&Resting) -> bool, count_max: usize, bytes_max: u64| {
            let counted = || table.resting.iter().filter(|(_, resting)| is_counted(resting));
            let bytes: u64 = counted().map(|(_, resting)| resting.bytes).sum();
            (counted().count() > count_max || bytes > bytes_max)
                .then(|| counted().filter(|(key, _)| *key != kept).min_by_key(|(_, resting)| resting.touched))
                .flatten()
                .map(|(key, _)| *key)
        };
        excess(&|resting| resting.owner == owner, (limits.count / KEPT_SHARE).max(1), limits.bytes / KEPT_SHARE as u64)
            .or_else(|| excess(&|_| true, limits.count, limits.bytes))
    }

    fn remove_content(&self, partial: &OwnedFd, path: &RemotePath, place: &[u8]) -> IoResult<()> {
        match place.split_first() {
            Some((&IN_STATE, name)) if is_hidden(name) => sys::unlink(partial, name),
            Some((&BESIDE, name)) if is_hidden(name) => {
                lock(&self.partials.table).beside.remove(name);
                let parent = path.components().split_last().map_or(&[][..], |(_, parent)| parent);
                let directory = sys::open_beneath(self.root_fd(), parent, self.openat2)?;
                sys::unlink(directory, name)
            }
            _ => Ok(()),
        }
    }

    /// Whether this hidden name beside a target belongs to an unfinished upload that is kept.
    pub(super) fn is_kept_beside(&self, name: &[u8]) -> bool {
        lock(&self.partials.table).beside.contains(name)
    }

    /// Finds what an earlier server left: enters what can be gone on with, and removes the rest.
    pub(super) fn load_partials(&self) -> IoResult<()> {
        let Some(state) = &self.state else { return Ok(()) };
        let (records, others) = read_directory(&state.partial)?;
        let mut contents: HashSet<Vec<u8>> = others.into_iter().collect();
        let oldest = now().saturating_sub(self.options.keep_partial.age.as_secs());
        for (key, name) in records {
            let record = read_record(&state.partial, &name);
            let content = record.as_ref().and_then(|record| content_status(self, &state.partial, record));
            if let (Some(record), Some(status)) = (&record, content)
                && record.touched > oldest
                && !self.options.keep_partial.age.is_zero()
            {
                let mut table = lock(&self.partials.table);
                match record.place.split_first() {
                    Some((&IN_STATE, hidden)) => drop(contents.remove(hidden)),
                    Some((_, hidden)) => drop(table.beside.insert(hidden.to_vec())),
                    None => {}
                }
                table.resting.insert(key, Resting::new(record, status));
                continue;
            }
            sys::unlink(&state.partial, &name)?;
            if let Some(record) = &record.filter(|record| record.place.first() == Some(&BESIDE)) {
                // Deliberate loss: what lies beside a target is found by age too.
                let _ = self.remove_content(&state.partial, &record.path, &record.place);
            }
        }
        for name in contents {
            match sys::unlink(&state.partial, &name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// The names of records with their keys, and whatever else there is.
type Names = (Vec<(PartialKey, Vec<u8>)>, Vec<Vec<u8>>);

/// The names in the directory.
fn read_directory(partial: &OwnedFd) -> IoResult<Names> {
    let (mut records, mut others) = (Vec::new(), Vec::new());
    let directory = sys::open_directory_at(partial, b".")?;
    let mut memory = Vec::with_capacity(32 * 1024);
    loop {
        let names = sys::read_names(&directory, &mut memory)?;
        if names.is_empty() {
            return Ok((records, others));
        }
        for name in names {
            match key_of(&name.bytes) {
                Some(key) => records.push((key, name.bytes)),
                None => others.push(name.bytes),
            }
        }
    }
}

/// Bytes on disk of the content of a record; none when it is not there.
fn content_status(inner: &Inner, partial: &OwnedFd, record: &Record) -> Option<u64> {
    let (&kind, name) = record.place.split_first().filter(|(_, name)| is_hidden(name))?;
    let file = match kind {
        IN_STATE => sys::open_at(partial, name, OFlags::RDONLY, 0).ok()?,
        BESIDE => {
            let parent = record.path.components().split_last().map_or(&[][..], |(_, parent)| parent);
            let directory = sys::open_beneath(inner.root_fd(), parent, inner.openat2).ok()?;
            sys::open_at(directory, name, OFlags::RDONLY, 0).ok()?
        }
        _ => return None,
    };
    disk_size(&file).ok()
}

/// Bytes that a file takes on disk.
pub(super) fn disk_size(file: impl AsFd) -> IoResult<u64> {
    let stat = rustix::fs::fstat(file)?;
    Ok(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512))
}

pub(super) fn digits(key: &PartialKey) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key_of(name: &[u8]) -> Option<PartialKey> {
    let text = std::str::from_utf8(name).ok()?;
    Some(*blake3::Hash::from_hex(text).ok()?.as_bytes()).filter(|key| digits(key).as_bytes() == name)
}

fn read_record(partial: impl AsFd, name: &[u8]) -> Option<Record> {
    let file = sys::open_at(partial, name, OFlags::RDONLY, 0).ok()?;
    let size =
        sys::status(&file).ok().filter(|status| status.kind == Kind::File && status.size <= RECORD_LEN_MAX)?.size;
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    super::read::read_full(&file, 0, &mut bytes).ok().filter(|&is_whole| is_whole)?;
    Record::decode(&bytes)
}

fn write_record(partial: &OwnedFd, name: &[u8], bytes: &[u8], durable: bool) -> IoResult<()> {
    write_record_as(partial, &[name, NEW_SUFFIX].concat(), name, bytes, durable)
}

/// Writes a record under its name, by way of another.
fn write_record_as(directory: impl AsFd, new: &[u8], name: &[u8], bytes: &[u8], durable: bool) -> IoResult<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let write = || {
        let file = sys::open_at(&directory, new, flags, 0o600)?;
        let mut written = 0;
        while written < bytes.len() {
            match sys::write_some(&file, &bytes[written..], written as u64)? {
                0 => return Err(Errno::IO),
                count => written += count,
            }
        }
        if durable {
            sys::sync(&file)?;
        }
        sys::rename_over(&directory, new, &directory, name)?;
        if durable { sys::sync(&directory) } else { Ok(()) }
    };
    write().inspect_err(|_| {
        // Deliberate loss: the next record takes the same name.
        let _ = sys::unlink(&directory, new);
    })
}

/// The unfinished uploads of a root, whether or not it is served at this moment. Nothing is changed.
///
/// # Errors
/// `NotFound` when nothing was ever served from there; what reading it can fail with.
pub fn list_partials(root: &Path) -> Result<Vec<Partial>> {
    let (partial, root_fd) = open_partial(root)?;
    let what = || format!("read the unfinished uploads in {}", Escaped(root.as_os_str().as_encoded_bytes()));
    let (records, _) = read_directory(&partial).while_doing(what)?;
    let mut found: Vec<Partial> = records
        .into_iter()
        .filter_map(|(key, name)| {
            let record = read_record(&partial, &name)?;
            let content = open_content(&partial, &root_fd, &record)?;
            let is_active = rustix::fs::flock(&content, FlockOperation::NonBlockingLockExclusive).is_err();
            let disk_size = disk_size(&content).ok()?;
            let id = digits(&key)[..16].to_owned();
            Some(Partial { record, disk_size, is_active, id, key })
        })
        .collect();
    found.sort_by(|left, right| left.record.path.cmp(&right.record.path).then(left.key.cmp(&right.key)));
    Ok(found)
}

/// Removes an unfinished upload that [`list_partials`] has found, also beside a server that serves the root: for
/// that server it is as if it had never been. False: a server is receiving it, or it has come to its end.
///
/// # Errors
/// What removing files can fail with.
pub fn remove_partial(root: &Path, found: &Partial) -> Result<bool> {
    let (partial, root_fd) = open_partial(root)?;
    let what = || format!("remove the unfinished upload of {}", found.record.path);
    let name = digits(&found.key);
    let Some(record) = read_record(&partial, name.as_bytes()) else { return Ok(false) };
    let Some(content) = open_content(&partial, &root_fd, &record) else { return Ok(false) };
    // Held until it is gone, so that no server begins to receive it.
    if rustix::fs::flock(&content, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    sys::unlink(&partial, name.as_bytes()).while_doing(what)?;
    let (kind, hidden) = record.place.split_first().map_or((&0, &[][..]), |(kind, hidden)| (kind, hidden));
    let removed = match *kind {
        IN_STATE => sys::unlink(&partial, hidden),
        _ => open_parent(&root_fd, &record.path).and_then(|directory| sys::unlink(directory, hidden)),
    };
    removed.while_doing(what)?;
    Ok(true)
}

fn open_partial(root: &Path) -> Result<(OwnedFd, OwnedFd)> {
    let what = || format!("open the state of the root {}", Escaped(root.as_os_str().as_encoded_bytes()));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags, Mode::empty()).while_doing(what)?;
    let state = sys::open_directory_at(&fd, STATE_NAME.as_bytes()).while_doing(what)?;
    let partial = sys::open_directory_at(&state, PARTIAL_NAME.as_bytes()).while_doing(what)?;
    Ok((partial, fd))
}

fn open_parent(root: &OwnedFd, path: &RemotePath) -> IoResult<OwnedFd> {
    let parent: &[Component] = path.components().split_last().map_or(&[][..], |(_, parent)| parent);
    sys::open_beneath(root, parent, sys::has_openat2(root))
}

fn open_content(partial: &OwnedFd, root: &OwnedFd, record: &Record) -> Option<OwnedFd> {
    let (&kind, hidden) = record.place.split_first().filter(|(_, hidden)| is_hidden(hidden))?;
    match kind {
        IN_STATE => sys::open_at(partial, hidden, OFlags::RDONLY, 0).ok(),
        BESIDE => sys::open_at(open_parent(root, &record.path).ok()?, hidden, OFlags::RDONLY, 0).ok(),
        _ => None,
    }
}

impl State {
    /// Where content that is to be kept is staged.
    pub(super) fn staging_for(&self, keep: bool) -> &OwnedFd {
        if keep { &self.partial } else { &self.staging }
    }
}

/// The place of staged content, as a record names it.
pub(super) fn place_bytes(place: &Place) -> Option<Vec<u8>> {
    let (kind, name) = match place {
        Place::Kept(name) => (IN_STATE, name),
        Place::Beside(name) => (BESIDE, name),
        Place::State(_) | Place::Nameless | Place::Aside(..) | Place::Published => return None,
    };
    Some([&[kind], name.as_bytes()].concat())
}
