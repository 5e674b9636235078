//! The server's side: its certificate, whom it lets in, and what its operator should know.
//!
//! A new certificate or revocation list is a new [`ServerTls`]: load it again and use it for the next connections.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme, version,
};
use time::{Duration, OffsetDateTime};

use super::pem;
use super::pin::Pin;
use super::x509::{Facts, RevocationFacts, is_list_signed_by};
use super::{ALPN, moment};
use crate::error::{Error, ErrorKind, Result};

/// How long before a revocation list ends its operator is warned: every connection is refused from then on.
pub const REVOCATION_WARNING: Duration = Duration::days(7);
/// How long before a certificate ends its operator is warned.
pub const CERTIFICATE_WARNING: Duration = Duration::days(30);

/// Where a server's certificates are, and whom it lets in.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The server's certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities whose certificates are let in.
    pub client_ca: Option<PathBuf>,
    /// The certificates of those authorities that are let in no more.
    pub crl: Option<PathBuf>,
    /// Lets in who shows no certificate. One that is shown must still be right.
    pub allow_anonymous: bool,
    /// The protocols that are spoken, the preferred one first.
    pub alpn: Vec<Vec<u8>>,
}

impl ServerOptions {
    /// The files of a folder made by `sealift certs`: `server.pem`, `server-key.pem`, `ca.pem`, and `crl.pem` if there.
    #[must_use]
    pub fn in_folder(folder: &Path) -> ServerOptions {
        ServerOptions {
            certificate: folder.join("server.pem"),
            key: folder.join("server-key.pem"),
            client_ca: if_there(folder.join("ca.pem")),
            crl: if_there(folder.join("crl.pem")),
            allow_anonymous: false,
            alpn: vec![ALPN.to_vec()],
        }
    }
}

/// A server's half of TLS, ready for use.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// None: no certificate is asked for.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    pin: Pin,
    notes: Vec<String>,
    certificate: (PathBuf, OffsetDateTime, OffsetDateTime),
    /// Authorities and revocation lists: the file, and when each thing in it ends.
    authorities: Vec<(PathBuf, OffsetDateTime)>,
    revocations: Vec<(PathBuf, OffsetDateTime)>,
}

