//! Executing a command in a running container: a short-lived child of the monitor joins the container's cgroup and
//! namespaces, and its child, inside the PID namespace by then, becomes the command. When the first one ends, the command
//! is the monitor's child (the monitor is a subreaper).
//!
//! Not through libcontainer: its exec refuses containers with a seccomp profile, leaves sockets and zombies behind, and
//! flattens its errors.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libcontainer::capabilities;
use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setgroups, setresgid, setresuid, setsid,
};

use edge_sys::pidfd::PidFd;
use edge_sys::{process, socket, tty};

use super::helper::{Reporter, execute, set_oom_score_adj, set_rlimits};
use crate::cgroup::Cgroups;
use crate::error::{Error, chain};
use crate::paths::ContainerPaths;
use crate::spec::{ContainerSpec, WindowSize};

/// The namespaces of a container, the mount namespace last: after it `/proc` is another one.
const NAMESPACES: [(&str, CloneFlags); 6] = [
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("cannot {what}")]
    Step {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the container's specification")]
    Spec(#[source] Box<dyn std::error::Error>),
    #[error("cannot set the command's identity")]
    Identity(#[source] Box<dyn std::error::Error>),
    #[error("cannot load the seccomp profile")]
    Seccomp(#[source] Box<dyn std::error::Error>),
    #[error(transparent)]
    Cgroup(#[from] Error),
    #[error("{0}")]
    Command(String),
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ExecError {
    move |err| ExecError::Step { what, source: err.into() }
}

/// What to execute, and where.
pub(super) struct Plan<'a> {
    pub(super) paths: &'a ContainerPaths,
    pub(super) spec: &'a ContainerSpec,
    pub(super) cgroups: &'a Cgroups,
    pub(super) cgroup: &'a str,
    /// Pid of the container's first process.
    pub(super) pid: i32,
    pub(super) args: Vec<String>,
    pub(super) terminal: Option<WindowSize>,
    /// stdin, stdout and stderr of the command; empty with a terminal.
    pub(super) stdio: Vec<OwnedFd>,
}

/// Begins to execute a command. Returns the connection over which its pid, its terminal and errors are reported, and which
/// ends when it runs.
pub(super) fn begin(plan: &Plan<'_>) -> io::Result<OwnedFd> {
    let (ours, theirs) = socket::pair()?;
    let reporter = Reporter::new(theirs);
    process::fork_child(|| {
        let mut keep: Vec<i32> = plan.stdio.iter().map(AsRawFd::as_raw_fd).collect();
        keep.push(reporter.raw_fd());
        let result = process::close_fds_except(&keep)
            .map_err(step("close inherited descriptors"))
            .and_then(|()| join(plan, &reporter));
        report(&reporter, result)
    })?;
    Ok(ours)
}

fn report(reporter: &Reporter, result: Result<(), ExecError>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(err) => {
            reporter.error(chain(&err));
            1
        }
    }
}

/// In the first process: joins the cgroup and the PID namespace, and forks the second.
fn join(plan: &Plan<'_>, reporter: &Reporter) -> Result<(), ExecError> {
    let mut spec = Spec::load(plan.paths.config()).map_err(|err| ExecError::Spec(err.into()))?;
    let process = spec.process_mut().as_mut().ok_or_else(|| ExecError::Spec("it has no process".into()))?;
    process.set_args(Some(plan.args.clone()));
    process.set_terminal(Some(plan.terminal.is_some()));
    set_oom_score_adj(plan.spec.oom_score_adj);
    set_rlimits(&plan.spec.rlimits).map_err(step("set resource limits"))?;

    // All of them are opened before the first is entered. The container's first process cannot be reaped meanwhile, since
    // only our parent could, who knew it to be alive when it forked us: the pid is its own.
    let mut namespaces = Vec::new();
    for (name, kind) in NAMESPACES {
        let file =
            File::open(format!("/proc/{}/ns/{name}", plan.pid)).map_err(step("open the container's namespaces"))?;
        namespaces.push((kind, file));
    }
    plan.cgroups.enter(plan.cgroup)?;
    let (now, later): (Vec<_>, Vec<_>) =
        namespaces.into_iter().partition(|(kind, _)| *kind == CloneFlags::CLONE_NEWPID);
    for (kind, file) in now {
        setns(&file, kind).map_err(step("join the container's PID namespace"))?;
    }
    let child = process::fork_child(|| {
        let result = become_command(plan, &spec, &later, reporter);
        report(reporter, result)
    });
    let pid = child.map_err(step("fork"))?.as_raw();
    // It is our child until we end, so even if it has ended already the pid is its own.
    let process = PidFd::open(pid).map_err(step("open a handle to the command"))?;
    reporter.pid(pid, Some(&process));
    Ok(())
}

/// In the second process: joins the rest and turns into the command. Returns only on failure.
fn become_command(
    plan: &Plan<'_>,
    spec: &Spec,
    namespaces: &[(CloneFlags, File)],
    reporter: &Reporter,
) -> Result<(), ExecError> {
    setsid().map_err(step("start a session"))?;
    for (kind, file) in namespaces {
        setns(file, *kind).map_err(step("join the container's namespaces"))?;
    }
    let process = spec.process().as_ref().ok_or_else(|| ExecError::Spec("it has no process".into()))?;
    match plan.terminal {
        Some(size) => open_terminal(process, size, reporter).map_err(step("open a terminal"))?,
        None => use_pipes(process, &plan.stdio).map_err(step("set up stdio"))?,
    }
    // As root first: the directory may be closed to the user, who nevertheless was told to work there.
    chdir(process.cwd().as_path()).map_err(step("enter the working directory"))?;
    set_identity(spec, process)?;
    Err(ExecError::Command(execute(spec)))
}

fn use_pipes(process: &Process, stdio: &[OwnedFd]) -> io::Result<()> {
    let [stdin, stdout, stderr] = stdio else { return Err(io::Error::other("three descriptors are needed")) };
    for fd in [stdin, stdout, stderr] {
        own(fd, process)?;
    }
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)?;
    Ok(())
}

fn open_terminal(process: &Process, size: WindowSize, reporter: &Reporter) -> io::Result<()> {
    let (master, slave) = tty::open_pair_in_devpts()?;
    own(&slave, process)?;
    tty::set_window_size(master.as_fd(), size.columns, size.rows)?;
    tty::set_controlling(slave.as_fd())?;
    reporter.terminal(master.as_fd());
    dup2_stdin(&slave)?;
    dup2_stdout(&slave)?;
    dup2_stderr(&slave)?;
    Ok(())
}

/// Gives a pipe or terminal to the command's user, who may open `/dev/stdout` again. Devices such as `/dev/null` stay as they are.
fn own(fd: &OwnedFd, process: &Process) -> io::Result<()> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let metadata = File::from(fd.try_clone()?).metadata()?;
    let terminal = nix::unistd::isatty(fd).unwrap_or(false);
    if terminal || metadata.file_type().is_fifo() {
        let (uid, gid) = (process.user().uid(), process.user().gid());
        if metadata.uid() != uid || metadata.gid() != gid {
            fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
    }
    Ok(())
}

/// Takes on the container's user, capabilities and system call filter, in the order of libcontainer's own init.
fn set_identity(spec: &Spec, process: &Process) -> Result<(), ExecError> {
    let identity = |err: Box<dyn std::error::Error>| ExecError::Identity(err);
    let user = process.user();
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        prctl::set_no_new_privs().map_err(|err| identity(err.into()))?;
    }
    setgroups(&groups).map_err(|err| identity(err.into()))?;
    let syscall = create_syscall();
    // Capabilities survive the change of user only this way; the flag is cleared by execve(2).
    prctl::set_keepcaps(true).map_err(|err| identity(err.into()))?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    setresgid(gid, gid, gid).map_err(|err| identity(err.into()))?;
    setresuid(uid, uid, uid).map_err(|err| identity(err.into()))?;
    if !uid.is_root() {
        capabilities::reset_effective(syscall.as_ref()).map_err(|err| identity(err.into()))?;
    }
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let load = || match seccomp {
        Some(profile) => initialize_seccomp(profile).map(drop).map_err(|err| ExecError::Seccomp(err.into())),
        None => Ok(()),
    };
    // Without no_new_privs loading a filter is a privilege; with it, it comes last so that it need not allow what follows.
    if !no_new_privileges {
        load()?;
    }
    capabilities::reset_effective(syscall.as_ref()).map_err(|err| identity(err.into()))?;
    if let Some(sets) = process.capabilities() {
        capabilities::drop_privileges(sets, syscall.as_ref()).map_err(|err| identity(err.into()))?;
    }
    if no_new_privileges { load() } else { Ok(()) }
}
