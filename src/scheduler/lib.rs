//! The scheduler: gives each pod a node.
//!
//! In: pods without a node, nodes, and what is on them (informers). Out: bindings, and Events that say why a pod waits. One
//! pod is decided at a time over an assumed state that includes bindings under way; a pod that fits nowhere waits for a
//! change that can help it, never for a timer. Decisions themselves wait for nothing: what the API is told, tasks tell it.

mod binding;
mod cluster;
mod config;
mod decide;
mod extended;
mod extender;
mod hints;
mod plugins;
mod pod;
mod preempt;
mod profile;
mod queue;
mod report;
mod requests;
mod tell;
mod terms;
#[cfg(test)]
mod testing;
mod world;

pub use config::{Config, ConfigError};

use binding::BindError;
use cluster::{Cluster, NodeId, scheduling_differs};
use decide::{Choices, Possible, Question, Verdict, best, choices, possible, scores};
use edge_client::{Change, Client, EventRecorder, EventType, Informer, Informers, Key, ResourceExt};
use extender::Extender;
use hints::{Event, Hints};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use plugins::devices::{self, Allocating};
use plugins::volumes::Reserved;
use plugins::{Plugin, Plugins};
use pod::{Pending, PodInfo, differs, is_finished, is_pending, looks_different, node_name};
use profile::Profile;
use queue::Queue;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tell::News;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use world::Informed;

/// The name by which pods ask for this scheduler when they do not say.
const NAME: &str = "default-scheduler";
/// How many bindings are under way at most.
const REQUESTS: usize = 256;
/// How many pods the API is being told about at most, that they fit nowhere. Few: where very many are refused at once, and something changes
/// that may help them, most of that is not worth telling any more, and bindings must not wait behind it.
const NEWS: usize = 32;
/// After so many decisions others get their turn on this thread.
const DECISIONS: usize = 32;

/// What a task has come to.
enum Done {
    /// A pod was given its node, or not.
    Bound { key: Key, uid: String, failed: bool },
    /// The API knows that a pod fits nowhere; these could not be asked to go for it.
    Told { key: Key, uid: String, failed: Vec<Arc<PodInfo>> },
}

struct Scheduler {
    client: Client,
    recorder: EventRecorder,
    world: Arc<Informed>,
    profiles: Vec<Profile>,
    extenders: Arc<[Extender]>,
    queue: Queue,
    cluster: Cluster,
    reserved: Reserved,
    allocating: Allocating,
    /// UIDs of pods that have been asked to go, until they are gone.
    leaving: HashSet<String>,
    /// Counts decisions, so that equals take turns.
    turn: usize,
    requests: Arc<Semaphore>,
    news: Arc<Semaphore>,
    done: UnboundedSender<Done>,
}

