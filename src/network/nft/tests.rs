//! The tables against the real kernel, in a network namespace of its own; what was written is read back over netlink.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::policy::{Allow, Group, Member, Peers, Ports};
use crate::{Cidr, NoEndpoints, Protocol, Route, ServiceTable};

/// Runs `test` in a fresh network namespace, which ends with it.
fn in_own_netns(test: impl FnOnce() + Send) {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ns");
    edge_sys::netns::create(&path).unwrap();
    let result = edge_sys::netns::run_in(&path, test);
    edge_sys::netns::delete(&path).unwrap();
    result.unwrap();
}

fn networks(cluster: &str, services: &str) -> Networks {
    let services: Cidr = services.parse().unwrap();
    Networks { cluster: cluster.parse().unwrap(), services, dns: Some(services.nth(10)), node_ports: Vec::new() }
}

fn both() -> Vec<Networks> {
    vec![networks("10.42.0.0/16", "10.43.0.0/16"), networks("fd42::/56", "fd43::/112")]
}

fn open() -> Table {
    Table::open(both()).unwrap()
}

fn in_kernel(networks: &Networks) -> Option<State> {
    read(&mut Socket::netfilter().unwrap(), networks).unwrap()
}

/// What one process would write that is told everything at once.
fn compiled(networks: &Networks, services: &ServiceTable, pods: &Pods, groups: &Groups) -> State {
    let mut state = State::new(networks.family());
    let changes: ServiceChanges = services.iter().map(|(f, r)| (*f, Some(r.clone()))).collect();
    let policies = PolicyChanges { groups: groups.clone(), ..PolicyChanges::default() };
    let pods = pods.iter().map(|(address, isolation)| (*address, Some(PodRules::Known(isolation)))).collect();
    let mut edit = Edit::new(&mut state);
    Change { services: Some(&changes), pods, policies: Some(&policies) }.write(networks.family(), &mut edit);
    edit.finish();
    state
}

type Pods = BTreeMap<IpAddr, Isolation>;
type Groups = BTreeMap<Group, Option<BTreeSet<Member>>>;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    fn address(&mut self, family: Family, limit: u64) -> IpAddr {
        let last = self.below(limit) as u8;
        match family {
            Family::V4 => Ipv4Addr::new(10, 42, 0, last).into(),
            Family::V6 => Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, last.into()).into(),
        }
    }

    fn family(&mut self) -> Family {
        if self.flip() { Family::V4 } else { Family::V6 }
    }

    fn endpoints(&mut self, family: Family, most: u64) -> Vec<Endpoint> {
        let count = self.below(most + 1);
        let all: BTreeSet<Endpoint> =
            (0..count).map(|_| Endpoint { address: self.address(family, 60), port: 8080 }).collect();
        all.into_iter().collect()
    }

    fn frontend(&mut self) -> Frontend {
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][self.below(3) as usize];
        let family = self.family();
        let address = if self.below(3) == 0 { family.unspecified() } else { self.address(family, 40) };
        Frontend { address, protocol, port: 80 + self.below(3) as u16 }
    }

    fn route(&mut self, family: Family) -> Route {
        let mut route = Route::to(self.endpoints(family, 4));
        if self.below(4) == 0 {
            route.internal_endpoints = Some(self.endpoints(family, 4));
        }
        if self.flip() {
            route.no_endpoints = NoEndpoints::Drop;
        }
        route.affinity_seconds = (self.below(3) == 0).then_some(10_800);
        route.masquerade = self.flip();
        if self.below(3) == 0 {
            let ranges = ["192.0.2.0/24", "10.0.0.0/8", "fd00::/8"];
            route.source_ranges = Some(ranges[..self.below(4) as usize].iter().map(|r| r.parse().unwrap()).collect());
        }
        route
    }

    fn group(&mut self) -> Group {
        let name = format!("g{}", self.below(4));
        if self.flip() { Group::Addresses(name) } else { Group::Ports(name) }
    }

    fn members(&mut self, group: &Group) -> BTreeSet<Member> {
        let port = match group {
            Group::Addresses(_) => None,
            Group::Ports(_) => Some((Protocol::Tcp, 80)),
        };
        (0..self.below(6))
            .map(|_| {
                let f = self.family();
                Member { address: self.address(f, 60), port }
            })
            .collect()
    }

    /// Something to allow among the groups that exist.
    fn allows(&mut self, groups: &Groups) -> BTreeSet<Allow> {
        let mut all = BTreeSet::new();
        for _ in 0..self.below(3) {
            let existing: Vec<&Group> = groups.keys().collect();
            let peers = match self.below(3) {
                0 => Peers::Any,
                1 if !existing.is_empty() => Peers::Group(existing[self.below(existing.len() as u64) as usize].clone()),
                _ => Peers::Block("10.0.0.0/8".parse().unwrap(), vec!["10.42.0.16/28".parse().unwrap()]),
            };
            let ports = self.flip().then(|| {
                let range = self.flip().then(|| (80, 80 + self.below(10) as u16));
                vec![Ports { protocol: Protocol::Tcp, range }]
            });
            all.insert(Allow { peers, ports });
        }
        all
    }
}

