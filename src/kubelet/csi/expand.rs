//! Volumes that have grown: their file systems follow, and the claim is told.

use super::Csi;
use super::client::Request;
use super::mount::Use;
use edge_api::Quantity;
use edge_client::{Api, EventType, Patch, PatchParams, ResourceExt};
use edge_grpc::{CallError, UNKNOWN};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// gRPC's codes for what will not succeed however often it is tried: InvalidArgument, NotFound, OutOfRange.
const INFEASIBLE: [usize; 3] = [3, 5, 11];
/// On a claim: its driver's controller has done all.
const NOT_REQUIRED: &str = "volume.kubernetes.io/node-expansion-not-required";
const CONDITIONS: [&str; 4] = ["Resizing", "FileSystemResizePending", "ControllerResizeError", "NodeResizeError"];

/// What has become of a volume that should grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// Nothing was to be done, or it is done, or never will be.
    Settled,
    /// It is to be tried again.
    Failed,
}

fn storage<T>(map: Option<&std::collections::BTreeMap<String, T>>) -> Option<&T> {
    map?.get("storage")
}

/// The size to which a claim's volume has to grow on the node, in bytes; `None` when it has not.
fn wanted(claim: &PersistentVolumeClaim, capacity: &str) -> Option<u64> {
    if claim.annotations().contains_key(NOT_REQUIRED) {
        return None;
    }
    let status = claim.status.as_ref()?;
    match storage(status.allocated_resource_statuses.as_ref()).map(String::as_str) {
        None | Some("" | "NodeResizePending" | "NodeResizeInProgress") => {}
        Some(_) => return None,
    }
    let has = Quantity::parse(&storage(status.capacity.as_ref())?.0).ok()?;
    let wants = Quantity::parse(capacity).ok()?;
    (has < wants).then(|| u64::try_from(wants.value()).unwrap_or(0))
}

/// What a claim's status is to say once its volume has grown.
fn grown(claim: &PersistentVolumeClaim, capacity: &str) -> Value {
    let conditions = claim.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let left: Vec<_> = conditions.filter(|c| !CONDITIONS.contains(&c.type_.as_str())).collect();
    let left = if left.is_empty() { Value::Null } else { json!(left) };
    json!({"status": {"capacity": {"storage": capacity}, "conditions": left, "allocatedResourceStatuses": {"storage": null}}})
}

impl Csi {
    /// Has a volume grow if its claim waits for that.
    pub(crate) async fn grow(&self, used: &Use<'_>, claim: &PersistentVolumeClaim) -> Growth {
        let (cx, source) = (used.cx, used.source);
        let Some(bytes) = wanted(claim, &source.capacity).filter(|_| !source.read_only) else {
            return Growth::Settled;
        };
        let namespace = claim.namespace().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(cx.client.clone(), &namespace);
        let patch = async |change: Value| {
            api.patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(change)).await
        };
        let told = |state: &str| json!({"status": {"allocatedResourceStatuses": {"storage": state}}});
        let asked = self.call_expand(used, bytes, async || patch(told("NodeResizeInProgress")).await.map(drop)).await;
        let written = match asked {
            // the driver does not do such things
            Ok(false) => return Growth::Settled,
            Ok(true) => {
                let message = format!(
                    "MountVolume.NodeExpandVolume succeeded for volume \"{}\" {}",
                    source.name, cx.config.node_name
                );
                for about in [edge_client::object_reference(used.pod), edge_client::object_reference(claim)] {
                    cx.recorder.event_ref(about, EventType::Normal, "FileSystemResizeSuccessful", message.clone());
                }
                patch(grown(claim, &source.capacity)).await
            }
            Err(error) => {
                let message =
                    format!("NodeExpandVolume.NodeExpandVolume failed for volume \"{}\" : {error}", source.name);
                for about in [edge_client::object_reference(used.pod), edge_client::object_reference(claim)] {
                    cx.recorder.event_ref(about, EventType::Warning, "VolumeResizeFailed", message.clone());
                }
                if !INFEASIBLE.contains(&error.code) {
                    return Growth::Failed;
                }
                patch(told("NodeResizeInfeasible")).await
            }
        };
        match written {
            Ok(_) => Growth::Settled,
            Err(error) => {
                tracing::warn!(claim = claim.name_any(), %error, "the claim is not told of its volume's size");
                Growth::Failed
            }
        }
    }

    /// Has the driver do it; tells whether it does such things at all.
    async fn call_expand(
        &self,
        used: &Use<'_>,
        bytes: u64,
        begins: impl AsyncFnOnce() -> Result<(), edge_client::Error>,
    ) -> Result<bool, CallError> {
        let (cx, source) = (used.cx, used.source);
        let internal = |why: String| CallError::new(UNKNOWN, why);
        let _held = self.state.busy(&BTreeSet::from([source.key()])).await;
        let uid = used.pod.uid().unwrap_or_default();
        let Some(ready) = self.ready(&uid, used.name) else { return Ok(false) };
        let driver = self.drivers.of(&source.driver).map_err(|error| internal(error.to_string()))?;
        let capabilities = driver.capabilities().await?;
        if !capabilities.expands {
            return Ok(false);
        }
        let secrets = used.secrets(source.expand_secret.as_ref(), "NodeExpandSecretRef").await.map_err(internal)?;
        begins().await.map_err(|error| internal(error.to_string()))?;
        let staging = source.staging(&cx.config);
        let request = Request {
            handle: &source.handle,
            staging: Some(staging.as_path()).filter(|_| capabilities.stages),
            target: Some(&ready.path),
            capability: source.capability(capabilities, None),
            secrets,
            ..Request::default()
        };
        driver.connect().await?.expand(&request, bytes).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn claim(capacity: &str, state: Value) -> PersistentVolumeClaim {
        let conditions =
            json!([{"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"}]);
        let status = json!({"capacity": {"storage": capacity}, "conditions": conditions,
            "allocatedResourceStatuses": {"storage": state}});
        serde_json::from_value(json!({"metadata": {"name": "c"}, "status": status})).unwrap()
    }

    #[test]
    fn volumes_that_are_larger_than_their_claims_know_grow() {
        for (has, state, want) in [
            ("1Gi", json!("NodeResizePending"), Some(2 << 30)),
            ("1Gi", json!("NodeResizeInProgress"), Some(2 << 30)),
            ("2Gi", json!("NodeResizePending"), None),
            ("1Gi", json!("NodeResizeInfeasible"), None),
            ("1Gi", json!("ControllerResizeInProgress"), None),
        ] {
            assert_eq!(wanted(&claim(has, state.clone()), "2Gi"), want, "{has} {state}");
        }
        let mut plain = claim("1Gi", json!(""));
        assert_eq!(wanted(&plain, "2Gi"), Some(2 << 30));
        plain.annotations_mut().insert(NOT_REQUIRED.into(), "true".into());
        assert_eq!(wanted(&plain, "2Gi"), None);
        assert_eq!(wanted(&PersistentVolumeClaim::default(), "2Gi"), None);
    }

    #[test]
    fn a_claim_learns_its_size() {
        let change = grown(&claim("1Gi", json!("NodeResizeInProgress")), "2Gi");
        assert_eq!(change["status"]["capacity"]["storage"], "2Gi");
        assert_eq!(change["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(change["status"]["allocatedResourceStatuses"]["storage"], Value::Null);
    }
}
