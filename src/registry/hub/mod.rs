//! The watch hub: all stored objects in memory, and everybody who follows them.
//!
//! In: the store's watch, one task. Out: reads, lists as of a recent revision, watches. The task is the only writer of
//! the state; a write is acknowledged when its event has passed here, so that whoever wrote also reads what he wrote.

mod custom;
mod resource;

pub(crate) use resource::{Begin, Change, ResourceHub, TooOld};

use crate::allocate::Allocator;
use crate::catalog::Catalog;
use crate::custom::DEFINITIONS_PREFIX;
use crate::resource::ResourceInfo;
use edge_storage::{Error, Event, EventBatch, ListRequest, Storage};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Below this are all keys of the registry.
const ROOT: &str = "/registry/";
/// A key that changes with every claim of a service's address or port, where several servers share a store: who claims
/// by an old state finds it changed.
pub(crate) const CLAIMS: &str = "/registry/edge/claims";
/// Below this are all definitions of custom resources.
const DEFINITIONS_KEY: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";
/// What is watched: other keys too, because every revision must be seen to pass.
const EVERYTHING: &[u8] = b"";
/// After so long a store that could not be read is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Bookmarks go out at most so often, and only when something was written since.
const BOOKMARKS_EVERY: Duration = Duration::from_secs(60);

/// The objects of all resources.
#[derive(Debug)]
pub(crate) struct Hub {
    /// By the prefix of the row, for instance `services/specs`.
    resources: RwLock<HashMap<Box<str>, Arc<ResourceHub>>>,
    catalog: Arc<Catalog>,
    allocator: Arc<Allocator>,
    applied: AtomicU64,
    /// Revision of [`CLAIMS`]; zero: absent.
    claims: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Vec<oneshot::Sender<()>>>>,
    bookmarked: Mutex<Instant>,
}

