//! A CustomResourceDefinition, as far as rows are made of it. Schemas are passed over; they are read when they are needed.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::hash::{DefaultHasher, Hash, Hasher};

#[derive(Debug, Deserialize)]
pub(super) struct Definition {
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
    #[serde(default)]
    pub(super) status: Status,
    /// Of the text of the spec.
    #[serde(skip)]
    spec_hash: u64,
}

#[derive(Deserialize)]
struct Text<'a> {
    #[serde(borrow)]
    spec: &'a RawValue,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    #[serde(default)]
    pub(super) uid: String,
    #[serde(default)]
    pub(super) deletion_timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Spec {
    pub(super) group: String,
    pub(super) scope: String,
    pub(super) versions: Vec<Version>,
    #[serde(default)]
    conversion: Conversion,
}

/// Names of a custom resource, wanted or accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Names {
    /// As in URLs.
    pub plural: String,
    /// For people who type.
    pub singular: String,
    /// Abbreviations.
    pub short_names: Vec<String>,
    /// Kind of one object.
    pub kind: String,
    /// Kind of a list.
    pub list_kind: String,
    /// Groups of resources, for instance `all`.
    pub categories: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub(super) accepted_names: Names,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Version {
    pub(super) name: String,
    pub(super) served: bool,
    pub(super) storage: bool,
    pub(super) deprecated: bool,
    pub(super) deprecation_warning: Option<String>,
    pub(super) subresources: Subresources,
    pub(super) additional_printer_columns: Vec<Column>,
    pub(super) selectable_fields: Vec<Selectable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Subresources {
    pub(super) status: Option<serde::de::IgnoredAny>,
    pub(super) scale: Option<ScalePaths>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ScalePaths {
    pub(super) spec_replicas_path: String,
    pub(super) status_replicas_path: String,
    pub(super) label_selector_path: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Column {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) format: String,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) priority: i32,
    pub(super) json_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Selectable {
    pub(super) json_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conversion {
    strategy: String,
    webhook: Option<WebhookConversion>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WebhookConversion {
    client_config: ClientConfig,
    #[serde(default)]
    conversion_review_versions: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientConfig {
    url: Option<String>,
    service: Option<Service>,
    ca_bundle: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Service {
    namespace: String,
    name: String,
    path: Option<String>,
    port: Option<u16>,
}

/// Who converts objects between versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Webhook {
    /// Where he is.
    pub endpoint: Endpoint,
    /// Certificates, PEM, of those who may vouch for him; empty: those that the machine trusts.
    pub ca_bundle: Vec<u8>,
    /// Versions of ConversionReview that he understands.
    pub review_versions: Vec<String>,
}

/// Where a webhook is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// An address of its own.
    Url(String),
    /// A Service of the cluster.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Path, beginning with a slash; may be empty.
        path: String,
        /// Port of the service.
        port: u16,
    },
}

impl Definition {
    pub(super) fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let definition: Self = serde_json::from_slice(json)?;
        let text: Text<'_> = serde_json::from_slice(json)?;
        let mut hasher = DefaultHasher::new();
        text.spec.get().hash(&mut hasher);
        Ok(Self { spec_hash: hasher.finish(), ..definition })
    }

    pub(super) fn is(&self, condition: &str) -> bool {
        self.status.conditions.iter().flatten().any(|c| c.kind == condition && c.status == "True")
    }

    /// Who converts; `None` where versions differ in their name only.
    pub(super) fn webhook(&self) -> Option<Webhook> {
        let conversion = &self.spec.conversion;
        let webhook = conversion.webhook.as_ref().filter(|_| conversion.strategy == "Webhook")?;
        let config = &webhook.client_config;
        let endpoint = match (&config.url, &config.service) {
            (Some(url), _) => Endpoint::Url(url.clone()),
            (None, Some(s)) => Endpoint::Service {
                namespace: s.namespace.clone(),
                name: s.name.clone(),
                path: s.path.clone().unwrap_or_default(),
                port: s.port.unwrap_or(443),
            },
            (None, None) => return None,
        };
        let ca_bundle = config.ca_bundle.as_ref().and_then(|text| BASE64_STANDARD.decode(text).ok());
        Some(Webhook {
            endpoint,
            ca_bundle: ca_bundle.unwrap_or_default(),
            review_versions: webhook.conversion_review_versions.clone(),
        })
    }

    /// Changes with everything that objects or clients depend on, but for the deletion of the definition.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let m = &self.metadata;
        (&m.uid, self.spec_hash, &self.status.accepted_names).hash(&mut hasher);
        hasher.finish()
    }
}

#[derive(Deserialize)]
struct Schemas<'a> {
    #[serde(borrow)]
    spec: SchemasSpec<'a>,
}

#[derive(Deserialize)]
struct SchemasSpec<'a> {
    #[serde(borrow)]
    versions: Vec<SchemasVersion<'a>>,
}

#[derive(Deserialize)]
struct SchemasVersion<'a> {
    #[serde(borrow, default)]
    schema: Option<SchemaOf<'a>>,
}

#[derive(Deserialize)]
struct SchemaOf<'a> {
    #[serde(borrow, default, rename = "openAPIV3Schema")]
    schema: Option<&'a RawValue>,
}

/// The schema of a version, as a part of the definition's bytes.
pub(super) fn schema_text(json: &Bytes, version: usize) -> Option<Bytes> {
    let read: Schemas<'_> = serde_json::from_slice(json).ok()?;
    let text = read.spec.versions.get(version)?.schema.as_ref()?.schema?;
    Some(json.slice_ref(text.get().as_bytes()))
}
