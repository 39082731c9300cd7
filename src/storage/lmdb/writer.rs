//! The writer thread: the only one that changes anything.

use super::Shared;
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

/// What the writer can be asked for.
#[derive(Debug)]
pub(super) enum Command {
    Transact { transaction: Transaction, done: oneshot::Sender<Result<Outcome>> },
}

type Request = (Transaction, oneshot::Sender<Result<Outcome>>);

pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: Receiver<Command>,
    /// Revisions up to this one never come again after a crash.
    reserved: Revision,
}

/// A transaction that will be committed, with all that it changes.
struct Accepted {
    batch: EventBatch,
    before: Vec<(Bytes, Option<KeyValue>)>,
    volatile: Vec<(KeyValue, Option<Duration>)>,
    done: Option<oneshot::Sender<Result<Outcome>>>,
}

/// The changes of one commit before it happens.
#[derive(Default)]
struct Pending {
    /// Durable state by key; `None`: removed.
    durable: HashMap<Bytes, Option<KeyValue>>,
    /// State of every changed key, whatever its class.
    state: HashMap<Bytes, Option<KeyValue>>,
    accepted: Vec<Accepted>,
    answers: Vec<(oneshot::Sender<Result<Outcome>>, Result<Outcome>)>,
    revision: Revision,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, queue: Receiver<Command>, reserved: Revision) -> Self {
        Self { shared, queue, reserved }
    }

    /// Works until all senders are gone.
    pub(super) fn run(mut self) {
        loop {
            let due = self.shared.memory.read().next_expiry();
            let first = match due {
                None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.queue.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match first {
                Ok(Command::Transact { transaction, done }) => {
                    let mut requests = vec![(transaction, done)];
                    while requests.len() < MAX_BATCH
                        && let Ok(Command::Transact { transaction, done }) = self.queue.try_recv()
                    {
                        requests.push((transaction, done));
                    }
                    self.work(requests);
                }
                Err(RecvTimeoutError::Timeout) => self.expire(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Commits what can be; when that fails for lack of space, each on its own, so that only the large ones fail.
    fn work(&mut self, requests: Vec<Request>) {
        let shared = self.shared.clone();
        let mut memory = shared.memory.write();
        let many = requests.len() > 1;
        let copies: Vec<Transaction> = requests.iter().map(|(t, _)| t.clone()).collect();
        let mut pending = self.plan(&memory, requests);
        match self.commit(&pending) {
            Ok(()) => self.publish(&mut memory, pending),
            Err(Error::Full { .. }) if many => {
                let senders = pending.take_senders();
                for (transaction, done) in copies.into_iter().zip(senders) {
                    let Some(done) = done else { continue };
                    let one = self.plan(&memory, vec![(transaction, done)]);
                    match self.commit(&one) {
                        Ok(()) => self.publish(&mut memory, one),
                        Err(error) => one.fail(&error),
                    }
                }
            }
            Err(error) => pending.fail(&error),
        }
    }

    /// Removes volatile keys whose time is over.
    fn expire(&mut self) {
        let shared = self.shared.clone();
        let mut memory = shared.memory.write();
        let keys = memory.expired(Instant::now());
        let mut pending = Pending { revision: memory.revision, ..Pending::default() };
        for key in keys {
            let transaction = Transaction { compares: Vec::new(), ops: vec![Op::Delete { key }] };
            if let Ok(accepted) = pending.accept(&self.shared, &memory, &transaction, None) {
                pending.accepted.push(accepted);
            }
        }
        match self.commit(&pending) {
            Ok(()) => self.publish(&mut memory, pending),
            Err(error) => tracing::error!(%error, "expired keys cannot be removed"),
        }
    }

    fn plan(&self, memory: &Memory, requests: Vec<Request>) -> Pending {
        let mut pending = Pending { revision: memory.revision, ..Pending::default() };
        for (transaction, done) in requests {
            match pending.compare(&self.shared, memory, &transaction) {
                Err(error) => pending.answers.push((done, Err(error))),
                Ok(Some(current)) => pending.answers.push((done, Ok(Outcome::Failed { current }))),
                Ok(None) => match pending.accept(&self.shared, memory, &transaction, Some(done)) {
                    Ok(accepted) => pending.accepted.push(accepted),
                    Err(error) => tracing::error!(%error, "transaction dropped: the store cannot be read"),
                },
            }
        }
        pending
    }

    /// Brings the durable part to disk. Volatile changes need a write only when their revisions were not reserved.
    fn commit(&mut self, pending: &Pending) -> Result<()> {
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
        loop {
            let changes = pending.durable.iter().map(|(k, v)| (k, v.as_ref()));
            match self.shared.file.commit(changes, pending.revision, reserved) {
                Ok(()) => break,
                Err(heed::Error::Mdb(heed::MdbError::MapFull)) => {
                    self.shared.file.grow().map_err(|e| self.shared.file.error(e))?;
                }
                Err(error) => return Err(self.shared.file.error(error)),
            }
        }
        self.reserved = reserved;
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn publish(&self, memory: &mut Memory, pending: Pending) {
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
            if let Some(done) = accepted.done {
                // who asked may have given up; what was done stays done
                let _ = done.send(Ok(Outcome::Committed(revision)));
            }
        }
        for (done, answer) in pending.answers {
            let _ = done.send(answer);
        }
    }
}

impl Pending {
    /// A key as it will be after what was accepted so far.
    fn current(&self, shared: &Shared, memory: &Memory, key: &Bytes) -> Result<Option<KeyValue>> {
        if let Some(state) = self.state.get(key) {
            return Ok(state.clone());
        }
        match memory.volatile.get(key) {
            Some(kv) => Ok(Some(kv.clone())),
            None => shared.file.get(key),
        }
    }

    /// `None` when all conditions hold, else the keys as they are.
    fn compare(&self, shared: &Shared, memory: &Memory, t: &Transaction) -> Result<Option<Vec<Option<KeyValue>>>> {
        let mut holds = true;
        let mut current = Vec::with_capacity(t.compares.len());
        for compare in &t.compares {
            let kv = self.current(shared, memory, &compare.key)?;
            holds &= kv.as_ref().map_or(0, |kv| kv.mod_revision) == compare.mod_revision;
            current.push(kv);
        }
        Ok((!holds).then_some(current))
    }

    /// Works a transaction's changes in, at the next revision. One that changes nothing takes none.
    fn accept(
        &mut self,
        shared: &Shared,
        memory: &Memory,
        t: &Transaction,
        done: Option<oneshot::Sender<Result<Outcome>>>,
    ) -> Result<Accepted> {
        let revision = self.revision + 1;
        let mut accepted = Accepted {
            batch: EventBatch { revision, events: Vec::new() },
            before: Vec::new(),
            volatile: Vec::new(),
            done,
        };
        for op in &t.ops {
            let key = op.key();
            let before = self.current(shared, memory, key)?;
            let was_volatile = before.is_some() && memory.volatile.contains_key(key) && !self.durable.contains_key(key);
            match op {
                Op::Delete { .. } if before.is_none() => continue,
                Op::Delete { key } => {
                    if !was_volatile {
                        self.durable.insert(key.clone(), None);
                    }
                    self.state.insert(key.clone(), None);
                    accepted.batch.events.push(Event::Delete { key: key.clone() });
                }
                Op::Put { key, value, class } => {
                    let create_revision = before.as_ref().map_or(revision, |b| b.create_revision);
                    let kv =
                        KeyValue { key: key.clone(), value: value.clone(), create_revision, mod_revision: revision };
                    match class {
                        Class::Durable => drop(self.durable.insert(key.clone(), Some(kv.clone()))),
                        Class::Volatile { ttl } => {
                            if before.is_some() && !was_volatile {
                                self.durable.insert(key.clone(), None);
                            }
                            accepted.volatile.push((kv.clone(), *ttl));
                        }
                    }
                    self.state.insert(key.clone(), Some(kv.clone()));
                    accepted.batch.events.push(Event::Put(kv));
                }
            }
            accepted.before.push((key.clone(), before));
        }
        if accepted.batch.events.is_empty() {
            accepted.batch.revision = self.revision;
        } else {
            self.revision = revision;
        }
        Ok(accepted)
    }

    /// The senders of all requests, in no particular order of outcome but each once.
    fn take_senders(&mut self) -> Vec<Option<oneshot::Sender<Result<Outcome>>>> {
        let accepted = self.accepted.iter_mut().map(|a| a.done.take());
        accepted.chain(std::mem::take(&mut self.answers).into_iter().map(|(done, _)| Some(done))).collect()
    }

    /// Answers everybody with an error; nothing has happened.
    fn fail(self, error: &Error) {
        for accepted in self.accepted {
            if let Some(done) = accepted.done {
                let _ = done.send(Err(error.clone()));
            }
        }
        for (done, answer) in self.answers {
            let _ = done.send(answer);
        }
    }
}
