//! What can go wrong with images, in kinds that the kubelet can tell apart.

use crate::digest::{Digest, InvalidDigest};
use crate::reference::InvalidReference;
use std::io;
use std::path::{Path, PathBuf};

/// An image could not be imported, pulled, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an image name: the kubelet's `InvalidImageName`.
    #[error(transparent)]
    InvalidReference(#[from] InvalidReference),
    /// The disk or the quota is full.
    #[error("no space left on device: {}", path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Reading or writing the store failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried, such as `write`.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// An archive of the drop folder is damaged or no image archive.
    #[error("image archive {}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        reason: Box<Self>,
    },
    /// A damaged or unfit document: manifest, index, configuration, archive.
    #[error("{what}: {reason}")]
    Malformed {
        /// Which document.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A layer that must not, or cannot, be unpacked.
    #[error("layer {diff_id}: {source}")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// Why.
        source: crate::unpack::LayerError,
    },
    /// Bytes are not what their digest promises.
    #[error("digest mismatch: want {want}, got {got}")]
    DigestMismatch {
        /// Promised.
        want: Digest,
        /// Found.
        got: Digest,
    },
    /// A blob has another size than its descriptor says.
    #[error("blob {digest}: want {want} bytes, got {got}")]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// Promised.
        want: u64,
        /// Found.
        got: u64,
    },
    /// No image of the index fits this machine.
    #[error("no match for platform {platform} in manifest{}", offered_list(offered))]
    NoPlatform {
        /// This machine.
        platform: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// Talking to a registry failed.
    #[error(transparent)]
    Registry(#[from] crate::distribution::RegistryError),
    /// `registries.yaml` or a pull secret is wrong.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another caller's pull of the same image, which this one shared, failed.
    #[error(transparent)]
    Shared(std::sync::Arc<Self>),
    /// A worker thread ended unexpectedly.
    #[error("image worker panicked")]
    Worker(#[source] tokio::task::JoinError),
}

fn offered_list(offered: &[String]) -> String {
    if offered.is_empty() { String::new() } else { format!(" (it has {})", offered.join(", ")) }
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path, source },
            _ => Self::Io { action, path, source },
        }
    }

    pub(crate) fn malformed(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Malformed { what: what.into(), reason: reason.to_string() }
    }

    /// The error below the wrappers that only say where it happened.
    #[must_use]
    pub fn root(&self) -> &Self {
        match self {
            Self::Archive { reason, .. } => reason.root(),
            Self::Shared(shared) => shared.root(),
            other => other,
        }
    }

    /// Whether the disk was full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self.root() {
            Self::NoSpace { .. } => true,
            Self::Layer { source, .. } => source.is_no_space(),
            _ => false,
        }
    }
}

impl From<InvalidDigest> for Error {
    fn from(invalid: InvalidDigest) -> Self {
        Self::malformed("digest", invalid)
    }
}

/// An error with all its causes in one line, for events and container statuses.
#[must_use]
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}
