//! Machines that reboot while no server can be reached: their pods come back, with everything that they were given before.

use crate::harness::{Agent, Cluster, Kubectl, eventually};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A pod with everything that comes from the API; it writes what it got into the directory `out` of the node.
fn pod(name: &str, out: &Path, secrets: bool) -> String {
    let out = out.display();
    let environment = "{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}},
        {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}},
        {name: GREETING, valueFrom: {configMapKeyRef: {name: settings, key: greeting}}}";
    let secret =
        if secrets { ", {name: PASSWORD, valueFrom: {secretKeyRef: {name: mine, key: password}}}" } else { "" };
    let (mount, volume) = if secrets {
        (", {name: secret, mountPath: /secret}", ", {name: secret, secret: {secretName: mine}}")
    } else {
        ("", "")
    };
    let command = "echo \"$NAME $CPU $GREETING $FROM_greeting $PASSWORD\" > /out/env; \
        echo \"$KUBERNETES_SERVICE_HOST $WEB_SERVICE_HOST\" > /out/services; \
        cat /config/greeting /info/labels /secret/password > /out/files; \
        cat /var/run/secrets/kubernetes.io/serviceaccount/token > /out/token; \
        cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt > /out/ca; \
        touch /out/done; sleep 100000";
    let command = serde_json::Value::from(command);
    format!(
        r#"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web}}}}, spec: {{nodeName: node-2,
        automountServiceAccountToken: {secrets}, terminationGracePeriodSeconds: 0,
        containers: [{{name: c, image: "busybox:test", command: [sh, -c, {command}],
          resources: {{requests: {{cpu: 20m}}}},
          env: [{environment}{secret}], envFrom: [{{prefix: FROM_, configMapRef: {{name: settings}}}}],
          volumeMounts: [{{name: out, mountPath: /out}}, {{name: config, mountPath: /config}},
            {{name: info, mountPath: /info}}{mount}]}}],
        volumes: [{{name: out, hostPath: {{path: "{out}", type: DirectoryOrCreate}}}},
          {{name: config, configMap: {{name: settings}}}},
          {{name: info, downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: "metadata.labels['app']"}}}}]}}}}{volume}]}}}}"#
    )
}

fn objects(cluster: &Cluster) {
    cluster.kubectl(&["create", "configmap", "settings", "--from-literal=greeting=hello"]);
    cluster.kubectl(&["create", "secret", "generic", "mine", "--from-literal=password=s3cret-of-the-pod"]);
    cluster.kubectl(&["create", "secret", "generic", "other", "--from-literal=password=nobodys-business"]);
    cluster.kubectl(&["create", "service", "clusterip", "web", "--tcp=80"]);
}

/// What the pod has written since the directory was emptied.
fn written(out: &Path) -> Vec<String> {
    eventually("the pod has started", || {
        if out.join("done").exists() { Ok(()) } else { Err(format!("{:?}", fs::read_dir(out).map(Iterator::count))) }
    });
    let names = ["env", "services", "files", "token", "ca"];
    names.map(|name| fs::read_to_string(out.join(name)).unwrap_or_default()).into()
}

/// The files below a directory that hold a text, in plain or in base64.
fn holding(dir: &Path, text: &str) -> Vec<PathBuf> {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(text);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(holding(&path, text));
        } else if let Ok(bytes) = fs::read(&path) {
            let content = String::from_utf8_lossy(&bytes).into_owned();
            if content.contains(text) || content.contains(&encoded) {
                found.push(path);
            }
        }
    }
    found
}

fn ready(cluster: &Cluster, pod: &str) {
    cluster.wait_for(&format!("pod/{pod}"), "condition=Ready");
}

/// What is kept of the only pod of the node.
fn kept(agent: &Agent) -> PathBuf {
    let file = eventually("what the pod needs is kept", || {
        let pods = fs::read_dir(agent.dir.join("data/agent/pods")).unwrap().flatten();
        let mut files = pods.map(|p| p.path().join("kept.json")).filter(|f| f.exists());
        files.next().ok_or_else(|| "no kept.json".to_owned())
    });
    // written once more when something came later
    std::thread::sleep(std::time::Duration::from_millis(2500));
    file
}

