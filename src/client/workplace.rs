//! Where groups of large files are read, hashed and written.
//!
//! A disk thread that takes a group over lets the thread of the connection go on meanwhile; that pays while a processor
//! is free for it. Where there is none, it only costs: two wake-ups for each group, and a group that lies in the cache of
//! another processor. Then what cannot wait for a disk is done where the connection is.

use tokio::task::JoinSet;

use crate::client::blocking::spawn_blocking_in;

/// Where the groups of one transfer are worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workplace {
    /// On disk threads, several at once.
    DiskThreads,
    /// On the thread of the connection, one after the other.
    Here,
}

impl Workplace {
    /// For a file that lies in memory or not, and a side that has so many processors.
    pub(crate) fn of(is_in_memory: bool, processors: usize) -> Workplace {
        if is_in_memory && processors < 2 { Workplace::Here } else { Workplace::DiskThreads }
    }

    /// How many groups are worked on at once, of so many for which there would be room.
    pub(crate) fn at_once(self, room: usize) -> usize {
        match self {
            Workplace::DiskThreads => room,
            Workplace::Here => room.min(1),
        }
    }

    /// Begins work on a group.
    pub(crate) fn spawn<T: Send + 'static>(self, tasks: &mut JoinSet<T>, work: impl FnOnce() -> T + Send + 'static) {
        match self {
            Workplace::DiskThreads => spawn_blocking_in(tasks, work),
            Workplace::Here => drop(tasks.spawn(async move { work() })),
        }
    }
}

/// The processors that a side of a connection may take for its own: half of them where the other side is on the same
/// machine.
pub(crate) fn processors(all: usize, shares_machine: bool) -> usize {
    if shares_machine { all / 2 } else { all }
}

/// How many threads, each with a connection of its own, do all that there is to do for one download whose groups are
/// worked on [`Workplace::Here`]: two where both sides share processors, because with one of each side none of them is
/// busy all the time.
pub(crate) fn threads(all: usize, shares_machine: bool) -> usize {
    if shares_machine { all.clamp(1, 2) } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stays_here_where_no_processor_is_free_for_it_and_no_disk_is_waited_for() {
        let cases = [
            (1, false, Workplace::Here),
            (2, false, Workplace::DiskThreads),
            (2, true, Workplace::Here),
            (3, true, Workplace::Here),
            (4, true, Workplace::DiskThreads),
        ];
        for (all, shares, expected) in cases {
            let processors = processors(all, shares);
            assert_eq!(Workplace::of(true, processors), expected, "{all} processors, shared: {shares}");
            assert_eq!(Workplace::of(false, processors), Workplace::DiskThreads, "a disk, {all} processors");
        }
        assert_eq!(Workplace::Here.at_once(4), 1);
        assert_eq!(Workplace::DiskThreads.at_once(4), 4);
    }

    #[test]
    fn two_threads_share_a_download_where_both_sides_share_processors() {
        let cases = [(1, true, 1), (2, true, 2), (3, true, 2), (64, true, 2), (1, false, 1), (8, false, 1)];
        for (all, shares, expected) in cases {
            assert_eq!(threads(all, shares), expected, "{all} processors, shared: {shares}");
        }
    }

    #[tokio::test]
    async fn work_is_done_where_it_belongs() {
        for (place, is_here) in [(Workplace::Here, true), (Workplace::DiskThreads, false)] {
            let mut tasks = JoinSet::new();
            place.spawn(&mut tasks, || std::thread::current().id());
            let worked = tasks.join_next().await.unwrap().unwrap();
            assert_eq!(worked == std::thread::current().id(), is_here, "{place:?}");
        }
    }
}
