//! One connection, from its handshake to its end.
//!
//! The task that [`serve`] runs in owns the connection and all its state; disk threads report to it through
//! [`Flow::poll_job`]. It ends when the peer does, when a deadline passes, or when the server stops.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::audited;
use super::commit::{CommittedSmall, Opened, SmallAnswer};
use super::crowd;
use super::flow::{Download, Flow, HashRun, Job, Purpose, drop_elsewhere};
use super::held;
use super::invites::Attendance;
use super::invites::giver;
use super::invites::requests as inviting;
use super::lane;
use super::offer::Offer;
use super::outlet::Outlet;
use super::quota::Seat;
use super::requests::{self, Got, ListStep};
use super::session::{self, News, Session};
use super::share::OpenCount;
use super::shared::{Shared, Who};
use super::spent::{Meter, On};
use super::tree;
use crate::access::{Action, Principal};
use crate::error::{Blame, Error, ErrorKind, Result};
use crate::hash::group_count;
use crate::limits;
use crate::net::{Connection, Event, Handler, Socket, drain_refused};
use crate::path::{RemotePath, escape_text};
use crate::protocol::{
    self, BeginTree, Breach, Bytes32, ClientHello, Close, Done, FRAME_HEADER_LEN, Failed, Finish, FinishAhead, Get,
    Goodbye, Hash, Holding, Invite, Kind, List, ListDirectory, ListInvites, MakeDirectory, MakeLink, Message,
    Phase as WorkPhase, PublishTree, Put, PutAnswer, Receipt, Remove, Rename, RevokeInvite, ServerHello, SetDirectory,
    Space, Stat, Stored, StoredBatch, StoredItem, Ticket, VALUES_MAX, Values, Want, WantValues, Working, Zeros,
};
use crate::tls;

/// Listings of a connection that are open at once; the others wait. Each holds a directory and 32 KiB, and adds up to
/// 64 KiB to what the peer has to read.
const LISTINGS_MAX: usize = 4;

/// Steps that are taken before everything else that may have happened is looked at again.
const STEPS_MAX: usize = 32;

/// Directories that a principal who may not replace has made in this session and may still give their final mode
/// and time. A slot holds a path; at the bound the rest keep what they were made with.
const MADE_DIRECTORIES_MAX: usize = 4096;

/// Serves one accepted stream. The permit is held until the peer has said hello, the seat to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    peer: SocketAddr,
    id: u64,
    (half_open, mut place): (OwnedSemaphorePermit, crowd::Seat),
) {
    let span = info_span!("connection", id, %peer);
    let (draining, stopping) = (shared.draining.clone(), shared.stopping.clone());
    async move {
        // Each phase has memory of its own, which ends with it: thousands of connections wait in the second.
        let begin = Box::pin(begin(shared, acceptor, tcp, (peer, id), &mut place));
        // Who is about to begin need not be waited for when the server ends.
        let begun = tokio::select! {
            biased;
            begun = begin => begun,
            () = cancelled_for(&draining, limits::STOP_TIMEOUT) => {
                Err(Error::new(ErrorKind::Stopping, "the server stops, and the client had not said hello"))
            }
        };
        drop(half_open);
        match begun {
            // Its work ends when the server stops; its goodbye may not be taken.
            Ok((work, _seat)) => tokio::select! {
                biased;
                () = work => {}
                () = cancelled_for(&stopping, limits::STOP_TIMEOUT) => debug!("cut off"),
            },
            Err(error) => debug!("refused: {}", error.chain()),
        }
        drop(place);
    }
    .instrument(span)
    .await;
}

/// Returns so long after it was cancelled.
async fn cancelled_for(token: &CancellationToken, time: Duration) {
    token.cancelled().await;
    sleep(time).await;
}

/// The work of a connection that was greeted.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Greets a client; what it wants to do is done by the work that is returned.
async fn begin(
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    (peer, id): (SocketAddr, u64),
    place: &mut crowd::Seat,
) -> Result<(Work, Seat)> {
    let started = Instant::now();
    let (connection, who, role, seat) = greet(&shared, acceptor, tcp, (peer, id), place).await?;
    let work: Work = match role {
        Role::First(opened) => Box::pin(run(shared, connection, who, opened, id, started)),
        Role::Lane(session) => Box::pin(lane::run(shared, connection, who, session, id, started)),
    };
    Ok((work, seat))
}

