//! What decisions look up besides nodes and pods.

use crate::pod::Pending;
use crate::terms::{Labels, selector};
use edge_api::selector::LabelSelector;
use edge_client::{Informer, Informers};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use std::collections::HashSet;
use std::sync::Arc;

/// A budget as preemption looks at it.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    pub(crate) namespace: String,
    pub(crate) selector: LabelSelector,
    /// How many more pods may go.
    pub(crate) allowed: i32,
    /// Pods that go already, and are counted.
    pub(crate) disrupted: HashSet<String>,
}

/// What decisions look up besides nodes and pods.
pub(crate) trait World: Send + Sync {
    /// The labels of a namespace.
    fn namespace_labels(&self, name: &str) -> Labels;
    /// A claim.
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    /// A volume.
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    /// All volumes.
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    /// A class.
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    /// What the storage drivers of a node can do.
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>>;
    /// A claim to devices.
    fn resource_claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>>;
    /// All claims to devices.
    fn resource_claims(&self) -> Vec<Arc<ResourceClaim>>;
    /// A class of devices.
    fn device_class(&self, name: &str) -> Option<Arc<DeviceClass>>;
    /// All classes of devices.
    fn device_classes(&self) -> Vec<Arc<DeviceClass>>;
    /// All that drivers tell of devices.
    fn slices(&self) -> Vec<Arc<ResourceSlice>>;
    /// Which pods belong together with one, in the eyes of Services and of its owner; empty: nobody says so.
    fn kin(&self, pod: &Pending) -> Vec<LabelSelector>;
    /// The budgets.
    fn budgets(&self) -> Vec<Budget>;
}

/// What the API says.
pub(crate) struct Informed {
    pub(crate) namespaces: Arc<Informer<Namespace>>,
    pub(crate) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(crate) volumes: Arc<Informer<PersistentVolume>>,
    pub(crate) classes: Arc<Informer<StorageClass>>,
    pub(crate) csi_nodes: Arc<Informer<CSINode>>,
    pub(crate) resource_claims: Arc<Informer<ResourceClaim>>,
    pub(crate) device_classes: Arc<Informer<DeviceClass>>,
    pub(crate) slices: Arc<Informer<ResourceSlice>>,
    services: Arc<Informer<Service>>,
    replica_sets: Arc<Informer<ReplicaSet>>,
    stateful_sets: Arc<Informer<StatefulSet>>,
    replication_controllers: Arc<Informer<ReplicationController>>,
    budgets: Arc<Informer<PodDisruptionBudget>>,
}

impl Informed {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self {
            namespaces: informers.of(),
            claims: informers.of(),
            volumes: informers.of(),
            classes: informers.of(),
            csi_nodes: informers.of(),
            resource_claims: informers.of(),
            device_classes: informers.of(),
            slices: informers.of(),
            services: informers.of(),
            replica_sets: informers.of(),
            stateful_sets: informers.of(),
            replication_controllers: informers.of(),
            budgets: informers.of(),
        }
    }

    /// Waits until everything is known.
    pub(crate) async fn synced(&self) {
        self.namespaces.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.csi_nodes.synced().await;
        self.resource_claims.synced().await;
        self.device_classes.synced().await;
        self.slices.synced().await;
        self.services.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
        self.replication_controllers.synced().await;
        self.budgets.synced().await;
    }

    fn of_owner(&self, pod: &Pending) -> Option<LabelSelector> {
        let owners = pod.pod.metadata.owner_references.as_deref().unwrap_or_default();
        let owner = owners.iter().find(|o| o.controller == Some(true))?;
        let namespace = pod.namespace();
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.replica_sets.get(namespace, &owner.name)?;
                set.spec.as_ref().map(|s| selector(Some(&s.selector)))
            }
            "StatefulSet" => {
                let set = self.stateful_sets.get(namespace, &owner.name)?;
                set.spec.as_ref().map(|s| selector(Some(&s.selector)))
            }
            "ReplicationController" => {
                let controller = self.replication_controllers.get(namespace, &owner.name)?;
                controller.spec.as_ref().and_then(|s| s.selector.as_ref()).map(of_map)
            }
            _ => None,
        }
    }
}

fn of_map(labels: &Labels) -> LabelSelector {
    LabelSelector::from_map(labels.iter().map(|(k, v)| (k.as_str(), v.as_str())))
}

impl World for Informed {
    fn namespace_labels(&self, name: &str) -> Labels {
        self.namespaces.get("", name).and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
    }

    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(namespace, name)
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get("", name)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.list()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get("", name)
    }

    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        self.csi_nodes.get("", name)
    }

    fn resource_claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        self.resource_claims.get(namespace, name)
    }

    fn resource_claims(&self) -> Vec<Arc<ResourceClaim>> {
        self.resource_claims.list()
    }

    fn device_class(&self, name: &str) -> Option<Arc<DeviceClass>> {
        self.device_classes.get("", name)
    }

    fn device_classes(&self) -> Vec<Arc<DeviceClass>> {
        self.device_classes.list()
    }

    fn slices(&self) -> Vec<Arc<ResourceSlice>> {
        self.slices.list()
    }

    fn kin(&self, pod: &Pending) -> Vec<LabelSelector> {
        let selects = |service: &Arc<Service>| {
            let selected = service.spec.as_ref()?.selector.as_ref().filter(|s| !s.is_empty())?;
            // most select others: no selector is made of those
            selected.iter().all(|(k, v)| pod.labels().get(k) == Some(v)).then(|| of_map(selected))
        };
        let services = self.services.list_namespace(pod.namespace());
        services.iter().filter_map(selects).chain(self.of_owner(pod)).filter(|s| !s.is_everything()).collect()
    }

    fn budgets(&self) -> Vec<Budget> {
        let of = |b: &Arc<PodDisruptionBudget>| Budget {
            namespace: b.metadata.namespace.clone().unwrap_or_default(),
            selector: selector(b.spec.as_ref().and_then(|s| s.selector.as_ref())),
            allowed: b.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0),
            disrupted: b
                .status
                .as_ref()
                .and_then(|s| s.disrupted_pods.as_ref())
                .map(|d| d.keys().cloned().collect())
                .unwrap_or_default(),
        };
        self.budgets.list().iter().map(of).collect()
    }
}
