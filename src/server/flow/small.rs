//! Small uploads that come unasked: committed together, their memory used again.

use std::sync::{Arc, PoisonError, Weak};

use super::{Flow, Job};
use crate::hash::Root;
use crate::limits;
use crate::path::Component;
use crate::protocol::Bytes16;
use crate::server::audited;
use crate::server::commit::SmallUpload;
use crate::server::spent::On;

/// Small uploads of one batch where nothing waits for a disk: a third of what a client has under way when they are of
/// 10 KiB.
const SMALL_BATCH_IN_MEMORY: usize = 128;
/// Batches that are committed at once where nothing waits for a disk.
const SMALL_BATCHES_IN_MEMORY: usize = 2;
/// Pieces of memory of a connection that wait for the next small uploads: as many as one batch has in memory.
const SPARE_MAX: usize = SMALL_BATCH_IN_MEMORY;
/// Bytes of one of them; what was larger is given back. Together 1.5 MiB, while small uploads come.
const SPARE_LEN_MAX: usize = 16 * limits::KIB;

/// The directory that an upload belongs in.
fn parent(upload: &SmallUpload) -> &[Component] {
    upload.put.path.components().split_last().map_or(&[], |(_, parent)| parent)
}

/// Takes the next batch of what waits. Two batches that are committed at once are not of one directory, if something else
/// waits too, and a batch takes no part of a further directory: whoever makes one can fill it aside.
fn next_batch<T>(waiting: &mut Vec<T>, parent: fn(&T) -> &[Component], filling: &[Arc<Vec<Vec<Component>>>]) -> Vec<T> {
    let is_free = |run: &[T]| {
        let directory = run.first().map_or(&[][..], parent);
        !filling.iter().any(|others| others.iter().any(|other| other == directory))
    };
    let runs = |waiting: &[T]| -> Vec<(bool, usize)> {
        let runs = waiting.chunk_by(|one, next| parent(one) == parent(next));
        runs.map(|run| (is_free(run), run.len())).collect()
    };
    let runs = runs(waiting);
    let is_any_free = runs.iter().any(|(is_free, _)| *is_free);
    let mut batch = Vec::with_capacity(waiting.len().min(SMALL_BATCH_IN_MEMORY));
    let mut at = 0;
    for (is_free, len) in runs {
        if is_any_free && !is_free {
            at += len;
            continue;
        }
        if !batch.is_empty() && batch.len() + len > SMALL_BATCH_IN_MEMORY {
            break;
        }
        let taken = len.min(SMALL_BATCH_IN_MEMORY);
        batch.extend(waiting.drain(at..at + taken));
        if taken < len {
            break;
        }
    }
    batch
}

impl Flow {
    /// Commits what small uploads have come. On a disk a batch waits for the one before, and is committed with whatever
    /// comes until then; in memory there is nothing to wait for, and two are committed at once. But not where it counts
    /// for a quota or an invite: there the second waits for its turn, as what one batch makes and replaces is counted
    /// before another looks.
    pub(super) fn commit_small(&mut self) {
        let count_max = if self.is_in_memory { SMALL_BATCHES_IN_MEMORY } else { 1 };
        while self.committing_small < count_max && !self.small.is_empty() {
            self.committing_small += 1;
            let batch = self.next_small();
            let directories = batch.chunk_by(|one, next| parent(one) == parent(next));
            let parents: Vec<Vec<Component>> = directories.map(|run| parent(&run[0]).to_vec()).collect();
            let parents = Arc::new(parents);
            self.filling.retain(|other| other.strong_count() > 0);
            self.filling.push(Arc::downgrade(&parents));
            let (spent, made) = (Arc::clone(&self.session.spent), Arc::clone(&self.made));
            let turn = Arc::clone(&self.small_turn);
            self.spawn_commit(move |shared, who| {
                let _filling = parents;
                let contents: Vec<&[u8]> = batch.iter().map(|upload| upload.content.as_slice()).collect();
                let roots = spent.during(On::Processor, || Root::of_each(&contents));
                let batch = batch.into_iter().zip(roots).collect();
                let is_counted = who.attendance().is_some() || shared.accounts.count_any();
                // The one before has a thread already. It changes nothing here, so a panic in it is of no concern.
                let _turn = is_counted.then(|| turn.lock().unwrap_or_else(PoisonError::into_inner));
                Job::CommittedSmall(spent.during(On::Disk, || audited::commit_small(shared, who, batch, &made)))
            });
        }
    }

