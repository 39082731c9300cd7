//! The links that carry packets to nodes on other networks: VXLAN (RFC 7348), one link for each version of IP between the
//! nodes, as flannel lays it out.
//!
//! Nothing is learned and nothing is flooded: for every peer there is a forwarding entry (its hardware address → its
//! address), a neighbour entry ([`router`] → its hardware address) and a route (its pod network by that router). So a packet costs one lookup of each and no announcement wakes anybody.
//!
//! The kernel leaves the outer UDP checksum out over IPv4 and fills it in over IPv6, where RFC 6935 wants it; checksums of
//! the packets inside are filled in by whoever sends them. The packets between nodes are never translated by the rules of
//! this room, which is what made other systems turn checksum offload off on these links.

use std::net::IpAddr;

use crate::link::{self, Link};
use crate::netlink::{Message, Socket, attribute, be_u16, ne_u32};
use crate::subnet::{Subnet, hardware_address};
use crate::{Cidr, Error, sysctl};

/// The VXLAN network identifier, flannel's.
pub const VNI: u32 = 1;
/// The UDP port of VXLAN packets, flannel's (not the IANA's 4789).
pub const VXLAN_PORT: u16 = 8472;
/// Links by which peers are reached over IPv4 and over IPv6.
pub(crate) const VXLAN_LINK: &str = "edge-vxlan";
pub(crate) const VXLAN6_LINK: &str = "edge-vxlan6";

const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;

/// The hardware address by which this node's VXLAN link is known: it belongs to the node's pod network, so it is the same
/// after every restart and no two nodes have the same.
pub(crate) fn vtep(subnet: &Subnet) -> [u8; 6] {
    hardware_address(&subnet.gateways())
}

/// The address that stands for a peer as the router to its pod network: the base of the network, which is no pod's; in IPv6
/// the link-local address of its hardware address, because there the kernel takes no router whose address it knows another
/// way to, as it does while a peer changes from one way to another.
pub(crate) fn router(network: Cidr, hardware: [u8; 6]) -> IpAddr {
    match network.base() {
        IpAddr::V4(base) => IpAddr::V4(base),
        IpAddr::V6(_) => {
            let [a, b, c, d, e, f] = hardware.map(u16::from);
            let words = [((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f];
            IpAddr::from([0xfe80, 0, 0, 0, words[0], words[1], words[2], words[3]])
        }
    }
}

fn name(over_ipv6: bool) -> &'static str {
    if over_ipv6 { VXLAN6_LINK } else { VXLAN_LINK }
}

/// Whether a link has the properties that cannot be changed.
fn is_as_wanted(link: &Link) -> bool {
    let number = attribute(&link.data, IFLA_VXLAN_ID).and_then(ne_u32);
    let port = attribute(&link.data, IFLA_VXLAN_PORT).and_then(be_u16);
    let learning = attribute(&link.data, IFLA_VXLAN_LEARNING);
    number == Some(VNI) && port == Some(VXLAN_PORT) && learning == Some(&[0])
}

/// Makes sure that the VXLAN link over IPv4 or IPv6 is there and up; gives its index.
///
/// Its local address is left to routing, so that a node whose address changes goes on.
pub(crate) fn ensure_vxlan(socket: &mut Socket, over_ipv6: bool, subnet: &Subnet) -> Result<u32, Error> {
    let name = name(over_ipv6);
    let found = link::find_kind(socket, name, "vxlan")?;
    if found.as_ref().is_some_and(|link| !is_as_wanted(link)) {
        link::delete(socket, name)?;
    }
    let link = match found.filter(is_as_wanted) {
        Some(link) => link,
        None => {
            create_vxlan(socket, name, over_ipv6)?;
            link::find(socket, name)?
                .ok_or_else(|| Error::kernel(format!("find link {name}"), nix::errno::Errno::ENODEV))?
        }
    };
    prepare(socket, &link, subnet)?;
    link::configure(socket, &link, Some(vtep(subnet)), subnet.mtu).map_err(|error| match error.errno() {
        Some(libc::EADDRINUSE) => Error::PortInUse { port: VXLAN_PORT, link: name.to_owned() },
        _ => error,
    })?;
    finish(socket, &link, subnet)?;
    Ok(link.index)
}

fn create_vxlan(socket: &mut Socket, name: &str, over_ipv6: bool) -> Result<(), Error> {
    let data = |data: &mut Message| {
        data.u32(IFLA_VXLAN_ID, VNI).bytes(IFLA_VXLAN_PORT, &VXLAN_PORT.to_be_bytes());
        data.bytes(IFLA_VXLAN_LEARNING, &[0]);
        if over_ipv6 {
            // the unspecified address of that version makes it a link of that version
            data.bytes(IFLA_VXLAN_LOCAL6, &[0; 16]);
        }
    };
    link::create(socket, name, "vxlan", data).map_err(|error| match error.errno() {
        // another link has the same number and port
        Some(libc::EEXIST) => Error::PortInUse { port: VXLAN_PORT, link: name.to_owned() },
        _ => error,
    })
}

/// What a link to other nodes needs before it is up.
pub(crate) fn prepare(_socket: &mut Socket, link: &Link, subnet: &Subnet) -> Result<(), Error> {
    // Packets may come in by another way than answers leave, while the two nodes learn of each other.
    sysctl::set_if_possible(&format!("ipv4/conf/{}/rp_filter", link.name), "2");
    if subnet.gateway(false).is_some() {
        link::with_ipv6(&link.name)?;
        // nobody is on the link but by entries of ours
        sysctl::set_if_possible(&format!("ipv6/conf/{}/addr_gen_mode", link.name), "1");
        sysctl::set_if_possible(&format!("ipv6/conf/{}/router_solicitations", link.name), "0");
    } else {
        link::without_ipv6(&link.name);
    }
    Ok(())
}

/// What a link to other nodes needs once it is up: the node's addresses in the pod network, which masqueraded packets on
/// this link get as their source, so that answers come back by it.
pub(crate) fn finish(socket: &mut Socket, link: &Link, subnet: &Subnet) -> Result<(), Error> {
    let addresses: Vec<(IpAddr, u8)> = subnet.gateways().into_iter().map(|ip| (ip, link::host_prefix(ip))).collect();
    link::only_addresses(socket, link.index, &addresses)
}

/// Removes the links, or those that are not in `kept`; what is not there is fine.
pub(crate) fn delete_links_but(socket: &mut Socket, kept: &[&str]) -> Result<(), Error> {
    let mut result = Ok(());
    for (name, kind) in [(VXLAN_LINK, "vxlan"), (VXLAN6_LINK, "vxlan"), (crate::wireguard::LINK, "wireguard")] {
        if !kept.contains(&name) && matches!(link::find_kind(socket, name, kind), Ok(Some(_))) {
            result = result.and(link::delete(socket, name));
        }
    }
    result
}
