//! On machines of their own: cgroup version 2, and a power switch. See [`crate::harness::vm`].

use crate::harness::disk::{Disk, Random};
use crate::harness::vm::Machine;
use crate::harness::writers::{self, Knowledge};
use crate::harness::{Kubectl, PATIENCE, SURVIVOR, eventually};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

const LIMITED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "dd if=/dev/zero of=/held/by-memory bs=1M count=16 && echo ready && exec sleep 100000"]
    resources: {requests: {cpu: 250m, memory: 32Mi}, limits: {cpu: 500m, memory: 64Mi}}
    readinessProbe: {exec: {command: [test, -s, /held/by-memory]}, periodSeconds: 1}
    volumeMounts: [{name: held, mountPath: /held}]
  - name: side
    image: busybox:test
    tty: true
    command: [sleep, "100000"]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 200m, memory: 32Mi}}
  volumes: [{name: held, emptyDir: {medium: Memory}}]
---
apiVersion: v1
kind: Pod
metadata: {name: privileged}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "busybox:test", command: [sleep, "100000"], securityContext: {privileged: true}}
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "tail -c 300m /dev/zero & wait"]
    resources: {limits: {memory: 32Mi}}
"#;

/// Where a pod's cgroup is, and those of its containers by name.
fn cgroups(vm: &Machine, pod: &str) -> (String, HashMap<String, String>) {
    let pod = vm.get(&["pod", pod]);
    let directory = format!("/sys/fs/cgroup/kubepods/burstable/pod{}", pod["metadata"]["uid"].as_str().unwrap());
    let containers = pod["status"]["containerStatuses"].as_array().unwrap().iter().map(|status| {
        let id = status["containerID"].as_str().unwrap().trim_start_matches("edge://");
        (status["name"].as_str().unwrap().to_owned(), format!("{directory}/{id}"))
    });
    (directory.clone(), containers.collect())
}

/// Id and restart count of every container.
fn container_ids(vm: &Machine) -> Vec<Value> {
    let pods = vm.get(&["pods"]);
    let statuses = pods["items"].as_array().unwrap().iter().map(|p| &p["status"]["containerStatuses"]);
    statuses.flat_map(|s| s.as_array().unwrap()).map(|s| json!([s["containerID"], s["restartCount"]])).collect()
}

