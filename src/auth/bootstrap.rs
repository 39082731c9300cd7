//! The roles and bindings that every cluster has from its first start.

use serde_json::{Map, Value, json};

/// Names and rules are those of Kubernetes 1.36's bootstrap policy, with what edge's controllers do differently (they
/// patch where Kubernetes' own update), and what edge's nodes do besides the kubelet's work (`edge:` roles).
///
/// A line that begins with `role` or `clusterrole` opens a role; `aggregate-to X` labels it to become part of X,
/// `aggregates X` makes it out of all that are labelled so. `controller NAME` opens the role `system:controller:NAME`, bound to
/// the service account NAME. The lines below are the role's rules, `verbs | groups | resources | names`, or `verbs | url |
/// paths`. `core` is the core group; R, W and RW stand for the reading, the writing and all usual verbs. `bind` lines bind:
/// `bind [NAMESPACE/]BINDING [Role] ROLE to SUBJECTS`.
const POLICY: &str = include_str!("bootstrap.txt");

const RBAC: &str = "rbac.authorization.k8s.io";

/// All roles and bindings, as objects to be created or grown.
pub fn bootstrap_policy() -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for line in POLICY.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["clusterrole", name, rest @ ..] => out.push(cluster_role(name, rest)),
            ["controller", name] => {
                let role = format!("system:controller:{name}");
                let account = format!("ServiceAccount=kube-system/{name}");
                out.push(binding(&role, &["to", &account]));
                out.push(cluster_role(&role, &[]));
            }
            ["role", id, ..] => {
                let (namespace, name) = id.split_once('/').unwrap_or(("kube-system", id));
                out.push(json!({"apiVersion": format!("{RBAC}/v1"), "kind": "Role",
                    "metadata": metadata(name, namespace), "rules": []}));
            }
            ["bind", id, rest @ ..] => out.push(binding(id, rest)),
            _ => {
                if let Some(rules) = out.last_mut().and_then(|r| r["rules"].as_array_mut()) {
                    rules.push(rule(line));
                }
            }
        }
    }
    out
}

fn metadata(name: &str, namespace: &str) -> Value {
    let mut meta = json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}});
    if !namespace.is_empty() {
        meta["namespace"] = namespace.into();
    }
    meta
}

fn cluster_role(name: &str, options: &[&str]) -> Value {
    let mut role =
        json!({"apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": metadata(name, ""), "rules": []});
    for pair in options.chunks(2) {
        let [what, target] = pair else { continue };
        let label = format!("{RBAC}/aggregate-to-{target}");
        match *what {
            "aggregate-to" => role["metadata"]["labels"][label] = "true".into(),
            "aggregates" => {
                let selector = Map::from_iter([(label, Value::from("true"))]);
                role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": selector}]});
            }
            _ => {}
        }
    }
    role
}

fn rule(line: &str) -> Value {
    let parts: Vec<Vec<&str>> = line.split('|').map(|p| p.split_whitespace().collect()).collect();
    let part = |i: usize| parts.get(i).cloned().unwrap_or_default();
    let verbs: Vec<&str> = part(0)
        .into_iter()
        .flat_map(|v| match v {
            "R" => vec!["get", "list", "watch"],
            "W" => vec!["create", "delete", "deletecollection", "patch", "update"],
            "RW" => vec!["get", "list", "watch", "create", "delete", "deletecollection", "patch", "update"],
            other => vec![other],
        })
        .collect();
    if part(1) == ["url"] {
        return json!({"verbs": verbs, "nonResourceURLs": part(2)});
    }
    let groups: Vec<&str> = part(1).into_iter().map(|g| if g == "core" { "" } else { g }).collect();
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": part(2)});
    if !part(3).is_empty() {
        rule["resourceNames"] = part(3).into();
    }
    rule
}

