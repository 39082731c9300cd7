//! `edge wasm`: programs tried on this machine. No cluster is needed, so this is also where the engine itself is tested.

use crate::harness::PATIENCE;
use crate::harness::wasm::{command, component, module};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

fn edge() -> Command {
    Command::new(env!("CARGO_BIN_EXE_edge"))
}

/// Runs a program with options of edge and its own arguments.
fn run(program: &Path, options: &[&str], args: &[&str]) -> Output {
    edge().args(["wasm", "run"]).arg(program).args(options).arg("--").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn wasm_commands_have_arguments_variables_files_and_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("greeting"), "hello from a file\n").unwrap();
    let mount = format!("{}:/data", dir.path().display());
    for program in [module("hello"), command("hello")] {
        let out = run(
            &program,
            &["--env=A=1", "--dir", &mount],
            &["args", "env", "A", "env", "HOME", "cat", "/data/greeting"],
        );
        let told = text(&out.stdout);
        assert!(out.status.success(), "{told}{}", text(&out.stderr));
        assert!(told.contains("A=1\nHOME=(not set)\nhello from a file\n"), "{told}");
        assert!(told.contains("env\nHOME\n"), "{told}");
        // Within what it was given, and nothing else.
        let out =
            run(&program, &["--dir", &mount], &["write", "/data/new", "written", "ls", "/data", "cat", "/etc/passwd"]);
        let told = text(&out.stdout);
        assert!(told.contains("new") && !told.contains("root:"), "{told}");
        assert_eq!(std::fs::read_to_string(dir.path().join("new")).unwrap(), "written");
        std::fs::remove_file(dir.path().join("new")).unwrap();
        let out = run(&program, &["--dir", &format!("{mount}:ro")], &["write", "/data/new", "written"]);
        assert!(!out.status.success() && !dir.path().join("new").exists(), "{}", text(&out.stdout));
        let out = run(&program, &["--dir", &mount], &["cat", "/data/../../../etc/passwd"]);
        assert!(!text(&out.stdout).contains("root:"), "{}", text(&out.stdout));
    }
    // Relative paths begin where they are told to, and absolute ones where they always do.
    std::fs::create_dir_all(dir.path().join("work/deep")).unwrap();
    std::fs::write(dir.path().join("work/note"), "of the work\n").unwrap();
    std::os::unix::fs::symlink("/etc", dir.path().join("work/link")).unwrap();
    let root = format!("{}:/", dir.path().display());
    for program in [module("hello"), command("hello")] {
        let args =
            ["cat", "note", "write", "deep/new", "newer", "cat", "/work/deep/new", "ls", ".", "cat", "../greeting"];
        let out = run(&program, &["--dir", &root, "--workdir=/work"], &args);
        let told = text(&out.stdout);
        assert!(told.starts_with("of the work\nnewer") && told.contains("deep\n"), "{told}");
        assert!(told.contains("../greeting: "), "{told}");
        let out = run(&program, &["--dir", &root, "--workdir=/work/link"], &["ls", "."]);
        assert!(!out.status.success() && !text(&out.stdout).contains("passwd"), "{}", text(&out.stdout));
    }
    assert_eq!(run(&module("hello"), &[], &["exit", "3"]).status.code(), Some(3));
    // Components that were made of modules know only success and failure.
    assert_eq!(run(&command("hello"), &[], &["exit", "3"]).status.code(), Some(1));
    let out = run(&module("hello"), &[], &["before", "trap"]);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(134), "before\n".to_owned()));
    assert!(text(&out.stderr).contains("unreachable"), "{}", text(&out.stderr));
}

