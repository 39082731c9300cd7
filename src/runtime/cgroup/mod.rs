//! Control groups, version 1 (one hierarchy per controller, also "hybrid") and version 2 (unified).
//!
//! Comes in: paths below the cgroup root (`kubepods/burstable/pod…`), limits. Goes out: directories and files in
//! `/sys/fs/cgroup`, usage, the processes inside. Everything here blocks: call it from blocking threads or from a monitor.

mod devices;
mod v1;
mod v2;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edge_sys::pidfd::PidFd;
use libcontainer::oci_spec::runtime::LinuxDeviceCgroup;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::error::{Error, Result};
use crate::spec::Resources;
use crate::status::Usage;

/// Where the kernel's cgroup hierarchies are mounted.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// How long a killed process may take to end before removing its cgroup is given up. Only a process stuck in the kernel takes long.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The cgroup hierarchies of this machine and the place in them that belongs to us.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchy: Hierarchy,
    /// Path below the mount point(s), without slashes at its ends; empty for the very root.
    root: String,
}

#[derive(Debug, Clone)]
enum Hierarchy {
    /// Mount points by controller.
    V1(v1::Mounts),
    /// One mount point.
    V2(PathBuf),
}

impl Cgroups {
    /// Finds out which version this machine uses. `root` is the cgroup below which all paths are, such as `/` or `/node1`.
    ///
    /// # Errors
    /// When no cgroup file system is mounted, or `root` is not a plain path.
    pub fn detect(root: &str) -> Result<Self> {
        let root = normalize(root)?;
        let mount_point = Path::new(MOUNT_POINT);
        let statistics = statfs(mount_point).map_err(|err| Error::cgroup(mount_point)(err.into()))?;
        let hierarchy = if statistics.filesystem_type() == CGROUP2_SUPER_MAGIC {
            Hierarchy::V2(mount_point.to_owned())
        } else {
            Hierarchy::V1(v1::Mounts::find()?)
        };
        Ok(Self { hierarchy, root })
    }

