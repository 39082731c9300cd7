//! The nftables tables `edge`, one for each family of addresses: written in atomic batches, only what changed, and read back.
//!
//! Comes in: [`Edit`]s. Goes out: rules in the kernel. The kernel's table is the truth after a restart: one of the same layout
//! is adopted as it is (with the sessions' affinity), any other is replaced in one batch.

mod expr;
mod layout;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use crate::netlink::{ATTRIBUTE_HEADER, ATTRIBUTE_MAX, Message, Socket, attribute, attributes, text};
use crate::policy::PolicyChanges;
use crate::service::ServiceChanges;
use crate::{Endpoint, Error, Family, Frontend, Isolation};
use expr::{NFTA_LIST_ELEM, Verdict};
pub(crate) use layout::Networks;
use layout::{AFFINITY, Chain, Rules, SETS, SetData, SetLayout};
use state::{Balancer, DIGEST_PREFIXES, Data, Edit, Elements, Memory, State, Steps, endpoint_of, frontend_of_affinity};

/// Name of the tables.
pub(crate) const TABLE: &str = "edge";
/// Name of the empty chain that tells by which layout the table was made.
const LAYOUT_PREFIX: &str = "layout-";

const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
pub(crate) const DELTABLE: u16 = 2;
pub(crate) const NEWCHAIN: u16 = 3;
pub(crate) const GETCHAIN: u16 = 4;
pub(crate) const DELCHAIN: u16 = 5;
pub(crate) const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
pub(crate) const GETSET: u16 = 10;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
pub(crate) const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const APPEND: u16 = (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16;

const SET_MAP: u32 = 1 << 3;
const SET_TIMEOUT: u32 = 1 << 4;
const SET_EVAL: u32 = 1 << 5;
const DATA_VERDICT: u32 = 0xffff_ff00;
/// Most clients whose affinity is remembered.
const AFFINITY_SIZE: u32 = 65_536;

const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;

/// A batch in the making: messages and what each of them does.
type Operations = Vec<(String, Message)>;

/// The table of one family.
#[derive(Debug)]
struct Part {
    networks: Networks,
    state: State,
}

/// The tables on this node.
#[derive(Debug)]
pub(crate) struct Table {
    /// Kept open: closing a socket waits until the kernel has freed all that transactions of this namespace have removed.
    socket: Socket,
    parts: Vec<Part>,
    /// Whether the kernel is known to hold what `parts` say.
    in_kernel: bool,
    /// Whether all of it was in the kernel when it was opened.
    pub(crate) adopted: bool,
}

/// Something new for the kernel, applied in one step.
#[derive(Debug, Default)]
pub(crate) struct Change<'a> {
    /// Routes.
    pub(crate) services: Option<&'a ServiceChanges>,
    /// What the pods at some addresses may do: `None` ends a pod.
    pub(crate) pods: Vec<(IpAddr, Option<PodRules<'a>>)>,
    /// Peers of pods.
    pub(crate) policies: Option<&'a PolicyChanges>,
}

/// What a pod may do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PodRules<'a> {
    /// Nothing: what it may do is not known yet.
    Closed,
    /// This.
    Known(&'a Isolation),
}

impl Table {
    /// Adopts the tables in the kernel that have today's layout, and makes empty ones otherwise. Of a family without networks
    /// there is no table.
    pub(crate) fn open(networks: Vec<Networks>) -> Result<Self, Error> {
        let mut socket = Socket::netfilter()?;
        let mut parts = Vec::new();
        let mut operations = Operations::new();
        let mut adopted = true;
        for networks in networks {
            let family = networks.family();
            let found = read(&mut socket, &networks)?;
            adopted &= found.is_some();
            if found.is_none() {
                operations.extend(replacement(&networks, &State::new(family)));
            }
            parts.push(Part { networks, state: found.unwrap_or_else(|| State::new(family)) });
        }
        for family in Family::ALL.into_iter().filter(|family| parts.iter().all(|p| p.networks.family() != *family)) {
            if read_chains(&mut socket, family).is_ok_and(|chains| !chains.is_empty()) {
                operations.push(table_operation(family, DELTABLE, 0));
            }
        }
        if !operations.is_empty() {
            batch(&mut socket, operations)?;
        }
        Ok(Self { socket, parts, in_kernel: true, adopted })
    }

    /// The frontends that the kernel knows.
    pub(crate) fn frontends(&self) -> BTreeSet<Frontend> {
        self.parts.iter().flat_map(|part| part.state.frontends()).collect()
    }

    /// The endpoints of a frontend.
    pub(crate) fn endpoints_of(&self, frontend: &Frontend) -> BTreeSet<Endpoint> {
        self.part(frontend.family()).map(|part| part.state.endpoints_of(frontend)).unwrap_or_default()
    }

    /// The frontends among these whose clients come back to the same endpoint.
    pub(crate) fn with_affinity<'a>(&self, all: impl Iterator<Item = &'a Frontend>) -> BTreeSet<Frontend> {
        let sticky =
            |frontend: &&Frontend| self.part(frontend.family()).is_some_and(|part| part.state.has_affinity(frontend));
        all.filter(sticky).copied().collect()
    }

    /// The addresses of pods that some policy is in force for.
    pub(crate) fn isolated(&self) -> BTreeSet<IpAddr> {
        self.parts.iter().flat_map(|part| part.state.isolated()).collect()
    }

    fn part(&self, family: Family) -> Option<&Part> {
        self.parts.iter().find(|part| part.networks.family() == family)
    }

    /// Makes a change, in one atomic step for all families.
    pub(crate) fn apply(&mut self, change: &Change<'_>) -> Result<(), Error> {
        let mut operations = Operations::new();
        for part in &mut self.parts {
            let family = part.networks.family();
            let mut edit = Edit::new(&mut part.state);
            change.write(family, &mut edit);
            operations.extend(steps_operations(family, edit.finish()));
        }
        if self.in_kernel {
            if operations.is_empty() {
                return Ok(());
            }
            match batch(&mut self.socket, operations) {
                Ok(()) => return Ok(()),
                // Somebody else changed the table.
                Err(error) => tracing::warn!(%error, "nftables table changed by others, writing it anew"),
            }
        }
        self.in_kernel = false;
        self.parts.iter_mut().for_each(|part| part.state.close_lost());
        let whole = self.parts.iter().flat_map(|part| replacement(&part.networks, &part.state)).collect();
        batch(&mut self.socket, whole)?;
        self.in_kernel = true;
        Ok(())
    }

    /// What the kernel holds now, in words: equal for tables that mean the same.
    pub(crate) fn in_kernel(&self) -> Result<BTreeSet<String>, Error> {
        let mut socket = Socket::netfilter()?;
        let mut lines = BTreeSet::new();
        for part in &self.parts {
            match read(&mut socket, &part.networks)? {
                Some(state) => lines.extend(state.describe()),
                None => drop(lines.insert(format!("{:?}: no table", part.networks.family()))),
            }
        }
        Ok(lines)
    }

    /// Deletes affinities to endpoints that these frontends no longer have.
    pub(crate) fn forget_stale_affinity(&mut self, frontends: &BTreeSet<Frontend>) -> Result<(), Error> {
        for part in &self.parts {
            let family = part.networks.family();
            if frontends.iter().all(|frontend| frontend.family() != family) {
                continue;
            }
            let Some(remembered) = read_elements(&mut self.socket, family, AFFINITY)? else { continue };
            let stale = |key: &[u8], data: &Data| {
                let Data::Value(data) = data else { return true };
                let frontend = frontend_of_affinity(family, key);
                let Some((frontend, endpoint)) = frontend.zip(endpoint_of(family, data)) else { return true };
                frontends.contains(&frontend)
                    && !(part.state.has_affinity(&frontend) && part.state.endpoints_of(&frontend).contains(&endpoint))
            };
            for (key, _) in remembered.into_iter().filter(|(key, data)| stale(key, data)) {
                let one = Elements::from([(key, Data::Nothing)]);
                match batch(&mut self.socket, element_operations(family, DELSETELEM, AFFINITY, &one)) {
                    Ok(()) => {}
                    // It timed out in the meantime.
                    Err(error) if error.errno() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Writes the tables anew if others have taken one away; tells whether it was so.
    pub(crate) fn restore(&mut self) -> Result<bool, Error> {
        for part in &self.parts {
            self.in_kernel &= read_chains(&mut self.socket, part.networks.family())?.contains(&marker(&part.networks));
        }
        let lost = !self.in_kernel;
        if lost {
            self.apply(&Change::default())?;
        }
        Ok(lost)
    }

    /// Removes the tables; one that does not exist is fine.
    pub(crate) fn delete(&mut self) -> Result<(), Error> {
        self.in_kernel = false;
        // Creating first makes the deletion work whether or not it exists.
        let both = |part: &Part| {
            let family = part.networks.family();
            [table_operation(family, NEWTABLE, CREATE), table_operation(family, DELTABLE, 0)]
        };
        batch(&mut self.socket, self.parts.iter().flat_map(both).collect())
    }
}

/// Removes the tables of all families, whatever is in them.
pub(crate) fn delete_all() -> Result<(), Error> {
    let mut socket = Socket::netfilter()?;
    let mut operations = Operations::new();
    for family in Family::ALL {
        let tables = socket.dump("list tables", Message::new(kind(GETTABLE), 0, &header(family)))?;
        if names(&tables, 1).contains(TABLE) {
            operations.push(table_operation(family, DELTABLE, 0));
        }
    }
    if operations.is_empty() { Ok(()) } else { batch(&mut socket, operations) }
}

impl Change<'_> {
    /// Writes this change's part of a family.
    fn write(&self, family: Family, edit: &mut Edit<'_>) {
        let of_family = |frontend: &Frontend| frontend.family() == family;
        for (frontend, route) in self.services.into_iter().flatten().filter(|(frontend, _)| of_family(frontend)) {
            edit.route(frontend, route.as_ref());
        }
        if let Some(policies) = self.policies {
            for (group, members) in &policies.groups {
                edit.group(&layout::group_set(group), members.as_ref());
            }
        }
        let open = Isolation::default();
        for (address, rules) in self.pods.iter().filter(|(address, _)| Family::of(*address) == family) {
            match rules {
                None => edit.isolate(*address, Some(&open)),
                Some(PodRules::Closed) => edit.isolate(*address, None),
                Some(PodRules::Known(isolation)) => edit.isolate(*address, Some(isolation)),
            }
        }
        if let Some(policies) = self.policies.filter(|policies| policies.complete) {
            let wanted = |set: &String| {
                policies.groups.iter().any(|(group, members)| members.is_some() && layout::group_set(group) == *set)
            };
            for set in edit.state().group_sets().into_iter().filter(|set| !wanted(set)) {
                edit.group(&set, None);
            }
        }
    }
}

/// The type of an nfnetlink message about nftables.
pub(crate) fn kind(message: u16) -> u16 {
    (SUBSYSTEM << 8) | message
}

/// `struct nfgenmsg` of a family.
fn header(family: Family) -> [u8; 4] {
    [expr::number(family), 0, 0, 0]
}

fn batch(socket: &mut Socket, operations: Operations) -> Result<(), Error> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let boundary = |kind| Message::new(kind, 0, &[libc::AF_UNSPEC as u8, 0, high, low]);
    socket.batch(boundary(BATCH_BEGIN), operations, boundary(BATCH_END))
}

/// The batch that puts a table in the place of whatever there is.
fn replacement(networks: &Networks, state: &State) -> Operations {
    let family = networks.family();
    let mut operations = vec![
        table_operation(family, NEWTABLE, CREATE),
        table_operation(family, DELTABLE, 0),
        table_operation(family, NEWTABLE, CREATE),
    ];
    operations.extend(SETS.iter().map(|set| set_operation(family, set.name, set)));
    for name in state.group_sets() {
        operations.extend(SetLayout::of(&name).map(|layout| set_operation(family, &name, &layout)));
    }
    let mut chains = networks.chains();
    chains.extend(state.chains().map(|(name, rules)| Chain { name: name.clone(), hook: None, rules }));
    chains.push(Chain { name: marker(networks), hook: None, rules: Rules::new() });
    operations.extend(chains.iter().map(|chain| chain_operation(family, chain)));
    operations.extend(chains.iter().flat_map(|chain| rule_operations(family, chain)));
    for (set, elements) in state.sets() {
        operations.extend(element_operations(family, NEWSETELEM, set, elements));
    }
    operations
}

fn steps_operations(family: Family, steps: Steps) -> Operations {
    let mut operations = Operations::new();
    if steps.is_empty() {
        return operations;
    }
    for name in &steps.new_sets {
        operations.extend(SetLayout::of(name).map(|layout| set_operation(family, name, &layout)));
    }
    let chains = steps.new_chains.into_iter().map(|(name, rules)| Chain { name, hook: None, rules });
    let chains: Vec<Chain> = chains.collect();
    operations.extend(chains.iter().map(|chain| chain_operation(family, chain)));
    operations.extend(chains.iter().flat_map(|chain| rule_operations(family, chain)));
    for (set, (deleted, added)) in &steps.elements {
        operations.extend(element_operations(family, DELSETELEM, set, deleted));
        operations.extend(element_operations(family, NEWSETELEM, set, added));
    }
    for name in steps.old_chains {
        let mut message = Message::new(kind(DELCHAIN), 0, &header(family));
        message.text(1, TABLE).text(3, &name);
        operations.push((format!("delete chain {name}"), message));
    }
    for name in steps.old_sets {
        let mut message = Message::new(kind(DELSET), 0, &header(family));
        message.text(1, TABLE).text(2, &name);
        operations.push((format!("delete set {name}"), message));
    }
    operations
}

/// Name of the chain that stands for the layout: a digest of everything fixed.
fn marker(networks: &Networks) -> String {
    let family = networks.family();
    let mut hasher = DefaultHasher::new();
    let every_kind = [(false, false, None), (true, true, Some(1))].map(|(any_address, internal, affinity_seconds)| {
        let balancer = Balancer { count: 1, any_address, internal, affinity_seconds };
        Chain { name: balancer.chain(), hook: None, rules: layout::balance(family, &balancer) }
    });
    let memories = [false, true].map(|any_address| {
        let memory = Memory { any_address, seconds: 1 };
        Chain { name: memory.chain(), hook: None, rules: layout::remember(family, &memory) }
    });
    for chain in networks.chains().iter().chain(&every_kind).chain(&memories) {
        chain_operation(family, chain).1.finish(0).hash(&mut hasher);
        for (_, message) in rule_operations(family, chain) {
            message.finish(0).hash(&mut hasher);
        }
    }
    for set in SETS.iter().chain([&layout::ADDRESS_GROUPS, &layout::PORT_GROUPS]) {
        set_operation(family, set.name, set).1.finish(0).hash(&mut hasher);
    }
    format!("{LAYOUT_PREFIX}{:016x}", hasher.finish())
}

/// The state in the kernel; `None` when there is no table of today's layout.
fn read(socket: &mut Socket, networks: &Networks) -> Result<Option<State>, Error> {
    let family = networks.family();
    let chains = read_chains(socket, family)?;
    if !chains.contains(&marker(networks)) {
        return Ok(None);
    }
    let changing = |name: &String| {
        Balancer::parse(name).is_some()
            || Memory::parse(name).is_some()
            || DIGEST_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    let mut sets = BTreeMap::new();
    for name in read_sets(socket, family)? {
        let Some(layout) = SetLayout::of(&name) else { return Ok(None) };
        if layout.dynamic {
            continue;
        }
        let Some(elements) = read_elements(socket, family, &name)? else { return Ok(None) };
        sets.insert(name, elements);
    }
    Ok(Some(State::adopt(family, sets, chains.into_iter().filter(changing).collect())))
}

fn table_operation(family: Family, message_kind: u16, flags: u16) -> (String, Message) {
    let mut message = Message::new(kind(message_kind), flags, &header(family));
    message.text(1, TABLE);
    (format!("write table {TABLE}"), message)
}

fn chain_operation(family: Family, chain: &Chain) -> (String, Message) {
    let mut message = Message::new(kind(NEWCHAIN), CREATE, &header(family));
    message.text(1, TABLE).text(3, &chain.name);
    if let Some(hook) = chain.hook {
        message.nested(4, |m| {
            m.be32(1, hook.number).bytes(2, &hook.priority.to_be_bytes());
        });
        message.text(7, hook.kind);
    }
    (format!("create chain {}", chain.name), message)
}

fn rule_operations(family: Family, chain: &Chain) -> Operations {
    let encode = |(number, rule): (usize, &Vec<expr::Expr>)| {
        let mut message = Message::new(kind(NEWRULE), APPEND, &header(family));
        message.text(1, TABLE).text(2, &chain.name).nested(4, |list| {
            for expression in rule {
                expression.encode(list);
            }
        });
        (format!("create rule {number} of chain {}", chain.name), message)
    };
    chain.rules.iter().enumerate().map(encode).collect()
}

fn set_operation(family: Family, name: &str, set: &SetLayout) -> (String, Message) {
    let mut message = Message::new(kind(NEWSET), CREATE, &header(family));
    let mut flags = if set.data == SetData::Nothing { 0 } else { SET_MAP };
    if set.dynamic {
        flags |= SET_TIMEOUT | SET_EVAL;
    }
    message.text(1, TABLE).text(2, name).be32(3, flags);
    message.be32(4, set.key_type(family)).be32(5, set.key_length(family));
    match set.data {
        SetData::Nothing => {}
        SetData::Verdict => {
            message.be32(6, DATA_VERDICT);
        }
        SetData::Endpoint => {
            let length = layout::Field::Address.length(family) + layout::Field::Port.length(family);
            message.be32(6, layout::endpoint_type(family)).be32(7, length);
        }
    }
    if set.dynamic {
        message.nested(9, |description| {
            description.be32(1, AFFINITY_SIZE);
        });
    }
    message.be32(10, 1);
    (format!("create set {name}"), message)
}

/// Messages that add or delete elements, each as long as an attribute may be.
fn element_operations(family: Family, message_kind: u16, set: &str, elements: &Elements) -> Operations {
    let verb = if message_kind == DELSETELEM { "delete" } else { "add" };
    let mut operations = Operations::new();
    let mut rest = elements.iter().peekable();
    while rest.peek().is_some() {
        let mut message = Message::new(kind(message_kind), CREATE, &header(family));
        message.text(1, TABLE).text(2, set).nested(3, |list| {
            let start = list.len();
            // An element takes at most this much: key, verdict with the longest chain name, nesting.
            while list.len() - start + 256 < ATTRIBUTE_MAX - ATTRIBUTE_HEADER {
                let Some((key, data)) = rest.next() else { break };
                list.nested(NFTA_LIST_ELEM, |element| {
                    expr::value(element, ELEM_KEY, key);
                    match data {
                        _ if message_kind == DELSETELEM => {}
                        Data::Nothing => {}
                        Data::Value(bytes) => expr::value(element, ELEM_DATA, bytes),
                        Data::Verdict(verdict) => verdict.encode(element, ELEM_DATA),
                    }
                });
            }
        });
        operations.push((format!("{verb} elements of set {set}"), message));
    }
    operations
}

/// Names of the table's chains; empty when there is no table.
fn read_chains(socket: &mut Socket, family: Family) -> Result<BTreeSet<String>, Error> {
    let dumped = socket.dump("list chains", Message::new(kind(GETCHAIN), 0, &header(family)))?;
    Ok(names(&dumped, 3))
}

/// Names of the table's sets; empty when there is no table.
fn read_sets(socket: &mut Socket, family: Family) -> Result<BTreeSet<String>, Error> {
    let mut message = Message::new(kind(GETSET), 0, &header(family));
    message.text(1, TABLE);
    let dumped = socket.dump("list sets", message)?;
    Ok(names(&dumped, 2))
}

/// The names in attribute `kind` of all objects of the table.
fn names(dumped: &[(u16, Vec<u8>)], kind: u16) -> BTreeSet<String> {
    let name = |payload: &[u8]| {
        let body = payload.get(4..)?;
        attribute(body, 1).and_then(text).filter(|table| *table == TABLE)?;
        attribute(body, kind).and_then(text).map(str::to_owned)
    };
    dumped.iter().filter_map(|(_, payload)| name(payload)).collect()
}

/// The elements of a set; `None` when there is no such set, or when it holds something this room does not write.
fn read_elements(socket: &mut Socket, family: Family, set: &str) -> Result<Option<Elements>, Error> {
    let Some(layout) = SetLayout::of(set) else { return Ok(None) };
    let mut message = Message::new(kind(GETSETELEM), 0, &header(family));
    message.text(1, TABLE).text(2, set);
    let dumped = match socket.dump(&format!("list set {set}"), message) {
        Ok(dumped) => dumped,
        Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut elements = Elements::new();
    for (_, payload) in &dumped {
        let list = payload.get(4..).and_then(|body| attribute(body, 3)).unwrap_or_default();
        for (_, element) in attributes(list) {
            let Some((key, data)) = decode_element(element, layout.data) else { return Ok(None) };
            elements.insert(key, data);
        }
    }
    Ok(Some(elements))
}

fn decode_element(element: &[u8], carried: SetData) -> Option<(Vec<u8>, Data)> {
    let key = attribute(element, ELEM_KEY).and_then(expr::decode_value)?.to_vec();
    let data = || attribute(element, ELEM_DATA);
    let data = match carried {
        SetData::Nothing => Data::Nothing,
        SetData::Verdict => Data::Verdict(Verdict::decode(data()?)?),
        SetData::Endpoint => Data::Value(expr::decode_value(data()?)?.to_vec()),
    };
    Some((key, data))
}
