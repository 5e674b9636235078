//! Where groups of large files are read, hashed and written.
//!
//! A disk thread that takes a group over lets the thread of the connection go on meanwhile; that pays while a processor
//! is free for it. Where there is none, it only costs: two wake-ups for each group, and a group that lies in the cache of
//! another processor. Then what cannot wait for a disk is done where the connection is.

use std::path::{Path, PathBuf};

use tokio::task::JoinSet;

use crate::client::ahead::LANES_FROM;
use crate::client::blocking::spawn_blocking_in;
use crate::limits::MIB;
use crate::transfer::Way;

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

/// A transfer is worth another thread from this size on: that takes a handshake, of which both sides have a millisecond,
/// and the looks at whether there is room for it take the first half of so much.
const THREADS_FROM: u64 = 128 * MIB as u64;

/// What another thread does for a transfer whose groups are worked on [`Workplace::Here`]: one of this side for a
/// download, one of the server for an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnotherThread {
    /// What it has done so far.
    AsItIs,
    /// Its part, with so many connections that there are to be in all.
    Works(usize),
    /// It begins nothing more.
    Rests,
}

/// Decides that for a transfer of this size, of which so many connections were asked for, if any, and which is worth so
/// many threads. Whether there is room for another is not known at the beginning; where others want the processors there
/// is none. A number that was asked for is kept to from the beginning, whatever the room; an upload has it already.
pub(crate) fn another_thread(
    size: u64,
    way: Way,
    streams: Option<usize>,
    threads: usize,
    has_room: Option<bool>,
) -> AnotherThread {
    match (streams, has_room) {
        (Some(streams), _) if way == Way::Down && size >= LANES_FROM => AnotherThread::Works(threads.min(streams)),
        (None, Some(true)) if size >= THREADS_FROM => AnotherThread::Works(threads),
        (None, Some(false)) => AnotherThread::Rests,
        _ => AnotherThread::AsItIs,
    }
}

/// Groups between two looks.
const LOOK_AFTER: usize = 32;
/// What a thread may wait, as a part of what it runs, for there to be room. With one client, that of a download was seen
/// to wait a fifth of the time that it ran, and with a second one as long; that of an upload, which has less to do than
/// the server, next to nothing, and with seven others as long. Two of a client alone wait a fifth to nine tenths each.
const WAITED_DOWN: u64 = 2;
const WAITED_UP: u64 = 16;
/// So many looks one after the other have to say the same: who begins a moment before others is alone at the first one.
const LOOKS: usize = 2;

/// Looks at whether the thread of a connection gets a processor when it wants one. Where others want it, too, another
/// thread makes nothing faster, and all of them slower; and whoever has two takes twice its share.
pub(crate) struct Room {
    way: Way,
    groups: usize,
    /// Looks one after the other that said that there is room, and that there is none.
    there: usize,
    gone: usize,
    /// Where the system tells of the thread that reads it.
    statistics: PathBuf,
    before: Option<Times>,
}

/// How long a thread has run, and how long it has waited for a processor, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    ran: u64,
    waited: u64,
}

impl Room {
    /// For a transfer this way, by the scheduler's statistics (Linux, Documentation/scheduler/sched-stats.rst).
    pub(crate) fn new(way: Way) -> Room {
        Room::told_by("/proc/thread-self/schedstat".into(), way)
    }

    fn told_by(statistics: PathBuf, way: Way) -> Room {
        Room { way, groups: 0, there: 0, gone: 0, before: Times::read(&statistics), statistics }
    }

    /// Another group is done. Whether there is room for another thread, as this one has waited little while the last
    /// groups were, or none, as it has waited longer than it ran. None where neither is so, between two looks, and where
    /// the system does not tell.
    pub(crate) fn look(&mut self) -> Option<bool> {
        self.groups += 1;
        if !self.groups.is_multiple_of(LOOK_AFTER) {
            return None;
        }
        let part = match self.way {
            Way::Up => WAITED_UP,
            Way::Down => WAITED_DOWN,
        };
        let now = Times::read(&self.statistics);
        let before = std::mem::replace(&mut self.before, now);
        let passed = before.zip(now).map(|(before, now)| now.since(before));
        self.there = if passed.is_some_and(|passed| passed.waited < passed.ran / part) { self.there + 1 } else { 0 };
        self.gone = if passed.is_some_and(|passed| passed.waited > passed.ran) { self.gone + 1 } else { 0 };
        if self.there >= LOOKS {
            Some(true)
        } else if self.gone >= LOOKS {
            Some(false)
        } else {
            None
        }
    }
}

impl Times {
    fn read(statistics: &Path) -> Option<Times> {
        Times::parse(&std::fs::read_to_string(statistics).ok()?)
    }

