//! Containers that run WebAssembly programs, written in the text format and compiled here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_runtime::spec::{Mount, MountSource, Propagation, User};
use edge_runtime::{
    AttachStreams, ContainerSpec, ContainerState, Error, ExecSpec, Isolation, PodRuntime, Resources, WasmSpec,
};
use edge_wasm::{Profile, World, engine};
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Node, eventually, exit_of, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("wasm_arguments_environment_and_exit_code", arguments_environment_and_exit_code),
        trial("wasm_stops_when_told", stops_when_told),
        trial("wasm_says_why_it_ended", says_why_it_ended),
        trial("wasm_memory_is_limited", memory_is_limited),
        trial("wasm_that_cannot_be_linked_is_not_created", that_cannot_be_linked_is_not_created),
        trial("wasm_sees_its_image_and_its_mounts", sees_its_image_and_its_mounts),
        trial("wasm_links_of_an_image_lead_nowhere", links_of_an_image_lead_nowhere),
        trial("wasm_has_no_privileges", has_no_privileges),
        trial("wasm_is_attached_to", is_attached_to),
        trial("wasm_executes_nothing_else", executes_nothing_else),
        trial("wasm_survives_the_daemon", survives_the_daemon),
    ]
}

/// Imports that most programs below have.
const IMPORTS: &str = r#"
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 2)
    ;; writes bytes to a descriptor; gives the error
    (func $write (param $fd i32) (param $at i32) (param $length i32) (result i32)
        (i32.store (i32.const 0) (local.get $at))
        (i32.store (i32.const 4) (local.get $length))
        (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
"#;

/// A program of a text, with the usual imports.
pub(crate) fn program(node: &Node, name: &str, body: &str) -> PathBuf {
    compile(node, name, &format!("(module {IMPORTS} {body})"))
}

pub(crate) fn compile(node: &Node, name: &str, text: &str) -> PathBuf {
    let wasm = wat::parse_str(text).unwrap();
    let code = engine(Profile::Compile).unwrap().precompile_module(&wasm).unwrap();
    let path = node.place.path().join(format!("{name}.code"));
    fs::write(&path, code).unwrap();
    path
}

/// A container of a program without an image.
pub(crate) fn container(node: &Node, id: &str, code: &Path) -> ContainerSpec {
    let log = node.place.path().join("logs").join(format!("{id}.log"));
    let mut spec = ContainerSpec::new(id, Vec::new(), vec!["program".to_owned()], log);
    spec.user = User { uid: 65532, gid: 65532, ..User::default() };
    spec.wasm = Some(WasmSpec {
        code: code.to_owned(),
        world: World::Preview1Command,
        listen: Vec::new(),
        memory: None,
        isolation: Isolation::Process,
    });
    spec
}

/// Prints the arguments and the environment as they lie in memory, and exits with 3.
pub(crate) const TELL: &str = r#"(func (export "_start")
    (drop (call $args_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $args_get (i32.const 1000) (i32.const 2000)))
    (drop (call $write (i32.const 1) (i32.const 2000) (i32.load (i32.const 20))))
    (drop (call $environ_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $environ_get (i32.const 1000) (i32.const 4000)))
    (drop (call $write (i32.const 2) (i32.const 4000) (i32.load (i32.const 20))))
    (call $proc_exit (i32.const 3)))"#;

async fn arguments_environment_and_exit_code(node: Arc<Node>) {
    node.sandbox("a").await;
    let code = program(&node, "tell", TELL);
    let mut spec = container(&node, "c", &code);
    spec.args = ["tell", "one", "two words"].map(str::to_owned).to_vec();
    spec.env = [("A", "1"), ("B", "2"), ("A", "3")].map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
    let exit = node.run("a", spec).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.message.as_str()), (3, None, false, ""));
    assert!(exit.started_at.unwrap() <= exit.finished_at);
    let log = node.log("c");
    let of = |stream: &str| log.iter().filter(|l| l.stream == stream).map(|l| l.text.clone()).collect::<String>();
    assert_eq!(of("stdout"), "tell\0one\0two words\0");
    assert_eq!(of("stderr"), "A=3\0B=2\0", "what is given and nothing else, each name once");
}

