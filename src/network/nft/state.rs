//! The changing part of a table as plain data: the elements of every set, and the chains that no hook calls. It mirrors the
//! kernel; [`Edit`]s lead from one state to the next and know what the kernel must be told. No kernel calls here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::expr::{Expr, Verdict};
use super::layout::{
    self, Direction, EGRESS, ENDPOINTS, HAIRPIN, INGRESS, INTERNAL, MASQUERADE, NODE_PORTS, REJECT, Rules, SERVICES,
    SOURCES, STICKY, UNREACHABLE, octets,
};
use crate::policy::{Isolation, Member, Peers};
use crate::{Endpoint, Family, Frontend, NoEndpoints, Protocol, Route};

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

/// A kind of chain that remembers which endpoint a client got; all frontends with the same properties share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// Whether the frontend is a port of every address of the node.
    pub(super) any_address: bool,
    pub(super) seconds: u32,
}

impl Memory {
    /// Name of its chain.
    pub(super) fn chain(&self) -> String {
        format!("remember-{}{}", self.seconds, if self.any_address { "-node" } else { "" })
    }

    /// The memory whose chain has that name.
    pub(super) fn parse(chain: &str) -> Option<Self> {
        let rest = chain.strip_prefix("remember-")?;
        let (seconds, any_address) = rest.strip_suffix("-node").map_or((rest, false), |seconds| (seconds, true));
        Some(Self { any_address, seconds: seconds.parse().ok()? })
    }
}

/// Prefixes of the chains whose name is a digest of their rules.
pub(super) const DIGEST_PREFIXES: [&str; 3] = ["sources-", "allow-in-", "allow-out-"];

/// A chain's name that says what its rules are.
fn digest_name(prefix: &str, content: &impl Hash) -> String {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, content).hash(&mut hasher);
        hasher.finish()
    };
    format!("{prefix}{:016x}{:016x}", half(0), half(1))
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

impl Data {
    /// The chain that the element leads to.
    fn chain(&self) -> Option<&str> {
        match self {
            Self::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) => Some(chain),
            _ => None,
        }
    }
}

/// The elements of a set by their keys.
pub(super) type Elements = BTreeMap<Vec<u8>, Data>;

/// Everything in the table that changes.
#[derive(Clone, Debug)]
pub(super) struct State {
    family: Family,
    /// Elements by the name of their set; fixed sets without elements may be missing.
    sets: BTreeMap<String, Elements>,
    /// The rules of the chains; `None` for those an earlier process made, which have their name for it.
    chains: BTreeMap<String, Option<Rules>>,
    /// How many elements lead to a chain.
    references: HashMap<String, usize>,
    /// How many elements of [`ENDPOINTS`] have an address.
    endpoints: HashMap<Vec<u8>, usize>,
    /// Groups that go as soon as no chain refers to them.
    doomed: BTreeSet<String>,
}

/// A frontend as the key of a set.
pub(super) fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    let mut key = octets(frontend.address);
    key.extend([frontend.protocol.number(), 0, 0, 0]);
    key.extend(frontend.port.to_be_bytes());
    key.extend([0, 0]);
    key
}

fn slot_key(frontend: &[u8], slot: u32) -> Vec<u8> {
    [frontend, &slot.to_ne_bytes()].concat()
}

/// The address at the start of some bytes, and what follows.
fn split_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    Some(match family {
        Family::V4 => (Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(), &bytes[4..]),
        Family::V6 => (Ipv6Addr::from(*bytes.first_chunk::<16>()?).into(), &bytes[16..]),
    })
}

/// The frontend of a key.
pub(super) fn frontend_of(family: Family, key: &[u8]) -> Option<Frontend> {
    let (address, rest) = split_address(family, key)?;
    Some(Frontend {
        address,
        protocol: Protocol::from_number(*rest.first()?)?,
        port: u16::from_be_bytes([*rest.get(4)?, *rest.get(5)?]),
    })
}

