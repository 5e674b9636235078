//! Decides which groups of one file of known size go out, and when it is finished.

use std::collections::{BTreeSet, VecDeque};

use crate::hash::{GroupHash, GroupValue, Tree, group_count, group_len, group_offset};
use crate::limits::GROUP_LEN;
use crate::protocol::{Breach, Finish, Kind};

/// What to do with a group that has been read and hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send it.
    Send,
    /// Send what comes after so many bytes: the other side has its beginning.
    SendFrom(usize),
    /// The other side has it.
    Keep,
    /// It differs, and sending is not allowed: the file is not the same.
    Differs,
}

/// A group to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its index.
    pub group: u64,
    /// The other side has so many bytes of its beginning: their value is to be told to [`Sender::judge`] too.
    pub prefix: Option<usize>,
}

/// The state of one outgoing file.
#[derive(Debug)]
pub struct Sender {
    size: u64,
    /// The next group that was never handed out, of those that the other side does not claim.
    next: u64,
    /// The same of those that it claims.
    next_claimed: u64,
    /// Groups handed out and given back.
    again: VecDeque<u64>,
    /// Groups handed out and not yet settled.
    busy: BTreeSet<u64>,
    claims: Claims,
    /// Whether a claim of a part of a group says that its rest may come alone.
    has_prefixes: bool,
    compare_only: bool,
    tree: Tree,
}

/// What the other side says that it has, and the values that it has told.
#[derive(Debug, Default)]
struct Claims {
    /// Ascending ranges of offset and end.
    ranges: Vec<(u64, u64)>,
    values: Vec<Option<GroupValue>>,
    /// The first group whose value may still be told.
    told: u64,
}

impl Claims {
    /// The claimed range that this group begins in, and what is claimed of the group.
    fn of(&self, group: u64) -> Option<u64> {
        let start = group_offset(group);
        let index = self.ranges.partition_point(|range| range.1 <= start);
        let range = self.ranges.get(index).filter(|range| range.0 <= start)?;
        Some((range.1 - start).min(GROUP_LEN as u64))
    }

    /// The first group from this one on that is, or is not, claimed.
    fn next(&self, group: u64, claimed: bool) -> u64 {
        let start = group_offset(group);
        let index = self.ranges.partition_point(|range| range.1 <= start);
        match (self.ranges.get(index), claimed) {
            (Some(range), true) => range.0.max(start) / GROUP_LEN as u64,
            (None, true) => u64::MAX,
            (Some(_), false) => {
                let mut group = group;
                for range in &self.ranges[index..] {
                    if group_offset(group) < range.0 {
                        break;
                    }
                    group = range.1.div_ceil(GROUP_LEN as u64);
                }
                group
            }
            (None, false) => group,
        }
    }

    fn value(&self, group: u64) -> Option<GroupValue> {
        usize::try_from(group).ok().and_then(|index| self.values.get(index).copied().flatten())
    }
}

impl Sender {
    /// All of a file of this size is to be sent.
    #[must_use]
    pub fn new(size: u64) -> Sender {
        Sender {
            size,
            next: 0,
            next_claimed: 0,
            again: VecDeque::new(),
            busy: BTreeSet::new(),
            claims: Claims::default(),
            has_prefixes: false,
            compare_only: false,
            tree: Tree::new(),
        }
    }

    /// All of a file of this size is to be sent, of which an earlier attempt has hashed these groups.
    #[must_use]
    pub fn knowing(size: u64, tree: Tree) -> Sender {
        Sender { tree, ..Sender::new(size) }
    }

    /// What is known of the file's hash by now, for [`Sender::knowing`].
    #[must_use]
    pub fn into_tree(self) -> Tree {
        self.tree
    }

    /// The next group that need not be read: its hash is known, and the other side has told that it has it.
    pub fn keep_known(&mut self) -> Option<u64> {
        self.next_claimed = self.claims.next(self.next_claimed, true).min(group_count(self.size));
        let group = self.next_claimed;
        let is_told = group < group_count(self.size) && group < self.claims.told;
        if !is_told || self.tree.value(group).is_none_or(|value| self.claims.value(group) != Some(value)) {
            return None;
        }
        self.next_claimed += 1;
        Some(group)
    }

    /// The other side has a version of this size, whose values will come.
    pub fn set_base(&mut self, size: u64, compare_only: bool) {
        self.claims.ranges = if size > 0 { vec![(0, size)] } else { Vec::new() };
        self.compare_only = compare_only;
    }

    /// The other side holds these ranges (offset and length), whose values will come.
    ///
    /// # Errors
    /// A [`Breach`] for ranges that are empty, out of order, past the end, or do not begin where a group does.
    pub fn set_held(&mut self, ranges: &[(u64, u64)]) -> Result<(), Breach> {
        self.has_prefixes = true;
        let mut before = 0;
        for &(offset, len) in ranges {
            let end = offset.checked_add(len).filter(|&end| len > 0 && end <= self.size);
            let end = end.ok_or(Breach::Data("a held range past the end of its file"))?;
            if offset < before || !offset.is_multiple_of(GROUP_LEN as u64) {
                return Err(Breach::Data("held ranges out of order"));
            }
            before = end.div_ceil(GROUP_LEN as u64) * GROUP_LEN as u64;
            self.claims.ranges.push((offset, end));
        }
        Ok(())
    }

