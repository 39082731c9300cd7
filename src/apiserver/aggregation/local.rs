//! The APIServices of what is served here: one for each built-in group version and for each of a custom resource.
//!
//! Names and numbers are Kubernetes'. Such an APIService is brought back whenever it is changed or deleted, unless its
//! administrator takes the label away; then, if the group version is a custom resource's, another server may answer for it.

use super::spec::{Head, MANAGED, Spec};
use edge_registry::Catalog;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Group and plural of APIServices.
pub(crate) const SERVICES: (&str, &str) = ("apiregistration.k8s.io", "apiservices");

/// The group versions that are served here, by the names of their APIServices; APIServices themselves have none, as in
/// Kubernetes.
pub(crate) fn wanted(catalog: &Catalog) -> BTreeMap<String, Value> {
    let rows = catalog.rows();
    let mut all = BTreeMap::new();
    for row in rows.iter().filter(|r| r.group != SERVICES.0) {
        let name = format!("{}.{}", row.version, row.group);
        // a group version with built-in resources is not a definition's, even if there are both
        let is_custom = row.custom.is_some() && !is_built_in(catalog, &row.group, &row.version);
        all.entry(name).or_insert_with_key(|name| object(name, &row.group, &row.version, is_custom));
    }
    all
}

fn object(name: &str, group: &str, version: &str, is_custom: bool) -> Value {
    let (group_priority, version_priority) = if is_custom { (1000, 100) } else { priorities(group, version) };
    let mut spec = json!({
        "group": group, "version": version,
        "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
    });
    if group.is_empty() {
        spec = json!({"version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority});
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name, "labels": {MANAGED: if is_custom { "true" } else { "onstart" }}},
        "spec": spec,
    })
}

/// Where a built-in group version stands among the others.
fn priorities(group: &str, version: &str) -> (i32, i32) {
    let place = match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        ("metrics.k8s.io", _) => 100,
        (_, version) if version.contains("alpha") => 1,
        (_, version) if version.contains("beta") => 9,
        _ => 15,
    };
    (crate::discovery::group_priority(group), place)
}

/// Whether a group version is a built-in one.
pub(super) fn is_built_in(catalog: &Catalog, group: &str, version: &str) -> bool {
    catalog.rows().iter().any(|r| r.custom.is_none() && r.group == group && r.version == version)
}

/// What has to be done about an APIService.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Create,
    /// Its `spec` becomes the one that is wanted.
    Restore,
    Delete,
    /// It says that it is available.
    Tell,
}

/// Compares an APIService with what is served here.
pub(super) fn action(wanted: Option<&Value>, current: Option<&Head>) -> Action {
    let spec = |wanted: &Value| serde_json::from_value::<Spec>(wanted["spec"].clone()).unwrap_or_default();
    match (wanted, current) {
        (None, None) => Action::Nothing,
        (Some(_), None) => Action::Create,
        (None, Some(head)) if head.is_managed() => Action::Delete,
        (Some(wanted), Some(head)) if head.is_managed() && head.spec != spec(wanted) => Action::Restore,
        (_, Some(head)) if head.spec.service.is_none() && !head.is_available_here() => Action::Tell,
        _ => Action::Nothing,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn all_built_in_group_versions_have_one() {
        let all = wanted(&Catalog::builtin());
        for (name, group, version) in [
            ("v1.", 18000, 1),
            ("v1.apps", 17800, 15),
            ("v2.autoscaling", 17500, 30),
            ("v1beta1.metrics.k8s.io", 100, 100),
        ] {
            let o = &all[name];
            assert_eq!(o["metadata"]["name"], name);
            assert_eq!(o["metadata"]["labels"][MANAGED], "onstart");
            assert_eq!(
                (&o["spec"]["groupPriorityMinimum"], &o["spec"]["versionPriority"]),
                (&group.into(), &version.into()),
                "{name}"
            );
        }
        assert!(!all.contains_key("v1.apiregistration.k8s.io"));
        assert!(all["v1."]["spec"].get("group").is_none());
    }

    #[test]
    fn local_ones_are_as_they_should_be() {
        let wanted = object("v1.a.b", "a.b", "v1", true);
        let head = |change: &dyn Fn(&mut Value)| {
            let mut o = wanted.clone();
            o["status"] = json!({"conditions": [{"type": "Available", "status": "True", "reason": "Local"}]});
            change(&mut o);
            Head::read(o.to_string().as_bytes()).unwrap()
        };
        let as_it_is = head(&|_| {});
        let remote = |o: &mut Value| o["spec"]["service"] = json!({"namespace": "n", "name": "s", "port": 443});
        let unmanaged = |o: &mut Value| o["metadata"]["labels"] = json!({"other": "x"});
        let unmanaged_remote = head(&|o| {
            remote(o);
            unmanaged(o);
        });
        for (wanted, current, expected) in [
            (None, None, Action::Nothing),
            (Some(&wanted), None, Action::Create),
            (Some(&wanted), Some(&as_it_is), Action::Nothing),
            (None, Some(&as_it_is), Action::Delete),
            (Some(&wanted), Some(&head(&remote)), Action::Restore),
            (Some(&wanted), Some(&head(&|o| o["spec"]["versionPriority"] = 7.into())), Action::Restore),
            (Some(&wanted), Some(&unmanaged_remote), Action::Nothing),
            (None, Some(&unmanaged_remote), Action::Nothing),
            (None, Some(&head(&unmanaged)), Action::Nothing),
            (Some(&wanted), Some(&head(&|o| o["status"] = json!({}))), Action::Tell),
        ] {
            assert_eq!(action(wanted, current), expected, "{wanted:?} {current:?}");
        }
    }
}
