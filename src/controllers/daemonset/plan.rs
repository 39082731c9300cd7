//! Which nodes should have a pod of a DaemonSet, and what has to be made or deleted for that: pure functions.

use crate::history::POD_LABEL;
use crate::pods;
use edge_client::ResourceExt;
use edge_client::placement::{node_allowed, untolerated};
use k8s_openapi::api::apps::v1::{DaemonSet, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Pods by the node that they are on or are meant for.
pub(super) type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;

/// What the pods of every DaemonSet tolerate, besides what their template says.
fn tolerations(host_network: bool) -> Vec<Toleration> {
    let exists = |key: &str, effect: &str| Toleration {
        key: Some(format!("node.kubernetes.io/{key}")),
        operator: Some("Exists".into()),
        effect: Some(effect.into()),
        ..Toleration::default()
    };
    let mut all = vec![
        exists("not-ready", "NoExecute"),
        exists("unreachable", "NoExecute"),
        exists("disk-pressure", "NoSchedule"),
        exists("memory-pressure", "NoSchedule"),
        exists("pid-pressure", "NoSchedule"),
        exists("unschedulable", "NoSchedule"),
    ];
    if host_network {
        all.push(exists("network-unavailable", "NoSchedule"));
    }
    all
}

/// The pod of a DaemonSet, for no node yet.
pub(super) fn pod(set: &DaemonSet, hash: &str) -> Option<Pod> {
    let mut pod = crate::pod_control::pod_of(&set.spec.as_ref()?.template, set);
    pod.metadata.labels.get_or_insert_default().insert(POD_LABEL.into(), hash.into());
    let spec = pod.spec.get_or_insert_default();
    let own = spec.tolerations.get_or_insert_default();
    for toleration in tolerations(spec.host_network == Some(true)) {
        let same = |t: &Toleration| {
            (&t.key, &t.operator, &t.effect) == (&toleration.key, &toleration.operator, &toleration.effect)
        };
        own.retain(|t| !same(t));
        own.push(toleration);
    }
    Some(pod)
}

/// The same for one node: the scheduler puts it there. The node satisfies the template's own affinity already.
pub(super) fn bound(pod: &Pod, node: &str) -> Pod {
    let mut pod = pod.clone();
    let spec = pod.spec.get_or_insert_default();
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let of_node: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    of_node.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![requirement]),
            ..NodeSelectorTerm::default()
        }],
    });
    pod
}

/// The node that a pod is on, or is meant for.
pub(super) fn target(pod: &Pod) -> Option<String> {
    if let Some(node) = pods::node(pod) {
        return Some(node.to_owned());
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let name =
        fields.filter(|r| r.key == "metadata.name" && r.operator == "In").find_map(|r| r.values.as_ref()?.first());
    name.cloned()
}

/// Whether a node should have a pod, and whether one that is there may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Wanted,
    /// New ones would not get there, but one that is there goes on.
    Tolerated,
    Unwanted,
}

/// Decides about a node; `pod` is what [`pod`] gives.
pub(super) fn place(pod: &Pod, node: &Node) -> Place {
    let named = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty());
    if named.is_some_and(|n| node.metadata.name.as_deref() != Some(n)) || !node_allowed(pod, node) {
        return Place::Unwanted;
    }
    if !untolerated(pod, node, &["NoExecute"]).is_empty() {
        Place::Unwanted
    } else if untolerated(pod, node, &["NoSchedule"]).is_empty() {
        Place::Wanted
    } else {
        Place::Tolerated
    }
}

/// What is known of a DaemonSet.
pub(super) struct View<'a> {
    pub(super) set: &'a DaemonSet,
    /// The hash of the revision of its present template.
    pub(super) hash: &'a str,
    pub(super) nodes: &'a [Arc<Node>],
    /// What [`pod`] gives.
    pub(super) pod: &'a Pod,
    pub(super) now: Timestamp,
}

/// What has to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that are to get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that ended although they should not: to be deleted, the failed ones (`true`) not too fast.
    pub(super) ended: Vec<(String, Arc<Pod>, bool)>,
}

