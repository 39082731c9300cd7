//! Decisions about claims to devices, without any request.

use crate::pods;
use edge_client::ResourceExt;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

/// On a claim that was made for a pod: for which of the pod's entries.
pub(super) const ENTRY: &str = "resource.kubernetes.io/pod-claim-name";
/// Keeps a claim that has devices; the scheduler puts it there.
pub(super) const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Generated names keep to 63 characters: a dash and five random ones follow.
const LONGEST_BASE: usize = 57;

/// Which claim an entry of a pod is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// It has not been made yet, or nobody has noted its name.
    NotYet,
    /// Somebody has found that the pod does not need it.
    NotNeeded,
    /// This one.
    Claim(String),
}

/// The entries of a pod.
pub(super) fn entries(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|s| s.resource_claims.as_deref()).unwrap_or_default()
}

/// The claim that an entry of a pod stands for.
pub(super) fn named(pod: &Pod, entry: &PodResourceClaim) -> Named {
    if let Some(name) = &entry.resource_claim_name {
        return Named::Claim(name.clone());
    }
    let noted = pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or_default();
    match noted.iter().find(|status| status.name == entry.name) {
        None => Named::NotYet,
        Some(status) => status.resource_claim_name.clone().map_or(Named::NotNeeded, Named::Claim),
    }
}

/// The names of all claims of a pod that are known, the one that the scheduler has made for extended resources included.
pub(crate) fn claim_names(pod: &Pod) -> Vec<String> {
    let mut names: Vec<String> = entries(pod)
        .iter()
        .filter_map(|entry| match named(pod, entry) {
            Named::Claim(name) => Some(name),
            Named::NotYet | Named::NotNeeded => None,
        })
        .collect();
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    names.extend(extended.map(|status| status.resource_claim_name.clone()));
    names
}

/// Whether a pod may still use its claims: it has not ended, and is not deleted before it got to a node.
pub(super) fn needs_claims(pod: &Pod) -> bool {
    !pods::is_finished(pod) && (pod.metadata.deletion_timestamp.is_none() || pods::node(pod).is_some())
}

/// Whether a claim was made for this very pod.
pub(super) fn is_made_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    crate::owners::controller_of_kind::<Pod>(claim).is_some_and(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
}

/// Whether a pod is among those that may use a claim.
pub(crate) fn is_reserved_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    reservations(claim).iter().any(|consumer| Some(&consumer.uid) == pod.metadata.uid.as_ref())
}

/// Those that may use a claim.
pub(super) fn reservations(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default()
}

/// Whether devices have been set aside for a claim.
pub(super) fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|s| s.allocation.is_some())
}

