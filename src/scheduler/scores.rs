//! Which of the possible nodes is best: each view gives 0 to 100, and the weighted sum decides.

use crate::affinity::PodTerm;
use crate::filters::Context;
use crate::nodes::NodeState;
use crate::requests;
use edge_client::placement::{term_matches, untolerated};
use std::collections::HashMap;

const MAX: i64 = 100;

/// The best node; of equals the one with fewer pods, then the first by name.
pub(crate) fn best<'a>(c: &Context<'_>, feasible: &[&'a NodeState]) -> Option<&'a NodeState> {
    if let [only] = feasible {
        return Some(only);
    }
    let raw = |f: &dyn Fn(&NodeState) -> i64| feasible.iter().map(|n| f(n)).collect::<Vec<i64>>();
    let near = nearness(c, feasible);
    let views = [
        (3, inverted(raw(&|n| taints(c, n)))),
        (2, normalized(raw(&|n| preferred_nodes(c, n)))),
        (1, raw(&|n| least_allocated(c, n))),
        (1, raw(&|n| balanced(c, n))),
        (1, raw(&|n| images(c, n))),
        (2, normalized(near)),
        (2, inverted(raw(&|n| kin(c, n)))),
    ];
    let total =
        |i: usize| views.iter().map(|(weight, scores)| weight * scores.get(i).copied().unwrap_or(0)).sum::<i64>();
    (0..feasible.len())
        .max_by_key(|i| (total(*i), std::cmp::Reverse(feasible[*i].pods.len()), std::cmp::Reverse(&feasible[*i].name)))
        .map(|i| feasible[i])
}

/// Stretched to 0..100.
fn normalized(scores: Vec<i64>) -> Vec<i64> {
    let (low, high) = (scores.iter().min().copied().unwrap_or(0), scores.iter().max().copied().unwrap_or(0));
    if low == high {
        return vec![0; scores.len()];
    }
    scores.into_iter().map(|s| (s - low) * MAX / (high - low)).collect()
}

/// Stretched to 0..100, the lowest being the best.
fn inverted(scores: Vec<i64>) -> Vec<i64> {
    normalized(scores.into_iter().map(|s| -s).collect())
}

fn taints(c: &Context<'_>, n: &NodeState) -> i64 {
    n.node.as_deref().map_or(0, |node| untolerated(c.pod, node, &["PreferNoSchedule"]).len() as i64)
}

fn preferred_nodes(c: &Context<'_>, n: &NodeState) -> i64 {
    let affinity = c.pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let terms =
        affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default();
    let Some(node) = n.node.as_deref() else { return 0 };
    terms.iter().filter(|t| term_matches(&t.preference, node)).map(|t| i64::from(t.weight)).sum()
}

/// `(CPU, memory)` used after the pod, as fractions of what the node has.
fn used(c: &Context<'_>, n: &NodeState) -> (f64, f64) {
    let (cpu, memory) = requests::for_scoring(c.pod);
    let of = |load: i64, more: i64, name: &str| {
        let all = n.allocatable.get(name).copied().unwrap_or(0);
        if all <= 0 { 1.0 } else { ((load + more) as f64 / all as f64).clamp(0.0, 1.0) }
    };
    (of(n.load.0, cpu, "cpu"), of(n.load.1, memory, "memory"))
}

fn least_allocated(c: &Context<'_>, n: &NodeState) -> i64 {
    let (cpu, memory) = used(c, n);
    ((2.0 - cpu - memory) * 50.0) as i64
}

fn balanced(c: &Context<'_>, n: &NodeState) -> i64 {
    let (cpu, memory) = used(c, n);
    ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64
}

/// Nodes that have the pod's images already need not pull them.
fn images(c: &Context<'_>, n: &NodeState) -> i64 {
    const SMALL: i64 = 23 << 20;
    const LARGE: i64 = 1000 << 20;
    let containers = c.pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
    let present: i64 = containers.iter().filter_map(|k| n.images.get(k.image.as_deref()?)).sum();
    let large = LARGE * (containers.len() as i64).max(1);
    (present.clamp(SMALL, large) - SMALL) * MAX / (large - SMALL)
}

/// Preferred affinity and anti-affinity to other pods.
fn nearness(c: &Context<'_>, feasible: &[&NodeState]) -> Vec<i64> {
    let affinity = c.pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let near = affinity
        .and_then(|a| a.pod_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let far = affinity
        .and_then(|a| a.pod_anti_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let terms: Vec<(i64, PodTerm)> = near
        .unwrap_or_default()
        .iter()
        .map(|t| (i64::from(t.weight), PodTerm::new(&t.pod_affinity_term, c.pod)))
        .chain(
            far.unwrap_or_default().iter().map(|t| (-i64::from(t.weight), PodTerm::new(&t.pod_affinity_term, c.pod))),
        )
        .collect();
    if terms.is_empty() {
        return vec![0; feasible.len()];
    }
    let labels = |ns: &str| c.namespace_labels(ns);
    let mut domains: HashMap<(String, String), i64> = HashMap::new();
    for (state, pod) in c.cluster.pods() {
        for (weight, term) in &terms {
            let node_labels = state.node.as_deref().and_then(|n| n.metadata.labels.as_ref());
            if let Some(domain) = node_labels.and_then(|l| l.get(&term.topology_key))
                && term.matches(pod, &labels)
            {
                *domains.entry((term.topology_key.clone(), domain.clone())).or_default() += weight;
            }
        }
    }
    let of = |n: &&NodeState| {
        let labels = n.node.as_deref().and_then(|n| n.metadata.labels.as_ref());
        let weight =
            |(key, domain): (&String, &String)| domains.get(&(key.clone(), domain.clone())).copied().unwrap_or(0);
        labels.into_iter().flatten().map(weight).sum()
    };
    feasible.iter().map(of).collect()
}

/// Pods of the same owner on the node: replicas spread over nodes when nobody says otherwise.
fn kin(c: &Context<'_>, n: &NodeState) -> i64 {
    let owner = |p: &k8s_openapi::api::core::v1::Pod| {
        p.metadata.owner_references.iter().flatten().find(|r| r.controller == Some(true)).map(|r| r.uid.clone())
    };
    match owner(c.pod) {
        Some(uid) => n.pods.values().filter(|p| owner(p).as_ref() == Some(&uid)).count() as i64,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretching() {
        assert_eq!(normalized(vec![1, 3, 2]), [0, 100, 50]);
        assert_eq!(inverted(vec![1, 3, 2]), [100, 0, 50]);
        assert_eq!(normalized(vec![5, 5]), [0, 0]);
    }
}
