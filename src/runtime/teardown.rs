//! Takes away everything that runs for pods on a machine, by the kernel's state alone: it does not matter whether edge still
//! knows of it, nor what a crash or an earlier attempt has left.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use edge_sys::mount::unmount_below;
use edge_sys::pidfd::PidFd;

use crate::cgroup::Cgroups;
use crate::daemon::RuntimeConfig;
use crate::error::{Error, Result};

/// How long a killed monitor may take to end, in milliseconds. Only one that is stuck in the kernel takes long.
const MONITOR_TIMEOUT: u16 = 10_000;
/// What the kernel appends to the name of a directory that is no more.
const DELETED: &[u8] = b" (deleted)";

/// Kills the monitors whose sandboxes are below the runtime's directory and everything in the cgroup `cgroup` below the root
/// (all pods' cgroup), and removes that cgroup and all mounts below the directory. No runtime may be at work there. Call it
/// again after an error.
///
/// # Errors
/// The first error; everything else is removed nevertheless.
pub fn tear_down(config: &RuntimeConfig, cgroup: &str) -> Result<()> {
    let directory = &config.directory;
    // monitors first: nobody starts anything new, or takes note of the ends of the rest
    let mut result = end_monitors(directory).map_err(Error::io("cannot end the monitors of", directory));
    result = result.and(Cgroups::detect(&config.cgroup_root).and_then(|cgroups| cgroups.remove(cgroup)));
    result.and(unmount_below(directory).map_err(Error::io("cannot unmount what is below", directory)))
}

/// A monitor works in its sandbox's directory; that, and its name, is what is known of it without any file.
fn end_monitors(directory: &Path) -> io::Result<()> {
    let directory = match directory.canonicalize() {
        Ok(directory) => directory,
        // gone, but the monitors of what was there are known by its name
        Err(_) => directory.to_owned(),
    };
    let mut ending = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(process) = PidFd::open(pid) else { continue };
        let works_here = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| {
            let name = cwd.as_os_str().as_bytes();
            Path::new(OsStr::from_bytes(name.strip_suffix(DELETED).unwrap_or(name))).starts_with(&directory)
        });
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if works_here && name.starts_with("edge-") {
            process.send_signal(nix::libc::SIGKILL)?;
            ending.push(process);
        }
    }
    for process in ending {
        if !process.wait(MONITOR_TIMEOUT)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a killed monitor did not end"));
        }
    }
    Ok(())
}
