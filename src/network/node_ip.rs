//! Which addresses the node is known by.

use std::net::IpAddr;

use crate::Error;
use crate::link::{self, Address, Link};
use crate::netlink::Socket;
use crate::node::is_own_link;
use crate::route::{self, Route};

/// The addresses other machines reach this node by, one of each family that is asked for (`true` is IPv4) and that the
/// node has: that of the default route's interface, else the first global address of any interface. Where it has none of
/// these families, one of the other; empty on a machine without any network.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn node_addresses(families: &[bool]) -> Result<Vec<IpAddr>, Error> {
    let mut socket = Socket::route()?;
    let addresses = link::addresses(&mut socket)?;
    let links = link::list(&mut socket)?;
    let mut find = |ipv4: bool| Ok::<_, Error>(choose(ipv4, &addresses, &links, route::default(&mut socket, ipv4)?));
    let mut found = Vec::new();
    for ipv4 in families {
        found.extend(find(*ipv4)?);
    }
    for other in [true, false] {
        if found.is_empty() && !families.contains(&other) {
            found.extend(find(other)?);
        }
    }
    Ok(found)
}

fn choose(ipv4: bool, addresses: &[Address], links: &[Link], route: Option<Route>) -> Option<IpAddr> {
    // A loopback interface may carry a global address (anycast, BGP), which is as good as any other.
    let own = |index: u32| links.iter().any(|l| l.index == index && is_own_link(&l.name));
    let usable = |a: &&Address| a.address.is_ipv4() == ipv4 && a.global && !a.address.is_loopback() && !own(a.index);
    let by_route = route.and_then(|route| {
        let on_link = || addresses.iter().filter(usable).find(|a| a.index == route.index).map(|a| a.address);
        route.source.filter(|source| addresses.iter().any(|a| a.address == *source)).or_else(on_link)
    });
    by_route.or_else(|| addresses.iter().find(usable).map(|a| a.address))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::node::BRIDGE;

    fn address(index: u32, address: &str, global: bool) -> Address {
        Address { index, address: address.parse().unwrap(), prefix: 24, global }
    }

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: None,
            mtu: 1500,
            master: None,
            hardware: None,
            up: true,
            data: Vec::new(),
        }
    }

    #[test]
    fn prefers_the_default_route_then_any_global_address() {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "wlan0"), link(4, BRIDGE)];
        let mut addresses = vec![
            address(1, "127.0.0.1", false),
            address(4, "10.42.0.1", true),
            address(2, "169.254.3.4", false),
            address(2, "fe80::1", false),
            address(2, "192.0.2.5", true),
            address(3, "198.51.100.7", true),
        ];
        let route = |source: Option<&str>| {
            Some(Route {
                source: source.map(|s| s.parse().unwrap()),
                ..Route::on_link("0.0.0.0/0".parse().unwrap(), 3)
            })
        };
        assert_eq!(choose(true, &addresses, &links, route(None)), Some("198.51.100.7".parse().unwrap()));
        assert_eq!(choose(true, &addresses, &links, route(Some("192.0.2.5"))), Some("192.0.2.5".parse().unwrap()));
        assert_eq!(choose(true, &addresses, &links, route(Some("203.0.113.1"))), Some("198.51.100.7".parse().unwrap()));
        assert_eq!(choose(true, &addresses, &links, None), Some("192.0.2.5".parse().unwrap()));
        assert_eq!(choose(false, &addresses, &links, None), None);
        addresses.push(address(3, "2001:db8::7", true));
        assert_eq!(choose(false, &addresses, &links, None), Some("2001:db8::7".parse().unwrap()));
        addresses.truncate(4);
        assert_eq!(choose(true, &addresses, &links, None), None, "own links do not count");
    }
}
