//! From a server's name to a greeted connection: addresses, TCP, TLS, hellos, each failure in a sentence.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::{TlsConnector, TlsStream, client};

use crate::client::ahead::{Ahead, Expected, Shaken};
use crate::client::asks::Ask;
use crate::client::event::{self, Events};
use crate::client::invite::Redemption;
use crate::client::remote::Endpoint;
use crate::client::session::reported;
use crate::error::{Error, ErrorKind, Result, kind_of_io};
use crate::limits::{CONNECT_TIMEOUT, NEAR_ROUND_TRIP, RETRY_BACKOFF};
use crate::net::{self, Congestion, Connection, Event, Handler, Limits, Socket, SocketBuffers};
use crate::path::escape_text;
use crate::protocol::{Breach, Bytes16, ClientHello, Failed, Goodbye, Kind, List, Message, ServerHello, VERSIONS};
use crate::tls::{ClientTls, Pin, describe, explain_client_error, server_name};

/// After this long without an answer from one address, the next is tried beside it.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried: more than any real one has.
const ADDRESSES_MAX: usize = 16;
/// How long before a name that did not resolve is asked for once more.
const RESOLVE_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long sent bytes may be unacknowledged, or a connection silent, before the system gives it up.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes connections to one server.
pub(crate) struct Dialer {
    endpoint: Endpoint,
    tls: ClientTls,
    buffers: SocketBuffers,
    /// Asks for receipts.
    with_receipts: bool,
    /// The invite that it redeems, on each connection.
    invite: Option<Redemption>,
    congestion: Congestion,
    limits: Limits,
    /// What the first connection will be followed by.
    expected: Expected,
    ahead: Ahead,
    /// What leaves with the hello of the first connection, over a long link.
    asks: Vec<Ask>,
}

/// A connection on which both sides have greeted.
pub(crate) struct Greeted {
    pub(crate) connection: Connection,
    pub(crate) hello: ServerHello,
    /// What was asked with our hello.
    pub(crate) asked: Vec<Ask>,
    /// The server's key, as it proved itself.
    pub(crate) pin: Option<Pin>,
    /// What was negotiated, for `--verbose`.
    pub(crate) description: String,
    /// What the person should know of the server's certificate.
    pub(crate) warnings: Vec<String>,
}

impl Dialer {
    pub(crate) fn new(
        endpoint: Endpoint,
        tls: ClientTls,
        congestion: Congestion,
        rate: Option<u64>,
        with_receipts: bool,
        invite: Option<Redemption>,
    ) -> Dialer {
        let limits = Limits::of([rate]);
        let (expected, ahead, asks) = (Expected::default(), Ahead::default(), Vec::new());
        Dialer {
            endpoint,
            tls,
            buffers: SocketBuffers::new(),
            with_receipts,
            invite,
            congestion,
            limits,
            expected,
            ahead,
            asks,
        }
    }

    /// Beside the first connection, it begins those that a transfer like this will want, and with its hello it asks this.
    pub(crate) fn expecting(self, expected: Expected, asks: Vec<Ask>) -> Dialer {
        // What an invite gives counts, taken or not.
        let asks = if self.invite.is_some() { Vec::new() } else { asks };
        Dialer { expected, asks, ..self }
    }

