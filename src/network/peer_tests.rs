//! Three nodes in network namespaces of their own, real traffic between their pods. Nodes `a` and `b` are on one network, `c`
//! is behind a router; no node has a default route.
//!
//! ```text
//!   a 192.0.2.1  ──┐                                    ┌── c 198.51.100.3
//!   b 192.0.2.2  ──┴── lan  192.0.2.254 router .254 far ┘
//! ```
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use edge_sys::netns;

use crate::link::{self, VethPair};
use crate::netlink::Socket;
use crate::overlay::{VXLAN_LINK, VXLAN6_LINK};
use crate::peers::{Peer, Reach, Tunnel};
use crate::route::{self, Neighbour, Route};
use crate::{Backend, Cidr, Error, Monitor, NodeConfig, NodeNetwork, PodNetwork, sysctl};

const PATIENCE: Duration = Duration::from_secs(5);
const NAMES: [&str; 3] = ["a", "b", "c"];
const PORT: u16 = 8080;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Which addresses the machines have among themselves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Underlay {
    V4,
    V6,
}

struct World {
    dir: tempfile::TempDir,
    underlay: Underlay,
    backend: Backend,
    nodes: Vec<NodeNetwork>,
    /// Where each node says it is.
    told: Vec<Vec<IpAddr>>,
}

impl Drop for World {
    fn drop(&mut self) {
        for network in &self.nodes {
            for pod in network.pods().into_values() {
                let _ = netns::delete(&pod.netns);
            }
        }
        for name in NAMES.into_iter().chain(["router"]) {
            let _ = netns::delete(&self.ns(name));
        }
    }
}

/// Runs `ip` in a namespace.
fn ip_command(namespace: &Path, args: &str) {
    let out = netns::run_in(namespace, || Command::new("ip").args(args.split(' ')).output().unwrap()).unwrap();
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
}

