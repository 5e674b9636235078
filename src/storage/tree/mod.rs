//! A directory that is built beside the one that it shall replace, and takes its place in one step.
//!
//! A [`Tree`] begins with everything that the old one has ([`copy`]), changes like any other directory through the
//! store that [`Store::grafted`] makes of it, and is exchanged with the old one when that is still as it was
//! ([`compare`]). What is recorded of it ([`record`]) tells the next run, and the next start, how far it was.
//!
//! Invariants:
//! - Nobody but who builds it reaches it: it lies in a directory of its own, in the state directory or under a hidden
//!   name beside the old one.
//! - Content and metadata of a file that the old tree has too are never changed: it has several names.
//! - Under the name is the whole old tree or the whole new one, at every moment; and the new one only after all of
//!   it, and its own name, would survive a power cut.
//! - Nothing that this process has stored in the old tree is lost: what was published before the exchange is a
//!   change and ends it, and what comes later looks its directory up anew ([`Exchanges`]).
//!
//! `docs/STORAGE.md`, "Trees that take the place of others".

mod compare;
mod copy;
mod list;
mod record;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use self::compare::{Look, check_old, sync_below, tell_differences};
use self::copy::{Copier, all_names, is_mount_point};
use self::record::{ManifestWriter, TreeRecord, pair_of};
use super::change::{RemoveFailure, remove_below};
use super::read::modified_at;
use super::walk::{Directory, is_hidden, not_found, reserved};
use super::{Identity, Inner, Kind, Mtime, STATE_NAME, Store, lock, now, sys};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::{TREES_MAX, TREES_PER_OWNER_MAX};
use crate::path::{Component, RemotePath};

pub use list::{UnfinishedTree, list_trees, remove_tree};

/// The name of the directory in the state directory.
pub(super) const TREES_NAME: &str = "trees";
/// The tree in the directory that it is built in.
const TREE_NAME: &[u8] = b"tree";
/// What earlier runs had brought into it, for this one to go on with.
const SPARE_NAME: &[u8] = b"spare";

/// Who builds a tree, and in which run.
#[derive(Clone, Debug)]
pub struct TreeBuilder {
    /// A hash of who it is: another one's trees are never gone on with.
    pub owner: [u8; 32],
    /// What that one is called.
    pub name: String,
    /// The run: only the same one goes on in the same tree, another begins anew with what that had brought.
    pub run: [u8; 16],
}

/// What a new tree has that the old one has not, or the other way round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeChange {
    /// It is new there.
    Created(RemotePath),
    /// Another file or link has the name, or a directory another mode.
    Replaced(RemotePath),
    /// It is not there any more.
    Removed(RemotePath),
}

/// A part of a tree of files that is looked up elsewhere.
pub(super) struct Graft {
    /// Which part, from the root of the store.
    pub(super) at: Vec<Component>,
    /// Where it is.
    pub(super) directory: Arc<Directory>,
    old: Option<OwnedFd>,
    spare: Option<OwnedFd>,
}

/// How often trees took the place of others. Whoever publishes looks whether its directory is still where it was.
#[derive(Default)]
pub(super) struct Exchanges {
    lock: RwLock<()>,
    count: AtomicU64,
}

/// No tree takes the place of another.
pub(super) struct Still<'a>(#[expect(dead_code, reason = "held, not looked at")] RwLockReadGuard<'a, ()>);

