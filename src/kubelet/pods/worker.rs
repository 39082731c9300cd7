//! The worker of one pod: takes in what happens, lets [`step`] decide, runs the actions as tasks, publishes the status.

use super::record::{Event, ProbeResult, Record, Sandbox, Stage, StartFailure, State, spec_container};
use super::sandbox;
use super::shared::PodShared;
use super::step::{Action, Step, step};
use crate::containers::{self, Before, hooks};
use crate::probes;
use crate::status::compute::{Now, compute};
use edge_client::{Api, DeleteParams, EventType, Preconditions, is_conflict, is_not_found};
use edge_runtime::error::chain;
use edge_runtime::{ContainerEvent, ContainerState};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// After how long a container that could not be told to end is told again.
const KILL_RETRY: Duration = Duration::from_secs(1);

/// What reaches a worker besides the newest state of its pod.
#[derive(Debug)]
pub(crate) enum Input {
    /// Something of this pod happened.
    Event(Event),
    /// The runtime tells about this pod's sandbox.
    Runtime(ContainerEvent),
    /// Something that is told of all pods has changed: the node's addresses.
    NodeChanged,
    /// The object is gone from the API.
    Gone,
}

/// The worker of one pod.
pub(crate) struct Worker {
    shared: Arc<PodShared>,
    pod: watch::Receiver<Arc<Pod>>,
    inputs: mpsc::UnboundedReceiver<Input>,
    events: mpsc::UnboundedSender<Input>,
    record: Record,
    tasks: JoinSet<()>,
    probes: HashMap<String, AbortOnDropHandle<()>>,
    updater: Option<AbortOnDropHandle<()>>,
    status: PodStatus,
    persisted: Option<(Option<i64>, bool)>,
    saving: Arc<Saving>,
}

/// What of a pod is to be on disk: one write at a time, and each writes the newest, so that no slow one puts back what was.
#[derive(Default)]
struct Saving {
    /// Not written yet; with its status, if it has ended.
    newest: parking_lot::Mutex<Option<(Arc<Pod>, Option<PodStatus>)>>,
    turn: tokio::sync::Mutex<()>,
}

impl Worker {
    pub(crate) fn new(
        shared: Arc<PodShared>,
        pod: watch::Receiver<Arc<Pod>>,
        inputs: mpsc::UnboundedReceiver<Input>,
        events: mpsc::UnboundedSender<Input>,
        record: Record,
    ) -> Self {
        let status = pod.borrow().status.clone().unwrap_or_default();
        Self {
            shared,
            pod,
            inputs,
            events,
            record,
            tasks: JoinSet::new(),
            probes: HashMap::new(),
            updater: None,
            status,
            persisted: None,
            saving: Arc::default(),
        }
    }

