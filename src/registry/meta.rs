//! Metadata: what the system fills in, and what is checked for every resource alike.

use crate::custom::DEFINITIONS;
use crate::resource::ResourceInfo;
use crate::strategy::NameRule;
use edge_api::field::{ErrorKind, ErrorList, Path};
use edge_api::{Object, Status, names};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Generated names are cut so that their random end fits (Kubernetes' values).
const MAX_GENERATED_BASE: usize = 58;
const SUFFIX_LENGTH: usize = 5;
/// Without vowels and look-alikes, so that no words come out.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Keys and values of all annotations together.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Fields that only the system changes.
const SYSTEM: [&str; 5] = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

/// Random bytes from the operating system.
fn random<const N: usize>() -> Result<[u8; N], Status> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Status::internal("the system gives no random numbers"))?;
    Ok(bytes)
}

/// A name that begins with `base`.
///
/// # Errors
/// 500 when the system gives no random numbers.
pub(crate) fn generate_name(base: &str) -> Result<String, Status> {
    let mut end = base.len().min(MAX_GENERATED_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let suffix =
        random::<SUFFIX_LENGTH>()?.map(|b| char::from(SUFFIX_ALPHABET[usize::from(b) % SUFFIX_ALPHABET.len()]));
    Ok(base[..end].chars().chain(suffix).collect())
}

/// A random (version 4) UUID.
///
/// # Errors
/// 500 when the system gives no random numbers.
pub fn uid() -> Result<String, Status> {
    let mut b = random::<16>()?;
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let n = u128::from_be_bytes(b);
    let part = |shift: u32, digits: usize| format!("{:0digits$x}", n >> shift & ((1 << (digits * 4)) - 1));
    Ok([part(96, 8), part(80, 4), part(64, 4), part(48, 4), part(0, 12)].join("-"))
}

/// Fills in the metadata of a new object.
///
/// # Errors
/// 500 when the system gives no random numbers.
pub(crate) fn complete_new(object: &mut Object, generation: bool) -> Result<(), Status> {
    let uid = uid()?;
    let meta = object.metadata_mut();
    for field in SYSTEM.into_iter().chain(["resourceVersion", "selfLink"]) {
        meta.remove(field);
    }
    meta.insert("uid".into(), uid.into());
    meta.insert("creationTimestamp".into(), edge_api::meta::now().into());
    if generation {
        meta.insert("generation".into(), 1.into());
    }
    Ok(())
}

/// Gives a changed object the metadata that clients cannot change.
pub(crate) fn carry_over(object: &mut Object, live: &Object) {
    let meta = object.metadata_mut();
    meta.remove("selfLink");
    for field in SYSTEM.into_iter().chain(["name", "namespace", "resourceVersion"]) {
        match live.metadata().and_then(|m| m.get(field)) {
            Some(value) => drop(meta.insert(field.into(), value.clone())),
            None => drop(meta.remove(field)),
        }
    }
}

/// Whether anything but the metadata (and the status, where it has an endpoint of its own) differs.
pub(crate) fn desired_state_differs(info: &ResourceInfo, a: &Object, b: &Object) -> bool {
    let with_status = info.custom.is_some() && info.subresource("status").is_none();
    let outside = |k: &&String| match k.as_str() {
        "metadata" | "apiVersion" | "kind" => false,
        "status" => with_status,
        _ => true,
    };
    let fields = |o: &Object| o.fields().keys().filter(outside).cloned().collect::<BTreeSet<String>>();
    fields(a).union(&fields(b)).any(|k| a.get(k) != b.get(k))
}

/// Sets `metadata.generation`.
pub(crate) fn set_generation(object: &mut Object, generation: i64) {
    object.metadata_mut().insert("generation".into(), generation.into());
}

/// Checks the metadata of an object.
pub(crate) fn validate(info: &ResourceInfo, object: &Object, errors: &mut ErrorList) {
    let path = Path::new("metadata");
    let empty = Map::new();
    let meta = object.metadata().unwrap_or(&empty);
    validate_name(info, object, &path, errors);
    validate_labels(meta.get("labels"), &path.child("labels"), errors);
    validate_annotations(meta.get("annotations"), &path.child("annotations"), errors);
    validate_owners(meta.get("ownerReferences"), &path.child("ownerReferences"), errors);
    // custom resources and their definitions may have plain names
    let strict = info.custom.is_none() && info.group != DEFINITIONS.0;
    for finalizer in object.finalizers() {
        let path = path.child("finalizers");
        if let Err(why) = names::qualified_name(finalizer) {
            errors.invalid(&path, &finalizer.into(), &why);
        } else if strict
            && !finalizer.contains('/')
            && !matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes")
        {
            errors.invalid(
                &path,
                &finalizer.into(),
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
}

fn validate_name(info: &ResourceInfo, object: &Object, meta: &Path, errors: &mut ErrorList) {
    let rule: fn(&str) -> Result<(), String> = match info.strategy.name {
        NameRule::Subdomain => names::dns1123_subdomain,
        NameRule::Label => names::dns1123_label,
        NameRule::Label1035 => names::dns1035_label,
        NameRule::PathSegment => names::path_segment,
    };
    let generate = object.generate_name();
    if object.name().is_empty() {
        errors.required(&meta.child("name"), "name or generateName is required");
        return;
    }
    if !generate.is_empty() {
        // what ends in a separator becomes a name with the random end
        let probe = format!("{}a", generate.strip_suffix('-').unwrap_or(generate));
        if let Err(why) = rule(&probe) {
            errors.invalid(&meta.child("generateName"), &generate.into(), &why);
        }
    }
    if let Err(why) = rule(object.name()) {
        errors.invalid(&meta.child("name"), &object.name().into(), &why);
    }
    if info.namespaced {
        if object.namespace().is_empty() {
            errors.required(&meta.child("namespace"), "");
        } else if let Err(why) = names::dns1123_label(object.namespace()) {
            errors.invalid(&meta.child("namespace"), &object.namespace().into(), &why);
        }
    } else if !object.namespace().is_empty() {
        errors.forbidden(&meta.child("namespace"), "not allowed on this type");
    }
}

/// Checks a map of labels.
pub(crate) fn validate_labels(labels: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        if let Err(why) = names::qualified_name(key) {
            errors.invalid(path, &key.as_str().into(), &why);
        }
        if let Err(why) = names::label_value(value.as_str().unwrap_or_default()) {
            errors.invalid(path, value, &why);
        }
    }
}

fn validate_annotations(annotations: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    let mut size = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        // case does not matter here, as opposed to labels
        if let Err(why) = names::qualified_name(&key.to_lowercase()) {
            errors.invalid(path, &key.as_str().into(), &why);
        }
    }
    if size > MAX_ANNOTATIONS {
        errors.push(ErrorKind::TooLong, path, format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes"));
    }
}

fn validate_owners(owners: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    let mut controllers = 0;
    for (i, owner) in owners.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let path = path.index(i);
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        let version = edge_api::GroupVersion::parse(text("apiVersion"));
        if version.is_none() {
            errors.invalid(&path.child("apiVersion"), &text("apiVersion").into(), "version must not be empty");
        }
        for (field, detail) in
            [("kind", "must not be empty"), ("name", "must not be empty"), ("uid", "must not be empty")]
        {
            if text(field).is_empty() {
                errors.invalid(&path.child(field), &"".into(), detail);
            }
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            errors.invalid(&path, &owner.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        controllers += u32::from(owner.get("controller") == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true. Found \"true\" in references";
        errors.invalid(path, &owners.cloned().unwrap_or(Value::Null), detail);
    }
}

/// Checks the change of the metadata from the live object's.
pub(crate) fn validate_update(object: &Object, live: &Object, errors: &mut ErrorList) {
    if live.is_terminating() {
        let before: BTreeSet<&str> = live.finalizers().collect();
        let added: Vec<&str> = object.finalizers().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let list = added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
            errors.forbidden(
                &Path::new("metadata").child("finalizers"),
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
                ),
            );
        }
    }
}

/// Adds or removes a finalizer.
pub(crate) fn set_finalizer(object: &mut Object, name: &str, wanted: bool) {
    let meta = object.metadata_mut();
    let mut list: Vec<Value> = meta.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    list.retain(|f| f != name);
    if wanted {
        list.push(name.into());
    }
    if list.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".into(), json!(list));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_and_uids_are_well_formed_and_differ() {
        let a = generate_name("web-").unwrap();
        assert!(a.len() == 9 && a.starts_with("web-"), "{a}");
        assert_eq!(generate_name(&"x".repeat(100)).unwrap().len(), 63);
        generate_name(&"ä".repeat(50)).unwrap();
        let uids: BTreeSet<String> = (0..100).map(|_| uid().unwrap()).collect();
        assert_eq!(uids.len(), 100);
        let u = uids.first().unwrap();
        assert_eq!((u.len(), &u[14..15]), (36, "4"), "{u}");
        assert!("89ab".contains(&u[19..20]), "{u}");
    }

    #[test]
    fn owners_and_finalizers_are_checked() {
        let info = crate::catalog::Catalog::builtin().preferred("", "configmaps").unwrap();
        let check = |meta: Value| {
            let mut errors = ErrorList::new();
            validate(&info, &Object::from_value(json!({"metadata": meta})).unwrap(), &mut errors);
            errors.to_string()
        };
        assert_eq!(check(json!({"name": "a", "namespace": "b", "finalizers": ["x.y/z", "orphan"]})), "");
        for (meta, says) in [
            (json!({"name": "a", "namespace": "b", "finalizers": ["x"]}), "neither a standard finalizer name"),
            (json!({"name": "a"}), "metadata.namespace: Required value"),
            (json!({"namespace": "b"}), "name or generateName is required"),
            (json!({"name": "a", "namespace": "b", "labels": {"-": "x"}}), "metadata.labels: Invalid value: \"-\""),
            (json!({"name": "a", "namespace": "b", "ownerReferences": [{}]}), "ownerReferences[0].uid"),
            (json!({"name": "a", "namespace": "b", "annotations": {"a": "x".repeat(MAX_ANNOTATIONS)}}), "Too long"),
        ] {
            let errors = check(meta.clone());
            assert!(errors.contains(says), "{meta}: {errors}");
        }
    }
}
