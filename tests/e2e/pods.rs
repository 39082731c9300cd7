//! What a pod can do.

use crate::harness::{Cluster, Kubectl, eventually};

#[test]
fn containers_share_address_ipc_and_volumes() {
    let cluster = Cluster::start();
    cluster.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red, "file.txt": "from the map"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: geheim}
---
apiVersion: v1
kind: Pod
metadata: {name: shared, labels: {a: b}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: first
    image: busybox:test
    command: [sh, -c, "echo made by init > /work/init"]
    volumeMounts: [{name: work, mountPath: /work}]
  containers:
  - name: web
    image: echo:v1
    volumeMounts: [{name: work, mountPath: /work}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
  - name: side
    image: busybox:test
    command: [sh, -c, "echo made by side > /work/side; sleep 100000"]
    env:
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: MY_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {containerName: web, resource: limits.memory}}}
    - {name: GREETING, value: "hello $(COLOR)"}
    volumeMounts:
    - {name: work, mountPath: /work}
    - {name: map, mountPath: /map}
    - {name: secret, mountPath: /secret, readOnly: true}
    - {name: host, mountPath: /host}
    - {name: labels, mountPath: /labels}
  volumes:
  - {name: work, emptyDir: {}}
  - {name: map, configMap: {name: settings}}
  - {name: secret, secret: {secretName: keys, defaultMode: 0400}}
  - {name: host, hostPath: {path: /etc, type: Directory}}
  - {name: labels, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
"#,
    );
    cluster.wait_for("pod/shared", "condition=Ready");
    let sh = |script: &str| cluster.kubectl(&["exec", "shared", "-c", "side", "--", "sh", "-c", script]);
    assert_eq!(sh("cat /work/init /work/side"), "made by init\nmade by side\n");
    assert!(sh("wget -qO- http://127.0.0.1:8080/").contains("host=shared"));
    assert!(sh("wget -qO- http://127.0.0.1:8080/file/work/side").contains("made by side"));
    assert_eq!(sh("cat /map/color /map/file.txt"), "redfrom the map");
    assert_eq!(sh("cat /secret/password; stat -Lc %a /secret/password"), "geheim400\n");
    assert_eq!(sh("cat /labels/labels"), "a=\"b\"");
    assert!(sh("ls /host").contains("passwd"));
    let ip = cluster.kubectl(&["get", "pod", "shared", "-o", "jsonpath={.status.podIP}"]);
    assert_eq!(sh("echo $PASSWORD $COLOR $MY_IP $MEMORY $GREETING"), format!("geheim red {ip} 67108864 hello red\n"));
    // what the limits say is what the kernel keeps to, in version 1 of cgroups or version 2
    let limit = |v1: &str, v2: &str| {
        let script = format!("cd /sys/fs/cgroup; cat {v1} 2>/dev/null || cat {v2}");
        cluster.kubectl(&["exec", "shared", "-c", "web", "--", "sh", "-c", &script])
    };
    assert_eq!(limit("memory/memory.limit_in_bytes", "memory.max"), "67108864\n");
    let cpu = limit("cpu/cpu.cfs_quota_us", "cpu.max");
    assert!(cpu == "50000\n" || cpu == "50000 100000\n", "{cpu}");
    // pods that requested nothing stand behind those that did: the weights of their classes
    eventually("the classes have their weights", || {
        let weights = ["burstable", "besteffort"].map(|class| cluster.cgroup_value(class, "cpu.shares", "cpu.weight"));
        // 500 thousandths of a processor; version 2 counts from 1 to 10,000 where version 1 does from 2 to 262,144
        let known = [["512", "2"], ["59", "1"]];
        if known.iter().any(|k| weights == *k) { Ok(()) } else { Err(format!("{weights:?}")) }
    });
    let ipc =
        |c: &str| cluster.kubectl(&["exec", "shared", "-c", c, "--", "sh", "-c", "ls -l /proc/self/ns/ipc | cat"]);
    let inode = |s: String| s.rsplit("ipc:").next().unwrap().trim().to_owned();
    assert_eq!(inode(ipc("side")), inode(ipc("web")));
    assert!(sh("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace").contains("default"));
    // the service account's token is good for the API
    let token = sh("cat /var/run/secrets/kubernetes.io/serviceaccount/token");
    let whoami = cluster.curl(
        &["-H", &format!("Authorization: Bearer {token}"), "-d", "{}", "-H", "Content-Type: application/json"],
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    );
    assert!(whoami.contains("system:serviceaccount:default:default") && whoami.contains("pod-name"), "{whoami}");
    assert!(sh("cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt").contains("BEGIN CERTIFICATE"));

    // a changed ConfigMap reaches the volume
    cluster.kubectl(&["patch", "cm", "settings", "-p", r#"{"data":{"color":"blue"}}"#]);
    eventually("the volume follows its ConfigMap", || match sh("cat /map/color") {
        s if s == "blue" => Ok(()),
        s => Err(s),
    });
}

#[test]
fn limits_are_kept() {
    let cluster = Cluster::start();
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "tail -c 300m /dev/zero"]
    resources: {limits: {memory: 32Mi}}
"#,
    );
    cluster.wait_for("pod/hungry", "jsonpath={.status.phase}=Failed");
    let state = &cluster.get(&["pod", "hungry"])["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["reason"], "OOMKilled", "{state}");
    assert_eq!(state["exitCode"], 137, "{state}");
}

