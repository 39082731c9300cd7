//! The compiled services, kept up to date one changed service at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use edge_client::{Change, Key, ResourceExt};
use edge_network::{Frontend, Route, ServiceChanges, ServiceTable};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::compile::{Compiled, HealthCheck, load_balancer_addresses};
use crate::{Node, compile};

/// Label of an EndpointSlice with the name of its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Services with their slices, and what they compile to.
#[derive(Debug)]
pub struct Model {
    node: Node,
    zone: Option<String>,
    services: HashMap<Key, Arc<Service>>,
    /// Slices by service and by their own name.
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    changed: BTreeSet<Key>,
    compiled: HashMap<Key, Compiled>,
    /// The services that want a frontend, in order of their names: the first one has it.
    claims: HashMap<Frontend, Vec<Key>>,
}

/// The service a slice belongs to; `None` for a slice of nobody.
fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.labels().get(SERVICE_NAME).filter(|name| !name.is_empty())?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name.clone()))
}

impl Model {
    /// A cluster without services.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            zone: None,
            services: HashMap::new(),
            slices: HashMap::new(),
            changed: BTreeSet::new(),
            compiled: HashMap::new(),
            claims: HashMap::new(),
        }
    }

    /// Notes the zone the node is in.
    pub fn set_zone(&mut self, zone: Option<String>) {
        if self.zone != zone {
            self.zone = zone;
            self.changed.extend(self.services.keys().cloned());
        }
    }

    /// Notes a change of a service.
    pub fn service_changed(&mut self, change: &Change<Service>) {
        let key = Key::of(change.object().as_ref());
        match change {
            Change::Applied { new, .. } => self.services.insert(key.clone(), new.clone()),
            Change::Deleted(_) => self.services.remove(&key),
        };
        self.changed.insert(key);
    }

    /// Notes a change of a slice.
    pub fn slice_changed(&mut self, change: &Change<EndpointSlice>) {
        match change {
            Change::Applied { old, new } => {
                // The label may have changed, and the slice with it its service.
                if let Some(old) = old {
                    self.forget_slice(old);
                }
                if let Some(service) = service_of(new) {
                    self.slices.entry(service.clone()).or_default().insert(new.name_any(), new.clone());
                    self.changed.insert(service);
                }
            }
            Change::Deleted(old) => self.forget_slice(old),
        }
    }

    fn forget_slice(&mut self, slice: &EndpointSlice) {
        let Some(service) = service_of(slice) else { return };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&slice.name_any());
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.changed.insert(service);
    }

    /// Compiles the services that have changed; gives the frontends whose route may be another one now.
    pub fn refresh(&mut self) -> ServiceChanges {
        let mut touched = BTreeSet::new();
        for key in std::mem::take(&mut self.changed) {
            let slices = self.slices.get(&key).into_iter().flat_map(BTreeMap::values).map(AsRef::as_ref);
            let now = match self.services.get(&key) {
                Some(service) => compile(service, slices, &self.node, self.zone.as_deref()),
                None => Compiled::default(),
            };
            let before = self.compiled.remove(&key).unwrap_or_default();
            for frontend in before.routes.keys().chain(now.routes.keys()) {
                if before.routes.get(frontend) != now.routes.get(frontend) {
                    touched.insert(*frontend);
                    self.claim(frontend, &key, now.routes.contains_key(frontend));
                }
            }
            if now != Compiled::default() {
                self.compiled.insert(key, now);
            }
        }
        touched.into_iter().map(|frontend| (frontend, self.route(&frontend))).collect()
    }

    /// Of two services that claim the same frontend, the first one by name has it.
    fn route(&self, frontend: &Frontend) -> Option<Route> {
        let owner = self.claims.get(frontend)?.first()?;
        self.compiled.get(owner)?.routes.get(frontend).cloned()
    }

    fn claim(&mut self, frontend: &Frontend, key: &Key, wanted: bool) {
        let keys = self.claims.entry(*frontend).or_default();
        match (keys.binary_search(key), wanted) {
            (Err(place), true) => keys.insert(place, key.clone()),
            (Ok(place), false) => drop(keys.remove(place)),
            _ => {}
        }
        if keys.is_empty() {
            self.claims.remove(frontend);
        }
    }

    /// The table of all services.
    pub fn table(&self) -> ServiceTable {
        self.claims.keys().filter_map(|frontend| Some((*frontend, self.route(frontend)?))).collect()
    }

    /// Those of some frontends that may be on addresses of the node (node ports and load balancers), with the services that
    /// have them; `None` for those that nobody has any more.
    pub(crate) fn on_the_node<'a>(
        &self,
        frontends: impl Iterator<Item = &'a Frontend>,
    ) -> Vec<(Frontend, Option<Key>)> {
        let balances = |frontend: &Frontend, key: &Key| {
            let service = self.services.get(key);
            let addresses = service.and_then(|s| Some(load_balancer_addresses(s, s.spec.as_ref()?)));
            addresses.is_some_and(|addresses| addresses.contains(&frontend.address))
        };
        let owned =
            frontends.map(|frontend| (*frontend, self.claims.get(frontend).and_then(|keys| keys.first().cloned())));
        owned
            .filter(|(frontend, owner)| frontend.is_node() || owner.as_ref().is_none_or(|key| balances(frontend, key)))
            .collect()
    }

    /// The health checks that the node answers, with their services.
    pub fn health_checks(&self) -> Vec<(Key, HealthCheck)> {
        let checks = self.compiled.iter().filter_map(|(key, compiled)| compiled.health.map(|health| (key, health)));
        checks.map(|(key, health)| (key.clone(), health)).collect()
    }
}
