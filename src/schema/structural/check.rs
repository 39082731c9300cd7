//! Whether a schema is one that Kubernetes takes: structural, without what it does not support, with defaults that fit.

use super::compile::{self, array, object, text};
use crate::{Schema, validate};
use edge_api::GroupVersionKind;
use edge_api::field::{ErrorList, Path};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// How deep a schema may nest; JSON that nests deeper than 128 levels is refused before.
const MAX_DEPTH: usize = 100;
/// Keywords of JSON schema that Kubernetes has fields for, and does not take.
const NOT_SUPPORTED: [&str; 6] = ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"];
/// At the root beside a status subresource.
const ALLOWED_AT_ROOT: [&str; 22] = [
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];
const LIST_TYPES: [&str; 3] = ["atomic", "set", "map"];
const MAP_TYPES: [&str; 2] = ["atomic", "granular"];
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Where a schema is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Judges the schema of one version of a custom resource, which is at `at` in its definition. `status`: there is a status subresource.
pub fn check(schema: &Value, status: bool, at: &Path, errors: &mut ErrorList) {
    let Some(map) = schema.as_object() else {
        errors.required(at, "schemas are required");
        return;
    };
    if status {
        check_root(map, at, errors);
    }
    if map.get("nullable") == Some(&Value::Bool(true)) {
        errors.forbidden(&at.child("nullable"), "nullable cannot be true at the root");
    }
    let from = errors.0.len();
    structural(map, Level::Root, 0, at, errors);
    any(map, 0, at, errors);
    if errors.0.len() == from {
        defaults(map, true, false, at, errors);
    }
}

fn check_root(map: &Map<String, Value>, at: &Path, errors: &mut ErrorList) {
    let ty = text(map, "type");
    if !ty.is_empty() && ty != "object" {
        let detail =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.invalid(&at.child("type"), &ty.into(), detail);
    }
    if map.keys().any(|name| !ALLOWED_AT_ROOT.contains(&name.as_str()) && name != "nullable") {
        let detail = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            ALLOWED_AT_ROOT.join(" ")
        );
        errors.invalid(at, &"".into(), &detail);
    }
}

fn is(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name) == Some(&Value::Bool(true))
}

/// The places that have a structure of their own.
fn structural(map: &Map<String, Value>, level: Level, depth: usize, at: &Path, errors: &mut ErrorList) {
    if depth > MAX_DEPTH {
        errors.invalid(at, &"".into(), "schema is nested too deeply");
        return;
    }
    let ty = text(map, "type");
    match map.get("items") {
        Some(Value::Object(items)) => structural(items, Level::Item, depth + 1, &at.child("items"), errors),
        None if ty == "array" => errors.required(&at.child("items"), "must be specified"),
        _ => {}
    }
    for (name, property) in object(map, "properties") {
        let at = at.child("properties").key(name);
        match property.as_object() {
            Some(property) => structural(property, Level::Field, depth + 1, &at, errors),
            None => errors.invalid(&at, property, "must be an object"),
        }
    }
    let embedded = is(map, "x-kubernetes-embedded-resource");
    if let Some(additional) = map.get("additionalProperties") {
        let at = at.child("additionalProperties");
        if level == Level::Root {
            errors.forbidden(&at, "must not be used at the root");
        }
        if embedded {
            errors.forbidden(&at, "must not be used if x-kubernetes-embedded-resource is set");
        }
        if let Some(additional) = additional.as_object() {
            structural(additional, Level::Field, depth + 1, &at, errors);
        }
    }
    let (int_or_string, preserves) =
        (is(map, "x-kubernetes-int-or-string"), is(map, "x-kubernetes-preserve-unknown-fields"));
    for (name, wrong) in
        [("x-kubernetes-preserve-unknown-fields", preserves), ("x-kubernetes-embedded-resource", embedded)]
    {
        if int_or_string && wrong {
            errors.invalid(&at.child(name), &true.into(), "must be false if x-kubernetes-int-or-string is true");
        }
    }
    values(map, is_int_or_string(map.get("anyOf")), depth, at, errors);
    if embedded && ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        if ty.is_empty() {
            errors.required(&at.child("type"), detail);
        } else {
            errors.invalid(&at.child("type"), &ty.into(), detail);
        }
    } else if ty.is_empty() && !int_or_string && !preserves {
        let place = match level {
            Level::Root => "at the root",
            Level::Item => "for specified array items",
            Level::Field => "for specified object fields",
        };
        errors.required(&at.child("type"), &format!("must not be empty {place}"));
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.invalid(&at.child("type"), &ty.into(), "must be object at the root");
    }
    if embedded && !preserves && object(map, "properties").next().is_none() {
        let detail =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.required(&at.child("properties"), detail);
    }
    if level == Level::Root || embedded {
        meta(map, level, at, errors);
    }
}

