//! Query and path parameters of the published operations.

use serde_json::{Value, json};

use super::Flavour;

/// Name, JSON type, description of every query parameter that operations name.
const QUERY: &[(&str, &str, &str)] = &[
    ("allowWatchBookmarks", "boolean", "Lets a watch send BOOKMARK events, which carry nothing but a resourceVersion."),
    ("continue", "string", "Token of the previous page of a list; the other parameters must be as they were then."),
    ("dryRun", "string", "`All` runs every stage of the request without storing anything."),
    ("fieldManager", "string", "Name of the actor that makes the change, at most 128 printable characters."),
    ("fieldSelector", "string", "Restricts the objects by the values of their fields; all by default."),
    (
        "fieldValidation",
        "string",
        "What to do about unknown and duplicate fields: Ignore, Warn (the default) or Strict.",
    ),
    ("force", "boolean", "Makes an apply take over fields that other managers own; for apply requests only."),
    ("gracePeriodSeconds", "integer", "Seconds until the object is removed; zero removes it at once."),
    ("labelSelector", "string", "Restricts the objects by their labels; all by default."),
    ("limit", "integer", "Greatest number of objects in one page of a list."),
    ("orphanDependents", "boolean", "Replaced by propagationPolicy: whether dependents are left alone."),
    ("pretty", "string", "`true` indents the output."),
    ("propagationPolicy", "string", "What happens to dependents: Orphan, Background or Foreground."),
    ("resourceVersion", "string", "How recent the answer has to be, or where a watch begins."),
    ("resourceVersionMatch", "string", "How resourceVersion applies to a list: Exact or NotOlderThan."),
    ("sendInitialEvents", "boolean", "Begins a watch with the objects that exist, followed by a bookmark."),
    ("timeoutSeconds", "integer", "Ends a list or watch after so many seconds."),
    ("watch", "boolean", "Answers with a stream of changes instead of a list."),
];

/// Parameters of a list.
pub(super) const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
/// Parameters of a create or update.
pub(super) const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
/// Parameters of a patch.
pub(super) const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
/// Parameters of a delete.
pub(super) const DELETE: &[&str] = &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"];
/// Parameters of a deletion of many.
pub(super) const DELETE_COLLECTION: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];

/// Query parameters by name.
pub(super) fn query(flavour: Flavour, names: &[&str]) -> Vec<Value> {
    let find = |name: &&str| QUERY.iter().find(|(n, ..)| n == name);
    names.iter().filter_map(find).map(|(name, ty, text)| parameter(flavour, name, ty, "query", Some(text))).collect()
}

/// One parameter, in a path (then required) or a query.
pub(super) fn parameter(flavour: Flavour, name: &str, ty: &str, place: &str, description: Option<&str>) -> Value {
    let mut out = json!({"name": name, "in": place});
    if place == "path" {
        out["required"] = true.into();
    }
    if let Some(text) = description {
        out["description"] = text.into();
    }
    match flavour {
        Flavour::V2 => {
            out["type"] = ty.into();
            out["uniqueItems"] = true.into();
        }
        Flavour::V3 => out["schema"] = json!({"type": ty, "uniqueItems": true}),
    }
    out
}
