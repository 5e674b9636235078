//! What a transfer waited for: measured where it waits, added up in one place, and judged at the end.
//!
//! Parts of a transfer run at once and each adds its own waits, so that the sums can be longer than the transfer
//! took; what counts is how they compare. Nothing here is in anybody's way: a counter is one atomic addition for
//! each wait of a group or of a batch of small files.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::net::Connection;

/// A transfer shorter than this says nothing about what limits it.
const TIME_MIN: Duration = Duration::from_millis(200);
/// Files of this many bytes or fewer on average are small, and from so many on they are many.
const SMALL_LEN: u64 = 128 * 1024;
const MANY_COUNT: u64 = 100;
/// What takes this share of the time is what a transfer waited for.
const MOST_SHARE: f64 = 0.5;
/// What takes less than this share of the time is not what a transfer waited for.
const LEAST_SHARE: f64 = 0.1;
/// From this share of the time on, the thread of the connection is what holds everything up.
const BUSY_SHARE: f64 = 0.75;

/// Microseconds that are believed of a session: some years.
const SPENT_MAX: u64 = 1 << 47;

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
    /// The limit of rate that the person set (`--bwlimit`).
    OwnLimit,
    /// Something was on its way to the server, as the kernel counts it (`TCP_INFO`).
    LinkBusy,
    /// Of that, how long the server's side did not take more.
    LinkHeld,
    /// There: reading, writing and syncing.
    ServerDisk,
    /// There: hashing, encrypting, decrypting.
    ServerProcessor,
    /// There: a limit of rate.
    ServerLimit,
    /// There: content was on its way here, and was taken.
    ServerSending,
    /// There: content was on its way here, and was not taken.
    ServerHeld,
}

const CAUSES: usize = Cause::ServerHeld as usize + 1;

/// What a server tells, in the order of the wire.
const TOLD: [Cause; 5] =
    [Cause::ServerDisk, Cause::ServerProcessor, Cause::ServerLimit, Cause::ServerSending, Cause::ServerHeld];

/// The counters of one client, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Stalls([AtomicU64; CAUSES], Told);

/// What is no length of time.
#[derive(Debug, Default)]
struct Told {
    /// Whether a server has told anything.
    is_told: AtomicBool,
    /// The highest rate of delivery that the kernel told, in bytes a second.
    delivery_rate: AtomicU64,
}

/// What one connection has added so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    own_limit: Duration,
    busy: Duration,
    held: Duration,
    told: [u64; TOLD.len()],
}

impl Seen {
    /// Adds what the connection has waited for since the last look.
    pub(crate) fn look(&mut self, connection: &Connection, stalls: &Stalls) {
        let info = connection.socket().info().unwrap_or_default();
        for (cause, now, before) in [
            (Cause::OwnLimit, connection.held_back(), &mut self.own_limit),
            (Cause::LinkBusy, info.busy, &mut self.busy),
            (Cause::LinkHeld, info.limited_by_peer, &mut self.held),
        ] {
            stalls.add(cause, now.saturating_sub(*before));
            *before = now.max(*before);
        }
        stalls.1.delivery_rate.fetch_max(info.delivery_rate, Ordering::Relaxed);
    }

    /// Adds what the server tells of this session, which only grows.
    pub(crate) fn told(&mut self, spent: &[u64], stalls: &Stalls) {
        stalls.1.is_told.store(true, Ordering::Relaxed);
        for ((cause, before), now) in TOLD.iter().zip(&mut self.told).zip(spent) {
            // A server that tells years tells nothing.
            let now = (*now).min(SPENT_MAX);
            stalls.add(*cause, Duration::from_micros(now.saturating_sub(*before)));
            *before = now.max(*before);
        }
    }
}

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
            own_limit: of(Cause::OwnLimit),
            link_busy: of(Cause::LinkBusy),
            link_held: of(Cause::LinkHeld),
            delivery_rate: self.1.delivery_rate.load(Ordering::Relaxed),
            server: self.1.is_told.load(Ordering::Relaxed).then(|| ServerSpent {
                disk: of(Cause::ServerDisk),
                processor: of(Cause::ServerProcessor),
                limit: of(Cause::ServerLimit),
                sending: of(Cause::ServerSending),
                held: of(Cause::ServerHeld),
            }),
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
    /// For the rate that the person allowed (`--bwlimit`).
    pub own_limit: Duration,
    /// How long something was on its way to the server, as the kernel counts it.
    pub link_busy: Duration,
    /// Of that, how long the server's side did not take more.
    pub link_held: Duration,
    /// The highest rate of delivery that the kernel told, in bytes a second; 0 when it does not tell.
    pub delivery_rate: u64,
    /// What the server said of itself; none when it does not say.
    pub server: Option<ServerSpent>,
}