/// What a connection is in its session.
enum Role {
    First(session::Opened),
    Lane(Arc<Session>),
}

/// Handshake, choice of protocol and hellos, each under its deadline.
async fn greet(
    shared: &Arc<Shared>,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    (peer, id): (SocketAddr, u64),
    place: &mut crowd::Seat,
) -> Result<(Connection, Arc<Who>, Role, Seat)> {
    let socket = Socket::new(tcp, shared.socket_buffers.clone());
    socket.set_congestion(&shared.congestion);
    let accept = acceptor.accept(socket).into_fallible();
    let stream = match timeout(limits::HANDSHAKE_TIMEOUT, accept).await {
        Err(_) => return Err(Error::new(ErrorKind::Timeout, "the TLS handshake was not finished in time")),
        Ok(Err((error, socket))) => {
            // The alert is written; a reset must not overtake it.
            drain_refused(socket).await;
            return Err(tls::explain_server_error(error));
        }
        Ok(Ok(stream)) => stream,
    };
    // The one place that chooses what a connection speaks.
    if let Err(error) = tls::require_native(stream.get_ref().1) {
        drain_refused(stream).await;
        return Err(error);
    }
    let described = tls::describe(stream.get_ref().1);
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let principal = match tls::Principal::of_peer(Some(&chain)) {
        Ok(Some(principal)) => {
            Principal::Certified { name: principal.name().map(str::to_owned), key: *principal.key().as_bytes() }
        }
        Ok(None) => Principal::Anonymous,
        Err(error) => {
            drain_refused(stream).await;
            return Err(error);
        }
    };
    let mut connection = Connection::new(TlsStream::Server(stream));
    let mut who = Who::new(principal, chain, &shared.shares, id);
    match timeout(limits::HELLO_TIMEOUT, hello(shared, &mut connection, &mut who, place)).await {
        Ok(Ok((role, seat))) => {
            connection.greeted();
            audited::connected(shared, &who.principal, peer, id, None).await;
            let what = if matches!(role, Role::First(_)) { "connected" } else { "joined its session" };
            info!("{} {what}, {described}", who.principal);
            Ok((connection, Arc::new(who), role, seat))
        }
        // It said nothing: a client may begin connections that it turns out not to need.
        Ok(Err(error)) if error.kind() == ErrorKind::Connection && connection.traffic().received == 0 => Err(error),
        Ok(Err(error)) => {
            audited::connected(shared, &who.principal, peer, id, Some(&error)).await;
            say_goodbye(connection, &error).await;
            Err(error)
        }
        Err(_) => {
            let error = Error::new(ErrorKind::Timeout, "the client did not say hello in time");
            say_goodbye(connection, &error).await;
            Err(error)
        }
    }
}

