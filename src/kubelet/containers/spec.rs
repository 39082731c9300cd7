//! Describes a container to the runtime.

use super::{Before, Labels, qos, security, wasm};
use crate::env::{self, EnvError};
use crate::images::{self, ProgramError};
use crate::pods::runtime_class::{self, Handler, RuntimeClassError};
use crate::pods::shared::PodShared;
use crate::volumes::subpath::{self, SubPathError};
use edge_runtime::spec::{Device, Mount, MountSource, Propagation};
use edge_runtime::{ContainerSpec, Isolation, WasmSpec, spec::LogRotation};
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use nix::sys::signal::Signal;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where a container leaves its last words unless it says otherwise.
const MESSAGE_PATH: &str = "/dev/termination-log";
const SIGTERM: i32 = 15;

/// Why a container cannot be described.
#[derive(Debug, thiserror::Error)]
pub(super) enum DescribeError {
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Security(#[from] security::SecurityError),
    #[error("no command specified")]
    NoCommand,
    #[error("image {0} is gone")]
    NoImage(String),
    #[error("image {0} holds native programs, and the pod's RuntimeClass is for WebAssembly")]
    NotWasm(String),
    #[error(transparent)]
    Wasm(#[from] wasm::WasmError),
    #[error(transparent)]
    RuntimeClass(#[from] RuntimeClassError),
    #[error("cannot use the program of image {image}")]
    Program {
        image: String,
        #[source]
        source: ProgramError,
    },
    #[error("{0}")]
    Devices(String),
    #[error("{0}")]
    DevicePlugin(String),
    #[error(transparent)]
    Cdi(#[from] crate::devices::cdi::CdiError),
    #[error("volume \"{0}\" not found")]
    NoVolume(String),
    #[error("path {path:?} is mounted on {mount:?} but it is not a shared mount")]
    NotShared { path: PathBuf, mount: PathBuf },
    #[error("failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\"")]
    SubPath {
        volume: String,
        container: String,
        #[source]
        source: SubPathError,
    },
    #[error("cannot make {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("internal task failed")]
    Worker(#[source] tokio::task::JoinError),
}

impl DescribeError {
    /// The waiting reason in the container's status.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Env(_)
            | Self::Security(_)
            | Self::SubPath { .. }
            | Self::NoVolume(_)
            | Self::DevicePlugin(_)
            | Self::Wasm(_)
            | Self::NotWasm(_) => "CreateContainerConfigError",
            _ => "CreateContainerError",
        }
    }
}

/// Everything the runtime needs to know.
pub(super) async fn describe(
    shared: &PodShared,
    pod: &Pod,
    container: &Container,
    id: &str,
    before: Before,
) -> Result<ContainerSpec, DescribeError> {
    let cx = &shared.cx;
    let name = container.image.clone().unwrap_or_default();
    let handler = runtime_class::handler(cx, pod).await?;
    let image = name.parse().ok().and_then(|reference| images::here(cx, &reference, handler.choice()));
    let image = image.ok_or_else(|| DescribeError::NoImage(name.clone()))?;
    let is_wasm = image.kind != edge_image::ImageKind::Container;
    if handler != Handler::ByImage && !is_wasm {
        return Err(DescribeError::NotWasm(name));
    }
    if is_wasm {
        wasm::check(pod, container)?;
    }
    let isolation = match handler {
        Handler::WasmDense => {
            wasm::check_dense(pod, container)?;
            Isolation::Dense
        }
        Handler::Wasm | Handler::ByImage => Isolation::Process,
    };
    let facts = cx.facts(&shared.addresses());
    let mut variables = env::variables(shared, pod, container, &facts).await?;
    let of_plugins = cx.device_plugins.of_container(pod, container).await.map_err(DescribeError::DevicePlugin)?;
    of_plugins.add_variables(&mut variables);
    let mut args = command(container, &image.config.entrypoint, &image.config.cmd, &variables);
    let program = match is_wasm {
        true => {
            let init = pod.spec.as_ref().and_then(|s| s.init_containers.as_ref());
            let init = init.is_some_and(|all| all.iter().any(|c| c.name == container.name));
            let program = images::Program {
                words: args.first().cloned(),
                working_dir: container.working_dir.clone(),
                told_about: Some(images::container_reference(pod, &container.name, init)),
            };
            let program = images::compile(cx, &image, program).await;
            Some(program.map_err(|source| DescribeError::Program { image: name.clone(), source })?)
        }
        false => None,
    };
    if is_wasm && container.command.as_ref().is_none_or(Vec::is_empty) && image.config.entrypoint.is_empty() {
        // what is given are arguments then
        args.insert(0, wasm::name(&name));
    }
    if args.is_empty() {
        return Err(DescribeError::NoCommand);
    }
    let files = Files::new(shared, container, id, before.restarts);
    // the image lists its layers from the top, the runtime wants them from the bottom
    let layers: Vec<PathBuf> = image.lower_dirs.iter().rev().cloned().collect();
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let hostname = if host_network { cx.config.node_name.clone() } else { shared.names.hostname.clone() };
    let labels = Labels {
        name: container.name.clone(),
        restarts: before.restarts,
        last: before.last,
        backoff: before.backoff,
        spec_image: name,
        image: before.image,
        message_file: files.message.clone(),
        message_from_log: container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
    };
    let plan = MountPlan {
        volumes: shared.ready_volumes(),
        etc: shared.etc_dir(),
        subpaths: cx.config.pod_dir(&shared.uid).join("volume-subpaths"),
        sub_paths: sub_paths(container, &variables),
        files: files.clone(),
    };
    let (pod, container) = (pod.clone(), container.clone());
    let (profiles, memory) = (cx.config.agent_dir.join("seccomp"), cx.machine.memory);
    let mut image_config = image.config.clone();
    if is_wasm && (image_config.user.is_empty() || isolation == Isolation::Dense) {
        wasm::USER.clone_into(&mut image_config.user);
    }
    let mut devices = cx.devices.of_container(&pod, &container).map_err(DescribeError::Devices)?;
    devices.extend(of_plugins.cdi.iter().cloned());
    let cdi_dirs = cx.config.cdi_dirs.clone();
    let listen = wasm::listen(&shared.addresses(), &container);
    let id = id.to_owned();
    tokio::task::spawn_blocking(move || {
        let user = security::user(&pod, &container, &image_config.user, &layers)?;
        let home = user.home.clone().unwrap_or_else(|| "/".to_owned());
        let (mounts, block_devices) = (plan.mounts(&container)?, plan.devices(&container)?);
        let mut spec = ContainerSpec::new(&id, layers, args, files.log);
        spec.cwd = PathBuf::from(container.working_dir.clone().unwrap_or(image_config.working_dir));
        spec.env = match is_wasm {
            true => variables.program(&image_config.env, &hostname, &spec.cwd),
            false => variables.process(&image_config.env, &hostname, &home),
        };
        spec.user = user;
        spec.fs_group = security::fs_group(&pod);
        spec.security = security::security(&pod, &container, &profiles)?;
        spec.mounts = mounts;
        spec.devices = block_devices;
        spec.tty = container.tty.unwrap_or(false);
        spec.stdin = container.stdin.unwrap_or(false);
        spec.stdin_once = container.stdin_once.unwrap_or(false);
        spec.resources = qos::container_resources(&container);
        spec.oom_score_adj = qos::oom_score_adj(&pod, &container, memory);
        spec.wasm = program.map(|program| WasmSpec {
            code: program.path,
            world: program.world,
            listen,
            memory: spec.resources.memory_limit.and_then(|limit| u64::try_from(limit).ok()),
            isolation,
        });
        let own_signal = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
        spec.stop_signal = own_signal.or(image_config.stop_signal.as_deref()).map_or(SIGTERM, signal);
        spec.log_rotation = LogRotation::default();
        // plain data always serializes
        spec.labels = serde_json::to_value(labels).unwrap_or_default();
        of_plugins.add(&mut spec).map_err(DescribeError::DevicePlugin)?;
        crate::devices::cdi::add(&cdi_dirs, &devices, &mut spec)?;
        Ok(spec)
    })
    .await
    .map_err(DescribeError::Worker)?
}

/// The command line: the container's words, else the image's.
fn command(container: &Container, entrypoint: &[String], cmd: &[String], variables: &env::Variables) -> Vec<String> {
    let own = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|word| variables.expand(word)).collect()
    };
    let (command, args) = (own(&container.command), own(&container.args));
    match (command.is_empty(), args.is_empty()) {
        (false, _) => command.into_iter().chain(args).collect(),
        (true, false) => entrypoint.iter().cloned().chain(args).collect(),
        (true, true) => entrypoint.iter().chain(cmd).cloned().collect(),
    }
}

/// A signal by name or number; SIGTERM when it is neither.
fn signal(name: &str) -> i32 {
    let upper = name.to_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse::<i32>().ok().filter(|n| (1..=64).contains(n)).unwrap_or_else(|| {
        let real_time =
            |base: i32, rest: &str| rest.trim_start_matches(['+', '-']).parse::<i32>().ok().map(|n| base + n);
        if let Some(rest) = full.strip_prefix("SIGRTMIN") {
            return real_time(34, rest).unwrap_or(34);
        }
        if let Some(rest) = full.strip_prefix("SIGRTMAX") {
            return rest.strip_prefix('-').and_then(|n| n.parse::<i32>().ok()).map_or(64, |n| 64 - n);
        }
        full.parse::<Signal>().map_or(SIGTERM, |s| s as i32)
    })
}

/// The subPath of each mount, expanded.
fn sub_paths(container: &Container, variables: &env::Variables) -> Vec<Option<String>> {
    let of = |mount: &VolumeMount| {
        let expanded = mount.sub_path_expr.as_deref().filter(|p| !p.is_empty()).map(|p| variables.expand(p));
        expanded.or_else(|| mount.sub_path.clone()).filter(|p| !p.is_empty())
    };
    container.volume_mounts.iter().flatten().map(of).collect()
}

/// Files of one start of a container.
#[derive(Clone)]
struct Files {
    log: PathBuf,
    message: PathBuf,
}

impl Files {
    fn new(shared: &PodShared, container: &Container, id: &str, restarts: i32) -> Self {
        let short: String = id.chars().take(8).collect();
        Self {
            log: shared.log_dir().join(&container.name).join(format!("{restarts}.log")),
            message: shared.cx.config.pod_dir(&shared.uid).join("containers").join(&container.name).join(short),
        }
    }

