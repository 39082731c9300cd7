//! Role based access control over an index by subject, so that a decision touches only the user's own bindings.

use crate::rules::{PolicyRule, uncovered};
use crate::service_account_user;
use edge_api::UserInfo;
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// `get`, `list`, `create`, ...; for paths the HTTP method in lower case.
    pub verb: &'a str,
    /// Whether it is about a resource (or else about `path`).
    pub is_resource: bool,
    /// API group; empty for the core group.
    pub group: &'a str,
    /// Resource, plural.
    pub resource: &'a str,
    /// Subresource; may be empty.
    pub subresource: &'a str,
    /// Namespace; empty for all of them and for cluster-scoped resources.
    pub namespace: &'a str,
    /// Name of the object; may be empty.
    pub name: &'a str,
    /// The path, when it is about no resource.
    pub path: &'a str,
    /// The node whose pods are asked for, when a list or watch is limited to those (`spec.nodeName` in its field
    /// selector); may be empty.
    pub node: &'a str,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, and why.
    Allow(String),
    /// Nobody allows it.
    NoOpinion,
}

/// The refusal as Kubernetes words it, without the `... is forbidden: ` before it.
pub fn forbidden_message(a: &Attributes<'_>) -> String {
    let user = &a.user.username;
    if !a.is_resource {
        return format!("User {user:?} cannot {} path {:?}", a.verb, a.path);
    }
    let resource =
        if a.subresource.is_empty() { a.resource.to_owned() } else { format!("{}/{}", a.resource, a.subresource) };
    let scope = if a.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", a.namespace)
    };
    format!("User {user:?} cannot {} resource {resource:?} in API group {:?} {scope}", a.verb, a.group)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// Namespace (empty for cluster-wide ones) and name of a role or binding.
type Id = (String, String);

struct Binding {
    subjects: Vec<Subject>,
    role: Id,
}

#[derive(Default)]
struct Index {
    roles: HashMap<Id, Arc<[PolicyRule]>>,
    bindings: HashMap<Id, Binding>,
    by_subject: HashMap<Subject, Vec<Id>>,
}

/// All roles and bindings of the cluster.
#[derive(Default)]
pub struct Rbac(RwLock<Index>);

#[derive(Deserialize)]
struct WireSubject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

impl Rbac {
    /// Without any role: nobody but `system:masters` may do anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a new or changed Role, ClusterRole, RoleBinding or ClusterRoleBinding. Other kinds are ignored, and parts
    /// that do not parse allow nothing.
    pub fn upsert(&self, object: &Value) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let id = (text("/metadata/namespace").to_owned(), text("/metadata/name").to_owned());
        let mut index = self.0.write();
        match text("/kind") {
            "Role" | "ClusterRole" => {
                let rules = object.get("rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                let rules: Vec<PolicyRule> = rules.iter().filter_map(|r| PolicyRule::deserialize(r).ok()).collect();
                index.roles.insert(id, rules.into());
            }
            "RoleBinding" | "ClusterRoleBinding" => {
                index.remove_binding(&id);
                let subjects = object.get("subjects").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                let subjects: Vec<Subject> = subjects.iter().filter_map(|s| subject(s, &id.0)).collect();
                let role_namespace = if text("/roleRef/kind") == "Role" { id.0.clone() } else { String::new() };
                for s in &subjects {
                    index.by_subject.entry(s.clone()).or_default().push(id.clone());
                }
                let role = (role_namespace, text("/roleRef/name").to_owned());
                index.bindings.insert(id, Binding { subjects, role });
            }
            _ => {}
        }
    }

