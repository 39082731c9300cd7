//! Pods that have to go: because they have more on the disk than they may, or because the node has too little left. And what the kubelet tells of
//! what is stored.

use crate::harness::csi::{CsiDriver, HEALTH, STATS};
use crate::harness::space::Space;
use crate::harness::{Cluster, eventually};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What every pod's script ends with.
const STAY: &str = "trap 'exit 0' TERM; while true; do sleep 1; done";

impl Space<'_> {
    /// A pod with an emptyDir at `/data`, and further parts of its spec.
    fn filling(&self, name: &str, script: &str, more: Value) {
        let container = json!({"name": "main", "image": "busybox:test", "command": ["sh", "-c", format!("{script}; {STAY}")],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
        let mut spec = json!({"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string());
    }

    fn reaches(&self, what: &str, path: &str, want: &str) {
        eventually(&format!("{what} {path} is {want}"), || {
            let now = self.field(what, path);
            if now == want { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }

    /// Waits until a pod is evicted; gives the message.
    fn evicted(&self, pod: &str) -> String {
        let what = format!("pod/{pod}");
        self.reaches(&what, ".status.phase", "Failed");
        assert_eq!(self.field(&what, ".status.reason"), "Evicted");
        eventually("an event tells of it", || {
            let select = format!("--field-selector=involvedObject.name={pod},reason=Evicted");
            let events = self.kubectl(&["get", "events", &select, "-o", "jsonpath={.items[*].type}"]);
            if events == "Warning" { Ok(()) } else { Err(events) }
        });
        self.field(&what, ".status.message")
    }

    fn condition(&self, pod: &str, name: &str) -> String {
        self.field(&format!("pod/{pod}"), &format!(".status.conditions[?(@.type==\"{name}\")].reason"))
    }

    fn node_condition(&self, want: &str) {
        self.reaches("node/node-1", ".status.conditions[?(@.type==\"DiskPressure\")].status", want);
    }
}

#[test]
fn pods_that_have_too_much_on_the_disk_go() {
    // this machine may itself be short of anything
    let cluster = Cluster::start_with(&["--eviction-hard="]);
    let s = Space::new(&cluster, "full");
    let driver = CsiDriver::start(&cluster.data_dir().join("agent"), &cluster.dir.join("store"), "full.disk.test");
    driver.can(&[STATS, HEALTH]);
    let volume = |limit: &str| json!([{"name": "data", "emptyDir": {"sizeLimit": limit}}]);
    let fill = |mib: u32, file: &str| format!("dd if=/dev/zero of={file} bs=1M count={mib}");
    s.filling("hoarder", &fill(5, "/data/file"), json!({"volumes": volume("1Mi")}));
    s.filling("modest", &fill(1, "/data/file"), json!({"volumes": volume("2Mi")}));
    let container = |name: &str, limit: &str, script: &str| {
        json!({"name": name, "image": "busybox:test", "command": ["sh", "-c", format!("{script}; {STAY}")],
            "resources": {"limits": {"ephemeral-storage": limit}}})
    };
    let two = json!([container("small", "2Mi", &fill(4, "/file")), container("large", "100Mi", "true")]);
    s.filling("writer", "", json!({"containers": two, "volumes": []}));
    let links = "cd /data; ln -s / all; mkdir -p a/b; ln -s ../.. a/b/up";
    stored(&s, &driver, links);

    assert_eq!(s.evicted("hoarder"), "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". ");
    assert_eq!(s.evicted("writer"), "Container small exceeded its local ephemeral storage limit \"2Mi\". ");
    for pod in ["hoarder", "writer"] {
        assert_eq!(s.condition(pod, "DisruptionTarget"), "", "nobody disturbed them");
        assert_eq!(s.field(&format!("pod/{pod}"), ".status.containerStatuses[*].restartCount").replace(' ', ""), {
            if pod == "writer" { "00" } else { "0" }
        });
    }
    assert_eq!(s.field("pod/hoarder", ".status.containerStatuses[0].state.terminated.exitCode"), "137");
    assert_eq!(s.field("pod/modest", ".status.phase"), "Running");
    let metrics = s.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]);
    for line in [
        "kubelet_evictions{eviction_signal=\"emptydirfs.limit\"} 1",
        "kubelet_evictions{eviction_signal=\"ephemeralcontainerfs.limit\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} {metrics}");
    }
    // the files are gone, the objects go when somebody wants it
    s.kubectl(&["delete", "pod", "--all", "--grace-period=1", "--timeout=60s"]);
}

/// What is told of what is stored.
fn stored(s: &Space<'_>, driver: &CsiDriver, script: &str) {
    s.apply(
        &json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "full.disk.test"},
            "spec": {"attachRequired": false}})
        .to_string(),
    );
    s.apply(
        &json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "theirs"}, "spec": {
            "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "disks",
            "claimRef": {"namespace": "full", "name": "theirs"}, "csi": {"driver": "full.disk.test", "volumeHandle": "h"}}})
        .to_string(),
    );
    let claim = |name: &str, class: Value, volume: Value| {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}},
            "storageClassName": class, "volumeName": volume});
        let object =
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec});
        s.apply(&object.to_string());
    };
    claim("ours", Value::Null, Value::Null);
    claim("theirs", json!("disks"), json!("theirs"));
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    let container = json!({"name": "main", "image": "busybox:test",
        "command": ["sh", "-c", format!("{script}; dd if=/dev/zero of=/data/x bs=1M count=3; echo done; {STAY}")],
        "volumeMounts": [mount("data"), mount("ours"), mount("theirs")]});
    let of_claim = |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
    let volumes = json!([{"name": "data", "emptyDir": {}}, of_claim("ours"), of_claim("theirs")]);
    s.filling("keeper", "", json!({"containers": [container], "volumes": volumes}));
    eventually("the keeper has written all", || {
        let out = s.cluster.try_kubectl(crate::harness::Kubectl::Newest, &["-n", "full", "logs", "keeper"]);
        let log = String::from_utf8_lossy(&out.stdout).into_owned();
        if log.contains("done") { Ok(()) } else { Err(log) }
    });
    let pod = eventually("the pod is among the stats", || {
        let summary = s.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"]);
        let summary: Value = serde_json::from_str(&summary).unwrap();
        let pods = summary["pods"].as_array().into_iter().flatten();
        let mut of_keeper = pods.filter(|pod| pod["podRef"]["name"] == "keeper" && !pod["volume"].is_null());
        of_keeper.next().cloned().ok_or_else(|| summary.to_string())
    });
    let volume = |name: &str| pod["volume"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap();
    let (mib, number) = (1 << 20, |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{pod}")));
    let data = volume("data");
    assert!((3 * mib..4 * mib).contains(&number(&data["usedBytes"])), "{data}");
    assert_eq!(number(&data["inodesUsed"]), 6, "links count, and nothing behind them: {data}");
    assert!(number(&data["capacityBytes"]) > number(&data["availableBytes"]));
    assert!(number(&pod["ephemeral-storage"]["usedBytes"]) >= number(&data["usedBytes"]));
    let main = &pod["containers"][0];
    assert!(number(&main["rootfs"]["usedBytes"]) < mib && number(&main["logs"]["usedBytes"]) > 0, "{main}");
    assert_eq!(volume("ours")["pvcRef"], json!({"name": "ours", "namespace": "full"}));
    let theirs = volume("theirs");
    assert_eq!(theirs["volumeHealthStats"], json!({"abnormal": true}));
    assert_eq!((number(&theirs["usedBytes"]), number(&theirs["inodesFree"])), (30, 7));
    assert_eq!(driver.count("NodeGetVolumeStats h"), 1);
    let metrics = s.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]);
    for (name, claim, value) in [
        ("capacity_bytes", "theirs", Some("100")),
        ("available_bytes", "theirs", Some("70")),
        ("inodes", "theirs", Some("10")),
        ("inodes_used", "theirs", Some("3")),
        ("health_status_abnormal", "theirs", Some("1")),
        ("used_bytes", "ours", None),
        ("inodes_free", "ours", None),
    ] {
        let line = format!(
            "kubelet_volume_stats_{name}{{namespace=\"full\",persistentvolumeclaim=\"{claim}\"}} {}",
            value.unwrap_or("")
        );
        assert!(metrics.lines().any(|l| l.starts_with(&line)), "{line} {metrics}");
    }
    assert_eq!(driver.count("NodeGetVolumeStats h"), 1, "the answer is kept for a while");
    eventually("what is wrong is told", || {
        let select = "--field-selector=involvedObject.name=keeper,reason=VolumeConditionAbnormal";
        let told = s.kubectl(&["get", "events", select, "-o", "jsonpath={.items[*].message}"]);
        if told == "Volume theirs: it smells, the test says" { Ok(()) } else { Err(told) }
    });
}

