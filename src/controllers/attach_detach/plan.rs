//! Which volumes of drivers belong to which nodes, without any request.

use crate::pods;
use edge_client::ResourceExt;
use edge_client::claims::{claim_name, is_for};
use k8s_openapi::api::core::v1::{
    AttachedVolume, CSIPersistentVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::time::Duration;

/// A node that cannot be reached may hold its volumes no longer than this (Kubernetes' default).
pub(super) const LONGEST_UNMOUNT: Duration = Duration::from_secs(6 * 60);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// The driver's part of a volume.
pub(super) fn driver_part(volume: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    volume.spec.as_ref()?.csi.as_ref()
}

/// Whether volumes of a driver have to be attached; of one that is not known they have.
pub(super) fn must_attach(driver: Option<&CSIDriver>) -> bool {
    driver.and_then(|d| d.spec.attach_required).unwrap_or(true)
}

/// The name of the attachment of a volume to a node: the same for everybody who asks.
pub(super) fn attachment_name(part: &CSIPersistentVolumeSource, node: &str) -> String {
    let digest = Sha256::digest(format!("{}{}{node}", part.volume_handle, part.driver));
    digest.iter().fold("csi-".to_owned(), |mut name, byte| {
        // writing to a string cannot fail
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// Whether a name is one that [`attachment_name`] makes; others are somebody else's.
pub(super) fn is_made_here(attachment: &VolumeAttachment) -> bool {
    let name = attachment.name_any();
    name.strip_prefix("csi-").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The name by which a node knows a volume.
pub(super) fn unique_name(part: &CSIPersistentVolumeSource) -> String {
    format!("kubernetes.io/csi/{}^{}", part.driver, part.volume_handle)
}

/// Whether a volume can be at one node only.
pub(super) fn is_exclusive(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    !modes.is_empty() && !modes.iter().any(|mode| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany"))
}

/// The node where a pod needs its volumes; nothing once its containers have ended for good.
pub(super) fn needs_at(pod: &Pod) -> Option<&str> {
    let runs = || {
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
        let state = |s: &k8s_openapi::api::core::v1::ContainerStatus| s.state.clone().unwrap_or_default();
        statuses.iter().map(state).any(|state| state.terminated.is_none() && state.waiting.is_none())
    };
    let ended = pods::is_finished(pod) || (pod.metadata.deletion_timestamp.is_some() && !runs());
    pods::node(pod).filter(|_| !ended)
}

/// Whether a pod uses a claim.
pub(super) fn uses(pod: &Pod, claim: &str) -> bool {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|volume| claim_name(pod, volume).as_deref() == Some(claim))
}

/// Whether a claim has a volume, and the volume that claim.
pub(super) fn is_bound(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    is_for(volume, claim) && edge_client::claims::volume_name(claim) == volume.name_any()
}

/// Whether volumes of a node are attached by somebody else than this controller.
pub(super) fn attaches_itself(node: &Node) -> bool {
    node.annotations().get(MANAGED).is_some_and(|managed| managed != "true")
}

/// The volumes that a node says are mounted there.
pub(super) fn in_use(node: &Node) -> &[String] {
    node.status.as_ref().and_then(|s| s.volumes_in_use.as_deref()).unwrap_or_default()
}

/// The volumes that a node has been told are attached.
pub(super) fn told_attached(node: &Node) -> &[AttachedVolume] {
    node.status.as_ref().and_then(|s| s.volumes_attached.as_deref()).unwrap_or_default()
}

/// Whether a kubelet is heard of.
pub(super) fn is_healthy(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether somebody vouches for it that a node does not run.
pub(super) fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Whether a volume that nobody needs at a node may be taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detach {
    /// Now.
    Now,
    /// When the node has changed.
    Wait,
    /// Then, should nothing have changed.
    In(Duration),
}

/// Decides whether a volume may go. `waited` is for how long nobody has needed it.
pub(super) fn detach(node: Option<&Node>, volume: &str, waited: Duration) -> Detach {
    let later = || match LONGEST_UNMOUNT.saturating_sub(waited) {
        Duration::ZERO => Detach::Now,
        left => Detach::In(left),
    };
    // nobody knows what a node has mounted that is not there any more
    let Some(node) = node else { return later() };
    if !in_use(node).iter().any(|name| name == volume) || is_out_of_service(node) {
        return Detach::Now;
    }
    if is_healthy(node) { Detach::Wait } else { later() }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn part() -> CSIPersistentVolumeSource {
        CSIPersistentVolumeSource { driver: "d.io".into(), volume_handle: "h".into(), ..Default::default() }
    }

    #[test]
    fn names_are_those_that_everybody_expects() {
        let name = attachment_name(&part(), "node-1");
        // printf hd.ionode-1 | sha256sum
        assert_eq!(name, "csi-1458639045ea13f2852c495998ff8b77e2361171a7aee0eb2e024b96f10e177e");
        assert_ne!(name, attachment_name(&part(), "node-2"));
        assert_eq!(unique_name(&part()), "kubernetes.io/csi/d.io^h");
        let named = |name: &str| -> VolumeAttachment {
            let spec = json!({"attacher": "d.io", "nodeName": "n", "source": {}});
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
        };
        assert!(is_made_here(&named(&name)));
        assert!(!is_made_here(&named("csi-mine")) && !is_made_here(&named("attachment")));
    }

    #[test]
    fn which_pods_need_volumes_where() {
        let pod = |deleted: bool, phase: &str, state: Value| -> Pod {
            let at = if deleted { json!("2026-01-01T00:00:00Z") } else { Value::Null };
            serde_json::from_value(json!({"metadata": {"name": "p", "deletionTimestamp": at},
                "spec": {"nodeName": "n", "containers": []}, "status": {"phase": phase, "containerStatuses": [
                    {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state}]}}))
            .unwrap()
        };
        let (running, ended) = (json!({"running": {}}), json!({"terminated": {"exitCode": 0}}));
        for (deleted, phase, state, want) in [
            (false, "Pending", &Value::Null, Some("n")),
            (false, "Running", &running, Some("n")),
            (false, "Running", &ended, Some("n")),
            (true, "Running", &running, Some("n")),
            (true, "Running", &ended, None),
            (false, "Succeeded", &ended, None),
        ] {
            assert_eq!(needs_at(&pod(deleted, phase, state.clone())), want, "{deleted} {phase} {state}");
        }
    }

    #[test]
    fn when_a_volume_may_be_taken_from_a_node() {
        let node = |in_use: Value, ready: &str, taints: Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints},
                "status": {"volumesInUse": in_use, "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        let (used, free) = (json!(["v"]), json!(["w"]));
        let out = json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]);
        let minute = Duration::from_secs(60);
        for (node, minutes, want) in [
            (Some(node(free, "True", json!([]))), 0, Detach::Now),
            (Some(node(used.clone(), "True", json!([]))), 100, Detach::Wait),
            (Some(node(used.clone(), "Unknown", json!([]))), 1, Detach::In(minute * 5)),
            (Some(node(used.clone(), "Unknown", json!([]))), 6, Detach::Now),
            (Some(node(used, "Unknown", out)), 0, Detach::Now),
            (None, 0, Detach::In(minute * 6)),
            (None, 7, Detach::Now),
        ] {
            assert_eq!(detach(node.as_ref(), "v", minute * minutes), want, "{node:?} {minutes}");
        }
    }

    #[test]
    fn what_drivers_and_access_modes_mean() {
        let driver = |attach: Value| -> CSIDriver {
            serde_json::from_value(json!({"metadata": {"name": "d.io"}, "spec": {"attachRequired": attach}})).unwrap()
        };
        assert!(
            must_attach(None) && must_attach(Some(&driver(json!(true)))) && must_attach(Some(&driver(Value::Null)))
        );
        assert!(!must_attach(Some(&driver(json!(false)))));
        for (modes, want) in [
            (json!(["ReadWriteOnce"]), true),
            (json!(["ReadWriteOncePod"]), true),
            (json!(["ReadWriteOnce", "ReadOnlyMany"]), false),
            (json!(["ReadWriteMany"]), false),
            (json!([]), false),
        ] {
            let volume = json!({"metadata": {"name": "v"}, "spec": {"accessModes": modes}});
            assert_eq!(is_exclusive(&serde_json::from_value(volume).unwrap()), want, "{modes}");
        }
    }
}
