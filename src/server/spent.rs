//! What the work of a session took its time with on this side, for its client, which cannot see that from the other end.
//!
//! A few additions a group; told with `Working`, before the answers that end a transfer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::held::Sink;
use super::outlet::Outlet;
use crate::error::Result;
use crate::hash::{GroupHasher, group_offset};
use crate::protocol::{List, Phase, Working};

/// How much must have come together before it is told again.
const TOLD_STEP: Duration = Duration::from_millis(20);

/// What is told, in the order of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    /// Reading, writing and syncing.
    Disk,
    /// Hashing, encrypting, decrypting.
    Processor,
    /// Waiting for a limit of this server, or of what its policy allows the client.
    Limit,
    /// Something was on its way, and the client took what came.
    Sending,
    /// The client did not take more.
    Held,
}

const COUNT: usize = On::Held as usize + 1;

/// The sums of a session, in microseconds. The work is that for all its connections; what is waited for is looked at on
/// the first, because those that have joined wait for the same and would count it once more.
#[derive(Debug, Default)]
pub(super) struct Spent([AtomicU64; COUNT]);

impl Spent {
    pub(super) fn add(&self, on: On, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0[on as usize].fetch_add(micros, Ordering::Relaxed);
    }

    /// Does some work, and adds how long it took.
    pub(super) fn during<T>(&self, on: On, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.add(on, begun.elapsed());
        done
    }

    /// As [`super::commit::write_group`].
    pub(super) fn write_group(&self, file: &Sink, hasher: &mut GroupHasher, at: usize, content: &[u8]) -> Result<()> {
        self.during(On::Processor, || hasher.update(content));
        self.during(On::Disk, || file.write_at(group_offset(hasher.group()) + at as u64, content))
    }

    fn sums(&self) -> [u64; COUNT] {
        std::array::from_fn(|index| self.0[index].load(Ordering::Relaxed))
    }
}

/// What one connection has added so far, and what was told over it.
#[derive(Debug)]
pub(super) struct Meter {
    spent: Arc<Spent>,
    limit: Duration,
    sending: Duration,
    held: Duration,
    told: u64,
}

impl Meter {
    pub(super) fn new(spent: Arc<Spent>) -> Meter {
        Meter { spent, limit: Duration::ZERO, sending: Duration::ZERO, held: Duration::ZERO, told: 0 }
    }

    /// Adds what the connection has waited for since the last look.
    pub(super) fn look(&mut self, connection: &impl Outlet) {
        let [limit, sending, held] = connection.waited();
        for (on, now, before) in [
            (On::Limit, limit, &mut self.limit),
            (On::Sending, sending, &mut self.sending),
            (On::Held, held, &mut self.held),
        ] {
            self.spent.add(on, now.saturating_sub(*before));
            *before = now.max(*before);
        }
    }

    /// Tells the client, if there is something to tell.
    pub(super) fn tell(&mut self, connection: &mut impl Outlet) {
        self.look(connection);
        let sums = self.spent.sums();
        let sum = sums.iter().fold(0, |sum: u64, part| sum.saturating_add(*part));
        if u128::from(sum.saturating_sub(self.told)) >= TOLD_STEP.as_micros() {
            self.told = sum;
            let spent = Some(List(sums.to_vec()));
            connection.send(0, &Working { phase: Phase::Waiting, done: 0, total: 0, spent });
        }
    }
}
