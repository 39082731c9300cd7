//! What a caller asks for: plain descriptions of sandboxes, containers and commands, free of Kubernetes types.
//!
//! The kubelet builds them; they are stored as JSON in the state directory, so that a pod is recognised after a restart.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A pod's sandbox: the namespaces and the cgroup its containers share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Unique on this node; the pod's UID.
    pub id: String,
    /// Host name inside the pod. `None` keeps the host's UTS namespace (as pods with host network do).
    pub hostname: Option<String>,
    /// File of the pod's network namespace; `None` is the host's network.
    pub netns: Option<PathBuf>,
    /// Share the host's IPC namespace and `/dev/shm`.
    pub host_ipc: bool,
    /// Share the host's PID namespace.
    pub host_pid: bool,
    /// One PID namespace for all containers of the pod (ignored with `host_pid`).
    pub share_process_namespace: bool,
    /// Namespaced kernel parameters, such as `net.ipv4.ip_local_port_range`, set before any container starts.
    pub sysctls: BTreeMap<String, String>,
    /// Cgroup of the pod below the runtime's cgroup root, such as `kubepods/burstable/pod<uid>`. Created with the sandbox,
    /// removed (with everything in it) with the sandbox.
    pub cgroup: String,
    /// Limits of the pod's cgroup.
    pub resources: Resources,
    /// Anything the caller wants back from [`crate::PodRuntime::adopt`]. Not looked at.
    pub labels: serde_json::Value,
}

/// One container of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique on this node; a new one for every attempt. Letters, digits, `_`, `-` and `.`, at most 128 of them.
    pub id: String,
    /// The image's unpacked layers, from the bottom to the top; only a WebAssembly program can do without. They are never written to.
    pub layers: Vec<PathBuf>,
    /// The command, never empty. The first word is looked up in the container's `PATH` when it holds no slash.
    pub args: Vec<String>,
    /// Environment as name and value, in order; a later entry wins over an earlier one of the same name.
    pub env: Vec<(String, String)>,
    /// Working directory inside the container; created when missing. Empty means `/`.
    pub cwd: PathBuf,
    /// Whom the command runs as.
    pub user: User,
    /// Group that owns the pod's volumes; the command gets it as a supplementary group.
    pub fs_group: Option<u32>,
    /// Capabilities, privileges, masked paths, seccomp.
    pub security: Security,
    /// Bind and tmpfs mounts, in the order they are made.
    pub mounts: Vec<Mount>,
    /// Device nodes of the host that the container sees and may use.
    pub devices: Vec<Device>,
    /// Programs of the host that are run while the container is made. Not for WebAssembly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Give the command a terminal; stdout and stderr then arrive as one stream.
    pub tty: bool,
    /// Keep a stdin open to which [`crate::PodRuntime::attach`] connects; without it stdin is `/dev/null`.
    pub stdin: bool,
    /// Close stdin for good when the first attached client closes its end.
    pub stdin_once: bool,
    /// Limits of the container's cgroup.
    pub resources: Resources,
    /// `oom_score_adj` of the command, -1000 to 1000. Raised to what this process may set.
    pub oom_score_adj: i32,
    /// Resource limits of the command. Lowered to what this process may set.
    pub rlimits: Vec<Rlimit>,
    /// Annotations of the OCI bundle.
    pub annotations: BTreeMap<String, String>,
    /// Number of the signal that asks the command to end (15, SIGTERM, unless the image says otherwise).
    pub stop_signal: i32,
    /// File that receives the output in CRI log format. Its directory must exist.
    pub log_path: PathBuf,
    /// When the log is rotated.
    pub log_rotation: LogRotation,
    /// Anything the caller wants back from [`crate::PodRuntime::adopt`]. Not looked at.
    pub labels: serde_json::Value,
    /// Run a WebAssembly program instead of a native one; see [`WasmSpec`] for what is different then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wasm: Option<WasmSpec>,
}

impl ContainerSpec {
    /// A container with the defaults of Kubernetes: root, the default capabilities and seccomp profile, no mounts, no limits.
    #[must_use]
    pub fn new(id: &str, layers: Vec<PathBuf>, args: Vec<String>, log_path: PathBuf) -> Self {
        Self {
            id: id.to_owned(),
            layers,
            args,
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            user: User::default(),
            fs_group: None,
            security: Security::default(),
            mounts: Vec::new(),
            devices: Vec::new(),
            hooks: Vec::new(),
            tty: false,
            stdin: false,
            stdin_once: false,
            resources: Resources::default(),
            oom_score_adj: 0,
            rlimits: Vec::new(),
            annotations: BTreeMap::new(),
            stop_signal: 15,
            log_path,
            log_rotation: LogRotation::default(),
            labels: serde_json::Value::Null,
            wasm: None,
        }
    }

