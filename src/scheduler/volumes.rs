//! Volumes of a pod's claims: where those that are bound can be used, and which volume, or which node to make one on, the others get.
//!
//! Rules and words of Kubernetes' plugins VolumeBinding, VolumeZone and VolumeRestrictions.

use crate::filters::{Context, Refusal};
use edge_client::claims::{
    BOUND_BY_CONTROLLER, NO_PROVISIONER, SELECTED_NODE, best_match, claim_name, class_of_claim, is_fully_bound,
    usable_on, volume_name, waits_for_consumer,
};
use edge_client::{Api, Client, Error, Informer, Key, Patch, PatchParams, ResourceExt, object_reference};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a pod keeps its place while its volumes are made.
const BIND_TIMEOUT: Duration = Duration::from_secs(600);

const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// Volumes that pods under way are about to get, with the pod.
pub(crate) type Reserved = HashMap<String, Key>;

/// What a pod's claims come to, whatever the node.
#[derive(Default)]
pub(crate) struct Wanted {
    bound: Vec<Arc<PersistentVolume>>,
    /// With their classes: those that wait for the decision.
    waiting: Vec<(Arc<PersistentVolumeClaim>, Arc<StorageClass>)>,
}

/// What a claim gets on the node that was chosen.
#[derive(Clone)]
pub(crate) struct Choice {
    claim: Arc<PersistentVolumeClaim>,
    /// One that exists; nothing: it is to be made.
    volume: Option<Arc<PersistentVolume>>,
}

impl Choice {
    pub(crate) fn volume(&self) -> Option<String> {
        self.volume.as_ref().map(|v| v.name_any())
    }
}

/// Looks at the pod's claims.
///
/// # Errors
/// When the pod cannot run anywhere yet.
pub(crate) fn wanted(c: &Context<'_>) -> Result<Wanted, Refusal> {
    let namespace = c.pod.namespace().unwrap_or_default();
    let mut out = Wanted::default();
    for volume in c.pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default() {
        let Some(name) = claim_name(c.pod, volume) else { continue };
        let refuse = |what: &str| Err(Refusal::one(&format!("persistentvolumeclaim {name:?} {what}")));
        let Some(claim) = c.claims.get(&namespace, &name) else {
            if volume.ephemeral.is_some() {
                return Err(Refusal::one(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim",
                ));
            }
            return refuse("not found");
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return refuse("is being deleted");
        }
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
            return refuse(&format!("bound to non-existent persistentvolume {:?}", volume_name(&claim)));
        }
        only_user(c, &claim, &namespace, &name)?;
        if is_fully_bound(&claim) {
            match c.volumes.get("", volume_name(&claim)) {
                Some(volume) => out.bound.push(volume),
                None => return refuse(&format!("bound to non-existent persistentvolume {:?}", volume_name(&claim))),
            }
            continue;
        }
        let class = c.classes.get("", class_of_claim(&claim));
        match class.filter(|class| waits_for_consumer(class) && volume_name(&claim).is_empty()) {
            Some(class) => out.waiting.push((claim, class)),
            None => return Err(Refusal::one("pod has unbound immediate PersistentVolumeClaims")),
        }
    }
    Ok(out)
}

/// A claim of mode ReadWriteOncePod has one pod.
fn only_user(c: &Context<'_>, claim: &PersistentVolumeClaim, namespace: &str, name: &str) -> Result<(), Refusal> {
    let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    if !modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        return Ok(());
    }
    let used = c.cluster.pods().any(|(_, pod)| {
        let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        pod.namespace().as_deref() == Some(namespace)
            && volumes.iter().any(|v| claim_name(pod, v).as_deref() == Some(name))
    });
    if used {
        return Err(Refusal::one(
            "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
        ));
    }
    Ok(())
}

