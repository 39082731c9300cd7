//! The scale subresource: `autoscaling/v1` `Scale` in front of the replicas of a workload.

use crate::custom::Scale;
use crate::options::Target;
use crate::registry::Transform;
use crate::resource::ResourceInfo;
use crate::stored::Stored;
use edge_api::field::{ErrorList, Path};
use edge_api::selector::LabelSelector;
use edge_api::{GroupKind, Object, Status};
use serde_json::{Value, json};

/// The scale of a stored object, which is given in the row's version.
pub(crate) fn of(info: &ResourceInfo, object: &Object, stored: &Stored) -> Stored {
    let scale = view(info, object);
    Stored::opaque(stored.key(), scale.to_json().into(), stored.resource_version())
}

/// The scale of an object, which is given in the row's version or in one that has its replicas in the same place.
pub fn view(info: &ResourceInfo, object: &Object) -> Object {
    let mut meta = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.metadata().and_then(|m| m.get(field)) {
            meta.insert(field.into(), value.clone());
        }
    }
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    if let Some(paths) = paths(info) {
        let mut status = json!({"replicas": number(&paths.status_replicas)});
        let selector = object.str_at(&paths.selector);
        if !paths.selector.is_empty() && !selector.is_empty() {
            status["selector"] = selector.into();
        }
        let scale = json!({
            "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta,
            "spec": {"replicas": number(&paths.spec_replicas)}, "status": status,
        });
        return Object::from_value(scale).unwrap_or_default();
    }
    let mut status = json!({"replicas": number("/status/replicas")});
    let selector = object.pointer("/spec/selector").unwrap_or(&Value::Null);
    // a replication controller's selector is a plain map
    let parsed = if info.plural == "replicationcontrollers" {
        let pairs = selector.as_object().into_iter().flatten();
        Ok(LabelSelector::from_map(pairs.map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))))
    } else {
        LabelSelector::from_value(selector)
    };
    if let Ok(parsed) = parsed {
        status["selector"] = parsed.to_string().into();
    }
    let scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta,
        "spec": {"replicas": number("/spec/replicas")}, "status": status,
    });
    Object::from_value(scale).unwrap_or_default()
}

/// Makes a transformation of the scale one of the object.
///
/// # Errors
/// What the transformation says, 409 for another resourceVersion, 422 for a bad number.
pub(crate) fn update(target: &Target<'_>, live: Option<&Object>, transform: Transform<'_>) -> Result<Object, Status> {
    let live = live.ok_or_else(|| Status::not_found(&target.info.group_resource(), target.name))?;
    let scale = transform(Some(&view(target.info, live)))?;
    if !scale.resource_version().is_empty() && scale.resource_version() != live.resource_version() {
        return Err(Status::modified(&target.info.group_resource(), target.name));
    }
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if replicas < 0 {
        let mut errors = ErrorList::new();
        let path = Path::new("spec").child("replicas");
        errors.invalid(&path, &replicas.into(), "must be greater than or equal to 0");
        let kind = GroupKind { group: "autoscaling".into(), kind: "Scale".into() };
        return Err(Status::invalid(&kind, target.name, &errors));
    }
    let mut object = live.clone();
    set_replicas(target.info, &mut object, replicas);
    Ok(object)
}

/// Gives an object so many replicas.
pub fn set_replicas(info: &ResourceInfo, object: &mut Object, replicas: i64) {
    match paths(info) {
        Some(paths) => set(object, &paths.spec_replicas, replicas),
        None => drop(object.section_mut("spec").insert("replicas".into(), replicas.into())),
    }
}

/// Whether an object has replicas at all: one of a custom resource may not.
///
/// # Errors
/// 500, as in Kubernetes.
pub(crate) fn check(info: &ResourceInfo, object: &Object) -> Result<(), Status> {
    match paths(info) {
        Some(paths) if object.pointer(&paths.spec_replicas).is_none() => {
            let path = paths.spec_replicas.replace('/', ".");
            Err(Status::internal(format!("the spec replicas field {path:?} does not exist")))
        }
        _ => Ok(()),
    }
}

/// Where a custom resource has its replicas.
fn paths(info: &ResourceInfo) -> Option<&Scale> {
    info.custom.as_ref()?.scale.as_ref()
}

/// Sets a number at a pointer; what is missing on the way is made.
fn set(object: &mut Object, pointer: &str, number: i64) {
    let mut names: Vec<&str> = pointer.split('/').skip(1).collect();
    let Some(last) = names.pop() else { return };
    let place = names.into_iter().fold(object.fields_mut(), |place, name| edge_api::object::object_entry(place, name));
    place.insert(last.to_owned(), number.into());
}