/// Schedules for ever; dropping the future ends it. Requests run under the identity of `client`.
pub async fn run(informers: Informers, client: Client, config: Config) {
    let (done, mut ended) = unbounded_channel();
    let world = Arc::new(Informed::new(&informers));
    let pods: Arc<Informer<Pod>> = informers.of();
    let nodes: Arc<Informer<Node>> = informers.of();
    let (mut pod_changes, mut node_changes) = (pods.subscribe(), nodes.subscribe());
    let (mut claims, mut volumes) = (world.claims.subscribe(), world.volumes.subscribe());
    let (mut classes, mut csi_nodes) = (world.classes.subscribe(), world.csi_nodes.subscribe());
    let mut namespaces = world.namespaces.subscribe();
    let (mut device_claims, mut slices) = (world.resource_claims.subscribe(), world.slices.subscribe());
    let mut device_classes = world.device_classes.subscribe();
    nodes.synced().await;
    pods.synced().await;
    world.synced().await;
    let mut s = Scheduler {
        recorder: EventRecorder::new(client.clone(), NAME, ""),
        client,
        world,
        profiles: config.profiles,
        extenders: config.extenders.into(),
        queue: Queue::new(config.backoff),
        cluster: Cluster::default(),
        reserved: Reserved::default(),
        allocating: Allocating::default(),
        leaving: HashSet::new(),
        turn: 0,
        requests: Arc::new(Semaphore::new(REQUESTS)),
        news: Arc::new(Semaphore::new(NEWS)),
        done,
    };
    s.classes_changed();
    loop {
        // everything that is known already counts before the next decision
        while let Ok(change) = node_changes.try_recv() {
            s.node_changed(&change);
        }
        while let Ok(change) = pod_changes.try_recv() {
            s.pod_changed(&change);
        }
        while let Ok(done) = ended.try_recv() {
            s.ended(done);
        }
        while let Ok(change) = claims.try_recv() {
            s.wake(&Event::Claim(&Key::of(&**change.object())));
        }
        while volumes.try_recv().is_ok() || classes.try_recv().is_ok() || csi_nodes.try_recv().is_ok() {
            s.wake(&Event::Storage);
        }
        while let Ok(change) = device_claims.try_recv() {
            s.device_claim_changed(&change);
        }
        while device_classes.try_recv().is_ok() {
            s.classes_changed();
        }
        while slices.try_recv().is_ok() {
            s.wake(&Event::Devices);
        }
        while let Ok(change) = namespaces.try_recv() {
            s.namespace_changed(&change);
        }
        if let Some(pod) = s.queue.pop(Instant::now()) {
            s.schedule(&pod).await;
            if s.turn.is_multiple_of(DECISIONS) {
                tokio::task::yield_now().await;
            }
            continue;
        }
        let due = s.queue.next_due();
        tokio::select! {
            Some(change) = pod_changes.recv() => s.pod_changed(&change),
            Some(change) = node_changes.recv() => s.node_changed(&change),
            Some(done) = ended.recv() => s.ended(done),
            Some(change) = claims.recv() => s.wake(&Event::Claim(&Key::of(&**change.object()))),
            Some(_) = volumes.recv() => s.wake(&Event::Storage),
            Some(_) = classes.recv() => s.wake(&Event::Storage),
            Some(_) = csi_nodes.recv() => s.wake(&Event::Storage),
            Some(change) = device_claims.recv() => s.device_claim_changed(&change),
            Some(_) = slices.recv() => s.wake(&Event::Devices),
            Some(_) = device_classes.recv() => s.classes_changed(),
            Some(change) = namespaces.recv() => s.namespace_changed(&change),
            () = sleep_until(due), if due.is_some() => {}
            else => return,
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

/// What goes by for a pod; the first profile for one that asks for none that is known.
fn profile_of<'a>(profiles: &'a [Profile], pod: &Pending) -> Option<&'a Profile> {
    let name = pod.spec().scheduler_name.as_deref().unwrap_or(NAME);
    profiles.iter().find(|p| p.name == name)
}

impl Scheduler {
    /// Gives pods their turn that an event may help.
    fn wake(&mut self, event: &Event<'_>) {
        if !self.queue.is_waited_for() {
            return;
        }
        let (cluster, world, profiles) = (&self.cluster, &*self.world, &self.profiles);
        self.queue.wake(Instant::now(), |pod, by| {
            let profile = profile_of(profiles, pod);
            profile.is_some_and(|profile| Hints { cluster, world, profile }.helps(event, pod, by))
        });
    }

    fn node_changed(&mut self, change: &Change<Node>) {
        match change {
            Change::Applied { old, new } => {
                self.cluster.set_node(new);
                // a kubelet that tells that it is well helps nobody
                let is_news = old.as_ref().is_none_or(|old| scheduling_differs(old, new));
                if let Some(id) = self.cluster.id(&new.name_any()).filter(|_| is_news) {
                    self.wake(&Event::Node(old.as_deref(), id));
                }
            }
            Change::Deleted(node) => {
                self.cluster.remove_node(&node.name_any());
                self.wake(&Event::NodeGone(node));
            }
        }
    }

    fn namespace_changed(&mut self, change: &Change<Namespace>) {
        if let Change::Applied { old: Some(old), new } = change
            && old.labels() != new.labels()
        {
            self.wake(&Event::Namespace);
        }
    }

    fn classes_changed(&mut self) {
        let names = devices::extended::names(&self.world.device_classes.list());
        for profile in &mut self.profiles {
            if profile.filters.has(Plugin::DynamicResources) {
                profile.resources.of_classes.clone_from(&names);
            }
        }
        self.wake(&Event::Devices);
    }

    fn device_claim_changed(&mut self, change: &Change<ResourceClaim>) {
        let gives_back = match change {
            Change::Applied { old, new } => devices::gives_back(old.as_deref(), Some(new)),
            // a pod for which such a claim was made is tried anew once it is gone
            Change::Deleted(claim) => devices::gives_back(Some(claim), None) || devices::extended::is_made(claim),
        };
        if gives_back {
            self.wake(&Event::Devices);
        } else {
            self.wake(&Event::DeviceClaim(&Key::of(&**change.object())));
        }
    }

    fn pod_changed(&mut self, change: &Change<Pod>) {
        let pod = change.object();
        let key = Key::of(&**pod);
        if matches!(change, Change::Deleted(_)) || is_finished(pod) {
            self.queue.remove(&key);
            self.leaving.remove(pod.metadata.uid.as_deref().unwrap_or_default());
            if let Some((node, info)) = self.cluster.remove_pod(&key) {
                self.wake(&Event::PodGone(&info, node));
            }
            return;
        }
        let old = if let Change::Applied { old, .. } = change { old.as_deref() } else { None };
        if !node_name(pod).is_empty() {
            self.queue.remove(&key);
            // a pod's status changes often, and is no matter here
            if !self.cluster.is_confirmed(&key) || old.is_none_or(|o| looks_different(o, pod)) {
                self.placed(&key, pod);
            }
        } else if is_pending(pod, |name| self.profiles.iter().any(|p| p.name == name)) {
            let pending = Pending::new(pod.clone());
            if old.is_none_or(|o| differs(o, pod)) {
                let nominated = pending.nominated().filter(|_| !self.cluster.knows(&key));
                self.cluster.nominate(&key, nominated.map(|node| (node, &pending.info)));
                self.queue.add(pending, Instant::now());
            } else {
                self.queue.refresh(pending);
            }
        } else {
            self.queue.remove(&key);
            if let Some((node, info)) = self.cluster.remove_pod(&key) {
                self.wake(&Event::PodGone(&info, node));
            }
        }
    }

    /// A pod that has a node is new or has changed.
    fn placed(&mut self, key: &Key, pod: &Pod) {
        let old = self.cluster.set_pod(pod);
        let Some((node, new)) = self.cluster.place(key).map(|(node, info)| (node, info.clone())) else { return };
        match old {
            None => self.wake(&Event::PodThere(&new.look)),
            Some(old) => {
                if old.requests != new.requests || old.ports != new.ports {
                    self.wake(&Event::PodGone(&old, node));
                }
                if old.look != new.look || old.is_going != new.is_going {
                    self.wake(&Event::PodChanged(&old.look, &new.look));
                }
            }
        }
    }

    fn ended(&mut self, done: Done) {
        match done {
            Done::Bound { key, uid, failed } => {
                self.reserved.retain(|_, pod| *pod != key);
                self.allocating.end(&key);
                let is_this = self.cluster.place(&key).is_some_and(|(_, info)| info.uid == uid);
                if !failed || !is_this {
                    return;
                }
                let forgotten = self.cluster.forget(&key);
                self.queue.fail(&key, &uid, Instant::now());
                if let Some((node, info)) = forgotten {
                    self.wake(&Event::PodGone(&info, node));
                }
            }
            Done::Told { key, uid, failed } => {
                if failed.is_empty() {
                    self.queue.park(&key, &uid, Instant::now());
                    return;
                }
                for victim in &failed {
                    self.leaving.remove(&victim.uid);
                }
                self.cluster.nominate(&key, None);
                self.queue.fail(&key, &uid, Instant::now());
            }
        }
    }

    async fn schedule(&mut self, pod: &Pending) {
        self.turn = self.turn.wrapping_add(1);
        let Some(profile) = profile_of(&self.profiles, pod) else { return };
        let world = self.world.clone();
        if profile.filters.has(Plugin::DynamicResources)
            && let Err(why) = devices::claims(pod, &*world)
        {
            // not ready to be tried: nobody is told
            tracing::debug!(pod = %pod.key(), why, "claims are not there yet");
            let _ = self.queue.refused(pod.key(), Plugins::default().with(Plugin::DynamicResources));
            return self.queue.park(pod.key(), &pod.info.uid, Instant::now());
        }
        let (reserved, allocating) = (&self.reserved, &self.allocating);
        let q = Question { pod, profile, world: &*world, reserved, allocating };
        let Possible { prepared, mut nodes, mut verdict } = match possible(q, &mut self.cluster) {
            Ok(possible) => possible,
            Err(verdict) => return self.refuse(pod, &verdict).await,
        };
        if self.extenders.iter().any(|e| e.is_about(pod)) {
            match extended::possible(&self.extenders, pod, &self.cluster, &mut nodes).await {
                Ok(more) if nodes.is_empty() => {
                    verdict.refusals.extend(more.refusals);
                    return self.refuse(pod, &verdict).await;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(pod = %pod.key(), error = &error as &dyn std::error::Error, "an extender is of no use");
                    return self.queue.fail(pod.key(), &pod.info.uid, Instant::now());
                }
            }
        }
        let attempt = q.on(&self.cluster);
        let mut totals = if nodes.len() == 1 { Vec::new() } else { scores(&attempt, &prepared, &nodes) };
        if nodes.len() > 1 {
            extended::score(&self.extenders, pod, &self.cluster, &nodes, &mut totals).await;
        }
        if let Some(node) = best(&nodes, &totals, self.turn) {
            let chosen = choices(&q.on(&self.cluster), &prepared, node);
            self.bind(pod, node, chosen);
        }
    }

    /// Takes the pod to be on the node from now on, and tells the API meanwhile.
    fn bind(&mut self, pod: &Pending, node: NodeId, chosen: Choices) {
        self.cluster.assume(pod.info.clone(), node);
        let key = pod.key();
        let Choices { volumes, devices } = chosen;
        self.reserved.extend(volumes.iter().filter_map(|choice| Some((choice.volume_name()?, key.clone()))));
        self.allocating.begin(key, &devices);
        let timeout = profile_of(&self.profiles, pod).map(|p| p.bind_timeout).unwrap_or_default();
        let (client, recorder, done) = (self.client.clone(), self.recorder.clone(), self.done.clone());
        let (pod, world, requests) = (pod.clone(), self.world.clone(), self.requests.clone());
        let extenders = self.extenders.clone();
        let node = self.cluster.node(node).name.clone();
        tokio::spawn(async move {
            let mut devices = devices;
            let made = binding::make_claims(&client, &mut devices, &pod).await;
            let bound = async {
                made?;
                binding::volumes(&client, &world.claims, &volumes, &node, timeout).await?;
                binding::devices(&client, &world.resource_claims, &devices, &pod, timeout).await?;
                binding::prepared(&world.resource_claims, &devices, &pod, &*world).await?;
                // closed only with the process
                let _permit = requests.acquire().await;
                match extenders.iter().find(|e| e.binds() && e.is_about(&pod)) {
                    Some(extender) => extender.bind(&pod, &node).await.map_err(BindError::from),
                    None => binding::post(&client, &pod, &node).await.map_err(BindError::from),
                }
            };
            let failed = bound.await.inspect_err(|error| {
                tracing::debug!(pod = %pod.key(), %node, %error, "binding failed");
            });
            if failed.is_err() {
                binding::release(&client, &devices, &pod).await;
            }
            if failed.is_ok() {
                let message = format!("Successfully assigned {} to {node}", pod.key());
                recorder.event(&*pod.pod, EventType::Normal, "Scheduled", message);
            }
            // the receiver lives as long as the scheduler
            let (key, uid) = (pod.key().clone(), pod.info.uid.clone());
            let _ = done.send(Done::Bound { key, uid, failed: failed.is_err() });
        });
    }

    /// The pod fits nowhere: says why, and makes room when its priority allows that.
    async fn refuse(&mut self, pod: &Pending, verdict: &Verdict) {
        let nodes = self.cluster.len();
        let outdated = self.queue.refused(pod.key(), verdict.plugins());
        let refusals = verdict.refusals.iter().map(|(_, r)| r);
        let mut message = report::summary(nodes, verdict.general.as_ref(), refusals, (0, ""));
        let (mut nominated, mut victims, mut frees, mut comma) = (None, Vec::new(), None, "");
        let has_claims = pod.spec().resource_claims.as_ref().is_some_and(|c| !c.is_empty());
        let stale = devices::stale(pod, &*self.world);
        if nodes > 0 && has_claims && verdict.general.is_none() && verdict.plugins().has(Plugin::DynamicResources) {
            let refused = verdict.refusals.iter().filter(|(_, r)| r.plugin == Plugin::DynamicResources);
            let mut refused = refused.filter_map(|(id, _)| self.cluster.node(*id).node.clone());
            frees = devices::to_free(pod, &*self.world, &mut refused);
            let done =
                if frees.is_some() { "deallocation of ResourceClaim completed" } else { "still not schedulable" };
            message = format!("{message} {done}");
            comma = ",";
        }
        if frees.is_none() && stale.is_some() {
            message = format!("{message} deletion of ResourceClaim completed");
            (frees, comma) = (stale, ",");
        }
        if nodes > 0 {
            match self.make_room(pod, verdict).await {
                Ok((node, pods)) => (nominated, victims) = (Some(node), pods),
                Err(NoRoom { why, forget }) => {
                    if !why.is_empty() {
                        message = format!("{message}{comma} preemption: {why}");
                    }
                    nominated = forget.then(String::new);
                }
            }
        }
        let news = News { pod: pod.clone(), message, nominated, victims, frees };
        let (client, recorder, done) = (self.client.clone(), self.recorder.clone(), self.done.clone());
        let places = self.news.clone();
        tokio::spawn(async move {
            let at_once = places.try_acquire();
            let had_to_wait = at_once.is_err();
            // closed only with the process
            let _place = if let Ok(place) = at_once { Ok(place) } else { places.acquire().await };
            let is_old = had_to_wait && news.is_only_news() && outdated.load(Ordering::Relaxed);
            let failed = if is_old { Vec::new() } else { tell::tell(&client, &recorder, &news).await };
            let (key, uid) = (news.pod.key().clone(), news.pod.info.uid.clone());
            // the receiver lives as long as the scheduler
            let _ = done.send(Done::Told { key, uid, failed });
        });
    }

    /// Finds pods that make room. The answer is the node, and who is to go.
    async fn make_room(&mut self, pod: &Pending, verdict: &Verdict) -> Result<(String, Vec<Arc<PodInfo>>), NoRoom> {
        let refused = |why: &str, forget| NoRoom { why: why.to_owned(), forget };
        let Some(profile) = profile_of(&self.profiles, pod).filter(|p| p.preempts) else {
            return Err(refused("", false));
        };
        let (reserved, allocating) = (&self.reserved, &self.allocating);
        let q = Question { pod, profile, world: &*self.world, reserved, allocating };
        let is_leaving = |p: &PodInfo| p.is_going || self.leaving.contains(&p.uid);
        preempt::may_preempt(q, &self.cluster, verdict, is_leaving).map_err(|why| refused(why, false))?;
        let found = match preempt::find(q, &mut self.cluster, verdict, self.turn) {
            Ok(found) => {
                let agreed = extended::candidates(&self.extenders, &self.client, pod, &self.cluster, found).await;
                let agreed = agreed.inspect_err(|error| {
                    let error: &dyn std::error::Error = error;
                    tracing::warn!(pod = %pod.key(), error, "no pods are asked to go");
                });
                agreed.map_err(|error| error.to_string())
            }
            Err(why) => Err(why),
        };
        let candidate =
            found.and_then(|found| preempt::best(found).ok_or("no candidate node for preemption".to_owned()));
        let candidate = match candidate {
            Ok(candidate) => candidate,
            Err(why) => {
                self.cluster.nominate(pod.key(), None);
                return Err(NoRoom { why, forget: true });
            }
        };
        let name = self.cluster.node(candidate.node).name.to_string();
        tracing::info!(pod = %pod.key(), node = name, victims = candidate.victims.len(), "preempting");
        // who was to get the room before looks again
        let lower = |p: &&Arc<PodInfo>| p.priority < pod.info.priority;
        let others: Vec<Key> =
            self.cluster.nominated(candidate.node).iter().filter(lower).map(|p| p.key.clone()).collect();
        for key in others {
            self.cluster.nominate(&key, None);
            self.queue.wake_one(&key);
        }
        self.cluster.nominate(pod.key(), Some((&name, &pod.info)));
        // pods that go already make room by themselves
        let victims: Vec<Arc<PodInfo>> =
            candidate.victims.into_iter().filter(|v| !v.is_going && self.leaving.insert(v.uid.clone())).collect();
        Ok((name, victims))
    }
}

/// Why no pods make room.
struct NoRoom {
    /// As Kubernetes words it; empty: it is not enabled.
    why: String,
    /// Whether a node that was kept free for the pod need not be any more.
    forget: bool,
}
