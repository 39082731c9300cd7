//! Protection of classes of volume attributes: one that is deleted stays while a claim or a volume has it, or is to get it.

use crate::context::{Context, unless_changed};
use crate::finalizers;
use crate::protection::{Need, need};
use edge_client::{Api, Change, Error, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;

const FINALIZER: &str = "kubernetes.io/vac-protection";

pub(crate) async fn run(context: Context) {
    let classes = context.informers.of::<VolumeAttributesClass>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let queue = WorkQueue::<String>::new();
    let (mut class_changes, mut claim_changes) = (classes.subscribe(), claims.subscribe());
    let mut volume_changes = volumes.subscribe();
    classes.synced().await;
    claims.synced().await;
    volumes.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = class_changes.recv() => queue.add(change.object().name_any()),
                Some(change) = claim_changes.recv() => let_go(&change, of_claim).for_each(|class| queue.add(class)),
                Some(change) = volume_changes.recv() => let_go(&change, of_volume).for_each(|class| queue.add(class)),
                else => return,
            }
        }
    };
    let work = run_workers("volumeattributesclass-protection", queue.clone(), 1, |name: String| {
        let class = classes.get("", &name);
        let is_used = || {
            claims.list().iter().any(|claim| of_claim(claim).contains(&name))
                || volumes.list().iter().any(|volume| of_volume(volume).contains(&name))
        };
        let patch = class.as_deref().and_then(|class| match need(class, FINALIZER) {
            Need::Add => Some(finalizers::with(class, FINALIZER)),
            Need::Remove if !is_used() => Some(finalizers::without(class, FINALIZER)),
            Need::Remove | Need::Nothing => None,
        });
        let api: Api<VolumeAttributesClass> = Api::all(context.client.clone());
        async move {
            if let Some(patch) = patch {
                unless_changed(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
            }
            Ok::<_, Error>(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

/// The classes that an object had before a change and has no longer.
fn let_go<K>(change: &Change<K>, classes_of: fn(&K) -> Vec<String>) -> impl Iterator<Item = String> + use<K> {
    let (before, after) = match change {
        Change::Applied { old, new } => (old.as_deref().map(classes_of).unwrap_or_default(), classes_of(new)),
        Change::Deleted(last) => (classes_of(last), Vec::new()),
    };
    before.into_iter().filter(move |class| !after.contains(class))
}

/// The classes that a claim wants, has, and is on its way to.
fn of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone());
    let has = status.and_then(|s| s.current_volume_attributes_class_name.clone());
    let target = status.and_then(|s| s.modify_volume_status.as_ref());
    let target = target.and_then(|s| s.target_volume_attributes_class_name.clone());
    [wanted, has, target].into_iter().flatten().filter(|name| !name.is_empty()).collect()
}

fn of_volume(volume: &PersistentVolume) -> Vec<String> {
    let class = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone());
    class.into_iter().filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    #[test]
    fn which_classes_are_let_go() {
        let claim = |wanted: Value, has: Value, target: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {"volumeAttributesClassName": wanted},
                "status": {"currentVolumeAttributesClassName": has, "modifyVolumeStatus": {"status": "Pending", "targetVolumeAttributesClassName": target}}}))
            .unwrap()
        };
        assert_eq!(of_claim(&claim(json!("gold"), json!("silver"), json!("gold"))), ["gold", "silver", "gold"]);
        assert!(of_claim(&claim(Value::Null, json!(""), Value::Null)).is_empty());
        let (moving, moved) =
            (claim(json!("gold"), json!("silver"), json!("gold")), claim(json!("gold"), json!("gold"), Value::Null));
        let change = Change::Applied { old: Some(Arc::new(moving.clone())), new: Arc::new(moved) };
        assert_eq!(let_go(&change, of_claim).collect::<Vec<_>>(), ["silver"]);
        assert_eq!(let_go(&Change::Applied { old: None, new: Arc::new(moving.clone()) }, of_claim).count(), 0);
        assert_eq!(let_go(&Change::Deleted(Arc::new(moving)), of_claim).count(), 3);
    }
}
