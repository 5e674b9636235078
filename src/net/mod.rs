//! Sockets and frames: the only code that reads from and writes to the network.
//!
//! [`Connection`] carries frames over TLS for both roles; [`Socket`] is the TCP stream below TLS, which holds a
//! buffer only while there is something to read.

mod connection;
mod socket;

pub use connection::{Connection, Event, Handler, Traffic, drain_refused};
pub use socket::{Socket, SocketBuffers};
