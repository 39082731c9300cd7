//! CronJobs: Jobs at certain times.
//!
//! The timer of a CronJob is set for its next start exactly. The name of a Job follows from its start, so that no crash makes
//! two of one start.

mod plan;

use crate::context::{Context, each, unless_gone};
use crate::job::ended;
use crate::owners::{controller_of, controller_of_kind, controller_reference};
use edge_api::cron::Schedule;
use edge_client::{
    Api, Change, DeleteParams, Error, EventType, Informer, Key, ObjectMeta, Outcome, PostParams, Preconditions,
    PropagationPolicy, ResourceExt, WorkQueue, object_reference, run_workers,
};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

struct Controller {
    context: Context,
    crons: Arc<Informer<CronJob>>,
    jobs: Arc<Informer<Job>>,
    queue: Arc<WorkQueue<Key>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        crons: context.informers.of(),
        jobs: context.informers.of(),
        queue: WorkQueue::new(),
        context,
    });
    controller.crons.synced().await;
    controller.jobs.synced().await;
    let worker = controller.clone();
    let work = run_workers("cronjob", controller.queue.clone(), WORKERS, move |key: Key| {
        let controller = worker.clone();
        async move { Box::pin(controller.reconcile(&key)).await }
    });
    tokio::join!(
        each(&controller.crons, |change| controller.queue.add(Key::of(&**change.object()))),
        each(&controller.jobs, |change| controller.job_changed(change)),
        work,
    );
}

/// A CronJob as it is worked on, and whether its status changed.
struct Draft<'a> {
    cron: &'a CronJob,
    status: CronJobStatus,
    changed: bool,
}

impl Draft<'_> {
    fn active(&self) -> usize {
        self.status.active.as_ref().map_or(0, Vec::len)
    }

    fn is_active(&self, uid: Option<&String>) -> bool {
        self.status.active.iter().flatten().any(|r| r.uid.as_ref() == uid)
    }

    fn forget(&mut self, uid: Option<&String>) {
        if let Some(active) = &mut self.status.active {
            let before = active.len();
            active.retain(|r| r.uid.as_ref() != uid);
            self.changed |= active.len() != before;
        }
    }

    fn note(&mut self, job: &Job) {
        if !self.is_active(job.metadata.uid.as_ref()) {
            self.status.active.get_or_insert_default().push(object_reference(job));
            self.changed = true;
        }
    }
}

impl Controller {
    fn job_changed(&self, change: &Change<Job>) {
        let job = change.object();
        if let Some(owner) = controller_of_kind::<CronJob>(&**job) {
            self.queue.add(Key::new(job.namespace().unwrap_or_default(), &owner.name));
        }
    }

    fn tell(&self, cron: &CronJob, kind: EventType, reason: &str, message: String) {
        self.context.recorder.event(cron, kind, reason, message);
    }

    fn api(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(cron) = self.crons.get_key(key) else { return Ok(Outcome::Done) };
        let spec = &cron.spec;
        let is_ours = |j: &Arc<Job>| controller_of(&**j).is_some_and(|r| Some(&r.uid) == cron.metadata.uid.as_ref());
        let jobs: Vec<_> = self.jobs.list_namespace(&key.namespace).into_iter().filter(is_ours).collect();
        let mut draft = Draft { cron: &cron, status: cron.status.clone().unwrap_or_default(), changed: false };
        self.take_stock(&mut draft, &jobs).await?;
        let result =
            if cron.metadata.deletion_timestamp.is_some() { Ok(None) } else { self.start(&mut draft, spec).await };
        for job in plan::surplus(spec, &jobs) {
            self.delete(&mut draft, &job).await?;
        }
        if draft.changed {
            let mut next = (*cron).clone();
            draft.status.active = draft.status.active.take().filter(|a| !a.is_empty());
            next.status = Some(draft.status);
            let api: Api<CronJob> = Api::namespaced(self.context.client.clone(), &key.namespace);
            unless_gone(api.replace_status(&key.name, &PostParams::default(), &next).await)?;
        }
        Ok(result?.map_or(Outcome::Done, Outcome::After))
    }

    /// Brings the list of active Jobs up to date.
    async fn take_stock(&self, draft: &mut Draft<'_>, jobs: &[Arc<Job>]) -> Result<(), Error> {
        for job in jobs {
            let known = draft.is_active(job.metadata.uid.as_ref());
            match ended(job) {
                None if !known && job.metadata.deletion_timestamp.is_none() => {
                    // made just before a crash, or adopted by hand: it counts as ours either way
                    draft.note(job);
                }
                None => {}
                Some(end) => {
                    if known {
                        draft.forget(job.metadata.uid.as_ref());
                        let message = format!("Saw completed job: {}, condition: {}", job.name_any(), end.type_);
                        self.tell(draft.cron, EventType::Normal, "SawCompletedJob", message);
                    }
                    let at = job.status.as_ref().and_then(|s| s.completion_time.clone());
                    let last = draft.status.last_successful_time.as_ref().map(|t| t.0);
                    if end.type_ == "Complete" && at.as_ref().map(|t| t.0) > last {
                        draft.status.last_successful_time = at;
                        draft.changed = true;
                    }
                }
            }
        }
        let known = draft.status.active.clone().unwrap_or_default();
        for reference in known.iter().filter(|r| !jobs.iter().any(|j| j.metadata.uid == r.uid)) {
            // the cache may only be behind
            let namespace = draft.cron.namespace().unwrap_or_default();
            let name = reference.name.clone().unwrap_or_default();
            let live = unless_gone(self.api(&namespace).get(&name).await)?;
            if live.is_none_or(|j| j.metadata.uid != reference.uid) {
                let message = format!("Active job went missing: {name}");
                self.tell(draft.cron, EventType::Normal, "MissingJob", message);
                draft.forget(reference.uid.as_ref());
            }
        }
        Ok(())
    }

