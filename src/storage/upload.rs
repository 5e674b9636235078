//! The way in, up to the moment before a file gets its name: staging, writing, metadata.
//!
//! Where staging lies is chosen when the upload begins. Small files have no name at all (`O_TMPFILE` in the target
//! directory), so a crash leaves nothing of them, or lie in a directory that has no name yet either (`aside.rs`); large
//! ones have a random name in the state directory, if a file can be renamed from there, or else a hidden one beside the
//! target.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::{Errno, Result as IoResult, retry_on_intr};

use super::aside::{Aside, Asides};
use super::change::sweep;
use super::check::Space;
use super::partial::{disk_size, place_bytes};
use super::read::{modified_at, read_full};
use super::recorded::Recorded;
use super::sys;
use super::walk::{Directory, hidden_name, is_hidden, reserved};
use super::{Identity, IfExists, Inner, Kind, Mtime, Store, StoredFile, Version, lock, xattrs};
use crate::buffer::{BUFFER_ALIGN, is_of_zeros};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;
use crate::limits::{FILE_SIZE_MAX, GROUP_LEN, KIB, MIB};
use crate::path::{Component, RemotePath};
use crate::xattrs::Xattrs;

/// Bytes of a file that is staged without a name. A larger one is worth finding again.
const NAMELESS_SIZE_MAX: u64 = GROUP_LEN as u64;
/// Bytes of a file from which on its space is allocated beforehand.
const PREALLOCATE_SIZE_MIN: u64 = 8 * MIB as u64;
/// Bytes of a file from which on it is written past the page cache: below, a second handle costs more.
pub(super) const DIRECT_SIZE_MIN: u64 = 4 * MIB as u64;
/// Bytes of a write that goes past the page cache; a smaller one is better gathered by it.
pub(super) const DIRECT_LEN_MIN: usize = 256 * 1024;
/// The `statfs` type of tmpfs, which takes direct writes and means nothing by it.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Target directories whose staging place is remembered. Full, the memory is emptied.
const STAGING_PLACES_MAX: usize = 4096;
/// Names of one sender, and directories, that are remembered, in at most 290 KiB. Full, the memory is emptied.
pub(super) const MADE_NAMES_MAX: usize = 8192;
/// Bytes of zeros in one write that are left out on disk instead, so that sparse files stay sparse.
const HOLE_LEN_MIN: usize = 64 * KIB;
/// The mode of a file for which none was asked.
const MODE_DEFAULT: u32 = 0o644;

/// Per target directory: whether a file can be renamed there from the state directory. A client's store has none, and
/// remembers where it has looked for what dead ones left.
pub(super) type StagingPlaces = HashMap<Identity, bool>;

/// What is known of a file before its content comes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewFile {
    /// Its size, if known. Space is asked for, and from 8 MiB on allocated, beforehand.
    pub size: Option<u64>,
    /// What to do when something has its name.
    pub if_exists: IfExists,
    /// Whether missing directories above it are made.
    pub make_parents: bool,
    /// The permission bits that it will get, as [`FileMetadata::mode`] will say, if they are known. A small file is
    /// made with them, which saves setting them.
    pub mode: Option<u32>,
}

/// What a file gets besides its content.
#[derive(Clone, Debug)]
pub struct FileMetadata {
    /// Permission bits, applied within the store's range; without, those of an ordinary file.
    pub mode: Option<u32>,
    /// Its modification time; without, when it was written.
    pub mtime: Option<Mtime>,
    /// The BLAKE3 root of its content, which the caller has verified.
    pub root: Root,
    /// What its sender calls this upload, to recognise a commit whose answer was lost.
    pub upload_id: [u8; 16],
    /// The extended attributes of users that it shall have, and no others; none: they are not looked at.
    pub xattrs: Option<Xattrs>,
}

impl Store {
    /// Begins to store a file: everything that can be refused before data comes is refused here.
    ///
    /// # Errors
    /// `IsDirectory`, `Special`: such a thing has the name. `Exists`: something has it and the policy is `Fail` or
    /// `Skip`. `NotFound`, `NotDirectory`, `Link`: its directory is none. `Name`: a reserved name. `NoSpace`: the
    /// disk has less room than the size needs. `Limit`: larger than any file can be.
    pub fn begin(&self, path: &RemotePath, options: NewFile) -> Result<Upload> {
        self.begin_in(&mut Parents::default(), path, options)
    }

    /// As [`Store::begin`], for one of many files whose directories are mostly the same.
    ///
    /// # Errors
    /// As [`Store::begin`]; but whether a file of at most one group can replace what is there, and whether there is
    /// room for it, is seen when it is published and written.
    pub fn begin_in(&self, parents: &mut Parents, path: &RemotePath, options: NewFile) -> Result<Upload> {
        self.begin_staged(parents, path, options, false)
    }

