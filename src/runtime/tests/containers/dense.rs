//! WebAssembly programs that share one process, the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_runtime::cgroup::Cgroups;
use edge_runtime::spec::{Mount, MountSource, Propagation};
use edge_runtime::{ContainerSpec, ContainerState, Error, Isolation, PodRuntime, Resources};
use edge_sys::pidfd::PidFd;
use libtest_mimic::Trial;

use crate::support::{Node, eventually, exit_of, trial};
use crate::wasm::{self, EACCES, ENOENT, FILES, READ_ONLY, TELL, compile, program};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("dense_arguments_environment_and_exit_code", arguments_environment_and_exit_code),
        trial("dense_stops_when_told", stops_when_told),
        trial("dense_says_why_it_ended", says_why_it_ended),
        trial("dense_that_cannot_be_linked_is_not_created", that_cannot_be_linked_is_not_created),
        trial("dense_sees_its_image_and_its_mounts_and_nothing_else", sees_its_image_and_its_mounts_and_nothing_else),
        trial("dense_processor_time_is_limited_and_told", processor_time_is_limited_and_told),
        trial("dense_host_has_no_privileges", host_has_no_privileges),
        trial("dense_survives_the_daemon", survives_the_daemon),
        trial("dense_host_that_dies_takes_its_programs_along", host_that_dies_takes_its_programs_along),
        trial("dense_host_ends_when_nobody_needs_it", host_ends_when_nobody_needs_it),
    ]
}

const SPIN: &str = r#"(func (export "_start") (loop $l (br $l)))"#;

fn container(node: &Node, id: &str, code: &Path) -> ContainerSpec {
    let mut spec = wasm::container(node, id, code);
    spec.wasm.as_mut().unwrap().isolation = Isolation::Dense;
    spec
}

/// The processes of all hosts.
fn hosts(node: &Node) -> Vec<i32> {
    let cgroups = Cgroups::detect(&node.place.cgroup_root).unwrap();
    cgroups.processes("kubepods/wasm-dense").unwrap()
}

/// What all hosts have on disk.
fn directories(node: &Node) -> Vec<PathBuf> {
    let all = fs::read_dir(node.place.path().join("run/dense")).into_iter().flatten().flatten();
    all.map(|entry| entry.path()).collect()
}

async fn arguments_environment_and_exit_code(node: Arc<Node>) {
    let code = program(&node, "tell", TELL);
    for id in ["a", "b", "c"] {
        node.sandbox(id).await;
        let mut spec = container(&node, &format!("of-{id}"), &code);
        spec.args = ["tell", "one", id].map(str::to_owned).to_vec();
        spec.env = [("A", "1"), ("B", id), ("A", "3")].map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
        let exit = node.run(id, spec).await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.message.as_str()), (3, None, false, ""));
        assert!(exit.started_at.unwrap() <= exit.finished_at);
        let log = node.log(&format!("of-{id}"));
        let of = |stream: &str| log.iter().filter(|l| l.stream == stream).map(|l| l.text.clone()).collect::<String>();
        assert_eq!(of("stdout"), format!("tell\0one\0{id}\0"));
        assert_eq!(of("stderr"), format!("A=3\0B={id}\0"));
    }
    assert_eq!(hosts(&node).len(), 1, "one for all");
}

async fn stops_when_told(node: Arc<Node>) {
    node.sandbox("a").await;
    let spinning = program(&node, "spin", SPIN);
    for number in 0..5 {
        let id = format!("c{number}");
        node.start("a", container(&node, &id, &spinning)).await;
        let begun = Instant::now();
        let exit = node.runtime.stop_container(&id, Duration::from_secs(60)).await.unwrap();
        assert_eq!((exit.code, exit.signal), (143, None), "{exit:?}");
        assert!(begun.elapsed() < Duration::from_secs(50), "told to end, not killed");
    }
    // what would not end a native program does not end this one
    node.start("a", container(&node, "killed", &spinning)).await;
    node.runtime.kill_container("killed", nix::libc::SIGWINCH).await.unwrap();
    let exit = node.runtime.stop_container("killed", Duration::ZERO).await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    // and one that was never started
    node.runtime.create_container("a", container(&node, "never", &spinning)).await.unwrap();
    let exit = node.runtime.stop_container("never", Duration::from_secs(60)).await.unwrap();
    assert_eq!((exit.code, exit.started_at), (137, None));
    node.no_zombies().await;
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
    let hungry = r#"(func (export "_start") (loop $l
        (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable))) (br $l)))"#;
    let mut spec = container(&node, "hungry", &program(&node, "hungry", hungry));
    spec.wasm.as_mut().unwrap().memory = Some(16 << 20);
    let exit = node.run("a", spec).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true), "{exit:?}");
    assert!(exit.message.contains("memory"), "{exit:?}");
}

