//! Devices of pods that claim them (dynamic resource allocation): drivers prepare them before the pod's containers are made and give them up
//! after the last pod that uses a claim has ended here.
//!
//! In: the pod, its claims, drivers that have registered ([`plugins`]). Out: names of the Container Device Interface ([`cdi`]) for the
//! containers, events, what drivers say of the devices' health for the pod's status.

pub(crate) mod cdi;
mod driver;
mod plugins;
mod state;

use crate::context::Context;
use crate::plugins::Handler;
use crate::pods::record::RETRY;
use crate::pods::shared::PodShared;
use driver::{ClaimId, Service};
use edge_client::{Api, EventType};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use plugins::Plugins;
use state::{Claim, Claims, Name, State};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long a driver may take for one call (Kubernetes' value).
const CALL: Duration = Duration::from_secs(45);

/// The devices of this node's pods.
pub(crate) struct Devices {
    plugins: Arc<Plugins>,
    state: State,
}

/// A device that somebody may ask about.
pub(crate) struct ListedDevice {
    pub(crate) driver: String,
    pub(crate) pool: String,
    pub(crate) device: String,
    /// Names of the Container Device Interface.
    pub(crate) cdi: Vec<String>,
}

/// Whether a pod has claims to devices.
pub(crate) fn claims_any(pod: &Pod) -> bool {
    let listed = pod.spec.as_ref().and_then(|s| s.resource_claims.as_ref()).is_some_and(|all| !all.is_empty());
    listed || pod.status.as_ref().is_some_and(|s| s.extended_resource_claim_status.is_some())
}

/// The claims of a pod: the entry's name (none for the claim of extended resources), the claim's, and whether it was made for the pod.
fn claims_of(pod: &Pod) -> Result<Vec<(&str, String, bool)>, String> {
    let status = pod.status.as_ref();
    let noted = status.and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or_default();
    let mut out = Vec::new();
    for entry in pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten()) {
        if let Some(name) = &entry.resource_claim_name {
            out.push((entry.name.as_str(), name.clone(), false));
            continue;
        }
        let known = noted.iter().find(|status| status.name == entry.name);
        let known = known.ok_or_else(|| format!("pod claim {:?}: ResourceClaim not created yet", entry.name))?;
        // without a name: somebody has found that the pod does not need it
        out.extend(known.resource_claim_name.iter().map(|name| (entry.name.as_str(), name.clone(), true)));
    }
    let extended = status.and_then(|s| s.extended_resource_claim_status.as_ref());
    out.extend(extended.map(|status| ("", status.resource_claim_name.clone(), false)));
    Ok(out)
}

fn base(request: &str) -> &str {
    request.split('/').next().unwrap_or(request)
}

/// The names of the claims that a container uses, each with the requests of it; an empty request stands for all.
fn wanted(pod: &Pod, container: &Container) -> Result<Vec<(String, String)>, String> {
    let all = claims_of(pod)?;
    let mut out = Vec::new();
    let listed = container.resources.as_ref().and_then(|r| r.claims.as_deref()).unwrap_or_default();
    for claim in listed {
        let found = all.iter().find(|(entry, ..)| *entry == claim.name);
        out.extend(found.map(|(_, name, _)| (name.clone(), claim.request.clone().unwrap_or_default())));
    }
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    if let Some(status) = extended {
        let mine = status.request_mappings.iter().filter(|m| m.container_name == container.name);
        out.extend(mine.map(|m| (status.resource_claim_name.clone(), m.request_name.clone())));
    }
    Ok(out)
}

/// What drivers are to prepare: nothing yet of a claim that the API has told of.
fn new_claim(pod: &Pod, claim: &ResourceClaim, is_own: bool) -> Result<Claim, String> {
    let uid = claim.metadata.uid.clone().unwrap_or_default();
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let (pod_name, pod_uid) =
        (pod.metadata.name.as_deref().unwrap_or_default(), pod.metadata.uid.as_deref().unwrap_or_default());
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    if is_own && !owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == pod_uid) {
        return Err(format!("ResourceClaim {name} was not created for pod {pod_name} (pod is not owner)"));
    }
    let status = claim.status.as_ref();
    let users = status.and_then(|s| s.reserved_for.as_deref()).unwrap_or_default();
    if !users.iter().any(|user| user.uid == pod_uid) {
        return Err(format!("pod {pod_name} ({pod_uid}) is not allowed to use ResourceClaim {name} ({uid})"));
    }
    let allocation = status.and_then(|s| s.allocation.as_ref());
    let allocation = allocation.ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
    let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
    let drivers = results.map(|result| (result.driver.clone(), Vec::new())).collect();
    Ok(Claim { uid, drivers, ..Claim::default() })
}