    /// The small uploads that are committed next: all that have come where syncing them is what takes time, and few
    /// enough where nothing does that their client hears of them, and sends more, while the others are committed.
    fn next_small(&mut self) -> Vec<SmallUpload> {
        if !self.is_in_memory {
            return std::mem::take(&mut self.small);
        }
        let filling: Vec<_> = self.filling.iter().filter_map(Weak::upgrade).collect();
        next_batch(&mut self.small, parent, &filling)
    }

    /// A batch is done, and some of its memory is kept for what comes next, if something does.
    pub(in crate::server) fn committed_small(&mut self, spare: Vec<Vec<u8>>) {
        self.committing_small -= 1;
        if self.unasked > 0 {
            let fits = spare.into_iter().filter(|memory| (1..=SPARE_LEN_MAX).contains(&memory.capacity()));
            self.spare.extend(fits.take(SPARE_MAX.saturating_sub(self.spare.len())));
        }
        self.commit_small();
    }

    /// An unasked upload is answered: its bytes count no more. Its client may have been asked to say it again.
    pub(in crate::server) fn answered_unasked(&mut self, size: u64, asked: Option<(Bytes16, u64)>) {
        self.lessen_unasked(size);
        if let Some((upload, moment)) = asked {
            self.standing.ask(upload, moment);
        }
    }

    pub(super) fn lessen_unasked(&mut self, len: u64) {
        self.unasked = self.unasked.saturating_sub(len);
        if self.unasked == 0 {
            self.spare = Vec::new();
            self.made = Arc::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RemotePath;

    fn path(directory: &str, number: usize) -> RemotePath {
        RemotePath::parse(format!("t/{directory}/{number}").as_bytes()).unwrap()
    }

    fn parent(path: &RemotePath) -> &[Component] {
        path.components().split_last().unwrap().1
    }

    /// What is taken of so many files of each of these directories while others are being filled, as directory, first
    /// number and count; what is left must be in the order in which it came.
    #[track_caller]
    fn check(waiting: &[(&str, usize)], filling: &[&str], expected: &[(&str, usize, usize)]) {
        let mut counts = std::collections::HashMap::new();
        let mut next = |directory: &str| {
            let count: &mut usize = counts.entry(directory.to_owned()).or_default();
            *count += 1;
            path(directory, *count - 1)
        };
        let all: Vec<RemotePath> =
            waiting.iter().flat_map(|(name, count)| vec![*name; *count]).map(&mut next).collect();
        let filling = filling.iter().map(|name| parent(&path(name, 0)).to_vec()).collect();
        let mut left = all.clone();
        let batch = next_batch(&mut left, parent, &[Arc::new(filling)]);
        let of = |(name, first, count): &(&str, usize, usize)| -> Vec<RemotePath> {
            (*first..first + count).map(|number| path(name, number)).collect()
        };
        assert_eq!(batch, expected.iter().flat_map(of).collect::<Vec<_>>());
        assert_eq!(left, all.into_iter().filter(|path| !batch.contains(path)).collect::<Vec<_>>());
    }

    #[test]
    fn batches_are_of_whole_directories_that_nobody_else_fills() {
        check(&[], &[], &[]);
        check(&[("a", 5), ("b", 3)], &[], &[("a", 0, 5), ("b", 0, 3)]);
        check(&[("a", 100), ("b", 29)], &[], &[("a", 0, 100)]);
        check(&[("a", 100), ("b", 28)], &[], &[("a", 0, 100), ("b", 0, 28)]);
        check(&[("a", 200)], &[], &[("a", 0, 128)]);
        check(&[("a", 40), ("b", 60), ("a", 20), ("c", 60)], &["a"], &[("b", 0, 60), ("c", 0, 60)]);
        check(&[("a", 40), ("b", 60), ("c", 90)], &["a"], &[("b", 0, 60)]);
        check(&[("a", 40), ("b", 200)], &["a"], &[("b", 0, 128)]);
        check(&[("a", 200), ("b", 10)], &["a", "b"], &[("a", 0, 128)]);
    }
}