async fn stops_when_told(node: Arc<Node>) {
    node.sandbox("a").await;
    let spinning = program(&node, "spin", r#"(func (export "_start") (loop $l (br $l)))"#);
    node.start("a", container(&node, "c", &spinning)).await;
    let begun = Instant::now();
    let exit = node.runtime.stop_container("c", Duration::from_secs(60)).await.unwrap();
    assert_eq!((exit.code, exit.signal), (143, None), "{exit:?}");
    assert!(begun.elapsed() < Duration::from_secs(50), "told to end, not killed");
    // at once after its start, when a signal could be lost
    for number in 0..20 {
        let id = format!("c{number}");
        node.start("a", container(&node, &id, &spinning)).await;
        assert_eq!(node.runtime.stop_container(&id, Duration::from_secs(60)).await.unwrap().code, 143);
    }
    node.start("a", container(&node, "killed", &spinning)).await;
    let exit = node.runtime.stop_container("killed", Duration::ZERO).await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
}

async fn says_why_it_ended(node: Arc<Node>) {
    node.sandbox("a").await;
    let code = program(&node, "trap", r#"(func $deep (unreachable)) (func (export "_start") (call $deep))"#);
    let exit = node.run("a", container(&node, "c", &code)).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (134, None, false));
    assert!(exit.message.contains("unreachable"), "{exit:?}");
    let code = program(&node, "recursion", r#"(func $f (call $f)) (func (export "_start") (call $f))"#);
    let exit = node.run("a", container(&node, "deep", &code)).await;
    assert_eq!(exit.code, 134);
    assert!(exit.message.contains("stack"), "{exit:?}");
}

async fn memory_is_limited(node: Arc<Node>) {
    node.sandbox("a").await;
    // takes memory until it gets no more, then gives up
    let hungry = r#"(func (export "_start") (loop $l
        (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable))) (br $l)))"#;
    let code = program(&node, "hungry", hungry);
    let mut spec = container(&node, "c", &code);
    spec.wasm.as_mut().unwrap().memory = Some(16 << 20);
    let exit = node.run("a", spec).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true), "{exit:?}");
    assert!(exit.message.contains("memory"), "{exit:?}");

    // and one that the engine does not limit: the cgroup does
    let touching = r#"(func (export "_start") (local $p i32) (loop $l
        (local.set $p (memory.grow (i32.const 16)))
        (memory.fill (i32.mul (local.get $p) (i32.const 65536)) (i32.const 1) (i32.const 1048576)) (br $l)))"#;
    let code = program(&node, "touching", touching);
    let mut spec = container(&node, "d", &code);
    spec.resources = Resources { memory_limit: Some(64 << 20), ..Resources::default() };
    let exit = node.run("a", spec).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true), "{exit:?}");
}