/// `apiVersion`, `kind` and `metadata` of an object.
fn meta(map: &Map<String, Value>, level: Level, at: &Path, errors: &mut ErrorList) {
    let property = |name: &str| map.get("properties").and_then(|p| p.get(name)).and_then(Value::as_object);
    for name in ["apiVersion", "kind"] {
        if let Some(ty) = property(name).map(|p| text(p, "type")).filter(|ty| *ty != "string") {
            errors.invalid(&at.child("properties").key(name).child("type"), &ty.into(), "must be string");
        }
    }
    let Some(metadata) = property("metadata") else { return };
    let at = at.child("properties").key("metadata");
    let ty = text(metadata, "type");
    if ty != "object" {
        errors.invalid(&at.child("type"), &ty.into(), "must be object");
    }
    let only_names = object(metadata, "properties").all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
    let others = metadata.keys().any(|k| !matches!(k.as_str(), "type" | "properties" | "description" | "title"));
    if level == Level::Root && (!only_names || others) {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.forbidden(&at, detail);
    }
}

/// `anyOf: [{type: integer}, {type: string}]`, the one use of types inside of a junctor.
fn is_int_or_string(any_of: Option<&Value>) -> bool {
    let types = any_of.and_then(Value::as_array).map(Vec::as_slice);
    let only = |v: &Value, ty: &str| v.as_object().is_some_and(|m| m.len() == 1 && text(m, "type") == ty);
    matches!(types, Some([a, b]) if only(a, "integer") && only(b, "string"))
}

/// The junctors of a place, and its pattern.
fn values(map: &Map<String, Value>, skip_any_of: bool, depth: usize, at: &Path, errors: &mut ErrorList) {
    for name in ["anyOf", "allOf", "oneOf"] {
        if name == "anyOf" && skip_any_of {
            continue;
        }
        for (i, schema) in array(map, name).enumerate() {
            let skip = name == "allOf" && i == 0 && is_int_or_string(schema.get("anyOf"));
            nested(schema, skip, depth + 1, &at.child(name).index(i), errors);
        }
    }
    if let Some(not) = map.get("not") {
        nested(not, false, depth + 1, &at.child("not"), errors);
    }
    let pattern = text(map, "pattern");
    if !pattern.is_empty()
        && let Err(error) = super::regex(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {error}");
        errors.invalid(&at.child("pattern"), &pattern.into(), &detail);
    }
}

/// What is inside of a junctor only restricts values, and says nothing new of the structure.
fn nested(schema: &Value, skip_any_of: bool, depth: usize, at: &Path, errors: &mut ErrorList) {
    if depth > MAX_DEPTH {
        errors.invalid(at, &"".into(), "schema is nested too deeply");
        return;
    }
    let Some(map) = schema.as_object() else {
        errors.invalid(at, schema, "must be an object");
        return;
    };
    values(map, skip_any_of, depth, at, errors);
    if let Some(items) = map.get("items") {
        nested(items, false, depth + 1, &at.child("items"), errors);
    }
    for (name, property) in object(map, "properties") {
        let at = at.child("properties").key(name);
        if name == "metadata" {
            errors.forbidden(&at, "must not be specified in a nested context");
        }
        nested(property, false, depth + 1, &at, errors);
    }
    const EMPTY: [&str; 5] = ["type", "title", "description", "x-kubernetes-list-map-keys", "x-kubernetes-validations"];
    const UNDEFINED: [&str; 5] =
        ["additionalProperties", "default", "externalDocs", "x-kubernetes-list-type", "x-kubernetes-map-type"];
    const FALSE: [&str; 4] = [
        "nullable",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
    ];
    for (names, what) in [(&EMPTY[..], "empty"), (&UNDEFINED[..], "undefined"), (&FALSE[..], "false")] {
        for name in names {
            let set = map.get(*name).is_some_and(|v| *v != Value::Bool(false) && v.as_str() != Some(""));
            if set {
                errors.forbidden(&at.child(name), &format!("must be {what} to be structural"));
            }
        }
    }
}

