//! WebAssembly programs as containers, in a process of their own: all that a pod has, around a program that is no Linux binary.

use crate::harness::wasm::{Packing, archive, assert_knows_its_pages, command, component, module, runners};
use crate::harness::{Cluster, Kubectl, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::Path;

/// A cluster that has some of the tests' programs as images `NAME:test`.
pub(crate) fn cluster_with(names: &[&str]) -> Cluster {
    let cluster = Cluster::start();
    for name in names {
        cluster.drop_image(&format!("{name}.tar"), &archive(&module(name), Packing::Artifact, &format!("{name}:test")));
    }
    cluster
}

/// A module in the text format, as image `NAME:test`.
pub(crate) fn drop_text(cluster: &Cluster, name: &str, text: &str) {
    drop_bytes(cluster, name, &wat::parse_str(text).unwrap());
}

fn drop_bytes(cluster: &Cluster, name: &str, bytes: &[u8]) {
    let path = cluster.dir.join(format!("{name}.wasm"));
    std::fs::write(&path, bytes).unwrap();
    let packed = archive(&path, Packing::Artifact, &format!("{name}:test"));
    cluster.drop_image(&format!("{name}.tar"), &packed);
}

/// A pod that never restarts, of one container `main` with an image and arguments; `more` are further fields of the container.
pub(crate) fn pod(name: &str, image: &str, args: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: '{image}', args: {args}{more}}}\n"
    )
}

/// Waits for the end of a pod; gives how its first container ended.
pub(crate) fn ended(cluster: &Cluster, name: &str) -> Value {
    eventually(&format!("pod {name} ends"), || {
        let pod = cluster.get(&["pod", name]);
        let state = &pod["status"]["containerStatuses"][0]["state"];
        if state["terminated"].is_object() { Ok(state["terminated"].clone()) } else { Err(state.to_string()) }
    })
}

/// Waits until the first container of a pod waits for a reason; gives what it says, and what `kubectl describe` shows.
pub(crate) fn waits(cluster: &Cluster, name: &str, reason: &str) -> (String, String) {
    let message = eventually(&format!("pod {name} waits for {reason}"), || {
        let pod = cluster.get(&["pod", name]);
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        if waiting["reason"] == reason {
            Ok(waiting["message"].as_str().unwrap_or_default().to_owned())
        } else {
            Err(pod["status"]["containerStatuses"].to_string())
        }
    });
    (message, cluster.kubectl(&["describe", "pod", name]))
}

#[test]
fn programs_have_arguments_environment_output_and_exit_codes() {
    let cluster = cluster_with(&["hello"]);
    cluster.drop_image("component.tar", &archive(&command("hello"), Packing::Artifact, "component:test"));
    cluster.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {COLOR: green}
"#,
    );
    let more = r#", env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: TWO, value: "$(POD) twice"}],
      envFrom: [{configMapRef: {name: settings}}]"#;
    let args = "[args, env, POD, env, TWO, env, COLOR, env, HOSTNAME, env, PATH, env, KUBERNETES_SERVICE_PORT, clock, random, stderr, oops, exit, '3']";
    for (name, image, code) in [("core", "hello:test", 3), ("part", "component:test", 1)] {
        cluster.apply(&pod(name, image, args, more));
        let end = ended(&cluster, name);
        assert_eq!((&end["exitCode"], &end["reason"]), (&code.into(), &"Error".into()), "{end}");
        let log = cluster.kubectl(&["logs", name]);
        let program = image.split(':').next().unwrap();
        assert!(log.starts_with(&format!("{program}\nargs\nenv\nPOD\n")), "{log}");
        for line in [
            format!("POD={name}"),
            format!("TWO={name} twice"),
            "COLOR=green".into(),
            format!("HOSTNAME={name}"),
            "PATH=(not set)".into(),
            "KUBERNETES_SERVICE_PORT=443".into(),
            "random differs".into(),
            "oops".into(),
        ] {
            assert!(log.lines().any(|l| l == line), "{line}: {log}");
        }
        assert!(log.contains("clock forward 20"), "{log}");
    }
    cluster.apply(&pod("greets", "hello:test", "[]", ""));
    assert_eq!(ended(&cluster, "greets")["reason"], "Completed");
    assert_eq!(cluster.kubectl(&["logs", "greets"]), "hello from wasm\n");
    let status = cluster.get(&["pod", "greets"])["status"]["containerStatuses"][0].clone();
    assert_eq!(status["image"], "docker.io/library/hello:test");
    assert!(status["imageID"].as_str().unwrap().contains("sha256:"), "{status}");

    // a trap is told, in the status and in describe
    cluster.apply(&pod("traps", "hello:test", "[trap]", ""));
    let end = ended(&cluster, "traps");
    assert_eq!((&end["exitCode"], &end["reason"]), (&134.into(), &"Error".into()), "{end}");
    assert!(end["message"].as_str().unwrap().contains("unreachable"), "{end}");
    assert!(cluster.kubectl(&["describe", "pod", "traps"]).contains("unreachable"));
    // unless the program has left last words
    let more = ", terminationMessagePath: /tmp/last-words";
    cluster.apply(&pod("last", "hello:test", "[write, /tmp/last-words, farewell, exit, '5']", more));
    assert_eq!(ended(&cluster, "last")["message"], "farewell");
    // or asks for those of its log
    let more = ", terminationMessagePolicy: FallbackToLogsOnError";
    cluster.apply(&pod("logged", "hello:test", "[one, two, exit, '5']", more));
    assert_eq!(ended(&cluster, "logged")["message"], "one\ntwo");
}

