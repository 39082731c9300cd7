//! A host of many programs, in a thread of the test.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{compile, invocation};
use crate::dense::{Capacity, Descriptors, Event, Request, Spec, Usage, host, read_event, send_request, send_start};
use crate::{Invocation, Outcome, Preopen, inspect};

/// A host that lives as long as the test's process, and where it listens.
fn start_host() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let listener = edge_sys::socket::listen_at(&directory.path().join("host")).unwrap();
    std::thread::spawn(|| host(listener, Capacity { instances: 64, memories: 64 }, Duration::from_secs(3600)));
    directory
}

/// A program in the host, as its monitor sees it.
struct Monitor {
    socket: OwnedFd,
    stdout: File,
    stderr: File,
}

struct Wanted<'a> {
    code: &'a File,
    spec: Spec,
}

impl Monitor {
    fn start(host: &tempfile::TempDir, wanted: &Wanted<'_>) -> Self {
        let socket = edge_sys::socket::connect_in(host.path(), "host").unwrap();
        // The test waits for each answer.
        let flags =
            nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_GETFL).unwrap());
        let blocking = nix::fcntl::FcntlArg::F_SETFL(flags - nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&socket, blocking).unwrap();
        let (stdout, to_stdout) = std::io::pipe().unwrap();
        let (stderr, to_stderr) = std::io::pipe().unwrap();
        let root = File::open(host.path()).unwrap();
        let descriptors = Descriptors {
            code: wanted.code.as_fd(),
            root: root.as_fd(),
            stdout: to_stdout.as_fd(),
            stderr: to_stderr.as_fd(),
        };
        send_start(socket.as_fd(), &wanted.spec, &descriptors).unwrap();
        assert_eq!(read_event(socket.as_fd()).unwrap(), Some(Event::Hello));
        Self { socket, stdout: OwnedFd::from(stdout).into(), stderr: OwnedFd::from(stderr).into() }
    }

    fn next(&self) -> Event {
        let event = read_event(self.socket.as_fd()).unwrap().expect("the host is there");
        if event != Event::Prepared {
            return event;
        }
        self.ask(&Request::Run);
        self.next()
    }

    fn ask(&self, request: &Request) {
        send_request(self.socket.as_fd(), request).unwrap();
    }

    fn usage(&self) -> Usage {
        self.ask(&Request::Usage);
        match self.next() {
            Event::Usage(usage) => usage,
            event => panic!("{event:?}"),
        }
    }

    /// What it wrote, up to its end.
    fn written(mut self) -> (String, String) {
        drop(self.socket);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.stderr.read_to_string(&mut stderr).unwrap();
        (stdout, stderr)
    }
}

fn wanted<'a>(code: &'a File, text: &str, change: impl FnOnce(&mut Spec)) -> Wanted<'a> {
    let world = inspect(&wat::parse_str(text).unwrap()).unwrap();
    let root = Preopen { host: "/nowhere".into(), guest: "/".into(), read_only: false };
    let mut spec = Spec { invocation: Invocation { preopens: vec![root], ..invocation(world) }, cpu_millis: None };
    change(&mut spec);
    Wanted { code, spec }
}

fn code(text: &str) -> File {
    compile(&wat::parse_str(text).unwrap())
}

/// Writes a line to standard output as often as it says, and ends.
fn writer(times: u32) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "\08\00\00\00\06\00\00\00hello\n")
            (global $left (mut i32) (i32.const {times}))
            (func (export "_start")
                (loop $more
                    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
                    (global.set $left (i32.sub (global.get $left) (i32.const 1)))
                    (br_if $more (global.get $left)))))"#
    )
}

const SPINNER: &str = r#"(module (memory (export "memory") 3) (func (export "_start") (loop (br 0))))"#;

