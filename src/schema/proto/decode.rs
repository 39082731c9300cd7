//! Protobuf messages to JSON values.

use base64::{Engine, prelude::BASE64_STANDARD};
use edge_api::{GroupVersion, GroupVersionKind, duration, meta};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{
    MAGIC, MAX_DEPTH, ProtoError,
    wire::{Reader, Wire},
};
use crate::{FieldRef, Leaf, Schema, Shape, TypeRef};

/// The `runtime.Unknown` around an object.
pub(super) struct Envelope<'a> {
    api_version: String,
    kind: String,
    pub(super) raw: &'a [u8],
}

impl Envelope<'_> {
    pub(super) fn gvk(&self) -> Option<GroupVersionKind> {
        let gv = GroupVersion::parse(&self.api_version)?;
        (!self.kind.is_empty()).then(|| gv.with_kind(self.kind.as_str()))
    }
}

/// Reads the envelope of an object.
pub(super) fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, ProtoError> {
    let mut r = Reader::new(bytes.strip_prefix(MAGIC).ok_or(ProtoError::Magic)?);
    let mut out = Envelope { api_version: String::new(), kind: String::new(), raw: &[] };
    while let Some((number, wire)) = r.next()? {
        match (number, wire) {
            (1, Wire::Length(meta)) => {
                let mut r = Reader::new(meta);
                while let Some((number, wire)) = r.next()? {
                    match (number, wire) {
                        (1, Wire::Length(b)) => out.api_version = text("apiVersion", b)?,
                        (2, Wire::Length(b)) => out.kind = text("kind", b)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Length(raw)) => out.raw = raw,
            (3, Wire::Length(encoding)) if !encoding.is_empty() => {
                return Err(ProtoError::Encoding(String::from_utf8_lossy(encoding).into_owned()));
            }
            _ => {}
        }
    }
    Ok(out)
}

/// Reads the message of a struct that is itself `depth` levels down.
pub(super) fn message(schema: &Schema, ty: TypeRef<'_>, bytes: &[u8], depth: usize) -> Result<Value, ProtoError> {
    Decoder::new(schema, bytes.len(), depth).body("", ty, bytes)
}

fn text(field: &str, bytes: &[u8]) -> Result<String, ProtoError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(ProtoError::Utf8 { field: field.to_owned() }),
    }
}

struct Decoder<'s> {
    schema: &'s Schema,
    depth: usize,
    /// Values that may still be made: an honest message makes far fewer than it has bytes.
    budget: usize,
}

impl<'s> Decoder<'s> {
    fn new(schema: &'s Schema, bytes: usize, depth: usize) -> Self {
        Self { schema, depth, budget: bytes.saturating_add(1024) }
    }

    fn spend(&mut self) -> Result<(), ProtoError> {
        self.budget = self.budget.checked_sub(1).ok_or(ProtoError::Size)?;
        Ok(())
    }

    fn body(&mut self, field: &str, ty: TypeRef<'_>, bytes: &[u8]) -> Result<Value, ProtoError> {
        self.spend()?;
        match ty.shape() {
            Shape::Struct => {
                let mut map = Map::new();
                self.fields(ty, &mut map, bytes)?;
                self.fill(ty, &mut map)?;
                Ok(Value::Object(map))
            }
            Shape::Either(..) => self.either(ty, bytes),
            Shape::Leaf(leaf) => leaf_message(field, leaf, bytes),
            Shape::Any => self.any(field, bytes),
            Shape::List(item) => {
                let mut items = Vec::new();
                let mut r = Reader::new(bytes);
                while let Some((number, wire)) = r.next()? {
                    if number == 1 {
                        items.push(self.value(field, item, wire)?);
                    }
                }
                Ok(Value::Array(items))
            }
            Shape::Map(_) => Ok(Value::Null),
        }
    }

