//! Volumes that are directories on a node, made for claims as k3s' local-path provisioner makes them.
//!
//! The directory comes into being when a pod first uses the volume, by the kubelet; it goes, with all that is in it, when the claim is gone
//! and the policy is `Delete`: then the node's kubelet is asked to remove it, and only after that the volume object goes.

use crate::context::{unless_changed, unless_gone};
use crate::finalizers;
use edge_client::claims::{LOCAL_PATH, PROVISIONED_BY, SELECTED_NODE, class_of_claim, requested};
use edge_client::{Api, Client, Error, Informer, Outcome, Patch, PatchParams, ResourceExt, object_reference};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;
use std::path::Path;

/// On a volume: the node where its directory is.
const NODE: &str = "local.path.provisioner/selected-node";
/// Keeps a volume object until its directory is gone.
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// The longest name of a directory, in bytes.
const LONGEST: usize = 255;
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The node where the directory of a volume of this provisioner is.
pub(super) fn node_of(volume: &PersistentVolume) -> Option<&String> {
    volume.annotations().get(NODE).filter(|_| volume.annotations().get(PROVISIONED_BY).is_some_and(|p| p == LOCAL_PATH))
}

/// Whether a node can be asked for something.
pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The volume for a claim.
///
/// # Errors
/// Why there can be none.
pub(super) fn volume_for(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    nodes: &Informer<Node>,
    root: &Path,
) -> Result<PersistentVolume, String> {
    let selected = claim.annotations().get(SELECTED_NODE);
    let selected =
        selected.ok_or("configuration error, no node was specified: the class must wait for the first consumer")?;
    let node = nodes.get("", selected).ok_or_else(|| format!("node {selected} is gone"))?;
    build(claim, class, &node, root)
}

fn build(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    root: &Path,
) -> Result<PersistentVolume, String> {
    let spec = claim.spec.as_ref().ok_or("it has no spec")?;
    if spec.selector.is_some() {
        return Err("claim.Spec.Selector is not supported".into());
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("block volumes are not supported: a volume is a directory".into());
    }
    let modes = spec.access_modes.clone().unwrap_or_default();
    if let Some(mode) = modes.iter().find(|mode| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod")) {
        return Err(format!(
            "Only support ReadWriteOnce and ReadWriteOncePod access modes, not {mode}: a volume is on one node"
        ));
    }
    let (uid, namespace) = (claim.uid().unwrap_or_default(), claim.namespace().unwrap_or_default());
    let name = format!("pvc-{uid}");
    // of a long name as much as fits, with room for the suffix under which the directory is made
    let mut directory = format!("{name}_{namespace}_{}", claim.name_any());
    directory.truncate(LONGEST - ".part".len());
    let path = root.join(directory);
    let host = node.labels().get(HOSTNAME).cloned().unwrap_or_else(|| node.name_any());
    let mut reference = object_reference(claim);
    reference.resource_version = None;
    let volume = json!({
        "metadata": {
            "name": name,
            "annotations": {PROVISIONED_BY: LOCAL_PATH, NODE: node.name_any()},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "capacity": {"storage": requested(claim)}, "accessModes": modes, "volumeMode": "Filesystem",
            "storageClassName": class_of_claim(claim),
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "claimRef": reference,
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": HOSTNAME, "operator": "In", "values": [host]}]}]}},
        },
    });
    serde_json::from_value(volume).map_err(|error| error.to_string())
}

/// Has the node remove the directory of a volume, then deletes the volume.
pub(super) async fn remove(
    client: &Client,
    nodes: &Informer<Node>,
    volume: &PersistentVolume,
) -> Result<Outcome, Error> {
    let path = volume.spec.as_ref().and_then(|s| s.local.as_ref()).map(|l| l.path.clone());
    if let (Some(node), Some(path)) = (node_of(volume), path) {
        match nodes.get("", node) {
            // its disk is gone with it
            None => tracing::warn!(
                volume = volume.name_any(),
                node,
                path,
                "the node of a volume is gone, its directory with it"
            ),
            // the node's return brings the volume back
            Some(node) if !is_ready(&node) => return Ok(Outcome::Done),
            Some(_) => remove_directory(client, node, &path).await?,
        }
    }
    let_go(client, volume).await?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    unless_gone(volumes.delete(&volume.name_any(), &Default::default()).await)?;
    Ok(Outcome::Done)
}

/// Lets a volume object go whose directory is gone, or is to stay.
pub(super) async fn let_go(client: &Client, volume: &PersistentVolume) -> Result<Outcome, Error> {
    let ours = node_of(volume).is_some() && finalizers::has(volume, FINALIZER);
    let stays = volume.metadata.deletion_timestamp.is_none()
        && volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) != Some("Delete");
    if ours && !stays {
        let rest: Vec<&String> = volume.finalizers().iter().filter(|f| *f != FINALIZER).collect();
        // not on condition that it is the same: its phase was written a moment ago
        let patch = json!({"metadata": {"uid": volume.uid(), "finalizers": if rest.is_empty() { json!(null) } else { json!(rest) }}});
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        unless_changed(volumes.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)?;
    }
    Ok(Outcome::Done)
}

async fn remove_directory(client: &Client, node: &str, path: &str) -> Result<(), Error> {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("path", path).finish();
    let request = http::Request::delete(format!("/api/v1/nodes/{node}/proxy/v1-edge/storage?{query}"))
        .body(Vec::new())
        .map_err(|error| Error::Service(Box::new(error)))?;
    client.request_text(request).await.map(drop)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::Value;

    #[test]
    fn a_volume_is_a_directory_of_its_node() {
        let claim = |with: Value| -> PersistentVolumeClaim {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "local-path",
                "resources": {"requests": {"storage": "1Gi"}}});
            spec.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
            serde_json::from_value(json!({"metadata": {"name": "data", "namespace": "ns", "uid": "u"}, "spec": spec}))
                .unwrap()
        };
        let class = serde_json::from_value(json!({"metadata": {"name": "local-path"}, "provisioner": LOCAL_PATH,
            "reclaimPolicy": "Retain"}))
        .unwrap();
        let node = serde_json::from_value(json!({"metadata": {"name": "a", "labels": {HOSTNAME: "host-a"}}})).unwrap();
        let built = |with| build(&claim(with), &class, &node, Path::new("/var/lib/edge/storage"));
        let volume = built(json!({})).unwrap();
        let spec = volume.spec.clone().unwrap();
        assert_eq!(volume.name_any(), "pvc-u");
        assert_eq!(spec.local.unwrap().path, "/var/lib/edge/storage/pvc-u_ns_data");
        assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some("u"));
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        assert_eq!(node_of(&volume).unwrap(), "a");
        let long = PersistentVolumeClaim {
            metadata: ObjectMeta { name: Some("n".repeat(253)), ..claim(json!({})).metadata },
            ..claim(json!({}))
        };
        let path = build(&long, &class, &node, Path::new("/s")).unwrap().spec.unwrap().local.unwrap().path;
        assert_eq!(path.len(), "/s/".len() + LONGEST - ".part".len());
        for (with, what) in [
            (json!({"accessModes": ["ReadWriteMany"]}), "ReadWriteMany"),
            (json!({"volumeMode": "Block"}), "block"),
            (json!({"selector": {"matchLabels": {"a": "b"}}}), "Selector"),
        ] {
            assert!(built(with).unwrap_err().contains(what));
        }
    }
}
