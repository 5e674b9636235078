//! Unfinished trees as their operator sees them, and how they go.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::{Errno, Result as IoResult};

use super::copy::all_names;
use super::record::{TreeRecord, pair_of};
use super::{TREE_NAME, TREES_NAME, beside_name, digits, key, remove};
use crate::error::{IoContext as _, Result};
use crate::path::{Component, Escaped, RemotePath};
use crate::storage::{Inner, Kind, STATE_NAME, Store, now, sys};

/// A tree that is being built, or that nobody has gone on with.
#[derive(Clone, Debug)]
pub struct UnfinishedTree {
    /// By what it can be named.
    pub id: String,
    /// What its builder is called.
    pub owner_name: String,
    /// The name that it is to get, from the served root.
    pub path: RemotePath,
    /// When it was begun, in seconds since 1970.
    pub begun: u64,
    /// When somebody last took it up.
    pub touched: u64,
    /// Bytes of the files that only it has.
    pub size: u64,
    /// How many these are.
    pub files: u64,
    /// Whether it is being built at this moment.
    pub is_active: bool,
    name: Vec<u8>,
}

/// Where everything of a tree is.
struct Found {
    files: OwnedFd,
    record: Option<TreeRecord>,
    /// Nobody has it open, and nobody will while this is held.
    is_locked: bool,
}

fn find(trees: &OwnedFd, name: &[u8]) -> IoResult<Found> {
    let files = sys::open_directory_at(trees, name)?;
    let is_locked = rustix::fs::flock(&files, FlockOperation::NonBlockingLockExclusive).is_ok();
    Ok(Found { record: TreeRecord::read(&files), files, is_locked })
}

/// The directory that holds the tree of a record, when it is another than that of the record.
fn beside(root: &OwnedFd, record: &TreeRecord, openat2: bool) -> Option<(OwnedFd, String)> {
    let (_, above) = record.at.components().split_last()?;
    let parent = sys::open_beneath(root, above, openat2).ok()?;
    record.is_beside.then(|| (parent, beside_name(&key(&record.owner, record.at.components()))))
}

/// Removes one that nobody has open.
fn drop_tree(trees: &OwnedFd, root: &OwnedFd, name: &[u8], found: &Found, openat2: bool) -> IoResult<()> {
    if let Some(record) = &found.record
        && let Some((parent, name)) = beside(root, record, openat2)
    {
        remove(&parent, name.as_bytes())?;
    }
    remove(trees, name)
}

/// Whether what is recorded has taken its place.
fn is_done(root: &OwnedFd, found: &Found, record: &TreeRecord, openat2: bool) -> bool {
    let there = |directory: &OwnedFd| sys::status_at(directory, TREE_NAME).ok().map(|status| pair_of(status.identity));
    let tree = match beside(root, record, openat2) {
        Some((parent, name)) => sys::open_directory_at(parent, name.as_bytes()).ok().and_then(|found| there(&found)),
        None => there(&found.files),
    };
    tree != Some(record.tree)
}

impl Store {
    /// What the trees come to that are being built, or were, for names below this place: bytes and number of the files
    /// that only they have. Blocks.
    #[must_use]
    pub fn unfinished_trees(&self, home: &[Component]) -> (u64, u64) {
        let inner = &self.inner;
        let Some(state) = &inner.state else { return (0, 0) };
        let Ok(root) = sys::open_directory_at(inner.root_fd(), b".") else { return (0, 0) };
        let (mut size, mut files) = (0, 0);
        for name in all_names(&state.trees).unwrap_or_default() {
            let Ok(directory) = sys::open_directory_at(&state.trees, &name) else { continue };
            let Some(record) = TreeRecord::read(&directory).filter(|record| record.at.components().starts_with(home))
            else {
                continue;
            };
            let container = match beside(&root, &record, inner.openat2) {
                Some((parent, name)) => sys::open_directory_at(parent, name.as_bytes()).unwrap_or(directory),
                None => directory,
            };
            // What cannot be looked at is not counted.
            let _ = measure(&container, &mut size, &mut files);
        }
        (size, files)
    }
}

impl Inner {
    /// How many trees are unfinished, in all and of this owner.
    pub(super) fn count_trees(&self, owner: &[u8; 32]) -> (usize, usize) {
        let Some(state) = &self.state else { return (0, 0) };
        let names = all_names(&state.trees).unwrap_or_default();
        let records = names.iter().filter_map(|name| {
            let files = sys::open_directory_at(&state.trees, name).ok()?;
            let record = TreeRecord::read(&files)?;
            // One that is done and is only remembered counts for nobody.
            let holds = record.is_beside || sys::status_at(&files, TREE_NAME).is_ok();
            holds.then_some(record.owner)
        });
        let owners: Vec<[u8; 32]> = records.collect();
        (owners.len(), owners.iter().filter(|other| *other == owner).count())
    }