    /// Whether it is a WebAssembly program that shares its process with those of other pods.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.wasm.as_ref().is_some_and(|wasm| wasm.isolation == Isolation::Dense)
    }

    /// The supplementary groups of the command: the user's and the group of the volumes, each once.
    #[must_use]
    pub fn supplementary_groups(&self) -> Vec<u32> {
        let mut groups = self.user.additional_gids.clone();
        groups.extend(self.fs_group);
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// A WebAssembly program as the command of a container.
///
/// Nothing is executed: the container's first process runs the program itself. [`ContainerSpec::args`] and
/// [`ContainerSpec::env`] go to the program as they are. The program sees the image's layers (there may be none), with the mounts
/// in them, as its file system; the process around it has another one, which is read-only. The process never holds capabilities and
/// always has a system call filter of its own, so of [`ContainerSpec::security`] only `read_only_rootfs` counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmSpec {
    /// File with the program's machine code on the host. It is believed: only what edge's own compiler wrote may be named here.
    pub code: PathBuf,
    /// What kind of program it is.
    pub world: edge_wasm::World,
    /// Where an HTTP component listens.
    pub listen: Vec<SocketAddr>,
    /// Largest amount of memory in bytes that the program may use.
    pub memory: Option<u64>,
    /// What separates the program from others.
    #[serde(default)]
    pub isolation: Isolation,
}

/// What separates a WebAssembly program from those of other pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// The kernel and the engine: it has a process of its own, in the namespaces and the cgroup of its pod.
    #[default]
    Process,
    /// The engine alone: one process without privileges runs the programs of all pods. Memory and processor time are limited and counted by
    /// the engine; of [`ContainerSpec::resources`] only the processor's quota counts. The program's user is always 65532, and it has no stdin
    /// and no terminal.
    Dense,
}

/// Numeric identity of a command. Names are resolved by [`crate::users::resolve`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub additional_gids: Vec<u32>,
    /// Home directory, the default of `HOME`. `None` means `/`.
    pub home: Option<String>,
}

/// What the command may do beyond an ordinary user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Security {
    /// All capabilities and devices, no masked paths, no seccomp profile, writable `/sys`.
    pub privileged: bool,
    /// Capabilities to add to the default set, such as `NET_ADMIN` (with or without `CAP_`), or `ALL`.
    pub add_capabilities: Vec<String>,
    /// Capabilities to remove from the default set, or `ALL`.
    pub drop_capabilities: Vec<String>,
    /// Mount the root file system read-only.
    pub read_only_rootfs: bool,
    /// Forbid gaining privileges through set-uid files (`allowPrivilegeEscalation: false`).
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Whether the usual paths of `/proc` and `/sys` are hidden and read-only.
    pub proc_mount: ProcMount,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            privileged: false,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            read_only_rootfs: false,
            no_new_privileges: false,
            seccomp: Seccomp::RuntimeDefault,
            proc_mount: ProcMount::Default,
        }
    }
}

/// System call filter of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The built-in profile: what ordinary programs need, plus what the capabilities allow.
    RuntimeDefault,
    /// No filter.
    Unconfined,
    /// A profile in the JSON format of the OCI runtime specification (`linux.seccomp`).
    Localhost(serde_json::Value),
}

/// The `procMount` of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcMount {
    /// Hide and protect the usual paths.
    Default,
    /// Leave `/proc` as the kernel made it.
    Unmasked,
}

/// A mount inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container; created when missing.
    pub destination: PathBuf,
    /// What is mounted there.
    pub source: MountSource,
    /// Mount it read-only.
    pub read_only: bool,
}

/// Where the content of a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the host. Must exist.
    Bind {
        /// Absolute path on the host.
        path: PathBuf,
        /// How mounts made later spread.
        propagation: Propagation,
    },
    /// What a driver of devices asks for, in the words of the OCI runtime specification. Such mounts do not propagate.
    Oci {
        /// Type of the file system; `bind` or empty for a file or directory of the host.
        kind: String,
        /// Absolute path on the host, or whatever the file system takes.
        path: PathBuf,
        /// Options, such as `rbind` and `nosuid`.
        options: Vec<String>,
    },
    /// A new tmpfs.
    Tmpfs {
        /// Largest size in bytes; `None` is the kernel's default, half of the memory.
        size: Option<u64>,
        /// Permission bits of its root directory.
        mode: u32,
    },
}

