//! Defaults that are computed from other fields, one small function for each struct that has some.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::{Hook, pod_resources};

type Fields = Map<String, Value>;

/// Sorted by group and struct.
pub(super) const HOOKS: &[(&str, Hook)] = &[
    ("apiextensions.v1.CustomResourceDefinition", custom_resource_definition),
    ("apps.v1.DaemonSetUpdateStrategy", rolling_update),
    ("apps.v1.DeploymentStrategy", rolling_update),
    ("apps.v1.StatefulSetSpec", stateful_set_spec),
    ("autoscaling.v2.HorizontalPodAutoscalerBehavior", autoscaler_behavior),
    ("autoscaling.v2.HorizontalPodAutoscalerSpec", autoscaler_spec),
    ("batch.v1.Job", job),
    ("core.v1.Container", image_pull_policy),
    ("core.v1.EphemeralContainerCommon", image_pull_policy),
    ("core.v1.LimitRangeItem", limit_range_item),
    ("core.v1.Namespace", namespace),
    ("core.v1.NodeStatus", node_status),
    ("core.v1.Pod", pod),
    ("core.v1.PodSpec", pod_spec),
    ("core.v1.ReplicationController", replication_controller),
    ("core.v1.Secret", secret),
    ("core.v1.Service", service),
    ("core.v1.ServicePort", service_port),
    ("core.v1.Volume", volume),
    ("networking.v1.NetworkPolicySpec", network_policy_spec),
    ("rbac.v1.Subject", rbac_subject),
    ("resource.v1.Device", device),
    ("resource.v1.DeviceSubRequest", device_request),
    ("resource.v1.ExactDeviceRequest", device_request),
];

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn object<'a>(fields: &'a Fields, name: &str) -> Option<&'a Fields> {
    fields.get(name).and_then(Value::as_object)
}

fn object_mut<'a>(fields: &'a mut Fields, name: &str) -> Option<&'a mut Fields> {
    fields.get_mut(name).and_then(Value::as_object_mut)
}

fn object_or_insert<'a>(fields: &'a mut Fields, name: &str) -> Option<&'a mut Fields> {
    fields.entry(name).or_insert_with(|| json!({})).as_object_mut()
}

fn items_mut<'a>(fields: &'a mut Fields, name: &str) -> impl Iterator<Item = &'a mut Fields> + use<'a> {
    fields.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn is_empty(fields: &Fields, name: &str) -> bool {
    match fields.get(name) {
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        other => other.is_none_or(Value::is_null),
    }
}

/// Sets a field that is absent.
fn default(fields: &mut Fields, name: &str, value: impl Into<Value>) {
    fields.entry(name).or_insert_with(|| value.into());
}

fn custom_resource_definition(crd: &mut Fields) {
    let storage = object_or_insert(crd, "spec").and_then(|spec| {
        if let Some(names) = object_or_insert(spec, "names") {
            let kind = text(names, "kind").to_owned();
            if text(names, "singular").is_empty() && !kind.is_empty() {
                names.insert("singular".to_owned(), kind.to_lowercase().into());
            }
            if text(names, "listKind").is_empty() && !kind.is_empty() {
                names.insert("listKind".to_owned(), format!("{kind}List").into());
            }
        }
        items_mut(spec, "versions")
            .find(|v| v.get("storage") == Some(&Value::Bool(true)))
            .map(|v| text(v, "name").to_owned())
    });
    if let Some(status) = object_or_insert(crd, "status")
        && is_empty(status, "storedVersions")
        && let Some(version) = storage
    {
        status.insert("storedVersions".to_owned(), json!([version]));
    }
}

/// Of a Deployment or DaemonSet; the numbers are constants of the inner struct.
fn rolling_update(strategy: &mut Fields) {
    if text(strategy, "type") == "RollingUpdate" {
        default(strategy, "rollingUpdate", json!({}));
    }
}

fn stateful_set_spec(spec: &mut Fields) {
    let Some(strategy) = object_or_insert(spec, "updateStrategy") else { return };
    if text(strategy, "type").is_empty() {
        strategy.insert("type".to_owned(), "RollingUpdate".into());
        default(strategy, "rollingUpdate", json!({}));
    }
}

fn autoscaler_spec(spec: &mut Fields) {
    if is_empty(spec, "metrics") {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]);
        spec.insert("metrics".to_owned(), cpu);
    }
}

