//! Pod addresses of this node: which pod has which, host-local.
//!
//! A lease is a file `<run>/leases/<uid>`, written atomically before the address is used and removed after the pod's
//! namespace is gone, so neither a crash nor a restart of edge gives an address away twice. The files need not survive a
//! power cut: the namespaces do not either.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Cidr, Error, Protocol};

/// A port of the node that leads to a port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// The address of the node; `None` is every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<Ipv4Addr>,
    /// The port on the node.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
    /// The protocol of both.
    pub protocol: Protocol,
}

impl HostPort {
    fn conflicts(&self, other: &Self) -> bool {
        let same_address = self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip;
        same_address && self.protocol == other.protocol && self.host_port == other.host_port
    }
}

/// What a pod has of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) host_ports: Vec<HostPort>,
}

/// The leases of a node.
#[derive(Debug)]
pub(crate) struct Leases {
    dir: PathBuf,
    cidr: Cidr,
    by_pod: BTreeMap<String, Lease>,
    used: BTreeSet<Ipv4Addr>,
    /// Offset in the network after which the search for a free address starts: a freed address rests as long as possible.
    last: u32,
}

/// First offset given to pods: 0 names the network, 1 is the gateway.
const FIRST: u32 = 2;

impl Leases {
    /// Reads the leases in `dir` (created when missing). `recover` is asked for the address of a pod whose file is damaged
    /// or holds an address of another network; a pod it knows none for loses its lease.
    pub(crate) fn open(dir: PathBuf, cidr: Cidr, recover: impl Fn(&str) -> Option<Ipv4Addr>) -> Result<Self, Error> {
        edge_sys::fsutil::create_dir_all_mode(&dir, 0o755).map_err(|source| Error::file(&dir, source))?;
        let mut leases = Self { dir, cidr, by_pod: BTreeMap::new(), used: BTreeSet::new(), last: FIRST - 1 };
        let entries = fs::read_dir(&leases.dir).map_err(|source| Error::file(&leases.dir, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| Error::file(&leases.dir, source))?;
            let Some(uid) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if validate_uid(&uid).is_err() {
                // A temporary file of a write that a crash interrupted.
                let _ = fs::remove_file(entry.path());
                continue;
            }
            leases.load(&uid, &recover)?;
        }
        Ok(leases)
    }

    fn load(&mut self, uid: &str, recover: impl Fn(&str) -> Option<Ipv4Addr>) -> Result<(), Error> {
        let path = self.dir.join(uid);
        let bytes = fs::read(&path).map_err(|source| Error::file(&path, source))?;
        let read = serde_json::from_slice::<Lease>(&bytes).ok();
        let usable = |lease: &Lease| self.is_pod_address(lease.address) && !self.used.contains(&lease.address);
        if let Some(lease) = read.filter(usable) {
            self.remember(uid, lease);
            return Ok(());
        }
        let lease = recover(uid).map(|address| Lease { address, host_ports: Vec::new() }).filter(usable);
        tracing::warn!(pod = uid, path = %path.display(), recovered = lease.is_some(), "unusable address lease");
        match lease {
            Some(lease) => {
                self.write(uid, &lease)?;
                self.remember(uid, lease);
                Ok(())
            }
            None => fs::remove_file(&path).map_err(|source| Error::file(path, source)),
        }
    }

    fn remember(&mut self, uid: &str, lease: Lease) {
        self.used.insert(lease.address);
        self.by_pod.insert(uid.to_owned(), lease);
    }

    fn is_pod_address(&self, address: Ipv4Addr) -> bool {
        let address = IpAddr::V4(address);
        self.cidr.contains(address) && address != self.cidr.nth(0) && address != self.cidr.nth(1)
    }

    fn write(&self, uid: &str, lease: &Lease) -> Result<(), Error> {
        let path = self.dir.join(uid);
        let text = serde_json::to_vec(lease).expect("invariant: a lease is plain data");
        edge_sys::fsutil::write_atomic_volatile(&path, &text, 0o600).map_err(|source| Error::file(path, source))
    }

