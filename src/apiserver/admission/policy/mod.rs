//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: expressions of administrators that refuse writes, or change what is written.
//!
//! In: a write, and the policies with their bindings. Out: another object, warnings, or a refusal in kube-apiserver's words. Policies are
//! compiled when they change ([`Policies`]); where there are none, a write pays for nothing.

pub(super) mod compiled;
mod mutate;
mod params;
pub(super) mod run;

use super::matching::Constraints;
use super::{AttributesExt, Cluster};
use compiled::{Binding, MUTATING, Policy};
use edge_api::field::ErrorList;
use edge_api::status::StatusCause;
use edge_api::{Object, Reason, Status};
use edge_cel::Budget;
use edge_registry::{Attributes, Conversion, Operation, ResourceInfo};
pub(super) use mutate::mutate;
use parking_lot::RwLock;
use run::{Finding, Subject};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The group of policies and bindings.
pub(crate) const GROUP: &str = "admissionregistration.k8s.io";
const POLICIES: &str = "validatingadmissionpolicies";
const BINDINGS: &str = "validatingadmissionpolicybindings";
const MUTATING_POLICIES: &str = "mutatingadmissionpolicies";
const MUTATING_BINDINGS: &str = "mutatingadmissionpolicybindings";
/// Their resources.
pub(crate) const RESOURCES: [&str; 4] = [POLICIES, BINDINGS, MUTATING_POLICIES, MUTATING_BINDINGS];

/// Whether it changes objects, and its name.
type Id = (bool, String);

/// The policies with their bindings.
#[derive(Debug, Default)]
pub(crate) struct Set {
    policies: BTreeMap<Id, Arc<Policy>>,
    bindings: BTreeMap<Id, Arc<Binding>>,
    /// Each binding with its policy: those that refuse.
    pairs: Vec<(Arc<Policy>, Arc<Binding>)>,
    /// Those that change.
    mutating: Vec<(Arc<Policy>, Arc<Binding>)>,
}

impl Set {
    /// Whether none of them changes objects.
    pub(super) fn only_judges(&self) -> bool {
        self.mutating.is_empty()
    }

    fn changed(&self, change: impl FnOnce(&mut Set)) -> Option<Arc<Self>> {
        let mut next = Set { policies: self.policies.clone(), bindings: self.bindings.clone(), ..Set::default() };
        change(&mut next);
        for ((is_mutating, _), binding) in &next.bindings {
            let Some(policy) = next.policies.get(&(*is_mutating, binding.policy.clone())) else { continue };
            let pair = (policy.clone(), binding.clone());
            if *is_mutating { next.mutating.push(pair) } else { next.pairs.push(pair) }
        }
        next.mutating.sort_by(|a, b| (&a.0.name, &a.1.name).cmp(&(&b.0.name, &b.1.name)));
        let is_empty = next.policies.is_empty() && next.bindings.is_empty();
        (!is_empty).then(|| Arc::new(next))
    }
}

/// The policies in force.
#[derive(Debug, Default)]
pub(crate) struct Policies(RwLock<Option<Arc<Set>>>);

impl Policies {
    /// What is in force, if anything is.
    pub(crate) fn current(&self) -> Option<Arc<Set>> {
        self.0.read().clone()
    }

    /// Takes in a policy or a binding that is new or has changed.
    pub(crate) fn upsert(&self, value: &Value) {
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut errors = ErrorList::new();
        let kind = value["kind"].as_str().unwrap_or_default();
        let id = (kind.starts_with(MUTATING), name);
        if kind.ends_with("Binding") {
            let binding = Arc::new(Binding::new(value, &mut errors));
            self.change(|set| drop(set.bindings.insert(id, binding)));
        } else {
            let policy = Arc::new(Policy::new(value, &mut errors));
            self.change(|set| drop(set.policies.insert(id, policy)));
        }
        if !errors.is_empty() {
            // what was not refused when it was written: another version's, perhaps
            tracing::error!(%errors, "a stored admission policy or binding is invalid; what is wrong in it does not count");
        }
    }

    /// Forgets one.
    pub(crate) fn remove(&self, kind: &str, name: &str) {
        let id = (kind.starts_with(MUTATING), name.to_owned());
        self.change(|set| {
            if kind.ends_with("Binding") {
                set.bindings.remove(&id);
            } else {
                set.policies.remove(&id);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Set)) {
        let mut current = self.0.write();
        let next = current.as_deref().unwrap_or(&Set::default()).changed(change);
        *current = next;
    }
}

/// Judges new and changed policies and bindings themselves.
///
/// # Errors
/// 422 with everything that is wrong, expressions that do not compile among it.
pub(super) fn check(a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    let mut errors = ErrorList::new();
    let unchanged = |old: &Object| old.get("spec") == object.get("spec");
    if a.info.group != GROUP || !a.subresource.is_empty() || a.old.is_some_and(unchanged) {
        return Ok(());
    }
    let value = Value::Object(object.fields().clone());
    match a.info.plural.as_ref() {
        POLICIES | MUTATING_POLICIES => drop(Policy::new(&value, &mut errors)),
        BINDINGS | MUTATING_BINDINGS => drop(Binding::new(&value, &mut errors)),
        _ => {}
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&a.info.group_kind(), object.name(), &errors)) }
}

