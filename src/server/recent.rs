//! What is remembered of the latest of many: a bounded map that forgets the oldest first.
//!
//! Entries lie in the order in which they came, and an index of eight bytes each tells where. So most of what a new one
//! touches is in a processor's cache, however many there are, and a growing index need not look at them. With a table
//! of whole entries these maps took a tenth of the time of a server that stores small files.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

/// A hash that spreads well, though clients may choose what it is of.
pub(super) type Key = [u8; 32];

/// The latest entries, at most a given number.
pub(super) struct Recent<V> {
    max: usize,
    /// Oldest first.
    entries: VecDeque<(Key, V)>,
    /// The number of the oldest; they are counted as they come, and around at the end of the numbers.
    oldest: u32,
    index: HashTable<Place>,
    /// Nobody can choose keys that lie next to one another in the index.
    state: RandomState,
}

/// Where an entry is, and a part of its key's hash.
#[derive(Clone, Copy)]
struct Place {
    number: u32,
    tag: u32,
}

impl<V> Recent<V> {
    /// Remembers `max` entries.
    ///
    /// # Panics
    /// When `max` is zero, or more than half of the numbers of 32 bits.
    pub(super) fn new(max: usize) -> Recent<V> {
        assert!((1..=u32::MAX as usize / 2).contains(&max), "a number of entries that can be told apart");
        Recent { max, entries: VecDeque::new(), oldest: 0, index: HashTable::new(), state: RandomState::new() }
    }

    pub(super) fn get(&self, key: &Key) -> Option<&V> {
        self.entries.get(self.find(key)?).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut V> {
        let at = self.find(key)?;
        self.entries.get_mut(at).map(|(_, value)| value)
    }

    /// Takes an entry: the value of one that is there already becomes another, and it is no younger for that. Returns
    /// the value that this one took the place of, or that had to be forgotten for it.
    pub(super) fn insert(&mut self, key: Key, value: V) -> Option<V> {
        if let Some(known) = self.get_mut(&key) {
            return Some(std::mem::replace(known, value));
        }
        let forgotten = if self.entries.len() >= self.max { self.forget_oldest() } else { None };
        let place = Place { number: self.number(self.entries.len()), tag: self.tag(&key) };
        self.index.insert_unique(spread(place.tag), place, |place| spread(place.tag));
        self.entries.push_back((key, value));
        forgotten
    }

    fn forget_oldest(&mut self) -> Option<V> {
        let (key, value) = self.entries.pop_front()?;
        let (oldest, tag) = (self.oldest, self.tag(&key));
        if let Ok(found) = self.index.find_entry(spread(tag), |place| place.number == oldest) {
            found.remove();
        }
        self.oldest = oldest.wrapping_add(1);
        Some(value)
    }

    /// How far from the oldest the entry of this key is.
    fn find(&self, key: &Key) -> Option<usize> {
        let tag = self.tag(key);
        let is_it = |place: &Place| place.tag == tag && self.entries[self.at(*place)].0 == *key;
        self.index.find(spread(tag), is_it).map(|place| self.at(*place))
    }

    fn at(&self, place: Place) -> usize {
        place.number.wrapping_sub(self.oldest) as usize
    }

    /// The number of the entry so far from the oldest.
    fn number(&self, at: usize) -> u32 {
        // There are fewer than numbers.
        self.oldest.wrapping_add(at as u32)
    }

    /// Keys are hashes already; who does not know the state cannot tell which have the same tag.
    fn tag(&self, key: &Key) -> u32 {
        self.state.hash_one(key.first_chunk::<8>()) as u32
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The table takes the place from the low bits and compares the high ones.
fn spread(tag: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(tag)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn key(number: u32) -> Key {
        *blake3::hash(&number.to_be_bytes()).as_bytes()
    }

    #[test]
    fn the_oldest_is_forgotten_and_a_new_value_does_not_make_it_younger() {
        let mut recent = Recent::new(3);
        for number in 0..3 {
            assert_eq!(recent.insert(key(number), number), None);
        }
        assert_eq!(recent.insert(key(0), 10), Some(0));
        assert_eq!(recent.insert(key(3), 3), Some(10));
        assert_eq!(recent.get(&key(0)), None);
        assert_eq!([1, 2, 3].map(|number| recent.get(&key(number)).copied()), [Some(1), Some(2), Some(3)]);
        *recent.get_mut(&key(2)).unwrap() = 20;
        assert_eq!(recent.insert(key(0), 0), Some(1));
        assert_eq!(recent.insert(key(1), 1), Some(20));
        assert_eq!(recent.len(), 3);
    }

    #[test]
    fn it_is_as_a_map_with_a_queue_also_when_the_numbers_begin_again() {
        const MAX: usize = 50;
        let mut recent = Recent::new(MAX);
        recent.oldest = u32::MAX - 100;
        let (mut map, mut queue) = (HashMap::new(), VecDeque::new());
        let mut state = 1_u64;
        for turn in 0..2_000_u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 33) as u32 % 80;
            assert_eq!(recent.get(&key(number)), map.get(&number), "turn {turn}");
            let mut expected = map.insert(number, turn);
            if expected.is_none() {
                queue.push_back(number);
                if queue.len() > MAX {
                    expected = queue.pop_front().and_then(|oldest| map.remove(&oldest));
                }
            }
            assert_eq!(recent.insert(key(number), turn), expected, "turn {turn}");
        }
        assert_eq!((recent.len(), recent.index.len()), (MAX, MAX));
    }
}
