//! The descriptor of a resource: one row of data from which routes, discovery, storage keys, tables and selectors follow.

use crate::columns::Column;
use crate::conversion::Conversion;
use crate::custom::Custom;
use crate::strategy::Strategy;
use edge_api::{GroupKind, GroupResource, GroupVersionKind, Object};
use edge_schema::{Schema, TypeRef};
use std::borrow::Cow;

/// Text that is static for built-in rows and owned for custom resources.
pub type Text = Cow<'static, str>;

/// What may be done with a resource or subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbs(u16);

impl Verbs {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// `create`.
    pub const CREATE: Self = Self(1);
    /// `get`.
    pub const GET: Self = Self(1 << 1);
    /// `list`.
    pub const LIST: Self = Self(1 << 2);
    /// `watch`.
    pub const WATCH: Self = Self(1 << 3);
    /// `update`.
    pub const UPDATE: Self = Self(1 << 4);
    /// `patch`.
    pub const PATCH: Self = Self(1 << 5);
    /// `delete`.
    pub const DELETE: Self = Self(1 << 6);
    /// `deletecollection`.
    pub const DELETE_COLLECTION: Self = Self(1 << 7);
    /// What an ordinary stored resource allows.
    pub const ALL: Self = Self(0xff);
    /// `get`, `patch`, `update`: an ordinary subresource.
    pub const GET_PATCH_UPDATE: Self = Self(Self::GET.0 | Self::PATCH.0 | Self::UPDATE.0);

    /// Names in alphabetical order, as discovery lists them.
    const NAMES: [(Self, &'static str); 8] = [
        (Self::CREATE, "create"),
        (Self::DELETE, "delete"),
        (Self::DELETE_COLLECTION, "deletecollection"),
        (Self::GET, "get"),
        (Self::LIST, "list"),
        (Self::PATCH, "patch"),
        (Self::UPDATE, "update"),
        (Self::WATCH, "watch"),
    ];

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without the others.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names, in the order in which discovery lists them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(v, _)| self.contains(*v)).map(|(_, n)| n)
    }
}

/// What serves a subresource.
#[derive(Clone, Copy, Debug)]
pub enum SubresourceKind {
    /// A view of the object of which some fields may be changed (status, resize, ephemeralcontainers, approval, ...);
    /// the function makes of the submitted object (first) and the live one (second) what is stored.
    Fields(fn(&mut Object, &Object)),
    /// `autoscaling/v1` `Scale`.
    Scale,
    /// Assignment of a pod to a node.
    Binding,
    /// Deletion that respects disruption budgets.
    Eviction,
    /// Served by the API server itself: a stream to a node, a minted token, a proxy.
    Served,
}

/// A subresource of a row.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// Path segment after the name, for instance `status`.
    pub name: Text,
    /// Group of what is sent and answered.
    pub group: Text,
    /// Version of what is sent and answered.
    pub version: Text,
    /// Kind of what is sent and answered.
    pub kind: Text,
    /// What may be done.
    pub verbs: Verbs,
    /// How it works.
    pub serves: SubresourceKind,
}

/// Where the objects of a resource live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageClass {
    /// On disk, acknowledged after fsync.
    Durable,
    /// In memory only; expires after the time, if one is given.
    Volatile(Option<std::time::Duration>),
    /// Nowhere: a review, answered by the API server.
    None,
}

/// A field that field selectors may name.
#[derive(Clone, Debug)]
pub struct SelectableField {
    /// As selectors name it, for instance `spec.nodeName`.
    pub label: Text,
    /// Path of the value in the stored object, for instance `spec.nodeName`.
    pub path: Text,
    /// What an absent field counts as.
    pub default: Text,
}

/// One row: everything generic about a served resource.
#[derive(Debug)]
pub struct ResourceInfo {
    /// API group; empty for the core group.
    pub group: Text,
    /// Served version.
    pub version: Text,
    /// Plural, as in URLs.
    pub plural: Text,
    /// Singular, lower case.
    pub singular: Text,
    /// Kind of one object.
    pub kind: Text,
    /// Kind of a list.
    pub list_kind: Text,
    /// Abbreviations for kubectl.
    pub short_names: Vec<Text>,
    /// Groups of resources for kubectl, for instance `all`.
    pub categories: Vec<Text>,
    /// Whether objects are in namespaces.
    pub namespaced: bool,
    /// What may be done.
    pub verbs: Verbs,
    /// Subresources, in no particular order.
    pub subresources: Vec<Subresource>,
    /// Fields for selectors, besides `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Vec<SelectableField>,
    /// Columns of the table, after `Name`.
    pub columns: Vec<Column>,
    /// Where the objects live.
    pub storage: StorageClass,
    /// Path of the objects in the store below `/registry/`, for instance `services/specs`.
    pub prefix: Text,
    /// What differs from other resources in behaviour.
    pub strategy: &'static Strategy,
    /// Given where this version is not the stored one.
    pub conversion: Option<Conversion>,
    /// Given for custom resources: what follows from their definition.
    pub custom: Option<Custom>,
}

impl ResourceInfo {
    /// Group and plural.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.group.as_ref(), self.plural.as_ref())
    }

    /// Group and kind.
    pub fn group_kind(&self) -> GroupKind {
        GroupKind { group: self.group.to_string(), kind: self.kind.to_string() }
    }

    /// Group, version and kind, as served.
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::new(self.group.as_ref(), self.version.as_ref(), self.kind.as_ref())
    }

    /// `apiVersion`, as served.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `apiVersion`, as stored.
    pub fn stored_api_version(&self) -> String {
        self.conversion.as_ref().map_or_else(|| self.api_version(), |c| c.stored_api_version().to_owned())
    }

    /// The types of the served version: those of Kubernetes, or the custom resource's own.
    pub fn types(&self) -> &Schema {
        self.custom.as_ref().map_or_else(|| Schema::builtin(), Custom::types)
    }

    /// The type of one object of the served version; `None` where the schema table has none.
    pub fn schema(&self) -> Option<TypeRef<'_>> {
        self.types().kind(&self.gvk())
    }

    /// Whether this is the row of the stored version, of which each resource has one.
    pub fn is_stored_version(&self) -> bool {
        self.custom.as_ref().map_or(self.conversion.is_none(), |c| c.is_storage)
    }

    /// A subresource by its name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether objects are kept at all.
    pub fn is_stored(&self) -> bool {
        self.storage != StorageClass::None
    }

    /// Store key below which all objects of the resource are.
    pub fn key_prefix(&self) -> String {
        format!("/registry/{}/", self.prefix)
    }
}
