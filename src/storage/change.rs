//! Changes of the tree other than storing files: directories, links, removal, renaming. All answered durable.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::publish::{Outcome, Published};
use super::read::{modified_at, read_link};
use super::sys;
use super::upload::{Place, Staged, Staging};
use super::walk::{Directory, hidden_name, is_hidden, not_found, reserved};
use super::{Identity, IfExists, Inner, Kind, Mtime, Store, xattrs};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::limits::{KEEP_PARTIAL, LINK_TARGET_LEN_MAX};
use crate::path::{Component, Escaped, RemotePath};
use crate::xattrs::Xattrs;

/// How deep a tree may be that is removed. Deeper ones, which no peer can make, are left to a person.
const REMOVE_DEPTH_MAX: usize = 4096;
/// Bytes of names that are read at a time when removing.
const REMOVE_NAMES_LEN: usize = 32 * 1024;
/// How long a hidden staging file is left alone though nobody holds its lock.
pub(super) const LEFTOVER_AGE: Duration = Duration::from_secs(3600);
/// How often a removal may read names without removing anything before it gives up.
const REMOVE_IDLE_MAX: u32 = 64;

impl Store {
    /// Makes a directory. One that is there is success; tells whether it was made. With `parents`, those missing
    /// above it are made too. Its owner can always fill it, whatever `mode` says.
    ///
    /// # Errors
    /// `NotDirectory`, `Link`: something else has its name. `NotFound`: a directory above is missing. `Name`.
    pub fn make_directory(&self, path: &RemotePath, mode: Option<u32>, parents: bool) -> Result<bool> {
        let inner = &self.inner;
        inner.writable()?;
        let components = path.components();
        let Some((name, parent)) = components.split_last() else { return Ok(false) };
        if inner.grafted_part(&inner.whole(components)).is_some_and(|(_, below)| below.is_empty()) {
            return Ok(false);
        }
        let exchanges = inner.exchanges.hold();
        let parent_directory = if parents { inner.directory_made(parent)?.0 } else { inner.directory_of(parent)? };
        let (directory, made) = inner.directory_made_in(&parent_directory, name, components, mode)?;
        // None takes the place of what is above it until it can be seen there.
        inner.check_looked(&parent_directory, parent, &exchanges).map_err(|error| error.context(path))?;
        drop(exchanges);
        if made {
            directory.sync().while_doing(|| format!("sync the directory {path}"))?;
        }
        // Also when it was there: someone else may have made it, and not synced it.
        inner
            .sync_ancestors(&directory, components.len())
            .while_doing(|| format!("make the directory {path} durable"))?;
        Ok(made)
    }

    /// Gives a directory the mode (within the store's range) and mtime that were asked for, durably.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `Link`; `Io` when the system refuses.
    pub fn set_directory_metadata(&self, path: &RemotePath, mode: Option<u32>, mtime: Option<Mtime>) -> Result<()> {
        self.set_directory(path, mode, mtime, None).map(drop)
    }

    /// The same with the extended attributes of users that it shall have, and no others. Returns why some of these could
    /// not be kept: `Unsupported`, `NoSpace` or `Rights`.
    ///
    /// # Errors
    /// As [`Store::set_directory_metadata`].
    pub fn set_directory(
        &self,
        path: &RemotePath,
        mode: Option<u32>,
        mtime: Option<Mtime>,
        wanted: Option<&Xattrs>,
    ) -> Result<Option<ErrorKind>> {
        let inner = &self.inner;
        inner.writable()?;
        let exchanges = inner.exchanges.hold();
        let directory = inner.directory(path)?;
        inner.check_looked(&directory, path.components(), &exchanges).map_err(|error| error.context(path))?;
        // Before the mode, which may forbid it.
        let xattrs_lost = wanted
            .map_or(Ok(None), |wanted| xattrs::replace(&*directory, wanted))
            .while_doing(|| format!("set the extended attributes of the directory {path}"))?;
        if mode.is_some() {
            inner.set_mode(&directory, mode, 0, path.components())?;
        }
        if let Some(mtime) = mtime {
            sys::set_times(&*directory, &modified_at(mtime))
                .while_doing(|| format!("set the time of the directory {path}"))?;
        }
        drop(exchanges);
        inner.settle(&directory, path.components().len()).map_err(|error| error.context(path))?;
        Ok(xattrs_lost)
    }

