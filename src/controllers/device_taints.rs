//! Eviction by taints of devices: a pod that uses a device with a `NoExecute` taint goes, at once or when its claim no longer tolerates the
//! taint. Taints are those that drivers put on the devices of their slices.

use crate::context::Context;
use crate::resource_claims::{claim_names, is_reserved_for};
use crate::{pod_control, pods};
use edge_client::{Change, Error, EventType, Informer, Key, Outcome, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    Device, DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 4;

struct Controller {
    context: Context,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<ResourceClaim>>,
    slices: Arc<Informer<ResourceSlice>>,
    queue: Arc<WorkQueue<Key>>,
    /// Pods that stay for some time only.
    waiting: Mutex<HashSet<Key>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        pods: context.informers.of(),
        claims: context.informers.of(),
        slices: context.informers.of(),
        queue: WorkQueue::new(),
        waiting: Mutex::default(),
        context,
    });
    let c = &controller;
    let (mut pods, mut claims, mut slices) = (c.pods.subscribe(), c.claims.subscribe(), c.slices.subscribe());
    c.pods.synced().await;
    c.claims.synced().await;
    c.slices.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = pods.recv() => {
                    if !claim_names(change.object()).is_empty() {
                        c.queue.add(Key::of(&**change.object()));
                    }
                }
                Some(change) = claims.recv() => c.add_users(change.object()),
                Some(change) = slices.recv() => c.slice_changed(&change),
                else => return,
            }
        }
    };
    let worker = controller.clone();
    let work = run_workers("device-taint-eviction", controller.queue.clone(), WORKERS, move |key: Key| {
        let controller = worker.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(watch, work);
}

fn results(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref());
    allocation.and_then(|a| a.devices.as_ref()).and_then(|d| d.results.as_deref()).unwrap_or_default()
}

fn devices(slice: &ResourceSlice) -> &[Device] {
    slice.spec.devices.as_deref().unwrap_or_default()
}

fn is_from(slice: &ResourceSlice, result: &DeviceRequestAllocationResult) -> bool {
    slice.spec.driver == result.driver && slice.spec.pool.name == result.pool
}

/// The evicting taints of a device, as the newest generation of its pool tells.
fn evicting<'a>(slices: &'a [Arc<ResourceSlice>], result: &DeviceRequestAllocationResult) -> Vec<&'a DeviceTaint> {
    let pool = || slices.iter().filter(|slice| is_from(slice, result));
    let newest = pool().map(|slice| slice.spec.pool.generation).max();
    pool()
        .filter(|slice| Some(slice.spec.pool.generation) == newest)
        .flat_map(|slice| devices(slice).iter().filter(move |device| device.name == result.device))
        .flat_map(|device| device.taints.iter().flatten())
        .filter(|taint| taint.effect == "NoExecute")
        .collect()
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    given(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && given(&toleration.key).is_none_or(|key| key == taint.key)
        && match toleration.operator.as_deref() {
            None | Some("" | "Equal") => given(&toleration.value) == given(&taint.value),
            Some("Exists") => true,
            Some(_) => false,
        }
}

/// When a user of a device with these taints has to go; nothing: it may stay.
fn goes_at(result: &DeviceRequestAllocationResult, taints: &[&DeviceTaint], now: Timestamp) -> Option<Timestamp> {
    let tolerations = result.tolerations.as_deref().unwrap_or_default();
    let of_one = |taint: &&DeviceTaint| {
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let matching: Vec<_> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if matching.iter().any(|t| t.toleration_seconds.is_none()) {
            return None;
        }
        let seconds = matching.iter().filter_map(|t| t.toleration_seconds).min().unwrap_or(0).max(0);
        Some(since.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX))
    };
    taints.iter().filter_map(of_one).min()
}

impl Controller {
    /// Those who use a claim may have to go.
    fn add_users(&self, claim: &ResourceClaim) {
        let namespace = claim.namespace().unwrap_or_default();
        let users = claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default();
        for user in users.iter().filter(|user| user.resource == "pods") {
            self.queue.add(Key::new(&namespace, &user.name));
        }
    }

