//! Durable and atomic file writes. A reader sees either the old content or the new one, never a mixture, whatever crashes.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes temporary names unique inside this process; the pid makes them unique between processes.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// Replaces `path` with `content` so that it survives a power cut: temporary file, fsync, rename, fsync of the directory.
/// The file gets exactly the permission bits `mode` (for example `0o600`), whatever the umask is.
///
/// # Errors
/// The error of the step that failed; the temporary file is removed and the old `path` is untouched.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace(path, content, mode, true)?;
    sync_dir(parent_of(path))
}

/// Replaces `path` with `content` atomically but without waiting for the disk: for state that means nothing after a reboot.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_atomic_volatile(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace(path, content, mode, false)
}

/// Makes the directory entries of `dir` durable (after creating, renaming or removing something in it).
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates `path` and its missing parents; a directory made by this call gets the permission bits `mode`. An existing
/// `path` is set to `mode` too, so that a directory for secrets is private even when somebody made it before.
///
/// # Errors
/// When something that is no directory is in the way, or permissions do not suffice.
pub fn create_dir_all_mode(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Removes a file; a file that does not exist is fine.
///
/// # Errors
/// Every error but "not found".
pub fn remove_file_if_exists(path: &Path) -> io::Result<()> {
    ignore_not_found(fs::remove_file(path))
}

/// Removes a directory tree; a tree that does not exist is fine.
///
/// # Errors
/// Every error but "not found".
pub fn remove_dir_all_if_exists(path: &Path) -> io::Result<()> {
    ignore_not_found(fs::remove_dir_all(path))
}

fn ignore_not_found(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn replace(path: &Path, content: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let temporary = temporary_name(path)?;
    let result = write_new(&temporary, content, mode, durable).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // The first error is the one worth reporting; the leftover is only litter.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path has no file name"))?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.{}.tmp", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed)));
    Ok(parent_of(path).join(temporary))
}

fn write_new(path: &Path, content: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    // Never more than `mode` at any moment: created with it, then set exactly (the umask may have taken bits away).
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    if durable {
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn replaces_content_and_mode_and_leaves_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        write_atomic_volatile(&path, b"three", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failure_keeps_the_old_file_and_leaves_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"x").unwrap();
        assert!(write_atomic(&path, b"new", 0o600).is_err(), "a directory must not be replaced by a file");
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"x");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn private_directory_is_made_private_even_if_it_existed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        fs::create_dir_all(&path).unwrap();
        create_dir_all_mode(&path, 0o700).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        remove_dir_all_if_exists(&path).unwrap();
        remove_dir_all_if_exists(&path).unwrap();
        remove_file_if_exists(&path).unwrap();
    }
}