    /// Takes values of what is claimed, in order.
    ///
    /// # Errors
    /// A [`Breach`] for values out of order, or of groups that were not claimed.
    pub fn add_values(&mut self, first: u64, values: &[GroupValue]) -> Result<(), Breach> {
        if self.claims.ranges.is_empty() {
            return Err(Breach::Unexpected { kind: Kind::Values, why: "nothing was said to be held" });
        }
        for (group, value) in (first..).zip(values) {
            if group != self.claims.next(self.claims.told, true) {
                return Err(Breach::Data("group values out of order"));
            }
            self.claims.told = group + 1;
            let index = usize::try_from(group).map_err(|_| Breach::Data("group values out of order"))?;
            if group < group_count(self.size) {
                self.claims.values.resize(index + 1, None);
                self.claims.values[index] = Some(*value);
            }
        }
        Ok(())
    }

    /// The next group to read; none when all are handed out, or the values of the others have yet to come. What is
    /// not claimed comes first.
    pub fn take(&mut self) -> Option<Taken> {
        let count = group_count(self.size);
        self.next = self.claims.next(self.next, false).min(count);
        self.next_claimed = self.claims.next(self.next_claimed, true).min(count);
        let group = if let Some(group) = self.again.pop_front() {
            group
        } else if self.next < count {
            self.next += 1;
            self.next - 1
        } else if self.next_claimed < count && self.next_claimed < self.claims.told {
            self.next_claimed += 1;
            self.next_claimed - 1
        } else {
            return None;
        };
        self.busy.insert(group);
        Some(Taken { group, prefix: self.prefix(group) })
    }

    /// Bytes of the beginning of a group that the other side has, if it has no more of it.
    fn prefix(&self, group: u64) -> Option<usize> {
        let len = usize::try_from(self.claims.of(group)?).ok()?;
        (self.has_prefixes && len < group_len(self.size, group)).then_some(len)
    }

    /// Takes a group back that was handed out and did not get through.
    pub fn give_back(&mut self, group: u64) {
        if self.busy.remove(&group) {
            self.again.push_back(group);
        }
    }

    /// Judges a group by its hash, and by the value of its beginning if that was asked for. After
    /// [`Decision::Send`] the group stays open until [`Sender::sent`].
    pub fn judge(&mut self, group: u64, hash: GroupHash, prefix: Option<GroupValue>) -> Decision {
        self.tree.insert(group, hash);
        let told = self.claims.value(group);
        if told == Some(hash.value) {
            self.busy.remove(&group);
            return Decision::Keep;
        }
        if self.compare_only {
            return Decision::Differs;
        }
        match self.prefix(group) {
            Some(len) if told.is_some() && told == prefix => Decision::SendFrom(len),
            _ => Decision::Send,
        }
    }

    /// A group is on its way.
    pub fn sent(&mut self, group: u64) {
        self.busy.remove(&group);
    }

    /// The finish, once every group is hashed and sent or kept.
    #[must_use]
    pub fn finish(&self) -> Option<Finish> {
        if self.busy.is_empty() { self.foretell_finish() } else { None }
    }

    /// What the finish will say, once every group is hashed and handed out or kept: [`Sender::busy`] of them are not
    /// known to be through.
    #[must_use]
    pub fn foretell_finish(&self) -> Option<Finish> {
        let count = group_count(self.size);
        let is_out = self.claims.next(self.next, false) >= count && self.claims.next(self.next_claimed, true) >= count;
        // The root last: it takes a look at every group.
        let root = (is_out && self.again.is_empty()).then(|| self.tree.root(self.size))??;
        Some(Finish { size: self.size, root })
    }

