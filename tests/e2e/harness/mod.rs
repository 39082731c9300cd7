//! A whole cluster per test: its own network namespaces, directories and cgroup subtrees, torn down whatever happens.
//!
//! ```text
//! host (the "outside")                    network namespace edge-e2e-N
//!   bridge eevN  10.254.N.1/24  ┬──veth──  eth0 10.254.N.2/24, default route by .1
//!                               │           edge server, bridge edge0, pods
//!                               └──veth──  edge-e2e-N-1: eth0 10.254.N.11/24, edge agent ...
//! ```

pub(crate) mod adapter;
mod agent;
mod cleanup;
mod clock;
pub(crate) mod csi;
pub(crate) mod disk;
pub(crate) mod driver;
pub(crate) mod etcd;
pub(crate) mod filled;
mod footprint;
pub(crate) mod hooks;
pub(crate) mod images;
pub(crate) mod network;
pub(crate) mod plugin;
mod read;
mod rogue;
mod server;
mod sockets;
pub(crate) mod space;
pub(crate) mod systemd;
pub(crate) mod vm;
pub(crate) mod wasm;
pub(crate) mod writers;

pub(crate) use agent::Agent;
pub(crate) use clock::Clock;
pub(crate) use footprint::Footprint;
pub(crate) use images::{busybox_archive, echo_archive};
pub(crate) use rogue::Rogue;
pub(crate) use server::Server;

use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up. Not a speed limit: a loaded machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A pod that has to be there again after every power cut.
pub(crate) const SURVIVOR: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: survivor}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "busybox:test", command: [sh, -c, "busybox | head -n 1 && exec sleep 100000"]}
"#;

/// Which kubectl: both are unmodified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kubectl {
    /// The newest that a package registry has.
    Newest,
    /// What Debian packages (1.20).
    Debian,
}

impl Kubectl {
    fn path(self) -> PathBuf {
        let name = match self {
            Kubectl::Newest => "kubectl",
            Kubectl::Debian => "kubectl-debian",
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools").join(name);
        assert!(path.exists(), "{} is missing: run scripts/setup test", path.display());
        path
    }
}

/// The binary under test: that of this build, unless the benchmark names the one of the release.
pub(crate) fn edge_binary() -> PathBuf {
    std::env::var_os("EDGE_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_edge").into(), PathBuf::from)
}

/// A running cluster of one node.
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    pub(crate) ip: Ipv4Addr,
    net: network::TestNetwork,
    child: Option<Child>,
    extra_args: Vec<String>,
    /// The binary that runs as the server.
    pub(crate) binary: PathBuf,
    /// Further variables of the server's environment.
    pub(crate) environment: Vec<(String, String)>,
    /// Files that the server sees in the place of others.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// What runs the server: a program with arguments, to which the server's command line is added.
    pub(crate) wrap: Vec<String>,
    /// Leave to the server where everything is but its data directory.
    pub(crate) bare: bool,
    reader: read::Reader,
}

impl Cluster {
    /// Starts a cluster with the images of the tests already in its drop folder, and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further flags for `edge server`.
    pub(crate) fn start_with(args: &[&str]) -> Self {
        let mut cluster = Self::prepare(args);
        cluster.launch();
        cluster
    }

    /// [`Self::start`], on a disk whatever [`IN_MEMORY`] says: for those who look at what is written.
    pub(crate) fn start_on_disk() -> Self {
        let mut cluster = Self::prepare_on_disk();
        cluster.launch();
        cluster
    }

    /// [`Self::prepare`], on a disk.
    pub(crate) fn prepare_on_disk() -> Self {
        Self::prepare_in(false, &[])
    }

    /// Makes the directories and the network, but starts nothing.
    pub(crate) fn prepare(args: &[&str]) -> Self {
        Self::prepare_in(std::env::var_os(IN_MEMORY).is_some(), args)
    }