#[test]
fn wasm_commands_have_clocks_random_numbers_and_standard_input() {
    for program in [module("hello"), command("hello")] {
        let mut child = edge()
            .args(["wasm", "run"])
            .arg(&program)
            .args(["--", "clock", "random", "stdin", "stderr", "complaint"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
        let out = child.wait_with_output().unwrap();
        let told = text(&out.stdout);
        assert!(told.contains("clock forward 20") && told.contains("random differs\none\ntwo\n"), "{told}");
        assert_eq!(text(&out.stderr), "complaint\n");
    }
}

#[test]
fn wasm_mistakes_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("no.wasm");
    std::fs::write(&file, "#!/bin/sh\n").unwrap();
    let out = run(&file, &[], &[]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("not a WebAssembly module"), "{}", text(&out.stderr));
    let out = run(&module("hello"), &["--dir=/tmp:relative"], &[]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("absolute"), "{}", text(&out.stderr));
    let out = run(&module("hello"), &["--memory=64Ki"], &[]);
    assert!(text(&out.stderr).contains("bytes of memory to begin with"), "{}", text(&out.stderr));
    let out = run(&module("hello"), &["--env=NOT_SET_ANYWHERE"], &[]);
    assert!(text(&out.stderr).contains("not set here"), "{}", text(&out.stderr));
}

#[test]
fn wasm_push_writes_archives_and_refuses_what_would_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("app.tar");
    let push = |program: &Path| {
        let output = format!("--output={}", archive.display());
        edge().args(["wasm", "push"]).arg(program).args(["registry.example/app:v1", &output]).output().unwrap()
    };
    let out = push(&command("hello"));
    assert!(out.status.success(), "{}", text(&out.stderr));
    let name = text(&out.stdout);
    let digest = name.trim().strip_prefix("registry.example/app:v1@").expect(&name).to_owned();
    let index = Command::new("tar").arg("-xOf").arg(&archive).arg("index.json").output().unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index.stdout).unwrap();
    assert_eq!(index["manifests"][0]["digest"], digest);
    // The same program is the same artifact.
    assert_eq!(text(&push(&command("hello")).stdout), name);
    let file = dir.path().join("no.wasm");
    std::fs::write(&file, b"\0asm\x01\0\0\0").unwrap();
    let out = push(&file);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("exports no _start"), "{}", text(&out.stderr));
}

/// An HTTP server that runs, and ends with the test.
struct Server {
    child: Child,
    address: String,
    log: std::sync::mpsc::Receiver<String>,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let mut child = edge()
            .args(["wasm", "run"])
            .arg(component("http"))
            .args(["--listen=127.0.0.1:0"])
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.next().expect("a line that says where it listens").unwrap();
        let address = first.strip_prefix("edge: listening on http://").expect(&first).to_owned();
        let (sender, log) = std::sync::mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, address, log }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Status and body of a GET.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = self.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
        answer(&mut stream)
    }

    fn curl(&self, options: &[&str], path: &str) -> Vec<u8> {
        let url = format!("http://{}{path}", self.address);
        let out = Command::new("curl").args(["-s", "-m", "60"]).args(options).arg(url).output().unwrap();
        assert!(out.status.success(), "curl {options:?} {path}: {:?}", out.status);
        out.stdout
    }

    fn logged(&self) -> String {
        self.log.recv_timeout(PATIENCE).expect("a log line")
    }

    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the server goes on");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads an answer to its end; bodies in chunks are put together.
fn answer(stream: &mut TcpStream) -> (u16, String) {
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    let (head, body) = all.split_once("\r\n\r\n").expect(&all);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut rest, mut whole) = (body, String::new());
    while let Some((length, more)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&more[..length]);
        rest = more.get(length + 2..).unwrap_or_default();
    }
    (status, whole)
}