    /// Works until the pod is gone and nothing of it is left.
    pub(crate) async fn run(mut self) {
        loop {
            let now = Instant::now();
            let pod = self.pod.borrow_and_update().clone();
            let Step { actions, due } = step(&pod, &mut self.record, now);
            for action in actions {
                tracing::trace!(pod = self.shared.name, ?action, "begun");
                self.begin(&pod, action);
            }
            if self.record.ending.is_some() || self.record.rejected.is_some() {
                self.shared.ending.cancel();
            }
            self.shared.publish(&self.record);
            self.watch_containers(&pod);
            self.publish_status(&pod);
            self.persist(&pod);
            if self.record.is_over() {
                break;
            }
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                changed = self.pod.changed() => if changed.is_err() { return },
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
                Some(ended) = self.tasks.join_next() => if let Err(error) = ended {
                    tracing::error!(pod = self.shared.name, %error, "a task of the pod died");
                },
            }
            // whatever else has happened meanwhile is looked at together
            while let Ok(input) = self.inputs.try_recv() {
                self.take(input);
            }
        }
        self.forget().await;
    }

    fn take(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::Event(event) => {
                tracing::trace!(pod = self.shared.name, ?event, "heard");
                self.record.apply(event, now);
            }
            // the status is published with every turn
            Input::NodeChanged => {}
            Input::Gone => self.record.gone = true,
            Input::Runtime(ContainerEvent::SandboxLost { .. }) => self.record.apply(Event::SandboxLost, now),
            Input::Runtime(ContainerEvent::Started { .. }) => {}
            Input::Runtime(ContainerEvent::Exited { container_id, exit, .. }) => {
                self.probes.remove(&container_id);
                let shared = self.shared.clone();
                // the last words are read from files, and the spec that names them from the runtime
                self.spawn(async move {
                    let terminated = match shared.cx.runtime.container_status(&container_id).await {
                        Ok(status) => {
                            let id = container_id.clone();
                            let read = move || containers::terminated_status(&status, &exit);
                            tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
                                tracing::error!(container = id, %error, "termination message not read");
                                unknown(&id)
                            })
                        }
                        Err(_) => {
                            containers::terminated(&container_id, &exit, None, std::path::Path::new("/nonexistent"))
                        }
                    };
                    Event::Exited(terminated)
                });
            }
        }
    }

    /// Runs something that ends with an event.
    fn spawn(&mut self, work: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        self.tasks.spawn(async move {
            // the worker reads as long as it lives
            let _ = events.send(Input::Event(work.await));
        });
    }

    fn begin(&mut self, pod: &Arc<Pod>, action: Action) {
        let (shared, pod) = (self.shared.clone(), pod.clone());
        match action {
            Action::Admit => self.spawn(async move {
                let admitted = tokio::select! {
                    biased;
                    // what it may have been given is given up with the rest of it
                    () = shared.ending.cancelled() => return Event::Admitted(Ok(())),
                    admitted = shared.cx.device_plugins.admit(&pod) => admitted,
                };
                if let Err(problem) = &admitted {
                    shared.cx.recorder.event(&*pod, EventType::Warning, &problem.reason, problem.message.clone());
                }
                Event::Admitted(admitted)
            }),
            Action::SetUpVolumes => self.spawn(async move {
                let work = async { tokio::join!(shared.volumes.set_up(), shared.cx.devices.prepare(&shared)) };
                tokio::select! {
                    () = shared.ending.cancelled() => Event::Volumes(Err(())),
                    (ready, ()) = work => {
                        shared.set_ready_volumes(ready);
                        Event::Volumes(Ok(()))
                    }
                }
            }),
            Action::CreateSandbox => {
                let start_time = self.record.start_time;
                self.spawn(async move {
                    let made = sandbox::create(&shared, &pod, start_time).await;
                    Event::Sandbox(made.map_err(|error| {
                        let message = format!("Failed to create pod sandbox: {}", chain(&error));
                        shared.cx.recorder.event(&*pod, EventType::Warning, "FailedCreatePodSandBox", message);
                    }))
                });
            }
            Action::RemoveSandbox => {
                let message = "Pod sandbox changed, it will be killed and re-created.";
                shared.cx.recorder.event(&*pod, EventType::Normal, "SandboxChanged", message);
                self.spawn(async move { Event::SandboxRemoved(sandbox::remove(&shared).await.map_err(log_failure)) });
            }
            Action::EnsureImage(container) => self.ensure_image(pod, container),
            Action::Start { container, restarts } => self.start(pod, container, restarts),
            Action::TellBackOff(container) => {
                let (name, ns, uid) = (&shared.name, &shared.namespace, &shared.uid);
                self.tell(&pod, container, EventType::Warning, "BackOff", |c| {
                    format!("Back-off restarting failed container {} in pod {name}_{ns}({uid})", c.name)
                });
            }
            Action::TellPullBackOff(container) => {
                self.tell(&pod, container, EventType::Normal, "BackOff", |c| {
                    format!("Back-off pulling image {:?}", c.image.as_deref().unwrap_or_default())
                });
                self.tell(&pod, container, EventType::Warning, "Failed", |_| "Error: ImagePullBackOff".to_owned());
            }
            Action::PreStop { container, id, grace } => self.pre_stop(pod, container, id, grace),
            Action::Kill { container, id, grace } => self.kill(&pod, container, id, grace),
            Action::TearDown => {
                self.updater = None;
                self.spawn(async move { Event::TornDown(sandbox::tear_down(&shared).await.map_err(log_failure)) });
            }
            Action::Finalize => self.spawn(async move { finalize(&shared, &pod).await }),
        }
    }

    fn tell(&self, pod: &Pod, container: usize, kind: EventType, reason: &str, message: impl Fn(&Container) -> String) {
        let Some(spec) = spec_container(pod, container) else { return };
        let init = self.is_init(container);
        let about = crate::images::container_reference(pod, &spec.name, init);
        self.shared.cx.recorder.event_ref(about, kind, reason, message(spec));
    }

    fn is_init(&self, container: usize) -> bool {
        self.record.containers.get(container).is_some_and(|c| c.kind != super::record::Kind::Main)
    }

    fn ensure_image(&mut self, pod: Arc<Pod>, container: usize) {
        let (shared, init) = (self.shared.clone(), self.is_init(container));
        self.spawn(async move {
            let Some(spec) = spec_container(&pod, container) else {
                return Event::Image { container, result: Err(missing_container()) };
            };
            let result = tokio::select! {
                () = shared.ending.cancelled() => Err(missing_container()),
                result = crate::images::ensure(&shared, &pod, spec, init) => result,
            };
            Event::Image { container, result }
        });
    }

    fn start(&mut self, pod: Arc<Pod>, container: usize, restarts: i32) {
        let shared = self.shared.clone();
        let known = &self.record.containers[container];
        let before = Before {
            restarts,
            last: known.last.clone(),
            backoff: known.backoff.delay(),
            image: known.image_ref.clone().unwrap_or_default(),
            init: self.is_init(container),
        };
        let events = self.events.clone();
        self.spawn(async move {
            let Some(spec) = spec_container(&pod, container) else {
                return Event::StartFailed { container, failure: StartFailure::NotMade(missing_container()) };
            };
            let probes = (spec.startup_probe.is_some(), spec.readiness_probe.is_some());
            match containers::start(&shared, &pod, spec, before).await {
                Ok(running) => {
                    let id = running.id.clone();
                    let hook = spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
                    let started = Event::Started {
                        container,
                        running,
                        has_startup_probe: probes.0,
                        has_readiness_probe: probes.1,
                    };
                    let Some(hook) = hook else { return started };
                    // the worker reads as long as it lives
                    let _ = events.send(Input::Event(started));
                    let result = hooks::run(&shared, spec, &id, hook, None).await.map_err(|error| {
                        let about = crate::images::container_reference(&pod, &spec.name, before_init(&pod, container));
                        let message = format!("PostStartHook failed: {}", chain(&error));
                        shared.cx.recorder.event_ref(about, EventType::Warning, "FailedPostStartHook", message);
                    });
                    Event::PostStart { id, result, has_startup_probe: probes.0, has_readiness_probe: probes.1 }
                }
                Err(failure) => Event::StartFailed { container, failure },
            }
        });
    }

    fn pre_stop(&mut self, pod: Arc<Pod>, container: usize, id: String, grace: Duration) {
        let shared = self.shared.clone();
        self.spawn(async move {
            let spec = spec_container(&pod, container);
            let hook = spec.and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
            if let Some((spec, hook)) = hook
                && let Err(error) = hooks::run(&shared, spec, &id, hook, Some(grace)).await
            {
                let about = crate::images::container_reference(&pod, &spec.name, before_init(&pod, container));
                let message = format!("PreStopHook failed: {}", chain(&error));
                shared.cx.recorder.event_ref(about, EventType::Warning, "FailedPreStopHook", message);
            }
            Event::PreStopped { id }
        });
    }

    fn kill(&mut self, pod: &Arc<Pod>, container: usize, id: String, grace: Duration) {
        self.probes.remove(&id);
        self.tell(pod, container, EventType::Normal, "Killing", |c| format!("Stopping container {}", c.name));
        let (shared, events) = (self.shared.clone(), self.events.clone());
        self.tasks.spawn(async move {
            // its end arrives as an event of the runtime
            let Err(error) = shared.cx.runtime.stop_container(&id, grace).await else { return };
            tracing::warn!(container = id, error = chain(&error), "container not stopped");
            let event = match error {
                edge_runtime::Error::ContainerNotFound { .. } => Event::Exited(unknown(&id)),
                _ => {
                    sleep(KILL_RETRY).await;
                    Event::KillFailed { id }
                }
            };
            // the worker reads as long as it lives
            let _ = events.send(Input::Event(event));
        });
    }

    /// Probes run exactly as long as their containers; files of volumes are kept current once they are there.
    fn watch_containers(&mut self, pod: &Arc<Pod>) {
        for (index, c) in self.record.containers.iter().enumerate() {
            let State::Running(running) = &c.state else { continue };
            if running.hook_runs || running.stop.is_some() || self.probes.contains_key(&running.id) {
                continue;
            }
            let Some(spec) = spec_container(pod, index).filter(|c| probes::has_any(c)) else { continue };
            let (events, id) = (self.events.clone(), running.id.clone());
            let report = move |result: ProbeResult| {
                // the worker reads as long as it lives
                let _ = events.send(Input::Event(Event::Probe { id: id.clone(), result }));
            };
            let about = crate::images::container_reference(pod, &spec.name, c.kind != super::record::Kind::Main);
            let probe = probes::run(self.shared.clone(), spec.clone(), running.id.clone(), about, c.started, report);
            self.probes.insert(running.id.clone(), AbortOnDropHandle::new(tokio::spawn(probe)));
        }
        if self.updater.is_none() && self.record.volumes == Stage::Done && self.record.teardown == Stage::Todo {
            let shared = self.shared.clone();
            let update = async move {
                let kept = shared.kept.clone().write();
                let volumes = &shared.volumes;
                tokio::join!(volumes.keep_current(), volumes.keep_drivers_current(), shared.objects.keep(), kept);
            };
            self.updater = Some(AbortOnDropHandle::new(tokio::spawn(update)));
        }
    }

    fn publish_status(&mut self, pod: &Pod) {
        if self.record.gone {
            return;
        }
        let mut status = compute(pod, &self.record, &self.status, &self.shared.cx.config.ips(), Now::get());
        if self.record.finished_before.is_none() {
            self.shared.cx.devices.note_health(pod, &mut status);
            self.shared.cx.device_plugins.note_health(pod, &mut status);
        }
        self.status = status.clone();
        self.shared.cx.status.set(pod, status);
    }

    /// Keeps on disk what is needed to go on without the API.
    fn persist(&mut self, pod: &Arc<Pod>) {
        let finished = self.record.teardown == Stage::Done || self.record.rejected.is_some();
        let version = (pod.metadata.generation, finished);
        if self.persisted == Some(version) {
            return;
        }
        self.persisted = Some(version);
        let dir = self.shared.cx.config.pod_dir(&self.shared.uid);
        *self.saving.newest.lock() = Some((pod.clone(), finished.then(|| self.status.clone())));
        let saving = self.saving.clone();
        self.tasks.spawn(async move {
            let _turn = saving.turn.lock().await;
            let Some((pod, status)) = saving.newest.lock().take() else { return };
            let write = move || super::local::save(&dir, &pod, status.as_ref());
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "pod not written to disk"),
                Err(error) => tracing::error!(%error, "pod not written to disk"),
            }
        });
    }

    /// Removes the last traces of a pod that is gone.
    async fn forget(mut self) {
        self.probes.clear();
        self.updater = None;
        while self.tasks.join_next().await.is_some() {}
        self.shared.cx.status.forget(&self.shared.uid);
        super::local::remove(&self.shared.cx.config, &self.shared.namespace, &self.shared.name, &self.shared.uid).await;
    }
}