async fn that_cannot_be_linked_is_not_created(node: Arc<Node>) {
    node.sandbox("a").await;
    let text = r#"(module (import "wasi_snapshot_preview1" "fd_teleport" (func)) (memory (export "memory") 1)
        (func (export "_start")))"#;
    let err = node.runtime.create_container("a", container(&node, "c", &compile(&node, "strange", text))).await;
    let err = err.unwrap_err();
    assert!(matches!(&err, Error::Start(reason) if reason.contains("wasi_snapshot_preview1.fd_teleport")), "{err:?}");
    let gone = container(&node, "c", Path::new("/nonexistent"));
    let err = node.runtime.create_container("a", gone).await.unwrap_err();
    assert!(matches!(&err, Error::Start(reason) if reason.contains("machine code")), "{err:?}");
    let fine = program(&node, "fine", r#"(func (export "_start"))"#);
    let mut tight = container(&node, "c", &fine);
    tight.wasm.as_mut().unwrap().memory = Some(65536);
    let err = node.runtime.create_container("a", tight).await.unwrap_err();
    assert!(matches!(&err, Error::Start(reason) if reason.contains("65536")), "{err:?}");
    // nor one whose image has what it could wait at for ever
    let fifo = node.image().join("etc/fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut waiting = container(&node, "c", &fine);
    waiting.layers = vec![node.image()];
    let err = node.runtime.create_container("a", waiting.clone()).await.unwrap_err();
    assert!(matches!(&err, Error::Start(reason) if reason.contains("FIFO")), "{err:?}");
    fs::remove_file(fifo).unwrap();
    // nothing is left of them, and the sandbox is as good as before
    node.no_zombies().await;
    assert_eq!(node.run("a", waiting).await.code, 0);
}

async fn sees_its_image_and_its_mounts_and_nothing_else(node: Arc<Node>) {
    node.sandbox("a").await;
    node.sandbox("b").await;
    let code = program(&node, "files", FILES);
    let host = node.place.path().join("volume");
    fs::create_dir(&host).unwrap();
    nix::unistd::chown(&host, Some(65532.into()), None).unwrap();
    for (directory, text) in [(&host, "in the volume"), (&node.image(), "in the image")] {
        fs::write(directory.join("file"), text).unwrap();
        nix::unistd::chown(&directory.join("file"), Some(65532.into()), None).unwrap();
    }
    // links to the machine's files, to the host's, and to other programs' directories, of which each is a descriptor
    let mut links = vec![
        ("/etc/passwd".to_owned(), "passwd".to_owned()),
        ("../../../proc/self/status".to_owned(), "own".to_owned()),
    ];
    links.extend((3..60).map(|fd| (format!("/proc/self/fd/{fd}"), format!("fd{fd}"))));
    for (target, name) in &links {
        std::os::unix::fs::symlink(target, node.image().join(name)).unwrap();
    }
    let mount = |destination: &str, path: &Path, read_only| Mount {
        destination: destination.into(),
        source: MountSource::Bind { path: path.to_owned(), propagation: Propagation::Private },
        read_only,
    };
    // somebody else, whose files are open in the same process
    let secret = node.place.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), "of somebody else").unwrap();
    let mut other = container(&node, "other", &program(&node, "spin", SPIN));
    other.resources = Resources { cpu_quota: Some(1000), ..Resources::default() };
    other.layers = vec![secret.clone()];
    node.start("b", other).await;

    let of = async |id: &str, path: &str, root_read_only: bool| {
        let mut spec = container(&node, id, &code);
        spec.layers = vec![node.image()];
        spec.args = vec!["files".to_owned(), path.to_owned()];
        spec.security.read_only_rootfs = root_read_only;
        spec.mounts = vec![mount("/data", &host, false), mount("/a/deep/place", &host, true)];
        let exit = node.run("a", spec).await;
        let text = node.log(id).into_iter().map(|line| line.text).collect::<String>();
        (exit.code, text)
    };
    let told = |code, text: &str| (code, text.to_owned());
    assert_eq!(of("c1", "/file", false).await, told(0, "in the image"));
    assert_eq!(fs::read_to_string(node.image().join("file")).unwrap(), "in the image", "layers are never written to");
    assert_eq!(of("c2", "/file", true).await, told(100 + READ_ONLY, "in the image"));
    assert_eq!(of("c3", "/a/deep/place/file", false).await, told(100 + READ_ONLY, "in the volume"));
    assert_eq!(of("c4", "/data/file", true).await, told(0, "in the volume"), "volumes are as writable as they were");
    for (number, path) in ["/proc/self/status", "/proc/1/root/file", "/dev/null"].iter().enumerate() {
        assert_eq!(of(&format!("d{number}"), path, false).await, told(ENOENT, ""), "{path}");
    }
    let mut number = 0;
    let mut nothing_at = async |path: String| {
        number += 1;
        let (code, text) = of(&format!("e{number}"), &path, false).await;
        assert!(code != 0 && text.is_empty(), "{path}: {code} {text}");
    };
    for path in ["/../proc/self/status", "/data/../../../../etc/passwd", "/data/../../proc/1/fd/8/file"] {
        nothing_at(path.to_owned()).await;
    }
    for (_, name) in &links {
        nothing_at(format!("/{name}")).await;
    }
    for fd in (3..60).step_by(8) {
        nothing_at(format!("/fd{fd}/file")).await;
    }
    assert_ne!(EACCES, 0);
    // the machine's table of mounts knows nothing of all that
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = node.place.path().to_str().unwrap().to_owned();
    assert!(!mounts.lines().any(|line| line.contains(&ours) && line.contains("/containers/")), "{mounts}");
}

