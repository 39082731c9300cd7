//! The lowest layer of a container's file system: the directories and files on which things are mounted, and nothing else.
//!
//! Images rarely have them all. Made in the writable layer each of them is a change of the disk, a dozen for every container, and on
//! flash a little of its life.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::paths::ContainerPaths;
use crate::spec::{ContainerSpec, Mount};

/// What the OCI specification mounts.
const DIRECTORIES: [&str; 3] = ["dev", "proc", "sys"];
/// What a kubelet mounts in every container.
const FILES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];
/// What it mounts in nearly every one. In many images `/var/run` is a link to `/run`; in others the second place is an empty directory
/// that nobody asked for.
const TOKEN: &str = "var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_IN_RUN: &str = "run/secrets/kubernetes.io/serviceaccount";

/// Name of the layer without what only pods with a token have.
const PLAIN: &str = "plain";
/// Name of the layer with it.
const WITH_TOKEN: &str = "token";

/// Makes what is missing of both layers below `directory`.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make(directory: &Path) -> io::Result<()> {
    for (name, more) in [(PLAIN, &[][..]), (WITH_TOKEN, &[TOKEN, TOKEN_IN_RUN])] {
        let layer = directory.join(name);
        for path in DIRECTORIES.iter().chain(more) {
            make_directories(&layer, Path::new(path))?;
        }
        for path in FILES.map(Path::new) {
            make_directories(&layer, path.parent().unwrap_or(path))?;
            let path = layer.join(path);
            if !path.exists() {
                File::create(&path)?;
            }
            set_mode(&path, 0o644)?;
        }
    }
    Ok(())
}

fn make_directories(layer: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(layer.join(path))?;
    path.ancestors().try_for_each(|made| set_mode(&layer.join(made), 0o755))
}

/// As in an image, whatever the mask of this process is. A start that finds all as it should be writes nothing.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    if fs::metadata(path)?.permissions().mode() & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// The layer for a container; none for one in which not all of its files are mounted, as they would be seen there.
pub(crate) fn layer(paths: &ContainerPaths, spec: &ContainerSpec) -> Option<PathBuf> {
    let is_mounted = |path: &str| spec.mounts.iter().any(|m: &Mount| m.destination == Path::new("/").join(path));
    let name = match is_mounted(TOKEN) {
        _ if !FILES.into_iter().all(is_mounted) => return None,
        true => WITH_TOKEN,
        false => PLAIN,
    };
    // a monitor of another version may be at work
    Some(paths.sandbox().skeletons().join(name)).filter(|layer| layer.is_dir())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::paths::SandboxPaths;
    use crate::spec::{MountSource, Propagation};

    #[test]
    fn a_container_gets_what_is_mounted_in_it_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let paths = SandboxPaths::new(dir.path().join("pods/one")).container("c");
        let mut spec = ContainerSpec::new("c", Vec::new(), Vec::new(), PathBuf::new());
        let mount = |path: &str| Mount {
            destination: Path::new("/").join(path),
            source: MountSource::Bind { path: "/x".into(), propagation: Propagation::Private },
            read_only: false,
        };
        spec.mounts = FILES.map(mount).to_vec();
        assert_eq!(layer(&paths, &spec), None, "there is none yet");
        for _ in 0..2 {
            make(&paths.sandbox().skeletons()).unwrap();
        }
        let plain = layer(&paths, &spec).unwrap();
        assert!(plain.join("etc/hosts").is_file() && plain.join("proc").is_dir() && !plain.join("var").exists());
        assert_eq!(fs::metadata(plain.join("etc")).unwrap().permissions().mode() & 0o7777, 0o755);
        spec.mounts.push(mount(TOKEN));
        let token = layer(&paths, &spec).unwrap();
        assert!(token.join(TOKEN).is_dir() && token.join("etc/hosts").is_file());
        spec.mounts.remove(0);
        assert_eq!(layer(&paths, &spec), None, "somebody has other plans for it");
    }
}
