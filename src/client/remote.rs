//! What an argument names: something on a server, something here, or a stream.
//!
//! A remote is `sealift://HOST[:PORT]/PATH` or `NAME:PATH`; `-` is a stream; everything else is a local file. What
//! looks like a remote is one or an error, never a local file: `./a:b` is how such a file is written. PATH is
//! literal: nothing is decoded. [`crate::client::plan`] says what the names mean together.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};
use crate::path::{Escaped, NameError, RemotePath};
use crate::protocol::DEFAULT_PORT;

/// How every remote of this form begins.
const SCHEME: &[u8] = b"sealift://";

/// What marks an invite.
pub(crate) const INVITE: &str = "#sl1.";

/// A server's address as it was written: a host name or an IP address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// Parses `HOST[:PORT]`; an IPv6 address stands in brackets.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] with the rule that is broken.
    pub fn parse(text: &[u8]) -> Result<Endpoint> {
        let text = std::str::from_utf8(text)
            .ok()
            .filter(|text| text.is_ascii())
            .ok_or_else(|| usage(format!("host `{}`: write it in its ASCII form (xn--…)", Escaped(text))))?;
        if text.contains('@') {
            return Err(usage("a remote has no user in it: who connects is told by the certificate (--certs)"));
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, after) =
                rest.split_once(']').ok_or_else(|| usage(format!("host `{}`: no closing `]`", shown(text))))?;
            let address: Ipv6Addr = address
                .parse()
                .map_err(|error| usage(format!("host `{}`: not an IPv6 address", shown(text))).with_source(error))?;
            let port = match after.strip_prefix(':') {
                Some(port) => Some(port),
                None if after.is_empty() => None,
                None => return Err(usage(format!("host `{}`: only `:PORT` may follow `]`", shown(text)))),
            };
            (address.to_string(), port)
        } else {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            if port.is_some_and(|port| port.contains(':')) {
                return Err(usage(format!(
                    "host `{}`: an IPv6 address stands in brackets, as in sealift://[::1]:7443/",
                    shown(text)
                )));
            }
            check_host(host)?;
            (host.to_ascii_lowercase(), port)
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => parse_port(port)
                .ok_or_else(|| usage(format!("host `{}`: the port must be a number from 1 to 65535", shown(text))))?,
        };
        Ok(Endpoint { host, port })
    }

    /// The host name or IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl std::str::FromStr for Endpoint {
    type Err = Error;

    /// As [`Endpoint::parse`].
    fn from_str(text: &str) -> Result<Endpoint> {
        Endpoint::parse(text.as_bytes())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        if self.port == DEFAULT_PORT { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

fn parse_port(text: &str) -> Option<u16> {
    // `u16::from_str` takes a sign.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|&port| port != 0)
}

fn check_host(host: &str) -> Result<()> {
    if host.is_empty() {
        return Err(usage("a remote needs a host: sealift://HOST[:PORT]/PATH"));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // A name whose last label is a number would be taken for an address by some resolvers (`127.1`).
    let is_numeric = name.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    if name.len() > 253 || !name.split('.').all(is_label) || (is_numeric && name.parse::<Ipv4Addr>().is_err()) {
        return Err(usage(format!("`{}` is neither a host name nor an address", shown(host))));
    }
    Ok(())
}

/// How a path was written at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a name.
    Name,
    /// With a slash, or the path is empty.
    Slash,
    /// With `.` or `..`: it means a directory, and names none.
    Dots,
}

/// Something on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The server.
    pub endpoint: Endpoint,
    /// What it is there; a `..` at the end is already resolved.
    pub path: RemotePath,
    /// How the path was written at its end.
    pub ending: Ending,
}

impl Remote {
    /// Whether, as a destination, it is a directory to put things into.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.ending != Ending::Name
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sealift://{}/", self.endpoint)?;
        if self.path.is_root() {
            return Ok(());
        }
        self.path.fmt(f)?;
        f.write_str(if self.is_directory() { "/" } else { "" })
    }
}

