//! What a cluster's node holds because of its pods: when they have gone all of it is as before.

use super::{Cluster, cleanup};
use std::fs;
use std::path::{Path, PathBuf};

/// Of the server's machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Memory of the server's process, without what it maps of files, in KiB.
    pub(crate) memory: u64,
    /// Descriptors that the server's process has open.
    pub(crate) descriptors: usize,
    /// Processes that watch over pods.
    pub(crate) monitors: usize,
    /// Cgroups, all below the cluster's own but those of hosts of dense programs, which outlive those for a while.
    pub(crate) cgroups: usize,
    /// Mounts below the cluster's directory.
    pub(crate) mounts: usize,
    /// Links of the machine.
    pub(crate) links: usize,
    /// Sandboxes and pods that have a directory.
    pub(crate) directories: usize,
}

impl Cluster {
    /// As it is now.
    pub(crate) fn footprint(&self) -> Footprint {
        let process = Path::new("/proc").join(self.pid().to_string());
        let within = format!("{}/", self.dir.display());
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
        let links = self.inside(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
        let places = ["run/pods/pods", "agent/pods"].map(|place| entries(&self.data_dir().join(place)));
        let is_monitor = |pid: &&i32| comm(**pid) == "edge-monitor";
        let mut processes = self.processes();
        processes.sort_unstable();
        processes.dedup();
        Footprint {
            memory: field_kib(&process.join("smaps_rollup"), "Anonymous:"),
            descriptors: entries(&process.join("fd")),
            monitors: processes.iter().filter(is_monitor).count(),
            cgroups: cleanup::cgroup_dirs(self.id()).iter().map(|dir| below(dir)).sum(),
            mounts: mounts.lines().filter(|line| line.contains(&within)).count(),
            links: links.lines().count().saturating_sub(2),
            directories: places.iter().sum(),
        }
    }
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Directories below one.
fn below(directory: &Path) -> usize {
    let inner = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let counts = |path: &PathBuf| path.is_dir() && !path.is_symlink() && !path.ends_with("wasm-dense");
    inner.filter(counts).map(|path| 1 + below(&path)).sum()
}

/// A line of a file of the process, as in `smaps_rollup`.
fn field_kib(file: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}
