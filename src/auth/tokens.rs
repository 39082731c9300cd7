//! Service-account tokens: minting them (TokenRequest) and telling who presents one; tokens of other kinds are told apart
//! here too.

use crate::join::{self, JoinSecrets};
use crate::jwt::{self, TokenError};
use crate::{service_account_groups, service_account_user};
use base64::{Engine, prelude::BASE64_STANDARD};
use edge_api::UserInfo;
use edge_pki::ServiceAccountKey;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Clocks of the cluster's machines may differ by so many seconds.
const LEEWAY: u64 = 60;
/// A token lives at least ten minutes and at most a year.
const LIFETIME: std::ops::RangeInclusive<u64> = 600..=365 * 24 * 60 * 60;

/// The issuer of tokens that live in Secrets.
const LASTING_ISSUER: &str = "kubernetes/serviceaccount";
/// What comes before the names of their claims.
const LASTING: &str = "kubernetes.io/serviceaccount";

/// Tells whether what tokens are bound to still exists.
pub trait Lookup {
    /// The UID of an object (`serviceaccounts`, `pods`, `secrets` or `nodes`); `None` when there is none of that name.
    fn uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String>;

    /// A Secret, as the whole object; `None` when there is none of that name.
    fn secret(&self, namespace: &str, name: &str) -> Option<Value>;
}

/// What the tokens of a cluster have in common.
#[derive(Clone, Debug)]
pub struct AuthenticatorOptions {
    /// The issuer, `https://kubernetes.default.svc.<domain>`.
    pub issuer: String,
    /// The audiences of the API server itself.
    pub audiences: Vec<String>,
}

/// Why a token is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFailure {
    /// It is no token of this cluster.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It says something that does not hold (any more).
    #[error("{0}")]
    Claim(&'static str),
}

/// Who presented a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// The service account.
    pub user: UserInfo,
    /// Those of the asked audiences that the token is for.
    pub audiences: Vec<String>,
}

/// An object that a token is bound to: it is worthless when the object is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundObject {
    /// `Pod`, `Secret` or `Node`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// A token to be minted.
#[derive(Clone, Debug)]
pub struct TokenSpec<'a> {
    /// Namespace of the service account.
    pub namespace: &'a str,
    /// Name of the service account.
    pub name: &'a str,
    /// UID of the service account.
    pub uid: &'a str,
    /// Audiences; empty means the API server's.
    pub audiences: Vec<String>,
    /// Wanted lifetime in seconds; kept within ten minutes and a year.
    pub lifetime: u64,
    /// What it is bound to.
    pub bound: Option<BoundObject>,
    /// Name and UID of the node of a bound pod.
    pub node: Option<(String, String)>,
}

/// A minted token.
#[derive(Clone, Debug)]
pub struct Minted {
    /// The token.
    pub token: String,
    /// Seconds since 1970 at which it expires.
    pub expires: u64,
    /// The audiences that it is for.
    pub audiences: Vec<String>,
}

/// Mints and verifies service-account tokens.
pub struct Authenticator {
    key: Arc<ServiceAccountKey>,
    options: AuthenticatorOptions,
    join: Arc<JoinSecrets>,
}

impl Authenticator {
    /// Makes one that signs and verifies with `key`.
    pub fn new(key: Arc<ServiceAccountKey>, options: AuthenticatorOptions) -> Self {
        Self { key, options, join: Arc::default() }
    }

    /// Lets those in who present one of `secrets`.
    #[must_use]
    pub fn with_join_secrets(self, secrets: Arc<JoinSecrets>) -> Self {
        Self { join: secrets, ..self }
    }

    /// The issuer of tokens, for `/.well-known/openid-configuration`.
    pub fn issuer(&self) -> &str {
        &self.options.issuer
    }

