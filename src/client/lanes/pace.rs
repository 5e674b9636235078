//! How much a connection of several may owe, by what it has brought.

use std::time::Duration;

use tokio::time::Instant;

/// Groups that a lane owes at least, while there are any to ask for: one that comes, and one behind it.
pub(super) const WANTED_MIN: usize = 2;
/// Groups that a lane owes at most.
pub(super) const WANTED_MAX: usize = 32;
/// A lane that brings a group this soon after it was asked for may owe more of them; one that takes longer than the
/// second, half as many: once a path has lost something, what is owed over it takes many times as long.
const PACE_MIN: Duration = Duration::from_millis(500);
const PACE_MAX: Duration = Duration::from_millis(1500);
/// How long it is counted what a lane brings.
const RATE_AFTER: Duration = Duration::from_millis(200);
/// A lane that has brought no more than before so often is not starting any more.
pub(super) const FLAT_MIN: u32 = 2;

/// What a lane brings.
pub(super) struct Rate {
    /// In a second, by what it brought until a moment ago; zero until something is known.
    pub(super) per_second: u64,
    /// The most that was seen, and how often it was not a quarter more than that since: TCP doubles what is under way
    /// with every round trip until the path is full or loses something.
    most: u64,
    pub(super) flat: u32,
    /// Since when the next is counted, and so much.
    since: Instant,
    bytes: u64,
}

impl Rate {
    pub(super) fn new() -> Rate {
        Rate { per_second: 0, most: 0, flat: 0, since: Instant::now(), bytes: 0 }
    }

    /// It was asked for nothing until now: that time does not count.
    pub(super) fn rested(&mut self) {
        (self.since, self.bytes) = (Instant::now(), 0);
    }

    /// Whether it brings more and more.
    pub(super) fn is_starting(&self) -> bool {
        self.flat < FLAT_MIN
    }

    pub(super) fn moved(&mut self, len: usize) {
        self.bytes += len as u64;
        let time = self.since.elapsed();
        if time < RATE_AFTER {
            return;
        }
        let rate = u128::from(self.bytes) * 1_000_000 / time.as_micros();
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        if rate > self.most + self.most / 4 {
            (self.most, self.flat) = (rate, 0);
        } else {
            self.flat = self.flat.saturating_add(1);
        }
        let before = if self.is_starting() { rate } else { self.per_second };
        (self.per_second, self.since, self.bytes) = (before / 2 + rate / 2, Instant::now(), 0);
    }
}

/// How many groups a connection may owe, or have taken and not be told to be written: enough that it never runs dry, and
/// few, so that a slow one does not hold up the end.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    groups: usize,
    max: usize,
}

impl Pace {
    pub(crate) fn new() -> Pace {
        Pace { groups: WANTED_MIN, max: WANTED_MAX }
    }

    /// For who works on a group before the next one is taken: one comes meanwhile. More would get cold.
    pub(super) fn steady() -> Pace {
        Pace { groups: WANTED_MIN, max: WANTED_MIN }
    }

    /// A group has come that was asked for so long ago.
    pub(crate) fn came_after(&mut self, time: Duration) {
        if time < PACE_MIN {
            self.groups = (self.groups + 1).min(self.max);
        } else if time > PACE_MAX {
            self.groups = (self.groups / 2).max(WANTED_MIN);
        }
    }

    /// How many there may be.
    pub(crate) fn groups(self) -> usize {
        self.groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lane_is_starting_for_as_long_as_it_brings_more_and_more() {
        let mut rate = Rate::new();
        let mut brings = async |mib: usize| {
            tokio::time::advance(RATE_AFTER).await;
            rate.moved(mib << 20);
            (rate.is_starting(), rate.per_second >> 20)
        };
        let seen = [brings(1).await, brings(2).await, brings(8).await, brings(9).await, brings(12).await];
        // In a second, five times as much; the latest counts alone while it grows.
        assert_eq!(seen, [(true, 5), (true, 10), (true, 40), (true, 45), (true, 60)]);
        assert_eq!([brings(12).await, brings(12).await, brings(4).await], [(true, 60), (false, 60), (false, 40)]);
        assert_eq!(brings(100).await, (true, 500), "what held it up is gone");
    }

    #[test]
    fn the_pace_of_who_works_on_groups_is_steady() {
        let (mut steady, mut other) = (Pace::steady(), Pace::new());
        for pace in [&mut steady, &mut other] {
            (0..99).for_each(|_| pace.came_after(Duration::ZERO));
        }
        assert_eq!((steady.groups(), other.groups()), (WANTED_MIN, WANTED_MAX));
        for pace in [&mut steady, &mut other] {
            (0..99).for_each(|_| pace.came_after(2 * PACE_MAX));
        }
        assert_eq!((steady.groups(), other.groups()), (WANTED_MIN, WANTED_MIN));
    }
}