async fn that_cannot_be_linked_is_not_created(node: Arc<Node>) {
    node.sandbox("a").await;
    let text = r#"(module (import "wasi_snapshot_preview1" "fd_teleport" (func)) (memory (export "memory") 1)
        (func (export "_start")))"#;
    let code = compile(&node, "strange", text);
    let err = node.runtime.create_container("a", container(&node, "c", &code)).await.unwrap_err();
    assert!(matches!(&err, Error::Start(reason) if reason.contains("wasi_snapshot_preview1.fd_teleport")), "{err:?}");
    // nor what is no machine code, or no more there, or too large for its limit
    fs::write(node.place.path().join("damaged.code"), vec![0; 5000]).unwrap();
    let damaged = container(&node, "c", &node.place.path().join("damaged.code"));
    let err = node.runtime.create_container("a", damaged).await.unwrap_err();
    assert!(matches!(&err, Error::Start(reason) if reason.contains("code")), "{err:?}");
    let gone = container(&node, "c", Path::new("/nonexistent"));
    assert!(matches!(node.runtime.create_container("a", gone).await.unwrap_err(), Error::Start(_)));
    let mut tight = container(&node, "c", &program(&node, "fine", r#"(func (export "_start"))"#));
    tight.wasm.as_mut().unwrap().memory = Some(65536);
    let err = node.runtime.create_container("a", tight).await.unwrap_err();
    assert!(matches!(&err, Error::Start(reason) if reason.contains("65536")), "{err:?}");
    // nothing is left of them, and the sandbox is as good as before
    node.no_zombies().await;
    assert_eq!(node.run("a", container(&node, "c", &node.place.path().join("fine.code"))).await.code, 0);
}

/// Opens the file whose path is the program's first argument below its root, copies it to stdout, then appends to it. Exits with the error of
/// opening for reading, or 100 and that of opening for writing.
pub(crate) const FILES: &str = r#"(func (export "_start") (local $path i32) (local $length i32) (local $error i32)
    (drop (call $args_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $args_get (i32.const 1000) (i32.const 2000)))
    (local.set $path (i32.add (i32.load (i32.const 1004)) (i32.const 1)))
    ;; up to the NUL that ends it
    (local.set $length (i32.sub (i32.add (i32.const 1999) (i32.load (i32.const 20))) (local.get $path)))
    (local.set $error (call $path_open (i32.const 3) (i32.const 1) (local.get $path) (local.get $length) (i32.const 0)
        (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 24)))
    (if (local.get $error) (then (call $proc_exit (local.get $error))))
    (i32.store (i32.const 0) (i32.const 8000))
    (i32.store (i32.const 4) (i32.const 1000))
    (drop (call $fd_read (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i32.const 12)))
    (drop (call $write (i32.const 1) (i32.const 8000) (i32.load (i32.const 12))))
    (local.set $error (call $path_open (i32.const 3) (i32.const 1) (local.get $path) (local.get $length) (i32.const 0)
        (i64.const 64) (i64.const 0) (i32.const 1) (i32.const 24)))
    (if (local.get $error) (then (call $proc_exit (i32.add (i32.const 100) (local.get $error)))))
    (drop (call $write (i32.load (i32.const 24)) (i32.const 8000) (i32.const 2))))"#;

/// The errors of WASI.
pub(crate) const ENOENT: i32 = 44;
pub(crate) const EACCES: i32 = 2;
/// What wasmtime makes of EROFS: an error of input or output.
pub(crate) const READ_ONLY: i32 = 29;

async fn sees_its_image_and_its_mounts(node: Arc<Node>) {
    node.sandbox("a").await;
    let code = program(&node, "files", FILES);
    let host = node.place.path().join("volume");
    fs::create_dir(&host).unwrap();
    nix::unistd::chown(&host, Some(65532.into()), None).unwrap();
    for (directory, text) in [(&host, "in the volume"), (&node.image(), "in the image")] {
        fs::write(directory.join("file"), text).unwrap();
        nix::unistd::chown(&directory.join("file"), Some(65532.into()), None).unwrap();
    }
    let mount = |destination: &str, path: &Path, read_only| Mount {
        destination: destination.into(),
        source: MountSource::Bind { path: path.to_owned(), propagation: Propagation::Private },
        read_only,
    };
    let hosts = node.place.path().join("hosts");
    fs::write(&hosts, "the pod's").unwrap();
    let of = async |id: &str, path: &str, root_read_only: bool| {
        let mut spec = container(&node, id, &code);
        spec.layers = vec![node.image()];
        spec.args = vec!["files".to_owned(), path.to_owned()];
        spec.security.read_only_rootfs = root_read_only;
        spec.mounts = vec![
            mount("/etc/hosts", &hosts, true),
            mount("/data", &host, false),
            mount("/a/deep/place", &host, true),
            mount("/one-file", &host.join("file"), true),
        ];
        spec.cwd = "/work/here".into();
        let exit = node.run("a", spec).await;
        let text = node.log(id).into_iter().map(|line| line.text).collect::<String>();
        (exit.code, text)
    };
    let told = |code, text: &str| (code, text.to_owned());
    assert_eq!(of("c1", "/file", false).await, told(0, "in the image"));
    assert_eq!(fs::read_to_string(node.image().join("file")).unwrap(), "in the image", "layers are never written to");
    assert_eq!(of("c2", "/file", true).await, told(100 + READ_ONLY, "in the image"));
    assert_eq!(of("c3", "/a/deep/place/file", false).await, told(100 + READ_ONLY, "in the volume"));
    assert_eq!(of("c4", "/one-file", false).await, told(100 + READ_ONLY, "in the volume"));
    assert_eq!(of("c5", "/data/file", true).await, told(0, "in the volume"), "volumes are as writable as they were");
    assert_eq!(of("c6", "/etc/hosts", false).await, told(100 + EACCES, "the pod's"));
    // what belongs to the process, and not to the program, is out of sight
    for (number, path) in ["/proc/self/mem", "/dev/null", "/guest/file", "/etc/resolv.conf"].iter().enumerate() {
        assert_eq!(of(&format!("d{number}"), path, false).await, told(ENOENT, ""), "{path}");
    }
    assert_eq!(of("e", "/data/../../../etc/shadow", false).await.1, "");
}

