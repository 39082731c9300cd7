//! HTTP requests of probes and hooks: one GET, to a pod, over plain or unverified TLS.

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls_pki_types::ServerName;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Most bytes read of an answer; the rest is of no interest.
const MAX_BODY: usize = 10 * 1024;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("couldn't find port: {0}")]
    NoPort(String),
    #[error("the pod has no address")]
    NoAddress,
    #[error("Get \"{url}\": cannot connect")]
    Connect {
        url: String,
        #[source]
        source: std::io::Error,
    },
    #[error("Get \"{url}\": TLS failed")]
    Tls {
        url: String,
        #[source]
        source: std::io::Error,
    },
    #[error("Get \"{url}\": no valid answer")]
    Http {
        url: String,
        #[source]
        source: hyper::Error,
    },
    #[error("invalid request for \"{url}\"")]
    Request {
        url: String,
        #[source]
        source: http::Error,
    },
}

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    host: String,
    port: u16,
    https: bool,
    path: String,
    headers: Vec<(String, String)>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// The number of a port given by number or by its name in the container.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, HttpError> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    };
    let text = || match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0).ok_or_else(|| HttpError::NoPort(text()))
}

impl Target {
    /// The target of an action; the pod's own address unless the action names a host.
    pub(crate) fn new(action: &HTTPGetAction, container: &Container, addresses: &[IpAddr]) -> Result<Self, HttpError> {
        let own = || addresses.first().map(ToString::to_string).ok_or(HttpError::NoAddress);
        let host = action.host.clone().filter(|h| !h.is_empty()).map_or_else(own, Ok)?;
        let path = action.path.clone().unwrap_or_default();
        let headers = action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone()));
        Ok(Self {
            host,
            port: port(&action.port, container)?,
            https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("HTTPS")),
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: headers.collect(),
        })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.https { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// Asks once.
pub(crate) async fn get(target: &Target, agent: &str) -> Result<Answer, HttpError> {
    let url = target.url();
    let connect = |source| HttpError::Connect { url: url.clone(), source };
    let tcp = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(connect)?;
    if !target.https {
        return ask(tcp, target, agent).await;
    }
    let tls = |source| HttpError::Tls { url: url.clone(), source };
    let name = ServerName::try_from(target.host.clone()).map_err(|e| tls(std::io::Error::other(e)))?;
    let connector = tokio_rustls::TlsConnector::from(UNVERIFIED.clone());
    let stream = connector.connect(name, tcp).await.map_err(tls)?;
    ask(stream, target, agent).await
}

async fn ask<S>(stream: S, target: &Target, agent: &str) -> Result<Answer, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let url = target.url();
    let failed = |source| HttpError::Http { url: url.clone(), source };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut request = http::Request::get(target.path.as_str());
    let given = |name: &str| target.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    for (name, value) in
        [("host", target.authority().as_str()), ("user-agent", agent), ("accept", "*/*"), ("connection", "close")]
    {
        if !given(name) {
            request = request.header(name, value);
        }
    }
    let request = request.body(Empty::<bytes::Bytes>::new());
    let request = request.map_err(|source| HttpError::Request { url: url.clone(), source })?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status().as_u16();
        // too long a body is cut off, a broken one does not change the status
        let body = Limited::new(answer.into_body(), MAX_BODY).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // the connection may end before the answer is read out of it
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(source) => Err(failed(source)),
        },
    }
}

/// Probes do not verify certificates, as the kubelet's.
static UNVERIFIED: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("invariant: ring supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(edge_pki::AnyServer::verifier())
        .with_no_client_auth();
    Arc::new(config)
});

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn targets_are_built_from_actions() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        let target = |action: serde_json::Value| {
            Target::new(&serde_json::from_value(action).unwrap(), &container, &["10.0.0.1".parse().unwrap()])
        };
        assert_eq!(target(json!({"port": "web"})).unwrap().url(), "http://10.0.0.1:8080/");
        let https = target(json!({"port": 1, "scheme": "HTTPS", "host": "h", "path": "x?y"})).unwrap();
        assert_eq!(https.url(), "https://h:1/x?y");
        assert!(target(json!({"port": "none"})).is_err());
        assert!(target(json!({"port": 0})).is_err());
        assert!(target(json!({"port": 70000})).is_err());
    }

    async fn answered(answer: &'static [u8]) -> Result<Answer, HttpError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let target = Target {
            host: "127.0.0.1".into(),
            port,
            https: false,
            path: "/ok".into(),
            headers: vec![("Host".into(), "other".into()), ("X-A".into(), "b".into())],
        };
        let result = get(&target, "agent").await;
        let request = server.await.unwrap().to_lowercase();
        assert!(
            request.starts_with("get /ok http/1.1\r\n")
                && request.contains("host: other")
                && request.contains("x-a: b")
        );
        assert_eq!(request.matches("host:").count(), 1);
        result
    }

    #[tokio::test]
    async fn answers_are_read_and_garbage_is_an_error() {
        let answer = answered(b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy").await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "busy"));
        assert_eq!(answered(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap().status, 200);
        assert!(answered(b"garbage\r\n\r\n").await.is_err());
        assert!(answered(b"").await.is_err());
    }
}
