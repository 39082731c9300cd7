//! The store in an etcd cluster (version 3.4 or later), for control planes of several servers.
//!
//! Revisions are etcd's. Volatile keys that expire have leases; those that do not are as durable as any other here, because
//! the other servers must see them. The keys are the same as on local disk.

mod channel;
mod compactor;
mod endpoints;
mod error;
mod kept;
mod leases;
mod messages;
mod watch;

pub use endpoints::EtcdOptions;
pub use error::EtcdError;
pub use kept::Import;

use crate::Storage;
use crate::error::{Error, Result};
use crate::types::{Class, Compare, KeyValue, List, ListRequest, Op, Outcome, Revision, Stats, Transaction, Watcher};
use async_trait::async_trait;
use bytes::Bytes;
use channel::{Channel, Kind};
use edge_grpc::wire;
use leases::Leases;
use messages::{Range, Ranged, Transacted};
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;
use watch::Follower;

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";

/// So many keys are read at once: an answer must not grow without bounds.
const PAGE: u64 = 2000;
/// A key that is read for the revision alone.
const PROBE: &[u8] = b"/registry/health";
/// The oldest version that is known to do what is needed.
const OLDEST: (u32, u32) = (3, 4);
/// Keys longer than this are refused, as on local disk.
const MAX_KEY: usize = 1024;

const COMPACTED: &str = "has been compacted";
const FUTURE: &str = "is a future revision";
const NO_LEASE: &str = "requested lease not found";

/// A store in etcd.
#[derive(Debug)]
pub struct Etcd {
    inner: Arc<Inner>,
    _compactor: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    channel: Arc<Channel>,
    /// The newest revision that any answer had.
    newest: Arc<AtomicU64>,
    leases: Mutex<Leases>,
    commits: AtomicU64,
    /// Revisions are etcd's and so many: what was brought here from another store keeps its own, which are not more.
    offset: Revision,
}

impl Etcd {
    /// Connects, and looks whether this is an etcd that can be used. History is compacted from time to time, together
    /// with the other servers, until this is dropped. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Etcd`], after 10 s when nobody answers; nothing was changed.
    pub async fn connect(options: &EtcdOptions) -> Result<Self> {
        let mut etcd = Self::connect_without_compactor(options).await?;
        let compactor = compactor::run(etcd.inner.clone(), compactor::EVERY);
        etcd._compactor = Some(AbortOnDropHandle::new(tokio::spawn(compactor)));
        Ok(etcd)
    }

    /// The same, and history is kept until somebody else compacts it.
    ///
    /// # Errors
    /// As [`Etcd::connect`].
    pub async fn connect_without_compactor(options: &EtcdOptions) -> Result<Self> {
        let channel = Arc::new(Channel::new(options)?);
        let plain = Inner::new(channel.clone(), 0);
        plain.check_version().await?;
        let offset = kept::read_offset(&plain).await?;
        let inner = Inner::new(channel, offset);
        inner.read_newest().await?;
        Ok(Self { inner: Arc::new(inner), _compactor: None })
    }
}

impl Inner {
    fn new(channel: Arc<Channel>, offset: Revision) -> Self {
        Self { channel, newest: Arc::default(), leases: Mutex::default(), commits: AtomicU64::new(0), offset }
    }

    /// etcd's number of a revision; zero is the newest for both.
    async fn raw(&self, revision: Revision) -> Result<Revision> {
        match revision.checked_sub(self.offset) {
            _ if revision == 0 => Ok(0),
            Some(raw) if raw > 0 => Ok(raw),
            // of the time before it was brought here nothing is remembered
            _ => {
                let compacted = Box::pin(self.compacted()).await?.max(self.offset);
                Err(Error::Compacted { requested: revision, compacted })
            }
        }
    }

    async fn check_version(&self) -> Result<()> {
        let status = self.status().await?;
        let mut numbers = status.version.split('.').map(|n| n.parse::<u32>().ok());
        let version = (numbers.next().flatten(), numbers.next().flatten());
        let endpoint = self.channel.member().await;
        match version {
            (Some(major), Some(minor)) if (major, minor) >= OLDEST => Ok(()),
            (Some(_), Some(_)) => Err(EtcdError::Version { endpoint, found: status.version }.into()),
            _ => Err(EtcdError::NotEtcd { endpoint, detail: "it does not say its version".to_owned() }.into()),
        }
    }

    async fn status(&self) -> Result<messages::Status> {
        let answer = self.channel.call(Kind::Read, STATUS, wire::Message::default()).await?;
        messages::Status::read(answer).map_err(malformed)
    }

    fn seen(&self, revision: Revision) {
        self.newest.fetch_max(revision, Ordering::AcqRel);
    }

