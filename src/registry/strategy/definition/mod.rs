//! CustomResourceDefinitions: what is filled in, and what Kubernetes asks of them.

mod names;
mod versions;

use super::Strategy;
use crate::custom::CLEANUP;
use crate::meta::set_finalizer;
use edge_api::Object;
use edge_api::field::{ErrorList, Path};
use serde_json::{Map, Value, json};

pub(crate) static STRATEGY: Strategy = Strategy {
    generation: true,
    unconditional_update: false,
    prepare_create: |o| {
        complete_names(o);
        o.fields_mut()
            .insert("status".into(), json!({"acceptedNames": {"kind": "", "plural": ""}, "storedVersions": []}));
        note_storage(o);
    },
    prepare_update: |new, _| {
        complete_names(new);
        note_storage(new);
    },
    validate: names::validate,
    validate_news: versions::validate,
    validate_update,
    // it never goes before its objects
    is_held: |o| !o.is_terminating() || o.finalizers().next().is_some(),
    prepare_delete: |o| {
        let is_new = conditions(o).all(|c| c.get("type").and_then(Value::as_str) != Some("Terminating"));
        if is_new {
            set_finalizer(o, CLEANUP, true);
            let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
            set_condition(o, "Terminating", true, "InstanceDeletionPending", message);
        }
    },
    ..Strategy::DEFAULT
};

/// The names that follow from others.
fn complete_names(o: &mut Object) {
    let kind = o.str_at("/spec/names/kind").to_owned();
    if kind.is_empty() {
        return;
    }
    let names = edge_api::object::object_entry(o.section_mut("spec"), "names");
    let mut fill = |name: &str, value: String| {
        if names.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
            names.insert(name.into(), value.into());
        }
    };
    fill("singular", kind.to_lowercase());
    fill("listKind", format!("{kind}List"));
}

/// Remembers in the status in which versions objects may be stored.
fn note_storage(o: &mut Object) {
    let versions = o.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten();
    let stored: Vec<Value> = versions
        .filter(|v| v.get("storage") == Some(&Value::Bool(true)))
        .filter_map(|v| v.get("name").cloned())
        .collect();
    let list = o.section_mut("status").entry("storedVersions").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut() {
        for version in stored {
            if !list.contains(&version) {
                list.push(version);
            }
        }
    }
}

/// The conditions of a definition.
pub fn conditions(o: &Object) -> impl Iterator<Item = &Map<String, Value>> {
    o.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}

/// Whether a condition of a definition is true.
pub fn is_true(o: &Object, condition: &str) -> bool {
    let text =
        |c: &Map<String, Value>, name: &str| c.get(name).and_then(Value::as_str).unwrap_or_default() == condition;
    conditions(o).any(|c| text(c, "type") && c.get("status").and_then(Value::as_str) == Some("True"))
}

/// Sets a condition of a definition; the time changes with the status only.
pub fn set_condition(o: &mut Object, kind: &str, status: bool, reason: &str, message: &str) {
    let status = if status { "True" } else { "False" };
    let list = o.section_mut("status").entry("conditions").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    let condition = |time: Value| json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": time});
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(known) => {
            let time = if known["status"] == status {
                known["lastTransitionTime"].clone()
            } else {
                edge_api::meta::now().into()
            };
            *known = condition(time);
        }
        None => list.push(condition(edge_api::meta::now().into())),
    }
}

fn validate_update(new: &Object, old: &Object, errors: &mut ErrorList) {
    let mut pointers = vec!["/spec/group", "/spec/names/plural"];
    if is_true(old, "Established") {
        pointers.extend(["/spec/scope", "/spec/names/kind"]);
    }
    for pointer in pointers {
        super::immutable(new, old, pointer, errors);
    }
    let names: Vec<&str> = versions(new).filter_map(|(_, v)| v.get("name")).filter_map(Value::as_str).collect();
    let stored = new.pointer("/status/storedVersions").and_then(Value::as_array).into_iter().flatten();
    for (i, version) in stored.filter_map(Value::as_str).enumerate().filter(|(_, v)| !names.contains(v)) {
        let detail = format!(
            "missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions \
             until a storage migration ensures no data remains persisted in {version} and removes {version} from \
             status.storedVersions"
        );
        errors.invalid(&Path::new("status").child("storedVersions").index(i), &version.into(), &detail);
    }
}

/// The versions with their paths.
fn versions(o: &Object) -> impl Iterator<Item = (Path, &Map<String, Value>)> {
    let path = Path::new("spec").child("versions");
    let list = o.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten().enumerate();
    list.filter_map(move |(i, v)| Some((path.index(i), v.as_object()?)))
}

fn text<'m>(map: &'m Map<String, Value>, name: &str) -> &'m str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests;
