//! Looking for rot: a stored file is read from the disk itself and compared with the hash that lies with it.
//!
//! Nothing is written, no lock is taken and nothing is left in the page cache, so it may run beside a server. What
//! that one changes meanwhile is told as [`ErrorKind::Changed`] and is looked at again by the caller.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Advice, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::open::{build, open_root, reserved_in};
use super::read::read_full;
use super::recorded::{Record, Recorded};
use super::sys;
use super::{STATE_NAME, Store, StoreOptions, StoredFile};
use crate::buffer::{BUFFER_ALIGN, Buffer};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::hash::{GroupHash, Root, Tree, group_count, group_len, group_offset};
use crate::limits::GROUP_LEN;
use crate::path::{Component, Escaped, RemotePath};

/// What a file is, compared with what was recorded when it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The content is what was stored.
    Intact,
    /// The content is what was stored; somebody gave the file another time since.
    Touched,
    /// Size and time are those of the file that was stored, and the content is not: it rotted, or somebody changed
    /// it and set the time back.
    Rotten {
        /// The hash of what was stored.
        recorded: Root,
        /// The hash of what is there.
        found: Root,
    },
    /// It was stored, and has another size, or another time and content: somebody changed it in place.
    Changed,
    /// There is no record, or none that can be read: another program put it there.
    Unrecorded,
}

impl Store {
    /// Opens a tree to look at it, beside the server that it may belong to: nothing is made, locked or removed, and
    /// nothing can be stored.
    ///
    /// # Errors
    /// What opening a directory can fail with.
    pub fn open_to_look(root: &Path) -> Result<Store> {
        let label = Escaped(root.as_os_str().as_encoded_bytes()).to_string();
        let fd = open_root(root, &label)?;
        let what = || format!("look at {STATE_NAME} in {label}");
        let reserved = match sys::open_directory_at(&fd, STATE_NAME.as_bytes()) {
            Ok(state) => reserved_in(&state).while_doing(what)?,
            // Nothing of that name, or nothing that a server would use.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Vec::new(),
            Err(errno) => return Err(Error::io(what(), errno)),
        };
        let openat2 = sys::has_openat2(&fd);
        let mut inner = build(fd, label, StoreOptions::default(), None, openat2, false, Vec::new())?;
        inner.reserved = reserved;
        inner.leftover_age = std::time::Duration::MAX;
        inner.look_only();
        Ok(inner.into())
    }

    /// Reads a file past the page cache and compares it with its record. `buffer` holds a group; `pace` is called
    /// before each read with its bytes, and ends the reading by an error.
    ///
    /// # Errors
    /// `Changed` when it is written to meanwhile; `Io` when the disk cannot read it; what opening can fail with.
    pub fn examine(
        &self,
        path: &RemotePath,
        buffer: &mut Buffer,
        pace: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<(Condition, u64)> {
        assert!(buffer.len() == GROUP_LEN, "the buffer holds a group");
        let file = self.open_file(path)?;
        let size = file.size();
        let condition = match Record::of(&file) {
            None => Condition::Unrecorded,
            // Nothing that was stored has another size, whatever is in it.
            Some(record) if record.size != size => Condition::Changed,
            Some(record) => {
                let found = self.root_on_disk(&file, path, buffer, pace)?;
                let Recorded { root: recorded, .. } = record.recorded;
                match (found == recorded, file.mtime().as_nanos() == Some(record.mtime)) {
                    (true, true) => Condition::Intact,
                    (true, false) => Condition::Touched,
                    (false, true) => Condition::Rotten { recorded, found },
                    (false, false) => Condition::Changed,
                }
            }
        };
        file.check_unchanged()?;
        Ok((condition, size))
    }

    fn root_on_disk(
        &self,
        file: &StoredFile,
        path: &RemotePath,
        buffer: &mut Buffer,
        pace: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Root> {
        let direct = self.direct_handle_of(file, path);
        let mut tree = Tree::new();
        for group in 0..group_count(file.size()) {
            let (offset, len) = (group_offset(group), group_len(file.size(), group));
            pace(len)?;
            let is_read = direct.as_ref().is_some_and(|direct| read_direct(direct, offset, buffer, len));
            if !is_read {
                // What is clean in the cache is dropped first, so that it comes from the disk. What is not on the disk
                // yet stays, and is what will be there. Where the advice is not taken, the cache is believed.
                let advise = || {
                    let _ = rustix::fs::fadvise(file, offset, (len as u64).try_into().ok(), Advice::DontNeed);
                };
                advise();
                let read = read_full(file, offset, &mut buffer[..len]);
                advise();
                let what = || format!("read {path} at offset {offset}");
                if !read.while_doing(what)? {
                    let message = format!("{path} changed while it was being read");
                    return Err(Error::new(ErrorKind::Changed, message));
                }
            }
            tree.insert(group, GroupHash::of(group, &buffer[..len]));
        }
        tree.root(file.size()).ok_or_else(|| Error::new(ErrorKind::Internal, "a group was left out"))
    }

    /// A second handle on the same file that reads past the page cache, where there is one.
    fn direct_handle_of(&self, file: &StoredFile, path: &RemotePath) -> Option<OwnedFd> {
        let (name, parent) = path.components().split_last()?;
        let directory = self.inner.directory_of(parent).ok()?;
        let direct = sys::open_at(&*directory, Component::as_bytes(name), OFlags::RDONLY | OFlags::DIRECT, 0).ok()?;
        let same = sys::status(&direct).ok()?.identity == file.version().identity;
        let (offset_align, memory_align) = sys::direct_alignment(&direct)?;
        let fits = offset_align as usize <= BUFFER_ALIGN && memory_align as usize <= BUFFER_ALIGN;
        (same && fits).then_some(direct)
    }
}

/// Fills the first `len` bytes of the buffer from the disk. False: it has to be read the ordinary way, which also
/// tells what failed.
fn read_direct(direct: &OwnedFd, offset: u64, buffer: &mut Buffer, len: usize) -> bool {
    let mut filled = 0;
    while filled < len {
        let rounded = (len - filled).next_multiple_of(BUFFER_ALIGN);
        let Ok(count) =
            retry_on_intr(|| rustix::io::pread(direct, &mut buffer[filled..filled + rounded], offset + filled as u64))
        else {
            return false;
        };
        filled += count;
        if filled < len && (count == 0 || !count.is_multiple_of(BUFFER_ALIGN)) {
            return false;
        }
    }
    true
}
