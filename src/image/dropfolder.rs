//! The drop folder `<data-dir>/agent/images`: every image archive in it is imported, at start and when it appears.
//!
//! A file is taken when it is complete: closed after writing, or moved in. Removing a file keeps its images, as in k3s;
//! they stay pinned. What was imported is remembered, so that a restart reads no archive twice.

use crate::content::read_json;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Image;
use crate::store::{ImageStore, blocking};
use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What happened in the drop folder.
#[derive(Debug)]
pub enum ArchiveEvent {
    /// The archive's images are in the store.
    Imported {
        /// The archive.
        path: PathBuf,
        /// Its images.
        images: Vec<Arc<Image>>,
    },
    /// The archive could not be imported; the store is as it was.
    Failed {
        /// The archive.
        path: PathBuf,
        /// Why.
        error: Error,
    },
    /// Everything that was in the folder at start has been dealt with.
    Ready,
}

/// A state of a file that was imported, and what it brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    size: u64,
    inode: u64,
    /// Modification time, nanoseconds since 1970.
    modified: i64,
    images: Vec<Digest>,
}

impl ImageStore {
    /// Watches `folder` (made when missing) and imports its archives, one after the other; tells `events` about each.
    /// Returns when the receiver of `events` is gone.
    ///
    /// # Errors
    /// When the folder cannot be made or watched. A bad archive is no error but an [`ArchiveEvent::Failed`].
    pub async fn watch_archives(&self, folder: &Path, events: mpsc::Sender<ArchiveEvent>) -> Result<(), Error> {
        tokio::fs::create_dir_all(folder).await.map_err(Error::io("make directory", folder))?;
        let watching = Error::io("watch", folder);
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        // Watch first and list then: nothing falls between.
        let mut changes = (|| {
            let inotify = Inotify::init()?;
            inotify.watches().add(folder, mask)?;
            inotify.into_event_stream(vec![0; 4096])
        })()
        .map_err(watching)?;
        let mut dropped = DropFolder::load(self.clone(), folder);
        if !dropped.scan(&events).await? || events.send(ArchiveEvent::Ready).await.is_err() {
            return Ok(());
        }
        loop {
            let change = tokio::select! {
                () = events.closed() => return Ok(()),
                change = changes.next() => change,
            };
            let Some(change) = change else { return Ok(()) };
            let change = change.map_err(Error::io("watch", folder))?;
            if change.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
                let gone = std::io::Error::new(std::io::ErrorKind::NotFound, "the folder was removed");
                return Err(Error::io("watch", folder)(gone));
            }
            let goes_on = match &change.name {
                // Events were lost: look at everything again.
                _ if change.mask.contains(EventMask::Q_OVERFLOW) => dropped.scan(&events).await?,
                Some(name) => dropped.take(&folder.join(name), &events).await,
                None => true,
            };
            if !goes_on {
                return Ok(());
            }
        }
    }
}

struct DropFolder {
    store: ImageStore,
    folder: PathBuf,
    /// By file name.
    seen: BTreeMap<String, Seen>,
    seen_file: PathBuf,
}

impl DropFolder {
    fn load(store: ImageStore, folder: &Path) -> Self {
        let seen_file = store.inner.content.root().join("archives.json");
        // Only a cache: without it the archives are read again.
        let seen = read_json(&seen_file).unwrap_or_default();
        Self { store, folder: folder.to_owned(), seen, seen_file }
    }

    /// Imports every new archive of the folder; false when nobody listens any more.
    async fn scan(&mut self, events: &mpsc::Sender<ArchiveEvent>) -> Result<bool, Error> {
        let folder = self.folder.clone();
        let mut paths = blocking(move || crate::content::read_dir(&folder)).await?;
        paths.sort();
        for path in paths {
            if !self.take(&path, events).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Imports one file unless it is known; false when nobody listens any more.
    async fn take(&mut self, path: &Path, events: &mpsc::Sender<ArchiveEvent>) -> bool {
        let Some(name) = path.file_name().and_then(OsStr::to_str).filter(|name| is_archive(name)) else { return true };
        let Some(mut seen) = fingerprint(path).await else { return true };
        if let Some(images) = self.already_imported(name, &seen) {
            tracing::debug!(path = %path.display(), images = images.len(), "image archive imported before");
            return true;
        }
        let event = match self.store.import_archive(path, |_| {}).await {
            Ok(images) => {
                seen.images = images.iter().map(|image| image.id).collect();
                self.seen.insert(name.to_owned(), seen);
                self.save().await;
                ArchiveEvent::Imported { path: path.to_owned(), images }
            }
            Err(error) => ArchiveEvent::Failed { path: path.to_owned(), error },
        };
        events.send(event).await.is_ok()
    }

    fn already_imported(&self, name: &str, now: &Seen) -> Option<&[Digest]> {
        let before = self.seen.get(name)?;
        let same = (before.size, before.inode, before.modified) == (now.size, now.inode, now.modified);
        let here = before.images.iter().all(|id| self.store.get(&id.to_string()).is_some());
        (same && here).then_some(&before.images)
    }

    async fn save(&mut self) {
        let (content, file, seen) = (self.store.inner.content.clone(), self.seen_file.clone(), self.seen.clone());
        if let Err(error) = blocking(move || content.write_json(&file, &seen)).await {
            tracing::warn!(%error, "remember imported archives; they will be read again at the next start");
        }
    }
}

/// Archives by their usual names (how they are compressed is told by their bytes); hidden files are skipped, since copying
/// tools use them for unfinished ones.
fn is_archive(name: &str) -> bool {
    !name.starts_with('.') && [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"].iter().any(|end| name.ends_with(end))
}

async fn fingerprint(path: &Path) -> Option<Seen> {
    let metadata = tokio::fs::metadata(path).await.ok().filter(std::fs::Metadata::is_file)?;
    let modified = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    Some(Seen { size: metadata.len(), inode: metadata.ino(), modified, images: Vec::new() })
}
