//! What clients can ask of a monitor.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use edge_sys::{fsutil, tty};

use super::container::{Asker, Container, FailureText, Phase};
use super::dense::DenseProgram;
use super::event_loop::{Exec, Monitor};
use super::log::Log;
use super::stdio::Attachment;
use super::{create, dense, exec};
use crate::error::chain;
use crate::paths::SOCKET;
use crate::protocol::{Failure, ListedContainer, ReplyBody, RequestBody};
use crate::spec::{ContainerSpec, SandboxSpec, WindowSize};

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        Self::Other(err.to_string())
    }
}

impl Monitor {
    /// Does what is asked. Answers at once, except when something has to happen first.
    pub(super) fn serve(&mut self, asker: Asker, body: RequestBody, fds: Vec<OwnedFd>) {
        let answer = match body {
            RequestBody::List => Ok(Some(self.list())),
            RequestBody::Create { container, cgroup } => self.create(asker, container, cgroup, fds).map(|()| None),
            RequestBody::Start { container } => self.start(asker, &container).map(|()| None),
            RequestBody::Kill { container, signal } => self.kill(&container, signal).map(done),
            RequestBody::KillAll { container } => self.kill_all(&container).map(done),
            RequestBody::Exec { container, exec, args, terminal } => {
                self.exec(asker, &container, exec, args, terminal, fds).map(|()| None)
            }
            RequestBody::Attach { container, stdin, stdout, stderr } => {
                self.attach(&container, [stdin, stdout, stderr], fds).map(done)
            }
            RequestBody::Resize { container, size } => self.resize(&container, size).map(done),
            RequestBody::ReopenLog { container } => {
                self.container(&container).and_then(|container| Ok(container.log.reopen()?)).map(done)
            }
            RequestBody::Usage { container } => self.usage(asker, &container).map(|()| None),
            RequestBody::Forget { container } => self.forget(&container).map(done),
            RequestBody::Shutdown => {
                self.shutdown();
                Ok(Some(ReplyBody::Done))
            }
        };
        match answer {
            Ok(Some(body)) => self.reply(asker, Ok(body)),
            Ok(None) => {}
            Err(failure) => self.reply(asker, Err(failure)),
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.get_mut(id).ok_or(Failure::NotFound)
    }

    fn list(&self) -> ReplyBody {
        let listed =
            self.containers.iter().map(|(id, container)| ListedContainer { id: id.clone(), state: container.state() });
        ReplyBody::Containers(listed.collect())
    }

    fn create(&mut self, asker: Asker, id: String, cgroup: String, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        if self.containers.contains_key(&id) {
            return Err(Failure::Other(format!("container {id} exists already")));
        }
        let paths = self.paths.container(&id);
        let spec: ContainerSpec = read_json(&paths.spec())?;
        let sandbox: SandboxSpec = read_json(&self.paths.spec())?;
        let log = Log::open(&spec.log_path, spec.log_rotation)
            .map_err(|err| Failure::Other(format!("cannot open log {}: {err}", spec.log_path.display())))?;
        let (dense, (stdio, channel, helper)) = match &spec.wasm {
            Some(wasm) if spec.is_dense() => {
                let host = fds.into_iter().next();
                let host = host.ok_or_else(|| Failure::Other("no connection to the host came with it".to_owned()))?;
                let netns = sandbox.netns.as_deref();
                let begun =
                    dense::begin::begin(&dense::begin::Plan { paths: &paths, spec: &spec, wasm, netns, host: &host })?;
                (Some(DenseProgram::new(host, wasm.world, sandbox.netns.clone())), begun)
            }
            _ => (None, create::begin(&paths, &spec)?),
        };
        let container = Container {
            paths,
            cgroup,
            own_pid_namespace: !sandbox.host_pid && self.pause_pid.is_none(),
            phase: Phase::Creating,
            asker: Some(asker),
            channel: Some(channel),
            helper: Some(helper),
            last_words: None,
            ending: None,
            dense,
            failure: FailureText::default(),
            stdio,
            log,
            spec,
        };
        self.containers.insert(id, container);
        Ok(())
    }

    fn start(&mut self, asker: Asker, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        let Phase::Created { pid } = container.phase else { return Err(wrong_state(container)) };
        if let Some(dense) = &container.dense {
            dense.start();
            container.phase = Phase::Starting { pid };
            container.asker = Some(asker);
            return Ok(());
        }
        notify(&container.paths.notify_directory()).map_err(|err| Failure::Other(format!("cannot start: {err}")))?;
        container.phase = Phase::Starting { pid };
        container.asker = Some(asker);
        Ok(())
    }

    fn kill(&mut self, id: &str, signal: i32) -> Result<(), Failure> {
        let container = self.container(id)?;
        let signal =
            nix::sys::signal::Signal::try_from(signal).map_err(|_| Failure::Other(format!("no signal {signal}")))?;
        if let Some(dense) = &mut container.dense {
            dense.signal(signal);
            return Ok(());
        }
        // Its end has not been collected yet if we know a pid, so the pid is still its own.
        let Some(pid) = container.pid() else { return Ok(()) };
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(err) => Err(Failure::Other(err.to_string())),
        }
    }

