//! Looking without changing anything: whether a root could be served (`serve --check`, also beside a server that runs
//! on it), and what space there is.

use std::io::Read as _;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Access, AtFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::open::{LOCK_LEN_MAX, LOCK_NAME, open_root, refuse_precious};
use super::upload::space_of;
use super::{STATE_NAME, Store, sys};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::{Escaped, RemotePath};

impl Store {
    /// Checks a root as [`Store::open_served`] would, as far as that can be told by looking. The answer is who
    /// serves it now, if anybody does. A root that is missing is fine where it could be made.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a root that would be refused.
    pub fn check_served(root: &Path, home: Option<&Path>) -> Result<Option<String>> {
        let label = Escaped(root.as_os_str().as_encoded_bytes()).to_string();
        let usage = |error: Error| error.with_kind(ErrorKind::Usage);
        if matches!(rustix::fs::stat(root), Err(Errno::NOENT)) {
            let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let what = || format!("make the directory {label}");
            let writable = |path: &Path| rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK);
            writable(parent).while_doing(what).map_err(usage)?;
            return Ok(None);
        }
        let fd = open_root(root, &label).map_err(usage)?;
        refuse_precious(root, &fd, &label, home)?;
        let needed = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        let may = rustix::fs::accessat(&fd, ".", needed, AtFlags::EACCESS);
        may.while_doing(|| format!("write to the root {label}")).map_err(usage)?;
        holder(&fd).while_doing(|| format!("look at the lock of the root {label}")).map_err(usage)
    }
}

/// What a volume holds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What this process could still write.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

impl Store {
    /// The space of the volume that a name is on; for one that is not there, of the directory above it.
    ///
    /// # Errors
    /// What opening a directory can fail with; `Io` when the file system does not tell.
    pub fn space(&self, path: &RemotePath) -> Result<Space> {
        let mut components = path.components();
        loop {
            match self.inner.directory_of(components) {
                Ok(directory) => {
                    let untold = || Error::new(ErrorKind::Io, format!("ask for the space of {path}: it is not told"));
                    return space_of(&*directory).ok_or_else(untold);
                }
                Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotDirectory) => {
                    return Err(error);
                }
                Err(error) => match components.split_last() {
                    Some((_, above)) => components = above,
                    None => return Err(error),
                },
            }
        }
    }
}

/// Who holds the lock, in its own words.
fn holder(root: impl AsFd) -> std::io::Result<Option<String>> {
    let open = || {
        let state = sys::open_directory_at(root, STATE_NAME.as_bytes())?;
        sys::open_at(&state, LOCK_NAME.as_bytes(), OFlags::RDONLY, 0)
    };
    let file = match open() {
        Ok(file) => file,
        // Never served.
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        // Given back when the handle is closed, which is now.
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => {
            let mut word = Vec::new();
            std::fs::File::from(file).take(LOCK_LEN_MAX).read_to_end(&mut word)?;
            Ok(Some(Escaped(word.trim_ascii()).to_string()))
        }
        Err(errno) => Err(errno.into()),
    }
}
