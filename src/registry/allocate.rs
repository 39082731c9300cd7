//! Cluster addresses and node ports of services.
//!
//! In: services as they are written, and every change that the hub sees. Out: free addresses and ports. What is taken is
//! known from the stored services alone, so nothing leaks over a restart; what a write in progress has taken is held
//! beside it until that write is visible or has failed.

use crate::hub::Change;
use crate::stored::Stored;
use edge_api::Object;
use edge_api::field::{ErrorList, Path};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Prefix of the services' row.
const SERVICES: &str = "services/specs";
/// Prefix of the row of ServiceCIDRs, by which a cluster gets further networks.
const NETWORKS: &str = "servicecidrs";
/// Prefix of the row of IPAddresses, by which an administrator keeps addresses for himself.
const ADDRESSES: &str = "ipaddresses";
/// The lower part of the network is left to those who ask for a certain address (kube-apiserver's bounds).
const STATIC_LEAST: u128 = 16;
const STATIC_MOST: u128 = 256;

/// A network that services have their addresses in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    first: u128,
    last: u128,
    /// How many addresses are given out unasked.
    size: u128,
    is_ipv4: bool,
    prefix: u8,
}

/// What services take.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// The cluster's own: one of a family, the primary one first; never empty.
    networks: Vec<Network>,
    node_ports: RangeInclusive<u16>,
    random: RandomState,
    taken: Mutex<Taken>,
}

/// Each with how often: a stored service counts once, a write in progress once more.
#[derive(Debug, Default)]
struct Taken {
    addresses: HashMap<IpAddr, u32>,
    ports: HashMap<(Protocol, u16), u32>,
    /// Those of the ServiceCIDRs that are ready, by key.
    further: BTreeMap<Box<str>, Vec<Network>>,
    counter: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn of(port: &Value) -> Self {
        match port.get("protocol").and_then(Value::as_str) {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }
}

/// What a write in progress has taken; given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Claim<'a> {
    allocator: Option<&'a Allocator>,
    addresses: Vec<IpAddr>,
    ports: Vec<(Protocol, u16)>,
}

impl Claim<'_> {
    /// Whether nothing was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty()
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(allocator) = self.allocator {
            let mut taken = allocator.taken.lock();
            self.addresses.iter().for_each(|a| release(&mut taken.addresses, *a));
            self.ports.iter().for_each(|p| release(&mut taken.ports, *p));
        }
    }
}

fn release<K: std::hash::Hash + Eq>(map: &mut HashMap<K, u32>, key: K) {
    if let Some(count) = map.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            map.remove(&key);
        }
    }
}

/// Name of a family in the API.
fn family_name(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "IPv4" } else { "IPv6" }
}

impl Network {
    fn new(address: IpAddr, prefix_len: u8) -> Self {
        let (bits, is_ipv4) = match address {
            IpAddr::V4(a) => (u128::from(u32::from(a)), true),
            IpAddr::V6(a) => (u128::from(a), false),
        };
        let width: u32 = if is_ipv4 { 32 } else { 128 };
        let host_bits = width.saturating_sub(u32::from(prefix_len));
        let mask = 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        let first = bits & !mask;
        // more than 2^20 addresses are of no use to anybody
        Self { first, last: first | mask, size: 1u128 << host_bits.min(20), is_ipv4, prefix: prefix_len }
    }

    fn address(&self, offset: u128) -> IpAddr {
        let bits = self.first + offset;
        if self.is_ipv4 {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(bits).unwrap_or_default()))
        } else {
            IpAddr::V6(Ipv6Addr::from(bits))
        }
    }

    /// Whether services may have the address: in the network, but not its first or (IPv4: broadcast) last.
    fn contains(&self, address: IpAddr) -> bool {
        let bits = match (address, self.is_ipv4) {
            (IpAddr::V4(a), true) => u128::from(u32::from(a)),
            (IpAddr::V6(a), false) => u128::from(a),
            _ => return false,
        };
        bits > self.first && (bits < self.last || !self.is_ipv4 && bits == self.last)
    }

    fn free_address(&self, taken: &Taken, number: u64) -> Option<IpAddr> {
        let reserved = (self.size / 16).clamp(STATIC_LEAST, STATIC_MOST).min(self.size / 2);
        let dynamic = self.size.saturating_sub(reserved).max(1);
        let start = u128::from(number) % dynamic;
        // first above the part for certain addresses, then in it
        let upper = (0..dynamic).map(|i| reserved + (start + i) % dynamic);
        let mut offsets = upper.chain(1..reserved);
        offsets.find_map(|o| Some(self.address(o)).filter(|a| self.contains(*a) && !taken.addresses.contains_key(a)))
    }
}