impl Exchanges {
    /// While this is held no tree takes the place of another. Never taken twice by one thread: in between, somebody
    /// may have begun to wait for all who hold it.
    pub(super) fn hold(&self) -> Still<'_> {
        Still(self.lock.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many there were. A directory that is opened after this was read is at its place until the number is another.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn exclude(&self) -> Exclusion<'_> {
        Exclusion(self, self.lock.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Nobody else publishes anything. The number changes when all is as it stays.
struct Exclusion<'a>(&'a Exchanges, #[expect(dead_code, reason = "held, not looked at")] RwLockWriteGuard<'a, ()>);

impl Drop for Exclusion<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_add(1, Ordering::SeqCst);
    }
}

/// A directory that is being built to take the place of another, or of nothing. Dropped, it stays for another run.
pub struct Tree {
    inner: Arc<Inner>,
    graft: Arc<Graft>,
    /// The name as its builder calls it.
    path: RemotePath,
    parent: Arc<Directory>,
    name: Component,
    /// Where record and manifest are; locked.
    files: OwnedFd,
    /// Where the tree is; the same, unless it must lie beside its target.
    container: OwnedFd,
    record: Mutex<TreeRecord>,
    is_resumed: bool,
    is_done: Mutex<bool>,
}

impl Store {
    /// Begins to build what shall be under `path`: with what is there now, under second names of the same files or as
    /// copies. The same run goes on with what it has; another one begins anew, and what that had brought is offered
    /// as versions that are there ([`Store::bring_back`]).
    ///
    /// # Errors
    /// `Rights` for the root; `NotDirectory` or `Link` when something else has the name; `Unsupported` for a mount
    /// point, or what holds one; `Busy` while somebody else builds it; `Limit` when this owner builds too many;
    /// `Changed` when what is there changes meanwhile; and what copying it can fail with.
    pub fn begin_tree(&self, path: &RemotePath, builder: &TreeBuilder) -> Result<Tree> {
        let inner = &self.inner;
        inner.writable()?;
        let Some((name, above)) = path.components().split_last() else {
            return Err(Error::new(ErrorKind::Rights, "the root can't be replaced as a whole: name a directory in it"));
        };
        if is_hidden(name.as_bytes()) {
            return Err(reserved(path.components()));
        }
        let what = || format!("begin to build {path} anew");
        let parent = inner.directory_made(above)?.0;
        let old = inner.old_directory(&parent, name, path)?;
        let at = [&inner.home, path.components()].concat();
        let key = key(&builder.owner, &at);
        let is_beside = inner.state.is_none() || !inner.can_stage_in_state(&parent);
        let (files, container) = inner.tree_places(&parent, &key, &builder.owner, is_beside, path)?;
        let begun = Begun { inner, path, old: old.as_ref(), files: &files, container: &container, builder };
        let at_path = RemotePath::from_components(at.iter().map(Component::as_bytes))
            .map_err(|error| Error::new(ErrorKind::Name, error.to_string()))?;
        let (record, is_resumed, is_done) = begun.take_up(at_path, is_beside).map_err(|error| error.context(what()))?;
        let open = |name: &[u8]| match sys::open_directory_at(&container, name) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io(what(), errno)),
        };
        let directory = match open(TREE_NAME)? {
            Some(directory) if !is_done => directory,
            // It has its name.
            _ => sys::open_directory_at(&*parent, name.as_bytes()).while_doing(what)?,
        };
        let directory = inner.directories.share(Directory::new(directory).while_doing(what)?);
        let spare = open(SPARE_NAME)?;
        let has_spare = spare.is_some();
        let graft = Arc::new(Graft { at, directory, old, spare });
        Ok(Tree {
            inner: Arc::clone(inner),
            graft,
            path: path.clone(),
            parent,
            name: name.clone(),
            files,
            container,
            record: Mutex::new(record),
            is_resumed: is_resumed || has_spare,
            is_done: Mutex::new(is_done),
        })
    }

    /// The same store with a tree that is being built in the place that it is to have.
    #[must_use]
    pub fn grafted(&self, tree: &Tree) -> Store {
        let (core, home) = (Arc::clone(&self.inner.core), self.inner.home.clone());
        Store { inner: Arc::new(Inner { core, home, graft: Some(Arc::clone(&tree.graft)) }) }
    }

    /// Whether this lies in a tree that is being built.
    #[must_use]
    pub fn is_in_tree(&self, path: &RemotePath) -> bool {
        self.inner.grafted_part(&self.inner.whole(path.components())).is_some_and(|(_, rest)| !rest.is_empty())
    }

    /// What an earlier run had brought for this name is there from now on, unless this run or the old tree's owner
    /// has something newer: what comes need not come again.
    pub fn bring_back(&self, path: &RemotePath) {
        // Deliberate loss: without it, it is sent once more.
        let _ = self.inner.bring_back(path);
    }

    /// Removes unfinished trees that have rested too long; tells how many that were. They count like unfinished
    /// uploads.
    pub fn expire_trees(&self, now: u64) -> usize {
        let age = self.inner.options.keep_partial.age.as_secs();
        let old = |record: &TreeRecord| record.touched.saturating_add(age) <= now;
        self.inner.remove_trees(|record| record.is_none_or(old))
    }
}