/// What the claims get on a node.
///
/// # Errors
/// Why the node will not do.
pub(crate) fn choose(c: &Context<'_>, wanted: &Wanted, node: &Node) -> Result<Vec<Choice>, Refusal> {
    for volume in &wanted.bound {
        if !usable_on(volume, node) {
            return Err(Refusal::one("node(s) had volume node affinity conflict"));
        }
        if !in_zone(volume, node) {
            return Err(Refusal::one("node(s) had no available volume zone"));
        }
    }
    let mut out: Vec<Choice> = Vec::new();
    if wanted.waiting.is_empty() {
        return Ok(out);
    }
    let volumes = c.volumes.list();
    let own = Key::of(c.pod);
    for (claim, class) in &wanted.waiting {
        let selected = claim.annotations().get(SELECTED_NODE);
        if selected.is_some_and(|selected| *selected != node.name_any()) {
            return Err(Refusal::one("node(s) didn't match the node that was selected for the claim's volume"));
        }
        let taken = |name: &str| {
            c.reserved.get(name).is_some_and(|pod| *pod != own)
                || out.iter().any(|o| o.volume().as_deref() == Some(name))
        };
        let volume = best_match(claim, &volumes, Some(node), true, taken).filter(|_| selected.is_none());
        if volume.is_none() && !can_be_made(class, node) {
            return Err(Refusal::one("node(s) didn't find available persistent volumes to bind"));
        }
        out.push(Choice { claim: claim.clone(), volume });
    }
    Ok(out)
}

/// Whether the class has a provisioner that may make volumes for the node.
fn can_be_made(class: &StorageClass, node: &Node) -> bool {
    let allowed = class.allowed_topologies.as_deref().unwrap_or_default();
    let matches = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
        let labels = term.match_label_expressions.as_deref().unwrap_or_default();
        labels.iter().all(|r| node.labels().get(&r.key).is_some_and(|value| r.values.contains(value)))
    };
    class.provisioner != NO_PROVISIONER && (allowed.is_empty() || allowed.iter().any(matches))
}

fn in_zone(volume: &PersistentVolume, node: &Node) -> bool {
    ZONES.iter().all(|key| match (volume.labels().get(*key), node.labels().get(*key)) {
        // a volume may be in several
        (Some(zones), Some(zone)) => zones.split("__").any(|z| z == zone),
        (Some(_), None) => !ZONES.iter().any(|other| node.labels().contains_key(*other)),
        (None, _) => true,
    })
}

/// Why the volumes of a pod were not bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("the API did not take it")]
    Api(#[from] Error),
    #[error("claim {0} is gone")]
    Gone(Key),
    #[error("the volume of claim {0} cannot be made on this node")]
    Refused(Key),
    #[error("the claims were not bound within {} s", BIND_TIMEOUT.as_secs())]
    Timeout,
}

/// Says which volumes the claims get, or for which node they are to be made, and waits until that is done.
pub(crate) async fn bind(
    client: &Client,
    claims: &Informer<PersistentVolumeClaim>,
    choices: &[Choice],
    node: &str,
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
                return Err(BindError::Timeout);
            }
        }
    };
    tokio::time::timeout(BIND_TIMEOUT, done).await.unwrap_or(Err(BindError::Timeout))
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::Value;

    #[test]
    fn zones_of_volumes() {
        let volume = |labels: Value| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "v", "labels": labels}})).unwrap()
        };
        let node = |labels: Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": labels}})).unwrap()
        };
        for (of_volume, of_node, want) in [
            (json!({}), json!({ZONES[0]: "a"}), true),
            (json!({ZONES[0]: "a"}), json!({ZONES[0]: "a"}), true),
            (json!({ZONES[0]: "b"}), json!({ZONES[0]: "a"}), false),
            (json!({ZONES[0]: "b__a"}), json!({ZONES[0]: "a"}), true),
            (json!({ZONES[0]: "b"}), json!({}), true),
            (json!({ZONES[0]: "b"}), json!({ZONES[1]: "r"}), false),
        ] {
            assert_eq!(in_zone(&volume(of_volume.clone()), &node(of_node.clone())), want, "{of_volume} {of_node}");
        }
    }

    #[test]
    fn where_volumes_can_be_made() {
        let class = |provisioner: &str, topologies: Value| -> StorageClass {
            serde_json::from_value(
                json!({"metadata": {"name": "c"}, "provisioner": provisioner, "allowedTopologies": topologies}),
            )
            .unwrap()
        };
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a"}}})).unwrap();
        let zone = |z: &str| json!([{"matchLabelExpressions": [{"key": "zone", "values": [z]}]}]);
        assert!(can_be_made(&class("x/y", Value::Null), &node));
        assert!(can_be_made(&class("x/y", zone("a")), &node));
        assert!(!can_be_made(&class("x/y", zone("b")), &node));
        assert!(!can_be_made(&class(NO_PROVISIONER, Value::Null), &node));
    }
}
