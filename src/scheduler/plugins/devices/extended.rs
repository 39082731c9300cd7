//! Extended resources that classes of devices stand for: a pod that asks for `example.com/gpu: 1` in the old way gets a claim of the
//! scheduler's making, on nodes that do not have the resource themselves.

use crate::world::World;
use edge_api::Quantity;
use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest, Node, Pod};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// On claims that were made for extended resources.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// Before the name of a class: the extended resource that every class stands for.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";

/// The extended resources that classes stand for.
pub(crate) fn names(classes: &[Arc<DeviceClass>]) -> BTreeSet<String> {
    let explicit = classes.iter().filter_map(|class| class.spec.extended_resource_name.clone());
    let implicit = classes.iter().filter_map(|class| Some(format!("{IMPLICIT}{}", class.metadata.name.as_deref()?)));
    explicit.chain(implicit).collect()
}

/// The class that an extended resource stands for; of several the youngest.
fn class_of(name: &str, classes: &[Arc<DeviceClass>]) -> Option<String> {
    let of = |class: &&Arc<DeviceClass>| {
        let implicit = name.strip_prefix(IMPLICIT);
        class.spec.extended_resource_name.as_deref() == Some(name)
            || implicit.is_some_and(|implicit| class.metadata.name.as_deref() == Some(implicit))
    };
    let age = |class: &Arc<DeviceClass>| {
        let created = class.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (created, std::cmp::Reverse(class.metadata.name.clone()))
    };
    classes.iter().filter(of).max_by_key(|class| age(class)).and_then(|class| class.metadata.name.clone())
}

fn asked(container: &Container, resource: &str) -> i64 {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let quantity = requests.and_then(|r| r.get(resource));
    quantity.and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, |q| q.value())
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
}

/// The extended resources of a pod that classes stand for, with the names of those.
pub(super) fn wanted(pod: &Pod, world: &dyn World) -> BTreeMap<String, String> {
    let requests = containers(pod).filter_map(|c| c.resources.as_ref()?.requests.as_ref()).flatten();
    let asked = requests.filter(|(name, quantity)| {
        name.contains('/') && Quantity::parse(&quantity.0).is_ok_and(|quantity| !quantity.is_zero())
    });
    let names: BTreeSet<&String> = asked.map(|(name, _)| name).collect();
    if names.is_empty() {
        return BTreeMap::new();
    }
    let classes = world.device_classes();
    names.into_iter().filter_map(|name| Some((name.clone(), class_of(name, &classes)?))).collect()
}

/// Those that a node does not have by itself.
pub(super) fn missing(wanted: &BTreeMap<String, String>, node: &Node) -> BTreeMap<String, String> {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let has = |name: &String| {
        let quantity = allocatable.and_then(|a| a.get(name));
        quantity.is_some_and(|q| Quantity::parse(&q.0).is_ok_and(|q| !q.is_zero()))
    };
    wanted.iter().filter(|(name, _)| !has(name)).map(|(name, class)| (name.clone(), class.clone())).collect()
}

/// Whether a claim was made for extended resources.
pub(crate) fn is_made(claim: &ResourceClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(ANNOTATION)).is_some_and(|value| value == "true")
}

/// Whether a claim was made for extended resources of a pod.
pub(super) fn is_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    is_made(claim) && owners.iter().any(|o| o.controller == Some(true) && Some(&o.uid) == pod.metadata.uid.as_ref())
}

/// A claim for resources of a pod, which the API does not know yet, and which container gets what of it.
pub(super) fn claim(
    pod: &Pod,
    resources: &BTreeMap<String, String>,
) -> (ResourceClaim, Vec<ContainerExtendedResourceRequest>) {
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in resources {
        of_resource(pod, resource, class, &mut requests, &mut mappings);
    }
    requests.sort_by(|a: &DeviceRequest, b| a.name.cmp(&b.name));
    let name = pod.metadata.name.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        namespace: pod.metadata.namespace.clone(),
        generate_name: Some(format!("{name}-extended-resources-")),
        // nobody else's
        uid: Some(format!("extended-resources-{uid}")),
        annotations: Some(BTreeMap::from([(ANNOTATION.to_owned(), "true".to_owned())])),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name,
            uid,
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    };
    let devices = DeviceClaim { requests: Some(requests), ..DeviceClaim::default() };
    let spec = ResourceClaimSpec { devices: Some(devices) };
    (ResourceClaim { metadata, spec, status: None }, mappings)
}

