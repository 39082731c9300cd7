//! Volumes that are directories of this machine: emptyDir, hostPath, and ownership of volumes. Blocking.

use edge_sys::fsutil;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Component, Path};

/// Why a hostPath volume is not what it should be; the texts are the kubelet's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostPathError {
    #[error("hostPath type check failed: {0} is not a directory")]
    NotDirectory(String),
    #[error("hostPath type check failed: {0} is not a file")]
    NotFile(String),
    #[error("hostPath type check failed: {0} is not a socket file")]
    NotSocket(String),
    #[error("hostPath type check failed: {0} is not a character device")]
    NotCharDevice(String),
    #[error("hostPath type check failed: {0} is not a block device")]
    NotBlockDevice(String),
    #[error("{1} is an invalid volume type of hostPath {0}")]
    UnknownType(String, String),
    #[error("cannot create hostPath {path}")]
    Create {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Checks a hostPath, makes it when its type says so.
pub(crate) fn host_path(path: &str, kind: &str) -> Result<(), HostPathError> {
    let meta = fs::metadata(path).ok();
    let is = |check: fn(&fs::FileType) -> bool| meta.as_ref().is_some_and(|m| check(&m.file_type()));
    let name = || path.to_owned();
    let created = |result: io::Result<()>| result.map_err(|source| HostPathError::Create { path: name(), source });
    match kind {
        // as container runtimes do, a missing directory is made
        "" if meta.is_none() => created(fs::create_dir_all(path)),
        "" => Ok(()),
        "DirectoryOrCreate" if meta.is_none() => created(fs::create_dir_all(path)),
        "DirectoryOrCreate" | "Directory" if is(fs::FileType::is_dir) => Ok(()),
        "DirectoryOrCreate" | "Directory" => Err(HostPathError::NotDirectory(name())),
        "FileOrCreate" if meta.is_none() => {
            let mode = Mode::from_bits_truncate(0o644);
            created(mknod(path, SFlag::S_IFREG, mode, 0).map_err(io::Error::from))
        }
        "FileOrCreate" | "File" if is(fs::FileType::is_file) => Ok(()),
        "FileOrCreate" | "File" => Err(HostPathError::NotFile(name())),
        "Socket" if is(FileTypeExt::is_socket) => Ok(()),
        "Socket" => Err(HostPathError::NotSocket(name())),
        "CharDevice" if is(FileTypeExt::is_char_device) => Ok(()),
        "CharDevice" => Err(HostPathError::NotCharDevice(name())),
        "BlockDevice" if is(FileTypeExt::is_block_device) => Ok(()),
        "BlockDevice" => Err(HostPathError::NotBlockDevice(name())),
        other => Err(HostPathError::UnknownType(name(), other.to_owned())),
    }
}

/// Makes the directory of a volume that was made for a claim, if it is not there: writable by whoever the pod runs as, and reached only
/// through directories that are not.
pub(crate) fn storage_directory(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(path);
    fsutil::create_dir_all_mode(parent, 0o700)?;
    // whole or not at all: one that a crash has left without its mode would stay so
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    match fs::create_dir(&part) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(&part, Permissions::from_mode(0o777))?;
    fs::rename(&part, path)?;
    fsutil::sync_dir(parent)
}

/// Why the directory of a volume was not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    #[error("{0:?} is not the directory of a volume that was made for a claim")]
    NotOurs(String),
    #[error("cannot remove {path}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Removes the directory of a volume that was made for a claim, with all that is in it; one that is gone already is no error.
pub(crate) fn remove_storage_directory(path: &str) -> Result<(), RemoveError> {
    let given = Path::new(path);
    let plain =
        given.is_absolute() && given.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    let name = given.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    // `pvc-<uid>_<namespace>_<name>`
    if !plain || !name.starts_with("pvc-") || name.split('_').count() != 3 {
        return Err(RemoveError::NotOurs(path.to_owned()));
    }
    // what a pod has put there may be links: they are removed, not followed
    match fs::remove_dir_all(given) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RemoveError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Whether something is mounted at a directory.
pub(crate) fn is_mounted(path: &Path) -> bool {
    let device = |p: &Path| fs::symlink_metadata(p).map(|m| m.dev());
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
    }
}

/// Makes a directory in memory; one that is mounted already stays as it is.
pub(crate) fn tmpfs(path: &Path, size: Option<u64>, mode: u32) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if is_mounted(path) {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options += &format!(",size={size}");
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))?)
}

/// Makes an emptyDir on disk.
pub(crate) fn empty_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o777))
}

/// Gives a volume to a group: its files become readable and writable for it, new ones inherit it. With `only_if_needed`
/// a volume whose root already is the group's is left alone (`fsGroupChangePolicy: OnRootMismatch`).
pub(crate) fn set_group(path: &Path, group: u32, only_if_needed: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if only_if_needed && meta.gid() == group && meta.mode() & 0o2070 == 0o2070 {
        return Ok(());
    }
    set_group_of(path, &meta, group)
}

