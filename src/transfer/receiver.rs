//! Judges the pieces of one file that come in, and its whole.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, Root, Tree, group_count, group_len, group_offset};
use crate::limits::{FILE_SIZE_MAX, GROUP_LEN};
use crate::protocol::{Breach, Finish};

/// Where a piece belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The group that it is in.
    pub group: u64,
    /// Where it starts in that group.
    pub start: usize,
    /// Whether the group is complete with it. The last group of a stream of unknown size completes by its finish.
    pub completes: bool,
}

/// The state of one incoming file.
///
/// Pieces of a group come in order without gaps, groups in any order; a group is *open* from its first piece until
/// its hash is recorded, which the owner does after the bytes are where they belong.
#[derive(Debug)]
pub struct Receiver {
    size: Option<u64>,
    /// Bytes of each group that is open, whole or not.
    open: HashMap<u64, usize>,
    tree: Tree,
    /// Groups of the base that may be kept: those that lie wholly within both versions, and the last if sizes agree.
    base: Option<u64>,
    /// Groups that need not come: their bytes are where they belong, and were hashed there.
    held: Tree,
    /// Beginnings of groups that are where they belong: the rest may come alone.
    prefixes: HashMap<u64, usize>,
    received: u64,
    finish: Option<Finish>,
    /// The finish was only foretold: content may still be under way.
    is_foretold: bool,
}

impl Receiver {
    /// A file of this size; none for a stream.
    #[must_use]
    pub fn new(size: Option<u64>) -> Receiver {
        Receiver {
            size,
            open: HashMap::new(),
            tree: Tree::new(),
            base: None,
            held: Tree::new(),
            prefixes: HashMap::new(),
            received: 0,
            finish: None,
            is_foretold: false,
        }
    }

    /// Takes note of a group whose bytes are where they belong already. One that comes nevertheless counts instead.
    pub fn hold(&mut self, group: u64, hash: GroupHash) {
        if !self.open.contains_key(&group) && self.tree.value(group).is_none() {
            self.held.insert(group, hash);
        }
    }

    /// Takes note of a group of zeros that was made where it belongs, as if it had come. One that has come counts.
    pub fn zero(&mut self, group: u64, hash: GroupHash, len: usize) {
        if !self.open.contains_key(&group) && self.tree.value(group).is_none() {
            self.held.remove(group);
            self.prefixes.remove(&group);
            self.tree.insert(group, hash);
            self.received += len as u64;
        }
    }

    /// Whether this group is held with this hash, or has come.
    #[must_use]
    pub fn needs_no_zeros(&self, group: u64, hash: &GroupHash) -> bool {
        self.is_open(group) || self.tree.value(group).is_some() || self.held.value(group) == Some(hash.value)
    }

    /// Whether the beginning of a group that is there ends here, so that its rest may come alone.
    #[must_use]
    pub fn goes_on_at(&self, offset: u64) -> bool {
        let start = offset % GROUP_LEN as u64;
        self.prefixes.get(&(offset / GROUP_LEN as u64)).is_some_and(|&len| len as u64 == start)
    }

    /// Takes note of the beginning of a group that is where it belongs.
    pub fn hold_prefix(&mut self, group: u64, len: usize) {
        self.prefixes.insert(group, len);
    }

    /// Allows groups that never come to be taken from a base of this size.
    pub fn set_base(&mut self, base_size: u64) {
        self.base = Some(base_size);
    }

    /// Bytes of content that came, wherever from.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The hashes so far.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Takes note of a piece.
    ///
    /// # Errors
    /// As [`Receiver::check`]; nothing has changed then.
    pub fn accept(&mut self, offset: u64, len: usize) -> Result<Piece, Breach> {
        let piece = self.check(offset, len)?;
        self.open.insert(piece.group, piece.start + len);
        self.held.remove(piece.group);
        if piece.start == 0 {
            // What was there of it is being written over.
            self.prefixes.remove(&piece.group);
        }
        self.received += len as u64;
        Ok(piece)
    }

