//! Dense WebAssembly programs, as their pod's monitor sees them: each is a connection to the host that runs it.

pub(super) mod begin;
mod dial;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use edge_wasm::dense::{DialFailure, Event, Request, read_event, send_request};
use edge_wasm::{Outcome, World};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::container::{Asker, Container, Phase};
use super::event_loop::Monitor;
use super::program::ending_of;
use crate::protocol::{Ending, Failure, ReplyBody};

/// Directory of the container that a process which looks up names sees as its root.
const NAMES: &str = "names";
/// Most processes that make connections for one program at the same time.
const MAX_DIALLING: usize = 32;
/// Exit code of a program whose host died: as if killed.
const LOST: i32 = 137;

/// A program in the host.
#[derive(Debug)]
pub(super) struct DenseProgram {
    host: OwnedFd,
    is_server: bool,
    netns: Option<PathBuf>,
    /// It was told to end as one that the kernel kills.
    killed: bool,
    /// Who waits to be told what it uses.
    usage_askers: VecDeque<Asker>,
    /// The processes that make connections for it, and for which of its questions.
    dialling: HashMap<i32, u64>,
}

/// How a program came to its end.
enum End {
    /// As the host tells.
    Outcome(Outcome),
    /// The host is no more.
    Lost,
}

impl DenseProgram {
    pub(super) fn new(host: OwnedFd, world: World, netns: Option<PathBuf>) -> Self {
        Self {
            host,
            is_server: world == World::HttpProxy,
            netns,
            killed: false,
            usage_askers: VecDeque::new(),
            dialling: HashMap::new(),
        }
    }

    pub(super) fn host(&self) -> &OwnedFd {
        &self.host
    }

    /// Asks the host for something. That it has gone is seen when it is listened to.
    fn ask(&self, request: &Request) {
        let _ = send_request(self.host.as_fd(), request);
    }

    pub(super) fn start(&self) {
        self.ask(&Request::Run);
    }

    /// What a signal does to a program that has no process: nothing, or it ends it.
    pub(super) fn signal(&mut self, signal: Signal) {
        if signal == Signal::SIGKILL {
            self.kill();
            return;
        }
        if edge_sys::signal::ENDING.contains(&signal) {
            self.ask(&Request::End(128 + signal as i32));
        }
    }

    /// Ends it at once. Gives whether that was tried before.
    pub(super) fn kill(&mut self) -> bool {
        let again = std::mem::replace(&mut self.killed, true);
        let request = Request::End(128 + Signal::SIGKILL as i32);
        self.ask(&request);
        if self.is_server {
            // The first was to end when all is answered.
            self.ask(&request);
        }
        again
    }

    pub(super) fn ask_usage(&mut self, asker: Asker) {
        self.usage_askers.push_back(asker);
        self.ask(&Request::Usage);
    }
}

impl Monitor {
    /// Hears what the host tells of a program.
    pub(super) fn pump_dense(&mut self, id: &str) {
        while let Some(dense) = self.containers.get_mut(id).and_then(|container| container.dense.as_mut()) {
            match read_event(dense.host.as_fd()) {
                Ok(Some(event)) => self.dense_event(id, event),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => self.dense_ended(id, End::Lost),
            }
        }
    }

    fn dense_event(&mut self, id: &str, event: Event) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(dense) = &mut container.dense else { return };
        match event {
            Event::Hello => {}
            Event::Prepared => {
                if container.phase == Phase::Creating {
                    container.phase = Phase::Created { pid: own_pid() };
                    self.answer_when_created(id);
                }
            }
            Event::Refused(why) => self.creation_failed(id, Failure::Start(why)),
            Event::Running => self.command_runs(id),
            Event::Usage(usage) => {
                if let Some(asker) = dense.usage_askers.pop_front() {
                    self.reply(asker, Ok(ReplyBody::Usage(usage)));
                }
            }
            Event::Dial { id: question, host, port } => self.dial(id, question, host, port),
            Event::Ended(outcome) => self.dense_ended(id, End::Outcome(outcome)),
        }
    }

    fn dial(&mut self, id: &str, question: u64, host: String, port: u16) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(dense) = &mut container.dense else { return };
        let refuse = |dense: &DenseProgram, errno| {
            let failure = Some(DialFailure::Connect(errno));
            dense.ask(&Request::Dialled { id: question, failure });
        };
        if dense.dialling.len() >= MAX_DIALLING {
            return refuse(dense, nix::libc::EAGAIN);
        }
        let begun = dial::begin(&dial::Call {
            id: question,
            host,
            port,
            cgroups: &self.cgroups,
            cgroup: &container.cgroup,
            netns: dense.netns.as_deref(),
            names: container.paths.directory().join(NAMES),
            reply: &dense.host,
        });
        match begun {
            Ok(pid) => {
                dense.dialling.insert(pid, question);
            }
            Err(err) => refuse(dense, err.raw_os_error().unwrap_or(nix::libc::EIO)),
        }
    }

    /// A child has ended: perhaps one that was to make a connection.
    pub(super) fn dialler_ended(&mut self, pid: i32, status: WaitStatus) -> bool {
        for dense in self.containers.values_mut().filter_map(|container| container.dense.as_mut()) {
            let Some(question) = dense.dialling.remove(&pid) else { continue };
            if !matches!(status, WaitStatus::Exited(_, 0)) {
                // It has not answered, as it took too long.
                let failure = Some(DialFailure::Connect(nix::libc::ETIMEDOUT));
                dense.ask(&Request::Dialled { id: question, failure });
            }
            return true;
        }
        false
    }

    /// Waits no longer for a host to end a program: without the connection it does so when it comes to it.
    pub(super) fn let_go(&mut self, id: &str) {
        self.dense_ended(id, End::Lost);
    }

    fn dense_ended(&mut self, id: &str, end: End) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(dense) = container.dense.take() else { return };
        if container.phase == Phase::Creating {
            let why = "the process that was to run the program has ended".to_owned();
            return self.creation_failed(id, Failure::Other(why));
        }
        let status = match end {
            End::Outcome(Outcome::Exited(_)) if dense.killed => WaitStatus::Signaled(pid(), Signal::SIGKILL, false),
            End::Outcome(outcome) => {
                let (code, ending) = ending_of(outcome);
                container.ending = ending;
                WaitStatus::Exited(pid(), code)
            }
            End::Lost if dense.killed => WaitStatus::Signaled(pid(), Signal::SIGKILL, false),
            End::Lost => {
                let message = "the node's process for dense WebAssembly programs has ended, and with it all of them";
                container.ending = Some(Ending { message: message.to_owned(), out_of_memory: false });
                WaitStatus::Exited(pid(), LOST)
            }
        };
        for asker in dense.usage_askers {
            self.reply(asker, Err(Failure::WrongState("exited".to_owned())));
        }
        self.program_ended(id, status);
    }
}

impl Container {
    /// Whether it is a program in the host, or was one.
    pub(super) fn is_dense(&self) -> bool {
        self.spec.is_dense()
    }
}

/// What clients are told as the pid of something that has no process of its own: the monitor is its next of kin.
fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn pid() -> Pid {
    Pid::from_raw(own_pid())
}