/// What holds for every schema, wherever it is.
fn any(map: &Map<String, Value>, depth: usize, at: &Path, errors: &mut ErrorList) {
    if depth > MAX_DEPTH {
        return;
    }
    for name in NOT_SUPPORTED {
        if map.get(name).is_some_and(|v| !v.is_null()) {
            errors.forbidden(&at.child(name), &format!("{name} is not supported"));
        }
    }
    let ty = text(map, "type");
    if ty == "null" {
        errors.forbidden(&at.child("type"), "type cannot be set to null, use nullable as an alternative");
    } else if !ty.is_empty() && super::Type::parse(ty).is_none() {
        errors.not_supported(
            &at.child("type"),
            &ty.into(),
            &["array", "boolean", "integer", "number", "object", "string"],
        );
    }
    if map.get("items").is_some_and(Value::is_array) {
        errors.forbidden(&at.child("items"), "items must be a schema object and not an array");
    }
    if is(map, "uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.forbidden(&at.child("uniqueItems"), detail);
    }
    let additional = map.get("additionalProperties");
    if object(map, "properties").next().is_some() && additional.is_some_and(|a| *a != Value::Bool(true)) {
        let detail = "additionalProperties and properties are mutual exclusive";
        errors.forbidden(&at.child("additionalProperties"), detail);
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let at = at.child("x-kubernetes-preserve-unknown-fields");
        errors.invalid(&at, &false.into(), "must be true or undefined");
    }
    merging(map, ty, at, errors);
    rules(map, at, errors);
    let mut below = |schema: &Value, at: Path| {
        if let Some(map) = schema.as_object() {
            any(map, depth + 1, &at, errors);
        }
    };
    for (name, property) in object(map, "properties") {
        below(property, at.child("properties").key(name));
    }
    for name in ["items", "additionalProperties", "not"] {
        if let Some(schema) = map.get(name) {
            below(schema, at.child(name));
        }
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (i, schema) in array(map, name).enumerate() {
            below(schema, at.child(name).index(i));
        }
    }
}

/// Types of lists and maps.
fn merging(map: &Map<String, Value>, ty: &str, at: &Path, errors: &mut ErrorList) {
    let wanted = |errors: &mut ErrorList, wanted: &str, by: &str| {
        let detail = format!("must be {wanted} if {by} is specified");
        if ty.is_empty() {
            errors.required(&at.child("type"), &detail);
        } else if ty != wanted {
            errors.invalid(&at.child("type"), &ty.into(), &detail);
        }
    };
    if let Some(kind) = map.get("x-kubernetes-map-type").and_then(Value::as_str) {
        wanted(errors, "object", "x-kubernetes-map-type");
        if !MAP_TYPES.contains(&kind) {
            errors.not_supported(&at.child("x-kubernetes-map-type"), &kind.into(), &MAP_TYPES);
        }
    }
    let list = map.get("x-kubernetes-list-type").and_then(Value::as_str);
    let list_at = at.child("x-kubernetes-list-type");
    if let Some(kind) = list {
        wanted(errors, "array", "x-kubernetes-list-type");
        if !LIST_TYPES.contains(&kind) {
            errors.not_supported(&list_at, &kind.into(), &LIST_TYPES);
        }
    }
    let keys: Vec<&str> = array(map, "x-kubernetes-list-map-keys").filter_map(Value::as_str).collect();
    if !keys.is_empty() && list != Some("map") {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list {
            None => errors.required(&list_at, detail),
            Some(other) => errors.invalid(&list_at, &other.into(), detail),
        }
    }
    let Some(items) = map.get("items").and_then(Value::as_object) else { return };
    let items_at = at.child("items");
    if matches!(list, Some("set" | "map")) && is(items, "nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {}", list.unwrap_or_default());
        errors.forbidden(&items_at.child("nullable"), &detail);
    }
    let item_ty = text(items, "type");
    match list {
        Some("set") => {
            let name = if item_ty == "object" { "x-kubernetes-map-type" } else { "x-kubernetes-list-type" };
            let kind = text(items, name);
            let wrong = match item_ty {
                "object" => kind != "atomic",
                "array" => !matches!(kind, "" | "atomic"),
                _ => false,
            };
            if wrong {
                let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
                errors.invalid(&items_at.child(name), &kind.into(), detail);
            }
        }
        Some("map") => map_keys(items, item_ty, &keys, at, errors),
        _ => {}
    }
}