#[test]
fn a_node_that_is_short_of_disk_lets_pods_go() {
    let flags = ["--eviction-hard=nodefs.available<40%", "--eviction-pressure-transition-period=1s"];
    let mut cluster = Cluster::prepare(&flags);
    let agent = cluster.data_dir().join("agent");
    mount(Some("tmpfs"), &agent, Some("tmpfs"), MsFlags::empty(), Some("size=400M")).unwrap();
    std::fs::create_dir(agent.join("images")).unwrap();
    std::fs::copy(crate::harness::busybox_archive(), agent.join("images/busybox.tar")).unwrap();
    cluster.launch();
    let killed = {
        let s = Space::new(&cluster, "short");
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 1000});
        s.apply(&class.to_string());
        let fill = |name: &str, mib: u32, class: Value| {
            let script = format!("dd if=/dev/zero of=/data/file bs=1M count={mib} && touch /data/full");
            s.filling(name, &script, json!({"priorityClassName": class}));
        };
        fill("low", 60, Value::Null);
        fill("high", 60, json!("high"));
        fill("critical", 60, json!("system-node-critical"));
        for pod in ["low", "high", "critical"] {
            full(&s, pod, "/data/full");
        }
        s.node_condition("False");
        // the lowest priority goes, and that is enough
        more(&s, "high", 65);
        let message = s.evicted("low");
        let begin = "The node was low on resource: ephemeral-storage. Threshold quantity: 167772162, available: ";
        assert!(message.starts_with(begin), "{message}");
        assert!(
            message.contains("Container main was using ")
                && message.contains(", request is 0, has larger consumption of ephemeral-storage. ")
        );
        assert_eq!(s.condition("low", "DisruptionTarget"), "TerminationByKubelet");
        s.node_condition("False");
        assert_eq!(s.field("pod/high", ".status.phase"), "Running");
        // the agent dies when it has decided
        let uid = s.field("pod/high", ".metadata.uid");
        more(&s, "critical", 190);
        let noted = agent.join("pods").join(&uid).join("evicted.json");
        let begun = Instant::now();
        while !noted.exists() {
            assert!(begun.elapsed() < crate::harness::PATIENCE, "nobody else goes");
            std::thread::sleep(Duration::from_millis(1));
        }
        uid
    };
    cluster.stop(Signal::SIGKILL);
    cluster.launch();
    let s = Space { cluster: &cluster, name: "short" };
    s.reaches("pod/high", ".status.phase", "Failed");
    assert_eq!(
        (s.field("pod/high", ".status.reason"), s.field("pod/high", ".metadata.uid")),
        ("Evicted".into(), killed.clone())
    );
    assert_eq!(s.field("pod/high", ".status.containerStatuses[0].restartCount"), "0");
    eventually("nothing of it runs", || {
        let of_pod = |root: std::path::PathBuf| root.join(format!("besteffort/pod{killed}"));
        let left: Vec<_> = cluster.pod_cgroups().into_iter().map(of_pod).filter(|dir| dir.exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert_eq!(s.field("pod/low", ".status.reason"), "Evicted");
    // who is critical stays, and comes; others do not
    s.node_condition("True");
    s.filling("late", "true", json!({"nodeName": "node-1"}));
    s.reaches("pod/late", ".status.phase", "Failed");
    assert_eq!(s.field("pod/late", ".status.reason"), "Evicted");
    assert_eq!(s.field("pod/late", ".status.message"), "Pod was rejected: The node had condition: [DiskPressure]. ");
    s.filling("system", "true", json!({"nodeName": "node-1", "priorityClassName": "system-node-critical"}));
    s.ready(&["system"]);
    assert_eq!(s.field("pod/critical", ".status.containerStatuses[0].restartCount"), "0");
    s.kubectl(&["exec", "critical", "--", "rm", "/data/more"]);
    s.node_condition("False");
    s.kubectl(&["delete", "pod", "--all", "--grace-period=1", "--timeout=60s"]);
}

fn full(s: &Space<'_>, pod: &str, file: &str) {
    eventually(&format!("{pod} has written {file}"), || {
        let out = s
            .cluster
            .try_kubectl(crate::harness::Kubectl::Newest, &["-n", "short", "exec", pod, "--", "test", "-e", file]);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
}

fn more(s: &Space<'_>, pod: &str, mib: u32) {
    s.kubectl(&["exec", pod, "--", "dd", "if=/dev/zero", "of=/data/more", "bs=1M", &format!("count={mib}")]);
}

#[test]
fn a_node_that_is_short_of_memory_lets_pods_go() {
    // so much is never free
    let cluster = Cluster::start_with(&["--eviction-hard=memory.available<99%"]);
    let s = Space::new(&cluster, "memory");
    s.reaches("node/node-1", ".status.conditions[?(@.type==\"MemoryPressure\")].status", "True");
    let on_node = |more: Value| {
        let mut spec = json!({"nodeName": "node-1"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    // nobody but the one without any requests is refused
    s.filling("best-effort", "true", on_node(json!({})));
    s.reaches("pod/best-effort", ".status.phase", "Failed");
    let message = s.field("pod/best-effort", ".status.message");
    assert_eq!(message, "Pod was rejected: The node had condition: [MemoryPressure]. ");
    let container = json!([{"name": "main", "image": "busybox:test", "command": ["sh", "-c", STAY],
        "resources": {"requests": {"memory": "4Ki"}}}]);
    s.filling("burstable", "", on_node(json!({"containers": container, "volumes": []})));
    s.filling("system", "true", on_node(json!({"priorityClassName": "system-cluster-critical"})));
    s.ready(&["system"]);
    let message = s.evicted("burstable");
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    let container = ["Container main was using ", ", request is 4Ki, has larger consumption of memory. "];
    assert!(container.iter().all(|part| message.contains(part)), "{message}");
    assert_eq!(s.condition("burstable", "DisruptionTarget"), "TerminationByKubelet");
    assert_eq!(s.field("pod/system", ".status.phase"), "Running");
}