    /// Removes trees that nobody has open and that the condition holds for; it is asked of a damaged one too.
    pub(super) fn remove_trees(&self, goes: impl Fn(Option<&TreeRecord>) -> bool) -> usize {
        let Some(state) = &self.state else { return 0 };
        let Ok(root) = sys::open_directory_at(self.root_fd(), b".") else { return 0 };
        let mut count = 0;
        for name in all_names(&state.trees).unwrap_or_default() {
            let Ok(found) = find(&state.trees, &name) else { continue };
            if found.is_locked && goes(found.record.as_ref()) {
                // Deliberate loss: what cannot be removed now is tried again the next time.
                count += usize::from(drop_tree(&state.trees, &root, &name, &found, self.openat2).is_ok());
            }
        }
        count
    }

    /// Ends what a dead server has left: trees that took their place leave the old one, and what was not begun
    /// properly leaves nothing to go on with.
    pub(in crate::storage) fn load_trees(&self) -> IoResult<()> {
        let Some(state) = &self.state else { return Ok(()) };
        let root = sys::open_directory_at(self.root_fd(), b".")?;
        let oldest = now().saturating_sub(self.options.keep_partial.age.as_secs());
        for name in all_names(&state.trees)? {
            let found = find(&state.trees, &name)?;
            match &found.record {
                Some(record) if record.touched > oldest && !self.options.keep_partial.age.is_zero() => {
                    if is_done(&root, &found, record, self.openat2) {
                        match beside(&root, record, self.openat2) {
                            Some((parent, name)) => remove(&parent, name.as_bytes())?,
                            None => remove(&found.files, TREE_NAME)?,
                        }
                    }
                }
                _ => drop_tree(&state.trees, &root, &name, &found, self.openat2)?,
            }
        }
        Ok(())
    }
}

/// Opens the trees of a root; none when none was ever begun there.
fn open_trees(root: &Path) -> Result<Option<(OwnedFd, OwnedFd)>> {
    let what = || format!("open the state of the root {}", Escaped(root.as_os_str().as_encoded_bytes()));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags, Mode::empty()).while_doing(what)?;
    let state = sys::open_directory_at(&fd, STATE_NAME.as_bytes()).while_doing(what)?;
    match sys::open_directory_at(&state, TREES_NAME.as_bytes()) {
        Ok(trees) => Ok(Some((trees, fd))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(crate::error::Error::io(what(), errno)),
    }
}

/// The unfinished trees of a root, whether or not it is served at this moment. Nothing is changed.
///
/// # Errors
/// `NotFound` when nothing was ever served from there; what reading it can fail with.
pub fn list_trees(root: &Path) -> Result<Vec<UnfinishedTree>> {
    let Some((trees, root_fd)) = open_trees(root)? else { return Ok(Vec::new()) };
    let openat2 = sys::has_openat2(&root_fd);
    let what = || format!("read the unfinished trees in {}", Escaped(root.as_os_str().as_encoded_bytes()));
    let mut listed = Vec::new();
    for name in all_names(&trees).while_doing(what)? {
        // Gone since its name was read.
        let Ok(found) = find(&trees, &name) else { continue };
        let Some(record) = found.record.as_ref().filter(|record| !is_done(&root_fd, &found, record, openat2)) else {
            continue;
        };
        let container = match beside(&root_fd, record, openat2) {
            Some((parent, name)) => sys::open_directory_at(parent, name.as_bytes()).ok(),
            None => sys::open_directory_at(&found.files, b".").ok(),
        };
        let (mut size, mut files) = (0, 0);
        if let Some(container) = container {
            // What cannot be looked at is not counted.
            let _ = measure(&container, &mut size, &mut files);
        }
        listed.push(UnfinishedTree {
            id: digits(&key(&record.owner, record.at.components()))[..16].to_owned(),
            owner_name: record.owner_name.clone(),
            path: record.at.clone(),
            begun: record.begun,
            touched: record.touched,
            size,
            files,
            is_active: !found.is_locked,
            name,
        });
    }
    listed.sort_by(|left, right| left.path.cmp(&right.path).then(left.id.cmp(&right.id)));
    Ok(listed)
}

/// Bytes and number of the files that have no name elsewhere.
fn measure(directory: &OwnedFd, size: &mut u64, files: &mut u64) -> IoResult<()> {
    for name in all_names(directory)? {
        let status = sys::status_at(directory, &name)?;
        match status.kind {
            Kind::Directory => measure(&sys::open_directory_at(directory, &name)?, size, files)?,
            Kind::File if status.names == 1 => {
                *size = size.saturating_add(status.size);
                *files += 1;
            }
            Kind::File | Kind::Link | Kind::Special => {}
        }
    }
    Ok(())
}

/// Removes an unfinished tree that [`list_trees`] has found, also beside a server that serves the root. False: it is
/// being built at this moment, or has come to its end.
///
/// # Errors
/// What removing files can fail with.
pub fn remove_tree(root: &Path, tree: &UnfinishedTree) -> Result<bool> {
    let Some((trees, root_fd)) = open_trees(root)? else { return Ok(false) };
    let openat2 = sys::has_openat2(&root_fd);
    let Ok(found) = find(&trees, &tree.name) else { return Ok(false) };
    if !found.is_locked || found.record.is_none() {
        return Ok(false);
    }
    drop_tree(&trees, &root_fd, &tree.name, &found, openat2)
        .while_doing(|| format!("remove the unfinished tree for {}", tree.path))?;
    Ok(true)
}
