//! The arithmetic of rollouts: which ReplicaSet is scaled to what, now.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many replicas the deployment wanted when it last scaled a ReplicaSet.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// How many pods it then allowed in all.
pub(super) const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

/// A ReplicaSet to be scaled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scale {
    pub(super) name: String,
    pub(super) resource_version: Option<String>,
    pub(super) from: i32,
    pub(super) to: i32,
}

pub(super) fn spec_replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// Of the available pods those that stay: a set that was told to have fewer takes them from the unavailable first, and its status
/// may not show yet that they go.
fn staying(set: &ReplicaSet) -> i32 {
    available(set).min(spec_replicas(set))
}

/// Whether the pods of all sets are gone, and none can come.
pub(super) fn are_gone(sets: &[Arc<ReplicaSet>]) -> bool {
    sets.iter().all(|s| present(s) == 0)
}

/// The pods of a set that count against the most that there may be: a set that was told to have fewer has its pods until its status
/// says that they go. (Kubernetes counts what was told, and has more pods than it may for a moment.)
fn present(set: &ReplicaSet) -> i32 {
    spec_replicas(set).max(set.status.as_ref().map_or(0, |s| s.replicas))
}

/// How many replicas a deployment wants.
pub(super) fn wanted(d: &Deployment) -> i32 {
    d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub(super) fn is_paused(d: &Deployment) -> bool {
    d.spec.as_ref().and_then(|s| s.paused).unwrap_or(false)
}

pub(super) fn is_recreate(d: &Deployment) -> bool {
    d.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// An absolute number, or a percentage of `total`.
fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let Some(percent) = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()) else { return 0 };
            let scaled = percent * i64::from(total);
            let result = if round_up { (scaled + 99).div_euclid(100) } else { scaled.div_euclid(100) };
            i32::try_from(result).unwrap_or(i32::MAX)
        }
    }
}

/// `(maxSurge, maxUnavailable)` in pods; not both are zero, or nothing would ever move.
pub(super) fn fences(d: &Deployment) -> (i32, i32) {
    if is_recreate(d) {
        return (0, 0);
    }
    let rolling = d.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let replicas = wanted(d);
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), replicas, true);
    let unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (surge, unavailable.min(replicas))
}

/// The annotations that tell a later scaling what this one knew.
pub(super) fn annotate_replicas(d: &Deployment, annotations: &mut BTreeMap<String, String>) {
    annotations.insert(DESIRED.into(), wanted(d).to_string());
    annotations.insert(MAXIMUM.into(), (wanted(d) + fences(d).0).to_string());
}

fn noted(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.annotations().get(annotation).and_then(|v| v.parse().ok())
}

/// Whether the deployment's `replicas` changed since its ReplicaSets were last scaled.
pub(super) fn is_scaling(d: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    sets.iter().filter(|s| spec_replicas(s) > 0).any(|s| noted(s, DESIRED).is_some_and(|n| n != wanted(d)))
}

/// With how many replicas a new ReplicaSet begins.
pub(super) fn initial_replicas(d: &Deployment, sets: &[Arc<ReplicaSet>]) -> i32 {
    new_replicas(d, 0, sets.iter().map(|s| present(s)).sum())
}

/// How many replicas the new ReplicaSet may have, with `current` pods in all.
fn new_replicas(d: &Deployment, new: i32, current: i32) -> i32 {
    if is_recreate(d) {
        return wanted(d);
    }
    let limit = wanted(d) + fences(d).0;
    if current >= limit { new } else { new + (limit - current).min(wanted(d) - new).max(0) }
}

/// Whether a rollout is done.
pub(super) fn is_complete(d: &Deployment, new: Option<&ReplicaSet>, sets: &[Arc<ReplicaSet>]) -> bool {
    let Some(new) = new else { return false };
    let total: i32 = sets.iter().map(|s| s.status.as_ref().map_or(0, |st| st.replicas)).sum();
    let updated = new.status.as_ref().map_or(0, |s| s.replicas);
    updated == wanted(d) && total == wanted(d) && available(new) >= wanted(d)
}

