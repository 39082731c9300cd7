//! The controllers that keep the cluster in order, on one cluster at once: each flow has its own namespace or objects.

use crate::harness::{Cluster, Kubectl, eventually};
use serde_json::Value;

type Flow = fn(&Cluster);

#[test]
fn controllers_do_their_work() {
    let cluster = Cluster::start();
    let flows: [(&str, Flow); 12] = [
        ("aggregated roles", aggregated_roles),
        ("storage in use", storage_in_use),
        ("replication controllers", replication_controllers),
        ("a node is lost", a_node_is_lost),
        ("stateful sets", stateful_sets),
        ("daemon sets", daemon_sets),
        ("jobs", jobs),
        ("cron jobs", cron_jobs),
        ("budgets", budgets),
        ("quotas", quotas),
        ("what joiners read", what_joiners_read),
        ("tokens that last", tokens_that_last),
    ];
    std::thread::scope(|s| {
        for (name, flow) in flows {
            let cluster = &cluster;
            std::thread::Builder::new().name(name.to_owned()).spawn_scoped(s, move || flow(cluster)).unwrap();
        }
    });
}

#[test]
fn a_namespace_after_another_is_whole() {
    let cluster = Cluster::start();
    for name in ["first", "second", "third"] {
        cluster.kubectl(&["create", "namespace", name]);
        // before anything else happens that would wake the controllers
        for what in ["serviceaccount/default", "configmap/kube-root-ca.crt"] {
            eventually(&format!("{what} is in {name}"), || {
                let found = cluster.kubectl(&["get", what, "-n", name, "--ignore-not-found", "-o", "name"]);
                if found.is_empty() { Err("it is not".to_owned()) } else { Ok(()) }
            });
        }
        cluster.kubectl(&["delete", "namespace", name]);
    }
}

/// The names of the objects that a `kubectl get` finds.
fn names(cluster: &Cluster, args: &[&str]) -> Vec<String> {
    let list = cluster.get(args);
    list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn gone(cluster: &Cluster, what: &str, name: &str, namespace: &str) {
    eventually(&format!("{what} {name} goes"), || {
        let found = cluster.kubectl(&["get", what, name, "-n", namespace, "--ignore-not-found", "-o", "yaml"]);
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
}

fn aggregated_roles(cluster: &Cluster) {
    let may = |user: &str, verb: &str, resource: &str| {
        let args = ["auth", "can-i", verb, resource, "-n", "default", &format!("--as={user}")];
        String::from_utf8_lossy(&cluster.try_kubectl(Kubectl::Newest, &args).stdout).trim() == "yes"
    };
    for role in ["view", "edit", "admin"] {
        cluster.kubectl(&[
            "create",
            "rolebinding",
            &format!("{role}s"),
            &format!("--clusterrole={role}"),
            &format!("--user={role}er"),
        ]);
    }
    eventually("the roles are filled", || {
        let all = may("viewer", "list", "pods") && may("editer", "create", "pods") && may("adminer", "create", "roles");
        if all { Ok(()) } else { Err("not yet".into()) }
    });
    assert!(!may("viewer", "create", "pods") && !may("viewer", "list", "secrets"));
    assert!(may("editer", "list", "secrets") && !may("editer", "create", "roles"));
    assert!(may("adminer", "list", "configmaps"), "admin holds what edit and view hold");

    // a role of somebody's own becomes part of view, and of edit and admin by that
    cluster.apply(
        r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: templates-view, labels: {rbac.authorization.k8s.io/aggregate-to-view: "true"}}
rules: [{apiGroups: [""], resources: [podtemplates], verbs: [list]}]
"#,
    );
    eventually("the new rule reaches all", || {
        let all = ["viewer", "editer", "adminer"].iter().all(|u| may(u, "list", "podtemplates"));
        if all { Ok(()) } else { Err("not yet".into()) }
    });
    cluster.kubectl(&["delete", "clusterrole", "templates-view"]);
    eventually("the rule goes with its role", || {
        if may("adminer", "list", "podtemplates") { Err("still there".into()) } else { Ok(()) }
    });
}

fn storage_in_use(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "storage"]);
    cluster.apply(
        r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: used, namespace: storage}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: unused, namespace: storage}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: free}
spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], storageClassName: other, hostPath: {path: /tmp}}
---
apiVersion: v1
kind: Pod
metadata: {name: user, namespace: storage}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "busybox:test", command: [sleep, "100000"]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: used}}]
"#,
    );
    for claim in ["used", "unused"] {
        let finalizers = cluster.get(&["pvc", claim, "-n", "storage"])["metadata"]["finalizers"].clone();
        assert_eq!(finalizers, serde_json::json!(["kubernetes.io/pvc-protection"]));
    }
    cluster.kubectl(&["delete", "pvc", "used", "unused", "-n", "storage", "--wait=false"]);
    cluster.kubectl(&["delete", "pv", "free", "--wait=false"]);
    gone(cluster, "pvc", "unused", "storage");
    gone(cluster, "pv", "free", "storage");
    let kept = cluster.get(&["pvc", "used", "-n", "storage"]);
    assert!(kept["metadata"]["deletionTimestamp"].is_string(), "deleted, but kept for its pod: {kept}");
    cluster.kubectl(&["delete", "pod", "user", "-n", "storage"]);
    gone(cluster, "pvc", "used", "storage");
}

fn replication_controllers(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "rc"]);
    // two pods that nobody manages are adopted, so that only one more is made
    for name in ["one", "two"] {
        cluster.apply(&format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: rc, labels: {{app: old}}}}
spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: "busybox:test", command: [sleep, "100000"]}}]}}
"#
        ));
    }
    cluster.apply(
        r#"
apiVersion: v1
kind: ReplicationController
metadata: {name: old, namespace: rc}
spec:
  replicas: 3
  template:
    metadata: {labels: {app: old}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "busybox:test", command: [sleep, "100000"]}]}