    /// A read as of now, of which everybody's writes are part that were acknowledged before.
    async fn range(&self, range: &Range<'_>) -> Result<Ranged> {
        let raw = Range { revision: self.raw(range.revision).await?, ..range.clone() };
        let mut answer = match self.channel.call(Kind::Read, RANGE, raw.message()).await {
            Ok(answer) => Ranged::read(answer).map_err(malformed)?,
            Err(error) => return Err(self.about_revision(range.revision, error).await),
        };
        answer.revision += self.offset;
        answer.items.iter_mut().for_each(|kv| kept::show(kv, self.offset));
        self.seen(answer.revision);
        Ok(answer)
    }

    async fn read_newest(&self) -> Result<Revision> {
        let range = Range { key: PROBE, count_only: true, ..Range::default() };
        self.range(&range).await.map(|answer| answer.revision)
    }

    /// Makes the store's errors of what etcd says about a revision.
    async fn about_revision(&self, requested: Revision, error: EtcdError) -> Error {
        match &error {
            EtcdError::Refused(text) if text.ends_with(COMPACTED) => {
                let compacted = self.compacted().await.unwrap_or(requested + 1);
                Error::Compacted { requested, compacted }
            }
            EtcdError::Refused(text) if text.ends_with(FUTURE) => {
                // boxed: the read that is asked about here does not ask again
                let current = Box::pin(self.read_newest()).await.unwrap_or_default();
                Error::FutureRevision { requested, current }
            }
            _ => error.into(),
        }
    }

    /// Up to which revision history is forgotten, as a watch from the beginning is told. Zero: none is.
    async fn compacted(&self) -> Result<Revision> {
        let follower = Follower {
            channel: self.channel.clone(),
            newest: self.newest.clone(),
            // nothing is there: only the beginning of the watch matters
            prefix: Bytes::from_static(b"\0edge"),
            after: self.offset,
            offset: self.offset,
        };
        let mut watcher = follower.start().await?;
        match tokio::time::timeout(Duration::from_secs(1), watcher.next()).await {
            Ok(Err(Error::Compacted { compacted, .. })) => Ok(compacted),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Ok(0),
        }
    }

    /// The lease for a key; zero: none.
    async fn lease(&self, ttl: Duration) -> Result<u64> {
        let mut leases = self.leases.lock().await;
        let now = Instant::now();
        if let Some(id) = leases.take(ttl, now) {
            return Ok(id);
        }
        let message = messages::lease(Leases::seconds(ttl));
        let granted = match self.channel.call(Kind::Write, GRANT, message.clone()).await {
            // a lease without keys goes away by itself
            Err(EtcdError::Unknown { .. }) => self.channel.call(Kind::Write, GRANT, message).await,
            other => other,
        };
        let (id, seconds) = messages::granted(granted?).map_err(malformed)?;
        leases.put(ttl, id, seconds, now);
        Ok(id)
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Transacted> {
        let mut ids: Vec<(Duration, u64)> = Vec::new();
        for op in &transaction.ops {
            if let Some(ttl) = time_to_live(op)
                && !ids.iter().any(|(t, _)| *t == ttl)
            {
                ids.push((ttl, self.lease(ttl).await?));
            }
        }
        let lease_of = |op: &Op| {
            let ttl = time_to_live(op);
            ids.iter().find(|(t, _)| Some(*t) == ttl).map_or(0, |(_, id)| *id)
        };
        let transaction = &self.raw_compares(transaction).await?;
        let answer = self.channel.call(Kind::Write, TXN, messages::transaction(transaction, lease_of)).await;
        if let Err(EtcdError::Refused(text)) = &answer
            && text.ends_with(NO_LEASE)
        {
            let mut leases = self.leases.lock().await;
            ids.iter().for_each(|(_, id)| leases.forget(*id));
        }
        let mut answer = Transacted::read(answer?).map_err(malformed)?;
        answer.revision += self.offset;
        answer.found.iter_mut().flatten().for_each(|kv| kept::show(kv, self.offset));
        self.seen(answer.revision);
        Ok(answer)
    }

    /// The transaction with etcd's revisions in its conditions.
    async fn raw_compares<'t>(&self, transaction: &'t Transaction) -> Result<Cow<'t, Transaction>> {
        if self.offset == 0 {
            return Ok(Cow::Borrowed(transaction));
        }
        let mut raw = transaction.clone();
        for compare in raw.compares.iter_mut().filter(|c| c.mod_revision > 0) {
            compare.mod_revision = match compare.mod_revision.checked_sub(self.offset) {
                Some(raw) if raw > 0 => raw,
                _ => kept::raw_revision(self, compare).await?,
            };
        }
        Ok(Cow::Owned(raw))
    }

    /// Forgets history up to a revision.
    async fn compact(&self, revision: Revision) -> Result<()> {
        let raw = self.raw(revision).await?;
        match self.channel.call(Kind::Read, COMPACT, messages::compaction(raw)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.about_revision(revision, error).await),
        }
    }
}

