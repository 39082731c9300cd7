//! What the node agent is told at its start.

use crate::eviction::Thresholds;
use k8s_openapi::api::core::v1::Taint;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// The version of Kubernetes whose kubelet this one behaves as.
pub const KUBELET_VERSION: &str = "v1.36.0";

/// Configuration of the node agent, checked by the caller.
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    /// Name of the node; a DNS subdomain.
    pub node_name: String,
    /// Version of edge, as reported in `containerRuntimeVersion` (`edge://<version>`).
    pub edge_version: String,
    /// Directory of the agent's state (`<data-dir>/agent`): `pods/<uid>/` is below it.
    pub agent_dir: PathBuf,
    /// Where the logs of containers are written, usually `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    /// Where links to the logs are made under the names log collectors expect, usually `/var/log/containers`;
    /// `None` makes none.
    pub container_logs_dir: Option<PathBuf>,
    /// What plugins know as the kubelet's directory, usually `/var/lib/kubelet`: they register in `plugins_registry`, the volumes of drivers are
    /// below `plugins` and `pods`, and the kubelet has sockets for device plugins (`device-plugins`) and for those who ask for pods' resources
    /// (`pod-resources`).
    pub kubelet_dir: PathBuf,
    /// Folders in which drivers describe devices for the Container Device Interface; what a later one says wins.
    pub cdi_dirs: Vec<PathBuf>,
    /// Addresses of the node, the main one first; never empty. They may change while the agent runs.
    pub node_ips: watch::Receiver<Vec<IpAddr>>,
    /// Labels given to the node when it first registers.
    pub node_labels: BTreeMap<String, String>,
    /// Taints given to the node when it first registers.
    pub node_taints: Vec<Taint>,
    /// Addresses of the cluster's DNS; empty when there is none.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster, such as `cluster.local`.
    pub cluster_domain: String,
    /// The host's resolver configuration, for pods with `dnsPolicy: Default`.
    pub resolv_conf: PathBuf,
    /// Port on which the kubelet's API is served, as reported in the node's `daemonEndpoints`.
    pub kubelet_port: u16,
    /// Whether secrets and service-account tokens of this node's pods are kept on disk (0600), so that the pods start
    /// while no server can be reached.
    pub offline_secrets: bool,
    /// How many pods may run here.
    pub max_pods: u32,
    /// How many processes and threads a pod may have; `None` is no limit.
    pub pod_max_pids: Option<u32>,
    /// Below what pods have to go.
    pub eviction_hard: Thresholds,
    /// For how long the node is said to be short of something after it was.
    pub pressure_transition: Duration,
}

impl KubeletConfig {
    /// The node's addresses at this moment.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        self.node_ips.borrow().clone()
    }

    /// Directory of a pod's state.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.agent_dir.join("pods").join(uid)
    }

    /// Folder in which plugins register by a socket.
    pub(crate) fn plugins_dir(&self) -> PathBuf {
        self.kubelet_dir.join("plugins_registry")
    }

    /// Directory that holds the logs of one pod.
    pub(crate) fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_logs_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}
