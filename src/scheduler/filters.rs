//! Which nodes are possible for a pod, and why the others are not.

use crate::affinity::{PodTerm, selector};
use crate::nodes::{Cluster, NodeState, host_ports};
use crate::requests::Amounts;
use crate::volumes::{self, Choice, Reserved, Wanted};
use edge_client::placement::{node_allowed, untolerated};
use edge_client::{Informer, ResourceExt};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, TopologySpreadConstraint,
};
use k8s_openapi::api::storage::v1::StorageClass;
use std::collections::{BTreeMap, HashMap};

/// Why a node is impossible; the reasons as Kubernetes words them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reasons: Vec<String>,
}

impl Refusal {
    pub(crate) fn new(reasons: impl IntoIterator<Item = String>) -> Self {
        Self { reasons: reasons.into_iter().collect() }
    }

    pub(crate) fn one(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()] }
    }

    /// Whether the deletion of other pods could change it.
    pub(crate) fn is_about_room(&self) -> bool {
        self.reasons.iter().all(|r| r.starts_with("Insufficient") || r == "Too many pods")
    }
}

/// A pod, and all that a decision about it looks at.
pub(crate) struct Context<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) namespaces: &'a Informer<Namespace>,
    pub(crate) claims: &'a Informer<PersistentVolumeClaim>,
    pub(crate) volumes: &'a Informer<PersistentVolume>,
    pub(crate) classes: &'a Informer<StorageClass>,
    pub(crate) reserved: &'a Reserved,
    pub(crate) requests: Amounts,
    pub(crate) pod: &'a Pod,
}

impl Context<'_> {
    pub(crate) fn namespace_labels(&self, name: &str) -> BTreeMap<String, String> {
        self.namespaces.get("", name).and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
    }
}

/// What is the same for all nodes, computed once.
#[derive(Default)]
pub(crate) struct Prepared {
    volumes: Wanted,
    spread: Vec<Spread>,
    near: Vec<Near>,
    /// Topology values (by key) where pods of this one's anti-affinity are, or pods that do not want this one.
    avoid: Vec<(String, String)>,
}

/// A required spread constraint with the number of matching pods per domain.
struct Spread {
    key: String,
    max_skew: i64,
    counts: HashMap<String, i64>,
    counts_itself: bool,
    min_domains: i64,
}

/// A required affinity term with the domains where its pods are.
struct Near {
    key: String,
    domains: Vec<String>,
    /// No pod matches anywhere, but the pod itself does: the first of its kind may go anywhere.
    first: bool,
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Prepares the decision.
///
/// # Errors
/// When no node can be possible, with the reason.
pub(crate) fn precheck(c: &Context<'_>) -> Result<Prepared, Refusal> {
    let mut out = Prepared { volumes: volumes::wanted(c)?, ..Prepared::default() };
    let spec = c.pod.spec.as_ref();
    for constraint in spec.and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default() {
        if constraint.when_unsatisfiable == "DoNotSchedule" {
            out.spread.push(spread(c, constraint));
        }
    }
    let affinity = spec.and_then(|s| s.affinity.as_ref());
    let labels = |ns: &str| c.namespace_labels(ns);
    let required = affinity.and_then(|a| a.pod_affinity.as_ref());
    for term in
        required.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
    {
        let term = PodTerm::new(term, c.pod);
        let domains: Vec<String> = domains_of(c, &term);
        let first = domains.is_empty() && term.matches(c.pod, &labels);
        out.near.push(Near { key: term.topology_key, domains, first });
    }
    let anti = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    for term in anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
    {
        let term = PodTerm::new(term, c.pod);
        out.avoid.extend(domains_of(c, &term).into_iter().map(|d| (term.topology_key.clone(), d)));
    }
    // others may not want this pod near
    for (state, other) in c.cluster.pods() {
        let anti = other.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.pod_anti_affinity.as_ref());
        for term in
            anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
        {
            let term = PodTerm::new(term, other);
            if term.matches(c.pod, &labels)
                && let Some(domain) = state.node.as_deref().and_then(|n| label(n, &term.topology_key))
            {
                out.avoid.push((term.topology_key, domain.to_owned()));
            }
        }
    }
    Ok(out)
}

/// The values of a term's topology key where pods are that it is about.
fn domains_of(c: &Context<'_>, term: &PodTerm) -> Vec<String> {
    let labels = |ns: &str| c.namespace_labels(ns);
    c.cluster
        .pods()
        .filter(|(_, p)| p.metadata.deletion_timestamp.is_none() && term.matches(p, &labels))
        .filter_map(|(state, _)| Some(label(state.node.as_deref()?, &term.topology_key)?.to_owned()))
        .collect()
}

fn spread(c: &Context<'_>, constraint: &TopologySpreadConstraint) -> Spread {
    let mut wire = constraint.label_selector.clone();
    if let Some(s) = &mut wire {
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = c.pod.labels().get(key) {
                s.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
            }
        }
    }
    let selector = selector(wire.as_ref());
    let fits = |p: &Pod| selector.matches(|k| p.labels().get(k).map(String::as_str));
    let honours_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    let honours_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let mut counts = HashMap::new();
    for state in c.cluster.nodes() {
        let Some(node) = state.node.as_deref() else { continue };
        let Some(domain) = label(node, &constraint.topology_key) else { continue };
        if (honours_affinity && !node_allowed(c.pod, node))
            || (honours_taints && !untolerated(c.pod, node, &["NoSchedule", "NoExecute"]).is_empty())
        {
            continue;
        }
        let here = state
            .pods
            .values()
            .filter(|p| p.namespace() == c.pod.namespace() && p.metadata.deletion_timestamp.is_none() && fits(p))
            .count();
        *counts.entry(domain.to_owned()).or_insert(0) += here as i64;
    }
    Spread {
        key: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        counts,
        counts_itself: fits(c.pod),
        min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
    }
}

