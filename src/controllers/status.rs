//! Writing a status only when it changed.

use crate::context::unless_gone;
use edge_client::{Api, Client, Error, Patch, PatchParams, Resource, ResourceExt};
use k8s_openapi::NamespaceResourceScope;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;

/// Brings an object's status to what a merge patch wants; says whether that was necessary. An object that is gone needs
/// nothing any more.
pub(crate) async fn write<K>(
    client: &Client,
    object: &K,
    current: Option<&impl Serialize>,
    wanted: Value,
) -> Result<bool, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let current = current.and_then(|s| serde_json::to_value(s).ok()).unwrap_or_default();
    if !differs(&current, &wanted) {
        return Ok(false);
    }
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"metadata": {"uid": object.uid()}, "status": wanted}));
    unless_gone(api.patch_status(&object.name_any(), &PatchParams::default(), &patch).await)?;
    Ok(true)
}

/// Whether a merge patch would change anything; `null` stands for an absent (zero) field.
pub(crate) fn differs(current: &Value, patch: &Value) -> bool {
    match (current, patch) {
        (Value::Object(c), Value::Object(p)) => p.iter().any(|(k, v)| differs(c.get(k).unwrap_or(&Value::Null), v)),
        (Value::Null, Value::Object(p)) => p.values().any(|v| differs(&Value::Null, v)),
        (c, p) if p.is_null() => !(c.is_null() || *c == json!(0)),
        (c, p) => c != p,
    }
}

/// A count for a merge patch of a status: zero removes the field, as Kubernetes omits it.
pub(crate) fn count(n: usize) -> Value {
    if n == 0 { Value::Null } else { n.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_patch_would_change() {
        let current = json!({"replicas": 1, "map": {"a": "x"}});
        for (patch, changes) in [
            (json!({"replicas": 1}), false),
            (json!({"replicas": 2}), true),
            (json!({"ready": null, "replicas": 1}), false),
            (json!({"replicas": null}), true),
            (json!({"map": {"a": null}}), true),
            (json!({"map": {"b": null}}), false),
            (json!({"other": {"b": null}}), false),
            (json!({"other": {"b": 1}}), true),
            (json!({"list": []}), true),
        ] {
            assert_eq!(differs(&current, &patch), changes, "{patch}");
        }
        assert_eq!((count(0), count(2)), (Value::Null, json!(2)));
    }
}
