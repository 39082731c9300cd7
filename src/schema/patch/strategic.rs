//! Strategic merge patch: a merge patch that knows, from the schema table, which lists are sets and which are keyed.
//!
//! In: the live object, the patch, the type. Directives in the patch:
//! - `$patch: replace | delete` in an object, or in an element of a keyed list;
//! - `$retainKeys: [...]` in an object: everything else goes;
//! - `$deleteFromPrimitiveList/<field>: [...]`: removes scalars from a set;
//! - `$setElementOrder/<field>: [...]`: the wanted order of a list's elements.
//!
//! Fields that the table does not know merge as in RFC 7386; the decoder that sees the result reports them. Custom resources have no
//! strategic merge patch: the caller answers 415 for them ([`StrategicPatchError::Unsupported`]).

mod list;

use crate::table::{FieldRef, MapType, Shape, TypeRef};
use edge_api::{Reason, Status};
use serde_json::{Map, Value};
use std::collections::HashSet;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Why a strategic merge patch is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StrategicPatchError {
    /// A patch of an API object has to be a JSON object.
    #[error("invalid strategic merge patch: must be an object")]
    NotAnObject,
    /// The kind is not a built-in one.
    #[error("strategic merge patch format is not supported")]
    Unsupported,
    /// A directive has the wrong form.
    #[error("invalid strategic merge patch: bad {0}")]
    BadDirective(String),
    /// `$patch` names something else than `replace` or `delete`.
    #[error("unknown patch type: {0}")]
    UnknownPatchType(String),
    /// An element of a keyed list lacks its key.
    #[error("an element of {field} does not contain declared merge key: {key}")]
    NoMergeKey {
        /// The list.
        field: String,
        /// The key that is missing.
        key: String,
    },
    /// The elements of a list are not all objects, or not all scalars.
    #[error("the elements of {0} are of different types")]
    MixedList(String),
    /// `$setElementOrder` contradicts the patch.
    #[error("the order in patch list {0} doesn't match its $setElementOrder list")]
    OrderMismatch(String),
}

impl From<StrategicPatchError> for Status {
    fn from(error: StrategicPatchError) -> Self {
        match error {
            StrategicPatchError::Unsupported => Status::new(
                415,
                Reason::UnsupportedMediaType,
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            ),
            StrategicPatchError::NotAnObject
            | StrategicPatchError::BadDirective(_)
            | StrategicPatchError::UnknownPatchType(_) => Status::bad_request(error.to_string()),
            _ => super::unprocessable(&error),
        }
    }
}

/// Applies a strategic merge patch to an object of a built-in type.
///
/// # Errors
/// When the patch is no object, a directive is malformed, or an element of a keyed list has no key.
pub fn apply(ty: TypeRef<'_>, live: Value, patch: &Value) -> Result<Value, StrategicPatchError> {
    let Value::Object(patch) = patch else {
        return Err(StrategicPatchError::NotAnObject);
    };
    let live = match live {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    merge_map(Some(ty), live, patch.clone()).map(Value::Object)
}

/// The type of a member of an object, and how it is patched.
#[derive(Clone, Copy)]
enum Member<'s> {
    Field(FieldRef<'s>),
    /// A value of a map.
    Value(TypeRef<'s>),
    Unknown,
}

impl<'s> Member<'s> {
    fn of(ty: Option<TypeRef<'s>>, name: &str) -> Self {
        let Some(ty) = ty else { return Member::Unknown };
        match ty.shape() {
            Shape::Map(element) => Member::Value(element),
            Shape::Either(object, _) => Member::of(Some(object), name),
            _ => ty.field(name).map_or(Member::Unknown, Member::Field),
        }
    }

    fn ty(self) -> Option<TypeRef<'s>> {
        match self {
            Member::Field(f) => Some(f.ty()),
            Member::Value(t) => Some(t),
            Member::Unknown => None,
        }
    }

    fn merges_lists(self) -> bool {
        matches!(self, Member::Field(f) if f.patch_merge())
    }

    fn replaces(self) -> bool {
        matches!(self, Member::Field(f) if f.patch_replace())
    }

    fn merge_key(self) -> Option<&'s str> {
        match self {
            Member::Field(f) => f.patch_merge_key(),
            _ => None,
        }
    }
}

