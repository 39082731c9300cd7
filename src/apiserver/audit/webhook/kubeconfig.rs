//! Who receives events, and as whom he is asked: a kubeconfig file, its current context.

use crate::outgoing::{self, HttpClient};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use edge_pki::{SharedIdentity, Trust};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Uri};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What is wrong with a kubeconfig.
#[derive(Debug, thiserror::Error)]
#[error("kubeconfig {path}: {reason}")]
pub struct KubeconfigError {
    path: String,
    reason: String,
}

/// What a kubeconfig says, with the content of the files that it names.
#[derive(PartialEq, Eq)]
pub(super) struct Settings {
    /// Without a query.
    url: String,
    /// PEM; nothing, when the machine's authorities count.
    ca: Vec<u8>,
    is_insecure: bool,
    server_name: Option<ServerName<'static>>,
    /// Certificates and key, PEM.
    identity: Option<(Vec<u8>, Vec<u8>)>,
    authorization: Option<HeaderValue>,
}

/// Somebody who can be told.
pub(super) struct Receiver {
    pub(super) url: String,
    pub(super) client: HttpClient,
    pub(super) headers: HeaderMap,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    kind: Option<String>,
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    current_context: Option<String>,
    clusters: Option<Vec<Named>>,
    users: Option<Vec<Named>>,
    contexts: Option<Vec<Named>>,
}

/// An entry of one of the three lists.
#[derive(Deserialize)]
struct Named {
    name: String,
    cluster: Option<Cluster>,
    user: Option<User>,
    context: Option<Context>,
}

#[derive(Clone, Default, Deserialize)]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
}

impl Settings {
    /// Reads a kubeconfig and the files that it names.
    ///
    /// # Errors
    /// What is missing or damaged, or asks for what is not there.
    pub(super) fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string());
        text.and_then(|text| parse(&text, path.parent().unwrap_or(Path::new(""))))
            .map_err(|reason| KubeconfigError { path: path.display().to_string(), reason })
    }

    /// Prepares connections; none is opened yet. Reads the machine's authorities, if they count.
    ///
    /// # Errors
    /// When certificates or keys cannot be used.
    pub(super) fn receiver(&self, path: &Path) -> Result<Receiver, KubeconfigError> {
        let wrong = |reason: String| KubeconfigError { path: path.display().to_string(), reason };
        let trust = if self.is_insecure { Ok(Trust::Nobody) } else { outgoing::trust(&self.ca) };
        let trust = trust.map_err(|e| wrong(format!("certificate-authority: {e}")))?;
        let identity = self.identity.as_ref().map(|(certificates, key)| SharedIdentity::in_pem(certificates, key));
        let identity = identity.transpose().map_err(|e| wrong(with_cause(&e)))?;
        let tls = edge_pki::outgoing_config(trust, identity.as_ref()).map_err(|e| wrong(with_cause(&e)))?;
        let headers = self.authorization.iter().map(|value| (AUTHORIZATION, value.clone())).collect();
        Ok(Receiver { url: self.url.clone(), client: outgoing::client_of(tls, self.server_name.clone()), headers })
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// A text that says something.
fn said(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn entry<T>(list: Option<Vec<Named>>, what: &str, name: &str, of: fn(Named) -> Option<T>) -> Result<T, String> {
    let found = list.into_iter().flatten().find(|entry| entry.name == name);
    found.and_then(of).ok_or_else(|| format!("{what} {name:?} does not exist"))
}

fn parse(text: &str, directory: &Path) -> Result<Settings, String> {
    let file: File = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    let kind = (file.api_version.as_deref().unwrap_or("v1"), file.kind.as_deref().unwrap_or("Config"));
    if kind != ("v1", "Config") {
        return Err(format!("it is a {} {}, and no v1 Config", kind.0, kind.1));
    }
    let current = said(file.current_context).ok_or("it has no current-context")?;
    let context = entry(file.contexts, "context", &current, |e| e.context)?;
    let name = said(context.cluster).ok_or_else(|| format!("context {current:?} names no cluster"))?;
    let cluster = entry(file.clusters, "cluster", &name, |e| e.cluster)?;
    // nobody in particular may be right for a receiver
    let user = match said(context.user) {
        Some(user) => entry(file.users, "user", &user, |e| e.user.or(Some(User::default())))?,
        None => User::default(),
    };
    settings(cluster, user, directory)
}

fn settings(cluster: Cluster, user: User, directory: &Path) -> Result<Settings, String> {
    if said(cluster.proxy_url).is_some() {
        return Err("proxy-url is not supported".into());
    }
    if user.exec.is_some() || user.auth_provider.is_some() || user.impersonate.is_some() {
        return Err("exec, auth-provider and as are not supported: give a certificate, a token or a password".into());
    }
    let either = |field: &str, data: Option<String>, file: Option<PathBuf>| match (said(data), file) {
        (Some(_), Some(_)) => Err(format!("{field} and {field}-data are both given")),
        (Some(data), None) => {
            let data: String = data.split_whitespace().collect();
            STANDARD.decode(data).map(Some).map_err(|e| format!("{field}-data: {e}"))
        }
        (None, Some(file)) => read(&directory.join(file)).map(Some).map_err(|e| format!("{field}: {e}")),
        (None, None) => Ok(None),
    };
    let ca = either("certificate-authority", cluster.certificate_authority_data, cluster.certificate_authority)?;
    let is_insecure = cluster.insecure_skip_tls_verify.unwrap_or_default();
    if ca.is_some() && is_insecure {
        return Err("certificate-authority makes no sense with insecure-skip-tls-verify".into());
    }
    let certificates = either("client-certificate", user.client_certificate_data, user.client_certificate)?;
    let key = either("client-key", user.client_key_data, user.client_key)?;
    let identity = match (certificates, key) {
        (Some(certificates), Some(key)) => Some((certificates, key)),
        (None, None) => None,
        (Some(_), None) => return Err("there is a client-certificate, but no client-key".into()),
        (None, Some(_)) => return Err("there is a client-key, but no client-certificate".into()),
    };
    let is_secure = ca.is_some() || is_insecure || identity.is_some();
    let url = url(&said(cluster.server).ok_or("the cluster has no server")?, is_secure)?;
    let server_name = said(cluster.tls_server_name).map(ServerName::try_from).transpose();
    let mut token = said(user.token);
    if let Some(file) = user.token_file {
        let text = read(&directory.join(&file)).map_err(|e| format!("tokenFile: {e}"))?;
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        token = Some(said(Some(text)).ok_or_else(|| format!("tokenFile: {} is empty", file.display()))?);
    }
    let (username, password) = (said(user.username), said(user.password));
    let authorization = match (token, username.is_some() || password.is_some()) {
        (Some(_), true) => return Err("the user has a token and a password: only one can be sent".into()),
        (Some(token), false) => Some(format!("Bearer {token}")),
        (None, true) => {
            let pair = format!("{}:{}", username.unwrap_or_default(), password.unwrap_or_default());
            Some(format!("Basic {}", STANDARD.encode(pair)))
        }
        (None, false) => None,
    };
    let authorization = authorization.map(HeaderValue::try_from).transpose();
    let mut authorization = authorization.map_err(|_| "the token has characters that cannot be sent")?;
    if let Some(value) = &mut authorization {
        value.set_sensitive(true);
    }
    Ok(Settings {
        url,
        ca: ca.unwrap_or_default(),
        is_insecure,
        server_name: server_name.map_err(|e| format!("tls-server-name: {e}"))?,
        identity,
        authorization,
    })
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))
}

