//! The versions of a definition: schemas, subresources, columns, selectable fields.

use super::{text, versions};
use edge_api::Object;
use edge_api::field::{ErrorKind, ErrorList, Path};
use edge_api::jsonpath::Template;
use edge_cel::rules::Rules as Expressions;
use edge_schema::structural;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
/// So many fields may be selectable.
const MOST_SELECTABLE: usize = 8;
const MOST_WARNING: usize = 256;

/// The schema of a version.
fn schema_of(version: &Map<String, Value>) -> Option<&Value> {
    version.get("schema").and_then(|s| s.get("openAPIV3Schema"))
}

pub(super) fn validate(o: &Object, live: Option<&Object>, errors: &mut ErrorList) {
    for (at, version) in versions(o) {
        let subresources = version.get("subresources").and_then(Value::as_object);
        let status = subresources.is_some_and(|s| s.get("status").is_some_and(|s| !s.is_null()));
        let schema_at = at.child("schema").child("openAPIV3Schema");
        let schema = schema_of(version);
        let name = version.get("name");
        let before = live.and_then(|live| versions(live).find(|(_, v)| v.get("name") == name));
        let is_unchanged = before.is_some_and(|(_, before)| schema_of(before) == schema);
        let from = errors.0.len();
        structural::check(schema.unwrap_or(&Value::Null), status, &schema_at, errors);
        if let (Some(schema), true) = (schema, errors.0.len() == from)
            && let Err(wrong) = Expressions::check(schema, &schema_at, is_unchanged)
        {
            errors.extend(wrong);
        }
        if let Some(scale) = subresources.and_then(|s| s.get("scale")).and_then(Value::as_object) {
            of_scale(scale, &at.child("subresources"), errors);
        }
        for (i, column) in objects(version, "additionalPrinterColumns") {
            of_column(column, &at.child("additionalPrinterColumns").index(i), errors);
        }
        selectable(version, schema.unwrap_or(&Value::Null), &at.child("selectableFields"), errors);
        warning(version, &at.child("deprecationWarning"), errors);
    }
}

fn objects<'v>(
    version: &'v Map<String, Value>,
    name: &str,
) -> impl Iterator<Item = (usize, &'v Map<String, Value>)> + use<'v> {
    let list = version.get(name).and_then(Value::as_array).into_iter().flatten().enumerate();
    list.filter_map(|(i, v)| Some((i, v.as_object()?)))
}

fn warning(version: &Map<String, Value>, at: &Path, errors: &mut ErrorList) {
    let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) else { return };
    if version.get("deprecated") != Some(&Value::Bool(true)) {
        errors.invalid(at, &warning.into(), "can only be set for deprecated versions");
    }
    if warning.len() > MOST_WARNING {
        errors.invalid(at, &warning.into(), "must be <= 256 characters long");
    }
    if warning.is_empty() {
        errors.invalid(at, &warning.into(), "must not be an empty string");
    }
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        let detail =
            format!("must only contain printable UTF-8 characters; non-printable character found at index {i}");
        errors.invalid(at, &warning.into(), &detail);
    }
}

fn of_scale(scale: &Map<String, Value>, at: &Path, errors: &mut ErrorList) {
    for (name, below) in
        [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status"), ("labelSelectorPath", ".status")]
    {
        let at = at.child(&format!("scale.{name}"));
        let path = text(scale, name);
        if path.is_empty() {
            if name != "labelSelectorPath" {
                errors.required(&at, "");
            }
            continue;
        }
        let is_below = path.strip_prefix(below).is_some_and(|rest| rest.starts_with('.'));
        // a label selector may also be in the spec
        let in_spec = name == "labelSelectorPath" && path.starts_with(".spec.");
        if let Err(why) = structural::simple_path(path) {
            errors.invalid(&at, &path.into(), why);
        } else if !is_below && !in_spec {
            let place = if name == "labelSelectorPath" { "either .spec or .status" } else { below };
            errors.invalid(&at, &path.into(), &format!("should be a json path under {place}"));
        }
    }
}

fn of_column(column: &Map<String, Value>, at: &Path, errors: &mut ErrorList) {
    if text(column, "name").is_empty() {
        errors.required(&at.child("name"), "");
    }
    let (kind, format, path) = (text(column, "type"), text(column, "format"), text(column, "jsonPath"));
    let one_of = format!("must be one of {}", COLUMN_TYPES.join(","));
    if kind.is_empty() {
        errors.required(&at.child("type"), &one_of);
    } else if !COLUMN_TYPES.contains(&kind) {
        errors.invalid(&at.child("type"), &kind.into(), &one_of);
    }
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let one_of = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errors.invalid(&at.child("format"), &format.into(), &one_of);
    }
    let at = at.child("JSONPath");
    if path.is_empty() {
        errors.required(&at, "");
    } else if !path.starts_with('.') {
        errors.invalid(&at, &path.into(), "must be a simple json path starting with .");
    } else if let Err(error) = Template::parse(&format!("{{{path}}}")) {
        errors.invalid(&at, &path.into(), &format!("is an invalid path: {error}"));
    }
}

fn selectable(version: &Map<String, Value>, schema: &Value, at: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, field) in objects(version, "selectableFields") {
        let at = at.index(i).child("jsonPath");
        let path = text(field, "jsonPath");
        if path.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let Some(names) = path.strip_prefix('.').filter(|_| structural::simple_path(path).is_ok()) else {
            errors.invalid(&at, &path.into(), "is an invalid path: must be a simple json path starting with .");
            continue;
        };
        if names.split('.').next() == Some("metadata") {
            errors.invalid(&at, &path.into(), "must not point to fields in metadata");
        }
        let found = names.split('.').try_fold(schema, |place, name| place.get("properties")?.get(name));
        match found.and_then(|f| f.get("type")).and_then(Value::as_str) {
            Some("string" | "boolean" | "integer") => {}
            None if found.is_none() => {
                let detail = "is an invalid path: does not refer to a valid field";
                errors.invalid(&at, &path.into(), detail);
            }
            _ => {
                let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                errors.invalid(&at, &path.into(), detail);
            }
        }
        if !seen.insert(path) {
            errors.duplicate(&at, &path.into());
        }
    }
    if seen.len() > MOST_SELECTABLE {
        let text = format!("Too many: {}: must have at most {MOST_SELECTABLE} items", seen.len());
        errors.push(ErrorKind::TooMany, at, text);
    }
}
