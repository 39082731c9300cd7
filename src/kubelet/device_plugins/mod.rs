//! Devices of device plugins: plugins tell of resources that the node has, and pods that ask for some are given devices before they start.
//!
//! In: plugins that have registered ([`registry`]), pods that are bound here. Out: the node's capacity, devices of containers ([`held`]) with what
//! their plugins want containers to have ([`given`]), refusals of pods that cannot have what they ask for, health for pods' status.
//!
//! A pod is given all its devices at once, before anything is made for it, and keeps them until nothing of it is left: restarts of its containers,
//! of the agent and of the machine change nothing about it. Calls of plugins run in the pod's own task, so one that hangs keeps nobody else waiting.

mod choice;
mod counters;
mod given;
mod held;
mod known;
mod plugin;
pub(crate) mod registry;

use crate::containers::qos;
use crate::pods::record::{Problem, spec_containers};
use crate::records::{Records, boot};
use choice::{Choice, Reusable};
use counters::Counters;
pub(crate) use given::ContainerDevices;
use held::{Held, Holder, Holders, PodDevices};
use k8s_openapi::api::core::v1::{Container, NodeStatus, Pod, PodStatus, ResourceHealth, ResourceStatus};
use known::{Known, NodeDevices, Presence, Resource};
use parking_lot::Mutex;
use plugin::Plugin;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// The device plugins of this node, and what they have given.
pub(crate) struct DevicePlugins {
    /// Never locked before `holders`.
    known: Mutex<Known>,
    /// Devices that are being given to pods: nobody else gets them.
    pending: Mutex<BTreeMap<String, PodDevices>>,
    holders: Records<Holders>,
    /// Grows with every change of plugins and devices.
    changes: watch::Sender<u64>,
    pub(crate) counters: Counters,
}

/// A device that somebody may ask about: the resource, its name, and the memory nodes that it is near.
pub(crate) type Listed = (String, String, Vec<i64>);

/// What a container asks of extended resources, but for those that it has a claim for.
fn wanted<'a>(pod: &'a Pod, container: &'a Container) -> impl Iterator<Item = (&'a String, usize)> {
    let claimed = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    let is_claimed = move |name: &str| {
        let mut mappings = claimed.iter().flat_map(|status| &status.request_mappings);
        mappings.any(|m| m.container_name == container.name && m.resource_name == name)
    };
    let limits = container.resources.iter().flat_map(|r| &r.limits);
    limits.flat_map(|list| list.keys().map(move |name| (name, list))).filter_map(move |(name, list)| {
        let number = usize::try_from(qos::value(list, name)).ok().filter(|n| *n > 0)?;
        (name.contains('/') && !is_claimed(name)).then_some((name, number))
    })
}

/// Whether a pod asks for what only plugins have, as far as can be seen from the pod.
pub(crate) fn asks_any(pod: &Pod) -> bool {
    spec_containers(pod).any(|(_, container)| wanted(pod, container).next().is_some())
}

/// Why a pod does not get its devices, in Kubernetes' words.
fn refusal(why: &str) -> Problem {
    Problem::new("UnexpectedAdmissionError", format!("Allocate failed due to {why}, which is unexpected"))
}