/// What an argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Something on a server.
    Remote(Remote),
    /// A file or directory here.
    Local(PathBuf),
    /// `-`: standard input or output.
    Stream,
}

impl Location {
    /// Says what `argument` names. Nothing is looked at on disk, the configuration neither: a `NAME:PATH` that was
    /// not made whole by [`split_name`] and [`named`] before is unknown here.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a malformed remote, an unknown NAME and an invite.
    pub fn parse(argument: &OsStr) -> Result<Location> {
        let bytes = argument.as_bytes();
        if bytes == b"-" {
            return Ok(Location::Stream);
        }
        if is_url(argument) {
            return parse_url(&bytes[SCHEME.len()..]).map(Location::Remote);
        }
        match configured_name(bytes) {
            Some(name) => Err(unknown_name(name, bytes)),
            None => Ok(Location::Local(PathBuf::from(argument))),
        }
    }
}

/// Whether this can stand before the colon of `NAME:PATH`: `^[A-Za-z][A-Za-z0-9_-]+$`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// The NAME of an argument that is written `NAME:PATH`.
fn configured_name(bytes: &[u8]) -> Option<&str> {
    let colon = bytes.iter().position(|&byte| byte == b':')?;
    std::str::from_utf8(&bytes[..colon]).ok().filter(|name| is_name(name))
}

/// The two parts of an argument that is written `NAME:PATH`; nothing for every other one, `sealift://…` included.
/// Whoever knows what NAME stands for makes a whole remote of them by [`named`].
#[must_use]
pub fn split_name(argument: &OsStr) -> Option<(&str, &OsStr)> {
    let bytes = argument.as_bytes();
    if is_url(argument) {
        return None;
    }
    let name = configured_name(bytes)?;
    Some((name, OsStr::from_bytes(&bytes[name.len() + 1..])))
}

/// Whether an argument is written `sealift://…`.
#[must_use]
pub fn is_url(argument: &OsStr) -> bool {
    let bytes = argument.as_bytes();
    bytes.len() >= SCHEME.len() && bytes[..SCHEME.len()].eq_ignore_ascii_case(SCHEME)
}

/// The argument `sealift://…` for a path on this server. `x` and `/x` are the same.
#[must_use]
pub fn named(endpoint: &Endpoint, path: &OsStr) -> OsString {
    let mut whole = OsString::from(format!("sealift://{endpoint}/"));
    whole.push(path);
    whole
}

fn unknown_name(name: &str, argument: &[u8]) -> Error {
    if contains_invite(argument) {
        return invite();
    }
    let hint = if argument[name.len() + 1..].starts_with(b"//") {
        "only sealift://HOST[:PORT]/PATH is spoken".to_owned()
    } else {
        format!("write sealift://HOST[:PORT]/PATH, or ./{} for a local file", Escaped(argument))
    };
    usage(format!("no remote is configured as `{name}`; {hint}"))
}

fn parse_url(rest: &[u8]) -> Result<Remote> {
    // The text of an invite is a secret: it is not repeated.
    if contains_invite(rest) {
        return Err(invite());
    }
    let slash = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    let endpoint = Endpoint::parse(&rest[..slash])?;
    let (path, ending) = parse_path(&rest[slash..])
        .map_err(|problem| usage(format!("remote path `{}`: {problem}", Escaped(&rest[slash..]))))?;
    Ok(Remote { endpoint, path, ending })
}

fn invite() -> Error {
    usage(
        "the link of an invite (#sl1.…) has no place here: it may be the destination of put, or what get, ls and stat \
         name, alone",
    )
}

/// Whether something is marked as the link of an invite.
pub(crate) fn contains_invite(bytes: &[u8]) -> bool {
    bytes.windows(INVITE.len()).any(|window| window == INVITE.as_bytes())
}