/// Whether policies and webhooks are never about it: what could keep an administrator from repairing them.
pub(super) fn is_exempt(a: &Attributes<'_>) -> bool {
    a.info.group == GROUP
}

/// A refusal, and by whom.
struct Denial {
    message: String,
    reason: String,
}

/// Asks all policies about a write.
///
/// # Errors
/// The first refusal.
pub(super) async fn validate(cluster: &dyn Cluster, a: &Attributes<'_>, object: Option<&Object>) -> Result<(), Status> {
    let Some(set) = cluster.policies() else { return Ok(()) };
    if is_exempt(a) {
        return Ok(());
    }
    let mut budget = Budget::default();
    for (policy, binding) in &set.pairs {
        let denied = judge(cluster, a, object, (policy, binding), &mut budget).await;
        if let Some(Denial { message, reason }) = denied {
            let by = format!(
                "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {message}",
                policy.name, binding.name
            );
            return Err(denial(a.forbidden(object.or(a.old), &by), &reason, by));
        }
    }
    Ok(())
}

fn denial(status: Status, reason: &str, message: String) -> Status {
    let (code, reason) = match reason {
        "Forbidden" => (403, Reason::Forbidden),
        "Unauthorized" => (401, Reason::Unauthorized),
        "RequestEntityTooLarge" => (413, Reason::RequestEntityTooLarge),
        _ => (422, Reason::Invalid),
    };
    let mut status = Status { code, reason, ..status };
    let details = status.details.get_or_insert_default();
    details.causes.push(StatusCause { message, ..StatusCause::default() });
    status
}

/// Whether a policy and its binding are about a write: as which version of the resource, and with which parameters.
///
/// # Errors
/// Why that cannot be said.
async fn applies(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    object: Option<&Object>,
    (policy, binding): (&Policy, &Binding),
) -> Result<Option<(Arc<ResourceInfo>, Vec<Option<Object>>)>, String> {
    let misconfigured = |why: String| format!("failed to configure binding: {why}");
    let matches = |c: &Constraints| c.matches(cluster, a, object).map_err(|status| misconfigured(status.message));
    let Some(matched) = matches(&policy.constraints)? else { return Ok(None) };
    if let Some(constraints) = &binding.constraints
        && matches(constraints)?.is_none()
    {
        return Ok(None);
    }
    let params = params::collect(cluster, a, policy, binding).await.map_err(misconfigured)?;
    Ok(Some((matched, params)))
}

/// Asks one policy, under one binding.
async fn judge(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    object: Option<&Object>,
    (policy, binding): (&Policy, &Binding),
    budget: &mut Budget,
) -> Option<Denial> {
    let (matched, params) = match applies(cluster, a, object, (policy, binding)).await {
        Ok(Some(found)) => found,
        Ok(None) => return None,
        Err(message) => return policy.fails.then(|| Denial { message, reason: String::new() }),
    };
    let subject = Subject::new(cluster, a, object, &matched);
    let mut denied = None;
    for param in &params {
        for finding in subject.judge(policy, param.as_ref(), budget) {
            denied = denied.or_else(|| act(policy, binding, finding));
        }
    }
    denied
}

/// Does what the binding says about a demand that is not met.
fn act(policy: &Policy, binding: &Binding, finding: Finding) -> Option<Denial> {
    let Finding { message, reason, index, is_validation } = finding;
    if !is_validation {
        return Some(Denial { message, reason });
    }
    if let (true, Some(record)) = (binding.actions.iter().any(|a| a == "Audit"), crate::audit::current()) {
        let failure = serde_json::json!({
            "message": message, "policy": policy.name, "binding": binding.name, "expressionIndex": index,
            "validationActions": binding.actions,
        });
        record.annotate_item("validation.policy.admission.k8s.io/validation_failure", failure);
    }
    if binding.warns {
        let (policy, binding) = (&policy.name, &binding.name);
        let warning =
            format!("Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}");
        crate::warnings::add(warning);
    }
    binding.denies.then_some(Denial { message, reason })
}

/// The object in the version of a row; it may be in the stored one. Where a webhook would have to be asked it stays as it is.
fn in_version(row: &ResourceInfo, object: &Object) -> Object {
    let mut object = object.clone();
    match &row.conversion {
        Some(Conversion::BuiltIn(functions)) if object.api_version() == functions.stored_api_version => {
            (functions.from_stored)(&mut object);
        }
        None | Some(Conversion::Renamed { .. }) if row.custom.is_some() => object.set_gvk(&row.gvk()),
        _ => {}
    }
    object
}

/// Whether the object has to be converted for a row.
fn differs(row: &ResourceInfo, object: &Object) -> bool {
    object.kind() == row.kind && object.api_version() != row.api_version()
}

fn is_deletion(a: &Attributes<'_>) -> bool {
    a.operation == Operation::Delete
}

#[cfg(test)]
mod tests;
