//! What the scheduler makes of devices beyond giving each to one claim: shares, conditions that drivers set first, refusals of the API server.
//! The nodes exist as objects only.

use crate::conformance::{Flow, together};
use crate::harness::space::Space;
use crate::harness::{Cluster, Kubectl, eventually};
use serde_json::{Value, json};

#[test]
fn devices_with_capacities_and_conditions() {
    let flows: [(&str, Flow); 3] = [("shares", shares), ("conditions", conditions), ("slices", slices)];
    together(&Cluster::start(), &flows);
}

fn apply(space: &Space<'_>, kind: &str, name: &str, spec: Value) {
    let object = json!({"apiVersion": "resource.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    space.apply(&object.to_string());
}

/// A node without a kubelet, a driver's devices on it, and a class of those; all of one name.
fn stage(cluster: &Cluster, name: &'static str, devices: Value) -> String {
    cluster.apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}"));
    let room = json!({"cpu": "4", "memory": "4Gi", "pods": "20"});
    let ready = json!({"type": "Ready", "status": "True", "reason": "Test", "message": "as a test says"});
    let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": [ready]}});
    cluster.kubectl(&["patch", "node", name, "--subresource=status", "-p", &status.to_string()]);
    let driver = format!("{name}.test");
    let pool = json!({"name": name, "generation": 1, "resourceSliceCount": 1});
    let space = Space { cluster, name: "default" };
    apply(&space, "ResourceSlice", name, json!({"driver": driver, "nodeName": name, "pool": pool, "devices": devices}));
    let expression = format!("device.driver == '{driver}'");
    apply(&space, "DeviceClass", name, json!({"selectors": [{"cel": {"expression": expression}}]}));
    driver
}

/// A pod that only the scheduler knows what to do with, and its claim of the same name.
fn pod_with_claim(space: &Space<'_>, name: &str, request: Value) {
    let mut exactly = json!({"deviceClassName": space.name});
    exactly.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
    apply(space, "ResourceClaim", name, json!({"devices": {"requests": [{"name": "r", "exactly": exactly}]}}));
    let spec = json!({"containers": [{"name": "c", "image": "busybox:test"}], "tolerations": [{"operator": "Exists"}],
        "nodeSelector": null, "resourceClaims": [{"name": "gpu", "resourceClaimName": name}]});
    space.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string());
}

