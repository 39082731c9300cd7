//! One HTTP/1.1 exchange on a given stream, with the connection handed through when both sides upgrade it.

use super::Stream;
use crate::body::Body;
use edge_api::{Reason, Status};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
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

/// Sends `request` as `uri` (path and query) over `stream` and gives back what comes. `what` names the other side in
/// error messages.
pub(super) async fn exchange(
    stream: Box<dyn Stream>,
    mut request: Request<Body>,
    uri: Uri,
    host: &str,
    what: &str,
    stop: &CancellationToken,
) -> Result<Response<Body>, Status> {
    let upgrade = upgrade_of(request.headers());
    let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut onward = Request::new(if upgrade.is_some() { Body::empty() } else { body });
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = uri;
    *onward.version_mut() = Version::HTTP_11;
    *onward.headers_mut() = forwarded(&parts.headers);
    onward.headers_mut().insert(HOST, HeaderValue::from_str(host).map_err(Status::internal)?);
    if let Some(protocol) = upgrade {
        onward.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        onward.headers_mut().insert(UPGRADE, protocol);
    }
    let failed = |e: hyper::Error| unreachable(what, &e);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let stop_connection = stop.clone();
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
    let mut response = sender.send_request(onward).await.map_err(failed)?;
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
    tokio::spawn(splice(client_side, server_side, stop.clone()));
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
pub(super) fn unreachable(what: &str, error: &dyn std::fmt::Display) -> Status {
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
}
