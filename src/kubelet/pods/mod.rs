//! The pods of this node: which there are, and one worker for each.
//!
//! Comes in: pods of the informer, events of the runtime, what was found running or on disk at start. Goes out: workers
//! ([`worker`]) that make the pods run; each gets only what concerns its pod.

mod admit;
pub(crate) mod kept;
pub(crate) mod local;
pub(crate) mod objects;
pub(crate) mod record;
pub(crate) mod runtime_class;
mod sandbox;
pub(crate) mod shared;
pub(crate) mod step;
#[cfg(test)]
mod tests;
mod weights;
mod worker;

use crate::Error;
use crate::context::Context;
use crate::env::resolv::{self, Names};
use crate::status::compute::whole_seconds;
use edge_client::{Change, EventType, Informer};
use edge_runtime::error::chain;
use edge_runtime::{AdoptedSandbox, ContainerEvent};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kept::Content;
use local::Saved;
use parking_lot::Mutex;
use record::{Event, Eviction, Record, Sandbox, Stage};
use shared::PodShared;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use worker::{Input, Worker};

/// A pod that has a worker.
struct Handle {
    pod: watch::Sender<Arc<Pod>>,
    inputs: mpsc::UnboundedSender<Input>,
    shared: Arc<PodShared>,
    /// The API knows the pod no more: others may have its place, although what is left of it may still be ending.
    gone: bool,
}

impl Handle {
    fn tell_gone(&mut self) {
        self.gone = true;
        // a worker that has ended needs no telling
        let _ = self.inputs.send(Input::Gone);
    }
}

/// All pods of this node.
pub(crate) struct Manager {
    cx: Arc<Context>,
    handles: Mutex<HashMap<String, Handle>>,
    workers: TaskTracker,
    stop: CancellationToken,
    ended: mpsc::UnboundedSender<String>,
    /// What Burstable pods request of the processors, in thousandths.
    burstable: watch::Sender<i64>,
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

impl Manager {
    /// Takes over what runs, then follows the pods of this node.
    pub(crate) async fn start(
        cx: Arc<Context>,
        tasks: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let (ended, ended_rx) = mpsc::unbounded_channel();
        let (burstable, burstable_rx) = watch::channel(0);
        tasks.spawn(weights::keep(cx.clone(), burstable_rx));
        let workers = TaskTracker::new();
        let manager = Arc::new(Self { cx, handles: Mutex::default(), workers, stop, ended, burstable });
        // subscribed first, so that no exit falls between
        let runtime_events = manager.cx.runtime.events();
        let adopted = manager.cx.runtime.adopt().await.map_err(Error::Adopt)?;
        let orphans = manager.take_over(adopted).await?;
        manager.weigh();
        let pods = manager.cx.informers.select::<Pod>(&format!("spec.nodeName={}", manager.cx.config.node_name));
        tasks.spawn(manager.clone().follow(pods, runtime_events, ended_rx, orphans));
        Ok(manager)
    }

    /// Starts workers for the pods that were kept on disk. Returns the sandboxes and directories nobody knows the pod of.
    async fn take_over(self: &Arc<Self>, adopted: Vec<AdoptedSandbox>) -> Result<BTreeSet<String>, Error> {
        let dir = self.cx.config.agent_dir.join("pods");
        let path = dir.clone();
        let saved = tokio::task::spawn_blocking(move || local::load_all(&dir)).await;
        let saved = saved.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let saved = saved.map_err(|source| Error::Io { what: "cannot read", path, source })?;
        let mut sandboxes: HashMap<String, AdoptedSandbox> =
            adopted.into_iter().map(|found| (found.spec.id.clone(), found)).collect();
        let mut orphans = BTreeSet::new();
        for (uid, saved) in saved {
            let Some(Saved { pod, finished, evicted, kept }) = saved else {
                orphans.insert(uid);
                continue;
            };
            let sandbox = sandboxes.remove(&uid);
            let mut record = restored(&pod, finished, sandbox.as_ref());
            record.evicted = evicted;
            // it was about to be given devices, or they have to be made ready again after a reboot
            let is_new = record.finished_before.is_none() && record.sandbox == Sandbox::Absent;
            if is_new && self.cx.device_plugins.are_missing(&pod) {
                record.admission = Stage::Todo;
            }
            self.spawn(Arc::new(pod), record, kept);
        }
        orphans.extend(sandboxes.into_keys());
        Ok(orphans)
    }

