//! PodTopologySpread: pods of a kind are spread over domains of nodes.

use super::{MAX_SCORE, Plugin, Refusal};
use crate::cluster::{Cluster, Domains, NOWHERE, NodeId, NodeState};
use crate::pod::Pending;
use crate::terms::{Labels, satisfied, selector, with_keys};
use edge_api::selector::LabelSelector;
use edge_client::placement::{node_allowed, untolerated};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use std::sync::Arc;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// What is spread when a pod says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Defaults {
    /// Over nodes and, less strictly, over zones, where nodes have them.
    #[default]
    System,
    /// What the configuration says.
    List(Vec<TopologySpreadConstraint>),
}

/// The constraints of a pod.
pub(crate) struct Constraints {
    list: Vec<TopologySpreadConstraint>,
    /// Which pods are counted, for each constraint; a pod counts when all of its selectors find it.
    selectors: Vec<Vec<LabelSelector>>,
    /// Nodes count only when they have the labels of all constraints.
    all_keys: bool,
}

impl Constraints {
    /// Those of a pod. `kin` finds the pods that belong together with it in the eyes of Services and owners: what defaults are about.
    pub(crate) fn of(pod: &Pending, defaults: &Defaults, kin: impl FnOnce() -> Vec<LabelSelector>) -> Self {
        let own = pod.spec().topology_spread_constraints.as_deref().unwrap_or_default();
        if !own.is_empty() {
            let selectors = own.iter().map(|c| vec![own_selector(c, pod.labels())]).collect();
            return Self { list: own.to_vec(), selectors, all_keys: true };
        }
        let list = match defaults {
            Defaults::System => vec![soft(HOSTNAME, 3), soft("topology.kubernetes.io/zone", 5)],
            Defaults::List(list) => list.clone(),
        };
        let kin = if list.is_empty() { Vec::new() } else { kin() };
        if kin.is_empty() {
            return Self { list: Vec::new(), selectors: Vec::new(), all_keys: true };
        }
        Self { selectors: vec![kin; list.len()], list, all_keys: *defaults != Defaults::System }
    }

    fn with(&self, hard: bool) -> impl Iterator<Item = (&TopologySpreadConstraint, &Vec<LabelSelector>)> {
        self.list.iter().zip(&self.selectors).filter(move |(c, _)| (c.when_unsatisfiable == "DoNotSchedule") == hard)
    }

    /// Whether pods like one that comes or goes are counted.
    pub(crate) fn counts(&self, labels: &Labels) -> bool {
        self.selectors.iter().any(|s| s.iter().all(|s| satisfied(s, labels)))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|c| c.topology_key.as_str())
    }
}

fn soft(key: &str, max_skew: i32) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        topology_key: key.into(),
        max_skew,
        when_unsatisfiable: "ScheduleAnyway".into(),
        ..TopologySpreadConstraint::default()
    }
}

fn own_selector(constraint: &TopologySpreadConstraint, labels: &Labels) -> LabelSelector {
    let wire = constraint.label_selector.clone().map(|mut wire| {
        with_keys(&mut wire, constraint.match_label_keys.as_ref(), labels, true);
        wire
    });
    selector(wire.as_ref())
}

/// Whether the constraint looks at pods of a node.
fn includes(constraint: &TopologySpreadConstraint, pod: &Pending, state: &NodeState) -> bool {
    let Some(node) = state.node.as_deref() else { return false };
    let by_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let by_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    (!by_affinity || node_allowed(&pod.pod, node))
        && (!by_taints || untolerated(&pod.pod, node, &["NoSchedule", "NoExecute"]).is_empty())
}

/// Which nodes a constraint looks at, by number.
fn included(
    constraint: &TopologySpreadConstraint,
    pod: &Pending,
    cluster: &Cluster,
    keys: &[Arc<Domains>],
) -> Vec<bool> {
    let mut out = vec![false; cluster.numbers()];
    for (id, state, _) in cluster.nodes() {
        out[id] = keys.iter().all(|d| d.of[id] != NOWHERE) && includes(constraint, pod, state);
    }
    out
}

/// Calls `f` with each node on which pods are that all selectors find, and how many of them stay.
fn each_place(cluster: &Cluster, namespace: &str, selectors: &[LabelSelector], mut f: impl FnMut(NodeId, i64)) {
    for group in cluster.groups().of_namespace(namespace) {
        if selectors.iter().all(|s| satisfied(s, &group.look.labels)) {
            for (node, count) in &group.places {
                f(*node, i64::from(count.all - count.going));
            }
        }
    }
}

