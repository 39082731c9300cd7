//! Says in the status of each ValidatingAdmissionPolicy where its expressions do not fit the types that the policy is about.

use crate::context::{Context, each, unless_changed};
use edge_cel::openapi::Document;
use edge_cel::{Env, Program, Type, admission};
use edge_client::{Api, Client, Error, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, is_not_found, run_workers};
use k8s_openapi::api::admissionregistration::v1::{ExpressionWarning, ValidatingAdmissionPolicy};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Types that one policy is checked against at most (Kubernetes' value).
const MAX_TYPES: usize = 10;

pub(crate) async fn run(context: Context) {
    let policies = context.informers.of::<ValidatingAdmissionPolicy>();
    let queue = WorkQueue::<String>::new();
    policies.synced().await;
    let watch = each(&policies, |change| queue.add(change.object().name_any()));
    let work = run_workers("validatingadmissionpolicy-status", queue.clone(), 1, |name: String| {
        let (policies, client) = (policies.clone(), context.client.clone());
        async move {
            let Some(policy) = policies.get("", &name).filter(|p| !is_checked(p)) else { return Ok(Outcome::Done) };
            let kinds = kinds(&client, &policy).await?;
            let warnings = warnings(&policy, &kinds);
            let checking = if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) };
            let patch = json!({
                "metadata": {"uid": policy.uid(), "resourceVersion": policy.resource_version()},
                "status": {"observedGeneration": policy.metadata.generation, "typeChecking": checking},
            });
            let api: Api<ValidatingAdmissionPolicy> = Api::all(client);
            unless_changed(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
            Ok::<_, Error>(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

fn is_checked(policy: &ValidatingAdmissionPolicy) -> bool {
    let status = policy.status.as_ref();
    status.is_some_and(|s| s.type_checking.is_some() && s.observed_generation == policy.metadata.generation)
}

/// What a policy is about, as far as its rules say it without wildcards: group, version and resource.
fn resources(policy: &ValidatingAdmissionPolicy) -> BTreeSet<(String, String, String)> {
    let constraints = policy.spec.as_ref().and_then(|s| s.match_constraints.as_ref());
    let mut out = BTreeSet::new();
    for rule in constraints.into_iter().flat_map(|c| c.resource_rules.iter().flatten()) {
        let of = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let (groups, versions, resources) = (of(&rule.api_groups), of(&rule.api_versions), of(&rule.resources));
        if [&groups, &versions, &resources].iter().any(|list| list.iter().any(|s| s == "*")) {
            continue;
        }
        for group in &groups {
            for version in &versions {
                for resource in resources.iter().filter(|r| !r.contains('/')) {
                    if out.len() < MAX_TYPES {
                        out.insert((group.clone(), version.clone(), resource.clone()));
                    }
                }
            }
        }
    }
    out
}

/// The types that a policy is checked against.
#[derive(Default)]
struct Kinds {
    /// By `group/version, Kind=kind`.
    objects: BTreeMap<String, Type>,
    params: Option<Type>,
}

async fn document(client: &Client, group: &str, version: &str) -> Result<Option<Value>, Error> {
    let path = if group.is_empty() {
        format!("/openapi/v3/api/{version}")
    } else {
        format!("/openapi/v3/apis/{group}/{version}")
    };
    let request = http::Request::get(path).header(http::header::ACCEPT, "application/json").body(Vec::new());
    let request = request.map_err(|e| Error::Service(Box::new(e)))?;
    match client.request::<Value>(request).await {
        Ok(document) => Ok(Some(document)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn kinds(client: &Client, policy: &ValidatingAdmissionPolicy) -> Result<Kinds, Error> {
    let mut out = Kinds::default();
    for (group, version, resource) in resources(policy) {
        let Some(document) = document(client, &group, &version).await? else { continue };
        let mut document = Document::new(&document);
        let Some(kind) = document.kind_of(&resource) else { continue };
        if let Some(ty) = document.kind(&group, &version, &kind) {
            let api_version = if group.is_empty() { version } else { format!("{group}/{version}") };
            out.objects.insert(format!("{api_version}, Kind={kind}"), ty);
        }
    }
    let param = policy.spec.as_ref().and_then(|s| s.param_kind.as_ref());
    if let Some(param) = param {
        let (api_version, kind) =
            (param.api_version.clone().unwrap_or_default(), param.kind.clone().unwrap_or_default());
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let document = document(client, group, version).await?;
        let ty = document.as_ref().and_then(|d| Document::new(d).kind(group, version, &kind));
        out.params = Some(ty.unwrap_or(Type::Dyn));
    }
    Ok(out)
}

/// The expressions that do not fit, each with what is wrong for which type.
fn warnings(policy: &ValidatingAdmissionPolicy, kinds: &Kinds) -> Vec<ExpressionWarning> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let mut out = Vec::new();
    for (i, validation) in spec.validations.iter().flatten().enumerate() {
        let expressions = [
            ("expression", Some(&validation.expression)),
            ("messageExpression", validation.message_expression.as_ref()),
        ];
        for (field, expression) in expressions {
            let Some(expression) = expression.filter(|e| !e.trim().is_empty()) else { continue };
            let complaints: Vec<String> = kinds
                .objects
                .iter()
                .filter_map(|(kind, ty)| {
                    let env = env(policy, ty, kinds.params.clone(), field == "expression");
                    Program::compile(expression, &env).err().map(|error| format!("{kind}: {error}"))
                })
                .collect();
            if !complaints.is_empty() {
                let field_ref = format!("spec.validations[{i}].{field}");
                out.push(ExpressionWarning { field_ref, warning: complaints.join("\n") });
            }
        }
    }
    out
}

/// The variables, the policy's own with the types that they have for an object of this type.
fn env(policy: &ValidatingAdmissionPolicy, object: &Type, params: Option<Type>, asks: bool) -> Env {
    let mut env = admission::env(object.clone(), params, asks);
    let own = policy.spec.as_ref().and_then(|s| s.variables.as_ref());
    for variable in own.into_iter().flatten() {
        // what is wrong with a variable is told where it is used
        let ty = Program::compile(&variable.expression, &env).map_or(Type::Dyn, |program| program.ty().clone());
        env = env.with(format!("variables.{}", variable.name), ty);
    }
    env
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use edge_cel::ObjectType;
    use std::sync::Arc;

    fn policy(spec: Value) -> ValidatingAdmissionPolicy {
        serde_json::from_value(json!({"metadata": {"name": "p", "generation": 2}, "spec": spec})).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let spec = ObjectType::new("Spec", [("replicas".to_owned(), Type::Int)]);
        let object = ObjectType::new("Deployment", [("spec".to_owned(), Type::Object(Arc::new(spec)))]);
        let mut kinds = Kinds::default();
        kinds.objects.insert("apps/v1, Kind=Deployment".into(), Type::Object(Arc::new(object)));
        let policy = policy(json!({
            "variables": [{"name": "n", "expression": "object.spec.replicas"}],
            "validations": [
                {"expression": "object.spec.replicas > 1", "messageExpression": "'wants more than ' + object.spec.replicas"},
                {"expression": "object.spec.replicas > '1'"},
                {"expression": "variables.n > 'a' || object.spec.nope"},
                {"expression": "request.operation == 'CREATE' && authorizer.path('/x').check('get').allowed()"},
            ],
        }));
        let warnings = warnings(&policy, &kinds);
        let fields: Vec<&str> = warnings.iter().map(|w| w.field_ref.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.validations[0].messageExpression",
                "spec.validations[1].expression",
                "spec.validations[2].expression"
            ]
        );
        assert_eq!(
            warnings[1].warning,
            "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^"
        );
        assert!(warnings[2].warning.contains("undefined field 'nope'"));
    }

    #[test]
    fn wildcards_are_no_types() {
        let rule = |groups: &[&str], resources: &[&str]| json!({"apiGroups": groups, "apiVersions": ["v1"], "operations": ["*"], "resources": resources});
        let of = |rules: Value| resources(&policy(json!({"matchConstraints": {"resourceRules": rules}}))).len();
        assert_eq!(of(json!([rule(&["apps"], &["deployments", "deployments/scale", "replicasets"])])), 2);
        assert_eq!(of(json!([rule(&["*"], &["deployments"]), rule(&["apps"], &["*"])])), 0);
        let many: Vec<String> = (0..20).map(|i| format!("r{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(of(json!([rule(&["apps"], &many)])), MAX_TYPES);
    }
}
