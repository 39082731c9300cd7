//! What can go wrong for a user.

use std::path::PathBuf;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig cannot be used: {0}")]
    Config(String),
    /// The server refused, in its words.
    #[error("Error from server ({reason}): {message}")]
    Refused {
        /// Kubernetes' reason, such as `NotFound`.
        reason: String,
        /// The server's message.
        message: String,
    },
    /// No answer came.
    #[error("unable to connect to the server: {0}")]
    Unreachable(String),
    /// A word that names no resource.
    #[error("the server doesn't have a resource type {0:?}")]
    NoSuchResource(String),
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Something on this machine failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<edge_client::Error> for Error {
    fn from(error: edge_client::Error) -> Self {
        match error {
            edge_client::Error::Api(status) => {
                let reason = if status.reason.is_empty() { status.code.to_string() } else { status.reason.clone() };
                Self::Refused { reason, message: status.message.clone() }
            }
            other => {
                let mut text = other.to_string();
                let mut cause = std::error::Error::source(&other);
                while let Some(error) = cause {
                    let more = error.to_string();
                    if !text.ends_with(&more) {
                        text = format!("{text}: {more}");
                    }
                    cause = error.source();
                }
                Self::Unreachable(text)
            }
        }
    }
}
