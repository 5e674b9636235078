//! From what the TLS library reports to what a person is told: one sentence, what to do, and the right kind.
//!
//! In TLS 1.3 a client has finished its handshake before the server looks at its certificate, so a refusal reaches it
//! as an alert at its first read: whatever a client's first read gives goes through [`explain_client_error`] too.

use std::fmt;
use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible};
use time::OffsetDateTime;

use super::pin::Pin;
use super::{escaped, moment};
use crate::error::{Error, ErrorKind, kind_of_io};
use crate::path::{Escaped, escape_text};

/// The server proved a key, and it is not a pinned one.
#[derive(Clone, Copy, Debug)]
pub struct WrongPin {
    /// The pin of the key that the server has.
    pub found: Pin,
}

impl fmt::Display for WrongPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its key has the pin {}", self.found)
    }
}

impl std::error::Error for WrongPin {}

/// Whether a client refused a server because its key is another one than was pinned.
#[must_use]
pub fn is_wrong_pin(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|source| source.is::<WrongPin>())
}

/// What a client says when the handshake with `host`, or its first read after it, failed.
#[must_use]
pub fn explain_client_error(error: io::Error, host: &str) -> Error {
    let host = escape_text(host);
    match inner(&error) {
        Some(tls) => explain_to_client(tls, &host),
        None => {
            let kind = kind_of_io(&error);
            let what = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    return Error::new(kind, format!("{host} closed the connection before anything was agreed on"));
                }
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                    format!("the connection to {host} broke while it was being set up")
                }
                _ => format!("set up the connection to {host}"),
            };
            let kind = if kind == ErrorKind::Io { ErrorKind::Connection } else { kind };
            Error::new(kind, what).with_source(error)
        }
    }
}

/// What a server writes into its log when a handshake, or the first read after it, failed.
#[must_use]
pub fn explain_server_error(error: io::Error) -> Error {
    match inner(&error) {
        Some(tls) => explain_to_server(tls),
        None => {
            let kind = kind_of_io(&error);
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return Error::new(kind, "the client went away during the handshake");
            }
            let kind = if kind == ErrorKind::Io { ErrorKind::Connection } else { kind };
            Error::new(kind, "the connection broke during the handshake").with_source(error)
        }
    }
}

/// The library's error inside an I/O error, at whatever depth it was wrapped.
fn inner(error: &io::Error) -> Option<&rustls::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.get_ref().map(|error| error as _);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // `source` of an I/O error skips the error that it wraps.
        cause = match error.downcast_ref::<io::Error>() {
            Some(error) => error.get_ref().map(|error| error as _),
            None => error.source(),
        };
    }
    None
}

fn explain_to_client(error: &rustls::Error, host: &str) -> Error {
    use rustls::Error as E;
    match error {
        E::AlertReceived(alert) => alert_to_client(*alert, host),
        E::InvalidCertificate(reason) => refused_server(reason, host),
        E::NoCertificatesPresented => Error::new(ErrorKind::Trust, format!("{host} showed no certificate")),
        E::PeerIncompatible(
            PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => Error::new(ErrorKind::Version, format!("{host} does not speak TLS 1.3, and nothing older is used")),
        E::PeerIncompatible(_) => {
            Error::new(ErrorKind::Version, format!("{host} and this client have no kind of TLS in common"))
                .with_source(error.clone())
        }
        E::NoApplicationProtocol => no_protocol(host),
        E::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            Error::new(ErrorKind::Version, format!("what answers at {host} does not speak TLS: is the port right?"))
        }
        E::DecryptError => {
            let message = format!("what came from {host} is not what it sent: something on the way changes it");
            Error::new(ErrorKind::Connection, message)
        }
        E::InvalidMessage(_) | E::PeerMisbehaved(_) | E::PeerSentOversizedRecord => {
            Error::new(ErrorKind::Protocol, format!("{host} breaks the TLS protocol: {}", escaped(error)))
        }
        _ => Error::new(ErrorKind::Protocol, format!("the TLS handshake with {host} failed: {}", escaped(error))),
    }
}

