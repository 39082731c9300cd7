//! The store on local disk: LMDB for the durable keys, memory for the volatile ones and for the recent history.
//!
//! One writer thread takes all waiting transactions into one LMDB commit, which is synced before any of them is
//! acknowledged. Readers copy out and never hold an LMDB transaction across an await. History (for watches, and lists
//! at an earlier revision) is kept in memory, bounded by age, number and size: after a restart a watcher of an earlier
//! revision has to list again, as with Kubernetes' own watch cache, and no change is written to flash twice.

mod check;
mod file;
mod memory;
mod record;
mod writer;

use crate::Storage;
use crate::error::{Error, Result};
use crate::types::{KeyValue, List, ListRequest, Outcome, Revision, Stats, Transaction, Watcher};
use async_trait::async_trait;
use file::{DataFile, Place};
use memory::Memory;
use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use writer::{Command, Writer};

/// More revisions than any cluster uses between two backups, as etcd recommends.
const AFTER_RESTORE: Revision = 1_000_000_000;

/// So many keys of an import share a commit.
const IMPORTED_AT_ONCE: usize = 2000;

/// What is in a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The newest revision.
    pub revision: Revision,
    /// How many keys it has.
    pub keys: u64,
}

/// Reads a whole data file that nobody writes to, and checks it as [`Lmdb::open`] does.
///
/// # Errors
/// [`Error::Format`], [`Error::Corrupt`], [`Error::Io`].
pub fn inspect(file: &Path) -> Result<Inspection> {
    let state = check::check(file, file::FORMAT)?;
    Ok(Inspection { revision: state.revision.max(state.highest), keys: state.keys })
}

/// How a store is kept.
#[derive(Clone, Copy, Debug)]
pub struct LmdbOptions {
    /// The data file grows as needed, but not beyond so many bytes (rounded up to whole MiB, and a little more for
    /// deletions): a program that creates objects without end must not fill the machine's disk.
    pub limit: u64,
}

impl Default for LmdbOptions {
    /// 8 GiB, the size up to which etcd is recommended.
    fn default() -> Self {
        Self { limit: 8 << 30 }
    }
}

/// The store in a directory.
#[derive(Debug)]
pub struct Lmdb {
    shared: Arc<Shared>,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// What readers and the writer share. The writer holds the lock on the memory while it commits, so that disk and memory
/// are always seen at the same revision; the watch hub above answers reads from its own memory and is not held up by that.
#[derive(Debug)]
struct Shared {
    place: Place,
    memory: RwLock<Memory>,
    /// Taken after the memory. `None` when it failed and could not be opened again. Exclusive only to change the map.
    file: RwLock<Option<DataFile>>,
    max_key: usize,
    revision: AtomicU64,
    commits: AtomicU64,
    /// Held as long as the store is open.
    _lock: std::fs::File,
}

impl Shared {
    fn file(&self) -> Result<MappedRwLockReadGuard<'_, DataFile>> {
        RwLockReadGuard::try_map(self.file.read(), Option::as_ref).map_err(|_| self.failed("it cannot be opened again"))
    }

    fn failed(&self, detail: impl Into<String>) -> Error {
        Error::Failed { path: self.place.path.clone(), detail: detail.into() }
    }
}

