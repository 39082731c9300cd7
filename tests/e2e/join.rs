//! Machines that join: tokens, certificates, the tunnel back, and everything that can go wrong on the way.

use crate::harness::{Agent, Cluster, Kubectl, eventually, http_get, success};
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

/// A pod that is to run on one node.
fn pod(name: &str, node: &str) -> String {
    format!(
        r#"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {node},
        terminationGracePeriodSeconds: 0, containers: [{{name: web, image: "echo:v1"}}]}}}}"#
    )
}

fn ready(cluster: &Cluster, node: &str) {
    cluster.wait_for(&format!("node/{node}"), "condition=Ready");
}

fn log_line(cluster: &Cluster, pod: &str) -> Result<String, String> {
    let out = cluster.try_kubectl(Kubectl::Newest, &["logs", pod]);
    if out.status.success() { Ok(String::from_utf8_lossy(&out.stdout).into_owned()) } else { Err(text(&out)) }
}

fn exec(cluster: &Cluster, pod: &str) -> Result<String, String> {
    let out = cluster.try_kubectl(Kubectl::Newest, &["exec", pod, "--", "cat", "/etc/hostname"]);
    if out.status.success() { Ok(String::from_utf8_lossy(&out.stdout).into_owned()) } else { Err(text(&out)) }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// It ended by itself, refused, and said why.
fn refused(out: &Output, why: &str) {
    assert_eq!(out.status.code(), Some(5), "{}", text(out));
    assert!(text(out).contains(why), "{}", text(out));
}

#[test]
fn nodes_join_and_are_served_through_their_tunnels() {
    let cluster = Cluster::start();
    let first = Agent::start(&cluster, 1);
    // the server's token is good too, and so is the secret alone
    let mut second = Agent::prepare(&cluster, 2);
    let full = std::fs::read_to_string(cluster.data_dir().join("server/node-token")).unwrap();
    assert!(full.starts_with("K10") && full.contains("::server:"), "{full}");
    second.token = full.trim().rsplit(':').next().unwrap().to_owned();
    second.launch();
    second.await_images();
    assert!(second.log().contains("the token does not name the cluster's certificate authority"));
    for node in ["node-1", "node-2", "node-3"] {
        ready(&cluster, node);
    }
    let nodes = cluster.get(&["nodes"]);
    let label = "node-role.kubernetes.io/control-plane";
    for node in nodes["items"].as_array().unwrap() {
        let is_server = node["metadata"]["name"] == "node-1";
        eventually("only the server is control plane", || {
            let now = cluster.get(&["node", node["metadata"]["name"].as_str().unwrap()]);
            if now["metadata"]["labels"][label].is_string() == is_server { Ok(()) } else { Err(now.to_string()) }
        });
    }

    // keys and tokens are nobody else's business
    for file in [
        cluster.data_dir().join("server/token"),
        cluster.data_dir().join("server/agent-token"),
        first.dir.join("data/agent/tls/client-kubelet.pem"),
        first.dir.join("data/agent/tls/serving-kubelet.pem"),
        first.dir.join("data/agent/tls/node-password"),
    ] {
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    let requests = cluster.kubectl(&["get", "csr"]);
    assert_eq!(requests.matches("Approved,Issued").count(), 4, "{requests}");

    // a pod on each agent: logs, exec, port-forward, metrics, by both kubectls
    for node in ["node-2", "node-3"] {
        cluster.apply(&pod(&format!("on-{node}"), node));
    }
    for node in ["node-2", "node-3"] {
        let name = format!("on-{node}");
        cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
        log_line(&cluster, &name).unwrap();
        for kubectl in [Kubectl::Newest, Kubectl::Debian] {
            let said = cluster.kubectl_as(kubectl, &["exec", &name, "--", "cat", "/etc/hostname"]);
            assert_eq!(said.trim(), name);
        }
        let mut forward = cluster.spawn_kubectl(Kubectl::Newest, &["port-forward", &name, ":8080"]);
        let said = forward.read_until("-> 8080");
        let port: u16 = said.split(':').nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let answer = http_get(([127, 0, 0, 1], port).into(), "/").unwrap();
        assert!(answer.contains(&format!("host={name}")), "{answer}");
        let metrics = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics")]);
        assert!(metrics.contains(&format!("kubelet_node_name{{node=\"{node}\"}} 1")), "{metrics}");
    }

    // much output goes through in one piece
    cluster.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: shell}, spec: {nodeName: node-2, terminationGracePeriodSeconds: 0,
        containers: [{name: c, image: "busybox:test", command: [sleep, "100000"]}]}}"#,
    );
    cluster.wait_for("pod/shell", "condition=Ready");
    let much = cluster.kubectl(&["exec", "shell", "--", "sh", "-c", "yes 0123456789 | head -n 200000"]);
    assert_eq!(much.len(), 200_000 * 11);
    for agent in [&first, &second] {
        assert_eq!(agent.log().matches("tunnel open").count(), 1, "one server, one tunnel: {}", agent.log());
    }
}

