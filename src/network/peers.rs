//! The other nodes, and how packets reach their pods.
//!
//! Comes in: the cluster's other nodes ([`Peer`]). Goes out: links, routes, neighbour and forwarding entries in the kernel,
//! and how each peer is reached ([`Reach`]). [`plan`] is pure and says what should be in the kernel; the difference to what
//! is there is written, first what leads to a peer, then the routes (each in place of the old one), at last what is no longer
//! wanted is removed: packets of established connections find a way at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::netlink::Socket;
use crate::node::is_own_link;
use crate::overlay::{self, VXLAN_LINK, VXLAN6_LINK};
use crate::route::{self, Neighbour, Route, Way};
use crate::subnet::Subnet;
use crate::wireguard::{self, PublicKey};
use crate::{Backend, Cidr, Error, link};

/// What a node tells the others of the end of its tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// The hardware address of its VXLAN link.
    Vxlan([u8; 6]),
    /// Its WireGuard public key.
    WireGuard(PublicKey),
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// The networks of its pods, one of a family.
    pub pod_networks: Vec<Cidr>,
    /// The addresses it is reached by, one of a family, the one it prefers first.
    pub addresses: Vec<IpAddr>,
    /// The end of its tunnel; `None` where it has none.
    pub tunnel: Option<Tunnel>,
}

/// How the pods of a peer are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Directly: it is on a network of this node.
    Direct,
    /// By VXLAN.
    Vxlan,
    /// By WireGuard.
    WireGuard,
    /// Not, and why.
    Unreachable(String),
}

/// How every peer is reached, by name.
pub type Reaches = BTreeMap<String, Reach>;

/// The way to one peer, before links have numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Path {
    Direct { index: u32, to: IpAddr },
    Vxlan { to: IpAddr, hardware: [u8; 6] },
    WireGuard { to: Option<IpAddr>, key: PublicKey },
}

/// What the kernel knows of the way to an address.
pub(crate) type Lookup<'a> = dyn FnMut(IpAddr) -> Result<Way, Error> + 'a;

/// Which way leads to a peer.
fn choose(backend: Backend, peer: &Peer, families: &[bool], lookup: &mut Lookup<'_>) -> Result<Path, String> {
    let usable = |ip: &&IpAddr| !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
    // an address of a version of IP that this node has no address of leads nowhere
    let reachable = |ip: &&IpAddr| families.is_empty() || families.contains(&ip.is_ipv4());
    let addresses: Vec<IpAddr> = peer.addresses.iter().filter(usable).filter(reachable).copied().collect();
    let Some(first) = addresses.first().copied() else {
        return Err("no address of the node is known that this node could reach".to_owned());
    };
    if backend == Backend::WireGuard {
        return match peer.tunnel {
            Some(Tunnel::WireGuard(key)) => Ok(Path::WireGuard { to: Some(first), key }),
            _ => Err("the node has no WireGuard key; is it configured with --network=wireguard?".to_owned()),
        };
    }
    let mut way = |address: IpAddr| lookup(address).map_err(|error| error.to_string());
    if way(first)? == Way::Local {
        return Err(format!("the node's address {first} is one of this node's own"));
    }
    if matches!(backend, Backend::Auto | Backend::HostGw) {
        // packets of a version need a next router of that version
        let on_link = |way: &mut dyn FnMut(IpAddr) -> Result<Way, String>, network: &Cidr| {
            let to = addresses.iter().find(|ip| ip.is_ipv4() == network.base().is_ipv4())?;
            match way(*to) {
                Ok(Way::OnLink(index)) => Some((index, *to)),
                _ => None,
            }
        };
        let all = peer.pod_networks.iter().all(|network| on_link(&mut way, network).is_some());
        if let (true, Some((index, to))) = (all, peer.pod_networks.first().and_then(|n| on_link(&mut way, n))) {
            return Ok(Path::Direct { index, to });
        }
    }
    match (backend, peer.tunnel) {
        (Backend::HostGw, _) => Err(format!("{first} is on no network of this node; --network=auto would use VXLAN")),
        (_, Some(Tunnel::Vxlan(hardware))) => Ok(Path::Vxlan { to: first, hardware }),
        _ => Err("the node has no VXLAN address; is it configured with another --network?".to_owned()),
    }
}

/// What should be in the kernel for the peers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    routes: BTreeMap<Cidr, Route>,
    neighbours: BTreeSet<Neighbour>,
    wireguard: Vec<wireguard::Peer>,
}

/// Indexes of the links to other nodes that exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Links {
    vxlan: Option<u32>,
    vxlan6: Option<u32>,
    wireguard: Option<u32>,
}

