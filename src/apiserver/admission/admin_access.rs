//! Access of administrators to devices that others have: only in namespaces that are labelled for it.

use super::{AttributesExt, Cluster};
use edge_api::field::{ErrorList, Path};
use edge_api::{Object, Status};
use edge_registry::{Attributes, Operation};
use serde_json::Value;

const LABEL: &str = "resource.kubernetes.io/admin-access";

/// Refuses claims, and templates of such, that ask for that access elsewhere.
pub(super) fn validate(cluster: &dyn Cluster, a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    let requests = if a.is("resource.k8s.io", "resourceclaims") {
        "/spec/devices/requests"
    } else if a.is("resource.k8s.io", "resourceclaimtemplates") {
        "/spec/spec/devices/requests"
    } else {
        return Ok(());
    };
    if a.operation != Operation::Create {
        // what a claim asks for never changes
        return Ok(());
    }
    let requests = object.pointer(requests).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_admin = |request: &Value| request.pointer("/exactly/adminAccess") == Some(&Value::Bool(true));
    let Some(place) = requests.iter().position(is_admin) else { return Ok(()) };
    let namespace = cluster.get("", "namespaces", "", a.namespace);
    let labels = namespace.as_ref().and_then(|n| n.pointer("/metadata/labels"));
    if labels.and_then(|l| l.get(LABEL)).and_then(Value::as_str) == Some("true") {
        return Ok(());
    }
    let mut errors = ErrorList::new();
    let path = Path::new("spec").child("devices").child("requests").index(place).child("adminAccess");
    let why = format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
    errors.forbidden(&path, &why);
    Err(Status::invalid(&a.info.group_kind(), object.name(), &errors))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, attributes};
    use super::*;
    use serde_json::json;

    #[test]
    fn only_where_the_namespace_says_so() {
        let namespace =
            |labels: Value| Fake::default().with("/namespaces//ns", json!({"metadata": {"labels": labels}}));
        let devices =
            |admin: Value| json!({"devices": {"requests": [{"name": "r", "exactly": {"adminAccess": admin}}]}});
        let claim = |admin: Value| json!({"spec": devices(admin)});
        let template = |admin: Value| json!({"spec": {"spec": devices(admin)}});
        for (resource, kind, object, labels, allowed) in [
            ("resourceclaims", "ResourceClaim", claim(json!(true)), json!({}), false),
            ("resourceclaims", "ResourceClaim", claim(json!(true)), json!({LABEL: "false"}), false),
            ("resourceclaims", "ResourceClaim", claim(json!(true)), json!({LABEL: "true"}), true),
            ("resourceclaims", "ResourceClaim", claim(json!(false)), json!({}), true),
            ("resourceclaims", "ResourceClaim", claim(json!(null)), json!({}), true),
            ("resourceclaimtemplates", "ResourceClaimTemplate", template(json!(true)), json!({}), false),
            ("resourceclaimtemplates", "ResourceClaimTemplate", template(json!(true)), json!({LABEL: "true"}), true),
        ] {
            let (cluster, object) = (namespace(labels), Object::from_value(object).unwrap());
            attributes(Operation::Create, ("resource.k8s.io", resource, kind), "ns", "c", |a| {
                let result = validate(&cluster, a, &object);
                assert_eq!(result.is_ok(), allowed, "{object:?}");
                if let Err(status) = result {
                    assert!(
                        status.message.contains("requests[0].adminAccess: Forbidden: admin access"),
                        "{}",
                        status.message
                    );
                }
            });
        }
    }
}
