//! DynamicResources: which devices the claims of a pod get, and on which nodes.
//!
//! In: the pod's claims, the classes, the slices in which drivers tell of devices, and what other claims have. Out: for a node an allocation
//! of each claim that has none, or why there is none. The rules are those of Kubernetes' structured parameters; devices that several claims
//! share by capacity, and conditions that drivers set before a pod may be bound, are not known here.

mod allocate;
mod pools;
mod request;
mod select;

pub(crate) use select::Selectors;

use super::{Plugin, Refusal};
use crate::decide::Attempt;
use crate::pod::Pending;
use crate::world::World;
use allocate::Search;
use edge_client::Key;
use edge_client::placement::selector_matches;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use pools::Pools;
use request::{Plan, plan};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Pods that may use one claim at most (Kubernetes' value).
const MAX_USERS: usize = 256;
/// Driver, pool and device.
pub(crate) type DeviceId = (String, String, String);

/// What decisions about devices remember from one to the next.
#[derive(Default)]
pub(crate) struct Allocating {
    /// What claims, by UID, are about to get, and for which pod: the API does not show it yet.
    in_flight: HashMap<String, (Key, Vec<DeviceId>)>,
    selectors: Selectors,
}

impl Allocating {
    /// Takes the devices of choices to be taken from now on.
    pub(crate) fn begin(&mut self, pod: &Key, chosen: &[DeviceChoice]) {
        for choice in chosen {
            let Some(allocation) = &choice.allocation else { continue };
            let uid = choice.claim.metadata.uid.clone().unwrap_or_default();
            self.in_flight.insert(uid, (pod.clone(), devices_of(allocation).collect()));
        }
    }

    /// What was chosen for a pod is known to the API now, or never will be.
    pub(crate) fn end(&mut self, pod: &Key) {
        self.in_flight.retain(|_, (of, _)| of != pod);
    }
}

/// What a claim of a pod gets.
#[derive(Clone, Debug)]
pub(crate) struct DeviceChoice {
    pub(crate) claim: Arc<ResourceClaim>,
    /// Nothing: it has its devices, and the pod only is one more user.
    pub(crate) allocation: Option<AllocationResult>,
}

/// What a pod's claims come to, whatever the node.
#[derive(Default)]
pub(crate) struct Wanted {
    /// Those that have devices.
    allocated: Vec<Arc<ResourceClaim>>,
    /// Those that need some, with what they ask for.
    open: Vec<(Arc<ResourceClaim>, Plan)>,
    pools: Pools,
}

fn refuse(reason: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::lasting(Plugin::DynamicResources, reason)
}

fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// The devices that others cannot have: those for administrators are looked at only.
fn devices_of(allocation: &AllocationResult) -> impl Iterator<Item = DeviceId> + '_ {
    let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
    results.filter(|r| r.admin_access != Some(true)).map(|r| (r.driver.clone(), r.pool.clone(), r.device.clone()))
}

fn users(claim: &ResourceClaim) -> usize {
    claim.status.as_ref().and_then(|s| s.reserved_for.as_ref()).map_or(0, Vec::len)
}

fn is_reserved_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    let users = claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default();
    users.iter().any(|user| Some(&user.uid) == pod.metadata.uid.as_ref())
}

/// The claims of a pod.
///
/// # Errors
/// Why they are not all there yet.
pub(crate) fn claims(pod: &Pending, world: &dyn World) -> Result<Vec<Arc<ResourceClaim>>, String> {
    let mut out = Vec::new();
    let noted = pod.pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or_default();
    for entry in pod.spec().resource_claims.iter().flatten() {
        let (name, is_own) = match &entry.resource_claim_name {
            Some(name) => (name.clone(), false),
            None => match noted.iter().find(|status| status.name == entry.name) {
                Some(status) => match &status.resource_claim_name {
                    Some(name) => (name.clone(), true),
                    // somebody has found that the pod does not need it
                    None => continue,
                },
                None => return Err(format!("pod {:?}: ResourceClaim not created yet", pod.key().to_string())),
            },
        };
        let claim = world.resource_claim(pod.namespace(), &name);
        let claim = claim.ok_or_else(|| format!("resourceclaim.resource.k8s.io {name:?} not found"))?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim {name:?} is being deleted"));
        }
        let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
        let is_for_pod = owners.iter().any(|o| o.controller == Some(true) && o.uid == pod.info.uid);
        if is_own && !is_for_pod {
            return Err(format!(
                "ResourceClaim {}/{name} was not created for pod {} (pod is not owner)",
                pod.namespace(),
                pod.key()
            ));
        }
        out.push(claim);
    }
    Ok(out)
}

