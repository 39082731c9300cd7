//! Keys and certificates on disk: written whole or not at all, secrets readable by root alone.

use crate::PkiError;
use std::path::Path;

/// Mode of private keys.
pub(crate) const SECRET: u32 = 0o600;
/// Mode of certificates.
pub(crate) const PUBLIC: u32 = 0o644;

/// The text of a file; `None` when it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Io { path: path.into(), source }),
    }
}

/// Writes a file durably.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    edge_sys::fsutil::write_atomic(path, text.as_bytes(), mode)
        .map_err(|source| PkiError::Io { path: path.into(), source })
}

/// The error for a file that is not what it should be.
pub(crate) fn malformed(path: &Path, reason: impl ToString) -> PkiError {
    PkiError::Malformed { path: path.into(), reason: reason.to_string() }
}
