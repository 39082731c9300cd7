//! Further servers of a cluster on etcd, with a node each or without, in a namespace and directories of their own.

use super::images::{busybox_archive, echo_archive};
use super::{Cluster, Kubectl, await_ready, enter, network};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// A further server. It must not outlive its cluster.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) url: String,
    dir: PathBuf,
    namespace: String,
    cluster: String,
    args: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// The n-th machine besides the first (as agents are counted), as a server with these flags, ready.
    pub(crate) fn start(cluster: &Cluster, n: u8, args: &[String]) -> Self {
        let args = [&["--disable-agent".to_owned()], args].concat();
        let mut server = Self::prepare(cluster, n, args);
        server.launch();
        server
    }

    /// The same for one that is a node, too, `server-<n>`, with the images of the tests.
    pub(crate) fn start_with_node(cluster: &Cluster, n: u8, args: &[String]) -> Self {
        let mut server = Self::prepare(cluster, n, args.to_vec());
        let images = server.dir.join("data/agent/images");
        fs::create_dir_all(&images).unwrap();
        for (name, archive) in [("busybox.tar", busybox_archive()), ("echo.tar", echo_archive())] {
            fs::copy(archive, images.join(name)).unwrap();
        }
        server.args.extend([
            format!("--private-registry={}", server.dir.join("registries.yaml").display()),
            format!("--pod-logs-dir={}", server.dir.join("logs").display()),
            format!("--cgroup-root=/{}", server.namespace),
        ]);
        server.launch();
        super::eventually("images are imported", || {
            let log = server.log();
            if ["busybox.tar", "echo.tar"].iter().all(|name| log.contains(name)) { Ok(()) } else { Err(log) }
        });
        server
    }

    fn prepare(cluster: &Cluster, n: u8, args: Vec<String>) -> Self {
        let namespace = cluster.net.add(n);
        let dir = cluster.dir.join(format!("server-{n}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.yaml"), "").unwrap();
        Self {
            name: format!("server-{n}"),
            url: format!("https://{}:6443", cluster.address(10 + n)),
            dir,
            namespace,
            cluster: cluster.net.name.clone(),
            args,
            child: None,
        }
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn launch(&mut self) {
        let notify = self.dir.join("notify.sock");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("edge.log")).unwrap();
        let mut command = Command::new(super::edge_binary());
        command
            .arg("server")
            .arg(format!("--data-dir={}", self.dir.join("data").display()))
            .arg(format!("--config={}", self.dir.join("config.yaml").display()))
            .arg(format!("--write-kubeconfig={}", self.dir.join("edge.yaml").display()))
            .arg(format!("--node-name={}", self.name))
            .arg(super::NO_EVICTIONS)
            .args(&self.args)
            .env("EDGE_E2E", &self.cluster)
            .env("EDGE_LOG", std::env::var("EDGE_LOG").unwrap_or_else(|_| "info,edge=debug".into()))
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        enter(&mut command, network::open(&self.namespace));
        self.child = Some(command.spawn().unwrap());
        await_ready(&socket).unwrap_or_else(|e| panic!("{} did not become ready: {e}\n{}", self.name, self.log()));
    }

    /// Ends it with a signal and waits for it.
    pub(crate) fn stop(&mut self, signal: nix::sys::signal::Signal) {
        let mut child = self.child.take().expect("the server runs");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        child.wait().unwrap();
    }

    /// Runs a command in the server's network; it must succeed.
    pub(crate) fn run_inside(&self, args: &[&str]) {
        let all = [&["netns", "exec", &self.namespace], args].concat();
        network::ip(&all);
    }

    /// A kubectl that asks this server.
    pub(crate) fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(Kubectl::Newest.path());
        command
            .arg(format!("--kubeconfig={}", self.dir.join("edge.yaml").display()))
            .arg(format!("--server={}", self.url))
            .arg(format!("--cache-dir={}", self.dir.join("kubectl-cache").display()))
            .args(args)
            .env("HOME", &self.dir)
            .stdin(Stdio::null());
        command
    }

    /// Runs kubectl and gives what it did.
    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_command(args).output().unwrap()
    }

    /// Runs kubectl, which must succeed; gives its standard output.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        super::success(&format!("kubectl {}", args.join(" ")), self.try_kubectl(args))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("edge.log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("---- the last lines of {}'s log ----", self.name);
            tail.iter().rev().for_each(|l| eprintln!("{l}"));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
