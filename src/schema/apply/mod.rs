//! Server-side apply and the bookkeeping of `metadata.managedFields` for every other write.
//!
//! In: the live object, what a client sends, who it is. Out: the object with its `managedFields` brought up to date. The result is not
//! yet defaulted or validated; defaults are owned by nobody, because they are filled in afterwards. The type says how lists and objects
//! merge; custom resources without a schema merge objects member by member and replace lists.
//!
//! Not covered: managers of another version of the same kind are compared without conversion (the paths of the kinds with several
//! versions are the same but for horizontal pod autoscalers), and a type that changes between atomic and granular keeps its old sets.

mod last_applied;
mod managers;
mod path;
mod set;
mod typed;

use crate::table::TypeRef;
use edge_api::status::{StatusCause, StatusDetails};
use edge_api::{Reason, Status};
use managers::{Entry, Manager, Managers, Operation};
use path::PathElement;
use serde_json::{Map, Value};
use set::FieldSet;
use typed::{Comparison, Ty};

/// Owns what an object held before its first apply, when nobody was recorded.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Fields that nobody owns: the system's, and those that make up the identity of the object.
const NEVER_OWNED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// Who writes, through which endpoint, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The field manager (`fieldManager` of the request, or its user agent up to the first slash).
    pub manager: &'a str,
    /// The API version of the request, for instance `apps/v1`.
    pub api_version: &'a str,
    /// The subresource of the request; empty for the object itself.
    pub subresource: &'a str,
    /// Top-level fields that this endpoint does not write: `["status"]` for the object itself where there is a status subresource,
    /// `["spec"]` for that subresource.
    pub resets: &'a [&'a str],
    /// Now, as `metav1.Time`.
    pub now: &'a str,
}

impl Writer<'_> {
    fn manager(&self, operation: Operation) -> Manager {
        Manager::new(self.manager, operation, self.api_version, self.subresource)
    }

    fn compare(&self, ty: Ty<'_>, old: &Value, new: &Value) -> Comparison {
        let mut comparison = Comparison::of(ty, old, new);
        comparison.ignore(self.resets);
        comparison
    }

    fn owned(&self, mut fields: FieldSet) -> FieldSet {
        for field in self.resets {
            fields.remove_tree(&PathElement::field(field));
        }
        strip(&fields)
    }
}

/// A field that another manager owns and the apply would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The manager, as messages show it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// The field, for instance `.spec.replicas`.
    pub field: String,
}

/// Why an apply is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ApplyError {
    /// Other managers own fields that would change, and the apply is not forced.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration has lists whose elements cannot be told apart.
    #[error("failed to create typed patch object ({object}): {}", list(.errors))]
    Malformed {
        /// `namespace/name; apiVersion, Kind=kind`.
        object: String,
        /// What is wrong, each with its path.
        errors: Vec<String>,
    },
    /// The configuration is not an object.
    #[error("apply configuration must be an object")]
    NotAnObject,
    /// Managed fields are the server's to write.
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Self {
        let message = error.to_string();
        let ApplyError::Conflicts(conflicts) = error else {
            return Status::bad_request(message);
        };
        let causes = conflicts.into_iter().map(|c| StatusCause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {}", c.manager),
            field: c.field,
        });
        let mut status = Status::new(409, Reason::Conflict, message);
        status.details = Some(Box::new(StatusDetails { causes: causes.collect(), ..StatusDetails::default() }));
        status
    }
}

