//! BLAKE3 by groups: each group hashed alone, in any order, and merged into the root that `b3sum` prints.
//!
//! A group is [`GROUP_LEN`] bytes at an aligned offset, a whole subtree of the BLAKE3 tree (BLAKE3 paper, section
//! 2.1; `blake3::hazmat`). Its *chaining value* depends on its bytes and its offset only. A file of at most one
//! group has no chaining value in its tree: its root is the hash of the group itself, so [`GroupHash`] of group 0
//! carries both until the size is known.

mod sent;
mod together;

use std::fmt;

use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

pub use self::sent::{RangeHash, RangeHasher, Sent};
use crate::limits::GROUP_LEN;

/// The BLAKE3 hash of a whole file: what `b3sum` prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Root(pub [u8; 32]);

impl Root {
    /// The root of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Root {
        Root(*blake3::hash(bytes).as_bytes())
    }

    /// The root of each of these contents. Of sixteen of some KiB each, that takes half the time or less.
    #[must_use]
    pub fn of_each(contents: &[&[u8]]) -> Vec<Root> {
        together::roots(contents)
    }

    /// A root from 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Root> {
        blake3::Hash::from_hex(text).ok().map(|hash| Root(*hash.as_bytes()))
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The chaining value of one group (not a hash of its bytes: it holds for this offset, inside a longer file).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GroupValue(pub [u8; 32]);

impl GroupValue {
    /// Stands for a group that is not there, or cannot be read: no group has this value.
    pub const NONE: GroupValue = GroupValue([0; 32]);
}

/// How many groups a file of `size` bytes has. An empty file has none, an exact multiple has no empty last one.
#[must_use]
pub fn group_count(size: u64) -> u64 {
    size.div_ceil(GROUP_LEN as u64)
}

/// The offset of a group's first byte.
#[must_use]
pub fn group_offset(index: u64) -> u64 {
    index * GROUP_LEN as u64
}

/// How many bytes group `index` of a file of `size` bytes has; 0 past the end.
#[must_use]
pub fn group_len(size: u64, index: u64) -> usize {
    let rest = size.saturating_sub(group_offset(index));
    usize::try_from(rest).unwrap_or(usize::MAX).min(GROUP_LEN)
}

/// Hashes the bytes of one group as they come, in order.
#[derive(Clone)]
pub struct GroupHasher {
    index: u64,
    hasher: blake3::Hasher,
}

impl GroupHasher {
    /// A hasher for the group of this index.
    #[must_use]
    pub fn new(index: u64) -> GroupHasher {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(group_offset(index));
        GroupHasher { index, hasher }
    }

    /// Takes the next bytes. Pieces of 64 KiB and more at aligned offsets are hashed at full speed.
    ///
    /// # Panics
    /// When more than [`GROUP_LEN`] bytes come in all: callers check that against the size first.
    pub fn update(&mut self, bytes: &[u8]) {
        assert!(self.hasher.count() + bytes.len() as u64 <= GROUP_LEN as u64, "a group has at most GROUP_LEN bytes");
        self.hasher.update(bytes);
    }

    /// The index of its group.
    #[must_use]
    pub fn group(&self) -> u64 {
        self.index
    }

    /// How many bytes it has taken.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.hasher.count()
    }

    /// The hash of the group.
    ///
    /// # Panics
    /// When no byte was taken: an empty group does not exist.
    #[must_use]
    pub fn finish(&self) -> GroupHash {
        assert!(self.hasher.count() > 0, "an empty group has no value");
        let value = GroupValue(self.hasher.finalize_non_root());
        let alone = (self.index == 0).then(|| Root(*self.hasher.finalize().as_bytes()));
        GroupHash { value, alone }
    }
}

/// The hash of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHash {
    /// Its place in the tree of a longer file.
    pub value: GroupValue,
    /// For group 0: the root of a file that has only this group.
    pub alone: Option<Root>,
}

impl GroupHash {
    /// The hash of the bytes of group `index`.
    ///
    /// # Panics
    /// When there are no bytes or more than [`GROUP_LEN`].
    #[must_use]
    pub fn of(index: u64, bytes: &[u8]) -> GroupHash {
        let mut hasher = GroupHasher::new(index);
        hasher.update(bytes);
        hasher.finish()
    }
}

/// The hashes of a file's groups, gathered in any order: 33 bytes of memory per MiB of file.
#[derive(Clone, Default, Debug)]
pub struct Tree {
    values: Vec<Option<GroupValue>>,
    alone: Option<Root>,
}

impl Tree {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Tree {
        Tree::default()
    }

    /// Records the hash of a group, replacing what was there.
    pub fn insert(&mut self, index: u64, hash: GroupHash) {
        self.insert_value(index, hash.value);
        if index == 0 {
            self.alone = hash.alone;
        }
    }

