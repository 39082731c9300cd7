//! What happens when the node is short of something: its conditions, who is not let in, and who has to go; and pods that have more on the
//! disk than they may.
//!
//! In: thresholds ([`thresholds`]), what is left ([`observe`], every few seconds, and when the kernel says that processes wait for memory),
//! what pods use. Out: the node's conditions, removed images, and evictions: noted on disk first, so that a pod that has to go does not come
//! back whatever happens to the agent, then carried out by the pod's worker. At most one pod goes before it is looked again.

mod limits;
pub(crate) mod observe;
mod rank;
mod stalls;
mod thresholds;

pub(crate) use thresholds::Signal;
pub use thresholds::{ThresholdError, Thresholds};

use crate::containers::qos;
use crate::context::Context;
use crate::pods::Manager;
use crate::pods::record::{Cause, Eviction, Problem, Record, Stage, State};
use crate::pods::shared::PodShared;
use crate::serve::metrics::head;
use edge_client::{EventType, node_reference, placement};
use edge_image::ImageStore;
use edge_image::{GarbagePolicy, error_chain};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, Taint};
use observe::{Observations, observe};
use parking_lot::Mutex;
use rank::{Candidate, is_critical};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thresholds::{Resource, Shortage};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// How often it is looked what is left.
const LOOK: Duration = Duration::from_secs(10);
/// How long the measuring of a pod's files is waited for.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long the end of an evicted pod is waited for before the next one goes (Kubernetes' value).
const CLEAN_UP: Duration = Duration::from_secs(30);

/// The reason of evictions and refusals.
const REASON: &str = "Evicted";

/// What the node is short of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

impl Pressure {
    fn of(shortages: &[Shortage]) -> Self {
        let any = |of: &[Resource]| shortages.iter().any(|s| of.contains(&s.signal.resource()));
        Self {
            memory: any(&[Resource::Memory]),
            disk: any(&[Resource::Storage, Resource::Inodes]),
            pids: any(&[Resource::Pids]),
        }
    }

    /// The conditions that hold, by their names.
    fn names(self) -> Vec<&'static str> {
        let all = [(self.memory, "MemoryPressure"), (self.disk, "DiskPressure"), (self.pids, "PIDPressure")];
        all.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name).collect()
    }
}

/// When the node was last seen to be short of something.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    memory: Option<Instant>,
    disk: Option<Instant>,
    pids: Option<Instant>,
}

impl Seen {
    /// Takes in what there is a shortage of now; gives what is true since at most `transition`.
    fn note(&mut self, now: Pressure, at: Instant, transition: Duration) -> Pressure {
        let one = |seen: &mut Option<Instant>, is_now: bool| {
            if is_now {
                *seen = Some(at);
            }
            is_now || seen.is_some_and(|seen| at.saturating_duration_since(seen) < transition)
        };
        Pressure {
            memory: one(&mut self.memory, now.memory),
            disk: one(&mut self.disk, now.disk),
            pids: one(&mut self.pids, now.pids),
        }
    }
}

/// What is known of shortages.
pub(crate) struct Shortages {
    thresholds: Thresholds,
    transition: Duration,
    images_are_apart: bool,
    seen: Mutex<Seen>,
    pressure: watch::Sender<Pressure>,
    /// How many pods had to go, by the reason.
    evictions: Mutex<BTreeMap<&'static str, u64>>,
}

impl Shortages {
    /// Looks for the first time.
    pub(crate) fn new(thresholds: Thresholds, transition: Duration, agent_dir: &Path, images: &ImageStore) -> Self {
        let new = Self {
            thresholds,
            transition,
            images_are_apart: observe::images_are_apart(agent_dir),
            seen: Mutex::default(),
            pressure: watch::Sender::default(),
            evictions: Mutex::default(),
        };
        new.note(&observe(agent_dir, images));
        new
    }

    /// The node's conditions, as they come and go.
    pub(crate) fn pressure(&self) -> watch::Receiver<Pressure> {
        self.pressure.subscribe()
    }

    fn note(&self, observed: &Observations) -> Vec<Shortage> {
        let shortages = self.thresholds.crossed(observed);
        let now = self.seen.lock().note(Pressure::of(&shortages), Instant::now(), self.transition);
        let is_new = self.pressure.send_if_modified(|known| std::mem::replace(known, now) != now);
        for shortage in shortages.iter().filter(|_| is_new) {
            let Shortage { signal, available, threshold } = shortage;
            tracing::warn!(signal = signal.name(), %available, %threshold, "the node is short of something");
        }
        shortages
    }

    /// Why a pod is not let in.
    pub(crate) fn refusal(&self, pod: &Pod) -> Option<Problem> {
        refusal(pod, *self.pressure.borrow())
    }

