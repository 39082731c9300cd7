//! The store on local disk: LMDB for the durable keys, memory for the volatile ones and for the recent history.
//!
//! One writer thread takes all waiting transactions into one LMDB commit, which is synced before any of them is
//! acknowledged. Readers copy out and never hold an LMDB transaction across an await. History (for watches, and lists
//! at an earlier revision) is kept in memory, bounded by age, number and size: after a restart a watcher of an earlier
//! revision has to list again, as with Kubernetes' own watch cache, and no change is written to flash twice.

mod file;
mod memory;
mod writer;

use crate::Storage;
use crate::error::{Error, Result};
use crate::types::{KeyValue, List, ListRequest, Outcome, Revision, Stats, Transaction, Watcher};
use async_trait::async_trait;
use file::DataFile;
use memory::Memory;
use parking_lot::RwLock;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use writer::{Command, Writer};

/// The store in a directory.
#[derive(Debug)]
pub struct Lmdb {
    shared: Arc<Shared>,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// What readers and the writer share. The writer holds the lock while it commits, so that disk and memory are always
/// seen at the same revision; the watch hub above answers reads from its own memory and is not held up by that.
#[derive(Debug)]
struct Shared {
    file: DataFile,
    memory: RwLock<Memory>,
    revision: AtomicU64,
    commits: AtomicU64,
}

impl Lmdb {
    /// Opens the store in `dir`, making the directory and the store when they are absent. Blocks; checks every record.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Format`], [`Error::Corrupt`], [`Error::Io`]: nothing was touched then.
    pub fn open(dir: &Path) -> Result<Self> {
        let (file, revision, reserved) = DataFile::open(dir)?;
        let shared = Arc::new(Shared {
            file,
            memory: RwLock::new(Memory::new(revision)),
            revision: AtomicU64::new(revision),
            commits: AtomicU64::new(0),
        });
        let (commands, queue) = mpsc::channel();
        let writer = Writer::new(shared.clone(), queue, reserved);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run())
            .map_err(|e| Error::Io { path: dir.into(), source: Arc::new(e) })?;
        Ok(Self { shared, commands: Some(commands), thread: Some(thread) })
    }

    /// The data file.
    pub fn path(&self) -> PathBuf {
        self.shared.file.path.clone()
    }

    async fn command<T>(&self, make: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (done, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(Error::Closed)?;
        commands.send(make(done)).map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Does blocking work on a thread for that.
    async fn blocking<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Shared) -> Result<T> + Send + 'static,
    {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || work(&shared)).await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Lmdb {
    /// Lets the writer finish what was submitted, then closes the file.
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // a writer that panicked has nothing left to finish
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl Storage for Lmdb {
    fn revision(&self) -> Revision {
        self.shared.revision.load(Ordering::Acquire)
    }

    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        let key = bytes::Bytes::copy_from_slice(key);
        self.blocking(move |shared| {
            let memory = shared.memory.read();
            match memory.volatile.get(&key) {
                Some(kv) => Ok(Some(kv.clone())),
                None => shared.file.get(&key),
            }
        })
        .await
    }

    async fn list(&self, request: ListRequest) -> Result<List> {
        self.blocking(move |shared| {
            let memory = shared.memory.read();
            let revision = memory.check(request.revision)?;
            let durable = shared.file.list(&request.prefix)?;
            Ok(memory.list(durable, &request, revision))
        })
        .await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome> {
        for op in &transaction.ops {
            self.shared.file.check_key(op.key())?;
        }
        self.command(|done| Command::Transact { transaction, done }).await
    }

    async fn watch(&self, prefix: &[u8], after: Revision) -> Result<Watcher> {
        self.shared.memory.write().watch(bytes::Bytes::copy_from_slice(prefix), after)
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let mut memory = self.shared.memory.write();
        memory.check(revision.max(1))?;
        memory.compact(revision);
        Ok(())
    }

    async fn snapshot(&self, file: &Path) -> Result<()> {
        let target = file.to_owned();
        self.blocking(move |shared| {
            // the lock keeps the map from being resized under the copy
            let _memory = shared.memory.read();
            shared.file.copy_to(&target)
        })
        .await
    }

    async fn stats(&self) -> Result<Stats> {
        self.blocking(|shared| {
            let memory = shared.memory.read();
            let mut stats = shared.file.stats()?;
            stats.revision = memory.revision;
            stats.compacted = memory.compacted;
            stats.log_entries = memory.history.len() as u64;
            stats.volatile_keys = memory.volatile.len() as u64;
            stats.volatile_bytes = memory.volatile.values().map(|kv| (kv.key.len() + kv.value.len()) as u64).sum();
            stats.commits = shared.commits.load(Ordering::Relaxed);
            Ok(stats)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
