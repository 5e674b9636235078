//! How many connections move large files, and so where their groups are read, hashed and written.
//!
//! A disk thread that takes a group over lets the connection go on meanwhile; that pays while a processor is free for
//! it. Where every thread for connections has something to move, it only costs: two wake-ups for each group, and a
//! group that lies in the cache of another processor. Then what cannot wait for a disk is done where it arises.
//! A client on the same machine has something to do for each group, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The connections of one server that move large files.
#[derive(Debug)]
pub(super) struct Movers {
    count: AtomicUsize,
    /// Threads for connections.
    threads: usize,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Mover(Arc<Movers>);

impl Movers {
    /// None yet, of a server with so many threads for connections.
    pub(super) fn new(threads: usize) -> Arc<Movers> {
        Arc::new(Movers { count: AtomicUsize::new(0), threads: threads.max(1) })
    }

    /// One more.
    pub(super) fn enter(self: &Arc<Movers>) -> Mover {
        self.count.fetch_add(1, Ordering::Relaxed);
        Mover(Arc::clone(self))
    }
}

impl Mover {
    /// Whether there are as many as threads for them, or more. `each`: how many processors one keeps busy, two where
    /// its client is on the same machine.
    pub(super) fn is_one_of_many(&self, each: usize) -> bool {
        self.0.count.load(Ordering::Relaxed).saturating_mul(each) >= self.0.threads
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_many_when_no_thread_is_without_one() {
        let movers = Movers::new(2);
        let first = movers.enter();
        assert!(!first.is_one_of_many(1) && first.is_one_of_many(2));
        let second = movers.enter();
        assert!(first.is_one_of_many(1) && second.is_one_of_many(1));
        drop(first);
        assert!(!second.is_one_of_many(1));
    }
}
