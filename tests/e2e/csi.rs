//! Volumes of drivers in real containers: the tests are the drivers, provisioners and attachers, all else is edge's.

use crate::harness::csi::{CsiDriver, EXPANDS, MOUNT_GROUP, Manner, STAGES, mounts_below};
use crate::harness::space::Space;
use crate::harness::{Cluster, Kubectl, eventually};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A driver, and a namespace for pods with its volumes.
struct Stage<'a> {
    space: Space<'a>,
    driver: &'a CsiDriver,
    name: &'a str,
}

impl<'a> Stage<'a> {
    fn new(cluster: &'a Cluster, driver: &'a CsiDriver, name: &'a str) -> Self {
        Self { space: Space { cluster, name: "disks" }, driver, name }
    }

    fn apply(&self, object: Value) {
        self.space.apply(&object.to_string());
    }

    /// The driver's object.
    fn driver(&self, spec: Value) {
        let metadata = json!({"name": self.name});
        self.apply(json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": metadata, "spec": spec}));
    }

    /// A claim with its volume, as a provisioner leaves them.
    fn claim(&self, name: &str, more: Value) {
        let mut spec = json!({"capacity": {"storage": "10Mi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "disks",
            "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "disks", "name": name},
            "csi": {"driver": self.name, "volumeHandle": format!("{name}-handle"), "fsType": "ext4",
                "volumeAttributes": {"colour": "red"}}});
        for (key, value) in more.as_object().into_iter().flatten() {
            match (&mut spec[key], value) {
                (Value::Object(into), Value::Object(from)) => into.extend(from.clone()),
                (into, from) => *into = from.clone(),
            }
        }
        let claim = json!({"storageClassName": "disks", "volumeName": format!("pv-{name}"),
            "accessModes": spec["accessModes"], "volumeMode": spec["volumeMode"],
            "resources": {"requests": {"storage": "10Mi"}}});
        let metadata = json!({"name": format!("pv-{name}")});
        self.apply(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}));
        let metadata = json!({"name": name});
        self.apply(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}));
    }

    /// A pod with a claim at `/data`, that runs a script and then waits.
    fn pod(&self, name: &str, claim: &str, script: &str) {
        self.pod_with(name, json!({"persistentVolumeClaim": {"claimName": claim}}), script, json!({}));
    }

    fn pod_with(&self, name: &str, source: Value, script: &str, more: Value) {
        let script = format!("{script}; echo end; trap 'exit 0' TERM; while true; do sleep 1; done");
        let mut volume = json!({"name": "data"});
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        let mut container = json!({"name": "main", "image": "busybox:test", "command": ["sh", "-c", script]});
        if more.get("devices").is_some() {
            container["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/data"}]);
        } else {
            container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data", "subPath": more["subPath"]}]);
        }
        let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container], "volumes": [volume],
            "securityContext": more["security"]});
        self.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}));
    }

    fn log(&self, pod: &str) -> String {
        eventually(&format!("{pod} has said all"), || {
            let out = self.space.cluster.try_kubectl(Kubectl::Newest, &["-n", "disks", "logs", pod]);
            let log = String::from_utf8_lossy(&out.stdout).into_owned();
            if log.contains("end") { Ok(log.replace('\n', " ")) } else { Err(log) }
        })
    }

    fn told(&self, pod: &str, part: &str) {
        eventually(&format!("{pod} is told {part}"), || {
            let field = format!("--field-selector=involvedObject.name={pod}");
            let messages = self.space.kubectl(&["get", "events", &field, "-o", "jsonpath={.items[*].message}"]);
            if messages.contains(part) { Ok(()) } else { Err(messages) }
        });
    }

    fn called(&self, what: &str, times: usize) {
        eventually(&format!("the driver is asked: {what}"), || {
            let calls = self.driver.calls();
            if calls.iter().filter(|call| *call == what).count() >= times { Ok(()) } else { Err(format!("{calls:?}")) }
        });
    }

    fn delete(&self, pod: &str) {
        self.space.kubectl(&["delete", "pod", pod, "--timeout=60s"]);
    }

    /// Nothing is mounted, noted or left in directories.
    fn nothing_left(&self) {
        let agent = self.space.cluster.data_dir().join("agent");
        eventually("nothing is left", || {
            let mounts = mounts_below(self.space.cluster.data_dir().as_path());
            let noted = std::fs::read_to_string(agent.join("csi.json")).unwrap_or_default();
            let in_use = self.space.field("node/node-1", ".status.volumesInUse");
            let places = std::fs::read_dir(agent.join("plugins/kubernetes.io/csi")).into_iter().flatten().flatten();
            let places: Vec<_> = places.map(|entry| entry.path()).collect();
            let clean = mounts.is_empty() && noted.contains("\"volumes\":[]") && in_use.is_empty() && places.is_empty();
            if clean { Ok(()) } else { Err(format!("{mounts:?} {noted} {in_use} {places:?}")) }
        });
    }
}