    /// Connects and greets, all within [`CONNECT_TIMEOUT`].
    ///
    /// # Errors
    /// `Connection` or `Timeout` when the server cannot be reached; `Trust` or `Version` when the two do not go
    /// together; what the server says in its goodbye.
    ///
    /// # Cancel safety
    /// Safe: an unfinished connection is dropped.
    pub(crate) async fn connect(&self) -> Result<Greeted> {
        let attempt = async { self.greet_over(self.reach().await?, &[]).await };
        timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|_| Err(self.too_late()))
    }

    /// Joins a session: connects to the very address that its first connection goes to, and shows the token. The
    /// server's hello is due on the connection that comes back, see [`take_hello`].
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn join(&self, address: SocketAddr, token: Bytes16) -> Result<Connection> {
        let joining = async {
            let tls = match self.ahead.next(address).await {
                Some(tls) => tls,
                None => self.shake(address).await?,
            };
            self.tls.accept_server(tls.get_ref().1, self.endpoint.host())?;
            let mut connection = self.connection(tls);
            connection.send(0, &self.hello(Some(token)));
            Ok(connection)
        };
        let late = |_| Err(Error::new(ErrorKind::Timeout, format!("{} did not answer in time", self.endpoint)));
        timeout(CONNECT_TIMEOUT, joining).await.unwrap_or_else(late)
    }

    /// As [`Dialer::connect`], for the first time. A server that was reached and then broke off without saying why is
    /// tried again, like any other cut, until [`CONNECT_TIMEOUT`] is over; each is told before the wait. One that
    /// cannot be reached is not: its name or port may well be wrong. What further connections are begun are begun beside
    /// the first attempt only: a server that breaks off may have more than it can greet.
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    ///
    /// # Cancel safety
    /// Safe: an unfinished connection is dropped.
    pub(crate) async fn connect_first(&self, events: &Events) -> Result<Greeted> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut wait = RETRY_BACKOFF.0;
        let mut was_reached = false;
        let mut expected = self.expected;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let attempt = async {
                let reached = self.reach().await;
                was_reached = reached.as_ref().map_or_else(was_reset, |_| true);
                let tcp = reached?;
                self.ahead.begin(std::mem::take(&mut expected), &tcp, |address| self.shake(address));
                self.greet_over(tcp, &self.asks).await
            };
            let error = match timeout(left, attempt).await {
                Ok(Ok(greeted)) => return Ok(greeted),
                Ok(Err(error)) => error,
                Err(_) => return Err(self.too_late()),
            };
            self.ahead.forget();
            let pause = jittered(wait);
            if !was_reached || !error.kind().is_retryable() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            events.tell(event::Event::Retrying { wait: pause, reason: error }).await;
            sleep(pause).await;
            wait = (wait * 2).min(RETRY_BACKOFF.1);
        }
    }

    /// Connections that were begun beside the first and that nobody has taken.
    pub(crate) fn begun(&self) -> usize {
        self.ahead.count()
    }

    /// Those are not needed.
    pub(crate) fn forget_begun(&self) {
        self.ahead.forget();
    }

    /// Whether it redeems an invite.
    pub(crate) fn redeems_invite(&self) -> bool {
        self.invite.is_some()
    }

    fn too_late(&self) -> Error {
        let seconds = CONNECT_TIMEOUT.as_secs();
        Error::new(ErrorKind::Timeout, format!("{} did not answer within {seconds} seconds", self.endpoint))
    }

    async fn reach(&self) -> Result<TcpStream> {
        let addresses = resolve(&self.endpoint).await?;
        let tcp = reach(&self.endpoint, addresses, &self.congestion).await?;
        Ok(tcp)
    }

    /// Connects, and shakes hands, and no more.
    fn shake(&self, address: SocketAddr) -> impl Future<Output = Shaken> + Send + use<> {
        let (endpoint, congestion, handshake) = (self.endpoint.clone(), self.congestion.clone(), self.handshake());
        async move { handshake.over(reach(&endpoint, vec![address], &congestion).await?).await }
    }

    fn handshake(&self) -> Handshake {
        let (tls, host) = (TlsConnector::from(self.tls.config()), self.endpoint.host().to_owned());
        Handshake { tls, host, buffers: self.buffers.clone(), congestion: self.congestion.clone() }
    }

    async fn greet_over(&self, tcp: TcpStream, asks: &[Ask]) -> Result<Greeted> {
        let tls = self.handshake().over(tcp).await?;
        let host = self.endpoint.host();
        let warnings = self.tls.accept_server(tls.get_ref().1, host)?;
        let description = describe(tls.get_ref().1);
        let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let pin = certificate.and_then(|certificate| Pin::of_certificate(certificate).ok());
        let mut connection = self.connection(tls);
        let ours = self.hello(None);
        let asked = asked_over(&connection, asks);
        let hello = greet(&mut connection, host, &ours, &asked).await?;
        if ours.receipts == Some(true) && hello.receipt_key.is_none() {
            let message = format!("{host} gives no receipts: without --receipts it stores all the same");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(Greeted { connection, hello, asked, pin, description, warnings })
    }

    fn connection(&self, tls: client::TlsStream<Socket>) -> Connection {
        let mut connection = Connection::new(TlsStream::Client(tls));
        connection.set_limits(&self.limits);
        connection
    }

    fn hello(&self, join: Option<Bytes16>) -> ClientHello {
        ClientHello {
            versions: List(VERSIONS.to_vec()),
            agent: concat!("sealift/", env!("CARGO_PKG_VERSION")).to_owned(),
            join,
            redeem: self.invite.as_ref().map(|invite| invite.ticket.clone()),
            run: self.invite.as_ref().map(|invite| invite.run),
            // Answers, and receipts with them, come on the first connection of a session.
            receipts: (self.with_receipts && join.is_none()).then_some(true),
        }
    }
}

