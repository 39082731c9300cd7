//! Jobs: pods that are to end well, so and so many of them.

mod backoff;
mod indexes;
mod plan;
mod policy;
#[cfg(test)]
mod tests;

use crate::context::{Context, each, unless_changed, unless_gone};
use crate::expectations::Expectations;
use crate::owners::{claim_all, controller_of, controller_of_kind, matches, selector};
use crate::written::Written;
use crate::{finalizers, pod_control, pods};
use backoff::Record;
use edge_client::{
    Api, Change, Error, EventType, Informer, Key, Outcome, Patch, PatchParams, PostParams, ResourceExt, WorkQueue,
    run_workers,
};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use plan::{Action, Assessment, FINALIZER, INDEX, Tally, View};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use plan::ended;

const WORKERS: usize = 5;
/// The controller that a Job names to be left alone by this one.
const OURS: &str = "kubernetes.io/job-controller";

struct Controller {
    context: Context,
    jobs: Arc<Informer<Job>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
    /// Pods that have a finalizer although no Job counts them.
    orphans: Arc<WorkQueue<Key>>,
    expectations: Expectations,
    /// UIDs of pods whose finalizer was removed, until the cache shows it.
    removed: Mutex<HashMap<Key, HashSet<String>>>,
    records: Mutex<HashMap<Key, Record>>,
    written: Written<Job>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        jobs: context.informers.of(),
        pods: context.informers.of(),
        queue: WorkQueue::new(),
        orphans: WorkQueue::new(),
        expectations: Expectations::default(),
        removed: Mutex::default(),
        records: Mutex::default(),
        written: Written::default(),
        context,
    });
    controller.jobs.synced().await;
    controller.pods.synced().await;
    let (worker, freer) = (controller.clone(), controller.clone());
    let work = run_workers("job", controller.queue.clone(), WORKERS, move |key: Key| {
        let controller = worker.clone();
        async move { Box::pin(controller.reconcile(&key)).await }
    });
    let free = run_workers("job-orphans", controller.orphans.clone(), 1, move |key: Key| {
        let controller = freer.clone();
        async move { controller.free(&key).await }
    });
    tokio::join!(
        each(&controller.jobs, |change| controller.job_changed(change)),
        each(&controller.pods, |change| controller.pod_changed(change)),
        work,
        free,
    );
}

/// Whether another controller sees to a Job.
fn is_foreign(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.managed_by.as_deref()).is_some_and(|by| by != OURS)
}

fn uid(pod: &Pod) -> String {
    pod.uid().unwrap_or_default()
}

impl Controller {
    fn job_changed(&self, change: &Change<Job>) {
        self.written.seen(change);
        let job = change.object();
        let key = Key::of(&**job);
        // nobody counts the pods of a Job that is over
        if matches!(change, Change::Deleted(_)) || plan::is_finished(job) {
            let pods = self.pods.list_namespace(&key.namespace).into_iter();
            for pod in pods.filter(|p| controller_of(&**p).is_some_and(|r| Some(&r.uid) == job.metadata.uid.as_ref())) {
                if finalizers::has(&*pod, FINALIZER) {
                    self.orphans.add(Key::of(&*pod));
                }
            }
        }
        self.queue.add(key);
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let namespace = pod.namespace().unwrap_or_default();
        let held = finalizers::has(&**pod, FINALIZER);
        let gone = matches!(change, Change::Deleted(_));
        if let Change::Applied { old: Some(old), new } = change
            && let Some(former) = controller_of_kind::<Job>(&**old)
            && controller_of(&**new).map(|r| &r.uid) != Some(&former.uid)
        {
            let key = Key::new(&namespace, &former.name);
            self.seen_removed(&key, &uid(pod));
            self.queue.add(key);
        }
        let Some(owner) = controller_of_kind::<Job>(&**pod) else {
            if controller_of(&**pod).is_none() && !gone {
                if held {
                    self.orphans.add(Key::of(&**pod));
                }
                for job in self.jobs.list_namespace(&namespace) {
                    let selected = job.spec.as_ref().and_then(|s| s.selector.as_ref());
                    if selected.is_some_and(|s| matches(&selector(s), &**pod)) {
                        self.queue.add(Key::of(&*job));
                    }
                }
            }
            return;
        };
        let key = Key::new(namespace, &owner.name);
        if gone || !held {
            self.seen_removed(&key, &uid(pod));
        }
        let job = self.jobs.get_key(&key).filter(|j| j.metadata.uid.as_ref() == Some(&owner.uid));
        self.expectations.observe(&key, change);
        if job.is_none_or(|j| plan::is_finished(&j)) {
            if held && !gone {
                self.orphans.add(Key::of(&**pod));
            }
            return;
        }
        self.queue.add(key);
    }

