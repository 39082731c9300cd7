//! edge beside other software that filters packets, and a machine on which edge was.

use crate::harness::network::inside;
use crate::harness::{Agent, Cluster, eventually, http_get, success};
use nix::sys::signal::Signal;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

/// As Docker and an administrator leave it: forwarding is for whom there is a rule.
const DOCKER: &str = "table ip filter {
    chain DOCKER-USER { return; }
    chain FORWARD { type filter hook forward priority 0; policy drop;
        jump DOCKER-USER
        oifname docker0 ct state related,established accept
        iifname docker0 oifname != docker0 accept
    }
}
table ip nat {
    chain POSTROUTING { type nat hook postrouting priority 100; ip saddr 172.17.0.0/16 oifname != docker0 masquerade; }
}";
/// firewalld-like, with what its manual says for pods.
const FIREWALLD: &str = "table inet firewalld {
    chain filter_INPUT { type filter hook input priority 10; policy accept;
        ct state established,related accept
        iifname lo accept
        tcp dport { 22, 6443, 10250, 30000-32767 } accept
        ip saddr 10.42.0.0/16 accept
        udp dport { 53, 8472 } accept
        ip protocol icmp accept
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD { type filter hook forward priority 10; policy accept;
        ct state established,related accept
        ip saddr 10.42.0.0/16 accept
        ip daddr 10.42.0.0/16 accept
        reject with icmpx admin-prohibited
    }
}";
/// A bridge of Docker's, with a container's link.
const LINKS: [&str; 6] = [
    "link add docker0 type bridge",
    "addr add 172.17.0.1/16 dev docker0",
    "link add veth0a1b2c3 type veth peer name peer0",
    "link set veth0a1b2c3 master docker0 up",
    "link set docker0 up",
    "route add 198.51.100.0/24 via 172.17.0.2",
];

/// All that another program could notice of a machine's network.
fn network_of(netns: &File) -> String {
    let run = |program: &str, args: &str| {
        success(program, inside(netns, || Command::new(program).args(args.split(' ')).output().unwrap()))
    };
    let ip = ["addr", "-4 route show table all", "-6 route show table all", "rule", "neigh show nud permanent"];
    run("nft", "-s list ruleset") + &ip.map(|args| run("ip", args)).concat()
}

fn nft(netns: &File, script: &str) -> String {
    success(script, inside(netns, || Command::new("nft").arg(script).output().unwrap()))
}

fn web(name: &str, node: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web}}}}, spec: {{nodeName: {node},
            terminationGracePeriodSeconds: 0, volumes: [{{name: v, emptyDir: {{medium: Memory}}}}],
            containers: [{{name: web, image: 'echo:v1', volumeMounts: [{{name: v, mountPath: /v}}],
            ports: [{{containerPort: 8080, hostPort: 8088}}]}}]}}}}"
    )
}

fn pod_ip(cluster: &Cluster, pod: &str) -> IpAddr {
    cluster.wait_for(&format!("pod/{pod}"), "condition=Ready");
    cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]).parse().unwrap()
}