/// What a TLS handshake with the server needs.
struct Handshake {
    tls: TlsConnector,
    host: String,
    buffers: SocketBuffers,
    congestion: Congestion,
}

impl Handshake {
    async fn over(self, tcp: TcpStream) -> Shaken {
        watch_over(&tcp);
        let socket = Socket::new(tcp, self.buffers);
        socket.set_congestion(&self.congestion);
        let shaken = self.tls.connect(server_name(&self.host)?, socket).await;
        shaken.map_err(|error| explain_client_error(error, &self.host))
    }
}

/// Whether somebody was there: a connection is reset once it is made, while a port that is closed refuses it.
fn was_reset(error: &Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(found) = source {
        if let Some(found) = found.downcast_ref::<io::Error>() {
            return found.kind() == io::ErrorKind::ConnectionReset;
        }
        source = found.source();
    }
    false
}

/// Between half and all of a wait, so that many clients do not come back at once.
pub(crate) fn jittered(wait: Duration) -> Duration {
    // Without random bytes they merely come back together.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    #[cfg(test)]
    let random = crate::storage::simulated::chance().unwrap_or(random);
    wait / 2 + (wait / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

pub(super) async fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>> {
    let name = (endpoint.host(), endpoint.port());
    let found = match tokio::net::lookup_host(name).await {
        Err(_) => {
            sleep(RESOLVE_AGAIN_AFTER).await;
            tokio::net::lookup_host(name).await
        }
        found => found,
    };
    let message = || format!("find the address of {}", endpoint.host());
    let found = found.map_err(|error| Error::new(ErrorKind::Connection, message()).with_source(error))?;
    let addresses = interleave(found.collect());
    if addresses.is_empty() {
        return Err(Error::new(ErrorKind::Connection, format!("{}: it has none", message())));
    }
    Ok(addresses)
}

/// Puts the two families in turn, the one that the system prefers first (RFC 8305, section 4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == is_v6_first);
    let mut order = Vec::new();
    while order.len() < ADDRESSES_MAX && !(first.is_empty() && second.is_empty()) {
        order.extend(first.pop_front());
        order.extend(second.pop_front());
    }
    order
}

/// Connects to whichever address answers first. Each gets a head start over the next.
pub(super) async fn reach(
    endpoint: &Endpoint,
    addresses: Vec<SocketAddr>,
    congestion: &Congestion,
) -> Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut rest = addresses.into_iter();
    let mut failure: Option<(SocketAddr, io::Error)> = None;
    loop {
        if let Some(address) = rest.next() {
            let congestion = congestion.clone();
            attempts.spawn(async move { (address, net::dial(address, &congestion).await) });
        } else if attempts.is_empty() {
            break;
        }
        let is_last = rest.len() == 0;
        tokio::select! {
            Some(attempt) = attempts.join_next() => match attempt {
                Ok((_, Ok(tcp))) => return Ok(tcp),
                // That somebody was there says more than that nobody is elsewhere.
                Ok((address, Err(error))) => match &failure {
                    Some((_, known)) if known.kind() == io::ErrorKind::ConnectionReset => {}
                    _ => failure = Some((address, error)),
                },
                Err(panic) => return Err(Error::new(ErrorKind::Internal, "an attempt to connect failed").with_source(panic)),
            },
            () = sleep(NEXT_ADDRESS_AFTER), if !is_last => {}
        }
    }
    let Some((address, error)) = failure else {
        return Err(Error::new(ErrorKind::Connection, format!("connect to {endpoint}: it has no address")));
    };
    let kind = match kind_of_io(&error) {
        ErrorKind::Timeout => ErrorKind::Timeout,
        _ => ErrorKind::Connection,
    };
    let hint = match error.kind() {
        io::ErrorKind::ConnectionRefused => " (is the server running, and is this its port?)",
        _ => "",
    };
    Err(Error::new(kind, format!("connect to {endpoint} at {address}{hint}")).with_source(error))
}

/// Asks the system to notice a network that went away. A system that refuses is merely slower to notice.
fn watch_over(tcp: &TcpStream) {
    use rustix::net::sockopt;
    let seconds = NETWORK_TIMEOUT.as_secs();
    let _ = sockopt::set_socket_keepalive(tcp, true);
    let _ = sockopt::set_tcp_keepidle(tcp, Duration::from_secs(seconds / 2));
    let _ = sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(seconds / 6));
    let _ = sockopt::set_tcp_keepcnt(tcp, 3);
    #[cfg(target_os = "linux")]
    let _ = sockopt::set_tcp_user_timeout(tcp, u32::try_from(NETWORK_TIMEOUT.as_millis()).unwrap_or(30_000));
}

