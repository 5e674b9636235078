//! Peers that break the protocol, lie, stall or reach for what is not theirs, against a real server on loopback.
//!
//! After each of them the server must still serve a good client, and nothing else may have happened: no task
//! panicked, nothing outside the served root changed, no part of a file stands under a final name, no staging file
//! or descriptor is left behind ([`peer::World::check`]).

mod bytes;
mod content;
mod greedy;
mod lanes;
mod late;
mod limits;
mod matrix;
mod names;
mod peer;
mod records;
mod redeem;
mod rights;
mod states;
mod trees;
mod unseen;
mod waiting;
mod xattrs;
