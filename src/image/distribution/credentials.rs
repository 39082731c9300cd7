//! Who we are to a registry: credentials, and the docker configuration JSON (of an `imagePullSecret`) they come from.

use crate::error::Error;
use crate::oci;
use crate::reference::Reference;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// A way to authenticate.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Credentials {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token, exchanged at the token server.
    IdentityToken(String),
    /// A bearer token, sent as it is.
    RegistryToken(String),
}

/// Shows no secrets.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username})"),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
            Self::RegistryToken(_) => f.write_str("RegistryToken"),
        }
    }
}

/// An entry of docker's configuration, or the `auth` of `registries.yaml`, whose keys are spelled otherwise.
#[derive(Clone, Default, Deserialize)]
pub(crate) struct AuthEntry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken", alias = "identity_token")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

impl fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthEntry")
    }
}

impl AuthEntry {
    /// The credentials in the entry, if any; the text of an error says what is malformed.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        if !self.identity_token.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identity_token.clone())));
        }
        if !self.registry_token.is_empty() {
            return Ok(Some(Credentials::RegistryToken(self.registry_token.clone())));
        }
        let basic = |username: &str, password: &str| {
            Some(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
        };
        if !self.username.is_empty() {
            return Ok(basic(&self.username, &self.password));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let decoded = STANDARD.decode(self.auth.trim()).map_err(|_| "auth is not base64")?;
        let decoded = String::from_utf8(decoded).map_err(|_| "auth is not UTF-8")?;
        let (username, password) = decoded.split_once(':').ok_or("auth is not \"user:password\"")?;
        Ok(basic(username, password.trim_end_matches('\0')))
    }
}

/// Credentials by registry, collected from pull secrets.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    /// Host (perhaps with a leading `*.` and a port), path prefix, credentials.
    entries: Vec<(String, String, Credentials)>,
}

impl Keyring {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what a secret holds: the content of `.dockerconfigjson` (with `auths`) or of the older `.dockercfg`.
    ///
    /// # Errors
    /// [`Error::Config`] naming `source`, never showing what is inside.
    pub fn add(&mut self, source: &str, json: &[u8]) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct DockerConfig {
            #[serde(default, deserialize_with = "oci::null_is_default")]
            auths: BTreeMap<String, AuthEntry>,
        }
        let config = |reason: String| Error::Config { path: Path::new(source).to_owned(), reason };
        let value: serde_json::Value =
            serde_json::from_slice(json).map_err(|e| config(format!("invalid JSON at line {}", e.line())))?;
        let auths = match value.get("auths") {
            Some(_) => serde_json::from_value::<DockerConfig>(value).map(|config| config.auths),
            None => serde_json::from_value(value),
        };
        for (key, entry) in auths.map_err(|_| config("not a docker configuration".to_owned()))? {
            let credentials = entry.credentials().map_err(|reason| config(format!("{key}: {reason}")))?;
            let Some(credentials) = credentials else { continue };
            let (host, path) = split_key(&key);
            self.entries.push((host, path, credentials));
        }
        Ok(())
    }

    /// The credentials that fit `reference`, the most specific first, as the kubelet tries them.
    #[must_use]
    pub fn lookup(&self, reference: &Reference) -> Vec<Credentials> {
        let path = format!("/{}", reference.repository());
        let fits = |(host, prefix, _): &&(String, String, Credentials)| {
            host_matches(host, reference.registry())
                && path
                    .strip_prefix(prefix.as_str())
                    .is_some_and(|r| r.is_empty() || prefix.is_empty() || r.starts_with('/'))
        };
        let mut found: Vec<_> = self.entries.iter().filter(fits).collect();
        found.sort_by_key(|(_, prefix, _)| std::cmp::Reverse(prefix.len()));
        let mut credentials: Vec<Credentials> = Vec::new();
        for (_, _, fitting) in found {
            if !credentials.contains(fitting) {
                credentials.push(fitting.clone());
            }
        }
        credentials
    }
}

/// `https://host/path/` to host and `/path`; the API versions `/v1/` and `/v2/` that people write are no path.
fn split_key(key: &str) -> (String, String) {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    let path = path.trim_end_matches('/');
    let path = match path {
        "" | "v1" | "v2" => String::new(),
        path => format!("/{}", path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path)),
    };
    (host.to_owned(), path)
}

/// Matches label by label, `*` being any part of a label; ports must be equal.
fn host_matches(pattern: &str, host: &str) -> bool {
    let split = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name.to_owned(), port.to_owned()),
        _ => (host.to_owned(), String::new()),
    };
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(host));
    let (patterns, labels): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns.iter().zip(&labels).all(|(pattern, label)| match pattern.split_once('*') {
            Some((start, end)) => {
                label.len() >= start.len() + end.len() && label.starts_with(start) && label.ends_with(end)
            }
            None => pattern == label,
        })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn lookup(json: &str, image: &str) -> Vec<String> {
        let mut keyring = Keyring::new();
        keyring.add("secret", json.as_bytes()).unwrap();
        let name = |credentials: Credentials| match credentials {
            Credentials::Basic { username, password } => format!("{username}:{password}"),
            other => format!("{other:?}"),
        };
        keyring.lookup(&image.parse().unwrap()).into_iter().map(name).collect()
    }

    #[test]
    fn entries_match_by_host_and_longest_path() {
        let json = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"ZG9ja2VyOnB3"},
            "r.io":{"username":"root","password":"1"},
            "r.io/team":{"username":"team","password":"2"},
            "*.example.com:5000":{"username":"star","password":"3"},
            "token.io":{"identitytoken":"secret"}}}"#;
        assert_eq!(lookup(json, "busybox"), ["docker:pw"]);
        assert_eq!(lookup(json, "r.io/team/app"), ["team:2", "root:1"]);
        assert_eq!(lookup(json, "r.io/teams/app"), ["root:1"]);
        assert_eq!(lookup(json, "a.example.com:5000/x"), ["star:3"]);
        assert!(lookup(json, "a.example.com/x").is_empty());
        assert!(lookup(json, "a.b.example.com:5000/x").is_empty());
        assert_eq!(lookup(json, "token.io/x"), ["IdentityToken"]);
        assert_eq!(lookup(r#"{"r.io":{"auth":"YTpiOmM="}}"#, "r.io/x"), ["a:b:c"], "the old dockercfg format");
    }

    #[test]
    fn malformed_secrets_are_errors_that_show_no_secret() {
        for bad in ["", "[]", r#"{"auths":{"r.io":{"auth":"hunter2!"}}}"#, r#"{"auths":{"r.io":"hunter2!"}}"#] {
            let error = Keyring::new().add("ns/secret", bad.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("ns/secret: ") && !error.contains("hunter2"), "{error}");
        }
    }
}