#[test]
fn cgroup_version_2() {
    let mut vm = Machine::new();
    vm.boot(&format!("driver=raw,cache.no-flush=on,file.driver=file,file.filename={}", vm.disk().display()));
    vm.wait_for("node/node-1", "condition=Ready");
    vm.apply(LIMITED);
    vm.kubectl(&["wait", "pod/limited", "pod/privileged", "--for=condition=Ready", "--timeout=60s"]);

    limits_are_in_the_cgroups(&vm);
    usage_is_what_the_kernel_counts(&vm);
    devices_are_restricted(&vm);

    vm.wait_for("pod/hungry", "jsonpath={.status.phase}=Failed");
    let state = &vm.get(&["pod", "hungry"])["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&state["reason"], &state["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{state}");

    let before = container_ids(&vm);
    vm.shell("kill -9 $(cat /run/edge.pid)");
    vm.wait_for_start();
    assert_eq!(container_ids(&vm), before);
    let cgroup = vm.kubectl(&["exec", "limited", "-c", "main", "--", "cat", "/proc/self/cgroup"]);
    assert_eq!(cgroup, "0::/\n");
    usage_is_what_the_kernel_counts(&vm);

    vm.kubectl(&["delete", "pod", "--all", "--timeout=60s"]);
    // their grace was none, so the objects went first
    // `find` fails when a directory goes while it looks
    let pods = "find /sys/fs/cgroup/kubepods -name 'pod*' 2>/dev/null || true";
    eventually("the pods' cgroups are gone", || match vm.shell(pods) {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}

#[test]
fn a_clock_that_is_set_while_pods_run() {
    let mut vm = Machine::new();
    vm.clock = Some("2000-01-01T00:00:00");
    vm.boot(&format!("driver=raw,cache.no-flush=on,file.driver=file,file.filename={}", vm.disk().display()));
    assert_eq!(vm.shell("date +%Y"), "2000\n");
    let pod = |name: &str| {
        format!(
            r#"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0,
            containers: [{{name: main, image: "busybox:test", command: [sleep, "100000"]}}]}}}}"#
        )
    };
    let token_holds = |pod: &str| {
        let file = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        eventually("the pod's token holds", || {
            let out = vm.try_kubectl(Kubectl::Newest, &["exec", pod, "--", "cat", file]);
            let header = format!("Authorization: Bearer {}", String::from_utf8_lossy(&out.stdout).trim());
            let said = vm.curl(&["-H", &header], "/api");
            if said.contains("APIVersions") { Ok(()) } else { Err(said) }
        });
    };
    vm.apply(&pod("before"));
    vm.wait_for("pod/before", "condition=Ready");
    token_holds("before");
    let container = |pod: &str| vm.get(&["pod", pod])["status"]["containerStatuses"][0]["containerID"].clone();
    let id = container("before");
    // what NTP does, some time after the start
    vm.shell("date -s '2028-06-01 12:00:00'");
    // its token ended thirty years ago; it is not waited for the end of its hour
    token_holds("before");
    vm.apply(&pod("after"));
    vm.wait_for("pod/after", "condition=Ready");
    token_holds("after");
    vm.wait_for("node/node-1", "condition=Ready");
    assert_eq!(container("before"), id);
    let made = vm.kubectl(&["get", "pod", "after", "-o", "jsonpath={.metadata.creationTimestamp}"]);
    assert!(made.starts_with("2028-06-01"), "{made}");
}

fn limits_are_in_the_cgroups(vm: &Machine) {
    let (pod, containers) = cgroups(vm, "limited");
    let values =
        |directory: &str| vm.shell(&format!("cd {directory} && cat cpu.weight cpu.max memory.max memory.oom.group"));
    assert_eq!(values(&containers["main"]), "35\n50000 100000\n67108864\n1\n");
    assert_eq!(values(&containers["side"]), "17\n20000 100000\n33554432\n1\n");
    assert_eq!(values(&pod), "45\n70000 100000\n100663296\n0\n");
    // what a program in the container sees of it
    let own = vm.kubectl(&["exec", "limited", "-c", "main", "--", "cat", "/sys/fs/cgroup/memory.max"]);
    assert_eq!(own, "67108864\n");
}

