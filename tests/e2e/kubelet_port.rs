//! The kubelet's port: metrics collectors and others go to the node itself, with certificates or tokens of the cluster.

use crate::harness::{Agent, Cluster, Kubectl, eventually};
use base64::Engine as _;
use std::fs;
use std::net::TcpListener;
use std::process::Command;

/// What curl got: the status and the body. The node's certificate is verified.
fn ask(cluster: &Cluster, node: &str, args: &[&str], path: &str) -> (u32, String) {
    let ca = cluster.data_dir().join("server/tls/server-ca.crt");
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "-w", "\n%{http_code}", "--cacert"]).arg(ca).args(args);
    let out = command.arg(format!("https://{node}{path}")).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    let status = status.parse().unwrap();
    assert!(status > 0, "{}", String::from_utf8_lossy(&out.stderr));
    (status, body.to_owned())
}

/// A service account with a cluster role; gives the header with its token.
fn account(cluster: &Cluster, name: &str, resources: &str) -> String {
    cluster.kubectl(&["create", "serviceaccount", name]);
    if !resources.is_empty() {
        cluster.kubectl(&["create", "clusterrole", name, "--verb=get", &format!("--resource={resources}")]);
        let account = format!("--serviceaccount=default:{name}");
        cluster.kubectl(&["create", "clusterrolebinding", name, &format!("--clusterrole={name}"), &account]);
    }
    format!("Authorization: Bearer {}", cluster.kubectl(&["create", "token", name]).trim())
}

