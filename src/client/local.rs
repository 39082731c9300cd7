//! The transport that calls the API server of the same process: no socket, no TLS, but the same filter chain.

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use kube::client::Body;
use std::sync::Arc;

/// What the local transport hands to the API server: a request with its whole body.
pub type LocalRequest = Request<Bytes>;

/// What the API server answers: a response whose body may go on for ever (watches, logs).
pub type LocalResponse = Response<UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>>;

/// Makes a client whose requests are answered by `call`, which must know on whose behalf it is called.
///
/// Must be called within a tokio runtime. Dropping the last clone of the client ends its dispatch task.
pub fn local<F>(call: F) -> crate::Client
where
    F: Fn(LocalRequest) -> BoxFuture<'static, LocalResponse> + Send + Sync + 'static,
{
    let call = Arc::new(call);
    let service = tower::service_fn(move |request: Request<Body>| {
        let call = call.clone();
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await?;
            Ok::<_, crate::Error>(call(Request::from_parts(parts, bytes)).await)
        }
    });
    crate::Client::new(service, "default")
}