#[test]
fn volumes_are_what_they_are_for_others() {
    let cluster = cluster_with(&["hello"]);
    let host = cluster.dir.join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "of the host").unwrap();
    std::os::unix::fs::chown(&host, Some(65532), None).unwrap();
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{color: green, shape: round}}
---
apiVersion: v1
kind: Secret
metadata: {{name: secret}}
stringData: {{password: letmein}}
---
apiVersion: v1
kind: Pod
metadata: {{name: volumes}}
spec:
  restartPolicy: Never
  initContainers:
  - name: native
    image: busybox:test
    command: [sh, -c, "echo from linux > /shared/linux; mkdir /shared/sub; echo deep > /shared/sub/file; chmod 777 /shared/sub"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  containers:
  - name: main
    image: hello:test
    args: [cat, /map/color, cat, /only/shape, cat, /secret/password, cat, /shared/linux, write, /shared/wasm, from wasm, cat, /deep/file,
      cat, /host/file, write, /host/out, written, write, /ro/file, nothing, write, /map/color, nothing, write, /own, mine, cat, /own, write, /tmp/x, some,
      cat, /var/run/secrets/kubernetes.io/serviceaccount/namespace, cat, /etc/hostname, cat, /etc/hosts, cat, /proc/self/mem, ls, /]
    volumeMounts:
    - {{name: map, mountPath: /map}}
    - {{name: map, mountPath: /only/shape, subPath: shape}}
    - {{name: secret, mountPath: /secret, readOnly: true}}
    - {{name: shared, mountPath: /shared}}
    - {{name: shared, mountPath: /deep, subPath: sub}}
    - {{name: host, mountPath: /host}}
    - {{name: host, mountPath: /ro, readOnly: true}}
  - name: reader
    image: busybox:test
    command: [sh, -c, "until cat /shared/wasm; do sleep 0.1; done"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  volumes:
  - {{name: map, configMap: {{name: settings}}}}
  - {{name: secret, secret: {{secretName: secret}}}}
  - {{name: shared, emptyDir: {{}}}}
  - {{name: host, hostPath: {{path: {}}}}}
"#,
        host.display()
    ));
    cluster.wait_for("pod/volumes", "jsonpath={.status.phase}=Failed");
    let log = cluster.kubectl(&["logs", "volumes", "-c", "main"]);
    for text in ["green", "round", "letmein", "from linux\n", "deep\n", "of the host", "mine", "default", "volumes\n"] {
        assert!(log.contains(text), "{text:?}: {log}");
    }
    // what is read-only refuses, and what is the process' own is not there
    assert!(log.contains("/ro/file: ") && log.contains("/map/color: "), "{log}");
    assert!(log.contains("/proc/self/mem: No such file or directory"), "{log}");
    assert!(log.ends_with('\n') && log.lines().any(|l| l == "shared") && !log.lines().any(|l| l == "guest"), "{log}");
    assert_eq!(std::fs::read_to_string(host.join("out")).unwrap(), "written");
    assert_eq!(std::fs::read_to_string(host.join("file")).unwrap(), "of the host");
    assert!(cluster.kubectl(&["logs", "volumes", "-c", "reader"]).contains("from wasm"));

    // relative paths begin at the working directory, also one that the image does not have
    let args = "[env, PWD, write, note, mine, cat, /tmp/note, cat, /etc/hostname]";
    cluster.apply(&pod("works", "hello:test", args, ", workingDir: /tmp"));
    assert_eq!(ended(&cluster, "works")["exitCode"], 0);
    assert_eq!(cluster.kubectl(&["logs", "works"]), "PWD=/tmp\nmineworks\n");
    cluster.apply(&pod("made", "hello:test", "[ls, ., cat, /etc/hostname]", ", workingDir: /work/here"));
    assert_eq!(ended(&cluster, "made")["exitCode"], 0);
    assert_eq!(cluster.kubectl(&["logs", "made"]), "made\n");

    // a root file system that is read-only, with a volume that is not
    let more = ", securityContext: {readOnlyRootFilesystem: true}";
    cluster.apply(&pod("strict", "hello:test", "[write, /own, nothing]", more));
    assert_eq!(ended(&cluster, "strict")["exitCode"], 1);
    assert!(cluster.kubectl(&["logs", "strict"]).starts_with("/own: "));
}

