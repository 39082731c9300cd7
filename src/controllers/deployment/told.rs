//! What ReplicaSets have been told since they last said that they had heard.
//!
//! A ReplicaSet that was told to have more pods, and then fewer, may be making those of the first order when the second one comes: until its
//! status says that the newest is known, it may have as many as it was ever told, and as few. (Kubernetes goes by the newest order,
//! and then has more pods than it may for a moment.)

use edge_client::ResourceExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// By UID.
#[derive(Default)]
pub(super) struct Told(Mutex<HashMap<String, RangeInclusive<i32>>>);

fn has_heard(set: &ReplicaSet) -> bool {
    set.status.as_ref().and_then(|s| s.observed_generation) >= set.metadata.generation
}

impl Told {
    /// A set with `before` replicas has been told to have `after`.
    pub(super) fn note(&self, set: &ReplicaSet, before: i32, after: i32) {
        let (least, most) = (before.min(after), before.max(after));
        let mut all = self.0.lock();
        let known = all.entry(set.uid().unwrap_or_default()).or_insert(least..=most);
        *known = least.min(*known.start())..=most.max(*known.end());
    }

    /// A set is gone.
    pub(super) fn gone(&self, set: &ReplicaSet) {
        self.0.lock().remove(set.metadata.uid.as_deref().unwrap_or_default());
    }

    /// Sets with as many pods in their status, and as few that are available, as they may have.
    pub(super) fn cautious(&self, sets: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
        let mut all = self.0.lock();
        let mut judge = |set: &Arc<ReplicaSet>| {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            if has_heard(set) {
                all.remove(uid);
            }
            let Some(told) = all.get(uid) else { return set.clone() };
            let mut set = (**set).clone();
            let status = set.status.get_or_insert_default();
            status.replicas = status.replicas.max(*told.end());
            status.available_replicas = status.available_replicas.map(|n| n.min(*told.start()));
            Arc::new(set)
        };
        sets.iter().map(&mut judge).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(generation: i64, observed: i64, pods: i32) -> Arc<ReplicaSet> {
        let mut set = ReplicaSet::default();
        (set.metadata.uid, set.metadata.generation) = (Some("u".into()), Some(generation));
        let status = set.status.get_or_insert_default();
        (status.observed_generation, status.replicas) = (Some(observed), pods);
        status.available_replicas = Some(pods);
        Arc::new(set)
    }

    #[test]
    fn a_set_that_has_not_heard_may_have_what_it_was_ever_told() {
        let told = Told::default();
        let judged = |set: Arc<ReplicaSet>| {
            let set = told.cautious(&[set]).remove(0);
            let status = set.status.clone().unwrap_or_default();
            (status.replicas, status.available_replicas.unwrap_or(0))
        };
        assert_eq!(judged(set(2, 1, 8)), (8, 8), "nobody has told it anything");
        told.note(&set(3, 1, 8), 8, 11);
        told.note(&set(4, 1, 8), 11, 6);
        told.note(&set(5, 1, 8), 6, 9);
        assert_eq!(judged(set(5, 1, 8)), (11, 6));
        assert_eq!(judged(set(5, 4, 12)), (12, 6));
        assert_eq!(judged(set(5, 5, 11)), (11, 11));
        assert_eq!(judged(set(6, 5, 9)), (9, 9), "what it has heard is over");
        told.note(&set(7, 5, 9), 9, 3);
        told.gone(&set(7, 5, 9));
        assert_eq!(judged(set(7, 5, 9)), (9, 9));
    }
}