fn usage_is_what_the_kernel_counts(vm: &Machine) {
    let (pod, containers) = cgroups(vm, "limited");
    let cpu = |directory: &str| -> u64 {
        vm.shell(&format!("sed -n 's/^usage_usec //p' {directory}/cpu.stat")).trim().parse::<u64>().unwrap() * 1000
    };
    let read = || [cpu(&pod), cpu(&containers["main"])];
    let before = read();
    let summary: Value =
        serde_json::from_str(&vm.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"])).unwrap();
    let after = read();
    let named = |list: &Value, name: &str| -> Value {
        let names = |v: &&Value| v["name"] == name || v["podRef"]["name"] == name;
        list.as_array().unwrap().iter().find(names).unwrap_or_else(|| panic!("no {name}: {list}")).clone()
    };
    let limited = named(&summary["pods"], "limited");
    for (index, usage) in [limited.clone(), named(&limited["containers"], "main")].iter().enumerate() {
        let nanos = usage["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap();
        assert!((before[index]..=after[index]).contains(&nanos), "{before:?} {nanos} {after:?}");
        let memory = usage["memory"]["workingSetBytes"].as_u64().unwrap();
        assert!((16 << 20..64 << 20).contains(&memory), "{usage}");
        assert!(usage["memory"]["usageBytes"].as_u64().unwrap() >= memory, "{usage}");
        // the 16 MiB are in a tmpfs, and so no resident memory of a process
        assert!(usage["memory"]["rssBytes"].as_u64().unwrap() < 16 << 20, "{usage}");
    }
    assert!(limited["process_stats"]["process_count"].as_u64().unwrap() >= 2, "{limited}");
    let metrics = vm.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics/resource"]);
    assert!(
        metrics
            .contains("container_memory_working_set_bytes{container=\"main\",namespace=\"default\",pod=\"limited\"}")
    );
}

fn devices_are_restricted(vm: &Machine) {
    let numbers = vm.shell("tr ':' ' ' < /sys/class/block/vda/dev");
    let script = format!("mknod /disk b {numbers}\ndd if=/disk of=/dev/null bs=512 count=1");
    let exec = |pod: &str, script: &str| {
        vm.try_kubectl(Kubectl::Newest, &["exec", pod, "-c", "main", "--", "sh", "-ec", script])
    };
    let refused = exec("limited", &script);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("'/disk': Operation not permitted"), "{text}");
    for usual in ["head -c 8 /dev/urandom >/dev/null </dev/zero; echo >/dev/null", "exec 3<>/dev/ptmx; ls /dev/pts/0"] {
        let allowed = exec("limited", usual);
        assert!(allowed.status.success(), "{usual}: {}", String::from_utf8_lossy(&allowed.stderr));
    }
    let allowed = exec("privileged", &script);
    assert!(allowed.status.success(), "{}", String::from_utf8_lossy(&allowed.stderr));
}

const CUTS: usize = 4;
const WRITERS: usize = 6;

#[test]
fn no_acknowledged_write_is_lost_by_a_power_cut() {
    let mut random = Random::new();
    let mut vm = Machine::new();
    let disk = Disk::serve(&vm.disk());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let knowledge = Arc::new(Mutex::new(Knowledge::default()));
    vm.boot(&disk.blockdev());
    // or else nothing would ever be flushed, and the test would prove nothing
    assert_eq!(vm.shell("cat /sys/class/block/vda/queue/write_cache"), "write back\n");
    vm.apply(SURVIVOR);
    vm.wait_for("pod/survivor", "condition=Ready");

    let mut newest = 0;
    for cut in 0..CUTS {
        let flushes = disk.flushes();
        let client = runtime.block_on(crate::rust_client::client(&vm));
        let (acknowledged, writers) = writers::start(&runtime, &client, &knowledge, WRITERS, cut);
        let enough = 60 + random.below(60) as usize;
        eventually("writes are acknowledged", || match acknowledged.load(Ordering::Relaxed) {
            n if n >= enough => Ok(()),
            n => Err(format!("{n} of {enough}")),
        });
        newest = newest.max(runtime.block_on(writers::volatile_version(&client)));
        let losses = disk.fail_after(1 + random.below(20), &mut random);
        vm.cut_power();
        for writer in writers {
            runtime.block_on(async { tokio::time::timeout(PATIENCE, writer).await.unwrap().unwrap() });
        }
        let count = acknowledged.load(Ordering::Relaxed);
        eprintln!("cut {cut}: {count} writes acknowledged, {} flushes, {losses:?}", disk.flushes() - flushes);

        disk.restore_power();
        vm.boot(&disk.blockdev());
        let client = runtime.block_on(crate::rust_client::client(&vm));
        newest = runtime.block_on(writers::check(&client, &knowledge, newest));
        vm.wait_for("pod/survivor", "condition=Ready");
        let program = vm.kubectl(&["exec", "survivor", "--", "busybox", "echo", "whole"]);
        assert_eq!(program, "whole\n");
    }
}

/// A second machine in the first: a network namespace, with a link between the two. (busybox's own ip knows too little.)
const SECOND_NODE: &str = "
    /bin/ip netns add far
    /bin/ip link add near type veth peer name eth0 netns far
    /bin/ip addr add 10.99.0.1/24 dev near
    /bin/ip link set near up
    /bin/ip -n far link set lo up
    /bin/ip -n far addr add 10.99.0.2/24 dev eth0
    /bin/ip -n far link set eth0 up
    /bin/ip -n far route add default via 10.99.0.1
    mkdir -p /var/lib/far/agent/images /var/log
    cp /var/lib/edge/agent/images/busybox.tar /var/lib/far/agent/images/
    EDGE_TOKEN=$(cat /var/lib/edge/server/agent-token) setsid nsenter -n/run/netns/far edge agent \\
        --server https://10.99.0.1:6443 --data-dir /var/lib/far --config /dev/null --cgroup-root /far \\
        --node-name node-2 --pod-logs-dir /var/log/far </dev/null >/var/log/far.log 2>&1 &";

fn web(name: &str, node: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{nodeName: {node},
            terminationGracePeriodSeconds: 0, containers: [{{name: main, image: 'busybox:test', command: [sh, -c,
            'mkdir /www && head -c 300000 /dev/urandom > /www/large && hostname > /www/index.html && exec httpd -f -p 8080 -h /www'],
            readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}}}]}}}}"
    )
}

