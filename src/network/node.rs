//! The network of one node: its bridge, its pods' namespaces and addresses, its packet filter table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use edge_sys::netns;
use nix::errno::Errno;

use crate::ipam::{HostPort, Lease, Leases, validate_uid};
use crate::link::{self, VethPair};
use crate::netlink::Socket;
use crate::nft::Table;
use crate::{Cidr, Endpoint, Error, Frontend, Route, ServiceTable, conntrack, sysctl};

/// The bridge all pods of the node hang on.
pub const BRIDGE: &str = "edge0";
/// The link that holds the address of the cluster's DNS. It is a bridge without ports: a kernel may lack dummy links, but
/// bridges are needed anyway.
pub const DNS_LINK: &str = "edge-dns";
/// Name of the interface inside of pods.
const POD_INTERFACE: &str = "eth0";
const VETH_PREFIX: &str = "veth";
const DEFAULT_MTU: u32 = 1500;
const LOOPBACK_INDEX: u32 = 1;

/// What a node's network is made of.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Directory for namespaces and leases, ours alone. Its content need not survive a reboot.
    pub run_dir: PathBuf,
    /// The pods of this node, for instance 10.42.0.0/24. Its first address is the gateway.
    pub pod_cidr: Cidr,
    /// The pods of all nodes, for instance 10.42.0.0/16.
    pub cluster_cidr: Cidr,
    /// The cluster IPs of services, for instance 10.43.0.0/16.
    pub service_cidr: Cidr,
    /// The address of the cluster's DNS, put on a link of this node so that a server can bind to it.
    pub dns_address: Ipv4Addr,
}

/// A pod's connection to the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// File of its network namespace.
    pub netns: PathBuf,
    /// Its addresses, the primary one first; never empty.
    pub addresses: Vec<IpAddr>,
}

/// What is in the packet filter and what should be.
#[derive(Debug)]
struct Rules {
    table: Table,
    /// What the room `proxy` wants; until it has said so, what an earlier process left in the table.
    services: ServiceTable,
    /// Services and host ports as they were written last.
    effective: ServiceTable,
}

/// The network of this node. All methods block; see the crate's documentation.
#[derive(Debug)]
pub struct NodeNetwork {
    config: NodeConfig,
    gateway: Ipv4Addr,
    bridge: u32,
    mtu: u32,
    leases: Mutex<Leases>,
    rules: Mutex<Rules>,
}

/// A panic elsewhere leaves the data as valid as an error does: every method writes the kernel's state before its own.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn v4(address: IpAddr) -> Result<Ipv4Addr, Error> {
    match address {
        IpAddr::V4(v4) => Ok(v4),
        IpAddr::V6(_) => Err(Error::NotIpv4(address)),
    }
}

/// A hardware address that belongs to the IP address, so that neighbours' entries stay right when an address changes hands.
fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Name of the node's end of a pod's link: 15 characters at most, the same after every restart.
fn veth_name(uid: &str) -> String {
    // FNV-1a
    let hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{VETH_PREFIX}{:011x}", hash & 0xfff_ffff_ffff)
}

/// The first IPv4 address of the pod's interface, asked in its namespace.
fn address_in(netns_file: &Path) -> Option<Ipv4Addr> {
    let mut socket = netns::run_in(netns_file, Socket::route).ok()?.ok()?;
    let link = link::find(&mut socket, POD_INTERFACE).ok()??;
    let all = link::addresses(&mut socket).ok()?;
    all.into_iter().filter(|a| a.index == link.index).find_map(|a| v4(a.address).ok())
}

impl NodeNetwork {
    /// Sets up the node, or adopts what an earlier process left: connections and pods are not disturbed.
    ///
    /// # Errors
    /// When the kernel refuses (root is needed) or a file cannot be written.
    pub fn set_up(config: NodeConfig) -> Result<Self, Error> {
        let gateway = v4(config.pod_cidr.nth(1))?;
        let netns_dir = config.run_dir.join("netns");
        edge_sys::fsutil::create_dir_all_mode(&netns_dir, 0o755).map_err(|source| Error::file(&netns_dir, source))?;
        let leases =
            Leases::open(config.run_dir.join("leases"), config.pod_cidr, |uid| address_in(&netns_dir.join(uid)))?;

        let mut socket = Socket::route()?;
        let mtu = uplink_mtu(&mut socket)?;
        // The rules come first: no packet is forwarded before they are there.
        let (table, effective) = Table::open(config.cluster_cidr, config.service_cidr)?;
        let mut services = effective.clone();
        for (frontend, route) in leases.all().values().flat_map(host_port_routes) {
            if services.get(&frontend) == Some(&route) {
                services.remove(&frontend);
            }
        }
        let bridge = link::ensure_bridge(&mut socket, BRIDGE, hardware_address(gateway), mtu)?;
        only_address(&mut socket, bridge, gateway, config.pod_cidr.prefix())?;
        sysctl::set(&format!("ipv4/conf/{BRIDGE}/route_localnet"), "1")?;
        sysctl::set_if_possible(&format!("ipv4/conf/{BRIDGE}/send_redirects"), "0");
        let dns = link::ensure_bridge(&mut socket, DNS_LINK, hardware_address(config.dns_address), mtu)?;
        only_address(&mut socket, dns, config.dns_address, 32)?;
        // So that this node's own processes reach services without any other network, with an address pods can answer.
        link::ensure_link_route(&mut socket, config.service_cidr, bridge, Some(gateway))?;
        sysctl::set("ipv4/ip_forward", "1")?;

        let rules = Mutex::new(Rules { table, services, effective });
        Ok(Self { config, gateway, bridge, mtu, leases: Mutex::new(leases), rules })
    }