fn autoscaler_behavior(behavior: &mut Fields) {
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    if let Some(up) = object_or_insert(behavior, "scaleUp") {
        default(up, "stabilizationWindowSeconds", 0);
        default(up, "selectPolicy", "Max");
        default(up, "policies", json!([pods, percent.clone()]));
    }
    if let Some(down) = object_or_insert(behavior, "scaleDown") {
        default(down, "selectPolicy", "Max");
        default(down, "policies", json!([percent]));
    }
}

/// Only of a Job itself: the job template of a CronJob stays as it was written.
fn job(job: &mut Fields) {
    let labels = job.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    copy_labels(job, labels);
    let Some(spec) = object_or_insert(job, "spec") else { return };
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    let per_index = spec.contains_key("backoffLimitPerIndex");
    default(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    let replacement = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    default(spec, "podReplacementPolicy", replacement);
}

/// Gives an object without labels those of its pod template.
fn copy_labels(object: &mut Fields, labels: Option<Value>) {
    if let Some(labels) = labels
        && let Some(meta) = object_or_insert(object, "metadata")
        && is_empty(meta, "labels")
    {
        meta.insert("labels".to_owned(), labels);
    }
}

fn image_pull_policy(container: &mut Fields) {
    if text(container, "imagePullPolicy").is_empty() {
        let policy = pull_policy(text(container, "image"));
        container.insert("imagePullPolicy".to_owned(), policy.into());
    }
}

/// `Always` for the tag `latest`, be it written or implied; a digest implies no tag.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let tag = name.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'));
    match tag {
        Some("latest") => "Always",
        None if digest.is_none() && !image.is_empty() => "Always",
        _ => "IfNotPresent",
    }
}

fn limit_range_item(item: &mut Fields) {
    if text(item, "type") != "Container" {
        return;
    }
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        let Some(amounts) = object(item, from).cloned() else { continue };
        if let Some(target) = object_or_insert(item, to) {
            for (resource, amount) in amounts {
                target.entry(resource).or_insert(amount);
            }
        }
    }
}

fn namespace(namespace: &mut Fields) {
    let Some(meta) = object_or_insert(namespace, "metadata") else { return };
    let name = text(meta, "name").to_owned();
    if !name.is_empty()
        && let Some(labels) = object_or_insert(meta, "labels")
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

fn node_status(status: &mut Fields) {
    if let Some(capacity) = status.get("capacity").cloned() {
        default(status, "allocatable", capacity);
    }
}

/// What belongs to a pod but not to a pod template.
fn pod(pod: &mut Fields) {
    let Some(spec) = object_mut(pod, "spec") else { return };
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
        }
    }
    pod_resources::apply(spec);
    default(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in ["containers", "initContainers"] {
            for port in items_mut(spec, list).flat_map(|c| items_mut(c, "ports")) {
                let container_port = port.get("containerPort").cloned();
                if port.get("hostPort").is_none_or(|p| p == 0)
                    && let Some(number) = container_port
                {
                    port.insert("hostPort".to_owned(), number);
                }
            }
        }
    }
}

/// The old and the new name of the service account always say the same; the new one leads.
fn pod_spec(spec: &mut Fields) {
    let name = [text(spec, "serviceAccountName"), text(spec, "serviceAccount")].into_iter().find(|n| !n.is_empty());
    if let Some(name) = name.map(str::to_owned) {
        spec.insert("serviceAccountName".to_owned(), name.clone().into());
        spec.insert("serviceAccount".to_owned(), name.into());
    }
}

