//! What a transfer waited for: measured where it waits, added up in one place, and judged at the end.
//!
//! Parts of a transfer run at once and each adds its own waits, so that the sums can be longer than the transfer
//! took; what counts is how they compare. Nothing here is in anybody's way: a counter is one atomic addition for
//! each wait of a group or of a batch of small files.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A transfer shorter than this says nothing about what limits it.
const TIME_MIN: Duration = Duration::from_millis(200);
/// Files of this many bytes or fewer on average are small, and from so many on they are many.
const SMALL_LEN: u64 = 128 * 1024;
const MANY_COUNT: u64 = 100;
/// From this share of the time on, the thread of the connection is what holds everything up.
const BUSY_SHARE: f64 = 0.75;

/// What is waited for, or worked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Content that is still being read and hashed here.
    Source,
    /// Room on the connection: the link, or the server, takes no more.
    Room,
    /// Leave to send more small files: the server has as many unanswered as it takes.
    Window,
    /// The server's answer that content is durable.
    Answer,
    /// Content from the server.
    Content,
    /// Content that is still being hashed and written here.
    Saving,
    /// A connection that was lost, or a server that was busy.
    Lost,
    /// Work: reading files here.
    Reading,
    /// Work: hashing.
    Hashing,
    /// Work: writing files here.
    Writing,
    /// Work: encrypting, decrypting and the calls of the connection.
    Driving,
}

const CAUSES: usize = Cause::Driving as usize + 1;

/// The counters of one client, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Stalls([AtomicU64; CAUSES]);

impl Stalls {
    /// Adds a length of time.
    pub(crate) fn add(&self, cause: Cause, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0[cause as usize].fetch_add(nanos, Ordering::Relaxed);
    }

    /// Adds the time since `begun`.
    pub(crate) fn since(&self, cause: Cause, begun: Instant) {
        self.add(cause, begun.elapsed());
    }

    /// Does some work that blocks, and adds how long it took.
    pub(crate) fn working<T>(&self, cause: Cause, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.since(cause, begun);
        done
    }

    /// Waits for something, and adds how long that took.
    ///
    /// # Cancel safety
    /// As `work`; a wait that is given up is not counted.
    pub(crate) async fn during<F: Future>(&self, cause: Cause, work: F) -> F::Output {
        let begun = Instant::now();
        let done = work.await;
        self.since(cause, begun);
        done
    }

    pub(crate) fn waited(&self) -> Waited {
        let of = |cause: Cause| Duration::from_nanos(self.0[cause as usize].load(Ordering::Relaxed));
        Waited {
            source: of(Cause::Source),
            room: of(Cause::Room),
            window: of(Cause::Window),
            answer: of(Cause::Answer),
            content: of(Cause::Content),
            saving: of(Cause::Saving),
            lost: of(Cause::Lost),
            reading: of(Cause::Reading),
            hashing: of(Cause::Hashing),
            writing: of(Cause::Writing),
            driving: of(Cause::Driving),
        }
    }
}

/// What the parts of a transfer waited for and worked at, each added up over all that ran at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// For content that was still being read and hashed here.
    pub source: Duration,
    /// For room on the connection.
    pub room: Duration,
    /// For leave to send more small files before those on their way are answered.
    pub window: Duration,
    /// For the server to say that content is durable.
    pub answer: Duration,
    /// For content from the server.
    pub content: Duration,
    /// For content that was still being hashed and written here.
    pub saving: Duration,
    /// For a lost connection to be made again, or a busy server.
    pub lost: Duration,
    /// Reading files here.
    pub reading: Duration,
    /// Hashing here.
    pub hashing: Duration,
    /// Writing files here, syncs included.
    pub writing: Duration,
    /// Encrypting, decrypting, and the system calls of the connection.
    pub driving: Duration,
}

/// What kept a transfer from being faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Reading here.
    SourceDisk,
    /// Hashing or encrypting here.
    Processor,
    /// The link, or how fast the server takes, stores or gives content.
    LinkOrServer,
    /// Writing here.
    Disk,
    /// Files are many and small: each has costs of its own.
    SmallFiles,
    /// Connections that were lost, or a busy server.
    Interruptions,
}

