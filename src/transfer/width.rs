//! Decides how many connections a transfer gets.
//!
//! At its beginning by the round trip alone: a connection moves about [`WINDOW_USUAL`] per round trip with the buffers
//! that systems come with, and a path is taken to be able to carry [`RATE_USUAL`] until it was seen not to. Then by
//! what was measured: buffers that hold connections up, or loss on a path that is not full, call for more.

use std::time::Duration;

use crate::limits::{JOINS_MAX, MIB, NEAR_ROUND_TRIP};

/// Bytes under way on one connection at most, by the 4 MiB of send buffer that systems allow, more than half of which
/// is overhead: as measured, 1.7 MB.
const WINDOW_USUAL: u64 = 1_600_000;
/// How many times as many connections there are at the beginning as would fill a path, by the way of the content: what
/// waits to be sent again takes the room of what is new, so that some always have less under way than they might, and
/// twice as many are a round trip sooner at the rate of the path. Those of an upload take a group whenever they can send
/// more; those of a download owe what they were asked for, so that the slowest of very many hold up its end.
const SPARE_UP: usize = 4;
const SPARE_DOWN: usize = 3;
/// Bytes per second that a path is taken to carry.
const RATE_USUAL: u64 = 125_000_000;
/// A connection more is worth at least so many bytes.
const SHARE_MIN: u64 = 4 * MIB as u64;
/// The most connections that are opened uncalled for.
const COUNT_MAX: usize = 16;
/// The most at the beginning, before anything was measured, the first counted: one more may still join.
const COUNT_FIRST_MAX: usize = JOINS_MAX;
/// Connections at most at the beginning of a download whose size is not known yet, and how long a round trip has to be
/// that it is worth having them in vain: each is 4 KiB of handshake, half from either side.
const COUNT_UNKNOWN: usize = 16;
const UNKNOWN_FROM: Duration = Duration::from_millis(50);
/// A path on which so little is under way while packets are lost is held up by the loss.
const WINDOW_LOSSY: u64 = 3 * MIB as u64 / 2;
/// Round trips, and the least time, between two looks.
const LOOK_AFTER: (u32, Duration) = (10, Duration::from_secs(1));

/// Which way content goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the server.
    Up,
    /// From the server.
    Down,
}

/// What was seen of a connection at some moment; all but the round trips count from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// When, since the beginning of the connection.
    pub at: Duration,
    /// The shortest round trip.
    pub rtt_min: Duration,
    /// The round trip now.
    pub rtt: Duration,
    /// Bytes that were moved.
    pub moved: u64,
    /// Packets or bytes that were lost, in whatever unit.
    pub lost: u64,
    /// How long there was something to send.
    pub busy: Duration,
    /// How much of that buffers held it up.
    pub limited_by_buffers: Duration,
}

/// How many connections there should be.
#[derive(Clone, Debug)]
pub struct Width {
    count: usize,
    before: Option<Seen>,
}

impl Width {
    /// For a transfer of so many bytes over a path with this round trip.
    #[must_use]
    pub fn first(rtt: Duration, size: u64, way: Way) -> usize {
        if rtt < NEAR_ROUND_TRIP {
            return 1;
        }
        let under_way = u128::from(RATE_USUAL) * rtt.as_micros() / 1_000_000;
        let needed = usize::try_from(under_way.div_ceil(u128::from(WINDOW_USUAL))).unwrap_or(COUNT_FIRST_MAX);
        let worth = usize::try_from(size / SHARE_MIN).unwrap_or(COUNT_FIRST_MAX);
        let spare = match way {
            Way::Up => SPARE_UP,
            Way::Down => SPARE_DOWN,
        };
        if needed < 2 { 1 } else { needed.saturating_mul(spare).min(worth).clamp(1, COUNT_FIRST_MAX) }
    }

    /// For a download of which it is not known whether it is large, over a path with this round trip.
    #[must_use]
    pub fn of_unknown(rtt: Duration) -> usize {
        if rtt < UNKNOWN_FROM { 1 } else { Width::first(rtt, u64::MAX, Way::Down).min(COUNT_UNKNOWN) }
    }

    /// With so many connections at the beginning.
    #[must_use]
    pub fn new(count: usize) -> Width {
        Width { count, before: None }
    }

    /// A transfer begins with so many. What was measured of fewer says nothing of these.
    pub fn begin_with(&mut self, count: usize) {
        if count > self.count {
            *self = Width::new(count);
        }
    }

