//! Namespaces: they live as long as their finalizers in the spec.

use super::{NameRule, Strategy, keep_other_fields};
use edge_api::Object;
use serde_json::{Value, json};

pub(crate) static STRATEGY: Strategy = Strategy {
    name: NameRule::Label,
    prepare_create: |o| {
        let name = o.name().to_owned();
        edge_api::object::object_entry(o.metadata_mut(), "labels")
            .insert("kubernetes.io/metadata.name".into(), name.into());
        o.fields_mut().insert("spec".into(), json!({"finalizers": ["kubernetes"]}));
        o.fields_mut().insert("status".into(), json!({"phase": "Active"}));
    },
    prepare_update: |new, live| {
        keep_other_fields(new, live, &["metadata"]);
        let name = new.name().to_owned();
        edge_api::object::object_entry(new.metadata_mut(), "labels")
            .insert("kubernetes.io/metadata.name".into(), name.into());
    },
    is_held: |o| {
        o.finalizers().next().is_some()
            || o.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty())
    },
    prepare_delete: |o| {
        o.section_mut("status").insert("phase".into(), "Terminating".into());
    },
    ..Strategy::DEFAULT
};

/// What `/finalize` may change: the finalizers.
pub(crate) fn finalize_only(new: &mut Object, live: &Object) {
    let finalizers = new.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
    keep_other_fields(new, live, &["metadata"]);
    new.section_mut("spec").insert("finalizers".into(), finalizers);
}
