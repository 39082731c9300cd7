//! One HTTP/1.1 exchange on a given stream, with the connection handed through when both sides upgrade it.

use super::Stream;
use crate::body::Body;
use edge_api::{Reason, Status};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

/// Headers that belong to one hop (RFC 9110, 7.6.1), and those that carry the client's credentials or identity: the
/// other side must never see the former's password nor believe the latter's claims.
const NOT_FORWARDED: [&str; 10] = [
    "authorization",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
];

/// How a request goes on to the other side.
pub(crate) struct Onward<'a> {
    /// Path and query.
    pub(crate) uri: Uri,
    /// What it is called.
    pub(crate) host: &'a str,
    /// What error messages call it.
    pub(crate) what: &'a str,
    /// Headers about who asks; whatever the client says of that is not passed on.
    pub(crate) identity: HeaderMap,
}

impl<'a> Onward<'a> {
    /// To somebody who is not told who asks.
    pub(super) fn anonymous(uri: Uri, host: &'a str, what: &'a str) -> Self {
        Self { uri, host, what, identity: HeaderMap::new() }
    }
}

/// Sends `request` over `stream` and gives back what comes.
///
/// # Errors
/// 503 when the other side does not answer.
pub(crate) async fn exchange(
    stream: Box<dyn Stream>,
    request: Request<Body>,
    to: Onward<'_>,
    stop: &CancellationToken,
) -> Result<Response<Body>, Status> {
    let stop_connection = stop.clone();
    let send = |onward: Request<Body>| async move {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            tokio::select! {
                () = stop_connection.cancelled() => {}
                result = connection.with_upgrades() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "proxied connection ended");
                    }
                }
            }
        });
        sender.send_request(onward).await.map_err(|e| e.to_string())
    };
    relay(request, to, stop, send).await
}

/// Gives `request` to `send` in the form in which it goes on, and gives back what comes. Whoever sends has to hand a connection
/// out that the other side upgrades.
///
/// # Errors
/// 503 when the other side does not answer.
pub(crate) async fn relay<F>(
    mut request: Request<Body>,
    to: Onward<'_>,
    stop: &CancellationToken,
    send: impl FnOnce(Request<Body>) -> F,
) -> Result<Response<Body>, Status>
where
    F: Future<Output = Result<Response<Incoming>, String>>,
{
    let Onward { uri, host, what, identity } = to;
    let upgrade = upgrade_of(request.headers());
    let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut onward = Request::new(if upgrade.is_some() { Body::empty() } else { body });
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = uri;
    *onward.version_mut() = Version::HTTP_11;
    *onward.headers_mut() = forwarded(&parts.headers);
    onward.headers_mut().extend(identity);
    onward.headers_mut().insert(HOST, HeaderValue::from_str(host).map_err(Status::internal)?);
    if let Some(protocol) = upgrade {
        onward.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        onward.headers_mut().insert(UPGRADE, protocol);
    }
    let mut response = send(onward).await.map_err(|e| unreachable(what, &e))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = response.into_parts();
        strip_hop_headers(&mut parts.headers);
        parts.version = Version::default();
        return Ok(Response::from_parts(parts, Body::stream(body)));
    }
    let Some(client_side) = client_side else {
        return Err(Status::new(502, Reason::InternalError, format!("{what} switched protocols without being asked")));
    };
    let server_side = hyper::upgrade::on(&mut response);
    let (stop, record) = (stop.clone(), crate::audit::current());
    tokio::spawn(async move {
        splice(client_side, server_side, stop).await;
        // the request ends here
        drop(record);
    });
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = response.headers().clone();
    Ok(answer)
}

async fn splice(client: hyper::upgrade::OnUpgrade, server: hyper::upgrade::OnUpgrade, stop: CancellationToken) {
    let both = async {
        let (client, server) = tokio::try_join!(client, server)?;
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        Ok::<_, crate::body::BoxError>(())
    };
    tokio::select! {
        () = stop.cancelled() => {}
        result = both => {
            if let Err(error) = result {
                tracing::debug!(error, "upgraded connection ended");
            }
        }
    }
}

/// The protocol a request wants to switch to.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade")));
    headers.get(UPGRADE).filter(|_| asked).cloned()
}

fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut out = headers.clone();
    strip_hop_headers(&mut out);
    for name in NOT_FORWARDED {
        out.remove(name);
    }
    let identity: Vec<HeaderName> = out
        .keys()
        .filter(|k| k.as_str().starts_with("impersonate-") || k.as_str().starts_with("x-remote-"))
        .cloned()
        .collect();
    for name in identity {
        out.remove(name);
    }
    out
}

/// Removes what concerns one connection only, including whatever `Connection` lists.
fn strip_hop_headers(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|t| t.trim().parse().ok())
        .collect();
    for name in listed {
        headers.remove(name);
    }
    for name in ["connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection"] {
        headers.remove(name);
    }
}

/// 503: the other side cannot be talked to.
pub(crate) fn unreachable(what: &str, error: &dyn std::fmt::Display) -> Status {
    Status::unavailable(format!("error trying to reach {what}: {error}"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn credentials_and_hop_headers_stay_here() {
        let mut h = HeaderMap::new();
        for (k, v) in [
            ("authorization", "Bearer secret"),
            ("connection", "x-hop, Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-hop", "1"),
            ("impersonate-user", "root"),
            ("x-remote-group", "system:masters"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
        ] {
            h.append(HeaderName::from_static(k), v.parse().unwrap());
        }
        assert_eq!(upgrade_of(&h).unwrap(), "SPDY/3.1");
        let mut left: Vec<String> = forwarded(&h).keys().map(ToString::to_string).collect();
        left.sort();
        assert_eq!(left, ["sec-websocket-protocol", "x-stream-protocol-version"]);
    }

    /// A kubelet that answers `/exec` by switching to an echo protocol, everything else with what it was asked.
    async fn kubelet(stream: tokio::io::DuplexStream) {
        let service = hyper::service::service_fn(|mut request: Request<Incoming>| async move {
            if request.uri().path() != "/exec" {
                let text =
                    format!("{} {} {:?}", request.method(), request.uri(), request.headers().get("authorization"));
                let mut response = Response::new(text);
                *response.status_mut() = StatusCode::IM_A_TEAPOT;
                return Ok::<_, std::convert::Infallible>(response);
            }
            let protocol = request.headers()[UPGRADE].clone();
            tokio::spawn(async move {
                let mut io = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
                let (mut read, mut write) = tokio::io::split(&mut io);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
            let mut response = Response::new(String::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            response.headers_mut().insert(UPGRADE, protocol);
            Ok(response)
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let _ = connection.with_upgrades().await;
    }

    /// A client of an API server that hands everything to the kubelet.
    async fn client(stop: &CancellationToken) -> http1::SendRequest<Body> {
        let (near, far) = tokio::io::duplex(1024);
        let stop = stop.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let stop = stop.clone();
            async move {
                let (here, there) = tokio::io::duplex(1024);
                tokio::spawn(kubelet(there));
                let uri = request.uri().clone();
                let to = Onward::anonymous(uri, "node", "the kubelet");
                exchange(Box::new(here), request.map(Body::stream), to, &stop).await
            }
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades(),
        );
        let (sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    #[tokio::test]
    async fn answers_pass_through_as_they_are() {
        let mut client = client(&CancellationToken::new()).await;
        let request = Request::get("/logs?a=b").header("authorization", "Bearer x").body(Body::empty()).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
        let text = Body::stream(response.into_body()).into_bytes(999).await.unwrap();
        assert_eq!(text, "GET /logs?a=b None", "the client's credentials are not for the kubelet");
    }

    #[tokio::test]
    async fn upgraded_connections_carry_bytes_both_ways_until_the_server_stops() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let stop = CancellationToken::new();
        let mut client = client(&stop).await;
        let request = Request::post("/exec").header(CONNECTION, "Upgrade").header(UPGRADE, "SPDY/3.1");
        let response = client.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()[UPGRADE], "SPDY/3.1");
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let sent: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let mut back = vec![0; sent.len()];
        let (mut read, mut write) = tokio::io::split(&mut io);
        let (written, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
        written.unwrap();
        got.unwrap();
        assert_eq!(back, sent);
        stop.cancel();
        assert_eq!(read.read(&mut back).await.unwrap_or(0), 0, "a stopping server lets go of its connections");
    }
}
