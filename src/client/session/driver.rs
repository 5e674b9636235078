//! The task that owns a session's connection: what the desk holds goes out, what comes goes to whoever waits for it.

use std::collections::HashMap;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::{Book, Desk, Outgoing, Replies, Reply, Session, Slot};
use crate::buffer::{Buffer, Pool};
use crate::client::lanes;
use crate::client::life::Life;
use crate::client::shelf::Filling;
use crate::client::stalls::{Cause, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::group_len;
use crate::limits::{DATA_LEN_MAX, DATA_QUEUE_MAX, FILE_SIZE_MAX, GROUP_LEN, NEAR_ROUND_TRIP};
use crate::net::{Connection, Event, Handler};
use crate::protocol::{
    Breach, Done, Entries, Entry, Failed, Finish, FinishAhead, GetAnswer, Goodbye, Invited, Invites, Kind,
    Message as _, PutAnswer, Receipt, Stored, StoredBatch, TreeBegun, Values, Volume, Working,
};

/// Frames that are taken before others have their turn.
pub(crate) const EVENTS_MAX: usize = 256;
/// How long the end of a connection may take once everything is answered: it is a courtesy.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// The connection's side of the content that moves.
struct Front {
    session: Session,
    /// Frames that the connection shall take next.
    ready: Vec<Bytes>,
    /// The group of the common queue that this connection is sending.
    taken: Option<lanes::Group>,
    /// Groups that are being received, by transfer. One transfer fills one at a time.
    filling: HashMap<u32, Filling>,
    leases: Leases,
    /// What the connection and the server have counted so far.
    seen: Seen,
}

/// A wait for a buffer.
type Lease = std::pin::Pin<Box<dyn Future<Output = Buffer> + Send>>;

impl Front {
    fn new(session: Session, pool: Pool) -> Front {
        let leases = Leases::new(pool);
        Front { session, ready: Vec::new(), taken: None, filling: HashMap::new(), leases, seen: Seen::default() }
    }
}

impl Handler for Front {
    fn poll_space(&mut self, cx: &mut Context<'_>, transfer: u32, offset: u64, len: usize) -> Poll<Result<&mut [u8]>> {
        let (whole, shelf, is_unasked) = {
            let desk = self.session.desk();
            if transfer >= desk.next_transfer || transfer == 0 {
                return Poll::Ready(Err(unexpected(Kind::Data, "nothing was asked for under this number")));
            }
            let Some(slot) = desk.slots.get(&transfer) else {
                // Ended from our side; what was on its way is thrown away.
                drop(desk);
                self.filling.remove(&transfer);
                return Poll::Ready(Ok(&mut []));
            };
            let Some(&(wanted, rest)) = slot.wanted.front() else {
                return Poll::Ready(Err(Breach::Data("content that was not asked for").into()));
            };
            if offset != wanted {
                return Poll::Ready(Err(Breach::Data("content out of order").into()));
            }
            if len > rest {
                return Poll::Ready(Err(Breach::Data("a piece across two groups").into()));
            }
            // What comes unasked is small, is kept by who has asked for it, and is asked for a few batches at a time: it
            // takes none of the buffers that come and go.
            (group_len(slot.size, offset / GROUP_LEN as u64), slot.shelf.clone(), slot.unasked_max > 0)
        };
        if !self.filling.contains_key(&transfer) {
            let filling = std::task::ready!(shelf.poll_filling(offset, || match is_unasked {
                true => Poll::Ready(Buffer::alone(whole)),
                false => self.leases.poll(cx, transfer, whole),
            }));
            self.filling.insert(transfer, filling);
        }
        let Some(filling) = self.filling.get_mut(&transfer) else {
            return Poll::Ready(Err(Error::new(ErrorKind::Internal, "a buffer that was just leased is missing")));
        };
        let is_next = filling.next_offset() == offset;
        match filling.space(len) {
            Some(space) if is_next => Poll::Ready(Ok(space)),
            _ => Poll::Ready(Err(Breach::Data("a piece out of order in its group").into())),
        }
    }

    fn filled(&mut self, transfer: u32, _: u64, len: usize) -> Result<()> {
        let mut desk = self.session.desk();
        let (Some(slot), Some(filling)) = (desk.slots.get_mut(&transfer), self.filling.get_mut(&transfer)) else {
            return Ok(());
        };
        let is_whole = filling.advance(len);
        if let Some((offset, rest)) = slot.wanted.front_mut() {
            *offset += len as u64;
            *rest -= len;
            if *rest == 0 {
                slot.wanted.pop_front();
            }
        }
        if !is_whole {
            return Ok(());
        }
        if slot.wanted.is_empty() {
            // An unasked download still owes its finish.
            slot.is_due = slot.unasked_max > 0;
        }
        let replies = slot.replies.clone();
        drop(desk);
        let Some(filling) = self.filling.remove(&transfer) else { return Ok(()) };
        let group = filling.group();
        let Some(buffer) = filling.into_buffer() else { return Ok(()) };
        give(&replies, transfer, Reply::Group(group, buffer))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        let mut desk = self.session.desk();
        let Desk { outgoing, slots, .. } = &mut *desk;
        let mut ready_len = 0;
        loop {
            match outgoing.front_mut() {
                None => break,
                Some(Outgoing::Frames(_, frames)) => {
                    if ready_len >= DATA_QUEUE_MAX {
                        return Poll::Pending;
                    }
                    ready_len += frames.iter().map(Bytes::len).sum::<usize>();
                    self.ready.append(frames);
                    outgoing.pop_front();
                }
                Some(Outgoing::Content { transfer, offset, content, .. }) => {
                    if !self.ready.is_empty() {
                        return Poll::Pending;
                    }
                    // One group at a time.
                    if self.taken.is_some() {
                        break;
                    }
                    let (transfer, start) = (*transfer, *offset);
                    if !slots.contains_key(&transfer) {
                        outgoing.pop_front();
                        continue;
                    }
                    let piece = content.split_to(content.len().min(DATA_LEN_MAX));
                    *offset += piece.len() as u64;
                    if content.is_empty() {
                        outgoing.pop_front();
                    }
                    return Poll::Ready((transfer, start, piece));
                }
            }
        }
        drop(desk);
        if !self.ready.is_empty() {
            return Poll::Pending;
        }
        let lanes = self.session.lanes();
        if self.taken.as_ref().is_some_and(|group| !lanes.is_carried(group)) {
            self.taken = None;
        }
        if self.taken.is_none() {
            self.taken = lanes.take_first(cx);
        }
        lanes.piece(&mut self.taken, true, DATA_LEN_MAX).map_or(Poll::Pending, Poll::Ready)
    }
}

/// Where buffers for what comes are leased, one wait at a time.
pub(crate) struct Leases {
    pool: Pool,
    /// A buffer that is waited for: for whom, how long, and the wait itself.
    wait: Option<(u32, usize, Lease)>,
}

impl Leases {
    pub(crate) fn new(pool: Pool) -> Leases {
        Leases { pool, wait: None }
    }

    /// Whether nothing is read because a buffer is waited for that some work of this side will give back.
    pub(crate) fn is_held_up(&self) -> bool {
        self.wait.is_some() && self.pool.is_emptied()
    }

    /// Waits no more for transfers of which this says so.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(u32) -> bool) {
        self.wait.take_if(|(transfer, ..)| !is_wanted(*transfer));
    }

    /// A buffer for a transfer, now or when there is room.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, transfer: u32, len: usize) -> Poll<Buffer> {
        if let Some(buffer) = self.pool.try_lease(len) {
            self.wait = None;
            return Poll::Ready(buffer);
        }
        // The wait of another transfer that was given up in the meantime is no use.
        if self.wait.as_ref().is_none_or(|(owner, wanted, _)| (*owner, *wanted) != (transfer, len)) {
            let pool = self.pool.clone();
            self.wait = Some((transfer, len, Box::pin(async move { pool.lease(len).await })));
        }
        let Some((_, _, wait)) = &mut self.wait else { return Poll::Pending };
        let buffer = std::task::ready!(wait.as_mut().poll(cx));
        self.wait = None;
        Poll::Ready(buffer)
    }
}

