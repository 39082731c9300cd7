//! Real traffic through everything: a node in a network namespace of its own, with pods, and a machine outside of it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use edge_sys::netns;

use crate::link::{self, VethPair};
use crate::netlink::Socket;
use crate::route::Route as IpRoute;
use crate::{
    BRIDGE, Backend, Cidr, DNS_LINK, Endpoint, Error, Family, Frontend, HostPort, NoEndpoints, NodeConfig, NodeNetwork,
    PodNetwork, Protocol, Route, ServiceTable, sysctl,
};

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(crate) const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 80);
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Long enough for any answer, short enough for the tests that expect none.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1500);

/// A directory with the namespaces `node` and `outside`, which end with it, whatever fails in between.
struct Place(tempfile::TempDir);

impl Place {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in ["node", "outside"] {
            let _ = netns::delete(&self.path().join(name));
        }
    }
}

pub(crate) struct World {
    dir: Place,
    network: NodeNetwork,
    both_families: bool,
    node_port_networks: Vec<Cidr>,
}

impl World {
    fn new() -> Self {
        Self::make(false)
    }

    /// The same with IPv6 beside IPv4.
    pub(crate) fn of_both_families() -> Self {
        Self::make(true)
    }

    fn make(both_families: bool) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = Place(tempfile::tempdir().unwrap());
        let path = |name: &str| dir.path().join(name);
        netns::create(&path("node")).unwrap();
        netns::create(&path("outside")).unwrap();
        let outside = fs::File::open(path("outside")).unwrap();
        for name in ["node", "outside"] {
            // no second of waiting for duplicates of addresses that nobody else has
            netns::run_in(&path(name), || sysctl::set_if_possible("ipv6/conf/default/accept_dad", "0")).unwrap();
        }
        netns::run_in(&path("node"), || {
            let mut socket = Socket::route().unwrap();
            link::set_up(&mut socket, 1).unwrap();
            let bridge = link::ensure_bridge(&mut socket, "wan0", [2, 0, 0, 0, 0, 1], 1400, both_families).unwrap();
            link::ensure_address(&mut socket, bridge, NODE.into(), 24).unwrap();
            if both_families {
                link::ensure_address(&mut socket, bridge, NODE6.into(), 64).unwrap();
            }
            let pair = VethPair {
                host: "wanport",
                bridge,
                mtu: 1400,
                peer: "eth0",
                peer_hardware: [2, 0, 0, 0, 0, 2],
                peer_netns: outside.as_fd(),
            };
            link::create_veth(&mut socket, &pair).unwrap();
            let port = link::find(&mut socket, "wanport").unwrap().unwrap();
            link::set_up(&mut socket, port.index).unwrap();
        })
        .unwrap();
        netns::run_in(&path("outside"), || {
            let mut socket = Socket::route().unwrap();
            let index = link::find(&mut socket, "eth0").unwrap().unwrap().index;
            link::set_up(&mut socket, 1).unwrap();
            link::set_up(&mut socket, index).unwrap();
            link::ensure_address(&mut socket, index, OUTSIDE.into(), 24).unwrap();
            if both_families {
                link::ensure_address(&mut socket, index, OUTSIDE6.into(), 64).unwrap();
            }
        })
        .unwrap();
        let network = set_up(dir.path(), both_families, &[]);
        Self { dir, network, both_families, node_port_networks: Vec::new() }
    }

    /// Lets only the addresses in these networks serve node ports, from the next process on.
    fn serve_node_ports_on(&mut self, networks: &[&str]) {
        self.node_port_networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        self.restart();
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// Calls the network as edge does: from the node's namespace.
    pub(crate) fn with<T: Send>(&self, call: impl FnOnce(&NodeNetwork) -> T + Send) -> T {
        netns::run_in(&self.node(), || call(&self.network)).unwrap()
    }

    pub(crate) fn pod(&self, uid: &str) -> PodNetwork {
        self.with(|network| network.attach(uid, &[])).unwrap()
    }

    pub(crate) fn apply(&self, services: &[(Frontend, Route)]) {
        let table: ServiceTable = services.iter().cloned().collect();
        self.with(|network| network.apply_services(table)).unwrap();
    }

    /// A new process: everything in memory is lost.
    pub(crate) fn restart(&mut self) {
        self.network = set_up(self.dir.path(), self.both_families, &self.node_port_networks);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let torn_down = self.with(NodeNetwork::teardown);
        if !thread::panicking() {
            torn_down.unwrap();
        }
    }
}

