//! A lane's side of the content that it moves: what its connection sends and takes.

use std::collections::HashMap;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::Instant;

use super::at_work::AtWork;
use super::{Group, Lanes, Place, Report, State};
use crate::buffer::Pool;
use crate::client::connect::take_hello;
use crate::client::life::Life;
use crate::client::session::{EVENTS_MAX, Leases};
use crate::client::shelf::Filling;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::group_len;
use crate::limits::{DATA_LEN_MAX, GROUP_LEN, KIB};
use crate::net::{Connection, Event, Handler};
use crate::protocol::{Breach, Goodbye, Kind, Message as _, Working, Written};

/// Bytes of content that a lane sends before the server has let it join: what leaves in its first round trip anyway, and
/// little to send again should it not be let in.
pub(super) const UNPROVEN_MAX: usize = 16 * KIB;

/// A lane's side of the content that it moves.
pub(super) struct Front {
    pub(super) lanes: Lanes,
    pub(super) number: u64,
    place: Place,
    /// The server has let it join.
    pub(super) is_greeted: bool,
    /// So much may still be sent before that.
    unproven: usize,
    taken: Option<Group>,
    /// Groups that are being received, by transfer.
    filling: HashMap<u32, Filling>,
    leases: Leases,
}

impl Front {
    /// The lane's side of a connection over which a hello was sent.
    pub(super) fn new(lanes: Lanes, number: u64, place: Place, pool: Pool) -> Front {
        let (filling, leases) = (HashMap::new(), Leases::new(pool));
        let (is_greeted, unproven, taken) = (false, UNPROVEN_MAX, None);
        Front { lanes, number, place, is_greeted, unproven, taken, filling, leases }
    }

    /// The same of one that the server has let in.
    #[cfg(test)]
    pub(super) fn let_in(lanes: &Lanes, number: u64, place: Place, pool: &Pool) -> Front {
        let mut front = Front::new(lanes.clone(), number, place, pool.clone());
        front.is_greeted = true;
        front
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Before it is told: whoever is asked for a group next is asked for what is not on its shelf.
        for (transfer, filling) in self.filling.drain() {
            match filling.part_start() {
                Some(_) => self.lanes.give_back(transfer, filling),
                None => drop(filling),
            }
        }
        self.lanes.leave(self.number);
    }
}

impl Handler for Front {
    fn poll_space(&mut self, cx: &mut Context<'_>, transfer: u32, offset: u64, len: usize) -> Poll<Result<&mut [u8]>> {
        if !self.is_greeted {
            return Poll::Ready(Err(Breach::Unexpected { kind: Kind::Data, why: "a server's hello was due" }.into()));
        }
        let (whole, shelf) = {
            let mut state = self.lanes.lock();
            let State { lanes, transfers, .. } = &mut *state;
            let Some(lane) = lanes.get(&self.number) else { return Poll::Ready(Ok(&mut [])) };
            let Some(wanted) = lane.wanted.get(&transfer) else {
                if transfer == 0 || transfer > lane.asked {
                    return Poll::Ready(Err(Breach::Data("content that was not asked for").into()));
                }
                // Given up on our side; what was on its way is thrown away.
                self.filling.remove(&transfer);
                return Poll::Ready(Ok(&mut []));
            };
            match (wanted.ranges.front(), transfers.get_mut(&transfer)) {
                (Some(&(start, rest, _)), Some(carried)) if offset == start && len <= rest => {
                    if !self.filling.contains_key(&transfer)
                        && let Some(part) = carried.parts.begin(offset)
                    {
                        self.filling.insert(transfer, part);
                    }
                    (group_len(wanted.size, offset / GROUP_LEN as u64), carried.shelf.clone())
                }
                _ => return Poll::Ready(Err(Breach::Data("content that was not asked for, or out of order").into())),
            }
        };
        if !self.filling.contains_key(&transfer) {
            let filling = std::task::ready!(shelf.poll_filling(offset, || self.leases.poll(cx, transfer, whole)));
            self.filling.insert(transfer, filling);
        }
        let filling = self.filling.get_mut(&transfer);
        let filling = filling.filter(|filling| filling.next_offset() == offset);
        let space = filling.and_then(|filling| filling.space(len));
        Poll::Ready(space.ok_or_else(|| Breach::Data("a piece out of order in its group").into()))
    }