    async fn follow(
        self: Arc<Self>,
        pods: Arc<Informer<Pod>>,
        mut runtime_events: mpsc::UnboundedReceiver<ContainerEvent>,
        mut ended: mpsc::UnboundedReceiver<String>,
        orphans: BTreeSet<String>,
    ) {
        let mut changes = pods.subscribe();
        let synced = async {
            pods.synced().await;
            pods.list()
        };
        tokio::pin!(synced);
        let mut orphans = Some(orphans);
        let mut addresses = self.cx.config.node_ips.clone();
        let mut health = self.cx.devices.health_changes();
        let mut plugins = self.cx.device_plugins.changes();
        loop {
            tokio::select! {
                Ok(()) = addresses.changed() => self.tell_all(|| Input::NodeChanged),
                Ok(()) = health.changed() => self.tell_all(|| Input::NodeChanged),
                Ok(()) = plugins.changed() => self.tell_all(|| Input::NodeChanged),
                change = changes.recv() => match change {
                    Some(change) => self.changed(change),
                    None => return,
                },
                event = runtime_events.recv() => match event {
                    Some(event) => self.route(event),
                    None => return,
                },
                uid = ended.recv() => if let Some(uid) = uid {
                    self.handles.lock().remove(&uid);
                    self.weigh();
                },
                list = &mut synced, if orphans.is_some() => {
                    // an orphan whose pod is in the list was started anew by its change, which has been or will be seen
                    let orphans = orphans.take().unwrap_or_default();
                    self.deleted_meanwhile(&list, orphans).await;
                },
            }
        }
    }

    /// After the first list: pods that are not in it were deleted while nobody looked.
    async fn deleted_meanwhile(&self, list: &[Arc<Pod>], mut orphans: BTreeSet<String>) {
        orphans.extend(self.cx.csi.pods());
        let alive: BTreeSet<String> = list.iter().map(|pod| uid(pod)).collect();
        let known: BTreeSet<String> = {
            let mut handles = self.handles.lock();
            for (uid, handle) in handles.iter_mut().filter(|(uid, _)| !alive.contains(*uid)) {
                tracing::info!(pod = handle.shared.name, uid, "pod was deleted while the agent was away");
                handle.tell_gone();
            }
            handles.keys().cloned().chain(alive).collect()
        };
        crate::devices::Devices::keep_only(&self.cx, &known);
        self.cx.device_plugins.keep_only(&known).await;
        self.cx.csi.settle_all(&self.cx);
        for uid in orphans.difference(&known) {
            tracing::info!(uid, "removing what is left of an unknown pod");
            self.remove_orphan(uid).await;
        }
        let network = self.cx.network.clone();
        let cleaned = tokio::task::spawn_blocking(move || network.cleanup_stale(&known)).await;
        if let Ok(Err(error)) = cleaned {
            tracing::warn!(error = chain(&error), "leftovers of pod networks not removed");
        }
    }

    async fn remove_orphan(&self, uid: &str) {
        if let Err(error) = self.cx.runtime.remove_sandbox(uid).await {
            tracing::warn!(uid, error = chain(&error), "sandbox of an unknown pod not removed");
        }
        let (cx, uid, dir) = (self.cx.clone(), uid.to_owned(), self.cx.config.pod_dir(uid));
        // drivers may take their time
        tokio::spawn(async move {
            let work = async {
                sandbox::release_volumes(&cx, &uid).await?;
                let remove = move || -> std::io::Result<()> {
                    crate::volumes::tear_down(&dir)?;
                    edge_sys::fsutil::remove_dir_all_if_exists(&dir)
                };
                tokio::task::spawn_blocking(remove).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
            };
            if let Some(Err(error)) = cx.stop.run_until_cancelled(work).await {
                tracing::warn!(uid, %error, "directory of an unknown pod not removed");
            }
        });
    }

    fn changed(self: &Arc<Self>, change: Change<Pod>) {
        match change {
            Change::Deleted(pod) => self.gone(&uid(&pod)),
            Change::Applied { old, new } => {
                let old = old.map(|old| uid(&old)).filter(|old| *old != uid(&new));
                if let Some(old) = old {
                    self.gone(&old);
                }
                self.applied(new);
            }
        }
    }

    fn gone(&self, uid: &str) {
        if let Some(handle) = self.handles.lock().get_mut(uid) {
            handle.tell_gone();
        }
    }

    fn applied(self: &Arc<Self>, pod: Arc<Pod>) {
        if let Some(handle) = self.handles.lock().get(&uid(&pod)) {
            handle.pod.send_replace(pod);
        } else {
            self.begin(pod);
        }
        self.weigh();
    }

    /// The weight of Burstable pods follows what they request.
    fn weigh(&self) {
        let sum = weights::burstable(self.handles.lock().values().map(|h| h.shared.pod()));
        self.burstable.send_if_modified(|known| std::mem::replace(known, sum) != sum);
    }

