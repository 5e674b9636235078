//! What an invite gives: some of its giver's rights, at one place, for as long as the giver has them.
//!
//! An invite has no rights of its own. Each decision looks at what its giver may do at that moment: no more than that
//! is ever allowed, and nothing at all once the giver may not share the place any more, or is let in no more.

use std::sync::Arc;

use super::{Access, Grant, Principal};
use crate::error::{Error, ErrorKind, Result};
use crate::path::RemotePath;
use crate::protocol::{InviteId, InviteKind, Rights};

/// The terms of an invite, which never change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Invite {
    /// Its name.
    pub id: InviteId,
    /// The directory below the served root that is its holder's `/`.
    pub place: RemotePath,
    /// What for.
    pub kind: InviteKind,
    /// The name in the certificate of who gave it.
    pub issuer_name: Option<String>,
    /// SHA-256 of the SubjectPublicKeyInfo of who gave it.
    pub issuer_key: [u8; 32],
}

impl Invite {
    /// Who gave it.
    #[must_use]
    pub fn issuer(&self) -> Principal {
        Principal::Certified { name: self.issuer_name.clone(), key: self.issuer_key }
    }
}

impl Access {
    /// Decides whether `principal` may give an invite of this kind to `path`: it may share that and all below, and has
    /// itself what it gives.
    ///
    /// # Errors
    /// `Rights` when it may not.
    pub fn decide_invite(&self, principal: &Principal, path: &RemotePath, kind: InviteKind) -> Result<()> {
        if !matches!(principal, Principal::Certified { .. }) {
            let message = format!("{principal} may give no invites: that takes a certificate");
            return Err(Error::new(ErrorKind::Rights, message));
        }
        self.decide(principal, super::Action::Share(path))?;
        let has = self.rights(principal, path)?;
        if !has.contains(kind.rights()) {
            let message = format!(
                "{principal} may not hand on more than it has: {path} for {kind} takes the rights to {}, and it has {has}",
                kind.rights()
            );
            return Err(Error::new(ErrorKind::Rights, message));
        }
        Ok(())
    }

    /// What the holder of an invite has at this moment.
    pub(super) fn admit_invite(&self, invite: &Invite) -> Result<Arc<Grant>> {
        // What became of its giver is not for its holder.
        let ended = || Error::new(ErrorKind::Rights, "this invite has ended: who gave it may not share this any more");
        let issuer = self.admit(&invite.issuer()).map_err(|_| ended())?;
        let wanted = invite.kind.rights();
        let place = invite.place.components();
        let here = self.at(&issuer, place);
        let shared = issuer.rules_below(place).map(|rest| (rest, self.at(&issuer, &[place, rest].concat())));
        let shared: Vec<_> = shared.collect();
        if !here.contains(wanted.with(Rights::SHARE)) || shared.iter().any(|(_, has)| !has.contains(Rights::SHARE)) {
            return Err(ended());
        }
        let mut grant = Grant::new(format!("invite {}", invite.id), invite.place.clone(), wanted);
        for (rest, has) in shared {
            let below = RemotePath::from_components(place.iter().chain(rest).map(|part| part.as_bytes()));
            let below = below.map_err(|error| ended().with_source(error))?;
            grant.rule(&below, wanted.and(has));
        }
        // What is stored counts for who gave it, and what runs: many invites are not many times its limits. But for
        // connections: strangers could keep it from coming itself, to take the invite back.
        (grant.limits, grant.account) = (issuer.limits, issuer.account.clone());
        (grant.key, grant.meter) = (format!("invite – {}", invite.id), issuer.meter.clone());
        Ok(Arc::new(grant))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Policy};
    use super::*;

    fn path(text: &str) -> RemotePath {
        RemotePath::parse(text.as_bytes()).unwrap()
    }

    fn invite(kind: InviteKind, place: &str) -> Principal {
        Principal::Invite(Arc::new(Invite {
            id: InviteId([1; 8]),
            place: path(place),
            kind,
            issuer_name: Some("alice".to_owned()),
            issuer_key: [0; 32],
        }))
    }

    fn alice() -> Principal {
        Principal::Certified { name: Some("alice".to_owned()), key: [0; 32] }
    }

    fn policy(text: &str) -> Access {
        Access::by_policy(Policy::parse(text).unwrap())
    }

    const ALL: &str = "[\"list\", \"read\", \"create\", \"overwrite\", \"rename\", \"delete\", \"share\"]";

    #[track_caller]
    fn check(access: &Access, principal: &Principal, action: Action<'_>, expected: bool) {
        assert_eq!(access.decide(principal, action).is_ok(), expected, "{action} by {principal}");
    }

