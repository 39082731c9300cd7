//! From a [`ContainerSpec`] to the OCI runtime specification libcontainer works by. Pure, except for looking at host devices
//! and at our own capabilities.
//!
//! Limits, OOM score and rlimits are not part of it: the first are written by [`crate::cgroup`], the others set by the process that
//! creates the container, because what may be set depends on its privileges.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime as oci;

use crate::capabilities;
use crate::error::{Error, Result};
use crate::paths::ContainerPaths;
use crate::seccomp;
use crate::spec::{ContainerSpec, Device, HookStage, Mount, MountSource, ProcMount, Propagation, SandboxSpec, Seccomp};

/// `PATH` of a command whose image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Devices that every container may use whether or not it has nodes for them, by major and minor number. Containers have
/// nodes for all but the last, which takes a capability to be of use.
const DEFAULT_DEVICES: [(i64, Option<i64>); 10] = [
    (1, Some(3)),    // null
    (1, Some(5)),    // zero
    (1, Some(7)),    // full
    (1, Some(8)),    // random
    (1, Some(9)),    // urandom
    (5, Some(0)),    // tty
    (5, Some(1)),    // console
    (5, Some(2)),    // ptmx
    (136, None),     // pts
    (10, Some(200)), // net/tun
];

/// What a container shares with its sandbox.
#[derive(Debug, Clone)]
pub(crate) struct SandboxNamespaces {
    /// Pid of the monitor, which lives in the sandbox's IPC and UTS namespaces.
    pub(crate) monitor_pid: i32,
    /// Pid of the first process of the shared PID namespace, if there is one.
    pub(crate) pause_pid: Option<i32>,
}

/// Builds the OCI specification of a container. `cgroup` is its full cgroup path.
pub(crate) fn build(
    sandbox: &SandboxSpec,
    namespaces: &SandboxNamespaces,
    spec: &ContainerSpec,
    paths: &ContainerPaths,
    cgroup: &str,
) -> Result<oci::Spec> {
    if spec.args.is_empty() {
        return Err(Error::InvalidSpec("no command specified".to_owned()));
    }
    let mut root = oci::Root::default();
    root.set_path(paths.rootfs());
    // Around a WebAssembly program nothing is to be written; what it may write is mounted below.
    root.set_readonly(Some(spec.security.read_only_rootfs || spec.wasm.is_some()));

    let mut result = oci::Spec::default();
    result.set_version("1.0.2".to_owned());
    result.set_root(Some(root));
    result.set_hostname(None);
    result.set_mounts(Some(match spec.wasm {
        Some(_) => wasm_mounts(spec),
        None => mounts(sandbox, spec, paths)?,
    }));
    result.set_annotations(Some(spec.annotations.clone().into_iter().collect()));
    let capability_names = match spec.wasm {
        Some(_) => Vec::new(),
        None => capabilities::names(&spec.security)?,
    };
    result.set_hooks(if spec.wasm.is_some() { None } else { hooks(spec) });
    result.set_process(Some(process(sandbox, spec, &capability_names)));
    result.set_linux(Some(linux(sandbox, namespaces, spec, &capability_names, cgroup)?));
    Ok(result)
}

fn process(sandbox: &SandboxSpec, spec: &ContainerSpec, capability_names: &[String]) -> oci::Process {
    let mut user = oci::User::default();
    user.set_uid(spec.user.uid);
    user.set_gid(spec.user.gid);
    user.set_additional_gids(Some(spec.supplementary_groups()).filter(|groups| !groups.is_empty()));

    let held = capabilities::effective(capability_names);
    let mut sets = oci::LinuxCapabilities::default();
    sets.set_bounding(Some(held.clone()));
    sets.set_effective(Some(held.clone()));
    sets.set_permitted(Some(held));
    sets.set_inheritable(None);
    sets.set_ambient(None);

    let mut process = oci::Process::default();
    process.set_terminal(Some(spec.tty));
    process.set_user(user);
    process.set_args(Some(spec.args.clone()));
    // A WebAssembly program gets its environment and its directories from the engine.
    process.set_env(Some(if spec.wasm.is_some() { Vec::new() } else { environment(sandbox, spec) }));
    let root = spec.wasm.is_some() || spec.cwd.as_os_str().is_empty();
    process.set_cwd(if root { PathBuf::from("/") } else { spec.cwd.clone() });
    process.set_capabilities(Some(sets));
    process.set_rlimits(None);
    // "false" would make libcontainer load the filter after it has given up the privilege to do so.
    process.set_no_new_privileges((spec.security.no_new_privileges || spec.wasm.is_some()).then_some(true));
    process
}