"#,
    );
    cluster.kubectl(&["wait", "rc/old", "-n", "rc", "--for=jsonpath={.status.readyReplicas}=3", "--timeout=60s"]);
    let pods = names(cluster, &["pods", "-n", "rc"]);
    assert_eq!(pods.len(), 3, "{pods:?}");
    assert!(pods.contains(&"one".to_owned()) && pods.contains(&"two".to_owned()), "{pods:?}");
    let events = cluster.kubectl(&["get", "events", "-n", "rc", "-o", "jsonpath={.items[*].reason}"]);
    assert_eq!(events.matches("SuccessfulCreate").count(), 1, "{events}");
    cluster.kubectl(&["scale", "rc/old", "-n", "rc", "--replicas=1"]);
    cluster.kubectl(&["wait", "rc/old", "-n", "rc", "--for=jsonpath={.status.replicas}=1", "--timeout=60s"]);
    // a pod whose labels change is let go, and replaced
    let last = names(cluster, &["pods", "-n", "rc", "-l", "app=old"]).remove(0);
    cluster.kubectl(&["label", "pod", &last, "-n", "rc", "app=other", "--overwrite"]);
    eventually("another pod takes its place", || {
        let now = names(cluster, &["pods", "-n", "rc", "-l", "app=old"]);
        if now.len() == 1 && now[0] != last { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let released = cluster.get(&["pod", &last, "-n", "rc"]);
    assert!(released["metadata"]["ownerReferences"].is_null(), "{released}");
}

/// A node without a kubelet: it is registered and ready, and then never heard of again.
fn a_node_is_lost(cluster: &Cluster) {
    let keys = |node: &Value| -> Vec<String> {
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        taints.iter().map(|t| format!("{}:{}", t["key"].as_str().unwrap(), t["effect"].as_str().unwrap())).collect()
    };
    let node = "{apiVersion: v1, kind: Node, metadata: {name: lost}}";
    let made = cluster.kubectl_stdin(Kubectl::Newest, &["create", "-o", "json", "-f", "-"], node);
    assert_eq!(
        keys(&serde_json::from_slice(&made.stdout).unwrap()),
        ["node.kubernetes.io/not-ready:NoSchedule"],
        "new nodes get no pods"
    );
    let ready =
        r#"{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Test","message":"as a test says"}]}}"#;
    cluster.kubectl(&["patch", "node", "lost", "--subresource=status", "-p", ready]);
    eventually("a ready node gets pods", || {
        let taints = keys(&cluster.get(&["node", "lost"]));
        if taints.is_empty() { Ok(()) } else { Err(format!("{taints:?}")) }
    });
    cluster.kubectl(&["create", "namespace", "lost"]);
    for (name, seconds) in [("patient", "100000"), ("impatient", "1")] {
        cluster.apply(&format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: lost}}
spec:
  nodeName: lost
  containers: [{{name: c, image: "busybox:test"}}]
  tolerations:
  - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: {seconds}}}
"#
        ));
        let status = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
        cluster.kubectl(&["patch", "pod", name, "-n", "lost", "--subresource=status", "-p", status]);
    }
    cluster.wait_for("node/lost", "condition=Ready=Unknown");
    eventually("the node is tainted", || {
        let taints = keys(&cluster.get(&["node", "lost"]));
        let want = ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
        if want.iter().all(|w| taints.iter().any(|t| t == w)) { Ok(()) } else { Err(format!("{taints:?}")) }
    });
    cluster.kubectl(&["wait", "pod", "--all", "-n", "lost", "--for=condition=Ready=false", "--timeout=60s"]);
    eventually("the impatient pod is evicted", || {
        let pod = cluster.get(&["pod", "impatient", "-n", "lost"]);
        if pod["metadata"]["deletionTimestamp"].is_string() { Ok(()) } else { Err(pod.to_string()) }
    });
    let pod = cluster.get(&["pod", "impatient", "-n", "lost"]);
    let reasons = pod["status"]["conditions"].as_array().unwrap();
    assert!(reasons.iter().any(|c| c["reason"] == "DeletionByTaintManager"), "{pod}");
    assert!(cluster.get(&["pod", "patient", "-n", "lost"])["metadata"]["deletionTimestamp"].is_null());
    // the pods of a node that is gone for good go too
    cluster.kubectl(&["delete", "node", "lost"]);
    gone(cluster, "pod", "impatient", "lost");
    gone(cluster, "pod", "patient", "lost");
}

fn jsonpath(cluster: &Cluster, namespace: &str, what: &str, path: &str) -> String {
    cluster.kubectl(&["get", what, "-n", namespace, "-o", &format!("jsonpath={path}")])
}

