//! Which congestion control a socket uses.

use std::os::fd::AsFd;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::limits::NEAR_ROUND_TRIP;

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

    /// Sets up a connected socket. One that refuses goes on with what the system prefers.
    pub(super) fn apply(&self, socket: impl AsFd) {
        match self {
            Congestion::Named(name) => {
                // It was there when the program began; without it the connection is merely slower.
                let _ = set(socket, name);
            }
            Congestion::Suitable => {
                let rtt = super::tcp_info(socket.as_fd()).map_or(Duration::ZERO, |info| info.rtt);
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
