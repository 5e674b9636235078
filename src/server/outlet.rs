//! Where the answers of a connection go: to its peer, or to the simulation that stands in its place.

use std::time::Duration;

use bytes::Bytes;

use crate::net::{Connection, Limits};
use crate::protocol::Message;

/// Takes frames for a peer, in their order.
pub(super) trait Outlet {
    /// Queues a whole frame.
    fn send_frame(&mut self, frame: Bytes);

    /// Bytes of frames that the peer has not taken.
    fn control_queued(&self) -> usize;

    /// Bytes of frames that have moved so far, both ways.
    fn moved(&self) -> u64;

    /// Whether the peer has taken everything.
    fn is_flushed(&self) -> bool;

    /// Whether a limit of ours keeps something from moving now.
    fn is_held_back(&self) -> bool;

    /// Sets what may move.
    fn set_limits(&mut self, limits: &Limits);

    /// Lets go of content that the peer has not taken.
    fn detach_data(&mut self);

    /// For how long it was held back by a limit, sent, and waited for the peer to take more.
    fn waited(&self) -> [Duration; 3];

    /// Queues a message.
    fn send<M: Message>(&mut self, transfer: u32, message: &M) {
        self.send_frame(message.to_frame(transfer).into());
    }
}

impl Outlet for Connection {
    fn send_frame(&mut self, frame: Bytes) {
        Connection::send_frame(self, frame);
    }

    fn control_queued(&self) -> usize {
        Connection::control_queued(self)
    }

    fn moved(&self) -> u64 {
        let traffic = self.traffic();
        traffic.received + traffic.sent
    }

    fn is_flushed(&self) -> bool {
        Connection::is_flushed(self)
    }

    fn is_held_back(&self) -> bool {
        Connection::is_held_back(self)
    }

    fn set_limits(&mut self, limits: &Limits) {
        Connection::set_limits(self, limits);
    }

    fn detach_data(&mut self) {
        Connection::detach_data(self);
    }

    fn waited(&self) -> [Duration; 3] {
        let info = self.socket().info().unwrap_or_default();
        [self.held_back(), info.busy.saturating_sub(info.limited_by_buffers), info.limited_by_peer]
    }
}