/// A constraint that must hold.
struct Hard {
    domains: Arc<Domains>,
    /// Pods per domain; `None`: the domain does not count.
    counts: Vec<Option<i64>>,
    fewest: i64,
    max_skew: i64,
    counts_itself: i64,
}

/// All constraints of a pod that must hold.
#[derive(Default)]
pub(crate) struct Required(Vec<Hard>);

impl Required {
    pub(crate) fn new(pod: &Pending, cluster: &Cluster, constraints: &Constraints) -> Self {
        let keys: Vec<Arc<Domains>> = constraints.with(true).map(|(c, _)| cluster.domains(&c.topology_key)).collect();
        let hard = |(i, (c, selectors)): (usize, (&TopologySpreadConstraint, &Vec<LabelSelector>))| {
            let domains = keys[i].clone();
            let included = included(c, pod, cluster, &keys);
            let mut counts = vec![None; domains.count];
            for (node, _) in included.iter().enumerate().filter(|(_, in_it)| **in_it) {
                counts[domains.of[node] as usize].get_or_insert(0);
            }
            each_place(cluster, pod.namespace(), selectors, |node, n| {
                if included[node]
                    && let Some(count) = &mut counts[domains.of[node] as usize]
                {
                    *count += n;
                }
            });
            let counted = || counts.iter().flatten();
            let enough = counted().count() as i64 >= i64::from(c.min_domains.unwrap_or(1));
            let fewest = if enough { counted().min().copied().unwrap_or(0) } else { 0 };
            let itself = selectors.iter().all(|s| satisfied(s, pod.labels()));
            Hard { domains, fewest, counts, max_skew: i64::from(c.max_skew), counts_itself: i64::from(itself) }
        };
        Self(constraints.with(true).enumerate().map(hard).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Plugin PodTopologySpread.
    ///
    /// # Errors
    /// When the pod would make a domain too full, or the node is in none.
    pub(crate) fn check(&self, node: NodeId) -> Result<(), Refusal> {
        for hard in &self.0 {
            let Some(count) = hard.counts.get(hard.domains.of[node] as usize) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Refusal::lasting(Plugin::PodTopologySpread, reason));
            };
            if count.unwrap_or(0) + hard.counts_itself - hard.fewest > hard.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Refusal::open(Plugin::PodTopologySpread, reason));
            }
        }
        Ok(())
    }
}

