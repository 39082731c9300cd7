//! The fixed part of a table: base chains and sets, and the chains that balance load. Only set elements and chains that no
//! hook calls change afterwards ([`super::state`]), so the cost of a packet depends neither on the number of services nor
//! on that of policies.
//!
//! ```text
//! prerouting ─┬─ from pods ──▶ services-internal ──┐   unreachable: input, forward, output (first packet only)
//! output ─────┘                                    │   masquerade:  postrouting
//!             └─ all ────────▶ services, node-ports ┴─▶ balance-<n> : endpoints[frontend, random slot] ─▶ dnat
//!
//! postrouting (first packet of a connection to a service): sticky ─▶ remember-<seconds>: affinity[client, frontend] = endpoint
//!
//! forward (policy): established? accept ─▶ egress[source] ─▶ ingress[destination] ─▶ allow-<digest>: return or drop
//! input (policy):   the same for what pods ask the cluster's DNS; all else between a pod and its node is free
//! ```

use std::net::IpAddr;

use super::expr::{Ct, Expr, Meta, Register, Verdict};
use super::state::{Balancer, Memory};
use crate::node::BRIDGE;
use crate::policy::{Allow, Group, Peers};
use crate::{Cidr, Family};

/// Names of the sets and maps; [`SETS`] describes them.
pub(super) const SERVICES: &str = "services";
pub(super) const NODE_PORTS: &str = "node-ports";
pub(super) const INTERNAL: &str = "services-internal";
pub(super) const ENDPOINTS: &str = "endpoints";
pub(super) const UNREACHABLE: &str = "unreachable";
pub(super) const MASQUERADE: &str = "masquerade";
pub(super) const SOURCES: &str = "source-ranges";
pub(super) const STICKY: &str = "sticky";
pub(super) const HAIRPIN: &str = "hairpin";
pub(super) const AFFINITY: &str = "affinity";
pub(super) const INGRESS: &str = "policy-ingress";
pub(super) const EGRESS: &str = "policy-egress";
/// What the names of all groups' sets begin with.
pub(super) const GROUP: &str = "group-";

/// What the elements of a set carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetData {
    Nothing,
    Verdict,
    /// An address and a port.
    Endpoint,
}

/// The fields of a set's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Address,
    Protocol,
    Port,
    Slot,
}

/// A set or map of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetLayout {
    pub(super) name: &'static str,
    pub(super) key: &'static [Field],
    pub(super) data: SetData,
    /// Whether rules add elements, which time out.
    pub(super) dynamic: bool,
}

const FRONTEND: &[Field] = &[Field::Address, Field::Protocol, Field::Port];

const fn set(name: &'static str, key: &'static [Field], data: SetData) -> SetLayout {
    SetLayout { name, key, data, dynamic: false }
}

/// All fixed sets.
pub(super) const SETS: [SetLayout; 12] = [
    set(SERVICES, FRONTEND, SetData::Verdict),
    set(NODE_PORTS, FRONTEND, SetData::Verdict),
    set(INTERNAL, FRONTEND, SetData::Verdict),
    set(ENDPOINTS, &[Field::Address, Field::Protocol, Field::Port, Field::Slot], SetData::Endpoint),
    set(UNREACHABLE, FRONTEND, SetData::Verdict),
    set(MASQUERADE, FRONTEND, SetData::Nothing),
    set(SOURCES, FRONTEND, SetData::Verdict),
    set(STICKY, FRONTEND, SetData::Verdict),
    set(HAIRPIN, &[Field::Address, Field::Address], SetData::Nothing),
    set(INGRESS, &[Field::Address], SetData::Verdict),
    set(EGRESS, &[Field::Address], SetData::Verdict),
    AFFINITIES,
];

/// The set that rules write themselves.
pub(super) const AFFINITIES: SetLayout = SetLayout {
    name: AFFINITY,
    key: &[Field::Address, Field::Address, Field::Protocol, Field::Port],
    data: SetData::Endpoint,
    dynamic: true,
};

/// The layout of groups of addresses and of ports, and what their names begin with.
pub(super) const ADDRESS_GROUPS: SetLayout = set("group-addresses-", &[Field::Address], SetData::Nothing);
pub(super) const PORT_GROUPS: SetLayout = set("group-ports-", FRONTEND, SetData::Nothing);

