//! Which nodes are together in the sense of a topology key.

use super::Cluster;
use edge_client::ResourceExt;
use std::collections::HashMap;
use std::sync::Arc;

/// The domain of nodes that do not have the label.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// The nodes of a cluster by the value that they have for one label.
pub(crate) struct Domains {
    /// The domain of each node, by number; [`NOWHERE`]: it has none.
    pub(crate) of: Vec<u32>,
    /// How many domains there are; they are numbered from 0.
    pub(crate) count: usize,
}

/// Domains that have been asked for, until a label of a node changes.
#[derive(Default)]
pub(super) struct DomainCache(parking_lot::Mutex<HashMap<String, Arc<Domains>>>);

impl DomainCache {
    pub(super) fn of(&self, key: &str, cluster: &Cluster) -> Arc<Domains> {
        if let Some(known) = self.0.lock().get(key) {
            return known.clone();
        }
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut of = vec![NOWHERE; cluster.numbers()];
        for (id, _, node) in cluster.nodes() {
            if let Some(value) = node.labels().get(key) {
                let next = numbers.len() as u32;
                of[id] = *numbers.entry(value).or_insert(next);
            }
        }
        let domains = Arc::new(Domains { of, count: numbers.len() });
        self.0.lock().insert(key.to_owned(), domains.clone());
        domains
    }

    pub(super) fn forget(&mut self) {
        self.0.get_mut().clear();
    }
}