/// A name that no other test's driver has.
fn driver_name(cluster: &Cluster) -> String {
    format!("{}.disk.test", cluster.dir.file_name().unwrap().to_str().unwrap())
}

fn start(cluster: &Cluster, name: &str) -> CsiDriver {
    cluster.kubectl(&["create", "namespace", "disks"]);
    CsiDriver::start(&cluster.data_dir().join("agent"), &cluster.dir.join("store"), name)
}

#[test]
fn volumes_are_attached_staged_and_published() {
    let cluster = Cluster::start();
    let name = driver_name(&cluster);
    assert_eq!(cluster.get(&["csinode", "node-1"])["metadata"]["ownerReferences"][0]["kind"], "Node");
    let mut driver = start(&cluster, &name);
    {
        let s = Stage::new(&cluster, &driver, &name);
        s.called("registered true", 1);
        what_the_node_says(&s);
        attached_volumes(&s);
        s.nothing_left();
    }
    driver.stop();
    eventually("a driver that goes is forgotten", || {
        let drivers = cluster.get(&["csinode", "node-1"])["spec"]["drivers"].clone();
        let node = cluster.get(&["node", "node-1"])["metadata"].clone();
        let id = node["annotations"]["csi.volume.kubernetes.io/nodeid"].clone();
        let none = drivers.as_array().is_none_or(Vec::is_empty) && id.is_null();
        if none { Ok(()) } else { Err(format!("{drivers} {id}")) }
    });
    {
        let s = Stage::new(&cluster, &driver, &name);
        s.driver(json!({"attachRequired": false}));
        s.claim("late", json!({}));
        s.pod("late", "late", "echo x > /data/x");
        s.told("late", &format!("driver name {name} not found in the list of registered CSI drivers"));
    }
    driver.resume();
    Stage::new(&cluster, &driver, &name).space.ready(&["late"]);
    // one that goes while its volumes are used is waited for
    driver.stop();
    cluster.kubectl(&["delete", "pod", "late", "-n", "disks", "--wait=false"]);
    eventually("the driver is missed", || {
        let log = cluster.log();
        if log.contains("UnmountVolume.TearDown failed") { Ok(()) } else { Err(String::new()) }
    });
    driver.resume();
    let s = Stage::new(&cluster, &driver, &name);
    s.space.kubectl(&["wait", "pod/late", "--for=delete", "--timeout=60s"]);
    s.nothing_left();
    // a node that is known again has its drivers still
    cluster.kubectl(&["delete", "node", "node-1"]);
    eventually("the node's drivers are known again", || {
        let uid =
            s.space.cluster.try_kubectl(Kubectl::Newest, &["get", "node", "node-1", "-o", "jsonpath={.metadata.uid}"]);
        let out = s.space.cluster.try_kubectl(Kubectl::Newest, &["get", "csinode", "node-1", "-o", "json"]);
        let node: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        let is_owned = node["metadata"]["ownerReferences"][0]["uid"] == String::from_utf8_lossy(&uid.stdout).as_ref();
        if is_owned && node["spec"]["drivers"][0]["name"] == name { Ok(()) } else { Err(node.to_string()) }
    });
    // and a lease, which is the new node's
    eventually("the node has a lease of its own", || {
        let owner = "-o=jsonpath={.metadata.ownerReferences[0].uid}";
        let uid = s.space.cluster.kubectl(&["get", "node", "node-1", "-o=jsonpath={.metadata.uid}"]);
        let lease =
            s.space.cluster.try_kubectl(Kubectl::Newest, &["get", "lease", "node-1", "-n=kube-node-lease", owner]);
        let owner = String::from_utf8_lossy(&lease.stdout);
        if owner == uid { Ok(()) } else { Err(format!("{owner} and not {uid}")) }
    });
}

