//! One container as its monitor knows it.

use std::os::fd::OwnedFd;

use jiff::Timestamp;
use nix::sys::wait::WaitStatus;

use super::clients::ClientId;
use super::dense::DenseProgram;
use super::log::Log;
use super::stdio::Stdio;
use crate::paths::ContainerPaths;
use crate::protocol::Ending;
use crate::spec::ContainerSpec;
use crate::status::{ContainerState, ExitStatus, START_ERROR_CODE};

/// Who waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) client: ClientId,
    pub(super) sequence: u64,
}

/// How far a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// The helper is at work.
    Creating,
    /// Its first process waits for the word.
    Created { pid: i32 },
    /// It has got the word but the command has not been executed yet.
    Starting { pid: i32 },
    /// The command runs.
    Running { pid: i32, started_at: Timestamp },
    /// It has ended.
    Exited(ExitStatus),
}

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) paths: ContainerPaths,
    pub(super) spec: ContainerSpec,
    /// Its cgroup below the cgroup root.
    pub(super) cgroup: String,
    /// When its first process ends the kernel ends all others.
    pub(super) own_pid_namespace: bool,
    pub(super) phase: Phase,
    /// Who waits for it to be created or started.
    pub(super) asker: Option<Asker>,
    /// The connection over which its helper and its first process report, until the command is executed.
    pub(super) channel: Option<OwnedFd>,
    /// Pid of the process that creates it, until that has ended. Before, the end of the connection says nothing about the
    /// container's first process.
    pub(super) helper: Option<i32>,
    /// Where a running WebAssembly program leaves word of how it ended. Looked at when it has, and not before.
    pub(super) last_words: Option<OwnedFd>,
    pub(super) ending: Option<Ending>,
    /// A program in the host of dense ones, until it has ended. It has no process of its own.
    pub(super) dense: Option<DenseProgram>,
    pub(super) failure: FailureText,
    pub(super) stdio: Stdio,
    pub(super) log: Log,
}

impl Container {
    /// Pid of its first process while it lives.
    pub(super) fn pid(&self) -> Option<i32> {
        match self.phase {
            _ if self.is_dense() => None,
            Phase::Created { pid } | Phase::Starting { pid } | Phase::Running { pid, .. } => Some(pid),
            Phase::Creating | Phase::Exited(_) => None,
        }
    }

    /// Its state as told to clients.
    pub(super) fn state(&self) -> ContainerState {
        match &self.phase {
            Phase::Creating | Phase::Created { .. } | Phase::Starting { .. } => ContainerState::Created,
            Phase::Running { pid, started_at } => ContainerState::Running { pid: *pid, started_at: *started_at },
            Phase::Exited(exit) => ContainerState::Exited(exit.clone()),
        }
    }

    /// How it ended, given how its first process did.
    pub(super) fn exit_status(&self, status: WaitStatus, oom_kills: u64) -> ExitStatus {
        let started_at = match self.phase {
            Phase::Running { started_at, .. } => Some(started_at),
            _ => None,
        };
        let mut exit = exit_status_of(status, started_at);
        exit.oom_killed = oom_kills > 0 && exit.code != 0;
        if let Some(ending) = &self.ending {
            exit.oom_killed |= ending.out_of_memory;
            exit.message.clone_from(&ending.message);
        }
        if let Some(text) = self.failure.text() {
            // The first process ended because it could not become the command; its own status says nothing.
            exit.code = START_ERROR_CODE;
            exit.signal = None;
            exit.message = text;
        }
        exit
    }
}

/// Why a command could not be run, put together from what the processes report that tried.
#[derive(Debug, Default)]
pub(super) struct FailureText {
    /// From the innermost function outwards.
    details: Vec<String>,
    error: Option<String>,
}

impl FailureText {
    pub(super) fn add_detail(&mut self, detail: String) {
        self.details.push(detail);
    }

    /// The first error is the one of the process that failed; later ones come from those that saw it fail.
    pub(super) fn add_error(&mut self, error: String) {
        self.error.get_or_insert(error);
    }

    /// The whole text, when there was an error.
    pub(super) fn text(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        match self.details.first() {
            // libcontainer strings its layers together with " : "; the last one says what failed, the detail why.
            Some(detail) if !error.starts_with("exec") => {
                let what = error.rsplit(" : ").next().unwrap_or(error);
                Some(format!("failed to create container: {what}: {detail}"))
            }
            // An error about the command itself is complete.
            _ => Some(error.clone()),
        }
    }
}

/// Translates how a process ended.
pub(super) fn exit_status_of(status: WaitStatus, started_at: Option<Timestamp>) -> ExitStatus {
    let (code, signal) = match status {
        WaitStatus::Exited(_, code) => (code, None),
        WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
        // Not asked for; waitpid gives only ends.
        _ => (255, None),
    };
    ExitStatus { code, signal, oom_killed: false, started_at, finished_at: Timestamp::now(), message: String::new() }
}
