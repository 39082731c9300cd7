//! The network of a test: a namespace for each node, joined by a bridge of the host, which plays the outside.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;

pub(crate) struct TestNetwork {
    pub(crate) name: String,
    pub(crate) inside: Ipv4Addr,
    number: u8,
}

impl TestNetwork {
    /// Takes the first free number and makes its bridge, and the namespace of the server.
    pub(crate) fn create() -> Self {
        for number in 1..=250u8 {
            let name = format!("edge-e2e-{number}");
            // only one process can make a namespace of this name: that is the lock
            let made = Command::new("ip").args(["netns", "add", &name]).output().expect("ip runs");
            if !made.status.success() {
                continue;
            }
            let bridge = host_end(&name);
            let _ = Command::new("ip").args(["link", "del", &bridge]).output();
            ip(&["link", "add", &bridge, "type", "bridge"]);
            ip(&["addr", "add", &format!("10.254.{number}.1/24"), "dev", &bridge]);
            ip(&["link", "set", &bridge, "up"]);
            let network = Self { name: name.clone(), inside: Ipv4Addr::new(10, 254, number, 2), number };
            network.plug(&name, network.inside);
            return network;
        }
        panic!("no free network namespace name: 250 clusters run already");
    }

    /// Makes the namespace of a further node; gives its name.
    pub(crate) fn add(&self, node: u8) -> String {
        let name = format!("{}-{node}", self.name);
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
        ip(&["netns", "add", &name]);
        self.plug(&name, self.address(10 + node));
        name
    }

    /// An address of the network.
    pub(crate) fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 254, self.number, last)
    }

    /// The same of IPv6, for nodes that [`Self::add_ipv6`] was asked for.
    pub(crate) fn address6(&self, last: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x254, self.number.into(), 0, 0, 0, 0, last.into())
    }

    /// Gives a node, and the outside, an address of IPv6.
    pub(crate) fn add_ipv6(&self, namespace: &str, last: u8) {
        let [outside, node] = [1, last].map(|last| format!("{}/64", self.address6(last)));
        ip(&["-6", "addr", "replace", &outside, "dev", &host_end(&self.name), "nodad"]);
        ip(&["-n", namespace, "-6", "addr", "replace", &node, "dev", "eth0", "nodad"]);
    }

    /// Connects a namespace with the bridge.
    fn plug(&self, namespace: &str, address: Ipv4Addr) {
        let port = port(namespace);
        // a namespace that processes still hold keeps its links for a moment after its name is gone
        let _ = Command::new("ip").args(["link", "del", &port]).output();
        ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", namespace]);
        ip(&["link", "set", &port, "master", &host_end(&self.name), "up"]);
        ip(&["-n", namespace, "link", "set", "lo", "up"]);
        ip(&["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", namespace, "link", "set", "eth0", "up"]);
        ip(&["-n", namespace, "route", "add", "default", "via", &self.address(1).to_string()]);
    }

    /// The server's namespace, to enter it.
    pub(crate) fn open(&self) -> File {
        open(&self.name)
    }
}

/// A namespace's file, to enter it.
pub(crate) fn open(namespace: &str) -> File {
    File::open(format!("/run/netns/{namespace}")).expect("the namespace exists")
}

/// Whether there is such a namespace.
pub(crate) fn exists(namespace: &str) -> bool {
    std::path::Path::new("/run/netns").join(namespace).exists()
}

/// The bridge of a test's network.
pub(crate) fn host_end(name: &str) -> String {
    format!("eev{}", name.trim_start_matches("edge-e2e-"))
}

/// The host's end of the link to a namespace.
pub(crate) fn port(namespace: &str) -> String {
    format!("eep{}", namespace.trim_start_matches("edge-e2e-"))
}

/// Runs a closure on a thread inside a namespace. What it opens there (sockets, processes) stays there.
pub(crate) fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|s| {
        let run = s.spawn(|| {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs ip(8), which must succeed.
pub(crate) fn ip(args: &[&str]) {
    let out = Command::new("ip").args(args).output().expect("ip runs");
    assert!(out.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
}
