//! DynamicResources: which devices the claims of a pod get, and on which nodes.
//!
//! In: the pod's claims, the classes, the slices in which drivers tell of devices, and what other claims have. Out: for a node an allocation
//! of each claim that has none, or why there is none. The rules are those of Kubernetes' structured parameters.

mod allocate;
mod capacity;
pub(crate) mod conditions;
pub(crate) mod extended;
mod pools;
mod request;
mod select;

pub(crate) use select::Selectors;

use super::{Plugin, Refusal, normalize};
use crate::cluster::NodeState;
use crate::decide::Attempt;
use crate::pod::Pending;
use crate::world::World;
use allocate::Search;
use capacity::Amounts;
use conditions::{Readiness, readiness};
use edge_api::Quantity;
use edge_client::Key;
use edge_client::placement::selector_matches;
use k8s_openapi::api::core::v1::{ContainerExtendedResourceRequest, Node, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use k8s_openapi::jiff::Timestamp;
use pools::Pools;
use request::{Plan, plan};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Alternatives of one request at most, and so what the best of them is worth (Kubernetes' value).
const MAX_ALTERNATIVES: i64 = 8;
/// Pods that may use one claim at most (Kubernetes' value).
const MAX_USERS: usize = 256;
/// Driver, pool and device.
pub(crate) type DeviceId = (String, String, String);

/// What decisions about devices remember from one to the next.
#[derive(Default)]
pub(crate) struct Allocating {
    /// What claims, by UID, are about to get, and for which pod: the API does not show it yet.
    in_flight: HashMap<String, (Key, Vec<Taken>)>,
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
    /// Which containers get what of a claim for extended resources, which is to be made first. Empty: it is another claim.
    pub(crate) mappings: Vec<ContainerExtendedResourceRequest>,
}

/// What a pod's claims come to, whatever the node.
#[derive(Default)]
pub(crate) struct Wanted {
    /// Those that have devices.
    allocated: Vec<Arc<ResourceClaim>>,
    /// Those that need some, with what they ask for.
    open: Vec<(Arc<ResourceClaim>, Plan)>,
    /// Extended resources, with the classes that they stand for.
    extended: BTreeMap<String, String>,
    pools: Pools,
}

fn refuse(reason: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::lasting(Plugin::DynamicResources, reason)
}

fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// A device that a claim has: what it takes of it when others may have it, too, else nothing.
type Taken = (DeviceId, Option<Amounts>);

/// What claims have of a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Use {
    /// One claim has it as a whole.
    is_whole: bool,
    /// What the others have.
    amounts: Amounts,
}

/// What is taken, by device.
fn by_device(all: impl Iterator<Item = Taken>) -> HashMap<DeviceId, Use> {
    let mut out: HashMap<DeviceId, Use> = HashMap::new();
    for (id, share) in all {
        let of = out.entry(id).or_default();
        of.is_whole |= share.is_none();
        for (name, amount) in share.into_iter().flatten() {
            let sum = of.amounts.entry(name).or_insert(Quantity::ZERO);
            *sum = sum.add(&amount);
        }
    }
    out
}

/// The devices that others cannot have, or only in part: those for administrators are looked at only.
fn devices_of(allocation: &AllocationResult) -> impl Iterator<Item = Taken> + '_ {
    let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
    results.filter(|r| r.admin_access != Some(true)).map(|r| {
        let amounts = r.consumed_capacity.iter().flatten().map(|(name, amount)| {
            // one that cannot be read is more than there is
            let amount = Quantity::parse(&amount.0).unwrap_or(Quantity::from_units(i64::MAX));
            (capacity::full_name(name, &r.driver), amount)
        });
        let share = r.share_id.as_ref().map(|_| amounts.collect());
        ((r.driver.clone(), r.pool.clone(), r.device.clone()), share)
    })
}

fn uid(claim: &ResourceClaim) -> &str {
    claim.metadata.uid.as_deref().unwrap_or_default()
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
    let mut out = Wanted { extended: extended::wanted(&a.q.pod.pod, a.q.world), ..Wanted::default() };
    if a.q.pod.spec().resource_claims.as_ref().is_none_or(Vec::is_empty) && out.extended.is_empty() {
        return Ok(out);
    }
    // one that was made and not used may be of no use any more
    if !out.extended.is_empty() && stale(a.q.pod, a.q.world).is_some() {
        return Err(refuse("cannot schedule extended resource claim"));
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
        if a.q.allocating.in_flight.contains_key(uid(&claim)) {
            let of = Key::of(&*claim);
            return Err(refuse(format!("resource claim {of} is in the process of being allocated")));
        }
        let plan = plan(&claim, &classes, &a.q.allocating.selectors).map_err(refuse)?;
        out.open.push((claim, plan));
    }
    if !out.open.is_empty() || !out.extended.is_empty() {
        let claims = a.q.world.resource_claims();
        let known = claims.iter().filter(|c| !a.q.allocating.in_flight.contains_key(uid(c)));
        let known = known.filter_map(|claim| allocation(claim)).flat_map(devices_of);
        let in_flight = a.q.allocating.in_flight.values().flat_map(|(_, devices)| devices.iter().cloned());
        out.pools = Pools::new(a.q.world.slices(), &by_device(known.chain(in_flight)));
    }
    Ok(out)
}

