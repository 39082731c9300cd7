//! Machines whose clocks are wrong: without a battery they begin in the past, and some are switched on after years.

use crate::harness::{Agent, Clock, Cluster, Kubectl, eventually};
use nix::sys::signal::Signal;

fn pod(name: &str, node: &str) -> String {
    format!(
        r#"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {node},
        terminationGracePeriodSeconds: 0, containers: [{{name: web, image: "busybox:test", command: [sleep, "100000"]}}]}}}}"#
    )
}

/// A pod runs on the node, is reached through the node's tunnel, and its token is good for the API.
fn runs_a_pod(cluster: &Cluster, name: &str, node: &str) {
    cluster.apply(&pod(name, node));
    cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    token_holds(cluster, name);
}

fn token_holds(cluster: &Cluster, pod: &str) {
    let file = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    eventually("the pod's token holds", || {
        let out = cluster.try_kubectl(Kubectl::Newest, &["exec", pod, "--", "cat", file]);
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        let header = format!("Authorization: Bearer {}", String::from_utf8_lossy(&out.stdout).trim());
        let said = cluster.curl(&["-H", &header], "/api");
        if said.contains("APIVersions") { Ok(()) } else { Err(said) }
    });
}

/// The process really sees the other time: it is in its log.
fn shows(log: &str, year: &str) {
    assert!(log.contains(&format!("{year}-")), "the clock is not in use: {log}");
}

#[test]
fn a_node_that_starts_in_the_past() {
    let cluster = Cluster::start();
    let mut agent = Agent::prepare(&cluster, 1);
    let clock = Clock::new(&agent.dir, "-27y");
    agent.environment = clock.environment();
    agent.launch();
    agent.await_images();
    runs_a_pod(&cluster, "p", "node-2");
    shows(&agent.log(), "1999");
    // the time is set while it runs
    clock.set("+0");
    runs_a_pod(&cluster, "q", "node-2");
    token_holds(&cluster, "p");
    assert!(agent.runs());
    // and it is found wrong again at the next start
    agent.stop(Signal::SIGTERM);
    clock.set("-27y");
    agent.launch();
    runs_a_pod(&cluster, "r", "node-2");
}

#[test]
fn a_node_whose_clock_is_ahead_waits_until_it_is_right() {
    let cluster = Cluster::start();
    let mut agent = Agent::prepare(&cluster, 1);
    let clock = Clock::new(&agent.dir, "+30y");
    agent.environment = clock.environment();
    agent.spawn();
    eventually("the server's certificate seems to have ended", || {
        let log = agent.log();
        if log.contains("expired") { Ok(()) } else { Err(log) }
    });
    clock.set("+0");
    agent.await_images();
    runs_a_pod(&cluster, "p", "node-2");
}

#[test]
fn a_server_that_starts_in_the_past() {
    let mut cluster = Cluster::prepare(&[]);
    let clock = Clock::new(&cluster.dir, "-27y");
    cluster.environment = clock.environment();
    cluster.launch();
    shows(&cluster.log(), "1999");
    let agent = Agent::start(&cluster, 1);
    runs_a_pod(&cluster, "p", "node-1");
    runs_a_pod(&cluster, "q", "node-2");
    clock.set("+0");
    let mut n = 0;
    eventually("the server has seen that the clock is set", || {
        n += 1;
        let made =
            cluster.kubectl(&["create", "configmap", &format!("c{n}"), "-o", "jsonpath={.metadata.creationTimestamp}"]);
        if made.starts_with("1999") { Err(made) } else { Ok(()) }
    });
    runs_a_pod(&cluster, "r", "node-1");
    runs_a_pod(&cluster, "s", "node-2");
    for node in ["node-1", "node-2"] {
        cluster.wait_for(&format!("node/{node}"), "condition=Ready");
    }
    // the tokens of the time before are renewed, not in an hour but soon. (On the server's own node that takes the
    // kernel's telling that the clock was set, which is in the tests with machines of their own.)
    token_holds(&cluster, "q");
    drop(agent);
}

#[test]
fn a_cluster_that_was_off_for_years() {
    let mut cluster = Cluster::prepare(&[]);
    let clock = Clock::new(&cluster.dir, "+0");
    cluster.environment = clock.environment();
    cluster.launch();
    let mut agent = Agent::prepare(&cluster, 1);
    agent.environment = clock.environment();
    agent.launch();
    agent.await_images();
    runs_a_pod(&cluster, "p", "node-1");
    runs_a_pod(&cluster, "q", "node-2");
    let end = agent.certificate().not_after();
    agent.stop(Signal::SIGTERM);
    cluster.stop(Signal::SIGTERM);
    // longer than any certificate but the authorities' holds
    clock.set("+5y");
    cluster.launch();
    // the token is not needed
    agent.token = String::new();
    agent.launch();
    runs_a_pod(&cluster, "r", "node-1");
    runs_a_pod(&cluster, "s", "node-2");
    assert!(agent.certificate().not_after() > end + std::time::Duration::from_secs(4 * 365 * 24 * 3600));
    token_holds(&cluster, "p");
    token_holds(&cluster, "q");
}
