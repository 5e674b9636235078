//! What clients ask for, done with a word in the audit log before and after, where there is one. All of it blocks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tracing::error;

use super::audit::{self, Audit, around, asked, ended, entry, stored};
use super::commit::{self, CommittedSmall, Incoming, Opened, SmallAnswer, SmallUpload};
use super::newest::Turn;
use super::receipts::receipt;
use super::shared::{Shared, Who};
use crate::access::Principal;
use crate::audit::Entry;
use crate::error::{Error, Result};
use crate::hash::Root;
use crate::path::RemotePath;
use crate::protocol::{Invite, Put, Receipt, Rename, RevokeInvite, Stored, Verifier};
use crate::storage;
use crate::transfer::Receiver;

/// Writes down that a client said hello, or was refused when it did. Who did not get through the TLS handshake has no
/// name yet and is not in the log: anybody could fill it.
pub(super) async fn connected(
    shared: &Shared,
    principal: &Principal,
    peer: SocketAddr,
    id: u64,
    refused: Option<&Error>,
) {
    let Some(audit) = shared.audit.clone() else { return };
    let (name, principal_key) = audit::principal(principal);
    let entry = Entry {
        connection: Some(id),
        peer: Some(peer.to_string()),
        principal: Some(name),
        principal_key,
        ..Entry::new("connect")
    };
    let entry = ended(entry, &refused.map_or(Ok(()), |error| Err(error.duplicate())));
    if let Err(error) = spawn_blocking(move || audit.tell(vec![entry])).await {
        error!("the audit log lacks a connection: {error}");
    }
}

/// Does a request for one name.
pub(super) fn request<T>(
    shared: &Shared,
    who: &Who,
    event: &str,
    path: &RemotePath,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    around(shared.audit.as_ref(), || entry(who, event, path), act)
}

/// Gives an invite.
pub(super) fn invite<T>(shared: &Shared, who: &Who, request: &Invite, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let id = Verifier(request.verifier.0).id();
    let entry =
        || Entry { to: Some(format!("invite {id} for {}", request.kind)), ..entry(who, "invite", &request.path) };
    around(shared.audit.as_ref(), entry, act)
}

/// Takes an invite back.
pub(super) fn revoke_invite<T>(
    shared: &Shared,
    who: &Who,
    request: &RevokeInvite,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let to = Some(format!("invite {}", request.id));
    let entry = || Entry { to, path: None, ..entry(who, "revoke", &RemotePath::root()) };
    around(shared.audit.as_ref(), entry, act)
}

/// Does a renaming.
pub(super) fn rename<T>(shared: &Shared, who: &Who, request: &Rename, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let entry = || Entry { to: Some(request.to.to_string()), ..entry(who, "rename", &request.from) };
    around(shared.audit.as_ref(), entry, act)
}

/// Opens an upload; with the receipt when it has ended with that.
pub(super) fn open(shared: &Shared, who: &Who, put: &Put, turn: Turn) -> (Result<Opened>, Option<Receipt>) {
    let opened = match &shared.audit {
        None => commit::open(shared, who, put, turn),
        Some(audit) => {
            let entry = Entry { size: put.size, ..entry(who, "put", &put.path) };
            // It may make directories, or end at once as a further name of a file.
            audit.ask(vec![asked(&entry)]).and_then(|()| {
                let opened = commit::open(shared, who, put, turn);
                audit.tell(vec![match &opened {
                    Ok(Opened::Upload(_)) => Entry { result: Some("accepted".to_owned()), ..entry },
                    Ok(Opened::Ended(ended)) => stored(entry, &Ok(ended.clone())),
                    Err(_) => ended(entry, &opened),
                }]);
                opened
            })
        }
    };
    let receipt = match &opened {
        Ok(Opened::Ended(stored)) => receipt(shared, who, &put.path, stored),
        _ => None,
    };
    (opened, receipt)
}

/// Commits an upload whose content has come.
pub(super) fn commit(
    shared: &Shared,
    who: &Who,
    put: &Put,
    incoming: Incoming,
    receiver: Receiver,
) -> (Result<Stored>, Option<Receipt>) {
    let act = || commit::commit(shared, who, put, incoming, receiver);
    let result = match &shared.audit {
        None => act(),
        Some(audit) => {
            let entry = Entry { size: put.size, ..entry(who, "commit", &put.path) };
            audit.ask(vec![asked(&entry)]).and_then(|()| {
                let result = act();
                audit.tell(vec![stored(entry, &result)]);
                result
            })
        }
    };
    let receipt = result.as_ref().ok().and_then(|stored| receipt(shared, who, &put.path, stored));
    (result, receipt)
}

/// Commits small uploads, each with the root of its content, together, with one write before and one after.
pub(super) fn commit_small(
    shared: &Shared,
    who: &Who,
    batch: Vec<(SmallUpload, Root)>,
    made: &Arc<storage::Made>,
) -> CommittedSmall {
    match &shared.audit {
        None => commit::commit_small(shared, who, batch, made),
        Some(audit) => commit_small_with(audit, shared, who, batch, made),
    }
}

fn commit_small_with(
    audit: &Audit,
    shared: &Shared,
    who: &Who,
    batch: Vec<(SmallUpload, Root)>,
    made: &Arc<storage::Made>,
) -> CommittedSmall {
    let of = |upload: &SmallUpload| Entry { size: Some(upload.finish.size), ..entry(who, "put", &upload.put.path) };
    let entries: Vec<(u32, Entry)> = batch.iter().map(|(upload, _)| (upload.transfer, of(upload))).collect();
    if let Err(error) = audit.ask(entries.iter().map(|(_, entry)| asked(entry)).collect()) {
        let refuse = |(upload, _): (SmallUpload, Root)| SmallAnswer {
            transfer: upload.transfer,
            size: commit::unasked_len(&upload.put, upload.finish.size),
            stored: Err(error.duplicate()),
            receipt: None,
            asked: None,
        };
        return CommittedSmall { answers: batch.into_iter().map(refuse).collect(), spare: Vec::new() };
    }
    let committed = commit::commit_small(shared, who, batch, made);
    let mut entries: HashMap<u32, Entry> = entries.into_iter().collect();
    let answers = committed.answers.iter();
    let told = answers.filter_map(|answer| Some(stored(entries.remove(&answer.transfer)?, &answer.stored)));
    audit.tell(told.collect());
    committed
}
