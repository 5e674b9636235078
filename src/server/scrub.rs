//! Looking through a root for what rotted: every file is read from the disk and compared with its record, no faster
//! than was asked for, and whatever is not in order is told.
//!
//! It only reads, and needs no server; beside one it looks again at what that changes meanwhile. It blocks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::buffer::{Buffer, Pool};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{GROUP_LEN, PATH_DEPTH_MAX};
use crate::path::{Component, Escaped, RemotePath};
use crate::storage::{Condition, Kind, Listing, Store};

/// Looks at a file that somebody writes to meanwhile, before it counts as unreadable.
const LOOKS_MAX: u32 = 5;
/// How long what was asked to stop may go on waiting.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// What is looked through, and how fast.
#[derive(Clone, Debug)]
pub struct ScrubOptions {
    /// A file or directory; the root is everything.
    pub below: RemotePath,
    /// Bytes a second that are read at most; 0 is without a bound.
    pub rate: u64,
}

/// What is told while a root is looked through.
#[derive(Debug)]
pub enum Told {
    /// So many more bytes were read.
    Read(u64),
    /// A file, its size, and what it is. It was read twice when it was not right at once.
    File {
        /// Its name below the root.
        path: RemotePath,
        /// Bytes in it.
        size: u64,
        /// What it is.
        condition: Condition,
        /// The first reading found another content than the second, which was right.
        was_misread: bool,
    },
    /// Something that could not be looked at.
    Failed {
        /// Its name below the root.
        path: RemotePath,
        /// Why.
        error: Error,
    },
}

/// Looks at a file, or at every file in a directory, until there is no more or `stop` is set. Links and special
/// files are passed over. Memory does not grow with their number.
///
/// # Errors
/// When what was asked for is not there. All else is told.
pub fn scrub(store: &Store, options: &ScrubOptions, stop: &AtomicBool, tell: &mut dyn FnMut(Told)) -> Result<()> {
    let pool = Pool::new(GROUP_LEN);
    let Some(buffer) = pool.try_lease(GROUP_LEN) else {
        return Err(Error::new(ErrorKind::Internal, "a pool of one group has none"));
    };
    let mut scrub = Scrub { store, stop, tell, buffer, pace: Pace::new(options.rate) };
    match store.stat(&options.below)?.kind {
        Kind::Directory => scrub.directory(&options.below),
        Kind::File => scrub.file(options.below.clone()),
        kind @ (Kind::Link | Kind::Special) => {
            return Err(Error::new(ErrorKind::Special, format!("{} is {kind}", options.below)));
        }
    }
    Ok(())
}

struct Scrub<'a> {
    store: &'a Store,
    stop: &'a AtomicBool,
    tell: &'a mut dyn FnMut(Told),
    buffer: Buffer,
    pace: Pace,
}

impl Scrub<'_> {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn directory(&mut self, top: &RemotePath) {
        // An open listing a level, instead of all names of a tree.
        let mut levels: Vec<(RemotePath, Listing)> = Vec::new();
        self.enter(top.clone(), &mut levels);
        while let Some((directory, listing)) = levels.last_mut()
            && !self.stop.load(Ordering::Relaxed)
        {
            let directory = directory.clone();
            match listing.next() {
                None => drop(levels.pop()),
                Some(Err(error)) => (self.tell)(Told::Failed { path: directory, error }),
                Some(Ok(entry)) => match Component::new(&entry.name).and_then(|name| directory.join(name)) {
                    Err(error) => {
                        let message = format!("{} cannot be looked at: {error}", Escaped(&entry.name));
                        (self.tell)(Told::Failed { path: directory, error: Error::new(ErrorKind::Name, message) });
                    }
                    Ok(path) if entry.kind == Kind::Directory => self.enter(path, &mut levels),
                    Ok(path) if entry.kind == Kind::File => self.file(path),
                    Ok(_) => {}
                },
            }
        }
    }

    fn enter(&mut self, path: RemotePath, levels: &mut Vec<(RemotePath, Listing)>) {
        assert!(levels.len() <= PATH_DEPTH_MAX, "a path is no deeper");
        match self.store.list(&path, None) {
            Ok(listing) => levels.push((path, listing)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => (self.tell)(Told::Failed { path, error }),
        }
    }

    fn file(&mut self, path: RemotePath) {
        let mut looks = 0;
        let mut first = None;
        let told = loop {
            looks += 1;
            match self.look(&path) {
                Err(_) if self.is_stopped() => return,
                // It has gone, or something else has its name, since it was listed.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Link) => return,
                Err(error) if error.kind() == ErrorKind::Changed && looks < LOOKS_MAX => {}
                Err(error) => break Told::Failed { path, error },
                // A server may be about to write the record of a new time; and a disk may read wrongly once.
                Ok((condition @ (Condition::Rotten { .. } | Condition::Changed), _)) if first.is_none() => {
                    first = Some(condition);
                }
                Ok((condition, size)) => {
                    let is_right = matches!(condition, Condition::Intact | Condition::Touched);
                    let was_misread = is_right && matches!(first, Some(Condition::Rotten { .. }));
                    break Told::File { path, size, condition, was_misread };
                }
            }
        };
        (self.tell)(told);
    }

    fn look(&mut self, path: &RemotePath) -> Result<(Condition, u64)> {
        let Scrub { store, stop, tell, buffer, pace } = self;
        store.examine(path, buffer, &mut |len| {
            (tell)(Told::Read(len as u64));
            pace.wait(len as u64, stop)
        })
    }
}

/// Keeps the reading below a rate.
struct Pace {
    rate: u64,
    begun: Instant,
    bytes: u64,
}

impl Pace {
    fn new(rate: u64) -> Pace {
        Pace { rate, begun: Instant::now(), bytes: 0 }
    }

    /// When the next `len` bytes may be read, from the beginning.
    fn due(&self) -> Duration {
        Duration::try_from_secs_f64(self.bytes as f64 / self.rate as f64).unwrap_or(Duration::MAX)
    }

    /// Waits until the next bytes may be read; an error when it is to stop.
    fn wait(&mut self, len: u64, stop: &AtomicBool) -> Result<()> {
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Interrupted, "stopped"));
            }
            let elapsed = self.begun.elapsed();
            let due = if self.rate == 0 { Duration::ZERO } else { self.due() };
            if elapsed >= due {
                if elapsed - due > Duration::from_secs(1) {
                    // A disk that was slow for a while is not made up for.
                    (self.begun, self.bytes) = (Instant::now(), 0);
                }
                self.bytes = self.bytes.saturating_add(len);
                return Ok(());
            }
            thread::sleep((due - elapsed).min(WAIT_MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept() {
        let stop = AtomicBool::new(false);
        let mut pace = Pace::new(1 << 20);
        let begun = Instant::now();
        for _ in 0..5 {
            pace.wait(64 << 10, &stop).unwrap();
        }
        // The first goes at once, each further one waits for those before it.
        assert!(begun.elapsed() >= Duration::from_millis(4 * 62), "{:?}", begun.elapsed());
        stop.store(true, Ordering::Relaxed);
        assert!(pace.wait(1, &stop).is_err());
        let mut free = Pace::new(0);
        stop.store(false, Ordering::Relaxed);
        for _ in 0..1000 {
            free.wait(1 << 40, &stop).unwrap();
        }
    }
}
