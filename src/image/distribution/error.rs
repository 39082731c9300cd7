//! What can go wrong between us and a registry, told apart as far as a user can act on it.

use http::StatusCode;
use std::io;
use std::time::Duration;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A registry could not be reached or did not give what was asked for. Every message names the host.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The image, or one of its parts, does not exist (or is hidden from us).
    #[error("{what}: not found in registry {host}")]
    NotFound {
        /// Registry host.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry wants (other) credentials.
    #[error("{what}: unauthorized by registry {host}: {reason}")]
    Unauthorized {
        /// Registry or token server host.
        host: String,
        /// What was asked for.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// No trusted TLS connection.
    #[error("TLS with registry {host} failed")]
    Tls {
        /// Registry host.
        host: String,
        /// What rustls says.
        #[source]
        source: Source,
    },
    /// No connection at all: refused, unreachable, unknown host name.
    #[error("connect to registry {host}")]
    Connect {
        /// Registry host.
        host: String,
        /// The system's error.
        #[source]
        source: Source,
    },
    /// The connection broke.
    #[error("connection to registry {host} broke")]
    Broken {
        /// Registry host.
        host: String,
        /// The HTTP client's error.
        #[source]
        source: Source,
    },
    /// Nothing came for so long.
    #[error("registry {host} sent nothing for {after:?}")]
    Stalled {
        /// Registry host.
        host: String,
        /// How long was waited.
        after: Duration,
    },
    /// Any other answer than the expected one.
    #[error("{what}: registry {host} answered {status}: {reason}")]
    Status {
        /// Registry host.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: StatusCode,
        /// What the server said.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("registry {host}: {reason}")]
    Protocol {
        /// Registry host.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate or key of `registries.yaml`, or an endpoint, cannot be used.
    #[error("configuration of registry {host}: {reason}")]
    Config {
        /// Registry host.
        host: String,
        /// What is wrong.
        reason: String,
    },
}

impl RegistryError {
    /// Whether trying again, perhaps where it broke off, can help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            _ => false,
        }
    }

    /// Sorts an error of the HTTP client by its causes.
    pub(crate) fn from_client(host: &str, error: hyper_util::client::legacy::Error) -> Self {
        let host = host.to_owned();
        let (tls, connect) = (has_tls_cause(&error), error.is_connect());
        let source = Box::new(error);
        match (tls, connect) {
            (true, _) => Self::Tls { host, source },
            (false, true) => Self::Connect { host, source },
            (false, false) => Self::Broken { host, source },
        }
    }
}

fn has_tls_cause(error: &(dyn std::error::Error + 'static)) -> bool {
    // An I/O error that wraps another one shows it only so, and leaves it out of its sources.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|inner| has_tls_cause(inner))
        || error.source().is_some_and(has_tls_cause)
}
