//! Whether the disk may be written to: what broke it, when it is tried again, and whether the root still is what was
//! opened.
//!
//! Invariant: while the store is broken, or its root is not where it was opened, nothing is begun or published and
//! no positive answer is given. It gets well by itself: a trial writes, syncs, renames and removes a file, and syncs
//! the directories. Journaling file systems take no more writes once a write of metadata has failed, so a trial that
//! succeeds shows that what was answered before is not lost; all that was not answered has failed for good.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::{Errno, Result as IoResult, retry_on_intr};
use tokio::time::Instant;

use super::sys::{self, Status};
use super::walk::{Directory, hidden_name};
use super::{Core, Identity, Inner, STATE_NAME, Store, lock};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::STORE_TRIAL_INTERVAL;

/// How long a look at the place of the root is good for where another one follows before the answer.
const PLACE_FRESH: Duration = Duration::from_millis(100);

/// Failed file syncs after which a store takes no more writes before a trial has succeeded.
const SYNC_FAILURES_MAX: u32 = 16;

/// Where a root was opened, and what was there.
pub(super) struct Place {
    path: PathBuf,
    root: Identity,
    state: Identity,
    /// When it was last found to be right.
    checked: Mutex<Option<Instant>>,
}

/// What keeps a store from being written to.
#[derive(Default)]
pub(super) enum Health {
    #[default]
    Well,
    Broken {
        why: String,
        /// When it was last found to be so.
        tried: Instant,
    },
    /// It was opened to be looked at.
    LookOnly,
}

impl Place {
    /// What stands under the path of a root now, which has to be what was opened.
    pub(super) fn of(path: &Path, root: &Directory, reserved: &[Identity], label: &str) -> Result<Place> {
        let path = std::path::absolute(path).while_doing(|| format!("find the place of {label}"))?;
        let state = reserved.first().copied();
        let state = state.ok_or_else(|| Error::new(ErrorKind::Internal, "a served root without a state directory"))?;
        Ok(Place { path, root: root.identity, state, checked: Mutex::default() })
    }

    /// Confirms that the path leads to what was opened: the root itself, and its state directory in it.
    fn check(&self, label: &str) -> Result<()> {
        let identity = |path: &Path| retry_on_intr(|| rustix::fs::stat(path)).map(|stat| Status::from(stat).identity);
        let found = identity(&self.path).and_then(|root| Ok((root, identity(&self.path.join(STATE_NAME))?)));
        match found {
            Ok((root, state)) if root == self.root && state == self.state => {
                *lock(&self.checked) = Some(Instant::now());
                Ok(())
            }
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {
                let message = format!(
                    "what is at {label} is not the directory that the server opened: its volume was unmounted, or it was moved or replaced; \
                     nothing is stored until it is back, or the server is started again"
                );
                Err(Error::new(ErrorKind::Io, message))
            }
            Err(errno) => Err(Error::io(format!("look at the root {label}, to store something in it"), errno)),
        }
    }
}

impl Store {
    /// Whether something could be stored now, as far as that is known without storing it. A store that broke down is
    /// tried again, at most once in [`STORE_TRIAL_INTERVAL`].
    ///
    /// # Errors
    /// Why not: `Io` after a failure of the disk, or when the root is not where it was opened.
    pub fn check(&self) -> Result<()> {
        self.inner.writable()
    }
}

impl Core {
    /// Takes no writes ever.
    pub(super) fn look_only(&mut self) {
        *lock(&self.health) = Health::LookOnly;
    }
}

impl Inner {
    /// Refuses when the root is not in its place any more, or an earlier failure of the disk made writes unsafe.
    pub(super) fn writable(&self) -> Result<()> {
        self.in_place()?;
        self.healthy()
    }

    /// The same for the beginning of a file, which is looked at again when it is published.
    pub(super) fn writable_lately(&self) -> Result<()> {
        let is_fresh = |place: &Place| lock(&place.checked).is_some_and(|checked| checked.elapsed() < PLACE_FRESH);
        if !self.place.as_ref().is_some_and(is_fresh) {
            self.in_place()?;
        }
        self.healthy()
    }

    /// Refuses when the root is not where it was opened.
    pub(super) fn in_place(&self) -> Result<()> {
        self.place.as_ref().map_or(Ok(()), |place| place.check(&self.label))
    }

    fn healthy(&self) -> Result<()> {
        let mut health = lock(&self.health);
        match &mut *health {
            Health::Well => Ok(()),
            Health::LookOnly => {
                Err(Error::new(ErrorKind::Internal, format!("{} was opened to be looked at", self.label)))
            }
            Health::Broken { why, tried } => {
                let refused = |why: &str| {
                    let message =
                        format!("nothing is written to this disk before it works again, which is tried often: {why}");
                    Err(Error::new(ErrorKind::Io, message))
                };
                if tried.elapsed() < STORE_TRIAL_INTERVAL {
                    return refused(why);
                }
                // Others wait at the lock for the result, which is theirs too.
                *tried = Instant::now();
                if let Err(errno) = self.trial() {
                    return refused(&format!("{why}; and now: {errno}"));
                }
                // What was learnt before the failure may not hold.
                drop(self.durable.change());
                self.directories.forget_failures();
                self.sync_failures.store(0, Ordering::Relaxed);
                *health = Health::Well;
                Ok(())
            }
        }
    }

    /// Takes no more writes, for this reason.
    pub(super) fn break_down(&self, why: String) {
        let mut health = lock(&self.health);
        // The first reason stays: later ones follow from it.
        if matches!(*health, Health::Well) {
            *health = Health::Broken { why, tried: Instant::now() };
        }
    }

    /// Takes note of a file that could not be synced.
    pub(super) fn sync_failed(&self, error: Errno) {
        let count = self.sync_failures.fetch_add(1, Ordering::Relaxed) + 1;
        if count >= SYNC_FAILURES_MAX {
            self.break_down(format!("{count} files could not be synced, the last with: {error}"));
        }
    }

    /// Does what storing does, with a file of its own.
    fn trial(&self) -> IoResult<()> {
        let root = self.root_fd();
        let staging = self.state.as_ref().map_or(root, super::State::staging);
        for directory in [staging, root] {
            let (old, new) = (hidden_name()?, hidden_name()?);
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            let file = sys::open_at(directory, old.as_bytes(), flags, 0o600)?;
            let tried = rustix::io::pwrite(&file, b"trial", 0)
                .and_then(|_| sys::sync(&file))
                .and_then(|()| sys::rename_new(directory, old.as_bytes(), directory, new.as_bytes()));
            // It has one name or the other; what cannot be removed fails the trial.
            let removed = match sys::unlink(directory, new.as_bytes()) {
                Err(Errno::NOENT) => sys::unlink(directory, old.as_bytes()),
                removed => removed,
            };
            tried.and(removed)?;
            sys::sync(directory)?;
        }
        Ok(())
    }
}
