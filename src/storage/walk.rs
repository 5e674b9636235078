//! How a name becomes a handle: the kernel resolves below the root, follows no link, and every directory that is
//! reached is compared with the reserved ones.
//!
//! Handles of directories in use are shared, so a thousand uploads into one directory hold one handle.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustix::fs::Mode;
use rustix::io::Errno;

use super::sys::{self, Status};
use super::{HIDDEN_PREFIX, Identity, Inner, Kind, lock};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::path::{Component, RemotePath};

/// How often a name is resolved again when what stands there keeps changing meanwhile.
const TRIES: usize = 16;

/// An open directory. While anyone holds it, everyone who opens the same directory gets the same one.
pub(super) struct Directory {
    fd: OwnedFd,
    pub(super) identity: Identity,
    /// How many trees had taken the place of others when it was last known to have its name (`tree`).
    pub(super) looked: AtomicU64,
    /// How many syncs were asked for.
    asked: AtomicU64,
    /// Held during a sync, so that nobody takes a success after another's failure for their own: the kernel
    /// tells a failure once.
    synced: Mutex<Synced>,
}

#[derive(Default)]
struct Synced {
    /// Every request up to this one is done.
    covered: u64,
    failed: bool,
}

impl Directory {
    pub(super) fn new(fd: OwnedFd) -> rustix::io::Result<Directory> {
        let identity = sys::status(&fd)?.identity;
        let looked = AtomicU64::new(u64::MAX);
        Ok(Directory { fd, identity, looked, asked: AtomicU64::new(0), synced: Mutex::default() })
    }

    /// Makes the names in this directory durable. Requests that come while a sync runs share the next one.
    pub(super) fn sync(&self) -> rustix::io::Result<()> {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut synced = lock(&self.synced);
        if !synced.failed && synced.covered < ticket {
            // Whoever asked before this line made their changes before it, so this sync holds for them too.
            let covered = self.asked.load(Ordering::SeqCst);
            match sys::sync(&self.fd) {
                Ok(()) => synced.covered = covered,
                Err(errno) => {
                    synced.failed = true;
                    return Err(errno);
                }
            }
        }
        if synced.failed { Err(Errno::IO) } else { Ok(()) }
    }

