//! What can go wrong with the store.

use crate::types::Revision;
use std::path::PathBuf;

/// A result of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the store refused.
///
/// Cloneable, because one failed commit is the answer to many transactions.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The history of the revision is forgotten.
    #[error("revision {requested} has been compacted, the oldest is {compacted}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// Revisions up to this one are forgotten.
        compacted: Revision,
    },
    /// The revision does not exist yet.
    #[error("revision {requested} is a future revision, the newest is {current}")]
    FutureRevision {
        /// The revision asked for.
        requested: Revision,
        /// The newest.
        current: Revision,
    },
    /// The watcher did not keep up and was ended.
    #[error("watcher is too slow and was ended")]
    Lagged,
    /// No space is left on the device. What was stored is intact and can be read and deleted.
    #[error("the disk is full: no space left on the device of {}: free some and try again", path.display())]
    Full {
        /// The data file, or whichever found no room.
        path: PathBuf,
    },
    /// The data file is as large as it may be. What was stored is intact and can be read and deleted.
    #[error("the store is full: {} has reached its limit of {limit} bytes: delete what is not needed", path.display())]
    LimitReached {
        /// The data file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A key is empty or too long.
    #[error("key of {length} bytes, allowed are 1 to {max}")]
    KeyLength {
        /// Its length in bytes.
        length: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// Another process has the store open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// The store was written by a newer version of the program; nothing was touched.
    #[error(
        "{} has {what} format {found}, this program knows formats up to {known}: use the version of the program that wrote it",
        path.display()
    )]
    Format {
        /// The data file.
        path: PathBuf,
        /// Which of its formats: `store`, or `LMDB` below it.
        what: &'static str,
        /// What it says.
        found: u64,
        /// What this program can read.
        known: u64,
    },
    /// The data file is damaged; nothing was touched.
    #[error("{} is damaged: {detail}: restore it from a snapshot", path.display())]
    Corrupt {
        /// The data file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::sync::Arc<std::io::Error>,
    },
    /// The database reported something unexpected.
    #[error("{}: {source}", path.display())]
    Database {
        /// The data file.
        path: PathBuf,
        /// What.
        #[source]
        source: std::sync::Arc<heed::Error>,
    },
    /// The disk failed in the middle of a commit, and the file could not be brought back to a known state. What was
    /// acknowledged is on the disk; opening the store again tells what became of the last commit.
    #[error("{} has failed ({detail}): repair the disk and restart the program", path.display())]
    Failed {
        /// The data file.
        path: PathBuf,
        /// What happened.
        detail: String,
    },
    /// etcd did not do what it was asked for.
    #[error(transparent)]
    Etcd(#[from] crate::etcd::EtcdError),
    /// The store has been closed.
    #[error("store is closed")]
    Closed,
}
