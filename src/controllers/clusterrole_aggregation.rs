//! ClusterRoles with an aggregation rule: their rules are those of all ClusterRoles that the rule selects.

use crate::context::{Context, each, unless_gone};
use crate::owners::{matches, selector};
use edge_client::{Api, Error, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;
use std::sync::Arc;

const NAME: &str = "clusterrole-aggregation-controller";

pub(crate) async fn run(context: Context) {
    let roles = context.informers.of::<ClusterRole>();
    let queue = WorkQueue::<String>::new();
    roles.synced().await;
    // whichever role changed may be, or have been, a part of any of the aggregated ones
    let watch = each(&roles, |_| {
        for role in roles.list().iter().filter(|r| r.aggregation_rule.is_some()) {
            queue.add(role.name_any());
        }
    });
    let work = run_workers("clusterrole-aggregation", queue.clone(), 1, |name: String| {
        let (roles, client) = (roles.clone(), context.client.clone());
        async move {
            let Some(role) = roles.get("", &name) else { return Ok::<_, Error>(Outcome::Done) };
            let Some(rules) = aggregated(&role, &roles.list()) else { return Ok(Outcome::Done) };
            let body = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": name, "uid": role.uid()}, "rules": rules});
            let api: Api<ClusterRole> = Api::all(client);
            unless_gone(api.patch(&name, &PatchParams::apply(NAME).force(), &Patch::Apply(body)).await)?;
            Ok(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

/// The rules that an aggregated role should have, each once, in the order of their roles' names; `None` when it has them.
fn aggregated(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.iter().flatten().map(selector);
    let selectors: Vec<_> = selectors.collect();
    let mut parts: Vec<&Arc<ClusterRole>> = all
        .iter()
        .filter(|part| part.metadata.name != role.metadata.name)
        .filter(|part| selectors.iter().any(|s| matches(s, &***part)))
        .collect();
    parts.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in parts.into_iter().flat_map(|p| p.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    (rules.as_slice() != role.rules.as_deref().unwrap_or_default()).then_some(rules)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::Value;

    fn role(name: &str, labels: Value, rules: Value) -> Arc<ClusterRole> {
        let value = json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn rule(verb: &str) -> Value {
        json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]})
    }

    #[test]
    fn the_rules_of_all_that_are_selected_each_once() {
        let select = |label: &str| json!({"matchLabels": {label: "true"}});
        let mut target = (*role("view", json!({"x": "true"}), json!([]))).clone();
        target.aggregation_rule =
            serde_json::from_value(json!({"clusterRoleSelectors": [select("x"), select("y")]})).unwrap();
        let all = [
            role("b", json!({"x": "true"}), json!([rule("list"), rule("get")])),
            role("a", json!({"y": "true"}), json!([rule("get")])),
            role("c", json!({"z": "true"}), json!([rule("delete")])),
            Arc::new(target.clone()),
        ];
        let verbs = |rules: Vec<PolicyRule>| rules.into_iter().flat_map(|r| r.verbs).collect::<Vec<_>>();
        let rules = aggregated(&target, &all).unwrap();
        assert_eq!(verbs(rules.clone()), ["get", "list"]);
        target.rules = Some(rules);
        assert_eq!(aggregated(&target, &all), None, "nothing to do when it has them");
        assert_eq!(aggregated(&target, &all[2..]), Some(Vec::new()), "rules go with their roles");
        assert_eq!(aggregated(&all[0], &all), None, "a role without an aggregation rule is left alone");
    }
}
