//! A disk that is full under a running API server. Needs root, for a file system of its own.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Cluster, JSON, MERGE, Request};
use http_body_util::BodyExt;
use serde_json::json;
use std::io::Write;
use std::path::Path;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A small file system that only this test sees, and that goes with it.
fn small_disk() -> tempfile::TempDir {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("mounting needs root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let dir = tempfile::tempdir().unwrap();
    mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=12m")).unwrap();
    dir
}

fn fill(file: &Path) {
    let mut file = std::fs::File::create(file).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
}

#[tokio::test]
async fn writes_are_500_that_says_why_and_everything_else_goes_on() {
    let disk = small_disk();
    let filler = disk.path().join("filler");
    let c = Cluster::start_in(disk).await;
    let map = |name: &str, n: usize| json!({"metadata": {"name": name}, "data": {"x": "x".repeat(n)}});
    let post = |n: usize| Request::new("POST", MAPS).content_type(JSON).body(map(&format!("m{n}"), 20_000).to_string());
    c.create(MAPS, &map("first", 10)).await;
    fill(&filler);
    // what the store had put by
    let mut made = 0;
    while c.send(post(made)).await.code == 201 {
        made += 1;
        assert!(made < 100, "the disk is not full");
    }
    let before = c.get(MAPS).await;
    let mut watch = c
        .open(Request::new(
            "GET",
            &format!("{MAPS}?watch=1&resourceVersion={}", before["metadata"]["resourceVersion"].as_str().unwrap()),
        ))
        .await
        .into_body();

    // creation, replacement and patch say so, and change nothing
    let put = Request::new("PUT", &format!("{MAPS}/first")).content_type(JSON).body(map("first", 20_000).to_string());
    let patch = json!({"data": {"x": "y".repeat(20_000)}}).to_string();
    let patch = Request::new("PATCH", &format!("{MAPS}/first")).content_type(MERGE).body(patch);
    for request in [post(made), put, patch] {
        let status = c.send(request).await.status(500, "InternalError");
        let message = status["message"].as_str().unwrap();
        assert!(
            message.contains("the disk is full: no space left on the device of ") && message.contains("db/data.mdb"),
            "{message}"
        );
    }
    assert_eq!(c.get(MAPS).await, before);
    // a Service that could not be stored gives its address back
    let service = json!({"metadata": {"name": "s", "annotations": {"a": "x".repeat(20_000)}}, "spec": {"clusterIP": "10.43.7.7", "ports": [{"port": 80}]}});
    let services = "/api/v1/namespaces/default/services";
    let request = || Request::new("POST", services).content_type(JSON).body(service.to_string());
    c.send(request()).await.status(500, "InternalError");

    // heartbeats live in memory
    let lease = json!({"metadata": {"name": "node-1"}, "spec": {"holderIdentity": "node-1"}});
    c.create("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease).await;
    // deleting works, and who watches sees it
    c.send(Request::new("DELETE", &format!("{MAPS}/first"))).await.ok();
    let frame = watch.frame().await.unwrap().unwrap().into_data().unwrap();
    let event: serde_json::Value = serde_json::from_slice(&frame).unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("DELETED"), &json!("first")));

    std::fs::remove_file(&filler).unwrap();
    c.send(post(made)).await.ok();
    c.send(request()).await.ok();
}
