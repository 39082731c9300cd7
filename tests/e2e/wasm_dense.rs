//! Pods of the class `wasm-dense`: WebAssembly programs that share one process with those of other pods.

use crate::harness::wasm::{Packing, archive, assert_knows_its_pages, component};
use crate::harness::{Cluster, Footprint, Kubectl, eventually};
use crate::wasm::{HTTP, cluster_with, ended, pod as plain_pod, waits};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// As [`plain_pod`], of the class.
fn pod(name: &str, image: &str, args: &str, more: &str) -> String {
    plain_pod(name, image, args, more).replace("spec:\n", "spec:\n  runtimeClassName: wasm-dense\n")
}

/// The processes that run dense programs.
fn hosts(cluster: &Cluster) -> Vec<i32> {
    let named = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "edge-dense")
    };
    // one process is in a cgroup of each hierarchy
    let all: BTreeSet<i32> = cluster.processes().into_iter().filter(named).collect();
    all.into_iter().collect()
}

/// The cgroups of pods and of hosts.
fn cgroups(cluster: &Cluster) -> Vec<PathBuf> {
    let below = |dir: &PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let all = cluster.pod_cgroups();
    let own = all.iter().flat_map(below).filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("pod"));
    let classes = ["burstable", "besteffort", "wasm-dense"];
    let of_classes = all.iter().flat_map(|dir| classes.map(|class| dir.join(class)));
    let of_classes = of_classes.flat_map(|dir| below(&dir).collect::<Vec<_>>()).filter(|path| path.is_dir());
    own.chain(of_classes).collect()
}

fn status(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&["pod", name])["status"]["containerStatuses"][0].clone()
}

