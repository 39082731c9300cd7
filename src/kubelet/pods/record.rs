//! What a worker knows about its pod: plain data, changed only by [`Record::apply`] (what happened) and
//! [`step`](super::step::step) (what is done about it).

use crate::backoff::Backoff;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// After how long a failed preparation (volumes, sandbox, a container that cannot be described) is tried again.
pub(crate) const RETRY: Duration = Duration::from_secs(10);

/// A piece of work on the pod as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Stage {
    /// Not begun.
    #[default]
    Todo,
    /// A task is at it.
    Doing,
    /// Done.
    Done,
    /// It failed; to be tried again then.
    Failed {
        /// When it is tried again.
        retry: Instant,
    },
}

/// The pod's sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Sandbox {
    /// There is none.
    #[default]
    Absent,
    /// It is being made.
    Creating,
    /// Containers can be made in it.
    Ready,
    /// It could not be made.
    Failed {
        /// When it is tried again.
        retry: Instant,
    },
    /// Its monitor died; what is left has to be removed.
    Lost,
    /// What is left of it is being removed, to make a new one.
    Removing,
}

/// The part a container has in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Runs to its end before the main containers start.
    Init,
    /// An init container that goes on running beside the main containers (`restartPolicy: Always`).
    Sidecar,
    /// A main container.
    Main,
}

/// How a container ended, as told in the status of the pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Terminated {
    pub(crate) id: String,
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
}

/// Why a container is not running, or what went wrong at the last try.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }
}

/// The image of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Image {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// It is looked up, or pulled.
    Working,
    /// It is here.
    Present,
    /// It could not be had.
    Failed {
        /// When.
        at: Instant,
        /// Why: `ErrImagePull`, `InvalidImageName`, …
        problem: Problem,
    },
}

/// The image a container was made from, as reported in its status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageRef {
    /// A name of the image.
    pub(crate) image: String,
    /// Its repository digest, or its id when it has none.
    pub(crate) id: String,
}

/// A running container that is to end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stop {
    pub(crate) stage: StopStage,
    /// When it is killed; `None` until the pod's grace period was looked up.
    pub(crate) deadline: Option<Instant>,
}

impl Stop {
    pub(crate) fn wanted(deadline: Option<Instant>) -> Self {
        Self { stage: StopStage::Wanted, deadline }
    }
}

/// How far a running container is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopStage {
    /// Nothing was done about it yet.
    Wanted,
    /// Its preStop hook runs.
    PreStop,
    /// It waits for its turn to be told to end.
    Waiting,
    /// It was told to end.
    Killing,
}

/// A container that was started.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) started_at: Timestamp,
    /// The image named by the spec when it was started.
    pub(crate) spec_image: String,
    /// The postStart hook has not ended yet.
    pub(crate) hook_runs: bool,
    /// It is to end.
    pub(crate) stop: Option<Stop>,
}

/// State of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// Not started yet.
    Waiting,
    /// A task is starting it.
    Starting,
    /// Running.
    Running(Running),
    /// Ended, noticed at that moment.
    Exited(Terminated, Instant),
}

/// One container of the pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerRecord {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) state: State,
    /// How it ended before.
    pub(crate) last: Option<Terminated>,
    pub(crate) restarts: i32,
    pub(crate) backoff: Backoff,
    pub(crate) image: Image,
    pub(crate) pull_backoff: Backoff,
    pub(crate) image_ref: Option<ImageRef>,
    /// Why the last try to start it failed, without anything having run, and when it is tried again.
    pub(crate) problem: Option<(Problem, Instant)>,
    /// The back-off that is being waited for has been told in an event.
    pub(crate) backoff_told: bool,
    /// Its startup probe succeeded (or it has none).
    pub(crate) started: bool,
    /// Its readiness probe succeeds (or it has none).
    pub(crate) ready: bool,
}

