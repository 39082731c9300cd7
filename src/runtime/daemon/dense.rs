//! Dense WebAssembly programs: the host that runs them, from its start when it is needed first until what is left of it is removed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_sys::pidfd::PidFd;
use edge_sys::{fsutil, socket};
use edge_wasm::dense::{Event, read_event};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::connection::Connection;
use super::sandboxes::write_json;
use super::{Container, Inner, blocking};
use crate::dense::{HOST_SOCKET, HostConfig, cgroup_of, program_name};
use crate::error::{Error, Result, chain};
use crate::protocol::RequestBody;

/// How long a host may take to greet, in milliseconds: one that takes longer hangs. It does so at once even while all its programs
/// compute, as each leaves its thread to others after some milliseconds.
const GREETING_TIMEOUT_MS: u16 = 8_000;

/// A host that has just been found or started.
struct Found {
    directory: PathBuf,
    process: PidFd,
}

impl Inner {
    /// Writes down what is asked for, and makes the cgroup in which others work for the program. Blocks.
    pub(super) fn prepare_dense_container(&self, container: &Container) -> Result<()> {
        let directory = container.paths.directory();
        if container.spec.args.is_empty() {
            return Err(Error::InvalidSpec("no command specified".to_owned()));
        }
        fsutil::create_dir_all_mode(directory, 0o700).map_err(Error::io("cannot create", directory))?;
        write_json(&container.paths.spec(), &container.spec)?;
        self.cgroups.create(&container.cgroup, &container.spec.resources)
    }

    /// Asks a monitor for something for which it needs a connection to the host.
    pub(super) async fn ask_with_host(
        self: &Arc<Self>,
        monitor: &Connection,
        id: &str,
        request: RequestBody,
    ) -> Result<()> {
        let inner = Arc::clone(self);
        let (host, started) = blocking(move || inner.connect_or_start()).await?;
        if let Some(started) = started {
            self.watch_host(started);
        }
        self.with_host(monitor.request_with_fds(id, request, &[host])).await.map(drop)
    }

    /// Connects to the host for new programs, and starts it when there is none. Blocks.
    fn connect_or_start(&self) -> Result<(OwnedFd, Option<Found>)> {
        // Held all the time, so that many containers which begin together start one.
        let mut current = self.host.lock();
        if let Some(directory) = current.as_deref() {
            match connect(directory) {
                Ok(connection) => return Ok((connection, None)),
                Err(err) => self.kill_if_hung(directory, &err),
            }
        }
        let directory = self.start_host()?;
        let connection = connect(&directory).map_err(Error::DenseHost)?;
        let process = process_of(&connection).map_err(Error::DenseHost)?;
        *current = Some(directory.clone());
        Ok((connection, Some(Found { directory, process })))
    }

    fn start_host(&self) -> Result<PathBuf> {
        let program = program_name().map_err(Error::DenseHost)?;
        let directory = self.hosts().join(format!("{program}-{}", Timestamp::now().as_microsecond()));
        fsutil::create_dir_all_mode(&directory, 0o700).map_err(Error::io("cannot create", &directory))?;
        let config = HostConfig {
            directory: directory.clone(),
            cgroup_root: self.cgroup_root.clone(),
            cgroup: cgroup_of(&directory),
        };
        match self.zygote.spawn_host(&config) {
            Ok(()) => Ok(directory),
            Err(err) => {
                self.discard_host(&directory);
                Err(Error::DenseHost(err))
            }
        }
    }

    /// Finds the hosts of an earlier life: that of this program goes on to be used, all others until their programs have ended.
    pub(super) async fn adopt_hosts(self: &Arc<Self>) -> Result<()> {
        let inner = Arc::clone(self);
        let found = blocking(move || inner.find_hosts()).await?;
        found.into_iter().for_each(|host| self.watch_host(host));
        Ok(())
    }

    fn find_hosts(&self) -> Result<Vec<Found>> {
        let program = program_name().map_err(Error::DenseHost)?;
        let mut found = Vec::new();
        for directory in self.host_directories()? {
            match connect(&directory).and_then(|connection| process_of(&connection)) {
                Ok(process) => {
                    let name = directory.file_name().unwrap_or_default().to_string_lossy();
                    if name.rsplit_once('-').is_some_and(|(of, _)| of == program) {
                        *self.host.lock() = Some(directory.clone());
                    }
                    found.push(Found { directory, process });
                }
                Err(_) => self.discard_host(&directory),
            }
        }
        Ok(found)
    }

    fn host_directories(&self) -> Result<Vec<PathBuf>> {
        match fs::read_dir(self.hosts()) {
            Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(err) => Err(Error::io("cannot read", self.hosts())(err)),
        }
    }

    /// Kills every host that does not greet. Blocks.
    pub(super) fn kill_hung_hosts(&self) {
        for directory in self.host_directories().unwrap_or_default() {
            if let Err(err) = connect(&directory) {
                self.kill_if_hung(&directory, &err);
            }
        }
    }

    /// Kills a host which could not be connected to because it hangs. (Of one that has ended the watcher removes what is left.)
    fn kill_if_hung(&self, directory: &Path, why: &io::Error) {
        if why.kind() == io::ErrorKind::TimedOut {
            tracing::error!(path = %directory.display(), "the host of dense programs hangs: killed");
            self.discard_host(directory);
        }
    }

    /// Removes what a host leaves behind, once it has ended.
    fn watch_host(self: &Arc<Self>, host: Found) {
        let Found { directory, process } = host;
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let ended = async { edge_sys::async_fd::register(process.into())?.readable().await.map(drop) };
            if let Err(err) = ended.await {
                tracing::warn!(path = %directory.display(), error = %err, "cannot watch the host of dense programs");
                return;
            }
            blocking(move || inner.discard_host(&directory)).await;
        });
    }

    /// Kills what is left of a host and removes its things. Blocks.
    fn discard_host(&self, directory: &Path) {
        let removed = self
            .cgroups
            .remove(&cgroup_of(directory))
            .and_then(|()| fsutil::remove_dir_all_if_exists(directory).map_err(Error::io("cannot remove", directory)));
        if let Err(err) = removed {
            tracing::warn!(path = %directory.display(), error = %chain(&err), "cannot clean up after a host of dense programs");
        }
    }

    fn hosts(&self) -> PathBuf {
        self.directory.join("dense")
    }
}

/// Connects, and waits until the host has greeted: from then on it is there as long as the connection is.
fn connect(directory: &Path) -> io::Result<OwnedFd> {
    let connection = socket::connect_in(directory, HOST_SOCKET)?;
    let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::from(GREETING_TIMEOUT_MS)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
    match read_event(connection.as_fd())? {
        Some(Event::Hello) => Ok(connection),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before it greeted")),
    }
}

fn process_of(connection: &OwnedFd) -> io::Result<PidFd> {
    PidFd::open(getsockopt(connection, PeerCredentials)?.pid())
}
