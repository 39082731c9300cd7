//! A first day on a machine that has no kubectl: what `edge kubectl` does by itself.

use crate::harness::{Background, Cluster, Kubectl, eventually, success};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// `edge kubectl` where no kubectl is to be found.
fn command(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = cluster.edge_command(&[&["kubectl"], args].concat());
    command.env("PATH", "/nowhere");
    command
}

fn output(cluster: &Cluster, args: &[&str]) -> Output {
    command(cluster, args).output().unwrap()
}

fn kubectl(cluster: &Cluster, args: &[&str]) -> String {
    success(&args.join(" "), output(cluster, args))
}

fn refused(cluster: &Cluster, args: &[&str]) -> String {
    let out = output(cluster, args);
    assert!(!out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

const FILES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
"#;

#[test]
fn a_first_day_without_kubectl() {
    let cluster = Cluster::start();
    let k = |args: &[&str]| kubectl(&cluster, args);
    assert!(k(&["get", "nodes", "-o", "wide"]).lines().next().unwrap().starts_with("NAME     STATUS   ROLES"));
    assert!(k(&["get", "ns"]).contains("kube-system"));
    assert!(k(&["version"]).contains("v1.36"));
    assert!(k(&["api-resources"]).lines().any(|l| l.starts_with("deployments ") && l.contains("apps/v1")));

    // a workload from nothing
    assert_eq!(k(&["create", "deployment", "web", "--image=echo:v1", "--port=8080"]), "deployment.apps/web created\n");
    let told = k(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    assert!(told.ends_with("deployment \"web\" successfully rolled out\n"), "{told}");
    assert_eq!(k(&["scale", "deploy", "web", "--replicas=2"]), "deployment.apps/web scaled\n");
    let mut table = Background::start(command(&cluster, &["get", "deploy", "web", "-w"]));
    k(&["rollout", "status", "deployment", "web"]);
    table.read_until("2/2");
    drop(table);
    let pods = k(&["get", "pods", "-l", "app=web"]);
    assert_eq!(pods.lines().filter(|l| l.contains("1/1     Running")).count(), 2, "{pods}");
    assert!(k(&["get", "deploy,rs", "-A"]).contains("deployment.apps/web"));
    assert!(k(&["get", "all"]).contains("replicaset.apps/web-"));
    let yaml = k(&["get", "deploy/web", "-o", "yaml"]);
    assert!(yaml.contains("kind: Deployment") && !yaml.contains("managedFields"), "{yaml}");
    let list: Value = serde_json::from_str(&k(&["get", "pods", "-o", "json"])).unwrap();
    assert_eq!((list["kind"].as_str(), list["items"].as_array().unwrap().len()), (Some("List"), 2));
    assert_eq!(list["items"][0]["kind"], "Pod");
    let pod = k(&["get", "pods", "-o", "name"]).lines().next().unwrap().to_owned();

    // looking into it
    let described = k(&["describe", &pod]);
    for part in ["Controlled By: ReplicaSet/web-", "Image: echo:v1", "Started", "kubelet"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    k(&["create", "deploy", "shell", "--image=busybox:test", "--", "sleep", "100000"]);
    k(&["rollout", "status", "deploy/shell"]);
    assert_eq!(k(&["exec", "deploy/shell", "--", "echo", "hello"]), "hello\n");
    let failed = output(&cluster, &["exec", "deploy/shell", "--", "sh", "-c", "echo no >&2; exit 7"]);
    assert_eq!((failed.status.code(), String::from_utf8_lossy(&failed.stderr).lines().next()), (Some(7), Some("no")));
    let mut count = command(&cluster, &["exec", "-i", "deploy/shell", "--", "wc", "-c"]);
    let mut count = count.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    count.stdin.take().unwrap().write_all(&[b'x'; 300_000]).unwrap();
    assert_eq!(count.wait_with_output().unwrap().stdout, b"300000\n");

    // reaching it
    assert_eq!(k(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]), "service/web created\n");
    let mut forward = Background::start(command(&cluster, &["port-forward", "svc/web", ":80"]));
    let line = forward.read_until("-> 8080");
    let address = line.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap().parse().unwrap();
    for _ in 0..3 {
        let answer = cluster.inside(|| crate::harness::http_get(address, "/")).unwrap();
        assert!(answer.contains("host=web-"), "{answer}");
    }
    drop(forward);
    cluster.inside(|| crate::harness::http_get(address, "/")).unwrap_err();
    eventually("the log is there", || {
        let log = kubectl(&cluster, &["logs", "deploy/web", "--tail=5"]);
        if log.is_empty() { Err("empty".to_owned()) } else { Ok(()) }
    });
    let mut follow = Background::start(command(&cluster, &["logs", "-f", &pod, "--timestamps"]));
    follow.read_until("Z ");
    drop(follow);

    // changes
    assert_eq!(k(&["rollout", "restart", "deploy/web"]), "deployment.apps/web restarted\n");
    k(&["rollout", "status", "deploy/web"]);
    let history = k(&["rollout", "history", "deploy/web"]);
    assert!(history.contains("1          <none>") && history.contains("2          <none>"), "{history}");
    assert_eq!(k(&["rollout", "undo", "deploy/web"]), "deployment.apps/web rolled back\n");
    k(&["rollout", "status", "deploy/web"]);
    let template = cluster.get(&["deploy", "web"])["spec"]["template"].clone();
    assert!(template["metadata"]["annotations"].is_null(), "{template}");
    assert!(template["metadata"]["labels"]["pod-template-hash"].is_null(), "{template}");

    // files
    let file = cluster.dir.join("files.yaml");
    let path = file.to_str().unwrap();
    fs::write(&file, FILES).unwrap();
    assert_eq!(k(&["apply", "-f", path, "--dry-run=server"]).lines().count(), 2);
    assert_eq!(k(&["apply", "-f", path]), "configmap/settings created\nservice/by-hand created\n");
    assert_eq!(k(&["apply", "-f", path]), "configmap/settings unchanged\nservice/by-hand unchanged\n");
    let mut watch = Background::start(command(&cluster, &["get", "configmap", "settings", "-w", "-o", "json"]));
    watch.read_until("blue");
    fs::write(&file, FILES.replace("blue", "green")).unwrap();
    assert_eq!(k(&["apply", "-f", path]), "configmap/settings configured\nservice/by-hand unchanged\n");
    watch.read_until("green");
    drop(watch);
    assert_eq!(k(&["delete", "-f", path]).lines().count(), 2);
    assert_eq!(
        k(&["delete", "deployment", "web", "--now"]),
        "deployment.apps \"web\" deleted from default namespace\n"
    );
    k(&["delete", "deployment", "shell"]);
    k(&["delete", "pods", "--all", "--force", "--grace-period=0"]);
    eventually("all is gone", || {
        let out = output(&cluster, &["get", "pods"]);
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        if told == "No resources found in default namespace.\n" { Ok(()) } else { Err(told) }
    });

    // mistakes
    assert!(
        refused(&cluster, &["get", "pod", "none"]).contains("Error from server (NotFound): pods \"none\" not found")
    );
    assert!(refused(&cluster, &["get", "nonsense"]).contains("doesn't have a resource type \"nonsense\""));
    assert!(refused(&cluster, &["delete", "pods"]).contains("say which"));
    fs::write(&file, "kind: [").unwrap();
    assert!(refused(&cluster, &["apply", "-f", path]).contains("files.yaml"));
    assert!(refused(&cluster, &["get", "pods", "--kubeconfig=/nowhere"]).contains("/nowhere"));
    let out = output(&cluster, &["--help"]);
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("port-forward"));
}

#[test]
fn the_real_one_is_used_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("kubectl");
    fs::write(&fake, "#!/bin/sh\necho \"$KUBECONFIG $*\"; exit 3\n").unwrap();
    fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge"));
    let path = format!("{}:/bin:/usr/bin", dir.path().display());
    let out = command
        .args(["kubectl", "get", "-o", "wide", "--help"])
        .env("PATH", path)
        .env("KUBECONFIG", "/k")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "/k get -o wide --help\n");
    assert_eq!(out.status.code(), Some(3));
}

