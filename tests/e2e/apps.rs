//! What Kubernetes' conformance suite asks of workloads, in our own words; each flow in its own namespace.

use crate::conformance::{ApiKind, Flow, every_verb, get, items, raw, together, update};
use crate::harness::space::Space;
use crate::harness::{Cluster, Kubectl, eventually};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn conformance_of_workloads() {
    let flows: [(&str, Flow); 9] = [
        ("operations", operations),
        ("status", statuses),
        ("scale", scales),
        ("deployments", deployments),
        ("replicas", replicas),
        ("stateful sets", stateful_sets),
        ("daemon sets", daemon_sets),
        ("jobs", jobs),
        ("cron jobs", cron_jobs),
    ];
    together(&Cluster::start(), &flows);
}

/// A template of pods that do nothing, or what a script says.
fn template(app: &str, script: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
        {"name": "c", "image": "busybox:test", "command": ["sh", "-c", script]}]}})
}

fn idle(app: &str) -> Value {
    template(app, "sleep 100000")
}

/// The spec of a workload of the group `apps`.
fn spec(app: &str, replicas: u32) -> Value {
    json!({"replicas": replicas, "selector": {"matchLabels": {"app": app}}, "template": idle(app)})
}

fn create(space: &Space<'_>, version: &str, kind: &str, name: &str, spec: &Value) {
    let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec});
    space.apply(&object.to_string());
}

fn workload(space: &Space<'_>, kind: &str, name: &str, spec: &Value) {
    create(space, "apps/v1", kind, name, spec);
}

fn patch(space: &Space<'_>, what: &str, patch: &Value) {
    space.kubectl(&["patch", what, "--type=merge", "-p", &patch.to_string()]);
}

fn patch_status(space: &Space<'_>, what: &str, patch: &Value) {
    space.kubectl(&["patch", what, "--subresource=status", "--type=merge", "-p", &patch.to_string()]);
}