    /// Says where a piece belongs, before any of its bytes are stored.
    ///
    /// # Errors
    /// A [`Breach`] for a piece out of range, across groups, out of order, twice, or after the finish.
    pub fn check(&self, offset: u64, len: usize) -> Result<Piece, Breach> {
        let (group, start) = self.check_range(offset, len)?;
        if self.tree.value(group).is_some() {
            return Err(Breach::Data("a group twice"));
        }
        if self.finish.is_some() && !self.is_foretold {
            return Err(Breach::Data("a piece after the finish of its file"));
        }
        let goes_on = match self.open.get(&group) {
            Some(&filled) => start == filled,
            None => start == 0 || self.prefixes.get(&group) == Some(&start),
        };
        if !goes_on {
            return Err(Breach::Data("a piece out of order in its group"));
        }
        if self.size.is_none() && start == 0 && group > 0 && self.prefix_end(group - 1) != group_offset(group) {
            return Err(Breach::Data("a stream out of order"));
        }
        let whole = self.size.map_or(GROUP_LEN, |size| group_len(size, group));
        Ok(Piece { group, start, completes: start + len == whole })
    }

    /// Says in which group a piece of this file would be, and where in it, whatever has come already.
    ///
    /// # Errors
    /// A [`Breach`] for a piece out of range or across groups.
    pub fn check_range(&self, offset: u64, len: usize) -> Result<(u64, usize), Breach> {
        if len == 0 {
            return Err(Breach::Data("an empty piece"));
        }
        let end = offset.checked_add(len as u64).ok_or(Breach::Data("an offset past any file"))?;
        if end > self.size.unwrap_or(FILE_SIZE_MAX) {
            return Err(Breach::Data("a piece past the end of its file"));
        }
        let group = offset / GROUP_LEN as u64;
        let start = usize::try_from(offset - group_offset(group)).expect("less than a group");
        if start + len > GROUP_LEN {
            return Err(Breach::Data("a piece across two groups"));
        }
        Ok((group, start))
    }

    /// The size that was described; none for a stream.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Whether a group is begun and its hash not recorded.
    #[must_use]
    pub fn is_open(&self, group: u64) -> bool {
        self.open.contains_key(&group)
    }

    /// Whether all bytes of a group have come, hashed by now or not. Never of the last group of a stream.
    #[must_use]
    pub fn is_whole(&self, group: u64) -> bool {
        let whole = self.size.map_or(GROUP_LEN, |size| group_len(size, group));
        self.tree.value(group).is_some() || self.open.get(&group) == Some(&whole)
    }

    /// Whether all bytes of some group have come that is not hashed yet.
    #[must_use]
    pub fn has_unhashed(&self) -> bool {
        self.open.keys().any(|&group| self.is_whole(group))
    }

    /// Where the contiguous bytes of a group end.
    fn prefix_end(&self, group: u64) -> u64 {
        let len =
            if self.tree.value(group).is_some() { GROUP_LEN } else { self.open.get(&group).copied().unwrap_or(0) };
        group_offset(group) + len as u64
    }

    /// Forgets the pieces of an open group: it will come again.
    pub fn reset(&mut self, group: u64) {
        if let Some(len) = self.open.remove(&group) {
            self.received = self.received.saturating_sub(len as u64);
        }
    }

    /// Records the hash of a group whose bytes are where they belong.
    pub fn insert(&mut self, group: u64, hash: GroupHash) {
        self.open.remove(&group);
        self.tree.insert(group, hash);
    }

    /// Takes what the sender's finish will say: from then on the file is ready as soon as all of it has come.
    ///
    /// # Errors
    /// A [`Breach`] for a second one or one after the finish, for a stream, and for another size than described.
    pub fn foretell_finish(&mut self, finish: Finish) -> Result<(), Breach> {
        if self.size.is_none() {
            return Err(Breach::Data("a finish ahead of a stream"));
        }
        if self.finish.is_some() {
            return Err(Breach::Data("a second finish"));
        }
        self.set_finish(finish)?;
        self.is_foretold = true;
        Ok(())
    }

    /// Takes the sender's finish.
    ///
    /// # Errors
    /// A [`Breach`] for a second finish, one that is not as it was foretold, or one whose size is another than that
    /// described or that came.
    pub fn set_finish(&mut self, finish: Finish) -> Result<(), Breach> {
        match &self.finish {
            Some(known) if self.is_foretold && *known == finish => {
                self.is_foretold = false;
                return Ok(());
            }
            Some(_) if self.is_foretold => return Err(Breach::Data("a finish that is not as it was foretold")),
            Some(_) => return Err(Breach::Data("a second finish")),
            None => {}
        }
        match self.size {
            Some(size) if size != finish.size => return Err(Breach::Data("a finish of another size than described")),
            None if finish.size != self.received => return Err(Breach::Data("a finish of another size than came")),
            _ => {}
        }
        self.finish = Some(finish);
        Ok(())
    }

