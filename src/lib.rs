//! Encrypted file transfer that keeps its promises: what is acknowledged is verified, durable and whole.
//!
//! Layers, each using only those below it (`docs/ARCHITECTURE.md` is the map):
//!
//! ```text
//! main  cli            prints, exits, reads flags, environment, signals
//! client  server       the roles; they never call one another
//! access  audit        who may do what; what was done
//! net  tls  storage    the only code that touches sockets, keys, disks
//! transfer             what to send next, what is missing, is this frame right: pure
//! protocol  hash  path bytes <-> types: pure
//! error  limits
//! ```

pub mod access;
pub mod audit;
pub mod buffer;
pub mod cli;
pub mod client;
pub mod confine;
pub mod error;
pub mod hash;
pub mod limits;
pub mod net;
pub mod path;
pub mod protocol;
pub mod server;
pub mod storage;
pub mod tls;
pub mod transfer;

pub use error::{Error, ErrorKind, Result};
