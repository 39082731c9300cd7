//! Tokens with which a machine joins, before it has an identity of its own: the cluster's two standing secrets (server
//! and agent token), and bootstrap tokens, which are Secrets with an expiry.

use edge_api::UserInfo;
use parking_lot::RwLock;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The group of everybody who joins.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Namespace of bootstrap tokens and of node passwords.
const NAMESPACE: &str = "kube-system";

/// The standing secrets of a cluster. They can be replaced while the server runs.
#[derive(Debug, Default)]
pub struct JoinSecrets(RwLock<Vec<(String, [u8; 32])>>);

impl JoinSecrets {
    /// Secrets by the names of their users, such as `("server", "s3cret")`.
    pub fn new(secrets: &[(&str, &str)]) -> Self {
        let new = Self::default();
        new.replace(secrets);
        new
    }

    /// Replaces all secrets.
    pub fn replace(&self, secrets: &[(&str, &str)]) {
        let digests = secrets.iter().filter(|(_, secret)| !secret.is_empty());
        *self.0.write() = digests.map(|(name, secret)| ((*name).to_owned(), digest(secret))).collect();
    }

    /// Who presents a secret.
    pub(crate) fn user(&self, secret: &str) -> Option<UserInfo> {
        let presented = digest(secret);
        let known = self.0.read();
        let (name, _) = known.iter().find(|(_, known)| same(known, &presented))?;
        Some(UserInfo::new(format!("edge:{name}-token"), [BOOTSTRAPPERS]))
    }
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Compares in a time that tells nothing about where the two differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (a, b)| d | (a ^ b)) == 0
}

/// The hash under which a node's password is stored: salted, and of a secret that is random and long, so no slow hash
/// is needed. `salt` is any random text without a colon.
pub fn password_hash(salt: &str, password: &str) -> String {
    format!("1:{salt}:{}", hex::encode(Sha256::digest(format!("{salt}:{password}"))))
}

/// Whether a password is the one that was hashed.
pub fn password_matches(hash: &str, password: &str) -> bool {
    let mut parts = hash.splitn(3, ':');
    let (Some("1"), Some(salt)) = (parts.next(), parts.next()) else { return false };
    same(password_hash(salt, password).as_bytes(), hash.as_bytes())
}

/// Identifier and secret of a token of the form `[a-z0-9]{6}.[a-z0-9]{16}`.
pub fn split_bootstrap_token(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// Namespace and name of the Secret of a bootstrap token.
pub(crate) fn bootstrap_secret(id: &str) -> (&'static str, String) {
    (NAMESPACE, format!("bootstrap-token-{id}"))
}

/// Who presents a bootstrap token, as its Secret (whole object) says. `now` is in seconds since 1970.
///
/// # Errors
/// What does not hold.
pub(crate) fn bootstrap_user(id: &str, secret: &str, object: &Value, now: u64) -> Result<UserInfo, &'static str> {
    use base64::Engine as _;
    let text = |key: &str| {
        let encoded = object.pointer(&format!("/data/{key}")).and_then(Value::as_str)?;
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).ok()?).ok()
    };
    let is_ours = object.get("type").and_then(Value::as_str) == Some("bootstrap.kubernetes.io/token");
    if !is_ours || object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null()) {
        return Err("no such bootstrap token");
    }
    let known = text("token-secret").unwrap_or_default();
    if text("token-id").as_deref() != Some(id) || !same(known.as_bytes(), secret.as_bytes()) {
        return Err("no such bootstrap token");
    }
    if let Some(expiration) = text("expiration") {
        // an expiry that cannot be read is one that has passed
        let end = edge_api::meta::parse_time(&expiration).and_then(|t| u64::try_from(t.as_second()).ok());
        if end.is_none_or(|end| end <= now) {
            return Err("bootstrap token has expired");
        }
    }
    if text("usage-bootstrap-authentication").as_deref() != Some("true") {
        return Err("bootstrap token is not meant for authentication");
    }
    let extra = text("auth-extra-groups").unwrap_or_default();
    let extra = extra.split(',').map(str::trim).filter(|g| !g.is_empty()).map(str::to_owned);
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    for group in extra {
        if !is_bootstrap_group(&group) {
            return Err("bootstrap token names a group outside of system:bootstrappers:");
        }
        groups.push(group);
    }
    Ok(UserInfo::new(format!("system:bootstrap:{id}"), groups))
}

