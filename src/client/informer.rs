//! Informers: one watch and one cache per resource in the process, shared by everybody who wants to know.
//!
//! An informer lists, then watches, and relists by itself after an expired or broken watch; what changed in between
//! reaches the subscribers as ordinary changes. No change is lost and none is polled for.

use crate::slim::slim;
use crate::snapshot::{Keep, Save, Snapshot};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, watch};

/// Namespace (empty for cluster-scoped objects) and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of a namespace and a name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: ResourceExt>(object: &K) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// A change of one object in an informer's cache.
#[derive(Clone, Debug)]
pub enum Change<K> {
    /// The object was created or changed.
    Applied {
        /// What was known before; `None` for a new object.
        old: Option<Arc<K>>,
        /// What it is now.
        new: Arc<K>,
    },
    /// The object is gone; its last known state.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The object in its newest known state.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Applied { new, .. } | Change::Deleted(new) => new,
        }
    }
}

/// What a type needs to be cached by an informer.
pub trait InformerKind:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static
{
}
impl<K> InformerKind for K where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static
{
}

/// The names of the objects of a namespace that have a value for a label; a key holds the namespace and the value.
type LabelIndex = HashMap<Key, HashSet<String>>;

struct State<K> {
    /// By namespace and name.
    objects: HashMap<String, HashMap<String, Arc<K>>>,
    /// Indexes by the labels that somebody has asked for.
    by_label: HashMap<&'static str, LabelIndex>,
    subscribers: Vec<mpsc::UnboundedSender<Change<K>>>,
}

/// Where what is in a cache comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// Nothing is in it yet.
    None,
    /// From the disk: what was known when edge ran last.
    Memory,
    /// From the server.
    Server,
}

/// The cache of one resource.
pub struct Informer<K> {
    state: RwLock<State<K>>,
    source: watch::Sender<Source>,
    changed: Notify,
}

impl<K: InformerKind> Informer<K> {
    fn new() -> Arc<Self> {
        let state = State { objects: HashMap::new(), by_label: HashMap::new(), subscribers: Vec::new() };
        Arc::new(Self { state: RwLock::new(state), source: watch::Sender::new(Source::None), changed: Notify::new() })
    }

    /// An object of the cache.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.state.read().objects.get(namespace)?.get(name).cloned()
    }

    /// An object of the cache.
    pub fn get_key(&self, key: &Key) -> Option<Arc<K>> {
        self.get(&key.namespace, &key.name)
    }

    /// All objects, in no particular order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.state.read().all().cloned().collect()
    }

    /// The objects of a namespace, in no particular order.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.state.read().objects.get(namespace).into_iter().flat_map(HashMap::values).cloned().collect()
    }

    /// The objects of a namespace with this value of a label, in no particular order. What it costs depends on their number
    /// alone, as the first use of a label makes an index.
    pub fn list_labelled(&self, namespace: &str, label: &'static str, value: &str) -> Vec<Arc<K>> {
        let key = Key::new(namespace, value);
        let of = |state: &State<K>, index: &LabelIndex| -> Vec<Arc<K>> {
            let Some(objects) = state.objects.get(namespace) else { return Vec::new() };
            index.get(&key).into_iter().flatten().filter_map(|name| objects.get(name).cloned()).collect()
        };
        {
            let state = self.state.read();
            if let Some(index) = state.by_label.get(label) {
                return of(&state, index);
            }
        }
        let mut state = self.state.write();
        let mut index = LabelIndex::new();
        for object in state.all() {
            if let Some(at) = place(&**object, label) {
                index.entry(at).or_default().insert(object.name_any());
            }
        }
        let found = of(&state, &index);
        state.by_label.insert(label, index);
        found
    }

    /// Everything that is in the cache now, as [`Change::Applied`] without `old`, then every later change.
    ///
    /// The receiver should be drained promptly (usually into a work queue): changes wait in memory.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<K>> {
        let (tx, rx) = mpsc::unbounded_channel();
        let mut state = self.state.write();
        for new in state.all() {
            // the receiver is in our hands, so the send cannot fail
            let _ = tx.send(Change::Applied { old: None, new: new.clone() });
        }
        state.subscribers.push(tx);
        rx
    }

    /// Waits until the first list from the server is in the cache.
    pub async fn synced(&self) {
        self.comes_from(Source::Server).await;
    }

    /// Waits until something complete is in the cache: what was known when edge ran last ([`Informers::remember`]), or the
    /// first list from the server.
    pub async fn known(&self) {
        self.comes_from(Source::Memory).await;
    }

    async fn comes_from(&self, at_least: Source) {
        // the sender lives as long as self, so waiting cannot fail
        let _ = self.source.subscribe().wait_for(|source| *source >= at_least).await;
    }

    /// Whether the first list from the server is in the cache.
    pub fn has_synced(&self) -> bool {
        *self.source.borrow() == Source::Server
    }

    /// Waits for a change since the last call; there is one caller.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Fills the cache with what was known earlier.
    pub(crate) fn restore(&self, objects: Vec<K>) {
        objects.into_iter().for_each(|object| self.apply(object));
        self.source.send_replace(Source::Memory);
    }

    fn apply(&self, object: K) {
        let key = Key::of(&object);
        let new = Arc::new(object);
        let mut state = self.state.write();
        let old = state.insert(&key, new.clone());
        state.index(&key, old.as_deref(), Some(&*new));
        // what comes from memory has no version
        let version = &new.meta().resource_version;
        if version.is_some() && old.as_ref().is_some_and(|old| old.meta().resource_version == *version) {
            return;
        }
        state.publish(&Change::Applied { old, new });
        self.changed.notify_one();
    }

    fn delete(&self, key: &Key) {
        let mut state = self.state.write();
        let Some(old) = state.remove(key) else { return };
        state.index(key, Some(&*old), None);
        state.publish(&Change::Deleted(old));
        self.changed.notify_one();
    }

    fn replace(&self, objects: Vec<K>) {
        let fresh: HashSet<Key> = objects.iter().map(Key::of).collect();
        let known: Vec<Key> = self.state.read().all().map(|object| Key::of(&**object)).collect();
        let gone: Vec<Key> = known.into_iter().filter(|key| !fresh.contains(key)).collect();
        for object in objects {
            self.apply(object);
        }
        for key in gone {
            self.delete(&key);
        }
        self.source.send_replace(Source::Server);
        self.changed.notify_one();
    }

    async fn run(self: Arc<Self>, api: Api<K>, config: watcher::Config) {
        let of_all = config.field_selector.is_none();
        let mut stream = std::pin::pin!(watcher(api, config).backoff(crate::WatchBackoff::default()));
        let mut listed = Vec::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => listed.push(trimmed(object, of_all)),
                Ok(watcher::Event::InitDone) => self.replace(std::mem::take(&mut listed)),
                Ok(watcher::Event::Apply(object)) => self.apply(trimmed(object, of_all)),
                Ok(watcher::Event::Delete(object)) => self.delete(&Key::of(&object)),
                Err(error) => {
                    tracing::debug!(resource = %K::plural(&()), %error, "watch broke, starting again");
                }
            }
        }
    }
}

