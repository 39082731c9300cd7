//! Which address the node is known by.

use std::net::IpAddr;

use crate::Error;
use crate::link::{self, Address, DefaultRoute, Link};
use crate::netlink::Socket;
use crate::node::{BRIDGE, DNS_LINK};

/// The address other machines reach this node by: that of the default route's interface, else the first global address of
/// any interface, else `fallback` (the bridge's gateway address: a machine without any network). IPv4 only today.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn node_address(fallback: IpAddr) -> Result<IpAddr, Error> {
    let mut socket = Socket::route()?;
    let addresses = link::addresses(&mut socket)?;
    let links = link::list(&mut socket)?;
    let route = link::default_route(&mut socket)?;
    Ok(choose(&addresses, &links, route).unwrap_or(fallback))
}

fn choose(addresses: &[Address], links: &[Link], route: Option<DefaultRoute>) -> Option<IpAddr> {
    // A loopback interface may carry a global address (anycast, BGP), which is as good as any other.
    let own = |index: u32| links.iter().any(|l| l.index == index && (l.name == BRIDGE || l.name == DNS_LINK));
    let usable = |a: &&Address| a.address.is_ipv4() && a.global && !a.address.is_loopback() && !own(a.index);
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

    fn address(index: u32, address: &str, global: bool) -> Address {
        Address { index, address: address.parse().unwrap(), prefix: 24, global }
    }

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.into(), kind: None, mtu: 1500, master: None }
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
            Some(DefaultRoute { index: 3, source: source.map(|s| s.parse().unwrap()), metric: 0 })
        };
        assert_eq!(choose(&addresses, &links, route(None)), Some("198.51.100.7".parse().unwrap()));
        assert_eq!(choose(&addresses, &links, route(Some("192.0.2.5"))), Some("192.0.2.5".parse().unwrap()));
        assert_eq!(choose(&addresses, &links, route(Some("203.0.113.1"))), Some("198.51.100.7".parse().unwrap()));
        assert_eq!(choose(&addresses, &links, None), Some("192.0.2.5".parse().unwrap()));
        addresses.truncate(4);
        assert_eq!(choose(&addresses, &links, None), None, "own links do not count");
    }
}
