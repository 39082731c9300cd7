//! Policies that change what is written.

use super::super::again::Again;
use super::super::{AttributesExt, Cluster};
use super::compiled::{Binding, Mutation, Policy};
use super::run::Subject;
use super::{Set, applies, denial};
use edge_api::{Object, Status};
use edge_cel::Budget;
use edge_registry::Attributes;
use edge_schema::apply::{self, Writer};
use edge_schema::patch::JsonPatch;
use serde_json::Value;

/// Who the changes of policies are by, while they are merged; nobody owns them by that.
const MANAGER: &str = "mutating-admission-policy";
/// What a policy cannot change.
const IDENTITY: [&str; 5] = ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace", "/metadata/uid"];

/// Lets all policies change an object, in the order of their names; in the second round, those that ask for it when others have changed the
/// object after them. Whether one did.
///
/// # Errors
/// When a policy cannot do what it says.
pub(in super::super) async fn mutate(
    cluster: &dyn Cluster,
    set: &Set,
    a: &Attributes<'_>,
    object: &mut Object,
    again: &mut Again,
) -> Result<bool, Status> {
    let mut has_changed = false;
    let mut budget = Budget::default();
    again.begin(Some(object));
    for (i, (policy, binding)) in set.mutating.iter().enumerate() {
        if again.is_due(i) {
            let changes = turn(cluster, a, object, (policy, binding), &mut budget).await?;
            again.answered(i, changes, policy.is_asked_again);
            has_changed |= changes;
        }
    }
    again.end(Some(object));
    Ok(has_changed)
}

/// Lets one policy change the object; whether it did.
async fn turn(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    object: &mut Object,
    (policy, binding): (&Policy, &Binding),
    budget: &mut Budget,
) -> Result<bool, Status> {
    let before = object.clone();
    match changes(cluster, a, object, (policy, binding), budget).await {
        Ok(()) => Ok(*object != before),
        Err(_) if !policy.fails => {
            *object = before;
            Ok(false)
        }
        Err(why) => {
            let by = format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name);
            Err(denial(a.forbidden(Some(&before), &by), "", by))
        }
    }
}

async fn changes(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    object: &mut Object,
    (policy, binding): (&Policy, &Binding),
    budget: &mut Budget,
) -> Result<(), String> {
    let Some((_, params)) = applies(cluster, a, Some(object), (policy, binding)).await? else { return Ok(()) };
    for param in &params {
        for mutation in &policy.mutations {
            // the object is in the version of the request
            let subject = Subject::new(cluster, a, Some(object), a.info);
            let Some(made) = subject.mutation(policy, mutation, param.as_ref(), budget)? else { break };
            drop(subject);
            let changed = change(a, object, mutation, made)?;
            if IDENTITY.iter().any(|pointer| changed.pointer(pointer) != object.pointer(pointer)) {
                return Err("a mutation must not change what the object is".to_owned());
            }
            *object = changed;
        }
    }
    Ok(())
}

/// The object with one change.
fn change(a: &Attributes<'_>, object: &Object, mutation: &Mutation, mut made: Value) -> Result<Object, String> {
    let whole = object.clone().into_value();
    let changed = if mutation.is_patch {
        let patch = JsonPatch::parse(&made).map_err(|e| format!("JSON Patch: {e}"))?;
        patch.apply(whole).map_err(|e| format!("JSON Patch: {e}"))?
    } else {
        let Some(fields) = made.as_object_mut() else { return Err("the apply configuration is no object".to_owned()) };
        fields.insert("apiVersion".into(), object.api_version().into());
        fields.insert("kind".into(), object.kind().into());
        let (api_version, now) = (object.api_version(), edge_api::meta::now());
        let writer = Writer { manager: MANAGER, api_version, subresource: "", resets: &[], now: &now };
        let mut merged = apply::apply(a.info.schema(), Some(&whole), &made, &writer, true)
            .map_err(|e| format!("error applying patch: {e}"))?;
        let managers = whole.pointer("/metadata/managedFields").cloned();
        if let Some(metadata) = merged.get_mut("metadata").and_then(Value::as_object_mut) {
            match managers {
                Some(managers) => drop(metadata.insert("managedFields".into(), managers)),
                None => drop(metadata.remove("managedFields")),
            }
        }
        merged
    };
    Object::from_value(changed).map_err(|_| "the change does not make an object".to_owned())
}