/// What is asked together with the hello: over a long link all, over a short one, which costs little time, nothing.
fn asked_over(connection: &Connection, asks: &[Ask]) -> Vec<Ask> {
    let is_far = connection.socket().info().is_some_and(|info| info.rtt > NEAR_ROUND_TRIP);
    if is_far { asks.to_vec() } else { Vec::new() }
}

/// Exchanges hellos. Nothing but our version, and what is asked, leaves before the server has accepted us; the handshake
/// has proven it by now.
async fn greet(connection: &mut Connection, host: &str, hello: &ClientHello, asks: &[Ask]) -> Result<ServerHello> {
    connection.send(0, hello);
    asks.iter().for_each(|ask| connection.send_frame(ask.frame.clone()));
    if !asks.is_empty() {
        // However this attempt ends, what it asked shall not arrive when another has asked it again.
        connection.socket().give_up();
    }
    let event = connection.next(&mut NoContent).await.map_err(|error| explain_first_read(error, host))?;
    let hello = take_hello(connection, host, event)?;
    if !asks.is_empty() {
        connection.socket().keep();
    }
    Ok(hello)
}

/// Takes the first event of a connection, which is to be the hello of this server.
///
/// # Errors
/// What the server says instead; `Version` when it speaks none of ours; a breach for anything else.
pub(crate) fn take_hello(connection: &mut Connection, host: &str, event: Event) -> Result<ServerHello> {
    let hello = match event {
        Event::Control(Kind::ServerHello, 0, payload) => ServerHello::from_payload(&payload)?,
        Event::Control(Kind::Goodbye, _, payload) => {
            return Err(reported(Goodbye::from_payload(&payload)?.to_error()).context(format!("{host} refused")));
        }
        Event::Control(Kind::Failed, _, payload) => {
            return Err(reported(Failed::from_payload(&payload)?.to_error()).context(format!("{host} refused")));
        }
        Event::Control(kind, ..) => {
            return Err(Breach::Unexpected { kind, why: "a server's hello was due" }.into());
        }
        Event::Closed => {
            let message = format!("{host} closed the connection before it greeted");
            return Err(Error::new(ErrorKind::Connection, message));
        }
    };
    if !VERSIONS.contains(&hello.version) {
        let message = format!(
            "{host} (`{}`) answers in version {} of the protocol, which this client does not speak",
            escape_text(&hello.agent),
            hello.version
        );
        return Err(Error::new(ErrorKind::Version, message));
    }
    connection.greeted();
    Ok(hello)
}

/// In TLS 1.3 a server refuses a certificate after the client has finished: the reason comes with the first read.
fn explain_first_read(error: Error, host: &str) -> Error {
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
    let Some(cause) = cause else { return error };
    let again = match cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => io::Error::new(cause.kind(), tls.clone()),
        None => io::Error::new(cause.kind(), cause.to_string()),
    };
    explain_client_error(again, host)
}

/// Before the hello no content moves.
struct NoContent;

impl Handler for NoContent {
    fn poll_space(&mut self, _: &mut Context<'_>, _: u32, _: u64, _: usize) -> Poll<Result<&mut [u8]>> {
        Poll::Ready(Err(Breach::Unexpected { kind: Kind::Data, why: "a server's hello was due" }.into()))
    }

