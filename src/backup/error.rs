//! What can go wrong with backups.

use std::io;
use std::path::{Path, PathBuf};

/// A result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no backup, or nothing was restored. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no store in the data directory.
    #[error("{} does not exist: is this the data directory of a server?", path.display())]
    NoStore {
        /// Where it would be.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is no backup of edge: {detail}", path.display())]
    NoBackup {
        /// The file.
        path: PathBuf,
        /// What it has.
        detail: String,
    },
    /// The file was written by a newer version.
    #[error("{} has format {found}, this program knows formats up to {known}: use the edge that wrote it, {edge}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What this program can read.
        known: u32,
        /// The version that wrote it.
        edge: String,
    },
    /// The file is not as it was written.
    #[error("{} is damaged: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        detail: String,
    },
    /// The store in the backup cannot be opened.
    #[error("the store in {} cannot be used", path.display())]
    Store {
        /// The backup, or the data directory.
        path: PathBuf,
        /// Why.
        source: edge_storage::Error,
    },
}

/// Says which file an error is about.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}