    /// Makes the directories and the empty message file; messages of older starts go.
    fn prepare(&self) -> Result<(), DescribeError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DescribeError::Io { path, source }
        };
        let make = |path: &Path| -> io::Result<()> {
            edge_sys::fsutil::remove_dir_all_if_exists(path)?;
            fs::create_dir_all(path)
        };
        if let Some(parent) = self.message.parent() {
            make(parent).map_err(failed(parent))?;
        }
        edge_sys::fsutil::write_atomic_volatile(&self.message, b"", 0o666).map_err(failed(&self.message))?;
        let logs = self.log.parent().unwrap_or(&self.log);
        fs::create_dir_all(logs).map_err(failed(logs))
    }
}

/// What the mounts of a container are made of.
struct MountPlan {
    volumes: crate::volumes::ReadyVolumes,
    etc: PathBuf,
    subpaths: PathBuf,
    sub_paths: Vec<Option<String>>,
    files: Files,
}

fn bind(path: PathBuf, destination: &str, read_only: bool, propagation: Propagation) -> Mount {
    let source = MountSource::Bind { path, propagation };
    Mount { destination: PathBuf::from(destination), source, read_only }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

impl MountPlan {
    /// The block devices that the container sees.
    fn devices(&self, container: &Container) -> Result<Vec<Device>, DescribeError> {
        let one = |device: &k8s_openapi::api::core::v1::VolumeDevice| {
            let volume = self.volumes.get(&device.name).filter(|volume| volume.is_device);
            let volume = volume.ok_or_else(|| DescribeError::NoVolume(device.name.clone()))?;
            Ok(Device {
                host_path: volume.path.clone(),
                container_path: PathBuf::from(absolute(&device.device_path)),
                permissions: if volume.read_only { "r" } else { "mrw" }.to_owned(),
                ..Device::default()
            })
        };
        container.volume_devices.iter().flatten().map(one).collect()
    }

    /// Makes what has to be made and lists the mounts, outer directories before what lies in them. Blocking.
    fn mounts(&self, container: &Container) -> Result<Vec<Mount>, DescribeError> {
        self.files.prepare()?;
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = self.volumes.get(&mount.name).ok_or_else(|| DescribeError::NoVolume(mount.name.clone()))?;
            let mut path = volume.path.clone();
            if let Some(sub_path) = self.sub_paths.get(index).and_then(Option::as_ref) {
                let target = self.subpaths.join(&mount.name).join(&container.name).join(index.to_string());
                subpath::bind(&volume.path, sub_path, &target).map_err(|source| DescribeError::SubPath {
                    volume: mount.name.clone(),
                    container: container.name.clone(),
                    source,
                })?;
                path = target;
            }
            let propagation = match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            };
            if propagation == Propagation::Bidirectional {
                let unshared = crate::volumes::local::unshared_mount(&path);
                let unshared = unshared.map_err(|source| DescribeError::Io { path: path.clone(), source })?;
                if let Some(mount) = unshared {
                    return Err(DescribeError::NotShared { path, mount });
                }
            }
            let read_only = mount.read_only.unwrap_or(false) || volume.read_only;
            mounts.push(bind(path, &absolute(&mount.mount_path), read_only, propagation));
        }
        let read_only_root =
            container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem).unwrap_or(false);
        let taken = |path: &str| container.volume_mounts.iter().flatten().any(|m| absolute(&m.mount_path) == path);
        for (name, destination) in
            [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")]
        {
            let path = self.etc.join(name);
            if !taken(destination) && path.exists() {
                mounts.push(bind(path, destination, read_only_root, Propagation::Private));
            }
        }
        let message = container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or(MESSAGE_PATH);
        mounts.push(bind(self.files.message.clone(), &absolute(message), false, Propagation::Private));
        mounts.sort_by_key(|m| m.destination.components().count());
        Ok(mounts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn commands_and_arguments_replace_those_of_the_image() {
        let words = |list: &[&str]| -> Vec<String> { list.iter().map(|w| (*w).to_owned()).collect() };
        let variables = env::Variables(BTreeMap::from([("A".to_owned(), "1".to_owned())]));
        let of = |command: &[&str], args: &[&str]| {
            let container =
                Container { command: Some(words(command)), args: Some(words(args)), ..Container::default() };
            super::command(&container, &words(&["entry", "$(A)"]), &words(&["cmd"]), &variables).join(" ")
        };
        assert_eq!(of(&[], &[]), "entry $(A) cmd");
        assert_eq!(of(&[], &["x", "$(A)"]), "entry $(A) x 1");
        assert_eq!(of(&["c", "$(B)"], &[]), "c $(B)");
        assert_eq!(of(&["c"], &["x"]), "c x");
    }

    #[test]
    fn signals_by_name_and_number() {
        for (name, number) in [
            ("SIGINT", 2),
            ("int", 2),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("bogus", 15),
            ("0", 15),
            ("999", 15),
        ] {
            assert_eq!(signal(name), number, "{name}");
        }
    }
}
