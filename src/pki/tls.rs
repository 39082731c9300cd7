//! TLS configurations: TLS 1.2 and 1.3, HTTP/2 preferred, `ring` as the only provider.

use crate::authority::Authority;
use crate::files::PkiError;
use crate::identity::Identity;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

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

/// For a server that shows `identity`. A client may show a certificate; one that `client_ca` did not sign fails the handshake.
///
/// # Errors
/// When the certificate or the authority cannot be used.
pub fn server_config(identity: &Identity, client_ca: &Authority) -> Result<ServerConfig, PkiError> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_ca)?), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate().clone()], identity.key())?;
    config.alpn_protocols = alpn();
    Ok(config)
}

/// For a client of servers that `server_ca` vouches for; shows `identity` when there is one.
///
/// # Errors
/// When the certificate or the authority cannot be used.
pub fn client_config(server_ca: &Authority, identity: Option<&Identity>) -> Result<ClientConfig, PkiError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(server_ca)?);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(vec![identity.certificate().clone()], identity.key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn();
    Ok(config)
}
