//! What is known of a file that is sent in ranges: of whole groups, and of groups that are sent in parts.
//!
//! A part is [`PART_LEN`] bytes at an aligned offset, as a group is: a subtree of BLAKE3, whose value can be merged.

use std::collections::BTreeMap;

use blake3::hazmat::HasherExt as _;

use super::{GroupHash, GroupHasher, GroupValue, Tree, group_count, group_len, group_offset, merge, merge_root};
use crate::limits::{GROUP_LEN, PART_LEN, SPLIT_GROUPS_MAX};

const PARTS: usize = GROUP_LEN / PART_LEN;

/// The values of the parts of a group, as far as they are known.
type Parts = [Option<[u8; 32]>; PARTS];

/// The hash of a range inside one group: of the group, or of the parts of it that the range has whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeHash {
    group: u64,
    found: Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Group(GroupHash),
    Parts(Parts),
}

/// Hashes the bytes of a range of a file as they come, in order.
pub enum RangeHasher {
    /// All of a group.
    Group(GroupHasher),
    /// Some of one.
    Parts(PartsHasher),
}

/// Hashes those parts of a group that a range has whole.
pub struct PartsHasher {
    group: u64,
    group_len: usize,
    /// Where in the group the next byte lies.
    at: usize,
    /// Of the part in which that is, if its beginning was there.
    hasher: Option<blake3::Hasher>,
    parts: Parts,
}

impl RangeHasher {
    /// A hasher for a range of a file of `size` bytes. The range lies inside the file and inside one group.
    #[must_use]
    pub fn new(size: u64, offset: u64, len: usize) -> RangeHasher {
        let group = offset / GROUP_LEN as u64;
        let group_len = group_len(size, group);
        if offset == group_offset(group) && len == group_len {
            return RangeHasher::Group(GroupHasher::new(group));
        }
        let at = usize::try_from(offset - group_offset(group)).expect("an offset inside a group");
        RangeHasher::Parts(PartsHasher { group, group_len, at, hasher: None, parts: [None; PARTS] })
    }

    /// Takes the next bytes. Pieces of 64 KiB and more at aligned offsets are hashed at full speed.
    ///
    /// # Panics
    /// When more bytes come than its group has.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            RangeHasher::Group(hasher) => hasher.update(bytes),
            RangeHasher::Parts(hasher) => hasher.update(bytes),
        }
    }

    /// The hash of what has come.
    ///
    /// # Panics
    /// When it is for a whole group and no byte was taken.
    #[must_use]
    pub fn finish(&self) -> RangeHash {
        match self {
            RangeHasher::Group(hasher) => RangeHash { group: hasher.group(), found: Found::Group(hasher.finish()) },
            RangeHasher::Parts(hasher) => RangeHash { group: hasher.group, found: Found::Parts(hasher.parts) },
        }
    }
}

impl PartsHasher {
    fn update(&mut self, mut bytes: &[u8]) {
        assert!(self.at + bytes.len() <= self.group_len, "a range lies inside one group");
        while !bytes.is_empty() {
            let part = self.at / PART_LEN;
            let (start, end) = (part * PART_LEN, self.group_len.min((part + 1) * PART_LEN));
            let (now, later) = bytes.split_at(bytes.len().min(end - self.at));
            if self.at == start {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(group_offset(self.group) + start as u64);
                self.hasher = Some(hasher);
            }
            if let Some(hasher) = &mut self.hasher {
                hasher.update(now);
            }
            (self.at, bytes) = (self.at + now.len(), later);
            if self.at == end {
                let whole = self.hasher.take();
                self.parts[part] = whole.map(|hasher| hasher.finalize_non_root());
            }
        }
    }
}

/// The hashes of what was sent of a file of known size, in ranges and in any order: 33 bytes of memory per MiB of file,
/// and 140 for each group of which some parts were sent and not all, which are at most [`SPLIT_GROUPS_MAX`].
#[derive(Debug)]
pub struct Sent {
    size: u64,
    tree: Tree,
    /// Groups of which some parts are known and not all.
    split: BTreeMap<u64, Parts>,
    /// Groups that are known.
    known: u64,
}