    fn kill_all(&mut self, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        if let Some(dense) = &mut container.dense {
            if dense.kill() {
                self.let_go(id);
            }
            return Ok(());
        }
        let cgroup = container.cgroup.clone();
        let result = self.cgroups.kill(&cgroup).map_err(|err| Failure::Other(chain(&err)));
        // The first process may not have entered the cgroup yet.
        self.kill(id, nix::libc::SIGKILL)?;
        result
    }

    fn exec(
        &mut self,
        asker: Asker,
        id: &str,
        name: u64,
        args: Vec<String>,
        terminal: Option<WindowSize>,
        stdio: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let container = self.containers.get(id).ok_or(Failure::NotFound)?;
        let Phase::Running { pid, .. } = container.phase else { return Err(wrong_state(container)) };
        let plan = exec::Plan {
            paths: &container.paths,
            spec: &container.spec,
            cgroups: &self.cgroups,
            cgroup: &container.cgroup,
            pid,
            args,
            terminal,
            stdio,
        };
        let channel = exec::begin(&plan)?;
        self.execs.push(Exec {
            asker,
            name,
            channel: Some(channel),
            pid: None,
            process: None,
            terminal: None,
            failure: FailureText::default(),
            started_at: None,
        });
        Ok(())
    }

    fn attach(&mut self, id: &str, wanted: [bool; 3], fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let container = self.container(id)?;
        if !matches!(container.phase, Phase::Created { .. } | Phase::Starting { .. } | Phase::Running { .. }) {
            return Err(wrong_state(container));
        }
        let mut fds = fds.into_iter();
        let [stdin, stdout, stderr] = wanted.map(|wanted| if wanted { fds.next() } else { None });
        container.stdio.attach(Attachment { stdin, stdout, stderr })?;
        Ok(())
    }

    fn resize(&mut self, id: &str, size: WindowSize) -> Result<(), Failure> {
        let container = self.container(id)?;
        if let (true, Some(terminal)) = (container.spec.tty, container.stdio.terminal()) {
            tty::set_window_size(terminal.as_fd(), size.columns, size.rows)?;
        }
        Ok(())
    }

    fn usage(&mut self, asker: Asker, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        match &mut container.dense {
            Some(dense) if container.phase != Phase::Creating => {
                dense.ask_usage(asker);
                Ok(())
            }
            _ => Err(wrong_state(container)),
        }
    }

    fn forget(&mut self, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        if !matches!(container.phase, Phase::Exited(_)) {
            return Err(wrong_state(container));
        }
        container.stdio.close(&mut container.log);
        self.containers.remove(id);
        Ok(())
    }

    fn shutdown(&mut self) {
        for container in self.containers.values_mut() {
            if let Some(pid) = container.pid() {
                let _ = kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            let _ = self.cgroups.kill(&container.cgroup);
            // Without the connection the host ends it.
            container.dense = None;
            container.stdio.drain(&mut container.log);
            container.stdio.close(&mut container.log);
        }
        if let Some(pid) = self.pause_pid {
            let _ = kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = fsutil::remove_file_if_exists(Path::new(SOCKET));
        self.ended = true;
    }
}

fn done(_: ()) -> Option<ReplyBody> {
    Some(ReplyBody::Done)
}

fn wrong_state(container: &Container) -> Failure {
    let state = match container.phase {
        Phase::Creating => "being created",
        Phase::Created { .. } => "created",
        Phase::Starting { .. } | Phase::Running { .. } => "running",
        Phase::Exited(_) => "exited",
    };
    Failure::WrongState(state.to_owned())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    std::fs::read(path)
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .map_err(|err| Failure::Other(format!("cannot read {}: {err}", path.display())))
}

/// Gives libcontainer's init the word to execute the command: a connection to its socket.
fn notify(directory: &Path) -> io::Result<()> {
    // Through the directory's descriptor: the address of a unix socket holds only 107 bytes.
    let directory = std::fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/notify.sock", std::os::fd::AsRawFd::as_raw_fd(&directory));
    UnixStream::connect(path)?.write_all(b"start container")
}
