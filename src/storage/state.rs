//! Small files of the server itself in its state directory, which no client can reach.

use std::fs::File;
use std::io::{Read as _, Write as _};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{State, Store, sys};
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// Bytes of a state file: none holds more than a key.
const STATE_FILE_LEN_MAX: u64 = 64 << 10;

impl Store {
    /// What a file of the state directory holds; none when there is no such file.
    ///
    /// # Errors
    /// `Usage` when others than the owner can read it; what reading can fail with.
    pub fn state_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let state = self.state()?;
        let what = || format!("read {}", self.state_label(name));
        let file = match sys::open_at(&state.directory, name.as_bytes(), OFlags::RDONLY, 0) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.while_doing(what)?,
        };
        let mode = sys::status(&file).while_doing(what)?.mode;
        if mode & 0o077 != 0 {
            let message = format!("others can read {} (mode {mode:03o}): `chmod 600` it", self.state_label(name));
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let mut content = Vec::new();
        File::from(file).take(STATE_FILE_LEN_MAX).read_to_end(&mut content).while_doing(what)?;
        Ok(Some(content))
    }

    /// Makes a file of the state directory (0600), whole and durable or not at all. There must be none of that name.
    ///
    /// # Errors
    /// What writing can fail with.
    pub fn make_state_file(&self, name: &str, content: &[u8]) -> Result<()> {
        let state = self.state()?;
        let what = || format!("write {}", self.state_label(name));
        let staging = format!("{name}.new");
        let write = || {
            match sys::unlink(&state.directory, staging.as_bytes()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut file = File::from(sys::open_at(&state.directory, staging.as_bytes(), flags, 0o600)?);
            file.write_all(content)?;
            file.sync_all()?;
            sys::rename_new(&state.directory, staging.as_bytes(), &state.directory, name.as_bytes())?;
            sys::sync(&state.directory)?;
            Ok::<(), std::io::Error>(())
        };
        write().while_doing(what)
    }

    fn state(&self) -> Result<&State> {
        let message = "a directory that is not served has no state";
        self.inner.state.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, message))
    }

    fn state_label(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.inner.label, super::STATE_NAME)
    }
}