#[test]
fn programs_do_not_get_more_than_their_share() {
    let cluster = cluster_with(&["greedy"]);
    // 1 GiB of a 64 MiB limit
    cluster.apply(&pod("memory", "greedy:test", "[memory, '1024']", ", resources: {limits: {memory: 64Mi}}"));
    let end = ended(&cluster, "memory");
    assert_eq!((&end["reason"], &end["exitCode"]), (&"OOMKilled".into(), &137.into()), "{end}");
    assert!(cluster.kubectl(&["describe", "pod", "memory"]).contains("OOMKilled"));
    // under a limit that suffices
    cluster.apply(&pod("enough", "greedy:test", "[memory, '32']", ", resources: {limits: {memory: 64Mi}}"));
    assert_eq!(ended(&cluster, "enough")["exitCode"], 0);
    assert_eq!(cluster.kubectl(&["logs", "enough"]), "has 32 MiB\n");

    // files without end
    cluster.apply(&pod("files", "greedy:test", "[files]", ", resources: {limits: {memory: 256Mi}}"));
    let end = ended(&cluster, "files");
    let log = cluster.kubectl(&["logs", "files"]);
    assert!(log.contains("refused after") || end["reason"] == "OOMKilled", "{log} {end}");

    // an endless loop: told of, limited, and stopped when asked
    cluster.apply(&pod("spins", "greedy:test", "[spin]", ", resources: {limits: {cpu: 300m}}"));
    cluster.wait_for("pod/spins", "condition=Ready");
    let uid = cluster.get(&["pod", "spins"])["metadata"]["uid"].as_str().unwrap().to_owned();
    let quota = cluster.cgroup_value(&format!("burstable/pod{uid}"), "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "30000" || quota == "30000 100000", "{quota}");
    eventually("its use of the processor is told, as autoscalers read it", || {
        let summary = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"]);
        let summary: Value = serde_json::from_str(&summary).unwrap();
        let pods = summary["pods"].as_array().unwrap();
        let spins = pods.iter().find(|p| p["podRef"]["name"] == "spins").ok_or("not there")?;
        let container = &spins["containers"][0];
        let nanos = container["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap_or(0);
        let memory = container["memory"]["workingSetBytes"].as_u64().unwrap_or(0);
        if nanos > 100_000_000 && memory > 100_000 { Ok(()) } else { Err(container.to_string()) }
    });
    let begun = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", "spins", "--grace-period=40"]);
    assert!(begun.elapsed().as_secs() < 30, "told to end, not killed");
    assert_eq!(cluster.get(&["node", "node-1"])["status"]["conditions"][0]["status"], "False");
}

#[test]
fn what_cannot_run_says_why() {
    let cluster = cluster_with(&["hello"]);
    drop_bytes(&cluster, "truncated", &std::fs::read(module("hello")).unwrap()[..5000]);
    drop_text(
        &cluster,
        "missing",
        r#"(module (import "wasi_snapshot_preview1" "fd_teleport" (func)) (import "env" "secret_door" (func))
            (memory (export "memory") 1) (func (export "_start")))"#,
    );
    drop_text(&cluster, "library", r#"(module (func (export "add")))"#);
    drop_text(&cluster, "large", r#"(module (memory (export "memory") 4096) (func (export "_start")))"#);
    let said = |name: &str, words: &[&str]| {
        let text = eventually(&format!("pod {name} says why it does not run"), || {
            let text = cluster.kubectl(&["describe", "pod", name]);
            if words.iter().all(|word| text.contains(word)) { Ok(text) } else { Err(text) }
        });
        let phase = &cluster.get(&["pod", name])["status"]["phase"];
        assert_ne!(phase, "Running", "{text}");
    };
    for (name, words) in [
        ("truncated", &["cannot use the program of image truncated:test"][..]),
        ("missing", &["wasi_snapshot_preview1.fd_teleport", "env.secret_door"]),
        ("library", &["_start"]),
    ] {
        cluster.apply(&pod(name, &format!("{name}:test"), "[]", ""));
        said(name, words);
    }
    cluster.apply(&pod("large", "large:test", "[]", ", resources: {limits: {memory: 64Mi}}"));
    said("large", &["268435456", "67108864"]);

    // what a pod asks for and a program cannot have
    for (name, more, words) in [
        ("privileged", ", securityContext: {privileged: true}", "cannot be privileged"),
        ("capable", ", securityContext: {capabilities: {add: [NET_ADMIN]}}", "cannot hold capabilities"),
        ("probed", ", readinessProbe: {exec: {command: [cat, /x]}}", "readiness probe executes a command"),
        ("hooked", ", lifecycle: {preStop: {exec: {command: [cat, /x]}}}", "preStop hook executes a command"),
    ] {
        cluster.apply(&pod(name, "hello:test", "[sleep, '100000']", more));
        let (message, described) = waits(&cluster, name, "CreateContainerConfigError");
        assert!(message.contains(words) && described.contains(words), "{message}\n{described}");
    }
    // native programs are not for a class of WebAssembly
    cluster.apply(
        r#"
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: programs}
handler: wasm
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: unheard-of}
handler: kata
---
apiVersion: v1
kind: Pod
metadata: {name: native}
spec: {runtimeClassName: programs, containers: [{name: main, image: "busybox:test", command: [sleep, "1000"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: kata}
spec: {runtimeClassName: unheard-of, containers: [{name: main, image: "busybox:test", command: [sleep, "1000"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: classy}
spec: {runtimeClassName: programs, restartPolicy: Never, containers: [{name: main, image: "hello:test"}]}
"#,
    );
    assert!(waits(&cluster, "native", "CreateContainerConfigError").0.contains("RuntimeClass"));
    said("kata", &["FailedCreatePodSandBox", "no runtime for \"kata\" is configured"]);
    assert_eq!(ended(&cluster, "classy")["exitCode"], 0);

    // nothing is executed beside a program
    cluster.apply(&pod("sleeps", "hello:test", "[sleep, '1000000']", ""));
    cluster.wait_for("pod/sleeps", "condition=Ready");
    for which in [Kubectl::Newest, Kubectl::Debian] {
        let output = cluster.try_kubectl(which, &["exec", "sleeps", "--", "sh"]);
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("no command can be executed"), "{which:?}: {text}");
    }
}

#[test]
fn programs_are_restarted_with_back_off() {
    let cluster = cluster_with(&["hello"]);
    cluster.apply(&pod("again", "hello:test", "[I end, exit, '4']", "").replace("Never", "Always"));
    cluster.wait_for("pod/again", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CrashLoopBackOff");
    let status = &cluster.get(&["pod", "again"])["status"]["containerStatuses"][0];
    assert!(status["restartCount"].as_i64().unwrap() >= 1, "{status}");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 4);
    assert_eq!(cluster.kubectl(&["logs", "again", "--previous"]), "I end\n");
    // a job of them
    cluster.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: twice}
spec:
  completions: 2
  template: {spec: {restartPolicy: Never, containers: [{name: main, image: "hello:test"}]}}
"#,
    );
    cluster.wait_for("job/twice", "condition=Complete");
}

#[test]
fn both_kinds_share_a_pod() {
    let cluster = cluster_with(&["hello"]);
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  terminationGracePeriodSeconds: 20
  initContainers:
  - {name: first, image: "hello:test", args: [write, /shared/first, "wasm was here\n"], volumeMounts: [{name: shared, mountPath: /shared}]}
  - name: sidecar
    restartPolicy: Always
    image: echo:v1
    command: [sh, -c, "cat /shared/first > /shared/second; exec /echo"]
    startupProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /shared}]
  - {name: third, image: "hello:test", args: [cat, /shared/second], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - {name: main, image: "hello:test", args: [cat, /shared/second, sleep, "1000000"], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: other, image: "busybox:test", command: [sh, -c, "hostname; sleep 100000"]}
  volumes: [{name: shared, emptyDir: {}}]
"#,
    );
    cluster.wait_for("pod/mixed", "condition=Ready");
    for container in ["third", "main"] {
        eventually("the file went around", || match cluster.kubectl(&["logs", "mixed", "-c", container]) {
            log if log == "wasm was here\n" => Ok(()),
            log => Err(log),
        });
    }
    assert_eq!(cluster.kubectl(&["exec", "mixed", "-c", "other", "--", "hostname"]), "mixed\n");
    let ip = cluster.get(&["pod", "mixed"])["status"]["podIP"].as_str().unwrap().to_owned();
    cluster.reaches(&ip);
    cluster.kubectl(&["delete", "pod", "mixed"]);
    eventually("all their processes have ended", || {
        let left = cluster.processes().into_iter().filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "hello")
        });
        if left.count() == 0 { Ok(()) } else { Err("some are left".to_owned()) }
    });
}

