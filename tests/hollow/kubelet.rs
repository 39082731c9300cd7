//! What a hollow kubelet does with a pod, and says of it.

use super::pod::{SeenPod, is_unready};
use super::{Ended, Refused, Shared, State};
use edge_client::{Outcome, run_workers};
use k8s_openapi::jiff::{Timestamp, Unit};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The exit code of what was told to stop.
const STOPPED: i32 = 143;

/// A pod on a node.
pub(super) struct Instance {
    pub(super) pod: Arc<SeenPod>,
    came: Instant,
    started: Option<Instant>,
    told_to_stop: Option<Instant>,
    ended: bool,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Wait(Duration),
    Start,
    /// It has ended by itself, or because it was told to (`STOPPED`).
    End(i32),
    /// It is to go from the API.
    Remove,
}

impl Instance {
    pub(super) fn new(pod: SeenPod) -> Self {
        // one that was there before the fleet was
        let started = (pod.status.phase == "Running").then(Instant::now);
        let ended = pod.has_ended();
        Self { pod: Arc::new(pod), came: Instant::now(), started, told_to_stop: None, ended }
    }

    fn step(&mut self, now: Instant, exit_code: i32) -> Step {
        let left = |since: Instant, time: Duration| time.saturating_sub(now - since);
        if self.ended || self.pod.has_ended() {
            return if self.pod.is_going() { Step::Remove } else { Step::Nothing };
        }
        if self.pod.is_going() {
            let since = *self.told_to_stop.get_or_insert(now);
            let grace = Duration::from_secs(self.pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
            let time = self.pod.time("hollow/stops-in").unwrap_or_default().min(grace);
            return match left(since, if self.started.is_some() { time } else { Duration::ZERO }) {
                Duration::ZERO => Step::End(STOPPED),
                left => Step::Wait(left),
            };
        }
        let (since, time, then) = match self.started {
            None => (self.came, self.pod.time("hollow/starts-in").unwrap_or_default(), Step::Start),
            // the pods of a node that was missed are said not to be ready
            Some(_) if self.pod.status.phase == "Running" && is_unready(&self.pod.status.conditions) => {
                return Step::Start;
            }
            Some(started) => match self.pod.time("hollow/runs-for") {
                None => return Step::Nothing,
                Some(time) => (started, time, Step::End(exit_code)),
            },
        };
        match left(since, time) {
            Duration::ZERO => then,
            left => Step::Wait(left),
        }
    }
}

impl State {
    /// A pod runs from now on.
    fn started(&mut self, uid: &str) {
        let Some(instance) = self.pods.get_mut(uid) else { return };
        instance.started.get_or_insert_with(Instant::now);
        let key = instance.pod.key();
        if let Some(other) = self.running.insert(key.clone(), uid.to_owned())
            && other != uid
        {
            self.faults.push(format!("{key:?} runs twice: {other} and {uid}"));
        }
    }

    /// A pod runs no longer.
    pub(super) fn stopped(&mut self, uid: &str) {
        let Some(instance) = self.pods.get_mut(uid) else { return };
        instance.ended = true;
        let key = instance.pod.key();
        if self.running.get(&key).is_some_and(|known| known == uid) {
            self.running.remove(&key);
        }
    }

    /// A pod is not in the API any more.
    pub(super) fn vanished(&mut self, uid: &str) {
        let Some(instance) = self.pods.get(uid) else { return };
        let (key, node) = (instance.pod.key(), instance.pod.spec.node_name.clone());
        if self.running.get(&key).is_some_and(|known| known == uid) {
            if self.lost.contains(&node) && !self.forced.contains(uid) {
                self.faults.push(format!("{key:?} is gone, and still runs on {node}, which is lost"));
            }
            self.running.remove(&key);
        }
        self.pods.remove(uid);
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.remove(uid);
        }
    }

    /// What is to be done for a pod, and the pod.
    fn step(&mut self, uid: &str) -> Option<(Arc<SeenPod>, Step)> {
        let instance = self.pods.get_mut(uid)?;
        if self.lost.contains(&instance.pod.spec.node_name) {
            return None;
        }
        let pod = instance.pod.clone();
        let failed = self.failures.get(&pod.place()).copied().unwrap_or(0);
        let exit_code = if failed < pod.fails() { 1 } else { pod.exit_code() };
        Some((pod, instance.step(Instant::now(), exit_code)))
    }
}

/// Does what is to be done, for ever.
pub(super) async fn work(shared: Arc<Shared>) {
    let (queue, workers) = (shared.queue.clone(), shared.options.workers);
    run_workers("hollow", queue, workers, move |uid: String| {
        let shared = shared.clone();
        async move { shared.advance(&uid).await }
    })
    .await;
}

impl Shared {
    async fn advance(&self, uid: &str) -> Result<Outcome, Refused> {
        let step = self.state.lock().step(uid);
        let Some((pod, step)) = step else { return Ok(Outcome::Done) };
        match step {
            Step::Nothing => Ok(Outcome::Done),
            Step::Wait(time) => Ok(Outcome::After(time)),
            Step::Start => {
                let patch = status(&pod, &running(&pod));
                if self.tell(&pod, &patch).await?.is_none() {
                    return Ok(Outcome::Done);
                }
                let mut state = self.state.lock();
                state.started(uid);
                self.recount(&state);
                Ok(pod.time("hollow/runs-for").map_or(Outcome::Done, Outcome::After))
            }
            Step::End(code) => {
                let patch = status(&pod, &ended(&pod, code));
                let Some(told) = self.tell(&pod, &patch).await? else { return Ok(Outcome::Done) };
                self.note_end(&pod, code, told.metadata.deletion_timestamp.is_some());
                Ok(Outcome::Done)
            }
            Step::Remove => {
                let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
                match self.wire.delete(&pod.path(), &options).await {
                    Err(refused) if !matches!(refused.code(), 404 | 409) => Err(refused),
                    _ => Ok(Outcome::Done),
                }
            }
        }
    }

