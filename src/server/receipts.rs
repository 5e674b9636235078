//! Receipts for what was stored: a statement over the server's signature, for clients that asked in their hello.

use std::time::SystemTime;

use super::shared::{Shared, Who};
use crate::access::Principal;
use crate::path::RemotePath;
use crate::protocol::{Bytes32, Mtime, Outcome, Receipt, Statement, Stored};
use crate::tls::Purpose;

/// The receipt for an answer, where there is one to give: the client asked, and content was stored or found equal.
/// Runs on a disk thread: signing costs about 20 µs.
pub(super) fn receipt(shared: &Shared, who: &Who, asked: &RemotePath, stored: &Stored) -> Option<Receipt> {
    let key = shared.receipt_key.as_ref().filter(|_| who.wants_receipts)?;
    let root = stored.root.filter(|_| stored.outcome != Outcome::Skipped)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let principal_key = match &who.principal {
        Principal::Certified { key, .. } => Some(Bytes32(*key)),
        Principal::Invite(_) | Principal::Anonymous => None,
    };
    let statement = Statement {
        root,
        size: stored.size,
        path: stored.path.as_ref().unwrap_or(asked).clone(),
        principal: who.principal.to_string(),
        principal_key,
        time: Mtime { seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX), nanos: now.subsec_nanos() },
        outcome: stored.outcome,
        key: Bytes32(key.public().0),
    };
    let statement = statement.to_bytes();
    let signature = key.sign(Purpose::Receipt, &statement).to_vec();
    Some(Receipt { statement, signature })
}
