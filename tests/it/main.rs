//! All end-to-end tests, in one binary.

mod answers;
mod atomic;
mod audited;
mod certs;
mod changing;
mod codec;
mod confine;
mod crash;
mod doctor;
mod errors;
mod every_call;
mod evil;
mod faults;
mod flips;
mod help;
mod hostile;
mod install;
mod invites;
mod kit;
mod layers;
mod library;
mod many;
mod metadata;
mod order;
mod policy;
mod quota;
mod real;
mod receipts;
mod refusals;
mod remotes;
mod resume;
mod rig;
mod scrub;
mod secrets;
mod streams;
mod sync;
mod sync_model;
#[expect(unreachable_pub, reason = "it is the library of the fuzz targets too")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;
mod terminal;
mod tls;
mod transfer;
mod vectors;
mod verify;
mod why;
