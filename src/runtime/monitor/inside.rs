//! Paths inside a tree whose links are somebody else's: found, and made, without ever being led out of the tree.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// How often a way that could not be followed to its end is tried again.
const ATTEMPTS: u32 = 1000;

/// Opens a directory as a place (`O_PATH`).
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY).open(path)
}

/// The directory `path` in the tree below `root`, made (0755) where it is missing. Parent components count for nothing.
pub(super) fn directory(root: &File, path: &Path) -> io::Result<File> {
    let mut reached = PathBuf::from(".");
    let mut parent = root.try_clone()?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        reached.push(name);
        parent = match place(root, &reached, OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT) => {
                match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                    // Volumes are shared with containers that run already.
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(err) => return Err(err.into()),
                }
                place(root, &reached, OFlag::O_DIRECTORY)?.into()
            }
            found => found?.into(),
        };
    }
    Ok(parent)
}

/// The file `path` in the tree below `root`, made empty where it is missing.
pub(super) fn file(root: &File, path: &Path) -> io::Result<File> {
    let plain: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let name = plain.file_name().ok_or(Errno::EISDIR)?;
    let parent = directory(root, plain.parent().unwrap_or(Path::new("")))?;
    let within = Path::new(".").join(&plain);
    match place(root, &within, OFlag::empty()) {
        Err(Errno::ENOENT) => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
            match openat(&parent, name, flags, Mode::from_bits_truncate(0o644)) {
                Ok(_) | Err(Errno::EEXIST) => {}
                Err(err) => return Err(err.into()),
            }
            Ok(place(root, &within, OFlag::empty())?.into())
        }
        found => Ok(found?.into()),
    }
}

fn place(root: &File, path: &Path, kind: OFlag) -> nix::Result<OwnedFd> {
    let how = || {
        OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | kind)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
    };
    // On the way up (`..`) the kernel gives up when anything on the machine is mounted or renamed meanwhile; the next time is another one.
    let mut left = ATTEMPTS;
    loop {
        match openat2(root, path, how()) {
            Err(Errno::EAGAIN) if left > 0 => left -= 1,
            result => return result,
        }
    }
}

/// A path by which the kernel finds an open place.
pub(super) fn name(place: &File) -> String {
    format!("/proc/self/fd/{}", place.as_raw_fd())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_nowhere_else() {
        let outside = tempfile::tempdir().unwrap();
        let tree = outside.path().join("tree");
        fs::create_dir(&tree).unwrap();
        symlink("/", tree.join("absolute")).unwrap();
        symlink("../..", tree.join("relative")).unwrap();
        symlink("/nowhere", tree.join("dangling")).unwrap();
        let root = open(&tree).unwrap();
        directory(&root, Path::new("/absolute/../relative/new/deep")).unwrap();
        assert!(tree.join("new/deep").is_dir());
        file(&root, Path::new("/relative/etc/hosts")).unwrap();
        assert!(tree.join("etc/hosts").is_file());
        assert!(file(&root, Path::new("/dangling")).is_err() && directory(&root, Path::new("dangling")).is_err());
        assert!(file(&root, Path::new("/")).is_err() && file(&root, Path::new("/new")).is_ok());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}