fn list(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [c] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", c.manager, c.field);
    }
    let mut lines = Vec::new();
    let mut managers: Vec<&str> = conflicts.iter().map(|c| c.manager.as_str()).collect();
    managers.sort_unstable();
    managers.dedup();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(conflicts.iter().filter(|c| c.manager == manager).map(|c| format!("- {}", c.field)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Applies a configuration: merges it into the live object, removes what the same manager applied before and leaves out now, and
/// records the manager as owner of what it applies. Without a live object the result is a new one.
///
/// # Errors
/// [`ApplyError::Conflicts`] when other managers own fields that would change and `force` is not set; the others for a configuration
/// that cannot be applied.
pub fn apply(
    ty: Option<TypeRef<'_>>,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if !config.is_object() {
        return Err(ApplyError::NotAnObject);
    }
    if managers::list_of(config).is_some_and(|l| !l.is_null()) {
        return Err(ApplyError::ManagedFields);
    }
    let errors = typed::list_errors(ty, config);
    if !errors.is_empty() {
        return Err(ApplyError::Malformed { object: describe(config), errors });
    }
    let mut managers = live.map(Managers::of).unwrap_or_default();
    let mut old = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    if let Some(metadata) = old.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    if managers.is_empty() {
        let before = Manager::new(BEFORE_FIRST_APPLY, Operation::Update, writer.api_version, writer.subresource);
        let entry = Entry {
            fields: writer.owned(writer.compare(ty, &Value::Object(Map::new()), &old).changed()),
            api_version: writer.api_version.to_owned(),
            time: writer.now.to_owned(),
        };
        managers.set(before, entry);
    }

    let me = writer.manager(Operation::Apply);
    let last = managers.get(&me).cloned().unwrap_or_default();
    let config_fields = typed::field_set(ty, config);
    let entry = Entry {
        fields: writer.owned(config_fields.clone()),
        api_version: writer.api_version.to_owned(),
        time: last.time.clone(),
    };
    managers.set(me.clone(), entry);
    let merged = typed::merge(ty, &old, &writable(config, writer));
    // The configuration's name and namespace are nobody's, but hold its metadata together.
    let owned = managers.all_fields().union(&config_fields);
    let mut new = prune(ty, merged, &owned, &last.fields);

    let comparison = writer.compare(ty, &old, &new);
    let conflicts = managers.conflicts(&me, &comparison);
    if !force && !conflicts.is_empty() && !was_kubectls(ty, &old, writer, &conflicts) {
        return Err(ApplyError::Conflicts(list_conflicts(&conflicts)));
    }
    managers.disown(Some(&me), &comparison);
    if let Some(entry) = managers.get(&me)
        && (new != old || entry.fields != last.fields)
    {
        let entry = Entry { time: writer.now.to_owned(), ..entry.clone() };
        managers.set(me, entry);
    }
    managers.store(&mut new);
    if writer.manager == last_applied::KUBECTL {
        last_applied::refresh(&mut new, config);
    }
    Ok(new)
}

/// Brings `managedFields` of `new` up to date after a create, update or patch. Nothing is recorded for an object whose managed fields
/// were emptied on purpose, until somebody applies to it.
///
/// `new` may carry changed managed fields of its own (an administrator edits them, or resets them with `[{}]`); through a subresource
/// it may not.
pub fn update_managed_fields(ty: Option<TypeRef<'_>>, live: Option<&Value>, new: &mut Value, writer: &Writer<'_>) {
    let sent = new
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .and_then(|metadata| metadata.remove("managedFields"))
        .unwrap_or_default();
    let mut managers = live.map(Managers::of).unwrap_or_default();
    if writer.subresource.is_empty() {
        if is_reset(&sent) {
            managers = Managers::default();
        } else if let Some(edited) = Managers::decode(&sent).filter(|m| !m.is_empty()) {
            managers = edited;
        }
    }
    if managers.is_empty() && live.is_some() {
        return;
    }
    let nothing = Value::Object(Map::new());
    let comparison = writer.compare(ty, live.unwrap_or(&nothing), new);
    // The writer's own earlier entry takes part like any other, so that what it removes leaves it too.
    managers.disown(None, &comparison);
    let fields = writer.owned(comparison.changed());
    if !fields.is_empty() {
        let me = writer.manager(Operation::Update);
        let fields = managers.get(&me).map_or_else(|| fields.clone(), |previous| previous.fields.union(&fields));
        let entry = Entry { fields, api_version: writer.api_version.to_owned(), time: writer.now.to_owned() };
        managers.set(me, entry);
    }
    managers.cap();
    managers.store(new);
}

/// `[]` or `[{}]`.
fn is_reset(sent: &Value) -> bool {
    match sent.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// The configuration without what this endpoint does not write.
fn writable(config: &Value, writer: &Writer<'_>) -> Value {
    let mut config = config.clone();
    if let Some(map) = config.as_object_mut() {
        map.retain(|name, _| !writer.resets.contains(&name.as_str()));
    }
    config
}

/// Removes from `merged` what the manager applied last time and does not now, unless somebody else owns it.
///
/// A removal can take along what lies below it; such fields come back when they are owned, or were not the manager's.
fn prune(ty: Ty<'_>, merged: Value, owned: &FieldSet, last: &FieldSet) -> Value {
    if last.is_empty() {
        return merged;
    }
    let fields_of = |value: &Value| typed::with_named_fields(ty, &typed::field_set(ty, value));
    let last = typed::with_named_fields(ty, last);
    let owned = typed::with_named_fields(ty, owned);
    let all = fields_of(&merged);
    let pruned = typed::remove(ty, &merged, &last);
    let gone = all.difference(&fields_of(&pruned).union(&owned));
    let pruned = typed::remove(ty, &merged, &gone);
    let gone = all.difference(&fields_of(&pruned)).intersection(&last);
    let mut out = typed::remove(ty, &merged, &gone);
    drop_emptied(&mut out, Some(&merged));
    if out.is_null() { Value::Object(Map::new()) } else { out }
}

/// Drops the members that a removal left empty: null now, but not before.
fn drop_emptied(value: &mut Value, before: Option<&Value>) {
    match value {
        Value::Object(map) => {
            map.retain(|name, v| !v.is_null() || before.and_then(|b| b.get(name)).is_some_and(Value::is_null));
            for (name, v) in map {
                drop_emptied(v, before.and_then(|b| b.get(name)));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| drop_emptied(v, None)),
        _ => {}
    }
}

/// Whether every conflict is about what `kubectl` itself applied earlier, on the client side.
fn was_kubectls(ty: Ty<'_>, live: &Value, writer: &Writer<'_>, conflicts: &[(Manager, FieldSet)]) -> bool {
    writer.manager == last_applied::KUBECTL
        && last_applied::still_applied(ty, live)
            .is_some_and(|applied| conflicts.iter().all(|(_, fields)| fields.difference(&applied).is_empty()))
}

fn list_conflicts(conflicts: &[(Manager, FieldSet)]) -> Vec<Conflict> {
    let each = |(manager, fields): &(Manager, FieldSet)| {
        let manager = manager.to_string();
        fields.paths().into_iter().map(move |p| Conflict { manager: manager.clone(), field: path::display(&p) })
    };
    conflicts.iter().flat_map(each).collect()
}

/// Without the fields that nobody owns.
fn strip(fields: &FieldSet) -> FieldSet {
    let mut never = FieldSet::default();
    for path in NEVER_OWNED {
        let path: Vec<PathElement> = path.iter().map(|name| PathElement::field(name)).collect();
        never.insert(&path);
    }
    fields.difference(&never)
}

fn describe(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!(
        "{}/{}; {}, Kind={}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        text("/apiVersion"),
        text("/kind")
    )
}

#[cfg(test)]
mod tests;
