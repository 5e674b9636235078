//! The key with which a server signs what it says of its own work: receipts and the heads of its audit log.
//!
//! Ed25519, apart from the key of its certificate, so that what is signed stays provable when certificates change.
//! What is signed begins with a text that names its purpose: no signature of one kind passes for another.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::pem;
use crate::error::{Error, ErrorKind, Result};
use crate::path::Escaped;

/// What a signature is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A receipt for a stored file.
    Receipt,
    /// The state of an audit log.
    AuditHead,
}

impl Purpose {
    /// What is signed begins with this. No text is the beginning of another.
    fn prefix(self) -> &'static [u8] {
        match self {
            Purpose::Receipt => b"sealift receipt 1\0",
            Purpose::AuditHead => b"sealift audit head 1\0",
        }
    }

    fn text(self, statement: &[u8]) -> Vec<u8> {
        [self.prefix(), statement].concat()
    }
}

/// A private key for signing. Its `Debug` shows the public half only.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: VerifyingKey,
}

impl SigningKey {
    /// A new key, and the PEM text that keeps it.
    ///
    /// # Errors
    /// `Internal` when the library fails.
    pub fn generate() -> Result<(SigningKey, Zeroizing<String>)> {
        let failed = |_| Error::new(ErrorKind::Internal, "make a key for signing");
        let pair = Ed25519KeyPair::generate().map_err(failed)?;
        let encoded = pair.to_pkcs8v1().map_err(failed)?;
        // 48 bytes: one line.
        let line = Zeroizing::new(STANDARD.encode(encoded.as_ref()));
        let text = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", *line);
        Ok((SigningKey::of(pair)?, Zeroizing::new(text)))
    }

    /// The key in a PEM text; `name` is what messages call the file.
    ///
    /// # Errors
    /// `Usage` when there is no Ed25519 key in it. No message quotes the text.
    pub fn from_pem(text: &[u8], name: &str) -> Result<SigningKey> {
        let refused = |why: &str| Error::new(ErrorKind::Usage, format!("{name}: {why}"));
        let key = pem::private_key_in(text).ok_or_else(|| refused("there is no private key (PEM) in it"))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_der());
        SigningKey::of(pair.map_err(|_| refused("the private key in it is not Ed25519 (PKCS #8)"))?)
    }

    fn of(pair: Ed25519KeyPair) -> Result<SigningKey> {
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref());
        let public = public.map_err(|_| Error::new(ErrorKind::Internal, "an Ed25519 key of another length"))?;
        Ok(SigningKey { pair, public: VerifyingKey(public) })
    }

    /// The half that others verify with.
    #[must_use]
    pub fn public(&self) -> VerifyingKey {
        self.public
    }

    /// Signs a statement. About 20 µs.
    #[must_use]
    pub fn sign(&self, purpose: Purpose, statement: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(&purpose.text(statement));
        let mut bytes = [0; 64];
        bytes.copy_from_slice(signature.as_ref());
        bytes
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

/// The public key of a server's receipts and audit log, as text `ed25519:<base64url>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerifyingKey(pub [u8; 32]);

impl VerifyingKey {
    /// Whether the holder of the private half signed this statement for this purpose.
    #[must_use]
    pub fn verify(&self, purpose: Purpose, statement: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(&purpose.text(statement), signature).is_ok()
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for VerifyingKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<VerifyingKey> {
        let key = text.strip_prefix("ed25519:").and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let key = key.and_then(|key| <[u8; 32]>::try_from(key).ok());
        key.map(VerifyingKey).ok_or_else(|| {
            let text = Escaped(text.as_bytes());
            Error::new(ErrorKind::Usage, format!("`{text}` is not a receipt key: `sealift serve` prints it, ed25519:…"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_statement_purpose_and_key_only() {
        let (key, text) = SigningKey::generate().unwrap();
        let other = SigningKey::generate().unwrap().0.public();
        let signature = key.sign(Purpose::Receipt, b"statement");
        let public = key.public();
        assert!(public.verify(Purpose::Receipt, b"statement", &signature));
        assert!(!public.verify(Purpose::Receipt, b"statemenT", &signature));
        assert!(!public.verify(Purpose::AuditHead, b"statement", &signature));
        assert!(!public.verify(Purpose::Receipt, b"statement", &signature[..63]));
        assert!(!other.verify(Purpose::Receipt, b"statement", &signature));
        let again = SigningKey::from_pem(text.as_bytes(), "key").unwrap();
        assert_eq!(again.sign(Purpose::Receipt, b"statement"), signature);
        assert_eq!(public.to_string().parse::<VerifyingKey>().unwrap(), public);
    }

    #[test]
    fn what_is_no_key_is_refused_and_never_quoted() {
        for text in ["", "ed25519:", "sha256:AAAA", "ed25519:AAAA"] {
            assert!(text.parse::<VerifyingKey>().is_err(), "{text}");
        }
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let (key, text) = SigningKey::generate().unwrap();
        let cut = text.replace("-----END", "-----ENDE");
        for text in ["", &other, &cut] {
            let error = SigningKey::from_pem(text.as_bytes(), "key").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            let secret = text.lines().nth(1).unwrap_or("nothing");
            assert!(!error.chain().contains(secret), "{}", error.chain());
        }
        let secret = text.lines().nth(1).unwrap();
        assert!(!format!("{key:?}").contains(secret));
    }
}
