//! Image references as users write them, and their canonical form.
//!
//! `busybox` becomes `docker.io/library/busybox:latest`, as Docker, containerd and the kubelet do it.

use crate::digest::Digest;
use std::fmt;
use std::str::FromStr;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// Longest `registry/repository` that the distribution specification allows.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalized image reference: registry, repository, and a tag or a digest or both.
///
/// `Display` gives the form that containerd and CRI show: `docker.io/library/busybox:1.36`,
/// `ghcr.io/a/b@sha256:…`, or both (`…:tag@sha256:…`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {text:?}: {reason}")]
pub struct InvalidReference {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Registry host with its port when one is given: `docker.io`, `localhost:5000`, `[::1]:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository inside the registry: `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when the user gave neither tag nor digest, `None` when only a digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when the user gave one; it then decides and the tag is only a remark.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `registry/repository`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What CRI lists in `repoTags` for this reference: `name:tag`; `None` when a digest decides.
    #[must_use]
    pub fn repo_tag(&self) -> Option<String> {
        match (&self.tag, self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// What CRI lists in `repoDigests` for this name and `digest`.
    #[must_use]
    pub fn repo_digest(&self, digest: Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// Whether the kubelet's default pull policy for this reference is `Always` (tag `latest`, no digest).
    #[must_use]
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref() == Some(DEFAULT_TAG)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |reason| InvalidReference { text: text.to_owned(), reason };
        if text.is_empty() {
            return Err(invalid("empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| invalid("invalid digest"))?)),
            None => (text, None),
        };
        // A colon belongs to a tag only in the last path component; before that it is a port.
        let tag_at = rest.rfind(':').filter(|&colon| !rest[colon..].contains('/'));
        let (name, tag) = match tag_at {
            // `localhost:5000` alone is a repository `localhost` with tag 5000, as everywhere.
            Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("invalid tag"));
        }
        let (registry, path) = split_registry(name);
        if !is_registry(registry) {
            return Err(invalid("invalid registry host"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid("repository name must be lowercase"));
        }
        if path.is_empty() || !path.split('/').all(is_path_component) {
            return Err(invalid("invalid reference format"));
        }
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(invalid("repository name must not be more than 255 characters"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Splits off the registry host: the part before the first slash, if it looks like a host (dot, colon or `localhost`).
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':']) || host == "localhost" || host.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (host, path)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// `host`, `host:port` or `[ipv6]:port`.
fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return false;
    }
    if let Some(v6) = host.strip_prefix('[') {
        return v6.strip_suffix(']').is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
    }
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// Lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().copied().is_some_and(alphanumeric) && bytes.last().copied().is_some_and(alphanumeric);
    ends && component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn defaults_are_filled_in() {
        assert_eq!(canonical("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(canonical("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(canonical("rancher/k3s:v1"), "docker.io/rancher/k3s:v1");
        assert_eq!(canonical("index.docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(canonical("docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(canonical("localhost/app"), "localhost/app:latest");
        assert_eq!(canonical("localhost:5000/app:v2"), "localhost:5000/app:v2");
        assert_eq!(canonical("localhost:5000"), "docker.io/library/localhost:5000");
        assert_eq!(canonical("ghcr.io/a/b__c/d.e-f--g:T_a.g-1"), "ghcr.io/a/b__c/d.e-f--g:T_a.g-1");
        assert_eq!(canonical("[::1]:5000/x"), "[::1]:5000/x:latest");
    }

    #[test]
    fn a_digest_takes_no_default_tag() {
        let digest = Digest::of(b"x");
        let reference: Reference = format!("busybox@{digest}").parse().unwrap();
        assert_eq!(reference.to_string(), format!("docker.io/library/busybox@{digest}"));
        assert_eq!(reference.digest(), Some(digest));
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.repo_tag(), None);
        let both: Reference = format!("r.io/x:1@{digest}").parse().unwrap();
        assert_eq!(both.to_string(), format!("r.io/x:1@{digest}"));
        assert!(!both.is_latest());
    }

    #[test]
    fn malformed_references_are_refused() {
        let long = "a".repeat(300);
        for bad in [
            "",
            ":",
            "@",
            "a:",
            "a@",
            "a@sha256:00",
            "A",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a b",
            "a:b:c/d",
            "a:-x",
            "r.io:99999/x",
            "r.io:/x",
            "-r.io/x",
            "[::1/x",
            "a\n",
            "ä",
            "../a",
            "r.io/../a",
            &long,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was accepted");
        }
        assert!("a".parse::<Reference>().unwrap().is_latest());
    }
}
