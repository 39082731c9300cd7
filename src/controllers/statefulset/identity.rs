//! What makes the pods of a StatefulSet individuals: their number, and by that their name, labels and claims.

use crate::history::POD_LABEL;
use crate::owners::controller_reference;
use crate::pod_control::pod_of;
use edge_client::{ObjectMeta, ResourceExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use std::collections::BTreeMap;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The number at the end of a pod's name, if the rest is the set's name.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let digits = name.strip_prefix(set.metadata.name.as_deref()?)?.strip_prefix('-')?;
    // exactly as it would be written: no sign, no leading zeros
    digits.parse().ok().filter(|n: &i32| *n >= 0 && n.to_string() == digits)
}

/// The first number.
pub(super) fn start(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.ordinals.as_ref()).and_then(|o| o.start).unwrap_or(0)
}

pub(super) fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0)
}

/// Whether a number is one of those that should be there.
pub(super) fn is_wanted(set: &StatefulSet, ordinal: i32) -> bool {
    (start(set)..start(set).saturating_add(replicas(set))).contains(&ordinal)
}

pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name_any())
}

/// The labels that tell who a pod is.
pub(super) fn labels(set: &StatefulSet, ordinal: i32) -> BTreeMap<String, String> {
    [(POD_NAME.to_owned(), pod_name(set, ordinal)), (POD_INDEX.to_owned(), ordinal.to_string())].into()
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

fn claim_name(template: &PersistentVolumeClaim, set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", template.name_any(), set.name_any())
}

/// The names of the claims of a pod.
pub(super) fn claim_names(set: &StatefulSet, ordinal: i32) -> Vec<String> {
    templates(set).iter().map(|t| claim_name(t, set, ordinal)).collect()
}

/// The claims of a pod.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selected = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    let claim = |template: &PersistentVolumeClaim| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selected.clone());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(template, set, ordinal)),
                namespace: set.namespace(),
                labels: Some(labels),
                annotations: template.metadata.annotations.clone(),
                finalizers: template.metadata.finalizers.clone(),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    templates(set).iter().map(claim).collect()
}