/// The environment, each name once (the last one wins), completed with what every program expects.
fn environment(sandbox: &SandboxSpec, spec: &ContainerSpec) -> Vec<String> {
    let mut env: Vec<(String, String)> = Vec::new();
    let home = spec.user.home.clone().unwrap_or_else(|| "/".to_owned());
    env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    env.push(("HOME".to_owned(), home));
    if let Some(hostname) = &sandbox.hostname {
        env.push(("HOSTNAME".to_owned(), hostname.clone()));
    }
    if spec.tty {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    for (name, value) in &spec.env {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn linux(
    sandbox: &SandboxSpec,
    namespaces: &SandboxNamespaces,
    spec: &ContainerSpec,
    capability_names: &[String],
    cgroup: &str,
) -> Result<oci::Linux> {
    let (devices, rules) = match spec.wasm {
        // The nodes that every container has, and no further ones.
        Some(_) => (Vec::new(), std::iter::once(rule(false, None, "rwm")).chain(default_rules()).collect()),
        None => devices(spec)?,
    };
    let mut resources = oci::LinuxResources::default();
    resources.set_devices(Some(rules));

    let mut linux = oci::Linux::default();
    linux.set_namespaces(Some(namespace_list(sandbox, namespaces)));
    linux.set_cgroups_path(Some(PathBuf::from(cgroup)));
    linux.set_resources(Some(resources));
    linux.set_devices(Some(devices));
    linux.set_uid_mappings(None);
    linux.set_gid_mappings(None);
    linux.set_seccomp(seccomp_profile(spec, capability_names)?);
    let bidirectional =
        |mount: &Mount| matches!(mount.source, MountSource::Bind { propagation: Propagation::Bidirectional, .. });
    linux.set_rootfs_propagation(spec.mounts.iter().any(bidirectional).then(|| "shared".to_owned()));
    let protected =
        spec.wasm.is_some() || (!spec.security.privileged && spec.security.proc_mount == ProcMount::Default);
    let list = |paths: &[&str]| protected.then(|| paths.iter().map(|path| (*path).to_owned()).collect());
    linux.set_masked_paths(list(&MASKED_PATHS));
    linux.set_readonly_paths(list(&READ_ONLY_PATHS));
    Ok(linux)
}

fn seccomp_profile(spec: &ContainerSpec, capability_names: &[String]) -> Result<Option<oci::LinuxSeccomp>> {
    if spec.wasm.is_some() {
        return Ok(Some(seccomp::wasm_profile()));
    }
    if spec.security.privileged {
        return Ok(None);
    }
    match &spec.security.seccomp {
        Seccomp::RuntimeDefault => Ok(Some(seccomp::default_profile(capability_names))),
        Seccomp::Unconfined => Ok(None),
        Seccomp::Localhost(profile) => serde_json::from_value(profile.clone())
            .map(Some)
            .map_err(|err| Error::InvalidSpec(format!("seccomp profile: {err}"))),
    }
}

fn namespace_list(sandbox: &SandboxSpec, namespaces: &SandboxNamespaces) -> Vec<oci::LinuxNamespace> {
    use oci::LinuxNamespaceType as Type;
    let of_process = |pid: i32, name: &str| Some(PathBuf::from(format!("/proc/{pid}/ns/{name}")));
    let mut list = vec![namespace(Type::Mount, None), namespace(Type::Cgroup, None)];
    if !sandbox.host_ipc {
        list.push(namespace(Type::Ipc, of_process(namespaces.monitor_pid, "ipc")));
    }
    if sandbox.hostname.is_some() {
        list.push(namespace(Type::Uts, of_process(namespaces.monitor_pid, "uts")));
    }
    if let Some(netns) = &sandbox.netns {
        list.push(namespace(Type::Network, Some(netns.clone())));
    }
    match (sandbox.host_pid, namespaces.pause_pid) {
        (true, _) => {}
        (false, Some(pause)) => list.push(namespace(Type::Pid, of_process(pause, "pid"))),
        (false, None) => list.push(namespace(Type::Pid, None)),
    }
    list
}

fn namespace(kind: oci::LinuxNamespaceType, path: Option<PathBuf>) -> oci::LinuxNamespace {
    let mut namespace = oci::LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace.set_path(path);
    namespace
}

fn mounts(sandbox: &SandboxSpec, spec: &ContainerSpec, paths: &ContainerPaths) -> Result<Vec<oci::Mount>> {
    let writable = if spec.security.privileged { "rw" } else { "ro" };
    let shm = if sandbox.host_ipc { PathBuf::from("/dev/shm") } else { paths.sandbox().shm() };
    let base = ["nosuid", "noexec", "nodev"];
    let mut list = vec![
        mount("/proc", "proc", "proc", &base),
        device_directory(),
        terminals(),
        mount("/dev/mqueue", "mqueue", "mqueue", &base),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", writable]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", writable]),
        mount("/dev/shm", "bind", shm, &["rbind", "nosuid", "noexec", "nodev", "rw"]),
    ];
    for (index, wanted) in spec.mounts.iter().enumerate() {
        if !wanted.destination.is_absolute() {
            return Err(Error::InvalidSpec(format!("mount destination {:?} is not absolute", wanted.destination)));
        }
        // A mount of the pod replaces the usual one at the same place.
        list.retain(|usual| usual.destination() != &wanted.destination);
        list.push(user_mount(wanted, index, paths));
    }
    Ok(list)
}

/// What the process around a WebAssembly program needs of the kernel. All else is mounted already, by the process that creates the
/// container.
fn wasm_mounts(spec: &ContainerSpec) -> Vec<oci::Mount> {
    let mut list = vec![mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]), device_directory()];
    if spec.tty {
        list.push(terminals());
    }
    list
}