impl Hub {
    /// Fills the hub from the store and returns it with the watch that continues from there.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn fill(
        storage: &dyn Storage,
        catalog: Arc<Catalog>,
        allocator: Arc<Allocator>,
    ) -> Result<(Arc<Self>, edge_storage::Watcher), Error> {
        let rows = catalog.rows();
        let resources = rows
            .iter()
            .filter(|r| r.is_stored() && r.is_stored_version())
            .map(|r| (Box::from(r.prefix.as_ref()), Arc::new(ResourceHub::new(r))))
            .collect();
        let hub = Arc::new(Self {
            resources: RwLock::new(resources),
            catalog,
            allocator,
            applied: AtomicU64::new(0),
            claims: AtomicU64::new(0),
            waiting: Mutex::new(BTreeMap::new()),
            bookmarked: Mutex::new(Instant::now()),
        });
        let watcher = hub.read_all(storage).await?;
        Ok((hub, watcher))
    }

    /// The objects of a row; `None` for rows without storage.
    pub(crate) fn of(&self, info: &ResourceInfo) -> Option<Arc<ResourceHub>> {
        self.resources.read().get(info.prefix.as_ref()).cloned()
    }

    /// The newest revision that is visible.
    pub(crate) fn revision(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// The revision of [`CLAIMS`]; all claims up to it are known to the allocator.
    pub(crate) fn claims(&self) -> u64 {
        self.claims.load(Ordering::Acquire)
    }

    /// Returns when a revision is visible.
    pub(crate) async fn settled(&self, revision: u64) {
        let seen = {
            let mut waiting = self.waiting.lock();
            if self.revision() >= revision {
                return;
            }
            let (tx, rx) = oneshot::channel();
            waiting.entry(revision).or_default().push(tx);
            rx
        };
        // the other end only goes away together with the hub's task; what was committed stays committed
        let _ = seen.await;
    }

    /// Follows the store until it closes.
    pub(crate) async fn follow(self: Arc<Self>, storage: Arc<dyn Storage>, mut watcher: edge_storage::Watcher) {
        loop {
            match watcher.next().await {
                Ok(batch) => {
                    let redefinitions = self.redefinitions(storage.as_ref(), &batch).await;
                    self.apply(&batch, redefinitions);
                }
                Err(Error::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "watch of the store broke off, going on from revision {}", self.revision());
                    // whoever waits for his write to become visible waits for this
                    watcher = loop {
                        match self.resume(storage.as_ref()).await {
                            Ok(watcher) => break watcher,
                            Err(Error::Closed) => return,
                            Err(error) => tracing::error!(%error, "the store cannot be followed, trying again"),
                        }
                        tokio::time::sleep(RETRY).await;
                    };
                }
            }
        }
    }

    /// Watches again from the last revision seen, or reads everything when that is too old.
    async fn resume(&self, storage: &dyn Storage) -> Result<edge_storage::Watcher, Error> {
        match storage.watch(EVERYTHING, self.revision()).await {
            Err(Error::Compacted { .. }) => self.read_all(storage).await,
            other => other,
        }
    }

    /// Takes in everything as of now; what differs from before becomes events.
    async fn read_all(&self, storage: &dyn Storage) -> Result<edge_storage::Watcher, Error> {
        let request = ListRequest { prefix: ROOT.into(), ..ListRequest::default() };
        let list = storage.list(request).await?;
        let mut per_resource: HashMap<Box<str>, Vec<(String, edge_storage::KeyValue)>> = HashMap::new();
        let mut claims = 0;
        let (definitions, items): (Vec<_>, Vec<_>) =
            list.items.into_iter().partition(|kv| kv.key.starts_with(DEFINITIONS_KEY.as_bytes()));
        let of = |kv: edge_storage::KeyValue| {
            Some((std::str::from_utf8(&kv.key).ok()?.strip_prefix(DEFINITIONS_KEY)?.to_owned(), kv))
        };
        self.define_all(definitions.into_iter().filter_map(of).collect(), list.revision);
        for kv in items {
            if kv.key == CLAIMS {
                claims = kv.mod_revision;
            } else if let Some((resource, key)) = self.locate(&kv.key) {
                per_resource.entry(resource.prefix().into()).or_default().push((key.to_owned(), kv));
            }
        }
        let all: Vec<Arc<ResourceHub>> = self.resources.read().values().cloned().collect();
        for resource in all.into_iter().filter(|r| r.prefix() != DEFINITIONS_PREFIX) {
            let items = per_resource.remove(resource.prefix()).unwrap_or_default();
            resource.reset(items, list.revision, |change| self.allocator.observe(resource.prefix(), change));
        }
        self.claims.store(claims, Ordering::Release);
        self.reach(list.revision);
        storage.watch(EVERYTHING, list.revision).await
    }

    /// Takes in the changes of one transaction.
    fn apply(&self, batch: &EventBatch, redefinitions: Vec<custom::Redefinition>) {
        let mut changes = Vec::new();
        for event in &batch.events {
            let Some((resource, key)) = self.locate(event.key()) else { continue };
            let value = match event {
                Event::Put(kv) => Some(&kv.value[..]),
                Event::Delete { .. } => None,
            };
            let change =
                resource.apply(key, value, batch.revision, |change| self.allocator.observe(resource.prefix(), change));
            changes.extend(change.map(|change| (resource, change)));
        }
        if batch.events.iter().any(|event| event.key() == CLAIMS) {
            self.claims.store(batch.revision, Ordering::Release);
        }
        self.redefine(redefinitions, batch.revision);
        self.reach(batch.revision);
        for (resource, change) in changes {
            resource.tell(change);
        }
        let due = {
            let mut at = self.bookmarked.lock();
            let due = at.elapsed() >= BOOKMARKS_EVERY;
            if due {
                *at = Instant::now();
            }
            due
        };
        if due {
            self.resources.read().values().for_each(|r| r.bookmark(batch.revision));
        }
    }

    /// Makes a revision visible and wakes who waits for it.
    fn reach(&self, revision: u64) {
        let ready = {
            let mut waiting = self.waiting.lock();
            self.applied.store(revision, Ordering::Release);
            let later = waiting.split_off(&(revision + 1));
            std::mem::replace(&mut *waiting, later)
        };
        for sender in ready.into_values().flatten() {
            // who waited may have given up
            let _ = sender.send(());
        }
    }

    /// The resource of a store key, and the object's key in it. Prefixes have one segment, or two.
    fn locate<'k>(&self, key: &'k [u8]) -> Option<(Arc<ResourceHub>, &'k str)> {
        let path = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
        let resources = self.resources.read();
        let mut ends = path.match_indices('/').map(|(i, _)| i);
        for end in ends.by_ref().take(2) {
            if let Some(resource) = resources.get(&path[..end]) {
                return Some((resource.clone(), &path[end + 1..]));
            }
        }
        None
    }
}