#[test]
fn restart_policies_and_exit_codes() {
    let cluster = Cluster::start();
    for (name, policy, code) in [("ok", "OnFailure", 0), ("bad", "Never", 3), ("again", "Always", 0)] {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  containers:\n  - {{name: main, image: 'busybox:test', command: [sh, -c, 'echo I end; exit {code}']}}\n"
        ));
    }
    cluster.wait_for("pod/ok", "jsonpath={.status.phase}=Succeeded");
    cluster.wait_for("pod/bad", "jsonpath={.status.phase}=Failed");
    let bad = cluster.get(&["pod", "bad"]);
    assert_eq!(bad["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    assert_eq!(cluster.kubectl(&["logs", "bad"]), "I end\n");
    cluster.wait_for("pod/again", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CrashLoopBackOff");
    assert!(cluster.get(&["pod", "again"])["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap() >= 1);
    assert_eq!(cluster.kubectl(&["logs", "again", "--previous"]), "I end\n");
}

#[test]
fn probes_decide_readiness_and_restarts() {
    let cluster = Cluster::start();
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: echo:v1
    command: [sh, -c, "sleep 1; exec /echo"]
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30}
    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 2}
    volumeMounts: [{name: tmp, mountPath: /tmp}]
  volumes: [{name: tmp, emptyDir: {}}]
"#,
    );
    cluster.wait_for("pod/probed", "jsonpath={.status.containerStatuses[0].started}=true");
    assert_eq!(cluster.get(&["pod", "probed"])["status"]["containerStatuses"][0]["ready"], false);
    cluster.kubectl(&["exec", "probed", "--", "sh", "-c", "echo > /tmp/ready"]);
    cluster.wait_for("pod/probed", "condition=Ready");
    cluster.kubectl(&["exec", "probed", "--", "wget", "-qO-", "http://127.0.0.1:8080/unhealthy"]);
    cluster.wait_for("pod/probed", "jsonpath={.status.containerStatuses[0].restartCount}=1");
    let events = cluster.kubectl(&["get", "events"]);
    assert!(events.contains("Unhealthy") && events.contains("Killing"), "{events}");
}

#[test]
fn termination_is_graceful() {
    let cluster = Cluster::start();
    let out = cluster.dir.join("out");
    std::fs::create_dir(&out).unwrap();
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: polite}}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "trap 'echo term >> /out/story; exit 0' TERM; touch /out/up; while true; do sleep 0.1; done"]
    lifecycle: {{preStop: {{exec: {{command: [sh, -c, "echo prestop >> /out/story"]}}}}}}
    volumeMounts: [{{name: out, mountPath: /out}}]
  volumes: [{{name: out, hostPath: {{path: {}}}}}]
