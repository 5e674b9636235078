//! The way out: what is stored, read through handles that are one version of one file.

use std::collections::VecDeque;
use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{OFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};

use super::change::sweep_one;
use super::publish::numbered;
use super::recorded::Recorded;
use super::sys::{self, Name, Status};
use super::upload::{DIRECT_LEN_MIN, DIRECT_SIZE_MIN, Parents, is_in_memory};
use super::walk::{Directory, is_hidden, not_found};
use super::xattrs::{self, read_xattrs};
use super::{Identity, Inner, Kind, Mtime, Store, Version};
use crate::buffer::BUFFER_ALIGN;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::hash::Root;
use crate::path::{Component, Escaped, RemotePath};
use crate::xattrs::Xattrs;

/// Numbered names that are looked at for an upload whose answer was lost with its server.
const FIND_MAX: u32 = 100;
/// Bytes of names that one call of the kernel returns: the memory that a listing of any length takes.
const LISTING_LEN: usize = 32 * 1024;

/// What is known of one name without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name's bytes, as they are on disk; empty for the root.
    pub name: Vec<u8>,
    /// What it is. A link is itself, not what it points to.
    pub kind: Kind,
    /// Bytes of content; for others than files what the system says.
    pub size: u64,
    /// When its content was last changed.
    pub mtime: Mtime,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    /// Where a symbolic link points.
    pub link_target: Option<Vec<u8>>,
    /// How many names it has.
    pub names: u64,
    /// Which version of it this is.
    pub version: Version,
    /// What its extended attributes are known by, in a listing that was asked for that ([`Listing::tell_xattrs`]). None
    /// when they could not be read, too.
    pub xattrs_digest: Option<[u8; 16]>,
}

impl Store {
    /// What stands under this name. Links are not followed.
    ///
    /// # Errors
    /// `NotFound`, also for what the store keeps for itself; `Link` or `NotDirectory` when the way there is none.
    pub fn stat(&self, path: &RemotePath) -> Result<Entry> {
        let inner = &self.inner;
        let Some((name, parent)) = path.components().split_last() else {
            let root = inner.directory_of(&[])?;
            let status = sys::status(&*root).while_doing(|| "look at the root".to_owned())?;
            return Ok(entry(Vec::new(), &status, None));
        };
        if let Some((graft, [])) = inner.grafted_part(&inner.whole(path.components())) {
            let status = sys::status(&*graft.directory).while_doing(|| format!("look at {path}"))?;
            return Ok(entry(name.as_bytes().to_vec(), &status, None));
        }
        let directory = inner.directory_of(parent)?;
        let status = inner.status_in(&directory, path)?;
        inner.entry_of(&directory, name.as_bytes().to_vec(), &status).while_doing(|| format!("read the link {path}"))
    }

    /// Opens a regular file for reading. Never waits, whatever stands there.
    ///
    /// # Errors
    /// `NotFound`; `IsDirectory`, `Link` or `Special` when it is no regular file.
    pub fn open_file(&self, path: &RemotePath) -> Result<StoredFile> {
        self.open_file_in(&mut Parents::default(), path)
    }

    /// As [`Store::open_file`], for one of many files whose directories are mostly the same.
    ///
    /// # Errors
    /// As [`Store::open_file`].
    pub fn open_file_in(&self, parents: &mut Parents, path: &RemotePath) -> Result<StoredFile> {
        let inner = &self.inner;
        let Some((name, parent)) = path.components().split_last() else {
            return Err(not_a_file(path, Kind::Directory));
        };
        let directory = parents.open(inner, parent, false)?;
        // Opening a device can already have an effect, so what it is is asked first, and again of the handle.
        let seen = inner.status_in(&directory, path)?;
        if seen.kind != Kind::File {
            return Err(not_a_file(path, seen.kind));
        }
        let file = sys::open_at(&*directory, name.as_bytes(), OFlags::RDONLY, 0).map_err(|errno| match errno {
            Errno::LOOP => not_a_file(path, Kind::Link),
            Errno::NOENT => not_found(path.components()),
            errno => Error::io(format!("open {path}"), errno),
        })?;
        let status = sys::status(&file).while_doing(|| format!("look at {path}"))?;
        if status.kind != Kind::File {
            return Err(not_a_file(path, status.kind));
        }
        let direct = inner.direct_reader(&directory, name.as_bytes(), &status);
        if direct.is_some() {
            // The kernel shall not read ahead what is read past its cache. Without the advice it merely would.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
        }
        Ok(StoredFile {
            store: Arc::clone(inner),
            file,
            direct,
            status,
            shown: path.to_string(),
            in_memory: OnceLock::new(),
        })
    }

