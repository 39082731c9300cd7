//! Adding and removing one finalizer of an object, on condition that the object is still the same.

use kube::ResourceExt;
use serde_json::{Value, json};

/// Whether an object has a finalizer.
pub(crate) fn has(object: &impl ResourceExt, name: &str) -> bool {
    object.finalizers().iter().any(|f| f == name)
}

/// The merge patch that adds a finalizer.
pub(crate) fn with(object: &impl ResourceExt, name: &str) -> Value {
    let mut all = object.finalizers().to_vec();
    all.push(name.to_owned());
    patch(object, &all)
}

/// The merge patch that removes a finalizer.
pub(crate) fn without(object: &impl ResourceExt, name: &str) -> Value {
    let rest: Vec<String> = object.finalizers().iter().filter(|f| *f != name).cloned().collect();
    patch(object, &rest)
}

fn patch(object: &impl ResourceExt, finalizers: &[String]) -> Value {
    json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        // null: an empty list would stay visible
        "finalizers": if finalizers.is_empty() { Value::Null } else { json!(finalizers) },
    }})
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn one_comes_and_goes_and_the_others_stay() {
        let mut pod = Pod::default();
        pod.metadata.finalizers = Some(vec!["a/b".into(), "c/d".into()]);
        assert!(has(&pod, "a/b") && !has(&pod, "e/f"));
        assert_eq!(without(&pod, "a/b")["metadata"]["finalizers"], json!(["c/d"]));
        assert_eq!(with(&pod, "e/f")["metadata"]["finalizers"], json!(["a/b", "c/d", "e/f"]));
    }
}
