//! The Container Device Interface: files in which drivers say what a container needs for a device.
//!
//! In: names of devices (`vendor.com/class=device`) and the directories with the files, JSON or YAML. Out: what is to be added to a container.
//! The files are read when a container with devices is made, and never watched. One that cannot be understood counts as absent; a device that
//! two files of one directory describe is known by none.

use edge_runtime::ContainerSpec;
use edge_runtime::spec::{Device, DeviceNumber, Hook, HookStage, Mount, MountSource};
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most bytes of one file.
const MAX_FILE: u64 = 4 << 20;

/// Why a container cannot have its devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CdiError {
    #[error("CDI device injection failed: unresolvable CDI devices {}", .0.join(", "))]
    Unresolvable(Vec<String>),
    #[error("CDI device injection failed: {device}: {why}")]
    Invalid { device: String, why: String },
}

/// A file of a driver.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    #[serde(default)]
    devices: Vec<Described>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mounted>,
    hooks: Vec<Program>,
    #[serde(rename = "additionalGids")]
    groups: Vec<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: String,
    host_path: String,
    #[serde(rename = "type")]
    kind: String,
    major: i64,
    minor: i64,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mounted {
    host_path: String,
    container_path: String,
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Program {
    hook_name: String,
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

/// Adds devices to a container. `directories` have the files, what a later one says wins. Blocking.
///
/// # Errors
/// When nobody describes a device, or nobody understands what is described.
pub(crate) fn add(directories: &[PathBuf], devices: &[String], spec: &mut ContainerSpec) -> Result<(), CdiError> {
    if devices.is_empty() {
        return Ok(());
    }
    let known = Known::read(directories);
    let unknown: Vec<String> = devices.iter().filter(|name| !known.devices.contains_key(*name)).cloned().collect();
    if !unknown.is_empty() {
        return Err(CdiError::Unresolvable(unknown));
    }
    let (mut files, mut done) = (HashSet::new(), HashSet::new());
    for name in devices {
        let Some(Some((file, edits))) = known.devices.get(name) else {
            return Err(CdiError::Unresolvable(vec![name.clone()]));
        };
        if !done.insert(name) {
            continue;
        }
        let invalid = |why: String| CdiError::Invalid { device: name.clone(), why };
        if files.insert(*file) {
            // what all devices of a file need, once
            let common = known.common.get(*file).ok_or_else(|| invalid("its file is gone".to_owned()))?;
            common.clone().apply(spec).map_err(invalid)?;
        }
        edits.clone().apply(spec).map_err(invalid)?;
    }
    spec.mounts.sort_by_key(|mount| mount.destination.components().count());
    Ok(())
}

/// What files say.
#[derive(Default)]
struct Known {
    /// What all devices of a file need.
    common: Vec<Edits>,
    /// The devices by their full names, with the places of their files in `common`; nothing for those that are described twice.
    devices: BTreeMap<String, Option<(usize, Edits)>>,
}

impl Known {
    fn read(directories: &[PathBuf]) -> Self {
        let mut known = Self::default();
        for directory in directories {
            let mut here: HashSet<String> = HashSet::new();
            for path in files(directory) {
                let file = match read(&path) {
                    Ok(file) => file,
                    Err(why) => {
                        tracing::warn!(file = %path.display(), why, "description of devices not understood");
                        continue;
                    }
                };
                let place = known.common.len();
                known.common.push(file.container_edits);
                for device in file.devices {
                    let name = format!("{}={}", file.kind, device.name);
                    let is_first = here.insert(name.clone());
                    known.devices.insert(name, is_first.then_some((place, device.container_edits)));
                }
            }
        }
        known
    }
}

/// The files of a directory in the order of their names; one that is not there has none.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_one = |path: &PathBuf| matches!(path.extension().and_then(|e| e.to_str()), Some("json" | "yaml"));
    let mut all: Vec<PathBuf> = entries.filter(is_one).collect();
    all.sort();
    all
}

fn read(path: &Path) -> Result<File, String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err("not a file".to_owned());
    }
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("too large".to_owned());
    }
    let file: File = if path.extension().is_some_and(|e| e == "json") {
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())?
    } else {
        serde_yaml_ng::from_slice(&bytes).map_err(|error| error.to_string())?
    };
    let is_kind = file.kind.split_once('/').is_some_and(|(vendor, class)| !vendor.is_empty() && !class.is_empty());
    if is_kind { Ok(file) } else { Err(format!("the kind {:?} is not vendor/class", file.kind)) }
}

