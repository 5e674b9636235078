//! What clients have stored themselves, for those who may not read it: the same command again finds the same content,
//! and says so, where otherwise it could only say that the name is taken.
//!
//! A client is known again by its certificate, or by the secret of its own that a client without one sends
//! ([`held::key`]): all who hold one invite are one principal, and must not find out by guessing what another stored.

use std::sync::{Mutex, PoisonError};

use super::held;
use super::recent::Recent;
use super::shared::{Pass, Who};
use crate::access::Action;
use crate::limits::OWN_MAX;
use crate::protocol::{Outcome, Put, Stored};
use crate::storage::{PartialKey, StoredFile};

/// Which upload each client has stored last under which name.
pub(super) struct Own(Mutex<Recent<[u8; 16]>>);

impl Default for Own {
    fn default() -> Own {
        Own(Mutex::new(Recent::new(OWN_MAX)))
    }
}

impl Own {
    /// Takes note of how an upload ended.
    pub(super) fn stored(&self, who: &Who, pass: &Pass, put: &Put, stored: &Stored) {
        if stored.outcome != Outcome::Stored || stored.path.is_some() || pass.may(Action::Read(&put.path)) {
            return;
        }
        if let Some((_, key)) = held::key(&who.principal, put) {
            self.insert(key, put.upload_id.0);
        }
    }

    fn insert(&self, key: PartialKey, upload: [u8; 16]) {
        // Whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, upload);
    }

    /// Whether what has this name is what this client has stored under it, unchanged.
    pub(super) fn is_own(&self, who: &Who, put: &Put, file: &StoredFile) -> bool {
        let Some(recorded) = file.recorded() else { return false };
        held::key(&who.principal, put).is_some_and(|(_, key)| self.has(&key, &recorded.upload_id))
    }

    fn has(&self, key: &PartialKey, upload: &[u8; 16]) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key) == Some(upload)
    }
}