impl Allocator {
    /// `networks` holds the first address and the length of the prefix of each, one of a family, the primary one first.
    pub(crate) fn new(networks: &[(IpAddr, u8)], node_ports: RangeInclusive<u16>) -> Self {
        Self {
            networks: networks.iter().map(|(address, prefix_len)| Network::new(*address, *prefix_len)).collect(),
            node_ports,
            random: RandomState::new(),
            taken: Mutex::default(),
        }
    }

    /// Takes a visible change of a service in.
    pub(crate) fn observe(&self, prefix: &str, change: &Change) {
        if prefix == ADDRESSES {
            return self.observe_address(change);
        }
        if prefix == NETWORKS {
            return self.observe_networks(change);
        }
        if prefix != SERVICES {
            return;
        }
        let mut taken = self.taken.lock();
        if let Some((addresses, ports)) = change.after.as_ref().and_then(taken_by) {
            addresses.into_iter().for_each(|a| *taken.addresses.entry(a).or_default() += 1);
            ports.into_iter().for_each(|p| *taken.ports.entry(p).or_default() += 1);
        }
        if let Some((addresses, ports)) = change.before.as_ref().and_then(taken_by) {
            addresses.into_iter().for_each(|a| release(&mut taken.addresses, a));
            ports.into_iter().for_each(|p| release(&mut taken.ports, p));
        }
    }

    fn observe_address(&self, change: &Change) {
        // their names are their addresses
        let address = |stored: &Stored| stored.key().rsplit('/').next()?.parse::<IpAddr>().ok();
        let (before, after) = (change.before.as_ref().and_then(address), change.after.as_ref().and_then(address));
        if before == after {
            return;
        }
        let mut taken = self.taken.lock();
        after.into_iter().for_each(|a| *taken.addresses.entry(a).or_default() += 1);
        before.into_iter().for_each(|a| release(&mut taken.addresses, a));
    }

    fn observe_networks(&self, change: &Change) {
        let mut taken = self.taken.lock();
        if let Some(before) = &change.before {
            taken.further.remove(before.key());
        }
        let Some(after) = &change.after else { return };
        match after.object() {
            Ok(object) => {
                taken.further.insert(after.key().into(), networks_of(&object));
            }
            Err(error) => tracing::error!(%error, network = after.key(), "stored ServiceCIDR cannot be read"),
        }
    }

    /// The networks of a family, the cluster's own first.
    fn of_family(&self, taken: &Taken, is_ipv4: bool) -> Vec<Network> {
        let all = self.networks.iter().chain(taken.further.values().flatten());
        let mut list: Vec<Network> = all.copied().filter(|network| network.is_ipv4 == is_ipv4).collect();
        list.dedup();
        list
    }