    /// The file that this upload was stored as under [`super::IfExists::Rename`]: of the asked name, or of the first
    /// few numbered ones.
    ///
    /// # Errors
    /// What looking at names and opening files can fail with; nothing there is no error.
    pub fn find_upload(&self, path: &RemotePath, id: &[u8; 16]) -> Result<Option<(RemotePath, StoredFile)>> {
        let Some((parent, name)) = path.split() else { return Ok(None) };
        for count in 0..=FIND_MAX {
            let name = if count == 0 { name.clone() } else { numbered(name, count) };
            // A path that is too long was not given to anything.
            let Ok(path) = parent.join(name) else { return Ok(None) };
            match self.open_file(&path) {
                Ok(file) if file.recorded().is_some_and(|recorded| recorded.upload_id == *id) => {
                    return Ok(Some((path, file)));
                }
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::NotFound | ErrorKind::NotDirectory => return Ok(None),
                    // Something else has the name.
                    ErrorKind::IsDirectory | ErrorKind::Link | ErrorKind::Special => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(None)
    }

    /// The names in a directory, in the order of the file system, which is stable as long as none is added or
    /// removed. Memory does not grow with their number. With `resume_after`, from behind that place on.
    ///
    /// A name that is added or removed meanwhile may or may not appear; all others appear exactly once.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory` or `Link` when it is no directory.
    pub fn list(&self, path: &RemotePath, resume_after: Option<Cursor>) -> Result<Listing> {
        let directory = self.inner.directory(path)?;
        // A handle of its own: its place in the directory is nobody else's.
        let names = sys::open_directory_at(&*directory, b".").while_doing(|| format!("open the directory {path}"))?;
        if let Some(Cursor(place)) = resume_after {
            let place = i64::try_from(place).map_err(|_| not_found(path.components()))?;
            rustix::fs::seek(&names, SeekFrom::Start(place.unsigned_abs()))
                .while_doing(|| format!("continue the listing of {path}"))?;
        }
        Ok(Listing {
            store: Arc::clone(&self.inner),
            names,
            directory,
            memory: Vec::with_capacity(LISTING_LEN),
            waiting: VecDeque::new(),
            cursor: resume_after.unwrap_or(Cursor(0)),
            ended: false,
            tells_xattrs: false,
            shown: path.to_string(),
        })
    }

    /// Makes an existing file durable under its name, before it is called stored without having been sent.
    ///
    /// # Errors
    /// `Changed` when another file stands there by now; what a sync can fail with.
    pub fn sync_existing(&self, file: &StoredFile, path: &RemotePath) -> Result<()> {
        let inner = &self.inner;
        inner.writable()?;
        let (name, parent) = path.components().split_last().ok_or_else(|| not_a_file(path, Kind::Directory))?;
        let directory = inner.directory_of(parent)?;
        file.sync()?;
        inner.settle(&directory, parent.len()).map_err(|error| error.context(path))?;
        let now = sys::status_at(&*directory, name.as_bytes()).while_doing(|| format!("look at {path}"))?;
        if now.identity != file.status.identity {
            return Err(changed(&file.shown));
        }
        file.check_unchanged()
    }
}

impl Inner {
    /// What stands under the last component of `path` in its directory.
    pub(super) fn status_in(&self, directory: &Directory, path: &RemotePath) -> Result<Status> {
        let components = path.components();
        let name = components.last().map_or(&b"."[..], Component::as_bytes);
        if is_hidden(name) {
            return Err(not_found(components));
        }
        match sys::status_at(directory, name) {
            Ok(status) if self.is_reserved_identity(status.identity) => Err(not_found(components)),
            Ok(status) => Ok(status),
            Err(Errno::NOENT) => Err(not_found(components)),
            Err(errno) => Err(Error::io(format!("look at {path}"), errno)),
        }
    }

    fn entry_of(&self, directory: &Directory, name: Vec<u8>, status: &Status) -> rustix::io::Result<Entry> {
        let target = match status.kind {
            Kind::Link => Some(read_link(directory, &name)?),
            _ => None,
        };
        Ok(entry(name, status, target))
    }
}

/// Where the link of this name points.
pub(super) fn read_link(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<Vec<u8>> {
    retry_on_intr(|| rustix::fs::readlinkat(&directory, name, Vec::new())).map(std::ffi::CString::into_bytes)
}

fn entry(name: Vec<u8>, status: &Status, link_target: Option<Vec<u8>>) -> Entry {
    let &Status { kind, size, mtime, mode, names, .. } = status;
    Entry { name, kind, size, mtime, mode, link_target, names, version: status.version(), xattrs_digest: None }
}

fn not_a_file(path: &RemotePath, kind: Kind) -> Error {
    let code = match kind {
        Kind::Directory => ErrorKind::IsDirectory,
        Kind::Link => ErrorKind::Link,
        Kind::File | Kind::Special => ErrorKind::Special,
    };
    Error::new(code, format!("{path} is {kind}, not a file"))
}

fn changed(shown: &str) -> Error {
    Error::new(ErrorKind::Changed, format!("{shown} changed while it was being read"))
}

/// A place in a listing, to go on behind it later. It means something only for the same directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(pub u64);

/// The entries of a directory, one after the other. What the store keeps for itself is left out.
pub struct Listing {
    store: Arc<Inner>,
    names: OwnedFd,
    directory: Arc<Directory>,
    memory: Vec<u8>,
    waiting: VecDeque<Name>,
    cursor: Cursor,
    ended: bool,
    tells_xattrs: bool,
    shown: String,
}

impl Listing {
    /// Says of every file and directory what its extended attributes are known by, which opens each.
    pub fn tell_xattrs(&mut self) {
        self.tells_xattrs = true;
    }

    fn xattrs_digest(&self, entry: &Entry) -> Option<[u8; 16]> {
        let file = match entry.kind {
            Kind::File => sys::open_at(&*self.directory, &entry.name, OFlags::RDONLY, 0),
            Kind::Directory => sys::open_directory_at(&*self.directory, &entry.name),
            Kind::Link | Kind::Special => return None,
        };
        read_xattrs(file.ok()?).ok().map(|xattrs| xattrs.digest())
    }

    /// The place behind the entry that was returned last.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Which directory it is of, and when that was made.
    #[must_use]
    pub fn directory(&self) -> (Identity, i128) {
        (self.directory.identity, sys::birth(&self.names))
    }

    fn next_name(&mut self) -> rustix::io::Result<Option<Name>> {
        if self.waiting.is_empty() && !self.ended {
            self.waiting = sys::read_names(&self.names, &mut self.memory)?.into();
            self.ended = self.waiting.is_empty();
        }
        Ok(self.waiting.pop_front())
    }
}

impl Iterator for Listing {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            let name = match self.next_name() {
                Ok(name) => name?,
                Err(errno) => {
                    self.ended = true;
                    return Some(Err(Error::io(format!("list {}", self.shown), errno)));
                }
            };
            self.cursor = Cursor(name.cookie);
            if is_hidden(&name.bytes) {
                if !self.store.is_kept_beside(&name.bytes) {
                    sweep_one(&*self.directory, &name.bytes, self.store.leftover_age);
                }
                continue;
            }
            let look = || {
                let status = sys::status_at(&*self.directory, &name.bytes)?;
                let reserved = self.store.is_reserved_identity(status.identity);
                let bytes = name.bytes.clone();
                (!reserved).then(|| self.store.entry_of(&self.directory, bytes, &status)).transpose()
            };
            // Once more when it was a link at the first look and something else at the second.
            let result = match look() {
                Err(Errno::INVAL) => look(),
                result => result,
            };
            match result {
                Ok(Some(mut entry)) => {
                    if self.tells_xattrs {
                        entry.xattrs_digest = self.xattrs_digest(&entry);
                    }
                    return Some(Ok(entry));
                }
                // Reserved, or gone since its name was read.
                Ok(None) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    let what = format!("look at {} in {}", Escaped(&name.bytes), self.shown);
                    return Some(Err(Error::io(what, errno)));
                }
            }
        }
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("of", &self.shown).field("cursor", &self.cursor).finish_non_exhaustive()
    }
}