    /// A failed sync is told to everybody until the disk has shown that it works again.
    fn forget_failure(&self) {
        lock(&self.synced).failed = false;
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directories that are open now.
#[derive(Default)]
pub(super) struct Shared {
    open: Mutex<HashMap<Identity, Weak<Directory>>>,
}

impl Shared {
    /// The disk works again: directories may be synced that could not be.
    pub(super) fn forget_failures(&self) {
        let open: Vec<Arc<Directory>> = lock(&self.open).values().filter_map(Weak::upgrade).collect();
        open.iter().for_each(|directory| directory.forget_failure());
    }

    pub(super) fn share(&self, directory: Directory) -> Arc<Directory> {
        let mut open = lock(&self.open);
        if let Some(known) = open.get(&directory.identity).and_then(Weak::upgrade) {
            return known;
        }
        // Entries of closed directories go when they are as many as the open ones may be.
        if open.len() >= 1024 && open.len().is_power_of_two() {
            open.retain(|_, known| known.strong_count() > 0);
        }
        let directory = Arc::new(directory);
        open.insert(directory.identity, Arc::downgrade(&directory));
        directory
    }
}

/// Whether this is a name of a staging file beside its target.
pub(super) fn is_hidden(name: &[u8]) -> bool {
    name.strip_prefix(HIDDEN_PREFIX)
        .is_some_and(|rest| rest.len() == 32 && rest.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// A new name for a staging file, which tells nothing about its target.
pub(super) fn hidden_name() -> rustix::io::Result<String> {
    let prefix = std::str::from_utf8(HIDDEN_PREFIX).expect("the prefix is text");
    Ok(format!("{prefix}{}", sys::random_digits()?))
}

/// A path of these components, for messages.
fn shown(components: &[Component]) -> String {
    let parts: Vec<String> = components.iter().map(Component::to_string).collect();
    if parts.is_empty() { "/".to_owned() } else { parts.join("/") }
}

impl Inner {
    pub(super) fn is_reserved_identity(&self, identity: Identity) -> bool {
        self.reserved.contains(&identity)
    }

    /// Where the directories of a whole path are looked up, and which part of it is to be.
    fn base<'a>(&'a self, whole: &'a [Component]) -> (&'a Arc<Directory>, &'a [Component]) {
        match self.grafted_part(whole) {
            Some((graft, below)) => (&graft.directory, below),
            None => (&self.root, whole),
        }
    }

    /// A path from the tree's root.
    pub(super) fn whole<'a>(&self, components: &'a [Component]) -> Cow<'a, [Component]> {
        if self.home.is_empty() { Cow::Borrowed(components) } else { [&*self.home, components].concat().into() }
    }

    pub(super) fn is_reserved(&self, path: &RemotePath) -> bool {
        if path.components().iter().any(|component| is_hidden(component.as_bytes())) {
            return true;
        }
        let whole = self.whole(path.components());
        (1..=whole.len()).any(|end| {
            let (parent, name) = (&whole[..end - 1], &whole[end - 1]);
            match sys::open_beneath(self.root_fd(), parent, self.openat2) {
                Ok(directory) => sys::status_at(&directory, name.as_bytes())
                    .is_ok_and(|status| self.is_reserved_identity(status.identity)),
                Err(_) => false,
            }
        })
    }

    /// Opens a directory for reading names from it and working in it.
    pub(super) fn directory(&self, path: &RemotePath) -> Result<Arc<Directory>> {
        self.directory_of(path.components())
    }

    pub(super) fn directory_of(&self, components: &[Component]) -> Result<Arc<Directory>> {
        let whole = self.whole(components);
        if whole.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        let (base, below) = self.base(&whole);
        if below.is_empty() {
            return Ok(Arc::clone(base));
        }
        if components.iter().any(|component| is_hidden(component.as_bytes())) {
            return Err(not_found(components));
        }
        let mut last = Errno::AGAIN;
        for _ in 0..TRIES {
            let exchanges = self.exchanges.count();
            match sys::open_beneath(base, below, self.openat2) {
                Ok(fd) => return self.adopt(fd, components, exchanges),
                Err(errno @ (Errno::LOOP | Errno::NOTDIR | Errno::NOENT | Errno::XDEV | Errno::AGAIN)) => {
                    if let Some(error) = self.explain(components) {
                        return Err(error);
                    }
                    last = errno;
                }
                Err(errno) => return Err(Error::io(format!("open the directory {}", shown(components)), errno)),
            }
        }
        let message = format!("the directory {} keeps changing while it is opened", shown(components));
        Err(Error::io(message, last).with_kind(ErrorKind::Changed))
    }

    /// Takes an opened directory as this store's, unless it is a reserved one.
    fn adopt(&self, fd: OwnedFd, components: &[Component], looked: u64) -> Result<Arc<Directory>> {
        let directory = Directory::new(fd).while_doing(|| format!("look at the directory {}", shown(components)))?;
        if self.is_reserved_identity(directory.identity) {
            return Err(not_found(components));
        }
        directory.looked.store(looked, Ordering::SeqCst);
        Ok(self.directories.share(directory))
    }

    /// Why a directory cannot be opened, in words that name the component; none if it can be by now.
    fn explain(&self, components: &[Component]) -> Option<Error> {
        let mut current: Option<OwnedFd> = None;
        let whole = self.whole(components);
        let (base, below) = self.base(&whole);
        let skipped = whole.len() - below.len();
        for (index, component) in below.iter().enumerate() {
            let from = current.as_ref().map_or(base.as_fd(), AsFd::as_fd);
            let so_far = &components[..(skipped + index + 1).saturating_sub(self.home.len())];
            match sys::status_at(from, component.as_bytes()) {
                Ok(status) if self.is_reserved_identity(status.identity) => return Some(not_found(components)),
                Ok(status) if status.kind == Kind::Link => {
                    let message = format!("{} is a symbolic link, and links are not followed", shown(so_far));
                    return Some(Error::new(ErrorKind::Link, message));
                }
                Ok(status) if status.kind != Kind::Directory => {
                    let message = format!("{} is {}, not a directory", shown(so_far), status.kind);
                    return Some(Error::new(ErrorKind::NotDirectory, message));
                }
                Ok(_) => {}
                Err(Errno::NOENT) => return Some(not_found(so_far)),
                Err(errno) => return Some(Error::io(format!("look at {}", shown(so_far)), errno)),
            }
            match sys::open_beneath(from, std::slice::from_ref(component), self.openat2) {
                Ok(next) => current = Some(next),
                // Changed since the look just now: worth another try of the whole.
                Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return None,
                Err(errno) => return Some(Error::io(format!("open the directory {}", shown(so_far)), errno)),
            }
        }
        None
    }

    /// Opens a directory, making it and those above it if they are missing. Tells whether the last was made.
    pub(super) fn directory_made(&self, components: &[Component]) -> Result<(Arc<Directory>, bool)> {
        match self.directory_of(components) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            found => return found.map(|directory| (directory, false)),
        }
        let whole = self.whole(components);
        let (base, below) = self.base(&whole);
        let skipped = whole.len() - below.len();
        let (mut current, mut made) = (Arc::clone(base), false);
        for (index, name) in below.iter().enumerate() {
            let so_far = &components[..(skipped + index + 1).saturating_sub(self.home.len())];
            (current, made) = self.directory_made_in(&current, name, so_far, None)?;
        }
        Ok((current, made))
    }