fn set_group_of(path: &Path, meta: &fs::Metadata, group: u32) -> io::Result<()> {
    lchown(path, None, Some(group))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let extra = if meta.is_dir() { 0o2770 } else { 0o660 };
    fs::set_permissions(path, Permissions::from_mode(meta.mode() & 0o7777 | extra))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            set_group_of(&path, &fs::symlink_metadata(&path)?, group)?;
        }
    }
    Ok(())
}

/// Unmounts everything that is mounted below a directory, the innermost first. Never follows a symbolic link.
pub(crate) fn unmount_below(dir: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    for target in mounts_below(&table, dir).iter().rev() {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The mount points below a directory out of a mountinfo table, in the order they were made.
fn mounts_below(table: &str, dir: &Path) -> Vec<std::path::PathBuf> {
    let target = |line: &str| line.split(' ').nth(4).map(unescape);
    table.lines().filter_map(target).map(std::path::PathBuf::from).filter(|p| p.starts_with(dir)).collect()
}

/// The mount that a path is on, when mounts that are made below it stay there (it is not a shared mount).
pub(crate) fn unshared_mount(path: &Path) -> io::Result<Option<std::path::PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_of(&table, &fs::canonicalize(path)?).filter(|(_, is_shared)| !is_shared).map(|(point, _)| point))
}

/// The mount point that a path is below out of a mountinfo table, and whether it is shared.
fn mount_of(table: &str, path: &Path) -> Option<(std::path::PathBuf, bool)> {
    let parse = |line: &str| {
        let point = std::path::PathBuf::from(line.split(' ').nth(4).map(unescape)?);
        let is_shared = line.split(' ').skip(6).take_while(|field| *field != "-").any(|f| f.starts_with("shared:"));
        path.starts_with(&point).then_some((point, is_shared))
    };
    // of several at one place the last is on top
    table.lines().filter_map(parse).max_by_key(|(point, _)| point.components().count())
}

/// The kernel writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn host_path_types_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        host_path(&at("made/deep"), "DirectoryOrCreate").unwrap();
        assert!(dir.path().join("made/deep").is_dir());
        host_path(&at("file"), "FileOrCreate").unwrap();
        host_path(&at("file"), "File").unwrap();
        host_path("/dev/null", "CharDevice").unwrap();
        for (path, kind, error) in [
            (at("file"), "Directory", "is not a directory"),
            (at("file"), "DirectoryOrCreate", "is not a directory"),
            (at("none"), "File", "is not a file"),
            (at("made"), "FileOrCreate", "is not a file"),
            (at("file"), "Socket", "is not a socket file"),
            (at("file"), "CharDevice", "is not a character device"),
            (at("file"), "BlockDevice", "is not a block device"),
            (at("file"), "Odd", "invalid volume type"),
            (at("file/below"), "DirectoryOrCreate", "cannot create hostPath"),
        ] {
            let text = host_path(&path, kind).unwrap_err().to_string();
            assert!(text.contains(error), "{kind} {text}");
        }
    }

    #[test]
    fn where_mounts_spread() {
        let table = "27 1 254:0 / / rw - ext4 /dev/vda rw\n28 27 0:5 / /a\\040b rw,relatime shared:3 master:1 - tmpfs x rw\n\
                     29 28 0:6 / /a\\040b/c rw master:2 - tmpfs x rw\n30 28 0:6 / /d rw - tmpfs x rw\n\
                     31 30 0:6 / /d rw shared:9 - tmpfs x rw";
        for (path, point, is_shared) in
            [("/x/y", "/", false), ("/a b/x", "/a b", true), ("/a b/c/d", "/a b/c", false), ("/d/e", "/d", true)]
        {
            assert_eq!(mount_of(table, Path::new(path)), Some((point.into(), is_shared)), "{path}");
        }
        assert_eq!(mount_of("garbage\n\n", Path::new("/x")), None);
    }

    #[test]
    fn memory_volumes_come_and_go() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("with blank/v");
        tmpfs(&volume, Some(65536), 0o777).unwrap();
        tmpfs(&volume, Some(65536), 0o777).unwrap();
        let full = fs::write(volume.join("big"), vec![0; 100_000]);
        let mounted = is_mounted(&volume);
        unmount_below(dir.path()).unwrap();
        assert!(mounted && full.is_err(), "the size is limited");
        assert!(!is_mounted(&volume));
        unmount_below(dir.path()).unwrap();
    }

    #[test]
    fn a_group_gets_the_whole_volume_but_nothing_behind_links() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::write(volume.join("sub/file"), "x").unwrap();
        fs::write(&outside, "x").unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        set_group(&volume, 4711, false).unwrap();
        let meta = fs::metadata(volume.join("sub/file")).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o660), (4711, 0o660));
        assert_eq!(fs::metadata(volume.join("sub")).unwrap().mode() & 0o2770, 0o2770);
        assert_eq!(fs::metadata(&outside).unwrap().gid(), 0);
        fs::write(volume.join("new"), "x").unwrap();
        lchown(volume.join("new"), None, Some(0)).unwrap();
        set_group(&volume, 4711, true).unwrap();
        assert_eq!(fs::metadata(volume.join("new")).unwrap().gid(), 0, "the root matches, so nothing is done");
    }
}