fn time_to_live(op: &Op) -> Option<Duration> {
    match op {
        Op::Put { class: Class::Volatile { ttl }, .. } => *ttl,
        _ => None,
    }
}

fn malformed(error: wire::Malformed) -> Error {
    EtcdError::Refused(error.to_string()).into()
}

fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY {
        Err(Error::KeyLength { length: key.len(), max: MAX_KEY })
    } else {
        Ok(())
    }
}

#[async_trait]
impl Storage for Etcd {
    fn revision(&self) -> Revision {
        self.inner.newest.load(Ordering::Acquire)
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn newest(&self) -> Result<Revision> {
        self.inner.read_newest().await
    }

    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        check_key(key)?;
        let mut answer = self.inner.range(&Range { key, ..Range::default() }).await?;
        Ok(answer.items.pop())
    }

    async fn list(&self, request: ListRequest) -> Result<List> {
        let end = messages::end_of(&request.prefix);
        let first = request.start.max(request.prefix);
        let mut key = if first.is_empty() { vec![0] } else { first.to_vec() };
        let mut list = List { revision: request.revision, ..List::default() };
        loop {
            let wanted = if request.limit == 0 { u64::MAX } else { (request.limit - list.items.len()) as u64 };
            let range =
                Range { key: &key, end: &end, limit: wanted.min(PAGE), revision: list.revision, count_only: false };
            if end != [0] && key >= end {
                // it begins after the prefix
                list.revision = if list.revision == 0 { self.inner.read_newest().await? } else { list.revision };
                return Ok(list);
            }
            let page = self.inner.range(&range).await?;
            if list.revision == 0 {
                list.revision = page.revision;
            }
            let got = page.items.len() as u64;
            list.items.extend(page.items);
            let remaining = page.count.saturating_sub(got);
            if remaining == 0 || wanted == got {
                list.remaining = usize::try_from(remaining).unwrap_or(usize::MAX);
                return Ok(list);
            }
            match list.items.last() {
                Some(last) => key = [&last.key[..], &[0]].concat(),
                None => return Ok(list),
            }
        }
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome> {
        for key in transaction.ops.iter().map(Op::key).chain(transaction.compares.iter().map(|Compare { key, .. }| key))
        {
            check_key(key)?;
        }
        let answer = match self.inner.transact(&transaction).await {
            // nothing was done: again, with a new lease
            Err(Error::Etcd(EtcdError::Refused(text))) if text.ends_with(NO_LEASE) => {
                self.inner.transact(&transaction).await?
            }
            other => other?,
        };
        if answer.succeeded {
            self.inner.commits.fetch_add(1, Ordering::Relaxed);
            return Ok(Outcome::Committed(answer.revision));
        }
        Ok(Outcome::Failed { current: answer.found })
    }

    async fn watch(&self, prefix: &[u8], after: Revision) -> Result<Watcher> {
        // etcd would begin a watch of the future, and one of the very revision that it has compacted
        let probe = Range { key: PROBE, revision: after.max(1), count_only: true, ..Range::default() };
        self.inner.range(&probe).await?;
        let follower = Follower {
            channel: self.inner.channel.clone(),
            newest: self.inner.newest.clone(),
            prefix: Bytes::copy_from_slice(prefix),
            after,
            offset: self.inner.offset,
        };
        follower.start().await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.compact(revision).await
    }

    /// etcd's own format, for `etcdctl snapshot restore`.
    async fn snapshot(&self, file: &Path) -> Result<()> {
        use tokio::io::AsyncWriteExt;
        let failed = |source: std::io::Error| Error::Io { path: file.to_owned(), source: Arc::new(source) };
        let mut target = tokio::fs::File::create_new(file).await.map_err(failed)?;
        let copy = async {
            let mut answers = self.inner.channel.stream(SNAPSHOT, wire::Message::default(), true).await?;
            while let Some(answer) = answers.next().await.map_err(|e| EtcdError::Refused(format!("{e:?}")))? {
                target.write_all(&messages::blob(answer).map_err(malformed)?).await.map_err(failed)?;
            }
            target.sync_all().await.map_err(failed)
        };
        let copied = copy.await;
        if copied.is_err() {
            // half a snapshot is worth nothing, and what went wrong is told
            let _ = tokio::fs::remove_file(file).await;
        }
        copied
    }

    async fn stats(&self) -> Result<Stats> {
        let status = self.inner.status().await?;
        let all = self.inner.range(&Range { key: &[0], end: &[0], count_only: true, ..Range::default() }).await?;
        Ok(Stats {
            revision: all.revision,
            compacted: self.inner.compacted().await?,
            keys: all.count,
            file_bytes: status.file_bytes,
            used_bytes: status.used_bytes,
            commits: self.inner.commits.load(Ordering::Relaxed),
            ..Stats::default()
        })
    }
}

#[cfg(test)]
mod tests;
