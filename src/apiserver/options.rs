//! What a server must be told.

use bytes::Bytes;
use std::net::IpAddr;
use std::sync::Arc;

/// The facts and limits of one server. All of them are settled before it starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// `gitVersion` of `/version`, for instance `v1.36.0+edge1`.
    pub git_version: String,
    /// Commit the program was built from; may be empty.
    pub git_commit: String,
    /// When the program was built, RFC 3339.
    pub build_date: String,
    /// Where clients reach this server from outside: the endpoint of the Service `kubernetes`.
    pub advertise_address: IpAddr,
    /// The port that goes with it, usually 6443.
    pub advertise_port: u16,
    /// The cluster address of the Service `kubernetes`: the first of the service CIDR.
    pub service_ip: IpAddr,
    /// The networks of the services' addresses in CIDR notation, one of a family, the primary one first.
    pub service_cidrs: Vec<String>,
    /// The cluster addresses of the Service `kube-dns`, one of a family, the primary one first; empty where
    /// the cluster has no DNS of edge.
    pub dns_ips: Vec<IpAddr>,
    /// Whether `metrics.k8s.io` is served.
    pub metrics_api: bool,
    /// Whether claims can have directories of nodes as volumes, by the class `local-path`.
    pub local_storage: bool,
    /// The CA certificates that clients should trust, PEM: what `/cacerts` answers.
    pub cluster_ca_pem: Bytes,
    /// Most connections open at once; beyond, the one that has been idle for longest is closed.
    pub max_connections: usize,
    /// What a node that joins is told about the cluster, JSON; the server itself does not look at it.
    pub cluster_facts: Arc<serde_json::Value>,
    /// Most requests answered at once that change nothing; more get a 429. Kubernetes' default is 400.
    pub max_read_only_in_flight: usize,
    /// Most requests answered at once that change something; more get a 429. Kubernetes' default is 200.
    pub max_mutating_in_flight: usize,
}