    /// The counts in Prometheus' text format.
    pub(crate) fn write(&self, out: &mut String) {
        let name = "kubelet_evictions";
        head(out, name, "counter", "Cumulative number of pod evictions by eviction signal");
        for (signal, count) in &*self.evictions.lock() {
            // writing to a string cannot fail
            let _ = writeln!(out, "{name}{{eviction_signal=\"{signal}\"}} {count}");
        }
    }
}

fn refusal(pod: &Pod, pressure: Pressure) -> Option<Problem> {
    if pressure == Pressure::default() || is_critical(pod) {
        return None;
    }
    let only_memory = Pressure { memory: true, ..Pressure::default() };
    if pressure == only_memory {
        let (key, effect) = ("node.kubernetes.io/memory-pressure".to_owned(), "NoSchedule".to_owned());
        let taint = Taint { key, effect, ..Taint::default() };
        let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
        if qos::class(pod) != "BestEffort" || tolerations.iter().any(|t| placement::tolerates(t, &taint)) {
            return None;
        }
    }
    Some(Problem::new(REASON, format!("The node had condition: [{}]. ", pressure.names().join(" "))))
}

/// Whether a pod still has something that it could give back.
fn can_go(record: &Record) -> bool {
    record.is_active()
        && record.evicted.is_none()
        && record.ending.as_ref().is_none_or(|ending| ending.cause == Cause::Deleted)
}

/// Keeps the node from running out of something, for ever.
pub(crate) async fn run(cx: Arc<Context>, manager: Arc<Manager>) {
    tokio::join!(relieve(&cx, &manager), limits::keep(&cx, &manager));
}

async fn relieve(cx: &Context, manager: &Manager) {
    let stalls = stalls::Stalls::open();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stalls.next() => {}
        }
        // one pod that goes may not be enough
        while look(cx, manager).await {}
    }
}

fn observed(cx: &Context) -> Observations {
    observe(&cx.config.agent_dir, &cx.images)
}

/// Looks what is left, and does something about what is short; tells whether a pod had to go.
async fn look(cx: &Context, manager: &Manager) -> bool {
    let shortages = cx.shortages.note(&observed(cx));
    let Some(first) = shortages.first() else { return false };
    let resource = first.signal.resource();
    let about = node_reference(&cx.config.node_name);
    let message = format!("Attempting to reclaim {}", resource.name());
    cx.recorder.event_ref(about, EventType::Warning, "EvictionThresholdMet", message);
    if reclaim(cx, manager, first.signal).await {
        return false;
    }
    let pods: HashMap<String, Arc<PodShared>> = manager
        .list()
        .into_iter()
        .filter(|pod| can_go(&pod.record()) && !is_critical(&pod.pod()))
        .map(|pod| (pod.uid.clone(), pod))
        .collect();
    let of_images = cx.shortages.images_are_apart && matches!(first.signal, Signal::ImageFs | Signal::ImageFsInodes);
    let mut candidates = join_all(pods.values().map(|pod| candidate(cx, pod, resource, of_images))).await;
    rank::rank(&mut candidates, resource);
    for candidate in candidates {
        let Some(pod) = pods.get(&candidate.uid) else { continue };
        let message = rank::message(&pod.pod(), &candidate, &shortages, resource);
        let eviction = Eviction { message, is_disruption: true };
        if evict(cx, manager, pod, first.signal.name(), eviction).await {
            ended(pod).await;
            return true;
        }
    }
    false
}

/// Removes what nobody uses; tells whether that was enough.
async fn reclaim(cx: &Context, manager: &Manager, signal: Signal) -> bool {
    let is_on_disk = matches!(signal.resource(), Resource::Storage | Resource::Inodes);
    let has_images = !cx.shortages.images_are_apart || matches!(signal, Signal::ImageFs | Signal::ImageFsInodes);
    if !is_on_disk || !has_images {
        return false;
    }
    let mut keep = crate::images::used_images(cx);
    for pod in manager.list() {
        keep.extend(crate::images::images_of(cx, &pod.pod()));
    }
    let policy = GarbagePolicy { keep, free_bytes: u64::MAX, unused_for: crate::images::LEAST_AGE };
    match cx.images.collect_garbage(policy).await {
        Ok(freed) if freed.images.is_empty() && freed.bytes == 0 => {}
        Ok(freed) => tracing::info!(images = freed.images.len(), bytes = freed.bytes, "unused images removed"),
        Err(error) => tracing::warn!(error = error_chain(&error), "unused images not removed"),
    }
    crate::images::sweep_compiled(cx).await;
    cx.shortages.note(&observed(cx)).is_empty()
}