impl MountSource {
    /// Whether mounts that are made below it later spread, in one direction at least.
    #[must_use]
    pub fn propagates(&self) -> bool {
        matches!(self, Self::Bind { propagation: Propagation::HostToContainer | Propagation::Bidirectional, .. })
    }
}

/// Mount propagation, as in Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Propagation {
    /// None in either direction.
    #[default]
    Private,
    /// Mounts made on the host appear in the container.
    HostToContainer,
    /// In both directions (privileged containers only).
    Bidirectional,
}

/// A device node of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path of the device on the host.
    pub host_path: PathBuf,
    /// Path inside the container.
    pub container_path: PathBuf,
    /// Allowed access: any of `r`, `w` and `m`.
    pub permissions: String,
    /// What the node stands for; `None`: the same as the one on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<DeviceNumber>,
    /// Permission bits of the node; `None`: those of the one on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Owner of the node; `None`: that of the one on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group of the node; `None`: that of the one on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// What a device node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// A block device; otherwise a character device.
    pub is_block: bool,
    /// Number of the driver.
    pub major: i64,
    /// Number of the driver's device.
    pub minor: i64,
}

/// A program of the host that is run while a container is made, with the container's state (OCI) as its input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// When.
    pub stage: HookStage,
    /// Absolute path of the program.
    pub path: PathBuf,
    /// Its arguments, the first of which is its name.
    pub args: Vec<String>,
    /// Its environment, as `NAME=value`.
    pub env: Vec<String>,
    /// How long it may take, in seconds; `None`: for ever.
    pub timeout: Option<i64>,
}

/// When a hook is run, in the words of the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookStage {
    /// Deprecated: like the next, before it.
    Prestart,
    /// In the host's namespaces, once the container's exist.
    CreateRuntime,
    /// In the container's namespaces, before its root is.
    CreateContainer,
    /// In the container, before its command.
    StartContainer,
}

/// Limits of a cgroup. `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Relative CPU weight in cgroup v1 `cpu.shares` (2 to 262144); converted for cgroup v2.
    pub cpu_shares: Option<u64>,
    /// CPU time in microseconds per period; -1 is unlimited.
    pub cpu_quota: Option<i64>,
    /// Length of the period in microseconds.
    pub cpu_period: Option<u64>,
    /// CPUs in list format, such as `0-1,3`.
    pub cpuset_cpus: Option<String>,
    /// Largest memory use in bytes; -1 is unlimited.
    pub memory_limit: Option<i64>,
    /// Largest number of processes; -1 is unlimited.
    pub pids_limit: Option<i64>,
    /// Largest use in bytes by huge page size in cgroup notation, such as `2MB`.
    pub hugepages: BTreeMap<String, u64>,
}

/// A resource limit (`setrlimit(2)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Name, such as `RLIMIT_NOFILE`.
    pub name: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// When and how far the log of a container is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRotation {
    /// Size in bytes at which a new file is begun (`containerLogMaxSize`).
    pub max_size: u64,
    /// Largest number of files, the current one included (`containerLogMaxFiles`).
    pub max_files: u32,
}

impl Default for LogRotation {
    fn default() -> Self {
        Self { max_size: 10 * 1024 * 1024, max_files: 5 }
    }
}

/// A command to run inside a running container, as the container's user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The command, never empty.
    pub args: Vec<String>,
    /// Give it a terminal of this size; its output then arrives as stdout only.
    pub tty: Option<WindowSize>,
    /// Give it a stdin; without, stdin is `/dev/null`.
    pub stdin: bool,
    /// Deliver stdout; without, it goes to `/dev/null`.
    pub stdout: bool,
    /// Deliver stderr; without, it goes to `/dev/null`.
    pub stderr: bool,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Default for WindowSize {
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

/// Checks an id that becomes a file name and a cgroup name.
///
/// # Errors
/// [`Error::InvalidId`] for anything that is no plain name.
pub fn validate_id(id: &str) -> Result<()> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.');
    let valid = !id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id.bytes().all(plain);
    if valid { Ok(()) } else { Err(Error::InvalidId { id: id.to_owned() }) }
}