    /// The lease of a pod; a new one when it has none. A pod that has one gets the given host ports instead of its old ones.
    pub(crate) fn acquire(&mut self, uid: &str, host_ports: &[HostPort]) -> Result<Lease, Error> {
        validate_uid(uid)?;
        self.check_host_ports(uid, host_ports)?;
        let address = match self.by_pod.get(uid) {
            Some(lease) if lease.host_ports == host_ports => return Ok(lease.clone()),
            Some(lease) => lease.address,
            None => self.free_address()?,
        };
        let lease = Lease { address, host_ports: host_ports.to_vec() };
        self.write(uid, &lease)?;
        self.remember(uid, lease.clone());
        Ok(lease)
    }

    fn check_host_ports(&self, uid: &str, host_ports: &[HostPort]) -> Result<(), Error> {
        for (owner, lease) in self.by_pod.iter().filter(|(owner, _)| *owner != uid) {
            for wanted in host_ports {
                if lease.host_ports.iter().any(|taken| taken.conflicts(wanted)) {
                    let owner = owner.clone();
                    return Err(Error::HostPortInUse { port: wanted.host_port, protocol: wanted.protocol, owner });
                }
            }
        }
        Ok(())
    }

    fn free_address(&mut self) -> Result<Ipv4Addr, Error> {
        // The last address is the broadcast address.
        let end = self.cidr.size().saturating_sub(1);
        let candidates = (self.last + 1..end).chain(FIRST..(self.last + 1).min(end));
        for offset in candidates {
            let IpAddr::V4(address) = self.cidr.nth(offset) else { break };
            if !self.used.contains(&address) {
                self.last = offset;
                return Ok(address);
            }
        }
        Err(Error::AddressesExhausted(self.cidr))
    }

    /// Gives the address of a pod back; a pod without a lease is fine.
    pub(crate) fn release(&mut self, uid: &str) -> Result<(), Error> {
        let path = self.dir.join(uid);
        edge_sys::fsutil::remove_file_if_exists(&path).map_err(|source| Error::file(path, source))?;
        if let Some(lease) = self.by_pod.remove(uid) {
            self.used.remove(&lease.address);
        }
        Ok(())
    }

    /// All leases by pod UID.
    pub(crate) fn all(&self) -> &BTreeMap<String, Lease> {
        &self.by_pod
    }

    /// Removes the directory.
    pub(crate) fn remove_all(&mut self) -> io::Result<()> {
        self.by_pod.clear();
        self.used.clear();
        edge_sys::fsutil::remove_dir_all_if_exists(&self.dir)
    }
}

