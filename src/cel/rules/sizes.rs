//! How large what a structural schema describes may be, as Kubernetes reckons it.

use crate::estimate::{Size, Within};
use crate::types::escape;
use serde_json::Value;

/// Bytes of a request at most (Kubernetes' `MaxRequestSizeBytes`).
const REQUEST: u64 = 3 * 1024 * 1024;
/// Levels of a schema that have sizes.
const DEEPEST: usize = 64;

/// `None` for what rules cannot see. `is_resource`: it is a whole object, with metadata.
pub(super) fn of(schema: &Value, is_resource: bool) -> Option<Size> {
    size(schema, is_resource, 0)
}

/// How often a part of at least so many bytes can be in a request.
pub(super) fn cardinality(shortest: u64) -> u64 {
    REQUEST / shortest.saturating_add(1)
}

/// A limit in a schema; one below zero is none at all.
pub(super) fn limit(schema: &Value, name: &str) -> Option<u64> {
    let n = &schema[name];
    n.as_u64().or_else(|| n.as_i64().map(|_| 0)).or_else(|| n.as_f64().map(|n| n as u64))
}

/// The bytes of a text with so many characters.
fn bytes(characters: u64) -> u64 {
    characters.saturating_mul(4)
}

fn part(schema: &Value, depth: usize) -> Option<Size> {
    size(schema, schema["x-kubernetes-embedded-resource"] == true, depth + 1)
}

fn size(schema: &Value, is_resource: bool, depth: usize) -> Option<Size> {
    if depth > DEEPEST {
        return None;
    }
    // the quotes are not counted
    let longest = REQUEST - 2;
    if schema["x-kubernetes-int-or-string"] == true {
        return Some(Size::leaf(limit(schema, "maxLength").map_or(longest, bytes), 1));
    }
    let kind = if is_resource { Some("object") } else { schema["type"].as_str() };
    match kind? {
        "array" => {
            let item = part(&schema["items"], depth)?;
            let most = limit(schema, "maxItems").unwrap_or(longest / (item.shortest + 1));
            Some(Size { most, shortest: 2, within: Within::Items(Box::new(item)) })
        }
        "object" if schema["additionalProperties"].is_object() => {
            let value = part(&schema["additionalProperties"], depth)?;
            let most = limit(schema, "maxProperties").unwrap_or(longest / (value.shortest + 6));
            // the lengths of keys are not reckoned with
            Some(Size { most, shortest: 2, within: Within::Values { key: 0, value: Box::new(value), is_named: false } })
        }
        "object" => Some(object(schema, is_resource, depth)),
        "string" => Some(text(schema, longest)),
        "boolean" => Some(Size::leaf(0, 4)),
        "integer" | "number" => Some(Size::leaf(0, 1)),
        _ => None,
    }
}

fn object(schema: &Value, is_resource: bool, depth: usize) -> Size {
    let is_required = |name: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|r| r == name));
    let mut out = Size { most: 0, shortest: 2, within: Within::Nothing };
    let mut fields = std::collections::BTreeMap::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let of_resource = is_resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
        let Some(of) = (if of_resource { Some(of_identity(name)) } else { part(field, depth) }) else { continue };
        if is_required(name) && field["default"].is_null() {
            out.shortest += name.len() as u64 + of.shortest + 4;
        }
        fields.extend(escape(name).map(|name| (name, of)));
    }
    if is_resource {
        for name in ["apiVersion", "kind", "metadata"] {
            fields.entry(name.to_owned()).or_insert_with(|| of_identity(name));
        }
    }
    out.within = Within::Fields(fields);
    out
}

/// Of the fields that every whole object has.
fn of_identity(name: &str) -> Size {
    let text = Size::leaf(REQUEST - 2, 2);
    if name != "metadata" {
        return text;
    }
    let fields = ["name", "generateName"].map(|name| (name.to_owned(), text.clone()));
    Size { most: 0, shortest: 2, within: Within::Fields(fields.into()) }
}

fn text(schema: &Value, longest: u64) -> Size {
    let most = limit(schema, "maxLength");
    match schema["format"].as_str() {
        Some("byte") => Size::leaf(most.unwrap_or(longest), 2),
        Some("duration") => Size::leaf(32, 3),
        Some("date") => Size::leaf(12, 12),
        Some("date-time") => Size::leaf(32, 21),
        _ => {
            let chosen = schema["enum"].as_array().filter(|all| !all.is_empty());
            let of_choice =
                chosen.map(|all| all.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0) as u64);
            Size::leaf(most.map(bytes).or(of_choice).unwrap_or(longest), 2)
        }
    }
}