    fn prepare_in(memory: bool, args: &[&str]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the end-to-end tests need root (namespaces, mounts, cgroups)");
        // one at a time: what is swept away must not be what another test has just made under the same name
        let lock = fs::File::create("/tmp/edge-e2e.lock").unwrap();
        let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
        cleanup::sweep();
        let net = network::TestNetwork::create();
        let dir = PathBuf::from(format!("/tmp/{}", net.name));
        fs::create_dir_all(&dir).unwrap();
        if memory {
            let options = Some("mode=755");
            nix::mount::mount(Some("edge-e2e"), &dir, Some("tmpfs"), nix::mount::MsFlags::empty(), options).unwrap();
        }
        fs::create_dir_all(dir.join("data/agent/images")).unwrap();
        fs::write(dir.join("owner"), std::process::id().to_string()).unwrap();
        fs::write(dir.join("config.yaml"), "").unwrap();
        drop(lock);
        let ip = net.inside;
        let extra_args = args.iter().map(|a| (*a).to_owned()).collect();
        let (environment, files, wrap) = (Vec::new(), Vec::new(), Vec::new());
        let binary = edge_binary();
        let reader = read::Reader::default();
        let cluster =
            Self { dir, ip, net, child: None, extra_args, binary, environment, files, wrap, bare: false, reader };
        cluster.drop_image("busybox.tar", busybox_archive());
        cluster.drop_image("echo.tar", echo_archive());
        cluster
    }

    /// Puts an image archive into the drop folder.
    pub(crate) fn drop_image(&self, name: &str, archive: &Path) {
        let target = self.data_dir().join("agent/images").join(name);
        let part = self.dir.join(format!("{name}.part"));
        fs::copy(archive, &part).unwrap();
        fs::rename(part, target).unwrap();
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("edge.yaml")
    }

    fn id(&self) -> &str {
        &self.net.name
    }

    /// `edge server` with all that keeps it apart from the machine and from other tests.
    pub(crate) fn server_command(&self) -> Command {
        let mut line: Vec<OsString> = self.wrap.iter().map(OsString::from).collect();
        line.push(self.binary.clone().into());
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .arg("server")
            .arg(format!("--data-dir={}", self.data_dir().display()))
            .arg(format!("--config={}", self.dir.join("config.yaml").display()));
        if !self.bare {
            command
                .arg(format!("--write-kubeconfig={}", self.kubeconfig().display()))
                .arg(format!("--private-registry={}", self.dir.join("registries.yaml").display()))
                .arg(format!("--pod-logs-dir={}", self.dir.join("logs").display()));
            if !self.extra_args.iter().any(|arg| arg.starts_with("--eviction-hard")) {
                command.arg(NO_EVICTIONS);
            }
        }
        command
            .arg(format!("--cgroup-root=/{}", self.id()))
            .arg("--node-name=node-1")
            .args(&self.extra_args)
            .envs(self.environment.iter().cloned())
            .env("EDGE_E2E", self.id())
            .env("EDGE_LOG", std::env::var("EDGE_LOG").unwrap_or_else(|_| "info,edge=debug".into()))
            .stdin(Stdio::null());
        self.enter(&mut command);
        for (file, place) in &self.files {
            bind_file(&mut command, file, place);
        }
        command
    }

    /// Makes a command run in the server's network namespace.
    pub(crate) fn enter(&self, command: &mut Command) {
        enter(command, self.net.open());
    }

    /// Runs a command in the server's network; it must succeed.
    pub(crate) fn run_inside(&self, args: &[&str]) {
        let mut command = Command::new(args[0]);
        command.args(&args[1..]);
        self.enter(&mut command);
        success(&args.join(" "), command.output().unwrap());
    }

    /// An address of the cluster's network; .1 is the outside.
    pub(crate) fn address(&self, last: u8) -> Ipv4Addr {
        self.net.address(last)
    }

    /// The token with which agents join.
    pub(crate) fn token(&self) -> String {
        fs::read_to_string(self.data_dir().join("server/agent-token")).unwrap().trim().to_owned()
    }

    /// Runs another command of edge in the server's network; gives what it did.
    pub(crate) fn edge(&self, args: &[&str]) -> Output {
        self.edge_command(args).output().unwrap()
    }

