//! The monitor: one single-threaded process per sandbox that owns its containers.
//!
//! Comes in: requests of the daemon over a socket, what the containers print, SIGCHLD. Goes out: log files, exit records,
//! messages. It outlives the daemon; whatever it must remember beyond its own life is on disk before anybody is told.

mod clients;
mod container;
mod create;
mod dense;
mod event_loop;
mod exec;
pub(crate) mod guest;
mod helper;
mod inside;
mod log;
mod program;
mod requests;
mod setup;
mod stdio;

use std::os::fd::{AsFd, OwnedFd};

use crate::error::chain;
use crate::protocol::{self, MonitorConfig, Ready};

/// Life of a monitor, in the process forked for it. Returns its exit status.
pub(crate) fn run(config: &MonitorConfig, reply: &OwnedFd) -> i32 {
    let prepared = setup::prepare(config, reply);
    let word = match &prepared {
        Ok(_) => Ready::Listening,
        Err(err) => Ready::Failed(chain(err)),
    };
    let told = protocol::send(reply.as_fd(), &word, &[]);
    // The daemon waits for this connection to end if the word got lost.
    let _ = nix::unistd::close(std::os::fd::AsRawFd::as_raw_fd(reply));
    match (prepared, told) {
        (Ok(mut monitor), Ok(())) => i32::from(monitor.run().is_err()),
        _ => 1,
    }
}
