//! Objects of custom resources: their normal form, and whether they are valid.

use crate::resource::ResourceInfo;
use edge_api::Object;
use edge_api::field::{ErrorList, Path};
use edge_schema::{default, validate};
use serde_json::Value;

/// Brings an object into the form that the schema of its version gives it: nothing unknown, nothing missing that has a default.
pub(crate) fn normalize(info: &ResourceInfo, object: &mut Object) {
    let Some(ty) = info.schema() else { return };
    let mut value = std::mem::take(object).into_value();
    // what is wrong with the metadata was let in by somebody else, and is shown as it is
    let _ = validate::conform(ty, &mut value);
    default::apply(ty, &mut value);
    *object = Object::from_value(value).unwrap_or_default();
}

/// What is read from the store for an object whose bytes are not in the form in which this row, that of the stored version, would write
/// them: an earlier schema, or an earlier stored version. `None`: they are.
pub(crate) fn modernized(info: &ResourceInfo, json: &[u8]) -> Option<Vec<u8>> {
    let mut object = Object::from_slice(json).ok()?;
    let before = object.clone();
    if object.api_version() != info.api_version() {
        if info.conversion.is_some() {
            // a webhook's business, when somebody asks
            return None;
        }
        object.set_gvk(&info.gvk());
    }
    normalize(info, &mut object);
    (object != before).then(|| object.to_json())
}

/// Judges an object by its schema, then by the rules in it. `old` is what an update changes.
pub(crate) fn check(info: &ResourceInfo, object: &Object, old: Option<&Object>, errors: &mut ErrorList) {
    let Some(custom) = &info.custom else { return };
    let value = |o: &Object| Value::Object(o.fields().clone());
    let (new, old) = (value(object), old.map(value));
    let from = errors.0.len();
    custom.compiled().rules.validate(&new, old.as_ref(), &Path::root(), errors);
    if errors.0.len() == from
        && let Some(expressions) = &custom.compiled().expressions
    {
        errors.extend(expressions.validate(&new, old.as_ref()));
    }
}
