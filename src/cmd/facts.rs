//! What every node of a cluster has to know of it: given by the server to whoever joins, and kept by agents on disk.

use crate::config::Part;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The cluster as its nodes see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterFacts {
    /// Networks of pods, one of a family, the primary one first.
    pub(crate) cluster_cidrs: Vec<String>,
    /// Networks of services, likewise.
    pub(crate) service_cidrs: Vec<String>,
    /// Addresses of the cluster's DNS, likewise.
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
    /// How packets reach the pods of other nodes, as `--network` names it.
    pub(crate) network: String,
    /// The authority of the cluster's clients, PEM: whom kubelets let in by certificate.
    pub(crate) client_ca: String,
    /// Names of the parts that are left out.
    #[serde(default)]
    pub(crate) disabled: Vec<String>,
}

impl ClusterFacts {
    /// Whether the cluster has a part.
    pub(crate) fn has(&self, part: Part) -> bool {
        self.disabled.iter().all(|name| name != part.name())
    }

    /// The addresses at which every node answers the cluster's DNS itself.
    pub(crate) fn own_dns(&self) -> Vec<IpAddr> {
        if self.has(Part::Dns) { self.cluster_dns.clone() } else { Vec::new() }
    }

    /// The families of the cluster's networks, in order; true is IPv4.
    pub(crate) fn families(&self) -> Vec<bool> {
        self.cluster_cidrs.iter().map(|c| !c.contains(':')).collect()
    }
}