    /// Whether this machine uses the unified hierarchy.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        matches!(self.hierarchy, Hierarchy::V2(_))
    }

    /// The full path of a cgroup inside its hierarchy, beginning with a slash: what a container's OCI specification calls
    /// `cgroupsPath`.
    ///
    /// # Errors
    /// When `path` is not a plain path.
    pub fn full_path(&self, path: &str) -> Result<String> {
        let path = normalize(path)?;
        Ok(if self.root.is_empty() { format!("/{path}") } else { format!("/{}/{path}", self.root) })
    }

    /// Creates a cgroup with its parents (one that exists is fine) and sets its limits.
    ///
    /// # Errors
    /// [`Error::Cgroup`] with the file that could not be written.
    pub fn create(&self, path: &str, resources: &Resources) -> Result<()> {
        let full = self.full_path(path)?;
        match &self.hierarchy {
            Hierarchy::V1(mounts) => mounts.create(&full)?,
            Hierarchy::V2(mount) => v2::create(mount, &full)?,
        }
        self.update(path, resources)
    }

    /// Sets the limits of a cgroup; what is `None` stays as it is.
    ///
    /// # Errors
    /// [`Error::Cgroup`] with the file that could not be written.
    pub fn update(&self, path: &str, resources: &Resources) -> Result<()> {
        let full = self.full_path(path)?;
        match &self.hierarchy {
            Hierarchy::V1(mounts) => mounts.update(&full, resources),
            Hierarchy::V2(mount) => v2::update(mount, &full, resources),
        }
    }

    /// Makes the kernel kill all processes of a cgroup when it kills one for want of memory, as far as it can (version 2): a
    /// container that lost some of its processes is in a state nobody has tested.
    ///
    /// # Errors
    /// [`Error::Cgroup`] with the file that could not be written.
    pub fn kill_together_when_out_of_memory(&self, path: &str) -> Result<()> {
        let Hierarchy::V2(mount) = &self.hierarchy else { return Ok(()) };
        let file = v2::directory(mount, &self.full_path(path)?).join("memory.oom.group");
        if file.exists() { write_value(&file, 1) } else { Ok(()) }
    }

    /// Puts the device rules of a container's OCI specification in force, the last one that matches deciding. With version 1
    /// libcontainer does it.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a rule that makes no sense, [`Error::Cgroup`] when the kernel cannot do it.
    pub(crate) fn restrict_devices(&self, path: &str, rules: &[LinuxDeviceCgroup]) -> Result<()> {
        match &self.hierarchy {
            Hierarchy::V2(mount) if !devices::allow_all(rules) => {
                devices::restrict(&v2::directory(mount, &self.full_path(path)?), rules)
            }
            _ => Ok(()),
        }
    }

    /// Moves the process `pid` into a cgroup.
    ///
    /// # Errors
    /// [`Error::Cgroup`] with the file that could not be written.
    pub fn add_process(&self, path: &str, pid: i32) -> Result<()> {
        for directory in self.directories(path)? {
            write_value(&directory.join("cgroup.procs"), pid)?;
        }
        Ok(())
    }

    /// Moves the calling process, which must have one thread only, into a cgroup. With version 1 this costs next to nothing, while
    /// [`Cgroups::add_process`] may wait for all processors (`daemon::moves`).
    ///
    /// # Errors
    /// [`Error::Cgroup`] with the file that could not be written.
    pub fn enter(&self, path: &str) -> Result<()> {
        // a thread that moves itself needs no lock, but version 2 moves no threads from one domain to another
        let file = if self.is_v2() { "cgroup.procs" } else { "tasks" };
        for directory in self.directories(path)? {
            write_value(&directory.join(file), 0)?;
        }
        Ok(())
    }

    /// The list of processes of the cgroup in which this process is: writing 0 to it moves nothing. None where that cannot be said for sure.
    pub(crate) fn own_processes(&self) -> Option<File> {
        let text = fs::read_to_string("/proc/self/cgroup").ok()?;
        let file = text.lines().find_map(|line| self.directory_of(line))?.join("cgroup.procs");
        // one of the same name elsewhere, where a part of the hierarchy is mounted, is another
        let own = std::process::id().to_string();
        let is_own = fs::read_to_string(&file).ok()?.lines().any(|line| line == own);
        is_own.then(|| File::options().write(true).open(&file).ok()).flatten()
    }

    /// The directory that a line of `/proc/self/cgroup` is about, if it is of this hierarchy.
    fn directory_of(&self, line: &str) -> Option<PathBuf> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, normalize(fields.next()?).ok()?);
        match &self.hierarchy {
            Hierarchy::V1(mounts) => controllers.split(',').find_map(|controller| mounts.directory(controller, &path)),
            Hierarchy::V2(mount) => controllers.is_empty().then(|| v2::directory(mount, &path)),
        }
    }

    /// The pids of all processes in a cgroup and the cgroups below it. None when it does not exist.
    ///
    /// # Errors
    /// [`Error::Cgroup`] with the file that could not be read.
    pub fn processes(&self, path: &str) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for directory in self.directories(path)? {
            collect_processes(&directory, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Sends SIGKILL to everything in a cgroup and returns at once.
    ///
    /// # Errors
    /// [`Error::Cgroup`] with the file that could not be read.
    pub fn kill(&self, path: &str) -> Result<()> {
        if let Hierarchy::V2(mount) = &self.hierarchy {
            let file = v2::directory(mount, &self.full_path(path)?).join("cgroup.kill");
            // Linux 5.14; before that the pids are killed one by one.
            if fs::write(&file, "1").is_ok() {
                return Ok(());
            }
        }
        self.kill_each(path).map(drop)
    }

    /// Kills everything in a cgroup, waits until it has ended, and removes the cgroup with those below it. One that does
    /// not exist is fine.
    ///
    /// # Errors
    /// [`Error::Cgroup`], with "timed out" when a process is stuck in the kernel.
    pub fn remove(&self, path: &str) -> Result<()> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            // All handles first: a dying process leaves the list of its cgroup before it has really ended.
            let processes = self.kill_each(path)?;
            self.kill(path)?;
            for process in processes {
                wait_for_end(path, &process, deadline)?;
            }
            match self.remove_directories(path) {
                // Something forked between the two steps: kill again.
                Err(Error::Cgroup { source, .. })
                    if source.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < deadline => {}
                result => return result,
            }
        }
    }

    /// Number of processes of a cgroup (and those below it) the kernel has killed for want of memory.
    ///
    /// # Errors
    /// [`Error::Cgroup`] with the file that could not be read.
    pub fn oom_kills(&self, path: &str) -> Result<u64> {
        let full = self.full_path(path)?;
        match &self.hierarchy {
            Hierarchy::V1(mounts) => mounts.oom_kills(&full),
            Hierarchy::V2(mount) => v2::oom_kills(mount, &full),
        }
    }

    /// Resource usage of a cgroup, those below it included.
    ///
    /// # Errors
    /// [`Error::Cgroup`] with the file that could not be read, so also when the cgroup does not exist.
    pub fn usage(&self, path: &str) -> Result<Usage> {
        let full = self.full_path(path)?;
        match &self.hierarchy {
            Hierarchy::V1(mounts) => mounts.usage(&full),
            Hierarchy::V2(mount) => v2::usage(mount, &full),
        }
    }

    /// The directories of a cgroup, one per hierarchy.
    fn directories(&self, path: &str) -> Result<Vec<PathBuf>> {
        let full = self.full_path(path)?;
        Ok(match &self.hierarchy {
            Hierarchy::V1(mounts) => mounts.directories(&full),
            Hierarchy::V2(mount) => vec![v2::directory(mount, &full)],
        })
    }

    fn kill_each(&self, path: &str) -> Result<Vec<PidFd>> {
        let mut killed = Vec::new();
        for pid in self.processes(path)? {
            // Opened first, signalled through the handle: the pid cannot have become another process in between.
            let Ok(process) = PidFd::open(pid) else { continue };
            process.send_signal(nix::libc::SIGKILL).map_err(Error::cgroup(path))?;
            killed.push(process);
        }
        Ok(killed)
    }

    fn remove_directories(&self, path: &str) -> Result<()> {
        for directory in self.directories(path)? {
            remove_tree(&directory)?;
        }
        Ok(())
    }
}