#[test]
fn dense_programs_are_pods_like_others() {
    let cluster = cluster_with(&["hello"]);
    let more = ", env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]";
    let args = "[args, env, POD, env, HOSTNAME, clock, random, stderr, oops, exit, '3']";
    for name in ["one", "two"] {
        cluster.apply(&pod(name, "hello:test", args, more));
        let end = ended(&cluster, name);
        assert_eq!((&end["exitCode"], &end["reason"]), (&3.into(), &"Error".into()), "{end}");
        let log = cluster.kubectl(&["logs", name]);
        for line in [format!("POD={name}"), format!("HOSTNAME={name}"), "random differs".into(), "oops".into()] {
            assert!(log.lines().any(|l| l == line), "{line}: {log}");
        }
    }
    assert_eq!(hosts(&cluster).len(), 1);
    cluster.apply(&pod("traps", "hello:test", "[trap]", ""));
    let end = ended(&cluster, "traps");
    assert_eq!((&end["exitCode"], &end["reason"]), (&134.into(), &"Error".into()), "{end}");
    assert!(end["message"].as_str().unwrap().contains("unreachable"), "{end}");
    let more = ", terminationMessagePath: /tmp/last-words";
    cluster.apply(&pod("last", "hello:test", "[write, /tmp/last-words, farewell, exit, '5']", more));
    assert_eq!(ended(&cluster, "last")["message"], "farewell");
    // restarted as others are
    cluster.apply(&pod("again", "hello:test", "[I end, exit, '4']", "").replace("Never", "Always"));
    cluster.wait_for("pod/again", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CrashLoopBackOff");
    assert_eq!(cluster.kubectl(&["logs", "again", "--previous"]), "I end\n");

    // what it cannot have is refused in words
    for (name, more, words) in [
        ("user", ", securityContext: {runAsUser: 1000}", "runAsUser"),
        ("typed", ", stdin: true", "standard input"),
        ("probed", ", readinessProbe: {exec: {command: [cat, /x]}}", "readiness probe executes a command"),
    ] {
        cluster.apply(&pod(name, "hello:test", "[sleep, '100000']", more));
        let (message, described) = waits(&cluster, name, "CreateContainerConfigError");
        assert!(message.contains(words) && described.contains(words), "{message}\n{described}");
    }
    cluster.apply(&pod("native", "busybox:test", "[sleep, '1000']", ""));
    assert!(waits(&cluster, "native", "CreateContainerConfigError").0.contains("RuntimeClass"));
    cluster.apply(&pod("sleeps", "hello:test", "[sleep, '1000000']", ""));
    cluster.wait_for("pod/sleeps", "condition=Ready");
    let output = cluster.try_kubectl(Kubectl::Newest, &["exec", "sleeps", "--", "sh"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no command can be executed"), "{output:?}");
}

#[test]
fn dense_programs_have_volumes_and_nothing_beside() {
    let cluster = cluster_with(&["hello"]);
    let host = cluster.dir.join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "of the host").unwrap();
    std::os::unix::fs::chown(&host, Some(65532), None).unwrap();
    cluster.apply(
        &r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: green}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {password: letmein}
---
apiVersion: v1
kind: Pod
metadata: {name: owner}
spec:
  runtimeClassName: wasm-dense
  containers:
  - {name: main, image: "hello:test", args: [cat, /secret/password, sleep, "1000000"], volumeMounts: [{name: secret, mountPath: /secret}]}
  volumes: [{name: secret, secret: {secretName: secret}}]
---
apiVersion: v1
kind: Pod
metadata: {name: volumes}
spec:
  runtimeClassName: wasm-dense
  restartPolicy: Never
  initContainers:
  - {name: first, image: "hello:test", args: [write, /shared/first, from the first], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: hello:test
    args: [cat, /map/color, cat, /shared/first, write, /shared/second, of the second, cat, /shared/second, write, /map/color, nothing,
      write, /ro/file, nothing, write, /own, mine, cat, /own, cat, /var/run/secrets/kubernetes.io/serviceaccount/namespace, cat, /etc/hosts,
      cat, /kept/file, write, /kept/file, nothing, write, /host/out, written, cat, /../../etc/shadow, cat, /proc/1/status, cat, /proc/self/fd/9/password, ls, /]
    volumeMounts:
    - {name: map, mountPath: /map}
    - {name: shared, mountPath: /shared}
    - {name: shared, mountPath: /ro, readOnly: true}
    - {name: host, mountPath: /host}
    - {name: host, mountPath: /kept, readOnly: true}
  volumes:
  - {name: map, configMap: {name: settings}}
  - {name: shared, emptyDir: {}}
  - {name: host, hostPath: {path: HOST}}
"#
        .replace("HOST", host.to_str().unwrap()),
    );
    cluster.wait_for("pod/owner", "condition=Ready");
    cluster.wait_for("pod/volumes", "jsonpath={.status.phase}=Failed");
    let log = cluster.kubectl(&["logs", "volumes", "-c", "main"]);
    for text in ["green", "from the first", "of the second", "mine", "default", "volumes\n", "of the host"] {
        assert!(log.contains(text), "{text:?}: {log}");
    }
    for path in
        ["/ro/file", "/map/color", "/kept/file", "/../../etc/shadow", "/proc/1/status", "/proc/self/fd/9/password"]
    {
        assert!(log.contains(&format!("{path}: ")), "{path}: {log}");
    }
    assert!(!log.contains("root:") && !log.contains("letmein") && !log.contains("nothing"), "{log}");
    assert_eq!(std::fs::read_to_string(host.join("out")).unwrap(), "written");
    assert_eq!(std::fs::read_to_string(host.join("file")).unwrap(), "of the host");
    assert!(log.lines().any(|l| l == "shared") && !log.lines().any(|l| l == "guest"), "{log}");
    let args = "[write, note, mine, cat, /tmp/note, cat, /etc/hostname]";
    cluster.apply(&pod("works", "hello:test", args, ", workingDir: /tmp"));
    assert_eq!(ended(&cluster, "works")["exitCode"], 0);
    assert_eq!(cluster.kubectl(&["logs", "works"]), "mineworks\n");
    let more = ", securityContext: {readOnlyRootFilesystem: true}";
    cluster.apply(&pod("strict", "hello:test", "[write, /own, nothing]", more));
    assert_eq!(ended(&cluster, "strict")["exitCode"], 1);

    // when they are gone, so is all of them
    cluster.kubectl(&["delete", "pod", "--all"]);
    eventually("nothing is left of the pods", || {
        let left = cgroups(&cluster);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = cluster.dir.to_str().unwrap();
        let mounts: Vec<&str> = mounts.lines().filter(|l| l.contains(ours) && l.contains("/pods/")).collect();
        let hosts = hosts(&cluster);
        let remains = std::fs::read_dir(cluster.data_dir().join("run/pods/dense")).into_iter().flatten().count();
        if left.is_empty() && mounts.is_empty() && hosts.is_empty() && remains == 0 {
            Ok(())
        } else {
            Err(format!("{left:?} {mounts:?} {hosts:?} {remains}"))
        }
    });
}

#[test]
fn dense_programs_do_not_get_more_than_their_share() {
    let cluster = cluster_with(&["greedy", "hello"]);
    cluster.apply(&pod("memory", "greedy:test", "[memory, '1024']", ", resources: {limits: {memory: 64Mi}}"));
    let end = ended(&cluster, "memory");
    assert_eq!((&end["reason"], &end["exitCode"]), (&"OOMKilled".into(), &137.into()), "{end}");
    assert!(cluster.kubectl(&["describe", "pod", "memory"]).contains("OOMKilled"));
    cluster.apply(&pod("enough", "greedy:test", "[memory, '32']", ", resources: {limits: {memory: 64Mi}}"));
    assert_eq!(ended(&cluster, "enough")["exitCode"], 0);
    cluster.apply(&pod("files", "greedy:test", "[files]", ""));
    let end = ended(&cluster, "files");
    assert_eq!((&end["reason"], &end["exitCode"]), (&"Error".into(), &134.into()), "{end}");
    assert!(end["message"].as_str().unwrap().contains("table"), "{end}");

    // more endless loops than there are processors, of which one has a limit: others get on, and each is counted
    for (name, more) in [("limited", ", resources: {limits: {cpu: 100m}}"), ("s1", ""), ("s2", ""), ("s3", "")] {
        cluster.apply(&pod(name, "greedy:test", "[spin]", more));
    }
    for name in ["limited", "s1", "s2", "s3"] {
        cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    }
    cluster.apply(&pod("greets", "hello:test", "[]", ""));
    assert_eq!(ended(&cluster, "greets")["reason"], "Completed");
    let usage = |name: &str| {
        let summary = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"]);
        let summary: Value = serde_json::from_str(&summary).unwrap();
        let pods = summary["pods"].as_array().unwrap();
        let container = pods.iter().find(|p| p["podRef"]["name"] == name).map(|p| p["containers"][0].clone());
        let container = container.unwrap_or_default();
        let nanos = container["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap_or(0);
        (nanos, container["memory"]["workingSetBytes"].as_u64().unwrap_or(0))
    };
    eventually("its use is told, as autoscalers read it", || match (usage("s1"), usage("limited")) {
        ((cpu, memory), (limited, _)) if cpu > 500_000_000 && memory > 65_535 && limited > 50_000_000 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (before, begun) = (usage("limited").0, std::time::Instant::now());
    std::thread::sleep(std::time::Duration::from_secs(5));
    let used = u128::from(usage("limited").0 - before);
    // what the figures are collected at, and one turn
    assert!(used <= begun.elapsed().as_nanos() / 10 + 1_200_000_000, "{used}");
    let begun = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", "limited", "s1", "s2", "s3", "--grace-period=40"]);
    assert!(begun.elapsed().as_secs() < 30, "told to end, not killed");
}

#[test]
fn dense_components_answer_http() {
    let cluster = Cluster::start();
    cluster.drop_image("http.tar", &archive(&component("http"), Packing::Artifact, "http:test"));
    cluster.apply(&HTTP.replace(
        "    spec:\n      containers:\n      - name: web",
        "    spec:\n      runtimeClassName: wasm-dense\n      containers:\n      - name: web",
    ));
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    for pod in ["echo", "client", "stranger"] {
        cluster.wait_for(&format!("pod/{pod}"), "condition=Ready");
    }
    assert_eq!(cluster.get(&["deploy", "web"])["spec"]["template"]["spec"]["runtimeClassName"], "wasm-dense");
    assert_eq!(hosts(&cluster).len(), 1);
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
    let mut seen = BTreeSet::new();
    eventually("both pods answer", || {
        seen.insert(answer("/env/POD"));
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert!((0..5).all(|_| answer("/count") == "1\n"));
    hosts(&cluster).into_iter().for_each(assert_knows_its_pages);
    // it asks a native server by the name of its service, from its own pod's network
    assert!(answer("/fetch/echo/path").contains("version=v1 host=echo"), "{}", answer("/fetch/echo/path"));
    let output = ask("client", "/fetch/nobody.nowhere/path");
    assert!(!output.status.success(), "a name that means nothing: {output:?}");
    // requests that trap, or want all memory, are the only ones that suffer
    assert!(!ask("client", "/trap").status.success());
    assert!(answer("/memory").ends_with(" MiB\n"));
    assert_eq!(answer("/x"), "hello from wasm /x\n");
    answer("/log/a-line-of-it");
    eventually("what it says is in a log", || {
        let log = cluster.kubectl(&["logs", "-l", "app=web", "--tail=-1"]);
        if log.contains("a-line-of-it") && log.contains("/trap") { Ok(()) } else { Err(log) }
    });
    let pods = cluster.get(&["pods", "-l", "app=web"]);
    for pod in pods["items"].as_array().unwrap() {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["status"]);
    }
    // policies hold for them, in both directions
    assert!(ask("stranger", "/").status.success());
    cluster.apply(
        r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {may: enter}}}]}]
  egress: []
"#,
    );
    eventually("strangers are kept out", || match ask("stranger", "/").status.success() {
        false => Ok(()),
        true => Err("not yet".to_owned()),
    });
    assert_eq!(answer("/y"), "hello from wasm /y\n");
    // by its address, so that it is no matter of looking up a name, and a port to which there is no connection yet
    let echo = cluster.get(&["pod", "echo"])["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(!ask("client", &format!("/fetch/{echo}:8080/")).status.success(), "they do not get out either");
    let name = pods["items"][0]["metadata"]["name"].as_str().unwrap();
    let begun = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", name]);
    assert!(begun.elapsed().as_secs() < 25, "told to end, not killed");
}

#[test]
fn dense_programs_outlive_edge_and_not_their_host() {
    let mut cluster = cluster_with(&["hello"]);
    cluster.drop_image("http.tar", &archive(&component("http"), Packing::Artifact, "http:test"));
    cluster.apply(&pod("stays", "hello:test", "[begun, sleep, '100000000']", "").replace("Never", "Always"));
    cluster.apply(&pod("ends", "hello:test", "[sleep, '3000', trap]", ""));
    cluster.apply(&pod("serves", "http:test", "[]", ", ports: [{containerPort: 8080}]").replace("Never", "Always"));
    for name in ["stays", "ends", "serves"] {
        cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    }
    let ip = cluster.get(&["pod", "serves"])["status"]["podIP"].as_str().unwrap().to_owned();
    let address = std::net::SocketAddr::new(ip.parse().unwrap(), 8080);
    let answers = |cluster: &Cluster| cluster.inside(|| crate::harness::http_get(address, "/x"));
    eventually("the server answers", || answers(&cluster));
    let (host, before) = (hosts(&cluster), status(&cluster, "stays"));
    cluster.stop(Signal::SIGKILL);
    // one of them ends meanwhile, and another one answers
    answers(&cluster).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(4));
    cluster.launch();
    let end = ended(&cluster, "ends");
    assert!(end["exitCode"] == 134 && end["message"].as_str().unwrap().contains("unreachable"), "{end}");
    assert_eq!(status(&cluster, "stays")["containerID"], before["containerID"]);
    assert_eq!(status(&cluster, "stays")["restartCount"], 0);
    answers(&cluster).unwrap();
    // a new one goes to the same host
    cluster.apply(&pod("new", "hello:test", "[sleep, '100000000']", ""));
    cluster.wait_for("pod/new", "condition=Ready");
    assert_eq!(hosts(&cluster), host);

    // without the host none of them is, and a new one has them all again
    kill(Pid::from_raw(host[0]), Signal::SIGKILL).unwrap();
    for name in ["stays", "serves"] {
        eventually(&format!("pod {name} is restarted"), || {
            let now = status(&cluster, name);
            let last = &now["lastState"]["terminated"];
            let told = last["message"].as_str().is_some_and(|message| message.contains("dense WebAssembly programs"));
            if now["restartCount"] == 1 && now["ready"] == true && told && last["exitCode"] == 137 {
                Ok(())
            } else {
                Err(now.to_string())
            }
        });
    }
    eventually("the server answers again", || answers(&cluster));
    assert_eq!(ended(&cluster, "new")["exitCode"], 137, "one that never restarts has failed");
    assert_ne!(hosts(&cluster), host);
    assert_eq!(hosts(&cluster).len(), 1);
    // and tearing down leaves none
    cluster.stop(Signal::SIGTERM);
    assert!(cluster.tear_down().status.success());
    assert_eq!(hosts(&cluster), Vec::<i32>::new());
}

#[test]
fn dense_programs_go_on_in_the_old_host_after_an_upgrade() {
    let mut cluster = cluster_with(&["hello"]);
    cluster.apply(&pod("old", "hello:test", "[sleep, '100000000']", ""));
    cluster.wait_for("pod/old", "condition=Ready");
    let (old, before) = (hosts(&cluster), status(&cluster, "old"));
    assert_eq!(old.len(), 1);
    cluster.stop(Signal::SIGTERM);
    // another version is another file
    let upgraded = cluster.dir.join("edge-upgraded");
    std::fs::copy(&cluster.binary, &upgraded).unwrap();
    cluster.binary = upgraded;
    cluster.launch();
    cluster.apply(&pod("new", "hello:test", "[sleep, '100000000']", ""));
    cluster.wait_for("pod/new", "condition=Ready");
    assert_eq!(status(&cluster, "old")["containerID"], before["containerID"]);
    assert_eq!(status(&cluster, "old")["state"], before["state"]);
    let mut both = hosts(&cluster);
    both.retain(|host| *host != old[0]);
    assert_eq!(both.len(), 1, "a new one, beside the old one");
    // which ends with its last program
    cluster.kubectl(&["delete", "pod", "old", "--grace-period=5"]);
    eventually("the old host ends", || match hosts(&cluster) {
        left if left == both => Ok(()),
        left => Err(format!("{left:?}, and not {both:?}")),
    });
    assert_eq!(status(&cluster, "new")["restartCount"], 0);
}

#[test]
fn a_dense_host_that_hangs_is_replaced() {
    let cluster = cluster_with(&["hello"]);
    cluster.apply(&pod("stays", "hello:test", "[sleep, '100000000']", "").replace("Never", "Always"));
    cluster.apply(&pod("goes", "hello:test", "[sleep, '100000000']", ""));
    for name in ["stays", "goes"] {
        cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    }
    let host = hosts(&cluster);
    kill(Pid::from_raw(host[0]), Signal::SIGSTOP).unwrap();
    // figures are told without it
    assert!(cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"]).contains("goes"));
    let begun = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", "goes", "--grace-period=1"]);
    assert!(begun.elapsed().as_secs() < 40, "{:?}", begun.elapsed());
    eventually("the other one goes on in a new host", || {
        let now = status(&cluster, "stays");
        let told = now["lastState"]["terminated"]["message"].as_str().is_some_and(|text| text.contains("has ended"));
        if now["restartCount"] == 1 && now["ready"] == true && told { Ok(()) } else { Err(now.to_string()) }
    });
    let now = hosts(&cluster);
    assert!(now.len() == 1 && now != host, "{now:?} after {host:?}");
    assert!(cluster.log().contains("the host of dense programs hangs"));
}

#[test]
fn dense_servers_listen_in_every_network() {
    let families = ["--cluster-cidr=10.42.0.0/16,fd42::/56", "--service-cidr=10.43.0.0/16,fd43::/112"];
    let cluster = Cluster::start_with(&families);
    cluster.drop_image("http.tar", &archive(&component("http"), Packing::Artifact, "http:test"));
    cluster.apply(&pod("both", "http:test", "[]", ", ports: [{containerPort: 8080}]"));
    let of_host = pod("host", "http:test", "[]", ", ports: [{containerPort: 8085}]");
    cluster.apply(&of_host.replace("spec:\n", "spec:\n  hostNetwork: true\n"));
    for name in ["both", "host"] {
        cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    }
    let answers = |ip: &str, port: u16, path: &str| {
        let address = std::net::SocketAddr::new(ip.parse().unwrap(), port);
        eventually(&format!("{address} answers"), || cluster.inside(|| crate::harness::http_get(address, path)))
    };
    let ips = cluster.get(&["pod", "both"])["status"]["podIPs"].clone();
    let ips: Vec<&str> = ips.as_array().unwrap().iter().filter_map(|ip| ip["ip"].as_str()).collect();
    assert!(ips.len() == 2 && ips[1].starts_with("fd42:"), "{ips:?}");
    let known = |cluster: &Cluster| {
        let mut command = std::process::Command::new("ip");
        command.args(["neigh", "show", "dev", "edge0", "nud", "permanent"]);
        String::from_utf8(cluster.inside(|| command.output()).unwrap().stdout).unwrap()
    };
    for ip in &ips {
        assert!(known(&cluster).contains(&format!("{ip} ")), "the bridge need not ask for {ip}: {}", known(&cluster));
        assert!(answers(ip, 8080, "/x").contains("hello from wasm /x\n"));
    }
    // its requests go by both families, too
    let fetched = answers(ips[0], 8080, &format!("/fetch/[{}]:8080/y", ips[1]));
    assert!(fetched.contains("hello from wasm /y\n"), "{fetched}");
    // in the machine's own network
    assert!(answers("127.0.0.1", 8085, "/x").contains("hello from wasm /x\n"));
    let fetched = answers(&cluster.ip.to_string(), 8085, &format!("/fetch/{}:8080/z", ips[0]));
    assert!(fetched.contains("hello from wasm /z\n"), "{fetched}");
    let at = cluster.get(&["pod", "host"])["status"]["podIP"].clone();
    assert_eq!(at, cluster.ip.to_string());
    cluster.kubectl(&["delete", "pod", "both", "--grace-period=5"]);
    eventually("the bridge forgets the pod", || match known(&cluster) {
        known if ips.iter().any(|ip| known.contains(&format!("{ip} "))) => Err(known),
        _ => Ok(()),
    });
}

#[test]
fn of_a_hundred_pods_that_have_come_and_gone_nothing_is_left() {
    let cluster = cluster_with(&["hello"]);
    cluster.drop_image("http.tar", &archive(&component("http"), Packing::Artifact, "http:test"));
    let round = |pods: usize| {
        let of = |i: usize| match i % 4 {
            0 => pod(&format!("p{i}"), "hello:test", "[sleep, '1000000']", ""),
            1 => plain_pod(&format!("p{i}"), "hello:test", "[sleep, '1000000']", ""),
            2 => pod(&format!("p{i}"), "http:test", "[]", ""),
            _ => plain_pod(&format!("p{i}"), "http:test", "[]", ""),
        };
        cluster.apply(&(0..pods).map(of).collect::<Vec<_>>().join("---\n"));
        cluster.kubectl(&["wait", "pod", "--all", "--for=condition=Ready", "--timeout=60s"]);
        cluster.kubectl(&["delete", "pod", "--all", "--grace-period=1"]);
    };
    let counted = |of: &Footprint| (of.cgroups, of.mounts, of.links, of.directories, of.monitors);
    // what is only made by the first ones belongs to nobody's leftovers
    round(4);
    let before = eventually("they are gone", || match cluster.footprint() {
        now if now.monitors == 0 && now.directories == 0 && now.mounts == 0 => Ok(now),
        now => Err(format!("{now:?}")),
    });
    (0..4).for_each(|_| round(24));
    let after = eventually("all is as before", || match cluster.footprint() {
        now if counted(&now) == counted(&before) => Ok(now),
        now => Err(format!("{now:?} after {before:?}")),
    });
    // descriptors of others' connections come and go; what is told of pods is kept for those who watch, as far as there is room for it
    assert!(after.descriptors <= before.descriptors + 10, "{after:?} after {before:?}");
    assert!(after.memory <= before.memory + 64 * 1024, "{after:?} after {before:?}");
}
