//! Services and policies with real traffic, in both families.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};

use edge_sys::netns;

use crate::traffic_tests::{
    NODE, NODE6, OUTSIDE, OUTSIDE6, PATIENCE, Server, World, all_answers, ask, connect, read_line,
};
use crate::{
    Allow, Endpoint, Family, Frontend, Group, Isolation, Member, Peers, PodNetwork, PolicyChanges, Ports, Protocol,
    Route,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn of(pod: &PodNetwork, family: Family) -> IpAddr {
    *pod.addresses.iter().find(|address| Family::of(**address) == family).unwrap()
}

fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => ip("10.43.0.80"),
        Family::V6 => ip("fd43::80"),
    }
}

fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => ip("10.42.0.1"),
        Family::V6 => ip("fd42::1"),
    }
}

fn dns(family: Family) -> IpAddr {
    match family {
        Family::V4 => ip("10.43.0.10"),
        Family::V6 => ip("fd43::a"),
    }
}

fn node(family: Family) -> IpAddr {
    match family {
        Family::V4 => NODE.into(),
        Family::V6 => NODE6.into(),
    }
}

fn outside(family: Family) -> IpAddr {
    match family {
        Family::V4 => OUTSIDE.into(),
        Family::V6 => OUTSIDE6.into(),
    }
}

fn to(pods: &[&PodNetwork], family: Family) -> Route {
    Route::to(pods.iter().map(|pod| Endpoint { address: of(pod, family), port: 8080 }).collect())
}

fn frontend(address: IpAddr, protocol: Protocol, port: u16) -> Frontend {
    Frontend { address, protocol, port }
}

fn is_silence(answer: &str) -> bool {
    ["TimedOut", "WouldBlock"].contains(&answer)
}

