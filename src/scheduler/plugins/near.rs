//! InterPodAffinity: pods that must or would rather be near other pods, or away from them. It goes both ways: what the pod wishes of others, and
//! what they wish of it.

use super::{MAX_SCORE, Plugin, Refusal};
use crate::cluster::{Cluster, Domains, Group, NOWHERE, NodeId};
use crate::pod::Pending;
use crate::terms::{Labels, Term};
use std::sync::Arc;

/// Domains of a topology key, with those of them that are meant.
struct Marked {
    domains: Arc<Domains>,
    marks: Vec<bool>,
}

impl Marked {
    fn new(cluster: &Cluster, key: &str) -> Self {
        let domains = cluster.domains(key);
        Self { marks: vec![false; domains.count], domains }
    }

    fn mark(&mut self, group: &Group) {
        for node in group.places.keys() {
            if let Some(mark) = self.marks.get_mut(self.domains.of[*node] as usize) {
                *mark = true;
            }
        }
    }

    /// Whether the node's domain is marked; `None`: it has none.
    fn at(&self, node: NodeId) -> Option<bool> {
        self.marks.get(self.domains.of[node] as usize).copied()
    }
}

/// What is required about a pod and its neighbours.
#[derive(Default)]
pub(crate) struct Required {
    near: Vec<Marked>,
    /// Nobody is there to be near to, but the pod would do for itself: the first of its kind may go anywhere.
    is_first: bool,
    apart: Vec<Marked>,
    /// Domains of pods that do not want this one.
    unwanted: Vec<Marked>,
}

impl Required {
    pub(crate) fn new(pod: &Pending, cluster: &Cluster, namespace_labels: &dyn Fn(&str) -> Labels) -> Self {
        let mut out = Self::default();
        for (group, terms) in cluster.groups().with_terms() {
            for term in terms.apart.iter().filter(|t| t.is_about(&pod.info, namespace_labels)) {
                let mut marked = Marked::new(cluster, &term.topology_key);
                marked.mark(group);
                out.unwanted.push(marked);
            }
        }
        let Some(terms) = &pod.info.terms else { return out };
        for term in &terms.apart {
            let mut marked = Marked::new(cluster, &term.topology_key);
            term.groups(cluster, namespace_labels).for_each(|g| marked.mark(g));
            out.apart.push(marked);
        }
        let Some((first, others)) = terms.near.split_first() else { return out };
        out.near = terms.near.iter().map(|t| Marked::new(cluster, &t.topology_key)).collect();
        let of_all = |g: &&Group| others.iter().all(|t| t.matches(&g.look.namespace, namespace_labels, &g.look.labels));
        for group in first.groups(cluster, namespace_labels).filter(of_all) {
            out.near.iter_mut().for_each(|marked| marked.mark(group));
        }
        out.is_first = out.near.iter().all(|marked| !marked.marks.contains(&true))
            && terms.near.iter().all(|t| t.is_about(&pod.info, namespace_labels));
        out
    }

    /// Whether other pods have any say.
    pub(crate) fn is_empty(&self) -> bool {
        self.near.is_empty() && self.apart.is_empty() && self.unwanted.is_empty()
    }

    /// Plugin InterPodAffinity.
    ///
    /// # Errors
    /// Which wish the node would not fulfil.
    pub(crate) fn check(&self, node: NodeId) -> Result<(), Refusal> {
        let near = |m: &Marked| m.at(node).is_some_and(|marked| marked || self.is_first);
        if !self.near.iter().all(near) {
            return Err(Refusal::lasting(Plugin::InterPodAffinity, "node(s) didn't match pod affinity rules"));
        }
        if self.apart.iter().any(|m| m.at(node) == Some(true)) {
            return Err(Refusal::open(Plugin::InterPodAffinity, "node(s) didn't match pod anti-affinity rules"));
        }
        if self.unwanted.iter().any(|m| m.at(node) == Some(true)) {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(Refusal::open(Plugin::InterPodAffinity, reason));
        }
        Ok(())
    }
}

