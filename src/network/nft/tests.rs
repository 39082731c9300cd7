//! The table against the real kernel, in a network namespace of its own; what was written is read back over netlink.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::Ipv4Addr;

use super::*;
use crate::{Endpoint, Frontend, NoEndpoints, Protocol, Route};

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

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn open() -> (Table, ServiceTable) {
    Table::open(cidr("10.42.0.0/16"), cidr("10.43.0.0/16")).unwrap()
}

fn in_kernel(table: &Table) -> State {
    table.read(&mut Socket::netfilter().unwrap()).unwrap().unwrap()
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }

    fn endpoints(&mut self, most: u64) -> Vec<Endpoint> {
        let count = self.below(most + 1);
        let endpoints: BTreeSet<Endpoint> = (0..count)
            .map(|_| Endpoint { address: Ipv4Addr::new(10, 42, 0, self.below(250) as u8), port: 8080 })
            .collect();
        endpoints.into_iter().collect()
    }

    fn frontend(&mut self) -> Frontend {
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][self.below(3) as usize];
        let address = (self.below(3) > 0).then(|| Ipv4Addr::new(10, 43, 0, self.below(40) as u8));
        Frontend { address, protocol, port: 80 + self.below(3) as u16 }
    }

    /// A route as the kernel can tell it: properties that matter only with (without) endpoints have their default without (with).
    fn route(&mut self) -> Route {
        let mut route = Route::to(self.endpoints(4));
        if self.below(4) == 0 {
            route.internal_endpoints = Some(self.endpoints(4)).filter(|endpoints| !endpoints.is_empty());
        }
        if route.endpoints.is_empty() && self.below(2) == 0 {
            route.no_endpoints = NoEndpoints::Drop;
        }
        if !route.endpoints.is_empty() || route.internal_endpoints.is_some() {
            route.affinity_seconds = (self.below(3) == 0).then_some(10_800);
            route.masquerade = self.below(2) == 0;
        }
        route
    }
}

/// Random changes: after each the kernel holds exactly the model, and a second process understands it.
#[test]
fn churn_matches_the_model() {
    in_own_netns(|| {
        let mut random = Random(42);
        let (mut table, adopted) = open();
        assert!(adopted.is_empty());
        let mut model = ServiceTable::new();
        for step in 0..300 {
            for _ in 0..=random.below(8) {
                let frontend = random.frontend();
                if random.below(3) == 0 {
                    model.remove(&frontend);
                } else {
                    model.insert(frontend, random.route());
                }
            }
            if step % 50 == 49 {
                model.clear();
            }
            table.apply(&model).unwrap();
            assert_eq!(in_kernel(&table), state::compile(&model).0, "step {step}");
            if step % 7 == 0 {
                let (again, adopted) = open();
                assert_eq!(adopted, model, "step {step}");
                table = again;
            }
        }
    });
}

#[test]
fn a_thousand_services_in_one_batch() {
    in_own_netns(|| {
        let (mut table, _) = open();
        let mut model = ServiceTable::new();
        for n in 0..1000_u32 {
            let address = Some(Ipv4Addr::from_bits(0x0a2b_0000 + n));
            let endpoints =
                (0..4).map(|e| Endpoint { address: Ipv4Addr::from_bits(0x0a2a_0000 + n * 4 + e), port: 80 });
            let route = Route { masquerade: n % 2 == 0, ..Route::to(endpoints.collect()) };
            model.insert(Frontend { address, protocol: Protocol::Tcp, port: 80 }, route);
        }
        table.apply(&model).unwrap();
        assert_eq!(in_kernel(&table), state::compile(&model).0);
        // one endpoint more or less is a handful of elements
        let (before, _) = state::compile(&model);
        model.values_mut().next().unwrap().endpoints.pop();
        let (after, balancers) = state::compile(&model);
        assert!(changes(&before, &after, &balancers).len() < 10);
        table.apply(&model).unwrap();
        assert_eq!(in_kernel(&table), after);
        table.apply(&ServiceTable::new()).unwrap();
        assert_eq!(in_kernel(&table), State::default());
    });
}

/// Somebody empties or deletes the table behind our back: the next change writes it anew, whole.
#[test]
fn repairs_a_table_that_others_changed() {
    in_own_netns(|| {
        let (mut table, _) = open();
        let frontend = Frontend { address: None, protocol: Protocol::Tcp, port: 30080 };
        let route = |n| Route::to(vec![Endpoint { address: Ipv4Addr::new(10, 42, 0, n), port: 80 }]);
        table.apply(&ServiceTable::from([(frontend, route(2))])).unwrap();
        open().0.delete().unwrap();
        let wanted = ServiceTable::from([(frontend, route(3))]);
        table.apply(&wanted).unwrap();
        assert_eq!(in_kernel(&table), state::compile(&wanted).0);
    });
}

#[test]
fn another_layout_is_replaced_and_deletion_is_complete() {
    in_own_netns(|| {
        let (mut old, _) = Table::open(cidr("10.50.0.0/16"), cidr("10.51.0.0/16")).unwrap();
        let frontend = Frontend { address: None, protocol: Protocol::Tcp, port: 1 };
        old.apply(&ServiceTable::from([(frontend, Route::to(Vec::new()))])).unwrap();
        let (mut table, adopted) = open();
        assert!(adopted.is_empty(), "rules of another layout are not understood");
        assert_eq!(in_kernel(&table), State::default());
        table.delete().unwrap();
        table.delete().unwrap();
        assert!(read_chains(&mut Socket::netfilter().unwrap()).unwrap().is_empty());
    });
}

/// A refused batch changes nothing and names the operation.
#[test]
fn a_batch_is_applied_whole_or_not_at_all() {
    in_own_netns(|| {
        let (table, _) = open();
        let before = in_kernel(&table);
        let mut socket = Socket::netfilter().unwrap();
        let good = Elements::from([(vec![10, 42, 0, 2, 10, 42, 0, 2], Data::Nothing)]);
        let mut operations = element_operations(NEWSETELEM, layout::HAIRPIN, &good);
        operations.extend(element_operations(
            DELSETELEM,
            layout::HAIRPIN,
            &Elements::from([(vec![9; 8], Data::Nothing)]),
        ));
        operations.extend(element_operations(NEWSETELEM, layout::HAIRPIN, &good));
        let error = batch(&mut socket, operations).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert_eq!(error.to_string(), "delete elements of set hairpin");
        assert_eq!(in_kernel(&table), before);
        batch(&mut socket, element_operations(NEWSETELEM, layout::HAIRPIN, &good)).unwrap();
        assert_ne!(in_kernel(&table), before, "the socket is usable after a refusal");
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