/// The pod with a number, out of a template.
pub(super) fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pod_of(template, set);
    let name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let own = pod.metadata.labels.get_or_insert_default();
    own.extend(labels(set, ordinal));
    own.insert(POD_LABEL.into(), revision.into());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|s| !s.is_empty());
    let mut volumes: Vec<Volume> = templates(set)
        .iter()
        .map(|template| Volume {
            name: template.name_any(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(template, set, ordinal),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    let others = spec.volumes.take().unwrap_or_default();
    volumes.extend(others.into_iter().filter(|v| !templates(set).iter().any(|t| t.name_any() == v.name)));
    spec.volumes = Some(volumes).filter(|v| !v.is_empty());
    pod
}

/// Whether a pod's labels tell who it is.
pub(super) fn is_labelled(set: &StatefulSet, ordinal: i32, pod: &Pod) -> bool {
    labels(set, ordinal).iter().all(|(k, v)| pod.labels().get(k) == Some(v))
}

/// Whether claims go with the set, and whether they go when there are fewer replicas.
fn retention(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.as_ref().and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |word: Option<&String>| word.is_some_and(|w| w == "Delete");
    policy.map_or((false, false), |p| (deletes(p.when_deleted.as_ref()), deletes(p.when_scaled.as_ref())))
}

fn is_about(reference: &OwnerReference, kind: &str, name: &str) -> bool {
    reference.kind == kind && reference.name == name
}

/// Whether a claim belongs to an earlier pod of the same name, with which it will go.
pub(super) fn is_stale(set: &StatefulSet, ordinal: i32, claim: &PersistentVolumeClaim) -> bool {
    let name = pod_name(set, ordinal);
    retention(set).1 && claim.owner_references().iter().any(|r| is_about(r, "Pod", &name))
}

/// The owners that a claim should have after the set's retention policy; `None` when it has them, or is somebody else's.
pub(super) fn owners(
    set: &StatefulSet,
    pod: &Pod,
    ordinal: i32,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let known = claim.owner_references();
    let (set_name, pod_name) = (set.name_any(), pod.name_any());
    let of_set = |r: &OwnerReference| is_about(r, "StatefulSet", &set_name);
    let of_pod = |r: &OwnerReference| is_about(r, "Pod", &pod_name);
    let stale = |r: &OwnerReference| {
        (of_set(r) && Some(&r.uid) != set.metadata.uid.as_ref())
            || (of_pod(r) && Some(&r.uid) != pod.metadata.uid.as_ref())
    };
    if known.iter().any(stale) {
        // an earlier set's or pod's: the garbage collector will see to it
        return None;
    }
    let others: Vec<OwnerReference> = known.iter().filter(|r| !of_set(r) && !of_pod(r)).cloned().collect();
    let (with_set, when_scaled) = retention(set);
    let mut wanted = others.clone();
    let foreign = (with_set || when_scaled) && others.iter().any(|r| r.controller == Some(true));
    if !foreign {
        let condemned = !is_wanted(set, ordinal);
        if when_scaled && condemned {
            wanted.push(controller_reference(pod));
        } else if with_set {
            wanted.push(controller_reference(set));
        }
    }
    let same = |a: &OwnerReference, b: &OwnerReference| a.uid == b.uid && a.controller == b.controller;
    let settled = known.len() == wanted.len() && wanted.iter().all(|w| known.iter().any(|k| same(k, w)));
    (!settled).then_some(wanted)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn set(retention: Value) -> StatefulSet {
        serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "ns", "uid": "set"}, "spec": {
            "replicas": 2, "serviceName": "svc", "selector": {"matchLabels": {"app": "db"}}, "ordinals": {"start": 3},
            "persistentVolumeClaimRetentionPolicy": retention,
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [], "volumes": [
                {"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"x": "y"}}, "spec": {}}]}}))
        .unwrap()
    }

    #[test]
    fn numbers_and_names() {
        let s = set(Value::Null);
        let named = |name: &str| -> Pod { serde_json::from_value(json!({"metadata": {"name": name}})).unwrap() };
        for (name, want) in [
            ("db-3", Some(3)),
            ("db-03", None),
            ("db-", None),
            ("db-x", None),
            ("other-3", None),
            ("db-1-2", None),
            ("db-+1", None),
            ("db-99999999999", None),
        ] {
            assert_eq!(ordinal(&s, &named(name)), want, "{name}");
        }
        assert!(!is_wanted(&s, 2) && is_wanted(&s, 3) && is_wanted(&s, 4) && !is_wanted(&s, 5));
    }

    #[test]
    fn a_pod_with_its_identity_and_claims() {
        let s = set(Value::Null);
        let p = pod(&s, &s.spec.as_ref().unwrap().template, "db-abc", 4);
        assert_eq!(p.metadata.name.as_deref(), Some("db-4"));
        let spec = p.spec.as_ref().unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-4"), Some("svc")));
        assert!(is_labelled(&s, 4, &p) && !is_labelled(&s, 3, &p));
        assert_eq!(p.labels()[POD_LABEL], "db-abc");
        let volumes: Vec<_> = spec
            .volumes
            .as_ref()
            .unwrap()
            .iter()
            .map(|v| (v.name.as_str(), v.persistent_volume_claim.as_ref().map(|c| c.claim_name.as_str())))
            .collect();
        assert_eq!(volumes, [("data", Some("data-db-4")), ("tmp", None)]);
        let claim = &claims(&s, 4)[0];
        assert_eq!(claim.name_any(), "data-db-4");
        assert_eq!((claim.labels()["x"].as_str(), claim.labels()["app"].as_str()), ("y", "db"));
    }

    #[test]
    fn who_owns_a_claim() {
        let reference = |kind: &str, name: &str, uid: &str| json!({"apiVersion": if kind == "Pod" { "v1" } else { "apps/v1" }, "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true});
        let policy = |deleted: &str, scaled: &str| json!({"whenDeleted": deleted, "whenScaled": scaled});
        let (of_set, foreign) = (reference("StatefulSet", "db", "set"), reference("Widget", "w", "w"));
        let of_pod = |n: i32| reference("Pod", &format!("db-{n}"), "pod");
        // (policy, number of the pod, owners that the claim has, owners that it should get; null for no change)
        for (policy, number, has, want) in [
            (policy("Retain", "Retain"), 3, json!([]), Value::Null),
            (policy("Retain", "Retain"), 3, json!([of_set]), json!([])),
            (policy("Delete", "Retain"), 3, json!([]), json!([of_set])),
            (policy("Delete", "Retain"), 3, json!([of_set]), Value::Null),
            (policy("Delete", "Retain"), 9, json!([of_pod(9)]), json!([of_set])),
            (policy("Retain", "Delete"), 3, json!([]), Value::Null),
            (policy("Retain", "Delete"), 9, json!([]), json!([of_pod(9)])),
            (policy("Retain", "Delete"), 3, json!([of_pod(3)]), json!([])),
            (policy("Delete", "Delete"), 3, json!([]), json!([of_set])),
            (policy("Delete", "Delete"), 9, json!([of_set]), json!([of_pod(9)])),
            (policy("Delete", "Delete"), 3, json!([foreign]), Value::Null),
            (policy("Delete", "Delete"), 3, json!([foreign, of_set]), json!([foreign])),
            (policy("Delete", "Retain"), 3, json!([reference("StatefulSet", "db", "earlier")]), Value::Null),
        ] {
            let s = set(policy.clone());
            let p: Pod =
                serde_json::from_value(json!({"metadata": {"name": format!("db-{number}"), "uid": "pod"}})).unwrap();
            let claim: PersistentVolumeClaim =
                serde_json::from_value(json!({"metadata": {"ownerReferences": has}})).unwrap();
            let got = owners(&s, &p, number, &claim).map_or(Value::Null, |o| json!(o));
            assert_eq!(got, want, "{policy} {number} {has}");
        }
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"ownerReferences": [of_pod(3)]}})).unwrap();
        assert!(is_stale(&set(policy("Retain", "Delete")), 3, &claim));
        assert!(
            !is_stale(&set(policy("Retain", "Retain")), 3, &claim)
                && !is_stale(&set(policy("Retain", "Delete")), 4, &claim)
        );
    }
}