#[test]
fn a_node_reaches_its_own_only() {
    let cluster = Cluster::start();
    let agent = Agent::start(&cluster, 1);
    cluster.kubectl(&["create", "secret", "generic", "mine", "--from-literal=a=b"]);
    cluster.kubectl(&["create", "secret", "generic", "other", "--from-literal=a=b"]);
    cluster.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: node-2, terminationGracePeriodSeconds: 0,
        containers: [{name: c, image: "busybox:test", command: [sleep, "100000"],
        env: [{name: A, valueFrom: {secretKeyRef: {name: mine, key: a}}}]}]}}"#,
    );
    cluster.wait_for("pod/p", "condition=Ready");
    let identity = agent.dir.join("data/agent/tls/client-kubelet.pem");
    let ask = |verb: &str, path: &str| {
        let args = ["--cert", identity.to_str().unwrap(), "--key", identity.to_str().unwrap(), "-X", verb];
        let answer: serde_json::Value = serde_json::from_str(&cluster.curl(&args, path)).unwrap();
        answer["code"].as_u64().unwrap_or(200)
    };
    assert_eq!(ask("GET", "/api/v1/namespaces/default/secrets/mine"), 200);
    assert_eq!(ask("GET", "/api/v1/nodes/node-2"), 200);
    for path in [
        "/api/v1/namespaces/default/secrets/other",
        "/api/v1/namespaces/default/secrets",
        "/api/v1/secrets",
        "/api/v1/nodes/node-1",
        "/api/v1/nodes",
        "/api/v1/pods",
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1",
    ] {
        assert_eq!(ask("GET", path), 403, "{path}");
    }
    assert_eq!(ask("DELETE", "/api/v1/nodes/node-1"), 403);
    cluster.kubectl(&["delete", "pod", "p"]);
    assert_eq!(ask("GET", "/api/v1/namespaces/default/secrets/mine"), 403, "the pod is gone");
}

#[test]
fn what_must_not_join_does_not() {
    let cluster = Cluster::start();
    let good = cluster.token();
    let mut agent = Agent::prepare(&cluster, 1);

    let (head, _) = good.rsplit_once(':').unwrap();
    agent.token = format!("{head}:wrong");
    refused(&agent.run(), "does not accept the token");

    // another cluster's authority: nothing secret is sent
    let hash = good.strip_prefix("K10").unwrap().split("::").next().unwrap();
    agent.token = good.replace(hash, &"0".repeat(64));
    refused(&agent.run(), "certificate authority has the hash");
    agent.token = good[..30].to_owned();
    refused(&agent.run(), "cut off");
    agent.token = String::new();
    refused(&agent.run(), "a token is needed");

    // tokens that expire
    let made = success(
        "token create",
        cluster.edge(&["token", "create", "--ttl=1h", "--description=for a test", "-o", "json"]),
    );
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let expired = success("token create", cluster.edge(&["token", "create", "--ttl=1s"]));
    let list = success("token list", cluster.edge(&["token", "list"]));
    assert!(list.contains("for a test") && list.contains("TOKEN"), "{list}");
    eventually("the expired token goes", || {
        let list = success("token list", cluster.edge(&["token", "list", "-o", "json"]));
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        if list.as_array().unwrap().len() == 1 { Ok(()) } else { Err(list.to_string()) }
    });
    agent.token = expired.trim().to_owned();
    refused(&agent.run(), "expired");
    agent.token = made["joinToken"].as_str().unwrap().to_owned();
    agent.launch();
    ready(&cluster, "node-2");
    success("token delete", cluster.edge(&["token", "delete", &agent.token]));
    assert_eq!(success("token list", cluster.edge(&["token", "list", "-o", "json"])).trim(), "[]");
    let mut late = Agent::prepare(&cluster, 3);
    late.token.clone_from(&agent.token);
    refused(&late.run(), "or it has expired or was deleted");

    // a name that another machine has, be it an agent or the server
    let mut impostor = Agent::prepare(&cluster, 2);
    for name in ["node-2", "node-1"] {
        impostor.name = name.into();
        refused(&impostor.run(), "belongs to another machine");
    }

    // once the node is deleted its name is free; and the standing token can be replaced
    agent.stop(Signal::SIGTERM);
    cluster.kubectl(&["delete", "node", "node-2"]);
    let rotated = success("token rotate", cluster.edge(&["token", "rotate"]));
    impostor.name = "node-2".into();
    eventually("the old token is refused", || {
        let out = impostor.run_for_a_moment();
        if text(&out).contains("does not accept the token") { Ok(()) } else { Err(text(&out)) }
    });
    impostor.token = rotated.trim().to_owned();
    impostor.launch();
    ready(&cluster, "node-2");
}

