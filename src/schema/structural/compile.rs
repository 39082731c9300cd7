//! A schema's JSON to [`Rules`].

use super::{Bound, Checks, Identity, Node, Pattern, Range, Rules, Type};
use serde_json::{Map, Value};

impl Rules {
    /// Compiles the schema of one version. What is no schema is left out: [`super::check`] has refused it before.
    pub fn compile(schema: &Value) -> Self {
        Self { root: node(schema) }
    }
}

pub(super) fn node(schema: &Value) -> Node {
    let Some(map) = schema.as_object() else { return Node::default() };
    let is = |key: &str| map.get(key) == Some(&Value::Bool(true));
    let mut properties: Vec<(Box<str>, Node)> =
        object(map, "properties").map(|(name, property)| (name.as_str().into(), node(property))).collect();
    properties.sort_by(|a, b| a.0.cmp(&b.0));
    let keys = || array(map, "x-kubernetes-list-map-keys").filter_map(Value::as_str).map(Box::from).collect();
    Node {
        ty: map.get("type").and_then(Value::as_str).and_then(Type::parse),
        int_or_string: is("x-kubernetes-int-or-string"),
        nullable: is("nullable"),
        embedded: is("x-kubernetes-embedded-resource"),
        identity: match text(map, "x-kubernetes-list-type") {
            "set" => Identity::Value,
            "map" => Identity::Keys(keys()),
            _ => Identity::Place,
        },
        properties: properties.into(),
        additional: map.get("additionalProperties").filter(|a| a.is_object()).map(|a| Box::new(node(a))),
        items: map.get("items").filter(|i| i.is_object()).map(|i| Box::new(node(i))),
        checks: checks(map).map(Box::new),
    }
}

/// The members that most schemas have none of.
const CHECKED: [&str; 20] = [
    "format",
    "pattern",
    "minimum",
    "maximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "uniqueItems",
    "enum",
    "required",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "exclusiveMinimum",
    "exclusiveMaximum",
];

fn checks(map: &Map<String, Value>) -> Option<Checks> {
    if !CHECKED.iter().any(|name| map.contains_key(*name)) {
        return None;
    }
    let bound = |name: &str, exclusive: &str| {
        let value = map.get(name).and_then(|v| match v {
            Value::Number(n) => Some(n.clone()),
            _ => None,
        })?;
        Some(Bound { value, exclusive: map.get(exclusive) == Some(&Value::Bool(true)) })
    };
    let number = |name: &str| map.get(name).and_then(Value::as_u64);
    let nodes = |name: &str| array(map, name).map(node).collect();
    Some(Checks {
        format: text(map, "format").into(),
        pattern: Some(text(map, "pattern")).filter(|p| !p.is_empty()).map(Pattern::new),
        minimum: bound("minimum", "exclusiveMinimum"),
        maximum: bound("maximum", "exclusiveMaximum"),
        multiple_of: match map.get("multipleOf") {
            Some(Value::Number(n)) => Some(n.clone()),
            _ => None,
        },
        length: Range { least: number("minLength"), most: number("maxLength") },
        items: Range { least: number("minItems"), most: number("maxItems") },
        properties: Range { least: number("minProperties"), most: number("maxProperties") },
        unique: map.get("uniqueItems") == Some(&Value::Bool(true)),
        choices: array(map, "enum").cloned().collect(),
        required: array(map, "required").filter_map(Value::as_str).map(Box::from).collect(),
        all_of: nodes("allOf"),
        any_of: nodes("anyOf"),
        one_of: nodes("oneOf"),
        not: map.get("not").map(|n| Box::new(node(n))),
    })
}

/// A text member; empty when there is none.
pub(super) fn text<'m>(map: &'m Map<String, Value>, name: &str) -> &'m str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The elements of an array member.
pub(super) fn array<'m>(map: &'m Map<String, Value>, name: &str) -> impl Iterator<Item = &'m Value> + use<'m> {
    map.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// The members of an object member.
pub(super) fn object<'m>(
    map: &'m Map<String, Value>,
    name: &str,
) -> impl Iterator<Item = (&'m String, &'m Value)> + use<'m> {
    map.get(name).and_then(Value::as_object).into_iter().flatten()
}
