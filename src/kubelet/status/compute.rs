//! Computes the status of a pod from what its worker knows. Pure.

use crate::containers::qos;
use crate::pods::record::{Cause, ContainerRecord, Kind, Record, Sandbox, Stage, State, spec_container};
use crate::pods::step::waiting_reason;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::net::IpAddr;
use tokio::time::Instant;

/// The conditions that the kubelet writes; all others belong to somebody else.
pub(crate) const OWN_CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// The condition of pods that others than themselves or their owners end, and who does when it is the kubelet.
const DISRUPTION: (&str, &str) = ("DisruptionTarget", "TerminationByKubelet");

/// How ids of containers begin in statuses.
pub(crate) const ID_SCHEME: &str = "edge://";

/// The present moment on both clocks.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) wall: Timestamp,
}

impl Now {
    pub(crate) fn get() -> Self {
        Self { instant: Instant::now(), wall: whole_seconds(Timestamp::now()) }
    }
}

/// Kubernetes' times have whole seconds.
pub(crate) fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

/// The status of the pod. `before` is its previous status, for the times of its conditions.
pub(crate) fn compute(pod: &Pod, record: &Record, before: &PodStatus, host_ips: &[IpAddr], now: Now) -> PodStatus {
    if let Some(status) = &record.finished_before {
        return (**status).clone();
    }
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let pod_ips = if host_network && record.sandbox == Sandbox::Ready { host_ips } else { &record.ips };
    let mut status = PodStatus {
        phase: Some(phase(pod, record).to_owned()),
        host_ip: host_ips.first().map(ToString::to_string),
        host_ips: Some(host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: pod_ips.first().map(ToString::to_string),
        pod_ips: (!pod_ips.is_empty()).then(|| pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        qos_class: Some(qos::class(pod).to_owned()),
        start_time: Some(Time(record.start_time)),
        observed_generation: pod.metadata.generation,
        // not the kubelet's: kept as the API has them
        nominated_node_name: pod.status.as_ref().and_then(|s| s.nominated_node_name.clone()),
        resource_claim_statuses: pod.status.as_ref().and_then(|s| s.resource_claim_statuses.clone()),
        extended_resource_claim_status: pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.clone()),
        ..PodStatus::default()
    };
    if let Some(rejected) = &record.rejected {
        status.reason = Some(rejected.reason.clone());
        status.message = Some(format!("Pod was rejected: {}", rejected.message));
    } else {
        if record.ending.as_ref().is_some_and(|e| e.cause == Cause::Deadline) {
            status.reason = Some("DeadlineExceeded".to_owned());
            let message = "Pod was active on the node longer than the specified deadline";
            status.message = Some(message.to_owned());
        }
        if let Some(declared) = &record.declared {
            status.reason.clone_from(&declared.reason);
            status.message.clone_from(&declared.message);
        }
        if let Some(eviction) = record.evicted.as_ref().filter(|_| status.phase.as_deref() == Some("Failed")) {
            status.reason = Some("Evicted".to_owned());
            status.message = Some(eviction.message.clone());
        }
        let (init, main): (Vec<_>, Vec<_>) = (0..record.containers.len())
            .map(|index| (record.containers[index].kind, container_status(pod, record, index, now.instant)))
            .partition(|(kind, _)| *kind != Kind::Main);
        let strip = |list: Vec<(Kind, ContainerStatus)>| list.into_iter().map(|(_, status)| status).collect::<Vec<_>>();
        status.init_container_statuses = Some(strip(init)).filter(|list| !list.is_empty());
        status.container_statuses = Some(strip(main));
    }
    status.conditions = Some(conditions(pod, record, &status, before, now.wall));
    with_foreign_conditions(status, pod.status.as_ref().unwrap_or(before))
}

/// The status with the conditions of others as they are in `api`.
pub(crate) fn with_foreign_conditions(mut status: PodStatus, api: &PodStatus) -> PodStatus {
    let is_own = |c: &PodCondition| {
        let reason = c.reason.as_deref().unwrap_or_default();
        OWN_CONDITIONS.contains(&c.type_.as_str()) || (c.type_.as_str(), reason) == DISRUPTION
    };
    let mut conditions = status.conditions.take().unwrap_or_default();
    conditions.retain(is_own);
    let theirs = api.conditions.iter().flatten().filter(|c| !is_own(c));
    let new: Vec<_> = theirs.filter(|c| !conditions.iter().any(|own| own.type_ == c.type_)).cloned().collect();
    conditions.extend(new);
    status.conditions = Some(conditions);
    status
}

fn phase(pod: &Pod, record: &Record) -> &'static str {
    if record.rejected.is_some() {
        return "Failed";
    }
    if let Some(declared) = &record.declared {
        return if declared.has_failed { "Failed" } else { "Succeeded" };
    }
    match phase_of_containers(record) {
        // once a pod has ended others get its devices, and they must have been given up before that
        "Succeeded" | "Failed" if record.teardown != Stage::Done && has_devices(pod) => "Running",
        phase => phase,
    }
}

