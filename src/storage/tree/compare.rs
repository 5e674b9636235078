//! What a new tree is compared with before it takes its place: the old one, as it was when it was begun.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, Result as IoResult};

use super::TreeChange;
use super::copy::all_names;
use super::record::{Carried, ManifestReader, pair_of};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::{Component, RemotePath};
use crate::storage::sys::{self, Status};
use crate::storage::walk::is_hidden;
use crate::storage::{Inner, Kind};

/// How closely the old tree is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Every entry.
    Whole,
    /// Every directory, which tells of every name that was added, removed or replaced. The tree was moved just now,
    /// which the times of its outermost directory show: of that one, every entry.
    Moved,
}

/// Refuses an old tree that is not as it was when the new one was begun.
pub(super) fn check_old(inner: &Inner, files: &OwnedFd, old: &OwnedFd, shown: &RemotePath, look: Look) -> Result<()> {
    let name = |path: &RemotePath| shown.join_all(path).unwrap_or_else(|_| path.clone());
    let changed = |path: &RemotePath| {
        let message = format!("{} was changed meanwhile, so {shown} was left as it is: run it again", name(path));
        Err(Error::new(ErrorKind::Changed, message))
    };
    let reading = || format!("read what was written down of {shown}");
    let mut manifest = ManifestReader::open(files).while_doing(reading)?;
    while let Some(block) = manifest.next().while_doing(reading)? {
        let directory = match sys::open_beneath(old, block.path.components(), inner.openat2) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return changed(&block.path),
            Err(errno) => return Err(Error::io(format!("open the directory {}", name(&block.path)), errno)),
        };
        let look_at = || format!("look at the directory {}", name(&block.path));
        let status = sys::status(&directory).while_doing(look_at)?;
        let is_moved = look == Look::Moved && block.path.is_root();
        let is_still =
            if is_moved { block.seen.is_still_where_it_was_moved(&status) } else { block.seen.is_still(&status, true) };
        if !is_still {
            return changed(&block.path);
        }
        if look == Look::Moved && !is_moved {
            continue;
        }
        let mut carried: HashMap<&[u8], &Carried> =
            block.entries.iter().map(|carried| (carried.name.as_slice(), carried)).collect();
        for entry in all_names(&directory).while_doing(look_at)?.into_iter().filter(|entry| !is_hidden(entry)) {
            let below = joined(&block.path, &entry)?;
            let Some(carried) = carried.remove(entry.as_slice()) else { return changed(&below) };
            let status = match sys::status_at(&directory, &entry) {
                Ok(status) => status,
                Err(Errno::NOENT) => return changed(&below),
                Err(errno) => return Err(Error::io(format!("look at {}", name(&below)), errno)),
            };
            let is_same = if carried.seen.is_directory() {
                // Its own turn comes.
                status.kind == Kind::Directory && pair_of(status.identity) == carried.seen.identity()
            } else {
                carried.seen.is_still(&status, !carried.is_shared())
            };
            if !is_same {
                return changed(&below);
            }
        }
        if let Some(gone) = carried.into_keys().next() {
            return changed(&joined(&block.path, gone)?);
        }
    }
    Ok(())
}

