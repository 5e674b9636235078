//! Files of certificates, keys and revocation lists: the only place that parses PEM.
//!
//! A private key that others can read is refused, and nothing of a key ever gets into a message. Read next:
//! [`super::x509`] for what is inside a certificate.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls_pemfile::Item;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// Bytes of a file that are looked at: a bundle of some thousand authorities or revocations. Longer: refused.
const FILE_LEN_MAX: u64 = 8 << 20;

/// Permission bits of those who are neither the owner nor in the group.
const OTHERS: u32 = 0o007;

/// All certificates of a file, in its order; the first is the end entity's where there is a chain.
///
/// # Errors
/// The file cannot be read ([`ErrorKind::NotFound`], [`ErrorKind::Io`]), or holds no certificate or something damaged
/// ([`ErrorKind::Usage`]).
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let mut certificates = Vec::new();
    for item in items(path, &read(path, false)?)? {
        if let Item::X509Certificate(certificate) = item {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(unusable(path, "there is no certificate (PEM, `BEGIN CERTIFICATE`) in it"));
    }
    Ok(certificates)
}

/// The one private key of a file that only its owner and group can read.
///
/// # Errors
/// As [`load_certificates`]; also when others can read the file, the key is encrypted, or there are several.
pub fn load_private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = Zeroizing::new(read(path, true)?);
    let mut keys = Vec::new();
    for item in items(path, &text)? {
        match item {
            Item::Pkcs1Key(key) => keys.push(PrivateKeyDer::from(key)),
            Item::Pkcs8Key(key) => keys.push(PrivateKeyDer::from(key)),
            Item::Sec1Key(key) => keys.push(PrivateKeyDer::from(key)),
            _ => {}
        }
    }
    let encrypted = text.windows(9).any(|window| window == b"ENCRYPTED");
    match keys.pop() {
        Some(key) if keys.is_empty() => Ok(key),
        Some(_) => Err(unusable(path, "there are several private keys in it and it must hold one")),
        None if encrypted => Err(unusable(
            path,
            "the private key in it is encrypted; store it without a passphrase (`openssl pkey`), readable only by its owner",
        )),
        None => Err(unusable(path, "there is no private key (PEM, `BEGIN PRIVATE KEY`) in it")),
    }
}

/// The one private key (PKCS #8) of a text, if it holds that and is whole.
#[must_use]
pub fn private_key_in(mut text: &[u8]) -> Option<PrivateKeyDer<'static>> {
    let items = rustls_pemfile::read_all(&mut text).collect::<io::Result<Vec<Item>>>().ok()?;
    match <[Item; 1]>::try_from(items).ok()? {
        [Item::Pkcs8Key(key)] => Some(key.into()),
        _ => None,
    }
}

/// All revocation lists of a file. A file without any is an error: it must never count as "nothing is revoked".
///
/// # Errors
/// As [`load_certificates`].
pub fn load_revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let mut lists = Vec::new();
    for item in items(path, &read(path, false)?)? {
        if let Item::Crl(list) = item {
            lists.push(list);
        }
    }
    if lists.is_empty() {
        return Err(unusable(path, "there is no revocation list (PEM, `BEGIN X509 CRL`) in it"));
    }
    Ok(lists)
}

fn items(path: &Path, mut text: &[u8]) -> Result<Vec<Item>> {
    rustls_pemfile::read_all(&mut text)
        .collect::<io::Result<Vec<Item>>>()
        // The library's text may quote the file, and the file may be a key: it is left out.
        .map_err(|_| unusable(path, "a PEM block in it is damaged"))
}

/// The bytes of a file. The permissions are those of the opened file, not of whatever the path names a moment later.
fn read(path: &Path, private: bool) -> Result<Vec<u8>> {
    let file = File::open(path).while_doing(|| format!("read {}", path.display()))?;
    let metadata = file.metadata().while_doing(|| format!("read {}", path.display()))?;
    if metadata.is_dir() {
        return Err(Error::new(ErrorKind::IsDirectory, format!("read {}: it is a directory", path.display())));
    }
    if private && metadata.mode() & OTHERS != 0 {
        return Err(unusable(
            path,
            &format!(
                "others can use this private key (mode {:03o}): `chmod o= {}`, and if they may have read it, make a new one",
                metadata.mode() & 0o777,
                path.display()
            ),
        ));
    }
    let mut text = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut text).while_doing(|| format!("read {}", path.display()))?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(unusable(path, &format!("it is longer than {FILE_LEN_MAX} bytes")));
    }
    Ok(text)
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[track_caller]
    fn check<T>(result: Result<T>, expected: &str) {
        let error = result.map(|_| ()).expect_err("must be refused");
        assert!(error.chain().contains(expected), "expected {expected:?}, got {:?}", error.chain());
    }

    #[test]
    fn only_what_is_right_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let write = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        };
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();

        check(load_certificates(&path), "No such file");
        check(load_certificates(folder.path()), "it is a directory");
        write("", 0o600);
        check(load_certificates(&path), "there is no certificate");
        check(load_private_key(&path), "there is no private key");
        check(load_revocation_lists(&path), "there is no revocation list");
        write("-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n", 0o600);
        check(load_certificates(&path), "damaged");
        write("-----BEGIN CERTIFICATE-----\nAAAA\n", 0o600);
        check(load_certificates(&path), "damaged");
        write("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", 0o600);
        check(load_private_key(&path), "is encrypted");
        write(&format!("{key}{key}"), 0o600);
        check(load_private_key(&path), "several private keys");
        for (mode, allowed) in [(0o600, true), (0o640, true), (0o400, true), (0o644, false), (0o604, false)] {
            write(&key, mode);
            assert_eq!(load_private_key(&path).is_ok(), allowed, "mode {mode:o}");
        }
    }

    #[test]
    fn a_message_never_quotes_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "-----BEGIN PRIVATE KEY-----\nSECRETSECRET!\n-----END PRIVATE KEY-----\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let error = load_private_key(&path).expect_err("damaged");
        assert!(!error.chain().contains("SECRET"), "{}", error.chain());
    }
}
