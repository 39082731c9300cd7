//! The store: keys, bytes and revisions, in etcd's words. It knows no kinds.
//!
//! In: [`Transaction`]s, reads, watches. Out: answers that carry the store's revision, one 64-bit number that every committed
//! transaction raises and that never goes back, whatever crashes. [`Lmdb`] is the implementation on local disk, [`Etcd`] the one in an etcd cluster that several servers share.
//!
//! Two classes of keys share these revisions: *durable* ones are on disk before their transaction is acknowledged;
//! *volatile* ones live in memory, may expire, and are gone after a restart.

mod digest;
mod error;
mod etcd;
mod lmdb;
#[cfg(test)]
mod suite;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod types;

use async_trait::async_trait;
use std::path::Path;

pub use digest::digest;
pub use error::{Error, Result};
pub use etcd::{Etcd, EtcdError, EtcdOptions, Import};
pub use lmdb::{Inspection, Lmdb, LmdbOptions, inspect};
pub use types::{
    Class, Compare, Event, EventBatch, KeyValue, List, ListRequest, Op, Outcome, Revision, Stats, Transaction, Watcher,
};

/// A key-value store with revisions, as Kubernetes expects of etcd.
#[async_trait]
pub trait Storage: Send + Sync + std::fmt::Debug + 'static {
    /// The newest committed revision that this process knows of.
    fn revision(&self) -> Revision;

    /// Whether others write to the store, too: what this process knows of it may then be a moment old.
    fn is_shared(&self) -> bool {
        false
    }

    /// The newest committed revision: that of every write, of whomever, that was acknowledged before this was called.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn newest(&self) -> Result<Revision> {
        Ok(self.revision())
    }

    /// One key as it is now; `None` when it is absent.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>>;

    /// Keys with a prefix in their order, as they were at one revision.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`] for a revision that cannot be read.
    async fn list(&self, request: ListRequest) -> Result<List>;

    /// Does all of a transaction or nothing.
    ///
    /// # Errors
    /// When it could not be committed ([`Error::Full`], [`Error::LimitReached`]: for lack of space); nothing of it is then
    /// visible, now or later (after [`Error::Failed`]: it may be after a restart; after [`EtcdError::Unknown`]: it may be).
    async fn transact(&self, transaction: Transaction) -> Result<Outcome>;

    /// Follows the keys with a prefix, beginning with the revision after `after`: every committed change once, in order.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`] for a revision that cannot be followed from.
    async fn watch(&self, prefix: &[u8], after: Revision) -> Result<Watcher>;

    /// Forgets history up to and including a revision.
    ///
    /// # Errors
    /// [`Error::FutureRevision`]; [`Error::Compacted`] when that was done already.
    async fn compact(&self, revision: Revision) -> Result<()>;

    /// Writes a consistent copy of the durable keys to a new file, while the store goes on working.
    ///
    /// # Errors
    /// When the file exists already or cannot be written.
    async fn snapshot(&self, file: &Path) -> Result<()>;

    /// Figures about the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn stats(&self) -> Result<Stats>;
}