    /// Whether the finish was only foretold, so that content may still be under way.
    #[must_use]
    pub fn is_foretold(&self) -> bool {
        self.is_foretold
    }

    /// The size and root that the sender claims, once it has finished or foretold that.
    #[must_use]
    pub fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }

    /// For a finished stream: the last group, when it is open and not full (so nothing else completes it).
    #[must_use]
    pub fn last_open(&self) -> Option<(u64, usize)> {
        let finish = self.finish.as_ref().filter(|_| self.size.is_none())?;
        let last = group_count(finish.size).checked_sub(1)?;
        self.open.get(&last).filter(|&&len| len < GROUP_LEN).map(|&len| (last, len))
    }

    /// Whether the finish has come and every group is hashed or can be had from the base. If it was only foretold, all
    /// must have come: what could be had otherwise may still be under way.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let Some(finish) = &self.finish else { return false };
        if self.is_foretold && self.received != finish.size {
            return false;
        }
        self.open.is_empty() && self.missing(finish.size).all(|group| self.is_in_base(finish.size, group))
    }

    /// Counts what is held as what came. Nothing more may come then.
    pub fn take_held(&mut self) {
        let Some(size) = self.finish.as_ref().map(|finish| finish.size) else { return };
        for group in 0..group_count(size) {
            if self.tree.value(group).is_none()
                && let Some(hash) = self.held.hash(group)
            {
                self.tree.insert(group, hash);
            }
        }
    }

    /// Whether this group can be taken from the base.
    fn is_in_base(&self, size: u64, group: u64) -> bool {
        self.base.is_some_and(|base| group_len(base, group) == group_len(size, group))
    }

    /// The groups that did not come, are not held, and are not being filled.
    pub fn missing(&self, size: u64) -> impl Iterator<Item = u64> + '_ {
        let is_there = |group| self.tree.value(group).is_some() || self.held.value(group).is_some();
        (0..group_count(size)).filter(move |&group| !is_there(group) && !self.open.contains_key(&group))
    }

    /// Compares the root of what came with the sender's claim.
    ///
    /// # Errors
    /// `Mismatch` when they differ; `Internal` when a group is missing.
    pub fn verdict(&self) -> Result<Root> {
        let finish =
            self.finish.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, "a verdict before the finish"))?;
        let root = self
            .tree
            .root(finish.size)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a verdict while groups are missing"))?;
        if root != finish.root {
            return Err(Error::new(
                ErrorKind::Mismatch,
                format!("the content that arrived has the hash {root}, the sender says {}", finish.root),
            ));
        }
        Ok(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = GROUP_LEN as u64;

    fn finish(size: u64) -> Finish {
        Finish { size, root: Root([0; 32]) }
    }

    #[test]
    fn pieces_in_order_make_groups() {
        let mut receiver = Receiver::new(Some(G + 10));
        assert_eq!(receiver.accept(G, 10), Ok(Piece { group: 1, start: 0, completes: true }));
        assert_eq!(receiver.accept(0, 600_000), Ok(Piece { group: 0, start: 0, completes: false }));
        let rest = GROUP_LEN - 600_000;
        assert_eq!(receiver.accept(600_000, rest), Ok(Piece { group: 0, start: 600_000, completes: true }));
        receiver.set_finish(finish(G + 10)).unwrap();
        assert!(!receiver.is_ready(), "groups are not ready before their hashes are");
        let (a, b) = (vec![1; GROUP_LEN], vec![2; 10]);
        receiver.insert(1, GroupHash::of(1, &b));
        receiver.insert(0, GroupHash::of(0, &a));
        assert!(receiver.is_ready());
        assert_eq!(receiver.verdict().unwrap_err().kind(), ErrorKind::Mismatch);
    }

    #[test]
    fn a_group_that_has_come_is_unhashed_until_its_hash_is_told() {
        let mut receiver = Receiver::new(Some(G + 10));
        receiver.accept(G, 9).unwrap();
        assert!(!receiver.has_unhashed(), "a byte is missing");
        receiver.accept(G + 9, 1).unwrap();
        assert!(receiver.has_unhashed());
        receiver.insert(1, GroupHash::of(1, &[2; 10]));
        assert!(!receiver.has_unhashed());
    }

    #[test]
    fn lies_are_breaches() {
        type Pieces = &'static [(u64, usize)];
        let cases: &[(&str, Option<u64>, Pieces)] = &[
            ("past the end", Some(10), &[(0, 11)]),
            ("past any file", Some(10), &[(u64::MAX, 2)]),
            ("past the bound of a stream", None, &[(FILE_SIZE_MAX, 1)]),
            ("empty", Some(10), &[(0, 0)]),
            ("across groups", Some(3 * G), &[(G - 1, 2)]),
            ("gap", Some(3 * G), &[(0, 10), (20, 10)]),
            ("overlap", Some(3 * G), &[(0, 10), (5, 10)]),
            ("start inside a group", Some(3 * G), &[(G + 5, 10)]),
            ("twice", Some(10), &[(0, 10), (0, 10)]),
            ("stream that skips", None, &[(G, 10)]),
        ];
        for (what, size, pieces) in cases {
            let mut receiver = Receiver::new(*size);
            let (last, first) = pieces.split_last().unwrap();
            for (offset, len) in first {
                receiver.accept(*offset, *len).unwrap();
            }
            assert!(receiver.accept(last.0, last.1).is_err(), "{what}");
        }
        let mut receiver = Receiver::new(Some(10));
        assert!(receiver.set_finish(finish(11)).is_err(), "another size");
        receiver.set_finish(finish(10)).unwrap();
        assert!(receiver.set_finish(finish(10)).is_err(), "a second finish");
        assert!(!receiver.is_ready(), "nothing came");
    }

    #[test]
    fn a_base_fills_what_did_not_come() {
        let mut receiver = Receiver::new(Some(2 * G + 5));
        receiver.set_base(2 * G + 5);
        receiver.accept(G, GROUP_LEN).unwrap();
        receiver.insert(1, GroupHash::of(1, &vec![0; GROUP_LEN]));
        receiver.set_finish(finish(2 * G + 5)).unwrap();
        assert!(receiver.is_ready());
        assert_eq!(receiver.missing(2 * G + 5).collect::<Vec<_>>(), [0, 2]);
        // A last group of another length is not in the base.
        let mut receiver = Receiver::new(Some(2 * G + 5));
        receiver.set_base(2 * G + 6);
        receiver.set_finish(finish(2 * G + 5)).unwrap();
        assert!(!receiver.is_ready());
    }

    #[test]
    fn what_is_held_need_not_come_and_what_comes_counts() {
        let (a, b, c) = (vec![1; GROUP_LEN], vec![2; GROUP_LEN], vec![3; 10]);
        let size = 2 * G + 10;
        let root = Root::of(&[a.as_slice(), &b, &c].concat());
        let mut receiver = Receiver::new(Some(size));
        receiver.hold(0, GroupHash::of(0, &a));
        receiver.hold(2, GroupHash::of(2, b"other"));
        receiver.hold_prefix(1, 500);
        assert!(receiver.check(G + 400, 10).is_err(), "neither its beginning nor where the prefix ends");
        assert!(receiver.accept(G + 500, GROUP_LEN - 500).unwrap().completes);
        receiver.insert(1, GroupHash::of(1, &b));
        // Held, and sent all the same.
        assert!(receiver.accept(2 * G, 10).unwrap().completes);
        receiver.hold(2, GroupHash::of(2, b"other"));
        receiver.set_finish(Finish { size, root }).unwrap();
        assert!(!receiver.is_ready());
        receiver.insert(2, GroupHash::of(2, &c));
        assert!(receiver.is_ready());
        receiver.take_held();
        assert_eq!(receiver.verdict().unwrap(), root);
        // A group of which only the beginning is held may come whole.
        let mut receiver = Receiver::new(Some(size));
        receiver.hold_prefix(1, 500);
        receiver.accept(G, 100).unwrap();
        assert!(receiver.check(G + 500, 10).is_err(), "the prefix counts no more");
    }

    #[test]
    fn a_stream_ends_with_its_finish() {
        let mut receiver = Receiver::new(None);
        receiver.accept(0, 100).unwrap();
        receiver.set_finish(finish(100)).unwrap();
        assert_eq!(receiver.last_open(), Some((0, 100)));
        assert!(receiver.accept(100, 1).is_err());
    }
}