fn unexpected(kind: Kind, why: &'static str) -> Error {
    Breach::Unexpected { kind, why }.into()
}

/// Hands an answer to whoever waits for it. Nobody there any more is all right: the exchange was dropped.
fn give(replies: &Replies, transfer: u32, reply: Reply) -> Result<()> {
    match replies.try_send((transfer, reply)) {
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        Err(mpsc::error::TrySendError::Full(_)) => Err(Breach::Excess("answers").into()),
    }
}

/// Owns the connection until the session ends.
pub(super) async fn drive(mut connection: Connection, session: Session, pool: Pool) {
    let mut front = Front::new(session.clone(), pool);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut life = Life::new();
    let ended = {
        let step = std::future::poll_fn(|cx| {
            let begun = std::time::Instant::now();
            let step = poll_step(cx, &mut connection, &mut front, &mut ticks, &mut life);
            session.0.stalls.since(Cause::Driving, begun);
            step
        });
        pin!(step).await
    };
    front.seen.look(&connection, &session.0.stalls);
    match ended {
        Ok(()) => {
            let is_answered = session.desk().slots.values().all(|slot| slot.is_left);
            session.end(Error::new(ErrorKind::Connection, "the connection was closed"));
            end(connection, is_answered).await;
        }
        Err(error) => {
            give_up(&connection, error.kind());
            session.end(error);
        }
    }
}