impl View<'_> {
    fn min_ready(&self) -> Duration {
        let seconds = self.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        pods::available_in(pod, self.min_ready(), self.now).is_some_and(|w| w.is_zero())
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        pod.labels().get(POD_LABEL).is_some_and(|h| h == self.hash)
    }

    fn rolling(&self) -> Option<&RollingUpdateDaemonSet> {
        self.set.spec.as_ref()?.update_strategy.as_ref()?.rolling_update.as_ref()
    }

    pub(super) fn is_on_delete(&self) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete")
    }

    fn surges(&self) -> bool {
        !self.is_on_delete() && self.limits(100).0 > 0
    }

    /// How many pods may be too many and how many may be missing during an update, of so many.
    fn limits(&self, desired: usize) -> (usize, usize) {
        let amount = |value: Option<&IntOrString>, absent: usize| match value {
            None => absent,
            Some(IntOrString::Int(n)) => usize::try_from(*n).unwrap_or(0),
            Some(IntOrString::String(text)) => {
                let percent = text.strip_suffix('%').and_then(|p| p.parse::<usize>().ok()).unwrap_or(0);
                desired.saturating_mul(percent).div_ceil(100)
            }
        };
        let rolling = self.rolling();
        let surge = amount(rolling.and_then(|r| r.max_surge.as_ref()), 0);
        let unavailable = amount(rolling.and_then(|r| r.max_unavailable.as_ref()), 1);
        // nothing could ever happen with neither
        if desired > 0 && surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn by_age(pods: &mut [Arc<Pod>]) {
    pods.sort_by_key(|p| (pods::node(p).is_none(), p.metadata.creation_timestamp.clone().map(|t| t.0), p.name_any()));
}

/// Groups pods by node. Ended pods that are being deleted do not count, unless asked for.
pub(super) fn by_node(pods: &[Arc<Pod>]) -> ByNode {
    let mut out = ByNode::new();
    for pod in pods.iter().filter(|p| !(pods::is_finished(p) && is_going(p))) {
        if let Some(node) = target(pod) {
            out.entry(node).or_default().push(pod.clone());
        }
    }
    out
}

/// What is needed so that every node has the pod that it should have, whichever revision that is of.
pub(super) fn manage(view: &View<'_>, pods: &ByNode) -> Plan {
    let mut plan = Plan::default();
    for node in view.nodes {
        let name = node.name_any();
        let there = pods.get(&name);
        match (place(view.pod, node), there) {
            (Place::Wanted, None) => plan.create.push(name),
            (Place::Wanted | Place::Tolerated, Some(there)) => prune(view, &name, there, &mut plan),
            (Place::Unwanted, Some(there)) => plan.delete.extend(there.iter().filter(|p| !is_going(p)).cloned()),
            (_, None) => {}
        }
    }
    // pods that wait for a node that is not there
    let known = |name: &str| view.nodes.iter().any(|n| n.metadata.name.as_deref() == Some(name));
    for (_, there) in pods.iter().filter(|(name, _)| !known(name)) {
        plan.delete.extend(there.iter().filter(|p| pods::node(p).is_none() && !is_going(p)).cloned());
    }
    plan
}

/// Of several pods on a node one stays (with surge one of each revision).
fn prune(view: &View<'_>, node: &str, there: &[Arc<Pod>], plan: &mut Plan) {
    let mut running = Vec::new();
    for pod in there.iter().filter(|p| !is_going(p)) {
        match pods::phase(pod) {
            "Failed" => plan.ended.push((node.to_owned(), pod.clone(), true)),
            "Succeeded" => plan.ended.push((node.to_owned(), pod.clone(), false)),
            _ => running.push(pod.clone()),
        }
    }
    if running.len() <= 1 {
        return;
    }
    by_age(&mut running);
    if !view.surges() {
        plan.delete.extend(running.into_iter().skip(1));
        return;
    }
    let (mut new, mut old): (Option<Arc<Pod>>, Option<Arc<Pod>>) = (None, None);
    for pod in running {
        let slot = if view.is_updated(&pod) { &mut new } else { &mut old };
        if slot.is_none() {
            *slot = Some(pod);
        } else {
            plan.delete.push(pod);
        }
    }
    if let (Some(new), Some(old)) = (new, old)
        && (!pods::is_ready(&old) || view.is_available(&new))
    {
        plan.delete.push(old);
    }
}

/// A pod of the present revision and one of an earlier.
type Versions<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

/// The one pod of each revision on a node; `None` when there are more.
fn versions<'a>(view: &View<'_>, there: &'a [Arc<Pod>]) -> Option<Versions<'a>> {
    let (mut new, mut old) = (None, None);
    for pod in there.iter().filter(|p| !is_going(p)) {
        let slot = if view.is_updated(pod) { &mut new } else { &mut old };
        if slot.replace(pod).is_some() {
            return None;
        }
    }
    Some((new, old))
}

/// What is needed to bring the pods to the present revision, within the limits of the update strategy.
pub(super) fn update(view: &View<'_>, pods: &ByNode) -> Plan {
    let wanted: Vec<String> =
        view.nodes.iter().filter(|n| place(view.pod, n) == Place::Wanted).map(|n| n.name_any()).collect();
    let (surge, unavailable) = view.limits(wanted.len());
    let mut all: BTreeMap<&str, &[Arc<Pod>]> = wanted.iter().map(|n| (n.as_str(), &[][..])).collect();
    all.extend(pods.iter().map(|(n, p)| (n.as_str(), p.as_slice())));
    if surge == 0 { replace(view, &all, unavailable) } else { add_and_remove(view, &all, &wanted, surge) }
}

/// Without surge: old pods go, and the next round makes new ones.
fn replace(view: &View<'_>, all: &BTreeMap<&str, &[Arc<Pod>]>, limit: usize) -> Plan {
    let mut missing = 0;
    let (mut useless, mut candidates) = (Vec::new(), Vec::new());
    for there in all.values() {
        match versions(view, there) {
            Some((Some(new), None)) if view.is_available(new) => {}
            Some((None, Some(old))) if view.is_available(old) => candidates.push(old.clone()),
            Some((None, Some(old))) => {
                useless.push(old.clone());
                missing += 1;
            }
            _ => missing += 1,
        }
    }
    let delete = useless.into_iter().chain(candidates.into_iter().take(limit.saturating_sub(missing))).collect();
    Plan { delete, ..Plan::default() }
}

/// With surge: new pods come beside old ones, which go when the new ones are available.
fn add_and_remove(view: &View<'_>, all: &BTreeMap<&str, &[Arc<Pod>]>, wanted: &[String], limit: usize) -> Plan {
    let mut plan = Plan::default();
    let (mut surging, mut available) = (0, 0);
    let (mut candidates, mut leaving) = (Vec::new(), Vec::new());
    for (node, there) in all {
        let Some((new, old)) = versions(view, there) else {
            surging += 1;
            continue;
        };
        available += usize::from(old.or(new).is_some_and(|p| view.is_available(p)));
        let stays = wanted.iter().any(|w| w == node);
        match (new, old) {
            (_, None) => {}
            (None, Some(old)) if view.is_available(old) => {
                if stays {
                    candidates.push((*node).to_owned())
                } else {
                    leaving.push(old.clone())
                }
            }
            (None, Some(old)) => {
                if stays {
                    plan.create.push((*node).to_owned())
                } else {
                    plan.delete.push(old.clone())
                }
            }
            (Some(new), Some(old)) if view.is_available(new) => plan.delete.push(old.clone()),
            (Some(_), Some(_)) => surging += 1,
        }
    }
    plan.create.extend(candidates.into_iter().take(limit.saturating_sub(surging)));
    // pods on nodes that should have none any more go when there are enough elsewhere
    plan.delete.extend(leaving.into_iter().take(available.saturating_sub(wanted.len())));
    plan
}

/// The numbers of the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) desired: usize,
    pub(super) current: usize,
    pub(super) misplaced: usize,
    pub(super) ready: usize,
    pub(super) available: usize,
    pub(super) updated: usize,
}

