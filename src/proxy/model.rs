//! The compiled services, kept up to date one changed service at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use edge_client::{Change, Key, ResourceExt};
use edge_network::{Frontend, Route, ServiceTable};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::{Node, compile};

/// Label of an EndpointSlice with the name of its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Services with their slices, and what they compile to.
#[derive(Debug)]
pub struct Model {
    node: Node,
    services: HashMap<Key, Arc<Service>>,
    /// Slices by service and by their own name.
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    changed: BTreeSet<Key>,
    compiled: BTreeMap<Key, Vec<(Frontend, Route)>>,
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
            services: HashMap::new(),
            slices: HashMap::new(),
            changed: BTreeSet::new(),
            compiled: BTreeMap::new(),
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

    /// Compiles the services that have changed; tells whether the table is another one now.
    pub fn refresh(&mut self) -> bool {
        let mut differs = false;
        for key in std::mem::take(&mut self.changed) {
            let slices = self.slices.get(&key).into_iter().flat_map(BTreeMap::values).map(AsRef::as_ref);
            let routes = match self.services.get(&key) {
                Some(service) => compile(service, slices, &self.node),
                None => Vec::new(),
            };
            let before = if routes.is_empty() {
                self.compiled.remove(&key).unwrap_or_default()
            } else {
                self.compiled.insert(key, routes.clone()).unwrap_or_default()
            };
            differs |= before != routes;
        }
        differs
    }

    /// The table of all services. Of two services that claim the same frontend, the first one by name has it.
    pub fn table(&self) -> ServiceTable {
        let mut table = ServiceTable::new();
        for (frontend, route) in self.compiled.values().flatten() {
            table.entry(*frontend).or_insert_with(|| route.clone());
        }
        table
    }
}
