//! Who may use the kubelet's API over the network: the holder of a client certificate of the cluster, or of a token that the
//! API server knows; and may he do this to this node, which the API server decides too. Nobody is anonymous.

use super::Refusal;
use edge_client::{Api, Client, PostParams};
use http::{HeaderMap, Method, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How long answers of the API server hold: the kubelet's defaults.
const TOKEN_HOLDS: Duration = Duration::from_secs(2 * 60);
const YES_HOLDS: Duration = Duration::from_secs(5 * 60);
const NO_HOLDS: Duration = Duration::from_secs(30);
/// Most answers that are remembered of each kind.
const MAX_REMEMBERED: usize = 256;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct User {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// Whom a client certificate names, and until when.
#[derive(Clone, Debug)]
pub(super) struct CertificateUser {
    user: User,
    end: SystemTime,
}

impl CertificateUser {
    /// Reads a certificate that TLS has verified.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let user = edge_pki::user_of_certificate(certificate)?;
        let user = User { name: user.username, uid: user.uid, groups: user.groups, extra: user.extra };
        Some(Self { user, end: edge_pki::certificate_end(certificate)? })
    }
}

/// What was answered, for a while.
struct Remembered<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let now = Instant::now();
        self.0.lock().get(key).filter(|(_, end)| *end > now).map(|(value, _)| value.clone())
    }

    fn put(&self, key: K, value: V, holds: Duration) {
        let now = Instant::now();
        let mut all = self.0.lock();
        if all.len() >= MAX_REMEMBERED {
            all.retain(|_, (_, end)| *end > now);
        }
        if all.len() >= MAX_REMEMBERED {
            all.clear();
        }
        all.insert(key, (value, now + holds));
    }
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Decides about requests.
pub(super) struct Access {
    client: Client,
    node: String,
    /// By the hashes of tokens.
    users: Remembered<[u8; 32], Option<User>>,
    decisions: Remembered<(User, &'static str, &'static str), bool>,
}

/// What a request does to the node: verb and subresources of `nodes`, of which one has to be allowed.
fn attributes(method: &Method, path: &str) -> (&'static str, &'static [&'static str]) {
    let first = path.split('/').find(|p| !p.is_empty()).unwrap_or_default();
    // what runs commands or opens connections is never just reading, whatever method begins it
    let acts = matches!(first, "exec" | "attach" | "portForward" | "run");
    let verb = match *method {
        _ if acts => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "create",
    };
    let subresources: &[&str] = match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    };
    (verb, subresources)
}

/// The API server could not be asked.
fn unavailable(error: &edge_client::Error) -> Refusal {
    tracing::warn!(%error, "the API server cannot be asked who may use the kubelet's API");
    Refusal(StatusCode::SERVICE_UNAVAILABLE, "the API server cannot be asked".to_owned())
}

fn unauthorized() -> Refusal {
    Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned())
}

impl Access {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned(), users: Remembered::default(), decisions: Remembered::default() }
    }

    /// Lets a request pass, or not.
    ///
    /// # Errors
    /// 401 for who shows no good credentials, 403 for who may not, 503 where the API server cannot be asked.
    pub(super) async fn check(
        &self,
        certificate: Option<&CertificateUser>,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let user = match certificate {
            Some(shown) if shown.end < SystemTime::now() => return Err(unauthorized()),
            Some(shown) => shown.user.clone(),
            None => self.token_user(bearer(headers).ok_or_else(unauthorized)?).await?,
        };
        let (verb, subresources) = attributes(method, path);
        for subresource in subresources {
            if self.may(&user, verb, subresource).await? {
                return Ok(());
            }
        }
        let message = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
            user.name,
            subresources.join(" ")
        );
        Err(Refusal(StatusCode::FORBIDDEN, message))
    }

    async fn token_user(&self, token: &str) -> Result<User, Refusal> {
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.users.get(&key) {
            return known.ok_or_else(unauthorized);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await.map_err(|e| unavailable(&e))?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        let holds = if user.is_some() { TOKEN_HOLDS } else { NO_HOLDS };
        self.users.put(key, user.clone(), holds);
        user.ok_or_else(unauthorized)
    }

    async fn may(&self, user: &User, verb: &'static str, subresource: &'static str) -> Result<bool, Refusal> {
        let key = (user.clone(), verb, subresource);
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await.map_err(|e| unavailable(&e))?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        self.decisions.put(key, allowed, if allowed { YES_HOLDS } else { NO_HOLDS });
        Ok(allowed)
    }
}

/// The bearer token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    Some(token.trim()).filter(|t| scheme.eq_ignore_ascii_case("bearer") && !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_ask_for() {
        let of = |method: Method, path: &str| attributes(&method, path);
        assert_eq!(of(Method::GET, "/metrics/resource"), ("get", &["metrics"][..]));
        assert_eq!(of(Method::GET, "/stats/summary"), ("get", &["stats"][..]));
        assert_eq!(of(Method::GET, "/pods"), ("get", &["pods", "proxy"][..]));
        assert_eq!(of(Method::GET, "/healthz/ping"), ("get", &["healthz", "proxy"][..]));
        assert_eq!(of(Method::GET, "/containerLogs/ns/p/c"), ("get", &["proxy"][..]));
        assert_eq!(of(Method::POST, "/exec/ns/p/c"), ("create", &["proxy"][..]));
        assert_eq!(of(Method::GET, "/exec/ns/p/c"), ("create", &["proxy"][..]), "a WebSocket begins with GET");
        assert_eq!(of(Method::GET, "//portForward/ns/p"), ("create", &["proxy"][..]));
        assert_eq!(of(Method::GET, "/metricsx"), ("get", &["proxy"][..]));
        assert_eq!(of(Method::GET, ""), ("get", &["proxy"][..]));
    }

    #[test]
    fn tokens_of_requests() {
        let of = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, http::HeaderValue::from_static(value))]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc").as_deref(), Some("abc"));
        for bad in ["", "Bearer", "Bearer ", "Basic abc"] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_remembered_for_a_while_and_not_without_end() {
        let remembered = Remembered::<usize, bool>::default();
        remembered.put(1, true, Duration::from_secs(10));
        assert_eq!(remembered.get(&1), Some(true));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(remembered.get(&1), None);
        for key in 0..10 * MAX_REMEMBERED {
            remembered.put(key, true, Duration::from_secs(10));
            assert!(remembered.0.lock().len() <= MAX_REMEMBERED);
        }
    }
}
