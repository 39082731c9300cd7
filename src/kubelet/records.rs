//! What drivers and plugins have done on this node, kept in a file: it is undone when nobody needs it any more, whatever happens in between.
//!
//! The file is written before a driver is asked for something and after it has done so. A file that cannot be read is put aside.

use edge_sys::fsutil::write_atomic;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Which boot of the machine this is.
pub(crate) fn boot() -> String {
    fs::read_to_string(BOOT).unwrap_or_default().trim().to_owned()
}

/// What is kept.
pub(crate) trait Content: Clone + Default + PartialEq {
    /// What is worked on by one at a time.
    type Key: Clone + Ord;
    /// Name of the file.
    const FILE: &'static str;
    /// What a damaged file means, for the log.
    const LOST: &'static str;

    /// What a file says that was written since the boot of that name, or before.
    fn read(bytes: &[u8], boot: &str) -> serde_json::Result<Self>;
    /// The file's content.
    fn write(&self, boot: &str) -> serde_json::Result<Vec<u8>>;
}

/// The records, on disk too.
pub(crate) struct Records<C: Content> {
    path: PathBuf,
    boot: String,
    content: Mutex<C>,
    /// What was written last. One write at a time, and each writes the newest.
    written: tokio::sync::Mutex<C>,
    /// What somebody works on, whoever else wants to waits.
    busy: Mutex<BTreeMap<C::Key, Arc<tokio::sync::Mutex<()>>>>,
}

impl<C: Content> Records<C> {
    /// Reads what is on disk. Blocking.
    pub(crate) fn open(agent_dir: &Path) -> Self {
        let path = agent_dir.join(C::FILE);
        let boot = boot();
        let read = match fs::read(&path) {
            Ok(bytes) => C::read(&bytes, &boot).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(C::default()),
            Err(error) => Err(error),
        };
        let content = read.unwrap_or_else(|error| {
            let aside = path.with_extension("damaged");
            tracing::error!(file = %path.display(), aside = %aside.display(), %error, "{}", C::LOST);
            if let Err(error) = fs::rename(&path, &aside) {
                tracing::warn!(file = %path.display(), %error, "file not put aside");
            }
            C::default()
        });
        Self {
            path,
            boot,
            written: tokio::sync::Mutex::new(content.clone()),
            content: Mutex::new(content),
            busy: Mutex::default(),
        }
    }

    /// Looks at the records.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&C) -> T) -> T {
        at(&self.content.lock())
    }

    /// Changes the records, also on disk.
    pub(crate) async fn change<T>(&self, change: impl FnOnce(&mut C) -> T) -> io::Result<T> {
        let result = change(&mut self.content.lock());
        let mut written = self.written.lock().await;
        let now = self.content.lock().clone();
        if *written != now {
            let (path, bytes) = (self.path.clone(), now.write(&self.boot).map_err(io::Error::from)?);
            let write = tokio::task::spawn_blocking(move || write_atomic(&path, &bytes, 0o600));
            write.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
            *written = now;
        }
        Ok(result)
    }

    /// Waits until nobody else works on any of these.
    pub(crate) async fn busy(&self, keys: &BTreeSet<C::Key>) -> Vec<tokio::sync::OwnedMutexGuard<()>> {
        let mut held = Vec::new();
        // always in the same order, so that nobody waits for somebody who waits
        for key in keys {
            let lock = {
                let mut busy = self.busy.lock();
                busy.retain(|other, lock| other == key || Arc::strong_count(lock) > 1);
                busy.entry(key.clone()).or_default().clone()
            };
            held.push(lock.lock_owned().await);
        }
        held
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Words(Vec<String>);

    impl Content for Words {
        type Key = String;
        const FILE: &'static str = "words.json";
        const LOST: &'static str = "words are lost";

        fn read(bytes: &[u8], _: &str) -> serde_json::Result<Self> {
            serde_json::from_slice(bytes)
        }

        fn write(&self, _: &str) -> serde_json::Result<Vec<u8>> {
            serde_json::to_vec(self)
        }
    }

    #[tokio::test]
    async fn damage_is_put_aside() {
        for damage in ["", "{", "{}", "[1]"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(Words::FILE), damage).unwrap();
            let records = Records::<Words>::open(dir.path());
            assert_eq!(records.look(Words::clone), Words::default());
            assert!(dir.path().join("words.damaged").exists());
        }
    }

    #[tokio::test]
    async fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::<Words>::open(dir.path());
        let keys = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let held = records.busy(&keys(&["a", "b"])).await;
        let other = records.busy(&keys(&["c"])).await;
        let both = keys(&["b", "c"]);
        let mut waits = std::pin::pin!(records.busy(&both));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        drop(held);
        assert!(futures::poll!(waits.as_mut()).is_pending());
        drop(other);
        assert_eq!(waits.await.len(), 2);
    }
}