    /// The same, not yet run.
    pub(crate) fn edge_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(edge_binary());
        command.args(args).env("KUBECONFIG", self.kubeconfig()).env("EDGE_DATA_DIR", self.data_dir());
        self.enter(&mut command);
        command.stdin(Stdio::null());
        command
    }

    /// `edge teardown` of the server's machine; gives what it did.
    pub(crate) fn tear_down(&self) -> Output {
        self.edge(&["teardown", &format!("--cgroup-root=/{}", self.id())])
    }

    /// Names of the cgroups of the server's pods that exist.
    pub(crate) fn pod_cgroups(&self) -> Vec<PathBuf> {
        cleanup::cgroup_dirs(self.id()).into_iter().map(|dir| dir.join("kubepods")).filter(|dir| dir.exists()).collect()
    }

    /// Processes that edge has started for the server's pods and that still run.
    pub(crate) fn processes(&self) -> Vec<i32> {
        cleanup::marked(&format!("EDGE_E2E={}", self.id()), self.id())
    }

    /// Starts `edge server` and waits for its readiness notification.
    pub(crate) fn launch(&mut self) {
        let socket = self.spawn();
        await_ready(&socket).unwrap_or_else(|e| panic!("edge did not become ready: {e}"));
    }

    /// Starts `edge server`; gives where its notifications come.
    fn spawn(&mut self) -> UnixDatagram {
        assert!(self.child.is_none(), "the server runs already");
        let notify = self.dir.join("notify.sock");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("edge.log")).unwrap();
        let mut command = self.server_command();
        command.env("NOTIFY_SOCKET", &notify).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        socket
    }

    /// Starts `edge server` and waits until it is ready; gives how long that took, or `None` when `is_dark` first.
    pub(crate) fn try_launch(&mut self, is_dark: impl Fn() -> bool) -> Option<Duration> {
        let begun = Instant::now();
        let socket = self.spawn();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        loop {
            match read_ready(&socket) {
                Ok(true) => return Some(begun.elapsed()),
                Ok(false) => {}
                Err(_) if is_dark() => return None,
                Err(_) => {
                    let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
                    assert!(ended.is_none(), "edge has ended: {}", ended.unwrap_or_default());
                    assert!(begun.elapsed() < PATIENCE, "edge did not become ready");
                }
            }
        }
    }

    /// Stops everything of the machine as a power cut does: the server, its monitors and its containers, mounts, links, rules.
    /// Whoever waits for a disk without power can end only after `let_go`.
    pub(crate) fn cut_power(&mut self, let_go: impl FnOnce()) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
        }
        for pid in self.processes() {
            // one that has just ended is as good
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let_go();
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
        cleanup::forget_machine(&format!("EDGE_E2E={}", self.id()), self.id(), &self.dir);
    }

    /// Ends the server with a signal and waits for it; gives its exit status.
    pub(crate) fn stop(&mut self, signal: nix::sys::signal::Signal) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("the server runs");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        child.wait().unwrap()
    }

    /// A value of the cgroup of a class of pods, by its file's names in versions 1 and 2.
    pub(crate) fn cgroup_value(&self, class: &str, v1: &str, v2: &str) -> String {
        let read = |directory: PathBuf| {
            let directory = directory.join("kubepods").join(class);
            fs::read_to_string(directory.join(v1)).or_else(|_| fs::read_to_string(directory.join(v2))).ok()
        };
        let found = cleanup::cgroup_dirs(self.id()).into_iter().find_map(read);
        found.unwrap_or_default().trim().to_owned()
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("edge.log")).unwrap_or_default()
    }

    /// A kubectl for this cluster, to be run in any way.
    pub(crate) fn kubectl_command(&self, which: Kubectl, args: &[&str]) -> Command {
        let mut command = Command::new(which.path());
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig().display()))
            .arg(format!("--server=https://{}:6443", self.ip))
            .arg(format!("--cache-dir={}", self.dir.join("kubectl-cache").display()))
            .args(args)
            .env("HOME", &self.dir)
            .env("KUBE_EDITOR", "true")
            // most of them end before collecting their garbage pays
            .env("GOGC", "1000")
            .stdin(Stdio::null());
        command
    }

    /// Runs kubectl and gives what it did, whatever it was.
    pub(crate) fn try_kubectl(&self, which: Kubectl, args: &[&str]) -> Output {
        self.kubectl_command(which, args).output().unwrap()
    }

    /// Runs a kubectl in the background, with its output piped.
    pub(crate) fn spawn_kubectl(&self, which: Kubectl, args: &[&str]) -> Background {
        let mut command = self.kubectl_command(which, args);
        Background(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Runs kubectl with text on its standard input.
    pub(crate) fn kubectl_stdin(&self, which: Kubectl, args: &[&str], input: &str) -> Output {
        let mut child = self
            .kubectl_command(which, args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// What the newest kubectl prints, which must succeed. Objects and fields are read without starting one: see [`read`].
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let server = format!("https://{}:6443", self.ip);
        let read = self.reader.read(&self.kubeconfig(), &server, args);
        read.unwrap_or_else(|| self.kubectl_as(Kubectl::Newest, args))
    }

    /// Runs one of the kubectls, which must succeed; gives its standard output.
    pub(crate) fn kubectl_as(&self, which: Kubectl, args: &[&str]) -> String {
        success(&format!("{which:?} kubectl {}", args.join(" ")), self.try_kubectl(which, args))
    }

    /// `kubectl apply -f -`, which must succeed.
    pub(crate) fn apply(&self, manifest: &str) -> String {
        success("kubectl apply", self.kubectl_stdin(Kubectl::Newest, &["apply", "-f", "-"], manifest))
    }

    /// A request by curl, without credentials but those of `args`; gives the body.
    pub(crate) fn curl(&self, args: &[&str], path: &str) -> String {
        let url = format!("https://{}:6443{path}", self.ip);
        success(path, Command::new("curl").args(["-sSk"]).args(args).arg(url).output().unwrap())
    }

    /// An object as JSON.
    pub(crate) fn get(&self, args: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        serde_json::from_str(&self.kubectl(&all)).unwrap()
    }

    /// Waits for a condition by `kubectl wait`; when it does not come, what there is says why.
    pub(crate) fn wait_for(&self, what: &str, condition: &str) {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let waited = self.try_kubectl(Kubectl::Newest, &["wait", what, &format!("--for={condition}"), &timeout]);
        if !waited.status.success() {
            let described = self.try_kubectl(Kubectl::Newest, &["describe", what]);
            let found = String::from_utf8_lossy(&described.stdout);
            panic!("{what} has no {condition}: {}\n{found}", String::from_utf8_lossy(&waited.stderr));
        }
    }

    /// Runs a closure on a thread inside the node's network namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(self.net.open(), work)
    }

    /// The echo server of a pod answers the server's machine.
    pub(crate) fn reaches(&self, pod_ip: &str) {
        reaches(|| self.net.open(), pod_ip);
    }

    /// The server's namespace.
    pub(crate) fn namespace(&self) -> fs::File {
        self.net.open()
    }

    /// Runs ip(8) in the server's namespace.
    pub(crate) fn ip_command(&self, args: &[&str]) {
        network::ip(&[&["-n", self.id()], args].concat());
    }

    /// An IPv6 address of the cluster's network, as [`Self::address`].
    pub(crate) fn address6(&self, last: u8) -> std::net::Ipv6Addr {
        self.net.address6(last)
    }

    /// Gives the server's machine an IPv6 address.
    pub(crate) fn add_ipv6(&self) {
        self.net.add_ipv6(self.id(), 2);
    }

    /// Waits until the images of the tests are there: pods that come before would try to pull them.
    pub(crate) fn await_images(&self) {
        eventually("images are imported", || {
            let log = self.log();
            if ["busybox.tar", "echo.tar"].iter().all(|name| log.contains(name)) { Ok(()) } else { Err(log) }
        });
    }

    /// What whoever reads of a failed test wants to know: the machine, the pods, and what edge said.
    fn tell_why(&self) {
        for file in ["/proc/loadavg", "/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory"] {
            let text = fs::read_to_string(file).unwrap_or_default();
            eprintln!("{file}: {}", text.trim().replace('\n', "; "));
        }
        let pods = ["get", "pods", "-A", "-o", "wide", "--request-timeout=5s"];
        let pods = self.try_kubectl(Kubectl::Newest, &pods);
        eprintln!("{}{}", String::from_utf8_lossy(&pods.stdout), String::from_utf8_lossy(&pods.stderr));
        tell_log("edge", &self.log(), 60);
    }

    /// Takes the further flags of `edge server` away.
    pub(crate) fn clear_flags(&mut self) {
        self.extra_args.clear();
    }

    /// A further flag for `edge server`, from its next start on.
    pub(crate) fn add_flag(&mut self, flag: String) {
        self.extra_args.push(flag);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_why();
            if std::env::var_os("EDGE_E2E_KEEP").is_some() {
                eprintln!("kept: {} (network namespace {})", self.dir.display(), self.id());
                return;
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        cleanup::remove(self.id());
    }
}

/// The last lines of a log, without those that every pod leaves.
fn tell_log(whose: &str, log: &str, lines: usize) {
    let tail: Vec<&str> = log.lines().rev().filter(|l| !l.contains("rules written")).take(lines).collect();
    eprintln!("---- the last lines of {whose}'s log ----");
    tail.iter().rev().for_each(|l| eprintln!("{l}"));
}

/// Runs a closure on a thread inside a network namespace.
fn inside<T: Send>(netns: fs::File, work: impl FnOnce() -> T + Send) -> T {
    network::inside(&netns, work)
}

/// The echo server of a pod answers somebody in a network namespace.
fn reaches(netns: impl Fn() -> fs::File, pod_ip: &str) {
    let address = SocketAddr::new(pod_ip.parse().unwrap(), 8080);
    eventually(&format!("{address} answers"), || inside(netns(), || http_get(address, "/")));
}

/// Lets a command run in a network namespace.
fn enter(command: &mut Command, netns: fs::File) {
    // SAFETY: setns is async-signal-safe and touches only the child that is about to execute edge
    #[expect(unsafe_code, reason = "entering the test's network namespace between fork and exec")]
    unsafe {
        command.pre_exec(move || {
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
        });
    }
}

/// Lets a command see a file in the place of another one, in a mount namespace of its own.
fn bind_file(command: &mut Command, file: &Path, place: &Path) {
    use nix::mount::{MsFlags, mount};
    let (file, place) = (file.to_owned(), place.to_owned());
    // SAFETY: unshare and mount are system calls, and touch only the child that is about to execute edge
    #[expect(unsafe_code, reason = "mounting between fork and exec")]
    unsafe {
        command.pre_exec(move || {
            let nothing: Option<&str> = None;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
            Ok(mount(Some(&file), &place, nothing, MsFlags::MS_BIND, nothing)?)
        });
    }
}

/// Waits until a service says that it is ready.
fn await_ready(socket: &UnixDatagram) -> std::io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    while !read_ready(socket)? {}
    Ok(())
}

/// Reads one notification; tells whether it says so.
fn read_ready(socket: &UnixDatagram) -> std::io::Result<bool> {
    let mut buffer = [0u8; 4096];
    let n = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).lines().any(|l| l == "READY=1"))
}

