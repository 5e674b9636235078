//! Runs of groups: which of them are all zeros.

use std::collections::BTreeMap;

use crate::protocol::Breach;

/// Groups, kept as runs: the first of each, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(BTreeMap<u64, u64>);

impl Runs {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many runs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The runs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(&first, &count)| (first, count))
    }

    /// Adds a group that is not among them. False, and nothing changed, when that would make more than `max` runs.
    pub fn insert(&mut self, group: u64, max: usize) -> bool {
        let before = self.0.range(..group).next_back().map(|(&first, &count)| (first, count));
        let before = before.filter(|&(first, count)| first + count == group);
        let after = self.0.get(&(group + 1)).copied();
        if before.is_none() && after.is_none() && self.0.len() >= max {
            return false;
        }
        if after.is_some() {
            self.0.remove(&(group + 1));
        }
        let first = before.map_or(group, |(first, _)| first);
        let count = before.map_or(0, |(_, count)| count) + 1 + after.unwrap_or(0);
        self.0.insert(first, count);
        true
    }

    /// Adds runs that a peer tells, of a file with `group_count` groups: ascending, behind those that are there.
    ///
    /// # Errors
    /// A [`Breach`] for runs that are empty, out of order or past the end, or more than `max` in all.
    pub fn extend(&mut self, runs: &[(u64, u64)], group_count: u64, max: usize) -> Result<(), Breach> {
        let mut end = self.0.last_key_value().map_or(0, |(&first, &count)| first + count);
        if self.0.len().saturating_add(runs.len()) > max {
            return Err(Breach::Excess("runs of zeros"));
        }
        for &(first, count) in runs {
            let next = first.checked_add(count).filter(|&next| count > 0 && next <= group_count);
            let next = next.ok_or(Breach::Data("zeros past the end of their file"))?;
            if first < end {
                return Err(Breach::Data("zeros out of order"));
            }
            self.0.insert(first, count);
            end = next;
        }
        Ok(())
    }

    /// Takes out at most `max` groups from the beginning.
    pub fn take(&mut self, max: u64) -> Vec<u64> {
        let mut taken = Vec::new();
        while (taken.len() as u64) < max
            && let Some((first, count)) = self.0.pop_first()
        {
            let some = count.min(max - taken.len() as u64);
            taken.extend(first..first + some);
            if some < count {
                self.0.insert(first + some, count - some);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(groups: &[u64], max: usize, expected: &[(u64, u64)]) {
        let mut runs = Runs::default();
        for &group in groups {
            runs.insert(group, max);
        }
        assert_eq!(runs.iter().collect::<Vec<_>>(), expected, "{groups:?}");
    }

    #[test]
    fn groups_that_touch_are_one_run() {
        check(&[], 9, &[]);
        check(&[3], 9, &[(3, 1)]);
        check(&[3, 5, 4, 9], 9, &[(3, 3), (9, 1)]);
        check(&[1, 0, 2], 9, &[(0, 3)]);
        check(&[0, 2, 4, 1], 2, &[(0, 3)]);
    }

    #[test]
    fn they_are_taken_in_pieces() {
        let mut runs = Runs::default();
        runs.extend(&[(1, 3), (10, 1)], 11, 2).unwrap();
        assert_eq!(runs.take(2), [1, 2]);
        assert_eq!(runs.take(9), [3, 10]);
        assert!(runs.is_empty() && runs.take(1).is_empty());
    }

    #[test]
    fn what_cannot_be_is_a_breach() {
        for lies in [&[(0, 0)][..], &[(0, 5)], &[(4, 1)], &[(2, 1), (1, 1)], &[(0, 2), (1, 1)], &[(u64::MAX, 2)]] {
            assert!(Runs::default().extend(lies, 4, 9).is_err(), "{lies:?}");
        }
        let mut runs = Runs::default();
        assert!(runs.extend(&[(0, 1), (2, 1)], 4, 1).is_err(), "too many");
        runs.extend(&[(1, 1)], 4, 9).unwrap();
        assert!(runs.extend(&[(1, 1)], 4, 9).is_err(), "twice");
    }
}
