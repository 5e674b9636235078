//! The client's side: whom it believes, and what it shows of itself.
//!
//! An authority (`--ca`) means that the chain, the name and the dates must be right. A pin means that the server must
//! prove that it has that very key; without an authority nothing else is looked at. With both, both must hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, OtherError, PeerIncompatible, SignatureScheme,
    version,
};
use time::OffsetDateTime;

use super::explain::WrongPin;
use super::pem;
use super::pin::Pin;
use super::server::{CERTIFICATE_WARNING, facts_of_first, key_pair_error, load_authorities};
use super::x509::Facts;
use super::{ALPN, moment};
use crate::error::{Error, ErrorKind, Result};

/// Whom a client believes and what it shows.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// The authorities that the server's certificate may come from.
    pub ca: Option<PathBuf>,
    /// The client's certificate, then those that lead to its authority.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Keys that the server may have; any of them will do.
    pub pins: Vec<Pin>,
}

impl ClientOptions {
    /// The files of a folder made by `sealift certs --export`: `ca.pem`, `client.pem` and `client-key.pem`; without the
    /// latter two the client is anonymous.
    #[must_use]
    pub fn in_folder(folder: &Path) -> ClientOptions {
        let (certificate, key) = (folder.join("client.pem"), folder.join("client-key.pem"));
        let anonymous = [&certificate, &key]
            .into_iter()
            .all(|path| path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound));
        ClientOptions {
            ca: Some(folder.join("ca.pem")),
            certificate: (!anonymous).then_some(certificate),
            key: (!anonymous).then_some(key),
            pins: Vec::new(),
        }
    }
}

/// A client's half of TLS, ready for use.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    warnings: Vec<String>,
    is_pin_alone: bool,
}

impl ClientTls {
    /// Reads and checks everything that the options name.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when there is neither an authority nor a pin, a certificate without its key or the reverse,
    /// a key that others can read or that is not the certificate's, or a damaged file. Also what reading the files gives.
    pub fn load(options: &ClientOptions) -> Result<ClientTls> {
        let provider = super::provider();
        let authority = match &options.ca {
            Some(path) => {
                let (roots, _) = load_authorities(path)?;
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(|error| {
                    Error::new(ErrorKind::Usage, format!("{} cannot be used", path.display())).with_source(error)
                })?;
                Some(verifier)
            }
            None => None,
        };
        if authority.is_none() && options.pins.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                "say how to know the server: `--certs DIR` or `--ca FILE` with the authority of its certificate, or `--pin sha256:…` with the pin that `sealift serve` and `sealift certs` print there",
            ));
        }
        let is_pin_alone = authority.is_none();
        let verifier = Verifier { authority, pins: options.pins.clone(), provider: provider.clone() };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| Error::new(ErrorKind::Internal, "set up TLS 1.3").with_source(error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));

        let mut warnings = Vec::new();
        let mut config = match (&options.certificate, &options.key) {
            (Some(certificate), Some(key)) => {
                let chain = pem::load_certificates(certificate)?;
                warnings.extend(date_warning(certificate, &facts_of_first(certificate, &chain)?));
                builder
                    .with_client_auth_cert(chain, pem::load_private_key(key)?)
                    .map_err(|error| key_pair_error(error, certificate, key))?
            }
            (None, None) => builder.with_no_client_auth(),
            (Some(path), None) => return Err(half_a_pair(path, "--key")),
            (None, Some(path)) => return Err(half_a_pair(path, "--cert")),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        warnings.extend(misplaced_keys(options));
        Ok(ClientTls { config: Arc::new(config), warnings, is_pin_alone })
    }

    /// The configuration for a connector.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// What the person should know before connecting, each in one sentence.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// To be called after every handshake, before anything is sent: refuses a server that did not agree to our
    /// protocol, and returns what the person should know about its certificate.
    ///
    /// # Errors
    /// [`ErrorKind::Version`] when the server did not name the protocol.
    pub fn accept_server(&self, connection: &CommonState, host: &str) -> Result<Vec<String>> {
        super::require_native(connection).map_err(|error| error.context(super::escaped(&host)))?;
        let mut warnings = Vec::new();
        if self.is_pin_alone
            && let Some(certificate) = connection.peer_certificates().and_then(<[_]>::first)
            && let Ok(facts) = Facts::parse(certificate)
            && facts.not_after < OffsetDateTime::now_utc()
        {
            warnings.push(format!(
                "the certificate of {} expired on {}; its key is the pinned one, so that does not matter here",
                super::escaped(&host),
                moment(facts.not_after)
            ));
        }
        Ok(warnings)
    }
}

/// Believes a server by its authority, by its pin, or by both.
#[derive(Debug)]
struct Verifier {
    authority: Option<Arc<WebPkiServerVerifier>>,
    pins: Vec<Pin>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Neither is possible only by a mistake of ours in `load`, and that must not mean "believe everyone".
        if self.authority.is_none() && self.pins.is_empty() {
            return Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        if let Some(authority) = &self.authority {
            authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        }
        if !self.pins.is_empty() {
            let found = Pin::of_certificate(end_entity)?;
            if !self.pins.contains(&found) {
                let wrong = WrongPin { found };
                return Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong)))));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn half_a_pair(path: &Path, missing: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("{} is of no use alone: give `{missing}` too", path.display()))
}

fn date_warning(path: &Path, facts: &Facts) -> Option<String> {
    let now = OffsetDateTime::now_utc();
    let path = path.display();
    if facts.not_after < now {
        Some(format!("{path} expired on {}: a server will refuse it; ask for a new one", moment(facts.not_after)))
    } else if now < facts.not_before {
        Some(format!("{path} is valid only from {}: check this machine's clock", moment(facts.not_before)))
    } else if facts.not_after < now + CERTIFICATE_WARNING {
        Some(format!("{path} expires on {}: ask for a new one", moment(facts.not_after)))
    } else {
        None
    }
}

/// Keys of others in the folders that the options name.
fn misplaced_keys(options: &ClientOptions) -> Vec<String> {
    let mut folders: Vec<&Path> = [&options.ca, &options.certificate, &options.key]
        .into_iter()
        .flatten()
        .filter_map(|path| path.parent())
        .collect();
    folders.sort_unstable();
    folders.dedup();
    let mut warnings = Vec::new();
    for folder in folders {
        for name in ["ca-key.pem", "server-key.pem"] {
            let path = folder.join(name);
            if path.exists() {
                warnings.push(format!(
                    "{} does not belong on a client: give it what `sealift certs --export NAME --to DIR` writes",
                    path.display()
                ));
            }
        }
    }
    warnings
}
