//! JSON merge patch (RFC 7386).

use edge_api::Status;
use serde_json::{Map, Value};

/// Why a merge patch is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MergePatchError {
    /// A patch of an API object has to be a JSON object.
    #[error("invalid JSON merge patch: must be an object")]
    NotAnObject,
}

impl From<MergePatchError> for Status {
    fn from(error: MergePatchError) -> Self {
        Status::bad_request(error.to_string())
    }
}

/// Applies a merge patch to an API object: members replace, `null` removes, objects merge.
///
/// # Errors
/// When the patch is not a JSON object.
pub fn apply(live: Value, patch: &Value) -> Result<Value, MergePatchError> {
    if !patch.is_object() {
        return Err(MergePatchError::NotAnObject);
    }
    Ok(merge(live, patch))
}

/// The `MergePatch` function of RFC 7386, section 2.
fn merge(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut out = match target {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    for (name, change) in patch {
        if change.is_null() {
            out.remove(name);
        } else {
            let old = out.remove(name).unwrap_or_default();
            out.insert(name.clone(), merge(old, change));
        }
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_test_cases_of_rfc_7386() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ];
        for (target, patch, expected) in cases {
            assert_eq!(merge(target.clone(), &patch), expected, "{target} patched with {patch}");
        }
    }

    #[test]
    fn a_patch_has_to_be_an_object() {
        for patch in [json!(null), json!([1]), json!("x"), json!(7)] {
            assert_eq!(apply(json!({"a": 1}), &patch), Err(MergePatchError::NotAnObject));
        }
        assert_eq!(Status::from(MergePatchError::NotAnObject).code, 400);
    }
}
