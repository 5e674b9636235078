//! Connections that are begun before it is known what they join.
//!
//! A transfer over a long link gets several connections, and each takes a round trip for TCP, one for TLS and one for
//! the hellos. Where a large file is sure to be moved, the first two of these pass while the first connection does the
//! same; what is left is to show the token that its hello brings. Nothing but handshakes leaves before that.
//!
//! Where a file is fetched, of which only the server knows whether it is large, a few are begun so, and only over a very
//! long link. Those that nobody takes are ended.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;

use crate::error::Result;
use crate::limits::{HELLO_TIMEOUT, MIB, NEAR_ROUND_TRIP};
use crate::net::{Socket, tcp_info};
use crate::transfer::{Way, Width};

/// A server waits for a hello as long as [`HELLO_TIMEOUT`]. What is nearly as old as that is not used, and ended.
const USED_WITHIN: Duration = Duration::from_secs(HELLO_TIMEOUT.as_secs() / 2);

/// A file smaller than this gets no further connections, whatever number is asked for.
pub(crate) const LANES_FROM: u64 = 2 * MIB as u64;

/// How many connections there should be, as far as it is known before there is one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    /// Bytes of the largest file that is to be moved, where that is known.
    pub(crate) size: u64,
    /// A file is fetched whose size is not known.
    pub(crate) is_fetch: bool,
    /// Connections of one transfer, if that was fixed.
    pub(crate) streams: Option<u16>,
}

impl Expected {
    /// Connections besides the first, over a path with this round trip.
    fn further(self, round_trip: Duration) -> usize {
        if round_trip <= NEAR_ROUND_TRIP {
            return 0;
        }
        let count = match self.streams {
            Some(streams) if self.size >= LANES_FROM => usize::from(streams),
            None if self.size >= LANES_FROM => Width::first(round_trip, self.size, Way::Up),
            None if self.is_fetch => Width::of_unknown(round_trip),
            _ => 1,
        };
        count.saturating_sub(1)
    }
}

/// What comes of one that was begun.
pub(crate) type Shaken = Result<TlsStream<Socket>>;

/// The connections that were begun and are not used yet. Those that never are end with this.
#[derive(Default)]
pub(crate) struct Ahead(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    tasks: JoinSet<()>,
    /// Of each, where it goes, since when, and where it will come out.
    begun: VecDeque<(SocketAddr, Instant, oneshot::Receiver<Shaken>)>,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Two collections; no statement between lock and unlock leaves them half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins as many connections as will be wanted, now that the first has reached the server. What was begun before
    /// is forgotten.
    pub(crate) fn begin<F>(&self, expected: Expected, first: &TcpStream, shake: impl FnMut(SocketAddr) -> F)
    where
        F: Future<Output = Shaken> + Send + 'static,
    {
        let round_trip = tcp_info(first.as_fd()).map_or(Duration::ZERO, |info| info.rtt);
        if let Ok(address) = first.peer_addr() {
            self.begin_to(address, round_trip, expected, shake);
        }
    }

    fn begin_to<F>(
        &self,
        address: SocketAddr,
        round_trip: Duration,
        expected: Expected,
        mut shake: impl FnMut(SocketAddr) -> F,
    ) where
        F: Future<Output = Shaken> + Send + 'static,
    {
        let (state, further) = (Arc::downgrade(&self.0), expected.further(round_trip));
        let mut begun = State::default();
        for _ in 0..further {
            let (sender, receiver) = oneshot::channel();
            let shaking = shake(address);
            begun.tasks.spawn(async move {
                if let Ok(shaken) = timeout(USED_WITHIN, shaking).await {
                    // Nobody there any more: it is not needed.
                    let _ = sender.send(shaken);
                }
            });
            begun.begun.push_back((address, Instant::now(), receiver));
        }
        if further > 0 {
            let too_old = sleep(USED_WITHIN);
            begun.tasks.spawn(async move {
                too_old.await;
                let Some(state) = state.upgrade() else { return };
                let unused = std::mem::take(&mut state.lock().unwrap_or_else(PoisonError::into_inner).begun);
                drop(unused);
            });
        }
        *self.lock() = begun;
    }

    /// Ends those that nobody has taken.
    pub(crate) fn forget(&self) {
        // Not while it is locked: whoever holds the last of something has more to do.
        let unused = std::mem::take(&mut *self.lock());
        drop(unused);
    }

    /// How many there are that nobody has taken.
    pub(crate) fn count(&self) -> usize {
        self.lock().begun.len()
    }

    /// One that was begun to this address, when its handshake is done; none when there is none that can be used.
    pub(crate) async fn next(&self, address: SocketAddr) -> Option<TlsStream<Socket>> {
        let (to, since, shaken) = self.lock().begun.pop_front()?;
        if to != address || since.elapsed() > USED_WITHIN {
            return None;
        }
        shaken.await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::error::{Error, ErrorKind};

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_used_is_not_waited_for() {
        let (address, elsewhere) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap());
        let (ahead, expected) = (Ahead::default(), Expected { size: 1 << 30, is_fetch: false, streams: Some(4) });
        let asked = Cell::new(0);
        let fails = |_| {
            asked.set(asked.get() + 1);
            async { Err(Error::new(ErrorKind::Connection, "refused")) }
        };
        let hangs = |_| {
            asked.set(asked.get() + 1);
            std::future::pending()
        };
        ahead.begin_to(address, Duration::from_millis(100), expected, fails);
        assert_eq!(asked.get(), 3);
        assert!(ahead.next(address).await.is_none(), "its handshake failed");
        ahead.begin_to(address, Duration::from_millis(100), expected, hangs);
        assert_eq!(asked.get(), 6);
        assert_eq!(ahead.lock().begun.len(), 3, "those before are forgotten");
        assert!(ahead.next(elsewhere).await.is_none(), "it goes somewhere else");
        tokio::time::advance(USED_WITHIN + Duration::from_millis(1)).await;
        assert!(ahead.next(address).await.is_none(), "the server waits no longer for its hello");
        tokio::task::yield_now().await;
        assert!(ahead.lock().begun.is_empty(), "nobody takes them any more");
    }

    #[test]
    fn connections_are_begun_for_a_large_file_and_a_far_server() {
        const MIB: u64 = 1 << 20;
        let ms = Duration::from_millis;
        let cases = [
            (ms(100), 1024 * MIB, None, 31),
            (ms(100), 20 * MIB, None, 4),
            (ms(100), 0, None, 0),
            (ms(100), 0, Some(8), 0),
            (ms(100), 2 * MIB, Some(8), 7),
            (ms(100), 2 * MIB - 1, Some(8), 0),
            (ms(100), 1024 * MIB, Some(1), 0),
            (ms(1), 1024 * MIB, Some(8), 0),
            (Duration::ZERO, 1024 * MIB, None, 0),
        ];
        for (round_trip, size, streams, further) in cases {
            let expected = Expected { size, is_fetch: false, streams };
            assert_eq!(expected.further(round_trip), further, "{round_trip:?}, {expected:?}");
        }
        let fetches = [
            (ms(100), 0, None, 15),
            (ms(100), 0, Some(8), 0),
            (ms(100), u64::MAX, Some(4), 3),
            (ms(20), 0, None, 0),
            (Duration::ZERO, 0, None, 0),
        ];
        for (round_trip, size, streams, further) in fetches {
            let expected = Expected { size, is_fetch: true, streams };
            assert_eq!(expected.further(round_trip), further, "{round_trip:?}, {expected:?}");
        }
    }
}
