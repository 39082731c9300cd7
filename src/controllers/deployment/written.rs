//! ReplicaSets as this controller has written them, until its cache shows them so.
//!
//! What a Deployment may do next depends on all of its ReplicaSets. Decided by a cache that shows one of them as it was before the
//! last step, a rollout would take another step on top of that one, and have more pods than it may.

use edge_client::ResourceExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// By UID.
#[derive(Default)]
pub(super) struct Written(Mutex<HashMap<String, Arc<ReplicaSet>>>);

fn version(set: &ReplicaSet) -> u64 {
    set.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl Written {
    /// Notes a ReplicaSet as the API server has just given it back.
    pub(super) fn note(&self, set: &Arc<ReplicaSet>) {
        self.0.lock().insert(set.uid().unwrap_or_default(), set.clone());
    }

    /// The cache shows a ReplicaSet like this.
    pub(super) fn seen(&self, set: &ReplicaSet) {
        let mut all = self.0.lock();
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        if all.get(uid).is_some_and(|written| version(written) <= version(set)) {
            all.remove(uid);
        }
    }

    /// A ReplicaSet is gone.
    pub(super) fn gone(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// A ReplicaSet of the cache, or the newer one that was written.
    pub(super) fn newest(&self, set: Arc<ReplicaSet>) -> Arc<ReplicaSet> {
        let all = self.0.lock();
        let written = all.get(set.metadata.uid.as_deref().unwrap_or_default());
        written.filter(|written| version(written) > version(&set)).cloned().unwrap_or(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        written.note(&set("10", 2));
        assert_eq!((of("9", 1), of("10", 2), of("11", 3)), (Some(2), Some(2), Some(3)));
        written.seen(&set("9", 1));
        assert_eq!(of("9", 1), Some(2), "an older view is no news");
        written.seen(&set("11", 3));
        assert_eq!(of("9", 1), Some(1));
        written.note(&set("12", 4));
        written.gone("u");
        assert_eq!(of("9", 1), Some(1));
    }
}
