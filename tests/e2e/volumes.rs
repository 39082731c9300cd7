//! Claims and volumes: directories of nodes made for claims, volumes made by hand, claims of pods and of StatefulSets.

use crate::harness::{Agent, Cluster, eventually};
use std::path::Path;

/// A claim and a pod that uses it; `more` are further lines of the pod's spec.
fn claim_and_pod(name: &str, more: &str, command: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}
---
{}"#,
        pod(name, name, more, command)
    )
}

fn pod(name: &str, claim: &str, more: &str, command: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
{more}
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "{command}"]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
"#
    )
}

fn field(cluster: &Cluster, what: &str, path: &str) -> String {
    cluster.kubectl(&["get", what, "-o", &format!("jsonpath={{{path}}}")])
}

#[test]
fn a_claim_gets_a_directory_of_the_node_that_its_pod_is_put_on() {
    let mut cluster = Cluster::start();
    let mut agent = Agent::start(&cluster, 1);
    assert!(cluster.kubectl(&["get", "storageclass"]).contains("local-path (default)"));

    // without a pod it waits, and says so
    let all = claim_and_pod("data", "  nodeSelector: {kubernetes.io/hostname: node-2}", "echo kept > /data/file");
    let (claim, rest) = all.split_once("---").unwrap();
    cluster.apply(claim);
    eventually("the claim says what it waits for", || {
        let text = cluster.kubectl(&["describe", "pvc", "data"]);
        if text.contains("WaitForFirstConsumer") { Ok(()) } else { Err(text) }
    });
    assert_eq!(field(&cluster, "pvc/data", ".status.phase"), "Pending");

    // the pod decides, and what it writes outlives it
    cluster.apply(rest);
    cluster.wait_for("pod/data", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(field(&cluster, "pvc/data", ".status.phase"), "Bound");
    assert_eq!(field(&cluster, "pvc/data", ".status.capacity.storage"), "1Gi");
    let volume = field(&cluster, "pvc/data", ".spec.volumeName");
    let directory = field(&cluster, &format!("pv/{volume}"), ".spec.local.path");
    assert_eq!(std::fs::read_to_string(Path::new(&directory).join("file")).unwrap(), "kept\n");
    cluster.kubectl(&["delete", "pod", "data"]);
    let reader = "[ $(cat /data/file) = kept ] && [ $(id -u) = 1000 ] && touch /data/mine";
    cluster.apply(&pod("reader", "data", "  securityContext: {runAsUser: 1000}", reader));
    cluster.wait_for("pod/reader", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(field(&cluster, "pod/reader", ".spec.nodeName"), "node-2", "the volume is there");

    // a pod that would have to be elsewhere waits, and says why
    cluster.apply(&pod("elsewhere", "data", "  nodeSelector: {kubernetes.io/hostname: node-1}", "true"));
    eventually("the pod says why it waits", || {
        let text = cluster.kubectl(&["describe", "pod", "elsewhere"]);
        if text.contains("node(s) had volume node affinity conflict") { Ok(()) } else { Err(text) }
    });

    // protected while a pod uses it; and when it goes, so does its data
    cluster.kubectl(&["delete", "pod", "elsewhere", "reader"]);
    cluster.apply(&pod("user", "data", "", "sleep 1000"));
    cluster.wait_for("pod/user", "condition=Ready");
    cluster.kubectl(&["delete", "pvc", "data", "--wait=false"]);
    assert_eq!(field(&cluster, "pvc/data", ".status.phase"), "Bound");
    assert!(cluster.kubectl(&["get", "pvc", "data"]).contains("Terminating"));
    // the node's disk cannot be reached now: the volume waits for it, also over a crash of the server
    agent.stop(nix::sys::signal::Signal::SIGTERM);
    cluster.kubectl(&["delete", "pod", "user", "--force"]);
    cluster.kubectl(&["wait", "--for=delete", "pvc/data", "--timeout=60s"]);
    cluster.stop(nix::sys::signal::Signal::SIGKILL);
    cluster.launch();
    assert!(Path::new(&directory).exists());
    agent.launch();
    cluster.kubectl(&["wait", "--for=delete", &format!("pv/{volume}"), "--timeout=60s"]);
    assert!(!Path::new(&directory).exists());
}

const STATEFUL: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Retain}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {fsGroup: 2000, runAsUser: 1000}
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, "[ -e /data/name ] || hostname > /data/name; sleep 100000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: scratch}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "busybox:test", command: [sleep, "100000"], volumeMounts: [{name: tmp, mountPath: /tmp/x}]}
  volumes:
  - name: tmp
    ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}
"#;

