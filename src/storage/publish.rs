//! The last step of the way in, for one file or many: sync, rename, sync the directories, and only then answer.
//!
//! No other code gives a received file its name. What is common to a batch is paid once: the writes of all files
//! are begun before the first is waited for, and each directory is synced once.

use std::collections::HashMap;
use std::collections::hash_map;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result as IoResult};

use super::sys;
use super::upload::{Place, Staged, Staging};
use super::walk::{Directory, hidden_name};
use super::{Identity, IfExists, Inner, Store, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::COMPONENT_LEN_MAX;
use crate::path::{Component, RemotePath};

/// New names that are tried for a file that must not replace another.
pub(super) const RENAMES_MAX: u32 = 10_000;
/// Files of a batch from which on one sync of their file system is quicker than one of each.
const WHOLE_SYNC_COUNT_MIN: u64 = 24;
/// How long that may take before the next batches go without it.
const WHOLE_SYNC_SLOW: Duration = Duration::from_millis(500);
/// How long they go without it.
const WHOLE_SYNC_PAUSE: Duration = Duration::from_secs(10);
/// The `statfs` types of the file systems whose sync is known to tell of every failed write: ext4, XFS, and tmpfs, which
/// has nothing to write.
const WHOLE_SYNC_KINDS: [i64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];

/// How a file came to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was there.
    Created,
    /// It took the place of a file or link.
    Replaced,
    /// Something was there, so it has a new name.
    Renamed,
    /// Something was there, so nothing was stored.
    Skipped,
}

/// A file that is durable under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The name that it has now.
    pub path: RemotePath,
    /// How it came to it.
    pub outcome: Outcome,
    /// Bytes of the file in whose place it is, as they were a moment before; 0 for none and for a link.
    pub replaced_size: u64,
}

impl Store {
    /// Makes staged files durable and gives them their names. The answers are in the order of the files, and each
    /// success means that this file is on disk under its name, and every directory above it is.
    ///
    /// A file that fails is removed and does not keep the others from being stored. Only when a directory cannot
    /// be synced may a file be there though its answer is an error.
    #[must_use]
    pub fn publish(&self, files: Vec<Staged>) -> Vec<Result<Published>> {
        let inner = &self.inner;
        if let Err(error) = inner.writable() {
            return files.iter().map(|_| Err(error.duplicate())).collect();
        }
        if inner.options.sync_each && files.len() > 1 {
            return files.into_iter().flat_map(|staged| self.publish(vec![staged])).collect();
        }
        let mut answers: Vec<Result<Published>> = Vec::with_capacity(files.len());
        let mut directories: HashMap<Identity, Touched> = HashMap::new();
        for staged in inner.sync_staged(files) {
            let index = answers.len();
            answers.push(staged.and_then(|mut staged| {
                let answer = inner.place_still(&mut staged)?;
                let touched = match directories.entry(staged.staging.directory.identity) {
                    hash_map::Entry::Occupied(entry) => entry.into_mut(),
                    hash_map::Entry::Vacant(entry) => entry.insert(Touched {
                        directory: Arc::clone(&staged.staging.directory),
                        depth: staged.path.components().len() - 1,
                        files: Vec::new(),
                    }),
                };
                touched.files.push(index);
                Ok(answer)
            }));
        }
        for touched in directories.into_values() {
            if let Err(error) = inner.settle(&touched.directory, touched.depth) {
                for index in touched.files {
                    if let Ok(published) = &answers[index] {
                        let what = format!("store {}: it is there, but not known to be durable", published.path);
                        answers[index] = Err(error.duplicate().context(what));
                    }
                }
            }
        }
        // Unmounted while they were stored: whoever looks for them would not find them.
        if let Err(error) = inner.in_place() {
            answers.iter_mut().filter(|answer| answer.is_ok()).for_each(|answer| *answer = Err(error.duplicate()));
        }
        answers
    }
}

/// A directory that got new names, and the files that have them.
struct Touched {
    directory: Arc<Directory>,
    depth: usize,
    files: Vec<usize>,
}

/// When a whole file system is synced instead of each file of a batch: `docs/STORAGE.md`, "Decisions".
pub(super) struct WholeSync {
    /// Whether this kernel tells of failed writes (5.8 and later).
    told: bool,
    /// It took long, for the sake of what others wrote: until then, files are synced one by one.
    slow_until: Mutex<Option<Instant>>,
}

impl WholeSync {
    pub(super) fn new() -> WholeSync {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
        let told = (numbers.next(), numbers.next()) >= (Some(5), Some(8));
        WholeSync { told, slow_until: Mutex::new(None) }
    }

