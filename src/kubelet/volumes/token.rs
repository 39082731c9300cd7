//! Service account tokens of pods: asked for through the TokenRequest API, bound to the pod, renewed in good time.

use super::VolumeError;
use crate::context::Context;
use crate::pods::kept::{Kept, validity};
use edge_client::{Api, Client, PostParams, ResourceExt};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use k8s_openapi::jiff::Timestamp;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Life of a token when the volume does not say.
const DEFAULT_LIFE: i64 = 3600;
/// Longest life before renewal.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// After how long a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Clocks may differ by so many seconds; no token is renewed sooner.
const SKEW: i64 = 60;

struct Held {
    token: String,
    renew: Instant,
    /// It is of an earlier start of the agent: a new one is wanted as soon as a server answers.
    old: bool,
}

/// The tokens of one pod.
#[derive(Default)]
pub(super) struct Tokens {
    held: HashMap<(Option<String>, i64), Held>,
}

/// When a token that lives this long is to be renewed: after 80 % of its life.
fn renewal(life: Duration) -> Duration {
    life.mul_f64(0.8).min(LONGEST)
}

/// Whether a token is not, or not for long, valid at a time (seconds since 1970). One that does not tell is.
fn is_stale(token: &str, now: i64) -> bool {
    validity(token).is_some_and(|(begin, end)| now < begin - SKEW || now > begin + (end - begin) / 5 * 4)
}

/// How long a token is good, in seconds. Clocks of machines differ: one that is behind must not make it last longer.
fn time_left(token: &str, told: i64, now: i64) -> i64 {
    validity(token).map_or(told, |(begin, end)| (end - begin).min(end - now)).max(SKEW)
}

impl Tokens {
    /// When the next token is to be renewed; tokens of an earlier start have no time.
    pub(super) fn next_renewal(&self) -> Option<Instant> {
        self.held.values().filter(|h| !h.old).map(|h| h.renew).min()
    }

    /// Whether there are tokens of an earlier start of the agent.
    pub(super) fn are_old(&self) -> bool {
        self.held.values().any(|h| h.old)
    }

    /// A server answers: tokens of an earlier start are to be renewed.
    pub(super) fn renew_old(&mut self) {
        for held in self.held.values_mut().filter(|h| h.old) {
            held.old = false;
            held.renew = Instant::now();
        }
    }

    /// The clock of the machine was set: what has ended by it, or has not begun, is to be renewed.
    pub(super) fn clock_was_set(&mut self) {
        let now = Timestamp::now().as_second();
        for held in self.held.values_mut().filter(|h| !h.old && is_stale(&h.token, now)) {
            held.renew = Instant::now();
        }
    }

    /// A valid token; the one at hand while it is fresh enough. Where no server answers after a start, the one of the
    /// start before, whatever its age: with it the pod can start, and it is replaced once a server answers.
    pub(super) async fn get(
        &mut self,
        cx: &Context,
        kept: &Kept,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
    ) -> Result<String, VolumeError> {
        let life = source.expiration_seconds.unwrap_or(DEFAULT_LIFE);
        let key = (source.audience.clone().filter(|a| !a.is_empty()), life);
        let now = Instant::now();
        if let Some(held) = self.held.get(&key).filter(|h| h.old || h.renew > now) {
            return Ok(held.token.clone());
        }
        match cx.unless_alone(request(&cx.client, pod, key.0.clone(), life)).await {
            Some(Ok((token, life))) => {
                kept.put_token(key.0.as_deref(), key.1, &token);
                self.held.insert(key, Held { token: token.clone(), renew: now + renewal(life), old: false });
                Ok(token)
            }
            Some(Err(error)) => match self.held.get_mut(&key) {
                // better an old token than none; a little later it is tried again
                Some(held) => {
                    tracing::warn!(pod = %pod.name_any(), %error, "token not renewed");
                    held.renew = now + RETRY;
                    Ok(held.token.clone())
                }
                None => Err(VolumeError::Token(error)),
            },
            None => {
                let token = kept.token(key.0.as_deref(), life);
                let token = token.ok_or_else(|| VolumeError::Alone("a token of the service account".to_owned()))?;
                let stale = is_stale(&token, Timestamp::now().as_second());
                tracing::info!(pod = %pod.name_any(), stale, "no server answers, the pod gets the token that it had before");
                self.held.insert(key, Held { token: token.clone(), renew: now, old: true });
                Ok(token)
            }
        }
    }
}

async fn request(
    client: &Client,
    pod: &Pod,
    audience: Option<String>,
    life: i64,
) -> Result<(String, Duration), edge_client::Error> {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).filter(|n| !n.is_empty());
    let account = account.unwrap_or_else(|| "default".to_owned());
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audience.into_iter().collect()),
            expiration_seconds: Some(life),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        }),
        ..TokenRequest::default()
    };
    let answer = accounts.create_token_request(&account, &PostParams::default(), &request).await?;
    let status = answer.status.unwrap_or_default();
    let token = status.token.unwrap_or_default();
    let now = Timestamp::now().as_second();
    let told = status.expiration_timestamp.map_or(life, |t| t.0.as_second() - now);
    let left = time_left(&token, told, now);
    Ok((token, Duration::from_secs(u64::try_from(left).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_after_four_fifths_of_their_life() {
        assert_eq!(renewal(Duration::from_secs(3600)), Duration::from_secs(2880));
        assert_eq!(renewal(Duration::from_secs(365 * 24 * 3600)), LONGEST);
    }

    #[test]
    fn clocks_that_are_wrong() {
        use base64::Engine as _;
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"iat":100000,"exp":103600}"#);
        let token = format!("e.{payload}.s");
        assert_eq!(time_left(&token, 7, 100_000), 3600);
        assert_eq!(time_left(&token, 7, 0), 3600, "behind: it is not good for longer");
        assert_eq!(time_left(&token, 7, 100_600), 3000);
        assert_eq!(time_left(&token, 7, 1_000_000), SKEW, "ahead");
        assert_eq!(time_left("opaque", 700, 5), 700);
        for (now, stale) in [(0, true), (99_990, false), (102_000, false), (103_000, true), (1 << 40, true)] {
            assert_eq!(is_stale(&token, now), stale, "{now}");
        }
        assert!(!is_stale("opaque", 0));
    }
}