/// What a pod uses of a resource. Images that have a file system of their own share it with no pod's files.
async fn candidate(cx: &Context, pod: &Arc<PodShared>, resource: Resource, of_images: bool) -> Candidate {
    let object = pod.pod();
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut found = Candidate {
        uid: pod.uid.clone(),
        priority: rank::priority(&object),
        requested: rank::requested(&object, resource),
        ..Candidate::default()
    };
    match resource {
        Resource::Storage | Resource::Inodes if of_images => found.used = Some(0),
        Resource::Storage | Resource::Inodes => {
            // not the first to go only because others make that many files that this one's are not counted in time
            let local = crate::storage::local(pod, LOOK, PATIENCE).await.unwrap_or_default();
            let of = |used: crate::storage::Used| {
                number(if resource == Resource::Storage { used.bytes } else { used.inodes })
            };
            found.used = Some(of(local.total()));
            found.containers = local.containers.iter().map(|(name, c)| (name.clone(), of(c.total()))).collect();
        }
        Resource::Memory => {
            let usage = cx.runtime.sandbox_usage(&pod.uid).await;
            found.used = usage.ok().map(|usage| number(usage.memory_working_set));
            for container in &pod.record().containers {
                let State::Running(running) = &container.state else { continue };
                if let Ok(usage) = cx.runtime.container_usage(&running.id).await {
                    found.containers.insert(container.name.clone(), number(usage.memory_working_set));
                }
            }
        }
        Resource::Pids => {
            found.used = cx.runtime.sandbox_usage(&pod.uid).await.ok().map(|usage| number(usage.pids));
        }
    }
    found
}

/// Ends a pod for good; tells whether it was still there.
async fn evict(cx: &Context, manager: &Manager, pod: &PodShared, signal: &'static str, eviction: Eviction) -> bool {
    let (dir, noted) = (cx.config.pod_dir(&pod.uid), eviction.clone());
    let written = tokio::task::spawn_blocking(move || crate::pods::local::save_eviction(&dir, &noted)).await;
    // a full disk may be the very reason
    if let Err(error) = written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        tracing::warn!(pod = pod.name, %error, "eviction not written to disk");
    }
    let message = eviction.message.clone();
    if !manager.evict(&pod.uid, eviction) {
        return false;
    }
    tracing::warn!(pod = pod.name, namespace = pod.namespace, signal, why = message, "pod evicted");
    cx.recorder.event(&*pod.pod(), EventType::Warning, REASON, message);
    *cx.shortages.evictions.lock().entry(signal).or_default() += 1;
    true
}

/// Waits until nothing is left of an evicted pod but its object.
async fn ended(pod: &PodShared) {
    let mut record = pod.follow_record();
    let gone = |record: &Arc<Record>| record.teardown == Stage::Done || record.is_over();
    if timeout(CLEAN_UP, record.wait_for(gone)).await.is_err() {
        tracing::warn!(pod = pod.name, "an evicted pod takes long to end");
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn conditions_stay_for_a_while() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let transition = Duration::from_secs(300);
        let disk = Pressure { disk: true, ..Pressure::default() };
        let mut at = |second: u64, now: Pressure| seen.note(now, start + Duration::from_secs(second), transition);
        assert_eq!(at(0, Pressure::default()), Pressure::default());
        assert_eq!(at(10, disk), disk);
        assert_eq!(at(20, Pressure { memory: true, ..Pressure::default() }), Pressure { memory: true, ..disk });
        assert_eq!(at(309, Pressure::default()), Pressure { memory: true, ..disk });
        assert_eq!(at(310, Pressure::default()), Pressure { memory: true, ..Pressure::default() });
        assert_eq!(at(320, Pressure::default()), Pressure::default());
    }

    fn refused(spec: Value, pressure: Pressure) -> Option<String> {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        refusal(&pod, pressure).map(|problem| problem.message)
    }

    #[test]
    fn who_is_let_in() {
        let best_effort = || json!({"containers": [{"name": "c"}]});
        let burstable = || json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]});
        let with = |key: &str, value: Value| {
            let mut spec = best_effort();
            spec[key] = value;
            spec
        };
        let critical = || with("priority", json!(2_000_000_000));
        let tolerant =
            || with("tolerations", json!([{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]));
        let none = Pressure::default();
        let (memory, disk) = (Pressure { memory: true, ..none }, Pressure { disk: true, ..none });
        let told = |names: &str| Some(format!("The node had condition: [{names}]. "));
        for (spec, pressure, expected) in [
            (best_effort(), none, None),
            (best_effort(), memory, told("MemoryPressure")),
            (burstable(), memory, None),
            (tolerant(), memory, None),
            (tolerant(), Pressure { disk: true, ..memory }, told("MemoryPressure DiskPressure")),
            (burstable(), disk, told("DiskPressure")),
            (burstable(), Pressure { pids: true, ..none }, told("PIDPressure")),
            (critical(), Pressure { memory: true, disk: true, pids: true }, None),
        ] {
            assert_eq!(refused(spec.clone(), pressure), expected, "{spec} {pressure:?}");
        }
    }
}