fn what_the_node_says(s: &Stage<'_>) {
    let node = s.space.cluster.get(&["csinode", "node-1"]);
    let want = json!([{"name": s.name, "nodeID": "the-node", "topologyKeys": ["topology.test/zone"],
        "allocatable": {"count": 7}}]);
    assert_eq!(node["spec"]["drivers"], want);
    let node = s.space.cluster.get(&["node", "node-1"]);
    assert_eq!(node["metadata"]["labels"]["topology.test/zone"], "here");
    let ids = node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"].as_str().unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&ids).unwrap(), json!({s.name: "the-node"}));
}

fn attached_volumes(s: &Stage<'_>) {
    // who makes the volume of a claim is written on it for the provisioner
    s.apply(json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "made"},
        "provisioner": s.name, "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true}));
    let claim = json!({"storageClassName": "made", "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "10Mi"}}});
    s.apply(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "disk"}, "spec": claim}));
    s.pod("first", "disk", "echo kept > /data/file");
    let annotation = |key: &str| {
        let path = format!(".metadata.annotations.{}", key.replace('.', "\\."));
        s.space.field("pvc/disk", &path)
    };
    eventually("the provisioner is told of the claim", || {
        let (by, at) =
            (annotation("volume.kubernetes.io/storage-provisioner"), annotation("volume.kubernetes.io/selected-node"));
        if by == s.name && at == "node-1" { Ok(()) } else { Err(format!("{by} {at}")) }
    });
    let uid = s.space.field("pvc/disk", ".metadata.uid");
    let volume = format!("pvc-{uid}");
    let spec = json!({"capacity": {"storage": "10Mi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "made",
        "persistentVolumeReclaimPolicy": "Delete", "mountOptions": ["noatime"],
        "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "disks", "name": "disk", "uid": uid},
        "csi": {"driver": s.name, "volumeHandle": "disk-handle", "volumeAttributes": {"colour": "red"}}});
    let metadata = json!({"name": volume, "annotations": {"pv.kubernetes.io/provisioned-by": s.name},
        "finalizers": ["external-provisioner.volume.kubernetes.io/finalizer"]});
    s.apply(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}));
    // the attacher
    let attachment = eventually("the volume is to be attached", || {
        let name = s.space.field("volumeattachments", ".items[*].metadata.name");
        if name.is_empty() { Err("none".into()) } else { Ok(name) }
    });
    assert_eq!(s.driver.count("NodeStageVolume disk-handle"), 0, "it is not attached yet");
    let va = format!("volumeattachment/{attachment}");
    let change = |change: Value, more: &[&str]| {
        let change = change.to_string();
        s.space.kubectl(&[&["patch", &va, "--type=merge", "-p", &change], more].concat());
    };
    change(json!({"metadata": {"finalizers": [format!("external-attacher/{}", s.name)]}}), &[]);
    change(json!({"status": {"attached": true, "attachmentMetadata": {"lun": "7"}}}), &["--subresource=status"]);
    s.space.ready(&["first"]);
    s.log("first");
    let staged = s.driver.last("NodeStageVolume", "disk-handle");
    assert_eq!((staged.maps[&2]["lun"].as_str(), staged.maps[&6]["colour"].as_str()), ("7", "red"));
    assert_eq!((staged.access_mode, staged.mount_flags.as_slice()), (5, &["noatime".to_owned()][..]));
    assert!(staged.texts[&3].contains(&format!("plugins/kubernetes.io/csi/{}/", s.name)), "{staged:?}");
    assert!(staged.texts[&3].ends_with("/globalmount"));
    let published = s.driver.last("NodePublishVolume", "disk-handle");
    assert_eq!(published.texts[&3], staged.texts[&3]);
    assert!(published.texts[&4].ends_with(&format!("/volumes/kubernetes.io~csi/{volume}/mount")), "{published:?}");
    assert_eq!(published.maps[&2]["lun"], "7");
    let in_use = s.space.field("node/node-1", ".status.volumesInUse[*]");
    assert_eq!(in_use, format!("kubernetes.io/csi/{}^disk-handle", s.name));

    // another pod has the same one; a part of it, too
    s.pod("second", "disk", "cat /data/file");
    assert_eq!(s.log("second"), "kept end ");
    let source = json!({"persistentVolumeClaim": {"claimName": "disk", "readOnly": true}});
    s.pod_with("part", source, "cat /data; touch /data 2>/dev/null || echo read-only", json!({"subPath": "file"}));
    assert_eq!(s.log("part"), "kept read-only end ");
    assert_eq!(s.driver.last("NodePublishVolume", "disk-handle").numbers.get(&6), Some(&1));
    assert_eq!(s.driver.count("NodeStageVolume disk-handle"), 1);
    for pod in ["part", "first"] {
        s.delete(pod);
    }
    assert_eq!(s.driver.count("NodeUnpublishVolume disk-handle"), 2, "before the pods are gone");
    assert_eq!(s.driver.count("NodeUnstageVolume disk-handle"), 0);
    s.delete("second");
    s.called("NodeUnstageVolume disk-handle", 1);
    // detached after that, and not before
    eventually("it is to be detached", || {
        let deleted = s.space.field(&va, ".metadata.deletionTimestamp");
        if deleted.is_empty() { Err("not yet".into()) } else { Ok(()) }
    });
    change(json!({"metadata": {"finalizers": null}}), &[]);
    // its provisioner deletes it
    s.space.kubectl(&["delete", "pvc", "disk", "--timeout=60s"]);
    s.space.kubectl(&["wait", &format!("pv/{volume}"), "--for=jsonpath={.status.phase}=Released", "--timeout=60s"]);
    s.space.kubectl(&["patch", &format!("pv/{volume}"), "-p", r#"{"metadata":{"finalizers":null}}"#]);
    s.space.kubectl(&["delete", "pv", &volume, "--timeout=60s"]);
}

#[test]
fn volumes_of_all_kinds() {
    let cluster = Cluster::start();
    let name = driver_name(&cluster);
    let driver = start(&cluster, &name);
    let s = Stage::new(&cluster, &driver, &name);
    s.called("registered true", 1);
    s.driver(json!({"attachRequired": false}));
    let own = volumes_of_a_pods_own(&s);
    groups(&s);
    block_devices(&s);
    growing(&s);
    drivers_that_do_not_work(&s);
    published_again(&s, &own);
    s.nothing_left();
}

fn volumes_of_a_pods_own(s: &Stage<'_>) -> String {
    s.space.kubectl(&["create", "secret", "generic", "key", "--from-literal=password=sesame"]);
    let source = json!({"csi": {"driver": s.name, "fsType": "ext4", "volumeAttributes": {"size": "1"},
        "nodePublishSecretRef": {"name": "key"}}});
    s.pod_with("own", source, "touch /data/mine && ls /data", json!({}));
    s.told("own", &format!("volume mode \"Ephemeral\" not supported by driver {}", s.name));
    s.space.kubectl(&["delete", "csidriver", s.name]);
    s.driver(
        json!({"attachRequired": false, "podInfoOnMount": true, "volumeLifecycleModes": ["Ephemeral", "Persistent"],
        "tokenRequests": [{"audience": "vault"}], "requiresRepublish": true, "fsGroupPolicy": "File"}),
    );
    s.space.ready(&["own"]);
    assert_eq!(s.log("own"), "mine end ");
    let call = s.driver.last_of("NodePublishVolume").unwrap();
    let context = &call.maps[&8];
    for (key, want) in [
        ("size", "1"),
        ("csi.storage.k8s.io/pod.name", "own"),
        ("csi.storage.k8s.io/pod.namespace", "disks"),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
        ("csi.storage.k8s.io/ephemeral", "true"),
    ] {
        assert_eq!(context[key], want, "{key}");
    }
    let tokens: Value = serde_json::from_str(&context["csi.storage.k8s.io/serviceAccount.tokens"]).unwrap();
    assert!(tokens["vault"]["token"].as_str().is_some_and(|token| token.split('.').count() == 3));
    assert!(tokens["vault"]["expirationTimestamp"].is_string());
    assert_eq!(call.maps[&7]["password"], "sesame");
    assert_eq!(s.driver.count(&format!("NodeStageVolume {}", call.handle)), 0);
    call.handle
}

/// A driver that wants it so is asked again and again.
fn published_again(s: &Stage<'_>, handle: &str) {
    s.called(&format!("NodePublishVolume {handle}"), 2);
    let again = s.driver.last("NodePublishVolume", handle);
    assert!(again.maps[&8].contains_key("csi.storage.k8s.io/serviceAccount.tokens"), "{again:?}");
    s.delete("own");
    assert_eq!(s.driver.count(&format!("NodeUnpublishVolume {handle}")), 1);
}

fn groups(s: &Stage<'_>) {
    let look = "echo a > /data/a; stat -c %g /data/a";
    let more = json!({"security": {"fsGroup": 4711, "runAsUser": 1000}});
    let source = json!({"persistentVolumeClaim": {"claimName": "grouped"}});
    s.claim("grouped", json!({"csi": {"nodeStageSecretRef": {"namespace": "disks", "name": "key"}}}));
    s.pod_with("grouped", source, look, more.clone());
    assert_eq!(s.log("grouped"), "4711 end ");
    assert_eq!(s.driver.last("NodeStageVolume", "grouped-handle").maps[&5]["password"], "sesame");
    s.delete("grouped");
}

fn block_devices(s: &Stage<'_>) {
    s.claim("raw", json!({"volumeMode": "Block"}));
    let source = json!({"persistentVolumeClaim": {"claimName": "raw"}});
    s.pod_with("mounted", source.clone(), "true", json!({}));
    s.told("mounted", "volume data has volumeMode Block, but is specified in volumeMounts");
    s.delete("mounted");
    let script = "test -b /dev/data && echo device; echo written | dd of=/dev/data bs=512 conv=sync 2>/dev/null; head -c 7 /dev/data";
    s.pod_with("raw", source, script, json!({"devices": true}));
    assert_eq!(s.log("raw"), "device writtenend ");
    let call = s.driver.last("NodePublishVolume", "raw-handle");
    assert!(call.is_block && call.texts[&4].contains("/volumeDevices/publish/pv-raw/"), "{call:?}");
    assert!(call.texts[&3].ends_with("/volumeDevices/staging/pv-raw"));
    s.delete("raw");
    s.called("NodeUnstageVolume raw-handle", 1);
}

fn growing(s: &Stage<'_>) {
    s.claim("small", json!({}));
    s.pod("grows", "small", "true");
    s.space.ready(&["grows"]);
    assert_eq!(s.driver.count("NodeExpandVolume small-handle"), 0);
    // what the external resizer does
    let grow = |size: &str| {
        let spec = json!({"spec": {"capacity": {"storage": size}}}).to_string();
        s.space.kubectl(&["patch", "pv/pv-small", "--type=merge", "-p", &spec]);
        let status = json!({"status": {"allocatedResources": {"storage": size},
            "allocatedResourceStatuses": {"storage": "NodeResizePending"},
            "conditions": [{"type": "FileSystemResizePending", "status": "True", "lastTransitionTime": null}]}});
        s.space.kubectl(&["patch", "pvc/small", "--subresource=status", "--type=merge", "-p", &status.to_string()]);
    };
    s.driver.does("NodeExpandVolume", Manner::Fails);
    grow("20Mi");
    s.told("grows", "the disk is stuck, the test says");
    s.driver.does("NodeExpandVolume", Manner::Well);
    s.space.kubectl(&["wait", "pvc/small", "--for=jsonpath={.status.capacity.storage}=20Mi", "--timeout=60s"]);
    let status = s.space.cluster.get(&["pvc", "small", "-n", "disks"])["status"].clone();
    assert!(status["conditions"].is_null() && status["allocatedResourceStatuses"].is_null(), "{status}");
    let call = s.driver.last("NodeExpandVolume", "small-handle");
    assert_eq!(call.size, 20 << 20);
    assert!(call.texts[&2].ends_with("/mount") && call.texts[&4].ends_with("/globalmount"), "{call:?}");
    s.told("grows", "MountVolume.NodeExpandVolume succeeded for volume \"pv-small\"");
    // one that never can
    s.driver.does("NodeExpandVolume", Manner::Refuses);
    grow("30Mi");
    let state = ".status.allocatedResourceStatuses.storage";
    s.space.kubectl(&[
        "wait",
        "pvc/small",
        &format!("--for=jsonpath={{{state}}}=NodeResizeInfeasible"),
        "--timeout=60s",
    ]);
    s.driver.does("NodeExpandVolume", Manner::Well);
    s.delete("grows");
    // at the next start
    grow("30Mi");
    s.pod("grown", "small", "true");
    s.space.ready(&["grown"]);
    s.space.kubectl(&["wait", "pvc/small", "--for=jsonpath={.status.capacity.storage}=30Mi", "--timeout=60s"]);
    s.delete("grown");
}

fn drivers_that_do_not_work(s: &Stage<'_>) {
    for (pod, method, manner, part) in [
        (
            "unstaged",
            "NodeStageVolume",
            Manner::Fails,
            "MountVolume.MountDevice failed for volume \"pv-unstaged\" : rpc error: code = Internal desc = the disk is stuck, the test says",
        ),
        (
            "refused",
            "NodePublishVolume",
            Manner::Refuses,
            "MountVolume.SetUp failed for volume \"pv-refused\" : rpc error: code = OutOfRange desc = it is too much, the test says",
        ),
        (
            "mute",
            "NodeStageVolume",
            Manner::Mute,
            "MountVolume.MountDevice failed for volume \"pv-mute\" : rpc error: code = Internal",
        ),
    ] {
        s.claim(pod, json!({}));
        s.driver.does(method, manner);
        s.pod(pod, pod, "true");
        s.told(pod, part);
        s.driver.does(method, Manner::Well);
        s.space.ready(&[pod]);
        s.delete(pod);
    }
    // a call that hangs keeps no other pod, nor its own pod from going
    s.claim("hanging", json!({}));
    s.claim("other", json!({}));
    s.driver.does("NodePublishVolume", Manner::Hangs);
    s.pod("hanging", "hanging", "true");
    s.called("NodePublishVolume hanging-handle", 1);
    s.driver.does("NodePublishVolume", Manner::Well);
    s.pod("other", "other", "true");
    s.space.ready(&["other"]);
    s.delete("hanging");
    s.delete("other");
    // what cannot be taken back keeps its pod
    s.claim("stuck", json!({}));
    s.pod("stuck", "stuck", "true");
    s.space.ready(&["stuck"]);
    s.driver.does("NodeUnpublishVolume", Manner::Fails);
    s.space.kubectl(&["delete", "pod", "stuck", "--wait=false"]);
    s.called("NodeUnpublishVolume stuck-handle", 2);
    assert!(!s.space.field("pod/stuck", ".metadata.deletionTimestamp").is_empty());
    s.driver.does("NodeUnpublishVolume", Manner::Well);
    s.space.kubectl(&["wait", "pod/stuck", "--for=delete", "--timeout=60s"]);
}

#[test]
fn drivers_with_other_abilities() {
    let cluster = Cluster::start();
    let name = driver_name(&cluster);
    cluster.kubectl(&["create", "namespace", "disks"]);
    let driver = CsiDriver::start(&cluster.data_dir().join("agent"), &cluster.dir.join("store"), &name);
    driver.can(&[EXPANDS, MOUNT_GROUP]);
    let s = Stage::new(&cluster, &driver, &name);
    s.called("registered true", 1);
    s.driver(json!({"attachRequired": false, "fsGroupPolicy": "File", "serviceAccountTokenInSecrets": true,
        "tokenRequests": [{"audience": ""}]}));
    s.claim("once", json!({"accessModes": ["ReadWriteOncePod"]}));
    let source = json!({"persistentVolumeClaim": {"claimName": "once"}});
    s.pod_with("once", source, "stat -c %g /data", json!({"security": {"fsGroup": 4711}}));
    assert_eq!(s.log("once"), "0 end ", "the driver's own business");
    let call = s.driver.last("NodePublishVolume", "once-handle");
    assert_eq!((call.group.as_str(), call.access_mode), ("4711", 1));
    assert!(!call.texts.contains_key(&3), "nothing is staged: {call:?}");
    assert!(call.maps[&7]["csi.storage.k8s.io/serviceAccount.tokens"].contains("\"token\":"), "{call:?}");
    assert!(!call.maps[&8].contains_key("csi.storage.k8s.io/serviceAccount.tokens"));
    s.delete("once");
    assert_eq!(s.driver.count("NodeStageVolume once-handle") + s.driver.count("NodeUnstageVolume once-handle"), 0);
    s.nothing_left();
    drivers_in_pods(&s);
}

/// What drivers' own pods mount is on the host, where other pods get it; on a machine where it cannot be, they are told.
fn drivers_in_pods(s: &Stage<'_>) {
    let none: Option<&str> = None;
    let shared = s.space.cluster.dir.join("shared");
    std::fs::create_dir_all(shared.join("lonely")).unwrap();
    std::fs::create_dir_all(shared.join("common")).unwrap();
    for (place, flag) in [("lonely", MsFlags::MS_PRIVATE), ("common", MsFlags::MS_SHARED)] {
        mount(Some("tmpfs"), &shared.join(place), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(none, &shared.join(place), none, flag, none).unwrap();
        let path = shared.join(place).join("plugins");
        std::fs::create_dir_all(&path).unwrap();
        let path = path.display().to_string();
        let script =
            format!("mkdir {path}/m && mount -t tmpfs none {path}/m && touch {path}/m/file; echo end; sleep 1000");
        let container = json!({"name": "main", "image": "busybox:test", "command": ["sh", "-c", script],
            "securityContext": {"privileged": true},
            "volumeMounts": [{"name": "data", "mountPath": path, "mountPropagation": "Bidirectional"}]});
        let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container],
            "volumes": [{"name": "data", "hostPath": {"path": path, "type": "Directory"}}]});
        s.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": place}, "spec": spec}));
    }
    s.log("common");
    assert!(shared.join("common/plugins/m/file").exists());
    s.told("lonely", "but it is not a shared mount");
    s.space.kubectl(&["delete", "pod", "lonely", "common", "--timeout=60s"]);
}