/// Which directory a tree of this owner and name is built in.
fn key(owner: &[u8; 32], at: &[Component]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("sealift 2026 tree that takes the place of another");
    hasher.update(owner);
    for component in at {
        hasher.update(component.as_bytes()).update(b"/");
    }
    *hasher.finalize().as_bytes()
}

fn digits(key: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*key).to_hex().to_string()
}

/// The hidden name of what is built beside its target.
fn beside_name(key: &[u8; 32]) -> String {
    format!("{STATE_NAME}-{}", &digits(key)[..32])
}

/// A tree that is taken up.
struct Begun<'a> {
    inner: &'a Inner,
    path: &'a RemotePath,
    old: Option<&'a OwnedFd>,
    files: &'a OwnedFd,
    container: &'a OwnedFd,
    builder: &'a TreeBuilder,
}

impl Begun<'_> {
    /// The record; whether the tree is this run's already; and whether it is done.
    fn take_up(&self, at: RemotePath, is_beside: bool) -> Result<(TreeRecord, bool, bool)> {
        let what = || format!("look at what an earlier run has left of {}", self.path);
        let identity = |fd: &OwnedFd| sys::status(fd).map(|status| pair_of(status.identity));
        let old = self.old.map(identity).transpose().while_doing(what)?;
        let tree = match sys::open_directory_at(self.container, TREE_NAME) {
            Ok(tree) => Some(tree),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(Error::io(what(), errno)),
        };
        let before = TreeRecord::read(self.files).filter(|record| record.owner == self.builder.owner);
        if let Some(before) = &before {
            let found = tree.as_ref().map(identity).transpose().while_doing(what)?;
            let is_done = found != Some(before.tree);
            if before.run == self.builder.run && (is_done || before.old == old) {
                let record = TreeRecord { touched: now(), ..before.clone() };
                record.write(self.files).while_doing(what)?;
                return Ok((record, true, is_done));
            }
            if let (Some(tree), false) = (&tree, is_done) {
                self.salvage(tree, self.old)?;
            }
        }
        drop(tree);
        // Nothing is known of it any more, in this order: without a record it is nothing.
        for name in [record::RECORD_NAME, record::MANIFEST_NAME] {
            match sys::unlink(self.files, name.as_bytes()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::io(what(), errno)),
            }
        }
        remove(self.container, TREE_NAME).while_doing(what)?;
        let what = || format!("make a directory for the new {}", self.path);
        // The process's umask and the parent's default rights take part, as for any new directory.
        let mode = if self.old.is_some() { 0o700 } else { 0o777 };
        sys::make_directory(self.container, TREE_NAME, Mode::from_raw_mode(mode)).while_doing(what)?;
        let tree = sys::open_directory_at(self.container, TREE_NAME).while_doing(what)?;
        let new = identity(&tree).while_doing(what)?;
        if let Some(old) = self.old {
            let manifest = ManifestWriter::create(self.files).while_doing(what)?;
            let is_reserved = |identity: Identity| self.inner.is_reserved_identity(identity);
            let mut copier = Copier { shown: self.path, manifest, is_reserved: &is_reserved };
            copier.directory(old, &tree, &RemotePath::root())?;
            copier.manifest.finish().while_doing(what)?;
        } else {
            self.inner.set_mode_of_new(&tree).while_doing(what)?;
        }
        let record = TreeRecord {
            owner: self.builder.owner,
            owner_name: self.builder.name.clone(),
            run: self.builder.run,
            at,
            begun: now(),
            touched: now(),
            tree: new,
            old,
            is_beside,
        };
        record.write(self.files).while_doing(what)?;
        Ok((record, false, false))
    }

    /// Keeps what an earlier run had brought into its tree.
    fn salvage(&self, tree: &OwnedFd, old: Option<&OwnedFd>) -> Result<()> {
        let what = || format!("keep what an earlier run had brought of {}", self.path);
        match sys::make_directory(self.container, SPARE_NAME, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::io(what(), errno)),
        }
        let spare = sys::open_directory_at(self.container, SPARE_NAME).while_doing(what)?;
        let old = old.map(|old| sys::open_directory_at(old, b".")).transpose().while_doing(what)?;
        salvage_below(tree, old.as_ref(), &spare).while_doing(what)
    }
}

