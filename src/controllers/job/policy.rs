//! What a pod's failure means, and when a Job counts as successful before all of it is done.

use super::indexes::Indexes;
use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// What a failed pod does to its Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts as one failure.
    Count,
    /// It does not count.
    Ignore,
    /// Its index is not tried again.
    FailIndex,
    /// The Job fails; why.
    FailJob(String),
}

/// Decides by the first rule that matches.
pub(super) fn verdict(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    for (i, rule) in policy.into_iter().flat_map(|p| &p.rules).enumerate() {
        let name = || {
            let meta = &pod.metadata;
            format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
        };
        let why = if let Some(codes) = &rule.on_exit_codes {
            exited(pod, codes).map(|(container, code)| {
                format!(
                    "Container {container} for pod {} failed with exit code {code} matching {} rule at index {i}",
                    name(),
                    rule.action
                )
            })
        } else {
            let patterns = rule.on_pod_conditions.iter().flatten();
            let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let matching = conditions.into_iter().find(|c| {
                patterns.clone().any(|p| p.type_ == c.type_ && p.status.as_deref().unwrap_or("True") == c.status)
            });
            matching
                .map(|c| format!("Pod {} has condition {} matching {} rule at index {i}", name(), c.type_, rule.action))
        };
        let Some(why) = why else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(why),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// The first container whose exit code a requirement names.
fn exited<'a>(pod: &'a Pod, codes: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let code = |c: &ContainerStatus| c.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
    containers
        .filter(|c| codes.container_name.as_ref().is_none_or(|n| *n == c.name))
        .filter_map(|c| Some((c.name.as_str(), code(c).filter(|code| *code != 0)?)))
        .find(|(_, code)| match codes.operator.as_str() {
            "In" => codes.values.contains(code),
            "NotIn" => !codes.values.contains(code),
            _ => false,
        })
}

/// Which rule of a success policy the indexes that succeeded satisfy, in words.
pub(super) fn success(policy: Option<&SuccessPolicy>, completions: i32, succeeded: &Indexes) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let met = |rule: &k8s_openapi::api::batch::v1::SuccessPolicyRule| match &rule.succeeded_indexes {
        Some(text) => {
            let wanted = Indexes::parse(text, completions);
            let reached = wanted.overlap(succeeded);
            !wanted.is_empty() && (reached == wanted.total() || rule.succeeded_count.is_some_and(|n| reached >= n))
        }
        None => rule.succeeded_count.is_some_and(|n| succeeded.total() >= n),
    };
    let index = policy?.rules.iter().position(met)?;
    Some(format!("Matched rules at index {index}"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn pod(codes: &[(&str, i32)], condition: &str) -> Pod {
        let status = |(name, code): &(&str, i32)| {
            json!({"name": name, "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": code}}})
        };
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "status": {
            "containerStatuses": codes.iter().map(status).collect::<Vec<_>>(),
            "conditions": [{"type": condition, "status": "True"}]}}))
        .unwrap()
    }

    #[test]
    fn failures_by_exit_code_and_condition() {
        let codes = |action: &str, operator: &str, values: &[i32], container: Value| {
            json!({"action": action,
            "onExitCodes": {"operator": operator, "values": values, "containerName": container}})
        };
        let condition =
            |action: &str, kind: &str| json!({"action": action, "onPodConditions": [{"type": kind, "status": "True"}]});
        let fails = |text: &str| Verdict::FailJob(text.to_owned());
        for (rules, p, want) in [
            (json!([]), pod(&[("c", 1)], "x"), Verdict::Count),
            (
                json!([codes("FailJob", "In", &[42], Value::Null)]),
                pod(&[("c", 42)], "x"),
                fails("Container c for pod ns/p failed with exit code 42 matching FailJob rule at index 0"),
            ),
            (json!([codes("FailJob", "In", &[42], Value::Null)]), pod(&[("c", 1)], "x"), Verdict::Count),
            (json!([codes("FailJob", "NotIn", &[42], Value::Null)]), pod(&[("c", 0)], "x"), Verdict::Count),
            (json!([codes("FailIndex", "NotIn", &[42], Value::Null)]), pod(&[("c", 1)], "x"), Verdict::FailIndex),
            (json!([codes("FailJob", "In", &[42], json!("other"))]), pod(&[("c", 42)], "x"), Verdict::Count),
            (
                json!([condition("Ignore", "DisruptionTarget"), codes("FailJob", "In", &[1], Value::Null)]),
                pod(&[("c", 1)], "DisruptionTarget"),
                Verdict::Ignore,
            ),
            (
                json!([condition("Ignore", "DisruptionTarget"), condition("FailJob", "ConfigIssue")]),
                pod(&[], "ConfigIssue"),
                fails("Pod ns/p has condition ConfigIssue matching FailJob rule at index 1"),
            ),
            (json!([condition("Count", "X")]), pod(&[], "X"), Verdict::Count),
        ] {
            let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
            assert_eq!(verdict(Some(&policy), &p), want, "{rules}");
        }
        assert_eq!(verdict(None, &pod(&[("c", 1)], "x")), Verdict::Count);
    }

    #[test]
    fn success_before_the_end() {
        for (rules, done, want) in [
            (json!([{"succeededIndexes": "0-2"}]), "0,2", None),
            (json!([{"succeededIndexes": "0-2"}]), "0-4", Some("Matched rules at index 0")),
            (json!([{"succeededIndexes": "0-2", "succeededCount": 2}]), "1-2,8", Some("Matched rules at index 0")),
            (json!([{"succeededIndexes": "0"}, {"succeededCount": 3}]), "3-5", Some("Matched rules at index 1")),
            (json!([{"succeededCount": 1}]), "", None),
            (json!([{"succeededIndexes": "90"}]), "0", None),
        ] {
            let policy: SuccessPolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
            assert_eq!(success(Some(&policy), 10, &Indexes::parse(done, 10)).as_deref(), want, "{rules} {done}");
        }
        assert_eq!(success(None, 10, &Indexes::parse("0-9", 10)), None);
    }
}
