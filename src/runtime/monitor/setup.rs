//! How a freshly forked process becomes a monitor: detached from its parent, in the sandbox's namespaces, listening.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, setgroups, sethostname, setsid};

use edge_sys::signal::SignalQueue;
use edge_sys::{process, signal, socket};

use super::event_loop::Monitor;
use crate::cgroup::Cgroups;
use crate::error::Error;
use crate::paths::{SOCKET, SandboxPaths};
use crate::protocol::MonitorConfig;
use crate::spec::{Resources, SandboxSpec};

/// `oom_score_adj` of a monitor: the kernel should take any container first. Below what Kubernetes gives to pods (-997).
const OOM_SCORE_ADJ: i32 = -998;

/// Name of the cgroup of the pause process below the pod's.
const PAUSE_CGROUP: &str = "pause";

#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error("cannot {what}")]
    Step {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the description of the sandbox {path}")]
    Spec {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot set sysctl {name}")]
    Sysctl {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("sysctl {0} is not part of a namespace of the pod")]
    SysctlNotNamespaced(String),
    #[error(transparent)]
    Cgroup(#[from] Error),
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> SetupError {
    move |err| SetupError::Step { what, source: err.into() }
}

/// Makes this process a monitor that listens but does not serve yet.
pub(super) fn prepare(config: &MonitorConfig, reply: &OwnedFd) -> Result<Monitor, SetupError> {
    detach(config, reply)?;
    let paths = SandboxPaths::new(config.directory.clone());
    let spec = read_spec(&paths.spec())?;
    let cgroups = Cgroups::detect(&config.cgroup_root)?;
    // Everything else stays blocked for ever: nothing but SIGKILL ends a monitor from outside.
    let signals = SignalQueue::new(&[Signal::SIGCHLD]).map_err(step("open the signal queue"))?;
    enter_namespaces(&spec)?;
    set_sysctls(&spec)?;
    let pause_pid = match spec.share_process_namespace && !spec.host_pid {
        true => Some(start_pause(&spec, &cgroups)?),
        false => None,
    };
    // The working directory is the sandbox's, so the short name always fits into a socket address.
    let listener = socket::listen_at(Path::new(SOCKET)).map_err(step("listen"))?;
    Ok(Monitor::new(paths, cgroups, signals, listener, pause_pid))
}

fn detach(config: &MonitorConfig, reply: &OwnedFd) -> Result<(), SetupError> {
    setsid().map_err(step("start a session"))?;
    prctl::set_child_subreaper(true).map_err(step("become a subreaper"))?;
    prctl::set_name(c"edge-monitor").map_err(step("set the process name"))?;
    umask(Mode::from_bits_truncate(0o022));
    // A container without supplementary groups would inherit those of whoever started edge.
    setgroups(&[]).map_err(step("drop supplementary groups"))?;
    chdir(&config.directory).map_err(step("enter the directory of the sandbox"))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(step("open /dev/null"))?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .map_err(step("replace stdio"))?;
    drop(null);
    process::close_fds_except(&[reply.as_raw_fd()]).map_err(step("close inherited descriptors"))?;
    signal::reset_to_defaults().map_err(step("reset signals"))?;
    let ignored = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE];
    let blocked: nix::sys::signal::SigSet = ignored.into_iter().collect();
    blocked.thread_block().map_err(step("block signals"))?;
    // Best effort: it takes a privilege that is missing inside some virtual machines and containers.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ.to_string());
    Ok(())
}

fn read_spec(path: &Path) -> Result<SandboxSpec, SetupError> {
    fs::read(path)
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .map_err(|source| SetupError::Spec { path: path.to_owned(), source })
}

/// The monitor itself lives in the IPC and UTS namespaces of the sandbox, which keeps them alive without a pause process.
fn enter_namespaces(spec: &SandboxSpec) -> Result<(), SetupError> {
    if !spec.host_ipc {
        unshare(CloneFlags::CLONE_NEWIPC).map_err(step("create the IPC namespace"))?;
    }
    if let Some(hostname) = &spec.hostname {
        unshare(CloneFlags::CLONE_NEWUTS).map_err(step("create the UTS namespace"))?;
        sethostname(hostname).map_err(step("set the host name"))?;
    }
    Ok(())
}

fn set_sysctls(spec: &SandboxSpec) -> Result<(), SetupError> {
    if spec.sysctls.is_empty() {
        return Ok(());
    }
    // The kernel shows a process the parameters of the network namespace it is in at that moment.
    let own = File::open("/proc/self/ns/net").map_err(step("open the network namespace"))?;
    if let Some(netns) = &spec.netns {
        let pod = File::open(netns).map_err(step("open the pod's network namespace"))?;
        setns(&pod, CloneFlags::CLONE_NEWNET).map_err(step("enter the pod's network namespace"))?;
    }
    let result = spec.sysctls.iter().try_for_each(|(name, value)| set_sysctl(spec, name, value));
    setns(&own, CloneFlags::CLONE_NEWNET).map_err(step("leave the pod's network namespace"))?;
    result
}

fn set_sysctl(spec: &SandboxSpec, name: &str, value: &str) -> Result<(), SetupError> {
    let path = sysctl_path(spec, name).ok_or_else(|| SetupError::SysctlNotNamespaced(name.to_owned()))?;
    // No O_CREAT: an unknown name must give "not found".
    File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| SetupError::Sysctl { name: name.to_owned(), source })
}

/// The file of a parameter that belongs to one of the sandbox's own namespaces; `None` for anything that would change the host.
/// A name written with slashes may have dots inside its parts, as in `net/ipv4/conf/eth0.100/forwarding`.
fn sysctl_path(spec: &SandboxSpec, name: &str) -> Option<PathBuf> {
    const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let parts: Vec<&str> = relative.split('/').collect();
    if parts.len() < 2 || parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return None;
    }
    let own = match (parts[0], parts[1]) {
        ("net", _) => spec.netns.is_some(),
        ("kernel", parameter) if parts.len() == 2 => !spec.host_ipc && IPC.contains(&parameter),
        ("fs", "mqueue") => !spec.host_ipc,
        _ => false,
    };
    own.then(|| Path::new("/proc/sys").join(relative))
}

