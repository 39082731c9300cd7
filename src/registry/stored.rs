//! An object as it is kept and answered: finished JSON, shared by everybody who reads or watches it.

use bytes::Bytes;
use edge_api::{Object, Status};
use std::sync::Arc;

/// A stored object: immutable, cheap to clone.
#[derive(Clone, Debug)]
pub struct Stored(pub(crate) Arc<Entry>);

/// The one copy of an object that the hub keeps, with what selectors need.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Finished JSON, `resourceVersion` included.
    pub(crate) bytes: Bytes,
    pub(crate) revision: u64,
    /// `namespace/name`, or `name` for cluster-scoped objects.
    pub(crate) key: Box<str>,
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the row's selectable fields, in the row's order.
    pub(crate) fields: Box<[Box<str>]>,
}

impl Stored {
    /// The object as finished JSON of its stored version, `metadata.resourceVersion` included.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// `metadata.resourceVersion`.
    pub fn resource_version(&self) -> u64 {
        self.0.revision
    }

    /// `metadata.namespace`; empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.0.key.rsplit_once('/').map_or("", |(ns, _)| ns)
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.0.key.rsplit_once('/').map_or(&self.0.key, |(_, name)| name)
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.0.labels.iter().find(|(k, _)| **k == *key).map(|(_, v)| &**v)
    }

    /// The object as a tree.
    ///
    /// # Errors
    /// 500 when the bytes are no object, which means that the store was changed by somebody else.
    pub fn object(&self) -> Result<Object, Status> {
        Object::from_slice(&self.0.bytes).map_err(Status::internal)
    }
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct List {
    /// The objects, in the order of namespace and name.
    pub items: Vec<Stored>,
    /// The list's resourceVersion.
    pub resource_version: u64,
    /// Token for the next page; empty on the last.
    pub continue_token: String,
    /// How many objects follow this page; unknown when selectors are given.
    pub remaining: Option<u64>,
}

/// What a watch reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The object came into being, or into the selection.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or left the selection; the object is its last state with the event's resourceVersion.
    Deleted,
    /// Nothing happened up to the object's resourceVersion; the object has no other content.
    Bookmark,
}

impl EventKind {
    /// As watches write it, for instance `ADDED`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// An event of a watch.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    /// What happened.
    pub kind: EventKind,
    /// To which object.
    pub object: Stored,
}