/// Waits until a field of an object has a value.
fn reaches(cluster: &Cluster, namespace: &str, what: &str, path: &str, want: &str) {
    eventually(&format!("{what} {path} is {want}"), || {
        let now = jsonpath(cluster, namespace, what, path);
        if now == want { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

fn stateful_sets(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "sts"]);
    cluster.apply(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: sts}
spec:
  replicas: 3
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "echo:v1", readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}]
"#,
    );
    cluster.kubectl(&["rollout", "status", "sts/db", "-n", "sts", "--timeout=60s"]);
    assert_eq!(names(cluster, &["pods", "-n", "sts", "-l", "app=db"]), ["db-0", "db-1", "db-2"]);
    let ready = |pod: &str| {
        jsonpath(
            cluster,
            "sts",
            pod,
            "{.status.conditions[?(@.type=='Ready')].lastTransitionTime}{' '}{.metadata.creationTimestamp}",
        )
    };
    let times: Vec<String> = ["pod/db-0", "pod/db-1", "pod/db-2"].map(ready).to_vec();
    for pair in times.windows(2) {
        let (before, after) = (pair[0].split(' ').next().unwrap(), pair[1].split(' ').nth(1).unwrap());
        assert!(before <= after, "each is made when the one before it is ready: {times:?}");
    }
    let pod = cluster.get(&["pod", "db-1", "-n", "sts"]);
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&"db-1".into(), &"db".into()));
    assert_eq!(pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");

    // a pod that goes comes back as who it was
    cluster.kubectl(&["delete", "pod", "db-1", "-n", "sts"]);
    reaches(cluster, "sts", "sts/db", "{.status.readyReplicas}", "3");
    assert_ne!(cluster.get(&["pod", "db-1", "-n", "sts"])["metadata"]["uid"], pod["metadata"]["uid"]);

    // an update stops at the partition, and goes on when that is lifted; undo brings the old template back
    let images = "{.items[*].spec.containers[0].image}";
    let partition = |n: i32| {
        let patch = format!(
            r#"{{"spec":{{"updateStrategy":{{"type":"RollingUpdate","rollingUpdate":{{"partition":{n}}}}}}}}}"#
        );
        cluster.kubectl(&["patch", "sts", "db", "-n", "sts", "-p", &patch]);
    };
    partition(2);
    cluster.kubectl(&["set", "image", "sts/db", "-n", "sts", "c=echo:v2"]);
    reaches(cluster, "sts", "pods", images, "echo:v1 echo:v1 echo:v2");
    reaches(cluster, "sts", "sts/db", "{.status.updatedReplicas}{.status.readyReplicas}", "13");
    assert_eq!(jsonpath(cluster, "sts", "pods", images), "echo:v1 echo:v1 echo:v2");
    // who is deleted meanwhile comes back as the partition says
    cluster.kubectl(&["delete", "pod", "db-0", "db-2", "-n", "sts"]);
    reaches(cluster, "sts", "sts/db", "{.status.readyReplicas}", "3");
    assert_eq!(jsonpath(cluster, "sts", "pods", images), "echo:v1 echo:v1 echo:v2");
    partition(0);
    cluster.kubectl(&["rollout", "status", "sts/db", "-n", "sts", "--timeout=60s"]);
    reaches(cluster, "sts", "pods", images, "echo:v2 echo:v2 echo:v2");
    assert!(cluster.kubectl(&["rollout", "history", "sts/db", "-n", "sts"]).contains('2'));
    cluster.kubectl(&["rollout", "undo", "sts/db", "-n", "sts"]);
    reaches(cluster, "sts", "pods", images, "echo:v1 echo:v1 echo:v1");
    cluster.kubectl(&["rollout", "status", "sts/db", "-n", "sts", "--timeout=60s"]);
    let revisions = names(cluster, &["controllerrevisions", "-n", "sts"]);
    assert_eq!(revisions.len(), 2, "an undo makes no new revision: {revisions:?}");
    cluster.kubectl(&["scale", "sts/db", "-n", "sts", "--replicas=1"]);
    eventually("the highest numbers go", || {
        let left = names(cluster, &["pods", "-n", "sts", "-l", "app=db"]);
        if left == ["db-0"] { Ok(()) } else { Err(format!("{left:?}")) }
    });

    // claims: one for each number; they go with the set if it says so
    cluster.apply(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: disk, namespace: sts}
spec:
  replicas: 2
  podManagementPolicy: Parallel
  ordinals: {start: 5}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Retain}
  selector: {matchLabels: {app: disk}}
  template:
    metadata: {labels: {app: disk}}
    spec: {containers: [{name: c, image: "echo:v1", volumeMounts: [{name: data, mountPath: /data}]}]}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Mi}}}
"#,
    );
    eventually("the claims are the set's", || {
        let claims = cluster.get(&["pvc", "-n", "sts"]);
        let owned: Vec<String> = claims["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| {
                format!("{} {}", c["metadata"]["name"].as_str().unwrap(), c["metadata"]["ownerReferences"][0]["name"])
            })
            .collect();
        let want = ["data-disk-5 \"disk\"", "data-disk-6 \"disk\""];
        if owned == want { Ok(()) } else { Err(format!("{owned:?}")) }
    });
    cluster.kubectl(&["delete", "sts", "disk", "-n", "sts"]);
    gone(cluster, "pvc", "data-disk-5", "sts");
}