impl ServerTls {
    /// Reads and checks everything that the options name.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for anything that is not as it must be: no answer to who may connect, a key that others can
    /// read or that is not the certificate's, a damaged file, a revocation list of another authority. Also what
    /// reading the files gives.
    pub fn load(options: &ServerOptions) -> Result<ServerTls> {
        let provider = super::provider();
        let chain = pem::load_certificates(&options.certificate)?;
        let leaf = facts_of_first(&options.certificate, &chain)?;
        let pin = pin_of_first(&options.certificate, &chain)?;
        let key = pem::load_private_key(&options.key)?;

        let mut authorities = Vec::new();
        let mut revocations = Vec::new();
        let mut notes = Vec::new();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| Error::new(ErrorKind::Internal, "set up TLS 1.3").with_source(error))?;
        let mut client_verifier: Option<Arc<dyn ClientCertVerifier>> = None;
        let builder = match &options.client_ca {
            Some(path) => {
                let (roots, facts) = load_authorities(path)?;
                authorities.extend(facts.iter().map(|authority| (path.clone(), authority.not_after)));
                let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                if let Some(path) = &options.crl {
                    let lists = pem::load_revocation_lists(path)?;
                    let mut issuers = Vec::new();
                    for list in &lists {
                        let of_file = |error: Error| error.context(path.display());
                        let read = RevocationFacts::parse(list).map_err(of_file)?;
                        if !facts.iter().any(|authority| is_list_signed_by(list, authority)) {
                            return Err(of_file(Error::new(
                                ErrorKind::Usage,
                                "the revocation list is not by an authority of the client CA file, so it says nothing about its certificates",
                            )));
                        }
                        // The verifier looks at the first list of an authority only.
                        if issuers.contains(&read.issuer) {
                            return Err(of_file(Error::new(
                                ErrorKind::Usage,
                                "there are two revocation lists of the same authority in it: keep the newer one",
                            )));
                        }
                        revocations.push((path.clone(), read.next_update));
                        issuers.push(read.issuer);
                    }
                    if facts.iter().any(|authority| !issuers.contains(&authority.subject)) {
                        notes.push(format!(
                            "{} has no list for one of the authorities: nobody with a certificate of that one is let in",
                            path.display()
                        ));
                    }
                    verifier = verifier.with_crls(lists).enforce_revocation_expiration();
                }
                if options.allow_anonymous {
                    verifier = verifier.allow_unauthenticated();
                }
                let verifier = verifier.build().map_err(|error| {
                    Error::new(ErrorKind::Usage, "the client CA or the revocation list cannot be used")
                        .with_source(error)
                })?;
                let verifier: Arc<dyn ClientCertVerifier> = Arc::new(Verifier { inner: verifier });
                client_verifier = Some(Arc::clone(&verifier));
                builder.with_client_cert_verifier(verifier)
            }
            None if options.crl.is_some() => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "a revocation list (`--crl`) needs the client CA that issued it",
                ));
            }
            None if options.allow_anonymous => builder.with_no_client_auth(),
            None => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "say who may connect: a client CA (`--client-ca FILE`, or `ca.pem` in the folder given with `--certs`), or `--allow-anonymous`",
                ));
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| key_pair_error(error, &options.certificate, &options.key))?;
        config.alpn_protocols.clone_from(&options.alpn);
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;

        if let Some(folder) = options.key.parent()
            && folder.join("ca-key.pem").exists()
        {
            notes.push(format!(
                "{} is not needed here: keep it on another machine, for who has it can let in anyone",
                folder.join("ca-key.pem").display()
            ));
        }
        Ok(ServerTls {
            config: Arc::new(config),
            verifier: client_verifier,
            pin,
            notes,
            certificate: (options.certificate.clone(), leaf.not_before, leaf.not_after),
            authorities,
            revocations,
        })
    }

    /// The configuration for an acceptor.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Whether a client that showed this chain (the end first; empty: none) in its handshake would be let in by it
    /// now: by these authorities, this revocation list, and at this time. That it has the key was proven then.
    ///
    /// # Errors
    /// [`ErrorKind::Trust`] when it would not, with the reason.
    pub fn verify_client(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<()> {
        let Some((leaf, rest)) = chain.split_first() else {
            // Whether it may stay is a matter of rights.
            return Ok(());
        };
        let refused = || Error::new(ErrorKind::Trust, "your certificate is let in here no more");
        let verifier = self.verifier.as_ref().ok_or_else(refused)?;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map(UnixTime::since_unix_epoch);
        let now = now.map_err(|error| refused().with_source(error))?;
        verifier.verify_client_cert(leaf, rest, now).map(|_| ()).map_err(|error| {
            let why = match &error {
                rustls::Error::InvalidCertificate(CertificateError::Revoked) => "it is revoked".to_owned(),
                rustls::Error::InvalidCertificate(
                    CertificateError::Expired | CertificateError::ExpiredContext { .. },
                ) => "it has expired".to_owned(),
                rustls::Error::InvalidCertificate(CertificateError::InvalidOcspResponse) => {
                    "this server's revocation list cannot be used".to_owned()
                }
                error => super::escaped(error),
            };
            Error::new(ErrorKind::Trust, format!("your certificate is let in here no more: {why}"))
        })
    }

    /// The pin of the server's key.
    #[must_use]
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// What the operator should know at the given time, each in one sentence: what has ended or soon will, and what
    /// lies where it need not. Ask at the start and once a day.
    #[must_use]
    pub fn warnings(&self, now: OffsetDateTime) -> Vec<String> {
        let mut warnings = self.notes.clone();
        let (path, not_before, not_after) = &self.certificate;
        let path = path.display();
        if *not_after < now {
            warnings.push(format!("{path} expired on {}: clients refuse it (`sealift certs`)", moment(*not_after)));
        } else if *not_after < now + CERTIFICATE_WARNING {
            warnings.push(format!("{path} expires on {} (`sealift certs` renews it)", moment(*not_after)));
        } else if now < *not_before {
            warnings.push(format!("{path} is valid only from {}: check this machine's clock", moment(*not_before)));
        }
        for (path, not_after) in &self.authorities {
            // The verifier takes an authority for what it is whatever its dates; its certificates end before it does.
            if *not_after < now + CERTIFICATE_WARNING {
                warnings.push(format!("an authority in {} ends on {}", path.display(), moment(*not_after)));
            }
        }
        for (path, next_update) in &self.revocations {
            if *next_update <= now {
                warnings.push(format!(
                    "{} is past its date, {}: no certificate is let in until there is a newer one",
                    path.display(),
                    moment(*next_update)
                ));
            } else if *next_update < now + REVOCATION_WARNING {
                warnings.push(format!(
                    "{} ends on {}: from then on no certificate is let in",
                    path.display(),
                    moment(*next_update)
                ));
            }
        }
        warnings
    }
}

