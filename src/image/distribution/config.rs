//! `registries.yaml` in the format of k3s: where registries are, and how to talk to them.

use super::credentials::{AuthEntry, Credentials};
use crate::error::Error;
use http::Uri;
use regex::Regex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The parsed `registries.yaml`; the default reaches every registry at its own name over HTTPS.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    hosts: BTreeMap<String, HostConfig>,
}

/// Other places to find a registry's images, and how repositories are called there.
#[derive(Clone, Debug, Default)]
struct Mirror {
    endpoints: Vec<Base>,
    rewrites: Vec<(Regex, String)>,
}

/// How to talk to one host.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostConfig {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) tls: TlsFiles,
}

/// Files for TLS with one host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TlsFiles {
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) insecure_skip_verify: bool,
}

/// Where requests go: `scheme://authority/path`, the path ending in `/v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    scheme: &'static str,
    authority: String,
    path: String,
}

/// One place to try for a repository.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// `https://host:port/v2/repository`.
    pub(crate) repository_url: String,
    /// Host and port, for messages and the configuration.
    pub(crate) host: String,
    /// The repository as this endpoint calls it.
    pub(crate) repository: String,
    /// The registry's own address: credentials given for the registry may be sent here, but not to mirrors.
    pub(crate) is_upstream: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    mirrors: Option<BTreeMap<String, Option<MirrorFile>>>,
    #[serde(default)]
    configs: Option<BTreeMap<String, Option<HostFile>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorFile {
    #[serde(default, alias = "endpoints")]
    endpoint: Option<Vec<String>>,
    #[serde(default)]
    rewrite: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    #[serde(default)]
    auth: Option<AuthEntry>,
    #[serde(default)]
    tls: Option<TlsFiles>,
}

impl Registries {
    /// Reads the file; without one everything is at its default.
    ///
    /// # Errors
    /// [`Error::Config`] naming the file when it is malformed, [`Error::Io`] when it cannot be read.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.map_err(Error::io("read", path))?,
        };
        Self::parse(&text).map_err(|reason| Error::Config { path: path.to_owned(), reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let file: File = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        let mut registries = Self::default();
        for (name, mirror) in file.mirrors.unwrap_or_default() {
            let mirror = mirror.unwrap_or_default();
            let endpoints = mirror.endpoint.unwrap_or_default();
            let endpoints = endpoints.iter().map(|e| Base::parse(e)).collect::<Result<_, _>>();
            let rewrites = mirror.rewrite.unwrap_or_default().into_iter();
            let rewrites = rewrites.map(|(pattern, to)| Ok((Regex::new(&pattern).map_err(|e| e.to_string())?, to)));
            let parsed = Mirror {
                endpoints: endpoints.map_err(|e| format!("mirrors.{name}.endpoint: {e}"))?,
                rewrites: rewrites
                    .collect::<Result<_, _>>()
                    .map_err(|e: String| format!("mirrors.{name}.rewrite: {e}"))?,
            };
            registries.mirrors.insert(name, parsed);
        }
        for (name, host) in file.configs.unwrap_or_default() {
            let host = host.unwrap_or_default();
            let credentials = host.auth.unwrap_or_default().credentials();
            let credentials = credentials.map_err(|e| format!("configs.{name}.auth: {e}"))?;
            let tls = host.tls.unwrap_or_default();
            if tls.cert_file.is_some() != tls.key_file.is_some() {
                return Err(format!("configs.{name}.tls: cert_file and key_file belong together"));
            }
            registries.hosts.insert(name, HostConfig { credentials, tls });
        }
        Ok(registries)
    }

    /// Where to look for `repository` of `registry`, in this order: its mirrors, or else those for `*`, then itself.
    pub(crate) fn endpoints(&self, registry: &str, repository: &str) -> Vec<Endpoint> {
        let upstream = Base::upstream(registry);
        let mut endpoints = Vec::new();
        if let Some(mirror) = self.mirrors.get(registry).or_else(|| self.mirrors.get("*")) {
            let rewrite =
                |name: String, (pattern, to): &(Regex, String)| pattern.replace_all(&name, to.as_str()).into_owned();
            for base in &mirror.endpoints {
                let is_upstream = base.authority == upstream.authority || base.authority == registry;
                let renamed = mirror.rewrites.iter().fold(repository.to_owned(), rewrite);
                endpoints.push(base.endpoint(renamed, is_upstream));
            }
        }
        // An entry for the registry's own address (such as plain HTTP) replaces the default one.
        if !endpoints.iter().any(|endpoint| endpoint.is_upstream) {
            endpoints.push(upstream.endpoint(repository.to_owned(), true));
        }
        endpoints
    }

    /// How to talk to `host` (with its port).
    pub(crate) fn host(&self, host: &str) -> HostConfig {
        let alias = if host == DOCKER_HUB { "docker.io" } else { host };
        let found = [host, alias, "*"].iter().find_map(|name| self.hosts.get(*name));
        found.cloned().unwrap_or_default()
    }
}

