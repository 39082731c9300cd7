//! Clusters that move from a server's own store to etcd and back.

use crate::harness::etcd::Etcd;
use crate::harness::filled::fill;
use crate::harness::{Cluster, success};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// `edge store migrate` for the cluster's server, which does not run.
fn command(cluster: &Cluster, etcd: &Etcd, args: &[&str]) -> Command {
    let mut command = Command::new(crate::harness::edge_binary());
    command
        .args(["store", "migrate"])
        .arg(format!("--data-dir={}", cluster.data_dir().display()))
        .arg(format!("--datastore-endpoint={}", etcd.endpoints()))
        .args(args)
        .stdin(Stdio::null());
    command
}

fn migrate(cluster: &Cluster, etcd: &Etcd, args: &[&str]) -> Output {
    command(cluster, etcd, args).output().unwrap()
}

/// Its output without the line that says what was done.
fn facts(output: &str) -> String {
    output.lines().skip(1).collect::<Vec<_>>().join("\n")
}

fn hash(cluster: &Cluster) -> String {
    let file = fs::read(cluster.data_dir().join("server/db/data.mdb")).unwrap();
    Sha256::digest(file).iter().map(|b| format!("{b:02x}")).collect()
}

fn refused(out: &Output, words: &str) {
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && text.contains(words), "{out:?}");
}

const WHAT: &str = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.metadata.resourceVersion}{'\\n'}{end}";

/// Objects that nobody changes, with their UIDs and versions.
fn known(cluster: &Cluster) -> String {
    ["cm", "services", "secrets", "clusterroles"].map(|kind| cluster.kubectl(&["get", kind, "-o", WHAT])).concat()
}