#[test]
fn servers_and_agents_come_and_go() {
    let mut cluster = Cluster::start();
    let mut agent = Agent::start(&cluster, 1);
    cluster.apply(&pod("p", "node-2"));
    cluster.wait_for("pod/p", "condition=Ready");
    let container = || {
        let pod = cluster.get(&["pod", "p"]);
        let status = pod["status"]["containerStatuses"][0].clone();
        (status["containerID"].clone(), status["restartCount"].clone())
    };
    let before = container();

    // a killed agent finds its containers again
    agent.stop(Signal::SIGKILL);
    agent.launch();
    eventually("exec works again", || exec(&cluster, "p"));
    assert_eq!(container(), before);

    // a server that is away for a while
    cluster.stop(Signal::SIGKILL);
    cluster.launch();
    eventually("exec works after the server's restart", || exec(&cluster, "p"));
    cluster.apply(&pod("q", "node-2"));
    cluster.wait_for("pod/q", "condition=Ready");

    // a link that breaks and heals
    agent.plug(false);
    assert!(log_line(&cluster, "p").is_err());
    agent.plug(true);
    eventually("logs work again", || log_line(&cluster, "p"));

    // another address
    let moved = cluster.address(77);
    agent.ip_command(&["addr", "flush", "dev", "eth0"]);
    agent.ip_command(&["addr", "add", &format!("{moved}/24"), "dev", "eth0"]);
    agent.ip_command(&["route", "add", "default", "via", &cluster.address(1).to_string()]);
    eventually("the node has its new address", || {
        let node = cluster.get(&["node", "node-2"]);
        let address = node["status"]["addresses"][0]["address"].clone();
        if address == moved.to_string() { Ok(()) } else { Err(address.to_string()) }
    });
    eventually("exec works from there", || exec(&cluster, "p"));
    let after = cluster.get(&["pod", "p"])["status"]["containerStatuses"][0].clone();
    assert_eq!((after["containerID"].clone(), after["restartCount"].clone()), before);
}

#[test]
fn an_agent_reboots_without_its_server() {
    let mut cluster = Cluster::start();
    let mut agent = Agent::start(&cluster, 1);
    // nothing of the pod has to be asked of the API
    let alone = "nodeName: node-2, automountServiceAccountToken: false";
    cluster.apply(&pod("p", "node-2").replace("nodeName: node-2", alone));
    cluster.wait_for("pod/p", "condition=Ready");
    let uid = cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.metadata.uid}"]);
    cluster.stop(Signal::SIGKILL);
    agent.cut_power();
    drop(agent.spawn());
    eventually("the pod runs without the server", || {
        let running = agent.container_processes();
        if running > 0 { Ok(()) } else { Err("no process in a pod's cgroup".into()) }
    });
    cluster.launch();
    ready(&cluster, "node-2");
    eventually("the same pod is known again", || exec(&cluster, "p"));
    assert_eq!(cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.metadata.uid}"]), uid);
}

#[test]
fn an_agent_behind_address_translation() {
    let cluster = Cluster::start();
    let agent = Agent::prepare(&cluster, 1);
    // a router between the agent and the rest; nobody else knows a way to the agent's network
    let router = Agent::prepare(&cluster, 2);
    let mut agent = agent.behind(&router, "172.29.5");
    agent.launch();
    agent.await_images();
    ready(&cluster, "node-2");
    cluster.apply(&pod("p", "node-2"));
    cluster.wait_for("pod/p", "condition=Ready");
    assert_eq!(exec(&cluster, "p").unwrap().trim(), "p");
    log_line(&cluster, "p").unwrap();
    let mut forward = cluster.spawn_kubectl(Kubectl::Newest, &["port-forward", "p", ":8080"]);
    let said = forward.read_until("-> 8080");
    let port: u16 = said.split(':').nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let answer = http_get(([127, 0, 0, 1], port).into(), "/").unwrap();
    assert!(answer.contains("host=p"), "{answer}");
}

#[test]
fn several_servers_are_tried_in_turn() {
    let cluster = Cluster::start();
    let mut agent = Agent::prepare(&cluster, 1);
    // nobody answers at the first
    agent.server = format!("https://{}:6444,{}", cluster.ip, agent.server);
    agent.launch();
    ready(&cluster, "node-2");
}