#[test]
fn programs_outlive_edge() {
    let mut cluster = cluster_with(&["hello", "greedy"]);
    cluster.apply(&pod("spins", "greedy:test", "[spin]", ", resources: {limits: {cpu: 100m}}"));
    cluster.apply(&pod("reads", "hello:test", "[before, stdin, after, exit, '6']", ", stdin: true, stdinOnce: true"));
    cluster.apply(&pod("ends", "hello:test", "[sleep, '3000', trap]", ""));
    for name in ["spins", "reads", "ends"] {
        cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    }
    let id = |cluster: &Cluster, name: &str| {
        cluster.get(&["pod", name])["status"]["containerStatuses"][0]["containerID"].clone()
    };
    let before = id(&cluster, "spins");
    cluster.stop(Signal::SIGKILL);
    // one of them ends meanwhile
    std::thread::sleep(std::time::Duration::from_secs(4));
    cluster.launch();
    let end = ended(&cluster, "ends");
    assert_eq!(end["exitCode"], 134);
    assert!(end["message"].as_str().unwrap().contains("unreachable"), "{end}");
    assert_eq!(id(&cluster, "spins"), before);
    assert_eq!(cluster.get(&["pod", "spins"])["status"]["containerStatuses"][0]["restartCount"], 0);
    // whom it was begun with still hears what it says, and is heard
    let mut attached = cluster.spawn_kubectl(Kubectl::Newest, &["attach", "-i", "reads"]);
    attached.write("typed\n");
    // the end of what is typed is the end of its input
    assert!(String::from_utf8_lossy(&attached.finish().stdout).contains("typed"));
    assert_eq!(ended(&cluster, "reads")["exitCode"], 6);
    assert_eq!(cluster.kubectl(&["logs", "reads"]), "before\ntyped\nafter\n");
    cluster.kubectl(&["delete", "pod", "spins"]);
}