fn assert_same(networks: &Networks, services: &ServiceTable, pods: &Pods, groups: &Groups, step: usize) {
    let (kernel, wanted) = (in_kernel(networks).unwrap(), compiled(networks, services, pods, groups));
    // Which endpoint has which slot depends on what was before; that every slot leads to one of them does not.
    let set = |state: &State, name: &str| state.sets().get(name).cloned().unwrap_or_default();
    for name in state_sets(&kernel).union(&state_sets(&wanted)).filter(|name| *name != layout::ENDPOINTS) {
        assert_eq!(set(&kernel, name), set(&wanted, name), "step {step}: {name}");
    }
    let chains = |state: &State| state.chain_names().collect::<BTreeSet<_>>();
    assert_eq!(chains(&kernel), chains(&wanted), "step {step}");
    let keys = |state: &State| set(state, layout::ENDPOINTS).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(keys(&kernel), keys(&wanted), "step {step}");
    assert_eq!(kernel.frontends(), wanted.frontends(), "step {step}");
    for frontend in wanted.frontends() {
        assert_eq!(kernel.endpoints_of(&frontend), wanted.endpoints_of(&frontend), "step {step}: {frontend:?}");
    }
}

/// The sets that exist as far as it matters: fixed ones without elements need not be there.
fn state_sets(state: &State) -> BTreeSet<String> {
    let matters = |name: &str, elements: &Elements| name.starts_with(layout::GROUP) || !elements.is_empty();
    state.sets().iter().filter(|(name, elements)| matters(name, elements)).map(|(name, _)| name.clone()).collect()
}

/// Random changes of services and policies: after each the kernel holds exactly the model, and another process goes on.
#[test]
fn churn_matches_the_model() {
    in_own_netns(|| {
        let mut random = Random(42);
        let mut table = open();
        assert!(table.frontends().is_empty());
        let (mut services, mut pods, mut groups) = (ServiceTable::new(), Pods::new(), Groups::new());
        for step in 0..300 {
            let (mut changes, mut policies, mut isolate) =
                (ServiceChanges::new(), PolicyChanges::default(), BTreeMap::new());
            for _ in 0..=random.below(8) {
                let frontend = random.frontend();
                let route = (random.below(3) > 0).then(|| random.route(frontend.family()));
                changes.insert(frontend, route);
            }
            if step % 50 == 49 {
                changes = services.keys().map(|frontend| (*frontend, None)).collect();
            }
            // Groups come before those who refer to them, and go after.
            for _ in 0..random.below(3) {
                let group = random.group();
                let used = pods.values().any(|isolation| {
                    let all = isolation.ingress.iter().chain(&isolation.egress).flatten();
                    all.into_iter().any(|allow| allow.peers == Peers::Group(group.clone()))
                });
                let members = (used || random.flip()).then(|| random.members(&group));
                policies.groups.insert(group, members);
            }
            for (group, members) in &policies.groups {
                match members {
                    Some(_) => drop(groups.insert(group.clone(), members.clone())),
                    None => drop(groups.remove(group)),
                }
            }
            for _ in 0..random.below(4) {
                let family = random.family();
                let address = random.address(family, 12);
                let isolation = random.flip().then(|| Isolation {
                    ingress: random.flip().then(|| random.allows(&groups)),
                    egress: random.flip().then(|| random.allows(&groups)),
                });
                isolate.insert(address, isolation);
            }
            services.extend(changes.iter().filter_map(|(f, r)| Some((*f, r.clone()?))));
            services.retain(|frontend, _| changes.get(frontend).is_none_or(Option::is_some));
            pods.extend(isolate.iter().filter_map(|(a, i)| Some((*a, i.clone()?))));
            pods.retain(|address, _| isolate.get(address).is_none_or(Option::is_some));
            let isolated = isolate.iter().map(|(a, i)| (*a, i.as_ref().map(PodRules::Known))).collect();
            table.apply(&Change { services: Some(&changes), pods: isolated, policies: Some(&policies) }).unwrap();
            for networks in both() {
                assert_same(&networks, &services, &pods, &groups, step);
            }
            if step % 7 == 0 {
                table = open();
                assert_eq!(table.frontends(), services.keys().copied().collect(), "step {step}");
                // Another process tells what it knows of policies, and no rule is written for that.
                let pods = pods.iter().map(|(a, i)| (*a, Some(PodRules::Known(i)))).collect();
                let policies = PolicyChanges { groups: groups.clone(), complete: true, ..PolicyChanges::default() };
                table.apply(&Change { services: None, pods, policies: Some(&policies) }).unwrap();
            }
        }
    });
}

