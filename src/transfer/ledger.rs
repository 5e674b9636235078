//! What a server holds of an unfinished upload, and the record that outlives it.
//!
//! A [`Ledger`] is a claim, never a proof: whoever goes on from it reads and hashes what it names before anything of
//! that counts. It knows whole groups by their values, and begun ones by their length in steps of [`PREFIX_STEP`].
//! [`Record::encode`] gives the bytes that are put on disk; they end in a checksum, so that a torn or damaged record
//! is found out and merely costs what it told of.

use std::collections::BTreeMap;

use crate::hash::{GroupValue, group_count, group_len, group_offset};
use crate::limits::{FILE_SIZE_MAX, GROUP_LEN, HELD_RANGES_MAX, PREFIX_STEP};
use crate::path::RemotePath;

/// What a record begins with: its kind and version.
const MAGIC: &[u8; 8] = b"SLHELD\x00\x01";
/// Bytes of the checksum at its end.
const CHECKSUM_LEN: usize = 32;
/// Begun groups that are remembered: more than connections of a transfer can have.
const PREFIXES_MAX: usize = 256;

/// The part of a group that is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// All of it, with this value.
    Whole(GroupValue),
    /// So many of its first bytes.
    Prefix(usize),
}

/// What is held of one file of known size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    size: u64,
    values: Vec<Option<GroupValue>>,
    prefixes: BTreeMap<u64, usize>,
    count: u64,
}

impl Ledger {
    /// Nothing is held yet of a file of this size.
    #[must_use]
    pub fn new(size: u64) -> Ledger {
        Ledger { size, values: Vec::new(), prefixes: BTreeMap::new(), count: 0 }
    }

    /// The size of the file, as it was described.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are claimed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let whole = match self.value(group_count(self.size).saturating_sub(1)) {
            Some(_) => (self.count - 1) * GROUP_LEN as u64 + group_len(self.size, group_count(self.size) - 1) as u64,
            None => self.count * GROUP_LEN as u64,
        };
        whole + self.prefixes.values().map(|&len| len as u64).sum::<u64>()
    }

    /// Where the last byte that is claimed ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        let whole = self.values.iter().rposition(Option::is_some);
        let whole = whole.map_or(0, |group| group_offset(group as u64) + group_len(self.size, group as u64) as u64);
        let begun = self.prefixes.last_key_value().map_or(0, |(&group, &len)| group_offset(group) + len as u64);
        whole.max(begun)
    }

    /// How many groups are whole.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What is claimed of a group.
    #[must_use]
    pub fn claim(&self, group: u64) -> Option<Claim> {
        self.value(group).map(Claim::Whole).or_else(|| self.prefixes.get(&group).map(|&len| Claim::Prefix(len)))
    }

    fn value(&self, group: u64) -> Option<GroupValue> {
        usize::try_from(group).ok().and_then(|index| self.values.get(index).copied().flatten())
    }

    /// A whole group is where it belongs.
    pub fn insert(&mut self, group: u64, value: GroupValue) {
        let Ok(index) = usize::try_from(group) else { return };
        if group >= group_count(self.size) {
            return;
        }
        if self.values.len() <= index {
            self.values.resize(index + 1, None);
        }
        self.count += u64::from(self.values[index].replace(value).is_none());
        self.prefixes.remove(&group);
    }

    /// The first `len` bytes of a group are where they belong; whole steps of them count.
    pub fn insert_prefix(&mut self, group: u64, len: usize) {
        let len = len.min(group_len(self.size, group)) / PREFIX_STEP * PREFIX_STEP;
        if len == 0 || self.value(group).is_some() || group >= group_count(self.size) {
            return;
        }
        if self.prefixes.len() < PREFIXES_MAX || self.prefixes.contains_key(&group) {
            self.prefixes.insert(group, len);
        }
    }

    /// A group is being written anew: nothing of it is held any more.
    pub fn remove(&mut self, group: u64) {
        let value = usize::try_from(group).ok().and_then(|index| self.values.get_mut(index));
        self.count -= u64::from(value.is_some_and(|value| value.take().is_some()));
        self.prefixes.remove(&group);
    }

    /// The file has another size now. What lies past it is gone; a last group of another length is a prefix.
    pub fn resize(&mut self, size: u64) {
        if size == self.size {
            return;
        }
        let old = std::mem::replace(self, Ledger::new(size));
        for group in 0..group_count(size.min(old.size)) {
            let (before, after) = (group_len(old.size, group), group_len(size, group));
            match old.claim(group) {
                Some(Claim::Whole(value)) if before == after => self.insert(group, value),
                Some(Claim::Whole(_)) => self.insert_prefix(group, before.min(after)),
                Some(Claim::Prefix(len)) => self.insert_prefix(group, len),
                None => {}
            }
        }
    }

    /// What is claimed, as ascending ranges of offset and length; `also` says which further groups are. A range ends
    /// inside a group where only its beginning is claimed, and the ranges are at most [`HELD_RANGES_MAX`]: what does
    /// not fit is not claimed.
    #[must_use]
    pub fn ranges(&self, also: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for group in 0..group_count(self.size) {
            let whole = group_len(self.size, group) as u64;
            let len = match self.claim(group) {
                Some(Claim::Whole(_)) => whole,
                Some(Claim::Prefix(len)) => len as u64,
                None if also(group) => whole,
                None => continue,
            };
            let (offset, count) = (group_offset(group), ranges.len());
            match ranges.last_mut() {
                Some((start, end)) if *start + *end == offset => *end += len,
                _ if count == HELD_RANGES_MAX => break,
                _ => ranges.push((offset, len)),
            }
        }
        ranges
    }
}