impl Field {
    /// Length in bytes, padded to four as nftables does it.
    pub(super) fn length(self, family: Family) -> u32 {
        match self {
            Self::Address => 4 * words(family),
            Self::Protocol | Self::Port | Self::Slot => 4,
        }
    }

    /// nftables' number for the type, which the kernel stores for `nft list`.
    fn kind(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Address, Family::V4) => 7,
            (Self::Address, Family::V6) => 8,
            (Self::Protocol, _) => 12,
            (Self::Port, _) => 13,
            (Self::Slot, _) => 19,
        }
    }
}

impl SetLayout {
    /// The layout of the set `name`; `None` for one that is not ours.
    pub(super) fn of(name: &str) -> Option<Self> {
        let groups = [ADDRESS_GROUPS, PORT_GROUPS].into_iter().find(|group| name.starts_with(group.name));
        SETS.into_iter().find(|set| set.name == name).or(groups)
    }

    pub(super) fn key_length(&self, family: Family) -> u32 {
        self.key.iter().map(|field| field.length(family)).sum()
    }

    /// The types of the key's fields, six bits for each.
    pub(super) fn key_type(&self, family: Family) -> u32 {
        self.key.iter().fold(0, |all, field| (all << 6) | field.kind(family))
    }
}

/// nftables' number for the data type of an endpoint.
pub(super) fn endpoint_type(family: Family) -> u32 {
    (Field::Address.kind(family) << 6) | Field::Port.kind(family)
}

/// Where the kernel calls a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) number: u32,
    pub(super) priority: i32,
}

/// The rules of a chain.
pub(super) type Rules = Vec<Vec<Expr>>;

/// A chain and its rules.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) hook: Option<Hook>,
    pub(super) rules: Rules,
}

/// The chain that answers "nobody there".
pub(super) const REJECT: &str = "reject";

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SNAT: i32 = 100;

const R: Register = Register(0);

const STATE_ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const STATE_NEW: u32 = 8;
const STATUS_DST_NAT: u32 = 1 << 5;
const ROUTE_TYPE_LOCAL: u32 = 2;

/// Registers that an address takes.
fn words(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// The bytes of an address.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn source_address(family: Family, to: Register) -> Expr {
    let offset = if family == Family::V4 { 12 } else { 8 };
    Expr::NetworkHeader { offset, length: 4 * words(family), to }
}

fn destination_address(family: Family, to: Register) -> Expr {
    let offset = if family == Family::V4 { 16 } else { 24 };
    Expr::NetworkHeader { offset, length: 4 * words(family), to }
}

fn original_address(family: Family, to: Register) -> Expr {
    Expr::Ct(if family == Family::V4 { Ct::OriginalAddress } else { Ct::OriginalAddress6 }, to)
}

/// Loads the frontend that the first packet of a connection was for, after its translation.
fn original_frontend(family: Family, any_address: bool, first: u32) -> Vec<Expr> {
    let address = match any_address {
        true => Expr::Immediate(Register(first), octets(family.unspecified())),
        false => original_address(family, Register(first)),
    };
    let after = first + words(family);
    vec![address, Expr::Meta(Meta::Protocol, Register(after)), Expr::Ct(Ct::OriginalPort, Register(after + 1))]
}

fn destination_port(to: Register) -> Expr {
    Expr::TransportHeader { offset: 2, length: 2, to }
}

/// Loads the frontend a packet is for: with its destination address, or (node ports) with none.
fn frontend(family: Family, any_address: bool, first: u32) -> Vec<Expr> {
    let address = if any_address {
        Expr::Immediate(Register(first), octets(family.unspecified()))
    } else {
        destination_address(family, Register(first))
    };
    let after = first + words(family);
    vec![address, Expr::Meta(Meta::Protocol, Register(after)), destination_port(Register(after + 1))]
}

/// Matches an address loaded by `load` against a network.
fn in_network(load: fn(Family, Register) -> Expr, network: Cidr, inside: bool) -> Vec<Expr> {
    let base = octets(network.base());
    let bits = usize::from(network.prefix());
    let mask = (0..base.len()).map(|byte| match bits.saturating_sub(byte * 8).min(8) {
        0 => 0,
        ones => u8::MAX << (8 - ones),
    });
    let mask: Vec<u8> = mask.collect();
    let compare = if inside { Expr::Equal(R, base) } else { Expr::NotEqual(R, base) };
    vec![load(Family::of(network.base()), R), Expr::And(R, mask), compare]
}

