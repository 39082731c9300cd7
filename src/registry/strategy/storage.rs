//! Claims, volumes and classes of storage: what they must say, and what may change later.

use super::{Strategy, immutable};
use edge_api::field::{ErrorList, Path};
use edge_api::{Object, Quantity, names};
use serde_json::{Map, Value};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(crate) static CLAIM: Strategy = Strategy { validate: claim, validate_update: claim_update, ..Strategy::DEFAULT };

pub(crate) static VOLUME: Strategy = Strategy { validate: volume, validate_update: volume_update, ..Strategy::DEFAULT };

pub(crate) static CLASS: Strategy = Strategy {
    validate: |o, errors| {
        if o.str_at("/provisioner").is_empty() {
            errors.required(&Path::new("provisioner"), "");
        }
    },
    validate_update: |new, live, errors| {
        for field in ["parameters", "provisioner"] {
            if new.get(field) != live.get(field) {
                errors.forbidden(&Path::new(field), &format!("updates to {field} are forbidden."));
            }
        }
        immutable(new, live, "/reclaimPolicy", errors);
        immutable(new, live, "/volumeBindingMode", errors);
    },
    ..Strategy::DEFAULT
};

pub(crate) static ATTRIBUTES_CLASS: Strategy = Strategy {
    validate: |o, errors| {
        if o.str_at("/driverName").is_empty() {
            errors.required(&Path::new("driverName"), "");
        }
        if o.get("parameters").as_object().is_none_or(Map::is_empty) {
            errors.required(&Path::new("parameters"), "must contain at least one key/value pair");
        }
    },
    validate_update: |new, live, errors| {
        immutable(new, live, "/driverName", errors);
        immutable(new, live, "/parameters", errors);
    },
    ..Strategy::DEFAULT
};

pub(crate) static ATTACHMENT: Strategy = Strategy {
    validate: |o, errors| {
        let path = Path::new("spec");
        for field in ["attacher", "nodeName"] {
            if o.str_at(&format!("/spec/{field}")).is_empty() {
                errors.required(&path.child(field), "");
            }
        }
        let has = |field: &str| o.get("spec")["source"].get(field).is_some_and(|v| !v.is_null());
        match (has("persistentVolumeName"), has("inlineVolumeSpec")) {
            (false, false) => {
                let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
                errors.required(&path.child("source"), why);
            }
            (true, true) => {
                let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
                errors.invalid(&path.child("source"), &o.get("spec")["source"], why);
            }
            _ => {}
        }
    },
    validate_update: |new, live, errors| immutable(new, live, "/spec", errors),
    ..Strategy::DEFAULT
};

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn quantity(value: Option<&Value>) -> Option<Quantity> {
    Quantity::parse(value?.as_str()?).ok()
}

