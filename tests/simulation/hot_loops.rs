//! Nothing that a user can write keeps the controllers busy: idle is idle, and what cannot be done is not tried all the time.

use crate::harness::{Cluster, eventually};
use crate::hollow::{Fleet, Options, Wire};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(4);
/// What was begun may settle for so many windows.
const WINDOWS: usize = 4;
/// What fails is tried again with back-off: so often at most in a window that begins when the first attempts are over.
pub(crate) const RETRIES: u64 = 6;

/// What nobody can do, or only once.
const IMPOSSIBLE: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: odd}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: odd, name: nobodys, labels: {app: wanted-by-two}}, spec: {containers: [{name: c, image: "i:1"}]}}
---
{apiVersion: apps/v1, kind: ReplicaSet, metadata: {namespace: odd, name: one}, spec: {replicas: 2, selector: {matchLabels: {app: wanted-by-two}},
  template: {metadata: {labels: {app: wanted-by-two}}, spec: {containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: apps/v1, kind: ReplicaSet, metadata: {namespace: odd, name: two}, spec: {replicas: 2, selector: {matchLabels: {app: wanted-by-two}},
  template: {metadata: {labels: {app: wanted-by-two}}, spec: {containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: odd, name: selects-others}, spec: {replicas: 1, selector: {matchLabels: {app: wanted-by-two}},
  template: {metadata: {labels: {app: wanted-by-two}}, spec: {containers: [{name: c, image: "i:2"}]}}}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {namespace: odd, name: ordinals}, spec: {replicas: 1, serviceName: s, selector: {matchLabels: {app: wanted-by-two}},
  template: {metadata: {labels: {app: wanted-by-two}}, spec: {containers: [{name: c, image: "i:2"}]}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: odd, name: nowhere}, spec: {replicas: 3, selector: {matchLabels: {app: nowhere}},
  template: {metadata: {labels: {app: nowhere}}, spec: {nodeSelector: {no: such}, containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: odd, name: alone}, spec: {replicas: 6, selector: {matchLabels: {app: alone}},
  template: {metadata: {labels: {app: alone}}, spec: {containers: [{name: c, image: "i:1"}], affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [
    {topologyKey: kubernetes.io/os, labelSelector: {matchLabels: {app: alone}}}]}}}}}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {namespace: odd, name: never}, spec: {schedule: "0 0 31 2 *", jobTemplate: {spec: {template: {spec:
  {restartPolicy: Never, containers: [{name: c, image: "i:1"}]}}}}}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {namespace: odd, name: orphan, ownerReferences: [
  {apiVersion: v1, kind: ConfigMap, name: gone, uid: 00000000-0000-0000-0000-000000000001}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {namespace: odd, name: of-an-unknown-kind, ownerReferences: [
  {apiVersion: example.org/v1, kind: Gadget, name: gone, uid: 00000000-0000-0000-0000-000000000002}]}}
---
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {namespace: odd, name: nobody}, spec: {minAvailable: 50%, selector: {matchLabels: {app: no-such}}}}
---
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {namespace: odd, name: first}, spec: {minAvailable: 1, selector: {matchLabels: {app: nowhere}}}}
---
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {namespace: odd, name: second}, spec: {maxUnavailable: 0, selector: {matchLabels: {app: nowhere}}}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: odd, name: all}, spec: {selector: {app: wanted-by-two}, ports: [{port: 80, targetPort: no-such-port}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: tight}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: tight, name: web}, spec: {replicas: 3, selector: {matchLabels: {app: web}},
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: v1, kind: ResourceQuota, metadata: {namespace: tight, name: three}, spec: {hard: {pods: "3"}}}
"#;

/// How often each controller has worked, and how often the API was asked for something else than a watch or a lease.
async fn counters(wire: &Wire) -> BTreeMap<String, u64> {
    let metrics = wire.text("/metrics").await.unwrap();
    let is_expected = |labels: &str| {
        let has = |what: &str| labels.contains(what);
        has("verb=\"WATCH\"") || has("resource=\"leases\"") || has("resource=\"\"")
    };
    let counts = metrics.lines().filter_map(|line| {
        let (labels, count) = line.rsplit_once(' ')?;
        let counted = labels.starts_with("controller_runtime_reconcile_total{")
            || (labels.starts_with("apiserver_request_total{") && !is_expected(labels));
        counted.then(|| (labels.to_owned(), count.parse().unwrap()))
    });
    let counts: BTreeMap<String, u64> = counts.collect();
    assert!(counts.keys().any(|k| k.contains("controller=\"deployment\"")), "{metrics}");
    counts
}

/// What was counted in a window.
async fn window(wire: &Wire) -> BTreeMap<String, u64> {
    let before = counters(wire).await;
    tokio::time::sleep(WINDOW).await;
    let after = counters(wire).await;
    let more = after.into_iter().map(|(k, n)| {
        let n = n - before.get(&k).copied().unwrap_or(0);
        (k, n)
    });
    more.filter(|(_, n)| *n > 0).collect()
}

/// In one of several windows nothing is counted more often than allowed.
pub(crate) async fn calms_down(wire: &Wire, allowed: u64, what: &str) {
    let mut seen = BTreeMap::new();
    for _ in 0..WINDOWS {
        seen = window(wire).await;
        if seen.values().all(|n| *n <= allowed) {
            return;
        }
    }
    panic!("{what}: {seen:#?}");
}

pub(crate) fn ordinary(number: usize) -> Value {
    let labels = json!({"app": format!("app-{number}")});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": format!("app-{number}")},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_and_impossible_things_wake_no_controller() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    let client = crate::common::connect(&cluster).await;
    let fleet = Fleet::start(client.clone(), Options::default(), 5).await;
    let wire = Wire::new(client);
    for number in 0..100 {
        wire.create("/apis/apps/v1/namespaces/default/deployments", &ordinary(number)).await.unwrap();
        if number % 5 == 0 {
            let service = json!({"metadata": {"name": format!("app-{number}")},
                "spec": {"selector": {"app": format!("app-{number}")}, "ports": [{"port": 80}]}});
            wire.create("/api/v1/namespaces/default/services", &service).await.unwrap();
        }
    }
    fleet.until(|counts| counts.running == 200).await;
    calms_down(&wire, 0, "an idle cluster is not idle").await;

    tokio::task::block_in_place(|| {
        cluster.apply(IMPOSSIBLE);
        cluster.kubectl(&["-n", "tight", "rollout", "status", "deployment/web", "--timeout=60s"]);
        let used = ["-n", "tight", "get", "quota", "three", "-o", "jsonpath={.status.used.pods}"];
        eventually("the quota is counted", || match cluster.kubectl(&used).as_str() {
            "3" => Ok(()),
            other => Err(other.to_owned()),
        });
        cluster.kubectl(&["-n", "tight", "set", "image", "deployment/web", "c=i:2"]);
    });
    calms_down(&wire, RETRIES, "what is impossible is tried all the time").await;
    tokio::task::block_in_place(|| each_is_told(&cluster));
}

/// Each impossible thing ends in its condition.
fn each_is_told(cluster: &Cluster) {
    let get = |namespace: &str, what: &str, path: &str| {
        cluster.kubectl(&["-n", namespace, "get", what, "-o", &format!("jsonpath={path}")])
    };
    let failure = r#"{.status.conditions[?(@.type=="ReplicaFailure")].reason}"#;
    assert_eq!(get("tight", "deployment/web", failure), "FailedCreate");
    assert_eq!(
        get("tight", "deployment/web", "{.status.availableReplicas}"),
        "3",
        "a rollout that fails takes nothing away"
    );
    let unschedulable = r#"{.items[*].status.conditions[?(@.type=="PodScheduled")].reason}"#;
    let reasons =
        cluster.kubectl(&["-n", "odd", "get", "pods", "-l", "app=nowhere", "-o", &format!("jsonpath={unschedulable}")]);
    assert_eq!(reasons, "Unschedulable Unschedulable Unschedulable");
    let running =
        ["-n", "odd", "get", "pods", "-l", "app=alone", "--field-selector=status.phase=Running", "-o", "name"];
    assert_eq!(cluster.kubectl(&running).lines().count(), 1, "all nodes are of one domain");
    let owner = "{.metadata.ownerReferences[*].kind}";
    assert_eq!(get("odd", "pod/nobodys", owner), "ReplicaSet", "one of those who select it has it");
    let shared = ["-n", "odd", "get", "pods", "-l", "app=wanted-by-two", "-o", "name"];
    assert_eq!(
        cluster.kubectl(&shared).lines().count(),
        6,
        "two of each ReplicaSet, one of the others, and nothing else"
    );
    let maps = cluster.kubectl(&["-n", "odd", "get", "configmaps", "-o", "name"]);
    assert!(!maps.contains("configmap/orphan") && maps.contains("configmap/of-an-unknown-kind"), "{maps}");
}
