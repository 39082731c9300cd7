//! What happens when edge or a monitor is killed.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use edge_runtime::{AdoptedSandbox, ContainerEvent, ContainerState, Error, PodRuntime, Zygote};
use edge_sys::pidfd::PidFd;
use libtest_mimic::Trial;

use crate::support::{
    Node, container_spec, eventually, exec_with, exit_of, is_alive, read_log, runtime_in, sandbox_spec, trial,
};

/// Environment variable that makes this program a daemon that is going to be killed: its directory.
pub(crate) const DOOMED: &str = "EDGE_RUNTIME_TEST_DOOMED";
const DOOMED_CGROUP_ROOT: &str = "EDGE_RUNTIME_TEST_CGROUP_ROOT";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("containers_survive_the_daemon", containers_survive_the_daemon),
        trial("a_dead_monitor_is_noticed", a_dead_monitor_is_noticed),
        trial("a_dead_monitor_is_cleaned_up_at_adoption", a_dead_monitor_is_cleaned_up_at_adoption),
        trial("garbage_on_disk_is_cleaned_up_at_adoption", garbage_on_disk_is_cleaned_up_at_adoption),
        trial("a_monitor_survives_nonsense", a_monitor_survives_nonsense),
        trial("two_daemons_see_the_same", two_daemons_see_the_same),
    ]
}

/// Life of the daemon that is going to be killed.
pub(crate) fn doomed_daemon(zygote: Zygote, directory: &Path) -> ! {
    let cgroup_root = std::env::var(DOOMED_CGROUP_ROOT).unwrap();
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let runtime = runtime_in(zygote, directory, &cgroup_root);
        runtime.create_sandbox(sandbox_spec("a")).await.unwrap();
        let counting = "n=0; while [ ! -e /tmp/go ]; do n=$((n+1)); echo $n; sleep 0.01; done; echo last; exit 5";
        for (id, script) in [("ends", counting), ("stays", "trap 'exit 8' TERM; while true; do sleep 0.1; done")] {
            runtime.create_container("a", container_spec(directory, id, script)).await.unwrap();
            runtime.start_container(id).await.unwrap();
        }
        runtime.create_container("a", container_spec(directory, "waits", "exit 3")).await.unwrap();
    });
    println!("ready");
    loop {
        std::thread::park();
    }
}

async fn containers_survive_the_daemon(node: Arc<Node>) {
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .env(DOOMED, node.place.path())
        .env(DOOMED_CGROUP_ROOT, &node.place.cgroup_root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(daemon.stdout.take().unwrap()), &mut word).unwrap();
    assert_eq!(word, "ready\n");
    let zygotes = fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).unwrap();
    let zygote: i32 = zygotes.trim().parse().expect("the zygote is the daemon's only child");
    let monitor = node.place.monitors()[0];
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    eventually("the zygote ends with the daemon", || !is_alive(zygote)).await;
    assert!(is_alive(monitor), "the monitor does not");

    // One container ends while nobody is there.
    let upper = node.container_directory("a", "ends").join("upper/tmp");
    fs::create_dir_all(&upper).unwrap();
    let inside = fs::read_link("/proc/self/ns/mnt").unwrap();
    assert!(inside.exists() || !inside.exists());
    let pid = node.cgroups().processes("kubepods/burstable/poda/ends").unwrap()[0];
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    let exit = node.container_directory("a", "ends").join("exit.json");
    eventually("the end is recorded", || exit.exists()).await;

    let adopted = node.runtime.adopt().await.unwrap();
    assert_eq!(adopted.len(), 1);
    assert!(adopted[0].ready);
    assert_eq!(adopted[0].spec, sandbox_spec("a"), "labels and all");
    let state =
        |id: &str| adopted[0].containers.iter().find(|container| container.spec.id == id).unwrap().state.clone();
    let ContainerState::Exited(exit) = state("ends") else { panic!("{:?}", state("ends")) };
    assert_eq!((exit.code, exit.signal), (5, None));
    assert!(matches!(state("stays"), ContainerState::Running { .. }));
    assert_eq!(state("waits"), ContainerState::Created);

    let log = read_log(&node.place.path().join("logs/ends.log"));
    assert_eq!(log.last().unwrap().text, "last");
    let numbers = log[..log.len() - 1].iter().enumerate();
    assert!(
        numbers.into_iter().all(|(index, line)| line.text == (index + 1).to_string()),
        "no line is lost or doubled"
    );

    // Everything works on.
    let mut events = node.runtime.events();
    assert_eq!(exec_with(&node.runtime, "stays", &["echo", "hi"]).await.1, "hi\n");
    node.runtime.start_container("waits").await.unwrap();
    assert_eq!(exit_of(&mut events, "waits").await.code, 3);
    assert_eq!(node.run("a", node.container("new", "exit 6")).await.code, 6);
    assert_eq!(node.runtime.stop_container("stays", Duration::from_secs(50)).await.unwrap().code, 8);
    node.runtime.remove_sandbox("a").await.unwrap();
    assert!(!is_alive(monitor));
}

