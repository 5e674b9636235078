//! Decides which ranges a download asks for, and how far ahead.

use std::collections::VecDeque;

use crate::hash::{group_count, group_len, group_offset};

/// The groups of one incoming file that are still to be asked for.
#[derive(Debug)]
pub struct Fetcher {
    size: u64,
    next: u64,
    again: VecDeque<u64>,
}

impl Fetcher {
    /// All of a file of this size is wanted.
    #[must_use]
    pub fn new(size: u64) -> Fetcher {
        Fetcher { size, next: 0, again: VecDeque::new() }
    }

    /// The next range to ask for: offset and length of one group.
    pub fn take(&mut self) -> Option<(u64, u64)> {
        let group = match self.again.pop_front() {
            Some(group) => group,
            None if self.next < group_count(self.size) => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        Some((group_offset(group), group_len(self.size, group) as u64))
    }

    /// Takes back a group that was asked for and did not come whole.
    pub fn give_back(&mut self, group: u64) {
        self.again.push_back(group);
    }

    /// Whether everything has been asked for.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.again.is_empty() && self.next >= group_count(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::GROUP_LEN;

    #[test]
    fn asks_for_each_group_once_and_again_when_given_back() {
        let size = 2 * GROUP_LEN as u64 + 3;
        let mut fetcher = Fetcher::new(size);
        let g = GROUP_LEN as u64;
        assert_eq!(fetcher.take(), Some((0, g)));
        assert_eq!(fetcher.take(), Some((g, g)));
        fetcher.give_back(0);
        assert_eq!(fetcher.take(), Some((0, g)));
        assert_eq!(fetcher.take(), Some((2 * g, 3)));
        assert!(fetcher.is_exhausted());
        assert_eq!(fetcher.take(), None);
    }
}
