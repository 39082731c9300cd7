//! The devices that there are, as drivers tell of them.

use super::capacity::Amounts;
use super::{DeviceId, Use};
use edge_api::Quantity;
use edge_client::placement::selector_matches;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{Device, ResourceSlice};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// A counter of a pool: its set and its name.
pub(super) type Counter = (String, String);

/// Devices that one driver tells of together.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) driver: String,
    pub(super) name: String,
    /// All slices of the newest generation are there.
    pub(super) is_complete: bool,
    /// What is wrong with it.
    pub(super) invalid: Option<String>,
    /// What is left of the counters that devices share.
    pub(super) counters: HashMap<Counter, Quantity>,
}

/// A device.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) pool: usize,
    pub(super) slice: Arc<ResourceSlice>,
    index: usize,
    /// Nobody else gets it.
    pub(super) is_taken: bool,
    /// What others have of it already.
    pub(super) used: Option<Amounts>,
}

/// All devices.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pub(super) pools: Vec<Pool>,
    pub(super) devices: Vec<Entry>,
}

impl Entry {
    pub(super) fn device(&self) -> Option<&Device> {
        self.slice.spec.devices.as_ref()?.get(self.index)
    }

    /// Whether several claims may have it at the same time.
    pub(super) fn is_shared(&self) -> bool {
        self.device().is_some_and(|device| device.allow_multiple_allocations == Some(true))
    }

    /// Whether it has to be made ready before a pod is bound.
    pub(super) fn has_conditions(&self) -> bool {
        let conditions = self.device().and_then(|device| device.binding_conditions.as_ref());
        conditions.is_some_and(|conditions| !conditions.is_empty())
    }

    /// Whether it can be used on a node.
    pub(super) fn is_on(&self, node: &Node) -> bool {
        let spec = &self.slice.spec;
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let (node_name, selector, all) = match self.device() {
            Some(device) if spec.per_device_node_selection == Some(true) => {
                (device.node_name.as_deref(), device.node_selector.as_ref(), device.all_nodes)
            }
            _ => (spec.node_name.as_deref(), spec.node_selector.as_ref(), spec.all_nodes),
        };
        match (node_name.unwrap_or_default(), selector) {
            ("", Some(selector)) => selector_matches(selector, node),
            ("", None) => all == Some(true),
            (of, _) => of == name,
        }
    }

    /// What it takes of the counters of its pool.
    pub(super) fn consumes(&self) -> impl Iterator<Item = (Counter, Quantity)> + '_ {
        let of = self.device().into_iter().flat_map(|d| d.consumes_counters.iter().flatten());
        of.flat_map(|c| {
            c.counters.iter().map(|(name, counter)| {
                // one that cannot be read is more than there is
                let amount = Quantity::parse(&counter.value.0).unwrap_or(Quantity::from_units(i64::MAX));
                ((c.counter_set.clone(), name.clone()), amount)
            })
        })
    }
}

impl Pools {
    /// Sorts slices. Those of older generations are silently left out.
    pub(super) fn new(slices: Vec<Arc<ResourceSlice>>, taken: &HashMap<DeviceId, Use>) -> Self {
        let mut of_pools: BTreeMap<(String, String), Vec<Arc<ResourceSlice>>> = BTreeMap::new();
        for slice in slices {
            let key = (slice.spec.driver.clone(), slice.spec.pool.name.clone());
            of_pools.entry(key).or_default().push(slice);
        }
        let mut out = Self::default();
        for ((driver, name), mut slices) in of_pools {
            let newest = slices.iter().map(|s| s.spec.pool.generation).max();
            slices.retain(|s| Some(s.spec.pool.generation) == newest);
            slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
            out.add(driver, name, slices, taken);
        }
        out
    }

    fn add(&mut self, driver: String, name: String, slices: Vec<Arc<ResourceSlice>>, taken: &HashMap<DeviceId, Use>) {
        let count = slices.first().map_or(0, |s| s.spec.pool.resource_slice_count);
        let mut pool = Pool {
            is_complete: i64::try_from(slices.len()) == Ok(count),
            invalid: None,
            counters: HashMap::new(),
            driver,
            name,
        };
        for slice in &slices {
            for set in slice.spec.shared_counters.iter().flatten() {
                for (counter, value) in &set.counters {
                    let amount = Quantity::parse(&value.value.0).unwrap_or(Quantity::ZERO);
                    pool.counters.insert((set.name.clone(), counter.clone()), amount);
                }
            }
        }
        let mut names: HashSet<&str> = HashSet::new();
        for slice in &slices {
            for (index, device) in slice.spec.devices.iter().flatten().enumerate() {
                if !names.insert(&device.name) {
                    pool.invalid = Some(format!("duplicate device name {}", device.name));
                }
                let id = (pool.driver.clone(), pool.name.clone(), device.name.clone());
                let of = taken.get(&id);
                let mut entry =
                    Entry { pool: self.pools.len(), slice: slice.clone(), index, is_taken: false, used: None };
                entry.is_taken = of.is_some_and(|of| of.is_whole || !entry.is_shared());
                entry.used = of.map(|of| of.amounts.clone());
                if of.is_some() {
                    for (counter, amount) in entry.consumes() {
                        if let Some(left) = pool.counters.get_mut(&counter) {
                            *left = left.sub(&amount);
                        }
                    }
                }
                self.devices.push(entry);
            }
        }
        self.pools.push(pool);
    }
}