#[test]
fn a_cluster_moves_to_etcd_and_back() {
    let mut cluster = Cluster::start();
    cluster.await_images();
    cluster.kubectl(&["create", "deployment", "web", "--image=echo:v1"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    cluster.kubectl(&["create", "cm", "kept", "--from-literal=a=b"]);
    cluster.kubectl(&["create", "secret", "generic", "kept", "--from-literal=a=b"]);
    cluster.kubectl(&["expose", "deploy/web", "--port=80", "--target-port=8080"]);
    let before = known(&cluster);
    let etcd = Etcd::start(&cluster, 1);
    refused(&migrate(&cluster, &etcd, &["--to=etcd"]), "another edge works there");
    cluster.stop(Signal::SIGTERM);
    let source = hash(&cluster);
    let empty = etcd.content();
    let planned = success("a dry run", migrate(&cluster, &etcd, &["--to=etcd", "--dry-run"]));
    assert!(planned.contains("nothing was changed") && planned.contains("sha256 "), "{planned}");
    assert_eq!(etcd.content(), empty);
    let moved = success("the move", migrate(&cluster, &etcd, &["--to=etcd"]));
    assert_eq!(facts(&moved), facts(&planned));
    assert_eq!(hash(&cluster), source, "the source was touched");
    refused(&cluster.server_command().output().unwrap(), "the cluster of this machine is in etcd");
    refused(&migrate(&cluster, &etcd, &["--to=etcd"]), "holds a cluster or other objects already");
    let data_dir = format!("--data-dir={}", cluster.data_dir().display());
    let old = cluster.dir.join("old.backup").display().to_string();
    refused(&cluster.edge(&["backup", &data_dir, &old]), "back that up, with `etcdctl snapshot save`");
    cluster.add_flag(format!("--datastore-endpoint={}", etcd.endpoints()));
    cluster.launch();
    assert_eq!(known(&cluster), before);
    // life goes on there: what was brought can be changed, and the pods have noticed nothing
    cluster.kubectl(&["label", "cm", "kept", "moved=yes"]);
    cluster.kubectl(&["scale", "deploy/web", "--replicas=2"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    assert_eq!(cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", restarts]), "0 0");
    cluster.kubectl(&["delete", "secret", "kept"]);
    let before = known(&cluster);
    // and back
    refused(&migrate(&cluster, &etcd, &["--to=local"]), "another edge works there");
    cluster.stop(Signal::SIGTERM);
    refused(&migrate(&cluster, &etcd, &["--to=local"]), "server/db exists already");
    fs::rename(cluster.data_dir().join("server/db"), cluster.dir.join("old")).unwrap();
    let source = etcd.content();
    let planned = success("a dry run", migrate(&cluster, &etcd, &["--to=local", "--dry-run"]));
    assert!(!cluster.data_dir().join("server/db").exists());
    let moved = success("the move back", migrate(&cluster, &etcd, &["--to=local"]));
    assert_eq!(facts(&moved), facts(&planned));
    assert_eq!(etcd.content(), source, "the source was touched");
    cluster.clear_flags();
    cluster.launch();
    assert_eq!(known(&cluster), before);
    assert_eq!(cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", restarts]), "0 0");
    cluster.kubectl(&["label", "cm", "kept", "moved-"]);
}

/// Whether there are keys with a prefix.
fn is_there(prefix: &str, etcd: &Etcd) -> bool {
    !etcd.ctl(&["get", prefix, "--prefix", "--keys-only", "--limit=1"]).stdout.is_empty()
}

const OBJECTS: usize = 10_000;

#[test]
fn a_move_that_is_interrupted_leaves_the_source_and_can_be_done_again() {
    let mut cluster = Cluster::start();
    cluster.stop(Signal::SIGTERM);
    fill(&cluster, OBJECTS / 100);
    let etcd = Etcd::start(&cluster, 1);
    let source = hash(&cluster);
    let flag = format!("--datastore-endpoint={}", etcd.endpoints());
    let mut interrupted = 0;
    for (milliseconds, begun) in [(100, false), (0, true), (100, true), (300, true), (600, true)] {
        let mut child =
            command(&cluster, &etcd, &["--to=etcd"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // some are killed before they write anything, the others in the midst of it
        while begun && child.try_wait().unwrap().is_none() && !is_there("/registry/", &etcd) {}
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
        assert_eq!(hash(&cluster), source, "the source was touched");
        if is_there("/edge/migration", &etcd) {
            interrupted += 1;
            refused(&cluster.server_command().arg(&flag).output().unwrap(), "that broke off");
        }
    }
    assert!(interrupted > 0, "none was interrupted in its middle");
    if !is_there("/edge/bootstrap", &etcd) {
        let began = Instant::now();
        success("the move", migrate(&cluster, &etcd, &["--to=etcd"]));
        println!("{OBJECTS} objects moved to etcd in {:?}", began.elapsed());
    }
    assert_eq!(hash(&cluster), source, "the source was touched");
    cluster.add_flag(flag);
    cluster.launch();
    let names = cluster.kubectl(&["get", "cm", "-o", "name"]);
    assert_eq!(names.lines().filter(|l| l.contains("/many-")).count(), OBJECTS);
    let uid = cluster.kubectl(&["get", "cm", "many-4711", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(uid, "00000000-0000-4000-8000-000000004711");
    cluster.stop(Signal::SIGTERM);
    // the way back: broken off at any moment, there is no store, or all of it
    fs::rename(cluster.data_dir().join("server/db"), cluster.dir.join("old")).unwrap();
    let source = etcd.content();
    for milliseconds in [500, 1500, 2500] {
        let mut child =
            command(&cluster, &etcd, &["--to=local"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        if cluster.data_dir().join("server/db").exists() {
            fs::rename(cluster.data_dir().join("server/db"), cluster.dir.join(format!("old-{milliseconds}"))).unwrap();
        }
    }
    let began = Instant::now();
    success("the move back", migrate(&cluster, &etcd, &["--to=local"]));
    println!("{OBJECTS} objects moved from etcd in {:?}", began.elapsed());
    assert_eq!(etcd.content(), source, "the source was touched");
    cluster.clear_flags();
    cluster.launch();
    let names = cluster.kubectl(&["get", "cm", "-o", "name"]);
    assert_eq!(names.lines().filter(|l| l.contains("/many-")).count(), OBJECTS);
}
