//! The part of the cluster's pod network that is this node's: the bridge with the gateways' addresses, its MTU, and the
//! file that remembers which networks it has.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::link::{self, Link};
use crate::netlink::Socket;
use crate::node::{BRIDGE, DNS_LINK, NodeConfig, is_own_link};
use crate::route::{self, Route};
use crate::{Backend, Cidr, Error, sysctl};

const DEFAULT_MTU: u32 = 1500;
/// The least that IPv4 hosts, and IPv6 links, have to carry.
const LEAST_MTU: (u32, u32) = (576, 1280);

/// The node's pod networks, set up in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subnet {
    /// One of a family, the primary one first; never empty.
    pub(crate) networks: Vec<Cidr>,
    /// Index of the bridge.
    pub(crate) bridge: u32,
    /// MTU of pods' links.
    pub(crate) mtu: u32,
}

/// A hardware address that belongs to the first of the addresses, so that neighbours' entries stay right when an address
/// changes hands.
pub(crate) fn hardware_address(addresses: &[IpAddr]) -> [u8; 6] {
    let [a, b, c, d] = match addresses.first() {
        Some(IpAddr::V4(v4)) => v4.octets(),
        // FNV-1a: nothing but difference is asked of it
        Some(IpAddr::V6(v6)) => {
            let hash = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            v6.octets().into_iter().fold(0x811c_9dc5, hash).to_be_bytes()
        }
        None => [0; 4],
    };
    [0x0a, 0x58, a, b, c, d]
}

impl Subnet {
    /// Makes the bridge carry the gateways of `networks`, with links of `mtu` bytes.
    pub(crate) fn set_up(socket: &mut Socket, config: &NodeConfig, networks: &[Cidr], mtu: u32) -> Result<Self, Error> {
        let ipv6 = networks.iter().any(|network| network.base().is_ipv6());
        let mut subnet = Self { networks: networks.to_vec(), bridge: 0, mtu };
        let gateways = subnet.gateways();
        subnet.bridge = link::ensure_bridge(socket, BRIDGE, hardware_address(&gateways), mtu, ipv6)?;
        let addresses: Vec<(IpAddr, u8)> = networks.iter().map(|network| (network.nth(1), network.prefix())).collect();
        link::only_addresses(socket, subnet.bridge, &addresses)?;
        sysctl::set(&format!("ipv4/conf/{BRIDGE}/route_localnet"), "1")?;
        sysctl::set_if_possible(&format!("ipv4/conf/{BRIDGE}/send_redirects"), "0");
        for services in &config.service_cidrs {
            // So that this node's own processes reach services without any other network, with an address pods can answer.
            let Some(source) = subnet.gateway(services.base().is_ipv4()) else { continue };
            Route { source: Some(source), ..Route::on_link(*services, subnet.bridge) }.ensure(socket)?;
        }
        Ok(subnet)
    }

    /// The addresses of the bridge.
    pub(crate) fn gateways(&self) -> Vec<IpAddr> {
        self.networks.iter().map(|network| network.nth(1)).collect()
    }

    /// The bridge's address of a family.
    pub(crate) fn gateway(&self, ipv4: bool) -> Option<IpAddr> {
        self.gateways().into_iter().find(|gateway| gateway.is_ipv4() == ipv4)
    }

    /// Whether an address is in one of the networks.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }
}

/// Sees to it that no link of others has addresses in the cluster's networks, as another cluster's leftovers may: packets
/// would go to the one or the other by chance. A wider network around them is no problem, as routes to the cluster's are
/// more specific, but what it has at these addresses cannot be reached.
pub(crate) fn check_free(socket: &mut Socket, config: &NodeConfig) -> Result<(), Error> {
    let links = link::list(socket)?;
    // another plugin makes links of its own for the pods
    let pods = config.cluster_cidrs.iter().filter(|_| config.backend != Backend::None);
    let all = pods.map(|network| (*network, "pods", "--cluster-cidr"));
    let all: Vec<_> = all.chain(config.service_cidrs.iter().map(|n| (*n, "services", "--service-cidr"))).collect();
    for own in link::addresses(socket)? {
        let Some(link) = links.iter().find(|link| link.index == own.index && !is_own_link(&link.name)) else {
            continue;
        };
        let Ok(on_link) = Cidr::new(own.address, own.prefix) else { continue };
        for (network, what, flag) in &all {
            if network.contains(own.address) {
                let (link, address, prefix) = (link.name.clone(), own.address, own.prefix);
                return Err(Error::NetworkInUse { link, address, prefix, network: *network, what, flag });
            }
            if on_link.overlaps(network) {
                tracing::warn!(link = link.name, network = %on_link, cluster = %network, "machines of this network with addresses of {what} are out of reach");
            }
        }
    }
    Ok(())
}

