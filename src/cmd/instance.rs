//! One edge at a time works in a data directory.

use super::server::{Failure, doing};
use edge_sys::fsutil::write_atomic_volatile;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the kernel calls the time since it was started, and nothing else.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Held for as long as the process lives; a crash gives it back.
pub(crate) struct Instance {
    lock: Flock<File>,
    /// Where it is noted who holds it.
    holder: PathBuf,
}

/// Who holds a lock, and which one.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Holder {
    identity: String,
    boot: String,
    device: u64,
    inode: u64,
}

impl Instance {
    /// Notes by which name others know this process; gives the name of the one before, if that has certainly ended: it held this very
    /// lock, on this very kernel. A copy of the directory (another machine made of this one's disk, a backup of files) is another
    /// one's, who may live.
    pub(crate) fn succeed(&self, identity: &str) -> Option<String> {
        let lock = self.lock.metadata().ok()?;
        let boot = fs::read_to_string(BOOT_ID).ok()?;
        let own = Holder { identity: identity.into(), boot, device: lock.dev(), inode: lock.ino() };
        let before = fs::read(&self.holder).ok().and_then(|text| serde_json::from_slice::<Holder>(&text).ok());
        let written = serde_json::to_vec(&own)
            .map_err(io::Error::from)
            .and_then(|text| write_atomic_volatile(&self.holder, &text, 0o600));
        if let Err(error) = written {
            // the next process waits for its leases, as another server would
            tracing::warn!(%error, path = %self.holder.display(), "not written");
        }
        let before = before?;
        let is_this = (&before.boot, before.device, before.inode) == (&own.boot, own.device, own.inode);
        is_this.then_some(before.identity)
    }
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{path}")]
    File { path: String, source: io::Error },
    #[error("another edge works there{0}; stop it first")]
    Busy(String),
}

/// Claims a data directory, in which `run` exists.
///
/// # Errors
/// When another process has it, or the file cannot be made.
pub(crate) fn claim(data_dir: &Path) -> Result<Instance, Failure> {
    let what = doing("claiming the data directory");
    let path = data_dir.join("run/lock");
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(source) => return Err(what(Refused::File { path: path.display().to_string(), source })),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // only for the message above; a full disk does not matter
            let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
            Ok(Instance { lock, holder: data_dir.join("run/holder.json") })
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = pid.trim();
            Err(what(Refused::Busy(if pid.is_empty() { String::new() } else { format!(" (process {pid})") })))
        }
        Err((_, errno)) => Err(what(Refused::File { path: path.display().to_string(), source: errno.into() })),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_who_held_this_lock_since_the_boot_has_certainly_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
        for path in [&data, &copy] {
            fs::create_dir_all(path.join("run")).unwrap();
        }
        let first = claim(&data).unwrap();
        assert_eq!(first.succeed("one"), None);
        assert!(claim(&data).is_err());
        // somebody works in a copy while the first one lives
        fs::copy(data.join("run/holder.json"), copy.join("run/holder.json")).unwrap();
        assert_eq!(claim(&copy).unwrap().succeed("copied"), None);
        drop(first);
        let second = claim(&data).unwrap();
        assert_eq!(second.succeed("two").as_deref(), Some("one"));
        drop(second);
        let file = data.join("run/holder.json");
        let mut before: Holder = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        before.boot = "another boot".into();
        fs::write(&file, serde_json::to_vec(&before).unwrap()).unwrap();
        assert_eq!(claim(&data).unwrap().succeed("three"), None);
        fs::write(&file, "{").unwrap();
        assert_eq!(claim(&data).unwrap().succeed("four"), None);
    }
}
