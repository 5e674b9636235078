//! Servers that lie, against the program: in names, kinds, links, modes, sizes, hashes, answers and time.
//!
//! After each of them nothing beside the target directory was made, changed or so much as opened
//! ([`server::Place::check`]), only visible text was printed, and the exit code says what happened. The cases are
//! group C of the catalogue; `docs/RELIABILITY.md` says which test answers which.

mod lies;
mod names;
mod server;
mod time;
mod xattrs;