fn daemon_sets(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "ds"]);
    cluster.apply(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: ds}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node-1}
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "echo:v1"}]
"#,
    );
    cluster.kubectl(&["rollout", "status", "ds/agent", "-n", "ds", "--timeout=60s"]);
    let pods = cluster.get(&["pods", "-n", "ds"]);
    assert_eq!(pods["items"].as_array().unwrap().len(), 1);
    assert_eq!(pods["items"][0]["spec"]["nodeName"], "node-1");
    cluster.kubectl(&["set", "image", "ds/agent", "-n", "ds", "c=echo:v2"]);
    cluster.kubectl(&["rollout", "status", "ds/agent", "-n", "ds", "--timeout=60s"]);
    let image = "{.items[*].spec.containers[0].image}";
    reaches(cluster, "ds", "pods", image, "echo:v2");
    cluster.kubectl(&["rollout", "undo", "ds/agent", "-n", "ds"]);
    cluster.kubectl(&["rollout", "status", "ds/agent", "-n", "ds", "--timeout=60s"]);
    reaches(cluster, "ds", "pods", image, "echo:v1");
    // with surge the new one runs before the old one goes
    let surge =
        r#"{"spec":{"updateStrategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}}}"#;
    cluster.kubectl(&["patch", "ds", "agent", "-n", "ds", "-p", surge]);
    cluster.kubectl(&["set", "image", "ds/agent", "-n", "ds", "c=echo:v2"]);
    reaches(cluster, "ds", "pods", image, "echo:v2");
    reaches(cluster, "ds", "ds/agent", "{.status.numberAvailable}{.status.updatedNumberScheduled}", "11");
    // a node that no longer fits loses its pod
    cluster.kubectl(&[
        "patch",
        "ds",
        "agent",
        "-n",
        "ds",
        "-p",
        r#"{"spec":{"template":{"spec":{"nodeSelector":{"no":"such"}}}}}"#,
    ]);
    eventually("the pod goes", || {
        let left = names(cluster, &["pods", "-n", "ds"]);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

fn job(name: &str, spec: &str, script: &str) -> String {
    format!(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}, namespace: jobs}}
spec:
  {spec}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers: [{{name: c, image: "busybox:test", command: [sh, -c, "{script}"]}}]
"#
    )
}