/// The address, to which the path belongs, and no query. One without a scheme gets that which fits the rest, as in Kubernetes.
fn url(server: &str, is_secure: bool) -> Result<String, String> {
    let wrong = || format!("server: {server:?} is no URL of a server, such as https://audit.example:443/events");
    let full = match (server.contains("://"), is_secure) {
        (true, _) => server.to_owned(),
        (false, true) => format!("https://{server}"),
        (false, false) => format!("http://{server}"),
    };
    let uri: Uri = full.parse().map_err(|_| wrong())?;
    let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority().ok_or_else(wrong)?);
    if !matches!(scheme, "http" | "https") || authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(wrong());
    }
    let path = uri.path().trim_end_matches('/');
    Ok(format!("{scheme}://{authority}{}", if path.is_empty() { "/" } else { path }))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn file(cluster: Value, user: Value) -> String {
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "other", "cluster": {"server": "https://other"}}, {"name": "there", "cluster": cluster}],
            "users": [{"name": "me", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "there", "user": "me"}}]})
        .to_string()
    }

    fn read(cluster: Value, user: Value) -> Result<Settings, String> {
        parse(&file(cluster, user), Path::new("/nonexistent"))
    }

    #[test]
    fn a_server_and_who_asks() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
        std::fs::write(dir.path().join("ca.crt"), "an authority").unwrap();
        let cluster = json!({"server": "https://a.example/events/?x=1", "certificate-authority": "ca.crt", "tls-server-name": "b.example"});
        let user = json!({"token": "old", "tokenFile": "token"});
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, file(cluster, user)).unwrap();
        let settings = Settings::read(&path).unwrap();
        assert_eq!((settings.url.as_str(), settings.ca.as_slice()), ("https://a.example/events", &b"an authority"[..]));
        assert_eq!(settings.server_name, Some("b.example".try_into().unwrap()));
        assert_eq!(settings.authorization.unwrap(), "Bearer from-file");

        for (server, more, url) in [
            ("https://a:1", json!({}), "https://a:1/"),
            ("http://a/b", json!({}), "http://a/b"),
            ("a:1", json!({}), "http://a:1/"),
            ("a:1", json!({"insecure-skip-tls-verify": true}), "https://a:1/"),
            ("[::1]:1", json!({}), "http://[::1]:1/"),
        ] {
            let mut cluster = more;
            cluster["server"] = server.into();
            assert_eq!(read(cluster, json!({})).unwrap().url, url);
        }
        let password = read(json!({"server": "a"}), json!({"username": "u", "password": "p"})).unwrap();
        assert_eq!(password.authorization.unwrap(), "Basic dTpw");
        // nobody in particular; what does not belong to a kubeconfig is of no interest
        let text = "current-context: c\npreferences: {}\nusers: null\ncontexts: [{name: c, context: {cluster: a}}]\n\
            clusters: [{name: a, cluster: {server: 'http://a', certificate-authority-data: '', extensions: []}}]";
        assert!(parse(text, Path::new("")).unwrap().authorization.is_none());
    }

    #[test]
    fn mistakes_are_named() {
        let server = || json!({"server": "https://a"});
        for (cluster, user, why) in [
            (json!({}), json!({}), "the cluster has no server"),
            (json!({"server": "ftp://a"}), json!({}), "no URL"),
            (json!({"server": "https://u:p@a"}), json!({}), "no URL"),
            (json!({"server": "https://"}), json!({}), "no URL"),
            (json!({"server": "a", "certificate-authority": "no.crt"}), json!({}), "/nonexistent/no.crt"),
            (json!({"server": "a", "certificate-authority-data": "%"}), json!({}), "certificate-authority-data"),
            (
                json!({"server": "a", "certificate-authority-data": "YQ==", "certificate-authority": "b"}),
                json!({}),
                "both given",
            ),
            (
                json!({"server": "a", "certificate-authority-data": "YQ==", "insecure-skip-tls-verify": true}),
                json!({}),
                "makes no sense",
            ),
            (json!({"server": "a", "proxy-url": "http://p"}), json!({}), "proxy-url"),
            (json!({"server": "a", "tls-server-name": "a b"}), json!({}), "tls-server-name"),
            (json!({"server": "a", "insecure-skip-tls-verify": "yes"}), json!({}), "insecure-skip-tls-verify"),
            (server(), json!({"client-certificate-data": "YQ=="}), "no client-key"),
            (server(), json!({"client-key-data": "YQ=="}), "no client-certificate"),
            (server(), json!({"tokenFile": "no"}), "tokenFile"),
            (server(), json!({"token": "t", "username": "u"}), "only one"),
            (server(), json!({"token": "a\nb"}), "cannot be sent"),
            (server(), json!({"exec": {"command": "x"}}), "exec"),
        ] {
            let error = read(cluster, user).err().unwrap();
            assert!(error.contains(why), "{error}, not {why}");
        }
        for (text, why) in [
            ("", ""),
            ("{", ""),
            ("[]", ""),
            ("{}", "no current-context"),
            ("kind: Pod\napiVersion: v1", "v1 Pod"),
            ("current-context: c", "context \"c\" does not exist"),
            ("current-context: c\ncontexts: [{name: c, context: {}}]", "names no cluster"),
            ("current-context: c\ncontexts: [{name: c, context: {cluster: x}}]", "cluster \"x\" does not exist"),
            (
                "current-context: c\ncontexts: [{name: c, context: {cluster: x, user: y}}]\nclusters: [{name: x, cluster: {server: a}}]",
                "user \"y\" does not exist",
            ),
        ] {
            let error = parse(text, Path::new("")).err().unwrap();
            assert!(error.contains(why), "{text}: {error}");
        }
        // what is damaged in a certificate is found out at the start, too
        let user = json!({"client-certificate-data": "YQ==", "client-key-data": "YQ=="});
        let error = read(server(), user).unwrap().receiver(Path::new("k")).err().unwrap().to_string();
        assert!(error.contains("client certificate holds no valid certificate"), "{error}");
        let cluster = json!({"server": "https://a", "certificate-authority-data": "YQ=="});
        let error = read(cluster, json!({})).unwrap().receiver(Path::new("k")).err().unwrap().to_string();
        assert!(error.starts_with("kubeconfig k: certificate-authority: "), "{error}");
    }
}
