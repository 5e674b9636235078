//! What is here already under the name of a file that is to be fetched.

use std::os::unix::ffi::OsStrExt;

use super::{FileJob, Job, Place, blocking, mtime_to_storage};
use crate::client::xattrs::digest_of;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, Root, Tree, group_count, group_len, group_offset};
use crate::path::Escaped;
use crate::protocol::{IfExists, Mtime};
use crate::storage::{self, StoredFile};
use crate::xattrs::Xattrs;

/// What is here under the name of a file that is to be fetched.
pub(super) enum Here {
    /// Nothing that matters: it is fetched.
    Free,
    /// A file of the same size, which may be the same.
    SameSize(StoredFile),
    /// Something else, which the policy leaves alone.
    Kept,
    /// Something else, which must not be replaced.
    Refused(Error),
}

/// Looks at what is here; the directory of the file before is open still. Blocks.
pub(super) fn look(place: &Place, size: u64, policy: IfExists, parents: &mut storage::Parents) -> Here {
    if policy == IfExists::Rename {
        return Here::Free;
    }
    if policy == IfExists::Overwrite {
        place.store.bring_back(&place.path);
    }
    if parents.lacks(&place.store, &place.path) {
        return Here::Free;
    }
    let entry = match place.store.stat(&place.path) {
        Ok(entry) => entry,
        // What is wrong with the way there is found again, and told, when the file is begun.
        Err(_) => return Here::Free,
    };
    match (entry.kind, policy) {
        (storage::Kind::File, _) if entry.size == size => match place.store.open_file(&place.path) {
            Ok(file) => Here::SameSize(file),
            Err(_) => differing(place, policy),
        },
        (storage::Kind::File | storage::Kind::Link, _) => differing(place, policy),
        (storage::Kind::Directory | storage::Kind::Special, _) => Here::Free,
    }
}

/// What becomes of something else that is here.
fn differing(place: &Place, policy: IfExists) -> Here {
    match policy {
        IfExists::Skip => Here::Kept,
        IfExists::Fail => {
            let shown = Escaped(place.shown.as_os_str().as_bytes());
            Here::Refused(Error::new(ErrorKind::Exists, format!("`{shown}` exists here and must not be replaced")))
        }
        IfExists::Overwrite | IfExists::Rename => Here::Free,
    }
}

/// The root of a file that is here. Blocks.
fn hash_file(file: &StoredFile) -> Result<Root> {
    let size = file.size();
    let mut tree = Tree::new();
    let mut buffer = vec![0; group_len(size, 0)];
    for index in 0..group_count(size) {
        let len = group_len(size, index);
        let Some(content) = buffer.get_mut(..len) else { break };
        file.read_at(group_offset(index), content)?;
        tree.insert(index, GroupHash::of(index, content));
    }
    file.check_unchanged()?;
    tree.root(size).ok_or_else(|| Error::new(ErrorKind::Internal, "a file's hash is incomplete"))
}

/// Makes a file durable that is the same as the server's and has this root, with the server's time and mode. Blocks.
fn keep(
    place: &Place,
    mut file: StoredFile,
    (mode, mtime): (u32, Mtime),
    xattrs: Option<&Xattrs>,
    root: Root,
) -> Result<Option<ErrorKind>> {
    let xattrs_lost = file.set_metadata(Some(mode & 0o7777), mtime_to_storage(mtime), xattrs)?;
    file.record_anew(root)?;
    file.sync()?;
    place.store.sync_existing(&file, &place.path)?;
    Ok(xattrs_lost)
}

/// How a comparison ended.
pub(super) enum Compared {
    Same(Root),
    Other(Here),
}

impl Job {
    /// Compares a local file of the same size with the server's hash, and makes it durable when it is the same.
    pub(super) async fn compare(
        &self,
        file: &FileJob,
        local: StoredFile,
        theirs: Root,
        size: u64,
        told: Option<&Xattrs>,
    ) -> Result<Compared> {
        let (place, policy, (mode, mtime)) = (file.place.clone(), self.if_exists, file.metadata);
        let (compared, local) = blocking(move || {
            let is_same = local.size() == size && hash_file(&local)? == theirs;
            Ok((if is_same { None } else { Some(differing(&place, policy)) }, local))
        })
        .await?;
        if let Some(other) = compared {
            return Ok(Compared::Other(other));
        }
        let xattrs = match told {
            Some(told) => Some(told.clone()),
            None => self.xattrs_of(file, &local).await?,
        };
        let place = file.place.clone();
        let lost = blocking(move || {
            match keep(&place, local, (mode, mtime), xattrs.as_ref(), theirs) {
                // It has other names, whose metadata must stay: it is saved anew.
                Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Err(differing(&place, policy))),
                kept => kept.map(Ok),
            }
        })
        .await?;
        match lost {
            Ok(lost) => {
                lost.into_iter().for_each(|why| self.xattrs_lost.add(why));
                Ok(Compared::Same(theirs))
            }
            Err(other) => Ok(Compared::Other(other)),
        }
    }

    /// The extended attributes that a file which is here already shall have: asked for where they are not those that it
    /// has. None when they are not moved.
    async fn xattrs_of(&self, file: &FileJob, local: &StoredFile) -> Result<Option<Xattrs>> {
        if !self.xattrs {
            return Ok(None);
        }
        if let Ok(here) = local.xattrs()
            && file.xattrs_digest == Some(digest_of(&here))
        {
            return Ok(Some(here));
        }
        Ok(Some(self.client.stat_with_xattrs(&file.remote).await?.1))
    }
}
