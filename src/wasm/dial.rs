//! Connections for the requests of programs: made by the process itself, or by somebody else who has the program's network.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why there is no connection.
#[derive(Debug, Error)]
pub(crate) enum DialError {
    /// The name means nothing. The words are those that hyper-util has for it.
    #[error("dns error")]
    Name(#[source] io::Error),
    #[error("cannot connect")]
    Connect(#[source] io::Error),
}

/// Makes connections for somebody who cannot.
pub(crate) trait Dial: Send + Sync {
    /// Looks up the host's name and connects to it.
    fn dial(&self, host: String, port: u16) -> Boxed<Result<TcpStream, DialError>>;
}

/// How the requests of a program get to others.
#[derive(Clone)]
pub(crate) enum Network {
    /// Not at all.
    Nobody,
    /// By sockets of this process.
    Process,
    /// By connections that somebody else makes.
    Other(Arc<dyn Dial>),
}

/// What hyper connects with.
#[derive(Clone)]
pub(crate) enum Connector {
    Process(HttpConnector),
    Other { dial: Arc<dyn Dial>, within: Option<Duration> },
}

impl Network {
    /// A connector that takes no longer than `within`; `None` where there is no network.
    pub(crate) fn connector(&self, within: Option<Duration>) -> Option<Connector> {
        match self {
            Self::Nobody => None,
            Self::Process => {
                let mut tcp = HttpConnector::new();
                tcp.set_connect_timeout(within);
                tcp.set_nodelay(true);
                // The scheme is what the client above it goes by.
                tcp.enforce_http(false);
                Some(Connector::Process(tcp))
            }
            Self::Other(dial) => Some(Connector::Other { dial: Arc::clone(dial), within }),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Boxed<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Process(tcp) => tcp.poll_ready(cx).map_err(Into::into),
            Self::Other { .. } => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self {
            Self::Process(tcp) => {
                let connecting = tcp.call(uri);
                Box::pin(async move { connecting.await.map_err(Into::into) })
            }
            Self::Other { dial, within } => {
                let (dial, within) = (Arc::clone(dial), *within);
                Box::pin(async move { connect(&*dial, &uri, within).await.map_err(Into::into) })
            }
        }
    }
}

async fn connect(dial: &dyn Dial, uri: &Uri, within: Option<Duration>) -> Result<TokioIo<TcpStream>, DialError> {
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    // An IPv6 address has brackets in a URI and nowhere else.
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let dialling = dial.dial(host.to_owned(), uri.port_u16().unwrap_or(usual));
    let stream = match within {
        Some(within) => tokio::time::timeout(within, dialling)
            .await
            .map_err(|_| DialError::Connect(io::ErrorKind::TimedOut.into()))?,
        None => dialling.await,
    }?;
    // Only a hint; without it requests go as well.
    let _ = stream.set_nodelay(true);
    Ok(TokioIo::new(stream))
}
