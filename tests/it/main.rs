//! All end-to-end tests, in one binary.

mod certs;
mod help;
mod layers;
mod tls;
