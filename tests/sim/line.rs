//! The client's end of a connection that is simulated: what `drive` does with a real one.

use std::sync::Arc;
use std::task::Waker;

use super::*;
use crate::client::asks::Ask;
use crate::client::stalls::Stalls;
use crate::protocol::ServerHello;

/// A session's connection.
pub(crate) struct Line(Front);

impl Line {
    /// A session with a server that says this and seems so far away, and its connection.
    pub(crate) fn new(hello: ServerHello, round_trip: Duration, pool: Pool, stalls: Arc<Stalls>) -> (Session, Line) {
        Line::asked((hello, Vec::new()), round_trip, pool, stalls)
    }

    /// The same, when this has left with the hello of the client.
    pub(crate) fn asked(
        (hello, asked): (ServerHello, Vec<Ask>),
        round_trip: Duration,
        pool: Pool,
        stalls: Arc<Stalls>,
    ) -> (Session, Line) {
        let session = Session::of((hello, None, None), (None, round_trip), (8, 1), stalls);
        asked.into_iter().for_each(|ask| session.enter_asked(ask));
        (session.clone(), Line(Front::new(session, pool)))
    }

    /// Its session.
    pub(crate) fn session(&self) -> &Session {
        &self.0.session
    }

    /// Whether the client has ended it.
    pub(crate) fn is_over(&self) -> bool {
        let desk = self.0.session.desk();
        desk.ended.is_some() || desk.closing && desk.outgoing.is_empty()
    }

    /// What the client sends now, as whole frames.
    pub(crate) fn said(&mut self, cx: &mut Context<'_>) -> Vec<Bytes> {
        let mut said = Vec::new();
        loop {
            let polled = self.0.poll_data(cx);
            assert!(polled.is_pending(), "a download sends no content");
            if self.0.ready.is_empty() {
                return said;
            }
            said.append(&mut self.0.ready);
        }
    }

    /// A message arrives.
    pub(crate) fn hear(&mut self, kind: Kind, transfer: u32, payload: &[u8]) -> Result<()> {
        match kind {
            Kind::Working => Working::from_payload(payload).map(drop).map_err(Error::from),
            _ => take(&self.0.session, kind, transfer, payload).map(drop),
        }
    }

    /// Content arrives.
    pub(crate) fn hear_data(&mut self, transfer: u32, offset: u64, content: &[u8]) -> Result<()> {
        hear_data(&mut self.0, transfer, offset, content)
    }

    /// The connection has ended.
    pub(crate) fn end(self, error: Error) {
        self.0.session.end(error);
    }
}

/// Content arrives at some end of a connection, all of it.
pub(crate) fn hear_data(front: &mut impl Handler, transfer: u32, mut offset: u64, mut content: &[u8]) -> Result<()> {
    let cx = &mut Context::from_waker(Waker::noop());
    while !content.is_empty() {
        let Poll::Ready(space) = front.poll_space(cx, transfer, offset, content.len()) else {
            panic!("a client without buffers")
        };
        let space = space?;
        let len = if space.is_empty() { content.len() } else { space.len().min(content.len()) };
        if !space.is_empty() {
            space[..len].copy_from_slice(&content[..len]);
        }
        front.filled(transfer, offset, len)?;
        (offset, content) = (offset + len as u64, &content[len..]);
    }
    Ok(())
}
