//! Small uploads that come unasked: committed together, their memory used again.

use std::sync::{Arc, PoisonError};

use super::{Flow, Job};
use crate::hash::Root;
use crate::limits;
use crate::protocol::Bytes16;
use crate::server::audited;
use crate::server::commit::SmallUpload;
use crate::server::spent::On;

/// Small uploads of one batch where nothing waits for a disk: a quarter of what a client has under way when they are of
/// 10 KiB.
const SMALL_BATCH_IN_MEMORY: usize = 96;
/// Batches that are committed at once where nothing waits for a disk.
const SMALL_BATCHES_IN_MEMORY: usize = 2;
/// Pieces of memory of a connection that wait for the next small uploads: as many as one batch has in memory.
const SPARE_MAX: usize = SMALL_BATCH_IN_MEMORY;
/// Bytes of one of them; what was larger is given back. Together 1.5 MiB, while small uploads come.
const SPARE_LEN_MAX: usize = 16 * limits::KIB;

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
            let (spent, made) = (Arc::clone(&self.session.spent), Arc::clone(&self.made));
            let turn = Arc::clone(&self.small_turn);
            self.spawn_commit(move |shared, who| {
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
        let count = if self.is_in_memory { self.small.len().min(SMALL_BATCH_IN_MEMORY) } else { self.small.len() };
        if count == self.small.len() {
            return std::mem::take(&mut self.small);
        }
        self.small.drain(..count).collect()
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
