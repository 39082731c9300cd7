//! The decision about one pod: which nodes are possible, and which of them is best. Nothing here waits or writes.

use crate::cluster::{Cluster, NodeId, NodeState};
use crate::plugins::devices::{self, Allocating, DeviceChoice};
use crate::plugins::volumes::{self, Choice, Reserved, Wanted};
use crate::plugins::{Plugin, Plugins, Refusal, images, near, node, resources, spread};
use crate::pod::{Pending, PodInfo};
use crate::profile::Profile;
use crate::terms::Labels;
use crate::world::World;
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;

/// A pod, and what a decision about it looks at besides the cluster, which changes in what-ifs.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) pod: &'a Pending,
    pub(crate) profile: &'a Profile,
    pub(crate) world: &'a dyn World,
    pub(crate) reserved: &'a Reserved,
    pub(crate) allocating: &'a Allocating,
}

/// A question about a cluster as it is, or would be.
#[derive(Clone, Copy)]
pub(crate) struct Attempt<'a> {
    pub(crate) q: Question<'a>,
    pub(crate) cluster: &'a Cluster,
}

impl<'a> Question<'a> {
    pub(crate) fn on(self, cluster: &'a Cluster) -> Attempt<'a> {
        Attempt { q: self, cluster }
    }
}

/// Why a pod fits nowhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    /// What holds for all nodes.
    pub(crate) general: Option<Refusal>,
    pub(crate) refusals: Vec<(NodeId, Refusal)>,
}

impl Verdict {
    /// Who refused.
    pub(crate) fn plugins(&self) -> Plugins {
        let all = self.general.iter().chain(self.refusals.iter().map(|(_, r)| r));
        all.fold(Plugins::default(), |set, refusal| set.with(refusal.plugin))
    }
}

/// What is the same for all nodes, computed once.
pub(crate) struct Prepared {
    volumes: Wanted,
    constraints: spread::Constraints,
    spread: spread::Required,
    near: near::Required,
    devices: devices::Wanted,
}

impl Prepared {
    /// Prepares a decision.
    ///
    /// # Errors
    /// When no node can be possible, with the reason.
    pub(crate) fn new(a: &Attempt<'_>) -> Result<Self, Refusal> {
        let labels = |namespace: &str| a.q.world.namespace_labels(namespace);
        let enabled = |plugin| a.q.profile.filters.has(plugin);
        let constraints = constraints(a.q.pod, a.q.profile, a.q.world);
        Ok(Self {
            volumes: if enabled(Plugin::VolumeBinding) { volumes::wanted(a)? } else { Wanted::default() },
            spread: if enabled(Plugin::PodTopologySpread) {
                spread::Required::new(a.q.pod, a.cluster, &constraints)
            } else {
                spread::Required::default()
            },
            near: if enabled(Plugin::InterPodAffinity) {
                near::Required::new(a.q.pod, a.cluster, &labels)
            } else {
                near::Required::default()
            },
            devices: if enabled(Plugin::DynamicResources) { devices::wanted(a)? } else { devices::Wanted::default() },
            constraints,
        })
    }

    /// Whether other pods have any say beyond the room that they take.
    fn depends_on_pods(&self) -> bool {
        !self.spread.is_empty() || !self.near.is_empty() || self.volumes.depends_on_pods()
    }
}

/// The spread constraints of a pod.
pub(crate) fn constraints(pod: &Pending, profile: &Profile, world: &dyn World) -> spread::Constraints {
    spread::Constraints::of(pod, &profile.spread, || world.kin(pod))
}

/// What a node is and has, whatever pods are on it.
pub(crate) fn check_node(pod: &Pending, profile: &Profile, state: &NodeState, node: &Node) -> Result<(), Refusal> {
    let enabled = |plugin| profile.filters.has(plugin);
    if enabled(Plugin::NodeUnschedulable) {
        node::unschedulable(pod, state)?;
    }
    if enabled(Plugin::TaintToleration) {
        node::taints(pod, state)?;
    }
    if enabled(Plugin::NodeAffinity) {
        node::affinity(pod, node, profile.added_affinity.as_ref())?;
    }
    Ok(())
}

