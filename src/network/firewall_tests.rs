//! Rules as other software writes them, in namespaces, by nft(8).
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

use edge_sys::netns;

use crate::firewall::{Blocker, FirewallChange, FirewallWatch, blockers};
use crate::{Backend, Cidr, NodeConfig, NodeNetwork, tear_down};

/// What Docker leaves where iptables writes nftables: it knows of its own bridge only.
const DOCKER: &str = "table ip filter {
    chain DOCKER { iifname != docker0 oifname docker0 drop; }
    chain DOCKER-USER { return; }
    chain FORWARD { type filter hook forward priority 0; policy drop;
        jump DOCKER-USER
        oifname docker0 ct state related,established counter accept
        oifname docker0 counter jump DOCKER
        iifname docker0 oifname != docker0 counter accept
    }
}";
/// ufw's default.
const UFW: &str = "table ip6 filter {
    chain ufw6-before-forward { ip6 saddr fe80::/10 accept; }
    chain FORWARD { type filter hook forward priority 0; policy drop; counter jump ufw6-before-forward; }
}";
/// firewalld's policy is to accept, and its last rule to reject.
const FIREWALLD: &str = "table inet firewalld {
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
        ct state established,related accept
        iifname lo accept
        jump filter_FORWARD_POLICIES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_POLICIES { iifname eth0 jump filter_FWD_public; }
    chain filter_FWD_public { ip protocol icmp accept; }
}";
/// What lets pods through, in the several ways to say so.
const KNOWING: [&str; 6] = [
    "insert rule ip filter FORWARD iifname edge0 accept",
    "insert rule ip filter FORWARD iifname edge* accept",
    "insert rule ip filter DOCKER-USER ip saddr 10.42.0.0/16 accept",
    "insert rule ip filter DOCKER-USER ip saddr { 192.0.2.0/24, 10.42.0.0/16 } accept",
    "insert rule ip filter FORWARD iifname { \"edge0\", \"tun0\" } accept",
    "insert rule inet firewalld filter_FORWARD_POLICIES ip daddr 10.42.0.0/16 accept",
];
/// What does not drop everything.
const HARMLESS: &str = "table ip mine {
    chain forward { type filter hook forward priority 0; policy accept; tcp dport 22 drop; }
    chain input { type filter hook input priority 0; policy drop; }
    chain named { counter drop; }
}
table bridge other {
    chain forward { type filter hook forward priority 0; policy drop; }
}";

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        netns::create(&machine.ns()).unwrap();
        machine
    }

    fn ns(&self) -> std::path::PathBuf {
        self.dir.path().join("ns")
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let out = netns::run_in(&self.ns(), || Command::new(program).args(args).output().unwrap()).unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn nft(&self, script: &str) {
        self.run("nft", &[script]);
    }

    fn blockers(&self) -> Vec<Blocker> {
        let cluster: [Cidr; 2] = ["10.42.0.0/16".parse().unwrap(), "fd42::/56".parse().unwrap()];
        netns::run_in(&self.ns(), || blockers(&cluster).unwrap()).unwrap()
    }

    fn network(&self) -> NodeNetwork {
        let run_dir = self.dir.path().join("run");
        let config = NodeConfig {
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/56".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap(), "fd43::/112".parse().unwrap()],
            dns_addresses: vec!["10.43.0.10".parse().unwrap()],
            node_port_networks: Vec::new(),
            node_addresses: Vec::new(),
            wireguard_key: run_dir.join("wireguard.key"),
            run_dir,
            backend: Backend::Auto,
            cni: Default::default(),
        };
        let networks: [Cidr; 2] = ["10.42.3.0/24".parse().unwrap(), "fd42:0:0:3::/64".parse().unwrap()];
        netns::run_in(&self.ns(), || {
            let network = NodeNetwork::set_up(config).unwrap();
            network.assign(&networks, &[]).unwrap();
            network
        })
        .unwrap()
    }

    fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::run_in(&self.ns(), work).unwrap()
    }

    /// All that others could notice of a machine's network.
    fn all(&self) -> String {
        let mut all = self.run("nft", &["-s", "list", "ruleset"]);
        for args in ["addr", "-4 route show table all", "-6 route show table all", "rule", "neigh show nud permanent"] {
            all += &self.run("ip", &args.split(' ').collect::<Vec<_>>());
        }
        all
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let pods = std::fs::read_dir(self.dir.path().join("run/netns")).into_iter().flatten().flatten();
        pods.for_each(|pod| drop(netns::delete(&pod.path())));
        let _ = netns::delete(&self.ns());
    }
}

fn blocker(family: &'static str, table: &str, chain: &str) -> Blocker {
    Blocker { family, table: table.into(), chain: chain.into() }
}

