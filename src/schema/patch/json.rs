//! JSON patch (RFC 6902).
//!
//! Two deviations from the RFC are kube-apiserver's, and clients rely on them: testing an absent member against `null` succeeds, and what
//! a patch may copy is limited.

use edge_api::{Reason, Status};
use serde_json::Value;
use std::fmt;

/// The most operations one patch may have.
pub const MAX_OPERATIONS: usize = 10_000;
/// The most that `copy` and `move` of one patch may touch together, in bytes (roughly those of the JSON text).
pub const MAX_COPIED: usize = 3 << 20;
/// The deepest nesting a patch may produce: what a JSON parser accepts, so that the result can be read back.
const MAX_DEPTH: usize = 120;

/// Which operation of a patch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationName {
    /// Position in the patch, from 0.
    pub index: usize,
    /// `add`, `remove`, ...
    pub op: &'static str,
    /// The JSON pointer it names.
    pub path: String,
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {} ({} \"{}\")", self.index, self.op, self.path)
    }
}

/// Why a JSON patch is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JsonPatchError {
    /// The document is no JSON patch.
    #[error("invalid JSON patch: {0}")]
    Malformed(&'static str),
    /// One operation is malformed.
    #[error("invalid JSON patch: operation {index}: {why}")]
    MalformedOperation {
        /// Position in the patch, from 0.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than [`MAX_OPERATIONS`].
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
    /// The path, or the parent of the path, does not exist in the document.
    #[error("{0} does not apply: doc is missing path \"{1}\"")]
    MissingPath(OperationName, String),
    /// The last segment is no valid index of the array it points into.
    #[error("{0} does not apply: invalid array index \"{1}\"")]
    BadIndex(OperationName, String),
    /// A `test` found something else.
    #[error("{0} failed: the value differs")]
    TestFailed(OperationName),
    /// A `move` into the moved value itself.
    #[error("{0} does not apply: cannot move a value into itself")]
    MoveIntoSelf(OperationName),
    /// More than [`MAX_COPIED`].
    #[error("{0} does not apply: the accumulated size of copies exceeds the limit of {MAX_COPIED} bytes")]
    CopyTooLarge(OperationName),
    /// The result would nest too deeply to be read back.
    #[error("{0} does not apply: the result is nested too deeply")]
    TooDeep(OperationName),
}

impl From<JsonPatchError> for Status {
    fn from(error: JsonPatchError) -> Self {
        match error {
            JsonPatchError::Malformed(_) | JsonPatchError::MalformedOperation { .. } => {
                Status::bad_request(error.to_string())
            }
            JsonPatchError::TooManyOperations(_) => Status::new(413, Reason::RequestEntityTooLarge, error.to_string()),
            _ => super::unprocessable(&error),
        }
    }
}

/// A parsed JSON patch.
#[derive(Clone, Debug)]
pub struct JsonPatch(Vec<Operation>);

#[derive(Clone, Debug)]
struct Operation {
    kind: Kind,
    path: Pointer,
}

#[derive(Clone, Debug)]
enum Kind {
    Add(Value),
    Remove,
    Replace(Value),
    Move(Pointer),
    Copy(Pointer),
    Test(Value),
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Kind::Add(_) => "add",
            Kind::Remove => "remove",
            Kind::Replace(_) => "replace",
            Kind::Move(_) => "move",
            Kind::Copy(_) => "copy",
            Kind::Test(_) => "test",
        }
    }
}

/// A JSON pointer (RFC 6901), unescaped.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pointer(Vec<String>);

impl Pointer {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err("a path must be empty or begin with a slash");
        };
        rest.split('/').map(unescape).collect::<Result<_, _>>().map(Self)
    }

    fn split_last(&self) -> Option<(&str, &[String])> {
        self.0.split_last().map(|(last, parents)| (last.as_str(), parents))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|s| write!(f, "/{}", s.replace('~', "~0").replace('/', "~1")))
    }
}

