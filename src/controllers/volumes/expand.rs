//! Claims that want to grow. Nothing here can make a volume larger: that is for drivers' own controllers, so it is said that one is waited for.

use crate::context::{Context, each};
use edge_api::Quantity;
use edge_client::claims::{is_for, requested, volume_name};
use edge_client::{Change, Error, EventType, Key, Outcome, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

pub(crate) async fn run(context: Context) {
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let queue = WorkQueue::<Key>::new();
    claims.synced().await;
    volumes.synced().await;
    let watch = each(&claims, |change| {
        if let Change::Applied { old, new } = change
            && wants_more(new)
            && old.as_ref().is_none_or(|old| requested(old) != requested(new))
        {
            queue.add(Key::of(&**new));
        }
    });
    let work = run_workers("persistentvolume-expander", queue.clone(), 1, |key: Key| {
        let claim = claims.get_key(&key).filter(|claim| wants_more(claim));
        let volume = claim.as_ref().and_then(|claim| volumes.get("", volume_name(claim)));
        if let (Some(claim), Some(volume)) = (claim, volume)
            && is_for(&volume, &claim)
        {
            let message = "waiting for an external controller to expand this PVC";
            context.recorder.event(&*claim, kind(&volume), "ExternalExpanding", message);
        }
        async { Ok::<_, Error>(Outcome::Done) }
    });
    tokio::join!(watch, work);
}

/// Whether a bound claim asks for more than it has.
fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let Some(status) = claim.status.as_ref().filter(|s| s.phase.as_deref() == Some("Bound")) else { return false };
    let has = status.capacity.as_ref().and_then(|c| c.get("storage")).and_then(|q| Quantity::parse(&q.0).ok());
    Quantity::parse(&requested(claim)).is_ok_and(|wanted| Some(wanted) > has)
}

/// A driver's volume may have a controller that makes it grow; for any other it would be news.
fn kind(volume: &PersistentVolume) -> EventType {
    let driver = volume.spec.as_ref().is_some_and(|s| s.csi.is_some() || s.flex_volume.is_some());
    if driver { EventType::Normal } else { EventType::Warning }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn who_wants_more() {
        for (phase, wanted, has, want) in [
            ("Bound", "2Gi", json!("1Gi"), true),
            ("Bound", "1Gi", json!("1024Mi"), false),
            ("Bound", "1Gi", json!("5Gi"), false),
            ("Pending", "2Gi", json!("1Gi"), false),
        ] {
            let claim = json!({"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": wanted}}},
                "status": {"phase": phase, "capacity": {"storage": has}}});
            assert_eq!(wants_more(&serde_json::from_value(claim).unwrap()), want, "{phase} {wanted} {has}");
        }
    }

    #[test]
    fn only_drivers_can_be_expected_to_help() {
        let volume =
            |source: Value| serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": source})).unwrap();
        assert_eq!(kind(&volume(json!({"csi": {"driver": "d", "volumeHandle": "h"}}))), EventType::Normal);
        assert_eq!(kind(&volume(json!({"hostPath": {"path": "/a"}}))), EventType::Warning);
    }
}