/// Two nodes, a pod on each, connected by `backend`: what is sent arrives, also when the way between them is bad.
fn two_nodes(backend: &str, link: &str, mtu: u32) {
    let mut vm = Machine::with(&format!("network: {backend}\n"), &["/usr/sbin/ip", "/usr/sbin/tc"]);
    vm.boot(&format!("driver=raw,cache.no-flush=on,file.driver=file,file.filename={}", vm.disk().display()));
    vm.shell(SECOND_NODE);
    for (node, pod) in [("node-1", "one"), ("node-2", "two")] {
        eventually("the node is there", || {
            let out = vm.try_kubectl(Kubectl::Newest, &["get", "node", node]);
            if out.status.success() { Ok(()) } else { Err(vm.shell("cat /var/log/far.log || true")) }
        });
        vm.wait_for(&format!("node/{node}"), "condition=Ready");
        vm.apply(&web(pod, node));
    }
    eventually("images are imported", || {
        let log = vm.shell("cat /var/log/far.log");
        if log.contains("busybox.tar") { Ok(()) } else { Err(log) }
    });
    let ip = |pod: &str| {
        vm.wait_for(&format!("pod/{pod}"), "condition=Ready");
        vm.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
    };
    let (one, two) = (ip("one"), ip("two"));
    let sh = |pod: &str, script: &str| vm.kubectl(&["exec", pod, "--", "sh", "-c", script]);
    let carried =
        || -> u64 { vm.shell(&format!("cat /sys/class/net/{link}/statistics/tx_bytes")).trim().parse().unwrap() };
    let before = carried();
    for (from, to, name) in [("one", &two, "two"), ("two", &one, "one")] {
        let got = eventually("a pod reaches the other", || {
            let fetch = ["exec", from, "--", "timeout", "10", "wget", "-qO-", &format!("http://{to}:8080/")];
            let out = vm.try_kubectl(Kubectl::Newest, &fetch);
            if out.status.success() {
                Ok(String::from_utf8_lossy(&out.stdout).into_owned())
            } else {
                Err(format!("{out:?}"))
            }
        });
        assert_eq!(got.trim(), name);
    }
    assert!(carried() > before, "the packets went by {link}");
    assert!(sh("one", "cat /sys/class/net/eth0/mtu").trim() == mtu.to_string());
    let wanted = sh("two", "md5sum < /www/large");
    vm.shell("/bin/tc qdisc add dev near root netem delay 20ms 15ms reorder 25% 50% loss 2%");
    for _ in 0..2 {
        assert_eq!(
            sh("one", &format!("wget -qO- http://{two}:8080/large | md5sum")),
            wanted,
            "late, out of order, some lost"
        );
    }
    vm.shell("/bin/tc qdisc del dev near root");
}

#[test]
fn wireguard_between_two_nodes() {
    two_nodes("wireguard", "edge-wg", 1440);
}

#[test]
fn vxlan_of_a_module_between_two_nodes() {
    two_nodes("vxlan", "edge-vxlan", 1450);
}
