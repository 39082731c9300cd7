//! Makes a value conform to its type, as Kubernetes' decoder does when it reads JSON into a struct.
//!
//! In: a [`Value`] and a [`TypeRef`]. Out: the same value without unknown fields (which are reported) and nulls, with quantities and
//! times in their normal form; or the first wrong type. (Of custom resources only fields are judged here, not types.) What to do with the reports is the caller's [`FieldValidation`].

use base64::{
    Engine, alphabet,
    engine::{GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_STANDARD,
};
use edge_api::{Quantity, duration, meta, quantity::QuantityError};
use serde_json::{Map, Value};

use crate::{
    Document, Leaf, Shape, TypeRef,
    document::{DocumentError, parse_json},
};

/// Reports of unknown fields that are made at most; the fields beyond are dropped all the same.
const MAX_REPORTS: usize = 100;

/// What a request wants done about unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and say so in a warning each.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; the empty string is the default. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Ignore" => Some(Self::Ignore),
            "Warn" | "" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// Why a text or value is not of its type.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The text cannot be parsed.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A value of the wrong JSON type.
    #[error("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {expected}")]
    Type {
        /// What was found, for instance `string` or `number 1.5`.
        found: String,
        /// Name of the innermost struct, for instance `DeploymentSpec`.
        owner: String,
        /// Path of the field, without list indexes and map keys.
        path: String,
        /// Type of the field, for instance `int32` or `[]v1.Container`.
        expected: String,
    },
    /// The value as a whole is of the wrong JSON type.
    #[error("json: cannot unmarshal {found} into Go value of type {expected}")]
    Root {
        /// What was found.
        found: String,
        /// Type expected.
        expected: String,
    },
    /// A string that is no quantity.
    #[error("{path}: {source}")]
    Quantity {
        /// Path of the field.
        path: String,
        /// What is wrong with it.
        #[source]
        source: QuantityError,
    },
    /// A string that is no time.
    #[error("{path}: parsing time {text:?}: not an RFC 3339 time")]
    Time {
        /// Path of the field.
        path: String,
        /// The string.
        text: String,
    },
    /// A string that is not base64.
    #[error("{path}: illegal base64 data")]
    Base64 {
        /// Path of the field.
        path: String,
    },
    /// Unknown or duplicate fields, made an error by [`FieldValidation::Strict`].
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

/// Parses JSON and makes it conform to `ty`. Returns the value and the warnings for the client.
///
/// # Errors
/// Malformed JSON, a wrong type, or with [`FieldValidation::Strict`] any unknown or duplicate field.
pub fn decode_json(ty: TypeRef<'_>, bytes: &[u8], mode: FieldValidation) -> Result<(Value, Vec<String>), DecodeError> {
    decode(ty, parse_json(bytes)?, mode)
}

/// Makes a parsed document conform to `ty`. Returns the value and the warnings for the client.
///
/// # Errors
/// A wrong type, or with [`FieldValidation::Strict`] any unknown or duplicate field.
pub fn decode(ty: TypeRef<'_>, document: Document, mode: FieldValidation) -> Result<(Value, Vec<String>), DecodeError> {
    let Document { mut value, duplicates } = document;
    let mut reports: Vec<String> = duplicates.into_iter().map(|path| format!("duplicate field {path:?}")).collect();
    reports.extend(conform(ty, &mut value)?);
    match mode {
        FieldValidation::Strict if !reports.is_empty() => Err(DecodeError::Strict(reports)),
        FieldValidation::Ignore => Ok((value, Vec::new())),
        _ => Ok((value, reports)),
    }
}

/// Makes a value conform to `ty` in place: drops unknown fields and nulls, brings quantities and times into their normal form.
/// Returns one `unknown field "a.b[0].c"` for every field dropped.
///
/// # Errors
/// The first value of a wrong type; the value may then be partly changed.
pub fn conform(ty: TypeRef<'_>, value: &mut Value) -> Result<Vec<String>, DecodeError> {
    let mut unknown = Vec::new();
    walk(ty, value, &mut unknown).map_err(|e| e.finish(ty))?;
    for path in &mut unknown {
        *path = format!("unknown field {path:?}");
    }
    Ok(unknown)
}

/// A failure on its way up, gathering the path.
struct Failure<'s> {
    problem: Problem,
    expected: TypeRef<'s>,
    /// Innermost struct on the way.
    owner: Option<&'s str>,
    path: Vec<&'s str>,
}

