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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lease {
    /// The primary one first; never empty.
    pub(crate) addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) host_ports: Vec<HostPort>,
}

/// A network that addresses are given from.
#[derive(Debug)]
struct Pool {
    cidr: Cidr,
    /// Offset after which the search for a free address starts: a freed address rests as long as possible.
    last: u32,
}

/// The leases of a node.
#[derive(Debug)]
pub(crate) struct Leases {
    dir: PathBuf,
    pools: Vec<Pool>,
    by_pod: BTreeMap<String, Lease>,
    used: BTreeSet<IpAddr>,
    /// What pods had that gave it back: one that is made anew (after the machine's start, say) gets the same, where nobody
    /// else has it, since others may know it by that.
    had: BTreeMap<String, Vec<IpAddr>>,
}

/// So many of those are remembered.
const MAX_HAD: usize = 256;
/// First offset given to pods: 0 names the network, 1 is the gateway.
const FIRST: u32 = 2;

impl Pool {
    fn free_address(&self, used: &BTreeSet<IpAddr>) -> Result<(u32, IpAddr), Error> {
        // The last address of IPv4 is the broadcast address.
        let end = self.cidr.size().saturating_sub(u32::from(self.cidr.base().is_ipv4()));
        let mut candidates = (self.last + 1..end).chain(FIRST..(self.last + 1).min(end));
        let free = candidates.find(|offset| !used.contains(&self.cidr.nth(*offset)));
        free.map(|offset| (offset, self.cidr.nth(offset))).ok_or(Error::AddressesExhausted(self.cidr))
    }
}

impl Leases {
    /// Reads the leases in `dir` (created when missing). `recover` is asked for the addresses of a pod whose file is damaged
    /// or holds an address that is no pod's; a pod it knows none for loses its lease. `cidrs` holds the networks of this
    /// node's pods, one of a family; empty while they are not known.
    pub(crate) fn open(dir: PathBuf, cidrs: &[Cidr], recover: impl Fn(&str) -> Vec<IpAddr>) -> Result<Self, Error> {
        edge_sys::fsutil::create_dir_all_mode(&dir, 0o755).map_err(|source| Error::file(&dir, source))?;
        let mut leases =
            Self { dir, pools: Vec::new(), by_pod: BTreeMap::new(), used: BTreeSet::new(), had: BTreeMap::new() };
        leases.set_networks(cidrs);
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

    /// New addresses come from these networks from now on; leases of others stay as they are.
    pub(crate) fn set_networks(&mut self, cidrs: &[Cidr]) {
        let known = |cidr: &Cidr| self.pools.iter().find(|pool| pool.cidr == *cidr).map_or(FIRST - 1, |pool| pool.last);
        self.pools = cidrs.iter().map(|cidr| Pool { cidr: *cidr, last: known(cidr) }).collect();
    }

    fn load(&mut self, uid: &str, recover: impl Fn(&str) -> Vec<IpAddr>) -> Result<(), Error> {
        let path = self.dir.join(uid);
        let bytes = fs::read(&path).map_err(|source| Error::file(&path, source))?;
        let read = serde_json::from_slice::<Lease>(&bytes).ok();
        let usable = |lease: &Lease| {
            let free = |address: &IpAddr| self.is_pod_address(*address) && !self.used.contains(address);
            !lease.addresses.is_empty() && lease.addresses.iter().all(free)
        };
        if let Some(lease) = read.filter(usable) {
            self.remember(uid, lease);
            return Ok(());
        }
        let lease = Some(Lease { addresses: recover(uid), host_ports: Vec::new() }).filter(usable);
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
        self.used.extend(&lease.addresses);
        self.by_pod.insert(uid.to_owned(), lease);
    }

    /// Whether a pod may have the address: what names a network and the gateway's own are nobody's.
    fn is_pod_address(&self, address: IpAddr) -> bool {
        let reserved = |pool: &Pool| address == pool.cidr.nth(0) || address == pool.cidr.nth(1);
        !address.is_loopback()
            && !address.is_unspecified()
            && !address.is_multicast()
            && !self.pools.iter().any(reserved)
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
        let addresses = match self.by_pod.get(uid) {
            Some(lease) if lease.host_ports == host_ports => return Ok(lease.clone()),
            Some(lease) => lease.addresses.clone(),
            None => match self.had_before(uid) {
                Some(addresses) => addresses,
                None => self.free_addresses()?,
            },
        };
        let lease = Lease { addresses, host_ports: host_ports.to_vec() };
        self.write(uid, &lease)?;
        self.remember(uid, lease.clone());
        Ok(lease)
    }

    /// The addresses that a pod had, if it can have them again.
    fn had_before(&mut self, uid: &str) -> Option<Vec<IpAddr>> {
        let had = self.had.remove(uid)?;
        let fits = had.len() == self.pools.len()
            && had.iter().zip(&self.pools).all(|(ip, pool)| pool.cidr.contains(*ip) && !self.used.contains(ip));
        fits.then_some(had)
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

    /// A free address of every network.
    fn free_addresses(&mut self) -> Result<Vec<IpAddr>, Error> {
        if self.pools.is_empty() {
            return Err(Error::NoPodNetwork);
        }
        let (pools, used) = (&self.pools, &self.used);
        let found: Vec<(u32, IpAddr)> = pools.iter().map(|pool| pool.free_address(used)).collect::<Result<_, _>>()?;
        // nothing is taken from one network when another is exhausted
        for (pool, (offset, _)) in self.pools.iter_mut().zip(&found) {
            pool.last = *offset;
        }
        Ok(found.into_iter().map(|(_, address)| address).collect())
    }

    /// Gives the addresses of a pod back; a pod without a lease is fine.
    pub(crate) fn release(&mut self, uid: &str) -> Result<(), Error> {
        let path = self.dir.join(uid);
        edge_sys::fsutil::remove_file_if_exists(&path).map_err(|source| Error::file(path, source))?;
        if let Some(lease) = self.by_pod.remove(uid) {
            lease.addresses.iter().for_each(|address| {
                self.used.remove(address);
            });
            if self.had.len() >= MAX_HAD {
                self.had.clear();
            }
            self.had.insert(uid.to_owned(), lease.addresses);
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
        let cidrs: Vec<Cidr> = cidr.split(',').map(|text| text.parse().unwrap()).collect();
        Leases::open(dir.join("leases"), &cidrs, |_| Vec::new()).unwrap()
    }

    fn first(lease: &Lease) -> IpAddr {
        lease.addresses[0]
    }

    fn port(host_ip: Option<&str>, host_port: u16, protocol: Protocol) -> HostPort {
        HostPort { host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port, container_port: 80, protocol }
    }

    #[test]
    fn every_address_once_and_then_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/29");
        let given: BTreeSet<_> = (0..5).map(|i| first(&leases.acquire(&format!("p{i}"), &[]).unwrap())).collect();
        let expected: BTreeSet<IpAddr> = (2..7).map(|i| IpAddr::from([10, 42, 0, i])).collect();
        assert_eq!(given, expected, "neither network, gateway nor broadcast address");
        assert!(matches!(leases.acquire("p6", &[]), Err(Error::AddressesExhausted(_))));
        assert_eq!(leases.acquire("p3", &[]).unwrap(), leases.all()["p3"], "asking again gives the same");
        let freed = first(&leases.all()["p3"]);
        leases.release("p3").unwrap();
        leases.release("p3").unwrap();
        assert_eq!(first(&leases.acquire("p6", &[]).unwrap()), freed);
    }

    #[test]
    fn a_freed_address_rests() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/24");
        let before = leases.acquire("a", &[]).unwrap();
        leases.release("a").unwrap();
        assert_ne!(leases.acquire("b", &[]).unwrap(), before);
    }

    #[test]
    fn a_pod_that_comes_back_gets_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/29");
        let before: Vec<Lease> = ["a", "b"].iter().map(|p| leases.acquire(p, &[]).unwrap()).collect();
        for pod in ["a", "b"] {
            leases.release(pod).unwrap();
        }
        assert_eq!(leases.acquire("b", &[]).unwrap(), before[1]);
        // others take what is left, one of them a's
        let others: BTreeSet<IpAddr> = (0..4).map(|i| first(&leases.acquire(&format!("o{i}"), &[]).unwrap())).collect();
        assert!(others.contains(&first(&before[0])));
        assert!(matches!(leases.acquire("a", &[]), Err(Error::AddressesExhausted(_))));
        for i in 0..2 * MAX_HAD {
            leases.release("b").unwrap();
            leases.acquire("b", &[]).unwrap();
            leases.had.insert(format!("x{i}"), Vec::new());
            leases.release("b").unwrap();
            assert!(leases.had.len() <= MAX_HAD + 1);
        }
    }