    /// The public key, for `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        self.key.jwks()
    }

    /// Mints a token.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn mint(&self, spec: &TokenSpec<'_>) -> Result<Minted, TokenError> {
        let issued = now();
        let expires = issued + spec.lifetime.clamp(*LIFETIME.start(), *LIFETIME.end());
        let audiences = if spec.audiences.is_empty() { self.options.audiences.clone() } else { spec.audiences.clone() };
        let user = service_account_user(spec.namespace, spec.name);
        let mut private = json!({
            "namespace": spec.namespace,
            "serviceaccount": {"name": spec.name, "uid": spec.uid},
        });
        if let Some(bound) = &spec.bound {
            private[bound.kind.to_lowercase()] = json!({"name": bound.name, "uid": bound.uid});
        }
        if let Some((name, uid)) = &spec.node {
            private["node"] = json!({"name": name, "uid": uid});
        }
        let claims = json!({
            "iss": self.options.issuer, "sub": user, "aud": audiences, "iat": issued, "nbf": issued, "exp": expires,
            "jti": random_id(), "kubernetes.io": private,
        });
        Ok(Minted { token: jwt::sign(&self.key, &claims)?, expires, audiences })
    }

    /// Tells who presents a token. `audiences` are those that the asker stands for; empty means the API server's.
    ///
    /// # Errors
    /// [`TokenFailure`] says what does not hold.
    pub fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        lookup: &dyn Lookup,
    ) -> Result<Authenticated, TokenFailure> {
        if let Some(user) = self.joining(token, lookup)? {
            let wanted = if audiences.is_empty() { &self.options.audiences } else { audiences };
            return Ok(Authenticated { user, audiences: wanted.to_vec() });
        }
        let claims = jwt::verify(&self.key, token)?;
        let text = |pointer: &str| claims.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let number = |field: &str| claims.get(field).and_then(Value::as_u64).unwrap_or(0);
        if text("/iss") == LASTING_ISSUER {
            return self.lasting(token, &claims, audiences, lookup);
        }
        if text("/iss") != self.options.issuer {
            return Err(TokenFailure::Claim("token was issued by somebody else"));
        }
        let time = now();
        if number("exp") + LEEWAY <= time {
            return Err(TokenFailure::Claim("service account token has expired"));
        }
        if number("nbf") > time + LEEWAY {
            return Err(TokenFailure::Claim("service account token is not valid yet"));
        }
        let wanted = if audiences.is_empty() { &self.options.audiences } else { audiences };
        let its: Vec<&str> =
            claims.get("aud").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let common: Vec<String> = wanted.iter().filter(|a| its.contains(&a.as_str())).cloned().collect();
        if common.is_empty() {
            return Err(TokenFailure::Claim("token is for other audiences"));
        }
        let namespace = text("/kubernetes.io/namespace");
        let (name, uid) = (text("/kubernetes.io/serviceaccount/name"), text("/kubernetes.io/serviceaccount/uid"));
        if lookup.uid("serviceaccounts", namespace, name).as_deref() != Some(uid) || uid.is_empty() {
            return Err(TokenFailure::Claim("service account of the token is gone"));
        }
        let mut user = UserInfo::new(service_account_user(namespace, name), service_account_groups(namespace));
        user.uid = uid.to_owned();
        user.extra = self.bound(&claims, namespace, lookup)?;
        Ok(Authenticated { user, audiences: common })
    }

    /// Who presents a token that lives in a Secret: it is good as long as it is there.
    fn lasting(
        &self,
        token: &str,
        claims: &Value,
        audiences: &[String],
        lookup: &dyn Lookup,
    ) -> Result<Authenticated, TokenFailure> {
        let text = |claim: &str| claims.get(format!("{LASTING}/{claim}")).and_then(Value::as_str).unwrap_or_default();
        let its = &self.options.audiences;
        let common: Vec<String> = match audiences {
            [] => its.clone(),
            asked => asked.iter().filter(|audience| its.contains(audience)).cloned().collect(),
        };
        if common.is_empty() {
            return Err(TokenFailure::Claim("token is for other audiences"));
        }
        let (namespace, name, uid) = (text("namespace"), text("service-account.name"), text("service-account.uid"));
        let secret = lookup.secret(namespace, text("secret.name"));
        let secret = secret.filter(|secret| secret.pointer("/metadata/deletionTimestamp").is_none());
        let kept = secret.as_ref().and_then(|secret| secret.pointer("/data/token")).and_then(Value::as_str);
        if kept != Some(BASE64_STANDARD.encode(token).as_str()) {
            return Err(TokenFailure::Claim("secret of the token is gone, or holds another one"));
        }
        if uid.is_empty() || lookup.uid("serviceaccounts", namespace, name).as_deref() != Some(uid) {
            return Err(TokenFailure::Claim("service account of the token is gone"));
        }
        let mut user = UserInfo::new(service_account_user(namespace, name), service_account_groups(namespace));
        user.uid = uid.to_owned();
        Ok(Authenticated { user, audiences: common })
    }

    /// Who presents a token that is made for joining; `None` when it is of another kind.
    fn joining(&self, token: &str, lookup: &dyn Lookup) -> Result<Option<UserInfo>, TokenFailure> {
        if let Some(user) = self.join.user(token) {
            return Ok(Some(user));
        }
        let Some((id, secret)) = join::split_bootstrap_token(token) else { return Ok(None) };
        let (namespace, name) = join::bootstrap_secret(id);
        let object = lookup.secret(namespace, &name).ok_or(TokenFailure::Claim("no such bootstrap token"))?;
        join::bootstrap_user(id, secret, &object, now()).map(Some).map_err(TokenFailure::Claim)
    }

    /// Checks what the token is bound to; gives the facts that go into the user's `extra`.
    fn bound(
        &self,
        claims: &Value,
        namespace: &str,
        lookup: &dyn Lookup,
    ) -> Result<BTreeMap<String, Vec<String>>, TokenFailure> {
        let mut extra = BTreeMap::new();
        let mut fact = |key: &str, value: &str| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        };
        if let Some(id) = claims.get("jti").and_then(Value::as_str) {
            fact("credential-id", &format!("JTI={id}"));
        }
        let is_bound_to_pod = claims.pointer("/kubernetes.io/pod").is_some();
        for (claim, resource, namespace) in
            [("pod", "pods", namespace), ("secret", "secrets", namespace), ("node", "nodes", "")]
        {
            let Some(object) = claims.pointer(&format!("/kubernetes.io/{claim}")) else { continue };
            let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
            let (name, uid) = (text("name"), text("uid"));
            // the node of a bound pod is only a note: the pod's existence is what counts
            let must_exist = claim != "node" || !is_bound_to_pod;
            if must_exist && (uid.is_empty() || lookup.uid(resource, namespace, name).as_deref() != Some(uid)) {
                return Err(TokenFailure::Claim("object that the token is bound to is gone"));
            }
            if claim != "secret" {
                fact(&format!("{claim}-name"), name);
                fact(&format!("{claim}-uid"), uid);
            }
        }
        Ok(extra)
    }
}

