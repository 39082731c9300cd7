//! The language of the monitors: JSON messages over a SEQPACKET unix socket, so that every message arrives whole together with
//! its file descriptors. A monitor may be older than the edge that talks to it: fields are only ever added, with defaults.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::dense::HostConfig;
use crate::spec::WindowSize;
use crate::status::{ContainerState, ExitStatus};

/// Version of this language; raised when an older monitor could misunderstand.
pub(crate) const VERSION: u32 = 1;

/// Largest message in bytes.
pub(crate) const MAX_MESSAGE: usize = 128 * 1024;

/// What the zygote is asked to fork. One descriptor comes with it: where the new process reports [`Ready`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Fork {
    /// A monitor.
    Monitor(MonitorConfig),
    /// A host of dense WebAssembly programs.
    DenseHost(HostConfig),
}

/// What the zygote needs to start a monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MonitorConfig {
    /// Directory of the sandbox.
    pub(crate) directory: std::path::PathBuf,
    /// Cgroup root of the runtime.
    pub(crate) cgroup_root: String,
}

/// First and only word of a new process to who asked for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Ready {
    /// It listens.
    Listening,
    /// It could not start.
    Failed(String),
}

/// A request to a monitor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Chosen by the client; the reply bears the same.
    pub(crate) sequence: u64,
    /// What to do.
    pub(crate) body: RequestBody,
}

/// What a monitor can do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum RequestBody {
    /// State of all containers.
    List,
    /// Create the container whose description is in its directory. `cgroup` is its cgroup below the root, which exists. With a dense
    /// WebAssembly program a connection to the host comes with it.
    Create { container: String, cgroup: String },
    /// Let its command run.
    Start { container: String },
    /// Send a signal to its first process.
    Kill { container: String, signal: i32 },
    /// Send SIGKILL to all its processes.
    KillAll { container: String },
    /// Run a command inside. Descriptors: its stdin, stdout and stderr; none with a terminal.
    Exec { container: String, exec: u64, args: Vec<String>, terminal: Option<WindowSize> },
    /// Connect to its streams. Descriptors: those asked for, in the order of the fields.
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool },
    /// Set the size of its terminal.
    Resize { container: String, size: WindowSize },
    /// Close its log file and open it again.
    ReopenLog { container: String },
    /// What its dense WebAssembly program uses.
    Usage { container: String },
    /// Forget an ended container.
    Forget { container: String },
    /// Kill everything and end.
    Shutdown,
}

/// What a monitor says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// First message on every connection.
    Hello { version: u32, pid: i32, pause_pid: Option<i32> },
    /// Answer to a request. [`ReplyBody::Exec`] comes with a pidfd and, with a terminal, its master side.
    Reply { sequence: u64, result: Result<ReplyBody, Failure> },
    /// The command of a container began to run.
    Started { container: String, pid: i32, started_at: jiff::Timestamp },
    /// A container ended.
    Exited { container: String, exit: ExitStatus },
    /// A command run inside a container ended. Only told to who asked for it.
    ExecExited { exec: u64, exit: ExitStatus },
}

/// Result of a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReplyBody {
    /// Done.
    Done,
    /// To [`RequestBody::List`].
    Containers(Vec<ListedContainer>),
    /// To [`RequestBody::Exec`]: pid of the command.
    Exec { pid: i32 },
    /// To [`RequestBody::Usage`].
    Usage(edge_wasm::dense::Usage),
}

/// One container in a list.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListedContainer {
    pub(crate) id: String,
    pub(crate) state: ContainerState,
}

/// Why a request failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// No such container.
    NotFound,
    /// It is not in the state the request needs, but in this one.
    WrongState(String),
    /// Its command cannot be run; fit for a user's eyes.
    Start(String),
    /// Anything else.
    Other(String),
}

/// What the short-lived processes that create containers and execute commands tell their monitor. The connection ends when
/// the command has been executed, since every copy of the sending end is close-on-exec.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum HelperMessage {
    /// Pid of the command-to-be; for a container: everything is ready. For an exec a pidfd comes with it.
    Pid(i32),
    /// The master side of its terminal comes with this message.
    Terminal,
    /// A cause of a failure, from deep inside.
    Detail(String),
    /// Why the command cannot be run.
    Error(String),
    /// A WebAssembly program begins to run, in the process that was created for it. What comes afterwards may come from the program,
    /// should it ever get out of its engine.
    Running,
    /// How a WebAssembly program ended, when the exit code does not say it all.
    Ended(Ending),
}

/// How a WebAssembly program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ending {
    /// The reason in words.
    pub(crate) message: String,
    /// It was refused more memory.
    pub(crate) out_of_memory: bool,
}

/// Sends one message.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    edge_sys::socket::send(socket, &encode(message)?, fds)
}

/// The bytes of one message.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("message of {} bytes is too large", bytes.len()),
        ));
    }
    Ok(bytes)
}

/// Receives one message and its descriptors; `None` when the peer has closed the connection.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let message = edge_sys::socket::receive(socket, MAX_MESSAGE)?;
    if message.bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&message.bytes)?, message.fds)))
}
