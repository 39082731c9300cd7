//! The nftables table `edge`: written in atomic batches, only what changed, and read back.
//!
//! Comes in: the desired [`ServiceTable`]. Goes out: rules in the kernel. The kernel's table is the truth after a restart:
//! one of the same layout is adopted as it is (with the sessions' affinity), any other is replaced in one batch.

mod expr;
mod layout;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::netlink::{ATTRIBUTE_HEADER, ATTRIBUTE_MAX, Message, Socket, attribute, attributes, text};
use crate::{Cidr, Error, ServiceTable};
use expr::{NFTA_LIST_ELEM, Verdict};
use layout::{AFFINITY, Chain, SETS, SetData, SetLayout};
use state::{Balancer, Data, Elements, State, endpoint_of, frontend_of};

/// Name of the table.
const TABLE: &str = "edge";
/// Name of the empty chain that tells by which layout the table was made.
const LAYOUT_PREFIX: &str = "layout-";

const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
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

/// The table on this node.
#[derive(Debug)]
pub(crate) struct Table {
    cluster: Cidr,
    services: Cidr,
    /// What is in the kernel; `None` when that is not known and everything must be written anew.
    applied: Option<State>,
}

impl Table {
    /// Adopts the table in the kernel when it has today's layout, and tells what it does; makes an empty one otherwise.
    pub(crate) fn open(cluster: Cidr, services: Cidr) -> Result<(Self, ServiceTable), Error> {
        let mut table = Self { cluster, services, applied: None };
        let mut socket = Socket::netfilter()?;
        let found = table.read(&mut socket)?;
        if let Some((state, adopted)) = found.and_then(|state| state.decompile().map(|adopted| (state, adopted))) {
            table.applied = Some(state);
            return Ok((table, adopted));
        }
        table.replace(&mut socket, &State::default(), &BTreeSet::new())?;
        Ok((table, ServiceTable::new()))
    }

    /// Makes the kernel's table hold exactly `desired`, in one atomic step.
    pub(crate) fn apply(&mut self, desired: &ServiceTable) -> Result<(), Error> {
        let (wanted, balancers) = state::compile(desired);
        let mut socket = Socket::netfilter()?;
        if let Some(applied) = &self.applied {
            let operations = changes(applied, &wanted, &balancers);
            if operations.is_empty() {
                return Ok(());
            }
            match batch(&mut socket, operations) {
                Ok(()) => {
                    self.applied = Some(wanted);
                    return Ok(());
                }
                // Somebody else changed the table.
                Err(error) => tracing::warn!(%error, "nftables table changed by others, writing it anew"),
            }
        }
        self.replace(&mut socket, &wanted, &balancers)
    }