#[test]
fn many_programs_run_in_one_process() {
    let host = start_host();
    let text = writer(1);
    let code = code(&text);
    let programs: Vec<_> = (0..20).map(|_| Monitor::start(&host, &wanted(&code, &text, |_| ()))).collect();
    for program in programs {
        assert_eq!(program.next(), Event::Running);
        assert_eq!(program.next(), Event::Ended(Outcome::Exited(0)));
        assert_eq!(program.written(), ("hello\n".to_owned(), String::new()));
    }
}

#[test]
fn who_does_not_read_makes_only_the_writer_wait() {
    let host = start_host();
    let (long, short) = (writer(30_000), writer(1));
    let (long_code, short_code) = (code(&long), code(&short));
    // More than there are threads, all with full pipes.
    let full: Vec<_> = (0..8).map(|_| Monitor::start(&host, &wanted(&long_code, &long, |_| ()))).collect();
    for program in &full {
        assert_eq!(program.next(), Event::Running);
    }
    std::thread::sleep(Duration::from_millis(100));
    let other = Monitor::start(&host, &wanted(&short_code, &short, |_| ()));
    assert_eq!(other.next(), Event::Running);
    assert_eq!(other.next(), Event::Ended(Outcome::Exited(0)));
    for program in full {
        let mut stdout = program.stdout.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            stdout.read_to_end(&mut all).map(|_| all.len())
        });
        assert_eq!(program.next(), Event::Ended(Outcome::Exited(0)));
        drop(program);
        assert_eq!(reader.join().unwrap().unwrap(), 180_000, "nothing is lost");
    }
}

#[test]
fn processor_time_is_limited_and_counted_for_each() {
    let host = start_host();
    let code = code(SPINNER);
    let slow = Monitor::start(&host, &wanted(&code, SPINNER, |s| s.cpu_millis = Some(50)));
    assert_eq!(slow.next(), Event::Running);
    let begun = Instant::now();
    std::thread::sleep(Duration::from_millis(1500));
    let used = Duration::from_nanos(slow.usage().cpu);
    // A twentieth, and what one turn may take beyond.
    assert!(used <= begun.elapsed() / 20 + Duration::from_millis(30), "{used:?}");
    assert!(used >= Duration::from_millis(10), "{used:?}");
    assert_eq!(slow.usage().memory, 3 * 65_536);
    slow.ask(&Request::End(143));
    assert_eq!(slow.next(), Event::Ended(Outcome::Exited(143)));
}

#[test]
fn programs_that_compute_for_ever_leave_others_their_share() {
    let host = start_host();
    let (text, spinner) = (writer(1), code(SPINNER));
    let writer = code(&text);
    let spinning: Vec<_> = (0..8).map(|_| Monitor::start(&host, &wanted(&spinner, SPINNER, |_| ()))).collect();
    for program in &spinning {
        assert_eq!(program.next(), Event::Running);
    }
    let other = Monitor::start(&host, &wanted(&writer, &text, |_| ()));
    assert_eq!(other.next(), Event::Running);
    assert_eq!(other.next(), Event::Ended(Outcome::Exited(0)));
    // Whose monitor has gone, ends: then the host has nothing to do.
    drop(spinning);
    let used = || {
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
        usage.user_time().tv_sec() * 1_000_000 + usage.user_time().tv_usec()
    };
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let before = used();
        std::thread::sleep(Duration::from_millis(300));
        if used() - before < 100_000 {
            break;
        }
        assert!(Instant::now() < until, "they go on");
    }
}

#[test]
fn memory_is_limited_for_each() {
    let host = start_host();
    let text = r#"(module (memory 1) (func (export "_start")
        (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable))"#;
    let code = code(text);
    let program = Monitor::start(&host, &wanted(&code, text, |s| s.invocation.limits.memory = Some(1 << 20)));
    assert_eq!(program.next(), Event::Running);
    let Event::Ended(Outcome::OutOfMemory(words)) = program.next() else { panic!("not out of memory") };
    assert!(words.contains("1048576"), "{words}");
    let refused = Monitor::start(&host, &wanted(&code, text, |s| s.invocation.limits.memory = Some(1 << 15)));
    assert!(matches!(refused.next(), Event::Refused(why) if why.contains("65536")));
}