/// What the server took its time with, added up over all that ran at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerSpent {
    /// Reading, writing and syncing.
    pub disk: Duration,
    /// Hashing, encrypting, decrypting.
    pub processor: Duration,
    /// Waiting for a limit of its own, or of what it allows this client.
    pub limit: Duration,
    /// Content was on its way here, and was taken.
    pub sending: Duration,
    /// Content was on its way here, and was not taken.
    pub held: Duration,
}

/// What kept a transfer from being faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Reading here.
    SourceDisk,
    /// Hashing or encrypting here.
    Processor,
    /// The link.
    Link,
    /// The link, or how fast the server takes, stores or gives content: a server that is too old to say which.
    LinkOrServer,
    /// Reading or writing on the server.
    ServerDisk,
    /// Hashing or encrypting on the server.
    ServerProcessor,
    /// A limit of rate on the server.
    ServerLimit,
    /// The limit of rate that the person set.
    OwnLimit,
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
            Limit::Link => "link",
            Limit::LinkOrServer => "link_or_server",
            Limit::ServerDisk => "server_disk",
            Limit::ServerProcessor => "server_processor",
            Limit::ServerLimit => "server_limit",
            Limit::OwnLimit => "own_limit",
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
            Limit::Link => "the link",
            Limit::LinkOrServer => "the link or the server",
            Limit::ServerDisk => "the server's disk",
            Limit::ServerProcessor => "the server's processor",
            Limit::ServerLimit => "a limit of the server",
            Limit::OwnLimit => "--bwlimit",
            Limit::Disk => "writing here",
            Limit::SmallFiles => "many small files",
            Limit::Interruptions => "interruptions",
        })
    }
}

