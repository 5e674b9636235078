//! Who the two sides are: TLS 1.3 configurations, pins, principals, and the making of certificates.
//!
//! Invariants: TLS 1.3 only, by the aws-lc-rs provider, named explicitly everywhere; X25519MLKEM768 is the first
//! key exchange; sessions are never resumed and early data is never taken (a resumed session would copy the client's
//! chain without verifying it again). Verification cannot be turned off: a client needs an authority or a pin.
//!
//! Read next: [`server`] and [`client`] for the two configurations, [`explain`] for what people are told when they do
//! not match, [`folder`] for what `sealift certs` does.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::CommonState;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{DnsName, ServerName};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::error::{Error, ErrorKind, Result};
use crate::path::{Escaped, escape_text};

pub mod certificates;
pub mod client;
pub mod explain;
pub mod folder;
mod issued;
pub mod look;
pub mod names;
pub mod pem;
pub mod pin;
pub mod principal;
pub mod server;
pub mod signing;
pub mod x509;

pub use client::{ClientOptions, ClientTls};
pub use explain::{explain_client_error, explain_server_error, is_wrong_pin};
pub use pin::Pin;
pub use principal::Principal;
pub use server::{ServerOptions, ServerTls};
pub use signing::{Purpose, SigningKey, VerifyingKey};

pub use crate::protocol::ALPN;

/// What both sides use: AES-256 first (the fastest where the processor has AES), the hybrid key exchange first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::{cipher_suite, kx_group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    })
}

/// The name that a server's certificate must hold: a host name or an IP address (also in brackets), without a port.
///
/// # Errors
/// [`ErrorKind::Usage`] when it is neither.
pub fn server_name(host: &str) -> Result<ServerName<'static>> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(address.into()));
    }
    DnsName::try_from(bare.to_owned()).map(ServerName::DnsName).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("`{}` is neither a host name nor an IP address", Escaped(host.as_bytes())))
    })
}

/// Checks, after a handshake, that both sides mean [`ALPN`]. A peer that names only other protocols is refused in the
/// handshake itself (alert 120); one that names none gets through it and must be refused here.
///
/// # Errors
/// [`ErrorKind::Version`] when another protocol was agreed on, or none.
pub fn require_native(connection: &CommonState) -> Result<()> {
    match connection.alpn_protocol() {
        Some(protocol) if protocol == ALPN => Ok(()),
        Some(other) => {
            Err(Error::new(ErrorKind::Version, format!("the other side speaks `{}` and not sealift/1", Escaped(other))))
        }
        None => Err(Error::new(
            ErrorKind::Version,
            "the other side named no protocol in the TLS handshake (ALPN): it is not sealift, or another version",
        )),
    }
}

/// What was negotiated, for `--verbose` and logs, as `TLS 1.3, X25519MLKEM768, TLS13_AES_256_GCM_SHA384`.
#[must_use]
pub fn describe(connection: &CommonState) -> String {
    let group = connection.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()));
    let suite = connection.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
    format!("TLS 1.3, {}, {}", group.as_deref().unwrap_or("?"), suite.as_deref().unwrap_or("?"))
}

/// A moment as people read it, in UTC and to the minute.
pub(crate) fn moment(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    time.to_offset(time::UtcOffset::UTC).format(&format).unwrap_or_else(|_| time.unix_timestamp().to_string())
}

/// A day as people read it, in UTC.
pub(crate) fn day(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]");
    time.to_offset(time::UtcOffset::UTC).format(&format).unwrap_or_else(|_| time.unix_timestamp().to_string())
}

/// A library's sentence about something that a peer sent, fit for a log or a terminal.
fn escaped(error: &impl std::fmt::Display) -> String {
    escape_text(&error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_servers() {
        for (host, expected) in [
            ("localhost", Some("localhost")),
            ("a_b.example.org", Some("a_b.example.org")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("", None),
            ("a b", None),
            ("a:7443", None),
            ("ä.example.org", None),
        ] {
            let got = server_name(host).ok().map(|name| name.to_str().into_owned());
            assert_eq!(got.as_deref(), expected, "host {host:?}");
        }
    }

    #[test]
    fn the_provider_prefers_what_the_design_says() {
        let provider = provider();
        assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(provider.cipher_suites[0].suite(), rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
    }
}