/// Where an object is in the index by a label.
fn place<K: ResourceExt>(object: &K, label: &str) -> Option<Key> {
    object.labels().get(label).map(|value| Key::new(object.namespace().unwrap_or_default(), value))
}

impl<K: ResourceExt> State<K> {
    /// Moves an object to its place in every index.
    fn index(&mut self, key: &Key, old: Option<&K>, new: Option<&K>) {
        for (label, index) in &mut self.by_label {
            let (before, after) = (old.and_then(|old| place(old, label)), new.and_then(|new| place(new, label)));
            if before == after {
                continue;
            }
            if let Some(before) = before
                && let Some(names) = index.get_mut(&before)
            {
                names.remove(&key.name);
                if names.is_empty() {
                    index.remove(&before);
                }
            }
            if let Some(after) = after {
                index.entry(after).or_default().insert(key.name.clone());
            }
        }
    }
}

impl<K> State<K> {
    fn all(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values().flat_map(HashMap::values)
    }

    /// Puts an object in; gives the one that was in its place.
    fn insert(&mut self, key: &Key, object: Arc<K>) -> Option<Arc<K>> {
        let Some(objects) = self.objects.get_mut(&key.namespace) else {
            self.objects.insert(key.namespace.clone(), HashMap::from([(key.name.clone(), object)]));
            return None;
        };
        match objects.get_mut(&key.name) {
            Some(place) => Some(std::mem::replace(place, object)),
            None => objects.insert(key.name.clone(), object),
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let objects = self.objects.get_mut(&key.namespace)?;
        let removed = objects.remove(&key.name);
        if objects.is_empty() {
            self.objects.remove(&key.namespace);
        }
        removed
    }

    fn publish(&mut self, change: &Change<K>)
    where
        K: Clone,
    {
        self.subscribers.retain(|s| s.send(change.clone()).is_ok());
    }
}

/// Nobody above the API reads managedFields, which are often the larger half of an object, nor (of all pods) what only a pod's node needs.
/// And what is parsed has room for four of everything of which there is one, a copy only for what there is.
fn trimmed<K: InformerKind>(mut object: K, of_all: bool) -> K {
    object.meta_mut().managed_fields = None;
    if of_all && let Some(pod) = (&mut object as &mut dyn Any).downcast_mut::<Pod>() {
        slim(pod);
    }
    object.clone()
}

/// The informers of a process, one per resource (and field selector), made when somebody first asks.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    informers: HashMap<(TypeId, String), Arc<dyn Any + Send + Sync>>,
    snapshots: Vec<Arc<dyn Save>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Informers {
    /// Informers that watch through `client`. The watches end when the last clone is dropped.
    pub fn new(client: Client) -> Self {
        Self { client, shared: Arc::default() }
    }

    /// The client they watch through.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The informer of all objects of a kind.
    pub fn of<K: InformerKind>(&self) -> Arc<Informer<K>> {
        self.select::<K>("")
    }

    /// The informer of the objects that a field selector matches, for instance `spec.nodeName=a`; empty selects all.
    pub fn select<K: InformerKind>(&self, field_selector: &str) -> Arc<Informer<K>> {
        let mut shared = self.shared.lock();
        if let Some(known) = shared.informers.get(&id_of::<K>(field_selector)) {
            return known.clone().downcast().expect("invariant: informers are filed under their own type");
        }
        let informer = Informer::<K>::new();
        self.begin(&mut shared, field_selector, &informer);
        informer
    }

    /// From now on the informer of a kind (and field selector) begins with what it knew when edge ran last, until the server is
    /// there; `keep` takes away what need not be kept of an object. The file is in `dir`. Call it before anybody asks for the
    /// informer: later it has no effect.
    pub fn remember<K: InformerKind + Serialize>(&self, dir: &Path, field_selector: &str, keep: Keep<K>) {
        let mut shared = self.shared.lock();
        if shared.informers.contains_key(&id_of::<K>(field_selector)) {
            tracing::error!(resource = %K::plural(&()), "an informer that is in use already does not remember");
            return;
        }
        let informer = Informer::<K>::new();
        let snapshot = Snapshot::open(informer.clone(), dir, field_selector, keep);
        self.begin(&mut shared, field_selector, &informer);
        shared.tasks.spawn(snapshot.clone().follow());
        shared.snapshots.push(snapshot);
    }

    /// Writes what the informers that remember know, as far as it has changed. For the end of a process.
    pub async fn save(&self) {
        let all = self.shared.lock().snapshots.clone();
        // a panic in there has been told of already
        let _ = tokio::task::spawn_blocking(move || all.iter().filter(|snapshot| snapshot.save()).count()).await;
    }

    fn begin<K: InformerKind>(&self, shared: &mut Shared, field_selector: &str, informer: &Arc<Informer<K>>) {
        shared.informers.insert(id_of::<K>(field_selector), informer.clone());
        let mut config = watcher::Config::default();
        if !field_selector.is_empty() {
            config = config.fields(field_selector);
        }
        shared.tasks.spawn(informer.clone().run(Api::all(self.client.clone()), config));
    }
}

/// Under what an informer is filed.
fn id_of<K: 'static>(field_selector: &str) -> (TypeId, String) {
    (TypeId::of::<K>(), field_selector.to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, version: &str) -> ConfigMap {
        let mut c = ConfigMap::default();
        c.metadata.name = Some(name.into());
        c.metadata.namespace = Some("ns".into());
        c.metadata.resource_version = Some(version.into());
        c
    }