    fn filled(&mut self, transfer: u32, offset: u64, len: usize) -> Result<()> {
        let mut state = self.lanes.lock();
        let Some(lane) = state.lanes.get_mut(&self.number) else { return Ok(()) };
        let (Some(wanted), Some(filling)) = (lane.wanted.get_mut(&transfer), self.filling.get_mut(&transfer)) else {
            return Ok(());
        };
        filling.advance(len);
        lane.rate.moved(len);
        let Some((start, rest, asked)) = wanted.ranges.front_mut() else { return Ok(()) };
        *start += len as u64;
        *rest -= len;
        if *rest > 0 {
            return Ok(());
        }
        let part_start = filling.part_start();
        if part_start.is_none() {
            lane.pace.came_after(asked.elapsed());
        }
        wanted.ranges.pop_front();
        let Some(buffer) = self.filling.remove(&transfer).and_then(Filling::into_buffer) else { return Ok(()) };
        let group = offset / GROUP_LEN as u64;
        let Some(carried) = state.transfers.get_mut(&transfer) else { return Ok(()) };
        if let Some(start) = part_start {
            let whole = carried.parts.came(group, start, buffer);
            carried.report(whole.map_or(Report::MayAsk, |parts| Report::Came(group, parts)));
            return Ok(());
        }
        match carried.work.clone().filter(|_| self.place == Place::Thread) {
            Some(work) => {
                let reports = carried.reports.clone();
                drop(state);
                AtWork::new(group, work, reports).go(buffer);
            }
            None => carried.report(Report::Came(group, vec![buffer])),
        }
        Ok(())
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        if self.taken.as_ref().is_some_and(|group| !self.lanes.is_carried(group)) {
            self.taken = None;
        }
        let max = if self.is_greeted { DATA_LEN_MAX } else { self.unproven };
        if max == 0 {
            return Poll::Pending;
        }
        if self.taken.is_none() {
            let mut state = self.lanes.lock();
            let Some(lane) = state.lanes.get(&self.number) else { return Poll::Pending };
            let may_take = lane.under_way.len() < lane.pace.groups();
            let group = if may_take { state.take(false) } else { None };
            let Some(lane) = state.lanes.get_mut(&self.number) else { return Poll::Pending };
            match &group {
                Some(group) => drop(lane.under_way.insert((group.transfer, group.index), Instant::now())),
                None => lane.waker = Some(cx.waker().clone()),
            }
            self.taken = group;
        }
        let piece = self.lanes.piece(&mut self.taken, false, max);
        if let Some((.., content)) = &piece {
            self.unproven -= content.len().min(self.unproven);
        }
        piece.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Front {
    /// Drives the lane as far as it goes. Ready when it is over.
    pub(super) fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
        ticks: &mut tokio::time::Interval,
        life: &mut Life,
    ) -> Poll<Result<()>> {
        let is_due = {
            let mut state = self.lanes.lock();
            let has_ended = state.has_ended;
            let Some(lane) = state.lanes.get_mut(&self.number).filter(|_| !has_ended) else {
                return Poll::Ready(Ok(()));
            };
            lane.waker = Some(cx.waker().clone());
            lane.requests.drain(..).for_each(|request| connection.send_frame(request));
            !lane.under_way.is_empty() || lane.wanted.values().any(|wanted| !wanted.ranges.is_empty())
        };
        while ticks.poll_tick(cx).is_ready() {
            {
                let state = self.lanes.lock();
                self.leases.retain(|transfer| state.transfers.contains_key(&transfer));
                self.filling.retain(|transfer, _| state.transfers.contains_key(transfer));
            }
            life.tick(connection, is_due, is_due, self.leases.is_held_up())?;
        }
        let mut events = 0;
        while let Poll::Ready(event) = connection.poll_next(cx, self) {
            events += 1;
            if events >= EVENTS_MAX {
                // Then the others have their turn.
                cx.waker().wake_by_ref();
            }
            match event? {
                event if !self.is_greeted => {
                    take_hello(connection, "the server", event)?;
                    self.is_greeted = true;
                }
                Event::Control(Kind::Written, transfer, payload) => {
                    self.written(transfer, &Written::from_payload(&payload)?)?;
                }
                Event::Control(Kind::Working, _, payload) => {
                    Working::from_payload(&payload)?;
                    life.heard(payload.len());
                }
                Event::Control(Kind::Goodbye, _, payload) => {
                    return Poll::Ready(Err(Goodbye::from_payload(&payload)?.to_error()));
                }
                Event::Control(kind, ..) => {
                    return Poll::Ready(Err(Breach::Unexpected { kind, why: "a lane carries content only" }.into()));
                }
                Event::Closed => {
                    return Poll::Ready(Err(Error::new(ErrorKind::Connection, "the server ended a lane")));
                }
            }
            if events >= EVENTS_MAX {
                break;
            }
        }
        Poll::Pending
    }

    fn written(&self, transfer: u32, written: &Written) -> Result<()> {
        let mut state = self.lanes.lock();
        // Given up on our side: what was on its way is of no use.
        let is_carried = state.transfers.contains_key(&transfer);
        for &group in &written.groups.0 {
            let Some(lane) = state.lanes.get_mut(&self.number) else { return Ok(()) };
            if let Some(since) = lane.under_way.remove(&(transfer, group)) {
                lane.pace.came_after(since.elapsed());
                state.report(transfer, Report::Sent(group));
            } else if is_carried {
                return Err(Breach::Data("a group that was not sent is written").into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "../../../tests/sim/lane.rs"]
pub(crate) mod simulated;
