//! Wishes about other pods: label selectors over the pods of some namespaces, in matchable form.

use crate::cluster::{Cluster, Group};
use crate::pod::PodInfo;
use edge_api::selector::LabelSelector;
use edge_client::ResourceExt;
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Labels of a pod or a namespace.
pub(crate) type Labels = BTreeMap<String, String>;

/// A label selector in matchable form; an absent one, and one that cannot be read, matches nothing.
pub(crate) fn selector(selector: Option<&metav1::LabelSelector>) -> LabelSelector {
    selector
        .and_then(|s| serde_json::to_value(s).ok())
        .and_then(|v| LabelSelector::from_value(&v).ok())
        .unwrap_or_else(LabelSelector::nothing)
}

/// Whether labels satisfy a selector.
pub(crate) fn satisfied(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.matches(|k| labels.get(k).map(String::as_str))
}

/// `base`, and requirements that the labels `keys` are (`same`) or are not those of a pod.
pub(crate) fn with_keys(base: &mut metav1::LabelSelector, keys: Option<&Vec<String>>, labels: &Labels, same: bool) {
    for key in keys.into_iter().flatten() {
        if let Some(value) = labels.get(key) {
            base.match_expressions.get_or_insert_default().push(metav1::LabelSelectorRequirement {
                key: key.clone(),
                operator: if same { "In" } else { "NotIn" }.into(),
                values: Some(vec![value.clone()]),
            });
        }
    }
}

/// One wish: the pods that a selector finds in some namespaces, near in the sense of a topology key.
#[derive(Debug)]
pub(crate) struct Term {
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
    labels: LabelSelector,
    pub(crate) topology_key: String,
    /// How much it counts; 0 for what is required.
    pub(crate) weight: i64,
}

impl Term {
    fn new(term: &PodAffinityTerm, owner: &Pod, weight: i64) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(owner.namespace().unwrap_or_default());
        }
        let labels = term.label_selector.clone().map(|mut wire| {
            with_keys(&mut wire, term.match_label_keys.as_ref(), owner.labels(), true);
            with_keys(&mut wire, term.mismatch_label_keys.as_ref(), owner.labels(), false);
            wire
        });
        Self {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|s| selector(Some(s))),
            labels: selector(labels.as_ref()),
            topology_key: term.topology_key.clone(),
            weight,
        }
    }

    /// Whether it is about pods of a namespace (with its labels) that have these labels.
    pub(crate) fn matches(&self, namespace: &str, namespace_labels: &dyn Fn(&str) -> Labels, labels: &Labels) -> bool {
        satisfied(&self.labels, labels)
            && (self.namespaces.iter().any(|n| n == namespace)
                || self.namespace_selector.as_ref().is_some_and(|s| satisfied(s, &namespace_labels(namespace))))
    }

    /// The groups of pods that it is about.
    pub(crate) fn groups<'a>(
        &'a self,
        cluster: &'a Cluster,
        namespace_labels: &'a dyn Fn(&str) -> Labels,
    ) -> Box<dyn Iterator<Item = &'a Group> + 'a> {
        let groups = cluster.groups();
        let matches = move |g: &&Group| self.matches(&g.look.namespace, namespace_labels, &g.look.labels);
        if self.namespace_selector.is_some() {
            return Box::new(groups.all().filter(matches));
        }
        Box::new(self.namespaces.iter().flat_map(|n| groups.of_namespace(n)).filter(matches))
    }

    /// Whether it is about a pod.
    pub(crate) fn is_about(&self, pod: &PodInfo, namespace_labels: &dyn Fn(&str) -> Labels) -> bool {
        self.matches(&pod.look.namespace, namespace_labels, &pod.look.labels)
    }
}

/// The wishes of a pod about other pods.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    /// Near these it must be.
    pub(crate) near: Vec<Term>,
    /// Near these it must not be.
    pub(crate) apart: Vec<Term>,
    /// Near these it would rather be.
    pub(crate) rather_near: Vec<Term>,
    /// Near these it would rather not be.
    pub(crate) rather_apart: Vec<Term>,
}

impl Terms {
    /// Those of a pod; `None`: it has none.
    pub(crate) fn of(pod: &Pod) -> Option<Arc<Self>> {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
        let (near, apart) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
        if near.is_none() && apart.is_none() {
            return None;
        }
        let required = |list: Option<&Vec<PodAffinityTerm>>| -> Vec<Term> {
            list.into_iter().flatten().map(|t| Term::new(t, pod, 0)).collect()
        };
        let preferred = |list: Option<&Vec<WeightedPodAffinityTerm>>| -> Vec<Term> {
            list.into_iter().flatten().map(|t| Term::new(&t.pod_affinity_term, pod, i64::from(t.weight))).collect()
        };
        Some(Arc::new(Self {
            near: required(near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            apart: required(apart.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            rather_near: preferred(near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())),
            rather_apart: preferred(
                apart.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
        }))
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Term> {
        self.near.iter().chain(&self.apart).chain(&self.rather_near).chain(&self.rather_apart)
    }
}