    fn fields(&mut self, ty: TypeRef<'_>, map: &mut Map<String, Value>, bytes: &[u8]) -> Result<(), ProtoError> {
        if self.depth >= MAX_DEPTH {
            return Err(ProtoError::Depth);
        }
        self.depth += 1;
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.next()? {
            let Some(field) = ty.wire_field(number) else { continue };
            self.field(field, map, wire)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn field(&mut self, field: FieldRef<'_>, map: &mut Map<String, Value>, wire: Wire<'_>) -> Result<(), ProtoError> {
        let (name, ty) = (field.name(), field.ty());
        match (ty.shape(), wire) {
            (Shape::Struct, Wire::Length(bytes)) if field.is_inline() => self.fields(ty, map, bytes)?,
            (Shape::Struct, Wire::Length(bytes)) => match map.get_mut(name) {
                // a message that comes in several parts is merged
                Some(Value::Object(inner)) => self.fields(ty, inner, bytes)?,
                _ => {
                    let value = self.body(name, ty, bytes)?;
                    map.insert(name.to_owned(), value);
                }
            },
            (Shape::List(item), _) if !ty.is_wrapped() => {
                let value = self.value(name, item, wire)?;
                if let Value::Array(items) = map.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
                    items.push(value);
                }
            }
            (Shape::Map(element), Wire::Length(entry)) => {
                let (key, value) = self.entry(name, element, entry)?;
                if let Value::Object(entries) = map.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                    entries.insert(key, value);
                }
            }
            _ => {
                let value = self.value(name, ty, wire)?;
                if value.is_null() || field.omits(&value) {
                    map.remove(name);
                } else {
                    map.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, ty: TypeRef<'_>, bytes: &[u8]) -> Result<(String, Value), ProtoError> {
        let (mut key, mut value) = (String::new(), None);
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.next()? {
            match (number, wire) {
                (1, Wire::Length(b)) => key = text(name, b)?,
                (2, wire) => value = Some(self.value(name, ty, wire)?),
                _ => {}
            }
        }
        let value = match value {
            Some(v) => v,
            None => self.zero(name, ty)?,
        };
        Ok((key, value))
    }

    /// The value that an absent map value stands for.
    fn zero(&mut self, name: &str, ty: TypeRef<'_>) -> Result<Value, ProtoError> {
        match ty.shape() {
            Shape::Leaf(Leaf::Bool | Leaf::Int32 | Leaf::Int64) => self.value(name, ty, Wire::Varint(0)),
            Shape::Leaf(Leaf::Double) => self.value(name, ty, Wire::Fixed64([0; 8])),
            _ => self.value(name, ty, Wire::Length(&[])),
        }
    }

    fn value(&mut self, name: &str, ty: TypeRef<'_>, wire: Wire<'_>) -> Result<Value, ProtoError> {
        self.spend()?;
        Ok(match (ty.shape(), wire) {
            (Shape::Leaf(Leaf::String), Wire::Length(b)) => text(name, b)?.into(),
            (Shape::Leaf(Leaf::Bytes), Wire::Length(b)) => BASE64_STANDARD.encode(b).into(),
            (Shape::Leaf(Leaf::Bool), Wire::Varint(n)) => (n != 0).into(),
            // an int32 is sent as the 64 bits of its sign-extended value; decoders keep the low half
            (Shape::Leaf(Leaf::Int32), Wire::Varint(n)) => (n as u32).cast_signed().into(),
            (Shape::Leaf(Leaf::Int64), Wire::Varint(n)) => n.cast_signed().into(),
            (Shape::Leaf(Leaf::Double), Wire::Fixed64(b)) => f64::from_le_bytes(b).into(),
            (Shape::Leaf(Leaf::String | Leaf::Bytes | Leaf::Bool | Leaf::Int32 | Leaf::Int64 | Leaf::Double), wire) => {
                return Err(ProtoError::WireType { wire: wire.kind(), field: name.to_owned() });
            }
            (_, Wire::Length(b)) => self.body(name, ty, b)?,
            (_, wire) => return Err(ProtoError::WireType { wire: wire.kind(), field: name.to_owned() }),
        })
    }

    /// Adds what Kubernetes' JSON always has: structs held by value, and scalars without `omitempty`.
    fn fill(&mut self, ty: TypeRef<'_>, map: &mut Map<String, Value>) -> Result<(), ProtoError> {
        for field in ty.wire_fields() {
            let name = field.name();
            if field.is_inline() {
                self.fill(field.ty(), map)?;
            } else if field.number() == 0 || map.contains_key(name) {
                continue;
            } else if field.is_value_struct() {
                let value = self.body(name, field.ty(), &[])?;
                map.insert(name.to_owned(), value);
            } else if field.emits_zero() && !field.is_pointer() && is_plain(field.ty()) {
                let value = self.zero(name, field.ty())?;
                map.insert(name.to_owned(), value);
            }
        }
        Ok(())
    }

    fn either(&mut self, ty: TypeRef<'_>, bytes: &[u8]) -> Result<Value, ProtoError> {
        let mut fields = ty.wire_fields();
        let (Some(object), Some(other)) = (fields.next(), fields.next()) else { return Ok(Value::Null) };
        // the body of an either is one more level, as in a struct
        if self.depth >= MAX_DEPTH {
            return Err(ProtoError::Depth);
        }
        self.depth += 1;
        let mut map = Map::new();
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.next()? {
            if let Some(field) = [object, other].into_iter().find(|f| f.number() == number) {
                let slot = if number == object.number() { "object" } else { "other" };
                match (field.ty().shape(), wire) {
                    (Shape::List(item), wire) => {
                        let value = self.value(field.name(), item, wire)?;
                        if let Value::Array(items) = map.entry(slot).or_insert_with(|| Value::Array(Vec::new())) {
                            items.push(value);
                        }
                    }
                    (_, wire) => {
                        let value = self.value(field.name(), field.ty(), wire)?;
                        map.insert(slot.to_owned(), value);
                    }
                }
            }
        }
        self.depth -= 1;
        let other = map.remove("other");
        Ok(map.remove("object").or(other).unwrap_or(Value::Bool(false)))
    }

    /// Embedded JSON, or an embedded object in protobuf form.
    fn any(&mut self, field: &str, bytes: &[u8]) -> Result<Value, ProtoError> {
        let mut raw: &[u8] = &[];
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.next()? {
            if let (1, Wire::Length(b)) = (number, wire) {
                raw = b;
            }
        }
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if raw.starts_with(MAGIC) {
            if self.depth >= MAX_DEPTH {
                return Err(ProtoError::Depth);
            }
            self.depth += 1;
            let inner = super::decode_at(self.schema, raw, None, self.depth);
            self.depth -= 1;
            return inner;
        }
        serde_json::from_slice(raw).map_err(|source| ProtoError::Json { field: field.to_owned(), source })
    }
}

/// Whether a zero of this type is a scalar in JSON (lists and maps would be `null`, which is left out).
fn is_plain(ty: TypeRef<'_>) -> bool {
    matches!(
        ty.shape(),
        Shape::Leaf(
            Leaf::String | Leaf::Bool | Leaf::Int32 | Leaf::Int64 | Leaf::Double | Leaf::Quantity | Leaf::IntOrString
        )
    )
}

fn leaf_message(field: &str, leaf: Leaf, bytes: &[u8]) -> Result<Value, ProtoError> {
    // the numbers and texts of the message by field number; all of them have at most three fields
    let (mut ints, mut texts) = ([0i64; 4], [None; 4]);
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.next()? {
        let slot = number as usize;
        match wire {
            Wire::Varint(n) if slot < ints.len() => ints[slot] = n.cast_signed(),
            Wire::Length(b) if slot < texts.len() => texts[slot] = Some(b),
            _ => {}
        }
    }
    match leaf {
        Leaf::Quantity => {
            let amount = text(field, texts[1].unwrap_or_default())?;
            Ok(if amount.is_empty() { "0".into() } else { amount.into() })
        }
        Leaf::IntOrString if ints[1] == 1 => Ok(text(field, texts[3].unwrap_or_default())?.into()),
        Leaf::IntOrString => Ok(Value::from(ints[2] as i32)),
        Leaf::Duration => Ok(duration::format(ints[1]).into()),
        // a zero time
        _ if bytes.is_empty() => Ok(Value::Null),
        _ => {
            let nanos = i32::try_from(ints[2]).ok().filter(|n| (0..1_000_000_000).contains(n));
            let time = nanos.and_then(|n| Timestamp::new(ints[1], n).ok());
            let time = time.filter(|t| (-62_135_596_800..253_402_300_800).contains(&t.as_second()));
            let time = time.ok_or_else(|| ProtoError::Time(field.to_owned()))?;
            Ok(if leaf == Leaf::MicroTime { meta::micro_time(time) } else { meta::time(time) }.into())
        }
    }
}
