//! What joining leaves behind: bootstrap tokens that have expired, passwords of nodes that are gone. And what a node must
//! not say of itself: that it is part of the control plane.

use crate::context::{Context, each, unless_changed, unless_gone};
use edge_client::{
    Api, Change, DeleteParams, Error, Outcome, Patch, PatchParams, Preconditions, ResourceExt, WorkQueue, run_workers,
};
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::time::Duration;

const NAMESPACE: &str = "kube-system";
const TOKENS: &str = "type=bootstrap.kubernetes.io/token";
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// The clock may be set, and a token must not outlive its time by more than this.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// Deletes bootstrap tokens when they expire.
pub(crate) async fn clean_tokens(context: Context) {
    let secrets = context.informers.select::<Secret>(TOKENS);
    let api: Api<Secret> = Api::namespaced(context.client.clone(), NAMESPACE);
    let queue = WorkQueue::<String>::new();
    let watch = each(&secrets, |change| {
        if change.object().namespace().as_deref() == Some(NAMESPACE) {
            queue.add(change.object().name_any());
        }
    });
    let work = run_workers("token-cleaner", queue.clone(), 1, |name: String| {
        let (api, secret) = (api.clone(), secrets.get(NAMESPACE, &name));
        async move {
            let Some(secret) = secret else { return Ok::<_, Error>(Outcome::Done) };
            let Some(left) = time_left(&secret, Timestamp::now()) else { return Ok(Outcome::Done) };
            if !left.is_zero() {
                return Ok(Outcome::After(left.min(LONGEST_WAIT)));
            }
            let this_one = Preconditions { uid: secret.uid(), resource_version: secret.resource_version() };
            let options = DeleteParams { preconditions: Some(this_one), ..DeleteParams::default() };
            unless_changed(api.delete(&name, &options).await)?;
            tracing::info!(secret = name, "bootstrap token expired");
            Ok(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

/// How long a token is valid still; `None` for ever. An expiry that cannot be read is one that has passed.
fn time_left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let expiration = secret.data.as_ref()?.get("expiration")?;
    let end = std::str::from_utf8(&expiration.0).ok().and_then(|t| t.parse::<Timestamp>().ok());
    let left = end.map_or(0, |end| end.as_second() - now.as_second());
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}

/// Deletes the passwords of nodes that were deleted, which frees their names.
pub(crate) async fn free_names(context: Context) {
    let nodes = context.informers.of::<Node>();
    let api: Api<Secret> = Api::namespaced(context.client.clone(), NAMESPACE);
    let queue = WorkQueue::<String>::new();
    let watch = each(&nodes, |change| {
        if let Change::Deleted(node) = change {
            queue.add(node.name_any());
        }
    });
    let work = run_workers("node-passwords", queue.clone(), 1, |name: String| {
        let (api, is_back) = (api.clone(), nodes.get("", &name).is_some());
        async move {
            if !is_back {
                let secret = format!("{name}.node-password.edge");
                unless_gone(api.delete(&secret, &DeleteParams::default()).await)?;
            }
            Ok::<_, Error>(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

/// Gives the node of a server its role.
pub(crate) async fn label_server(context: Context, server: String) {
    let nodes = context.informers.of::<Node>();
    let api: Api<Node> = Api::all(context.client.clone());
    let queue = WorkQueue::<String>::new();
    let watch = each(&nodes, |change| {
        if change.object().name_any() == server {
            queue.add(server.clone());
        }
    });
    let work = run_workers("server-role", queue.clone(), 1, |name: String| {
        let (api, node) = (api.clone(), nodes.get("", &name));
        async move {
            let lacks = node.is_some_and(|n| n.labels().get(CONTROL_PLANE).map(String::as_str) != Some("true"));
            if lacks {
                let patch = Patch::Merge(json!({"metadata": {"labels": {CONTROL_PLANE: "true"}}}));
                unless_gone(api.patch(&name, &PatchParams::default(), &patch).await)?;
            }
            Ok::<_, Error>(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn tokens_expire_at_their_time() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let secret = |expiration: Option<&str>| {
            let data = expiration.map(|e| json!({"expiration": k8s_openapi::ByteString(e.as_bytes().to_vec())}));
            serde_json::from_value::<Secret>(json!({"metadata": {}, "data": data.unwrap_or(json!({}))})).unwrap()
        };
        assert_eq!(time_left(&secret(None), now), None);
        assert_eq!(time_left(&secret(Some("2026-01-01T00:01:00Z")), now), Some(Duration::from_secs(60)));
        assert_eq!(time_left(&secret(Some("2025-01-01T00:01:00Z")), now), Some(Duration::ZERO));
        assert_eq!(time_left(&secret(Some("never")), now), Some(Duration::ZERO));
    }
}