#[test]
fn those_who_drop_what_pods_send_are_found() {
    let machine = Machine::new();
    machine.nft(HARMLESS);
    let network = machine.network();
    assert_eq!(machine.blockers(), [], "neither these nor edge's own");
    for (rules, found) in [
        (DOCKER, blocker("ip", "filter", "FORWARD")),
        (UFW, blocker("ip6", "filter", "FORWARD")),
        (FIREWALLD, blocker("inet", "firewalld", "filter_FORWARD")),
    ] {
        machine.nft(rules);
        assert_eq!(machine.blockers(), std::slice::from_ref(&found));
        assert_eq!(machine.on(|| network.check_firewall()).unwrap(), std::slice::from_ref(&found));
        machine.nft(&format!("delete table {} {}", found.family, found.table));
        assert_eq!(machine.blockers(), []);
    }
    for knowing in KNOWING {
        machine.nft(DOCKER);
        machine.nft(FIREWALLD);
        let table = knowing.split(' ').nth(2).unwrap();
        machine.nft(knowing);
        let left = machine.blockers();
        assert!(left.len() == 1 && left[0].family != table, "{knowing}: {left:?}");
        machine.nft("delete table ip filter; delete table inet firewalld");
    }
    // what is advised helps
    machine.nft(DOCKER);
    let advice = machine.blockers()[0].to_string();
    let commands = advice.split(" or with: nft ").nth(1).unwrap().split("; nft ");
    commands.for_each(|command| machine.nft(command));
    assert_eq!(machine.blockers(), []);
}

#[test]
fn rules_that_another_program_removed_come_back() {
    let machine = Machine::new();
    let network = machine.network();
    let mut watch = machine.on(|| FirewallWatch::open().unwrap());
    let before = machine.run("nft", &["list", "ruleset"]);
    machine.on(|| network.attach("pod", &[]).unwrap());
    assert_eq!(watch.take().unwrap(), None, "what edge does itself is no news");
    machine.nft("add table ip other { chain c { counter; }; set s { type ipv4_addr; }; }");
    assert_eq!(watch.take().unwrap(), Some(FirewallChange::Others));
    machine.nft("add element ip other s { 192.0.2.1 }");
    assert_eq!(watch.take().unwrap(), None);
    for removed in ["flush ruleset", "delete table ip6 edge", "flush chain ip edge forward; delete table ip edge"] {
        machine.nft(removed);
        assert_eq!(watch.take().unwrap(), Some(FirewallChange::Lost), "{removed}");
        machine.on(|| network.check_firewall()).unwrap();
        assert_eq!(machine.run("nft", &["list", "ruleset"]), before, "{removed}");
        let _ = watch.take().unwrap();
    }
}

/// Whatever is left of edge: afterwards the machine is as it was.
#[test]
fn everything_is_taken_away_again() {
    let machine = Machine::new();
    // it stays switched on, and the kernel shows other routes with it
    machine.on(|| crate::sysctl::set("ipv4/ip_forward", "1").and_then(|()| crate::sysctl::forward_ipv6())).unwrap();
    for rules in [DOCKER, UFW, FIREWALLD, HARMLESS] {
        machine.nft(rules);
    }
    for args in [
        "link set lo up",
        "link add docker0 type bridge",
        "addr add 172.17.0.1/16 dev docker0",
        "link add veth0 type veth peer name veth1",
        "link set veth0 master docker0 up",
        "link set veth1 up",
        "link set docker0 up",
        "route add 198.51.100.0/24 via 172.17.0.2",
        "route add 203.0.113.0/24 dev docker0 table 77",
    ] {
        machine.run("ip", &args.split(' ').collect::<Vec<_>>());
    }
    // links get their addresses of IPv6 a moment later
    let before = settled(&machine);
    let run_dir = machine.dir.path().join("run");
    let peer = crate::Peer {
        name: "other".into(),
        pod_networks: vec!["10.42.9.0/24".parse().unwrap()],
        addresses: vec!["172.17.0.9".parse().unwrap()],
        tunnel: Some(crate::Tunnel::Vxlan([2, 0, 0, 0, 0, 9])),
    };
    type Accident = fn(&Machine, &Path);
    let accidents: [(&str, Accident); 6] = [
        ("nothing", |_, _| {}),
        ("the directory is gone, the pods' namespaces are pinned no more", |_, run_dir| {
            for pod in std::fs::read_dir(run_dir.join("netns")).unwrap() {
                netns::delete(&pod.unwrap().path()).unwrap();
            }
            std::fs::remove_dir_all(run_dir).unwrap();
        }),
        ("links are gone", |machine, _| {
            machine.run("ip", &["link", "del", "edge0"]);
            machine.run("ip", &["link", "del", "edge-dns"]);
        }),
        ("a table is gone", |machine, _| machine.nft("delete table ip edge")),
        ("all tables are gone", |machine, _| machine.nft("delete table ip edge; delete table ip6 edge")),
        ("the overlay is gone", |machine, _| drop(machine.run("ip", &["link", "del", "edge-vxlan"]))),
    ];
    for (name, accident) in accidents {
        let network = machine.network();
        machine.on(|| {
            network.attach("pod-1", &[]).unwrap();
            network.attach("pod-2", &[]).unwrap();
            network.apply_peers(&["172.17.0.1".parse().unwrap()], std::slice::from_ref(&peer)).unwrap();
        });
        assert_ne!(machine.all(), before);
        drop(network);
        accident(&machine, &run_dir);
        machine.on(|| tear_down(&run_dir)).unwrap();
        assert_eq!(settled(&machine), before, "{name}");
        machine.on(|| tear_down(&run_dir)).expect("once more is fine");
        assert_eq!(machine.all(), before);
    }
}

/// What the machine's network looks like once the kernel has ended what goes on in the background.
fn settled(machine: &Machine) -> String {
    let mut last = machine.all();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = machine.all();
        if now == last && !now.contains("tentative") {
            return now;
        }
        last = now;
    }
}
