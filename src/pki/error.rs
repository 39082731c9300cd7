//! What can go wrong with certificates and keys.

use std::path::PathBuf;

/// Why a certificate or key cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be; it is left as it is.
    #[error("{path}: {reason}: restore it, or remove it together with its counterpart to have a new one made")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate or key cannot be made.
    #[error("cannot make a certificate")]
    Generate(#[from] rcgen::Error),
    /// TLS does not accept the certificates.
    #[error("cannot set TLS up")]
    Tls(#[from] rustls::Error),
    /// A client certificate is malformed.
    #[error("malformed certificate: {0}")]
    Certificate(String),
}
