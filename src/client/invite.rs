//! Links of invites: `sealift://HOST:PORT/PATH#sl1.PIN.SECRET`, and what is asked of a server about them.
//!
//! A link is all that its receiver needs: where the server is, by which key it is known, and a secret. There is one
//! spelling of each: what differs in one bit from what was given is another link, or none.

use std::fmt;

use zeroize::{Zeroize as _, Zeroizing};

use crate::client::Client;
use crate::client::remote::{Endpoint, INVITE, contains_invite};
use crate::client::session::Reply;
use crate::error::{Error, ErrorKind, Result};
use crate::path::{Escaped, RemotePath};
use crate::protocol::{
    Bytes16, Invite, InviteFacts, InviteId, InviteKind, InviteSecret, Invited, ListInvites, RevokeInvite, Ticket,
};
use crate::tls::Pin;

/// Bytes of a link: a path of 4 KiB, a host and what follows. Longer: none.
const LINK_LEN_MAX: usize = 8 * 1024;

/// How every link begins.
const SCHEME: &str = "sealift://";

/// A link. It has no `Debug`; the secret in it is overwritten when it is dropped.
pub struct Link {
    /// The server.
    pub endpoint: Endpoint,
    /// The directory, as whoever gave the link calls it. For its receiver it is `/`.
    pub path: RemotePath,
    /// The server's key.
    pub pin: Pin,
    secret: InviteSecret,
}

impl Link {
    /// A new link, with a secret that nobody knows.
    ///
    /// # Errors
    /// `Usage` for a path that a link of one line cannot have; `Internal` when the system has no random bytes.
    pub fn generate(endpoint: Endpoint, path: RemotePath, pin: Pin) -> Result<Link> {
        let text = path.to_bytes();
        let is_plain = std::str::from_utf8(&text).is_ok_and(|text| !text.chars().any(char::is_control));
        if !is_plain || contains_invite(&text) {
            let message = format!(
                "`{path}` cannot stand in a link: give the directory a name of plain text without control characters"
            );
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret)
            .map_err(|error| Error::new(ErrorKind::Internal, "get random bytes from the system").with_source(error))?;
        Ok(Link { endpoint, path, pin, secret: InviteSecret::new(secret) })
    }

    /// Reads a link, which must be spelled as [`Link::to_text`] does. No message repeats it.
    ///
    /// # Errors
    /// `Usage`.
    pub fn parse(bytes: &[u8]) -> Result<Link> {
        let refused = || {
            Error::new(
                ErrorKind::Usage,
                "that is not a whole link of an invite: it must be exactly as it was given, from `sealift://` to its \
                 last character",
            )
        };
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= LINK_LEN_MAX).ok_or_else(refused)?;
        let (place, rest) = text.rsplit_once(INVITE).ok_or_else(refused)?;
        let (pin, secret) = rest.split_once('.').ok_or_else(refused)?;
        let (host, path) = place.strip_prefix(SCHEME).and_then(|place| place.split_once('/')).ok_or_else(refused)?;
        let link = Link {
            endpoint: Endpoint::parse(host.as_bytes()).map_err(|_| refused())?,
            path: RemotePath::parse(path.as_bytes()).map_err(|_| refused())?,
            pin: format!("sha256:{pin}").parse().map_err(|_| refused())?,
            secret: InviteSecret::from_text(secret).ok_or_else(refused)?,
        };
        if *link.to_text() == *text { Ok(link) } else { Err(refused()) }
    }

    /// The link, on one line.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let host = self.endpoint.host();
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let path = self.path.to_bytes();
        let pin = self.pin.to_string();
        let (port, path, pin) = (self.endpoint.port(), String::from_utf8_lossy(&path), &pin["sha256:".len()..]);
        let mut secret = self.secret.to_text();
        let mut text = Zeroizing::new(String::with_capacity(host.len() + path.len() + 128));
        for part in [SCHEME, &*host, ":", &*port.to_string(), "/", &*path, INVITE, pin, ".", &**secret] {
            text.push_str(part);
        }
        secret.zeroize();
        text
    }

    /// What redeems it.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.secret.ticket(&self.path)
    }

    /// By what the server names the invite: no secret.
    #[must_use]
    pub fn id(&self) -> InviteId {
        self.ticket().verifier().id()
    }
}

