//! What is to be done about a claim or a volume, from what the caches know. Rules of Kubernetes' `persistentvolume` controller.

use edge_client::claims::{
    BOUND_BY_CONTROLLER, NO_PROVISIONER, PROVISIONED_BY, SELECTED_NODE, best_match, class_of_claim, is_for,
    is_fully_bound, satisfies, volume_name, waits_for_consumer,
};
use edge_client::{EventType, ResourceExt};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use std::sync::Arc;

/// What a claim needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ClaimStep {
    /// It stays as it is.
    Nothing,
    /// It is pending, for this reason.
    Wait(Note),
    /// Both directions of the binding are to be as this says.
    Bind(Arc<PersistentVolume>),
    /// Its provisioner is to make a volume.
    Provision,
    /// Its volume is no longer its own.
    Lose(Note),
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) kind: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Note {
    pub(super) fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind: EventType::Normal, reason, message: message.into() }
    }

    pub(super) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind: EventType::Warning, reason, message: message.into() }
    }
}

/// Decides about a claim. `volumes` are all of the cluster.
pub(super) fn claim(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    class: Option<&StorageClass>,
) -> ClaimStep {
    let named = volume_name(claim);
    let find = || volumes.iter().find(|v| v.metadata.name.as_deref() == Some(named)).cloned();
    if is_fully_bound(claim) || phase(claim) == "Lost" {
        return bound_claim(claim, find());
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return ClaimStep::Nothing;
    }
    if named.is_empty() { unbound_claim(claim, volumes, class) } else { claim_that_names(claim, find()) }
}

fn unbound_claim(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    class: Option<&StorageClass>,
) -> ClaimStep {
    let selected = claim.annotations().contains_key(SELECTED_NODE);
    let waits = class.is_some_and(waits_for_consumer) && !selected;
    if let Some(volume) = best_match(claim, volumes, None, waits, |_| false) {
        return ClaimStep::Bind(volume);
    }
    if waits {
        return ClaimStep::Wait(Note::normal(
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding",
        ));
    }
    match (class_of_claim(claim), class) {
        ("", _) => ClaimStep::Wait(Note::normal(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        )),
        (name, None) => ClaimStep::Wait(Note::warning(
            "ProvisioningFailed",
            format!("storageclass.storage.k8s.io \"{name}\" not found"),
        )),
        (_, Some(class)) if class.provisioner == NO_PROVISIONER => ClaimStep::Wait(Note::normal(
            "FailedBinding",
            "no volume plugin matched name: kubernetes.io/no-provisioner",
        )),
        (_, Some(_)) => ClaimStep::Provision,
    }
}

/// The user, or the scheduler's choice, has named a volume.
fn claim_that_names(claim: &PersistentVolumeClaim, volume: Option<Arc<PersistentVolume>>) -> ClaimStep {
    let named = volume_name(claim);
    let Some(volume) = volume else {
        return ClaimStep::Wait(Note::warning("FailedBinding", format!("persistentvolume \"{named}\" not found")));
    };
    let reserved = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
    match satisfies(&volume, claim) {
        _ if reserved && is_for(&volume, claim) => ClaimStep::Bind(volume),
        _ if reserved => ClaimStep::Wait(Note::warning(
            "FailedBinding",
            format!("volume \"{named}\" already bound to a different claim."),
        )),
        Ok(()) => ClaimStep::Bind(volume),
        Err(why) => ClaimStep::Wait(Note::warning(
            "VolumeMismatch",
            format!("Cannot bind to requested volume \"{named}\": {why}"),
        )),
    }
}

fn bound_claim(claim: &PersistentVolumeClaim, volume: Option<Arc<PersistentVolume>>) -> ClaimStep {
    let lost = |reason, message: &str| {
        let known = phase(claim) == "Lost";
        if known { ClaimStep::Nothing } else { ClaimStep::Lose(Note::warning(reason, message)) }
    };
    if volume_name(claim).is_empty() {
        return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!");
    }
    match volume {
        None => lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
        Some(volume) => {
            let reserved = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
            if !reserved || is_for(&volume, claim) {
                ClaimStep::Bind(volume)
            } else {
                lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
            }
        }
    }
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// What a volume needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum VolumeStep {
    /// Its phase is to be this.
    Phase(&'static str),
    /// Its claim is still to be told of it.
    TellClaim,
    /// Its claim is gone: it is to be released, and what is on it to be dealt with as its policy says.
    Reclaim,
    /// Its claim has another volume: it is to be free again.
    Unbind,
}

/// Decides about a volume; `claim` is the one that it names, if that exists.
pub(super) fn volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return VolumeStep::Phase("Available");
    };
    if reference.uid.is_none() {
        // reserved by its maker; the claim may come, and binds it
        return VolumeStep::Phase("Available");
    }
    let Some(claim) = claim.filter(|c| c.metadata.uid == reference.uid) else { return VolumeStep::Reclaim };
    let named = volume_name(claim);
    if named.is_empty() {
        return VolumeStep::TellClaim;
    }
    if volume.metadata.name.as_deref() == Some(named) {
        return VolumeStep::Phase("Bound");
    }
    let spec = volume.spec.as_ref();
    let deletes = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    if deletes && volume.annotations().contains_key(PROVISIONED_BY) {
        // made for this claim, which took another one
        return VolumeStep::Reclaim;
    }
    VolumeStep::Unbind
}