fn has_devices(pod: &Pod) -> bool {
    crate::devices::claims_any(pod) || crate::device_plugins::asks_any(pod)
}

fn phase_of_containers(record: &Record) -> &'static str {
    let main = || record.containers.iter().filter(|c| c.kind == Kind::Main);
    let all_ended = !record.containers.iter().any(ContainerRecord::is_active);
    if let Some(ending) = &record.ending {
        let succeeded = main().all(|c| matches!(&c.state, State::Exited(t, _) if t.exit_code == 0));
        match ending.cause {
            Cause::Deadline => return "Failed",
            Cause::Evicted if all_ended => return "Failed",
            Cause::Finished | Cause::Deleted
                if all_ended && (ending.cause == Cause::Finished || record.teardown != Stage::Todo) =>
            {
                return if succeeded { "Succeeded" } else { "Failed" };
            }
            Cause::Finished | Cause::Deleted | Cause::Evicted | Cause::Declared => {}
        }
    }
    let has_run = |c: &ContainerRecord| !matches!(c.state, State::Waiting | State::Starting) || c.last.is_some();
    if is_initialized(record) && main().all(has_run) { "Running" } else { "Pending" }
}

/// Whether the init containers have done their part.
fn is_initialized(record: &Record) -> bool {
    record.initialized || incomplete_init(record).is_empty()
}

fn incomplete_init(record: &Record) -> Vec<&str> {
    let incomplete = |c: &&ContainerRecord| match c.kind {
        Kind::Init => !matches!(&c.state, State::Exited(t, _) if t.exit_code == 0),
        Kind::Sidecar => !c.started,
        Kind::Main => false,
    };
    record.containers.iter().filter(incomplete).map(|c| c.name.as_str()).collect()
}

fn terminated(t: &crate::pods::record::Terminated) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{ID_SCHEME}{}", t.id)),
            exit_code: t.exit_code,
            // as the CRI has no signals, statuses of real kubelets hold none: the exit code tells it
            signal: None,
            reason: Some(t.reason.clone()),
            message: t.message.clone(),
            started_at: t.started_at.map(|at| Time(whole_seconds(at))),
            finished_at: Some(Time(whole_seconds(t.finished_at))),
        }),
        ..ContainerState::default()
    }
}