fn unescape(segment: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(segment.len());
    let mut chars = segment.chars();
    while let Some(c) = chars.next() {
        match c {
            '~' => match chars.next() {
                Some('0') => out.push('~'),
                Some('1') => out.push('/'),
                _ => return Err("a path has a tilde that is not followed by 0 or 1"),
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

impl JsonPatch {
    /// Reads a patch document.
    ///
    /// # Errors
    /// When it is no array of operations, or has more than [`MAX_OPERATIONS`].
    pub fn parse(patch: &Value) -> Result<Self, JsonPatchError> {
        let operations = patch.as_array().ok_or(JsonPatchError::Malformed("must be an array of operations"))?;
        if operations.len() > MAX_OPERATIONS {
            return Err(JsonPatchError::TooManyOperations(operations.len()));
        }
        let parse = |(index, o)| Operation::parse(o).map_err(|why| JsonPatchError::MalformedOperation { index, why });
        operations.iter().enumerate().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Applies the operations in order; all of them or none.
    ///
    /// # Errors
    /// At the first operation that does not apply.
    pub fn apply(&self, mut doc: Value) -> Result<Value, JsonPatchError> {
        let mut budget = MAX_COPIED;
        for (index, operation) in self.0.iter().enumerate() {
            operation.apply(&mut doc, &mut budget).map_err(|failure| {
                let name = OperationName { index, op: operation.kind.name(), path: operation.path.to_string() };
                failure.named(name)
            })?;
        }
        Ok(doc)
    }
}

/// Why one operation does not apply.
enum Failure {
    Missing(String),
    BadIndex(String),
    Test,
    IntoSelf,
    TooLarge,
    TooDeep,
}

impl Failure {
    fn named(self, name: OperationName) -> JsonPatchError {
        match self {
            Failure::Missing(path) => JsonPatchError::MissingPath(name, path),
            Failure::BadIndex(segment) => JsonPatchError::BadIndex(name, segment),
            Failure::Test => JsonPatchError::TestFailed(name),
            Failure::IntoSelf => JsonPatchError::MoveIntoSelf(name),
            Failure::TooLarge => JsonPatchError::CopyTooLarge(name),
            Failure::TooDeep => JsonPatchError::TooDeep(name),
        }
    }
}

impl Operation {
    fn parse(operation: &Value) -> Result<Self, &'static str> {
        let fields = operation.as_object().ok_or("must be an object")?;
        let pointer =
            |field: &str, missing| fields.get(field).and_then(Value::as_str).ok_or(missing).and_then(Pointer::parse);
        let value = || fields.get("value").cloned().ok_or("value is missing");
        let path = pointer("path", "path is missing or no string")?;
        let kind = match fields.get("op").and_then(Value::as_str).ok_or("op is missing or no string")? {
            "add" => Kind::Add(value()?),
            "remove" => Kind::Remove,
            "replace" => Kind::Replace(value()?),
            "move" => Kind::Move(pointer("from", "from is missing or no string")?),
            "copy" => Kind::Copy(pointer("from", "from is missing or no string")?),
            // Go's decoder cannot tell an absent value from null, and such tests are in use.
            "test" => Kind::Test(fields.get("value").cloned().unwrap_or_default()),
            _ => return Err("op must be one of add, remove, replace, move, copy, test"),
        };
        Ok(Self { kind, path })
    }

    fn apply(&self, doc: &mut Value, budget: &mut usize) -> Result<(), Failure> {
        match &self.kind {
            Kind::Add(value) => {
                self.check_depth(value)?;
                add(doc, &self.path, value.clone())
            }
            Kind::Remove => remove(doc, &self.path).map(drop),
            Kind::Replace(value) => {
                self.check_depth(value)?;
                let slot = find_mut(doc, &self.path.0).ok_or_else(|| Failure::Missing(self.path.to_string()))?;
                *slot = value.clone();
                Ok(())
            }
            Kind::Move(from) if self.path == *from => {
                find(doc, &from.0).map(drop).ok_or_else(|| Failure::Missing(from.to_string()))
            }
            Kind::Move(from) if self.path.0.starts_with(&from.0) => Err(Failure::IntoSelf),
            Kind::Move(from) => {
                let value = remove(doc, from)?;
                self.pay(&value, budget)?;
                add(doc, &self.path, value)
            }
            Kind::Copy(from) => {
                let value = find(doc, &from.0).ok_or_else(|| Failure::Missing(from.to_string()))?;
                self.pay(value, budget)?;
                let value = value.clone();
                add(doc, &self.path, value)
            }
            Kind::Test(expected) => match find(doc, &self.path.0) {
                Some(found) if json_eq(found, expected) => Ok(()),
                None if expected.is_null() => Ok(()),
                None => Err(Failure::Missing(self.path.to_string())),
                Some(_) => Err(Failure::Test),
            },
        }
    }

    /// Charges a copied value, so that few operations cannot blow up the document or its depth.
    fn pay(&self, value: &Value, budget: &mut usize) -> Result<(), Failure> {
        *budget = budget.checked_sub(size(value)).ok_or(Failure::TooLarge)?;
        self.check_depth(value)
    }

    fn check_depth(&self, value: &Value) -> Result<(), Failure> {
        if self.path.0.len() + depth(value) > MAX_DEPTH { Err(Failure::TooDeep) } else { Ok(()) }
    }
}

/// An array index as RFC 6901 writes it: digits without leading zeros.
fn index(segment: &str) -> Option<usize> {
    let canonical = segment == "0" || !segment.starts_with('0');
    (canonical && segment.bytes().all(|b| b.is_ascii_digit())).then(|| segment.parse().ok()).flatten()
}

fn find<'v>(doc: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(doc, |at, segment| match at {
        Value::Object(map) => map.get(segment),
        Value::Array(list) => list.get(index(segment)?),
        _ => None,
    })
}

fn find_mut<'v>(doc: &'v mut Value, path: &[String]) -> Option<&'v mut Value> {
    path.iter().try_fold(doc, |at, segment| match at {
        Value::Object(map) => map.get_mut(segment),
        Value::Array(list) => list.get_mut(index(segment)?),
        _ => None,
    })
}

