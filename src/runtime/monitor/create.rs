//! Creating a container: a short-lived child of the monitor prepares the file system in a mount namespace of its own and
//! lets libcontainer do the rest. With `as_sibling` the container's first process becomes a child of the monitor.
//!
//! The overlay mount exists only in that mount namespace and the container's, so it goes away with the container, whatever
//! crashes.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, chdir, fchown};

use edge_sys::{process, socket, tty};

use super::helper::{DetailSubscriber, PayloadExecutor, Reporter, set_oom_score_adj, set_rlimits};
use super::program::WasmExecutor;
use super::stdio::{ContainerEnds, Stdio};
use super::{guest, inside};
use crate::error::chain;
use crate::paths::{ContainerPaths, OCI_ID};
use crate::skeleton;
use crate::spec::{ContainerSpec, MountSource, Propagation};

/// Name of the socket in the container's directory over which libcontainer hands out the terminal.
const CONSOLE_SOCKET: &str = "console.sock";

/// Why a container cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    #[error("cannot {what}")]
    Step {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot open image layer {path}")]
    Layer {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot mount {path}")]
    Mount {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot create working directory {path}")]
    WorkingDirectory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the image holds a FIFO ({path}), at which a dense WebAssembly program could wait for ever")]
    Fifo { path: PathBuf },
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Oci(#[from] LibcontainerError),
}

pub(super) fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> CreateError {
    move |err| CreateError::Step { what, source: err.into() }
}

/// Begins to create a container. Returns our ends of its stdio, the connection over which the helper and then the container's
/// first process report, and the helper's pid.
pub(super) fn begin(paths: &ContainerPaths, spec: &ContainerSpec) -> io::Result<(Stdio, OwnedFd, i32)> {
    let (stdio, ends) = if spec.tty {
        (Stdio::without_terminal_yet(spec), None)
    } else {
        let (stdio, ends) = Stdio::pipes(spec)?;
        (stdio, Some(ends))
    };
    let (ours, theirs) = socket::pair()?;
    let reporter = Reporter::new(theirs);
    let pid = process::fork_child(|| helper(paths, spec, reporter, ends))?;
    Ok((stdio, ours, pid.as_raw()))
}

fn helper(paths: &ContainerPaths, spec: &ContainerSpec, reporter: Reporter, ends: Option<ContainerEnds>) -> i32 {
    let mut keep = vec![reporter.raw_fd()];
    if let Some(ends) = &ends {
        keep.extend([ends.stdin.as_raw_fd(), ends.stdout.as_raw_fd(), ends.stderr.as_raw_fd()]);
    }
    let reporter = Arc::new(reporter);
    // The monitor's sockets and the other containers' pipes must not stay open in this container.
    let result = process::close_fds_except(&keep)
        .map_err(step("close inherited descriptors"))
        .and_then(|()| create(paths, spec, &reporter, ends));
    match result {
        Ok(pid) => {
            reporter.pid(pid, None);
            0
        }
        Err(err) => {
            reporter.error(chain(&err));
            1
        }
    }
}

fn create(
    paths: &ContainerPaths,
    spec: &ContainerSpec,
    reporter: &Arc<Reporter>,
    ends: Option<ContainerEnds>,
) -> Result<i32, CreateError> {
    DetailSubscriber::install(Arc::clone(reporter));
    set_oom_score_adj(spec.oom_score_adj);
    set_rlimits(&spec.rlimits).map_err(step("set resource limits"))?;
    prepare_mounts(paths, spec)?;
    let executor = match &spec.wasm {
        Some(wasm) => {
            // Opened while the host's files can be seen.
            let code = File::open(&wasm.code).map_err(step("open the program's machine code"))?;
            guest::mount_all(paths, spec)?;
            Payload::Wasm(WasmExecutor::new(Arc::clone(reporter), spec, wasm, code))
        }
        None => {
            mount_rootfs(paths, spec)?;
            create_working_directory(&paths.rootfs(), &spec.cwd)?;
            Payload::Command(PayloadExecutor { reporter: Arc::clone(reporter) })
        }
    };
    chdir(paths.directory()).map_err(step("enter the container's directory"))?;
    let console = if spec.tty {
        Some(UnixListener::bind(CONSOLE_SOCKET).map_err(step("bind the console socket"))?)
    } else {
        None
    };
    let pid = build(paths, executor, ends)?;
    if let Some(console) = console {
        let master = receive_terminal(&console, spec).map_err(step("receive the terminal"))?;
        reporter.terminal(master.as_fd());
    }
    Ok(pid)
}

/// What becomes of the container's first process.
enum Payload {
    Command(PayloadExecutor),
    Wasm(WasmExecutor),
}

fn build(paths: &ContainerPaths, payload: Payload, ends: Option<ContainerEnds>) -> Result<i32, CreateError> {
    let builder = ContainerBuilder::new(OCI_ID.to_owned(), SyscallType::default()).with_root_path(paths.oci())?;
    let mut builder = match payload {
        Payload::Command(executor) => builder.with_executor(executor),
        Payload::Wasm(executor) => builder.with_executor(executor),
    };
    builder = match ends {
        Some(ends) => builder.with_stdin(ends.stdin).with_stdout(ends.stdout).with_stderr(ends.stderr),
        None => builder.with_console_socket(Some(paths.directory().join(CONSOLE_SOCKET))),
    };
    let container =
        builder.as_init(paths.directory()).with_systemd(false).with_detach(true).as_sibling(true).build()?;
    let pid =
        container.pid().ok_or_else(|| step("learn the container's pid")(io::Error::from(io::ErrorKind::NotFound)))?;
    Ok(pid.as_raw())
}

/// Makes a private mount namespace, in which the mounts that propagate lie ready where the OCI specification expects them.
pub(super) fn prepare_mounts(paths: &ContainerPaths, spec: &ContainerSpec) -> Result<(), CreateError> {
    let mut staged = Vec::new();
    for (index, wanted) in spec.mounts.iter().enumerate() {
        if let MountSource::Bind { path, propagation } = &wanted.source
            && *propagation != Propagation::Private
        {
            // Copied before everything becomes private: the copy stays connected with the host's mount.
            let tree = edge_sys::mount::clone_tree(path).map_err(mount_error(path))?;
            staged.push((index, path, *propagation, tree));
        }
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("create the mount namespace"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(step("make the mount namespace private"))?;
    for (index, path, propagation, tree) in staged {
        let target = paths.staged_mount(index);
        make_mount_point(&target, path.is_dir()).map_err(mount_error(path))?;
        edge_sys::mount::attach(tree.as_fd(), &target).map_err(mount_error(path))?;
        if propagation == Propagation::HostToContainer {
            mount(None::<&str>, &target, None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
                .map_err(mount_error(path))?;
        }
    }
    Ok(())
}

pub(super) fn mount_error<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> CreateError {
    let path = path.to_owned();
    move |err| CreateError::Mount { path, source: err.into() }
}

fn make_mount_point(target: &Path, directory: bool) -> io::Result<()> {
    if directory {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(target).map(drop)
}

/// Mounts the layers with a writable one on top at `target`, a directory that exists.
pub(super) fn mount_layers(
    paths: &ContainerPaths,
    layers: &[PathBuf],
    target: &Path,
    flags: MsFlags,
) -> Result<(), CreateError> {
    // Through descriptors: all options must fit into one page, and paths may hold the commas and colons that separate them.
    let opened = layers
        .iter()
        .map(|path| inside::open(path).map_err(|source| CreateError::Layer { path: path.clone(), source }))
        .collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (inside::open(&paths.upper()), inside::open(&paths.work()));
    let (upper, work) =
        (upper.map_err(step("open the writable layer"))?, work.map_err(step("open the work directory"))?);
    let lower: Vec<String> = opened.iter().rev().map(inside::name).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), inside::name(&upper), inside::name(&work));
    mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str())).map_err(mount_error(target))
}

/// Makes the directories of a container's file system; the mode of its root directory is that of the top layer.
pub(super) fn prepare_directories(paths: &ContainerPaths, top: Option<&Path>) -> Result<(), CreateError> {
    for directory in [paths.upper(), paths.work(), paths.rootfs()] {
        fs::create_dir_all(directory).map_err(step("create the container's file system"))?;
    }
    let Some(top) = top else { return Ok(()) };
    let root = fs::metadata(top).map_err(|source| CreateError::Layer { path: top.to_owned(), source })?;
    chown(paths.upper(), Some(root.uid()), Some(root.gid())).map_err(step("own the container's root directory"))?;
    fs::set_permissions(paths.upper(), fs::Permissions::from_mode(root.mode() & 0o7777))
        .map_err(step("set the mode of the container's root directory"))
}

fn mount_rootfs(paths: &ContainerPaths, spec: &ContainerSpec) -> Result<(), CreateError> {
    let top = spec.layers.last().ok_or_else(|| step("mount the image")(io::Error::other("it has no layers")))?;
    prepare_directories(paths, Some(top))?;
    let layers: Vec<PathBuf> = skeleton::layer(paths, spec).into_iter().chain(spec.layers.iter().cloned()).collect();
    mount_layers(paths, &layers, &paths.rootfs(), MsFlags::empty())
}

/// Creates the working directory in the image, like other engines do, without ever following a link out of it.
fn create_working_directory(rootfs: &Path, cwd: &Path) -> Result<(), CreateError> {
    let made = inside::open(rootfs).and_then(|root| inside::directory(&root, cwd));
    made.map(drop).map_err(|source| CreateError::WorkingDirectory { path: cwd.to_owned(), source })
}

/// Takes the master side of the terminal and gives its other side to the container's user, who may open it again.
fn receive_terminal(console: &UnixListener, spec: &ContainerSpec) -> io::Result<OwnedFd> {
    let (connection, _) = console.accept()?;
    let message = socket::receive(connection.as_fd(), 4096)?;
    let master = message.fds.into_iter().next().ok_or_else(|| io::Error::other("no descriptor came with it"))?;
    let slave = tty::open_peer(master.as_fd())?;
    fchown(&slave, Some(Uid::from_raw(spec.user.uid)), Some(Gid::from_raw(spec.user.gid)))?;
    Ok(master)
}
