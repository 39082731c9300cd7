//! Expectations: how many creations and deletions a controller has asked for and not yet seen in its cache.
//!
//! A controller that acts on a cache must not act again before the cache has seen what it did, or it would make too many
//! pods. Deletions are expected by UID, so that a pod whose deletion takes long counts once.

use edge_client::{Change, Key, ResourceExt};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// After this time a lost event (of a pod that vanished some other way) no longer holds a controller up.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

struct Expected {
    creations: usize,
    deletions: HashSet<String>,
    since: Instant,
}

/// The expectations of one controller, by the key of the owner.
#[derive(Default)]
pub(crate) struct Expectations(Mutex<HashMap<Key, Expected>>);

impl Expectations {
    /// Expects creations and deletions (by UID). Call before doing them.
    pub(crate) fn expect(&self, key: &Key, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let expected = Expected { creations, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.0.lock().insert(key.clone(), expected);
    }

    /// A pod was seen that the owner may have made, or its creation failed.
    pub(crate) fn created(&self, key: &Key) {
        if let Some(e) = self.0.lock().get_mut(key) {
            e.creations = e.creations.saturating_sub(1);
        }
    }

    /// A pod is seen to be going or gone, or its deletion failed.
    pub(crate) fn deleted(&self, key: &Key, uid: &str) {
        if let Some(e) = self.0.lock().get_mut(key) {
            e.deletions.remove(uid);
        }
    }

    /// Takes note of a change of a pod of the owner.
    pub(crate) fn observe(&self, key: &Key, change: &Change<Pod>) {
        let pod = change.object();
        if matches!(change, Change::Applied { old: None, .. }) {
            self.created(key);
        }
        if matches!(change, Change::Deleted(_)) || pod.metadata.deletion_timestamp.is_some() {
            self.deleted(key, &pod.uid().unwrap_or_default());
        }
    }

    /// Forgets the owner.
    pub(crate) fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }

    /// Whether the cache has seen everything.
    pub(crate) fn satisfied(&self, key: &Key) -> bool {
        let mut all = self.0.lock();
        let Some(e) = all.get(key) else { return true };
        let done = (e.creations == 0 && e.deletions.is_empty()) || e.since.elapsed() > FORGOTTEN_AFTER;
        if done {
            all.remove(key);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn acts_again_only_when_everything_was_seen() {
        let e = Expectations::default();
        let key = Key::new("ns", "rs");
        assert!(e.satisfied(&key));
        e.expect(&key, 2, ["a".to_owned()]);
        e.created(&key);
        e.deleted(&key, "a");
        e.deleted(&key, "unknown");
        assert!(!e.satisfied(&key));
        e.created(&key);
        assert!(e.satisfied(&key));
        e.expect(&key, 1, []);
        tokio::time::advance(FORGOTTEN_AFTER + Duration::from_secs(1)).await;
        assert!(e.satisfied(&key));
    }
}