/// Verifies client certificates as the library does, and tells the client apart when it is not its certificate that
/// is wrong but the means to check it: the alert `bad_certificate_status_response` means nothing else here.
#[derive(Debug)]
struct Verifier {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.inner.verify_client_cert(end_entity, intermediates, now).map_err(|error| {
            use rustls::CertificateError as C;
            match &error {
                rustls::Error::InvalidCertRevocationList(_)
                | rustls::Error::InvalidCertificate(
                    C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. } | C::UnknownRevocationStatus,
                ) => {
                    tracing::error!(
                        reason = super::escaped(&error),
                        "no client certificate is let in: the revocation list cannot be used"
                    );
                    rustls::Error::InvalidCertificate(CertificateError::InvalidOcspResponse)
                }
                _ => error,
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The path, unless there is certainly nothing: a file that cannot be looked at must fail when it is read, for a
/// revocation list that is silently left out lets everyone in.
fn if_there(path: PathBuf) -> Option<PathBuf> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        _ => Some(path),
    }
}

/// The authorities of a file, as the verifier wants them and as facts.
pub(super) fn load_authorities(path: &Path) -> Result<(RootCertStore, Vec<Facts>)> {
    let mut roots = RootCertStore::empty();
    let mut facts = Vec::new();
    for certificate in pem::load_certificates(path)? {
        facts.push(Facts::parse(&certificate).map_err(|error| error.context(path.display()))?);
        roots.add(certificate).map_err(|error| {
            Error::new(
                ErrorKind::Usage,
                format!("{}: a certificate in it cannot be used as an authority", path.display()),
            )
            .with_source(error)
        })?;
    }
    Ok((roots, facts))
}

/// The facts of the certificate that a file begins with.
pub(super) fn facts_of_first(path: &Path, chain: &[CertificateDer<'_>]) -> Result<Facts> {
    let first = chain.first().map(AsRef::as_ref).unwrap_or_default();
    Facts::parse(first).map_err(|error| error.context(path.display()))
}

/// The pin of the certificate that a file begins with.
fn pin_of_first(path: &Path, chain: &[CertificateDer<'static>]) -> Result<Pin> {
    let unusable = |source: Option<rustls::Error>| {
        let error = Error::new(ErrorKind::Usage, format!("{}: the certificate cannot be used", path.display()));
        match source {
            Some(source) => error.with_source(source),
            None => error,
        }
    };
    Pin::of_certificate(chain.first().ok_or_else(|| unusable(None))?).map_err(|error| unusable(Some(error)))
}

/// Why a certificate and a key do not make a pair.
pub(super) fn key_pair_error(error: rustls::Error, certificate: &Path, key: &Path) -> Error {
    let (certificate, key) = (certificate.display(), key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => {
            Error::new(ErrorKind::Usage, format!("{key} is not the key of the certificate in {certificate}"))
        }
        error => Error::new(ErrorKind::Usage, format!("{certificate} with {key} cannot be used")).with_source(error),
    }
}
