//! Who must not be believed: servers that are not the cluster's, nodes that are not what they say, versions that do not fit.

use crate::harness::{Agent, Cluster, Rogue, eventually};
use nix::sys::signal::Signal;
use std::fs;

/// Whatever of the agent's secrets somebody was told.
fn secrets_in(agent: &Agent, text: &str) -> Vec<String> {
    let mut secrets = vec![agent.token.rsplit(':').next().unwrap().to_owned()];
    let password = fs::read_to_string(agent.dir.join("data/agent/tls/node-password")).unwrap();
    secrets.push(password.trim().to_owned());
    assert!(secrets.iter().all(|s| s.len() >= 16), "secrets to look for");
    secrets.retain(|s| text.contains(s.as_str()));
    secrets
}

#[test]
fn a_false_server_is_told_nothing_secret() {
    let cluster = Cluster::start();
    let mut agent = Agent::prepare(&cluster, 1);

    // one with an authority of its own: the token's hash gives it away
    let rogue = Rogue::start(cluster.address(1), None);
    agent.server = rogue.url();
    let out = agent.run();
    assert_eq!(out.status.code(), Some(5), "{out:?}");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("certificate authority has the hash"), "{said}");
    let told = rogue.told();
    assert_eq!((told.connections, told.certificates), (1, 0), "{told:?}");
    assert!(told.text.starts_with("GET /cacerts HTTP/1.1\r\n"), "{told:?}");
    assert!(!told.text.to_lowercase().contains("authorization"), "{told:?}");
    assert_eq!(secrets_in(&agent, &told.text), [""; 0], "{told:?}");

    // one that passes on the authority of the true one, but does not have its key
    let ca = fs::read(cluster.data_dir().join("server/tls/server-ca.crt")).unwrap();
    let rogue = Rogue::start(cluster.address(1), Some(ca));
    agent.server = rogue.url();
    agent.spawn();
    eventually("the agent has tried to join", || {
        let told = rogue.told();
        if told.connections >= 3 { Ok(()) } else { Err(format!("{told:?}")) }
    });
    agent.stop(Signal::SIGKILL);
    let told = rogue.told();
    assert_eq!(told.text.matches("HTTP/1.1").count(), 1, "only the authority was asked for: {told:?}");
    assert_eq!((secrets_in(&agent, &told.text).len(), told.certificates), (0, 0), "{told:?}");

    // one that comes in the place of the true one after the node has joined
    agent.server = format!("https://{}:6443", cluster.ip);
    agent.launch();
    cluster.wait_for("node/node-2", "condition=Ready");
    agent.stop(Signal::SIGTERM);
    let rogue = Rogue::start(cluster.address(1), None);
    agent.server = rogue.url();
    agent.spawn();
    eventually("the agent has tried to connect", || {
        let told = rogue.told();
        if told.connections >= 3 { Ok(()) } else { Err(format!("{told:?}")) }
    });
    let told = rogue.told();
    assert_eq!((told.text.as_str(), told.certificates), ("", 0));
}

#[test]
fn a_node_of_another_version_hears_why() {
    let cluster = Cluster::start();
    let ask = |version: &str| {
        let body = serde_json::json!({
            "nodeName": "node-9", "nodePassword": "0123456789abcdef0123456789abcdef",
            "clientRequest": "", "servingRequest": "", "version": version, "ofTheFuture": true,
        });
        let token = format!("Authorization: Bearer {}", cluster.token().rsplit(':').next().unwrap());
        let args = ["-H", &token, "-H", "Content-Type: application/json", "-d", &body.to_string()];
        let answer: serde_json::Value = serde_json::from_str(&cluster.curl(&args, "/v1-edge/join")).unwrap();
        (answer["code"].as_u64().unwrap(), answer["message"].as_str().unwrap().to_owned())
    };
    let (code, message) = ask("v1.37.0+edge9.9.9");
    assert_eq!(code, 403);
    assert!(message.contains("is newer than the server") && message.contains("update the server first"), "{message}");
    let (code, message) = ask("v1.32.7+edge0.0.1");
    assert_eq!(code, 403);
    assert!(message.contains("too old") && message.contains("3 minor versions"), "{message}");
    // one that is old enough comes further: its certificate request is what is wrong
    let (_, message) = ask("v1.33.0+edge0.0.1");
    assert!(message.contains("node CSR") && !message.contains("version"), "{message}");
    let names = cluster.kubectl(&["get", "secrets", "-n", "kube-system", "-o", "name"]);
    assert_eq!(names.matches("node-9.node-password").count(), 1, "the refused ones took no name: {names}");
}

#[test]
fn a_name_stays_with_its_machine() {
    let cluster = Cluster::start();
    let mut agent = Agent::start(&cluster, 1);
    cluster.wait_for("node/node-2", "condition=Ready");
    let mut second = Agent::prepare(&cluster, 2);
    second.name = "node-2".into();
    let out = second.run();
    assert_eq!(out.status.code(), Some(5), "{out:?}");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("belongs to another machine") && said.contains("kubectl delete node node-2"), "{said}");
    // the first one does not notice
    assert!(agent.runs());
    assert_eq!(cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-2/proxy/healthz"]), "ok");

    // a machine that belongs to a cluster is not taken into another one by a wrong token
    agent.stop(Signal::SIGTERM);
    let hash = agent.token.strip_prefix("K10").unwrap().split("::").next().unwrap().to_owned();
    let own = std::mem::take(&mut agent.token);
    agent.token = own.replace(&hash, &"1".repeat(64));
    let out = agent.run();
    assert_eq!(out.status.code(), Some(5), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("belongs to another cluster than the token"), "{out:?}");
    agent.token = own;
    agent.launch();
    eventually("the node is connected again", || {
        let out = cluster
            .try_kubectl(crate::harness::Kubectl::Newest, &["get", "--raw", "/api/v1/nodes/node-2/proxy/healthz"]);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
}