fn map_keys(items: &Map<String, Value>, item_ty: &str, keys: &[&str], at: &Path, errors: &mut ErrorList) {
    let (keys_at, items_at) = (at.child("x-kubernetes-list-map-keys"), at.child("items"));
    if keys.is_empty() {
        errors.required(&keys_at, "must not be empty if x-kubernetes-list-type is map");
    }
    if item_ty != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.invalid(&items_at.child("type"), &item_ty.into(), detail);
        return;
    }
    let all: Value = keys.iter().copied().collect();
    let required: BTreeSet<&str> = array(items, "required").filter_map(Value::as_str).collect();
    let mut seen = BTreeSet::new();
    for key in keys {
        if !seen.insert(*key) {
            errors.invalid(&keys_at, &all, "must not contain duplicate entries");
        }
        let Some(property) = items.get("properties").and_then(|p| p.get(*key)).and_then(Value::as_object) else {
            errors.invalid(&keys_at, &all, "entries must all be names of item properties");
            continue;
        };
        let at = items_at.child("properties").key(key);
        if matches!(text(property, "type"), "array" | "object") {
            let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.invalid(&at.child("type"), &text(property, "type").into(), detail);
        }
        if is(property, "nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(&at.child("nullable"), detail);
        }
        if !property.contains_key("default") && !required.contains(key) {
            let detail =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.required(&at.child("default"), detail);
        }
    }
}

/// The form of `x-kubernetes-validations`; what is in the expressions is the business of the room for CEL.
fn rules(map: &Map<String, Value>, at: &Path, errors: &mut ErrorList) {
    for (i, rule) in array(map, "x-kubernetes-validations").enumerate() {
        let at = at.child("x-kubernetes-validations").index(i);
        let Some(rule) = rule.as_object() else {
            errors.invalid(&at, rule, "must be an object");
            continue;
        };
        let has_lines = |text: &str| text.contains(['\n', '\r']);
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        if expression.is_empty() {
            errors.required(&at.child("rule"), "rule is not specified");
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.invalid(&at.child("message"), &message.into(), "message must be non-empty if specified");
        } else if has_lines(message.trim()) {
            errors.invalid(&at.child("message"), &message.into(), "message must not contain line breaks");
        } else if has_lines(expression) && message.trim().is_empty() {
            errors.required(&at.child("message"), "message must be specified if rule contains line breaks");
        }
        let made = text(rule, "messageExpression");
        if !made.is_empty() && made.trim().is_empty() {
            errors.required(&at.child("messageExpression"), "messageExpression must be non-empty if specified");
        }
        let reason = text(rule, "reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.not_supported(&at.child("reason"), &reason.into(), &REASONS);
        }
        let field = text(rule, "fieldPath");
        if has_lines(field) {
            errors.invalid(&at.child("fieldPath"), &field.into(), "fieldPath must not contain line breaks");
        }
    }
}