async fn hello(
    shared: &Arc<Shared>,
    connection: &mut Connection,
    who: &mut Who,
    place: &mut crowd::Seat,
) -> Result<(Role, Seat)> {
    let (transfer, payload) = match connection.next(&mut BeforeHello).await? {
        Event::Control(Kind::ClientHello, transfer, payload) => (transfer, payload),
        Event::Control(kind, ..) => return Err(Breach::Unexpected { kind, why: "before the hello" }.into()),
        Event::Closed => return Err(Error::new(ErrorKind::Connection, "the client left before its hello")),
    };
    if transfer != 0 {
        return Err(Breach::Unexpected { kind: Kind::ClientHello, why: "a hello is not a transfer" }.into());
    }
    let hello = ClientHello::from_payload(&payload)?;
    let version = protocol::VERSIONS.iter().copied().find(|version| hello.versions.0.contains(version));
    let version = version.ok_or_else(|| {
        Error::new(
            ErrorKind::Version,
            format!(
                "this server speaks version {} of the protocol, the client only {:?}: update the older of the two",
                protocol::VERSIONS[0],
                hello.versions.0
            ),
        )
    })?;
    if let Some(ticket) = hello.redeem.clone() {
        redeem(shared, who, &hello, ticket).await?;
    }
    let pass = shared.pass(who)?;
    let seat = pass.connection_seat()?;
    place.greeted(&who.principal)?;
    let role = match &hello.join {
        Some(token) => Role::Lane(shared.sessions.join(token, &who.principal)?),
        None => Role::First(shared.sessions.open(&who.principal)?),
    };
    let token = match &role {
        Role::First(opened) => Some(opened.token),
        Role::Lane(_) => None,
    };
    if let Role::First(_) = role {
        giver::seen(shared, who);
    }
    debug!("client {}", escape_text(&hello.agent));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    connection.send(
        0,
        &ServerHello {
            version,
            agent: concat!("sealift/", env!("CARGO_PKG_VERSION")).into(),
            principal: pass.name(),
            rights: pass.rights().0,
            token,
            unasked_max: limits::UNASKED_CONNECTION_MAX,
            open_max: pass.open_max(),
            idle_seconds: u32::try_from(limits::IDLE_TIMEOUT.as_secs()).unwrap_or(u32::MAX),
            now: i64::try_from(now).unwrap_or(i64::MAX),
            file_mode: Some(shared.whole_store().file_mode().into()),
            directory_mode: Some(shared.whole_store().directory_mode().into()),
            zeros: Some(true),
            finish_ahead: Some(true),
            receipt_key: shared.receipt_key.as_ref().map(|key| Bytes32(key.public().0)),
            invites: shared.invites.as_ref().map(|_| true),
            trees: Some(true),
            xattrs: Some(true),
        },
    );
    shared.bind(who, connection)?;
    who.wants_receipts = hello.receipts == Some(true);
    Ok((role, seat))
}

/// Lets in the holder of an invite: nothing else of what it sends is looked at before that.
async fn redeem(shared: &Arc<Shared>, who: &mut Who, hello: &ClientHello, ticket: Ticket) -> Result<()> {
    let invites = shared.invites.clone();
    let invites = invites.ok_or_else(|| Error::new(ErrorKind::Unsupported, "this server takes no invites"))?;
    if who.principal != Principal::Anonymous {
        return Err(Error::new(ErrorKind::Unsupported, "an invite is redeemed without a certificate"));
    }
    let (shared_there, run, joins) = (Arc::clone(shared), hello.run, hello.join.is_some());
    let found = tokio::task::spawn_blocking(move || {
        let found = invites.find(&ticket)?;
        shared_there.check_invite(&found)?;
        let terms = Arc::clone(found.terms());
        let attendance = if joins { found.join(run.as_ref()) } else { found.take_part(run.as_ref()) };
        attendance.map(|attendance| (terms, attendance))
    });
    let found = found.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let (terms, attendance) = found?;
    who.attends(&terms, attendance, &shared.shares);
    Ok(())
}

/// Tells the peer why the connection ends, and gives it time to read that.
async fn say_goodbye(mut connection: Connection, error: &Error) {
    if !error.is_from_peer() && error.kind() != ErrorKind::Connection {
        connection.send(0, &Goodbye::from_error(error));
    }
    connection.close().await;
}

/// Before the hello no content has a place.
struct BeforeHello;

impl Handler for BeforeHello {
    fn poll_space(&mut self, _: &mut Context<'_>, _: u32, _: u64, _: usize) -> Poll<Result<&mut [u8]>> {
        Poll::Ready(Err(Breach::Unexpected { kind: Kind::Data, why: "before the hello" }.into()))
    }

