//! The changing part of the table as plain data: the elements of every set and the balancing chains. Compiled from the
//! desired [`ServiceTable`], read back from the kernel, compared; no kernel calls here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::expr::Verdict;
use super::layout::{ENDPOINTS, HAIRPIN, INTERNAL, MASQUERADE, REJECT, SERVICES, UNREACHABLE};
use crate::{Endpoint, Frontend, NoEndpoints, Protocol, Route, ServiceTable};

/// A kind of balancing chain; all frontends with the same properties share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Balancer {
    /// Number of endpoints.
    pub(super) count: u32,
    /// Whether the frontend is a port of every address of the node.
    pub(super) any_address: bool,
    /// Whether it leads to the frontend's endpoints for internal clients.
    pub(super) internal: bool,
    pub(super) affinity_seconds: Option<u32>,
}

/// Internal clients' endpoints have the slots from here on.
const INTERNAL_SLOTS: u32 = 1 << 16;
/// Most endpoints one frontend uses.
const MAX_ENDPOINTS: usize = INTERNAL_SLOTS as usize;

impl Balancer {
    /// Name of its chain.
    pub(super) fn chain(&self) -> String {
        let mut name = format!("balance-{}", self.count);
        if self.any_address {
            name.push_str("-node");
        }
        if self.internal {
            name.push_str("-internal");
        }
        if let Some(seconds) = self.affinity_seconds {
            name.push_str(&format!("-affinity-{seconds}"));
        }
        name
    }

    /// The balancer whose chain has that name.
    pub(super) fn parse(chain: &str) -> Option<Self> {
        let mut parts = chain.strip_prefix("balance-")?.split('-').peekable();
        let count = parts.next()?.parse().ok()?;
        let any_address = parts.next_if_eq(&"node").is_some();
        let internal = parts.next_if_eq(&"internal").is_some();
        let affinity_seconds = match parts.next_if_eq(&"affinity") {
            Some(_) => Some(parts.next()?.parse().ok()?),
            None => None,
        };
        Some(Self { count, any_address, internal, affinity_seconds }).filter(|_| parts.next().is_none())
    }

    pub(super) fn first_slot(&self) -> u32 {
        if self.internal { INTERNAL_SLOTS } else { 0 }
    }
}

/// What an element of a set carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Nothing: the set is no map.
    Nothing,
    /// Bytes.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// The elements of a set by their keys.
pub(super) type Elements = BTreeMap<Vec<u8>, Data>;

/// Everything in the table that changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Elements by the name of their set; sets without elements may be missing.
    pub(super) sets: BTreeMap<&'static str, Elements>,
    /// Balancing chains by name.
    pub(super) chains: BTreeSet<String>,
}

/// A frontend as the key of a set.
pub(super) fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    let mut key = frontend.address.unwrap_or(Ipv4Addr::UNSPECIFIED).octets().to_vec();
    key.extend([frontend.protocol.number(), 0, 0, 0]);
    key.extend(frontend.port.to_be_bytes());
    key.extend([0, 0]);
    key
}

fn slot_key(frontend: &[u8], slot: u32) -> Vec<u8> {
    [frontend, &slot.to_ne_bytes()].concat()
}

/// The frontend of a key.
pub(super) fn frontend_of(key: &[u8]) -> Option<Frontend> {
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(key.get(..4)?).ok()?);
    Some(Frontend {
        address: (!address.is_unspecified()).then_some(address),
        protocol: Protocol::from_number(*key.get(4)?)?,
        port: u16::from_be_bytes([*key.get(8)?, *key.get(9)?]),
    })
}

/// An endpoint as the data of a map.
pub(super) fn endpoint_data(endpoint: &Endpoint) -> Vec<u8> {
    let mut data = endpoint.address.octets().to_vec();
    data.extend(endpoint.port.to_be_bytes());
    data.extend([0, 0]);
    data
}

/// The endpoint in the data of a map.
pub(super) fn endpoint_of(data: &[u8]) -> Option<Endpoint> {
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(data.get(..4)?).ok()?);
    Some(Endpoint { address, port: u16::from_be_bytes([*data.get(4)?, *data.get(5)?]) })
}

