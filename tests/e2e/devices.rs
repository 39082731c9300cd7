//! Devices and volumes of drivers: the tests play the drivers and the kubelets, and in part the scheduler, on nodes that exist as objects only.

use crate::conformance::{ApiKind, Flow, every_verb, get, together};
use crate::harness::space::Space;
use crate::harness::{Cluster, Kubectl, eventually};
use serde_json::{Value, json};

#[test]
fn devices_and_volumes_of_drivers() {
    let flows: [(&str, Flow); 7] = [
        ("operations", operations),
        ("claims", claims_to_devices),
        ("allocation", allocation_by_the_scheduler),
        ("taints", taints_of_devices),
        ("attachments", attachments),
        ("growth", growth),
        ("attributes", attributes_in_use),
    ];
    together(&Cluster::start(), &flows);
}

fn operations(cluster: &Cluster) {
    let space = Space::new(cluster, "driver-operations");
    let names = ["one", "two", "three"];
    let devices = json!({"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu"}}]}});
    let slice = json!({"spec": {"driver": "d.io", "nodeName": "n", "pool": {"name": "n", "resourceSliceCount": 1}, "devices": [{"name": "gpu-0"}]}});
    let attachment = json!({"spec": {"attacher": "d.io", "nodeName": "n", "source": {"persistentVolumeName": "v"}}});
    let kinds: [ApiKind; 10] = [
        ("resource.k8s.io/v1", "deviceclasses", false, false, names, json!({"spec": {}})),
        ("resource.k8s.io/v1", "resourceclaims", true, true, names, json!({"spec": devices})),
        ("resource.k8s.io/v1", "resourceclaimtemplates", true, false, names, json!({"spec": {"spec": devices}})),
        ("resource.k8s.io/v1", "resourceslices", false, false, names, slice),
        ("storage.k8s.io/v1", "csidrivers", false, false, names, json!({"spec": {}})),
        ("storage.k8s.io/v1", "csinodes", false, false, names, json!({"spec": {"drivers": []}})),
        ("storage.k8s.io/v1", "csistoragecapacities", true, false, names, json!({"storageClassName": "c"})),
        ("storage.k8s.io/v1", "storageclasses", false, false, names, json!({"provisioner": "d.io"})),
        ("storage.k8s.io/v1", "volumeattachments", false, true, names, attachment),
        (
            "storage.k8s.io/v1",
            "volumeattributesclasses",
            false,
            false,
            names,
            json!({"driverName": "d.io", "parameters": {"a": "b"}}),
        ),
    ];
    for kind in kinds {
        every_verb(&space, kind);
    }
}

fn patch(space: &Space<'_>, what: &str, more: &[&str], patch: &Value) {
    let text = patch.to_string();
    let mut args = vec!["patch", what, "--type=merge", "-p", &text];
    args.extend(more);
    space.kubectl(&args);
}

fn patch_status(space: &Space<'_>, what: &str, status: &Value) {
    patch(space, what, &["--subresource=status"], &json!({"status": status}));
}