/// Ends a connection in order. How it goes is a courtesy: where a server that has answered everything would take a round
/// trip to say goodbye, too, that is not waited for.
pub(in crate::client) async fn end(connection: Connection, is_answered: bool) {
    let is_far = connection.socket().info().is_some_and(|info| info.rtt_min > NEAR_ROUND_TRIP);
    let ending = async { if is_far && is_answered { connection.leave().await } else { connection.close().await } };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, ending).await;
}

/// What is not sent yet of a connection that broke, or that nobody answers any more, shall not arrive late: what was
/// asked for is asked for again over another.
pub(in crate::client) fn give_up(connection: &Connection, why: ErrorKind) {
    if matches!(why, ErrorKind::Connection | ErrorKind::Timeout) {
        connection.socket().give_up();
    }
}

/// Drives the connection as far as it goes. Ready when the session is over.
fn poll_step(
    cx: &mut Context<'_>,
    connection: &mut Connection,
    front: &mut Front,
    ticks: &mut tokio::time::Interval,
    life: &mut Life,
) -> Poll<Result<()>> {
    let session = front.session.clone();
    {
        let mut desk = session.desk();
        if let Some(error) = &desk.ended {
            return Poll::Ready(Err(error.duplicate()));
        }
        desk.waker = Some(cx.waker().clone());
    }
    while ticks.poll_tick(cx).is_ready() {
        let desk = session.desk();
        let (is_open, is_due) = (!desk.slots.is_empty(), desk.slots.values().any(|slot| slot.is_due));
        front.leases.retain(|transfer| desk.slots.contains_key(&transfer));
        drop(desk);
        life.tick(connection, is_open, is_due, front.leases.is_held_up())?;
        session.lanes().look(connection, life.age());
        front.seen.look(connection, &session.0.stalls);
        // What was being received for exchanges that have ended meanwhile.
        let desk = session.desk();
        front.filling.retain(|transfer, _| desk.slots.contains_key(transfer));
    }
    let mut events = 0;
    loop {
        // A server that is faster than we are must not hold up everything else here, an interruption least of all.
        if events >= EVENTS_MAX {
            cx.waker().wake_by_ref();
            break;
        }
        events += 1;
        match connection.poll_next(cx, front) {
            Poll::Ready(event) => match event? {
                Event::Control(Kind::Working, _, payload) => {
                    if let Some(spent) = Working::from_payload(&payload)?.spent {
                        // What ends a transfer comes next: this is the time to look at the link, too.
                        front.seen.told(&spent.0, &session.0.stalls);
                        front.seen.look(connection, &session.0.stalls);
                    }
                    life.heard(payload.len());
                }
                Event::Control(kind, transfer, payload) => {
                    if take(&session, kind, transfer, &payload)? {
                        life.answered();
                    }
                }
                Event::Closed => {
                    return Poll::Ready(Err(Error::new(ErrorKind::Connection, "the server ended the connection")));
                }
            },
            Poll::Pending if front.ready.is_empty() => break,
            Poll::Pending => {}
        }
        for frame in front.ready.drain(..) {
            connection.send_frame(frame);
        }
    }
    let desk = session.desk();
    let is_done = desk.closing && desk.outgoing.is_empty() && connection.is_flushed();
    if is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
}

