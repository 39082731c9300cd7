//! Claims and volumes: who is bound to whom, and which volume satisfies a claim. Scheduler and binder must agree about it.
//!
//! The rules and the annotations are those of Kubernetes' `persistentvolume` controller.

use crate::ResourceExt;
use crate::placement::selector_matches;
use edge_api::quantity::Quantity;
use edge_api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::StorageClass;
use std::sync::Arc;

/// On a claim: both directions of the binding have been written.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume: its binding was not the user's choice, so it may be undone.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node for which its volume is to be made.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to make its volume.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// What [`PROVISIONER`] was called before; provisioners may still look for it.
pub const BETA_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// On a volume: who has made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The provisioner whose volumes are directories of nodes; the kubelet makes them when a pod first needs them. Its name is that of k3s'
/// one, so that what names it works here.
pub const LOCAL_PATH: &str = "rancher.io/local-path";
/// The provisioner of a class whose volumes are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The class of a claim; empty when it has none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let annotation = claim.annotations().get(BETA_CLASS).map(String::as_str);
    annotation.or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref()).unwrap_or_default()
}

/// The class of a volume; empty when it has none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let annotation = volume.annotations().get(BETA_CLASS).map(String::as_str);
    annotation.or_else(|| volume.spec.as_ref()?.storage_class_name.as_deref()).unwrap_or_default()
}

/// The volume that a claim names; empty when it names none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

/// Whether both directions of a claim's binding have been written.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && claim.annotations().contains_key(BIND_COMPLETED)
}

/// Whether a volume is reserved for this claim, or bound to it.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (reference.uid.is_none() || reference.uid == claim.metadata.uid)
}

/// Whether a class's claims wait for a pod that uses them.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The claim that a volume of a pod names, or that is made for it.
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name_any(), volume.name)),
        (None, None) => None,
    }
}

/// Whether a volume that a claim names can serve it.
///
/// # Errors
/// What does not fit, as Kubernetes words it.
pub fn satisfies(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), &'static str> {
    if bytes(&capacity(volume)) < bytes(&requested(claim)) {
        return Err("requested PV is too small");
    }
    if class_of_volume(volume) != class_of_claim(claim) {
        return Err("storageClassName does not match");
    }
    if mode(volume.spec.as_ref().and_then(|s| s.volume_mode.as_deref()))
        != mode(claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()))
    {
        return Err("incompatible volumeMode");
    }
    if !has_modes(volume, claim) {
        return Err("incompatible accessMode");
    }
    if attributes_class(volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()))
        != attributes_class(claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()))
    {
        return Err("incompatible volumeAttributesClassName");
    }
    Ok(())
}

/// The smallest volume that satisfies a claim, or the one that is reserved for it. With a node: one that can be used there, which is not
/// among those already `taken`. Without a node a claim that waits for its consumer (`waits`) gets only what is reserved for it.
pub fn best_match(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    node: Option<&Node>,
    waits: bool,
    taken: impl Fn(&str) -> bool,
) -> Option<Arc<PersistentVolume>> {
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
    let selector = selector.map(|s| {
        let value = serde_json::to_value(s).ok();
        value.and_then(|v| LabelSelector::from_value(&v).ok()).unwrap_or_else(LabelSelector::nothing)
    });
    let usable = |volume: &PersistentVolume| node.is_none_or(|node| usable_on(volume, node));
    let mut best: Option<&Arc<PersistentVolume>> = None;
    for volume in volumes {
        let Some(spec) = &volume.spec else { continue };
        let own = is_for(volume, claim);
        if taken(&volume.name_any())
            || (spec.claim_ref.is_some() && !own)
            || volume.metadata.deletion_timestamp.is_some()
            || !has_modes(volume, claim)
            || bytes(&capacity(volume)) < bytes(&requested(claim))
            || mode(spec.volume_mode.as_deref()) != mode(claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()))
        {
            continue;
        }
        if own {
            return usable(volume).then(|| volume.clone());
        }
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        if (node.is_none() && waits)
            || phase != Some("Available")
            || satisfies(volume, claim).is_err()
            || selector.as_ref().is_some_and(|s| !s.matches(|k| volume.labels().get(k).map(String::as_str)))
            || !usable(volume)
        {
            continue;
        }
        if best.is_none_or(|b| bytes(&capacity(volume)) < bytes(&capacity(b))) {
            best = Some(volume);
        }
    }
    best.cloned()
}

/// Whether the volume's own node affinity allows a node.
pub fn usable_on(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    affinity.is_none_or(|selector| selector_matches(selector, node))
}

