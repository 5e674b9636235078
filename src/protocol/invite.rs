//! What an invite's link carries, what its holder shows, and what a server keeps of it: three values, each made of
//! the one before, none of which leads back.
//!
//! - The [`InviteSecret`] is 32 random bytes in the link. It never leaves the machines of who gave and who got it.
//! - The [`Ticket`] is a hash of the secret and the link's path, so that a link with another path is another link. It
//!   is what a client shows in its hello, inside TLS, to the server that the link names by its key.
//! - The [`Verifier`] is a hash of the ticket. It is all that a server keeps, and who reads it can redeem nothing.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use minicbor::decode::{Decode, Decoder, Error};
use minicbor::encode::{self, Encode, Encoder, Write};
use zeroize::Zeroizing;

use super::wire::{Bytes32, InviteId};
use crate::path::RemotePath;

/// Characters of a secret in a link.
pub const SECRET_TEXT_LEN: usize = 43;

/// What the ticket is a hash of, beside the secret, which is its key: this, and the path.
const TICKET_CONTEXT: &[u8] = b"sealift invite 1\0";
/// The context of the verifier (BLAKE3's `derive_key`).
const VERIFIER_CONTEXT: &str = "sealift 2026-11 invite verifier";

/// The secret of a link. It has no `Debug`, and is overwritten when it is dropped.
pub struct InviteSecret(Zeroizing<[u8; 32]>);

impl InviteSecret {
    /// A secret of these bytes, which are random.
    #[must_use]
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> InviteSecret {
        InviteSecret(bytes)
    }

    /// A secret as it stands in a link. There is one spelling of each.
    #[must_use]
    pub fn from_text(text: &str) -> Option<InviteSecret> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        let mut secret = Zeroizing::new([0; 32]);
        if bytes.len() != secret.len() {
            return None;
        }
        secret.copy_from_slice(&bytes);
        Some(InviteSecret(secret))
    }

    /// How it stands in a link.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.0))
    }

    /// What is shown to the server by who holds this secret in a link to this path.
    #[must_use]
    pub fn ticket(&self, path: &RemotePath) -> Ticket {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(TICKET_CONTEXT).update(&path.to_bytes());
        Ticket(Zeroizing::new(*hasher.finalize().as_bytes()))
    }
}

/// What a client shows to redeem an invite. Its `Debug` shows nothing, and it is overwritten when it is dropped.
#[derive(Clone)]
pub struct Ticket(Zeroizing<[u8; 32]>);

impl Ticket {
    /// A ticket of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Ticket {
        Ticket(Zeroizing::new(bytes))
    }

    /// What a server knows it by.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier(blake3::derive_key(VERIFIER_CONTEXT, &*self.0))
    }
}

impl PartialEq for Ticket {
    /// By what is no secret, so that it takes no care how long it takes.
    fn eq(&self, other: &Ticket) -> bool {
        self.verifier() == other.verifier()
    }
}

impl Eq for Ticket {}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

impl<C> Encode<C> for Ticket {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&*self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Ticket {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Ticket, Error> {
        let bytes = d.bytes()?.try_into().map_err(|_| Error::message("a byte string of another length"))?;
        Ok(Ticket::new(bytes))
    }
}

/// What a server keeps of an invite's ticket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verifier(pub [u8; 32]);

impl Verifier {
    /// By what people and logs name the invite: no secret.
    #[must_use]
    pub fn id(&self) -> InviteId {
        let mut id = [0; 8];
        id.copy_from_slice(&self.0[..8]);
        InviteId(id)
    }
}

impl From<Verifier> for Bytes32 {
    fn from(verifier: Verifier) -> Bytes32 {
        Bytes32(verifier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> InviteSecret {
        InviteSecret::new(Zeroizing::new([byte; 32]))
    }

    fn path(text: &str) -> RemotePath {
        RemotePath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_secret_has_one_spelling() {
        let text = secret(7).to_text();
        assert_eq!(text.len(), SECRET_TEXT_LEN);
        assert!(*InviteSecret::from_text(&text).unwrap().0 == [7; 32]);
        let last = text.len() - 1;
        for wrong in [&text[..last], &format!("{}=", *text), &format!("{}A", *text), "", &format!(" {}", *text)] {
            assert!(InviteSecret::from_text(wrong).is_none(), "{wrong}");
        }
        // The last character has two bits too many: they are zero.
        let spellings =
            ('A'..='z').filter(|last_one| InviteSecret::from_text(&format!("{}{last_one}", &text[..last])).is_some());
        assert_eq!(
            spellings.count(),
            16 - ('0'..='9')
                .filter(|digit| InviteSecret::from_text(&format!("{}{digit}", &text[..last])).is_some())
                .count()
        );
    }

    #[test]
    fn tickets_are_of_one_secret_and_one_path() {
        let ticket = secret(7).ticket(&path("in/bob"));
        assert_eq!(ticket, secret(7).ticket(&path("in/bob")));
        for other in
            [secret(8).ticket(&path("in/bob")), secret(7).ticket(&path("in")), secret(7).ticket(&path("in/bob/x"))]
        {
            assert_ne!(ticket, other);
        }
        assert_eq!(ticket.verifier().id().to_string().len(), 16);
        assert_eq!(format!("{ticket:?}"), "Ticket(…)");
    }
}
