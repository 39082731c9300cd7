//! The fixed part of the table: base chains and sets, and the chains that balance load. Only set elements and balancing
//! chains change afterwards ([`super::state`]), so the cost of a packet does not depend on the number of services.
//!
//! ```text
//! prerouting ─┬─ from pods ──▶ internal ─┐            unreachable: input, forward, output (first packet only)
//!             └─ others ─────▶ external ─┤            masquerade:  postrouting
//! output ───────────────────▶ internal ──┴─▶ balance-<n> : endpoints[frontend, random slot] ─▶ dnat
//! ```

use std::net::IpAddr;

use super::expr::{Ct, Expr, Meta, Register, Verdict};
use super::state::Balancer;
use crate::Cidr;
use crate::node::BRIDGE;

/// Names of the sets and maps; [`SETS`] describes them.
pub(super) const SERVICES: &str = "services";
pub(super) const INTERNAL: &str = "services-internal";
pub(super) const ENDPOINTS: &str = "endpoints";
pub(super) const UNREACHABLE: &str = "unreachable";
pub(super) const MASQUERADE: &str = "masquerade";
pub(super) const HAIRPIN: &str = "hairpin";
pub(super) const AFFINITY: &str = "affinity";

/// What the elements of a set carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetData {
    Nothing,
    Verdict,
    /// An address and a port.
    Endpoint,
}

/// A set or map of the table.
pub(super) struct SetLayout {
    pub(super) name: &'static str,
    /// Length of a key in bytes: fields are padded to four.
    pub(super) key_length: u32,
    /// nftables' number for the key's type: six bits for each field; the kernel stores it for `nft list`.
    pub(super) key_type: u32,
    pub(super) data: SetData,
    /// Whether rules add elements, which time out.
    pub(super) dynamic: bool,
}

const TYPE_ADDRESS: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_MARK: u32 = 19;
const TYPE_FRONTEND: u32 = (TYPE_ADDRESS << 12) | (TYPE_PROTOCOL << 6) | TYPE_PORT;
/// nftables' number for the data type of an endpoint.
pub(super) const TYPE_ENDPOINT: u32 = (TYPE_ADDRESS << 6) | TYPE_PORT;

const fn set(name: &'static str, key_length: u32, key_type: u32, data: SetData) -> SetLayout {
    SetLayout { name, key_length, key_type, data, dynamic: false }
}

/// All sets.
pub(super) const SETS: [SetLayout; 7] = [
    set(SERVICES, 12, TYPE_FRONTEND, SetData::Verdict),
    set(INTERNAL, 12, TYPE_FRONTEND, SetData::Verdict),
    set(ENDPOINTS, 16, (TYPE_FRONTEND << 6) | TYPE_MARK, SetData::Endpoint),
    set(UNREACHABLE, 12, TYPE_FRONTEND, SetData::Verdict),
    set(MASQUERADE, 12, TYPE_FRONTEND, SetData::Nothing),
    set(HAIRPIN, 8, (TYPE_ADDRESS << 6) | TYPE_ADDRESS, SetData::Nothing),
    SetLayout {
        name: AFFINITY,
        key_length: 16,
        key_type: (TYPE_ADDRESS << 18) | TYPE_FRONTEND,
        data: SetData::Endpoint,
        dynamic: true,
    },
];

/// Where the kernel calls a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) number: u32,
    pub(super) priority: i32,
}

/// A chain and its rules.
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Vec<Expr>>,
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
/// Register of the n-th field of a key.
const fn field(n: u32) -> Register {
    Register(n)
}

const STATE_NEW: u32 = 8;
const STATUS_DST_NAT: u32 = 1 << 5;
const ROUTE_TYPE_LOCAL: u32 = 2;

fn source_address(to: Register) -> Expr {
    Expr::NetworkHeader { offset: 12, length: 4, to }
}

fn destination_address(to: Register) -> Expr {
    Expr::NetworkHeader { offset: 16, length: 4, to }
}

fn destination_port(to: Register) -> Expr {
    Expr::TransportHeader { offset: 2, length: 2, to }
}

/// Loads the frontend a packet is for: with its destination address, or (node ports) with none.
fn frontend(any_address: bool, first: u32) -> Vec<Expr> {
    let address =
        if any_address { Expr::Immediate(field(first), vec![0; 4]) } else { destination_address(field(first)) };
    vec![address, Expr::Meta(Meta::Protocol, field(first + 1)), destination_port(field(first + 2))]
}

