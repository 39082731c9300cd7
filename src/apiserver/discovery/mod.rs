//! What the server offers: `/api`, `/apis`, the resource lists, and the same in one aggregated document.
//!
//! Everything is derived from the catalog's rows ([`Row`] is what discovery needs of one), so a resource that is served is
//! also discovered.

mod documents;
mod openapi;
mod serve;

pub(crate) use openapi::Rows;
pub(crate) use serve::serve;

use edge_registry::{Custom, ResourceInfo};
use serde_json::Value;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A served resource of one group version.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Row {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<&'static str>,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) subresources: Vec<SubRow>,
    pub(crate) schema: CustomSchema,
}

/// Where the schema of a custom resource is; nothing for a built-in one.
#[derive(Clone, Debug, Default)]
pub(crate) struct CustomSchema(pub(crate) Option<Arc<ResourceInfo>>);

impl CustomSchema {
    pub(crate) fn of(&self) -> Option<&Custom> {
        self.0.as_ref()?.custom.as_ref()
    }
}

impl Hash for CustomSchema {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.of().and_then(Custom::schema_text).hash(state);
    }
}

/// A served subresource.
#[derive(Clone, Debug, Hash)]
pub(crate) struct SubRow {
    pub(crate) name: String,
    /// Group and version of the kind, where it is not the resource's own (`autoscaling/v1` `Scale`).
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) verbs: Vec<&'static str>,
}

impl From<&Arc<ResourceInfo>> for Row {
    fn from(info: &Arc<ResourceInfo>) -> Self {
        let texts = |list: &[edge_registry::resource::Text]| list.iter().map(ToString::to_string).collect();
        Self {
            group: info.group.to_string(),
            version: info.version.to_string(),
            kind: info.kind.to_string(),
            plural: info.plural.to_string(),
            singular: info.singular.to_string(),
            namespaced: info.namespaced,
            verbs: info.verbs.names().collect(),
            short_names: texts(&info.short_names),
            categories: texts(&info.categories),
            subresources: info
                .subresources
                .iter()
                .map(|s| SubRow {
                    name: s.name.to_string(),
                    group: s.group.to_string(),
                    version: s.version.to_string(),
                    kind: s.kind.to_string(),
                    verbs: s.verbs.names().collect(),
                })
                .collect(),
            schema: CustomSchema(info.custom.is_some().then(|| info.clone())),
        }
    }
}

/// A group version that another server answers for.
#[derive(Clone, Debug)]
pub(crate) struct RemoteVersion {
    pub(crate) group: String,
    pub(crate) version: String,
    /// The group stands among the others at least where this says.
    pub(crate) group_priority: i32,
    /// Where the version stands in its group.
    pub(crate) version_priority: i32,
    /// As aggregated discovery shows them; `None`: nobody knows at this moment.
    pub(crate) resources: Option<Arc<Value>>,
}

/// Everything that there is: rows, and what other servers answer for.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    /// Those that this server serves.
    rows: Rows,
    remotes: Vec<RemoteVersion>,
}

impl Offer {
    /// Where another server answers for the group version of rows, these are not served.
    pub(crate) fn new(rows: Rows, remotes: Vec<RemoteVersion>) -> Self {
        let is_remote = |row: &Row| remotes.iter().any(|r| r.version == row.version && r.group == row.group);
        let rows = if rows.iter().any(is_remote) {
            rows.iter().filter(|row| !is_remote(row)).cloned().collect()
        } else {
            rows
        };
        Self { rows, remotes }
    }
}

/// Where a group of this server stands in `/apis`: clients that find a short name in several groups take the first. Those of
/// custom resources have 1000.
pub(crate) fn group_priority(group: &str) -> i32 {
    match group {
        // APIServices themselves come before everything else
        "apiregistration.k8s.io" => i32::MAX,
        "" => 18_000,
        "apps" => 17_800,
        "events.k8s.io" => 17_750,
        "authentication.k8s.io" => 17_700,
        "authorization.k8s.io" => 17_600,
        "autoscaling" => 17_500,
        "batch" => 17_400,
        "certificates.k8s.io" => 17_300,
        "networking.k8s.io" => 17_200,
        "policy" => 17_100,
        "rbac.authorization.k8s.io" => 17_000,
        "storage.k8s.io" => 16_800,
        "admissionregistration.k8s.io" | "apiextensions.k8s.io" => 16_700,
        "scheduling.k8s.io" => 16_600,
        "coordination.k8s.io" => 16_500,
        "node.k8s.io" => 16_300,
        "discovery.k8s.io" => 16_200,
        "flowcontrol.apiserver.k8s.io" => 16_100,
        "internal.apiserver.k8s.io" => 16_000,
        "resource.k8s.io" => 15_900,
        "storagemigration.k8s.io" => 15_800,
        // its kinds have names of the core group's
        "metrics.k8s.io" => 100,
        _ => 1_000,
    }
}

/// Where a version of this server stands in its group, beside those of other servers; among themselves the version's name decides.
const OWN_VERSIONS: i32 = 100;