impl Devices {
    /// What is known from before. Blocking.
    pub(crate) fn open(agent_dir: &Path) -> Self {
        Self { plugins: Arc::default(), state: State::open(agent_dir) }
    }

    /// What is left of drivers from before goes.
    pub(crate) async fn run(cx: Arc<Context>) {
        Plugins::run(cx).await;
    }

    /// Takes drivers in.
    pub(crate) fn handler(&self) -> Arc<dyn Handler> {
        self.plugins.clone()
    }

    /// Follows changes of what drivers say of devices' health.
    pub(crate) fn health_changes(&self) -> watch::Receiver<u64> {
        self.plugins.health_changes()
    }

    /// Prepares a pod's devices. Failures are told in events and tried again when a driver comes, or after a while; so this ends only when
    /// all is well.
    pub(crate) async fn prepare(&self, shared: &PodShared) {
        let cx = &shared.cx;
        loop {
            // the names of its claims may be noted at any moment
            let pod = shared.pod();
            if !claims_any(&pod) {
                return;
            }
            let mut changes = self.plugins.changes();
            let Err(why) = self.try_prepare(cx, &pod).await else { return };
            let message = format!("Failed to prepare dynamic resources: prepare dynamic resources: {why}");
            cx.recorder.event(&*pod, EventType::Warning, "FailedPrepareDynamicResources", message);
            // a driver that is missing may come at any moment
            let _ = timeout(RETRY, changes.changed()).await;
        }
    }