fn absolute(path: &str, what: &str) -> Result<PathBuf, String> {
    let found = PathBuf::from(path);
    if found.is_absolute() { Ok(found) } else { Err(format!("the {what} {path:?} is not an absolute path")) }
}

impl Edits {
    fn apply(self, spec: &mut ContainerSpec) -> Result<(), String> {
        for entry in self.env {
            let (name, value) = entry
                .split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .ok_or_else(|| format!("the environment variable {entry:?} has no name or no value"))?;
            spec.env.push((name.to_owned(), value.to_owned()));
        }
        for node in self.device_nodes {
            let device = node.device(spec)?;
            spec.devices.retain(|known| known.container_path != device.container_path);
            spec.devices.push(device);
        }
        for mount in self.mounts {
            let mount = mount.mount()?;
            spec.mounts.retain(|known| known.destination != mount.destination);
            spec.mounts.push(mount);
        }
        for hook in self.hooks {
            spec.hooks.extend(hook.hook()?);
        }
        for group in self.groups.into_iter().filter(|group| *group != 0) {
            if !spec.user.additional_gids.contains(&group) {
                spec.user.additional_gids.push(group);
            }
        }
        Ok(())
    }
}

impl Node {
    fn device(self, spec: &ContainerSpec) -> Result<Device, String> {
        let container_path = absolute(&self.path, "device")?;
        let host_path = if self.host_path.is_empty() { &self.path } else { &self.host_path };
        let is_block = match self.kind.as_str() {
            "" => None,
            "b" => Some(true),
            "c" | "u" => Some(false),
            other => return Err(format!("devices of the type {other:?} are not supported")),
        };
        if !self.permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(format!("the permissions {:?} are not any of rwm", self.permissions));
        }
        // as everybody does it: what is not said comes from the host, and the container's user owns its devices
        let number = is_block.filter(|_| self.major > 0).map(|is_block| DeviceNumber {
            is_block,
            major: self.major,
            minor: self.minor,
        });
        Ok(Device {
            host_path: absolute(host_path, "device")?,
            container_path,
            permissions: if self.permissions.is_empty() { "rwm".to_owned() } else { self.permissions },
            number,
            mode: self.file_mode,
            uid: self.uid.or((spec.user.uid > 0).then_some(spec.user.uid)),
            gid: self.gid.or((spec.user.gid > 0).then_some(spec.user.gid)),
        })
    }
}

impl Mounted {
    fn mount(self) -> Result<Mount, String> {
        let destination = absolute(&self.container_path, "mount")?;
        let mut options = self.options;
        let is_bind = matches!(self.kind.as_str(), "" | "none" | "bind");
        if is_bind {
            absolute(&self.host_path, "path of a mount")?;
            if !options.iter().any(|option| option == "bind" || option == "rbind") {
                options.push("rbind".to_owned());
            }
        }
        let read_only = options.iter().any(|option| option == "ro");
        let kind = if is_bind { String::new() } else { self.kind };
        let source = MountSource::Oci { kind, path: PathBuf::from(self.host_path), options };
        Ok(Mount { destination, source, read_only })
    }
}

impl Program {
    fn hook(self) -> Result<Option<Hook>, String> {
        let stage = match self.hook_name.as_str() {
            "prestart" => HookStage::Prestart,
            "createRuntime" => HookStage::CreateRuntime,
            "createContainer" => HookStage::CreateContainer,
            "startContainer" => HookStage::StartContainer,
            "poststart" | "poststop" => {
                tracing::warn!(hook = self.hook_name, path = self.path, "hooks of this kind are not run");
                return Ok(None);
            }
            other => return Err(format!("the hook {other:?} is not known")),
        };
        let path = absolute(&self.path, "hook")?;
        Ok(Some(Hook { stage, path, args: self.args, env: self.env, timeout: self.timeout }))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec::new("c", Vec::new(), vec!["true".into()], "/log".into())
    }