/// The link that leads to other nodes: that of the node's address, else that of the default route.
fn uplink(socket: &mut Socket, addresses: &[IpAddr]) -> Result<Option<Link>, Error> {
    let links = link::list(socket)?;
    // a loopback interface may hold the node's address, but no packet leaves by it
    let by_index = |index: u32| links.iter().find(|link| link.index == index && link.name != "lo").cloned();
    let own = link::addresses(socket)?;
    let by_address = addresses.iter().filter_map(|address| own.iter().find(|a| a.address == *address));
    if let Some(link) = by_address.filter_map(|a| by_index(a.index)).next() {
        return Ok(Some(link));
    }
    for ipv4 in [true, false] {
        if let Some(link) = route::default(socket, ipv4)?.and_then(|route| by_index(route.index)) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// Whether the networks are such as this node may have.
pub(crate) fn check(config: &NodeConfig, networks: &[Cidr]) -> Result<(), Error> {
    for network in networks {
        if !config.cluster_cidrs.iter().any(|cluster| cluster.contains_network(network)) {
            return Err(Error::PodNetworkOutside(*network));
        }
    }
    if networks.is_empty() { Err(Error::NoPodNetwork) } else { Ok(()) }
}

/// The MTU of pods' links: what is left of the uplink's for packets on their way to other nodes. `before` is what it was; it
/// stays while the machine has no uplink.
pub(crate) fn pod_mtu(
    socket: &mut Socket,
    backend: Backend,
    node_addresses: &[IpAddr],
    networks: &[Cidr],
    before: Option<u32>,
) -> Result<u32, Error> {
    let overhead = backend.overhead(node_addresses.first().is_some_and(IpAddr::is_ipv6));
    let ipv6 = networks.iter().any(|network| network.base().is_ipv6());
    let needed = if ipv6 { LEAST_MTU.1 } else { LEAST_MTU.0 };
    let Some(link) = uplink(socket, node_addresses)? else { return Ok(before.unwrap_or(DEFAULT_MTU - overhead)) };
    let available = link.mtu.saturating_sub(overhead);
    if available < needed {
        return Err(Error::MtuTooSmall { link: link.name, mtu: link.mtu, available, needed: needed + overhead });
    }
    // what is larger than a datagram helps nobody
    Ok(available.min(65_535))
}

/// Makes the link with the addresses of the cluster's DNS.
pub(crate) fn ensure_dns_link(socket: &mut Socket, addresses: &[IpAddr]) -> Result<(), Error> {
    if addresses.is_empty() {
        return link::delete(socket, DNS_LINK);
    }
    let ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    let index = link::ensure_bridge(socket, DNS_LINK, hardware_address(addresses), DEFAULT_MTU, ipv6)?;
    let addresses: Vec<(IpAddr, u8)> = addresses.iter().map(|ip| (*ip, link::host_prefix(*ip))).collect();
    link::only_addresses(socket, index, &addresses)
}

fn file(config: &NodeConfig) -> PathBuf {
    config.run_dir.join("pod-cidrs")
}

/// The networks that [`save`] remembered; empty where there are none, or none of this cluster.
pub(crate) fn load(config: &NodeConfig) -> Vec<Cidr> {
    let text = fs::read_to_string(file(config)).unwrap_or_default();
    let parsed: Result<Vec<Cidr>, Error> = text.split_whitespace().map(str::parse).collect();
    let networks = parsed.unwrap_or_default();
    let inside = |network: &Cidr| config.cluster_cidrs.iter().any(|cluster| cluster.contains_network(network));
    if networks.iter().all(inside) { networks } else { Vec::new() }
}

/// Remembers the networks across restarts, and reboots where the directory survives them.
pub(crate) fn save(config: &NodeConfig, networks: &[Cidr]) -> Result<(), Error> {
    let text: String = networks.iter().map(|network| format!("{network}\n")).collect();
    let path = file(config);
    // a restart writes nothing, so it works on a full disk too
    if fs::read_to_string(&path).is_ok_and(|remembered| remembered == text) {
        return Ok(());
    }
    edge_sys::fsutil::write_atomic(&path, text.as_bytes(), 0o644).map_err(|source| Error::file(path, source))
}

/// Forgets the networks.
pub(crate) fn forget(config: &NodeConfig) -> Result<(), Error> {
    let path = file(config);
    edge_sys::fsutil::remove_file_if_exists(&path).map_err(|source| Error::file(path, source))
}
