//! A node with the pods on it.

use crate::pod::{HostPort, PodInfo, clash};
use crate::requests::Amounts;
use edge_client::Key;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A node with the pods on it.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) name: Arc<str>,
    /// Nothing: only pods say that there is such a node.
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) allocatable: Amounts,
    pub(crate) allowed_pods: i64,
    pub(crate) requested: Amounts,
    /// CPU and memory as they count for spreading load.
    pub(crate) load: (i64, i64),
    pub(crate) pods: HashMap<Key, Arc<PodInfo>>,
    ports: Vec<HostPort>,
    /// Sizes by name.
    pub(crate) images: HashMap<String, i64>,
}

impl NodeState {
    pub(super) fn named(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    pub(crate) fn taints(&self) -> &[Taint] {
        let spec = self.node.as_ref().and_then(|n| n.spec.as_ref());
        spec.and_then(|s| s.taints.as_deref()).unwrap_or_default()
    }

    pub(crate) fn is_cordoned(&self) -> bool {
        self.node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.unschedulable) == Some(true)
    }

    /// Whether a host port that a pod wants is taken.
    pub(crate) fn is_taken(&self, wanted: &[HostPort]) -> bool {
        !wanted.is_empty() && self.ports.iter().any(|taken| wanted.iter().any(|w| clash(w, taken)))
    }

    pub(super) fn set(&mut self, node: &Arc<Node>) {
        let status = node.status.as_ref();
        let has = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        self.allocatable = has.map(Amounts::of_list).unwrap_or_default();
        self.allowed_pods = self.allocatable.get("pods");
        self.images = status
            .and_then(|s| s.images.as_ref())
            .into_iter()
            .flatten()
            .flat_map(|i| i.names.iter().flatten().map(|n| (normalized(n), i.size_bytes.unwrap_or(0))))
            .collect();
        self.node = Some(node.clone());
    }

    pub(super) fn put(&mut self, info: Arc<PodInfo>) {
        self.requested.add(&info.requests);
        self.load = (self.load.0 + info.load.0, self.load.1 + info.load.1);
        self.ports.extend_from_slice(&info.ports);
        self.pods.insert(info.key.clone(), info);
    }

    pub(super) fn take(&mut self, info: &PodInfo) {
        if self.pods.remove(&info.key).is_none() {
            return;
        }
        self.requested.subtract(&info.requests);
        self.load = (self.load.0 - info.load.0, self.load.1 - info.load.1);
        for port in &info.ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
    }
}

/// An image's name with the tag that it has when it has none.
pub(crate) fn normalized(name: &str) -> String {
    let (slash, colon) = (name.rfind('/'), name.rfind(':'));
    if colon.is_none() || colon < slash { format!("{name}:latest") } else { name.to_owned() }
}

/// Whether a change of a node can matter to a pod that waits.
pub(crate) fn scheduling_differs(old: &Node, new: &Node) -> bool {
    fn allocatable(node: &Node) -> Option<&BTreeMap<String, Quantity>> {
        node.status.as_ref()?.allocatable.as_ref()
    }
    fn spec(node: &Node) -> Option<(Option<bool>, Option<&[Taint]>)> {
        node.spec.as_ref().map(|s| (s.unschedulable, s.taints.as_deref()))
    }
    old.metadata.labels != new.metadata.labels || spec(old) != spec(new) || allocatable(old) != allocatable(new)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_node_that_only_tells_that_it_is_well_is_no_news() {
        let node = |labels: Value, spec: Value, cpu: &str, time: &str| -> Node {
            let status = json!({"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": time}]});
            serde_json::from_value(json!({"metadata": {"labels": labels}, "spec": spec, "status": status})).unwrap()
        };
        let old = node(json!({}), json!({}), "1", "2026-01-01T00:00:00Z");
        let new = |labels, spec, cpu| scheduling_differs(&old, &node(labels, spec, cpu, "2026-01-01T00:05:00Z"));
        assert!(!new(json!({}), json!({}), "1"));
        assert!(new(json!({"zone": "a"}), json!({}), "1"));
        assert!(new(json!({}), json!({"unschedulable": true}), "1"));
        assert!(new(json!({}), json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}), "1"));
        assert!(new(json!({}), json!({}), "2"));
    }
}