    /// Opens the directory `name` in `parent`, making it if it is missing.
    pub(super) fn directory_made_in(
        &self,
        parent: &Directory,
        name: &Component,
        so_far: &[Component],
        mode: Option<u32>,
    ) -> Result<(Arc<Directory>, bool)> {
        self.writable()?;
        if is_hidden(name.as_bytes()) {
            return Err(reserved(so_far));
        }
        let range = self.options.directory_mode;
        let mut made = false;
        let mut last = Errno::AGAIN;
        for _ in 0..TRIES {
            match sys::open_directory_at(parent, name.as_bytes()) {
                Ok(fd) => {
                    // What is above it may have been replaced meanwhile: whoever publishes in it looks.
                    let directory = self.adopt(fd, so_far, u64::MAX).map_err(|error| match error.kind() {
                        ErrorKind::NotFound => reserved(so_far),
                        _ => error,
                    })?;
                    if made {
                        // Its number may have been that of another directory, which someone else removed.
                        self.durable.forget(directory.identity);
                        // Its owner must be able to fill it; its final mode comes after that.
                        self.set_mode(&directory, mode, 0o700, so_far)?;
                    }
                    return Ok((directory, made));
                }
                Err(errno @ Errno::NOENT) => {
                    last = errno;
                    // The process's umask and the parent's default rights take part, as for any new directory.
                    let new = Mode::from_raw_mode((range.apply(mode.unwrap_or(0o777)) | 0o700) & 0o777);
                    match sys::make_directory(parent, name.as_bytes(), new) {
                        Ok(()) => made = true,
                        Err(Errno::EXIST) => {}
                        Err(Errno::NOENT) => {
                            let message = format!("make the directory {}: what is above it went away", shown(so_far));
                            return Err(Error::new(ErrorKind::NotFound, message));
                        }
                        Err(errno) => {
                            return Err(Error::io(format!("make the directory {}", shown(so_far)), errno));
                        }
                    }
                }
                Err(errno @ (Errno::LOOP | Errno::NOTDIR)) => {
                    last = errno;
                    if let Ok(Status { kind: kind @ (Kind::Link | Kind::File | Kind::Special), .. }) =
                        sys::status_at(parent, name.as_bytes())
                    {
                        let (code, rest) = if kind == Kind::Link {
                            (ErrorKind::Link, ", and links are not followed")
                        } else {
                            (ErrorKind::NotDirectory, ", not a directory")
                        };
                        return Err(Error::new(code, format!("{} is {kind}{rest}", shown(so_far))));
                    }
                }
                Err(errno) => return Err(Error::io(format!("open the directory {}", shown(so_far)), errno)),
            }
        }
        let message = format!("the directory {} keeps changing while it is made", shown(so_far));
        Err(Error::io(message, last).with_kind(ErrorKind::Changed))
    }

    /// Sets the permission bits of a directory: those asked for, or those it has, within the options' range, and
    /// those of `at_least`.
    pub(super) fn set_mode(
        &self,
        directory: &Directory,
        mode: Option<u32>,
        at_least: u32,
        components: &[Component],
    ) -> Result<()> {
        let what = || format!("set the mode of the directory {}", shown(components));
        let current = sys::status(directory).while_doing(what)?.mode;
        // What it inherited from the directory above (setgid) stays.
        let new = self.options.directory_mode.apply(mode.unwrap_or(current)) | (current & 0o2000) | at_least;
        if new != current {
            sys::set_mode(directory, new).while_doing(what)?;
        }
        Ok(())
    }

    /// Makes the directory's own name durable, and those of all above it; names in it are synced by the caller.
    pub(super) fn sync_ancestors(&self, directory: &Arc<Directory>, depth: usize) -> rustix::io::Result<()> {
        let depth = depth + self.home.len();
        let since = self.durable.generation();
        let mut current = Arc::clone(directory);
        let mut seen = Vec::new();
        // The real parents are asked for, not the names once more: these are what must survive.
        for _ in 0..=depth {
            let is_base = current.identity == self.root.identity
                || self.graft.as_ref().is_some_and(|graft| graft.directory.identity == current.identity);
            if is_base || self.durable.contains(current.identity) {
                // What is built aside is known to be durable only below what it will be named in.
                if self.graft.is_none() {
                    self.durable.insert(seen, since);
                }
                return Ok(());
            }
            if seen.len() == depth {
                break;
            }
            seen.push(current.identity);
            let parent = self.directories.share(Directory::new(sys::open_directory_at(&*current, b"..")?)?);
            parent.sync()?;
            current = parent;
        }
        // Someone moved it to a deeper place meanwhile: as many directories as its name had are synced, and none
        // of them counts as known.
        Ok(())
    }

    /// Syncs a directory whose names were changed, and makes its own name durable.
    pub(super) fn settle(&self, directory: &Arc<Directory>, depth: usize) -> Result<()> {
        directory.sync().and_then(|()| self.sync_ancestors(directory, depth)).map_err(|errno| {
            if matches!(errno, Errno::IO | Errno::ROFS) {
                self.break_down(format!("a directory could not be synced: {errno}"));
            }
            Error::io("sync the directory", errno)
        })
    }
}

/// There is no such thing, or it is none of the asker's business.
pub(super) fn not_found(components: &[Component]) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no {}", shown(components)))
}

/// A name that this store keeps for itself.
pub(super) fn reserved(components: &[Component]) -> Error {
    Error::new(ErrorKind::Name, format!("the name {} is reserved", shown(components)))
}
