//! The configMaps, secrets and claims that pods of this node refer to, each watched by itself for as long as somebody needs it.
//!
//! A node may read only what its pods refer to, so there is one watch per object (field selector `metadata.name`), as
//! with the real kubelet, and not one per namespace: the API's node authorization would refuse the latter.

use edge_client::{Api, Client, Key, WatchBackoff};
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What is known about an object.
#[derive(Clone, Debug)]
pub(crate) enum Known<K> {
    /// The API has not answered yet.
    NotYet,
    /// There is no such object.
    Absent,
    /// The object.
    Present(Arc<K>),
}

/// An object that is watched for as long as this lives.
pub(crate) struct Watched<K> {
    known: watch::Receiver<Known<K>>,
    _task: AbortOnDropHandle<()>,
}

impl<K> Watched<K> {
    /// Follows the object.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Known<K>> {
        self.known.clone()
    }
}

type Shared<K> = Mutex<HashMap<Key, Weak<Watched<K>>>>;

/// The watched objects of this node.
pub(crate) struct Objects {
    client: Client,
    config_maps: Shared<ConfigMap>,
    secrets: Shared<Secret>,
    claims: Shared<PersistentVolumeClaim>,
}

/// What can be watched object by object.
pub(crate) trait Watchable: edge_client::InformerKind + kube::Resource<Scope = NamespaceResourceScope> {
    /// Where the watched objects of this kind are.
    fn shared(objects: &Objects) -> &Shared<Self>;
}

impl Watchable for ConfigMap {
    fn shared(objects: &Objects) -> &Shared<Self> {
        &objects.config_maps
    }
}

impl Watchable for Secret {
    fn shared(objects: &Objects) -> &Shared<Self> {
        &objects.secrets
    }
}

impl Watchable for PersistentVolumeClaim {
    fn shared(objects: &Objects) -> &Shared<Self> {
        &objects.claims
    }
}

impl Objects {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, config_maps: Mutex::default(), secrets: Mutex::default(), claims: Mutex::default() }
    }

    /// Watches an object.
    pub(crate) fn watch<K: Watchable>(&self, namespace: &str, name: &str) -> Arc<Watched<K>> {
        let mut shared = K::shared(self).lock();
        let key = Key::new(namespace, name);
        if let Some(watched) = shared.get(&key).and_then(Weak::upgrade) {
            return watched;
        }
        shared.retain(|_, watched| watched.strong_count() > 0);
        let (tx, known) = watch::channel(Known::NotYet);
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let task = tokio::spawn(follow(api, name.to_owned(), tx));
        let watched = Arc::new(Watched { known, _task: AbortOnDropHandle::new(task) });
        shared.insert(key, Arc::downgrade(&watched));
        watched
    }
}

async fn follow<K: Watchable>(api: Api<K>, name: String, tx: watch::Sender<Known<K>>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut stream = std::pin::pin!(watcher(api, config).backoff(WatchBackoff::default()));
    let mut listed = None;
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = None,
            Ok(watcher::Event::InitApply(object)) => listed = Some(Arc::new(object)),
            Ok(watcher::Event::InitDone) => {
                tx.send_replace(listed.take().map_or(Known::Absent, Known::Present));
            }
            Ok(watcher::Event::Apply(object)) => {
                tx.send_replace(Known::Present(Arc::new(object)));
            }
            Ok(watcher::Event::Delete(_)) => {
                tx.send_replace(Known::Absent);
            }
            Err(error) => tracing::debug!(object = %name, %error, "watch broke, starting again"),
        }
    }
}
