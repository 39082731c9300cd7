//! The one writer of `pod.status`: takes the newest status of each pod, writes what changed, retries until it is there.
//!
//! Comes in: statuses computed by the workers ([`compute`]). Goes out: merge patches on the status subresource. Statuses
//! that were overtaken by newer ones are never written, and one that says nothing but that the pod is being started waits for a moment
//! whether another one comes: most pods run by then, which saves two of the five writes to the disk that a pod's start takes.

pub(crate) mod compute;

use edge_client::{Api, Client, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers, status_code};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How many pods' statuses are written at the same time.
const WRITERS: usize = 8;
/// How long a pod may be on its way before anybody is told of it.
const BEGINNING: Duration = Duration::from_millis(100);

struct Entry {
    namespace: String,
    name: String,
    /// The newest status.
    wanted: Arc<PodStatus>,
    /// What the API has, as far as known.
    written: Arc<PodStatus>,
    /// The version of the object that had it.
    seen: u64,
    /// The pod has conditions that others write: a patch must not undo theirs.
    resource_version: Option<String>,
    /// Counts up with every status; `settled` follows.
    version: u64,
    settled: watch::Sender<u64>,
}

/// Writes the statuses of pods.
pub(crate) struct StatusWriter {
    client: Client,
    queue: Arc<WorkQueue<String>>,
    pods: Mutex<HashMap<String, Entry>>,
}

impl StatusWriter {
    pub(crate) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self { client, queue: WorkQueue::new(), pods: Mutex::default() })
    }

    /// Writes what is set, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let queue = self.queue.clone();
        run_workers("pod-status", queue, WRITERS, move |uid: String| {
            let writer = self.clone();
            async move { writer.write(&uid).await.map(|()| Outcome::Done) }
        })
        .await;
    }

    /// Sets the newest status of a pod.
    pub(crate) fn set(&self, pod: &Pod, status: PodStatus) {
        let uid = pod.uid().unwrap_or_default();
        let mut pods = self.pods.lock();
        let entry = pods.entry(uid.clone()).or_insert_with(|| Entry {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            wanted: Arc::default(),
            written: Arc::new(pod.status.clone().unwrap_or_default()),
            seen: version(pod),
            resource_version: None,
            version: 0,
            settled: watch::Sender::new(0),
        });
        entry.resource_version = has_foreign_conditions(pod).then(|| pod.resource_version()).flatten();
        // somebody else may have changed what is this node's to say: that its pods are not ready, say, while it was away
        let seen = version(pod);
        let mut overwritten = false;
        if seen > entry.seen {
            entry.seen = seen;
            entry.written = Arc::new(pod.status.clone().unwrap_or_default());
            overwritten = status_patch(&entry.written, &status).is_some();
        }
        if *entry.wanted == status && !overwritten {
            return;
        }
        let delay = if only_begins(&status) { BEGINNING } else { Duration::ZERO };
        entry.wanted = Arc::new(status);
        entry.version += 1;
        drop(pods);
        self.queue.add_after(uid, delay);
    }

    /// Waits until the API has the newest status of a pod, or has told that the pod is gone.
    pub(crate) async fn flushed(&self, uid: &str) {
        let Some((mut settled, version)) =
            self.pods.lock().get(uid).map(|entry| (entry.settled.subscribe(), entry.version))
        else {
            return;
        };
        // an error means the entry was forgotten: nothing will be written any more
        let _ = settled.wait_for(|done| *done >= version).await;
    }

    /// Forgets a pod that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.pods.lock().remove(uid);
    }

    async fn write(&self, uid: &str) -> Result<(), edge_client::Error> {
        let Some((namespace, name, wanted, written, resource_version, version)) = self.pods.lock().get(uid).map(|e| {
            let versions = (e.resource_version.clone(), e.version);
            (e.namespace.clone(), e.name.clone(), e.wanted.clone(), e.written.clone(), versions.0, versions.1)
        }) else {
            return Ok(());
        };
        if let Some(change) = status_patch(&written, &wanted) {
            let mut metadata = json!({"uid": uid});
            if let Some(resource_version) = resource_version {
                metadata["resourceVersion"] = resource_version.into();
            }
            let patch = json!({"metadata": metadata, "status": change});
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(pod) => {
                    // something newer may have been seen while the answer was on its way
                    if let Some(entry) = self.pods.lock().get_mut(uid)
                        && entry.seen <= self::version(&pod)
                    {
                        entry.seen = self::version(&pod);
                        entry.written = wanted;
                    }
                }
                // another pod of that name, or none: there is nobody to tell
                Err(error) if matches!(status_code(&error), Some(404)) => {
                    tracing::debug!(pod = %name, namespace, "status not written, the pod is gone");
                    if let Some(entry) = self.pods.lock().get_mut(uid) {
                        entry.written = wanted;
                    }
                }
                Err(error) if matches!(status_code(&error), Some(409)) => {
                    return self.conflict(&api, uid, &name, error).await;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(entry) = self.pods.lock().get_mut(uid) {
            entry.settled.send_replace(version);
        }
        Ok(())
    }

    /// After a conflict: either the pod is another one now, or somebody else wrote a condition of it.
    async fn conflict(
        &self,
        api: &Api<Pod>,
        uid: &str,
        name: &str,
        error: edge_client::Error,
    ) -> Result<(), edge_client::Error> {
        let now = api.get_opt(name).await?;
        let mut pods = self.pods.lock();
        let Some(entry) = pods.get_mut(uid) else { return Ok(()) };
        match now.filter(|pod| pod.uid().as_deref() == Some(uid)) {
            None => {
                entry.settled.send_replace(entry.version);
                Ok(())
            }
            Some(pod) => {
                entry.resource_version = pod.resource_version();
                let status = pod.status.unwrap_or_default();
                let wanted = compute::with_foreign_conditions((*entry.wanted).clone(), &status);
                entry.wanted = Arc::new(wanted);
                entry.written = Arc::new(status);
                Err(error)
            }
        }
    }
}

/// Whether a status says no more than that the pod is being started, and nothing that went wrong.
fn only_begins(status: &PodStatus) -> bool {
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let is_made = |c: &ContainerStatus| {
        let waiting = c.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref());
        c.restart_count == 0 && matches!(waiting, Some("ContainerCreating" | "PodInitializing"))
    };
    status.phase.as_deref() == Some("Pending") && status.reason.is_none() && containers.all(is_made)
}