#[test]
fn five_thousand_services_in_one_batch_and_small_changes_stay_small() {
    in_own_netns(|| {
        let mut table = open();
        let endpoint = |n: u32| Endpoint { address: Ipv4Addr::from_bits(0x0a2a_0000 + n).into(), port: 80 };
        let frontend = |n: u32| Frontend {
            address: Ipv4Addr::from_bits(0x0a2b_0000 + n).into(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let all: ServiceChanges = (0..5000)
            .map(|n| {
                let endpoints = (0..4).map(|e| endpoint(n * 4 + e)).collect();
                (frontend(n), Some(Route { masquerade: n % 2 == 0, ..Route::to(endpoints) }))
            })
            .collect();
        table.apply(&Change { services: Some(&all), ..Change::default() }).unwrap();
        assert_eq!(in_kernel(&both()[0]).unwrap().frontends().len(), 5000);
        // One endpoint less of many: what follows it in order keeps its slot.
        let many = |range: std::ops::Range<u32>| {
            let route = Route::to(range.map(endpoint).collect());
            ServiceChanges::from([(frontend(7), Some(route))])
        };
        table.apply(&Change { services: Some(&many(0..100)), ..Change::default() }).unwrap();
        let part = &mut table.parts[0];
        let mut edit = Edit::new(&mut part.state);
        Change { services: Some(&many(1..100)), ..Change::default() }.write(Family::V4, &mut edit);
        let steps = edit.finish();
        let touched: usize = steps.elements.values().map(|(deleted, added)| deleted.len() + added.len()).sum();
        assert!(touched <= 6, "{steps:?}");
        table.in_kernel = false;
        let none: ServiceChanges = all.keys().map(|frontend| (*frontend, None)).collect();
        table.apply(&Change { services: Some(&none), ..Change::default() }).unwrap();
        assert_same(&both()[0], &ServiceTable::new(), &Pods::new(), &Groups::new(), 0);
    });
}

/// Somebody empties or deletes the table behind our back: the next change writes it anew, whole.
#[test]
fn repairs_a_table_that_others_changed() {
    in_own_netns(|| {
        let mut table = open();
        let node_port = |port| Frontend::node(Family::V4, Protocol::Tcp, port);
        let route = |n| Route::to(vec![Endpoint { address: Ipv4Addr::new(10, 42, 0, n).into(), port: 80 }]);
        let first = ServiceChanges::from([(node_port(30080), Some(route(2)))]);
        table.apply(&Change { services: Some(&first), ..Change::default() }).unwrap();
        open().delete().unwrap();
        let second = ServiceChanges::from([(node_port(30081), Some(route(3)))]);
        table.apply(&Change { services: Some(&second), ..Change::default() }).unwrap();
        let wanted = ServiceTable::from([(node_port(30080), route(2)), (node_port(30081), route(3))]);
        assert_same(&both()[0], &wanted, &Pods::new(), &Groups::new(), 0);
    });
}

/// After a restart nobody knows the rules of a policy's chain any more; when the table has to be written anew before that
/// is known again, the pod is closed rather than open.
#[test]
fn a_lost_policy_is_closed() {
    in_own_netns(|| {
        let pod: IpAddr = Ipv4Addr::new(10, 42, 0, 2).into();
        let isolation =
            Isolation { ingress: Some(BTreeSet::from([Allow { peers: Peers::Any, ports: None }])), egress: None };
        let mut table = open();
        let change = Change { pods: vec![(pod, Some(PodRules::Known(&isolation)))], ..Change::default() };
        table.apply(&change).unwrap();
        let mut table = open();
        table.in_kernel = false;
        table.apply(&Change::default()).unwrap();
        let ingress = in_kernel(&both()[0]).unwrap().sets()[layout::INGRESS].clone();
        assert_eq!(ingress.into_values().collect::<Vec<_>>(), [Data::Verdict(Verdict::Drop)]);
        table.apply(&change).unwrap();
        assert_same(&both()[0], &ServiceTable::new(), &Pods::from([(pod, isolation)]), &Groups::new(), 0);
    });
}

#[test]
fn another_layout_is_replaced_and_deletion_is_complete() {
    in_own_netns(|| {
        let mut old = Table::open(vec![networks("10.50.0.0/16", "10.51.0.0/16")]).unwrap();
        let frontend = Frontend::node(Family::V4, Protocol::Tcp, 1);
        let one = ServiceChanges::from([(frontend, Some(Route::to(Vec::new())))]);
        old.apply(&Change { services: Some(&one), ..Change::default() }).unwrap();
        let mut table = open();
        assert!(table.frontends().is_empty(), "rules of another layout are not understood");
        table.apply(&Change { services: Some(&one), ..Change::default() }).unwrap();
        // A family that is no longer wanted goes, the other one stays.
        assert!(in_kernel(&both()[1]).is_some());
        assert_eq!(Table::open(vec![both()[0].clone()]).unwrap().frontends(), BTreeSet::from([frontend]));
        assert!(in_kernel(&both()[1]).is_none());
        table.delete().unwrap();
        table.delete().unwrap();
        for family in Family::ALL {
            assert!(read_chains(&mut Socket::netfilter().unwrap(), family).unwrap().is_empty());
        }
    });
}

/// A refused batch changes nothing and names the operation.
#[test]
fn a_batch_is_applied_whole_or_not_at_all() {
    in_own_netns(|| {
        let _table = open();
        let hairpins = || {
            let sets = in_kernel(&both()[0]).unwrap();
            sets.sets().get(layout::HAIRPIN).map_or(0, Elements::len)
        };
        let mut socket = Socket::netfilter().unwrap();
        let good = Elements::from([(vec![10, 42, 0, 2, 10, 42, 0, 2], Data::Nothing)]);
        let elements = |kind, elements: &Elements| element_operations(Family::V4, kind, layout::HAIRPIN, elements);
        let mut operations = elements(NEWSETELEM, &good);
        operations.extend(elements(DELSETELEM, &Elements::from([(vec![9; 8], Data::Nothing)])));
        operations.extend(elements(NEWSETELEM, &good));
        let error = batch(&mut socket, operations).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert_eq!(error.to_string(), "delete elements of set hairpin");
        assert_eq!(hairpins(), 0);
        batch(&mut socket, elements(NEWSETELEM, &good)).unwrap();
        assert_eq!(hairpins(), 1, "the socket is usable after a refusal");
    });
}

#[test]
fn chain_names_are_read_back() {
    for any_address in [false, true] {
        for internal in [false, true] {
            for affinity_seconds in [None, Some(1), Some(86_400)] {
                let balancer = Balancer { count: 7, any_address, internal, affinity_seconds };
                assert_eq!(Balancer::parse(&balancer.chain()), Some(balancer));
                assert!(balancer.chain().len() < 128);
            }
        }
    }
    for other in ["balance-", "balance-x", "balance-1-", "balance-1-node-affinity", "reject", "balance-1-internal-node"]
    {
        assert_eq!(Balancer::parse(other), None, "{other}");
    }
}
