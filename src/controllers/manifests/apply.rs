//! Applying and deleting objects of any kind by server-side apply.

use super::applied::Reference;
use super::parse::Manifest;
use edge_client::{Api, ApiResource, Client, DeleteParams, DynamicObject, Error, Patch, PatchParams};
use std::collections::HashMap;

/// The name under which edge owns the fields that manifests set.
const MANAGER: &str = "edge-manifests";

/// Why an object was not applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// No such kind is served (yet).
    #[error("no matches for kind {kind:?} in version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    /// The API refused.
    #[error(transparent)]
    Api(#[from] Error),
}

/// The order in which objects are applied: what others need comes first.
pub(super) fn ordered(mut objects: Vec<Manifest>) -> Vec<Manifest> {
    let rank = |m: &Manifest| match m.object["kind"].as_str().unwrap_or_default() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        "PriorityClass" | "StorageClass" | "RuntimeClass" => 2,
        "ServiceAccount" | "ClusterRole" | "Role" | "ConfigMap" | "Secret" => 3,
        _ => 4,
    };
    objects.sort_by_key(rank);
    objects
}

pub(super) struct Applier {
    client: Client,
    /// Resources by apiVersion and kind, as discovery told; asked again when a kind is not among them.
    known: HashMap<(String, String), (ApiResource, bool)>,
}

impl Applier {
    pub(super) fn new(client: Client) -> Self {
        Self { client, known: HashMap::new() }
    }

    pub(super) async fn apply(&mut self, manifest: &Manifest) -> Result<Reference, ApplyError> {
        let text =
            |pointer: &str| manifest.object.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let mut reference = Reference {
            api_version: text("/apiVersion"),
            kind: text("/kind"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        };
        let (resource, namespaced) = self.resource(&reference).await?;
        match (namespaced, reference.namespace.is_empty()) {
            (true, true) => reference.namespace = "default".into(),
            (false, false) => reference.namespace.clear(),
            _ => {}
        }
        let api = self.api(&resource, namespaced, &reference.namespace);
        let params = PatchParams::apply(MANAGER).force();
        api.patch(&reference.name, &params, &Patch::Apply(&manifest.object)).await?;
        Ok(reference)
    }

    /// Deletes an object; one that is gone, or whose kind is, counts as deleted.
    pub(super) async fn delete(&mut self, reference: &Reference) -> Result<(), ApplyError> {
        let (resource, namespaced) = match self.resource(reference).await {
            Err(ApplyError::UnknownKind { .. }) => return Ok(()),
            other => other?,
        };
        let api = self.api(&resource, namespaced, &reference.namespace);
        match api.delete(&reference.name, &DeleteParams::background()).await {
            Err(e) if !edge_client::is_not_found(&e) => Err(e.into()),
            _ => Ok(()),
        }
    }

    fn api(&self, resource: &ApiResource, namespaced: bool, namespace: &str) -> Api<DynamicObject> {
        if namespaced {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        } else {
            Api::all_with(self.client.clone(), resource)
        }
    }

    async fn resource(&mut self, reference: &Reference) -> Result<(ApiResource, bool), ApplyError> {
        let id = (reference.api_version.clone(), reference.kind.clone());
        if !self.known.contains_key(&id) {
            self.discover(&reference.api_version).await?;
        }
        self.known.get(&id).cloned().ok_or_else(|| ApplyError::UnknownKind {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
        })
    }

    async fn discover(&mut self, api_version: &str) -> Result<(), Error> {
        let list = match api_version.split_once('/') {
            None => self.client.list_core_api_resources(api_version).await,
            Some(_) => self.client.list_api_group_resources(api_version).await,
        };
        let list = match list {
            Err(e) if edge_client::is_not_found(&e) => return Ok(()),
            other => other?,
        };
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        for r in list.resources.into_iter().filter(|r| !r.name.contains('/')) {
            let resource = ApiResource {
                group: group.into(),
                version: version.into(),
                api_version: api_version.into(),
                kind: r.kind.clone(),
                plural: r.name,
            };
            self.known.insert((api_version.into(), r.kind), (resource, r.namespaced));
        }
        Ok(())
    }
}