/// The room on a node.
pub(crate) fn check_room(pod: &Pending, profile: &Profile, state: &NodeState) -> Result<(), Refusal> {
    if profile.filters.has(Plugin::NodePorts) {
        node::ports(pod, state)?;
    }
    if profile.filters.has(Plugin::NodeResourcesFit) {
        resources::fit(pod, state, &profile.resources)?;
    }
    Ok(())
}

/// Judges one node, in the order of Kubernetes' plugins; the first that refuses tells its reasons.
///
/// # Errors
/// Why the node is impossible.
pub(crate) fn check(a: &Attempt<'_>, prepared: &Prepared, id: NodeId) -> Result<(), Refusal> {
    let state = a.cluster.node(id);
    let Some(node) = state.node.as_deref() else {
        return Err(Refusal::lasting(Plugin::NodeName, "node(s) not found"));
    };
    check_node(a.q.pod, a.q.profile, state, node)?;
    check_room(a.q.pod, a.q.profile, state)?;
    if !a.q.pod.info.claims.is_empty() {
        let enabled = |plugin| a.q.profile.filters.has(plugin);
        if enabled(Plugin::VolumeRestrictions) {
            volumes::restrictions(&prepared.volumes, a.cluster)?;
        }
        if enabled(Plugin::NodeVolumeLimits) {
            volumes::limits(a, id)?;
        }
        volumes::choose(a, &prepared.volumes, node)?;
        if enabled(Plugin::VolumeZone) {
            volumes::zones(&prepared.volumes, node)?;
        }
    }
    prepared.spread.check(id)?;
    prepared.near.check(id)?;
    devices::choose(a, &prepared.devices, node).map(drop)
}

/// Judges a node again as if the pods that it is kept free for were on it already, as far as they are not less important.
pub(crate) fn check_beside_nominated(
    q: Question<'_>,
    cluster: &mut Cluster,
    prepared: &Prepared,
    id: NodeId,
) -> Result<(), Refusal> {
    let others: Vec<Arc<PodInfo>> = cluster
        .nominated(id)
        .iter()
        .filter(|p| p.priority >= q.pod.info.priority && p.key != *q.pod.key() && !cluster.knows(&p.key))
        .cloned()
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    others.iter().for_each(|p| cluster.put(p.clone(), id));
    let attempt = q.on(cluster);
    let verdict = if prepared.depends_on_pods() || others.iter().any(|p| p.terms.is_some()) {
        Prepared::new(&attempt).and_then(|again| check(&attempt, &again, id))
    } else {
        check(&attempt, prepared, id)
    };
    others.iter().for_each(|p| drop(cluster.take(&p.key)));
    verdict
}

/// The nodes that are possible.
pub(crate) struct Possible {
    pub(crate) prepared: Prepared,
    pub(crate) nodes: Vec<NodeId>,
    /// Why others are not; nothing of those that were not looked at: when there are enough, or one is kept free for the pod.
    pub(crate) verdict: Verdict,
}

/// Finds nodes that are possible: all of them, or as many as the profile takes to be enough.
///
/// # Errors
/// Why there is none.
pub(crate) fn possible(q: Question<'_>, cluster: &mut Cluster) -> Result<Possible, Verdict> {
    let attempt = q.on(cluster);
    let prepared = match Prepared::new(&attempt) {
        Ok(prepared) => prepared,
        Err(general) => return Err(Verdict { general: Some(general), ..Verdict::default() }),
    };
    // the node that others made room on comes first
    let kept = cluster.nomination(q.pod.key()).and_then(|node| cluster.id(node));
    if let Some(id) = kept
        && check(&attempt, &prepared, id).is_ok()
        && check_beside_nominated(q, cluster, &prepared, id).is_ok()
    {
        return Ok(Possible { prepared, nodes: vec![id], verdict: Verdict::default() });
    }
    let (mut nodes, mut verdict) = (Vec::new(), Verdict::default());
    let order = cluster.order();
    let (enough, start) = (q.profile.enough(order.len()), cluster.start);
    let mut turns = (0..order.len()).map(|turn| order[(start + turn) % order.len()]);
    let mut is_over = false;
    while !is_over && nodes.len() < enough {
        let (attempt, mut found) = (q.on(cluster), Vec::new());
        while nodes.len() + found.len() < enough {
            let Some(id) = turns.next() else {
                is_over = true;
                break;
            };
            match check(&attempt, &prepared, id) {
                Ok(()) => found.push(id),
                Err(refusal) => verdict.refusals.push((id, refusal)),
            }
        }
        for id in found {
            match check_beside_nominated(q, cluster, &prepared, id) {
                Ok(()) => nodes.push(id),
                Err(refusal) => verdict.refusals.push((id, refusal)),
            }
        }
    }
    // the next search begins where this has ended
    cluster.start = (start + order.len() - turns.len()).checked_rem(order.len()).unwrap_or(0);
    if nodes.is_empty() { Err(verdict) } else { Ok(Possible { prepared, nodes, verdict }) }
}

