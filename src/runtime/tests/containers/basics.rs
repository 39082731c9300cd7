//! The life of sandboxes and containers.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_runtime::{ContainerEvent, ContainerState, Error, PodRuntime, Resources};
use libtest_mimic::Trial;

use crate::support::{Node, eventually, exit_of, is_alive, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("lifecycle", lifecycle),
        trial("signals_and_stopping", signals_and_stopping),
        trial("a_command_that_does_not_exist", a_command_that_does_not_exist),
        trial("a_command_that_cannot_be_executed", a_command_that_cannot_be_executed),
        trial("removed_in_every_state", removed_in_every_state),
        trial("wrong_requests_are_refused", wrong_requests_are_refused),
        trial("many_at_once", many_at_once),
        trial("limits_change_in_place", limits_change_in_place),
        trial("two_hundred_starts_leave_nothing_behind", two_hundred_starts_leave_nothing_behind),
    ]
}

async fn lifecycle(node: Arc<Node>) {
    let sandbox = node.sandbox("a").await;
    let mut events = node.runtime.events();
    node.runtime.create_container("a", node.container("c1", "echo hello; exit 3")).await.unwrap();
    assert_eq!(node.runtime.container_status("c1").await.unwrap().state, ContainerState::Created);
    assert!(node.log("c1").is_empty(), "nothing may run before it is started");
    node.runtime.start_container("c1").await.unwrap();
    let started = ContainerEvent::Started { sandbox_id: "a".to_owned(), container_id: "c1".to_owned() };
    assert_eq!(events.recv().await.unwrap(), started);
    let exit = exit_of(&mut events, "c1").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.message.as_str()), (3, None, false, ""));
    assert!(exit.started_at.unwrap() <= exit.finished_at);
    assert_eq!(node.log("c1")[0].text, "hello");
    let status = node.runtime.container_status("c1").await.unwrap();
    assert_eq!(status.state, ContainerState::Exited(exit.clone()));
    // It was on disk before we were told.
    let recorded: serde_json::Value =
        serde_json::from_slice(&fs::read(node.container_directory("a", "c1").join("exit.json")).unwrap()).unwrap();
    assert_eq!(recorded["code"], 3);

    node.runtime.remove_container("c1").await.unwrap();
    node.runtime.remove_container("c1").await.unwrap();
    assert!(matches!(node.runtime.container_status("c1").await, Err(Error::ContainerNotFound { .. })));
    assert!(!node.container_directory("a", "c1").exists());
    // The same id again, as after a failed start.
    assert_eq!(node.run("a", node.container("c1", "exit 0")).await.code, 0);

    let monitors = node.place.monitors();
    node.runtime.remove_sandbox("a").await.unwrap();
    node.runtime.remove_sandbox("a").await.unwrap();
    assert!(fs::read_dir(node.place.path().join("run/pods")).unwrap().next().is_none());
    assert!(!is_alive(monitors[0]));
    assert!(node.cgroups().usage(&sandbox.cgroup).is_err(), "the pod's cgroup must be gone");
    assert!(
        !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(node.place.path().join("run").to_str().unwrap())
    );
    assert!(node.place.path().join("logs/c1.log").exists(), "logs outlive their container");
}

async fn signals_and_stopping(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut events = node.runtime.events();
    let forever = "while true; do sleep 1000; done";

    node.start("a", node.container("killed", forever)).await;
    node.runtime.kill_container("killed", 9).await.unwrap();
    let exit = exit_of(&mut events, "killed").await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    node.runtime.kill_container("killed", 9).await.unwrap();

    // A shell waits for its foreground child before it runs a trap, so the trap waits for a background child.
    let polite = "trap 'exit 7' TERM; echo ready; sleep 1000 & wait";
    node.start("a", node.container("polite", polite)).await;
    eventually("the trap is set", || !node.log("polite").is_empty()).await;
    let exit = node.runtime.stop_container("polite", Duration::from_secs(50)).await.unwrap();
    assert_eq!((exit.code, exit.signal), (7, None));

    let stubborn = "trap '' TERM; echo ready; while true; do sleep 1000; done";
    node.start("a", node.container("stubborn", stubborn)).await;
    eventually("the trap is set", || !node.log("stubborn").is_empty()).await;
    let begun = Instant::now();
    let exit = node.runtime.stop_container("stubborn", Duration::from_millis(200)).await.unwrap();
    assert_eq!(exit.signal, Some(9));
    assert!(begun.elapsed() >= Duration::from_millis(200), "it has the whole grace period");
    assert_eq!(node.runtime.stop_container("stubborn", Duration::ZERO).await.unwrap(), exit);
}

