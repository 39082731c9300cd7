//! The decision core of a pod's worker: looks at the pod and at what is known about it, and says what to do now and when
//! to look again. Pure: no IO, no clock but the one it is given.

use super::record::{
    Cause, ContainerRecord, Declared, Ending, Image, Kind, Problem, Record, Sandbox, Stage, State, Stop, StopStage,
    Terminated, spec_container,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::time::Duration;
use tokio::time::Instant;

/// Containers always get this long between being told to end and being killed, unless the node cannot keep them.
const SHORTEST_GRACE: Duration = Duration::from_secs(2);
/// Grace period when the pod names none.
const DEFAULT_GRACE: i64 = 30;
/// How long a failed pull is shown as such before the status tells of the back-off.
pub(crate) const SHOW_PULL_ERROR: Duration = Duration::from_secs(1);

/// Something to be done. Each is a task of its own that reports back with an event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Give the pod the devices of plugins that it asks for.
    Admit,
    /// Make the volumes.
    SetUpVolumes,
    /// Make the network and the sandbox.
    CreateSandbox,
    /// Remove what is left of a lost sandbox.
    RemoveSandbox,
    /// Have a container's image here.
    EnsureImage(usize),
    /// Make and start a container; this often it was restarted before.
    Start {
        /// Which.
        container: usize,
        /// How often it was restarted.
        restarts: i32,
    },
    /// Tell in an event that a container's restart is put off.
    TellBackOff(usize),
    /// Tell in an event that a container's pull is put off.
    TellPullBackOff(usize),
    /// Run a container's preStop hook, for at most this long.
    PreStop {
        /// Which.
        container: usize,
        /// Its id.
        id: String,
        /// For how long.
        grace: Duration,
    },
    /// Tell a container to end, and kill it after the grace.
    Kill {
        /// Which.
        container: usize,
        /// Its id.
        id: String,
        /// After how long it is killed.
        grace: Duration,
    },
    /// Remove sandbox, network and volumes.
    TearDown,
    /// Report the last status and have the object removed from the API.
    Finalize,
}

/// What to do now, and when to look again even if nothing happens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Step {
    pub(crate) actions: Vec<Action>,
    pub(crate) due: Option<Instant>,
}

impl Step {
    fn at(&mut self, when: Instant) {
        self.due = Some(self.due.map_or(when, |due| due.min(when)));
    }
}

/// Decides, and notes in the record what is begun.
pub(crate) fn step(pod: &Pod, record: &mut Record, now: Instant) -> Step {
    let mut step = Step::default();
    let deleted = record.gone || pod.metadata.deletion_timestamp.is_some();
    if record.rejected.is_some() || record.finished_before.is_some() {
        finalize(deleted, record, &mut step);
        return step;
    }
    begin_ending(pod, record, deleted, now, &mut step);
    if record.ending.is_none() && record.admission == Stage::Todo {
        record.admission = Stage::Doing;
        step.actions.push(Action::Admit);
    }
    if record.ending.is_none() && record.admission == Stage::Done {
        prepare(record, now, &mut step);
        start_containers(pod, record, now, &mut step);
    }
    // starting may have found that everything has ended
    stop_containers(pod, record, now, &mut step);
    if record.ending.is_some() {
        tear_down(record, now, &mut step);
        if record.teardown == Stage::Done {
            finalize(deleted, record, &mut step);
        }
    }
    step
}

/// The grace period of the pod's containers.
pub(crate) fn grace_period(pod: &Pod) -> Duration {
    let deletion = pod.metadata.deletion_grace_period_seconds;
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    let seconds = deletion.or(spec).unwrap_or(DEFAULT_GRACE);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1))
}

fn finalize(deleted: bool, record: &mut Record, step: &mut Step) {
    if deleted && !record.gone && !record.finalized {
        record.finalized = true;
        step.actions.push(Action::Finalize);
    }
}

