//! Starting the worker, and taking its answer without trusting it.

use super::error::CompileError;
use super::worker::{Answer, COMPILE_WORKER, Task};
use crate::world::World;
use edge_sys::pidfd::PidFd;
use nix::libc;
use nix::unistd::{SysconfVar, sysconf};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::NamedTempFile;

/// Largest module. The largest known ones (interpreters with their libraries) have some 50 MB.
const MAX_MODULE: u64 = 512 << 20;
/// Longest first line of an answer.
const MAX_LINE: u64 = 64 * 1024;
/// How much of what a crashing worker says is kept.
const MAX_STDERR: u64 = 4096;

/// What a module gets beyond the base for each MiB, in seconds of processor time: it takes half a second on a server and some
/// five on the smallest machines.
const SECONDS_PER_MIB: u64 = 10;
/// What a module gets beyond the base for each of its bytes, in bytes of memory.
const MEMORY_PER_BYTE: u64 = 40;
/// Waiting for a processor counts as well, but not as much.
const WALL_FACTOR: u64 = 4;

/// What compiling even the smallest module may take; larger ones get more, in proportion to their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Bytes of memory, and of address space but for what the C library reserves for threads. Never more than half of the machine's memory
    /// beyond this.
    pub memory: u64,
    /// Seconds of processor time.
    pub seconds: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self { memory: 512 << 20, seconds: 30 }
    }
}

/// One execution of the worker.
pub(super) struct Job {
    program: PathBuf,
    module: Option<File>,
    memory: u64,
    seconds: u64,
}

/// What a worker made, in a file without a final name.
pub(super) struct Output {
    pub(super) engine_key: String,
    pub(super) world: World,
    pub(super) code: NamedTempFile,
    pub(super) bytes: u64,
    pub(super) crc32: u32,
}

impl Job {
    pub(super) fn engine_key(program: &Path) -> Self {
        let CompileLimits { memory, seconds } = CompileLimits::default();
        Self { program: program.to_owned(), module: None, memory, seconds }
    }

    pub(super) fn module(program: &Path, module: &Path, base: CompileLimits) -> Result<Self, CompileError> {
        // An image may hold anything of that name; a pipe would keep us waiting.
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(module);
        let file = opened.map_err(CompileError::io("open", module))?;
        let metadata = file.metadata().map_err(CompileError::io("read", module))?;
        if !metadata.is_file() {
            return Err(CompileError::Invalid("not a regular file".to_owned()));
        }
        let bytes = metadata.len();
        if bytes > MAX_MODULE {
            return Err(CompileError::TooLarge { bytes, limit: MAX_MODULE });
        }
        let memory = (base.memory + bytes * MEMORY_PER_BYTE).min(half_of_memory().max(base.memory));
        let seconds = base.seconds + (bytes >> 20) * SECONDS_PER_MIB;
        Ok(Self { program: program.to_owned(), module: Some(file), memory, seconds })
    }

    pub(super) async fn ask_key(self) -> Result<String, CompileError> {
        self.supervise(|mut child, job| {
            let answer = read_line(&mut BufReader::new(take_stdout(&mut child)?));
            match (answer, job.end(child)) {
                (Ok(Answer::EngineKey(key)), Ok(())) if is_key(&key) => Ok(key),
                (Ok(Answer::Failed(reason)), _) => Err(CompileError::Worker(reason)),
                (_, Err(error)) => Err(error),
                (Ok(_), Ok(())) => Err(unexpected("another answer than was asked for")),
                (Err(error), Ok(())) => Err(unexpected(&error.to_string())),
            }
        })
        .await
    }

    /// Compiles; what comes out is in an unnamed file of `directory`.
    pub(super) async fn run(self, directory: &Path) -> Result<Output, CompileError> {
        let directory = directory.to_owned();
        self.supervise(move |mut child, job| {
            let mut stdout = BufReader::new(take_stdout(&mut child)?);
            let answer = read_line(&mut stdout);
            let taken = match &answer {
                Ok(Answer::Compiled { bytes, .. }) => Some(take_code(&mut stdout, *bytes, job.memory, &directory)),
                _ => None,
            };
            // With its pipe closed a worker that says more than it should ends, too.
            drop(stdout);
            let ended = job.end(child);
            match (answer, taken) {
                (Ok(Answer::Compiled { engine_key, world, bytes }), Some(Ok((code, crc32)))) => {
                    ended?;
                    Ok(Output { engine_key, world, code, bytes, crc32 })
                }
                (Ok(Answer::Invalid(reason)), _) => Err(CompileError::Invalid(reason)),
                (Ok(Answer::Failed(reason)), _) => Err(CompileError::Worker(reason)),
                (_, Some(Err(error @ CompileError::Io { .. }))) => Err(error),
                (_, Some(Err(error))) => Err(ended.err().unwrap_or(error)),
                (Ok(_), _) => Err(unexpected("another answer than was asked for")),
                (Err(error), _) => Err(ended.err().unwrap_or_else(|| unexpected(&error.to_string()))),
            }
        })
        .await
    }