/// What is said when a patch is refused.
fn refused(space: &Space<'_>, what: &str, more: &[&str], patch: &Value) -> String {
    let text = patch.to_string();
    let mut args = vec!["-n", space.name, "patch", what, "--type=merge", "-p", &text];
    args.extend(more);
    let out = space.cluster.try_kubectl(Kubectl::Newest, &args);
    assert!(!out.status.success(), "{what} takes {patch}");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn reaches(space: &Space<'_>, what: &str, path: &str, want: &str) {
    eventually(&format!("{what} {path} is {want}"), || {
        let now = space.field(what, path);
        if now == want { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

fn gone(space: &Space<'_>, what: &str) {
    eventually(&format!("{what} goes"), || {
        let found = space.kubectl(&["get", what, "--ignore-not-found", "-o", "yaml"]);
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
}

fn told(space: &Space<'_>, about: &str, reason: &str, part: &str) {
    eventually(&format!("{about} is told {reason}"), || {
        let field = format!("--field-selector=involvedObject.name={about},reason={reason}");
        let messages = space.kubectl(&["get", "events", &field, "-o", "jsonpath={.items[*].message}"]);
        if messages.contains(part) { Ok(()) } else { Err(messages) }
    });
}

/// A pod that no scheduler and no kubelet takes.
fn pod(space: &Space<'_>, name: &str, spec: &Value) {
    let mut whole = json!({"schedulerName": "nobody", "containers": [{"name": "c", "image": "busybox:test"}],
        "tolerations": [{"operator": "Exists"}]});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    space.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": whole}).to_string());
}

/// A node without a kubelet.
fn node(cluster: &Cluster, name: &str) {
    cluster.apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}"));
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "as a test says"}]}});
    cluster.kubectl(&["patch", "node", name, "--subresource=status", "-p", &ready.to_string()]);
}

fn uid(space: &Space<'_>, what: &str) -> String {
    space.field(what, ".metadata.uid")
}

/// What the scheduler writes: a device for a claim, and who uses it.
fn allocate(space: &Space<'_>, claim: &str, tolerations: &Value, users: &[&str]) {
    let what = format!("resourceclaim/{claim}");
    patch(space, &what, &[], &json!({"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}}));
    let users: Vec<Value> = users
        .iter()
        .map(|pod| json!({"resource": "pods", "name": pod, "uid": uid(space, &format!("pod/{pod}"))}))
        .collect();
    let result =
        json!({"request": "gpu", "driver": "d.io", "pool": space.name, "device": "gpu-0", "tolerations": tolerations});
    patch_status(space, &what, &json!({"allocation": {"devices": {"results": [result]}}, "reservedFor": users}));
}

const DEVICES: &str = "{devices: {requests: [{name: gpu, exactly: {deviceClassName: gpu}}]}}";

fn claims_to_devices(cluster: &Cluster) {
    let space = Space::new(cluster, "claims");
    // a pod waits for its template, and then has a claim of its own
    pod(&space, "user", &json!({"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]}));
    told(&space, "user", "FailedResourceClaimCreation", "resourceclaimtemplates.resource.k8s.io \"t\" not found");
    space.apply(&format!(
        "{{apiVersion: resource.k8s.io/v1, kind: ResourceClaimTemplate, metadata: {{name: t}}, spec: {{metadata: {{labels: {{a: b}}}}, spec: {DEVICES}}}}}"
    ));
    let claim = eventually("the claim is noted", || {
        let name = space.field("pod/user", ".status.resourceClaimStatuses[?(@.name=='gpu')].resourceClaimName");
        if name.is_empty() { Err("not yet".to_owned()) } else { Ok(name) }
    });
    assert!(claim.starts_with("user-gpu-"), "{claim}");
    let what = format!("resourceclaim/{claim}");
    assert_eq!(space.field(&what, ".metadata.ownerReferences[0].uid"), uid(&space, "pod/user"));
    assert_eq!(space.field(&what, ".metadata.labels.a"), "b");
    assert_eq!(space.field(&what, ".spec.devices.requests[0].exactly.count"), "1", "as defaults say");
    assert_eq!(space.kubectl(&["get", "resourceclaims", "-o", "name"]).lines().count(), 1, "one is enough");
    // one that somebody deletes is made again
    space.kubectl(&["delete", &what]);
    let claim = eventually("another claim is noted", || {
        let name = space.field("pod/user", ".status.resourceClaimStatuses[?(@.name=='gpu')].resourceClaimName");
        if name == claim { Err(name) } else { Ok(name) }
    });
    let what = format!("resourceclaim/{claim}");
    assert!(space.kubectl(&["get", &what]).contains("pending"));

    // what a status may say
    let reserved = json!({"status": {"reservedFor": [{"resource": "pods", "name": "user", "uid": "u"}]}});
    let why = refused(&space, &what, &["--subresource=status"], &reserved);
    assert!(why.contains("may not be specified when `allocated` is not set"), "{why}");
    let why = refused(&space, &what, &[], &json!({"spec": {"devices": {"requests": []}}}));
    assert!(why.contains("field is immutable"), "{why}");

    // when the pod has ended, devices are given back and the claim goes
    allocate(&space, &claim, &json!([]), &["user"]);
    assert!(space.kubectl(&["get", &what]).contains("allocated,reserved"));
    patch_status(&space, "pod/user", &json!({"phase": "Succeeded"}));
    gone(&space, &what);

    // a claim of its own, used by several pods one after the other
    space.apply(&format!(
        "{{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, metadata: {{name: shared}}, spec: {DEVICES}}}"
    ));
    for name in ["a", "b"] {
        pod(&space, name, &json!({"resourceClaims": [{"name": "gpu", "resourceClaimName": "shared"}]}));
    }
    allocate(&space, "shared", &json!([]), &["a", "b"]);
    space.kubectl(&["delete", "pod", "a"]);
    reaches(&space, "resourceclaim/shared", ".status.reservedFor[*].name", "b");
    // deleted, it stays as long as it is used
    space.kubectl(&["delete", "resourceclaim/shared", "--wait=false"]);
    assert!(space.kubectl(&["get", "resourceclaim/shared"]).contains("deleted,allocated,reserved"));
    space.kubectl(&["delete", "pod", "b"]);
    gone(&space, "resourceclaim/shared");

    // a pod that somebody else put on a node may use what has been set aside
    node(cluster, "claims-node");
    space.apply(&format!(
        "{{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, metadata: {{name: late}}, spec: {DEVICES}}}"
    ));
    allocate(&space, "late", &json!([]), &[]);
    let spec = json!({"nodeName": "claims-node", "resourceClaims": [{"name": "gpu", "resourceClaimName": "late"}]});
    pod(&space, "late", &spec);
    reaches(&space, "resourceclaim/late", ".status.reservedFor[*].name", "late");
    space.kubectl(&["delete", "pod", "late", "--force"]);
    reaches(&space, "resourceclaim/late", ".status", "{}");
}

fn taints_of_devices(cluster: &Cluster) {
    let space = Space::new(cluster, "taints");
    node(cluster, "taints-node");
    let slice = |taints: Value| {
        let spec = json!({"driver": "d.io", "nodeName": "taints-node", "devices": [{"name": "gpu-0", "taints": taints}],
            "pool": {"name": space.name, "generation": 1, "resourceSliceCount": 1}});
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "taints"}, "spec": spec})
            .to_string()
    };
    cluster.apply(&slice(json!([{"key": "worn", "effect": "NoSchedule"}])));
    for (name, tolerations) in [
        ("frail", json!([])),
        ("patient", json!([{"key": "broken", "operator": "Exists", "tolerationSeconds": 100_000}])),
        ("sturdy", json!([{"operator": "Exists"}])),
    ] {
        let claim = format!(
            "{{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, metadata: {{name: {name}}}, spec: {DEVICES}}}"
        );
        space.apply(&claim);
        let spec = json!({"nodeName": "taints-node", "resourceClaims": [{"name": "gpu", "resourceClaimName": name}]});
        pod(&space, name, &spec);
        allocate(&space, name, &tolerations, &[name]);
    }
    cluster.apply(&slice(json!([{"key": "broken", "effect": "NoExecute"}])));
    assert!(
        !cluster
            .kubectl(&["get", "resourceslice", "taints", "-o", "jsonpath={.spec.devices[0].taints[0].timeAdded}"])
            .is_empty()
    );
    eventually("the pod that does not tolerate it goes", || {
        let at = space.field("pod/frail", ".metadata.deletionTimestamp");
        if at.is_empty() { Err("it stays".to_owned()) } else { Ok(()) }
    });
    let path = ".status.conditions[?(@.type=='DisruptionTarget')].reason";
    assert_eq!(space.field("pod/frail", path), "DeletionByDeviceTaintManager");
    told(&space, "frail", "DeviceTaintManagerEviction", "Marking for deletion Pod taints/frail");
    // the taint goes while the patient one still waits
    cluster.apply(&slice(json!([])));
    told(&space, "patient", "DeviceTaintManagerEviction", "Cancelling deletion of Pod taints/patient");
    for name in ["patient", "sturdy"] {
        assert_eq!(space.field(&format!("pod/{name}"), ".metadata.deletionTimestamp"), "", "{name} stays");
    }
    space.kubectl(&["delete", "pod", "--all", "--force"]);
}

/// A driver's volume and a claim that has it.
fn volume(space: &Space<'_>, name: &str, driver: &str) {
    let source = json!({"driver": driver, "volumeHandle": format!("handle-{name}")});
    let common = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": ""});
    let mut volume = common.clone();
    volume["capacity"] = json!({"storage": "1Gi"});
    volume["csi"] = source;
    let mut claim = common;
    claim["resources"] = json!({"requests": {"storage": "1Gi"}});
    claim["volumeName"] = name.into();
    for (kind, spec) in [("PersistentVolume", volume), ("PersistentVolumeClaim", claim)] {
        space.apply(&json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string());
    }
    space.kubectl(&["wait", &format!("pvc/{name}"), "--for=jsonpath={.status.phase}=Bound", "--timeout=60s"]);
}

fn attachments(cluster: &Cluster) {
    let space = Space::new(cluster, "attachments");
    for name in ["csi-1", "csi-2"] {
        node(cluster, name);
    }
    for (driver, required) in [("csi.test", true), ("direct.test", false)] {
        let spec = json!({"attachRequired": required});
        let driver =
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": driver}, "spec": spec});
        cluster.apply(&driver.to_string());
    }
    volume(&space, "disk", "csi.test");
    volume(&space, "direct", "direct.test");
    let user = |name: &str, node: &str, claim: &str| {
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
        pod(&space, name, &json!({"nodeName": node, "volumes": volumes}));
    };
    user("directly", "csi-1", "direct");
    user("one", "csi-1", "disk");
    let at = |node: &str| -> Vec<String> {
        let all = get(cluster, "/apis/storage.k8s.io/v1/volumeattachments");
        let here = |a: &&Value| a["spec"]["nodeName"] == node;
        all["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(here)
            .map(|a| a["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let attachment = |node: &str| {
        eventually(&format!("an attachment to {node}"), || at(node).pop().ok_or_else(|| "none".to_owned()))
    };
    let first = attachment("csi-1");
    let what = format!("volumeattachment/{first}");
    assert_eq!(space.field(&what, ".spec.source.persistentVolumeName"), "disk");
    assert_eq!(space.field(&what, ".spec.attacher"), "csi.test");

    // the driver says no, and then yes
    patch_status(&space, &what, &json!({"attached": false, "attachError": {"message": "too busy"}}));
    told(&space, "one", "FailedAttachVolume", "AttachVolume.Attach failed for volume \"disk\" : too busy");
    patch_status(&space, &what, &json!({"attached": true, "attachError": null}));
    told(&space, "one", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume \"disk\"");
    let name = "kubernetes.io/csi/csi.test^handle-disk";
    reaches(&space, "node/csi-1", ".status.volumesAttached[*].name", name);
    patch_status(&space, "node/csi-1", &json!({"volumesInUse": [name]}));

    // one node at a time
    user("two", "csi-2", "disk");
    told(&space, "two", "FailedAttachVolume", "Multi-Attach error for volume \"disk\"");
    assert!(at("csi-2").is_empty());
    space.kubectl(&["delete", "pod", "one", "--force"]);
    // the controller has seen the pod go once the claim of the other volume's pod is looked at too
    space.kubectl(&["delete", "pod", "directly", "--force"]);
    assert_eq!(at("csi-1"), std::slice::from_ref(&first), "what a node has mounted is not taken from it");
    patch_status(&space, "node/csi-1", &json!({"volumesInUse": null}));
    gone(&space, &what);
    reaches(&space, "node/csi-1", ".status.volumesAttached", "");

    // then it is the other one's; and what a dead node has mounted goes when somebody vouches for its death
    let second = attachment("csi-2");
    assert_ne!(first, second);
    patch_status(&space, &format!("volumeattachment/{second}"), &json!({"attached": true}));
    reaches(&space, "node/csi-2", ".status.volumesAttached[*].name", name);
    patch_status(&space, "node/csi-2", &json!({"volumesInUse": [name]}));
    space.kubectl(&["delete", "pod", "two", "--force"]);
    assert_eq!(at("csi-2"), std::slice::from_ref(&second));
    cluster.kubectl(&["taint", "node", "csi-2", "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"]);
    gone(&space, &format!("volumeattachment/{second}"));
    assert!(at("csi-1").is_empty());
}

fn growth(cluster: &Cluster) {
    let space = Space::new(cluster, "growth");
    let claim = |name: &str, class: &str| {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}});
        space.apply(
            &json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
                .to_string(),
        );
    };
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    for (class, grows) in [("grows", true), ("fixed", false)] {
        let object = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
            "provisioner": "kubernetes.io/no-provisioner", "allowVolumeExpansion": grows});
        cluster.apply(&object.to_string());
        claim(class, class);
        let why = refused(&space, &format!("pvc/{class}"), &[], &larger);
        assert!(why.contains("spec is immutable after creation"), "{why}");
        let spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class, "hostPath": {"path": "/tmp"}});
        cluster.apply(
            &json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": class}, "spec": spec})
                .to_string(),
        );
        space.kubectl(&["wait", &format!("pvc/{class}"), "--for=jsonpath={.status.phase}=Bound", "--timeout=60s"]);
    }
    let why = refused(&space, "pvc/fixed", &[], &larger);
    assert!(why.contains("the storageclass that provisions the pvc must support resize"), "{why}");
    patch(&space, "pvc/grows", &[], &larger);
    told(&space, "grows", "ExternalExpanding", "waiting for an external controller to expand this PVC");
    assert_eq!(space.field("pvc/grows", ".status.capacity.storage"), "1Gi");
    // taken back, but not below what there is
    let why = refused(&space, "pvc/grows", &[], &json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}}));
    assert!(why.contains("field can not be less than status.capacity"), "{why}");
    let why = refused(&space, "pvc/grows", &[], &json!({"spec": {"accessModes": ["ReadWriteMany"]}}));
    assert!(why.contains("spec is immutable after creation except resources.requests"), "{why}");
    let why = refused(&space, "pv/grows", &[], &json!({"spec": {"hostPath": {"path": "/etc"}}}));
    assert!(why.contains("spec.persistentvolumesource is immutable after creation"), "{why}");
    let why = refused(&space, "storageclass/grows", &[], &json!({"provisioner": "x/y"}));
    assert!(why.contains("updates to provisioner are forbidden"), "{why}");
}