fn interface(key: Meta, name: &str, equal: bool) -> Vec<Expr> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(libc::IFNAMSIZ, 0);
    vec![Expr::Meta(key, R), if equal { Expr::Equal(R, padded) } else { Expr::NotEqual(R, padded) }]
}

fn flags(key: Ct, bits: u32, set: bool) -> Vec<Expr> {
    let none = 0_u32.to_ne_bytes().to_vec();
    let compare = if set { Expr::NotEqual(R, none) } else { Expr::Equal(R, none) };
    vec![Expr::Ct(key, R), Expr::And(R, bits.to_ne_bytes().to_vec()), compare]
}

fn protocol(number: i32) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Protocol, R), Expr::Equal(R, vec![number as u8])]
}

fn local(load: Expr) -> Vec<Expr> {
    vec![load, Expr::Equal(R, ROUTE_TYPE_LOCAL.to_ne_bytes().to_vec())]
}

fn to_this_node() -> Vec<Expr> {
    local(Expr::DestinationType(R))
}

fn verdict(verdict: Verdict) -> Vec<Expr> {
    vec![Expr::Verdict(verdict)]
}

fn go(chain: &str) -> Vec<Expr> {
    verdict(Verdict::Goto(chain.to_owned()))
}

fn rule(parts: impl IntoIterator<Item = Vec<Expr>>) -> Vec<Expr> {
    parts.into_iter().flatten().collect()
}

/// Networks that are the same everywhere.
fn network(first: [u8; 4], first6: u16, bits: (u8, u8), family: Family) -> Cidr {
    let (address, prefix): (IpAddr, u8) = match family {
        Family::V4 => (first.into(), bits.0),
        Family::V6 => ([first6, 0, 0, 0, 0, 0, 0, u16::from(first6 == 0)].into(), bits.1),
    };
    Cidr::new(address, prefix).expect("invariant: a valid network")
}

fn loopback(family: Family) -> Cidr {
    network([127, 0, 0, 0], 0, (8, 128), family)
}

fn multicast(family: Family) -> Cidr {
    network([224, 0, 0, 0], 0xff00, (4, 8), family)
}

fn base(name: &str, hook: Hook, rules: Rules) -> Chain {
    Chain { name: name.to_owned(), hook: Some(hook), rules }
}

fn regular(name: &str, rules: Rules) -> Chain {
    Chain { name: name.to_owned(), hook: None, rules }
}

/// The networks of a cluster that have addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Networks {
    /// All pods' addresses.
    pub(crate) cluster: Cidr,
    /// All cluster IPs.
    pub(crate) services: Cidr,
    /// The address of the cluster's DNS, which this node answers.
    pub(crate) dns: Option<IpAddr>,
    /// The node's addresses that serve node ports; every one when empty.
    pub(crate) node_ports: Vec<Cidr>,
}

impl Networks {
    pub(crate) fn family(&self) -> Family {
        Family::of(self.cluster.base())
    }

    /// The fixed chains, each after those it leads to.
    pub(super) fn chains(&self) -> Vec<Chain> {
        let nat = |number, priority| Hook { kind: "nat", number, priority };
        let filter = |number, priority| Hook { kind: "filter", number, priority };
        let family = self.family();
        let mut chains = vec![reject(family), self.affinities(), self.service_source()];
        if family == Family::V4 {
            // Node ports on 127.0.0.1 need `route_localnet` on the bridge; pods must not reach the node's loopback by it.
            let from_pod_to_loopback = rule([
                interface(Meta::InterfaceIn, BRIDGE, true),
                in_network(destination_address, loopback(family), true),
                verdict(Verdict::Drop),
            ]);
            chains.push(base("raw", filter(PREROUTING, PRIORITY_RAW), vec![from_pod_to_loopback]));
        }
        let from_pod = in_network(source_address, self.cluster, true);
        chains.push(base("prerouting", nat(PREROUTING, PRIORITY_DNAT), self.dispatch(from_pod)));
        chains.push(base("output-nat", nat(OUTPUT, PRIORITY_DNAT), self.dispatch(Vec::new())));
        // Connections that end on this node do not come by there.
        chains.push(base("input-nat", nat(INPUT, PRIORITY_SNAT), vec![to_service(AFFINITIES_CHAIN)]));
        chains.push(base("postrouting", nat(POSTROUTING, PRIORITY_SNAT), self.postrouting()));
        chains.extend(self.filters(filter));
        chains.extend(self.policies(filter));
        chains
    }