fn before_init(pod: &Pod, container: usize) -> bool {
    container < pod.spec.as_ref().and_then(|s| s.init_containers.as_ref()).map_or(0, Vec::len)
}

fn missing_container() -> super::record::Problem {
    super::record::Problem::new("ContainerCreating", "")
}

fn unknown(id: &str) -> super::record::Terminated {
    super::record::Terminated {
        id: id.to_owned(),
        exit_code: edge_runtime::status::UNKNOWN_EXIT_CODE,
        signal: None,
        reason: "ContainerStatusUnknown".to_owned(),
        message: None,
        started_at: None,
        finished_at: k8s_openapi::jiff::Timestamp::now(),
    }
}

fn log_failure(error: sandbox::SandboxError) {
    tracing::warn!(error = chain(&error), "pod not removed, trying again");
}

/// The last status first, then the object itself.
async fn finalize(shared: &PodShared, pod: &Pod) -> Event {
    shared.cx.status.flushed(&shared.uid).await;
    let api: Api<Pod> = Api::namespaced(shared.cx.client.clone(), &shared.namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    let mut delay = Duration::from_millis(100);
    loop {
        match api.delete(&shared.name, &params).await {
            Ok(_) => return Event::Finalized(Ok(())),
            Err(error) if is_not_found(&error) || is_conflict(&error) => return Event::Finalized(Ok(())),
            Err(error) => tracing::debug!(pod = shared.name, %error, "pod not deleted, trying again"),
        }
        sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(10));
    }
}

