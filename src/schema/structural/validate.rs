//! Values against compiled rules. On updates what has not changed is not judged again, so that an object that was valid once can still be
//! edited after its schema has become stricter.

use super::{Checks, Identity, Node, Rules, Type, formats};
use edge_api::field::{ErrorKind, ErrorList, Path};
use serde_json::{Map, Number, Value};

/// So many errors are told of.
const MOST: usize = 100;

impl Rules {
    /// Judges an object; `old` is what it was before an update. `at` is its place, usually the root.
    pub fn validate(&self, value: &Value, old: Option<&Value>, at: &Path, errors: &mut ErrorList) {
        self.root.validate_from(value, old, at, errors);
    }
}

impl Node {
    pub(super) fn validate_from(&self, value: &Value, old: Option<&Value>, at: &Path, errors: &mut ErrorList) {
        walk(self, value, old, &Place::Root(at), errors);
    }
}

/// Where a value is; becomes a path only when something is wrong there.
enum Place<'p> {
    Root(&'p Path),
    Field(&'p Place<'p>, &'p str),
    Item(&'p Place<'p>, usize),
}

impl Place<'_> {
    fn path(&self) -> Path {
        match self {
            Self::Root(path) => (*path).clone(),
            Self::Field(parent, name) => parent.path().child(name),
            Self::Item(parent, i) => parent.path().index(*i),
        }
    }
}

fn walk(node: &Node, value: &Value, old: Option<&Value>, at: &Place<'_>, errors: &mut ErrorList) {
    if old == Some(value) || errors.0.len() >= MOST {
        return;
    }
    if value.is_null() && node.nullable {
        return;
    }
    if !has_type(node, value) {
        wrong_type(node, value, at, errors);
        return;
    }
    if let Some(checks) = &node.checks {
        judge(node, checks, value, at, errors);
    }
    match value {
        Value::Object(map) => fields(node, map, old, at, errors),
        Value::Array(items) => {
            unique(node, items, at, errors);
            if let Some(item) = &node.items {
                let old = old.and_then(Value::as_array);
                for (i, v) in items.iter().enumerate() {
                    walk(item, v, counterpart(node, v, i, old), &Place::Item(at, i), errors);
                }
            }
        }
        _ => {}
    }
}

fn fields(node: &Node, map: &Map<String, Value>, old: Option<&Value>, at: &Place<'_>, errors: &mut ErrorList) {
    if node.embedded {
        for name in ["apiVersion", "kind"] {
            if map.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                errors.required(&at.path().child(name), "must not be empty");
            }
        }
    }
    for (name, v) in map {
        if let Some(child) = node.property(name).or(node.additional.as_deref()) {
            walk(child, v, old.and_then(|o| o.get(name)), &Place::Field(at, name), errors);
        }
    }
}

/// The old element that an element is the successor of.
fn counterpart<'o>(node: &Node, value: &Value, _: usize, old: Option<&'o Vec<Value>>) -> Option<&'o Value> {
    match &node.identity {
        Identity::Place => None,
        Identity::Value => old?.iter().find(|o| *o == value),
        Identity::Keys(keys) => old?.iter().find(|o| keys.iter().all(|k| o.get(&**k) == value.get(&**k))),
    }
}

fn unique(node: &Node, items: &[Value], at: &Place<'_>, errors: &mut ErrorList) {
    let identities: Vec<String> = match &node.identity {
        Identity::Place => return,
        Identity::Value => items.iter().map(Value::to_string).collect(),
        Identity::Keys(keys) => {
            let of = |item: &Value| {
                let found = keys.iter().filter_map(|k| Some((k.to_string(), item.get(&**k)?.clone())));
                Value::Object(found.collect()).to_string()
            };
            items.iter().map(of).collect()
        }
    };
    let mut seen = std::collections::HashSet::new();
    for (i, identity) in identities.iter().enumerate() {
        if !seen.insert(identity) {
            let value = serde_json::from_str(identity).unwrap_or_default();
            errors.duplicate(&at.path().index(i), &value);
        }
    }
}

/// The type's name as messages have it.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if is_integer(n) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_integer(n: &Number) -> bool {
    n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|f| f.fract() == 0.0)
}

fn has_type(node: &Node, value: &Value) -> bool {
    if node.int_or_string {
        return matches!(type_of(value), "integer" | "string");
    }
    match node.ty {
        None => true,
        Some(Type::Number) => value.is_number(),
        Some(ty) => ty.name() == type_of(value),
    }
}

