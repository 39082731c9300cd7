//! The registry's face: everything that can be done with objects, for every resource alike.

use crate::admission::Admission;
use crate::catalog::Catalog;
use crate::options::{DeleteOptions, ListOptions, Target, UpdateKind, WatchOptions, WriteOptions};
use crate::stored::{List, Stored};
use crate::watch::WatchStream;
use edge_api::{Object, Status};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What the registry must know of the cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// First address of the service network.
    pub service_network: IpAddr,
    /// Length of its prefix in bits.
    pub service_prefix_len: u8,
    /// Ports that services may take on every node.
    pub node_ports: RangeInclusive<u16>,
}

/// What became of an update.
#[derive(Clone, Debug)]
pub struct Updated {
    /// The object as it is now (a `Scale` for the scale subresource).
    pub object: Stored,
    /// Whether it did not exist before.
    pub created: bool,
}

/// What became of a deletion.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// The object is gone; its last state.
    Gone(Stored),
    /// It waits for its grace period or its finalizers.
    Pending(Stored),
}

/// The objects of a cluster.
#[derive(Debug)]
pub struct Registry {
    catalog: Catalog,
}

/// Makes the new object out of the live one (`None`: there is none). Called again when the live object has changed in
/// between, so it must not have effects.
pub type Transform<'a> = &'a (dyn Fn(Option<&Object>) -> Result<Object, Status> + Send + Sync);

impl Registry {
    /// Reads what is stored and follows it from then on.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(storage: Arc<dyn edge_storage::Storage>, options: Options) -> Result<Arc<Self>, Status> {
        let _ = (storage, options);
        Err(unfinished())
    }

    /// Sets admission control; without it, everything is admitted. Only the first call counts.
    pub fn set_admission(&self, admission: Arc<dyn Admission>) {
        drop(admission);
    }

    /// The rows.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The newest revision that reads and watches show.
    pub fn revision(&self) -> u64 {
        0
    }

    /// One object, from memory.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, target: &Target<'_>) -> Result<Stored, Status> {
        let _ = target;
        Err(unfinished())
    }

    /// One object that is at least as new as `resource_version` (as given; empty: the newest). With the subresource
    /// `scale`, its scale.
    ///
    /// # Errors
    /// 404, 400 for a malformed version, 504 for one from the future.
    pub async fn get_at(&self, target: &Target<'_>, resource_version: &str) -> Result<Stored, Status> {
        let _ = (target, resource_version);
        Err(unfinished())
    }

    /// Objects of a namespace or of all.
    ///
    /// # Errors
    /// 400 for bad options, 410 for a page or version that is too old.
    pub async fn list(&self, target: &Target<'_>, options: &ListOptions) -> Result<List, Status> {
        let _ = (target, options);
        Err(unfinished())
    }

    /// Follows the objects of a namespace, of all, or (with a name) one.
    ///
    /// # Errors
    /// 400 for bad options, 410 (`Expired`) for a version that is too old.
    pub async fn watch(&self, target: &Target<'_>, options: &WatchOptions) -> Result<WatchStream, Status> {
        let _ = (target, options);
        Err(unfinished())
    }

    /// Creates an object, or submits one to a subresource (`binding`, `eviction`).
    ///
    /// # Errors
    /// 409, 422, 403 and what admission says.
    pub async fn create(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        object: Object,
    ) -> Result<Stored, Status> {
        let _ = (target, options, object);
        Err(unfinished())
    }

    /// Changes an object or one of its subresources: reads it, calls `transform`, writes, and begins again when somebody
    /// else wrote in between and the new object does not insist on a resourceVersion.
    ///
    /// # Errors
    /// 404, 409, 422, 403, what `transform` and what admission say.
    pub async fn update(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        kind: UpdateKind,
        transform: Transform<'_>,
    ) -> Result<Updated, Status> {
        let _ = (target, options, kind, transform);
        Err(unfinished())
    }

    /// Deletes an object, at once or in the end.
    ///
    /// # Errors
    /// 404, 409 for preconditions, what admission says.
    pub async fn delete(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        deletion: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let _ = (target, options, deletion);
        Err(unfinished())
    }

    /// Deletes what a list selects, and answers with it.
    ///
    /// # Errors
    /// The first failure that is not about an object that has gone meanwhile.
    pub async fn delete_collection(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        selection: &ListOptions,
        deletion: &DeleteOptions,
    ) -> Result<List, Status> {
        let _ = (target, options, selection, deletion);
        Err(unfinished())
    }
}

fn unfinished() -> Status {
    Status::unavailable("the registry is being written")
}
