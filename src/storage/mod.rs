//! Files on this machine's disk: the only code that reads and writes what is served or saved.
//!
//! A [`Store`] is one directory tree, opened once; everything in it is reached relative to that handle, never
//! through a symbolic link, and never by a path from the machine's root. All saving, by whatever door and on both
//! sides, is one walk: [`Store::begin`] → [`Upload::write_at`] → [`Upload::finish`] → [`Store::publish`], and a
//! positive answer from the last means that the file is durable under its final name.
//!
//! Invariants:
//! - Bytes that arrive are written under a staging name, or in a directory that has one, never under a final path, and
//!   never through a link.
//! - A file that saw a failed write or sync is never synced again and never published.
//! - No operation reaches the state directory ([`STATE_NAME`]), which is recognised by device and inode.
//! - Calls block; they are made from threads that may.
//!
//! `docs/STORAGE.md` tells the order of writes and what a crash may leave. Read `upload.rs` and `publish.rs` for
//! the way in, `read.rs` for the way out, `walk.rs` for how a name becomes a handle.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::path::{Component, RemotePath};

mod append;
mod aside;
mod change;
mod check;
mod durable;
mod health;
mod holes;
mod names;
mod open;
mod partial;
mod publish;
mod read;
mod recorded;
mod records;
mod resting;
mod scrub;
mod state;
mod sys;
mod tree;
mod upload;
mod walk;
mod xattrs;

#[cfg(test)]
#[path = "../../tests/sim/disk.rs"]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;

pub use append::{Append, Tail};
pub use check::Space;
pub use names::Named;
pub(crate) use partial::kept_name;
pub use partial::{KeepPartial, Kept, Partial, PartialKey, list_partials, now, remove_partial};
pub use publish::{Outcome, Published};
pub use read::{Cursor, Entry, Listing, StoredFile};
pub use recorded::Recorded;
pub use records::Records;
pub use scrub::Condition;
pub use tree::{Tree, TreeBuilder, TreeChange, UnfinishedTree, list_trees, remove_tree};
pub(crate) use upload::is_in_memory;
pub use upload::{FileMetadata, Made, NewFile, Parents, Staged, Upload};
pub use xattrs::read_xattrs;

/// The name under which a served root keeps its state: lock and staging.
pub const STATE_NAME: &str = ".sealift";

/// What names of staging files beside their targets begin with; 32 hexadecimal digits follow.
const HIDDEN_PREFIX: &[u8] = b".sealift-";

/// One directory tree: the root that a server serves, or the directory that a client saves into.
/// Clones share it; all methods may be called from many threads.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// How a store treats what it is given.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The home directory of who runs this; it is refused as a root, like `/`, `/root` and `/home/*`.
    pub home: Option<PathBuf>,
    /// Permission bits of stored files.
    pub file_mode: ModeRange,
    /// Permission bits of stored directories.
    pub directory_mode: ModeRange,
    /// Whether large files may be written past the page cache.
    pub direct: bool,
    /// Which unfinished uploads are kept, of a root that is served.
    pub keep_partial: KeepPartial,
    /// Whether each file is synced and named by itself: to measure what doing it for many at once is worth.
    pub sync_each: bool,
    /// Whether there are records of invites in the state of a root that is served.
    pub invites: bool,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            home: None,
            file_mode: ModeRange { min: 0, max: 0o775 },
            directory_mode: ModeRange { min: 0, max: 0o775 },
            direct: true,
            keep_partial: KeepPartial::default(),
            sync_each: false,
            invites: false,
        }
    }
}

impl StoreOptions {
    /// Those of a directory that a client saves into: without setuid, setgid, sticky and world-writable unless they
    /// were asked for.
    #[must_use]
    pub fn local(special_modes: bool) -> StoreOptions {
        let mut options = StoreOptions::default();
        if special_modes {
            options.allow_special_modes();
        }
        options
    }

    /// Allows setuid, setgid, sticky and world-writable.
    pub fn allow_special_modes(&mut self) {
        self.file_mode.max |= 0o7002;
        self.directory_mode.max |= 0o7002;
    }
}

/// The permission bits that something gets at least and at most, whatever is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeRange {
    /// Bits that are always set.
    pub min: u32,
    /// Bits that may be set. By default without write for everyone, setuid, setgid and sticky.
    pub max: u32,
}

impl ModeRange {
    /// The bits that are set when `mode` is asked for. A bit of `min` counts even when `max` lacks it.
    #[must_use]
    pub fn apply(self, mode: u32) -> u32 {
        ((mode & self.max) | self.min) & 0o7777
    }
}

impl From<ModeRange> for (u32, u32) {
    fn from(range: ModeRange) -> (u32, u32) {
        (range.min, range.max)
    }
}

/// A file or directory as long as it exists, under whatever name: its device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device that holds it.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

/// A time of the file system: seconds since 1970 and nanoseconds below a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtime {
    secs: i64,
    nanos: u32,
}

impl Mtime {
    /// A time; none when `nanos` is a whole second or more.
    #[must_use]
    pub fn new(secs: i64, nanos: u32) -> Option<Mtime> {
        (nanos < 1_000_000_000).then_some(Mtime { secs, nanos })
    }

    /// Seconds since the beginning of 1970, negative before it.
    #[must_use]
    pub fn secs(self) -> i64 {
        self.secs
    }

