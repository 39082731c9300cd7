//! Moving from client-side apply: the annotation in which old `kubectl apply` kept what it had applied.
//!
//! Only the manager `kubectl` is concerned: what the annotation shows to be its own earlier work is no conflict, and the annotation is
//! kept up to date so that old and new clients can take turns.

use super::set::FieldSet;
use super::typed::{Comparison, Ty, field_set};
use edge_api::object::object_entry;
use serde_json::Value;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager of `kubectl apply --server-side`.
pub(super) const KUBECTL: &str = "kubectl";
/// The most that all annotations of an object may hold, in bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

fn annotation(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(ANNOTATION)?.as_str().filter(|t| !t.is_empty())
}

/// The fields that were applied on the client side and still have the applied values.
pub(super) fn still_applied(ty: Ty<'_>, live: &Value) -> Option<FieldSet> {
    let applied: Value = serde_json::from_str(annotation(live)?).ok()?;
    if applied.get("apiVersion") != live.get("apiVersion") {
        return None;
    }
    let comparison = Comparison::of(ty, &applied, live);
    Some(field_set(ty, &applied).difference(&comparison.modified).difference(&comparison.removed))
}

/// Puts the applied configuration into the annotation of `object`, where there is one already.
pub(super) fn refresh(object: &mut Value, config: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let text = format!("{config}\n");
    let Some(map) = object.as_object_mut() else { return };
    let annotations = object_entry(object_entry(map, "metadata"), "annotations");
    if text.len() > MAX_ANNOTATIONS {
        annotations.remove(ANNOTATION);
    } else {
        annotations.insert(ANNOTATION.into(), text.into());
    }
}