impl ContainerRecord {
    pub(crate) fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            state: State::Waiting,
            last: None,
            restarts: 0,
            backoff: Backoff::default(),
            image: Image::Unknown,
            pull_backoff: Backoff::default(),
            image_ref: None,
            problem: None,
            backoff_told: false,
            started: false,
            ready: false,
        }
    }

    /// The id of the container that runs or ran last.
    pub(crate) fn id(&self) -> Option<&str> {
        match &self.state {
            State::Running(r) => Some(&r.id),
            State::Exited(t, _) => Some(&t.id),
            State::Waiting | State::Starting => self.last.as_ref().map(|t| t.id.as_str()),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// A process of it exists, or may come into being.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.state, State::Running(_) | State::Starting)
    }

    pub(crate) fn exited(&mut self, terminated: Terminated, now: Instant) {
        self.state = State::Exited(terminated, now);
        self.image = Image::Unknown;
        self.backoff_told = false;
        self.started = false;
        self.ready = false;
    }
}

/// Why the pod's containers are ended for good.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cause {
    /// The pod is being deleted.
    Deleted,
    /// It ran longer than `activeDeadlineSeconds`.
    Deadline,
    /// Its containers have ended by themselves.
    Finished,
    /// The node cannot keep it.
    Evicted,
    /// Somebody else says so: see [`Declared`].
    Declared,
}

/// An end that somebody else than this node has written into the status of the pod. As with any kubelet, it holds: what still
/// runs is ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    /// `Failed`; else it is `Succeeded`.
    pub(crate) has_failed: bool,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
}

impl Declared {
    /// What the status says, if it says that the pod has ended.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let has_failed = match status.phase.as_deref() {
            Some("Failed") => true,
            Some("Succeeded") => false,
            _ => return None,
        };
        Some(Self { has_failed, reason: status.reason.clone(), message: status.message.clone() })
    }
}

/// Why the node cannot keep a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Eviction {
    /// Kubernetes' words for it.
    pub(crate) message: String,
    /// The node is short of something; else it is the pod's own fault.
    pub(crate) is_disruption: bool,
}

/// The end of the pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ending {
    pub(crate) cause: Cause,
    /// When what still runs is killed.
    pub(crate) deadline: Instant,
}

/// Everything that is known about a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) start_time: Timestamp,
    /// [`Record::start_time`] on the clock that never jumps.
    pub(crate) started: Instant,
    pub(crate) rejected: Option<Problem>,
    /// The pod has to go.
    pub(crate) evicted: Option<Eviction>,
    /// The pod has ended, whatever its containers do.
    pub(crate) declared: Option<Declared>,
    /// Whether the pod has been given the devices of plugins that it asks for. Nothing is begun before that.
    pub(crate) admission: Stage,
    pub(crate) volumes: Stage,
    pub(crate) sandbox: Sandbox,
    pub(crate) ips: Vec<IpAddr>,
    /// Init containers (sidecars too) in their order, then the main containers.
    pub(crate) containers: Vec<ContainerRecord>,
    /// A main container was started in this sandbox: the init containers need not run any more.
    pub(crate) initialized: bool,
    pub(crate) ending: Option<Ending>,
    pub(crate) teardown: Stage,
    /// The object is gone from the API.
    pub(crate) gone: bool,
    /// The object's removal from the API was asked for.
    pub(crate) finalized: bool,
    /// Exits that were told before the start of their container was.
    pub(crate) early_exits: Vec<Terminated>,
    /// The last status of a pod that ended before this agent started.
    pub(crate) finished_before: Option<Box<PodStatus>>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The pod has its devices, or must not run here.
    Admitted(Result<(), Problem>),
    /// The volumes are ready, or could not be made.
    Volumes(Result<(), ()>),
    /// The sandbox is ready with these addresses, or could not be made.
    Sandbox(Result<Vec<IpAddr>, ()>),
    /// The remains of a lost sandbox are gone (or not).
    SandboxRemoved(Result<(), ()>),
    /// The sandbox's monitor died.
    SandboxLost,
    /// A container's image is here, or could not be had.
    Image { container: usize, result: Result<ImageRef, Problem> },
    /// The pod has to go.
    Evicted(Eviction),
    /// An image has arrived on this node: whoever waits for one may look again.
    ImageArrived,
    /// A container was started.
    Started { container: usize, running: Running, has_startup_probe: bool, has_readiness_probe: bool },
    /// A container could not be started.
    StartFailed { container: usize, failure: StartFailure },
    /// The postStart hook ended well, or not.
    PostStart { id: String, result: Result<(), ()>, has_startup_probe: bool, has_readiness_probe: bool },
    /// The preStop hook ended.
    PreStopped { id: String },
    /// A container could not be told to end.
    KillFailed { id: String },
    /// A container ended.
    Exited(Terminated),
    /// A probe changed its mind.
    Probe { id: String, result: ProbeResult },
    /// Everything of the pod is removed (or not).
    TornDown(Result<(), ()>),
    /// The API has been asked to remove the pod (or could not be).
    Finalized(Result<(), ()>),
}

