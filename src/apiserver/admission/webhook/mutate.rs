//! Webhooks that change what is written, one after the other.

use super::super::Cluster;
use super::super::again::Again;
use super::call::{self, Called, Seen};
use super::compiled::Webhook;
use super::{Set, views};
use edge_api::{Object, Status};
use edge_registry::{Attributes, ResourceInfo, scale};
use edge_schema::patch::JsonPatch;
use edge_schema::{Schema, TypeRef, default, validate};
use serde_json::Value;

/// What a webhook cannot change.
const IDENTITY: [&str; 5] = ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace", "/metadata/uid"];

/// Lets all webhooks change an object (`None`: a deletion, which they may refuse); in the second round, those that ask for it when others
/// have changed the object after them. Whether one did.
///
/// # Errors
/// The first refusal.
pub(in super::super) async fn mutate(
    cluster: &dyn Cluster,
    set: &Set,
    a: &Attributes<'_>,
    mut object: Option<&mut Object>,
    again: &mut Again,
) -> Result<bool, Status> {
    let mut has_changed = false;
    again.begin(object.as_deref());
    for (i, hook) in set.mutating.iter().enumerate() {
        if !again.is_due(i) {
            continue;
        }
        let Some(changed) = turn(cluster, a, hook, object.as_deref()).await? else { continue };
        let mut is_changed = false;
        if let (Changed::To(new), Some(object)) = (changed, object.as_deref_mut()) {
            is_changed = new != *object;
            *object = new;
        }
        again.answered(i, is_changed, hook.is_asked_again);
        has_changed |= is_changed;
    }
    again.end(object.as_deref());
    Ok(has_changed)
}

/// What a webhook has made of an object.
enum Changed {
    Nothing,
    To(Object),
}

/// Asks one webhook; `None` when it is not about the write.
async fn turn(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    hook: &Webhook,
    object: Option<&Object>,
) -> Result<Option<Changed>, Status> {
    let Some(seen) = call::seen(cluster, a, hook, object).await? else { return Ok(None) };
    let patch = match call::call(cluster, a, hook, &seen, true).await {
        Called::Allowed(Some(patch)) => patch,
        Called::Allowed(None) | Called::FailedOpen => return Ok(Some(Changed::Nothing)),
        Called::Refused(status) => return Err(status),
    };
    let Some(object) = object else {
        return Err(Status::internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        )));
    };
    changed(cluster, a, hook, object, &seen, &patch).await.map(|new| Some(Changed::To(new)))
}

/// The object with a patch to what the webhook saw of it.
async fn changed(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    hook: &Webhook,
    object: &Object,
    seen: &Seen<'_>,
    patch: &JsonPatch,
) -> Result<Object, Status> {
    let before = seen.object.as_deref().unwrap_or(object);
    let patched = patch.apply(before.clone().into_value()).map_err(Status::internal)?;
    let mut new = normal(&seen.row, before, patched)?;
    for pointer in IDENTITY {
        if new.pointer(pointer) != before.pointer(pointer) {
            let field = pointer.trim_start_matches('/').replace('/', ".");
            return Err(Status::internal(format!("admission webhook {:?} attempted to change {field}", hook.name)));
        }
    }
    // who has written which fields is known here, and nowhere else
    match before.metadata().and_then(|m| m.get("managedFields")).cloned() {
        Some(managers) => drop(new.metadata_mut().insert("managedFields".into(), managers)),
        None => drop(new.metadata_mut().remove("managedFields")),
    }
    if views::is_scale(a) {
        let mut scaled = object.clone();
        let replicas = new.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            return Err(Status::internal(format!("admission webhook {:?} asks for {replicas} replicas", hook.name)));
        }
        scale::set_replicas(a.info, &mut scaled, replicas);
        return Ok(scaled);
    }
    if new.api_version() == object.api_version() {
        return Ok(new);
    }
    cluster.convert(Some(&seen.row), a.info, new).await
}

/// A patched tree as an object of its type: nothing unknown, defaults filled in.
fn normal(row: &ResourceInfo, before: &Object, mut patched: Value) -> Result<Object, Status> {
    if let Some(ty) = type_of(row, before) {
        validate::conform(ty, &mut patched).map_err(Status::internal)?;
        default::apply(ty, &mut patched);
    }
    Object::from_value(patched).map_err(|_| Status::internal("the patch does not leave an object"))
}

/// The type of what a webhook sees: the resource's, or that of what is submitted to a subresource.
fn type_of<'r>(row: &'r ResourceInfo, object: &Object) -> Option<TypeRef<'r>> {
    if object.kind() == row.kind && object.api_version() == row.api_version() {
        return row.schema();
    }
    Schema::builtin().kind(&object.gvk()?)
}
