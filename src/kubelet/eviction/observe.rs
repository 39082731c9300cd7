//! What the node has left: two files of the kernel's, and two questions to file systems.

use super::thresholds::Signal;
use edge_image::ImageStore;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is left of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) available: i64,
    pub(crate) capacity: i64,
}

/// What is left of what; what cannot be found out is missing.
pub(crate) type Observations = BTreeMap<Signal, Observation>;

fn observation(available: u64, capacity: u64) -> Option<Observation> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    // some file systems count no inodes
    (capacity > 0).then(|| Observation { available: number(available), capacity: number(capacity) })
}

/// Looks at everything.
pub(super) fn observe(agent_dir: &Path, images: &ImageStore) -> Observations {
    let mut found = Observations::new();
    let mut note = |signal, observed: Option<Observation>| {
        if let Some(observed) = observed {
            found.insert(signal, observed);
        }
    };
    note(Signal::Memory, memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()));
    if let Ok(s) = nix::sys::statvfs::statvfs(agent_dir) {
        let bytes = |blocks: u64| blocks.saturating_mul(s.fragment_size());
        note(Signal::NodeFs, observation(bytes(s.blocks_available()), bytes(s.blocks())));
        note(Signal::NodeFsInodes, observation(s.files_available(), s.files()));
    }
    if let Ok(disk) = images.usage() {
        note(Signal::ImageFs, observation(disk.available_bytes, disk.capacity_bytes));
        note(Signal::ImageFsInodes, observation(disk.available_inodes, disk.capacity_inodes));
    }
    note(Signal::Pids, pids().and_then(|(running, most)| observation(most.saturating_sub(running), most)));
    found
}

/// What meminfo says.
fn memory(meminfo: &str) -> Option<Observation> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    observation(kib("MemAvailable:")?.saturating_mul(1024), kib("MemTotal:")?.saturating_mul(1024))
}

/// How many processes and threads there are, and at most can be.
pub(crate) fn pids() -> Option<(u64, u64)> {
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u64>().ok());
    let most = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    let running = running(&fs::read_to_string("/proc/loadavg").ok()?)?;
    Some((running, most.into_iter().flatten().min()?))
}

/// The number behind the slash of loadavg.
fn running(loadavg: &str) -> Option<u64> {
    loadavg.split(['/', ' ']).nth(4)?.parse().ok()
}

/// Whether images have a file system of their own.
pub(super) fn images_are_apart(agent_dir: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    let content = device(&agent_dir.join("content"));
    content.is_some() && content != device(agent_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_understood() {
        let meminfo = "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(memory(meminfo), Some(Observation { available: 1 << 20, capacity: 2 << 20 }));
        assert_eq!(memory("MemTotal: 1 kB\nMemAvailable: x"), None);
        assert_eq!(running("0.20 0.18 0.12 1/80 11206\n"), Some(80));
        assert_eq!(running("0.20"), None);
        assert!(pids().is_some_and(|(running, most)| running > 0 && running < most));
    }
}