async fn a_command_that_does_not_exist(node: Arc<Node>) {
    node.sandbox("a").await;
    for (args, text) in [
        (vec!["no-such-program"], "exec: \"no-such-program\": executable file not found in $PATH"),
        (vec!["/no/such"], "exec: \"/no/such\": stat /no/such: no such file or directory"),
        (vec!["/etc"], "exec: \"/etc\": is a directory"),
        (vec!["/etc/passwd"], "exec: \"/etc/passwd\": permission denied"),
    ] {
        let mut spec = node.container("c", "");
        spec.args = args.into_iter().map(str::to_owned).collect();
        let err = node.runtime.create_container("a", spec).await.unwrap_err();
        assert!(matches!(&err, Error::Start(reason) if reason == text), "{err:?}");
    }
    // Nothing is left of the failed ones.
    assert_eq!(node.run("a", node.container("c", "true")).await.code, 0);
    node.no_zombies().await;
}

async fn a_command_that_cannot_be_executed(node: Arc<Node>) {
    use std::os::unix::fs::PermissionsExt;
    node.sandbox("a").await;
    let program = node.image().join("bin/garbage");
    fs::write(&program, [1, 2, 3, 4]).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut events = node.runtime.events();
    let mut spec = node.container("c", "");
    spec.args = vec!["/bin/garbage".to_owned()];
    node.runtime.create_container("a", spec).await.unwrap();
    let err = node.runtime.start_container("c").await.unwrap_err();
    assert_eq!(err.to_string(), "exec /bin/garbage: exec format error");
    let exit = exit_of(&mut events, "c").await;
    assert_eq!((exit.code, exit.started_at), (128, None));
    assert_eq!(exit.message, "exec /bin/garbage: exec format error");
}

async fn removed_in_every_state(node: Arc<Node>) {
    node.sandbox("a").await;
    node.runtime.create_container("a", node.container("created", "true")).await.unwrap();
    node.start("a", node.container("running", "sleep 1000 & sleep 1000")).await;
    assert_eq!(node.run("a", node.container("ended", "true")).await.code, 0);
    for id in ["created", "running", "ended", "unknown"] {
        node.runtime.remove_container(id).await.unwrap();
        assert!(!node.container_directory("a", id).exists(), "{id}");
    }
    node.runtime.create_container("a", node.container("created", "true")).await.unwrap();
    node.start("a", node.container("running", "sleep 1000")).await;
    let pid = match node.runtime.container_status("running").await.unwrap().state {
        ContainerState::Running { pid, .. } => pid,
        state => panic!("{state:?}"),
    };
    node.runtime.remove_sandbox("a").await.unwrap();
    assert!(!is_alive(pid));
    // A container that was never started can be stopped.
    node.sandbox("b").await;
    node.runtime.create_container("b", node.container("idle", "true")).await.unwrap();
    assert_eq!(node.runtime.stop_container("idle", Duration::from_secs(9)).await.unwrap().signal, Some(9));
}

async fn wrong_requests_are_refused(node: Arc<Node>) {
    let runtime = &node.runtime;
    node.sandbox("a").await;
    assert!(matches!(
        runtime.create_sandbox(crate::support::sandbox_spec("a")).await,
        Err(Error::AlreadyExists { .. })
    ));
    for id in ["", ".", "..", "a/b", "../x", ".hidden", "ü", &"x".repeat(129)] {
        let refused = runtime.create_sandbox(crate::support::sandbox_spec(id)).await;
        assert!(matches!(refused, Err(Error::InvalidId { .. })), "{id:?}");
        let refused = runtime.create_container("a", node.container(id, "true")).await;
        assert!(matches!(refused, Err(Error::InvalidId { .. })), "{id:?}");
    }
    assert!(matches!(runtime.create_container("b", node.container("c", "")).await, Err(Error::SandboxNotFound { .. })));
    assert!(matches!(runtime.start_container("c").await, Err(Error::ContainerNotFound { .. })));

    let mut spec = node.container("c", "true");
    spec.args.clear();
    assert!(matches!(runtime.create_container("a", spec).await, Err(Error::InvalidSpec(_))));
    let mut spec = node.container("c", "true");
    spec.security.add_capabilities = vec!["CAP_FLY".to_owned()];
    assert!(matches!(runtime.create_container("a", spec).await, Err(Error::InvalidSpec(_))));
    let mut spec = node.container("c", "true");
    spec.layers = vec![node.image(), "/no/such/layer".into()];
    let err = runtime.create_container("a", spec).await.unwrap_err();
    assert_eq!(err.to_string(), "cannot open image layer /no/such/layer: No such file or directory (os error 2)");
    let mut spec = node.container("c", "true");
    spec.log_path = "/no/such/directory/c.log".into();
    assert!(runtime.create_container("a", spec).await.is_err());
    let mut sandbox = crate::support::sandbox_spec("s");
    sandbox.sysctls.insert("kernel.core_pattern".to_owned(), "evil".to_owned());
    let err = runtime.create_sandbox(sandbox).await.unwrap_err();
    assert!(
        edge_runtime::error::chain(&err).contains("sysctl kernel.core_pattern is not part of a namespace"),
        "{err:?}"
    );

    // After all of that the ids are free and the sandbox works.
    node.start("a", node.container("c", "sleep 1000")).await;
    assert!(matches!(runtime.start_container("c").await, Err(Error::WrongState { .. })));
    assert!(matches!(runtime.create_container("a", node.container("c", "")).await, Err(Error::AlreadyExists { .. })));
}

