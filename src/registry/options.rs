//! What a request asks for besides its object: the option kinds of `meta/v1`, already read from query and body.

use edge_api::selector::{FieldSelector, LabelSelector};
use edge_api::{Status, UserInfo};

use crate::resource::ResourceInfo;

/// Which object a request is about, and who asks. The same for reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Row of the resource.
    pub info: &'a ResourceInfo,
    /// Namespace; empty for cluster-scoped resources and for all namespaces.
    pub namespace: &'a str,
    /// Name; empty for collections and for creation (the object has it).
    pub name: &'a str,
    /// Subresource; empty for the object itself.
    pub subresource: &'a str,
}

/// The circumstances of a write.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions<'a> {
    /// Who writes.
    pub user: &'a UserInfo,
    /// Name under which changed fields are recorded; for apply the applier's name.
    pub field_manager: &'a str,
    /// Do everything but store it.
    pub dry_run: bool,
}

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    /// At least as new.
    NotOlderThan,
    /// Exactly.
    Exact,
}

/// Options of a list (and of the selection of a deletion of a collection).
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Which labels.
    pub labels: LabelSelector,
    /// Which fields.
    pub fields: FieldSelector,
    /// At most so many items; zero means all.
    pub limit: usize,
    /// Token of the previous page; empty for the first.
    pub continue_token: String,
    /// `resourceVersion` as given; empty means the newest.
    pub resource_version: String,
    /// How it is meant.
    pub version_match: Option<VersionMatch>,
}

/// Options of a watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// Which labels.
    pub labels: LabelSelector,
    /// Which fields.
    pub fields: FieldSelector,
    /// `resourceVersion` as given: empty or `0` begins with what is there, anything else with what comes after it.
    pub resource_version: String,
    /// Whether bookmarks are welcome.
    pub bookmarks: bool,
    /// `sendInitialEvents`.
    pub send_initial_events: Option<bool>,
}

/// `propagationPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Dependents stay.
    Orphan,
    /// Dependents go later.
    Background,
    /// Dependents go first.
    Foreground,
}

/// Conditions that the live object must meet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// Its UID.
    pub uid: Option<String>,
    /// Its resourceVersion.
    pub resource_version: Option<String>,
}

/// Options of a deletion.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Time for a graceful end in seconds; `None` leaves it to the object.
    pub grace_period_seconds: Option<i64>,
    /// What becomes of dependents; `None` is the resource's default.
    pub propagation: Option<Propagation>,
    /// `orphanDependents`, the old form of the same.
    pub orphan_dependents: Option<bool>,
    /// Conditions.
    pub preconditions: Preconditions,
}

/// How an update came about, which decides about absent objects and resourceVersions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateKind {
    /// PUT: the whole object; may be created where the resource allows that.
    Replace,
    /// PATCH other than apply: the object must exist.
    Patch,
    /// Server-side apply: created when absent.
    Apply,
}

/// Reads a resourceVersion parameter; `None` for the empty string.
///
/// # Errors
/// 400 when it is no number.
pub fn parse_resource_version(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| Status::bad_request(format!("Invalid value: {text:?}: invalid resource version")))
}
