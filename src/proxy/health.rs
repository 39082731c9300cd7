//! Answers load balancers that ask whether a service with `externalTrafficPolicy: Local` has pods on this node, as kube-proxy
//! does: one port for each service, status 200 or 503.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use edge_client::Key;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::compile::HealthCheck;

/// Connections to one port at the same time.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait after the kernel has refused a connection, for instance for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Port {
    service: Key,
    endpoints: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The ports that are answered.
#[derive(Default)]
pub(crate) struct HealthServer {
    ports: HashMap<u16, Port>,
}

impl HealthServer {
    /// Answers these checks from now on, and no others.
    pub(crate) async fn set(&mut self, checks: Vec<(Key, HealthCheck)>) {
        let wanted: HashMap<u16, (Key, usize)> =
            checks.into_iter().map(|(key, check)| (check.port, (key, check.local_endpoints))).collect();
        self.ports.retain(|number, port| wanted.get(number).is_some_and(|(service, _)| *service == port.service));
        for (number, (service, count)) in wanted {
            if let Some(port) = self.ports.get(&number) {
                port.endpoints.store(count, Ordering::Relaxed);
                continue;
            }
            match listen(number).await {
                Ok(listener) => {
                    let endpoints = Arc::new(AtomicUsize::new(count));
                    let serving = tokio::spawn(serve(listener, service.clone(), endpoints.clone()));
                    self.ports.insert(number, Port { service, endpoints, serving });
                }
                Err(error) => tracing::warn!(%service, port = number, %error, "health checks are not answered"),
            }
        }
    }
}

/// Listens on all addresses of the node.
async fn listen(port: u16) -> io::Result<TcpListener> {
    let all = |address: IpAddr| TcpListener::bind(SocketAddr::new(address, port));
    match all(Ipv6Addr::UNSPECIFIED.into()).await {
        Ok(listener) => Ok(listener),
        // A machine without IPv6.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => all(Ipv4Addr::UNSPECIFIED.into()).await,
    }
}

async fn serve(listener: TcpListener, service: Key, endpoints: Arc<AtomicUsize>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // Further clients wait in the kernel's queue.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (service, endpoints) = (service.clone(), endpoints.clone());
        connections.spawn(async move {
            let answer = service_fn(|_| {
                let answer = answer(&service, endpoints.load(Ordering::Relaxed));
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            let http = http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            // Who breaks off has no answer to miss.
            let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            drop(place);
        });
    }
}

/// The answer that load balancers know from kube-proxy.
fn answer(service: &Key, endpoints: usize) -> Response<Full<Bytes>> {
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": true\n}}",
        service.namespace, service.name
    );
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = if endpoints > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(endpoints));
    response
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn ask(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    #[tokio::test]
    async fn answers_as_long_as_there_is_something_to_answer_for() {
        let port = TcpListener::bind("0.0.0.0:0").await.unwrap().local_addr().unwrap().port();
        let mut server = HealthServer::default();
        let check = |local_endpoints| vec![(Key::new("ns", "web"), HealthCheck { port, local_endpoints })];
        server.set(check(2)).await;
        let text = ask(port).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(text.contains("\"localEndpoints\": 2") && text.contains("\"name\": \"web\""), "{text}");
        assert!(text.contains("x-load-balancing-endpoint-weight: 2"), "{text}");
        server.set(check(0)).await;
        assert!(ask(port).await.unwrap().starts_with("HTTP/1.1 503"));
        server.set(Vec::new()).await;
        tokio::task::yield_now().await;
        // The listener goes with its task, which ends as soon as it is scheduled again.
        let mut tries = 0;
        while ask(port).await.is_ok() {
            tries += 1;
            assert!(tries < 1000);
            tokio::task::yield_now().await;
        }
    }
}