    #[test]
    fn both_families_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/24,fd42::/126");
        let ips = |lease: &Lease| lease.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(ips(&leases.acquire("a", &[]).unwrap()), ["10.42.0.2", "fd42::2"]);
        assert_eq!(ips(&leases.acquire("b", &[]).unwrap()), ["10.42.0.3", "fd42::3"]);
        assert!(matches!(leases.acquire("c", &[]), Err(Error::AddressesExhausted(cidr)) if !cidr.base().is_ipv4()));
        leases.release("b").unwrap();
        assert_eq!(ips(&leases.acquire("c", &[]).unwrap()), ["10.42.0.4", "fd42::3"]);
        assert_eq!(open(dir.path(), "10.42.0.0/24").all(), leases.all(), "whatever the networks are now");
    }

    #[test]
    fn another_network_leaves_leases_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path(), "10.42.0.0/24");
        let a = leases.acquire("a", &[]).unwrap();
        leases.set_networks(&["10.42.7.0/24".parse().unwrap()]);
        assert_eq!(leases.acquire("a", &[]).unwrap(), a);
        assert_eq!(first(&leases.acquire("b", &[]).unwrap()), IpAddr::from([10, 42, 7, 2]));
        leases.set_networks(&[]);
        assert!(matches!(leases.acquire("c", &[]), Err(Error::NoPodNetwork)));
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
        fs::write(files.join("e"), br#"{"addresses":["10.42.0.1"]}"#).unwrap();
        fs::write(files.join(".tmp-1"), b"x").unwrap();
        let truth = |uid: &str| if uid == "a" { a.addresses.clone() } else { Vec::new() };
        let again = Leases::open(files.clone(), &["10.42.0.0/24".parse().unwrap()], truth).unwrap();
        assert_eq!(again.all().get("a"), Some(&a), "recovered from the namespace");
        assert_eq!(again.all().get("b"), None);
        assert_eq!(again.all().len(), 2, "one of the two claims to the same address wins: {:?}", again.all());
        assert!(!files.join("b").exists() && !files.join("e").exists() && !files.join(".tmp-1").exists());
        let mut again = again;
        let mut seen: BTreeSet<_> = again.all().values().map(first).collect();
        for i in 0..10 {
            assert!(seen.insert(first(&again.acquire(&format!("n{i}"), &[]).unwrap())));
        }
        assert!(seen.contains(&first(&b)), "the lost lease's address is free again");
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
