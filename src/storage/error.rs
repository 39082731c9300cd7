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
    /// No space is left on the device.
    #[error("no space left on the device of {}", path.display())]
    Full {
        /// The data file.
        path: PathBuf,
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
    #[error("{} has format {found}, this program knows formats up to {known}: use a newer version of the program", path.display())]
    Format {
        /// The data file.
        path: PathBuf,
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
    /// The store has been closed.
    #[error("store is closed")]
    Closed,
}
