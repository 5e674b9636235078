//! What people may ask certificates for: hosts of a server, names of clients.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls::pki_types::DnsName;

use crate::error::{Error, ErrorKind, Result};
use crate::path::Escaped;

/// A host name (perhaps `*.` and a name) or an IP address that a server's certificate is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, in lower case, without a dot at its end.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = Error;

    fn from_str(text: &str) -> Result<Host> {
        let refused = |why: &str| {
            Error::new(
                ErrorKind::Usage,
                format!("`{}` is not a host for a certificate: {why}", Escaped(text.as_bytes())),
            )
        };
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Host::Address(address));
        }
        if !text.is_ascii() {
            return Err(refused("write it in its ASCII form (`xn--…`)"));
        }
        if text.contains(['/', ':', '%', '[', '@']) {
            return Err(refused("give the name or address alone, without scheme, port or zone"));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let (is_wildcard, plain) = match name.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, name.as_str()),
        };
        if is_wildcard && !plain.contains('.') {
            return Err(refused("a wildcard needs two more labels, as in `*.example.org`"));
        }
        if DnsName::try_from(plain).is_err() {
            return Err(refused("it is neither a host name nor an IP address"));
        }
        Ok(Host::Name(name))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(address) => address.fmt(f),
        }
    }
}

/// The name of a client: its common name and the stem of its files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientName(String);

impl ClientName {
    /// The name of the client that every folder has.
    pub const DEFAULT: &'static str = "client";

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ClientName {
    fn default() -> ClientName {
        ClientName(ClientName::DEFAULT.to_owned())
    }
}

impl FromStr for ClientName {
    type Err = Error;

    /// `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`; not the stem of another file of the folder, in whatever case.
    fn from_str(text: &str) -> Result<ClientName> {
        let refused = |why: &str| {
            Error::new(ErrorKind::Usage, format!("`{}` is not a name for a client: {why}", Escaped(text.as_bytes())))
        };
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        let begins_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !is_plain || !begins_well || text.len() > 64 {
            return Err(refused(
                "it takes 1 to 64 letters, digits, dots, underscores and hyphens, a letter or digit first",
            ));
        }
        let lower = text.to_ascii_lowercase();
        if ["ca", "server", "crl"].contains(&lower.as_str()) || lower.ends_with("-key") {
            return Err(refused("`ca`, `server`, `crl` and what ends in `-key` name other files"));
        }
        Ok(ClientName(text.to_owned()))
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("NAS.example.org.", Some("nas.example.org")),
            ("*.example.org", Some("*.example.org")),
            ("10.0.0.7", Some("10.0.0.7")),
            ("[fe80::1]", Some("fe80::1")),
            ("localhost", Some("localhost")),
            ("a_b", Some("a_b")),
            ("", None),
            ("*", None),
            ("*.org", None),
            ("a.*.org", None),
            ("nas:7443", None),
            ("sealift://nas", None),
            ("a b", None),
            ("ä.org", None),
            ("-a", None),
            ("1.2.3.4.5", None),
            ("fe80::1%eth0", None),
            ("a..b", None),
        ] {
            assert_eq!(text.parse::<Host>().ok().map(|host| host.to_string()).as_deref(), expected, "host {text:?}");
        }
    }

    #[test]
    fn client_names() {
        let long = "a".repeat(64);
        for good in ["alice", "a", "0", "Backup-2.host_x", "client", "key", "cab", &long] {
            assert!(good.parse::<ClientName>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(65);
        for bad in [
            "", ".", "-a", "_a", ".a", "a/b", "a b", "ä", "ca", "CA", "server", "crl", "x-key", "x-KEY", "a\n",
            &too_long,
        ] {
            assert!(bad.parse::<ClientName>().is_err(), "{bad:?}");
        }
    }
}
