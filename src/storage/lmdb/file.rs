//! The data file: an LMDB environment that is made whole, checked before it is used, and grows within bounds.

use super::check::{self, FACTS, KEYS, State};
use super::record::{self, HEADER};
use crate::error::{Error, Result};
use crate::types::{KeyValue, Revision, Stats};
use bytes::Bytes;
use heed::types::Bytes as Raw;
use heed::{CommitOrAbort, CompactionOption, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format that this program writes.
pub(super) const FORMAT: u64 = 1;
/// The space after the last page that is taken from the disk before it is needed, so that deletions and revisions can
/// be written when the disk is full, and so much again at once.
const AHEAD: u64 = 1 << 20;
/// What a change takes besides its own bytes: copies of the pages on the way to it.
const PER_COMMIT: u64 = 64 << 10;
/// How much more than the limit the map may grow for deletions and revisions, in steps.
const MAX_BEYOND: usize = 64 << 20;
const BEYOND_STEP: usize = 4 << 20;
/// How much a store may grow while it is being opened for a copy.
const COPY_BEYOND: usize = 1 << 30;
/// Bytes of LMDB's table of readers, with 64 for each: more than the runtime has threads.
const READERS_BYTES: u64 = 128 << 10;
const READERS: u32 = 1024;

/// Where the store is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The directory.
    pub(super) dir: PathBuf,
    /// The data file in it.
    pub(super) path: PathBuf,
    /// The file does not grow beyond so many bytes (a little for deletions excepted).
    limit: usize,
}

/// The open data file.
#[derive(Debug)]
pub(super) struct DataFile {
    place: Place,
    env: Env<WithoutTls>,
    keys: Database<'static, Raw, Raw>,
    facts: Database<'static, Raw, Raw>,
    /// For taking space on the disk.
    file: File,
}

/// The space that was taken on the disk for the data file: bytes from its beginning, `None` when the file system cannot do
/// that.
#[derive(Debug)]
pub(super) struct Room(Option<u64>);

impl Room {
    /// Not known yet; taking space again that is taken costs nothing.
    pub(super) fn new() -> Self {
        Self(Some(0))
    }
}

impl Place {
    pub(super) fn new(dir: &Path, limit: u64) -> Self {
        // in steps that every page size divides
        let limit = usize::try_from(limit).unwrap_or(usize::MAX / 2).clamp(BEYOND_STEP, usize::MAX / 2);
        Self { dir: dir.into(), path: dir.join("data.mdb"), limit: limit.next_multiple_of(1 << 20) }
    }

