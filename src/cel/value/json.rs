//! JSON to values, without copies, and back.

use super::{List, Map, Opaque, Value};
use crate::types::{DYN, Type};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;

impl<'a> Value<'a> {
    /// JSON as a value of a type. What is not of that type stays what it is.
    pub fn from_json(json: &'a Json, ty: &'a Type) -> Self {
        match (json, ty) {
            (Json::Null, _) => Value::Null,
            (Json::Bool(b), _) => Value::Bool(*b),
            (Json::Number(n), Type::Double) => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            (Json::Number(n), _) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => Value::Int(n),
                (None, n) => Value::Double(n.unwrap_or(f64::NAN)),
            },
            (Json::String(text), Type::Timestamp) => time(text).unwrap_or(Value::text(text)),
            (Json::String(text), Type::Duration) => {
                edge_api::duration::parse(text).map_or(Value::text(text), Value::Duration)
            }
            (Json::String(text), Type::Bytes) => {
                STANDARD.decode(text).map_or(Value::text(text), |bytes| Value::Bytes(bytes.into()))
            }
            (Json::String(text), _) => Value::text(text),
            (Json::Array(items), Type::List(ty)) => Value::List(List::Json(items, ty)),
            (Json::Array(items), _) => Value::List(List::Json(items, &DYN)),
            (Json::Object(fields), ty) => Value::Map(Map::Json(fields, ty)),
        }
    }

    /// The value as JSON; `None` for what has no such form, and for what is nested too deeply.
    pub fn to_json(&self) -> Option<Json> {
        self.json_at(0)
    }

    fn json_at(&self, depth: usize) -> Option<Json> {
        if depth > 200 {
            return None;
        }
        Some(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(n) => Json::from(*n),
            Value::Uint(n) => Json::from(*n),
            Value::Double(n) => Json::from(*n),
            Value::String(text) => Json::from(&**text),
            Value::Bytes(bytes) => Json::from(STANDARD.encode(bytes)),
            Value::List(List::Json(items, _)) => Json::Array(items.to_vec()),
            Value::List(items) => Json::Array(items.iter().map(|v| v.json_at(depth + 1)).collect::<Option<_>>()?),
            Value::Map(Map::Json(fields, _)) => Json::Object((*fields).clone()),
            Value::Map(map) => {
                let entry = |(k, v): (Value<'a>, Value<'a>)| Some((k.to_string(), v.json_at(depth + 1)?));
                Json::Object(map.entries().into_iter().map(entry).collect::<Option<_>>()?)
            }
            Value::Timestamp(t) => Json::from(t.to_string()),
            Value::Duration(d) => Json::from(crate::functions::convert::seconds(*d)),
            Value::Optional(Some(inner)) => inner.json_at(depth + 1)?,
            Value::Optional(None) => Json::Null,
            Value::Opaque(opaque) => match &**opaque {
                Opaque::Authorizer(_) => return None,
                _ => Json::from(self.to_string()),
            },
            Value::Type(_) => return None,
        })
    }
}

/// A moment, or a date alone.
fn time<'a>(text: &str) -> Option<Value<'a>> {
    if text.len() == 10 {
        let date: jiff::civil::Date = text.parse().ok()?;
        return date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| Value::Timestamp(z.timestamp()));
    }
    text.parse().ok().map(Value::Timestamp)
}
