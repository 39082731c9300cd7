//! The file systems of a WebAssembly container, all made before libcontainer begins.
//!
//! ```text
//! /                    a small tmpfs, read-only once the process lives in it
//! /proc /dev           libcontainer's
//! /etc/hosts, /etc/resolv.conf, /etc/ssl/…   what looking up names and checking certificates takes
//! /guest               what the program knows as its root: the image's layers, with the pod's mounts in them
//! ```
//!
//! The process reads `/proc` and `/etc`; the program, which is kept by the engine to what is below `/guest`, cannot reach them.
//! Nothing below `/guest` may be executed, or be a device: a program has no use for either. An image may hold any links, so
//! mount points in it are found by [`inside`] and not by path.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use edge_sys::mount::{attach_at, clone_tree};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::create::{CreateError, mount_error, mount_layers, prepare_directories, step};
use super::inside;
use crate::paths::ContainerPaths;
use crate::spec::{ContainerSpec, Mount, MountSource, Propagation};

/// Where in the process' file system the program's root is.
pub(super) const GUEST: &str = "/guest";

/// What every mount below the program's root is.
const HARMLESS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Files of the pod that the process itself reads, at the places where the program sees them, too.
const FOR_THE_PROCESS: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// Where distributions keep the certificates of the authorities that they trust, in one file.
pub(crate) const AUTHORITIES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Mounts everything, in the mount namespace of the process that creates the container.
pub(super) fn mount_all(paths: &ContainerPaths, spec: &ContainerSpec) -> Result<(), CreateError> {
    let (stage, guest) = mount_into_guest(paths, spec)?;
    let process = inside::open(&paths.rootfs()).map_err(step("open the container's root directory"))?;
    for (index, wanted) in spec.mounts.iter().enumerate() {
        if FOR_THE_PROCESS.iter().any(|path| wanted.destination == Path::new(path)) {
            let read_only = Mount { read_only: true, ..wanted.clone() };
            stage.mount(&read_only, &paths.staged_mount(index), &process).map_err(mount_error(&wanted.destination))?;
        }
    }
    if let Some(bundle) = AUTHORITIES.iter().find(|path| Path::new(path).is_file()) {
        let wanted = Mount {
            destination: PathBuf::from(AUTHORITIES[0]),
            source: MountSource::Bind { path: PathBuf::from(bundle), propagation: Propagation::Private },
            read_only: true,
        };
        stage.mount(&wanted, Path::new(""), &process).map_err(mount_error(&wanted.destination))?;
    }
    finish(stage, &guest, spec)
}

/// Mounts only what the program knows as its root, for a process that lives elsewhere; gives where it is.
pub(super) fn mount_program(paths: &ContainerPaths, spec: &ContainerSpec) -> Result<PathBuf, CreateError> {
    let (stage, guest) = mount_into_guest(paths, spec)?;
    finish(stage, &guest, spec)?;
    Ok(guest)
}

/// Makes the file system around the program's root, and all mounts within the latter.
fn mount_into_guest(paths: &ContainerPaths, spec: &ContainerSpec) -> Result<(Stage, PathBuf), CreateError> {
    prepare_directories(paths, spec.layers.last().map(PathBuf::as_path))?;
    let root = paths.rootfs();
    let options = Some("mode=755,size=1m");
    mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options)
        .map_err(mount_error(&root))?;
    let guest_path = root.join(GUEST.trim_start_matches('/'));
    fs::create_dir(&guest_path).map_err(step("create the program's root directory"))?;
    mount_guest(paths, spec, &guest_path)?;
    let guest = inside::open(&guest_path).map_err(step("open the program's root directory"))?;
    inside::directory(&guest, &spec.cwd)
        .map_err(|source| CreateError::WorkingDirectory { path: spec.cwd.clone(), source })?;

    let stage = Stage::new(&root).map_err(step("create a mount point"))?;
    for (index, wanted) in spec.mounts.iter().enumerate() {
        stage.mount(wanted, &paths.staged_mount(index), &guest).map_err(mount_error(&wanted.destination))?;
    }
    // It may be in a volume, which may be read-only: should it not be there, that is told when it is opened.
    let _ = inside::open(&guest_path).and_then(|guest| inside::directory(&guest, &spec.cwd));
    Ok((stage, guest_path))
}

