//! Extended attributes of files and directories, by descriptor: read for whoever moves them, and made exactly those
//! that were sent. What the system sets, and what is recorded here, is neither read nor touched.

use std::os::fd::AsFd;

use rustix::io::{Errno, Result as IoResult, retry_on_intr};

use super::{Kind, Store, StoredFile, sys};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::RemotePath;
use crate::xattrs::{Xattrs, is_moved};

/// Bytes of the names, or of one value, that the kernel returns at most.
const KERNEL_LEN_MAX: usize = 64 * 1024;
/// Bytes of names that are asked for first: nearly always enough, and no allocation.
const NAMES_LEN: usize = 512;

/// The extended attributes of an open file or directory that are moved. Where the file system has none, there are none.
///
/// # Errors
/// `Unsupported` when they are more, or longer, than are moved; `Io`.
pub fn read_xattrs(file: impl AsFd) -> Result<Xattrs> {
    let what = || "read the extended attributes".to_owned();
    let mut pairs = Vec::new();
    let mut value = Vec::new();
    for name in names(&file).while_doing(what)? {
        value.resize(KERNEL_LEN_MAX, 0);
        match retry_on_intr(|| rustix::fs::fgetxattr(&file, name.as_slice(), &mut value[..])) {
            Ok(len) => pairs.push((name, value[..len].to_vec())),
            // It went away since its name was read.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(Error::io(what(), errno)),
        }
    }
    Xattrs::new(pairs).map_err(|error| {
        let message = "its extended attributes cannot be moved (without --xattrs it is moved without them)";
        Error::new(ErrorKind::Unsupported, message).with_source(error)
    })
}

/// The names of those that are moved.
fn names(file: impl AsFd) -> IoResult<Vec<Vec<u8>>> {
    let mut few = [0; NAMES_LEN];
    let mut many = Vec::new();
    let names = match retry_on_intr(|| rustix::fs::flistxattr(&file, &mut few[..])) {
        Ok(len) => &few[..len],
        Err(Errno::RANGE) => {
            many.resize(KERNEL_LEN_MAX, 0);
            let len = retry_on_intr(|| rustix::fs::flistxattr(&file, &mut many[..]))?;
            &many[..len]
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    Ok(names.split(|&byte| byte == 0).filter(|name| is_moved(name)).map(<[u8]>::to_vec).collect())
}

/// Makes those of an open file or directory exactly these, as far as its file system keeps them. Returns why some could
/// not be kept: `Unsupported` (there are none on this file system), `NoSpace` (it has no room for so many), `Rights`.
pub(super) fn replace(file: impl AsFd, wanted: &Xattrs) -> IoResult<Option<ErrorKind>> {
    let mut unkept = None;
    let mut note = |result: IoResult<()>| -> IoResult<()> {
        match result {
            Ok(()) => Ok(()),
            Err(errno) => {
                unkept = Some(refusal(errno).ok_or(errno)?);
                Ok(())
            }
        }
    };
    let there = names(&file)?;
    for name in there.iter().filter(|name| !wanted.has(name)) {
        match sys::remove_attribute(&file, name) {
            Err(Errno::NODATA) => {}
            result => note(result)?,
        }
    }
    for xattr in wanted.all() {
        note(sys::set_attribute(&file, xattr.name(), xattr.value()))?;
    }
    Ok(unkept)
}

/// Why a file system did not take an attribute; none for what is no answer to that.
fn refusal(errno: Errno) -> Option<ErrorKind> {
    match errno {
        Errno::OPNOTSUPP | Errno::NOSYS => Some(ErrorKind::Unsupported),
        Errno::NOSPC | Errno::DQUOT | Errno::TOOBIG | Errno::RANGE => Some(ErrorKind::NoSpace),
        Errno::PERM | Errno::ACCESS => Some(ErrorKind::Rights),
        _ => None,
    }
}

/// Whether this file or directory has these and no others; true where it cannot have any, so that nothing could be
/// changed.
pub(super) fn are(file: impl AsFd, wanted: &Xattrs) -> bool {
    !are_kept(&file) || read_xattrs(file).is_ok_and(|there| there == *wanted)
}

/// Whether the file system of this file or directory keeps such attributes, as far as it tells.
pub(super) fn are_kept(file: impl AsFd) -> bool {
    // One that has no name for them says so; one that knows others than those of users says so when one is asked for.
    let asked = rustix::fs::fgetxattr(file, "user.sealift-none", &mut [0; 1][..]);
    !matches!(asked, Err(Errno::OPNOTSUPP | Errno::NOSYS))
}

impl Store {
    /// The extended attributes that are moved, of a file or directory.
    ///
    /// # Errors
    /// As opening it; `Unsupported` when they are more, or longer, than are moved.
    pub fn xattrs(&self, path: &RemotePath) -> Result<Xattrs> {
        match self.stat(path)?.kind {
            Kind::Directory => read_xattrs(&*self.inner.directory(path)?).map_err(|error| error.context(path)),
            Kind::File => self.open_file(path)?.xattrs(),
            // They are no user's.
            Kind::Link | Kind::Special => Ok(Xattrs::default()),
        }
    }
}

impl StoredFile {
    /// Whether it has these and no others; true where the file system keeps none at all.
    #[must_use]
    pub fn has_xattrs(&self, wanted: &Xattrs) -> bool {
        are(self, wanted)
    }

    /// The extended attributes that are moved.
    ///
    /// # Errors
    /// `Unsupported` when they are more, or longer, than are moved; `Io`.
    pub fn xattrs(&self) -> Result<Xattrs> {
        read_xattrs(self).map_err(|error| error.context(self.shown()))
    }
}