/// Judges one node, in the order of Kubernetes' plugins; the first that refuses tells its reasons. The answer is what the pod's claims get there.
///
/// # Errors
/// Why the node is impossible.
pub(crate) fn check(c: &Context<'_>, prepared: &Prepared, state: &NodeState) -> Result<Vec<Choice>, Refusal> {
    let Some(node) = state.node.as_deref() else { return Err(Refusal::one("node(s) not found")) };
    schedulable(c.pod, node)?;
    if !node_allowed(c.pod, node) {
        return Err(Refusal::one("node(s) didn't match Pod's node affinity/selector"));
    }
    free_ports(c.pod, state)?;
    let short = state.short_of(&c.requests);
    if !short.is_empty() {
        return Err(Refusal::new(short));
    }
    let choices = volumes::choose(c, &prepared.volumes, node)?;
    for s in &prepared.spread {
        s.check(node)?;
    }
    for near in &prepared.near {
        let here = label(node, &near.key);
        if !here.is_some_and(|d| near.first || near.domains.iter().any(|x| x == d)) {
            return Err(Refusal::one("node(s) didn't match pod affinity rules"));
        }
    }
    if prepared.avoid.iter().any(|(key, domain)| label(node, key) == Some(domain)) {
        return Err(Refusal::one("node(s) didn't match pod anti-affinity rules"));
    }
    Ok(choices)
}

fn schedulable(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let untolerated = untolerated(pod, node, &["NoSchedule", "NoExecute"]);
    let cordoned = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    // a toleration of the taint that comes with cordoning is one of cordoning
    let taint = k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    };
    if cordoned {
        let mut only = node.clone();
        only.spec.get_or_insert_default().taints = Some(vec![taint]);
        if !self::untolerated(pod, &only, &["NoSchedule"]).is_empty() {
            return Err(Refusal::one("node(s) were unschedulable"));
        }
    }
    match untolerated.first() {
        Some(t) => {
            let value = t.value.as_deref().unwrap_or_default();
            Err(Refusal::one(&format!("node(s) had untolerated taint {{{}: {value}}}", t.key)))
        }
        None => Ok(()),
    }
}

fn free_ports(pod: &Pod, state: &NodeState) -> Result<(), Refusal> {
    let wanted = host_ports(pod);
    if wanted.is_empty() {
        return Ok(());
    }
    let clash = |a: &crate::nodes::HostPort, b: &crate::nodes::HostPort| {
        a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1 == "0.0.0.0" || b.1 == "0.0.0.0")
    };
    let taken = state.pods.values().flat_map(|p| host_ports(p)).any(|t| wanted.iter().any(|w| clash(w, &t)));
    if taken { Err(Refusal::one("node(s) didn't have free ports for the requested pod ports")) } else { Ok(()) }
}

impl Spread {
    fn check(&self, node: &Node) -> Result<(), Refusal> {
        let Some(domain) = label(node, &self.key) else {
            return Err(Refusal::one("node(s) didn't match pod topology spread constraints (missing required label)"));
        };
        let fewest = if (self.counts.len() as i64) < self.min_domains {
            0
        } else {
            self.counts.values().min().copied().unwrap_or(0)
        };
        let here = self.counts.get(domain).copied().unwrap_or(0) + i64::from(self.counts_itself);
        if here - fewest > self.max_skew {
            return Err(Refusal::one("node(s) didn't match pod topology spread constraints"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn node(name: &str, zone: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"zone": zone}}})).unwrap()
    }

    #[test]
    fn spread_counts_the_pod_itself() {
        let spread = Spread {
            key: "zone".into(),
            max_skew: 1,
            counts: HashMap::from([("a".into(), 1), ("b".into(), 0)]),
            counts_itself: true,
            min_domains: 1,
        };
        assert!(spread.check(&node("n", "b")).is_ok());
        assert!(spread.check(&node("n", "a")).is_err());
        let unlabeled: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
        assert!(spread.check(&unlabeled).unwrap_err().reasons[0].contains("missing required label"));
    }

    #[test]
    fn cordons_and_taints() {
        let pod = |t: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "tolerations": t}})).unwrap()
        };
        let cordoned: Node =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"unschedulable": true}})).unwrap();
        assert_eq!(schedulable(&pod(json!([])), &cordoned).unwrap_err().reasons, ["node(s) were unschedulable"]);
        assert!(schedulable(&pod(json!([{"operator": "Exists"}])), &cordoned).is_ok());
        let tainted: Node = serde_json::from_value(
            json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}}),
        )
        .unwrap();
        assert_eq!(
            schedulable(&pod(json!([])), &tainted).unwrap_err().reasons,
            ["node(s) had untolerated taint {k: v}"]
        );
    }
}
