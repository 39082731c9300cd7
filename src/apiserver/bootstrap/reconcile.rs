//! What an existing object becomes.

use edge_api::Object;
use serde_json::{Map, Value};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// The content of `wanted` (everything but its metadata) in the place of `live`'s; `None` when nothing changes.
pub(super) fn replace(live: &Object, wanted: &Object) -> Option<Object> {
    let mut new = live.clone();
    for (field, value) in wanted.fields() {
        if field != "metadata" {
            new.fields_mut().insert(field.clone(), value.clone());
        }
    }
    add_entries(&mut new, wanted, "labels");
    (new != *live).then_some(new)
}

/// The ServiceCIDR `wanted`, when `live` is the same without a second family.
pub(super) fn widen(live: &Object, wanted: &Object) -> Option<Object> {
    let cidrs = |o: &Object| o.pointer("/spec/cidrs").and_then(Value::as_array).cloned().unwrap_or_default();
    let (has, wants) = (cidrs(live), cidrs(wanted));
    if has.len() == 1 && wants.len() == 2 && has[0] == wants[0] { replace(live, wanted) } else { None }
}

/// `live` with the rules, subjects, labels and annotations of `wanted` that it lacks; `None` when it lacks nothing, or
/// its administrator has asked for no updates.
pub(super) fn grow(live: &Object, wanted: &Object) -> Option<Object> {
    if live.annotation(AUTOUPDATE) == Some("false") {
        return None;
    }
    let mut new = live.clone();
    for field in ["rules", "subjects"] {
        // the rules of an aggregated role are its controller's
        if field == "rules" && !live.get("aggregationRule").is_null() {
            continue;
        }
        let have = live.get(field).as_array().cloned().unwrap_or_default();
        let missing: Vec<Value> = wanted
            .get(field)
            .as_array()
            .into_iter()
            .flatten()
            .filter(|w| !have.iter().any(|h| covers(h, w)))
            .cloned()
            .collect();
        if !missing.is_empty() {
            new.fields_mut().insert(field.into(), have.into_iter().chain(missing).collect::<Vec<_>>().into());
        }
    }
    add_entries(&mut new, wanted, "labels");
    add_entries(&mut new, wanted, "annotations");
    (new != *live).then_some(new)
}

/// Whether an entry holds at least what another one does: every string list of the other is within its own.
fn covers(have: &Value, want: &Value) -> bool {
    let (Some(have), Some(want)) = (have.as_object(), want.as_object()) else { return have == want };
    let narrower = |field: &str| have.contains_key(field) && !want.contains_key(field);
    if narrower("resourceNames") {
        return false;
    }
    want.iter().all(|(field, w)| match (have.get(field), w) {
        (Some(Value::Array(h)), Value::Array(w)) => w.iter().all(|x| h.contains(x)),
        (Some(h), w) => h == w,
        (None, _) => false,
    })
}

fn add_entries(new: &mut Object, wanted: &Object, field: &str) {
    let Some(entries) = wanted.metadata().and_then(|m| m.get(field)).and_then(Value::as_object) else { return };
    let slot = new.metadata_mut().entry(field).or_insert_with(|| Value::Object(Map::new()));
    if let Some(map) = slot.as_object_mut() {
        for (k, v) in entries {
            map.entry(k.clone()).or_insert_with(|| v.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn object(v: Value) -> Object {
        Object::from_value(v).unwrap()
    }

    #[test]
    fn roles_grow_and_never_shrink() {
        let rule = |verbs: &[&str]| json!({"verbs": verbs, "apiGroups": [""], "resources": ["pods"]});
        let live = object(
            json!({"metadata": {"name": "r", "resourceVersion": "5"}, "rules": [rule(&["get", "list", "mine"])]}),
        );
        let wanted =
            object(json!({"metadata": {"labels": {"a": "b"}}, "rules": [rule(&["get", "list"]), rule(&["watch"])]}));
        let new = grow(&live, &wanted).unwrap();
        assert_eq!(new.get("rules"), &json!([rule(&["get", "list", "mine"]), rule(&["watch"])]));
        assert_eq!((new.label("a"), new.resource_version()), (Some("b"), "5"));
        assert_eq!(grow(&new, &wanted), None);
        let off = object(json!({"metadata": {"annotations": {AUTOUPDATE: "false"}}, "rules": []}));
        assert_eq!(grow(&off, &wanted), None);
        let named = object(
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"]}]}),
        );
        assert!(
            grow(&named, &object(json!({"rules": [rule(&["get"])]}))).is_some(),
            "a rule for one name is not one for all"
        );
    }

    #[test]
    fn a_second_family_is_added_and_nothing_else() {
        let cidrs = |list: Value| object(json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": list}}));
        let both = json!(["10.43.0.0/16", "fd43::/112"]);
        let wide = widen(&cidrs(json!(["10.43.0.0/16"])), &cidrs(both.clone())).unwrap();
        assert_eq!(wide.pointer("/spec/cidrs"), Some(&both));
        assert_eq!(widen(&cidrs(both.clone()), &cidrs(json!(["10.43.0.0/16"]))), None);
        assert_eq!(widen(&cidrs(json!(["10.44.0.0/16"])), &cidrs(both)), None);
    }

    #[test]
    fn endpoints_follow_the_address() {
        let live = object(
            json!({"metadata": {"name": "kubernetes", "uid": "u"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]}),
        );
        let wanted =
            object(json!({"metadata": {"name": "kubernetes"}, "subsets": [{"addresses": [{"ip": "10.0.0.2"}]}]}));
        let new = replace(&live, &wanted).unwrap();
        assert_eq!(new.uid(), "u");
        assert_eq!(new.get("subsets"), wanted.get("subsets"));
        assert_eq!(replace(&new, &wanted), None);
    }
}
