//! Tells the API what was decided: which volumes a pod's claims get, and its node.

use crate::extender::ExtenderError;
use crate::plugins::devices::conditions::{Readiness, readiness};
use crate::plugins::devices::{self, DeviceChoice};
use crate::plugins::volumes::Choice;
use crate::pod::Pending;
use crate::world::World;
use edge_client::claims::{BOUND_BY_CONTROLLER, SELECTED_NODE, is_fully_bound};
use edge_client::{
    Api, Client, DeleteParams, Error, Informer, Key, Patch, PatchParams, PostParams, Preconditions, ResourceExt,
    object_reference,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Why the volumes of a pod were not bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("the API did not take it")]
    Api(#[from] Error),
    #[error(transparent)]
    Extender(#[from] ExtenderError),
    #[error("claim {0} got allocated elsewhere in the meantime")]
    Elsewhere(Key),
    #[error("{0}")]
    Unprepared(String),
    #[error("claim {0} is gone")]
    Gone(Key),
    #[error("the volume of claim {0} cannot be made on this node")]
    Refused(Key),
    #[error("the claims were not bound within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Says which volumes the claims get, or for which node they are to be made, and waits until that is done, for at most `timeout`.
pub(crate) async fn volumes(
    client: &Client,
    claims: &Informer<PersistentVolumeClaim>,
    choices: &[Choice],
    node: &str,
    timeout: Duration,
) -> Result<(), BindError> {
    if choices.is_empty() {
        return Ok(());
    }
    let mut changes = claims.subscribe();
    for choice in choices {
        announce(client, choice, node).await?;
    }
    let done = async {
        loop {
            let mut all = true;
            for choice in choices {
                let key = Key::of(&*choice.claim);
                let claim = claims.get_key(&key).filter(|c| c.metadata.uid == choice.claim.metadata.uid);
                let Some(claim) = claim else { return Err(BindError::Gone(key)) };
                // its status comes last, and the kubelet goes by that
                all &=
                    is_fully_bound(&claim) && claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
                // only who was told to make it takes the node away; before that the cache is just behind
                let told = claim.metadata.resource_version != choice.claim.metadata.resource_version;
                if choice.volume.is_none() && told && !is_fully_bound(&claim) {
                    let selected = claim.annotations().get(SELECTED_NODE);
                    if selected.is_none() && claim.annotations().contains_key(edge_client::claims::PROVISIONER) {
                        return Err(BindError::Refused(key));
                    }
                }
            }
            if all {
                return Ok(());
            }
            if changes.recv().await.is_none() {
                return Err(BindError::Timeout(timeout));
            }
        }
    };
    tokio::time::timeout(timeout, done).await.unwrap_or(Err(BindError::Timeout(timeout)))
}

async fn announce(client: &Client, choice: &Choice, node: &str) -> Result<(), Error> {
    let claim = &choice.claim;
    match &choice.volume {
        Some(volume) => {
            let reserved = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
            let mut patch = json!({
                "metadata": {"uid": volume.uid(), "resourceVersion": volume.resource_version()},
                "spec": {"claimRef": object_reference(&**claim)},
            });
            if reserved.is_none() {
                patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
            }
            let api: Api<PersistentVolume> = Api::all(client.clone());
            api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
        None if claim.annotations().get(SELECTED_NODE).is_some_and(|selected| selected == node) => Ok(()),
        None => {
            let patch = json!({"metadata": {"uid": claim.uid(), "annotations": {SELECTED_NODE: node}}});
            let api: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
            api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
    }
}

/// The finalizer of claims that have devices.
const PROTECTION: &str = "resource.kubernetes.io/delete-protection";
/// A claim that somebody else writes at the same time is tried again so often.
const ATTEMPTS: usize = 5;

/// Makes the claims that do not exist yet: those for extended resources. On failure what was made is known to [`release`].
pub(crate) async fn make_claims(client: &Client, choices: &mut [DeviceChoice], pod: &Pending) -> Result<(), BindError> {
    for choice in choices.iter_mut().filter(|choice| !choice.mappings.is_empty()) {
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), pod.namespace());
        let mut claim = (*choice.claim).clone();
        claim.metadata.uid = None;
        choice.claim = Arc::new(api.create(&PostParams::default(), &claim).await?);
    }
    Ok(())
}

/// Waits until drivers have made the pod's devices ready.
pub(crate) async fn prepared(
    claims: &Informer<ResourceClaim>,
    choices: &[DeviceChoice],
    pod: &Pending,
    world: &dyn World,
) -> Result<(), BindError> {
    let all = devices::claims(pod, world).map_err(BindError::Unprepared)?;
    let own = choices.iter().filter(|choice| !choice.mappings.is_empty()).map(|choice| Key::of(&*choice.claim));
    let mut keys: Vec<Key> = all.iter().map(|claim| Key::of(&**claim)).chain(own).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let mut changes = claims.subscribe();
    while let Some(key) = keys.last() {
        let claim = claims.get_key(key).ok_or_else(|| BindError::Gone(key.clone()))?;
        let now = Timestamp::now();
        let until = match readiness(&claim, now) {
            Readiness::Ready => {
                keys.pop();
                continue;
            }
            Readiness::Failed(why) => return Err(BindError::Unprepared(why)),
            Readiness::Waits(until) => until.unwrap_or(now + devices::conditions::PATIENCE),
        };
        // a second later it is over
        let left = Duration::try_from(until.duration_since(now)).unwrap_or_default() + Duration::from_secs(1);
        match tokio::time::timeout(left, changes.recv()).await {
            Ok(Some(_)) | Err(_) => {}
            Ok(None) => return Err(BindError::Timeout(left)),
        }
    }
    Ok(())
}

/// Says which devices the claims of a pod get and that the pod uses them, and waits until that is known here, so that no other decision
/// takes them for free.
pub(crate) async fn devices(
    client: &Client,
    claims: &Informer<ResourceClaim>,
    choices: &[DeviceChoice],
    pod: &Pending,
    timeout: Duration,
) -> Result<(), BindError> {
    if choices.is_empty() {
        return Ok(());
    }
    let mut changes = claims.subscribe();
    for choice in choices {
        allocate(client, choice, pod).await?;
        if !choice.mappings.is_empty() {
            tell_pod(client, choice, pod).await?;
        }
    }
    let is_known = |choice: &DeviceChoice| {
        let known = claims.get_key(&Key::of(&*choice.claim));
        if !choice.mappings.is_empty() && known.is_none() {
            return false;
        }
        // one that is gone meanwhile has its devices no more
        known.is_none_or(|claim| claim.metadata.uid != choice.claim.metadata.uid || is_user(&claim, pod))
    };
    let known = async {
        while !choices.iter().all(is_known) {
            if changes.recv().await.is_none() {
                return;
            }
        }
    };
    tokio::time::timeout(timeout, known).await.map_err(|_| BindError::Timeout(timeout))
}

/// Notes in the pod's status which claim its extended resources come from.
async fn tell_pod(client: &Client, choice: &DeviceChoice, pod: &Pending) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.namespace());
    let status = json!({"extendedResourceClaimStatus":
        {"resourceClaimName": choice.claim.name_any(), "requestMappings": choice.mappings}});
    let patch = json!({"metadata": {"uid": pod.info.uid}, "status": status});
    api.patch_status(&pod.key().name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

fn is_user(claim: &ResourceClaim, pod: &Pending) -> bool {
    let users = claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default();
    users.iter().any(|user| user.uid == pod.info.uid)
}

async fn allocate(client: &Client, choice: &DeviceChoice, pod: &Pending) -> Result<(), BindError> {
    let key = Key::of(&*choice.claim);
    let api: Api<ResourceClaim> = Api::namespaced(client.clone(), &key.namespace);
    let mut claim: Arc<ResourceClaim> = choice.claim.clone();
    let mut attempts = 0;
    loop {
        match try_allocate(&api, &claim, choice, pod).await {
            Err(BindError::Api(Error::Api(status))) if status.code == 409 && attempts < ATTEMPTS => {
                attempts += 1;
                claim = Arc::new(api.get(&key.name).await?);
                if claim.metadata.uid != choice.claim.metadata.uid {
                    return Err(BindError::Gone(key));
                }
            }
            other => return other,
        }
    }
}

async fn try_allocate(
    api: &Api<ResourceClaim>,
    claim: &ResourceClaim,
    choice: &DeviceChoice,
    pod: &Pending,
) -> Result<(), BindError> {
    let key = Key::of(claim);
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(BindError::Gone(key));
    }
    if is_user(claim, pod) {
        return Ok(());
    }
    let mut version = claim.resource_version();
    let mut status = json!({});
    if let Some(allocation) = &choice.allocation {
        if claim.status.as_ref().is_some_and(|s| s.allocation.is_some()) {
            return Err(BindError::Elsewhere(key));
        }
        let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|f| f == PROTECTION) {
            finalizers.push(PROTECTION.to_owned());
            let metadata = json!({"uid": claim.uid(), "resourceVersion": version, "finalizers": finalizers});
            let patch = Patch::Merge(json!({"metadata": metadata}));
            version = api.patch(&key.name, &PatchParams::default(), &patch).await?.resource_version();
        }
        status["allocation"] = serde_json::to_value(allocation).map_err(Error::SerdeError)?;
        status["allocation"]["allocationTimestamp"] =
            Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    }
    let mut users = claim.status.as_ref().and_then(|s| s.reserved_for.clone()).unwrap_or_default();
    users.push(ResourceClaimConsumerReference {
        api_group: None,
        resource: "pods".into(),
        name: pod.key().name.clone(),
        uid: pod.info.uid.clone(),
    });
    status["reservedFor"] = serde_json::to_value(users).map_err(Error::SerdeError)?;
    let patch = json!({"metadata": {"uid": claim.uid(), "resourceVersion": version}, "status": status});
    api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop).map_err(BindError::from)
}