#[test]
fn claims_of_stateful_sets_and_of_pods() {
    let cluster = Cluster::start();
    cluster.apply(STATEFUL);
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=60s"]);
    assert_eq!(cluster.kubectl(&["exec", "db-1", "--", "cat", "/data/name"]).trim(), "db-1");
    let claim = field(&cluster, "pvc/data-db-1", ".metadata.uid");

    // a pod's successor finds the claim of its ordinal
    cluster.kubectl(&["scale", "statefulset/db", "--replicas=1"]);
    cluster.kubectl(&["wait", "--for=delete", "pod/db-1", "--timeout=60s"]);
    cluster.kubectl(&["scale", "statefulset/db", "--replicas=2"]);
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=60s"]);
    assert_eq!(field(&cluster, "pvc/data-db-1", ".metadata.uid"), claim);
    assert_eq!(cluster.kubectl(&["exec", "db-1", "--", "cat", "/data/name"]).trim(), "db-1");

    // what is made for a pod goes with it
    cluster.wait_for("pod/scratch", "condition=Ready");
    assert_eq!(field(&cluster, "pvc/scratch-tmp", ".status.phase"), "Bound");
    cluster.kubectl(&["delete", "pod/scratch", "statefulset/db"]);
    eventually("claims, volumes and directories are gone", || {
        let left = cluster.kubectl(&["get", "pvc,pv", "-o", "name"]);
        let directories = std::fs::read_dir(cluster.data_dir().join("storage")).unwrap().count();
        if left.is_empty() && directories == 0 { Ok(()) } else { Err(format!("{left} and {directories} directories")) }
    });
}

#[test]
fn volumes_made_by_hand() {
    let cluster = Cluster::start();
    let volume = |name: &str, size: &str, policy: &str| {
        format!(
            r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}, labels: {{kind: {name}}}}}
spec:
  capacity: {{storage: {size}}}
  accessModes: [ReadWriteOnce]
  storageClassName: manual
  persistentVolumeReclaimPolicy: {policy}
  hostPath: {{path: {}/{name}}}
---
"#,
            cluster.dir.display()
        )
    };
    let claim = |name: &str, size: &str, more: &str| {
        format!(
            "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{storageClassName: manual, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {size}}}}}{more}}}}}\n---\n"
        )
    };
    cluster.apply(
        &(volume("large", "5Gi", "Retain") + &volume("small", "1Gi", "Delete") + &volume("named", "2Gi", "Retain")),
    );
    for name in ["large", "small", "named"] {
        cluster.wait_for(&format!("pv/{name}"), "jsonpath={.status.phase}=Available");
    }
    // the smallest that is large enough; one by its name; one that nothing can serve
    cluster
        .apply(&(claim("one", "1Gi", "") + &claim("two", "1Gi", ", volumeName: named") + &claim("three", "20Gi", "")));
    for (name, volume) in [("one", "small"), ("two", "named")] {
        cluster.wait_for(&format!("pvc/{name}"), "jsonpath={.status.phase}=Bound");
        assert_eq!(field(&cluster, &format!("pvc/{name}"), ".spec.volumeName"), volume);
    }
    eventually("the class of the third is missed", || {
        let text = cluster.kubectl(&["describe", "pvc", "three"]);
        if text.contains("storageclass.storage.k8s.io \"manual\" not found") { Ok(()) } else { Err(text) }
    });
    // what waited gets what comes
    cluster.apply(&volume("huge", "30Gi", "Retain"));
    cluster.wait_for("pvc/three", "jsonpath={.status.phase}=Bound");

    // a pod with them, one of which is read-only
    cluster.apply(&pod("writer", "one", "", "echo text > /data/file"));
    cluster.wait_for("pod/writer", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(std::fs::read_to_string(cluster.dir.join("small/file")).unwrap(), "text\n");

    // kept, or what nobody can delete for us
    cluster.kubectl(&["delete", "pod/writer", "pvc/one", "pvc/two"]);
    cluster.wait_for("pv/named", "jsonpath={.status.phase}=Released");
    cluster.wait_for("pv/small", "jsonpath={.status.phase}=Failed");
    assert!(cluster.dir.join("small/file").exists());
    // free again once its administrator says so
    cluster.kubectl(&["patch", "pv/named", "--type=json", "-p", r#"[{"op":"remove","path":"/spec/claimRef"}]"#]);
    cluster.wait_for("pv/named", "jsonpath={.status.phase}=Available");

    // a claim whose volume is gone is lost
    cluster.kubectl(&["delete", "pv/huge", "--wait=false"]);
    assert_eq!(field(&cluster, "pv/huge", ".status.phase"), "Bound", "protected while it is bound");
    cluster.kubectl(&["patch", "pv/huge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    cluster.wait_for("pvc/three", "jsonpath={.status.phase}=Lost");
}