/// Matches an address loaded by `load` against a network.
fn in_network(load: fn(Register) -> Expr, network: Cidr, inside: bool) -> Vec<Expr> {
    let IpAddr::V4(base) = network.base() else { return Vec::new() };
    let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix())).unwrap_or(0);
    let base = base.octets().to_vec();
    let compare = if inside { Expr::Equal(R, base) } else { Expr::NotEqual(R, base) };
    vec![load(R), Expr::And(R, mask.to_be_bytes().to_vec()), compare]
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

fn to_this_node() -> Vec<Expr> {
    vec![Expr::DestinationType(R), Expr::Equal(R, ROUTE_TYPE_LOCAL.to_ne_bytes().to_vec())]
}

fn go(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

fn rule(parts: impl IntoIterator<Item = Vec<Expr>>) -> Vec<Expr> {
    parts.into_iter().flatten().collect()
}

fn loopback() -> Cidr {
    Cidr::new(IpAddr::from([127, 0, 0, 0]), 8).expect("invariant: a valid network")
}

fn multicast() -> Cidr {
    Cidr::new(IpAddr::from([224, 0, 0, 0]), 4).expect("invariant: a valid network")
}

fn base(name: &str, hook: Hook, rules: Vec<Vec<Expr>>) -> Chain {
    Chain { name: name.to_owned(), hook: Some(hook), rules }
}

fn regular(name: &str, rules: Vec<Vec<Expr>>) -> Chain {
    Chain { name: name.to_owned(), hook: None, rules }
}

/// The fixed chains, each after those it leads to. `cluster` holds all pods' addresses, `services` all cluster IPs.
pub(super) fn chains(cluster: Cidr, services: Cidr) -> Vec<Chain> {
    let nat = |number, priority| Hook { kind: "nat", number, priority };
    let filter = |number, priority| Hook { kind: "filter", number, priority };
    let mut chains = vec![reject(), dispatch("external", &[SERVICES]), dispatch("internal", &[INTERNAL, SERVICES])];
    chains.push(service_source(services));
    chains.push(base(
        "raw",
        filter(PREROUTING, PRIORITY_RAW),
        // Node ports on 127.0.0.1 need `route_localnet` on the bridge; pods must not reach the node's loopback by it.
        vec![rule([
            interface(Meta::InterfaceIn, BRIDGE, true),
            in_network(destination_address, loopback(), true),
            vec![Expr::Verdict(Verdict::Drop)],
        ])],
    ));
    chains.push(base(
        "prerouting",
        nat(PREROUTING, PRIORITY_DNAT),
        vec![rule([in_network(source_address, cluster, true), vec![go("internal")]]), vec![go("external")]],
    ));
    chains.push(base("output-nat", nat(OUTPUT, PRIORITY_DNAT), vec![vec![go("internal")]]));
    chains.push(base("postrouting", nat(POSTROUTING, PRIORITY_SNAT), postrouting(cluster)));
    chains.extend(filters(services, filter));
    chains
}

/// First packets of connections to a frontend without endpoints, and whatever else goes to an unknown cluster IP.
fn filters(services: Cidr, hook: impl Fn(u32, i32) -> Hook) -> [Chain; 3] {
    let unreachable = |to_node: bool, check: bool| {
        rule([
            flags(Ct::State, STATE_NEW, true),
            flags(Ct::Status, STATUS_DST_NAT, false),
            if check { to_this_node() } else { Vec::new() },
            frontend(to_node, 0),
            vec![Expr::VerdictMap(UNREACHABLE, R)],
        ])
    };
    let unknown_cluster_ip = || {
        rule([
            interface(Meta::InterfaceOut, BRIDGE, true),
            in_network(destination_address, services, true),
            vec![go(REJECT)],
        ])
    };
    // Packets from pod to pod come in and leave by the bridge. A pod that believed a redirect would answer its neighbour
    // directly, past the address translation of this node.
    let redirects = rule([
        interface(Meta::InterfaceOut, BRIDGE, true),
        vec![Expr::Meta(Meta::Protocol, R), Expr::Equal(R, vec![libc::IPPROTO_ICMP as u8])],
        vec![Expr::TransportHeader { offset: 0, length: 1, to: R }, Expr::Equal(R, vec![5])],
        vec![Expr::Verdict(Verdict::Drop)],
    ]);
    [
        base("input", hook(INPUT, PRIORITY_FILTER), vec![unreachable(false, false), unreachable(true, false)]),
        base("forward", hook(FORWARD, PRIORITY_FILTER), vec![unreachable(false, false), unknown_cluster_ip()]),
        base(
            "output",
            hook(OUTPUT, PRIORITY_FILTER),
            vec![redirects, unreachable(false, false), unreachable(true, true), unknown_cluster_ip()],
        ),
    ]
}

fn reject() -> Chain {
    let tcp = vec![Expr::Meta(Meta::Protocol, R), Expr::Equal(R, vec![libc::IPPROTO_TCP as u8]), Expr::RejectTcpReset];
    regular(REJECT, vec![tcp, vec![Expr::RejectPortUnreachable]])
}

/// Leads to the balancing chain of the frontend in the first of `maps` that has it.
fn dispatch(name: &str, maps: &[&'static str]) -> Chain {
    let specific = maps.iter().map(|map| rule([frontend(false, 0), vec![Expr::VerdictMap(map, R)]]));
    let node_ports = maps.iter().map(|map| rule([to_this_node(), frontend(true, 0), vec![Expr::VerdictMap(map, R)]]));
    regular(name, specific.chain(node_ports).collect())
}

const SERVICE_SOURCE: &str = "service-source";

/// Which connections to services get this node as their source, so that the answers come back through it.
fn service_source(services: Cidr) -> Chain {
    let original = |any_address: bool| {
        let address = if any_address { Expr::Immediate(R, vec![0; 4]) } else { Expr::Ct(Ct::OriginalAddress, R) };
        vec![address, Expr::Meta(Meta::Protocol, field(1)), Expr::Ct(Ct::OriginalPort, field(2))]
    };
    let masquerade = || vec![Expr::Masquerade];
    let hairpin = vec![source_address(field(0)), destination_address(field(1)), Expr::InSet(HAIRPIN, R)];
    let in_masquerade = || vec![Expr::InSet(MASQUERADE, R)];
    regular(
        SERVICE_SOURCE,
        vec![
            rule([in_network(source_address, loopback(), true), masquerade()]),
            rule([hairpin, masquerade()]),
            rule([original(false), in_masquerade(), masquerade()]),
            // A node port's number may be a port of some cluster IP too, which is another frontend.
            rule([
                in_network(|to| Expr::Ct(Ct::OriginalAddress, to), services, false),
                original(true),
                in_masquerade(),
                masquerade(),
            ]),
        ],
    )
}

fn postrouting(cluster: Cidr) -> Vec<Vec<Expr>> {
    let to_service =
        rule([flags(Ct::Status, STATUS_DST_NAT, true), vec![Expr::Verdict(Verdict::Jump(SERVICE_SOURCE.to_owned()))]]);
    let pod_to_world = rule([
        in_network(source_address, cluster, true),
        in_network(destination_address, cluster, false),
        in_network(destination_address, multicast(), false),
        interface(Meta::InterfaceOut, BRIDGE, false),
        interface(Meta::InterfaceOut, "lo", false),
        vec![Expr::Masquerade],
    ]);
    vec![to_service, pod_to_world]
}

/// The chain that sends a connection to one of `balancer.count` endpoints of the frontend the packet is for.
pub(super) fn balance(balancer: &Balancer) -> Chain {
    // Registers: 0 client address, 1-3 frontend, 4 slot, 5-6 endpoint. The affinity's key is 0-3, the endpoints' 1-4.
    let (client, first, slot, address, port) = (field(0), field(1), field(4), field(5), field(6));
    let to_endpoint = || vec![Expr::DestinationNat { address, port }];
    let choose = || {
        let offset = balancer.first_slot();
        rule([
            frontend(balancer.any_address, 1),
            vec![Expr::Random { modulus: balancer.count, offset, to: slot }, Expr::Map(ENDPOINTS, first, address)],
        ])
    };
    let mut rules = Vec::new();
    if let Some(seconds) = balancer.affinity_seconds {
        let remember = || vec![Expr::Update { set: AFFINITY, key: client, data: address, seconds }];
        let known = rule([
            vec![source_address(client)],
            frontend(balancer.any_address, 1),
            vec![Expr::Map(AFFINITY, client, address)],
        ]);
        rules.push(rule([known, remember(), to_endpoint()]));
        rules.push(rule([vec![source_address(client)], choose(), remember(), to_endpoint()]));
    }
    // With affinity only reached when its map is full.
    rules.push(rule([choose(), to_endpoint()]));
    regular(&balancer.chain(), rules)
}