fn kill_monitor(pid: i32) {
    let monitor = PidFd::open(pid).unwrap();
    monitor.send_signal(9).unwrap();
    assert!(monitor.wait(10_000).unwrap());
}

async fn a_dead_monitor_is_noticed(node: Arc<Node>) {
    let mut spec = node.sandbox_spec("a");
    spec.share_process_namespace = true;
    node.runtime.create_sandbox(spec).await.unwrap();
    let mut events = node.runtime.events();
    assert_eq!(node.run("a", node.container("ended", "exit 4")).await.code, 4);
    node.start("a", node.container("running", "sleep 1000")).await;
    let pids = node.cgroups().processes("kubepods").unwrap();
    assert!(pids.len() >= 2, "the container and the pause process: {pids:?}");
    let spec = edge_runtime::ExecSpec { args: vec!["sleep".to_owned(), "1000".to_owned()], ..Default::default() };
    let mut session = node.runtime.exec("running", spec).await.unwrap();
    kill_monitor(node.place.monitors()[0]);
    let exit = exit_of(&mut events, "running").await;
    assert_eq!(exit.code, 137);
    assert!(exit.started_at.is_some() && !exit.message.is_empty());
    assert_eq!(events.recv().await.unwrap(), ContainerEvent::SandboxLost { sandbox_id: "a".to_owned() });
    let left: Vec<i32> = pids.into_iter().filter(|pid| is_alive(*pid)).collect();
    let describe = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(left.is_empty(), "still running: {:?}", left.iter().map(describe).collect::<Vec<_>>());
    assert!(matches!(session.wait().await, Err(Error::MonitorGone { .. })));
    assert!(matches!(
        node.runtime.create_container("a", node.container("c", "")).await,
        Err(Error::MonitorGone { .. })
    ));
    assert!(
        matches!(node.runtime.container_status("ended").await.unwrap().state, ContainerState::Exited(exit) if exit.code == 4)
    );
    node.runtime.remove_sandbox("a").await.unwrap();
    // The pod can be created anew.
    node.runtime.create_sandbox(sandbox_spec("a")).await.unwrap();
    assert_eq!(node.run("a", node.container("running", "exit 2")).await.code, 2);
}

async fn a_dead_monitor_is_cleaned_up_at_adoption(node: Arc<Node>) {
    node.sandbox("a").await;
    assert_eq!(node.run("a", node.container("ended", "exit 4")).await.code, 4);
    node.start("a", node.container("running", "sleep 1000")).await;
    node.runtime.create_container("a", node.container("created", "true")).await.unwrap();
    let pids = node.cgroups().processes("kubepods").unwrap();
    let mut events = node.runtime.events();
    kill_monitor(node.place.monitors()[0]);
    let second = node.reopened();
    let adopted = second.adopt().await.unwrap();
    assert!(!adopted[0].ready);
    let exit = |id: &str| match &adopted[0].containers.iter().find(|container| container.spec.id == id).unwrap().state {
        ContainerState::Exited(exit) => exit.clone(),
        state => panic!("{state:?}"),
    };
    assert_eq!((exit("ended").code, exit("running").code, exit("created").code), (4, 137, 137));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    // The first runtime, which lives on in this test, has seen the same and records it too.
    while !matches!(events.recv().await.unwrap(), ContainerEvent::SandboxLost { .. }) {}
    // The unknown end is recorded, so that it does not change any more.
    let again = node.reopened().adopt().await.unwrap();
    let once_more = node.reopened().adopt().await.unwrap();
    assert_eq!((again[0].containers.len(), once_more[0].containers.len()), (3, 3));
    let running = |adopted: &[AdoptedSandbox]| {
        adopted[0].containers.iter().find(|container| container.spec.id == "running").unwrap().state.clone()
    };
    assert_eq!(running(&once_more), running(&again));
    second.remove_sandbox("a").await.unwrap();
    assert_eq!(fs::read_dir(node.place.path().join("run/pods")).unwrap().count(), 0);
    assert!(
        !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(node.place.path().join("run").to_str().unwrap())
    );
}

