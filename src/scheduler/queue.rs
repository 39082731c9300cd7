//! Pods that wait for a decision: those that are due, those that were tried a moment ago, and those that wait for a change.

use crate::plugins::Plugins;
use crate::pod::{Kind, Pending};
use edge_client::Key;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where a pod of the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Due, with this priority: higher ones first, then who came first.
    Active(i32),
    /// A change may help it, but it was tried a moment ago: its turn comes when nobody else is due, or at this time.
    Recent(Instant),
    /// Something went wrong with it: its turn comes at this time and not before.
    Failed(Instant),
    /// Fits nowhere: waits for a change.
    Parked,
    /// Being decided or bound, or the API is being told about it.
    Busy,
}

#[derive(Debug)]
struct Entry {
    pod: Pending,
    number: u64,
    attempts: u32,
    tried: Instant,
    /// Those that were refused alike, which the same changes help; nothing before it was.
    alike: Option<Alike>,
    at: At,
    /// While it was busy, something changed that may help it. Shared with whoever is about to tell that it fits nowhere.
    again: Arc<AtomicBool>,
}

/// Pods of one kind that were refused by the same plugins.
type Alike = (Kind, Plugins);

/// Pods by what changes may help them, so that a change is looked at once for very many of them.
#[derive(Debug, Default)]
struct Waiting(HashMap<Alike, BTreeSet<Key>>);

impl Waiting {
    fn insert(&mut self, alike: &Alike, key: &Key) {
        match self.0.get_mut(alike) {
            Some(keys) => drop(keys.insert(key.clone())),
            None => drop(self.0.insert(*alike, BTreeSet::from([key.clone()]))),
        }
    }

    fn remove(&mut self, alike: &Alike, key: &Key) {
        if let Some(keys) = self.0.get_mut(alike) {
            keys.remove(key);
            if keys.is_empty() {
                self.0.remove(alike);
            }
        }
    }

    /// Takes out those that something helps; it is asked about one of each kind.
    fn take(&mut self, helps: impl Fn(&Key, Plugins) -> bool) -> impl Iterator<Item = Key> {
        let helped: Vec<Alike> = self
            .0
            .iter()
            .filter(|((_, by), keys)| keys.first().is_some_and(|key| helps(key, *by)))
            .map(|(alike, _)| *alike)
            .collect();
        let taken: Vec<_> = helped.iter().filter_map(|alike| self.0.remove(alike)).collect();
        taken.into_iter().flatten()
    }
}

/// How long pods wait after attempts: the first time, and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) initial: Duration,
    pub(crate) longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), longest: Duration::from_secs(10) }
    }
}

impl Backoff {
    fn after(self, attempts: u32) -> Duration {
        self.initial.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(self.longest)
    }
}

/// The pods that wait.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: HashMap<Key, Entry>,
    active: BTreeSet<(Reverse<i32>, u64, Key)>,
    recent: BTreeSet<(Instant, Key)>,
    failed: BTreeSet<(Instant, Key)>,
    parked: Waiting,
    /// Those that were refused, of which the API is being told, as long as nothing has changed that may help them.
    telling: Waiting,
    next: u64,
    backoff: Backoff,
}