/// A regular file that is open for reading: one version, whatever becomes of its name. May be read by many threads.
pub struct StoredFile {
    store: Arc<Inner>,
    file: OwnedFd,
    direct: Option<DirectReader>,
    status: Status,
    shown: String,
    /// Whether it is on tmpfs, once somebody has asked.
    in_memory: OnceLock<bool>,
}

/// The handle that reads a large file past the page cache, where it is not in there already: filling the cache with
/// a file that is read once costs more processor time than all the rest of sending it.
struct DirectReader {
    file: OwnedFd,
    /// Offsets and lengths are multiples of this.
    unit: usize,
    memory_align: usize,
    /// Which page of a range is asked for to know whether it is in the cache.
    probe: usize,
    /// The system refused once: through the page cache for good.
    refused: AtomicBool,
}

impl Inner {
    fn direct_reader(&self, directory: &Directory, name: &[u8], status: &Status) -> Option<DirectReader> {
        if !self.options.direct || status.size < DIRECT_SIZE_MIN {
            return None;
        }
        let file = sys::open_at(directory, name, OFlags::RDONLY | OFlags::DIRECT, 0).ok()?;
        if sys::status(&file).ok()?.version() != status.version() {
            return None;
        }
        let (offset_align, memory_align) = sys::direct_alignment(&file)?;
        let unit = usize::try_from(offset_align).ok()?.max(BUFFER_ALIGN);
        let memory_align = usize::try_from(memory_align).ok()?;
        let mut probe = [0; 8];
        getrandom::fill(&mut probe).ok()?;
        let probe = usize::from_ne_bytes(probe);
        Some(DirectReader { file, unit, memory_align, probe, refused: AtomicBool::new(false) })
    }
}

