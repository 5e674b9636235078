//! A file that is asked for before it is known to be one.
//!
//! What stands under a name is told by a `Stat`, and a file is opened by a `Get`: over a long link, two round trips.
//! Where one name is to be fetched, and nothing but the server's answer can say that it is not to be, both leave at once.
//! What the `Stat` tells still decides what is done and said; where that is not to take the file, the opened exchange is
//! dropped, which ends it on the server, and whatever it failed with is of no concern.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{GetOptions, Job, blocking};
use crate::client::ahead::LANES_FROM;
use crate::client::keep;
use crate::client::plan::{self, GetItem, GetTarget};
use crate::client::session::Exchange;
use crate::error::Result;
use crate::limits::{NEAR_ROUND_TRIP, UNASKED_FILE_MAX};
use crate::path::{Component, RemotePath};
use crate::protocol::{Get, Stat};
use crate::storage;

/// What stands under the name that a download goes to, links followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    File(u64),
    Directory,
}

impl Existing {
    fn of(there: &Metadata) -> Existing {
        if there.is_dir() { Existing::Directory } else { Existing::File(there.len()) }
    }

    /// What it is to a plan.
    pub(super) fn kind(self) -> plan::Kind {
        match self {
            Existing::File(_) => plan::Kind::File,
            Existing::Directory => plan::Kind::Directory,
        }
    }

    /// Looks. Nothing that can be looked at is nothing.
    pub(super) async fn at(target: &Path) -> Result<Option<Existing>> {
        let target = target.to_path_buf();
        blocking(move || Ok(target.metadata().ok().as_ref().map(Existing::of))).await
    }
}

/// How much may come of a file without being asked for, if it is opened early at all.
///
/// A small file comes whole with its answer: where something is here that may be the same, it is not asked for before
/// that was looked at, so that nothing comes twice.
fn unasked_max(existing: Option<Existing>) -> Option<u64> {
    match existing {
        None => Some(UNASKED_FILE_MAX),
        Some(Existing::File(len)) if len > UNASKED_FILE_MAX => Some(0),
        Some(Existing::File(_) | Existing::Directory) => None,
    }
}

/// How large a file may be whose first group shall come with the answer, if any. That group is sure to be wanted where
/// nothing is here of the file: neither a version of it, nor what another run has left of it. And a file that is fetched
/// over several connections is not to have a whole group on the first, which would end last then. Blocks.
fn first_max(server: &str, source: &RemotePath, target: &Path, existing: Option<Existing>) -> Option<u64> {
    if existing.is_some() {
        return None;
    }
    let name = Component::new(target.file_name()?.as_bytes()).ok()?;
    let key = keep::key(server, source, &RemotePath::root().join(name).ok()?);
    let kept = target.with_file_name(storage::kept_name(&key));
    let is_none = kept.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    is_none.then_some(LANES_FROM - 1)
}

/// What the download of the only item that is named begins with: the file itself, and what stands there.
pub(in crate::client) fn first_gets(item: &GetItem, options: &GetOptions, server: &str) -> (Option<Get>, Option<Stat>) {
    let path = &item.source;
    let get = |unasked_max, first_max| {
        let path = path.clone();
        Get { path, unasked_max, finish_ahead: Some(true), first_max, xattrs: None }
    };
    match &item.target {
        GetTarget::Stream => (Some(get(0, (!options.dry_run).then_some(u64::MAX))), None),
        GetTarget::Local(target) => {
            let stat = Stat { path: path.clone(), xattrs: None };
            let existing = target.metadata().ok().as_ref().map(Existing::of);
            // What attributes cost is asked of a server that is known to have them.
            let is_plain = !options.dry_run && options.filter.is_empty() && !options.xattrs;
            let get = |unasked_max| get(unasked_max, first_max(server, path, target, existing));
            (unasked_max(existing).filter(|_| is_plain).map(get), Some(stat))
        }
    }
}

impl Job {
    /// Opens the only file that is to be fetched, where that saves a round trip. Over an invite it does not: there, what
    /// was handed out counts, taken or not.
    ///
    /// # Errors
    /// When a task of ours panicked.
    pub(super) async fn open_early(
        &self,
        source: &RemotePath,
        target: &Path,
        existing: Option<Existing>,
    ) -> Result<Option<Exchange>> {
        if self.dry_run || !self.filter.is_empty() || self.client.redeems_invite() {
            return Ok(None);
        }
        // Should there be none, or should it break, the request that comes next meets that too, and knows what to do.
        let Ok(session) = self.session().await else { return Ok(None) };
        let get = match unasked_max(existing) {
            None => None,
            Some(unasked_max) => {
                let (server, path) = (self.client.server_name().to_owned(), source.clone());
                let target = target.to_path_buf();
                let first_max = blocking(move || Ok(first_max(&server, &path, &target, existing))).await?;
                Some(Get { first_max, ..self.get_message(source, unasked_max) })
            }
        };
        if let Some(asked) = get.as_ref().and_then(|get| session.claim(get)) {
            return Ok(Some(asked));
        }
        // What is here is not what it was when that was asked.
        session.give_up_gets();
        let Some(get) = get.filter(|_| session.round_trip() >= NEAR_ROUND_TRIP) else { return Ok(None) };
        Ok(session.open_get(&get).await.ok())
    }
}
