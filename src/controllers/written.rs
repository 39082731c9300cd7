//! Objects as a controller has written them, until its cache shows them so.
//!
//! What a Deployment may do next depends on all of its ReplicaSets. Decided by a cache that shows one of them as it was before the
//! last step, a rollout would take another step on top of that one, and have more pods than it may. A Job counts pods that have ended in
//! its status, and then lets them go; by a cache that shows the status as it was before, it would make them once more.

use edge_client::{Change, ResourceExt};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// By UID.
pub(crate) struct Written<K>(Mutex<HashMap<String, Arc<K>>>);

impl<K> Default for Written<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

fn version(object: &impl ResourceExt) -> u64 {
    object.meta().resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn uid(object: &impl ResourceExt) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

impl<K: ResourceExt> Written<K> {
    /// Notes an object as the API server has just given it back. `cached` looks it up in the cache.
    pub(crate) fn note(&self, object: &Arc<K>, cached: impl FnOnce() -> Option<Arc<K>>) {
        self.0.lock().insert(uid(&**object).to_owned(), object.clone());
        // the cache may have been told before the one who asked; if it is told from now on, `seen` comes after this
        if cached().is_some_and(|c| uid(&*c) == uid(&**object) && version(&*c) >= version(&**object)) {
            self.0.lock().remove(uid(&**object));
        }
    }

    /// What the cache shows: an object like this, or that it is gone.
    pub(crate) fn seen(&self, change: &Change<K>)
    where
        K: Clone,
    {
        let object = change.object();
        let mut all = self.0.lock();
        let is_as_new = |written: &Arc<K>| version(&**written) <= version(&**object);
        if matches!(change, Change::Deleted(_)) || all.get(uid(&**object)).is_some_and(is_as_new) {
            all.remove(uid(&**object));
        }
    }

    /// An object of the cache, or the newer one that was written.
    pub(crate) fn newest(&self, object: Arc<K>) -> Arc<K> {
        let all = self.0.lock();
        let written = all.get(uid(&*object));
        written.filter(|written| version(&***written) > version(&*object)).cloned().unwrap_or(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;

    fn set(version: &str, replicas: i32) -> Arc<ReplicaSet> {
        let mut set = ReplicaSet::default();
        (set.metadata.uid, set.metadata.resource_version) = (Some("u".into()), Some(version.into()));
        set.spec.get_or_insert_default().replicas = Some(replicas);
        Arc::new(set)
    }

    #[test]
    fn what_was_written_counts_until_the_cache_is_as_new() {
        let written = Written::default();
        let of =
            |version: &str, replicas| written.newest(set(version, replicas)).spec.as_ref().and_then(|s| s.replicas);
        assert_eq!(of("9", 1), Some(1));
        written.note(&set("10", 2), || Some(set("9", 1)));
        assert_eq!((of("9", 1), of("10", 2), of("11", 3)), (Some(2), Some(2), Some(3)));
        let shows = |version: &str, replicas| Change::Applied { old: None, new: set(version, replicas) };
        written.seen(&shows("9", 1));
        assert_eq!(of("9", 1), Some(2), "an older view is no news");
        written.seen(&shows("11", 3));
        assert_eq!(of("9", 1), Some(1));
        written.note(&set("12", 4), || Some(set("12", 4)));
        assert_eq!(of("9", 1), Some(1), "the cache knew it first");
        written.note(&set("12", 4), || None);
        assert_eq!(of("9", 1), Some(4));
        written.seen(&Change::Deleted(set("9", 1)));
        assert_eq!(of("9", 1), Some(1));
    }
}