#[test]
fn beside_others_and_gone_without_a_trace() {
    let mut cluster = Cluster::prepare(&[]);
    let netns = cluster.namespace();
    // it stays switched on afterwards, and the kernel shows other routes with it
    inside(&netns, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    LINKS.iter().for_each(|args| cluster.ip_command(&args.split(' ').collect::<Vec<_>>()));
    nft(&netns, DOCKER);
    nft(
        &netns,
        "insert rule ip filter DOCKER-USER iifname \"edge*\" accept; insert rule ip filter DOCKER-USER oifname \"edge*\" accept",
    );
    nft(&netns, FIREWALLD);
    // links get their addresses a moment later
    let before = eventually("the network is settled", || {
        let first = network_of(&netns);
        std::thread::sleep(std::time::Duration::from_millis(500));
        let then = network_of(&netns);
        if first == then && !then.contains("tentative") { Ok(then) } else { Err(then) }
    });
    let theirs =
        |netns: &File| ["ip filter", "ip nat", "inet firewalld"].map(|t| nft(netns, &format!("list table {t}")));
    let rules = theirs(&netns);

    cluster.launch();
    cluster.apply(&web("one", "node-1"));
    cluster.apply("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, ports: [{port: 8080, nodePort: 30085}]}}");
    let ip = pod_ip(&cluster, "one");
    let works = |what: &str| {
        for at in [SocketAddr::new(cluster.ip.into(), 30085), SocketAddr::new(cluster.ip.into(), 8088)] {
            eventually(what, || http_get(at, "/"));
        }
        eventually(what, || cluster.inside(|| http_get(SocketAddr::new(ip, 8080), "/")));
    };
    works("behind their rules");
    assert_eq!(theirs(&netns), rules);
    let events = cluster.kubectl(&["get", "events"]);
    assert!(!events.contains("PodTrafficBlocked"), "their rules know of pods: {events}");

    // somebody's clean-up takes edge's rules too
    nft(&netns, "delete table ip edge");
    works("after the rules were removed");
    eventually("the log tells of it", || {
        let log = cluster.log();
        if log.contains("another program had removed edge's packet filter rules") { Ok(()) } else { Err(log) }
    });

    // while edge runs, nothing is taken away under it
    let refused = cluster.tear_down();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("another edge works there (process "), "{said}");
    works("after a refused teardown");

    for round in 0..3 {
        cluster.stop(if round == 0 { Signal::SIGTERM } else { Signal::SIGKILL });
        assert!(!cluster.processes().is_empty() && !cluster.pod_cgroups().is_empty());
        if round == 1 {
            // an attempt that a crash ended half-way: links gone, one table gone
            cluster.ip_command(&["link", "del", "edge0"]);
            nft(&netns, "delete table ip edge");
        }
        if round == 2 {
            // nothing on disk tells of what runs
            std::fs::remove_file(cluster.data_dir().join("run/lock")).unwrap();
            let pods = cluster.data_dir().join("run/pods/pods");
            for sandbox in std::fs::read_dir(pods).unwrap() {
                let _ = std::fs::remove_file(sandbox.unwrap().path().join("sandbox.json"));
            }
            let _ = std::fs::remove_dir_all(cluster.data_dir().join("run/network/leases"));
        }
        success("edge teardown", cluster.tear_down());
        let after = eventually("the kernel has ended the namespaces", || {
            let now = network_of(&netns);
            if now == before { Ok(now) } else { Err(now) }
        });
        assert_eq!(after, before);
        assert_eq!(cluster.processes(), [] as [i32; 0], "no monitor, no container");
        assert_eq!(cluster.pod_cgroups(), [] as [std::path::PathBuf; 0]);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = cluster.dir.display().to_string() + "/";
        assert!(!mounts.lines().any(|line| line.contains(&ours)), "{mounts}");
        success("edge teardown again", cluster.tear_down());
        assert_eq!(network_of(&netns), before);

        // and edge can come back
        cluster.launch();
        eventually("the pod runs again", || http_get(SocketAddr::new(cluster.ip.into(), 30085), "/"));
    }
}

#[test]
fn a_firewall_that_drops_pods_packets_is_told_of() {
    let cluster = Cluster::start();
    let mut agent = Agent::prepare(&cluster, 1);
    let netns = crate::harness::network::open(&agent.namespace);
    nft(&netns, DOCKER);
    agent.launch();
    agent.await_images();
    for (pod, node) in [("one", "node-1"), ("two", "node-2")] {
        cluster.apply(&web(pod, node));
    }
    let ip = pod_ip(&cluster, "two");
    pod_ip(&cluster, "one");
    let from_outside = || cluster.inside(|| http_get(SocketAddr::new(ip, 8080), "/"));
    assert!(from_outside().is_err(), "the rules do drop");
    let event = eventually("an event tells of it", || {
        let all = cluster.get(&["events", "--field-selector", "reason=PodTrafficBlocked"]);
        all["items"].as_array().unwrap().first().cloned().ok_or_else(|| all.to_string())
    });
    assert_eq!((&event["type"], &event["involvedObject"]["kind"]), (&"Warning".into(), &"Node".into()));
    assert_eq!(event["involvedObject"]["name"], "node-2");
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("chain \"FORWARD\"") && message.contains("ip filter"), "{message}");
    assert!(agent.log().contains(message), "the log has it too");
    let described = cluster.kubectl(&["describe", "node", "node-2"]);
    assert!(described.contains("PodTrafficBlocked"), "{described}");
    // what it advises helps
    for command in message.split(" or with: nft ").nth(1).unwrap().split("; nft ") {
        nft(&netns, command);
    }
    eventually("packets come through", from_outside);
    eventually("an event tells of that", || {
        let all = cluster.kubectl(&["get", "events"]);
        if all.contains("PodTrafficUnblocked") { Ok(()) } else { Err(all) }
    });
}
