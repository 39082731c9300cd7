//! A server that comes back from one file: to what it was, and on another machine.

use crate::harness::{Cluster, Kubectl, busybox_archive, echo_archive, eventually, success};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::path::Path;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: "echo:v1"}]}
"#;

fn restore(cluster: &Cluster, file: &Path, more: &[&str]) -> std::process::Output {
    cluster.edge(&[&["restore", &*file.to_string_lossy()], more].concat())
}

fn data_of(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&["configmap", name])["data"].clone()
}

#[test]
fn a_server_goes_back_and_moves_to_another_machine() {
    let mut cluster = Cluster::start();
    let file = cluster.dir.join("backup");
    cluster.apply(WEB);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    cluster.kubectl(&["create", "configmap", "story", "--from-literal=is=at the beginning"]);
    fs::write(
        cluster.data_dir().join("server/manifests/mine.yaml"),
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: dropped}, data: {a: b}}",
    )
    .unwrap();
    eventually("the manifest is applied", || {
        if data_of(&cluster, "dropped").is_null() { Err("not yet") } else { Ok(()) }.map_err(str::to_owned)
    });

    let out = success("backup", cluster.edge(&["backup", &file.to_string_lossy(), "-o=json"]));
    let told: Value = serde_json::from_str(&out).unwrap();
    assert!(told["objects"].as_u64() > Some(50) && told["bytes"].as_u64() > Some(1000), "{told}");

    // what happens after it: the workload is removed, other things are made, the manifest goes
    cluster.kubectl(&["delete", "deploy/web", "--cascade=foreground"]);
    cluster.kubectl(&["create", "configmap", "later", "--from-literal=is=forgotten"]);
    cluster.kubectl(&["patch", "configmap", "story", "-p", r#"{"data": {"is": "at the end"}}"#]);
    let stray = r#"--overrides={"spec": {"terminationGracePeriodSeconds": 0}}"#;
    cluster.kubectl(&["run", "stray", "--image=busybox:test", stray, "--", "sleep", "100000"]);
    cluster.wait_for("pod/stray", "condition=Ready");

    // not under a running server
    let refused = restore(&cluster, &file, &[]);
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && reason.contains("another edge works there"), "{reason}");
    let checked = success("check", restore(&cluster, &file, &["--check", "-o=json"]));
    assert_eq!(serde_json::from_str::<Value>(&checked).unwrap()["revision"], told["revision"]);

    cluster.stop(Signal::SIGTERM);
    let out = success("restore", restore(&cluster, &file, &[]));
    assert!(out.contains("server.before-restore-of-"), "{out}");
    cluster.launch();
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    assert_eq!(data_of(&cluster, "story")["is"], "at the beginning");
    assert_eq!(data_of(&cluster, "dropped")["a"], "b");
    eventually("the stray pod's processes are gone", || {
        let pods = cluster.kubectl(&["get", "pods", "-o", "name"]);
        let sleeps = cluster
            .processes()
            .iter()
            .any(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with("sleep")));
        if pods.contains("stray") || sleeps { Err(format!("{pods} {sleeps}")) } else { Ok(()) }
    });
    let gone = cluster.try_kubectl(Kubectl::Newest, &["get", "configmap", "later"]);
    assert!(!gone.status.success(), "made after the backup");

    // the machine is lost; another one of the same name takes over
    cluster.stop(Signal::SIGKILL);
    success("teardown", cluster.tear_down());
    fs::remove_dir_all(cluster.data_dir()).unwrap();
    fs::remove_file(cluster.kubeconfig()).unwrap();
    success("restore", restore(&cluster, &file, &[]));
    fs::create_dir_all(cluster.data_dir().join("agent/images")).unwrap();
    cluster.drop_image("busybox.tar", busybox_archive());
    cluster.drop_image("echo.tar", echo_archive());
    cluster.launch();
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    assert_eq!(data_of(&cluster, "story")["is"], "at the beginning");
}

#[test]
fn backups_are_made_on_a_schedule() {
    let mut cluster = Cluster::start_with(&["--backup-schedule=@every 1s", "--backup-retention=2"]);
    let dir = cluster.data_dir().join("backups");
    let list = || {
        let mut names: Vec<_> =
            fs::read_dir(&dir).map(|d| d.flatten().map(|e| e.file_name()).collect()).unwrap_or_default();
        names.retain(|n: &std::ffi::OsString| !n.to_string_lossy().starts_with('.'));
        names.sort();
        names
    };
    let first = eventually("a backup", || list().first().cloned().ok_or_else(|| "none".to_owned()));
    eventually("the first one makes room for others", || {
        let now = list();
        if now.len() == 2 && !now.contains(&first) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    cluster.kubectl(&["create", "configmap", "story", "--from-literal=is=told"]);
    let newest = eventually("a backup that can be read", || {
        let newest = dir.join(list().last().cloned().ok_or("none")?);
        let out = restore(&cluster, &newest, &["--check"]);
        // it may have made room since
        if out.status.success() { Ok(newest) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    assert!(newest.to_string_lossy().contains("/node-1-"), "{newest:?}");
    let known = list().last().cloned();
    let copy = cluster.dir.join("copy");
    eventually("a backup that begins after the story was told", || {
        let newest = list().last().filter(|name| Some(*name) != known.as_ref()).cloned().ok_or("not yet")?;
        // it may have made room since
        fs::copy(dir.join(newest), &copy).map_err(|e| e.to_string())
    });
    cluster.kubectl(&["delete", "configmap", "story"]);
    // killed, perhaps in the midst of one; it comes back from one that was whole
    cluster.stop(Signal::SIGKILL);
    success("restore", restore(&cluster, &copy, &[]));
    cluster.launch();
    assert_eq!(data_of(&cluster, "story")["is"], "told");
    eventually("what was begun by the one that was killed is gone", || {
        let all: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        let begun = all.iter().filter(|name| name.to_string_lossy().starts_with(".edge-backup-")).count();
        if begun <= 1 && all.len() <= 3 { Ok(()) } else { Err(format!("{all:?}")) }
    });
}
