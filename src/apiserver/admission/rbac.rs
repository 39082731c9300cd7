//! Nobody hands out rights that he does not hold: the check on roles and bindings.

use super::{AttributesExt, Cluster};
use edge_api::{GroupResource, Object, Status, UserInfo};
use edge_registry::Attributes;
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn no_escalation(cluster: &dyn Cluster, a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    if a.info.group != GROUP || !a.subresource.is_empty() || a.user.in_group(UserInfo::MASTERS) {
        return Ok(());
    }
    match a.info.plural.as_ref() {
        "roles" | "clusterroles" => role(cluster, a, object),
        "rolebindings" | "clusterrolebindings" => binding(cluster, a, object),
        _ => Ok(()),
    }
}

fn role(cluster: &dyn Cluster, a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    let unchanged = |field: &str| a.old.is_some_and(|old| old.get(field) == object.get(field));
    if unchanged("rules") && unchanged("aggregationRule") {
        return Ok(());
    }
    if cluster.may(a.user, "escalate", &a.info.group_resource(), a.namespace, object.name()) {
        return Ok(());
    }
    // an aggregated role will hold whatever other roles are labelled into it
    if !object.get("aggregationRule").is_null() {
        let everything = [serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})];
        if cluster.covers(a.user, "", &everything).is_err() {
            return Err(a.forbidden(Some(object), "must have cluster-admin privileges to use the aggregationRule"));
        }
    }
    refuse_beyond(cluster, a, object, &rules_of(object))
}

fn binding(cluster: &dyn Cluster, a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    if a.old
        .is_some_and(|old| old.get("subjects") == object.get("subjects") && old.get("roleRef") == object.get("roleRef"))
    {
        return Ok(());
    }
    let (plural, namespace) = match object.str_at("/roleRef/kind") {
        "ClusterRole" => ("clusterroles", ""),
        _ => ("roles", a.namespace),
    };
    let name = object.str_at("/roleRef/name");
    let roles = GroupResource::new(GROUP, plural);
    if cluster.may(a.user, "bind", &roles, a.namespace, name) {
        return Ok(());
    }
    let Some(role) = cluster.get(GROUP, plural, namespace, name) else {
        return Err(Status::not_found(&roles, name));
    };
    refuse_beyond(cluster, a, object, &rules_of(&role))
}

fn rules_of(role: &Object) -> Vec<Value> {
    role.get("rules").as_array().cloned().unwrap_or_default()
}

fn refuse_beyond(cluster: &dyn Cluster, a: &Attributes<'_>, object: &Object, rules: &[Value]) -> Result<(), Status> {
    cluster.covers(a.user, a.namespace, rules).map_err(|missing| {
        let groups = a.user.groups.iter().map(|g| format!("\"{g}\"")).collect::<Vec<_>>().join(" ");
        let why = format!(
            "user \"{}\" (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n{missing}",
            a.user.username
        );
        a.forbidden(Some(object), &why)
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, attributes};
    use super::*;
    use edge_registry::Operation;
    use serde_json::json;

    #[test]
    fn rights_can_only_be_given_by_who_holds_them() {
        let poor = || Fake {
            rules_missing: Some("{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\"]}".into()),
            ..Fake::default()
        };
        let role = Object::from_value(
            json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "resources": ["pods"]}]}),
        )
        .unwrap();
        let create = |cluster: &Fake| {
            attributes(Operation::Create, (GROUP, "roles", "Role"), "ns", "r", |a| no_escalation(cluster, a, &role))
        };
        let e = create(&poor()).unwrap_err();
        assert_eq!(e.code, 403);
        assert!(e.message.contains("user \"jane\" (groups=[\"dev\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups"), "{}", e.message);
        create(&Fake::default()).unwrap();
        create(&Fake { allowed: vec![format!("escalate roles.{GROUP} r")], ..poor() }).unwrap();
    }

    #[test]
    fn bindings_need_the_roles_rights_or_the_verb_bind() {
        let key = "rbac.authorization.k8s.io/clusterroles//admin";
        let binding =
            Object::from_value(json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "admin"}}))
                .unwrap();
        let create = |cluster: &Fake| {
            attributes(Operation::Create, (GROUP, "rolebindings", "RoleBinding"), "ns", "b", |a| {
                no_escalation(cluster, a, &binding)
            })
        };
        assert_eq!(create(&Fake::default()).unwrap_err().code, 404);
        let with_role = || Fake::default().with(key, json!({"rules": [{}]}));
        create(&with_role()).unwrap();
        assert_eq!(create(&Fake { rules_missing: Some("x".into()), ..with_role() }).unwrap_err().code, 403);
        let may_bind = Fake {
            rules_missing: Some("x".into()),
            allowed: vec![format!("bind clusterroles.{GROUP} admin")],
            ..with_role()
        };
        create(&may_bind).unwrap();
    }
}