    /// Says something of a pod, and gives the pod then; `None` when it is not there any more.
    async fn tell(&self, pod: &SeenPod, patch: &Value) -> Result<Option<SeenPod>, Refused> {
        match self.wire.patch(&format!("{}/status", pod.path()), patch).await {
            Ok(answer) => Ok(serde_json::from_slice(&answer).ok()),
            Err(refused) if matches!(refused.code(), 404 | 409) => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    fn note_end(&self, pod: &SeenPod, exit_code: i32, was_going: bool) {
        let mut state = self.state.lock();
        state.stopped(&pod.metadata.uid);
        if exit_code != STOPPED {
            if exit_code != 0 {
                *state.failures.entry(pod.place()).or_default() += 1;
            }
            let ended = Ended { owner: pod.place(), exit_code, was_going };
            state.ended.entry(pod.metadata.uid.clone()).or_insert(ended);
        }
        self.recount(&state);
        drop(state);
        // it may have been told to go meanwhile
        self.queue.add(pod.metadata.uid.clone());
    }
}

fn now() -> String {
    Timestamp::now().round(Unit::Second).unwrap_or_default().to_string()
}

/// The address of a pod: all differ, and none is anybody's.
fn address(uid: &str) -> String {
    let number = uid.bytes().fold(0u32, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
    format!("100.{}.{}.{}", 64 + (number >> 16 & 63), number >> 8 & 255, number & 255)
}

fn status(pod: &SeenPod, status: &Value) -> Value {
    json!({"metadata": {"uid": pod.metadata.uid}, "status": status})
}

fn conditions(ready: bool, reason: Option<&str>) -> Value {
    let now = now();
    let one = |kind: &str, holds: bool| {
        let mut condition =
            json!({"type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": now});
        if let Some(reason) = reason.filter(|_| !holds) {
            condition["reason"] = reason.into();
        }
        condition
    };
    json!([
        one("PodReadyToStartContainers", ready),
        one("Initialized", true),
        one("Ready", ready),
        one("ContainersReady", ready),
        one("PodScheduled", true)
    ])
}

fn containers(pod: &SeenPod, ready: bool, state: &Value) -> Value {
    let of = |c: &super::pod::Container| {
        json!({"name": c.name, "image": c.image, "imageID": "", "containerID": format!("hollow://{}", pod.metadata.uid),
            "ready": ready, "started": ready, "restartCount": 0, "state": state})
    };
    pod.spec.containers.iter().map(of).collect()
}

fn running(pod: &SeenPod) -> Value {
    let (now, ip) = (now(), address(&pod.metadata.uid));
    json!({"phase": "Running", "startTime": now, "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.0.2.1",
        "hostIPs": [{"ip": "192.0.2.1"}], "conditions": conditions(true, None),
        "containerStatuses": containers(pod, true, &json!({"running": {"startedAt": now}}))})
}

fn ended(pod: &SeenPod, code: i32) -> Value {
    let now = now();
    let (phase, reason) = if code == 0 { ("Succeeded", "Completed") } else { ("Failed", "Error") };
    let state = json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": now, "finishedAt": now}});
    let why = if code == 0 { "PodCompleted" } else { "PodFailed" };
    json!({"phase": phase, "conditions": conditions(false, Some(why)), "containerStatuses": containers(pod, false, &state)})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(going: bool, annotations: &Value) -> Instance {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1",
            "annotations": annotations}, "spec": {"nodeName": "a", "containers": []}, "status": {"phase": "Pending"}});
        if going {
            pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
            pod["metadata"]["deletionGracePeriodSeconds"] = 1.into();
        }
        Instance::new(serde_json::from_value(pod).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_starts_runs_and_ends() {
        let mut one = instance(false, &json!({"hollow/starts-in": "100", "hollow/runs-for": "500"}));
        assert_eq!(one.step(Instant::now(), 3), Step::Wait(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(one.step(Instant::now(), 3), Step::Start);
        one.started = Some(Instant::now());
        assert_eq!(one.step(Instant::now(), 3), Step::Wait(Duration::from_millis(500)));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(one.step(Instant::now(), 3), Step::End(3));
        one.ended = true;
        assert_eq!(one.step(Instant::now(), 3), Step::Nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_told_to_stop_goes_within_its_grace_period() {
        let mut one = instance(true, &json!({"hollow/stops-in": "5000"}));
        one.started = Some(Instant::now());
        assert_eq!(one.step(Instant::now(), 0), Step::Wait(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(one.step(Instant::now(), 0), Step::End(STOPPED));
        one.ended = true;
        assert_eq!(one.step(Instant::now(), 0), Step::Remove);
        assert_eq!(instance(true, &json!({})).step(Instant::now(), 0), Step::End(STOPPED), "it has never run");
    }
}
