//! Files with several names (hard links), as far as a transfer has met them. Pure.
//!
//! The first name of a file that is met is moved like any other file; those that are met later wait until it is
//! there, and are then made as further names of it at the destination. Only files with several names are
//! remembered, at most [`SHARED_FILES_MAX`]; beyond that, each name counts as a file of its own, which is told.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use crate::limits::SHARED_FILES_MAX;
use crate::protocol::Bytes16;

/// Where the first name of a file is at the destination, once it is there.
#[derive(Debug)]
pub(crate) struct Lead<P>(Arc<OnceLock<P>>);

impl<P> Clone for Lead<P> {
    fn clone(&self) -> Self {
        Lead(Arc::clone(&self.0))
    }
}

impl<P> Lead<P> {
    fn new() -> Lead<P> {
        Lead(Arc::default())
    }

    /// It is there, durably.
    pub(crate) fn is_there(&self, place: P) {
        // The first word stands.
        let _ = self.0.set(place);
    }
}

/// What a name is to a transfer.
#[derive(Debug)]
pub(crate) enum Met<P> {
    /// The first one of its file: it is moved.
    First(Lead<P>),
    /// A further one: it waits.
    Further,
    /// Too many are remembered: it is moved as a file of its own.
    Unknown,
}

/// The files with several names that were met, and the further names `T` that wait.
#[derive(Debug)]
pub(crate) struct Names<P, T> {
    first: HashMap<Bytes16, Lead<P>>,
    waiting: Vec<(Bytes16, T)>,
    max: usize,
}

impl<P, T> Default for Names<P, T> {
    fn default() -> Self {
        Names { first: HashMap::new(), waiting: Vec::new(), max: SHARED_FILES_MAX }
    }
}

impl<P: Clone, T> Names<P, T> {
    /// Takes note of a name of this file.
    pub(crate) fn meet(&mut self, file: Bytes16) -> Met<P> {
        let is_full = self.first.len() >= self.max;
        match self.first.entry(file) {
            Entry::Occupied(_) => Met::Further,
            Entry::Vacant(_) if is_full => Met::Unknown,
            Entry::Vacant(entry) => Met::First(entry.insert(Lead::new()).clone()),
        }
    }

    /// A further name waits.
    pub(crate) fn wait(&mut self, file: Bytes16, name: T) {
        self.waiting.push((file, name));
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Those that can go on, after all that was under way has ended: with the place of the first name, or, where that
    /// has failed, as the first name in its stead. The others go on waiting for those.
    pub(crate) fn take(&mut self) -> Vec<(T, Turn<P>)> {
        let mut turns = Vec::new();
        let mut begun = HashSet::new();
        for (file, name) in std::mem::take(&mut self.waiting) {
            match self.first.get(&file).and_then(|lead| lead.0.get().cloned()) {
                Some(place) => turns.push((name, Turn::Further(place))),
                None if begun.contains(&file) => self.waiting.push((file, name)),
                None => {
                    let lead = Lead::new();
                    self.first.insert(file, lead.clone());
                    begun.insert(file);
                    turns.push((name, Turn::First(lead)));
                }
            }
        }
        turns
    }
}

/// How a name that waited goes on.
#[derive(Debug)]
pub(crate) enum Turn<P> {
    /// As a further name of what is there.
    Further(P),
    /// As the first one.
    First(Lead<P>),
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Bytes16 = Bytes16([1; 16]);

    #[test]
    fn further_names_wait_for_the_first_and_take_its_place_when_it_fails() {
        let mut names: Names<&str, &str> = Names::default();
        let Met::First(lead) = names.meet(FILE) else { panic!("the first") };
        for name in ["b", "c"] {
            assert!(matches!(names.meet(FILE), Met::Further));
            names.wait(FILE, name);
        }
        drop(lead);
        let turns = names.take();
        let [("b", Turn::First(lead))] = turns.as_slice() else { panic!("{turns:?}") };
        assert_eq!(names.waiting(), 1, "c waits for b");
        lead.is_there("b");
        let turns = names.take();
        assert!(matches!(turns.as_slice(), [("c", Turn::Further("b"))]), "{turns:?}");
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let mut names: Names<(), ()> = Names { max: 1, ..Names::default() };
        assert!(matches!(names.meet(FILE), Met::First(_)));
        assert!(matches!(names.meet(Bytes16([2; 16])), Met::Unknown));
        assert!(matches!(names.meet(FILE), Met::Further), "what is known stays known");
    }
}
