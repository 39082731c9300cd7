//! Runs `edge` and writes down every function that it executes, in the order of their first calls.

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the program to be traced, in the environment.
pub(super) const BINARY: &str = "EDGE_FUNCTIONS_OF";
/// Names the directory for what was found: one file per tracer, with lines `<phase> <name of a function>`.
pub(super) const RECORD: &str = "EDGE_FUNCTIONS_TO";

const BREAKPOINT: u8 = 0xcc;

/// Puts the breakpoints back into all traced processes. What follows is of the next phase.
pub(super) fn next_phase(record: &Path) {
    for file in std::fs::read_dir(record).unwrap().flatten() {
        let pid: i32 = file.file_name().to_str().unwrap().parse().unwrap();
        // the tracer takes this signal as its own
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGURG).unwrap();
    }
}

/// Runs `binary` with the arguments of this program. It ends with this process, whatever ends it.
#[expect(clippy::zombie_processes, reason = "the loop waits for all that is traced")]
pub(super) fn trace(binary: &Path, record: &Path) -> ! {
    // the shell waits until it is traced
    let mut child = Command::new("sh")
        .args(["-c", r#"read go; exec "$0" "$@" </dev/null"#])
        .arg(binary)
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    ptrace::attach(pid).unwrap();
    waitpid(pid, None).unwrap();
    let options = Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options).unwrap();
    ptrace::cont(pid, None).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut tracer = Tracer::new(pid, binary, record);
    loop {
        tracer.step();
    }
}

struct Tracer {
    main: Pid,
    binary: PathBuf,
    functions: Functions,
    /// Where the program lies in memory; all of its processes are copies of the first, or of one that lies elsewhere.
    bases: HashMap<Pid, u64>,
    threads: HashSet<Pid>,
    phase: u32,
    seen: HashSet<u64>,
    record: File,
}

impl Tracer {
    fn new(main: Pid, binary: &Path, record: &Path) -> Self {
        Self {
            main,
            binary: binary.to_owned(),
            functions: Functions::of(binary),
            bases: HashMap::new(),
            threads: HashSet::from([main]),
            phase: 0,
            seen: HashSet::new(),
            record: File::create(record.join(main.to_string())).unwrap(),
        }
    }

    fn step(&mut self) {
        match waitpid(None, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::Exited(pid, status) if pid == self.main => std::process::exit(status),
            WaitStatus::Signaled(pid, ..) if pid == self.main => std::process::exit(1),
            WaitStatus::PtraceEvent(pid, _, event) if event == nix::libc::PTRACE_EVENT_EXEC => self.executed(pid),
            WaitStatus::PtraceEvent(pid, ..) => resume(pid, None),
            // a new thread or process begins with this
            WaitStatus::Stopped(pid, Signal::SIGSTOP) if self.threads.insert(pid) => resume(pid, None),
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => self.reached(pid),
            WaitStatus::Stopped(pid, Signal::SIGURG) => {
                self.phase += 1;
                self.seen.clear();
                let base = base(pid, &self.binary);
                self.functions.arm(pid, base.unwrap());
                resume(pid, None);
            }
            WaitStatus::Stopped(pid, signal) => resume(pid, Some(signal)),
            _ => {}
        }
    }

    fn executed(&mut self, pid: Pid) {
        self.bases.remove(&pid);
        match base(pid, &self.binary) {
            Some(base) => {
                self.functions.arm(pid, base);
                resume(pid, None);
            }
            // a container's program
            None => {
                let _ = ptrace::detach(pid, None);
            }
        }
    }

    fn reached(&mut self, pid: Pid) {
        // a process that has just been killed is no longer there to be asked
        let Ok(mut registers) = ptrace::getregs(pid) else { return };
        let address = registers.rip - 1;
        let base = match self.bases.get(&pid) {
            Some(base) => *base,
            None => {
                let Some(base) = base(pid, &self.binary) else { return resume(pid, Some(Signal::SIGTRAP)) };
                self.bases.insert(pid, base);
                base
            }
        };
        let Some(function) = self.functions.at.get(&(address - base)) else {
            return resume(pid, Some(Signal::SIGTRAP));
        };
        if let Ok(memory) = File::options().write(true).open(format!("/proc/{pid}/mem")) {
            let _ = memory.write_all_at(&[function.first_byte], address);
        }
        registers.rip = address;
        let _ = ptrace::setregs(pid, registers);
        if self.seen.insert(address - base) {
            let mut lines = String::new();
            for name in &function.names {
                lines.push_str(&format!("{} {name}\n", self.phase));
            }
            self.record.write_all(lines.as_bytes()).unwrap();
        }
        resume(pid, None);
    }
}

fn resume(pid: Pid, signal: Option<Signal>) {
    // it may have been killed meanwhile
    let _ = ptrace::cont(pid, signal);
}

/// Where a process has the program in memory; nothing when it executes another.
fn base(pid: Pid, binary: &Path) -> Option<u64> {
    let binary = binary.canonicalize().unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let first = maps.lines().find(|line| line.ends_with(binary.to_str().unwrap()))?;
    u64::from_str_radix(first.split('-').next()?, 16).ok()
}

struct Function {
    names: Vec<String>,
    first_byte: u8,
}

/// The functions of the program, by their place in it.
struct Functions {
    at: HashMap<u64, Function>,
    /// The code as it has to look with all breakpoints in it, and where it begins.
    armed: Vec<u8>,
    from: u64,
}

impl Functions {
    fn of(binary: &Path) -> Self {
        let listing = |option: &str| {
            let output = Command::new("readelf").args([option, "-W"]).arg(binary).output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let sections = listing("--sections");
        let text = sections.lines().find_map(|line| line.split_once("] .text ")).unwrap().1;
        let fields: Vec<&str> = text.split_whitespace().collect();
        let (from, offset, size) = (number(fields[1]), number(fields[2]), number(fields[3]));
        let mut armed = vec![0; size.try_into().unwrap()];
        File::open(binary).unwrap().read_exact_at(&mut armed, offset).unwrap();

        let mut at: HashMap<u64, Function> = HashMap::new();
        for line in listing("--symbols").lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, address, _, "FUNC", _, _, _, name] = fields[..] else { continue };
            let address = number(address);
            if (from..from + size).contains(&address) {
                let place = usize::try_from(address - from).unwrap();
                let first_byte = armed[place];
                let function = at.entry(address).or_insert(Function { names: Vec::new(), first_byte });
                function.names.push(name.to_owned());
            }
        }
        for address in at.keys() {
            armed[usize::try_from(address - from).unwrap()] = BREAKPOINT;
        }
        assert!(at.len() > 10_000, "the binary has been stripped of its symbols");
        Self { at, armed, from }
    }

    fn arm(&self, pid: Pid, base: u64) {
        let memory = File::options().write(true).open(format!("/proc/{pid}/mem")).unwrap();
        memory.write_all_at(&self.armed, base + self.from).unwrap();
    }
}