    /// Forgets a role or binding.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let id = (namespace.to_owned(), name.to_owned());
        let mut index = self.0.write();
        match kind {
            "Role" | "ClusterRole" => drop(index.roles.remove(&id)),
            "RoleBinding" | "ClusterRoleBinding" => index.remove_binding(&id),
            _ => {}
        }
    }

    /// Decides. Members of `system:masters` may do everything.
    pub fn authorize(&self, a: &Attributes<'_>) -> Decision {
        if a.user.in_group(UserInfo::MASTERS) {
            return Decision::Allow(String::new());
        }
        let index = self.0.read();
        let namespace = if a.is_resource { a.namespace } else { "" };
        let allowed = index.bindings_of(a.user, namespace).find_map(|(subject, id, binding)| {
            let rules = index.roles.get(&binding.role)?;
            let allows = |r: &PolicyRule| {
                if a.is_resource {
                    r.allows_resource(a.verb, a.group, a.resource, a.subresource, a.name)
                } else {
                    r.allows_path(a.verb, a.path)
                }
            };
            rules.iter().any(allows).then(|| reason(subject, id, &binding.role))
        });
        allowed.map_or(Decision::NoOpinion, Decision::Allow)
    }

    /// All rules that hold for a user in a namespace (and cluster-wide).
    pub fn rules(&self, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
        if user.in_group(UserInfo::MASTERS) {
            let all = || vec!["*".to_owned()];
            return vec![
                PolicyRule { verbs: all(), api_groups: all(), resources: all(), ..PolicyRule::default() },
                PolicyRule { verbs: all(), non_resource_urls: all(), ..PolicyRule::default() },
            ];
        }
        let index = self.0.read();
        let mut out: Vec<PolicyRule> = Vec::new();
        for (_, _, binding) in index.bindings_of(user, namespace) {
            for rule in index.roles.get(&binding.role).into_iter().flat_map(|r| r.iter()) {
                if !out.contains(rule) {
                    out.push(rule.clone());
                }
            }
        }
        out
    }

    /// What of `wanted` a user does not hold himself: to be empty for whoever grants it.
    pub fn missing(&self, user: &UserInfo, namespace: &str, wanted: &[PolicyRule]) -> Vec<PolicyRule> {
        uncovered(&self.rules(user, namespace), wanted)
    }
}

impl Index {
    fn remove_binding(&mut self, id: &Id) {
        let Some(binding) = self.bindings.remove(id) else { return };
        for s in binding.subjects {
            if let Some(list) = self.by_subject.get_mut(&s) {
                list.retain(|b| b != id);
                if list.is_empty() {
                    self.by_subject.remove(&s);
                }
            }
        }
    }

    /// The bindings that name a user or one of his groups, cluster-wide and in the namespace.
    fn bindings_of<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Subject, &'a Id, &'a Binding)> {
        let subjects = std::iter::once(Subject::User(user.username.clone()))
            .chain(user.groups.iter().map(|g| Subject::Group(g.clone())));
        subjects
            .filter_map(|s| self.by_subject.get_key_value(&s))
            .flat_map(|(subject, ids)| ids.iter().map(move |id| (subject, id)))
            .filter(move |(_, id)| id.0.is_empty() || id.0 == namespace)
            .filter_map(|(subject, id)| Some((subject, id, self.bindings.get(id)?)))
    }
}

fn subject(value: &Value, binding_namespace: &str) -> Option<Subject> {
    let s = WireSubject::deserialize(value).ok()?;
    match s.kind.as_str() {
        "User" => Some(Subject::User(s.name)),
        "Group" => Some(Subject::Group(s.name)),
        "ServiceAccount" => {
            let namespace = if s.namespace.is_empty() { binding_namespace } else { &s.namespace };
            (!namespace.is_empty()).then(|| Subject::User(service_account_user(namespace, &s.name)))
        }
        _ => None,
    }
}