/// Scores of nodes by all plugins, in the order of `nodes`.
pub(crate) fn scores(a: &Attempt<'_>, prepared: &Prepared, nodes: &[NodeId]) -> Vec<i64> {
    let states: Vec<&NodeState> = nodes.iter().map(|id| a.cluster.node(*id)).collect();
    let labels = |namespace: &str| -> Labels { a.q.world.namespace_labels(namespace) };
    let (pod, settings) = (a.q.pod, &a.q.profile.resources);
    let mut totals = vec![0; nodes.len()];
    for (plugin, weight) in &a.q.profile.weights {
        let scores = match plugin {
            Plugin::TaintToleration => Some(node::taint_scores(pod, &states)),
            Plugin::NodeAffinity => node::affinity_scores(pod, &states, a.q.profile.added_affinity.as_ref()),
            Plugin::PodTopologySpread => spread::scores(pod, a.cluster, &prepared.constraints, nodes),
            Plugin::InterPodAffinity => near::scores(pod, a.cluster, &labels, a.q.profile.near, nodes),
            Plugin::NodeResourcesFit => Some(states.iter().map(|s| resources::fit_score(pod, s, settings)).collect()),
            Plugin::NodeResourcesBalancedAllocation => resources::can_balance(pod, settings)
                .then(|| states.iter().map(|s| resources::balance_score(pod, s, settings)).collect()),
            Plugin::DynamicResources => devices::scores(a, &prepared.devices, &states),
            Plugin::ImageLocality => images::scores(pod, a.cluster, &states),
            _ => None,
        };
        for (total, score) in totals.iter_mut().zip(scores.into_iter().flatten()) {
            *total += weight * score;
        }
    }
    totals
}

/// The best of the possible nodes; of equals the first from `turn` on, so that not always the same wins.
pub(crate) fn best(nodes: &[NodeId], scores: &[i64], turn: usize) -> Option<NodeId> {
    let at = (0..nodes.len()).map(|i| (i + turn) % nodes.len());
    // of equals `max_by_key` takes the last
    at.rev().max_by_key(|i| scores.get(*i).copied().unwrap_or(0)).map(|i| nodes[i])
}

/// What a pod's claims get on a node.
#[derive(Clone, Default)]
pub(crate) struct Choices {
    pub(crate) volumes: Vec<Choice>,
    pub(crate) devices: Vec<DeviceChoice>,
}

