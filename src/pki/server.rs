//! Everything that a server needs, in one place: its authorities, its certificate, its token key.

use crate::certificate::{now, read};
use crate::files::{self, PUBLIC, SECRET, malformed};
use crate::{Authority, Identity, PkiError, TokenKey, kubeconfig};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A serving certificate is replaced when it is valid for less than this, in seconds.
const RENEW_BEFORE: u64 = 90 * 24 * 60 * 60;

/// Who the server is.
#[derive(Clone, Debug)]
pub struct PkiOptions {
    /// Where certificates and keys are kept: `<data-dir>/server/tls`.
    pub dir: PathBuf,
    /// Domain of the cluster, for instance `cluster.local`.
    pub cluster_domain: String,
    /// Addresses by which the API is reached: the service's, the node's, loopback is added.
    pub addresses: Vec<IpAddr>,
    /// Further names and addresses (`--tls-san`), and the node's name.
    pub names: Vec<String>,
}

/// The server's certificates and keys.
pub struct Pki {
    server_ca: Authority,
    client_ca: Authority,
    serving: Identity,
    token_key: Arc<TokenKey>,
}

impl Pki {
    /// Reads what is there and makes what is missing; renews the serving certificate when it expires soon or lacks a
    /// name.
    ///
    /// # Errors
    /// When a file cannot be read, written or parsed, naming it. Nothing that is there is overwritten then.
    pub fn load_or_create(options: &PkiOptions) -> Result<Self, PkiError> {
        let dir = &options.dir;
        edge_sys::fsutil::create_dir_all_mode(dir, 0o700)
            .map_err(|source| PkiError::Io { path: dir.clone(), source })?;
        let server_ca = Authority::load_or_create(dir, "server-ca")?;
        let client_ca = Authority::load_or_create(dir, "client-ca")?;
        let serving = serving(dir, &server_ca, &names(options))?;
        let token_key = Arc::new(TokenKey::load_or_create(dir)?);
        Ok(Self { server_ca, client_ca, serving, token_key })
    }

    /// The authority that signed the server's certificate, PEM: what clients verify it with.
    pub fn server_ca(&self) -> &str {
        self.server_ca.pem()
    }

    /// The authority for client certificates.
    pub fn client_ca(&self) -> &Authority {
        &self.client_ca
    }

    /// The key that signs service-account tokens.
    pub fn token_key(&self) -> Arc<TokenKey> {
        self.token_key.clone()
    }

    /// A kubeconfig whose user is in `system:masters`, with a fresh client certificate.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn admin_kubeconfig(&self, server: &str) -> Result<String, PkiError> {
        let admin = self.client_ca.client("system:admin", &["system:masters"])?;
        Ok(kubeconfig(server, self.server_ca(), &admin))
    }

    /// TLS 1.2 and 1.3 with HTTP/2 and HTTP/1.1; client certificates are optional and verified.
    ///
    /// # Errors
    /// When TLS does not accept the certificates.
    pub fn server_config(&self) -> Result<ServerConfig, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(certificate(self.client_ca.pem())?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| PkiError::Certificate(e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(self.serving.key.as_bytes())
            .map_err(|e| PkiError::Certificate(e.to_string()))?;
        let chain = vec![certificate(&self.serving.certificate)?];
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| PkiError::Certificate(e.to_string()))
}

/// All names of the API server, as clients inside and outside of the cluster use them.
fn names(options: &PkiOptions) -> Vec<String> {
    let domain = &options.cluster_domain;
    let mut out: Vec<String> = vec![
        "kubernetes".into(),
        "kubernetes.default".into(),
        "kubernetes.default.svc".into(),
        format!("kubernetes.default.svc.{domain}"),
        "localhost".into(),
        "127.0.0.1".into(),
        "::1".into(),
    ];
    out.extend(options.addresses.iter().map(IpAddr::to_string));
    out.extend(options.names.iter().cloned());
    out.sort();
    out.dedup();
    out
}

