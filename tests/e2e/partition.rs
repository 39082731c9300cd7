//! Several servers on one etcd whose network falls apart: not their ends, but the ways between them.

use crate::etcd::{Load, holder, prepare, repeat, stored};
use crate::harness::{Cluster, Kubectl, Server, eventually};
use std::fs;
use std::net::Ipv4Addr;
use std::time::Instant;

const LEASES: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// Lets all packets to and from an address vanish in a server's network; `port`: only those of this port there.
fn cut(run: &dyn Fn(&[&str]), from: Ipv4Addr, port: Option<u16>) {
    let port = |which| port.map_or(String::new(), |port| format!("tcp {which} {port}"));
    run(&[
        "nft",
        "add table ip cut; add chain ip cut in { type filter hook input priority -10; }; \
        add chain ip cut out { type filter hook output priority -10; }",
    ]);
    run(&["nft", &format!("add rule ip cut in ip saddr {from} {} drop", port("sport"))]);
    run(&["nft", &format!("add rule ip cut out ip daddr {from} {} drop", port("dport"))]);
}

fn heal(run: &dyn Fn(&[&str])) {
    run(&["nft", "delete table ip cut"]);
}

/// When a server began to hold a lease for the last time, or lost it, by its log.
fn last(log: &str, said: &str, lease: &str) -> Option<String> {
    let line = log.lines().rev().find(|line| line.contains(&format!(": {said} lease=\"{lease}\"")))?;
    // the time is the first word, of the same length always
    line.split(' ').next().map(str::to_owned)
}

fn writes(by: &dyn Fn(&[&str]) -> String, seen_by: &dyn Fn(&[&str]) -> String, name: &str) {
    by(&["create", "configmap", name]);
    seen_by(&["get", "configmap", name]);
}

fn lost(acknowledged: &[String], list: &str) -> Vec<String> {
    let found = stored(list);
    acknowledged.iter().filter(|name| !found.contains(*name)).cloned().collect()
}

fn in_order(cluster: &Cluster, second: &Server) {
    for lease in LEASES {
        let began = last(&second.log(), "leading", lease).expect("the second server leads");
        let ended =
            last(&cluster.log(), "not leading any more", lease).expect("the first server knows that it does not lead");
        assert!(ended < began, "{lease}: the first server gave up at {ended}, the second one began at {began}");
    }
}

#[test]
fn servers_that_are_cut_off_lose_nothing_and_one_leads() {
    let (mut cluster, etcd) = prepare(1);
    cluster.launch();
    let token = fs::read_to_string(cluster.data_dir().join("server/token")).unwrap().trim().to_owned();
    let flags = [format!("--datastore-endpoint={}", etcd.endpoints()), format!("--token={token}")];
    let second = Server::start(&cluster, 1, &flags);
    let by_first = |args: &[&str]| cluster.kubectl(args);
    let by_second = |args: &[&str]| second.kubectl(args);
    let (in_first, in_second) = (|args: &[&str]| cluster.run_inside(args), |args: &[&str]| second.run_inside(args));
    for lease in LEASES {
        assert!(holder(&by_second, lease).starts_with("node-1_"), "{lease}");
    }
    let servers = [repeat(&cluster.kubectl_command(Kubectl::Newest, &[])), repeat(&second.kubectl_command(&[]))];
    let load = Load::start(2, move |n, args| servers[n](&[args, &["--request-timeout=4s"]].concat()));

    // from each other: they do not need each other
    cut(&in_first, cluster.address(11), None);
    for i in 0..5 {
        writes(&by_first, &by_second, &format!("first-{i}"));
        writes(&by_second, &by_first, &format!("second-{i}"));
    }
    assert!(holder(&by_second, LEASES[0]).starts_with("node-1_"));
    heal(&in_first);

    // the one that leads from etcd
    cut(&in_first, cluster.address(1), Some(2379));
    let begun = Instant::now();
    let stale = ["get", "configmaps", "--request-timeout=3s"];
    let read = cluster.try_kubectl(Kubectl::Newest, &stale);
    assert!(!read.status.success(), "a server that cannot know what is newest answers: {read:?}");
    for lease in LEASES {
        eventually("the second server leads", || match holder(&by_second, lease) {
            name if name.starts_with("server-1_") => Ok(()),
            name => Err(name),
        });
    }
    println!("the second server led {:?} after the first one was cut off", begun.elapsed());
    in_order(&cluster, &second);
    let addresses = "jsonpath={.subsets[*].addresses[*].ip}";
    eventually("who is cut off is no endpoint", || match by_second(&["get", "ep", "kubernetes", "-o", addresses]) {
        found if found == cluster.address(11).to_string() => Ok(()),
        found => Err(found),
    });
    second.kubectl(&["create", "deployment", "web", "--image=echo:v1", "--replicas=2"]);
    eventually("controllers work", || {
        let pods = by_second(&["get", "pods", "-l", "app=web", "-o", "name"]);
        if pods.lines().count() == 2 { Ok(()) } else { Err(pods) }
    });
    heal(&in_first);
    let healed = Instant::now();
    eventually("the first server answers again", || {
        let out = cluster.try_kubectl(Kubectl::Newest, &stale);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    println!("the first server answered {:?} after the way was there again", healed.elapsed());
    writes(&by_first, &by_second, "after-first");
    writes(&by_second, &by_first, "after-second");

    // the one that follows, from everybody
    cut(&in_second, cluster.address(1), Some(2379));
    cut(&in_second, cluster.ip, None);
    let out = second.try_kubectl(&["create", "configmap", "nowhere", "--request-timeout=2s"]);
    assert!(!out.status.success());
    heal(&in_second);
    let acknowledged = load.finish();
    for by in [&by_first as &dyn Fn(&[&str]) -> String, &by_second] {
        let lost = eventually("both answer", || Ok(lost(&acknowledged, &by(&["get", "cm", "-o", "name"]))));
        assert!(lost.is_empty() && acknowledged.len() > 20, "{} acknowledged, lost: {lost:?}", acknowledged.len());
    }
}