    /// Syncs the file system that these files are on, if that is right; a failure holds for all of them.
    fn try_for(&self, files: &[&Staged]) -> Option<IoResult<()>> {
        // A handle is told of what failed since it was opened, so the oldest speaks for all.
        let oldest = files.iter().min_by_key(|staged| staged.staging.order)?.staging.file();
        self.try_on(oldest, files.len() as u64)
    }

    /// The same for the file system of a handle that was opened before any of `count` files was written to.
    pub(super) fn try_on(&self, oldest: impl AsFd, count: u64) -> Option<IoResult<()>> {
        if !self.told || count < WHOLE_SYNC_COUNT_MIN {
            return None;
        }
        #[allow(clippy::unnecessary_cast)] // the type differs between processors
        let kind = rustix::fs::fstatfs(&oldest).ok()?.f_type as i64;
        let begun = Instant::now();
        if !WHOLE_SYNC_KINDS.contains(&kind) || lock(&self.slow_until).is_some_and(|until| begun < until) {
            return None;
        }
        let result = rustix::io::retry_on_intr(|| rustix::fs::syncfs(&oldest));
        if matches!(result, Err(Errno::NOSYS | Errno::PERM)) {
            // A filter forbids the call; nothing was tried.
            return None;
        }
        if begun.elapsed() > WHOLE_SYNC_SLOW {
            *lock(&self.slow_until) = Some(Instant::now() + WHOLE_SYNC_PAUSE);
        }
        Some(result)
    }
}

impl Inner {
    /// Makes content and metadata durable. A failure is final: the kernel forgets what it could not write.
    fn sync_staged(&self, files: Vec<Staged>) -> Vec<Result<Staged>> {
        let mut devices: HashMap<u64, Vec<&Staged>> = HashMap::new();
        for staged in files.iter().filter(|staged| staged.staging.file.is_some()) {
            devices.entry(staged.staging.directory.identity.device).or_default().push(staged);
        }
        let whole: HashMap<u64, IoResult<()>> = devices
            .into_iter()
            .filter_map(|(device, files)| Some((device, self.whole_sync.try_for(&files)?)))
            .collect();
        whole.values().filter_map(|result| result.err()).for_each(|errno| self.sync_failed(errno));
        let is_alone = |staged: &Staged| !whole.contains_key(&staged.staging.directory.identity.device);
        if files.len() > 1 {
            // One journal commit can then carry what would otherwise be one each.
            let alone = files.iter().filter(|staged| is_alone(staged));
            alone.filter_map(|staged| staged.staging.file.as_ref()).for_each(sys::begin_writeback);
        }
        let sync = |staged: Staged| {
            let result = match (&staged.staging.file, whole.get(&staged.staging.directory.identity.device)) {
                (None, _) => Ok(()),
                (Some(_), Some(&result)) => result,
                (Some(file), None) => sys::sync(file),
            };
            match result {
                Ok(()) => Ok(staged),
                Err(errno) => {
                    if is_alone(&staged) {
                        self.sync_failed(errno);
                    }
                    Err(Error::io(format!("sync {}", staged.path), errno))
                }
            }
        };
        files.into_iter().map(sync).collect()
    }

    /// Gives a durable file its name, in the directory that has the directory's name now: none takes its place until
    /// then, and one that has since the file was begun is found out.
    fn place_still(&self, staged: &mut Staged) -> Result<Published> {
        let exchanges = self.exchanges.hold();
        staged.staging.place_directory(&exchanges).map_err(|error| error.context(format!("store {}", staged.path)))?;
        let (_, parent) = staged.path.components().split_last().unzip();
        staged
            .staging
            .store
            .check_looked(&staged.staging.directory, parent.unwrap_or_default(), &exchanges)
            .map_err(|error| error.context(format!("store {}", staged.path)))?;
        self.place(staged)
    }

    /// Gives a durable file its name, by the rules of its policy.
    fn place(&self, staged: &mut Staged) -> Result<Published> {
        let name = staged.name.clone();
        let path = staged.path.clone();
        let mut replaced_size = 0;
        let outcome = match staged.if_exists {
            IfExists::Overwrite => {
                let (outcome, size) = self.place_over(staged)?;
                replaced_size = size;
                outcome
            }
            IfExists::Fail | IfExists::Skip => match place_new(&mut staged.staging, name.as_bytes()) {
                Ok(()) => Outcome::Created,
                // Tells what is there; if that has just gone, what was found still holds.
                Err(Errno::EXIST) => match self.check_target(&staged.staging.directory, &path, staged.if_exists) {
                    Err(error) if error.kind() == ErrorKind::Exists && staged.if_exists == IfExists::Skip => {
                        Outcome::Skipped
                    }
                    Err(error) => return Err(error),
                    Ok(_) => return Err(exists(&path)),
                },
                Err(errno) => return Err(placing(&path, errno)),
            },
            IfExists::Rename => return self.place_renamed(staged),
        };
        Ok(Published { path, outcome, replaced_size })
    }