/// Defaults have the type of their place, and nothing that would be dropped.
fn defaults(map: &Map<String, Value>, root: bool, in_meta: bool, at: &Path, errors: &mut ErrorList) {
    if let Some(default) = map.get("default") {
        let at = at.child("default");
        if root {
            errors.forbidden(&at, "must not be set at the root");
        } else if in_meta {
            errors.forbidden(&at, "must not be set in top-level metadata");
        } else {
            default_value(map, default, &at, errors);
        }
    }
    for (name, property) in object(map, "properties") {
        if let Some(property) = property.as_object() {
            let in_meta = in_meta || (root && matches!(name.as_str(), "metadata" | "apiVersion" | "kind"));
            defaults(property, false, in_meta, &at.child("properties").key(name), errors);
        }
    }
    for name in ["items", "additionalProperties"] {
        if let Some(schema) = map.get(name).and_then(Value::as_object) {
            defaults(schema, false, in_meta, &at.child(name), errors);
        }
    }
}

fn default_value(map: &Map<String, Value>, default: &Value, at: &Path, errors: &mut ErrorList) {
    let from = errors.0.len();
    compile::node(&Value::Object(map.clone())).validate_from(default, None, at, errors);
    if errors.0.len() > from {
        return;
    }
    // as the only field of an object, so that the place itself is judged, too
    let mut place = map.clone();
    place.remove("default");
    let wrapped = serde_json::json!({"type": "object", "properties": {"value": place}});
    let gvk = GroupVersionKind::new("", "", "");
    let Ok(schema) = Schema::custom(&gvk, "List", &wrapped) else { return };
    let mut value = serde_json::json!({"value": default});
    let dropped = schema.kind(&gvk).map(|ty| validate::conform(ty, &mut value));
    if let Some(Ok(unknown)) = dropped
        && !unknown.is_empty()
    {
        let detail = format!("must not have unknown fields: {}", unknown.join(", ").replace("\"value.", "\""));
        errors.invalid(at, default, &detail);
    }
}

