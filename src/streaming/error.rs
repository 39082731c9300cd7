//! What can go wrong before the upgrade ([`UpgradeError`], an HTTP answer) and after it ([`Error`]).

use http::StatusCode;
use std::time::Duration;

/// Why a request cannot be upgraded; answered to the client as plain HTTP with [`UpgradeError::status_code`].
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// No `Connection: Upgrade` with an `Upgrade` of SPDY/3.1 or websocket.
    #[error("unable to upgrade: missing upgrade headers in request")]
    NotAnUpgrade,
    /// The `Upgrade` header names something else.
    #[error("unable to upgrade: unsupported protocol {0:?}")]
    UnsupportedUpgrade(String),
    /// None of the streaming (sub)protocols that the client offers is known.
    #[error("unable to upgrade: unable to negotiate protocol: client supports {client:?}, server accepts {server:?}")]
    NoCommonProtocol {
        /// What the client offered.
        client: Vec<String>,
        /// What this server speaks.
        server: &'static [&'static str],
    },
    /// A WebSocket handshake without a usable key or with another version than 13.
    #[error("unable to upgrade: bad websocket handshake: {0}")]
    BadHandshake(&'static str),
    /// Neither stdin, nor stdout, nor stderr, or no valid port: nothing to stream.
    #[error("{0}")]
    BadRequest(String),
}

impl UpgradeError {
    /// The HTTP status to answer with.
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        match self {
            Self::NoCommonProtocol { .. } => StatusCode::FORBIDDEN,
            Self::NotAnUpgrade | Self::UnsupportedUpgrade(_) | Self::BadHandshake(_) | Self::BadRequest(_) => {
                StatusCode::BAD_REQUEST
            }
        }
    }
}

/// Why a session did not come up, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The HTTP server did not hand the connection over.
    #[error("upgrade the connection")]
    Upgrade(#[source] hyper::Error),
    /// Reading or writing the connection failed.
    #[error("streaming connection")]
    Io(#[from] std::io::Error),
    /// The peer broke the protocol; the text says how.
    #[error("streaming protocol: {0}")]
    Protocol(String),
    /// The client did not open the streams it announced.
    #[error("timed out after {0:?} waiting for the client to create its streams")]
    StreamsTimeout(Duration),
    /// The client is gone.
    #[error("the client closed the connection")]
    Disconnected,
}