#[test]
fn images_of_every_kind_run() {
    let cluster = Cluster::start();
    for packing in [Packing::Artifact, Packing::Spin, Packing::Buildx, Packing::Scratch] {
        let name = format!("{packing:?}").to_lowercase();
        let packed: &Path = &archive(&module("hello"), packing, &format!("{name}:test"));
        cluster.drop_image(&format!("{name}.tar"), packed);
        cluster.apply(&pod(&name, &format!("{name}:test"), "[args, cat, /data/file, env, FROM_IMAGE]", ""));
        let end = ended(&cluster, &name);
        let log = cluster.kubectl(&["logs", &name]);
        if matches!(packing, Packing::Buildx | Packing::Scratch) {
            assert_eq!(end["exitCode"], 0, "{log}");
            assert!(log.starts_with("/app.wasm\nargs\n") && log.contains("of the image\n"), "{log}");
            assert!(log.contains("FROM_IMAGE=yes"), "{log}");
        } else {
            assert_eq!(end["exitCode"], 1, "there is no such file");
            assert!(log.starts_with(&format!("{name}\nargs\n")), "{log}");
        }
    }
}

#[test]
fn programs_open_connections_by_name() {
    let cluster = Cluster::start();
    cluster.drop_image("net.tar", &archive(&component("net"), Packing::Artifact, "net:test"));
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: pong, labels: {app: pong}}
spec:
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "exec nc -ll -p 7000 -e /bin/busybox cat"]
    readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: pong}
