//! One transfer or request that is open over a session.

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{Outgoing, Reply, Session};
use crate::client::lanes::Carrier;
use crate::client::shelf::Shelf;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{GROUP_LEN, ZERO_RUNS_IN_MESSAGE};
use crate::protocol::{Close, Finish, FinishAhead, List, Want, WantValues, Zeros};
use crate::transfer::Runs;

/// One transfer or request that is open. Dropped before its end, it is ended on the server too.
pub(crate) struct Exchange {
    session: Session,
    transfer: u32,
    receiver: mpsc::Receiver<(u32, Reply)>,
    /// How a download ends, as the server has said ahead.
    foretold: Option<Finish>,
    is_over: bool,
}

impl Exchange {
    pub(super) fn new(session: &Session, transfer: u32, receiver: mpsc::Receiver<(u32, Reply)>) -> Exchange {
        Exchange { session: session.clone(), transfer, receiver, foretold: None, is_over: false }
    }

    /// The next answer.
    ///
    /// # Errors
    /// The failure that the server reports, or why the session has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self) -> Result<Reply> {
        loop {
            let reply = self.receiver.recv().await;
            if let Some(reply) = self.take(reply)? {
                return Ok(reply);
            }
        }
    }

    /// What has come, but for what is told ahead.
    fn take(&mut self, reply: Option<(u32, Reply)>) -> Result<Option<Reply>> {
        match reply {
            Some((_, Reply::FinishAhead(finish))) => {
                self.foretold = Some(finish);
                Ok(None)
            }
            Some((_, Reply::Failed(error))) => {
                self.is_over = true;
                Err(error)
            }
            Some((_, reply)) => {
                self.is_over |= reply.is_last();
                Ok(Some(reply))
            }
            None => Err(self.session.reason()),
        }
    }

    /// Queues a group, or the part of one that there is.
    ///
    /// # Errors
    /// Why the session has ended.
    ///
    /// # Cancel safety
    /// The content is lost when this is dropped; the exchange must be aborted then.
    pub(crate) async fn send_content(&self, offset: u64, content: Bytes) -> Result<()> {
        let room = self.session.permit(&self.session.0.room, 1).await?;
        let mut desk = self.session.desk();
        if desk.slots.contains_key(&self.transfer) {
            desk.outgoing.push_back(Outgoing::Content { transfer: self.transfer, offset, content, _room: room });
            desk.wake();
        }
        Ok(())
    }

    /// Its number, and where its answers come: as [`Session::get_into`] leaves it.
    pub(crate) fn into_parts(mut self) -> (u32, mpsc::Receiver<(u32, Reply)>) {
        self.is_over = true;
        let (_, nowhere) = mpsc::channel(1);
        (self.transfer, std::mem::replace(&mut self.receiver, nowhere))
    }

    /// Over which session it goes.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Why the session has ended.
    pub(crate) fn reason(&self) -> Error {
        self.session.reason()
    }

    /// Enters this transfer with the queue that all connections of the session take groups from; what they bring of a
    /// group before they break is laid on this shelf.
    pub(crate) fn carry(&self, shelf: &Shelf) -> Carrier {
        if let Some(slot) = self.session.desk().slots.get_mut(&self.transfer) {
            slot.shelf = shelf.clone();
        }
        self.session.lanes().carry(self.transfer, shelf.clone())
    }

    /// Says that all content is sent.
    pub(crate) fn finish(&self, finish: &Finish) {
        self.session.queue(self.transfer, finish, |slot| slot.is_due = true);
    }

    /// Tells what the finish of an upload will say, while some of it is still under way over lanes. The answer may come
    /// from then on.
    pub(crate) fn finish_ahead(&self, finish: &Finish) {
        let ahead = FinishAhead { size: finish.size, root: finish.root };
        self.session.queue(self.transfer, &ahead, |slot| slot.is_due = true);
    }

    /// Tells groups of zeros, which need not come.
    pub(crate) fn zeros(&self, runs: &Runs) {
        let runs: Vec<(u64, u64)> = runs.iter().collect();
        for runs in runs.chunks(ZERO_RUNS_IN_MESSAGE) {
            self.session.queue(self.transfer, &Zeros { runs: List(runs.to_vec()) }, |_| {});
        }
    }

    /// Whether the first group of a download comes without being asked for. It is told once, with the leave that was
    /// taken for it.
    pub(crate) fn take_first(&self) -> Option<OwnedSemaphorePermit> {
        let (_, permit) = self.session.desk().slots.get_mut(&self.transfer)?.first.take()?;
        Some(permit)
    }

    /// Where what a broken connection has brought of a group is laid, which calls this.
    pub(crate) fn shelf(&self, progress: impl Fn() + Send + Sync + 'static) -> Shelf {
        let shelf = self.session.desk().slots.get(&self.transfer).map(|slot| slot.shelf.clone()).unwrap_or_default();
        shelf.tell(progress);
        shelf
    }

    /// Asks for groups of a download: index and length of each.
    pub(crate) fn want(&self, ranges: &[(u64, u64)]) {
        for ranges in ranges.chunks(1024) {
            let want = Want { ranges: List(ranges.to_vec()) };
            self.session.queue(self.transfer, &want, |slot| {
                slot.is_due = true;
                let ranges = ranges.iter().map(|&(offset, len)| (offset, usize::try_from(len).unwrap_or(GROUP_LEN)));
                slot.wanted.extend(ranges);
            });
        }
    }

    /// Asks for the values of groups of a download, in their order.
    pub(crate) fn want_values(&self, first: u64, count: u64) {
        self.session.queue(self.transfer, &WantValues { first, count }, |slot| slot.is_due = true);
    }

    /// Says that a download needs no more content, and how it ended: finish, done or a failure. What the server has said
    /// ahead, or says before it answers, is not waited for again if it is the same as what came.
    ///
    /// # Errors
    /// The failure that the server reports, or why the session has ended.
    ///
    /// # Cancel safety
    /// Whoever drops this must drop the exchange.
    pub(crate) async fn end_download(&mut self, came: &Finish) -> Result<Reply> {
        self.session.queue(self.transfer, &Close {}, |slot| slot.is_due = true);
        loop {
            if let Some(finish) = self.foretold.take_if(|finish| finish == came) {
                self.is_over = true;
                if let Some(slot) = self.session.desk().slots.get_mut(&self.transfer) {
                    slot.is_left = true;
                }
                return Ok(Reply::Finish(finish));
            }
            let reply = self.receiver.recv().await;
            if let Some(reply) = self.take(reply)? {
                return Ok(reply);
            }
        }
    }

    /// Ends a download in order of which nothing more has to be known: how the server answers is of no concern.
    pub(crate) fn leave(mut self) {
        self.is_over = true;
        self.session.queue(self.transfer, &Close {}, |slot| (slot.is_due, slot.is_left) = (true, true));
    }

    /// Ends the exchange because of a failure on our side.
    pub(crate) fn abort(mut self, error: &Error) {
        self.is_over = true;
        self.session.abort(self.transfer, error);
    }

    /// An answer that has no place here: the session ends.
    pub(crate) fn unexpected(&self, reply: &Reply) -> Error {
        self.session.unexpected(reply)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_over {
            let error = Error::new(ErrorKind::Interrupted, "the client does not need this any more");
            self.session.abort(self.transfer, &error);
        }
    }
}
