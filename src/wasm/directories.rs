//! The directories that a program sees, and which of them its relative paths are for.
//!
//! WASI knows no working directory: a program has directories with names, and its C library takes the one whose name is the longest
//! beginning of a path, with no difference between `/a` and `a`. So a working directory is one with the name `.`, which all paths
//! are for that begin with no other name; absolute ones do, as each directory of the root is given under its own name as well.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::invocation::{Invocation, Preopen};
use crate::run::PrepareError;

/// Most directories of the root that are given by name.
const MOST: usize = 128;
/// How often a way that could not be followed to its end is tried again.
const ATTEMPTS: u32 = 100;

/// Opens all of them.
pub(crate) fn preopen(builder: &mut WasiCtxBuilder, invocation: &Invocation) -> Result<(), PrepareError> {
    for preopen in &invocation.preopens {
        give(builder, preopen, &preopen.host, &preopen.guest)?;
    }
    if let Some(cwd) = &invocation.cwd {
        builder.initial_cwd(cwd.to_string_lossy());
        if let Some(root) = invocation.preopens.iter().find(|preopen| preopen.guest == "/") {
            enter(builder, root, cwd)?;
        }
    }
    Ok(())
}

fn give(builder: &mut WasiCtxBuilder, of: &Preopen, host: &Path, guest: &str) -> Result<(), PrepareError> {
    let permissions = if of.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
    builder
        .preopened_dir(host, guest, permissions)
        .map(drop)
        .map_err(|e| PrepareError::Preopen { path: host.to_owned(), reason: format!("{e:#}") })
}

/// Lets relative paths begin at `cwd`, as seen from `root`. What is in it is the program's, so its links are followed inside it only.
fn enter(builder: &mut WasiCtxBuilder, root: &Preopen, cwd: &Path) -> Result<(), PrepareError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |e: io::Error| PrepareError::Preopen { path, reason: e.to_string() }
    };
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
    let top = File::options().read(true).custom_flags(flags).open(&root.host).map_err(failed(&root.host))?;
    for name in directories(&root.host) {
        // One that has become something else meanwhile is left out.
        if let Ok(directory) = open(&top, Path::new(&name), ResolveFlag::RESOLVE_NO_SYMLINKS) {
            give(builder, root, &by_descriptor(&directory), &format!("/{name}"))?;
        }
    }
    let directory = open(&top, cwd, ResolveFlag::RESOLVE_IN_ROOT).map_err(failed(cwd))?;
    give(builder, root, &by_descriptor(&directory), ".")
}

/// Names of directories in a directory, links left out. One that cannot be read has none.
fn directories(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let real = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    real.filter_map(|entry| entry.file_name().into_string().ok()).take(MOST).collect()
}

fn open(root: &File, path: &Path, resolve: ResolveFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut left = ATTEMPTS;
    loop {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) if left > 0 => left -= 1,
            result => return Ok(result?),
        }
    }
}

fn by_descriptor(directory: &OwnedFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", directory.as_raw_fd()).into()
}