    /// Deletes affinities whose endpoint no longer belongs to their frontend.
    pub(crate) fn forget_stale_affinity(&self, desired: &ServiceTable) -> Result<(), Error> {
        let mut socket = Socket::netfilter()?;
        let Some(remembered) = read_elements(&mut socket, &SETS[SETS.len() - 1])? else { return Ok(()) };
        let stale = |key: &[u8], data: &Data| {
            let Data::Value(data) = data else { return true };
            let route = key.get(4..).and_then(frontend_of).and_then(|frontend| desired.get(&frontend));
            let Some((route, endpoint)) = route.zip(endpoint_of(data)) else { return true };
            let internal = route.internal_endpoints.iter().flatten();
            route.affinity_seconds.is_none() || !route.endpoints.iter().chain(internal).any(|e| *e == endpoint)
        };
        for (key, _) in remembered.into_iter().filter(|(key, data)| stale(key, data)) {
            let one = Elements::from([(key, Data::Nothing)]);
            match batch(&mut socket, element_operations(DELSETELEM, AFFINITY, &one)) {
                Ok(()) => {}
                // It timed out in the meantime.
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes the table; one that does not exist is fine.
    pub(crate) fn delete(&mut self) -> Result<(), Error> {
        self.applied = None;
        // Creating first makes the deletion work whether or not it exists.
        let operations = vec![table_operation(NEWTABLE, CREATE), table_operation(DELTABLE, 0)];
        batch(&mut Socket::netfilter()?, operations)
    }

    fn replace(&mut self, socket: &mut Socket, wanted: &State, balancers: &BTreeSet<Balancer>) -> Result<(), Error> {
        self.applied = None;
        let mut operations =
            vec![table_operation(NEWTABLE, CREATE), table_operation(DELTABLE, 0), table_operation(NEWTABLE, CREATE)];
        operations.extend(SETS.iter().map(set_operation));
        let chains = layout::chains(self.cluster, self.services);
        operations.extend(chains.iter().map(chain_operation));
        operations.extend(chains.iter().flat_map(rule_operations));
        let marker = Chain { name: self.marker(), hook: None, rules: Vec::new() };
        operations.push(chain_operation(&marker));
        operations.extend(changes(&State::default(), wanted, balancers));
        batch(socket, operations)?;
        self.applied = Some(wanted.clone());
        Ok(())
    }

    /// Name of the chain that stands for the layout: a digest of everything fixed.
    fn marker(&self) -> String {
        let mut hasher = DefaultHasher::new();
        let every_kind =
            [(false, false, None), (true, true, Some(1))].map(|(any_address, internal, affinity_seconds)| {
                layout::balance(&Balancer { count: 1, any_address, internal, affinity_seconds })
            });
        for chain in layout::chains(self.cluster, self.services).iter().chain(&every_kind) {
            chain_operation(chain).1.finish(0).hash(&mut hasher);
            for (_, message) in rule_operations(chain) {
                message.finish(0).hash(&mut hasher);
            }
        }
        for set in &SETS {
            set_operation(set).1.finish(0).hash(&mut hasher);
        }
        format!("{LAYOUT_PREFIX}{:016x}", hasher.finish())
    }

    /// The state in the kernel; `None` when there is no table of today's layout.
    fn read(&self, socket: &mut Socket) -> Result<Option<State>, Error> {
        let chains = read_chains(socket)?;
        if !chains.contains(&self.marker()) {
            return Ok(None);
        }
        let chains = chains.into_iter().filter(|name| Balancer::parse(name).is_some()).collect();
        let mut state = State { chains, ..State::default() };
        for set in SETS.iter().filter(|set| !set.dynamic) {
            let Some(elements) = read_elements(socket, set)? else { return Ok(None) };
            if !elements.is_empty() {
                state.sets.insert(set.name, elements);
            }
        }
        Ok(Some(state))
    }
}

/// The batch that leads from `from` to `to`.
fn changes(from: &State, to: &State, balancers: &BTreeSet<Balancer>) -> Operations {
    let new_chains = balancers.iter().filter(|balancer| !from.chains.contains(&balancer.chain())).map(layout::balance);
    let new_chains: Vec<Chain> = new_chains.collect();
    let mut operations: Operations = new_chains.iter().map(chain_operation).collect();
    operations.extend(new_chains.iter().flat_map(rule_operations));
    let none = Elements::new();
    for set in &SETS {
        let before = from.sets.get(set.name).unwrap_or(&none);
        let (deleted, added) = state::difference(before, to.sets.get(set.name).unwrap_or(&none));
        operations.extend(element_operations(DELSETELEM, set.name, &deleted));
        operations.extend(element_operations(NEWSETELEM, set.name, &added));
    }
    for name in from.chains.difference(&to.chains) {
        let mut message = Message::new(kind(DELCHAIN), 0, &header());
        message.text(1, TABLE).text(3, name);
        operations.push((format!("delete chain {name}"), message));
    }
    operations
}

fn kind(message: u16) -> u16 {
    (SUBSYSTEM << 8) | message
}

/// `struct nfgenmsg` of the family `ip`.
fn header() -> [u8; 4] {
    [libc::NFPROTO_IPV4 as u8, 0, 0, 0]
}

fn batch(socket: &mut Socket, operations: Operations) -> Result<(), Error> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let boundary = |kind| Message::new(kind, 0, &[libc::AF_UNSPEC as u8, 0, high, low]);
    socket.batch(boundary(BATCH_BEGIN), operations, boundary(BATCH_END))
}

fn table_operation(message_kind: u16, flags: u16) -> (String, Message) {
    let mut message = Message::new(kind(message_kind), flags, &header());
    message.text(1, TABLE);
    (format!("write table {TABLE}"), message)
}

fn chain_operation(chain: &Chain) -> (String, Message) {
    let mut message = Message::new(kind(NEWCHAIN), CREATE, &header());
    message.text(1, TABLE).text(3, &chain.name);
    if let Some(hook) = chain.hook {
        message.nested(4, |m| {
            m.be32(1, hook.number).bytes(2, &hook.priority.to_be_bytes());
        });
        message.text(7, hook.kind);
    }
    (format!("create chain {}", chain.name), message)
}

fn rule_operations(chain: &Chain) -> Operations {
    let encode = |(number, rule): (usize, &Vec<expr::Expr>)| {
        let mut message = Message::new(kind(NEWRULE), APPEND, &header());
        message.text(1, TABLE).text(2, &chain.name).nested(4, |list| {
            for expression in rule {
                expression.encode(list);
            }
        });
        (format!("create rule {number} of chain {}", chain.name), message)
    };
    chain.rules.iter().enumerate().map(encode).collect()
}

fn set_operation(set: &SetLayout) -> (String, Message) {
    let mut message = Message::new(kind(NEWSET), CREATE, &header());
    let mut flags = if set.data == SetData::Nothing { 0 } else { SET_MAP };
    if set.dynamic {
        flags |= SET_TIMEOUT | SET_EVAL;
    }
    message.text(1, TABLE).text(2, set.name).be32(3, flags).be32(4, set.key_type).be32(5, set.key_length);
    match set.data {
        SetData::Nothing => {}
        SetData::Verdict => {
            message.be32(6, DATA_VERDICT);
        }
        SetData::Endpoint => {
            message.be32(6, layout::TYPE_ENDPOINT).be32(7, 8);
        }
    }
    if set.dynamic {
        message.nested(9, |description| {
            description.be32(1, AFFINITY_SIZE);
        });
    }
    message.be32(10, 1);
    (format!("create set {}", set.name), message)
}

/// Messages that add or delete elements, each as long as an attribute may be.
fn element_operations(message_kind: u16, set: &str, elements: &Elements) -> Operations {
    let verb = if message_kind == DELSETELEM { "delete" } else { "add" };
    let mut operations = Operations::new();
    let mut rest = elements.iter().peekable();
    while rest.peek().is_some() {
        let mut message = Message::new(kind(message_kind), CREATE, &header());
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
fn read_chains(socket: &mut Socket) -> Result<BTreeSet<String>, Error> {
    let dumped = socket.dump("list chains", Message::new(kind(GETCHAIN), 0, &header()))?;
    let name = |payload: &[u8]| {
        let body = payload.get(4..)?;
        attribute(body, 1).and_then(text).filter(|table| *table == TABLE)?;
        attribute(body, 3).and_then(text).map(str::to_owned)
    };
    Ok(dumped.iter().filter_map(|(_, payload)| name(payload)).collect())
}

/// The elements of a set; `None` when there is no such set, or when it holds something this room does not write.
fn read_elements(socket: &mut Socket, set: &SetLayout) -> Result<Option<Elements>, Error> {
    let mut message = Message::new(kind(GETSETELEM), 0, &header());
    message.text(1, TABLE).text(2, set.name);
    let dumped = match socket.dump(&format!("list set {}", set.name), message) {
        Ok(dumped) => dumped,
        Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut elements = Elements::new();
    for (_, payload) in &dumped {
        let list = payload.get(4..).and_then(|body| attribute(body, 3)).unwrap_or_default();
        for (_, element) in attributes(list) {
            let Some((key, data)) = decode_element(element, set.data) else { return Ok(None) };
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