    async fn try_prepare(&self, cx: &Context, pod: &Pod) -> Result<(), String> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let wanted: BTreeMap<Name, bool> =
            claims_of(pod)?.into_iter().map(|(_, name, is_own)| ((namespace.clone(), name), is_own)).collect();
        let _held = self.state.busy(&wanted.keys().cloned().collect()).await;
        let mut claims = Vec::new();
        for (name, is_own) in wanted {
            let known = self.state.look(|claims| claims.0.get(&name).cloned());
            let claim = match known {
                // it was looked at before, and what is known suffices to go on while no server answers
                Some(known) if known.pods.contains(&uid) => known,
                known => {
                    let api: Api<ResourceClaim> = Api::namespaced(cx.client.clone(), &namespace);
                    let found = cx.unless_alone(api.get(&name.1)).await;
                    let found = found.ok_or_else(|| format!("fetch ResourceClaim {}: no server answers", name.1))?;
                    let found = found.map_err(|error| format!("fetch ResourceClaim {}: {error}", name.1))?;
                    let new = new_claim(pod, &found, is_own)?;
                    match known {
                        Some(known) if known.uid == new.uid => known,
                        Some(known) => {
                            return Err(format!(
                                "old ResourceClaim with same name {} and different UID {} still exists (previous pod \
                                 force-deleted?!)",
                                name.1, known.uid
                            ));
                        }
                        None => new,
                    }
                }
            };
            if !claim.is_prepared {
                for driver in claim.drivers.keys() {
                    self.plugins.of(driver)?;
                }
            }
            claims.push((name, claim));
        }
        let kept = self.state.change(|state| {
            for (name, claim) in &claims {
                state.0.entry(name.clone()).or_insert_with(|| claim.clone()).pods.insert(uid.clone());
            }
        });
        kept.await.map_err(|error| format!("checkpoint ResourceClaim cache: {error}"))?;
        claims.retain(|(_, claim)| !claim.is_prepared);
        if claims.is_empty() {
            return Ok(());
        }
        let batches = by_driver(&claims);
        let calls = batches.iter().map(async |(driver, batch)| {
            let (channel, service) = self.reach(driver).await.map_err(|e| format!("NodePrepareResources: {e}"))?;
            let call = timeout(CALL, driver::prepare(&channel, service, batch)).await;
            let prepared = call.map_err(|_| too_slow("NodePrepareResources"))??;
            Ok::<_, String>((driver, prepared))
        });
        let mut results = Vec::new();
        for result in join_all(calls).await {
            results.push(result?);
        }
        let kept = self.state.change(|state| {
            for (name, claim) in &claims {
                let Some(known) = state.0.get_mut(name) else { continue };
                for (driver, prepared) in &results {
                    if let Some(devices) = prepared.get(&claim.uid) {
                        known.drivers.insert((*driver).clone(), devices.clone());
                    }
                }
                known.is_prepared = true;
            }
        });
        kept.await.map_err(|error| format!("checkpoint ResourceClaim state: {error}"))
    }

    async fn reach(&self, driver: &str) -> Result<(Arc<edge_grpc::Channel>, Service), String> {
        let plugin = self.plugins.of(driver)?;
        let reached = timeout(CALL, plugin.reach()).await;
        reached.map_err(|_| too_slow(driver))?.map_err(|error| error.to_string())
    }

    /// Gives up the devices that only this pod used.
    ///
    /// # Errors
    /// When a driver does not take them back; it is to be asked again.
    pub(crate) async fn unprepare(&self, pod: &str) -> Result<(), String> {
        let names: BTreeSet<Name> = self.state.look(|claims| claims.of_pod(pod)).into_iter().collect();
        if names.is_empty() {
            return Ok(());
        }
        let _held = self.state.busy(&names).await;
        let of_others = |claim: &Claim| claim.pods.iter().any(|other| other != pod);
        let last: Vec<(Name, Claim)> = self.state.look(|claims| {
            let mine = names.iter().filter_map(|name| Some((name.clone(), claims.0.get(name)?.clone())));
            mine.filter(|(_, claim)| !of_others(claim)).collect()
        });
        let batches = by_driver(&last);
        let calls = batches.iter().map(async |(driver, batch)| {
            let (channel, service) = self.reach(driver).await.map_err(|e| format!("NodeUnprepareResources: {e}"))?;
            let call = timeout(CALL, driver::unprepare(&channel, service, batch)).await;
            call.map_err(|_| too_slow("NodeUnprepareResources"))?
        });
        for result in join_all(calls).await {
            result?;
        }
        let kept = self.state.change(|state| forget(state, &names, pod));
        kept.await.map_err(|error| format!("checkpoint ResourceClaim state: {error}"))
    }

    /// Gives up the devices of pods that nobody knows any more, in the background.
    pub(crate) fn keep_only(cx: &Arc<Context>, pods: &BTreeSet<String>) {
        let gone: BTreeSet<String> = cx.devices.state.look(|claims| {
            let users = claims.0.values().flat_map(|claim| claim.pods.iter());
            users.filter(|pod| !pods.contains(*pod)).cloned().collect()
        });
        for pod in gone {
            let cx = cx.clone();
            tokio::spawn(async move {
                let work = async {
                    while let Err(why) = cx.devices.unprepare(&pod).await {
                        tracing::warn!(uid = pod, why, "devices of an unknown pod not given up, trying again");
                        sleep(RETRY).await;
                    }
                };
                cx.stop.run_until_cancelled(work).await;
            });
        }
    }

    /// The devices of a container, by their names in the Container Device Interface.
    ///
    /// # Errors
    /// When they are not prepared.
    pub(crate) fn of_container(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut out: Vec<String> = Vec::new();
        for (name, request) in wanted(pod, container)? {
            self.state.look(|claims| {
                let claim = claims.0.get(&(namespace.clone(), name.clone())).filter(|claim| claim.is_prepared);
                let claim = claim.ok_or_else(|| format!("unable to get claim info for ResourceClaim {name}"))?;
                for (_, device) in devices(claim, &request) {
                    for id in &device.cdi {
                        if !out.contains(id) {
                            out.push(id.clone());
                        }
                    }
                }
                Ok::<_, String>(())
            })?;
        }
        Ok(out)
    }

    /// The claims that a container uses, by namespace and name, with what has been prepared for them.
    pub(crate) fn list_container(&self, pod: &Pod, container: &Container) -> Vec<(Name, Vec<ListedDevice>)> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let names: BTreeSet<String> = wanted(pod, container).unwrap_or_default().into_iter().map(|(n, _)| n).collect();
        let claims = names.into_iter().map(|name| (namespace.clone(), name));
        self.state.look(|state| {
            let found = claims.filter_map(|name| Some((state.0.get(&name).filter(|c| c.is_prepared)?, name)));
            let listed = |(driver, device): (&str, &driver::Prepared)| ListedDevice {
                driver: driver.to_owned(),
                pool: device.pool.clone(),
                device: device.device.clone(),
                cdi: device.cdi.clone(),
            };
            found.map(|(claim, name)| (name, devices(claim, "").map(listed).collect())).collect()
        })
    }

    /// Notes in a pod's status how its devices are.
    pub(crate) fn note_health(&self, pod: &Pod, status: &mut PodStatus) {
        if !claims_any(pod) {
            return;
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let Ok(all) = claims_of(pod) else { return };
        let containers = pod.spec.iter().flat_map(|s| &s.containers);
        for container in containers {
            let listed = container.resources.as_ref().and_then(|r| r.claims.as_deref()).unwrap_or_default();
            let of = status.container_statuses.iter_mut().flatten().find(|s| s.name == container.name);
            let (Some(of), false) = (of, listed.is_empty()) else { continue };
            let mut told: Vec<ResourceStatus> = Vec::new();
            for claim in listed {
                let Some((_, name, _)) = all.iter().find(|(entry, ..)| *entry == claim.name) else { continue };
                let request = claim.request.as_deref().unwrap_or_default();
                let resources = self.state.look(|claims| {
                    claims
                        .0
                        .get(&(namespace.clone(), name.clone()))
                        .map(|c| self.healths(c, request))
                        .unwrap_or_default()
                });
                if !resources.is_empty() {
                    let slash = if request.is_empty() { "" } else { "/" };
                    let name = format!("claim:{}{slash}{request}", claim.name);
                    told.push(ResourceStatus { name, resources: Some(resources) });
                }
            }
            of.allocated_resources_status = (!told.is_empty()).then_some(told);
        }
    }

    fn healths(&self, claim: &Claim, request: &str) -> Vec<ResourceHealth> {
        let mut out: Vec<ResourceHealth> = Vec::new();
        for (driver, device) in devices(claim, request) {
            let state = self.plugins.health(driver, &device.pool, &device.device);
            let own = || format!("{driver}/{}/{}", device.pool, device.device);
            let id = device.cdi.first().cloned().unwrap_or_else(own);
            if out.iter().all(|known| known.resource_id != id) {
                out.push(ResourceHealth { resource_id: id, health: Some(state.to_owned()), message: None });
            }
        }
        out
    }
}