/// Points of the domains of one topology key.
struct Points {
    key: String,
    domains: Arc<Domains>,
    points: Vec<i64>,
}

/// Points of all topology keys.
struct Board<'a> {
    cluster: &'a Cluster,
    keys: Vec<Points>,
}

impl Board<'_> {
    fn add(&mut self, term: &Term, group: &Group, weight: i64) {
        if weight == 0 {
            return;
        }
        let at = self.keys.iter().position(|k| k.key == term.topology_key).unwrap_or_else(|| {
            let domains = self.cluster.domains(&term.topology_key);
            self.keys.push(Points { key: term.topology_key.clone(), points: vec![0; domains.count], domains });
            self.keys.len() - 1
        });
        let Points { domains, points, .. } = &mut self.keys[at];
        for (node, count) in &group.places {
            if let Some(point) = points.get_mut(domains.of[*node] as usize) {
                *point += weight * i64::from(count.all);
            }
        }
    }
}

/// What the configuration says about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Settings {
    /// How much it counts that another pod is required to be near pods like this one.
    pub(crate) hard_weight: i64,
    /// Only what the pod itself prefers counts.
    pub(crate) only_own: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { hard_weight: 1, only_own: false }
    }
}

/// The scores of nodes; `None`: nobody has a preference.
pub(crate) fn scores(
    pod: &Pending,
    cluster: &Cluster,
    namespace_labels: &dyn Fn(&str) -> Labels,
    settings: Settings,
    nodes: &[NodeId],
) -> Option<Vec<i64>> {
    let mut board = Board { cluster, keys: Vec::new() };
    if let Some(own) = &pod.info.terms {
        for (terms, sign) in [(&own.rather_near, 1), (&own.rather_apart, -1)] {
            for term in terms {
                term.groups(cluster, namespace_labels).for_each(|g| board.add(term, g, sign * term.weight));
            }
        }
    }
    for (group, theirs) in cluster.groups().with_terms() {
        if settings.only_own && pod.info.terms.as_ref().is_none_or(|t| t.all().next().is_none()) {
            break;
        }
        let required = theirs.near.iter().map(|t| (t, settings.hard_weight));
        let near = theirs.rather_near.iter().map(|t| (t, t.weight));
        let apart = theirs.rather_apart.iter().map(|t| (t, -t.weight));
        for (term, weight) in required.chain(near).chain(apart) {
            if term.is_about(&pod.info, namespace_labels) {
                board.add(term, group, weight);
            }
        }
    }
    if board.keys.is_empty() {
        return None;
    }
    let of = |node: &NodeId| {
        let at = |k: &Points| match k.domains.of[*node] {
            NOWHERE => 0,
            domain => k.points[domain as usize],
        };
        board.keys.iter().map(at).sum::<i64>()
    };
    let raw: Vec<i64> = nodes.iter().map(of).collect();
    let low = raw.iter().min().copied().unwrap_or(0).min(0);
    let high = raw.iter().max().copied().unwrap_or(0).max(0);
    let stretched = |s: i64| if high == low { 0 } else { MAX_SCORE * (s - low) / (high - low) };
    Some(raw.into_iter().map(stretched).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::{cluster, pending_pod};
    use serde_json::{Value, json};

    fn zones() -> Cluster {
        let node = |name: &str, zone: &str| json!({"metadata": {"name": name, "labels": {"zone": zone, "host": name}}});
        cluster(&[node("a1", "a"), node("a2", "a"), node("b1", "b"), json!({"metadata": {"name": "bare"}})])
    }

    fn labelled(name: &str, app: &str, affinity: Value) -> Pending {
        let mut pod = (*pending_pod(name, json!({"affinity": affinity})).pod).clone();
        pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        Pending::new(Arc::new(pod))
    }

    fn term(app: &str, key: &str) -> Value {
        json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}})
    }

    fn required(kind: &str, app: &str, key: &str) -> Value {
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term(app, key)]}})
    }

    fn nobody(_: &str) -> Labels {
        Labels::new()
    }

    fn possible(c: &Cluster, pod: &Pending) -> Vec<String> {
        let required = Required::new(pod, c, &nobody);
        let fits = |id: &NodeId| required.check(*id).is_ok();
        c.nodes().map(|(id, ..)| id).filter(fits).map(|id| c.node(id).name.to_string()).collect()
    }

    fn place(c: &mut Cluster, pod: &Pending, node: &str) {
        let id = c.id(node).unwrap();
        c.assume(pod.info.clone(), id);
    }

    #[test]
    fn near_means_in_the_same_domain() {
        let mut c = zones();
        let pod = labelled("p", "web", required("podAffinity", "db", "zone"));
        assert!(possible(&c, &pod).is_empty(), "there is none to be near to");
        place(&mut c, &labelled("db", "db", json!({})), "a1");
        assert_eq!(possible(&c, &pod), ["a1", "a2"]);
    }

    #[test]
    fn the_first_of_a_kind_may_go_anywhere_that_has_the_label() {
        let mut c = zones();
        let pod = labelled("p", "web", required("podAffinity", "web", "zone"));
        assert_eq!(possible(&c, &pod), ["a1", "a2", "b1"]);
        place(&mut c, &pod, "b1");
        assert_eq!(possible(&c, &labelled("q", "web", required("podAffinity", "web", "zone"))), ["b1"]);
    }

    #[test]
    fn apart_goes_both_ways() {
        let mut c = zones();
        let shy = labelled("p", "web", required("podAntiAffinity", "noise", "zone"));
        place(&mut c, &labelled("n", "noise", json!({})), "b1");
        assert_eq!(possible(&c, &shy), ["a1", "a2", "bare"]);
        place(&mut c, &shy, "a1");
        let noise = labelled("m", "noise", json!({}));
        assert_eq!(possible(&c, &noise), ["b1", "bare"]);
        let refused = Required::new(&noise, &c, &nobody).check(c.id("a2").unwrap()).unwrap_err();
        assert_eq!(refused.reasons, ["node(s) didn't satisfy existing pods anti-affinity rules"]);
    }

    #[test]
    fn a_pod_counts_as_near_only_when_it_matches_all_terms() {
        let mut c = zones();
        let both = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [term("db", "zone"), {"topologyKey": "host", "labelSelector": {"matchLabels": {"tier": "x"}}}]}});
        place(&mut c, &labelled("db", "db", json!({})), "a1");
        assert!(possible(&c, &labelled("p", "web", both)).is_empty());
    }

    #[test]
    fn preferences_add_up() {
        let mut c = zones();
        place(&mut c, &labelled("db", "db", json!({})), "a1");
        place(&mut c, &labelled("noise", "noise", json!({})), "b1");
        let preferred = |app: &str| json!([{"weight": 10, "podAffinityTerm": term(app, "zone")}]);
        let pod = labelled(
            "p",
            "web",
            json!({
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred("db")},
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred("noise")}}),
        );
        let nodes: Vec<NodeId> = ["a1", "a2", "b1", "bare"].iter().map(|n| c.id(n).unwrap()).collect();
        let of = |pod: &Pending| scores(pod, &c, &nobody, Settings::default(), &nodes);
        assert_eq!(of(&pod), Some(vec![100, 100, 0, 50]));
        assert_eq!(of(&labelled("q", "web", json!({}))), None);
    }

    #[test]
    fn others_prefer_too() {
        let mut c = zones();
        place(&mut c, &labelled("fan", "fan", required("podAffinity", "star", "zone")), "b1");
        let nodes: Vec<NodeId> = ["a1", "b1"].iter().map(|n| c.id(n).unwrap()).collect();
        let star = labelled("s", "star", json!({}));
        assert_eq!(scores(&star, &c, &nobody, Settings::default(), &nodes), Some(vec![0, 100]));
        let only_own = Settings { only_own: true, ..Settings::default() };
        assert_eq!(scores(&star, &c, &nobody, only_own, &nodes), None);
    }
}
