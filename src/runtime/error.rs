//! Errors of the runtime.

use std::io;
use std::path::PathBuf;

/// Result of a runtime operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a runtime operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sandbox or container id is not a plain name.
    #[error("invalid id {id:?}: only letters, digits, '_', '-' and '.', at most 128, not starting with '.'")]
    InvalidId {
        /// The id.
        id: String,
    },
    /// No sandbox has this id.
    #[error("sandbox {id} not found")]
    SandboxNotFound {
        /// The id.
        id: String,
    },
    /// No container has this id.
    #[error("container {id} not found")]
    ContainerNotFound {
        /// The id.
        id: String,
    },
    /// A sandbox or container of this id exists already.
    #[error("{id} already exists")]
    AlreadyExists {
        /// The id.
        id: String,
    },
    /// The container is not in the state the operation needs.
    #[error("container {id} is {state}")]
    WrongState {
        /// The id.
        id: String,
        /// Its state: created, running or exited.
        state: String,
    },
    /// The description of a container or sandbox is not acceptable.
    #[error("{0}")]
    InvalidSpec(String),
    /// The container's command could not be prepared or executed; the text is fit for the status of a pod.
    #[error("{0}")]
    Start(String),
    /// The monitor of the sandbox does not answer any more.
    #[error("monitor of sandbox {id} is gone")]
    MonitorGone {
        /// The sandbox.
        id: String,
    },
    /// The monitor refused or failed to do something.
    #[error("monitor: {0}")]
    Monitor(String),
    /// The zygote could not start a monitor.
    #[error("cannot start a monitor for sandbox {id}")]
    Zygote {
        /// The sandbox.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process that runs dense WebAssembly programs cannot be started, or does not answer.
    #[error("cannot reach the process that runs dense WebAssembly programs")]
    DenseHost(#[source] io::Error),
    /// A monitor sent something that is not understood.
    #[error("unexpected message of the monitor of sandbox {id}")]
    Protocol {
        /// The sandbox.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command did not end in the time it had.
    #[error("command {command:?} timed out")]
    Timeout {
        /// The command.
        command: String,
    },
    /// A cgroup operation failed.
    #[error("cgroup {path}")]
    Cgroup {
        /// The cgroup, or the file in it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file operation failed.
    #[error("{what} {path}")]
    Io {
        /// What was attempted, such as "cannot write".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// For `map_err` on cgroup operations.
    pub(crate) fn cgroup(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Cgroup { path, source }
    }
}

/// An error with all its causes in one line, as users get to see it: `a: b: c`. Causes that only repeat the text are left out.
pub fn chain(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        let cause = err.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = err.source();
    }
    text
}