fn reaches(space: &Space<'_>, what: &str, path: &str, want: &str) {
    eventually(&format!("{what} {path} is {want}"), || {
        let now = space.field(what, path);
        if now == want { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

fn pods(space: &Space<'_>, app: &str) -> Vec<Value> {
    let label = format!("app%3D{app}");
    items(&get(space.cluster, &format!("/api/v1/namespaces/{}/pods?labelSelector={label}", space.name)))
}

fn pod_names(space: &Space<'_>, app: &str) -> Vec<String> {
    pods(space, app).iter().map(|p| p["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn operations(cluster: &Cluster) {
    let space = Space::new(cluster, "app-operations");
    let names = ["one", "two", "three"];
    let some = || json!({"spec": spec("none", 0)});
    let mut set = some();
    set["spec"]["serviceName"] = "none".into();
    let agent = json!({"spec": {"selector": {"matchLabels": {"app": "none"}}, "template": {"metadata": {"labels": {"app": "none"}},
        "spec": {"nodeSelector": {"no": "such"}, "containers": idle("none")["spec"]["containers"]}}}});
    let mut controller = some();
    controller["spec"]["selector"] = json!({"app": "none"});
    let mut job = json!({"spec": {"suspend": true, "template": idle("none")}});
    job["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    let cron = json!({"spec": {"suspend": true, "schedule": "*/1 * * * *", "jobTemplate": job}});
    let budget = json!({"spec": {"selector": {"matchLabels": {"app": "none"}}, "minAvailable": 1}});
    let kinds: [ApiKind; 10] = [
        ("apps/v1", "controllerrevisions", true, false, names, json!({"revision": 1, "data": {"a": "b"}})),
        ("apps/v1", "daemonsets", true, true, names, agent),
        ("apps/v1", "deployments", true, true, names, some()),
        ("apps/v1", "replicasets", true, true, names, some()),
        ("apps/v1", "statefulsets", true, true, names, set),
        ("v1", "replicationcontrollers", true, true, names, controller),
        ("v1", "podtemplates", true, false, names, json!({"template": idle("none")})),
        ("batch/v1", "jobs", true, true, names, job),
        ("batch/v1", "cronjobs", true, true, names, cron),
        ("policy/v1", "poddisruptionbudgets", true, true, names, budget),
    ];
    for kind in kinds {
        every_verb(&space, kind);
    }
}

/// A status is written by its subresource only, a spec by the object only.
fn statuses(cluster: &Cluster) {
    let space = Space::new(cluster, "app-status");
    let mut controller = spec("none", 0);
    controller["selector"] = json!({"app": "none"});
    let agent = json!({"selector": {"matchLabels": {"app": "none"}}, "template": {"metadata": {"labels": {"app": "none"}},
        "spec": {"nodeSelector": {"no": "such"}, "containers": idle("none")["spec"]["containers"]}}});
    let budget = json!({"selector": {"matchLabels": {"app": "none"}}, "minAvailable": 1});
    for (version, kind, plural, spec) in [
        ("apps/v1", "Deployment", "deployments", spec("none", 0)),
        ("apps/v1", "ReplicaSet", "replicasets", spec("none", 0)),
        ("apps/v1", "StatefulSet", "statefulsets", spec("none", 0)),
        ("apps/v1", "DaemonSet", "daemonsets", agent),
        ("v1", "ReplicationController", "replicationcontrollers", controller),
        ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", budget),
    ] {
        create(&space, version, kind, "one", &spec);
        let root = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
        let path = format!("{root}/namespaces/{}/{plural}/one", space.name);
        let before = get(cluster, &path);
        let condition = |kind: &str| {
            json!({"type": kind, "status": "True", "reason": "Test", "message": "as a test says",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let has = |object: &Value, kind: &str| {
            object["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(|c| c["type"] == kind))
        };
        let body = json!({"status": {"conditions": [condition("StatusPatched")]}, "spec": {"minReadySeconds": 77}});
        let args = [
            "patch",
            &format!("{plural}/one"),
            "--subresource=status",
            "--type=merge",
            "-o",
            "json",
            "-p",
            &body.to_string(),
        ];
        let patched: Value = serde_json::from_str(&space.kubectl(&args)).unwrap();
        assert!(has(&patched, "StatusPatched"), "{plural}: {patched}");
        assert_eq!(patched["spec"], before["spec"], "{plural}: the spec is not the status' business");
        assert_eq!(patched["metadata"]["generation"], before["metadata"]["generation"], "{plural}");
        let updated = update(cluster, &format!("{path}/status"), |object| {
            let conditions = &mut object["status"]["conditions"];
            if !conditions.is_array() {
                *conditions = json!([]);
            }
            conditions.as_array_mut().unwrap().push(condition("StatusUpdated"));
        });
        assert!(has(&updated, "StatusUpdated"), "{plural}: {updated}");
        let body = json!({"metadata": {"labels": {"a": "b"}}, "status": {"conditions": [condition("Sneaked")]}});
        patch(&space, &format!("{plural}/one"), &body);
        let after = get(cluster, &format!("{path}/status"));
        assert!(!has(&after, "Sneaked") && after["metadata"]["labels"]["a"] == "b", "{plural}: {after}");
        // what others say stays when the controller writes
        if kind != "PodDisruptionBudget" {
            patch(&space, &format!("{plural}/one"), &json!({"spec": {"minReadySeconds": 5}}));
            let seen = eventually("the change is seen", || {
                let now = get(cluster, &path);
                let behind = now["status"]["observedGeneration"] != now["metadata"]["generation"];
                if behind { Err(now.to_string()) } else { Ok(now) }
            });
            assert!(has(&seen, "StatusUpdated"), "{plural}: {seen}");
        }
        space.kubectl(&["delete", &format!("{plural}/one")]);
    }
}

fn scales(cluster: &Cluster) {
    let space = Space::new(cluster, "app-scale");
    let mut controller = spec("rc", 0);
    controller["selector"] = json!({"app": "rc"});
    for (version, kind, plural, app, spec) in [
        ("apps/v1", "Deployment", "deployments", "deploy", spec("deploy", 0)),
        ("apps/v1", "ReplicaSet", "replicasets", "rs", spec("rs", 0)),
        ("apps/v1", "StatefulSet", "statefulsets", "sts", spec("sts", 0)),
        ("v1", "ReplicationController", "replicationcontrollers", "rc", controller),
    ] {
        create(&space, version, kind, "one", &spec);
        let root = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
        let path = format!("{root}/namespaces/{}/{plural}/one", space.name);
        let scale = get(cluster, &format!("{path}/scale"));
        assert_eq!((&scale["apiVersion"], &scale["kind"]), (&"autoscaling/v1".into(), &"Scale".into()));
        assert_eq!(scale["status"]["selector"], format!("app={app}"), "{plural}");
        let updated = update(cluster, &format!("{path}/scale"), |scale| scale["spec"]["replicas"] = 1.into());
        assert_eq!(updated["spec"]["replicas"], 1, "{plural}");
        assert_eq!(get(cluster, &path)["spec"]["replicas"], 1, "{plural}");
        reaches(&space, &format!("{plural}/one"), ".status.readyReplicas", "1");
        let args = [
            "patch",
            &format!("{plural}/one"),
            "--subresource=scale",
            "--type=merge",
            "-p",
            r#"{"spec":{"replicas":2}}"#,
        ];
        space.kubectl(&args);
        reaches(&space, &format!("{plural}/one"), ".status.readyReplicas", "2");
        assert_eq!(get(cluster, &format!("{path}/scale"))["status"]["replicas"], 2, "{plural}");
        space.kubectl(&["delete", &format!("{plural}/one"), "--wait=false"]);
    }
}

fn deployments(cluster: &Cluster) {
    let space = Space::new(cluster, "app-deployments");
    let sets = || {
        let path = format!("/apis/apps/v1/namespaces/{}/replicasets", space.name);
        let all = items(&get(cluster, &path));
        let of = |set: &Value| {
            let revision = set["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str().unwrap_or("-");
            format!("{revision}:{}", set["spec"]["replicas"])
        };
        all.iter().map(of).collect::<BTreeSet<String>>()
    };
    let have = |want: &[&str]| {
        let want: BTreeSet<String> = want.iter().map(|s| (*s).to_owned()).collect();
        eventually(&format!("ReplicaSets are {want:?}"), || {
            let now = sets();
            if now == want { Ok(()) } else { Err(format!("{now:?}")) }
        });
    };
    // one that is there already is adopted, and takes part in the history
    let mut old = spec("web", 1);
    old["selector"]["matchLabels"]["pod"] = "old".into();
    old["template"]["metadata"]["labels"]["pod"] = "old".into();
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "old", "labels": {"app": "web"},
        "annotations": {"deployment.kubernetes.io/revision": "41"}}, "spec": old});
    space.apply(&set.to_string());
    reaches(&space, "rs/old", ".status.readyReplicas", "1");
    let mut rolling = spec("web", 1);
    rolling["revisionHistoryLimit"] = 1.into();
    workload(&space, "Deployment", "web", &rolling);
    space.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    have(&["41:0", "42:1"]);
    reaches(&space, "rs/old", ".metadata.ownerReferences[0].name", "web");
    // history is no longer than was asked for
    space.kubectl(&["set", "env", "deploy/web", "ROUND=2"]);
    space.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    have(&["42:0", "43:1"]);

    // a rollout that cannot end is overtaken by the next one
    space.kubectl(&["set", "image", "deploy/web", "c=localhost/none:none"]);
    have(&["42:0", "43:1", "44:1"]);
    space.kubectl(&["set", "image", "deploy/web", "c=busybox:test"]);
    space.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    // the old template is used again, by the ReplicaSet that had it
    have(&["44:0", "45:1"]);
    assert_eq!(pods(&space, "web").len(), 1);

    // with Recreate old and new pods are never there together
    let mut recreate = spec("again", 2);
    recreate["strategy"] = json!({"type": "Recreate"});
    workload(&space, "Deployment", "again", &recreate);
    space.kubectl(&["rollout", "status", "deploy/again", "--timeout=60s"]);
    let path = format!("/api/v1/namespaces/{}/pods", space.name);
    let since = get(cluster, &path)["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    space.kubectl(&["set", "env", "deploy/again", "ROUND=2"]);
    space.kubectl(&["rollout", "status", "deploy/again", "--timeout=60s"]);
    let watch = format!("{path}?labelSelector=app%3Dagain&watch=1&resourceVersion={since}&timeoutSeconds=1");
    let events: Vec<Value> =
        cluster.kubectl(&["get", "--raw", &watch]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let place = |kind: &'static str| events.iter().enumerate().filter(move |(_, e)| e["type"] == kind).map(|(i, _)| i);
    assert!(place("DELETED").max().unwrap() < place("ADDED").min().unwrap(), "{events:?}");
    assert_eq!((place("DELETED").count(), place("ADDED").count()), (2, 2));
}

fn replicas(cluster: &Cluster) {
    let space = Space::new(cluster, "app-replicas");
    // what matches and belongs to nobody is adopted; what no longer matches is let go, and replaced
    space.client("loose");
    space.ready(&["loose"]);
    workload(&space, "ReplicaSet", "rs", &spec("loose", 1));
    reaches(&space, "pod/loose", ".metadata.ownerReferences[0].name", "rs");
    reaches(&space, "rs/rs", ".status.readyReplicas", "1");
    assert_eq!(pod_names(&space, "loose"), ["loose"]);
    space.kubectl(&["label", "pod", "loose", "app=free", "--overwrite"]);
    eventually("another one takes its place", || {
        let now = pod_names(&space, "loose");
        if now.len() == 1 && now[0] != "loose" { Ok(()) } else { Err(format!("{now:?}")) }
    });
    assert_eq!(space.field("pod/loose", ".metadata.ownerReferences"), "");
    patch(
        &space,
        "rs/rs",
        &json!({"spec": {"replicas": 3, "template": {"spec": {"terminationGracePeriodSeconds": 1}}}}),
    );
    reaches(&space, "rs/rs", ".status.availableReplicas", "3");

    // a quota that is met is told in a condition, which goes with its cause
    let other = Space::new(cluster, "app-quota");
    other.kubectl(&["create", "quota", "two", "--hard=pods=2"]);
    reaches(&other, "quota/two", ".status.hard.pods", "2");
    let mut controller = spec("rc", 3);
    controller["selector"] = json!({"app": "rc"});
    create(&other, "v1", "ReplicationController", "rc", &controller);
    let mut set = spec("rs", 3);
    set["replicas"] = 3.into();
    reaches(&other, "rc/rc", ".status.conditions[?(@.type=='ReplicaFailure')].status", "True");
    other.kubectl(&["scale", "rc/rc", "--replicas=2"]);
    reaches(&other, "rc/rc", ".status.conditions[?(@.type=='ReplicaFailure')].status", "");
    workload(&other, "ReplicaSet", "rs", &set);
    reaches(&other, "rs/rs", ".status.conditions[?(@.type=='ReplicaFailure')].reason", "FailedCreate");
    other.kubectl(&["scale", "rs/rs", "--replicas=0"]);
    reaches(&other, "rs/rs", ".status.conditions[?(@.type=='ReplicaFailure')].status", "");
}

/// A set whose pods are ready as long as a file is there.
fn breakable(name: &str, policy: &str) -> Value {
    let mut spec = spec(name, 1);
    spec["serviceName"] = name.into();
    spec["podManagementPolicy"] = policy.into();
    let container = &mut spec["template"]["spec"]["containers"][0];
    container["command"] = json!(["sh", "-c", "touch /well; sleep 100000"]);
    container["readinessProbe"] =
        json!({"exec": {"command": ["test", "-f", "/well"]}, "periodSeconds": 1, "failureThreshold": 1});
    spec
}

fn stateful_sets(cluster: &Cluster) {
    let space = Space::new(cluster, "app-sets");
    let unwell = |pod: &str| {
        space.kubectl(&["exec", pod, "--", "rm", "/well"]);
        space.kubectl(&["wait", &format!("pod/{pod}"), "--for=condition=Ready=false", "--timeout=60s"]);
    };
    // in order: while one is not well there is no next one, neither up nor down
    workload(&space, "StatefulSet", "ss", &breakable("ss", "OrderedReady"));
    reaches(&space, "sts/ss", ".status.readyReplicas", "1");
    unwell("ss-0");
    space.kubectl(&["scale", "sts/ss", "--replicas=3"]);
    reaches(&space, "sts/ss", ".status.observedGeneration", "2");
    assert_eq!(pod_names(&space, "ss"), ["ss-0"], "it waits for the first");
    space.kubectl(&["exec", "ss-0", "--", "touch", "/well"]);
    reaches(&space, "sts/ss", ".status.readyReplicas", "3");
    for pod in ["ss-0", "ss-1", "ss-2"] {
        unwell(pod);
    }
    space.kubectl(&["scale", "sts/ss", "--replicas=0"]);
    reaches(&space, "sts/ss", ".status.observedGeneration", "3");
    assert_eq!(pod_names(&space, "ss"), ["ss-0", "ss-1", "ss-2"], "the last one waits for those before it");
    // each goes once it is well; the first one when no other is left
    for pod in ["ss-2", "ss-1"] {
        space.kubectl(&["exec", pod, "--", "touch", "/well"]);
    }
    reaches(&space, "sts/ss", ".status.replicas", "0");

    // all at once: who is not well keeps nobody up
    workload(&space, "StatefulSet", "burst", &breakable("burst", "Parallel"));
    reaches(&space, "sts/burst", ".status.readyReplicas", "1");
    unwell("burst-0");
    space.kubectl(&["scale", "sts/burst", "--replicas=3"]);
    reaches(&space, "sts/burst", ".status.replicas", "3");
    reaches(&space, "sts/burst", ".status.readyReplicas", "2");
    // a pod that has failed, as evicted ones have, is made again
    let before = space.field("pod/burst-1", ".metadata.uid");
    patch_status(&space, "pod/burst-1", &json!({"status": {"phase": "Failed", "reason": "Evicted"}}));
    eventually("the pod is made again", || {
        let out = cluster.try_kubectl(
            Kubectl::Newest,
            &["-n", space.name, "get", "pod", "burst-1", "-o", "jsonpath={.metadata.uid}"],
        );
        let now = String::from_utf8_lossy(&out.stdout).into_owned();
        if out.status.success() && now != before { Ok(()) } else { Err(now) }
    });
    reaches(&space, "sts/burst", ".status.readyReplicas", "2");
    // two at a time may be missing during an update
    space.kubectl(&["exec", "burst-0", "--", "touch", "/well"]);
    reaches(&space, "sts/burst", ".status.readyReplicas", "3");
    let unavailable =
        json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}}});
    patch(&space, "sts/burst", &unavailable);
    space.kubectl(&["set", "env", "sts/burst", "ROUND=2"]);
    space.kubectl(&["rollout", "status", "sts/burst", "--timeout=60s"]);
    assert_eq!(space.field("sts/burst", ".status.updatedReplicas"), "3");
    space.kubectl(&["scale", "sts/burst", "--replicas=0"]);
    reaches(&space, "sts/burst", ".status.replicas", "0");
}

fn daemon_sets(cluster: &Cluster) {
    let space = Space::new(cluster, "app-daemons");
    let mut spec = spec("agent", 0);
    spec.as_object_mut().unwrap().remove("replicas");
    spec["template"]["spec"]["nodeSelector"] = json!({"color": "blue"});
    workload(&space, "DaemonSet", "agent", &spec);
    let count = |want: usize| {
        eventually(&format!("{want} pods"), || {
            let now = pod_names(&space, "agent");
            if now.len() == want { Ok(()) } else { Err(format!("{now:?}")) }
        });
    };
    // pods follow the labels of nodes
    reaches(&space, "ds/agent", ".status.observedGeneration", "1");
    count(0);
    cluster.kubectl(&["label", "node", "node-1", "color=blue"]);
    reaches(&space, "ds/agent", ".status.numberReady", "1");
    cluster.kubectl(&["label", "node", "node-1", "color=green", "--overwrite"]);
    count(0);
    patch(&space, "ds/agent", &json!({"spec": {"template": {"spec": {"nodeSelector": {"color": "green"}}}}}));
    reaches(&space, "ds/agent", ".status.numberReady", "1");
    // one that is deleted, or has failed, is made again
    let first = pod_names(&space, "agent").remove(0);
    patch_status(&space, &format!("pod/{first}"), &json!({"status": {"phase": "Failed"}}));
    eventually("another one runs", || {
        let now = pod_names(&space, "agent");
        if now.len() == 1 && now[0] != first { Ok(()) } else { Err(format!("{now:?}")) }
    });
    reaches(&space, "ds/agent", ".status.numberReady", "1");
    // an update that cannot end is taken back
    space.kubectl(&["set", "image", "ds/agent", "c=localhost/none:none"]);
    reaches(&space, "pods", ".items[*].spec.containers[0].image", "localhost/none:none");
    space.kubectl(&["rollout", "undo", "ds/agent"]);
    space.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]);
    reaches(&space, "pods", ".items[*].spec.containers[0].image", "busybox:test");
    assert!(items(&get(cluster, &format!("/apis/apps/v1/namespaces/{}/controllerrevisions", space.name))).len() >= 2);
    cluster.kubectl(&["label", "node", "node-1", "color-"]);
    count(0);
}

fn job(space: &Space<'_>, name: &str, script: &str, more: &Value) {
    let mut spec = json!({"template": template(name, script)});
    spec["template"]["spec"]["restartPolicy"] = "Never".into();
    for (field, value) in more.as_object().unwrap() {
        if field == "restartPolicy" {
            spec["template"]["spec"][field] = value.clone();
        } else {
            spec[field] = value.clone();
        }
    }
    create(space, "batch/v1", "Job", name, &spec);
}

fn jobs(cluster: &Cluster) {
    let space = Space::new(cluster, "app-jobs");
    let ends = |name: &str, condition: &str| {
        let what = format!("job/{name}");
        space.kubectl(&["wait", &what, &format!("--for=condition={condition}"), "--timeout=60s"]);
        get(cluster, &format!("/apis/batch/v1/namespaces/{}/jobs/{name}", space.name))["status"].clone()
    };
    // each index has tries of its own; too many that fail end the whole
    let indexed = |more: Value| {
        let mut spec =
            json!({"completionMode": "Indexed", "completions": 4, "parallelism": 2, "backoffLimitPerIndex": 0});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let odd = "test $((JOB_COMPLETION_INDEX % 2)) = 0";
    job(&space, "per-index", odd, &indexed(json!({})));
    job(&space, "too-many", "exit 1", &indexed(json!({"maxFailedIndexes": 1})));
    let rules = json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}}]});
    let fails = "test $JOB_COMPLETION_INDEX != 1 || exit 42";
    job(&space, "fail-index", fails, &indexed(json!({"backoffLimitPerIndex": 5, "podFailurePolicy": rules})));
    let status = ends("per-index", "Failed");
    assert_eq!((&status["failedIndexes"], &status["completedIndexes"]), (&"1,3".into(), &"0,2".into()), "{status}");
    assert!(status["conditions"].to_string().contains("FailedIndexes"), "{status}");
    let status = ends("too-many", "Failed");
    assert!(status["conditions"].to_string().contains("MaxFailedIndexesExceeded"), "{status}");
    let status = ends("fail-index", "Failed");
    assert_eq!((&status["failedIndexes"], &status["completedIndexes"]), (&"1".into(), &"0,2,3".into()), "{status}");

    // success as soon as enough is done
    let policy = |rule: Value| json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "successPolicy": {"rules": [rule]}});
    job(&space, "by-count", "test $JOB_COMPLETION_INDEX = 2 || sleep 100000", &policy(json!({"succeededCount": 1})));
    let status = ends("by-count", "Complete");
    assert_eq!((&status["completedIndexes"], &status["succeeded"]), (&"2".into(), &1.into()), "{status}");
    let met = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "SuccessCriteriaMet").unwrap();
    assert_eq!((&met["status"], &met["reason"]), (&"True".into(), &"SuccessPolicy".into()));

    // failures that somebody else caused do not count
    let ignore = json!({"backoffLimit": 0, "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]}});
    job(&space, "disturbed", "sleep 100000", &ignore);
    reaches(&space, "job/disturbed", ".status.ready", "1");
    let pod = pod_names(&space, "disturbed").remove(0);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
    raw(cluster, "create", &format!("/api/v1/namespaces/{}/pods/{pod}/eviction", space.name), &eviction);
    eventually("another pod is tried", || {
        let now = pod_names(&space, "disturbed");
        if now.len() == 1 && now[0] != pod { Ok(()) } else { Err(format!("{now:?}")) }
    });
    reaches(&space, "job/disturbed", ".status.failed", "");
    space.kubectl(&["delete", "job/disturbed"]);

    // containers that are started again where they are
    let script = "test -f /data/tried && exit 0; touch /data/tried; exit 1";
    let mut local = json!({"template": template("local", script), "completions": 2, "parallelism": 2});
    local["template"]["spec"]["restartPolicy"] = "OnFailure".into();
    local["template"]["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    local["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    create(&space, "batch/v1", "Job", "local", &local);
    assert_eq!(ends("local", "Complete")["failed"], Value::Null);

    elastic_and_managed(&space);
    adopted(&space);
}

fn elastic_and_managed(space: &Space<'_>) {
    // an indexed one grows and shrinks as a whole
    let both = |n: u32| json!({"completions": n, "parallelism": n});
    let mut spec = both(3);
    spec["completionMode"] = "Indexed".into();
    job(space, "elastic", "test -f /never || sleep 100000", &spec);
    reaches(space, "job/elastic", ".status.ready", "3");
    patch(space, "job/elastic", &json!({"spec": both(1)}));
    eventually("the higher indexes go", || {
        let now = pods(space, "elastic");
        let indexes: Vec<_> =
            now.iter().map(|p| p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"].clone()).collect();
        if indexes == ["0"] { Ok(()) } else { Err(format!("{indexes:?}")) }
    });
    patch(space, "job/elastic", &json!({"spec": both(2)}));
    reaches(space, "job/elastic", ".status.ready", "2");
    // suspended, it has no pods
    patch(space, "job/elastic", &json!({"spec": {"suspend": true}}));
    reaches(space, "job/elastic", ".status.conditions[?(@.type=='Suspended')].status", "True");
    eventually("no pod is left", || {
        let left = pod_names(space, "elastic");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    patch(space, "job/elastic", &json!({"spec": {"suspend": false}}));
    reaches(space, "job/elastic", ".status.ready", "2");
    space.kubectl(&["delete", "job/elastic"]);
    // somebody else's is left alone
    job(space, "foreign", "true", &json!({"managedBy": "example.com/other"}));
    job(space, "own", "true", &json!({}));
    space.kubectl(&["wait", "job/own", "--for=condition=Complete", "--timeout=60s"]);
    assert!(pod_names(space, "foreign").is_empty());
    assert_eq!(space.field("job/foreign", ".status.startTime"), "");
    patch_status(space, "job/foreign", &json!({"status": {"active": 1, "startTime": "2026-01-01T00:00:00Z"}}));
    assert_eq!(space.field("job/foreign", ".status.active"), "1");
}

fn adopted(space: &Space<'_>) {
    job(space, "adopts", "sleep 100000", &json!({"parallelism": 2}));
    reaches(space, "job/adopts", ".status.ready", "2");
    let name = pod_names(space, "adopts").remove(0);
    let what = format!("pod/{name}");
    // without an owner it is an orphan that matches
    patch(space, &what, &json!({"metadata": {"ownerReferences": null}}));
    reaches(space, &what, ".metadata.ownerReferences[0].name", "adopts");
    // and with other labels it is none of the Job's business
    let labels: Value = serde_json::from_str(&space.field(&what, ".metadata.labels")).unwrap();
    let none: serde_json::Map<String, Value> =
        labels.as_object().unwrap().keys().map(|k| (k.clone(), Value::Null)).collect();
    patch(space, &what, &json!({"metadata": {"labels": none}}));
    reaches(space, &what, ".metadata.ownerReferences", "");
    reaches(space, &what, ".metadata.finalizers", "");
    reaches(space, "job/adopts", ".status.ready", "2");
    space.kubectl(&["delete", "job/adopts", &what, "--wait=false"]);
}

fn cron_jobs(cluster: &Cluster) {
    let space = Space::new(cluster, "app-cron");
    let cron = |name: &str, policy: &str, suspend: bool| {
        let mut job = json!({"spec": {"template": template(name, "sleep 100000")}});
        job["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure".into();
        let spec =
            json!({"schedule": "@every 1s", "concurrencyPolicy": policy, "suspend": suspend, "jobTemplate": job});
        create(&space, "batch/v1", "CronJob", name, &spec);
    };
    let of = |name: &str| {
        let all = items(&get(cluster, &format!("/apis/batch/v1/namespaces/{}/jobs", space.name)));
        let theirs = |job: &Value| job["metadata"]["ownerReferences"][0]["name"] == name;
        all.into_iter()
            .filter(theirs)
            .map(|job| job["metadata"]["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    cron("suspended", "Allow", true);
    cron("forbid", "Forbid", false);
    cron("replace", "Replace", false);
    cron("allow", "Allow", false);
    eventually("several run at once", || {
        let now = of("allow");
        if now.len() >= 2 { Ok(()) } else { Err(format!("{now:?}")) }
    });
    space.kubectl(&["delete", "cronjob/allow", "--wait=false"]);
    let first = eventually("one runs", || of("replace").pop().ok_or_else(|| "none".to_owned()));
    eventually("another one takes its place", || {
        let now = of("replace");
        if now.len() == 1 && now[0] != first { Ok(()) } else { Err(format!("{now:?}")) }
    });
    space.kubectl(&["delete", "cronjob/replace", "--wait=false"]);
    assert_eq!(of("forbid").len(), 1, "as long as it runs there is no other");
    assert!(of("suspended").is_empty());
    let events = space.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]);
    assert!(events.contains("JobAlreadyActive"), "{events}");
    space.kubectl(&["delete", "cronjob/forbid", "--wait=false"]);
}