impl Links {
    fn vxlan_over(&self, ipv6: bool) -> Option<u32> {
        if ipv6 { self.vxlan6 } else { self.vxlan }
    }
}

/// The part of the peers that is acceptable: networks that are the cluster's, nobody else's, and not this node's.
fn accept(peers: &[Peer], cluster: &[Cidr], own: &[Cidr], reaches: &mut Reaches) -> Vec<Peer> {
    let mut accepted: Vec<Peer> = Vec::new();
    let mut sorted: Vec<&Peer> = peers.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for peer in sorted {
        let refuse = |network: &Cidr| {
            if !cluster.iter().any(|cluster| cluster.contains_network(network)) {
                return Some(format!("its pod network {network} is not in the cluster's"));
            }
            if own.iter().any(|own| own.overlaps(network)) {
                return Some(format!("its pod network {network} overlaps this node's"));
            }
            let other = accepted.iter().find(|other| other.pod_networks.iter().any(|n| n.overlaps(network)))?;
            Some(format!("its pod network {network} overlaps that of node {}", other.name))
        };
        let reason = match peer.pod_networks.is_empty() {
            true => Some("it has no pod network yet".to_owned()),
            false => peer.pod_networks.iter().find_map(refuse),
        };
        match reason {
            Some(reason) => {
                reaches.insert(peer.name.clone(), Reach::Unreachable(reason));
            }
            None => accepted.push(peer.clone()),
        }
    }
    accepted
}

/// What should be in the kernel, given the ways and the links.
fn plan(paths: &[(&Peer, Path)], links: Links, subnet: &Subnet, direct: &mut Lookup<'_>) -> Plan {
    let mut plan = Plan::default();
    for (peer, path) in paths {
        for network in &peer.pod_networks {
            let source = subnet.gateway(network.base().is_ipv4());
            let by = |index: u32, gateway: Option<IpAddr>| Route { gateway, source, ..Route::on_link(*network, index) };
            let route = match path {
                Path::Direct { index, to } if to.is_ipv4() == network.base().is_ipv4() => Some(by(*index, Some(*to))),
                Path::Direct { .. } => {
                    peer.addresses.iter().filter(|ip| ip.is_ipv4() == network.base().is_ipv4()).find_map(|ip| {
                        match direct(*ip) {
                            Ok(Way::OnLink(index)) => Some(by(index, Some(*ip))),
                            _ => None,
                        }
                    })
                }
                Path::Vxlan { to, hardware } => links.vxlan_over(to.is_ipv6()).map(|index| {
                    let address = overlay::router(*network, *hardware);
                    plan.neighbours.insert(Neighbour::Hardware { index, address, hardware: *hardware });
                    plan.neighbours.insert(Neighbour::Forward { index, hardware: *hardware, to: *to });
                    by(index, Some(address))
                }),
                Path::WireGuard { .. } => links.wireguard.map(|index| by(index, None)),
            };
            plan.routes.extend(route.map(|route| (*network, route)));
        }
        if let Path::WireGuard { to, key } = path {
            plan.wireguard.push(wireguard::Peer { key: *key, endpoint: *to, allowed: peer.pod_networks.clone() });
        }
    }
    plan
}

/// What the node wants of its peers, and what it needs to know for that.
pub(crate) struct Wanted<'a> {
    pub(crate) backend: Backend,
    pub(crate) cluster: &'a [Cidr],
    pub(crate) node_addresses: &'a [IpAddr],
    pub(crate) subnet: &'a Subnet,
    pub(crate) peers: &'a [Peer],
    /// This node's WireGuard device, where it has one.
    pub(crate) wireguard: Option<&'a wireguard::Device>,
}

