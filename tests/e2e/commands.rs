//! Commands that look after a machine: what they say when all is well, and when it is not.

use crate::harness::{Agent, Cluster, eventually, success};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::Path;

/// The checks of `edge status` that did not come out well.
fn troubles(cluster: &Cluster) -> Vec<Value> {
    let out = cluster.edge(&["status", "-o=json"]);
    let all: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    // the machine of the tests is what it is
    let here = |check: &Value| ["disk space", "file system", "clock"].contains(&check["name"].as_str().unwrap());
    let troubles: Vec<Value> = all.into_iter().filter(|c| c["state"] != "ok" && !here(c)).collect();
    let failed = troubles.iter().any(|c| c["state"] == "failure");
    assert_eq!(out.status.code(), Some(i32::from(failed)), "{troubles:?}");
    troubles
}

#[test]
fn status_says_what_is_wrong_and_what_to_do() {
    let mut cluster = Cluster::start();
    let text = success("status", cluster.edge(&["status"]));
    for part in ["edge", "API server", "1 of 1 ready", "certificates", "disk space"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(troubles(&cluster).is_empty(), "{text}");

    cluster.kubectl(&["run", "broken", "--image=nowhere.invalid/none:1", "--image-pull-policy=Never"]);
    cluster.kubectl(&[
        "run",
        "large",
        "--image=busybox:test",
        r#"--overrides={"spec":{"nodeSelector":{"no":"where"}}}"#,
    ]);
    cluster.kubectl(&["cordon", "node-1"]);
    eventually("status names the pods and the node", || {
        let all = format!("{:?}", troubles(&cluster));
        let told =
            ["default/broken: ErrImageNeverPull", "default/large: 0/1 nodes are available", "node-1 takes no pods"];
        let fixes = ["kubectl describe pod broken -n default", "kubectl uncordon node-1"];
        if told.iter().chain(&fixes).all(|part| all.contains(part)) { Ok(()) } else { Err(all) }
    });

    cluster.stop(Signal::SIGTERM);
    let all = format!("{:?}", troubles(&cluster));
    assert!(all.contains("does not run in") && all.contains("systemctl start edge"), "{all}");
    assert!(all.contains("asking the server"), "{all}");
}

/// What the port shows to whoever connects: the end of its certificate's life and its number.
fn shown(cluster: &Cluster, address: &str) -> String {
    let command =
        format!("openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -serial -subject");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &command]);
    let out = cluster.inside(|| shell.output()).unwrap();
    success("openssl", out)
}

#[test]
fn certificates_are_shown_and_renewed_without_a_restart() {
    let cluster = Cluster::start();
    let mut agent = Agent::start(&cluster, 1);
    let text = success("check", cluster.edge(&["certificate", "check"]));
    for part in ["server/tls/server-ca.crt", "serving-kube-apiserver.pem", "O=system:masters"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let addresses = [format!("{}:6443", cluster.ip), format!("{}:10250", cluster.ip)];
    let before = addresses.each_ref().map(|address| shown(&cluster, address));
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let mut watch = cluster.spawn_kubectl(crate::harness::Kubectl::Newest, &["get", "configmaps", "-w", "-o=name"]);
    watch.read_until("configmap/");

    let out = success("rotate", cluster.edge(&["certificate", "rotate"]));
    assert!(out.contains("serving-kube-apiserver.pem is new"), "{out}");
    let after = addresses.each_ref().map(|address| shown(&cluster, address));
    assert!(after.iter().zip(&before).all(|(a, b)| a != b), "{before:?} {after:?}");
    assert_ne!(std::fs::read_to_string(cluster.kubeconfig()).unwrap(), kubeconfig);
    // the new kubeconfig works, and who was connected still is
    cluster.kubectl(&["create", "configmap", "after"]);
    watch.read_until("configmap/after");

    // an agent asks its server for others
    let directory = format!("--data-dir={}", agent.dir.join("data").display());
    let before = shown(&cluster, &format!("{}:10250", cluster.address(11)));
    let out = success("rotate", cluster.edge(&["certificate", "rotate", &directory]));
    assert!(out.contains("client-kubelet.pem is new"), "{out}");
    assert_ne!(shown(&cluster, &format!("{}:10250", cluster.address(11))), before);
    cluster.wait_for("node/node-2", "condition=Ready");
    agent.stop(Signal::SIGTERM);
    let refused = cluster.edge(&["certificate", "rotate", &directory]);
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && reason.contains("edge does not run here"), "{reason}");
    assert!(Path::new(&agent.dir.join("data/agent/tls/client-kubelet.pem")).exists(), "nothing is removed in vain");
}
