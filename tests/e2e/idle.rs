//! Idle is idle: when nothing happens, nothing is asked and nothing is written.

use crate::harness::{Agent, Cluster, Kubectl, eventually};
use std::collections::BTreeMap;
use std::time::Duration;

/// In this time leases are renewed twice.
const WINDOW: Duration = Duration::from_secs(22);
/// After what was started, things may settle for so many windows.
const WINDOWS: usize = 4;

/// One of everything that somebody looks after.
const OBJECTS: &str = r#"
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 2, selector: {matchLabels: {app: web}},
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "echo:v1", readinessProbe: {httpGet: {port: 8080}, periodSeconds: 3}}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: by-hand}, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: by-hand}, subsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 80}]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: nobody}, spec: {selector: {app: nobody}, ports: [{port: 80}]}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db}, spec: {serviceName: db, selector: {matchLabels: {app: db}},
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: "busybox:test", command: [sleep, "100000"]}]}}}}
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: each}, spec: {selector: {matchLabels: {app: each}},
  template: {metadata: {labels: {app: each}}, spec: {containers: [{name: each, image: "busybox:test", command: [sleep, "100000"]}]}}}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: once}, spec: {template: {spec: {restartPolicy: Never,
  containers: [{name: once, image: "busybox:test", command: ["true"]}]}}}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: yearly}, spec: {schedule: "0 0 1 1 *", jobTemplate: {spec: {template: {spec:
  {restartPolicy: Never, containers: [{name: yearly, image: "busybox:test", command: ["true"]}]}}}}}}
---
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}}
---
{apiVersion: v1, kind: ResourceQuota, metadata: {name: all}, spec: {hard: {pods: "20", configmaps: "10"}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web}, spec: {podSelector: {matchLabels: {app: web}}, ingress: []}}
---
{apiVersion: v1, kind: Pod, metadata: {name: nowhere}, spec: {nodeSelector: {no: such}, containers: [{name: c, image: "busybox:test"}]}}
"#;

/// How often the API was asked, by what was asked.
fn requests(cluster: &Cluster) -> BTreeMap<String, u64> {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]);
    let mut all = BTreeMap::new();
    for line in metrics.lines().filter(|l| l.starts_with("apiserver_request_total{")) {
        let (labels, count) = line.rsplit_once(' ').unwrap();
        all.insert(labels.to_owned(), count.parse().unwrap());
    }
    assert!(!all.is_empty(), "{metrics}");
    all
}

/// Bytes that a process has had written to disk.
fn written(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

/// Watches are opened again from time to time, leases are renewed, and this test looks at the metrics.
fn is_expected(labels: &str) -> bool {
    let has = |what: &str| labels.contains(what);
    has("verb=\"WATCH\"") || (has("resource=\"leases\"") && has("verb=\"PATCH\"")) || has("resource=\"\"")
}

#[test]
fn nothing_is_asked_and_nothing_is_written() {
    let cluster = Cluster::start_on_disk();
    cluster.apply(OBJECTS);
    for what in ["deployment/web", "daemonset/each", "statefulset/db"] {
        cluster.kubectl(&["rollout", "status", what, "--timeout=120s"]);
    }
    cluster.wait_for("job/once", "condition=Complete");
    // discovery and the like are asked for by kubectl itself
    assert!(cluster.try_kubectl(Kubectl::Newest, &["get", "--raw", "/metrics"]).status.success());
    let mut found = String::new();
    for _ in 0..WINDOWS {
        let (asked, bytes) = (requests(&cluster), written(cluster.pid()));
        std::thread::sleep(WINDOW);
        let more = |(labels, count): (String, u64)| {
            let before = asked.get(&labels).copied().unwrap_or(0);
            (count > before && !is_expected(&labels)).then(|| format!("{} more of {labels}", count - before))
        };
        let bytes = written(cluster.pid()) - bytes;
        let asked: Vec<String> = requests(&cluster).into_iter().filter_map(more).collect();
        if asked.is_empty() && bytes == 0 {
            return;
        }
        found = format!("{bytes} bytes were written; {asked:#?}");
    }
    panic!("an idle cluster is not idle: {found}");
}

/// An agent remembers what its services, policies and names are made of: it writes that once, and not what only looks new.
#[test]
fn an_agent_writes_nothing_either() {
    let cluster = Cluster::start_on_disk();
    let agent = Agent::start(&cluster, 1);
    cluster.apply(OBJECTS);
    for what in ["deployment/web", "daemonset/each", "statefulset/db"] {
        cluster.kubectl(&["rollout", "status", what, "--timeout=120s"]);
    }
    cluster.wait_for("job/once", "condition=Complete");
    let remembered = agent.dir.join("data/agent/memory/services.json.gz");
    eventually("services are remembered", || std::fs::metadata(&remembered).map_err(|e| e.to_string()));
    let mut bytes = 0;
    for window in 0..2 * WINDOWS {
        // heartbeats and labels change objects, but nothing that is remembered
        cluster.kubectl(&["annotate", "--overwrite", "pod", "nowhere", &format!("window={window}")]);
        let before = written(agent.pid());
        std::thread::sleep(WINDOW);
        bytes = written(agent.pid()) - before;
        if bytes == 0 {
            return;
        }
    }
    panic!("an idle agent is not idle: {bytes} bytes were written");
}
