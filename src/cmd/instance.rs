//! One edge at a time works in a data directory.

use super::server::{Failure, doing};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Held for as long as the process lives; a crash gives it back.
pub(crate) struct Instance {
    _lock: Flock<File>,
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
            Ok(Instance { _lock: lock })
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