fn jobs(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "jobs"]);
    let ends = |name: &str, condition: &str| {
        let what = format!("job/{name}");
        cluster.kubectl(&["wait", &what, "-n", "jobs", &format!("--for=condition={condition}"), "--timeout=60s"]);
        cluster.get(&["job", name, "-n", "jobs"])["status"].clone()
    };
    cluster.apply(&job("plain", "completions: 5\n  parallelism: 2", "exit 0"));
    let status = ends("plain", "Complete");
    assert_eq!((&status["succeeded"], &status["failed"]), (&5.into(), &Value::Null), "{status}");
    let pods = cluster.get(&["pods", "-n", "jobs", "-l", "job-name=plain"]);
    let pods = pods["items"].as_array().unwrap();
    assert_eq!(pods.len(), 5, "no pod too many");
    let held = |p: &&Value| p["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    assert_eq!(pods.iter().filter(held).count(), 0, "nothing is held any more");

    cluster.apply(&job(
        "indexed",
        "completions: 3\n  parallelism: 3\n  completionMode: Indexed",
        "echo index $JOB_COMPLETION_INDEX $HOSTNAME",
    ));
    let status = ends("indexed", "Complete");
    assert_eq!((&status["succeeded"], &status["completedIndexes"]), (&3.into(), &"0-2".into()));
    let log = cluster.kubectl(&["logs", "-n", "jobs", "-l", "batch.kubernetes.io/job-completion-index=2"]);
    assert_eq!(log.trim(), "index 2 indexed-2");

    cluster.apply(&job("failing", "backoffLimit: 0", "exit 3"));
    let status = ends("failing", "Failed");
    assert_eq!(status["failed"], 1);
    assert!(status["conditions"].to_string().contains("BackoffLimitExceeded"), "{status}");

    let policy =
        "backoffLimit: 5\n  podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]}";
    cluster.apply(&job("policy", policy, "exit 42"));
    let status = ends("policy", "Failed");
    assert!(status["conditions"].to_string().contains("exit code 42 matching FailJob rule at index 0"), "{status}");

    let success = "completions: 2\n  parallelism: 2\n  completionMode: Indexed\n  successPolicy: {rules: [{succeededIndexes: '0'}]}";
    cluster.apply(&job("early", success, "test $JOB_COMPLETION_INDEX = 0 || sleep 100000"));
    let status = ends("early", "Complete");
    assert!(status["conditions"].to_string().contains("SuccessPolicy"), "{status}");
    eventually("the other pod goes", || {
        let left = names(cluster, &["pods", "-n", "jobs", "-l", "job-name=early"]);
        if left.len() == 1 { Ok(()) } else { Err(format!("{left:?}")) }
    });

    cluster.apply(&job("late", "activeDeadlineSeconds: 1", "sleep 100000"));
    assert!(ends("late", "Failed")["conditions"].to_string().contains("DeadlineExceeded"));

    cluster.apply(&job("asleep", "suspend: true", "exit 0"));
    ends("asleep", "Suspended");
    assert!(names(cluster, &["pods", "-n", "jobs", "-l", "job-name=asleep"]).is_empty());
    cluster.kubectl(&["patch", "job", "asleep", "-n", "jobs", "-p", r#"{"spec":{"suspend":false}}"#]);
    ends("asleep", "Complete");

    cluster.apply(&job("brief", "ttlSecondsAfterFinished: 0", "exit 0"));
    gone(cluster, "job", "brief", "jobs");
    // deleting a Job that runs leaves no pod behind
    cluster.apply(&job("cut", "parallelism: 2", "sleep 100000"));
    cluster.kubectl(&["wait", "job/cut", "-n", "jobs", "--for=jsonpath={.status.active}=2", "--timeout=60s"]);
    cluster.kubectl(&["delete", "job", "cut", "-n", "jobs"]);
    eventually("its pods go", || {
        let left = names(cluster, &["pods", "-n", "jobs", "-l", "job-name=cut"]);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

fn cron_jobs(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "cron"]);
    let cron = |name: &str, schedule: &str| {
        format!(
            r#"
apiVersion: batch/v1
kind: CronJob
metadata: {{name: {name}, namespace: cron}}
spec:
  schedule: "{schedule}"
  timeZone: Europe/Berlin
  jobTemplate: {{spec: {{template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: "busybox:test", command: ["true"]}}]}}}}}}}}
