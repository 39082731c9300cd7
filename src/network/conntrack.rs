//! Forgetting UDP connections whose endpoint is gone.
//!
//! The kernel translates addresses only for the first packet of a connection. UDP has no end of a connection: a client that
//! keeps sending would be led to a removed endpoint for ever, so the kernel's entries are deleted here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::netlink::{Message, Socket, attribute, attribute_at, be_u16};
use crate::{Endpoint, Error, Frontend, Protocol, ServiceTable};

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
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// UDP frontends whose known connections may lead to the wrong place, with the endpoints that are still right.
pub(crate) type Affected = BTreeMap<Frontend, BTreeSet<Endpoint>>;

/// The UDP frontends that lost an endpoint or got their first one between two states.
pub(crate) fn affected(before: &ServiceTable, after: &ServiceTable) -> Affected {
    let endpoints = |table: &ServiceTable, frontend: &Frontend| -> BTreeSet<Endpoint> {
        let route = table.get(frontend).into_iter();
        route.flat_map(|r| r.endpoints.iter().chain(r.internal_endpoints.iter().flatten())).copied().collect()
    };
    let udp = before
        .keys()
        .chain(after.keys())
        .filter(|frontend| frontend.protocol == Protocol::Udp)
        .collect::<BTreeSet<_>>();
    let mut affected = Affected::new();
    for frontend in udp {
        let now = endpoints(after, frontend);
        let old = endpoints(before, frontend);
        if !old.is_subset(&now) || old.is_empty() != now.is_empty() {
            affected.insert(*frontend, now);
        }
    }
    affected
}

/// Deletes the kernel's connections to the affected frontends that lead elsewhere than to their endpoints; gives how many.
pub(crate) fn forget(affected: &Affected) -> Result<usize, Error> {
    if affected.is_empty() {
        return Ok(0);
    }
    let mut socket = Socket::netfilter()?;
    let message = Message::new((SUBSYSTEM << 8) | GET, 0, &[libc::AF_INET as u8, 0, 0, 0]);
    let entries = socket.dump("list connections", message)?;
    let mut deleted = 0;
    for (_, payload) in &entries {
        let Some(body) = payload.get(4..) else { continue };
        if !is_stale(body, affected).unwrap_or(false) {
            continue;
        }
        match socket.request("delete connection", deletion(body)) {
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
    let address = |tuple, which| -> Option<Ipv4Addr> {
        let bytes = attribute_at(body, &[tuple, CTA_TUPLE_IP, which])?;
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
    };
    let port = |tuple, which| attribute_at(body, &[tuple, CTA_TUPLE_PROTO, which]).and_then(be_u16);
    let destination = address(CTA_TUPLE_ORIG, CTA_IP_V4_DST)?;
    let mut frontend = Frontend {
        address: Some(destination),
        protocol: Protocol::Udp,
        port: port(CTA_TUPLE_ORIG, CTA_PROTO_DST_PORT)?,
    };
    let right = affected.get(&frontend).or_else(|| {
        frontend.address = None;
        affected.get(&frontend)
    })?;
    let leads_to = Endpoint {
        address: address(CTA_TUPLE_REPLY, CTA_IP_V4_SRC)?,
        port: port(CTA_TUPLE_REPLY, CTA_PROTO_SRC_PORT)?,
    };
    Some(!right.contains(&leads_to))
}

/// The request that deletes exactly the listed entry.
fn deletion(body: &[u8]) -> Message {
    let mut message = Message::new((SUBSYSTEM << 8) | DELETE, 0, &[libc::AF_INET as u8, 0, 0, 0]);
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
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::Route;

    #[test]
    fn only_udp_frontends_that_lose_or_begin() {
        let endpoint = |n| Endpoint { address: Ipv4Addr::new(10, 42, 0, n), port: 53 };
        let frontend = |protocol, port| Frontend { address: None, protocol, port };
        let table = |udp: &[u8], tcp: &[u8]| {
            let route = |all: &[u8]| Route::to(all.iter().map(|n| endpoint(*n)).collect());
            ServiceTable::from([(frontend(Protocol::Udp, 1), route(udp)), (frontend(Protocol::Tcp, 1), route(tcp))])
        };
        let count = |before: &ServiceTable, after: &ServiceTable| affected(before, after).len();
        assert_eq!(count(&table(&[2], &[2]), &table(&[2, 3], &[])), 0, "one more endpoint leaves all as they are");
        assert_eq!(count(&table(&[2, 3], &[]), &table(&[3], &[])), 1);
        assert_eq!(count(&table(&[], &[]), &table(&[3], &[])), 1, "connections to nowhere");
        let gone = affected(&table(&[2], &[2]), &ServiceTable::new());
        assert_eq!(gone.into_iter().collect::<Vec<_>>(), [(frontend(Protocol::Udp, 1), BTreeSet::new())]);
        let begun = affected(&ServiceTable::new(), &table(&[2], &[2]));
        assert_eq!(begun.values().next().unwrap().len(), 1);
    }

    #[test]
    fn malformed_entries_are_survived() {
        let all = Affected::from([(Frontend { address: None, protocol: Protocol::Udp, port: 0 }, BTreeSet::new())]);
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