/// A failure that the server reports. That a person ended this command, or that it tried nothing, is not for a server to
/// say: exit codes tell it.
pub(in crate::client) fn reported(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::Usage => error.with_kind(ErrorKind::Refused),
        _ => error,
    }
}

/// Takes a control frame. The answer is whether an exchange has come to its end.
fn take(session: &Session, kind: Kind, transfer: u32, payload: &[u8]) -> Result<bool> {
    let reply = match kind {
        Kind::Goodbye => {
            let goodbye = Goodbye::from_payload(payload)?;
            let error = reported(goodbye.to_error());
            return Err(error.context("the server ended the connection"));
        }
        Kind::StoredBatch => {
            let batch = StoredBatch::from_payload(payload)?;
            let mut has_ended = false;
            for item in batch.items.0 {
                has_ended |= deliver(session, kind, item.transfer, Reply::Stored(item.stored))?;
            }
            return Ok(has_ended);
        }
        Kind::Receipt => {
            take_receipt(session, transfer, Receipt::from_payload(payload)?)?;
            return Ok(false);
        }
        Kind::PutAnswer => Reply::PutAnswer(PutAnswer::from_payload(payload)?),
        Kind::Values => Reply::Values(Values::from_payload(payload)?),
        Kind::Stored => Reply::Stored(Stored::from_payload(payload)?),
        Kind::GetAnswer => Reply::GetAnswer(GetAnswer::from_payload(payload)?),
        Kind::Finish => Reply::Finish(Finish::from_payload(payload)?),
        Kind::FinishAhead => {
            let FinishAhead { size, root } = FinishAhead::from_payload(payload)?;
            Reply::FinishAhead(Finish { size, root })
        }
        Kind::Entry => Reply::Entry(Entry::from_payload(payload)?),
        Kind::Entries => Reply::Entries(Entries::from_payload(payload)?.entries.0),
        Kind::Volume => Reply::Volume(Volume::from_payload(payload)?),
        Kind::TreeBegun => Reply::TreeBegun(TreeBegun::from_payload(payload)?),
        Kind::Invited => Reply::Invited(Invited::from_payload(payload)?),
        Kind::Invites => Reply::Invites(Invites::from_payload(payload)?),
        Kind::Done => Reply::Done(Done::from_payload(payload)?),
        Kind::Failed => {
            let failed = Failed::from_payload(payload)?;
            let error = reported(failed.to_error());
            if transfer == 0 {
                return Err(error);
            }
            // The server knows better than the code whether it may work later.
            let may_retry = failed.retry == Some(true) && !error.kind().is_retryable();
            Reply::Failed(if may_retry { error.with_kind(ErrorKind::Busy) } else { error })
        }
        _ => return Err(unexpected(kind, "only clients send it")),
    };
    deliver(session, kind, transfer, reply)
}

/// Lays a receipt beside the upload that it is for, until the answer comes.
fn take_receipt(session: &Session, transfer: u32, receipt: Receipt) -> Result<()> {
    let mut desk = session.desk();
    if transfer == 0 || transfer >= desk.next_transfer {
        return Err(unexpected(Kind::Receipt, "no exchange has this number"));
    }
    let Some(slot) = desk.slots.get_mut(&transfer) else { return Ok(()) };
    match &mut slot.receipt {
        Some((_, place @ None)) => *place = Some(receipt),
        _ => return Err(unexpected(Kind::Receipt, "none was asked for")),
    }
    Ok(())
}