fn set_up(dir: &Path, both_families: bool, node_port_networks: &[Cidr]) -> NodeNetwork {
    let cidrs = |texts: [&str; 2]| -> Vec<Cidr> {
        texts.iter().take(1 + usize::from(both_families)).map(|text| text.parse().unwrap()).collect()
    };
    let service_cidrs = cidrs(["10.43.0.0/16", "fd43::/112"]);
    let config = NodeConfig {
        run_dir: dir.join("run"),
        cluster_cidrs: cidrs(["10.42.0.0/16", "fd42::/56"]),
        dns_addresses: service_cidrs.iter().map(|network| network.nth(10)).collect(),
        service_cidrs,
        node_port_networks: node_port_networks.to_vec(),
        node_addresses: vec![NODE.into()],
        wireguard_key: dir.join("wireguard.key"),
        backend: Backend::Auto,
        cni: Default::default(),
    };
    netns::run_in(&dir.join("node"), || {
        let network = NodeNetwork::set_up(config)?;
        network.assign(&cidrs(["10.42.0.0/24", "fd42::/64"]), &[])?;
        Ok::<_, Error>(network)
    })
    .unwrap()
    .unwrap()
}

fn ip(pod: &PodNetwork) -> Ipv4Addr {
    match pod.addresses[0] {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6}"),
    }
}

fn endpoint(pod: &PodNetwork) -> Endpoint {
    Endpoint { address: ip(pod).into(), port: 8080 }
}

fn cluster_ip(protocol: Protocol) -> Frontend {
    Frontend { address: VIP.into(), protocol, port: 80 }
}

fn node_port(port: u16) -> Frontend {
    Frontend::node(Family::V4, Protocol::Tcp, port)
}

/// A server on TCP and UDP port 8080 of a namespace. It greets TCP clients with its name and their address and then sends back
/// what they send; it answers datagrams with the greeting.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    listener: TcpListener,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(namespace: &Path, name: &str) -> Self {
        let any = [SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080))];
        let sockets = || (TcpListener::bind(&any[..]).unwrap(), UdpSocket::bind(&any[..]).unwrap());
        let (listener, datagrams) = netns::run_in(namespace, sockets).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let greeting = |name: &str, peer: SocketAddr| format!("{name} {}", peer.ip().to_canonical());
        let (accepting, tcp_name) = (listener.try_clone().unwrap(), name.to_owned());
        let tcp = thread::spawn(move || {
            while let Ok((mut stream, peer)) = accepting.accept() {
                let hello = greeting(&tcp_name, peer);
                thread::spawn(move || -> io::Result<()> {
                    stream.write_all(format!("{hello}\n").as_bytes())?;
                    let mut echo = stream.try_clone()?;
                    io::copy(&mut echo, &mut stream)?;
                    Ok(())
                });
            }
        });
        let (udp_stop, udp_name) = (stop.clone(), name.to_owned());
        datagrams.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let udp = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !udp_stop.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = datagrams.recv_from(&mut buffer) {
                    let _ = datagrams.send_to(greeting(&udp_name, peer).as_bytes(), peer);
                }
            }
        });
        Self { stop, listener, threads: vec![tcp, udp] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes up accept().
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

pub(crate) fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line).unwrap())
}

pub(crate) fn connect(from: &Path, to: impl Into<IpAddr>, port: u16) -> io::Result<(TcpStream, String)> {
    let to: IpAddr = to.into();
    netns::run_in(from, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let greeting = read_line(&mut stream)?;
        Ok((stream, greeting))
    })
    .unwrap()
}

/// The greeting that a connection gets: the server's name and the address it sees.
pub(crate) fn ask(from: &Path, to: impl Into<IpAddr>, port: u16) -> String {
    connect(from, to, port).map_or_else(|error| format!("{:?}", error.kind()), |(_, greeting)| greeting)
}