#[test]
fn wasm_http_each_request_has_an_instance_of_its_own() {
    let server = Server::start(&["--env=COLOUR=green"]);
    assert_eq!(server.get("/path?query"), (200, "hello from wasm /path?query\n".to_owned()));
    assert_eq!(server.get("/env/COLOUR"), (200, "green\n".to_owned()));
    // The environment is its configuration, too.
    assert_eq!(server.get("/config/COLOUR"), (200, "green of few\n".to_owned()));
    assert_eq!(server.get("/config/SHAPE"), (200, "(not set) of few\n".to_owned()));
    // Also on one connection.
    let mut stream = server.connect();
    stream
        .write_all(b"GET /count HTTP/1.1\r\nhost: a\r\n\r\nGET /count HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut both = String::new();
    stream.read_to_string(&mut both).unwrap();
    assert_eq!(both.matches("\r\n1\n").count(), 2, "{both}");
    assert_eq!(
        text(&server.curl(&["--http2-prior-knowledge", "-w", "%{http_version}"], "/h2")),
        "hello from wasm /h2\n2"
    );
    // One that names no host cannot be given to a program.
    let mut stream = server.connect();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(answer(&mut stream).0, 400);
}

#[test]
fn wasm_http_bodies_stream_both_ways() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("body");
    let body: Vec<u8> = (0..5_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&file, &body).unwrap();
    assert!(server.curl(&["-T", file.to_str().unwrap()], "/echo") == body);
    // What is sent comes back before the request has ended.
    let mut stream = server.connect();
    stream.write_all(b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").unwrap();
    let mut got = Vec::new();
    while !text(&got).contains("first") {
        let mut some = [0; 1024];
        let n = stream.read(&mut some).unwrap();
        assert!(n > 0, "ended after {}", text(&got));
        got.extend_from_slice(&some[..n]);
    }
}

#[test]
fn wasm_http_failures_hurt_only_their_request() {
    let server = Server::start(&["--memory=32Mi"]);
    assert_eq!(server.get("/trap").0, 500);
    let logged = server.logged();
    assert!(logged.contains("GET /trap") && logged.contains("unreachable"), "{logged}");
    // Nor is a part of an answer taken for all of it.
    assert_eq!(server.get("/begun/10").0, 500);
    assert!(server.logged().contains("GET /begun/10"));
    let url = format!("http://{}/begun/100000", server.address);
    let part = Command::new("curl").args(["-s", "-m", "60", "-o", "/dev/null", &url]).status().unwrap();
    assert!(matches!(part.code(), Some(18 | 52 | 56)), "a connection that ends too early: {part}");
    assert!(server.logged().contains("after its answer had begun"));
    // More that compute for ever than there are processors: others are answered meanwhile, and they end with their clients.
    let spinning: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"GET /spin HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            stream
        })
        .collect();
    assert_eq!(server.get("/meanwhile").0, 200);
    drop(spinning);
    let used = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).unwrap();
        stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(2).map(|t| t.parse::<u64>().unwrap()).sum()
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let before = used();
        thread::sleep(Duration::from_millis(500));
        if used() - before <= 1 {
            break;
        }
        assert!(Instant::now() < until, "it still computes");
    }
    assert_eq!(server.get("/after"), (200, "hello from wasm /after\n".to_owned()));
}

#[test]
fn wasm_http_programs_ask_others_when_they_may() {
    let upstream = Server::start(&[]);
    let server = Server::start(&["--network"]);
    assert_eq!(server.get(&format!("/fetch/{}/there", upstream.address)), (200, "hello from wasm /there\n".to_owned()));
    let (status, why) = server.get("/fetch/127.0.0.1:1/");
    // WASI's number for a refused connection.
    assert_eq!((status, why.as_str()), (502, "no answer: error 6\n"));
    let alone = Server::start(&[]);
    // And for a request that is denied.
    let (status, why) = alone.get(&format!("/fetch/{}/there", upstream.address));
    assert_eq!((status, why.as_str()), (502, "no answer: error 15\n"));
}

#[test]
fn wasm_http_servers_finish_what_has_begun() {
    let mut server = Server::start(&[]);
    let idle = server.connect();
    let mut stream = server.connect();
    stream.write_all(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nfirst").unwrap();
    // It has begun when something comes back.
    let mut one = [0];
    stream.read_exact(&mut one).unwrap();
    server.terminate();
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(&server.address).is_ok() {
        assert!(Instant::now() < until, "it still accepts");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(server.child.try_wait().unwrap().is_none(), "it did not wait");
    stream.write_all(b" last").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("last"), "{rest}");
    assert_eq!(server.ended(), Some(0));
    drop(idle);
}