/// What the pod's claims get on the node that was chosen.
pub(crate) fn choices(a: &Attempt<'_>, prepared: &Prepared, id: NodeId) -> Choices {
    let Some(node) = a.cluster.node(id).node.as_deref() else { return Choices::default() };
    Choices {
        volumes: volumes::choose(a, &prepared.volumes, node).unwrap_or_default(),
        devices: devices::choose(a, &prepared.devices, node).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::{Nothing, node, pending_pod, pod};
    use serde_json::json;

    fn decide(cluster: &mut Cluster, pod: &Pending, turn: usize) -> Result<String, Verdict> {
        let (profile, reserved, allocating) = (Profile::default(), Reserved::new(), Allocating::default());
        let q = Question { pod, profile: &profile, world: &Nothing, reserved: &reserved, allocating: &allocating };
        let Possible { prepared, nodes, .. } = possible(q, cluster)?;
        let totals = scores(&q.on(cluster), &prepared, &nodes);
        Ok(cluster.node(best(&nodes, &totals, turn).unwrap()).name.to_string())
    }

    fn two() -> Cluster {
        let mut c = Cluster::default();
        for name in ["a", "b"] {
            c.set_node(&node(name, json!({"cpu": "1", "memory": "1Gi", "pods": "10"})));
        }
        c
    }

    #[test]
    fn the_emptier_node_wins_and_equals_take_turns() {
        let mut c = two();
        let p = Pending::new(pod("p", json!({"cpu": "100m"})));
        assert_eq!((decide(&mut c, &p, 0).unwrap(), decide(&mut c, &p, 1).unwrap()), ("a".into(), "b".into()));
        let id = c.id("a").unwrap();
        c.assume(PodInfo::new(&pod("other", json!({"cpu": "500m"}))), id);
        assert_eq!(decide(&mut c, &p, 0).unwrap(), "b");
        let verdict = decide(&mut c, &Pending::new(pod("big", json!({"cpu": "2"}))), 0).unwrap_err();
        assert!(verdict.refusals.len() == 2 && verdict.plugins().has(Plugin::NodeResourcesFit));
    }

    #[test]
    fn a_node_is_kept_free_for_who_made_room_on_it() {
        let mut c = two();
        c.remove_node("b");
        let urgent = |name: &str, priority: i32| {
            let spec = json!({"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": "800m"}}}]});
            pending_pod(name, spec)
        };
        let (first, second) = (urgent("first", 10), urgent("second", 10));
        c.nominate(first.key(), Some(("a", &first.info)));
        assert!(decide(&mut c, &second, 0).is_err(), "as important: waits");
        assert_eq!(decide(&mut c, &urgent("third", 11), 0).unwrap(), "a", "more important: does not");
        assert_eq!(decide(&mut c, &first, 0).unwrap(), "a");
        let id = c.id("a").unwrap();
        assert_eq!(c.node(id).requested.cpu, 0, "what-ifs leave nothing");
        c.assume(first.info.clone(), id);
        assert!(c.nominated(id).is_empty());
    }

    #[test]
    fn of_many_nodes_a_part_is_looked_at_by_turns() {
        let room = json!({"cpu": "1", "memory": "1Gi", "pods": "10"});
        let nodes: Vec<_> = (0..300)
            .map(|n| {
                let labels = json!({"topology.kubernetes.io/zone": format!("zone-{}", n / 100), "n": n.to_string()});
                json!({"metadata": {"name": format!("n{n}"), "labels": labels}, "status": {"allocatable": room}})
            })
            .collect();
        let mut c = crate::testing::cluster(&nodes);
        let search = |c: &mut Cluster, spec| {
            let (profile, reserved, allocating) = (Profile::default(), Reserved::new(), Allocating::default());
            let (pod, profile) = (&pending_pod("p", spec), &profile);
            let q = Question { pod, profile, world: &Nothing, reserved: &reserved, allocating: &allocating };
            possible(q, c).map(|p| p.nodes)
        };
        let mut seen = vec![0; 300];
        for _ in 0..25 {
            let found = search(&mut c, json!({})).unwrap();
            assert_eq!(found.len(), 144);
            let in_zone = |zone: usize| found.iter().filter(|id| **id / 100 == zone).count();
            assert_eq!((in_zone(0), in_zone(1), in_zone(2)), (48, 48, 48));
            found.into_iter().for_each(|id| seen[id] += 1);
        }
        assert!(seen.iter().all(|times| *times == 12), "{seen:?}");
        // until there are enough it goes on, wherever they are
        for n in [0, 99, 150, 299] {
            assert_eq!(search(&mut c, json!({"nodeSelector": {"n": n.to_string()}})).unwrap(), [n]);
        }
        let verdict = search(&mut c, json!({"nodeSelector": {"n": "none"}})).unwrap_err();
        assert_eq!(verdict.refusals.len(), 300);
        // nodes that come and go change the order
        (0..290).for_each(|n| c.remove_node(&format!("n{n}")));
        assert_eq!(search(&mut c, json!({})).unwrap().len(), 10);
    }

    #[test]
    fn no_nodes_is_an_empty_verdict() {
        let verdict = decide(&mut Cluster::default(), &pending_pod("p", json!({})), 0).unwrap_err();
        assert!(verdict.general.is_none() && verdict.refusals.is_empty() && verdict.plugins().is_empty());
    }
}
