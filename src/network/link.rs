//! Links and their addresses in one network namespace, over rtnetlink; routes are in [`crate::route`].
//!
//! Every change is idempotent: what is there already in the wanted form stays untouched.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::netlink::{Message, Socket, attribute, attribute_at, ne_u32, text};
use crate::{Error, sysctl};

pub(crate) const AF_UNSPEC: u8 = libc::AF_UNSPEC as u8;
pub(crate) const AF_INET: u8 = libc::AF_INET as u8;
pub(crate) const AF_INET6: u8 = libc::AF_INET6 as u8;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const IFA_F_NODAD: u8 = 2;

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
    pub(crate) hardware: Option<[u8; 6]>,
    /// Whether it is set up (it may lack a carrier).
    pub(crate) up: bool,
    /// What only a link of this kind has (`IFLA_INFO_DATA`).
    pub(crate) data: Vec<u8>,
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

/// `AF_INET` or `AF_INET6`.
pub(crate) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// An address as netlink has it.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The prefix length of a single address.
pub(crate) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
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
pub(crate) const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
pub(crate) const REPLACE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;

pub(crate) fn parse_link(payload: &[u8]) -> Option<Link> {
    let body = payload.get(16..)?;
    let kind = attribute_at(body, &[libc::IFLA_LINKINFO, IFLA_INFO_KIND]).and_then(text);
    Some(Link {
        index: ne_u32(&payload[4..8])?,
        name: text(attribute(body, libc::IFLA_IFNAME)?)?.to_owned(),
        kind: kind.map(str::to_owned),
        mtu: attribute(body, libc::IFLA_MTU).and_then(ne_u32)?,
        master: attribute(body, libc::IFLA_MASTER).and_then(ne_u32),
        up: ne_u32(&payload[8..12])? & UP != 0,
        hardware: attribute(body, libc::IFLA_ADDRESS).and_then(|bytes| bytes.try_into().ok()),
        data: attribute_at(body, &[libc::IFLA_LINKINFO, IFLA_INFO_DATA]).unwrap_or_default().to_vec(),
    })
}

pub(crate) fn parse_ip(value: &[u8]) -> Option<IpAddr> {
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

/// Creates a link of a kind; `data` appends what that kind needs (`IFLA_INFO_DATA`).
pub(crate) fn create(
    socket: &mut Socket,
    name: &str,
    kind: &str,
    data: impl FnOnce(&mut Message),
) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_NEWLINK, CREATE, &link_header(AF_UNSPEC, 0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    message.nested(libc::IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, kind).nested(IFLA_INFO_DATA, data);
    });
    socket.request(&on("create", name), message)
}

/// The link of that name, which is of kind `kind`, if there is one.
///
/// # Errors
/// When somebody else's link has the name.
pub(crate) fn find_kind(socket: &mut Socket, name: &str, kind: &str) -> Result<Option<Link>, Error> {
    let found = find(socket, name)?;
    if found.as_ref().is_some_and(|link| link.kind.as_deref() != Some(kind)) {
        let text = format!("a link of this name is no {kind}");
        return Err(Error::kernel(on("create", name), std::io::Error::new(std::io::ErrorKind::AlreadyExists, text)));
    }
    Ok(found)
}

/// Sets a link up, with MTU and hardware address as given.
pub(crate) fn configure(socket: &mut Socket, link: &Link, hardware: Option<[u8; 6]>, mtu: u32) -> Result<(), Error> {
    let hardware = hardware.filter(|wanted| link.hardware != Some(*wanted));
    if link.up && hardware.is_none() && link.mtu == mtu {
        return Ok(());
    }
    let mut message = Message::new(libc::RTM_NEWLINK, 0, &link_header(AF_UNSPEC, link.index, UP, UP));
    if let Some(hardware) = hardware {
        message.bytes(libc::IFLA_ADDRESS, &hardware);
    }
    if link.mtu != mtu {
        message.u32(libc::IFLA_MTU, mtu);
    }
    socket.request(&on("configure", &link.name), message)
}

/// Makes sure that a bridge of that name exists, is up and has the hardware address and MTU; gives its index.
pub(crate) fn ensure_bridge(
    socket: &mut Socket,
    name: &str,
    hardware: [u8; 6],
    mtu: u32,
    ipv6: bool,
) -> Result<u32, Error> {
    if find_kind(socket, name, "bridge")?.is_none() {
        create(socket, name, "bridge", |_| {})?;
    }
    let link = find(socket, name)?.ok_or_else(|| Error::kernel(on("read", name), nix::errno::Errno::ENODEV))?;
    if ipv6 {
        with_ipv6(name)?
    } else {
        without_ipv6(name)
    }
    // A fixed address: a bridge otherwise takes that of a port, and pods' neighbour entries would go stale with it.
    configure(socket, &link, Some(hardware), mtu)?;
    Ok(link.index)
}

/// This link has IPv6 addresses, which it uses at once: nobody else on it could have them, and nobody on it may tell us
/// about routes.
pub(crate) fn with_ipv6(name: &str) -> Result<(), Error> {
    sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
    for (parameter, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("accept_redirects", "0")] {
        sysctl::set_if_possible(&format!("ipv6/conf/{name}/{parameter}"), value);
    }
    Ok(())
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

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
fn address_header(index: u32, address: IpAddr, prefix: u8) -> [u8; 8] {
    // without duplicate address detection, which would keep an address from being used for a second
    let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut header = [family(address), prefix, flags, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// Makes sure that a link has the address.
pub(crate) fn ensure_address(socket: &mut Socket, index: u32, address: IpAddr, prefix: u8) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_NEWADDR, REPLACE, &address_header(index, address, prefix));
    message.bytes(libc::IFA_LOCAL, &octets(address)).bytes(libc::IFA_ADDRESS, &octets(address));
    socket.request(&format!("add address {address}/{prefix}"), message)
}

/// Removes an address from a link; one that is not there is fine.
pub(crate) fn delete_address(socket: &mut Socket, index: u32, address: IpAddr, prefix: u8) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_DELADDR, 0, &address_header(index, address, prefix));
    message.bytes(libc::IFA_LOCAL, &octets(address));
    match socket.request(&format!("delete address {address}/{prefix}"), message) {
        Err(err) if err.errno() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

/// Makes these the only addresses of a link of ours, but for those that are valid on the link only.
pub(crate) fn only_addresses(socket: &mut Socket, index: u32, wanted: &[(IpAddr, u8)]) -> Result<(), Error> {
    let existing: Vec<Address> = addresses(socket)?.into_iter().filter(|a| a.index == index && a.global).collect();
    for (address, prefix) in wanted {
        // an address that is added again would be news to everybody who watches
        if !existing.iter().any(|a| (a.address, a.prefix) == (*address, *prefix)) {
            ensure_address(socket, index, *address, *prefix)?;
        }
    }
    for other in existing {
        if !wanted.contains(&(other.address, other.prefix)) {
            delete_address(socket, index, other.address, other.prefix)?;
        }
    }
    Ok(())
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
