//! Requests of those who give invites: make one, list them, take one back. Every function blocks.

use std::sync::Arc;

use bytes::Bytes;

use super::{Invites, Kept, new_record};
use crate::access::{self, Action, Principal};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{CONTROL_LEN_MAX, INVITE_CHAIN_LEN_MAX, INVITE_LIFETIME_MAX, INVITE_USES_MAX};
use crate::path::{Component, RemotePath};
use crate::protocol::{
    Invite, InviteFacts, InviteId, InviteKind, InviteState, Invited, List, ListInvites, Message, RevokeInvite, Verifier,
};
use crate::server::requests::done;
use crate::server::shared::{Pass, Shared, Who};

fn invites(shared: &Shared) -> Result<&Invites> {
    shared.invites.as_deref().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "this server gives and takes no invites: it would be started with --invites")
    })
}

fn frame(transfer: u32, message: &impl Message) -> Bytes {
    message.to_frame(transfer).into()
}

/// Gives an invite.
///
/// # Errors
/// `Rights`; `Limit` for more than an invite may have; `NotDirectory`, `NotFound`.
pub(in crate::server) fn invite(shared: &Shared, who: &Who, transfer: u32, request: &Invite) -> Result<Vec<Bytes>> {
    let invites = invites(shared)?;
    let pass = shared.pass(who)?;
    pass.decide_invite(&request.path, request.kind)?;
    let Principal::Certified { name, key } = &who.principal else {
        return Err(Error::new(ErrorKind::Rights, "only a client with a certificate gives invites"));
    };
    let over = |what: String| Err(Error::new(ErrorKind::Limit, what));
    if request.uses == 0 || request.uses > INVITE_USES_MAX {
        return over(format!("an invite is good for 1 to {INVITE_USES_MAX} uses"));
    }
    if request.seconds == 0 || request.seconds > INVITE_LIFETIME_MAX.as_secs() {
        return over(format!("an invite is good for at most {} days", INVITE_LIFETIME_MAX.as_secs() / 86400));
    }
    if !super::giver::fits(who.chain()) {
        return over(format!(
            "your certificates have more than {INVITE_CHAIN_LEN_MAX} bytes: no invite is kept with them"
        ));
    }
    if request.kind == InviteKind::Download {
        let entry = pass.store.stat(&request.path)?;
        if entry.kind != crate::storage::Kind::Directory {
            let message = format!("{} is not a directory: an invite is for a directory", request.path);
            return Err(Error::new(ErrorKind::NotDirectory, message));
        }
    } else {
        // Its holder may not see that it is not there. Making it is a change like any other.
        let path = &request.path;
        pass.decide_new(Action::Create(path), path)?;
        let (mut reservation, count) = pass.reserve_directories(path)?;
        pass.store.make_directory(path, None, true)?;
        pass.made(&mut reservation, path, count);
    }
    let place = RemotePath::from_components(pass.grant.place(&request.path).iter().map(Component::as_bytes));
    let place = place.map_err(|error| Error::new(ErrorKind::Name, "too long a path").with_source(error))?;
    let terms = access::Invite {
        id: Verifier(request.verifier.0).id(),
        place,
        kind: request.kind,
        issuer_name: name.clone(),
        issuer_key: *key,
    };
    let id = terms.id;
    let bounds = (request.seconds, request.uses, request.max_size);
    let record = new_record(terms, request.verifier, who.chain(), bounds);
    let expires = record.expires;
    invites.add(record)?;
    Ok(vec![frame(transfer, &Invited { id, expires, address: invites.public.clone() })])
}

/// Lists invites, a page of them.
///
/// # Errors
/// `Rights` for one who may not share what it asks for.
pub(in crate::server) fn list(shared: &Shared, who: &Who, transfer: u32, request: &ListInvites) -> Result<Vec<Bytes>> {
    let invites = invites(shared)?;
    let pass = shared.pass(who)?;
    pass.decide(Action::Share(&request.path))?;
    let mut page = Vec::new();
    let mut len = 0;
    let mut more = false;
    let after = |id: InviteId| request.after.is_none_or(|after| id > after);
    for (id, kept) in invites.all().into_iter().filter(|(id, _)| after(*id)) {
        let facts = match &kept {
            Some(kept) => facts(shared, &pass, kept),
            // Whose it was is not known: those who may share everything are told.
            None => pass.decide(Action::Share(&RemotePath::root())).is_ok().then(|| damaged(id)),
        };
        let Some(facts) = facts.filter(|facts| facts.path.starts_with(&request.path)) else { continue };
        len += 128 + facts.path.len() + 3 * facts.path.components().len() + facts.issuer.len();
        if page.len() == 256 || len > CONTROL_LEN_MAX / 2 {
            more = true;
            break;
        }
        page.push(facts);
    }
    Ok(vec![frame(transfer, &crate::protocol::Invites { invites: List(page), more })])
}

/// What a principal is told of an invite; nothing, where it may not share what that is for.
fn facts(shared: &Shared, pass: &Pass, kept: &Kept) -> Option<InviteFacts> {
    let below = kept.terms.place.components().strip_prefix(pass.grant.home.components())?;
    let path = RemotePath::from_components(below.iter().map(Component::as_bytes)).ok()?;
    pass.decide(Action::Share(&path)).ok()?;
    Some(kept.facts(path, !shared.admits_invite(&kept.terms, &kept.giver())))
}

fn damaged(id: InviteId) -> InviteFacts {
    InviteFacts {
        id,
        state: InviteState::Damaged,
        path: RemotePath::root(),
        kind: InviteKind::Drop,
        issuer: String::new(),
        issued: 0,
        expires: 0,
        uses: 0,
        spent: 0,
        reserved: 0,
        max_size: None,
        used_size: 0,
    }
}

/// Takes an invite back.
///
/// # Errors
/// `NotFound` also for one that is not this principal's to take back.
pub(in crate::server) fn revoke(
    shared: &Shared,
    who: &Who,
    transfer: u32,
    request: &RevokeInvite,
) -> Result<Vec<Bytes>> {
    let invites = invites(shared)?;
    let pass = shared.pass(who)?;
    let kept: Option<Arc<Kept>> = invites.get(request.id).flatten();
    let kept = kept.filter(|kept| facts(shared, &pass, kept).is_some());
    let kept = kept.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no invite {} that you could take back", request.id))
    })?;
    kept.revoke()?;
    // Whoever uses it now is looked at at once.
    shared.look_again();
    Ok(vec![frame(transfer, &done(1))])
}
