//! Room `network`: the links, addresses, packet filter rules and address leases of one node, by netlink only.
//!
//! Comes in: [`NodeConfig`], pods to attach, the desired [`ServiceTable`], [`PolicyChanges`]. Goes out: network namespaces with an address,
//! load balancing in the kernel, [`Error`]. Nobody else writes the links `edge0`, `edge-dns` and `veth*` made here, the
//! nftables tables `edge`, and the files under [`NodeConfig::run_dir`]; nothing else on the host is changed.
//!
//! Everything here is synchronous and takes from microseconds to a few milliseconds: from async code, call it through
//! `spawn_blocking`. Everything works on the network namespace of the calling thread, which is the host's.
//!
//! Pods have a `/32` address and reach everything, other pods of the node too, through the bridge's gateway address. So
//! every packet is routed, and neither the load balancing between pods of the same node nor any policy depends on bridge
//! netfilter being loaded.
//!
//! Where another table of the host drops forwarded packets (a `FORWARD` policy of `DROP`), no table of ours can overrule
//! it: a packet has to be accepted by every table. [`NodeNetwork::check_firewall`] finds that out.

mod backend;
mod cidr;
mod cni;
#[cfg(test)]
mod cni_tests;
mod conntrack;
mod error;
mod firewall;
#[cfg(test)]
mod firewall_tests;
mod ipam;
mod link;
mod monitor;
mod netlink;
mod nft;
mod node;
mod node_ip;
mod overlay;
#[cfg(test)]
mod peer_tests;
mod peers;
mod pod;
mod policy;
mod readiness;
mod route;
mod rules;
#[cfg(test)]
mod rules_tests;
mod service;
mod subnet;
mod sysctl;
mod teardown;
#[cfg(test)]
mod traffic_tests;
mod wireguard;

pub use backend::Backend;
pub use cidr::Cidr;
pub use cni::{CniError, CniPaths, CniWatch, PodIdentity};
pub use error::Error;
pub use firewall::{Blocker, FirewallChange, FirewallWatch};
pub use ipam::HostPort;
pub use monitor::Monitor;
pub use node::{BRIDGE, DNS_LINK, NodeConfig, NodeNetwork, PodNetwork};
pub use node_ip::node_addresses;
pub use overlay::{VNI, VXLAN_PORT};
pub use peers::{Peer, Reach, Reaches, Tunnel};
pub use policy::{Allow, Group, Isolation, Member, Peers, PolicyChanges, Ports};
pub use readiness::Readiness;
pub use service::{Endpoint, Family, Frontend, NoEndpoints, Protocol, Route, ServiceChanges, ServiceTable};
pub use teardown::tear_down;
pub use wireguard::{PublicKey, WIREGUARD_PORT};
