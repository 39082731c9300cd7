//! What all tests need: a runtime in a temporary place, an image, and nothing left behind.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use edge_runtime::cgroup::Cgroups;
use edge_runtime::{
    ContainerEvent, ContainerSpec, ExecSpec, ExitStatus, PodRuntime, Resources, Runtime, RuntimeConfig, SandboxSpec,
    Zygote,
};
use edge_sys::pidfd::PidFd;
use libtest_mimic::Trial;
use nix::mount::{MntFlags, umount2};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::UnboundedReceiver;

/// Longer than anything takes on a busy machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(100);

/// Programs of busybox the image has.
const APPLETS: &str = "awk cat chmod chown cp cut date dd df echo env false grep head hostname id ipcmk ipcs ip kill ls mkdir \
    mount nc ps pwd readlink rm seq sh sleep sort stat stty sync tail tee test touch tr true tty umount uname unshare wc whoami yes";

static ZYGOTE: OnceLock<Zygote> = OnceLock::new();
static PLACES: AtomicU32 = AtomicU32::new(0);

/// Keeps the zygote `main` has forked.
pub(crate) fn keep_zygote(zygote: Zygote) {
    assert!(ZYGOTE.set(zygote).is_ok());
}

/// A test with a node of its own.
pub(crate) fn trial<F>(name: &'static str, test: fn(Arc<Node>) -> F) -> Trial
where
    F: Future<Output = ()> + Send + 'static,
{
    Trial::test(name, move || {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        tokio.block_on(async {
            let node = Arc::new(Node::new(ZYGOTE.get().unwrap().clone(), Place::new()));
            let task = tokio::spawn(test(Arc::clone(&node)));
            let result = tokio::time::timeout(PATIENCE, task).await;
            drop(node);
            result.map_err(|_| "the test did not end")?.map_err(|err| err.to_string())?;
            Ok(())
        })
    })
}

/// A directory and a cgroup root. Whatever is left in them goes when it is dropped.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    pub(crate) cgroup_root: String,
}