/// A pod UID becomes a file name: no separators, no hidden or temporary names, no endless ones.
pub(crate) fn validate_uid(uid: &str) -> Result<(), Error> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if uid.is_empty() || uid.len() > 128 || !uid.chars().all(valid) {
        return Err(Error::InvalidPodUid(uid.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn open(dir: &std::path::Path, cidr: &str) -> Leases {
        Leases::open(dir.join("leases"), cidr.parse().unwrap(), |_| None).unwrap()
    }

    fn port(host_ip: Option<&str>, host_port: u16, protocol: Protocol) -> HostPort {
        HostPort { host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port, container_port: 80, protocol }
    }

    #[test]
    fn every_address_once_and_then_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/29");
        let given: BTreeSet<_> = (0..5).map(|i| leases.acquire(&format!("p{i}"), &[]).unwrap().address).collect();
        let expected: BTreeSet<Ipv4Addr> = (2..7).map(|i| Ipv4Addr::new(10, 42, 0, i)).collect();
        assert_eq!(given, expected, "neither network, gateway nor broadcast address");
        assert!(matches!(leases.acquire("p6", &[]), Err(Error::AddressesExhausted(_))));
        assert_eq!(leases.acquire("p3", &[]).unwrap(), leases.all()["p3"], "asking again gives the same");
        let freed = leases.all()["p3"].address;
        leases.release("p3").unwrap();
        leases.release("p3").unwrap();
        assert_eq!(leases.acquire("p6", &[]).unwrap().address, freed);
    }

    #[test]
    fn a_freed_address_rests() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/24");
        let first = leases.acquire("a", &[]).unwrap().address;
        leases.release("a").unwrap();
        assert_ne!(leases.acquire("b", &[]).unwrap().address, first);
    }

    #[test]
    fn leases_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/24");
        let ports = [port(None, 8080, Protocol::Tcp), port(Some("192.0.2.1"), 53, Protocol::Udp)];
        let a = leases.acquire("a", &ports).unwrap();
        let again = open(dir.path(), "10.42.0.0/24");
        assert_eq!(again.all()["a"], a);
        assert_eq!(a.host_ports, ports);
    }

    #[test]
    fn damaged_files_never_give_an_address_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/24");
        for uid in ["a", "b", "c", "d"] {
            leases.acquire(uid, &[]).unwrap();
        }
        let (a, b) = (leases.all()["a"].clone(), leases.all()["b"].clone());
        let files = dir.path().join("leases");
        let whole = fs::read(files.join("a")).unwrap();
        fs::write(files.join("a"), &whole[..whole.len() / 2]).unwrap();
        fs::write(files.join("b"), b"").unwrap();
        // a copy of another pod's lease, and an address that belongs to nobody
        fs::copy(files.join("c"), files.join("d")).unwrap();
        fs::write(files.join("e"), br#"{"address":"10.42.0.1"}"#).unwrap();
        fs::write(files.join(".tmp-1"), b"x").unwrap();
        let truth = |uid: &str| (uid == "a").then_some(a.address);
        let again = Leases::open(files.clone(), "10.42.0.0/24".parse().unwrap(), truth).unwrap();
        assert_eq!(again.all().get("a"), Some(&a), "recovered from the namespace");
        assert_eq!(again.all().get("b"), None);
        assert_eq!(again.all().len(), 2, "one of the two claims to the same address wins: {:?}", again.all());
        assert!(!files.join("b").exists() && !files.join("e").exists() && !files.join(".tmp-1").exists());
        let mut again = again;
        let mut seen: BTreeSet<_> = again.all().values().map(|lease| lease.address).collect();
        for i in 0..10 {
            assert!(seen.insert(again.acquire(&format!("n{i}"), &[]).unwrap().address));
        }
        assert!(seen.contains(&b.address), "the lost lease's address is free again");
    }

    #[test]
    fn host_ports_belong_to_one_pod() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/24");
        leases.acquire("a", &[port(None, 80, Protocol::Tcp)]).unwrap();
        leases.acquire("b", &[port(None, 80, Protocol::Udp)]).unwrap();
        let error = leases.acquire("c", &[port(Some("192.0.2.1"), 80, Protocol::Tcp)]).unwrap_err();
        assert!(matches!(error, Error::HostPortInUse { port: 80, owner, .. } if owner == "a"));
        assert_eq!(leases.all().get("c"), None, "a refused pod holds no address");
        leases.acquire("a", &[port(Some("192.0.2.2"), 80, Protocol::Tcp)]).unwrap();
        leases.acquire("c", &[port(Some("192.0.2.1"), 80, Protocol::Tcp)]).unwrap();
    }

    #[test]
    fn uids_are_no_paths() {
        let long = "a".repeat(129);
        for bad in ["", ".", "..", "a/b", "a\0", "x.tmp", "ü", long.as_str()] {
            assert!(matches!(validate_uid(bad), Err(Error::InvalidPodUid(_))), "{bad:?}");
        }
        validate_uid("0b6d1a30-94b5-4bd2-8a3f-0f6f5c2f3a11").unwrap();
    }
}