fn binding(id: &str, words: &[&str]) -> Value {
    let at = words.iter().position(|w| *w == "to").unwrap_or(words.len());
    let (target, subjects) = words.split_at(at);
    let (role_kind, role) = match target {
        ["Role", name] => ("Role", *name),
        [name] => ("ClusterRole", *name),
        _ => ("ClusterRole", id),
    };
    let subjects: Vec<Value> = subjects
        .iter()
        .skip(1)
        .filter_map(|s| s.split_once('='))
        .map(|(kind, name)| match (kind, name.split_once('/')) {
            ("ServiceAccount", Some((namespace, name))) => json!({"kind": kind, "namespace": namespace, "name": name}),
            _ => json!({"kind": kind, "apiGroup": RBAC, "name": name}),
        })
        .collect();
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    let kind = if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
    json!({"apiVersion": format!("{RBAC}/v1"), "kind": kind, "metadata": metadata(name, namespace),
        "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": role}, "subjects": subjects})
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{Attributes, Decision, Rbac};
    use edge_api::UserInfo;
    use std::collections::HashSet;

    #[test]
    fn every_object_is_whole() {
        let policy = bootstrap_policy();
        let id = |v: &Value| format!("{}/{}/{}", v["kind"], v["metadata"]["namespace"], v["metadata"]["name"]);
        let ids: HashSet<String> = policy.iter().map(id).collect();
        assert_eq!(ids.len(), policy.len(), "no object twice");
        for v in &policy {
            if v["kind"].as_str().unwrap().ends_with("Binding") {
                let role = json!({"kind": v["roleRef"]["kind"], "metadata": {"name": v["roleRef"]["name"],
                    "namespace": if v["roleRef"]["kind"] == "Role" { v["metadata"]["namespace"].clone() } else { Value::Null }}});
                assert!(ids.contains(&id(&role)), "{v}");
                // nodes have their rights from the node authorizer
                let bound = !v["subjects"].as_array().unwrap().is_empty();
                assert!(bound || v["metadata"]["name"] == "system:node", "{v}");
            } else {
                for r in v["rules"].as_array().unwrap() {
                    assert!(!r["verbs"].as_array().unwrap().is_empty(), "{v}");
                    let parts = ["resources", "apiGroups", "nonResourceURLs"];
                    assert!(parts.iter().any(|p| r[p].as_array().is_some_and(|a| !a.is_empty())), "{r}");
                }
            }
        }
    }

    #[test]
    fn the_policy_lets_components_do_their_work_and_no_more() {
        let rbac = Rbac::new();
        bootstrap_policy().iter().for_each(|v| rbac.upsert(v));
        let allowed = |user: &UserInfo, verb, group, resource, subresource| {
            let a = Attributes {
                user,
                verb,
                is_resource: true,
                group,
                resource,
                subresource,
                namespace: "x",
                name: "y",
                path: "",
                node: "",
            };
            rbac.authorize(&a) != Decision::NoOpinion
        };
        let controller =
            |name: &str| UserInfo::new(crate::service_account_user("kube-system", name), ["system:serviceaccounts"]);
        assert!(allowed(&controller("replicaset-controller"), "create", "", "pods", ""));
        assert!(!allowed(&controller("replicaset-controller"), "get", "", "secrets", ""));
        assert!(allowed(&controller("deployment-controller"), "patch", "apps", "deployments", "status"));
        let scheduler = UserInfo::new("system:kube-scheduler", [""; 0]);
        assert!(allowed(&scheduler, "create", "", "pods", "binding"));
        // (controller, verb, group, resource, subresource) that its work needs
        for (name, verb, group, resource, subresource) in [
            ("clusterrole-aggregation-controller", "escalate", RBAC, "clusterroles", ""),
            ("pvc-protection-controller", "patch", "", "persistentvolumeclaims", ""),
            ("pv-protection-controller", "patch", "", "persistentvolumes", ""),
            ("pod-garbage-collector", "patch", "", "pods", "status"),
            ("node-controller", "patch", "", "nodes", "status"),
            ("replication-controller", "patch", "", "replicationcontrollers", "status"),
            ("statefulset-controller", "create", "", "persistentvolumeclaims", ""),
            ("daemon-set-controller", "create", "apps", "controllerrevisions", ""),
            ("job-controller", "patch", "", "pods", ""),
            ("cronjob-controller", "create", "batch", "jobs", ""),
            ("ttl-after-finished-controller", "delete", "batch", "jobs", ""),
            ("disruption-controller", "patch", "policy", "poddisruptionbudgets", "status"),
            ("resourcequota-controller", "patch", "", "resourcequotas", "status"),
            ("service-cidrs-controller", "list", "", "services", ""),
        ] {
            assert!(allowed(&controller(name), verb, group, resource, subresource), "{name}: {verb} {resource}");
            assert!(!allowed(&controller(name), "create", RBAC, "clusterrolebindings", ""), "{name}");
        }
        // what nodes may do is decided by the node authorizer; as roles they have only what concerns no pod
        let node = UserInfo::new("system:node:a", [crate::node::NODES]);
        assert!(!allowed(&node, "patch", "", "pods", "status") && !allowed(&node, "get", "", "secrets", ""));
        let certificates = "certificates.k8s.io";
        assert!(allowed(&node, "create", certificates, "certificatesigningrequests", "selfnodeclient"));
        let network = UserInfo::new("edge:network", [""; 0]);
        assert!(allowed(&network, "watch", "discovery.k8s.io", "endpointslices", ""));
        assert!(!allowed(&network, "get", "", "secrets", "") && !allowed(&network, "patch", "", "nodes", ""));
        let nobody = UserInfo::anonymous();
        assert!(!allowed(&nobody, "get", "", "pods", ""));
        let path = |user: &UserInfo, path| {
            let a = Attributes {
                user,
                verb: "get",
                is_resource: false,
                group: "",
                resource: "",
                subresource: "",
                namespace: "",
                name: "",
                path,
                node: "",
            };
            rbac.authorize(&a) != Decision::NoOpinion
        };
        assert!(
            path(&nobody, "/version")
                && !path(&nobody, "/apis")
                && path(&UserInfo::new("jane", [""; 0]), "/apis/apps/v1")
        );
    }
}