/// Tells every difference of the new tree from the old one, and removes what staging has left in it. Returns how
/// many names the new one has.
pub(super) fn tell_differences(
    inner: &Inner,
    files: &OwnedFd,
    has_old: bool,
    new: &OwnedFd,
    tell: &mut dyn FnMut(TreeChange) -> Result<()>,
) -> Result<u64> {
    let mut count = 0;
    if !has_old {
        tell_new(new, &RemotePath::root(), tell, &mut count)?;
        return Ok(count);
    }
    let reading = || "read what was written down of the old tree".to_owned();
    let mut manifest = ManifestReader::open(files).while_doing(reading)?;
    while let Some(block) = manifest.next().while_doing(reading)? {
        let what = || format!("look at the directory {} of the new tree", block.path);
        let directory = match sys::open_beneath(new, block.path.components(), inner.openat2) {
            Ok(directory) => Some(directory),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(errno) => return Err(Error::io(what(), errno)),
        };
        let Some(directory) = directory else {
            tell(TreeChange::Removed(block.path.clone()))?;
            for gone in block.entries.iter().filter(|carried| !carried.seen.is_directory()) {
                tell(TreeChange::Removed(joined(&block.path, &gone.name)?))?;
            }
            continue;
        };
        if sys::status(&directory).while_doing(what)?.mode != block.seen.mode() {
            tell(TreeChange::Replaced(block.path.clone()))?;
        }
        let mut there = entries(&directory).while_doing(what)?;
        count += there.len() as u64;
        for carried in &block.entries {
            let path = joined(&block.path, &carried.name)?;
            let was_directory = carried.seen.is_directory();
            match there.remove(&carried.name) {
                // A directory that is gone has its own turn.
                None if was_directory => {}
                None => tell(TreeChange::Removed(path))?,
                Some(now) if pair_of(now.identity) == carried.new => {}
                Some(now) if now.kind == Kind::Directory => {
                    if !was_directory {
                        tell(TreeChange::Removed(path.clone()))?;
                        tell(TreeChange::Created(path.clone()))?;
                        tell_below(&directory, &carried.name, &path, tell, &mut count)?;
                    }
                }
                Some(_) if was_directory => tell(TreeChange::Created(path))?,
                Some(_) => tell(TreeChange::Replaced(path))?,
            }
        }
        for (name, status) in there {
            let path = joined(&block.path, &name)?;
            tell(TreeChange::Created(path.clone()))?;
            if status.kind == Kind::Directory {
                tell_below(&directory, &name, &path, tell, &mut count)?;
            }
        }
    }
    Ok(count)
}

fn tell_below(
    parent: &OwnedFd,
    name: &[u8],
    path: &RemotePath,
    tell: &mut dyn FnMut(TreeChange) -> Result<()>,
    count: &mut u64,
) -> Result<()> {
    let directory = sys::open_directory_at(parent, name).while_doing(|| format!("open {path} of the new tree"))?;
    tell_new(&directory, path, tell, count)
}

/// Everything below is new. As deep as a path can be.
fn tell_new(
    directory: &OwnedFd,
    path: &RemotePath,
    tell: &mut dyn FnMut(TreeChange) -> Result<()>,
    count: &mut u64,
) -> Result<()> {
    let there = entries(directory).while_doing(|| format!("look at {path} of the new tree"))?;
    *count += there.len() as u64;
    for (name, status) in there {
        let below = joined(path, &name)?;
        tell(TreeChange::Created(below.clone()))?;
        if status.kind == Kind::Directory {
            tell_below(directory, &name, &below, tell, count)?;
        }
    }
    Ok(())
}

/// What a directory of the new tree holds; what staging has left in it goes.
fn entries(directory: &OwnedFd) -> IoResult<HashMap<Vec<u8>, Status>> {
    let mut there = HashMap::new();
    for name in all_names(directory)? {
        if is_hidden(&name) {
            sys::unlink(directory, &name)?;
            continue;
        }
        let status = sys::status_at(directory, &name)?;
        there.insert(name, status);
    }
    Ok(there)
}

/// Makes everything in a tree durable, files before the directories that name them.
pub(super) fn sync_below(directory: &OwnedFd) -> IoResult<()> {
    let mut directories = Vec::new();
    let mut files = Vec::new();
    for name in all_names(directory)? {
        match sys::status_at(directory, &name)?.kind {
            Kind::Directory => directories.push(name),
            Kind::File => files.push(name),
            // They are in their directory.
            Kind::Link | Kind::Special => {}
        }
    }
    for name in files {
        match sys::open_at(directory, &name, OFlags::RDONLY, 0) {
            Ok(file) => sys::sync(file)?,
            // It was carried over, and whoever made it lets nobody read it: a handle to write syncs as well.
            Err(Errno::ACCESS) => sys::sync(sys::open_at(directory, &name, OFlags::WRONLY, 0)?)?,
            Err(errno) => return Err(errno),
        }
    }
    for name in directories {
        sync_below(&sys::open_directory_at(directory, &name)?)?;
    }
    sys::sync(directory.as_fd())
}

fn joined(path: &RemotePath, name: &[u8]) -> Result<RemotePath> {
    let name_error = |error: crate::path::NameError| Error::new(ErrorKind::Name, error.to_string());
    path.join(Component::new(name).map_err(name_error)?).map_err(name_error)
}
