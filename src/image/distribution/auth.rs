//! Answers a registry's `WWW-Authenticate`: basic, or a bearer token from a token server.

use super::RegistryError;
use super::credentials::Credentials;
use super::transport::{Transport, read_body};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;

/// Largest answer of a token server.
const MAX_TOKEN_ANSWER: u64 = 1024 * 1024;

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The best challenge of a response: bearer if there is one, else basic.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<Self> = values.filter_map(Self::parse).collect();
        challenges.iter().find(|c| matches!(c, Self::Bearer { .. })).or(challenges.first()).cloned()
    }

    fn parse(value: &str) -> Option<Self> {
        let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (key, value) in parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Self::Bearer { realm: realm?, service, scope })
    }
}

/// `key=value, key="quoted, value"`.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((key, rest)) = text.split_once('=') {
        let key = key.trim_matches([',', ' ', '\t']).to_owned();
        let mut value = String::new();
        let mut end = rest.len();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut escaped = false;
            for (at, c) in quoted.char_indices() {
                match c {
                    '\\' if !escaped => escaped = true,
                    '"' if !escaped => {
                        end = at + 2;
                        break;
                    }
                    c => {
                        value.push(c);
                        escaped = false;
                    }
                }
            }
        } else {
            end = rest.find(',').unwrap_or(rest.len());
            rest[..end].trim().clone_into(&mut value);
        }
        found.push((key, value));
        text = &rest[end..];
    }
    found
}

/// What a token server answers; it has two names for the same thing.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// Makes the `Authorization` header that answers `challenge`; `None` when `credentials` cannot.
pub(super) async fn answer(
    transport: &Transport,
    challenge: &Challenge,
    credentials: Option<&Credentials>,
    endpoint_scheme: &str,
    default_scope: &str,
) -> Result<Option<HeaderValue>, RegistryError> {
    match (challenge, credentials) {
        (_, Some(Credentials::RegistryToken(token))) => Ok(secret(&format!("Bearer {token}"))),
        (Challenge::Basic, Some(Credentials::Basic { username, password })) => Ok(basic(username, password)),
        (Challenge::Basic, _) => Ok(None),
        (Challenge::Bearer { realm, service, scope }, credentials) => {
            let scope = scope.as_deref().unwrap_or(default_scope);
            let request = token_request(realm, service.as_deref(), scope, credentials, endpoint_scheme)?;
            let token = fetch_token(transport, request).await?;
            Ok(secret(&format!("Bearer {token}")))
        }
    }
}

fn token_request(
    realm: &str,
    service: Option<&str>,
    scope: &str,
    credentials: Option<&Credentials>,
    endpoint_scheme: &str,
) -> Result<Request<Full<Bytes>>, RegistryError> {
    let malformed = |reason: String| RegistryError::Protocol { host: realm.to_owned(), reason };
    let uri: Uri = realm.parse().map_err(|error| malformed(format!("token server address: {error}")))?;
    // Credentials must not leave TLS because a registry says so.
    if uri.scheme_str() != Some("https") && endpoint_scheme == "https" {
        return Err(malformed("token server without TLS, named by a registry with TLS".to_owned()));
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    let request = if let Some(Credentials::IdentityToken(token)) = credentials {
        query.append_pair("grant_type", "refresh_token").append_pair("client_id", "edge");
        query.append_pair("refresh_token", token).append_pair("scope", scope);
        let form = Bytes::from(query.finish());
        Request::post(uri).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(Full::new(form))
    } else {
        for scope in scope.split(' ') {
            query.append_pair("scope", scope);
        }
        let separator = if uri.query().is_some() { '&' } else { '?' };
        let mut request = Request::get(format!("{uri}{separator}{}", query.finish()));
        if let Some(Credentials::Basic { username, password }) = credentials
            && let (Some(headers), Some(value)) = (request.headers_mut(), basic(username, password))
        {
            headers.insert(AUTHORIZATION, value);
        }
        request.body(Full::default())
    };
    request.map_err(|error| malformed(error.to_string()))
}

async fn fetch_token(transport: &Transport, request: Request<Full<Bytes>>) -> Result<String, RegistryError> {
    let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let response = transport.send(request).await?;
    let status = response.status();
    let body = read_body(&host, response.into_body(), MAX_TOKEN_ANSWER).await?;
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
            let reason = super::repository::server_message(status, &body);
            return Err(RegistryError::Unauthorized { host, what: "token".to_owned(), reason });
        }
        status => {
            let reason = super::repository::server_message(status, &body);
            return Err(RegistryError::Status { host, what: "token".to_owned(), status, reason });
        }
    }
    let malformed = |reason: &str| RegistryError::Protocol { host: host.clone(), reason: reason.to_owned() };
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| malformed("token answer is not JSON"))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() { Err(malformed("token answer without a token")) } else { Ok(token) }
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_parsed_and_bearer_is_preferred() {
        let bearer = r#"Bearer realm="https://auth.io/token",service="r.io",scope="repository:a/b:pull,push""#;
        let parsed = Challenge::parse(bearer);
        let expected = Challenge::Bearer {
            realm: "https://auth.io/token".into(),
            service: Some("r.io".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        assert_eq!(parsed, Some(expected.clone()));
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=x"));
        assert_eq!(Challenge::of(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(bearer));
        assert_eq!(Challenge::of(&headers), Some(expected));
    }

    #[test]
    fn malformed_challenges_do_not_panic() {
        for text in ["", "Bearer", "Bearer realm", "Bearer =,=,", "Bearer realm=\"x", "Digest a=b", "Bearer a=\"\\\"\\"]
        {
            let _ = Challenge::parse(text);
        }
        assert_eq!(Challenge::parse("Bearer service=x"), None, "a bearer challenge needs a realm");
    }
}
