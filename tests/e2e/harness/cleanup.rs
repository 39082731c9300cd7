//! Takes away everything that a cluster of the tests left: processes, mounts, cgroups, the namespace, files.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Removes the clusters of test processes that are no more (killed by a time-out, say).
pub(crate) fn sweep() {
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("edge-e2e-") {
            continue;
        }
        let owner = fs::read_to_string(entry.path().join("owner")).ok().and_then(|s| s.parse::<i32>().ok());
        // a directory without an owner is being made at this moment by another test
        if owner.is_some_and(|pid| kill(Pid::from_raw(pid), None).is_err()) {
            remove(&name);
        }
    }
}

/// Removes all of one cluster.
pub(crate) fn remove(name: &str) {
    kill_processes(name);
    unmount_below(Path::new("/tmp").join(name).as_path());
    for dir in cgroup_dirs(name) {
        remove_cgroup(&dir);
    }
    let _ = fs::remove_dir_all(Path::new("/tmp").join(name));
    // the namespaces of agents are named after the cluster's
    let prefix = format!("{name}-");
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let namespace = entry.file_name().to_string_lossy().into_owned();
        if namespace.starts_with(&prefix) {
            let _ = Command::new("ip").args(["link", "del", &super::network::port(&namespace)]).output();
            let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
    }
    let _ = Command::new("ip").args(["link", "del", &super::network::port(name)]).output();
    let _ = Command::new("ip").args(["link", "del", &super::network::host_end(name)]).output();
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Takes away what a machine does not have any more after a power cut: the processes with `mark` in their environment and in the
/// cgroups of `name`, its mounts below `dir`, its links and rules.
pub(super) fn forget_machine(mark: &str, name: &str, dir: &Path) {
    kill_marked(mark, name);
    unmount_below(dir);
    for dir in cgroup_dirs(name) {
        remove_cgroup(&dir);
    }
    for link in ["edge0", "edge-dns", "edge-vxlan"] {
        let _ = Command::new("ip").args(["-n", name, "link", "del", link]).output();
    }
    for family in ["ip", "ip6"] {
        let _ = Command::new("ip").args(["netns", "exec", name, "nft", "delete", "table", family, "edge"]).output();
    }
}

/// The cgroups of a cluster and its agents, or of one agent.
pub(super) fn cgroup_dirs(name: &str) -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path()));
    let prefix = format!("{name}-");
    let below = roots.iter().flat_map(|r| fs::read_dir(r).into_iter().flatten().flatten().map(|e| e.path()));
    let ours = |p: &PathBuf| {
        let its = p.file_name().unwrap_or_default().to_string_lossy();
        p.is_dir() && (its == name || its.starts_with(&prefix))
    };
    below.filter(ours).collect()
}

fn kill_processes(name: &str) {
    // edge itself, its zygote and monitors carry the name in their environment; containers are in its cgroups
    kill_marked(&format!("EDGE_E2E={name}"), name);
}

/// Kills the processes that have `mark` in their environment, and those in the cgroups of `name`.
pub(super) fn kill_marked(mark: &str, name: &str) {
    for _ in 0..100 {
        let pids = marked(mark, name);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes that have `mark` in their environment, and those in the cgroups of `name`.
pub(super) fn marked(mark: &str, name: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = cgroup_dirs(name).iter().flat_map(|d| cgroup_pids(d)).collect();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse::<i32>().ok()) else { continue };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|b| *b == 0).any(|v| v == mark.as_bytes()) {
            pids.push(pid);
        }
    }
    pids
}

pub(super) fn cgroup_pids(dir: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.parse().ok())
        .collect();
    for child in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        pids.extend(cgroup_pids(&child.path()));
    }
    pids
}

pub(super) fn remove_cgroup(dir: &Path) {
    for child in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        remove_cgroup(&child.path());
    }
    let _ = fs::remove_dir(dir);
}

pub(super) fn unmount_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> =
        table.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).filter(|p| p.starts_with(dir)).collect();
    points.reverse();
    for point in points {
        let _ = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH);
    }
}
