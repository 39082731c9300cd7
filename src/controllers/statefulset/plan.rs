//! What has to be done about the pods of a StatefulSet: a pure function over what is known.

use super::identity::{is_labelled, is_wanted, ordinal, pod_name, replicas, start};
use crate::history::POD_LABEL;
use crate::pods;
use edge_client::ResourceExt;
use k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Make the claims and the pod with a number, of the current or of the updated template.
    Create {
        ordinal: i32,
        updated: bool,
    },
    /// Make the claims that a waiting pod lacks.
    EnsureClaims {
        ordinal: i32,
    },
    /// Give a pod its labels and claims, and the claims their owners.
    Repair {
        ordinal: i32,
        pod: Arc<Pod>,
    },
    /// Give the claims of a pod that is going their owners.
    OwnClaims {
        ordinal: i32,
        pod: Arc<Pod>,
    },
    Delete(Arc<Pod>),
}

/// What is known besides the pods.
pub(super) struct View<'a> {
    pub(super) set: &'a StatefulSet,
    /// Names of the revisions.
    pub(super) current: &'a str,
    pub(super) updated: &'a str,
    /// Whether a claim of the pod with a number still belongs to an earlier pod.
    pub(super) stale_claim: &'a dyn Fn(i32) -> bool,
    /// Whether the claims of a pod have other owners than they should.
    pub(super) misowned_claims: &'a dyn Fn(i32, &Pod) -> bool,
    pub(super) now: Timestamp,
}

/// What to do, and when to look again.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Steps of one group may be done at once (if the set is parallel), groups one after the other.
    pub(super) groups: Vec<Vec<Step>>,
    /// When the next pod becomes available.
    pub(super) next: Option<Duration>,
    /// How many pods of the current revision go to be updated.
    pub(super) outgoing: usize,
}

/// A pod that is there, or is to be made.
#[derive(Clone, Debug)]
enum Replica {
    Absent,
    Present(Arc<Pod>),
}

impl View<'_> {
    fn min_ready(&self) -> Duration {
        let seconds = self.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::phase(pod) == "Running"
            && pods::available_in(pod, self.min_ready(), self.now).is_some_and(|w| w.is_zero())
    }

    fn is_unavailable(&self, replica: &Replica) -> bool {
        match replica {
            Replica::Absent => true,
            Replica::Present(pod) => !self.is_available(pod) || is_going(pod),
        }
    }

    fn rolling(&self) -> Option<&RollingUpdateStatefulSetStrategy> {
        let strategy = self.set.spec.as_ref()?.update_strategy.as_ref()?;
        strategy.rolling_update.as_ref().filter(|_| strategy.type_.as_deref() != Some("OnDelete"))
    }

    fn is_on_delete(&self) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete")
    }

    fn partition(&self) -> i32 {
        self.rolling().and_then(|r| r.partition).unwrap_or(0)
    }

    /// Whether an absent pod is made of the updated template: those below the partition stay as they are.
    fn makes_updated(&self, ordinal: i32) -> bool {
        let kept = match (self.is_on_delete(), self.rolling()) {
            (true, _) => 0,
            (false, Some(_)) => self.partition(),
            (false, None) => self.set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0),
        };
        ordinal >= start(self.set).saturating_add(kept)
    }

    /// So many pods may be unavailable during an update; at least one.
    fn max_unavailable(&self) -> usize {
        let wanted = replicas(self.set);
        let number = match self.rolling().and_then(|r| r.max_unavailable.as_ref()) {
            None => 1,
            Some(IntOrString::Int(n)) => *n,
            Some(IntOrString::String(text)) => {
                text.strip_suffix('%').and_then(|p| p.parse::<i32>().ok()).map_or(1, |p| wanted.saturating_mul(p) / 100)
            }
        };
        usize::try_from(number.max(1)).unwrap_or(1)
    }
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_parallel(set: &StatefulSet) -> bool {
    set.spec.as_ref().and_then(|s| s.pod_management_policy.as_deref()) == Some("Parallel")
}

/// The revision that a pod was made of.
pub(super) fn revision(pod: &Pod) -> &str {
    pod.labels().get(POD_LABEL).map(String::as_str).unwrap_or_default()
}

