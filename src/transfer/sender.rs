//! Decides which groups of one file of known size go out, and when it is finished.

use std::collections::{BTreeSet, VecDeque};

use crate::hash::{GroupHash, GroupValue, Tree, group_count, group_len};
use crate::protocol::{Breach, Finish, Kind};

/// What to do with a group that has been read and hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send it.
    Send,
    /// The other side has it.
    Keep,
    /// It differs, and sending is not allowed: the file is not the same.
    Differs,
}

/// The state of one outgoing file.
#[derive(Debug)]
pub struct Sender {
    size: u64,
    /// The next group that was never handed out.
    next: u64,
    /// Groups handed out and given back.
    again: VecDeque<u64>,
    /// Groups handed out and not yet settled.
    busy: BTreeSet<u64>,
    base: Option<Base>,
    tree: Tree,
}

#[derive(Debug)]
struct Base {
    size: u64,
    values: Vec<GroupValue>,
    compare_only: bool,
}

impl Sender {
    /// All of a file of this size is to be sent.
    #[must_use]
    pub fn new(size: u64) -> Sender {
        Sender { size, next: 0, again: VecDeque::new(), busy: BTreeSet::new(), base: None, tree: Tree::new() }
    }

    /// The other side has a version of this size, whose values will come.
    pub fn set_base(&mut self, size: u64, compare_only: bool) {
        self.base = Some(Base { size, values: Vec::new(), compare_only });
    }

    /// Takes values of the base, in order.
    ///
    /// # Errors
    /// A [`Breach`] for values out of order, too many, or without a base.
    pub fn add_values(&mut self, first: u64, values: &[GroupValue]) -> Result<(), Breach> {
        let Some(base) = &mut self.base else {
            return Err(Breach::Unexpected { kind: Kind::Values, why: "no base was announced" });
        };
        if first != base.values.len() as u64 || first + values.len() as u64 > group_count(base.size) {
            return Err(Breach::Data("group values out of order"));
        }
        base.values.extend_from_slice(values);
        Ok(())
    }

    /// The next group to read; none when all are handed out, or the next one's value has yet to come.
    pub fn take(&mut self) -> Option<u64> {
        let group = match self.again.pop_front() {
            Some(group) => group,
            None if self.next < group_count(self.size) && self.is_known(self.next) => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.busy.insert(group);
        Some(group)
    }

    /// Whether all that can be known of the other side's copy of this group is known.
    fn is_known(&self, group: u64) -> bool {
        self.base.as_ref().is_none_or(|base| group >= group_count(base.size) || group < base.values.len() as u64)
    }

    /// Takes a group back that was handed out and did not get through.
    pub fn give_back(&mut self, group: u64) {
        if self.busy.remove(&group) {
            self.again.push_back(group);
        }
    }

    /// Judges a group by its hash. After [`Decision::Send`] the group stays open until [`Sender::sent`].
    pub fn judge(&mut self, group: u64, hash: GroupHash) -> Decision {
        self.tree.insert(group, hash);
        let Some(base) = &self.base else { return Decision::Send };
        let same = group_len(base.size, group) == group_len(self.size, group)
            && usize::try_from(group).ok().and_then(|index| base.values.get(index)) == Some(&hash.value);
        if same {
            self.busy.remove(&group);
            Decision::Keep
        } else if base.compare_only {
            Decision::Differs
        } else {
            Decision::Send
        }
    }

    /// A group is on its way.
    pub fn sent(&mut self, group: u64) {
        self.busy.remove(&group);
    }

    /// The finish, once every group is hashed and sent or kept.
    #[must_use]
    pub fn finish(&self) -> Option<Finish> {
        let settled = self.next == group_count(self.size) && self.again.is_empty() && self.busy.is_empty();
        let root = self.tree.root(self.size).filter(|_| settled)?;
        Some(Finish { size: self.size, root })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Root;
    use crate::limits::GROUP_LEN;

    #[test]
    fn only_what_differs_is_sent() {
        let groups: Vec<Vec<u8>> = (0..4_u8).map(|byte| vec![byte; GROUP_LEN]).collect();
        let size = 4 * GROUP_LEN as u64;
        let mut sender = Sender::new(size);
        sender.set_base(size, false);
        assert_eq!(sender.take(), None, "no group before its value");
        let mut values: Vec<_> = (0..4_usize).map(|i| GroupHash::of(i as u64, &groups[i]).value).collect();
        values[2] = GroupHash::of(2, &[9; 5]).value;
        sender.add_values(0, &values[..1]).unwrap();
        assert!(sender.add_values(0, &values[..1]).is_err(), "twice");
        assert!(sender.add_values(1, &[values[0]; 4]).is_err(), "too many");
        sender.add_values(1, &values[1..]).unwrap();
        let mut sent = Vec::new();
        while let Some(group) = sender.take() {
            assert_eq!(sender.finish(), None);
            if sender.judge(group, GroupHash::of(group, &groups[group as usize])) == Decision::Send {
                sent.push(group);
                sender.sent(group);
            }
        }
        assert_eq!(sent, [2]);
        assert_eq!(sender.finish(), Some(Finish { size, root: Root::of(&groups.concat()) }));
    }

    #[test]
    fn an_empty_file_is_finished_at_once() {
        assert_eq!(Sender::new(0).finish(), Some(Finish { size: 0, root: Root::of(b"") }));
    }

    #[test]
    fn a_group_given_back_is_handed_out_again() {
        let mut sender = Sender::new(1);
        assert_eq!(sender.take(), Some(0));
        sender.give_back(0);
        assert_eq!(sender.take(), Some(0));
        sender.judge(0, GroupHash::of(0, b"x"));
        assert_eq!(sender.finish(), None, "hashed but not sent");
        sender.sent(0);
        assert!(sender.finish().is_some());
    }
}
