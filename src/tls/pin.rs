//! A server's key named by its hash, so that it can be trusted without an authority.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;

use crate::error::{Error, ErrorKind, Result};
use crate::path::Escaped;

/// SHA-256 of a certificate's SubjectPublicKeyInfo: it stays the same as long as the key does.
///
/// ```
/// use sealift::tls::Pin;
/// let hex = format!("sha256:{}", "00".repeat(32));
/// let pin: Pin = hex.parse().unwrap();
/// assert_eq!(pin.to_string(), format!("sha256:{}", "A".repeat(43)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a certificate's key. It is the same parser's view of the key as the one that later verifies
    /// signatures by it, so no certificate can show one key here and another one there.
    ///
    /// # Errors
    /// The library's, when it is not an X.509 v3 certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Pin, rustls::Error> {
        Ok(Pin::of_public_key(ParsedCertificate::try_from(certificate)?.subject_public_key_info().as_ref()))
    }

    /// The pin of an encoded SubjectPublicKeyInfo.
    #[must_use]
    pub fn of_public_key(public_key: &[u8]) -> Pin {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public_key);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Pin(bytes)
    }

    /// The hash itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Pin {
    fn from(hash: [u8; 32]) -> Pin {
        Pin(hash)
    }
}

impl FromStr for Pin {
    type Err = Error;

    /// `sha256:` and base64url (padded or not) or hex. The standard base64 alphabet is taken too: other tools print it.
    fn from_str(text: &str) -> Result<Pin> {
        let refused = |why: &str| {
            Error::new(
                ErrorKind::Usage,
                format!(
                    "`{}` is not a pin: {why} (`sealift certs` and `sealift serve` print the right one)",
                    Escaped(text.as_bytes())
                ),
            )
        };
        let value = text.strip_prefix("sha256:").ok_or_else(|| refused("it must begin with `sha256:`"))?;
        if !value.is_ascii() {
            return Err(refused("it must be base64url or hex"));
        }
        let bytes = if value.len() == 64 {
            hex_bytes(value)
        } else {
            let value = value.strip_suffix('=').unwrap_or(value).replace('+', "-").replace('/', "_");
            URL_SAFE_NO_PAD.decode(value).ok()
        };
        let bytes = bytes.ok_or_else(|| refused("it must be base64url or hex"))?;
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| refused("a SHA-256 has 32 bytes"))?;
        Ok(Pin(bytes))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|c| c.to_digit(16)).collect::<Option<Vec<u32>>>()?;
    digits.chunks(2).map(|pair| u8::try_from(pair.iter().fold(0, |value, digit| value * 16 + digit)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_means_the_same_pin() {
        let pin = Pin::of_public_key(b"key \x01");
        let canonical = pin.to_string();
        let hex: String = pin.0.iter().map(|byte| format!("{byte:02x}")).collect();
        for text in [
            canonical.clone(),
            format!("{canonical}="),
            format!("sha256:{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            canonical.replace('-', "+").replace('_', "/"),
        ] {
            assert_eq!(text.parse::<Pin>().expect("a pin"), pin, "{text}");
        }
        assert_eq!(canonical.len(), "sha256:".len() + 43);
    }

    #[test]
    fn what_is_not_a_pin_is_refused() {
        let good = Pin::of_public_key(b"").to_string();
        let cut = &good[..good.len() - 1];
        for text in ["", "sha256:", "sha1:00", &good[7..], cut, &format!("{good}=="), "sha256:é", &"0".repeat(64)] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
        assert!(format!("sha256:{}", "zz".repeat(32)).parse::<Pin>().is_err());
        assert!(format!("sha256:{}", "00".repeat(31)).parse::<Pin>().is_err());
    }
}
