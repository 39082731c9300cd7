//! The network of a test: a namespace for the node, and a veth pair to the host, which plays the outside.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;

pub(crate) struct TestNetwork {
    pub(crate) name: String,
    pub(crate) inside: Ipv4Addr,
}

impl TestNetwork {
    /// Takes the first free number and makes its namespace and links.
    pub(crate) fn create() -> Self {
        for n in 1..=250u8 {
            let name = format!("edge-e2e-{n}");
            // only one process can make a namespace of this name: that is the lock
            let made = Command::new("ip").args(["netns", "add", &name]).output().expect("ip runs");
            if !made.status.success() {
                continue;
            }
            let host = host_end(&name);
            // a namespace that processes still hold keeps its links for a moment after its name is gone
            let _ = Command::new("ip").args(["link", "del", &host]).output();
            ip(&["link", "add", &host, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            ip(&["addr", "add", &format!("10.254.{n}.1/30"), "dev", &host]);
            ip(&["link", "set", &host, "up"]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
            ip(&["-n", &name, "addr", "add", &format!("10.254.{n}.2/30"), "dev", "eth0"]);
            ip(&["-n", &name, "link", "set", "eth0", "up"]);
            ip(&["-n", &name, "route", "add", "default", "via", &format!("10.254.{n}.1")]);
            return Self { name, inside: Ipv4Addr::new(10, 254, n, 2) };
        }
        panic!("no free network namespace name: 250 clusters run already");
    }

    /// The namespace's file, to enter it.
    pub(crate) fn open(&self) -> File {
        File::open(format!("/run/netns/{}", self.name)).expect("the namespace exists")
    }
}

/// The host's end of the link to a namespace.
pub(crate) fn host_end(name: &str) -> String {
    format!("eev{}", name.trim_start_matches("edge-e2e-"))
}

fn ip(args: &[&str]) {
    let out = Command::new("ip").args(args).output().expect("ip runs");
    assert!(out.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
}