impl Sent {
    /// Nothing was sent of a file of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Sent {
        Sent { size, tree: Tree::new(), split: BTreeMap::new(), known: 0 }
    }

    /// A range was sent. A whole group takes the place of what was sent of it before; parts of one that is known say
    /// nothing more.
    pub fn insert(&mut self, range: RangeHash) {
        let group = range.group;
        let whole = match range.found {
            Found::Group(hash) => Some(hash),
            Found::Parts(_) if self.tree.value(group).is_some() => None,
            Found::Parts(parts) => self.insert_parts(group, parts),
        };
        if let Some(hash) = whole {
            self.split.remove(&group);
            self.known += u64::from(self.tree.value(group).is_none());
            self.tree.insert(group, hash);
        }
    }

    /// The hash of the group, when these were its last parts.
    fn insert_parts(&mut self, group: u64, parts: Parts) -> Option<GroupHash> {
        if parts == [None; PARTS] || !self.split.contains_key(&group) && self.split.len() >= SPLIT_GROUPS_MAX {
            return None;
        }
        let known = self.split.entry(group).or_default();
        known.iter_mut().zip(parts).for_each(|(known, part)| *known = part.or(*known));
        let len = group_len(self.size, group);
        let values: Option<Vec<[u8; 32]>> = known[..len.div_ceil(PART_LEN)].iter().copied().collect();
        let values = values?;
        // They are more than one: of a group of one part, that is the whole.
        let value = GroupValue(merge(&values, PART_LEN, len as u64));
        let alone = (group == 0).then(|| merge_root(&values, PART_LEN, len as u64));
        Some(GroupHash { value, alone })
    }

    /// Whether all of the file was sent in ranges whose hashes are known.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.known == group_count(self.size)
    }

    /// The hashes of its groups, when all of it was sent so.
    #[must_use]
    pub fn tree(&self) -> Option<&Tree> {
        self.is_all().then_some(&self.tree)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Root;
    use super::super::tests::bytes;
    use super::*;

    const G: usize = GROUP_LEN;
    const P: usize = PART_LEN;

    fn send(sent: &mut Sent, content: &[u8], start: usize, end: usize) {
        let mut hasher = RangeHasher::new(content.len() as u64, start as u64, end - start);
        content[start..end].chunks(100_000).for_each(|piece| hasher.update(piece));
        sent.insert(hasher.finish());
    }

    fn root(sent: &Sent) -> Option<Root> {
        sent.tree().and_then(|tree| tree.root(sent.size))
    }

    /// Sends what is in this order, and nothing before its end makes the whole.
    #[track_caller]
    fn check(size: usize, ranges: &[(usize, usize)]) {
        let content = bytes(size);
        let mut sent = Sent::new(size as u64);
        for &(start, end) in ranges {
            assert!(!sent.is_all() && sent.tree().is_none(), "size {size}, before {start}..{end}");
            send(&mut sent, &content, start, end);
        }
        assert!(sent.is_all(), "size {size}");
        assert_eq!(root(&sent), Some(Root::of(&content)), "size {size}");
        assert!(sent.split.is_empty());
    }

    #[test]
    fn groups_and_parts_in_any_order_give_the_root_of_the_whole() {
        for size in [P + 1, 2 * P - 1, 2 * P, 2 * P + 1, 3 * P + 1024, G - 1, G, G + 1, G + P, 2 * G + P + 7, 3 * G] {
            let starts = (0..size).step_by(P);
            let mut parts: Vec<_> = starts.map(|start| (start, size.min(start + P))).collect();
            check(size, &parts);
            parts.reverse();
            check(size, &parts);
            let groups = (0..size).step_by(G).map(|start| (start, size.min(start + G)));
            check(size, &groups.collect::<Vec<_>>());
        }
        // Several parts in one range, and some of one that is sent again.
        check(2 * G, &[(P, G), (G, 2 * G), (0, 5), (0, P + 9)]);
        check(G + P + 5, &[(G + P, G + P + 5), (0, G - 1), (G, G + P), (3 * P, G)]);
        check(1, &[(0, 1)]);
        assert_eq!(root(&Sent::new(0)), Some(Root::of(b"")));
    }

    #[test]
    fn a_range_that_begins_or_ends_inside_a_part_says_nothing_of_it() {
        let content = bytes(G);
        let mut sent = Sent::new(G as u64);
        for (start, end) in [(0, P - 1), (P - 1, P), (1, 2 * P), (2 * P, 4 * P - 1), (3 * P + 1, 4 * P)] {
            send(&mut sent, &content, start, end);
        }
        assert!(!sent.is_all());
        send(&mut sent, &content, 0, P);
        assert!(!sent.is_all());
        send(&mut sent, &content, 3 * P, 4 * P);
        assert_eq!(root(&sent), Some(Root::of(&content)));
    }

    #[test]
    fn what_is_remembered_of_parts_is_bounded() {
        let size = (SPLIT_GROUPS_MAX + 1) * G;
        let content = bytes(G);
        let part = |group: usize, part: usize| {
            let offset = group * G + part * P;
            let mut hasher = RangeHasher::new(size as u64, offset as u64, P);
            hasher.update(&content[part * P..][..P]);
            hasher.finish()
        };
        let mut sent = Sent::new(size as u64);
        (0..=SPLIT_GROUPS_MAX).for_each(|group| sent.insert(part(group, 0)));
        assert_eq!(sent.split.len(), SPLIT_GROUPS_MAX);
        // One that becomes whole makes room for another, which has to be sent from its beginning then.
        (0..PARTS).for_each(|index| sent.insert(part(0, index)));
        assert_eq!((sent.split.len(), sent.known), (SPLIT_GROUPS_MAX - 1, 1));
        (0..PARTS).for_each(|index| sent.insert(part(SPLIT_GROUPS_MAX, index)));
        assert_eq!((sent.split.len(), sent.known), (SPLIT_GROUPS_MAX - 1, 2));
    }
}
