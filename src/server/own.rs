//! What clients have stored themselves, for those who may not read it: the same command again finds the same content,
//! and says so, where otherwise it could only say that the name is taken.
//!
//! A client is known again by its certificate, or by the secret of its own that a client without one sends
//! ([`held::key`]): all who hold one invite are one principal, and must not find out by guessing what another stored.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::held;
use super::shared::Who;
use crate::limits::OWN_MAX;
use crate::protocol::{Outcome, Put, Stored};
use crate::storage::{PartialKey, StoredFile};

/// Which upload each client has stored last under which name.
#[derive(Default)]
pub(super) struct Own(Mutex<Table>);

#[derive(Default)]
struct Table {
    uploads: HashMap<PartialKey, [u8; 16]>,
    /// Oldest first.
    order: VecDeque<PartialKey>,
}

impl Own {
    /// Takes note of how an upload ended.
    pub(super) fn stored(&self, who: &Who, put: &Put, stored: &Stored) {
        if stored.outcome != Outcome::Stored || stored.path.is_some() {
            return;
        }
        if let Some((_, key)) = held::key(&who.principal, put) {
            self.insert(key, put.upload_id.0, OWN_MAX);
        }
    }

    fn insert(&self, key: PartialKey, upload: [u8; 16], max: usize) {
        // Whole between any two statements.
        let table = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.uploads.insert(key, upload).is_none() {
            table.order.push_back(key);
        }
        if table.order.len() > max
            && let Some(oldest) = table.order.pop_front()
        {
            table.uploads.remove(&oldest);
        }
    }

    /// Whether what has this name is what this client has stored under it, unchanged.
    pub(super) fn is_own(&self, who: &Who, put: &Put, file: &StoredFile) -> bool {
        let Some(recorded) = file.recorded() else { return false };
        held::key(&who.principal, put).is_some_and(|(_, key)| self.has(&key, &recorded.upload_id))
    }

    fn has(&self, key: &PartialKey, upload: &[u8; 16]) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).uploads.get(key) == Some(upload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_counts_and_the_oldest_is_forgotten() {
        let own = Own::default();
        for number in 0..5_u8 {
            own.insert([number; 32], [number; 16], 3);
        }
        own.insert([4; 32], [9; 16], 3);
        let known: Vec<u8> = (0..5).filter(|&number| own.has(&[number; 32], &[number; 16])).collect();
        assert_eq!(known, [2, 3]);
        assert!(own.has(&[4; 32], &[9; 16]));
    }
}
