//! Which congestion control a socket uses.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::error::{Error, ErrorKind, Result};
use crate::limits::NEAR_ROUND_TRIP;

/// Bytes that lie unsent in the system for a far peer, at most: 4 ms of a gigabit, in which whoever writes must be
/// woken; half a second of a connection that has a hundredth of that.
#[cfg(target_os = "linux")]
const UNSENT_MAX: u32 = 512 << 10;

/// Connects to an address, over a socket that is set up for this.
///
/// # Errors
/// What the system says of the attempt.
///
/// # Cancel safety
/// Safe: an unfinished connection is dropped.
pub async fn dial(address: SocketAddr, congestion: &Congestion) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    congestion.prepare(&socket);
    socket.connect(address).await
}

/// Sets up a listening socket for the connections that are accepted from it.
pub fn prepare_listener(listener: impl AsFd, congestion: &Congestion) {
    congestion.prepare(listener);
}

/// What is asked of the system for each socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// BBR where the kernel lets us have it and the peer is not near, CUBIC where the system prefers BBR and the peer
    /// is near; else what the system prefers.
    #[default]
    Suitable,
    /// The one of this name.
    Named(String),
}

impl Congestion {
    /// The control of this name.
    ///
    /// # Errors
    /// `Usage` when this machine does not let us have it.
    pub fn named(name: &str) -> Result<Congestion> {
        let refused = |source: std::io::Error| {
            let message = format!(
                "this machine does not offer the congestion control `{name}` \
                 (see net.ipv4.tcp_allowed_congestion_control)"
            );
            Error::new(ErrorKind::Usage, message).with_source(source)
        };
        let probe = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let probe = probe.map_err(|error| refused(error.into()))?;
        set(&probe, name).map_err(refused)?;
        Ok(Congestion::Named(name.to_owned()))
    }

    /// Sets up a socket before it is connected or listened on; what is accepted from it begins the same way. BBR that
    /// once ran on a socket leaves its pacing timers behind when another takes over, so where the system prefers it,
    /// it begins when the round trip is known to be worth it.
    pub(super) fn prepare(&self, socket: impl AsFd) {
        match self {
            Congestion::Named(name) => {
                // As in `apply`, which asks again.
                let _ = set(socket, name);
            }
            Congestion::Suitable if is_bbr(&socket) => {
                // Where it is not to be had, BBR is merely dearer.
                let _ = set(socket, "cubic");
            }
            Congestion::Suitable => {}
        }
    }

    /// Sets up a connected socket. One that refuses goes on with what the system prefers.
    pub(super) fn apply(&self, socket: impl AsFd) {
        let rtt = super::tcp_info(socket.as_fd()).map_or(Duration::ZERO, |info| info.rtt);
        if rtt > NEAR_ROUND_TRIP {
            bound_unsent(&socket);
        }
        match self {
            Congestion::Named(name) => {
                // It was there when the program began; without it the connection is merely slower.
                let _ = set(socket, name);
            }
            Congestion::Suitable => {
                if rtt > NEAR_ROUND_TRIP {
                    // Most systems offer it to the administrator alone.
                    let _ = set(socket, "bbr");
                } else if is_bbr(&socket) {
                    // Its pacing costs a fifth more CPU per byte, and gains nothing where a round trip is short.
                    let _ = set(socket, "cubic");
                }
            }
        }
    }
}

/// Bounds what lies in the system and is not sent yet, not what is under way: a connection of several that became slow
/// holds little that the others would have sent by now, and answers do not wait behind megabytes of content.
#[cfg(target_os = "linux")]
fn bound_unsent(socket: impl AsFd) {
    // One that refuses merely holds more.
    let _ = socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_MAX);
}

#[cfg(not(target_os = "linux"))]
fn bound_unsent(_: impl AsFd) {}

#[cfg(target_os = "linux")]
fn set(socket: impl AsFd, name: &str) -> std::io::Result<()> {
    // The kernel would cut a longer one off, and find another by what is left.
    if name.len() > 15 || name.is_empty() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    Ok(rustix::net::sockopt::set_tcp_congestion(socket, name)?)
}

#[cfg(target_os = "linux")]
fn is_bbr(socket: impl AsFd) -> bool {
    rustix::net::sockopt::tcp_congestion(socket).is_ok_and(|name| name.trim_end_matches('\0') == "bbr")
}

#[cfg(not(target_os = "linux"))]
fn is_bbr(_: impl AsFd) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
fn set(_: impl AsFd, _: &str) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn bbr_has_not_run_before_the_round_trip_is_known() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        if set(&listener, "cubic").is_err() || set(&listener, "bbr").is_err() {
            return println!("skipped: this machine lets us have CUBIC or BBR alone");
        }
        prepare_listener(&listener, &Congestion::Suitable);
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(!is_bbr(&accepted), "a connection begins as its listener is");
        Congestion::Suitable.apply(&accepted);
        assert!(!is_bbr(&accepted), "the peer is near");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_lies_unsent_for_a_far_peer_is_bounded_and_for_a_near_one_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let bound = || socket2::SockRef::from(&client).tcp_notsent_lowat().unwrap();
        let unbound = bound();
        Congestion::Suitable.apply(&client);
        assert_eq!(bound(), unbound, "the peer is near");
        bound_unsent(&client);
        assert_eq!(bound(), UNSENT_MAX);
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_dialled_connection_has_what_was_asked() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = dial(address, &Congestion::Named("reno".to_owned())).await.unwrap();
        assert_eq!(rustix::net::sockopt::tcp_congestion(&tcp).unwrap().trim_end_matches('\0'), "reno");
        let tcp = dial(address, &Congestion::Suitable).await.unwrap();
        assert!(set(&tcp, "cubic").is_err() || !is_bbr(&tcp));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_named_control_is_there_or_refused() {
        // Every kernel has this one.
        assert_eq!(Congestion::named("reno").unwrap(), Congestion::Named("reno".to_owned()));
        for name in ["", "no-such-control", "a-name-that-no-kernel-would-take"] {
            assert_eq!(Congestion::named(name).unwrap_err().kind(), ErrorKind::Usage, "{name}");
        }
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Congestion::Named("reno".to_owned()).apply(&socket);
        assert_eq!(rustix::net::sockopt::tcp_congestion(&socket).unwrap().trim_end_matches('\0'), "reno");
    }
}