    /// As [`Store::begin_in`]; with `keep`, staged where it can be found again.
    pub(super) fn begin_staged(
        &self,
        parents: &mut Parents,
        path: &RemotePath,
        options: NewFile,
        keep: bool,
    ) -> Result<Upload> {
        let upload = self.begin_empty(parents, path, options, keep)?;
        if let Some(size) = options.size.filter(|&size| size > NAMELESS_SIZE_MAX) {
            self.inner.check_space(&upload.staging.directory, path, size)?;
        }
        upload.preallocate()?;
        Ok(upload)
    }

    /// As [`Store::begin_kept`], beginning as a copy of this stored file that shares its content on disk. None where
    /// the file system cannot do that. The base may change at any time, so only what is hashed from
    /// [`Upload::read_at`] counts.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin_clone(&self, path: &RemotePath, options: NewFile, base: &StoredFile) -> Result<Option<Upload>> {
        let upload = self.begin_empty(&mut Parents::default(), path, options, true)?;
        match upload.clone_from(base) {
            Ok(is_cloned) => Ok(is_cloned.then_some(upload)),
            // What comes may need less, or nothing at all.
            Err(error) if error.kind() == ErrorKind::NoSpace => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn begin_empty(&self, parents: &mut Parents, path: &RemotePath, options: NewFile, keep: bool) -> Result<Upload> {
        let inner = &self.inner;
        inner.writable_lately()?;
        if let Some(upload) = inner.begin_aside(parents, path, options)? {
            return Ok(upload);
        }
        let Some((directory, name)) = inner.target(parents, path, options)? else {
            return Err(Error::new(ErrorKind::IsDirectory, "the root is a directory, not a file"));
        };
        let staging =
            inner.stage(&directory, options, keep).map_err(|errno| inner.staging_error(&directory, path, errno))?;
        Ok(Upload::of(staging, path.clone(), name, options, 0))
    }
}

impl Inner {
    /// Begins a small file in a directory that is built aside, if that is to be; what may be refused is refused there or
    /// here as it would be elsewhere.
    fn begin_aside(
        self: &Arc<Inner>,
        parents: &mut Parents,
        path: &RemotePath,
        options: NewFile,
    ) -> Result<Option<Upload>> {
        let is_small = options.size.is_some_and(|size| size <= NAMELESS_SIZE_MAX) && options.make_parents;
        let Some((name, parent)) = path.components().split_last().filter(|_| is_small) else { return Ok(None) };
        if is_hidden(name.as_bytes()) {
            return Ok(None);
        }
        let Some(aside) = parents.asides.open(self, &parents.made, parent)? else { return Ok(None) };
        let file = match aside.make_file(name, self.early_mode(options.mode)) {
            Ok(file) => file,
            // The second of this name is stored as into a directory that is there.
            Err(Errno::EXIST) => return Ok(None),
            Err(errno) => return Err(self.staging_error(&aside.directory, path, errno)),
        };
        let directory = Arc::clone(&aside.directory);
        let staging = Staging::new(Arc::clone(self), directory, Place::Aside(aside, name.clone()), Some(file));
        Ok(Some(Upload::of(staging, path.clone(), name.clone(), options, 0)))
    }

    /// The directory and name that a file is to get, if it may; none for the root.
    pub(super) fn target(
        self: &Arc<Inner>,
        parents: &mut Parents,
        path: &RemotePath,
        options: NewFile,
    ) -> Result<Option<(Arc<Directory>, Component)>> {
        let Some((name, parent)) = path.components().split_last() else { return Ok(None) };
        if let Some(size) = options.size.filter(|&size| size > FILE_SIZE_MAX) {
            let message = format!("store {path}: {size} bytes are more than a file can have ({FILE_SIZE_MAX})");
            return Err(Error::new(ErrorKind::Limit, message));
        }
        if is_hidden(name.as_bytes()) {
            return Err(reserved(path.components()));
        }
        self.refuse_grafted(path.components())?;
        let directory = parents.open(self, parent, options.make_parents)?;
        // A small file that may replace is refused as early when it is written and named: all of it is there.
        let is_small = options.size.is_some_and(|size| size <= NAMELESS_SIZE_MAX);
        if !is_small || options.if_exists != IfExists::Overwrite {
            self.check_target(&directory, path, options.if_exists)?;
        }
        Ok(Some((directory, name.clone())))
    }
}

/// The directories that were made for one sender while it sends, and the names that it has asked for in them, so that
/// what it brings is not looked for where it cannot be: such a directory seldom holds what was not asked for here.
#[derive(Default)]
pub struct Made(Mutex<Names>);

#[derive(Default)]
struct Names {
    directories: HashSet<Identity>,
    /// Hashes of directory and name: two that share one are merely looked for.
    taken: HashSet<u64>,
    hasher: RandomState,
}

impl Made {
    pub(super) fn add_directory(&self, directory: &Directory) {
        let mut names = lock(&self.0);
        if names.directories.len() + names.taken.len() >= MADE_NAMES_MAX {
            // What was made before is looked at from now on, like what others have made.
            *names = Names::default();
        }
        names.directories.insert(directory.identity);
    }

