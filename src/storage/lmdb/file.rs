//! The LMDB environment: records with their revisions and checksums, and the facts about the store itself.
//!
//! A record is `create revision | modification revision | CRC-32 of key and all else | value`, integers little-endian.

use crate::error::{Error, Result};
use crate::types::{KeyValue, Revision, Stats};
use bytes::Bytes;
use heed::types::Bytes as Raw;
use heed::{CommitOrAbort, CompactionOption, Database, Env, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format that this program writes.
const FORMAT: u64 = 1;
const HEADER: usize = 20;
/// The map begins at this size and doubles whenever it is full; it costs address space, not memory or disk.
const FIRST_MAP: usize = 64 << 20;

const META_FORMAT: &[u8] = b"format";
const META_REVISION: &[u8] = b"revision";
const META_RESERVED: &[u8] = b"reserved";

/// The file with the durable keys.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) path: PathBuf,
    env: Env<WithoutTls>,
    keys: Database<'static, Raw, Raw>,
    meta: Database<'static, Raw, Raw>,
    /// Held as long as the store is open.
    _lock: File,
}

impl DataFile {
    /// Opens or makes the file; gives the revision to go on from, and up to which revisions are reserved.
    pub(super) fn open(dir: &Path) -> Result<(Self, Revision, Revision)> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |e: std::io::Error| Error::Io { path: path.clone(), source: Arc::new(e) }
        };
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let lock_path = dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(Error::InUse { path: lock_path }),
            Err(std::fs::TryLockError::Error(e)) => return Err(io(&lock_path)(e)),
        }
        let path = dir.join("data.mdb");
        let size = std::fs::metadata(&path).map_or(0, |m| m.len());
        let env = open_env(dir, &path, usize::try_from(size).unwrap_or(usize::MAX / 4))?;
        // pages that the file does not have would end the process when they are touched
        let needed = (env.info().last_page_number as u64 + 1) * page_size(&env);
        if size > 0 && size < needed {
            return Err(Error::Corrupt { path, detail: format!("{size} bytes long, but {needed} are in use") });
        }
        let fail = |e: heed::Error| database(&path, e);
        let known = existing(&env).map_err(fail)?;
        if let Some((_, meta)) = &known {
            let txn = env.read_txn().map_err(fail)?;
            let found = number(meta, &txn, META_FORMAT).map_err(fail)?;
            if found != Some(FORMAT) {
                let found = found.ok_or_else(|| corrupt(&path, "it does not say its format"))?;
                return Err(Error::Format { path, found, known: FORMAT });
            }
        }
        let (keys, meta) = match known {
            Some(databases) => databases,
            None => create(&env).map_err(fail)?,
        };
        let file = Self { path, env, keys, meta, _lock: lock };
        let highest = file.verify()?;
        let txn = file.env.read_txn().map_err(|e| file.error(e))?;
        let read = |key| number(&file.meta, &txn, key).map_err(|e| file.error(e)).map(Option::unwrap_or_default);
        let (revision, reserved) = (read(META_REVISION)?, read(META_RESERVED)?);
        drop(txn);
        Ok((file, revision.max(reserved).max(highest).max(1), reserved))
    }

    /// Reads every record once; gives the highest revision.
    fn verify(&self) -> Result<Revision> {
        let txn = self.env.read_txn().map_err(|e| self.error(e))?;
        let mut highest = 0;
        for entry in self.keys.iter(&txn).map_err(|e| self.error(e))? {
            let (key, record) = entry.map_err(|e| self.error(e))?;
            highest = highest.max(self.decode(key, record)?.mod_revision);
        }
        Ok(highest)
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        let txn = self.env.read_txn().map_err(|e| self.error(e))?;
        self.get_in(&txn, key)
    }

    fn get_in(&self, txn: &RoTxn<'_, WithoutTls>, key: &[u8]) -> Result<Option<KeyValue>> {
        let record = self.keys.get(txn, key).map_err(|e| self.error(e))?;
        record.map(|r| self.decode(key, r)).transpose()
    }

    pub(super) fn list(&self, prefix: &[u8]) -> Result<Vec<KeyValue>> {
        let txn = self.env.read_txn().map_err(|e| self.error(e))?;
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

    /// Writes changes and the revision, and syncs. `changes` are keys with their new state (`None`: removed).
    pub(super) fn commit<'a>(
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
        self.meta.put(&mut txn, META_REVISION, &revision.to_le_bytes())?;
        self.meta.put(&mut txn, META_RESERVED, &reserved.to_le_bytes())?;
        txn.commit()
    }

    fn put_in(&self, txn: &mut RwTxn<'_>, kv: &KeyValue) -> std::result::Result<(), heed::Error> {
        let length = HEADER + kv.value.len();
        let (create, modified) = (kv.create_revision.to_le_bytes(), kv.mod_revision.to_le_bytes());
        let sum = checksum(&kv.key, &create, &modified, &kv.value).to_le_bytes();
        self.keys.put_reserved(txn, &kv.key, length, |space| {
            use std::io::Write;
            for part in [&create[..], &modified, &sum, &kv.value] {
                space.write_all(part)?;
            }
            Ok(())
        })
    }

    /// Doubles the map.
    ///
    /// No transaction may be open in this process: the caller holds the lock that all readers take.
    pub(super) fn grow(&self) -> std::result::Result<(), heed::Error> {
        let size = self.env.info().map_size.saturating_mul(2);
        tracing::info!(bytes = size, "enlarging the store's map");
        // SAFETY: readers open transactions only under the shared lock, which the caller holds exclusively, and the
        // caller's own transaction has ended
        #[expect(unsafe_code, reason = "LMDB cannot know whether this process has open transactions")]
        unsafe {
            self.env.resize(size)
        }
    }

    pub(super) fn check_key(&self, key: &[u8]) -> Result<()> {
        let max = self.env.max_key_size();
        if key.is_empty() || key.len() > max { Err(Error::KeyLength { length: key.len(), max }) } else { Ok(()) }
    }

    pub(super) fn copy_to(&self, target: &Path) -> Result<()> {
        let io = |e: std::io::Error| Error::Io { path: target.into(), source: Arc::new(e) };
        let mut file = File::options().write(true).create_new(true).open(target).map_err(io)?;
        self.env.copy_to_file(&mut file, CompactionOption::Enabled).map_err(|e| database(target, e))?;
        file.sync_all().map_err(io)
    }

    pub(super) fn stats(&self) -> Result<Stats> {
        let txn = self.env.read_txn().map_err(|e| self.error(e))?;
        let keys = self.keys.len(&txn).map_err(|e| self.error(e))?;
        let file_bytes = self.env.real_disk_size().map_err(|e| self.error(e))?;
        let used_bytes = (self.env.info().last_page_number as u64 + 1) * page_size(&self.env);
        Ok(Stats { keys, file_bytes, used_bytes, ..Stats::default() })
    }

    pub(super) fn error(&self, error: heed::Error) -> Error {
        database(&self.path, error)
    }

    fn decode(&self, key: &[u8], record: &[u8]) -> Result<KeyValue> {
        let damaged = || corrupt(&self.path, &format!("record {:?} fails its checksum", String::from_utf8_lossy(key)));
        let (header, value) = record.split_at_checked(HEADER).ok_or_else(damaged)?;
        let (create, rest) = header.split_first_chunk::<8>().ok_or_else(damaged)?;
        let (modified, sum) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        if checksum(key, create, modified, value).to_le_bytes() != sum {
            return Err(damaged());
        }
        Ok(KeyValue {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            create_revision: u64::from_le_bytes(*create),
            mod_revision: u64::from_le_bytes(*modified),
        })
    }
}

