//! Pod specs, wherever they occur: what every container needs, and what refers to what.

use edge_api::field::{ErrorList, Path};
use edge_api::{Quantity, names};
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Judges a pod spec at a path.
pub(crate) fn pod_spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let volumes = volumes(spec, path, errors);
    let claims = resource_claims(spec, &path.child("resourceClaims"), errors);
    let mut seen = HashSet::new();
    let containers = path.child("containers");
    if list(spec, "containers").is_empty() {
        errors.required(&containers, "");
    }
    for (field, at) in [("initContainers", path.child("initContainers")), ("containers", containers)] {
        for (i, c) in list(spec, field).iter().enumerate() {
            let at = at.index(i);
            container(c, &at, &volumes, errors);
            used_claims(c, &claims, &at.child("resources").child("claims"), errors);
            if !text(c, "name").is_empty() && !seen.insert(text(c, "name")) {
                errors.duplicate(&at.child("name"), &text(c, "name").into());
            }
        }
    }
    one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], errors);
    one_of(spec, path, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    if let Some(n) = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).filter(|n| *n < 0) {
        errors.invalid(&path.child("terminationGracePeriodSeconds"), &n.into(), "must be greater than or equal to 0");
    }
    if let Some(n) = spec.get("activeDeadlineSeconds").and_then(Value::as_i64).filter(|n| *n < 1) {
        errors.invalid(&path.child("activeDeadlineSeconds"), &n.into(), "must be between 1 and 2147483647, inclusive");
    }
    for (field, rule) in
        [("hostname", names::dns1123_label as fn(&str) -> Result<(), String>), ("subdomain", names::dns1123_label)]
    {
        let value = text(spec, field);
        if !value.is_empty()
            && let Err(why) = rule(value)
        {
            errors.invalid(&path.child(field), &value.into(), &why);
        }
    }
}

fn one_of(value: &Value, path: &Path, field: &str, allowed: &[&str], errors: &mut ErrorList) {
    let given = text(value, field);
    if !given.is_empty() && !allowed.contains(&given) {
        errors.not_supported(&path.child(field), &given.into(), allowed);
    }
}

/// The names of a pod's claims to devices.
fn resource_claims<'a>(spec: &'a Value, path: &Path, errors: &mut ErrorList) -> BTreeSet<&'a str> {
    const ONE: &str = "one of: `resourceClaimName`, `resourceClaimTemplateName`";
    let mut seen = BTreeSet::new();
    for (i, claim) in list(spec, "resourceClaims").iter().enumerate() {
        let (at, name) = (path.index(i), text(claim, "name"));
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if !seen.insert(name) {
            errors.duplicate(&at.child("name"), &name.into());
        } else if let Err(why) = names::dns1123_label(name) {
            errors.invalid(&at.child("name"), &name.into(), &why);
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources.iter().filter(|source| claim.get(source).is_some_and(|v| !v.is_null())).count() {
            0 => errors.invalid(&at, claim, &format!("must specify {ONE}")),
            1 => {}
            _ => errors.invalid(&at, claim, &format!("must specify at most {ONE}")),
        }
        for source in sources {
            let given = text(claim, source);
            if let Some(Err(why)) = (!given.is_empty()).then(|| names::dns1123_subdomain(given)) {
                errors.invalid(&at.child(source), &given.into(), &why);
            }
        }
    }
    seen
}

/// The claims that a container uses are its pod's.
fn used_claims(c: &Value, known: &BTreeSet<&str>, path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (i, claim) in c.get("resources").map(|r| list(r, "claims")).unwrap_or_default().iter().enumerate() {
        let (at, name) = (path.index(i), text(claim, "name"));
        if name.is_empty() {
            errors.required(&at, "");
        } else if !seen.insert(name) {
            errors.duplicate(&at, &name.into());
        }
        if !known.contains(name) {
            let all = known.iter().copied().collect::<Vec<_>>().join(", ");
            let which = if all.is_empty() { " which is empty".to_owned() } else { format!(": {all}") };
            let why = format!("Not found: {name:?}: must be one of the names in pod.spec.resourceClaims{which}");
            errors.push(edge_api::field::ErrorKind::NotFound, &at, why);
        }
    }
}

fn volumes<'a>(spec: &'a Value, path: &Path, errors: &mut ErrorList) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    for (i, v) in list(spec, "volumes").iter().enumerate() {
        let at = path.child("volumes").index(i);
        let name = text(v, "name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if let Err(why) = names::dns1123_label(name) {
            errors.invalid(&at.child("name"), &name.into(), &why);
        } else if !seen.insert(name) {
            errors.duplicate(&at.child("name"), &name.into());
        }
        let sources = v.as_object().map_or(0, |o| o.keys().filter(|k| *k != "name").count());
        if sources == 0 {
            errors.required(&at, "must specify a volume type");
        } else if sources > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type");
        }
    }
    seen
}