    /// Stores a symbolic link as data: it is never followed here, and may only point to a place in this tree.
    ///
    /// # Errors
    /// `Link` when the target is absolute, leaves the tree, or has `..` after a name; otherwise as storing a file.
    pub fn make_link(
        &self,
        path: &RemotePath,
        target: &[u8],
        mtime: Option<Mtime>,
        if_exists: IfExists,
    ) -> Result<Published> {
        let inner = &self.inner;
        inner.writable()?;
        let Some((name, parent)) = path.components().split_last() else {
            return Err(Error::new(ErrorKind::IsDirectory, "the root is a directory, not a link"));
        };
        inner.refuse_grafted(path.components())?;
        check_link_target(path, target)?;
        if is_hidden(name.as_bytes()) {
            return Err(reserved(path.components()));
        }
        let (directory, _) = inner.directory_made(parent)?;
        if if_exists != IfExists::Skip {
            inner.check_target(&directory, path, if_exists)?;
        }
        let what = || format!("make the link {path}");
        let staged = hidden_name().while_doing(what)?;
        retry_on_intr(|| rustix::fs::symlinkat(target, &*directory, staged.as_str())).while_doing(what)?;
        let place = Place::Beside(staged.clone());
        let staging = Staging::new(Arc::clone(inner), Arc::clone(&directory), place, None);
        if let Some(mtime) = mtime {
            let times = modified_at(mtime);
            let set = || rustix::fs::utimensat(&*directory, staged.as_str(), &times, AtFlags::SYMLINK_NOFOLLOW);
            retry_on_intr(set).while_doing(what)?;
        }
        let staged = Staged { staging, path: path.clone(), name: name.clone(), if_exists, xattrs_lost: None };
        self.publish(vec![staged]).pop().expect("one answer for one link")
    }

    /// Makes the name of a link durable that is there already, before it is called stored.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory` or `Link` when there is no way to it; what a sync can fail with.
    pub fn sync_link(&self, path: &RemotePath) -> Result<()> {
        let inner = &self.inner;
        inner.writable()?;
        let Some((_, parent)) = path.components().split_last() else { return Ok(()) };
        let directory = inner.directory_of(parent)?;
        inner.settle(&directory, parent.len()).map_err(|error| error.context(path))
    }

