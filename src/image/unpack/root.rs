//! The directory a layer is unpacked into: every change goes through a descriptor of the parent directory that was
//! opened with `openat2(RESOLVE_BENEATH)`, so the kernel itself refuses paths that leave it (Linux 5.6 or newer).
//!
//! A path may run through a symbolic link of the same layer as long as that stays inside; a link that is absolute or
//! climbs out is refused, not reinterpreted, since no builder makes layers that need it.

use super::{LayerError, clean, join, lossy, split};
use crate::tarball::{Entry, EntryKind};
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub(super) struct LayerRoot {
    fd: OwnedFd,
    /// The directory of the last entry: neighbours in an archive mostly share it.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories that had to be made for their children and have not been described by an entry of their own.
    implied: BTreeSet<Vec<u8>>,
}

impl LayerRoot {
    pub(super) fn open(target: &Path) -> Result<Self, LayerError> {
        let fd = rustix::fs::openat(CWD, target, DIRECTORY, Mode::empty());
        let fd = fd.map_err(LayerError::write("open", target.as_os_str().as_bytes()))?;
        Ok(Self { fd, last_parent: None, implied: BTreeSet::new() })
    }

    /// Implied directories, parents before children.
    pub(super) fn into_implied(self) -> impl Iterator<Item = Vec<u8>> {
        self.implied.into_iter()
    }