async fn many_at_once(node: Arc<Node>) {
    let mut tasks = Vec::new();
    for pod in 0..4 {
        let node = Arc::clone(&node);
        tasks.push(tokio::spawn(async move {
            let id = format!("pod{pod}");
            node.sandbox(&id).await;
            let mut inner = Vec::new();
            for number in 0..5 {
                let (node, id) = (Arc::clone(&node), id.clone());
                inner.push(tokio::spawn(async move {
                    let name = format!("{id}-c{number}");
                    let exit = node.run(&id, node.container(&name, &format!("echo {name}; exit {number}"))).await;
                    assert_eq!(exit.code, number);
                    assert_eq!(node.log(&name)[0].text, name);
                }));
            }
            for task in inner {
                task.await.unwrap();
            }
            node.runtime.remove_sandbox(&id).await.unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn limits_change_in_place(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut spec = node.container("c", "sleep 1000");
    spec.resources = Resources {
        memory_limit: Some(64 << 20),
        pids_limit: Some(50),
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        ..Resources::default()
    };
    node.start("a", spec).await;
    let usage = node.runtime.container_usage("c").await.unwrap();
    assert!(
        usage.pids >= 1
            && usage.cpu_nanos > 0
            && usage.memory_usage > 0
            && usage.memory_working_set <= usage.memory_usage
    );
    assert!(node.runtime.sandbox_usage("a").await.unwrap().cpu_nanos >= usage.cpu_nanos);
    let limits = Resources { memory_limit: Some(32 << 20), ..Resources::default() };
    node.runtime.update_container("c", limits).await.unwrap();
    let file = if node.cgroups().is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
    let root = if node.cgroups().is_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
    let path = format!("{root}{}/{file}", node.cgroups().full_path("kubepods/burstable/poda/c").unwrap());
    assert_eq!(fs::read_to_string(path).unwrap().trim(), (32 << 20).to_string());
}

async fn two_hundred_starts_leave_nothing_behind(node: Arc<Node>) {
    let sandbox = node.sandbox("a").await;
    let monitor = node.place.monitors()[0];
    let count = |path: String| fs::read_dir(path).unwrap().count();
    let place = node.place.path().to_str().unwrap().to_owned();
    let mounts =
        || fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(&place)).count();
    // The first one may allocate what is kept.
    assert_eq!(node.run("a", node.container("first", "true")).await.code, 0);
    node.runtime.remove_container("first").await.unwrap();
    let before = (count(format!("/proc/{monitor}/fd")), count("/proc/self/fd".to_owned()), mounts());
    let mut slowest = Duration::ZERO;
    let mut total = Duration::ZERO;
    for number in 0..200 {
        let id = format!("c{number}");
        let mut events = node.runtime.events();
        let begun = Instant::now();
        node.start("a", node.container(&id, "exit 0")).await;
        slowest = slowest.max(begun.elapsed());
        total += begun.elapsed();
        assert_eq!(exit_of(&mut events, &id).await.code, 0);
        node.runtime.remove_container(&id).await.unwrap();
    }
    println!("create and start: {:?} on average, {slowest:?} at most", total / 200);
    let after = (count(format!("/proc/{monitor}/fd")), count("/proc/self/fd".to_owned()), mounts());
    assert_eq!(before, after, "descriptors of the monitor, descriptors of this process, mounts");
    let children = fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
    assert_eq!(children.trim(), "", "children of the monitor");
    let pod = node.cgroups().full_path(&sandbox.cgroup).unwrap();
    let hierarchy = if node.cgroups().is_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
    let below =
        fs::read_dir(format!("{hierarchy}{pod}")).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(below, 0, "cgroups below the pod's");
    assert_eq!(fs::read_dir(node.container_directory("a", "x").parent().unwrap()).unwrap().count(), 0);
    let memory = fs::read_to_string(format!("/proc/{monitor}/smaps_rollup")).unwrap();
    let private: u64 = memory
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
        .sum();
    println!("private memory of the monitor: {private} kB");
}