    /// Completes a service with addresses and node ports, and checks those that it names itself. `live` is the service
    /// as stored; what it has already, it may keep.
    ///
    /// # Errors
    /// Field errors when something is taken, out of range, or none is left.
    pub(crate) fn allocate(&self, service: &mut Object, live: Option<&Object>) -> Result<Claim<'_>, ErrorList> {
        let mut claim = Claim::default();
        claim.allocator = Some(self);
        let mut errors = ErrorList::new();
        let (own_addresses, own_ports) = live.map(of_service).unwrap_or_default();
        let mut taken = self.taken.lock();
        if service.str_at("/spec/type") != "ExternalName"
            && let Some(families) = self.families(service, &mut errors)
        {
            self.allocate_addresses(&mut taken, &mut claim, service, &families, (&own_addresses, &mut errors));
        }
        self.allocate_ports(&mut taken, &mut claim, service, &own_ports, &mut errors);
        drop(taken);
        if errors.is_empty() { Ok(claim) } else { Err(errors) }
    }

    /// The families of a service (whether each is IPv4), which are completed along with its policy; `None` for errors.
    fn families(&self, service: &mut Object, errors: &mut ErrorList) -> Option<Vec<bool>> {
        let path = Path::new("spec");
        let texts = |field: &str| -> Vec<String> {
            let list = service.pointer(&format!("/spec/{field}")).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let (named, addresses) = (texts("ipFamilies"), texts("clusterIPs"));
        let headless = service.str_at("/spec/clusterIP") == "None";
        let selects = service.pointer("/spec/selector").and_then(Value::as_object).is_some_and(|s| !s.is_empty());
        // Endpoints that somebody else makes may be of any family, whatever the cluster has.
        let anything = headless && !selects;
        let policy = match service.str_at("/spec/ipFamilyPolicy") {
            "" if anything || named.len() == 2 || addresses.len() == 2 => "RequireDualStack",
            "" => "SingleStack",
            given => given,
        }
        .to_owned();
        let before = errors.0.len();
        let mut families: Vec<bool> = named.iter().map(|name| name == "IPv4").collect();
        for (i, text) in addresses.iter().enumerate() {
            let Ok(address) = text.parse::<IpAddr>() else { continue };
            match families.get(i) {
                None => families.push(address.is_ipv4()),
                Some(is_ipv4) if *is_ipv4 == address.is_ipv4() => {}
                Some(is_ipv4) => {
                    let why = format!("expected an {} value as indicated by `ipFamilies[{i}]`", family_name(*is_ipv4));
                    errors.invalid(&path.child("clusterIPs").index(i), &text.as_str().into(), &why);
                }
            }
        }
        if policy == "SingleStack" && (families.len() > 1 || addresses.len() > 1) {
            let why =
                "must be RequireDualStack or PreferDualStack when multiple `clusterIPs` or `ipFamilies` are specified";
            errors.invalid(&path.child("ipFamilyPolicy"), &policy.as_str().into(), why);
        }
        let available = |is_ipv4: bool| self.networks.iter().any(|network| network.is_ipv4 == is_ipv4);
        if !anything {
            for (i, is_ipv4) in families.iter().enumerate().filter(|(_, is_ipv4)| !available(**is_ipv4)) {
                let why = "not configured on this cluster";
                errors.invalid(&path.child("ipFamilies").index(i), &family_name(*is_ipv4).into(), why);
            }
            if policy == "RequireDualStack" && self.networks.len() < 2 {
                let why = "this cluster is not configured for dual-stack services";
                errors.invalid(&path.child("ipFamilyPolicy"), &policy.as_str().into(), why);
            }
        }
        if errors.0.len() > before {
            return None;
        }
        let primary = self.networks.first().is_none_or(|network| network.is_ipv4);
        if families.is_empty() {
            families.push(primary);
        }
        if policy != "SingleStack" && families.len() == 1 && (anything || available(!families[0])) {
            families.push(!families[0]);
        }
        let spec = service.section_mut("spec");
        spec.insert("ipFamilyPolicy".into(), policy.into());
        let names: Vec<&str> = families.iter().map(|is_ipv4| family_name(*is_ipv4)).collect();
        spec.insert("ipFamilies".into(), json!(names));
        Some(families)
    }

    fn allocate_addresses(
        &self,
        taken: &mut Taken,
        claim: &mut Claim<'_>,
        service: &mut Object,
        families: &[bool],
        (own, errors): (&[IpAddr], &mut ErrorList),
    ) {
        if service.str_at("/spec/clusterIP") == "None" {
            service.section_mut("spec").insert("clusterIPs".into(), json!(["None"]));
            return;
        }
        let path = Path::new("spec").child("clusterIPs");
        let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
        let mut asked: Vec<String> = list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect();
        let first = service.str_at("/spec/clusterIP").to_owned();
        match asked.first_mut() {
            Some(listed) if !first.is_empty() => *listed = first,
            None if !first.is_empty() => asked.push(first),
            _ => {}
        }
        let mut addresses = Vec::new();
        for (i, is_ipv4) in families.iter().enumerate() {
            let networks = self.of_family(taken, *is_ipv4);
            let address = match asked.get(i).map_or("", String::as_str) {
                "" => {
                    let number = self.number(taken);
                    let free = networks.iter().find_map(|network| network.free_address(taken, number));
                    let Some(address) = free else {
                        let detail = "failed to allocate a serviceIP: range is full";
                        errors.push(edge_api::field::ErrorKind::Invalid, &path, detail);
                        return;
                    };
                    address
                }
                text => {
                    // What is no address was complained about before.
                    let Ok(address) = text.parse() else { return };
                    let why = if own.contains(&address) {
                        None
                    } else if !networks.iter().any(|network| network.contains(address)) {
                        let ranges: Vec<String> =
                            networks.iter().map(|n| format!("{}/{}", n.address(0), n.prefix)).collect();
                        Some(format!(
                            "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                            ranges.join(", ")
                        ))
                    } else if taken.addresses.contains_key(&address) {
                        Some("provided IP is already allocated".to_owned())
                    } else {
                        None
                    };
                    if let Some(why) = why {
                        errors.invalid(&path, &json!([text]), &format!("failed to allocate IP {text}: {why}"));
                        return;
                    }
                    address
                }
            };
            *taken.addresses.entry(address).or_default() += 1;
            claim.addresses.push(address);
            addresses.push(address.to_string());
        }
        let spec = service.section_mut("spec");
        if let Some(first) = addresses.first() {
            spec.insert("clusterIP".into(), first.as_str().into());
        }
        spec.insert("clusterIPs".into(), json!(addresses));
    }

    fn number(&self, taken: &mut Taken) -> u64 {
        taken.counter += 1;
        self.random.hash_one(taken.counter)
    }

    fn allocate_ports(
        &self,
        taken: &mut Taken,
        claim: &mut Claim<'_>,
        service: &mut Object,
        own: &[(Protocol, u16)],
        errors: &mut ErrorList,
    ) {
        let wanted = match service.str_at("/spec/type") {
            "NodePort" => true,
            "LoadBalancer" => service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
            _ => false,
        };
        let start = self.number(taken);
        let spec = service.section_mut("spec");
        let local = spec.get("externalTrafficPolicy").and_then(Value::as_str) == Some("Local");
        let health = local && spec.get("type").and_then(Value::as_str) == Some("LoadBalancer");
        let mut shared: HashMap<u16, Vec<Protocol>> = HashMap::new();
        for (i, port) in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            let path = Path::new("spec").child("ports").index(i).child("nodePort");
            let protocol = Protocol::of(port);
            let asked = port.get("nodePort").and_then(Value::as_u64).unwrap_or(0);
            let number = match u16::try_from(asked) {
                Ok(0) if !wanted => continue,
                // one node port may serve several protocols of the same port number
                Ok(0) => self.free_port(taken, protocol, start, &shared),
                Ok(n) => self.asked_port(taken, (protocol, n), own, &path, errors),
                Err(_) => None,
            };
            let Some(number) = number else {
                if asked == 0 {
                    errors.push(
                        edge_api::field::ErrorKind::Invalid,
                        &path,
                        "failed to allocate a nodePort: range is full",
                    );
                }
                continue;
            };
            shared.entry(number).or_default().push(protocol);
            *taken.ports.entry((protocol, number)).or_default() += 1;
            claim.ports.push((protocol, number));
            port["nodePort"] = number.into();
        }
        let path = Path::new("spec").child("healthCheckNodePort");
        let asked = spec.get("healthCheckNodePort").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
        let number = match asked.filter(|number| *number != 0) {
            _ if !health => return,
            Some(number) => self.asked_port(taken, (Protocol::Tcp, number), own, &path, errors),
            None => self.free_port(taken, Protocol::Tcp, start, &shared),
        };
        let Some(number) = number else {
            if asked.is_none_or(|number| number == 0) {
                let detail = "failed to allocate a nodePort: range is full";
                errors.push(edge_api::field::ErrorKind::Invalid, &path, detail);
            }
            return;
        };
        *taken.ports.entry((Protocol::Tcp, number)).or_default() += 1;
        claim.ports.push((Protocol::Tcp, number));
        spec.insert("healthCheckNodePort".into(), number.into());
    }

    fn asked_port(
        &self,
        taken: &Taken,
        port: (Protocol, u16),
        own: &[(Protocol, u16)],
        path: &Path,
        errors: &mut ErrorList,
    ) -> Option<u16> {
        let (first, last) = (self.node_ports.start(), self.node_ports.end());
        if own.contains(&port) {
            return Some(port.1);
        }
        if !self.node_ports.contains(&port.1) {
            let detail = format!("provided port is not in the valid range. The range of valid ports is {first}-{last}");
            errors.invalid(path, &port.1.into(), &detail);
            return None;
        }
        if taken.ports.contains_key(&port) {
            errors.invalid(path, &port.1.into(), "provided port is already allocated");
            return None;
        }
        Some(port.1)
    }

    fn free_port(
        &self,
        taken: &Taken,
        protocol: Protocol,
        start: u64,
        shared: &HashMap<u16, Vec<Protocol>>,
    ) -> Option<u16> {
        let count = u64::from(*self.node_ports.end() - *self.node_ports.start()) + 1;
        (0..count)
            .filter_map(|i| u16::try_from(u64::from(*self.node_ports.start()) + (start + i) % count).ok())
            .find(|n| !taken.ports.contains_key(&(protocol, *n)) && !shared.contains_key(n))
    }
}

