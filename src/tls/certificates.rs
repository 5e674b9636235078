//! The making of certificates and revocation lists: an authority, what it issues, what it takes back. No files here.
//!
//! P-256 keys throughout, serial numbers of 16 random bytes, and nothing that outlives the authority.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use super::names::{ClientName, Host};
use super::x509::{Facts, hex, is_signed_by};
use crate::error::{Error, ErrorKind, Result};

/// How long an authority is valid.
pub const AUTHORITY_LIFETIME: Duration = Duration::days(3650);
/// How long a certificate is valid when nothing else is asked for.
pub const LEAF_DAYS: u32 = 365;
/// Certificates begin this much before they are made, for clocks that are behind.
const BACKDATE: Duration = Duration::hours(1);
/// The common name of every server's certificate.
const SERVER_NAME: &str = "sealift server";

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A server, under these names.
    Server(&'a [Host]),
    /// A client of this name.
    Client(&'a ClientName),
}

/// A private key that certificates are made for.
pub struct Key(KeyPair);

impl Key {
    /// A new P-256 key.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the system gives no random bytes.
    pub fn generate() -> Result<Key> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Key).map_err(|error| making("a private key", error))
    }

    /// A key that was loaded from a file.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a kind of key that cannot sign certificates.
    pub fn from_loaded(key: &PrivateKeyDer<'_>) -> Result<Key> {
        // The library's text could quote the key: it is left out.
        KeyPair::try_from(key).map(Key).map_err(|_| Error::new(ErrorKind::Usage, "a private key of an unknown kind"))
    }

    /// The encoded SubjectPublicKeyInfo.
    #[must_use]
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// The text of its file: a secret.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }
}

/// A certificate that was just made.
pub struct Made {
    /// The text of its file.
    pub pem: String,
    /// What it says.
    pub facts: Facts,
}

/// A certificate authority, with its key when it is at hand.
pub struct Authority {
    certificate: CertificateDer<'static>,
    facts: Facts,
    issuer: Option<Issuer<'static, KeyPair>>,
}

impl Authority {
    /// A certificate for a new authority with this key.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the library fails.
    pub fn make(key: &Key, now: OffsetDateTime) -> Result<Made> {
        let mut params = CertificateParams::default();
        params.not_before = now - BACKDATE;
        params.not_after = now + AUTHORITY_LIFETIME;
        params.serial_number = Some(new_serial()?);
        params.distinguished_name = DistinguishedName::new();
        // The name follows from the key, so that two authorities are never mistaken for one another.
        params.distinguished_name.push(DnType::CommonName, format!("sealift CA {}", id_of_key(&key.public_key())));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.self_signed(&key.0).map_err(|error| making("the authority's certificate", error))?;
        Ok(Made { pem: certificate.pem(), facts: Facts::parse(certificate.der())? })
    }

    /// An authority from its certificate, and its key if there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when the certificate is not an authority's or the key is not its key.
    pub fn from_loaded(certificate: CertificateDer<'static>, key: Option<Key>) -> Result<Authority> {
        let facts = Facts::parse(&certificate)?;
        if !facts.is_authority {
            return Err(Error::new(ErrorKind::Usage, "the certificate is not an authority's (CA:FALSE)"));
        }
        let issuer = match key {
            Some(key) if key.public_key() != facts.public_key => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "the private key is not the authority's; put the right one back, or `--new-ca` makes both anew",
                ));
            }
            Some(key) => Some(Issuer::from_ca_cert_der(&certificate, key.0).map_err(|error| {
                Error::new(ErrorKind::Usage, "the authority's certificate cannot be used").with_source(error)
            })?),
            None => None,
        };
        Ok(Authority { certificate, facts, issuer })
    }

    /// What its certificate says.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// A short name for it that follows from its key.
    #[must_use]
    pub fn id(&self) -> String {
        id_of_key(&self.facts.public_key)
    }

    /// Whether its key is at hand.
    #[must_use]
    pub fn can_issue(&self) -> bool {
        self.issuer.is_some()
    }

    /// Whether it issued this certificate.
    #[must_use]
    pub fn has_issued(&self, certificate: &[u8]) -> bool {
        is_signed_by(certificate, &self.facts)
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The last moment of a certificate that is issued now for so many days.
    #[must_use]
    pub fn end_of(&self, days: u32, now: OffsetDateTime) -> OffsetDateTime {
        now.saturating_add(Duration::days(i64::from(days))).min(self.facts.not_after)
    }

    /// Issues a certificate for `key`. It ends no later than the authority does.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without the authority's key, [`ErrorKind::Internal`] when the library fails.
    pub fn issue(&self, subject: Subject<'_>, key: &Key, days: u32, now: OffsetDateTime) -> Result<Made> {
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).max(self.facts.not_before);
        params.not_after = self.end_of(days, now);
        params.serial_number = Some(new_serial()?);
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        match subject {
            Subject::Server(hosts) => {
                params.distinguished_name.push(DnType::CommonName, SERVER_NAME);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                params.subject_alt_names = hosts.iter().map(alternative_name).collect::<Result<_>>()?;
            }
            Subject::Client(name) => {
                params.distinguished_name.push(DnType::CommonName, name.as_str());
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
        }
        let certificate = params.signed_by(&key.0, self.issuer()?).map_err(|error| making("a certificate", error))?;
        Ok(Made { pem: certificate.pem(), facts: Facts::parse(certificate.der())? })
    }

    /// A revocation list of these serial numbers, valid as long as the authority.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn revoke(&self, revoked: &[(Vec<u8>, OffsetDateTime)], now: OffsetDateTime) -> Result<String> {
        // Numbers of lists must grow, and time does so without a counter to lose.
        let number = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
        let list = CertificateRevocationListParams {
            this_update: now - BACKDATE,
            next_update: self.facts.not_after,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|(serial, time)| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: *time,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(self.issuer()?).map_err(|error| making("the revocation list", error))?;
        list.pem().map_err(|error| making("the revocation list", error))
    }

    fn issuer(&self) -> Result<&Issuer<'static, KeyPair>> {
        self.issuer.as_ref().ok_or_else(|| Error::new(ErrorKind::NotFound, "the authority's key is not here"))
    }
}

/// 16 random bytes whose first is from 0x40 to 0x7f: positive, and as long in every encoding.
fn new_serial() -> Result<SerialNumber> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(ErrorKind::Internal, "get random bytes").with_source(error))?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn id_of_key(public_key: &[u8]) -> String {
    hex(&super::Pin::of_public_key(public_key).as_bytes()[..8])
}

fn alternative_name(host: &Host) -> Result<SanType> {
    Ok(match host {
        Host::Address(address) => SanType::IpAddress(*address),
        Host::Name(name) => {
            SanType::DnsName(name.as_str().try_into().map_err(|error| making("the list of host names", error))?)
        }
    })
}

fn making(what: &str, error: rcgen::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("make {what}")).with_source(error)
}
