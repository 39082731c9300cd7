//! Which writes a policy, a binding or a webhook is about.

use super::Cluster;
use edge_api::selector::LabelSelector;
use edge_api::{Object, Status};
use edge_registry::{Attributes, Operation, ResourceInfo};
use serde_json::Value;
use std::sync::Arc;

/// A rule about resources.
#[derive(Debug, Default)]
struct Rule {
    names: Vec<String>,
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
}

/// What `matchConstraints` and `matchResources` say.
#[derive(Debug, Default)]
pub(super) struct Constraints {
    namespaces: LabelSelector,
    objects: LabelSelector,
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Whether a rule for one version of a resource is one for all.
    equivalent: bool,
    /// Whether none at all means everything.
    may_lack_rules: bool,
}

/// What is being written, as rules see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) operation: &'a str,
    pub(super) group: &'a str,
    pub(super) version: &'a str,
    pub(super) resource: &'a str,
    pub(super) subresource: &'a str,
    pub(super) name: &'a str,
    pub(super) is_namespaced: bool,
}

pub(crate) fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

fn strings(value: &Value, field: &str) -> Vec<String> {
    value[field].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|s| s == "*" || s == wanted)
}

impl Rule {
    fn new(value: &Value) -> Self {
        Self {
            names: strings(value, "resourceNames"),
            operations: strings(value, "operations"),
            groups: strings(value, "apiGroups"),
            versions: strings(value, "apiVersions"),
            resources: strings(value, "resources"),
            scope: value["scope"].as_str().unwrap_or("*").to_owned(),
        }
    }

    fn matches(&self, place: &Place<'_>) -> bool {
        let scope = match self.scope.as_str() {
            "Cluster" => !place.is_namespaced,
            "Namespaced" => place.is_namespaced,
            _ => true,
        };
        let resource = self.resources.iter().any(|r| {
            let (resource, subresource) = r.split_once('/').unwrap_or((r, ""));
            let fits = |pattern: &str, given: &str| pattern == "*" || pattern == given;
            fits(resource, place.resource) && fits(subresource, place.subresource)
        });
        scope
            && resource
            && has(&self.operations, place.operation)
            && has(&self.groups, place.group)
            && has(&self.versions, place.version)
            && (self.names.is_empty() || self.names.iter().any(|n| n == place.name))
    }
}

impl Constraints {
    /// Reads those of a policy or a binding.
    ///
    /// # Errors
    /// What is wrong with a selector.
    pub(super) fn new(value: &Value) -> Result<Self, String> {
        Ok(Self { may_lack_rules: true, ..Self::read(value, "resourceRules")? })
    }

    /// Reads those of a webhook, which are among its other fields.
    ///
    /// # Errors
    /// What is wrong with a selector.
    pub(super) fn of_webhook(value: &Value) -> Result<Self, String> {
        Self::read(value, "rules")
    }

    fn read(value: &Value, rules_field: &str) -> Result<Self, String> {
        let selector = |field: &str| match &value[field] {
            Value::Null => Ok(LabelSelector::everything()),
            given => LabelSelector::from_value(given).map_err(|e| e.to_string()),
        };
        let rules = |field: &str| value[field].as_array().into_iter().flatten().map(Rule::new).collect();
        Ok(Self {
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
            rules: rules(rules_field),
            excluded: rules("excludeResourceRules"),
            equivalent: value["matchPolicy"].as_str() != Some("Exact"),
            may_lack_rules: false,
        })
    }

    /// Whether they hold for a write, and as which version of the resource.
    ///
    /// # Errors
    /// When the namespace is not known.
    pub(super) fn matches(
        &self,
        cluster: &dyn Cluster,
        a: &Attributes<'_>,
        object: Option<&Object>,
    ) -> Result<Option<Arc<ResourceInfo>>, Status> {
        let Some(as_which) = self.by_rules(cluster, a, object) else { return Ok(None) };
        if !self.objects.is_everything() && ![object, a.old].into_iter().flatten().any(|o| has_labels(&self.objects, o))
        {
            return Ok(None);
        }
        if self.namespaces.is_everything() || self.in_namespace(cluster, a, object)? {
            return Ok(Some(as_which));
        }
        Ok(None)
    }

