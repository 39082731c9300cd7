//! What the store keeps in memory: volatile keys, the recent history, and who watches.

use crate::error::{Error, Result};
use crate::types::{Event, EventBatch, KeyValue, List, ListRequest, Revision, Watcher};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// History older than this goes when something new comes.
const MAX_AGE: Duration = Duration::from_secs(300);
/// No more transactions than this are remembered.
const MAX_ENTRIES: usize = 4096;
/// No more bytes than this are remembered (values are shared with whoever else has them).
const MAX_BYTES: usize = 4 << 20;
/// Keys that expire have no more bytes than this together; those that have the least time left go early. Some 4,000 Events.
pub(super) const MAX_EXPIRING: usize = 4 << 20;
/// To how many bytes they are brought then, so that not each further one takes another's place.
const ENOUGH_EXPIRING: usize = MAX_EXPIRING / 8 * 7;
/// A watcher that is so many transactions behind is ended.
const MAX_LAG: usize = 1024;

/// A committed transaction, and how its keys were before.
#[derive(Debug)]
pub(super) struct Past {
    batch: Arc<EventBatch>,
    before: Vec<(Bytes, Option<KeyValue>)>,
    bytes: usize,
    at: Instant,
}

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) revision: Revision,
    /// History up to and including this revision is forgotten.
    pub(super) compacted: Revision,
    pub(super) volatile: BTreeMap<Bytes, KeyValue>,
    pub(super) history: VecDeque<Past>,
    history_bytes: usize,
    expiries: BTreeSet<(Instant, Bytes)>,
    expires: BTreeMap<Bytes, Instant>,
    /// What the keys that expire take.
    expiring_bytes: usize,
    watchers: Vec<mpsc::Sender<Result<Arc<EventBatch>>>>,
}

impl Memory {
    pub(super) fn new(revision: Revision) -> Self {
        Self {
            revision,
            compacted: revision,
            volatile: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            expiries: BTreeSet::new(),
            expires: BTreeMap::new(),
            expiring_bytes: 0,
            watchers: Vec::new(),
        }
    }

    /// The revision that a request means; zero is the newest.
    pub(super) fn check(&self, requested: Revision) -> Result<Revision> {
        if requested > self.revision {
            return Err(Error::FutureRevision { requested, current: self.revision });
        }
        if requested != 0 && requested < self.compacted {
            return Err(Error::Compacted { requested, compacted: self.compacted });
        }
        Ok(if requested == 0 { self.revision } else { requested })
    }

    /// Lists out of the durable keys with the prefix and what is in memory, as of an earlier revision.
    pub(super) fn list(&self, durable: Vec<KeyValue>, request: &ListRequest, revision: Revision) -> List {
        let selected = |key: &Bytes| key.starts_with(&request.prefix) && *key >= request.start;
        let mut all: BTreeMap<Bytes, KeyValue> = durable.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        for (key, kv) in &self.volatile {
            all.insert(key.clone(), kv.clone());
        }
        for past in self.history.iter().rev().take_while(|p| p.batch.revision > revision) {
            for (key, before) in &past.before {
                match before {
                    Some(kv) => drop(all.insert(key.clone(), kv.clone())),
                    None => drop(all.remove(key)),
                }
            }
        }
        let mut items: Vec<KeyValue> = all.into_values().filter(|kv| selected(&kv.key)).collect();
        let limit = if request.limit == 0 { items.len() } else { request.limit };
        let remaining = items.len().saturating_sub(limit);
        items.truncate(limit);
        List { items, remaining, revision }
    }

    /// Begins a watch after a revision.
    pub(super) fn watch(&mut self, prefix: Bytes, after: Revision) -> Result<Watcher> {
        self.check(after)?;
        if after < self.compacted {
            return Err(Error::Compacted { requested: after, compacted: self.compacted });
        }
        // one place more than the lag that is allowed: for telling that it was exceeded
        let (tx, live) = mpsc::channel(MAX_LAG + 1);
        let mut watcher = Watcher { history: VecDeque::new(), live, prefix };
        for past in self.history.iter().filter(|p| p.batch.revision > after) {
            watcher.history.extend(watcher.selected(&past.batch));
        }
        self.watchers.push(tx);
        Ok(watcher)
    }

    pub(super) fn compact(&mut self, revision: Revision) {
        while self.history.front().is_some_and(|p| p.batch.revision <= revision) {
            self.drop_oldest();
        }
        self.compacted = self.compacted.max(revision);
    }

    fn drop_oldest(&mut self) {
        if let Some(past) = self.history.pop_front() {
            self.history_bytes -= past.bytes;
            self.compacted = past.batch.revision;
        }
    }

    /// Takes a committed transaction in, and tells the watchers.
    pub(super) fn publish(&mut self, batch: EventBatch, before: Vec<(Bytes, Option<KeyValue>)>, now: Instant) {
        self.revision = batch.revision;
        if batch.events.is_empty() {
            return;
        }
        let old: usize = before.iter().map(|(k, b)| k.len() + b.as_ref().map_or(0, size)).sum();
        let new: usize = batch.events.iter().map(|e| if let Event::Put(kv) = e { size(kv) } else { 0 }).sum();
        let batch = Arc::new(batch);
        self.watchers.retain(|w| match w.capacity() {
            0 => false,
            1 => {
                // the last place is for this; the watcher may just have gone, and then nobody needs to know
                let _ = w.try_send(Err(Error::Lagged));
                false
            }
            _ => w.try_send(Ok(batch.clone())).is_ok(),
        });
        self.history.push_back(Past { batch, before, bytes: old + new, at: now });
        self.history_bytes += old + new;
        while self.history.len() > MAX_ENTRIES
            || self.history_bytes > MAX_BYTES
            || self.history.front().is_some_and(|p| now.duration_since(p.at) > MAX_AGE)
        {
            if self.history.len() <= 1 {
                break;
            }
            self.drop_oldest();
        }
    }

    pub(super) fn set_volatile(&mut self, kv: KeyValue, expires: Option<Instant>) {
        self.remove_volatile(&kv.key);
        if let Some(at) = expires {
            self.expiries.insert((at, kv.key.clone()));
            self.expires.insert(kv.key.clone(), at);
            self.expiring_bytes += size(&kv);
        }
        self.volatile.insert(kv.key.clone(), kv);
    }

    pub(super) fn remove_volatile(&mut self, key: &Bytes) {
        let removed = self.volatile.remove(key);
        if let Some(at) = self.expires.remove(key) {
            self.expiries.remove(&(at, key.clone()));
            self.expiring_bytes -= removed.as_ref().map_or(0, size);
        }
    }

    /// Whether keys that expire have to go early.
    pub(super) fn is_crowded(&self) -> bool {
        self.expiring_bytes > MAX_EXPIRING
    }

    /// When the next volatile key expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// The volatile keys whose time is over, or is said to be because there are too many.
    pub(super) fn expired(&self, now: Instant) -> Vec<Bytes> {
        let mut excess = if self.is_crowded() { self.expiring_bytes - ENOUGH_EXPIRING } else { 0 };
        let goes = |(at, key): &&(Instant, Bytes)| {
            let early = excess > 0;
            excess = excess.saturating_sub(self.volatile.get(key).map_or(0, size));
            early || *at <= now
        };
        self.expiries.iter().take_while(goes).map(|(_, key)| key.clone()).collect()
    }
}

/// What a key takes, in bytes.
fn size(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len()
}