pub(crate) fn all_answers(from: &Path, to: impl Into<IpAddr> + Copy, port: u16) -> BTreeSet<String> {
    (0..40).map(|_| ask(from, to, port)).collect()
}

fn set<const N: usize>(texts: [String; N]) -> BTreeSet<String> {
    texts.into_iter().collect()
}

#[test]
fn pods_reach_pods_node_and_world() {
    let world = World::new();
    let (a, b) = (world.pod("a"), world.pod("b"));
    let _servers = [
        Server::start(&a.netns, "a"),
        Server::start(&b.netns, "b"),
        Server::start(&world.node(), "node"),
        Server::start(&world.outside(), "outside"),
    ];
    assert_eq!(ask(&a.netns, ip(&b), 8080), format!("b {}", ip(&a)));
    assert_eq!(ask(&b.netns, ip(&a), 8080), format!("a {}", ip(&b)));
    assert_eq!(ask(&a.netns, LOCALHOST, 8080), "a 127.0.0.1");
    assert_eq!(ask(&a.netns, ip(&a), 8080), format!("a {}", ip(&a)));
    assert_eq!(ask(&a.netns, GATEWAY, 8080), format!("node {}", ip(&a)));
    assert_eq!(ask(&a.netns, NODE, 8080), format!("node {}", ip(&a)));
    assert_eq!(ask(&world.node(), ip(&a), 8080), format!("a {GATEWAY}"));
    assert_eq!(ask(&a.netns, OUTSIDE, 8080), format!("outside {NODE}"), "the world sees the node");
}

#[test]
fn cluster_ip_balances_with_and_without_bridge_netfilter() {
    let world = World::new();
    let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
    let _servers = [Server::start(&a.netns, "a"), Server::start(&b.netns, "b")];
    for bridge_netfilter in ["0", "1"] {
        world.with(|_| sysctl::set_if_possible("bridge/bridge-nf-call-iptables", bridge_netfilter));
        world.apply(&[(cluster_ip(Protocol::Tcp), Route::to(vec![endpoint(&a), endpoint(&b)]))]);
        let seen = |by: Ipv4Addr| set([format!("a {by}"), format!("b {by}")]);
        assert_eq!(all_answers(&c.netns, VIP, 80), seen(ip(&c)), "pods are seen as themselves");
        assert_eq!(all_answers(&world.node(), VIP, 80), seen(GATEWAY));
        // direct traffic in between must not spoil the way back of translated connections
        assert_eq!(ask(&a.netns, ip(&b), 8080), format!("b {}", ip(&a)));
        assert_eq!(all_answers(&a.netns, VIP, 80), set([format!("a {GATEWAY}"), format!("b {}", ip(&a))]));
        world.apply(&[(cluster_ip(Protocol::Tcp), Route::to(vec![endpoint(&a)]))]);
        assert_eq!(all_answers(&c.netns, VIP, 80), set([format!("a {}", ip(&c))]));
        assert_eq!(ask(&a.netns, VIP, 80), format!("a {GATEWAY}"), "to itself through its own service");
    }
}

#[test]
fn node_ports_on_every_address_of_the_node() {
    let world = World::new();
    let (a, b) = (world.pod("a"), world.pod("b"));
    let _servers = [Server::start(&a.netns, "a"), Server::start(&b.netns, "b")];
    let cluster = Route { masquerade: true, ..Route::to(vec![endpoint(&a)]) };
    // Local: from outside only endpoints of this node, with the client's address; from inside all.
    let local = Route { internal_endpoints: Some(vec![endpoint(&b)]), ..Route::to(vec![endpoint(&a)]) };
    let (reject, drop) = (Route::to(Vec::new()), Route { no_endpoints: NoEndpoints::Drop, ..Route::to(Vec::new()) });
    world.apply(&[
        (node_port(30080), cluster),
        (node_port(30081), local),
        (node_port(30082), reject),
        (node_port(30083), drop),
    ]);
    assert_eq!(ask(&world.outside(), NODE, 30080), format!("a {GATEWAY}"));
    assert_eq!(ask(&world.node(), NODE, 30080), format!("a {GATEWAY}"));
    assert_eq!(ask(&world.node(), LOCALHOST, 30080), format!("a {GATEWAY}"));
    assert_eq!(ask(&b.netns, GATEWAY, 30080), format!("a {GATEWAY}"));
    assert_eq!(ask(&b.netns, LOCALHOST, 30080), "ConnectionRefused", "a pod's loopback is its own");
    assert_eq!(ask(&world.outside(), NODE, 30081), format!("a {OUTSIDE}"));
    assert_eq!(ask(&world.node(), LOCALHOST, 30081), format!("b {GATEWAY}"));
    assert_eq!(ask(&a.netns, NODE, 30081), format!("b {}", ip(&a)));
    assert_eq!(ask(&world.outside(), NODE, 30082), "ConnectionRefused");
    assert_eq!(ask(&world.node(), LOCALHOST, 30082), "ConnectionRefused");
    assert_eq!(ask(&a.netns, NODE, 30082), "ConnectionRefused");
    assert!(["TimedOut", "WouldBlock"].contains(&ask(&world.outside(), NODE, 30083).as_str()));
    let _node_server = Server::start(&world.node(), "node");
    assert_eq!(ask(&world.outside(), NODE, 8080), format!("node {OUTSIDE}"), "other ports are the node's own");
}

