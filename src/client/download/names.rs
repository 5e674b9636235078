//! Files with several names on the server: the first name is fetched, the others are made from it here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{FileJob, Job, Place, Run, blocking, permit, policy_to_storage, renamed_path};
use crate::client::compare::{is_same_mode, is_same_time};
use crate::client::event::{Event, Outcome};
use crate::client::names::{Lead, Turn};
use crate::error::{ErrorKind, Result};
use crate::hash::Root;
use crate::path::RemotePath;
use crate::protocol::{IfExists, Mtime};
use crate::storage::{self, Named};

/// What a name is among those of its file.
pub(super) enum Role {
    /// The only one that is known.
    Alone,
    /// The first; others wait for it.
    First(Lead<Landed>),
}

/// Where the first name of a file is, durably.
#[derive(Clone)]
pub(super) struct Landed {
    pub(super) place: Place,
    pub(super) root: Option<Root>,
}

impl Role {
    /// The file is there, perhaps under another name than was asked for.
    pub(super) fn is_there(&self, place: &Place, renamed: Option<&RemotePath>, root: Root) {
        if let Role::First(lead) = self {
            let path = renamed.unwrap_or(&place.path).clone();
            lead.is_there(Landed { place: Place { path, ..place.clone() }, root: Some(root) });
        }
    }
}

impl Run {
    /// Makes the further names that wait, once the first ones are here.
    pub(super) async fn get_names(&mut self) -> Result<()> {
        self.send_batch().await?;
        while self.names.waiting() > 0 && self.job.client.check_alive().is_ok() {
            self.drain().await?;
            for (mut file, turn) in self.names.take() {
                let permit = permit(&self.large).await?;
                let job = Arc::clone(&self.job);
                self.tasks.spawn(async move {
                    match turn {
                        Turn::First(lead) => {
                            file.role = Role::First(lead);
                            job.get_file(file).await;
                        }
                        Turn::Further(landed) => job.get_name(file, landed).await,
                    }
                    drop(permit);
                });
                self.reap()?;
            }
        }
        Ok(())
    }
}

impl Job {
    /// Makes a further name of a file that is here; where that cannot be, it becomes a file of its own.
    async fn get_name(&self, file: FileJob, landed: Landed) {
        let (place, policy, (mode, mtime), size) = (file.place.clone(), self.if_exists, file.metadata, file.size);
        let root = landed.root;
        let named = self.saving(blocking(move || make_name(&place, &landed, policy, size, mode, mtime))).await;
        match named {
            Ok(Some((outcome, renamed))) => self.tell_done(file.item, file.size, root, outcome, renamed).await,
            // What stands against it is found again, and told, when the file is saved.
            Ok(None) | Err(_) => {
                self.part();
                self.get_file(file).await;
            }
        }
    }

    /// A name of a file with several is fetched as a file of its own.
    pub(super) fn part(&self) {
        self.parted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) async fn tell_parted(&self) {
        let count = self.parted.load(Ordering::Relaxed);
        if count > 0 && self.client.check_alive().is_ok() {
            let text = format!(
                "hard links: {count} of the names that share a file there are files of their own here, because the \
                 file system cannot link them, or because they changed meanwhile"
            );
            self.client.events().tell(Event::Warning(text)).await;
        }
    }
}

/// Gives the file that was fetched under its first name a further one. None: it is not what it should be, or
/// something is there that must not be replaced. Blocks.
fn make_name(
    place: &Place,
    landed: &Landed,
    policy: IfExists,
    size: u64,
    mode: u32,
    mtime: Mtime,
) -> Result<Option<(Outcome, Option<Vec<u8>>)>> {
    let first = landed.place.store.open_file(&landed.place.path)?;
    let kept = first.mtime();
    let is_same = first.size() == size
        && is_same_time(mtime, Mtime { seconds: kept.secs(), nanos: kept.nanos() })
        && is_same_mode(mode, first.mode(), landed.place.store.file_mode())
        && !matches!((landed.root, first.recorded_root()), (Some(root), Some(recorded)) if root != recorded);
    if !is_same || matches!(policy, IfExists::Skip | IfExists::Fail) && place.store.stat(&place.path).is_ok() {
        return Ok(None);
    }
    match place.store.give_name(&first, &place.path, policy_to_storage(policy)) {
        Ok(Named::Already) => Ok(Some((Outcome::Unchanged, None))),
        Ok(Named::New(published)) if published.outcome == storage::Outcome::Renamed => {
            Ok(Some((Outcome::Renamed, Some(renamed_path(place, &published.path)))))
        }
        Ok(Named::New(_)) => Ok(Some((Outcome::Linked, None))),
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Exists) => Ok(None),
        Err(error) => Err(error),
    }
}
