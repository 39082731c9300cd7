//! The watched directory: what is in it, and when that changes.

use inotify::{Inotify, WatchMask, Watches};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// Larger files are no manifests.
const MAX_SIZE: u64 = 16 << 20;

/// A manifest file.
pub(super) struct File {
    pub(super) text: String,
    pub(super) hash: u64,
    /// Whether a `.skip` file suspends it.
    pub(super) skipped: bool,
}

/// All manifests below a directory, by their path within it.
///
/// # Errors
/// When the directory cannot be read. A file that vanishes meanwhile, is too large or no text is left out.
pub(super) fn files(directory: &Path) -> io::Result<BTreeMap<String, File>> {
    let mut out = BTreeMap::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if is_manifest(&path) {
                match read(&path) {
                    Ok(file) => drop(super::relative(directory, &path).map(|name| out.insert(name, file))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => tracing::error!(file = %path.display(), %error, "manifest cannot be read"),
                }
            }
        }
    }
    Ok(out)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|n| n.starts_with('.'));
    !hidden && matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"))
}

fn read(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path)?.len() > MAX_SIZE {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_SIZE >> 20)));
    }
    let text = std::fs::read_to_string(path)?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let mut skip = path.as_os_str().to_owned();
    skip.push(".skip");
    Ok(File { hash: hasher.finish(), skipped: Path::new(&skip).exists(), text })
}

/// Calls `changed` whenever something below the directory changed, for ever.
pub(super) async fn run(directory: PathBuf, changed: impl Fn()) {
    loop {
        if let Err(error) = follow(&directory, &changed).await {
            tracing::error!(directory = %directory.display(), %error, "cannot watch the manifests, trying again");
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        }
    }
}

async fn follow(directory: &Path, changed: &impl Fn()) -> io::Result<()> {
    use futures::StreamExt;
    std::fs::create_dir_all(directory)?;
    let inotify = Inotify::init()?;
    let mut watches = inotify.watches();
    add(&mut watches, directory)?;
    changed();
    let mut events = inotify.into_event_stream([0u8; 4096])?;
    while let Some(event) = events.next().await {
        let event = event?;
        if event.mask.contains(inotify::EventMask::DELETE_SELF) {
            return Ok(());
        }
        if event.mask.contains(inotify::EventMask::ISDIR) {
            // a new folder may have been filled before it was watched: the scan that follows sees what is in it
            add(&mut watches, directory)?;
        }
        changed();
    }
    Ok(())
}

/// Watches a directory and its folders; watching one again changes nothing.
fn add(watches: &mut Watches, directory: &Path) -> io::Result<()> {
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::CREATE
        | WatchMask::DELETE_SELF;
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        match watches.add(&folder, mask) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder != directory => continue,
            Err(error) => return Err(error),
        }
        for entry in std::fs::read_dir(&folder)?.flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn changes_are_told_in_new_folders_too() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("manifests");
        let (tx, mut rx) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(root.clone(), move || {
            let _ = tx.send(());
        }));
        rx.recv().await.unwrap();
        std::fs::create_dir(root.join("sub")).unwrap();
        rx.recv().await.unwrap();
        std::fs::write(root.join("sub/a.yaml"), "x").unwrap();
        while !files(&root).unwrap().contains_key("sub/a.yaml") {
            rx.recv().await.unwrap();
        }
        std::fs::write(root.join("sub/a.yaml.skip"), "").unwrap();
        std::fs::write(root.join("notes.txt"), "").unwrap();
        let found = files(&root).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found["sub/a.yaml"].skipped);
        task.abort();
    }
}
