//! Answers out: JSON (usually the hub's bytes as they are) or a tree, in the encoding and with the headers asked for.

use crate::body::Body;
use crate::negotiate::{Accepted, Encoding};
use bytes::Bytes;
use edge_api::Status;
use edge_schema::{ProtoError, Schema, proto};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY};
use http::{HeaderName, Response, StatusCode};
use serde_json::Value;
use std::io::Write as _;

/// Smaller answers are not worth compressing (kube-apiserver's value).
const GZIP_FROM: usize = 128 * 1024;

/// What is answered, before its encoding.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Finished JSON.
    Json(Bytes),
    /// A tree.
    Value(Value),
}

impl Payload {
    fn into_value(self) -> Result<Value, Status> {
        match self {
            Self::Json(bytes) => serde_json::from_slice(&bytes).map_err(Status::internal),
            Self::Value(value) => Ok(value),
        }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::Json(bytes)
    }
}

impl From<Value> for Payload {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

/// Writes a payload in one encoding.
///
/// # Errors
/// 406 when the kind has no protobuf form.
pub(crate) fn encode(encoding: Encoding, pretty: bool, payload: Payload) -> Result<Bytes, Status> {
    match (encoding, payload) {
        (Encoding::Json, Payload::Json(bytes)) if !pretty => Ok(bytes),
        (Encoding::Json, payload) => {
            let value = payload.into_value()?;
            let text = if pretty {
                serde_json::to_vec_pretty(&value).map(|mut t| {
                    t.push(b'\n');
                    t
                })
            } else {
                serde_json::to_vec(&value)
            };
            text.map(Bytes::from).map_err(Status::internal)
        }
        (Encoding::Yaml, payload) => {
            serde_yaml_ng::to_string(&payload.into_value()?).map(Bytes::from).map_err(Status::internal)
        }
        (Encoding::Protobuf, payload) => protobuf(&payload.into_value()?),
    }
}

/// The protobuf form of an object.
///
/// # Errors
/// 406 when its kind has none.
pub(crate) fn protobuf(value: &Value) -> Result<Bytes, Status> {
    proto::encode(Schema::builtin(), value).map(Bytes::from).map_err(|e| match e {
        ProtoError::Kind(_) => {
            Status::not_acceptable("only the following media types are accepted: application/json, application/yaml")
        }
        other => Status::internal(other),
    })
}

/// A whole answer.
pub(crate) async fn respond(accepted: &Accepted, code: StatusCode, payload: impl Into<Payload>) -> Response<Body> {
    let payload = payload.into();
    crate::audit::answered(&payload);
    match encode(accepted.encoding, accepted.pretty, payload) {
        Ok(bytes) => whole(accepted, code, accepted.encoding.media_type(), bytes).await,
        Err(status) => failure(accepted, &status),
    }
}

/// A whole answer whose bytes are finished.
pub(crate) async fn whole(accepted: &Accepted, code: StatusCode, media_type: &str, bytes: Bytes) -> Response<Body> {
    let compress = accepted.gzip && bytes.len() > GZIP_FROM;
    let bytes = if compress { gzip(bytes).await } else { Ok(bytes) };
    match bytes {
        Ok(bytes) => {
            let mut response = plain(code, media_type, bytes);
            if compress {
                response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
            }
            response
        }
        Err(status) => failure(accepted, &status),
    }
}

async fn gzip(bytes: Bytes) -> Result<Bytes, Status> {
    let work = move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
        encoder.write_all(&bytes)?;
        encoder.finish()
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(Status::internal)?;
    done.map(Bytes::from).map_err(Status::internal)
}

/// An answer of any media type.
pub(crate) fn plain(code: StatusCode, media_type: &str, bytes: impl Into<Bytes>) -> Response<Body> {
    let bytes = bytes.into();
    let length = bytes.len();
    let mut response = Response::new(Body::full(bytes));
    *response.status_mut() = code;
    if let Ok(value) = HeaderValue::from_str(media_type) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    // what is private to the asker must not be kept on the way
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A `Status` in the negotiated encoding.
pub(crate) fn failure(accepted: &Accepted, status: &Status) -> Response<Body> {
    let json = serde_json::to_value(status).unwrap_or_default();
    let (encoding, bytes) = match encode(accepted.encoding, accepted.pretty, Payload::Value(json.clone())) {
        Ok(bytes) => (accepted.encoding, bytes),
        Err(_) => (Encoding::Json, Bytes::from(json.to_string())),
    };
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = plain(code, encoding.media_type(), bytes);
    let after = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if after > 0 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after));
    }
    response
}