impl World {
    /// The machines, before edge runs on them.
    fn bare(underlay: Underlay, backend: Backend, mtu: u32) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let told = NAMES.iter().map(|_| Vec::new()).collect();
        let mut world = Self { dir, underlay, backend, nodes: Vec::new(), told };
        for name in NAMES.into_iter().chain(["router"]) {
            netns::create(&world.ns(name)).unwrap();
            ip_command(&world.ns(name), "link set lo up");
            // addresses of other machines are there at once
            netns::run_in(&world.ns(name), || sysctl::set("ipv6/conf/default/accept_dad", "0")).unwrap().unwrap();
        }
        let router = world.ns("router");
        netns::run_in(&router, || {
            let mut socket = Socket::route().unwrap();
            for (number, (lan, nodes)) in [("lan", &NAMES[..2]), ("far", &NAMES[2..])].into_iter().enumerate() {
                let bridge = link::ensure_bridge(&mut socket, lan, [2, 0, 0, 0, 1, number as u8], mtu, true).unwrap();
                for name in nodes {
                    let namespace = fs::File::open(world.ns(name)).unwrap();
                    let pair = VethPair {
                        host: &format!("port-{name}"),
                        bridge,
                        mtu,
                        peer: "eth0",
                        peer_hardware: [2, 0, 0, 0, 2, name.as_bytes()[0]],
                        peer_netns: namespace.as_fd(),
                    };
                    link::create_veth(&mut socket, &pair).unwrap();
                    let port = link::find(&mut socket, pair.host).unwrap().unwrap();
                    link::set_up(&mut socket, port.index).unwrap();
                }
            }
            sysctl::set("ipv4/ip_forward", "1").unwrap();
            sysctl::set("ipv6/conf/all/forwarding", "1").unwrap();
        })
        .unwrap();
        let (near, far) = world.prefixes();
        ip_command(&router, &format!("addr add {near}254{} dev lan", world.length()));
        ip_command(&router, &format!("addr add {far}254{} dev far", world.length()));
        for number in 0..3 {
            world.told[number] = vec![world.address(number)];
            world.wire(number);
        }
        world
    }

    /// Gives a machine its address and its way to the other network.
    fn wire(&self, number: usize) {
        let ((near, far), ns) = (self.prefixes(), self.ns(NAMES[number]));
        netns::run_in(&ns, || sysctl::set_if_possible("ipv6/conf/eth0/accept_dad", "0")).unwrap();
        ip_command(&ns, "link set eth0 up");
        ip_command(&ns, &format!("addr add {}{} dev eth0", self.address(number), self.length()));
        let (other, router) = if number < 2 { (far, near) } else { (near, far) };
        ip_command(&ns, &format!("route add {other}{} via {router}254", if self.v4() { "0/24" } else { "/64" }));
    }

    fn v4(&self) -> bool {
        self.underlay == Underlay::V4
    }

    fn prefixes(&self) -> (&'static str, &'static str) {
        if self.v4() { ("192.0.2.", "198.51.100.") } else { ("2001:db8:1::", "2001:db8:2::") }
    }

    fn length(&self) -> &'static str {
        if self.v4() { "/24" } else { "/64 nodad" }
    }

    fn address(&self, number: usize) -> IpAddr {
        let (near, far) = self.prefixes();
        ip(&format!("{}{}", if number < 2 { near } else { far }, number + 1))
    }

    fn ns(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn new(underlay: Underlay, backend: Backend) -> Self {
        let mut world = Self::bare(underlay, backend, 1500);
        for number in 0..3 {
            let network = world.set_up(number).unwrap();
            world.nodes.push(network);
        }
        world
    }

    fn networks(number: usize) -> Vec<Cidr> {
        vec![cidr(&format!("10.42.{number}.0/24")), cidr(&format!("fd42:0:0:{number}::/64"))]
    }

    /// Edge starts on a machine.
    fn set_up(&self, number: usize) -> Result<NodeNetwork, Error> {
        let name = NAMES[number];
        let run_dir = self.dir.path().join(format!("run-{name}"));
        let config = NodeConfig {
            cluster_cidrs: vec![cidr("10.42.0.0/16"), cidr("fd42::/56")],
            service_cidrs: vec![cidr("10.43.0.0/16"), cidr("fd43::/112")],
            dns_addresses: vec![ip("10.43.0.10"), ip("fd43::a")],
            node_port_networks: Vec::new(),
            node_addresses: vec![self.address(number)],
            wireguard_key: run_dir.join("wireguard.key"),
            run_dir,
            backend: self.backend,
            cni: Default::default(),
        };
        netns::run_in(&self.ns(name), || {
            let network = NodeNetwork::set_up(config)?;
            network.assign(&Self::networks(number), &self.told[number])?;
            Ok(network)
        })
        .unwrap()
    }

    /// The machines get IPv6 addresses, too.
    fn add_ipv6(&mut self) {
        for (number, name) in NAMES.iter().enumerate() {
            let address = format!("2001:db8:{}::{}", 1 + number / 2, number + 1);
            ip_command(&self.ns(name), &format!("addr add {address}/64 dev eth0 nodad"));
            self.told[number].push(ip(&address));
        }
    }

    /// What the cluster knows of the other nodes.
    fn peers_of(&self, number: usize) -> Vec<Peer> {
        let others = (0..3).filter(|other| *other != number);
        let peer = |other: usize| Peer {
            name: NAMES[other].to_owned(),
            pod_networks: Self::networks(other),
            addresses: self.told[other].clone(),
            tunnel: self.nodes[other].tunnel(),
        };
        others.map(peer).collect()
    }

    /// A node acts on what it knows of the others.
    fn join(&self, number: usize) -> BTreeMap<String, Reach> {
        let peers = self.peers_of(number);
        self.on(number, |network| network.apply_peers(&self.told[number], &peers)).unwrap()
    }

    fn join_all(&self) -> Vec<BTreeMap<String, Reach>> {
        (0..3).map(|number| self.join(number)).collect()
    }

    fn on<T: Send>(&self, number: usize, work: impl FnOnce(&NodeNetwork) -> T + Send) -> T {
        netns::run_in(&self.ns(NAMES[number]), || work(&self.nodes[number])).unwrap()
    }

    fn pod(&self, number: usize, uid: &str) -> PodNetwork {
        self.on(number, |network| network.attach(uid, &[])).unwrap()
    }

    /// What is in a machine's kernel for other nodes.
    fn kernel(&self, number: usize) -> (BTreeSet<Route>, BTreeSet<Neighbour>) {
        netns::run_in(&self.ns(NAMES[number]), || {
            let mut socket = Socket::route().unwrap();
            let links = link::list(&mut socket).unwrap();
            let index = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.index);
            let bridge = index(crate::BRIDGE);
            let routes = route::ours(&mut socket).unwrap().into_iter().filter(|route| Some(route.index) != bridge);
            let vxlan: Vec<u32> = [VXLAN_LINK, VXLAN6_LINK].into_iter().filter_map(index).collect();
            (routes.collect(), route::neighbours(&mut socket, &vxlan).unwrap().into_iter().collect())
        })
        .unwrap()
    }
}

