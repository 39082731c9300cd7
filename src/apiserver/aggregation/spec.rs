//! What of an APIService is needed to follow it.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The label of APIServices that are made and kept as they should be without an administrator.
pub(super) const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// An APIService, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Head {
    metadata: Metadata,
    pub(super) spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Its `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(super) service: Option<ServiceRef>,
    #[serde(rename = "insecureSkipTLSVerify")]
    pub(super) insecure: bool,
    /// PEM in base64.
    pub(super) ca_bundle: String,
    pub(crate) group_priority_minimum: i32,
    pub(crate) version_priority: i32,
}

/// The Service behind which a server is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ServiceRef {
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) name: String,
    /// As it is written, which need not be a port.
    #[serde(default = "https")]
    pub(super) port: i64,
}

fn https() -> i64 {
    443
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
}

impl Head {
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// Whether nobody but the server itself takes care of it.
    pub(super) fn is_managed(&self) -> bool {
        self.metadata.labels.get(MANAGED).is_some_and(|v| v == "true" || v == "onstart")
    }

    fn available(&self) -> Option<&Condition> {
        self.status.conditions.iter().find(|c| c.kind == "Available")
    }

    /// Whether its condition says that it is available.
    pub(super) fn is_available(&self) -> bool {
        self.available().is_some_and(|c| c.status == "True")
    }

    /// Why it is available, or is not.
    pub(super) fn reason(&self) -> &str {
        self.available().map_or("", |c| &c.reason)
    }

    /// Whether it says so because the group version is served here.
    pub(super) fn is_available_here(&self) -> bool {
        self.is_available() && self.available().is_some_and(|c| c.reason == "Local")
    }
}

impl Spec {
    /// The APIService's name.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.version, self.group)
    }
}
