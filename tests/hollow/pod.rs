//! As much of a pod as a hollow kubelet has to know.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A pod as the API shows it. What is not here is skipped when it is read.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SeenPod {
    pub(super) metadata: Meta,
    pub(super) spec: Spec,
    #[serde(default)]
    pub(super) status: Status,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) deletion_timestamp: Option<String>,
    pub(super) deletion_grace_period_seconds: Option<u64>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) owner_references: Vec<Owner>,
    #[serde(default)]
    pub(super) finalizers: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Owner {
    pub(super) uid: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(default)]
    pub(super) node_name: String,
    pub(super) containers: Vec<Container>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) phase: String,
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
}

/// A condition of a pod or of a node.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// Whether somebody says that a pod or a node is not ready.
pub(super) fn is_unready(conditions: &[Condition]) -> bool {
    conditions.iter().any(|c| c.kind == "Ready" && c.status != "True")
}

/// As much of a node as matters.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SeenNode {
    pub(super) metadata: NodeMeta,
    #[serde(default)]
    pub(super) status: NodeStatus,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct NodeMeta {
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct NodeStatus {
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
}

/// The metadata of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) metadata: ListMeta,
    pub(super) items: Vec<SeenPod>,
}

impl SeenPod {
    /// Its path in the API.
    pub(super) fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Namespace and name.
    pub(super) fn key(&self) -> (String, String) {
        (self.metadata.namespace.clone(), self.metadata.name.clone())
    }

    fn number(&self, annotation: &str) -> Option<u64> {
        self.metadata.annotations.get(annotation)?.parse().ok()
    }

    /// A time in milliseconds.
    pub(super) fn time(&self, annotation: &str) -> Option<Duration> {
        self.number(annotation).map(Duration::from_millis)
    }

    /// How many pods in its place are to fail before one does not.
    pub(super) fn fails(&self) -> u32 {
        self.number("hollow/fails").and_then(|n| n.try_into().ok()).unwrap_or(0)
    }

    /// With what it ends by itself.
    pub(super) fn exit_code(&self) -> i32 {
        self.number("hollow/exit-code").and_then(|n| n.try_into().ok()).unwrap_or(0)
    }

    /// Its place: the first owner, and the completion index if it has one.
    pub(super) fn place(&self) -> (String, Option<String>) {
        let owner = self.metadata.owner_references.first().map(|o| o.uid.clone()).unwrap_or_default();
        (owner, self.metadata.annotations.get("batch.kubernetes.io/job-completion-index").cloned())
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    pub(super) fn is_going(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
}