const DOCKER_HUB: &str = "registry-1.docker.io";

impl Base {
    fn upstream(registry: &str) -> Self {
        let authority = if registry == "docker.io" { DOCKER_HUB } else { registry };
        Self { scheme: "https", authority: authority.to_owned(), path: "/v2".to_owned() }
    }

    /// `[https://]host[:port][/path[/v2]]`; plain HTTP only when it says `http://`.
    fn parse(text: &str) -> Result<Self, String> {
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let uri: Uri = with_scheme.parse().map_err(|e| format!("{text:?}: {e}"))?;
        let scheme = match uri.scheme_str() {
            Some("https") => "https",
            Some("http") => "http",
            _ => return Err(format!("{text:?}: neither http:// nor https://")),
        };
        let authority = uri.authority().ok_or_else(|| format!("{text:?}: no host"))?;
        if authority.as_str().contains('@') {
            return Err(format!("mirror of {}: credentials belong into configs", authority.host()));
        }
        let path = uri.path().trim_end_matches('/');
        let path = if path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
        Ok(Self { scheme, authority: authority.as_str().to_owned(), path })
    }

    fn endpoint(&self, repository: String, is_upstream: bool) -> Endpoint {
        let Self { scheme, authority, path } = self;
        let repository_url = format!("{scheme}://{authority}{path}/{repository}");
        Endpoint { repository_url, host: authority.clone(), repository, is_upstream }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn urls(registries: &Registries, registry: &str, repository: &str) -> Vec<String> {
        registries.endpoints(registry, repository).into_iter().map(|e| e.repository_url).collect()
    }

    #[test]
    fn without_a_file_registries_are_where_their_names_say() {
        let none = Registries::load(Path::new("/nonexistent/registries.yaml")).unwrap();
        assert_eq!(urls(&none, "docker.io", "library/x"), ["https://registry-1.docker.io/v2/library/x"]);
        assert_eq!(urls(&none, "r.io:5000", "x"), ["https://r.io:5000/v2/x"]);
    }

    #[test]
    fn mirrors_come_first_are_rewritten_and_may_replace_the_default() {
        let yaml = r#"
mirrors:
  docker.io:
    endpoint: ["https://mirror.example.com/proxy", "other:8080/v2/"]
    rewrite: {"^library/(.*)": "hub/$1"}
  "r.io:5000":
    endpoint: ["http://r.io:5000"]
  "*":
    endpoint: ["https://all.example.com"]
configs:
  "r.io:5000":
    auth: {username: u, password: p}
    tls: {insecure_skip_verify: true}
"#;
        let parsed = Registries::parse(yaml).unwrap();
        assert_eq!(
            urls(&parsed, "docker.io", "library/x"),
            [
                "https://mirror.example.com/proxy/v2/hub/x",
                "https://other:8080/v2/hub/x",
                "https://registry-1.docker.io/v2/library/x"
            ]
        );
        assert_eq!(urls(&parsed, "r.io:5000", "x"), ["http://r.io:5000/v2/x"]);
        assert_eq!(urls(&parsed, "else.io", "x"), ["https://all.example.com/v2/x", "https://else.io/v2/x"]);
        assert!(parsed.host("r.io:5000").credentials.is_some());
        assert!(parsed.host("r.io:5000").tls.insecure_skip_verify);
        assert!(parsed.host("r.io").credentials.is_none());
    }

    #[test]
    fn malformed_files_are_refused() {
        for bad in [
            "mirrors: []",
            "mirror: {}",
            "mirrors: {a: {endpoint: ['ftp://x']}}",
            "mirrors: {a: {endpoint: ['https://u:p@x']}}",
            "mirrors: {a: {rewrite: {'(': x}}}",
            "configs: {a: {auth: {auth: '!'}}}",
            "configs: {a: {tls: {cert_file: /x}}}",
            "configs: {a: {tls: {nonsense: true}}}",
            "\t",
        ] {
            let parsed = Registries::parse(bad);
            assert!(bad.trim().is_empty() || parsed.is_err(), "{bad:?} was accepted");
        }
    }
}