/// Moves the files that the old tree has not from one tree to another. As deep as a path can be.
fn salvage_below(tree: &OwnedFd, old: Option<&OwnedFd>, spare: &OwnedFd) -> rustix::io::Result<()> {
    for name in all_names(tree)? {
        let status = sys::status_at(tree, &name)?;
        match status.kind {
            Kind::Directory => {
                // What an earlier run could not enter itself has nothing of it.
                let Ok(from) = sys::open_directory_at(tree, &name) else { continue };
                let old = old.and_then(|old| sys::open_directory_at(old, &name).ok());
                match sys::make_directory(spare, &name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                // A file that an even earlier run had brought stands in the way, and is worth no more.
                let Ok(to) = sys::open_directory_at(spare, &name) else { continue };
                salvage_below(&from, old.as_ref(), &to)?;
            }
            Kind::File => {
                let is_old =
                    |old: &OwnedFd| sys::status_at(old, &name).is_ok_and(|old| old.identity == status.identity);
                if !old.is_some_and(is_old) {
                    match sys::rename_over(tree, &name, spare, &name) {
                        Ok(()) | Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {}
                        Err(errno) => return Err(errno),
                    }
                }
            }
            Kind::Link | Kind::Special => {}
        }
    }
    Ok(())
}

/// Removes a directory with all below it; none there is fine.
fn remove(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    let once = || match remove_below(&parent, name, |_| false) {
        Ok(_) | Err(RemoveFailure::System(Errno::NOENT)) => Ok(()),
        Err(RemoveFailure::System(errno)) => Err(errno),
        Err(_) => Err(Errno::IO),
    };
    match once() {
        Err(Errno::ACCESS) => {
            // A directory that its owner may not change was carried over as it was.
            make_changeable(&parent, name)?;
            once()
        }
        ended => ended,
    }
}

fn make_changeable(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    let path = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let handle = rustix::fs::openat(&parent, name, path, Mode::empty())?;
    if sys::status(&handle)?.kind != Kind::Directory {
        return Ok(());
    }
    // A handle that opens nothing has no mode to set: the name is asked, which nobody else can reach.
    rustix::fs::chmodat(&parent, name, Mode::RWXU, rustix::fs::AtFlags::empty())?;
    let directory = sys::open_directory_at(&parent, name)?;
    for name in all_names(&directory)? {
        if sys::status_at(&directory, &name)?.kind == Kind::Directory {
            make_changeable(&directory, &name)?;
        }
    }
    Ok(())
}

impl Inner {
    /// Holds the mode of a directory that was made just now within the options' range.
    fn set_mode_of_new(&self, directory: &OwnedFd) -> rustix::io::Result<()> {
        let current = sys::status(directory)?.mode;
        let new = self.options.directory_mode.apply(current) | (current & 0o2000) | 0o700;
        if new == current { Ok(()) } else { sys::set_mode(directory, new) }
    }

    /// Which part of a graft a whole path leads to, if to any.
    pub(super) fn grafted_part<'a>(&self, whole: &'a [Component]) -> Option<(&Graft, &'a [Component])> {
        let graft = self.graft.as_deref()?;
        Some((graft, whole.strip_prefix(graft.at.as_slice())?))
    }

    /// Refuses to change the name of a tree that is being built, or of what is above it: that is what its end does.
    pub(super) fn refuse_grafted(&self, components: &[Component]) -> Result<()> {
        let whole = self.whole(components);
        match &self.graft {
            Some(graft) if graft.at.starts_with(&whole) => {
                let shown = RemotePath::from_components(components.iter().map(Component::as_bytes)).unwrap_or_default();
                let message = format!("{shown} is being replaced as a whole by this very run");
                Err(Error::new(ErrorKind::IsDirectory, message))
            }
            _ => Ok(()),
        }
    }

    /// As [`Inner::check_still`], where a tree may have taken the place of what held the directory since it was opened.
    pub(super) fn check_looked(&self, directory: &Directory, parent: &[Component], _still: &Still<'_>) -> Result<()> {
        let count = self.exchanges.count();
        if directory.looked.load(Ordering::SeqCst) != count {
            self.check_still(directory, parent)?;
            directory.looked.store(count, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether a directory that is written to is still the one of its name.
    fn check_still(&self, directory: &Directory, parent: &[Component]) -> Result<()> {
        match self.directory_of(parent) {
            Ok(now) if now.identity == directory.identity => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(error),
            _ => Err(Error::new(ErrorKind::Changed, "its directory was replaced as a whole meanwhile")),
        }
    }

    /// The directory that has the name, if there is one.
    fn old_directory(&self, parent: &Directory, name: &Component, path: &RemotePath) -> Result<Option<OwnedFd>> {
        let what = || format!("look at {path}");
        let status = match sys::status_at(parent, name.as_bytes()) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::io(what(), errno)),
        };
        if self.is_reserved_identity(status.identity) {
            return Err(not_found(path.components()));
        }
        let refuse = |kind, why: &str| Err(Error::new(kind, format!("{path} {why}")));
        match status.kind {
            Kind::Directory => {}
            Kind::Link => return refuse(ErrorKind::Link, "is a symbolic link, and links are not followed"),
            Kind::File | Kind::Special => {
                return refuse(ErrorKind::NotDirectory, "is no directory, and only a directory is replaced as a whole");
            }
        }
        if status.identity.device != parent.identity.device || is_mount_point(parent, name.as_bytes()) {
            return refuse(
                ErrorKind::Unsupported,
                "is a mount point, which cannot be replaced as a whole: name a directory in it, or do without --atomic",
            );
        }
        let old = sys::open_directory_at(parent, name.as_bytes()).while_doing(what)?;
        if sys::status(&old).while_doing(what)?.identity != status.identity {
            return refuse(ErrorKind::Changed, "is being replaced by somebody else");
        }
        Ok(Some(old))
    }

    /// Where a tree is recorded and where it is built, made if they are missing, and locked.
    fn tree_places(
        &self,
        parent: &Directory,
        key: &[u8; 32],
        owner: &[u8; 32],
        is_beside: bool,
        path: &RemotePath,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let what = || format!("make a place for the new {path}");
        let private = |parent: &dyn Fn(&str) -> rustix::io::Result<()>, name: &str| match parent(name) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(Error::io(what(), errno)),
        };
        let take = |parent: std::os::fd::BorrowedFd<'_>, name: &str| -> Result<OwnedFd> {
            private(&|name| sys::make_directory(parent, name.as_bytes(), Mode::RWXU), name)?;
            let directory = sys::open_directory_at(parent, name.as_bytes()).while_doing(what)?;
            let status = sys::status(&directory).while_doing(what)?;
            let is_ours = status.owner == rustix::process::geteuid().as_raw() && status.mode & 0o077 == 0;
            if !is_ours {
                let message = format!("{name}, where the new {path} would be built, is somebody else's");
                return Err(Error::new(ErrorKind::Io, message));
            }
            // Without locks there, nobody else is told; a second run would find the first one's record.
            let locked = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive);
            if locked == Err(Errno::WOULDBLOCK) {
                let message = format!("another run is building {path} anew at this moment");
                return Err(Error::new(ErrorKind::Busy, message));
            }
            // Whoever cleans up may have had it for a moment before.
            if !sys::status_at(parent, name.as_bytes()).is_ok_and(|now| now.identity == status.identity) {
                return Err(Error::new(ErrorKind::Busy, format!("the place of the new {path} is being removed")));
            }
            Ok(directory)
        };
        let Some(state) = &self.state else {
            let place = take(parent.as_fd(), &beside_name(key))?;
            let same = sys::open_directory_at(&place, b".").while_doing(what)?;
            return Ok((place, same));
        };
        let is_new = sys::status_at(&state.trees, digits(key).as_bytes()).is_err();
        if is_new {
            self.check_tree_count(owner)?;
        }
        let files = take(state.trees.as_fd(), &digits(key))?;
        let container = if is_beside {
            take(parent.as_fd(), &beside_name(key))?
        } else {
            sys::open_directory_at(&files, b".").while_doing(what)?
        };
        Ok((files, container))
    }

    fn check_tree_count(&self, owner: &[u8; 32]) -> Result<()> {
        let (all, own) = self.count_trees(owner);
        if own >= TREES_PER_OWNER_MAX || all >= TREES_MAX {
            let message = format!(
                "{own} trees of yours are unfinished here, {all} in all, which is as many as may be: finish one, or \
                 have the server's operator remove one (`sealift uploads rm`)"
            );
            return Err(Error::new(ErrorKind::Limit, message));
        }
        Ok(())
    }

    /// As [`Store::bring_back`].
    fn bring_back(&self, path: &RemotePath) -> rustix::io::Result<()> {
        let whole = self.whole(path.components());
        let Some((graft, rest)) = self.grafted_part(&whole) else { return Ok(()) };
        let (Some(spare), Some((name, above))) = (&graft.spare, rest.split_last()) else { return Ok(()) };
        let from = sys::open_beneath(spare, above, self.openat2)?;
        if sys::status_at(&from, name.as_bytes())?.kind != Kind::File {
            return Ok(());
        }
        let (_, parent) = path.components().split_last().ok_or(Errno::NOENT)?;
        let to = self.directory_made(parent).map_err(|_| Errno::NOENT)?.0;
        let there = match sys::status_at(&*to, name.as_bytes()) {
            Ok(there) => there,
            Err(Errno::NOENT) => return sys::rename_new(&from, name.as_bytes(), &*to, name.as_bytes()),
            Err(errno) => return Err(errno),
        };
        let old = graft.old.as_ref().ok_or(Errno::NOENT)?;
        let old = sys::status_at(sys::open_beneath(old, above, self.openat2)?, name.as_bytes())?;
        if old.identity == there.identity && there.kind == Kind::File {
            sys::rename_over(&from, name.as_bytes(), &*to, name.as_bytes())?;
        }
        Ok(())
    }

    /// The same for hidden names, in the directory that they belong to.
    pub(super) fn bring_back_hidden(&self, parent: &[Component], directory: &Directory, names: [&str; 2]) {
        let whole = self.whole(parent);
        let Some((Graft { spare: Some(spare), .. }, rest)) = self.grafted_part(&whole) else { return };
        let Ok(from) = sys::open_beneath(spare, rest, self.openat2) else { return };
        for name in names {
            // Deliberate loss: without it, it is fetched once more.
            let _ = sys::rename_new(&from, name.as_bytes(), directory, name.as_bytes());
        }
    }
}