/// Decides about all pods of a set.
pub(super) fn plan(view: &View<'_>, pods: &[Arc<Pod>]) -> Plan {
    let set = view.set;
    let count = usize::try_from(replicas(set)).unwrap_or(0);
    let mut wanted = vec![Replica::Absent; count];
    let mut condemned: Vec<(i32, Arc<Pod>)> = Vec::new();
    for pod in pods {
        let Some(number) = ordinal(set, pod) else { continue };
        match usize::try_from(number - start(set)).ok().filter(|_| is_wanted(set, number)) {
            Some(at) => wanted[at] = Replica::Present(pod.clone()),
            None => condemned.push((number, pod.clone())),
        }
    }
    condemned.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let waits = pods.iter().filter(|p| !is_going(p)).filter_map(|p| pods::available_in(p, view.min_ready(), view.now));
    let mut plan = Plan { next: waits.filter(|w| !w.is_zero()).min(), ..Plan::default() };
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let parallel = is_parallel(set);
    let mut group = Vec::new();
    for (at, replica) in wanted.iter().enumerate() {
        let number = start(set).saturating_add(i32::try_from(at).unwrap_or(i32::MAX));
        let (steps, blocks) = for_replica(view, replica, number);
        group.extend(steps);
        if blocks && !parallel {
            plan.groups.push(group);
            return plan;
        }
    }
    plan.groups.push(group);

    let misowned = condemned.iter().filter(|(number, pod)| (view.misowned_claims)(*number, pod));
    plan.groups.push(misowned.map(|(number, pod)| Step::OwnClaims { ordinal: *number, pod: pod.clone() }).collect());

    let unavailable = |pod: &Arc<Pod>| view.is_unavailable(&Replica::Present(pod.clone()));
    let first_unavailable = if wanted.iter().any(|r| view.is_unavailable(r)) {
        None
    } else {
        condemned.iter().rev().find(|(_, p)| unavailable(p)).map(|(number, _)| *number)
    };
    let mut group = Vec::new();
    for (number, pod) in &condemned {
        if is_going(pod) {
            if parallel {
                continue;
            }
            plan.groups.push(group);
            return plan;
        }
        if !parallel {
            // the others must be well before the next one goes, unless it is itself the first that is not
            if view.is_available(pod) || first_unavailable == Some(*number) {
                group.push(Step::Delete(pod.clone()));
            }
            plan.groups.push(group);
            return plan;
        }
        group.push(Step::Delete(pod.clone()));
    }
    plan.groups.push(group);
    if !view.is_on_delete() {
        let outgoing = update(view, &wanted, parallel);
        plan.outgoing = outgoing.iter().filter(|p| revision(p) == view.current).count();
        plan.groups.push(outgoing.into_iter().map(Step::Delete).collect());
    }
    plan.groups.retain(|g| !g.is_empty());
    plan
}

/// What one wanted pod needs, and whether those after it have to wait for it.
fn for_replica(view: &View<'_>, replica: &Replica, number: i32) -> (Vec<Step>, bool) {
    let pod = match replica {
        Replica::Absent if (view.stale_claim)(number) => return (Vec::new(), true),
        Replica::Absent => {
            return (vec![Step::Create { ordinal: number, updated: view.makes_updated(number) }], true);
        }
        Replica::Present(pod) => pod,
    };
    if pods::is_finished(pod) {
        // whatever it ended with: it is made again when it is gone
        let steps = if is_going(pod) { Vec::new() } else { vec![Step::Delete(pod.clone())] };
        return (steps, true);
    }
    let mut steps = Vec::new();
    if pods::phase(pod) == "Pending" {
        steps.push(Step::EnsureClaims { ordinal: number });
    }
    let blocks = is_going(pod) || !view.is_available(pod);
    // a set that goes on one by one looks at a pod's identity when it is well, a parallel one always
    if (!blocks || is_parallel(view.set))
        && (!is_labelled(view.set, number, pod) || (view.misowned_claims)(number, pod))
    {
        steps.push(Step::Repair { ordinal: number, pod: pod.clone() });
    }
    (steps, blocks)
}