fn attributes_in_use(cluster: &Cluster) {
    let space = Space::new(cluster, "attributes");
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": "gold"},
        "driverName": "d.io", "parameters": {"iops": "1000"}});
    cluster.apply(&class.to_string());
    assert_eq!(space.field("vac/gold", ".metadata.finalizers[*]"), "kubernetes.io/vac-protection");
    let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeAttributesClassName": "gold",
        "resources": {"requests": {"storage": "1Gi"}}});
    space.apply(
        &json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": spec})
            .to_string(),
    );
    reaches(&space, "pvc/c", ".status.phase", "Pending");
    space.kubectl(&["delete", "vac", "gold", "--wait=false"]);
    assert!(!space.field("vac/gold", ".metadata.deletionTimestamp").is_empty());
    space.kubectl(&["delete", "pvc", "c"]);
    gone(&space, "vac/gold");
}

/// A pod for the scheduler, with one claim.
fn scheduled_pod(space: &Space<'_>, name: &str, claim: &Value) {
    pod(space, name, &json!({"schedulerName": "default-scheduler", "resourceClaims": [claim]}));
}

/// The devices of a claim, by their names.
fn devices_of(space: &Space<'_>, claim: &str) -> String {
    space.field(&format!("resourceclaim/{claim}"), ".status.allocation.devices.results[*].device")
}