#[test]
fn collectors_reach_nodes_with_the_rights_they_have() {
    let cluster = Cluster::start();
    let agent = Agent::start(&cluster, 1);
    cluster.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: node-2, terminationGracePeriodSeconds: 0,
        containers: [{name: c, image: "busybox:test", command: [sh, -c, "echo said; sleep 100000"]}]}}"#,
    );
    cluster.wait_for("pod/p", "condition=Ready");
    let nodes = [format!("{}:10250", cluster.ip), format!("{}:10250", cluster.address(11))];
    let node = nodes[1].as_str();

    // nobody is anonymous, and wrong tokens are nobody's
    for node in &nodes {
        for path in ["/metrics", "/healthz", "/pods", "/nothing"] {
            assert_eq!(ask(&cluster, node, &[], path).0, 401, "{node}{path}");
            assert_eq!(ask(&cluster, node, &["-H", "Authorization: Bearer x"], path).0, 401, "{node}{path}");
        }
    }
    let joining = format!("Authorization: Bearer {}", cluster.token().rsplit(':').next().unwrap());
    assert_ne!(ask(&cluster, node, &["-H", &joining], "/metrics").0, 200);

    // as the metrics server has it
    let metrics = account(&cluster, "metrics", "nodes/metrics");
    for node in &nodes {
        let (status, body) = ask(&cluster, node, &["-H", &metrics], "/metrics/resource");
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("node_cpu_usage_seconds_total "), "{body}");
        let (status, body) = ask(&cluster, node, &["-H", &metrics], "/stats/summary");
        assert_eq!(status, 403);
        let expected = "Forbidden (user=system:serviceaccount:default:metrics, verb=get, resource=nodes, \
            subresource(s)=[stats])";
        assert_eq!(body, expected);
        assert_eq!(ask(&cluster, node, &["-H", &metrics], "/containerLogs/default/p/c").0, 403);
    }
    let (_, body) = ask(&cluster, node, &["-H", &metrics], "/metrics/resource");
    assert!(
        body.contains(r#"container_memory_working_set_bytes{container="c",namespace="default",pod="p"}"#),
        "{body}"
    );

    // fine-grained rights, and the old one for all
    let pods = account(&cluster, "pods", "nodes/pods");
    let proxy = account(&cluster, "proxy", "nodes/proxy");
    let none = account(&cluster, "none", "");
    let (status, body) = ask(&cluster, node, &["-H", &pods], "/pods");
    assert_eq!(status, 200);
    assert!(body.contains(r#""name":"p""#), "{body}");
    assert_eq!(ask(&cluster, node, &["-H", &pods], "/containerLogs/default/p/c").0, 403);
    assert_eq!(ask(&cluster, node, &["-H", &proxy], "/pods").0, 200);
    assert_eq!(ask(&cluster, node, &["-H", &proxy], "/containerLogs/default/p/c"), (200, "said\n".into()));
    let (status, body) = ask(&cluster, node, &["-H", &none], "/pods");
    assert_eq!(status, 403);
    assert!(body.contains("subresource(s)=[pods proxy])"), "{body}");

    // reading is not acting: what begins with GET and runs a command needs more
    let upgrade = [
        "-H",
        "Connection: Upgrade",
        "-H",
        "Upgrade: websocket",
        "-H",
        "Sec-WebSocket-Version: 13",
        "-H",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "-H",
        "Sec-WebSocket-Protocol: v4.channel.k8s.io",
    ];
    let exec = "/exec/default/p/c?command=cat&command=/etc/hostname&output=1";
    let (status, body) = ask(&cluster, node, &[&upgrade[..], &["-H", &proxy]].concat(), exec);
    assert_eq!(status, 403);
    assert!(body.contains("verb=create"), "{body}");

    // the administrator, by certificate
    let kubeconfig = fs::read_to_string(cluster.kubeconfig()).unwrap();
    let field = |name: &str| {
        let line = kubeconfig.lines().find(|l| l.trim_start().starts_with(name)).unwrap();
        base64::engine::general_purpose::STANDARD.decode(line.split(": ").nth(1).unwrap().trim()).unwrap()
    };
    let pem = cluster.dir.join("admin.pem");
    fs::write(&pem, [field("client-certificate-data"), field("client-key-data")].concat()).unwrap();
    let admin = ["--cert", pem.to_str().unwrap()];
    assert_eq!(ask(&cluster, node, &admin, "/healthz"), (200, "ok".into()));
    let (status, body) = ask(&cluster, node, &[&upgrade[..], &admin].concat(), exec);
    assert_eq!(status, 101);
    assert!(body.contains("p\n"), "{body:?}");

    // a node's own certificate is one of the cluster, but gives no right to another node
    let own = agent.dir.join("data/agent/tls/client-kubelet.pem");
    let (status, _) = ask(&cluster, &nodes[0], &["--cert", own.to_str().unwrap()], "/pods");
    assert_eq!(status, 403);

    // rights that are taken away are gone within half a minute or five, but a token that is new is looked at anew
    cluster.kubectl(&["delete", "clusterrolebinding", "metrics"]);
    cluster.kubectl(&["delete", "serviceaccount", "metrics"]);
    let again = account(&cluster, "again", "");
    assert_eq!(ask(&cluster, node, &["-H", &again], "/metrics").0, 403);
}

#[test]
fn a_port_that_is_taken_is_told() {
    let cluster = Cluster::start();
    let mut agent = Agent::prepare(&cluster, 1);
    let other = agent.inside(|| TcpListener::bind("0.0.0.0:10250").unwrap());
    let out = agent.run();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("port 10250 (--kubelet-port)") && said.contains("in use"), "{said}");
    let mut server = Cluster::prepare(&[]);
    let taken = server.inside(|| TcpListener::bind("0.0.0.0:10250").unwrap());
    let out = server.server_command().output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("port 10250 (--kubelet-port)"), "{said}");
    drop(taken);
    server.launch();
    agent.args = vec!["--kubelet-port=10260".into()];
    agent.launch();
    cluster.wait_for("node/node-2", "condition=Ready");
    let port =
        cluster.kubectl(&["get", "node", "node-2", "-o", "jsonpath={.status.daemonEndpoints.kubeletEndpoint.Port}"]);
    assert_eq!(port, "10260");
    let node = format!("{}:10260", cluster.address(11));
    assert_eq!(ask(&cluster, &node, &[], "/metrics").0, 401);
    eventually("the tunnel works as before", || {
        let out = cluster.try_kubectl(Kubectl::Newest, &["get", "--raw", "/api/v1/nodes/node-2/proxy/healthz"]);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    drop(other);
}