/// The pods that go so that they are made of the updated template: the highest numbers first, as many as may be missing.
fn update(view: &View<'_>, wanted: &[Replica], parallel: bool) -> Vec<Arc<Pod>> {
    let lowest = usize::try_from(view.partition()).unwrap_or(0);
    let outdated: Vec<&Arc<Pod>> = wanted
        .iter()
        .skip(lowest)
        .rev()
        .filter_map(|r| match r {
            Replica::Present(pod) if revision(pod) != view.updated && !is_going(pod) => Some(pod),
            _ => None,
        })
        .collect();
    let unavailable = wanted.iter().filter(|r| view.is_unavailable(r)).count();
    let budget = view.max_unavailable().saturating_sub(unavailable);
    if !parallel {
        return outdated.into_iter().take(budget).cloned().collect();
    }
    // old pods that are of no use anyway cost nothing
    let (well, unwell): (Vec<_>, Vec<_>) = outdated.into_iter().partition(|p| view.is_available(p));
    unwell.into_iter().chain(well.into_iter().take(budget)).cloned().collect()
}

/// The name under which a step tells of itself in errors.
pub(super) fn subject(set: &StatefulSet, step: &Step) -> String {
    match step {
        Step::Create { ordinal, .. } | Step::EnsureClaims { ordinal } => pod_name(set, *ordinal),
        Step::Repair { pod, .. } | Step::OwnClaims { pod, .. } | Step::Delete(pod) => pod.name_any(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn set(replicas: i32, extra: Value) -> StatefulSet {
        let mut spec = json!({"replicas": replicas, "serviceName": "s", "selector": {}, "template": {},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "db", "uid": "u"}, "spec": spec})).unwrap()
    }

    const NOW: i64 = 1_000_000;

    /// `db-1 new ready`, `db-2 old pending going`, ...: number, revision, condition, and whether it is being deleted.
    fn pod(text: &str) -> Arc<Pod> {
        let words: Vec<&str> = text.split(' ').collect();
        let number = words[0];
        let (phase, ready) = match words[2] {
            "ready" => ("Running", "True"),
            "running" => ("Running", "False"),
            "pending" => ("Pending", "False"),
            "failed" => ("Failed", "False"),
            other => panic!("{other}"),
        };
        let at = if words.contains(&"going") { json!("2026-01-01T00:00:00Z") } else { Value::Null };
        let since = Timestamp::from_second(NOW - 5).unwrap();
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": format!("db-{number}"), "uid": number, "deletionTimestamp": at,
                "labels": {"statefulset.kubernetes.io/pod-name": format!("db-{number}"), "apps.kubernetes.io/pod-index": number,
                    "controller-revision-hash": words[1]}},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]}}))
            .unwrap(),
        )
    }

    fn steps(set: &StatefulSet, pods: &[&str]) -> Vec<String> {
        steps_with(set, pods, &|_| false)
    }

    fn steps_with(set: &StatefulSet, pods: &[&str], stale: &dyn Fn(i32) -> bool) -> Vec<String> {
        let pods: Vec<_> = pods.iter().map(|t| pod(t)).collect();
        let view = View {
            set,
            current: "old",
            updated: "new",
            stale_claim: stale,
            misowned_claims: &|_, _| false,
            now: Timestamp::from_second(NOW).unwrap(),
        };
        let mut out = Vec::new();
        for group in plan(&view, &pods).groups {
            for step in group {
                out.push(match &step {
                    Step::Create { ordinal, updated } => {
                        format!("+{ordinal} {}", if *updated { "new" } else { "old" })
                    }
                    Step::Delete(_) => format!("-{}", subject(set, &step).trim_start_matches("db-")),
                    Step::EnsureClaims { ordinal } => format!("claims {ordinal}"),
                    other => format!("{other:?}"),
                });
            }
        }
        out
    }

    #[test]
    fn one_after_the_other() {
        let s = set(3, json!({}));
        for (pods, want) in [
            (&[][..], vec!["+0 new"]),
            (&["0 new pending"], vec!["claims 0"]),
            (&["0 new running"], vec![]),
            (&["0 new ready"], vec!["+1 new"]),
            (&["0 new ready", "1 new ready going"], vec![]),
            (&["0 new failed", "1 new ready"], vec!["-0"]),
            (&["0 new failed going", "1 new ready"], vec![]),
            (&["0 new ready", "1 new ready", "2 new ready"], vec![]),
            // too many: the highest first, and one at a time
            (&["0 new ready", "1 new ready", "2 new ready", "3 new ready", "4 new ready"], vec!["-4"]),
            (&["0 new ready", "1 new ready", "2 new ready", "3 new ready", "4 new ready going"], vec![]),
            (&["0 new ready", "1 new ready", "2 new ready", "3 new ready", "4 new running"], vec!["-4"]),
            (&["0 new ready", "1 new ready", "2 new ready", "3 new running", "4 new running"], vec![]),
            (&["0 new ready", "1 new running", "2 new ready", "3 new ready"], vec![]),
        ] {
            assert_eq!(steps(&s, pods), want, "{pods:?}");
        }
        assert!(steps_with(&s, &[], &|_| true).is_empty(), "a claim of an earlier pod must go first");
    }

    #[test]
    fn all_at_once() {
        let s = set(3, json!({"podManagementPolicy": "Parallel"}));
        for (pods, want) in [
            (&[][..], vec!["+0 new", "+1 new", "+2 new"]),
            (&["1 new running", "7 new ready", "8 new running"], vec!["+0 new", "+2 new", "-8", "-7"]),
            (&["0 new ready", "1 new ready", "2 new ready going", "3 new ready going"], vec![]),
        ] {
            assert_eq!(steps(&s, pods), want, "{pods:?}");
        }
    }

    #[test]
    fn updates_go_from_the_highest_number_down() {
        let old = ["0 old ready", "1 old ready", "2 old ready"];
        assert_eq!(steps(&set(3, json!({})), &old), ["-2"]);
        assert_eq!(steps(&set(3, json!({})), &["0 old ready", "1 old ready"]), ["+2 new"]);
        assert_eq!(steps(&set(3, json!({})), &["0 old ready", "1 old ready", "2 new ready"]), ["-1"]);
        assert!(steps(&set(3, json!({})), &["0 old ready", "1 old ready", "2 new running"]).is_empty());
        let rolling = |r: Value| set(3, json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": r}}));
        // those below the partition stay, and come back as they were
        let partition = rolling(json!({"partition": 2}));
        assert_eq!(steps(&partition, &old), ["-2"]);
        assert!(steps(&partition, &["0 old ready", "1 old ready", "2 new ready"]).is_empty());
        assert_eq!(steps(&partition, &["0 old ready"]), ["+1 old"]);
        assert_eq!(steps(&partition, &["0 old ready", "1 old ready"]), ["+2 new"]);
        assert_eq!(steps(&rolling(json!({"maxUnavailable": 2})), &old), ["-2", "-1"]);
        assert_eq!(steps(&rolling(json!({"maxUnavailable": "67%"})), &old), ["-2", "-1"]);
        assert_eq!(steps(&rolling(json!({"maxUnavailable": "1%"})), &old), ["-2"]);
        assert!(steps(&set(3, json!({"updateStrategy": {"type": "OnDelete"}})), &old).is_empty());
        assert_eq!(
            steps(&set(3, json!({"updateStrategy": {"type": "OnDelete"}})), &["0 old ready", "1 old ready"]),
            ["+2 new"]
        );
        let parallel = set(3, json!({"podManagementPolicy": "Parallel"}));
        assert_eq!(steps(&parallel, &["0 old running", "1 old ready", "2 old ready"]), ["-0"], "no use costs nothing");
        assert_eq!(steps(&parallel, &old), ["-2"]);
    }

    #[test]
    fn numbers_may_start_anywhere() {
        let s = set(2, json!({"ordinals": {"start": 5}}));
        assert_eq!(steps(&s, &[]), ["+5 new"]);
        assert_eq!(steps(&s, &["5 new ready", "6 new ready", "0 new ready"]), ["-0"]);
        let mut going = s.clone();
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        assert!(steps(&going, &[]).is_empty(), "a set that goes makes nothing");
    }

    #[test]
    fn availability_takes_its_time() {
        let s = set(2, json!({"minReadySeconds": 8}));
        let pods = [pod("0 new ready")];
        let view = View {
            set: &s,
            current: "new",
            updated: "new",
            stale_claim: &|_| false,
            misowned_claims: &|_, _| false,
            now: Timestamp::from_second(NOW).unwrap(),
        };
        let plan = plan(&view, &pods);
        assert!(plan.groups.iter().all(Vec::is_empty));
        assert_eq!(plan.next, Some(Duration::from_secs(3)));
    }
}