impl Waited {
    /// What limited a transfer of `files` files with `bytes` that crossed the wire in `time`; nothing when it was too
    /// short to tell, or hardly anything of it was waited for.
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
            // What was sent last is still in the sockets while its answer is waited for: which of the two it is, what
            // the server says and the kernel counts has to tell.
            (self.room + self.content + self.window + self.answer, Limit::LinkOrServer),
        ];
        let seconds = time.as_secs_f64();
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
            // A limit that somebody set holds files of any size.
            Limit::LinkOrServer if self.own_limit.as_secs_f64() >= MOST_SHARE * seconds => Limit::OwnLimit,
            Limit::LinkOrServer if self.server_limit().as_secs_f64() >= MOST_SHARE * seconds => Limit::ServerLimit,
            _ if are_small => Limit::SmallFiles,
            // A few bytes over a long link: nearly all of it is round trips before there is anything to wait for.
            _ if longest.as_secs_f64() < LEAST_SHARE * seconds => return None,
            Limit::LinkOrServer => self.beyond(time),
            _ => limit,
        })
    }

    fn server_limit(&self) -> Duration {
        self.server.map_or(Duration::ZERO, |server| server.limit)
    }

    /// What it is behind this machine's end of the link.
    fn beyond(&self, time: Duration) -> Limit {
        let is_most = |part: Duration| part.as_secs_f64() >= MOST_SHARE * time.as_secs_f64();
        // The kernel here counts what is sent, that of the server what is received.
        let sending = self.link_busy.saturating_sub(self.link_held);
        let Some(server) = self.server else {
            return if is_most(sending) { Limit::Link } else { Limit::LinkOrServer };
        };
        // Something was on its way all the time, and taken: nobody else can have been waited for.
        if sending.max(server.sending).as_secs_f64() >= BUSY_SHARE * time.as_secs_f64() {
            return Limit::Link;
        }
        let (most, limit) = if server.disk >= server.processor {
            (server.disk, Limit::ServerDisk)
        } else {
            (server.processor, Limit::ServerProcessor)
        };
        if is_most(most) { limit } else { Limit::Link }
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
        let little = Waited { saving: seconds(1) / 2, writing: seconds(1) / 2, ..none };
        check(little, 1, 2, None);
        check(Waited { driving: seconds(9), ..little }, 1, MIB, Some(Limit::Processor));
        check(little, 10_000, MIB, Some(Limit::SmallFiles));
        assert_eq!(slow_disk.limit(Duration::from_millis(100), 1, MIB), None, "too short");
        assert_eq!(slow_disk.limit(seconds(10), 1, 0), None, "nothing was moved");
    }

    #[test]
    fn what_is_behind_the_link_is_told_apart_by_what_the_server_says() {
        let seconds = Duration::from_secs;
        let waits = Waited { room: seconds(7), answer: seconds(2), ..Waited::default() };
        let told = |server: ServerSpent| Waited { server: Some(server), ..waits };
        let none = ServerSpent::default();
        for files in [1, 3] {
            let check = |waited, expected| check(waited, files, 1000 * MIB, Some(expected));
            check(told(none), Limit::Link);
            check(told(ServerSpent { limit: seconds(8), disk: seconds(9), ..none }), Limit::ServerLimit);
            check(told(ServerSpent { disk: seconds(9), processor: seconds(6), ..none }), Limit::ServerDisk);
            check(told(ServerSpent { disk: seconds(5), processor: seconds(9), ..none }), Limit::ServerProcessor);
            // A disk that is busy while the link is full all the time is not what is waited for.
            let busy = ServerSpent { disk: seconds(6), ..none };
            check(Waited { link_busy: seconds(9), ..told(busy) }, Limit::Link);
            check(Waited { link_busy: seconds(9), link_held: seconds(8), ..told(busy) }, Limit::ServerDisk);
            check(told(ServerSpent { sending: seconds(8), ..busy }), Limit::Link);
            check(told(ServerSpent { sending: seconds(1), held: seconds(8), ..busy }), Limit::ServerDisk);
            check(Waited { own_limit: seconds(9), ..told(busy) }, Limit::OwnLimit);
            // Who is too old to say anything: only a link that is full is known.
            check(Waited { link_busy: seconds(9), ..waits }, Limit::Link);
            check(Waited { link_busy: seconds(9), link_held: seconds(5), ..waits }, Limit::LinkOrServer);
        }
        let limited = told(ServerSpent { limit: seconds(8), ..none });
        check(limited, 10_000, 100 * MIB, Some(Limit::ServerLimit));
        check(told(none), 10_000, 100 * MIB, Some(Limit::SmallFiles));
    }

    #[test]
    fn what_servers_tell_is_added_up_once_and_bounded() {
        let (stalls, mut first, mut second) = (Stalls::default(), Seen::default(), Seen::default());
        assert_eq!(stalls.waited().server, None);
        first.told(&[1000, 20], &stalls);
        first.told(&[3000, 20, 5, 0, 0, 7, 8], &stalls);
        // It cannot become less.
        first.told(&[0, 30], &stalls);
        // Of another session.
        second.told(&[500], &stalls);
        let micros = Duration::from_micros;
        let server = stalls.waited().server.unwrap();
        assert_eq!((server.disk, server.processor, server.limit), (micros(3500), micros(30), micros(5)));
        second.told(&[u64::MAX; 8], &stalls);
        second.told(&[u64::MAX; 8], &stalls);
        assert!(stalls.waited().server.unwrap().disk < Duration::from_secs(1 << 30));
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
