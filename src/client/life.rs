//! Whether the server at the other end is still there, and whether it does anything.
//!
//! Silence ends a connection soon. A server that says that it is at work, or sends a byte now and then, is waited for
//! longer, but not for ever: it is held to what it holds its clients to (`docs/PROTOCOL.md`, "Time").

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::limits::{PROGRESS_LEN_MIN, PROGRESS_TIMEOUT, WORKING_INTERVAL, WORKING_TIMEOUT};
use crate::net::Connection;
use crate::protocol::{FRAME_HEADER_LEN, Message as _, Phase, Working};

/// After this long with an answer due, nothing received and nothing written, the server counts as gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What was seen of the other side, and when.
pub(crate) struct Life {
    patience: Patience,
    /// The last time when anything was sent, and how much had been by then.
    told: Instant,
    sent: u64,
    begun: Instant,
}

impl Life {
    pub(crate) fn new() -> Life {
        let now = Instant::now();
        Life { patience: Patience::new(now), told: now, sent: 0, begun: now }
    }

    /// Since when the connection is driven.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The server says that it is at work, in so many bytes of payload.
    pub(crate) fn heard(&mut self, payload_len: usize) {
        self.patience.heard(Instant::now(), (FRAME_HEADER_LEN + payload_len) as u64);
    }

    /// The server has answered something to its end.
    pub(crate) fn answered(&mut self) {
        self.patience.restart(Instant::now());
    }

    /// Once a second: whether the server is still there, and whether we should say that we are. `is_open`: something
    /// is; `is_due`: the server owes an answer; `is_full`: nothing is read until work of ours is done.
    ///
    /// # Errors
    /// `Timeout` when nothing was heard, or nothing got further, for too long.
    pub(crate) fn tick(
        &mut self,
        connection: &mut Connection,
        is_open: bool,
        is_due: bool,
        is_full: bool,
    ) -> Result<()> {
        let now = Instant::now();
        let traffic = connection.traffic();
        if traffic.sent != self.sent {
            (self.sent, self.told) = (traffic.sent, now);
        }
        // What our own limit holds back, or our disk, is not the server's fault.
        let is_ours = is_full || connection.is_held_back();
        let is_waiting = is_open && (is_due || !connection.is_flushed()) && !is_ours;
        self.patience.look(now, traffic.received, traffic.sent, is_waiting)?;
        if is_open
            && now.duration_since(self.told) >= WORKING_INTERVAL
            && (connection.is_flushed() || connection.is_held_back())
        {
            let working = Working { phase: Phase::Waiting, done: 0, total: 0, spent: None };
            connection.send(0, &working);
            self.told = now;
            // Our own sign of life is none of the server's.
            let len = working.to_frame(0).len() as u64;
            self.sent += len;
            self.patience.said(len);
        }
        Ok(())
    }
}

/// How long a server is waited for.
struct Patience {
    /// Bytes in both directions, without those of `Working`.
    bytes: u64,
    /// Bytes of `Working`, heard and said.
    words: u64,
    /// When a byte last moved.
    seen: Instant,
    /// When the server was last at work by its own word, or had moved enough bytes, or had nothing to do.
    window: (Instant, u64),
    /// The same without its word.
    moved: (Instant, u64),
    /// Where the bytes are counted from that would be enough.
    moving: (Instant, u64),
}

impl Patience {
    fn new(now: Instant) -> Patience {
        Patience { bytes: 0, words: 0, seen: now, window: (now, 0), moved: (now, 0), moving: (now, 0) }
    }

    fn heard(&mut self, now: Instant, len: u64) {
        self.words += len;
        self.seen = now;
        self.window.0 = now;
    }

    fn said(&mut self, len: u64) {
        self.words += len;
    }

    fn restart(&mut self, now: Instant) {
        self.seen = now;
        (self.window.0, self.moved.0, self.moving.0) = (now, now, now);
    }

    fn look(&mut self, now: Instant, received: u64, sent: u64, is_waiting: bool) -> Result<()> {
        let bytes = (received + sent).saturating_sub(self.words);
        if bytes > self.bytes {
            (self.bytes, self.seen) = (bytes, now);
        }
        let is_enough = |from: u64| bytes.saturating_sub(from) >= PROGRESS_LEN_MIN;
        if !is_waiting {
            self.restart(now);
        }
        if !is_waiting || is_enough(self.moving.1) {
            self.moved = (now, bytes);
        }
        if self.moved.0 == now || now.duration_since(self.moving.0) >= PROGRESS_TIMEOUT {
            self.moving = (now, bytes);
        }
        if !is_waiting || is_enough(self.window.1) {
            self.window = (now, bytes);
        }
        let late = |since: Instant, limit: Duration, what: &str| {
            let is_late = now.duration_since(since) >= limit;
            let message = || format!("{what} for {} seconds", limit.as_secs());
            if is_late { Err(Error::new(ErrorKind::Timeout, message())) } else { Ok(()) }
        };
        late(self.seen, SILENCE_MAX, "nothing was heard from the server")?;
        late(self.window.0, PROGRESS_TIMEOUT, "the server has sent and taken next to nothing")?;
        late(self.moved.0, WORKING_TIMEOUT, "the server has only said that it is at work")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a server do something every so many seconds, until patience ends. The answer is after how many seconds.
    fn ends(every: u64, mut act: impl FnMut(&mut Patience, Instant, &mut u64), is_waiting: bool) -> Option<u64> {
        let begun = Instant::now();
        let (mut patience, mut received) = (Patience::new(begun), 0);
        for second in 1..=WORKING_TIMEOUT.as_secs() + 100 {
            let now = begun + Duration::from_secs(second);
            if second % every == 0 {
                act(&mut patience, now, &mut received);
            }
            if let Err(error) = patience.look(now, received, 0, is_waiting) {
                assert_eq!(error.kind(), ErrorKind::Timeout);
                return Some(second);
            }
        }
        None
    }

    fn work(patience: &mut Patience, now: Instant, received: &mut u64) {
        patience.heard(now, 20);
        *received += 20;
    }

    #[test]
    fn silence_trickles_and_words_have_an_end() {
        assert_eq!(ends(1, |_, _, _| {}, true), Some(30), "nothing");
        assert_eq!(ends(20, |_, _, received| *received += 1, true), Some(60), "a byte now and then");
        assert_eq!(ends(60, |_, _, received| *received += 1, true), Some(30), "a byte a minute");
        assert_eq!(ends(5, work, true), Some(WORKING_TIMEOUT.as_secs()), "words");
        let words_and_bytes = |patience: &mut Patience, now: Instant, received: &mut u64| {
            work(patience, now, received);
            *received += 1;
        };
        assert_eq!(ends(5, words_and_bytes, true), Some(WORKING_TIMEOUT.as_secs()), "words and a few bytes");
    }

    #[test]
    fn whoever_gets_further_is_waited_for() {
        assert_eq!(ends(10, |_, _, received| *received += PROGRESS_LEN_MIN, true), None, "content");
        assert_eq!(ends(20, |patience, now, _| patience.restart(now), true), None, "small answers");
        assert_eq!(ends(1, |_, _, _| {}, false), None, "nothing is due");
    }
}