/// A path as a person writes it. Doubled slashes and `.` mean nothing. `..` at the end is resolved by the text, which
/// is exact because no server walks links; anywhere else it is refused.
fn parse_path(text: &[u8]) -> Result<(RemotePath, Ending), PathProblem> {
    let last = text.split(|&byte| byte == b'/').rfind(|part| !part.is_empty());
    let ending = match last {
        Some(b"." | b"..") => Ending::Dots,
        Some(_) if text.last() != Some(&b'/') => Ending::Name,
        _ => Ending::Slash,
    };
    let parts: Vec<&[u8]> = text.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let ups = parts.iter().rev().take_while(|part| **part == b"..").count();
    let named = &parts[..parts.len() - ups];
    if named.contains(&&b".."[..]) {
        return Err(PathProblem::Winding);
    }
    let kept = named.len().checked_sub(ups).ok_or(PathProblem::AboveRoot)?;
    let path = RemotePath::from_components(named[..kept].iter().copied()).map_err(PathProblem::Name)?;
    Ok((path, ending))
}

enum PathProblem {
    AboveRoot,
    Winding,
    Name(NameError),
}

impl fmt::Display for PathProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathProblem::AboveRoot => f.write_str("it leads above the served root, where nothing can be reached"),
            PathProblem::Winding => f.write_str("`..` may only stand at the end"),
            PathProblem::Name(error) => error.fmt(f),
        }
    }
}

