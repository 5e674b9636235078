//! Directories: made fillable while files go into them, given their mode and time when the last is done.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use super::{Directory, Job, panicked};
use crate::client::compare::sent_mode;
use crate::client::event::{Event, ItemKind, Outcome};
use crate::error::{ErrorKind, Result};
use crate::path::RemotePath;
use crate::protocol::{MakeDirectory, SetDirectory};

/// What the owner of a directory needs to put something into it.
pub(super) const FILLABLE: u32 = 0o300;

pub(super) fn directory_event(directory: &Directory, outcome: Outcome) -> Event {
    let (name, kind) = (directory.name.clone(), ItemKind::Directory);
    Event::Done { item: 0, name, kind, size: 0, root: None, outcome, renamed_to: None }
}

impl Job {
    /// Sets the mode and time of a directory that is filled, then lets go of the one that it is in.
    pub(super) async fn settle_directory(
        self: Arc<Job>,
        directory: Directory,
        is_empty: bool,
        permit: OwnedSemaphorePermit,
    ) {
        self.settle(directory, is_empty).await;
        drop(permit);
    }

    pub(super) async fn settle(&self, directory: Directory, is_empty: bool) {
        let mut next = Some((directory, is_empty));
        while let Some((directory, is_empty)) = next.take() {
            let event = match self.set_directory(&directory, is_empty).await {
                Ok(()) => directory_event(&directory, Outcome::Stored),
                Err(error) => Event::Failed { item: None, name: directory.name.clone(), error },
            };
            if self.client.check_alive().is_ok() {
                self.client.events().tell(event).await;
            }
            next = directory.parent.and_then(Arc::into_inner).map(|parent| (parent, false));
        }
    }

    async fn set_directory(&self, directory: &Directory, is_empty: bool) -> Result<()> {
        if directory.target.is_root() {
            return Ok(());
        }
        let make = MakeDirectory { path: directory.target.clone() };
        let xattrs = match self.xattrs {
            true => {
                let source = directory.source.clone();
                Some(spawn_blocking(move || source.directory_xattrs()).await.map_err(panicked)??)
            }
            false => None,
        };
        let has_xattrs = xattrs.as_ref().is_some_and(|xattrs| !xattrs.is_empty());
        let set = SetDirectory {
            path: directory.target.clone(),
            mode: Some(sent_mode(directory.attributes.mode, self.special_modes)),
            mtime: Some(directory.attributes.mtime),
            xattrs,
        };
        if is_empty {
            self.done(&make).await?;
        }
        let done = match self.done(&set).await {
            // None of its files could be stored, so nothing has made it.
            Err(error) if error.kind() == ErrorKind::NotFound && !is_empty => {
                self.done(&make).await?;
                self.done(&set).await
            }
            result => result,
        }?;
        match done.count {
            // Who may not replace leaves a directory as it is that was there.
            0 if has_xattrs => self.xattrs_lost.add(ErrorKind::Rights),
            _ => self.xattrs_lost.add_code(done.xattrs_lost),
        }
        Ok(())
    }

    /// Makes sure that a directory which its owner may not write to can be filled until it gets its final mode: an
    /// earlier run may have given it that already.
    pub(super) async fn make_fillable(&self, target: &RemotePath, mode: u32) {
        let make = MakeDirectory { path: target.clone() };
        let set = SetDirectory {
            path: target.clone(),
            mode: Some(sent_mode(mode, self.special_modes) | 0o700),
            mtime: None,
            xattrs: None,
        };
        if !target.is_root() && self.done(&make).await.is_ok() {
            // If it cannot be filled, its files say so, each by its name.
            let _ = self.done(&set).await;
        }
    }

    /// A file's task is over: the last one in a directory settles it.
    pub(super) async fn let_go(&self, directory: Option<Arc<Directory>>) {
        if let Some(directory) = directory.and_then(Arc::into_inner) {
            self.settle(directory, false).await;
        }
    }
}