/// The frontend in the key of an affinity, behind the client's address.
pub(super) fn frontend_of_affinity(family: Family, key: &[u8]) -> Option<Frontend> {
    frontend_of(family, split_address(family, key)?.1)
}

/// An endpoint as the data of a map.
pub(super) fn endpoint_data(endpoint: &Endpoint) -> Vec<u8> {
    let mut data = octets(endpoint.address);
    data.extend(endpoint.port.to_be_bytes());
    data.extend([0, 0]);
    data
}

/// The address in the data of an endpoint.
fn address_part(endpoint: &[u8]) -> Vec<u8> {
    endpoint[..endpoint.len().saturating_sub(4)].to_vec()
}

/// The endpoint in the data of a map.
pub(super) fn endpoint_of(family: Family, data: &[u8]) -> Option<Endpoint> {
    let (address, rest) = split_address(family, data)?;
    Some(Endpoint { address, port: u16::from_be_bytes([*rest.first()?, *rest.get(1)?]) })
}

fn member_key(member: &Member) -> Vec<u8> {
    match member.port {
        None => octets(member.address),
        Some((protocol, port)) => frontend_key(&Frontend { address: member.address, protocol, port }),
    }
}

impl State {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
            references: HashMap::new(),
            endpoints: HashMap::new(),
            doomed: BTreeSet::new(),
        }
    }

    /// What the kernel holds.
    pub(super) fn adopt(family: Family, sets: BTreeMap<String, Elements>, chains: BTreeSet<String>) -> Self {
        let mut state = Self::new(family);
        state.chains = chains.into_iter().map(|name| (name, None)).collect();
        for (set, elements) in sets {
            state.sets.insert(set.clone(), Elements::new());
            for (key, data) in elements {
                if let (ENDPOINTS, Data::Value(endpoint)) = (set.as_str(), &data) {
                    *state.endpoints.entry(address_part(endpoint)).or_default() += 1;
                }
                state.put(&set, key, Some(data));
            }
        }
        state
    }

    /// The state in words, the same for states that mean the same: which of its slots an endpoint has does not matter.
    pub(super) fn describe(&self) -> BTreeSet<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut lines = BTreeSet::new();
        let mut balanced: BTreeMap<(Vec<u8>, bool), BTreeSet<String>> = BTreeMap::new();
        for (set, elements) in &self.sets {
            if set.starts_with(layout::GROUP) {
                lines.insert(format!("{:?} set {set}", self.family));
            }
            for (key, data) in elements {
                let slot = key.last_chunk().map(|slot| u32::from_ne_bytes(*slot)).filter(|_| set == ENDPOINTS);
                match (slot, data) {
                    (Some(slot), Data::Value(endpoint)) => {
                        let frontend = key[..key.len() - 4].to_vec();
                        balanced.entry((frontend, slot >= INTERNAL_SLOTS)).or_default().insert(hex(endpoint));
                    }
                    _ => drop(lines.insert(format!("{:?} element of {set}: {} {data:?}", self.family, hex(key)))),
                }
            }
        }
        for ((frontend, internal), endpoints) in balanced {
            let clients = if internal { "internal" } else { "all" };
            lines.insert(format!("{:?} endpoints of {} for {clients}: {endpoints:?}", self.family, hex(&frontend)));
        }
        lines.extend(self.chains.keys().map(|chain| format!("{:?} chain {chain}", self.family)));
        lines
    }

    pub(super) fn sets(&self) -> &BTreeMap<String, Elements> {
        &self.sets
    }

    /// The chains with their rules; after [`Self::close_lost`] none is missing.
    pub(super) fn chains(&self) -> impl Iterator<Item = (&String, Rules)> {
        self.chains.iter().filter_map(|(name, rules)| Some((name, rules.clone().or_else(|| self.rules_by_name(name))?)))
    }

    #[cfg(test)]
    pub(super) fn chain_names(&self) -> impl Iterator<Item = String> {
        self.chains.keys().cloned()
    }

    /// The rules of a chain whose name says all about it.
    fn rules_by_name(&self, chain: &str) -> Option<Rules> {
        let balance = Balancer::parse(chain).map(|balancer| layout::balance(self.family, &balancer));
        balance.or_else(|| Memory::parse(chain).map(|memory| layout::remember(self.family, &memory)))
    }

    /// Makes ready to be written anew: what an earlier process let through by rules of which only the digest is known is
    /// closed until it is known again.
    pub(super) fn close_lost(&mut self) {
        let known: BTreeSet<String> = self.chains().map(|(name, _)| name.clone()).collect();
        let lost: BTreeSet<String> = self.chains.keys().filter(|name| !known.contains(*name)).cloned().collect();
        for data in self.sets.values_mut().flat_map(Elements::values_mut) {
            if data.chain().is_some_and(|chain| lost.contains(chain)) {
                *data = Data::Verdict(Verdict::Drop);
            }
        }
        self.chains.retain(|name, _| known.contains(name));
        self.references.retain(|name, _| !lost.contains(name));
    }

    fn get(&self, set: &str, key: &[u8]) -> Option<&Data> {
        self.sets.get(set)?.get(key)
    }

    /// Whether a chain may refer to a group; one of which only the digest is known may.
    fn refers_to(&self, group: &str) -> bool {
        self.chains.iter().any(|(name, rules)| match rules {
            None => DIGEST_PREFIXES[1..].iter().any(|prefix| name.starts_with(prefix)),
            Some(rules) => rules.iter().flatten().any(|step| matches!(step, Expr::InSet(set, _) if set == group)),
        })
    }

    /// All frontends that lead somewhere or nowhere.
    pub(super) fn frontends(&self) -> BTreeSet<Frontend> {
        let keys = [SERVICES, NODE_PORTS, INTERNAL, UNREACHABLE].into_iter().filter_map(|set| self.sets.get(set));
        keys.flat_map(Elements::keys).filter_map(|key| frontend_of(self.family, key)).collect()
    }

    /// The elements that map a frontend's slots to endpoints.
    fn slots(&self, frontend: &[u8]) -> impl Iterator<Item = (u32, &Vec<u8>)> {
        let (first, last) = (slot_key(frontend, 0), [frontend, &[u8::MAX; 4]].concat());
        let all = self.sets.get(ENDPOINTS).map(|elements| elements.range(first..=last)).into_iter().flatten();
        all.filter_map(|(key, data)| match data {
            Data::Value(endpoint) => Some((u32::from_ne_bytes(*key.last_chunk()?), endpoint)),
            _ => None,
        })
    }

    /// The endpoints of a frontend, for whichever clients.
    pub(super) fn endpoints_of(&self, frontend: &Frontend) -> BTreeSet<Endpoint> {
        let key = frontend_key(frontend);
        self.slots(&key).filter_map(|(_, data)| endpoint_of(self.family, data)).collect()
    }

    /// Whether clients come back to the same endpoint of a frontend.
    pub(super) fn has_affinity(&self, frontend: &Frontend) -> bool {
        let key = frontend_key(frontend);
        let chains = [SERVICES, NODE_PORTS, INTERNAL].into_iter().filter_map(|set| self.get(set, &key)?.chain());
        chains.filter_map(Balancer::parse).any(|balancer| balancer.affinity_seconds.is_some())
    }

    /// The addresses of pods that some policy is in force for.
    pub(super) fn isolated(&self) -> BTreeSet<IpAddr> {
        let keys = [INGRESS, EGRESS].into_iter().filter_map(|set| self.sets.get(set)).flat_map(Elements::keys);
        keys.filter_map(|key| split_address(self.family, key).map(|(address, _)| address)).collect()
    }

    /// Names of the groups.
    pub(super) fn group_sets(&self) -> BTreeSet<String> {
        self.sets.keys().filter(|name| name.starts_with(layout::GROUP)).cloned().collect()
    }

    /// Writes or removes an element; gives what was there. Keeps the counts.
    fn put(&mut self, set: &str, key: Vec<u8>, data: Option<Data>) -> Option<Data> {
        let count = |counts: &mut HashMap<String, usize>, chain: Option<&str>, more: bool| {
            let Some(chain) = chain else { return };
            let count = counts.entry(chain.to_owned()).or_default();
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
        };
        if !self.sets.contains_key(set) {
            self.sets.insert(set.to_owned(), Elements::new());
        }
        let elements = self.sets.get_mut(set)?;
        count(&mut self.references, data.as_ref().and_then(Data::chain), true);
        let old = match data {
            Some(data) => elements.insert(key, data),
            None => elements.remove(&key),
        };
        count(&mut self.references, old.as_ref().and_then(Data::chain), false);
        old
    }
}

