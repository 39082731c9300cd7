//! The zygote: a small process forked before edge has threads, which forks the monitors.
//!
//! Forking later would be unsafe (other threads hold locks), and executing a fresh program costs memory for every pod. The
//! zygote ends when edge does; the monitors do not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::wait::waitpid;
use nix::unistd::setsid;

use edge_sys::{process, signal, socket};

use crate::monitor;
use crate::protocol::{self, MonitorConfig, Ready};

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
        let (ours, theirs) = socket::pair()?;
        protocol::send(self.socket.as_fd(), config, &[theirs.as_fd()])?;
        drop(theirs);
        match protocol::receive::<Ready>(ours.as_fd())? {
            Some((Ready::Listening, _)) => Ok(()),
            Some((Ready::Failed(reason), _)) => Err(io::Error::other(reason)),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the monitor ended before it was ready")),
        }
    }
}

fn serve(socket: &OwnedFd) -> io::Result<()> {
    // A session of its own: Ctrl-C in edge's terminal is not meant for us.
    setsid()?;
    signal::reset_to_defaults()?;
    nix::sys::prctl::set_name(c"edge-zygote")?;
    while let Some((config, fds)) = protocol::receive::<MonitorConfig>(socket.as_fd())? {
        let Some(reply) = fds.into_iter().next() else { continue };
        if let Err(err) = spawn(&config, &reply) {
            // Who asked may have gone away; then nobody needs the answer.
            let _ = protocol::send(reply.as_fd(), &Ready::Failed(format!("cannot fork: {err}")), &[]);
        }
    }
    Ok(())
}

/// Forks twice, so that the monitor is nobody's child but init's.
fn spawn(config: &MonitorConfig, reply: &OwnedFd) -> io::Result<()> {
    let intermediate = process::fork_child(|| {
        let child = process::fork_child(|| monitor::run(config, reply));
        i32::from(child.is_err())
    })?;
    match waitpid(intermediate, None)? {
        nix::sys::wait::WaitStatus::Exited(_, 0) => Ok(()),
        status => Err(io::Error::other(format!("intermediate process: {status:?}"))),
    }
}