fn add(doc: &mut Value, path: &Pointer, value: Value) -> Result<(), Failure> {
    let Some((last, parents)) = path.split_last() else {
        *doc = value;
        return Ok(());
    };
    match find_mut(doc, parents) {
        Some(Value::Object(map)) => {
            map.insert(last.to_owned(), value);
            Ok(())
        }
        Some(Value::Array(list)) => {
            let at = if last == "-" { Some(list.len()) } else { index(last) };
            let at = at.filter(|i| *i <= list.len()).ok_or_else(|| Failure::BadIndex(last.to_owned()))?;
            list.insert(at, value);
            Ok(())
        }
        _ => Err(Failure::Missing(path.to_string())),
    }
}

fn remove(doc: &mut Value, path: &Pointer) -> Result<Value, Failure> {
    let Some((last, parents)) = path.split_last() else {
        return Ok(std::mem::take(doc));
    };
    let removed = match find_mut(doc, parents) {
        Some(Value::Object(map)) => map.remove(last),
        Some(Value::Array(list)) => {
            let at = index(last).filter(|i| *i < list.len()).ok_or_else(|| Failure::BadIndex(last.to_owned()))?;
            Some(list.remove(at))
        }
        _ => None,
    };
    removed.ok_or_else(|| Failure::Missing(path.to_string()))
}