fn begin_ending(pod: &Pod, record: &mut Record, deleted: bool, now: Instant, step: &mut Step) {
    let may_go = matches!(record.ending, None | Some(Ending { cause: Cause::Deleted, .. }));
    if record.evicted.is_some() && may_go {
        record.ending = Some(Ending { cause: Cause::Evicted, deadline: now });
    } else if record.declared.is_none() && may_go {
        // not what this node itself has written: its own reasons come first
        record.declared = Declared::of(pod);
    }
    if deleted {
        // a second, more impatient deletion shortens the grace
        let deadline = now + grace_period(pod);
        match &mut record.ending {
            Some(Ending { cause: Cause::Deleted, deadline: known }) if *known <= deadline => {}
            Some(ending) => ending.deadline = ending.deadline.min(deadline),
            None => record.ending = Some(Ending { cause: Cause::Deleted, deadline }),
        }
        return;
    }
    if record.declared.is_some() && record.ending.is_none() {
        record.ending = Some(Ending { cause: Cause::Declared, deadline: now + grace_period(pod) });
    }
    let limit = pod.spec.as_ref().and_then(|s| s.active_deadline_seconds).and_then(|s| u64::try_from(s).ok());
    if let Some(limit) = limit
        && record.ending.is_none()
    {
        let end = record.started + Duration::from_secs(limit);
        if now >= end {
            record.ending = Some(Ending { cause: Cause::Deadline, deadline: now + grace_period(pod) });
        } else {
            step.at(end);
        }
    }
}

fn is_due(retry: Instant, now: Instant, step: &mut Step) -> bool {
    if now < retry {
        step.at(retry);
    }
    now >= retry
}

/// Begins what does not depend on anything: volumes and sandbox, at the same time.
fn prepare(record: &mut Record, now: Instant, step: &mut Step) {
    let begin = match record.volumes {
        Stage::Todo => true,
        Stage::Failed { retry } => is_due(retry, now, step),
        Stage::Doing | Stage::Done => false,
    };
    if begin {
        record.volumes = Stage::Doing;
        step.actions.push(Action::SetUpVolumes);
    }
    let create = match record.sandbox {
        Sandbox::Absent => true,
        Sandbox::Failed { retry } => is_due(retry, now, step),
        // what was in it has ended, but the news of that, or of a start in between, may still be on its way
        Sandbox::Lost if record.containers.iter().any(ContainerRecord::is_active) => false,
        Sandbox::Lost => {
            record.sandbox = Sandbox::Removing;
            step.actions.push(Action::RemoveSandbox);
            false
        }
        Sandbox::Creating | Sandbox::Ready | Sandbox::Removing => false,
    };
    if create {
        record.sandbox = Sandbox::Creating;
        step.actions.push(Action::CreateSandbox);
    }
}

/// Whether a container that ended is to be started again.
pub(crate) fn restart_wanted(pod: &Pod, kind: Kind, spec: &Container, ended: &Terminated) -> bool {
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    let rules = spec.restart_policy_rules.as_deref().unwrap_or_default();
    let by_rule = rules.iter().any(|rule| {
        rule.action == "Restart"
            && rule.exit_codes.as_ref().is_some_and(|codes| {
                let listed = codes.values.as_deref().unwrap_or_default().contains(&ended.exit_code);
                listed == (codes.operator == "In")
            })
    });
    if by_rule {
        return true;
    }
    match (kind, spec.restart_policy.as_deref().unwrap_or(policy)) {
        (Kind::Sidecar, _) | (Kind::Main, "Always") => true,
        (Kind::Init, "Always") | (_, "OnFailure") => ended.exit_code != 0,
        _ => false,
    }
}

fn start_containers(pod: &Pod, record: &mut Record, now: Instant, step: &mut Step) {
    let wanted = wanted_containers(pod, record);
    let finished = match wanted {
        Wanted::Finished => true,
        Wanted::Start(indexes) => {
            for index in indexes {
                start(record, index, now, step);
            }
            false
        }
    };
    if finished {
        record.ending = Some(Ending { cause: Cause::Finished, deadline: now + grace_period(pod) });
    }
}

/// Which containers should run that do not.
enum Wanted {
    Start(Vec<usize>),
    /// None, ever.
    Finished,
}