fn reaches(space: &Space<'_>, what: &str, path: &str, want: &str) {
    eventually(&format!("{what} {path} is {want}"), || {
        let now = space.field(what, path);
        if now == want { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

fn told(space: &Space<'_>, pod: &str, part: &str) {
    eventually(&format!("{pod} is told {part}"), || {
        let field = format!("--field-selector=involvedObject.name={pod}");
        let messages = space.kubectl(&["get", "events", &field, "-o", "jsonpath={.items[*].message}"]);
        if messages.contains(part) { Ok(()) } else { Err(messages) }
    });
}

const RESULT: &str = ".status.allocation.devices.results[0]";

fn shares(cluster: &Cluster) {
    let policy = json!({"default": "10Gi", "validRange": {"min": "10Gi", "max": "40Gi", "step": "10Gi"}});
    let memory = json!({"value": "40Gi", "requestPolicy": policy});
    stage(
        cluster,
        "shares",
        json!([{"name": "card", "allowMultipleAllocations": true, "capacity": {"memory": memory}}]),
    );
    let space = Space::new(cluster, "shares");
    let asks = |amount: &str| json!({"capacity": {"requests": {"memory": amount}}});
    for (name, request, gets) in
        [("one", asks("15Gi"), "20Gi"), ("two", json!({}), "10Gi"), ("three", asks("10Gi"), "10Gi")]
    {
        pod_with_claim(&space, name, request);
        reaches(&space, &format!("pod/{name}"), ".spec.nodeName", "shares");
        let claim = format!("resourceclaim/{name}");
        assert_eq!(space.field(&claim, &format!("{RESULT}.device")), "card");
        assert_eq!(space.field(&claim, &format!("{RESULT}.consumedCapacity.memory")), gets);
        assert_eq!(space.field(&claim, &format!("{RESULT}.shareID")).len(), 36);
    }
    // what is given back is enough for who waits
    pod_with_claim(&space, "four", asks("20Gi"));
    told(&space, "four", "cannot allocate all claims");
    space.kubectl(&["delete", "pod", "two", "--force"]);
    reaches(&space, "resourceclaim/two", ".status", "{}");
    assert_eq!(space.field("pod/four", ".spec.nodeName"), "");
    space.kubectl(&["delete", "pod", "three", "--force"]);
    reaches(&space, "pod/four", ".spec.nodeName", "shares");
    space.kubectl(&["delete", "pod", "--all", "--force"]);
}

fn conditions(cluster: &Cluster) {
    let device = json!({"name": "far", "bindsToNode": true, "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]});
    let driver = stage(cluster, "conditions", json!([device]));
    let space = Space::new(cluster, "conditions");
    pod_with_claim(&space, "waits", json!({}));
    let claim = "resourceclaim/waits";
    let says = |condition: &str| {
        let conditions = json!([{"type": condition, "status": "True", "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let devices = json!([{"driver": driver, "pool": "conditions", "device": "far", "conditions": conditions}]);
        let patch = json!({"status": {"devices": devices}}).to_string();
        space.kubectl(&["patch", claim, "--type=merge", "--subresource=status", "-p", &patch]);
    };
    reaches(&space, claim, ".status.reservedFor[*].name", "waits");
    assert_eq!(space.field(claim, &format!("{RESULT}.bindingConditions[*]")), "Attached");
    let first = space.field(claim, ".status.allocation.allocationTimestamp");
    assert!(!first.is_empty());
    assert_eq!(space.field("pod/waits", ".spec.nodeName"), "", "the driver has said nothing yet");
    // given up: the device is given back and chosen anew, without what was said of it
    says("Broken");
    eventually("it is allocated again", || {
        let devices = space.field(claim, ".status.devices");
        let users = space.field(claim, ".status.reservedFor[*].name");
        if devices.is_empty() && users == "waits" { Ok(()) } else { Err(format!("{devices} {users}")) }
    });
    assert_eq!(space.field("pod/waits", ".spec.nodeName"), "");
    says("Attached");
    reaches(&space, "pod/waits", ".spec.nodeName", "conditions");
    space.kubectl(&["delete", "pod", "--all", "--force"]);
}

fn slices(cluster: &Cluster) {
    let space = Space::new(cluster, "slices");
    let slice = |device: Value| {
        let pool = json!({"name": "p", "generation": 1, "resourceSliceCount": 1});
        let spec = json!({"driver": "d.io", "nodeName": "n", "pool": pool, "devices": [device]});
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "judged"}, "spec": spec}).to_string()
    };
    for (device, part) in [
        (json!({"name": "g", "attributes": {"a": {}}}), "exactly one value must be specified"),
        (json!({"name": "g", "attributes": {"a": {"ints": [1]}}}), "exactly one value must be specified"),
        (
            json!({"name": "g", "capacity": {"m": {"value": "1", "requestPolicy": {"default": "1"}}}}),
            "allowMultipleAllocations must be true",
        ),
        (json!({"name": "g", "bindingConditions": ["A"]}), "are required to use bindingConditions"),
    ] {
        let out = cluster.kubectl_stdin(Kubectl::Newest, &["apply", "--server-side", "-f", "-"], &slice(device));
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && why.contains(part), "{why}");
    }
    cluster.apply(&slice(json!({"name": "g", "nodeAllocatableResourceMappings": {"cpu": {}}})));
    assert_eq!(space.field("resourceslice/judged", ".spec.devices[0].nodeAllocatableResourceMappings"), "");
    let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "judged"},
        "spec": {"extendedResourceName": "gpu"}});
    let out = cluster.kubectl_stdin(Kubectl::Newest, &["apply", "-f", "-"], &class.to_string());
    assert!(String::from_utf8_lossy(&out.stderr).contains("must be a valid extended resource name"));
    cluster.kubectl(&["delete", "resourceslice", "judged"]);
}