enum Problem {
    Type(String),
    Quantity(QuantityError),
    Time(String),
    Base64,
}

impl Failure<'_> {
    fn finish(mut self, root: TypeRef<'_>) -> DecodeError {
        self.path.reverse();
        let path = self.path.join(".");
        match self.problem {
            Problem::Quantity(source) => DecodeError::Quantity { path, source },
            Problem::Time(text) => DecodeError::Time { path, text },
            Problem::Base64 => DecodeError::Base64 { path },
            Problem::Type(found) if path.is_empty() => DecodeError::Root { found, expected: go_type(root) },
            Problem::Type(found) => DecodeError::Type {
                found,
                owner: self.owner.map(short_name).unwrap_or_default().to_owned(),
                path,
                expected: go_type(self.expected),
            },
        }
    }
}

fn short_name(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The type as a Go programmer writes it, because that is what Kubernetes' messages show.
fn go_type(ty: TypeRef<'_>) -> String {
    match ty.shape() {
        Shape::Leaf(Leaf::String) => "string".to_owned(),
        Shape::Leaf(Leaf::Bytes) => "[]uint8".to_owned(),
        Shape::Leaf(Leaf::Bool) => "bool".to_owned(),
        Shape::Leaf(Leaf::Int32) => "int32".to_owned(),
        Shape::Leaf(Leaf::Int64) => "int64".to_owned(),
        Shape::Leaf(Leaf::Double) => "float64".to_owned(),
        Shape::List(item) => format!("[]{}", go_type(item)),
        Shape::Map(value) => format!("map[string]{}", go_type(value)),
        _ => {
            let mut parts = ty.name().unwrap_or("object").rsplit('.');
            let name = parts.next().unwrap_or_default();
            parts.next().map_or_else(|| name.to_owned(), |package| format!("{package}.{name}"))
        }
    }
}

fn json_type(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(n) => format!("number {n}"),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

fn fail<'s>(expected: TypeRef<'s>, problem: Problem) -> Failure<'s> {
    Failure { problem, expected, owner: None, path: Vec::new() }
}

fn walk<'s>(ty: TypeRef<'s>, value: &mut Value, unknown: &mut Vec<String>) -> Result<(), Failure<'s>> {
    match (ty.shape(), &mut *value) {
        (Shape::Any, _) => Ok(()),
        (Shape::Struct, Value::Object(map)) => fields(ty, map, unknown),
        (Shape::List(item), Value::Array(items)) => {
            for (i, v) in items.iter_mut().enumerate() {
                let from = unknown.len();
                element(item, v, unknown)?;
                prefix(unknown, from, || format!("[{i}]"));
            }
            Ok(())
        }
        (Shape::Map(item), Value::Object(map)) => {
            for (key, v) in map.iter_mut() {
                let from = unknown.len();
                element(item, v, unknown)?;
                prefix(unknown, from, || key.clone());
            }
            Ok(())
        }
        (Shape::Either(object, _), Value::Object(_)) => walk(object, value, unknown),
        (Shape::Either(_, other), _) => walk(other, value, unknown),
        // values of custom resources are judged by the validation of their schema
        _ if !ty.is_builtin() => Ok(()),
        (Shape::Leaf(leaf), _) => scalar(ty, leaf, value),
        _ => Err(fail(ty, Problem::Type(json_type(value)))),
    }
}

/// An element of a list or map, where null stands for the zero value.
fn element<'s>(ty: TypeRef<'s>, value: &mut Value, unknown: &mut Vec<String>) -> Result<(), Failure<'s>> {
    if value.is_null() && ty.is_builtin() {
        *value = zero(ty);
        return Ok(());
    }
    walk(ty, value, unknown)
}

