//! A watch that goes on when a member of etcd goes away: it begins again, with another one, after the last revision
//! that was passed on.

use super::channel::{Answers, Channel, Failed};
use super::error::EtcdError;
use super::kept;
use super::messages::{self, Watched};
use crate::error::{Error, Result};
use crate::types::{Event, EventBatch, Revision, Watcher};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

const PATH: &str = "/etcdserverpb.Watch/Watch";
/// So many transactions wait for a watcher at most; etcd keeps the rest.
const WAITING: usize = 1024;
/// After so long a watch that broke off is tried again while no member answers; longer from time to time.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long etcd may take to begin a watch.
const PATIENCE: Duration = Duration::from_secs(5);

/// Follows a prefix after a revision.
pub(super) struct Follower {
    pub(super) channel: Arc<Channel>,
    pub(super) newest: Arc<AtomicU64>,
    pub(super) prefix: Bytes,
    pub(super) after: Revision,
    /// What the store's revisions are more than etcd's.
    pub(super) offset: Revision,
}

/// Why a watch is over.
enum End {
    /// For good.
    Final(Error),
    /// It can begin again.
    Broken(String),
}

impl Follower {
    /// Begins the watch; it goes on until the watcher is dropped.
    pub(super) async fn start(mut self) -> Result<Watcher> {
        let answers = match self.open().await {
            Ok(answers) => answers,
            Err(End::Final(error)) => return Err(error),
            Err(End::Broken(detail)) => {
                return Err(EtcdError::Unreachable { endpoints: self.channel.names(), detail }.into());
            }
        };
        let (events, live) = mpsc::channel(WAITING);
        let watcher = Watcher { history: VecDeque::new(), live, prefix: self.prefix.clone() };
        tokio::spawn(async move {
            let gone = events.clone();
            tokio::select! {
                () = gone.closed() => {}
                error = self.run(answers, &events) => drop(events.send(Err(error)).await),
            }
        });
        Ok(watcher)
    }

    async fn open(&self) -> std::result::Result<Answers, End> {
        let opened = self
            .channel
            .stream(PATH, messages::watch(&self.prefix, self.after.saturating_sub(self.offset) + 1), false)
            .await;
        let mut answers = opened.map_err(|e| End::Broken(e.to_string()))?;
        let first = tokio::time::timeout(PATIENCE, answer(&mut answers)).await;
        let first = first.unwrap_or_else(|_| Err(End::Broken("no answer in time".to_owned())))?;
        self.canceled(&first)?;
        if first.created { Ok(answers) } else { Err(End::Broken("the watch did not begin".to_owned())) }
    }

    fn canceled(&self, answer: &Watched) -> std::result::Result<(), End> {
        if answer.compacted > 0 {
            let compacted = answer.compacted + self.offset;
            return Err(End::Final(Error::Compacted { requested: self.after, compacted }));
        }
        if answer.canceled { Err(End::Broken(answer.reason.clone())) } else { Ok(()) }
    }

    /// Passes changes on; gives the error that ends the watch for good.
    async fn run(&mut self, mut answers: Answers, events: &mpsc::Sender<Result<Arc<EventBatch>>>) -> Error {
        let mut delay = RETRY.0;
        loop {
            let before = self.after;
            let reason = match self.pass_on(answers, events).await {
                End::Final(error) => return error,
                End::Broken(reason) => reason,
            };
            tracing::info!(reason, revision = self.after, "watch of etcd broke off, beginning again");
            if self.after > before {
                delay = RETRY.0;
            }
            answers = loop {
                match self.open().await {
                    Ok(answers) => break answers,
                    Err(End::Final(error)) => return error,
                    Err(End::Broken(reason)) => tracing::debug!(reason, "cannot watch etcd yet"),
                }
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY.1);
            };
        }
    }

    async fn pass_on(&mut self, mut answers: Answers, events: &mpsc::Sender<Result<Arc<EventBatch>>>) -> End {
        let mut changes: Vec<(Revision, Event)> = Vec::new();
        loop {
            let answer = match answer(&mut answers).await {
                Ok(answer) => answer,
                Err(end) => return end,
            };
            if let Err(end) = self.canceled(&answer) {
                return end;
            }
            changes.extend(answer.events);
            if answer.fragment {
                continue;
            }
            for mut batch in batches(std::mem::take(&mut changes)) {
                batch.revision += self.offset;
                for event in &mut batch.events {
                    if let Event::Put(kv) = event {
                        kept::show(kv, self.offset);
                    }
                }
                // a watch that began again may tell what is known
                if batch.revision <= self.after {
                    continue;
                }
                self.newest.fetch_max(batch.revision, Ordering::AcqRel);
                self.after = batch.revision;
                if events.send(Ok(Arc::new(batch))).await.is_err() {
                    return End::Final(Error::Closed);
                }
            }
        }
    }
}

async fn answer(answers: &mut Answers) -> std::result::Result<Watched, End> {
    match answers.next().await {
        Ok(Some(message)) => Watched::read(message).map_err(|e| End::Broken(e.to_string())),
        Ok(None) => Err(End::Broken("the watch ended".to_owned())),
        Err(Failed::Code(_, text) | Failed::Broken(text) | Failed::Unsent(text)) => Err(End::Broken(text)),
    }
}

/// Changes by their revisions, which come in order.
fn batches(changes: Vec<(Revision, Event)>) -> Vec<EventBatch> {
    let mut all: Vec<EventBatch> = Vec::new();
    for (revision, event) in changes {
        match all.last_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => all.push(EventBatch { revision, events: vec![event] }),
        }
    }
    all
}
