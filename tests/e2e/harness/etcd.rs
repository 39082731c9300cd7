//! A real etcd for a cluster, of one member or several, on the outside of its network.

use super::{Cluster, eventually};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// Members of an etcd cluster. It must not outlive its cluster.
pub(crate) struct Etcd {
    dir: PathBuf,
    host: String,
    mark: String,
    members: Vec<Option<Child>>,
}

fn program(name: &str) -> PathBuf {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools").join(name);
    assert!(path.exists(), "{} is missing: run scripts/setup test", path.display());
    path
}

impl Etcd {
    /// Starts so many members and waits until they are one cluster.
    pub(crate) fn start(cluster: &Cluster, members: usize) -> Self {
        let mut etcd = Self {
            dir: cluster.dir.clone(),
            host: cluster.address(1).to_string(),
            mark: cluster.id().to_owned(),
            members: (0..members).map(|_| None).collect(),
        };
        (0..members).for_each(|n| etcd.launch(n));
        etcd.await_healthy();
        etcd
    }

    fn urls(&self, n: usize) -> (String, String) {
        let port = 2379 + 100 * n;
        (format!("http://{}:{port}", self.host), format!("http://{}:{}", self.host, port + 1))
    }

    /// What `--datastore-endpoint` is told.
    pub(crate) fn endpoints(&self) -> String {
        (0..self.members.len()).map(|n| self.urls(n).0).collect::<Vec<_>>().join(",")
    }

    /// Starts a member, for the first time or again.
    pub(crate) fn launch(&mut self, n: usize) {
        let (client, peer) = self.urls(n);
        let all: Vec<String> = (0..self.members.len()).map(|n| format!("m{n}={}", self.urls(n).1)).collect();
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.dir.join(format!("etcd-{n}.log"))).unwrap();
        let mut command = Command::new(program("etcd"));
        command
            .args([format!("--name=m{n}"), format!("--data-dir={}", self.dir.join(format!("etcd-{n}")).display())])
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster={}", all.join(",")))
            .env("EDGE_E2E", &self.mark)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.members[n] = Some(command.spawn().unwrap());
    }

    pub(crate) fn await_healthy(&self) {
        eventually("etcd is healthy", || {
            let out = self.ctl(&["endpoint", "health"]);
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
    }

    /// Kills a member as a crash does.
    pub(crate) fn kill(&mut self, n: usize) {
        let mut child = self.members[n].take().expect("the member runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Which member leads the others.
    pub(crate) fn leader(&self) -> usize {
        let out = self.ctl(&["endpoint", "status"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        // endpoint, id, version, size, is it the leader, ...
        let line = text.lines().find(|l| l.split(", ").nth(4) == Some("true")).unwrap_or_else(|| panic!("{out:?}"));
        (0..self.members.len()).find(|n| line.starts_with(&self.urls(*n).0)).unwrap()
    }

    /// Runs etcdctl with all members.
    pub(crate) fn ctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("etcdctl"));
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoints())).args(args).output().unwrap()
    }

    /// All keys with their values and revisions, as one text.
    pub(crate) fn content(&self) -> String {
        let out = self.ctl(&["get", "", "--prefix", "--write-out=fields"]);
        assert!(out.status.success(), "{out:?}");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        // which member answers, and its term, are of no interest
        text.lines().filter(|l| !l.contains("MemberID") && !l.contains("RaftTerm")).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.members.iter_mut().flatten() {
            // one that has ended already is as good
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
