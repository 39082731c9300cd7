//! What the short-lived processes have in common that create containers ([`super::create`]) and execute commands in them
//! ([`super::exec`]): how they report, what they set before the command, how the command is found and executed.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use edge_sys::pidfd::PidFd;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{AccessFlags, access, execve};
use tracing::field::{Field, Visit};
use tracing::span;

use crate::protocol::{self, Ending, HelperMessage};
use crate::spec::Rlimit;

/// Most details kept of one failure.
const MAX_DETAILS: usize = 3;

/// The connection to the monitor. Shared with every process cloned from the helper, until the command is executed.
#[derive(Debug)]
pub(super) struct Reporter {
    socket: OwnedFd,
}

impl Reporter {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reports the pid of the command-to-be, and with `process` a handle to it.
    pub(super) fn pid(&self, pid: i32, process: Option<&PidFd>) {
        let fds: Vec<BorrowedFd<'_>> = process.iter().map(|process| process.as_fd()).collect();
        self.send(&HelperMessage::Pid(pid), &fds);
    }

    pub(super) fn terminal(&self, master: BorrowedFd<'_>) {
        self.send(&HelperMessage::Terminal, &[master]);
    }

    pub(super) fn error(&self, text: impl Into<String>) {
        self.send(&HelperMessage::Error(text.into()), &[]);
    }

    /// Reports that a WebAssembly program begins.
    pub(super) fn running(&self) {
        self.send(&HelperMessage::Running, &[]);
    }

    /// Reports how a WebAssembly program ended.
    pub(super) fn ended(&self, ending: Ending) {
        self.send(&HelperMessage::Ended(ending), &[]);
    }

    fn detail(&self, text: String) {
        self.send(&HelperMessage::Detail(text), &[]);
    }

    fn send(&self, message: &HelperMessage, fds: &[BorrowedFd<'_>]) {
        // The monitor is our parent; should it be gone, nobody is left to complain to.
        let _ = protocol::send(self.socket.as_fd(), message, fds);
    }
}

/// Passes libcontainer's error events on: its errors themselves are flattened to "failed to prepare rootfs" and the like, and
/// the reasons are only in what it traces.
#[derive(Debug)]
pub(super) struct DetailSubscriber {
    reporter: Arc<Reporter>,
    sent: AtomicUsize,
}

impl DetailSubscriber {
    /// Installs it for this process.
    pub(super) fn install(reporter: Arc<Reporter>) {
        // Fails only when there is one already, and then details are not needed.
        let _ = tracing::subscriber::set_global_default(Self { reporter, sent: AtomicUsize::new(0) });
    }
}

impl tracing::Subscriber for DetailSubscriber {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        // The first ones come from the innermost functions.
        if self.sent.fetch_add(1, Ordering::Relaxed) < MAX_DETAILS {
            let mut text = EventText::default();
            event.record(&mut text);
            self.reporter.detail(text.0);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// An event as `message name=value …`.
#[derive(Debug, Default)]
struct EventText(String);

impl Visit for EventText {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let separator = if self.0.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, "{separator}{value:?}")
        } else {
            write!(self.0, "{separator}{}={value:?}", field.name())
        };
    }
}

/// Sets the OOM score, which the command inherits, or leaves it as it is when that is not allowed (lowering it takes
/// CAP_SYS_RESOURCE, which virtual machines and outer containers may lack).
pub(super) fn set_oom_score_adj(value: i32) {
    let _ = std::fs::write("/proc/self/oom_score_adj", value.clamp(-1000, 1000).to_string());
}

/// Sets resource limits, each no higher than allowed: raising a hard limit takes CAP_SYS_RESOURCE.
pub(super) fn set_rlimits(rlimits: &[Rlimit]) -> io::Result<()> {
    for rlimit in rlimits {
        let resource = resource_named(&rlimit.name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("unknown rlimit {}", rlimit.name)))?;
        match setrlimit(resource, rlimit.soft, rlimit.hard) {
            Err(Errno::EPERM) => {
                let (_, highest) = getrlimit(resource)?;
                setrlimit(resource, rlimit.soft.min(highest), rlimit.hard.min(highest))?;
            }
            result => result?,
        }
    }
    Ok(())
}