async fn processor_time_is_limited_and_told(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut spec = container(&node, "c", &program(&node, "spin", SPIN));
    spec.resources = Resources { cpu_quota: Some(10_000), cpu_period: Some(100_000), ..Resources::default() };
    node.start("a", spec).await;
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let usage = node.runtime.container_usage("c").await.unwrap();
    let used = Duration::from_nanos(usage.cpu_nanos);
    assert!(used >= Duration::from_millis(50), "{used:?}");
    // what others have done for it counts, too
    assert!(used <= begun.elapsed() / 10 + Duration::from_millis(100), "{used:?}");
    assert!(usage.memory_working_set >= 2 * 65536, "{usage:?}");
    let of_pod = node.runtime.sandbox_usage("a").await.unwrap();
    assert!(of_pod.cpu_nanos >= usage.cpu_nanos && of_pod.memory_working_set >= 2 * 65536, "{of_pod:?}");
}

async fn host_has_no_privileges(node: Arc<Node>) {
    node.sandbox("a").await;
    node.start("a", container(&node, "c", &program(&node, "spin", SPIN))).await;
    let pid = hosts(&node)[0];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let id = "65532 65532 65532 65532";
    assert_eq!((field("Uid").as_str(), field("Gid").as_str(), field("Groups").as_str()), (id, id, ""));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    assert_eq!(field("NSpid").split(' ').next_back(), Some("1"), "a PID namespace of its own");
    for namespace in ["net", "mnt", "ipc", "uts", "pid"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let links = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert_eq!(links.lines().count(), 3, "the loopback and two lines of headings: {links}");
    // nothing of the machine's files, and nothing to write to but what belongs to programs
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let points: Vec<&str> = mounts.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    assert_eq!(points, ["/", "/proc"], "{mounts}");
    assert!(mounts.lines().next().unwrap().split(' ').nth(5).unwrap().split(',').any(|o| o == "ro"), "{mounts}");
    // nor of what edge was started with
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
}

async fn survives_the_daemon(node: Arc<Node>) {
    node.sandbox("a").await;
    let code = program(&node, "spin", SPIN);
    node.start("a", container(&node, "c", &code)).await;
    let before = hosts(&node);
    let other = node.reopened();
    let found = other.adopt().await.unwrap();
    assert!(matches!(found[0].containers[0].state, ContainerState::Running { .. }), "{found:?}");
    // the host that is there serves on
    other.create_container("a", container(&node, "d", &code)).await.unwrap();
    other.start_container("d").await.unwrap();
    assert_eq!(hosts(&node), before);
    for id in ["c", "d"] {
        assert_eq!(other.stop_container(id, Duration::from_secs(60)).await.unwrap().code, 143);
    }
}

async fn host_that_dies_takes_its_programs_along(node: Arc<Node>) {
    let code = program(&node, "spin", SPIN);
    let mut events = node.runtime.events();
    for id in ["a", "b"] {
        node.sandbox(id).await;
        node.start(id, container(&node, &format!("of-{id}"), &code)).await;
    }
    let (pid, directory) = (hosts(&node)[0], directories(&node)[0].clone());
    PidFd::open(pid).unwrap().send_signal(9).unwrap();
    let mut exits = vec![exit_of(&mut events, "of-a").await];
    exits.push(match node.runtime.container_status("of-b").await.unwrap().state {
        ContainerState::Exited(exit) => exit,
        _ => exit_of(&mut events, "of-b").await,
    });
    for exit in exits {
        assert_eq!((exit.code, exit.oom_killed), (137, false), "{exit:?}");
        assert!(exit.message.contains("dense WebAssembly programs"), "{exit:?}");
    }
    // what it had is removed, and a new one is there when it is needed
    eventually("what is left of the host is removed", || !directory.exists()).await;
    assert_eq!(
        node.run("a", container(&node, "again", &program(&node, "fine", r#"(func (export "_start"))"#))).await.code,
        0
    );
    assert_ne!(hosts(&node)[0], pid);
}

async fn host_ends_when_nobody_needs_it(node: Arc<Node>) {
    node.sandbox("a").await;
    let code = program(&node, "spin", SPIN);
    node.start("a", container(&node, "c", &code)).await;
    assert_eq!((hosts(&node).len(), directories(&node).len()), (1, 1));
    node.runtime.remove_sandbox("a").await.unwrap();
    eventually("the host ends", || hosts(&node).is_empty() && directories(&node).is_empty()).await;
    // and is found missing when the next one comes
    node.sandbox("b").await;
    assert_eq!(node.run("b", container(&node, "d", &program(&node, "tell", TELL))).await.code, 3);
}