/// Requests of one resource. Init containers have ended before later containers start, so they use the devices of those, and what they need
/// beyond that one request gives them all.
fn of_resource(
    pod: &Pod,
    resource: &str,
    class: &str,
    requests: &mut Vec<DeviceRequest>,
    mappings: &mut Vec<ContainerExtendedResourceRequest>,
) {
    let all: Vec<&Container> = containers(pod).collect();
    let init = pod.spec.as_ref().and_then(|s| s.init_containers.as_ref()).map_or(0, Vec::len);
    let is_short = |i: usize, c: &Container| i < init && c.restart_policy.as_deref() != Some("Always");
    let mapping = |c: &Container, request: &str| ContainerExtendedResourceRequest {
        container_name: c.name.clone(),
        request_name: request.to_owned(),
        resource_name: resource.to_owned(),
    };
    // by the place of the container: its request
    let mut long: BTreeMap<usize, (String, i64)> = BTreeMap::new();
    for (i, c) in all.iter().enumerate().filter(|(i, c)| !is_short(*i, c)) {
        let count = asked(c, resource);
        if count > 0 {
            let name = request_name(i, c, resource);
            mappings.push(mapping(c, &name));
            long.insert(i, (name, count));
        }
    }
    let (mut largest, mut extra): (Option<(String, i64)>, Vec<&Container>) = (None, Vec::new());
    for (i, c) in all.iter().enumerate().filter(|(i, c)| is_short(*i, c)) {
        let mut left = asked(c, resource);
        for (name, count) in long.range(i..).map(|(_, request)| request) {
            if left <= 0 {
                break;
            }
            mappings.push(mapping(c, name));
            left -= count;
        }
        if left > 0 {
            extra.push(c);
            if largest.as_ref().is_none_or(|(_, most)| *most < left) {
                largest = Some((request_name(i, c, resource), left));
            }
        }
    }
    if let Some((name, _)) = &largest {
        mappings.extend(extra.into_iter().map(|c| mapping(c, name)));
    }
    requests.extend(largest.into_iter().chain(long.into_values()).map(|(name, count)| DeviceRequest {
        name,
        exactly: Some(ExactDeviceRequest {
            device_class_name: class.to_owned(),
            allocation_mode: Some("ExactCount".into()),
            count: Some(count),
            ..ExactDeviceRequest::default()
        }),
        first_available: None,
    }));
}

/// The place of the container, and that of the resource among those that it asks for.
fn request_name(place: usize, container: &Container, resource: &str) -> String {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let index = requests.and_then(|r| r.keys().position(|name| name == resource)).unwrap_or(0);
    format!("container-{place}-request-{index}")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn class(name: &str, resource: Option<&str>, created: &str) -> Arc<DeviceClass> {
        let metadata = json!({"name": name, "creationTimestamp": created});
        Arc::new(
            serde_json::from_value(json!({"metadata": metadata, "spec": {"extendedResourceName": resource}})).unwrap(),
        )
    }

    #[test]
    fn classes_stand_for_resources() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let classes = [
            class("a", Some("x.io/gpu"), old),
            class("b", Some("x.io/gpu"), new),
            class("c", None, old),
            class("d", Some("x.io/gpu"), new),
        ];
        for (name, want) in [
            ("x.io/gpu", Some("b")),
            ("deviceclass.resource.kubernetes.io/c", Some("c")),
            ("deviceclass.resource.kubernetes.io/a", Some("a")),
            ("deviceclass.resource.kubernetes.io/z", None),
            ("y.io/gpu", None),
        ] {
            assert_eq!(class_of(name, &classes).as_deref(), want, "{name}");
        }
        assert_eq!(names(&classes).len(), 5);
    }

    #[test]
    fn who_gets_which_devices() {
        let c = |name: &str, count: &str, always: bool| {
            let mut c = json!({"name": name, "resources": {"requests": {"cpu": "1", "x.io/gpu": count}}});
            if always {
                c["restartPolicy"] = "Always".into();
            }
            c
        };
        let of = |init: Value, main: Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
                "spec": {"initContainers": init, "containers": main}}))
            .unwrap();
            let (claim, mappings) = claim(&pod, &BTreeMap::from([("x.io/gpu".to_owned(), "gpu".to_owned())]));
            assert!(is_for(&claim, &pod));
            let requests = claim.spec.devices.unwrap().requests.unwrap();
            let requests: Vec<String> =
                requests.iter().map(|r| format!("{}:{}", r.name, r.exactly.as_ref().unwrap().count.unwrap())).collect();
            let mappings: Vec<String> =
                mappings.iter().map(|m| format!("{}>{}", m.container_name, m.request_name)).collect();
            (requests.join(" "), mappings.join(" "))
        };
        let words = |requests: &str, mappings: &str| (requests.to_owned(), mappings.to_owned());
        assert_eq!(
            of(json!([]), json!([c("a", "2", false)])),
            words("container-0-request-1:2", "a>container-0-request-1")
        );
        assert_eq!(
            of(json!([]), json!([c("a", "1", false), {"name": "b"}, c("c", "3", false)])),
            words("container-0-request-1:1 container-2-request-1:3", "a>container-0-request-1 c>container-2-request-1")
        );
        // init containers use what later containers get, and share what goes beyond
        assert_eq!(
            of(json!([c("i", "1", false), c("j", "3", false), c("k", "4", false)]), json!([c("a", "1", false)])),
            words(
                "container-2-request-1:3 container-3-request-1:1",
                "a>container-3-request-1 i>container-3-request-1 j>container-3-request-1 k>container-3-request-1 \
                 j>container-2-request-1 k>container-2-request-1"
            )
        );
        // a sidecar that started before lives beside the main containers
        assert_eq!(
            of(json!([c("s", "1", true), c("i", "2", false)]), json!([c("a", "1", false)])),
            words(
                "container-0-request-1:1 container-1-request-1:1 container-2-request-1:1",
                "s>container-0-request-1 a>container-2-request-1 i>container-2-request-1 i>container-1-request-1"
            )
        );
    }

    #[test]
    fn nodes_may_have_the_resource_themselves() {
        let wanted = BTreeMap::from([("x.io/gpu".to_owned(), "gpu".to_owned())]);
        for (allocatable, count) in [(json!({}), 1), (json!({"x.io/gpu": "0"}), 1), (json!({"x.io/gpu": "2"}), 0)] {
            let node: Node = serde_json::from_value(json!({"status": {"allocatable": allocatable}})).unwrap();
            assert_eq!(missing(&wanted, &node).len(), count);
        }
    }
}
