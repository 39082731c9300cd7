//! A write as expressions and webhooks see it: the `request` of an AdmissionReview.

use super::matching::operation_name;
use edge_api::Object;
use edge_registry::options::Propagation;
use edge_registry::{Attributes, DeleteOptions, Operation, ResourceInfo};
use serde_json::{Value, json};

/// Everything but the objects. `matched` is the version of the resource that the policy or the webhook is about.
pub(super) fn facts(a: &Attributes<'_>, name: &str, matched: &ResourceInfo) -> Value {
    let kind = |row: &ResourceInfo| match row.subresource(a.subresource) {
        Some(sub) => json!({"group": sub.group, "version": sub.version, "kind": sub.kind}),
        None => json!({"group": row.group, "version": row.version, "kind": row.kind}),
    };
    let resource = |row: &ResourceInfo| json!({"group": row.group, "version": row.version, "resource": row.plural});
    // a namespace is in itself
    let is_namespace = a.info.group.is_empty() && a.info.plural == "namespaces";
    let mut out = json!({
        "kind": kind(matched), "resource": resource(matched), "requestKind": kind(a.info), "requestResource": resource(a.info),
        "name": name, "namespace": if is_namespace { name } else { a.namespace }, "operation": operation_name(a.operation),
        "userInfo": serde_json::to_value(a.user).unwrap_or_default(), "dryRun": a.dry_run, "options": options(a),
    });
    if !a.subresource.is_empty() {
        out["subResource"] = a.subresource.into();
        out["requestSubResource"] = a.subresource.into();
    }
    out
}

/// The object's name, as far as there is one.
pub(super) fn name<'a>(a: &Attributes<'a>, object: Option<&'a Object>) -> &'a str {
    if a.name.is_empty() { object.map_or("", Object::name) } else { a.name }
}

fn options(a: &Attributes<'_>) -> Value {
    let kind = match a.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut out = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if a.dry_run {
        out["dryRun"] = json!(["All"]);
    }
    if a.operation != Operation::Delete {
        if !a.field_manager.is_empty() {
            out["fieldManager"] = a.field_manager.into();
        }
    } else if let Some(deletion) = a.deletion {
        of_deletion(deletion, &mut out);
    }
    out
}

fn of_deletion(deletion: &DeleteOptions, out: &mut Value) {
    if let Some(seconds) = deletion.grace_period_seconds {
        out["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(orphan) = deletion.orphan_dependents {
        out["orphanDependents"] = orphan.into();
    }
    if let Some(propagation) = deletion.propagation {
        let name = match propagation {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        };
        out["propagationPolicy"] = name.into();
    }
    let conditions = &deletion.preconditions;
    for (field, value) in [("uid", &conditions.uid), ("resourceVersion", &conditions.resource_version)] {
        if let Some(value) = value {
            out["preconditions"][field] = value.as_str().into();
        }
    }
}