spec: {selector: {app: pong}, ports: [{port: 70, targetPort: 7000}]}
"#,
    );
    cluster.wait_for("pod/pong", "condition=Ready");
    let run = |name: &str, host: &str, phase: &str| {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never,
                containers: [{{name: main, image: 'net:test', args: [{host}, '70']}}]}}}}"
        ));
        cluster.wait_for(&format!("pod/{name}"), &format!("jsonpath={{.status.phase}}={phase}"));
        cluster.kubectl(&["logs", name])
    };
    let service = cluster.kubectl(&["get", "service", "pong", "-o", "jsonpath={.spec.clusterIP}"]);
    let told = run("ping", "pong", "Succeeded");
    assert!(told.contains(&format!("address {service}\n")) && told.contains("received ping\n"), "{told}");
    let told = run("lost", "nobody.nowhere", "Failed");
    assert!(told.contains("failed: error") && !told.contains("received"), "{told}");

    // datagrams, in both directions and through a service, by programs on both sides
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: serves, labels: {app: serves}}
spec: {containers: [{name: main, image: 'net:test', args: [udp-serve, '7001']}]}
---
apiVersion: v1
kind: Service
metadata: {name: serves}
spec: {selector: {app: serves}, ports: [{port: 71, targetPort: 7001, protocol: UDP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: asks}
spec: {restartPolicy: Never, containers: [{name: main, image: 'net:test', args: [udp, serves, '71']}]}
"#,
    );
    cluster.wait_for("pod/asks", "jsonpath={.status.phase}=Succeeded");
    assert!(cluster.kubectl(&["logs", "asks"]).contains("received ping\n"));
    assert!(cluster.kubectl(&["logs", "serves"]).starts_with("serving\ngot ping\n"));
}

#[test]
fn components_ask_others_by_tls() {
    let mut cluster = Cluster::prepare(&[]);
    let ip = cluster.address(1).to_string();
    let made = || rcgen::generate_simple_self_signed([ip.clone()]).unwrap();
    let (key, other) = (made(), made());
    let (cert_file, key_file) = (cluster.dir.join("tls.crt"), cluster.dir.join("tls.key"));
    std::fs::write(&cert_file, key.cert.pem()).unwrap();
    std::fs::write(&key_file, key.signing_key.serialize_pem()).unwrap();
    let tls = format!("  tls: {{certificate: {}, key: {}}}", cert_file.display(), key_file.display());
    let server = crate::images::Registry::start(&cluster, 5001, &tls);
    // the machine trusts it
    cluster.files.push((cert_file, "/etc/ssl/certs/ca-certificates.crt".into()));
    cluster.launch();
    cluster.drop_image("http.tar", &archive(&component("http"), Packing::Artifact, "http:test"));
    let indented = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    for (name, cert) in [("right", key.cert.pem()), ("wrong", other.cert.pem())] {
        let cert = indented(&cert);
        cluster.apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata:\n  ca-certificates.crt: |\n{cert}"
        ));
    }
    let mut pods = Vec::new();
    for class in ["wasm", "wasm-dense"] {
        for (name, volume) in
            [("machine", "emptyDir: {}"), ("right", "configMap: {name: right}"), ("wrong", "configMap: {name: wrong}")]
        {
            let place = if name == "machine" { "/unused" } else { "/etc/ssl/certs" };
            cluster.apply(&format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {class}-{name}}}, spec: {{runtimeClassName: {class},
                    containers: [{{name: main, image: 'http:test', ports: [{{containerPort: 8080}}],
                        volumeMounts: [{{name: trusted, mountPath: {place}}}]}}],
                    volumes: [{{name: trusted, {volume}}}]}}}}"
            ));
            pods.push((format!("{class}-{name}"), name == "wrong"));
        }
    }
    for (pod, is_wrong) in pods {
        cluster.wait_for(&format!("pod/{pod}"), "condition=Ready");
        let ip = cluster.kubectl(&["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"]);
        let curl = |path: &str| {
            let url = format!("http://{ip}:8080/fetchs/{}{path}", server.address);
            let mut command = std::process::Command::new("curl");
            command.args(["-sS", "-m", "20", &url]);
            let output = cluster.inside(|| command.output()).unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        // the program's own certificates are those that count, where it has some
        // (13 is WASI's number for a certificate that is not trusted. Until it is known what a pod may do it is refused connections.)
        let expected = if is_wrong { "no answer: error 13\n" } else { "{}" };
        eventually(&format!("{pod} gets {expected}"), || match curl("/v2/") {
            answer if answer == expected => Ok(()),
            answer => Err(answer),
        });
    }
}