    fn added(directories: &[PathBuf], devices: &[&str]) -> Result<ContainerSpec, String> {
        let mut spec = spec();
        let devices: Vec<String> = devices.iter().map(|d| (*d).to_owned()).collect();
        add(directories, &devices, &mut spec).map(|()| spec).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_are_added() {
        let dir = tempfile::tempdir().unwrap();
        let json = r#"{"cdiVersion": "0.6.0", "kind": "v.io/gpu", "containerEdits": {"env": ["ALL=1"]}, "devices": [
            {"name": "a", "containerEdits": {"env": ["A=x=y"], "additionalGids": [0, 5],
                "deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/null", "permissions": "rw"},
                                {"path": "/dev/b", "type": "c", "major": 1, "minor": 5, "fileMode": 384, "uid": 7}],
                "mounts": [{"hostPath": "/lib/x", "containerPath": "/x/y", "options": ["ro", "nosuid"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "a"], "timeout": 5},
                          {"hookName": "poststop", "path": "/bin/hook"}]}},
            {"name": "b"}]}"#;
        fs::write(dir.path().join("v.json"), json).unwrap();
        let yaml = "cdiVersion: 0.5.0\nkind: v.io/net\ndevices:\n- name: '0'\n  containerEdits:\n    env: [NET=0]\n";
        fs::write(dir.path().join("net.yaml"), yaml).unwrap();
        fs::write(dir.path().join("readme.txt"), "nothing").unwrap();
        let at = [dir.path().to_owned(), dir.path().join("none")];
        let made = added(&at, &["v.io/gpu=a", "v.io/gpu=b", "v.io/net=0", "v.io/gpu=a"]).unwrap();
        let env: Vec<String> = made.env.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        assert_eq!(env, ["ALL:1", "A:x=y", "NET:0"]);
        assert_eq!(made.user.additional_gids, [5]);
        let [a, b] = &made.devices[..] else { panic!("{:?}", made.devices) };
        assert_eq!((a.host_path.to_str(), a.permissions.as_str(), a.number), (Some("/dev/null"), "rw", None));
        assert_eq!(b.number, Some(DeviceNumber { is_block: false, major: 1, minor: 5 }));
        assert_eq!((b.mode, b.uid, b.gid), (Some(0o600), Some(7), None));
        let options = ["ro", "nosuid", "rbind"].map(str::to_owned).to_vec();
        assert_eq!(made.mounts[0].source, MountSource::Oci { kind: String::new(), path: "/lib/x".into(), options });
        assert!(made.mounts[0].read_only);
        assert_eq!(made.hooks.len(), 1);
        assert_eq!(added(&at, &[]).unwrap(), spec());
    }

    #[test]
    fn later_directories_win_and_neighbours_cancel_out() {
        let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = |value: &str| {
            format!(r#"{{"kind": "v.io/c", "devices": [{{"name": "d", "containerEdits": {{"env": ["D={value}"]}}}}]}}"#)
        };
        fs::write(low.path().join("1.json"), file("low")).unwrap();
        fs::write(low.path().join("2.json"), file("low")).unwrap();
        let at = [low.path().to_owned(), high.path().to_owned()];
        let why = added(&at, &["v.io/c=d"]).unwrap_err();
        assert_eq!(why, "CDI device injection failed: unresolvable CDI devices v.io/c=d");
        fs::write(high.path().join("1.json"), file("high")).unwrap();
        assert_eq!(added(&at, &["v.io/c=d"]).unwrap().env, [("D".to_owned(), "high".to_owned())]);
    }

    #[test]
    fn what_cannot_be_understood() {
        let dir = tempfile::tempdir().unwrap();
        let at = [dir.path().to_owned()];
        let path = dir.path().join("d.json");
        for file in [
            "",
            "{",
            "[]",
            r#"{"kind": "no class", "devices": [{"name": "d"}]}"#,
            r#"{"kind": "v.io/c", "devices": 1}"#,
        ] {
            fs::write(&path, file).unwrap();
            assert!(added(&at, &["v.io/c=d"]).unwrap_err().contains("unresolvable"), "{file}");
        }
        fs::write(&path, vec![b' '; MAX_FILE as usize + 1]).unwrap();
        assert!(added(&at, &["v.io/c=d"]).is_err());
        for (edits, part) in [
            (r#"{"env": ["noequals"]}"#, "has no name or no value"),
            (r#"{"deviceNodes": [{"path": "dev/x"}]}"#, "not an absolute path"),
            (r#"{"deviceNodes": [{"path": "/dev/x", "type": "p"}]}"#, "not supported"),
            (r#"{"deviceNodes": [{"path": "/dev/x", "permissions": "x"}]}"#, "not any of rwm"),
            (r#"{"mounts": [{"hostPath": "x", "containerPath": "/y"}]}"#, "not an absolute path"),
            (r#"{"hooks": [{"hookName": "sometime", "path": "/x"}]}"#, "is not known"),
        ] {
            let file = format!(r#"{{"kind": "v.io/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#);
            fs::write(&path, file).unwrap();
            let why = added(&at, &["v.io/c=d"]).unwrap_err();
            assert!(why.contains(part) && why.contains("v.io/c=d"), "{edits}: {why}");
        }
    }
}
