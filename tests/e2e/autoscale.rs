//! What nodes and pods use, and autoscalers that follow it.

use crate::harness::wasm::{Packing, archive, module};
use crate::harness::{Agent, Cluster, Kubectl, eventually, success};
use serde_json::Value;
use std::fs;

fn with_wasm(cluster: &Cluster, name: &str) {
    cluster.drop_image(&format!("{name}.tar"), &archive(&module(name), Packing::Artifact, &format!("{name}:test")));
}

/// A pod of one container with the limit of 300 thousandths of a processor.
fn pod(name: &str, image: &str, class: &str, command: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!("\n  runtimeClassName: {class}") };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:{class}\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: '{image}', {command}, resources: {{limits: {{cpu: 300m}}}}}}\n"
    )
}

/// The row of a name in a table, without the name.
fn row(table: &str, name: &str) -> Result<Vec<String>, String> {
    let found = table.lines().find(|line| line.split_whitespace().next() == Some(name));
    let words = |line: &str| line.split_whitespace().skip(1).map(str::to_owned).collect();
    found.map(words).ok_or_else(|| table.to_owned())
}

/// `12m` as a number.
fn millis(cell: &str) -> u64 {
    cell.strip_suffix('m').unwrap().parse().unwrap()
}

#[test]
fn kubectl_top_shows_nodes_and_pods_of_all_kinds() {
    let cluster = Cluster::start();
    // at once after the start, with nothing to compare with yet
    let nodes = cluster.kubectl(&["top", "nodes"]);
    let node = row(&nodes, "node-1").unwrap();
    assert!(node.len() == 4 && node[1].ends_with('%') && node[2].ends_with("Mi"), "{nodes}");
    with_wasm(&cluster, "greedy");
    let spin = "command: [sh, -c, 'while :; do :; done']";
    let pods = [
        pod("busy", "busybox:test", "", spin),
        pod("idle", "busybox:test", "", "command: [sleep, '100000']"),
        pod("module", "greedy:test", "", "args: [spin]"),
        pod("dense", "greedy:test", "wasm-dense", "args: [spin]"),
    ];
    cluster.apply(&pods.concat());
    let agent = Agent::start(&cluster, 1);
    cluster.apply(&pod("away", "busybox:test", "", spin).replace("spec:", "spec:\n  nodeName: node-2"));
    for name in ["busy", "idle", "module", "dense", "away"] {
        cluster.wait_for(&format!("pod/{name}"), "condition=Ready");
    }
    let told = eventually("what they use is seen", || {
        let table = String::from_utf8(cluster.try_kubectl(Kubectl::Newest, &["top", "pods"]).stdout).unwrap();
        for name in ["busy", "module", "dense", "away"] {
            let used = millis(&row(&table, name)?[0]);
            // others are at work on this machine, so it may be less than the limit
            if !(50..=400).contains(&used) {
                return Err(format!("{name}: {table}"));
            }
        }
        row(&table, "idle").map(|idle| (table, idle))
    });
    let (table, idle) = told;
    assert!(millis(&idle[0]) < 50, "{table}");
    assert_eq!(table.lines().count(), 6, "{table}");
    let old = cluster.kubectl_as(Kubectl::Debian, &["top", "pod", "busy", "--containers"]);
    assert_eq!(row(&old, "busy").unwrap()[0], "main", "{old}");
    let sorted = cluster.kubectl(&["top", "pods", "--sort-by=cpu", "-l", "app in (idle, dense)", "--no-headers"]);
    let names: Vec<&str> = sorted.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(names, ["dense", "idle"]);
    let nodes = cluster.kubectl(&["top", "nodes"]);
    assert!(row(&nodes, "node-2").unwrap()[1].ends_with('%'), "{nodes}");

    // without kubectl, and as the API tells it
    let own = |args: &[&str]| {
        let mut command = cluster.edge_command(&[&["kubectl", "top"], args].concat());
        success(&args.join(" "), command.env("PATH", "/nowhere").output().unwrap())
    };
    let header = |table: &str| table.lines().next().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(header(&own(&["nodes"])), header(&nodes));
    assert_eq!(header(&own(&["pods", "-A"])), header(&cluster.kubectl(&["top", "pods", "-A"])));
    assert!(millis(&row(&own(&["pod", "busy"]), "busy").unwrap()[0]) >= 50);
    assert!(cluster.kubectl(&["api-versions"]).lines().any(|l| l == "metrics.k8s.io/v1beta1"));
    let listed = cluster.kubectl(&["get", "pods.metrics.k8s.io", "busy"]);
    assert_eq!(header(&listed), ["NAME", "CPU", "MEMORY", "WINDOW"]);
    assert!(cluster.kubectl(&["get", "pods"]).contains("Running"), "the word means pods still");
    let raw = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics/resource"]);
    assert!(raw.contains("pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"dense\"}"), "{raw}");

    // who may see all pods may see what they use
    cluster.kubectl(&["create", "rolebinding", "looks", "--clusterrole=view", "--user=looker"]);
    eventually("the role is whole", || {
        let may =
            cluster.try_kubectl(Kubectl::Newest, &["auth", "can-i", "list", "pods.metrics.k8s.io", "--as=looker"]);
        if may.status.success() { Ok(()) } else { Err("not yet".to_owned()) }
    });
    cluster.kubectl(&["top", "pods", "--as=looker"]);
    let refused = cluster.try_kubectl(Kubectl::Newest, &["top", "nodes", "--as=looker"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("forbidden"));

    // a node that is away is unknown, and holds nobody up
    drop(agent);
    let nodes = eventually("the node is not told any more", || {
        let nodes = cluster.kubectl(&["top", "nodes"]);
        let away = row(&nodes, "node-2")?;
        if away[0] == "<unknown>" { Ok(nodes) } else { Err(nodes) }
    });
    assert!(row(&nodes, "node-1").unwrap()[1].ends_with('%'), "{nodes}");
}

/// A Deployment whose pods compute while `/load/on` exists, and its autoscaler.
fn follower(
    cluster: &Cluster,
    (name, image, class): (&str, &str, &str),
    command: &str,
    (request, most): (&str, u32),
) -> String {
    let load = cluster.dir.join("load");
    format!(
        r#"---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      {class}
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: '{image}'
        {command}
        resources: {{requests: {{cpu: {request}}}, limits: {{cpu: 300m}}}}
        volumeMounts: [{{name: load, mountPath: /load}}]
      volumes: [{{name: load, hostPath: {{path: {}}}}}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: {name}}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: {name}}}
  maxReplicas: {most}
  metrics: [{{type: Resource, resource: {{name: cpu, target: {{type: Utilization, averageUtilization: 50}}}}}}]
  behavior: {{scaleDown: {{stabilizationWindowSeconds: 0}}}}
"#,
        load.display()
    )
}

