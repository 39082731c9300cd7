//! The first process of a WebAssembly container: it executes nothing but runs the program itself.
//!
//! When it is called, libcontainer has made the process what it is to be (namespaces, cgroup, identity, no capabilities, system call
//! filter). The program is prepared before the container counts as created, so what is wrong with it is told then.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use edge_sys::{process, signal};
use edge_wasm::{Invocation, Limits, Outcome, Preopen, Program, Shutdown};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;

use super::guest::GUEST;
use super::helper::Reporter;
use crate::error::chain;
use crate::protocol::Ending;
use crate::spec::{ContainerSpec, WasmSpec};

/// Exit code of a program that trapped: what an aborted native program has.
const TRAPPED: i32 = 134;
/// Exit code of a program that got no more memory: what a native one has that the kernel ended.
const OUT_OF_MEMORY: i32 = 137;

/// How libcontainer runs the program.
#[derive(Clone)]
pub(super) struct WasmExecutor {
    reporter: Arc<Reporter>,
    invocation: Arc<Invocation>,
    /// Until it is prepared, and then what was made of it.
    state: Arc<Mutex<State>>,
}

enum State {
    Code(File),
    Prepared {
        program: Program,
        /// Descriptors that the program needs.
        needed: Vec<RawFd>,
    },
    Running,
}

impl WasmExecutor {
    pub(super) fn new(reporter: Arc<Reporter>, spec: &ContainerSpec, wasm: &WasmSpec, code: File) -> Self {
        let state = Arc::new(Mutex::new(State::Code(code)));
        Self { reporter, invocation: Arc::new(invocation(spec, wasm)), state }
    }

    fn prepare(&self) -> Result<(), String> {
        // The engine installs handlers of its own afterwards, so this cannot wait until the program runs.
        let reset = signal::reset_to_defaults().and_then(|()| signal::ignore(Signal::SIGPIPE));
        reset.map_err(|err| format!("cannot reset signals: {err}"))?;
        let mut before = open_descriptors().map_err(|err| format!("cannot list descriptors: {err}"))?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State::Code(code) = std::mem::replace(&mut *state, State::Running) else {
            return Err("the program is prepared already".to_owned());
        };
        // It is closed on the way, and its number may be given to another one.
        before.remove(&code.as_raw_fd());
        let program = Program::prepare(code, &self.invocation).map_err(|err| chain(&err))?;
        let after = open_descriptors().map_err(|err| format!("cannot list descriptors: {err}"))?;
        *state = State::Prepared { program, needed: after.difference(&before).copied().collect() };
        Ok(())
    }

    fn run(&self) -> String {
        let state = std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Running);
        let State::Prepared { program, mut needed } = state else { return "the program was not prepared".to_owned() };
        // What libcontainer holds open; nothing of it is executed away here.
        needed.push(self.reporter.raw_fd());
        if let Err(err) = process::close_fds_except(&needed) {
            return format!("cannot close descriptors: {err}");
        }
        // The first process of a namespace loses what reaches it before it listens: it waits until the engine does.
        if let Err(err) = signal::ENDING.iter().copied().collect::<SigSet>().thread_block() {
            return format!("cannot block signals: {err}");
        }
        self.reporter.running();
        let outcome = program.run(Shutdown::on_signals());
        let (code, ending) = ending_of(outcome);
        if let Some(ending) = ending {
            self.reporter.ended(ending);
        }
        process::exit_now(code)
    }
}

impl Executor for WasmExecutor {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let name = self.invocation.args.first().and_then(|name| name.rsplit('/').next()).unwrap_or_default();
        if let Ok(name) = CString::new(name) {
            // The kernel keeps the first 15 bytes. Without it the process is called like its monitor, which hurts nobody.
            let _ = prctl::set_name(&name);
        }
        self.prepare().map_err(|text| {
            self.reporter.error(text.clone());
            ExecutorValidationError::ArgValidationError(text)
        })
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let text = self.run();
        self.reporter.error(text.clone());
        Err(ExecutorError::Other(text))
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The program has its own; those of the process are nobody's business.
        Ok(())
    }
}

/// The exit code of a program, and what it does not say.
pub(super) fn ending_of(outcome: Outcome) -> (i32, Option<Ending>) {
    match outcome {
        Outcome::Exited(code) => (code, None),
        Outcome::Trapped(message) => (TRAPPED, Some(Ending { message, out_of_memory: false })),
        Outcome::OutOfMemory(message) => (OUT_OF_MEMORY, Some(Ending { message, out_of_memory: true })),
    }
}

/// What the program is given.
pub(super) fn invocation(spec: &ContainerSpec, wasm: &WasmSpec) -> Invocation {
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in &spec.env {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    let root = Preopen { host: PathBuf::from(GUEST), guest: "/".to_owned(), read_only: false };
    Invocation {
        world: wasm.world,
        args: spec.args.clone(),
        env,
        preopens: vec![root],
        cwd: Some(spec.cwd.clone()).filter(|cwd| cwd.components().count() > 1),
        listen: wasm.listen.clone(),
        network: true,
        limits: Limits { memory: wasm.memory },
    }
}

/// The descriptors of this process beyond its standard streams.
fn open_descriptors() -> io::Result<HashSet<RawFd>> {
    let mut directory = Dir::open("/proc/self/fd", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let own = directory.as_raw_fd();
    let mut open = HashSet::new();
    for entry in directory.iter() {
        let entry = entry?;
        let number = entry.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok());
        open.extend(number.filter(|fd| *fd > 2 && *fd != own));
    }
    Ok(open)
}
