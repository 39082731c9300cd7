//! Links, addresses and routes of one network namespace, over rtnetlink.
//!
//! Every change is idempotent: what is there already in the wanted form stays untouched.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::netlink::{Message, Socket, attribute, attribute_at, ne_u32, text};
use crate::{Cidr, Error, sysctl};

const AF_UNSPEC: u8 = libc::AF_UNSPEC as u8;
const AF_INET: u8 = libc::AF_INET as u8;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;

/// What is known about a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Kind of a virtual link, for instance `bridge`.
    pub(crate) kind: Option<String>,
    pub(crate) mtu: u32,
    /// Index of the bridge it is a port of.
    pub(crate) master: Option<u32>,
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
    /// Whether it is valid beyond its own link.
    pub(crate) global: bool,
}

/// The default route with the lowest metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DefaultRoute {
    pub(crate) index: u32,
    pub(crate) source: Option<IpAddr>,
    pub(crate) metric: u32,
}

/// `struct ifinfomsg`.
fn link_header(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

const UP: u32 = libc::IFF_UP as u32;
const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const REPLACE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;

fn parse_link(payload: &[u8]) -> Option<Link> {
    let body = payload.get(16..)?;
    let kind = attribute_at(body, &[libc::IFLA_LINKINFO, IFLA_INFO_KIND]).and_then(text);
    Some(Link {
        index: ne_u32(&payload[4..8])?,
        name: text(attribute(body, libc::IFLA_IFNAME)?)?.to_owned(),
        kind: kind.map(str::to_owned),
        mtu: attribute(body, libc::IFLA_MTU).and_then(ne_u32)?,
        master: attribute(body, libc::IFLA_MASTER).and_then(ne_u32),
    })
}

fn parse_ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

/// The name of a link as an operation's text.
fn on(operation: &str, name: &str) -> String {
    format!("{operation} link {name}")
}

/// The link of that name, if there is one.
pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    let mut message = Message::new(libc::RTM_GETLINK, 0, &link_header(AF_UNSPEC, 0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    let operation = on("read", name);
    match socket.get(&operation, message) {
        Ok((_, payload)) => parse_link(&payload).map(Some).ok_or(Error::Malformed { operation }),
        Err(err) if err.errno() == Some(libc::ENODEV) => Ok(None),
        Err(err) => Err(err),
    }
}

/// All links.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let message = Message::new(libc::RTM_GETLINK, 0, &link_header(AF_UNSPEC, 0, 0, 0));
    Ok(socket.dump("list links", message)?.iter().filter_map(|(_, payload)| parse_link(payload)).collect())
}

/// Makes sure that a bridge of that name exists, is up and has the hardware address and MTU; gives its index.
pub(crate) fn ensure_bridge(socket: &mut Socket, name: &str, hardware: [u8; 6], mtu: u32) -> Result<u32, Error> {
    let found = find(socket, name)?;
    if found.as_ref().is_some_and(|link| link.kind.as_deref() != Some("bridge")) {
        let source = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "a link of this name is no bridge");
        return Err(Error::kernel(on("create", name), source));
    }
    if found.is_none() {
        let mut message = Message::new(libc::RTM_NEWLINK, CREATE, &link_header(AF_UNSPEC, 0, 0, 0));
        message.text(libc::IFLA_IFNAME, name);
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "bridge");
        });
        socket.request(&on("create", name), message)?;
    }
    let link = find(socket, name)?.ok_or_else(|| Error::kernel(on("read", name), nix::errno::Errno::ENODEV))?;
    without_ipv6(name);
    let mut message = Message::new(libc::RTM_NEWLINK, 0, &link_header(AF_UNSPEC, link.index, UP, UP));
    // A fixed address: a bridge otherwise takes that of a port, and pods' neighbour entries would go stale with it.
    message.bytes(libc::IFLA_ADDRESS, &hardware).u32(libc::IFLA_MTU, mtu);
    socket.request(&on("configure", name), message)?;
    Ok(link.index)
}

/// Nobody talks IPv6 on this link: no address is made for it and no neighbour discovery wakes us.
pub(crate) fn without_ipv6(name: &str) {
    sysctl::set_if_possible(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
}

/// One end of a new veth pair.
pub(crate) struct VethPair<'a> {
    /// Name of the end that stays here, a port of the bridge `bridge`.
    pub(crate) host: &'a str,
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
    /// Name, hardware address and network namespace of the other end.
    pub(crate) peer: &'a str,
    pub(crate) peer_hardware: [u8; 6],
    pub(crate) peer_netns: BorrowedFd<'a>,
}

/// Creates a veth pair; its host end is a port of the bridge. Both are down.
pub(crate) fn create_veth(socket: &mut Socket, pair: &VethPair<'_>) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_NEWLINK, CREATE, &link_header(AF_UNSPEC, 0, 0, 0));
    message.text(libc::IFLA_IFNAME, pair.host).u32(libc::IFLA_MTU, pair.mtu).u32(libc::IFLA_MASTER, pair.bridge);
    message.nested(libc::IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "veth").nested(IFLA_INFO_DATA, |data| {
            data.nested(VETH_INFO_PEER, |peer| {
                peer.raw(&link_header(AF_UNSPEC, 0, 0, 0));
                peer.text(libc::IFLA_IFNAME, pair.peer).u32(libc::IFLA_MTU, pair.mtu);
                peer.bytes(libc::IFLA_ADDRESS, &pair.peer_hardware);
                peer.u32(libc::IFLA_NET_NS_FD, pair.peer_netns.as_raw_fd() as u32);
            });
        });
    });
    socket.request(&on("create", pair.host), message)
}