/// An unfinished upload as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The attempt that made this record; a later one has a higher number.
    pub generation: u64,
    /// Whose it is: a hash of the principal.
    pub owner: [u8; 32],
    /// What the owner is called, for people.
    pub owner_name: String,
    /// The name that the file shall have.
    pub path: RemotePath,
    /// When it was begun, in seconds since 1970.
    pub begun: u64,
    /// When something of it last came, in seconds since 1970.
    pub touched: u64,
    /// Where its content is staged; what that means is the storage's matter.
    pub place: Vec<u8>,
    /// What is held.
    pub held: Ledger,
}

impl Record {
    /// The bytes of the record: numbers big-endian, texts and lists with their length before them, a checksum last.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256 + self.held.values.len() * 33);
        bytes.extend_from_slice(MAGIC);
        for number in [self.generation, self.begun, self.touched, self.held.size] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.owner);
        for text in [self.owner_name.as_bytes(), &self.path.to_bytes(), &self.place] {
            push_count(&mut bytes, text.len());
            bytes.extend_from_slice(text);
        }
        let mut runs: Vec<(u64, &[Option<GroupValue>])> = Vec::new();
        let mut index = 0;
        for run in self.held.values.chunk_by(|left, right| left.is_some() == right.is_some()) {
            if run.first().is_some_and(Option::is_some) {
                runs.push((index, run));
            }
            index += run.len() as u64;
        }
        push_count(&mut bytes, runs.len());
        for (first, run) in runs {
            bytes.extend_from_slice(&first.to_be_bytes());
            push_count(&mut bytes, run.len());
            run.iter().flatten().for_each(|value| bytes.extend_from_slice(&value.0));
        }
        push_count(&mut bytes, self.held.prefixes.len());
        for (group, len) in &self.held.prefixes {
            bytes.extend_from_slice(&group.to_be_bytes());
            push_count(&mut bytes, *len);
        }
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    /// Reads a record. None for bytes that are not exactly one whole, undamaged record of this version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_LEN)?)?;
        if blake3::hash(content).as_bytes() != checksum {
            return None;
        }
        let mut rest = content.strip_prefix(MAGIC.as_slice())?;
        let (generation, begun) = (take_number(&mut rest)?, take_number(&mut rest)?);
        let (touched, size) = (take_number(&mut rest)?, take_number(&mut rest)?);
        let owner = *take(&mut rest, 32)?.first_chunk()?;
        let owner_name = take_text(&mut rest)?;
        let path = RemotePath::parse(take_text(&mut rest)?).ok()?;
        let place = take_text(&mut rest)?.to_vec();
        if size > FILE_SIZE_MAX {
            return None;
        }
        let mut held = Ledger::new(size);
        for _ in 0..take_count(&mut rest)? {
            let first = take_number(&mut rest)?;
            let count = take_count(&mut rest)?;
            let values = take(&mut rest, count.checked_mul(32)?)?;
            for (group, value) in (first..group_count(size)).zip(values.chunks_exact(32)) {
                held.insert(group, GroupValue(*value.first_chunk()?));
            }
        }
        for _ in 0..take_count(&mut rest)? {
            let group = take_number(&mut rest)?;
            held.insert_prefix(group, take_count(&mut rest)?);
        }
        let owner_name = String::from_utf8(owner_name.to_vec()).ok()?;
        rest.is_empty().then_some(Record { generation, owner, owner_name, path, begun, touched, place, held })
    }
}

