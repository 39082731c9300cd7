//! How a freshly executed process becomes one that may nothing: without network, files, capabilities, and most system calls. What it
//! works with comes as descriptors.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use edge_sys::{process, signal, socket};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, pivot_root, setgroups, setresgid, setresuid, setsid,
};

use super::{HOST_ID, HOST_SOCKET, HostConfig};
use crate::cgroup::Cgroups;
use crate::error::Error;
use crate::monitor::guest::AUTHORITIES;
use crate::seccomp;
use crate::spec::Resources;

/// `oom_score_adj` of the host: before pods that have what they asked for, after those that asked for nothing.
const OOM_SCORE_ADJ: i32 = 500;
/// Descriptors that it may have open: each program has some, and each connection of a server one.
const DESCRIPTORS: u64 = 1 << 20;

const HARMLESS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

#[derive(Debug, thiserror::Error)]
pub(super) enum ConfineError {
    #[error("cannot {what}")]
    Step {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot load the system call filter")]
    Filter(#[from] libcontainer::seccomp::SeccompError),
    #[error(transparent)]
    Cgroup(#[from] Error),
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |err| ConfineError::Step { what, source: err.into() }
}

/// Takes everything from this process; gives the socket on which it listens.
pub(super) fn confine(config: &HostConfig) -> Result<OwnedFd, ConfineError> {
    detach()?;
    let cgroups = Cgroups::detect(&config.cgroup_root)?;
    cgroups.create(&config.cgroup, &Resources::default())?;
    cgroups.enter(&config.cgroup)?;
    chdir(&config.directory).map_err(step("enter its directory"))?;
    let listener = socket::listen_at(Path::new(HOST_SOCKET)).map_err(step("listen"))?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(step("create its namespaces"))?;
    change_root(&config.directory.join("root")).map_err(step("change its root directory"))?;
    drop_privileges().map_err(step("give up its privileges"))?;
    libcontainer::seccomp::initialize_seccomp(&seccomp::dense_profile())?;
    Ok(listener)
}

fn detach() -> Result<(), ConfineError> {
    setsid().map_err(step("start a session"))?;
    prctl::set_name(c"edge-dense").map_err(step("set the process name"))?;
    umask(Mode::from_bits_truncate(0o022));
    let null = File::options().read(true).write(true).open("/dev/null").map_err(step("open /dev/null"))?;
    // Stdin was the reply, which has been duplicated.
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .map_err(step("replace stdio"))?;
    signal::reset_to_defaults().and_then(|()| signal::ignore(Signal::SIGPIPE)).map_err(step("reset signals"))?;
    let ignored: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
    ignored.thread_block().map_err(step("block signals"))?;
    // Best effort, both: they take privileges that are missing inside some virtual machines and containers.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ.to_string());
    if setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    Ok(())
}

/// Leaves nothing of the machine's files but the certificates of the authorities that it trusts.
fn change_root(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), root, Some("tmpfs"), HARMLESS, Some("mode=755,size=1m"))?;
    let proc = root.join("proc");
    fs::create_dir(&proc)?;
    mount(Some("proc"), &proc, Some("proc"), HARMLESS, None::<&str>)?;
    if let Some(bundle) = AUTHORITIES.iter().map(PathBuf::from).find(|path| path.is_file()) {
        let place = root.join(AUTHORITIES[0].trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap_or(root))?;
        // A copy: the file itself would keep the file system in use that it is on.
        fs::copy(&bundle, &place)?;
    }
    mount(None::<&str>, root, None::<&str>, HARMLESS | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)?;
    chdir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}

fn drop_privileges() -> io::Result<()> {
    process::empty_bounding_set()?;
    let (uid, gid) = (Uid::from_raw(HOST_ID), Gid::from_raw(HOST_ID));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    // The capabilities go with the user.
    setresuid(uid, uid, uid)?;
    Ok(prctl::set_no_new_privs()?)
}
