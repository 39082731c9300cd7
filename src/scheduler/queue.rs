//! Pods that wait for a decision: those that are due, by priority and age, and those that wait for a change.

use edge_client::Key;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

/// The place of a due pod: higher priority first, then who came first.
type Place = (Reverse<i32>, u64, Key);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    due: BTreeSet<Place>,
    places: HashMap<Key, Place>,
    /// Pods that fit nowhere, with their priority and the number they came with.
    parked: HashMap<Key, (i32, u64)>,
    numbers: HashMap<Key, u64>,
    next: u64,
}

impl Queue {
    /// Adds a new or changed pod.
    pub(crate) fn add(&mut self, key: Key, priority: i32) {
        self.parked.remove(&key);
        let number = *self.numbers.entry(key.clone()).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        if let Some(old) = self.places.remove(&key) {
            self.due.remove(&old);
        }
        let place = (Reverse(priority), number, key.clone());
        self.due.insert(place.clone());
        self.places.insert(key, place);
    }

    /// Takes the next pod.
    pub(crate) fn pop(&mut self) -> Option<Key> {
        let (_, _, key) = self.due.pop_first()?;
        self.places.remove(&key);
        Some(key)
    }

    /// Lets a pod wait for a change.
    pub(crate) fn park(&mut self, key: Key, priority: i32) {
        let number = self.numbers.get(&key).copied().unwrap_or_default();
        self.parked.insert(key, (priority, number));
    }

    /// Something changed that may help a parked pod.
    pub(crate) fn retry_all(&mut self) {
        for (key, (priority, _)) in std::mem::take(&mut self.parked) {
            self.add(key, priority);
        }
    }

    /// Something went wrong with a pod that was decided.
    pub(crate) fn retry(&mut self, key: &Key) {
        let priority = self.parked.get(key).map_or(0, |(p, _)| *p);
        self.add(key.clone(), priority);
    }

    /// Forgets a pod.
    pub(crate) fn remove(&mut self, key: &Key) {
        self.parked.remove(key);
        self.numbers.remove(key);
        if let Some(place) = self.places.remove(key) {
            self.due.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_then_age() {
        let key = |n: &str| Key::new("ns", n);
        let mut q = Queue::default();
        q.add(key("old"), 0);
        q.add(key("new"), 0);
        q.add(key("urgent"), 10);
        q.add(key("old"), 0);
        assert_eq!(q.pop(), Some(key("urgent")));
        assert_eq!(q.pop(), Some(key("old")));
        q.park(key("old"), 0);
        assert_eq!(q.pop(), Some(key("new")));
        assert_eq!(q.pop(), None);
        q.retry_all();
        assert_eq!(q.pop(), Some(key("old")));
        q.park(key("old"), 0);
        q.remove(&key("old"));
        q.retry_all();
        assert_eq!(q.pop(), None);
    }
}
