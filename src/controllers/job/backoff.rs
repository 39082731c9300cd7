//! How long a Job waits after failures before it makes the next pod.

use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// After the first failure, and at most (Kubernetes' values).
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(10 * 60);

/// The failures of a Job since its last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    failures: u32,
    last: Option<Timestamp>,
}

impl Record {
    /// The record after some more pods have ended.
    #[must_use]
    pub(super) fn after(self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>]) -> Self {
        let ends = |pods: &[Arc<Pod>]| pods.iter().map(|p| finished_at(p)).collect::<Vec<_>>();
        let failed = ends(failed);
        match ends(succeeded).into_iter().max() {
            None if failed.is_empty() => self,
            None => Self {
                failures: self.failures.saturating_add(u32::try_from(failed.len()).unwrap_or(u32::MAX)),
                last: failed.into_iter().max(),
            },
            Some(success) => {
                let later: Vec<_> = failed.into_iter().filter(|at| *at > success).collect();
                Self { failures: u32::try_from(later.len()).unwrap_or(u32::MAX), last: later.into_iter().max() }
            }
        }
    }

    /// How long the next pod has to wait.
    pub(super) fn remaining(self, now: Timestamp) -> Duration {
        self.last.map_or(Duration::ZERO, |last| remaining(self.failures, last, now))
    }
}

/// How long to wait after so many failures, the last of them then. A clock that was set back makes nobody wait longer.
pub(super) fn remaining(failures: u32, last: Timestamp, now: Timestamp) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let pause = FIRST.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST);
    let elapsed = Duration::try_from(now.duration_since(last)).unwrap_or_default();
    pause.saturating_sub(elapsed)
}

/// When a pod ended: when its last container did, else when it was no longer ready, else when it was deleted.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let ends: Option<Vec<Timestamp>> =
        statuses.iter().map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)).collect();
    if let Some(last) = ends.and_then(|e| e.into_iter().max()) {
        return last;
    }
    let unready = pods::condition(pod, "Ready").filter(|c| c.status == "False");
    if let Some(at) = unready.and_then(|c| c.last_transition_time.as_ref()) {
        return at.0;
    }
    let meta = &pod.metadata;
    if let Some(at) = &meta.deletion_timestamp {
        let grace = SignedDuration::from_secs(meta.deletion_grace_period_seconds.unwrap_or(0));
        return at.0.checked_sub(grace).unwrap_or(at.0);
    }
    meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ended(second: i64) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "",
                "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": at(second)}}}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn pauses_double_and_end() {
        for (failures, elapsed, want) in [
            (0, 0, 0),
            (1, 0, 10),
            (1, 4, 6),
            (1, 11, 0),
            (2, 0, 20),
            (3, 0, 40),
            (7, 0, 600),
            (40, 0, 600),
            (1, -1_000_000, 10),
        ] {
            assert_eq!(remaining(failures, at(0), at(elapsed)).as_secs(), want, "{failures} {elapsed}");
        }
    }

    #[test]
    fn a_success_forgives_the_failures_before_it() {
        let two = Record::default().after(&[], &[ended(5), ended(3)]);
        assert_eq!(two, Record { failures: 2, last: Some(at(5)) });
        assert_eq!(two.after(&[], &[]), two);
        assert_eq!(two.after(&[ended(6)], &[]), Record::default());
        assert_eq!(two.after(&[ended(6)], &[ended(5), ended(7)]), Record { failures: 1, last: Some(at(7)) });
        assert_eq!(two.remaining(at(6)).as_secs(), 19);
    }

    #[test]
    fn when_a_pod_ended() {
        let pod = |v| -> Pod { serde_json::from_value(v).unwrap() };
        assert_eq!(finished_at(&ended(7)), at(7));
        let unready = json!({"metadata": {"creationTimestamp": at(1)}, "status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": at(4)}]}});
        assert_eq!(finished_at(&pod(unready)), at(4));
        let deleted = json!({"metadata": {"creationTimestamp": at(1), "deletionTimestamp": at(40), "deletionGracePeriodSeconds": 30}});
        assert_eq!(finished_at(&pod(deleted)), at(10));
        assert_eq!(finished_at(&pod(json!({"metadata": {"creationTimestamp": at(1)}}))), at(1));
    }
}
