//! The host: one process per node that runs the dense WebAssembly programs of all its pods ([`edge_wasm::dense`]).
//!
//! The zygote forks it into a PID namespace of its own, and it executes edge anew, so that nothing of what edge was started with is in
//! its memory. Then it takes everything from itself ([`confine`]) and listens. It outlives edge, which finds it again by its directory;
//! an edge of another version starts another one. It ends when nobody has had a program in it for a while.
//!
//! ```text
//! <dir>/dense/<program>-<start>/host.sock   it listens here
//!                               root/       where its file system is mounted, in a mount namespace of its own
//! ```

mod confine;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use edge_wasm::dense;
use serde::{Deserialize, Serialize};

use crate::error::chain;
use crate::protocol::{self, Ready};

/// First argument with which edge executes itself to be the host.
pub const DENSE_HOST: &str = "dense-host";

/// Name of the socket in a host's directory.
pub(crate) const HOST_SOCKET: &str = "host.sock";

/// The cgroup of all hosts, below the root.
pub(crate) const HOSTS_CGROUP: &str = "kubepods/wasm-dense";

/// Whom the host runs as, and with it all its programs: nobody on any machine, and the same as WebAssembly programs in processes of
/// their own run as, so that files which one has written can be read by the other.
pub(crate) const HOST_ID: u32 = 65532;

/// What a new host is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HostConfig {
    /// Its directory, which exists.
    pub(crate) directory: PathBuf,
    /// Cgroup root of the runtime.
    pub(crate) cgroup_root: String,
    /// Its cgroup below that.
    pub(crate) cgroup: String,
}

/// Does what a process does that was started with [`DENSE_HOST`]: runs programs until nobody has any. Its standard input is where it
/// reports that it listens. Must be called before the process has threads.
pub fn dense_host(mut args: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let config = args.next().and_then(|text| serde_json::from_str::<HostConfig>(text.to_str()?).ok());
    let Some(config) = config else { return ExitCode::from(2) };
    let Ok(reply) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let listener = confine::confine(&config);
    let word = match &listener {
        Ok(_) => Ready::Listening,
        Err(err) => Ready::Failed(chain(err)),
    };
    let told = protocol::send(reply.as_fd(), &word, &[]);
    drop(reply);
    match (listener, told) {
        (Ok(listener), Ok(())) => run(listener),
        _ => ExitCode::FAILURE,
    }
}

fn run(listener: OwnedFd) -> ExitCode {
    match dense::host(listener, dense::Capacity::default(), dense::LINGER) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A name for the program that this process executes. Another version is another file; the same one is found again.
pub(crate) fn program_name() -> io::Result<String> {
    let file = std::fs::metadata("/proc/self/exe")?;
    Ok(format!("{:x}.{:x}.{:x}", file.dev(), file.ino(), file.mtime()))
}

/// The cgroup of the host in a directory.
pub(crate) fn cgroup_of(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    format!("{HOSTS_CGROUP}/{name}")
}
