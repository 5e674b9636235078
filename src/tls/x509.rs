//! What is read out of certificates and revocation lists, once, into plain values.

use std::net::IpAddr;

use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::error::{Error, ErrorKind, Result};

/// The parts of a certificate that are shown, compared or recorded.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The serial number, big endian, without leading zeros.
    pub serial: Vec<u8>,
    /// Not valid earlier than this.
    pub not_before: OffsetDateTime,
    /// Not valid later than this.
    pub not_after: OffsetDateTime,
    /// The single common name, when it is plain printable ASCII of 1 to 64 characters; otherwise none.
    pub common_name: Option<String>,
    /// The host names and addresses that it is for, in its order.
    pub hosts: Vec<String>,
    /// Whether it says that it is an authority.
    pub is_authority: bool,
    /// The encoded SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
    /// The encoded name of its subject.
    pub subject: Vec<u8>,
}

impl Facts {
    /// Reads an encoded certificate.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it is not one.
    pub fn parse(certificate: &[u8]) -> Result<Facts> {
        let certificate = parse(certificate)?;
        Ok(Facts {
            serial: without_leading_zeros(certificate.raw_serial()),
            not_before: moment(certificate.validity().not_before.timestamp())?,
            not_after: moment(certificate.validity().not_after.timestamp())?,
            common_name: common_name(&certificate),
            hosts: hosts(&certificate),
            is_authority: certificate.is_ca(),
            public_key: certificate.public_key().raw.to_vec(),
            subject: certificate.subject().as_raw().to_vec(),
        })
    }
}

/// Whether `certificate` is signed by the key of `authority`.
#[must_use]
pub fn is_signed_by(certificate: &[u8], authority: &Facts) -> bool {
    let Ok(certificate) = parse(certificate) else { return false };
    let Ok((_, key)) = SubjectPublicKeyInfo::from_der(&authority.public_key) else { return false };
    certificate.issuer().as_raw() == authority.subject && certificate.verify_signature(Some(&key)).is_ok()
}

/// The parts of a revocation list that matter here.
#[derive(Clone, Debug)]
pub struct RevocationFacts {
    /// Past this it counts no more, and nobody is let in by it.
    pub next_update: OffsetDateTime,
    /// Serial numbers (without leading zeros) and when they were revoked.
    pub revoked: Vec<(Vec<u8>, OffsetDateTime)>,
    /// The encoded name of its issuer.
    pub issuer: Vec<u8>,
}

impl RevocationFacts {
    /// Reads an encoded revocation list.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it is not one, or does not say until when it is valid.
    pub fn parse(list: &[u8]) -> Result<RevocationFacts> {
        let list = parse_list(list)?;
        let next_update = list
            .next_update()
            .ok_or_else(|| Error::new(ErrorKind::Usage, "the revocation list does not say until when it is valid"))?;
        let mut revoked = Vec::new();
        for entry in list.iter_revoked_certificates() {
            revoked.push((without_leading_zeros(entry.raw_serial()), moment(entry.revocation_date.timestamp())?));
        }
        Ok(RevocationFacts {
            next_update: moment(next_update.timestamp())?,
            revoked,
            issuer: list.issuer().as_raw().to_vec(),
        })
    }
}

/// Whether the revocation list is signed by the key of `authority`.
#[must_use]
pub fn is_list_signed_by(list: &[u8], authority: &Facts) -> bool {
    let Ok(list) = parse_list(list) else { return false };
    let Ok((_, key)) = SubjectPublicKeyInfo::from_der(&authority.public_key) else { return false };
    list.issuer().as_raw() == authority.subject && list.verify_signature(&key).is_ok()
}

/// A serial number as it is shown and recorded.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Error::new(ErrorKind::Usage, "not a valid X.509 certificate")),
    }
}

fn parse_list(list: &[u8]) -> Result<CertificateRevocationList<'_>> {
    match CertificateRevocationList::from_der(list) {
        Ok(([], list)) => Ok(list),
        _ => Err(Error::new(ErrorKind::Usage, "not a valid X.509 revocation list")),
    }
}

fn moment(seconds: i64) -> Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|_| Error::new(ErrorKind::Usage, "a date in the certificate is out of range"))
}

fn without_leading_zeros(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|&byte| byte == 0).collect()
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut names = certificate.subject().iter_common_name();
    let (first, second) = (names.next()?, names.next());
    if second.is_some() {
        return None;
    }
    let name = first.as_str().ok()?;
    let is_plain = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    // 64 is what X.520 allows for a common name.
    (is_plain && (1..=64).contains(&name.len())).then(|| name.to_owned())
}

fn hosts(certificate: &X509Certificate<'_>) -> Vec<String> {
    // Two such extensions are refused by the verifier; here that only means that none are shown.
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_refused() {
        for bytes in [&b""[..], b"x", b"\x30\x80", b"\x30\x03\x02\x01\x01", &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]] {
            assert!(Facts::parse(bytes).is_err(), "{bytes:02x?}");
            assert!(RevocationFacts::parse(bytes).is_err(), "{bytes:02x?}");
        }
    }
}
