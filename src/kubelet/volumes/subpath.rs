//! `subPath`: a part of a volume, found without ever leaving the volume whatever symbolic links a container planted in it.
//!
//! The path is resolved by the kernel beneath the opened root of the volume, and what was found is pinned by a bind mount
//! of the descriptor itself, so that nobody can exchange it between the check and the mount. Blocking.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

/// Why a subPath cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubPathError {
    #[error("subPath {0:?} must be a relative path without '..'")]
    Invalid(String),
    #[error("subPath {path:?} cannot be resolved within the volume")]
    Resolve {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot mount subPath at {path}")]
    Mount {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Mounts `sub_path` of the volume at `target`. Missing directories are made in the volume.
pub(crate) fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<(), SubPathError> {
    let found = resolve(volume, sub_path)?;
    let mounted = || -> io::Result<()> {
        super::local::unmount_below(target)?;
        // /proc/self/fd is a link to the file itself, whatever its name has become
        let source = format!("/proc/self/fd/{}", found.as_raw_fd());
        if fs::metadata(&source)?.is_dir() {
            fs::create_dir_all(target)?;
        } else {
            fs::create_dir_all(target.parent().unwrap_or(target))?;
            fs::OpenOptions::new().append(true).create(true).open(target)?;
        }
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        Ok(mount(Some(source.as_str()), target, None::<&str>, flags, None::<&str>)?)
    };
    mounted().map_err(|source| SubPathError::Mount { path: target.to_owned(), source })
}

fn open_below(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

fn resolve(volume: &Path, sub_path: &str) -> Result<OwnedFd, SubPathError> {
    let relative = Path::new(sub_path);
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if sub_path.is_empty() || !relative.components().all(plain) {
        return Err(SubPathError::Invalid(sub_path.to_owned()));
    }
    let walk = || -> nix::Result<OwnedFd> {
        let root = open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        match open_below(&root, relative) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        let mut parent = std::path::PathBuf::from(".");
        for component in relative.components() {
            let path = parent.join(component);
            match open_below(&root, &path) {
                Ok(_) => {}
                Err(Errno::ENOENT) => {
                    let directory = open_below(&root, &parent)?;
                    match mkdirat(&directory, component.as_os_str(), Mode::from_bits_truncate(0o750)) {
                        // a dangling link is in the way, or somebody else was faster: opening it decides
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
            parent = path;
        }
        open_below(&root, &parent)
    };
    walk().map_err(|error| SubPathError::Resolve { path: sub_path.to_owned(), source: error.into() })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::symlink;

    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = super::super::local::unmount_below(self.0);
        }
    }

    #[test]
    fn parts_of_volumes_are_mounted_and_made() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let _unmount = Unmount(dir.path());
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("..v1")).unwrap();
        fs::write(volume.join("..v1/key"), "value").unwrap();
        symlink("..v1", volume.join("..data")).unwrap();
        symlink("..data/key", volume.join("key")).unwrap();
        bind(&volume, "key", &dir.path().join("t/file")).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("t/file")).unwrap(), "value");
        bind(&volume, "new/deep", &dir.path().join("t/dir")).unwrap();
        fs::write(dir.path().join("t/dir/x"), "y").unwrap();
        assert_eq!(fs::read_to_string(volume.join("new/deep/x")).unwrap(), "y");
        bind(&volume, "new/deep", &dir.path().join("t/dir")).unwrap();
    }

    #[test]
    fn nothing_outside_of_the_volume_is_reached() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let _unmount = Unmount(dir.path());
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(&volume).unwrap();
        fs::create_dir_all(&outside).unwrap();
        symlink(&outside, volume.join("absolute")).unwrap();
        symlink("../outside", volume.join("relative")).unwrap();
        symlink("/proc/self/root/etc", volume.join("magic")).unwrap();
        symlink("../outside/dangling", volume.join("dangling")).unwrap();
        symlink("loop", volume.join("loop")).unwrap();
        for path in ["absolute", "absolute/new", "relative", "relative/new", "magic", "dangling", "dangling/x", "loop"]
        {
            let result = bind(&volume, path, &dir.path().join("target"));
            assert!(matches!(result, Err(SubPathError::Resolve { .. })), "{path}: {result:?}");
        }
        for path in ["", "..", "a/../../outside", "/etc"] {
            assert!(matches!(bind(&volume, path, &dir.path().join("target")), Err(SubPathError::Invalid(_))), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!dir.path().join("target").exists());
    }
}
