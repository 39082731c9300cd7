//! Protection of storage in use: a claim that is deleted stays while a pod on a node uses it, a volume while it is bound.
//!
//! The API server gives new claims and volumes a finalizer; these controllers take it away when a deleted one is no
//! longer used (and give it to those that lack it).

use crate::context::{Context, each, unless_changed};
use crate::{finalizers, pods};
use edge_client::claims::claim_name;
use edge_client::{
    Api, Change, Error, Key, ListParams, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// What is to be done about a finalizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// It is as it should be.
    Nothing,
    /// The object lacks it.
    Add,
    /// As soon as nobody uses the object.
    Remove,
}

/// What an object needs, going by whether it has been deleted.
pub(crate) fn need(object: &impl ResourceExt, finalizer: &str) -> Need {
    match (object.meta().deletion_timestamp.is_some(), finalizers::has(object, finalizer)) {
        (false, false) => Need::Add,
        (true, true) => Need::Remove,
        _ => Need::Nothing,
    }
}

/// Runs the controller of claims.
pub(crate) async fn run_claims(context: Context) {
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let pod_informer = context.informers.of::<Pod>();
    let queue = WorkQueue::<Key>::new();
    claims.synced().await;
    pod_informer.synced().await;
    let watch_claims = each(&claims, |change| {
        if let Change::Applied { new, .. } = change
            && need(&**new, CLAIM_FINALIZER) != Need::Nothing
        {
            queue.add(Key::of(&**new));
        }
    });
    let watch_pods = each(&pod_informer, |change| {
        // a pod that runs on a node frees nothing
        if matches!(change, Change::Deleted(_)) || pods::is_finished(change.object()) {
            let pod = change.object();
            for name in used_claims(pod) {
                queue.add(Key::new(pod.namespace().unwrap_or_default(), name));
            }
        }
    });
    let work = run_workers("pvc-protection", queue.clone(), 1, |key: Key| {
        let (claim, known) = (claims.get_key(&key), pod_informer.list_namespace(&key.namespace));
        let client = context.client.clone();
        async move {
            let Some(claim) = claim else { return Ok::<_, Error>(Outcome::Done) };
            let patch = match need(&*claim, CLAIM_FINALIZER) {
                Need::Nothing => return Ok(Outcome::Done),
                Need::Add => finalizers::with(&*claim, CLAIM_FINALIZER),
                Need::Remove => {
                    if let Some(user) = known.iter().find(|p| uses(p, &claim)) {
                        tracing::debug!(claim = %key, pod = user.name_any(), "the claim stays while it is used");
                        return Ok(Outcome::Done);
                    }
                    // the cache may not have seen the newest pods yet, so those are asked for
                    let live: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
                    if let Some(user) = live.list(&ListParams::default()).await?.iter().find(|p| uses(p, &claim)) {
                        tracing::debug!(claim = %key, pod = user.name_any(), "the claim stays: the API knows of a user");
                        return Ok(Outcome::Done);
                    }
                    finalizers::without(&*claim, CLAIM_FINALIZER)
                }
            };
            let api: Api<PersistentVolumeClaim> = Api::namespaced(client, &key.namespace);
            unless_changed(api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
            Ok(Outcome::Done)
        }
    });
    tokio::join!(watch_claims, watch_pods, work);
}

/// Runs the controller of volumes.
pub(crate) async fn run_volumes(context: Context) {
    let volumes = context.informers.of::<PersistentVolume>();
    let queue = WorkQueue::<String>::new();
    volumes.synced().await;
    let watch = each(&volumes, |change| {
        if let Change::Applied { new, .. } = change
            && need(&**new, VOLUME_FINALIZER) != Need::Nothing
        {
            queue.add(new.name_any());
        }
    });
    let work = run_workers("pv-protection", queue.clone(), 1, |name: String| {
        let (volume, client) = (volumes.get("", &name), context.client.clone());
        async move {
            let Some(volume) = volume else { return Ok::<_, Error>(Outcome::Done) };
            let patch = match need(&*volume, VOLUME_FINALIZER) {
                Need::Add => finalizers::with(&*volume, VOLUME_FINALIZER),
                Need::Remove if !is_bound(&volume) => finalizers::without(&*volume, VOLUME_FINALIZER),
                Need::Remove | Need::Nothing => return Ok(Outcome::Done),
            };
            let api: Api<PersistentVolume> = Api::all(client);
            unless_changed(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
            Ok(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

fn is_bound(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

fn volumes_of(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten())
}

fn used_claims(pod: &Pod) -> Vec<String> {
    volumes_of(pod).filter_map(|v| claim_name(pod, v)).collect()
}

/// Whether a pod keeps a claim. One without a node does not: no node starts a pod whose claim is being deleted. A finished
/// one does, as long as it exists.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let made_for = |p: &Pod| {
        crate::owners::controller_of(claim).is_some_and(|r| Some(&r.uid) == p.metadata.uid.as_ref())
            && !(p.metadata.deletion_timestamp.is_some() && p.metadata.deletion_grace_period_seconds == Some(0))
    };
    pods::node(pod).is_some()
        && volumes_of(pod).any(|v| {
            claim_name(pod, v) == claim.metadata.name && (v.persistent_volume_claim.is_some() || made_for(pod))
        })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_a_finalizer_needs() {
        let object = |deleted: bool, finalizers: Value| -> PersistentVolume {
            let at = if deleted { json!("2026-01-01T00:00:00Z") } else { Value::Null };
            serde_json::from_value(json!({"metadata": {"deletionTimestamp": at, "finalizers": finalizers}})).unwrap()
        };
        for (deleted, finalizers, want) in [
            (false, json!([]), Need::Add),
            (false, json!([VOLUME_FINALIZER]), Need::Nothing),
            (true, json!([VOLUME_FINALIZER, "x/y"]), Need::Remove),
            (true, json!(["x/y"]), Need::Nothing),
        ] {
            assert_eq!(need(&object(deleted, finalizers.clone()), VOLUME_FINALIZER), want, "{deleted} {finalizers}");
        }
    }

    #[test]
    fn who_uses_a_claim() {
        let claim = |name: &str, owner: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owner}})).unwrap()
        };
        let pod = |node: Value, volume: Value, phase: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "status": {"phase": phase},
                "spec": {"nodeName": node, "containers": [], "volumes": [volume]}}))
            .unwrap()
        };
        let by_name = json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}});
        let ephemeral = json!({"name": "v", "ephemeral": {}});
        let of_pod = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        for (name, owner, node, volume, phase, want) in [
            ("data", json!([]), json!("n"), &by_name, "Running", true),
            ("data", json!([]), json!("n"), &by_name, "Succeeded", true),
            ("data", json!([]), Value::Null, &by_name, "Pending", false),
            ("other", json!([]), json!("n"), &by_name, "Running", false),
            ("p-v", of_pod, json!("n"), &ephemeral, "Running", true),
            ("p-v", json!([]), json!("n"), &ephemeral, "Running", false),
        ] {
            let p = pod(node, volume.clone(), phase);
            assert_eq!(uses(&p, &claim(name, owner)), want, "{name} {volume} {phase}");
        }
        assert_eq!(used_claims(&pod(json!("n"), ephemeral, "Running")), ["p-v"]);
    }
}
