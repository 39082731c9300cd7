//! The network of one node: its bridge, its pods' namespaces and addresses, its packet filter table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cni::{Cni, CniPaths, PodIdentity};
use crate::ipam::{HostPort, Lease, Leases, validate_uid};
use crate::netlink::Socket;
use crate::nft::Networks;
use crate::overlay::{self, VXLAN_LINK, VXLAN6_LINK};
use crate::peers::{self, Peer, Reaches, Tunnel, Wanted};
use crate::readiness::Announcer;
use crate::rules::Rules;
use crate::subnet::{self, Subnet};
use crate::teardown::tear_down;
use crate::wireguard::{self, Device};
use crate::{
    Backend, Blocker, Cidr, Endpoint, Error, Family, Frontend, PolicyChanges, Readiness, Route, ServiceChanges,
    ServiceTable, firewall, pod, sysctl,
};

/// The bridge all pods of the node hang on.
pub const BRIDGE: &str = "edge0";
/// The link that holds the address of the cluster's DNS. It is a bridge without ports: a kernel may lack dummy links, but
/// bridges are needed anyway.
pub const DNS_LINK: &str = "edge-dns";

/// Whether a link of that name is one that edge made for itself (not a pod's).
pub(crate) fn is_own_link(name: &str) -> bool {
    [BRIDGE, DNS_LINK, VXLAN_LINK, VXLAN6_LINK, wireguard::LINK].contains(&name)
}

/// What a node's network is made of. Lists hold one item of a family, the primary family first.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Directory for namespaces and leases, ours alone. Where it survives a reboot, the node knows its pod network again
    /// before it has reached the cluster.
    pub run_dir: PathBuf,
    /// The pods of all nodes, for instance 10.42.0.0/16.
    pub cluster_cidrs: Vec<Cidr>,
    /// The cluster IPs of services, for instance 10.43.0.0/16.
    pub service_cidrs: Vec<Cidr>,
    /// The addresses of the cluster's DNS, put on a link of this node so that a server can bind to them.
    pub dns_addresses: Vec<IpAddr>,
    /// Networks of the node's addresses that serve node ports; of a family without one, all addresses do.
    pub node_port_networks: Vec<Cidr>,
    /// The addresses other nodes reach this one by; empty where they are not known.
    pub node_addresses: Vec<IpAddr>,
    /// File of the node's WireGuard key, made when it is needed; it should survive a reboot.
    pub wireguard_key: PathBuf,
    /// How packets reach the pods of other nodes.
    pub backend: Backend,
    /// Where another network plugin is found, which connects the pods with [`Backend::None`].
    pub cni: CniPaths,
}

/// A pod's connection to the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// File of its network namespace.
    pub netns: PathBuf,
    /// Its addresses, the primary one first; never empty.
    pub addresses: Vec<IpAddr>,
}

/// The network of this node. All methods block; see the crate's documentation.
#[derive(Debug)]
pub struct NodeNetwork {
    config: NodeConfig,
    /// The node's own pod networks; `None` until the cluster has assigned them. Locked before `leases`.
    subnet: Mutex<Option<Arc<Subnet>>>,
    leases: Mutex<Leases>,
    rules: Mutex<Rules>,
    /// The node's WireGuard device, where it uses one.
    wireguard: Mutex<Option<Device>>,
    /// Another network plugin, where that connects the pods.
    cni: Option<Cni>,
    readiness: Announcer,
}

/// A panic elsewhere leaves the data as valid as an error does: every method writes the kernel's state before its own.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The networks of each family, as far as both pods and services have one.
fn networks(config: &NodeConfig) -> Vec<Networks> {
    let of = |family: Family| {
        let same = |cidr: &&Cidr| Family::of(cidr.base()) == family;
        Some(Networks {
            cluster: *config.cluster_cidrs.iter().find(same)?,
            services: *config.service_cidrs.iter().find(same)?,
            dns: config.dns_addresses.iter().find(|address| Family::of(**address) == family).copied(),
            node_ports: config.node_port_networks.iter().filter(same).copied().collect(),
        })
    };
    Family::ALL.into_iter().filter_map(of).collect()
}

