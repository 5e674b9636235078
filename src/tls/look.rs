//! Looking at the certificate that a server shows, without believing it: for the person who decides whether to.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, SignatureScheme, version};

use super::ALPN;
use super::pin::Pin;
use super::x509::Facts;
use crate::error::{Error, ErrorKind, Result};

/// What a server showed. That it has the key is not proven: whoever pins it lets the next handshake prove that.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The pin of its key.
    pub pin: Pin,
    /// What its certificate says.
    pub facts: Facts,
}

/// A TLS client that ends every handshake once it has seen the server's certificate: no connection ever comes of
/// it, so that it cannot be misused as one that believes everybody.
#[derive(Debug)]
pub struct Viewer {
    config: Arc<ClientConfig>,
    seen: Arc<Mutex<Option<CertificateDer<'static>>>>,
}

impl Viewer {
    /// A viewer for one handshake.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when TLS 1.3 cannot be set up.
    pub fn new() -> Result<Viewer> {
        let provider = super::provider();
        let seen = Arc::new(Mutex::new(None));
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| Error::new(ErrorKind::Internal, "set up TLS 1.3").with_source(error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Witness { seen: Arc::clone(&seen), schemes }))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Viewer { config: Arc::new(config), seen })
    }

    /// The configuration for a connector. Its handshakes always fail.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// What was seen, if the handshake got that far.
    ///
    /// # Errors
    /// [`ErrorKind::Trust`] for a certificate that cannot be read.
    pub fn shown(&self) -> Result<Option<Shown>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(certificate) = seen.as_ref() else { return Ok(None) };
        let unreadable = || Error::new(ErrorKind::Trust, "the server shows a certificate that cannot be read");
        let pin = Pin::of_certificate(certificate).map_err(|error| unreadable().with_source(error))?;
        let facts = Facts::parse(certificate).map_err(|error| unreadable().with_source(error))?;
        Ok(Some(Shown { pin, facts }))
    }
}

/// Remembers the certificate and refuses it.
#[derive(Debug)]
struct Witness {
    seen: Arc<Mutex<Option<CertificateDer<'static>>>>,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.clone().into_owned());
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
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
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Never reached: the certificate before it was refused.
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
