//! Which transport and which (sub)protocol a request asks for, and the `101` that accepts it.

use crate::UpgradeError;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Where SPDY requests offer their protocols, and the response names the chosen one.
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const SPDY: &str = "SPDY/3.1";

/// The transport that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Spdy,
    /// With the value of `Sec-WebSocket-Accept`.
    WebSocket {
        accept: String,
    },
}

/// Reads the upgrade headers of a request.
pub(crate) fn transport(headers: &HeaderMap) -> Result<Transport, UpgradeError> {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    let Some(upgrade) = upgrade.filter(|_| tokens(headers, &CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade")))
    else {
        return Err(UpgradeError::NotAnUpgrade);
    };
    if upgrade.eq_ignore_ascii_case(SPDY) {
        return Ok(Transport::Spdy);
    }
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Err(UpgradeError::UnsupportedUpgrade(upgrade.to_owned()));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(UpgradeError::BadHandshake("sec-websocket-version is not 13"));
    }
    match headers.get(SEC_WEBSOCKET_KEY) {
        Some(key) => Ok(Transport::WebSocket { accept: derive_accept_key(key.as_bytes()) }),
        None => Err(UpgradeError::BadHandshake("sec-websocket-key is missing")),
    }
}

/// Picks the first protocol of the client's list that `server` has; `None` when the client offers nothing at all, which
/// means the oldest protocol.
pub(crate) fn protocol(
    headers: &HeaderMap,
    transport: &Transport,
    server: &'static [&'static str],
) -> Result<Option<&'static str>, UpgradeError> {
    let name = match transport {
        Transport::Spdy => PROTOCOL_VERSION,
        Transport::WebSocket { .. } => SEC_WEBSOCKET_PROTOCOL,
    };
    let client: Vec<String> = tokens(headers, &name).map(str::to_owned).collect();
    if client.is_empty() {
        return Ok(None);
    }
    let chosen = client.iter().find_map(|offer| server.iter().find(|known| *known == offer));
    chosen.copied().map(Some).ok_or(UpgradeError::NoCommonProtocol { client, server })
}

/// The response that switches protocols.
pub(crate) fn accept(transport: &Transport, protocol: Option<&'static str>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let protocol_header = match transport {
        Transport::Spdy => {
            headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
            PROTOCOL_VERSION
        }
        Transport::WebSocket { accept } => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(accept) = HeaderValue::from_str(accept) {
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
            SEC_WEBSOCKET_PROTOCOL
        }
    };
    if let Some(protocol) = protocol {
        headers.insert(protocol_header, HeaderValue::from_static(protocol));
    }
    response
}

/// The comma-separated words of all headers of that name.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        HeaderMap::from_iter(pairs.iter().map(pair))
    }

    #[test]
    fn transports_are_told_apart() {
        let spdy = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")]);
        assert_eq!(transport(&spdy).unwrap(), Transport::Spdy);
        // The example of RFC 6455.
        let web = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        assert_eq!(transport(&headers(&web)).unwrap(), Transport::WebSocket { accept });
        for bad in [&[][..], &web[1..], &web[..2], &web[..3], &[("connection", "upgrade"), ("upgrade", "h2c")]] {
            assert_eq!(transport(&headers(bad)).unwrap_err().status_code(), StatusCode::BAD_REQUEST, "{bad:?}");
        }
    }

    #[test]
    fn the_clients_order_decides() {
        let server = &["v5", "v4", "v1"];
        let choose = |offers: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for offer in offers {
                headers.append("x-stream-protocol-version", HeaderValue::from_static(offer));
            }
            protocol(&headers, &Transport::Spdy, server)
        };
        assert_eq!(choose(&["v9", "v4, v5"]).unwrap(), Some("v4"));
        assert_eq!(choose(&[]).unwrap(), None);
        let error = choose(&["v9"]).unwrap_err();
        assert_eq!(error.status_code(), StatusCode::FORBIDDEN);
        assert!(error.to_string().contains("v9"), "{error}");
    }
}