    /// The gateway of the pods: this node's address on the bridge.
    pub fn gateway(&self) -> IpAddr {
        IpAddr::V4(self.gateway)
    }

    /// Connects a pod: namespace, address, routes, host ports. For a pod that is connected this repairs what is missing and
    /// gives what it has.
    ///
    /// # Errors
    /// [`Error::AddressesExhausted`], [`Error::HostPortInUse`], or the kernel's refusal. After an error, call it again or
    /// call [`Self::detach`].
    pub fn attach(&self, uid: &str, host_ports: &[HostPort]) -> Result<PodNetwork, Error> {
        let (lease, had_ports) = {
            let mut leases = lock(&self.leases);
            let had_ports = leases.all().get(uid).is_some_and(|lease| !lease.host_ports.is_empty());
            (leases.acquire(uid, host_ports)?, had_ports)
        };
        self.connect(uid, &lease)?;
        if had_ports || !host_ports.is_empty() {
            self.write_rules()?;
        }
        Ok(self.pod_network(uid, &lease))
    }

    fn pod_network(&self, uid: &str, lease: &Lease) -> PodNetwork {
        PodNetwork { netns: self.netns_path(uid), addresses: vec![IpAddr::V4(lease.address)] }
    }

    fn netns_path(&self, uid: &str) -> PathBuf {
        self.config.run_dir.join("netns").join(uid)
    }

    fn connect(&self, uid: &str, lease: &Lease) -> Result<(), Error> {
        let path = self.netns_path(uid);
        let mut inside = enter_or_create(&path)?;
        let mut socket = Socket::route()?;
        let host = veth_name(uid);
        if link::find(&mut inside, POD_INTERFACE)?.is_none() {
            // A link of this name whose other end is elsewhere is a leftover.
            link::delete(&mut socket, &host)?;
            let namespace = fs::File::open(&path).map_err(|source| Error::file(&path, source))?;
            let pair = VethPair {
                host: &host,
                bridge: self.bridge,
                mtu: self.mtu,
                peer: POD_INTERFACE,
                peer_hardware: hardware_address(lease.address),
                peer_netns: namespace.as_fd(),
            };
            link::create_veth(&mut socket, &pair)?;
        }
        let missing = || Error::kernel(format!("find link {host}"), Errno::ENODEV);
        let port = link::find(&mut socket, &host)?.ok_or_else(missing)?;
        if port.master != Some(self.bridge) {
            link::set_master(&mut socket, &port, self.bridge)?;
        }
        link::set_hairpin(&mut socket, &port)?;
        link::without_ipv6(&host);
        link::set_up(&mut socket, port.index)?;
        let eth0 = link::find(&mut inside, POD_INTERFACE)?.ok_or_else(missing)?;
        link::set_up(&mut inside, LOOPBACK_INDEX)?;
        link::set_up(&mut inside, eth0.index)?;
        link::ensure_address(&mut inside, eth0.index, lease.address, 32)?;
        let gateway = Cidr::new(IpAddr::V4(self.gateway), 32)?;
        link::ensure_link_route(&mut inside, gateway, eth0.index, None)?;
        link::ensure_default_route(&mut inside, self.gateway, eth0.index)
    }

    /// Disconnects a pod and gives its address and host ports back. A pod that is not connected is fine.
    ///
    /// # Errors
    /// The kernel's refusal; call it again.
    pub fn detach(&self, uid: &str) -> Result<(), Error> {
        validate_uid(uid)?;
        link::delete(&mut Socket::route()?, &veth_name(uid))?;
        let path = self.netns_path(uid);
        netns::delete(&path).map_err(|source| Error::file(path, source))?;
        let had_ports = {
            let mut leases = lock(&self.leases);
            let had_ports = leases.all().get(uid).is_some_and(|lease| !lease.host_ports.is_empty());
            leases.release(uid)?;
            had_ports
        };
        if had_ports { self.write_rules() } else { Ok(()) }
    }

