//! From a container of the API to a process: describing it to the runtime, starting it, reading how it ended.

pub(crate) mod hooks;
pub(crate) mod qos;
pub(crate) mod security;
mod spec;
mod wasm;

use crate::pods::record::{ImageRef, Problem, Running, StartFailure, Terminated};
use crate::pods::shared::PodShared;
use edge_client::EventType;
use edge_runtime::error::chain;
use edge_runtime::{ContainerState, ContainerStatus, ExitStatus};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Exit code of a command that could not be run.
const START_ERROR: i32 = 128;
/// Most bytes of a termination message, and of one taken from the log.
const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_MESSAGE: u64 = 2048;
const MAX_LOG_LINES: usize = 80;

/// What the agent needs to know of a container after a restart; kept by the runtime beside the container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Labels {
    /// Name of the container in the pod.
    pub(crate) name: String,
    /// How often it was restarted before.
    pub(crate) restarts: i32,
    /// How it ended before.
    pub(crate) last: Option<Terminated>,
    /// The back-off of its restarts at its start.
    pub(crate) backoff: Duration,
    /// The image named by the spec.
    pub(crate) spec_image: String,
    /// The image it was made from.
    pub(crate) image: ImageRef,
    /// File of its termination message, and whether its log stands in for it.
    pub(crate) message_file: PathBuf,
    pub(crate) message_from_log: bool,
}

