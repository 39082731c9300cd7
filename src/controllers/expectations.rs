//! Expectations: which creations and deletions a controller has asked for and not yet seen in its cache.
//!
//! A controller that acts on a cache must not act again before the cache has seen what it did, or it would make too many
//! pods. Pods are expected by UID: the news of others, which may be old news (all of them are when a controller begins), is no sign that
//! what was made is known; and one whose deletion takes long counts once.

use edge_client::{Change, Key, ResourceExt};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// After this time a lost event (of a pod that vanished some other way) no longer holds a controller up.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

struct Expected {
    /// Creations that are being asked for.
    asked: usize,
    /// Pods that came while they were: the cache may know of a pod before the one who made it does.
    early: HashSet<String>,
    /// Pods that were made.
    creations: HashSet<String>,
    deletions: HashSet<String>,
    since: Instant,
}

impl Expected {
    fn answered(&mut self, answers: usize) {
        self.asked = self.asked.saturating_sub(answers);
        if self.asked == 0 {
            self.early = HashSet::new();
        }
    }
}

/// The expectations of one controller, by the key of the owner.
#[derive(Default)]
pub(crate) struct Expectations(Mutex<HashMap<Key, Expected>>);

impl Expectations {
    /// Expects so many creations, and deletions (by UID). Call before doing them, and then [`Self::made`] or [`Self::not_made`] for each
    /// creation.
    pub(crate) fn expect(&self, key: &Key, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let expected = Expected {
            asked: creations,
            early: HashSet::new(),
            creations: HashSet::new(),
            deletions: deletions.into_iter().collect(),
            since: Instant::now(),
        };
        self.0.lock().insert(key.clone(), expected);
    }

    /// A pod was made, as the API server says.
    pub(crate) fn made(&self, key: &Key, pod: &Pod) {
        if let Some(e) = self.0.lock().get_mut(key) {
            let uid = pod.uid().unwrap_or_default();
            if !e.early.remove(&uid) {
                e.creations.insert(uid);
            }
            e.answered(1);
        }
    }

    /// So many pods were not made after all.
    pub(crate) fn not_made(&self, key: &Key, count: usize) {
        if let Some(e) = self.0.lock().get_mut(key) {
            e.answered(count);
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
        let mut all = self.0.lock();
        let Some(e) = all.get_mut(key) else { return };
        let pod = change.object();
        let uid = pod.uid().unwrap_or_default();
        if matches!(change, Change::Deleted(_)) || pod.metadata.deletion_timestamp.is_some() {
            e.deletions.remove(&uid);
        }
        if !e.creations.remove(&uid) && e.asked > 0 {
            e.early.insert(uid);
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
        let seen = e.asked == 0 && e.creations.is_empty() && e.deletions.is_empty();
        let done = seen || e.since.elapsed() > FORGOTTEN_AFTER;
        if done {
            all.remove(key);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    fn pod(uid: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        Arc::new(pod)
    }

    fn comes(uid: &str) -> Change<Pod> {
        Change::Applied { old: None, new: pod(uid) }
    }

    #[tokio::test(start_paused = true)]
    async fn acts_again_only_when_everything_was_seen() {
        let e = Expectations::default();
        let key = Key::new("ns", "rs");
        assert!(e.satisfied(&key));
        e.expect(&key, 3, ["a".to_owned()]);
        e.made(&key, &pod("x"));
        e.observe(&key, &comes("x"));
        e.observe(&key, &Change::Deleted(pod("a")));
        e.deleted(&key, "unknown");
        assert!(!e.satisfied(&key), "one has no answer yet");
        e.not_made(&key, 1);
        e.made(&key, &pod("y"));
        assert!(!e.satisfied(&key), "the cache does not know y");
        e.observe(&key, &comes("y"));
        assert!(e.satisfied(&key));
        e.expect(&key, 1, []);
        tokio::time::advance(FORGOTTEN_AFTER + Duration::from_secs(1)).await;
        assert!(e.satisfied(&key));
    }

    #[test]
    fn the_cache_may_know_first() {
        let e = Expectations::default();
        let key = Key::new("ns", "rs");
        e.expect(&key, 2, []);
        e.observe(&key, &comes("x"));
        e.made(&key, &pod("x"));
        e.observe(&key, &comes("y"));
        e.observe(&key, &Change::Deleted(pod("y")));
        e.made(&key, &pod("y"));
        assert!(e.satisfied(&key));
    }

    #[test]
    fn news_of_others_is_no_news_of_what_was_made() {
        let e = Expectations::default();
        let key = Key::new("ns", "rs");
        e.expect(&key, 1, []);
        e.observe(&key, &comes("old"));
        e.made(&key, &pod("x"));
        e.observe(&key, &comes("older"));
        assert!(!e.satisfied(&key));
        e.observe(&key, &comes("x"));
        assert!(e.satisfied(&key));
    }
}
