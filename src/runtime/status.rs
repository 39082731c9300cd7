//! What the runtime tells: states of sandboxes and containers, exits, usage, events.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::spec::{ContainerSpec, SandboxSpec};

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 128 plus the number of the signal when a signal ended it, 137 when nobody saw it end.
    pub code: i32,
    /// Number of the signal that ended it.
    pub signal: Option<i32>,
    /// The kernel ended a process of the container for want of memory.
    pub oom_killed: bool,
    /// When the command began to run; `None` when it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended, or was found dead.
    pub finished_at: Timestamp,
    /// Why it could not be run, or why its end is unknown; empty otherwise.
    pub message: String,
}

/// Exit code of a container whose command could not be executed (the kubelet's "StartError").
pub const START_ERROR_CODE: i32 = 128;

/// Exit code of a container whose end nobody could observe: as if killed (the kubelet's "ContainerStatusUnknown").
pub const UNKNOWN_EXIT_CODE: i32 = 137;

/// State of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running.
    Running {
        /// Pid of the container's first process as the host sees it.
        pid: i32,
        /// When the command began to run.
        started_at: Timestamp,
    },
    /// Ended.
    Exited(ExitStatus),
}

/// A container and its state.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    /// What was asked for.
    pub spec: ContainerSpec,
    /// How it is.
    pub state: ContainerState,
}

/// A sandbox and everything in it, as found by [`crate::PodRuntime::adopt`].
#[derive(Debug, Clone, PartialEq)]
pub struct AdoptedSandbox {
    /// What was asked for.
    pub spec: SandboxSpec,
    /// Its monitor lives and new containers can be created. When false every container in it is `Exited` and the sandbox is
    /// only good for [`crate::PodRuntime::remove_sandbox`].
    pub ready: bool,
    /// Its containers, in no particular order.
    pub containers: Vec<ContainerStatus>,
}

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// Its command began to run.
    Started {
        /// The sandbox it belongs to.
        sandbox_id: String,
        /// The container.
        container_id: String,
    },
    /// It ended. The exit is already on disk.
    Exited {
        /// The sandbox it belongs to.
        sandbox_id: String,
        /// The container.
        container_id: String,
        /// How it ended.
        exit: ExitStatus,
    },
    /// The monitor of a sandbox died. Its containers were killed and reported as exited before this event.
    SandboxLost {
        /// The sandbox.
        sandbox_id: String,
    },
}

/// Resource usage of a cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time since creation in nanoseconds.
    pub cpu_nanos: u64,
    /// Memory charged to the cgroup in bytes, page cache included.
    pub memory_usage: u64,
    /// Memory in bytes without the inactive page cache: what counts for eviction.
    pub memory_working_set: u64,
    /// Anonymous memory in bytes.
    pub memory_rss: u64,
    /// Page faults since creation.
    pub page_faults: u64,
    /// Major page faults since creation.
    pub major_page_faults: u64,
    /// Number of processes and threads.
    pub pids: u64,
}

impl Usage {
    /// With what a program uses for which there is no cgroup.
    pub(crate) fn with_program(mut self, program: edge_wasm::dense::Usage) -> Self {
        self.cpu_nanos += program.cpu;
        self.memory_usage += program.memory;
        self.memory_working_set += program.memory;
        self.memory_rss += program.memory;
        self
    }
}
