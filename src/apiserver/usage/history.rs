//! Which earlier moment a node's newest figures are compared with.

use super::sample::{Rate, Sample};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Shortest time over which rates are told, and for which a sample serves all who ask.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
/// The time over which rates are told when the samples allow it.
const WANTED: Duration = Duration::from_secs(10);
/// Longest time over which rates are told: what was longer ago says nothing about now.
const LONGEST: Duration = Duration::from_secs(60);
/// Samples nearer to each other than this are not all kept.
const SPACING: Duration = Duration::from_secs(4);

/// Two moments of a node.
#[derive(Clone, Debug)]
pub(crate) struct View {
    now: Arc<Sample>,
    before: Arc<Sample>,
}

impl View {
    /// What the node uses.
    pub(crate) fn node(&self) -> Option<Rate> {
        self.now.node_since(&self.before)
    }

    /// What the containers of a pod use, with their names; `None` when that is not known of all, or none runs.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Vec<(&str, Rate)>> {
        self.now.pod_since(&self.before, namespace, name)
    }
}

/// What is known of a node.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The last samples, oldest first.
    samples: VecDeque<(Instant, Arc<Sample>)>,
    /// When the node last did not answer.
    failed: Option<Instant>,
}

impl History {
    /// Takes a sample in. `None` when there is nothing to compare it with.
    pub(super) fn add(&mut self, now: Instant, sample: Sample) -> Option<View> {
        self.samples.retain(|(at, _)| now.duration_since(*at) <= LONGEST);
        // who asks every second needs no sample of every second
        if let [.., (before, _), (last, _)] = self.samples.make_contiguous()
            && last.duration_since(*before) < SPACING
        {
            self.samples.pop_back();
        }
        self.samples.push_back((now, Arc::new(sample)));
        self.view()
    }

    /// Notes that the node did not answer.
    pub(super) fn fail(&mut self, now: Instant) {
        self.failed = Some(now);
    }

    /// Whether the node did not answer somebody else a moment ago: who has waited for that need not wait again.
    pub(super) fn has_failed(&self, now: Instant) -> bool {
        self.failed.is_some_and(|at| now.duration_since(at) < SHORTEST)
    }

    /// What serves whoever asks now without a new sample.
    pub(super) fn recent(&self, now: Instant) -> Option<View> {
        let (at, _) = self.samples.back()?;
        if now.duration_since(*at) < SHORTEST { self.view() } else { None }
    }

    /// Whether nothing of it is of use any more.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) > LONGEST)
    }

    fn view(&self) -> Option<View> {
        let (last, now) = self.samples.back()?;
        let age = |at: &Instant| last.duration_since(*at);
        let candidates = self.samples.iter().filter(|(at, _)| age(at) >= SHORTEST);
        let (_, before) = candidates.min_by_key(|(at, _)| age(at).abs_diff(WANTED))?;
        Some(View { now: now.clone(), before: before.clone() })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// The window in seconds after a sample was taken at each of these seconds.
    fn windows(seconds: &[u64]) -> Vec<Option<u64>> {
        let start = Instant::now();
        let mut history = History::default();
        let mut out = Vec::new();
        for second in seconds {
            let view = history.add(start + Duration::from_secs(*second), Sample::default());
            out.push(view.map(|v| {
                let (last, _) = history.samples.back().unwrap();
                let (before, _) = history.samples.iter().find(|(_, s)| Arc::ptr_eq(s, &v.before)).unwrap();
                last.duration_since(*before).as_secs()
            }));
        }
        assert!(history.samples.len() <= 20, "{}", history.samples.len());
        out
    }

    #[test]
    fn windows_are_near_ten_seconds_when_they_can_be() {
        assert_eq!(windows(&[0]), [None]);
        assert_eq!(windows(&[0, 1]), [None, Some(1)]);
        assert_eq!(windows(&[0, 15, 30, 45]), [None, Some(15), Some(15), Some(15)]);
        assert_eq!(windows(&[0, 60, 121, 122]), [None, Some(60), None, Some(1)], "what is too old does not count");
        let every_second: Vec<u64> = (0..100).collect();
        assert!(windows(&every_second)[20..].iter().all(|w| w.is_some_and(|w| (7..=14).contains(&w))));
        let mixed = windows(&[0, 15, 20, 30, 33, 45]);
        assert_eq!(mixed[5], Some(15), "{mixed:?}");
    }

    #[test]
    fn a_sample_serves_all_who_ask_at_the_same_time() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut history = History::default();
        assert!(history.recent(start).is_none() && history.is_stale(start));
        assert!(history.add(start, Sample::default()).is_none());
        assert!(history.recent(at(10)).is_none(), "one sample is no rate");
        assert!(history.add(at(1000), Sample::default()).is_some());
        assert!(history.recent(at(1999)).is_some());
        assert!(history.recent(at(2000)).is_none());
        assert!(!history.has_failed(at(2000)));
        history.fail(at(2000));
        assert!(history.has_failed(at(2999)) && !history.has_failed(at(3000)));
        assert!(!history.is_stale(at(61_000)) && history.is_stale(at(61_001)));
    }
}