fn checksum(key: &[u8], create: &[u8; 8], modified: &[u8; 8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    [key, create, modified, value].into_iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

fn open_env(dir: &Path, path: &Path, size: usize) -> Result<Env<WithoutTls>> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    // a multiple of every page size
    let map = FIRST_MAP.max(size.saturating_mul(2)).next_multiple_of(1 << 20);
    options.max_dbs(2).map_size(map);
    // SAFETY: the lock file, which is held, keeps other processes of ours away from the memory-mapped file, and this
    // process opens it once
    #[expect(unsafe_code, reason = "LMDB maps the file, and nobody can promise what others do to files")]
    let env = unsafe { options.open(dir) };
    env.map_err(|e| match e {
        heed::Error::Mdb(heed::MdbError::Invalid | heed::MdbError::VersionMismatch | heed::MdbError::Corrupted) => {
            corrupt(path, "not a store")
        }
        other => database(path, other),
    })
}

type Databases = (Database<'static, Raw, Raw>, Database<'static, Raw, Raw>);

fn existing(env: &Env<WithoutTls>) -> std::result::Result<Option<Databases>, heed::Error> {
    let txn = env.read_txn()?;
    let opened = env.open_databases_and_commit(txn, |opener, txn| {
        let keys = opener.open_database::<Raw, Raw>(txn, Some("keys"))?;
        let meta = opener.open_database::<Raw, Raw>(txn, Some("meta"))?;
        Ok::<_, heed::Error>(match (keys, meta) {
            (Some(keys), Some(meta)) => CommitOrAbort::Commit((keys, meta)),
            _ => CommitOrAbort::Abort(()),
        })
    })?;
    Ok(match opened {
        CommitOrAbort::Commit(databases) => Some(databases),
        CommitOrAbort::Abort(()) => None,
    })
}

fn create(env: &Env<WithoutTls>) -> std::result::Result<Databases, heed::Error> {
    let txn = env.write_txn()?;
    let made = env.create_databases_and_commit(txn, |opener, txn| {
        let keys = opener.create_database::<Raw, Raw>(txn, Some("keys"))?;
        let meta = opener.create_database::<Raw, Raw>(txn, Some("meta"))?;
        meta.put(txn, META_FORMAT, &FORMAT.to_le_bytes())?;
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((keys, meta)))
    })?;
    Ok(made.unwrap_commit())
}

fn number(
    meta: &Database<'static, Raw, Raw>,
    txn: &RoTxn<'_, WithoutTls>,
    key: &[u8],
) -> std::result::Result<Option<u64>, heed::Error> {
    Ok(meta.get(txn, key)?.and_then(|b| b.try_into().ok()).map(u64::from_le_bytes))
}

fn page_size(env: &Env<WithoutTls>) -> u64 {
    u64::from(env.unnamed_database_stat().page_size)
}

fn corrupt(path: &Path, detail: &str) -> Error {
    Error::Corrupt { path: path.into(), detail: detail.into() }
}

fn database(path: &Path, error: heed::Error) -> Error {
    const NO_SPACE: i32 = 28;
    let code = match &error {
        heed::Error::Io(e) => e.raw_os_error(),
        heed::Error::Mdb(heed::MdbError::Other(code)) => Some(*code),
        _ => None,
    };
    match (code, error) {
        (Some(NO_SPACE), _) => Error::Full { path: path.into() },
        (_, heed::Error::Io(e)) => Error::Io { path: path.into(), source: Arc::new(e) },
        (_, heed::Error::Mdb(e @ (heed::MdbError::Corrupted | heed::MdbError::PageNotFound))) => {
            corrupt(path, &e.to_string())
        }
        (_, other) => Error::Database { path: path.into(), source: Arc::new(other) },
    }
}