    /// First packets of connections to a frontend without endpoints, and whatever else goes to an unknown cluster IP.
    fn filters(&self, hook: impl Fn(u32, i32) -> Hook) -> [Chain; 3] {
        let family = self.family();
        let first_packet = || [flags(Ct::State, STATE_NEW, true), flags(Ct::Status, STATUS_DST_NAT, false)];
        let unreachable = || {
            let lookup = vec![Expr::VerdictMap(UNREACHABLE, R)];
            rule(first_packet().into_iter().chain([frontend(family, false, 0), lookup]))
        };
        let unreachable_on_node = || {
            self.node_port_addresses().map(|condition| {
                let lookup = vec![Expr::VerdictMap(UNREACHABLE, R)];
                rule(first_packet().into_iter().chain([condition, to_this_node(), frontend(family, true, 0), lookup]))
            })
        };
        let unknown_cluster_ip = || {
            rule([
                interface(Meta::InterfaceOut, BRIDGE, true),
                in_network(destination_address, self.services, true),
                go(REJECT),
            ])
        };
        // Packets from pod to pod come in and leave by the bridge. A pod that believed a redirect would answer its
        // neighbour directly, past the address translation of this node.
        let (icmp, redirect) = match family {
            Family::V4 => (libc::IPPROTO_ICMP, 5),
            Family::V6 => (libc::IPPROTO_ICMPV6, 137),
        };
        let redirects = rule([
            interface(Meta::InterfaceOut, BRIDGE, true),
            protocol(icmp),
            vec![Expr::TransportHeader { offset: 0, length: 1, to: R }, Expr::Equal(R, vec![redirect])],
            verdict(Verdict::Drop),
        ]);
        [
            base(
                "input",
                hook(INPUT, PRIORITY_FILTER),
                [unreachable()].into_iter().chain(unreachable_on_node()).collect(),
            ),
            base("forward", hook(FORWARD, PRIORITY_FILTER), vec![unreachable(), unknown_cluster_ip()]),
            base(
                "output",
                hook(OUTPUT, PRIORITY_FILTER),
                [redirects, unreachable()]
                    .into_iter()
                    .chain(unreachable_on_node())
                    .chain([unknown_cluster_ip()])
                    .collect(),
            ),
        ]
    }

