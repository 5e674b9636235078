//! Further names of a stored file (hard links): a name is given to the file behind an open handle, never to whatever
//! a path leads to by then.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::publish::{Outcome, Published};
use super::upload::{NewFile, Parents, Place, Staged, Staging};
use super::walk::hidden_name;
use super::{IfExists, Store, StoredFile, sys};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::path::RemotePath;

/// How a file came to a further name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// It has it now.
    New(Published),
    /// It had it already.
    Already,
}

impl Store {
    /// Whether this is a name of the file that is open; then both are durable. A name that the file gets or loses
    /// meanwhile is no change of what it is.
    ///
    /// # Errors
    /// What syncing can fail with.
    pub fn confirm_name(&self, file: &StoredFile, path: &RemotePath) -> Result<bool> {
        let inner = &self.inner;
        let is_name = self.stat(path).is_ok_and(|there| there.version.identity == file.version().identity);
        if let Some((_, parent)) = path.components().split_last().filter(|_| is_name) {
            let directory = inner.directory_of(parent)?;
            file.sync()?;
            inner.settle(&directory, parent.len()).map_err(|error| error.context(path))?;
        }
        Ok(is_name)
    }

    /// Gives a stored file a further name, durably: content and metadata are synced first, and what has the name is
    /// replaced by rename, so that its other names are not touched.
    ///
    /// # Errors
    /// `Unsupported` when the file system makes no further name of it (another file system, too many names, none at
    /// all); otherwise as storing a file under that name.
    pub fn give_name(&self, file: &StoredFile, path: &RemotePath, if_exists: IfExists) -> Result<Named> {
        let inner = &self.inner;
        inner.writable()?;
        let options = NewFile { if_exists, make_parents: true, ..NewFile::default() };
        let Some((directory, name)) = inner.target(&mut Parents::default(), path, options)? else {
            return Err(Error::new(ErrorKind::IsDirectory, "the root is a directory, not a file"));
        };
        let what = || format!("give a file the further name {path}");
        if if_exists != IfExists::Rename && self.confirm_name(file, path)? {
            return Ok(Named::Already);
        }
        file.sync()?;
        let hidden = hidden_name().while_doing(what)?;
        sys::link_open_file(file.as_fd(), &*directory, hidden.as_bytes()).map_err(|errno| match errno {
            Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOENT => {
                Error::new(ErrorKind::Unsupported, what()).with_source(std::io::Error::from(errno))
            }
            errno => Error::io(what(), errno),
        })?;
        let place = Place::Beside(hidden.clone());
        let staging = Staging::new(Arc::clone(inner), Arc::clone(&directory), place, None);
        let staged = Staged { staging, path: path.clone(), name, if_exists, xattrs_lost: None };
        let published = self.publish(vec![staged]).pop().expect("one answer for one name");
        // A rename onto another name of the same file leaves both, and somebody else may have been as quick.
        match rustix::fs::unlinkat(&*directory, hidden.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::io(what(), errno)),
        }
        match published? {
            Published { outcome: Outcome::Skipped, .. } if if_exists == IfExists::Skip => {
                Err(Error::new(ErrorKind::Exists, format!("{path} exists and must not be replaced")))
            }
            published => Ok(Named::New(published)),
        }
    }
}
