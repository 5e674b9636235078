//! A file that is only ever added to, by one process: the audit log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// Bytes of the end of a file that are looked at for its last line: more than any one batch of lines that a crash tears.
const TAIL_LEN_MAX: u64 = 64 << 20;

/// A file open for adding. What is added is there whole, or not at all.
#[derive(Debug)]
pub struct Append {
    path: PathBuf,
    file: File,
    len: u64,
    /// How much of it is known to be durable.
    durable: u64,
    /// What was taken from its end, to be added again.
    again: Vec<u8>,
    /// The end may hold a part of what could not be added.
    is_dirty: bool,
}

/// How a file of lines ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// The last whole line, without its end.
    pub line: Option<Vec<u8>>,
    /// What stands behind it: a line that a crash tore.
    pub torn: Vec<u8>,
}

impl Append {
    /// Opens a file, made (0600) if it is missing, which no other process may have open so; and tells how it ends.
    ///
    /// # Errors
    /// `Usage` when another process has it, or its end holds no lines; what opening and reading can fail with.
    pub fn open(path: &Path) -> Result<(Append, Tail)> {
        let what = || format!("open {}", path.display());
        let mut file = open(path).while_doing(what)?;
        lock(&file, path)?;
        let len = file.metadata().while_doing(what)?.len();
        let from = len.saturating_sub(TAIL_LEN_MAX);
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut end)).while_doing(what)?;
        let lines: Vec<&[u8]> = end.split(|&byte| byte == b'\n').collect();
        let tail = match lines.as_slice() {
            [] | [_] if from > 0 => {
                let message = format!("{} holds no lines: it is not an audit log", path.display());
                return Err(Error::new(ErrorKind::Usage, message));
            }
            [.., line, torn] => Tail { line: Some(line.to_vec()), torn: torn.to_vec() },
            [torn] => Tail { line: None, torn: torn.to_vec() },
            [] => Tail::default(),
        };
        Ok((Append { path: path.to_path_buf(), file, len, durable: len, again: Vec::new(), is_dirty: false }, tail))
    }

    /// Adds bytes. After a failure nothing of them is there, now or before the next that is added.
    ///
    /// # Errors
    /// What writing can fail with.
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.again.is_empty() {
            return Err(io::Error::other("what was added before is not durable"));
        }
        if self.is_dirty {
            self.file.set_len(self.len)?;
            self.is_dirty = false;
        }
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.len += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // If this fails too, it is tried before the next.
                self.is_dirty = self.file.set_len(self.len).is_err();
                Err(error)
            }
        }
    }

    /// Makes what was added durable.
    ///
    /// # Errors
    /// What syncing can fail with.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.durable = self.len;
        Ok(())
    }

    /// A handle to sync it by, without holding up who adds; what it made durable is told to [`Append::made_durable`].
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The file of this handle was durable up to here.
    pub fn made_durable(&mut self, handle: &File, len: u64) {
        let identity = |file: &File| file.metadata().map(|status| (status.dev(), status.ino())).ok();
        // It may be another file by now.
        if identity(&self.file) == identity(handle) {
            self.durable = self.durable.max(len.min(self.len));
        }
    }

    /// Adds what is not known to be durable once more, in its place. After a sync that failed the system holds what was
    /// written for clean, whether or not the disk has it, and the next sync would say that all is well (fsync(2)).
    ///
    /// # Errors
    /// What reading and writing can fail with. Until it has been called with success nothing else can be added.
    pub fn add_again(&mut self) -> io::Result<()> {
        if self.again.is_empty() {
            let len = usize::try_from(self.len - self.durable).map_err(|_| io::ErrorKind::FileTooLarge)?;
            let mut bytes = vec![0; len];
            self.file.read_exact_at(&mut bytes, self.durable)?;
            (self.again, self.len, self.is_dirty) = (bytes, self.durable, true);
        }
        let again = std::mem::take(&mut self.again);
        let added = self.add(&again);
        if added.is_err() {
            self.again = again;
        }
        added
    }

    /// How long it is.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Goes on in a new file of the same name; the old one gets this ending, unless somebody has moved it away already.
    ///
    /// # Errors
    /// What renaming, making and syncing can fail with; then the old one goes on.
    pub fn turn_over(&mut self, ending: &str) -> Result<()> {
        let shown = self.path.display().to_string();
        let what = || format!("begin a new file after {shown}");
        self.sync().while_doing(what)?;
        let ours = self.file.metadata().while_doing(what)?;
        let is_ours = |there: &std::fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if std::fs::symlink_metadata(&self.path).is_ok_and(|there| is_ours(&there)) {
            let mut old = self.path.clone().into_os_string();
            old.push(ending);
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                &self.path,
                rustix::fs::CWD,
                PathBuf::from(old),
                rustix::fs::RenameFlags::NOREPLACE,
            )
            .while_doing(what)?;
        }
        let file = open(&self.path).while_doing(what)?;
        lock(&file, &self.path)?;
        let len = file.metadata().while_doing(what)?.len();
        (self.file, self.len, self.durable, self.is_dirty) = (file, len, len, false);
        self.sync_directory().while_doing(what)
    }

    /// Makes its name durable.
    ///
    /// # Errors
    /// What syncing can fail with.
    pub fn sync_directory(&self) -> io::Result<()> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