    fn seen_removed(&self, key: &Key, uid: &str) {
        let mut removed = self.removed.lock();
        if let Some(uids) = removed.get_mut(key) {
            uids.remove(uid);
            if uids.is_empty() {
                removed.remove(key);
            }
        }
    }

    /// Takes the finalizer off a pod that no Job counts.
    async fn free(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.get_key(key).filter(|p| finalizers::has(&**p, FINALIZER)) else {
            return Ok(Outcome::Done);
        };
        if let Some(owner) = controller_of(&*pod) {
            if controller_of_kind::<Job>(&*pod).is_none() {
                return Ok(Outcome::Done);
            }
            let job =
                self.jobs.get(&key.namespace, &owner.name).filter(|j| j.metadata.uid.as_ref() == Some(&owner.uid));
            if job.is_some_and(|j| is_foreign(&j) || !plan::is_finished(&j)) {
                return Ok(Outcome::Done);
            }
        }
        self.release(&pod).await?;
        Ok(Outcome::Done)
    }

    /// Takes the finalizer off a pod. A pod that changed meanwhile is an error: it must be looked at again.
    async fn release(&self, pod: &Pod) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        // by a patch that names this finalizer only, so that other changes of the pod do no harm
        let patch =
            serde_json::json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        unless_gone(api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(())
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(job) = self.jobs.get_key(key) else {
            self.expectations.forget(key);
            self.removed.lock().remove(key);
            self.records.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let job = self.written.newest(job);
        let Some(spec) = job.spec.as_ref().filter(|_| !is_foreign(&job)) else { return Ok(Outcome::Done) };
        if plan::is_finished(&job) {
            self.records.lock().remove(key);
            return Ok(Outcome::Done);
        }
        let satisfied = self.expectations.satisfied(key);
        let removed = self.removed.lock().get(key).cloned().unwrap_or_default();
        let pods = self.claim(&job, spec).await?;
        let now = Timestamp::now();
        // times count from the start, which may be now
        let mut started = (*job).clone();
        let status = started.status.get_or_insert_default();
        let starts = status.start_time.is_none() && !plan::is_suspended(spec);
        if starts {
            status.start_time = Some(Time(now));
        }
        let record = self.records.lock().get(key).copied().unwrap_or_default();
        let view = View { job: &started, spec, pods: &pods, removed: &removed, record, now };
        let mut a = plan::assess(&view);
        let (done, error) = self.act(key, &view, &a, satisfied).await;
        let next = [done.next, a.deadline].into_iter().flatten().min();
        let more = self.write(key, &job, &view, &mut a, done, starts).await?;
        match error {
            Some(error) => Err(error),
            None if more => Ok(Outcome::After(Duration::ZERO)),
            None => Ok(next.map_or(Outcome::Done, Outcome::After)),
        }
    }

    /// The pods of a Job, after adopting (with a finalizer) and releasing.
    async fn claim(&self, job: &Job, spec: &JobSpec) -> Result<Vec<Arc<Pod>>, Error> {
        let Some(selected) = &spec.selector else { return Ok(Vec::new()) };
        let candidates = self.pods.list_namespace(&job.namespace().unwrap_or_default());
        let mut pods = claim_all(&self.context.client, job, &selector(selected), candidates, |_| true).await?;
        pods.sort_by_key(|p| p.name_any());
        for pod in &mut pods {
            // one that was just adopted, or that somebody has made by hand
            if !finalizers::has(&**pod, FINALIZER) && pods::is_active(pod) && !self.was_released(job, pod) {
                let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
                let patch = Patch::Merge(finalizers::with(&**pod, FINALIZER));
                if let Some(held) = unless_changed(api.patch(&pod.name_any(), &PatchParams::default(), &patch).await)? {
                    *pod = Arc::new(held);
                }
            }
        }
        Ok(pods)
    }

    fn was_released(&self, job: &Job, pod: &Pod) -> bool {
        self.removed.lock().get(&Key::of(job)).is_some_and(|uids| uids.contains(&uid(pod)))
    }

    /// Makes and deletes pods.
    async fn act(&self, key: &Key, view: &View<'_>, a: &Assessment, satisfied: bool) -> (Acted, Option<Error>) {
        let job = view.job;
        let ready = a.active.iter().filter(|p| pods::is_ready(p)).count();
        let mut done = Acted { active: a.active.len(), ready, terminating: a.terminating, ..Acted::default() };
        if let Some(end) = &a.end {
            let (deleted, error) = self.delete(job, &a.active).await;
            done.note_deleted(&deleted);
            // not the end yet, as long as there may be pods that the cache does not show
            done.end = Some(end.clone()).filter(|_| done.active == 0 && satisfied);
            return (done, error);
        }
        let mut error = None;
        if satisfied && job.metadata.deletion_timestamp.is_none() {
            match plan::manage(view, a) {
                Action::Nothing => {}
                Action::Wait(wait) => done.next = Some(wait),
                Action::Delete(pods) => {
                    self.expectations.expect(key, 0, pods.iter().map(|p| uid(p)));
                    let deleted;
                    (deleted, error) = self.discard(key, job, &pods).await;
                    done.note_deleted(&deleted);
                }
                Action::Create(indexes) => {
                    let made;
                    (made, error) = self.create(key, view, a, &indexes).await;
                    done.active += made;
                }
            }
            done.managed = true;
        }
        if plan::is_complete(view.spec, a, done.active) {
            let reason = if view.spec.completions.is_some() || a.succeeded > 0 { "CompletionsReached" } else { "" };
            let message = "Reached expected number of succeeded pods";
            done.end = Some(plan::condition("SuccessCriteriaMet", "True", reason, message, view.now));
        }
        (done, error)
    }

    /// Deletes pods, which keep their finalizer until they are counted; gives those that are now going.
    async fn delete(&self, job: &Job, pods: &[Arc<Pod>]) -> (Vec<Arc<Pod>>, Option<Error>) {
        let deletions = pods
            .iter()
            .map(|pod| async move { pod_control::delete(&self.context, job, pod).await.map(|()| pod.clone()) });
        split(futures::future::join_all(deletions).await)
    }

    /// Deletes pods that are not to count.
    async fn discard(&self, key: &Key, job: &Job, pods: &[Arc<Pod>]) -> (Vec<Arc<Pod>>, Option<Error>) {
        let deletions = pods.iter().map(|pod| async move {
            let result = match self.release(pod).await {
                Ok(()) => pod_control::delete(&self.context, job, pod).await,
                error => error,
            };
            if result.is_err() {
                self.expectations.deleted(key, &uid(pod));
            }
            result.map(|()| pod.clone())
        });
        split(futures::future::join_all(deletions).await)
    }

    async fn create(
        &self,
        key: &Key,
        view: &View<'_>,
        a: &Assessment,
        indexes: &[Option<i32>],
    ) -> (usize, Option<Error>) {
        let base = new_pod(view.job, view.spec);
        self.expectations.expect(key, indexes.len(), []);
        let (made, error) = pod_control::slow_start(indexes.len(), async |i| {
            let pod = match indexes.get(i).copied().flatten() {
                Some(index) => with_index(&base, view, a, index),
                None => base.clone(),
            };
            pod_control::create(&self.context, view.job, &pod).await.map(|made| self.expectations.made(key, &made))
        })
        .await;
        self.expectations.not_made(key, indexes.len() - made);
        (made, error)
    }

    /// Counts what has ended, in the order that loses and doubles nothing, and writes the status. Says whether there is more to be counted
    /// than went into one round.
    async fn write(
        &self,
        key: &Key,
        known: &Arc<Job>,
        view: &View<'_>,
        a: &mut Assessment,
        done: Acted,
        starts: bool,
    ) -> Result<bool, Error> {
        let before = known.status.clone().unwrap_or_default();
        let mut status = view.job.status.clone().unwrap_or_default();
        status.uncounted_terminated_pods.get_or_insert_default();
        status.active = Some(i32::try_from(done.active).unwrap_or(i32::MAX));
        status.ready = Some(i32::try_from(done.ready).unwrap_or(i32::MAX));
        status.terminating = Some(done.terminating);
        let told = if done.managed && done.end.is_none() { self.suspension(view, &mut status) } else { false };
        let Tally { release, mut changed, more, mut held, end } = plan::tally(view, a, done.end, &mut status);
        let numbers = |s: &JobStatus| (s.active.unwrap_or(0), s.ready, s.terminating);
        changed |= told || starts || numbers(&before) != numbers(&status);
        let mut job = known.clone();
        if changed {
            job = self.flush(&job, &status).await?;
            self.records.lock().insert(key.clone(), a.record);
            changed = false;
        }
        let (released, error) = self.release_all(key, &release).await;
        for pod in &released {
            held.remove(&uid(pod));
        }
        changed |= plan::settle(&mut status, &held);
        if let Some(error) = error {
            if changed {
                self.flush(&job, &status).await?;
            }
            return Err(error);
        }
        let ends = end.filter(|end| !more && plan::finish(&mut status, end, done.terminating));
        if changed || ends.is_some() {
            self.flush(&job, &status).await?;
        }
        if let Some(end) = ends {
            self.tell_end(known, &end);
        }
        Ok(more)
    }

    /// Says in the conditions whether the Job is suspended.
    fn suspension(&self, view: &View<'_>, status: &mut JobStatus) -> bool {
        let (is, reason, message, event) = if plan::is_suspended(view.spec) {
            ("True", "JobSuspended", "Job suspended", "Suspended")
        } else {
            ("False", "JobResumed", "Job resumed", "Resumed")
        };
        let changed = plan::set_condition(status, plan::condition("Suspended", is, reason, message, view.now));
        if changed {
            self.context.recorder.event(view.job, EventType::Normal, event, message);
            if is == "False" {
                // a deadline is about the time for which a Job is active without a break
                status.start_time = Some(Time(view.now));
            }
        }
        changed
    }

    /// Writes the status, on condition that the Job is still the one that was read.
    async fn flush(&self, job: &Job, status: &JobStatus) -> Result<Arc<Job>, Error> {
        let mut next = job.clone();
        let mut tidied = status.clone();
        plan::tidy(&mut tidied);
        next.status = Some(tidied);
        let api: Api<Job> = Api::namespaced(self.context.client.clone(), &job.namespace().unwrap_or_default());
        let written = Arc::new(api.replace_status(&job.name_any(), &PostParams::default(), &next).await?);
        self.written.note(&written, || self.jobs.get_key(&Key::of(&*written)));
        Ok(written)
    }

    /// Takes the finalizers off pods; gives those where that worked.
    async fn release_all(&self, key: &Key, pods: &[Arc<Pod>]) -> (Vec<Arc<Pod>>, Option<Error>) {
        if pods.is_empty() {
            return (Vec::new(), None);
        }
        self.removed.lock().entry(key.clone()).or_default().extend(pods.iter().map(|p| uid(p)));
        let releases = pods.iter().map(|pod| async move {
            let result = self.release(pod).await;
            // the cache shows it already, or never will
            let shown = self.pods.get_key(&Key::of(&**pod)).is_none_or(|p| !finalizers::has(&*p, FINALIZER));
            if result.is_err() || shown {
                self.seen_removed(key, &uid(pod));
            }
            result.map(|()| pod.clone())
        });
        split(futures::future::join_all(releases).await)
    }

    fn tell_end(&self, job: &Job, end: &JobCondition) {
        let recorder = &self.context.recorder;
        if end.type_ == "Complete" {
            recorder.event(job, EventType::Normal, "Completed", "Job completed");
        } else {
            let reason = end.reason.as_deref().unwrap_or_default();
            recorder.event(job, EventType::Warning, reason, end.message.clone().unwrap_or_default());
        }
    }
}

/// What was done about the pods, and how many there are after it.
#[derive(Default)]
struct Acted {
    active: usize,
    ready: usize,
    terminating: i32,
    /// Whether the number of pods was seen to.
    managed: bool,
    end: Option<JobCondition>,
    next: Option<Duration>,
}

impl Acted {
    fn note_deleted(&mut self, pods: &[Arc<Pod>]) {
        self.active = self.active.saturating_sub(pods.len());
        self.ready = self.ready.saturating_sub(pods.iter().filter(|p| pods::is_ready(p)).count());
        self.terminating = self.terminating.saturating_add(i32::try_from(pods.len()).unwrap_or(i32::MAX));
    }
}

fn split<T>(results: Vec<Result<T, Error>>) -> (Vec<T>, Option<Error>) {
    let (mut good, mut first) = (Vec::new(), None);
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(error) => first = first.or(Some(error)),
        }
    }
    (good, first)
}