/// As kube-proxy's `--nodeport-addresses`: elsewhere the port is the node's own.
#[test]
fn node_ports_on_some_addresses_of_the_node() {
    let mut world = World::new();
    let a = world.pod("a");
    let _servers = [Server::start(&a.netns, "a"), Server::start(&world.node(), "node")];
    world.serve_node_ports_on(&["192.0.2.0/24", "2001:db8::/64"]);
    let services = [(node_port(30080), Route::to(vec![endpoint(&a)])), (node_port(8080), Route::to(Vec::new()))];
    for round in ["as made", "after a restart"] {
        world.apply(&services);
        assert_eq!(ask(&world.outside(), NODE, 30080), format!("a {OUTSIDE}"), "{round}");
        assert_eq!(ask(&world.node(), NODE, 30080), format!("a {GATEWAY}"), "{round}");
        assert_eq!(ask(&world.node(), LOCALHOST, 30080), "ConnectionRefused", "{round}");
        assert_eq!(ask(&a.netns, GATEWAY, 30080), "ConnectionRefused", "{round}");
        // a service without endpoints refuses at its own addresses only
        assert_eq!(ask(&world.outside(), NODE, 8080), "ConnectionRefused", "{round}");
        assert_eq!(ask(&world.node(), NODE, 8080), "ConnectionRefused", "{round}");
        assert_eq!(ask(&world.node(), LOCALHOST, 8080), "node 127.0.0.1", "{round}");
        assert_eq!(ask(&a.netns, GATEWAY, 8080), format!("node {}", ip(&a)), "{round}");
        world.restart();
    }
    // Every address again.
    world.serve_node_ports_on(&[]);
    world.apply(&services);
    assert_eq!(ask(&world.node(), LOCALHOST, 30080), format!("a {GATEWAY}"));
}

#[test]
fn external_addresses_are_translated_before_they_are_routed() {
    let world = World::new();
    let a = world.pod("a");
    let _server = Server::start(&a.netns, "a");
    let external = Ipv4Addr::new(198, 51, 100, 7);
    let frontend = Frontend { address: external.into(), protocol: Protocol::Tcp, port: 443 };
    world.apply(&[(frontend, Route { masquerade: true, ..Route::to(vec![endpoint(&a)]) })]);
    netns::run_in(&world.outside(), || {
        let mut socket = Socket::route().unwrap();
        let index = link::find(&mut socket, "eth0").unwrap().unwrap().index;
        let everything = IpRoute::on_link("0.0.0.0/0".parse().unwrap(), index);
        IpRoute { gateway: Some(NODE.into()), ..everything }.ensure(&mut socket).unwrap();
    })
    .unwrap();
    assert_eq!(ask(&world.outside(), external, 443), format!("a {GATEWAY}"));
    world.apply(&[(frontend, Route::to(Vec::new()))]);
    // A packet that is not translated must have some way to go, to be refused on it.
    world.with(|_| {
        let mut socket = Socket::route().unwrap();
        let index = link::find(&mut socket, "wan0").unwrap().unwrap().index;
        IpRoute::on_link("198.51.100.0/24".parse().unwrap(), index).ensure(&mut socket).unwrap();
    });
    assert_eq!(ask(&world.outside(), external, 443), "ConnectionRefused");
}

