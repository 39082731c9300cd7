//! TLS configurations: TLS 1.2 and 1.3, HTTP/2 preferred, `ring` as the only provider.

use crate::authority::Authority;
use crate::files::{self, PkiError};
use crate::identity::Identity;
use crate::itself::OrItself;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(authority: &Authority) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone())?;
    Ok(roots)
}

fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

/// An identity that TLS configurations show, and that can be replaced while they are in use: new connections show the
/// new one, open ones go on.
#[derive(Clone, Debug)]
pub struct SharedIdentity(Arc<RwLock<(u64, Arc<CertifiedKey>)>>);

impl SharedIdentity {
    /// One that shows `identity`.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn new(identity: &Identity) -> Result<Self, PkiError> {
        Ok(Self(Arc::new(RwLock::new((0, certified(identity)?)))))
    }

    /// One that somebody else issued: its certificate, which others may follow that lead to its authority, and its key, both PEM.
    ///
    /// # Errors
    /// When either is malformed, or they do not belong together.
    pub fn in_pem(certificates: &[u8], key: &[u8]) -> Result<Self, PkiError> {
        let chain = files::parse_certificates(Path::new("the client certificate"), certificates)?;
        let malformed = |_| PkiError::Malformed { path: PathBuf::from("the client key"), what: "private key" };
        let key = PrivateKeyDer::from_pem_slice(key).map_err(malformed)?;
        let certified = CertifiedKey::from_der(chain, key, &provider())?;
        Ok(Self(Arc::new(RwLock::new((0, Arc::new(certified))))))
    }

    /// Shows `identity` from now on.
    ///
    /// # Errors
    /// When the key cannot be used; the old one is shown still.
    pub fn replace(&self, identity: &Identity) -> Result<(), PkiError> {
        let key = certified(identity)?;
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *shown = (shown.0 + 1, key);
        Ok(())
    }

    /// How often it was replaced: for whoever keeps connections that have shown the one before.
    pub fn generation(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).0
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, PkiError> {
    let chain = vec![identity.certificate().clone()];
    Ok(Arc::new(CertifiedKey::from_der(chain, identity.key(), &provider())?))
}

impl ResolvesServerCert for SharedIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for SharedIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// For a server that shows `identity`. A client may show a certificate; one that `client_ca` did not sign fails the handshake.
///
/// # Errors
/// When the certificate or the authority cannot be used.
pub fn server_config(identity: &Identity, client_ca: &Authority) -> Result<ServerConfig, PkiError> {
    shared_server_config(&SharedIdentity::new(identity)?, client_ca)
}

/// The same for an identity that may be replaced.
///
/// # Errors
/// When the authority cannot be used.
pub fn shared_server_config(identity: &SharedIdentity, client_ca: &Authority) -> Result<ServerConfig, PkiError> {
    serving(identity, roots(client_ca)?)
}

fn serving(identity: &SharedIdentity, client_roots: RootCertStore) -> Result<ServerConfig, PkiError> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(client_roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = alpn();
    Ok(config)
}

/// For the kubelet's API: shows an identity that may be replaced; a client may show a certificate of the authority whose
/// PEM is given.
///
/// # Errors
/// When no authority can be read out of the PEM.
pub fn kubelet_server_config(identity: &SharedIdentity, client_ca_pem: &[u8]) -> Result<ServerConfig, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in files::parse_certificates(Path::new("the authority of the cluster's clients"), client_ca_pem)? {
        roots.add(certificate)?;
    }
    // upgraded connections need HTTP/1.1
    let mut config = serving(identity, roots)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// For a client of servers that `server_ca` vouches for; shows `identity` when there is one.
///
/// # Errors
/// When the certificate or the authority cannot be used.
pub fn client_config(server_ca: &Authority, identity: Option<&Identity>) -> Result<ClientConfig, PkiError> {
    let identity = identity.map(SharedIdentity::new).transpose()?;
    with_roots(roots(server_ca)?, identity.as_ref())
}

/// The same where the authorities are known as PEM only, and the identity may be replaced.
///
/// # Errors
/// When no authority can be read out of the PEM.
pub fn remote_client_config(ca_pem: &[u8], identity: Option<&SharedIdentity>) -> Result<ClientConfig, PkiError> {
    trusting(files::parse_certificates(Path::new("the certificate authority"), ca_pem)?, identity)
}

/// Authorities that may also show themselves.
fn trusting(
    authorities: Vec<CertificateDer<'static>>,
    identity: Option<&SharedIdentity>,
) -> Result<ClientConfig, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in &authorities {
        roots.add(certificate.clone())?;
    }
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    let mut config = with_roots(RootCertStore::empty(), identity)?;
    config.dangerous().set_certificate_verifier(Arc::new(OrItself { usual, trusted: authorities }));
    Ok(config)
}

fn with_roots(roots: RootCertStore, identity: Option<&SharedIdentity>) -> Result<ClientConfig, PkiError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity.clone())),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn();
    // a resumed session would go on with the certificate of the first
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Who vouches for a server.
#[derive(Debug)]
pub enum Trust {
    /// Authorities, some of whom may be the server itself.
    These(Vec<CertificateDer<'static>>),
    /// Authorities.
    Roots(RootCertStore),
    /// Nobody: whatever it shows is taken.
    Nobody,
}

impl Trust {
    /// Authorities whose PEM is given.
    ///
    /// # Errors
    /// When none can be read out of it.
    pub fn in_pem(pem: &[u8]) -> Result<Self, PkiError> {
        let authorities = files::parse_certificates(Path::new("the certificate authority"), pem)?;
        // one that is no authority is found out now
        authorities.iter().try_for_each(|one| RootCertStore::empty().add(one.clone()))?;
        Ok(Self::These(authorities))
    }
}

/// For a client of a server that is none of the cluster's own: an extension API server, or a webhook. Shows `identity` when there is one.
///
/// # Errors
/// When TLS cannot be set up.
pub fn outgoing_config(trust: Trust, identity: Option<&SharedIdentity>) -> Result<ClientConfig, PkiError> {
    let mut config = match trust {
        Trust::These(authorities) => trusting(authorities, identity)?,
        Trust::Roots(roots) => with_roots(roots, identity)?,
        Trust::Nobody => {
            let mut config = with_roots(RootCertStore::empty(), identity)?;
            config.dangerous().set_certificate_verifier(AnyServer::verifier());
            config
        }
    };
    // upgraded connections need HTTP/1.1
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// For one request to a server that nobody vouches for: whatever it shows is taken. To fetch the certificate authority, whose
/// hash is checked before anything secret is sent anywhere, and to pass a client's request on to a pod.
///
/// # Errors
/// When TLS cannot be set up.
pub fn unverified_client_config() -> Result<ClientConfig, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(AnyServer::verifier())
        .with_no_client_auth();
    config.alpn_protocols = alpn();
    Ok(config)
}

/// Takes any certificate of a server; that the server holds its key is still checked. For probes, for registries whose
/// administrator said so, and for [`unverified_client_config`].
#[derive(Debug)]
pub struct AnyServer(Arc<CryptoProvider>);

impl AnyServer {
    /// One that a [`ClientConfig`] can be given.
    pub fn verifier() -> Arc<Self> {
        Arc::new(Self(provider()))
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
