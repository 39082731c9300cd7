//! Elements of field paths: how they are written in `FieldsV1` and in messages.

use serde_json::{Map, Value};
use std::fmt;

/// One step of a path. Keys and values are kept as their canonical JSON text, so that elements order and compare cheaply.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PathElement {
    /// A member of an object.
    Field(String),
    /// An element of a keyed list: a JSON object with the values of its keys.
    Key(String),
    /// An element of a set: the JSON scalar.
    Value(String),
    /// An element of a list by position; edge reads it but does not write it.
    Index(i64),
}

impl PathElement {
    pub(super) fn field(name: &str) -> Self {
        Self::Field(name.to_owned())
    }

    pub(super) fn key(keys: Map<String, Value>) -> Self {
        Self::Key(Value::Object(keys).to_string())
    }

    pub(super) fn value(value: &Value) -> Self {
        Self::Value(value.to_string())
    }

    /// The form in `FieldsV1`: `f:name`, `k:{"name":"x"}`, `v:"x"`, `i:0`.
    pub(super) fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(json) => format!("k:{json}"),
            Self::Value(json) => format!("v:{json}"),
            Self::Index(i) => format!("i:{i}"),
        }
    }

    pub(super) fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let json = || serde_json::from_str::<Value>(rest).ok();
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => json().filter(Value::is_object).map(|v| Self::Key(v.to_string())),
            "v" => json().map(|v| Self::Value(v.to_string())),
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Value(json) => write!(f, "[={json}]"),
            Self::Index(i) => write!(f, "[{i}]"),
            Self::Key(json) => {
                let keys: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                let mut pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                pairs.sort();
                write!(f, "[{}]", pairs.join(","))
            }
        }
    }
}

/// A path as messages show it, for instance `.spec.containers[name="a"].image`.
pub(super) fn display(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}
