//! Matching: selectors over other pods.

use edge_api::selector::LabelSelector;
use edge_client::ResourceExt;
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use std::collections::BTreeMap;

/// A label selector in matchable form; an absent one matches nothing.
pub(crate) fn selector(selector: Option<&metav1::LabelSelector>) -> LabelSelector {
    selector
        .and_then(|s| serde_json::to_value(s).ok())
        .and_then(|v| LabelSelector::from_value(&v).ok())
        .unwrap_or_else(LabelSelector::nothing)
}

/// A selector over the pods of some namespaces, as affinity terms have it.
#[derive(Debug)]
pub(crate) struct PodTerm {
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
    labels: LabelSelector,
    pub(crate) topology_key: String,
}

impl PodTerm {
    /// The term of a pod.
    pub(crate) fn new(term: &PodAffinityTerm, owner: &Pod) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(owner.namespace().unwrap_or_default());
        }
        Self {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|s| selector(Some(s))),
            labels: with_label_keys(term, owner),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether it is about a pod. `namespace_labels` tells a namespace's labels.
    pub(crate) fn matches(&self, pod: &Pod, namespace_labels: &dyn Fn(&str) -> BTreeMap<String, String>) -> bool {
        let namespace = pod.namespace().unwrap_or_default();
        let here = self.namespaces.contains(&namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| {
                let labels = namespace_labels(&namespace);
                s.matches(|k| labels.get(k).map(String::as_str))
            });
        here && self.labels.matches(|k| pod.labels().get(k).map(String::as_str))
    }
}

/// The selector of a term, with `matchLabelKeys` and `mismatchLabelKeys` filled in from the pod's labels.
fn with_label_keys(term: &PodAffinityTerm, owner: &Pod) -> LabelSelector {
    let Some(mut wire) = term.label_selector.clone() else { return LabelSelector::nothing() };
    let expressions = wire.match_expressions.get_or_insert_default();
    for (keys, operator) in [(&term.match_label_keys, "In"), (&term.mismatch_label_keys, "NotIn")] {
        for key in keys.iter().flatten() {
            if let Some(value) = owner.labels().get(key) {
                expressions.push(metav1::LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.into(),
                    values: Some(vec![value.clone()]),
                });
            }
        }
    }
    selector(Some(&wire))
}
