//! Which changes may help which pods: a pod that fits nowhere is only tried again after one of those.
//!
//! Kubernetes calls these queueing hints. They may be wrong in one direction only: a change that helps must be said to help.

use crate::cluster::{Cluster, NodeId};
use crate::decide::{check_node, check_room, constraints};
use crate::plugins::{Plugin, Plugins, resources};
use crate::pod::{Look, Pending, PodInfo};
use crate::profile::Profile;
use crate::world::World;
use edge_client::{Key, ResourceExt};
use k8s_openapi::api::core::v1::Node;

/// Plugins whose verdict depends on what a node is and has.
const OF_NODES: [Plugin; 6] = [
    Plugin::NodeName,
    Plugin::NodeUnschedulable,
    Plugin::TaintToleration,
    Plugin::NodeAffinity,
    Plugin::NodePorts,
    Plugin::NodeResourcesFit,
];
const OF_VOLUMES: [Plugin; 4] =
    [Plugin::VolumeBinding, Plugin::VolumeZone, Plugin::VolumeRestrictions, Plugin::NodeVolumeLimits];

/// Something that happened.
pub(crate) enum Event<'a> {
    /// A node is new, or changed in what decisions look at; with its former state.
    Node(Option<&'a Node>, NodeId),
    /// A node is gone.
    NodeGone(&'a Node),
    /// A pod left a node, or takes less room there.
    PodGone(&'a PodInfo, NodeId),
    /// A pod is on a node now.
    PodThere(&'a Look),
    /// What others see of a pod changed, or it is going.
    PodChanged(&'a Look, &'a Look),
    /// A claim changed.
    Claim(&'a Key),
    /// Volumes, their classes or what drivers can do changed.
    Storage,
    /// A claim to devices changed.
    DeviceClaim(&'a Key),
    /// Devices, or classes of them, are there, or were given back.
    Devices,
    /// Labels of a namespace changed.
    Namespace,
}

/// What hints look at.
#[derive(Clone, Copy)]
pub(crate) struct Hints<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) world: &'a dyn World,
    pub(crate) profile: &'a Profile,
}

impl Hints<'_> {
    /// Whether an event may help a pod that some plugins refused nodes for.
    pub(crate) fn helps(self, event: &Event<'_>, pod: &Pending, by: Plugins) -> bool {
        let refused = |plugins: &[Plugin]| plugins.iter().any(|p| by.has(*p));
        // nobody refused: there was no node at all
        if by.is_empty() || by.has(Plugin::Extender) {
            return true;
        }
        match event {
            Event::Node(old, id) => self.node_helps(*old, *id, pod, by),
            // the emptiest domain may have gone with it
            Event::NodeGone(node) => by.has(Plugin::PodTopologySpread) && self.has_spread_key(pod, node),
            Event::PodGone(gone, id) => {
                (refused(&OF_NODES) && self.has_room(pod, *id))
                    // with one gone that was as important, others may do
                    || (gone.priority >= pod.info.priority && self.can_make_room(pod, *id))
                    || refused(&[Plugin::VolumeRestrictions, Plugin::NodeVolumeLimits]) && !gone.claims.is_empty()
                    || self.matters(&gone.look, pod, by)
            }
            Event::PodThere(look) => self.matters(look, pod, by),
            Event::PodChanged(old, new) => self.matters(old, pod, by) || self.matters(new, pod, by),
            Event::Claim(key) => {
                refused(&OF_VOLUMES) && key.namespace == pod.namespace() && pod.info.claims.contains(&key.name)
            }
            Event::Storage => refused(&OF_VOLUMES),
            Event::DeviceClaim(key) => {
                by.has(Plugin::DynamicResources) && key.namespace == pod.namespace() && uses_claim(pod, &key.name)
            }
            Event::Devices => {
                let mut others = pod.info.requests.others.iter();
                let may_be_devices = by.has(Plugin::NodeResourcesFit) && others.any(|(name, _)| name.contains('/'));
                by.has(Plugin::DynamicResources) || may_be_devices
            }
            Event::Namespace => by.has(Plugin::InterPodAffinity),
        }
    }

    /// Whether the pod could go to a node if only the node's own properties counted.
    fn is_suitable(self, pod: &Pending, id: NodeId) -> bool {
        let state = self.cluster.node(id);
        let Some(node) = state.node.as_deref() else { return false };
        check_node(pod, self.profile, state, node).is_ok() && resources::fits_empty(pod, state, &self.profile.resources)
    }

    fn has_room(self, pod: &Pending, id: NodeId) -> bool {
        self.is_suitable(pod, id) && check_room(pod, self.profile, self.cluster.node(id)).is_ok()
    }

    fn node_helps(self, old: Option<&Node>, id: NodeId, pod: &Pending, by: Plugins) -> bool {
        let Some(new) = self.cluster.node(id).node.as_deref() else { return false };
        let relabelled = old.is_none_or(|old| old.labels() != new.labels());
        // domains may be others now, which matters on every node
        let spread = by.has(Plugin::PodTopologySpread)
            && (self.has_spread_key(pod, new) || old.is_some_and(|o| self.has_spread_key(pod, o)));
        let domains = spread || by.has(Plugin::InterPodAffinity);
        (relabelled && domains) || self.has_room(pod, id) || self.can_make_room(pod, id)
    }

    /// Whether pods of lower priority are on a node that the pod could go to.
    fn can_make_room(self, pod: &Pending, id: NodeId) -> bool {
        self.cluster.node(id).pods.values().any(|p| p.priority < pod.info.priority) && self.is_suitable(pod, id)
    }

    fn has_spread_key(self, pod: &Pending, node: &Node) -> bool {
        constraints(pod, self.profile, self.world).keys().any(|key| node.labels().contains_key(key))
    }

    /// Whether spread or wishes of the pod look at pods of this look, or those at it.
    fn matters(self, look: &Look, pod: &Pending, by: Plugins) -> bool {
        if by.has(Plugin::PodTopologySpread)
            && look.namespace == pod.namespace()
            && constraints(pod, self.profile, self.world).counts(&look.labels)
        {
            return true;
        }
        if !by.has(Plugin::InterPodAffinity) {
            return false;
        }
        let labels = |namespace: &str| self.world.namespace_labels(namespace);
        let own = pod.info.terms.as_ref();
        // what they wish of this one is in their look
        !look.wishes.is_empty()
            || own.is_some_and(|terms| {
                let mut required = terms.near.iter().chain(&terms.apart);
                required.any(|t| t.matches(&look.namespace, &labels, &look.labels))
            })
    }
}

/// Whether a pod has a claim to devices, as far as it is known which one is its own.
fn uses_claim(pod: &Pending, name: &str) -> bool {
    let noted = pod.pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or_default();
    let extended = pod.pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    let own = noted.iter().filter_map(|s| s.resource_claim_name.as_deref());
    let own = own.chain(extended.map(|s| s.resource_claim_name.as_str()));
    let entries = pod.spec().resource_claims.as_deref().unwrap_or_default();
    entries.iter().filter_map(|e| e.resource_claim_name.as_deref()).chain(own).any(|n| n == name)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::{Nothing, cluster, pending, pending_pod};
    use serde_json::{Value, json};

    fn node(name: &str, cpu: &str, more: Value) -> Value {
        let mut node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": cpu, "pods": "10"}}});
        node.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        node
    }

    fn asking(cpu: &str) -> Pending {
        pending(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
    }

    fn by(plugin: Plugin) -> Plugins {
        Plugins::default().with(plugin)
    }

    fn helps(c: &Cluster, event: &Event<'_>, pod: &Pending, by: Plugins) -> bool {
        Hints { cluster: c, world: &Nothing, profile: &Profile::default() }.helps(event, pod, by)
    }

    #[test]
    fn only_a_node_with_room_helps_a_pod_that_needs_room() {
        let c = cluster(&[
            node("small", "1", json!({})),
            node("large", "4", json!({})),
            node("cordoned", "4", json!({"spec": {"unschedulable": true}})),
        ]);
        let new =
            |name: &str| helps(&c, &Event::Node(None, c.id(name).unwrap()), &asking("2"), by(Plugin::NodeResourcesFit));
        assert!(!new("small") && new("large") && !new("cordoned"));
    }

    #[test]
    fn a_pod_that_goes_helps_where_it_makes_enough_room() {
        let mut c = cluster(&[node("a", "2", json!({}))]);
        let id = c.id("a").unwrap();
        let container = json!({"name": "c", "resources": {"requests": {"cpu": "1"}}});
        let [first, second] =
            ["first", "second"].map(|n| pending_pod(n, json!({"containers": [container.clone()]})).info);
        c.assume(first.clone(), id);
        c.assume(second.clone(), id);
        c.take(&first.key);
        let gone =
            |c: &Cluster, cpu: &str| helps(c, &Event::PodGone(&first, id), &asking(cpu), by(Plugin::NodeResourcesFit));
        assert!(gone(&c, "1") && !gone(&c, "2"));
        assert!(!helps(&c, &Event::PodThere(&first.look), &asking("1"), by(Plugin::NodeResourcesFit)));
    }

    #[test]
    fn neighbours_matter_to_those_that_look_at_them() {
        let c = cluster(&[node("a", "2", json!({}))]);
        let labelled = |app: &str, spec: Value| {
            let mut pod = (*pending_pod(app, spec).pod).clone();
            pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
            Pending::new(std::sync::Arc::new(pod))
        };
        let term = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}}}]);
        let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
        let pod = labelled("web", json!({"affinity": near}));
        let (db, other) = (labelled("db", json!({})), labelled("other", json!({})));
        let there = |look: &Look, plugin| helps(&c, &Event::PodThere(look), &pod, by(plugin));
        assert!(there(&db.info.look, Plugin::InterPodAffinity));
        assert!(!there(&other.info.look, Plugin::InterPodAffinity));
        assert!(!there(&db.info.look, Plugin::NodeResourcesFit));
        let relabelled = Event::PodChanged(&other.info.look, &db.info.look);
        assert!(helps(&c, &relabelled, &pod, by(Plugin::InterPodAffinity)));
    }

    #[test]
    fn claims_help_who_uses_them() {
        let c = Cluster::default();
        let pod = pending(json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}));
        let claim = |name: &str| helps(&c, &Event::Claim(&Key::new("ns", name)), &pod, by(Plugin::VolumeBinding));
        assert!(claim("data") && !claim("other"));
        assert!(helps(&c, &Event::Storage, &pod, by(Plugin::VolumeBinding)));
        assert!(!helps(&c, &Event::Storage, &pod, by(Plugin::NodeResourcesFit)));
    }

    #[test]
    fn claims_to_devices_help_who_uses_them_and_devices_everybody_who_needs_some() {
        let c = Cluster::default();
        let pod = pending(json!({"resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}]}));
        let claim =
            |name: &str| helps(&c, &Event::DeviceClaim(&Key::new("ns", name)), &pod, by(Plugin::DynamicResources));
        assert!(claim("mine") && !claim("other"));
        assert!(helps(&c, &Event::Devices, &pod, by(Plugin::DynamicResources)));
        assert!(!helps(&c, &Event::Devices, &pod, by(Plugin::NodeResourcesFit)));
    }
}