/// The scalings to do now. `old_pods` is the number of living pods of the old ReplicaSets, which Recreate waits for.
pub(super) fn steps(
    d: &Deployment,
    new: Option<&ReplicaSet>,
    sets: &[Arc<ReplicaSet>],
    scaling: bool,
    old_pods: usize,
) -> Vec<Scale> {
    let old: Vec<&ReplicaSet> = sets.iter().map(|s| &**s).filter(|s| new.is_none_or(|n| n.uid() != s.uid())).collect();
    // one that does not know its last order yet may be making pods
    let old_is_gone = old_pods == 0 && old.iter().all(|s| present(s) == 0);
    if scaling {
        if is_recreate(d) && !old_is_gone && sets.iter().all(|s| spec_replicas(s) == 0) {
            return Vec::new();
        }
        return scale_in_proportion(d, new, &old);
    }
    if is_recreate(d) {
        let down: Vec<Scale> = old.iter().filter_map(|s| step(s, 0)).collect();
        if !down.is_empty() || !old_is_gone {
            return down;
        }
        return new.and_then(|n| step(n, wanted(d))).into_iter().collect();
    }
    let Some(new) = new else { return Vec::new() };
    let old_total: i32 = old.iter().map(|s| spec_replicas(s)).sum();
    let have = spec_replicas(new);
    let all = present(new) + old.iter().map(|s| present(s)).sum::<i32>();
    let target = if have > wanted(d) { wanted(d) } else { new_replicas(d, have, all) };
    if let Some(up) = step(new, target) {
        return vec![up];
    }
    shrink_old(d, new, &old, old_total)
}

fn step(set: &ReplicaSet, to: i32) -> Option<Scale> {
    let from = spec_replicas(set);
    (from != to).then(|| Scale { name: set.name_any(), resource_version: set.resource_version(), from, to })
}

/// Takes from the old ReplicaSets what availability allows: pods that are not available first.
fn shrink_old(d: &Deployment, new: &ReplicaSet, old: &[&ReplicaSet], old_total: i32) -> Vec<Scale> {
    if old_total == 0 {
        return Vec::new();
    }
    let minimum = wanted(d) - fences(d).1;
    let new_unavailable = spec_replicas(new) - staying(new);
    let mut spare = spec_replicas(new) + old_total - minimum - new_unavailable;
    if spare <= 0 {
        return Vec::new();
    }
    let mut targets: Vec<i32> = old.iter().map(|s| spec_replicas(s)).collect();
    for (set, target) in old.iter().zip(&mut targets) {
        let unhealthy = (*target - staying(set)).clamp(0, spare);
        *target -= unhealthy;
        spare -= unhealthy;
    }
    let all_available = staying(new) + old.iter().map(|s| staying(s)).sum::<i32>();
    let mut give = (all_available - minimum).max(0);
    for target in &mut targets {
        let n = (*target).min(give);
        *target -= n;
        give -= n;
    }
    old.iter().zip(targets).filter_map(|(s, t)| step(s, t)).collect()
}