/// The networks of a ServiceCIDR, if services may have addresses in them.
fn networks_of(object: &Object) -> Vec<Network> {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let is_ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
    if !is_ready || object.pointer("/metadata/deletionTimestamp").is_some() {
        return Vec::new();
    }
    let network = |value: &Value| {
        let (address, prefix) = value.as_str()?.split_once('/')?;
        Some(Network::new(address.parse().ok()?, prefix.parse().ok()?))
    };
    object.pointer("/spec/cidrs").and_then(Value::as_array).into_iter().flatten().filter_map(network).collect()
}

/// Addresses and ports that a service holds.
type Held = (Vec<IpAddr>, Vec<(Protocol, u16)>);

fn taken_by(service: &Stored) -> Option<Held> {
    match service.object() {
        Ok(object) => Some(of_service(&object)),
        Err(error) => {
            tracing::error!(%error, service = service.key(), "stored service cannot be read");
            None
        }
    }
}

/// Addresses and node ports of a service.
fn of_service(service: &Object) -> (Vec<IpAddr>, Vec<(Protocol, u16)>) {
    let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    let addresses = list.into_iter().flatten().filter_map(|v| v.as_str()?.parse().ok()).collect();
    let port = |v: &Value| v.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    let list = service.pointer("/spec/ports").and_then(Value::as_array);
    let mut ports: Vec<(Protocol, u16)> =
        list.into_iter().flatten().filter_map(|p| Some((Protocol::of(p), p.get("nodePort").and_then(port)?))).collect();
    if let Some(n) = service.pointer("/spec/healthCheckNodePort").and_then(port) {
        ports.push((Protocol::Tcp, n));
    }
    (addresses, ports)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn service(spec: Value) -> Object {
        Object::from_value(json!({"kind": "Service", "spec": spec})).unwrap()
    }

    fn small() -> Allocator {
        Allocator::new(&[("10.43.0.0".parse().unwrap(), 29)], 30000..=30002)
    }

    #[test]
    fn addresses_are_unique_come_back_and_run_out() {
        let a = small();
        let mut claims = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..6 {
            let mut s = service(json!({"type": "ClusterIP"}));
            claims.push(a.allocate(&mut s, None).unwrap());
            assert!(seen.insert(s.str_at("/spec/clusterIP").to_owned()));
            assert_eq!(s.pointer("/spec/clusterIPs/0").unwrap(), s.str_at("/spec/clusterIP"));
        }
        assert!(!seen.contains("10.43.0.0") && !seen.contains("10.43.0.7"), "{seen:?}");
        let errors = a.allocate(&mut service(json!({})), None).unwrap_err();
        assert!(errors.to_string().contains("range is full"), "{errors}");
        claims.pop();
        a.allocate(&mut service(json!({})), None).unwrap();
    }

    #[test]
    fn certain_addresses_must_be_in_range_and_free() {
        let a = small();
        let mut dns = service(json!({"clusterIP": "10.43.0.2"}));
        let _claim = a.allocate(&mut dns, None).unwrap();
        for (ip, why) in [("10.43.0.2", "already allocated"), ("10.44.0.1", "not in the valid range")] {
            let errors = a.allocate(&mut service(json!({"clusterIP": ip})), None).unwrap_err();
            assert!(errors.to_string().contains(why), "{errors}");
        }
        let _kept = a.allocate(&mut dns.clone(), Some(&dns)).unwrap();
        let mut headless = service(json!({"clusterIP": "None"}));
        let _claim = a.allocate(&mut headless, None).unwrap();
        assert_eq!(headless.pointer("/spec/clusterIPs").unwrap(), &json!(["None"]));
    }

    #[test]
    fn further_networks_are_used_when_they_are_ready() {
        let a = small();
        let cidr = |status: &str, deleted: bool| {
            let at = if deleted { json!("2026-01-01T00:00:00Z") } else { Value::Null };
            let mut value = json!({"metadata": {}, "spec": {"cidrs": ["203.0.113.0/29", "2001:db8::/64"]},
                "status": {"conditions": [{"type": "Ready", "status": status}]}});
            if deleted {
                value["metadata"]["deletionTimestamp"] = at;
            }
            networks_of(&Object::from_value(value).unwrap())
        };
        assert_eq!((cidr("False", false).len(), cidr("True", true).len()), (0, 0));
        let ask = || a.allocate(&mut service(json!({"clusterIP": "203.0.113.2"})), None).map(drop);
        assert!(ask().unwrap_err().to_string().contains("not in the valid range"));
        a.taken.lock().further.insert("/x".into(), cidr("True", false));
        ask().unwrap();
        // the cluster's own network is used up first, then the other one
        let mut claims = Vec::new();
        for number in 0..12 {
            let mut s = service(json!({}));
            claims.push(a.allocate(&mut s, None).unwrap());
            assert_eq!(s.str_at("/spec/clusterIP").starts_with("10.43."), number < 6, "{number}");
        }
        assert!(a.allocate(&mut service(json!({})), None).unwrap_err().to_string().contains("range is full"));
        let network = Network::new("2001:db8::".parse().unwrap(), 64);
        assert!(network.contains("2001:db8::ffff:ffff:ffff:ffff".parse().unwrap()));
        assert!(!network.contains("2001:db8:0:1::1".parse().unwrap()));
    }

    #[test]
    fn node_ports_are_per_protocol_and_run_out() {
        let a = small();
        let ports = json!([{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP", "nodePort": 30001}]);
        let mut s = service(json!({"type": "NodePort", "clusterIP": "None", "ports": ports}));
        let _claim = a.allocate(&mut s, None).unwrap();
        let first = s.pointer("/spec/ports/0/nodePort").unwrap().as_u64().unwrap();
        assert!((30000..=30002).contains(&first));
        let taken = json!([{"port": 1, "protocol": "UDP", "nodePort": 30001}]);
        let mut s = service(json!({"type": "NodePort", "clusterIP": "None", "ports": taken}));
        assert!(a.allocate(&mut s, None).unwrap_err().to_string().contains("provided port is already allocated"));
        let far = json!([{"port": 1, "nodePort": 80}]);
        let mut s = service(json!({"type": "NodePort", "clusterIP": "None", "ports": far}));
        assert!(a.allocate(&mut s, None).unwrap_err().to_string().contains("The range of valid ports is 30000-30002"));
        let many = json!([{"port": 1}, {"port": 2}, {"port": 3}, {"port": 4}]);
        let mut s = service(json!({"type": "NodePort", "clusterIP": "None", "ports": many}));
        assert!(a.allocate(&mut s, None).is_err());
    }

    fn two() -> Allocator {
        let networks = [("10.43.0.0".parse().unwrap(), 24), ("fd43::".parse().unwrap(), 112)];
        Allocator::new(&networks, 30000..=30002)
    }

    /// Families, policy and number of addresses; or what is wrong.
    fn outcome(allocator: &Allocator, spec: Value) -> String {
        let mut s = service(spec);
        match allocator.allocate(&mut s, None) {
            Err(errors) => errors.to_string(),
            Ok(_) => {
                let list = |field: &str| s.pointer(field).and_then(Value::as_array).cloned().unwrap_or_default();
                let families: Vec<String> =
                    list("/spec/ipFamilies").iter().map(|v| v.as_str().unwrap().to_owned()).collect();
                let ips = list("/spec/clusterIPs");
                assert_eq!(ips.first(), s.pointer("/spec/clusterIP"));
                for (ip, family) in ips.iter().zip(&families).filter(|(ip, _)| *ip != "None") {
                    assert_eq!(ip.as_str().unwrap().contains(':'), family == "IPv6");
                }
                format!("{} {} {}", families.join(","), s.str_at("/spec/ipFamilyPolicy"), ips.len())
            }
        }
    }

    #[test]
    fn families_and_policies() {
        let (one, two) = (small(), two());
        let of = |families: Value, policy: &str| {
            let mut spec = json!({"type": "ClusterIP", "selector": {"a": "b"}, "ipFamilies": families});
            if !policy.is_empty() {
                spec["ipFamilyPolicy"] = policy.into();
            }
            spec
        };
        for (spec, in_one, in_two) in [
            (of(json!([]), ""), "IPv4 SingleStack 1", "IPv4 SingleStack 1"),
            (of(json!([]), "PreferDualStack"), "IPv4 PreferDualStack 1", "IPv4,IPv6 PreferDualStack 2"),
            (of(json!(["IPv6"]), "PreferDualStack"), "ipFamilies[0]: Invalid", "IPv6,IPv4 PreferDualStack 2"),
            (of(json!([]), "RequireDualStack"), "not configured for dual-stack", "IPv4,IPv6 RequireDualStack 2"),
            (of(json!(["IPv6"]), ""), "not configured on this cluster", "IPv6 SingleStack 1"),
            (of(json!(["IPv6", "IPv4"]), ""), "not configured", "IPv6,IPv4 RequireDualStack 2"),
            (of(json!(["IPv4", "IPv6"]), "SingleStack"), "must be RequireDualStack", "must be RequireDualStack"),
            (json!({"clusterIP": "None"}), "IPv4,IPv6 RequireDualStack 1", "IPv4,IPv6 RequireDualStack 1"),
            (json!({"clusterIP": "None", "selector": {"a": "b"}}), "IPv4 SingleStack 1", "IPv4 SingleStack 1"),
            (
                json!({"clusterIP": "fd43::7", "clusterIPs": ["fd43::7"]}),
                "not configured on this cluster",
                "IPv6 SingleStack 1",
            ),
            (
                json!({"clusterIP": "10.43.0.3", "clusterIPs": ["10.43.0.3", "fd43::8"]}),
                "not configured",
                "IPv4,IPv6 RequireDualStack 2",
            ),
            (
                json!({"clusterIP": "10.43.0.3", "clusterIPs": ["10.43.0.3"], "ipFamilies": ["IPv6"]}),
                "expected an IPv6 value as indicated by `ipFamilies[0]`",
                "expected an IPv6 value as indicated by `ipFamilies[0]`",
            ),
        ] {
            for (allocator, expected) in [(&one, in_one), (&two, in_two)] {
                let found = outcome(allocator, spec.clone());
                assert!(found.contains(expected), "{spec}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn a_second_family_comes_and_goes() {
        let a = two();
        let mut single = service(json!({"type": "ClusterIP", "selector": {"a": "b"}}));
        let _claim = a.allocate(&mut single, None).unwrap();
        let mut double = single.clone();
        double.section_mut("spec").insert("ipFamilyPolicy".into(), "PreferDualStack".into());
        let _second = a.allocate(&mut double, Some(&single)).unwrap();
        assert_eq!(double.pointer("/spec/clusterIPs/0"), single.pointer("/spec/clusterIP"));
        assert!(double.pointer("/spec/clusterIPs/1").unwrap().as_str().unwrap().starts_with("fd43::"));
    }

    #[test]
    fn health_check_ports_are_allocated_for_whom_they_are() {
        let a = small();
        let local = |number: u64| {
            service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": "None",
                "allocateLoadBalancerNodePorts": false, "healthCheckNodePort": number}))
        };
        let mut s = local(0);
        let _claim = a.allocate(&mut s, None).unwrap();
        let number = s.pointer("/spec/healthCheckNodePort").unwrap().as_u64().unwrap();
        assert!((30000..=30002).contains(&number));
        let _again = a.allocate(&mut s.clone(), Some(&s)).unwrap();
        assert!(a.allocate(&mut local(number), None).unwrap_err().to_string().contains("already allocated"));
        assert!(a.allocate(&mut local(80), None).unwrap_err().to_string().contains("The range of valid ports"));
    }
}
