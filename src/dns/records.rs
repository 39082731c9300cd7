//! All records of the cluster's domain, in memory; pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use edge_client::{Change, Key, ResourceExt};
use hickory_proto::rr::rdata::{NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::service::{Endpoint, Entry, Port};

/// Seconds that clients may remember an answer.
pub(crate) const TTL: u32 = 5;
/// The version of the specification this room follows.
const VERSION: &str = "1.1.0";
/// Label of an EndpointSlice with the name of its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Sum of the weights of a service's SRV records.
const WEIGHT: usize = 100;

/// The records that answer a question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The answers; empty when the name exists but has no record of this type.
    pub answers: Vec<RData>,
    /// Addresses of names in the answers.
    pub additionals: Vec<(Name, RData)>,
}

/// What a name and type lead to.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// Not one of the cluster's names.
    Outside,
    /// The cluster's state is not known yet.
    NotReady,
    /// One of the cluster's names, but nothing has it.
    NoName,
    /// The name exists.
    Found(Found),
    /// The name stands for another one.
    Alias(Name),
}

impl Lookup {
    fn answers(answers: Vec<RData>) -> Self {
        Self::Found(Found { answers, additionals: Vec::new() })
    }

    /// The name exists without a record of the type.
    fn no_data() -> Self {
        Self::Found(Found::default())
    }

    fn exists(exists: bool) -> Self {
        if exists { Self::no_data() } else { Self::NoName }
    }
}

/// The records of a cluster.
#[derive(Debug)]
pub struct Records {
    zone: Name,
    /// The zone's labels in small letters.
    zone_labels: Vec<String>,
    dns_addresses: Vec<IpAddr>,
    complete: bool,
    namespaces: HashSet<String>,
    services: HashMap<Key, Arc<Service>>,
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    entries: HashMap<Key, Entry>,
    reverse: HashMap<IpAddr, BTreeSet<(Key, Name)>>,
}

fn labels_of(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect()
}

fn address_record(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    }
}

/// The records of the asked type among those of some addresses.
fn of_type(addresses: impl Iterator<Item = IpAddr>, kind: RecordType) -> Lookup {
    Lookup::answers(addresses.map(address_record).filter(|data| data.record_type() == kind).collect())
}

impl Records {
    /// The records of a cluster of which nothing is known yet. `dns_addresses` are those of its name server.
    pub fn new(zone: Name, dns_addresses: Vec<IpAddr>) -> Self {
        Self {
            zone_labels: labels_of(&zone),
            zone,
            dns_addresses,
            complete: false,
            namespaces: HashSet::new(),
            services: HashMap::new(),
            slices: HashMap::new(),
            entries: HashMap::new(),
            reverse: HashMap::new(),
        }
    }

    /// From now on a name that is not known does not exist.
    pub fn set_complete(&mut self) {
        self.complete = true;
    }

    /// Notes a namespace, or its end.
    pub fn namespace_changed(&mut self, name: &str, present: bool) {
        if present {
            self.namespaces.insert(name.to_owned());
        } else {
            self.namespaces.remove(name);
        }
    }

    /// Notes a change of a service.
    pub fn service_changed(&mut self, change: &Change<Service>) {
        let key = Key::of(change.object().as_ref());
        match change {
            Change::Applied { new, .. } => self.services.insert(key.clone(), new.clone()),
            Change::Deleted(_) => self.services.remove(&key),
        };
        self.compile(&key);
    }

    /// Notes a change of a slice.
    pub fn slice_changed(&mut self, change: &Change<EndpointSlice>) {
        let (old, new) = match change {
            Change::Applied { old, new } => (old.as_ref(), Some(new)),
            Change::Deleted(old) => (Some(old), None),
        };
        let service_of = |slice: &EndpointSlice| {
            let name = slice.labels().get(SERVICE_NAME)?;
            Some(Key::new(slice.namespace().unwrap_or_default(), name.clone()))
        };
        let mut changed = BTreeSet::new();
        if let Some((slice, key)) = old.and_then(|slice| Some((slice, service_of(slice)?))) {
            if let Some(slices) = self.slices.get_mut(&key) {
                slices.remove(&slice.name_any());
                if slices.is_empty() {
                    self.slices.remove(&key);
                }
            }
            changed.insert(key);
        }
        if let Some((slice, key)) = new.and_then(|slice| Some((slice, service_of(slice)?))) {
            self.slices.entry(key.clone()).or_default().insert(slice.name_any(), slice.clone());
            changed.insert(key);
        }
        for key in changed {
            self.compile(&key);
        }
    }