/// Whether a text is a simple path such as `.spec.replicas`, as printer columns and `scale` have it; why not.
///
/// # Errors
/// What Kubernetes says of it.
pub fn simple_path(path: &str) -> Result<(), &'static str> {
    match path.as_bytes() {
        [] => Err("must not be empty"),
        [b'.', ..] if !path.contains("..") && (path.len() == 1 || !path.ends_with('.')) => Ok(()),
        [b'.', ..] => Err("must be a json path in the dot notation"),
        _ => Err("must be a simple json path starting with ."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(schema: Value, status: bool) -> String {
        let mut errors = ErrorList::new();
        check(&schema, status, &Path::new("s"), &mut errors);
        errors.to_string()
    }

    fn property(property: Value) -> String {
        of(json!({"type": "object", "properties": {"a": property}}), false)
    }

    #[test]
    fn what_operators_write_is_taken() {
        for p in [
            json!({"type": "string", "default": "x", "enum": ["x", "y"], "description": "d"}),
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": "^[0-9]+%?$"}),
            json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"pattern": "x"}]}),
            json!({"x-kubernetes-preserve-unknown-fields": true}),
            json!({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 3}),
            json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "string"}}}}),
            json!({"type": "object", "properties": {"b": {"type": "integer", "minimum": 1}}, "oneOf": [{"required": ["b"]}, {"properties": {"b": {"maximum": 3}}}]}),
            json!({"type": "object", "default": {}, "properties": {"b": {"type": "integer", "default": 1}}}),
            json!({"type": "string", "x-kubernetes-validations": [{"rule": "self != ''", "message": "m", "reason": "FieldValueInvalid"}]}),
        ] {
            assert_eq!(property(p.clone()), "", "{p}");
        }
        let root = json!({"type": "object", "description": "d", "required": ["spec"], "x-kubernetes-validations": [{"rule": "true"}],
            "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "spec": {"type": "object"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}}}});
        assert_eq!(of(root, true), "");
    }

    #[test]
    fn refusals_say_what_and_where() {
        for (p, says) in [
            (json!({}), "s.properties[a].type: Required value: must not be empty for specified object fields"),
            (json!({"type": "strong"}), "s.properties[a].type: Unsupported value: \"strong\""),
            (json!({"type": "null"}), "use nullable as an alternative"),
            (json!({"type": "array"}), "s.properties[a].items: Required value: must be specified"),
            (json!({"type": "array", "items": [{"type": "string"}]}), "items must be a schema object and not an array"),
            (
                json!({"type": "array", "items": {}}),
                "items.type: Required value: must not be empty for specified array items",
            ),
            (json!({"type": "object", "$ref": "#/x"}), "s.properties[a].$ref: Forbidden: $ref is not supported"),
            (
                json!({"type": "array", "uniqueItems": true, "items": {"type": "string"}}),
                "runtime complexity becomes quadratic",
            ),
            (json!({"type": "string", "pattern": "("}), "must be a valid regular expression, but isn't: "),
            (
                json!({"type": "string", "pattern": "((a{1000}){1000}){1000}"}),
                "must be a valid regular expression, but isn't: ",
            ),
            (
                json!({"type": "integer", "default": "x"}),
                "s.properties[a].default: Invalid value: \"string\": s.properties[a].default in body must be of type integer",
            ),
            (json!({"type": "object", "default": {"x": 1}}), "must not have unknown fields"),
            (
                json!({"type": "string", "allOf": [{"type": "string"}]}),
                "s.properties[a].allOf[0].type: Forbidden: must be empty to be structural",
            ),
            (
                json!({"type": "string", "not": {"default": 1}}),
                "not.default: Forbidden: must be undefined to be structural",
            ),
            (
                json!({"type": "string", "anyOf": [{"nullable": true}]}),
                "anyOf[0].nullable: Forbidden: must be false to be structural",
            ),
            (
                json!({"type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
                "mutual exclusive",
            ),
            (json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false}), "must be true or undefined"),
            (
                json!({"type": "string", "x-kubernetes-list-type": "set"}),
                "must be array if x-kubernetes-list-type is specified",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "bag"}),
                "Unsupported value: \"bag\": supported values: \"atomic\", \"set\", \"map\"",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-map-keys": ["x"]}),
                "must be map if x-kubernetes-list-map-keys is non-empty",
            ),
            (
                json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["x"]}),
                "entries must all be names of item properties",
            ),
            (
                json!({"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["x"]}),
                "it must have a default or be a required property",
            ),
            (
                json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}),
                "must be atomic as item of a list",
            ),
            (
                json!({"x-kubernetes-embedded-resource": true}),
                "must be object if x-kubernetes-embedded-resource is true",
            ),
            (
                json!({"type": "string", "x-kubernetes-validations": [{}]}),
                "x-kubernetes-validations[0].rule: Required value: rule is not specified",
            ),
            (
                json!({"type": "string", "x-kubernetes-validations": [{"rule": "a", "message": "a\nb"}]}),
                "must not contain line breaks",
            ),
        ] {
            let found = property(p.clone());
            assert!(found.contains(says), "{p}: {found}");
        }
        for (root, says) in [
            (json!(null), "schemas are required"),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                "s.type: Invalid value: \"array\": must be object at the root",
            ),
            (json!({"type": "object", "nullable": true}), "nullable cannot be true at the root"),
            (json!({"type": "object", "additionalProperties": true}), "must not be used at the root"),
            (
                json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
                "must not specify anything other than name",
            ),
            (
                json!({"type": "object", "properties": {"kind": {"type": "integer"}}}),
                "properties[kind].type: Invalid value: \"integer\": must be string",
            ),
        ] {
            let found = of(root.clone(), false);
            assert!(found.contains(says), "{root}: {found}");
        }
        assert!(
            of(json!({"type": "object", "oneOf": []}), true).contains("fields are allowed at the root of the schema")
        );
        let mut deep = json!({"type": "string"});
        for _ in 0..200 {
            deep = json!({"type": "array", "items": deep});
        }
        assert!(property(deep).contains("nested too deeply"));
    }
}