    pub(super) fn directory(&mut self, path: &[u8]) -> Result<(), LayerError> {
        if path.is_empty() {
            return Ok(());
        }
        let (parent, name) = self.parent_of(path)?;
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Err(Errno::EXIST) if file_type(parent, name) == Some(FileType::Directory) => {}
            Err(Errno::EXIST) => {
                self.remove(path)?;
                let (parent, name) = self.parent_of(path)?;
                rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(LayerError::write("make directory", path))?;
            }
            made => made.map_err(LayerError::write("make directory", path))?,
        }
        self.implied.remove(path);
        Ok(())
    }

    /// Creates an empty file, in place of whatever is there.
    pub(super) fn create(&mut self, path: &[u8]) -> Result<File, LayerError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = |parent: BorrowedFd<'_>, name: &OsStr| rustix::fs::openat(parent, name, flags, Mode::RUSR);
        self.replacing(path, "create", create).map(File::from)
    }

    pub(super) fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), LayerError> {
        let target = OsStr::from_bytes(target);
        self.replacing(path, "make symbolic link", |parent, name| rustix::fs::symlinkat(target, parent, name))
    }

    pub(super) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), LayerError> {
        if path == target {
            return Err(LayerError::UnsafePath { path: lossy(path), reason: "hard link to itself" });
        }
        let (directory, target_name) = split(target);
        let from = self.open_directory(directory).map_err(|errno| walk_error(target, errno))?;
        let target_name = OsStr::from_bytes(target_name);
        // Without AT_SYMLINK_FOLLOW a link to a symbolic link is a link to the link itself.
        self.replacing(path, "make hard link", |parent, name| {
            rustix::fs::linkat(&from, target_name, parent, name, AtFlags::empty())
        })
    }

    /// A device or a FIFO. Like containerd, layers may bring devices: only root unpacks, and what a container may open
    /// is for its device cgroup to decide.
    pub(super) fn node(&mut self, path: &[u8], kind: EntryKind, (major, minor): (u32, u32)) -> Result<(), LayerError> {
        let (file_type, device) = match kind {
            EntryKind::CharDevice => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            EntryKind::BlockDevice => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        self.mknod(path, file_type, device)
    }

    /// Marks `path` as deleted in the layers below.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<(), LayerError> {
        self.mknod(path, FileType::CharacterDevice, 0)
    }

    fn mknod(&mut self, path: &[u8], file_type: FileType, device: Dev) -> Result<(), LayerError> {
        self.replacing(path, "make node", |parent, name| {
            rustix::fs::mknodat(parent, name, file_type, Mode::RUSR, device)
        })
    }

    /// Hides everything that lower layers have in the directory `path`.
    pub(super) fn set_opaque(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let directory = self.directory_fd(path)?;
        set_xattr(directory, OsStr::new("."), OPAQUE_XATTR.as_bytes(), b"y")
            .map_err(LayerError::write("mark opaque", path))
    }

    pub(super) fn set_opaque_if_directory(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (parent, name) = self.parent_of(path)?;
        match file_type(parent, name) {
            Some(FileType::Directory) => self.set_opaque(path),
            _ => Ok(()),
        }
    }

    /// Owner, mode, extended attributes and (except for directories) time, in the order in which none undoes another.
    pub(super) fn set_metadata(&mut self, path: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let (parent, name) = self.parent_of(path)?;
        let owner = (Some(rustix::fs::Uid::from_raw(entry.uid)), Some(rustix::fs::Gid::from_raw(entry.gid)));
        rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(LayerError::write("change the owner of", path))?;
        if entry.kind != EntryKind::Symlink {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(LayerError::write("change the mode of", path))?;
        }
        for (key, value) in &entry.xattrs {
            // Overlayfs' own attributes are ours to set; from a layer they could redirect lookups.
            if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
                continue;
            }
            match set_xattr(parent, name, key, value) {
                // The file system has no such attributes; the image works without, mostly. As containerd does it.
                Err(Errno::NOTSUP) => tracing::debug!(path = %lossy(path), "extended attribute not supported"),
                result => result.map_err(LayerError::write("set extended attribute of", path))?,
            }
        }
        if entry.kind != EntryKind::Directory {
            set_time(parent, name, entry.mtime).map_err(LayerError::write("set the time of", path))?;
        }
        Ok(())
    }

    /// Sets the time of a directory, if it still is one.
    pub(super) fn set_directory_time(&mut self, path: &[u8], mtime: (i64, u32)) -> Result<(), LayerError> {
        let (parent, name) = self.parent_of(path)?;
        match file_type(parent, name) {
            Some(FileType::Directory) => {
                set_time(parent, name, mtime).map_err(LayerError::write("set the time of", path))
            }
            _ => Ok(()),
        }
    }

    /// Runs `make`; when something is in the way, removes it and tries again.
    fn replacing<T>(
        &mut self,
        path: &[u8],
        action: &'static str,
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
    ) -> Result<T, LayerError> {
        let (parent, name) = self.parent_of(path)?;
        match make(parent, name) {
            Err(Errno::EXIST) => {
                self.remove(path)?;
                let (parent, name) = self.parent_of(path)?;
                make(parent, name)
            }
            made => made,
        }
        .map_err(LayerError::write(action, path))
    }

    /// Removes whatever is at `path`, a directory with all in it.
    fn remove(&mut self, path: &[u8]) -> Result<(), LayerError> {
        // Descriptors below a removed directory, or through a removed link, are no longer where the path says.
        let stale = self.last_parent.take();
        let below = join(path, b"");
        self.implied.retain(|implied| implied != path && !implied.starts_with(&below));
        let (parent, name) = self.parent_of(path)?;
        remove_at(parent, name).map_err(LayerError::write("replace", path))?;
        drop(stale);
        Ok(())
    }

    /// The directory `path` is in (made if need be), and its name there.
    fn parent_of<'a>(&mut self, path: &'a [u8]) -> Result<(BorrowedFd<'_>, &'a OsStr), LayerError> {
        if path.is_empty() {
            return Ok((self.fd.as_fd(), OsStr::new(".")));
        }
        let (parent, name) = split(path);
        Ok((self.directory_fd(parent)?, OsStr::from_bytes(name)))
    }

    fn directory_fd(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, LayerError> {
        if path.is_empty() {
            return Ok(self.fd.as_fd());
        }
        if self.last_parent.as_ref().is_none_or(|(last, _)| last != path) {
            let fd = match self.open_directory(path) {
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(path)?,
                opened => opened.map_err(|errno| walk_error(path, errno))?,
            };
            self.last_parent = Some((path.to_vec(), fd));
        }
        let (_, fd) = self.last_parent.as_ref().expect("invariant: set just above");
        Ok(fd.as_fd())
    }

    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        rustix::fs::openat2(&self.fd, OsStr::from_bytes(path), DIRECTORY, Mode::empty(), BENEATH)
    }

    /// Makes `path` and its parents as far as they are missing.
    fn make_directories(&mut self, path: &[u8]) -> Result<OwnedFd, LayerError> {
        let (parent, name) = split(path);
        let directory = match self.open_directory(parent) {
            Err(Errno::NOENT | Errno::NOTDIR) if !parent.is_empty() => self.make_directories(parent)?,
            opened => opened.map_err(|errno| walk_error(path, errno))?,
        };
        let name = OsStr::from_bytes(name);
        let default = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        match rustix::fs::mkdirat(&directory, name, default) {
            // A whiteout of this very layer: delete what is below, then make the directory anew.
            Err(Errno::EXIST) if is_whiteout(directory.as_fd(), name) => {
                let remade = rustix::fs::unlinkat(&directory, name, AtFlags::empty())
                    .and_then(|()| rustix::fs::mkdirat(&directory, name, default))
                    .and_then(|()| set_xattr(directory.as_fd(), name, OPAQUE_XATTR.as_bytes(), b"y"));
                remade.map_err(LayerError::write("make directory", path))?;
            }
            // Something that is no directory, or a link that leads nowhere: opening it below says so.
            Err(Errno::EXIST) => {}
            made => {
                made.map_err(LayerError::write("make directory", path))?;
                self.implied.insert(path.to_vec());
            }
        }
        self.open_directory(path).map_err(|errno| walk_error(path, errno))
    }
}

