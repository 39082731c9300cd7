//! One pod's connection: its network namespace, the veth pair to the bridge, its addresses and routes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use edge_sys::netns;
use nix::errno::Errno;

use crate::ipam::Lease;
use crate::link::{self, VethPair};
use crate::netlink::Socket;
use crate::route::{Neighbour, Route};
use crate::subnet::{Subnet, hardware_address};
use crate::{BRIDGE, Cidr, Error};

/// Name of the interface inside of pods.
pub(crate) const POD_INTERFACE: &str = "eth0";
const VETH_PREFIX: &str = "veth";
const LOOPBACK_INDEX: u32 = 1;

/// Name of the node's end of a pod's link: 15 characters at most, the same after every restart.
fn veth_name(uid: &str) -> String {
    // FNV-1a
    let hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{VETH_PREFIX}{:011x}", hash & 0xfff_ffff_ffff)
}

/// The addresses of the pod's interface, asked in its namespace, IPv4 first; empty where there is none.
pub(crate) fn addresses_in(netns_file: &Path) -> Vec<IpAddr> {
    let ask = || {
        let mut socket = netns::run_in(netns_file, Socket::route).ok()?.ok()?;
        let link = link::find(&mut socket, POD_INTERFACE).ok()??;
        let all = link::addresses(&mut socket).ok()?.into_iter();
        Some(all.filter(|a| a.index == link.index && a.global).map(|a| a.address).collect())
    };
    let mut addresses: Vec<IpAddr> = ask().unwrap_or_default();
    addresses.sort();
    addresses
}

fn host_route(address: IpAddr, index: u32) -> Result<Route, Error> {
    Ok(Route::on_link(Cidr::new(address, link::host_prefix(address))?, index))
}

/// What the bridge is told of a pod.
fn neighbour(lease: &Lease, address: IpAddr, subnet: &Subnet) -> Neighbour {
    Neighbour::Hardware { index: subnet.bridge, address, hardware: hardware_address(&lease.addresses) }
}

/// Connects a pod to the bridge, with the namespace pinned at `path` (made when it is not there), or repairs what is
/// missing.
pub(crate) fn connect(path: &Path, uid: &str, lease: &Lease, subnet: &Subnet) -> Result<(), Error> {
    let mut inside = enter_or_create(path)?;
    let mut socket = Socket::route()?;
    let host = veth_name(uid);
    if link::find(&mut inside, POD_INTERFACE)?.is_none() {
        // A link of this name whose other end is elsewhere is a leftover.
        link::delete(&mut socket, &host)?;
        let namespace = fs::File::open(path).map_err(|source| Error::file(path, source))?;
        let pair = VethPair {
            host: &host,
            bridge: subnet.bridge,
            mtu: subnet.mtu,
            peer: POD_INTERFACE,
            peer_hardware: hardware_address(&lease.addresses),
            peer_netns: namespace.as_fd(),
        };
        link::create_veth(&mut socket, &pair)?;
    }
    let missing = || Error::kernel(format!("find link {host}"), Errno::ENODEV);
    let port = link::find(&mut socket, &host)?.ok_or_else(missing)?;
    if port.master != Some(subnet.bridge) {
        link::set_master(&mut socket, &port, subnet.bridge)?;
    }
    link::set_hairpin(&mut socket, &port)?;
    link::without_ipv6(&host);
    link::set_up(&mut socket, port.index)?;
    if lease.addresses.iter().any(IpAddr::is_ipv6) {
        // before the link is up: it would look for duplicates of its own address for a second otherwise
        netns::run_in(path, || link::with_ipv6(POD_INTERFACE)).map_err(|source| Error::file(path, source))??;
    }
    let eth0 = link::find(&mut inside, POD_INTERFACE)?.ok_or_else(missing)?;
    link::set_up(&mut inside, LOOPBACK_INDEX)?;
    link::set_up(&mut inside, eth0.index)?;
    for address in &lease.addresses {
        // The kernel has places for a thousand neighbours that it finds out by itself, and does not count those it is told.
        neighbour(lease, *address, subnet).ensure(&mut socket)?;
        link::ensure_address(&mut inside, eth0.index, *address, link::host_prefix(*address))?;
        if !subnet.contains(*address) {
            // the node had another network when the pod was made
            host_route(*address, subnet.bridge)?.ensure(&mut socket)?;
        }
        let Some(gateway) = subnet.gateway(address.is_ipv4()) else { continue };
        host_route(gateway, eth0.index)?.ensure(&mut inside)?;
        let everything = Cidr::new(if address.is_ipv4() { [0; 4].into() } else { [0_u8; 16].into() }, 0)?;
        Route { gateway: Some(gateway), ..Route::on_link(everything, eth0.index) }.ensure(&mut inside)?;
    }
    Ok(())
}

/// Gives both ends of a pod's link an MTU; a pod without a link is fine. Connections that go on use it from their next packet
/// on.
pub(crate) fn set_mtu(socket: &mut Socket, path: &Path, uid: &str, mtu: u32) -> Result<(), Error> {
    let Some(host) = link::find(socket, &veth_name(uid))? else { return Ok(()) };
    if host.mtu == mtu {
        return Ok(());
    }
    let mut inside = netns::run_in(path, Socket::route).map_err(|source| Error::file(path, source))??;
    if let Some(eth0) = link::find(&mut inside, POD_INTERFACE)? {
        link::configure(&mut inside, &eth0, None, mtu)?;
    }
    // this end is last: it tells whether both were changed
    link::configure(socket, &host, None, mtu)
}

/// Removes a pod's link and namespace; what is not there is fine.
pub(crate) fn disconnect(path: &Path, uid: &str, lease: Option<&Lease>, subnet: Option<&Subnet>) -> Result<(), Error> {
    let mut socket = Socket::route()?;
    link::delete(&mut socket, &veth_name(uid))?;
    netns::delete(path).map_err(|source| Error::file(path, source))?;
    let Some(subnet) = subnet else { return Ok(()) };
    for (lease, address) in lease.iter().flat_map(|lease| lease.addresses.iter().map(move |address| (lease, *address)))
    {
        neighbour(lease, address, subnet).delete(&mut socket)?;
        if !subnet.contains(address) {
            host_route(address, subnet.bridge)?.delete(&mut socket)?;
        }
    }
    Ok(())
}

/// Removes the links of all pods but those with a UID in `known`; a crash may have left them.
pub(crate) fn delete_links_but(socket: &mut Socket, known: &BTreeSet<String>) -> Result<(), Error> {
    let Some(bridge) = link::find(socket, BRIDGE)? else { return Ok(()) };
    let kept: BTreeSet<String> = known.iter().map(|uid| veth_name(uid)).collect();
    let mut result = Ok(());
    for link in link::list(socket)? {
        let ours = link.master == Some(bridge.index) && link.name.starts_with(VETH_PREFIX);
        if ours && !kept.contains(&link.name) {
            result = result.and(link::delete(socket, &link.name));
        }
    }
    result
}

/// A socket in the namespace pinned at `path`, which is created when it is not there (any more).
pub(crate) fn enter_or_create(path: &Path) -> Result<Socket, Error> {
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
