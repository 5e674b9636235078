//! One step of a connection at a time: for whoever decides on trust, and for whoever looks for what is wrong.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::client::connect;
use crate::client::remote::Endpoint;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::CONNECT_TIMEOUT;
use crate::net::Congestion;
use crate::tls::look::{Shown, Viewer};
use crate::tls::{explain_client_error, server_name};

/// The addresses of a server's name, in the order in which they are tried.
///
/// # Errors
/// `Connection` when it has none, or it cannot be found out.
///
/// # Cancel safety
/// Safe.
pub async fn addresses(endpoint: &Endpoint) -> Result<Vec<SocketAddr>> {
    let found = timeout(CONNECT_TIMEOUT, connect::resolve(endpoint)).await;
    found.unwrap_or_else(|_| Err(late(format!("find the address of {}", endpoint.host()))))
}

/// Connects to one address and closes again. The answer is how long that took: one round trip.
///
/// # Errors
/// `Connection` or `Timeout`.
///
/// # Cancel safety
/// Safe.
pub async fn knock(address: SocketAddr, within: Duration) -> Result<Duration> {
    let begun = Instant::now();
    let doing = || format!("connect to {address}");
    let tcp = timeout(within, TcpStream::connect(address)).await;
    tcp.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).while_doing(doing)?;
    Ok(begun.elapsed())
}

/// What the server at an endpoint shows of itself. Nothing is believed, and nothing but the beginning of a handshake
/// is sent.
///
/// # Errors
/// `Connection` or `Timeout` when it cannot be reached; `Version` when what answers there does not speak TLS 1.3.
///
/// # Cancel safety
/// Safe: the connection is dropped.
pub async fn shown(endpoint: &Endpoint) -> Result<Shown> {
    let look = async {
        let tcp = connect::reach(endpoint, connect::resolve(endpoint).await?, &Congestion::default()).await?;
        let viewer = Viewer::new()?;
        let host = endpoint.host();
        let ended = TlsConnector::from(viewer.config()).connect(server_name(host)?, tcp).await;
        match (viewer.shown()?, ended) {
            (Some(shown), _) => Ok(shown),
            (None, Err(error)) => Err(explain_client_error(error, host)),
            (None, Ok(_)) => Err(Error::new(ErrorKind::Trust, format!("{host} shows no certificate"))),
        }
    };
    timeout(CONNECT_TIMEOUT, look).await.unwrap_or_else(|_| Err(late(format!("look at {endpoint}"))))
}

fn late(doing: String) -> Error {
    Error::new(ErrorKind::Timeout, format!("{doing}: no answer within {} seconds", CONNECT_TIMEOUT.as_secs()))
}