    fn compile(&mut self, key: &Key) {
        for (address, name) in self.entries.get(key).map(|entry| self.pointers(key, entry)).unwrap_or_default() {
            if let Some(names) = self.reverse.get_mut(&address) {
                names.remove(&(key.clone(), name));
                if names.is_empty() {
                    self.reverse.remove(&address);
                }
            }
        }
        self.entries.remove(key);
        let slices = self.slices.get(key).into_iter().flat_map(BTreeMap::values).map(AsRef::as_ref);
        let Some(entry) = self.services.get(key).and_then(|service| Entry::compile(service, slices)) else { return };
        for (address, name) in self.pointers(key, &entry) {
            self.reverse.entry(address).or_default().insert((key.clone(), name));
        }
        self.entries.insert(key.clone(), entry);
    }

    /// The names of a service's addresses.
    fn pointers(&self, key: &Key, entry: &Entry) -> Vec<(IpAddr, Name)> {
        match entry {
            Entry::Cluster { addresses, .. } => {
                addresses.iter().filter_map(|address| Some((*address, self.name(key, None)?))).collect()
            }
            Entry::Headless(endpoints) => {
                endpoints.iter().filter_map(|e| Some((e.address, self.name(key, Some(&e.label))?))).collect()
            }
            Entry::External(_) => Vec::new(),
        }
    }

    /// The name of a service or of one of its endpoints; `None` when that is too long for a name.
    fn name(&self, key: &Key, endpoint: Option<&str>) -> Option<Name> {
        let labels = endpoint.into_iter().chain([key.name.as_str(), key.namespace.as_str(), "svc"]);
        Name::from_labels(labels.map(str::as_bytes)).ok()?.append_domain(&self.zone).ok()
    }

    /// The zone's SOA record, which tells how long a "no" may be remembered, and its owner.
    pub fn start_of_authority(&self) -> (Name, RData) {
        let below = |labels: &[&str]| {
            let name = Name::from_labels(labels.iter().map(|label| label.as_bytes())).ok();
            name.and_then(|name| name.append_domain(&self.zone).ok()).unwrap_or_else(|| self.zone.clone())
        };
        let soa = SOA::new(below(&["ns", "dns"]), below(&["hostmaster"]), 1, 7200, 1800, 86_400, TTL);
        (self.zone.clone(), RData::SOA(soa))
    }

    /// What `name` leads to for a question of type `kind`. Letters' case does not matter.
    pub fn lookup(&self, name: &Name, kind: RecordType) -> Lookup {
        let labels = labels_of(name);
        let Some(relative) = labels.strip_suffix(self.zone_labels.as_slice()) else {
            return self.lookup_pointer(name, kind);
        };
        if !self.complete {
            return Lookup::NotReady;
        }
        let relative: Vec<&str> = relative.iter().map(String::as_str).collect();
        match relative.as_slice() {
            [] => self.lookup_apex(kind),
            ["dns-version"] if kind == RecordType::TXT => {
                Lookup::answers(vec![RData::TXT(TXT::new(vec![VERSION.to_owned()]))])
            }
            ["dns-version" | "dns" | "svc" | "pod"] => Lookup::no_data(),
            ["ns", "dns"] => of_type(self.dns_addresses.iter().copied(), kind),
            [namespace, "svc" | "pod"] => Lookup::exists(self.namespaces.contains(*namespace)),
            [pod, namespace, "pod"] => self.lookup_pod(pod, namespace, kind),
            [rest @ .., service, namespace, "svc"] => {
                let key = Key::new(*namespace, *service);
                match self.entries.get(&key) {
                    Some(entry) => self.lookup_service(&key, entry, rest, kind),
                    None => Lookup::NoName,
                }
            }
            _ => Lookup::NoName,
        }
    }

    fn lookup_apex(&self, kind: RecordType) -> Lookup {
        let (_, soa) = self.start_of_authority();
        match (kind, &soa) {
            (RecordType::SOA, _) => Lookup::answers(vec![soa]),
            (RecordType::NS, RData::SOA(data)) => Lookup::Found(Found {
                answers: vec![RData::NS(NS(data.mname.clone()))],
                additionals: self.dns_addresses.iter().map(|a| (data.mname.clone(), address_record(*a))).collect(),
            }),
            _ => Lookup::no_data(),
        }
    }