fn container_status(pod: &Pod, record: &Record, index: usize, now: Instant) -> ContainerStatus {
    let c = &record.containers[index];
    let spec_image = spec_container(pod, index).and_then(|s| s.image.clone()).unwrap_or_default();
    let mut last = c.last.as_ref().map(terminated);
    let state = match (&c.state, waiting_reason(pod, record, index, now)) {
        (State::Running(running), _) => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(whole_seconds(running.started_at))) }),
            ..ContainerState::default()
        },
        (State::Exited(ended, _), None) => terminated(ended),
        (state, waiting) => {
            if let State::Exited(ended, _) = state {
                last = Some(terminated(ended));
            }
            let problem = waiting.map(|p| (p.reason, Some(p.message).filter(|m| !m.is_empty())));
            let (reason, message) = problem.unwrap_or_else(|| ("ContainerCreating".to_owned(), None));
            ContainerState {
                waiting: Some(ContainerStateWaiting { reason: Some(reason), message }),
                ..ContainerState::default()
            }
        }
    };
    let completed = c.kind == Kind::Init && matches!(&c.state, State::Exited(t, _) if t.exit_code == 0);
    ContainerStatus {
        name: c.name.clone(),
        container_id: c.id().map(|id| format!("{ID_SCHEME}{id}")),
        image: c.image_ref.as_ref().map_or(spec_image, |i| i.image.clone()),
        image_id: c.image_ref.as_ref().map(|i| i.id.clone()).unwrap_or_default(),
        restart_count: c.restarts,
        started: Some(c.is_running() && c.started),
        ready: completed || (c.is_running() && c.ready),
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

/// What a condition says: true or false, and why not.
struct Says {
    type_: &'static str,
    is_true: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn conditions(pod: &Pod, record: &Record, status: &PodStatus, before: &PodStatus, now: Timestamp) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let containers_ready = containers_ready(record, phase);
    let ready = ready(pod, &containers_ready);
    let initialized = match phase {
        _ if record.rejected.is_some() => None,
        "Succeeded" => Some(Says { type_: "Initialized", is_true: true, reason: Some("PodCompleted"), message: None }),
        _ => Some(not_all("Initialized", "ContainersNotInitialized", "incomplete status", {
            if record.initialized { Vec::new() } else { incomplete_init(record) }
        })),
    };
    let sandbox = Says {
        type_: "PodReadyToStartContainers",
        is_true: record.sandbox == Sandbox::Ready && record.teardown == Stage::Todo,
        reason: None,
        message: None,
    };
    let scheduled = Says { type_: "PodScheduled", is_true: true, reason: None, message: None };
    let eviction = record.evicted.as_ref().filter(|e| e.is_disruption && phase == "Failed");
    let (type_, reason) = (DISRUPTION.0, Some(DISRUPTION.1));
    let disruption = eviction.map(|e| Says { type_, is_true: true, reason, message: Some(e.message.clone()) });
    let says = [Some(sandbox), initialized, Some(ready), Some(containers_ready), Some(scheduled), disruption];
    says.into_iter().flatten().map(|says| condition(says, pod, before, now)).collect()
}

fn condition(says: Says, pod: &Pod, before: &PodStatus, now: Timestamp) -> PodCondition {
    let status = if says.is_true { "True" } else { "False" };
    let known = before.conditions.iter().flatten().find(|c| c.type_ == says.type_ && c.status == status);
    PodCondition {
        type_: says.type_.to_owned(),
        status: status.to_owned(),
        reason: says.reason.map(str::to_owned),
        message: says.message,
        last_probe_time: None,
        last_transition_time: known.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        observed_generation: pod.metadata.generation,
    }
}

fn not_all(type_: &'static str, reason: &'static str, what: &str, missing: Vec<&str>) -> Says {
    let is_true = missing.is_empty();
    let message = (!is_true).then(|| format!("containers with {what}: [{}]", missing.join(" ")));
    Says { type_, is_true, reason: (!is_true).then_some(reason), message }
}

fn containers_ready(record: &Record, phase: &str) -> Says {
    let type_ = "ContainersReady";
    match phase {
        "Succeeded" => Says { type_, is_true: false, reason: Some("PodCompleted"), message: None },
        "Failed" => Says { type_, is_true: false, reason: Some("PodFailed"), message: None },
        _ => {
            let unready = |c: &&ContainerRecord| c.kind != Kind::Init && !(c.is_running() && c.ready);
            let missing = record.containers.iter().filter(unready).map(|c| c.name.as_str()).collect();
            not_all(type_, "ContainersNotReady", "unready status", missing)
        }
    }
}

/// The pod is ready when its containers and its readiness gates are.
fn ready(pod: &Pod, containers: &Says) -> Says {
    let type_ = "Ready";
    if !containers.is_true {
        return Says { type_, is_true: false, reason: containers.reason, message: containers.message.clone() };
    }
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let messages: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match conditions.iter().find(|c| c.type_ == *name) {
                None => Some(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
                Some(c) if c.status != "True" => {
                    Some(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", c.status))
                }
                Some(_) => None,
            }
        })
        .collect();
    if messages.is_empty() {
        return Says { type_, is_true: true, reason: None, message: None };
    }
    Says { type_, is_true: false, reason: Some("ReadinessGatesNotReady"), message: Some(messages.join(", ")) }
}