    /// Looks at one of the connections; tells how many there should be when that is more than before.
    pub fn look(&mut self, seen: Seen) -> Option<usize> {
        let Some(before) = self.before else {
            self.before = Some(seen);
            return None;
        };
        let time = seen.at.saturating_sub(before.at);
        if seen.rtt_min < NEAR_ROUND_TRIP || time < LOOK_AFTER.1.max(seen.rtt_min * LOOK_AFTER.0) {
            return None;
        }
        self.before = Some(seen);
        let moved = seen.moved.saturating_sub(before.moved);
        if moved == 0 {
            return None;
        }
        let busy = seen.busy.saturating_sub(before.busy);
        let limited = seen.limited_by_buffers.saturating_sub(before.limited_by_buffers);
        let under_way = u128::from(moved) * seen.rtt_min.as_micros() / time.as_micros().max(1);
        // Where a queue has built up, the path is full.
        let is_full = seen.rtt > seen.rtt_min + seen.rtt_min / 4 + NEAR_ROUND_TRIP;
        let is_lossy = seen.lost > before.lost && under_way < u128::from(WINDOW_LOSSY) && !is_full;
        let needed = if limited * 3 > busy && !busy.is_zero() {
            (self.count * 2).max(4)
        } else if is_lossy {
            COUNT_MAX
        } else {
            1
        };
        let needed = needed.min(COUNT_MAX);
        (needed > self.count).then(|| {
            self.count = needed;
            needed
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const GIB: u64 = 1 << 30;

    #[test]
    fn the_round_trip_and_the_size_say_how_many_to_begin_with() {
        let cases = [
            (MS / 20, GIB, 1, 1),
            (MS, GIB, 1, 1),
            (10 * MS, GIB, 1, 1),
            (20 * MS, GIB, 8, 6),
            (50 * MS, GIB, 16, 12),
            (100 * MS, GIB, 32, 24),
            (100 * MS, 20 << 20, 5, 5),
            (100 * MS, 5 << 20, 1, 1),
            (300 * MS, GIB, 32, 32),
            (Duration::from_secs(3600), u64::MAX, 32, 32),
        ];
        for (rtt, size, up, down) in cases {
            let first = (Width::first(rtt, size, Way::Up), Width::first(rtt, size, Way::Down));
            assert_eq!(first, (up, down), "{rtt:?}, {size} bytes");
        }
        for (rtt, count) in [(MS / 20, 1), (49 * MS, 1), (50 * MS, 12), (100 * MS, 16), (300 * MS, 16)] {
            assert_eq!(Width::of_unknown(rtt), count, "{rtt:?}");
        }
    }

    /// Looks once a second at a path with these figures for each second.
    fn looks(width: &mut Width, rtt: (Duration, Duration), moved: u64, lost: u64, limited: Duration) -> Vec<usize> {
        let seen = |second: u32| Seen {
            at: second * Duration::from_secs(1),
            rtt_min: rtt.0,
            rtt: rtt.1,
            moved: moved * u64::from(second),
            lost: lost * u64::from(second),
            busy: second * Duration::from_secs(1),
            limited_by_buffers: limited * second,
        };
        (0..20).filter_map(|second| width.look(seen(second))).collect()
    }

    #[test]
    fn a_further_transfer_goes_on_from_what_was_measured() {
        // Begun anew in between, it would never have two looks to compare.
        let mut width = Width::new(1);
        let seen = |second: u32| Seen {
            at: second * Duration::from_secs(1),
            rtt_min: 100 * MS,
            rtt: 104 * MS,
            moved: 700_000 * u64::from(second),
            lost: 5 * u64::from(second),
            ..Seen::default()
        };
        let told = (0..3).filter_map(|second| {
            width.begin_with(4);
            width.look(seen(second))
        });
        assert_eq!(told.collect::<Vec<_>>(), [16]);
    }

    #[test]
    fn what_holds_a_path_up_says_how_many_more() {
        let far = (100 * MS, 104 * MS);
        let full = (100 * MS, 180 * MS);
        let near = (MS, MS);
        type Case = (&'static str, (Duration, Duration), u64, u64, Duration, &'static [usize]);
        let cases: [Case; 7] = [
            ("nothing", far, 120_000_000, 0, Duration::ZERO, &[]),
            ("loss", far, 700_000, 5, Duration::ZERO, &[16]),
            ("loss that does not matter", far, 110_000_000, 5, Duration::ZERO, &[]),
            ("a full path that drops", full, 1_000_000, 5, Duration::ZERO, &[]),
            ("buffers", far, 40_000_000, 0, 900 * MS, &[4, 8, 16]),
            ("a near peer", near, 40_000_000, 5, 900 * MS, &[]),
            ("nothing moves", far, 0, 5, 900 * MS, &[]),
        ];
        for (what, rtt, moved, lost, limited, expected) in cases {
            assert_eq!(looks(&mut Width::new(1), rtt, moved, lost, limited), expected, "{what}");
        }
    }
}
