//! Hashing of stored files in steps, a few at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Flow, Job, drop_elsewhere, on_disk};
use crate::access::Action;
use crate::hash::{GroupHash, Tree, group_count, group_len, group_offset};
use crate::limits::GROUP_LEN;
use crate::path::RemotePath;
use crate::server::offer::Offer;
use crate::server::spent::On;
use crate::storage::StoredFile;

/// The hashing of a stored file in steps, so that a disk thread is not held for minutes.
pub(in crate::server) struct HashRun {
    pub(in crate::server) path: RemotePath,
    pub(in crate::server) file: Arc<StoredFile>,
    pub(in crate::server) tree: Tree,
    /// The first group of the latest step.
    pub(in crate::server) from: u64,
    /// The first group that is not hashed.
    pub(in crate::server) next: u64,
    pub(in crate::server) purpose: Purpose,
}

impl HashRun {
    pub(in crate::server) fn new(path: RemotePath, file: Arc<StoredFile>, purpose: Purpose) -> HashRun {
        HashRun { path, file, tree: Tree::new(), from: 0, next: 0, purpose }
    }

    /// The group behind the last one to hash.
    pub(in crate::server) fn end(&self) -> u64 {
        match self.purpose {
            Purpose::Values(end) => end,
            Purpose::Root(_) => group_count(self.file.size()),
        }
    }
}

/// Why a stored file is hashed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Purpose {
    /// The client asked for the root, and believes the recorded one or (`true`) does not.
    Root(bool),
    /// The client asked for group values up to here.
    Values(u64),
}

/// Something that is read and hashed in steps.
pub(super) enum Run {
    Stored(HashRun),
    Offer(Box<Offer>),
}

/// Files of a connection that are hashed at once; the others wait, so that they do not hold all disk threads.
const HASHES_MAX: usize = 4;

impl Flow {
    /// Queues the next step of a hash run.
    pub(in crate::server) fn hash(&mut self, transfer: u32, run: HashRun) {
        self.hash_runs.push_back((transfer, Run::Stored(run)));
    }

    /// Whether a step could begin.
    pub(in crate::server) fn has_hashes(&self) -> bool {
        self.hashing < HASHES_MAX && !self.hash_runs.is_empty()
    }

    /// Begins the next steps.
    pub(in crate::server) fn hash_more(&mut self) {
        while self.hashing < HASHES_MAX
            && let Some((transfer, run)) = self.hash_runs.pop_front()
        {
            self.hashing += 1;
            match run {
                Run::Stored(run) => self.hash_step(transfer, run),
                Run::Offer(mut offer) => {
                    let spent = Arc::clone(&self.session.spent);
                    self.spawn(move |_, _| {
                        Job::Offered(transfer, spent.during(On::Disk, || offer.step()).map(|()| offer))
                    });
                }
            }
        }
    }

    /// A step has come back.
    pub(in crate::server) fn step_hashed(&mut self) {
        self.hashing -= 1;
    }

    /// Drops the run of a transfer or request that has ended.
    pub(in crate::server) fn end_hash(&mut self, transfer: u32) {
        let (ended, rest) = std::mem::take(&mut self.hash_runs).into_iter().partition(|(other, _)| *other == transfer);
        self.hash_runs = rest;
        let ended: VecDeque<(u32, Run)> = ended;
        if !ended.is_empty() {
            drop_elsewhere(&self.shared, ended);
        }
    }

    /// Hashes the next groups of a stored file: 64 MiB in one step.
    fn hash_step(&mut self, transfer: u32, mut run: HashRun) {
        let (shared, who) = (Arc::clone(&self.shared), Arc::clone(&self.who));
        let (share, tasks) = (Arc::clone(&self.who.share), self.shared.tasks.clone());
        self.jobs.spawn(async move {
            // All connections of a principal together hold a part of the disk threads.
            let turn = share.hash().await;
            let step = move || {
                // A file of terabytes takes an hour: who may not read it any more does not learn the rest.
                shared.pass(&who)?.decide(Action::Read(&run.path))?;
                let size = run.file.size();
                run.from = run.next;
                let mut buffer = vec![0; GROUP_LEN];
                while run.next < run.end() && run.next < run.from + 64 {
                    let content = &mut buffer[..group_len(size, run.next)];
                    run.file.read_at(group_offset(run.next), content)?;
                    run.tree.insert(run.next, GroupHash::of(run.next, content));
                    run.next += 1;
                }
                Ok(run)
            };
            let hashed = on_disk(&tasks, step).await;
            drop(turn);
            Job::Hashed(transfer, hashed)
        });
    }
}
