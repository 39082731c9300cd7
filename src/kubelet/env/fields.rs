//! What a pod can be told about itself: `fieldRef` and `resourceFieldRef`. Pure.

use edge_api::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is only known at the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Addresses of the pod; empty before it has any.
    pub(crate) pod_ips: Vec<IpAddr>,
    /// Addresses of the node.
    pub(crate) host_ips: Vec<IpAddr>,
    /// What pods can use of the node: the default of `limits.*`.
    pub(crate) allocatable: BTreeMap<String, ApiQuantity>,
}

/// Why a field has no value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    UnsupportedPath(String),
    #[error("unsupported container resource : {0}")]
    UnsupportedResource(String),
    #[error("container {0} not found")]
    NoContainer(String),
    #[error("invalid quantity of {0}")]
    Quantity(String),
}

/// The value of a field of the pod, as `fieldRef` names it.
pub(crate) fn pod_field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, FieldError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    let joined = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => Ok(format_map(meta.labels.as_ref())),
        "metadata.annotations" => Ok(format_map(meta.annotations.as_ref())),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
        "status.hostIP" => Ok(first(&facts.host_ips)),
        "status.hostIPs" => Ok(joined(&facts.host_ips)),
        "status.podIP" => Ok(first(&facts.pod_ips)),
        "status.podIPs" => Ok(joined(&facts.pod_ips)),
        _ => {
            let entry = |prefix: &str, map: Option<&BTreeMap<String, String>>| {
                let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
                Some(map.and_then(|m| m.get(key)).cloned().unwrap_or_default())
            };
            entry("metadata.labels", meta.labels.as_ref())
                .or_else(|| entry("metadata.annotations", meta.annotations.as_ref()))
                .ok_or_else(|| FieldError::UnsupportedPath(path.to_owned()))
        }
    }
}

/// Labels or annotations as the downward API writes them: `key="value"` lines, sorted.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The value of a resource of a container, as `resourceFieldRef` names it. `own` is the container that asks, used when the
/// reference names none.
pub(crate) fn resource_field(
    pod: &Pod,
    own: Option<&Container>,
    reference: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, FieldError> {
    let container = match reference.container_name.as_deref().filter(|n| !n.is_empty()) {
        None => own.ok_or_else(|| FieldError::NoContainer(String::new()))?,
        Some(name) => crate::pods::record::spec_containers(pod)
            .map(|(_, c)| c)
            .find(|c| c.name == name)
            .ok_or_else(|| FieldError::NoContainer(name.to_owned()))?,
    };
    let unsupported = || FieldError::UnsupportedResource(reference.resource.clone());
    let (what, resource) = reference.resource.split_once('.').ok_or_else(unsupported)?;
    if !matches!(resource, "cpu" | "memory" | "ephemeral-storage") && !resource.starts_with("hugepages-") {
        return Err(unsupported());
    }
    let resources = container.resources.as_ref();
    let value = match what {
        "limits" => {
            let limit = resources.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(resource));
            limit.or_else(|| facts.allocatable.get(resource))
        }
        "requests" => resources.and_then(|r| r.requests.as_ref()).and_then(|l| l.get(resource)),
        _ => return Err(unsupported()),
    };
    let parse = |q: &ApiQuantity| Quantity::parse(&q.0).map_err(|_| FieldError::Quantity(reference.resource.clone()));
    let value = value.map(parse).transpose()?.unwrap_or_else(|| Quantity::from_units(0));
    let divisor = reference.divisor.as_ref().map(parse).transpose()?.filter(|d| !d.is_zero());
    let divisor = divisor.unwrap_or_else(|| Quantity::from_units(1));
    let (value, divisor) =
        if resource == "cpu" { (value.milli_value(), divisor.milli_value()) } else { (value.value(), divisor.value()) };
    Ok(value.checked_div(divisor).map_or(0, |q| q + i64::from(value % divisor > 0)).to_string())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "ns", "uid": "u", "labels": {"b": "2", "a": "say \"hi\"\n"}},
            "spec": {"nodeName": "n", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}},
                {"name": "d"},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn fields_of_the_pod() {
        let facts = Facts {
            pod_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            ..Facts::default()
        };
        for (path, expected) in [
            ("metadata.name", "a"),
            ("metadata.labels", "a=\"say \\\"hi\\\"\\n\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['none']", ""),
            ("metadata.annotations", ""),
            ("spec.nodeName", "n"),
            ("status.podIP", "10.0.0.1"),
            ("status.podIPs", "10.0.0.1,fd00::1"),
            ("status.hostIP", "192.0.2.1"),
        ] {
            assert_eq!(pod_field(&pod(), path, &facts).unwrap(), expected, "{path}");
        }
        for path in ["", "spec", "metadata.labels['b'", "metadata.labels[b]", "status.phase"] {
            assert!(pod_field(&pod(), path, &facts).is_err(), "{path}");
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let facts =
            Facts { allocatable: BTreeMap::from([("cpu".to_owned(), ApiQuantity("4".into()))]), ..Facts::default() };
        let pod = pod();
        let ask = |container: &str, resource: &str, divisor: &str| {
            let reference = ResourceFieldSelector {
                container_name: Some(container.to_owned()),
                resource: resource.to_owned(),
                divisor: Some(ApiQuantity(divisor.to_owned())),
            };
            resource_field(&pod, None, &reference, &facts)
        };
        assert_eq!(ask("c", "limits.cpu", "0").unwrap(), "2");
        assert_eq!(ask("c", "limits.cpu", "1m").unwrap(), "1500");
        assert_eq!(ask("c", "limits.memory", "1Mi").unwrap(), "64");
        assert_eq!(ask("c", "limits.memory", "1").unwrap(), "67108864");
        assert_eq!(ask("c", "requests.cpu", "1").unwrap(), "1");
        assert_eq!(ask("d", "limits.cpu", "1").unwrap(), "4", "the node's when the container has no limit");
        assert_eq!(ask("d", "requests.memory", "1").unwrap(), "0");
        assert!(ask("d", "limits.gpu", "1").is_err());
        assert!(ask("e", "limits.cpu", "1").is_err());
        assert!(ask("d", "cpu", "1").is_err());
        assert!(ask("c", "limits.cpu", "many").is_err());
    }
}