/// Whether a bootstrap token may carry the group: `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`.
fn is_bootstrap_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix(BOOTSTRAPPERS).and_then(|r| r.strip_prefix(':')) else { return false };
    let plain = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    rest.len() <= 256 && rest.bytes().last().is_some_and(plain) && rest.bytes().all(|b| plain(b) || b":-".contains(&b))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use base64::Engine as _;
    use serde_json::json;

    fn secret(fields: &[(&str, &str)]) -> Value {
        let encode = |v: &str| Value::from(base64::engine::general_purpose::STANDARD.encode(v));
        let mut data = serde_json::Map::new();
        for (k, v) in [("token-id", "abcdef"), ("token-secret", "0123456789abcdef")] {
            data.insert(k.into(), encode(v));
        }
        data.insert("usage-bootstrap-authentication".into(), encode("true"));
        for (k, v) in fields {
            data.insert((*k).into(), encode(v));
        }
        json!({"type": "bootstrap.kubernetes.io/token", "data": data})
    }

    #[test]
    fn bootstrap_tokens_hold_until_they_expire() {
        let ask = |object: &Value, now| bootstrap_user("abcdef", "0123456789abcdef", object, now);
        let user = ask(&secret(&[("auth-extra-groups", "system:bootstrappers:a:b")]), 0).unwrap();
        assert_eq!(user.username, "system:bootstrap:abcdef");
        assert!(user.in_group("system:bootstrappers") && user.in_group("system:bootstrappers:a:b"));
        let expiring = secret(&[("expiration", "2026-01-01T00:00:00Z")]);
        assert!(ask(&expiring, 1_767_225_599).is_ok());
        assert_eq!(ask(&expiring, 1_767_225_600), Err("bootstrap token has expired"));
        assert!(ask(&secret(&[("expiration", "soon")]), 0).is_err());
        assert!(ask(&secret(&[("usage-bootstrap-authentication", "false")]), 0).is_err());
        assert!(ask(&secret(&[("auth-extra-groups", "system:masters")]), 0).is_err());
        assert!(ask(&secret(&[("token-secret", "0123456789abcdeF")]), 0).is_err());
        assert!(bootstrap_user("abcdeg", "0123456789abcdef", &secret(&[]), 0).is_err());
        assert!(ask(&json!({"type": "Opaque", "data": secret(&[])["data"]}), 0).is_err());
    }

    #[test]
    fn forms_of_tokens() {
        assert_eq!(split_bootstrap_token("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in ["abcdef", "abcde.0123456789abcdef", "Abcdef.0123456789abcdef", "abcdef.0123456789abcde", ""] {
            assert_eq!(split_bootstrap_token(bad), None, "{bad}");
        }
        let secrets = JoinSecrets::new(&[("server", "a"), ("agent", ""), ("agent", "b")]);
        assert_eq!(secrets.user("b").unwrap().username, "edge:agent-token");
        assert!(secrets.user("").is_none() && secrets.user("c").is_none());
        secrets.replace(&[("server", "c")]);
        assert!(secrets.user("c").is_some() && secrets.user("a").is_none());
    }

    #[test]
    fn passwords_are_told_apart() {
        let hash = password_hash("salt", "secret");
        assert!(password_matches(&hash, "secret"));
        for wrong in ["", "Secret", "secret "] {
            assert!(!password_matches(&hash, wrong), "{wrong:?}");
        }
        assert!(!password_matches("", "secret") && !password_matches("1:salt", "secret"));
    }
}