/// The zero value of a type; null where that is it.
pub(crate) fn zero(ty: TypeRef<'_>) -> Value {
    match ty.shape() {
        Shape::Leaf(Leaf::String | Leaf::Bytes) => Value::String(String::new()),
        Shape::Leaf(Leaf::Bool) => Value::Bool(false),
        Shape::Leaf(Leaf::Int32 | Leaf::Int64 | Leaf::Double | Leaf::IntOrString) => Value::from(0),
        Shape::Leaf(Leaf::Quantity) => Value::String("0".to_owned()),
        Shape::Leaf(Leaf::Duration) => Value::String("0s".to_owned()),
        Shape::Struct | Shape::Map(_) => Value::Object(Map::new()),
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Leaf(Leaf::Time | Leaf::MicroTime) | Shape::Any | Shape::Either(..) => Value::Null,
    }
}

fn fields<'s>(ty: TypeRef<'s>, map: &mut Map<String, Value>, unknown: &mut Vec<String>) -> Result<(), Failure<'s>> {
    let mut failure = None;
    map.retain(|key, value| {
        if failure.is_some() {
            return true;
        }
        let Some(field) = ty.field(key) else {
            if ty.preserves_unknown() {
                return true;
            }
            if unknown.len() < MAX_REPORTS {
                unknown.push(key.clone());
            }
            return false;
        };
        if value.is_null() {
            return field.is_nullable();
        }
        let from = unknown.len();
        if let Err(mut e) = walk(field.ty(), value, unknown) {
            e.owner = e.owner.or(ty.name());
            e.path.push(field.name());
            failure = Some(e);
        }
        prefix(unknown, from, || key.clone());
        true
    });
    failure.map_or(Ok(()), Err)
}

fn prefix(paths: &mut [String], from: usize, step: impl Fn() -> String) {
    for path in &mut paths[from..] {
        let dot = if path.starts_with('[') { "" } else { "." };
        *path = step() + dot + path;
    }
}

fn scalar<'s>(ty: TypeRef<'s>, leaf: Leaf, value: &mut Value) -> Result<(), Failure<'s>> {
    let fits = match (leaf, &*value) {
        (Leaf::String, Value::String(_)) | (Leaf::Bool, Value::Bool(_)) | (Leaf::Double, Value::Number(_)) => true,
        (Leaf::IntOrString, Value::String(_)) => true,
        (Leaf::Duration, Value::String(text)) => duration::parse(text).is_some(),
        (Leaf::Int32 | Leaf::IntOrString, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        (Leaf::Int64, Value::Number(n)) => n.as_i64().is_some(),
        (Leaf::Bytes, Value::String(_)) => return base64(ty, value),
        (Leaf::Quantity, Value::String(_) | Value::Number(_)) => return quantity(ty, value),
        (Leaf::Time | Leaf::MicroTime, Value::String(_)) => return time(ty, leaf, value),
        _ => false,
    };
    if fits { Ok(()) } else { Err(fail(ty, Problem::Type(json_type(value)))) }
}

/// Standard base64 with padding; as in Go, line breaks are skipped and the unused bits of the last digit may be anything.
fn base64<'s>(ty: TypeRef<'s>, value: &mut Value) -> Result<(), Failure<'s>> {
    const LENIENT: GeneralPurpose =
        GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));
    let text = value.as_str().unwrap_or_default();
    let digits = text.replace(['\r', '\n'], "");
    let bytes = LENIENT.decode(&digits).map_err(|_| fail(ty, Problem::Base64))?;
    let normal = BASE64_STANDARD.encode(bytes);
    if text != normal {
        *value = Value::String(normal);
    }
    Ok(())
}

fn quantity<'s>(ty: TypeRef<'s>, value: &mut Value) -> Result<(), Failure<'s>> {
    let normal = match &*value {
        Value::String(text) => Quantity::parse(text.trim()),
        number => Quantity::parse(&number.to_string()),
    };
    let normal = normal.map_err(|e| fail(ty, Problem::Quantity(e)))?.to_string();
    if value.as_str() != Some(&normal) {
        *value = Value::String(normal);
    }
    Ok(())
}

fn time<'s>(ty: TypeRef<'s>, leaf: Leaf, value: &mut Value) -> Result<(), Failure<'s>> {
    let text = value.as_str().unwrap_or_default();
    let parsed = meta::parse_time(text).ok_or_else(|| fail(ty, Problem::Time(text.to_owned())))?;
    let normal = if leaf == Leaf::MicroTime { meta::micro_time(parsed) } else { meta::time(parsed) };
    if text != normal {
        *value = Value::String(normal);
    }
    Ok(())
}
