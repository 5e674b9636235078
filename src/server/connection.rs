//! A first connection of a session, once it is greeted, to its end.
//!
//! The task that [`run`] is driven by owns the connection and all its state; disk threads report to it through
//! [`Flow::poll_job`]. It ends when the peer does, when a deadline passes, or when the server stops.

mod jobs;

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tracing::debug;

use super::audited;
use super::ends::{Watch, part};
use super::flow::{Download, Flow, HashRun, Job, Purpose, drop_elsewhere};
use super::held;
use super::invites::Attendance;
use super::invites::requests as inviting;
use super::outlet::Outlet;
use super::requests;
use super::session::{self, News, Session};
use super::share::OpenCount;
use super::shared::{Shared, Who};
use super::spent::{Meter, On};
use super::tree;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::group_count;
use crate::limits;
use crate::net::{Connection, Event};
use crate::path::RemotePath;
use crate::protocol::{
    BeginTree, Breach, Close, FRAME_HEADER_LEN, Failed, Finish, FinishAhead, Get, Goodbye, Hash, Invite, Kind,
    ListDirectory, ListInvites, MakeDirectory, MakeLink, Message, Phase as WorkPhase, PublishTree, Put, Remove, Rename,
    RevokeInvite, SetDirectory, Space, Stat, Want, WantValues, Working, Zeros,
};

/// Listings of a connection that are open at once; the others wait. Each holds a directory and 32 KiB, and adds up to
/// 64 KiB to what the peer has to read.
const LISTINGS_MAX: usize = 4;

/// Steps that are taken before everything else that may have happened is looked at again.
const STEPS_MAX: usize = 32;

/// Directories that a principal who may not replace has made in this session and may still give their final mode
/// and time. A slot holds a path; at the bound the rest keep what they were made with.
const MADE_DIRECTORIES_MAX: usize = 4096;

/// What happens next on a connection.
enum Step {
    Event(Event),
    Job(Job),
    /// The peer has read enough for what waits for that.
    Room,
}

/// What a connection is asked, and how that is answered.
pub(super) struct Driver<C = Connection> {
    shared: Arc<Shared>,
    pub(super) connection: C,
    session: Arc<Session>,
    pub(super) flow: Flow,
    /// The highest number that a transfer or request has had. None is used twice, so what a job finds for one that
    /// was given up is never taken for another's.
    last_transfer: u32,
    /// Requests that are being answered.
    requests: HashSet<u32>,
    /// Those of them that end a download.
    closing: HashSet<u32>,
    /// Listings that wait until the peer has read the pages before; those that are begun come first.
    listings: VecDeque<(u32, ListStage)>,
    /// Pages that are being read.
    listing: usize,
    made: HashSet<RemotePath>,
    /// What this connection has open, as its principal is charged for it.
    open: OpenCount,
    stored_count: u64,
    sent_count: u64,
    meter: Meter,
}

/// Whether more answers may be made: the peer has read most of those before.
fn has_room(connection: &impl Outlet) -> bool {
    connection.control_queued() <= limits::CONTROL_QUEUE_MAX / 2
}

/// How far a listing is.
enum ListStage {
    Asked(ListDirectory),
    /// What is still to come.
    Begun(requests::Rest),
}

/// Drives a first connection until its end. What a future takes over it keeps to its end, used or not, so this one
/// takes over what it needs only.
pub(super) fn run(
    shared: Arc<Shared>,
    connection: Connection,
    who: Arc<Who>,
    opened: session::Opened,
    id: u64,
    started: Instant,
) -> impl Future<Output = ()> + Send {
    let attendance = who.attendance().cloned();
    let session = Arc::clone(&opened.session);
    let shares_machine = connection.socket().stays_on_machine();
    let mut driver = Driver::new(shared, connection, who, session, id);
    if shares_machine {
        driver.flow.shares_machine();
    }
    attend(Box::new(driver), opened, attendance, started)
}