fn too_slow(what: &str) -> String {
    format!("{what}: rpc error: code = DeadlineExceeded desc = context deadline exceeded")
}

/// What each driver is asked about.
fn by_driver(claims: &[(Name, Claim)]) -> BTreeMap<String, Vec<ClaimId>> {
    let mut out: BTreeMap<String, Vec<ClaimId>> = BTreeMap::new();
    for (name, claim) in claims {
        for driver in claim.drivers.keys() {
            out.entry(driver.clone()).or_default().push(state::id(name, claim));
        }
    }
    out
}

/// The devices for a request of a claim, with their drivers; an empty request stands for all.
fn devices<'c>(claim: &'c Claim, request: &'c str) -> impl Iterator<Item = (&'c str, &'c driver::Prepared)> {
    let all = claim.drivers.iter().flat_map(|(driver, devices)| devices.iter().map(move |d| (driver.as_str(), d)));
    all.filter(move |(_, device)| {
        let is_named = |name: &String| base(name) == base(request);
        request.is_empty() || device.requests.is_empty() || device.requests.iter().any(is_named)
    })
}

fn forget(state: &mut Claims, names: &BTreeSet<Name>, pod: &str) {
    for name in names {
        let is_last = state.0.get_mut(name).is_some_and(|claim| {
            claim.pods.remove(pod);
            claim.pods.is_empty()
        });
        if is_last {
            state.0.remove(name);
        }
    }
}

#[cfg(test)]
mod tests;
