//! What the cluster's kinds are: the resource table, what differs between resources, the generic store over all of them,
//! the watch hub and the tables that kubectl prints.
//!
//! In: decoded objects and options from the API server. Out: finished JSON ([`Stored`]) or a `Status`. A write goes
//! through mutating admission, defaults, the strategy's preparation, validation and validating admission (the
//! [`Admission`] trait, implemented by the API server) into one transaction of the store, and is answered when its own
//! event is visible to readers and watchers.

pub mod admission;
mod allocate;
mod catalog;
pub mod columns;
pub mod conversion;
pub mod custom;
mod hub;
mod meta;
mod newest;
pub mod options;
mod read;
mod registry;
pub mod resource;
pub mod scale;
mod scan;
mod selection;
mod servers;
mod stored;
pub mod strategy;
mod table;
mod versions;
mod watch;
mod write;

pub use admission::{Admission, AdmitAll, Attributes, Operation};
pub use catalog::Catalog;
pub use conversion::{Conversion, Converter};
pub use custom::{Custom, Defined, Webhook};
pub use meta::uid;
pub use options::{DeleteOptions, ListOptions, Target, UpdateKind, WatchOptions, WriteOptions};
pub use registry::{Deleted, Options, Registry, Transform, Updated};
pub use resource::{ResourceInfo, StorageClass, Subresource, SubresourceKind, Verbs};
pub use servers::Servers;
pub use stored::{EventKind, List, Stored, WatchEvent};
pub use watch::WatchStream;