    /// The conditions of which one is true of a packet to an address that serves node ports, if it is one of this node.
    fn node_port_addresses(&self) -> impl Iterator<Item = Vec<Expr>> + '_ {
        let all = self.node_ports.is_empty().then(Vec::new);
        self.node_ports.iter().map(|network| in_network(destination_address, *network, true)).chain(all)
    }

    /// What isolated pods may exchange. Nothing here looks at traffic between a pod and its own node, which is always
    /// allowed, except for what the node answers in the place of a pod: the cluster's DNS.
    fn policies(&self, hook: impl Fn(u32, i32) -> Hook) -> Vec<Chain> {
        let family = self.family();
        let known = || rule([flags(Ct::State, STATE_ESTABLISHED_OR_RELATED, true), verdict(Verdict::Accept)]);
        let itself = rule([
            vec![source_address(family, R), destination_address(family, Register(words(family)))],
            vec![Expr::InSet(HAIRPIN.into(), R)],
            verdict(Verdict::Accept),
        ]);
        let egress = || vec![source_address(family, R), Expr::VerdictMap(EGRESS, R)];
        let ingress = vec![destination_address(family, R), Expr::VerdictMap(INGRESS, R)];
        let mut chains =
            vec![base("policy-forward", hook(FORWARD, PRIORITY_FILTER), vec![known(), itself, egress(), ingress])];
        if let Some(dns) = self.dns.and_then(|dns| Cidr::new(dns, (words(family) * 32) as u8).ok()) {
            let to_dns = rule([in_network(destination_address, dns, true), egress()]);
            chains.push(base("policy-input", hook(INPUT, PRIORITY_FILTER), vec![known(), to_dns]));
        }
        chains
    }

    /// Leads to the balancing chain of the frontend; clients that `internal` matches go to endpoints of their own where the
    /// frontend has such. Each map is looked up once: whenever an element of one changes, the kernel walks through all rules
    /// to see where they lead, and through all elements of the maps that it finds there.
    fn dispatch(&self, internal: Vec<Expr>) -> Rules {
        let family = self.family();
        let lookup = |map: &'static str, any_address: bool, conditions: Vec<Vec<Expr>>| {
            let found = [frontend(family, any_address, 0), vec![Expr::VerdictMap(map, R)]];
            rule(conditions.into_iter().chain(found))
        };
        let mut rules = vec![
            lookup(SOURCES, false, Vec::new()),
            lookup(INTERNAL, false, vec![internal.clone()]),
            lookup(SERVICES, false, Vec::new()),
        ];
        for condition in self.node_port_addresses() {
            rules.push(lookup(INTERNAL, true, vec![internal.clone(), condition.clone(), to_this_node()]));
            rules.push(lookup(NODE_PORTS, true, vec![condition, to_this_node()]));
        }
        rules
    }

    /// Which connections to services get this node as their source, so that the answers come back through it.
    fn service_source(&self) -> Chain {
        let family = self.family();
        let after = words(family);
        let original = |any_address: bool| original_frontend(family, any_address, 0);
        let masquerade = || vec![Expr::Masquerade];
        let hairpin = vec![
            source_address(family, R),
            destination_address(family, Register(after)),
            Expr::InSet(HAIRPIN.into(), R),
        ];
        let in_masquerade = || vec![Expr::InSet(MASQUERADE.into(), R)];
        let of_cluster_ip = |inside| in_network(original_address, self.services, inside);
        regular(
            SERVICE_SOURCE,
            vec![
                rule([in_network(source_address, loopback(family), true), masquerade()]),
                rule([hairpin, masquerade()]),
                rule([original(false), in_masquerade(), masquerade()]),
                // A node port's number may be a port of some cluster IP too, which is another frontend.
                rule([of_cluster_ip(false), original(true), in_masquerade(), masquerade()]),
                // Whoever is neither a pod nor on this node reached a cluster IP by a route to this node.
                rule([of_cluster_ip(true), in_network(source_address, self.cluster, false), masquerade()]),
                // This node's own connections to endpoints elsewhere.
                rule([local(Expr::SourceType(R)), interface(Meta::InterfaceOut, "lo", false), masquerade()]),
            ],
        )
    }

    /// Remembers the endpoints of clients that shall get them again. Not where they are chosen: what a rule takes out of a map to
    /// put it into another one, nft before 1.1 cannot print (it aborts, and whoever uses its library with it).
    fn affinities(&self) -> Chain {
        let family = self.family();
        let sticky = |any_address| rule([original_frontend(family, any_address, 0), vec![Expr::VerdictMap(STICKY, R)]]);
        // A node port's number may be a port of some cluster IP too, which is another frontend.
        let not_of_cluster_ip = in_network(original_address, self.services, false);
        regular(AFFINITIES_CHAIN, vec![sticky(false), rule([not_of_cluster_ip, sticky(true)])])
    }

    fn postrouting(&self) -> Rules {
        let family = self.family();
        let pod_to_world = rule([
            in_network(source_address, self.cluster, true),
            in_network(destination_address, self.cluster, false),
            in_network(destination_address, multicast(family), false),
            interface(Meta::InterfaceOut, BRIDGE, false),
            interface(Meta::InterfaceOut, "lo", false),
            vec![Expr::Masquerade],
        ]);
        vec![to_service(AFFINITIES_CHAIN), to_service(SERVICE_SOURCE), pod_to_world]
    }
}

fn reject(family: Family) -> Chain {
    let tcp = rule([protocol(libc::IPPROTO_TCP), vec![Expr::RejectTcpReset]]);
    regular(REJECT, vec![tcp, vec![Expr::RejectPortUnreachable(family)]])
}

/// Leads what has been translated to a chain.
fn to_service(chain: &str) -> Vec<Expr> {
    rule([flags(Ct::Status, STATUS_DST_NAT, true), verdict(Verdict::Jump(chain.to_owned()))])
}

const SERVICE_SOURCE: &str = "service-source";
const AFFINITIES_CHAIN: &str = "affinities";