/// The pod of a Job, without an index.
fn new_pod(job: &Job, spec: &JobSpec) -> Pod {
    let mut pod = pod_control::pod_of(&spec.template, job);
    let all = pod.metadata.finalizers.get_or_insert_default();
    if !all.iter().any(|f| f == FINALIZER) {
        all.push(FINALIZER.into());
    }
    pod
}

/// The pod of an index: its containers find it in their environment, others in its name, host name and label.
fn with_index(base: &Pod, view: &View<'_>, a: &Assessment, index: i32) -> Pod {
    const VARIABLE: &str = "JOB_COMPLETION_INDEX";
    /// Generated names keep to 63 characters: five random ones follow.
    const LONGEST: usize = 58;
    let mut pod = base.clone();
    let job = view.job.name_any();
    let suffix = format!("-{index}-");
    let prefix = job.get(..job.len().min(LONGEST - suffix.len())).unwrap_or(&job);
    pod.metadata.generate_name = Some(format!("{prefix}{suffix}"));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    annotations.extend(plan::failure_counts(view, a, index).into_iter().map(|(k, v)| (k.to_owned(), v)));
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{job}-{index}"));
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|e| e.name == VARIABLE) {
            let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
            env.push(EnvVar {
                name: VARIABLE.into(),
                value: None,
                value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
            });
        }
    }
    pod
}
