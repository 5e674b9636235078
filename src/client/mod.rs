//! The client: what the arguments mean, what is to be moved where, the moving, and what is told about it.
//!
//! [`remote`] and [`plan`] turn arguments into a plan before anything moves; [`walk`] finds the local files of an
//! upload while the first of them already move; [`event`] is what whoever watches gets to see. [`Client`] is the
//! way to a server: it keeps a connection (`connect`, `session`), makes another one when it breaks, and moves files
//! over it (`upload`, `download`).

mod ahead;
mod api;
mod asks;
mod atomic;
mod blocking;
pub mod compare;
mod connect;
mod download;
pub mod event;
pub mod filter;
pub mod glob;
pub mod invite;
mod keep;
mod lanes;
mod library;
mod life;
pub mod link;
mod listing;
pub mod look;
mod names;
pub mod plan;
pub mod receipts;
pub mod remote;
mod session;
mod shelf;
mod side;
pub mod stalls;
mod sync;
mod traverse;
mod upload;
mod verify;
pub mod walk;
mod workplace;
mod xattrs;
mod zeros;

#[cfg(test)]
pub(crate) use {lanes::simulated as simulated_lane, session::simulated as simulated_line};

pub use api::{Client, ClientOptions, ServerFacts};
pub use asks::FirstAsks;
pub use download::GetOptions;
pub use library::Report;
pub use listing::{Piece, Place};
pub use sync::{Direction, SyncOptions, SyncPlan};
pub use upload::{PutOptions, StreamSource};