impl DevicePlugins {
    /// What is known from before. Blocking.
    pub(crate) fn open(agent_dir: &Path) -> Arc<Self> {
        let holders: Records<Holders> = Records::open(agent_dir);
        let names: BTreeSet<String> = holders.look(|all| {
            let held = all.pods.values().flat_map(|holder| holder.containers.values());
            all.resources.iter().chain(held.flat_map(BTreeMap::keys)).cloned().collect()
        });
        Arc::new(Self {
            known: Mutex::new(names.into_iter().map(|name| (name, Resource::default())).collect()),
            pending: Mutex::default(),
            holders,
            changes: watch::Sender::new(0),
            counters: Counters::default(),
        })
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Follows changes of plugins and their devices.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether a resource is one of a plugin: then it is decided here whether a pod gets it. So is one that is gone, until the node's status
    /// says so.
    pub(crate) fn has(&self, resource: &str) -> bool {
        self.known.lock().contains_key(resource)
    }

    /// Whether a pod asks for devices that it has not got, or that were made ready before the machine's last start.
    pub(crate) fn are_missing(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut all = spec_containers(pod).flat_map(|(_, c)| wanted(pod, c).map(move |(name, _)| (c, name)));
        all.any(|(c, name)| self.has(name) && !self.holders.look(|holders| holders.has(uid, &c.name, name)))
    }

    /// What there is of plugins' devices on the node.
    pub(crate) fn on_node(&self) -> NodeDevices {
        known::on_node(&self.known.lock())
    }

    /// Takes note of what the node's status says: resources that are gone need not be spoken of any more once it does not tell of them.
    pub(crate) async fn told(&self, status: &NodeStatus) {
        let told = |name: &String| status.capacity.as_ref().is_some_and(|list| qos::value(list, name) == 0);
        let before = self.known.lock().len();
        let after = {
            let mut known = self.known.lock();
            known.retain(|name, of| !(of.is_gone() && told(name)));
            known.len()
        };
        if before != after
            && let Err(error) = self.keep_names().await
        {
            tracing::warn!(%error, "resources that are gone not forgotten");
        }
    }

    /// Gives a pod its devices, which it keeps until [`Self::free`]. Waits for plugins that were there before the agent's start.
    ///
    /// # Errors
    /// Why the pod cannot run here; it has nothing then.
    pub(crate) async fn admit(&self, pod: &Pod) -> Result<(), Problem> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut given = Pending { plugins: self, uid: &uid };
        match self.give(pod, &mut given).await {
            Ok(()) => Ok(()),
            Err(why) => {
                drop(given);
                if let Err(error) = self.free(&uid).await {
                    tracing::warn!(uid, %error, "devices of a pod that was refused not given up on disk");
                }
                Err(refusal(&why))
            }
        }
    }

    async fn give(&self, pod: &Pod, given: &mut Pending<'_>) -> Result<(), String> {
        let mut reusable = Reusable::default();
        for (kind, container) in spec_containers(pod) {
            let mut of_container = BTreeMap::new();
            for (resource, number) in wanted(pod, container) {
                if !self.is_of_plugin(resource).await {
                    continue;
                }
                let held = self.allocate(given, &container.name, resource, number, &reusable.of(resource)).await?;
                of_container.insert(resource.clone(), held);
            }
            reusable.note(kind, &of_container);
        }
        let uid = given.uid.to_owned();
        let containers = self.pending.lock().get(&uid).cloned().unwrap_or_default();
        let holder = Holder { boot: boot(), containers };
        let kept = self.holders.change(|holders| holders.pods.insert(uid, holder)).await;
        kept.map(drop).map_err(|error| format!("failed to write checkpoint file: {error}"))
    }

    /// Whether a plugin is to be asked for a resource, once that is clear. If one was waited for in vain, too: then it is told so.
    async fn is_of_plugin(&self, resource: &str) -> bool {
        let (mut changes, mut has_waited) = (self.changes(), false);
        loop {
            changes.borrow_and_update();
            let is_awaited = self.known.lock().get(resource).map(Resource::is_awaited);
            match is_awaited {
                Some(true) => has_waited = true,
                Some(false) => return true,
                None => return has_waited,
            }
            // never an error: the sender is this
            let _ = changes.changed().await;
        }
    }

