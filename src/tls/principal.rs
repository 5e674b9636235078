//! Who the other side is, as far as its certificate says.

use rustls::pki_types::CertificateDer;

use super::pin::Pin;
use super::x509::Facts;
use crate::error::{Error, ErrorKind, Result};

/// A peer with a certificate that was verified.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    name: Option<String>,
    key: Pin,
}

impl Principal {
    /// Who a verified chain belongs to; nobody when there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Trust`] when the certificate cannot be read: then the peer must be refused, not taken for nobody.
    pub fn of_peer(chain: Option<&[CertificateDer<'_>]>) -> Result<Option<Principal>> {
        let Some(certificate) = chain.and_then(<[_]>::first) else { return Ok(None) };
        let unreadable = || Error::new(ErrorKind::Trust, "the other side's certificate cannot be read");
        let key = Pin::of_certificate(certificate).map_err(|error| unreadable().with_source(error))?;
        let name = Facts::parse(certificate).map_err(|error| unreadable().with_source(error))?.common_name;
        Ok(Some(Principal { name, key }))
    }

    /// The certificate's single common name. No common name, several, or one that is not plain printable ASCII is
    /// no name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The hash of its key.
    #[must_use]
    pub fn key(&self) -> Pin {
        self.key
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    #[track_caller]
    fn check(names: Vec<DnValue>, expected: Option<&str>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "not a name");
        for (index, name) in names.iter().enumerate() {
            // The library keeps one value per type: a second common name is the same type by its number.
            let kind = if index == 0 { DnType::CommonName } else { DnType::CustomDnType(vec![2, 5, 4, 3]) };
            params.distinguished_name.push(kind, name.clone());
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let principal = Principal::of_peer(Some(&[certificate.der().clone()])).expect("readable").expect("somebody");
        assert_eq!(principal.name(), expected, "names {names:?}");
    }

    #[test]
    fn a_name_is_one_plain_common_name() {
        let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
        check(vec![utf8("alice")], Some("alice"));
        check(vec![utf8("alice b")], Some("alice b"));
        check(vec![DnValue::PrintableString("bob".try_into().expect("printable"))], Some("bob"));
        check(vec![], None);
        check(vec![utf8("alice"), utf8("root")], None);
        check(vec![utf8("älice")], None);
        check(vec![utf8("al\u{0}ice")], None);
        check(vec![utf8("al\nice")], None);
        check(vec![utf8("")], None);
        check(vec![utf8(&"a".repeat(65))], None);
        check(vec![DnValue::BmpString("alice".try_into().expect("bmp"))], None);
    }

    #[test]
    fn nobody_and_garbage() {
        assert_eq!(Principal::of_peer(None).expect("nobody"), None);
        assert_eq!(Principal::of_peer(Some(&[])).expect("nobody"), None);
        assert!(Principal::of_peer(Some(&[CertificateDer::from(vec![0x30, 0])])).is_err());
    }
}
