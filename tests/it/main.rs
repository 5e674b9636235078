//! All end-to-end tests.

mod certs;
mod tls;
