//! When a connection ends by itself, and what is said at its end.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::error::{Blame, Error, ErrorKind, Result};
use crate::limits;
use crate::net::Connection;
use crate::protocol::Goodbye;

/// The deadlines of a connection: idle, and progress in bytes. A peer that says that it is at work is waited for
/// longer, and not for ever.
pub(super) struct Watch {
    idle_since: Instant,
    bytes: u64,
    window_began: Instant,
    window_bytes: u64,
    /// Bytes of messages that only say that the peer is at work: they are no progress.
    words: u64,
    /// When bytes were last seen to move, whatever was said.
    moved: Instant,
    /// The window in which that is looked for.
    moving_began: Instant,
    moving_bytes: u64,
}

impl Watch {
    pub(super) fn new() -> Watch {
        let now = Instant::now();
        Watch {
            idle_since: now,
            bytes: 0,
            window_began: now,
            window_bytes: 0,
            words: 0,
            moved: now,
            moving_began: now,
            moving_bytes: 0,
        }
    }

    /// The peer says that it is at work, in so many bytes.
    pub(super) fn heard(&mut self, len: usize) {
        self.window_began = Instant::now();
        self.words += len as u64;
    }

    pub(super) fn look(&mut self, bytes: u64, idle: bool, working: bool) -> Result<()> {
        let now = Instant::now();
        let since = |start: Instant| now.saturating_duration_since(start);
        let bytes = bytes.saturating_sub(self.words);
        if bytes.saturating_sub(self.moving_bytes) >= limits::PROGRESS_LEN_MIN || idle || working {
            self.moved = now;
        }
        if self.moved == now || since(self.moving_began) >= limits::PROGRESS_TIMEOUT {
            (self.moving_began, self.moving_bytes) = (now, bytes);
        }
        if bytes.saturating_sub(self.window_bytes) >= limits::PROGRESS_LEN_MIN || idle || working {
            self.window_began = now;
            self.window_bytes = bytes;
        }
        if !idle || bytes != self.bytes {
            self.idle_since = now;
            self.bytes = bytes;
        }
        if since(self.idle_since) >= limits::IDLE_TIMEOUT {
            return Err(late("this connection was idle", limits::IDLE_TIMEOUT));
        }
        if since(self.window_began) >= limits::PROGRESS_TIMEOUT {
            return Err(late("no progress on this connection", limits::PROGRESS_TIMEOUT));
        }
        if since(self.moved) >= limits::WORKING_TIMEOUT {
            return Err(late("the client has only said that it is at work", limits::WORKING_TIMEOUT));
        }
        Ok(())
    }
}

fn late(what: &str, limit: Duration) -> Error {
    Error::new(ErrorKind::Timeout, format!("{what} for {} seconds", limit.as_secs()))
}

/// Writes down how a connection ended, and ends it in order.
pub(super) async fn part(connection: Connection, end: Result<()>, summary: &str) {
    match end {
        Ok(()) => {
            info!("{summary}");
            connection.close().await;
        }
        Err(error) => {
            match error.kind().blame() {
                Blame::Ourselves => tracing::error!("{summary}; ended: {}", error.chain()),
                Blame::Peer => warn!("{summary}; ended: {}", error.chain()),
                _ => info!("{summary}; ended: {}", error.chain()),
            }
            say_goodbye(connection, &error).await;
        }
    }
}

/// Tells the peer why the connection ends, and gives it time to read that.
pub(super) async fn say_goodbye(mut connection: Connection, error: &Error) {
    if !error.is_from_peer() && error.kind() != ErrorKind::Connection {
        connection.send(0, &Goodbye::from_error(error));
    }
    connection.close().await;
}