/// Two HTTP components behind a service, a policy that lets in only pods with a label, and a native server that they ask by name.
pub(crate) const HTTP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: http:test
        ports: [{name: http, containerPort: 80}]
        env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        startupProbe: {tcpSocket: {port: http}, periodSeconds: 1}
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /live, port: 80}, periodSeconds: 1}
        resources: {limits: {memory: 128Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8000, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec: {containers: [{name: echo, image: "echo:v1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {may: enter}}
spec: {containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec: {containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]}
"#;

#[test]
fn components_answer_http() {
    let cluster = Cluster::start();
    cluster.drop_image("http.tar", &archive(&component("http"), Packing::Artifact, "http:test"));
    cluster.apply(HTTP);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    for pod in ["echo", "client", "stranger"] {
        cluster.wait_for(&format!("pod/{pod}"), "condition=Ready");
    }
    let ask = |from: &str, path: &str| {
        let url = format!("http://web:8000{path}");
        cluster.try_kubectl(Kubectl::Newest, &["exec", from, "--", "timeout", "5", "wget", "-qO-", &url])
    };
    let answer = |path: &str| {
        eventually(path, || {
            let output = ask("client", path);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        })
    };
    assert_eq!(answer("/some/path"), "hello from wasm /some/path\n");
    // a short answer goes with its length, and a long one as it is made
    let script = "head -c 200000 /dev/urandom | base64 > /tmp/sent
        wget -qO /tmp/got --post-file=/tmp/sent http://web:8000/echo && cmp /tmp/sent /tmp/got
        wget -qSO /dev/null http://web:8000/short 2>&1";
    let heads = cluster.kubectl(&["exec", "client", "--", "timeout", "20", "sh", "-ec", script]).to_lowercase();
    let length = format!("content-length: {}", "hello from wasm /short\n".len());
    assert!(heads.contains(&length) && !heads.contains("chunked"), "{heads}");
    // each of the pods answers, with its own environment, and each request has an instance of its own
    let mut seen = std::collections::BTreeSet::new();
    eventually("both pods answer", || {
        seen.insert(answer("/env/POD"));
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert!((0..5).all(|_| answer("/count") == "1\n"));
    let servers = runners(&cluster);
    assert_eq!(servers.len(), 2, "{servers:?}");
    servers.into_iter().for_each(assert_knows_its_pages);
    // it asks a native server by the name of its service
    assert!(answer("/fetch/echo/path").contains("version=v1 host=echo"), "{}", answer("/fetch/echo/path"));
    // a request that traps, or wants all memory, is the only one that suffers
    assert!(!ask("client", "/trap").status.success());
    std::thread::scope(|s| {
        let asking: Vec<_> = (0..4).map(|_| s.spawn(|| answer("/memory"))).collect();
        asking.into_iter().for_each(|one| assert!(one.join().unwrap().ends_with(" MiB\n")));
    });
    assert_eq!(answer("/x"), "hello from wasm /x\n");
    answer("/log/a-line-of-it");
    eventually("what it says is in a log", || {
        let log = cluster.kubectl(&["logs", "-l", "app=web", "--tail=-1"]);
        if log.contains("a-line-of-it") && log.contains("/trap") { Ok(()) } else { Err(log) }
    });
    // the pods were neither restarted nor unready
    let pods = cluster.get(&["pods", "-l", "app=web"]);
    for pod in pods["items"].as_array().unwrap() {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["status"]);
    }
    // policies hold for them
    assert!(ask("stranger", "/").status.success());
    cluster.apply(
        r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {may: enter}}}]}]
"#,
    );
    eventually("strangers are kept out", || match ask("stranger", "/").status.success() {
        false => Ok(()),
        true => Err("not yet".to_owned()),
    });
    assert_eq!(answer("/y"), "hello from wasm /y\n");
    // they end when they are told to, with all that is well
    let name = pods["items"][0]["metadata"]["name"].as_str().unwrap();
    let begun = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", name]);
    assert!(begun.elapsed().as_secs() < 25, "told to end, not killed");
}
