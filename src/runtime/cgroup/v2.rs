//! Cgroup version 2: one hierarchy; controllers must be enabled from the top down.

use std::fs;
use std::path::{Path, PathBuf};

use super::{field, read_number, read_text, write_value};
use crate::error::{Error, Result};
use crate::spec::Resources;
use crate::status::Usage;

/// Period in microseconds that a CPU quota refers to unless another is given (the kernel's default).
const DEFAULT_PERIOD: u64 = 100_000;

/// The controllers we want enabled for our cgroups, as far as the kernel has them.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

pub(super) fn directory(mount: &Path, full: &str) -> PathBuf {
    mount.join(full.trim_start_matches('/'))
}

/// Creates the cgroup and enables the controllers in every ancestor, so that it has them itself. Not in the cgroup, because
/// one that hands controllers on to others cannot hold processes.
pub(super) fn create(mount: &Path, full: &str) -> Result<()> {
    let mut directory = mount.to_owned();
    for part in full.split('/').filter(|part| !part.is_empty()) {
        enable_controllers(&directory)?;
        directory.push(part);
        match fs::create_dir(&directory) {
            Err(err) if err.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::cgroup(&directory)(err)),
            _ => {}
        }
    }
    Ok(())
}

fn enable_controllers(directory: &Path) -> Result<()> {
    let available = read_text(&directory.join("cgroup.controllers"))?;
    let file = directory.join("cgroup.subtree_control");
    let enabled = read_text(&file)?;
    let has = |list: &str, controller: &str| list.split_whitespace().any(|name| name == controller);
    for controller in CONTROLLERS {
        if has(&available, controller) && !has(&enabled, controller) {
            write_value(&file, format!("+{controller}"))?;
        }
    }
    Ok(())
}

pub(super) fn update(mount: &Path, full: &str, resources: &Resources) -> Result<()> {
    let directory = directory(mount, full);
    let max = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if let Some(shares) = resources.cpu_shares {
        write_value(&directory.join("cpu.weight"), weight_of_shares(shares))?;
    }
    if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
        let period = resources.cpu_period.unwrap_or(DEFAULT_PERIOD);
        let quota = max(resources.cpu_quota.unwrap_or(-1));
        write_value(&directory.join("cpu.max"), format!("{quota} {period}"))?;
    }
    if let Some(cpus) = &resources.cpuset_cpus {
        write_value(&directory.join("cpuset.cpus"), cpus)?;
    }
    if let Some(limit) = resources.memory_limit {
        write_value(&directory.join("memory.max"), max(limit))?;
    }
    if let Some(limit) = resources.pids_limit {
        write_value(&directory.join("pids.max"), max(limit))?;
    }
    for (size, limit) in &resources.hugepages {
        write_value(&directory.join(format!("hugetlb.{size}.max")), limit)?;
    }
    Ok(())
}

/// Converts a version 1 weight (2 to 262144, default 1024) to a version 2 weight (1 to 10000, default 100).
///
/// The conversion of Kubernetes and its OCI runtimes: a quadratic in the logarithm that maps both ends and the default.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

pub(super) fn oom_kills(mount: &Path, full: &str) -> Result<u64> {
    let file = directory(mount, full).join("memory.events");
    if !file.exists() {
        // The memory controller is not enabled on this machine (many Raspberry Pi boot that way).
        return Ok(0);
    }
    Ok(field(&read_text(&file)?, "oom_kill").unwrap_or(0))
}

pub(super) fn usage(mount: &Path, full: &str) -> Result<Usage> {
    let directory = directory(mount, full);
    let cpu = read_text(&directory.join("cpu.stat"))?;
    let mut usage = Usage { cpu_nanos: field(&cpu, "usage_usec").unwrap_or(0) * 1000, ..Usage::default() };
    if directory.join("pids.current").exists() {
        usage.pids = read_number(&directory.join("pids.current"))?;
    }
    if directory.join("memory.current").exists() {
        let text = read_text(&directory.join("memory.stat"))?;
        usage.memory_usage = read_number(&directory.join("memory.current"))?;
        usage.memory_working_set = usage.memory_usage.saturating_sub(field(&text, "inactive_file").unwrap_or(0));
        usage.memory_rss = field(&text, "anon").unwrap_or(0);
        usage.page_faults = field(&text, "pgfault").unwrap_or(0);
        usage.major_page_faults = field(&text, "pgmajfault").unwrap_or(0);
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_map_both_ends_and_the_default() {
        assert_eq!(weight_of_shares(0), 1);
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(1024), 100);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert!((2..262_144_u64).step_by(97).all(|shares| (1..=10_000).contains(&weight_of_shares(shares))));
    }
}