fn claim_of(space: &Space<'_>, pod: &str) -> String {
    eventually("the claim is noted", || {
        let name = space.field(&format!("pod/{pod}"), ".status.resourceClaimStatuses[0].resourceClaimName");
        if name.is_empty() { Err("not yet".to_owned()) } else { Ok(name) }
    })
}

fn allocation_by_the_scheduler(cluster: &Cluster) {
    let space = Space::new(cluster, "allocation");
    for name in ["dra-1", "dra-2"] {
        node(cluster, name);
        let room = json!({"cpu": "4", "memory": "4Gi", "pods": "20"});
        patch_status(&space, &format!("node/{name}"), &json!({"capacity": room, "allocatable": room}));
    }
    let class = |name: &str, expression: &str| {
        let spec = json!({"selectors": [{"cel": {"expression": expression}}]});
        cluster.apply(&json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": name}, "spec": spec}).to_string());
    };
    let template = |name: &str, exactly: Value| {
        let spec = json!({"spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}});
        let kind = "ResourceClaimTemplate";
        space.apply(
            &json!({"apiVersion": "resource.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
                .to_string(),
        );
    };
    let from = |template: &str| json!({"name": "gpu", "resourceClaimTemplateName": template});
    // nothing to choose from, not even a class
    template("one", json!({"deviceClassName": "scheduled"}));
    scheduled_pod(&space, "first", &from("one"));
    told(&space, "first", "FailedScheduling", "request gpu: device class scheduled does not exist");
    class("scheduled", "device.driver == 'sched.io'");
    told(&space, "first", "FailedScheduling", "cannot allocate all claims");
    // a driver tells of its devices
    let device = |name: &str, model: &str| json!({"name": name, "attributes": {"model": {"string": model}}, "capacity": {"memory": {"value": "40Gi"}}});
    let slice = |name: &str, devices: Value| {
        let pool = json!({"name": name, "generation": 1, "resourceSliceCount": 1});
        let spec = json!({"driver": "sched.io", "nodeName": name, "pool": pool, "devices": devices});
        cluster.apply(&json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name}, "spec": spec}).to_string());
    };
    slice("dra-1", json!([device("small", "a"), device("large", "b")]));
    reaches(&space, "pod/first", ".spec.nodeName", "dra-1");
    let claim = claim_of(&space, "first");
    assert_eq!(devices_of(&space, &claim), "small");
    let what = format!("resourceclaim/{claim}");
    assert_eq!(space.field(&what, ".status.reservedFor[*].name"), "first");
    assert_eq!(space.field(&what, ".metadata.finalizers[*]"), "resource.kubernetes.io/delete-protection");
    let selector = ".status.allocation.nodeSelector.nodeSelectorTerms[0].matchFields[0].values[0]";
    assert_eq!(space.field(&what, selector), "dra-1");
    // one of a kind, and one that needs more than there is
    let of_model = |model: &str| {
        let expression = format!(
            "device.attributes['sched.io'].model == '{model}' && device.capacity['sched.io'].memory.compareTo(quantity('10Gi')) > 0"
        );
        json!({"deviceClassName": "scheduled", "selectors": [{"cel": {"expression": expression}}]})
    };
    template("large", of_model("b"));
    scheduled_pod(&space, "second", &from("large"));
    reaches(&space, "pod/second", ".spec.nodeName", "dra-1");
    assert_eq!(devices_of(&space, &claim_of(&space, "second")), "large");
    scheduled_pod(&space, "third", &from("one"));
    told(&space, "third", "FailedScheduling", "cannot allocate all claims. still not schedulable");
    // what goes gives its device back
    space.kubectl(&["delete", "pod", "first", "--force"]);
    reaches(&space, "pod/third", ".spec.nodeName", "dra-1");
    assert_eq!(devices_of(&space, &claim_of(&space, "third")), "small");
    // a claim of several pods keeps them together, and one that is used by none is taken away from where no pod can go
    let shared = json!({"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "scheduled"}}]}});
    space.apply(&json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "shared"}, "spec": shared}).to_string());
    slice("dra-2", json!([device("other", "c")]));
    for name in ["fourth", "fifth"] {
        scheduled_pod(&space, name, &json!({"name": "gpu", "resourceClaimName": "shared"}));
        reaches(&space, &format!("pod/{name}"), ".spec.nodeName", "dra-2");
    }
    assert_eq!(devices_of(&space, "shared"), "other");
    eventually("both use it", || {
        let users = space.field("resourceclaim/shared", ".status.reservedFor[*].name");
        if users.contains("fourth") && users.contains("fifth") { Ok(()) } else { Err(users) }
    });
    cluster.kubectl(&["delete", "resourceslice", "dra-1", "dra-2"]);
}
