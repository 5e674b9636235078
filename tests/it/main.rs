//! All end-to-end tests, in one binary.

mod answers;
mod audited;
mod certs;
mod changing;
mod codec;
mod confine;
mod crash;
mod faults;
mod help;
mod hostile;
mod kit;
mod layers;
mod many;
mod order;
mod real;
mod receipts;
mod refusals;
mod rig;
mod secrets;
mod streams;
mod sync;
mod sync_model;
#[expect(unreachable_pub, reason = "it is the library of the fuzz targets too")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;
mod tls;
mod transfer;
mod vectors;
