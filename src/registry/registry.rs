//! The registry's face: everything that can be done with objects, for every resource alike.

use crate::admission::Admission;
use crate::allocate::Allocator;
use crate::catalog::Catalog;
use crate::conversion::Converter;
use crate::hub::Hub;
use crate::newest::Newest;
use crate::options::{
    DeleteOptions, ListOptions, Target, UpdateKind, WatchOptions, WriteOptions, parse_resource_version,
};
use crate::read;
use crate::resource::SubresourceKind;
use crate::scale;
use crate::stored::{List, Stored};
use crate::watch::WatchStream;
use crate::write;
use edge_api::{Object, Status};
use edge_storage::Storage;
use futures::future::BoxFuture;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::task::JoinHandle;

/// What is read to see whether the store answers; never written.
const HEALTH_KEY: &[u8] = b"/health";
/// How long that may take.
const HEALTH_PATIENCE: Duration = Duration::from_secs(2);

/// What the registry must know of the cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The networks of services: first address and length of the prefix in bits, one of a family, the primary one first.
    pub service_networks: Vec<(IpAddr, u8)>,
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
pub struct Registry {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) allocator: Arc<Allocator>,
    pub(crate) admission: OnceLock<Arc<dyn Admission>>,
    pub(crate) converter: OnceLock<Arc<dyn Converter>>,
    catalog: Arc<Catalog>,
    newest: Newest,
    follower: JoinHandle<()>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// Makes the new object out of the live one (`None`: there is none). Called again when the live object has changed in
/// between, so it must not have effects.
///
/// Both objects are of the row's version.
pub type Transform<'a> = &'a (dyn Fn(Option<&Object>) -> Result<Object, Status> + Send + Sync);

impl Registry {
    /// Reads what is stored and follows it from then on, in a task of the current runtime.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(storage: Arc<dyn Storage>, options: Options) -> Result<Arc<Self>, edge_storage::Error> {
        let catalog = Arc::new(Catalog::builtin());
        let allocator = Arc::new(Allocator::new(&options.service_networks, options.node_ports));
        let (hub, watcher) = Hub::fill(storage.as_ref(), catalog.clone(), allocator.clone()).await?;
        let follower = tokio::spawn(hub.clone().follow(storage.clone(), watcher));
        Ok(Arc::new(Self {
            storage,
            hub,
            allocator,
            admission: OnceLock::new(),
            converter: OnceLock::new(),
            catalog,
            newest: Newest::default(),
            follower,
        }))
    }

    /// Sets admission control; without it, everything is admitted. Only the first call counts.
    pub fn set_admission(&self, admission: Arc<dyn Admission>) {
        if self.admission.set(admission).is_err() {
            tracing::warn!("admission control was set already");
        }
    }

    /// Sets who asks conversion webhooks; without it, there are none. Only the first call counts.
    pub fn set_converter(&self, converter: Arc<dyn Converter>) {
        if self.converter.set(converter).is_err() {
            tracing::warn!("the converter was set already");
        }
    }

    /// Whether the store can be read and what it commits becomes visible.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub async fn check_store(&self) -> Result<(), String> {
        if self.follower.is_finished() {
            return Err("changes of the store are not followed any more".to_owned());
        }
        let read = self.storage.get(HEALTH_KEY);
        match tokio::time::timeout(HEALTH_PATIENCE, read).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the store does not answer".to_owned()),
        }
    }

    /// The rows.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The newest revision that reads and watches show.
    pub fn revision(&self) -> u64 {
        self.hub.revision()
    }

    /// Returns when everything is visible that anybody, another server among them, had written before this was called.
    ///
    /// # Errors
    /// 503 when the store cannot be asked.
    pub async fn catch_up(&self) -> Result<(), Status> {
        if self.storage.is_shared() {
            let newest = self.newest.ask(self.storage.as_ref()).await.map_err(write::storage_status)?;
            self.hub.settled(newest).await;
        }
        Ok(())
    }

    /// Does a write. What is refused by a state that another server has changed meanwhile is tried once more.
    async fn on_newest<'s, T>(&'s self, attempt: impl Fn() -> BoxFuture<'s, Result<T, Status>>) -> Result<T, Status> {
        let seen = self.hub.revision();
        match attempt().await {
            Err(refused) if self.storage.is_shared() && refused.code < 500 => {
                self.catch_up().await?;
                if self.hub.revision() == seen { Err(refused) } else { attempt().await }
            }
            other => other,
        }
    }

    /// One object, from memory.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, target: &Target<'_>) -> Result<Stored, Status> {
        read::get(&self.hub, target)
    }

    /// One object that is at least as new as `resource_version` (as given; empty: the newest). With the subresource
    /// `scale`, its scale.
    ///
    /// # Errors
    /// 404, 400 for a malformed version, 504 for one from the future.
    pub async fn get_at(&self, target: &Target<'_>, resource_version: &str) -> Result<Stored, Status> {
        match parse_resource_version(resource_version)? {
            Some(revision) => read::wait_for(&self.hub, revision).await?,
            None => self.catch_up().await?,
        }
        let stored = read::get(&self.hub, target)?;
        match target.info.subresource(target.subresource).map(|s| s.serves) {
            Some(SubresourceKind::Scale) => {
                let object = self.served(target.info, stored.object()?).await?;
                scale::check(target.info, &object)?;
                Ok(scale::of(target.info, &object, &stored))
            }
            _ => Ok(stored),
        }
    }

    /// Objects of a namespace or of all.
    ///
    /// # Errors
    /// 400 for bad options, 410 for a page or version that is too old.
    pub async fn list(&self, target: &Target<'_>, options: &ListOptions) -> Result<List, Status> {
        if options.resource_version.is_empty() && options.continue_token.is_empty() {
            self.catch_up().await?;
        }
        read::list(&self.hub, target, options).await
    }

    /// Follows the objects of a namespace, of all, or (with a name) one.
    ///
    /// # Errors
    /// 400 for bad options, 410 (`Expired`) for a version that is too old.
    pub async fn watch(&self, target: &Target<'_>, options: &WatchOptions) -> Result<WatchStream, Status> {
        if options.resource_version.is_empty() {
            self.catch_up().await?;
        }
        read::watch(&self.hub, target, options).await
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
        self.on_newest(|| Box::pin(self.do_create(target, options, object.clone()))).await
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
        self.on_newest(|| Box::pin(self.do_update(target, options, kind, transform))).await
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
        self.on_newest(|| Box::pin(self.do_delete(target, options, deletion))).await
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
        Box::pin(self.do_delete_collection(target, options, selection, deletion)).await
    }
}