/// Mints the token of a Secret of type `kubernetes.io/service-account-token`. It does not expire: it is good as long as the Secret
/// holds it.
///
/// # Errors
/// When the system has no randomness to give.
pub fn lasting_token(
    key: &ServiceAccountKey,
    namespace: &str,
    (name, uid): (&str, &str),
    secret: &str,
) -> Result<String, TokenError> {
    let mut claims = json!({"iss": LASTING_ISSUER, "sub": service_account_user(namespace, name)});
    for (claim, value) in [
        ("namespace", namespace),
        ("secret.name", secret),
        ("service-account.name", name),
        ("service-account.uid", uid),
    ] {
        claims[format!("{LASTING}/{claim}")] = value.into();
    }
    jwt::sign(key, &claims)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A random identifier in the form of a UUID.
fn random_id() -> String {
    let mut bytes = [0u8; 16];
    // without randomness the signature fails too, so this identifier is never seen
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    let n = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{n:032x}");
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|r| hex.get(r).unwrap_or_default().to_owned()).join("-")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::collections::HashMap;

    struct Known(HashMap<(String, String), String>);

    impl Lookup for Known {
        fn uid(&self, resource: &str, _: &str, name: &str) -> Option<String> {
            self.0.get(&(resource.to_owned(), name.to_owned())).cloned()
        }
        fn secret(&self, _: &str, _: &str) -> Option<Value> {
            None
        }
    }

    fn known(entries: &[(&str, &str, &str)]) -> Known {
        Known(entries.iter().map(|(r, n, u)| (((*r).to_owned(), (*n).to_owned()), (*u).to_owned())).collect())
    }

    fn authenticator() -> (tempfile::TempDir, Authenticator) {
        let dir = tempfile::tempdir().unwrap();
        let key = Arc::new(ServiceAccountKey::load_or_create(&dir.path().join("service.key")).unwrap());
        let issuer = "https://kubernetes.default.svc.cluster.local".to_owned();
        let options = AuthenticatorOptions { audiences: vec![issuer.clone()], issuer };
        (dir, Authenticator::new(key, options))
    }

    fn spec(bound: bool) -> TokenSpec<'static> {
        TokenSpec {
            namespace: "ns",
            name: "sa",
            uid: "1",
            audiences: Vec::new(),
            lifetime: 3600,
            bound: bound.then(|| BoundObject { kind: "Pod".into(), name: "p".into(), uid: "2".into() }),
            node: bound.then(|| ("n".to_owned(), "3".to_owned())),
        }
    }

    #[test]
    fn tokens_die_with_what_they_are_bound_to() {
        let (_dir, a) = authenticator();
        let minted = a.mint(&spec(true)).unwrap();
        let all = known(&[("serviceaccounts", "sa", "1"), ("pods", "p", "2")]);
        let who = a.authenticate(&minted.token, &[], &all).unwrap();
        assert_eq!(who.user.username, "system:serviceaccount:ns:sa");
        assert!(who.user.in_group("system:serviceaccounts:ns") && who.user.in_group("system:authenticated"));
        assert_eq!(who.user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(who.user.extra["authentication.kubernetes.io/node-name"], ["n"]);
        for gone in [
            known(&[("serviceaccounts", "sa", "1")]),
            known(&[("serviceaccounts", "sa", "9"), ("pods", "p", "2")]),
            known(&[("serviceaccounts", "sa", "1"), ("pods", "p", "9")]),
        ] {
            assert!(matches!(a.authenticate(&minted.token, &[], &gone), Err(TokenFailure::Claim(_))));
        }
    }

    #[test]
    fn audiences_times_and_issuers_count() {
        let (_dir, a) = authenticator();
        let all = known(&[("serviceaccounts", "sa", "1")]);
        let token = a.mint(&TokenSpec { audiences: vec!["vault".into()], ..spec(false) }).unwrap().token;
        assert!(a.authenticate(&token, &[], &all).is_err());
        let asked = ["vault".to_owned(), "other".to_owned()];
        assert_eq!(a.authenticate(&token, &asked, &all).unwrap().audiences, ["vault"]);
        let claims = |exp: u64, nbf: u64, iss: &str| {
            json!({"iss": iss, "aud": [a.issuer()], "exp": exp, "nbf": nbf,
                "kubernetes.io": {"namespace": "ns", "serviceaccount": {"name": "sa", "uid": "1"}}})
        };
        let check = |c: Value| a.authenticate(&jwt::sign(&a.key, &c).unwrap(), &[], &all).is_ok();
        assert!(check(claims(now() + 100, now(), a.issuer())));
        assert!(!check(claims(now() - 100, 0, a.issuer())));
        assert!(!check(claims(now() + 900, now() + 600, a.issuer())));
        assert!(!check(claims(now() + 100, now(), "somebody")));
        assert!(!check(json!({})));
        assert!(a.mint(&TokenSpec { lifetime: 1, ..spec(false) }).unwrap().expires >= now() + 590);
    }

    #[test]
    fn tokens_of_secrets_are_good_as_long_as_they_are_there() {
        struct Holds(Option<Value>, &'static str);
        impl Lookup for Holds {
            fn uid(&self, resource: &str, _: &str, name: &str) -> Option<String> {
                (resource == "serviceaccounts" && name == "sa").then(|| self.1.to_owned())
            }
            fn secret(&self, namespace: &str, name: &str) -> Option<Value> {
                self.0.clone().filter(|_| (namespace, name) == ("ns", "kept"))
            }
        }
        let (_dir, a) = authenticator();
        let token = lasting_token(&a.key, "ns", ("sa", "1"), "kept").unwrap();
        let holds = |text: &str| json!({"metadata": {}, "data": {"token": BASE64_STANDARD.encode(text)}});
        let who = a.authenticate(&token, &[], &Holds(Some(holds(&token)), "1")).unwrap();
        assert_eq!((who.user.username.as_str(), who.user.uid.as_str()), ("system:serviceaccount:ns:sa", "1"));
        assert_eq!(who.audiences, [a.issuer()]);
        let mut going = holds(&token);
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        for (secret, uid) in [(None, "1"), (Some(going), "1"), (Some(holds("other")), "1"), (Some(holds(&token)), "2")]
        {
            assert!(a.authenticate(&token, &[], &Holds(secret, uid)).is_err());
        }
        assert!(a.authenticate(&token, &["vault".to_owned()], &Holds(Some(holds(&token)), "1")).is_err());
        let other = lasting_token(&a.key, "ns", ("sa", "1"), "missing").unwrap();
        assert!(a.authenticate(&other, &[], &Holds(Some(holds(&other)), "1")).is_err());
    }
}