"#
        )
    };
    cluster.apply(&cron("often", "@every 1s"));
    eventually("a job is started and ends", || {
        let jobs = cluster.get(&["jobs", "-n", "cron"]);
        let done = jobs["items"].as_array().unwrap().iter().any(|j| j["status"]["succeeded"] == 1);
        if done { Ok(()) } else { Err(jobs.to_string()) }
    });
    let jobs = cluster.get(&["jobs", "-n", "cron"]);
    let first = &jobs["items"][0]["metadata"];
    assert_eq!(first["ownerReferences"][0]["name"], "often");
    let at = first["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"].as_str().unwrap();
    assert!(at.ends_with("+01:00") || at.ends_with("+02:00"), "in the zone of the CronJob: {at}");
    reaches(cluster, "cron", "cronjob/often", "{.status.active}", "");
    assert!(!jsonpath(cluster, "cron", "cronjob/often", "{.status.lastSuccessfulTime}").is_empty());
    cluster.kubectl(&["patch", "cronjob", "often", "-n", "cron", "-p", r#"{"spec":{"suspend":true}}"#]);
    cluster.kubectl(&["delete", "cronjob", "often", "-n", "cron"]);
    eventually("its jobs and their pods go with it", || {
        let left = cluster.kubectl(&["get", "jobs,pods", "-n", "cron", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let refused = cluster.kubectl_stdin(Kubectl::Newest, &["apply", "-f", "-"], &cron("never", "61 * * * *"));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("spec.schedule"), "{why}");
}

fn budgets(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "pdb"]);
    cluster.kubectl(&["create", "deployment", "web", "-n", "pdb", "--image=echo:v1", "--replicas=2"]);
    cluster.kubectl(&["create", "pdb", "web", "-n", "pdb", "--selector=app=web", "--max-unavailable=0"]);
    reaches(
        cluster,
        "pdb",
        "pdb/web",
        "{.status.currentHealthy}/{.status.desiredHealthy}/{.status.expectedPods}",
        "2/2/2",
    );
    let pod = names(cluster, &["pods", "-n", "pdb"]).remove(0);
    let evict = || {
        let body = format!(
            r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}","namespace":"pdb"}}}}"#
        );
        let path = format!("--raw=/api/v1/namespaces/pdb/pods/{pod}/eviction");
        cluster.kubectl_stdin(Kubectl::Newest, &["create", &path, "-f", "-"], &body)
    };
    let refused = evict();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("disruption budget"), "{why}");
    cluster.kubectl(&["patch", "pdb", "web", "-n", "pdb", "-p", r#"{"spec":{"maxUnavailable":1}}"#]);
    reaches(cluster, "pdb", "pdb/web", "{.status.disruptionsAllowed}", "1");
    assert!(evict().status.success());
    gone(cluster, "pod", &pod, "pdb");
    reaches(
        cluster,
        "pdb",
        "pdb/web",
        "{.status.currentHealthy}/{.status.disruptionsAllowed}/{.status.disruptedPods}",
        "2/1/",
    );
}

fn quotas(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "quota"]);
    cluster.kubectl(&[
        "create",
        "quota",
        "q",
        "-n",
        "quota",
        "--hard=pods=2,requests.cpu=1,count/configmaps=3,count/deployments.apps=1",
    ]);
    // the namespace's own map is there already
    reaches(cluster, "quota", "quota/q", "{.status.used.pods}{.status.used.count/configmaps}", "01");
    cluster.apply(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: quota}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "echo:v1", resources: {requests: {cpu: 10m}}}]
