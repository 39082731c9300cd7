//! The loop of a monitor: waits for clients, containers, helpers and SIGCHLD, all at once, and for nothing else.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use edge_sys::fsutil;
use edge_sys::signal::SignalQueue;

use super::clients::{ClientId, Clients};
use super::container::{Asker, Container, FailureText, Phase, exit_status_of};
use super::stdio::Interest;
use crate::cgroup::Cgroups;
use crate::paths::SandboxPaths;
use crate::protocol::{self, Ending, Failure, HelperMessage, Message, ReplyBody, VERSION};
use crate::status::ExitStatus;

/// Most bytes of what a WebAssembly program says of its end.
const MAX_ENDING_MESSAGE: usize = 4096;
/// Most messages of a WebAssembly program that are looked at for that: the others are traces of libcontainer.
const MAX_LAST_WORDS: usize = 16;

/// A command running, or about to run, inside a container.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) asker: Asker,
    /// The client's name for it.
    pub(super) name: u64,
    /// Until the command is executed.
    pub(super) channel: Option<OwnedFd>,
    pub(super) pid: Option<i32>,
    /// Its pidfd, for the client.
    pub(super) process: Option<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) failure: FailureText,
    pub(super) started_at: Option<Timestamp>,
}

/// A monitor.
#[derive(Debug)]
pub(super) struct Monitor {
    pub(super) paths: SandboxPaths,
    pub(super) cgroups: Cgroups,
    signals: SignalQueue,
    pub(super) clients: Clients,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) execs: Vec<Exec>,
    pub(super) pause_pid: Option<i32>,
    /// Children that ended before anybody had told whose they are. Kept only while a helper is at work.
    unclaimed: HashMap<i32, WaitStatus>,
    pub(super) ended: bool,
    /// Whether a container has begun since memory was given back: making one takes a hundred times what watching it does.
    has_made: bool,
}

/// What a descriptor in the set belongs to.
#[derive(Debug, Clone)]
enum Token {
    Signals,
    Listener,
    Client(ClientId),
    Channel(String),
    Stdio(String, Interest),
    Dense(String),
    Exec(u64, ClientId),
}

impl Monitor {
    pub(super) fn new(
        paths: SandboxPaths,
        cgroups: Cgroups,
        signals: SignalQueue,
        listener: OwnedFd,
        pause_pid: Option<i32>,
    ) -> Self {
        Self {
            paths,
            cgroups,
            signals,
            clients: Clients::new(listener),
            containers: BTreeMap::new(),
            execs: Vec::new(),
            pause_pid,
            unclaimed: HashMap::new(),
            ended: false,
            has_made: false,
        }
    }