#[test]
fn volumes_outlive_crashes() {
    let mut cluster = Cluster::start();
    let name = driver_name(&cluster);
    let mut driver = start(&cluster, &name);
    driver.can(&[STAGES]);
    {
        let s = Stage::new(&cluster, &driver, &name);
        s.called("registered true", 1);
        s.driver(json!({"attachRequired": false}));
        s.claim("disk", json!({}));
        s.claim("gone", json!({}));
        // between stage and publish
        s.driver.does("NodePublishVolume", Manner::Hangs);
        s.pod("pod", "disk", "echo kept > /data/file");
        s.called("NodePublishVolume disk-handle", 1);
    }
    cluster.stop(Signal::SIGKILL);
    driver.does("NodePublishVolume", Manner::Well);
    cluster.launch();
    let (id, asked) = {
        let s = Stage::new(&cluster, &driver, &name);
        s.space.ready(&["pod"]);
        assert_eq!(s.driver.count("NodeStageVolume disk-handle"), 1, "what is staged is not staged again");
        s.pod("gone", "gone", "true");
        s.space.ready(&["gone"]);
        (s.space.field("pod/pod", ".status.containerStatuses[0].containerID"), s.driver.calls().len())
    };
    // while it runs nothing is done again; without the driver, too
    cluster.stop(Signal::SIGKILL);
    driver.stop();
    cluster.launch();
    {
        let s = Stage::new(&cluster, &driver, &name);
        s.space.ready(&["pod"]);
        assert_eq!(s.space.field("pod/pod", ".status.containerStatuses[0].containerID"), id);
        assert_eq!(s.driver.calls().len(), asked, "{:?}", s.driver.calls());
        // one pod is forgotten by the API, the other ends while its driver hangs, then edge dies
        s.space.kubectl(&["delete", "pod", "gone", "--force", "--grace-period=0"]);
    }
    cluster.stop(Signal::SIGKILL);
    driver.resume();
    driver.does("NodeUnpublishVolume", Manner::Hangs);
    cluster.launch();
    {
        let s = Stage::new(&cluster, &driver, &name);
        s.called("NodeUnpublishVolume gone-handle", 1);
        s.space.kubectl(&["delete", "pod", "pod", "--wait=false"]);
        s.called("NodeUnpublishVolume disk-handle", 1);
    }
    cluster.stop(Signal::SIGKILL);
    driver.does("NodeUnpublishVolume", Manner::Well);
    driver.does("NodeUnstageVolume", Manner::Hangs);
    cluster.launch();
    {
        let s = Stage::new(&cluster, &driver, &name);
        s.space.kubectl(&["wait", "pod/pod", "--for=delete", "--timeout=60s"]);
        s.called("NodeUnstageVolume disk-handle", 1);
        s.called("NodeUnstageVolume gone-handle", 1);
    }
    cluster.stop(Signal::SIGKILL);
    driver.does("NodeUnstageVolume", Manner::Well);
    cluster.launch();
    let s = Stage::new(&cluster, &driver, &name);
    s.nothing_left();
    // and what was written is still there
    s.pod("reader", "disk", "cat /data/file");
    assert_eq!(s.log("reader"), "kept end ");
    s.delete("reader");
    s.nothing_left();
}