    pub(super) fn forget_directory(&self, directory: &Directory) {
        lock(&self.0).directories.remove(&directory.identity);
    }

    /// Whether this is the first that is asked of this name, in a directory that was made here.
    fn is_new(&self, directory: &Directory, name: &Component) -> bool {
        let mut names = lock(&self.0);
        if !names.directories.contains(&directory.identity) {
            return false;
        }
        if names.directories.len() + names.taken.len() >= MADE_NAMES_MAX {
            *names = Names::default();
            return false;
        }
        let key = names.hasher.hash_one((directory.identity, name.as_bytes()));
        names.taken.insert(key)
    }
}

/// The directory of the file before, kept open for those that follow in it. To be used for files that are stored, or
/// opened, together: kept longer, it could be another directory's name by now.
#[derive(Default)]
pub struct Parents {
    made: Arc<Made>,
    pub(super) asides: Asides,
    latest: Option<(Arc<Inner>, Vec<Component>, Arc<Directory>)>,
}

impl Parents {
    /// For one batch of many that one sender has stored.
    #[must_use]
    pub fn of_sender(made: &Arc<Made>) -> Parents {
        Parents { made: Arc::clone(made), ..Parents::default() }
    }

    /// Has directories that many of these files belong in, and that are not there, filled before they get their names.
    /// All files that are begun are then published together, or dropped.
    pub fn build_aside<'a>(&mut self, paths: impl Iterator<Item = &'a RemotePath>) {
        self.asides = Asides::of(paths);
    }

    pub(super) fn open(&mut self, inner: &Arc<Inner>, components: &[Component], make: bool) -> Result<Arc<Directory>> {
        if let Some((store, known, directory)) = &self.latest
            && Arc::ptr_eq(store, inner)
            && known == components
        {
            return Ok(Arc::clone(directory));
        }
        let directory = if make {
            let (directory, made) = inner.directory_made(components)?;
            if made {
                self.made.add_directory(&directory);
            }
            directory
        } else {
            inner.directory_of(components)?
        };
        self.latest = Some((Arc::clone(inner), components.to_vec(), Arc::clone(&directory)));
        Ok(directory)
    }

    /// Whether nothing stands under this name. What cannot be looked at is found by whoever stores there.
    #[must_use]
    pub fn lacks(&mut self, store: &Store, path: &RemotePath) -> bool {
        self.look(store, path, false)
    }

    /// The same for a file that may replace what is there. It is not looked for in a directory that was made for its
    /// sender, except under a name that was asked for before: what somebody else puts there in the meantime is replaced,
    /// as it would be a moment later.
    #[must_use]
    pub fn lacks_or_replaces(&mut self, store: &Store, path: &RemotePath) -> bool {
        self.look(store, path, true)
    }

    fn look(&mut self, store: &Store, path: &RemotePath, replaces: bool) -> bool {
        let Some((name, parent)) = path.components().split_last() else { return false };
        let aside = self.asides.begun(&store.inner, parent).map(|aside| Arc::clone(&aside.directory));
        match aside.map_or_else(|| self.open(&store.inner, parent, false), Ok) {
            Ok(directory) => {
                replaces && self.made.is_new(&directory, name)
                    || matches!(sys::status_at(&*directory, name.as_bytes()), Err(Errno::NOENT))
            }
            Err(_) => false,
        }
    }
}

