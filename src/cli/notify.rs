//! Tells the service manager (systemd's `NOTIFY_SOCKET`) how the server is.
//!
//! The socket is connected before the process is confined: afterwards it connects to nothing.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The way to the service manager, if there is one.
pub(super) struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// Connects to the socket that the environment names. Without one, and when it is gone, nobody is told: either
    /// way the server serves.
    pub(super) fn open() -> Notifier {
        let connect = || {
            let name = std::env::var_os("NOTIFY_SOCKET")?;
            let address = match name.as_bytes().strip_prefix(b"@") {
                Some(name) => abstract_address(name)?,
                None => SocketAddr::from_pathname(&name).ok()?,
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect_addr(&address).ok()?;
            // A manager that does not read must not hold up the server.
            socket.set_nonblocking(true).ok()?;
            Some(socket)
        };
        Notifier(connect())
    }

    /// It accepts.
    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// It was told to stop.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.0 {
            // Deliberate loss: a manager that is gone needs no news.
            let _ = socket.send(state.as_bytes());
        }
    }
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> Option<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    SocketAddr::from_abstract_name(name).ok()
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> Option<SocketAddr> {
    None
}