    #[test]
    fn each_kind_has_its_rights_below_its_place_only() {
        let access = policy(&format!("[user.alice]\nhome = \"alice\"\nrights = {ALL}\n"));
        let file = path("x");
        for (kind, allowed) in [(InviteKind::Upload, "lc"), (InviteKind::Download, "lr"), (InviteKind::Drop, "c")] {
            let holder = invite(kind, "alice/in");
            for (action, letter) in [
                (Action::List(&file), "l"),
                (Action::Read(&file), "r"),
                (Action::Create(&file), "c"),
                (Action::Overwrite(&file), "o"),
                (Action::Remove(&file), "d"),
                (Action::Rename { from: &file, to: &path("y") }, "m"),
                (Action::Share(&file), "s"),
            ] {
                check(&access, &holder, action, allowed.contains(letter));
            }
            let grant = access.admit(&holder).unwrap();
            assert_eq!((&grant.home, &grant.account), (&path("alice/in"), &path("alice")));
            let alice = access.admit(&alice()).unwrap();
            assert_eq!(grant.meter, alice.meter);
            assert_ne!(grant.key, alice.key);
            assert!(access.decide_invite(&holder, &path(""), kind).is_err(), "handed on once more");
        }
        // A place that is not, or no more, below its giver's home.
        for place in ["alice2", "alic", "", "bob"] {
            check(&access, &invite(InviteKind::Upload, place), Action::List(&file), false);
        }
    }

    #[test]
    fn it_has_no_more_than_its_giver_has_now() {
        let holder = invite(InviteKind::Upload, "alice/in");
        let (root, inner) = (path(""), path("kept/x"));
        for (text, listed, inner_created) in [
            (format!("[user.alice]\nhome = \"alice\"\nrights = {ALL}\n"), true, true),
            // A rule below takes one right, and not the right to share.
            (
                format!(
                    "[user.alice]\nhome = \"alice\"\nrights = {ALL}\n[user.alice.paths]\n\"alice/in/kept\" = [\"list\", \"share\"]\n"
                ),
                true,
                false,
            ),
            // May not share all of it.
            (
                format!(
                    "[user.alice]\nhome = \"alice\"\nrights = {ALL}\n[user.alice.paths]\n\"alice/in/kept\" = [\"list\", \"create\"]\n"
                ),
                false,
                false,
            ),
            // Not share at all; lacks what was given; revoked; moved; gone.
            ("[user.alice]\nhome = \"alice\"\nrights = [\"list\", \"create\"]\n".to_owned(), false, false),
            ("[user.alice]\nhome = \"alice\"\nrights = [\"list\", \"share\"]\n".to_owned(), false, false),
            (format!("revoked = [\"alice\"]\n[user.alice]\nhome = \"alice\"\nrights = {ALL}\n"), false, false),
            (format!("[user.alice]\nhome = \"alice/inner\"\nrights = {ALL}\n"), false, false),
            (String::new(), false, false),
        ] {
            let access = policy(&text);
            check(&access, &holder, Action::List(&root), listed);
            check(&access, &holder, Action::Create(&inner), inner_created);
        }
        let everybody = Access::same_for_all(Rights::ALL, None);
        check(&everybody, &holder, Action::List(&root), true);
        check(&everybody.withholding(Rights::CREATE), &holder, Action::List(&root), false);
    }

    #[test]
    fn giving_takes_share_and_what_is_given() {
        let access = policy(
            "[user.alice]\nhome = \"alice\"\nrights = [\"list\", \"create\", \"share\"]\n[user.alice.paths]\n\"alice/out\" = [\"list\", \"read\", \"share\"]\n\"alice/locked\" = [\"list\", \"read\", \"create\"]\n",
        );
        for (place, kind, expected) in [
            ("in", InviteKind::Upload, true),
            ("in", InviteKind::Drop, true),
            ("in", InviteKind::Download, false),
            ("out", InviteKind::Download, true),
            ("out", InviteKind::Drop, false),
            ("locked", InviteKind::Upload, false),
            // Not all below it may be shared.
            ("", InviteKind::Upload, false),
        ] {
            let decided = access.decide_invite(&alice(), &path(place), kind);
            assert_eq!(decided.is_ok(), expected, "{place} {kind}: {decided:?}");
        }
        let open = Access::same_for_all(Rights::ALL, Some(Rights::ALL));
        assert!(open.decide_invite(&Principal::Anonymous, &path("in"), InviteKind::Drop).is_err());
        assert!(open.decide_invite(&alice(), &path("in"), InviteKind::Drop).is_ok());
    }
}