impl Tree {
    /// Whether an earlier connection or run has left something to go on with.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Whether it is this run's.
    #[must_use]
    pub fn is_of(&self, run: &[u8; 16]) -> bool {
        lock(&self.record).run == *run
    }

    /// Whether it has taken its place already.
    #[must_use]
    pub fn is_done(&self) -> bool {
        *lock(&self.is_done)
    }

    /// The name that it is to get.
    #[must_use]
    pub fn path(&self) -> &RemotePath {
        &self.path
    }

    /// Puts the tree in its place, if `allow` has nothing against any of the differences and what is there is as it
    /// was when the tree was begun. Durable when this returns. What was there is left for [`Tree::clean`].
    ///
    /// # Errors
    /// What `allow` says; `Changed` when the old tree is not what it was; `Unsupported` where the file system cannot
    /// exchange two names; what syncing can fail with. In all of them the old tree is there as before, but for an
    /// error that says otherwise.
    pub fn publish(&self, allow: &mut dyn FnMut(TreeChange) -> Result<()>) -> Result<()> {
        let inner = &self.inner;
        let path = &self.path;
        let mut is_done = lock(&self.is_done);
        let (_, above) = path.components().split_last().ok_or_else(|| not_found(&[]))?;
        if *is_done {
            // The answer was lost, and perhaps the sync before it was never made.
            return inner.settle(&self.parent, above.len()).map_err(|error| error.context(path));
        }
        inner.writable()?;
        inner.check_still(&self.parent, above).map_err(|error| error.context(path))?;
        let tree = sys::open_directory_at(&self.container, TREE_NAME)
            .while_doing(|| format!("open what was built for {path}"))?;
        let old = self.graft.old.as_ref();
        let mut below = |change: TreeChange| {
            let name = |below: RemotePath| {
                path.join_all(&below).map_err(|error| Error::new(ErrorKind::Name, error.to_string()))
            };
            allow(match change {
                TreeChange::Created(below) => TreeChange::Created(name(below)?),
                TreeChange::Replaced(below) => TreeChange::Replaced(name(below)?),
                TreeChange::Removed(below) => TreeChange::Removed(name(below)?),
            })
        };
        let count = tell_differences(inner, &self.files, old.is_some(), &tree, &mut below)?;
        self.sync(&tree, count)?;
        if let Some(old) = old {
            check_old(inner, &self.files, old, path, Look::Whole)?;
        }
        self.exchange(&tree, old)?;
        *is_done = true;
        drop(is_done);
        inner.settle(&self.parent, above.len()).map_err(|error| {
            error.context(format!("put {path} in its place: it is there, but not known to be durable"))
        })
    }

