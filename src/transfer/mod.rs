//! What to send next, what is missing, whether this piece is right: pure machines without I/O or clock.
//!
//! [`Receiver`] judges the pieces of one file that come in, on a server for uploads and on a client for downloads;
//! [`Sender`] decides which groups of one file go out; [`Fetcher`] decides which ranges a download asks for;
//! [`Ledger`] knows what is held of a file that is not whole yet.
//! [`Width`] says how many connections a transfer gets; [`check_recorded`] whether what was read of a stored file is
//! what was stored.
//! They are run against each other in a test (`tests/sim`) with any link between them.

mod fetcher;
mod ledger;
mod receiver;
mod rot;
mod runs;
mod sender;
mod width;

pub use fetcher::Fetcher;
pub use ledger::{Claim, Ledger, Record};
pub use receiver::{Piece, Receiver};
pub use rot::check_recorded;
pub use runs::Runs;
pub use sender::{Decision, Sender, Taken};
pub use width::{Seen, Way, Width};
