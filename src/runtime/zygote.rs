//! The zygote: a small process forked before edge has threads, which forks the monitors, and the host of dense WebAssembly programs.
//!
//! Forking later would be unsafe (other threads hold locks), and executing a fresh program costs memory for every pod. The
//! zygote ends when edge does; the monitors do not.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{dup2_stdin, execve, setsid};

use edge_sys::{process, signal, socket};

use crate::dense::{DENSE_HOST, HostConfig};
use crate::monitor;
use crate::protocol::{self, Fork, MonitorConfig, Ready};

/// The running zygote. Dropping the last clone ends it.
#[derive(Debug, Clone)]
pub struct Zygote {
    socket: Arc<OwnedFd>,
}

impl Zygote {
    /// Forks the zygote. Must be called before the process has any other thread: first thing in `main()`.
    ///
    /// # Errors
    /// When the process has threads already, or the fork fails.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = socket::pair()?;
        process::fork_child(|| {
            // Only the socket is ours; our copy of the daemon's end must go, or we would never see the daemon end.
            match process::close_fds_except(&[theirs.as_raw_fd()]).and_then(|()| serve(&theirs)) {
                Ok(()) => 0,
                Err(_) => 1,
            }
        })?;
        Ok(Self { socket: Arc::new(ours) })
    }

    /// Starts a monitor and waits until it listens. Blocks.
    pub(crate) fn spawn_monitor(&self, config: &MonitorConfig) -> io::Result<()> {
        self.spawn(&Fork::Monitor(config.clone()))
    }

    /// Starts a host and waits until it listens. Blocks.
    pub(crate) fn spawn_host(&self, config: &HostConfig) -> io::Result<()> {
        self.spawn(&Fork::DenseHost(config.clone()))
    }

    fn spawn(&self, fork: &Fork) -> io::Result<()> {
        let (ours, theirs) = socket::pair()?;
        protocol::send(self.socket.as_fd(), fork, &[theirs.as_fd()])?;
        drop(theirs);
        match protocol::receive::<Ready>(ours.as_fd())? {
            Some((Ready::Listening, _)) => Ok(()),
            Some((Ready::Failed(reason), _)) => Err(io::Error::other(reason)),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before it was ready")),
        }
    }
}

fn serve(socket: &OwnedFd) -> io::Result<()> {
    // A session of its own: Ctrl-C in edge's terminal is not meant for us.
    setsid()?;
    signal::reset_to_defaults()?;
    nix::sys::prctl::set_name(c"edge-zygote")?;
    while let Some((fork, fds)) = protocol::receive::<Fork>(socket.as_fd())? {
        let Some(reply) = fds.into_iter().next() else { continue };
        if let Err(err) = spawn(&fork, &reply) {
            // Who asked may have gone away; then nobody needs the answer.
            let _ = protocol::send(reply.as_fd(), &Ready::Failed(format!("cannot fork: {err}")), &[]);
        }
    }
    Ok(())
}

/// Forks twice, so that the new process is nobody's child but init's.
fn spawn(fork: &Fork, reply: &OwnedFd) -> io::Result<()> {
    let intermediate = process::fork_child(|| {
        let child = match fork {
            Fork::Monitor(config) => process::fork_child(|| monitor::run(config, reply)),
            Fork::DenseHost(config) => unshare(CloneFlags::CLONE_NEWPID)
                .map_err(io::Error::from)
                .and_then(|()| process::fork_child(|| become_host(config, reply))),
        };
        i32::from(child.is_err())
    })?;
    match waitpid(intermediate, None)? {
        nix::sys::wait::WaitStatus::Exited(_, 0) => Ok(()),
        status => Err(io::Error::other(format!("intermediate process: {status:?}"))),
    }
}

/// Executes edge anew as the host, with nothing but the reply, as its standard input. Returns only on failure.
fn become_host(config: &HostConfig, reply: &OwnedFd) -> i32 {
    let executed = || -> io::Result<std::convert::Infallible> {
        let config = CString::new(serde_json::to_vec(config)?)?;
        let name = CString::new(DENSE_HOST)?;
        dup2_stdin(reply)?;
        process::close_fds_except(&[])?;
        Ok(execve(c"/proc/self/exe", &[c"edge", &name, &config], &[] as &[CString])?)
    };
    match executed() {
        Ok(never) => match never {},
        // Who waits sees the connection end.
        Err(_) => 1,
    }
}
