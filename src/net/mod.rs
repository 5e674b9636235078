//! Sockets and frames: the only code that reads from and writes to the network.
//!
//! [`Connection`] carries frames over TLS for both roles; [`Socket`] is the TCP stream below TLS, which holds a
//! buffer only while there is something to read.

mod congestion;
mod connection;
mod limiter;
mod socket;
mod tcp_info;

pub use congestion::{Congestion, dial, prepare_listener};
pub use connection::{Connection, Event, Handler, Traffic, drain_refused};
pub use limiter::Limits;
pub use socket::{Socket, SocketBuffers};
pub use tcp_info::{TcpInfo, tcp_info};
