//! Where a backup is made: a directory beside its target, which goes whatever happens.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use tempfile::TempDir;

const PREFIX: &str = ".edge-backup-";

/// A directory for what is not whole yet, removed when dropped. One whose process was killed goes when the next one is made.
pub(crate) struct Work {
    directory: TempDir,
    /// Says that somebody works in it, as long as the process lives.
    _lock: File,
}

impl Work {
    /// Makes one in `parent`.
    pub(crate) fn begin(parent: &Path) -> io::Result<Self> {
        // nobody removes one that has been made and not locked yet
        let guard = File::open(parent)?;
        let guarded = flock(&guard, FlockOperation::NonBlockingLockExclusive).is_ok();
        if guarded {
            remove_abandoned(parent)?;
        }
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::open(directory.path())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { directory, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

fn remove_abandoned(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) || !entry.file_type()?.is_dir() {
            continue;
        }
        let lock = File::open(entry.path())?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            edge_sys::fsutil::remove_dir_all_if_exists(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_nobody_works_in_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (abandoned, other) = (dir.path().join(format!("{PREFIX}x")), dir.path().join("other"));
        for path in [&abandoned, &other] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("data.mdb"), "x").unwrap();
        }
        let first = Work::begin(dir.path()).unwrap();
        assert!(!abandoned.exists() && other.exists());
        let second = Work::begin(dir.path()).unwrap();
        assert!(first.path().exists() && second.path().exists());
        drop((first, second));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