/// The size that a claim asks for, as written; empty when it asks for none.
pub fn requested(claim: &PersistentVolumeClaim) -> String {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    requests.and_then(|r| r.get("storage")).map(|q| q.0.clone()).unwrap_or_default()
}

fn capacity(volume: &PersistentVolume) -> String {
    let capacity = volume.spec.as_ref().and_then(|s| s.capacity.as_ref());
    capacity.and_then(|c| c.get("storage")).map(|q| q.0.clone()).unwrap_or_default()
}

/// Bytes; 0 for what is no quantity, which validation has kept out.
fn bytes(text: &str) -> i64 {
    Quantity::parse(text).map(|q| q.value()).unwrap_or(0)
}

fn mode(mode: Option<&str>) -> &str {
    mode.unwrap_or("Filesystem")
}

fn attributes_class(name: Option<&str>) -> &str {
    name.unwrap_or_default()
}

fn has_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let has = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    let wants = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    wants.iter().all(|mode| has.contains(mode))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn volume(name: &str, size: &str, with: Value) -> Arc<PersistentVolume> {
        let mut object = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "c"}});
        merge(&mut object, with);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn claim(with: Value) -> PersistentVolumeClaim {
        let mut object = json!({"metadata": {"name": "data", "namespace": "ns", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "c", "resources": {"requests": {"storage": "2Gi"}}}});
        merge(&mut object, with);
        serde_json::from_value(object).unwrap()
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
            }
            (into, from) => *into = from,
        }
    }

    #[test]
    fn the_smallest_that_fits_is_taken() {
        let volumes = [
            volume("small", "1Gi", json!({})),
            volume("large", "10Gi", json!({})),
            volume("right", "2Gi", json!({})),
            volume("other-class", "2Gi", json!({"spec": {"storageClassName": "d"}})),
            volume("other-mode", "2Gi", json!({"spec": {"volumeMode": "Block"}})),
            volume("going", "2Gi", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            volume("released", "2Gi", json!({"status": {"phase": "Released"}})),
            volume("bound", "2Gi", json!({"spec": {"claimRef": {"namespace": "ns", "name": "x", "uid": "x"}}})),
        ];
        let found = |claim: &PersistentVolumeClaim, taken: &[&str]| {
            best_match(claim, &volumes, None, false, |name| taken.contains(&name)).map(|v| v.name_any())
        };
        assert_eq!(found(&claim(json!({})), &[]).as_deref(), Some("right"));
        assert_eq!(found(&claim(json!({})), &["right"]).as_deref(), Some("large"));
        assert_eq!(found(&claim(json!({"spec": {"accessModes": ["ReadWriteMany"]}})), &[]), None);
        assert_eq!(found(&claim(json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}})), &[]), None);
        assert_eq!(found(&claim(json!({"spec": {"resources": {"requests": {"storage": "11Gi"}}}})), &[]), None);
    }

    #[test]
    fn what_is_reserved_for_a_claim_is_its_own() {
        let reserved = json!({"spec": {"claimRef": {"namespace": "ns", "name": "data"}, "storageClassName": "any"}});
        let volumes = [volume("right", "2Gi", json!({})), volume("own", "5Gi", reserved)];
        let waits = |waits| best_match(&claim(json!({})), &volumes, None, waits, |_| false).map(|v| v.name_any());
        assert_eq!(waits(false).as_deref(), Some("own"));
        assert_eq!(waits(true).as_deref(), Some("own"));
        let only = [volumes[0].clone()];
        assert!(best_match(&claim(json!({})), &only, None, true, |_| false).is_none(), "its consumer comes first");
    }

    #[test]
    fn a_volume_of_another_node_is_no_use() {
        let here = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}]}}}});
        let volumes = [volume("local", "2Gi", here)];
        let node = |name: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}))
                .unwrap()
        };
        let on = |name: &str| best_match(&claim(json!({})), &volumes, Some(&node(name)), true, |_| false).is_some();
        assert!(on("a") && !on("b"));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (with, want) in [
            (json!({}), Ok(())),
            (json!({"spec": {"storageClassName": "d"}}), Err("storageClassName does not match")),
            (json!({"spec": {"volumeMode": "Block"}}), Err("incompatible volumeMode")),
            (json!({"spec": {"accessModes": ["ReadOnlyMany"]}}), Err("incompatible accessMode")),
            (json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}}), Err("requested PV is too small")),
        ] {
            assert_eq!(satisfies(&volume("v", "2Gi", json!({})), &claim(with)), want);
        }
    }
}
