//! Policy rules: what they allow, and whether a set of them covers another.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A rule of `rbac.authorization.k8s.io/v1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// Verbs; `*` is every one.
    pub verbs: Vec<String>,
    /// API groups; `*` is every one, the empty string the core group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources and `resource/subresource`; `*` is every one, `*/scale` one subresource of all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names of objects; empty is every one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths that are no resources; a `*` at the end stands for any rest.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == "*" || x == item)
}

impl PolicyRule {
    /// Whether the rule allows a verb on a resource. An empty `name` is a request for no particular object.
    pub(crate) fn allows_resource(
        &self,
        verb: &str,
        group: &str,
        resource: &str,
        subresource: &str,
        name: &str,
    ) -> bool {
        has(&self.verbs, verb)
            && has(&self.api_groups, group)
            && self.resources.iter().any(|r| resource_matches(r, resource, subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == name))
    }

    /// Whether the rule allows a verb on a path that is no resource.
    pub(crate) fn allows_path(&self, verb: &str, path: &str) -> bool {
        has(&self.verbs, verb) && self.non_resource_urls.iter().any(|u| path_matches(u, path))
    }

    /// The rule taken apart: each of the result has one verb and one of everything else.
    fn atoms(&self) -> Vec<PolicyRule> {
        let mut out = Vec::new();
        let one = |s: &String| vec![s.clone()];
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                out.push(PolicyRule { verbs: one(verb), non_resource_urls: one(url), ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let whole = PolicyRule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(whole);
                    } else {
                        let named = self.resource_names.iter();
                        out.extend(named.map(|n| PolicyRule { resource_names: one(n), ..whole.clone() }));
                    }
                }
            }
        }
        out
    }

    /// Whether the rule allows all that an atom allows.
    fn covers(&self, atom: &PolicyRule) -> bool {
        let all = |mine: &[String], its: &[String]| its.iter().all(|i| has(mine, i));
        let resource = |want: &String| {
            let (resource, subresource) = want.split_once('/').unwrap_or((want, ""));
            self.resources.iter().any(|r| r == want || resource_matches(r, resource, subresource))
        };
        let url = |want: &String| {
            self.non_resource_urls.iter().any(|u| u == want || path_matches(u, want.trim_end_matches('*')))
        };
        all(&self.verbs, &atom.verbs)
            && all(&self.api_groups, &atom.api_groups)
            && atom.resources.iter().all(resource)
            && atom.non_resource_urls.iter().all(url)
            && (self.resource_names.is_empty()
                || (!atom.resource_names.is_empty()
                    && atom.resource_names.iter().all(|n| self.resource_names.contains(n))))
    }
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((r, s)) => s == subresource && (r == "*" || r == resource),
    }
}

fn path_matches(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => rule == path,
    }
}

/// The parts of `wanted` that `held` does not cover, as Kubernetes writes them in its refusals.
pub fn uncovered(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let mut missing: Vec<PolicyRule> = Vec::new();
    for atom in wanted.iter().flat_map(PolicyRule::atoms) {
        if held.iter().any(|h| h.covers(&atom)) {
            continue;
        }
        // verbs of the same thing are told together
        let same = |m: &&mut PolicyRule| PolicyRule { verbs: atom.verbs.clone(), ..(**m).clone() } == atom;
        match missing.iter_mut().find(same) {
            Some(known) => known.verbs.extend(atom.verbs),
            None => missing.push(atom),
        }
    }
    missing
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ];
        let text: Vec<String> = parts
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{:?}", list.as_slice()))
            .collect();
        write!(f, "{{{}}}", text.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> PolicyRule {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        PolicyRule {
            verbs: own(verbs),
            api_groups: own(groups),
            resources: own(resources),
            resource_names: own(names),
            non_resource_urls: Vec::new(),
        }
    }

    #[test]
    fn resources_and_subresources() {
        let pods = rule(&["get"], &[""], &["pods"], &[]);
        assert!(pods.allows_resource("get", "", "pods", "", "a"));
        assert!(!pods.allows_resource("get", "", "pods", "log", "a"));
        assert!(!pods.allows_resource("get", "apps", "pods", "", "a"));
        assert!(rule(&["*"], &["*"], &["*"], &[]).allows_resource("x", "y", "z", "w", ""));
        assert!(rule(&["get"], &["*"], &["*/scale"], &[]).allows_resource("get", "apps", "deployments", "scale", ""));
        let named = rule(&["get"], &[""], &["secrets"], &["a"]);
        assert!(named.allows_resource("get", "", "secrets", "", "a"));
        assert!(!named.allows_resource("get", "", "secrets", "", "b"));
        assert!(!named.allows_resource("get", "", "secrets", "", ""));
    }

    #[test]
    fn paths() {
        let r = PolicyRule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/healthz/*".into(), "/version".into()],
            ..PolicyRule::default()
        };
        assert!(r.allows_path("get", "/healthz/etcd") && r.allows_path("get", "/version"));
        assert!(!r.allows_path("get", "/healthz") && !r.allows_path("post", "/version"));
    }

    #[test]
    fn what_is_not_covered() {
        let held =
            [rule(&["get", "list"], &[""], &["pods", "*/log"], &[]), rule(&["get"], &[""], &["secrets"], &["a", "b"])];
        let missing = |r: PolicyRule| uncovered(&held, &[r]).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(missing(rule(&["get"], &[""], &["pods", "pods/log"], &[])).is_empty());
        assert!(missing(rule(&["get"], &[""], &["secrets"], &["b"])).is_empty());
        assert_eq!(
            missing(rule(&["get"], &[""], &["secrets"], &[])),
            [r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#]
        );
        assert_eq!(
            missing(rule(&["get", "delete", "watch"], &[""], &["pods"], &[])),
            [r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete", "watch"]}"#]
        );
        assert_eq!(missing(rule(&["*"], &["*"], &["*"], &[])).len(), 1);
        assert!(uncovered(&[rule(&["*"], &["*"], &["*"], &[])], &[rule(&["*"], &["*"], &["*"], &[])]).is_empty());
    }
}
