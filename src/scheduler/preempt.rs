//! Room by deletion: which pods of lower priority would have to go so that a pod fits, and where that costs least.
//!
//! The rules are those of Kubernetes' plugin DefaultPreemption.

use crate::cluster::{Cluster, NodeId};
use crate::decide::{Prepared, Question, Verdict, check, check_beside_nominated};
use crate::plugins::Refusal;
use crate::pod::PodInfo;
use crate::report;
use crate::terms::satisfied;
use crate::world::Budget;
use std::cmp::Reverse;
use std::sync::Arc;

/// Added to each priority before they are summed up, so that two unimportant pods do not count for less than one.
const PRIORITY_OFFSET: i64 = 1 << 31;

/// A node on which pods can make room.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) node: NodeId,
    /// Who must go, the most important first.
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// How many of them a budget protects.
    pub(crate) violations: usize,
}

impl Candidate {
    pub(crate) fn new(node: NodeId, mut victims: Vec<Arc<PodInfo>>, violations: usize) -> Self {
        victims.sort_by_key(|p| Reverse(p.priority));
        Self { node, victims, violations }
    }

    /// What it costs, the least being the best.
    fn cost(&self) -> impl Ord + use<> {
        let highest = self.victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
        let sum: i64 = self.victims.iter().map(|v| i64::from(v.priority) + PRIORITY_OFFSET).sum();
        // of the most important victims the eldest; the later it started, the better
        let started = self.victims.iter().filter(|v| v.priority == highest).filter_map(|v| v.started).min();
        (self.violations, highest, sum, self.victims.len(), Reverse(started))
    }
}

/// Whether a pod may ask others to go.
///
/// # Errors
/// Why not, as Kubernetes words it. `is_leaving` tells of pods that have been asked to go already.
pub(crate) fn may_preempt(
    q: Question<'_>,
    cluster: &Cluster,
    verdict: &Verdict,
    is_leaving: impl Fn(&PodInfo) -> bool,
) -> Result<(), &'static str> {
    if q.pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = cluster.nomination(q.pod.key()).and_then(|name| cluster.id(name));
    let Some(id) = nominated else { return Ok(()) };
    // what makes the node impossible is no matter of room any more: it looks for another
    if verdict.refusals.iter().any(|(node, refusal)| *node == id && refusal.is_final) {
        return Ok(());
    }
    let mut pods = cluster.node(id).pods.values();
    if pods.any(|p| p.priority < q.pod.info.priority && is_leaving(p)) {
        return Err("not eligible due to a terminating pod on the nominated node.");
    }
    Ok(())
}

/// The best of nodes on which pods can make room.
pub(crate) fn best(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(Candidate::cost)
}

/// Nodes on which pods can make room: not all of them in a large cluster, but at least one.
///
/// # Errors
/// Why there is none, as Kubernetes words it.
pub(crate) fn find(
    q: Question<'_>,
    cluster: &mut Cluster,
    verdict: &Verdict,
    turn: usize,
) -> Result<Vec<Candidate>, String> {
    let open: Vec<NodeId> = verdict.refusals.iter().filter(|(_, r)| !r.is_final).map(|(id, _)| *id).collect();
    let (percent, least) = q.profile.candidates;
    let enough = (open.len() * percent / 100).max(least);
    let budgets = if open.is_empty() { Vec::new() } else { q.world.budgets() };
    let mut reasons: Vec<Refusal> = Vec::new();
    let mut found: Vec<Candidate> = Vec::new();
    for i in 0..open.len() {
        match on_node(q, cluster, open[(i + turn) % open.len()], &budgets) {
            Ok(candidate) => found.push(candidate),
            Err(refusal) => reasons.push(refusal),
        }
        if found.len() >= enough {
            break;
        }
    }
    if found.is_empty() {
        let other = (cluster.len() - reasons.len(), "Preemption is not helpful for scheduling");
        return Err(report::summary(cluster.len(), None, reasons.iter(), other));
    }
    Ok(found)
}

/// Whether the pod fits on the node as it is now.
fn fits(q: Question<'_>, cluster: &mut Cluster, id: NodeId) -> Result<(), Refusal> {
    let attempt = q.on(cluster);
    let prepared = Prepared::new(&attempt)?;
    check(&attempt, &prepared, id)?;
    check_beside_nominated(q, cluster, &prepared, id)
}

/// The fewest and least important pods of a node whose going would let the pod in.
fn on_node(q: Question<'_>, cluster: &mut Cluster, id: NodeId, budgets: &[Budget]) -> Result<Candidate, Refusal> {
    let pods = cluster.node(id).pods.values();
    let mut lower: Vec<Arc<PodInfo>> = pods.filter(|p| p.priority < q.pod.info.priority).cloned().collect();
    if lower.is_empty() {
        let reason = "No preemption victims found for incoming pod";
        return Err(Refusal::lasting(crate::plugins::Plugin::DefaultPreemption, reason));
    }
    // the important ones come back first, as long as there is room; the elder of equals
    lower.sort_by_key(|p| (Reverse(p.priority), p.started.is_none(), p.started));
    lower.iter().for_each(|p| drop(cluster.take(&p.key)));
    let mut victims: Vec<Arc<PodInfo>> = Vec::new();
    let mut violations = 0;
    let verdict = fits(q, cluster, id);
    if verdict.is_ok() {
        let (guarded, others) = guarded(&lower, budgets);
        let all = guarded.into_iter().map(|p| (p, 1)).chain(others.into_iter().map(|p| (p, 0)));
        for (pod, violation) in all {
            cluster.put(pod.clone(), id);
            if fits(q, cluster, id).is_err() {
                cluster.take(&pod.key);
                violations += violation;
                victims.push(pod);
            }
        }
        victims.iter().for_each(|p| cluster.put(p.clone(), id));
    } else {
        lower.iter().for_each(|p| cluster.put(p.clone(), id));
    }
    verdict?;
    Ok(Candidate::new(id, victims, violations))
}

