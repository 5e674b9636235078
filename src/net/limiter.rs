//! Limits of rates, which any number of connections share.
//!
//! A [`Limiter`] keeps the time at which all that was granted so far is paid for. A connection that wants to move
//! more asks for a grant, gets the time at which it begins, and waits until then: so connections are served in the
//! order in which they asked, none starves, and all together move exactly the rate, however late their timers are.
//! What was moved beyond a grant is added to the next. A grant whose connection comes much too late for it is void, or
//! all of them together would make up for more time than one limit may.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits::{DATA_LEN_MAX, KIB};

/// How much of the time that nobody used is made up for: what a late timer costs, and no burst that anybody sees.
const MADE_UP_FOR: Duration = Duration::from_millis(100);
/// A grant lasts about so long.
const GRANT_TIME: Duration = Duration::from_millis(20);
/// Bytes of the smallest grant.
const GRANT_LEN_MIN: u64 = 4 * KIB as u64;

/// So many bytes per second, for all who share it.
#[derive(Debug)]
struct Limiter {
    rate: u64,
    /// When all that was granted is paid for; none before the first grant.
    paid: Mutex<Option<Instant>>,
}

impl Limiter {
    /// Grants so many bytes; tells when they may be moved.
    fn reserve(&self, now: Instant, len: u64) -> Instant {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(MADE_UP_FOR).unwrap_or(now);
        let begin = paid.map_or(now, |paid| paid.max(earliest));
        let nanos = u128::from(len) * 1_000_000_000 / u128::from(self.rate);
        *paid = Some(begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        begin
    }

    fn grant_len(&self) -> u64 {
        let nanos = u128::from(self.rate) * GRANT_TIME.as_nanos() / 1_000_000_000;
        u64::try_from(nanos).unwrap_or(u64::MAX).clamp(GRANT_LEN_MIN, DATA_LEN_MAX as u64)
    }
}

/// The limits of some connections, for each direction. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    sending: Vec<Arc<Limiter>>,
    receiving: Vec<Arc<Limiter>>,
}

impl Limits {
    /// Limits of so many bytes per second, each above zero; all of them hold, in each direction by itself.
    #[must_use]
    pub fn of(rates: impl IntoIterator<Item = Option<u64>>) -> Limits {
        let rates: Vec<u64> = rates.into_iter().flatten().map(|rate| rate.max(1)).collect();
        let limiters = || rates.iter().map(|&rate| Arc::new(Limiter { rate, paid: Mutex::new(None) })).collect();
        Limits { sending: limiters(), receiving: limiters() }
    }

    /// A limit for what is sent and one for what is received, in bytes per second above zero; none: no bound.
    #[must_use]
    pub fn each_way(sending: Option<u64>, receiving: Option<u64>) -> Limits {
        let of = |rate: Option<u64>| Limits::of([rate]);
        Limits { sending: of(sending).sending, receiving: of(receiving).receiving }
    }

    /// These and the others.
    #[must_use]
    pub fn and(&self, other: Limits) -> Limits {
        let mut all = self.clone();
        all.sending.extend(other.sending);
        all.receiving.extend(other.receiving);
        all
    }

    /// What one connection waits by, for sending and for receiving.
    pub(super) fn meters(&self) -> (Meter, Meter) {
        (Meter::new(self.sending.clone()), Meter::new(self.receiving.clone()))
    }
}

/// One direction of one connection.
#[derive(Default)]
pub(super) struct Meter {
    limiters: Vec<Arc<Limiter>>,
    /// What it may move; below zero what it has moved beyond that.
    credit: i64,
    wait: Option<Pin<Box<Sleep>>>,
    /// The last grant was void. Two in a row are not, so that something moves on a machine that is late always.
    was_void: bool,
    /// Since when it waits, and how long it has waited before that.
    since: Option<Instant>,
    waited: Duration,
}

impl Meter {
    fn new(limiters: Vec<Arc<Limiter>>) -> Meter {
        Meter { limiters, credit: 0, wait: None, was_void: false, since: None, waited: Duration::ZERO }
    }

