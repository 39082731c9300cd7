//! Further nodes of a cluster: `edge agent`, each in a namespace, directories and a cgroup subtree of its own.

use super::images::{busybox_archive, echo_archive};
use super::network::{self, ip};
use super::{Cluster, await_ready, enter};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// An agent of a cluster. It must not outlive its cluster.
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) namespace: String,
    cluster: String,
    pub(crate) server: String,
    pub(crate) token: String,
    /// Further flags.
    pub(crate) args: Vec<String>,
    /// Further variables of its environment.
    pub(crate) environment: Vec<(String, String)>,
    /// What it sees as `/etc/hosts`, if not the machine's.
    pub(crate) hosts: Option<PathBuf>,
    child: Option<Child>,
}

impl Agent {
    /// The n-th agent of a cluster (from 1), `node-<n+1>`, with the images of the tests; it is not started yet.
    pub(crate) fn prepare(cluster: &Cluster, n: u8) -> Self {
        let namespace = cluster.net.add(n);
        let dir = cluster.dir.join(format!("agent-{n}"));
        fs::create_dir_all(dir.join("data/agent/images")).unwrap();
        fs::write(dir.join("config.yaml"), "").unwrap();
        for (name, archive) in [("busybox.tar", busybox_archive()), ("echo.tar", echo_archive())] {
            fs::copy(archive, dir.join("data/agent/images").join(name)).unwrap();
        }
        Self {
            name: format!("node-{}", n + 1),
            dir,
            namespace,
            cluster: cluster.net.name.clone(),
            server: format!("https://{}:6443", cluster.ip),
            token: cluster.token(),
            args: Vec::new(),
            environment: Vec::new(),
            hosts: None,
            child: None,
        }
    }

    /// The n-th agent of a cluster, joined and ready.
    pub(crate) fn start(cluster: &Cluster, n: u8) -> Self {
        let mut agent = Self::prepare(cluster, n);
        agent.launch();
        agent.await_images();
        agent
    }

    /// Waits until the images of the tests are there: pods that come before would try to pull them.
    pub(crate) fn await_images(&self) {
        super::eventually("images are imported", || {
            let log = self.log();
            if ["busybox.tar", "echo.tar"].iter().all(|name| log.contains(name)) { Ok(()) } else { Err(log) }
        });
    }

