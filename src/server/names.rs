//! Files with several names: told in listings, and made when a client says that what it stores is one of them.
//!
//! A name is only given to a file that the client may read, and may replace or has itself stored under the name that
//! it tells; and only when size, time and, where it is recorded, hash are those that it tells. Otherwise the upload
//! goes on as any other, and its content comes.

use std::sync::OnceLock;

use super::convert;
use super::outcomes::Attempt;
use super::quota;
use super::shared::{Pass, Shared, Who};
use crate::access::Action;
use crate::error::{ErrorKind, Result};
use crate::path::RemotePath;
use crate::protocol::{Bytes16, EntryKind, IfExists, Mtime, Outcome, Put, Stored};
use crate::storage::{self, Identity, Listing, Named, StoredFile};

/// What names of one file have in common and tells nobody device or inode: a hash under a key of this process.
/// None for what has one name.
pub(super) fn same(kind: EntryKind, names: u64, identity: Identity) -> Option<Bytes16> {
    if kind != EntryKind::File || names < 2 {
        return None;
    }
    hidden(identity, &[])
}

/// What a directory is known by while its listing goes on, and tells nobody what it is.
pub(super) fn listed(listing: &Listing) -> Option<Bytes16> {
    let (identity, birth) = listing.directory();
    hidden(identity, &birth.to_be_bytes())
}

fn hidden(identity: Identity, more: &[u8]) -> Option<Bytes16> {
    static KEY: OnceLock<Option<[u8; 32]>> = OnceLock::new();
    let key = KEY.get_or_init(|| {
        let mut key = [0; 32];
        // Without random bytes nothing is told, and each name counts as a file of its own.
        getrandom::fill(&mut key).ok().map(|()| key)
    });
    let mut hasher = blake3::Hasher::new_keyed(key.as_ref()?);
    hasher.update(&identity.device.to_be_bytes()).update(&identity.inode.to_be_bytes()).update(more);
    let mut same = [0; 16];
    hasher.finalize_xof().fill(&mut same);
    Some(Bytes16(same))
}

/// Gives what is uploaded its name as a further one of a file that is there. None: content has to come.
pub(super) fn give(
    shared: &Shared,
    who: &Who,
    pass: &Pass,
    put: &Put,
    if_exists: IfExists,
    attempt: &Attempt,
) -> Result<Option<Stored>> {
    let Some(first) = put.same_as.as_ref().filter(|first| **first != put.path) else { return Ok(None) };
    if !pass.may(Action::Read(first)) {
        return Ok(None);
    }
    let Ok(file) = pass.store.open_file(first) else { return Ok(None) };
    if !is_as_told(put, &file) {
        return Ok(None);
    }
    let (root, size) = (file.recorded_root(), file.size());
    let may_be_name = if_exists != IfExists::Rename && pass.may(Action::Read(&put.path));
    if may_be_name && pass.store.confirm_name(&file, &put.path)? {
        return Ok(Some(Stored { outcome: Outcome::Unchanged, root, size, path: None, xattrs_lost: None }));
    }
    // What is there is only left alone when it is the same, and that is looked at by content.
    if matches!(if_exists, IfExists::Skip | IfExists::Fail) && pass.store.stat(&put.path).is_ok() {
        return Ok(None);
    }
    if !may_share(shared, who, pass, first, &file) {
        return Ok(None);
    }
    let upload = quota::Upload { key: Some(attempt.key()), partial: None };
    let (mut reservation, directories) = pass.reserve(upload, &put.path, size, if_exists)?;
    attempt.enter_commit(&put.path)?;
    let mut spending = who.spend(size, Vec::new())?;
    let named = match pass.store.give_name(&file, &put.path, convert::if_exists(if_exists)) {
        Ok(named) => named,
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Exists) => {
            attempt.leave_commit();
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    pass.made(&mut reservation, &put.path, directories);
    Ok(Some(match named {
        Named::Already => Stored { outcome: Outcome::Unchanged, root, size, path: None, xattrs_lost: None },
        Named::New(published) => {
            spending.done(size);
            pass.stored(&published, size);
            let path = (published.path != put.path).then_some(published.path);
            Stored { outcome: Outcome::Stored, root, size, path, xattrs_lost: None }
        }
    }))
}

fn is_as_told(put: &Put, file: &StoredFile) -> bool {
    let is_same_root = match (put.same_root, file.recorded_root()) {
        (Some(told), Some(recorded)) => told == recorded,
        _ => true,
    };
    let mode = |mode: u32| mode & 0o777;
    let is_same_mode = put.mode.is_none_or(|asked| mode(file.mode_for(asked)) == mode(file.mode()));
    // As far as the file system keeps any: what it does not keep is told with the first name.
    let has_xattrs = put.xattrs.as_ref().is_none_or(|wanted| file.has_xattrs(wanted));
    is_same_root
        && is_same_mode
        && has_xattrs
        && put.size == Some(file.size())
        && put.mtime.is_some_and(|told| is_kept_time(told, file.mtime()))
}

/// Whether a file system that was told this time keeps it as that one: some keep whole seconds or microseconds.
fn is_kept_time(told: Mtime, kept: storage::Mtime) -> bool {
    let is_cut = |unit: u32| told.nanos - told.nanos % unit == kept.nanos();
    told.seconds == kept.secs() && [1, 100, 1_000, 1_000_000, 1_000_000_000].into_iter().any(is_cut)
}

/// Whether what is under `first` may get further names: who may replace it may as well, and who has just stored it.
fn may_share(shared: &Shared, who: &Who, pass: &Pass, first: &RemotePath, file: &StoredFile) -> bool {
    pass.may(Action::Overwrite(first))
        || file
            .recorded()
            .is_some_and(|recorded| shared.outcomes.has_stored(&who.principal, &Bytes16(recorded.upload_id), first))
}