async fn garbage_on_disk_is_cleaned_up_at_adoption(node: Arc<Node>) {
    let pods = node.place.path().join("run/pods");
    fs::create_dir_all(pods.join("empty")).unwrap();
    fs::create_dir_all(pods.join("truncated")).unwrap();
    fs::write(pods.join("truncated/sandbox.json"), "{\"id\":\"trunc").unwrap();
    // A pod from before a reboot: described, but nothing of it runs.
    fs::create_dir_all(pods.join("old/containers/c1")).unwrap();
    fs::create_dir_all(pods.join("old/containers/never-written")).unwrap();
    fs::write(pods.join("old/sandbox.json"), serde_json::to_vec(&sandbox_spec("old")).unwrap()).unwrap();
    let spec = node.container("c1", "true");
    fs::write(pods.join("old/containers/c1/spec.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    fs::write(pods.join("old/containers/c1/exit.json"), "not json").unwrap();
    let adopted = node.runtime.adopt().await.unwrap();
    assert_eq!(adopted.len(), 1);
    assert_eq!((adopted[0].spec.id.as_str(), adopted[0].ready, adopted[0].containers.len()), ("old", false, 1));
    assert!(matches!(&adopted[0].containers[0].state, ContainerState::Exited(exit) if exit.code == 137));
    assert!(!pods.join("empty").exists() && !pods.join("truncated").exists());
    node.runtime.remove_sandbox("old").await.unwrap();
    assert!(!pods.join("old").exists());
}

async fn a_monitor_survives_nonsense(node: Arc<Node>) {
    node.sandbox("a").await;
    node.start("a", node.container("c", "sleep 1000")).await;
    let pod = node.place.path().join("run/pods/a");
    let mut state = 7_u32;
    let mut random = move || {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
        (state >> 16) as usize
    };
    let requests = [
        r#"{"sequence":1,"body":"List"}"#,
        r#"{"sequence":2,"body":{"Start":{"container":"c"}}}"#,
        r#"{"sequence":3,"body":{"Exec":{"container":"c","exec":1,"args":["true"],"terminal":null}}}"#,
        r#"{"sequence":4,"body":{"Create":{"container":"../../x","cgroup":"../y"}}}"#,
        r#"{"sequence":5,"body":{"Attach":{"container":"c","stdin":true,"stdout":true,"stderr":true}}}"#,
        r#"{"sequence":6,"body":{"Kill":{"container":"c","signal":99999}}}"#,
        r#"{"sequence":7,"body":{"Forget":{"container":"c"}}}"#,
    ];
    for round in 0..500 {
        let client = edge_sys::socket::connect_in(&pod, "monitor.sock").unwrap();
        let mut bytes = requests[round % requests.len()].as_bytes().to_vec();
        for _ in 0..random() % 4 {
            let at = random() % bytes.len();
            match random() % 3 {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] = random() as u8,
                _ => bytes.insert(at, random() as u8),
            }
        }
        // With descriptors nobody asked for, too. A mutation must not turn into a real request to the container.
        let null = fs::File::open("/dev/null").unwrap();
        let fds = [null.as_fd()];
        let _ = edge_sys::socket::send(client.as_fd(), &bytes, if round % 2 == 0 { &fds } else { &[] });
    }
    // A client that sends much and reads nothing.
    let client = edge_sys::socket::connect_in(&pod, "monitor.sock").unwrap();
    for _ in 0..10_000 {
        let _ = edge_sys::socket::send(client.as_fd(), requests[0].as_bytes(), &[]);
    }
    assert_eq!(node.exec("c", &["echo", "alive"]).await.1, "alive\n");
    drop(client);
    let monitor = node.place.monitors()[0];
    eventually("all descriptors of the nonsense are closed", || {
        fs::read_dir(format!("/proc/{monitor}/fd")).unwrap().count() < 20
    })
    .await;
}

async fn two_daemons_see_the_same(node: Arc<Node>) {
    node.sandbox("a").await;
    node.start("a", node.container("c", "sleep 1000")).await;
    let second = node.reopened();
    let mut events = second.events();
    assert_eq!(second.adopt().await.unwrap()[0].containers.len(), 1);
    node.runtime.kill_container("c", 9).await.unwrap();
    assert_eq!(exit_of(&mut events, "c").await.signal, Some(9));
}