/// Equality of RFC 6902, section 4.6: numbers by value, so `1` equals `1.0`.
fn json_eq(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || (a.as_f64() == b.as_f64() && (a.is_f64() || b.is_f64())),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| json_eq(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| json_eq(v, w)))
        }
        (a, b) => a == b,
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len() + 3,
        Value::Array(list) => list.iter().map(size).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + 4 + size(v)).sum::<usize>() + 2,
        _ => 5,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(doc: Value, patch: Value) -> Result<Value, JsonPatchError> {
        JsonPatch::parse(&patch)?.apply(doc)
    }

    #[test]
    fn operations_that_apply() {
        let cases = [
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/baz", "value": "qux"}]),
                json!({"foo": "bar", "baz": "qux"}),
            ),
            (
                json!({"foo": ["a", "b"]}),
                json!([{"op": "add", "path": "/foo/1", "value": "x"}]),
                json!({"foo": ["a", "x", "b"]}),
            ),
            (
                json!({"foo": ["a"]}),
                json!([{"op": "add", "path": "/foo/-", "value": ["b"]}]),
                json!({"foo": ["a", ["b"]]}),
            ),
            (json!({"foo": ["a"]}), json!([{"op": "add", "path": "/foo/1", "value": "b"}]), json!({"foo": ["a", "b"]})),
            (json!({"a": 1, "b": 2}), json!([{"op": "remove", "path": "/a"}]), json!({"b": 2})),
            (json!({"foo": ["a", "b", "c"]}), json!([{"op": "remove", "path": "/foo/1"}]), json!({"foo": ["a", "c"]})),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/a", "value": null}]), json!({"a": null})),
            (
                json!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {}}),
                json!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
                json!({"foo": {"bar": "baz"}, "qux": {"thud": "fred"}}),
            ),
            (
                json!({"foo": [1, 2, 3, 4]}),
                json!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
                json!({"foo": [1, 3, 4, 2]}),
            ),
            (json!({"a": [1]}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), json!({"a": [1], "b": [1]})),
            (json!({"a": 1}), json!([{"op": "move", "from": "/a", "path": "/a"}]), json!({"a": 1})),
            (
                json!({"a/b": {"~c": 1}}),
                json!([{"op": "replace", "path": "/a~1b/~0c", "value": 2}]),
                json!({"a/b": {"~c": 2}}),
            ),
            (json!({"~1": 1}), json!([{"op": "remove", "path": "/~01"}]), json!({})),
            (json!({"": 1}), json!([{"op": "replace", "path": "/", "value": 2}]), json!({"": 2})),
            (json!({"a": 1}), json!([{"op": "add", "path": "", "value": {"b": 1}}]), json!({"b": 1})),
            (json!({"a": 1}), json!([{"op": "test", "path": "/a", "value": 1.0}]), json!({"a": 1})),
            (json!({"a": 1}), json!([{"op": "test", "path": "/b", "value": null}]), json!({"a": 1})),
            (
                json!({"a": {"x": [1, {"y": 2}]}}),
                json!([{"op": "test", "path": "/a", "value": {"x": [1, {"y": 2}]}}]),
                json!({"a": {"x": [1, {"y": 2}]}}),
            ),
            (json!({"a": 1}), json!([]), json!({"a": 1})),
        ];
        for (doc, patch, expected) in cases {
            assert_eq!(run(doc.clone(), patch.clone()), Ok(expected), "{doc} patched with {patch}");
        }
    }

    #[test]
    fn operations_that_do_not_apply() {
        let doc = json!({"a": {"b": 1}, "l": [1, 2]});
        let cases = [
            (
                json!([{"op": "remove", "path": "/x"}]),
                r#"operation 0 (remove "/x") does not apply: doc is missing path "/x""#,
            ),
            (
                json!([{"op": "add", "path": "/x/y", "value": 1}]),
                r#"operation 0 (add "/x/y") does not apply: doc is missing path "/x/y""#,
            ),
            (
                json!([{"op": "replace", "path": "/a/c", "value": 1}]),
                r#"operation 0 (replace "/a/c") does not apply: doc is missing path "/a/c""#,
            ),
            (
                json!([{"op": "add", "path": "/l/3", "value": 1}]),
                r#"operation 0 (add "/l/3") does not apply: invalid array index "3""#,
            ),
            (
                json!([{"op": "add", "path": "/l/01", "value": 1}]),
                r#"operation 0 (add "/l/01") does not apply: invalid array index "01""#,
            ),
            (
                json!([{"op": "remove", "path": "/l/-"}]),
                r#"operation 0 (remove "/l/-") does not apply: invalid array index "-""#,
            ),
            (
                json!([{"op": "remove", "path": "/l/99999999999999999999"}]),
                r#"operation 0 (remove "/l/99999999999999999999") does not apply: invalid array index "99999999999999999999""#,
            ),
            (
                json!([{"op": "add", "path": "/a/b/c", "value": 1}]),
                r#"operation 0 (add "/a/b/c") does not apply: doc is missing path "/a/b/c""#,
            ),
            (
                json!([{"op": "copy", "from": "/x", "path": "/y"}]),
                r#"operation 0 (copy "/y") does not apply: doc is missing path "/x""#,
            ),
            (
                json!([{"op": "move", "from": "/a", "path": "/a/b"}]),
                r#"operation 0 (move "/a/b") does not apply: cannot move a value into itself"#,
            ),
            (
                json!([{"op": "add", "path": "/z", "value": 1}, {"op": "test", "path": "/a", "value": 1}]),
                r#"operation 1 (test "/a") failed: the value differs"#,
            ),
        ];
        for (patch, message) in cases {
            let error = run(doc.clone(), patch.clone()).expect_err("does not apply");
            assert_eq!(error.to_string(), message, "{patch}");
            assert_eq!(Status::from(error).code, 422);
        }
    }

    #[test]
    fn malformed_patches() {
        for patch in [
            json!({}),
            json!("x"),
            json!([1]),
            json!([{}]),
            json!([{"op": "add", "path": "/a"}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
            json!([{"op": "add", "path": "/~2", "value": 1}]),
            json!([{"op": "add", "path": "/~", "value": 1}]),
            json!([{"op": "move", "path": "/a"}]),
            json!([{"op": "merge", "path": "/a", "value": 1}]),
        ] {
            let error = run(json!({"a": 1}), patch.clone()).expect_err("is malformed");
            assert_eq!(Status::from(error).code, 400, "{patch}");
        }
    }

    #[test]
    fn limits() {
        let many: Vec<Value> = vec![json!({"op": "test", "path": "/a", "value": 1}); MAX_OPERATIONS + 1];
        let error = run(json!({"a": 1}), Value::Array(many)).expect_err("is too long");
        assert_eq!(error.to_string(), "The allowed maximum operations in a JSON patch is 10000, got 10001");
        assert_eq!(Status::from(error).code, 413);

        // Each copy puts the document into itself.
        let double = json!({"op": "copy", "from": "", "path": "/b"});
        let wide = json!([{"op": "copy", "from": "/a", "path": "/a/-"}]);
        assert!(run(json!({"a": [1]}), wide).is_ok());
        let error = run(json!({"a": "x".repeat(100)}), Value::Array(vec![double; 200])).err();
        assert!(matches!(error, Some(JsonPatchError::TooDeep(_))), "{error:?}");
        let list: Vec<Value> = (0..64).map(|_| json!({"op": "copy", "from": "/a", "path": "/b/-"})).collect();
        let error = run(json!({"a": "x".repeat(100_000), "b": []}), Value::Array(list)).expect_err("explodes");
        assert!(matches!(error, JsonPatchError::CopyTooLarge(_)), "{error}");
        // Moving into each other nests without copying.
        let nest: Vec<Value> = (0..MAX_DEPTH + 1)
            .flat_map(|_| {
                [
                    json!({"op": "move", "from": "/a", "path": "/b"}),
                    json!({"op": "add", "path": "/a", "value": {}}),
                    json!({"op": "move", "from": "/b", "path": "/a/x"}),
                ]
            })
            .collect();
        let error = run(json!({"a": {}}), Value::Array(nest)).expect_err("nests");
        assert!(matches!(error, JsonPatchError::TooDeep(_)), "{error}");
    }
}