    /// Starts the worker and has `listen` deal with it on a thread that lives as long as the worker (which ends with the
    /// thread that started it). Dropping the future, or waiting too long, kills the worker.
    async fn supervise<T: Send + 'static>(
        mut self,
        listen: impl FnOnce(Child, &Self) -> Result<T, CompileError> + Send + 'static,
    ) -> Result<T, CompileError> {
        let seconds = self.seconds * WALL_FACTOR;
        let killer = Arc::new(Killer::default());
        let guard = Guard(Arc::clone(&killer));
        let work = blocking(move || {
            let mut child = self.spawn()?;
            killer.arm(&mut child)?;
            listen(child, &self)
        });
        let outcome = tokio::time::timeout(Duration::from_secs(seconds), work).await;
        drop(guard);
        outcome.unwrap_or(Err(CompileError::TimedOut { seconds }))
    }

    fn spawn(&mut self) -> Result<Child, CompileError> {
        let (task, stdin) = match self.module.take() {
            Some(file) => {
                let parent = std::process::id().cast_signed();
                (Task::Compile { parent, memory: self.memory, seconds: self.seconds }, Stdio::from(file))
            }
            None => (Task::EngineKey, Stdio::null()),
        };
        let task = serde_json::to_string(&task).map_err(|error| CompileError::Worker(error.to_string()))?;
        let mut command = Command::new(&self.program);
        command.arg(COMPILE_WORKER).arg(task).env_clear().current_dir("/");
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(CompileError::io("execute", &self.program))
    }

    /// Waits until the worker has ended, and says what is to be said if not of its own will.
    fn end(&self, mut child: Child) -> Result<(), CompileError> {
        let said = child.stderr.take().map(read_stderr).unwrap_or_default();
        let status = child.wait().map_err(|error| CompileError::Worker(error.to_string()))?;
        match status.signal() {
            None if status.success() => Ok(()),
            Some(libc::SIGXCPU) => Err(CompileError::TooMuchTime { seconds: self.seconds }),
            // Not by us, or nobody would wait here: the system was out of memory.
            Some(libc::SIGKILL) => Err(CompileError::TooMuchMemory { bytes: self.memory }),
            _ if said.contains("memory allocation of") => Err(CompileError::TooMuchMemory { bytes: self.memory }),
            _ => Err(CompileError::Crashed(crash(status, &said))),
        }
    }
}

/// Ends a worker from outside of the thread that waits for it.
#[derive(Default)]
struct Killer(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    NotStarted,
    Running(PidFd),
    /// Nobody wants what comes out.
    Dropped,
}

impl Killer {
    /// The child has not been waited for, so its pid is still its own.
    fn arm(&self, child: &mut Child) -> Result<(), CompileError> {
        let handle = PidFd::open(child.id().cast_signed());
        let mut state = self.0.lock();
        match (&*state, handle) {
            (State::NotStarted | State::Running(_), Ok(handle)) => {
                *state = State::Running(handle);
                Ok(())
            }
            (State::Dropped, _) => Err("nobody waits for the answer".to_owned()),
            (_, Err(error)) => Err(error.to_string()),
        }
        .map_err(|reason| {
            // It is gone already, or will be; either way it must not stay a zombie.
            let _ = child.kill();
            let _ = child.wait();
            CompileError::Worker(reason)
        })
    }
}

/// Kills the worker when the future that waits for it ends.
struct Guard(Arc<Killer>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let State::Running(handle) = std::mem::replace(&mut *self.0.0.lock(), State::Dropped) {
            // One that has ended is fine.
            let _ = handle.send_signal(libc::SIGKILL);
        }
    }
}

/// Reads the first line.
fn read_line(from: &mut impl BufRead) -> io::Result<Answer> {
    let mut line = Vec::new();
    from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

/// Takes as much machine code as was announced into a file of `directory`, with its CRC-32.
fn take_code(
    from: &mut impl Read,
    bytes: u64,
    limit: u64,
    directory: &Path,
) -> Result<(NamedTempFile, u32), CompileError> {
    if bytes > limit {
        return Err(unexpected("more machine code than it may have memory"));
    }
    let mut file = NamedTempFile::new_in(directory).map_err(CompileError::io("make a file in", directory))?;
    let (mut hasher, mut left, mut buffer) = (crc32fast::Hasher::new(), bytes, vec![0; 64 * 1024]);
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match from.read(&mut buffer[..wanted]) {
            Ok(0) => return Err(unexpected("less machine code than announced")),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                file.write_all(&buffer[..n]).map_err(CompileError::io("write to", directory))?;
                left -= n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CompileError::Worker(error.to_string())),
        }
    }
    Ok((file, hasher.finalize()))
}

fn take_stdout(child: &mut Child) -> Result<std::process::ChildStdout, CompileError> {
    child.stdout.take().ok_or_else(|| CompileError::Worker("it has no output".to_owned()))
}

fn read_stderr(stderr: ChildStderr) -> String {
    let mut text = Vec::new();
    // What is missing is only missing from an error's text.
    let _ = stderr.take(MAX_STDERR).read_to_end(&mut text);
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn crash(status: ExitStatus, said: &str) -> String {
    let last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).take(4).collect();
    if last.is_empty() { status.to_string() } else { format!("{status}: {}", last.join(" ")) }
}

fn unexpected(what: &str) -> CompileError {
    CompileError::Crashed(format!("it gave {what}"))
}

/// Whether it can be part of a file name, as every engine key can.
fn is_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= 64 && key.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Half of the machine's memory, in bytes.
fn half_of_memory() -> u64 {
    let get = |name| sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
    get(SysconfVar::_PHYS_PAGES).zip(get(SysconfVar::PAGE_SIZE)).map_or(0, |(pages, size)| pages * size / 2)
}

/// Runs `work` where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CompileError> + Send + 'static,
) -> Result<T, CompileError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(CompileError::Worker(error.to_string())))
}