impl Place {
    fn new() -> Self {
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::Builder::new().prefix("edge-runtime-test-").tempdir_in("/var/tmp").unwrap();
        let place = Self { directory, cgroup_root: format!("/edge-test-{}-{number}", std::process::id()) };
        for name in ["image/bin", "image/etc", "image/tmp", "logs", "netns"] {
            fs::create_dir_all(place.path().join(name)).unwrap();
        }
        let bin = place.path().join("image/bin");
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for applet in APPLETS.split_whitespace() {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        fs::write(
            place.path().join("image/etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n",
        )
        .unwrap();
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Pids of the monitors that listen here.
    pub(crate) fn monitors(&self) -> Vec<i32> {
        let Ok(pods) = fs::read_dir(self.path().join("run/pods")) else { return Vec::new() };
        pods.flatten()
            .filter_map(|pod| edge_sys::socket::connect_in(&pod.path(), "monitor.sock").ok())
            .map(|socket| getsockopt(&socket, PeerCredentials).unwrap().pid())
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.monitors() {
            if let Ok(monitor) = PidFd::open(pid) {
                let _ = monitor.send_signal(9);
                let _ = monitor.wait(10_000);
            }
        }
        if let Err(err) = Cgroups::detect(&self.cgroup_root).and_then(|cgroups| cgroups.remove("")) {
            eprintln!("cannot remove cgroup {}: {err}", self.cgroup_root);
        }
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // What was mounted last is unmounted first.
        for mount_point in mountinfo.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(mount_point).starts_with(self.path()) {
                let _ = umount2(mount_point, MntFlags::MNT_DETACH);
            }
        }
        for netns in fs::read_dir(self.path().join("netns")).into_iter().flatten().flatten() {
            let _ = edge_sys::netns::delete(&netns.path());
        }
    }
}

/// A runtime in a place of its own.
pub(crate) struct Node {
    pub(crate) runtime: Runtime,
    pub(crate) place: Place,
}

impl Node {
    fn new(zygote: Zygote, place: Place) -> Self {
        Self { runtime: open_runtime(zygote, place.path(), &place.cgroup_root), place }
    }

    /// Everything that the first monitor has started has ended, and it has taken note of that.
    pub(crate) async fn no_zombies(&self) {
        let monitor = self.place.monitors()[0];
        let children = format!("/proc/{monitor}/task/{monitor}/children");
        eventually("no zombies", || fs::read_to_string(&children).unwrap().trim().is_empty()).await;
    }

    /// Another runtime in the same place, as after a restart of edge.
    pub(crate) fn reopened(&self) -> Runtime {
        open_runtime(ZYGOTE.get().unwrap().clone(), self.place.path(), &self.place.cgroup_root)
    }

    pub(crate) fn cgroups(&self) -> &Cgroups {
        self.runtime.cgroups()
    }

    /// Creates a sandbox with a network namespace of its own.
    pub(crate) async fn sandbox(&self, id: &str) -> SandboxSpec {
        let spec = self.sandbox_spec(id);
        self.runtime.create_sandbox(spec.clone()).await.unwrap();
        spec
    }

    /// A sandbox with a network namespace of its own.
    pub(crate) fn sandbox_spec(&self, id: &str) -> SandboxSpec {
        let netns = self.place.path().join("netns").join(id);
        edge_sys::netns::create(&netns).unwrap();
        SandboxSpec { netns: Some(netns), ..sandbox_spec(id) }
    }

    pub(crate) fn container(&self, id: &str, script: &str) -> ContainerSpec {
        container_spec(self.place.path(), id, script)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.place.path().join("image")
    }

    pub(crate) fn container_directory(&self, sandbox: &str, id: &str) -> PathBuf {
        self.place.path().join("run/pods").join(sandbox).join("containers").join(id)
    }

    /// Creates and starts a container.
    pub(crate) async fn start(&self, sandbox: &str, spec: ContainerSpec) {
        let id = spec.id.clone();
        self.runtime.create_container(sandbox, spec).await.unwrap();
        self.runtime.start_container(&id).await.unwrap();
    }

    /// Runs a container to its end.
    pub(crate) async fn run(&self, sandbox: &str, spec: ContainerSpec) -> ExitStatus {
        let id = spec.id.clone();
        let mut events = self.runtime.events();
        self.start(sandbox, spec).await;
        exit_of(&mut events, &id).await
    }

    /// Runs a container to its end and returns what it has printed on stdout, lines joined.
    pub(crate) async fn output(&self, sandbox: &str, spec: ContainerSpec) -> String {
        let id = spec.id.clone();
        let exit = self.run(sandbox, spec).await;
        assert_eq!(exit.code, 0, "{exit:?}, log: {:?}", self.log(&id));
        self.log(&id).into_iter().map(|line| line.text).collect::<Vec<_>>().join("\n")
    }

    /// The log of a container.
    pub(crate) fn log(&self, id: &str) -> Vec<LogLine> {
        read_log(&self.place.path().join("logs").join(format!("{id}.log")))
    }

    /// Runs a command in a container, without a terminal.
    pub(crate) async fn exec(&self, id: &str, args: &[&str]) -> (ExitStatus, String, String) {
        exec_with(&self.runtime, id, args).await
    }
}

fn open_runtime(zygote: Zygote, directory: &Path, cgroup_root: &str) -> Runtime {
    let config = RuntimeConfig { directory: directory.join("run"), cgroup_root: cgroup_root.to_owned() };
    Runtime::open(zygote, config).unwrap()
}

/// A runtime of somebody else's place, for the daemon that is going to be killed.
pub(crate) fn runtime_in(zygote: Zygote, directory: &Path, cgroup_root: &str) -> Runtime {
    open_runtime(zygote, directory, cgroup_root)
}

/// A sandbox on the host's network.
pub(crate) fn sandbox_spec(id: &str) -> SandboxSpec {
    SandboxSpec {
        id: id.to_owned(),
        hostname: Some(format!("host-{id}")),
        netns: None,
        host_ipc: false,
        host_pid: false,
        share_process_namespace: false,
        sysctls: BTreeMap::new(),
        cgroup: format!("kubepods/burstable/pod{id}"),
        resources: Resources::default(),
        labels: serde_json::json!({ "name": id }),
    }
}

/// A container that runs a shell script.
pub(crate) fn container_spec(directory: &Path, id: &str, script: &str) -> ContainerSpec {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    ContainerSpec::new(id, vec![directory.join("image")], args, directory.join("logs").join(format!("{id}.log")))
}

/// Waits for the end of a container.
pub(crate) async fn exit_of(events: &mut UnboundedReceiver<ContainerEvent>, id: &str) -> ExitStatus {
    loop {
        match events.recv().await.unwrap() {
            ContainerEvent::Exited { container_id, exit, .. } if container_id == id => return exit,
            _ => {}
        }
    }
}

pub(crate) async fn exec_with(runtime: &Runtime, id: &str, args: &[&str]) -> (ExitStatus, String, String) {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let spec = ExecSpec { args, stdout: true, stderr: true, ..ExecSpec::default() };
    let mut session = runtime.exec(id, spec).await.unwrap();
    let (mut stdout, mut stderr) = (String::new(), String::new());
    session.stdout.take().unwrap().read_to_string(&mut stdout).await.unwrap();
    session.stderr.take().unwrap().read_to_string(&mut stderr).await.unwrap();
    (session.wait().await.unwrap(), stdout, stderr)
}

/// One line of a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogLine {
    pub(crate) stream: String,
    pub(crate) full: bool,
    pub(crate) text: String,
}

pub(crate) fn read_log(path: &Path) -> Vec<LogLine> {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    text.lines()
        .map(|line| {
            let mut fields = line.splitn(4, ' ').skip(1).map(str::to_owned);
            let (stream, tag, text) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
            assert!(tag == "F" || tag == "P", "{line}");
            LogLine { stream, full: tag == "F", text }
        })
        .collect()
}

/// Waits until something has become true that no event tells about.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}

/// Whether a process exists and is no zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