    /// Makes the directory, if need be, and locks it as long as the result lives.
    pub(super) fn lock(&self) -> Result<File> {
        let io = |e| file_error(&self.dir, e);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(io)?;
        let path = self.dir.join("lock");
        let options = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).clone();
        let lock = options.open(&path).map_err(|e| file_error(&path, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse { path }),
            Err(std::fs::TryLockError::Error(e)) => Err(file_error(&path, e)),
        }
    }

    /// Makes the data file unless there is one. It appears whole or, whatever crashes, not at all.
    pub(super) fn create(&self) -> Result<()> {
        let io = |e| file_error(&self.path, e);
        if self.path.try_exists().map_err(io)? {
            return Ok(());
        }
        let part = self.dir.join("new");
        edge_sys::fsutil::remove_dir_all_if_exists(&part).map_err(io)?;
        let made = self.create_in(&part).and_then(|()| {
            let file = part.join("data.mdb");
            File::open(&file).and_then(|f| f.sync_all()).map_err(io)?;
            std::fs::rename(&file, &self.path).map_err(io)
        });
        // what is left of it is only litter, and may be removed next time
        let _ = edge_sys::fsutil::remove_dir_all_if_exists(&part);
        made?;
        // none of the directories on the way may be lost; those that cannot be opened were not made by us
        for dir in self.dir.ancestors().filter(|d| !d.as_os_str().is_empty()) {
            match edge_sys::fsutil::sync_dir(dir) {
                Err(e) if dir == self.dir => return Err(io(e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn create_in(&self, dir: &Path) -> Result<()> {
        let fail = |e| database(&self.path, e);
        DirBuilder::new().mode(0o700).create(dir).map_err(|e| file_error(dir, e))?;
        prepare_readers(dir)?;
        let env = open_env(dir, self.limit).map_err(fail)?;
        let txn = env.write_txn().map_err(fail)?;
        env.create_databases_and_commit(txn, |opener, txn| {
            let keys = opener.create_database::<Raw, Raw>(txn, Some(KEYS))?;
            let facts = opener.create_database::<Raw, Raw>(txn, Some(FACTS))?;
            for (name, number) in [(record::FORMAT, FORMAT), (record::REVISION, 0), (record::RESERVED, 0)] {
                facts.put(txn, name, &record::fact(name, number))?;
            }
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((keys, facts)))
        })
        .map_err(fail)?;
        Ok(())
    }

    /// Checks the data file and opens it.
    pub(super) fn open(&self) -> Result<(DataFile, State)> {
        let state = check::check(&self.path, FORMAT)?;
        let fail = |e| database(&self.path, e);
        prepare_readers(&self.dir)?;
        let file = File::options().write(true).open(&self.path).map_err(|e| file_error(&self.path, e))?;
        let length = file.metadata().map_err(|e| file_error(&self.path, e))?.len();
        // deletions may have made it larger than the limit, or the limit was higher
        let size = usize::try_from(length).unwrap_or(usize::MAX / 2).next_multiple_of(1 << 20);
        let env = open_env(&self.dir, self.limit.max(size)).map_err(fail)?;
        // a killed process leaves its readers behind, and their pages are not used again
        env.clear_stale_readers().map_err(fail)?;
        let txn = env.read_txn().map_err(fail)?;
        let opened = env.open_databases_and_commit(txn, |opener, txn| {
            let keys = opener.open_database::<Raw, Raw>(txn, Some(KEYS))?;
            let facts = opener.open_database::<Raw, Raw>(txn, Some(FACTS))?;
            Ok::<_, heed::Error>(match (keys, facts) {
                (Some(keys), Some(facts)) => CommitOrAbort::Commit((keys, facts)),
                _ => CommitOrAbort::Abort(()),
            })
        });
        let CommitOrAbort::Commit((keys, facts)) = opened.map_err(fail)? else {
            return Err(Error::Corrupt { path: self.path.clone(), detail: "it has no databases".into() });
        };
        Ok((DataFile { place: self.clone(), env, keys, facts, file }, state))
    }
}

impl DataFile {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        let txn = self.read()?;
        let record = self.keys.get(&txn, key).map_err(|e| self.error(e))?;
        record.map(|r| self.decode(key, r)).transpose()
    }

    pub(super) fn list(&self, prefix: &[u8]) -> Result<Vec<KeyValue>> {
        let txn = self.read()?;
        let mut out = Vec::new();
        if prefix.is_empty() {
            for entry in self.keys.iter(&txn).map_err(|e| self.error(e))? {
                let (key, record) = entry.map_err(|e| self.error(e))?;
                out.push(self.decode(key, record)?);
            }
        } else {
            for entry in self.keys.prefix_iter(&txn, prefix).map_err(|e| self.error(e))? {
                let (key, record) = entry.map_err(|e| self.error(e))?;
                out.push(self.decode(key, record)?);
            }
        }
        Ok(out)
    }

    fn read(&self) -> Result<RoTxn<'_, WithoutTls>> {
        self.env.read_txn().map_err(|e| self.error(e))
    }

    /// Whether LMDB has given up: it does so when it could not write which transaction is the last.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.env.read_txn(), Err(heed::Error::Mdb(heed::MdbError::Panic)))
    }

    /// Takes the space from the disk that `bytes` of new records need, and keeps some in hand for what makes free.
    ///
    /// # Errors
    /// [`Error::Full`]: nothing has changed.
    pub(super) fn make_room(&self, room: &mut Room, bytes: u64) -> Result<()> {
        let Some(taken) = room.0 else { return Ok(()) };
        let needed = self.used_bytes() + PER_COMMIT + bytes + AHEAD;
        if needed <= taken {
            return Ok(());
        }
        let wanted = needed.next_multiple_of(AHEAD);
        let length = i64::try_from(wanted).unwrap_or(i64::MAX);
        loop {
            return match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
                Ok(()) => {
                    room.0 = Some(wanted);
                    Ok(())
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOSPC | Errno::EDQUOT) => Err(Error::Full { path: self.place.path.clone() }),
                Err(error) => {
                    tracing::info!(%error, "space for the store cannot be taken in advance on this file system");
                    room.0 = None;
                    Ok(())
                }
            };
        }
    }

    /// Writes changes and the revision, and syncs. `changes` are keys with their new state (`None`: removed).
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::LimitReached`], [`Error::Io`]: nothing has changed. After others, and when
    /// [`DataFile::has_failed`], the file has to be opened again before anything is known.
    pub(super) fn commit<'a>(
        &self,
        changes: impl Iterator<Item = (&'a Bytes, Option<&'a KeyValue>)>,
        revision: Revision,
        reserved: Revision,
    ) -> Result<()> {
        self.write(changes, revision, reserved).map_err(|error| match error {
            heed::Error::Mdb(heed::MdbError::MapFull) => self.limit_reached(),
            // this is how LMDB reports that only a part of a large record found room
            heed::Error::Io(e) if e.raw_os_error() == Some(Errno::EIO as i32) && self.is_disk_full() => {
                Error::Full { path: self.place.path.clone() }
            }
            error => self.error(error),
        })
    }

    /// Whether the file system has next to nothing left.
    fn is_disk_full(&self) -> bool {
        nix::sys::statvfs::fstatvfs(&self.file)
            .is_ok_and(|s| s.blocks_available().saturating_mul(s.fragment_size()) < AHEAD)
    }

    fn write<'a>(
        &self,
        changes: impl Iterator<Item = (&'a Bytes, Option<&'a KeyValue>)>,
        revision: Revision,
        reserved: Revision,
    ) -> std::result::Result<(), heed::Error> {
        let mut txn = self.env.write_txn()?;
        for (key, state) in changes {
            match state {
                Some(kv) => self.put_in(&mut txn, kv)?,
                None => drop(self.keys.delete(&mut txn, key)?),
            }
        }
        for (name, number) in [(record::REVISION, revision), (record::RESERVED, reserved)] {
            self.facts.put(&mut txn, name, &record::fact(name, number))?;
        }
        txn.commit()
    }

    fn put_in(&self, txn: &mut RwTxn<'_>, kv: &KeyValue) -> std::result::Result<(), heed::Error> {
        let header = record::header(kv);
        self.keys.put_reserved(txn, &kv.key, HEADER + kv.value.len(), |space| {
            use std::io::Write;
            space.write_all(&header)?;
            space.write_all(&kv.value)
        })
    }

    /// Lets the map grow beyond the limit a little.
    ///
    /// # Errors
    /// [`Error::LimitReached`] when it has done so too often; others leave the file unusable ([`DataFile::has_failed`]
    /// need not say so): it has to be opened again.
    pub(super) fn grow_beyond(&mut self) -> Result<()> {
        let size = self.env.info().map_size + BEYOND_STEP;
        if size > self.place.limit + MAX_BEYOND {
            return Err(self.limit_reached());
        }
        // SAFETY: every user of the environment has a shared reference to `self`, and this is the only other one; no
        // transaction outlives the reference it was made from
        #[expect(unsafe_code, reason = "LMDB cannot know whether this process has open transactions")]
        unsafe { self.env.resize(size) }.map_err(|e| self.error(e))
    }

    fn limit_reached(&self) -> Error {
        Error::LimitReached { path: self.place.path.clone(), limit: self.place.limit as u64 }
    }

    /// Makes sure that what is read from the file is also on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.env.force_sync().map_err(|e| self.error(e))
    }

    /// The longest allowed key in bytes.
    pub(super) fn max_key(&self) -> usize {
        self.env.max_key_size()
    }

    /// Writes a compact copy; a failure leaves no file.
    pub(super) fn copy_to(&self, target: &Path) -> Result<()> {
        copy_env(&self.env, target)
    }

    pub(super) fn stats(&self) -> Result<Stats> {
        let txn = self.read()?;
        let keys = self.keys.len(&txn).map_err(|e| self.error(e))?;
        let file_bytes = self.file.metadata().map_err(|e| file_error(&self.place.path, e))?.len();
        Ok(Stats { keys, file_bytes, used_bytes: self.used_bytes(), ..Stats::default() })
    }

    fn used_bytes(&self) -> u64 {
        (self.env.info().last_page_number as u64 + 1) * u64::from(self.env.unnamed_database_stat().page_size)
    }

    pub(super) fn error(&self, error: heed::Error) -> Error {
        database(&self.place.path, error)
    }

    fn decode(&self, key: &[u8], record: &[u8]) -> Result<KeyValue> {
        record::decode(key, record).ok_or_else(|| Error::Corrupt {
            path: self.place.path.clone(),
            detail: format!("record {:?} fails its checksum", String::from_utf8_lossy(key)),
        })
    }
}

fn copy_env(env: &Env<WithoutTls>, target: &Path) -> Result<()> {
    let io = |e| file_error(target, e);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map_err(io)?;
    let copied = env.copy_to_file(&mut file, CompactionOption::Enabled).map_err(|e| database(target, e));
    let synced = copied.and_then(|()| file.sync_all().map_err(io)).and_then(|()| {
        let dir = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        edge_sys::fsutil::sync_dir(dir).map_err(io)
    });
    if synced.is_err() {
        // the first error is the one worth reporting
        let _ = std::fs::remove_file(target);
    }
    synced
}

/// Writes a compact copy of a store that another process may have open.
pub(super) fn copy(dir: &Path, target: &Path) -> Result<()> {
    let place = Place::new(dir, 0);
    let length = std::fs::metadata(&place.path).map_err(|e| file_error(&place.path, e))?.len();
    // what the other adds meanwhile has to fit, too
    let map = usize::try_from(length).unwrap_or(usize::MAX / 2).saturating_add(COPY_BEYOND).next_multiple_of(1 << 20);
    prepare_readers(dir)?;
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.max_readers(READERS).map_size(map);
    // SAFETY: nothing is written to the map, LMDB's table of readers keeps pages that are read here from being reused by another
    // process, and this process does not have the file open
    #[expect(unsafe_code, reason = "LMDB maps the file, and nobody can promise what others do to files")]
    let env = unsafe { options.flags(EnvFlags::READ_ONLY).open(dir) }.map_err(|e| database(&place.path, e))?;
    copy_env(&env, target)
}

/// Opens the environment in a directory. Its map is as large as it may ever get: that costs address space, not memory.
fn open_env(dir: &Path, map: usize) -> std::result::Result<Env<WithoutTls>, heed::Error> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.max_dbs(2).max_readers(READERS).map_size(map);
    // SAFETY: the lock file, which is held, keeps other processes of ours away from the memory-mapped file, the pages in use
    // have been checked, and this process opens it once
    #[expect(unsafe_code, reason = "LMDB maps the file, and nobody can promise what others do to files")]
    unsafe {
        options.open(dir)
    }
}

/// Takes the space of LMDB's table of readers from the disk: the table is mapped, and a write to a mapped page for which
/// there is no space ends the process.
fn prepare_readers(dir: &Path) -> Result<()> {
    let path = dir.join("lock.mdb");
    let io = |e| file_error(&path, e);
    let options = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).clone();
    let file = options.open(&path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if metadata.len() >= READERS_BYTES && metadata.blocks() * 512 >= READERS_BYTES {
        return Ok(());
    }
    match fallocate(&file, FallocateFlags::empty(), 0, READERS_BYTES as i64) {
        Ok(()) => Ok(()),
        Err(error @ (Errno::ENOSPC | Errno::EDQUOT)) => Err(io(error.into())),
        // a file system that cannot do this: LMDB makes the file itself
        Err(_) => Ok(()),
    }
    // the file is closed here, before LMDB locks it: closing it later would drop that lock
}

fn is_full(code: i32) -> bool {
    matches!(Errno::from_raw(code), Errno::ENOSPC | Errno::EDQUOT)
}

fn file_error(path: &Path, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(code) if is_full(code) => Error::Full { path: path.into() },
        _ => Error::Io { path: path.into(), source: Arc::new(error) },
    }
}

fn database(path: &Path, error: heed::Error) -> Error {
    match error {
        heed::Error::Io(e) => file_error(path, e),
        heed::Error::Mdb(heed::MdbError::Other(code)) => file_error(path, io::Error::from_raw_os_error(code)),
        heed::Error::Mdb(
            e @ (heed::MdbError::Corrupted
            | heed::MdbError::PageNotFound
            | heed::MdbError::Invalid
            | heed::MdbError::VersionMismatch),
        ) => Error::Corrupt { path: path.into(), detail: e.to_string() },
        other => Error::Database { path: path.into(), source: Arc::new(other) },
    }
}