impl NodeNetwork {
    /// Sets up the node, or adopts what an earlier process left: connections and pods are not disturbed. Pods can be
    /// attached once [`Self::assign`] has told the node's networks, which is remembered.
    ///
    /// # Errors
    /// [`Error::NetworkInUse`] before anything is changed; when the kernel refuses (root is needed) or a file cannot be written.
    pub fn set_up(config: NodeConfig) -> Result<Self, Error> {
        let netns_dir = config.run_dir.join("netns");
        edge_sys::fsutil::create_dir_all_mode(&netns_dir, 0o755).map_err(|source| Error::file(&netns_dir, source))?;
        let assigned = subnet::load(&config);
        match subnet::check_free(&mut Socket::route()?, &config) {
            Ok(()) => {}
            Err(error @ Error::NetworkInUse { .. }) if !assigned.is_empty() => {
                // the pods that run have their addresses already
                tracing::error!(%error, "addresses of pods or services are used twice");
            }
            Err(error) => return Err(error),
        }
        let recover = |uid: &str| pod::addresses_in(&netns_dir.join(uid));
        let leases = Leases::open(config.run_dir.join("leases"), &assigned, recover)?;

        let other_plugin = config.backend == Backend::None;
        let cni = other_plugin.then(|| Cni::open(&config.run_dir, config.cni.clone())).transpose()?;
        let attached = cni.as_ref().map_or_else(|| leases.all().clone(), Cni::leases).into_iter();
        let attached = attached.map(|(uid, lease)| (uid, lease.addresses.clone(), host_port_routes(&lease)));
        // The rules come first: no packet is forwarded before they are there.
        let rules = Rules::open(networks(&config), attached)?;
        subnet::ensure_dns_link(&mut Socket::route()?, &config.dns_addresses)?;
        if config.cluster_cidrs.iter().any(|network| network.base().is_ipv4()) {
            sysctl::set("ipv4/ip_forward", "1")?;
        }
        if config.cluster_cidrs.iter().any(|network| network.base().is_ipv6()) {
            sysctl::forward_ipv6()?;
        }
        let network = Self {
            config,
            cni,
            subnet: Mutex::new(None),
            leases: Mutex::new(leases),
            rules: Mutex::new(rules),
            wireguard: Mutex::new(None),
            readiness: Announcer::new(Error::NoPodNetwork.to_string()),
        };
        if network.cni.is_some() {
            network.reload_cni();
        } else if !assigned.is_empty() {
            match network.assign(&assigned, &network.config.node_addresses) {
                // it says why it is not ready, until the link is what it should be
                Err(error @ Error::MtuTooSmall { .. }) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "pods cannot be connected");
                }
                other => other?,
            }
        }
        Ok(network)
    }

    /// Tells which networks the pods of this node get their addresses from, one of a family, the primary one first: the
    /// node's `podCIDRs`. Their first addresses are the gateways. Pods that are connected keep what they have, but for the MTU
    /// of their links, which follows that of the link with the node's address (one of `node_addresses`): call it again
    /// when links have changed.
    ///
    /// # Errors
    /// [`Error::PodNetworkOutside`] and [`Error::MtuTooSmall`] before anything is changed, or the kernel's refusal.
    pub fn assign(&self, networks: &[Cidr], node_addresses: &[IpAddr]) -> Result<(), Error> {
        if self.cni.is_some() {
            return Ok(());
        }
        let result = self.try_assign(networks, node_addresses);
        self.readiness.set(match &result {
            Ok(()) => Readiness::Ready,
            Err(error) => Readiness::NotReady(error.to_string()),
        });
        result
    }

    fn try_assign(&self, networks: &[Cidr], node_addresses: &[IpAddr]) -> Result<(), Error> {
        let mut held = lock(&self.subnet);
        subnet::check(&self.config, networks)?;
        let mut socket = Socket::route()?;
        let before = held.as_ref().map(|subnet| subnet.mtu);
        let mtu = subnet::pod_mtu(&mut socket, self.config.backend, node_addresses, networks, before)?;
        if held.as_ref().is_some_and(|subnet| subnet.networks == networks && subnet.mtu == mtu) {
            return Ok(());
        }
        let subnet = Arc::new(Subnet::set_up(&mut socket, &self.config, networks, mtu)?);
        if self.config.backend == Backend::WireGuard {
            *lock(&self.wireguard) = Some(Device::set_up(&self.config.wireguard_key, &subnet)?);
        }
        subnet::save(&self.config, networks)?;
        let leases = {
            let mut leases = lock(&self.leases);
            leases.set_networks(networks);
            leases.all().clone()
        };
        let moved = held.replace(subnet.clone()).is_some_and(|before| before.networks != networks);
        drop(held);
        for (uid, lease) in leases {
            // after a move their gateway is another one
            if moved && let Err(error) = pod::connect(&self.netns_path(&uid), &uid, &lease, &subnet) {
                tracing::warn!(pod = uid, error = &error as &dyn std::error::Error, "pod not moved to the new gateway");
            }
            if let Err(error) = pod::set_mtu(&mut socket, &self.netns_path(&uid), &uid, mtu) {
                tracing::warn!(
                    pod = uid,
                    error = &error as &dyn std::error::Error,
                    "MTU of the pod's link not changed"
                );
            }
        }
        tracing::info!(networks = ?networks.iter().map(Cidr::to_string).collect::<Vec<_>>(), mtu, "pod network");
        Ok(())
    }

    /// The node's pod networks, as they were assigned.
    pub fn pod_networks(&self) -> Vec<Cidr> {
        lock(&self.subnet).as_ref().map(|subnet| subnet.networks.clone()).unwrap_or_default()
    }

    /// What the other nodes have to know to reach this one's pods by a tunnel; `None` before the node has a pod network, or
    /// when it uses no tunnel.
    pub fn tunnel(&self) -> Option<Tunnel> {
        let subnet = lock(&self.subnet).clone()?;
        match self.config.backend {
            Backend::Auto | Backend::Vxlan => Some(Tunnel::Vxlan(overlay::vtep(&subnet))),
            Backend::WireGuard => lock(&self.wireguard).as_ref().map(|device| Tunnel::WireGuard(device.public_key())),
            Backend::HostGw | Backend::None => None,
        }
    }

    /// How packets reach the pods of other nodes.
    pub fn backend(&self) -> Backend {
        self.config.backend
    }

    /// Makes the pods of these nodes reachable, and those of no others: links, routes, neighbour and forwarding entries.
    /// Only differences are written; call it again when something about the nodes or this node's links has changed
    /// ([`crate::Monitor`]). `node_addresses` are this node's own, one of a family. Tells how each node is reached.
    ///
    /// # Errors
    /// [`Error::NoPodNetwork`], or the first refusal of the kernel; everything else is done nevertheless.
    pub fn apply_peers(&self, node_addresses: &[IpAddr], peers: &[Peer]) -> Result<Reaches, Error> {
        if self.config.backend == Backend::None {
            return Ok(Reaches::new());
        }
        let subnet = lock(&self.subnet).clone().ok_or(Error::NoPodNetwork)?;
        let device = lock(&self.wireguard);
        peers::apply(&Wanted {
            backend: self.config.backend,
            cluster: &self.config.cluster_cidrs,
            node_addresses,
            subnet: &subnet,
            peers,
            wireguard: device.as_ref(),
        })
    }

    /// Whether pods can be connected.
    pub fn readiness(&self) -> Readiness {
        self.readiness.get()
    }

    /// Calls `listener` after every change of [`Self::readiness`], from whatever thread made it; it must not block.
    pub fn on_readiness(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.readiness.listen(listener);
    }

    /// Looks for the configuration of another network plugin again, after it has changed ([`crate::CniWatch`]); true when it
    /// is to be asked again in a while, because its plugins are not ready yet.
    pub fn reload_cni(&self) -> bool {
        let Some(cni) = &self.cni else { return false };
        let readiness = cni.reload();
        let again = readiness != Readiness::Ready && cni.is_configured();
        self.readiness.set(readiness);
        again
    }

    /// Where another network plugin is found, where that connects the pods.
    pub fn cni_paths(&self) -> Option<&CniPaths> {
        self.cni.as_ref().map(|_| &self.config.cni)
    }

    /// Whether the rules were in the kernel when this process began: an earlier one of the same boot has written them.
    pub fn has_adopted_rules(&self) -> bool {
        lock(&self.rules).adopted()
    }

    /// Connects a pod as [`Self::attach`] does, or by another network plugin, which is told who it is.
    ///
    /// # Errors
    /// As [`Self::attach`]; [`Error::Cni`].
    pub fn attach_pod(&self, pod: &PodIdentity, host_ports: &[HostPort]) -> Result<PodNetwork, Error> {
        let Some(cni) = &self.cni else { return self.attach(&pod.uid, host_ports) };
        let netns = self.netns_path(&pod.uid);
        let addresses = cni.attach(pod, host_ports, &netns)?;
        let lease = cni.leases().remove(&pod.uid).unwrap_or_default();
        // its addresses are not known before
        lock(&self.rules).attach(&pod.uid, addresses.clone(), host_port_routes(&lease))?;
        Ok(PodNetwork { netns, addresses })
    }

    /// Connects a pod: namespace, addresses, routes, host ports. For a pod that is connected this repairs what is missing
    /// and gives what it has.
    ///
    /// # Errors
    /// [`Error::NoPodNetwork`], [`Error::AddressesExhausted`], [`Error::HostPortInUse`], or the kernel's refusal. After an
    /// error, call it again or call [`Self::detach`].
    pub fn attach(&self, uid: &str, host_ports: &[HostPort]) -> Result<PodNetwork, Error> {
        let subnet = lock(&self.subnet).clone().ok_or(Error::NoPodNetwork)?;
        let lease = lock(&self.leases).acquire(uid, host_ports)?;
        // The rules come first: what a pod may not do, it may not do from its first packet on.
        lock(&self.rules).attach(uid, lease.addresses.clone(), host_port_routes(&lease))?;
        let netns = self.netns_path(uid);
        pod::connect(&netns, uid, &lease, &subnet)?;
        // the uplink may have changed since
        let mtu = lock(&self.subnet).as_ref().map(|now| now.mtu);
        if let Some(mtu) = mtu.filter(|mtu| *mtu != subnet.mtu) {
            pod::set_mtu(&mut Socket::route()?, &netns, uid, mtu)?;
        }
        Ok(self.pod_network(uid, &lease))
    }

    fn pod_network(&self, uid: &str, lease: &Lease) -> PodNetwork {
        PodNetwork { netns: self.netns_path(uid), addresses: lease.addresses.clone() }
    }

    fn netns_path(&self, uid: &str) -> PathBuf {
        self.config.run_dir.join("netns").join(uid)
    }

    /// Disconnects a pod and gives its addresses and host ports back. A pod that is not connected is fine.
    ///
    /// # Errors
    /// The kernel's refusal; call it again.
    pub fn detach(&self, uid: &str) -> Result<(), Error> {
        validate_uid(uid)?;
        if let Some(cni) = &self.cni {
            cni.detach(uid, &self.netns_path(uid))?;
            return lock(&self.rules).detach(uid);
        }
        let subnet = lock(&self.subnet).clone();
        let lease = lock(&self.leases).all().get(uid).cloned();
        pod::disconnect(&self.netns_path(uid), uid, lease.as_ref(), subnet.as_deref())?;
        // As long as the rules know the address, nobody else may have it.
        lock(&self.rules).detach(uid)?;
        lock(&self.leases).release(uid)
    }

    /// The connected pods by UID, those of an earlier process included.
    pub fn pods(&self) -> BTreeMap<String, PodNetwork> {
        if let Some(cni) = &self.cni {
            let network = |uid: &str, addresses| PodNetwork { netns: self.netns_path(uid), addresses };
            return cni.pods().into_iter().map(|(uid, addresses)| (uid.clone(), network(&uid, addresses))).collect();
        }
        let leases = lock(&self.leases);
        leases.all().iter().map(|(uid, lease)| (uid.clone(), self.pod_network(uid, lease))).collect()
    }

    /// Disconnects every pod whose UID is not in `known`, and removes what a crash left half made.
    ///
    /// # Errors
    /// The first error; the other pods are cleaned up nevertheless.
    pub fn cleanup_stale(&self, known: &BTreeSet<String>) -> Result<(), Error> {
        let mut stale: BTreeSet<String> = self.pods().into_keys().collect();
        let dir = self.config.run_dir.join("netns");
        let entries = match fs::read_dir(&dir) {
            // After a teardown.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(|source| Error::file(&dir, source))?),
        };
        for entry in entries.into_iter().flatten() {
            let name = entry.map_err(|source| Error::file(&dir, source))?.file_name();
            stale.extend(name.to_str().filter(|name| validate_uid(name).is_ok()).map(str::to_owned));
        }
        let mut result = Ok(());
        for uid in stale.difference(known) {
            result = result.and(self.detach(uid));
        }
        if let Some(cni) = &self.cni {
            return result.and(cni.collect_garbage());
        }
        result.and(pod::delete_links_but(&mut Socket::route()?, known))
    }

    /// Makes the kernel balance load as `services` says, and for nothing else. Only differences are written, in one atomic
    /// step; established connections go on.
    ///
    /// # Errors
    /// The kernel's refusal; the rules before are still in force, and the next change tries this one again.
    pub fn apply_services(&self, services: ServiceTable) -> Result<(), Error> {
        lock(&self.rules).set_services(services)
    }

    /// Changes the routes of some frontends, in one atomic step whose cost depends on these alone.
    ///
    /// # Errors
    /// As [`Self::apply_services`].
    pub fn change_services(&self, changes: ServiceChanges) -> Result<(), Error> {
        lock(&self.rules).change_services(changes)
    }

    /// What the kernel's tables hold now, in words: elements, endpoints and chains. Equal for tables that mean the same, so
    /// that two of them can be compared.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn rules_in_kernel(&self) -> Result<BTreeSet<String>, Error> {
        lock(&self.rules).in_kernel()
    }

    /// From now on a pod may exchange nothing from when it is attached until [`Self::change_policies`] has told what it may
    /// (pods that are attached already stay as they are). `attached` is told the UID and the addresses of every pod that is
    /// or becomes attached; it must not call back.
    pub fn enforce_policies(&self, attached: impl Fn(&str, &[IpAddr]) + Send + 'static) {
        lock(&self.rules).enforce_policies(Box::new(attached));
    }

    /// Puts policies in force, in one atomic step. Established connections go on.
    ///
    /// # Errors
    /// As [`Self::apply_services`].
    pub fn change_policies(&self, changes: &PolicyChanges) -> Result<(), Error> {
        lock(&self.rules).change_policies(changes)
    }

    /// Looks what others have done to the packet filter ([`FirewallWatch`](crate::FirewallWatch) tells when): writes this
    /// room's tables anew if they are gone, and gives the chains of others that drop the packets of pods.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn check_firewall(&self) -> Result<Vec<Blocker>, Error> {
        if lock(&self.rules).restore()? {
            tracing::warn!("another program had removed edge's packet filter rules; they are back");
        }
        firewall::blockers(&self.config.cluster_cidrs)
    }

    /// Removes everything this room made: pods' namespaces, links, the packet filter table, files. Forwarding stays on, as
    /// others on the host may have come to depend on it.
    ///
    /// # Errors
    /// The first error; the rest is removed nevertheless.
    pub fn teardown(&self) -> Result<(), Error> {
        let mut result = self.cleanup_stale(&BTreeSet::new());
        *lock(&self.subnet) = None;
        result = result.and(lock(&self.rules).delete());
        let removed = lock(&self.leases).remove_all();
        result = result.and(removed.map_err(|source| Error::file(&self.config.run_dir, source)));
        result = result.and(tear_down(&self.config.run_dir));
        result = result.and(subnet::forget(&self.config));
        let netns = self.config.run_dir.join("netns");
        let removed = edge_sys::fsutil::remove_dir_all_if_exists(&netns);
        result.and(removed.map_err(|source| Error::file(netns, source)))
    }
}

/// The host ports of a pod as frontends.
fn host_port_routes(lease: &Lease) -> Vec<(Frontend, Route)> {
    let mut routes = Vec::new();
    for port in &lease.host_ports {
        for address in &lease.addresses {
            let family = Family::of(*address);
            let frontend = match port.host_ip.map(IpAddr::V4) {
                Some(host_ip) if Family::of(host_ip) != family => continue,
                Some(host_ip) => Frontend { address: host_ip, protocol: port.protocol, port: port.host_port },
                None => Frontend::node(family, port.protocol, port.host_port),
            };
            routes.push((frontend, Route::to(vec![Endpoint { address: *address, port: port.container_port }])));
        }
    }
    routes
}