impl Inner {
    /// Refuses what must not be replaced under this policy; tells of what is there how many bytes of content it has.
    pub(super) fn check_target(
        &self,
        directory: &Directory,
        path: &RemotePath,
        policy: IfExists,
    ) -> Result<Option<u64>> {
        let name = path.name().map_or(&b"."[..], Component::as_bytes);
        let status = match sys::status_at(directory, name) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::io(format!("look at {path}"), errno)),
        };
        if self.is_reserved_identity(status.identity) {
            return Err(reserved(path.components()));
        }
        let refusal = match (status.kind, policy) {
            (_, IfExists::Rename) | (Kind::File | Kind::Link, IfExists::Overwrite) => {
                return Ok(Some(if status.kind == Kind::File { status.size } else { 0 }));
            }
            (Kind::Directory, _) => ErrorKind::IsDirectory,
            (Kind::Special, _) => ErrorKind::Special,
            (Kind::File | Kind::Link, IfExists::Fail | IfExists::Skip) => ErrorKind::Exists,
        };
        Err(match refusal {
            ErrorKind::Exists => Error::new(refusal, format!("{path} exists and must not be replaced")),
            _ => Error::new(refusal, format!("{path} is {}, which is never replaced", status.kind)),
        })
    }

    /// Refuses a file that there is no room for, or no inode, as far as the file system tells.
    fn check_space(&self, directory: &Directory, path: &RemotePath, size: u64) -> Result<()> {
        match free_space(directory) {
            Some(free) if free < size => {
                return Err(Error::new(
                    ErrorKind::NoSpace,
                    format!("store {path}: it needs {size} bytes, {free} are free"),
                ));
            }
            _ => {}
        }
        if free_files(directory) == Some(0) {
            let message = format!("store {path}: the file system can hold no further file (it has no inodes left)");
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        Ok(())
    }

    fn staging_error(&self, directory: &Directory, path: &RemotePath, errno: Errno) -> Error {
        let hint = match errno {
            Errno::ACCESS | Errno::PERM => {
                let (owner, user) =
                    (sys::status(directory).map_or(0, |status| status.owner), rustix::process::geteuid().as_raw());
                format!(" (its directory belongs to user {owner}, and this runs as user {user})")
            }
            Errno::NOSPC | Errno::DQUOT => {
                let left =
                    |count: Option<u64>| count.map_or("an unknown number of".to_owned(), |count| count.to_string());
                format!(" ({} bytes and {} inodes left)", left(free_space(directory)), left(free_files(directory)))
            }
            _ => String::new(),
        };
        Error::io(format!("begin to store {path}{hint}"), errno)
    }

    /// Creates the file that content is written to.
    fn stage(self: &Arc<Inner>, directory: &Arc<Directory>, options: NewFile, keep: bool) -> IoResult<Staging> {
        let size = options.size;
        let staging = |place, file| Staging::new(Arc::clone(self), Arc::clone(directory), place, Some(file));
        if size.is_some_and(|size| size <= NAMELESS_SIZE_MAX)
            && let Some(file) = self.open_nameless(directory, options.mode)?
        {
            return Ok(staging(Place::Nameless, file));
        }
        let name = hidden_name()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        // A file that nothing makes large soon lies in its directory: no second one is locked to give it its name.
        let small = size.is_some_and(|size| size <= NAMELESS_SIZE_MAX);
        if let Some(state) = self.state.as_ref().filter(|_| !small)
            && self.can_stage_in_state(directory)
        {
            let file = sys::open_at(state.staging_for(keep), name.as_bytes(), flags, 0o600)?;
            if keep {
                // Tells who looks from outside that it is being worked on.
                let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
            }
            return Ok(staging(if keep { Place::Kept(name) } else { Place::State(name) }, file));
        }
        if self.state.is_none() && self.remember_place(directory, false).is_none() {
            // Nobody lists what a client saves into, so what a killed download left here is removed by a later one.
            // Deliberate loss: it stays hidden when it cannot be.
            let _ = sys::open_directory_at(&**directory, b".").and_then(|names| sweep(&names, self.leftover_age));
        }
        let file = sys::open_at(&**directory, name.as_bytes(), flags, 0o600)?;
        // Whoever cleans up leaves what is locked. Where locks don't work, its age protects it.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(staging(Place::Beside(name), file))
    }

    /// The mode that a file is made with which nobody else can open yet: its final one, if that lets its owner give it
    /// attributes. What becomes of it by the umask and the directory's default rights is seen at the end.
    fn early_mode(&self, mode: Option<u32>) -> u32 {
        let mode = mode.map(|mode| self.options.file_mode.apply(mode));
        mode.filter(|mode| mode & 0o600 == 0o600 && mode & !0o777 == 0).unwrap_or(0o600)
    }

    /// Opens a file without a name in this directory, if its file system can.
    fn open_nameless(&self, directory: &Directory, mode: Option<u32>) -> IoResult<Option<OwnedFd>> {
        if !self.nameless.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match sys::open_at(directory, b".", OFlags::TMPFILE | OFlags::RDWR, self.early_mode(mode)) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {
                self.nameless.store(false, Ordering::Relaxed);
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Whether a file can be renamed from the state directory into this one, and is there as if made there.
    pub(super) fn can_stage_in_state(&self, directory: &Directory) -> bool {
        let Some(state) = &self.state else { return false };
        if let Some(&known) = lock(&self.staging_places).get(&directory.identity) {
            return known;
        }
        let inherits = sys::status(directory).map_or(true, |status| status.mode & 0o2000 != 0)
            || rustix::fs::fgetxattr(directory, "system.posix_acl_default", &mut [0_u8; 0][..]).is_ok();
        let works = !inherits && probe_rename(&state.staging, directory).is_ok();
        self.remember_place(directory, works);
        works
    }

    /// Returns what was known before.
    fn remember_place(&self, directory: &Directory, works: bool) -> Option<bool> {
        let mut places = lock(&self.staging_places);
        if places.len() >= STAGING_PLACES_MAX {
            places.clear();
        }
        places.insert(directory.identity, works)
    }

    /// A second handle on a staging file that writes past the page cache, where that means something.
    fn direct_handle(&self, staging: &Staging, size: Option<u64>) -> Option<Direct> {
        if !self.options.direct || size.is_some_and(|size| size < DIRECT_SIZE_MIN) {
            return None;
        }
        let (offset_align, memory_align) = sys::direct_alignment(staging.file())?;
        let (offset_align, memory_align) = (offset_align as usize, memory_align as usize);
        if offset_align > GROUP_LEN || memory_align > BUFFER_ALIGN {
            return None;
        }
        if is_in_memory(staging.file()) {
            return None;
        }
        let (directory, name) = staging.named()?;
        let file = sys::open_at(directory, name, OFlags::WRONLY | OFlags::DIRECT, 0).ok()?;
        let same = sys::status(&file).ok()?.identity == sys::status(staging.file()).ok()?.identity;
        // Whole pages at least, so that no page is written both ways.
        let unit = offset_align.max(BUFFER_ALIGN);
        same.then(|| Direct { file, unit, memory_align, refused: AtomicBool::new(false) })
    }
}

/// Whether a file is on tmpfs.
pub(crate) fn is_in_memory(file: impl AsFd) -> bool {
    #[allow(clippy::unnecessary_cast)] // the type differs between processors
    rustix::fs::fstatfs(file).is_ok_and(|status| status.f_type as i64 == TMPFS_MAGIC)
}

/// Bytes that may be written on the file system of this directory; none when it does not tell.
pub(super) fn free_space(directory: impl AsFd) -> Option<u64> {
    space_of(directory).map(|space| space.free)
}

/// What the file system of a directory has, as far as it tells.
pub(super) fn space_of(directory: impl AsFd) -> Option<Space> {
    let stat = rustix::fs::fstatvfs(directory).ok()?;
    let blocks = if rustix::process::geteuid().is_root() { stat.f_bfree } else { stat.f_bavail };
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    (stat.f_blocks > 0).then(|| Space { free: bytes(blocks), total: bytes(stat.f_blocks) })
}

/// Files that can still be made on the file system of this directory; none when it has no such bound.
fn free_files(directory: impl AsFd) -> Option<u64> {
    let stat = rustix::fs::fstatvfs(directory).ok()?;
    let files = if rustix::process::geteuid().is_root() { stat.f_ffree } else { stat.f_favail };
    (stat.f_files > 0).then_some(files)
}

/// Renames an empty file from one directory into another, and removes it.
pub(super) fn probe_rename(from: impl AsFd, to: impl AsFd) -> IoResult<()> {
    let name = hidden_name()?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    drop(sys::open_at(&from, name.as_bytes(), flags, 0o600)?);
    match sys::rename_new(&from, name.as_bytes(), &to, name.as_bytes()) {
        Ok(()) => sys::unlink(to, name.as_bytes()),
        Err(errno) => {
            sys::unlink(from, name.as_bytes())?;
            Err(errno)
        }
    }
}

/// Where a staging file is until it has its name.
pub(super) enum Place {
    /// Nowhere: it is gone with its last handle.
    Nameless,
    /// In the state directory.
    State(String),
    /// In the state directory, where it can be found again.
    Kept(String),
    /// In the target directory, under a hidden name.
    Beside(String),
    /// In its own directory, which is not in its place yet, under its own name.
    Aside(Arc<Aside>, Component),
    /// It has its final name.
    Published,
}

/// A staging file or link. Dropped before it is published, it is removed.
pub(super) struct Staging {
    pub(super) store: Arc<Inner>,
    pub(super) directory: Arc<Directory>,
    pub(super) place: Place,
    /// None for a link.
    pub(super) file: Option<OwnedFd>,
    /// A file is opened before anything is written to those of higher numbers.
    pub(super) order: u64,
    /// Dropped, it stays where it is: a record names it.
    kept: AtomicBool,
}

impl Staging {
    /// A staging file that was opened, and nothing written to it since.
    pub(super) fn new(store: Arc<Inner>, directory: Arc<Directory>, place: Place, file: Option<OwnedFd>) -> Staging {
        // Taken after the file was opened and before anything is written to it: whatever is written to files of
        // higher numbers is written after this one was opened.
        let order = store.next_order.fetch_add(1, Ordering::SeqCst);
        Staging { store, directory, place, file, order, kept: AtomicBool::new(false) }
    }

    /// Whether it stays where it is when this is dropped.
    pub(super) fn set_kept(&self, kept: bool) {
        self.kept.store(kept, Ordering::SeqCst);
    }

    /// The open file.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_ref().expect("only a staged link has no file").as_fd()
    }

    /// Its staging name and the directory that it is in.
    pub(super) fn named(&self) -> Option<(BorrowedFd<'_>, &[u8])> {
        match &self.place {
            Place::State(name) => Some((self.store.state.as_ref()?.staging.as_fd(), name.as_bytes())),
            Place::Kept(name) => Some((self.store.state.as_ref()?.staging_for(true).as_fd(), name.as_bytes())),
            Place::Beside(name) => Some((self.directory.as_fd(), name.as_bytes())),
            Place::Aside(aside, name) => Some((aside.directory.as_fd(), name.as_bytes())),
            Place::Nameless | Place::Published => None,
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if *self.kept.get_mut() {
            return;
        }
        let Some((directory, name)) = self.named() else { return };
        if let Place::Aside(aside, _) = &self.place {
            aside.spoil();
        }
        match sys::unlink(directory, name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => self.store.break_down(format!("a staging file could not be removed: {errno}")),
        }
    }
}

/// The handle for direct writes of one file.
struct Direct {
    file: OwnedFd,
    /// Offsets and lengths are multiples of this.
    unit: usize,
    memory_align: usize,
    /// The system refused once: buffered for good.
    refused: AtomicBool,
}

/// A file that is being stored. Threads may write to it at the same time, at different offsets.
/// Dropping it removes what was written.
pub struct Upload {
    // Closed before the staging file is removed.
    direct: Option<Direct>,
    staging: Staging,
    path: RemotePath,
    name: Component,
    if_exists: IfExists,
    announced: Option<u64>,
    /// Bytes that were written, in any order.
    written: AtomicU64,
    /// Where the file ends, if nothing but [`Upload::write_at`] made it longer. Holes don't.
    end: AtomicU64,
    /// What kind of failure made it unfit: the writes that follow fail for the same reason.
    poisoned: OnceLock<ErrorKind>,
    /// Whose turn it is to write through the page cache. The system lets in one at a time in any case, and who waits
    /// there burns a processor.
    turn: Mutex<()>,
    /// Whether it and what is recorded of it are on tmpfs, once somebody has asked.
    in_memory: OnceLock<bool>,
}

impl Upload {
    pub(super) fn of(staging: Staging, path: RemotePath, name: Component, options: NewFile, written: u64) -> Upload {
        Upload {
            direct: staging.store.direct_handle(&staging, options.size),
            staging,
            path,
            name,
            if_exists: options.if_exists,
            announced: options.size,
            written: AtomicU64::new(written),
            // Of content that was here before, only its own status tells the end.
            end: AtomicU64::new(if written > 0 { u64::MAX } else { 0 }),
            poisoned: OnceLock::new(),
            turn: Mutex::new(()),
            in_memory: OnceLock::new(),
        }
    }

    /// Where its content is staged, for a record that finds it again; none when it cannot be found again.
    #[must_use]
    pub fn place(&self) -> Option<Vec<u8>> {
        place_bytes(&self.staging.place)
    }

    /// Whether dropping it leaves what was written where it is, for [`Store::resume`]. After a failed write or sync
    /// it is removed nevertheless.
    pub fn keep(&self, keep: bool) {
        self.staging.set_kept(keep && self.check_sound().is_ok());
    }

    /// Whether writing to it, and recording what it holds, waits for no disk.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        let state = self.staging.store.state.as_ref();
        let look = || is_in_memory(self.staging.file()) && state.is_none_or(|state| is_in_memory(&state.staging));
        *self.in_memory.get_or_init(look)
    }

    /// Whether no write or sync of it has failed.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.check_sound().is_ok()
    }

    /// Which version of its file this is now; none when the system does not tell.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        sys::status(self.staging.file()).ok().map(|status| status.version())
    }

    /// Bytes that it takes on disk.
    #[must_use]
    pub fn disk_size(&self) -> u64 {
        disk_size(self.staging.file()).unwrap_or(0)
    }

    /// Makes what was written durable, without its name and metadata.
    ///
    /// # Errors
    /// What a sync can fail with. It is final: the file is never published.
    pub fn sync_content(&self) -> Result<()> {
        self.check_sound()?;
        sys::sync_content(self.staging.file()).map_err(|errno| {
            self.staging.store.sync_failed(errno);
            self.poison(Error::io(format!("sync what has come of {}", self.path), errno))
        })
    }

    /// Makes sure that what is read from now on comes from the disk: first it is made durable, then the system is
    /// told to forget it.
    ///
    /// # Errors
    /// As [`Upload::sync_content`].
    pub fn reread(&self) -> Result<()> {
        self.sync_content()?;
        sys::begin_writeback(self.staging.file());
        Ok(())
    }

    /// Gives back the space that was allocated beyond what is held.
    pub fn trim(&self, len: u64) {
        // Deliberate loss: it merely takes more space then.
        let _ = sys::status(self.staging.file())
            .and_then(|status| if status.size > len { sys::set_len(self.staging.file(), len) } else { Ok(()) });
    }

    /// What it will be called.
    #[must_use]
    pub fn path(&self) -> &RemotePath {
        &self.path
    }

    /// Whether writes may go past the page cache: whole aligned groups are worth gathering then.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct.as_ref().is_some_and(|direct| !direct.refused.load(Ordering::Relaxed))
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `Limit`. Any of them is final: later calls fail, and the file is never published.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_sound()?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > FILE_SIZE_MAX) {
            let message = format!("write {} at offset {offset}: more than a file can have", self.path);
            return Err(self.poison(Error::new(ErrorKind::Limit, message)));
        }
        let is_long =
            self.write_all(offset, bytes).map_err(|errno| self.write_error(offset, bytes.len() as u64, errno))?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if is_long {
            self.end.fetch_max(offset + bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Fills `buffer` with what was written from `offset` on.
    ///
    /// # Errors
    /// `Changed` when less is there; `Io`.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.check_sound()?;
        match read_full(self.staging.file(), offset, buffer) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = format!("{}: less than {} bytes are there", self.path, offset + buffer.len() as u64);
                Err(Error::new(ErrorKind::Changed, message))
            }
            Err(errno) => Err(Error::io(format!("read {} at offset {offset}", self.path), errno)),
        }
    }

    /// Shares the content of a stored file on disk, where the file system can; then this file begins as its copy.
    /// The base may change at any time, so only what is hashed from [`Upload::read_at`] counts.
    ///
    /// # Errors
    /// As [`Upload::write_at`]. A file system that cannot is no error but `false`.
    pub fn clone_from(&self, base: &StoredFile) -> Result<bool> {
        self.check_sound()?;
        match retry_on_intr(|| rustix::fs::ioctl_ficlone(self.staging.file(), base)) {
            Ok(()) => {
                self.written.fetch_add(base.size(), Ordering::Relaxed);
                self.end.store(u64::MAX, Ordering::Relaxed);
                Ok(true)
            }
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS)) => {
                Err(self.write_error(0, base.size(), errno))
            }
            Err(_) => Ok(false),
        }
    }

    /// Copies a range of a stored file to the same place in this one, inside the kernel where that can be.
    /// The base may change meanwhile, so only what is hashed from [`Upload::read_at`] counts.
    ///
    /// # Errors
    /// `Changed` when the base ends before the range does; otherwise as [`Upload::write_at`].
    pub fn copy_from(&self, base: &StoredFile, range: Range<u64>) -> Result<()> {
        self.check_sound()?;
        let mut offset = range.start;
        while offset < range.end {
            let (mut from, mut to) = (offset, offset);
            let len = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(base, Some(&mut from), self.staging.file(), Some(&mut to), len) {
                Ok(0) => return self.copy_by_hand(base, offset..range.end),
                Ok(count) => {
                    offset += count as u64;
                    self.written.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    return self.copy_by_hand(base, offset..range.end);
                }
                Err(errno) => return Err(self.write_error(offset, range.end - offset, errno)),
            }
        }
        Ok(())
    }

    /// Gives the file its size and metadata. Nothing more can be written then.
    ///
    /// # Errors
    /// `Internal` when fewer bytes were written than the size says; `Io`, `NoSpace`.
    pub fn finish(mut self, size: u64, metadata: FileMetadata) -> Result<Staged> {
        self.check_sound()?;
        let written = *self.written.get_mut();
        if written < size {
            let message = format!("store {}: {written} bytes were written, and it is said to have {size}", self.path);
            return Err(Error::new(ErrorKind::Internal, message));
        }
        let xattrs_lost = self
            .set_metadata(size, &metadata)
            .map_err(|errno| Error::io(format!("set size, mode and time of {}", self.path), errno))?;
        // From here on it has its name soon, or is removed.
        self.staging.set_kept(false);
        // Its handle for direct writes is not needed any more.
        self.direct = None;
        Ok(Staged { staging: self.staging, path: self.path, name: self.name, if_exists: self.if_exists, xattrs_lost })
    }

    /// Returns why some extended attributes could not be kept.
    fn set_metadata(&self, size: u64, metadata: &FileMetadata) -> IoResult<Option<ErrorKind>> {
        let file = self.staging.file();
        // Only what was written at once and whole is known to be as long as it should be.
        let is_known = size <= NAMELESS_SIZE_MAX && self.end.load(Ordering::Relaxed) == size;
        if !is_known && sys::status(file)?.size != size {
            sys::set_len(file, size)?;
        }
        // Of a file that an earlier attempt may have begun.
        let xattrs_lost = metadata.xattrs.as_ref().map_or(Ok(None), |wanted| xattrs::replace(file, wanted))?;
        if let Some(mtime) = metadata.mtime {
            sys::set_times(file, &modified_at(mtime))?;
        }
        // The record holds for the time as the file system keeps it, which may be coarser than what was asked.
        let status = sys::status(file)?;
        Recorded { root: metadata.root, upload_id: metadata.upload_id }.set(file, &status)?;
        // Last: a file that may only be read takes no attributes, unless it is root's.
        let mode = self.staging.store.options.file_mode.apply(metadata.mode.unwrap_or(MODE_DEFAULT));
        if status.mode != mode {
            sys::set_mode(file, mode)?;
        }
        Ok(xattrs_lost)
    }

    /// Makes a range one that reads as zeros and takes no space, whatever was there. False where that cannot be.
    fn leave_out(&self, offset: u64, len: u64) -> IoResult<bool> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match sys::allocate(self.staging.file(), flags, offset, len) {
            Ok(()) => Ok(true),
            Err(errno @ (Errno::IO | Errno::ROFS)) => Err(errno),
            // Not offered here: zeros are written like everything else.
            Err(_) => Ok(false),
        }
    }

    pub(super) fn preallocate(&self) -> Result<()> {
        let Some(size) = self.announced.filter(|&size| size >= PREALLOCATE_SIZE_MIN) else { return Ok(()) };
        if is_in_memory(self.staging.file()) {
            // Nothing lies side by side there, and every page would be touched twice, for the first time before any
            // content may come.
            return Ok(());
        }
        match sys::allocate(self.staging.file(), FallocateFlags::empty(), 0, size) {
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::IO | Errno::ROFS)) => {
                Err(self.write_error(0, size, errno))
            }
            // Not offered here: the space comes with the writes.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether the file reaches to the end of them now: what is left out does not make it longer.
    fn write_all(&self, mut offset: u64, mut bytes: &[u8]) -> IoResult<bool> {
        if bytes.len() >= HOLE_LEN_MIN && is_zero(bytes) && self.leave_out(offset, bytes.len() as u64)? {
            return Ok(false);
        }
        if let Some(direct) = &self.direct {
            let count = direct.write(offset, bytes)?;
            offset += count as u64;
            bytes = &bytes[count..];
        }
        if bytes.is_empty() {
            return Ok(true);
        }
        // There is nothing in it that a panic could leave half done.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() {
            match sys::write_some(self.staging.file(), bytes, offset)? {
                0 => return Err(Errno::IO),
                count => {
                    offset += count as u64;
                    bytes = &bytes[count..];
                }
            }
        }
        Ok(true)
    }

    fn copy_by_hand(&self, base: &StoredFile, range: Range<u64>) -> Result<()> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX).min(GROUP_LEN);
        let mut block = vec![0; len];
        let mut offset = range.start;
        while offset < range.end {
            let len = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(GROUP_LEN);
            base.read_at(offset, &mut block[..len])?;
            self.write_at(offset, &block[..len])?;
            offset += len as u64;
        }
        Ok(())
    }

    fn check_sound(&self) -> Result<()> {
        if let Some(&kind) = self.poisoned.get() {
            let message = format!("store {}: an earlier write failed, so it starts anew", self.path);
            return Err(Error::new(kind, message));
        }
        Ok(())
    }

    fn poison(&self, error: Error) -> Error {
        // The first stays: others follow from it.
        let _ = self.poisoned.set(error.kind());
        self.staging.set_kept(false);
        error
    }

    fn write_error(&self, offset: u64, len: u64, errno: Errno) -> Error {
        let what = match errno {
            Errno::NOSPC | Errno::DQUOT => {
                let needed = self.announced.map_or(len, |size| size.saturating_sub(offset).max(len));
                let free = free_space(&*self.staging.directory).map_or("unknown".to_owned(), |free| free.to_string());
                let quota = if errno == Errno::DQUOT { ", but a quota stands against it" } else { "" };
                format!("write {} at offset {offset} (needed: {needed} bytes, free: {free}{quota})", self.path)
            }
            _ => format!("write {} at offset {offset}", self.path),
        };
        self.poison(Error::io(what, errno))
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Direct {
    /// Writes as much as can go past the page cache, and tells how much that was; the rest goes through it.
    fn write(&self, offset: u64, bytes: &[u8]) -> IoResult<usize> {
        let aligned = offset.is_multiple_of(self.unit as u64) && bytes.as_ptr().align_offset(self.memory_align) == 0;
        let len = bytes.len() / self.unit * self.unit;
        let mut done = 0;
        while aligned && len >= DIRECT_LEN_MIN && done < len && !self.refused.load(Ordering::Relaxed) {
            match sys::write_some(&self.file, &bytes[done..len], offset + done as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => {
                    done += count;
                    if !count.is_multiple_of(self.unit) {
                        break;
                    }
                }
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => self.refused.store(true, Ordering::Relaxed),
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }
}

/// Whether there is nothing but zeros. Ends with the first page that has something else.
fn is_zero(bytes: &[u8]) -> bool {
    is_of_zeros(bytes) || bytes.chunks(4 * KIB).all(|page| page.iter().fold(0, |all, byte| all | byte) == 0)
}

/// A file with all its content and metadata that only lacks its name: [`Store::publish`] gives it.
/// Dropping it removes it.
pub struct Staged {
    pub(super) staging: Staging,
    pub(super) path: RemotePath,
    pub(super) name: Component,
    pub(super) if_exists: IfExists,
    pub(super) xattrs_lost: Option<ErrorKind>,
}

impl Staged {
    /// Why it has not all the extended attributes that it should have: `Unsupported`, `NoSpace` or `Rights`.
    #[must_use]
    pub fn xattrs_lost(&self) -> Option<ErrorKind> {
        self.xattrs_lost
    }

    /// What it will be called.
    #[must_use]
    pub fn path(&self) -> &RemotePath {
        &self.path
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("path", &self.path).finish_non_exhaustive()
    }
}