/// A pod that has not got its node uses its claims no more.
pub(crate) async fn release(client: &Client, choices: &[DeviceChoice], pod: &Pending) {
    for choice in choices {
        let key = Key::of(&*choice.claim);
        if !choice.mappings.is_empty() {
            if !key.name.is_empty()
                && let Err(error) = remove(client, &choice.claim).await
            {
                tracing::debug!(claim = %key, pod = %pod.key(), %error, "claim not removed");
            }
            continue;
        }
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), &key.namespace);
        let users = json!([{"$patch": "delete", "uid": pod.info.uid}]);
        let patch = json!({"metadata": {"uid": choice.claim.uid()}, "status": {"reservedFor": users}});
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => {}
            Err(error) => tracing::debug!(claim = %key, pod = %pod.key(), %error, "claim not released"),
        }
    }
}

/// Removes a claim that was made for extended resources and is of no use.
async fn remove(client: &Client, claim: &ResourceClaim) -> Result<(), Error> {
    let api: Api<ResourceClaim> = Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
    let name = claim.name_any();
    let preconditions = Preconditions { uid: claim.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let status = json!({"allocation": null, "reservedFor": null, "devices": null});
    let of = json!({"uid": claim.uid()});
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({"metadata": of, "status": status}))).await?;
    let of = json!({"uid": claim.uid(), "finalizers": Value::Null});
    api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"metadata": of}))).await?;
    match api.delete(&name, &params).await {
        Err(error) if !edge_client::is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Takes its devices from a claim that nobody uses, so that others may fit somewhere else.
pub(crate) async fn free(client: &Client, claim: &ResourceClaim) -> Result<(), Error> {
    if devices::extended::is_made(claim) {
        return remove(client, claim).await;
    }
    let api: Api<ResourceClaim> = Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
    let metadata = json!({"uid": claim.uid(), "resourceVersion": claim.resource_version()});
    let status = json!({"allocation": null, "reservedFor": null, "devices": null});
    let patch = json!({"metadata": metadata, "status": status});
    api.patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// Gives the pod its node.
pub(crate) async fn post(client: &Client, pod: &Pending, node: &str) -> Result<(), Error> {
    let key = pod.key();
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": key.name, "namespace": key.namespace, "uid": pod.info.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let body = serde_json::to_vec(&binding).map_err(Error::SerdeError)?;
    let request = http::Request::post(format!("/api/v1/namespaces/{}/pods/{}/binding", key.namespace, key.name))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| Error::Service(Box::new(e)))?;
    client.request::<Value>(request).await.map(drop)
}