    fn insert_value(&mut self, index: u64, value: GroupValue) {
        let index = usize::try_from(index).expect("a group index fits 32 bits");
        if self.values.len() <= index {
            self.values.resize(index + 1, None);
        }
        self.values[index] = Some(value);
    }

    /// Forgets the hash of a group.
    pub fn remove(&mut self, index: u64) {
        if let Some(value) = usize::try_from(index).ok().and_then(|index| self.values.get_mut(index)) {
            *value = None;
        }
        if index == 0 {
            self.alone = None;
        }
    }

    /// The hash of a group, when it is known.
    #[must_use]
    pub fn hash(&self, index: u64) -> Option<GroupHash> {
        self.value(index).map(|value| GroupHash { value, alone: self.alone.filter(|_| index == 0) })
    }

    /// The value of a group, when it is known.
    #[must_use]
    pub fn value(&self, index: u64) -> Option<GroupValue> {
        usize::try_from(index).ok().and_then(|index| self.values.get(index).copied().flatten())
    }

    /// The first group whose value is known.
    #[must_use]
    pub fn first_known(&self) -> Option<u64> {
        self.values.iter().position(Option::is_some).map(|index| index as u64)
    }

    /// The first group from `from` on, below `count`, whose value is not known.
    #[must_use]
    pub fn first_missing(&self, from: u64, count: u64) -> Option<u64> {
        (from..count).find(|&index| self.value(index).is_none())
    }

    /// The root of a file of `size` bytes; none while a group is missing.
    #[must_use]
    pub fn root(&self, size: u64) -> Option<Root> {
        match group_count(size) {
            0 => Some(Root::of(b"")),
            1 => self.alone,
            count => {
                let count = usize::try_from(count).ok()?;
                let values: Option<Vec<[u8; 32]>> =
                    self.values.get(..count)?.iter().map(|value| value.map(|value| value.0)).collect();
                Some(merge_root(&values?, GROUP_LEN, size))
            }
        }
    }
}

/// The root of `size` bytes from the values of their units, each of this power of two of bytes but for the last. More
/// than one.
fn merge_root(values: &[[u8; 32]], unit: usize, size: u64) -> Root {
    let (left, right, left_len) = split(values, unit, size);
    let left = merge(left, unit, left_len);
    let right = merge(right, unit, size - left_len);
    Root(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
}

fn merge(values: &[[u8; 32]], unit: usize, size: u64) -> [u8; 32] {
    if let [value] = values {
        return *value;
    }
    let (left, right, left_len) = split(values, unit, size);
    merge_subtrees_non_root(&merge(left, unit, left_len), &merge(right, unit, size - left_len), Mode::Hash)
}

/// Splits the units of a subtree of `size` bytes as BLAKE3 does: the largest power of two on the left.
fn split(values: &[[u8; 32]], unit: usize, size: u64) -> (&[[u8; 32]], &[[u8; 32]], u64) {
    let left_len = left_subtree_len(size);
    let left_count = usize::try_from(left_len / unit as u64).expect("fewer units than values");
    let (left, right) = values.split_at(left_count);
    (left, right, left_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn bytes(size: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..size)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    }

    #[track_caller]
    fn check(size: usize) {
        let content = bytes(size);
        let mut tree = Tree::new();
        let mut groups: Vec<_> = content.chunks(GROUP_LEN).enumerate().collect();
        groups.reverse(); // any order
        let count = groups.len() as u64;
        assert_eq!(group_count(size as u64), count, "size {size}");
        for (index, group) in groups {
            assert_eq!(group_len(size as u64, index as u64), group.len());
            assert_eq!(tree.root(size as u64).is_some(), size == 0, "size {size}: a root too early");
            tree.insert(index as u64, GroupHash::of(index as u64, group));
        }
        assert_eq!(tree.root(size as u64), Some(Root::of(&content)), "size {size}");
        assert_eq!(tree.first_missing(0, count), None);
    }

    #[test]
    fn merged_groups_give_the_root_of_the_whole() {
        const G: usize = GROUP_LEN;
        for size in [0, 1, 1023, 1024, 1025, G - 1, G, G + 1, 2 * G - 1, 2 * G, 2 * G + 1, 3 * G, 5 * G + 17, 8 * G] {
            check(size);
        }
    }

    #[test]
    fn pieces_give_the_same_as_the_whole_group() {
        let content = bytes(GROUP_LEN);
        let mut hasher = GroupHasher::new(7);
        for piece in content.chunks(60_001) {
            hasher.update(piece);
        }
        assert_eq!(hasher.finish(), GroupHash::of(7, &content));
    }
}