fn wanted_containers(pod: &Pod, record: &Record) -> Wanted {
    let mut start = Vec::new();
    for (index, c) in record.containers.iter().enumerate() {
        let again = |ended: &Terminated| {
            spec_container(pod, index).is_some_and(|spec| restart_wanted(pod, c.kind, spec, ended))
        };
        match (c.kind, &c.state) {
            (Kind::Init, _) if record.initialized => {}
            (Kind::Init, State::Exited(ended, _)) if ended.exit_code == 0 => {}
            (Kind::Init, State::Exited(ended, _)) if !again(ended) => return Wanted::Finished,
            (Kind::Init, state) => {
                if matches!(state, State::Waiting | State::Exited(..)) {
                    start.push(index);
                }
                // what comes later waits for this one
                return Wanted::Start(start);
            }
            (Kind::Sidecar, state) => {
                if matches!(state, State::Waiting | State::Exited(..)) {
                    start.push(index);
                }
                if !record.initialized && !c.started {
                    return Wanted::Start(start);
                }
            }
            (Kind::Main, State::Waiting) => start.push(index),
            (Kind::Main, State::Exited(ended, _)) if again(ended) => start.push(index),
            (Kind::Main, _) => {}
        }
    }
    let done = |c: &ContainerRecord| c.kind != Kind::Main || matches!(c.state, State::Exited(..));
    let main_to_start = start.iter().any(|i| record.containers[*i].kind == Kind::Main);
    if !main_to_start && record.containers.iter().all(done) { Wanted::Finished } else { Wanted::Start(start) }
}

/// Takes a container nearer to running, if nothing has to be waited for.
fn start(record: &mut Record, index: usize, now: Instant, step: &mut Step) {
    let prepared = record.sandbox == Sandbox::Ready && record.volumes == Stage::Done;
    let c = &mut record.containers[index];
    if let State::Exited(_, at) = &c.state {
        let ready = c.backoff.ready_at(*at);
        if now < ready {
            step.at(ready);
            if !c.backoff_told {
                c.backoff_told = true;
                step.actions.push(Action::TellBackOff(index));
            }
            return;
        }
    }
    if let Some((_, retry)) = &c.problem
        && !is_due(*retry, now, step)
    {
        return;
    }
    match &c.image {
        Image::Unknown => {
            c.image = Image::Working;
            step.actions.push(Action::EnsureImage(index));
        }
        Image::Failed { at, problem } => {
            let shown = *at + SHOW_PULL_ERROR;
            let retry = c.pull_backoff.ready_at(*at);
            if is_due(retry, now, step) {
                c.image = Image::Working;
                c.backoff_told = false;
                step.actions.push(Action::EnsureImage(index));
            } else if problem.reason == "ErrImagePull" && is_due(shown, now, step) && !c.backoff_told {
                c.backoff_told = true;
                step.actions.push(Action::TellPullBackOff(index));
            }
        }
        Image::Present if prepared => {
            if let State::Exited(ended, at) = std::mem::replace(&mut c.state, State::Starting) {
                c.backoff.next(at, now);
                c.restarts += 1;
                c.last = Some(ended);
            }
            c.problem = None;
            step.actions.push(Action::Start { container: index, restarts: c.restarts });
        }
        Image::Working | Image::Present => {}
    }
}

/// Takes running containers that are to end nearer to it.
fn stop_containers(pod: &Pod, record: &mut Record, now: Instant, step: &mut Step) {
    let ending = record.ending.clone();
    for index in 0..record.containers.len() {
        let turn = is_its_turn(record, index);
        let Some(spec) = spec_container(pod, index) else { continue };
        let State::Running(running) = &mut record.containers[index].state else { continue };
        match &ending {
            Some(ending) => {
                let stop = running.stop.get_or_insert_with(|| Stop::wanted(Some(ending.deadline)));
                let known = stop.deadline.unwrap_or(ending.deadline);
                stop.deadline = Some(known.min(ending.deadline));
                if ending.deadline < known && stop.stage == StopStage::Killing {
                    stop.stage = StopStage::Waiting;
                }
            }
            // its image was changed: made anew, under the restart policy
            None if running.stop.is_none() && spec.image.as_ref() != Some(&running.spec_image) => {
                running.stop = Some(Stop::wanted(None));
            }
            None => {}
        }
        let Some(stop) = &mut running.stop else { continue };
        let deadline = *stop.deadline.get_or_insert_with(|| now + grace_period(pod));
        let left = deadline.saturating_duration_since(now);
        if stop.stage == StopStage::Wanted {
            let hook = spec.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some());
            if hook && !running.hook_runs && !left.is_zero() {
                stop.stage = StopStage::PreStop;
                step.actions.push(Action::PreStop { container: index, id: running.id.clone(), grace: left });
            } else {
                stop.stage = StopStage::Waiting;
            }
        }
        let may_kill = match stop.stage {
            StopStage::Waiting => ending.is_none() || turn || left.is_zero(),
            StopStage::PreStop => left.is_zero(),
            StopStage::Wanted | StopStage::Killing => false,
        };
        if may_kill {
            stop.stage = StopStage::Killing;
            let is_evicted = ending.as_ref().is_some_and(|e| e.cause == Cause::Evicted);
            let grace = if is_evicted { Duration::ZERO } else { left.max(SHORTEST_GRACE) };
            step.actions.push(Action::Kill { container: index, id: running.id.clone(), grace });
        } else if stop.stage != StopStage::Killing {
            step.at(deadline);
        }
    }
}

