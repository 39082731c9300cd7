//! The writer thread: the only one that changes anything.

use super::Shared;
use super::file::{DataFile, Room};
use super::memory::Memory;
use crate::error::{Error, Result};
use crate::types::{Class, Event, EventBatch, KeyValue, Op, Outcome, Revision, Transaction};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// So many revisions are reserved at once for volatile changes, which are not on disk: one write in so many.
const RESERVE: Revision = 8192;
/// At most so many transactions share a commit.
const MAX_BATCH: usize = 1024;

/// Transactions of so many bytes share a commit at most; a larger one has its own.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// A commit that takes longer is told of: everything that changes something waits for it.
const SLOW: Duration = Duration::from_secs(1);
/// After so long what is overdue and failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the writer can be asked for.
#[derive(Debug)]
pub(super) enum Command {
    Transact { transaction: Transaction, done: oneshot::Sender<Result<Outcome>> },
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: Receiver<Command>,
    room: Room,
    /// Revisions up to this one never come again after a crash.
    reserved: Revision,
    /// Expired keys could not be removed: not before this.
    retry: Option<Instant>,
    /// There was no space for the last change that needed some.
    full: bool,
}

struct Request {
    transaction: Transaction,
    /// Taken when it is answered.
    done: Option<oneshot::Sender<Result<Outcome>>>,
}

impl Request {
    fn answer(&mut self, answer: Result<Outcome>) {
        if let Some(done) = self.done.take() {
            // who asked may have given up; what was done stays done
            let _ = done.send(answer);
        }
    }
}

/// A transaction that will be committed, with all that it changes.
struct Accepted {
    /// Its place among the requests.
    index: usize,
    batch: EventBatch,
    before: Vec<(Bytes, Option<KeyValue>)>,
    volatile: Vec<(KeyValue, Option<Duration>)>,
}

/// A key that is there.
#[derive(Clone)]
struct Now {
    kv: KeyValue,
    volatile: bool,
}