/// Why a container could not be started.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StartFailure {
    /// It could not be described or made; nothing has run.
    NotMade(Problem),
    /// Its command cannot be run: counts as an exit.
    NotRun(Terminated),
}

/// What a probe found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    /// The startup probe succeeded.
    Started {
        /// Whether it is the readiness probe that says when the container is ready.
        has_readiness_probe: bool,
    },
    /// The readiness probe succeeded or failed.
    Ready(bool),
    /// A liveness or startup probe failed for good: the container must end, within this grace if given.
    Failed(Option<Duration>),
}

/// Containers of a pod with their parts, in the order of [`Record::containers`].
pub(crate) fn spec_containers(pod: &Pod) -> impl Iterator<Item = (Kind, &Container)> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let main = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let init = init.iter().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        (if sidecar { Kind::Sidecar } else { Kind::Init }, c)
    });
    init.chain(main.iter().map(|c| (Kind::Main, c)))
}

/// The container of a pod at an index of [`Record::containers`].
pub(crate) fn spec_container(pod: &Pod, index: usize) -> Option<&Container> {
    spec_containers(pod).nth(index).map(|(_, c)| c)
}

impl Record {
    /// The record of a pod nothing was done for yet.
    pub(crate) fn new(pod: &Pod, start_time: Timestamp, now: Instant) -> Self {
        Self {
            start_time,
            started: now,
            rejected: None,
            evicted: None,
            declared: None,
            admission: Stage::Done,
            volumes: Stage::Todo,
            sandbox: Sandbox::Absent,
            ips: Vec::new(),
            containers: spec_containers(pod).map(|(kind, c)| ContainerRecord::new(&c.name, kind)).collect(),
            initialized: false,
            ending: None,
            teardown: Stage::Todo,
            gone: false,
            finalized: false,
            early_exits: Vec::new(),
            finished_before: None,
        }
    }

    /// The pod takes a place on the node.
    pub(crate) fn is_active(&self) -> bool {
        self.rejected.is_none() && self.finished_before.is_none() && self.teardown != Stage::Done
    }

    /// Nothing is left to be done for the pod, and nobody asks for it any more.
    pub(crate) fn is_over(&self) -> bool {
        let nothing_left = self.rejected.is_some() || self.finished_before.is_some() || self.teardown == Stage::Done;
        nothing_left && self.gone
    }

    fn running_by_id(&mut self, id: &str) -> Option<&mut ContainerRecord> {
        self.containers.iter_mut().find(|c| matches!(&c.state, State::Running(r) if r.id == id))
    }