    #[tokio::test]
    async fn a_relist_reports_only_what_changed() {
        let informer = Informer::<ConfigMap>::new();
        informer.replace(vec![object("a", "1"), object("b", "1"), object("c", "1")]);
        let mut changes = informer.subscribe();
        for _ in 0..3 {
            assert!(matches!(changes.recv().await.unwrap(), Change::Applied { old: None, .. }));
        }
        informer.replace(vec![object("a", "1"), object("b", "2")]);
        let Change::Applied { old: Some(old), new } = changes.recv().await.unwrap() else { panic!("b changed") };
        assert_eq!((old.resource_version().unwrap(), new.resource_version().unwrap()), ("1".into(), "2".into()));
        let Change::Deleted(gone) = changes.recv().await.unwrap() else { panic!("c is gone") };
        assert_eq!(gone.name_any(), "c");
        assert!(changes.try_recv().is_err());
        assert_eq!(informer.list_namespace("ns").len(), 2);
        assert!(informer.list_namespace("other").is_empty());
        assert!(informer.get("ns", "a").is_some());
    }

    #[tokio::test]
    async fn objects_are_found_by_a_label() {
        let informer = Informer::<ConfigMap>::new();
        let labelled = |name: &str, version: &str, value: Option<&str>| {
            let mut object = object(name, version);
            object.metadata.labels = value.map(|value| [("of".to_owned(), value.to_owned())].into());
            object
        };
        let names = |value: &str| {
            let mut names: Vec<String> =
                informer.list_labelled("ns", "of", value).iter().map(|object| object.name_any()).collect();
            names.sort();
            names
        };
        informer.replace(vec![labelled("a", "1", Some("x")), labelled("b", "1", Some("y")), labelled("c", "1", None)]);
        assert_eq!((names("x"), names("y"), names("z")), (vec!["a".into()], vec!["b".into()], vec![]));
        informer.apply(labelled("b", "2", Some("x")));
        informer.apply(labelled("c", "2", Some("z")));
        assert_eq!((names("x"), names("y"), names("z")), (vec!["a".into(), "b".into()], vec![], vec!["c".into()]));
        informer.delete(&Key::new("ns", "a"));
        informer.apply(labelled("b", "3", None));
        assert!(names("x").is_empty());
        assert!(informer.list_labelled("other", "of", "z").is_empty());
    }
}
