//! Where etcd is, and what is shown to it.

use super::error::EtcdError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PORT: u16 = 2379;

/// How etcd is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// `https://host:port` or `http://host:port`, separated by commas; the scheme of one holds for those after it, too.
    pub endpoints: String,
    /// Authorities (PEM) that vouch for etcd; `None`: those of the machine.
    pub ca_file: Option<PathBuf>,
    /// Certificate (PEM) that is shown to etcd.
    pub cert_file: Option<PathBuf>,
    /// Its key (PEM).
    pub key_file: Option<PathBuf>,
}

impl EtcdOptions {
    /// Looks at the endpoints, and connects to none.
    ///
    /// # Errors
    /// [`EtcdError::Endpoint`].
    pub fn check(&self) -> Result<(), EtcdError> {
        parse(&self.endpoints).map(drop)
    }
}

/// One member.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
    /// The name that its certificate must have; `None`: without TLS.
    pub(super) tls_name: Option<ServerName<'static>>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls_name.is_some() { "https" } else { "http" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

/// Reads a list of endpoints; never empty.
pub(super) fn parse(list: &str) -> Result<Vec<Endpoint>, EtcdError> {
    let mut tls = None;
    let mut all = Vec::new();
    for given in list.split(',').map(str::trim) {
        let wrong = |why| EtcdError::Endpoint { given: given.to_owned(), why };
        let rest = match given.split_once("://") {
            Some(("https", rest)) => (tls = Some(true), rest).1,
            Some(("http", rest)) => (tls = Some(false), rest).1,
            Some(_) => return Err(wrong("only http and https are known")),
            None => given,
        };
        let tls = tls.ok_or_else(|| wrong("it does not begin with https:// or http://"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = host_and_port(rest).ok_or_else(|| wrong("host or port are malformed"))?;
        let name = || ServerName::try_from(host.to_owned()).map_err(|_| wrong("the host is no name and no address"));
        let tls_name = tls.then(name).transpose()?;
        all.push(Endpoint { host: host.to_owned(), port, tls_name });
    }
    Ok(all)
}

fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        (host, port.strip_prefix(':').or(port.is_empty().then_some(""))?)
    } else {
        text.split_once(':').unwrap_or((text, ""))
    };
    let plain = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:_%".contains(c));
    let port = if port.is_empty() { PORT } else { port.parse().ok().filter(|p| *p > 0)? };
    (plain && !host.is_empty()).then_some((host, port))
}

/// How TLS is spoken with etcd.
pub(super) fn tls(options: &EtcdOptions) -> Result<Arc<ClientConfig>, EtcdError> {
    let mut roots = RootCertStore::empty();
    match &options.ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| wrong(path, e.to_string()))?;
            }
        }
        // what is wrong with some of them does not matter while others vouch for etcd
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| EtcdError::Refused(e.to_string()))?
        .with_root_certificates(roots);
    let mut config = match (&options.cert_file, &options.key_file) {
        (Some(cert), Some(key)) => {
            let private =
                PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, pem_problem(&e, "no private key")))?;
            let both = builder.with_client_auth_cert(certificates(cert)?, private);
            both.map_err(|e| wrong(cert, format!("it does not go with the key in {}: {e}", key.display())))?
        }
        (Some(path), None) => return Err(wrong(path, "the key that belongs to it is missing".to_owned())),
        (None, Some(path)) => return Err(wrong(path, "the certificate that belongs to it is missing".to_owned())),
        (None, None) => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, EtcdError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = read.map_err(|e| wrong(path, pem_problem(&e, "no certificate")))?;
    if all.is_empty() { Err(wrong(path, "there is no certificate in it".to_owned())) } else { Ok(all) }
}

fn pem_problem(error: &rustls::pki_types::pem::Error, what: &str) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => format!("there is {what} in it"),
        other => other.to_string(),
    }
}

fn wrong(path: &Path, why: String) -> EtcdError {
    EtcdError::TlsFile { path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lists_of_endpoints() {
        let text = |list: &str| parse(list).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(text("https://a:2379,b:1"), "https://a:2379 https://b:1");
        assert_eq!(text("https://a, http://[::1]:5/"), "https://a:2379 http://[::1]:5");
        for bad in [
            "",
            "a:2379",
            "unix:///x",
            "https://",
            "https://a:0",
            "https://a:x",
            "https://a,",
            "http://a/b",
            "https://[::1",
        ] {
            assert!(matches!(parse(bad), Err(EtcdError::Endpoint { .. })), "{bad}");
        }
    }

    #[test]
    fn files_that_are_no_good_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (absent, nonsense) = (dir.path().join("absent"), dir.path().join("nonsense"));
        std::fs::write(&nonsense, "x").unwrap();
        let of = |ca: Option<&PathBuf>, cert: Option<&PathBuf>, key: Option<&PathBuf>| {
            let options = EtcdOptions {
                ca_file: ca.cloned(),
                cert_file: cert.cloned(),
                key_file: key.cloned(),
                ..EtcdOptions::default()
            };
            tls(&options).map(drop).map_err(|e| e.to_string())
        };
        of(None, None, None).unwrap();
        for (error, name, words) in [
            (of(Some(&absent), None, None), "absent", "No such file"),
            (of(Some(&nonsense), None, None), "nonsense", "no certificate"),
            (of(None, Some(&nonsense), Some(&nonsense)), "nonsense", "no private key"),
            (of(None, Some(&nonsense), None), "nonsense", "key that belongs"),
            (of(None, None, Some(&nonsense)), "nonsense", "certificate that belongs"),
        ] {
            let error = error.unwrap_err();
            assert!(error.contains(name) && error.contains(words), "{error}");
        }
    }
}
