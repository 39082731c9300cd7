//! The vocabulary of the store.

use crate::error::{Error, Result};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A point in the store's history. Zero is before everything.
pub type Revision = u64;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Revision that created the key.
    pub create_revision: Revision,
    /// Revision that changed it last.
    pub mod_revision: Revision,
}

/// Where a key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// On disk.
    Durable,
    /// In memory until a restart, or until the time is over; expiry is a deletion like any other.
    Volatile {
        /// Time to live from this put on; `None`: does not expire.
        ttl: Option<Duration>,
    },
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// Its last change must be this revision; zero: it must be absent.
    pub mod_revision: Revision,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// Where it lives from now on.
        class: Class,
    },
    /// Removes a key; absent keys are no error.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Op {
    /// The key it changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Changes that happen together, if all conditions hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// The changes, with each key at most once.
    pub ops: Vec<Op>,
}

impl Transaction {
    /// A put that requires the key's last change to be `mod_revision` (zero: to be absent).
    pub fn put(key: Bytes, value: Bytes, class: Class, mod_revision: Revision) -> Self {
        Self { compares: vec![Compare { key: key.clone(), mod_revision }], ops: vec![Op::Put { key, value, class }] }
    }

    /// A deletion that requires the key's last change to be `mod_revision`.
    pub fn delete(key: Bytes, mod_revision: Revision) -> Self {
        Self { compares: vec![Compare { key: key.clone(), mod_revision }], ops: vec![Op::Delete { key }] }
    }

    /// How many bytes its changes have.
    pub(crate) fn bytes(&self) -> usize {
        let size = |op: &Op| op.key().len() + if let Op::Put { value, .. } = op { value.len() } else { 0 };
        self.ops.iter().map(size).sum()
    }
}

/// The answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything happened, at this revision.
    Committed(Revision),
    /// A condition did not hold and nothing happened.
    Failed {
        /// The keys of the conditions as they are, in their order.
        current: Vec<Option<KeyValue>>,
    },
}

/// Which keys to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Only keys that begin so; empty: all.
    pub prefix: Bytes,
    /// Only keys that are not before this one; empty: from the first.
    pub start: Bytes,
    /// At most so many; zero: all.
    pub limit: usize,
    /// As of this revision; zero: the newest.
    pub revision: Revision,
}

/// Listed keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Keys in order.
    pub items: Vec<KeyValue>,
    /// How many more the request would have listed without its limit.
    pub remaining: usize,
    /// The revision as of which this is.
    pub revision: Revision,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key has a new value.
    Put(KeyValue),
    /// The key is gone.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Event {
    /// The key.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key } => key,
        }
    }
}

/// The changes of one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBatch {
    /// Its revision.
    pub revision: Revision,
    /// Its changes.
    pub events: Vec<Event>,
}

/// The receiving end of a watch.
#[derive(Debug)]
pub struct Watcher {
    pub(crate) history: VecDeque<EventBatch>,
    pub(crate) live: mpsc::Receiver<Result<Arc<EventBatch>>>,
    pub(crate) prefix: Bytes,
}

impl Watcher {
    /// The next changes; waits for them.
    ///
    /// # Errors
    /// [`Error::Lagged`] when changes came faster than they were taken (watch again from the last revision seen),
    /// [`Error::Closed`] when the store was closed.
    pub async fn next(&mut self) -> Result<EventBatch> {
        if let Some(batch) = self.history.pop_front() {
            return Ok(batch);
        }
        loop {
            let batch = self.live.recv().await.unwrap_or(Err(Error::Closed))?;
            if let Some(batch) = self.selected(&batch) {
                return Ok(batch);
            }
        }
    }

    /// The changes that are there already, without waiting.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub fn try_next(&mut self) -> Result<Option<EventBatch>> {
        if let Some(batch) = self.history.pop_front() {
            return Ok(Some(batch));
        }
        loop {
            match self.live.try_recv() {
                Ok(batch) => {
                    if let Some(batch) = self.selected(&*batch?) {
                        return Ok(Some(batch));
                    }
                }
                Err(mpsc::error::TryRecvError::Empty) => return Ok(None),
                Err(mpsc::error::TryRecvError::Disconnected) => return Err(Error::Closed),
            }
        }
    }

    pub(crate) fn selected(&self, batch: &EventBatch) -> Option<EventBatch> {
        let events: Vec<Event> = batch.events.iter().filter(|e| e.key().starts_with(&self.prefix)).cloned().collect();
        (!events.is_empty()).then_some(EventBatch { revision: batch.revision, events })
    }
}

/// Figures about a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The newest revision.
    pub revision: Revision,
    /// History up to this revision is forgotten.
    pub compacted: Revision,
    /// Durable keys.
    pub keys: u64,
    /// Transactions in the change log on disk.
    pub log_entries: u64,
    /// Volatile keys.
    pub volatile_keys: u64,
    /// Bytes of the volatile keys and values.
    pub volatile_bytes: u64,
    /// Bytes of the data file.
    pub file_bytes: u64,
    /// Bytes of it that are in use.
    pub used_bytes: u64,
    /// Commits to disk since the store was opened.
    pub commits: u64,
}