/// The version of an object, as a number that grows.
fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn has_foreign_conditions(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| !compute::OWN_CONDITIONS.contains(&c.type_.as_str()))
}

/// The merge patch that makes `new` of `old`; `None` when they are the same.
fn status_patch(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    // plain data without maps of non-strings always serializes
    let old = serde_json::to_value(old).unwrap_or_default();
    let new = serde_json::to_value(new).unwrap_or_default();
    merge_diff(&old, &new)
}

/// The JSON merge patch from one value to another; `None` when they are equal.
pub(crate) fn merge_diff(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut patch = Map::new();
    for (key, value) in after {
        match before.get(key) {
            None => {
                patch.insert(key.clone(), value.clone());
            }
            Some(known) => {
                if let Some(change) = merge_diff(known, value) {
                    patch.insert(key.clone(), change);
                }
            }
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_holds_only_what_changed() {
        let old = json!({"phase": "Pending", "podIP": "10.0.0.1", "reason": "x", "list": [1]});
        let new = json!({"phase": "Running", "podIP": "10.0.0.1", "list": [1, 2]});
        assert_eq!(merge_diff(&old, &new), Some(json!({"phase": "Running", "reason": null, "list": [1, 2]})));
        assert_eq!(merge_diff(&new, &new), None);
    }

    #[test]
    fn only_what_says_nothing_else_may_wait() {
        let begins = |status: Value| only_begins(&serde_json::from_value(status).unwrap_or_default());
        let container = |state: Value, restarts: i32| json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": restarts, "state": state});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let pod = |init: Value, main: Value| json!({"phase": "Pending", "initContainerStatuses": [init], "containerStatuses": [main]});
        let made = container(waiting("ContainerCreating"), 0);
        let later = container(waiting("PodInitializing"), 0);
        assert!(begins(json!({"phase": "Pending", "podIP": "10.0.0.1", "containerStatuses": [made]})));
        assert!(begins(pod(later.clone(), later.clone())));
        assert!(!begins(pod(container(json!({"running": {}}), 0), later.clone())));
        assert!(!begins(pod(later.clone(), container(waiting("ErrImagePull"), 0))));
        assert!(!begins(pod(later.clone(), container(waiting("ContainerCreating"), 1))));
        assert!(!begins(json!({"phase": "Pending", "reason": "Evicted", "containerStatuses": [made]})));
        assert!(!begins(json!({"phase": "Failed", "containerStatuses": [made]})));
        assert!(!begins(json!({"phase": "Running", "containerStatuses": [container(json!({"running": {}}), 0)]})));
    }

    #[test]
    fn random_patches_lead_from_the_old_to_the_new_value() {
        fn apply(target: &mut Value, patch: &Value) {
            let Value::Object(patch) = patch else { return *target = patch.clone() };
            if !target.is_object() {
                *target = json!({});
            }
            for (key, value) in patch {
                if value.is_null() {
                    target.as_object_mut().map(|t| t.remove(key));
                } else {
                    apply(&mut target[key], value);
                }
            }
        }
        fn value(seed: &mut u64, depth: u32) -> Value {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            match (*seed >> 33) % 4 {
                0 if depth > 0 => {
                    json!({"a": value(seed, depth - 1), "b": value(seed, depth - 1)})
                }
                1 if depth > 0 => json!({"b": value(seed, depth - 1), "c": [value(seed, 0)]}),
                2 => json!("text"),
                _ => json!(*seed >> 60),
            }
        }
        let mut seed = 7;
        for _ in 0..500 {
            let (old, new) = (value(&mut seed, 3), value(&mut seed, 3));
            let mut result = old.clone();
            if let Some(patch) = merge_diff(&old, &new) {
                apply(&mut result, &patch);
            }
            assert_eq!(result, new);
        }
    }
}