fn resource_named(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::RLIMIT_AS,
        "RLIMIT_CORE" => Resource::RLIMIT_CORE,
        "RLIMIT_CPU" => Resource::RLIMIT_CPU,
        "RLIMIT_DATA" => Resource::RLIMIT_DATA,
        "RLIMIT_FSIZE" => Resource::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => Resource::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => Resource::RLIMIT_NICE,
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        "RLIMIT_RSS" => Resource::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => Resource::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}

/// Finds the program `name` as a shell would. The text of the error is what users know from other container engines.
///
/// Runs inside the container, as its user.
pub(super) fn find_executable(name: &str, env: &[String]) -> Result<PathBuf, String> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return check_executable(&path).map(|()| path).map_err(|reason| format!("exec: {name:?}: {reason}"));
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match check_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(_) => denied |= candidate.is_file(),
        }
    }
    let reason = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("exec: {name:?}: {reason}"))
}

fn check_executable(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|err| match err.raw_os_error() {
        Some(errno) => format!("stat {}: {}", path.display(), errno_text(Errno::from_raw(errno))),
        None => err.to_string(),
    })?;
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    access(path, AccessFlags::X_OK).map_err(errno_text)
}

/// The kernel's text for an error, in lower case as everybody writes it.
pub(super) fn errno_text(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

/// Replaces this process with the command. Returns only on failure, with a text for users.
pub(super) fn execute(spec: &Spec) -> String {
    let process = spec.process().as_ref();
    let args = process.and_then(|process| process.args().as_deref()).unwrap_or_default();
    let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
    let Some(name) = args.first() else { return "no command specified".to_owned() };
    let path = match find_executable(name, env) {
        Ok(path) => path,
        Err(text) => return text,
    };
    if let Err(err) = edge_sys::signal::reset_to_defaults() {
        return format!("cannot reset signals: {err}");
    }
    let to_c = |text: &str| CString::new(text).map_err(|_| format!("exec {name}: NUL byte in argument or environment"));
    let vectors = (|| {
        let path = to_c(&path.to_string_lossy())?;
        let args = args.iter().map(|arg| to_c(arg)).collect::<Result<Vec<_>, _>>()?;
        let env = env.iter().map(|entry| to_c(entry)).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, String>((path, args, env))
    })();
    match vectors {
        Ok((c_path, args, env)) => {
            let Err(errno) = execve(&c_path, &args, &env);
            format!("exec {}: {}", path.display(), errno_text(errno))
        }
        Err(text) => text,
    }
}

/// How libcontainer runs the command of a container: with default signal state, exactly the environment of the
/// specification, and errors that reach the monitor word by word.
#[derive(Debug, Clone)]
pub(super) struct PayloadExecutor {
    pub(super) reporter: Arc<Reporter>,
}

impl Executor for PayloadExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let text = execute(spec);
        self.reporter.error(text.clone());
        Err(ExecutorError::Other(text))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref();
        let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
        let name = process
            .and_then(|process| process.args().as_ref())
            .and_then(|args| args.first())
            .map_or("", String::as_str);
        find_executable(name, env).map(drop).map_err(|text| {
            self.reporter.error(text.clone());
            ExecutorValidationError::ArgValidationError(text)
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment goes straight to execve(2), in the order it was given.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn texts_of_missing_executables() {
        let env = vec!["PATH=/nonexistent:/bin:/usr/bin".to_owned()];
        assert!(find_executable("sh", &env).unwrap().ends_with("sh"));
        assert_eq!(
            find_executable("no-such", &env).unwrap_err(),
            "exec: \"no-such\": executable file not found in $PATH"
        );
        assert_eq!(
            find_executable("/no/such", &env).unwrap_err(),
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
        assert_eq!(find_executable("/etc", &env).unwrap_err(), "exec: \"/etc\": is a directory");
        assert_eq!(find_executable("/etc/passwd", &env).unwrap_err(), "exec: \"/etc/passwd\": permission denied");
        assert!(find_executable("sh", &[]).is_err());
    }
}
