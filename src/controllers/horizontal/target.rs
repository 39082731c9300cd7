//! What is scaled: the `scale` of an object of any kind that has one.

use crate::context::message;
use edge_client::{Client, Error};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;

/// Why an object cannot be scaled.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unscalable {
    #[error("unexpected GroupVersion string: {0}")]
    Version(String),
    #[error("no matches for kind {kind:?} in group {group:?}")]
    Kind { kind: String, group: String },
    #[error("{}", message(.0))]
    Api(#[from] Error),
}

/// A resource by which a kind is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    group: String,
    version: String,
    plural: String,
}

impl Resource {
    /// `deployments.apps`, or `pods`.
    pub(super) fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    fn scale_path(&self, namespace: &str, name: &str) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        format!("{root}/{}/namespaces/{namespace}/{}/{}/scale", self.version, self.plural, segment(name))
    }
}

/// The resources of kinds, as discovery told of them.
#[derive(Default)]
pub(super) struct Resources(Mutex<HashMap<(String, String), Resource>>);

impl Resources {
    /// The resource of an object's kind, in whatever version its group prefers.
    ///
    /// # Errors
    /// [`Unscalable`] when there is no such kind.
    pub(super) async fn find(&self, client: &Client, of: &CrossVersionObjectReference) -> Result<Resource, Unscalable> {
        let api_version = of.api_version.as_deref().unwrap_or_default();
        let group = match api_version.split('/').collect::<Vec<_>>().as_slice() {
            [group, _] => (*group).to_owned(),
            [_] => String::new(),
            _ => return Err(Unscalable::Version(api_version.to_owned())),
        };
        let key = (group.clone(), of.kind.clone());
        if let Some(known) = self.0.lock().get(&key) {
            return Ok(known.clone());
        }
        for version in versions(client, &group).await? {
            let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
            let list: APIResourceList = get(client, &format!("{root}/{version}")).await?;
            let found = list.resources.into_iter().find(|r| r.kind == of.kind && !r.name.contains('/'));
            if let Some(found) = found {
                let resource = Resource { group, version, plural: found.name };
                self.0.lock().insert(key, resource.clone());
                return Ok(resource);
            }
        }
        Err(Unscalable::Kind { kind: of.kind.clone(), group })
    }

    /// The scale of an object, and where it is.
    ///
    /// # Errors
    /// [`Unscalable`].
    pub(super) async fn scale(
        &self,
        client: &Client,
        namespace: &str,
        of: &CrossVersionObjectReference,
    ) -> Result<(String, Scale), Unscalable> {
        let path = self.find(client, of).await?.scale_path(namespace, &of.name);
        match get(client, &path).await {
            Ok(scale) => Ok((path, scale)),
            Err(error) => {
                // the kind itself may have gone or moved
                self.0.lock().retain(|(_, kind), _| *kind != of.kind);
                Err(error.into())
            }
        }
    }
}

/// The versions of a group, the preferred one first; none when the group is not served.
async fn versions(client: &Client, group: &str) -> Result<Vec<String>, Error> {
    #[derive(Deserialize)]
    struct Group {
        versions: Vec<Version>,
    }
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    if group.is_empty() {
        return Ok(vec!["v1".to_owned()]);
    }
    match get::<Group>(client, &format!("/apis/{group}")).await {
        Ok(found) => Ok(found.versions.into_iter().map(|v| v.version).collect()),
        Err(error) if edge_client::is_not_found(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Writes a scale.
///
/// # Errors
/// What the API says; 409 when the object has changed meanwhile.
pub(super) async fn put(client: &Client, path: &str, scale: &Scale) -> Result<(), Error> {
    let body = serde_json::to_vec(scale).map_err(Error::SerdeError)?;
    let request = http::Request::put(path).header(http::header::CONTENT_TYPE, "application/json").body(body);
    client.request::<Scale>(request.map_err(Error::HttpError)?).await.map(drop)
}

/// Reads anything.
///
/// # Errors
/// What the API says.
pub(super) async fn get<T: DeserializeOwned>(client: &Client, uri: &str) -> Result<T, Error> {
    client.request(http::Request::get(uri).body(Vec::new()).map_err(Error::HttpError)?).await
}

/// A part of a path or query that cannot become more than one.
pub(super) fn segment(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
