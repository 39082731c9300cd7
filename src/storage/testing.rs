//! A real etcd for a test of its own, also of other rooms.
#![expect(clippy::unwrap_used, reason = "tests")]

use crate::EtcdOptions;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// etcd on free ports of the loopback address, with its data in a directory that goes with it.
#[derive(Debug)]
pub struct Server {
    /// Where its files are.
    pub dir: tempfile::TempDir,
    ports: (u16, u16),
    args: Vec<String>,
    scheme: &'static str,
    child: Option<Child>,
}

/// One of Debian's programs.
pub fn tool(name: &str) -> PathBuf {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools").join(name);
    assert!(path.exists(), "{} is missing: run scripts/setup test", path.display());
    path
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// Starts one, or panics.
    pub fn start() -> Self {
        Self::start_with("http", |_| Vec::new())
    }

    /// The same with further flags; files for them can be made in the directory.
    pub fn start_with(scheme: &'static str, args: impl Fn(&std::path::Path) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path());
        let mut server = Self { dir, ports: (0, 0), args, scheme, child: None };
        for _ in 0..5 {
            // another process may take them in the meantime
            server.ports = (free_port(), free_port());
            if server.launch() {
                return server;
            }
        }
        panic!("etcd does not start:\n{}", std::fs::read_to_string(server.log()).unwrap_or_default());
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Starts it; whether it listens.
    pub fn launch(&mut self) -> bool {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.ports.1));
        let mut command = Command::new(tool("etcd"));
        command
            .arg(format!("--data-dir={}", self.dir.path().join("data").display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=default={peer}"))
            .args(&self.args)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if std::net::TcpStream::connect(("127.0.0.1", self.ports.0)).is_ok() {
                return true;
            }
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Where it answers clients.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.ports.0)
    }

    /// How to reach it.
    pub fn options(&self) -> EtcdOptions {
        EtcdOptions { endpoints: self.url(), ..EtcdOptions::default() }
    }

    /// Sends it a signal. After a stop nothing of it works any more.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        // each thread stops when it is its turn, and may answer somebody until then
        let works = |thread: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('T'))
        };
        while signal == Signal::SIGSTOP && std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().any(works) {
            std::thread::yield_now();
        }
    }

    /// Kills it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Kills it and starts it again.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.launch(), "etcd does not start again");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