impl Lmdb {
    /// Opens the store in `dir`, making the directory and the store when they are absent. Blocks; checks every record and
    /// every page in use.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Format`], [`Error::Corrupt`], [`Error::Full`], [`Error::Io`]: nothing was touched then.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, LmdbOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`Lmdb::open`].
    pub fn open_with(dir: &Path, options: LmdbOptions) -> Result<Self> {
        let place = Place::new(dir, options.limit);
        let lock = place.lock()?;
        place.create()?;
        let (file, state) = place.open()?;
        let revision = state.revision.max(state.reserved).max(state.highest).max(1);
        let shared = Arc::new(Shared {
            memory: RwLock::new(Memory::new(revision)),
            max_key: file.max_key(),
            file: RwLock::new(Some(file)),
            place,
            revision: AtomicU64::new(revision),
            commits: AtomicU64::new(0),
            _lock: lock,
        });
        let (commands, queue) = mpsc::channel();
        let writer = Writer::new(shared.clone(), queue, state.reserved);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run())
            .map_err(|e| Error::Io { path: dir.into(), source: Arc::new(e) })?;
        Ok(Self { shared, commands: Some(commands), thread: Some(thread) })
    }

    /// Writes a consistent copy of the store in `dir` to a new file, also while another process has it open and writes. Blocks.
    ///
    /// # Errors
    /// When there is no store, or the file exists already or cannot be written.
    pub fn copy(dir: &Path, target: &Path) -> Result<()> {
        file::copy(dir, target)
    }

    /// Prepares a store that was put back to an earlier state for going on from there: its revisions continue far beyond all that
    /// were given to clients after that state, so that whoever knows a later one is told to look again, and none comes twice with
    /// another meaning. Checks it as [`Lmdb::open`] does.
    ///
    /// # Errors
    /// As [`Lmdb::open`].
    pub fn continue_restored(dir: &Path) -> Result<()> {
        let place = Place::new(dir, LmdbOptions::default().limit);
        let _lock = place.lock()?;
        let (file, state) = place.open()?;
        let reserved = state.revision.max(state.reserved).max(state.highest) + AFTER_RESTORE;
        file.commit(std::iter::empty(), state.revision, reserved)
    }

    /// Makes a store in `dir`, which must not exist, of keys with their revisions, none of which is greater than `revision`. It
    /// appears whole or, whatever crashes, not at all. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] when there is something already; [`Error::Full`], [`Error::LimitReached`].
    pub fn import(dir: &Path, items: &[KeyValue], revision: Revision) -> Result<()> {
        let failed = |path: &Path, source| Error::Io { path: path.to_owned(), source: Arc::new(source) };
        if dir.try_exists().map_err(|e| failed(dir, e))? {
            return Err(failed(dir, std::io::ErrorKind::AlreadyExists.into()));
        }
        let part = dir.with_extension("new");
        edge_sys::fsutil::remove_dir_all_if_exists(&part).map_err(|e| failed(&part, e))?;
        let place = Place::new(&part, LmdbOptions::default().limit);
        {
            let _lock = place.lock()?;
            place.create()?;
            let (file, _) = place.open()?;
            for some in items.chunks(IMPORTED_AT_ONCE) {
                file.commit(some.iter().map(|kv| (&kv.key, Some(kv))), revision, revision)?;
            }
            file.commit(std::iter::empty(), revision, revision)?;
        }
        std::fs::rename(&part, dir).map_err(|e| failed(dir, e))?;
        dir.parent().map_or(Ok(()), edge_sys::fsutil::sync_dir).map_err(|e| failed(dir, e))
    }

    /// The data file.
    pub fn path(&self) -> PathBuf {
        self.shared.place.path.clone()
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

    fn check_key(&self, key: &[u8]) -> Result<()> {
        let max = self.shared.max_key;
        if key.is_empty() || key.len() > max { Err(Error::KeyLength { length: key.len(), max }) } else { Ok(()) }
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
        self.check_key(key)?;
        let key = bytes::Bytes::copy_from_slice(key);
        self.blocking(move |shared| {
            let memory = shared.memory.read();
            match memory.volatile.get(&key) {
                Some(kv) => Ok(Some(kv.clone())),
                None => shared.file()?.get(&key),
            }
        })
        .await
    }

    async fn list(&self, request: ListRequest) -> Result<List> {
        self.blocking(move |shared| {
            let memory = shared.memory.read();
            let revision = memory.check(request.revision)?;
            let durable = shared.file()?.list(&request.prefix)?;
            Ok(memory.list(durable, &request, revision))
        })
        .await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome> {
        for key in transaction.ops.iter().map(crate::Op::key).chain(transaction.compares.iter().map(|c| &c.key)) {
            self.check_key(key)?;
        }
        self.command(|done| Command::Transact { transaction, done }).await
    }

    async fn watch(&self, prefix: &[u8], after: Revision) -> Result<Watcher> {
        let prefix = bytes::Bytes::copy_from_slice(prefix);
        // the lock may be held by a commit that waits for the disk
        self.blocking(move |shared| shared.memory.write().watch(prefix, after)).await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.blocking(move |shared| {
            let mut memory = shared.memory.write();
            memory.check(revision.max(1))?;
            memory.compact(revision);
            Ok(())
        })
        .await
    }

    async fn snapshot(&self, file: &Path) -> Result<()> {
        let target = file.to_owned();
        // writes go on meanwhile: only the map must not be changed under the copy
        self.blocking(move |shared| shared.file()?.copy_to(&target)).await
    }

    async fn stats(&self) -> Result<Stats> {
        self.blocking(|shared| {
            let memory = shared.memory.read();
            let mut stats = shared.file()?.stats()?;
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
