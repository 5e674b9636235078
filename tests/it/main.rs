//! All end-to-end tests, in one binary.

mod certs;
mod help;
mod rig;
mod layers;
mod order;
mod tls;
