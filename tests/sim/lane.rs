//! The client's end of a further connection that is simulated.

use super::*;
use crate::client::session::simulated::hear_data;

/// A lane's connection.
pub(crate) struct Line(Front);

impl Line {
    /// One more lane of a session, if there may be one.
    pub(crate) fn new(lanes: &Lanes, pool: Pool) -> Option<Line> {
        let count = 2 + lanes.lock().lanes.len();
        if lanes.missing(count) == 0 {
            return None;
        }
        let number = lanes.enter(Place::Task)?;
        Some(Line(Front::let_in(lanes, number, Place::Task, &pool)))
    }

    /// What the client sends now, as whole frames.
    pub(crate) fn said(&mut self) -> Vec<Bytes> {
        let mut state = self.0.lanes.lock();
        let lane = state.lanes.get_mut(&self.0.number);
        lane.map(|lane| std::mem::take(&mut lane.requests)).unwrap_or_default()
    }

    /// Content arrives.
    pub(crate) fn hear_data(&mut self, transfer: u32, offset: u64, content: &[u8]) -> Result<()> {
        hear_data(&mut self.0, transfer, offset, content)
    }

    /// The connection has ended.
    pub(crate) fn end(self) {
        drop(self);
    }
}