fn push_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend_from_slice(&u32::try_from(count).expect("a record counts in 32 bits").to_be_bytes());
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    take(rest, 8)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn take_count(rest: &mut &[u8]) -> Option<usize> {
    take(rest, 4)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_count(rest)?;
    take(rest, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = GROUP_LEN as u64;

    fn record() -> Record {
        let mut held = Ledger::new(9 * G + 100_000);
        for group in [0, 1, 2, 5, 9] {
            held.insert(group, GroupValue([u8::try_from(group).unwrap() + 1; 32]));
        }
        held.insert_prefix(3, 200_000);
        held.insert_prefix(7, PREFIX_STEP - 1);
        Record {
            generation: 7,
            owner: [3; 32],
            owner_name: "alice".to_owned(),
            path: RemotePath::parse(b"in/a b").unwrap(),
            begun: 10,
            touched: 20,
            place: b"Px".to_vec(),
            held,
        }
    }

    #[test]
    fn a_record_goes_round_and_any_damage_is_found() {
        let record = record();
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Some(record));
        for len in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..len]), None, "cut at {len}");
        }
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert_eq!(Record::decode(&damaged), None, "bit {at}");
        }
        assert_eq!(Record::decode(&[bytes.as_slice(), b"x"].concat()), None);
    }

    #[test]
    fn ranges_are_what_is_held() {
        let held = record().held;
        let last = 9 * G;
        let prefix = 3 * PREFIX_STEP as u64;
        assert_eq!(held.ranges(|_| false), [(0, 3 * G + prefix), (5 * G, G), (last, 100_000)]);
        assert_eq!((held.bytes(), held.end()), (4 * G + 100_000 + prefix, last + 100_000));
        // What a base has fills the gaps, but for the rest of a begun group.
        assert_eq!(held.ranges(|_| true), [(0, 3 * G + prefix), (4 * G, 5 * G + 100_000)]);
        let mut scattered = Ledger::new(3 * HELD_RANGES_MAX as u64 * 2 * G);
        (0..3 * HELD_RANGES_MAX as u64).for_each(|index| scattered.insert(2 * index, GroupValue([1; 32])));
        assert_eq!(scattered.ranges(|_| false).len(), HELD_RANGES_MAX);
    }

    #[test]
    fn another_size_keeps_what_lies_in_both() {
        let mut held = record().held;
        held.resize(20 * G);
        assert_eq!(held.claim(9), Some(Claim::Prefix(PREFIX_STEP)), "a last group that goes on");
        assert_eq!(held.claim(5), Some(Claim::Whole(GroupValue([6; 32]))));
        held.resize(2 * G + 70_000);
        assert_eq!(held.claim(2), Some(Claim::Prefix(PREFIX_STEP)), "one that ends earlier");
        assert_eq!(held.claim(3), None);
        assert_eq!(held.bytes(), 2 * G + PREFIX_STEP as u64);
        held.remove(0);
        held.remove(0);
        assert_eq!((held.claim(0), held.count()), (None, 1));
    }
}
