//! The syntax of names, labels and annotations. Each check answers with the reason for a refusal.

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    let (Some(first), Some(last)) = (b.first(), b.last()) else { return false };
    lower_alnum(*first) && lower_alnum(*last) && b.iter().all(|c| lower_alnum(*c) || *c == b'-')
}

fn is_qualified_part(s: &str) -> bool {
    let b = s.as_bytes();
    let (Some(first), Some(last)) = (b.first(), b.last()) else { return false };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// A DNS label of RFC 1123, at most 63 bytes.
///
/// # Errors
/// The reason, in Kubernetes' wording.
pub fn dns1123_label(s: &str) -> Result<(), String> {
    if s.len() > 63 {
        return Err("must be no more than 63 bytes".into());
    }
    if is_label(s) { Ok(()) } else { Err(LABEL_RULE.into()) }
}

/// A DNS subdomain of RFC 1123, at most 253 bytes: the name of most objects.
///
/// # Errors
/// The reason, in Kubernetes' wording.
pub fn dns1123_subdomain(s: &str) -> Result<(), String> {
    if s.len() > 253 {
        return Err("must be no more than 253 bytes".into());
    }
    if s.split('.').all(is_label) { Ok(()) } else { Err(SUBDOMAIN_RULE.into()) }
}

/// A DNS label of RFC 1035 (must begin with a letter), at most 63 bytes: the name of Services.
///
/// # Errors
/// The reason, in Kubernetes' wording.
pub fn dns1035_label(s: &str) -> Result<(), String> {
    if s.len() > 63 {
        return Err("must be no more than 63 bytes".into());
    }
    if is_label(s) && s.as_bytes()[0].is_ascii_lowercase() { Ok(()) } else { Err(LABEL_1035_RULE.into()) }
}

/// A name that can stand in a URL path: RBAC's objects allow everything but `.`, `..`, `/` and `%`.
///
/// # Errors
/// The reason, in Kubernetes' wording.
pub fn path_segment(s: &str) -> Result<(), String> {
    if s == "." || s == ".." {
        return Err(format!("may not be '{s}'"));
    }
    match s.chars().find(|c| matches!(c, '/' | '%')) {
        Some(c) => Err(format!("may not contain '{c}'")),
        None => Ok(()),
    }
}

/// A label or annotation key: an optional DNS subdomain prefix, a slash, and a name of at most 63 bytes.
///
/// # Errors
/// The reason, in Kubernetes' wording.
pub fn qualified_name(s: &str) -> Result<(), String> {
    let name = match s.split_once('/') {
        None => s,
        Some((_, name)) if name.contains('/') => {
            return Err(
                "a qualified name must have an optional DNS subdomain prefix and one '/' (e.g. 'example.com/MyName')"
                    .into(),
            );
        }
        Some(("", _)) => return Err("prefix part must be non-empty".into()),
        Some((prefix, name)) => {
            dns1123_subdomain(prefix).map_err(|e| format!("prefix part {e}"))?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty".into());
    }
    if name.len() > 63 {
        return Err("name part must be no more than 63 bytes".into());
    }
    if is_qualified_part(name) { Ok(()) } else { Err(QUALIFIED_RULE.into()) }
}

/// Whether a resource is neither Kubernetes' own nor a quota's name for another one.
pub fn is_extended_resource(name: &str) -> bool {
    name.contains('/')
        && !name.contains("kubernetes.io/")
        && !name.starts_with("requests.")
        && qualified_name(&format!("requests.{name}")).is_ok()
}

/// A label value: empty, or at most 63 bytes.
///
/// # Errors
/// The reason, in Kubernetes' wording.
pub fn label_value(s: &str) -> Result<(), String> {
    if s.len() > 63 {
        return Err("must be no more than 63 bytes".into());
    }
    if s.is_empty() || is_qualified_part(s) { Ok(()) } else { Err(LABEL_VALUE_RULE.into()) }
}

/// A key of a ConfigMap or Secret: a file name of at most 253 bytes that is neither `.` nor `..`-prefixed.
///
/// # Errors
/// The reason, in Kubernetes' wording.
pub fn config_map_key(s: &str) -> Result<(), String> {
    if s.len() > 253 {
        return Err("must be no more than 253 bytes".into());
    }
    if s == "." {
        return Err("must not be '.'".into());
    }
    if s.starts_with("..") {
        return Err(if s == ".." { "must not be '..'".into() } else { "must not start with '..'".into() });
    }
    if !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')) {
        Ok(())
    } else {
        Err("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".into())
    }
}

/// Labels below Kubernetes' own domains that kubelets give themselves.
const NODES_OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

/// Whether a node may give itself a label: not those by which others tell trusted nodes from the rest (`NodeRestriction`).
pub fn is_node_own_label(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(d, _)| d);
    let below = |parent: &str| domain.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if below("node-restriction.kubernetes.io") {
        return false;
    }
    if !below("kubernetes.io") && !below("k8s.io") {
        return true;
    }
    NODES_OWN_LABELS.contains(&key) || below("kubelet.kubernetes.io") || below("node.kubernetes.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        assert!(dns1123_label("a-1").is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64)] {
            assert!(dns1123_label(bad).is_err(), "{bad}");
        }
        assert!(dns1123_subdomain("a.b-c.d1").is_ok());
        for bad in ["", ".", "a..b", "a.", "a.-b", &"a".repeat(254)] {
            assert!(dns1123_subdomain(bad).is_err(), "{bad}");
        }
        assert!(dns1035_label("1a").is_err());
        assert!(dns1035_label("a1").is_ok());
    }

    #[test]
    fn keys_and_values() {
        assert!(qualified_name("app.kubernetes.io/name").is_ok());
        assert!(qualified_name("App_1.x").is_ok());
        for bad in ["", "/a", "a/", "a/b/c", "-a", "UP.com/a"] {
            assert!(qualified_name(bad).is_err(), "{bad}");
        }
        assert!(label_value("").is_ok());
        assert!(label_value("-x").is_err());
        assert!(config_map_key("..data").is_err());
        assert!(config_map_key(".hidden").is_ok());
        assert!(path_segment("system:node").is_ok());
        assert!(path_segment("a/b").is_err());
    }
}