/// Sidecars are told to end after the main containers have ended, the last one first.
fn is_its_turn(record: &Record, index: usize) -> bool {
    match record.containers[index].kind {
        Kind::Init | Kind::Main => true,
        Kind::Sidecar => record.containers[index + 1..].iter().all(|c| c.kind == Kind::Init || !c.is_active()),
    }
}

fn tear_down(record: &mut Record, now: Instant, step: &mut Step) {
    let busy = record.containers.iter().any(ContainerRecord::is_active)
        || matches!(record.sandbox, Sandbox::Creating | Sandbox::Removing)
        || record.volumes == Stage::Doing
        || record.admission == Stage::Doing;
    let begin = match record.teardown {
        Stage::Todo => !busy,
        Stage::Failed { retry } => is_due(retry, now, step),
        Stage::Doing | Stage::Done => false,
    };
    if begin {
        record.teardown = Stage::Doing;
        step.actions.push(Action::TearDown);
    }
}

/// Why a container that does not run waits, as the status tells it.
pub(crate) fn waiting_reason(pod: &Pod, record: &Record, index: usize, now: Instant) -> Option<Problem> {
    let c = &record.containers[index];
    let spec = spec_container(pod, index)?;
    let default = || {
        let before = &record.containers[..index];
        let blocked = before.iter().any(|b| match b.kind {
            Kind::Init => !record.initialized && !matches!(&b.state, State::Exited(t, _) if t.exit_code == 0),
            Kind::Sidecar => !record.initialized && !b.started,
            Kind::Main => false,
        });
        let has_init = record.containers.iter().any(|b| b.kind == Kind::Init || b.kind == Kind::Sidecar);
        let initializing = has_init && (blocked || (c.kind != Kind::Main && record.sandbox != Sandbox::Ready));
        Problem::new(if initializing { "PodInitializing" } else { "ContainerCreating" }, "")
    };
    match &c.state {
        State::Running(_) => None,
        State::Exited(ended, at) => {
            if record.ending.is_some() || !restart_wanted(pod, c.kind, spec, ended) {
                return None;
            }
            if now < c.backoff.ready_at(*at) {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                let delay = go_duration(c.backoff.delay());
                let message =
                    format!("back-off {delay} restarting failed container={} pod={name}_{namespace}({uid})", c.name);
                return Some(Problem::new("CrashLoopBackOff", message));
            }
            image_problem(c, spec, now)
        }
        State::Waiting => {
            Some(image_problem(c, spec, now).or_else(|| c.problem.clone().map(|(p, _)| p)).unwrap_or_else(default))
        }
        State::Starting => Some(default()),
    }
}

fn image_problem(c: &ContainerRecord, spec: &Container, now: Instant) -> Option<Problem> {
    let Image::Failed { at, problem } = &c.image else { return None };
    if problem.reason == "ErrImagePull" && now >= *at + SHOW_PULL_ERROR {
        let image = spec.image.as_deref().unwrap_or_default();
        let message = format!("Back-off pulling image {image:?}: ErrImagePull: {}", problem.message);
        return Some(Problem::new("ImagePullBackOff", message));
    }
    Some(problem.clone())
}

/// A duration of whole seconds as Go prints it (`10s`, `2m40s`, `5m0s`).
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}
