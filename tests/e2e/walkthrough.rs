//! A first day with Kubernetes, by both kubectls.

use crate::harness::images::ECHO_IMAGE;
use crate::harness::{Cluster, Kubectl, eventually, http_get, success};
use std::net::SocketAddr;

fn first_day(which: Kubectl) {
    let cluster = Cluster::start();
    let k = |args: &[&str]| cluster.kubectl_as(which, args);
    cluster.wait_for("node/node-1", "condition=Ready");

    let nodes = k(&["get", "nodes", "-o", "wide"]);
    assert!(nodes.contains("node-1") && nodes.contains(" Ready ") && nodes.contains("v1.36"), "{nodes}");
    let statuses = k(&["get", "componentstatuses"]);
    assert!(statuses.contains("scheduler") && statuses.contains("Healthy"), "{statuses}");
    k(&["get", "po", "-A"]);
    let info = k(&["cluster-info"]);
    assert!(info.contains("is running at"), "{info}");
    assert!(k(&["version"]).contains("v1.36"));
    let resources = k(&["api-resources"]);
    for name in ["pods", "deployments", "configmaps", "networkpolicies", "clusterroles"] {
        assert!(resources.contains(name), "{name} is missing: {resources}");
    }

    k(&["create", "deployment", "hello-world", "--image", ECHO_IMAGE]);
    k(&["rollout", "status", "deployment/hello-world", "--timeout=60s"]);
    let deployments = k(&["get", "deployments"]);
    assert!(deployments.contains("hello-world   1/1"), "{deployments}");
    let pods = k(&["get", "pods", "-o", "wide"]);
    assert!(pods.contains("1/1") && pods.contains("Running") && pods.contains("10.42.0."), "{pods}");

    k(&["expose", "deployment", "hello-world", "--type=NodePort", "--port=8080"]);
    let port: u16 = k(&["get", "svc", "hello-world", "-o", "jsonpath={.spec.ports[0].nodePort}"]).parse().unwrap();
    assert!((30000..=32767).contains(&port));
    let body = eventually("the NodePort answers", || http_get(SocketAddr::new(cluster.ip.into(), port), "/"));
    assert!(body.contains("version=v1"), "{body}");

    let mut forward = cluster.spawn_kubectl(which, &["port-forward", "service/hello-world", ":8080"]);
    let begin = forward.read_until(" -> ");
    let address: SocketAddr = begin.trim_start_matches("Forwarding from ").trim_end_matches(" -> ").parse().unwrap();
    for _ in 0..3 {
        let body = http_get(address, "/forwarded").unwrap();
        assert!(body.contains("path=/forwarded"), "{body}");
    }
    drop(forward);

    k(&["scale", "deployment/hello-world", "--replicas=3"]);
    k(&["rollout", "status", "deployment/hello-world", "--timeout=60s"]);
    assert_eq!(cluster.get(&["pods", "-l", "app=hello-world"])["items"].as_array().unwrap().len(), 3);

    k(&["set", "image", "deployment/hello-world", "echo=docker.io/library/echo:v2"]);
    k(&["rollout", "status", "deployment/hello-world", "--timeout=60s"]);
    let body = eventually("v2 answers", || {
        let body = http_get(SocketAddr::new(cluster.ip.into(), port), "/")?;
        if body.contains("version=v2") { Ok(body) } else { Err(body) }
    });
    assert!(body.contains("version=v2"));
    let history = k(&["rollout", "history", "deployment/hello-world"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    k(&["rollout", "undo", "deployment/hello-world"]);
    k(&["rollout", "status", "deployment/hello-world", "--timeout=60s"]);
    eventually("v1 answers again", || {
        let body = http_get(SocketAddr::new(cluster.ip.into(), port), "/")?;
        if body.contains("version=v1") { Ok(()) } else { Err(body) }
    });

    let described = k(&["describe", "deployment", "hello-world"]);
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    let pod = k(&["get", "pods", "-l", "app=hello-world", "-o", "jsonpath={.items[0].metadata.name}"]);
    let described = k(&["describe", "pod", &pod]);
    for word in ["Scheduled", "Pulled", "Created", "Started", "kube-api-access"] {
        assert!(described.contains(word), "{word} is missing: {described}");
    }
    let told = k(&["describe", "node", "node-1"]);
    for reason in ["Starting kubelet.", "NodeHasSufficientMemory", "NodeReady"] {
        assert!(told.contains(reason), "{reason} in {told}");
    }
    k(&["describe", "service", "hello-world"]);

    k(&["delete", "deployment,service", "hello-world"]);
    k(&["wait", "--for=delete", "pod", "-l", "app=hello-world", "--timeout=60s"]);
}

#[test]
fn first_day_with_the_newest_kubectl() {
    first_day(Kubectl::Newest);
}

#[test]
fn first_day_with_debians_kubectl() {
    first_day(Kubectl::Debian);
}

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {app: box}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.2; done"]
"#;

fn daily_tools(which: Kubectl) {
    let cluster = Cluster::start();
    let k = |args: &[&str]| cluster.kubectl_as(which, args);
    cluster.apply(POD);
    cluster.wait_for("pod/box", "condition=Ready");

    // logs
    let mut follow = cluster.spawn_kubectl(which, &["logs", "-f", "box"]);
    let text = follow.read_until("line 5\n");
    assert!(text.starts_with("line 0\n"), "{text}");
    drop(follow);
    assert_eq!(k(&["logs", "box", "--tail=1"]).lines().count(), 1);

    // exec: output, standard input, exit code, terminal
    assert_eq!(k(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2"]), "out\n");
    let echoed = cluster.kubectl_stdin(which, &["exec", "-i", "box", "--", "cat"], "through\n");
    assert_eq!(success("exec -i", echoed), "through\n");
    let failed = cluster.try_kubectl(which, &["exec", "box", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "{}", String::from_utf8_lossy(&failed.stderr));
    let mut shell = cluster.spawn_kubectl(which, &["exec", "-i", "box", "--", "sh"]);
    shell.write("echo $((6*7))\n");
    shell.read_until("42\n");
    shell.write("exit 3\n");
    assert_eq!(shell.finish().status.code(), Some(3));

    // cp, both ways, with some weight
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let there = cluster.dir.join("there");
    let back = cluster.dir.join("back");
    std::fs::write(&there, &big).unwrap();
    k(&["cp", &there.display().to_string(), "box:/tmp/file"]);
    k(&["cp", "box:/tmp/file", &back.display().to_string()]);
    assert!(std::fs::read(&back).unwrap() == big, "the file came back changed");

    // labels, annotations, edit, output forms
    k(&["label", "pod", "box", "tier=test"]);
    k(&["annotate", "pod", "box", "note=here"]);
    assert_eq!(k(&["get", "pod", "-l", "tier=test", "-o", "name"]), "pod/box\n");
    assert_eq!(k(&["get", "pod", "box", "-o", "jsonpath={.metadata.annotations.note}"]), "here");
    assert!(k(&["get", "pod", "box", "-o", "yaml"]).contains("name: box"));
    let columns = k(&["get", "pods", "-o", "custom-columns=N:.metadata.name,P:.status.phase"]);
    assert!(columns.contains("box   Running"), "{columns}");
    k(&["edit", "pod", "box"]);

    // watch
    let mut watch = cluster.spawn_kubectl(which, &["get", "pods", "-w"]);
    watch.read_until("box");
    k(&["label", "pod", "box", "seen=yes"]);
    watch.read_until("box");
    drop(watch);

    // explain, auth, diff, declarative round trip
    let explained = k(&["explain", "pod.spec.containers"]);
    assert!(explained.contains("image"), "{explained}");
    assert!(k(&["explain", "deployment.spec.replicas"]).contains("integer"));
    assert_eq!(k(&["auth", "can-i", "create", "deployments"]), "yes\n");
    let denied = cluster.try_kubectl(which, &["auth", "can-i", "delete", "nodes", "--as=nobody"]);
    assert_eq!(String::from_utf8_lossy(&denied.stdout).trim(), "no");

    let file = cluster.dir.join("cm.yaml");
    let manifest =
        |v: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{color: {v}}}\n");
    std::fs::write(&file, manifest("red")).unwrap();
    let file = file.display().to_string();
    assert!(k(&["apply", "-f", &file]).contains("created"));
    assert!(k(&["apply", "-f", &file]).contains("unchanged"));
    std::fs::write(&file, manifest("blue")).unwrap();
    let diff = cluster.try_kubectl(which, &["diff", "-f", &file]);
    let text = String::from_utf8_lossy(&diff.stdout);
    assert_eq!(diff.status.code(), Some(1), "{text} {}", String::from_utf8_lossy(&diff.stderr));
    assert!(text.contains("-  color: red") && text.contains("+  color: blue"), "{text}");
    assert!(k(&["apply", "-f", &file]).contains("configured"));
    assert!(k(&["apply", "--server-side", "--force-conflicts", "-f", &file]).contains("serverside-applied"));
    assert_eq!(k(&["get", "cm", "settings", "-o", "jsonpath={.data.color}"]), "blue");
    k(&["delete", "-f", &file]);

    // what is wrong is said before anything happens
    let typo = "apiVersion: v1\nkind: Pod\nmetadata: {name: typo}\nspec: {containers: [{name: a, imagee: b}]}\n";
    let refused = cluster.kubectl_stdin(which, &["apply", "-f", "-"], typo);
    assert!(!refused.status.success());
    let reason = String::from_utf8_lossy(&refused.stderr);
    assert!(reason.contains("imagee"), "{reason}");

    k(&["delete", "pod", "box"]);
    assert!(!cluster.try_kubectl(which, &["get", "pod", "box"]).status.success());
}

#[test]
fn daily_tools_with_the_newest_kubectl() {
    daily_tools(Kubectl::Newest);
}

#[test]
fn daily_tools_with_debians_kubectl() {
    daily_tools(Kubectl::Debian);
}
