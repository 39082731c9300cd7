//! NodeResourcesFit and NodeResourcesBalancedAllocation: whether a node has room, and where the pod makes best use of it.

use super::{MAX_SCORE, Plugin, Refusal};
use crate::cluster::NodeState;
use crate::pod::{Pending, PodInfo};
use crate::requests::Amounts;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// How nodes are compared by what is free on them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Strategy {
    /// Emptier nodes are better.
    LeastAllocated,
    /// Fuller nodes are better.
    MostAllocated,
    /// Points of a function from utilization (0 to 100) to score (0 to 100).
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// What the configuration says about resources.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) strategy: Strategy,
    /// Resources with their weights.
    pub(crate) weights: Vec<(String, i64)>,
    /// Resources whose use is to be balanced.
    pub(crate) balanced: Vec<String>,
    /// Extended resources that are not asked for here.
    pub(crate) ignored: Vec<String>,
    /// Groups (what is before the slash of the name) of such.
    pub(crate) ignored_groups: Vec<String>,
    /// Extended resources that classes of devices stand for: a node need not have them itself.
    pub(crate) of_classes: BTreeSet<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            strategy: Strategy::LeastAllocated,
            weights: vec![("cpu".into(), 1), ("memory".into(), 1)],
            balanced: vec!["cpu".into(), "memory".into()],
            ignored: Vec::new(),
            ignored_groups: Vec::new(),
            of_classes: BTreeSet::new(),
        }
    }
}

impl Settings {
    fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|n| n == name)
            || name.split_once('/').is_some_and(|(group, _)| self.ignored_groups.iter().any(|g| g == group))
    }
}

/// What a node is short of, by the reasons' wording.
fn shortages(info: &PodInfo, state: &NodeState, settings: &Settings, used: &Amounts) -> Vec<Cow<'static, str>> {
    let (need, has) = (&info.requests, &state.allocatable);
    let mut out = Vec::new();
    let short = |need: i64, has: i64, used: i64| need > 0 && need > has - used;
    if short(need.cpu, has.cpu, used.cpu) {
        out.push("Insufficient cpu".into());
    }
    if short(need.memory, has.memory, used.memory) {
        out.push("Insufficient memory".into());
    }
    if short(need.ephemeral_storage, has.ephemeral_storage, used.ephemeral_storage) {
        out.push("Insufficient ephemeral-storage".into());
    }
    for (name, n) in &need.others {
        let is_device = has.get(name) == 0 && settings.of_classes.contains(&**name);
        if short(*n, has.get(name), used.get(name)) && !is_device && !settings.ignores(name) {
            out.push(format!("Insufficient {name}").into());
        }
    }
    out
}

/// Plugin NodeResourcesFit.
///
/// # Errors
/// What the node is short of.
pub(crate) fn fit(pod: &Pending, state: &NodeState, settings: &Settings) -> Result<(), Refusal> {
    let mut reasons = shortages(&pod.info, state, settings, &state.requested);
    if state.pods.len() as i64 >= state.allowed_pods {
        reasons.insert(0, "Too many pods".into());
    }
    if reasons.is_empty() {
        return Ok(());
    }
    // even the empty node would not do
    let is_final = !shortages(&pod.info, state, settings, &Amounts::default()).is_empty();
    Err(Refusal { plugin: Plugin::NodeResourcesFit, reasons, is_final })
}

/// Whether the pod would fit if nothing else was on the node.
pub(crate) fn fits_empty(pod: &Pending, state: &NodeState, settings: &Settings) -> bool {
    state.allowed_pods > 0 && shortages(&pod.info, state, settings, &Amounts::default()).is_empty()
}

/// What would be asked of a resource of the node after the pod, and what there is.
fn demand(pod: &Pending, state: &NodeState, name: &str, counted: bool) -> (i64, i64) {
    let asked = match name {
        "cpu" if counted => state.load.0 + pod.info.load.0,
        "memory" if counted => state.load.1 + pod.info.load.1,
        other => state.requested.get(other) + pod.info.requests.get(other),
    };
    (asked, state.allocatable.get(name))
}

/// Whether a resource is one of those that only count when they are asked for.
fn is_scalar(name: &str) -> bool {
    !matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

/// The score of a node by what is free on it.
pub(crate) fn fit_score(pod: &Pending, state: &NodeState, settings: &Settings) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (name, weight) in &settings.weights {
        if is_scalar(name) && pod.info.requests.get(name) == 0 {
            continue;
        }
        let (asked, has) = demand(pod, state, name, true);
        if has == 0 {
            continue;
        }
        let score = match &settings.strategy {
            Strategy::LeastAllocated if asked > has => 0,
            Strategy::LeastAllocated => part(has - asked, has),
            Strategy::MostAllocated => part(asked.min(has), has),
            Strategy::RequestedToCapacityRatio(shape) => {
                let utilization = if asked > has { 100 } else { part(asked, has) };
                let score = on_shape(shape, utilization);
                if score == 0 {
                    continue;
                }
                score
            }
        };
        sum += score * weight;
        weights += weight;
    }
    if weights == 0 { 0 } else { sum / weights }
}