/// The state that `table` wants, and the balancers its chains stand for.
pub(super) fn compile(table: &ServiceTable) -> (State, BTreeSet<Balancer>) {
    let mut state = State::default();
    let mut balancers = BTreeSet::new();
    let mut hairpin = Elements::new();
    for (frontend, route) in table {
        let key = frontend_key(frontend);
        let mut balance = |set: &'static str, endpoints: &[Endpoint], internal: bool| {
            let endpoints: BTreeSet<Endpoint> = endpoints.iter().copied().take(MAX_ENDPOINTS).collect();
            if endpoints.is_empty() {
                return false;
            }
            let balancer = Balancer {
                count: endpoints.len() as u32,
                any_address: frontend.address.is_none(),
                internal,
                affinity_seconds: route.affinity_seconds,
            };
            for (slot, endpoint) in (balancer.first_slot()..).zip(&endpoints) {
                state.put(ENDPOINTS, slot_key(&key, slot), Data::Value(endpoint_data(endpoint)));
                let octets = endpoint.address.octets();
                hairpin.insert([octets, octets].concat(), Data::Nothing);
            }
            state.put(set, key.clone(), Data::Verdict(Verdict::Goto(balancer.chain())));
            state.chains.insert(balancer.chain());
            balancers.insert(balancer);
            true
        };
        let mut reachable = balance(SERVICES, &route.endpoints, false);
        if let Some(endpoints) = &route.internal_endpoints {
            reachable |= balance(INTERNAL, endpoints, true);
        }
        if reachable && route.masquerade {
            state.put(MASQUERADE, key.clone(), Data::Nothing);
        }
        if route.endpoints.is_empty() {
            let verdict = match route.no_endpoints {
                NoEndpoints::Reject => Verdict::Goto(REJECT.to_owned()),
                NoEndpoints::Drop => Verdict::Drop,
            };
            state.put(UNREACHABLE, key, Data::Verdict(verdict));
        }
    }
    if !hairpin.is_empty() {
        state.sets.insert(HAIRPIN, hairpin);
    }
    (state, balancers)
}

impl State {
    /// The service table this state was compiled from, as far as the kernel needs to know it; `None` when it is none that
    /// [`compile`] makes.
    pub(super) fn decompile(&self) -> Option<ServiceTable> {
        let none = Elements::new();
        let set = |name| self.sets.get(name).unwrap_or(&none);
        let mut table = ServiceTable::new();
        for (key, data) in set(UNREACHABLE) {
            let no_endpoints =
                if *data == Data::Verdict(Verdict::Drop) { NoEndpoints::Drop } else { NoEndpoints::Reject };
            table.insert(frontend_of(key)?, Route { no_endpoints, ..Route::to(Vec::new()) });
        }
        for (name, internal) in [(SERVICES, false), (INTERNAL, true)] {
            for (key, data) in set(name) {
                let Data::Verdict(Verdict::Goto(chain)) = data else { return None };
                let balancer = Balancer::parse(chain).filter(|balancer| balancer.internal == internal)?;
                let slots = balancer.first_slot()..balancer.first_slot().checked_add(balancer.count)?;
                let endpoint = |slot: u32| match set(ENDPOINTS).get(&slot_key(key, slot)) {
                    Some(Data::Value(data)) => endpoint_of(data),
                    _ => None,
                };
                let endpoints = slots.map(endpoint).collect::<Option<Vec<_>>>()?;
                let route = table.entry(frontend_of(key)?).or_insert_with(|| Route::to(Vec::new()));
                route.affinity_seconds = balancer.affinity_seconds;
                route.masquerade = set(MASQUERADE).contains_key(key);
                if internal {
                    route.internal_endpoints = Some(endpoints);
                } else {
                    route.endpoints = endpoints;
                }
            }
        }
        Some(table)
    }

    fn put(&mut self, set: &'static str, key: Vec<u8>, data: Data) {
        self.sets.entry(set).or_default().insert(key, data);
    }
}

/// What must be done to get from one set of elements to another: first the deletions, then the additions.
pub(super) fn difference(from: &Elements, to: &Elements) -> (Elements, Elements) {
    let differs = |other: &Elements, key: &Vec<u8>, data: &Data| other.get(key) != Some(data);
    let part = |all: &Elements, other: &Elements| {
        all.iter().filter(|(k, d)| differs(other, k, d)).map(|(k, d)| (k.clone(), d.clone())).collect()
    };
    (part(from, to), part(to, from))
}
