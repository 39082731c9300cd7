//! ValidatingAdmissionPolicy: expressions of administrators that refuse writes.
//!
//! In: a write, and the policies with their bindings. Out: nothing, warnings, or a refusal in kube-apiserver's words. Policies are
//! compiled when they change ([`Policies`]); where there are none, a write pays for nothing.

mod compiled;
mod matching;
mod params;
mod run;

use super::{AttributesExt, Cluster};
use compiled::{Binding, Policy};
use edge_api::field::ErrorList;
use edge_api::status::StatusCause;
use edge_api::{Object, Reason, Status};
use edge_cel::Budget;
use edge_registry::{Attributes, Operation};
use parking_lot::RwLock;
use run::{Finding, Subject};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The group of policies and bindings.
pub(crate) const GROUP: &str = "admissionregistration.k8s.io";
/// The policies' resource.
pub(crate) const POLICIES: &str = "validatingadmissionpolicies";
/// The bindings' resource.
pub(crate) const BINDINGS: &str = "validatingadmissionpolicybindings";

/// The policies with their bindings.
#[derive(Debug, Default)]
pub(crate) struct Set {
    policies: BTreeMap<String, Arc<Policy>>,
    bindings: BTreeMap<String, Arc<Binding>>,
    /// Each binding with its policy.
    pairs: Vec<(Arc<Policy>, Arc<Binding>)>,
}

impl Set {
    fn changed(&self, change: impl FnOnce(&mut Set)) -> Option<Arc<Self>> {
        let mut next = Set { policies: self.policies.clone(), bindings: self.bindings.clone(), pairs: Vec::new() };
        change(&mut next);
        let pair = |b: &Arc<Binding>| Some((next.policies.get(&b.policy)?.clone(), b.clone()));
        next.pairs = next.bindings.values().filter_map(pair).collect();
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
        match value["kind"].as_str() {
            Some("ValidatingAdmissionPolicy") => {
                let policy = Arc::new(Policy::new(value, &mut errors));
                self.change(|set| drop(set.policies.insert(name, policy)));
            }
            Some("ValidatingAdmissionPolicyBinding") => {
                let binding = Arc::new(Binding::new(value, &mut errors));
                self.change(|set| drop(set.bindings.insert(name, binding)));
            }
            _ => {}
        }
        if !errors.is_empty() {
            // what was not refused when it was written: another version's, perhaps
            tracing::error!(%errors, "a stored admission policy or binding is invalid; what is wrong in it does not count");
        }
    }

    /// Forgets one.
    pub(crate) fn remove(&self, kind: &str, name: &str) {
        self.change(|set| match kind {
            "ValidatingAdmissionPolicy" => drop(set.policies.remove(name)),
            _ => drop(set.bindings.remove(name)),
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
        POLICIES => drop(Policy::new(&value, &mut errors)),
        BINDINGS => drop(Binding::new(&value, &mut errors)),
        _ => {}
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&a.info.group_kind(), object.name(), &errors)) }
}

/// Whether policies may be about it: not about what could keep an administrator from repairing a policy.
fn is_exempt(a: &Attributes<'_>) -> bool {
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

/// Asks one policy, under one binding.
async fn judge(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    object: Option<&Object>,
    (policy, binding): (&Policy, &Binding),
    budget: &mut Budget,
) -> Option<Denial> {
    let misconfigured = |why: String| {
        policy.fails.then(|| Denial { message: format!("failed to configure binding: {why}"), reason: String::new() })
    };
    let matched = match policy.constraints.matches(cluster, a, object) {
        Ok(Some(row)) => row,
        Ok(None) => return None,
        Err(status) => return misconfigured(status.message),
    };
    if let Some(constraints) = &binding.constraints {
        match constraints.matches(cluster, a, object) {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(status) => return misconfigured(status.message),
        }
    }
    let params = match params::collect(cluster, a, policy, binding).await {
        Ok(params) => params,
        Err(why) => return misconfigured(why),
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
    let Finding { message, reason, is_validation } = finding;
    if !is_validation {
        return Some(Denial { message, reason });
    }
    if binding.audits {
        // there is no audit log to annotate
        tracing::info!(policy = policy.name, binding = binding.name, message, "validation.policy.admission.k8s.io/validation_failure");
    }
    if binding.warns {
        let (policy, binding) = (&policy.name, &binding.name);
        let warning = format!("Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}");
        crate::warnings::add(warning);
    }
    binding.denies.then_some(Denial { message, reason })
}

/// The object in the version of a row; it may be in the stored one.
fn in_version(row: &edge_registry::ResourceInfo, object: &Object) -> Object {
    let mut object = object.clone();
    if let Some(conversion) = row.conversion
        && object.api_version() == conversion.stored_api_version
    {
        (conversion.from_stored)(&mut object);
    }
    object
}

/// Whether the object has to be converted for a row.
fn differs(row: &edge_registry::ResourceInfo, object: &Object) -> bool {
    object.kind() == row.kind && object.api_version() != row.api_version()
}

fn is_deletion(a: &Attributes<'_>) -> bool {
    a.operation == Operation::Delete
}

#[cfg(test)]
mod tests;
