//! Maps: JSON objects as they are, or made by an evaluation.

use super::{Text, Value};
use crate::types::{DYN, Type};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A key of a map; numbers that are equal are one key.
#[derive(Clone, Debug)]
pub enum Key<'a> {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// One beyond the signed ones.
    Uint(u64),
    /// Text.
    Text(Text<'a>),
}

impl Key<'_> {
    fn rank(&self) -> u8 {
        match self {
            Key::Bool(_) => 0,
            Key::Int(_) => 1,
            Key::Uint(_) => 2,
            Key::Text(_) => 3,
        }
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Key::Bool(a), Key::Bool(b)) => a.cmp(b),
            (Key::Int(a), Key::Int(b)) => a.cmp(b),
            (Key::Uint(a), Key::Uint(b)) => a.cmp(b),
            (Key::Text(a), Key::Text(b)) => (**a).cmp(&**b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key<'_> {}

impl<'a> Key<'a> {
    /// The value as a key; `None` for what cannot be one.
    pub fn of(value: &Value<'a>) -> Option<Self> {
        Some(match value {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(n) => Key::Int(*n),
            Value::Uint(n) => i64::try_from(*n).map_or(Key::Uint(*n), Key::Int),
            Value::Double(n) if n.fract() == 0.0 && n.abs() < 9.0e18 => Key::Int(*n as i64),
            Value::String(text) => Key::Text(text.clone()),
            _ => return None,
        })
    }

    /// The key as a value.
    pub fn value(&self) -> Value<'a> {
        match self {
            Key::Bool(b) => Value::Bool(*b),
            Key::Int(n) => Value::Int(*n),
            Key::Uint(n) => Value::Uint(*n),
            Key::Text(text) => Value::String(text.clone()),
        }
    }
}

/// A map.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// A JSON object, and its own type.
    Json(&'a serde_json::Map<String, serde_json::Value>, &'a Type),
    /// Made by the evaluation.
    Shared(Arc<BTreeMap<Key<'a>, Value<'a>>>),
    /// One in which every key that is not there leads to an empty map.
    Lenient(Arc<BTreeMap<Key<'a>, Value<'a>>>),
}

impl<'a> Map<'a> {
    /// How many entries.
    pub fn len(&self) -> usize {
        match self {
            Map::Json(fields, _) => fields.len(),
            Map::Shared(entries) | Map::Lenient(entries) => entries.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a field or a key of text leads to.
    pub fn field(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Map::Json(fields, Type::Object(object)) => {
                let field = object.fields.get(name)?;
                fields.get(&*field.json).map(|json| Value::from_json(json, &field.ty))
            }
            Map::Json(fields, Type::Map(_, ty)) => fields.get(name).map(|json| Value::from_json(json, ty)),
            Map::Json(fields, _) => fields.get(name).map(|json| Value::from_json(json, &DYN)),
            Map::Shared(entries) => entries.get(&Key::Text(Text::Shared(name.into()))).cloned(),
            Map::Lenient(entries) => {
                let found = entries.get(&Key::Text(Text::Shared(name.into()))).cloned();
                Some(found.unwrap_or_else(|| Value::map(BTreeMap::new())))
            }
        }
    }

    /// What a key leads to.
    pub fn get(&self, key: &Value<'a>) -> Option<Value<'a>> {
        match (self, key) {
            (Map::Json(..) | Map::Lenient(_), Value::String(name)) => self.field(name),
            (Map::Json(..) | Map::Lenient(_), _) => None,
            (Map::Shared(entries), key) => entries.get(&Key::of(key)?).cloned(),
        }
    }

    /// All entries.
    pub fn entries(&self) -> Vec<(Value<'a>, Value<'a>)> {
        match self {
            Map::Shared(entries) | Map::Lenient(entries) => {
                entries.iter().map(|(k, v)| (k.value(), v.clone())).collect()
            }
            Map::Json(fields, ty) => {
                let value = |name: &str, json: &'a serde_json::Value| match ty {
                    Type::Object(object) => {
                        let known = object.fields.values().find(|f| *f.json == *name);
                        Value::from_json(json, known.map_or(&DYN, |f| &f.ty))
                    }
                    Type::Map(_, ty) => Value::from_json(json, ty),
                    _ => Value::from_json(json, &DYN),
                };
                fields.iter().map(|(name, json)| (Value::text(name), value(name, json))).collect()
            }
        }
    }
}