fn condition(autoscaler: &Value, kind: &str) -> (String, String) {
    let all = autoscaler["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|c| c["type"] == kind).unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn replicas(cluster: &Cluster, name: &str, want: u64) -> Value {
    eventually(&format!("{name} has {want} pods"), || {
        let deployment = cluster.get(&["deployment", name]);
        let hpa = cluster.get(&["hpa", name]);
        let is = deployment["spec"]["replicas"] == want && hpa["status"]["desiredReplicas"] == want;
        if is { Ok(hpa) } else { Err(format!("{}\n{}", deployment["spec"]["replicas"], hpa["status"])) }
    })
}

#[test]
fn deployments_follow_their_load_up_and_down() {
    // soon enough for a test; and what a pod uses counts from its first second
    let cluster = Cluster::start_with(&[
        "--horizontal-pod-autoscaler-sync-period=1s",
        "--horizontal-pod-autoscaler-cpu-initialization-period=0",
    ]);
    with_wasm(&cluster, "hello");
    let load = cluster.dir.join("load");
    fs::create_dir(&load).unwrap();
    fs::write(load.join("on"), "").unwrap();
    let command = "command: [sh, -c, 'while :; do if [ -e /load/on ]; then i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; else sleep 1; fi; done']";
    let program = "args: [busy, /load/on]";
    cluster.apply(&follower(&cluster, ("native", "busybox:test", ""), command, ("100m", 3)));
    // what all dense programs get together is little on a machine where others are at work
    cluster.apply(&follower(&cluster, ("dense", "hello:test", "runtimeClassName: wasm-dense"), program, ("20m", 2)));
    cluster.apply(
        r#"
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: lost}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: none}, maxReplicas: 2}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: still}
spec:
  selector: {matchLabels: {app: still}}
  template:
    metadata: {labels: {app: still}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'busybox:test', command: [sleep, '100000']}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: still}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: still}
  minReplicas: 2
  maxReplicas: 4
  metrics: [{type: Pods, pods: {metric: {name: hits}, target: {type: AverageValue, averageValue: "10"}}}]
