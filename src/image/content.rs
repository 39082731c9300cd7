//! The store's directory: where what lies, and how it gets there so that a crash leaves all or nothing.
//!
//! ```text
//! <data-dir>/agent/content/
//!   images/<id>.json          one record per image
//!   layers/<32 hex>/fs        an unpacked layer, named by the first half of its chain id (short, since overlayfs'
//!                             options must fit into a page)
//!   layers/<32 hex>/layer.json
//!   blobs/sha256/<hex>        WebAssembly modules; layer blobs are dropped once they are unpacked
//!   ingest/                   everything unfinished; emptied at start, except for partial downloads to be resumed
//! ```

use crate::digest::Digest;
use crate::error::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Suffix of partial downloads.
const PARTIAL: &str = "partial";

#[derive(Clone, Debug)]
pub(crate) struct ContentDir {
    root: PathBuf,
}

impl ContentDir {
    /// Makes the directories (0700: layers hold setuid programs and other people's files) and removes leftovers.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let this = Self { root: root.to_owned() };
        for directory in [this.images(), this.layers(), this.blobs(), this.ingest()] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(Error::io("make directory", &directory))?;
        }
        for entry in read_dir(&this.ingest())? {
            if entry.extension().is_some_and(|e| e == PARTIAL) {
                continue;
            }
            remove_any(&entry)?;
        }
        Ok(this)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn layer(&self, chain: Digest) -> PathBuf {
        self.layers().join(&chain.hex()[..32])
    }

    pub(crate) fn layer_fs(&self, chain: Digest) -> PathBuf {
        self.layer(chain).join("fs")
    }

    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Where a download of this blob is collected, across restarts.
    pub(crate) fn partial(&self, digest: Digest) -> PathBuf {
        self.ingest().join(digest.hex()).with_extension(PARTIAL)
    }

    pub(crate) fn partials(&self) -> Result<Vec<PathBuf>, Error> {
        let mut entries = read_dir(&self.ingest())?;
        entries.retain(|path| path.extension().is_some_and(|e| e == PARTIAL));
        Ok(entries)
    }

    /// A directory for unfinished things, removed when dropped, or at the next start.
    pub(crate) fn scratch(&self, what: &str) -> Result<tempfile::TempDir, Error> {
        let ingest = self.ingest();
        tempfile::Builder::new().prefix(what).tempdir_in(&ingest).map_err(Error::io("make directory in", &ingest))
    }

    /// Writes a JSON file durably: it is there whole, or as it was before.
    pub(crate) fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<(), Error> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::malformed(path.display().to_string(), error))?;
        let ingest = self.ingest();
        let written = (|| {
            let mut file = tempfile::NamedTempFile::new_in(&ingest)?;
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            path.parent().map_or(Ok(()), sync_directory)
        })();
        written.map_err(Error::io("write", path))
    }

    /// Moves a whole file or directory to its final place. Its content must be on disk already.
    pub(crate) fn publish(&self, from: &Path, to: &Path) -> Result<(), Error> {
        fs::rename(from, to).map_err(Error::io("rename to", to))
    }

    /// Puts everything written so far on disk, in one go for all files of all layers of an image.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        let synced = File::open(&self.root).and_then(|dir| rustix::fs::syncfs(dir).map_err(io::Error::from));
        synced.map_err(Error::io("sync", &self.root))
    }

    /// Removes a published file or directory: it disappears at once, a crash half-way leaves nothing half there.
    pub(crate) fn retract(&self, path: &Path) -> Result<(), Error> {
        let trash = self.scratch("trash-")?;
        match fs::rename(path, trash.path().join("it")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            moved => moved.map_err(Error::io("remove", path)),
        }?;
        let at = trash.path().to_owned();
        trash.close().map_err(Error::io("remove", &at))
    }
}

/// Reads and parses a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::malformed(path.display().to_string(), error))
}

pub(crate) fn read_dir(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(path).and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect());
    entries.map_err(Error::io("list", path))
}

pub(crate) fn remove_any(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io("remove", path)),
    }
}

pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