/// The serving certificate on disk when it still does, else a new one.
fn serving(dir: &Path, authority: &Authority, names: &[String]) -> Result<Identity, PkiError> {
    let (certificate_path, key_path) = (dir.join("serving-kube-apiserver.crt"), dir.join("serving-kube-apiserver.key"));
    if let (Some(certificate), Some(key)) = (files::read(&certificate_path)?, files::read(&key_path)?) {
        let known = read(&certificate).map_err(|e| malformed(&certificate_path, e))?;
        let fits = rcgen::KeyPair::from_pem(&key).map_err(|e| malformed(&key_path, e))?;
        let matches = is_pair(&certificate, &fits);
        if matches && known.not_after > now() + RENEW_BEFORE && names.iter().all(|n| known.names.contains(n)) {
            return Ok(Identity { certificate, key });
        }
    }
    let made = authority.serving("kube-apiserver", names)?;
    files::write(&key_path, &made.key, SECRET)?;
    files::write(&certificate_path, &made.certificate, PUBLIC)?;
    Ok(made)
}

/// Whether a certificate is for a key: a crash between writing the two leaves strangers, which are replaced.
fn is_pair(certificate: &str, key: &rcgen::KeyPair) -> bool {
    x509_parser::pem::parse_x509_pem(certificate.as_bytes())
        .ok()
        .and_then(|(_, block)| {
            let parsed = block.parse_x509().ok()?;
            Some(parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
        })
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn options(dir: &Path, names: &[&str]) -> PkiOptions {
        PkiOptions {
            dir: dir.join("tls"),
            cluster_domain: "cluster.local".into(),
            addresses: vec!["10.43.0.1".parse().unwrap()],
            names: names.iter().map(|n| (*n).to_owned()).collect(),
        }
    }

    #[test]
    fn made_once_and_renewed_for_new_names() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(&options(dir.path(), &["a"])).unwrap();
        let again = Pki::load_or_create(&options(dir.path(), &["a"])).unwrap();
        assert_eq!(first.serving.certificate, again.serving.certificate);
        assert_eq!(first.server_ca(), again.server_ca());
        let named = Pki::load_or_create(&options(dir.path(), &["a", "edge.example.com", "192.0.2.1"])).unwrap();
        assert_ne!(first.serving.certificate, named.serving.certificate);
        assert_eq!(first.server_ca(), named.server_ca());
        let names = read(&named.serving.certificate).unwrap().names;
        for n in ["kubernetes.default.svc.cluster.local", "127.0.0.1", "10.43.0.1", "192.0.2.1", "edge.example.com"] {
            assert!(names.iter().any(|x| x == n), "{n}: {names:?}");
        }
        named.server_config().unwrap();
        for entry in std::fs::read_dir(dir.path().join("tls")).unwrap() {
            let entry = entry.unwrap();
            let secret = entry.path().extension().is_some_and(|e| e == "key");
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if secret { 0o600 } else { 0o644 }, "{:?}", entry.path());
        }
    }

    #[test]
    fn client_certificates_carry_the_user() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(&options(dir.path(), &[])).unwrap();
        let identity = pki.client_ca().client("system:node:a", &["system:nodes"]).unwrap();
        let user = user_of_pem(&identity.certificate);
        assert_eq!(user.username, "system:node:a");
        assert!(user.in_group("system:nodes") && user.in_group("system:authenticated"));
        assert!(crate::user_of(b"nonsense").is_err());
        assert!(pki.admin_kubeconfig("https://127.0.0.1:6443").unwrap().contains("client-key-data: "));
    }

    fn user_of_pem(pem: &str) -> edge_api::UserInfo {
        crate::user_of(&certificate(pem).unwrap()).unwrap()
    }

    #[test]
    fn broken_files_are_named_and_kept() {
        for name in ["server-ca.crt", "client-ca.key", "serving-kube-apiserver.crt", "serving-kube-apiserver.key"] {
            let dir = tempfile::tempdir().unwrap();
            Pki::load_or_create(&options(dir.path(), &[])).unwrap();
            let path = dir.path().join("tls").join(name);
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            let error = Pki::load_or_create(&options(dir.path(), &[])).err().unwrap().to_string();
            assert!(error.contains(name), "{name}: {error}");
            assert_eq!(std::fs::read(&path).unwrap(), &whole[..whole.len() / 2]);
        }
        // an authority without its key is not replaced, for everything it signed would be worthless
        let dir = tempfile::tempdir().unwrap();
        Pki::load_or_create(&options(dir.path(), &[])).unwrap();
        std::fs::remove_file(dir.path().join("tls/server-ca.key")).unwrap();
        assert!(Pki::load_or_create(&options(dir.path(), &[])).is_err());
    }
}
