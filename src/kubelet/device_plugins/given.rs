//! What the plugins of a container's devices want it to have, into the container's description.

use super::plugin::{Given, HostDevice, HostMount};
use crate::env::Variables;
use edge_runtime::ContainerSpec;
use edge_runtime::spec::{Device, Mount, MountSource, Propagation};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Most device nodes of one folder.
const MOST_NODES: usize = 4096;

/// All that plugins want one container to have. What a container has already, from the pod or from another plugin, stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerDevices {
    envs: BTreeMap<String, String>,
    mounts: Vec<HostMount>,
    devices: Vec<HostDevice>,
    annotations: BTreeMap<String, String>,
    /// Names of the Container Device Interface.
    pub(crate) cdi: Vec<String>,
}

impl ContainerDevices {
    /// Of all resources of a container.
    pub(super) fn of(all: impl IntoIterator<Item = Given>) -> Self {
        let mut out = Self::default();
        for given in all {
            for (name, value) in given.envs {
                out.envs.entry(name).or_insert(value);
            }
            for (name, value) in given.annotations {
                out.annotations.entry(name).or_insert(value);
            }
            out.mounts.extend(given.mounts);
            out.devices.extend(given.devices);
            out.cdi.extend(given.cdi);
        }
        out
    }

    /// Adds variables. They can be used in the command like the pod's own.
    pub(crate) fn add_variables(&self, variables: &mut Variables) {
        for (name, value) in &self.envs {
            variables.0.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }

    /// Adds the rest. Blocking.
    ///
    /// # Errors
    /// When a device is none, or what is to be mounted cannot be made.
    pub(crate) fn add(self, spec: &mut ContainerSpec) -> Result<(), String> {
        for mount in self.mounts {
            let destination = PathBuf::from(&mount.container_path);
            if spec.mounts.iter().any(|known| known.destination == destination) {
                continue;
            }
            let path = PathBuf::from(&mount.host_path);
            if !path.exists() {
                // container runtimes do so, and plugins build on it
                fs::create_dir_all(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
            }
            let source = MountSource::Bind { path, propagation: Propagation::Private };
            spec.mounts.push(Mount { destination, source, read_only: mount.read_only });
        }
        spec.mounts.sort_by_key(|mount| mount.destination.components().count());
        for device in self.devices {
            let (host, container) = (PathBuf::from(&device.host_path), PathBuf::from(&device.container_path));
            let mut nodes = Vec::new();
            collect(&host, &container, &mut nodes).map_err(|error| format!("device {}: {error}", host.display()))?;
            for (host_path, container_path) in nodes {
                if spec.devices.iter().any(|known| known.container_path == container_path) {
                    continue;
                }
                let permissions =
                    if device.permissions.is_empty() { "rwm".to_owned() } else { device.permissions.clone() };
                spec.devices.push(Device {
                    host_path,
                    container_path,
                    permissions,
                    number: None,
                    mode: None,
                    uid: None,
                    gid: None,
                });
            }
        }
        for (name, value) in self.annotations {
            spec.annotations.entry(name).or_insert(value);
        }
        Ok(())
    }
}

/// The device nodes at a path: itself, or all in a folder, as container runtimes do it.
fn collect(host: &Path, container: &Path, nodes: &mut Vec<(PathBuf, PathBuf)>) -> io::Result<()> {
    let found = fs::metadata(host)?.file_type();
    if found.is_char_device() || found.is_block_device() {
        nodes.push((host.to_owned(), container.to_owned()));
    } else if found.is_dir() {
        let mut entries = fs::read_dir(host)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            // links may lead anywhere, and other files are no devices
            let kind = entry.file_type()?;
            if kind.is_char_device() || kind.is_block_device() || kind.is_dir() {
                collect(&entry.path(), &container.join(entry.file_name()), nodes)?;
            }
            if nodes.len() > MOST_NODES {
                return Err(io::Error::other("too many device nodes"));
            }
        }
    } else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a device node"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn mount(container: &str, host: &Path, read_only: bool) -> HostMount {
        let host_path = host.to_str().unwrap().to_owned();
        HostMount { container_path: container.to_owned(), host_path, read_only }
    }

    fn device(container: &str, host: &str, permissions: &str) -> HostDevice {
        let of = str::to_owned;
        HostDevice { container_path: of(container), host_path: of(host), permissions: of(permissions) }
    }

    #[test]
    fn containers_have_what_plugins_want() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("made/for/it");
        let first = Given {
            envs: map(&[("GPU", "0"), ("OWN", "plugin")]),
            mounts: vec![mount("/a/b/c", &missing, true), mount("/taken", dir.path(), false)],
            devices: vec![device("/dev/gpu", "/dev/null", "rw")],
            annotations: map(&[("a", "1")]),
            cdi: vec!["v/c=d".to_owned()],
        };
        let second = Given {
            envs: map(&[("GPU", "other"), ("NET", "1")]),
            mounts: vec![mount("/x", dir.path(), false)],
            devices: vec![device("/dev/gpu", "/dev/zero", ""), device("/dev/zero", "/dev/zero", "")],
            annotations: map(&[("a", "2")]),
            cdi: Vec::new(),
        };
        let all = ContainerDevices::of([first, second]);
        let mut variables = Variables(map(&[("OWN", "pod")]));
        all.add_variables(&mut variables);
        assert_eq!(variables.0, map(&[("GPU", "0"), ("NET", "1"), ("OWN", "pod")]));
        let mut spec = ContainerSpec::new("c", Vec::new(), vec!["true".into()], "/log".into());
        let source = MountSource::Bind { path: "/pod".into(), propagation: Propagation::Private };
        spec.mounts.push(Mount { destination: "/taken".into(), source, read_only: true });
        all.add(&mut spec).unwrap();
        let mounts: Vec<_> = spec.mounts.iter().map(|m| (m.destination.to_str().unwrap(), m.read_only)).collect();
        assert_eq!(mounts, [("/taken", true), ("/x", false), ("/a/b/c", true)]);
        assert!(missing.is_dir());
        let devices: Vec<_> = spec
            .devices
            .iter()
            .map(|d| format!("{} {} {}", d.container_path.display(), d.host_path.display(), d.permissions))
            .collect();
        assert_eq!(devices, ["/dev/gpu /dev/null rw", "/dev/zero /dev/zero rwm"]);
        assert_eq!(spec.annotations, map(&[("a", "1")]));
    }

    #[test]
    fn what_is_no_device_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for (host, why) in [(file.to_str().unwrap(), "not a device node"), ("/dev/none-such", "No such file")] {
            let given = Given { devices: vec![device("/dev/x", host, "r")], ..Given::default() };
            let mut spec = ContainerSpec::new("c", Vec::new(), vec!["true".into()], "/log".into());
            let error = ContainerDevices::of([given]).add(&mut spec).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        // a folder stands for the devices in it
        let mut nodes = Vec::new();
        collect(dir.path(), Path::new("/dev/x"), &mut nodes).unwrap();
        assert!(nodes.is_empty());
        collect(Path::new("/dev"), Path::new("/host"), &mut nodes).unwrap();
        assert!(nodes.contains(&("/dev/null".into(), "/host/null".into())));
    }
}
