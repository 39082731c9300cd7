//! The search: devices of one node for all claims of a pod, or the certainty that there are none.
//!
//! Requests are satisfied in order, and what turns out to be a dead end is taken back. The devices of one request are taken in the order of
//! the pools, so no set of them is tried twice.

use super::capacity::{self, Amounts};
use super::pools::{Counter, Entry, Pools};
use super::request::{Alternative, Amount, MAX_RESULTS, Plan, is_meant};
use super::select::{qualified, selects};
use edge_api::Quantity;
use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceAttribute,
    DeviceRequestAllocationResult, DeviceTaint, DeviceToleration,
};
use std::collections::HashMap;

/// Steps of a search at most.
const STEPS: usize = 200_000;
/// Devices of one pod at most; the search goes as deep as that.
const MOST: usize = 512;

/// A device for a request.
#[derive(Clone)]
struct Pick<'a> {
    plan: usize,
    alternative: &'a Alternative,
    device: usize,
    /// What it takes of a device that others may have, too.
    share: Option<Amounts>,
}

/// The state of a search.
pub(super) struct Search<'a> {
    pools: &'a Pools,
    plans: &'a [&'a Plan],
    node: &'a Node,
    /// Devices of the node.
    usable: Vec<usize>,
    /// Each request: the place of its plan, and its alternatives.
    requests: Vec<(usize, &'a [Alternative])>,
    picks: Vec<Pick<'a>>,
    in_use: Vec<bool>,
    /// What the picks take of devices that are shared.
    shares: HashMap<usize, Vec<Amounts>>,
    /// Of counters of pools what the picks take.
    consumed: HashMap<(usize, Counter), Quantity>,
    /// What expressions have said about devices, by the place of the alternative in memory.
    known: HashMap<(*const Alternative, usize), bool>,
    steps: usize,
}

type Found = Result<bool, String>;

