//! Routes and neighbour entries of one network namespace, over rtnetlink.
//!
//! Every change is idempotent and replaces what stood in its place in one step, so that no packet meets a gap.

use std::net::IpAddr;

use crate::link::{AF_UNSPEC, REPLACE, family, octets, parse_ip};
use crate::netlink::{Message, Socket, attribute, ne_u32};
use crate::{Cidr, Error};

/// Who made a route, as the kernel keeps it (`rtm_protocol`): everything that edge makes for other nodes has this number,
/// which no known routing daemon uses, so that leftovers are found.
pub(crate) const PROTOCOL: u8 = 237;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTNH_F_ONLINK: u32 = 4;
const RTA_VIA: u16 = 18;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) destination: Cidr,
    /// Index of the link that packets leave by.
    pub(crate) index: u32,
    /// The next router; `None` where the destination is on the link itself.
    pub(crate) gateway: Option<IpAddr>,
    /// The source address of this node's own packets.
    pub(crate) source: Option<IpAddr>,
}

impl Route {
    /// A route to what is on a link.
    pub(crate) fn on_link(destination: Cidr, index: u32) -> Self {
        Self { destination, index, gateway: None, source: None }
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let base = self.destination.base();
        let scope = if self.gateway.is_none() && base.is_ipv4() { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
        // `struct rtmsg`: family, lengths of destination and source, TOS, table, protocol, scope, type, flags
        let mut header = [0; 12];
        header[..8].copy_from_slice(&[
            family(base),
            self.destination.prefix(),
            0,
            0,
            libc::RT_TABLE_MAIN,
            PROTOCOL,
            scope,
            libc::RTN_UNICAST,
        ]);
        // a router is on the link whatever the link's own addresses are
        let on_link = if self.gateway.is_some() { RTNH_F_ONLINK } else { 0 };
        header[8..].copy_from_slice(&on_link.to_ne_bytes());
        let mut message = Message::new(kind, flags, &header);
        if self.destination.prefix() > 0 {
            message.bytes(libc::RTA_DST, &octets(base));
        }
        message.u32(libc::RTA_OIF, self.index);
        if let Some(gateway) = self.gateway {
            message.bytes(libc::RTA_GATEWAY, &octets(gateway));
        }
        if let Some(source) = self.source {
            message.bytes(libc::RTA_PREFSRC, &octets(source));
        }
        message
    }

    /// Makes sure that the route is there, in the place of any other to the same destination.
    pub(crate) fn ensure(&self, socket: &mut Socket) -> Result<(), Error> {
        socket.request(&format!("add route to {}", self.destination), self.message(libc::RTM_NEWROUTE, REPLACE))
    }

    /// Removes the route; one that is not there is fine.
    pub(crate) fn delete(&self, socket: &mut Socket) -> Result<(), Error> {
        match socket.request(&format!("delete route to {}", self.destination), self.message(libc::RTM_DELROUTE, 0)) {
            Err(err) if err.errno() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}

/// A route with what a dump tells beyond.
struct Listed {
    route: Route,
    protocol: u8,
    metric: u32,
}

fn parse(payload: &[u8]) -> Option<Listed> {
    let body = payload.get(12..)?;
    if payload[4] != libc::RT_TABLE_MAIN || payload[7] != libc::RTN_UNICAST {
        return None;
    }
    let unspecified = if payload[0] == libc::AF_INET as u8 { IpAddr::from([0; 4]) } else { IpAddr::from([0_u8; 16]) };
    let destination = attribute(body, libc::RTA_DST).map_or(Some(unspecified), parse_ip)?;
    Some(Listed {
        route: Route {
            destination: Cidr::new(destination, payload[1]).ok()?,
            index: attribute(body, libc::RTA_OIF).and_then(ne_u32)?,
            gateway: attribute(body, libc::RTA_GATEWAY).and_then(parse_ip),
            source: attribute(body, libc::RTA_PREFSRC).and_then(parse_ip),
        },
        protocol: payload[5],
        metric: attribute(body, libc::RTA_PRIORITY).and_then(ne_u32).unwrap_or(0),
    })
}

/// Whether a route's message is about the main table.
pub(crate) fn is_main(payload: &[u8]) -> bool {
    payload.get(4) == Some(&libc::RT_TABLE_MAIN)
}

/// Whether a route's message is about a route that edge made.
pub(crate) fn is_ours(payload: &[u8]) -> bool {
    payload.get(5) == Some(&PROTOCOL)
}

fn dump(socket: &mut Socket, family: u8) -> Result<Vec<Listed>, Error> {
    let mut header = [0; 12];
    header[0] = family;
    let routes = socket.dump("list routes", Message::new(libc::RTM_GETROUTE, 0, &header))?;
    Ok(routes.iter().filter_map(|(_, payload)| parse(payload)).collect())
}

/// The routes that edge made, in both families.
pub(crate) fn ours(socket: &mut Socket) -> Result<Vec<Route>, Error> {
    let all = dump(socket, AF_UNSPEC)?;
    Ok(all.into_iter().filter(|listed| listed.protocol == PROTOCOL).map(|listed| listed.route).collect())
}

/// The default route of a family with the lowest metric, if there is one.
pub(crate) fn default(socket: &mut Socket, ipv4: bool) -> Result<Option<Route>, Error> {
    let all = dump(socket, if ipv4 { libc::AF_INET } else { libc::AF_INET6 } as u8)?;
    let defaults = all.into_iter().filter(|listed| listed.route.destination.prefix() == 0);
    Ok(defaults.min_by_key(|listed| listed.metric).map(|listed| listed.route))
}

/// How the kernel would send a packet to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The address is this node's own.
    Local,
    /// The address is on a link of this node, with that index.
    OnLink(u32),
    /// By a router.
    Routed,
    /// Not at all.
    None,
}

/// Asks the kernel how it would send a packet to an address.
pub(crate) fn lookup(socket: &mut Socket, address: IpAddr) -> Result<Way, Error> {
    let mut header = [0; 12];
    header[..2].copy_from_slice(&[family(address), crate::link::host_prefix(address)]);
    let mut message = Message::new(libc::RTM_GETROUTE, 0, &header);
    message.bytes(libc::RTA_DST, &octets(address));
    let operation = format!("look up route to {address}");
    let payload = match socket.get(&operation, message) {
        Ok((_, payload)) => payload,
        Err(error)
            if matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)) =>
        {
            return Ok(Way::None);
        }
        Err(error) => return Err(error),
    };
    let body = payload.get(12..).ok_or(Error::Malformed { operation })?;
    Ok(match payload[7] {
        libc::RTN_LOCAL => Way::Local,
        libc::RTN_UNICAST if attribute(body, libc::RTA_GATEWAY).is_some() || attribute(body, RTA_VIA).is_some() => {
            Way::Routed
        }
        libc::RTN_UNICAST => attribute(body, libc::RTA_OIF).and_then(ne_u32).map_or(Way::None, Way::OnLink),
        _ => Way::None,
    })
}