/// Keeps the receipt of an upload that is stored; without it the upload counts as failed, though it is there.
fn keep_receipt(book: Option<&Book>, slot: &mut Slot, reply: Reply) -> Reply {
    // Skipped uploads, links and directories have none.
    let Reply::Stored(stored @ Stored { root: Some(_), .. }) = &reply else { return reply };
    let (Some((receipts, key)), Some((path, receipt))) = (book, slot.receipt.take()) else { return reply };
    let kept = match receipt {
        Some(receipt) => receipts.keep(*key, &path, stored, &receipt),
        None => {
            Err(Error::new(ErrorKind::Mismatch, format!("{path} is stored, but the server gave no receipt for it")))
        }
    };
    // Trying again would bring another from the same server.
    let is_final = |error: Error| match error.kind() {
        ErrorKind::Mismatch => error.with_kind(ErrorKind::Expectation),
        _ => error,
    };
    kept.map_or_else(|error| Reply::Failed(is_final(error)), |()| reply)
}

/// Gives an answer to the exchange that it belongs to, and says whether that has come to its end.
fn deliver(session: &Session, kind: Kind, transfer: u32, reply: Reply) -> Result<bool> {
    let mut desk = session.desk();
    if transfer == 0 || transfer >= desk.next_transfer {
        return Err(unexpected(kind, "no exchange has this number"));
    }
    // Ended from our side: the answer was on its way.
    let Some(slot) = desk.slots.get_mut(&transfer) else { return Ok(false) };
    match &reply {
        Reply::PutAnswer(answer) => slot.is_due = answer.held_size > 0,
        Reply::GetAnswer(answer) => {
            if answer.size > FILE_SIZE_MAX {
                return Err(Breach::Excess("bytes of a file").into());
            }
            if std::mem::replace(&mut slot.is_opened, true) {
                return Err(unexpected(kind, "the download was answered before"));
            }
            slot.size = answer.size;
            slot.is_due = answer.unasked;
            let first = slot.first.take();
            if answer.unasked {
                if answer.size > slot.unasked_max || !slot.wanted.is_empty() {
                    return Err(Breach::Excess("unasked content").into());
                }
                if answer.size > 0 {
                    slot.wanted.push_back((0, usize::try_from(answer.size).unwrap_or(GROUP_LEN)));
                }
            } else {
                slot.unasked_max = 0;
                if answer.first == Some(true) {
                    slot.first = first.filter(|&(max, _)| answer.size > 0 && answer.size <= max);
                    if slot.first.is_none() {
                        return Err(Breach::Excess("unasked content").into());
                    }
                    slot.is_due = true;
                    slot.wanted.push_back((0, group_len(answer.size, 0)));
                }
            }
        }
        Reply::Finish(_) if !slot.wanted.is_empty() => {
            return Err(Breach::Data("a finish before all content").into());
        }
        Reply::FinishAhead(_) => {
            let is_open_download = slot.size > 0 && slot.unasked_max == 0;
            if !is_open_download || std::mem::replace(&mut slot.is_foretold, true) {
                return Err(unexpected(kind, "no open download, or told before"));
            }
        }
        _ => {}
    }
    let replies = slot.replies.clone();
    let reply = keep_receipt(session.0.book.as_ref(), slot, reply);
    let is_last = reply.is_last();
    if is_last {
        desk.slots.remove(&transfer);
    }
    drop(desk);
    give(&replies, transfer, reply)?;
    Ok(is_last)
}

#[cfg(test)]
#[path = "../../../tests/sim/line.rs"]
pub(crate) mod simulated;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_buffer_is_waited_for_until_it_comes_or_its_transfer_is_gone() {
        let mut cx = Context::from_waker(Waker::noop());
        let pool = Pool::new(GROUP_LEN);
        let mut leases = Leases::new(pool.clone());
        let Poll::Ready(first) = leases.poll(&mut cx, 1, GROUP_LEN) else { panic!("there is room") };
        let work = pool.emptying();
        assert!(!leases.is_held_up());
        assert!(leases.poll(&mut cx, 2, GROUP_LEN).is_pending());
        leases.retain(|transfer| transfer == 2);
        assert!(leases.is_held_up());
        drop(work);
        assert!(!leases.is_held_up(), "all that would give one back is the server's");
        let _work = pool.emptying();
        leases.retain(|transfer| transfer != 2);
        assert!(!leases.is_held_up(), "nobody wants it any more");
        assert!(leases.poll(&mut cx, 3, GROUP_LEN).is_pending());
        drop(first);
        assert!(leases.poll(&mut cx, 3, GROUP_LEN).is_ready());
        assert!(!leases.is_held_up());
    }
}