/// Adds `Warning: 299` headers.
pub(crate) fn add_warnings<'w>(response: &mut Response<Body>, warnings: impl IntoIterator<Item = &'w str>) {
    /// All warnings together, as kube-apiserver cuts them off.
    const MOST: usize = 16 * 1024;
    let mut total = 0;
    for w in warnings {
        let quoted: String = w
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| if matches!(c, '"' | '\\') { vec!['\\', c] } else { vec![c] })
            .collect();
        total += quoted.len();
        if total > MOST {
            return;
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
}

/// One event of a watch; `object` is the object's JSON.
///
/// # Errors
/// 406 when the object's kind has no protobuf form.
pub(crate) fn watch_event(encoding: Encoding, event_type: &str, object: &Bytes) -> Result<Bytes, Status> {
    if encoding == Encoding::Protobuf {
        let value: Value = serde_json::from_slice(object).map_err(Status::internal)?;
        return Ok(proto::encode_watch_frame(event_type, &protobuf(&value)?).into());
    }
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(event_type.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    Ok(line.into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use edge_api::GroupResource;

    #[tokio::test]
    async fn errors_come_in_the_encoding_asked_for() {
        let status = Status::not_found(&GroupResource::new("", "pods"), "p").retry_after(3);
        for encoding in [Encoding::Json, Encoding::Yaml, Encoding::Protobuf] {
            let response = failure(&Accepted { encoding, ..Accepted::default() }, &status);
            assert_eq!(response.status(), 404);
            assert_eq!(response.headers()[CONTENT_TYPE], encoding.media_type());
            assert_eq!(response.headers()[RETRY_AFTER], "3");
            let bytes = response.into_body().into_bytes(9999).await.unwrap();
            let value: Value = match encoding {
                Encoding::Json => serde_json::from_slice(&bytes).unwrap(),
                Encoding::Yaml => serde_yaml_ng::from_slice(&bytes).unwrap(),
                Encoding::Protobuf => proto::decode(Schema::builtin(), &bytes, None).unwrap(),
            };
            assert_eq!(value["message"], "pods \"p\" not found", "{encoding:?}");
            assert_eq!(value["code"], 404);
        }
    }

    #[tokio::test]
    async fn large_answers_are_compressed_for_who_can_read_it() {
        let big = Bytes::from(vec![b'x'; GZIP_FROM + 1]);
        let asked = Accepted { gzip: true, ..Accepted::default() };
        let r = whole(&asked, StatusCode::OK, "application/json", big.clone()).await;
        assert_eq!(r.headers()[CONTENT_ENCODING], "gzip");
        let bytes = r.into_body().into_bytes(usize::MAX).await.unwrap();
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut text).unwrap();
        assert_eq!(text, big);
        let r = whole(&Accepted::default(), StatusCode::OK, "application/json", big.clone()).await;
        assert!(r.headers().get(CONTENT_ENCODING).is_none());
    }

    #[test]
    fn warnings_are_quoted_and_cannot_break_the_header() {
        let mut r = Response::new(Body::empty());
        add_warnings(&mut r, ["unknown field \"a\\b\"\r\nX: y"]);
        assert_eq!(r.headers()["warning"], "299 - \"unknown field \\\"a\\\\b\\\"X: y\"");
    }
}