    /// Nanoseconds after that second, below 1,000,000,000.
    #[must_use]
    pub fn nanos(self) -> u32 {
        self.nanos
    }

    /// Nanoseconds since 1970; none outside the years 1677 to 2262, which 64 bits cannot tell.
    #[must_use]
    pub fn as_nanos(self) -> Option<i64> {
        i64::try_from(i128::from(self.secs) * 1_000_000_000 + i128::from(self.nanos)).ok()
    }

    fn clamped(secs: i64, nanos: u64) -> Mtime {
        Mtime { secs, nanos: u32::try_from(nanos).map_or(999_999_999, |nanos| nanos.min(999_999_999)) }
    }
}

/// What tells one version of a file from another. A chmod, a new name or a replacement count as a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Which file it is.
    pub identity: Identity,
    /// Bytes in it.
    pub size: u64,
    /// When its content was last changed, as far as its writers tell.
    pub mtime: Mtime,
    /// When anything about it was last changed, as the kernel tells.
    pub ctime: Mtime,
}

/// What stands under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, FIFO or socket: never opened, never replaced.
    Special,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::File => "a file",
            Kind::Directory => "a directory",
            Kind::Link => "a symbolic link",
            Kind::Special => "a device, FIFO or socket",
        })
    }
}

/// What to do when something of the final name is there. A directory or special file is never replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IfExists {
    /// Replace it, atomically.
    #[default]
    Overwrite,
    /// Leave it and store nothing.
    Skip,
    /// Refuse.
    Fail,
    /// Store under a new name: `name (1).ext`, `name (2).ext`, …
    Rename,
}

/// What all clones of a [`Store`], its uploads and its staged files share: a tree, and where in it their paths begin.
struct Inner {
    core: Arc<Core>,
    /// The directory below the tree's root that is the root of every path; shown to nobody.
    home: Vec<Component>,
    /// What is being built, in the place that it shall have.
    graft: Option<Arc<tree::Graft>>,
}

/// One tree, whatever part of it is looked at.
struct Core {
    root: Arc<walk::Directory>,
    /// Whether the root is on tmpfs.
    in_memory: bool,
    /// How the root is called in messages.
    label: String,
    options: StoreOptions,
    state: Option<State>,
    /// The state directory and every directory in it.
    reserved: Vec<Identity>,
    openat2: bool,
    warnings: Vec<String>,
    /// Whether nameless files (`O_TMPFILE`) work; turned off by the first refusal.
    nameless: AtomicBool,
    directories: walk::Shared,
    durable: durable::Directories,
    staging_places: Mutex<upload::StagingPlaces>,
    /// How old a hidden name is before it is taken for that of a dead process.
    leftover_age: Duration,
    /// Where the root was opened, and what was there: a served root only.
    place: Option<health::Place>,
    health: Mutex<health::Health>,
    sync_failures: AtomicU32,
    /// Numbers staging files, so that the oldest of a batch is known.
    next_order: AtomicU64,
    whole_sync: publish::WholeSync,
    partials: partial::Partials,
    exchanges: tree::Exchanges,
}

/// What a served root keeps in its state directory.
struct State {
    directory: OwnedFd,
    staging: OwnedFd,
    /// Unfinished uploads and their records.
    partial: OwnedFd,
    /// Directories that are built to take the place of others.
    trees: OwnedFd,
    /// Records of invites, where the root was opened for them.
    invites: Option<OwnedFd>,
    /// Held for as long as the store lives; the lock goes with it.
    _lock: OwnedFd,
}

impl std::ops::Deref for Inner {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl State {
    fn staging(&self) -> BorrowedFd<'_> {
        self.staging.as_fd()
    }
}

impl Store {
    /// The same tree seen from a directory in it, which is the root of every path from then on and of every name in
    /// an answer or message. It is looked up anew in each call, never through a link, and made by the first upload
    /// if it is missing.
    #[must_use]
    pub fn within(&self, home: &RemotePath) -> Store {
        let home = [&self.inner.home, home.components()].concat();
        let graft = self.inner.graft.clone();
        Store { inner: Arc::new(Inner { core: Arc::clone(&self.inner.core), home, graft }) }
    }

    /// What a person should know about how this store works on its file system, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }

    /// Whether the root is on tmpfs, where syncing takes no time.
    #[must_use]
    pub(crate) fn is_in_memory(&self) -> bool {
        self.inner.in_memory
    }

    /// The permission bits that files get here.
    #[must_use]
    pub fn file_mode(&self) -> ModeRange {
        self.inner.options.file_mode
    }

    /// The permission bits that directories get here.
    #[must_use]
    pub fn directory_mode(&self) -> ModeRange {
        self.inner.options.directory_mode
    }

    /// Which directory this is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.inner.root.identity
    }

    /// Whether this path is, or lies in, what the store keeps for itself and shows to nobody.
    #[must_use]
    pub fn is_reserved(&self, path: &RemotePath) -> bool {
        self.inner.is_reserved(path)
    }
}

impl From<Core> for Store {
    fn from(core: Core) -> Store {
        Store { inner: Arc::new(Inner { core: Arc::new(core), home: Vec::new(), graft: None }) }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("root", &self.inner.label).finish_non_exhaustive()
    }
}

impl Core {
    fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// The lock of a mutex whose content is whole between any two statements of its holders.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
