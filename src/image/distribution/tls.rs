//! TLS with one registry: whom to trust and who we are, from `registries.yaml` or the system.

use super::config::TlsFiles;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;

/// The TLS client configuration for a host. Reads files: blocking. The text of an error says what is wrong.
pub(super) fn client_config(files: &TlsFiles) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if files.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(edge_pki::AnyServer::verifier())
    } else {
        let roots = Arc::new(roots(files.ca_file.as_deref())?);
        if roots.is_empty() {
            // No trusted roots on this machine: rustls refuses an empty verifier, but not an empty store.
            builder.with_root_certificates(roots)
        } else {
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            builder.with_webpki_verifier(verifier.map_err(|error| error.to_string())?)
        }
    };
    match (&files.cert_file, &files.key_file) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{}: {e}", key.display()))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

/// The configured CA alone, or else the system's. A system without any is no error here: the handshake will say so.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs();
            for error in &native.errors {
                tracing::debug!(%error, "load the system's root certificates");
            }
            roots.add_parsable_certificates(native.certs);
        }
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let parsed = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match parsed {
        Ok(certificates) if certificates.is_empty() => Err(format!("{}: no certificate in it", file.display())),
        parsed => parsed.map_err(|error| format!("{}: {error}", file.display())),
    }
}