#[test]
fn pods_come_back_with_all_that_they_had() {
    let mut cluster = Cluster::start();
    let mut agent = Agent::start(&cluster, 1);
    objects(&cluster);
    let out = agent.dir.join("out");
    cluster.apply(&pod("p", &out, true));
    ready(&cluster, "p");
    let before = written(&out);
    assert_eq!(before[0].trim(), "p 20 hello hello s3cret-of-the-pod");
    assert_eq!(before[1].split_whitespace().count(), 2, "{before:?}");
    assert!(before[2].starts_with("helloweb") && before[2].contains("s3cret"), "{before:?}");
    let uid = cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.metadata.uid}"]);

    // kept for nobody else's eyes, and only what the pod needs
    let file = kept(&agent);
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    let data = agent.dir.join("data");
    assert_eq!(holding(&data.join("agent"), "nobodys-business"), Vec::<PathBuf>::new());
    assert!(holding(&data.join("agent/pods"), "s3cret-of-the-pod").contains(&file));
    // and written only when its content changes
    cluster.kubectl(&["annotate", "configmap", "settings", "a=b"]);
    cluster.kubectl(&["annotate", "secret", "mine", "a=b"]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(fs::metadata(&file).unwrap().ino(), meta.ino());

    cluster.stop(Signal::SIGKILL);
    agent.cut_power();
    agent.new_network(&cluster);
    fs::remove_dir_all(&out).unwrap();
    drop(agent.spawn());
    assert_eq!(written(&out), before);
    assert!(agent.log().contains("no server answers"), "{}", agent.log());

    // the server is back: it is the same pod, its token is a new one, and its files follow again
    cluster.launch();
    eventually("the pod is reached", || {
        let out = cluster.try_kubectl(Kubectl::Newest, &["exec", "p", "--", "true"]);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    assert_eq!(cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.metadata.uid}"]), uid);
    eventually("the token is renewed", || {
        let file = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        let token = cluster.kubectl(&["exec", "p", "--", "cat", file]);
        if token.trim() != before[3].trim() { Ok(()) } else { Err("it is the old one".into()) }
    });
    cluster.kubectl(&["patch", "configmap", "settings", "-p", r#"{"data": {"greeting": "again"}}"#]);
    eventually("the file follows", || {
        let said = cluster.kubectl(&["exec", "p", "--", "cat", "/config/greeting"]);
        if said == "again" { Ok(()) } else { Err(said) }
    });

    // nothing is left when the pod is gone
    cluster.kubectl(&["delete", "pod", "p"]);
    eventually("nothing is kept", || {
        let left = holding(&data.join("agent/pods"), "s3cret-of-the-pod");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn secrets_stay_in_memory_where_that_is_wished() {
    let mut cluster = Cluster::start();
    let mut agent = Agent::prepare(&cluster, 1);
    fs::write(agent.dir.join("config.yaml"), "offline-secrets: false\n").unwrap();
    agent.launch();
    agent.await_images();
    objects(&cluster);
    let (plain, secret) = (agent.dir.join("plain"), agent.dir.join("secret"));
    cluster.apply(&pod("plain", &plain, false));
    cluster.apply(&pod("secret", &secret, true));
    ready(&cluster, "plain");
    ready(&cluster, "secret");
    let (plain_before, secret_before) = (written(&plain), written(&secret));
    kept(&agent);
    cluster.stop(Signal::SIGKILL);
    agent.cut_power();
    assert_eq!(holding(&agent.dir.join("data/agent"), "s3cret-of-the-pod"), Vec::<PathBuf>::new());
    assert_eq!(
        holding(&agent.dir.join("data/agent"), secret_before[3].trim()),
        Vec::<PathBuf>::new(),
        "tokens are secrets"
    );
    agent.new_network(&cluster);
    fs::remove_dir_all(&plain).unwrap();
    fs::remove_dir_all(&secret).unwrap();
    drop(agent.spawn());
    assert_eq!(written(&plain)[..3], plain_before[..3]);
    assert!(!secret.join("done").exists(), "it waits for its secret");
    cluster.launch();
    assert_eq!(written(&secret)[..3], secret_before[..3]);
}

#[test]
fn what_is_damaged_counts_as_absent() {
    let mut cluster = Cluster::start();
    let mut agent = Agent::start(&cluster, 1);
    objects(&cluster);
    let out = agent.dir.join("out");
    cluster.apply(&pod("p", &out, true));
    ready(&cluster, "p");
    let before = written(&out);
    let file = kept(&agent);
    cluster.stop(Signal::SIGKILL);
    agent.cut_power();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    fs::remove_dir_all(&out).unwrap();
    drop(agent.spawn());
    eventually("the damage is told", || {
        let log = agent.log();
        if log.contains("what was kept of the pod is not readable") { Ok(()) } else { Err(log) }
    });
    cluster.launch();
    assert_eq!(written(&out)[..3], before[..3]);
}

#[test]
fn the_network_of_pods_comes_back() {
    let mut cluster = Cluster::start();
    let mut agent = Agent::start(&cluster, 1);
    // something on the local network that pods talk to
    let outside = TcpListener::bind((cluster.address(1), 0)).unwrap();
    let thing = outside.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in outside.incoming().flatten() {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
        }
    });
    let out = agent.dir.join("out");
    let client = |name: &str| {
        let command = format!(
            "while :; do for to in web.default.svc.cluster.local {thing}; do \
            timeout 2 wget -q -O - http://$to/ > /dev/null && touch /out/{name}.${{to%%.*}}.ok || touch /out/{name}.${{to%%.*}}.no; \
            done; sleep 1; done"
        );
        format!(
            r#"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{role: {name}}}}}, spec: {{nodeName: node-2,
            terminationGracePeriodSeconds: 0, containers: [{{name: c, image: "busybox:test", command: [sh, -c, {}],
            volumeMounts: [{{name: out, mountPath: /out}}]}}],
            volumes: [{{name: out, hostPath: {{path: "{}", type: DirectoryOrCreate}}}}]}}}}"#,
            serde_json::Value::from(command),
            out.display()
        )
    };
    cluster.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeName: node-2,
        terminationGracePeriodSeconds: 0, containers: [{name: web, image: "echo:v1", ports: [{containerPort: 8080}]}]}}"#,
    );
    cluster.kubectl(&["create", "service", "clusterip", "web", "--tcp=80:8080"]);
    cluster.apply(
        r#"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: friends}, spec: {
        podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}}"#,
    );
    cluster.apply(&client("friend"));
    cluster.apply(&client("stranger"));
    let first = thing.to_string().split('.').next().unwrap().to_owned();
    let is_as_it_should_be = || {
        eventually("pods reach what they may", || {
            let there = |name: &str| out.join(name).exists();
            let wanted = ["friend.web.ok".to_owned(), "stranger.web.no".to_owned(), format!("friend.{first}.ok")];
            let missing: Vec<&String> = wanted.iter().filter(|n| !there(n)).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        });
    };
    is_as_it_should_be();
    let ip = cluster.kubectl(&["get", "pod", "stranger", "-o", "jsonpath={.status.podIP}"]);
    eventually("the node has noted what it knows", || {
        let files = fs::read_dir(agent.dir.join("data/agent/memory")).unwrap().flatten();
        let out = Command::new("gzip").arg("-dc").args(files.map(|f| f.path())).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let slice = text
            .lines()
            .any(|l| l.contains("discovery.k8s.io") && l.contains("\"web\"") && l.contains("\"ready\":true"));
        if text.contains(&ip) && text.contains("friends") && slice { Ok(()) } else { Err(text) }
    });

    cluster.stop(Signal::SIGKILL);
    agent.cut_power();
    agent.new_network(&cluster);
    fs::remove_dir_all(&out).unwrap();
    drop(agent.spawn());
    is_as_it_should_be();
    // and not more
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(!out.join("stranger.web.ok").exists());

    // the server is back, and with it what has changed
    cluster.launch();
    cluster.kubectl(&["delete", "networkpolicy", "friends"]);
    eventually("the policy is gone", || {
        if out.join("stranger.web.ok").exists() { Ok(()) } else { Err("still closed".into()) }
    });
}
