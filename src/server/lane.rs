//! A connection that has joined a session: it carries content of the transfers of the first one, and nothing else.
//!
//! What a lane finds wrong with a transfer is told on the first connection, where the transfer is answered; a breach
//! of the protocol ends the lane alone. When it ends, the groups that it has not brought whole are anybody's.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

use super::ends::{Watch, part};
use super::flow::{Flow, Job, drop_elsewhere};
use super::outlet::Outlet;
use super::session::Session;
use super::shared::{Shared, Who};
use super::spent::On;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::net::{Connection, Event};
use crate::protocol::{Breach, Goodbye, Kind, List, Message, Phase, WRITTEN_MAX, Want, Working, Written};

pub(super) struct Lane<C = Connection> {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: C,
    pub(super) session: Arc<Session>,
    pub(super) flow: Flow,
}

enum Step {
    Event(Event),
    Job(Job),
    /// Something was thrown away that the peer can be told of.
    Tell,
}

/// Drives a lane until it ends, its session does, or the server stops.
pub(super) fn run(
    shared: Arc<Shared>,
    connection: Connection,
    who: Arc<Who>,
    session: Arc<Session>,
    id: u64,
    started: Instant,
) -> impl Future<Output = ()> + Send {
    let flow = Flow::new(Arc::clone(&shared), who, Arc::clone(&session), id, true);
    attend(Box::new(Lane { shared, connection, session, flow }), started)
}

async fn attend(mut lane: Box<Lane>, started: Instant) {
    let end = lane.drive().await;
    let Lane { shared, connection, flow, .. } = *lane;
    let principal = flow.who.principal.clone();
    drop_elsewhere(&shared, flow);
    let traffic = connection.traffic();
    let (received, sent, seconds) = (traffic.received, traffic.sent, started.elapsed().as_secs_f64());
    let summary = format!("{principal}: a lane, {received} bytes in, {sent} out, {seconds:.1} s");
    Box::pin(part(connection, end, &summary)).await;
}

impl Lane {
    async fn drive(&mut self) -> Result<()> {
        let (draining, stopping) = (self.shared.draining.clone(), self.shared.stopping.clone());
        let ended = self.session.ended.clone();
        let mut tick = interval_at(Instant::now() + limits::WORKING_INTERVAL, limits::WORKING_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut spill = interval(limits::LEASE_TIMEOUT / 2);
        spill.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Watch::new();
        loop {
            let holds_buffers = self.flow.holds_buffers() || self.connection.holds_data();
            let step = poll_fn(|cx| {
                if let Poll::Ready(job) = self.flow.poll_job(cx) {
                    return Poll::Ready(job.map(Step::Job));
                }
                let event = self.session.spent.during(On::Processor, || self.connection.poll_next(cx, &mut self.flow));
                if let Poll::Ready(event) = event {
                    return Poll::Ready(event.map(Step::Event));
                }
                if self.flow.has_untold() {
                    return Poll::Ready(Ok(Step::Tell));
                }
                // A first job that reading has begun wakes nobody who has not asked for it since.
                self.flow.poll_job(cx).map(|job| job.map(Step::Job))
            });
            let step = tokio::select! {
                biased;
                () = stopping.cancelled() => {
                    return Err(Error::new(ErrorKind::Stopping, "the server has stopped"));
                }
                () = ended.cancelled() => {
                    let over = if draining.is_cancelled() { ErrorKind::Stopping } else { ErrorKind::Session };
                    return Err(Error::new(over, "the session that this connection joined has ended"));
                }
                _ = tick.tick() => {
                    self.tick(&mut watch)?;
                    continue;
                }
                _ = spill.tick(), if holds_buffers => {
                    self.spill();
                    continue;
                }
                step = step => step?,
            };
            match step {
                Step::Event(Event::Closed) => return Ok(()),
                Step::Event(Event::Control(Kind::Working, _, payload)) => {
                    Working::from_payload(&payload)?;
                    watch.heard(crate::protocol::FRAME_HEADER_LEN + payload.len());
                }
                Step::Event(Event::Control(kind, transfer, payload)) => self.control(kind, transfer, &payload)?,
                Step::Job(job) => self.job(job)?,
                Step::Tell => {}
            }
            self.tell_written();
        }
    }
}

impl<C: Outlet> Lane<C> {
    pub(super) fn tick(&mut self, watch: &mut Watch) -> Result<()> {
        self.flow.forget_over();
        self.shared.bind(&self.flow.who, &mut self.connection)?;
        let is_idle = self.flow.is_idle() && self.connection.is_flushed();
        // With nothing to do it waits for its session, whose first connection is held to that deadline.
        let holds_up = self.flow.holds_up(self.connection.control_queued()) || self.connection.is_held_back();
        let may_wait = is_idle || holds_up;
        watch.look(self.connection.moved(), false, may_wait)?;
        if !is_idle && (self.connection.is_flushed() || self.connection.is_held_back()) {
            let phase = if self.flow.is_working() { Phase::Syncing } else { Phase::Waiting };
            self.connection.send(0, &Working { phase, done: 0, total: 0, spent: None });
        }
        Ok(())
    }

    /// Gives back what a slow peer holds.
    pub(super) fn spill(&mut self) {
        self.flow.spill_slow();
        if self.flow.drop_unread() {
            self.connection.detach_data();
        }
    }

    pub(super) fn control(&mut self, kind: Kind, transfer: u32, payload: &[u8]) -> Result<()> {
        match kind {
            Kind::Want => self.flow.want(transfer, &Want::from_payload(payload)?.ranges.0),
            Kind::Goodbye => Err(Goodbye::from_payload(payload)?.to_error()),
            _ => Err(Breach::Unexpected { kind, why: "a joined connection carries content only" }.into()),
        }
    }

    pub(super) fn job(&mut self, job: Job) -> Result<()> {
        match job {
            // A failure is recorded with the groups already, and told on the first connection.
            Job::Written(transfer, group, result) => is_breach(self.flow.written(transfer, group, result)),
            Job::Spilled(transfer, group, result) => is_breach(self.flow.spilled(transfer, group, result)),
            Job::Read(slot, result) => {
                if let Err((transfer, error)) = self.flow.read(slot, result) {
                    self.session.failed(transfer, &error);
                    self.flow.end_reads(transfer);
                }
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Internal, "a job that no lane begins")),
        }
    }

    /// Says which groups are there, many in one message when many are.
    pub(super) fn tell_written(&mut self) {
        let mut untold = self.flow.take_untold();
        untold.sort_unstable();
        for of_one in untold.chunk_by(|one, other| one.0 == other.0) {
            for some in of_one.chunks(WRITTEN_MAX) {
                let groups = List(some.iter().map(|&(_, group)| group).collect());
                self.connection.send(some[0].0, &Written { groups });
            }
        }
    }
}

/// The failure of a transfer is not the lane's.
fn is_breach(written: Result<(), (u32, Error)>) -> Result<()> {
    match written {
        Err((_, error)) if error.kind() == ErrorKind::Protocol => Err(error),
        _ => Ok(()),
    }
}
