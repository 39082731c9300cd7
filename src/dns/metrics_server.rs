//! `GET /metrics` over plain HTTP, as CoreDNS serves it on port 9153: for whoever collects the DNS's counters from inside of the
//! cluster. The node's kubelet serves the same, authenticated.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Metrics;

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait after the kernel has refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the counters on those of `addresses` that can be listened on; names are more important than their counters.
pub(crate) async fn run(addresses: &[SocketAddr], metrics: Arc<Metrics>) {
    let metrics = &metrics;
    join_all(addresses.iter().map(|address| async move {
        match TcpListener::bind(address).await {
            Ok(listener) => serve(listener, metrics.clone()).await,
            Err(error) => tracing::warn!(%address, %error, "the DNS's metrics are not served here"),
        }
    }))
    .await;
}

async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
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
        let metrics = metrics.clone();
        connections.spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &metrics);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            let http = http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            // Who breaks off has no answer to miss.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        let mut answer = Response::new(Full::new(Bytes::from_static(b"404 page not found\n")));
        *answer.status_mut() = StatusCode::NOT_FOUND;
        return answer;
    }
    let mut answer = Response::new(Full::new(Bytes::from(metrics.text())));
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