    fn begin(self: &Arc<Self>, pod: Arc<Pod>) {
        let now = Instant::now();
        let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        let mut record = Record::new(&pod, start.unwrap_or_else(|| whole_seconds(Timestamp::now())), now);
        if has_ended(&pod) {
            // only its removal may be left to do
            record.finished_before = pod.status.clone().map(Box::new);
        } else if let Some(problem) = self.refusal(&pod) {
            self.cx.recorder.event(&*pod, EventType::Warning, &problem.reason, problem.message.clone());
            record.rejected = Some(problem);
        } else if self.cx.device_plugins.are_missing(&pod) {
            record.admission = Stage::Todo;
        }
        self.spawn(pod, record, Content::default());
    }

    fn refusal(&self, pod: &Pod) -> Option<record::Problem> {
        if let Some(problem) = self.cx.shortages.refusal(pod) {
            return Some(problem);
        }
        let others: Vec<Arc<Pod>> = {
            let handles = self.handles.lock();
            let active = handles.values().filter(|h| !h.gone && h.shared.record().is_active());
            active.map(|h| h.shared.pod()).collect()
        };
        let node = self.cx.node.get("", &self.cx.config.node_name);
        let mut allocatable = self.cx.machine.allocatable(self.cx.config.max_pods);
        if let Some(status) = node.as_ref().and_then(|n| n.status.as_ref()) {
            let extended = crate::node::extended_resources(status).into_iter();
            allocatable.extend(extended.filter(|(name, _)| !self.cx.device_plugins.has(name)));
        }
        admit::refusal(pod, node.as_deref(), &others, &allocatable)
    }

    fn spawn(self: &Arc<Self>, pod: Arc<Pod>, record: Record, kept: Content) {
        let uid = uid(&pod);
        let names = resolv::names(&pod, &self.cx.config.cluster_domain);
        // a name that cannot be is told when the sandbox is made
        let names = names.unwrap_or(Names { hostname: String::new(), fqdn: None });
        let (pod_tx, pod_rx) = watch::channel(pod);
        let (inputs, inputs_rx) = mpsc::unbounded_channel();
        let shared = PodShared::new(self.cx.clone(), pod_rx.clone(), names, &record, kept);
        let worker = Worker::new(shared.clone(), pod_rx, inputs_rx, inputs.clone(), record);
        self.handles.lock().insert(uid.clone(), Handle { pod: pod_tx, inputs, shared, gone: false });
        let (stop, ended) = (self.stop.clone(), self.ended.clone());
        self.workers.spawn(async move {
            tokio::select! {
                () = worker.run() => {}
                () = stop.cancelled() => return,
            }
            // nobody listens when the agent ends
            let _ = ended.send(uid);
        });
    }

    fn route(&self, event: ContainerEvent) {
        let id = match &event {
            ContainerEvent::Started { sandbox_id, .. }
            | ContainerEvent::Exited { sandbox_id, .. }
            | ContainerEvent::SandboxLost { sandbox_id } => sandbox_id,
        };
        if let Some(handle) = self.handles.lock().get(id) {
            // a worker that has ended needs no telling
            let _ = handle.inputs.send(Input::Runtime(event));
        }
    }

    /// An image has arrived: pods that wait for one look again.
    pub(crate) fn image_arrived(&self) {
        self.tell_all(|| Input::Event(Event::ImageArrived));
    }

    /// Ends a pod for good; tells whether it is there.
    pub(crate) fn evict(&self, uid: &str, eviction: Eviction) -> bool {
        let handles = self.handles.lock();
        handles.get(uid).is_some_and(|h| h.inputs.send(Input::Event(Event::Evicted(eviction))).is_ok())
    }

    fn tell_all(&self, input: impl Fn() -> Input) {
        for handle in self.handles.lock().values() {
            // a worker that has ended needs no telling
            let _ = handle.inputs.send(input());
        }
    }

    /// The pod of a name, the youngest if an older one is not quite gone yet.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodShared>> {
        let handles = self.handles.lock();
        let named = handles.values().filter(|h| h.shared.namespace == namespace && h.shared.name == name);
        let created = |h: &&Handle| h.pod.borrow().metadata.creation_timestamp.as_ref().map(|t| t.0);
        named.max_by_key(created).map(|h| h.shared.clone())
    }

    /// All pods.
    pub(crate) fn list(&self) -> Vec<Arc<PodShared>> {
        self.handles.lock().values().map(|h| h.shared.clone()).collect()
    }

    /// Waits until all workers have ended (after the agent was told to stop).
    pub(crate) async fn stopped(&self) {
        self.workers.close();
        self.workers.wait().await;
    }
}

/// What is known of a pod that was kept on disk.
fn restored(pod: &Pod, finished: Option<PodStatus>, sandbox: Option<&AdoptedSandbox>) -> Record {
    let now = Instant::now();
    let mut record = match sandbox {
        Some(found) => worker::restored(pod, found, now),
        None => Record::new(pod, whole_seconds(Timestamp::now()), now),
    };
    let finished = finished.filter(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
    record.finished_before = finished.map(Box::new);
    record
}