/// A change of a [`State`] in the making. It changes the state at once and remembers what the kernel must be told.
pub(super) struct Edit<'a> {
    state: &'a mut State,
    /// The touched elements with what they were before.
    before: BTreeMap<(String, Vec<u8>), Option<Data>>,
    chains_before: BTreeSet<String>,
    sets_before: BTreeSet<String>,
    /// Chains that may have lost their last reference.
    suspects: BTreeSet<String>,
}

/// What the kernel must be told, in this order.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) new_sets: Vec<String>,
    pub(super) new_chains: Vec<(String, Rules)>,
    /// Elements to delete, then elements to add, by set.
    pub(super) elements: BTreeMap<String, (Elements, Elements)>,
    pub(super) old_chains: Vec<String>,
    pub(super) old_sets: Vec<String>,
}

/// The slots of endpoints: whoever had one keeps it, as far as there are no gaps, so that one change writes one or two
/// elements, however many endpoints there are.
fn arrange(before: &BTreeMap<u32, Vec<u8>>, first: u32, wanted: BTreeSet<Vec<u8>>) -> Vec<Vec<u8>> {
    let count = wanted.len();
    let mut slots: Vec<Option<Vec<u8>>> = vec![None; count];
    let mut rest = wanted;
    for (slot, endpoint) in before.range(first..first.saturating_add(count as u32)) {
        if rest.remove(endpoint) {
            slots[(slot - first) as usize] = Some(endpoint.clone());
        }
    }
    let mut rest = rest.into_iter();
    slots.into_iter().filter_map(|slot| slot.or_else(|| rest.next())).collect()
}