    /// Ready when something may be moved; [`Meter::took`] says how much was.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.limiters.is_empty() || self.credit > 0 {
            return Poll::Ready(());
        }
        loop {
            let now = Instant::now();
            let len = self.grant_len() as u64 + self.credit.unsigned_abs();
            let wait = self.wait.get_or_insert_with(|| {
                let begin = self.limiters.iter().map(|limiter| limiter.reserve(now, len)).max().unwrap_or(now);
                Box::pin(sleep_until(begin))
            });
            self.since.get_or_insert(now);
            let begin = wait.deadline();
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
            self.was_void = !self.was_void && now.saturating_duration_since(begin) > MADE_UP_FOR;
            if !self.was_void {
                break;
            }
        }
        self.waited += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.credit = i64::try_from(self.grant_len()).unwrap_or(i64::MAX);
        Poll::Ready(())
    }

    /// So many bytes were moved.
    pub(super) fn took(&mut self, len: usize) {
        if !self.limiters.is_empty() {
            self.credit = self.credit.saturating_sub(i64::try_from(len).unwrap_or(i64::MAX));
        }
    }

    /// How much should be moved at once; no bound without a limit.
    pub(super) fn grant_len(&self) -> usize {
        let least = self.limiters.iter().map(|limiter| limiter.grant_len()).min();
        least.map_or(usize::MAX, |len| usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// How long the limit has kept the connection from moving something.
    pub(super) fn waited(&self) -> Duration {
        self.waited + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether it is the limit that keeps the connection from moving something.
    pub(super) fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    /// Moves as much as it may, in pieces of this length, for five seconds.
    async fn moved(mut meter: Meter, piece: usize) -> u64 {
        let mut sum = 0;
        let _ = timeout(Duration::from_secs(5), async {
            loop {
                poll_fn(|cx| meter.poll(cx)).await;
                meter.took(piece);
                sum += piece as u64;
            }
        })
        .await;
        sum
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_share_a_limit_move_it_together_and_fairly() {
        const MIB: u64 = 1 << 20;
        for (rate, connections, piece) in [
            (MIB, 1, 4096),
            (64 << 10, 1, 1000),
            (10 * MIB, 8, 16_384),
            (100 * MIB, 3, 256 << 10),
            (MIB, 33, 4096),
            // Pieces of many grants: what is too much is paid for later.
            (20 * MIB, 2, 512 << 10),
        ] {
            let limits = Limits::of([Some(rate)]);
            let mut tasks = JoinSet::new();
            for _ in 0..connections {
                tasks.spawn(moved(limits.meters().0, piece));
            }
            let each = tasks.join_all().await;
            let (sum, expected) = (each.iter().sum::<u64>(), 5 * rate);
            let error = sum.abs_diff(expected) * 1000 / expected;
            assert!(error <= 30, "{sum} bytes instead of {expected} by {connections} connections");
            let (least, most) = (each.iter().min().unwrap(), each.iter().max().unwrap());
            assert!(most * 100 <= least * 130 + 100 * (piece as u64 + GRANT_LEN_MIN), "{each:?}: not fair");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_narrower_of_two_limits_holds_and_directions_are_apart() {
        const MIB: u64 = 1 << 20;
        let all = Limits::of([Some(8 * MIB)]);
        let (one, other) = (all.and(Limits::of([Some(MIB)])), all.and(Limits::of([Some(20 * MIB)])));
        let mut tasks = JoinSet::new();
        for meter in [one.meters().0, one.meters().0, other.meters().0, all.meters().1] {
            tasks.spawn(moved(meter, 4096));
        }
        let mut each = tasks.join_all().await;
        each.sort_unstable();
        let near = |sum: u64, expected: u64| sum.abs_diff(expected) * 100 <= 4 * expected;
        assert!(near(each[0] + each[1], 5 * MIB), "{each:?}");
        assert!(near(each[2], 5 * 7 * MIB), "{each:?}");
        assert!(near(each[3], 5 * 8 * MIB), "{each:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn each_direction_has_its_own_rate_for_all_connections() {
        const MIB: u64 = 1 << 20;
        let server = Limits::of([Some(100 * MIB)]);
        let principal = Limits::each_way(Some(2 * MIB), Some(6 * MIB));
        let mut tasks = JoinSet::new();
        for connection in 0..16 {
            let (sending, receiving) = server.and(principal.clone()).meters();
            let meter = if connection % 2 == 0 { sending } else { receiving };
            tasks.spawn(async move { (connection % 2, moved(meter, 16_384).await) });
        }
        let mut sums = [0; 2];
        tasks.join_all().await.into_iter().for_each(|(way, sum)| sums[way] += sum);
        for (sum, rate) in sums.into_iter().zip([2 * MIB, 6 * MIB]) {
            assert!(sum.abs_diff(5 * rate) * 100 <= 3 * 5 * rate, "{sums:?}");
        }
        // Only what is named is bound.
        let (sending, receiving) = Limits::each_way(None, Some(MIB)).meters();
        assert_eq!((sending.grant_len() == usize::MAX, receiving.grant_len() == usize::MAX), (true, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_machine_was_late_for_is_no_burst_of_all_connections() {
        const MIB: u64 = 1 << 20;
        for stall in [50, 120, 160, 300, 2000].map(Duration::from_millis) {
            let limits = Limits::of([Some(MIB)]);
            let mut meters: Vec<Meter> = (0..8).map(|_| limits.meters().0).collect();
            for meter in &mut meters {
                // Each has its next grant, which lies ahead of it.
                poll_fn(|cx| meter.poll(cx)).await;
                meter.took(20_972);
                let _ = poll_fn(|cx| Poll::Ready(meter.poll(cx))).await;
            }
            tokio::time::advance(stall).await;
            let mut tasks = JoinSet::new();
            meters.into_iter().for_each(|meter| drop(tasks.spawn(moved(meter, 4096))));
            let sum: u64 = tasks.join_all().await.into_iter().sum();
            let (least, most) = (5 * MIB * 97 / 100, 5 * MIB * 103 / 100);
            assert!((least..=most).contains(&sum), "{sum} bytes after {stall:?}, instead of {}", 5 * MIB);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let (mut meter, _) = Limits::default().meters();
        for _ in 0..1000 {
            poll_fn(|cx| meter.poll(cx)).await;
            meter.took(1 << 20);
        }
        assert!(!meter.is_waiting());
        assert_eq!(meter.grant_len(), usize::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_nobody_used_is_no_burst() {
        let limits = Limits::of([Some(1 << 20)]);
        let (mut meter, _) = limits.meters();
        poll_fn(|cx| meter.poll(cx)).await;
        meter.took(1 << 20);
        tokio::time::advance(Duration::from_secs(60)).await;
        let sum = moved(meter, 4096).await;
        assert!(sum <= (5 << 20) * 103 / 100, "{sum}");
    }
}