fn wrong_type(node: &Node, value: &Value, at: &Place<'_>, errors: &mut ErrorList) {
    let wanted = if node.int_or_string { "integer,string" } else { node.ty.map_or("", Type::name) };
    let (path, found) = (at.path(), type_of(value));
    let text = format!("Invalid value: \"{found}\": {} must be of type {wanted}: \"{found}\"", in_body(&path));
    errors.push(ErrorKind::TypeInvalid, &path, text);
}

/// `spec.replicas in body`.
fn in_body(path: &Path) -> String {
    format!("{path} in body")
}

/// A number as Go writes it.
fn plain(n: &Number) -> String {
    match n.as_f64() {
        Some(f) if n.is_f64() && f.fract() == 0.0 && f.abs() < 1e15 => format!("{f:.0}"),
        _ => n.to_string(),
    }
}

fn judge(node: &Node, checks: &Checks, value: &Value, at: &Place<'_>, errors: &mut ErrorList) {
    let invalid = |errors: &mut ErrorList, shown: &Value, what: String| {
        let path = at.path();
        errors.invalid(&path, shown, &format!("{} {what}", in_body(&path)));
    };
    match value {
        Value::String(text) => judge_text(checks, text, value, at, errors, &invalid),
        Value::Number(n) => judge_number(node, checks, n, value, errors, &invalid),
        Value::Array(items) => {
            let count = items.len() as u64;
            if let Some(most) = checks.items.most.filter(|most| count > *most) {
                too_many(at, count, most, errors);
            }
            if let Some(least) = checks.items.least.filter(|least| count < *least) {
                invalid(errors, &count.into(), format!("should have at least {least} items"));
            }
            if checks.unique && (1..items.len()).any(|i| items[..i].contains(&items[i])) {
                invalid(errors, &"".into(), "shouldn't contain duplicates".to_owned());
            }
        }
        Value::Object(map) => {
            let count = map.len() as u64;
            if let Some(most) = checks.properties.most.filter(|most| count > *most) {
                too_many(at, count, most, errors);
            }
            if let Some(least) = checks.properties.least.filter(|least| count < *least) {
                invalid(errors, &count.into(), format!("should have at least {least} properties"));
            }
            for name in checks.required.iter().filter(|name| !map.contains_key(&***name)) {
                errors.required(&at.path().child(name), "");
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    if !checks.choices.is_empty() && !checks.choices.iter().any(|choice| same(choice, value)) {
        let texts: Vec<String> =
            checks.choices.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect();
        errors.not_supported(&at.path(), value, &texts.iter().map(String::as_str).collect::<Vec<_>>());
    }
    combine(checks, value, at, errors);
}

/// Equal, whatever the form of a number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

fn too_many(at: &Place<'_>, count: u64, most: u64, errors: &mut ErrorList) {
    errors.push(ErrorKind::TooMany, &at.path(), format!("Too many: {count}: must have at most {most} items"));
}

type Invalid<'f> = dyn Fn(&mut ErrorList, &Value, String) + 'f;

fn judge_text(
    checks: &Checks,
    text: &str,
    value: &Value,
    at: &Place<'_>,
    errors: &mut ErrorList,
    invalid: &Invalid<'_>,
) {
    let count = text.chars().count() as u64;
    if let Some(most) = checks.length.most.filter(|most| count > *most) {
        errors.push(ErrorKind::TooLong, &at.path(), format!("Too long: may not be more than {most} bytes"));
    }
    if let Some(least) = checks.length.least.filter(|least| count < *least) {
        invalid(errors, value, format!("should be at least {least} chars long"));
    }
    if let Some(pattern) = checks.pattern.as_ref().filter(|p| !p.matches(text)) {
        invalid(errors, value, format!("should match '{}'", pattern.text));
    }
    if !checks.format.is_empty() && !formats::has(&checks.format, text) {
        let path = at.path();
        let text = format!("Invalid value: {value}: {} must be of type {}: {value}", in_body(&path), checks.format);
        errors.push(ErrorKind::TypeInvalid, &path, text);
    }
}

fn judge_number(
    node: &Node,
    checks: &Checks,
    n: &Number,
    value: &Value,
    errors: &mut ErrorList,
    invalid: &Invalid<'_>,
) {
    let f = n.as_f64().unwrap_or_default();
    let over = |bound: f64, exclusive: bool| f > bound || (exclusive && f >= bound);
    let under = |bound: f64, exclusive: bool| f < bound || (exclusive && f <= bound);
    if let Some(bound) = &checks.maximum
        && over(bound.value.as_f64().unwrap_or(f64::MAX), bound.exclusive)
    {
        let or = if bound.exclusive { "" } else { " or equal to" };
        invalid(errors, value, format!("should be less than{or} {}", plain(&bound.value)));
    }
    if let Some(bound) = &checks.minimum
        && under(bound.value.as_f64().unwrap_or(f64::MIN), bound.exclusive)
    {
        let or = if bound.exclusive { "" } else { " or equal to" };
        invalid(errors, value, format!("should be greater than{or} {}", plain(&bound.value)));
    }
    if let Some(factor) = &checks.multiple_of {
        let quotient = f / factor.as_f64().unwrap_or(1.0);
        if (quotient - quotient.round()).abs() > 1e-9 {
            invalid(errors, value, format!("should be a multiple of {}", plain(factor)));
        }
    }
    if &*checks.format == "int32"
        && node.ty != Some(Type::Number)
        && n.as_i64().is_none_or(|n| i32::try_from(n).is_err())
    {
        invalid(errors, value, "must be of type integer with format int32".to_owned());
    }
}

/// `allOf`, `anyOf`, `oneOf` and `not`.
fn combine(checks: &Checks, value: &Value, at: &Place<'_>, errors: &mut ErrorList) {
    let tried = |nodes: &[Node]| -> Vec<ErrorList> {
        let one = |node: &Node| {
            let mut found = ErrorList::new();
            walk(node, value, None, at, &mut found);
            found
        };
        nodes.iter().map(one).collect()
    };
    let composite = |errors: &mut ErrorList, what: &str| {
        let path = at.path();
        errors.invalid(&path, &"".into(), &format!("\"{path}\" {what}"));
    };
    if !checks.all_of.is_empty() {
        let found = tried(&checks.all_of);
        let failed = found.iter().filter(|e| !e.is_empty()).count();
        if failed > 0 {
            let none = if failed == found.len() { ". None validated" } else { "" };
            composite(errors, &format!("must validate all the schemas (allOf){none}"));
            found.into_iter().for_each(|e| errors.extend(e));
        }
    }
    if !checks.any_of.is_empty() {
        let mut found = tried(&checks.any_of);
        if found.iter().all(|e| !e.is_empty()) {
            composite(errors, "must validate at least one schema (anyOf)");
            errors.extend(found.swap_remove(0));
        }
    }
    if !checks.one_of.is_empty() {
        let mut found = tried(&checks.one_of);
        match found.iter().filter(|e| e.is_empty()).count() {
            1 => {}
            0 => {
                composite(errors, "must validate one and only one schema (oneOf). Found none valid");
                errors.extend(found.swap_remove(0));
            }
            n => {
                composite(
                    errors,
                    &format!("must validate one and only one schema (oneOf). Found {n} valid alternatives"),
                );
            }
        }
    }
    if let Some(not) = &checks.not {
        let mut found = ErrorList::new();
        walk(not, value, None, at, &mut found);
        if found.is_empty() {
            composite(errors, "must not validate the schema (not)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: Value, value: Value, old: Option<Value>) -> Vec<String> {
        let mut errors = ErrorList::new();
        Rules::compile(&schema).validate(&value, old.as_ref(), &Path::new("spec"), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_keyword_has_kubernetes_words() {
        let cases = [
            (
                json!({"type": "integer"}),
                json!("x"),
                "spec: Invalid value: \"string\": spec in body must be of type integer: \"string\"",
            ),
            (json!({"type": "integer"}), json!(1.5), "must be of type integer: \"number\""),
            (json!({"type": "string"}), json!(null), "must be of type string: \"null\""),
            (json!({"x-kubernetes-int-or-string": true}), json!([]), "must be of type integer,string: \"array\""),
            (
                json!({"type": "integer", "minimum": 1}),
                json!(0),
                "spec: Invalid value: 0: spec in body should be greater than or equal to 1",
            ),
            (json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}), json!(1), "should be greater than 1"),
            (json!({"type": "number", "maximum": 2.5}), json!(3), "should be less than or equal to 2.5"),
            (json!({"type": "integer", "maximum": 3, "exclusiveMaximum": true}), json!(3), "should be less than 3"),
            (json!({"type": "integer", "multipleOf": 3}), json!(4), "should be a multiple of 3"),
            (json!({"type": "integer", "format": "int32"}), json!(3_000_000_000u64), "integer with format int32"),
            (json!({"type": "string", "maxLength": 2}), json!("abc"), "spec: Too long: may not be more than 2 bytes"),
            (json!({"type": "string", "minLength": 2}), json!("a"), "should be at least 2 chars long"),
            (
                json!({"type": "string", "pattern": "^a+$"}),
                json!("b"),
                "spec: Invalid value: \"b\": spec in body should match '^a+$'",
            ),
            (json!({"type": "string", "format": "ipv4"}), json!("b"), "spec in body must be of type ipv4: \"b\""),
            (
                json!({"type": "string", "enum": ["a", "b"]}),
                json!("c"),
                "spec: Unsupported value: \"c\": supported values: \"a\", \"b\"",
            ),
            (json!({"type": "object", "required": ["a"]}), json!({}), "spec.a: Required value"),
            (
                json!({"type": "object", "maxProperties": 1}),
                json!({"a": 1, "b": 2}),
                "spec: Too many: 2: must have at most 1 items",
            ),
            (json!({"type": "object", "minProperties": 1}), json!({}), "should have at least 1 properties"),
            (
                json!({"type": "array", "maxItems": 1, "items": {}}),
                json!([1, 2]),
                "spec: Too many: 2: must have at most 1 items",
            ),
            (json!({"type": "array", "minItems": 1}), json!([]), "spec in body should have at least 1 items"),
            (json!({"type": "array", "uniqueItems": true}), json!([1, 1]), "shouldn't contain duplicates"),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                json!(["a", 1]),
                "spec[1]: Invalid value: \"integer\": spec[1] in body must be of type string",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                json!({"k": 1}),
                "spec.k: Invalid value",
            ),
            (json!({"not": {"minimum": 3}}), json!(4), "\"spec\" must not validate the schema (not)"),
            (
                json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
                json!({}),
                "one and only one schema (oneOf). Found none valid",
            ),
            (
                json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
                json!({"a": 1, "b": 1}),
                "Found 2 valid alternatives",
            ),
            (json!({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({}), "at least one schema (anyOf)"),
            (
                json!({"allOf": [{"required": ["a"]}, {"required": ["b"]}]}),
                json!({"a": 1}),
                "must validate all the schemas (allOf)",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
                json!(["a", "a"]),
                "spec[1]: Duplicate value: \"a\"",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"], "items": {"type": "object"}}),
                json!([{"n": 1}, {"n": 2}, {"n": 1, "x": 1}]),
                "spec[2]: Duplicate value: {\"n\":1}",
            ),
            (
                json!({"type": "object", "x-kubernetes-embedded-resource": true}),
                json!({"kind": "Pod"}),
                "spec.apiVersion: Required value: must not be empty",
            ),
        ];
        for (schema, value, says) in cases {
            let found = errors(schema.clone(), value.clone(), None);
            assert!(found.iter().any(|e| e.contains(says)), "{schema} {value}: {found:?}");
        }
    }

    #[test]
    fn valid_values_are() {
        for (schema, value) in [
            (json!({"type": "integer"}), json!(2.0)),
            (json!({"type": "number"}), json!(2)),
            (json!({"type": "string", "nullable": true}), json!(null)),
            (json!({"x-kubernetes-int-or-string": true}), json!("5%")),
            (json!({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({"b": 1})),
            (json!({"x-kubernetes-preserve-unknown-fields": true}), json!([{"a": null}])),
            (
                json!({"type": "string", "pattern": "^\\d{4}-[[:alpha:]]+$", "maxLength": 6}),
                json!("2026-ä").as_str().map_or(json!(""), |_| json!("2026-a")),
            ),
        ] {
            assert_eq!(errors(schema.clone(), value.clone(), None), Vec::<String>::new(), "{schema} {value}");
        }
    }

    #[test]
    fn what_has_not_changed_is_not_judged_again() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                "items": {"type": "object", "properties": {"n": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}}}}});
        let old = json!({"a": "old", "list": [{"n": "x", "v": "old"}]});
        let same = json!({"a": "old", "b": "x", "list": [{"n": "y", "v": "z"}, {"n": "x", "v": "old"}]});
        assert!(errors(schema.clone(), same, Some(old.clone())).is_empty());
        let other = errors(schema, json!({"a": "new", "list": [{"n": "x", "v": "new"}]}), Some(old));
        assert_eq!(other.len(), 2, "{other:?}");
    }

    /// A pattern that keeps a backtracking engine busy for ever.
    #[test]
    fn patterns_take_no_exponential_time() {
        let long = "a".repeat(5000) + "!";
        let found = errors(json!({"type": "string", "pattern": "^(a+)+$"}), json!(long), None);
        assert_eq!(found.len(), 1);
    }
}
