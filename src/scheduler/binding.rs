//! Tells the API what was decided: which volumes a pod's claims get, and its node.

use crate::extender::ExtenderError;
use crate::plugins::volumes::Choice;
use crate::pod::Pending;
use edge_client::claims::{BOUND_BY_CONTROLLER, SELECTED_NODE, is_fully_bound};
use edge_client::{Api, Client, Error, Informer, Key, Patch, PatchParams, ResourceExt, object_reference};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;
use std::time::Duration;

/// Why the volumes of a pod were not bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("the API did not take it")]
    Api(#[from] Error),
    #[error(transparent)]
    Extender(#[from] ExtenderError),
    #[error("claim {0} is gone")]
    Gone(Key),
    #[error("the volume of claim {0} cannot be made on this node")]
    Refused(Key),
    #[error("the claims were not bound within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Says which volumes the claims get, or for which node they are to be made, and waits until that is done, for at most `timeout`.
pub(crate) async fn volumes(
    client: &Client,
    claims: &Informer<PersistentVolumeClaim>,
    choices: &[Choice],
    node: &str,
    timeout: Duration,
) -> Result<(), BindError> {
    if choices.is_empty() {
        return Ok(());
    }
    let mut changes = claims.subscribe();
    for choice in choices {
        announce(client, choice, node).await?;
    }
    let done = async {
        loop {
            let mut all = true;
            for choice in choices {
                let key = Key::of(&*choice.claim);
                let claim = claims.get_key(&key).filter(|c| c.metadata.uid == choice.claim.metadata.uid);
                let Some(claim) = claim else { return Err(BindError::Gone(key)) };
                // its status comes last, and the kubelet goes by that
                all &=
                    is_fully_bound(&claim) && claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
                // only who was told to make it takes the node away; before that the cache is just behind
                let told = claim.metadata.resource_version != choice.claim.metadata.resource_version;
                if choice.volume.is_none() && told && !is_fully_bound(&claim) {
                    let selected = claim.annotations().get(SELECTED_NODE);
                    if selected.is_none() && claim.annotations().contains_key(edge_client::claims::PROVISIONER) {
                        return Err(BindError::Refused(key));
                    }
                }
            }
            if all {
                return Ok(());
            }
            if changes.recv().await.is_none() {
                return Err(BindError::Timeout(timeout));
            }
        }
    };
    tokio::time::timeout(timeout, done).await.unwrap_or(Err(BindError::Timeout(timeout)))
}

async fn announce(client: &Client, choice: &Choice, node: &str) -> Result<(), Error> {
    let claim = &choice.claim;
    match &choice.volume {
        Some(volume) => {
            let reserved = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
            let mut patch = json!({
                "metadata": {"uid": volume.uid(), "resourceVersion": volume.resource_version()},
                "spec": {"claimRef": object_reference(&**claim)},
            });
            if reserved.is_none() {
                patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
            }
            let api: Api<PersistentVolume> = Api::all(client.clone());
            api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
        None if claim.annotations().get(SELECTED_NODE).is_some_and(|selected| selected == node) => Ok(()),
        None => {
            let patch = json!({"metadata": {"uid": claim.uid(), "annotations": {SELECTED_NODE: node}}});
            let api: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
            api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
    }
}

/// Gives the pod its node.
pub(crate) async fn post(client: &Client, pod: &Pending, node: &str) -> Result<(), Error> {
    let key = pod.key();
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.info.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let body = serde_json::to_vec(&binding).map_err(Error::SerdeError)?;
    let request = http::Request::post(format!("/api/v1/namespaces/{}/pods/{}/binding", key.namespace, key.name))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| Error::Service(Box::new(e)))?;
    client.request::<serde_json::Value>(request).await.map(drop)
}