#[test]
fn services_without_endpoints_are_refused_at_once() {
    let world = World::new();
    let a = world.pod("a");
    world.apply(&[(cluster_ip(Protocol::Tcp), Route::to(Vec::new()))]);
    for from in [a.netns.clone(), world.node()] {
        assert_eq!(ask(&from, VIP, 80), "ConnectionRefused");
        assert_eq!(ask(&from, Ipv4Addr::new(10, 43, 9, 9), 443), "ConnectionRefused", "no such service");
        assert_eq!(ask(&from, Ipv4Addr::new(10, 43, 0, 10), 9), "ConnectionRefused", "the DNS address is the node's");
    }
}

#[test]
fn the_dns_address_answers_pods_and_node() {
    let world = World::new();
    let a = world.pod("a");
    let _server = Server::start(&world.node(), "dns");
    let dns = Ipv4Addr::new(10, 43, 0, 10);
    assert_eq!(ask(&a.netns, dns, 8080), format!("dns {}", ip(&a)));
    assert_eq!(ask(&world.node(), dns, 8080), format!("dns {dns}"));
}

#[test]
fn host_ports_come_and_go_with_the_pod() {
    let mut world = World::new();
    let port = |host_ip| HostPort { host_ip, host_port: 8088, container_port: 8080, protocol: Protocol::Tcp };
    let a = world.with(|network| network.attach("a", &[port(None)])).unwrap();
    let b = world.pod("b");
    let server = Server::start(&a.netns, "a");
    for round in ["as made", "after a restart"] {
        assert_eq!(ask(&world.outside(), NODE, 8088), format!("a {OUTSIDE}"), "{round}");
        assert_eq!(ask(&world.node(), LOCALHOST, 8088), format!("a {GATEWAY}"), "{round}");
        assert_eq!(ask(&b.netns, NODE, 8088), format!("a {}", ip(&b)), "{round}");
        assert_eq!(ask(&a.netns, NODE, 8088), format!("a {GATEWAY}"), "{round}");
        let refused = world.with(|network| network.attach("b", &[port(Some(NODE))]));
        assert!(matches!(refused, Err(Error::HostPortInUse { .. })), "{round}");
        world.restart();
        world.apply(&[]);
    }
    drop(server);
    world.restart();
    world.with(|network| network.detach("a")).unwrap();
    assert_eq!(ask(&world.outside(), NODE, 8088), "ConnectionRefused");
    world.with(|network| network.attach("b", &[port(Some(NODE))])).unwrap();
    let _server = Server::start(&b.netns, "b");
    assert_eq!(ask(&world.outside(), NODE, 8088), format!("b {OUTSIDE}"));
    assert_eq!(ask(&world.node(), LOCALHOST, 8088), "ConnectionRefused", "only on the address that was asked for");
}

#[test]
fn affinity_keeps_a_client_at_its_endpoint() {
    let mut world = World::new();
    let pods = ["a", "b", "c"].map(|uid| world.pod(uid));
    let _servers: Vec<Server> = pods.iter().zip(["a", "b", "c"]).map(|(p, n)| Server::start(&p.netns, n)).collect();
    let sticky =
        |pods: &[PodNetwork]| Route { affinity_seconds: Some(600), ..Route::to(pods.iter().map(endpoint).collect()) };
    world.apply(&[(cluster_ip(Protocol::Tcp), sticky(&pods))]);
    let first = all_answers(&world.node(), VIP, 80);
    assert_eq!(first.len(), 1, "{first:?}");
    world.restart();
    world.apply(&[(cluster_ip(Protocol::Tcp), sticky(&pods))]);
    assert_eq!(all_answers(&world.node(), VIP, 80), first, "a restart forgets nobody");
    let left: Vec<PodNetwork> = pods
        .iter()
        .zip(["a", "b", "c"])
        .filter(|(_, n)| !first.first().unwrap().starts_with(n))
        .map(|(p, _)| p.clone())
        .collect();
    world.apply(&[(cluster_ip(Protocol::Tcp), sticky(&left))]);
    let second = all_answers(&world.node(), VIP, 80);
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(second.is_disjoint(&first), "an endpoint that is gone gets nobody");
    // An endpoint that is the node itself is remembered as well; and nft can show it all.
    let _server = Server::start(&world.node(), "node");
    let on_node = Endpoint { address: NODE.into(), port: 8080 };
    world.apply(&[(cluster_ip(Protocol::Tcp), Route { affinity_seconds: Some(600), ..Route::to(vec![on_node]) })]);
    assert_eq!(ask(&pods[0].netns, VIP, 80), format!("node {}", ip(&pods[0])));
    let out = world.with(|_| std::process::Command::new("nft").args(["list", "ruleset"]).output()).unwrap();
    let shown = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "nft: {}", String::from_utf8_lossy(&out.stderr));
    assert!(
        shown.contains(&format!("{} . {VIP}", ip(&pods[0]))) && shown.contains(&format!("{NODE} . 8080")),
        "{shown}"
    );
}