impl<'a> Search<'a> {
    pub(super) fn new(pools: &'a Pools, plans: &'a [&'a Plan], node: &'a Node) -> Self {
        let mut usable: Vec<usize> =
            pools.devices.iter().enumerate().filter(|(_, d)| d.is_on(node)).map(|(i, _)| i).collect();
        // those that need no preparation first
        usable.sort_by_key(|i| pools.devices.get(*i).is_some_and(Entry::has_conditions));
        let requests = plans.iter().enumerate().flat_map(|(i, p)| p.requests.iter().map(move |r| (i, r.as_slice())));
        Self {
            pools,
            plans,
            node,
            usable,
            requests: requests.collect(),
            picks: Vec::new(),
            in_use: pools.devices.iter().map(|d| d.is_taken).collect(),
            shares: HashMap::new(),
            consumed: HashMap::new(),
            known: HashMap::new(),
            steps: 0,
        }
    }

    /// The allocations of all claims, in their order; `None`: the node has not got what they need.
    ///
    /// # Errors
    /// What is wrong with a claim, a class or a pool.
    pub(super) fn run(mut self) -> Result<Option<Vec<AllocationResult>>, String> {
        let least = |alternatives: &[Alternative]| {
            let amount = |a: &Alternative| if let Amount::Exactly(n) = a.amount { n } else { 1 };
            alternatives.iter().map(amount).min().unwrap_or(1)
        };
        let total = self.requests.iter().fold(0, |sum: usize, (_, a)| sum.saturating_add(least(a)));
        if total > MOST {
            return Err(format!("the claims of the pod need more than {MOST} devices"));
        }
        if self.request(0)? { self.results().map(Some) } else { Ok(None) }
    }

    fn request(&mut self, at: usize) -> Found {
        let Some((plan, alternatives)) = self.requests.get(at).copied() else { return Ok(true) };
        for alternative in alternatives {
            let found = match alternative.amount {
                Amount::All => self.all(at, plan, alternative)?,
                Amount::Exactly(n) => self.some(at, (plan, alternative), n, 0)?,
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes so many more devices for a request, from a place on.
    fn some(&mut self, at: usize, (plan, alternative): (usize, &'a Alternative), left: usize, from: usize) -> Found {
        if left == 0 {
            return self.request(at + 1);
        }
        for place in from..self.usable.len() {
            self.steps += 1;
            if self.steps > STEPS {
                return Err("timed out trying to allocate devices".into());
            }
            let Some(device) = self.usable.get(place).copied() else { break };
            let Some(pick) = self.fitting(plan, alternative, device)? else { continue };
            // one that is shared may be taken more than once
            let next = if pick.share.is_some() { place } else { place + 1 };
            self.take(pick);
            if self.some(at, (plan, alternative), left - 1, next)? {
                return Ok(true);
            }
            self.give_back();
        }
        Ok(false)
    }

    /// Takes all devices for a request that its expressions are about.
    fn all(&mut self, at: usize, plan: usize, alternative: &'a Alternative) -> Found {
        let mut wanted = Vec::new();
        for device in self.usable.clone() {
            if self.is_selected(plan, alternative, device)? {
                wanted.push(device);
            }
        }
        let claim = self.plans.get(plan).map_or("", |p| p.claim.as_str());
        for device in &wanted {
            let Some(pool) = self.pools.devices.get(*device).and_then(|d| self.pools.pools.get(d.pool)) else {
                continue;
            };
            if !pool.is_complete {
                let of = format!("{}/{}", pool.driver, pool.name);
                return Err(format!(
                    "claim {claim}, request {}: asks for all devices, but resource pool {of} is currently being updated",
                    alternative.name
                ));
            }
        }
        if wanted.len() > MAX_RESULTS {
            return Err(format!(
                "claim {claim}: {} devices are more than the {MAX_RESULTS} that a claim can have",
                wanted.len()
            ));
        }
        let before = self.picks.len();
        let mut fits = !wanted.is_empty();
        for device in wanted {
            let Some(pick) = self.fitting(plan, alternative, device)? else {
                fits = false;
                break;
            };
            self.take(pick);
        }
        if fits && self.request(at + 1)? {
            return Ok(true);
        }
        while self.picks.len() > before {
            self.give_back();
        }
        Ok(false)
    }

    fn entry(&self, device: usize) -> Option<(&'a Entry, &'a Device)> {
        let entry = self.pools.devices.get(device)?;
        Some((entry, entry.device()?))
    }

    /// Whether class and request are about a device.
    fn is_selected(&mut self, plan: usize, alternative: &'a Alternative, device: usize) -> Found {
        let key = (std::ptr::from_ref(alternative), device);
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let Some((entry, of)) = self.entry(device) else { return Ok(false) };
        let claim = self.plans.get(plan).map_or("", |p| p.claim.as_str());
        let selected = selects(&alternative.selectors, &entry.slice.spec.driver, of)
            .map_err(|why| format!("claim {claim}, request {}: {why}", alternative.name))?;
        self.known.insert(key, selected);
        Ok(selected)
    }

    /// The device for a request, if it will do.
    fn fitting(
        &mut self,
        plan: usize,
        alternative: &'a Alternative,
        device: usize,
    ) -> Result<Option<Pick<'a>>, String> {
        let mut pick = Pick { plan, alternative, device, share: None };
        let Some((entry, device)) = self.entry(pick.device) else { return Ok(None) };
        let Some(pool) = self.pools.pools.get(entry.pool) else { return Ok(None) };
        let admin = pick.alternative.is_admin;
        if !pool.is_complete || (self.in_use.get(pick.device) != Some(&false) && !admin) {
            return Ok(None);
        }
        // also one that only looks does not look at one device twice
        let is_shared = entry.is_shared() && !admin;
        let again = |p: &Pick<'_>| p.device == pick.device && std::ptr::eq(p.alternative, pick.alternative);
        let is_again = !is_shared && self.picks.iter().any(again);
        if is_again || !self.is_selected(pick.plan, pick.alternative, pick.device)? {
            return Ok(None);
        }
        if let Some(why) = &pool.invalid {
            return Err(format!("pool {}/{} is invalid: {why}", pool.driver, pool.name));
        }
        let tolerated = device.taints.iter().flatten().all(|t| is_tolerated(t, &pick.alternative.tolerations));
        let of_claim = self.picks.iter().filter(|p| p.plan == pick.plan).count();
        let enough = admin
            || self.has_shares(pick.device)
            || entry.consumes().all(|(counter, amount)| self.has_left(entry.pool, counter, &amount));
        if !tolerated || of_claim >= MAX_RESULTS || !enough || !self.keeps_constraints(&pick) {
            return Ok(None);
        }
        if is_shared || pick.alternative.capacity.is_some() {
            let driver = entry.slice.spec.driver.as_str();
            let claim = self.plans.get(pick.plan).map_or("", |p| p.claim.as_str());
            let taken = capacity::taken(device, driver, pick.alternative.capacity.as_ref())
                .map_err(|why| format!("claim {claim}, request {}: {why}", pick.alternative.name))?;
            let Some(taken) = taken else { return Ok(None) };
            let here = self.shares.get(&pick.device).into_iter().flatten();
            let others: Vec<&Amounts> = here.chain(entry.used.iter().filter(|_| is_shared)).collect();
            if !capacity::has(device, driver, &taken, &others) {
                return Ok(None);
            }
            pick.share = is_shared.then_some(taken);
        }
        Ok(Some(pick))
    }

    /// Whether somebody has a share of a device, whose part of counters is accounted for then.
    fn has_shares(&self, device: usize) -> bool {
        let of_others = self.pools.devices.get(device).is_some_and(|entry| entry.is_shared() && entry.used.is_some());
        of_others || self.shares.get(&device).is_some_and(|shares| !shares.is_empty())
    }

    fn has_left(&self, pool: usize, counter: Counter, amount: &Quantity) -> bool {
        let left = self.pools.pools.get(pool).and_then(|p| p.counters.get(&counter)).copied();
        let consumed = self.consumed.get(&(pool, counter)).copied().unwrap_or(Quantity::ZERO);
        left.is_some_and(|left| consumed.add(amount) <= left)
    }

    fn keeps_constraints(&self, pick: &Pick<'a>) -> bool {
        let Some(plan) = self.plans.get(pick.plan) else { return false };
        let Some(own) = self.entry(pick.device) else { return false };
        plan.constraints.iter().filter(|c| is_meant(c.requests.as_ref(), &pick.alternative.name)).all(|c| {
            let others = || {
                let of = self.picks.iter().filter(|p| p.plan == pick.plan);
                of.filter(|p| is_meant(c.requests.as_ref(), &p.alternative.name)).filter_map(|p| self.entry(p.device))
            };
            let matching = c.match_attribute.as_deref().is_none_or(|name| {
                let value = attribute(own, name);
                // all are the same when each is the same as the first
                value.is_some() && others().next().is_none_or(|first| attribute(first, name) == value)
            });
            let distinct = c.distinct_attribute.as_deref().is_none_or(|name| {
                let value = attribute(own, name);
                value.is_some() && others().all(|other| attribute(other, name) != value)
            });
            matching && distinct
        })
    }

    fn take(&mut self, pick: Pick<'a>) {
        if let Some(share) = &pick.share {
            if !self.has_shares(pick.device) {
                self.account(pick.device, Quantity::add);
            }
            self.shares.entry(pick.device).or_default().push(share.clone());
        } else if !pick.alternative.is_admin {
            if let Some(slot) = self.in_use.get_mut(pick.device) {
                *slot = true;
            }
            self.account(pick.device, Quantity::add);
        }
        self.picks.push(pick);
    }

    fn give_back(&mut self) {
        let Some(pick) = self.picks.pop() else { return };
        if pick.share.is_some() {
            self.shares.entry(pick.device).or_default().pop();
            if !self.has_shares(pick.device) {
                self.account(pick.device, Quantity::sub);
            }
        } else if !pick.alternative.is_admin {
            if let Some(slot) = self.in_use.get_mut(pick.device) {
                *slot = false;
            }
            self.account(pick.device, Quantity::sub);
        }
    }

    fn account(&mut self, device: usize, how: fn(&Quantity, &Quantity) -> Quantity) {
        let Some((entry, _)) = self.entry(device) else { return };
        for (counter, amount) in entry.consumes() {
            let consumed = self.consumed.entry((entry.pool, counter)).or_insert(Quantity::ZERO);
            *consumed = how(consumed, &amount);
        }
    }

    fn results(&self) -> Result<Vec<AllocationResult>, String> {
        (0..self.plans.len()).map(|plan| self.result(plan)).collect()
    }

    fn result(&self, plan: usize) -> Result<AllocationResult, String> {
        let picks: Vec<&Pick<'a>> = self.picks.iter().filter(|p| p.plan == plan).collect();
        let mut results = Vec::new();
        let mut config: Vec<DeviceAllocationConfiguration> = Vec::new();
        let mut told: Vec<&str> = Vec::new();
        for pick in &picks {
            let Some((entry, device)) = self.entry(pick.device) else { continue };
            let alternative = pick.alternative;
            let tolerations = &alternative.tolerations;
            let driver = &entry.slice.spec.driver;
            let share = pick.share.as_ref().map(|_| capacity::share()).transpose();
            results.push(DeviceRequestAllocationResult {
                request: alternative.name.clone(),
                driver: driver.clone(),
                share_id: share.map_err(|error| format!("cannot name a share of a device: {error}"))?,
                consumed_capacity: pick.share.as_ref().map(|share| capacity::told(device, driver, share)),
                binding_conditions: device.binding_conditions.clone(),
                binding_failure_conditions: device.binding_failure_conditions.clone(),
                pool: entry.slice.spec.pool.name.clone(),
                device: device.name.clone(),
                admin_access: alternative.is_admin.then_some(true),
                tolerations: (!tolerations.is_empty()).then(|| tolerations.clone()),
            });
            if !told.contains(&alternative.name.as_str()) {
                told.push(&alternative.name);
                let of_class = alternative.class.spec.config.iter().flatten();
                config.extend(of_class.map(|c| DeviceAllocationConfiguration {
                    source: "FromClass".into(),
                    requests: Some(vec![alternative.name.clone()]),
                    opaque: c.opaque.clone(),
                }));
            }
        }
        let own = self.plans.get(plan).map(|p| p.config.as_slice()).unwrap_or_default();
        let is_used = |c: &&DeviceAllocationConfiguration| told.iter().any(|name| is_meant(c.requests.as_ref(), name));
        config.extend(own.iter().filter(is_used).cloned());
        Ok(AllocationResult {
            devices: Some(DeviceAllocationResult {
                results: Some(results),
                config: (!config.is_empty()).then_some(config),
            }),
            node_selector: self.node_selector(&picks),
            ..AllocationResult::default()
        })
    }

    /// Where the devices of a claim can be used together; nothing: everywhere.
    fn node_selector(&self, picks: &[&Pick<'a>]) -> Option<NodeSelector> {
        let mut term = NodeSelectorTerm::default();
        for (entry, device) in picks.iter().filter_map(|p| self.entry(p.device)) {
            let spec = &entry.slice.spec;
            let (node, selector) = match spec.per_device_node_selection {
                Some(true) => (device.node_name.as_deref(), device.node_selector.as_ref()),
                _ => (spec.node_name.as_deref(), spec.node_selector.as_ref()),
            };
            if node.is_some_and(|n| !n.is_empty()) || device.binds_to_node == Some(true) {
                let name = self.node.metadata.name.clone().unwrap_or_default();
                let requirement = NodeSelectorRequirement {
                    key: "metadata.name".into(),
                    operator: "In".into(),
                    values: Some(vec![name]),
                };
                let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
                return Some(NodeSelector { node_selector_terms: vec![term] });
            }
            for other in selector.into_iter().flat_map(|s| &s.node_selector_terms) {
                let add = |to: &mut Option<Vec<NodeSelectorRequirement>>,
                           from: &Option<Vec<NodeSelectorRequirement>>| {
                    for requirement in from.iter().flatten() {
                        let all = to.get_or_insert_default();
                        if !all.contains(requirement) {
                            all.push(requirement.clone());
                        }
                    }
                };
                add(&mut term.match_expressions, &other.match_expressions);
                add(&mut term.match_fields, &other.match_fields);
            }
        }
        let is_empty = term.match_expressions.is_none() && term.match_fields.is_none();
        (!is_empty).then(|| NodeSelector { node_selector_terms: vec![term] })
    }
}

/// The attribute of a name with its domain; a device need not write the domain of its driver.
fn attribute<'d>((entry, device): (&'d Entry, &'d Device), name: &str) -> Option<&'d DeviceAttribute> {
    let attributes = device.attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let driver = entry.slice.spec.driver.as_str();
        let (domain, short) = qualified(name, driver);
        (domain == driver).then(|| attributes.get(short)).flatten()
    })
}

fn is_tolerated(taint: &DeviceTaint, tolerations: &[DeviceToleration]) -> bool {
    if !matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute") {
        return true;
    }
    tolerations.iter().any(|t| {
        let effect = t.effect.as_deref().is_none_or(|e| e.is_empty() || e == taint.effect);
        let key = t.key.as_deref().is_none_or(|k| k.is_empty() || k == taint.key);
        let value = match t.operator.as_deref() {
            Some("Exists") => true,
            _ => t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        };
        effect && key && value
    })
}