type Result<T, E = StrategicPatchError> = std::result::Result<T, E>;
type Object = Map<String, Value>;

fn merge_map(ty: Option<TypeRef<'_>>, mut live: Object, mut patch: Object) -> Result<Object> {
    match patch.remove(PATCH) {
        None => {}
        Some(directive) => {
            return match directive.as_str() {
                Some("replace") => Ok(plain_object(patch)),
                Some("delete") => Ok(Object::new()),
                _ => Err(StrategicPatchError::UnknownPatchType(directive.to_string())),
            };
        }
    }
    retain_keys(&mut live, &mut patch)?;
    let mut ordered = Vec::new();
    patch.retain(|name, value| match name.strip_prefix(ELEMENT_ORDER) {
        Some(field) => {
            ordered.push((field.to_owned(), value.take()));
            false
        }
        None => true,
    });
    for (field, order) in ordered {
        let Value::Array(order) = order else {
            return Err(StrategicPatchError::BadDirective(format!("{ELEMENT_ORDER}{field}")));
        };
        let member = Member::of(ty, &field);
        list::merge_ordered(member, &field, &mut live, patch.remove(&field), &order)?;
    }
    for (name, value) in patch {
        merge_member(ty, &mut live, name, value)?;
    }
    Ok(live)
}

fn merge_member(ty: Option<TypeRef<'_>>, live: &mut Object, name: String, patch: Value) -> Result<()> {
    if let Some(field) = name.strip_prefix(DELETE_FROM) {
        let Value::Array(gone) = patch else {
            return Err(StrategicPatchError::BadDirective(name));
        };
        if let Some(Value::Array(list)) = live.get_mut(field) {
            let gone: HashSet<&Value> = gone.iter().collect();
            list.retain(|v| !gone.contains(v));
        }
        return Ok(());
    }
    if patch.is_null() {
        live.remove(&name);
        return Ok(());
    }
    let member = Member::of(ty, &name);
    let merged = match (live.remove(&name), patch) {
        (Some(Value::Object(old)), Value::Object(new)) if !member.replaces() && !is_opaque(member) => {
            Some(Value::Object(merge_map(member.ty(), old, new)?))
        }
        (Some(Value::Array(old)), Value::Array(new)) if member.merges_lists() => {
            Some(Value::Array(list::merge(member, &name, old, new)?))
        }
        (_, new) => plain(new),
    };
    if let Some(value) = merged {
        live.insert(name, value);
    }
    Ok(())
}

/// Values whose inside is one unit to Kubernetes' decoder (`fieldsV1`): merging halves of two would make nonsense.
fn is_opaque(member: Member<'_>) -> bool {
    matches!(member, Member::Field(f) if f.name() == "fieldsV1" && f.ty().map_type() != Some(MapType::Granular))
}

/// Clears what `$retainKeys` does not name; every member the patch sets has to be named.
fn retain_keys(live: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || StrategicPatchError::BadDirective(RETAIN_KEYS.to_owned());
    let keys = directive.as_array().ok_or_else(bad)?;
    let named = |name: &str| keys.iter().any(|k| k.as_str() == Some(name));
    let directive = |name: &str| name.starts_with(DELETE_FROM) || name.starts_with(ELEMENT_ORDER);
    if patch.iter().any(|(name, value)| !value.is_null() && !directive(name) && !named(name)) {
        return Err(bad());
    }
    live.retain(|name, _| named(name));
    Ok(())
}

/// A new value out of a patch: without nulls and directives. `None` when a directive asks for its absence.
fn plain(patch: Value) -> Option<Value> {
    match patch {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => Some(Value::Object(plain_object(map))),
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(plain).collect())),
        other => Some(other),
    }
}

fn plain_object(map: Object) -> Object {
    map.into_iter()
        .filter(|(name, value)| !value.is_null() && !is_directive(name))
        .filter_map(|(name, value)| plain(value).map(|v| (name, v)))
        .collect()
}

fn is_directive(name: &str) -> bool {
    name == RETAIN_KEYS || name.starts_with(DELETE_FROM) || name.starts_with(ELEMENT_ORDER)
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
