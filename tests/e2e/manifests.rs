//! Manifests in the watched directory.

use crate::harness::{Cluster, Kubectl, eventually};
use std::fs;

fn exists(cluster: &Cluster, what: &str) -> bool {
    cluster.try_kubectl(Kubectl::Newest, &["get", what]).status.success()
}

fn there(cluster: &Cluster, what: &str) {
    eventually(&format!("{what} appears"), || exists(cluster, what).then_some(()).ok_or_else(String::new));
}

fn gone(cluster: &Cluster, what: &str) {
    eventually(&format!("{what} goes"), || (!exists(cluster, what)).then_some(()).ok_or_else(String::new));
}

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: default}}\ndata: {{v: '{value}'}}\n")
}

fn value(cluster: &Cluster, name: &str) -> String {
    cluster.kubectl(&["get", "cm", name, "-o", "jsonpath={.data.v}"])
}

#[test]
fn files_are_applied_changed_and_pruned() {
    let mut cluster = Cluster::prepare(&[]);
    let dir = cluster.data_dir().join("server/manifests");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("early.yaml"), map("early", "1")).unwrap();
    cluster.launch();
    there(&cluster, "cm/early");

    // several documents, JSON, a namespace together with what is in it
    fs::write(dir.join("two.yaml"), format!("{}---\n{}", map("one", "1"), map("two", "1"))).unwrap();
    fs::write(
        dir.join("ns.json"),
        r#"{"apiVersion":"v1","kind":"List","items":[
            {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"in","namespace":"made"},"data":{"v":"1"}},
            {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"made"}}]}"#,
    )
    .unwrap();
    there(&cluster, "cm/two");
    there(&cluster, "ns/made");
    eventually("the namespace has its map", || {
        let out = cluster.try_kubectl(Kubectl::Newest, &["get", "cm", "-n", "made", "in"]);
        out.status.success().then_some(()).ok_or_else(String::new)
    });

    // a change, and a part taken away
    fs::write(dir.join("two.yaml"), map("one", "2")).unwrap();
    gone(&cluster, "cm/two");
    assert_eq!(value(&cluster, "one"), "2");

    // a broken file: the last good state stays, and somebody is told where
    fs::write(dir.join("two.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: [\n").unwrap();
    eventually("an Event tells of the broken file", || {
        let events = cluster.kubectl(&["get", "events", "-A", "-o", "wide"]);
        if events.contains("two.yaml") && events.contains("line") { Ok(()) } else { Err(events) }
    });
    assert!(cluster.log().contains("two.yaml"));
    assert_eq!(value(&cluster, "one"), "2");

    // suspended, then back
    fs::write(dir.join("two.yaml.skip"), "").unwrap();
    fs::write(dir.join("two.yaml"), map("one", "3")).unwrap();
    fs::write(dir.join("other.yaml"), map("other", "1")).unwrap();
    there(&cluster, "cm/other");
    assert_eq!(value(&cluster, "one"), "2");
    fs::remove_file(dir.join("two.yaml.skip")).unwrap();
    eventually("the suspended file is applied", || match value(&cluster, "one").as_str() {
        "3" => Ok(()),
        v => Err(v.to_owned()),
    });

    // what is taken away while edge is down is pruned at the next start
    cluster.stop(nix::sys::signal::Signal::SIGTERM);
    fs::remove_file(dir.join("other.yaml")).unwrap();
    cluster.launch();
    gone(&cluster, "cm/other");
    fs::remove_file(dir.join("two.yaml")).unwrap();
    gone(&cluster, "cm/one");
    assert!(exists(&cluster, "cm/early"));
}
