//! Mounts that `mount(2)` cannot make: copies of a mount tree that are attached nowhere until [`attach`] puts them somewhere.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};

/// A detached copy of the mount tree at `path` (what a recursive bind mount would show). It stays in the peer group of the
/// original, so mounts keep propagating between the two wherever the copy is attached.
///
/// # Errors
/// When `path` does not exist or the caller lacks CAP_SYS_ADMIN.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: open_tree(2) reads a NUL-terminated path, which lives for the whole call, and returns a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this new descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a detached tree of [`clone_tree`] at `target` in the mount namespace of the calling process.
///
/// # Errors
/// When `target` does not exist, or a directory meets a file.
pub fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: move_mount(2) reads two NUL-terminated paths which live for the whole call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes every mount of the calling process' mount namespace a slave: what happens on the host still arrives here, nothing
/// done here reaches the host. Call it right after `unshare(CLONE_NEWNS)`.
///
/// # Errors
/// The error of `mount(2)`.
pub fn make_all_slave() -> io::Result<()> {
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path contains a NUL byte"))
}
