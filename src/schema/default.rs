//! Defaults: fills in what an API server adds to an object before it is validated and stored.
//!
//! In: an object that conforms to its type. Out: the same object with the defaults of every struct in it, however deep (a pod template is
//! defaulted wherever it occurs), and without the zeros that Kubernetes' JSON does not show. Three sources, in this order within one struct: the schema table, [`fields`] (constants that
//! Kubernetes sets in code), [`hooks`] (values computed from other fields). Applying them twice changes nothing. For custom resources the
//! defaults of their schema are the only source.

mod fields;
mod hooks;
mod pod_resources;

use std::{collections::HashMap, sync::OnceLock};

use edge_api::Quantity;
use serde_json::{Map, Value};

use crate::{FieldRef, Leaf, Shape, TypeRef};

/// A computed default of one struct; runs after its constants and before the structs inside it.
type Hook = fn(&mut Map<String, Value>);

/// What one built-in struct gets beyond the schema table.
#[derive(Default)]
struct Extra {
    /// JSON name, JSON text.
    constants: Vec<(&'static str, &'static str)>,
    hook: Option<Hook>,
}

fn extras() -> &'static HashMap<String, Extra> {
    static EXTRAS: OnceLock<HashMap<String, Extra>> = OnceLock::new();
    EXTRAS.get_or_init(|| {
        let mut all: HashMap<String, Extra> = HashMap::new();
        for (ty, field, json) in fields::CONSTANTS {
            all.entry(fields::full_name(ty)).or_default().constants.push((field, json));
        }
        for (ty, hook) in hooks::HOOKS {
            all.entry(fields::full_name(ty)).or_default().hook = Some(*hook);
        }
        all
    })
}

/// Fills in the defaults of a value and of everything in it, and leaves out zeros as `omitempty` does. A value that is not of the type is left alone.
pub fn apply(ty: TypeRef<'_>, value: &mut Value) {
    match (ty.shape(), value) {
        (Shape::Struct, Value::Object(map)) => {
            own_defaults(ty, map);
            map.retain(|name, value| !(is_empty(value) && ty.field(name).is_some_and(|field| field.omits(value))));
            for field in ty.wire_fields() {
                children(field, map);
            }
        }
        (Shape::List(item), Value::Array(items)) if !is_scalar(item) => items.iter_mut().for_each(|v| apply(item, v)),
        (Shape::Map(element), Value::Object(map)) => match element.shape() {
            Shape::Leaf(Leaf::Quantity) => map.values_mut().for_each(round_to_millis),
            Shape::Leaf(_) => {}
            _ => map.values_mut().for_each(|v| apply(element, v)),
        },
        (Shape::Either(object, _), value @ Value::Object(_)) => apply(object, value),
        (Shape::Either(_, other), value) => apply(other, value),
        _ => {}
    }
}

fn is_scalar(ty: TypeRef<'_>) -> bool {
    matches!(ty.shape(), Shape::Leaf(_) | Shape::Any)
}

fn children(field: FieldRef<'_>, map: &mut Map<String, Value>) {
    let ty = field.ty();
    if field.is_inline() {
        ty.wire_fields().for_each(|f| children(f, map));
    } else if !is_scalar(ty)
        && let Some(value) = map.get_mut(field.name())
    {
        apply(ty, value);
    }
}

/// The defaults of one struct's own fields, those inlined into it included.
fn own_defaults(ty: TypeRef<'_>, map: &mut Map<String, Value>) {
    let extra = ty.name().filter(|_| ty.is_builtin()).and_then(|name| extras().get(name));
    for field in ty.wire_fields() {
        if field.is_inline() {
            own_defaults(field.ty(), map);
        } else if field.is_value_struct() {
            map.entry(field.name()).or_insert_with(|| Value::Object(Map::new()));
        } else {
            let constant = extra.and_then(|e| e.constants.iter().find(|(name, _)| *name == field.name()));
            let text = constant.map(|(_, json)| *json).or_else(|| field.default_json());
            if let Some(text) = text.filter(|text| is_due(field, text, map)) {
                let default = serde_json::from_str(text).expect("invariant: defaults in the table are JSON");
                map.insert(field.name().to_owned(), default);
            }
        }
    }
    if let Some(hook) = extra.and_then(|e| e.hook) {
        hook(map);
    }
}

/// Whether a field takes its default. A field held by value cannot tell zero from absent, and shows a zero only without `omitempty`.
fn is_due(field: FieldRef<'_>, text: &str, map: &Map<String, Value>) -> bool {
    let present = map.get(field.name()).filter(|v| !v.is_null());
    if field.is_pointer() {
        return present.is_none() && !(field.is_nullable() && map.contains_key(field.name()));
    }
    let zero_default = matches!(text, "\"\"" | "0" | "false" | "{}" | "[]");
    match present {
        Some(value) => !zero_default && is_zero(value),
        None => !zero_default || field.emits_zero(),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(_) => false,
    }
}

fn is_empty(value: &Value) -> bool {
    is_zero(value) || value.as_object().is_some_and(Map::is_empty)
}

/// Amounts of resources are kept to thousandths, rounded up.
fn round_to_millis(value: &mut Value) {
    if let Some(text) = value.as_str().filter(|t| t.ends_with(['n', 'u']))
        && let Ok(amount) = Quantity::parse(text)
    {
        *value = Quantity::from_millis(amount.milli_value()).to_string().into();
    }
}
