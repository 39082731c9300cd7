//! Reading and writing key material, and the errors of this room.

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::io;
use std::path::{Path, PathBuf};

/// Why a key or certificate cannot be had. Files that are found are never overwritten because of an error.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or directory cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// `read`, `write`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should: truncated, or overwritten by somebody.
    #[error("{path} holds no valid {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// `certificate`, `private key`.
        what: &'static str,
    },
    /// A certificate is there, but not its key.
    #[error("{certificate} exists but its key {key} does not")]
    KeyMissing {
        /// The certificate.
        certificate: PathBuf,
        /// The missing key.
        key: PathBuf,
    },
    /// The certificate and the key do not belong together.
    #[error("the key {key} does not belong to {certificate}")]
    KeyMismatch {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A key or certificate cannot be made.
    #[error("cannot issue a certificate for {subject}")]
    Issue {
        /// Common name.
        subject: String,
        /// What the library says.
        #[source]
        source: rcgen::Error,
    },
    /// A TLS configuration is refused.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The client authority cannot be used to verify.
    #[error("cannot set up the verification of client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

pub(crate) const SECRET: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;

/// The content of a file; `None` when it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, PkiError> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Io { action: "read", path: path.to_owned(), source }),
    }
}

pub(crate) fn write(path: &Path, content: &str, mode: u32) -> Result<(), PkiError> {
    edge_sys::fsutil::write_atomic(path, content.as_bytes(), mode).map_err(|source| PkiError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// Makes a directory for secrets.
pub(crate) fn private_dir(path: &Path) -> Result<(), PkiError> {
    edge_sys::fsutil::create_dir_all_mode(path, 0o700).map_err(|source| PkiError::Io {
        action: "create",
        path: path.to_owned(),
        source,
    })
}

/// The private key in a PEM file.
pub(crate) fn parse_key(path: &Path, pem: &[u8]) -> Result<KeyPair, PkiError> {
    let malformed = || PkiError::Malformed { path: path.to_owned(), what: "private key" };
    let text = std::str::from_utf8(pem).map_err(|_| malformed())?;
    KeyPair::from_pem(text).map_err(|_| malformed())
}

/// The certificates in a PEM file, at least one, each of them parseable.
pub(crate) fn parse_certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let malformed = || PkiError::Malformed { path: path.to_owned(), what: "certificate" };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| malformed())?;
    if chain.is_empty() || chain.iter().any(|c| x509_parser::parse_x509_certificate(c).is_err()) {
        return Err(malformed());
    }
    Ok(chain)
}

/// Whether the certificate is about this key.
pub(crate) fn belongs(key: &KeyPair, certificate: &[u8]) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, c)| c.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}
