//! JSON values to protobuf messages, written back to front: fields, list items and map entries in reverse order.

use base64::{Engine, prelude::BASE64_STANDARD};
use edge_api::duration;
use edge_api::meta::parse_time;
use serde_json::{Map, Value};

use super::{MAX_DEPTH, ProtoError, wire::Writer};
use crate::{FieldRef, Leaf, Shape, TypeRef};

/// Writes the message of a struct (without tag and length).
pub(super) fn message(w: &mut Writer, ty: TypeRef<'_>, value: &Value) -> Result<(), ProtoError> {
    Encoder { w, depth: 0 }.body(ty, value)
}

struct Encoder<'w> {
    w: &'w mut Writer,
    depth: usize,
}

fn wrong(expected: &'static str) -> ProtoError {
    ProtoError::Value { path: String::new(), expected }
}

/// Puts a step in front of the path of a failed value.
fn under(step: impl FnOnce() -> String) -> impl FnOnce(ProtoError) -> ProtoError {
    move |e| match e {
        ProtoError::Value { path, expected } => {
            let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
            ProtoError::Value { path: step() + dot + &path, expected }
        }
        e => e,
    }
}

impl Encoder<'_> {
    /// The body of a message: of a struct, an either, a wrapped list, or a message with a JSON form of its own.
    fn body(&mut self, ty: TypeRef<'_>, value: &Value) -> Result<(), ProtoError> {
        if self.depth >= MAX_DEPTH {
            return Err(ProtoError::Depth);
        }
        self.depth += 1;
        let done = match ty.shape() {
            Shape::Struct => value.as_object().ok_or_else(|| wrong("an object")).and_then(|map| self.fields(ty, map)),
            Shape::Either(..) => self.either(ty, value),
            Shape::Leaf(leaf) => self.leaf_message(leaf, value),
            Shape::Any => self.any(value),
            Shape::List(item) => self.list(1, item, value),
            Shape::Map(_) => Err(wrong("no map here")),
        };
        self.depth -= 1;
        done
    }

    fn fields(&mut self, ty: TypeRef<'_>, map: &Map<String, Value>) -> Result<(), ProtoError> {
        for field in ty.wire_fields().rev().filter(|f| f.number() != 0) {
            if field.is_inline() {
                let mark = self.w.mark();
                self.fields(field.ty(), map)?;
                self.w.close(field.number(), mark);
                continue;
            }
            match map.get(field.name()).filter(|v| !v.is_null()) {
                Some(value) => {
                    self.value(field.number(), field.ty(), value).map_err(under(|| field.name().to_owned()))?
                }
                None => self.absent(field)?,
            }
        }
        Ok(())
    }

    /// What Kubernetes writes for a field that has no value: nothing for pointers, else the zero value.
    fn absent(&mut self, field: FieldRef<'_>) -> Result<(), ProtoError> {
        if field.is_pointer() { Ok(()) } else { self.zero(field.number(), field.ty()) }
    }

    /// The zero value of a type: nothing for lists, maps and bytes.
    fn zero(&mut self, number: u32, ty: TypeRef<'_>) -> Result<(), ProtoError> {
        match ty.shape() {
            Shape::Leaf(Leaf::Bytes) | Shape::List(_) | Shape::Map(_) => Ok(()),
            Shape::Leaf(Leaf::String) => self.value(number, ty, &Value::String(String::new())),
            Shape::Leaf(Leaf::Bool) => self.value(number, ty, &Value::Bool(false)),
            Shape::Leaf(Leaf::Int32 | Leaf::Int64 | Leaf::Double | Leaf::Quantity | Leaf::IntOrString) => {
                self.value(number, ty, &Value::from(0))
            }
            Shape::Struct => self.value(number, ty, &Value::Object(Map::new())),
            Shape::Leaf(Leaf::Time | Leaf::MicroTime | Leaf::Duration) | Shape::Any | Shape::Either(..) => {
                self.w.string(number, "");
                Ok(())
            }
        }
    }

    /// A field with its tag.
    fn value(&mut self, number: u32, ty: TypeRef<'_>, value: &Value) -> Result<(), ProtoError> {
        if value.is_null() {
            return self.zero(number, ty);
        }
        match ty.shape() {
            Shape::Leaf(Leaf::String) => self.w.string(number, value.as_str().ok_or_else(|| wrong("a string"))?),
            Shape::Leaf(Leaf::Bytes) => {
                let text = value.as_str().ok_or_else(|| wrong("a base64 string"))?;
                let bytes = BASE64_STANDARD.decode(text).map_err(|_| wrong("a base64 string"))?;
                self.w.string_bytes(number, &bytes);
            }
            Shape::Leaf(Leaf::Bool) => {
                self.w.int(number, value.as_bool().ok_or_else(|| wrong("true or false"))?.into());
            }
            Shape::Leaf(Leaf::Int32) => self.w.int(number, int32(value)?.into()),
            Shape::Leaf(Leaf::Int64) => self.w.int(number, value.as_i64().ok_or_else(|| wrong("an int64"))?),
            Shape::Leaf(Leaf::Double) => self.w.double(number, value.as_f64().ok_or_else(|| wrong("a number"))?),
            Shape::List(item) if !ty.is_wrapped() => self.list(number, item, value)?,
            Shape::Map(element) => self.map(number, element, value)?,
            _ => {
                let mark = self.w.mark();
                self.body(ty, value)?;
                self.w.close(number, mark);
            }
        }
        Ok(())
    }

    fn list(&mut self, number: u32, item: TypeRef<'_>, value: &Value) -> Result<(), ProtoError> {
        let items = value.as_array().ok_or_else(|| wrong("an array"))?;
        for (i, v) in items.iter().enumerate().rev() {
            self.value(number, item, v).map_err(under(|| format!("[{i}]")))?;
        }
        Ok(())
    }

    fn map(&mut self, number: u32, element: TypeRef<'_>, value: &Value) -> Result<(), ProtoError> {
        let mut entries: Vec<_> = value.as_object().ok_or_else(|| wrong("an object"))?.iter().collect();
        entries.sort_unstable_by(|a, b| b.0.cmp(a.0));
        for (key, v) in entries {
            let mark = self.w.mark();
            self.value(2, element, v).map_err(under(|| format!("[{key}]")))?;
            self.w.string(1, key);
            self.w.close(number, mark);
        }
        Ok(())
    }

    /// An object goes into the first alternative, anything else into the other.
    fn either(&mut self, ty: TypeRef<'_>, value: &Value) -> Result<(), ProtoError> {
        let mut fields = ty.wire_fields();
        let (Some(object), Some(other)) = (fields.next(), fields.next()) else { return Ok(()) };
        if !value.is_object() {
            return self.value(other.number(), other.ty(), value);
        }
        // `allows` precedes `schema`, and a schema allows.
        let allows = matches!(other.ty().shape(), Shape::Leaf(Leaf::Bool));
        self.value(object.number(), object.ty(), value)?;
        if allows { self.value(other.number(), other.ty(), &Value::Bool(true)) } else { Ok(()) }
    }

    fn any(&mut self, value: &Value) -> Result<(), ProtoError> {
        if value.is_null() {
            return Ok(());
        }
        let text = serde_json::to_string(value).map_err(|source| ProtoError::Json { field: String::new(), source })?;
        self.w.string(1, &text);
        Ok(())
    }

    fn leaf_message(&mut self, leaf: Leaf, value: &Value) -> Result<(), ProtoError> {
        match (leaf, value) {
            (Leaf::Quantity, Value::String(text)) => self.w.string(1, text),
            (Leaf::Quantity, Value::Number(n)) => self.w.string(1, &n.to_string()),
            (Leaf::Quantity, _) => return Err(wrong("a quantity")),
            (Leaf::IntOrString, Value::String(text)) => {
                self.w.string(3, text);
                self.w.int(2, 0);
                self.w.int(1, 1);
            }
            (Leaf::IntOrString, _) => {
                self.w.string(3, "");
                self.w.int(2, int32(value).map_err(|_| wrong("an int32 or a string"))?.into());
                self.w.int(1, 0);
            }
            (Leaf::Duration, Value::String(text)) => {
                self.w.int(1, duration::parse(text).ok_or_else(|| wrong("a duration such as 15s"))?);
            }
            (_, Value::String(text)) => {
                let t = parse_time(text).ok_or_else(|| wrong("an RFC 3339 time"))?;
                let micros = if leaf == Leaf::MicroTime { t.subsec_nanosecond().div_euclid(1000) } else { 0 };
                // a time before 1970 counts its fraction forward from the second below
                let seconds = t.as_nanosecond().div_euclid(1_000_000_000) as i64;
                self.w.int(2, i64::from(micros.rem_euclid(1_000_000)) * 1000);
                self.w.int(1, seconds);
            }
            _ => return Err(wrong("an RFC 3339 time")),
        }
        Ok(())
    }
}

fn int32(value: &Value) -> Result<i32, ProtoError> {
    value.as_i64().and_then(|n| i32::try_from(n).ok()).ok_or_else(|| wrong("an int32"))
}