"#,
    );
    let hpa = replicas(&cluster, "native", 3);
    assert_eq!(condition(&hpa, "ScalingActive"), ("True".into(), "ValidMetricFound".into()));
    assert!(hpa["status"]["lastScaleTime"].is_string(), "{hpa}");
    let percent = hpa["status"]["currentMetrics"][0]["resource"]["current"]["averageUtilization"].as_u64().unwrap();
    assert!(percent > 55, "{hpa}");
    let hpa = replicas(&cluster, "dense", 2);
    assert_eq!(condition(&hpa, "ScalingActive").0, "True");
    cluster.wait_for("deployment/dense", "condition=Available");
    let events = cluster.kubectl(&["get", "events", "--field-selector=reason=SuccessfulRescale"]);
    assert!(events.contains("reason: cpu resource utilization (percentage of request) above target"), "{events}");
    let table = cluster.kubectl(&["get", "hpa", "native", "--no-headers"]);
    assert!(table.contains("%/50%") && table.contains("Deployment/native"), "{table}");
    // as the first version of the API shows it
    let first = cluster.get(&["horizontalpodautoscalers.v1.autoscaling", "native"]);
    assert_eq!(first["spec"]["targetCPUUtilizationPercentage"], 50);
    assert!(first["status"]["currentCPUUtilizationPercentage"].as_u64().unwrap() > 50, "{first}");

    // what cannot be followed says why
    let lost = cluster.get(&["hpa", "lost"]);
    assert_eq!(condition(&lost, "AbleToScale"), ("False".into(), "FailedGetScale".into()), "{lost}");
    let still = replicas(&cluster, "still", 2);
    assert_eq!(condition(&still, "AbleToScale").0, "True", "at least two, whatever is known");
    eventually("no metric is found", || {
        let hpa = cluster.get(&["hpa", "still"]);
        let active = condition(&hpa, "ScalingActive");
        if active == ("False".into(), "FailedGetPodsMetric".into()) { Ok(()) } else { Err(hpa["status"].to_string()) }
    });
    let described = cluster.kubectl(&["describe", "hpa", "still"]);
    assert!(described.contains("no known available metric versions found"), "{described}");
    let refused = cluster.try_kubectl(Kubectl::Newest, &["autoscale", "deployment", "still", "--min=3", "--max=2"]);
    assert!(!refused.status.success());

    // and down again; switched off by hand it stays off
    fs::remove_file(load.join("on")).unwrap();
    cluster.kubectl(&["scale", "deployment", "still", "--replicas=0"]);
    let hpa = replicas(&cluster, "native", 1);
    assert_eq!(condition(&hpa, "AbleToScale").0, "True", "{hpa}");
    replicas(&cluster, "dense", 1);
    eventually("it is disabled", || {
        let hpa = cluster.get(&["hpa", "still"]);
        let active = condition(&hpa, "ScalingActive");
        if active.1 == "ScalingDisabled" { Ok(()) } else { Err(hpa["status"].to_string()) }
    });
    assert_eq!(cluster.get(&["deployment", "still"])["spec"]["replicas"], 0);
}