/// The scores of nodes by the constraints that need not hold; `None`: there are none.
pub(crate) fn scores(
    pod: &Pending,
    cluster: &Cluster,
    constraints: &Constraints,
    nodes: &[NodeId],
) -> Option<Vec<i64>> {
    let list: Vec<_> = constraints.with(false).collect();
    if list.is_empty() {
        return None;
    }
    let all: Vec<Arc<Domains>> = list.iter().map(|(c, _)| cluster.domains(&c.topology_key)).collect();
    let required: &[Arc<Domains>] = if constraints.all_keys { &all } else { &[] };
    let is_ignored = |node: NodeId| required.iter().any(|d| d.of[node] == NOWHERE);
    let mut raw = vec![0.0; nodes.len()];
    for ((constraint, selectors), domains) in list.iter().zip(&all) {
        let included = included(constraint, pod, cluster, required);
        let mut counts = vec![0_i64; domains.count];
        each_place(cluster, pod.namespace(), selectors, |node, n| {
            if included[node]
                && let Some(count) = counts.get_mut(domains.of[node] as usize)
            {
                *count += n;
            }
        });
        let mut seen = vec![false; domains.count + 1];
        for node in nodes.iter().filter(|n| !is_ignored(**n)) {
            // nodes without the label are together one more
            seen[(domains.of[*node] as usize).min(domains.count)] = true;
        }
        // in small topologies a pod more or less counts for less
        let weight = (seen.iter().filter(|s| **s).count() as f64 + 2.0).ln();
        for (score, node) in raw.iter_mut().zip(nodes) {
            if let Some(count) = counts.get(domains.of[*node] as usize) {
                *score += *count as f64 * weight + f64::from(constraint.max_skew - 1);
            }
        }
    }
    let rounded: Vec<Option<i64>> =
        raw.iter().zip(nodes).map(|(score, node)| (!is_ignored(*node)).then_some(score.round() as i64)).collect();
    let low = rounded.iter().flatten().min().copied().unwrap_or(0);
    let high = rounded.iter().flatten().max().copied().unwrap_or(0);
    let of = |score: Option<i64>| match score {
        None => 0,
        Some(_) if high == 0 => MAX_SCORE,
        Some(score) => MAX_SCORE * (high + low - score) / high,
    };
    Some(rounded.into_iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::{cluster, pending_pod};
    use serde_json::{Value, json};

    fn zones() -> Cluster {
        let node = |name: &str, zone: &str| json!({"metadata": {"name": name, "labels": {"zone": zone, "kubernetes.io/hostname": name}}});
        cluster(&[node("a1", "a"), node("a2", "a"), node("b1", "b"), json!({"metadata": {"name": "bare"}})])
    }

    fn web(name: &str, constraints: Value) -> Pending {
        let mut pod = (*pending_pod(name, json!({"topologySpreadConstraints": constraints})).pod).clone();
        pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        Pending::new(Arc::new(pod))
    }

    fn constraint(when: &str, more: Value) -> Value {
        let mut c = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}});
        c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([c])
    }

    fn possible(c: &Cluster, pod: &Pending) -> Vec<String> {
        let constraints = Constraints::of(pod, &Defaults::System, Vec::new);
        let required = Required::new(pod, c, &constraints);
        let fits = |id: &NodeId| required.check(*id).is_ok();
        c.nodes().map(|(id, ..)| id).filter(fits).map(|id| c.node(id).name.to_string()).collect()
    }

    fn place(c: &mut Cluster, name: &str, node: &str) {
        let id = c.id(node).unwrap();
        c.assume(web(name, json!([])).info, id);
    }

    #[test]
    fn a_domain_is_not_fuller_than_the_emptiest_by_more_than_the_skew() {
        let mut c = zones();
        let pod = web("p", constraint("DoNotSchedule", json!({})));
        assert_eq!(possible(&c, &pod), ["a1", "a2", "b1"]);
        place(&mut c, "one", "a1");
        assert_eq!(possible(&c, &pod), ["b1"]);
        place(&mut c, "two", "b1");
        assert_eq!(possible(&c, &pod), ["a1", "a2", "b1"]);
        // with fewer domains than wanted the emptiest counts as empty
        let many = web("p", constraint("DoNotSchedule", json!({"minDomains": 3})));
        assert!(possible(&c, &many).is_empty());
        let refused = Required::new(&pod, &c, &Constraints::of(&pod, &Defaults::System, Vec::new));
        let refused = refused.check(c.id("bare").unwrap()).unwrap_err();
        assert!(refused.is_final && refused.reasons[0].contains("missing required label"));
    }

    #[test]
    fn only_nodes_that_the_pod_may_go_to_count() {
        let mut c = zones();
        place(&mut c, "one", "a1");
        let mut pod = (*web("p", constraint("DoNotSchedule", json!({}))).pod).clone();
        pod.spec.as_mut().unwrap().node_selector = Some([("zone".to_owned(), "a".to_owned())].into());
        assert_eq!(possible(&c, &Pending::new(Arc::new(pod.clone()))), ["a1", "a2", "b1"], "zone b does not count");
        let constraints = &mut pod.spec.as_mut().unwrap().topology_spread_constraints;
        constraints.as_mut().unwrap()[0].node_affinity_policy = Some("Ignore".into());
        assert_eq!(possible(&c, &Pending::new(Arc::new(pod))), ["b1"]);
    }

    #[test]
    fn preferences_are_for_emptier_domains() {
        let mut c = zones();
        place(&mut c, "one", "a1");
        place(&mut c, "two", "a2");
        let nodes: Vec<NodeId> = ["a1", "b1", "bare"].iter().map(|n| c.id(n).unwrap()).collect();
        let pod = web("p", constraint("ScheduleAnyway", json!({})));
        let of = |pod: &Pending, kin: Vec<LabelSelector>| {
            scores(pod, &c, &Constraints::of(pod, &Defaults::System, || kin), &nodes)
        };
        assert_eq!(of(&pod, Vec::new()), Some(vec![0, 100, 0]));
        let plain = web("q", json!([]));
        assert_eq!(of(&plain, Vec::new()), None, "nothing says which pods belong together");
        let kin = vec![LabelSelector::parse("app=web").unwrap()];
        let scores = of(&plain, kin).unwrap();
        assert!(scores[0] < scores[1] && scores[2] > 0, "{scores:?}");
    }
}