/// Both, one after the other.
fn both(cluster: &Cluster, args: &[&str]) -> [String; 2] {
    [kubectl(cluster, args), cluster.kubectl_as(Kubectl::Newest, args)]
}

#[test]
fn it_prints_what_kubectl_prints() {
    let cluster = Cluster::start();
    cluster.await_images();
    cluster.kubectl(&["create", "deployment", "web", "--image=echo:v1", "--replicas=2", "--port=8080"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    cluster.kubectl(&["annotate", "deploy/web", "of.the/test=<a & b>"]);
    for output in [
        "name",
        "jsonpath={.items[*].metadata.name}",
        "jsonpath={range .items[*]}{.metadata.name}{\"\\t\"}{.spec.template.spec.containers[0].image}{\"\\n\"}{end}",
        "jsonpath={.items[0].metadata.annotations.of\\.the/test}",
        "jsonpath={.items[0].metadata.labels}",
        "jsonpath={.items[0].spec}",
        "jsonpath={.items[0].metadata.annotations}",
        "jsonpath={.items[0].status.conditions[?(@.type==\"Available\")].status}",
        "jsonpath={.items[0].status.conditions[?(@.status!=\"x\")].type}",
        "jsonpath={.items[?(@.spec.replicas>1)].metadata.name}",
        "jsonpath={..containerPort}",
        "jsonpath={.items[*].spec.replicas} of {.kind}",
        "jsonpath={.items[*].nothing.there}",
        "jsonpath={.items[0].spec.template.spec.containers[*]['name','image']}",
        "jsonpath={.items[-1:].metadata.name}",
        "jsonpath={.items[0].metadata.labels.*}",
        "custom-columns=NAME:.metadata.name,REPLICAS:.spec.replicas,NONE:.nothing,LABELS:.metadata.labels",
        "custom-columns=IMAGE:spec.template.spec.containers[*].image,STATUS:{.status.conditions[*].type}",
    ] {
        let [own, real] = both(&cluster, &["get", "deployments", "-o", output]);
        assert_eq!(own, real, "{output}");
    }
    for args in [
        &["get", "deploy/web", "-o", "jsonpath={.spec.replicas}"][..],
        &["get", "deploy/web", "svc/kubernetes", "-o", "jsonpath={.items[*].kind}"],
        &["explain", "pod"],
        &["explain", "deployments.spec"],
        &["explain", "deploy.spec.template.spec.containers"],
        &["explain", "pods.spec.containers.env"],
        &["explain", "pods.spec.restartPolicy"],
        &["explain", "pods.spec.tolerations.operator"],
        &["explain", "configmap.data"],
        &["explain", "pod.metadata.labels"],
        &["explain", "deploy.spec", "--recursive"],
        &["get", "deploy", "web", "-o", "custom-columns=:.metadata.name"],
        &["get", "pods", "-A", "-o", "custom-columns=NS:.metadata.namespace,APP:.metadata.labels.app", "--no-headers"],
    ] {
        let [own, real] = both(&cluster, args);
        assert_eq!(own, real, "{args:?}");
    }
    // what changes something: before each, the object is as it was
    for (before, args) in [
        ("tier-", &["label", "deploy/web", "tier=front"][..]),
        ("tier=front", &["label", "deploy", "web", "tier=front"]),
        ("tier=front", &["label", "deploy/web", "tier-"]),
        ("tier=front", &["label", "deploy/web", "nothing-"]),
        ("tier=front", &["label", "--overwrite", "deploy/web", "tier=back"]),
        ("tier=back", &["annotate", "deploy/web", "note=one"]),
        ("tier=back", &["annotate", "deploy/web", "note-"]),
        ("tier=back", &["annotate", "pods", "-l", "app=web", "note=all", "--overwrite"]),
        ("tier=back", &["label", "services,deployments", "--all", "tier=back"]),
    ] {
        let said =
            [kubectl as fn(&Cluster, &[&str]) -> String, |cluster, args| cluster.kubectl_as(Kubectl::Newest, args)]
                .map(|run| {
                    cluster.kubectl(&["label", "deploy/web", "--overwrite", before]);
                    cluster.try_kubectl(Kubectl::Newest, &["label", "service/kubernetes", "tier-"]);
                    run(&cluster, args)
                });
        assert_eq!(said[0], said[1], "{args:?}");
    }
    let [own, real] = both(&cluster, &["get", "deploy/web", "-o", "jsonpath={.metadata.labels}"]);
    assert_eq!(own, real);
    assert!(own.contains(r#""tier":"back""#), "{own}");
    assert_eq!(kubectl(&cluster, &["label", "deploy/web", "tier-"]), "deployment.apps/web unlabeled\n");
    cluster.kubectl(&["label", "pods", "--all", "seen=yes"]);
    for args in [
        &["label", "pods", "-l", "app=web", "seen=no"][..],
        &["annotate", "pods", "--all", "note=other"],
        &["get", "deploy", "-o", "jsonpath={.items[5].kind}"],
        &["get", "deploy", "-o", "jsonpath={.a"],
        &["get", "deploy", "-o", "custom-columns=NAME"],
    ] {
        refused(&cluster, args);
        assert!(!cluster.try_kubectl(Kubectl::Newest, args).status.success(), "{args:?}");
    }
    pods_that_are_run(&cluster);
}

fn pods_that_are_run(cluster: &Cluster) {
    // what is made of the same words is the same
    let common = ["--image=busybox:test", "--env=A=b", "--port=80", "--labels=x=y,z=w", "--restart=Never", "--command"];
    let run = |name| [&["run", name], &common[..], &["--", "sleep", "100000"]].concat();
    assert_eq!(kubectl(cluster, &run("own")), "pod/own created\n");
    assert_eq!(cluster.kubectl(&run("real")), "pod/real created\n");
    let spec = |name: &str| {
        let pod = cluster.get(&["pod", name]);
        let mut container = pod["spec"]["containers"][0].clone();
        container["name"] = Value::Null;
        container["volumeMounts"] = Value::Null;
        (
            pod["metadata"]["labels"].clone(),
            container,
            pod["spec"]["restartPolicy"].clone(),
            pod["spec"]["dnsPolicy"].clone(),
        )
    };
    assert_eq!(spec("own"), spec("real"));
    cluster.kubectl(&["delete", "pods", "own", "real", "--now"]);
    // a conversation, the exit code, and nothing is left
    let args = ["run", "talk", "--image=busybox:test", "--restart=Never", "-i", "--rm", "--command", "--", "sh", "-c"];
    let mut talk = command(cluster, &[&args[..], &["read word; echo \"heard $word\"; exit 4"]].concat());
    let mut talk = talk.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    talk.stdin.take().unwrap().write_all(b"something\n").unwrap();
    let out = talk.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("heard something\n"), "{text}");
    assert_eq!(out.status.code(), Some(4), "{text}");
    assert!(text.ends_with("pod \"talk\" deleted from default namespace\n"), "{text}");
    assert!(refused(cluster, &["get", "pod", "talk"]).contains("NotFound"));
}