/// The rules that remember the endpoint that a translated packet leads to.
pub(super) fn remember(family: Family, memory: &Memory) -> Rules {
    // Registers: client address, frontend (the two are the key), endpoint.
    let first = words(family);
    let address = Register(2 * first + 2);
    let port = Register(address.0 + first);
    let seconds = memory.seconds;
    vec![rule([
        vec![source_address(family, R)],
        original_frontend(family, memory.any_address, first),
        vec![destination_address(family, address), destination_port(port)],
        vec![Expr::Update { set: AFFINITY, key: R, data: address, seconds }],
    ])]
}

/// The rules that send a connection to one of `balancer.count` endpoints of the frontend the packet is for.
pub(super) fn balance(family: Family, balancer: &Balancer) -> Rules {
    // Registers: client address, frontend, slot, endpoint. The affinity's key is the first two, the endpoints' the second
    // and third.
    let address_words = words(family);
    let client = Register(0);
    let first = address_words;
    let slot = Register(first + address_words + 2);
    let address = Register(slot.0 + 1);
    let port = Register(address.0 + address_words);
    let to_endpoint = || vec![Expr::DestinationNat { family, address, port }];
    let choose = || {
        let offset = balancer.first_slot();
        let random = Expr::Random { modulus: balancer.count, offset, to: slot };
        rule([
            frontend(family, balancer.any_address, first),
            vec![random, Expr::Map(ENDPOINTS, Register(first), address)],
        ])
    };
    let mut rules = Vec::new();
    if balancer.affinity_seconds.is_some() {
        // Who is new, or found the map full, gets any endpoint; `remember` sees to the next time.
        let known = rule([
            vec![source_address(family, client)],
            frontend(family, balancer.any_address, first),
            vec![Expr::Map(AFFINITY, client, address)],
        ]);
        rules.push(rule([known, to_endpoint()]));
    }
    rules.push(rule([choose(), to_endpoint()]));
    rules
}

/// The rules that let only clients of some networks on.
pub(super) fn allow_sources(family: Family, ranges: &[Cidr]) -> Rules {
    let of_family = ranges.iter().filter(|range| Family::of(range.base()) == family);
    let allowed = of_family.map(|range| rule([in_network(source_address, *range, true), verdict(Verdict::Return)]));
    allowed.chain([verdict(Verdict::Drop)]).collect()
}

/// The direction of traffic as an isolated pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// The rules that let on what is allowed.
pub(super) fn allow<'a>(family: Family, direction: Direction, all: impl IntoIterator<Item = &'a Allow>) -> Rules {
    let peer = match direction {
        Direction::Ingress => source_address,
        Direction::Egress => destination_address,
    };
    let mut rules = Rules::new();
    for allow in all {
        let peers = match &allow.peers {
            Peers::Any => Vec::new(),
            Peers::Group(group) => {
                let mut key = match group {
                    Group::Addresses(_) => vec![peer(family, R)],
                    Group::Ports(_) => frontend(family, false, 0),
                };
                key.push(Expr::InSet(group_set(group), R));
                key
            }
            Peers::Block(network, _) if Family::of(network.base()) != family => continue,
            Peers::Block(network, except) => {
                let same = except.iter().filter(|other| Family::of(other.base()) == family);
                let outside = same.map(|other| in_network(peer, *other, false));
                rule([in_network(peer, *network, true)].into_iter().chain(outside))
            }
        };
        match &allow.ports {
            None => rules.push(rule([peers, verdict(Verdict::Return)])),
            Some(ports) => rules.extend(ports.iter().map(|ports| {
                let range = ports.range.map(|(first, last)| {
                    let mut range = vec![destination_port(R), Expr::AtLeast(R, first.to_be_bytes().to_vec())];
                    range.push(Expr::AtMost(R, last.to_be_bytes().to_vec()));
                    range
                });
                let protocol = protocol(i32::from(ports.protocol.number()));
                rule([peers.clone(), protocol, range.unwrap_or_default(), verdict(Verdict::Return)])
            })),
        }
    }
    rules.push(verdict(Verdict::Drop));
    rules
}

/// Name of the set of a group.
pub(super) fn group_set(group: &Group) -> String {
    match group {
        Group::Addresses(name) => format!("{}{name}", ADDRESS_GROUPS.name),
        Group::Ports(name) => format!("{}{name}", PORT_GROUPS.name),
    }
}
