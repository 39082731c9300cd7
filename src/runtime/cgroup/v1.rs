//! Cgroup version 1: the same path in the hierarchy of every controller.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{field, read_number, read_text, write_value};
use crate::error::{Error, Result};
use crate::spec::Resources;
use crate::status::Usage;

/// The controllers whose hierarchies containers are put into.
const CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "blkio",
    "freezer",
];

/// Mount points by controller; controllers mounted together have the same.
#[derive(Debug, Clone)]
pub(super) struct Mounts {
    by_controller: BTreeMap<&'static str, PathBuf>,
}

impl Mounts {
    /// Reads them from `/proc/self/mountinfo`.
    pub(super) fn find() -> Result<Self> {
        let file = Path::new("/proc/self/mountinfo");
        let by_controller = parse_mountinfo(&read_text(file)?);
        if by_controller.is_empty() {
            return Err(Error::InvalidSpec("no cgroup hierarchy is mounted".to_owned()));
        }
        Ok(Self { by_controller })
    }

    /// The directories of a cgroup, each once.
    pub(super) fn directories(&self, full: &str) -> Vec<PathBuf> {
        let mut directories: Vec<PathBuf> = self.by_controller.values().map(|mount| below(mount, full)).collect();
        directories.sort();
        directories.dedup();
        directories
    }

    /// The directory of a cgroup in the hierarchy of one controller.
    pub(super) fn directory(&self, controller: &str, full: &str) -> Option<PathBuf> {
        self.by_controller.get(controller).map(|mount| below(mount, full))
    }

    pub(super) fn create(&self, full: &str) -> Result<()> {
        for directory in self.directories(full) {
            fs::create_dir_all(&directory).map_err(Error::cgroup(&directory))?;
        }
        if let Some(mount) = self.by_controller.get("cpuset") {
            inherit_cpuset(mount, full)?;
        }
        Ok(())
    }

    pub(super) fn update(&self, full: &str, resources: &Resources) -> Result<()> {
        let set = |controller: &str, file: &str, value: &dyn ToString| -> Result<()> {
            match self.by_controller.get(controller) {
                Some(mount) => write_value(&below(mount, full).join(file), value.to_string()),
                None => Err(Error::InvalidSpec(format!("cgroup controller {controller} is not available"))),
            }
        };
        if let Some(shares) = resources.cpu_shares {
            set("cpu", "cpu.shares", &shares)?;
        }
        if let Some(period) = resources.cpu_period {
            set("cpu", "cpu.cfs_period_us", &period)?;
        }
        if let Some(quota) = resources.cpu_quota {
            set("cpu", "cpu.cfs_quota_us", &quota)?;
        }
        if let Some(cpus) = &resources.cpuset_cpus {
            set("cpuset", "cpuset.cpus", cpus)?;
        }
        if let Some(limit) = resources.memory_limit {
            set("memory", "memory.limit_in_bytes", &limit)?;
        }
        if let Some(limit) = resources.pids_limit {
            set("pids", "pids.max", &if limit < 0 { "max".to_owned() } else { limit.to_string() })?;
        }
        for (size, limit) in &resources.hugepages {
            set("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), limit)?;
        }
        Ok(())
    }

    pub(super) fn oom_kills(&self, full: &str) -> Result<u64> {
        let Some(mount) = self.by_controller.get("memory") else { return Ok(0) };
        let text = read_text(&below(mount, full).join("memory.oom_control"))?;
        Ok(field(&text, "oom_kill").unwrap_or(0))
    }

    pub(super) fn usage(&self, full: &str) -> Result<Usage> {
        let mut usage = Usage::default();
        if let Some(mount) = self.by_controller.get("cpuacct") {
            usage.cpu_nanos = read_number(&below(mount, full).join("cpuacct.usage"))?;
        }
        if let Some(mount) = self.by_controller.get("pids") {
            usage.pids = read_number(&below(mount, full).join("pids.current"))?;
        }
        if let Some(mount) = self.by_controller.get("memory") {
            let directory = below(mount, full);
            let text = read_text(&directory.join("memory.stat"))?;
            usage.memory_usage = read_number(&directory.join("memory.usage_in_bytes"))?;
            let inactive = field(&text, "total_inactive_file").unwrap_or(0);
            usage.memory_working_set = usage.memory_usage.saturating_sub(inactive);
            usage.memory_rss = field(&text, "total_rss").unwrap_or(0);
            usage.page_faults = field(&text, "total_pgfault").unwrap_or(0);
            usage.major_page_faults = field(&text, "total_pgmajfault").unwrap_or(0);
        }
        Ok(usage)
    }
}

/// A new cpuset has no CPUs and no memory nodes, and nothing can run in it before it has: take the parent's, from the top.
fn inherit_cpuset(mount: &Path, full: &str) -> Result<()> {
    let mut directory = mount.to_owned();
    for part in full.split('/').filter(|part| !part.is_empty()) {
        let parent = directory.clone();
        directory.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if read_text(&directory.join(file))?.trim().is_empty() {
                let inherited = read_text(&parent.join(file))?;
                write_value(&directory.join(file), inherited.trim())?;
            }
        }
    }
    Ok(())
}

fn below(mount: &Path, full: &str) -> PathBuf {
    mount.join(full.trim_start_matches('/'))
}

/// Lines look like `36 32 0:31 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory`.
fn parse_mountinfo(text: &str) -> BTreeMap<&'static str, PathBuf> {
    let mut mounts = BTreeMap::new();
    for line in text.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let mut file_system = file_system.split(' ');
        if file_system.next() != Some("cgroup") {
            continue;
        }
        let Some(mount_point) = mount.split(' ').nth(4) else { continue };
        let options = file_system.nth(1).unwrap_or_default();
        for controller in CONTROLLERS {
            if options.split(',').any(|option| option == controller) {
                mounts.entry(controller).or_insert_with(|| PathBuf::from(mount_point));
            }
        }
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_by_controller() {
        let text = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
                    36 32 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                    37 32 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                    38 32 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,memory\n\
                    garbage\n39 - cgroup\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts["cpu"], mounts["cpuacct"]);
        assert_eq!(below(&mounts["cpu"], "/kubepods/x"), Path::new("/sys/fs/cgroup/cpu,cpuacct/kubepods/x"));
    }
}