fn requests_from_limits(container: &mut Fields) {
    let Some(resources) = object_mut(container, "resources") else { return };
    let Some(limits) = object(resources, "limits").cloned() else { return };
    if let Some(requests) = object_or_insert(resources, "requests") {
        for (resource, amount) in limits {
            requests.entry(resource).or_insert(amount);
        }
    }
}

fn replication_controller(controller: &mut Fields) {
    let labels = controller.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    copy_labels(controller, labels.clone());
    if let Some(labels) = labels
        && let Some(spec) = object_mut(controller, "spec")
        && is_empty(spec, "selector")
    {
        spec.insert("selector".to_owned(), labels);
    }
}

/// Text values are a convenience of writing: they go into the data and are never read back.
fn secret(secret: &mut Fields) {
    let Some(Value::Object(texts)) = secret.remove("stringData") else { return };
    if texts.is_empty() {
        return;
    }
    if let Some(data) = object_or_insert(secret, "data") {
        for (key, value) in texts {
            data.insert(key, BASE64_STANDARD.encode(value.as_str().unwrap_or_default()).into());
        }
    }
}

fn service(service: &mut Fields) {
    let Some(spec) = object_mut(service, "spec") else { return };
    match text(spec, "sessionAffinity") {
        "" | "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            let timeout = spec.get("sessionAffinityConfig").and_then(|c| c.pointer("/clientIP/timeoutSeconds"));
            if timeout.is_none() {
                let config = json!({"clientIP": {"timeoutSeconds": 10_800}});
                spec.insert("sessionAffinityConfig".to_owned(), config);
            }
        }
        _ => {}
    }
    let kind = match text(spec, "type") {
        "" => "ClusterIP".to_owned(),
        kind => kind.to_owned(),
    };
    let external =
        matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && !is_empty(spec, "externalIPs"));
    if external && text(spec, "externalTrafficPolicy").is_empty() {
        spec.insert("externalTrafficPolicy".to_owned(), "Cluster".into());
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
        if let Some(balancer) = object_mut(service, "status").and_then(|s| object_mut(s, "loadBalancer")) {
            for ingress in items_mut(balancer, "ingress").filter(|i| !text(i, "ip").is_empty()) {
                default(ingress, "ipMode", "VIP");
            }
        }
    }
}

fn service_port(port: &mut Fields) {
    let unset = match port.get("targetPort") {
        None | Some(Value::Null) => true,
        Some(target) => *target == 0 || *target == "",
    };
    if unset && let Some(number) = port.get("port").cloned() {
        port.insert("targetPort".to_owned(), number);
    }
}

fn volume(volume: &mut Fields) {
    if volume.iter().all(|(name, source)| name == "name" || source.is_null()) {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    if let Some(image) = object_mut(volume, "image")
        && text(image, "pullPolicy").is_empty()
    {
        let policy = pull_policy(text(image, "reference"));
        image.insert("pullPolicy".to_owned(), policy.into());
    }
}

fn network_policy_spec(spec: &mut Fields) {
    if is_empty(spec, "policyTypes") {
        let types = if is_empty(spec, "egress") { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
        spec.insert("policyTypes".to_owned(), types);
    }
}

fn rbac_subject(subject: &mut Fields) {
    if text(subject, "apiGroup").is_empty() && matches!(text(subject, "kind"), "User" | "Group") {
        subject.insert("apiGroup".to_owned(), "rbac.authorization.k8s.io".into());
    }
}

fn device(device: &mut Fields) {
    let mappings = object_mut(device, "nodeAllocatableResourceMappings").into_iter().flat_map(Map::values_mut);
    for mapping in mappings.filter_map(Value::as_object_mut) {
        default(mapping, "allocationMultiplier", "1");
    }
}

fn device_request(request: &mut Fields) {
    if text(request, "allocationMode") == "ExactCount" && request.get("count").is_none_or(|c| *c == 0) {
        request.insert("count".to_owned(), 1.into());
    }
}