#[test]
fn every_kind_of_service_in_both_families() {
    let world = World::of_both_families();
    let (a, b) = (world.pod("a"), world.pod("b"));
    let _servers = [Server::start(&a.netns, "a"), Server::start(&b.netns, "b")];
    let mut services = Vec::new();
    for family in Family::ALL {
        let both = to(&[&a, &b], family);
        services.extend([
            (frontend(vip(family), Protocol::Tcp, 80), both.clone()),
            (frontend(vip(family), Protocol::Tcp, 81), Route { affinity_seconds: Some(600), ..both.clone() }),
            (frontend(vip(family), Protocol::Tcp, 82), Route::to(Vec::new())),
            (frontend(vip(family), Protocol::Udp, 80), to(&[&a], family)),
            (Frontend::node(family, Protocol::Tcp, 30080), Route { masquerade: true, ..to(&[&a], family) }),
            (Frontend::node(family, Protocol::Tcp, 30081), to(&[&b], family)),
            // As a load balancer on the node's own address.
            (frontend(node(family), Protocol::Tcp, 80), Route { masquerade: true, ..to(&[&b], family) }),
        ]);
    }
    world.apply(&services);
    for family in Family::ALL {
        let (from_a, from_outside) = (of(&a, family), outside(family));
        let seen = |by: IpAddr| BTreeSet::from([format!("a {by}"), format!("b {by}")]);
        assert_eq!(all_answers(&world.node(), vip(family), 80), seen(gateway(family)), "{family:?}");
        let mut of_a = seen(from_a);
        of_a.remove(&format!("a {from_a}"));
        of_a.insert(format!("a {}", gateway(family)));
        assert_eq!(all_answers(&a.netns, vip(family), 80), of_a, "itself through its own service");
        assert_eq!(all_answers(&world.node(), vip(family), 81).len(), 1, "the client's own endpoint");
        assert_eq!(ask(&a.netns, vip(family), 82), "ConnectionRefused");
        assert_eq!(ask(&a.netns, vip(family), 99), "ConnectionRefused", "no such port");
        assert_eq!(ask(&world.outside(), node(family), 30080), format!("a {}", gateway(family)));
        assert_eq!(ask(&world.outside(), node(family), 30081), format!("b {from_outside}"), "the client's address");
        assert_eq!(ask(&world.outside(), node(family), 80), format!("b {}", gateway(family)));
        assert_eq!(ask(&world.node(), node(family), 30081), format!("b {}", gateway(family)));
        assert_eq!(ask(&a.netns, node(family), 80), format!("b {}", gateway(family)));
        assert_eq!(ask_datagram(&world.node(), vip(family), 80).unwrap(), format!("a {}", gateway(family)));
    }
    // A datagram client that never changes its socket follows the endpoints.
    let any = SocketAddr::from(([0_u16; 8], 0));
    let client = netns::run_in(&world.node(), || UdpSocket::bind(any).unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for pod in [(&a, "a"), (&b, "b"), (&a, "a")] {
        world.apply(&[(frontend(vip(Family::V6), Protocol::Udp, 80), to(&[pod.0], Family::V6))]);
        assert!(exchange(&client, vip(Family::V6), 80).unwrap().starts_with(pod.1));
    }
}

fn exchange(client: &UdpSocket, to: IpAddr, port: u16) -> io::Result<String> {
    client.send_to(b"?", SocketAddr::from((to, port)))?;
    let mut buffer = [0; 64];
    let (length, _) = client.recv_from(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn ask_datagram(from: &Path, to: IpAddr, port: u16) -> io::Result<String> {
    let any = SocketAddr::from((Family::of(to).unspecified(), 0));
    let client = netns::run_in(from, || UdpSocket::bind(any)).unwrap()?;
    client.set_read_timeout(Some(PATIENCE))?;
    exchange(&client, to, port)
}

#[test]
fn source_ranges_let_only_their_clients_in() {
    let world = World::of_both_families();
    let (a, b) = (world.pod("a"), world.pod("b"));
    let _server = Server::start(&a.netns, "a");
    for family in Family::ALL {
        let balanced = frontend(node(family), Protocol::Tcp, 80);
        let restricted = |ranges: &[&str]| Route {
            masquerade: true,
            source_ranges: Some(ranges.iter().map(|range| range.parse().unwrap()).collect()),
            ..to(&[&a], family)
        };
        let own_port = (Frontend::node(family, Protocol::Tcp, 30080), to(&[&a], family));
        world.apply(&[(balanced, restricted(&["192.0.2.2/32", "2001:db8::2/128"])), own_port.clone()]);
        assert!(ask(&world.outside(), node(family), 80).starts_with("a "));
        assert!(is_silence(&ask(&b.netns, node(family), 80)), "pods are no exception");
        world.apply(&[
            (balanced, restricted(&["198.51.100.0/24", "2001:db8::4/126", "10.42.0.0/16", "fd42::/56"])),
            own_port,
        ]);
        assert!(is_silence(&ask(&world.outside(), node(family), 80)));
        assert!(ask(&b.netns, node(family), 80).starts_with("a "));
        assert!(ask(&world.outside(), node(family), 30080).starts_with("a "), "node ports are another matter");
        world.apply(&[(balanced, restricted(&[]))]);
        assert!(is_silence(&ask(&b.netns, node(family), 80)));
    }
}

/// The policies of a test: by pod and by group.
struct Policies<'a> {
    world: &'a World,
}

impl Policies<'_> {
    fn set(&self, pods: &[(&str, Isolation)], groups: &[(&str, &[&PodNetwork])]) {
        let members = |pods: &[&PodNetwork]| -> BTreeSet<Member> {
            let all = pods.iter().flat_map(|pod| &pod.addresses);
            all.map(|address| Member { address: *address, port: None }).collect()
        };
        let changes = PolicyChanges {
            pods: pods.iter().map(|(uid, isolation)| ((*uid).to_owned(), Some(isolation.clone()))).collect(),
            groups: groups.iter().map(|(name, pods)| (group(name), Some(members(pods)))).collect(),
            complete: true,
        };
        self.world.with(|network| network.change_policies(&changes)).unwrap();
    }
}

fn group(name: &str) -> Group {
    Group::Addresses(name.to_owned())
}

fn from_group(name: &str) -> Allow {
    Allow { peers: Peers::Group(group(name)), ports: None }
}

fn ingress(allowed: impl IntoIterator<Item = Allow>) -> Isolation {
    Isolation { ingress: Some(allowed.into_iter().collect()), egress: None }
}

fn egress(allowed: impl IntoIterator<Item = Allow>) -> Isolation {
    Isolation { ingress: None, egress: Some(allowed.into_iter().collect()) }
}

#[test]
fn ingress_is_what_policies_allow() {
    let mut world = World::of_both_families();
    let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
    let _servers = [Server::start(&a.netns, "a"), Server::start(&b.netns, "b")];
    let both: Vec<(Frontend, Route)> = Family::ALL
        .into_iter()
        .flat_map(|family| {
            [
                (frontend(vip(family), Protocol::Tcp, 80), to(&[&a], family)),
                (Frontend::node(family, Protocol::Tcp, 30080), to(&[&a], family)),
            ]
        })
        .collect();
    world.apply(&both);
    Policies { world: &world }.set(&[("a", ingress([from_group("clients")]))], &[("clients", &[&b])]);
    for round in ["as made", "after a restart"] {
        for family in Family::ALL {
            let to_a = of(&a, family);
            assert!(ask(&b.netns, to_a, 8080).starts_with("a "), "{round} {family:?}");
            assert!(ask(&b.netns, vip(family), 80).starts_with("a "), "through the service");
            assert!(is_silence(&ask(&c.netns, to_a, 8080)), "{round} {family:?}");
            assert!(is_silence(&ask(&c.netns, vip(family), 80)), "a service is no way round");
            assert!(is_silence(&ask(&world.outside(), node(family), 30080)), "nor is a node port");
            assert!(ask(&world.node(), to_a, 8080).starts_with("a "), "the node, its probes among them");
            assert!(ask(&a.netns, vip(family), 80).starts_with("a "), "itself");
            assert!(ask(&c.netns, of(&b, family), 8080).starts_with("b "), "others are not isolated");
            assert!(ask(&a.netns, of(&b, family), 8080).starts_with("b "), "answers come back");
        }
        // Nobody tells the new process anything.
        world.restart();
    }
    world.apply(&both);
    let policies = Policies { world: &world };
    // Ports and protocols.
    let ports = |protocol, range| Allow { peers: Peers::Any, ports: Some(vec![Ports { protocol, range }]) };
    for (allow, tcp, udp) in [
        (ports(Protocol::Tcp, Some((8000, 8080))), true, false),
        (ports(Protocol::Udp, Some((8080, 8080))), false, true),
        (ports(Protocol::Tcp, Some((8081, 9000))), false, false),
        (ports(Protocol::Udp, None), false, true),
    ] {
        policies.set(&[("a", ingress([allow.clone()]))], &[]);
        assert_eq!(!is_silence(&ask(&c.netns, of(&a, Family::V4), 8080)), tcp, "{allow:?}");
        assert_eq!(ask_datagram(&c.netns, of(&a, Family::V6), 8080).is_ok(), udp, "{allow:?}");
    }
    // Networks without some of their addresses.
    let block = |cidr: &str, except: &[&str]| {
        let except = except.iter().map(|text| text.parse().unwrap()).collect();
        ingress([Allow { peers: Peers::Block(cidr.parse().unwrap(), except), ports: None }])
    };
    policies.set(&[("a", block("192.0.2.0/24", &["192.0.2.128/25"]))], &[]);
    assert_eq!(ask(&world.outside(), NODE, 30080), format!("a {OUTSIDE}"));
    assert!(is_silence(&ask(&world.outside(), NODE6, 30080)), "an IPv4 network says nothing about IPv6");
    policies.set(&[("a", block("192.0.2.0/24", &["192.0.2.0/30"]))], &[]);
    assert!(is_silence(&ask(&world.outside(), NODE, 30080)));
    policies.set(&[("a", block("2001:db8::/32", &["2001:db8::100/120"]))], &[]);
    assert_eq!(ask(&world.outside(), NODE6, 30080), format!("a {OUTSIDE6}"));
    // No policy any more.
    policies.set(&[("a", Isolation::default())], &[]);
    assert!(ask(&c.netns, of(&a, Family::V4), 8080).starts_with("a "));
}

#[test]
fn egress_is_what_policies_allow() {
    let world = World::of_both_families();
    let (a, b) = (world.pod("a"), world.pod("b"));
    let _servers = [
        Server::start(&a.netns, "a"),
        Server::start(&b.netns, "b"),
        Server::start(&world.node(), "node"),
        Server::start(&world.outside(), "outside"),
    ];
    let policies = Policies { world: &world };
    policies.set(&[("a", egress([]))], &[]);
    for family in Family::ALL {
        assert!(is_silence(&ask(&a.netns, of(&b, family), 8080)), "{family:?}");
        assert!(is_silence(&ask(&a.netns, dns(family), 8080)), "the DNS is a peer like others");
        assert!(ask(&a.netns, gateway(family), 8080).starts_with("node "), "its own node is always reached");
        assert!(ask(&b.netns, of(&a, family), 8080).starts_with("a "), "answers go out");
        assert!(ask(&a.netns, Ipv4Addr::LOCALHOST, 8080).starts_with("a "));
    }
    assert!(is_silence(&ask(&a.netns, OUTSIDE, 8080)));
    let everywhere =
        Allow { peers: Peers::Block("0.0.0.0/0".parse().unwrap(), vec!["10.42.0.0/16".parse().unwrap()]), ports: None };
    policies.set(&[("a", egress([everywhere]))], &[]);
    assert!(ask(&a.netns, OUTSIDE, 8080).starts_with("outside "));
    assert!(ask(&a.netns, dns(Family::V4), 8080).starts_with("node "));
    assert!(is_silence(&ask(&a.netns, of(&b, Family::V4), 8080)));
    // A named port: other numbers for other peers.
    let named = Group::Ports("web".into());
    let member = |address, port| Member { address, port: Some((Protocol::Tcp, port)) };
    let members = BTreeSet::from([member(of(&b, Family::V4), 8080), member(of(&b, Family::V6), 8081)]);
    let changes = PolicyChanges {
        pods: BTreeMap::from([("a".into(), Some(egress([Allow { peers: Peers::Group(named.clone()), ports: None }])))]),
        groups: BTreeMap::from([(named, Some(members))]),
        complete: false,
    };
    world.with(|network| network.change_policies(&changes)).unwrap();
    assert!(ask(&a.netns, of(&b, Family::V4), 8080).starts_with("b "));
    assert!(is_silence(&ask(&a.netns, of(&b, Family::V6), 8080)));
}

#[test]
fn members_come_and_go_and_connections_stay() {
    let world = World::of_both_families();
    let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
    let _server = Server::start(&a.netns, "a");
    let policies = Policies { world: &world };
    let only_clients = [("a", ingress([from_group("clients")]))];
    policies.set(&only_clients, &[("clients", &[&b])]);
    let (mut stream, _) = connect(&b.netns, of(&a, Family::V6), 8080).unwrap();
    policies.set(&only_clients, &[("clients", &[&c])]);
    stream.write_all(b"ping\n").unwrap();
    assert_eq!(read_line(&mut stream).unwrap(), "ping", "what is established goes on");
    assert!(is_silence(&ask(&b.netns, of(&a, Family::V6), 8080)));
    assert!(ask(&c.netns, of(&a, Family::V6), 8080).starts_with("a "));
    // Its address is given to another pod, which is not isolated.
    world.with(|network| network.detach("a")).unwrap();
    let isolated = world.with(|network| network.pods());
    assert!(!isolated.contains_key("a"));
}

/// The first packet of a new pod finds its policies in force, also when these are known only later.
#[test]
fn new_pods_are_closed_until_they_are_covered() {
    let mut world = World::of_both_families();
    let a = world.pod("a");
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let enforce = |world: &World| {
        let told = told.clone();
        world.with(|network| {
            network.enforce_policies(move |uid, addresses| {
                assert_eq!(addresses.len(), 2);
                told.lock().unwrap().push(uid.to_owned());
            });
        });
    };
    enforce(&world);
    let b = world.pod("b");
    let _servers = [Server::start(&a.netns, "a"), Server::start(&b.netns, "b")];
    assert_eq!(*told.lock().unwrap(), ["a", "b"]);
    for family in Family::ALL {
        assert!(ask(&world.node(), of(&a, family), 8080).starts_with("a "));
        assert!(is_silence(&ask(&b.netns, of(&a, family), 8080)), "{family:?}");
        assert!(is_silence(&ask(&a.netns, of(&b, family), 8080)), "{family:?}");
        assert!(ask(&world.node(), of(&b, family), 8080).starts_with("b "), "the node itself may");
    }
    let cover = |uid: &str| PolicyChanges {
        pods: BTreeMap::from([(uid.to_owned(), Some(Isolation::default()))]),
        ..PolicyChanges::default()
    };
    world.with(|network| network.change_policies(&cover("b"))).unwrap();
    assert!(ask(&b.netns, of(&a, Family::V4), 8080).starts_with("a "));
    assert!(ask(&a.netns, of(&b, Family::V6), 8080).starts_with("b "));
    // A pod that is known before it is attached is never closed.
    world.with(|network| network.change_policies(&cover("c"))).unwrap();
    let c = world.pod("c");
    assert!(ask(&c.netns, of(&a, Family::V4), 8080).starts_with("a "));
    // A new process leaves pods as they are until it knows better.
    world.restart();
    enforce(&world);
    assert_eq!(told.lock().unwrap().len(), 6);
    assert!(ask(&c.netns, of(&b, Family::V6), 8080).starts_with("b "));
    let again = world.pod("b");
    assert_eq!(again, b);
    assert!(ask(&c.netns, of(&b, Family::V6), 8080).starts_with("b "), "attached again is not new");
}