    fn parse(text: &str) -> Option<Times> {
        let mut numbers = text.split_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Times { ran: next()?, waited: next()? })
    }

    fn since(self, before: Times) -> Times {
        Times { ran: self.ran.saturating_sub(before.ran), waited: self.waited.saturating_sub(before.waited) }
    }
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

    #[test]
    fn another_thread_works_where_there_is_room_and_rests_where_there_is_none() {
        use AnotherThread::{AsItIs, Rests, Works};
        const LARGE: u64 = 128 << 20;
        let (any, no) = (None, Some(false));
        let cases = [
            ("at its beginning", LARGE, Way::Down, any, 2, None, AsItIs),
            ("there is room", LARGE, Way::Down, any, 2, Some(true), Works(2)),
            ("there is room", LARGE, Way::Up, any, 2, Some(true), Works(2)),
            ("half of it is over", LARGE - 1, Way::Down, any, 2, Some(true), AsItIs),
            ("others want the processors", LARGE, Way::Down, any, 2, no, Rests),
            ("others want the processors", LARGE, Way::Up, any, 2, no, Rests),
            ("two were asked for", 2 << 20, Way::Down, Some(2), 2, None, Works(2)),
            ("two were asked for", LARGE, Way::Down, Some(2), 2, no, Works(2)),
            ("it gets no second one", (2 << 20) - 1, Way::Down, Some(2), 2, None, AsItIs),
            ("one was asked for", LARGE, Way::Down, Some(1), 2, Some(true), Works(1)),
            ("more than it is worth", LARGE, Way::Down, Some(8), 2, None, Works(2)),
            ("it has them already", LARGE, Way::Up, Some(2), 2, Some(true), AsItIs),
            ("it has them already", LARGE, Way::Up, Some(2), 2, no, AsItIs),
        ];
        for (why, size, way, streams, threads, has_room, expected) in cases {
            let does = another_thread(size, way, streams, threads, has_room);
            assert_eq!(does, expected, "{why}: {size} bytes, {way:?}, {streams:?}, {has_room:?}");
        }
    }

    #[test]
    fn a_thread_that_waits_for_its_processor_is_told_from_one_that_does_not() {
        let times = |ran, waited| Times { ran, waited };
        assert_eq!(Times::parse("399873982 92243924 572\n"), Some(times(399_873_982, 92_243_924)));
        assert_eq!(Times::parse("399873982"), None);
        assert_eq!(Times::parse("0 x 0"), None);
        assert_eq!(times(2000, 5200).since(times(1000, 5000)), times(1000, 200));
        assert_eq!(times(500, 100).since(times(1000, 5000)), times(0, 0), "of another thread");
    }

    /// What is told at each look, and what is known of the room then for a further connection of a download and of an
    /// upload: on a machine that is free, on one where others want the processors, and where the system says nothing.
    #[test]
    fn there_is_room_where_the_thread_gets_its_processor_and_none_where_others_have_it() {
        const YES: Option<bool> = Some(true);
        const NO: Option<bool> = Some(false);
        let folder = tempfile::tempdir().unwrap();
        let statistics = folder.path().join("schedstat");
        std::fs::write(&statistics, "500 700 1\n").unwrap();
        let mut rooms = [Way::Down, Way::Up].map(|way| Room::told_by(statistics.clone(), way));
        let looks = [
            // Alone at first.
            (Some("1500 800 2\n"), [None, None]),
            (Some("2500 1300 3\n"), [None, None]),
            (Some("3500 2299 4\n"), [None, None]),
            (Some("4500 2798 5\n"), [None, None]),
            (Some("5500 3297 6\n"), [YES, None]),
            (None, [None, None]),
            (Some("6500 3297 7\n"), [None, None]),
            (Some("7500 3297 8\n"), [None, None]),
            (Some("8500 3358 9\n"), [YES, YES]),
            (Some("9500 3420 10\n"), [YES, None]),
            (Some("10500 3481 11\n"), [YES, None]),
            (Some("11500 3542 12\n"), [YES, YES]),
            // As long as it runs is neither.
            (Some("12500 4542 13\n"), [None, None]),
            (Some("13500 5543 14\n"), [None, None]),
            (Some("14500 6544 15\n"), [NO, NO]),
            (Some("14500 6545 16\n"), [NO, NO]),
            (Some("15500 7545 17\n"), [None, None]),
            (Some("16500 8546 18\n"), [None, None]),
        ];
        for (number, (told, expected)) in looks.into_iter().enumerate() {
            match told {
                Some(text) => std::fs::write(&statistics, text).unwrap(),
                None => std::fs::remove_file(&statistics).unwrap(),
            }
            for _ in 1..LOOK_AFTER {
                assert_eq!(rooms.each_mut().map(Room::look), [None, None], "before look {number}");
            }
            assert_eq!(rooms.each_mut().map(Room::look), expected, "look {number}: {told:?}");
        }
    }

    #[test]
    fn what_this_system_tells_of_a_thread_is_understood() {
        if !Path::new("/proc/self/schedstat").exists() {
            return eprintln!("skipped: this system keeps no statistics of threads");
        }
        assert!(Room::new(Way::Up).before.is_some());
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