    /// Removes a file, link or directory, and tells how many names went. Links are removed, never followed.
    ///
    /// # Errors
    /// `NotFound`, after a sync of the directory: whoever removed it may not have come to that; `NotEmpty` for a directory with something in it unless `recursive`; `Rights` for the root.
    pub fn remove(&self, path: &RemotePath, recursive: bool) -> Result<u64> {
        let inner = &self.inner;
        inner.writable()?;
        let Some((name, parent)) = path.components().split_last() else {
            return Err(Error::new(ErrorKind::Rights, "the root can't be removed"));
        };
        inner.refuse_grafted(path.components())?;
        let directory = inner.directory_of(parent)?;
        let what = || format!("remove {path}");
        let status = match inner.status_in(&directory, path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                inner.settle(&directory, parent.len()).map_err(|error| error.context(what()))?;
                return Err(error);
            }
            status => status?,
        };
        let count = if status.kind == Kind::Directory {
            let _change = inner.durable.change();
            if recursive {
                inner.remove_tree(&directory, name, path)?
            } else {
                inner.remove_empty(&directory, name, path)?
            }
        } else {
            sys::unlink(&*directory, name.as_bytes()).while_doing(what)?;
            1
        };
        {
            // Removed from a tree that was replaced meanwhile, it is still there under its name.
            let exchanges = inner.exchanges.hold();
            inner.check_looked(&directory, parent, &exchanges).map_err(|error| error.context(what()))?;
        }
        inner.settle(&directory, parent.len()).map_err(|error| error.context(what()))?;
        Ok(count)
    }

    /// Gives something another name; missing directories above the new one are made. A directory is never
    /// replaced, and never moved into itself. Under `Skip` and with the new name taken, nothing happens.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `IsDirectory`, `Special`; `Name` for a place inside itself; `Unsupported` when the
    /// new place is on another file system; `Link` for a link that would point out of the tree from there.
    pub fn rename(&self, from: &RemotePath, to: &RemotePath, if_exists: IfExists) -> Result<Published> {
        let inner = &self.inner;
        inner.writable()?;
        let (Some((from_name, from_parent)), Some((to_name, to_parent))) =
            (from.components().split_last(), to.components().split_last())
        else {
            return Err(Error::new(ErrorKind::Rights, "the root can be neither moved nor replaced"));
        };
        if to != from && to.starts_with(from) {
            return Err(Error::new(ErrorKind::Name, format!("move {from} to {to}: a directory can't be in itself")));
        }
        if is_hidden(to_name.as_bytes()) {
            return Err(reserved(to.components()));
        }
        inner.refuse_grafted(from.components())?;
        inner.refuse_grafted(to.components())?;
        let exchanges = inner.exchanges.hold();
        let source = inner.directory_of(from_parent)?;
        let status = inner.status_in(&source, from)?;
        if status.kind == Kind::Link {
            let target = read_link(&*source, from_name.as_bytes()).while_doing(|| format!("read the link {from}"))?;
            check_link_target(to, &target)?;
        }
        if to == from {
            return Ok(Published { path: to.clone(), outcome: Outcome::Skipped, replaced_size: 0 });
        }
        let (target, _) = inner.directory_made(to_parent)?;
        let change = (status.kind == Kind::Directory).then(|| inner.durable.change());
        inner.sync_source(&source, from_name, status.kind, from)?;
        let there = sys::status_at(&*target, to_name.as_bytes()).ok();
        if there.is_some_and(|there| inner.is_reserved_identity(there.identity)) {
            return Err(reserved(to.components()));
        }
        let mut mover = Mover { inner, source: &source, from_name, from, target: &target, to };
        for (directory, parent) in [(&source, from_parent), (&target, to_parent)] {
            inner.check_looked(directory, parent, &exchanges).map_err(|error| error.context(from))?;
        }
        let published = mover.run(if_exists)?;
        drop(exchanges);
        if if_exists == IfExists::Overwrite && there.is_some_and(|there| there.identity == status.identity) {
            // Two names of one file: the system leaves both then.
            match sys::unlink(&*source, from_name.as_bytes()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::io(format!("remove {from}"), errno)),
            }
        }
        drop(change);
        let what = || format!("move {from} to {to}");
        inner.settle(&target, to_parent.len()).map_err(|error| error.context(what()))?;
        inner.settle(&source, from_parent.len()).map_err(|error| error.context(what()))?;
        Ok(published)
    }
}

/// One rename, tried under the names that its policy allows.
struct Mover<'a> {
    inner: &'a Inner,
    source: &'a Directory,
    from_name: &'a Component,
    from: &'a RemotePath,
    target: &'a Directory,
    to: &'a RemotePath,
}