/// Counts, and says when the next pod becomes available.
pub(super) fn counts(view: &View<'_>, pods: &ByNode) -> (Counts, Option<Duration>) {
    let mut c = Counts::default();
    let mut next: Option<Duration> = None;
    for node in view.nodes {
        let mut there = pods.get(&node.name_any()).cloned().unwrap_or_default();
        by_age(&mut there);
        if place(view.pod, node) != Place::Wanted {
            c.misplaced += usize::from(!there.is_empty());
            continue;
        }
        c.desired += 1;
        let Some(pod) = there.first() else { continue };
        c.current += 1;
        c.updated += usize::from(view.is_updated(pod));
        if let Some(wait) = pods::available_in(pod, view.min_ready(), view.now) {
            c.ready += 1;
            if wait.is_zero() {
                c.available += 1;
            } else {
                next = Some(next.map_or(wait, |n| n.min(wait)));
            }
        }
    }
    (c, next)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_000_000;

    fn set(rolling: Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "ds", "uid": "u"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "updateStrategy": rolling,
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [], "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"key": "mine", "operator": "Exists"}]}}}}))
        .unwrap()
    }

    fn node(name: &str, disk: &str, taints: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name, "labels": {"disk": disk}}, "spec": {"taints": taints}}),
            )
            .unwrap(),
        )
    }

    fn nodes(names: &[&str]) -> Vec<Arc<Node>> {
        names.iter().map(|n| node(n, "ssd", json!([]))).collect()
    }

    /// `n1 old ready`: node, revision, condition, and whether it is being deleted.
    fn pods(texts: &[&str]) -> ByNode {
        let made = texts.iter().enumerate().map(|(i, text)| {
            let words: Vec<&str> = text.split(' ').collect();
            let (phase, ready) = match words[2] {
                "ready" => ("Running", "True"),
                "running" => ("Running", "False"),
                "failed" => ("Failed", "False"),
                "done" => ("Succeeded", "False"),
                "waiting" => ("Pending", "False"),
                other => panic!("{other}"),
            };
            let at = if words.contains(&"going") { json!("2026-01-01T00:00:00Z") } else { Value::Null };
            let time = |n| Timestamp::from_second(n).unwrap();
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": text.replace(' ', "-"), "uid": i.to_string(),
                    "deletionTimestamp": at, "creationTimestamp": time(i64::try_from(i).unwrap()),
                    "labels": {"controller-revision-hash": words[1]}}, "spec": {"containers": []},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": time(NOW - 5)}]}}))
            .unwrap();
            let mut pod = bound(&pod, words[0]);
            if words[2] != "waiting" {
                pod.spec.as_mut().unwrap().node_name = Some(words[0].into());
            }
            Arc::new(pod)
        });
        by_node(&made.collect::<Vec<_>>())
    }

    fn with<R>(set: &DaemonSet, nodes: &[Arc<Node>], f: impl FnOnce(&View<'_>) -> R) -> R {
        let pod = pod(set, "new").unwrap();
        f(&View { set, hash: "new", nodes, pod: &pod, now: Timestamp::from_second(NOW).unwrap() })
    }

    fn told(plan: &Plan) -> Vec<String> {
        let mut out: Vec<String> = plan.create.iter().map(|n| format!("+{n}")).collect();
        out.extend(plan.delete.iter().map(|p| format!("-{}", p.name_any())));
        out.extend(plan.ended.iter().map(|(_, p, _)| format!("!{}", p.name_any())));
        out
    }

    #[test]
    fn which_nodes() {
        let s = set(Value::Null);
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        for (n, want) in [
            (node("a", "ssd", json!([])), Place::Wanted),
            (node("a", "hdd", json!([])), Place::Unwanted),
            (node("a", "ssd", taint("mine", "NoExecute")), Place::Wanted),
            (node("a", "ssd", taint("other", "NoSchedule")), Place::Tolerated),
            (node("a", "ssd", taint("other", "NoExecute")), Place::Unwanted),
            (node("a", "ssd", taint("other", "PreferNoSchedule")), Place::Wanted),
            (node("a", "ssd", taint("node.kubernetes.io/unreachable", "NoExecute")), Place::Wanted),
            (node("a", "ssd", taint("node.kubernetes.io/unschedulable", "NoSchedule")), Place::Wanted),
            (node("a", "ssd", taint("node.kubernetes.io/not-ready", "NoSchedule")), Place::Tolerated),
            (node("a", "ssd", taint("node.kubernetes.io/network-unavailable", "NoSchedule")), Place::Tolerated),
        ] {
            assert_eq!(place(&pod(&s, "h").unwrap(), &n), want, "{:?}", n.spec);
        }
        let p = bound(&pod(&s, "h").unwrap(), "a");
        assert_eq!(target(&p).as_deref(), Some("a"));
        assert!(node_allowed(&p, &node("a", "ssd", json!([]))) && !node_allowed(&p, &node("b", "ssd", json!([]))));
    }

    #[test]
    fn every_node_gets_one() {
        let s = set(Value::Null);
        let mut three = nodes(&["n1", "n2"]);
        three.push(node("n3", "hdd", json!([])));
        for (there, want) in [
            (&[][..], vec!["+n1", "+n2"]),
            (&["n1 new ready", "n2 old waiting"], vec![]),
            (&["n1 new ready going"], vec!["+n2"]),
            (&["n1 new ready", "n2 new ready", "n3 new ready"], vec!["-n3-new-ready"]),
            (&["n1 old ready", "n1 new ready", "n2 new ready"], vec!["-n1-new-ready"]),
            (&["n1 new failed", "n2 new done"], vec!["!n1-new-failed", "!n2-new-done"]),
            (&["n1 new failed going", "n2 new ready"], vec!["+n1"]),
            (&["n1 new ready", "n2 new ready", "gone new waiting", "lost new ready"], vec!["-gone-new-waiting"]),
        ] {
            assert_eq!(with(&s, &three, |v| told(&manage(v, &pods(there)))), want, "{there:?}");
        }
    }

    #[test]
    fn updates_replace_within_their_limit() {
        let four = nodes(&["n1", "n2", "n3", "n4"]);
        let rolling = |r: Value| set(json!({"type": "RollingUpdate", "rollingUpdate": r}));
        let old = ["n1 old ready", "n2 old ready", "n3 old ready", "n4 old ready"];
        for (strategy, there, want) in [
            (json!({"maxUnavailable": 1}), &old[..], vec!["-n1-old-ready"]),
            (json!({"maxUnavailable": "50%"}), &old[..], vec!["-n1-old-ready", "-n2-old-ready"]),
            (json!({"maxUnavailable": "1%"}), &old[..], vec!["-n1-old-ready"]),
            (json!({"maxUnavailable": 0}), &old[..], vec!["-n1-old-ready"]),
            (
                json!({"maxUnavailable": 1}),
                &["n1 new running", "n2 old ready", "n3 old ready", "n4 old ready"][..],
                vec![],
            ),
            (json!({"maxUnavailable": 1}), &["n2 old ready", "n3 old ready", "n4 old ready"][..], vec![]),
            (
                json!({"maxUnavailable": 1}),
                &["n1 new ready", "n2 old ready", "n3 old running", "n4 old ready"][..],
                vec!["-n3-old-running"],
            ),
            (
                json!({"maxUnavailable": 1}),
                &["n1 new ready", "n2 new ready", "n3 new ready", "n4 new ready"][..],
                vec![],
            ),
        ] {
            let s = rolling(strategy.clone());
            assert_eq!(with(&s, &four, |v| told(&update(v, &pods(there)))), want, "{strategy} {there:?}");
        }
    }

    #[test]
    fn surge_adds_before_it_removes() {
        let mut nodes = nodes(&["n1", "n2", "n3"]);
        let s = set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}));
        for (there, want) in [
            (&["n1 old ready", "n2 old ready", "n3 old ready"][..], vec!["+n1"]),
            (&["n1 old ready", "n1 new running", "n2 old ready", "n3 old ready"], vec![]),
            (&["n1 old ready", "n1 new ready", "n2 old ready", "n3 old ready"], vec!["+n2", "-n1-old-ready"]),
            (&["n1 old running", "n2 old ready", "n3 new ready"], vec!["+n1", "+n2"]),
        ] {
            assert_eq!(with(&s, &nodes, |v| told(&update(v, &pods(there)))), want, "{there:?}");
        }
        assert!(
            with(&s, &nodes, |v| told(&manage(
                v,
                &pods(&["n1 old ready", "n1 new running", "n2 new ready", "n3 new ready"])
            )))
            .is_empty()
        );
        nodes[0] = node("n1", "hdd", json!([]));
        let there = ["n1 old ready", "n2 new ready", "n3 new running"];
        assert!(
            with(&s, &nodes, |v| told(&update(v, &pods(&there)))).is_empty(),
            "not before there are enough elsewhere"
        );
        let there = ["n1 old ready", "n2 new ready", "n3 new ready"];
        assert_eq!(with(&s, &nodes, |v| told(&update(v, &pods(&there)))), ["-n1-old-ready"]);
    }

    #[test]
    fn what_the_status_counts() {
        let mut s = set(Value::Null);
        s.spec.as_mut().unwrap().min_ready_seconds = Some(8);
        let mut all = nodes(&["n1", "n2", "n3"]);
        all.push(node("n4", "hdd", json!([])));
        let there = pods(&["n1 new ready", "n2 old running", "n4 new ready"]);
        let (c, next) = with(&s, &all, |v| counts(v, &there));
        assert_eq!(c, Counts { desired: 3, current: 2, misplaced: 1, ready: 1, available: 0, updated: 1 });
        assert_eq!(next, Some(Duration::from_secs(3)));
    }
}