impl<'a> Edit<'a> {
    pub(super) fn new(state: &'a mut State) -> Self {
        let chains_before = state.chains.keys().cloned().collect();
        let sets_before = state.sets.keys().cloned().collect();
        Self { state, before: BTreeMap::new(), chains_before, sets_before, suspects: BTreeSet::new() }
    }

    pub(super) fn state(&self) -> &State {
        self.state
    }

    fn put(&mut self, set: &str, key: Vec<u8>, data: Option<Data>) {
        if self.state.get(set, &key) == data.as_ref() {
            return;
        }
        let old = self.state.put(set, key.clone(), data);
        self.suspects.extend(old.as_ref().and_then(Data::chain).map(str::to_owned));
        self.before.entry((set.to_owned(), key)).or_insert(old);
    }

    fn need_chain(&mut self, name: &str, rules: impl FnOnce() -> Rules) {
        // The rules of an adopted chain become known by this.
        if !matches!(self.state.chains.get(name), Some(Some(_))) {
            self.state.chains.insert(name.to_owned(), Some(rules()));
        }
    }

    /// Puts a frontend's route in the place of whatever it had.
    pub(super) fn route(&mut self, frontend: &Frontend, route: Option<&Route>) {
        let family = self.state.family;
        let key = frontend_key(frontend);
        let mut wanted: BTreeMap<&'static str, Data> = BTreeMap::new();
        let old_slots: BTreeMap<u32, Vec<u8>> = self.state.slots(&key).map(|(slot, e)| (slot, e.clone())).collect();
        let mut slots: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        if let Some(route) = route {
            let mut balance = |set: &'static str, endpoints: &[Endpoint], internal: bool| {
                let same_family = endpoints.iter().filter(|endpoint| Family::of(endpoint.address) == family);
                let endpoints: BTreeSet<Vec<u8>> = same_family.map(endpoint_data).take(MAX_ENDPOINTS).collect();
                if endpoints.is_empty() {
                    return false;
                }
                let balancer = Balancer {
                    count: endpoints.len() as u32,
                    any_address: frontend.is_node(),
                    internal,
                    affinity_seconds: route.affinity_seconds,
                };
                let first = balancer.first_slot();
                slots.extend((first..).zip(arrange(&old_slots, first, endpoints)));
                self.need_chain(&balancer.chain(), || layout::balance(family, &balancer));
                wanted.insert(set, Data::Verdict(Verdict::Goto(balancer.chain())));
                true
            };
            let all = if frontend.is_node() { NODE_PORTS } else { SERVICES };
            let external = balance(all, &route.endpoints, false);
            let internal = route.internal_endpoints.as_ref().is_some_and(|all| balance(INTERNAL, all, true));
            if (external || internal) && route.masquerade {
                wanted.insert(MASQUERADE, Data::Nothing);
            }
            if let Some(seconds) = route.affinity_seconds.filter(|_| external || internal) {
                let memory = Memory { any_address: frontend.is_node(), seconds };
                self.need_chain(&memory.chain(), || layout::remember(family, &memory));
                wanted.insert(STICKY, Data::Verdict(Verdict::Jump(memory.chain())));
            }
            if !external {
                let verdict = match route.no_endpoints {
                    NoEndpoints::Reject => Verdict::Goto(REJECT.to_owned()),
                    NoEndpoints::Drop => Verdict::Drop,
                };
                wanted.insert(UNREACHABLE, Data::Verdict(verdict));
            }
            if let Some(ranges) = &route.source_ranges {
                let chain = digest_name(DIGEST_PREFIXES[0], ranges);
                self.need_chain(&chain, || layout::allow_sources(family, ranges));
                wanted.insert(SOURCES, Data::Verdict(Verdict::Jump(chain)));
            }
        }
        for set in [SERVICES, NODE_PORTS, INTERNAL, MASQUERADE, UNREACHABLE, SOURCES, STICKY] {
            self.put(set, key.clone(), wanted.remove(set));
        }
        for (slot, old) in &old_slots {
            if slots.get(slot) != Some(old) {
                self.count_endpoint(old, false);
                if !slots.contains_key(slot) {
                    self.put(ENDPOINTS, slot_key(&key, *slot), None);
                }
            }
        }
        for (slot, new) in slots {
            if old_slots.get(&slot) != Some(&new) {
                self.count_endpoint(&new, true);
                self.put(ENDPOINTS, slot_key(&key, slot), Some(Data::Value(new)));
            }
        }
    }

    /// Counts how often an address is an endpoint: the first and the last time matter to [`HAIRPIN`].
    fn count_endpoint(&mut self, endpoint: &[u8], more: bool) {
        let address = address_part(endpoint);
        let count = self.state.endpoints.entry(address.clone()).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        let (none, key) = (*count == 0, [address.as_slice(), &address].concat());
        if none {
            self.state.endpoints.remove(&address);
        }
        self.put(HAIRPIN, key, (!none).then_some(Data::Nothing));
    }

    /// What the pod at an address may do: nothing at all before that is known, everything when there is no pod.
    pub(super) fn isolate(&mut self, address: IpAddr, isolation: Option<&Isolation>) {
        let key = octets(address);
        let family = self.state.family;
        for (set, direction, prefix) in
            [(INGRESS, Direction::Ingress, DIGEST_PREFIXES[1]), (EGRESS, Direction::Egress, DIGEST_PREFIXES[2])]
        {
            let data = match isolation {
                None => Some(Data::Verdict(Verdict::Drop)),
                Some(isolation) => {
                    let allowed = match direction {
                        Direction::Ingress => &isolation.ingress,
                        Direction::Egress => &isolation.egress,
                    };
                    allowed.as_ref().map(|allowed| {
                        for allow in allowed {
                            if let Peers::Group(group) = &allow.peers {
                                // One that nobody has told the members of has none.
                                self.state.sets.entry(layout::group_set(group)).or_default();
                            }
                        }
                        let chain = digest_name(prefix, allowed);
                        self.need_chain(&chain, || layout::allow(family, direction, allowed));
                        Data::Verdict(Verdict::Jump(chain))
                    })
                }
            };
            self.put(set, key.clone(), data);
        }
    }

    /// Makes a group's set hold exactly its members of this family; `None` ends it.
    pub(super) fn group(&mut self, set: &str, members: Option<&BTreeSet<Member>>) {
        let family = self.state.family;
        let Some(members) = members else {
            self.state.doomed.insert(set.to_owned());
            return;
        };
        self.state.doomed.remove(set);
        let same_family = members.iter().filter(|member| Family::of(member.address) == family);
        let wanted: BTreeSet<Vec<u8>> = same_family.map(member_key).collect();
        let old = self.state.sets.entry(set.to_owned()).or_default();
        let gone: Vec<Vec<u8>> = old.keys().filter(|key| !wanted.contains(*key)).cloned().collect();
        for key in gone {
            self.put(set, key, None);
        }
        for key in wanted {
            self.put(set, key, Some(Data::Nothing));
        }
    }

    /// Ends the edit; chains that nothing leads to any more go.
    pub(super) fn finish(self) -> Steps {
        let Self { state, mut before, chains_before, sets_before, suspects } = self;
        let mut steps = Steps::default();
        let unused = |state: &State, name: &String| state.references.get(name).is_none_or(|count| *count == 0);
        let fresh: Vec<String> = state.chains.keys().filter(|name| !chains_before.contains(*name)).cloned().collect();
        for name in suspects.into_iter().chain(fresh) {
            if unused(state, &name) {
                state.references.remove(&name);
                if state.chains.remove(&name).is_some() && chains_before.contains(&name) {
                    steps.old_chains.push(name);
                }
            }
        }
        for (name, rules) in state.chains.iter().filter(|(name, _)| !chains_before.contains(*name)) {
            steps.new_chains.push((name.clone(), rules.clone().unwrap_or_default()));
        }
        for set in state.doomed.clone() {
            if !state.refers_to(&set) {
                state.doomed.remove(&set);
                state.sets.remove(&set);
                before.retain(|(of, _), _| *of != set);
            }
        }
        let fixed = |name: &String| !name.starts_with(layout::GROUP);
        steps.new_sets =
            state.sets.keys().filter(|name| !fixed(name) && !sets_before.contains(*name)).cloned().collect();
        steps.old_sets = sets_before.into_iter().filter(|name| !state.sets.contains_key(name)).collect();
        for ((set, key), old) in before {
            let new = state.get(&set, &key).cloned();
            if old == new {
                continue;
            }
            let (deleted, added) = steps.elements.entry(set).or_default();
            if let Some(old) = old {
                deleted.insert(key.clone(), old);
            }
            if let Some(new) = new {
                added.insert(key, new);
            }
        }
        steps
    }
}

impl Steps {
    pub(super) fn is_empty(&self) -> bool {
        self.new_sets.is_empty()
            && self.new_chains.is_empty()
            && self.elements.is_empty()
            && self.old_chains.is_empty()
            && self.old_sets.is_empty()
    }
}