fn access_modes(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (modes, at) = (items(spec, "accessModes"), path.child("accessModes"));
    if modes.is_empty() {
        errors.required(&at, "at least 1 access mode is required");
    }
    for mode in modes.iter().filter(|mode| !mode.as_str().is_some_and(|m| MODES.contains(&m))) {
        errors.not_supported(&at, mode, &MODES);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

fn volume_mode(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let known = ["Block", "Filesystem"];
    if let Some(mode) = spec.get("volumeMode").filter(|m| !m.is_null())
        && !mode.as_str().is_some_and(|m| known.contains(&m))
    {
        errors.not_supported(&path.child("volumeMode"), mode, &known);
    }
}

fn class_name(spec: &Value, path: &Path, errors: &mut ErrorList) {
    if let Some(class) = spec.get("storageClassName").and_then(Value::as_str).filter(|class| !class.is_empty())
        && let Err(why) = names::dns1123_subdomain(class)
    {
        errors.invalid(&path.child("storageClassName"), &class.into(), &why);
    }
}

fn positive(size: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    match size {
        None | Some(Value::Null) => errors.required(path, ""),
        Some(text) if quantity(size).is_some_and(|q| q.is_negative() || q.is_zero()) => {
            errors.invalid(path, text, "must be greater than zero");
        }
        Some(_) => {}
    }
}

fn requested(claim: &Object) -> Option<&Value> {
    claim.pointer("/spec/resources/requests/storage")
}

fn claim(o: &Object, errors: &mut ErrorList) {
    let (path, spec) = (Path::new("spec"), o.get("spec"));
    access_modes(spec, &path, errors);
    positive(requested(o), &path.child("resources").key("storage"), errors);
    class_name(spec, &path, errors);
    volume_mode(spec, &path, errors);
}

/// Claims are what quotas were asked about, so they stay as they are; but their volume is named once, and a bound one may grow.
fn claim_update(new: &Object, live: &Object, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let bound = new.str_at("/status/phase") == "Bound";
    let without_what_may_change = |o: &Object| {
        let mut spec = o.get("spec").clone();
        let Some(fields) = spec.as_object_mut() else { return spec };
        if live.str_at("/spec/volumeName").is_empty() {
            fields.remove("volumeName");
        }
        let named = live.pointer("/spec/storageClassName").is_some_and(|c| !c.is_null());
        let by_annotation = || live.annotation(BETA_CLASS).unwrap_or_default() == new.str_at("/spec/storageClassName");
        // a class that comes later: the default one, or what an old annotation says
        if !named && (live.annotation(BETA_CLASS).is_none() || by_annotation()) {
            fields.remove("storageClassName");
        }
        if bound {
            fields.remove("volumeAttributesClassName");
            if let Some(Value::Object(requests)) = spec.pointer_mut("/resources/requests") {
                requests.remove("storage");
            }
        }
        spec
    };
    if without_what_may_change(new) != without_what_may_change(live) {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.forbidden(&path, why);
    }
    let (size, before) = (quantity(requested(new)), quantity(requested(live)));
    // a growth that failed may be taken back, but not below what there is
    let smallest = quantity(live.pointer("/status/capacity/storage")).unwrap_or(Quantity::ZERO);
    if size < before && size.is_some_and(|size| size <= smallest) {
        let at = path.child("resources").child("requests").child("storage");
        errors.forbidden(&at, "field can not be less than status.capacity");
    }
}

/// The fields of a volume's spec that are no source.
const NO_SOURCES: [&str; 9] = [
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
];

fn sources(spec: &Value) -> Vec<(&String, &Value)> {
    let fields = spec.as_object().into_iter().flatten();
    fields.filter(|(name, value)| !NO_SOURCES.contains(&name.as_str()) && !value.is_null()).collect()
}

fn volume(o: &Object, errors: &mut ErrorList) {
    let (path, spec) = (Path::new("spec"), o.get("spec"));
    access_modes(spec, &path, errors);
    let at = path.child("capacity");
    match spec.get("capacity").and_then(Value::as_object) {
        Some(capacity) if !capacity.is_empty() => {
            if !capacity.contains_key("storage") || capacity.len() > 1 {
                errors.not_supported(&at, &spec["capacity"], &["storage"]);
            } else {
                positive(capacity.get("storage"), &at.key("storage"), errors);
            }
        }
        _ => errors.required(&at, ""),
    }
    let policy = o.str_at("/spec/persistentVolumeReclaimPolicy");
    if !["", "Delete", "Recycle", "Retain"].contains(&policy) {
        let at = path.child("persistentVolumeReclaimPolicy");
        errors.not_supported(&at, &policy.into(), &["Delete", "Recycle", "Retain"]);
    }
    match sources(spec).as_slice() {
        [] => errors.required(&path, "must specify a volume type"),
        [_] => {}
        [_, rest @ ..] => {
            for (name, _) in rest {
                errors.forbidden(&path.child(name), "may not specify more than 1 volume type");
            }
        }
    }
    let affinity = spec.pointer("/nodeAffinity/required").is_some_and(|a| !a.is_null());
    if spec.get("local").is_some_and(|l| !l.is_null()) && !affinity {
        errors.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
    }
    class_name(spec, &path, errors);
    volume_mode(spec, &path, errors);
}

fn volume_update(new: &Object, live: &Object, errors: &mut ErrorList) {
    if sources(new.get("spec")) != sources(live.get("spec")) {
        let at = Path::new("spec").child("persistentvolumesource");
        errors.forbidden(&at, "spec.persistentvolumesource is immutable after creation");
    }
    immutable(new, live, "/spec/volumeMode", errors);
    if live.pointer("/spec/nodeAffinity").is_some_and(|a| !a.is_null()) {
        immutable(new, live, "/spec/nodeAffinity", errors);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn merged(mut base: Value, with: Value) -> Object {
        fn merge(into: &mut Value, from: Value) {
            match (into, from) {
                (Value::Object(into), Value::Object(from)) => {
                    from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
                }
                (into, from) => *into = from,
            }
        }
        merge(&mut base, with);
        Object::from_value(base).unwrap()
    }

    fn a_claim(with: Value) -> Object {
        let base = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "c",
            "volumeMode": "Filesystem", "volumeName": "v", "resources": {"requests": {"storage": "2Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "2Gi"}}});
        merged(base, with)
    }

    fn a_volume(with: Value) -> Object {
        let base = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "nfs": {"path": "/a"},
            "volumeMode": "Filesystem"}});
        merged(base, with)
    }

    fn judged(judge: impl FnOnce(&mut ErrorList)) -> String {
        let mut errors = ErrorList::new();
        judge(&mut errors);
        errors.to_string()
    }

    fn check(text: &str, part: &str, what: &Value) {
        assert!(if part.is_empty() { text.is_empty() } else { text.contains(part) }, "{what}: {text:?}");
    }

    #[test]
    fn what_claims_and_volumes_must_say() {
        for (with, part) in [
            (json!({}), ""),
            (
                json!({"spec": {"accessModes": []}}),
                "spec.accessModes: Required value: at least 1 access mode is required",
            ),
            (json!({"spec": {"accessModes": ["Some"]}}), "spec.accessModes: Unsupported value: \"Some\""),
            (json!({"spec": {"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}}), "may not use ReadWriteOncePod"),
            (json!({"spec": {"resources": null}}), "spec.resources[storage]: Required value"),
            (json!({"spec": {"resources": {"requests": {"storage": "0"}}}}), "must be greater than zero"),
            (json!({"spec": {"volumeMode": "Tape"}}), "spec.volumeMode: Unsupported value"),
            (json!({"spec": {"storageClassName": "A_b"}}), "spec.storageClassName: Invalid value"),
        ] {
            check(&judged(|errors| claim(&a_claim(with.clone()), errors)), part, &with);
        }
        for (with, part) in [
            (json!({}), ""),
            (json!({"spec": {"capacity": null}}), "spec.capacity: Required value"),
            (json!({"spec": {"nfs": null}}), "spec: Required value: must specify a volume type"),
            (json!({"spec": {"hostPath": {"path": "/b"}}}), "may not specify more than 1 volume type"),
            (json!({"spec": {"nfs": null, "local": {"path": "/b"}}}), "Local volume requires node affinity"),
            (
                json!({"spec": {"persistentVolumeReclaimPolicy": "Burn"}}),
                "persistentVolumeReclaimPolicy: Unsupported value",
            ),
        ] {
            check(&judged(|errors| volume(&a_volume(with.clone()), errors)), part, &with);
        }
    }

    #[test]
    fn claims_stay_as_they_are_but_may_grow() {
        let size = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let unbound = || json!({"spec": {"volumeName": "", "storageClassName": null}, "status": {"phase": "Pending", "capacity": null}});
        let pending = |with: Value| merged(a_claim(unbound()).into_value(), with);
        for (new, live, part) in [
            (a_claim(json!({})), a_claim(json!({})), ""),
            (a_claim(size("3Gi")), a_claim(json!({})), ""),
            (a_claim(size("1Gi")), a_claim(json!({})), "field can not be less than status.capacity"),
            // taken back, as far as nothing has grown yet
            (a_claim(size("3Gi")), a_claim(size("9Gi")), ""),
            (a_claim(size("2Gi")), a_claim(size("9Gi")), "field can not be less than status.capacity"),
            (a_claim(json!({"spec": {"volumeAttributesClassName": "gold"}})), a_claim(json!({})), ""),
            (a_claim(json!({"spec": {"volumeName": "w"}})), a_claim(json!({})), "spec is immutable after creation"),
            (
                a_claim(json!({"spec": {"storageClassName": "d"}})),
                a_claim(json!({})),
                "spec is immutable after creation",
            ),
            (
                a_claim(json!({"spec": {"accessModes": ["ReadOnlyMany"]}})),
                a_claim(json!({})),
                "spec is immutable after creation",
            ),
            (pending(json!({"spec": {"volumeName": "w"}})), pending(json!({})), ""),
            (pending(json!({"spec": {"storageClassName": "later"}})), pending(json!({})), ""),
            (pending(size("3Gi")), pending(json!({})), "spec is immutable after creation"),
        ] {
            check(&judged(|errors| claim_update(&new, &live, errors)), part, new.get("spec"));
        }
    }

    #[test]
    fn sources_and_classes_stay_as_they_are() {
        let affinity = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": []}}}});
        for (new, live, part) in [
            (json!({"spec": {"capacity": {"storage": "3Gi"}}}), json!({}), ""),
            (json!({"spec": {"claimRef": {"name": "c"}}}), json!({}), ""),
            (json!({"spec": {"nfs": {"path": "/b"}}}), json!({}), "spec.persistentvolumesource is immutable"),
            (affinity.clone(), json!({}), ""),
            (json!({}), affinity, "spec.nodeAffinity"),
        ] {
            let told = judged(|errors| volume_update(&a_volume(new.clone()), &a_volume(live), errors));
            check(&told, part, &new);
        }
        let class = |with: Value| {
            merged(json!({"provisioner": "x/y", "reclaimPolicy": "Delete", "parameters": {"a": "b"}}), with)
        };
        for (with, part) in [
            (json!({"allowVolumeExpansion": true}), ""),
            (json!({"provisioner": "x/z"}), "updates to provisioner are forbidden"),
            (json!({"parameters": {"a": "c"}}), "updates to parameters are forbidden"),
            (json!({"reclaimPolicy": "Retain"}), "reclaimPolicy: Invalid value"),
        ] {
            let told = judged(|errors| (CLASS.validate_update)(&class(with.clone()), &class(json!({})), errors));
            check(&told, part, &with);
        }
    }
}