    fn in_namespace(&self, cluster: &dyn Cluster, a: &Attributes<'_>, object: Option<&Object>) -> Result<bool, Status> {
        if a.info.group.is_empty() && a.info.plural == "namespaces" {
            let is_changed = matches!(a.operation, Operation::Create | Operation::Update);
            let own = if is_changed { object } else { a.old };
            return Ok(own.is_none_or(|o| has_labels(&self.namespaces, o)));
        }
        if !a.info.namespaced {
            return Ok(true);
        }
        let found = cluster.get("", "namespaces", "", a.namespace);
        let gone = || Status::not_found(&edge_api::GroupResource::new("", "namespaces"), a.namespace);
        found.map(|namespace| has_labels(&self.namespaces, &namespace)).ok_or_else(gone)
    }

    /// The version of the resource that rules are about; the request's own first.
    fn by_rules(
        &self,
        cluster: &dyn Cluster,
        a: &Attributes<'_>,
        object: Option<&Object>,
    ) -> Option<Arc<ResourceInfo>> {
        let name = object.map_or("", Object::name);
        let name = if a.name.is_empty() { name } else { a.name };
        let place = |info: &ResourceInfo, yes: &mut dyn FnMut(&Place<'_>) -> bool| {
            yes(&Place {
                operation: operation_name(a.operation),
                group: &info.group,
                version: &info.version,
                resource: &info.plural,
                subresource: a.subresource,
                name,
                is_namespaced: info.namespaced,
            })
        };
        let own = cluster.catalog().resource(&a.info.group, &a.info.version, &a.info.plural);
        let mut rows: Vec<Arc<ResourceInfo>> = own.into_iter().collect();
        if self.equivalent {
            let same = |row: &&Arc<ResourceInfo>| {
                row.prefix == a.info.prefix
                    && row.plural == a.info.plural
                    && (&row.group, &row.version) != (&a.info.group, &a.info.version)
            };
            rows.extend(cluster.catalog().rows().iter().filter(same).cloned());
        }
        if rows.iter().any(|row| place(row, &mut |p| self.excluded.iter().any(|r| r.matches(p)))) {
            return None;
        }
        if self.rules.is_empty() {
            return rows.into_iter().next().filter(|_| self.may_lack_rules);
        }
        // the request's own version if any rule names it; else earlier rules count before later ones
        if rows.first().is_some_and(|own| place(own, &mut |p| self.rules.iter().any(|r| r.matches(p)))) {
            return rows.into_iter().next();
        }
        let fits = |rule: &Rule, row: &Arc<ResourceInfo>| place(row, &mut |p| rule.matches(p));
        self.rules.iter().find_map(|rule| rows.iter().find(|row| fits(rule, row))).cloned()
    }
}

fn has_labels(selector: &LabelSelector, object: &Object) -> bool {
    selector.matches(|key| object.label(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_match_as_in_kubernetes() {
        let place = |resource: &'static str, subresource: &'static str| Place {
            operation: "CREATE",
            group: "apps",
            version: "v1",
            resource,
            subresource,
            name: "web",
            is_namespaced: true,
        };
        let rule = |mut value: Value| {
            let all = json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]});
            for (k, v) in all.as_object().into_iter().flatten() {
                if value[k].is_null() {
                    value[k] = v.clone();
                }
            }
            Rule::new(&value)
        };
        for (value, resource, subresource, want) in [
            (json!({}), "deployments", "", true),
            (json!({}), "deployments", "scale", false),
            (json!({"resources": ["*/*"]}), "deployments", "scale", true),
            (json!({"resources": ["*/scale"]}), "deployments", "scale", true),
            (json!({"resources": ["*/scale"]}), "deployments", "", false),
            (json!({"resources": ["deployments/*"]}), "deployments", "", true),
            (json!({"resources": ["pods", "deployments"]}), "deployments", "", true),
            (json!({"resources": ["pods"]}), "deployments", "", false),
            (json!({"operations": ["CREATE", "UPDATE"]}), "deployments", "", true),
            (json!({"operations": ["DELETE"]}), "deployments", "", false),
            (json!({"apiGroups": [""]}), "deployments", "", false),
            (json!({"apiVersions": ["v1beta1"]}), "deployments", "", false),
            (json!({"scope": "Cluster"}), "deployments", "", false),
            (json!({"scope": "Namespaced"}), "deployments", "", true),
            (json!({"resourceNames": ["web"]}), "deployments", "", true),
            (json!({"resourceNames": ["other"]}), "deployments", "", false),
        ] {
            assert_eq!(
                rule(value.clone()).matches(&place(resource, subresource)),
                want,
                "{value} {resource}/{subresource}"
            );
        }
    }
}