fn alert_to_client(alert: AlertDescription, host: &str) -> Error {
    use AlertDescription as A;
    let ours = |why: &str| {
        Error::from_peer(ErrorKind::Trust, format!("{host} does not accept this client's certificate: {why}"))
    };
    match alert {
        A::CertificateRequired => Error::from_peer(
            ErrorKind::Trust,
            format!(
                "{host} wants a client certificate and none was given: use `--certs DIR` with what `sealift certs --export NAME --to DIR` wrote there, or `--cert` and `--key`"
            ),
        ),
        A::UnknownCA => ours(
            "it was not issued by the authority that the server trusts; ask whoever runs the server for one (`sealift certs --client NAME`)",
        ),
        A::CertificateExpired => ours(
            "it has expired, or is not valid yet; ask whoever runs the server for a new one, or check the clocks of both machines",
        ),
        A::CertificateRevoked => ours("it was revoked; ask whoever runs the server for another one"),
        A::UnsupportedCertificate => ours("it is not meant for clients (a server's certificate, for example)"),
        A::BadCertificate => ours("it is damaged, or of a form that the server does not take"),
        A::DecryptError => ours("the signature on it is not by the authority that the server trusts"),
        A::CertificateUnknown | A::CertificateUnobtainable | A::BadCertificateHashValue | A::AccessDenied => {
            ours("the reason is in the server's log")
        }
        A::BadCertificateStatusResponse => Error::from_peer(
            ErrorKind::Trust,
            format!(
                "{host} lets in no certificate at present, because its revocation list is past its date or does not fit: tell whoever runs the server"
            ),
        ),
        A::ProtocolVersion => {
            Error::from_peer(ErrorKind::Version, format!("{host} does not speak TLS 1.3, and nothing older is used"))
        }
        A::NoApplicationProtocol => no_protocol(host),
        A::HandshakeFailure | A::InsufficientSecurity => {
            Error::from_peer(ErrorKind::Version, format!("{host} and this client have no kind of TLS in common"))
        }
        A::UnrecognisedName => Error::from_peer(ErrorKind::Trust, format!("{host} has no certificate for that name")),
        A::BadRecordMac => {
            let message = format!("what came to {host} is not what was sent: something on the way changes it");
            Error::from_peer(ErrorKind::Connection, message)
        }
        A::InternalError | A::UserCanceled | A::CloseNotify => {
            Error::from_peer(ErrorKind::Connection, format!("{host} gave up the TLS handshake ({alert:?})"))
        }
        _ => Error::from_peer(ErrorKind::Protocol, format!("{host} refused the TLS handshake ({alert:?})")),
    }
}

fn no_protocol(host: &str) -> Error {
    Error::from_peer(
        ErrorKind::Version,
        format!("{host} is not a sealift server, or of a version that has no protocol in common with this client"),
    )
}

fn refused_server(reason: &CertificateError, host: &str) -> Error {
    use CertificateError as C;
    if let C::Other(other) = reason
        && let Some(wrong) = other.0.downcast_ref::<WrongPin>()
    {
        let text = format!(
            "{host} does not have the pinned key; unless whoever runs the server confirms the one it has, something else answers in its place"
        );
        return Error::new(ErrorKind::Trust, text).with_source(*wrong);
    }
    let text = match reason {
        C::NotValidForNameContext { presented, .. } => format!(
            "the certificate of {host} is for {}: use one of these names, have it made for this one too (`sealift certs --host {host}` there), or give `--pin` alone",
            names(presented)
        ),
        C::NotValidForName => format!("the certificate of {host} is for another name"),
        C::UnknownIssuer | C::BadSignature => format!(
            "the certificate of {host} was not issued by the authority given with `--ca` or `--certs`: take `ca.pem` from whoever runs the server"
        ),
        C::Expired | C::ExpiredContext { .. } => format!(
            "the certificate of {host} is not accepted: {}; it must be renewed there (`sealift certs`), if this machine's clock is right",
            why(reason)
        ),
        C::NotValidYet | C::NotValidYetContext { .. } => format!(
            "the certificate of {host} is not accepted: {}; check this machine's clock, and the server's",
            why(reason)
        ),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            format!("the certificate of {host} is not accepted: it is not meant for servers (a client's, for example)")
        }
        _ => format!("the certificate of {host} is not accepted: {}", why(reason)),
    };
    Error::new(ErrorKind::Trust, text)
}

fn explain_to_server(error: &rustls::Error) -> Error {
    use AlertDescription as A;
    use rustls::Error as E;
    match error {
        E::NoCertificatesPresented => Error::new(ErrorKind::Trust, "the client showed no certificate"),
        E::InvalidCertificate(reason) => {
            Error::new(ErrorKind::Trust, format!("the client's certificate is not accepted: {}", why(reason)))
        }
        E::AlertReceived(
            alert @ (A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError),
        ) => Error::from_peer(
            ErrorKind::Trust,
            format!("the client does not accept this server's certificate ({alert:?})"),
        ),
        E::AlertReceived(alert @ (A::ProtocolVersion | A::HandshakeFailure | A::NoApplicationProtocol)) => {
            Error::from_peer(ErrorKind::Version, format!("the client has no kind of TLS in common ({alert:?})"))
        }
        E::AlertReceived(alert) => {
            Error::from_peer(ErrorKind::Connection, format!("the client gave up the handshake ({alert:?})"))
        }
        E::NoApplicationProtocol => {
            Error::new(ErrorKind::Version, "the client speaks none of this server's protocols (ALPN)")
        }
        E::PeerIncompatible(_) => {
            Error::new(ErrorKind::Version, format!("the client has no kind of TLS in common: {}", escaped(error)))
        }
        E::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            Error::new(ErrorKind::Protocol, "the client does not speak TLS")
        }
        _ => Error::new(ErrorKind::Protocol, format!("the TLS handshake failed: {}", escaped(error))),
    }
}