/// Lets frames leave a bridge by the port they came in: with bridge netfilter a pod's connection to its own service does.
pub(crate) fn set_hairpin(socket: &mut Socket, port: &Link) -> Result<(), Error> {
    let header = link_header(libc::AF_BRIDGE as u8, port.index, 0, 0);
    let mut message = Message::new(libc::RTM_SETLINK, 0, &header);
    message.nested(libc::IFLA_PROTINFO, |info| {
        info.bytes(IFLA_BRPORT_MODE, &[1]);
    });
    socket.request(&on("set hairpin mode of", &port.name), message)
}

/// Makes a link a port of a bridge.
pub(crate) fn set_master(socket: &mut Socket, port: &Link, bridge: u32) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_NEWLINK, 0, &link_header(AF_UNSPEC, port.index, 0, 0));
    message.u32(libc::IFLA_MASTER, bridge);
    socket.request(&on("set the bridge of", &port.name), message)
}

/// Sets a link up.
pub(crate) fn set_up(socket: &mut Socket, index: u32) -> Result<(), Error> {
    let message = Message::new(libc::RTM_NEWLINK, 0, &link_header(AF_UNSPEC, index, UP, UP));
    socket.request("set link up", message)
}

/// Removes a link; one that does not exist is fine.
pub(crate) fn delete(socket: &mut Socket, name: &str) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_DELLINK, 0, &link_header(AF_UNSPEC, 0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    match socket.request(&on("delete", name), message) {
        Err(err) if err.errno() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Makes sure that a link has the address.
pub(crate) fn ensure_address(socket: &mut Socket, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
    // `struct ifaddrmsg`: family, prefix length, flags, scope, index.
    let mut header = [AF_INET, prefix, 0, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(libc::RTM_NEWADDR, REPLACE, &header);
    message.bytes(libc::IFA_LOCAL, &address.octets()).bytes(libc::IFA_ADDRESS, &address.octets());
    socket.request(&format!("add address {address}/{prefix}"), message)
}

/// Removes an address from a link; one that is not there is fine.
pub(crate) fn delete_address(socket: &mut Socket, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
    let mut header = [AF_INET, prefix, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(libc::RTM_DELADDR, 0, &header);
    message.bytes(libc::IFA_LOCAL, &address.octets());
    match socket.request(&format!("delete address {address}/{prefix}"), message) {
        Err(err) if err.errno() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

/// All addresses of all links.
pub(crate) fn addresses(socket: &mut Socket) -> Result<Vec<Address>, Error> {
    let message = Message::new(libc::RTM_GETADDR, 0, &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0]);
    let parse = |payload: &[u8]| {
        let body = payload.get(8..)?;
        let value = attribute(body, libc::IFA_LOCAL).or_else(|| attribute(body, libc::IFA_ADDRESS))?;
        Some(Address {
            index: ne_u32(&payload[4..8])?,
            address: parse_ip(value)?,
            prefix: payload[1],
            global: payload[3] == RT_SCOPE_UNIVERSE,
        })
    };
    Ok(socket.dump("list addresses", message)?.iter().filter_map(|(_, payload)| parse(payload)).collect())
}

/// `struct rtmsg` of an IPv4 route in the main table.
fn route_header(prefix: u8, scope: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = AF_INET;
    header[1] = prefix;
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = RTPROT_STATIC;
    header[6] = scope;
    header[7] = libc::RTN_UNICAST;
    header
}

/// Makes sure that `network` is reached directly through a link, with `source` as the address of own packets.
pub(crate) fn ensure_link_route(
    socket: &mut Socket,
    network: Cidr,
    index: u32,
    source: Option<Ipv4Addr>,
) -> Result<(), Error> {
    let IpAddr::V4(base) = network.base() else { return Err(Error::NotIpv4(network.base())) };
    let mut message = Message::new(libc::RTM_NEWROUTE, REPLACE, &route_header(network.prefix(), RT_SCOPE_LINK));
    message.bytes(libc::RTA_DST, &base.octets()).u32(libc::RTA_OIF, index);
    if let Some(source) = source {
        message.bytes(libc::RTA_PREFSRC, &source.octets());
    }
    socket.request(&format!("add route to {network}"), message)
}

/// Makes sure that everything else is reached through `gateway`.
pub(crate) fn ensure_default_route(socket: &mut Socket, gateway: Ipv4Addr, index: u32) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_NEWROUTE, REPLACE, &route_header(0, RT_SCOPE_UNIVERSE));
    message.bytes(libc::RTA_GATEWAY, &gateway.octets()).u32(libc::RTA_OIF, index);
    socket.request(&format!("add default route through {gateway}"), message)
}

/// The IPv4 default route, if there is one.
pub(crate) fn default_route(socket: &mut Socket) -> Result<Option<DefaultRoute>, Error> {
    let mut header = [0; 12];
    header[0] = AF_INET;
    let routes = socket.dump("list routes", Message::new(libc::RTM_GETROUTE, 0, &header))?;
    let parse = |payload: &[u8]| {
        let body = payload.get(12..)?;
        let is_default = payload[1] == 0 && payload[4] == libc::RT_TABLE_MAIN && payload[7] == libc::RTN_UNICAST;
        let index = attribute(body, libc::RTA_OIF).and_then(ne_u32).filter(|_| is_default)?;
        Some(DefaultRoute {
            index,
            source: attribute(body, libc::RTA_PREFSRC).and_then(parse_ip),
            metric: attribute(body, libc::RTA_PRIORITY).and_then(ne_u32).unwrap_or(0),
        })
    };
    Ok(routes.iter().filter_map(|(_, payload)| parse(payload)).min_by_key(|route| route.metric))
}