/// The claim that an entry of a pod gets from a template, to be named by the API server.
pub(super) fn claim_from(template: &ResourceClaimTemplate, pod: &Pod, entry: &str) -> ResourceClaim {
    let meta = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(ENTRY.to_owned(), entry.to_owned());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", base_name(&pod.name_any(), entry))),
            namespace: pod.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![crate::owners::controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// Names of pod and entry; both are shortened in proportion, so that something of each remains.
fn base_name(pod: &str, entry: &str) -> String {
    let whole = pod.len() + 1 + entry.len();
    if whole <= LONGEST_BASE {
        return format!("{pod}-{entry}");
    }
    let part = |name: &str| name.get(..name.len() * LONGEST_BASE / whole).unwrap_or_default().to_owned();
    format!("{}-{}", part(pod), part(entry))
}

/// What is to be done about a claim.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ClaimStep {
    /// The merge patch of the status.
    pub(super) status: Option<Value>,
    /// Whether nothing keeps the claim any more.
    pub(super) release: bool,
    /// Whether the claim was made for a pod that does not need it any more.
    pub(super) delete: bool,
}

/// Decides about a claim. `valid` are those of its users that still need it, `owner` is the pod for which it was made, if that is known.
pub(super) fn claim(claim: &ResourceClaim, valid: &[ResourceClaimConsumerReference], owner: Option<&Pod>) -> ClaimStep {
    let mut step = ClaimStep::default();
    let unused = valid.is_empty();
    let kept = crate::finalizers::has(claim, FINALIZER);
    let frees = unused && kept;
    if valid.len() < reservations(claim).len() {
        let mut status = json!({"reservedFor": if unused { Value::Null } else { json!(valid) }});
        if frees {
            status["allocation"] = Value::Null;
            status["devices"] = Value::Null;
        }
        step.status = Some(status);
        step.release = frees;
    } else if frees && claim.metadata.deletion_timestamp.is_some() {
        step.status = is_allocated(claim).then(|| json!({"allocation": null, "devices": null}));
        step.release = true;
    }
    step.delete = unused
        && claim.metadata.deletion_timestamp.is_none()
        && owner.is_some_and(|pod| is_made_for(claim, pod) && !needs_claims(pod));
    step
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn pod(with: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [],
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}, {"name": "shared", "resourceClaimName": "s"}]},
            "status": {}});
        for (section, fields) in with.as_object().unwrap() {
            pod[section].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        }
        serde_json::from_value(pod).unwrap()
    }

    fn device_claim(with: Value) -> ResourceClaim {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "c",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]},
            "spec": {}, "status": {}});
        for (section, fields) in with.as_object().unwrap() {
            claim[section].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        }
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn which_claims_a_pod_has() {
        let noted = |name: Value| {
            pod(json!({"status": {"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": name}]}}))
        };
        for (pod, want, all) in [
            (pod(json!({})), Named::NotYet, vec!["s"]),
            (noted(Value::Null), Named::NotNeeded, vec!["s"]),
            (noted(json!("p-gpu-abcde")), Named::Claim("p-gpu-abcde".into()), vec!["p-gpu-abcde", "s"]),
        ] {
            assert_eq!(named(&pod, &entries(&pod)[0]), want);
            assert_eq!(claim_names(&pod), all);
        }
        let extended =
            json!({"status": {"extendedResourceClaimStatus": {"resourceClaimName": "x", "requestMappings": []}}});
        assert_eq!(claim_names(&pod(extended)), ["s", "x"]);
    }

    #[test]
    fn who_needs_claims() {
        let deleted = "2026-01-01T00:00:00Z";
        for (with, want) in [
            (json!({}), true),
            (json!({"status": {"phase": "Running"}}), true),
            (json!({"status": {"phase": "Failed"}}), false),
            (json!({"metadata": {"deletionTimestamp": deleted}}), false),
            (json!({"metadata": {"deletionTimestamp": deleted}, "spec": {"nodeName": "n"}}), true),
        ] {
            assert_eq!(needs_claims(&pod(with.clone())), want, "{with}");
        }
    }

    #[test]
    fn a_claim_is_made_after_its_template() {
        let template: ResourceClaimTemplate = serde_json::from_value(json!({"metadata": {"name": "t"}, "spec": {
            "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
            "spec": {"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "gpu"}}]}}}}))
        .unwrap();
        let pod = pod(json!({}));
        let made = claim_from(&template, &pod, "gpu");
        assert_eq!(made.metadata.generate_name.as_deref(), Some("p-gpu-"));
        assert_eq!((&*made.labels()["a"], &*made.annotations()["c"], &*made.annotations()[ENTRY]), ("b", "d", "gpu"));
        assert!(is_made_for(&made, &pod));
        assert_eq!(made.spec, template.spec.spec);
    }

    #[test]
    fn long_names_are_shortened_in_proportion() {
        assert_eq!(base_name("pod", "gpu"), "pod-gpu");
        let long = base_name(&"p".repeat(200), &"g".repeat(50));
        assert_eq!(long.matches('p').count(), 200 * 57 / 251);
        assert_eq!(long.matches('g').count(), 50 * 57 / 251);
        assert!(base_name(&"p".repeat(253), &"g".repeat(63)).len() <= LONGEST_BASE);
    }

    #[test]
    fn claims_lose_their_users_then_their_devices_then_go() {
        let user = |uid: &str| -> ResourceClaimConsumerReference {
            serde_json::from_value(json!({"resource": "pods", "name": uid, "uid": uid})).unwrap()
        };
        let reserved = json!({"reservedFor": [user("u"), user("v")], "allocation": {}});
        let kept = json!({"finalizers": [FINALIZER]});
        let deleted = json!({"finalizers": [FINALIZER], "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let lives = pod(json!({}));
        let ended = pod(json!({"status": {"phase": "Succeeded"}}));
        let younger = pod(json!({"metadata": {"uid": "w"}, "status": {"phase": "Succeeded"}}));
        let free = json!({"reservedFor": null, "allocation": null, "devices": null});
        for (what, with, valid, owner, want) in [
            (
                "all need it",
                json!({"status": reserved, "metadata": kept}),
                vec![user("u"), user("v")],
                Some(&lives),
                (None, false, false),
            ),
            (
                "one has gone",
                json!({"status": reserved, "metadata": kept}),
                vec![user("u")],
                Some(&lives),
                (Some(json!({"reservedFor": [user("u")]})), false, false),
            ),
            (
                "all have gone",
                json!({"status": reserved, "metadata": kept}),
                vec![],
                None,
                (Some(free.clone()), true, false),
            ),
            (
                "its pod has ended",
                json!({"status": reserved, "metadata": kept}),
                vec![],
                Some(&ended),
                (Some(free), true, true),
            ),
            ("that is another pod", json!({"metadata": kept}), vec![], Some(&younger), (None, false, false)),
            (
                "somebody else allocated it",
                json!({"status": reserved}),
                vec![],
                None,
                (Some(json!({"reservedFor": null})), false, false),
            ),
            (
                "deleted without users",
                json!({"status": {"allocation": {}}, "metadata": deleted}),
                vec![],
                Some(&ended),
                (Some(json!({"allocation": null, "devices": null})), true, false),
            ),
            ("deleted, without devices", json!({"metadata": deleted}), vec![], None, (None, true, false)),
            (
                "deleted, in use",
                json!({"status": reserved, "metadata": deleted}),
                vec![user("u"), user("v")],
                None,
                (None, false, false),
            ),
            (
                "allocated, unused, not deleted",
                json!({"status": {"allocation": {}}, "metadata": kept}),
                vec![],
                Some(&lives),
                (None, false, false),
            ),
        ] {
            let (status, release, delete) = want;
            assert_eq!(claim(&device_claim(with), &valid, owner), ClaimStep { status, release, delete }, "{what}");
        }
    }
}
