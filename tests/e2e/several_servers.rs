//! Several servers on one etcd: each of them reaches every node, those of agents and those of other servers.

use crate::harness::etcd::Etcd;
use crate::harness::{Agent, Background, Cluster, Kubectl, Server, eventually, http_get};
use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn pod(name: &str, node: &str) -> String {
    format!(
        r#"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {node},
        terminationGracePeriodSeconds: 0, containers: [{{name: web, image: "echo:v1"}}]}}}}"#
    )
}

/// A kubectl that asks one of the servers.
type Ask<'a> = &'a dyn Fn(&[&str]) -> Command;

fn said(out: &Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

/// Logs, exec and port-forward of the pod work by this server.
fn reaches(server: &str, ask: Ask<'_>, pod: &str) {
    let by = |args: &[&str]| said(&ask(args).output().unwrap());
    let began = Instant::now();
    eventually(&format!("{server} reaches {pod}"), || by(&["exec", pod, "--", "cat", "/etc/hostname"]));
    println!("{server} reached {pod} after {:?}", began.elapsed());
    // and then at once
    assert_eq!(by(&["exec", pod, "--", "cat", "/etc/hostname"]).unwrap().trim(), pod);
    assert!(by(&["logs", pod]).unwrap().contains("listening on 8080"));
    let mut forward = Background::start(ask(&["port-forward", pod, ":8080"]));
    let told = forward.read_until("-> 8080");
    let port: u16 = told.split(':').nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let answer = http_get(([127, 0, 0, 1], port).into(), "/").unwrap();
    assert!(answer.contains(&format!("host={pod}")), "{answer}");
}

/// A session in a pod, and that it answers.
fn session(ask: Ask<'_>, pod: &str) -> Background {
    let mut session = Background::start(ask(&["exec", "-i", pod, "--", "cat"]));
    answers(&mut session, "first");
    session
}

fn answers(session: &mut Background, text: &str) {
    session.write(&format!("{text}\n"));
    session.read_until(text);
}

#[test]
fn each_server_reaches_every_node() {
    let mut cluster = Cluster::prepare(&[]);
    let etcd = Etcd::start(&cluster, 1);
    cluster.add_flag(format!("--datastore-endpoint={}", etcd.endpoints()));
    cluster.launch();
    cluster.await_images();
    let token = fs::read_to_string(cluster.data_dir().join("server/token")).unwrap().trim().to_owned();
    // with one server there is one tunnel
    let mut agent = Agent::prepare(&cluster, 2);
    agent.server = format!("{},https://{}:6443", agent.server, cluster.address(11));
    agent.launch();
    agent.await_images();
    for (name, node) in [("on-first", "node-1"), ("on-agent", "node-3")] {
        cluster.apply(&pod(name, node));
        cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    }
    assert_eq!(agent.log().matches("tunnel open").count(), 1, "{}", agent.log());
    assert!(!cluster.log().contains("tunnel open"), "a server has no tunnel to itself");

    let flags = [format!("--datastore-endpoint={}", etcd.endpoints()), format!("--token={token}")];
    let mut second = Server::start_with_node(&cluster, 1, &flags);
    cluster.apply(&pod("on-second", "server-1"));
    cluster.wait_for("pod/on-second", "condition=Ready");
    let kubeconfig = second.kubectl_command(&[]);
    let by_second = |args: &[&str]| {
        let mut command = Command::new(kubeconfig.get_program());
        command.args(kubeconfig.get_args()).args(args);
        command.envs(kubeconfig.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    };
    for pod in ["on-first", "on-agent", "on-second"] {
        reaches("the first", &|args| cluster.kubectl_command(Kubectl::Newest, args), pod);
        reaches("the second", &by_second, pod);
    }
    let tunnels = agent.log().matches("tunnel open").count();
    assert_eq!(tunnels, 2, "one to each server: {}", agent.log());

    // the agent's server dies; what goes through the other one goes on
    let mut sessions = ["on-agent", "on-second"].map(|pod| session(&by_second, pod));
    cluster.stop(Signal::SIGKILL);
    for pod in ["on-agent", "on-second"] {
        reaches("the second, alone,", &by_second, pod);
    }
    eventually("the agent is with the second server", || match second.try_kubectl(&["get", "node", "node-3"]) {
        out if agent.log().matches("tunnel open").count() > tunnels => said(&out),
        _ => Err(agent.log()),
    });
    for session in &mut sessions {
        answers(session, "second");
    }

    // it comes back, and is reached and reaches as before, and the other one goes
    cluster.launch();
    for pod in ["on-first", "on-agent", "on-second"] {
        reaches("the first, again,", &|args| cluster.kubectl_command(Kubectl::Newest, args), pod);
        reaches("the second, still,", &by_second, pod);
    }
    for session in &mut sessions {
        answers(session, "third");
    }
    second.stop(Signal::SIGTERM);
    for pod in ["on-first", "on-agent"] {
        reaches("the first, alone,", &|args| cluster.kubectl_command(Kubectl::Newest, args), pod);
    }
    // nobody goes on asking for a server that is not listed any more
    let addresses = "jsonpath={.endpoints[*].addresses[*]}";
    eventually("only the first is listed", || {
        let listed = cluster.kubectl(&["get", "endpointslice", "kubernetes", "-o", addresses]);
        if listed == cluster.ip.to_string() { Ok(()) } else { Err(listed) }
    });
    std::thread::sleep(Duration::from_secs(1));
    let known = cluster.log();
    std::thread::sleep(Duration::from_secs(8));
    let since = cluster.log()[known.len()..].to_owned();
    assert!(!since.contains("tunnel"), "{since}");
}