async fn links_of_an_image_lead_nowhere(node: Arc<Node>) {
    node.sandbox("a").await;
    let code = program(&node, "files", FILES);
    for (name, target) in [("up", "../../../.."), ("root", "/"), ("shadow", "/etc/shadow")] {
        std::os::unix::fs::symlink(target, node.image().join(name)).unwrap();
    }
    let volume = node.place.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "mine").unwrap();
    let mut spec = container(&node, "c", &code);
    spec.layers = vec![node.image()];
    spec.args = vec!["files".to_owned(), "/there/file".to_owned()];
    let mount = |destination: &str| Mount {
        destination: destination.into(),
        source: MountSource::Bind { path: volume.clone(), propagation: Propagation::Private },
        read_only: true,
    };
    // all of them end inside the image, wherever they point to
    spec.mounts = vec![mount("/root/there"), mount("/up/proc"), mount("/up/guest")];
    let exit = node.run("a", spec.clone()).await;
    assert_eq!((exit.code, node.log("c")[0].text.as_str()), (100 + EACCES, "mine"), "{exit:?}");
    spec.id = "d".to_owned();
    spec.log_path = node.place.path().join("logs/d.log");
    spec.args[1] = "/shadow".to_owned();
    let exit = node.run("a", spec).await;
    assert_ne!(exit.code, 0);
    assert!(node.log("d").is_empty(), "{:?}", node.log("d"));
}