fn shown(text: &str) -> Escaped<'_> {
    Escaped(text.as_bytes())
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn remote(text: &[u8]) -> Remote {
        match Location::parse(OsStr::from_bytes(text)) {
            Ok(Location::Remote(remote)) => remote,
            other => panic!("{}: expected a remote, got {other:?}", Escaped(text)),
        }
    }

    #[track_caller]
    fn check(text: &str, host: &str, port: u16, path: &str, ending: Ending) {
        let remote = remote(text.as_bytes());
        let got = (remote.endpoint.host(), remote.endpoint.port(), remote.path.to_bytes(), remote.ending);
        assert_eq!(got, (host, port, path.as_bytes().to_vec(), ending), "{text}");
    }

    #[track_caller]
    fn check_refused(text: &[u8], why: &str) {
        match Location::parse(OsStr::from_bytes(text)) {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Usage, "{}", Escaped(text));
                assert!(error.chain().contains(why), "{}: expected `{why}`, got `{}`", Escaped(text), error.chain());
            }
            Ok(other) => panic!("{}: expected a refusal, got {other:?}", Escaped(text)),
        }
    }

    #[track_caller]
    fn check_local(text: &[u8]) {
        let path = PathBuf::from(OsStr::from_bytes(text));
        assert_eq!(Location::parse(path.as_os_str()).unwrap(), Location::Local(path.clone()), "{}", Escaped(text));
    }

    #[test]
    fn addresses_are_parsed() {
        check("sealift://nas/y", "nas", 7443, "y", Ending::Name);
        check("SEALIFT://Nas.Example.ORG:9/y", "nas.example.org", 9, "y", Ending::Name);
        check("sealift://127.0.0.1:1/y", "127.0.0.1", 1, "y", Ending::Name);
        check("sealift://[::1]/y", "::1", 7443, "y", Ending::Name);
        check("sealift://[2001:db8:0::1]:65535/y", "2001:db8::1", 65535, "y", Ending::Name);
        check("sealift://my_host-1.lan./y", "my_host-1.lan.", 7443, "y", Ending::Name);
    }

    #[test]
    fn endings_are_kept() {
        for (text, path, ending) in [
            ("sealift://h", "", Ending::Slash),
            ("sealift://h/", "", Ending::Slash),
            ("sealift://h//", "", Ending::Slash),
            ("sealift://h/in", "in", Ending::Name),
            ("sealift://h/in/", "in", Ending::Slash),
            ("sealift://h//in//x", "in/x", Ending::Name),
            ("sealift://h/.", "", Ending::Dots),
            ("sealift://h/in/.", "in", Ending::Dots),
            ("sealift://h/in/./", "in", Ending::Dots),
            ("sealift://h/in/x/..", "in", Ending::Dots),
            ("sealift://h/in/x/../", "in", Ending::Dots),
            ("sealift://h/a/b/c/../..", "a", Ending::Dots),
            ("sealift://h/a/..", "", Ending::Dots),
            ("sealift://h/...", "...", Ending::Name),
        ] {
            check(text, "h", 7443, path, ending);
        }
    }

    #[test]
    fn paths_are_literal() {
        for name in ["%2e%2e", "a#b", "a?b", "a:b", "C:x", "~", "a\\b", "a b", "x@y", "#sl2.x", "ü"] {
            check(&format!("sealift://h/{name}"), "h", 7443, name, Ending::Name);
        }
        assert_eq!(remote(b"sealift://h/\xff\n").path.to_bytes(), b"\xff\n");
    }

    #[test]
    fn nothing_leads_above_the_root() {
        for text in ["sealift://h/..", "sealift://h/../", "sealift://h/a/../..", "sealift://h/./.."] {
            check_refused(text.as_bytes(), "above the served root");
        }
        for text in ["sealift://h/../x", "sealift://h/a/../b", "sealift://h/a/../b/..", "sealift://h/a/../b/../.."] {
            check_refused(text.as_bytes(), "only stand at the end");
        }
    }

    #[test]
    fn malformed_remotes_are_refused() {
        check_refused(b"sealift://", "needs a host");
        check_refused(b"sealift:///x", "needs a host");
        check_refused(b"sealift://:7/x", "needs a host");
        check_refused(b"sealift://h:/x", "port");
        check_refused(b"sealift://h:0/x", "port");
        check_refused(b"sealift://h:+7/x", "port");
        check_refused(b"sealift://h:65536/x", "port");
        check_refused(b"sealift://::1/x", "brackets");
        check_refused(b"sealift://[::1/x", "closing");
        check_refused(b"sealift://[::1]7/x", "may follow");
        check_refused(b"sealift://[nas]/x", "not an IPv6 address");
        check_refused(b"sealift://127.1/x", "neither");
        check_refused(b"sealift://1234/x", "neither");
        check_refused(b"sealift://a..b/x", "neither");
        check_refused(b"sealift://h#x/y", "neither");
        check_refused(b"sealift://h?x", "neither");
        check_refused("sealift://bücher/x".as_bytes(), "ASCII");
        check_refused(b"sealift://\xff/x", "ASCII");
        check_refused(b"sealift://h/a\0b", "NUL");
        check_refused(format!("sealift://h/{}", "x".repeat(256)).as_bytes(), "longer than 255");
    }

    #[test]
    fn user_information_and_invites_are_refused_without_being_repeated() {
        check_refused(b"sealift://user:secret@h/x", "no user");
        check_refused(b"sealift://h/#sl1.topsecret", "no place here");
        check_refused(b"sealift://h#sl1.topsecret", "no place here");
        check_refused(b"nas:#sl1.topsecret", "no place here");
        for text in ["sealift://user:secret@h/x", "sealift://h/#sl1.secret", "nas:#sl1.secret"] {
            let error = Location::parse(OsStr::new(text)).unwrap_err();
            assert!(!error.chain().contains("secret"), "{}", error.chain());
        }
    }

    #[test]
    fn a_name_is_never_a_local_file() {
        for text in ["nas:", "nas:x", "nas:/x", "a1:b", "my-nas_2:x/y", "sealift:/x", "sealift:x"] {
            check_refused(text.as_bytes(), "no remote is configured as");
        }
        check_refused(b"nas:x", "./nas:x");
        check_refused(b"https://h/x", "only sealift://");
    }

    #[test]
    fn everything_else_is_local() {
        let plain: [&[u8]; 12] =
            [b"x", b"", b".", b"./a:b", b"C:x", b"1nas:x", b"a/b:c", b"a.b:c", b"u@h:c", b"./-", b"\xff:x", b"--"];
        for text in plain {
            check_local(text);
        }
        assert_eq!(Location::parse(OsStr::new("-")).unwrap(), Location::Stream);
    }

    #[test]
    fn what_is_shown_can_be_written() {
        for text in ["sealift://h/", "sealift://h/in/", "sealift://h:1/in/x", "sealift://[::1]/x"] {
            assert_eq!(remote(text.as_bytes()).to_string(), text);
        }
    }
}
