//! Copies the metadata of directories that a layer uses but does not describe from the layers below it.
//!
//! Without this a layer that holds only `tmp/x` would give the image a `/tmp` with the wrong mode, since overlayfs shows
//! the metadata of the topmost directory. The same is done by containerd.

use super::root::{open_in_layer, set_time, set_xattr};
use super::{LayerError, lossy};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Uid};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Gives the `implied` directories (parents first) of the unpacked `layer` the metadata that `below`, top first, has.
pub(crate) fn inherit_directories(layer: &Path, implied: &[PathBuf], below: &[PathBuf]) -> Result<(), LayerError> {
    // Children first, so that setting a parent's time is not undone.
    for path in implied.iter().rev() {
        for lower in below {
            let Some(source) = open_in_layer(lower, path)? else { continue };
            let bytes = path.as_os_str().as_bytes();
            let stat = rustix::fs::fstat(&source).map_err(LayerError::write("stat", bytes))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let Some(target) = open_in_layer(layer, path)? else { break };
                copy_metadata(source.as_fd(), &stat, target.as_fd())
                    .map_err(LayerError::write("set metadata of", bytes))?;
            } else {
                tracing::debug!(path = %lossy(bytes), "a directory hides something else of a lower layer");
            }
            break;
        }
    }
    Ok(())
}

fn copy_metadata(source: BorrowedFd<'_>, stat: &Stat, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let here = OsStr::new(".");
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::chownat(target, here, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmodat(target, here, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    copy_xattrs(source, target)?;
    set_time(target, here, (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()))
}

fn copy_xattrs(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let path = Path::new("/proc/self/fd").join(source.as_raw_fd().to_string()).join(".");
    let mut names = vec![0; 64 * 1024];
    let length = match rustix::fs::llistxattr(&path, &mut names) {
        Err(Errno::NOTSUP) => return Ok(()),
        listed => listed?,
    };
    let mut value = vec![0; 64 * 1024];
    for name in names[..length].split(|&b| b == 0).filter(|n| !n.is_empty() && !n.starts_with(b"trusted.overlay.")) {
        let length = rustix::fs::lgetxattr(&path, OsStr::from_bytes(name), &mut value)?;
        match set_xattr(target, OsStr::new("."), name, &value[..length]) {
            Err(Errno::NOTSUP) => {}
            set => set?,
        }
    }
    Ok(())
}