/// The pods whose going a budget would not allow, and the others.
fn guarded(pods: &[Arc<PodInfo>], budgets: &[Budget]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut allowed: Vec<i32> = budgets.iter().map(|b| b.allowed).collect();
    pods.iter().cloned().partition(|pod| {
        let mut violates = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            let is_about = budget.namespace == pod.key.namespace
                && !pod.look.labels.is_empty()
                && satisfied(&budget.selector, &pod.look.labels)
                && !budget.disrupted.contains(&pod.key.name);
            if is_about {
                *allowed -= 1;
                violates |= *allowed < 0;
            }
        }
        violates
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::decide::possible;
    use crate::plugins::devices::Allocating;
    use crate::plugins::volumes::Reserved;
    use crate::pod::Pending;
    use crate::profile::Profile;
    use crate::testing::{Nothing, node, pending_pod};
    use serde_json::json;

    fn asking(name: &str, cpu: &str, priority: i32, app: &str) -> Pending {
        let container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let mut pod = (*pending_pod(name, json!({"priority": priority, "containers": [container]})).pod).clone();
        pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        Pending::new(Arc::new(pod))
    }

    fn victims(cluster: &mut Cluster, pod: &Pending) -> Result<(String, Vec<String>), String> {
        let (profile, reserved) = (Profile::default(), Reserved::new());
        let q = Question {
            pod,
            profile: &profile,
            world: &Nothing,
            reserved: &reserved,
            allocating: &Allocating::default(),
        };
        let Err(verdict) = possible(q, cluster) else { return Err("it fits".into()) };
        let before: Vec<usize> = cluster.nodes().map(|(_, s, _)| s.pods.len()).collect();
        let candidate = find(q, cluster, &verdict, 0).map(|all| best(all).unwrap());
        let after: Vec<usize> = cluster.nodes().map(|(_, s, _)| s.pods.len()).collect();
        assert_eq!(before, after, "what-ifs leave nothing");
        let candidate = candidate?;
        let names = candidate.victims.iter().map(|v| v.key.name.clone()).collect();
        Ok((cluster.node(candidate.node).name.to_string(), names))
    }

    fn with(pods: &[(&str, &str, &str, i32, &str)]) -> Cluster {
        let mut c = Cluster::default();
        for (name, on, cpu, priority, app) in pods {
            if c.id(on).is_none() {
                c.set_node(&node(on, json!({"cpu": "1", "memory": "1Gi", "pods": "10"})));
            }
            let id = c.id(on).unwrap();
            c.assume(asking(name, cpu, *priority, app).info, id);
        }
        c
    }

    #[test]
    fn the_fewest_and_least_important_make_room() {
        let pods = [("low", "a", "400m", 1, "x"), ("mid", "a", "300m", 5, "x"), ("high", "a", "300m", 50, "x")];
        let mut c = with(&pods);
        let mut of = |cpu: &str, priority| victims(&mut c, &asking("p", cpu, priority, "p")).map(|(_, v)| v);
        assert_eq!(of("300m", 10).unwrap(), ["low"]);
        assert_eq!(of("600m", 10).unwrap(), ["mid", "low"]);
        assert_eq!(of("900m", 10).unwrap_err(), "0/1 nodes are available: 1 Insufficient cpu.");
        let none = "0/1 nodes are available: 1 No preemption victims found for incoming pod.";
        assert_eq!(of("300m", 1).unwrap_err(), none);
        assert_eq!(of("2", 100).unwrap_err(), "0/1 nodes are available: 1 Preemption is not helpful for scheduling.");
    }

    #[test]
    fn budgets_are_kept_where_others_can_go() {
        let mut c = with(&[("one", "a", "900m", 1, "guarded"), ("two", "b", "900m", 5, "free")]);
        assert_eq!(victims(&mut c, &asking("p", "500m", 10, "p")).unwrap().0, "b");
        let mut c = with(&[("one", "a", "400m", 5, "free"), ("two", "a", "500m", 1, "guarded")]);
        assert_eq!(victims(&mut c, &asking("p", "500m", 10, "p")).unwrap().1, ["one"], "one goes, the guarded stays");
    }

    #[test]
    fn the_cheapest_node_is_taken() {
        let mut c = with(&[
            ("a1", "a", "900m", 7, "x"),
            ("b1", "b", "500m", 5, "x"),
            ("b2", "b", "500m", 5, "x"),
            ("c1", "c", "900m", 5, "x"),
        ]);
        assert_eq!(victims(&mut c, &asking("p", "900m", 10, "p")).unwrap().0, "c");
    }

    #[test]
    fn a_pod_waits_for_those_that_go_already() {
        let mut c = with(&[("one", "a", "900m", 1, "x")]);
        let pod = asking("p", "900m", 10, "p");
        c.nominate(pod.key(), Some(("a", &pod.info)));
        let (profile, reserved) = (Profile::default(), Reserved::new());
        let q = Question {
            pod: &pod,
            profile: &profile,
            world: &Nothing,
            reserved: &reserved,
            allocating: &Allocating::default(),
        };
        let verdict = possible(q, &mut c).err().unwrap();
        assert!(may_preempt(q, &c, &verdict, |_| false).is_ok());
        let refused = may_preempt(q, &c, &verdict, |p| p.key.name == "one").unwrap_err();
        assert_eq!(refused, "not eligible due to a terminating pod on the nominated node.");
    }
}