    /// Serves until told to shut down.
    pub(super) fn run(&mut self) -> io::Result<()> {
        while !self.ended {
            for (token, flags) in self.wait()? {
                self.handle(token, flags);
            }
            if std::mem::take(&mut self.has_made) {
                edge_sys::process::release_free_memory();
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut tokens = vec![Token::Signals, Token::Listener];
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.clients.listener(), self.clients.listener_events()),
        ];
        for (fd, full, id) in self.clients.interests() {
            let wanted = if full { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
            fds.push(PollFd::new(fd, wanted));
            tokens.push(Token::Client(id));
        }
        for (id, container) in &self.containers {
            if let Some(channel) = &container.channel {
                fds.push(PollFd::new(channel.as_fd(), PollFlags::POLLIN));
                tokens.push(Token::Channel(id.clone()));
            }
            if let Some(dense) = &container.dense {
                fds.push(PollFd::new(dense.host().as_fd(), PollFlags::POLLIN));
                tokens.push(Token::Dense(id.clone()));
            }
            for (fd, write, interest) in container.stdio.interests() {
                fds.push(PollFd::new(fd, if write { PollFlags::POLLOUT } else { PollFlags::POLLIN }));
                tokens.push(Token::Stdio(id.clone(), interest));
            }
        }
        for exec in &self.execs {
            if let Some(channel) = &exec.channel {
                fds.push(PollFd::new(channel.as_fd(), PollFlags::POLLIN));
                tokens.push(Token::Exec(exec.name, exec.asker.client));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
        let ready = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(tokens.into_iter().zip(ready).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn handle(&mut self, token: Token, flags: PollFlags) {
        match token {
            Token::Signals => {
                // Reading can only fail when there is nothing to read, and the signal says no more than that it is time to reap.
                let _ = self.signals.drain();
                self.reap();
            }
            Token::Listener => {
                let hello = Message::Hello {
                    version: VERSION,
                    pid: std::process::id().cast_signed(),
                    pause_pid: self.pause_pid,
                };
                self.clients.accept(&hello);
            }
            Token::Client(id) => {
                if flags.contains(PollFlags::POLLOUT) {
                    self.clients.flush(id);
                }
                if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)
                    && let Some((request, fds)) = self.clients.receive(id)
                {
                    self.serve(Asker { client: id, sequence: request.sequence }, request.body, fds);
                }
            }
            Token::Channel(id) => self.pump_container_channel(&id),
            Token::Dense(id) => self.pump_dense(&id),
            Token::Exec(name, client) => self.pump_exec_channel(name, client),
            Token::Stdio(id, interest) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.stdio.ready(interest, &mut container.log);
                }
            }
        }
    }

    pub(super) fn reply(&mut self, asker: Asker, result: Result<ReplyBody, Failure>) {
        self.clients.send(asker.client, &Message::Reply { sequence: asker.sequence, result }, Vec::new());
    }

    /// Collects every child that has ended, ours and those of the containers that lost their parents.
    fn reap(&mut self) {
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.child_ended(pid.as_raw(), status);
                    }
                }
            }
        }
        if !self.helpers_at_work() {
            self.unclaimed.clear();
        }
    }

    fn helpers_at_work(&self) -> bool {
        self.containers.values().any(|container| container.phase == Phase::Creating)
            || self.execs.iter().any(|exec| exec.pid.is_none())
    }

    fn child_ended(&mut self, pid: i32, status: WaitStatus) {
        let helped = self.containers.iter_mut().find(|(_, container)| container.helper == Some(pid));
        if let Some((id, container)) = helped {
            container.helper = None;
            let id = id.clone();
            if container.dense.is_some() && !matches!(status, WaitStatus::Exited(_, 0)) {
                // What it reported comes first.
                self.pump_container_channel(&id);
                let why = "the process that prepares the container has ended early".to_owned();
                return self.creation_failed(&id, Failure::Start(why));
            }
            return self.answer_when_created(&id);
        }
        if self.dialler_ended(pid, status) {
            return;
        }
        let container =
            self.containers.iter().find(|(_, container)| container.pid() == Some(pid)).map(|(id, _)| id.clone());
        let exec = self.execs.iter().find(|exec| exec.pid == Some(pid)).map(|exec| (exec.name, exec.asker.client));
        match (container, exec) {
            (Some(id), _) => self.container_ended(&id, status),
            (None, Some((name, client))) => self.exec_ended(name, client, status),
            (None, None) if self.helpers_at_work() => {
                self.unclaimed.insert(pid, status);
            }
            // The helper of a command or of a failed container, or an orphan of a container.
            (None, None) => {}
        }
    }

    /// Reads what a helper, or the first process of a container, reports.
    fn pump_container_channel(&mut self, id: &str) {
        while let Some(container) = self.containers.get_mut(id) {
            let Some(channel) = &container.channel else { return };
            match receive_now(channel) {
                Received::Message(HelperMessage::Pid(pid), _) => {
                    container.phase = Phase::Created { pid };
                    self.answer_when_created(id);
                    if let Some(status) = self.unclaimed.remove(&pid) {
                        self.container_ended(id, status);
                    }
                }
                Received::Message(HelperMessage::Terminal, master) => {
                    let stdin = container.spec.stdin;
                    if let Some(Err(err)) = master.map(|master| container.stdio.set_terminal(master, stdin)) {
                        container.failure.add_error(format!("cannot use the terminal: {err}"));
                    }
                }
                Received::Message(HelperMessage::Detail(text), _) => container.failure.add_detail(text),
                Received::Message(HelperMessage::Error(text), _) => container.failure.add_error(text),
                Received::Message(HelperMessage::Running, _) => {
                    container.last_words = container.channel.take();
                    self.command_runs(id);
                }
                // Nobody has begun to run who could have ended.
                Received::Message(HelperMessage::Ended(_), _) => {}
                Received::Nothing => return,
                Received::End => {
                    container.channel = None;
                    self.channel_ended(id);
                }
            }
        }
    }

    /// Tells who asked for a container that it is there, once its helper has gone. The command may begin and even end at once
    /// then, and only when nobody else holds the connection its end tells that the command was executed.
    pub(super) fn answer_when_created(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if matches!(container.phase, Phase::Created { .. })
            && container.helper.is_none()
            && let Some(asker) = container.asker.take()
        {
            self.reply(asker, Ok(ReplyBody::Done));
        }
    }

    /// Nobody holds the sending end any more: the command was executed, or could not be.
    fn channel_ended(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        match container.phase {
            // The helper has done its part; the host has the next word.
            Phase::Creating if container.dense.is_some() && container.failure.text().is_none() => {}
            Phase::Creating => {
                let text = container.failure.text().unwrap_or_else(|| "the container could not be created".to_owned());
                self.creation_failed(id, Failure::Start(text));
            }
            // A WebAssembly program says so when it begins.
            Phase::Starting { .. } if container.failure.text().is_none() && container.spec.wasm.is_none() => {
                self.command_runs(id);
            }
            // It failed, or was killed before it was started: the end of its first process tells the rest.
            _ => {}
        }
    }

    /// Forgets a container that could not be created, and says why.
    pub(super) fn creation_failed(&mut self, id: &str, failure: Failure) {
        if let Some(asker) = self.containers.remove(id).and_then(|container| container.asker) {
            self.reply(asker, Err(failure));
        }
    }

    pub(super) fn command_runs(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Starting { pid } = container.phase else { return };
        let started_at = Timestamp::now();
        container.phase = Phase::Running { pid, started_at };
        let asker = container.asker.take();
        self.clients.broadcast(&Message::Started { container: id.to_owned(), pid, started_at });
        if let Some(asker) = asker {
            self.reply(asker, Ok(ReplyBody::Done));
        }
        self.has_made = true;
    }

    fn container_ended(&mut self, id: &str, status: WaitStatus) {
        // What it reported before it ended: that the command was executed, or why it was not.
        self.pump_container_channel(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        container.channel = None;
        container.ending = container.last_words.take().and_then(|channel| last_words(&channel));
        // Before the cgroup is removed, and before its processes are killed by us.
        let oom_kills = self.cgroups.oom_kills(&container.cgroup).unwrap_or(0);
        if !container.own_pid_namespace {
            // Others in a shared PID namespace outlive it otherwise. Failing, they are found when the cgroup is removed.
            let _ = self.cgroups.kill(&container.cgroup);
        }
        self.finish(id, status, oom_kills);
    }

    /// A dense program has ended, as a process would with that status.
    pub(super) fn program_ended(&mut self, id: &str, status: WaitStatus) {
        if let Some(container) = self.containers.get(id) {
            // Those that make connections for it. Failing, they are found when the cgroup is removed.
            let _ = self.cgroups.kill(&container.cgroup);
        }
        self.finish(id, status, 0);
    }

    fn finish(&mut self, id: &str, status: WaitStatus, oom_kills: u64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.stdio.drain(&mut container.log);
        if container.is_dense() {
            // The host tells the end when all is written, and may hold the pipes for a moment longer; a last line without an end
            // must be in the log now.
            container.stdio.close(&mut container.log);
        }
        let exit = container.exit_status(status, oom_kills);
        let asker = container.asker.take();
        container.phase = Phase::Exited(exit.clone());
        // On disk before anybody is told. A full disk must not keep the end from being told, though.
        let _ = record_exit(container, &exit);
        if let Some(asker) = asker {
            let text = if exit.message.is_empty() {
                format!("the container ended with exit code {}", exit.code)
            } else {
                exit.message.clone()
            };
            self.reply(asker, Err(Failure::Start(text)));
        }
        self.clients.broadcast(&Message::Exited { container: id.to_owned(), exit });
    }

    fn pump_exec_channel(&mut self, name: u64, client: ClientId) {
        loop {
            let Some(exec) = self.execs.iter_mut().find(|exec| exec.name == name && exec.asker.client == client) else {
                return;
            };
            let Some(channel) = &exec.channel else { return };
            match receive_now(channel) {
                Received::Message(HelperMessage::Pid(pid), process) => (exec.pid, exec.process) = (Some(pid), process),
                Received::Message(HelperMessage::Terminal, master) => exec.terminal = master,
                Received::Message(HelperMessage::Detail(text), _) => exec.failure.add_detail(text),
                Received::Message(HelperMessage::Error(text), _) => exec.failure.add_error(text),
                Received::Message(HelperMessage::Running | HelperMessage::Ended(_), _) => {}
                Received::Nothing => return,
                Received::End => {
                    exec.channel = None;
                    return self.exec_channel_ended(name, client);
                }
            }
        }
    }

    fn exec_channel_ended(&mut self, name: u64, client: ClientId) {
        let Some(index) = self.execs.iter().position(|exec| exec.name == name && exec.asker.client == client) else {
            return;
        };
        let exec = &mut self.execs[index];
        let asker = exec.asker;
        match (exec.failure.text(), exec.pid) {
            (None, Some(pid)) => {
                exec.started_at = Some(Timestamp::now());
                let fds = exec.process.take().into_iter().chain(exec.terminal.take()).collect();
                let message = Message::Reply { sequence: asker.sequence, result: Ok(ReplyBody::Exec { pid }) };
                self.clients.send(client, &message, fds);
                if let Some(status) = self.unclaimed.remove(&pid) {
                    self.exec_ended(name, client, status);
                }
            }
            (failure, _) => {
                self.execs.remove(index);
                let text = failure.unwrap_or_else(|| "the command could not be executed".to_owned());
                self.reply(asker, Err(Failure::Start(text)));
            }
        }
    }

    fn exec_ended(&mut self, name: u64, client: ClientId, status: WaitStatus) {
        // The answer comes before the end, even when the command was faster than we are.
        self.pump_exec_channel(name, client);
        if let Some(index) = self.execs.iter().position(|exec| exec.name == name && exec.asker.client == client) {
            let exec = self.execs.remove(index);
            let exit = exit_status_of(status, exec.started_at);
            if exec.channel.is_some() {
                // It ended although somebody still holds the reporting end: it never became the command.
                self.reply(exec.asker, Err(Failure::Start("the command could not be executed".to_owned())));
            } else {
                self.clients.send(exec.asker.client, &Message::ExecExited { exec: name, exit }, Vec::new());
            }
        }
    }
}

