//! Ports of the node that a program here listens on, though services want them: the service gets the traffic, and the
//! administrator should know why the program gets none.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use edge_client::Key;
use edge_network::{Frontend, Protocol};

/// States of sockets that receive what is not for a connection: TCP's LISTEN, and UDP's only one.
const LISTENING: [&str; 2] = ["0A", "07"];

/// Frontends that have been looked at.
#[derive(Debug, Default)]
pub(crate) struct Occupied {
    known: BTreeSet<Frontend>,
}

impl Occupied {
    /// Warns of the new ones among frontends on addresses of the node that have changed; each comes with its service, or
    /// without when it has ended.
    pub(crate) fn warn(&mut self, changed: Vec<(Frontend, Option<Key>)>) {
        let mut new = Vec::new();
        for (frontend, service) in changed {
            match service {
                Some(service) if self.known.insert(frontend) => new.push((frontend, service)),
                Some(_) => {}
                None => drop(self.known.remove(&frontend)),
            }
        }
        if new.is_empty() {
            return;
        }
        let sockets = sockets();
        for (frontend, service) in new {
            if let Some(address) = taken(&frontend, &sockets) {
                tracing::warn!(
                    %service, port = frontend.port, protocol = %frontend.protocol, listens_on = %address,
                    "a program on this node listens on a port of a service: traffic to it goes to the service"
                );
            }
        }
    }
}

/// The address on which somebody listens for what a frontend gets.
fn taken(frontend: &Frontend, sockets: &BTreeSet<(Protocol, IpAddr, u16)>) -> Option<IpAddr> {
    let same =
        |(protocol, _, port): &&(Protocol, IpAddr, u16)| (*protocol, *port) == (frontend.protocol, frontend.port);
    let meant = |address: &IpAddr| match frontend.is_node() {
        // what listens on the loopback only is for this node alone
        true => !address.is_loopback() && (address.is_unspecified() || address.is_ipv4() == frontend.address.is_ipv4()),
        false => *address == frontend.address || address.is_unspecified() && is_own(frontend.address),
    };
    sockets.iter().filter(same).map(|(_, address, _)| *address).find(meant)
}

/// Whether an address is one of this machine.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The sockets of this network namespace that listen.
fn sockets() -> BTreeSet<(Protocol, IpAddr, u16)> {
    let mut all = BTreeSet::new();
    for (file, protocol) in
        [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)]
    {
        // without the family there is no file
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        all.extend(text.lines().filter_map(parse).map(|(address, port)| (protocol, address, port)));
    }
    all
}

/// The address and port of a line of `/proc/net/tcp` and the like, if that socket listens.
fn parse(line: &str) -> Option<(IpAddr, u16)> {
    let mut words = line.split_ascii_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    let state = words.nth(1)?;
    if !LISTENING.contains(&state) || !address.is_ascii() {
        return None;
    }
    // words in the machine's byte order
    let word = |i: usize| u32::from_str_radix(address.get(8 * i..8 * i + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (i, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(i)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use edge_network::Family;
    use std::net::TcpListener;

    #[test]
    fn lines_of_the_kernel() {
        let line = |local: &str, state: &str| {
            format!("   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 0 0 0 1")
        };
        assert_eq!(parse(&line("00000000:1F90", "0A")), Some((Ipv4Addr::UNSPECIFIED.into(), 8080)));
        assert_eq!(parse(&line("00000000:1F90", "01")), None, "a connection");
        assert_eq!(parse(&line("00000000:0035", "07")), Some((Ipv4Addr::UNSPECIFIED.into(), 53)));
        let six = "00000000000000000000000000000000:0050";
        assert_eq!(parse(&line(six, "0A")), Some((Ipv6Addr::UNSPECIFIED.into(), 80)));
        for bad in ["", "  sl  local_address rem_address   st", "0: zz:1 0 0A", "0: 0:0 0 0A", "0: €€:0 0 0A"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn who_listens_on_a_services_port_is_found() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = |address: IpAddr, protocol| taken(&Frontend { address, protocol, port }, &sockets());
        let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        assert_eq!(found(any, Protocol::Tcp), Some(any));
        assert_eq!(found(Ipv4Addr::LOCALHOST.into(), Protocol::Tcp), Some(any), "an address of this machine");
        assert_eq!(found(Ipv4Addr::new(192, 0, 2, 1).into(), Protocol::Tcp), None, "somebody else's address");
        assert_eq!(found(any, Protocol::Sctp), None);
        drop(listener);
        let local = TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert_eq!(taken(&Frontend::node(Family::V4, Protocol::Tcp, port), &sockets()), None, "for the node alone");
        drop(local);
    }
}