    /// Takes note of something that happened.
    pub(crate) fn apply(&mut self, event: Event, now: Instant) {
        let retry = now + RETRY;
        match event {
            Event::Admitted(result) => {
                self.admission = Stage::Done;
                self.rejected = result.err();
            }
            Event::Volumes(result) => self.volumes = result.map_or(Stage::Failed { retry }, |()| Stage::Done),
            Event::Sandbox(Ok(ips)) => {
                self.sandbox = Sandbox::Ready;
                self.ips = ips;
            }
            Event::Sandbox(Err(())) => self.sandbox = Sandbox::Failed { retry },
            Event::SandboxLost => self.sandbox = Sandbox::Lost,
            Event::SandboxRemoved(result) => self.sandbox_removed(result, now),
            Event::Image { container, result } => self.image(container, result, now),
            // what has ended by itself stays what it is
            Event::Evicted(eviction) if self.ending.as_ref().is_none_or(|e| e.cause == Cause::Deleted) => {
                self.evicted.get_or_insert(eviction);
            }
            Event::Evicted(_) => {}
            Event::ImageArrived => {
                for c in &mut self.containers {
                    if matches!(c.image, Image::Failed { .. }) {
                        c.image = Image::Unknown;
                    }
                }
            }
            Event::Started { container, running, has_startup_probe, has_readiness_probe } => {
                let Some(c) = self.containers.get_mut(container) else { return };
                c.problem = None;
                c.started = !has_startup_probe && !running.hook_runs;
                c.ready = c.started && !has_readiness_probe;
                self.initialized |= c.kind == Kind::Main;
                let early = self.early_exits.iter().position(|t| t.id == running.id);
                c.state = State::Running(running);
                if let Some(early) = early {
                    c.exited(self.early_exits.swap_remove(early), now);
                }
            }
            Event::StartFailed { container, failure } => {
                let Some(c) = self.containers.get_mut(container) else { return };
                match failure {
                    StartFailure::NotMade(problem) => {
                        c.state = State::Waiting;
                        c.problem = Some((problem, retry));
                    }
                    StartFailure::NotRun(terminated) => {
                        c.problem = None;
                        c.exited(terminated, now);
                    }
                }
            }
            Event::PostStart { id, result, has_startup_probe, has_readiness_probe } => {
                let Some(c) = self.running_by_id(&id) else { return };
                let State::Running(running) = &mut c.state else { return };
                running.hook_runs = false;
                if result.is_ok() {
                    c.started = !has_startup_probe;
                    c.ready = c.started && !has_readiness_probe;
                } else if running.stop.is_none() {
                    // the container is useless without what its hook should have done: the restart policy decides
                    running.stop = Some(Stop::wanted(None));
                }
            }
            Event::PreStopped { id } => {
                if let Some(ContainerRecord { state: State::Running(r), .. }) = self.running_by_id(&id)
                    && let Some(Stop { stage: stage @ StopStage::PreStop, .. }) = &mut r.stop
                {
                    *stage = StopStage::Waiting;
                }
            }
            Event::Exited(terminated) => {
                if let Some(c) = self.running_by_id(&terminated.id) {
                    c.exited(terminated, now);
                } else if self.containers.iter().any(|c| c.state == State::Starting) {
                    // so short-lived that its end overtook the news of its start
                    self.early_exits.push(terminated);
                }
            }
            Event::KillFailed { id } => {
                if let Some(ContainerRecord { state: State::Running(r), .. }) = self.running_by_id(&id)
                    && let Some(Stop { stage: stage @ StopStage::Killing, .. }) = &mut r.stop
                {
                    *stage = StopStage::Waiting;
                }
            }
            Event::Probe { id, result } => self.probe(&id, result, now),
            Event::TornDown(result) => self.teardown = result.map_or(Stage::Failed { retry }, |()| Stage::Done),
            Event::Finalized(result) => self.finalized = result.is_ok(),
        }
    }

    fn image(&mut self, container: usize, result: Result<ImageRef, Problem>, now: Instant) {
        let Some(c) = self.containers.get_mut(container) else { return };
        match result {
            Ok(image) => {
                c.image = Image::Present;
                c.image_ref = Some(image);
                c.pull_backoff = Backoff::default();
            }
            Err(problem) => {
                c.pull_backoff.next(now, now);
                c.image = Image::Failed { at: now, problem };
            }
        }
    }

    fn probe(&mut self, id: &str, result: ProbeResult, now: Instant) {
        let Some(c) = self.running_by_id(id) else { return };
        match result {
            ProbeResult::Started { has_readiness_probe } => {
                c.started = true;
                c.ready = !has_readiness_probe;
            }
            ProbeResult::Ready(ready) => c.ready = ready,
            ProbeResult::Failed(grace) => {
                c.ready = false;
                if let State::Running(running) = &mut c.state
                    && running.stop.is_none()
                {
                    running.stop = Some(Stop::wanted(grace.map(|g| now + g)));
                }
            }
        }
    }

    fn sandbox_removed(&mut self, result: Result<(), ()>, now: Instant) {
        if result.is_err() {
            self.sandbox = Sandbox::Failed { retry: now + RETRY };
            return;
        }
        self.sandbox = Sandbox::Absent;
        self.ips.clear();
        self.early_exits.clear();
        self.initialized = false;
        // a new sandbox begins with the init containers
        for c in self.containers.iter_mut().filter(|c| c.kind == Kind::Init) {
            if let State::Exited(terminated, _) = std::mem::replace(&mut c.state, State::Waiting) {
                c.last = Some(terminated);
                c.restarts += 1;
            }
        }
    }
}
