//! The objects that a binding gives its policy as parameters.

use super::super::Cluster;
use super::compiled::{Binding, Policy};
use edge_api::Object;
use edge_api::selector::LabelSelector;
use edge_registry::Attributes;
use serde_json::Value;

/// The parameters, one after the other; a policy without them is asked once with none.
///
/// # Errors
/// Why there are none where there must be.
pub(super) async fn collect(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    policy: &Policy,
    binding: &Binding,
) -> Result<Vec<Option<Object>>, String> {
    let Some((api_version, kind)) = &policy.param_kind else { return Ok(vec![None]) };
    if binding.param.is_null() {
        return Ok(vec![None]);
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let row = cluster.catalog().kind(group, version, kind);
    let row = row.ok_or_else(|| format!("paramKind kind `{api_version}, Kind={kind}` not known"))?;
    let said = |field: &str| binding.param[field].as_str().unwrap_or_default();
    let namespace = match (row.namespaced, said("namespace")) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
        (true, "") if !a.info.namespaced => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        (true, "") => a.namespace,
        (true, given) => given,
    };
    let found: Vec<Object> = match said("name") {
        "" => {
            let selector = match &binding.param["selector"] {
                Value::Null => return Err("one of name or selector must be provided".into()),
                given => LabelSelector::from_value(given).map_err(|e| e.to_string())?,
            };
            let all = cluster.list(group, &row.plural, namespace).await.map_err(|s| s.message)?;
            all.into_iter().filter(|o| selector.matches(|key| o.label(key))).collect()
        }
        name => cluster.get(group, &row.plural, namespace, name).into_iter().collect(),
    };
    if found.is_empty() && said("parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found.into_iter().map(Some).collect())
}