async fn attend(
    mut driver: Box<Driver>,
    opened: session::Opened,
    attendance: Option<Arc<Attendance>>,
    started: Instant,
) {
    let end = driver.drive().await;
    // Its lanes have nothing to carry any more.
    drop(opened);
    let Driver { shared, connection, flow, stored_count, sent_count, listings, .. } = *driver;
    let principal = flow.who.principal.clone();
    // Files are closed and staging removed by a disk thread; commits that run go on.
    drop_elsewhere(&shared, (flow, listings));
    // The client has done what it wanted to, or may do no more. A cut is no end: it may come back.
    let is_over = match &end {
        Ok(()) => true,
        Err(error) => !error.is_from_peer() && matches!(error.kind(), ErrorKind::Rights | ErrorKind::Trust),
    };
    if let Some(attendance) = attendance.filter(|_| is_over) {
        shared.tasks.spawn_blocking(move || attendance.end());
    }
    let traffic = connection.traffic();
    let summary = format!(
        "{principal}: {stored_count} stored, {sent_count} sent, {} bytes in, {} out, {:.1} s",
        traffic.received,
        traffic.sent,
        started.elapsed().as_secs_f64()
    );
    Box::pin(part(connection, end, &summary)).await;
}

impl Driver {
    /// Runs until the end of the connection; an error is told to the peer.
    async fn drive(&mut self) -> Result<()> {
        let (draining, stopping) = (self.shared.draining.clone(), self.shared.stopping.clone());
        let mut rules = self.shared.rules.subscribe();
        // They may have changed since the hello.
        rules.mark_changed();
        let session = Arc::clone(&self.session);
        let superseded = Arc::clone(&self.flow.who.superseded);
        let mut tick = interval_at(Instant::now() + limits::WORKING_INTERVAL, limits::WORKING_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut spill = interval(limits::LEASE_TIMEOUT / 2);
        spill.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Watch::new();
        loop {
            let idle = self.is_idle();
            let holds_buffers = self.flow.holds_buffers() || self.connection.holds_data();
            if draining.is_cancelled() && idle {
                return Err(Error::new(ErrorKind::Stopping, "the server is stopping"));
            }
            let steps = poll_fn(|cx| self.poll_steps(cx, &mut watch));
            let steps = tokio::select! {
                biased;
                () = stopping.cancelled() => {
                    return Err(Error::new(ErrorKind::Stopping, "the server has stopped"));
                }
                () = superseded.cancelled() => {
                    let message = "a newer run has taken over what this one builds";
                    return Err(Error::new(ErrorKind::Superseded, message));
                }
                () = draining.cancelled(), if idle => continue,
                // The sender lives as long as the server.
                Ok(()) = rules.changed() => {
                    self.review()?;
                    continue;
                }
                _ = tick.tick() => {
                    self.tick(&mut watch)?;
                    continue;
                }
                _ = spill.tick(), if holds_buffers => {
                    self.spill();
                    continue;
                }
                () = session.news.notified() => {
                    self.look_at_news()?;
                    continue;
                }
                steps = steps => steps?,
            };
            if steps.is_break() {
                return Ok(());
            }
        }
    }

    /// Takes what there is to be done, a few steps at a time: what else a connection looks at is dearer than most of
    /// them. Breaks when the client has left in order.
    fn poll_steps(&mut self, cx: &mut Context<'_>, watch: &mut Watch) -> Poll<Result<ControlFlow<()>>> {
        for count in 0..STEPS_MAX {
            match self.poll_step(cx) {
                Poll::Ready(step) => {
                    if self.take_step(step?, watch)?.is_break() {
                        return Poll::Ready(Ok(ControlFlow::Break(())));
                    }
                }
                Poll::Pending if count == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(ControlFlow::Continue(())))
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step>> {
        if let Poll::Ready(job) = self.flow.poll_job(cx) {
            return Poll::Ready(job.map(Step::Job));
        }
        let event = self.session.spent.during(On::Processor, || self.connection.poll_next(cx, &mut self.flow));
        if let Poll::Ready(event) = event {
            return Poll::Ready(event.map(Step::Event));
        }
        // It may have written what others waited for, and nothing else would tell.
        let waits =
            self.listing < LISTINGS_MAX && !self.listings.is_empty() || self.flow.has_hashes() || self.flow.has_gets();
        if waits && has_room(&self.connection) {
            return Poll::Ready(Ok(Step::Room));
        }
        // A first job that reading has begun wakes nobody who has not asked for it since.
        self.flow.poll_job(cx).map(|job| job.map(Step::Job))
    }

    fn take_step(&mut self, step: Step, watch: &mut Watch) -> Result<ControlFlow<()>> {
        match step {
            Step::Event(Event::Closed) if self.is_idle() || self.owes_only_ends() => return Ok(ControlFlow::Break(())),
            Step::Event(Event::Closed) => {
                return Err(Error::new(ErrorKind::Connection, "the client left in the middle of its work"));
            }
            Step::Event(Event::Control(kind, transfer, payload)) => {
                if kind == Kind::Working {
                    Working::from_payload(&payload)?;
                    watch.heard(FRAME_HEADER_LEN + payload.len());
                }
                self.control(kind, transfer, &payload)?;
            }
            Step::Job(job) => self.job(job)?,
            Step::Room => {}
        }
        self.go_on();
        Ok(ControlFlow::Continue(()))
    }
}

impl<C: Outlet> Driver<C> {
    /// The driver of the connection with this number, of which nothing has come.
    pub(super) fn new(shared: Arc<Shared>, connection: C, who: Arc<Who>, session: Arc<Session>, id: u64) -> Driver<C> {
        Driver {
            open: OpenCount::new(Arc::clone(&who.share)),
            flow: Flow::new(Arc::clone(&shared), who, Arc::clone(&session), id, false),
            meter: Meter::new(Arc::clone(&session.spent)),
            session,
            shared,
            connection,
            last_transfer: 0,
            requests: HashSet::new(),
            closing: HashSet::new(),
            listings: VecDeque::new(),
            listing: 0,
            made: HashSet::new(),
            stored_count: 0,
            sent_count: 0,
        }
    }

    fn is_idle(&self) -> bool {
        self.flow.is_idle() && self.requests.is_empty() && self.connection.is_flushed()
    }

    /// Whether nothing is owed but the answers to `Close`, which a client need not wait for. What is given over an
    /// invite is counted with that answer.
    fn owes_only_ends(&self) -> bool {
        let is_end = |request: &u32| self.closing.contains(request);
        self.requests.iter().all(is_end)
            && self.flow.is_idle_but_for(self.requests.len())
            && self.flow.who.attendance().is_none()
    }

    /// Says that work goes on, and looks at the deadlines.
    pub(super) fn tick(&mut self, watch: &mut Watch) -> Result<()> {
        watch.look(
            self.connection.moved(),
            self.is_idle(),
            self.flow.holds_up(self.connection.control_queued()) || self.connection.is_held_back(),
        )?;
        if !self.is_idle() {
            // Certificates and revocation lists end by themselves.
            self.review()?;
        }
        if !self.is_idle() && (self.connection.is_flushed() || self.connection.is_held_back()) {
            let phase = if self.flow.is_working() { WorkPhase::Syncing } else { WorkPhase::Waiting };
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

    /// Ends what the principal may not do any more; an error is the end of the connection.
    fn review(&mut self) -> Result<()> {
        self.shared.bind(&self.flow.who, &mut self.connection)?;
        for (transfer, error) in self.flow.review()? {
            self.failed(transfer, &error);
        }
        Ok(())
    }

    fn open_count(&self) -> usize {
        self.flow.open_count() + self.requests.len()
    }

    /// Takes note of what lanes have found.
    pub(super) fn look_at_news(&mut self) -> Result<()> {
        let News { failed, waiting, sent } = self.session.look();
        for (transfer, error) in failed {
            self.failed(transfer, &error);
        }
        for transfer in waiting {
            self.flow.make_file(transfer);
        }
        for transfer in sent {
            self.flow.foretell(transfer);
        }
        for transfer in self.flow.finished() {
            let committed = self.flow.commit_if_told(transfer);
            self.written(committed.map_err(|error| (transfer, error)))?;
        }
        Ok(())
    }

    /// Takes a message of the peer. An error is the end of the connection.
    pub(super) fn control(&mut self, kind: Kind, transfer: u32, payload: &[u8]) -> Result<()> {
        if kind.opens_transfer() && !self.admit(kind, transfer)? {
            return Ok(());
        }
        match kind {
            Kind::Put => {
                let put = Put::from_payload(payload)?;
                let partial = held::partial_key(&self.flow.who.principal, &put);
                match self.shared.pass(&self.flow.who).and_then(|pass| pass.upload_seat(partial)) {
                    Ok(seat) => self.flow.put(transfer, put, seat)?,
                    Err(error) => {
                        self.flow.throw_away(transfer);
                        self.fail(transfer, &error);
                    }
                }
            }
            Kind::Finish => self.flow.finish(transfer, Finish::from_payload(payload)?)?,
            Kind::FinishAhead => self.flow.finish_ahead(transfer, FinishAhead::from_payload(payload)?)?,
            Kind::Zeros => self.flow.take_zeros(transfer, &Zeros::from_payload(payload)?.runs.0)?,
            Kind::Get => {
                let get = Get::from_payload(payload)?;
                self.requests.insert(transfer);
                self.flow.get(transfer, get);
            }
            Kind::Want => self.flow.want(transfer, &Want::from_payload(payload)?.ranges.0)?,
            Kind::WantValues => {
                let request = WantValues::from_payload(payload)?;
                self.want_values(transfer, &request)?;
            }
            Kind::Close => {
                Close::from_payload(payload)?;
                self.close_download(transfer)?;
            }
            Kind::Failed => {
                let failed = Failed::from_payload(payload)?;
                if self.flow.is_open(transfer) {
                    let error = failed.to_error();
                    debug!("transfer {transfer} given up by the client: {error}");
                    if matches!(error.kind(), ErrorKind::Expectation | ErrorKind::Mismatch) {
                        self.flow.discard(transfer);
                    }
                    self.flow.end(transfer);
                }
                // Its answer, when it comes, is for nobody.
                self.requests.remove(&transfer);
                self.flow.end_hash(transfer);
                self.flow.forget_ended(transfer);
            }
            Kind::Goodbye => {
                return Err(Goodbye::from_payload(payload)?.to_error());
            }
            Kind::Working => {}
            Kind::Stat => self.request(transfer, payload, |shared, who, transfer, request: &Stat| {
                audited::request(shared, who, "stat", &request.path, || requests::stat(shared, who, transfer, request))
            })?,
            Kind::Space => self.request(transfer, payload, |shared, who, transfer, request: &Space| {
                let act = || requests::space(shared, who, transfer, request);
                audited::request(shared, who, "space", &request.path, act)
            })?,
            Kind::Invite => self.request(transfer, payload, |shared, who, transfer, request: &Invite| {
                let act = || inviting::invite(shared, who, transfer, request);
                audited::invite(shared, who, request, act)
            })?,
            Kind::ListInvites => self.request(transfer, payload, |shared, who, transfer, request: &ListInvites| {
                let act = || inviting::list(shared, who, transfer, request);
                audited::request(shared, who, "invites", &request.path, act)
            })?,
            Kind::RevokeInvite => {
                self.request(transfer, payload, |shared, who, transfer, request: &RevokeInvite| {
                    audited::revoke_invite(shared, who, request, || inviting::revoke(shared, who, transfer, request))
                })?
            }
            Kind::MakeLink => self.request(transfer, payload, |shared, who, transfer, request: &MakeLink| {
                let act = || requests::make_link(shared, who, transfer, request);
                audited::request(shared, who, "link", &request.path, act)
            })?,
            Kind::Remove => self.request(transfer, payload, |shared, who, transfer, request: &Remove| {
                let act = || requests::remove(shared, who, transfer, request);
                audited::request(shared, who, "remove", &request.path, act)
            })?,
            Kind::Rename => self.request(transfer, payload, |shared, who, transfer, request: &Rename| {
                audited::rename(shared, who, request, || requests::rename(shared, who, transfer, request))
            })?,
            Kind::BeginTree => self.request(transfer, payload, |shared, who, transfer, request: &BeginTree| {
                audited::request(shared, who, "tree", &request.path, || tree::begin(shared, who, transfer, request))
            })?,
            Kind::PublishTree => {
                let request = PublishTree::from_payload(payload)?;
                if self.open_count() > 0 {
                    let text = format!("{} is published when all that goes into it has ended", request.path);
                    self.fail(transfer, &Error::new(ErrorKind::Busy, text));
                    return Ok(());
                }
                self.request(transfer, payload, |shared, who, transfer, request: &PublishTree| {
                    let act = || tree::publish(shared, who, transfer, request);
                    audited::request(shared, who, "publish", &request.path, act)
                })?;
            }
            Kind::MakeDirectory => {
                let request = MakeDirectory::from_payload(payload)?;
                self.requests.insert(transfer);
                self.flow.spawn(move |shared, who| {
                    let act = || requests::make_directory(shared, who, &request);
                    let made = audited::request(shared, who, "mkdir", &request.path, act);
                    Job::MadeDirectory(transfer, request.path, made)
                });
            }
            Kind::SetDirectory => {
                let request = SetDirectory::from_payload(payload)?;
                let made_here = self.made.contains(&request.path);
                self.request(transfer, payload, move |shared, who, transfer, request: &SetDirectory| {
                    let act = || requests::set_directory(shared, who, transfer, request, made_here);
                    audited::request(shared, who, "attributes", &request.path, act)
                })?;
            }
            Kind::List => {
                let request = ListDirectory::from_payload(payload)?;
                self.requests.insert(transfer);
                self.listings.push_back((transfer, ListStage::Asked(request)));
            }
            Kind::Hash => {
                let request = Hash::from_payload(payload)?;
                let is_read = request.read.unwrap_or(false);
                self.requests.insert(transfer);
                self.flow.spawn(move |shared, who| {
                    let act = || requests::open_to_hash(shared, who, &request.path);
                    let file = audited::request(shared, who, "hash", &request.path, act);
                    let run = file.map(|file| HashRun::new(request.path, Arc::new(file), Purpose::Root(is_read)));
                    Job::OpenedToHash(transfer, run)
                });
            }
            Kind::ClientHello
            | Kind::ServerHello
            | Kind::PutAnswer
            | Kind::Written
            | Kind::Values
            | Kind::Data
            | Kind::Stored
            | Kind::StoredBatch
            | Kind::Receipt
            | Kind::GetAnswer
            | Kind::Entry
            | Kind::Entries
            | Kind::Done
            | Kind::Volume
            | Kind::TreeBegun
            | Kind::Invited
            | Kind::Invites => return Err(Breach::Unexpected { kind, why: "not from a client" }.into()),
        }
        Ok(())
    }

    /// Whether a new transfer or request of this number begins; if not, it has been told so.
    fn admit(&mut self, kind: Kind, transfer: u32) -> Result<bool> {
        if transfer <= self.last_transfer {
            return Err(Breach::Unexpected { kind, why: "numbers of transfers ascend from 1 on" }.into());
        }
        self.last_transfer = transfer;
        self.session.begun(transfer);
        if self.open_count() > 2 * limits::OPEN_TRANSFERS_MAX {
            return Err(Breach::Excess("open transfers").into());
        }
        if self.flow.who.share.open() >= limits::OPEN_PER_PRINCIPAL_MAX {
            if kind == Kind::Put {
                self.flow.throw_away(transfer);
            }
            let message = "this principal has too many transfers and requests open, over all its connections";
            self.fail(transfer, &Error::new(ErrorKind::Busy, message));
            return Ok(false);
        }
        if self.shared.draining.is_cancelled() {
            // What runs on this connection goes on.
            if kind == Kind::Put {
                self.flow.throw_away(transfer);
            }
            self.fail(transfer, &Error::new(ErrorKind::Stopping, "the server is stopping"));
            return Ok(false);
        }
        Ok(true)
    }

    /// Answers a request by one call on a disk thread.
    fn request<M: Message + Send + 'static>(
        &mut self,
        transfer: u32,
        payload: &[u8],
        answer: impl FnOnce(&Shared, &Who, u32, &M) -> Result<Vec<Bytes>> + Send + 'static,
    ) -> Result<()> {
        let message = M::from_payload(payload)?;
        self.requests.insert(transfer);
        self.flow.spawn(move |shared, who| Job::Answered(transfer, answer(shared, who, transfer, &message)));
        Ok(())
    }

    fn want_values(&mut self, transfer: u32, request: &WantValues) -> Result<()> {
        let Some(download) = self.flow.downloads.get_mut(&transfer) else {
            if self.flow.has_ended(transfer) {
                return Ok(());
            }
            return Err(Breach::Unexpected { kind: Kind::WantValues, why: "no such download is open" }.into());
        };
        let end = request.first.checked_add(request.count);
        let end = end.filter(|&end| request.count > 0 && end <= group_count(download.source.file.size()));
        let end = end.ok_or(Breach::Data("group values past the end of a file"))?;
        if std::mem::replace(&mut download.is_hashing, true) {
            return Err(Breach::Excess("group values at once").into());
        }
        let file = Arc::clone(&download.source.file);
        let mut run = HashRun::new(download.path.clone(), file, Purpose::Values(end));
        (run.from, run.next) = (request.first, request.first);
        self.flow.hash(transfer, run);
        Ok(())
    }

    fn close_download(&mut self, transfer: u32) -> Result<()> {
        let Some(Download { path, source, foretold, .. }) = self.flow.downloads.get(&transfer) else {
            if self.flow.forget_ended(transfer) {
                return Ok(());
            }
            return Err(Breach::Unexpected { kind: Kind::Close, why: "no such download is open" }.into());
        };
        let foretold = foretold.clone().filter(|_| source.is_as_told());
        let (path, source) = (path.clone(), Arc::clone(source));
        self.flow.end(transfer);
        self.flow.forget_ended(transfer);
        self.sent_count += 1;
        if let Some(finish) = foretold {
            self.connection.send(transfer, &finish);
            return Ok(());
        }
        self.requests.insert(transfer);
        self.closing.insert(transfer);
        self.flow.spawn(move |_, who| {
            let answer = || {
                let (size, recorded) = (source.file.size(), source.file.recorded_root());
                // Now, the record is that of the version that was opened, as well.
                source.file.check_unchanged()?;
                let root = source.root();
                root.map_or(Ok(()), |root| requests::check_stored(&path, recorded, root))?;
                if let Some(attendance) = who.attendance() {
                    attendance.hand_out(0, true)?;
                }
                let frame = match root {
                    Some(root) => Finish { size, root }.to_frame(transfer),
                    None => requests::done(0).to_frame(transfer),
                };
                Ok(vec![frame.into()])
            };
            Job::Answered(transfer, answer())
        });
        Ok(())
    }
}