/// What a client redeems in one run of a command. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Redemption {
    /// What redeems the invite.
    pub ticket: Ticket,
    /// The number of the run: random, and the same on each of its connections.
    pub run: Bytes16,
}

impl fmt::Debug for Redemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redemption(…)")
    }
}

/// What an invite is to be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InviteTerms {
    /// What for.
    pub kind: InviteKind,
    /// For how many seconds.
    pub seconds: u64,
    /// For how many runs.
    pub uses: u32,
    /// Bytes of content over all of them; none: as many as there may be.
    pub max_size: Option<u64>,
}

impl Client {
    /// Whether the server gives and takes invites.
    ///
    /// # Errors
    /// `Unsupported`, with what to do; what connecting can fail with.
    async fn check_invites(&self) -> Result<()> {
        if self.session().await?.hello().invites == Some(true) {
            return Ok(());
        }
        let message =
            format!("{} gives no invites: it would be started with `sealift serve --invites`", self.server_name());
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    /// Has the server know the link: from then on it can be redeemed.
    ///
    /// # Errors
    /// `Rights`, `Limit`, `Unsupported`, `NotFound` and `NotDirectory`.
    pub async fn invite(&self, link: &Link, terms: InviteTerms) -> Result<Invited> {
        self.check_invites().await?;
        let InviteTerms { kind, seconds, uses, max_size } = terms;
        let verifier = link.ticket().verifier().into();
        let request = Invite { path: link.path.clone(), kind, verifier, seconds, uses, max_size };
        match self.request(&request).await? {
            (Reply::Invited(invited), _) => Ok(invited),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// The invites to what is at or below a place, as far as we may share that.
    ///
    /// # Errors
    /// `Rights`, `Unsupported`; `Protocol` for a list without an end.
    pub async fn invites(&self, path: &RemotePath) -> Result<Vec<InviteFacts>> {
        self.check_invites().await?;
        let mut all: Vec<InviteFacts> = Vec::new();
        loop {
            let after = all.last().map(|facts| facts.id);
            let page = match self.request(&ListInvites { path: path.clone(), after }).await? {
                (Reply::Invites(page), _) => page,
                (other, session) => return Err(session.unexpected(&other)),
            };
            let is_ascending = page
                .invites
                .0
                .iter()
                .map(|facts| facts.id)
                .chain([])
                .fold((true, after), |(is_ascending, before), id| {
                    (is_ascending && before.is_none_or(|before| before < id), Some(id))
                });
            if !is_ascending.0 || page.more && page.invites.0.is_empty() {
                return Err(Error::new(ErrorKind::Protocol, "the server lists invites without end"));
            }
            all.extend(page.invites.0);
            if !page.more {
                return Ok(all);
            }
        }
    }

    /// Takes an invite back, and ends what runs by it.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported`.
    pub async fn revoke_invite(&self, id: InviteId) -> Result<()> {
        self.check_invites().await?;
        match self.request(&RevokeInvite { id }).await? {
            (Reply::Done(_), _) => Ok(()),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// The server's key, as it proved itself on the connection that there is.
    pub async fn pin(&self) -> Option<Pin> {
        self.session().await.ok()?.pin()
    }

    /// Whether the server is at an address that only its neighbours can reach.
    pub async fn is_private(&self) -> bool {
        use std::net::IpAddr;
        let Some(address) = self.session().await.ok().and_then(|session| session.address()) else { return false };
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => {
                let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
                ip.is_private() || ip.is_loopback() || ip.is_link_local() || is_shared
            }
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        }
    }
}

/// A link is never shown by mistake; what it leads to may be.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sealift://{}/{}", self.endpoint, Escaped(&self.path.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(endpoint: &str, path: &str) -> Link {
        let pin = Pin::from([7; 32]);
        Link::generate(endpoint.parse().unwrap(), RemotePath::parse(path.as_bytes()).unwrap(), pin).unwrap()
    }

    #[test]
    fn a_link_goes_round() {
        for (endpoint, path, shown) in [
            ("nas", "in/bob", "sealift://nas:7443/in/bob#sl1."),
            ("nas.example.org:1", "", "sealift://nas.example.org:1/#sl1."),
            ("[2001:db8::1]", "a b/ü", "sealift://[2001:db8::1]:7443/a b/ü#sl1."),
            ("192.0.2.1:65535", "a#b", "sealift://192.0.2.1:65535/a#b#sl1."),
        ] {
            let link = link(endpoint, path);
            let text = link.to_text();
            assert!(text.starts_with(shown) && text.lines().count() == 1, "{}", *text);
            let again = Link::parse(text.as_bytes()).unwrap();
            assert_eq!((&again.endpoint, &again.path, again.pin), (&link.endpoint, &link.path, link.pin));
            assert_eq!(again.ticket(), link.ticket());
            assert!(!format!("{link}").contains("sl1"), "shown by mistake");
        }
    }

    #[test]
    fn what_is_not_exactly_a_link_is_none() {
        let text = link("nas", "in").to_text();
        let (before, secret) = text.rsplit_once('.').unwrap();
        for (wrong, why) in [
            (text.replace("sealift://", "SEALIFT://"), "another spelling of the scheme"),
            (text.replace("sealift://", ""), "no scheme"),
            (text.replace("nas", "Nas"), "another spelling of the host"),
            (text.replace(":7443", ""), "no port"),
            (text.replace(":7443", ":07443"), "another spelling of the port"),
            (text.replace("/in#", "//in#"), "another spelling of the path"),
            (text.replace("/in#", "/in/#"), "the same"),
            (text.replace("/in#", "/./in#"), "the same"),
            (text.replace("#sl1.", "#sl2."), "another version"),
            (text.replace("#sl1.", ".sl1."), "no mark"),
            (before.to_owned(), "no secret"),
            (format!("{before}."), "an empty secret"),
            (format!("{}=", *text), "longer"),
            (format!("{} ", *text), "longer"),
            (format!("{}\n", *text), "longer"),
            (format!("{}.x", *text), "a part more"),
            (text[..text.len() - 1].to_owned(), "cut"),
            (format!("{before}.{secret}{secret}"), "twice"),
            (format!("sealift://u@nas:7443/in#{}", text.split_once('#').unwrap().1), "a user"),
            ("sealift://nas:7443/in".to_owned(), "no invite"),
            (String::new(), "nothing"),
        ] {
            let error = Link::parse(wrong.as_bytes()).map(drop).expect_err(why);
            assert_eq!(error.kind(), ErrorKind::Usage, "{why}");
            assert!(!error.chain().contains(secret), "{why}: repeated");
        }
        assert!(Link::parse(&[0xff; 10]).is_err());
        assert!(Link::parse(&[b'x'; 9000]).is_err());
    }

    #[test]
    fn every_flipped_bit_is_another_link_or_none() {
        let link = link("nas.example.org", "in/bob");
        let text = link.to_text();
        let mut kinds = [0; 4];
        for bit in 0..text.len() * 8 {
            let mut bytes = text.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let kind = match Link::parse(&bytes) {
                Err(_) => 0,
                Ok(other) if other.endpoint != link.endpoint => 1,
                Ok(other) if other.pin != link.pin => 2,
                // The path and the secret make the ticket.
                Ok(other) => {
                    assert!(other.ticket().verifier() != link.ticket().verifier(), "bit {bit} changes nothing");
                    3
                }
            };
            kinds[kind] += 1;
        }
        assert!(kinds.iter().all(|&count| count > 20), "{kinds:?}");
    }

    #[test]
    fn names_that_no_link_can_have_are_refused() {
        for path in ["a\nb", "a\u{1b}b", "x#sl1.y"] {
            let path = RemotePath::parse(path.as_bytes()).unwrap();
            let made = Link::generate("nas".parse().unwrap(), path, Pin::from([7; 32]));
            assert!(made.is_err_and(|error| error.kind() == ErrorKind::Usage));
        }
    }
}