/// Looks at the pod's claims.
///
/// # Errors
/// When the pod can run nowhere at the moment.
pub(crate) fn wanted(a: &Attempt<'_>) -> Result<Wanted, Refusal> {
    let mut out = Wanted::default();
    if a.q.pod.spec().resource_claims.as_ref().is_none_or(Vec::is_empty) {
        return Ok(out);
    }
    let classes = |name: &str| a.q.world.device_class(name);
    for claim in claims(a.q.pod, a.q.world).map_err(refuse)? {
        if allocation(&claim).is_some() {
            if users(&claim) >= MAX_USERS && !is_reserved_for(&claim, &a.q.pod.pod) {
                return Err(refuse("resourceclaim in use"));
            }
            out.allocated.push(claim);
            continue;
        }
        if a.q.allocating.in_flight.contains_key(claim.metadata.uid.as_deref().unwrap_or_default()) {
            let of = Key::of(&*claim);
            return Err(refuse(format!("resource claim {of} is in the process of being allocated")));
        }
        let plan = plan(&claim, &classes, &a.q.allocating.selectors).map_err(refuse)?;
        out.open.push((claim, plan));
    }
    if !out.open.is_empty() {
        let mut taken: HashSet<DeviceId> = HashSet::new();
        for claim in a.q.world.resource_claims() {
            taken.extend(allocation(&claim).into_iter().flat_map(devices_of));
        }
        taken.extend(a.q.allocating.in_flight.values().flat_map(|(_, devices)| devices.iter().cloned()));
        out.pools = Pools::new(a.q.world.slices(), &taken);
    }
    Ok(out)
}

/// What the claims get on a node.
///
/// # Errors
/// Why the node will not do.
pub(crate) fn choose(wanted: &Wanted, pod: &Pod, node: &Node) -> Result<Vec<DeviceChoice>, Refusal> {
    let away = |claim: &Arc<ResourceClaim>| is_away(claim, node);
    if wanted.allocated.iter().any(away) {
        return Err(refuse("resourceclaim not available on the node"));
    }
    let mut out: Vec<DeviceChoice> = wanted
        .allocated
        .iter()
        .filter(|claim| !is_reserved_for(claim, pod))
        .map(|claim| DeviceChoice { claim: claim.clone(), allocation: None })
        .collect();
    if wanted.open.is_empty() {
        return Ok(out);
    }
    let plans: Vec<&Plan> = wanted.open.iter().map(|(_, plan)| plan).collect();
    let found = Search::new(&wanted.pools, &plans, node).run().map_err(refuse)?;
    let Some(allocations) = found else { return Err(refuse("cannot allocate all claims")) };
    let open = wanted.open.iter().zip(allocations);
    out.extend(open.map(|((claim, _), a)| DeviceChoice { claim: claim.clone(), allocation: Some(a) }));
    Ok(out)
}

/// Whether a claim's devices cannot be reached from a node.
fn is_away(claim: &ResourceClaim, node: &Node) -> bool {
    allocation(claim).and_then(|a| a.node_selector.as_ref()).is_some_and(|s| !selector_matches(s, node))
}

/// A claim of a pod that fits nowhere which has devices that nobody else uses and that keep the pod from some node: without them it may fit.
pub(crate) fn to_free(
    pod: &Pending,
    world: &dyn World,
    nodes: &mut dyn Iterator<Item = Arc<Node>>,
) -> Option<Arc<ResourceClaim>> {
    let mut claims = claims(pod, world).ok()?;
    claims.retain(|claim| {
        let only_this = users(claim) == 0 || (users(claim) == 1 && is_reserved_for(claim, &pod.pod));
        allocation(claim).is_some() && only_this
    });
    if claims.is_empty() {
        return None;
    }
    for node in nodes {
        if let Some(found) = claims.iter().find(|claim| is_away(claim, &node)) {
            return Some(found.clone());
        }
    }
    None
}

/// Whether a claim has given devices back.
pub(crate) fn gives_back(old: Option<&ResourceClaim>, new: Option<&ResourceClaim>) -> bool {
    old.and_then(allocation).is_some() && new.and_then(allocation).is_none()
}

#[cfg(test)]
mod tests;
