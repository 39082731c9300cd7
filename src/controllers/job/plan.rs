//! What is known of a Job, what that means for its pods, and how ended pods are counted: pure functions.
//!
//! A pod is counted exactly once. Its finalizer keeps it until its UID is noted in the status (`uncountedTerminatedPods`);
//! then the finalizer goes; then the number is raised and the UID forgotten, in one write. A crash between two of these
//! steps finds the next one still to be done.

use super::backoff::{self, Record};
use super::indexes::Indexes;
use super::policy::{self, Verdict};
use crate::{finalizers, pods};
use edge_client::ResourceExt;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// No more pods than this are made or deleted before looking again.
const BURST: usize = 500;
/// No more pods than this are noted in a status at once.
const MOST_UNCOUNTED: usize = 500;

/// What is known.
pub(super) struct View<'a> {
    pub(super) job: &'a Job,
    pub(super) spec: &'a JobSpec,
    /// The Job's pods.
    pub(super) pods: &'a [Arc<Pod>],
    /// UIDs of pods whose finalizer was removed, although the cache does not show it yet.
    pub(super) removed: &'a HashSet<String>,
    pub(super) record: Record,
    pub(super) now: Timestamp,
}

/// What that means.
#[derive(Debug)]
pub(super) struct Assessment {
    pub(super) active: Vec<Arc<Pod>>,
    pub(super) terminating: i32,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    pub(super) record: Record,
    /// Why the Job is to end, if it is.
    pub(super) end: Option<JobCondition>,
    /// Indexes that succeeded as the status has them, and with the newest pods.
    counted: Indexes,
    done: Indexes,
    failed_indexes: Option<Indexes>,
    /// The failed pods that have to stay until another pod of their index takes their failures over.
    delayed: BTreeMap<i32, Arc<Pod>>,
    /// When the Job's deadline passes.
    pub(super) deadline: Option<Duration>,
}

/// What is to be done about the pods.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    Delete(Vec<Arc<Pod>>),
    /// Make so many pods, with their indexes if the Job has them.
    Create(Vec<Option<i32>>),
    /// Make some, but not before this time has passed.
    Wait(Duration),
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub(super) fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

/// Whether a pod is only replaced when it has ended, and not as soon as it is being deleted.
fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Whether a Job has ended.
pub(super) fn is_finished(job: &Job) -> bool {
    ended(job).is_some()
}

/// The condition by which a Job has ended.
pub(crate) fn ended(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

/// The Job's own index of a pod.
pub(super) fn index(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok().filter(|i| *i >= 0)
}

pub(super) fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()).filter(|r: &String| !r.is_empty()),
        message: Some(message.into()).filter(|m: &String| !m.is_empty()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn is_true<'a>(status: Option<&'a JobStatus>, kind: &str) -> Option<&'a JobCondition> {
    status?.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True")
}

/// Sets a condition; a new one that is not true is not worth telling. Says whether anything changed.
pub(super) fn set_condition(status: &mut JobStatus, new: JobCondition) -> bool {
    let all = status.conditions.get_or_insert_default();
    match all.iter_mut().find(|c| c.type_ == new.type_) {
        Some(known) if (&known.status, &known.reason, &known.message) == (&new.status, &new.reason, &new.message) => {
            false
        }
        Some(known) => {
            *known = new;
            true
        }
        None if new.status == "True" => {
            all.push(new);
            true
        }
        None => false,
    }
}

impl View<'_> {
    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(i32::MAX)
    }

    fn status(&self) -> Option<&JobStatus> {
        self.job.status.as_ref()
    }

    fn is_failed(&self, pod: &Pod) -> bool {
        match pods::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            // a pod that never gets to the end of its deletion would hold the Job up
            _ => pod.metadata.deletion_timestamp.is_some() && !replaces_only_failed(self.spec),
        }
    }

    fn verdict(&self, pod: &Pod) -> Verdict {
        policy::verdict(self.spec.pod_failure_policy.as_ref(), pod)
    }

    /// Whether a pod still has to be counted.
    fn is_held(&self, pod: &Pod) -> bool {
        finalizers::has(pod, FINALIZER) && pod.metadata.uid.as_ref().is_none_or(|uid| !self.removed.contains(uid))
    }

    fn valid_index(&self, pod: &Pod) -> Option<i32> {
        index(pod).filter(|i| *i < self.completions())
    }

    fn is_index_failed(&self, pod: &Pod, limit: i32) -> bool {
        match self.is_failed(pod).then(|| self.verdict(pod)) {
            Some(Verdict::FailIndex) => true,
            Some(Verdict::Count | Verdict::FailJob(_)) => number(pod, FAILURES) >= limit,
            Some(Verdict::Ignore) | None => false,
        }
    }
}