    /// The plugin of a resource, with what can be given away of it.
    fn plugin(&self, resource: &str) -> Result<(Arc<Plugin>, BTreeSet<String>), String> {
        let known = self.known.lock();
        let unregistered = || format!("cannot allocate unregistered device {resource}");
        let of = known.get(resource).filter(|of| !of.is_gone()).ok_or_else(unregistered)?;
        let healthy = of.healthy();
        match &of.presence {
            Presence::Here(plugin) if !healthy.is_empty() => Ok((plugin.clone(), healthy)),
            _ => Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}")),
        }
    }

    /// Gives a container devices of one resource.
    async fn allocate(
        &self,
        given: &mut Pending<'_>,
        container: &str,
        resource: &str,
        number: usize,
        reusable: &BTreeSet<String>,
    ) -> Result<Held, String> {
        let known = self.holders.look(|holders| holders.of(given.uid, container)?.get(resource).cloned());
        let (plugin, healthy) = self.plugin(resource)?;
        let ids = match known {
            // it had them before the machine's last start
            Some(known) if known.devices.len() == number => {
                let ids = known.ids();
                if !ids.is_subset(&healthy) {
                    return Err(format!(
                        "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
                    ));
                }
                given.note(container, resource, self.held(resource, &ids));
                ids
            }
            Some(known) => {
                return Err(format!(
                    "pod {:?} container {container:?} changed request for resource {resource:?} from {} to {number}",
                    given.uid,
                    known.devices.len()
                ));
            }
            None => {
                let mut preferred = Vec::new();
                if plugin.options.preferred {
                    let now = self.choice(&self.pending.lock(), resource, number, reusable)?;
                    if now.needed > 0 {
                        let all = now.available.union(&now.chosen).cloned().collect();
                        preferred = plugin.preferred(&all, &now.chosen, number).await?;
                    }
                }
                given.choose(container, resource, number, reusable, &preferred)?
            }
        };
        let begin = Instant::now();
        let answer = plugin.allocate(&ids).await;
        self.counters.allocated(resource, begin.elapsed());
        let held = Held { given: answer?, pre_start: plugin.options.pre_start, ..self.held(resource, &ids) };
        given.note(container, resource, held.clone());
        Ok(held)
    }

    /// What may be given to a container beside what is being given.
    fn choice(
        &self,
        pending: &BTreeMap<String, PodDevices>,
        resource: &str,
        number: usize,
        reusable: &BTreeSet<String>,
    ) -> Result<Choice, String> {
        let mut in_use = self.holders.look(|holders| holders.in_use(resource));
        in_use.extend(pending.values().flat_map(|pod| held::taken(pod, resource)).cloned());
        let (_, healthy) = self.plugin(resource)?;
        Choice::begin(resource, number, reusable, &healthy, &in_use)
    }

    /// Devices with the memory nodes that they are near.
    fn held(&self, resource: &str, ids: &BTreeSet<String>) -> Held {
        let known = self.known.lock();
        let nodes = |id: &String| known.get(resource).and_then(|of| of.devices.get(id)).map(|d| d.nodes.clone());
        let devices = ids.iter().map(|id| (id.clone(), nodes(id).unwrap_or_default())).collect();
        Held { devices, ..Held::default() }
    }

    /// Gives up the devices of a pod of which nothing is left.
    ///
    /// # Errors
    /// When it cannot be noted on disk; others may have them all the same, until the next start of the agent.
    pub(crate) async fn free(&self, uid: &str) -> std::io::Result<()> {
        if self.holders.look(|holders| holders.pods.contains_key(uid)) {
            self.holders.change(|holders| holders.pods.remove(uid)).await?;
        }
        Ok(())
    }

    /// Gives up the devices of pods that nobody knows any more.
    pub(crate) async fn keep_only(&self, pods: &BTreeSet<String>) {
        let kept = self.holders.change(|holders| holders.pods.retain(|uid, _| pods.contains(uid))).await;
        if let Err(error) = kept {
            tracing::warn!(%error, "devices of unknown pods not given up on disk");
        }
    }

    /// What a container is to have for its devices, which are made ready for its start.
    ///
    /// # Errors
    /// When the plugin cannot do that.
    pub(crate) async fn of_container(&self, pod: &Pod, container: &Container) -> Result<ContainerDevices, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let Some(held) = self.holders.look(|holders| holders.of(uid, &container.name).cloned()) else {
            return Ok(ContainerDevices::default());
        };
        for (resource, held) in &held {
            let plugin = match self.known.lock().get(resource).map(|of| &of.presence) {
                Some(Presence::Here(plugin)) => Some(plugin.clone()),
                _ => None,
            };
            match plugin {
                Some(plugin) if plugin.options.pre_start => plugin.pre_start(&held.ids()).await?,
                Some(_) => {}
                // nobody can say whether the devices are fit for another start
                None if held.pre_start => {
                    return Err(format!(
                        "device plugin PreStartContainer rpc failed with err: endpoint of {resource} has been stopped"
                    ));
                }
                None => {}
            }
        }
        Ok(ContainerDevices::of(held.into_values().map(|held| held.given)))
    }

    /// Notes in a pod's status how its devices are.
    pub(crate) fn note_health(&self, pod: &Pod, status: &mut PodStatus) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        for of in status.container_statuses.iter_mut().flatten() {
            let held = self.holders.look(|holders| holders.of(uid, &of.name).cloned());
            for (resource, held) in held.into_iter().flatten() {
                let known = self.known.lock();
                let health = |id: &String| {
                    let health = known.get(&resource).map_or("Unknown", |known| known.health(id));
                    ResourceHealth { resource_id: id.clone(), health: Some(health.to_owned()), message: None }
                };
                let resources = held.devices.keys().map(health).collect();
                let told = of.allocated_resources_status.get_or_insert_default();
                told.push(ResourceStatus { name: resource.clone(), resources: Some(resources) });
            }
        }
    }

    /// The devices of a container.
    pub(crate) fn list_container(&self, uid: &str, container: &str) -> Vec<Listed> {
        let held = self.holders.look(|holders| holders.of(uid, container).cloned()).unwrap_or_default();
        let devices = held.into_iter().flat_map(|(resource, held)| {
            held.devices.into_iter().map(move |(id, nodes)| (resource.clone(), id, nodes))
        });
        devices.collect()
    }

    /// All devices that pods can have, whoever has them.
    pub(crate) fn list_allocatable(&self) -> Vec<Listed> {
        let known = self.known.lock();
        let devices = known.iter().flat_map(|(resource, of)| {
            let nodes = |id: &String| of.devices.get(id).map(|d| d.nodes.clone()).unwrap_or_default();
            of.healthy().into_iter().map(move |id| (resource.clone(), id.clone(), nodes(&id)))
        });
        devices.collect()
    }
}

/// Devices that are being given to a pod; they are free again when this goes, unless the pod has them by then.
struct Pending<'p> {
    plugins: &'p DevicePlugins,
    uid: &'p str,
}

impl Pending<'_> {
    fn note(&mut self, container: &str, resource: &str, held: Held) {
        let mut pending = self.plugins.pending.lock();
        let of = pending.entry(self.uid.to_owned()).or_default().entry(container.to_owned()).or_default();
        of.insert(resource.to_owned(), held);
    }

    /// Chooses devices for a container, so that nobody else gets them.
    fn choose(
        &mut self,
        container: &str,
        resource: &str,
        number: usize,
        reusable: &BTreeSet<String>,
        preferred: &[String],
    ) -> Result<BTreeSet<String>, String> {
        let mut pending = self.plugins.pending.lock();
        let choice = self.plugins.choice(&pending, resource, number, reusable)?;
        let ids = choice.end(preferred);
        let held = self.plugins.held(resource, &ids);
        let of = pending.entry(self.uid.to_owned()).or_default().entry(container.to_owned()).or_default();
        of.insert(resource.to_owned(), held);
        Ok(ids)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.plugins.pending.lock().remove(self.uid);
    }
}

#[cfg(test)]
mod tests;