    /// The connected pods by UID, those of an earlier process included.
    pub fn pods(&self) -> BTreeMap<String, PodNetwork> {
        let leases = lock(&self.leases);
        leases.all().iter().map(|(uid, lease)| (uid.clone(), self.pod_network(uid, lease))).collect()
    }

    /// Disconnects every pod whose UID is not in `known`, and removes what a crash left half made.
    ///
    /// # Errors
    /// The first error; the other pods are cleaned up nevertheless.
    pub fn cleanup_stale(&self, known: &BTreeSet<String>) -> Result<(), Error> {
        let mut stale: BTreeSet<String> = lock(&self.leases).all().keys().cloned().collect();
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
        let mut socket = Socket::route()?;
        let kept: BTreeSet<String> = known.iter().map(|uid| veth_name(uid)).collect();
        for link in link::list(&mut socket)? {
            let ours = link.master == Some(self.bridge) && link.name.starts_with(VETH_PREFIX);
            if ours && !kept.contains(&link.name) {
                result = result.and(link::delete(&mut socket, &link.name));
            }
        }
        result
    }

    /// Makes the kernel balance load as `services` says. Only differences are written, in one atomic step; established
    /// connections go on.
    ///
    /// # Errors
    /// The kernel's refusal; the rules before are still in force.
    pub fn apply_services(&self, services: ServiceTable) -> Result<(), Error> {
        lock(&self.rules).services = services;
        self.write_rules()
    }

    /// Writes services and host ports.
    fn write_rules(&self) -> Result<(), Error> {
        let mut rules = lock(&self.rules);
        let mut desired = rules.services.clone();
        for (frontend, route) in lock(&self.leases).all().values().flat_map(host_port_routes) {
            desired.entry(frontend).or_insert(route);
        }
        rules.table.apply(&desired)?;
        let before = std::mem::replace(&mut rules.effective, desired);
        let after = &rules.effective;
        rules.table.forget_stale_affinity(after)?;
        let forgotten = conntrack::forget(&conntrack::affected(&before, after))?;
        tracing::debug!(frontends = after.len(), forgotten, "service rules written");
        Ok(())
    }

    /// Removes everything this room made: pods' namespaces, links, the packet filter table, files. Forwarding stays on, as
    /// others on the host may have come to depend on it.
    ///
    /// # Errors
    /// The first error; the rest is removed nevertheless.
    pub fn teardown(&self) -> Result<(), Error> {
        let mut result = self.cleanup_stale(&BTreeSet::new());
        let mut socket = Socket::route()?;
        for name in [BRIDGE, DNS_LINK] {
            result = result.and(link::delete(&mut socket, name));
        }
        result = result.and(lock(&self.rules).table.delete());
        let dir = &self.config.run_dir;
        let remove = |result: io::Result<()>| result.map_err(|source| Error::file(dir, source));
        result = result.and(remove(lock(&self.leases).remove_all()));
        result.and(remove(edge_sys::fsutil::remove_dir_all_if_exists(&dir.join("netns"))))
    }
}

/// The host ports of a pod as frontends.
fn host_port_routes(lease: &Lease) -> impl Iterator<Item = (Frontend, Route)> {
    lease.host_ports.iter().map(|port| {
        let frontend = Frontend { address: port.host_ip, protocol: port.protocol, port: port.host_port };
        (frontend, Route::to(vec![Endpoint { address: lease.address, port: port.container_port }]))
    })
}

/// The MTU of the interface that leads to the world, which packets of pods must fit through.
fn uplink_mtu(socket: &mut Socket) -> Result<u32, Error> {
    let Some(route) = link::default_route(socket)? else { return Ok(DEFAULT_MTU) };
    let links = link::list(socket)?;
    Ok(links.iter().find(|link| link.index == route.index).map_or(DEFAULT_MTU, |link| link.mtu))
}

/// Makes `address` the only IPv4 address of a link of ours.
fn only_address(socket: &mut Socket, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
    link::ensure_address(socket, index, address, prefix)?;
    for other in link::addresses(socket)?.into_iter().filter(|a| a.index == index) {
        if let IpAddr::V4(old) = other.address
            && (old, other.prefix) != (address, prefix)
        {
            link::delete_address(socket, index, old, other.prefix)?;
        }
    }
    Ok(())
}

/// A socket in the namespace pinned at `path`, which is created when it is not there (any more).
fn enter_or_create(path: &Path) -> Result<Socket, Error> {
    let failed = |source| Error::file(path, source);
    match netns::run_in(path, Socket::route) {
        Ok(socket) => return socket,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A plain file: the namespace was unpinned, as by a reboot.
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => netns::delete(path).map_err(failed)?,
        Err(error) => return Err(failed(error)),
    }
    netns::create(path).map_err(failed)?;
    netns::run_in(path, Socket::route).map_err(failed)?
}