/// A number that an annotation of a pod carries; zero where it is no sensible one.
fn number(pod: &Pod, annotation: &str) -> i32 {
    pod.annotations().get(annotation).and_then(|v| v.parse().ok()).filter(|n: &i32| *n >= 0).unwrap_or(0)
}

fn len(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Looks at everything.
pub(super) fn assess(view: &View<'_>) -> Assessment {
    let status = view.status();
    let uncounted = status.and_then(|s| s.uncounted_terminated_pods.as_ref());
    let noted = |list: Option<&Vec<String>>, pod: &Pod| {
        list.into_iter().flatten().any(|uid| pod.metadata.uid.as_ref() == Some(uid))
    };
    let noted_succeeded = uncounted.and_then(|u| u.succeeded.as_ref());
    let noted_failed = uncounted.and_then(|u| u.failed.as_ref());
    let counts = |p: &&Arc<Pod>| view.is_held(p) && (!is_indexed(view.spec) || view.valid_index(p).is_some());
    let new = |list: Option<&Vec<String>>, is: &dyn Fn(&Pod) -> bool| -> Vec<Arc<Pod>> {
        view.pods.iter().filter(counts).filter(|p| !noted(list, p) && is(p)).cloned().collect()
    };
    let new_succeeded = new(noted_succeeded, &|p| pods::phase(p) == "Succeeded");
    let new_failed = new(noted_failed, &|p| view.is_failed(p));
    let counted_failures = new_failed.iter().filter(|p| view.verdict(p) != Verdict::Ignore).count();
    let total = |number: Option<i32>, new: usize, noted: Option<&Vec<String>>| {
        number.unwrap_or(0).saturating_add(len(new + noted.map_or(0, Vec::len)))
    };
    let active: Vec<_> = view.pods.iter().filter(|p| pods::is_active(p)).cloned().collect();
    let going = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_some() && !pods::is_finished(p);
    let mut a = Assessment {
        terminating: len(view.pods.iter().filter(going).count()),
        succeeded: total(status.and_then(|s| s.succeeded), new_succeeded.len(), noted_succeeded),
        failed: total(status.and_then(|s| s.failed), counted_failures, noted_failed),
        record: view.record.after(&new_succeeded, &new_failed),
        active,
        end: None,
        counted: Indexes::default(),
        done: Indexes::default(),
        failed_indexes: None,
        delayed: BTreeMap::new(),
        deadline: None,
    };
    a.end = known_end(view).or_else(|| limits(view, &mut a));
    if is_indexed(view.spec) {
        assess_indexes(view, &mut a);
    }
    a
}

/// The end that was decided in an earlier round, or that a failure policy asks for.
fn known_end(view: &View<'_>) -> Option<JobCondition> {
    if let Some(met) = is_true(view.status(), "SuccessCriteriaMet") {
        return Some(met.clone());
    }
    if let Some(target) = is_true(view.status(), "FailureTarget") {
        return Some(JobCondition { type_: "Failed".into(), ..target.clone() });
    }
    view.spec.pod_failure_policy.as_ref()?;
    view.pods.iter().filter(|p| view.is_failed(p)).find_map(|p| match view.verdict(p) {
        Verdict::FailJob(why) => Some(condition("FailureTarget", "True", "PodFailurePolicy", &why, view.now)),
        _ => None,
    })
}

/// The end that limits of failures and time bring.
fn limits(view: &View<'_>, a: &mut Assessment) -> Option<JobCondition> {
    let fails = |reason: &str, message: &str| Some(condition("FailureTarget", "True", reason, message, view.now));
    let limit = view.spec.backoff_limit.unwrap_or(6);
    if a.failed > limit || too_many_restarts(view, limit) {
        return fails("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if let (Some(seconds), Some(start)) =
        (view.spec.active_deadline_seconds, view.status().and_then(|s| s.start_time.as_ref()))
        && !is_suspended(view.spec)
    {
        let elapsed = view.now.duration_since(start.0);
        let left = SignedDuration::from_secs(seconds).saturating_sub(elapsed);
        if left <= SignedDuration::ZERO {
            return fails("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        a.deadline = Duration::try_from(left).ok();
    }
    None
}

/// Containers that are restarted in place count too.
fn too_many_restarts(view: &View<'_>, limit: i32) -> bool {
    let policy = view.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = view.pods.iter().filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
    let statuses = running
        .filter_map(|p| p.status.as_ref())
        .flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()));
    let restarts = statuses.fold(0, |sum: i32, c| sum.saturating_add(c.restart_count));
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn assess_indexes(view: &View<'_>, a: &mut Assessment) {
    let (spec, status, completions) = (view.spec, view.status(), view.completions());
    let held = || view.pods.iter().filter(|p| finalizers::has(&***p, FINALIZER));
    a.counted = Indexes::parse(status.and_then(|s| s.completed_indexes.as_deref()).unwrap_or_default(), completions);
    a.done = a.counted.with(held().filter(|p| pods::phase(p) == "Succeeded").filter_map(|p| view.valid_index(p)));
    a.succeeded = a.done.total();
    if let Some(limit) = spec.backoff_limit_per_index {
        let known = Indexes::parse(status.and_then(|s| s.failed_indexes.as_deref()).unwrap_or_default(), completions);
        let failed = known.with(held().filter(|p| view.is_index_failed(p, limit)).filter_map(|p| view.valid_index(p)));
        if a.end.is_none() {
            let fails =
                |reason: &str, message: &str| Some(condition("FailureTarget", "True", reason, message, view.now));
            if spec.max_failed_indexes.is_some_and(|max| failed.total() > max) {
                a.end = fails(
                    "MaxFailedIndexesExceeded",
                    "Job has exceeded the specified maximal number of failed indexes",
                );
            } else if !failed.is_empty() && failed.total().saturating_add(a.done.total()) >= completions {
                a.end = fails("FailedIndexes", "Job has failed indexes");
            }
        }
        a.delayed = delayed(view, a, &failed);
        a.failed_indexes = Some(failed);
    }
    if a.end.is_none()
        && let Some(rule) = policy::success(spec.success_policy.as_ref(), completions, &a.done)
    {
        a.end = Some(condition("SuccessCriteriaMet", "True", "SuccessPolicy", &rule, view.now));
    }
}

/// Of each index that is to be tried again the failed pod that knows of the most failures.
fn delayed(view: &View<'_>, a: &Assessment, failed: &Indexes) -> BTreeMap<i32, Arc<Pod>> {
    let mut out: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    let rank = |p: &Pod| (number(p, FAILURES).saturating_add(number(p, IGNORED_FAILURES)), backoff::finished_at(p));
    for pod in view.pods.iter().filter(|p| view.is_held(p) && view.is_failed(p)) {
        let Some(i) = view.valid_index(pod) else { continue };
        let settled = a.done.contains(i) || failed.contains(i) || a.active.iter().any(|p| index(p) == Some(i));
        if !settled && out.get(&i).is_none_or(|known| rank(known) <= rank(pod)) {
            out.insert(i, pod.clone());
        }
    }
    out
}

/// What is to be done about the pods of a Job that goes on.
pub(super) fn manage(view: &View<'_>, a: &Assessment) -> Action {
    let spec = view.spec;
    let active = len(a.active.len());
    if is_suspended(spec) {
        return if a.active.is_empty() { Action::Nothing } else { Action::Delete(a.active.clone()) };
    }
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let wanted = match spec.completions {
        // one success is enough, and then those that run may end
        None if a.succeeded > 0 => active,
        None => parallelism,
        Some(completions) => completions.saturating_sub(a.succeeded).clamp(0, parallelism),
    };
    let surplus = surplus(view, a, usize::try_from(active - wanted).unwrap_or(0));
    if !surplus.is_empty() {
        return Action::Delete(surplus);
    }
    let leaving = if replaces_only_failed(spec) { a.terminating } else { 0 };
    let missing = usize::try_from(wanted.saturating_sub(leaving).saturating_sub(active)).unwrap_or(0).min(BURST);
    if missing == 0 {
        return Action::Nothing;
    }
    if spec.backoff_limit_per_index.is_none() {
        let wait = a.record.remaining(view.now);
        if !wait.is_zero() {
            return Action::Wait(wait);
        }
    }
    if !is_indexed(spec) {
        return Action::Create(vec![None; missing]);
    }
    let indexes = pending(view, a, missing);
    if spec.backoff_limit_per_index.is_none() {
        return Action::Create(indexes.into_iter().map(Some).collect());
    }
    let wait = |i: &i32| {
        a.delayed.get(i).map_or(Duration::ZERO, |pod| {
            let failures = number(pod, FAILURES).saturating_add(number(pod, IGNORED_FAILURES)).saturating_add(1);
            backoff::remaining(u32::try_from(failures).unwrap_or(1), backoff::finished_at(pod), view.now)
        })
    };
    let ready: Vec<Option<i32>> = indexes.iter().filter(|i| wait(i).is_zero()).map(|i| Some(*i)).collect();
    match indexes.iter().map(wait).min() {
        Some(soonest) if ready.is_empty() => Action::Wait(soonest),
        _ => Action::Create(ready),
    }
}

/// The first indexes that have no pod yet and are neither done nor given up.
fn pending(view: &View<'_>, a: &Assessment, count: usize) -> Vec<i32> {
    let mut taken = a.done.with(a.active.iter().filter_map(|p| index(p)));
    if replaces_only_failed(view.spec) {
        let going = view.pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !pods::is_finished(p));
        taken = taken.with(going.filter_map(|p| index(p)));
    }
    if let Some(failed) = &a.failed_indexes {
        taken = taken.union(failed);
    }
    taken.missing(count, view.completions())
}

/// The active pods that are too many: those without a sensible index of their own, and at least `least` in all.
fn surplus(view: &View<'_>, a: &Assessment, least: usize) -> Vec<Arc<Pod>> {
    let mut sorted = a.active.clone();
    sorted.sort_by(|x, y| pods::by_usefulness(x, y, view.now, |_| 0));
    let (mut out, mut left) = (Vec::new(), Vec::new());
    if is_indexed(view.spec) {
        let mut seen = HashSet::new();
        // the most useful of an index stays
        for pod in sorted.into_iter().rev() {
            let keep = view.valid_index(&pod).is_some_and(|i| seen.insert(i));
            if keep { left.push(pod) } else { out.push(pod) }
        }
        left.reverse();
    } else {
        left = sorted;
    }
    let more = least.saturating_sub(out.len());
    out.extend(left.into_iter().take(more));
    out.truncate(BURST);
    out
}

/// Whether a Job that goes on has everything that it wanted.
pub(super) fn is_complete(spec: &JobSpec, a: &Assessment, active: usize) -> bool {
    let enough = spec.completions.map_or(a.succeeded > 0, |n| a.succeeded >= n);
    enough && active == 0
}

/// The annotations of a new pod of an index that tell how often it failed.
pub(super) fn failure_counts(view: &View<'_>, a: &Assessment, index: i32) -> Vec<(&'static str, String)> {
    if view.spec.backoff_limit_per_index.is_none() {
        return Vec::new();
    }
    let (mut failures, mut ignored) = (0, 0);
    if let Some(pod) = a.delayed.get(&index) {
        (failures, ignored) = (number(pod, FAILURES), number(pod, IGNORED_FAILURES));
        if view.verdict(pod) == Verdict::Ignore { ignored += 1 } else { failures += 1 }
    }
    let mut out = vec![(FAILURES, failures.to_string())];
    if ignored > 0 {
        out.push((IGNORED_FAILURES, ignored.to_string()));
    }
    out
}

/// How far the counting of ended pods is.
#[derive(Debug)]
pub(super) struct Tally {
    /// Pods whose finalizer may go once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
    /// Whether there is something to write.
    pub(super) changed: bool,
    /// Whether more pods wait than may be noted at once.
    pub(super) more: bool,
    /// UIDs of pods that still have their finalizer.
    pub(super) held: HashSet<String>,
    /// The condition by which the Job ends when everything is counted.
    pub(super) end: Option<JobCondition>,
}

/// Notes the ended pods in the status.
pub(super) fn tally(view: &View<'_>, a: &mut Assessment, end: Option<JobCondition>, status: &mut JobStatus) -> Tally {
    let spec = view.spec;
    let mut order: Vec<&Arc<Pod>> = view.pods.iter().filter(|p| view.is_held(p)).collect();
    if is_indexed(spec) {
        order.sort_by_key(|p| index(p));
    }
    let uid = |p: &Pod| p.metadata.uid.clone().unwrap_or_default();
    let mut t = Tally {
        release: Vec::new(),
        changed: false,
        more: false,
        held: order.iter().map(|p| uid(p)).collect(),
        end: None,
    };
    t.changed |= settle(status, &t.held);
    let failing = end.as_ref().is_some_and(|e| e.type_ != "SuccessCriteriaMet");
    let mut new_indexes = Vec::new();
    for pod in order {
        let noted = status.uncounted_terminated_pods.get_or_insert_default();
        let (succeeded, failed) = (noted.succeeded.get_or_insert_default(), noted.failed.get_or_insert_default());
        if new_indexes.len() + succeeded.len() + failed.len() >= MOST_UNCOUNTED {
            t.more = true;
            break;
        }
        let is_failed = view.is_failed(pod);
        let done = pods::phase(pod) == "Succeeded";
        let waits =
            view.valid_index(pod).and_then(|i| a.delayed.get(&i)).is_some_and(|d| d.metadata.uid == pod.metadata.uid);
        let over = view.job.metadata.deletion_timestamp.is_some() || end.is_some();
        if !(over || done || (is_failed && !waits)) {
            continue;
        }
        t.release.push(pod.clone());
        let uid = uid(pod);
        if done && !failed.contains(&uid) {
            if is_indexed(spec) {
                let new = view.valid_index(pod).filter(|i| !a.counted.contains(*i));
                t.changed |= new.is_some();
                new_indexes.extend(new);
            } else if !succeeded.contains(&uid) {
                succeeded.push(uid);
                t.changed = true;
            }
        } else if (is_failed || failing)
            && !failed.contains(&uid)
            && (!is_indexed(spec) || view.valid_index(pod).is_some())
            && view.verdict(pod) != Verdict::Ignore
        {
            failed.push(uid);
            t.changed = true;
        }
    }
    if is_indexed(spec) {
        a.done = a.done.with(new_indexes);
        let (done, failed) = (a.done.to_string(), a.failed_indexes.as_ref().map(Indexes::to_string));
        t.changed |= done != status.completed_indexes.as_deref().unwrap_or_default() || failed != status.failed_indexes;
        status.succeeded = Some(a.done.total()).filter(|n| *n > 0);
        status.completed_indexes = Some(done).filter(|d| !d.is_empty());
        status.failed_indexes = failed;
    }
    t.end = end.map(|end| {
        // what is going to happen is told before the finalizers go, so that no crash forgets it
        if matches!(end.type_.as_str(), "FailureTarget" | "SuccessCriteriaMet") {
            t.changed |= set_condition(status, end.clone());
        }
        let kind = if end.type_ == "SuccessCriteriaMet" { "Complete" } else { "Failed" };
        let (reason, message) = (end.reason.unwrap_or_default(), end.message.unwrap_or_default());
        condition(kind, "True", &reason, &message, view.now)
    });
    t
}

/// Counts the noted pods that no longer have their finalizer; says whether there were any.
pub(super) fn settle(status: &mut JobStatus, held: &HashSet<String>) -> bool {
    let Some(noted) = &mut status.uncounted_terminated_pods else { return false };
    let count = |list: &mut Option<Vec<String>>, number: &mut Option<i32>| {
        let Some(list) = list else { return false };
        let before = list.len();
        list.retain(|uid| held.contains(uid));
        let counted = before - list.len();
        *number = Some(number.unwrap_or(0).saturating_add(len(counted))).filter(|n| *n > 0);
        counted > 0
    };
    let succeeded = count(&mut noted.succeeded, &mut status.succeeded);
    let failed = count(&mut noted.failed, &mut status.failed);
    succeeded || failed
}

/// Ends the Job, when everything is counted and no pod is on its way out any more. Says whether it did.
pub(super) fn finish(status: &mut JobStatus, end: &JobCondition, terminating: i32) -> bool {
    let noted = status.uncounted_terminated_pods.as_ref();
    let waiting = noted.map_or(0, |n| n.succeeded.iter().flatten().count() + n.failed.iter().flatten().count());
    if waiting > 0 || terminating > 0 {
        return false;
    }
    if end.type_ == "Complete" {
        status.completion_time = end.last_transition_time.clone();
    }
    set_condition(status, end.clone());
    true
}

/// Leaves out what says nothing, as Kubernetes does.
pub(super) fn tidy(status: &mut JobStatus) {
    if let Some(noted) = &mut status.uncounted_terminated_pods {
        noted.succeeded = noted.succeeded.take().filter(|l| !l.is_empty());
        noted.failed = noted.failed.take().filter(|l| !l.is_empty());
    }
    status.active = status.active.filter(|n| *n > 0);
    status.conditions = status.conditions.take().filter(|c| !c.is_empty());
}
