//! An object of any resource, read as far as the collector needs it: most of what comes is passed over.

use edge_client::{ApiResource, ObjectMeta};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::Resource;
use kube::core::DynamicResourceScope;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;

/// Of an object who it is, who owns it, and what it waits for.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Bare {
    #[serde(deserialize_with = "read")]
    pub(super) metadata: ObjectMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    uid: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
    deletion_timestamp: Option<Time>,
}

fn read<'de, D: Deserializer<'de>>(metadata: D) -> Result<ObjectMeta, D::Error> {
    let part = Part::deserialize(metadata)?;
    Ok(ObjectMeta {
        uid: part.uid,
        name: part.name,
        namespace: part.namespace,
        resource_version: part.resource_version,
        finalizers: part.finalizers,
        owner_references: part.owner_references,
        deletion_timestamp: part.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

impl Resource for Bare {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