    /// `edge agent` with all that keeps it apart from the machine and from other nodes.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(super::edge_binary());
        command
            .arg("agent")
            .arg(format!("--server={}", self.server))
            .arg(format!("--data-dir={}", self.dir.join("data").display()))
            .arg(format!("--config={}", self.dir.join("config.yaml").display()))
            .arg(format!("--private-registry={}", self.dir.join("registries.yaml").display()))
            .arg(format!("--pod-logs-dir={}", self.dir.join("logs").display()))
            .arg(format!("--cgroup-root=/{}", self.namespace))
            .arg(format!("--node-name={}", self.name))
            .arg(super::NO_EVICTIONS)
            .args(&self.args)
            .envs(self.environment.iter().cloned())
            .env("EDGE_TOKEN", &self.token)
            .env("EDGE_E2E", &self.cluster)
            .env("EDGE_LOG", std::env::var("EDGE_LOG").unwrap_or_else(|_| "info,edge=debug".into()))
            .stdin(Stdio::null());
        enter(&mut command, network::open(&self.namespace));
        if let Some(hosts) = &self.hosts {
            super::bind_file(&mut command, hosts, Path::new("/etc/hosts"));
        }
        command
    }

    /// Starts it in the background; what it tells is in its log.
    pub(crate) fn spawn(&mut self) -> UnixDatagram {
        assert!(self.child.is_none(), "the agent runs already");
        let notify = self.dir.join("notify.sock");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("edge.log")).unwrap();
        let mut command = self.command();
        command.env("NOTIFY_SOCKET", &notify).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        socket
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn launch(&mut self) {
        let socket = self.spawn();
        await_ready(&socket).unwrap_or_else(|e| panic!("{} did not become ready: {e}\n{}", self.name, self.log()));
    }

    /// Runs it to its end, which is to come by itself.
    pub(crate) fn run(&self) -> Output {
        self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
    }

    /// The same for one that may also go on: it is ended after a moment.
    pub(crate) fn run_for_a_moment(&self) -> Output {
        let mut child = self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        for _ in 0..20 {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let _ = child.kill();
        child.wait_with_output().unwrap()
    }

    /// Moves the node behind a router that translates its address; `network` is the first three bytes of theirs.
    pub(crate) fn behind(self, router: &Agent, network: &str) -> Self {
        let (own, between) = (&self.namespace, &router.namespace);
        ip(&["link", "del", &network::port(own)]);
        ip(&["-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", "lan0", "netns", between]);
        ip(&["-n", own, "addr", "add", &format!("{network}.2/24"), "dev", "eth0"]);
        ip(&["-n", own, "link", "set", "eth0", "up"]);
        ip(&["-n", own, "route", "add", "default", "via", &format!("{network}.1")]);
        ip(&["-n", between, "addr", "add", &format!("{network}.1/24"), "dev", "lan0"]);
        ip(&["-n", between, "link", "set", "lan0", "up"]);
        let rules = "sysctl -qw net.ipv4.ip_forward=1; nft add table ip nat; \
            nft 'add chain ip nat post { type nat hook postrouting priority 100; }'; \
            nft add rule ip nat post oifname eth0 masquerade";
        let out = Command::new("ip").args(["netns", "exec", between, "sh", "-ec", rules]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        self
    }

    /// Moves the node into a network of its own behind a router that translates nothing, with links of `mtu` bytes; gives its
    /// new addresses. Nobody has a default route: each side knows the way to the other's network. With `ipv6`, in both
    /// families.
    pub(crate) fn routed(&self, cluster: &Cluster, router: &Agent, mtu: u32, ipv6: bool) -> [IpAddr; 2] {
        let (own, between) = (&self.namespace, &router.namespace);
        let (far, far6) = (Ipv4Addr::new(172, 29, 5, 2), Ipv6Addr::new(0xfd00, 0x29, 0, 0, 0, 0, 0, 2));
        ip(&["link", "del", &network::port(own)]);
        ip(&["-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", "lan0", "netns", between]);
        for (namespace, link, last) in [(own, "eth0", 2), (between, "lan0", 1)] {
            ip(&["-n", namespace, "link", "set", link, "mtu", &mtu.to_string()]);
            ip(&["-n", namespace, "addr", "add", &format!("172.29.5.{last}/24"), "dev", link]);
            if ipv6 {
                ip(&["-n", namespace, "-6", "addr", "add", &format!("fd00:29::{last}/64"), "dev", link, "nodad"]);
            }
            ip(&["-n", namespace, "link", "set", link, "up"]);
        }
        let router_last = 10 + router.number();
        ip(&["-n", own, "route", "add", &format!("{}/24", cluster.address(0)), "via", "172.29.5.1"]);
        let mut others = vec![cluster.net.name.clone()];
        others.extend((1..router.number()).map(|n| format!("{}-{n}", cluster.net.name)));
        others.retain(|name| name != own && network::exists(name));
        for other in &others {
            let via = cluster.address(router_last).to_string();
            ip(&["-n", other, "route", "add", "172.29.5.0/24", "via", &via]);
        }
        if ipv6 {
            cluster.net.add_ipv6(between, router_last);
            ip(&["-n", own, "-6", "route", "add", &format!("{}/64", cluster.address6(0)), "via", "fd00:29::1"]);
            for other in &others {
                let via = cluster.address6(router_last).to_string();
                ip(&["-n", other, "-6", "route", "add", "fd00:29::/64", "via", &via]);
            }
        }
        network::inside(&network::open(between), || {
            for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                fs::write(format!("/proc/sys/net/{family}"), "1").unwrap();
            }
        });
        [far.into(), far6.into()]
    }

    fn number(&self) -> u8 {
        self.namespace.rsplit('-').next().unwrap().parse().unwrap()
    }

    /// Gives the machine an IPv6 address.
    pub(crate) fn add_ipv6(&self, cluster: &Cluster) {
        cluster.net.add_ipv6(&self.namespace, 10 + self.number());
    }

    /// The agent's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent runs").id()
    }

    /// How many processes run in the node's pods.
    pub(crate) fn container_processes(&self) -> usize {
        super::cleanup::cgroup_dirs(&self.namespace).iter().map(|d| super::cleanup::cgroup_pids(d).len()).sum()
    }

    /// Ends it with a signal and waits for it.
    pub(crate) fn stop(&mut self, signal: nix::sys::signal::Signal) {
        let mut child = self.child.take().expect("the agent runs");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        child.wait().unwrap();
    }

    /// Stops everything of the node, as a power cut does: the agent, its monitors and its containers.
    pub(crate) fn cut_power(&mut self) {
        if self.child.is_some() {
            self.stop(nix::sys::signal::Signal::SIGKILL);
        }
        let mark = self.dir.join("notify.sock").display().to_string();
        super::cleanup::forget_machine(&format!("NOTIFY_SOCKET={mark}"), &self.namespace, &self.dir);
    }

    /// Gives the machine a new network namespace, as a reboot does: no links but those of a machine, no rules.
    pub(crate) fn new_network(&mut self, cluster: &Cluster) {
        let number = self.namespace.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap();
        assert_eq!(cluster.net.add(number), self.namespace);
    }

    /// Runs a closure on a thread inside the node's network namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        super::inside(network::open(&self.namespace), work)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("edge.log")).unwrap_or_default()
    }

    /// Cuts the node off, or connects it again.
    pub(crate) fn plug(&self, connected: bool) {
        ip(&["link", "set", &network::port(&self.namespace), if connected { "up" } else { "down" }]);
    }

    /// Cuts the node off without its noticing, as a switch does that fails far away; or connects it again.
    pub(crate) fn hear(&self, connected: bool) {
        let (port, bridge) = (network::port(&self.namespace), network::host_end(&self.cluster));
        let to: &[&str] = if connected { &["master", &bridge] } else { &["nomaster"] };
        ip(&[&["link", "set", &port], to].concat());
    }

    /// The certificate that the node shows to servers.
    pub(crate) fn certificate(&self) -> edge_pki::Identity {
        let file = self.dir.join("data/agent/tls/client-kubelet.pem");
        edge_pki::Identity::load(&file).unwrap().expect("the node has joined")
    }

    /// The echo server of a pod answers this node.
    pub(crate) fn reaches(&self, pod_ip: &str) {
        super::reaches(|| network::open(&self.namespace), pod_ip);
    }

    /// Whether it runs still.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Runs ip(8) in the node's namespace.
    pub(crate) fn ip_command(&self, args: &[&str]) {
        let mut all = vec!["-n", self.namespace.as_str()];
        all.extend(args);
        ip(&all);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            super::tell_log(&self.name, &self.log(), 60);
            if std::env::var_os("EDGE_E2E_KEEP").is_some() {
                return;
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
