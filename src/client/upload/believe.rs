//! When a server's word that an upload is stored is believed: only with the hash and the size of what was to be stored,
//! as this side computed them.

use super::large::Content;
use super::{Job, UNKNOWN, panicked};
use crate::buffer::Buffer;
use crate::client::stalls::Cause;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, Root, Tree, group_count, group_len, group_offset};
use crate::limits::GROUP_LEN;
use crate::protocol::{Breach, IfExists, Kind, Outcome, Stored};

/// Compares a server's answer with what was sent.
///
/// # Errors
/// `Mismatch` when it stored something else, or does not say what; `Protocol` when it left alone what it was told to
/// replace.
pub(super) fn check_stored(stored: &Stored, if_exists: IfExists, root: Root, size: u64) -> Result<()> {
    if check_skipped(stored, if_exists)? {
        return Ok(());
    }
    let theirs = match stored.root {
        Some(theirs) if theirs == root && stored.size == size => return Ok(()),
        Some(theirs) => format!("content of {} bytes with the hash {theirs}", stored.size),
        None => "content without saying its hash".to_owned(),
    };
    let message = format!("the server stored {theirs}, and {size} bytes with the hash {root} are to be stored");
    Err(Error::new(ErrorKind::Mismatch, message))
}

/// Whether something else was left where it was, as the policy says.
///
/// # Errors
/// `Protocol` when it is not what the policy says.
pub(super) fn check_skipped(stored: &Stored, if_exists: IfExists) -> Result<bool> {
    match (stored.outcome, if_exists) {
        (Outcome::Skipped, IfExists::Skip) => Ok(true),
        (Outcome::Skipped, _) => {
            Err(Breach::Unexpected { kind: Kind::Stored, why: "nothing was to be skipped" }.into())
        }
        _ => Ok(false),
    }
}

impl Job {
    /// Compares an answer that makes a file another name of one that is there already, of which `same_root` is the
    /// hash, if this run has found it to be that. What was only compared by size and time counts as the same here
    /// too, but is not removed here for it.
    ///
    /// # Errors
    /// As [`Job::check_early`].
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn check_named(&self, stored: &Stored, same_root: Option<Root>, content: &Content) -> Result<()> {
        let size = content.size();
        match (stored.root.or(same_root), same_root) {
            (_, None) if self.remove_source => self.check_early(stored, content).await.map(drop),
            (theirs, Some(root)) => {
                check_stored(&Stored { root: theirs, ..stored.clone() }, self.if_exists, root, size)
            }
            (Some(theirs), None) => check_stored(stored, self.if_exists, theirs, size),
            (None, None) if stored.size == size => check_skipped(stored, self.if_exists).map(drop),
            (None, None) => check_stored(stored, self.if_exists, UNKNOWN, size),
        }
    }

    /// Compares an answer that came before the content was asked for: of an attempt whose own answer was lost. What
    /// is here is read and hashed for that, because nothing is stored on a server's word alone. Returns the hash.
    ///
    /// # Errors
    /// As [`check_stored`]; what reading can fail with; `Changed`.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn check_early(&self, stored: &Stored, content: &Content) -> Result<Root> {
        if check_skipped(stored, self.if_exists)? {
            return Ok(UNKNOWN);
        }
        let size = content.size();
        let mut tree = Tree::new();
        for group in 0..group_count(size) {
            let (buffer, content) = (self.client.pool().lease(GROUP_LEN).await, content.clone());
            let stalls = self.client.stalls().clone();
            let hash = tokio::task::spawn_blocking(move || -> Result<GroupHash> {
                let mut buffer: Buffer = buffer;
                let len = group_len(content.size(), group);
                let space = buffer.get_mut(..len).ok_or_else(|| Error::new(ErrorKind::Internal, "a group too long"))?;
                stalls.working(Cause::Reading, || content.read_into(space, group_offset(group)))?;
                Ok(stalls.working(Cause::Hashing, || GroupHash::of(group, space)))
            });
            tree.insert(group, hash.await.map_err(panicked)??);
            self.client.progressed();
        }
        content.check_unchanged().await?;
        let root = tree.root(size).ok_or_else(|| Error::new(ErrorKind::Internal, "a file's hash is incomplete"))?;
        check_stored(stored, self.if_exists, root, size)?;
        Ok(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stored: &Stored, if_exists: IfExists, expected: Option<ErrorKind>) {
        let result = check_stored(stored, if_exists, Root([1; 32]), 7);
        assert_eq!(result.err().map(|error| error.kind()), expected, "{stored:?} {if_exists:?}");
    }

    #[test]
    fn only_the_right_hash_and_size_are_believed() {
        let right =
            Stored { outcome: Outcome::Stored, root: Some(Root([1; 32])), size: 7, path: None, xattrs_lost: None };
        let policies = [IfExists::Overwrite, IfExists::Skip, IfExists::Fail, IfExists::Rename];
        for policy in policies {
            check(&right, policy, None);
            check(&Stored { outcome: Outcome::Unchanged, ..right.clone() }, policy, None);
            for outcome in [Outcome::Stored, Outcome::Unchanged] {
                let right = Stored { outcome, ..right.clone() };
                check(&Stored { root: None, ..right.clone() }, policy, Some(ErrorKind::Mismatch));
                check(&Stored { root: Some(Root([2; 32])), ..right.clone() }, policy, Some(ErrorKind::Mismatch));
                check(&Stored { size: 8, ..right }, policy, Some(ErrorKind::Mismatch));
            }
            let skipped = Stored { outcome: Outcome::Skipped, root: None, ..right.clone() };
            check(&skipped, policy, (policy != IfExists::Skip).then_some(ErrorKind::Protocol));
        }
    }
}