fn finish(stage: Stage, guest: &Path, spec: &ContainerSpec) -> Result<(), CreateError> {
    stage.remove().map_err(step("remove a mount point"))?;
    if spec.security.read_only_rootfs {
        // Only now: the mount points had to be made.
        restrict(guest, true).map_err(mount_error(guest))?;
    }
    Ok(())
}

/// Mounts the image's layers with a writable one on top, or only the latter. Its root belongs to the program, which is no
/// super-user, and could not keep anything in its own file system otherwise.
fn mount_guest(paths: &ContainerPaths, spec: &ContainerSpec, target: &Path) -> Result<(), CreateError> {
    let own = step("own the program's root directory");
    chown(paths.upper(), Some(spec.user.uid), Some(spec.user.gid)).map_err(own)?;
    if !spec.layers.is_empty() {
        return mount_layers(paths, &spec.layers, target, HARMLESS);
    }
    let temporary = paths.upper().join("tmp");
    fs::create_dir_all(&temporary)
        .and_then(|()| fs::set_permissions(&temporary, Permissions::from_mode(0o1777)))
        .map_err(step("create the program's temporary directory"))?;
    mount(Some(&paths.upper()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(io::Error::from)
        .and_then(|()| restrict(target, false))
        .map_err(mount_error(target))
}

/// A place where mounts get their flags before anybody else can see them.
struct Stage {
    directory: PathBuf,
    file: PathBuf,
}

impl Stage {
    fn new(root: &Path) -> io::Result<Self> {
        let stage = Self { directory: root.join("directory"), file: root.join("file") };
        fs::create_dir(&stage.directory)?;
        File::create(&stage.file)?;
        Ok(stage)
    }

    fn remove(self) -> io::Result<()> {
        fs::remove_dir(self.directory)?;
        fs::remove_file(self.file)
    }

    /// Makes a mount in the tree below `root`. `connected` is where a copy lies of a mount that propagates.
    fn mount(&self, wanted: &Mount, connected: &Path, root: &File) -> io::Result<()> {
        let (point, target) = match &wanted.source {
            MountSource::Tmpfs { size, mode } => {
                let size = size.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
                let options = format!("mode={mode:o}{size}");
                mount(Some("tmpfs"), &self.directory, Some("tmpfs"), HARMLESS, Some(options.as_str()))?;
                (&self.directory, inside::directory(root, &wanted.destination))
            }
            MountSource::Bind { path, .. } | MountSource::Oci { path, .. } => {
                let copied = MountSource::propagates(&wanted.source);
                let source = if copied { connected } else { path };
                let (point, target) = if fs::metadata(source)?.is_dir() {
                    (&self.directory, inside::directory(root, &wanted.destination))
                } else {
                    (&self.file, inside::file(root, &wanted.destination))
                };
                mount(Some(source), point, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
                (point, target)
            }
        };
        let moved = restrict(point, wanted.read_only).and_then(|()| {
            let tree = clone_tree(point)?;
            attach_at(tree.as_fd(), target?.as_fd())
        });
        umount2(point, MntFlags::MNT_DETACH)?;
        moved
    }
}

/// Takes from a mount what the program has no use for. What is read-only already stays so.
fn restrict(point: &Path, read_only: bool) -> io::Result<()> {
    let mut flags = HARMLESS | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    if read_only || statvfs(point)?.flags().contains(FsFlags::ST_RDONLY) {
        flags |= MsFlags::MS_RDONLY;
    }
    Ok(mount(None::<&str>, point, None::<&str>, flags, None::<&str>)?)
}