    fn filled(&mut self, _: u32, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        Poll::Pending
    }
}

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
fn run(
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
            self.flow.is_working() || self.connection.is_held_back(),
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
        let (path, source, foretold) = (path.clone(), Arc::clone(source), foretold.clone());
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

    /// Takes what a job has found. An error is the end of the connection.
    pub(super) fn job(&mut self, job: Job) -> Result<()> {
        match job {
            Job::Opened(transfer, Ok(Opened::Upload(incoming)), _) => {
                let claimed = incoming.offer.as_ref().filter(|_| incoming.is_held);
                let claimed = claimed.map(|offer| offer.claimed()).unwrap_or_default();
                let answer = PutAnswer {
                    holding: match (incoming.is_held, &incoming.base) {
                        (true, _) => Holding::Held,
                        (false, Some(_)) => Holding::Base,
                        (false, None) => Holding::Fresh,
                    },
                    generation: incoming.generation,
                    held_size: match (incoming.is_held, &incoming.base) {
                        (false, Some(base)) => base.size(),
                        _ => claimed.iter().map(|&(_, len)| len).sum(),
                    },
                    compare_only: incoming.compare_only,
                    ranges: List(claimed),
                };
                if self.flow.is_open(transfer) {
                    self.connection.send(transfer, &answer);
                }
                self.flow.opened(transfer, *incoming);
            }
            Job::Opened(transfer, Ok(Opened::Ended(stored)), receipt)
            | Job::Committed(transfer, Ok(stored), receipt) => {
                if self.flow.is_open(transfer) {
                    self.stored(transfer, &stored, receipt.as_ref());
                }
            }
            Job::Opened(transfer, Err(error), _) => self.failed(transfer, &error),
            Job::Made(transfer, Ok(file)) => {
                self.flow.made(transfer, file);
                // Zeros may have waited for it.
                let committed = self.flow.commit_if_told(transfer);
                self.written(committed.map_err(|error| (transfer, error)))?;
            }
            Job::Zeroed(transfer, result) => {
                let zeroed = self.flow.zeroed(transfer, result);
                self.written(zeroed)?;
            }
            Job::Made(transfer, Err(error)) => self.failed(transfer, &error),
            Job::Written(transfer, group, result) => {
                let written = self.flow.written(transfer, group, result);
                self.written(written)?;
            }
            Job::Committed(transfer, Err(error), _) => self.failed(transfer, &error),
            Job::Spilled(transfer, group, result) => {
                let written = self.flow.spilled(transfer, group, result);
                self.written(written)?;
            }
            Job::CommittedSmall(committed) => self.stored_small(committed),
            Job::Read(slot, result) => {
                if let Err((transfer, error)) = self.flow.read(slot, result) {
                    self.failed(transfer, &error);
                }
                if !self.flow.is_reading() {
                    // Its client may not wait for what comes at the end.
                    self.meter.tell(&mut self.connection);
                }
            }
            Job::Foretold(transfer, finish) => {
                if let (Some(finish), Some(download)) = (finish, self.flow.downloads.get_mut(&transfer)) {
                    self.connection.send(transfer, &FinishAhead { size: finish.size, root: finish.root });
                    download.foretold = Some(finish);
                }
            }
            Job::OpenedToHash(transfer, Ok(run)) => self.hashed(transfer, run)?,
            Job::OpenedToHash(transfer, Err(error)) => self.failed(transfer, &error),
            Job::Hashed(transfer, result) => {
                self.flow.step_hashed();
                match result {
                    Ok(run) => self.hashed(transfer, run)?,
                    Err(error) => self.failed(transfer, &error),
                }
            }
            Job::Offered(transfer, result) => {
                self.flow.step_hashed();
                match result {
                    Ok(offer) => self.offered(transfer, offer)?,
                    Err(error) => self.failed(transfer, &error),
                }
            }
            Job::Answered(transfer, result) => {
                self.meter.tell(&mut self.connection);
                self.closing.remove(&transfer);
                if self.requests.remove(&transfer) {
                    match result {
                        Ok(frames) => frames.into_iter().for_each(|frame| self.connection.send_frame(frame)),
                        Err(error) => self.fail(transfer, &error),
                    }
                }
            }
            Job::MadeDirectory(transfer, path, made) => {
                let is_blind = !self.shared.pass(&self.flow.who).is_ok_and(|pass| pass.may(Action::List(&path)));
                let may_change =
                    || self.shared.pass(&self.flow.who).is_ok_and(|pass| pass.may(Action::Overwrite(&path)));
                if made.as_ref().is_ok_and(|&made| made) && self.made.len() < MADE_DIRECTORIES_MAX && !may_change() {
                    self.made.insert(path);
                }
                if self.requests.remove(&transfer) {
                    match made {
                        // Who sees no names is not told either whether one was taken.
                        Ok(made) => {
                            let told = made || is_blind;
                            self.connection.send(transfer, &requests::done(u64::from(told)));
                        }
                        Err(error) => self.fail(transfer, &error),
                    }
                }
            }
            Job::Listed(transfer, step) => {
                self.listing -= 1;
                self.listed(transfer, step);
            }
            Job::Got(answers, left) => {
                self.meter.tell(&mut self.connection);
                for (transfer, result) in answers {
                    self.got(transfer, result);
                }
                self.flow.got_batch(left);
            }
        }
        Ok(())
    }

    /// Content is written, or not: a breach ends the connection, all else the transfer.
    fn written(&mut self, written: Result<(), (u32, Error)>) -> Result<()> {
        match written {
            Err((_, error)) if error.kind() == ErrorKind::Protocol => Err(error),
            Err((transfer, error)) => {
                self.failed(transfer, &error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn listed(&mut self, transfer: u32, step: Result<ListStep>) {
        if !self.requests.contains(&transfer) {
            drop_elsewhere(&self.shared, step);
            return;
        }
        match step {
            Ok(ListStep { frames, rest }) => {
                frames.into_iter().for_each(|frame| self.connection.send_frame(frame));
                match rest {
                    Some(rest) => self.listings.push_front((transfer, ListStage::Begun(rest))),
                    None => drop(self.requests.remove(&transfer)),
                }
            }
            Err(error) => self.failed(transfer, &error),
        }
    }

    fn got(&mut self, transfer: u32, result: Result<Got>) {
        if !self.requests.remove(&transfer) {
            drop_elsewhere(&self.shared, result);
            return;
        }
        match result {
            Ok(Got { frames, file }) => {
                frames.into_iter().for_each(|frame| self.connection.send_frame(frame));
                match file {
                    Some((path, source)) => {
                        self.session.lend(transfer, session::Transfer::Download(Arc::clone(&source)));
                        self.flow.downloads.insert(transfer, Download::new(path, source));
                    }
                    None => self.sent_count += 1,
                }
            }
            Err(error) => self.fail(transfer, &error),
        }
    }

    /// Goes on with what waited for the peer to read, after each step.
    pub(super) fn go_on(&mut self) {
        self.begin_more();
        self.open.set(self.open_count());
    }

    fn begin_more(&mut self) {
        if !has_room(&self.connection) {
            return;
        }
        while self.listing < LISTINGS_MAX
            && let Some((transfer, stage)) = self.listings.pop_front()
        {
            self.listing += 1;
            self.flow.spawn(move |shared, who| {
                let step = match stage {
                    ListStage::Asked(request) => audited::request(shared, who, "list", &request.path, || {
                        requests::list(shared, who, transfer, &request)
                    }),
                    ListStage::Begun(rest) => requests::list_step(shared, who, transfer, rest),
                };
                Job::Listed(transfer, step)
            });
        }
        self.flow.hash_more();
        self.flow.get_more();
    }

    /// A step of a hash run is done.
    fn hashed(&mut self, transfer: u32, run: HashRun) -> Result<()> {
        let (size, end) = (run.file.size(), run.end());
        let is_wanted = match run.purpose {
            Purpose::Root(_) => self.requests.contains(&transfer),
            Purpose::Values(_) => self.flow.is_open(transfer),
        };
        if !is_wanted {
            drop_elsewhere(&self.shared, run.file);
            return Ok(());
        }
        if let Purpose::Root(is_read) = run.purpose {
            let recorded = if is_read { None } else { run.file.recorded_root() };
            if let Some(root) = recorded.or_else(|| run.tree.root(size)) {
                self.requests.remove(&transfer);
                match run.file.check_unchanged() {
                    Ok(()) => {
                        let done = Done { root: Some(root), size: Some(size), ..requests::done(1) };
                        self.connection.send(transfer, &done);
                    }
                    Err(error) => self.fail(transfer, &error),
                }
                drop_elsewhere(&self.shared, run.file);
            } else {
                self.flow.hash(transfer, run);
            }
            return Ok(());
        }
        let values: Vec<_> = (run.from..run.next.min(end)).filter_map(|group| run.tree.value(group)).collect();
        let mut first = run.from;
        for values in values.chunks(VALUES_MAX) {
            self.connection.send(transfer, &Values { first, values: List(values.to_vec()) });
            first += values.len() as u64;
        }
        if run.next < end {
            self.flow.hash(transfer, run);
        } else if let Some(download) = self.flow.downloads.get_mut(&transfer) {
            download.is_hashing = false;
        }
        Ok(())
    }

    /// Tells the values of what is there for an upload, as far as it was looked at.
    fn offered(&mut self, transfer: u32, offer: Box<Offer>) -> Result<()> {
        let values = self.flow.offered(transfer, offer);
        for run in values.chunk_by(|left, right| left.0 + 1 == right.0) {
            for run in run.chunks(VALUES_MAX) {
                let values = List(run.iter().map(|(_, value)| *value).collect());
                self.connection.send(transfer, &Values { first: run[0].0, values });
            }
        }
        let committed = self.flow.commit_if_told(transfer);
        self.written(committed.map_err(|error| (transfer, error)))
    }

    fn stored(&mut self, transfer: u32, stored: &Stored, receipt: Option<&Receipt>) {
        if let Some(upload) = self.flow.uploads.get(&transfer) {
            info!("{:?} {} ({} bytes)", stored.outcome, stored.path.as_ref().unwrap_or(&upload.put.path), stored.size);
        }
        self.stored_count += 1;
        let owes_finish = self.flow.uploads.get(&transfer).is_some_and(|upload| upload.owes_finish());
        self.flow.end(transfer);
        if !owes_finish {
            self.flow.forget_ended(transfer);
        }
        self.meter.tell(&mut self.connection);
        if let Some(receipt) = receipt {
            self.connection.send(transfer, receipt);
        }
        self.connection.send(transfer, stored);
    }

    fn stored_small(&mut self, CommittedSmall { answers, spare }: CommittedSmall) {
        let mut items = Vec::new();
        for SmallAnswer { transfer, size, stored, receipt, asked } in answers {
            self.flow.answered_unasked(size, asked);
            match stored {
                Ok(stored) => {
                    self.stored_count += 1;
                    if let Some(receipt) = receipt {
                        self.connection.send(transfer, &receipt);
                    }
                    items.push(StoredItem { transfer, stored });
                }
                Err(error) => self.fail(transfer, &error),
            }
        }
        // A renamed one carries a path of up to 4 KiB; all others are small.
        let mut batch = Vec::new();
        let mut len = 0;
        for item in items {
            let item_len = 96 + item.stored.path.as_ref().map_or(0, |path| path.len() + 3 * path.components().len());
            if batch.len() == 512 || len + item_len > limits::CONTROL_LEN_MAX / 2 {
                self.connection.send(0, &StoredBatch { items: List(std::mem::take(&mut batch)) });
                len = 0;
            }
            len += item_len;
            batch.push(item);
        }
        self.meter.tell(&mut self.connection);
        if !batch.is_empty() {
            self.connection.send(0, &StoredBatch { items: List(batch) });
        }
        self.flow.committed_small(spare);
    }

    /// Ends an open transfer or request by failure.
    fn failed(&mut self, transfer: u32, error: &Error) {
        let was_open = self.flow.is_open(transfer) | self.requests.remove(&transfer);
        self.flow.end(transfer);
        if was_open {
            self.fail(transfer, error);
        }
    }

    fn fail(&mut self, transfer: u32, error: &Error) {
        match error.kind() {
            ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::ReadOnly | ErrorKind::Internal => {
                warn!("transfer {transfer} failed: {}", error.chain());
            }
            // Clients look whether something is there before they store it.
            ErrorKind::NotFound => debug!("transfer {transfer}: {}", error.chain()),
            _ => info!("transfer {transfer} refused: {}", error.chain()),
        }
        let mut failed = Failed::from_error(error);
        // Others will close theirs.
        failed.retry = error.is_out_of_descriptors().then_some(true);
        self.connection.send(transfer, &failed);
    }
}

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
