//! What this process has read back of unfinished uploads and found right.
//!
//! What is held of an upload is a claim until it was read from the disk and hashed. Over a link that breaks every few
//! seconds, doing that for all of it at each attempt would take longer than the link lasts. So what was proven once
//! stays so, as long as the same process has the upload and nothing has touched the file while it rested: its size and
//! times tell. What has come since is proven anew at the next attempt, and after a restart everything is.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::limits::PROVEN_MAX;
use crate::storage::{PartialKey, Version};

/// Groups that were read back: bits for 64 of them, under the number of the first divided by 64.
#[derive(Clone, Debug, Default)]
pub(super) struct Proven(BTreeMap<u64, u64>);

impl Proven {
    /// A group was read back and is right.
    pub(super) fn insert(&mut self, group: u64) {
        *self.0.entry(group / 64).or_default() |= 1 << (group % 64);
    }

    /// A group is, or will be, another one.
    pub(super) fn remove(&mut self, group: u64) {
        if let Some(bits) = self.0.get_mut(&(group / 64)) {
            *bits &= !(1 << (group % 64));
        }
    }

    /// Whether a group was read back.
    pub(super) fn contains(&self, group: u64) -> bool {
        self.0.get(&(group / 64)).is_some_and(|bits| bits & (1 << (group % 64)) != 0)
    }
}

/// What is proven of the uploads that rest.
#[derive(Default)]
pub(super) struct Resting(Mutex<HashMap<PartialKey, (Version, Proven)>>);

impl Resting {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PartialKey, (Version, Proven)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An upload rests from now on, as this version of its file. When there are too many, others are proven anew.
    pub(super) fn put(&self, key: PartialKey, version: Version, proven: Proven) {
        let mut resting = self.lock();
        if resting.len() >= PROVEN_MAX
            && let Some(&other) = resting.keys().next()
        {
            resting.remove(&other);
        }
        resting.insert(key, (version, proven));
    }

    /// What is proven of an upload that is taken up again, and whose file was found as this version.
    pub(super) fn take(&self, key: &PartialKey, found: Version) -> Proven {
        match self.lock().remove(key) {
            Some((version, proven)) if version == found => proven,
            _ => Proven::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Identity, Mtime};

    fn version(nanos: u32) -> Version {
        let time = Mtime::new(5, nanos).unwrap();
        Version { identity: Identity { device: 1, inode: 2 }, size: 9, mtime: time, ctime: time }
    }

    #[test]
    fn groups_come_and_go() {
        let mut proven = Proven::default();
        for group in [0, 63, 64, 1000] {
            assert!(!proven.contains(group));
            proven.insert(group);
            assert!(proven.contains(group));
        }
        assert!(!proven.contains(1) && !proven.contains(65) && !proven.contains(u64::MAX));
        proven.remove(64);
        proven.remove(70_000);
        assert!(!proven.contains(64) && proven.contains(63));
    }

    #[test]
    fn a_file_that_was_touched_is_proven_anew() {
        let resting = Resting::default();
        let mut proven = Proven::default();
        proven.insert(3);
        resting.put([1; 32], version(0), proven.clone());
        assert!(resting.take(&[1; 32], version(0)).contains(3));
        assert!(!resting.take(&[1; 32], version(0)).contains(3), "taken twice");
        resting.put([1; 32], version(0), proven.clone());
        assert!(!resting.take(&[1; 32], version(1)).contains(3), "touched");
        for key in 0..=PROVEN_MAX {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&key.to_be_bytes());
            resting.put(name, version(0), proven.clone());
        }
        assert_eq!(resting.lock().len(), PROVEN_MAX);
    }
}