/// What is known of a pod whose sandbox was found at start.
pub(crate) fn restored(pod: &Pod, found: &edge_runtime::AdoptedSandbox, now: Instant) -> Record {
    let labels: sandbox::Labels = serde_json::from_value(found.spec.labels.clone()).unwrap_or_default();
    let wall = k8s_openapi::jiff::Timestamp::now();
    let start_time = labels.start_time.unwrap_or(wall);
    let mut record = Record::new(pod, start_time, now);
    let age = u64::try_from(wall.as_second() - start_time.as_second()).unwrap_or(0);
    // before the machine's start there is no monotonic time
    record.started = now.checked_sub(Duration::from_secs(age)).unwrap_or(now);
    record.sandbox = if found.ready { Sandbox::Ready } else { Sandbox::Lost };
    record.ips = labels.ips;
    for status in &found.containers {
        let Ok(labels) = serde_json::from_value::<containers::Labels>(status.spec.labels.clone()) else { continue };
        let position = record.containers.iter().position(|c| c.name == labels.name);
        let Some(index) = position else { continue };
        let has_startup = spec_container(pod, index).is_some_and(|c| c.startup_probe.is_some());
        let has_readiness = spec_container(pod, index).is_some_and(|c| c.readiness_probe.is_some());
        let before = pod.status.as_ref().map(|s| {
            let all = s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten());
            all.filter(|c| c.name == labels.name).any(|c| c.ready)
        });
        let c = &mut record.containers[index];
        if c.id().is_some() && c.restarts >= labels.restarts && c.state != State::Waiting {
            continue;
        }
        c.restarts = labels.restarts;
        c.last = labels.last;
        c.image_ref = Some(labels.image);
        c.backoff = crate::backoff::Backoff::restored(labels.backoff, now);
        match &status.state {
            // it was made but never started: made anew
            ContainerState::Created => c.state = State::Waiting,
            ContainerState::Running { started_at, .. } => {
                c.started = !has_startup;
                // what was ready stays ready until a probe says otherwise
                c.ready = c.started && (!has_readiness || before.unwrap_or(false));
                c.state = State::Running(super::record::Running {
                    id: status.spec.id.clone(),
                    started_at: *started_at,
                    spec_image: labels.spec_image,
                    hook_runs: false,
                    stop: None,
                });
            }
            ContainerState::Exited(exit) => {
                let ended = containers::terminated_status(status, exit);
                c.exited(ended, now);
            }
        }
        let has_run = !matches!(record.containers[index].state, State::Waiting);
        record.initialized |= record.containers[index].kind == super::record::Kind::Main && has_run;
    }
    record
}