"#,
    );
    reaches(cluster, "quota", "deploy/web", "{.status.readyReplicas}", "2");
    reaches(
        cluster,
        "quota",
        "quota/q",
        "{.status.used.pods} {.status.used.requests\\.cpu} {.status.used.count/deployments\\.apps}",
        "2 20m 1",
    );
    let failure = jsonpath(cluster, "quota", "deploy/web", "{.status.conditions[?(@.type=='ReplicaFailure')].message}");
    assert!(failure.contains("exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"), "{failure}");
    let refused =
        cluster.try_kubectl(Kubectl::Newest, &["create", "deployment", "two", "-n", "quota", "--image=echo:v1"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("exceeded quota"));
    // what is freed may be used again
    cluster.kubectl(&["create", "configmap", "a", "-n", "quota"]);
    cluster.kubectl(&["create", "configmap", "b", "-n", "quota"]);
    assert!(!cluster.try_kubectl(Kubectl::Newest, &["create", "configmap", "c", "-n", "quota"]).status.success());
    cluster.kubectl(&["delete", "configmap", "a", "-n", "quota"]);
    eventually("there is room again", || {
        let made = cluster.try_kubectl(Kubectl::Newest, &["create", "configmap", "c", "-n", "quota"]);
        if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned()) }
    });
    cluster.kubectl(&["patch", "quota", "q", "-n", "quota", "-p", r#"{"spec":{"hard":{"pods":"5"}}}"#]);
    reaches(cluster, "quota", "deploy/web", "{.status.readyReplicas}", "3");
}

/// The ConfigMap `cluster-info` bears the signature of each token; nodes say for how long what is read may be used.
fn what_joiners_read(cluster: &Cluster) {
    let keys = || {
        let info = cluster.get(&["configmap", "cluster-info", "-n", "kube-public"]);
        info["data"].as_object().unwrap().keys().cloned().collect::<Vec<String>>()
    };
    cluster.kubectl(&["create", "cm", "cluster-info", "-n", "kube-public", "--from-literal=kubeconfig=what is signed"]);
    cluster.apply(
        r#"
apiVersion: v1
kind: Secret
type: bootstrap.kubernetes.io/token
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
stringData: {token-id: abcdef, token-secret: 0123456789abcdef, usage-bootstrap-signing: "true"}
"#,
    );
    eventually("it is signed", || {
        let keys = keys();
        if keys == ["jws-kubeconfig-abcdef", "kubeconfig"] { Ok(()) } else { Err(keys.join(" ")) }
    });
    cluster.kubectl(&["delete", "secret", "bootstrap-token-abcdef", "-n", "kube-system"]);
    eventually("the signature goes with the token", || {
        let keys = keys();
        if keys == ["kubeconfig"] { Ok(()) } else { Err(keys.join(" ")) }
    });
    eventually("the node has the annotation", || {
        let node = cluster.get(&["node", "node-1"]);
        let ttl = &node["metadata"]["annotations"]["node.alpha.kubernetes.io/ttl"];
        if ttl == "0" { Ok(()) } else { Err(ttl.to_string()) }
    });
}

/// A Secret for the token of an account gets one, which is good as long as both are there.
fn tokens_that_last(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "tokens"]);
    let secret = |name: &str, account: &str| {
        format!(
            r#"
apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata: {{name: {name}, namespace: tokens, annotations: {{kubernetes.io/service-account.name: {account}}}}}
"#
        )
    };
    cluster.kubectl(&["create", "serviceaccount", "robot", "-n", "tokens"]);
    cluster.apply(&(secret("one", "robot") + "---" + &secret("two", "robot")));
    let token = |name: &str| {
        let encoded = eventually("the token is there", || {
            let data = jsonpath(cluster, "tokens", &format!("secret/{name}"), "{.data.token}");
            if data.is_empty() { Err("not yet".to_owned()) } else { Ok(data) }
        });
        String::from_utf8(base64::Engine::decode(&base64::prelude::BASE64_STANDARD, encoded).unwrap()).unwrap()
    };
    let (one, two) = (token("one"), token("two"));
    assert_eq!(jsonpath(cluster, "tokens", "secret/one", "{.data.namespace}"), "dG9rZW5z");
    assert!(!jsonpath(cluster, "tokens", "secret/one", "{.data.ca\\.crt}").is_empty());
    let who = |token: &str| {
        let review =
            format!(r#"{{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{{"token":"{token}"}}}}"#);
        let path = "--raw=/apis/authentication.k8s.io/v1/tokenreviews";
        let out = cluster.kubectl_stdin(Kubectl::Newest, &["create", path, "-f", "-"], &review);
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["status"].clone()
    };
    assert_eq!(who(&one)["user"]["username"], "system:serviceaccount:tokens:robot");
    assert_eq!(who(&two)["authenticated"], true);
    cluster.kubectl(&["delete", "secret", "one", "-n", "tokens"]);
    assert_ne!(who(&one)["authenticated"], true);
    assert_eq!(who(&two)["authenticated"], true);
    // they go with their account, and there is none for an account that is not there
    cluster.kubectl(&["delete", "serviceaccount", "robot", "-n", "tokens"]);
    gone(cluster, "secret", "two", "tokens");
    assert_ne!(who(&two)["authenticated"], true);
    cluster.apply(&secret("three", "nobody"));
    gone(cluster, "secret", "three", "tokens");
    let nameless = "{apiVersion: v1, kind: Secret, type: kubernetes.io/service-account-token, metadata: {name: none, namespace: tokens}}";
    let refused = cluster.kubectl_stdin(Kubectl::Newest, &["create", "-f", "-"], nameless);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("kubernetes.io/service-account.name"), "{refused:?}");
}