impl Mover<'_> {
    fn run(&mut self, if_exists: IfExists) -> Result<Published> {
        let name = self.to.name().expect("the root was refused");
        match if_exists {
            IfExists::Overwrite => {
                let there = self.inner.check_target(self.target, self.to, if_exists)?;
                sys::rename_over(self.source, self.from_name.as_bytes(), self.target, name.as_bytes())
                    .map_err(|errno| self.error(errno))?;
                let outcome = if there.is_some() { Outcome::Replaced } else { Outcome::Created };
                Ok(Published { path: self.to.clone(), outcome, replaced_size: there.unwrap_or(0) })
            }
            IfExists::Fail | IfExists::Skip => match self.attempt(name) {
                Ok(()) => Ok(Published { path: self.to.clone(), outcome: Outcome::Created, replaced_size: 0 }),
                Err(Errno::EXIST) if if_exists == IfExists::Skip => {
                    self.inner.status_in(self.target, self.to)?;
                    Ok(Published { path: self.to.clone(), outcome: Outcome::Skipped, replaced_size: 0 })
                }
                Err(errno) => Err(self.error(errno)),
            },
            IfExists::Rename => self.run_numbered(name),
        }
    }

    fn run_numbered(&mut self, name: &Component) -> Result<Published> {
        let parent = self.to.split().map(|(parent, _)| parent).unwrap_or_default();
        for count in 0..=super::publish::RENAMES_MAX {
            let name = if count == 0 { name.clone() } else { super::publish::numbered(name, count) };
            match self.attempt(&name) {
                Ok(()) => {
                    let path = parent.join(name.clone()).map_err(|error| {
                        Error::new(ErrorKind::Name, format!("move {} to {}: {error}", self.from, self.to))
                    })?;
                    let outcome = if count == 0 { Outcome::Created } else { Outcome::Renamed };
                    return Ok(Published { path, outcome, replaced_size: 0 });
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.error(errno)),
            }
        }
        Err(self.error(Errno::EXIST))
    }

    fn attempt(&self, name: &Component) -> rustix::io::Result<()> {
        sys::rename_new(self.source, self.from_name.as_bytes(), self.target, name.as_bytes())
    }

    fn error(&self, errno: Errno) -> Error {
        let (from, to) = (self.from, self.to);
        match errno {
            Errno::EXIST | Errno::NOTEMPTY => Error::new(ErrorKind::Exists, format!("move {from} to {to}: it exists")),
            Errno::XDEV => {
                let message = format!("move {from} to {to}: they are on different file systems; copy it instead");
                Error::new(ErrorKind::Unsupported, message)
            }
            Errno::INVAL => Error::new(ErrorKind::Name, format!("move {from} to {to}: a directory can't be in itself")),
            Errno::NOENT => not_found(from.components()),
            errno => Error::io(format!("move {from} to {to}"), errno),
        }
    }
}

