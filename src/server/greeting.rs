//! Connections before their work: the handshake, the hellos, and what each is to be.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info, info_span};

use super::audited;
use super::connection;
use super::crowd;
use super::ends::say_goodbye;
use super::invites::giver;
use super::lane;
use super::quota::Seat;
use super::session::{self, Session};
use super::shared::{Shared, Who};
use crate::access::Principal;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::net::{Connection, Event, Handler, Socket, drain_refused};
use crate::path::escape_text;
use crate::protocol::{self, Breach, Bytes32, ClientHello, Kind, Message, ServerHello, Ticket};
use crate::tls;

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
        Role::First(opened) => Box::pin(connection::run(shared, connection, who, opened, id, started)),
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
