//! Beginning with a dense program: a short-lived child of the monitor makes its file system in a mount namespace of its own, opens its
//! listening sockets in the pod's network, and gives the host all that, and the pipes.
//!
//! The file system is a tree of mounts that is attached nowhere and lives as long as somebody holds its descriptor, which is the host.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_sys::mount::clone_tree;
use edge_sys::{process, socket};
use edge_wasm::World;
use edge_wasm::dense::{Descriptors, Spec, send_listener, send_start};
use nix::sched::{CloneFlags, setns};

use super::NAMES;
use crate::error::chain;
use crate::monitor::create::{CreateError, prepare_mounts, step};
use crate::monitor::guest;
use crate::monitor::helper::Reporter;
use crate::monitor::program::invocation;
use crate::monitor::stdio::{ContainerEnds, Stdio};
use crate::paths::ContainerPaths;
use crate::spec::{ContainerSpec, MountSource, WasmSpec};

/// What is to begin.
pub(in crate::monitor) struct Plan<'a> {
    pub(in crate::monitor) paths: &'a ContainerPaths,
    pub(in crate::monitor) spec: &'a ContainerSpec,
    pub(in crate::monitor) wasm: &'a WasmSpec,
    /// `None` for the host's network.
    pub(in crate::monitor) netns: Option<&'a Path>,
    /// The connection to the host.
    pub(in crate::monitor) host: &'a OwnedFd,
}

/// Begins. Returns our ends of the program's stdio, the connection over which the helper reports, and the helper's pid.
pub(in crate::monitor) fn begin(plan: &Plan<'_>) -> io::Result<(Stdio, OwnedFd, i32)> {
    let (stdio, ends) = Stdio::pipes(plan.spec)?;
    let (ours, theirs) = socket::pair()?;
    let reporter = Reporter::new(theirs);
    let pid = process::fork_child(|| helper(plan, &Arc::new(reporter), &ends))?;
    Ok((stdio, ours, pid.as_raw()))
}

fn helper(plan: &Plan<'_>, reporter: &Reporter, ends: &ContainerEnds) -> i32 {
    let keep = [reporter.raw_fd(), plan.host.as_raw_fd(), ends.stdout.as_raw_fd(), ends.stderr.as_raw_fd()];
    let result =
        process::close_fds_except(&keep).map_err(step("close inherited descriptors")).and_then(|()| give(plan, ends));
    match result {
        Ok(()) => 0,
        Err(err) => {
            reporter.error(chain(&err));
            1
        }
    }
}

fn give(plan: &Plan<'_>, ends: &ContainerEnds) -> Result<(), CreateError> {
    let Plan { paths, spec, wasm, host, .. } = plan;
    let code = File::open(&wasm.code).map_err(step("open the program's machine code"))?;
    refuse_fifos(&spec.layers)?;
    copy_names(paths, spec).map_err(step("copy the files for looking up names"))?;
    prepare_mounts(paths, spec)?;
    let root = guest::mount_program(paths, spec)?;
    let root = clone_tree(&root).map_err(step("take the program's file system"))?;
    for listener in listen(plan)? {
        send_listener(host.as_fd(), listener.as_fd()).map_err(step("give a listening socket to the host"))?;
    }
    let start = Spec { invocation: invocation(spec, wasm), cpu_millis: cpu_millis(spec) };
    let descriptors = Descriptors {
        code: code.as_fd(),
        root: root.as_fd(),
        stdout: ends.stdout.as_fd(),
        stderr: ends.stderr.as_fd(),
    };
    send_start(host.as_fd(), &start, &descriptors).map_err(step("give the program to the host"))
}

/// Listens in the pod's network.
fn listen(plan: &Plan<'_>) -> Result<Vec<TcpListener>, CreateError> {
    if plan.wasm.world != World::HttpProxy {
        return Ok(Vec::new());
    }
    if let Some(netns) = plan.netns {
        let netns = File::open(netns).map_err(step("open the pod's network namespace"))?;
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(step("enter the pod's network namespace"))?;
    }
    let listen = |address| TcpListener::bind(address).map_err(|source| CreateError::Listen { address, source });
    plan.wasm.listen.iter().copied().map(listen).collect()
}

/// Whoever opens a FIFO waits until somebody else does, and a program that waits so holds one of the host's threads for files, even when it
/// has been ended: some hundred of them, and no program gets at its files any more. Programs cannot make any.
fn refuse_fifos(layers: &[PathBuf]) -> Result<(), CreateError> {
    let mut directories = layers.to_vec();
    while let Some(directory) = directories.pop() {
        let failed = |source| CreateError::Layer { path: directory.clone(), source };
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_fifo() {
                return Err(CreateError::Fifo { path: entry.path() });
            }
            if kind.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Copies what looking up names takes to where [`super::dial`] finds it.
fn copy_names(paths: &ContainerPaths, spec: &ContainerSpec) -> io::Result<()> {
    let etc = paths.directory().join(NAMES).join("etc");
    fs::create_dir_all(&etc)?;
    for name in ["hosts", "resolv.conf"] {
        let mounted = spec.mounts.iter().find(|mount| mount.destination == Path::new("/etc").join(name));
        if let Some(MountSource::Bind { path, .. }) = mounted.map(|mount| &mount.source) {
            fs::copy(path, etc.join(name))?;
        }
    }
    Ok(())
}

/// The processor's quota in thousandths.
fn cpu_millis(spec: &ContainerSpec) -> Option<u32> {
    /// The kernel's period, in microseconds.
    const PERIOD: u64 = 100_000;
    let quota = u64::try_from(spec.resources.cpu_quota?).ok()?;
    let period = spec.resources.cpu_period.unwrap_or(PERIOD).max(1);
    Some(u32::try_from(quota.saturating_mul(1000) / period).unwrap_or(u32::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_thousandths() {
        let mut spec = ContainerSpec::new("c", Vec::new(), Vec::new(), "/log".into());
        assert_eq!(cpu_millis(&spec), None);
        for (quota, period, millis) in
            [(50_000, Some(100_000), 500), (1000, None, 10), (20_000, Some(10_000), 2000), (1, Some(1_000_000), 1)]
        {
            spec.resources.cpu_quota = Some(quota);
            spec.resources.cpu_period = period;
            assert_eq!(cpu_millis(&spec), Some(millis));
        }
        spec.resources.cpu_quota = Some(-1);
        assert_eq!(cpu_millis(&spec), None, "no limit");
    }
}