fn device_directory() -> oci::Mount {
    mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])
}

fn terminals() -> oci::Mount {
    let options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    mount("/dev/pts", "devpts", "devpts", &options)
}

fn user_mount(wanted: &Mount, index: usize, paths: &ContainerPaths) -> oci::Mount {
    let access = if wanted.read_only { "ro" } else { "rw" };
    match &wanted.source {
        MountSource::Bind { path, propagation: Propagation::Private } => {
            mount(&wanted.destination, "bind", path, &["rbind", access])
        }
        // The helper that creates the container has put a copy with the right propagation there.
        MountSource::Bind { .. } => mount(&wanted.destination, "bind", paths.staged_mount(index), &["rbind", access]),
        MountSource::Oci { kind, path, options } => {
            let kind = if kind.is_empty() { "bind" } else { kind };
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            mount(&wanted.destination, kind, path, &options)
        }
        MountSource::Tmpfs { size, mode } => {
            let mut options =
                vec!["nosuid".to_owned(), "nodev".to_owned(), access.to_owned(), format!("mode={mode:o}")];
            options.extend(size.map(|bytes| format!("size={bytes}")));
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            mount(&wanted.destination, "tmpfs", "tmpfs", &options)
        }
    }
}

fn mount(destination: impl Into<PathBuf>, kind: &str, source: impl Into<PathBuf>, options: &[&str]) -> oci::Mount {
    let mut mount = oci::Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// The device nodes to make, and the rules of the device cgroup.
fn devices(spec: &ContainerSpec) -> Result<(Vec<oci::LinuxDevice>, Vec<oci::LinuxDeviceCgroup>)> {
    if spec.security.privileged {
        let mut nodes = host_devices();
        for wanted in &spec.devices {
            let node = wanted_node(wanted).map_err(Error::io("cannot use device", &wanted.host_path))?;
            nodes.retain(|known| known.path() != node.path());
            nodes.push(node);
        }
        return Ok((nodes, vec![rule(true, None, "rwm")]));
    }
    let mut rules = vec![rule(false, None, "rwm")];
    rules.extend(default_rules());
    let mut nodes = Vec::new();
    for wanted in &spec.devices {
        let node = wanted_node(wanted).map_err(Error::io("cannot use device", &wanted.host_path))?;
        rules.push(rule(true, Some(&node), &wanted.permissions));
        nodes.push(node);
    }
    Ok((nodes, rules))
}

/// The device rules in a specification that [`build`] has made.
pub(crate) fn device_rules(spec: &oci::Spec) -> &[oci::LinuxDeviceCgroup] {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default()
}

/// Making any device node is allowed (it takes a capability, and a node alone opens nothing), and using the usual ones.
/// libcontainer adds the same rules where it is the one to write them, with cgroup version 1.
fn default_rules() -> impl Iterator<Item = oci::LinuxDeviceCgroup> {
    let make = [oci::LinuxDeviceType::C, oci::LinuxDeviceType::B].into_iter().map(|kind| (kind, None, None, "m"));
    let usual = DEFAULT_DEVICES.into_iter().map(|(major, minor)| (oci::LinuxDeviceType::C, Some(major), minor, "rwm"));
    make.chain(usual).map(|(kind, major, minor, access)| {
        let mut rule = rule(true, None, access);
        rule.set_typ(Some(kind));
        rule.set_major(major);
        rule.set_minor(minor);
        rule
    })
}

fn rule(allow: bool, node: Option<&oci::LinuxDevice>, access: &str) -> oci::LinuxDeviceCgroup {
    let mut rule = oci::LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_access(Some(access.to_owned()));
    if let Some(node) = node {
        rule.set_typ(Some(node.typ()));
        rule.set_major(Some(node.major()));
        rule.set_minor(Some(node.minor()));
    }
    rule
}

fn wanted_node(wanted: &Device) -> std::io::Result<oci::LinuxDevice> {
    let mut node = match wanted.number {
        None => device_node(&wanted.host_path, &wanted.container_path)?,
        Some(number) => {
            let mut node = oci::LinuxDevice::default();
            node.set_path(wanted.container_path.clone());
            node.set_typ(if number.is_block { oci::LinuxDeviceType::B } else { oci::LinuxDeviceType::C });
            node.set_major(number.major);
            node.set_minor(number.minor);
            node.set_file_mode(Some(0o666));
            node.set_uid(Some(0));
            node.set_gid(Some(0));
            node
        }
    };
    if wanted.mode.is_some() {
        node.set_file_mode(wanted.mode.map(|mode| mode & 0o7777));
    }
    if wanted.uid.is_some() {
        node.set_uid(wanted.uid);
    }
    if wanted.gid.is_some() {
        node.set_gid(wanted.gid);
    }
    Ok(node)
}

fn hooks(spec: &ContainerSpec) -> Option<oci::Hooks> {
    let of = |stage: HookStage| -> Option<Vec<oci::Hook>> {
        let all = spec.hooks.iter().filter(|hook| hook.stage == stage);
        let all: Vec<oci::Hook> = all
            .map(|wanted| {
                let mut hook = oci::Hook::default();
                hook.set_path(wanted.path.clone());
                hook.set_args((!wanted.args.is_empty()).then(|| wanted.args.clone()));
                hook.set_env(Some(wanted.env.clone()));
                hook.set_timeout(wanted.timeout);
                hook
            })
            .collect();
        (!all.is_empty()).then_some(all)
    };
    if spec.hooks.is_empty() {
        return None;
    }
    let mut hooks = oci::Hooks::default();
    hooks.set_create_runtime(of(HookStage::CreateRuntime));
    hooks.set_create_container(of(HookStage::CreateContainer));
    hooks.set_start_container(of(HookStage::StartContainer));
    hooks.set_prestart(of(HookStage::Prestart));
    Some(hooks)
}

fn device_node(host_path: &Path, container_path: &Path) -> std::io::Result<oci::LinuxDevice> {
    let metadata = fs::metadata(host_path)?;
    let kind = metadata.file_type();
    let kind = if kind.is_char_device() {
        oci::LinuxDeviceType::C
    } else if kind.is_block_device() {
        oci::LinuxDeviceType::B
    } else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a device node"));
    };
    let mut node = oci::LinuxDevice::default();
    node.set_path(container_path.to_owned());
    node.set_typ(kind);
    node.set_major(nix::sys::stat::major(metadata.rdev()).cast_signed());
    node.set_minor(nix::sys::stat::minor(metadata.rdev()).cast_signed());
    node.set_file_mode(Some(metadata.mode() & 0o777));
    node.set_uid(Some(metadata.uid()));
    node.set_gid(Some(metadata.gid()));
    Ok(node)
}

/// Every device node below the host's `/dev`, for privileged containers. Those a container has its own of are left out.
fn host_devices() -> Vec<oci::LinuxDevice> {
    let mut nodes = HashMap::new();
    collect_devices(Path::new("/dev"), &mut nodes);
    nodes.into_values().collect()
}

fn collect_devices(directory: &Path, nodes: &mut HashMap<PathBuf, oci::LinuxDevice>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() {
            if !matches!(entry.file_name().to_str(), Some("pts" | "shm" | "fd" | "mqueue" | ".udev")) {
                collect_devices(&path, nodes);
            }
        } else if (kind.is_char_device() || kind.is_block_device())
            && !matches!(path.to_str(), Some("/dev/console" | "/dev/ptmx"))
            && let Ok(node) = device_node(&path, &path)
        {
            nodes.insert(path, node);
        }
    }
}