fn container(c: &Value, path: &Path, volumes: &HashSet<&str>, errors: &mut ErrorList) {
    let name = text(c, "name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else if let Err(why) = names::dns1123_label(name) {
        errors.invalid(&path.child("name"), &name.into(), &why);
    }
    let image = text(c, "image");
    if image.is_empty() {
        errors.required(&path.child("image"), "");
    } else if image.trim() != image {
        errors.invalid(&path.child("image"), &image.into(), "must not have leading or trailing whitespace");
    }
    one_of(c, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], errors);
    one_of(c, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], errors);
    let mut mounted = HashSet::new();
    for (i, m) in list(c, "volumeMounts").iter().enumerate() {
        let at = path.child("volumeMounts").index(i);
        let (volume, target) = (text(m, "name"), text(m, "mountPath"));
        if volume.is_empty() {
            errors.required(&at.child("name"), "");
        } else if !volumes.contains(volume) {
            errors.push(edge_api::field::ErrorKind::NotFound, &at.child("name"), format!("Not found: {volume:?}"));
        }
        if target.is_empty() {
            errors.required(&at.child("mountPath"), "");
        } else if !mounted.insert(target) {
            errors.invalid(&at.child("mountPath"), &target.into(), "must be unique");
        }
    }
    ports(c, path, errors);
    resources(c, &path.child("resources"), errors);
    for (i, e) in list(c, "env").iter().enumerate() {
        let at = path.child("env").index(i);
        if text(e, "name").is_empty() {
            errors.required(&at.child("name"), "");
        } else if text(e, "name").contains('=') {
            errors.invalid(
                &at.child("name"),
                &text(e, "name").into(),
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            );
        }
        if e.get("valueFrom").is_some() && !text(e, "value").is_empty() {
            errors.invalid(&at.child("valueFrom"), &"".into(), "may not be specified when `value` is not empty");
        }
    }
}

fn ports(c: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (i, p) in list(c, "ports").iter().enumerate() {
        let at = path.child("ports").index(i);
        let name = text(p, "name");
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(&at.child("name"), &name.into());
        }
        port(p, "containerPort", true, &at, errors);
        port(p, "hostPort", false, &at, errors);
        one_of(p, &at, "protocol", &["SCTP", "TCP", "UDP"], errors);
    }
}

/// Judges a port number.
pub(crate) fn port(value: &Value, field: &str, required: bool, path: &Path, errors: &mut ErrorList) {
    match value.get(field).and_then(Value::as_i64) {
        None | Some(0) if required => errors.required(&path.child(field), ""),
        None | Some(0) => {}
        Some(n) if (1..=65535).contains(&n) => {}
        Some(n) => errors.invalid(&path.child(field), &n.into(), "must be between 1 and 65535, inclusive"),
    }
}

fn resources(c: &Value, path: &Path, errors: &mut ErrorList) {
    let amount = |kind: &str, name: &str| {
        let pointer = c.get("resources")?.get(kind)?.get(name)?;
        Quantity::parse(pointer.as_str()?).ok()
    };
    for kind in ["limits", "requests"] {
        let map = c.get("resources").and_then(|r| r.get(kind)).and_then(Value::as_object);
        for (name, value) in map.into_iter().flatten() {
            let at = path.child(kind).key(name);
            let Some(quantity) = amount(kind, name) else { continue };
            if quantity.is_negative() {
                errors.invalid(&at, value, "must be greater than or equal to 0");
            }
            if kind == "requests"
                && let Some(limit) = amount("limits", name)
                && quantity > limit
            {
                let text = format!("must be less than or equal to {name} limit of {limit}");
                errors.invalid(&path.child("requests"), value, &text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_to_devices_of_pods_and_containers() {
        let template = || json!([{"name": "gpu", "resourceClaimTemplateName": "t"}]);
        let both = json!([{"name": "gpu", "resourceClaimName": "c", "resourceClaimTemplateName": "t"}]);
        for (claims, used, part) in [
            (template(), json!([{"name": "gpu"}]), ""),
            (json!([{"name": "gpu"}]), json!([]), "spec.resourceClaims[0]: Invalid value"),
            (both, json!([]), "must specify at most one of"),
            (
                json!([{"name": "Gpu", "resourceClaimName": "c"}]),
                json!([]),
                "spec.resourceClaims[0].name: Invalid value",
            ),
            (json!([{"resourceClaimName": "c"}]), json!([]), "spec.resourceClaims[0].name: Required value"),
            (
                template(),
                json!([{"name": "other"}]),
                "spec.containers[0].resources.claims[0]: Not found: \"other\": must be one of the names in pod.spec.resourceClaims: gpu",
            ),
            (json!([]), json!([{"name": "gpu"}]), "pod.spec.resourceClaims which is empty"),
            (template(), json!([{"name": "gpu"}, {"name": "gpu"}]), "claims[1]: Duplicate value"),
        ] {
            let container = json!({"name": "c", "image": "i", "resources": {"claims": used}});
            let spec = json!({"containers": [container], "resourceClaims": claims});
            let mut errors = ErrorList::new();
            pod_spec(&spec, &Path::new("spec"), &mut errors);
            let told = errors.to_string();
            assert!(if part.is_empty() { told.is_empty() } else { told.contains(part) }, "{spec}: {told}");
        }
    }
}