/// A hundred times `n / of`.
fn part(n: i64, of: i64) -> i64 {
    (i128::from(n) * i128::from(MAX_SCORE) / i128::from(of.max(1))) as i64
}

/// The value of a function given by points, at `x`.
fn on_shape(shape: &[(i64, i64)], x: i64) -> i64 {
    let Some(at) = shape.iter().position(|(u, _)| x <= *u) else { return shape.last().map_or(0, |(_, s)| *s) };
    let (u, s) = shape[at];
    let Some((before, low)) = at.checked_sub(1).map(|i| shape[i]) else { return s };
    low + (s - low) * (x - before) / (u - before).max(1)
}

/// Whether a pod asks for something whose use can be balanced.
pub(crate) fn can_balance(pod: &Pending, settings: &Settings) -> bool {
    settings.balanced.iter().any(|name| pod.info.requests.get(name) > 0)
}

/// The score of a node by how evenly its resources would be used.
pub(crate) fn balance_score(pod: &Pending, state: &NodeState, settings: &Settings) -> i64 {
    let of = |name: &String| {
        if is_scalar(name) && pod.info.requests.get(name) == 0 {
            return None;
        }
        let (asked, has) = demand(pod, state, name, false);
        (has > 0).then(|| (asked as f64 / has as f64).min(1.0))
    };
    let deviation = match settings.balanced.as_slice() {
        // the common case, without a list
        [a, b] => of(a).zip(of(b)).map_or(0.0, |(a, b)| ((a - b) / 2.0).abs()),
        many => {
            let used: Vec<f64> = many.iter().filter_map(of).collect();
            let mean = used.iter().sum::<f64>() / used.len().max(1) as f64;
            (used.iter().map(|u| (u - mean).powi(2)).sum::<f64>() / used.len().max(1) as f64).sqrt()
        }
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::{cluster, pending, pending_pod};
    use serde_json::json;

    fn asking(requests: serde_json::Value) -> Pending {
        pending(json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}))
    }

    fn node(allocatable: serde_json::Value) -> serde_json::Value {
        json!({"metadata": {"name": "n"}, "status": {"allocatable": allocatable}})
    }

    #[test]
    fn shortages_are_named_and_some_are_final() {
        let mut c = cluster(&[node(json!({"cpu": "2", "memory": "2Gi", "pods": "2", "x/gpu": "1"}))]);
        let id = c.id("n").unwrap();
        let other =
            pending_pod("other", json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}));
        c.assume(other.info, id);
        let settings = Settings { ignored_groups: vec!["ignored".into()], ..Settings::default() };
        let refused = |requests| fit(&asking(requests), c.node(id), &settings).err().map(|r| (r.reasons, r.is_final));
        assert_eq!(refused(json!({"cpu": "1", "ignored/x": "1"})), None);
        assert_eq!(refused(json!({"cpu": "1500m"})), Some((vec!["Insufficient cpu".into()], false)));
        let many = refused(json!({"cpu": "3", "memory": "3Gi", "x/gpu": "2"})).unwrap();
        assert_eq!(
            many,
            (vec!["Insufficient cpu".into(), "Insufficient memory".into(), "Insufficient x/gpu".into()], true)
        );
        c.assume(pending_pod("third", json!({})).info, id);
        assert_eq!(fit(&asking(json!({})), c.node(id), &settings).unwrap_err().reasons, ["Too many pods"]);
    }

    #[test]
    fn strategies() {
        let c = cluster(&[node(json!({"cpu": "4", "memory": "1000Mi", "pods": "2"}))]);
        let (_, state, _) = c.nodes().next().unwrap();
        let pod = asking(json!({"cpu": "1", "memory": "500Mi"}));
        let of = |strategy| fit_score(&pod, state, &Settings { strategy, ..Settings::default() });
        assert_eq!(of(Strategy::LeastAllocated), (75 + 50) / 2);
        assert_eq!(of(Strategy::MostAllocated), (25 + 50) / 2);
        assert_eq!(of(Strategy::RequestedToCapacityRatio(vec![(0, 0), (100, 100)])), (25 + 50) / 2);
        assert_eq!(balance_score(&pod, state, &Settings::default()), 87);
        assert!(can_balance(&pod, &Settings::default()) && !can_balance(&asking(json!({})), &Settings::default()));
    }

    #[test]
    fn shapes_are_straight_between_their_points() {
        let shape = [(0, 0), (50, 100), (100, 20)];
        for (x, want) in [(0, 0), (25, 50), (50, 100), (75, 60), (100, 20), (120, 20)] {
            assert_eq!(on_shape(&shape, x), want, "{x}");
        }
    }
}