"#,
        out.display()
    ));
    cluster.wait_for("pod/polite", "condition=Ready");
    eventually("the trap is set", || out.join("up").exists().then_some(()).ok_or_else(String::new));
    cluster.kubectl(&["delete", "pod", "polite"]);
    assert_eq!(std::fs::read_to_string(out.join("story")).unwrap(), "prestop\nterm\n");
    assert!(!cluster.try_kubectl(Kubectl::Newest, &["get", "pod", "polite"]).status.success());
}

/// The news of their ends and of their starts may come in any order.
#[test]
fn pods_that_end_at_once_are_told_as_they_ended() {
    let cluster = Cluster::start();
    cluster.await_images();
    let pod = |number: usize| {
        let code = number % 3;
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: short-{number}, labels: {{code: '{code}'}}}}, spec: {{
               restartPolicy: Never, terminationGracePeriodSeconds: 0,
               containers: [{{name: main, image: 'busybox:test', command: [sh, -c, 'echo said; exit {code}']}}]}}}}\n---\n"
        )
    };
    cluster.apply(&(0..60).map(pod).collect::<String>());
    eventually("all have ended as they did", || {
        let pods = cluster.get(&["pods"]);
        let as_it_ended = |pod: &serde_json::Value| {
            let code = &pod["metadata"]["labels"]["code"];
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            let phase = if code == "0" { "Succeeded" } else { "Failed" };
            pod["status"]["phase"] == phase && ended["exitCode"].as_i64() == code.as_str().unwrap().parse().ok()
        };
        let others: Vec<_> = pods["items"].as_array().unwrap().iter().filter(|pod| !as_it_ended(pod)).collect();
        let state = |pod: &&serde_json::Value| format!("{} {}", pod["metadata"]["name"], pod["status"]);
        if others.is_empty() { Ok(()) } else { Err(others.iter().map(state).collect::<Vec<_>>().join("\n")) }
    });
    assert_eq!(cluster.kubectl(&["logs", "short-3"]), "said\n");
    // what they had is given back although their objects are there
    eventually("nothing of them is left on the node", || {
        let dirs = cluster.pod_cgroups();
        let below = dirs.iter().flat_map(|dir| std::fs::read_dir(dir.join("besteffort")).unwrap().flatten());
        let left = below.filter(|entry| entry.file_name().to_string_lossy().starts_with("pod")).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} below {dirs:?}")) }
    });
}

#[test]
fn a_pod_has_no_more_processes_than_the_node_allows() {
    let cluster = Cluster::start_with(&["--pod-max-pids=30"]);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: forks}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - name: first
    image: busybox:test
    command: [sh, -c, "for i in $(seq 20); do sleep 100000 & done; touch /work/ready; wait"]
    volumeMounts: [{name: work, mountPath: /work}]
  - name: second
    image: busybox:test
    command: [sh, -c, "until [ -e /work/ready ]; do sleep 0.1; done; for i in $(seq 20); do sleep 100000 & done; echo all"]
    volumeMounts: [{name: work, mountPath: /work}]
  volumes: [{name: work, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - {name: main, image: "busybox:test", command: [sh, -c, "for i in $(seq 20); do sleep 100000 & done; echo all"]}
"#,
    );
    // what one container has, another one of the pod cannot have, and other pods can
    let log = eventually("a process too many", || {
        let output = cluster.try_kubectl(Kubectl::Newest, &["logs", "forks", "-c", "second"]);
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        if log.contains("can't fork") { Ok(log) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    assert!(!log.contains("all"), "{log}");
    cluster.wait_for("pod/other", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(cluster.kubectl(&["logs", "other"]), "all\n");
    let first = cluster.get(&["pod", "forks"]);
    let first = first["status"]["containerStatuses"].as_array().unwrap().iter().find(|c| c["name"] == "first");
    assert!(first.unwrap()["state"]["running"].is_object(), "{first:?}");
}