    /// How many groups are handed out and not settled.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.busy.len()
    }

    /// Settles all groups that are handed out: the other side has the whole.
    pub fn take_busy(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Root;

    const G: u64 = GROUP_LEN as u64;

    fn groups() -> Vec<Vec<u8>> {
        (0..4_u8).map(|byte| vec![byte; GROUP_LEN]).collect()
    }

    fn value(group: u64, bytes: &[u8]) -> GroupValue {
        GroupHash::of(group, bytes).value
    }

    /// Hands out everything that can be had, and says what was to be sent of each group.
    fn run(sender: &mut Sender, groups: &[Vec<u8>]) -> Vec<(u64, usize)> {
        let mut sent = Vec::new();
        while let Some(Taken { group, prefix }) = sender.take() {
            assert_eq!(sender.finish(), None);
            let bytes = &groups[group as usize];
            let prefix = prefix.map(|len| value(group, &bytes[..len]));
            match sender.judge(group, GroupHash::of(group, bytes), prefix) {
                Decision::Send => sent.push((group, 0)),
                Decision::SendFrom(len) => sent.push((group, len)),
                Decision::Keep => {}
                Decision::Differs => panic!("{group} differs"),
            }
            sender.sent(group);
        }
        sent
    }

    #[test]
    fn only_what_differs_is_sent() {
        let groups = groups();
        let size = 4 * G;
        let mut sender = Sender::new(size);
        sender.set_base(size, false);
        assert_eq!(sender.take(), None, "no group before its value");
        let mut values: Vec<_> = (0..4_usize).map(|i| value(i as u64, &groups[i])).collect();
        values[2] = value(2, &[9; 5]);
        sender.add_values(0, &values[..1]).unwrap();
        assert!(sender.add_values(0, &values[..1]).is_err(), "twice");
        assert_eq!(run(&mut sender, &groups), []);
        sender.add_values(1, &values[1..]).unwrap();
        assert!(sender.add_values(4, &values[..1]).is_err(), "too many");
        assert_eq!(run(&mut sender, &groups), [(2, 0)]);
        assert_eq!(sender.finish(), Some(Finish { size, root: Root::of(&groups.concat()) }));
    }

    #[test]
    fn what_is_not_claimed_goes_first_and_of_what_is_begun_only_the_rest() {
        let groups = groups();
        let size = 4 * G;
        let mut sender = Sender::new(size);
        sender.set_held(&[(0, G + 65536), (3 * G, 65536)]).unwrap();
        assert_eq!(run(&mut sender, &groups), [(2, 0)]);
        sender.add_values(0, &[GroupValue::NONE, value(1, &groups[1][..65536])]).unwrap();
        assert_eq!(run(&mut sender, &groups), [(0, 0), (1, 65536)]);
        assert!(sender.add_values(2, &[GroupValue::NONE]).is_err(), "not claimed");
        sender.add_values(3, &[value(3, b"something else")]).unwrap();
        assert_eq!(sender.finish(), None);
        assert_eq!(run(&mut sender, &groups), [(3, 0)]);
        assert_eq!(sender.finish(), Some(Finish { size, root: Root::of(&groups.concat()) }));
    }

    #[test]
    fn what_an_earlier_attempt_has_hashed_is_not_read_again() {
        let groups = groups();
        let size = 4 * G;
        let mut sender = Sender::new(size);
        run(&mut sender, &groups[..]);
        let finish = sender.finish();
        let mut sender = Sender::knowing(size, sender.into_tree());
        sender.set_held(&[(0, 2 * G + 65536), (3 * G, G)]).unwrap();
        assert_eq!(sender.keep_known(), None, "nothing is told yet");
        let begun = value(2, &groups[2][..65536]);
        sender.add_values(0, &[value(0, &groups[0]), value(1, b"another"), begun]).unwrap();
        assert_eq!(sender.keep_known(), Some(0));
        assert_eq!(sender.keep_known(), None, "the next is another one there");
        assert_eq!(run(&mut sender, &groups), [(1, 0), (2, 65536)]);
        assert_eq!(sender.finish(), None);
        sender.add_values(3, &[value(3, &groups[3])]).unwrap();
        assert_eq!(sender.keep_known(), Some(3));
        assert_eq!(sender.take(), None);
        assert_eq!(sender.finish(), finish);
    }

    #[test]
    fn a_base_that_ends_inside_a_group_has_nothing_of_it() {
        let groups = groups();
        let mut sender = Sender::new(2 * G);
        sender.set_base(G + 500, false);
        sender.add_values(0, &[value(0, &groups[0]), value(1, &groups[1][..500])]).unwrap();
        assert_eq!(run(&mut sender, &groups), [(1, 0)]);
    }

    #[test]
    fn claims_that_cannot_be_are_breaches() {
        for ranges in [
            &[(0, 0)][..],
            &[(0, 4 * G + 1)],
            &[(5, G)],
            &[(G, G), (0, G)],
            &[(0, 65536), (G / 2, 65536)],
            &[(u64::MAX - 5, 10)],
        ] {
            assert!(Sender::new(4 * G).set_held(ranges).is_err(), "{ranges:?}");
        }
        assert!(Sender::new(4 * G).add_values(0, &[GroupValue::NONE]).is_err(), "values of nothing");
    }

    #[test]
    fn an_empty_file_is_finished_at_once() {
        assert_eq!(Sender::new(0).finish(), Some(Finish { size: 0, root: Root::of(b"") }));
        let mut sender = Sender::new(0);
        sender.set_base(2 * G, false);
        assert_eq!(sender.take(), None);
        assert_eq!(sender.finish(), Some(Finish { size: 0, root: Root::of(b"") }));
    }

    #[test]
    fn a_group_given_back_is_handed_out_again() {
        let mut sender = Sender::new(1);
        assert_eq!(sender.take().map(|taken| taken.group), Some(0));
        sender.give_back(0);
        assert_eq!(sender.take().map(|taken| taken.group), Some(0));
        sender.judge(0, GroupHash::of(0, b"x"), None);
        assert_eq!(sender.finish(), None, "hashed but not sent");
        sender.sent(0);
        assert!(sender.finish().is_some());
    }
}