impl Queue {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, ..Self::default() }
    }

    /// Adds a new pod, or one that has changed itself: what was decided about it counts no more.
    pub(crate) fn add(&mut self, pod: Pending, now: Instant) {
        let key = pod.key().clone();
        if self.entries.get(&key).is_some_and(|e| e.pod.info.uid != pod.info.uid) {
            self.remove(&key);
        }
        match self.entries.get_mut(&key) {
            Some(entry) => {
                entry.pod = pod;
                if entry.at == At::Busy {
                    entry.again.store(true, Ordering::Relaxed);
                    // it may be of another kind now
                    entry.alike.take().iter().for_each(|alike| self.telling.remove(alike, &key));
                    return;
                }
            }
            None => {
                self.next += 1;
                let number = self.next;
                let entry =
                    Entry { pod, number, attempts: 0, tried: now, alike: None, at: At::Busy, again: Arc::default() };
                self.entries.insert(key.clone(), entry);
            }
        }
        self.activate(&key);
    }

    fn activate(&mut self, key: &Key) {
        if let Some(priority) = self.entries.get(key).map(|e| e.pod.info.priority) {
            self.move_to(key, At::Active(priority));
        }
    }

    /// Takes a newer state of a pod whose decision it does not matter to.
    pub(crate) fn refresh(&mut self, pod: Pending) {
        if let Some(entry) = self.entries.get_mut(pod.key()) {
            entry.pod = pod;
        }
    }

    fn move_to(&mut self, key: &Key, at: At) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match entry.at {
            At::Active(priority) => drop(self.active.remove(&(Reverse(priority), entry.number, key.clone()))),
            At::Recent(time) => drop(self.recent.remove(&(time, key.clone()))),
            At::Failed(time) => drop(self.failed.remove(&(time, key.clone()))),
            At::Parked => entry.alike.iter().for_each(|alike| self.parked.remove(alike, key)),
            At::Busy => entry.alike.iter().for_each(|alike| self.telling.remove(alike, key)),
        }
        entry.at = at;
        match at {
            At::Active(priority) => drop(self.active.insert((Reverse(priority), entry.number, key.clone()))),
            At::Recent(time) => drop(self.recent.insert((time, key.clone()))),
            At::Failed(time) => drop(self.failed.insert((time, key.clone()))),
            At::Parked => entry.alike.iter().for_each(|alike| self.parked.insert(alike, key)),
            // of one that is taken for a decision nothing is known yet
            At::Busy => entry.alike = None,
        }
    }

    /// Takes the next pod for a decision.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Pending> {
        while let Some((_, key)) = self.failed.first().filter(|(time, _)| *time <= now).cloned() {
            self.activate(&key);
        }
        while let Some((_, key)) = self.recent.first().filter(|(time, _)| *time <= now).cloned() {
            self.activate(&key);
        }
        let active = self.active.first().map(|(_, _, key)| key);
        let key = active.or_else(|| self.recent.first().map(|(_, key)| key))?.clone();
        self.move_to(&key, At::Busy);
        let entry = self.entries.get_mut(&key)?;
        entry.attempts += 1;
        entry.tried = now;
        entry.again = Arc::default();
        Some(entry.pod.clone())
    }

    /// When a pod that nothing but time helps is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.failed.first().map(|(time, _)| *time)
    }

    /// The pod fits nowhere, and the API is being told so. What is given becomes true when a change may help it: then this is old news.
    pub(crate) fn refused(&mut self, key: &Key, by: Plugins) -> Arc<AtomicBool> {
        let Some(entry) = self.entries.get_mut(key) else { return Arc::default() };
        let alike = (Kind::of(&entry.pod), by);
        self.telling.insert(&alike, key);
        entry.alike = Some(alike);
        entry.again.clone()
    }

    /// Whether this very pod is being worked on.
    fn is_busy(&self, key: &Key, uid: &str) -> bool {
        self.entries.get(key).is_some_and(|e| e.at == At::Busy && e.pod.info.uid == uid)
    }

    /// The API has been told that a pod fits nowhere: it waits for a change, unless there was one meanwhile.
    pub(crate) fn park(&mut self, key: &Key, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get(key).filter(|_| self.is_busy(key, uid)) else { return };
        let at = if entry.again.load(Ordering::Relaxed) { self.due(entry, now) } else { At::Parked };
        self.move_to(key, at);
    }

    /// Where a pod goes that a change may help.
    fn due(&self, entry: &Entry, now: Instant) -> At {
        let time = entry.tried + self.backoff.after(entry.attempts);
        if time <= now { At::Active(entry.pod.info.priority) } else { At::Recent(time) }
    }

    /// Something went wrong with a pod that was decided.
    pub(crate) fn fail(&mut self, key: &Key, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get(key).filter(|_| self.is_busy(key, uid)) else { return };
        let time = now + self.backoff.after(entry.attempts);
        self.move_to(key, At::Failed(time));
    }

    /// Something changed: those that it may help get their turn.
    pub(crate) fn wake(&mut self, now: Instant, helps: impl Fn(&Pending, Plugins) -> bool) {
        let (entries, helps) = (&self.entries, &helps);
        let of_key = |key: &Key, by| entries.get(key).is_some_and(|entry| helps(&entry.pod, by));
        for key in self.telling.take(of_key) {
            if let Some(entry) = entries.get(&key) {
                entry.again.store(true, Ordering::Relaxed);
            }
        }
        for key in self.parked.take(of_key).collect::<Vec<_>>() {
            if let Some(at) = self.entries.get(&key).map(|entry| self.due(entry, now)) {
                self.move_to(&key, at);
            }
        }
    }

    /// Gives one that waits its turn.
    pub(crate) fn wake_one(&mut self, key: &Key) {
        if self.entries.get(key).is_some_and(|entry| entry.at == At::Parked) {
            self.activate(key);
        }
    }

    /// Whether anybody waits for a change.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.parked.0.is_empty() || !self.telling.0.is_empty()
    }

    /// Forgets a pod.
    pub(crate) fn remove(&mut self, key: &Key) {
        self.move_to(key, At::Busy);
        self.entries.remove(key);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::plugins::Plugin;
    use crate::testing::pending_pod;
    use serde_json::json;

    fn pod(name: &str, priority: i32) -> Pending {
        pending_pod(name, json!({"priority": priority}))
    }

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    fn pop(q: &mut Queue, now: Instant) -> Option<String> {
        q.pop(now).map(|p| p.key().name.clone())
    }

    fn refuse(q: &mut Queue, name: &str, now: Instant) {
        q.refused(&key(name), Plugins::default().with(Plugin::NodePorts));
        q.park(&key(name), name, now);
    }

    #[test]
    fn priority_then_age() {
        let (mut q, now) = (Queue::new(Backoff::default()), Instant::now());
        for (name, priority) in [("old", 0), ("new", 0), ("urgent", 10), ("old", 0)] {
            q.add(pod(name, priority), now);
        }
        let order: Vec<String> = std::iter::from_fn(|| pop(&mut q, now)).collect();
        assert_eq!(order, ["urgent", "old", "new"]);
    }

    #[test]
    fn who_fits_nowhere_waits_for_what_may_help() {
        let (mut q, now) = (Queue::new(Backoff::default()), Instant::now());
        q.add(pod("p", 0), now);
        assert!(pop(&mut q, now).is_some());
        refuse(&mut q, "p", now);
        q.wake(now, |_, by| by.has(Plugin::NodeAffinity));
        assert_eq!(pop(&mut q, now), None);
        assert!(q.is_waited_for() && q.next_due().is_none(), "nothing but a change wakes it");
        q.wake(now, |_, by| by.has(Plugin::NodePorts));
        // it was tried a moment ago: others come first
        q.add(pod("other", -5), now);
        assert_eq!((pop(&mut q, now), pop(&mut q, now)), (Some("other".into()), Some("p".into())));
        refuse(&mut q, "p", now);
        q.remove(&key("p"));
        q.wake(now, |_, _| true);
        assert_eq!(pop(&mut q, now), None);
    }

    #[test]
    fn a_change_while_the_api_is_told_is_not_lost() {
        let (mut q, now) = (Queue::new(Backoff::default()), Instant::now());
        q.add(pod("p", 0), now);
        assert!(pop(&mut q, now).is_some());
        let outdated = q.refused(&key("p"), Plugins::default().with(Plugin::NodePorts));
        q.wake(now, |_, _| false);
        assert!(!outdated.load(Ordering::Relaxed));
        q.wake(now, |_, _| true);
        assert!(outdated.load(Ordering::Relaxed), "that it fits nowhere is old news");
        assert_eq!(pop(&mut q, now), None);
        q.park(&key("p"), "p", now);
        assert_eq!(pop(&mut q, now), Some("p".into()));
        // the same when the pod itself changes
        q.add(pod("p", 1), now);
        q.park(&key("p"), "p", now);
        assert_eq!(q.pop(now).unwrap().info.priority, 1);
    }

    #[test]
    fn a_change_is_looked_at_once_for_all_that_are_alike() {
        let (mut q, now) = (Queue::new(Backoff::default()), Instant::now());
        let spec = |cpu: &str, volume: &str| {
            json!({"volumes": [{"name": volume, "emptyDir": {}}],
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}, "volumeMounts": [{"name": volume, "mountPath": "/"}]}]})
        };
        let waiting = (0..100).map(|i| pending_pod(&format!("small-{i}"), spec("1", &format!("v-{i}"))));
        let devices = json!({"containers": [{"name": "c", "resources": {"requests": {"example.org/gpu": "1"}}}]});
        let claim = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
        let others = ["gpu-0", "gpu-1"].map(|name| pending_pod(name, devices.clone()));
        let others = others.into_iter().chain([pending_pod("large", spec("2", "v")), pending_pod("claims", claim)]);
        waiting.chain(others).for_each(|pod| q.add(pod, now));
        let names: Vec<String> = std::iter::from_fn(|| pop(&mut q, now)).collect();
        names.iter().for_each(|name| drop(q.refused(&key(name), Plugins::default().with(Plugin::NodeResourcesFit))));
        let asked = std::cell::Cell::new(0);
        let wake = |q: &mut Queue, cpu: i64| {
            asked.set(0);
            q.wake(now, |pod, _| {
                asked.set(asked.get() + 1);
                pod.info.requests.cpu >= cpu
            });
            asked.get()
        };
        assert_eq!(wake(&mut q, 3000), 5, "one of those that are alike, and each other one");
        assert_eq!(wake(&mut q, 2000), 5);
        assert_eq!(wake(&mut q, 2000), 4, "what is helped already is not looked at again");
        names.iter().for_each(|name| q.park(&key(name), name, now));
        assert_eq!((pop(&mut q, now), pop(&mut q, now)), (Some("large".into()), None));
        assert_eq!(wake(&mut q, 1000), 4);
        assert_eq!(std::iter::from_fn(|| pop(&mut q, now)).count(), 100);
        // one that changes while the API is told stands for no others any more
        refuse(&mut q, "small-0", now);
        q.refused(&key("small-1"), Plugins::default().with(Plugin::NodePorts));
        q.add(pending_pod("small-1", spec("7", "v")), now);
        assert_eq!(wake(&mut q, 1000), 4, "small-0, both with devices, and the one with a claim");
    }

    #[test]
    fn failures_wait_longer_and_longer_whatever_changes() {
        let (mut q, now) = (Queue::new(Backoff::default()), Instant::now());
        q.add(pod("p", 0), now);
        let mut time = now;
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert!(pop(&mut q, time).is_some());
            q.fail(&key("p"), "p", time);
            q.wake(time, |_, _| true);
            assert_eq!(pop(&mut q, time), None);
            assert_eq!(q.next_due(), Some(time + Duration::from_secs(seconds)));
            time += Duration::from_secs(seconds);
        }
    }
}
