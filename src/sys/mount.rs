//! Mounts that `mount(2)` cannot make: copies of a mount tree that are attached nowhere until [`attach`] puts them somewhere.
//! And the way back: [`unmount_below`].

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

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

/// Attaches a detached tree of [`clone_tree`] where the descriptor `target` points to, whatever its path is by now.
///
/// # Errors
/// When a directory meets a file.
pub fn attach_at(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: move_mount(2) reads two empty paths, which are constants, and takes two open descriptors.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
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

/// Unmounts everything that is mounted below a directory (not on itself), the deepest first, whoever still uses it. A
/// directory that does not exist has nothing below it.
///
/// # Errors
/// The first error; everything else is unmounted nevertheless.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    let directory = match directory.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4).map(unescape))
        .filter(|point| *point != directory && point.starts_with(&directory))
        .collect();
    // what was mounted last is on top
    points.reverse();
    let mut result = Ok(());
    for point in points {
        match umount2(&point, MntFlags::MNT_DETACH) {
            // it went with the one it was on
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => result = result.and(Err(error.into())),
        }
    }
    result
}

/// A path as `/proc/self/mountinfo` has it: `\040` for a blank, and so on.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let digits = (*byte == b'\\').then(|| after.get(..3).and_then(|d| std::str::from_utf8(d).ok())).flatten();
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                path.push(escaped);
                rest = &after[3..];
            }
            None => {
                path.push(*byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path contains a NUL byte"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn paths_with_blanks_and_backslashes() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(br"/a\9"), Path::new(r"/a\9"));
    }

    #[test]
    fn all_mounts_below_a_directory_go() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let own = std::env::temp_dir().join(format!("edge-sys mounts {}", std::process::id()));
        let below = [own.clone(), own.join("one"), own.join("one/two"), own.join("one/two")];
        for point in &below {
            std::fs::create_dir_all(point).unwrap();
            mount(Some("test"), point, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        unmount_below(&own).unwrap();
        let mounted = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let name = own.to_string_lossy().replace(' ', "\\040");
        assert_eq!(mounted.lines().filter(|line| line.contains(&name)).count(), 1, "the directory itself");
        umount2(&own, MntFlags::MNT_DETACH).unwrap();
        std::fs::remove_dir(&own).unwrap();
        unmount_below(&own).unwrap();
    }
}