    fn slice_changed(&self, change: &Change<ResourceSlice>) {
        let tainted = |slice: &ResourceSlice| {
            devices(slice).iter().flat_map(|d| d.taints.iter().flatten()).any(|t| t.effect == "NoExecute")
        };
        let matters = match change {
            Change::Applied { old, new } => tainted(new) || old.as_ref().is_some_and(|old| tainted(old)),
            Change::Deleted(last) => tainted(last),
        };
        if matters {
            let slice = change.object();
            let theirs = self.claims.list().into_iter();
            theirs
                .filter(|claim| results(claim).iter().any(|result| is_from(slice, result)))
                .for_each(|claim| self.add_users(&claim));
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let stays =
            |p: &Arc<Pod>| p.metadata.deletion_timestamp.is_none() && !pods::is_finished(p) && pods::node(p).is_some();
        let Some(pod) = self.pods.get_key(key).filter(stays) else {
            self.waiting.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let now = Timestamp::now();
        let Some(at) = self.goes_at(&pod, now) else {
            if self.waiting.lock().remove(key) {
                let message = format!("Cancelling deletion of Pod {key}");
                self.context.recorder.event(&*pod, EventType::Normal, "DeviceTaintManagerEviction", message);
            }
            return Ok(Outcome::Done);
        };
        let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
        if !left.is_zero() {
            self.waiting.lock().insert(key.clone());
            return Ok(Outcome::After(left));
        }
        pod_control::evict(
            &self.context,
            &pod,
            "DeviceTaintManagerEviction",
            ("DeletionByDeviceTaintManager", "Device Taint manager"),
        )
        .await?;
        self.waiting.lock().remove(key);
        Ok(Outcome::Done)
    }

    fn goes_at(&self, pod: &Pod, now: Timestamp) -> Option<Timestamp> {
        let namespace = pod.namespace().unwrap_or_default();
        let names = claim_names(pod).into_iter();
        let claims: Vec<_> = names.filter_map(|name| self.claims.get(&namespace, &name)).collect();
        let slices = self.slices.list();
        let used = claims.iter().filter(|claim| is_reserved_for(claim, pod));
        used.flat_map(|claim| results(claim))
            .filter_map(|result| goes_at(result, &evicting(&slices, result), now))
            .min()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn result(tolerations: Value) -> DeviceRequestAllocationResult {
        serde_json::from_value(
            json!({"request": "one", "driver": "d.io", "pool": "p", "device": "gpu-0", "tolerations": tolerations}),
        )
        .unwrap()
    }

    fn slice(generation: i64, device: &str, effect: &str) -> Arc<ResourceSlice> {
        let taint = json!({"key": "broken", "effect": effect, "timeAdded": "2026-01-01T00:00:00Z"});
        let spec = json!({"driver": "d.io", "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
            "devices": [{"name": device, "taints": [taint]}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap())
    }

    #[test]
    fn the_newest_generation_of_a_pool_tells_of_taints() {
        for (slices, want) in [
            (vec![slice(1, "gpu-0", "NoExecute")], 1),
            (vec![slice(1, "gpu-0", "NoSchedule")], 0),
            (vec![slice(1, "gpu-1", "NoExecute")], 0),
            (vec![slice(1, "gpu-0", "NoExecute"), slice(2, "gpu-0", "None")], 0),
            (vec![slice(1, "gpu-0", "None"), slice(2, "gpu-0", "NoExecute")], 1),
        ] {
            assert_eq!(evicting(&slices, &result(json!([]))).len(), want, "{slices:?}");
        }
    }

    #[test]
    fn when_users_of_a_device_go() {
        let added: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let after = |seconds| Some(added + SignedDuration::from_secs(seconds));
        let exists =
            |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        let slices = [slice(1, "gpu-0", "NoExecute")];
        for (tolerations, want) in [
            (json!([]), after(0)),
            (json!([exists("broken", Value::Null)]), None),
            (json!([{"operator": "Exists"}]), None),
            (json!([exists("other", Value::Null)]), after(0)),
            (json!([exists("broken", json!(30))]), after(30)),
            (json!([exists("broken", json!(30)), exists("", json!(10))]), after(10)),
            (json!([exists("broken", json!(-5))]), after(0)),
            (json!([{"key": "broken", "operator": "Equal", "value": "x"}]), after(0)),
            (json!([{"key": "broken", "operator": "Exists", "effect": "NoSchedule"}]), after(0)),
        ] {
            let result = result(tolerations.clone());
            assert_eq!(goes_at(&result, &evicting(&slices, &result), Timestamp::UNIX_EPOCH), want, "{tolerations}");
        }
        assert_eq!(goes_at(&result(json!([])), &[], added), None);
    }
}