    fn filled(&mut self, _: u32, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<(u32, u64, Bytes)> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::{TlsAcceptor, server};

    use super::*;
    use crate::client::FirstAsks;
    use crate::path::RemotePath;
    use crate::protocol::{FRAME_HEADER_LEN, Header, Stat};
    use crate::tls::{self, ServerOptions, ServerTls};

    /// A client of a server on this machine, and that server when it has shaken hands.
    async fn shaken(asks: &[Ask]) -> (Dialer, client::TlsStream<Socket>, server::TlsStream<TcpStream>) {
        let folder = tempfile::tempdir().unwrap();
        let request =
            tls::folder::Request { directory: folder.path().join("certs"), ..tls::folder::Request::default() };
        tls::folder::make(&request, time::OffsetDateTime::now_utc()).unwrap();
        let trusted = ClientTls::load(&tls::ClientOptions::in_folder(&request.directory)).unwrap();
        let server = ServerTls::load(&ServerOptions::in_folder(&request.directory)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::parse(b"localhost:1").unwrap();
        let dialer = Dialer::new(endpoint, trusted, Congestion::default(), None, false, None)
            .expecting(Expected::default(), asks.to_vec());
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accept = async {
            let (tcp, _) = listener.accept().await.unwrap();
            TlsAcceptor::from(server.config()).accept(tcp).await.unwrap()
        };
        let (here, there) = tokio::join!(dialer.handshake().over(tcp), accept);
        (dialer, here.unwrap(), there)
    }

    async fn frame(stream: &mut server::TlsStream<TcpStream>) -> (Kind, u32, Vec<u8>) {
        let mut header = [0; FRAME_HEADER_LEN];
        stream.read_exact(&mut header).await.unwrap();
        let header = Header::decode(&header).unwrap();
        let mut payload = vec![0; header.len as usize];
        stream.read_exact(&mut payload).await.unwrap();
        (header.kind.unwrap(), header.transfer, payload)
    }

    fn server_hello() -> Vec<u8> {
        let hello = ServerHello {
            version: VERSIONS[0],
            agent: "test".into(),
            principal: None,
            rights: 1,
            token: None,
            unasked_max: 0,
            open_max: 1,
            idle_seconds: 60,
            now: 0,
            file_mode: None,
            directory_mode: None,
            zeros: None,
            finish_ahead: None,
            receipt_key: None,
            invites: None,
            trees: None,
            xattrs: None,
        };
        hello.to_frame(0)
    }

    #[tokio::test]
    async fn what_is_asked_leaves_before_the_server_has_said_anything() {
        let path = RemotePath::parse(b"x").unwrap();
        let asks = FirstAsks::stat(&path).frames(None);
        let (dialer, here, mut there) = shaken(&asks).await;
        let mut connection = dialer.connection(here);
        let linger = |connection: &Connection| socket2::SockRef::from(connection.socket().tcp()).linger().unwrap();
        let (hello, greeting) = (dialer.hello(None), async |connection: &mut Connection, hello: &ClientHello| {
            greet(connection, "localhost", hello, &asks).await
        });
        let server = async {
            assert_eq!(frame(&mut there).await.0, Kind::ClientHello);
            let (kind, transfer, payload) = frame(&mut there).await;
            assert_eq!((kind, transfer), (Kind::Stat, 1));
            assert_eq!(Stat::from_payload(&payload).unwrap().path, path);
            there.write_all(&server_hello()).await.unwrap();
        };
        let (greeted, ()) = tokio::join!(greeting(&mut connection, &hello), server);
        assert_eq!(greeted.unwrap().agent, "test");
        assert_eq!(linger(&connection), None);

        let (dialer, here, there) = shaken(&asks).await;
        let mut connection = dialer.connection(here);
        let (greeted, ()) = tokio::join!(greeting(&mut connection, &hello), async { drop(there) });
        assert_eq!(greeted.unwrap_err().kind(), ErrorKind::Connection);
        assert_eq!(linger(&connection), Some(Duration::ZERO), "what it asked must not arrive later");
    }

    #[tokio::test]
    async fn a_near_server_is_asked_nothing_before_it_has_greeted() {
        let asks = FirstAsks::stat(&RemotePath::root()).frames(None);
        let (dialer, here, mut there) = shaken(&asks).await;
        let mut connection = dialer.connection(here);
        if connection.socket().info().is_none_or(|info| info.rtt > NEAR_ROUND_TRIP) {
            return println!("skipped: this machine is too busy to be near to itself");
        }
        let asked = asked_over(&connection, &asks);
        assert!(asked.is_empty());
        let server = async {
            assert_eq!(frame(&mut there).await.0, Kind::ClientHello);
            there.write_all(&server_hello()).await.unwrap();
            there
        };
        let hello = dialer.hello(None);
        let (greeted, mut there) = tokio::join!(greet(&mut connection, "localhost", &hello, &asked), server);
        greeted.unwrap();
        drop(connection);
        let mut rest = Vec::new();
        // It ends without a word, which is all that matters here.
        let _ = there.read_to_end(&mut rest).await;
        assert_eq!(rest, b"");
    }

    #[test]
    fn families_take_turns() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (a, b, c) = (parse("[::1]:1"), parse("[::2]:1"), parse("127.0.0.1:1"));
        assert_eq!(interleave(vec![a, b, c]), [a, c, b]);
        assert_eq!(interleave(vec![c, a, b]), [c, a, b]);
        assert_eq!(interleave(vec![]), []);
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = {
            let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            gone.local_addr().unwrap()
        };
        let endpoint = Endpoint::parse(b"localhost:1").unwrap();
        let tcp = reach(&endpoint, vec![closed, open], &Congestion::default()).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), open);
        let refused = reach(&endpoint, vec![closed], &Congestion::default()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Connection);
        assert!(refused.to_string().contains("is the server running"), "{refused}");
    }
}