fn lock(file: &File, path: &Path) -> Result<()> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
        let message = format!("{} is being written by another process", path.display());
        Error::new(ErrorKind::Usage, message).with_source(io::Error::from(errno))
    })
}

#[cfg(test)]
impl Append {
    /// Puts another file in the place of its own, for tests of files that fail.
    pub(crate) fn swap(&mut self, other: File) -> File {
        std::mem::replace(&mut self.file, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_file_is_told_with_what_a_crash_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let tail = |line: Option<&str>, torn: &str| Tail {
            line: line.map(|line| line.as_bytes().to_vec()),
            torn: torn.as_bytes().to_vec(),
        };
        for (content, expected) in [
            ("", tail(None, "")),
            ("to", tail(None, "to")),
            ("one\n", tail(Some("one"), "")),
            ("one\ntwo\n", tail(Some("two"), "")),
            ("one\ntwo\nto", tail(Some("two"), "to")),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(Append::open(&path).unwrap().1, expected, "{content:?}");
        }
    }

    #[test]
    fn what_a_failed_sync_may_have_lost_is_added_again_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (mut append, _) = Append::open(&path).unwrap();
        append.add(b"one\n").unwrap();
        let handle = append.handle().unwrap();
        append.made_durable(&handle, append.size());
        append.add(b"two\n").unwrap();
        append.add_again().unwrap();
        assert_eq!((append.size(), append.durable), (8, 4));
        // It can be read, and not be written.
        let whole = append.swap(File::open(&path).unwrap());
        assert!(append.add_again().is_err() && append.add(b"three\n").is_err() && append.add_again().is_err());
        append.swap(whole);
        assert!(append.add(b"three\n").is_err(), "it would stand before what was there");
        append.add_again().unwrap();
        append.add(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
        // Of another file nothing is known.
        append.turn_over(".1").unwrap();
        append.add(b"four\n").unwrap();
        append.made_durable(&handle, 5);
        assert_eq!(append.durable, 0);
        let handle = append.handle().unwrap();
        append.made_durable(&handle, 5);
        assert_eq!(append.durable, 5);
    }

    #[test]
    fn one_process_adds_and_a_file_that_was_moved_away_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (mut append, _) = Append::open(&path).unwrap();
        assert_eq!(Append::open(&path).unwrap_err().kind(), ErrorKind::Usage);
        append.add(b"one\n").unwrap();
        append.turn_over(".1").unwrap();
        append.add(b"two\n").unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        append.turn_over(".2").unwrap();
        append.add(b"three\n").unwrap();
        assert_eq!(append.size(), 6);
        for (name, content) in [("log.1", "one\n"), ("moved", "two\n"), ("log", "three\n")] {
            assert_eq!(std::fs::read_to_string(folder.path().join(name)).unwrap(), content);
        }
        assert!(!folder.path().join("log.2").exists());
    }
}