/// Makes the kernel hold exactly what the peers need. Everything that can be done is done, whatever fails; the first error
/// is given.
pub(crate) fn apply(wanted: &Wanted<'_>) -> Result<Reaches, Error> {
    let mut socket = Socket::route()?;
    let mut queries = Socket::route()?;
    let mut lookup = |address: IpAddr| route::lookup(&mut queries, address);
    let mut reaches = Reaches::new();
    let accepted = accept(wanted.peers, wanted.cluster, &wanted.subnet.networks, &mut reaches);
    let families: Vec<bool> = wanted.node_addresses.iter().map(IpAddr::is_ipv4).collect();
    let mut paths = Vec::new();
    for peer in &accepted {
        match choose(wanted.backend, peer, &families, &mut lookup) {
            Ok(path) => paths.push((peer, path)),
            Err(reason) => {
                reaches.insert(peer.name.clone(), Reach::Unreachable(reason));
            }
        }
    }
    let mut result = Ok(());
    let links = ensure_links(&mut socket, wanted, &accepted, &paths, &mut result);
    for (peer, path) in &paths {
        let reach = match path {
            Path::Direct { .. } => Reach::Direct,
            Path::Vxlan { to, .. } if links.vxlan_over(to.is_ipv6()).is_some() => Reach::Vxlan,
            Path::WireGuard { .. } if links.wireguard.is_some() => Reach::WireGuard,
            _ => Reach::Unreachable("the link to it could not be made".to_owned()),
        };
        reaches.insert(peer.name.clone(), reach);
    }
    let plan = plan(&paths, links, wanted.subnet, &mut lookup);
    if let Some(device) = wanted.wireguard {
        result = result.and(device.set_peers(&plan.wireguard));
    }
    result = result.and(write(&mut socket, &plan, wanted.subnet, links));
    result.map(|()| reaches)
}

/// Makes the links that are needed. In the mode that chooses, the VXLAN link is there as soon as there is another node: one
/// that sees no way to reach this node directly uses it.
fn ensure_links(
    socket: &mut Socket,
    wanted: &Wanted<'_>,
    accepted: &[Peer],
    paths: &[(&Peer, Path)],
    result: &mut Result<(), Error>,
) -> Links {
    let mut links = Links::default();
    let needs = |ipv6: bool| {
        let planned = paths.iter().any(|(_, path)| matches!(path, Path::Vxlan { to, .. } if to.is_ipv6() == ipv6));
        let offered = accepted.iter().any(|peer| peer.addresses.first().is_some_and(|ip| ip.is_ipv6() == ipv6));
        planned || (matches!(wanted.backend, Backend::Auto | Backend::Vxlan) && offered)
    };
    let mut note = |made: Result<u32, Error>| match made {
        Ok(index) => Some(index),
        Err(error) => {
            let before = std::mem::replace(result, Ok(()));
            *result = before.and(Err(error));
            None
        }
    };
    if needs(false) {
        links.vxlan = note(overlay::ensure_vxlan(socket, false, wanted.subnet));
    }
    if needs(true) {
        links.vxlan6 = note(overlay::ensure_vxlan(socket, true, wanted.subnet));
    }
    links.wireguard = wanted.wireguard.map(wireguard::Device::index);
    links
}

/// The links on which routes to peers can be that this room made, and which are not pods' or services'.
fn is_of_peers(route: &Route, bridge: u32) -> bool {
    route.index != bridge
}

fn write(socket: &mut Socket, plan: &Plan, subnet: &Subnet, links: Links) -> Result<(), Error> {
    let indexes: Vec<u32> = [links.vxlan, links.vxlan6].into_iter().flatten().collect();
    let before: BTreeSet<Neighbour> = route::neighbours(socket, &indexes)?.into_iter().collect();
    let mut result = Ok(());
    for neighbour in plan.neighbours.difference(&before) {
        result = result.and(neighbour.ensure(socket));
    }
    let existing: Vec<Route> =
        route::ours(socket)?.into_iter().filter(|route| is_of_peers(route, subnet.bridge)).collect();
    for route in plan.routes.values().filter(|route| !existing.contains(route)) {
        result = result.and(route.ensure(socket));
    }
    for route in existing.iter().filter(|route| !plan.routes.contains_key(&route.destination)) {
        result = result.and(route.delete(socket));
    }
    let kept: BTreeSet<_> = plan.neighbours.iter().map(Neighbour::key).collect();
    for neighbour in before.difference(&plan.neighbours).filter(|neighbour| !kept.contains(&neighbour.key())) {
        result = result.and(neighbour.delete(socket));
    }
    let mut names = Vec::new();
    names.extend(links.vxlan.map(|_| VXLAN_LINK));
    names.extend(links.vxlan6.map(|_| VXLAN6_LINK));
    names.extend(links.wireguard.map(|_| wireguard::LINK));
    result.and(overlay::delete_links_but(socket, &names))
}

/// Removes everything that was made for peers.
pub(crate) fn clean_up(socket: &mut Socket) -> Result<(), Error> {
    let own: Vec<u32> = link::list(socket)?.iter().filter(|l| is_own_link(&l.name)).map(|l| l.index).collect();
    let mut result = Ok(());
    // those on links of ours end with them
    for route in route::ours(socket)?.iter().filter(|route| !own.contains(&route.index)) {
        result = result.and(route.delete(socket));
    }
    result.and(overlay::delete_links_but(socket, &[]))
}