/// Follows a change of `replicas` during a rollout (or while paused): all ReplicaSets grow or shrink by their share.
fn scale_in_proportion(d: &Deployment, new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> Vec<Scale> {
    let mut active: Vec<&ReplicaSet> = old.iter().copied().chain(new).filter(|s| spec_replicas(s) > 0).collect();
    if active.is_empty() {
        active.extend(new.or_else(|| old.last().copied()));
    }
    if let [only] = active.as_slice() {
        return match step(only, wanted(d)) {
            Some(s) => vec![s],
            None => annotated(d, only),
        };
    }
    if let Some(new) = new
        && spec_replicas(new) == wanted(d)
        && noted(new, DESIRED) == Some(wanted(d))
        && available(new) == wanted(d)
    {
        return old.iter().filter_map(|s| step(s, 0)).collect();
    }
    if is_recreate(d) || wanted(d) == 0 {
        return if wanted(d) == 0 { active.iter().filter_map(|s| step(s, 0)).collect() } else { Vec::new() };
    }
    let total: i32 = active.iter().map(|s| spec_replicas(s)).sum();
    let allowed = wanted(d) + fences(d).0;
    let mut rest = allowed - total;
    if rest > 0 {
        // what is left over then is the rollout's, once those that go are gone
        rest = (allowed - active.iter().map(|s| present(s)).sum::<i32>()).max(0);
    }
    // the larger get their share first; of equals the newer when growing, the older when shrinking
    active.sort_by_key(|s| (-spec_replicas(s), s.metadata.creation_timestamp.clone().map(|t| t.0)));
    if rest > 0 {
        active
            .sort_by_key(|s| std::cmp::Reverse((spec_replicas(s), s.metadata.creation_timestamp.clone().map(|t| t.0))));
    }
    let mut targets: Vec<i32> = Vec::new();
    for set in &active {
        let share = share_of(d, set, allowed).clamp(rest.min(0), rest.max(0));
        rest -= share;
        targets.push((spec_replicas(set) + share).max(0));
    }
    if let Some(first) = targets.first_mut() {
        *first = (*first + rest).max(0);
    }
    active
        .iter()
        .zip(targets)
        .flat_map(|(s, t)| match step(s, t) {
            Some(s) => vec![s],
            None => annotated(d, s),
        })
        .collect()
}

/// The part of a change of the whole that falls to one ReplicaSet.
fn share_of(d: &Deployment, set: &ReplicaSet, allowed: i32) -> i32 {
    let before = noted(set, MAXIMUM)
        .filter(|m| *m > 0)
        .unwrap_or_else(|| d.status.as_ref().and_then(|s| s.replicas).unwrap_or(0));
    if before <= 0 {
        return 0;
    }
    let scaled = f64::from(spec_replicas(set)) * f64::from(allowed) / f64::from(before);
    // rounded to the nearest, so that shares are fair; the value is far below 2^31
    scaled.round() as i32 - spec_replicas(set)
}

/// A step that only brings a ReplicaSet's notes up to date.
fn annotated(d: &Deployment, set: &ReplicaSet) -> Vec<Scale> {
    let fresh = noted(set, DESIRED) == Some(wanted(d));
    if fresh {
        return Vec::new();
    }
    let n = spec_replicas(set);
    vec![Scale { name: set.name_any(), resource_version: set.resource_version(), from: n, to: n }]
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
        let amount = |text: &str| text.parse::<i32>().map_or_else(|_| json!(text), |n| json!(n));
        let (surge, unavailable) = (amount(surge), amount(unavailable));
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {"replicas": replicas,
            "selector": {}, "template": {}, "strategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap()
    }

    fn set(name: &str, spec: i32, ready: i32, noted: i32, max: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "annotations":
                {DESIRED: noted.to_string(), MAXIMUM: max.to_string()}},
                "spec": {"replicas": spec, "selector": {}},
                "status": {"replicas": spec, "availableReplicas": ready}}))
            .unwrap(),
        )
    }

    fn scaled(steps: &[Scale]) -> Vec<(&str, i32)> {
        steps.iter().map(|s| (s.name.as_str(), s.to)).collect()
    }

    #[test]
    fn percentages_round_in_favour_of_progress_and_safety() {
        assert_eq!(fences(&deployment(10, "25%", "25%")), (3, 2));
        assert_eq!(fences(&deployment(1, "25%", "25%")), (1, 0));
        assert_eq!(fences(&deployment(3, "0%", "0%")), (0, 1));
    }

    #[test]
    fn pods_that_are_not_known_to_go_still_count() {
        let d = deployment(4, "1", "1");
        let (new, mut old) = (set("new", 1, 1, 4, 5), (*set("old", 3, 3, 4, 5)).clone());
        old.status.get_or_insert_default().replicas = 4;
        let sets = [new.clone(), Arc::new(old.clone())];
        assert_ne!(scaled(&steps(&d, Some(&new), &sets, false, 4)), [("new", 2)], "there are five already");
        old.status.get_or_insert_default().replicas = 3;
        let sets = [new.clone(), Arc::new(old)];
        assert_eq!(scaled(&steps(&d, Some(&new), &sets, false, 3)), [("new", 2)]);
    }

    #[test]
    fn a_rolling_update_step_by_step() {
        let d = deployment(4, "25%", "25%");
        let old = set("old", 4, 4, 4, 5);
        assert_eq!(initial_replicas(&d, std::slice::from_ref(&old)), 1);
        // the new pod is there but not available: one old one may go, as one may be unavailable
        let new = set("new", 1, 0, 4, 5);
        let all = [old.clone(), new.clone()];
        assert_eq!(scaled(&steps(&d, Some(&new), &all, false, 0)), [("old", 3)]);
        // then the new one may grow
        let all = [set("old", 3, 3, 4, 5), new.clone()];
        assert_eq!(scaled(&steps(&d, Some(&new), &all, false, 0)), [("new", 2)]);
        // nothing available of the new: nothing more may go
        let new = set("new", 2, 0, 4, 5);
        let all = [set("old", 3, 3, 4, 5), new.clone()];
        assert!(steps(&d, Some(&new), &all, false, 0).is_empty());
        // all of the new are there: the old ones may all go
        let new = set("new", 4, 4, 4, 5);
        let all = [set("old", 1, 1, 4, 5), new.clone()];
        assert_eq!(scaled(&steps(&d, Some(&new), &all, false, 0)), [("old", 0)]);
        let all = [set("old", 0, 0, 4, 5), new.clone()];
        assert!(steps(&d, Some(&new), &all, false, 0).is_empty());
        assert!(is_complete(&d, Some(&new), &all));
    }

    #[test]
    fn what_is_going_already_is_not_given_again() {
        let d = deployment(3, "3", "0");
        // scaled from 6 to 3 within a rollout: the old set was told so, and its status still shows six available pods
        let mut old = (*set("old", 4, 6, 3, 6)).clone();
        let new = set("new", 2, 0, 3, 6);
        let all = [Arc::new(old.clone()), new.clone()];
        assert_eq!(scaled(&steps(&d, Some(&new), &all, false, 0)), [("old", 3)]);
        old.spec.as_mut().unwrap().replicas = Some(3);
        let all = [Arc::new(old.clone()), new.clone()];
        assert!(steps(&d, Some(&new), &all, false, 0).is_empty(), "four and two are six already");
        old.status.as_mut().unwrap().replicas = 3;
        let old = Arc::new(old);
        assert_eq!(scaled(&steps(&d, Some(&new), &[old.clone(), new.clone()], false, 0)), [("new", 3)]);
        let new = set("new", 3, 0, 3, 6);
        assert!(steps(&d, Some(&new), &[old, new.clone()], false, 0).is_empty());
    }

    #[test]
    fn unhealthy_old_pods_go_first() {
        let d = deployment(4, "0", "1");
        let new = set("new", 0, 0, 4, 4);
        let all = [set("bad", 2, 0, 4, 4), set("good", 2, 2, 4, 4), new.clone()];
        assert_eq!(scaled(&steps(&d, Some(&new), &all, false, 0)), [("bad", 1)]);
    }

    #[test]
    fn recreate_waits_for_the_last_old_pod() {
        let mut d = deployment(2, "0", "0");
        d.spec.as_mut().unwrap().strategy.as_mut().unwrap().type_ = Some("Recreate".into());
        let all = [set("old", 2, 2, 2, 2)];
        assert_eq!(scaled(&steps(&d, None, &all, false, 2)), [("old", 0)]);
        let new = set("new", 0, 0, 2, 2);
        let all = [set("old", 0, 0, 2, 2), new.clone()];
        assert!(steps(&d, Some(&new), &all, false, 1).is_empty());
        assert_eq!(scaled(&steps(&d, Some(&new), &all, false, 0)), [("new", 2)]);
        let mut busy = (*set("old", 0, 0, 2, 2)).clone();
        busy.status.get_or_insert_default().replicas = 2;
        let all = [Arc::new(busy), new.clone()];
        assert!(!are_gone(&all));
        assert!(steps(&d, Some(&new), &all, false, 0).is_empty(), "some may be coming that nobody sees yet");
        assert!(steps(&d, Some(&new), &all, true, 0).is_empty());
    }

    #[test]
    fn scaling_is_followed_in_proportion() {
        let d = deployment(10, "2", "0");
        let only = set("only", 5, 5, 5, 7);
        assert!(is_scaling(&d, std::slice::from_ref(&only)));
        assert_eq!(scaled(&steps(&d, Some(&only), std::slice::from_ref(&only), true, 0)), [("only", 10)]);
        let (old, new) = (set("old", 4, 4, 5, 7), set("new", 2, 1, 5, 7));
        let out = steps(&d, Some(&new), &[old, new.clone()], true, 0);
        assert_eq!(out.iter().map(|s| s.to).sum::<i32>(), 12, "{out:?}");
        assert!(out.iter().all(|s| s.to > s.from), "{out:?}");
        let zero = deployment(0, "2", "0");
        let (old, new) = (set("old", 4, 4, 5, 7), set("new", 2, 1, 5, 7));
        let out = steps(&zero, Some(&new), &[old, new.clone()], true, 0);
        assert!(out.iter().all(|s| s.to == 0) && out.len() == 2, "{out:?}");
    }

    #[test]
    fn rollouts_always_arrive() {
        // whatever the fences, playing the steps with pods that become available at once ends with the new set alone
        for replicas in 0..6 {
            for (surge, unavailable) in [("0", "1"), ("1", "0"), ("25%", "25%"), ("100%", "0"), ("0", "100%")] {
                let d = deployment(replicas, surge, unavailable);
                let mut state = [("old", replicas), ("new", 0)];
                for _ in 0..50 {
                    let sets: Vec<_> = state.iter().map(|(n, r)| set(n, *r, *r, replicas, 0)).collect();
                    let total: i32 = state.iter().map(|s| s.1).sum();
                    assert!(total <= replicas + fences(&d).0 && total >= replicas - fences(&d).1, "{state:?}");
                    let new = sets[1].clone();
                    for s in steps(&d, Some(&new), &sets, false, 0) {
                        state.iter_mut().find(|(n, _)| *n == s.name).unwrap().1 = s.to;
                    }
                }
                assert_eq!(state, [("old", 0), ("new", replicas)], "surge {surge} unavailable {unavailable}");
            }
        }
    }
}