/// A new id: 64 hexadecimal digits.
fn new_id() -> std::io::Result<String> {
    let mut bytes = [0_u8; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// How often a container was restarted, and what was known about it before this start.
pub(crate) struct Before {
    pub(crate) restarts: i32,
    pub(crate) last: Option<Terminated>,
    pub(crate) backoff: Duration,
    pub(crate) image: ImageRef,
    pub(crate) init: bool,
}

/// Makes and starts a container.
pub(crate) async fn start(
    shared: &PodShared,
    pod: &Pod,
    container: &Container,
    before: Before,
) -> Result<Running, StartFailure> {
    let cx = &shared.cx;
    let about = crate::images::container_reference(pod, &container.name, before.init);
    let tell = |kind, reason: &str, message: String| cx.recorder.event_ref(about.clone(), kind, reason, message);
    let failed = |reason: &str, message: String| {
        tell(EventType::Warning, "Failed", format!("Error: {message}"));
        StartFailure::NotMade(Problem::new(reason, message))
    };
    let id = new_id().map_err(|error| failed("CreateContainerError", error.to_string()))?;
    let previous = before.last.as_ref().map(|t| t.id.clone());
    let restarts = before.restarts;
    let spec = spec::describe(shared, pod, container, &id, before).await;
    let spec = spec.map_err(|error| failed(error.reason(), chain(&error)))?;
    let log_path = spec.log_path.clone();
    if let Err(error) = cx.runtime.create_container(&shared.uid, spec).await {
        if let edge_runtime::Error::Start(message) = error {
            return Err(not_run(&id, message, &tell));
        }
        return Err(failed("CreateContainerError", chain(&error)));
    }
    tell(EventType::Normal, "Created", format!("Created container: {}", container.name));
    crate::logs::link(&cx.config, pod, &container.name, &id, &log_path);
    let started = cx.runtime.start_container(&id).await;
    if let Some(previous) = previous {
        // its state is in the labels of the new one; its log stays
        if let Err(error) = cx.runtime.remove_container(&previous).await {
            tracing::warn!(container = previous, error = chain(&error), "ended container not removed");
        }
        crate::logs::unlink(&cx.config, pod, &container.name, &previous);
        crate::logs::remove_old(&log_path, restarts);
    }
    match started {
        Ok(()) => {}
        Err(edge_runtime::Error::Start(message)) => return Err(not_run(&id, message, &tell)),
        Err(error) => {
            let message = chain(&error);
            tell(EventType::Warning, "Failed", format!("Error: {message}"));
            if let Err(error) = cx.runtime.remove_container(&id).await {
                tracing::warn!(container = id, error = chain(&error), "container that did not start not removed");
            }
            return Err(StartFailure::NotMade(Problem::new("RunContainerError", message)));
        }
    }
    tell(EventType::Normal, "Started", format!("Started container {}", container.name));
    let started_at = match cx.runtime.container_status(&id).await.map(|status| status.state) {
        Ok(ContainerState::Running { started_at, .. }) => started_at,
        Ok(ContainerState::Exited(ExitStatus { started_at: Some(started_at), .. })) => started_at,
        // its end is about to be told
        _ => Timestamp::now(),
    };
    Ok(Running {
        id,
        started_at,
        spec_image: container.image.clone().unwrap_or_default(),
        hook_runs: container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some()),
        stop: None,
    })
}

/// A command that cannot be run counts as an exit, as with the real container runtimes.
fn not_run(id: &str, message: String, tell: &impl Fn(EventType, &str, String)) -> StartFailure {
    tell(EventType::Warning, "Failed", format!("Error: {message}"));
    let now = Timestamp::now();
    StartFailure::NotRun(Terminated {
        id: id.to_owned(),
        exit_code: START_ERROR,
        signal: None,
        reason: "StartError".to_owned(),
        message: Some(message),
        started_at: None,
        finished_at: now,
    })
}

/// How a container ended, with its message. Blocking: reads the message from files.
pub(crate) fn terminated(id: &str, exit: &ExitStatus, labels: Option<&Labels>, log: &Path) -> Terminated {
    let reason = match exit {
        ExitStatus { oom_killed: true, .. } => "OOMKilled",
        ExitStatus { code: 0, .. } => "Completed",
        ExitStatus { code: START_ERROR, started_at: None, .. } => "StartError",
        _ => "Error",
    };
    let told = labels.and_then(|labels| {
        let own = read_end(&labels.message_file, MAX_MESSAGE);
        own.or_else(|| (labels.message_from_log && exit.code != 0).then(|| log_message(log)).flatten())
    });
    Terminated {
        id: id.to_owned(),
        exit_code: exit.code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message: told.or_else(|| Some(exit.message.clone())).filter(|m| !m.is_empty()),
        started_at: exit.started_at,
        finished_at: exit.finished_at,
    }
}

/// How a container that is no more ended.
pub(crate) fn terminated_status(status: &ContainerStatus, exit: &ExitStatus) -> Terminated {
    let labels: Option<Labels> = serde_json::from_value(status.spec.labels.clone()).ok();
    terminated(&status.spec.id, exit, labels.as_ref(), &status.spec.log_path)
}

/// The end of a regular file; `None` when it is empty or none.
fn read_end(path: &Path, most: u64) -> Option<String> {
    // the container may have put anything there: a link would be followed on this side
    let meta = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    let mut file = fs::File::open(path).ok()?;
    file.seek(SeekFrom::Start(meta.len().saturating_sub(most))).ok()?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (!text.is_empty()).then_some(text)
}

/// The last lines of a log without their time stamps.
fn log_message(log: &Path) -> Option<String> {
    let end = read_end(log, MAX_LOG_MESSAGE * 8)?;
    let content = |line: &str| line.splitn(4, ' ').nth(3).map(str::to_owned);
    let lines: Vec<String> = end.lines().filter_map(content).collect();
    let mut text = lines[lines.len().saturating_sub(MAX_LOG_LINES)..].join("\n");
    let most = usize::try_from(MAX_LOG_MESSAGE).unwrap_or(usize::MAX);
    if text.len() > most {
        let cut = (text.len() - most..text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
        text.drain(..cut);
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn exit(code: i32, oom_killed: bool) -> ExitStatus {
        let now = Timestamp::now();
        ExitStatus { code, signal: None, oom_killed, started_at: Some(now), finished_at: now, message: String::new() }
    }

    #[test]
    fn messages_come_from_the_file_or_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("message"), dir.path().join("0.log"));
        fs::write(&file, "").unwrap();
        fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F two words\n").unwrap();
        let labels = |from_log| Labels { message_file: file.clone(), message_from_log: from_log, ..Labels::default() };
        let of = |code, from_log| terminated("i", &exit(code, false), Some(&labels(from_log)), &log);
        assert_eq!(of(1, false).message, None);
        assert_eq!(of(1, true).message.as_deref(), Some("one\ntwo words"));
        assert_eq!(of(0, true).message, None, "only errors show the log");
        fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(of(0, false).message.unwrap().len(), 4096);
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        assert_eq!(of(1, false).message, None, "links are not followed");
    }

    #[test]
    fn reasons() {
        let of = |e: ExitStatus| terminated("i", &e, None, Path::new("/nowhere")).reason;
        assert_eq!(of(exit(0, false)), "Completed");
        assert_eq!(of(exit(137, true)), "OOMKilled");
        assert_eq!(of(exit(137, false)), "Error");
        assert_eq!(of(ExitStatus { started_at: None, ..exit(128, false) }), "StartError");
    }

    #[test]
    fn ids_are_different_and_fit() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), 64);
    }
}
