//! gRPC health checks of probes: one call of `grpc.health.v1.Health/Check`, over HTTP/2 without TLS. The two messages of that protocol
//! have one field each, so they are written and read here.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Most bytes read of an answer, of which a few are needed.
const MAX_BODY: usize = 4096;
/// The status of a service that is well.
const SERVING: u64 = 1;
/// gRPC's code of a call that the server does not know.
const UNIMPLEMENTED: &str = "12";

/// Why a server is not healthy; the texts are the kubelet's where it has some.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrpcError {
    #[error("failed to connect service {address:?}")]
    Connect {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("error: health rpc probe failed")]
    Http(#[from] hyper::Error),
    #[error("error: health rpc probe failed")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)")]
    Unimplemented,
    #[error("error: health rpc probe failed: {0}")]
    Status(String),
    #[error("service unhealthy (responded with {0:?})")]
    Unhealthy(&'static str),
}

/// Asks whether a service is well.
pub(crate) async fn check(host: &str, port: u16, service: &str) -> Result<(), GrpcError> {
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let connected = TcpStream::connect((host, port)).await;
    let tcp = connected.map_err(|source| GrpcError::Connect { address: address.clone(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(question(service)))
        .map_err(|error| GrpcError::Body(error.into()))?;
    let ask = async {
        let answer = sender.send_request(request).await?;
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            return Err(GrpcError::Status(format!("HTTP status {}", head.status)));
        }
        // a call that fails at once may have its status in the head
        verify(&head.headers)?;
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(GrpcError::Body)?;
        if let Some(trailers) = body.trailers() {
            verify(trailers)?;
        }
        match status(&body.to_bytes()) {
            SERVING => Ok(()),
            0 => Err(GrpcError::Unhealthy("UNKNOWN")),
            2 => Err(GrpcError::Unhealthy("NOT_SERVING")),
            3 => Err(GrpcError::Unhealthy("SERVICE_UNKNOWN")),
            _ => Err(GrpcError::Unhealthy("something else")),
        }
    };
    tokio::select! {
        answer = ask => answer,
        ended = connection => match ended {
            Err(error) => Err(error.into()),
            Ok(()) => Err(GrpcError::Status("the connection ended".to_owned())),
        },
    }
}

fn verify(headers: &HeaderMap) -> Result<(), GrpcError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "" | "0" => Ok(()),
        UNIMPLEMENTED => Err(GrpcError::Unimplemented),
        code => Err(GrpcError::Status(format!("code {code}: {}", text("grpc-message")))),
    }
}

/// A `HealthCheckRequest` in a frame: not compressed, its length, field 1 (text).
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    frame.freeze()
}

fn put_varint(to: &mut BytesMut, mut number: usize) {
    while number >= 0x80 {
        to.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8((number & 0x7f) as u8);
}

/// The status (field 1, a number) of a `HealthCheckResponse` in a frame; 0, "unknown", when there is none.
fn status(frame: &[u8]) -> u64 {
    let Some([0x08, number @ ..]) = frame.get(5..) else { return 0 };
    let mut value = 0;
    for (place, byte) in number.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return value;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use http::Response;
    use http_body_util::StreamBody;
    use hyper::body::{Frame, Incoming};
    use hyper::service::service_fn;
    use std::convert::Infallible;

    /// A server that answers one question as the service's name asks: with a status, or a code.
    async fn server() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serve = service_fn(|request: Request<Incoming>| async {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    let name = String::from_utf8_lossy(asked.get(7..).unwrap_or_default()).into_owned();
                    let (status, code) = match name.as_str() {
                        "" | "well" => (&[8, 1][..], "0"),
                        "ill" => (&[8, 2][..], "0"),
                        "unknown" => (&[][..], "0"),
                        "unimplemented" => (&[][..], "12"),
                        _ => (&[][..], "5"),
                    };
                    let mut frame = vec![0, 0, 0, 0, status.len() as u8];
                    frame.extend(status);
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", code.parse().unwrap());
                    let frames = [Frame::data(Bytes::from(frame)), Frame::trailers(trailers)];
                    let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
                    Ok::<_, Infallible>(Response::new(body))
                });
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http2.serve_connection(TokioIo::new(stream), serve));
            }
        });
        port
    }

    #[tokio::test]
    async fn a_service_is_well_or_says_what_it_lacks() {
        let port = server().await;
        let ask = async |name: &str| check("127.0.0.1", port, name).await.map_err(|error| error.to_string());
        assert_eq!(ask("").await, Ok(()));
        assert_eq!(ask("well").await, Ok(()));
        for (name, words) in
            [("ill", "NOT_SERVING"), ("unknown", "UNKNOWN"), ("unimplemented", "does not implement"), ("x", "code 5")]
        {
            assert!(ask(name).await.unwrap_err().contains(words), "{name}: {:?}", ask(name).await);
        }
        assert!(check("127.0.0.1", 1, "").await.unwrap_err().to_string().contains("failed to connect"));
    }

    #[test]
    fn messages_of_any_length() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(question(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), SERVING);
        for odd in [&[][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 8], &[0, 0, 0, 0, 2, 8, 0x80], &[9; 30]] {
            assert_eq!(status(odd), 0);
        }
    }
}