/// The changes of one commit before it happens.
#[derive(Default)]
struct Pending {
    /// Durable state by key; `None`: removed.
    durable: HashMap<Bytes, Option<KeyValue>>,
    /// State of every changed key, whatever its class.
    state: HashMap<Bytes, Option<Now>>,
    accepted: Vec<Accepted>,
    /// Answers that are known already, with the places of their requests.
    answers: Vec<(usize, Result<Outcome>)>,
    revision: Revision,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, queue: Receiver<Command>, reserved: Revision) -> Self {
        Self { shared, queue, room: Room::new(), reserved, retry: None, full: false }
    }

    /// Works until all senders are gone.
    pub(super) fn run(mut self) {
        loop {
            let due = self.shared.memory.read().next_expiry().map(|at| self.retry.map_or(at, |retry| at.max(retry)));
            let first = match due {
                None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.queue.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match first {
                Ok(Command::Transact { transaction, done }) => {
                    let mut bytes = transaction.bytes();
                    let mut requests = vec![Request { transaction, done: Some(done) }];
                    while requests.len() < MAX_BATCH
                        && bytes < MAX_BATCH_BYTES
                        && let Ok(Command::Transact { transaction, done }) = self.queue.try_recv()
                    {
                        bytes += transaction.bytes();
                        requests.push(Request { transaction, done: Some(done) });
                    }
                    self.work(&mut requests);
                    if self.shared.memory.read().is_crowded() {
                        self.expire();
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.expire(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Commits what can be; when that fails for lack of space, each on its own, so that only the large ones fail.
    fn work(&mut self, requests: &mut [Request]) {
        let shared = self.shared.clone();
        let mut memory = shared.memory.write();
        let result = self.try_together(&mut memory, requests);
        match result {
            Ok(()) => {}
            Err(Error::Full { .. } | Error::LimitReached { .. }) if requests.len() > 1 => {
                for request in requests.chunks_mut(1) {
                    if let Err(error) = self.try_together(&mut memory, request) {
                        request[0].answer(Err(error));
                    }
                }
            }
            Err(error) => requests.iter_mut().for_each(|r| r.answer(Err(error.clone()))),
        }
    }

    /// Answers all requests, or none when they cannot be committed.
    fn try_together(&mut self, memory: &mut Memory, requests: &mut [Request]) -> Result<()> {
        let pending = self.plan(memory, requests);
        self.commit(memory, &pending)?;
        self.publish(memory, pending, requests);
        Ok(())
    }

    /// Removes volatile keys whose time is over, and those for which there is no room.
    fn expire(&mut self) {
        let shared = self.shared.clone();
        let mut memory = shared.memory.write();
        let delete = |key| Transaction { compares: Vec::new(), ops: vec![Op::Delete { key }] };
        let expired = memory.expired(Instant::now()).into_iter();
        let mut requests: Vec<Request> = expired.map(|key| Request { transaction: delete(key), done: None }).collect();
        self.retry = match self.try_together(&mut memory, &mut requests) {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(%error, "expired keys cannot be removed");
                Some(Instant::now() + RETRY)
            }
        };
    }

    fn plan(&self, memory: &Memory, requests: &[Request]) -> Pending {
        let mut pending = Pending { revision: memory.revision, ..Pending::default() };
        for (index, Request { transaction, .. }) in requests.iter().enumerate() {
            let planned = match pending.compare(&self.shared, memory, transaction) {
                Ok(None) => pending.accept(&self.shared, memory, transaction, index),
                Ok(Some(current)) => {
                    pending.answers.push((index, Ok(Outcome::Failed { current })));
                    continue;
                }
                Err(error) => Err(error),
            };
            if let Err(error) = planned {
                pending.answers.push((index, Err(error)));
            }
        }
        pending
    }

    /// Brings the durable part to disk. Volatile changes need a write only when their revisions were not reserved.
    fn commit(&mut self, memory: &Memory, pending: &Pending) -> Result<()> {
        if pending.accepted.is_empty() {
            return Ok(());
        }
        let volatile = pending.accepted.iter().any(|a| !a.volatile.is_empty());
        let short = pending.revision > self.reserved;
        if pending.durable.is_empty() && !short {
            return Ok(());
        }
        // a durable commit anyway: the reservation comes for nothing
        let reserve = short && (volatile || pending.durable.is_empty());
        let reserved = if reserve { pending.revision + RESERVE } else { self.reserved.max(pending.revision) };
        if self.shared.file().is_err() {
            self.recover(memory.revision);
        }
        let begun = Instant::now();
        let result = self.write(pending, reserved);
        if begun.elapsed() > SLOW {
            let (took, path) = (begun.elapsed(), self.shared.place.path.display());
            tracing::warn!(?took, %path, "the disk is slow: whatever was to be stored waited for it");
        }
        match &result {
            Ok(()) => {
                self.reserved = reserved;
                self.shared.commits.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.failed(error, memory.revision),
        }
        result
    }

    /// Tells of a failed commit, once while it goes on for the same reason, and repairs what can be repaired.
    fn failed(&mut self, error: &Error, revision: Revision) {
        let full = matches!(error, Error::Full { .. } | Error::LimitReached { .. });
        if !std::mem::replace(&mut self.full, full) || !full {
            tracing::error!(%error, "cannot commit");
        }
        self.recover(revision);
    }

    fn write(&mut self, pending: &Pending, reserved: Revision) -> Result<()> {
        // what only removes, or only reserves revisions, may use what was put by for it
        let puts = pending.durable.values().flatten();
        let bytes: u64 = puts.map(|kv| (kv.key.len() + kv.value.len()) as u64 * 2).sum();
        if bytes > 0 {
            self.shared.file()?.make_room(&mut self.room, bytes)?;
        }
        let result = self.write_within_limit(pending, reserved, bytes == 0);
        if result.is_ok() && bytes > 0 && std::mem::take(&mut self.full) {
            tracing::info!("there is space for the store again");
        }
        result
    }

    fn write_within_limit(&self, pending: &Pending, reserved: Revision, may_exceed: bool) -> Result<()> {
        loop {
            let changes = pending.durable.iter().map(|(k, v)| (k, v.as_ref()));
            match self.shared.file()?.commit(changes, pending.revision, reserved) {
                Err(Error::LimitReached { .. }) if may_exceed => {}
                done => return done,
            }
            let mut file = self.shared.file.write();
            let grown = file.as_mut().map_or(Ok(()), DataFile::grow_beyond);
            if let Err(error) = grown {
                if !matches!(error, Error::LimitReached { .. }) {
                    *file = None;
                }
                return Err(error);
            }
        }
    }

    /// After a failed commit: opens the file again if LMDB has given it up. It does so when it could not write which
    /// transaction is the last; then the one before is, as all have been told, if only that can be read and synced.
    fn recover(&self, revision: Revision) {
        if self.shared.file().is_ok_and(|file| !file.has_failed()) {
            return;
        }
        let mut file = self.shared.file.write();
        *file = None;
        let opened = self.shared.place.open().and_then(|(file, state)| file.sync().map(|()| (file, state)));
        match opened {
            Ok((opened, state)) if state.revision <= revision => {
                tracing::warn!(path = %self.shared.place.path.display(), "opened the store again after a failed commit");
                *file = Some(opened);
            }
            Ok(_) => tracing::error!("a commit that failed is on the disk all the same: the store has to be restarted"),
            Err(error) => tracing::error!(%error, "the store cannot be opened again"),
        }
    }

    fn publish(&self, memory: &mut Memory, pending: Pending, requests: &mut [Request]) {
        let now = Instant::now();
        for accepted in pending.accepted {
            let revision = accepted.batch.revision;
            for event in &accepted.batch.events {
                memory.remove_volatile(event.key());
            }
            for (kv, ttl) in accepted.volatile {
                memory.set_volatile(kv, ttl.map(|t| now + t));
            }
            memory.publish(accepted.batch, accepted.before, now);
            self.shared.revision.store(revision, Ordering::Release);
            requests[accepted.index].answer(Ok(Outcome::Committed(revision)));
        }
        for (index, answer) in pending.answers {
            requests[index].answer(answer);
        }
    }
}

impl Pending {
    /// A key as it will be after what was accepted so far.
    fn current(&self, shared: &Shared, memory: &Memory, key: &Bytes) -> Result<Option<Now>> {
        if let Some(state) = self.state.get(key) {
            return Ok(state.clone());
        }
        match memory.volatile.get(key) {
            Some(kv) => Ok(Some(Now { kv: kv.clone(), volatile: true })),
            None => Ok(shared.file()?.get(key)?.map(|kv| Now { kv, volatile: false })),
        }
    }

    /// `None` when all conditions hold, else the keys as they are.
    fn compare(&self, shared: &Shared, memory: &Memory, t: &Transaction) -> Result<Option<Vec<Option<KeyValue>>>> {
        let mut holds = true;
        let mut current = Vec::with_capacity(t.compares.len());
        for compare in &t.compares {
            let kv = self.current(shared, memory, &compare.key)?.map(|now| now.kv);
            holds &= kv.as_ref().map_or(0, |kv| kv.mod_revision) == compare.mod_revision;
            current.push(kv);
        }
        Ok((!holds).then_some(current))
    }

    /// Works a transaction's changes in, at the next revision. One that changes nothing takes none.
    fn accept(&mut self, shared: &Shared, memory: &Memory, t: &Transaction, index: usize) -> Result<()> {
        // everything that can fail comes first: a transaction is worked in as a whole or not at all
        let befores = t.ops.iter().map(|op| self.current(shared, memory, op.key())).collect::<Result<Vec<_>>>()?;
        let revision = self.revision + 1;
        let batch = EventBatch { revision, events: Vec::new() };
        let mut accepted = Accepted { index, batch, before: Vec::new(), volatile: Vec::new() };
        for (op, before) in t.ops.iter().zip(befores) {
            let was_durable = before.as_ref().is_some_and(|now| !now.volatile);
            match op {
                Op::Delete { .. } if before.is_none() => continue,
                Op::Delete { key } => {
                    if was_durable {
                        self.durable.insert(key.clone(), None);
                    }
                    self.state.insert(key.clone(), None);
                    accepted.batch.events.push(Event::Delete { key: key.clone() });
                }
                Op::Put { key, value, class } => {
                    let create_revision = before.as_ref().map_or(revision, |b| b.kv.create_revision);
                    let (key, value) = (key.clone(), value.clone());
                    let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision };
                    match class {
                        Class::Durable => drop(self.durable.insert(key.clone(), Some(kv.clone()))),
                        Class::Volatile { ttl } => {
                            if was_durable {
                                self.durable.insert(key.clone(), None);
                            }
                            accepted.volatile.push((kv.clone(), *ttl));
                        }
                    }
                    let volatile = matches!(class, Class::Volatile { .. });
                    self.state.insert(key, Some(Now { kv: kv.clone(), volatile }));
                    accepted.batch.events.push(Event::Put(kv));
                }
            }
            accepted.before.push((op.key().clone(), before.map(|now| now.kv)));
        }
        if accepted.batch.events.is_empty() {
            accepted.batch.revision = self.revision;
        } else {
            self.revision = revision;
        }
        self.accepted.push(accepted);
        Ok(())
    }
}
