//! Which ReplicaSet belongs to which template, and in which order they came.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The label that keeps the pods of different templates apart.
pub(super) const HASH_LABEL: &str = "pod-template-hash";
/// The annotation with the number of a revision.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotations of a deployment that are not for its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    super::plan::DESIRED,
    super::plan::MAXIMUM,
    "deprecated.deployment.rollback.to",
];

/// The revision of a Deployment or ReplicaSet; zero when it has none.
pub(super) fn revision(object: &impl ResourceExt) -> i64 {
    object.annotations().get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The highest revision among ReplicaSets.
pub(super) fn highest(sets: &[Arc<ReplicaSet>]) -> i64 {
    sets.iter().map(|s| revision(&**s)).max().unwrap_or(0)
}

/// The ReplicaSet of the deployment's present template; the oldest when there are several.
pub(super) fn newest(d: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    sets.iter().find(|s| same_template(s, d)).cloned()
}

/// Whether a ReplicaSet has the deployment's template, apart from the hash label.
pub(super) fn same_template(set: &ReplicaSet, d: &Deployment) -> bool {
    let without_hash = |t: &PodTemplateSpec| {
        let mut t = t.clone();
        if let Some(m) = &mut t.metadata {
            if let Some(labels) = &mut m.labels {
                labels.remove(HASH_LABEL);
            }
            m.creation_timestamp = None;
        }
        t
    };
    let wanted = d.spec.as_ref().map(|s| without_hash(&s.template));
    set.spec.as_ref().and_then(|s| s.template.as_ref()).map(without_hash) == wanted
}

/// A short name for a template.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    crate::history::short_hash(template, collisions)
}

/// The spec of a ReplicaSet for a deployment: the hash is in its template's labels and in its selector.
pub(super) fn set_spec(spec: &DeploymentSpec, hash: &str) -> ReplicaSetSpec {
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.into());
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.into());
    ReplicaSetSpec { replicas: Some(0), min_ready_seconds: spec.min_ready_seconds, selector, template: Some(template) }
}

/// The annotations of a new ReplicaSet.
pub(super) fn annotations_of(d: &Deployment, revision: i64) -> BTreeMap<String, String> {
    let mut out = copied(d);
    out.insert(REVISION.into(), revision.to_string());
    out
}

fn copied(d: &Deployment) -> BTreeMap<String, String> {
    d.annotations()
        .iter()
        .filter(|(k, _)| !NOT_COPIED.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// What has to change in a ReplicaSet's annotations so that it has the deployment's and the revision; the former
/// revision goes into its history. `None` when nothing has to.
pub(super) fn changed_annotations(d: &Deployment, set: &ReplicaSet, wanted: i64) -> Option<Value> {
    let known = set.annotations();
    let mut patch = serde_json::Map::new();
    for (k, v) in copied(d) {
        if known.get(&k) != Some(&v) {
            patch.insert(k, v.into());
        }
    }
    let old = revision(set);
    if old < wanted {
        patch.insert(REVISION.into(), wanted.to_string().into());
        if old > 0 {
            let history = known.get(HISTORY).map(|h| format!("{h},{old}")).unwrap_or_else(|| old.to_string());
            patch.insert(HISTORY.into(), history.into());
        }
    }
    (!patch.is_empty()).then(|| json!(patch))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn deployment(image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": {"note": "n", REVISION: "2"}},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": image}]}}}
        }))
        .unwrap()
    }

    fn set(d: &Deployment) -> ReplicaSet {
        let spec = d.spec.as_ref().unwrap();
        let hash = template_hash(&spec.template, 0);
        ReplicaSet { spec: Some(set_spec(spec, &hash)), ..ReplicaSet::default() }
    }

    #[test]
    fn templates_are_recognised() {
        let (one, two) = (deployment("x:1"), deployment("x:2"));
        assert!(same_template(&set(&one), &one));
        assert!(!same_template(&set(&one), &two));
        let hash = |d: &Deployment, n| template_hash(&d.spec.as_ref().unwrap().template, n);
        assert_eq!(hash(&one, 0), hash(&one, 0));
        assert_ne!(hash(&one, 0), hash(&two, 0));
        assert_ne!(hash(&one, 0), hash(&one, 1));
        assert!(edge_api::names::label_value(&hash(&one, 0)).is_ok());
    }

    #[test]
    fn a_rollback_raises_the_revision_and_keeps_history() {
        let d = deployment("x:1");
        let mut s = set(&d);
        s.metadata.annotations = Some([(REVISION.to_owned(), "1".to_owned())].into());
        let patch = changed_annotations(&d, &s, 3).unwrap();
        assert_eq!(patch, json!({"note": "n", REVISION: "3", HISTORY: "1"}));
        s.metadata.annotations =
            Some([("note".to_owned(), "n".to_owned()), (REVISION.to_owned(), "3".to_owned())].into());
        assert!(changed_annotations(&d, &s, 3).is_none());
    }
}