fn reason(subject: &Subject, id: &Id, role: &Id) -> String {
    let binding = if id.0.is_empty() {
        format!("ClusterRoleBinding {:?}", id.1)
    } else {
        format!("RoleBinding {:?}", format!("{}/{}", id.1, id.0))
    };
    let kind = if role.0.is_empty() { "ClusterRole" } else { "Role" };
    let who = match subject {
        Subject::User(name) => format!("User {name:?}"),
        Subject::Group(name) => format!("Group {name:?}"),
    };
    format!("RBAC: allowed by {binding} of {kind} {:?} to {who}", role.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask<'a>(user: &'a UserInfo, verb: &'a str, resource: &'a str, namespace: &'a str) -> Attributes<'a> {
        Attributes {
            user,
            verb,
            is_resource: true,
            group: "",
            resource,
            subresource: "",
            namespace,
            name: "",
            path: "",
            node: "",
        }
    }

    fn role(kind: &str, namespace: &str, name: &str, verbs: &[&str]) -> Value {
        json!({"kind": kind, "metadata": {"name": name, "namespace": namespace},
            "rules": [{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}]})
    }

    fn binding(kind: &str, namespace: &str, name: &str, role_kind: &str, role: &str, subject: Value) -> Value {
        json!({"kind": kind, "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"kind": role_kind, "name": role}, "subjects": [subject]})
    }

    #[test]
    fn bindings_reach_as_far_as_their_scope() {
        let rbac = Rbac::new();
        let jane = UserInfo::new("jane", ["dev"]);
        let allowed = |verb, namespace| rbac.authorize(&ask(&jane, verb, "pods", namespace)) != Decision::NoOpinion;
        assert!(!allowed("get", "a"));
        rbac.upsert(&role("ClusterRole", "", "reader", &["get"]));
        rbac.upsert(&binding(
            "RoleBinding",
            "a",
            "b",
            "ClusterRole",
            "reader",
            json!({"kind": "Group", "name": "dev"}),
        ));
        assert!(allowed("get", "a") && !allowed("get", "b") && !allowed("get", "") && !allowed("list", "a"));
        rbac.upsert(&binding(
            "ClusterRoleBinding",
            "",
            "b",
            "ClusterRole",
            "reader",
            json!({"kind": "User", "name": "jane"}),
        ));
        assert!(allowed("get", "b") && allowed("get", ""));
        // a role of the same name elsewhere is another role
        rbac.upsert(&role("Role", "a", "writer", &["create"]));
        rbac.upsert(&binding("RoleBinding", "b", "w", "Role", "writer", json!({"kind": "User", "name": "jane"})));
        assert!(!allowed("create", "b"));
        rbac.remove("ClusterRoleBinding", "", "b");
        assert!(!allowed("get", "b") && allowed("get", "a"));
        rbac.upsert(&role("ClusterRole", "", "reader", &["watch"]));
        assert!(!allowed("get", "a") && allowed("watch", "a"));
    }

    #[test]
    fn service_accounts_masters_and_reasons() {
        let rbac = Rbac::new();
        rbac.upsert(&role("ClusterRole", "", "reader", &["get"]));
        rbac.upsert(&binding(
            "RoleBinding",
            "ns",
            "b",
            "ClusterRole",
            "reader",
            json!({"kind": "ServiceAccount", "name": "bot"}),
        ));
        let bot = UserInfo::new(service_account_user("ns", "bot"), ["system:serviceaccounts"]);
        assert_eq!(
            rbac.authorize(&ask(&bot, "get", "pods", "ns")),
            Decision::Allow(
                r#"RBAC: allowed by RoleBinding "b/ns" of ClusterRole "reader" to User "system:serviceaccount:ns:bot""#
                    .into()
            )
        );
        let root = UserInfo::new("root", [UserInfo::MASTERS]);
        assert!(matches!(rbac.authorize(&ask(&root, "delete", "nodes", "")), Decision::Allow(_)));
        assert_eq!(
            forbidden_message(&ask(&bot, "list", "pods", "other")),
            r#"User "system:serviceaccount:ns:bot" cannot list resource "pods" in API group "" in the namespace "other""#
        );
        let path = Attributes { is_resource: false, path: "/metrics", ..ask(&bot, "get", "", "") };
        assert_eq!(forbidden_message(&path), r#"User "system:serviceaccount:ns:bot" cannot get path "/metrics""#);
        assert!(rbac.missing(&root, "", &rbac.rules(&root, "")).is_empty());
        assert_eq!(
            rbac.missing(
                &bot,
                "ns",
                &[PolicyRule {
                    verbs: vec!["delete".into()],
                    api_groups: vec![String::new()],
                    resources: vec!["pods".into()],
                    ..PolicyRule::default()
                }]
            )
            .len(),
            1
        );
    }

    #[test]
    fn nonsense_allows_nothing() {
        let rbac = Rbac::new();
        let jane = UserInfo::new("jane", ["dev"]);
        for v in [
            json!({}),
            json!({"kind": "ClusterRole", "rules": 7}),
            json!({"kind": "RoleBinding", "subjects": [{"kind": 1}]}),
            json!({"kind": "ClusterRole", "metadata": {"name": "x"}, "rules": [{"verbs": "get"}]}),
        ] {
            rbac.upsert(&v);
        }
        assert_eq!(rbac.authorize(&ask(&jane, "get", "pods", "")), Decision::NoOpinion);
    }
}