impl Inner {
    /// What is moved is answered as durable, so a file that someone else put there is synced first.
    fn sync_source(&self, directory: &Directory, name: &Component, kind: Kind, path: &RemotePath) -> Result<()> {
        if kind != Kind::File {
            return Ok(());
        }
        match sys::open_at(directory, name.as_bytes(), OFlags::RDONLY, 0) {
            Ok(file) => sys::sync(&file).map_err(|errno| {
                self.sync_failed(errno);
                Error::io(format!("sync {path}"), errno)
            }),
            // It may be moved though it may not be read; or it went away, and the rename will tell.
            Err(Errno::ACCESS | Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(()),
            Err(errno) => Err(Error::io(format!("open {path}"), errno)),
        }
    }

    fn remove_empty(&self, parent: &Directory, name: &Component, path: &RemotePath) -> Result<u64> {
        let mut swept = false;
        loop {
            match sys::remove_directory(parent, name.as_bytes()) {
                Ok(()) => return Ok(1),
                Err(Errno::NOTEMPTY | Errno::EXIST) if !swept => {
                    // To its users it is empty when only staging files of a dead process lie there.
                    swept = true;
                    if let Ok(directory) = sys::open_directory_at(parent, name.as_bytes()) {
                        sweep(&directory, self.leftover_age).while_doing(|| format!("remove {path}"))?;
                    }
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    return Err(Error::new(ErrorKind::NotEmpty, format!("remove {path}: the directory is not empty")));
                }
                Err(errno) => return Err(Error::io(format!("remove {path}"), errno)),
            }
        }
    }

    /// Removes a directory with all below it. Two handles suffice for any depth; the way up is checked.
    fn remove_tree(&self, parent: &Directory, name: &Component, path: &RemotePath) -> Result<u64> {
        remove_below(parent, name.as_bytes(), |identity| self.is_reserved_identity(identity)).map_err(|failure| {
            match failure {
                RemoveFailure::System(errno) => Error::io(format!("remove {path}"), errno),
                RemoveFailure::Moved => {
                    let message = format!("remove {path}: it was moved about while it was being removed");
                    Error::new(ErrorKind::Changed, message)
                }
                RemoveFailure::Reserved => {
                    Error::new(ErrorKind::Name, format!("remove {path}: part of it is reserved"))
                }
                RemoveFailure::TooDeep => {
                    Error::new(ErrorKind::Limit, format!("remove {path}: deeper than {REMOVE_DEPTH_MAX} directories"))
                }
            }
        })
    }
}

pub(super) enum RemoveFailure {
    System(Errno),
    Moved,
    Reserved,
    TooDeep,
}

impl From<Errno> for RemoveFailure {
    fn from(errno: Errno) -> RemoveFailure {
        RemoveFailure::System(errno)
    }
}

/// A directory on the way down to the one that is being emptied.
struct Level {
    name: Vec<u8>,
    identity: Identity,
    /// Directories in it that were seen and are still to be removed.
    waiting: Vec<Vec<u8>>,
}

/// Removes the directory `name` in `parent` with all below it, and tells how many names went.
pub(super) fn remove_below(
    parent: impl AsFd,
    name: &[u8],
    is_reserved: impl Fn(Identity) -> bool,
) -> Result<u64, RemoveFailure> {
    let mut memory = Vec::with_capacity(REMOVE_NAMES_LEN);
    let mut count = 0;
    let mut current = sys::open_directory_at(&parent, name)?;
    let level = |name: &[u8], directory: &OwnedFd| -> Result<Level, RemoveFailure> {
        let identity = sys::status(directory)?.identity;
        if is_reserved(identity) {
            return Err(RemoveFailure::Reserved);
        }
        Ok(Level { name: name.to_vec(), identity, waiting: Vec::new() })
    };
    let mut levels = vec![level(name, &current)?];
    let (mut idle, mut count_before) = (0, 0);
    loop {
        // Names that are there for reading and gone for removing (a strange file system, a quick rival).
        idle = if count == count_before { idle + 1 } else { 0 };
        count_before = count;
        if idle > REMOVE_IDLE_MAX + 2 * u32::try_from(levels.len()).unwrap_or(u32::MAX / 4) {
            return Err(RemoveFailure::Moved);
        }
        let depth = levels.len();
        let top = levels.last_mut().expect("the outermost level ends the loop");
        if top.waiting.is_empty() {
            count += remove_files(&current, &mut memory, &mut top.waiting)?;
        }
        if let Some(next) = top.waiting.pop() {
            match sys::open_directory_at(&current, &next) {
                Ok(directory) => {
                    if depth >= REMOVE_DEPTH_MAX {
                        return Err(RemoveFailure::TooDeep);
                    }
                    levels.push(level(&next, &directory)?);
                    current = directory;
                }
                // It became something else, or went: seen again when the names are read once more.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno.into()),
            }
            continue;
        }
        let done = levels.pop().expect("the outermost level ends the loop");
        let Some(above) = levels.last() else {
            drop(current);
            match sys::remove_directory(&parent, &done.name) {
                Ok(()) => return Ok(count + 1),
                Err(errno) => return Err(errno.into()),
            }
        };
        let up = sys::open_directory_at(&current, b"..")?;
        if sys::status(&up)?.identity != above.identity {
            return Err(RemoveFailure::Moved);
        }
        match sys::remove_directory(&up, &done.name) {
            Ok(()) => count += 1,
            // Something was added, or the name is another's by now: the level above reads its names anew.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
        current = up;
    }
}

/// Removes what is no directory, until nothing is left or directories were seen, which it puts into `waiting`.
fn remove_files(directory: &OwnedFd, memory: &mut Vec<u8>, waiting: &mut Vec<Vec<u8>>) -> rustix::io::Result<u64> {
    // From the beginning: what was seen earlier is gone.
    let directory = sys::open_directory_at(directory, b".")?;
    let mut count = 0;
    loop {
        let names = sys::read_names(&directory, memory)?;
        if names.is_empty() {
            return Ok(count);
        }
        for name in names {
            match sys::unlink(&directory, &name.bytes) {
                Ok(()) => count += 1,
                Err(Errno::ISDIR | Errno::PERM) if is_directory(&directory, &name.bytes) => waiting.push(name.bytes),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        if !waiting.is_empty() {
            return Ok(count);
        }
    }
}

fn is_directory(directory: &OwnedFd, name: &[u8]) -> bool {
    sys::status_at(directory, name).is_ok_and(|status| status.kind == Kind::Directory)
}

/// Removes hidden staging files that a dead process left in this directory.
pub(super) fn sweep(directory: &OwnedFd, age: Duration) -> rustix::io::Result<()> {
    let mut memory = Vec::with_capacity(REMOVE_NAMES_LEN);
    loop {
        let names = sys::read_names(directory, &mut memory)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names.into_iter().filter(|name| is_hidden(&name.bytes)) {
            sweep_one(directory, &name.bytes, age);
        }
    }
}

/// Removes a hidden staging file if whoever made it is dead: nobody holds its lock, and it is at least this old.
pub(super) fn sweep_one(directory: impl AsFd, name: &[u8], age: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let Ok(status) = sys::status_at(&directory, name) else { return };
    let changed = Duration::from_secs(status.ctime.secs().try_into().unwrap_or(0));
    let is_directory = status.kind == Kind::Directory;
    // A tree that is being built is kept as long as an unfinished upload.
    if now.saturating_sub(changed) < if is_directory { age.max(KEEP_PARTIAL) } else { age } {
        return;
    }
    if is_directory {
        let is_held = sys::open_directory_at(&directory, name)
            .is_ok_and(|tree| rustix::fs::flock(&tree, FlockOperation::NonBlockingLockExclusive).is_err());
        if !is_held {
            // Deliberate loss: as below.
            let _ = remove_below(directory, name, |_| false);
        }
        return;
    }
    let is_held = status.kind == Kind::File
        && sys::open_at(&directory, name, OFlags::RDONLY, 0)
            .is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err());
    if !is_held {
        // Deliberate loss: it stays hidden, and the next who comes by tries again.
        let _ = sys::unlink(directory, name);
    }
}

/// Refuses a link target that is absolute or leads out of the tree. `..` may only stand at its beginning: after a
/// name it would climb from wherever that name leads, which may be another link.
pub(super) fn check_link_target(path: &RemotePath, target: &[u8]) -> Result<()> {
    let refuse = |why: &str| {
        let message = format!("the link {path} points to {}: {why}", Escaped(target));
        Err(Error::new(ErrorKind::Link, message))
    };
    if target.is_empty() || target.len() > LINK_TARGET_LEN_MAX || target.contains(&0) {
        return refuse("that is no target");
    }
    if target[0] == b'/' {
        return refuse("only relative links are stored");
    }
    let mut above = path.components().len().saturating_sub(1);
    let mut named = false;
    for part in target.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if named => return refuse("`..` after a name may lead out of the tree"),
            b".." if above == 0 => return refuse("that is outside of the tree"),
            b".." => above -= 1,
            _ => named = true,
        }
    }
    Ok(())
}

/// Sets the mode of a directory that only its owner may enter.
pub(super) fn make_private(directory: impl AsFd) -> rustix::io::Result<()> {
    sys::set_mode(directory, Mode::RWXU.as_raw_mode())
}
