//! Nodes and pods for the tests of this crate.
#![expect(clippy::unwrap_used, reason = "tests")]

use crate::cluster::Cluster;
use crate::pod::Pending;
use crate::terms::Labels;
use crate::world::{Budget, World};
use edge_api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;

/// A node that has something to give.
pub(crate) fn node(name: &str, allocatable: Value) -> Arc<Node> {
    let node = json!({"metadata": {"name": name}, "status": {"allocatable": allocatable}});
    Arc::new(serde_json::from_value(node).unwrap())
}

/// A pod in the namespace `ns`, asking for something.
pub(crate) fn pod(name: &str, requests: Value) -> Arc<Pod> {
    pending_pod(name, json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})).pod
}

/// A pod in the namespace `ns` that waits.
pub(crate) fn pending_pod(name: &str, mut spec: Value) -> Pending {
    if spec["containers"].is_null() {
        spec["containers"] = json!([]);
    }
    let pod = json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": spec});
    Pending::new(Arc::new(serde_json::from_value(pod).unwrap()))
}

/// A pod that waits.
pub(crate) fn pending(spec: Value) -> Pending {
    pending_pod("p", spec)
}

/// A cluster of nodes.
pub(crate) fn cluster(nodes: &[Value]) -> Cluster {
    let mut out = Cluster::default();
    for node in nodes {
        out.set_node(&Arc::new(serde_json::from_value(node.clone()).unwrap()));
    }
    out
}

/// A world with nothing in it but a budget that lets no pod with the label `app=guarded` go.
pub(crate) struct Nothing;

impl World for Nothing {
    fn namespace_labels(&self, _: &str) -> Labels {
        Labels::new()
    }

    fn claim(&self, _: &str, _: &str) -> Option<Arc<PersistentVolumeClaim>> {
        None
    }

    fn volume(&self, _: &str) -> Option<Arc<PersistentVolume>> {
        None
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        Vec::new()
    }

    fn class(&self, _: &str) -> Option<Arc<StorageClass>> {
        None
    }

    fn csi_node(&self, _: &str) -> Option<Arc<CSINode>> {
        None
    }

    fn resource_claim(&self, _: &str, _: &str) -> Option<Arc<ResourceClaim>> {
        None
    }

    fn resource_claims(&self) -> Vec<Arc<ResourceClaim>> {
        Vec::new()
    }

    fn device_class(&self, _: &str) -> Option<Arc<DeviceClass>> {
        None
    }

    fn device_classes(&self) -> Vec<Arc<DeviceClass>> {
        Vec::new()
    }

    fn slices(&self) -> Vec<Arc<ResourceSlice>> {
        Vec::new()
    }

    fn kin(&self, _: &Pending) -> Vec<LabelSelector> {
        Vec::new()
    }

    fn budgets(&self) -> Vec<Budget> {
        let selector = LabelSelector::from_map([("app", "guarded")]);
        vec![Budget { namespace: "ns".into(), selector, allowed: 0, disrupted: HashSet::new() }]
    }
}