/// Starts the first process of the PID namespace the containers share, in a cgroup of its own below the pod's, so that it
/// ends with the pod whatever happens to this monitor. Returns its pid on the host.
fn start_pause(spec: &SandboxSpec, cgroups: &Cgroups) -> Result<i32, SetupError> {
    let pid = fork_pause().map_err(step("start the pause process"))?;
    let cgroup = format!("{}/{PAUSE_CGROUP}", spec.cgroup);
    cgroups.create(&cgroup, &Resources::default())?;
    cgroups.add_process(&cgroup, pid)?;
    Ok(pid)
}

fn fork_pause() -> io::Result<i32> {
    let (ours, theirs) = socket::pair()?;
    // In a process of its own, because after this unshare all further children would be in the new namespace.
    let intermediate = process::fork_child(|| {
        let pause =
            unshare(CloneFlags::CLONE_NEWPID).map_err(io::Error::from).and_then(|()| process::fork_child(pause));
        let report = pause.map_or_else(|err| format!("!{err}"), |pid| pid.to_string());
        i32::from(socket::send(theirs.as_fd(), report.as_bytes(), &[]).is_err())
    })?;
    drop(theirs);
    let report = socket::receive(ours.as_fd(), 1024)?;
    nix::sys::wait::waitpid(intermediate, None)?;
    let text = String::from_utf8_lossy(&report.bytes).into_owned();
    text.parse().map_err(|_| io::Error::other(text.trim_start_matches('!').to_owned()))
}

/// Life of the pause process: it reaps, and ends only by SIGKILL.
fn pause() -> i32 {
    let prepared =
        prctl::set_name(c"edge-pause").and_then(|()| process::close_fds_except(&[]).map_err(|_| nix::Error::EIO));
    // As the first process of its namespace it gets only signals it has a handler for: it needs not block anything, and
    // ignoring SIGCHLD makes the kernel reap its children by itself.
    if prepared.is_err() || signal::ignore(Signal::SIGCHLD).is_err() {
        return 1;
    }
    loop {
        nix::unistd::pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_own_namespaces() {
        let mut spec = SandboxSpec {
            id: "x".to_owned(),
            hostname: None,
            netns: Some(PathBuf::from("/ns")),
            host_ipc: false,
            host_pid: false,
            share_process_namespace: false,
            sysctls: std::collections::BTreeMap::new(),
            cgroup: String::new(),
            resources: Resources::default(),
            labels: serde_json::Value::Null,
        };
        let path = |spec: &SandboxSpec, name| sysctl_path(spec, name).map(|path| path.display().to_string());
        assert_eq!(path(&spec, "net.core.somaxconn").as_deref(), Some("/proc/sys/net/core/somaxconn"));
        assert_eq!(
            path(&spec, "net/ipv4/conf/eth0.100/forwarding").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.100/forwarding")
        );
        assert!(path(&spec, "kernel.shmmax").is_some() && path(&spec, "fs.mqueue.msg_max").is_some());
        for bad in
            ["kernel.core_pattern", "vm.swappiness", "net", "net/../kernel/core_pattern", "net..x", "", "kernel.sem.x"]
        {
            assert_eq!(path(&spec, bad), None, "{bad}");
        }
        spec.netns = None;
        spec.host_ipc = true;
        assert!(path(&spec, "net.core.somaxconn").is_none() && path(&spec, "kernel.shmmax").is_none());
    }
}