/// Greets with the client's address, then sends back what comes.
fn serve(namespace: &Path) {
    let (listener, datagrams) = netns::run_in(namespace, || {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
    })
    .unwrap();
    // the threads end with the test's process
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || -> io::Result<()> {
                let peer = stream.peer_addr()?.ip().to_canonical();
                writeln!(stream, "{peer}")?;
                io::copy(&mut stream.try_clone()?, &mut stream)?;
                Ok(())
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, peer)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..length], peer);
        }
    });
}

struct Client(TcpStream);

impl Client {
    /// A connection, and the address that the other side sees.
    fn connect(from: &Path, to: IpAddr) -> io::Result<(Self, String)> {
        netns::run_in(from, || {
            let stream = TcpStream::connect_timeout(&SocketAddr::from((to, PORT)), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut client = Self(stream);
            let mut line = String::new();
            let mut byte = [0];
            while client.0.read(&mut byte)? == 1 && byte[0] != b'\n' {
                line.push(char::from(byte[0]));
            }
            Ok((client, line))
        })
        .unwrap()
    }

    fn echo(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut writer = self.0.try_clone()?;
        let mut back = vec![0; bytes.len()];
        thread::scope(|scope| {
            scope.spawn(move || writer.write_all(bytes));
            self.0.read_exact(&mut back)
        })?;
        assert!(back == bytes, "what came back is something else");
        Ok(())
    }
}

fn seen(from: &Path, to: IpAddr) -> String {
    Client::connect(from, to).map_or_else(|error| error.to_string(), |(_, seen)| seen)
}

/// Every pod and every node reaches every pod, in both families, and is seen by its own address.
fn all_reach_all(world: &World) {
    let pods: Vec<PodNetwork> = (0..3).map(|number| world.pod(number, "pod")).collect();
    pods.iter().for_each(|pod| serve(&pod.netns));
    for (number, from) in pods.iter().enumerate() {
        assert_eq!(from.addresses.len(), 2);
        for (other, to) in pods.iter().enumerate() {
            for (family, address) in to.addresses.iter().enumerate() {
                let from_node = World::networks(number)[family].nth(1).to_string();
                assert_eq!(seen(&from.netns, *address), from.addresses[family].to_string(), "{number} to {other}");
                assert_eq!(seen(&world.ns(NAMES[number]), *address), from_node, "node {number} to {other}");
            }
        }
    }
}

fn reach(world: &World) -> Vec<Vec<Reach>> {
    world.join_all().into_iter().map(|reaches| reaches.into_values().collect()).collect()
}

#[test]
fn direct_where_nodes_are_on_one_network_and_vxlan_elsewhere() {
    use Reach::{Direct, Vxlan};
    // IPv6 between pods has no router on an IPv4 network, so a peer that has both is reached by VXLAN
    let mut world = World::new(Underlay::V4, Backend::Auto);
    assert_eq!(reach(&world), [[Vxlan, Vxlan], [Vxlan, Vxlan], [Vxlan, Vxlan]]);
    world.add_ipv6();
    assert_eq!(reach(&world), [[Direct, Vxlan], [Direct, Vxlan], [Vxlan, Vxlan]]);
    all_reach_all(&world);
    let (routes, _) = world.kernel(0);
    let to_b: BTreeSet<_> = routes.iter().filter(|r| World::networks(1).contains(&r.destination)).collect();
    assert_eq!(to_b.iter().map(|r| r.gateway).collect::<Vec<_>>(), [Some(ip("192.0.2.2")), Some(ip("2001:db8:1::2"))]);
}

#[test]
fn vxlan_over_ipv4() {
    let world = World::new(Underlay::V4, Backend::Vxlan);
    assert!(reach(&world).iter().flatten().all(|reach| *reach == Reach::Vxlan));
    all_reach_all(&world);
}

#[test]
fn vxlan_over_ipv6() {
    let world = World::new(Underlay::V6, Backend::Vxlan);
    assert!(reach(&world).iter().flatten().all(|reach| *reach == Reach::Vxlan));
    all_reach_all(&world);
}

#[test]
fn host_gw_says_which_node_is_too_far_away() {
    let mut world = World::new(Underlay::V4, Backend::HostGw);
    world.add_ipv6();
    let reaches = world.join_all();
    assert_eq!(reaches[0]["b"], Reach::Direct);
    let Reach::Unreachable(why) = &reaches[0]["c"] else { panic!("{reaches:?}") };
    assert!(why.contains("198.51.100.3") && why.contains("--network=auto"), "{why}");
    let (a, b) = (world.pod(0, "a"), world.pod(1, "b"));
    serve(&b.netns);
    assert_eq!(seen(&a.netns, b.addresses[0]), a.addresses[0].to_string());
    assert_eq!(world.kernel(0).1.len(), 0, "no tunnel");
}

/// Packets of pods fit into what carries them, and what is larger is cut up or refused at once.
#[test]
fn large_packets() {
    let world = World::new(Underlay::V4, Backend::Auto);
    world.join_all();
    let (a, c) = (world.pod(0, "a"), world.pod(2, "c"));
    serve(&c.netns);
    let megabytes: Vec<u8> = (0..4_000_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    for to in &c.addresses {
        Client::connect(&a.netns, *to).unwrap().0.echo(&megabytes).unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = netns::run_in(&a.netns, || UdpSocket::bind(any).unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 65_536];
        for length in [1, 1400, 1450, 1500, 9000, 60_000] {
            socket.send_to(&megabytes[..length], SocketAddr::from((*to, PORT))).unwrap();
            assert_eq!(socket.recv_from(&mut buffer).unwrap().0, length, "{length} bytes to {to}");
        }
    }
    // TCP never lets its packets be cut up: that they came through shows that the pods' MTU is right, and here it is
    let mtu = |pod: &PodNetwork| {
        netns::run_in(&pod.netns, || link::find(&mut Socket::route().unwrap(), "eth0").unwrap().unwrap().mtu).unwrap()
    };
    assert_eq!((mtu(&a), mtu(&c)), (1450, 1450));
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A cable is pulled and put back: connections go on, and the node learns that it has to write its routes again.
#[test]
fn a_link_is_cut_and_heals() {
    let mut world = World::new(Underlay::V4, Backend::Auto);
    world.add_ipv6();
    let mut monitor = netns::run_in(&world.ns("a"), Monitor::open).unwrap().unwrap();
    assert_eq!(world.join_all()[0]["b"], Reach::Direct);
    let (a, b, c) = (world.pod(0, "a"), world.pod(1, "b"), world.pod(2, "c"));
    [&b, &c].into_iter().for_each(|pod| serve(&pod.netns));
    let mut streams = [b.addresses[0], b.addresses[1], c.addresses[0], c.addresses[1]]
        .map(|to| Client::connect(&a.netns, to).unwrap().0);
    // what is written here comes back as news once; then it is quiet
    wait_until("no news of its own doing", || {
        world.join(0);
        let _ = monitor.changed();
        world.join(0);
        !monitor.changed().unwrap()
    });
    world.pod(0, "another");
    assert!(!monitor.changed().unwrap(), "pods that come are no news");

    // pulled at the other end: only the carrier is gone
    ip_command(&world.ns("router"), "link set port-a down");
    ip_command(&world.ns("router"), "link set port-a up");
    streams.iter_mut().for_each(|stream| stream.echo(b"still there?").unwrap());
    // set down here: the kernel removes the routes by it
    ip_command(&world.ns("a"), "link set eth0 down");
    assert!(!world.kernel(0).0.iter().any(|route| route.destination == cidr("10.42.1.0/24")));
    wait_until("news of the link", || monitor.changed().unwrap());
    assert_eq!(world.join(0)["b"], Reach::Vxlan, "as soon as there is a way again");
    ip_command(&world.ns("a"), "link set eth0 up");
    ip_command(&world.ns("a"), "addr replace 2001:db8:1::1/64 dev eth0 nodad");
    ip_command(&world.ns("a"), "route replace 198.51.100.0/24 via 192.0.2.254");
    wait_until("news of the link", || monitor.changed().unwrap());
    wait_until("direct again", || world.join(0)["b"] == Reach::Direct);
    streams.iter_mut().for_each(|stream| stream.echo(b"and again").unwrap());
}

/// Edge restarts, nodes come and go and move between networks: established connections do not notice.
#[test]
fn connections_survive_restarts_and_moves() {
    let mut world = World::new(Underlay::V4, Backend::Auto);
    world.add_ipv6();
    world.join_all();
    let (a, b, c) = (world.pod(0, "a"), world.pod(1, "b"), world.pod(2, "c"));
    [&b, &c].into_iter().for_each(|pod| serve(&pod.netns));
    let mut streams = [b.addresses[0], b.addresses[1], c.addresses[0], c.addresses[1]]
        .map(|to| Client::connect(&a.netns, to).unwrap().0);
    let mut go_on = |when: &str| {
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.echo(b"ping").unwrap_or_else(|error| panic!("connection {number} {when}: {error}"));
        }
    };
    go_on("as made");
    let before: Vec<_> = (0..3).map(|number| world.kernel(number)).collect();
    for number in 0..3 {
        let restarted = world.set_up(number).unwrap();
        world.nodes[number] = restarted;
        go_on("before the restarted node knows the others");
        world.join(number);
        go_on("after a restart");
    }
    assert_eq!((0..3).map(|number| world.kernel(number)).collect::<Vec<_>>(), before, "nothing was written anew");
    assert_eq!(world.pod(0, "a"), a, "the pod has what it had");
    // b tells only an address that a reaches by the router: the way changes to VXLAN and back
    ip_command(&world.ns("b"), "addr add 203.0.113.2/32 dev lo");
    ip_command(&world.ns("router"), "route add 203.0.113.2/32 via 192.0.2.2");
    for name in ["a", "c"] {
        let router = if name == "a" { "192.0.2.254" } else { "198.51.100.254" };
        ip_command(&world.ns(name), &format!("route add 203.0.113.2/32 via {router}"));
    }
    let told = std::mem::replace(&mut world.told[1], vec![ip("203.0.113.2")]);
    assert_eq!(world.join(0)["b"], Reach::Vxlan);
    go_on("one way by VXLAN");
    world.told[1] = told;
    assert_eq!(world.join(0)["b"], Reach::Direct);
    go_on("direct again");
    // another node goes
    let peers: Vec<Peer> = world.peers_of(0).into_iter().filter(|peer| peer.name == "b").collect();
    world.on(0, |network| network.apply_peers(&[ip("192.0.2.1")], &peers)).unwrap();
    assert!(world.kernel(0).0.iter().all(|route| World::networks(1).contains(&route.destination)));
    world.join(0);
    go_on("after c was gone and came back");
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

/// Nodes come, go, change their addresses, networks and modes at random: after each step the kernel holds what a simple
/// model says, and nothing else.
#[test]
fn churn_of_peers_matches_the_model() {
    let world = World::new(Underlay::V4, Backend::Auto);
    ip_command(&world.ns("a"), "addr add 2001:db8:1::1/64 dev eth0 nodad");
    let mut random = Random(7);
    let mut peers: BTreeMap<String, Peer> = BTreeMap::new();
    for step in 0..200 {
        for _ in 0..=random.below(4) {
            let number = 1 + random.below(30) as u8;
            let name = format!("n{number}");
            if random.below(3) == 0 {
                peers.remove(&name);
                continue;
            }
            let mut addresses = vec![ip(&format!("192.0.2.{}", 10 + random.below(40)))];
            if random.below(3) == 0 {
                addresses = vec![ip(&format!("198.51.100.{number}"))];
            }
            if random.below(2) == 0 {
                addresses.push(ip(&format!("2001:db8:1::f{number}")));
            }
            if random.below(10) == 0 {
                addresses.clear();
            }
            let mut networks = World::networks(usize::from(number));
            networks.truncate(1 + random.below(2) as usize);
            let tunnel = (random.below(4) > 0).then_some(Tunnel::Vxlan([2, 0, 0, 0, random.below(3) as u8, number]));
            peers.insert(name.clone(), Peer { name, pod_networks: networks, addresses, tunnel });
        }
        if step % 60 == 59 {
            peers.clear();
        }
        let list: Vec<Peer> = peers.values().cloned().collect();
        let own = [world.address(0), ip("2001:db8:1::1")];
        let reaches = world.on(0, |network| network.apply_peers(&own, &list)).unwrap();
        let (index, eth0) = netns::run_in(&world.ns("a"), || {
            let mut socket = Socket::route().unwrap();
            let mut index = |name| link::find(&mut socket, name).unwrap().map_or(0, |link| link.index);
            (index(VXLAN_LINK), index("eth0"))
        })
        .unwrap();
        let (mut routes, mut neighbours) = (BTreeSet::new(), BTreeSet::new());
        for peer in &list {
            // the model: all on the network, or else a tunnel to the first address
            let near = |ip: &&IpAddr| cidr("192.0.2.0/24").contains(**ip) || cidr("2001:db8:1::/64").contains(**ip);
            let router = |network: &Cidr| {
                let same = |ip: &&IpAddr| ip.is_ipv4() == network.base().is_ipv4();
                peer.addresses.iter().find(same).filter(near)
            };
            let direct = peer.pod_networks.iter().all(|network| router(network).is_some());
            for network in &peer.pod_networks {
                let source = Some(World::networks(0)[usize::from(network.base().is_ipv6())].nth(1));
                let on_link = |index| Route { source, ..Route::on_link(*network, index) };
                if direct {
                    assert_eq!(reaches[&peer.name], Reach::Direct);
                    routes.insert(Route { gateway: router(network).copied(), ..on_link(eth0) });
                } else if let (Some(to), Some(Tunnel::Vxlan(hardware))) = (peer.addresses.first(), peer.tunnel) {
                    assert_eq!(reaches[&peer.name], Reach::Vxlan);
                    let [.., a, b] = hardware;
                    let link_local = format!("fe80::ff:fe00:{:x}", u16::from(a) << 8 | u16::from(b));
                    let address = if network.base().is_ipv4() { network.base() } else { ip(&link_local) };
                    routes.insert(Route { gateway: Some(address), ..on_link(index) });
                    neighbours.insert(Neighbour::Hardware { index, address, hardware });
                    neighbours.insert(Neighbour::Forward { index, hardware, to: *to });
                } else {
                    assert!(matches!(reaches[&peer.name], Reach::Unreachable(_)), "{peer:?}");
                }
            }
        }
        assert_eq!(world.kernel(0), (routes, neighbours), "step {step}: {list:?}");
    }
}

/// All that tells of a machine's network: links, addresses, routes, neighbours, rules.
fn everything(namespace: &Path) -> String {
    let show = |program: &str, args: &str| {
        let out = netns::run_in(namespace, || Command::new(program).args(args.split(' ')).output()).unwrap();
        out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default()
    };
    let mut text = String::new();
    for args in ["link", "addr", "route show table all", "-6 route show table all", "rule", "neigh show nud permanent"]
    {
        text.push_str(&show("ip", args));
    }
    text.push_str(&show("bridge", "fdb"));
    text + &netns::run_in(namespace, rules).unwrap()
}

/// All tables, chains, rules and sets of nftables, as the kernel tells them.
fn rules() -> String {
    const SUBSYSTEM: u16 = 10;
    let mut socket = Socket::netfilter().unwrap();
    let mut text = String::new();
    for get in [1, 4, 7, 10] {
        let message = crate::netlink::Message::new((SUBSYSTEM << 8) | get, 0, &[libc::AF_UNSPEC as u8, 0, 0, 0]);
        for (_, payload) in socket.dump("list rules", message).unwrap() {
            // behind the header, which counts all changes that ever were
            text.push_str(&format!("{get} {:?} {:?}\n", payload[0], &payload[4..]));
        }
    }
    text
}

#[test]
fn what_is_torn_down_leaves_everything_as_it_was() {
    let mut world = World::bare(Underlay::V4, Backend::Auto, 1500);
    let foreign = [
        "link add docker0 type bridge",
        "addr add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
        "link add flannel.9 type vxlan id 9 dstport 4789",
        "route add 10.99.0.0/16 via 192.0.2.2 proto 99",
        "route add blackhole 10.98.0.0/16",
    ];
    foreign.iter().for_each(|args| ip_command(&world.ns("a"), args));
    // forwarding stays on, and the addresses of IPv6's routers are part of that
    netns::run_in(&world.ns("a"), || {
        sysctl::set("ipv4/ip_forward", "1").unwrap();
        sysctl::forward_ipv6().unwrap();
    })
    .unwrap();
    let before = everything(&world.ns("a"));
    for _ in 0..2 {
        world.nodes = (0..3).map(|number| world.set_up(number).unwrap()).collect();
        world.join_all();
        let a = world.pod(0, "a");
        serve(&world.pod(2, "c").netns);
        assert_ne!(everything(&world.ns("a")), before);
        drop(a);
        world.on(0, NodeNetwork::teardown).unwrap();
        world.on(2, NodeNetwork::teardown).unwrap();
        assert_eq!(everything(&world.ns("a")), before);
    }
}

#[test]
fn bad_input_is_refused_and_named() {
    let world = World::new(Underlay::V4, Backend::Auto);
    let other = |name: &str, network: &str, address: &str| Peer {
        name: name.to_owned(),
        pod_networks: vec![cidr(network)],
        addresses: vec![ip(address)],
        tunnel: Some(Tunnel::Vxlan([2, 0, 0, 0, 0, 9])),
    };
    let peers = [
        other("good", "10.42.9.0/24", "192.0.2.9"),
        other("mine", "10.42.0.128/25", "192.0.2.10"),
        other("outside", "10.44.0.0/24", "192.0.2.11"),
        other("all", "0.0.0.0/0", "192.0.2.12"),
        other("overlaps", "10.42.9.0/25", "192.0.2.13"),
        other("itself", "10.42.10.0/24", "192.0.2.1"),
        other("loopback", "10.42.11.0/24", "127.0.0.1"),
        other("group", "10.42.12.0/24", "224.0.0.1"),
        Peer { pod_networks: Vec::new(), ..other("new", "10.42.13.0/24", "192.0.2.14") },
    ];
    let reaches = world.on(0, |network| network.apply_peers(&[ip("192.0.2.1")], &peers)).unwrap();
    assert_eq!(reaches["good"], Reach::Direct);
    for (name, why) in [
        ("mine", "overlaps this node's"),
        ("outside", "not in the cluster's"),
        ("all", "not in the cluster's"),
        ("overlaps", "overlaps that of node good"),
        ("itself", "one of this node's own"),
        ("loopback", "no address"),
        ("group", "no address"),
        ("new", "no pod network yet"),
    ] {
        assert!(matches!(&reaches[name], Reach::Unreachable(reason) if reason.contains(why)), "{name}: {reaches:?}");
    }
    assert_eq!(world.kernel(0).0.len(), 1);
    let refused = world.on(0, |network| network.assign(&[cidr("10.44.0.0/24")], &[]));
    assert!(matches!(refused, Err(Error::PodNetworkOutside(_))));
    assert_eq!(world.on(0, NodeNetwork::pod_networks), World::networks(0), "what was, stays");
}

#[test]
fn a_network_too_small_and_a_port_that_is_taken() {
    let small = World::bare(Underlay::V4, Backend::Auto, 1300);
    let Err(Error::MtuTooSmall { link, mtu: 1300, available: 1250, needed: 1330 }) = small.set_up(0) else {
        panic!("accepted")
    };
    assert_eq!(link, "eth0");
    let mut world = World::new(Underlay::V4, Backend::Vxlan);
    let taken = netns::run_in(&world.ns("a"), || UdpSocket::bind("0.0.0.0:8472").unwrap()).unwrap();
    let (peers, own) = (world.peers_of(0), [world.address(0)]);
    let refused = world.on(0, |network| network.apply_peers(&own, &peers));
    assert!(matches!(refused, Err(Error::PortInUse { port: 8472, .. })), "{refused:?}");
    drop(taken);
    assert_eq!(world.join(0)["c"], Reach::Vxlan, "and works when it is free");
    // another cluster's software has the same VXLAN network
    world.on(0, NodeNetwork::teardown).unwrap();
    ip_command(&world.ns("a"), "link add flannel.1 type vxlan id 1 dstport 8472");
    world.nodes[0] = world.set_up(0).unwrap();
    let refused = world.on(0, |network| network.apply_peers(&own, &peers));
    assert!(matches!(refused, Err(Error::PortInUse { port: 8472, .. })), "{refused:?}");
}

/// The uplink's MTU changes: new pods and those that are there go by it, and so does the overlay. One that is too small is
/// refused with what was there left as it is.
#[test]
fn the_mtu_follows_the_uplink() {
    let world = World::new(Underlay::V4, Backend::Vxlan);
    let pod = world.pod(0, "pod");
    world.join_all();
    let mtu = |namespace: &Path, name: &str| {
        netns::run_in(namespace, || link::find(&mut Socket::route().unwrap(), name).unwrap().unwrap().mtu).unwrap()
    };
    let follow = |wanted: u32| {
        ip_command(&world.ns("a"), &format!("link set eth0 mtu {wanted}"));
        let followed = world.on(0, |network| network.assign(&World::networks(0), &world.told[0]));
        world.join(0);
        followed
    };
    let mut known = vec![pod];
    for (uplink, pods) in [(1500, 1450), (1400, 1350), (1500, 1450), (1330, 1280)] {
        follow(uplink).unwrap();
        known.push(world.pod(0, &format!("pod-{uplink}-{}", known.len())));
        for pod in &known {
            assert_eq!(mtu(&pod.netns, "eth0"), pods, "{}", pod.netns.display());
        }
        for link in [crate::BRIDGE, VXLAN_LINK] {
            assert_eq!(mtu(&world.ns("a"), link), pods, "{link}");
        }
        let host = netns::run_in(&world.ns("a"), || link::list(&mut Socket::route().unwrap()).unwrap()).unwrap();
        assert!(host.iter().filter(|link| link.name.starts_with("veth")).all(|link| link.mtu == pods));
    }
    let refused = follow(1300);
    assert!(matches!(refused, Err(Error::MtuTooSmall { needed: 1330, .. })), "{refused:?}");
    assert!(
        matches!(world.on(0, NodeNetwork::readiness), crate::Readiness::NotReady(why) if why.contains("eth0") && why.contains("1330"))
    );
    assert_eq!(mtu(&known[0].netns, "eth0"), 1280);
    follow(1500).unwrap();
    assert_eq!(world.on(0, NodeNetwork::readiness), crate::Readiness::Ready);
    assert_eq!(mtu(&known[0].netns, "eth0"), 1450);
}

#[test]
fn wireguard_works_or_says_that_the_kernel_has_none() {
    let mut world = World::bare(Underlay::V4, Backend::WireGuard, 1500);
    match world.set_up(0) {
        Err(Error::NoWireGuard) => eprintln!("this kernel has no WireGuard: only its refusal is tested"),
        Err(error) => panic!("{error}"),
        Ok(network) => {
            world.nodes.push(network);
            for number in 1..3 {
                let network = world.set_up(number).unwrap();
                world.nodes.push(network);
            }
            assert!(reach(&world).iter().flatten().all(|reach| *reach == Reach::WireGuard));
            all_reach_all(&world);
            let restarted = world.set_up(0).unwrap();
            assert_eq!(restarted.tunnel(), world.nodes[0].tunnel(), "the key is the same");
            world.nodes[0] = restarted;
            world.join(0);
            all_reach_all(&world);
        }
    }
}

/// The node gets another network than it had: its pods keep their addresses and their connections among themselves.
#[test]
fn another_pod_network_leaves_pods_connected() {
    let world = World::new(Underlay::V4, Backend::Auto);
    let (old, older) = (world.pod(0, "old"), world.pod(0, "older"));
    [&old, &older].into_iter().for_each(|pod| serve(&pod.netns));
    let mut stream = Client::connect(&old.netns, older.addresses[0]).unwrap().0;
    world.on(0, |network| network.assign(&World::networks(7), &[ip("192.0.2.1")])).unwrap();
    stream.echo(b"still there?").unwrap();
    let new = world.pod(0, "new");
    assert_eq!(new.addresses[0], ip("10.42.7.2"));
    for (family, address) in older.addresses.iter().enumerate() {
        assert_eq!(seen(&new.netns, *address), new.addresses[family].to_string());
        assert_eq!(seen(&world.ns("a"), *address), World::networks(7)[family].nth(1).to_string());
    }
    world.on(0, |network| network.detach("older")).unwrap();
    assert_eq!(world.pod(0, "old"), old);
}
