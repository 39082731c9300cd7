//! VolumeBinding, VolumeZone, VolumeRestrictions and NodeVolumeLimits: where volumes that are bound can be used, and which volume, or which node to
//! make one on, the other claims of a pod get.

use super::{Plugin, Refusal};
use crate::cluster::{Cluster, NodeId};
use crate::decide::Attempt;
use edge_client::claims::{
    NO_PROVISIONER, SELECTED_NODE, best_match, class_of_claim, is_fully_bound, usable_on, volume_name,
    waits_for_consumer,
};
use edge_client::{Key, ResourceExt};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

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
    /// Claims that are for one pod only.
    exclusive: Vec<Key>,
}

impl Wanted {
    /// Whether other pods have any say.
    pub(crate) fn depends_on_pods(&self) -> bool {
        !self.exclusive.is_empty()
    }
}

/// What a claim gets on the node that was chosen.
#[derive(Clone)]
pub(crate) struct Choice {
    pub(crate) claim: Arc<PersistentVolumeClaim>,
    /// One that exists; nothing: it is to be made.
    pub(crate) volume: Option<Arc<PersistentVolume>>,
}

impl Choice {
    pub(crate) fn volume_name(&self) -> Option<String> {
        self.volume.as_ref().map(|v| v.name_any())
    }
}

fn waits(reason: String) -> Refusal {
    Refusal::lasting(Plugin::VolumeBinding, reason)
}

/// Looks at the pod's claims.
///
/// # Errors
/// When the pod cannot run anywhere yet.
pub(crate) fn wanted(a: &Attempt<'_>) -> Result<Wanted, Refusal> {
    let namespace = a.q.pod.namespace();
    let mut out = Wanted::default();
    for name in &a.q.pod.info.claims {
        let refuse = |what: &str| Err(waits(format!("persistentvolumeclaim {name:?} {what}")));
        let Some(claim) = a.q.world.claim(namespace, name) else {
            let of_pod = |v: &k8s_openapi::api::core::v1::Volume| {
                v.ephemeral.is_some() && edge_client::claims::claim_name(&a.q.pod.pod, v).as_ref() == Some(name)
            };
            if a.q.pod.spec().volumes.iter().flatten().any(of_pod) {
                let reason = "waiting for ephemeral volume controller to create the persistentvolumeclaim";
                return Err(waits(format!("{reason} {name:?}")));
            }
            return refuse("not found");
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return refuse("is being deleted");
        }
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
            return refuse(&format!("bound to non-existent persistentvolume {:?}", volume_name(&claim)));
        }
        let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
        if modes.iter().any(|mode| mode == "ReadWriteOncePod") {
            out.exclusive.push(Key::of(&*claim));
        }
        if is_fully_bound(&claim) {
            match a.q.world.volume(volume_name(&claim)) {
                Some(volume) => out.bound.push(volume),
                None => return refuse(&format!("bound to non-existent persistentvolume {:?}", volume_name(&claim))),
            }
            continue;
        }
        let class = a.q.world.class(class_of_claim(&claim));
        match class.filter(|class| waits_for_consumer(class) && volume_name(&claim).is_empty()) {
            Some(class) => out.waiting.push((claim, class)),
            None => return Err(waits("pod has unbound immediate PersistentVolumeClaims".into())),
        }
    }
    Ok(out)
}

/// Plugin VolumeRestrictions: a claim of mode ReadWriteOncePod has one pod.
///
/// # Errors
/// When another pod has it.
pub(crate) fn restrictions(wanted: &Wanted, cluster: &Cluster) -> Result<(), Refusal> {
    if wanted.exclusive.iter().any(|claim| cluster.claim_users(claim).is_some()) {
        let reason = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
        return Err(Refusal::open(Plugin::VolumeRestrictions, reason));
    }
    Ok(())
}

/// The driver of a claim's volume, and what the driver calls the volume (or will, as far as others can tell).
fn of_driver(a: &Attempt<'_>, claim: &PersistentVolumeClaim) -> Option<(String, String)> {
    if is_fully_bound(claim) {
        let volume = a.q.world.volume(volume_name(claim))?;
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        return Some((csi.driver.clone(), csi.volume_handle.clone()));
    }
    let class = a.q.world.class(class_of_claim(claim))?;
    Some((class.provisioner.clone(), format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any())))
}

/// Plugin NodeVolumeLimits: a driver attaches so many volumes to a node.
///
/// # Errors
/// When the node would have too many.
pub(crate) fn limits(a: &Attempt<'_>, id: NodeId) -> Result<(), Refusal> {
    if a.q.pod.info.claims.is_empty() {
        return Ok(());
    }
    let state = a.cluster.node(id);
    let Some(csi_node) = a.q.world.csi_node(&state.name) else { return Ok(()) };
    let of_claims = |namespace: &str, names: &[String]| -> Vec<(String, String)> {
        names.iter().filter_map(|n| of_driver(a, &*a.q.world.claim(namespace, n)?)).collect()
    };
    let new: HashSet<(String, String)> = of_claims(a.q.pod.namespace(), &a.q.pod.info.claims).into_iter().collect();
    let mut old: HashSet<(String, String)> = HashSet::new();
    for info in state.pods.values() {
        old.extend(of_claims(&info.key.namespace, &info.claims));
    }
    for driver in &csi_node.spec.drivers {
        let Some(limit) = driver.allocatable.as_ref().and_then(|a| a.count) else { continue };
        let mine = |v: &&(String, String)| v.0 == driver.name;
        let more = new.iter().filter(mine).filter(|v| !old.contains(*v)).count();
        if more > 0 && old.iter().filter(mine).count() + more > usize::try_from(limit).unwrap_or(0) {
            return Err(Refusal::open(Plugin::NodeVolumeLimits, "node(s) exceed max volume count"));
        }
    }
    Ok(())
}

/// Plugin VolumeZone.
///
/// # Errors
/// When a volume is in another zone.
pub(crate) fn zones(wanted: &Wanted, node: &Node) -> Result<(), Refusal> {
    if wanted.bound.iter().all(|volume| in_zone(volume, node)) {
        return Ok(());
    }
    Err(Refusal::lasting(Plugin::VolumeZone, "node(s) had no available volume zone"))
}

/// Plugin VolumeBinding: what the claims get on a node.
///
/// # Errors
/// Why the node will not do.
pub(crate) fn choose(a: &Attempt<'_>, wanted: &Wanted, node: &Node) -> Result<Vec<Choice>, Refusal> {
    if wanted.bound.iter().any(|volume| !usable_on(volume, node)) {
        return Err(Refusal::lasting(Plugin::VolumeBinding, "node(s) had volume node affinity conflict"));
    }
    let mut out: Vec<Choice> = Vec::new();
    if wanted.waiting.is_empty() {
        return Ok(out);
    }
    let volumes = a.q.world.volumes();
    for (claim, class) in &wanted.waiting {
        let selected = claim.annotations().get(SELECTED_NODE);
        if selected.is_some_and(|selected| *selected != node.name_any()) {
            return Err(waits("node(s) didn't match the node that was selected for the claim's volume".into()));
        }
        let taken = |name: &str| {
            a.q.reserved.get(name).is_some_and(|pod| pod != a.q.pod.key())
                || out.iter().any(|o| o.volume_name().as_deref() == Some(name))
        };
        let volume = best_match(claim, &volumes, Some(node), true, taken).filter(|_| selected.is_none());
        if volume.is_none() && !can_be_made(class, node) {
            return Err(waits("node(s) didn't find available persistent volumes to bind".into()));
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

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