#[test]
fn datagrams_follow_the_endpoints() {
    let world = World::new();
    let (a, b, c) = (world.pod("a"), world.pod("b"), world.pod("c"));
    let _servers = [Server::start(&a.netns, "a"), Server::start(&b.netns, "b")];
    let client = netns::run_in(&c.netns, || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let ask = || {
        client.send_to(b"?", SocketAddr::from((VIP, 80)))?;
        let mut buffer = [0; 64];
        let (length, from) = client.recv_from(&mut buffer)?;
        assert_eq!(from, SocketAddr::from((VIP, 80)), "answers come from the service");
        Ok::<_, io::Error>(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    // The client starts before the service has endpoints, and never stops using the same socket.
    world.apply(&[(cluster_ip(Protocol::Udp), Route::to(Vec::new()))]);
    assert!(ask().is_err());
    for pod in [(&a, "a"), (&b, "b"), (&a, "a")] {
        world.apply(&[(cluster_ip(Protocol::Udp), Route::to(vec![endpoint(pod.0)]))]);
        assert_eq!(ask().unwrap(), format!("{} {}", pod.1, ip(&c)));
    }
}

#[test]
fn open_connections_survive_changes_and_restarts() {
    let mut world = World::new();
    let (a, b) = (world.pod("a"), world.pod("b"));
    let _servers = [Server::start(&a.netns, "a"), Server::start(&b.netns, "b")];
    let frontend = cluster_ip(Protocol::Tcp);
    world.apply(&[(frontend, Route::to(vec![endpoint(&a)])), (node_port(30080), Route::to(vec![endpoint(&a)]))]);
    let mut streams = [
        connect(&b.netns, VIP, 80).unwrap().0,
        connect(&world.node(), VIP, 80).unwrap().0,
        connect(&world.outside(), NODE, 30080).unwrap().0,
        connect(&world.node(), LOCALHOST, 30080).unwrap().0,
    ];
    let mut still_work = |when: &str| {
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.write_all(b"ping\n").unwrap();
            assert_eq!(read_line(stream).unwrap(), "ping", "connection {number} {when}");
        }
    };
    still_work("as made");
    world.apply(&[(frontend, Route::to(vec![endpoint(&a), endpoint(&b)]))]);
    still_work("with another endpoint");
    world.apply(&[(frontend, Route::to(vec![endpoint(&b)]))]);
    still_work("without its endpoint: it ends when the pod ends");
    world.restart();
    still_work("after a restart");
    assert_eq!(ask(&world.node(), VIP, 80), format!("b {GATEWAY}"), "rules serve before the services are known again");
    assert_eq!(world.pod("a"), a, "the pod has what it had");
    still_work("after attaching again");
}

#[test]
fn a_crash_in_between_is_repaired() {
    let mut world = World::new();
    let a = world.pod("a");
    let run = world.dir.path().join("run");
    // Only the lease was written.
    fs::write(run.join("leases/b"), br#"{"addresses":["10.42.0.77"]}"#).unwrap();
    // Only the namespace was made.
    netns::create(&run.join("netns/c")).unwrap();
    // The namespace was unpinned, as by a reboot: a plain file is left.
    fs::write(run.join("netns/d"), b"").unwrap();
    // The lease of a running pod was damaged.
    fs::write(run.join("leases/a"), br#"{"addr"#).unwrap();
    world.restart();
    assert_eq!(world.network.pods()["a"], a, "known from its namespace");
    let (b, c, d) = (world.pod("b"), world.pod("c"), world.pod("d"));
    assert_eq!(ip(&b), Ipv4Addr::new(10, 42, 0, 77));
    let all = [&a, &b, &c, &d];
    assert_eq!(all.iter().map(|pod| ip(pod)).collect::<BTreeSet<_>>().len(), 4);
    let _servers: Vec<Server> = all.iter().map(|pod| Server::start(&pod.netns, "x")).collect();
    for (from, to) in all.iter().zip(all.iter().skip(1)) {
        assert_eq!(ask(&from.netns, ip(to), 8080), format!("x {}", ip(from)));
    }
}

#[test]
fn cleanup_keeps_the_known_and_teardown_leaves_nothing() {
    let mut world = World::new();
    let (a, b) = (world.pod("a"), world.pod("b"));
    netns::create(&world.dir.path().join("run/netns/leftover")).unwrap();
    world.restart();
    world.with(|network| network.cleanup_stale(&BTreeSet::from(["a".to_owned()]))).unwrap();
    assert!(a.netns.exists() && !b.netns.exists());
    assert!(!world.dir.path().join("run/netns/leftover").exists());
    assert_eq!(world.network.pods().keys().collect::<Vec<_>>(), ["a"]);
    let _server = Server::start(&a.netns, "a");
    assert_eq!(ask(&world.node(), ip(&a), 8080), format!("a {GATEWAY}"));
    let names = |world: &World| {
        let all = world.with(|_| link::list(&mut Socket::route().unwrap())).unwrap();
        all.into_iter().map(|link| link.name).collect::<BTreeSet<_>>()
    };
    assert!(names(&world).contains(BRIDGE) && names(&world).contains(DNS_LINK));
    world.with(NodeNetwork::teardown).unwrap();
    assert!(names(&world).iter().all(|name| !name.starts_with("edge") && !name.starts_with("veth")));
    world.with(NodeNetwork::teardown).unwrap();
    world.restart();
    world.pod("a");
}

/// Ten pods at the same time: no address twice, all of them work.
#[test]
fn concurrent_attachments() {
    let world = World::new();
    let world = &world;
    let pods: Vec<PodNetwork> = thread::scope(|scope| {
        let handles: Vec<_> = (0..10).map(|n| scope.spawn(move || world.pod(&format!("p{n}")))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    assert_eq!(pods.iter().map(ip).collect::<BTreeSet<_>>().len(), 10);
    for pod in &pods {
        let _server = Server::start(&pod.netns, "p");
        assert_eq!(ask(&world.node(), ip(pod), 8080), format!("p {GATEWAY}"));
    }
    thread::scope(|scope| {
        for n in 0..10 {
            scope.spawn(move || world.with(|network| network.detach(&format!("p{n}"))).unwrap());
        }
    });
    assert!(world.network.pods().is_empty());
}

/// A machine that is in the cluster's networks already: nothing is set up. One that comes to be so later goes on.
#[test]
fn networks_in_use_are_refused() {
    let mut world = World::new();
    world.with(NodeNetwork::teardown).unwrap();
    let occupy = |world: &World, address: &str, prefix: u8| {
        world.with(|_| {
            let mut socket = Socket::route().unwrap();
            let index = link::find(&mut socket, "wan0").unwrap().unwrap().index;
            link::ensure_address(&mut socket, index, address.parse().unwrap(), prefix).unwrap();
            index
        })
    };
    let config = |dir: &Path| NodeConfig {
        run_dir: dir.join("other"),
        cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
        dns_addresses: Vec::new(),
        node_port_networks: Vec::new(),
        node_addresses: Vec::new(),
        wireguard_key: dir.join("wireguard.key"),
        backend: Backend::Auto,
        cni: Default::default(),
    };
    let links = |world: &World| world.with(|_| link::list(&mut Socket::route().unwrap())).unwrap().len();
    let before = links(&world);
    for (address, expected) in [("10.42.7.1", "of pods"), ("10.43.7.1", "of services")] {
        let index = occupy(&world, address, 24);
        let refused = world.with(|_| NodeNetwork::set_up(config(world.dir.path()))).unwrap_err().to_string();
        assert!(refused.contains(&format!("link wan0 of this machine has the address {address}/24")), "{refused}");
        assert!(refused.contains(expected), "{refused}");
        assert_eq!(links(&world), before, "nothing was made");
        world
            .with(|_| link::delete_address(&mut Socket::route().unwrap(), index, address.parse().unwrap(), 24))
            .unwrap();
    }
    // a wider network around them is none of theirs
    occupy(&world, "10.1.2.3", 8);
    world.restart();
    occupy(&world, "10.42.7.1", 24);
    world.restart();
    assert!(world.network.pods().is_empty());
}

/// Pods may not reach what the node serves on its loopback only, though node ports on 127.0.0.1 need it to be routed.
#[test]
fn the_nodes_loopback_is_not_reachable_from_pods() {
    let world = World::new();
    let a = world.pod("a");
    let listener = netns::run_in(&world.node(), || TcpListener::bind("127.0.0.1:9090").unwrap()).unwrap();
    netns::run_in(&a.netns, || {
        let mut socket = Socket::route().unwrap();
        sysctl::set("ipv4/conf/all/route_localnet", "1").unwrap();
        let index = link::find(&mut socket, "eth0").unwrap().unwrap().index;
        // The pod sends 127.0.0.2 to the node, which is as much the node's loopback as 127.0.0.1.
        IpRoute::on_link("127.0.0.2/32".parse().unwrap(), index).ensure(&mut socket).unwrap();
    })
    .unwrap();
    drop(listener);
    let all = netns::run_in(&world.node(), || TcpListener::bind("127.0.0.2:9090").unwrap()).unwrap();
    assert_ne!(ask(&a.netns, Ipv4Addr::new(127, 0, 0, 2), 9090), format!("{:?}", ErrorKind::ConnectionRefused));
    all.set_nonblocking(true).unwrap();
    assert_eq!(all.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// The checksum of SCTP (CRC-32C), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// The first packet of an SCTP association: header and INIT chunk.
fn sctp_init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]);
    // INIT of 20 bytes: tag, window, streams out and in, first sequence number
    packet.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// Services over SCTP. Where the kernel has no SCTP of its own, as most small machines' have not, associations are made
/// nowhere; what this node adds to them, translation, is seen in their first packet.
#[test]
fn sctp_is_balanced_too() {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt};
    let world = World::new();
    let (a, b) = (world.pod("a"), world.pod("b"));
    world.apply(&[
        (cluster_ip(Protocol::Sctp), Route::to(vec![endpoint(&a)])),
        (
            Frontend::node(Family::V4, Protocol::Sctp, 30080),
            Route { masquerade: true, ..Route::to(vec![endpoint(&a)]) },
        ),
    ]);
    let raw = || socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
    let server = netns::run_in(&a.netns, raw).unwrap();
    sockopt::set_socket_timeout(&server, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
    for (from, to, port) in [(b.netns.clone(), VIP, 80), (world.node(), VIP, 80), (world.outside(), NODE, 30080)] {
        let client = netns::run_in(&from, raw).unwrap();
        sendto(&client, &sctp_init(4000, port), SendFlags::empty(), &SocketAddr::from((to, 0))).unwrap();
        let mut buffer = [0; 256];
        let (length, _) = recv(&server, &mut buffer[..], RecvFlags::empty()).expect("the endpoint gets the packet");
        let (ip_header, packet) = buffer[..length].split_at(20);
        assert_eq!(ip_header[16..20], ip(&a).octets(), "to the endpoint");
        assert_eq!(packet[2..4], 8080_u16.to_be_bytes(), "at its port");
        let mut unsummed = packet.to_vec();
        unsummed[8..12].fill(0);
        assert_eq!(packet[8..12], crc32c(&unsummed).to_le_bytes(), "with a checksum that fits");
    }
    if socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)).is_err() {
        eprintln!("NOT SHOWN: whole associations, as this kernel has no SCTP (CONFIG_IP_SCTP)");
    }
}
