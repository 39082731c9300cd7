//! Forgetting UDP connections whose endpoint is gone.
//!
//! The kernel translates addresses only for the first packet of a connection. UDP has no end of a connection: a client that
//! keeps sending would be led to a removed endpoint for ever, so the kernel's entries are deleted here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{Message, Socket, attribute, attribute_at, be_u16};
use crate::{Endpoint, Error, Family, Frontend, Protocol};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// UDP frontends whose known connections may lead to the wrong place, with the endpoints that are still right.
pub(crate) type Affected = BTreeMap<Frontend, BTreeSet<Endpoint>>;

/// Deletes the kernel's connections to the affected frontends that lead elsewhere than to their endpoints; gives how many.
pub(crate) fn forget(affected: &Affected) -> Result<usize, Error> {
    let mut deleted = 0;
    for family in Family::ALL {
        if affected.keys().any(|frontend| frontend.family() == family) {
            deleted += forget_family(family, affected)?;
        }
    }
    Ok(deleted)
}

fn header(family: Family) -> [u8; 4] {
    let number = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    [number as u8, 0, 0, 0]
}

fn forget_family(family: Family, affected: &Affected) -> Result<usize, Error> {
    let mut socket = Socket::netfilter()?;
    let entries = socket.dump("list connections", Message::new((SUBSYSTEM << 8) | GET, 0, &header(family)))?;
    let mut deleted = 0;
    for (_, payload) in &entries {
        let Some(body) = payload.get(4..) else { continue };
        if !is_stale(body, affected).unwrap_or(false) {
            continue;
        }
        match socket.request("delete connection", deletion(family, body)) {
            Ok(()) => deleted += 1,
            // It ended in the meantime.
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

/// Whether the connection belongs to an affected frontend but leads to none of its endpoints; `None` when it is not UDP.
fn is_stale(body: &[u8], affected: &Affected) -> Option<bool> {
    let protocol = attribute_at(body, &[CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_PROTO_NUM])?;
    if protocol != [Protocol::Udp.number()] {
        return None;
    }
    let address = |tuple, v4, v6| -> Option<IpAddr> {
        if let Some(bytes) = attribute_at(body, &[tuple, CTA_TUPLE_IP, v4]) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
        }
        let bytes = attribute_at(body, &[tuple, CTA_TUPLE_IP, v6])?;
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
    };
    let port = |tuple, which| attribute_at(body, &[tuple, CTA_TUPLE_PROTO, which]).and_then(be_u16);
    let destination = address(CTA_TUPLE_ORIG, CTA_IP_V4_DST, CTA_IP_V6_DST)?;
    let mut frontend =
        Frontend { address: destination, protocol: Protocol::Udp, port: port(CTA_TUPLE_ORIG, CTA_PROTO_DST_PORT)? };
    let right = affected.get(&frontend).or_else(|| {
        frontend.address = frontend.family().unspecified();
        affected.get(&frontend)
    })?;
    let leads_to = Endpoint {
        address: address(CTA_TUPLE_REPLY, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        port: port(CTA_TUPLE_REPLY, CTA_PROTO_SRC_PORT)?,
    };
    Some(!right.contains(&leads_to))
}

/// The request that deletes exactly the listed entry.
fn deletion(family: Family, body: &[u8]) -> Message {
    let mut message = Message::new((SUBSYSTEM << 8) | DELETE, 0, &header(family));
    for kind in [CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID] {
        let Some(value) = attribute(body, kind) else { continue };
        if kind == CTA_TUPLE_ORIG {
            message.nested(kind, |tuple| {
                tuple.raw(value);
            });
        } else {
            message.bytes(kind, value);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn malformed_entries_are_survived() {
        let all = Affected::from([(Frontend::node(Family::V4, Protocol::Udp, 0), BTreeSet::new())]);
        let mut state = 7_u64;
        for length in (0..96).cycle().take(20_000) {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ((state >> 33) as u8) & 0x1f
                })
                .collect();
            let _ = is_stale(&bytes, &all);
        }
    }
}