/// A child process that ends with its owner.
pub(crate) struct Background(Child);

impl Background {
    /// Starts a command with pipes to all its streams.
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Reads standard output until it contains `text`; gives all that was read.
    pub(crate) fn read_until(&mut self, text: &str) -> String {
        read_until(self.0.stdout.as_mut().unwrap(), text).unwrap_or_else(|read| {
            let mut err = String::new();
            let _ = self.0.stderr.as_mut().unwrap().read_to_string(&mut err);
            panic!("ended before it said {text:?}: {read:?} {err:?}");
        })
    }

    /// Reads standard error until it contains `text`; gives all that was read.
    pub(crate) fn read_errors_until(&mut self, text: &str) -> String {
        let read = read_until(self.0.stderr.as_mut().unwrap(), text);
        read.unwrap_or_else(|read| panic!("ended before it said {text:?}: {read:?}"))
    }

    /// Writes to standard input.
    pub(crate) fn write(&mut self, text: &str) {
        self.0.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        self.0.stdin.as_mut().unwrap().flush().unwrap();
    }

    /// Closes standard input and waits for the end.
    pub(crate) fn finish(mut self) -> Output {
        drop(self.0.stdin.take());
        let mut out = Vec::new();
        let mut err = Vec::new();
        let _ = self.0.stdout.take().unwrap().read_to_end(&mut out);
        let _ = self.0.stderr.take().unwrap().read_to_end(&mut err);
        let status = self.0.wait().unwrap();
        Output { status, stdout: out, stderr: err }
    }
}

