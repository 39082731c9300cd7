//! What the tasks of one pod share.

use super::kept::{Content, Kept};
use super::objects::PodObjects;
use super::record::Record;
use crate::context::Context;
use crate::env::resolv::Names;
use crate::storage::Storage;
use crate::volumes::{PodVolumes, ReadyVolumes};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One pod, as its tasks see it.
pub(crate) struct PodShared {
    pub(crate) cx: Arc<Context>,
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) names: Names,
    pub(crate) kept: Arc<Kept>,
    pub(crate) objects: Arc<PodObjects>,
    pub(crate) volumes: PodVolumes,
    pub(crate) storage: Storage,
    /// Cancelled when the pod is to end: what is being prepared for it is not needed any more.
    pub(crate) ending: CancellationToken,
    pod: watch::Receiver<Arc<Pod>>,
    ready_volumes: Mutex<ReadyVolumes>,
    record: watch::Sender<Arc<Record>>,
}

impl PodShared {
    pub(crate) fn new(
        cx: Arc<Context>,
        pod: watch::Receiver<Arc<Pod>>,
        names: Names,
        record: &Record,
        kept: Content,
    ) -> Arc<Self> {
        let now = pod.borrow().clone();
        let kept = Kept::new(&cx.config, now.metadata.uid.as_deref().unwrap_or_default(), kept);
        let objects = Arc::new(PodObjects::new(cx.clone(), &now, kept.clone()));
        Arc::new(Self {
            uid: now.metadata.uid.clone().unwrap_or_default(),
            namespace: now.metadata.namespace.clone().unwrap_or_default(),
            name: now.metadata.name.clone().unwrap_or_default(),
            names,
            volumes: PodVolumes::new(cx.clone(), pod.clone(), objects.clone(), kept.clone()),
            storage: Storage::default(),
            objects,
            kept,
            ending: CancellationToken::new(),
            cx,
            pod,
            ready_volumes: Mutex::default(),
            record: watch::Sender::new(Arc::new(record.clone())),
        })
    }

    /// The newest state of the object.
    pub(crate) fn pod(&self) -> Arc<Pod> {
        self.pod.borrow().clone()
    }

    /// The newest state of the worker's knowledge.
    pub(crate) fn record(&self) -> Arc<Record> {
        self.record.borrow().clone()
    }

    /// Follows the worker's knowledge.
    pub(crate) fn follow_record(&self) -> watch::Receiver<Arc<Record>> {
        self.record.subscribe()
    }

    pub(crate) fn publish(&self, record: &Record) {
        if **self.record.borrow() != *record {
            self.record.send_replace(Arc::new(record.clone()));
        }
    }

    pub(crate) fn ready_volumes(&self) -> ReadyVolumes {
        self.ready_volumes.lock().clone()
    }

    pub(crate) fn set_ready_volumes(&self, ready: ReadyVolumes) {
        *self.ready_volumes.lock() = ready;
    }

    pub(crate) fn uses_host_network(&self) -> bool {
        self.pod.borrow().spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
    }

    /// Addresses at which the pod is reached: the node's with the host's network.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        if self.uses_host_network() { self.cx.config.ips() } else { self.record.borrow().ips.clone() }
    }

    /// File of the pod's network namespace; `None` is the host's network.
    pub(crate) fn netns(&self) -> Option<PathBuf> {
        let own = || self.cx.network.pods().remove(&self.uid).map(|network| network.netns);
        if self.uses_host_network() { None } else { own() }
    }

    /// Directory of the pod's `/etc` files.
    pub(crate) fn etc_dir(&self) -> PathBuf {
        self.cx.config.pod_dir(&self.uid).join("etc")
    }

    /// Directory of the pod's logs.
    pub(crate) fn log_dir(&self) -> PathBuf {
        self.cx.config.pod_log_dir(&self.namespace, &self.name, &self.uid)
    }
}