/// What the claims get on a node.
///
/// # Errors
/// Why the node will not do.
pub(crate) fn choose(a: &Attempt<'_>, wanted: &Wanted, node: &Node) -> Result<Vec<DeviceChoice>, Refusal> {
    if wanted.allocated.is_empty() && wanted.open.is_empty() && wanted.extended.is_empty() {
        return Ok(Vec::new());
    }
    let pod = &a.q.pod.pod;
    let away = |claim: &Arc<ResourceClaim>| is_away(claim, node) || has_failed(claim);
    if wanted.allocated.iter().any(away) {
        return Err(refuse("resourceclaim not available on the node"));
    }
    let mut out: Vec<DeviceChoice> = wanted
        .allocated
        .iter()
        .filter(|claim| !is_reserved_for(claim, pod))
        .map(|claim| DeviceChoice { claim: claim.clone(), allocation: None, mappings: Vec::new() })
        .collect();
    let missing = extended::missing(&wanted.extended, node);
    if wanted.open.is_empty() && missing.is_empty() {
        return Ok(out);
    }
    let mut own = None;
    if !missing.is_empty() {
        let (claim, mappings) = extended::claim(pod, &missing);
        let classes = |name: &str| a.q.world.device_class(name);
        let plan = plan(&claim, &classes, &a.q.allocating.selectors).map_err(refuse)?;
        own = Some((Arc::new(claim), plan, mappings));
    }
    let plans = wanted.open.iter().map(|(_, plan)| plan).chain(own.iter().map(|(_, plan, _)| plan));
    let plans: Vec<&Plan> = plans.collect();
    let found = Search::new(&wanted.pools, &plans, node).run().map_err(refuse)?;
    let Some(allocations) = found else { return Err(refuse("cannot allocate all claims")) };
    let mut allocations = allocations.into_iter();
    for ((claim, _), allocation) in wanted.open.iter().zip(allocations.by_ref()) {
        out.push(DeviceChoice { claim: claim.clone(), allocation: Some(allocation), mappings: Vec::new() });
    }
    if let Some((claim, _, mappings)) = own {
        out.push(DeviceChoice { claim, allocation: allocations.next(), mappings });
    }
    Ok(out)
}

/// Scores of nodes: better alternatives are worth more. Nothing where no claim leaves a choice.
pub(crate) fn scores(a: &Attempt<'_>, wanted: &Wanted, nodes: &[&NodeState]) -> Option<Vec<i64>> {
    let plans = || wanted.open.iter().map(|(_, plan)| plan);
    if !plans().any(|plan| plan.requests.iter().any(|alternatives| alternatives.len() > 1)) {
        return None;
    }
    let worth = |results: &[&str], alternatives: &[request::Alternative]| {
        let taken = alternatives.iter().position(|alternative| results.contains(&alternative.name.as_str()));
        taken.and_then(|place| i64::try_from(place).ok()).map_or(0, |place| MAX_ALTERNATIVES - place)
    };
    let score = |node: &NodeState| {
        let chosen = node.node.as_deref().and_then(|node| choose(a, wanted, node).ok()).unwrap_or_default();
        let of = |claim: &ResourceClaim| chosen.iter().find(|choice| uid(&choice.claim) == uid(claim));
        let claims = wanted.open.iter().filter_map(|(claim, plan)| Some((of(claim)?.allocation.as_ref()?, plan)));
        claims
            .map(|(allocation, plan)| {
                let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
                let results: Vec<&str> = results.map(|r| r.request.as_str()).collect();
                let open = plan.requests.iter().filter(|alternatives| alternatives.len() > 1);
                open.map(|alternatives| worth(&results, alternatives)).sum::<i64>()
            })
            .sum()
    };
    let mut scores: Vec<i64> = nodes.iter().map(|node| score(node)).collect();
    normalize(&mut scores, false);
    Some(scores)
}

/// Whether the drivers of a claim's devices have given up.
fn has_failed(claim: &ResourceClaim) -> bool {
    matches!(readiness(claim, Timestamp::now()), Readiness::Failed(_))
}

/// A claim for extended resources of a pod from an attempt that came to nothing.
pub(crate) fn stale(pod: &Pending, world: &dyn World) -> Option<Arc<ResourceClaim>> {
    world.resource_claims().into_iter().find(|claim| extended::is_for(claim, &pod.pod))
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
        if let Some(found) = claims.iter().find(|claim| is_away(claim, &node) || has_failed(claim)) {
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