/// Reads until `text` has come; at the end without it what has come is the error.
fn read_until(from: &mut impl Read, text: &str) -> Result<String, String> {
    let mut read = String::new();
    let mut byte = [0u8; 1];
    while !read.contains(text) {
        match from.read(&mut byte) {
            Ok(1) => read.push(char::from(byte[0])),
            _ => return Err(read),
        }
    }
    Ok(read)
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The standard output of a command that must have succeeded.
pub(crate) fn success(what: &str, output: Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{out}\n{err}", output.status);
    out
}

/// Set in the environment, this keeps the directories of clusters in memory: a disk that is busy with something else (a build, images
/// of virtual machines) has every commit wait, for a minute in the worst case. Durability has tests with disks of their own.
const IN_MEMORY: &str = "EDGE_E2E_IN_MEMORY";

/// The machine that tests run on may have a full disk, which is no matter of theirs.
pub(crate) const NO_EVICTIONS: &str = "--eviction-hard=";

/// The pauses of [`eventually`].
const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_millis(500);

/// Tries until it succeeds; for what has no event to wait for from outside (a port that begins to answer).
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        let begun = Instant::now();
        match attempt() {
            Ok(v) => return v,
            Err(e) if start.elapsed() > PATIENCE => panic!("{what}: {e}"),
            // who asks by starting a kubectl leaves most of the processor to what it waits for
            Err(_) => std::thread::sleep((2 * begun.elapsed()).clamp(SHORT, LONG)),
        }
    }
}

/// A plain HTTP/1.1 GET; gives the body.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3)).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| e.to_string())?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").map_err(|e| e.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no HTTP answer: {text:?}"))?;
    if head.starts_with("HTTP/1.1 200") { Ok(body.to_owned()) } else { Err(head.to_owned()) }
}