enum Received {
    Message(HelperMessage, Option<OwnedFd>),
    Nothing,
    End,
}

/// What a channel has now. Nonsense (which only our own helpers could send) ends it.
fn receive_now(channel: &OwnedFd) -> Received {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) | Err(_) => return Received::Nothing,
        Ok(_) => {}
    }
    match protocol::receive(channel.as_fd()) {
        Ok(Some((message, fds))) => Received::Message(message, fds.into_iter().next()),
        Ok(None) | Err(_) => Received::End,
    }
}

/// What a WebAssembly program that has ended left behind: not more than a status has room for, whoever may have written it.
fn last_words(channel: &OwnedFd) -> Option<Ending> {
    for _ in 0..MAX_LAST_WORDS {
        match receive_now(channel) {
            Received::Message(HelperMessage::Ended(mut ending), _) => {
                let end = ending.message.floor_char_boundary(MAX_ENDING_MESSAGE);
                ending.message.truncate(end);
                return Some(ending);
            }
            Received::Message(..) => {}
            Received::Nothing | Received::End => break,
        }
    }
    None
}

fn record_exit(container: &Container, exit: &ExitStatus) -> io::Result<()> {
    fsutil::write_atomic(&container.paths.exit(), &serde_json::to_vec(exit)?, 0o600)
}
