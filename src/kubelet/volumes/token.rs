//! Service account tokens of pods: asked for through the TokenRequest API, bound to the pod, renewed in good time.

use super::VolumeError;
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

struct Held {
    token: String,
    renew: Instant,
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

impl Tokens {
    /// When the next token is to be renewed.
    pub(super) fn next_renewal(&self) -> Option<Instant> {
        self.held.values().map(|h| h.renew).min()
    }

    /// A valid token; the one at hand while it is fresh enough.
    pub(super) async fn get(
        &mut self,
        client: &Client,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
    ) -> Result<String, VolumeError> {
        let life = source.expiration_seconds.unwrap_or(DEFAULT_LIFE);
        let key = (source.audience.clone().filter(|a| !a.is_empty()), life);
        let now = Instant::now();
        if let Some(held) = self.held.get(&key).filter(|h| h.renew > now) {
            return Ok(held.token.clone());
        }
        match request(client, pod, key.0.clone(), life).await {
            Ok((token, life)) => {
                self.held.insert(key, Held { token: token.clone(), renew: now + renewal(life) });
                Ok(token)
            }
            Err(error) => match self.held.get_mut(&key) {
                // better an old token than none; a little later it is tried again
                Some(held) => {
                    tracing::warn!(pod = %pod.name_any(), %error, "token not renewed");
                    held.renew = now + RETRY;
                    Ok(held.token.clone())
                }
                None => Err(VolumeError::Token(error)),
            },
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
    let left = status.expiration_timestamp.map_or(life, |t| t.0.as_second() - Timestamp::now().as_second());
    Ok((status.token.unwrap_or_default(), Duration::from_secs(u64::try_from(left).unwrap_or(0).max(60))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_after_four_fifths_of_their_life() {
        assert_eq!(renewal(Duration::from_secs(3600)), Duration::from_secs(2880));
        assert_eq!(renewal(Duration::from_secs(365 * 24 * 3600)), LONGEST);
    }
}
