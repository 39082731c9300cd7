//! Making and deleting pods for an owner, with the Events that tell of it.

use crate::context::{Context, unless_changed, unless_gone};
use crate::owners::controller_reference;
use crate::pods;
use edge_client::{Api, Client, DeleteParams, EventType, Key, Patch, PatchParams, PostParams, Preconditions};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serde_json::json;

/// The pod that a template makes for an owner, to be named by the API server.
pub(crate) fn pod_of<K: Resource<DynamicType = ()>>(template: &PodTemplateSpec, owner: &K) -> Pod {
    let meta = template.metadata.as_ref();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", prefix(owner.meta().name.as_deref().unwrap_or_default()))),
            namespace: owner.meta().namespace.clone(),
            labels: meta.and_then(|m| m.labels.clone()),
            annotations: meta.and_then(|m| m.annotations.clone()),
            finalizers: meta.and_then(|m| m.finalizers.clone()),
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Generated names keep to 63 characters: five random ones and a dash follow.
fn prefix(name: &str) -> &str {
    let end = name.len().min(57);
    name.get(..end).unwrap_or(name)
}

/// Creates a pod for an owner.
pub(crate) async fn create<K>(context: &Context, owner: &K, pod: &Pod) -> Result<Pod, edge_client::Error>
where
    K: Resource<DynamicType = ()>,
{
    let api: Api<Pod> = Api::namespaced(context.client.clone(), owner.meta().namespace.as_deref().unwrap_or_default());
    match api.create(&PostParams::default(), pod).await {
        Ok(made) => {
            let message = format!("Created pod: {}", made.name_any());
            context.recorder.event(owner, EventType::Normal, "SuccessfulCreate", message);
            Ok(made)
        }
        Err(error) => {
            context.recorder.event(owner, EventType::Warning, "FailedCreate", format!("Error creating: {error}"));
            Err(error)
        }
    }
}

/// Deletes a pod, and no later one of the same name; one that is gone already counts as deleted.
pub(crate) async fn remove(client: &Client, pod: &Pod) -> Result<(), edge_client::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    unless_changed(api.delete(&pod.name_any(), &params).await).map(drop)
}

/// Takes a pod away for a taint that it does not tolerate: an Event of the reason `event` and a condition of the reason `reason` say
/// so, and `who` did it.
pub(crate) async fn evict(
    context: &Context,
    pod: &Pod,
    event: &str,
    (reason, who): (&str, &str),
) -> Result<(), edge_client::Error> {
    let key = Key::of(pod);
    context.recorder.event(pod, EventType::Normal, event, format!("Marking for deletion Pod {key}"));
    let message = format!("{who}: deleting due to NoExecute taint");
    let condition = pods::disruption_target(reason, &message, Timestamp::now());
    let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}}));
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    if unless_gone(api.patch_status(&key.name, &PatchParams::default(), &patch).await)?.is_some() {
        remove(&context.client, pod).await?;
    }
    Ok(())
}

/// Deletes a pod of an owner; one that is gone already counts as deleted.
pub(crate) async fn delete<K>(context: &Context, owner: &K, pod: &Pod) -> Result<(), edge_client::Error>
where
    K: Resource<DynamicType = ()>,
{
    match remove(&context.client, pod).await {
        Err(error) => {
            context.recorder.event(owner, EventType::Warning, "FailedDelete", format!("Error deleting: {error}"));
            Err(error)
        }
        Ok(()) => {
            let message = format!("Deleted pod: {}", pod.name_any());
            context.recorder.event(owner, EventType::Normal, "SuccessfulDelete", message);
            Ok(())
        }
    }
}

/// Does something `count` times in batches that double while all goes well, so that a refusal (a quota, say) is met
/// once and not a thousand times. Gives the number of successes, and the first error.
pub(crate) async fn slow_start<F, Fut, E>(count: usize, work: F) -> (usize, Option<E>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    let (mut done, mut batch) = (0, 1);
    while done < count {
        let size = batch.min(count - done);
        let results = futures::future::join_all((done..done + size).map(&work)).await;
        let failures: Vec<E> = results.into_iter().filter_map(Result::err).collect();
        done += size - failures.len();
        if let Some(error) = failures.into_iter().next() {
            return (done, Some(error));
        }
        batch *= 2;
    }
    (done, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_refusal_is_met_once() {
        let tries = AtomicUsize::new(0);
        let work = |limit: usize| {
            let tries = &tries;
            move |i: usize| async move {
                tries.fetch_add(1, Ordering::Relaxed);
                if i < limit { Ok(()) } else { Err("refused") }
            }
        };
        assert_eq!(slow_start(100, work(1000)).await, (100, None));
        tries.store(0, Ordering::Relaxed);
        assert_eq!(slow_start(100, work(0)).await, (0, Some("refused")));
        assert_eq!(tries.load(Ordering::Relaxed), 1);
        assert_eq!(slow_start(0, work(0)).await, (0, None));
    }
}