fn walk_error(path: &[u8], errno: Errno) -> LayerError {
    match errno {
        Errno::XDEV | Errno::LOOP => LayerError::Escape(lossy(path)),
        errno => LayerError::write("open", path)(errno),
    }
}

fn file_type(parent: BorrowedFd<'_>, name: &OsStr) -> Option<FileType> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}

fn is_whiteout(parent: BorrowedFd<'_>, name: &OsStr) -> bool {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice && s.st_rdev == 0)
}

/// There is no `setxattrat` before Linux 6.13, so the descriptor is named through /proc. The last component is not followed.
pub(super) fn set_xattr(parent: BorrowedFd<'_>, name: &OsStr, key: &[u8], value: &[u8]) -> Result<(), Errno> {
    let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    rustix::fs::lsetxattr(path, OsStr::from_bytes(key), value, XattrFlags::empty())
}

pub(super) fn set_time(parent: BorrowedFd<'_>, name: &OsStr, (seconds, nanos): (i64, u32)) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    };
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn remove_at(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        removed => return removed,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut names = Vec::new();
    for child in rustix::fs::Dir::read_from(&directory)? {
        let child = child?;
        if !matches!(child.file_name().to_bytes(), b"." | b"..") {
            names.push(child.file_name().to_owned());
        }
    }
    for child in names {
        remove_at(directory.as_fd(), OsStr::from_bytes(child.to_bytes()))?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Opens what a layer has at `path`, without following a link at its end, for reading its metadata only.
pub(super) fn open_in_layer(layer: &Path, path: &Path) -> Result<Option<OwnedFd>, LayerError> {
    let bytes = clean(path.as_os_str().as_bytes())?;
    let root = rustix::fs::openat(CWD, layer, DIRECTORY, Mode::empty())
        .map_err(LayerError::write("open", layer.as_os_str().as_bytes()))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(&root, OsStr::from_bytes(&bytes), flags, Mode::empty(), BENEATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => Ok(None),
        Err(errno) => Err(LayerError::write("open", &bytes)(errno)),
    }
}