impl DirectReader {
    /// Fills the buffer from the disk, past the page cache. False: the range is in the cache, or it could not be done
    /// this way; then it is read the ordinary way.
    fn read(&self, cached: &OwnedFd, offset: u64, buffer: &mut [u8]) -> bool {
        let fits = offset.is_multiple_of(self.unit as u64)
            && buffer.len().is_multiple_of(self.unit)
            && buffer.len() >= DIRECT_LEN_MIN
            && buffer.as_ptr().align_offset(self.memory_align) == 0;
        if !fits || self.refused.load(Ordering::Relaxed) {
            return false;
        }
        // One page tells whether the range is in the cache. It is another one in each opened file, because asking for
        // a page that is not there brings it in.
        let page = self.probe % (buffer.len() / BUFFER_ALIGN) * BUFFER_ALIGN;
        let mut slices = [IoSliceMut::new(&mut buffer[..BUFFER_ALIGN])];
        if rustix::io::preadv2(cached, &mut slices, offset + page as u64, ReadWriteFlags::NOWAIT).is_ok() {
            return false;
        }
        match rustix::io::pread(&self.file, &mut *buffer, offset) {
            Ok(count) => count == buffer.len(),
            Err(Errno::INTR) => false,
            Err(_) => {
                self.refused.store(true, Ordering::Relaxed);
                false
            }
        }
    }
}