/// Why a certificate is not accepted, about "it".
fn why(reason: &CertificateError) -> String {
    use CertificateError as C;
    let at = |time: &rustls::pki_types::UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        OffsetDateTime::from_unix_timestamp(seconds).map_or_else(|_| "a far day".to_owned(), moment)
    };
    match reason {
        C::ExpiredContext { not_after, .. } => format!("it expired on {}", at(not_after)),
        C::Expired => "it has expired".to_owned(),
        C::NotValidYetContext { not_before, .. } => format!("it is valid only from {}", at(not_before)),
        C::NotValidYet => "it is not valid yet".to_owned(),
        C::Revoked => "it was revoked".to_owned(),
        C::UnknownIssuer => "it was not issued by a trusted authority".to_owned(),
        C::BadSignature => "its signature is not by the authority that it names".to_owned(),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => "it is meant for another purpose".to_owned(),
        // Set by our own verifier, see `server::Verifier`.
        C::InvalidOcspResponse => "the revocation list is past its date or does not fit, so nobody's is".to_owned(),
        C::BadEncoding => "it is damaged".to_owned(),
        C::Other(other) => escape_text(&other.0.to_string()),
        _ => escape_text(&reason.to_string()),
    }
}

/// The names in a certificate; the library gives them as `DnsName("localhost")` and `IpAddress(127.0.0.1)`.
fn names(presented: &[String]) -> String {
    const SHOWN_MAX: usize = 8;
    let mut names: Vec<String> = presented
        .iter()
        .take(SHOWN_MAX)
        .map(|name| {
            let bare = name
                .strip_prefix("DnsName(\"")
                .and_then(|rest| rest.strip_suffix("\")"))
                .or_else(|| name.strip_prefix("IpAddress(").and_then(|rest| rest.strip_suffix(')')))
                .unwrap_or(name);
            // As people write it: `::1`, not `0::1`.
            let address = bare.parse::<std::net::IpAddr>().map(|address| address.to_string());
            Escaped(address.as_deref().unwrap_or(bare).as_bytes()).to_string()
        })
        .collect();
    if presented.len() > SHOWN_MAX {
        names.push("others".to_owned());
    }
    if names.is_empty() { "no host at all".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alert_has_a_kind_that_is_never_retried_when_it_is_about_certificates() {
        use AlertDescription as A;
        for (alert, kind) in [
            (A::CertificateRequired, ErrorKind::Trust),
            (A::UnknownCA, ErrorKind::Trust),
            (A::CertificateExpired, ErrorKind::Trust),
            (A::CertificateRevoked, ErrorKind::Trust),
            (A::BadCertificate, ErrorKind::Trust),
            (A::UnsupportedCertificate, ErrorKind::Trust),
            (A::CertificateUnknown, ErrorKind::Trust),
            (A::AccessDenied, ErrorKind::Trust),
            (A::DecryptError, ErrorKind::Trust),
            (A::BadCertificateStatusResponse, ErrorKind::Trust),
            (A::ProtocolVersion, ErrorKind::Version),
            (A::NoApplicationProtocol, ErrorKind::Version),
            (A::HandshakeFailure, ErrorKind::Version),
            (A::InternalError, ErrorKind::Connection),
            (A::UnexpectedMessage, ErrorKind::Protocol),
        ] {
            let error = explain_client_error(io::Error::other(rustls::Error::AlertReceived(alert)), "nas");
            assert_eq!(error.kind(), kind, "{alert:?}");
            assert!(error.to_string().contains("nas"), "{error}");
        }
    }

    #[test]
    fn wrapped_errors_are_found() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRevoked);
        let twice = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, alert));
        assert!(explain_client_error(twice, "nas").to_string().contains("revoked"));
    }

    #[test]
    fn a_broken_connection_may_be_tried_again() {
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof, io::ErrorKind::BrokenPipe] {
            let error = explain_client_error(io::Error::from(kind), "nas");
            assert_eq!(error.kind(), ErrorKind::Connection, "{kind}");
            assert!(error.kind().is_retryable());
        }
        assert_eq!(explain_server_error(io::Error::other("x")).kind(), ErrorKind::Connection);
    }

    #[test]
    fn names_of_a_hostile_certificate_are_escaped() {
        let shown = names(&["DnsName(\"a\u{1b}[31m\")".to_owned(), "IpAddress(127.0.0.1)".to_owned()]);
        assert_eq!(shown, "a\\x1b[31m, 127.0.0.1");
    }
}