fn wait_for_end(path: &str, process: &PidFd, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    let left = u16::try_from(left).unwrap_or(u16::MAX);
    if process.wait(left).map_err(Error::cgroup(path))? {
        return Ok(());
    }
    Err(Error::cgroup(path)(io::Error::new(io::ErrorKind::TimedOut, "a killed process did not end")))
}

/// Removes the directory of a cgroup and those below it. Their files cannot be removed and need not be.
fn remove_tree(directory: &Path) -> Result<()> {
    for child in subdirectories(directory)? {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(Error::cgroup(directory)(err)),
        _ => Ok(()),
    }
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let file = directory.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(err) if is_gone(&err) => return Ok(()),
        Err(err) => return Err(Error::cgroup(file)(err)),
    }
    for child in subdirectories(directory)? {
        collect_processes(&child, pids)?;
    }
    Ok(())
}

fn subdirectories(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if is_gone(&err) => return Ok(Vec::new()),
        Err(err) => return Err(Error::cgroup(directory)(err)),
    };
    Ok(entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

/// A cgroup that disappears while it is read gives "no such device" instead of "not found".
fn is_gone(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(nix::libc::ENODEV)
}

/// Only plain components, so that no path can leave the root.
fn normalize(path: &str) -> Result<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.iter().any(|part| matches!(*part, "." | "..") || part.contains('\0')) {
        return Err(Error::InvalidSpec(format!("cgroup path {path:?} is not a plain path")));
    }
    Ok(parts.join("/"))
}

fn write_value(file: &Path, value: impl ToString) -> Result<()> {
    // Opened without O_CREAT: a file the kernel does not offer must not look like a permission problem.
    let result = fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut opened| io::Write::write_all(&mut opened, value.to_string().as_bytes()));
    result.map_err(Error::cgroup(file))
}

fn read_text(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(Error::cgroup(file))
}

fn read_number(file: &Path) -> Result<u64> {
    let text = read_text(file)?;
    text.trim().parse().map_err(|_| Error::cgroup(file)(io::Error::new(io::ErrorKind::InvalidData, "not a number")))
}

/// The value of `key` in a file of "key value" lines.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key { value.trim().parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn paths_cannot_leave_the_root() {
        assert_eq!(normalize("/kubepods//pod1/").unwrap(), "kubepods/pod1");
        assert_eq!(normalize("/").unwrap(), "");
        for bad in ["../x", "a/../../b", "a/./b", "a/\0"] {
            assert!(normalize(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "oom"), None);
        assert_eq!(field("oom_kill x", "oom_kill"), None);
    }

    #[test]
    fn created_limited_killed_and_removed() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let cgroups = Cgroups::detect(&format!("/edge-cgroup-test-{}", std::process::id())).unwrap();
        let resources = Resources {
            cpu_shares: Some(512),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_limit: Some(64 << 20),
            pids_limit: Some(100),
            ..Resources::default()
        };
        cgroups.create("pods/one", &resources).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        cgroups.add_process("pods/one", child.id() as i32).unwrap();
        assert_eq!(cgroups.processes("pods").unwrap(), [child.id() as i32]);
        let usage = cgroups.usage("pods/one").unwrap();
        assert_eq!(usage.pids, 1);
        assert_eq!(cgroups.oom_kills("pods/one").unwrap(), 0);
        // The child is ours to reap, so the cgroup must be removable while it is a zombie.
        cgroups.remove("pods").unwrap();
        assert!(cgroups.directories("pods").unwrap().iter().all(|directory| !directory.exists()));
        child.wait().unwrap();
        cgroups.remove("").unwrap();
        cgroups.remove("pods").unwrap();
        assert!(cgroups.usage("pods").is_err());
    }
}
