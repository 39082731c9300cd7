//! Tells the API about pods that fit nowhere, and asks others to go for them.

use crate::pod::{Pending, PodInfo};
use edge_client::{
    Api, Client, DeleteParams, Error, EventRecorder, EventType, Patch, PatchParams, Preconditions, is_not_found,
    object_reference,
};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;

/// What is to be told about a pod that fits nowhere.
pub(crate) struct News {
    pub(crate) pod: Pending,
    pub(crate) message: String,
    /// The node that is kept free for it from now on; empty: none any more; nothing: as it was.
    pub(crate) nominated: Option<String>,
    /// Pods that are to go for it, with the node that they are on.
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// A claim that is to give its devices back.
    pub(crate) frees: Option<Arc<ResourceClaim>>,
}

impl News {
    /// Whether nothing follows from it.
    pub(crate) fn is_only_news(&self) -> bool {
        self.nominated.is_none() && self.victims.is_empty() && self.frees.is_none()
    }
}

/// Tells it. The answer names the victims that could not be asked to go.
pub(crate) async fn tell(client: &Client, recorder: &EventRecorder, news: &News) -> Vec<Arc<PodInfo>> {
    if let Some(claim) = &news.frees
        && let Err(error) = crate::binding::free(client, claim).await
    {
        tracing::debug!(pod = %news.pod.key(), %error, "devices of a claim not freed");
    }
    let mut failed = Vec::new();
    for victim in &news.victims {
        if let Err(error) = evict(client, recorder, news, victim).await {
            tracing::warn!(pod = %news.pod.key(), victim = %victim.key, %error, "cannot make room");
            failed.push(victim.clone());
        }
    }
    recorder.event(&*news.pod.pod, EventType::Warning, "FailedScheduling", news.message.clone());
    let nominated = if failed.is_empty() { news.nominated.as_deref() } else { Some("") };
    match condition(client, &news.pod, &news.message, nominated).await {
        Ok(()) => {}
        Err(error) if is_not_found(&error) => {}
        Err(error) => tracing::debug!(pod = %news.pod.key(), %error, "PodScheduled condition not written"),
    }
    failed
}

async fn evict(client: &Client, recorder: &EventRecorder, news: &News, victim: &PodInfo) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &victim.key.namespace);
    let scheduler = news.pod.spec().scheduler_name.as_deref().unwrap_or(crate::NAME);
    let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }]}});
    let name = &victim.key.name;
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(victim.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    let gone = async {
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        api.delete(name, &params).await.map(drop)
    };
    match gone.await {
        Err(error) if is_not_found(&error) => return Ok(()),
        other => other?,
    }
    let about = ObjectReference {
        name: Some(name.clone()),
        namespace: Some(victim.key.namespace.clone()),
        uid: Some(victim.uid.clone()),
        resource_version: None,
        ..object_reference(&*news.pod.pod)
    };
    let node = news.nominated.as_deref().unwrap_or_default();
    let message = format!("Preempted by pod {} on node {node}", news.pod.info.uid);
    recorder.event_ref(about, EventType::Normal, "Preempted", message);
    Ok(())
}

/// Writes why a pod waits, unless its status says so already.
async fn condition(client: &Client, pod: &Pending, message: &str, nominated: Option<&str>) -> Result<(), Error> {
    let status = pod.pod.status.as_ref();
    let known = status.and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == "PodScheduled"));
    let is_known = known.is_some_and(|c| {
        c.status == "False" && c.reason.as_deref() == Some("Unschedulable") && c.message.as_deref() == Some(message)
    });
    let nominated = nominated.filter(|node| *node != pod.nominated().unwrap_or_default());
    if is_known && nominated.is_none() {
        return Ok(());
    }
    let since = known.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
    let since = since.unwrap_or_else(|| Time(Timestamp::now()));
    let mut patch = json!({"metadata": {"uid": pod.info.uid}, "status": {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastTransitionTime": since, "observedGeneration": pod.pod.metadata.generation,
    }]}});
    match nominated {
        Some("") => patch["status"]["nominatedNodeName"] = serde_json::Value::Null,
        Some(node) => patch["status"]["nominatedNodeName"] = node.into(),
        None => {}
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.namespace());
    api.patch_status(&pod.key().name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
}