async fn has_no_privileges(node: Arc<Node>) {
    node.sandbox("a").await;
    let code = program(&node, "spin", r#"(func (export "_start") (loop $l (br $l)))"#);
    let mut spec = container(&node, "c", &code);
    spec.user = User { uid: 7, gid: 8, additional_gids: vec![9], home: None };
    node.start("a", spec).await;
    let ContainerState::Running { pid, .. } = node.runtime.container_status("c").await.unwrap().state else {
        panic!("it does not run");
    };
    let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    // they are blocked until somebody listens for them
    eventually("no signal is blocked", || status().contains("SigBlk:\t0000000000000000")).await;
    let status = status();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!((field("Uid").as_str(), field("Gid").as_str(), field("Groups").as_str()), ("7 7 7 7", "8 8 8 8", "9"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    // of its file systems only the program's root can be written to, and nothing there is a device or executed
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (point, options) = (fields[4], fields[5]);
        let has = |option: &str| options.split(',').any(|o| o == option);
        match point {
            "/" => assert!(has("ro"), "{line}"),
            "/guest" => assert!(has("rw") && has("nodev") && has("nosuid") && has("noexec"), "{line}"),
            _ => assert!(point.starts_with("/proc") || point.starts_with("/dev") || has("ro"), "{line}"),
        }
    }
    // of what libcontainer and the monitor had open nothing is left, and of files only the code, to be read
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    for entry in open {
        let path = entry.unwrap().path();
        let target = fs::read_link(&path).unwrap();
        let known = ["pipe:", "socket:", "anon_inode:"].iter().any(|kind| target.to_str().unwrap().starts_with(kind));
        if !known && target != Path::new("/guest") && target != Path::new("/dev/null") {
            assert_eq!(target, code);
            let info = fs::read_to_string(path.to_str().unwrap().replace("/fd/", "/fdinfo/")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
            assert_eq!(u32::from_str_radix(&flags, 8).unwrap() & 3, 0, "read-only: {flags}");
        }
    }
}

async fn is_attached_to(node: Arc<Node>) {
    node.sandbox("a").await;
    // copies its input to its output until that ends
    let cat = r#"(func (export "_start") (loop $l
        (i32.store (i32.const 0) (i32.const 8000)) (i32.store (i32.const 4) (i32.const 100))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 12)))
        (if (i32.eqz (i32.load (i32.const 12))) (then (return)))
        (drop (call $write (i32.const 1) (i32.const 8000) (i32.load (i32.const 12)))) (br $l)))"#;
    let code = program(&node, "cat", cat);
    let mut spec = container(&node, "c", &code);
    (spec.stdin, spec.stdin_once) = (true, true);
    let mut events = node.runtime.events();
    node.start("a", spec).await;
    let streams = AttachStreams { stdin: true, stdout: true, stderr: false };
    let mut session = node.runtime.attach("c", streams).await.unwrap();
    let mut input = session.stdin.take().unwrap();
    input.write_all(b"hello\n").await.unwrap();
    input.shutdown().await.unwrap();
    drop(input);
    let mut output = String::new();
    session.stdout.take().unwrap().read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "hello\n");
    assert_eq!(exit_of(&mut events, "c").await.code, 0);
    assert_eq!(node.log("c")[0].text, "hello");

    // with a terminal, which echoes what is typed
    let mut spec = container(&node, "t", &code);
    (spec.stdin, spec.tty) = (true, true);
    node.start("a", spec).await;
    let mut session =
        node.runtime.attach("t", AttachStreams { stdin: true, stdout: true, stderr: false }).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"typed\n\x04").await.unwrap();
    let mut output = String::new();
    session.stdout.take().unwrap().read_to_string(&mut output).await.unwrap();
    assert_eq!(output.matches("typed").count(), 2, "{output:?}");
    assert_eq!(exit_of(&mut events, "t").await.code, 0);
    // and from which it is interrupted
    let mut spec = container(&node, "i", &code);
    (spec.stdin, spec.tty) = (true, true);
    node.start("a", spec).await;
    let mut session =
        node.runtime.attach("i", AttachStreams { stdin: true, stdout: true, stderr: false }).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"\x03").await.unwrap();
    assert_eq!(exit_of(&mut events, "i").await.code, 130);
}

async fn executes_nothing_else(node: Arc<Node>) {
    node.sandbox("a").await;
    let code = program(&node, "spin", r#"(func (export "_start") (loop $l (br $l)))"#);
    node.start("a", container(&node, "c", &code)).await;
    let spec = ExecSpec { args: vec!["sh".to_owned()], ..ExecSpec::default() };
    let err = node.runtime.exec("c", spec).await.unwrap_err();
    assert!(err.to_string().contains("WebAssembly"), "{err}");
}

async fn survives_the_daemon(node: Arc<Node>) {
    node.sandbox("a").await;
    let code = program(&node, "spin", r#"(func (export "_start") (loop $l (br $l)))"#);
    node.start("a", container(&node, "c", &code)).await;
    let trap = program(
        &node,
        "trap",
        r#"(func (export "_start") (loop $l
        (i32.store (i32.const 0) (i32.const 8000)) (i32.store (i32.const 4) (i32.const 100))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 12)))
        (unreachable)))"#,
    );
    let mut spec = container(&node, "t", &trap);
    (spec.stdin, spec.stdin_once) = (true, true);
    node.start("a", spec).await;
    let session = node.runtime.attach("t", AttachStreams { stdin: true, stdout: false, stderr: false }).await.unwrap();
    drop(session);
    let recorded = node.container_directory("a", "t").join("exit.json");
    eventually("its end is recorded", || recorded.exists()).await;
    let other = node.reopened();
    let found = other.adopt().await.unwrap();
    let state = |id: &str| found[0].containers.iter().find(|c| c.spec.id == id).unwrap().state.clone();
    assert!(matches!(state("c"), ContainerState::Running { .. }));
    assert!(matches!(state("t"), ContainerState::Exited(exit) if exit.message.contains("unreachable")));
    assert_eq!(other.stop_container("c", Duration::from_secs(60)).await.unwrap().code, 143);
}