    /// Makes all of the tree durable, and that it is being built.
    fn sync(&self, tree: &OwnedFd, count: u64) -> Result<()> {
        let inner = &self.inner;
        let synced = match inner.whole_sync.try_on(&self.container, count) {
            Some(result) => result,
            None => sync_below(tree),
        };
        let synced = synced.and_then(|()| sys::sync(&self.container)).and_then(|()| sys::sync(&self.files));
        synced.map_err(|errno| {
            inner.sync_failed(errno);
            Error::io(format!("sync what was built for {}", self.path), errno)
        })
    }

    fn exchange(&self, tree: &OwnedFd, old: Option<&OwnedFd>) -> Result<()> {
        let (inner, path, name) = (&self.inner, &self.path, self.name.as_bytes());
        let failed = |errno: Errno| match errno {
            Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::XDEV | Errno::BUSY => Error::new(
                ErrorKind::Unsupported,
                format!("the file system of {path} cannot put one directory in the place of another ({errno})"),
            ),
            errno => Error::io(format!("put {path} in its place"), errno),
        };
        let changed = || {
            let message = format!("{path} was made or replaced meanwhile, and was left as it is: run it again");
            Error::new(ErrorKind::Changed, message)
        };
        // Nobody publishes anything until it is known whether the old tree stays.
        let _exclusion = inner.exchanges.exclude();
        let _change = inner.durable.change();
        let Some(old) = old else {
            return match sys::rename_new(&self.container, TREE_NAME, &*self.parent, name) {
                Ok(()) => Ok(()),
                Err(Errno::EXIST | Errno::NOTEMPTY) => Err(changed()),
                Err(errno) => Err(failed(errno)),
            };
        };
        let (before, new) = (sys::status(old).map_err(failed)?, sys::status(tree).map_err(failed)?);
        let identity = before.identity;
        if !sys::status_at(&*self.parent, name).is_ok_and(|now| now.identity == identity) {
            return Err(changed());
        }
        match sys::exchange(&self.container, TREE_NAME, &*self.parent, name) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Err(changed()),
            Err(errno) => return Err(failed(errno)),
        }
        // What was put there between the last look and the exchange has gone with the old tree: back with it.
        let is_old = sys::status_at(&self.container, TREE_NAME).is_ok_and(|now| now.identity == identity);
        let checked = if is_old { check_old(inner, &self.files, old, path, Look::Moved) } else { Err(changed()) };
        match checked {
            Ok(()) => self.keep_time(tree, new.mtime),
            Err(error) => {
                sys::exchange(&self.container, TREE_NAME, &*self.parent, name).map_err(failed)?;
                self.keep_time(old, before.mtime)?;
                Err(error)
            }
        }
    }

    /// Gives a directory back the time that it had before it was exchanged: some file systems (XFS) take that for a
    /// change of what it holds.
    fn keep_time(&self, directory: &OwnedFd, mtime: Mtime) -> Result<()> {
        let kept = sys::status(directory).and_then(|now| {
            if now.mtime == mtime {
                return Ok(());
            }
            sys::set_times(directory, &modified_at(mtime))?;
            sys::sync(directory)
        });
        kept.while_doing(|| format!("keep the time of {}, which was exchanged", self.path))
    }

    /// Removes what the tree has replaced, and what earlier runs had brought. Blocks for as long as it takes.
    ///
    /// # Errors
    /// What removing can fail with; what is left goes at the next start.
    pub fn clean(&self) -> Result<()> {
        if !self.is_done() {
            return Ok(());
        }
        let what = || format!("remove what {} was before", self.path);
        remove(&self.container, TREE_NAME).while_doing(what)?;
        remove(&self.container, SPARE_NAME).while_doing(what)?;
        match sys::unlink(&self.files, record::MANIFEST_NAME.as_bytes()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::io(what(), errno)),
        }
        // At a server the record stays for who asks how it ended. A client knows.
        let record = lock(&self.record);
        let beside = beside_name(&key(&record.owner, &self.graft.at));
        if self.inner.state.is_none() {
            sys::unlink(&self.files, record::RECORD_NAME.as_bytes()).while_doing(what)?;
        }
        if record.is_beside {
            sys::remove_directory(&*self.parent, beside.as_bytes()).while_doing(what)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("path", &self.path).finish_non_exhaustive()
    }
}