    /// Starts what is due; gives the time to the next start.
    async fn start(&self, draft: &mut Draft<'_>, spec: &CronJobSpec) -> Result<Option<Duration>, Error> {
        let cron = draft.cron;
        let zone = match spec.time_zone.as_deref().map(|name| (name, TimeZone::get(name))) {
            None => TimeZone::system(),
            Some((_, Ok(zone))) => zone,
            Some((name, Err(error))) => {
                let message = format!("invalid timeZone: {name:?}: {error}");
                self.tell(cron, EventType::Warning, "UnknownTimeZone", message);
                return Ok(None);
            }
        };
        if spec.suspend == Some(true) {
            return Ok(None);
        }
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
                self.tell(cron, EventType::Warning, "UnparseableSchedule", message);
                return Ok(None);
            }
        };
        let now = Timestamp::now();
        let next = plan::wait(&schedule, &zone, now).map(|w| w.max(Duration::from_millis(1)));
        let Some(start) = plan::due(cron, spec, &schedule, &zone, now) else { return Ok(next) };
        if start.many_missed {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.tell(cron, EventType::Warning, "TooManyMissedTimes", message.to_owned());
        }
        if plan::is_too_late(spec, start.at, now) {
            let message = format!("Missed scheduled time to start a job: {}", start.at);
            self.tell(cron, EventType::Warning, "MissSchedule", message);
            return Ok(next);
        }
        let name = plan::job_name(&cron.name_any(), start.at);
        if draft.status.active.iter().flatten().any(|r| r.name.as_ref() == Some(&name)) {
            return Ok(next);
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if draft.active() > 0 => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(cron, EventType::Normal, "JobAlreadyActive", message.to_owned());
                return Ok(next);
            }
            Some("Replace") => {
                let namespace = cron.namespace().unwrap_or_default();
                for reference in draft.status.active.clone().unwrap_or_default() {
                    let name = reference.name.clone().unwrap_or_default();
                    match unless_gone(self.api(&namespace).get(&name).await)? {
                        Some(job) if job.metadata.uid == reference.uid => self.delete(draft, &job).await?,
                        _ => draft.forget(reference.uid.as_ref()),
                    }
                }
            }
            _ => {}
        }
        self.create(draft, spec, &name, start.at, &zone).await?;
        Ok(next)
    }

    async fn create(
        &self,
        draft: &mut Draft<'_>,
        spec: &CronJobSpec,
        name: &str,
        start: Timestamp,
        zone: &TimeZone,
    ) -> Result<(), Error> {
        let cron = draft.cron;
        let meta = spec.job_template.metadata.clone().unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        let local = start.to_zoned(zone.clone());
        annotations.insert(SCHEDULED.into(), local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z"));
        let job = Job {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: cron.namespace(),
                labels: meta.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controller_reference(cron)]),
                ..ObjectMeta::default()
            },
            spec: spec.job_template.spec.clone(),
            status: None,
        };
        let api = self.api(&cron.namespace().unwrap_or_default());
        let made = match api.create(&PostParams::default(), &job).await {
            Ok(made) => {
                self.tell(cron, EventType::Normal, "SuccessfulCreate", format!("Created job {name}"));
                made
            }
            Err(error) if edge_client::is_conflict(&error) => {
                // made before, and a crash came before it was noted
                let live = unless_gone(api.get(name).await)?;
                let ours = |j: &Job| controller_of(j).map(|r| &r.uid) == cron.metadata.uid.as_ref();
                match live.filter(ours) {
                    Some(job) => job,
                    None => return Err(self.refused(cron, error)),
                }
            }
            Err(error) => return Err(self.refused(cron, error)),
        };
        if ended(&made).is_none() {
            draft.note(&made);
        }
        draft.status.last_schedule_time = Some(Time(start));
        draft.changed = true;
        Ok(())
    }

    fn refused(&self, cron: &CronJob, error: Error) -> Error {
        self.tell(cron, EventType::Warning, "FailedCreate", format!("Error creating job: {error}"));
        error
    }

    async fn delete(&self, draft: &mut Draft<'_>, job: &Job) -> Result<(), Error> {
        let name = job.name_any();
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions { uid: job.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        if unless_gone(self.api(&job.namespace().unwrap_or_default()).delete(&name, &params).await)?.is_some() {
            self.tell(draft.cron, EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
        }
        draft.forget(job.metadata.uid.as_ref());
        Ok(())
    }
}