    fn place_over(&self, staged: &mut Staged) -> Result<(Outcome, u64)> {
        let path = &staged.path;
        let name = staged.name.as_bytes();
        let replaced_size = match place_new(&mut staged.staging, name) {
            Ok(()) => return Ok((Outcome::Created, 0)),
            Err(Errno::EXIST) => self.check_target(&staged.staging.directory, path, IfExists::Overwrite)?,
            Err(errno) => return Err(placing(path, errno)),
        };
        replace(&mut staged.staging, name).map_err(|errno| match errno {
            Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY => {
                Error::new(ErrorKind::IsDirectory, format!("{path} is a directory, which a file never replaces"))
            }
            errno => placing(path, errno),
        })?;
        Ok((Outcome::Replaced, replaced_size.unwrap_or(0)))
    }

    fn place_renamed(&self, staged: &mut Staged) -> Result<Published> {
        let parent = staged.path.split().map(|(parent, _)| parent).unwrap_or_default();
        for count in 0..=RENAMES_MAX {
            let name = if count == 0 { staged.name.clone() } else { numbered(&staged.name, count) };
            match place_new(&mut staged.staging, name.as_bytes()) {
                Ok(()) => {
                    let outcome = if count == 0 { Outcome::Created } else { Outcome::Renamed };
                    let path = parent
                        .join(name.clone())
                        .map_err(|error| Error::new(ErrorKind::Name, format!("store {}: {error}", staged.path)))?;
                    return Ok(Published { path, outcome, replaced_size: 0 });
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(placing(&staged.path, errno)),
            }
        }
        Err(exists(&staged.path).context(format!("{RENAMES_MAX} names like it are taken")))
    }
}

/// Gives the staged file this name unless something has it.
fn place_new(staging: &mut Staging, name: &[u8]) -> IoResult<()> {
    match staging.named().filter(|_| !staging.came_with_directory()) {
        // Its directory was not there before, and no name in it.
        None if staging.came_with_directory() => {}
        None => sys::link_open_file(staging.file(), &*staging.directory, name)?,
        Some((directory, staged)) => {
            sys::rename_new(directory, staged, &*staging.directory, name)?;
        }
    }
    staging.place = Place::Published;
    Ok(())
}

/// Gives the staged file this name, whatever file or link has it.
fn replace(staging: &mut Staging, name: &[u8]) -> IoResult<()> {
    if staging.named().is_none() {
        // A file without a name cannot replace another, so it gets a hidden one first.
        let hidden = hidden_name()?;
        sys::link_open_file(staging.file(), &*staging.directory, hidden.as_bytes())?;
        staging.place = Place::Beside(hidden);
    }
    if let Some((directory, staged)) = staging.named() {
        sys::rename_over(directory, staged, &*staging.directory, name)?;
    }
    staging.place = Place::Published;
    Ok(())
}

fn exists(path: &RemotePath) -> Error {
    Error::new(ErrorKind::Exists, format!("{path} exists and must not be replaced"))
}

fn placing(path: &RemotePath, errno: Errno) -> Error {
    match errno {
        Errno::NOENT => Error::new(ErrorKind::NotFound, format!("store {path}: its directory went away meanwhile")),
        errno => Error::io(format!("give {path} its name"), errno),
    }
}

/// `name (1).ext` for `name.ext`: within the bound of a name, cut where a character ends.
pub(super) fn numbered(name: &Component, count: u32) -> Component {
    let bytes = name.as_bytes();
    let number = format!(" ({count})");
    let dot = bytes.iter().rposition(|&byte| byte == b'.').filter(|&dot| dot > 0);
    let (mut stem, mut extension) = bytes.split_at(dot.unwrap_or(bytes.len()));
    if extension.len() + number.len() >= COMPONENT_LEN_MAX {
        // Such a long end is no extension.
        (stem, extension) = (bytes, b"");
    }
    let room = COMPONENT_LEN_MAX - number.len() - extension.len();
    let stem = cut(stem, room);
    Component::new(&[stem, number.as_bytes(), extension].concat()).expect("a name with a number is a name")
}

/// At most `len` of these bytes, without half a character at the end.
fn cut(bytes: &[u8], len: usize) -> &[u8] {
    if bytes.len() <= len {
        return bytes;
    }
    let is_continuation = |byte: u8| byte & 0xc0 == 0x80;
    // A character has at most three bytes after its first; with more, it is not UTF-8 and any place is as good.
    let end = (len.saturating_sub(3)..=len).rev().find(|&end| !is_continuation(bytes[end])).unwrap_or(len);
    &bytes[..end]
}
