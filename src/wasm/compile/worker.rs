//! The process that compiles: what it may do, and what it does.
//!
//! It starts as edge itself, says goodbye to everything, and only then reads the first byte of the module (standard input).
//! From then on it can read that, write its answer (standard output) and ask for memory, up to its limits: no capabilities, an
//! unprivileged user, no files, no network, no other process, no further privileges, no environment.
//!
//! The answer is one line of JSON ([`Answer`]), then the machine code.

use crate::engine::{Profile, engine, engine_key};
use crate::inspect::{ModuleError, inspect};
use crate::machine_code;
use crate::run::PrepareError;
use crate::world::World;
use edge_sys::process;
use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, geteuid, getppid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use wasmtime::Engine;

/// The first argument with which a program is executed as compile worker: the first thing `main` looks at.
pub const COMPILE_WORKER: &str = "compile-worker";

/// The nice value: of a processor that others want, too, it gets a third of what one of them gets. A pod waits for it.
const HUMBLE: i32 = 5;
/// The user and group that own nothing.
const NOBODY: u32 = 65534;
/// Most threads that compile functions of one module.
const MOST_THREADS: usize = 8;
/// Bytes of a compiling thread's stack.
const STACK: usize = 4 << 20;
/// Bytes of address space that the C library may reserve for what a thread allocates, and does not use by that.
const RESERVED: u64 = 128 << 20;

/// System calls that reading, compiling and writing take; all others fail.
const SYSTEM_CALLS: &[&str] = &[
    "brk",
    "clock_gettime",
    "close",
    "exit",
    "exit_group",
    "fstat",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "lseek",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "read",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "sigaltstack",
    "tgkill",
    "write",
    "writev",
];

/// What the worker is to do; its second argument.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Say which engine it has.
    EngineKey,
    /// Compile what comes from standard input.
    Compile {
        /// The process that waits for the answer; without it there is nothing to do.
        parent: i32,
        /// Bytes of memory, and of address space but for what the threads reserve.
        memory: u64,
        /// Seconds of processor time.
        seconds: u64,
    },
}

/// The first line of what the worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Answer {
    EngineKey(String),
    #[serde(rename_all = "camelCase")]
    Compiled {
        engine_key: String,
        world: World,
        /// Of machine code, which follows.
        bytes: u64,
    },
    /// What is wrong with the module.
    Invalid(String),
    /// Why the worker cannot work.
    Failed(String),
}

/// Does what a process does that was started with [`COMPILE_WORKER`]. Must be called before the process has threads.
#[must_use]
pub fn compile_worker(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let task = args.next().and_then(|task| serde_json::from_str(task.to_str()?).ok());
    let (answer, code) = match task {
        Some(Task::EngineKey) => match engine(Profile::Compile) {
            Ok(engine) => (Answer::EngineKey(engine_key(&engine)), Vec::new()),
            Err(error) => (Answer::Failed(format!("{error:#}")), Vec::new()),
        },
        Some(Task::Compile { parent, memory, seconds }) => compile(parent, memory, seconds),
        None => (Answer::Failed("this is an internal command of edge".to_owned()), Vec::new()),
    };
    match say(&answer, &code) {
        Ok(()) => ExitCode::SUCCESS,
        // nobody listens any more
        Err(_) => ExitCode::FAILURE,
    }
}

fn say(answer: &Answer, code: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.write_all(code)?;
    out.flush()
}

fn compile(parent: i32, memory: u64, seconds: u64) -> (Answer, Vec<u8>) {
    // The engine asks the system what processor this is; afterwards there is nobody to ask.
    let engine = match engine(Profile::Compile) {
        Ok(engine) => engine,
        Err(error) => return (Answer::Failed(format!("{error:#}")), Vec::new()),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    if let Err(error) = give_up_everything(parent, memory, seconds, threads) {
        return (Answer::Failed(format!("cannot lock itself up: {error}")), Vec::new());
    }
    let mut module = Vec::new();
    if let Err(error) = io::stdin().lock().read_to_end(&mut module) {
        return (Answer::Failed(format!("read the module: {error}")), Vec::new());
    }
    match compile_and_check(&engine, &module) {
        Ok((world, code)) => {
            (Answer::Compiled { engine_key: engine_key(&engine), world, bytes: code.len() as u64 }, code)
        }
        Err(PrepareError::Module(reason)) => (Answer::Invalid(reason.to_string()), Vec::new()),
        Err(other) => (Answer::Failed(other.to_string()), Vec::new()),
    }
}

fn compile_and_check(engine: &Engine, module: &[u8]) -> Result<(World, Vec<u8>), PrepareError> {
    let world = inspect(module)?;
    let code = match world {
        World::Preview1Command => engine.precompile_module(module),
        World::CliCommand | World::HttpProxy => engine.precompile_component(module),
    };
    let code = code.map_err(|error| ModuleError::Invalid(format!("{error:#}")))?;
    // Nothing of it is executed: what would be missing when it starts is missing now.
    machine_code::check(engine, &code, world)?;
    Ok((world, code))
}

/// Leaves this process with nothing but its three descriptors, so many threads, and what its limits allow.
fn give_up_everything(parent: i32, memory: u64, seconds: u64, threads: usize) -> io::Result<()> {
    process::close_fds_except(&[])?;
    // Ends with whoever waits for it, which may have ended before we asked for that.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != Pid::from_raw(parent) {
        return Err(io::Error::other("nobody waits for the answer"));
    }
    // Should memory or processors get short, this process is the first to suffer. Where that cannot be set, it is as others.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let _ = process::set_nice(HUMBLE);
    let reserved = (RESERVED + STACK as u64) * threads as u64;
    for (limit, value) in [
        // What is reserved is no memory; what may be written to is, or can be.
        (Resource::RLIMIT_DATA, memory),
        (Resource::RLIMIT_AS, memory.saturating_add(reserved)),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NOFILE, 3),
        (Resource::RLIMIT_MEMLOCK, 0),
    ] {
        setrlimit(limit, value, value)?;
    }
    // First SIGXCPU, which says why it ends; then SIGKILL.
    setrlimit(Resource::RLIMIT_CPU, seconds, seconds + 1)?;
    if geteuid().is_root() {
        // Leaving root this way takes all capabilities along.
        setgroups(&[])?;
        setresgid(Gid::from_raw(NOBODY), Gid::from_raw(NOBODY), Gid::from_raw(NOBODY))?;
        setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY))?;
        // The change of identity has cleared this.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != Pid::from_raw(parent) {
            return Err(io::Error::other("nobody waits for the answer"));
        }
    }
    prctl::set_no_new_privs()?;
    // From here on there are as many threads as there will ever be, all of them nobody's.
    start_threads(threads).map_err(io::Error::other)?;
    setrlimit(Resource::RLIMIT_NPROC, 0, 0)?;
    filter_system_calls().map_err(io::Error::other)
}

/// Starts the threads among which the engine divides the functions of a module, and waits until they run: what a thread does to begin
/// is not among what it may do later. With one processor there is none but this.
fn start_threads(threads: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK);
    if threads == 1 {
        return pool.use_current_thread().build_global();
    }
    pool.build_global()?;
    rayon::broadcast(|_| ());
    Ok(())
}

/// Of all threads.
fn filter_system_calls() -> Result<(), libseccomp::error::SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(nix::libc::EPERM))?;
    filter.set_ctl_tsync(true)?;
    for name in SYSTEM_CALLS {
        filter.add_rule(ScmpAction::Allow, ScmpSyscall::from_name(name)?)?;
    }
    filter.load()
}