impl Limit {
    /// A word for programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Limit::SourceDisk => "source_disk",
            Limit::Processor => "processor",
            Limit::LinkOrServer => "link_or_server",
            Limit::Disk => "disk",
            Limit::SmallFiles => "small_files",
            Limit::Interruptions => "interruptions",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::SourceDisk => "reading here",
            Limit::Processor => "this machine's processor",
            Limit::LinkOrServer => "the link or the server",
            Limit::Disk => "writing here",
            Limit::SmallFiles => "many small files",
            Limit::Interruptions => "interruptions",
        })
    }
}

impl Waited {
    /// What limited a transfer of `files` files with `bytes` that crossed the wire in `time`; nothing when it was too
    /// short to tell.
    #[must_use]
    pub fn limit(&self, time: Duration, files: u64, bytes: u64) -> Option<Limit> {
        if bytes == 0 || time < TIME_MIN {
            return None;
        }
        let are_small = files >= MANY_COUNT && bytes / files <= SMALL_LEN;
        let here = |disk: Duration, limit: Limit| if self.hashing > disk { Limit::Processor } else { limit };
        let waits = [
            (self.lost, Limit::Interruptions),
            (self.source, here(self.reading, Limit::SourceDisk)),
            (self.saving, here(self.writing, Limit::Disk)),
            // What was sent last is still in the sockets while its answer is waited for: a slow link and a slow disk
            // there look the same from here.
            (self.room + self.content + self.window + self.answer, Limit::LinkOrServer),
        ];
        let (longest, limit) = waits.into_iter().max_by_key(|(wait, _)| *wait)?;
        if longest.is_zero() {
            return None;
        }
        Some(match limit {
            Limit::Interruptions => limit,
            // Whatever else is waited for, it is this thread that would have to bring it.
            _ if self.driving.as_secs_f64() >= BUSY_SHARE * time.as_secs_f64() => {
                if are_small {
                    Limit::SmallFiles
                } else {
                    Limit::Processor
                }
            }
            _ if are_small => Limit::SmallFiles,
            _ => limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn check(waited: Waited, files: u64, bytes: u64, expected: Option<Limit>) {
        assert_eq!(waited.limit(Duration::from_secs(10), files, bytes), expected, "{waited:?}");
    }

    #[test]
    fn the_longest_wait_decides() {
        let seconds = Duration::from_secs;
        let none = Waited::default();
        let slow_disk =
            Waited { source: seconds(8), reading: seconds(20), hashing: seconds(1), room: seconds(1), ..none };
        check(slow_disk, 1, 1000 * MIB, Some(Limit::SourceDisk));
        check(Waited { hashing: seconds(30), ..slow_disk }, 1, 1000 * MIB, Some(Limit::Processor));
        let slow_link = Waited { room: seconds(9), source: seconds(1), driving: seconds(2), ..none };
        check(slow_link, 1, 1000 * MIB, Some(Limit::LinkOrServer));
        check(Waited { driving: seconds(9), ..slow_link }, 1, 1000 * MIB, Some(Limit::Processor));
        check(Waited { content: seconds(9), saving: seconds(1), ..none }, 1, 1000 * MIB, Some(Limit::LinkOrServer));
        check(Waited { saving: seconds(9), writing: seconds(9), ..none }, 1, 1000 * MIB, Some(Limit::Disk));
        check(Waited { answer: seconds(9), room: seconds(1), ..none }, 3, 1000 * MIB, Some(Limit::LinkOrServer));
        check(Waited { answer: seconds(9), ..none }, 10_000, 100 * MIB, Some(Limit::SmallFiles));
        check(Waited { lost: seconds(9), driving: seconds(9), ..none }, 10_000, 100 * MIB, Some(Limit::Interruptions));
        check(none, 1, MIB, None);
        assert_eq!(slow_disk.limit(Duration::from_millis(100), 1, MIB), None, "too short");
        assert_eq!(slow_disk.limit(seconds(10), 1, 0), None, "nothing was moved");
    }

    #[tokio::test(start_paused = true)]
    async fn waits_are_added_up() {
        let stalls = Stalls::default();
        stalls.add(Cause::Room, Duration::from_millis(3));
        stalls.add(Cause::Room, Duration::from_millis(4));
        assert_eq!(stalls.during(Cause::Answer, async { 5 }).await, 5);
        assert_eq!(stalls.working(Cause::Hashing, || 6), 6);
        assert_eq!(stalls.waited().room, Duration::from_millis(7));
    }
}