/// Whether a volume's binding was its controller's choice, so that all of it can be undone.
pub(super) fn chosen_by_controller(volume: &PersistentVolume) -> bool {
    volume.annotations().contains_key(BOUND_BY_CONTROLLER)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use edge_client::claims::BIND_COMPLETED;
    use serde_json::{Value, json};

    fn pv(name: &str, claim_ref: Value) -> Arc<PersistentVolume> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name}, "status": {"phase": "Available"}, "spec": {
            "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "c",
            "claimRef": claim_ref}}))
            .unwrap(),
        )
    }

    fn pvc(volume: &str, annotations: Value) -> PersistentVolumeClaim {
        serde_json::from_value(
            json!({"metadata": {"name": "data", "namespace": "ns", "uid": "u", "annotations": annotations},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "c", "volumeName": volume,
                "resources": {"requests": {"storage": "1Gi"}}}}),
        )
        .unwrap()
    }

    fn class(mode: &str, provisioner: &str) -> StorageClass {
        serde_json::from_value(
            json!({"metadata": {"name": "c"}, "provisioner": provisioner, "volumeBindingMode": mode}),
        )
        .unwrap()
    }

    fn own() -> Value {
        json!({"namespace": "ns", "name": "data", "uid": "u"})
    }

    fn reason(step: ClaimStep) -> &'static str {
        match step {
            ClaimStep::Nothing => "nothing",
            ClaimStep::Wait(note) | ClaimStep::Lose(note) => note.reason,
            ClaimStep::Bind(_) => "bind",
            ClaimStep::Provision => "provision",
        }
    }

    #[test]
    fn claims_that_are_not_bound() {
        let (now, later) = (class("Immediate", "x/y"), class("WaitForFirstConsumer", "x/y"));
        let by_hand = class("Immediate", NO_PROVISIONER);
        let free = [pv("v", Value::Null)];
        let selected = json!({SELECTED_NODE: "a"});
        for (volumes, annotations, class, want) in [
            (&free[..], json!({}), Some(&now), "bind"),
            (&[], json!({}), Some(&now), "provision"),
            (&[], json!({}), Some(&by_hand), "FailedBinding"),
            (&[], json!({}), None, "ProvisioningFailed"),
            (&free, json!({}), Some(&later), "WaitForFirstConsumer"),
            (&[], selected, Some(&later), "provision"),
        ] {
            assert_eq!(reason(claim(&pvc("", annotations), volumes, class)), want);
        }
    }

    #[test]
    fn claims_that_name_a_volume() {
        let others = json!({"namespace": "ns", "name": "other", "uid": "o"});
        for (claim_ref, want) in [(Value::Null, "bind"), (own(), "bind"), (others, "FailedBinding")] {
            assert_eq!(reason(claim(&pvc("v", json!({})), &[pv("v", claim_ref)], None)), want);
        }
        assert_eq!(reason(claim(&pvc("v", json!({})), &[], None)), "FailedBinding");
        let mut too_large = pvc("v", json!({}));
        let resources = too_large.spec.as_mut().unwrap().resources.as_mut().unwrap();
        resources.requests.as_mut().unwrap().get_mut("storage").unwrap().0 = "3Gi".into();
        assert_eq!(reason(claim(&too_large, &[pv("v", Value::Null)], None)), "VolumeMismatch");
    }

    #[test]
    fn bound_claims_stay_or_are_lost() {
        let done = json!({BIND_COMPLETED: "yes"});
        let anothers = json!({"namespace": "ns", "name": "data", "uid": "younger"});
        assert_eq!(reason(claim(&pvc("v", done.clone()), &[pv("v", own())], None)), "bind");
        assert_eq!(reason(claim(&pvc("v", done.clone()), &[pv("v", anothers)], None)), "ClaimMisbound");
        assert_eq!(reason(claim(&pvc("v", done.clone()), &[], None)), "ClaimLost");
        let mut lost = pvc("v", done);
        lost.status = serde_json::from_value(json!({"phase": "Lost"})).unwrap();
        assert_eq!(reason(claim(&lost, &[], None)), "nothing", "it is said once");
        assert_eq!(reason(claim(&lost, &[pv("v", own())], None)), "bind", "the volume came back");
    }

    #[test]
    fn volumes() {
        let bound = pvc("v", json!({}));
        let elsewhere = pvc("w", json!({}));
        let young = json!({"namespace": "ns", "name": "data", "uid": "younger"});
        let reserved = json!({"namespace": "ns", "name": "data"});
        let step = |claim_ref, claim: Option<&PersistentVolumeClaim>| volume(&pv("v", claim_ref), claim);
        assert_eq!(step(Value::Null, None), VolumeStep::Phase("Available"));
        assert_eq!(step(reserved, None), VolumeStep::Phase("Available"));
        assert_eq!(step(own(), Some(&bound)), VolumeStep::Phase("Bound"));
        assert_eq!(step(own(), Some(&pvc("", json!({})))), VolumeStep::TellClaim);
        assert_eq!(step(own(), None), VolumeStep::Reclaim);
        assert_eq!(step(young, Some(&bound)), VolumeStep::Reclaim, "that claim has gone; this one is new");
        assert_eq!(step(own(), Some(&elsewhere)), VolumeStep::Unbind);
    }
}
