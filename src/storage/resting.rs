//! What resting uploads come to for those who own them: they take disk and places as those that run do.
//!
//! Nothing is kept here: the answers are taken from the table of what rests, so whatever ends an upload ends its
//! share in them too.

use std::sync::atomic::Ordering;

use super::partial::{PartialKey, digits};
use super::{Store, lock, sys};
use crate::path::{Component, RemotePath};

impl Store {
    /// How a path of this store is called below the tree's root. None when that is longer or deeper than a path can
    /// be.
    #[must_use]
    pub fn below_root(&self, path: &RemotePath) -> Option<RemotePath> {
        let all = self.inner.home.iter().chain(path.components());
        all.cloned().try_fold(RemotePath::root(), |path, name| path.join(name).ok())
    }

    /// Changes whenever an upload begins or ceases to rest.
    #[must_use]
    pub fn resting_changes(&self) -> u64 {
        self.inner.partials.changes.load(Ordering::Acquire)
    }

    /// Bytes on disk of the uploads that rest and are to be stored below this place of the tree.
    #[must_use]
    pub fn resting_bytes(&self, home: &[Component]) -> u64 {
        let table = lock(&self.inner.partials.table);
        let below = table.resting.values().filter(|resting| resting.path.components().starts_with(home));
        below.map(|resting| resting.bytes).fold(0, u64::saturating_add)
    }

    /// Bytes on disk of one upload, if it rests.
    #[must_use]
    pub fn resting_size(&self, key: &PartialKey) -> u64 {
        lock(&self.inner.partials.table).resting.get(key).map_or(0, |resting| resting.bytes)
    }

    /// How many uploads of an owner of this name rest, but for some.
    #[must_use]
    pub fn resting_count(&self, owner_name: &str, is_left_out: impl Fn(&PartialKey) -> bool) -> usize {
        let table = lock(&self.inner.partials.table);
        let of_owner = table.resting.iter().filter(|(_, resting)| resting.owner_name == owner_name);
        of_owner.filter(|(key, _)| !is_left_out(key)).count()
    }

    /// Forgets resting uploads that somebody has removed beside this server ([`super::remove_partial`]); tells how
    /// many. Blocks.
    pub fn forget_removed(&self) -> usize {
        let Some(state) = &self.inner.state else { return 0 };
        let keys: Vec<PartialKey> = lock(&self.inner.partials.table).resting.keys().copied().collect();
        let is_gone = |key: &&PartialKey| {
            let status = sys::status_at(&state.partial, digits(key).as_bytes());
            status.is_err_and(|errno| errno == rustix::io::Errno::NOENT)
        };
        let gone: Vec<&PartialKey> = keys.iter().filter(is_gone).collect();
        gone.iter().for_each(|key| self.drop_partial(key));
        gone.len()
    }
}
