//! Small records of the server itself in a directory of its state: each is replaced whole, durably, or not at all.
//!
//! A record ends in the BLAKE3 hash of what is before it, so that one that was damaged is known as such. What an
//! interrupted replacement leaves is removed when the records are read.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::sys;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::Escaped;

/// What a record is called until it is whole.
const NEW_SUFFIX: &str = ".new";
/// Bytes of the hash at a record's end.
const HASH_LEN: usize = 32;
/// Bytes of a record that are read. A longer one counts as damaged.
const RECORD_LEN_MAX: u64 = 8 << 20;

/// The records of one directory.
pub struct Records {
    directory: OwnedFd,
    label: String,
}

impl Records {
    pub(super) fn new(directory: OwnedFd, label: String) -> Records {
        Records { directory, label }
    }

    fn label(&self, name: &str) -> String {
        format!("{}/{}", self.label, Escaped(name.as_bytes()))
    }

    /// Every record: its name, and what it holds; none for one that is damaged. What is half written is removed.
    ///
    /// # Errors
    /// What reading can fail with.
    pub fn read_all(&self) -> Result<Vec<(String, Option<Vec<u8>>)>> {
        let what = || format!("read {}", self.label);
        let directory = sys::open_directory_at(&self.directory, b".").while_doing(what)?;
        let mut memory = Vec::with_capacity(32 * 1024);
        let mut names = Vec::new();
        loop {
            let some = sys::read_names(&directory, &mut memory).while_doing(what)?;
            if some.is_empty() {
                break;
            }
            names.extend(some.into_iter().map(|name| name.bytes));
        }
        let mut records = Vec::with_capacity(names.len());
        for name in names {
            // Nobody but this program writes here; what it did not name is left alone.
            let Ok(name) = String::from_utf8(name) else { continue };
            if name.ends_with(NEW_SUFFIX) {
                sys::unlink(&self.directory, name.as_bytes())
                    .while_doing(|| format!("remove {}", self.label(&name)))?;
                continue;
            }
            let content = self.read(&name)?;
            records.push((name, content));
        }
        Ok(records)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let what = || format!("read {}", self.label(name));
        let file = sys::open_at(&self.directory, name.as_bytes(), OFlags::RDONLY, 0).while_doing(what)?;
        let mut content = Vec::new();
        match File::from(file).take(RECORD_LEN_MAX).read_to_end(&mut content) {
            Ok(_) => {}
            // A bad sector, or something that is no file: known, and of no use.
            Err(_) => return Ok(None),
        }
        let Some(len) = content.len().checked_sub(HASH_LEN) else { return Ok(None) };
        let hash: [u8; HASH_LEN] = *blake3::hash(&content[..len]).as_bytes();
        if content[len..] != hash {
            return Ok(None);
        }
        content.truncate(len);
        Ok(Some(content))
    }

    /// Puts a record in the place of the one of this name, or makes it. Afterwards it is the new one, durably.
    ///
    /// # Errors
    /// What writing can fail with; then it is the old one, or, when it was the last step that failed, either.
    pub fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        let staging = format!("{name}{NEW_SUFFIX}");
        let write = || {
            match sys::unlink(&self.directory, staging.as_bytes()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut file = File::from(sys::open_at(&self.directory, staging.as_bytes(), flags, 0o600)?);
            file.write_all(content)?;
            file.write_all(blake3::hash(content).as_bytes())?;
            file.sync_all()?;
            sys::rename_over(&self.directory, staging.as_bytes(), &self.directory, name.as_bytes())?;
            sys::sync(&self.directory)?;
            Ok::<(), std::io::Error>(())
        };
        write().while_doing(|| format!("write {}", self.label(name)))
    }

    /// Removes a record. One that is gone is all the better.
    ///
    /// # Errors
    /// What removing can fail with.
    pub fn remove(&self, name: &str) -> Result<()> {
        match sys::unlink(&self.directory, name.as_bytes()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::io(format!("remove {}", self.label(name)), errno)),
        }
    }
}

impl super::Store {
    /// The records of this server's invites.
    ///
    /// # Errors
    /// `Internal` when the root was not opened for them ([`super::StoreOptions::invites`]); what opening them fails
    /// with.
    pub fn invite_records(&self) -> Result<Records> {
        let missing = || Error::new(ErrorKind::Internal, "this root was not opened for invites");
        let directory = self.inner.state.as_ref().and_then(|state| state.invites.as_ref()).ok_or_else(missing)?;
        let label = format!("{}/{}/{}", self.inner.label, super::STATE_NAME, super::open::INVITES_NAME);
        let handle = directory.try_clone().while_doing(|| format!("open {label}"))?;
        Ok(Records::new(handle, label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(folder: &tempfile::TempDir) -> Records {
        let directory = std::fs::File::open(folder.path()).unwrap();
        Records::new(directory.into(), "here".to_owned())
    }

    #[test]
    fn a_record_is_the_old_or_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let records = records(&folder);
        records.replace("a", b"one").unwrap();
        std::fs::write(folder.path().join("a.new"), "half").unwrap();
        records.replace("a", b"two").unwrap();
        records.replace("b", b"").unwrap();
        std::fs::write(folder.path().join("b.new"), "half").unwrap();
        let mut all = records.read_all().unwrap();
        all.sort();
        assert_eq!(all, [("a".to_owned(), Some(b"two".to_vec())), ("b".to_owned(), Some(Vec::new()))]);
        assert!(!folder.path().join("b.new").exists());
        records.remove("a").unwrap();
        records.remove("a").unwrap();
        assert_eq!(records.read_all().unwrap().len(), 1);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let records = records(&folder);
        records.replace("a", b"some content").unwrap();
        let whole = std::fs::read(folder.path().join("a")).unwrap();
        let check = |bytes: &[u8], what: &str| {
            std::fs::write(folder.path().join("a"), bytes).unwrap();
            assert_eq!(records.read_all().unwrap(), [("a".to_owned(), None)], "{what}");
        };
        for len in 0..whole.len() {
            check(&whole[..len], &format!("cut to {len}"));
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            check(&bytes, &format!("bit {bit}"));
        }
        check(&vec![0; whole.len()], "zeroed");
        check(&[&whole[..], b"x"].concat(), "longer");
    }
}