/// An entry of a link's tables that never ages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Neighbour {
    /// The hardware address of an IP address on the link.
    Hardware { index: u32, address: IpAddr, hardware: [u8; 6] },
    /// Where a VXLAN link sends the frames to a hardware address (its forwarding database).
    Forward { index: u32, hardware: [u8; 6], to: IpAddr },
}

impl Neighbour {
    /// What the entry is about: of two entries with the same key the newer takes the older's place.
    pub(crate) fn key(&self) -> (u32, u8, Vec<u8>) {
        match self {
            Self::Hardware { index, address, .. } => (*index, family(*address), octets(*address)),
            Self::Forward { index, hardware, .. } => (*index, AF_BRIDGE, hardware.to_vec()),
        }
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let (index, family, table, hardware, address) = match self {
            Self::Hardware { index, address, hardware } => (index, family(*address), 0, hardware, address),
            Self::Forward { index, hardware, to } => (index, AF_BRIDGE, NTF_SELF, hardware, to),
        };
        // `struct ndmsg`: family, padding, index, state, flags, type
        let mut header = [0; 12];
        header[0] = family;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        header[10] = table;
        let mut message = Message::new(kind, flags, &header);
        message.bytes(NDA_DST, &octets(*address)).bytes(NDA_LLADDR, hardware);
        message
    }

    fn name(&self) -> String {
        match self {
            Self::Hardware { address, .. } => format!("neighbour {address}"),
            Self::Forward { to, .. } => format!("forwarding entry to {to}"),
        }
    }

    /// Makes sure that the entry is there, in the place of any other about the same.
    pub(crate) fn ensure(&self, socket: &mut Socket) -> Result<(), Error> {
        socket.request(&format!("add {}", self.name()), self.message(libc::RTM_NEWNEIGH, REPLACE))
    }

    /// Removes the entry; one that is not there is fine.
    pub(crate) fn delete(&self, socket: &mut Socket) -> Result<(), Error> {
        match socket.request(&format!("delete {}", self.name()), self.message(libc::RTM_DELNEIGH, 0)) {
            Err(err) if err.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let body = payload.get(12..)?;
        let state = u16::from_ne_bytes([payload[8], payload[9]]);
        if state & NUD_PERMANENT == 0 {
            return None;
        }
        let index = ne_u32(&payload[4..8])?;
        let hardware = attribute(body, NDA_LLADDR)?.try_into().ok()?;
        let address = attribute(body, NDA_DST).and_then(parse_ip)?;
        Some(if payload[0] == AF_BRIDGE {
            Self::Forward { index, hardware, to: address }
        } else {
            Self::Hardware { index, address, hardware }
        })
    }
}

/// The entries of some links that never age.
pub(crate) fn neighbours(socket: &mut Socket, indexes: &[u32]) -> Result<Vec<Neighbour>, Error> {
    let mut all = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8, AF_BRIDGE] {
        let mut header = [0; 12];
        header[0] = family;
        let dumped = socket.dump("list neighbours", Message::new(libc::RTM_GETNEIGH, 0, &header))?;
        let entries = dumped.iter().filter_map(|(_, payload)| Neighbour::parse(payload));
        all.extend(entries.filter(|entry| indexes.contains(&entry.key().0)));
    }
    Ok(all)
}
