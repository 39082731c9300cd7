//! A client's request, answered by the server behind an APIService.

use super::Remote;
use super::reach::{By, send};
use crate::Server;
use crate::body::{Body, BoxError};
use crate::request_info::RequestInfo;
use edge_api::{Reason, Status, UserInfo};
use futures::stream;
use http::header::LOCATION;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a request may take that is not meant to go on (kube-apiserver's value).
const PATIENCE: Duration = Duration::from_secs(60);

/// Passes an authorized request on. Answers come back as they are, but for redirects: those would lead clients, with what they
/// have shown to this server, to wherever the other one likes.
///
/// # Errors
/// 503 when the server is not there, 504 when it is too slow, 429 when it has too much to do already.
pub(crate) async fn pass(
    server: &Server,
    user: &UserInfo,
    info: &RequestInfo,
    remote: &Remote,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    if !remote.is_available() {
        return Err(Status::unavailable("service unavailable"));
    }
    if let Err(error) = &remote.connections {
        return Err(Status::internal(error));
    }
    if info.is_long_running() {
        return permitted(send(server, remote, user, request, By::Kept).await?);
    }
    let slot = Arc::clone(&remote.slots)
        .try_acquire_owned()
        .map_err(|_| Status::too_many_requests("Too many requests, please try again later.", 1))?;
    let end = Instant::now() + PATIENCE;
    let answered = tokio::time::timeout_at(end, send(server, remote, user, request, By::Kept)).await;
    let response = permitted(answered.map_err(|_| late())??)?;
    Ok(response.map(|body| if body.is_full() { body } else { until(body, end).holding(slot) }))
}

fn late() -> Status {
    Status::timeout("Timeout: request did not complete within the allotted timeout")
}

fn permitted(response: Response<Body>) -> Result<Response<Body>, Status> {
    if response.status().is_redirection() && response.headers().contains_key(LOCATION) {
        let message = "the backend attempted to redirect this request, which is not permitted";
        return Err(Status::new(502, Reason::InternalError, message));
    }
    Ok(response)
}

/// The same body, which breaks off when it has not ended by then.
fn until(body: Body, end: Instant) -> Body {
    Body::stream(StreamBody::new(stream::unfold(Some(body), move |body| async move {
        let mut body = body?;
        match tokio::time::timeout_at(end, body.frame()).await {
            Ok(Some(Ok(frame))) => Some((Ok(frame), Some(body))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Ok(None) => None,
            Err(_) => Some((Err(BoxError::from("the answer takes too long")), None)),
        }
    })))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use bytes::Bytes;
    use http_body::Frame;

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_end_has_one() {
        let endless = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            Some((Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x"))), ()))
        });
        let mut body = until(Body::stream(StreamBody::new(endless)), Instant::now() + PATIENCE);
        let mut frames = 0;
        let error = loop {
            match body.frame().await.unwrap() {
                Ok(_) => frames += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((frames, error.to_string().as_str()), (8, "the answer takes too long"));
        assert!(body.frame().await.is_none());
        let short =
            until(Body::stream(http_body_util::Full::new(Bytes::from_static(b"abc"))), Instant::now() + PATIENCE);
        assert_eq!(short.into_bytes(9).await.unwrap(), "abc");
    }

    #[test]
    fn redirects_go_nowhere() {
        let answer = |code: u16, to: Option<&str>| {
            let mut builder = Response::builder().status(code);
            if let Some(to) = to {
                builder = builder.header(LOCATION, to);
            }
            permitted(builder.body(Body::empty()).unwrap()).map(|r| r.status().as_u16()).map_err(|s| s.code)
        };
        assert_eq!(answer(301, Some("https://elsewhere/")), Err(502));
        assert_eq!(answer(201, Some("/apis/a/v1/x")), Ok(201));
        assert_eq!(answer(304, None), Ok(304));
    }
}