    /// `10-42-0-7.<namespace>.pod`: the address is in the name.
    fn lookup_pod(&self, pod: &str, namespace: &str, kind: RecordType) -> Lookup {
        let address = [".", ":"].iter().find_map(|separator| pod.replace('-', separator).parse::<IpAddr>().ok());
        match address.filter(|_| self.namespaces.contains(namespace)) {
            Some(address) => of_type([address].into_iter(), kind),
            None => Lookup::NoName,
        }
    }

    fn lookup_service(&self, key: &Key, entry: &Entry, rest: &[&str], kind: RecordType) -> Lookup {
        match (entry, rest) {
            (Entry::External(target), []) => Lookup::Alias(target.clone()),
            (Entry::External(_), _) => Lookup::NoName,
            (Entry::Cluster { addresses, .. }, []) => of_type(addresses.iter().copied(), kind),
            // The specification wants "no such name" for a headless service without endpoints.
            (Entry::Headless(endpoints), []) if endpoints.is_empty() => Lookup::NoName,
            (Entry::Headless(endpoints), []) => of_type(endpoints.iter().map(|e| e.address), kind),
            (_, [port, protocol]) if port.starts_with('_') && protocol.starts_with('_') => {
                self.lookup_port(key, entry, &port[1..], &protocol[1..], kind)
            }
            (_, [protocol]) if protocol.starts_with('_') => {
                Lookup::exists(ports_of(entry).any(|port| port.protocol == protocol[1..] && !port.name.is_empty()))
            }
            (Entry::Headless(endpoints), [label]) => {
                let mut same = endpoints.iter().filter(|endpoint| endpoint.label == *label).peekable();
                if same.peek().is_none() {
                    return Lookup::NoName;
                }
                of_type(same.map(|endpoint| endpoint.address), kind)
            }
            _ => Lookup::NoName,
        }
    }

    /// SRV records of a named port.
    fn lookup_port(&self, key: &Key, entry: &Entry, name: &str, protocol: &str, kind: RecordType) -> Lookup {
        let wanted = |port: &&Port| port.name == name && port.protocol == protocol && !name.is_empty();
        let mut targets: Vec<(Name, u16)> = Vec::new();
        let mut additionals = Vec::new();
        let mut target = |name: Option<Name>, port: u16, addresses: &[IpAddr]| {
            let Some(name) = name else { return };
            additionals.extend(addresses.iter().map(|address| (name.clone(), address_record(*address))));
            targets.push((name, port));
        };
        match entry {
            Entry::Cluster { addresses, ports } => {
                if let Some(port) = ports.iter().find(wanted) {
                    target(self.name(key, None), port.number, addresses);
                }
            }
            Entry::Headless(endpoints) => {
                for Endpoint { label, address, ports } in endpoints {
                    for port in ports.iter().filter(wanted) {
                        target(self.name(key, Some(label)), port.number, &[*address]);
                    }
                }
            }
            Entry::External(_) => {}
        }
        if targets.is_empty() {
            return Lookup::NoName;
        }
        if kind != RecordType::SRV {
            return Lookup::no_data();
        }
        // Endpoints with several addresses of the same host name are one target.
        targets.sort_unstable();
        targets.dedup();
        let weight = (WEIGHT / targets.len()).max(1) as u16;
        let answers = targets.into_iter().map(|(name, port)| RData::SRV(SRV::new(0, weight, port, name))).collect();
        Lookup::Found(Found { answers, additionals })
    }

    /// Names of the cluster's addresses; all other addresses are somebody else's.
    fn lookup_pointer(&self, name: &Name, kind: RecordType) -> Lookup {
        let Some(names) = name.parse_arpa_name().ok().filter(|net| net.prefix_len() == net.max_prefix_len()) else {
            return Lookup::Outside;
        };
        match self.reverse.get(&names.addr()) {
            None => Lookup::Outside,
            Some(_) if kind != RecordType::PTR => Lookup::no_data(),
            Some(names) => Lookup::answers(names.iter().map(|(_, name)| RData::PTR(PTR(name.clone()))).collect()),
        }
    }
}

fn ports_of(entry: &Entry) -> impl Iterator<Item = &Port> {
    let (own, endpoints) = match entry {
        Entry::Cluster { ports, .. } => (ports.as_slice(), &[][..]),
        Entry::Headless(endpoints) => (&[][..], endpoints.as_slice()),
        Entry::External(_) => (&[][..], &[][..]),
    };
    own.iter().chain(endpoints.iter().flat_map(|endpoint| &endpoint.ports))
}
