//! APIServices: which server answers for a group version.

use super::definition::set_condition;
use super::{NameRule, Strategy};
use edge_api::field::{ErrorList, Path};
use edge_api::{Object, names};
use serde_json::Value;

pub(crate) static STRATEGY: Strategy = Strategy {
    // `v1.` is the name of the core group's
    name: NameRule::PathSegment,
    unconditional_update: false,
    prepare_create: |o| {
        if is_local(o) {
            set_local(o);
        }
    },
    validate,
    validate_status,
    ..Strategy::DEFAULT
};

/// Whether the group version is served by this server.
pub fn is_local(o: &Object) -> bool {
    !matches!(o.pointer("/spec/service"), Some(Value::Object(_)))
}

/// Says that a local APIService is available, as they always are.
pub fn set_local(o: &mut Object) {
    set_condition(o, "Available", true, "Local", "Local APIServices are always available");
}

fn validate(o: &Object, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let (group, version) = (o.str_at("/spec/group"), o.str_at("/spec/version"));
    let name = format!("{version}.{group}");
    if o.name() != name {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {name:?}");
        errors.invalid(&Path::new("metadata").child("name"), &o.name().into(), &detail);
    }
    if group.is_empty() {
        if version != "v1" {
            errors.required(&path.child("group"), "only v1 may have an empty group and it better be legacy kube");
        }
    } else if let Err(why) = names::dns1123_subdomain(group) {
        errors.invalid(&path.child("group"), &group.into(), &why);
    }
    if let Err(why) = names::dns1035_label(version) {
        errors.invalid(&path.child("version"), &version.into(), &why);
    }
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let value = o.get("spec").get(field).cloned().unwrap_or_else(|| 0.into());
        if !value.as_i64().is_some_and(|n| (1..=most).contains(&n)) {
            errors.invalid(&path.child(field), &value, &format!("must be positive and less than {most}"));
        }
    }
    validate_trust(o, &path, errors);
}

/// Who is believed to be the server.
fn validate_trust(o: &Object, path: &Path, errors: &mut ErrorList) {
    let bundle = o.str_at("/spec/caBundle");
    let insecure = o.pointer("/spec/insecureSkipTLSVerify") == Some(&Value::Bool(true));
    if is_local(o) {
        if !bundle.is_empty() {
            let size = bundle.trim_end_matches('=').len() * 3 / 4;
            let detail = "local APIServices may not have a caBundle";
            errors.invalid(&path.child("caBundle"), &format!("{size} bytes").into(), detail);
        }
        if insecure {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errors.invalid(&path.child("insecureSkipTLSVerify"), &true.into(), detail);
        }
        return;
    }
    for field in ["namespace", "name"] {
        if o.str_at(&format!("/spec/service/{field}")).is_empty() {
            errors.required(&path.child("service").child(field), "");
        }
    }
    if insecure && !bundle.is_empty() {
        let detail = "may not be true if caBundle is present";
        errors.invalid(&path.child("insecureSkipTLSVerify"), &true.into(), detail);
    }
}

fn validate_status(new: &Object, _: &Object, errors: &mut ErrorList) {
    let conditions = new.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    for (i, condition) in conditions.enumerate() {
        let status = condition.get("status").cloned().unwrap_or_default();
        if !matches!(status.as_str(), Some("True" | "False" | "Unknown")) {
            let path = Path::new("status").child("conditions").index(i).child("status");
            errors.not_supported(&path, &status, &["True", "False", "Unknown"]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn said(name: &str, spec: &Value) -> String {
        let o = Object::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        let mut errors = ErrorList::new();
        validate(&o, &mut errors);
        errors.to_string()
    }

    #[test]
    fn what_kubernetes_refuses_is_refused() {
        let spec = |extra: Value| {
            let mut spec = json!({"group": "a.io", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1000,
                "service": {"namespace": "n", "name": "s", "port": 443}});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            spec
        };
        for extra in [
            json!({}),
            json!({"caBundle": "QUJD"}),
            json!({"insecureSkipTLSVerify": true}),
            json!({"service": null}),
            json!({"groupPriorityMinimum": 20000}),
        ] {
            assert_eq!(said("v1.a.io", &spec(extra.clone())), "", "{extra}");
        }
        assert_eq!(said("v1.", &spec(json!({"group": "", "service": null}))), "", "the core group's");
        for (name, extra, says) in [
            ("v2.a.io", json!({}), "must be `spec.version+\".\"+spec.group`: \"v1.a.io\""),
            ("v2.", json!({"group": "", "version": "v2"}), "only v1 may have an empty group"),
            ("v1.A", json!({"group": "A"}), "spec.group: Invalid value: \"A\""),
            ("1.a.io", json!({"version": "1"}), "spec.version: Invalid value: \"1\""),
            ("v1.a.io", json!({"groupPriorityMinimum": 0}), "must be positive and less than 20000"),
            ("v1.a.io", json!({"groupPriorityMinimum": 20001}), "must be positive and less than 20000"),
            ("v1.a.io", json!({"versionPriority": -1}), "spec.versionPriority: Invalid value: -1"),
            ("v1.a.io", json!({"service": {"port": 443}}), "spec.service.namespace: Required value"),
            ("v1.a.io", json!({"service": {"namespace": "n"}}), "spec.service.name: Required value"),
            ("v1.a.io", json!({"caBundle": "QUJD", "insecureSkipTLSVerify": true}), "may not be true if caBundle"),
            ("v1.a.io", json!({"caBundle": "QUJD", "service": null}), "Invalid value: \"3 bytes\": local APIServices"),
            ("v1.a.io", json!({"insecureSkipTLSVerify": true, "service": null}), "may not have insecureSkipTLSVerify"),
        ] {
            let text = said(name, &spec(extra));
            assert!(text.contains(says), "{text}");
        }
    }

    #[test]
    fn local_ones_are_available() {
        let mut local = Object::from_value(json!({"spec": {}})).unwrap();
        (STRATEGY.prepare_create)(&mut local);
        assert_eq!(local.str_at("/status/conditions/0/reason"), "Local");
        let mut remote = Object::from_value(json!({"spec": {"service": {"name": "s"}}})).unwrap();
        (STRATEGY.prepare_create)(&mut remote);
        assert_eq!(remote.pointer("/status"), None);
        let with = |status: &str| Object::from_value(json!({"status": {"conditions": [{"status": status}]}})).unwrap();
        let refused = |status: &str| {
            let mut errors = ErrorList::new();
            validate_status(&with(status), &local, &mut errors);
            !errors.is_empty()
        };
        assert_eq!(["True", "False", "Unknown", "true", ""].map(refused), [false, false, false, true, true]);
    }
}