impl StoredFile {
    /// The version that was opened.
    #[must_use]
    pub fn version(&self) -> Version {
        self.status.version()
    }

    /// Bytes in that version.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.status.size
    }

    /// Its modification time when it was opened.
    #[must_use]
    pub fn mtime(&self) -> Mtime {
        self.status.mtime
    }

    /// Its permission bits when it was opened.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.status.mode
    }

    /// The permission bits that it would get for these, in its store.
    #[must_use]
    pub fn mode_for(&self, asked: u32) -> u32 {
        self.store.options.file_mode.apply(asked)
    }

    /// Whether it can be given these where it is: it has them already, or no other name that would get them too.
    #[must_use]
    pub fn takes_metadata(&self, mode: Option<u32>, mtime: Option<Mtime>, wanted: Option<&Xattrs>) -> bool {
        let has_xattrs = wanted.is_none_or(|wanted| xattrs::are(self, wanted));
        let is_kept = mode.is_none_or(|mode| self.mode_for(mode) == self.status.mode)
            && mtime.is_none_or(|mtime| mtime == self.status.mtime)
            && has_xattrs;
        is_kept || self.status.names == 1 && (has_xattrs || self.lets_write())
    }

    /// Whether its mode lets this process set its extended attributes.
    fn lets_write(&self) -> bool {
        self.status.mode & 0o200 != 0 || rustix::process::geteuid().is_root()
    }

    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether reading it waits for no disk.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        *self.in_memory.get_or_init(|| is_in_memory(&self.file))
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `Changed` when the file ends before the buffer is full; `Io` when the disk cannot read it.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if let Some(direct) = &self.direct
            && direct.read(&self.file, offset, buffer)
        {
            return Ok(());
        }
        match read_full(&self.file, offset, buffer) {
            Ok(true) => Ok(()),
            Ok(false) => Err(changed(&self.shown)),
            Err(errno) => Err(Error::io(format!("read {} at offset {offset}", self.shown), errno)),
        }
    }

    /// Confirms that the file still is the version that was opened: before the first read and after the last.
    ///
    /// # Errors
    /// `Changed` when it is not.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = sys::status(&self.file).while_doing(|| format!("look at {}", self.shown))?;
        if now.version() == self.version() { Ok(()) } else { Err(changed(&self.shown)) }
    }

    /// The recorded hash of this version and the upload that brought it; none when there is no record, or it was
    /// made for another size or mtime.
    #[must_use]
    pub fn recorded(&self) -> Option<Recorded> {
        Recorded::read(&self.file, &self.status)
    }

    /// The recorded hash alone.
    #[must_use]
    pub fn recorded_root(&self) -> Option<Root> {
        self.recorded().map(|recorded| recorded.root)
    }

    /// Records the hash that its content was found to have, where another one is recorded with it: somebody changed it and
    /// set its time back. The caller then makes it durable; the version is another one afterwards.
    ///
    /// # Errors
    /// `Io` when the system refuses.
    pub fn record_anew(&mut self, found: Root) -> Result<()> {
        if self.recorded_root().is_none_or(|recorded| recorded == found) {
            return Ok(());
        }
        let what = || format!("record the hash of {}", self.shown);
        // No upload brought it.
        let recorded = Recorded { root: found, upload_id: [0; 16] };
        recorded.set(&self.file, &self.status).while_doing(what)?;
        self.status = sys::status(&self.file).while_doing(what)?;
        Ok(())
    }

    /// Makes content and metadata durable. Its name is another matter: [`Store::sync_existing`].
    ///
    /// # Errors
    /// What a sync can fail with; then the file must be stored anew.
    pub fn sync(&self) -> Result<()> {
        sys::sync(&self.file).map_err(|errno| {
            self.store.sync_failed(errno);
            Error::io(format!("sync {}", self.shown), errno)
        })
    }

    /// Gives the file the mode (within the store's range) and mtime that were asked for, where they differ, and the
    /// extended attributes of users that it shall have, and no others. Keeps what is recorded with it. The caller then
    /// makes it durable; the version may be another one afterwards. Returns why some extended attributes could not be
    /// kept: `Unsupported`, `NoSpace` or `Rights`.
    ///
    /// # Errors
    /// `Changed` when the file is not the opened version; `Unsupported` when it has further names (hard links),
    /// perhaps outside of the tree, or its mode does not let its extended attributes be set: then it is to be stored
    /// anew; `Io` when the system refuses.
    pub fn set_metadata(
        &mut self,
        mode: Option<u32>,
        mtime: Option<Mtime>,
        wanted: Option<&Xattrs>,
    ) -> Result<Option<ErrorKind>> {
        self.store.writable()?;
        // Whoever looks for changes of a tree sees them before it is replaced, or the file is gone from there.
        let _still = self.store.exchanges.hold();
        self.check_unchanged()?;
        let mode = mode.map(|mode| self.store.options.file_mode.apply(mode)).filter(|&mode| mode != self.status.mode);
        let mtime = mtime.filter(|&mtime| mtime != self.status.mtime);
        let other_xattrs = wanted.filter(|wanted| !xattrs::are(&*self, wanted));
        let is_lost = wanted.is_some_and(|wanted| !wanted.is_empty()) && !xattrs::are_kept(&*self);
        if mode.is_none() && mtime.is_none() && other_xattrs.is_none() {
            return Ok(is_lost.then_some(ErrorKind::Unsupported));
        }
        if self.status.names > 1 {
            let message = format!("{} has other names, which would get its mode and time too", self.shown);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let recorded = self.recorded();
        // Its record, which names its time, is an attribute as well.
        if (other_xattrs.is_some() || mtime.is_some() && recorded.is_some()) && !self.lets_write() {
            let message = format!("the mode of {} does not let its extended attributes be set", self.shown);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let what = || format!("set mode and time of {}", self.shown);
        let mut xattrs_lost = is_lost.then_some(ErrorKind::Unsupported);
        if let Some(wanted) = other_xattrs {
            xattrs_lost = xattrs::replace(&*self, wanted)
                .while_doing(|| format!("set the extended attributes of {}", self.shown))?;
        }
        if let Some(mtime) = mtime {
            sys::set_times(&self.file, &modified_at(mtime)).while_doing(what)?;
        }
        let status = sys::status(&self.file).while_doing(what)?;
        if let Some(recorded) = recorded.filter(|_| mtime.is_some()) {
            recorded.set(&self.file, &status).while_doing(what)?;
        }
        // Last: a file that may only be read takes no attributes, unless it is root's.
        if let Some(mode) = mode {
            sys::set_mode(&self.file, mode).while_doing(what)?;
        }
        self.status = sys::status(&self.file).while_doing(what)?;
        Ok(xattrs_lost)
    }
}

impl AsFd for StoredFile {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for StoredFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredFile").field("path", &self.shown).field("size", &self.size()).finish_non_exhaustive()
    }
}

/// Fills `buffer`; false when the file ends first.
pub(super) fn read_full(file: impl AsFd, offset: u64, buffer: &mut [u8]) -> rustix::io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match retry_on_intr(|| rustix::io::pread(&file, &mut buffer[filled..], offset + filled as u64))? {
            0 => return Ok(false),
            count => filled += count,
        }
    }
    Ok(true)
}

/// Only the modification time.
pub(super) fn modified_at(mtime: Mtime) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.secs(), tv_nsec: mtime.nanos().into() },
    }
}
