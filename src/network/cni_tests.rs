//! Another network plugin: a real one where the machine has it (Debian's containernetworking-plugins), and a script that
//! does what a plugin does and writes down what it was asked.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use edge_sys::netns;
use serde_json::{Value, json};

use crate::cni::CniError;
use crate::{Backend, CniPaths, Error, HostPort, NodeConfig, NodeNetwork, PodIdentity, Protocol, Readiness};

/// Where Debian puts the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// Gives every pod an address of its own on a veth pair, writes every call into `calls`, and fails while `fail-<command>`
/// exists.
const SCRIPT: &str = r#"#!/bin/sh
here=$(dirname "$0")
input=$(cat)
printf '%s\t%s\t%s\t%s\t%s\n' "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_ARGS" "$input" >> "$here/calls"
if [ -e "$here/fail-$CNI_COMMAND" ]; then
    echo '{"cniVersion": "1.1.0", "code": 11, "msg": "try again later", "details": "the daemon starts"}'
    exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
    number=$(grep -c '^ADD' "$here/calls")
    echo "{\"cniVersion\": \"1.1.0\", \"interfaces\": [{\"name\": \"host\"}, {\"name\": \"eth0\", \"sandbox\": \"$CNI_NETNS\"}],
        \"ips\": [{\"address\": \"10.77.0.1/24\", \"interface\": 0}, {\"address\": \"10.77.0.$number/24\", \"interface\": 1},
                  {\"address\": \"fd77::$number/64\", \"interface\": 1}]}"
fi
"#;

struct World {
    dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.path("run/netns")).into_iter().flatten().flatten() {
            let _ = netns::delete(&entry.path());
        }
        let _ = netns::delete(&self.path("node"));
    }
}

impl World {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let world = Self { dir: tempfile::tempdir().unwrap() };
        netns::create(&world.path("node")).unwrap();
        for dir in ["net.d", "bin"] {
            fs::create_dir(world.path(dir)).unwrap();
        }
        fs::write(world.path("bin/script"), SCRIPT).unwrap();
        fs::set_permissions(world.path("bin/script"), fs::Permissions::from_mode(0o755)).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn set_up(&self) -> NodeNetwork {
        let plugin_dirs = vec![self.path("bin"), REFERENCE_PLUGINS.into()];
        let config = NodeConfig {
            run_dir: self.path("run"),
            cluster_cidrs: vec!["10.77.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            dns_addresses: vec!["10.43.0.10".parse().unwrap()],
            node_port_networks: Vec::new(),
            node_addresses: Vec::new(),
            wireguard_key: self.path("wireguard.key"),
            backend: Backend::None,
            cni: CniPaths { config_dir: self.path("net.d"), plugin_dirs },
        };
        self.inside(|| NodeNetwork::set_up(config)).unwrap()
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::run_in(&self.path("node"), work).unwrap()
    }

    fn configure(&self, name: &str, config: &Value) {
        fs::write(self.path("net.d").join(name), config.to_string()).unwrap();
    }

    /// The commands so far, with the container they were about.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("bin/calls")).unwrap_or_default();
        text.lines().map(|line| line.split('\t').take(2).collect::<Vec<_>>().join(" ")).collect()
    }

    fn last_call(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("bin/calls")).unwrap();
        text.lines().last().unwrap().split('\t').map(str::to_owned).collect()
    }
}

fn pod(uid: &str) -> PodIdentity {
    PodIdentity { uid: uid.to_owned(), namespace: "ns".to_owned(), name: format!("pod-{uid}") }
}

fn ready(network: &NodeNetwork) -> bool {
    network.readiness() == Readiness::Ready
}

fn list(version: &str) -> Value {
    json!({"cniVersion": version, "name": "net", "plugins": [{"type": "script", "first": true}, {"type": "script"}]})
}

#[test]
fn not_ready_until_there_is_a_configuration() {
    let world = World::new();
    let network = world.set_up();
    let Readiness::NotReady(why) = network.readiness() else { panic!("ready without a plugin") };
    assert!(why.contains("no network configuration in"), "{why}");
    assert!(!network.reload_cni(), "only a change of the directory helps");
    let refused = world.inside(|| network.attach_pod(&pod("a"), &[]));
    assert!(matches!(refused, Err(Error::Cni(CniError::NoConfig(_)))), "{refused:?}");
    world.configure("10-net.conflist", &list("1.1.0"));
    fs::write(world.path("bin/fail-STATUS"), "").unwrap();
    assert!(network.reload_cni(), "asked again: the plugin is there, but not ready");
    let Readiness::NotReady(why) = network.readiness() else { panic!("ready without its daemon") };
    assert!(why.contains("try again later the daemon starts"), "{why}");
    fs::remove_file(world.path("bin/fail-STATUS")).unwrap();
    assert!(!network.reload_cni() && ready(&network));
    fs::remove_file(world.path("net.d/10-net.conflist")).unwrap();
    network.reload_cni();
    assert!(!ready(&network));
}

#[test]
fn plugins_are_called_as_the_specification_says() {
    let world = World::new();
    world.configure("10-net.conflist", &list("1.1.0"));
    let mut network = world.set_up();
    assert!(ready(&network));
    fs::remove_file(world.path("bin/calls")).unwrap();
    let a = world.inside(|| network.attach_pod(&pod("a"), &[])).unwrap();
    assert_eq!(a.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.77.0.2", "fd77::2"]);
    assert_eq!(world.calls(), ["ADD a", "ADD a"]);
    let [command, _, namespace, args, input] = <[String; 5]>::try_from(world.last_call()).unwrap();
    assert_eq!((command.as_str(), Path::new(&namespace)), ("ADD", a.netns.as_path()));
    for part in ["IgnoreUnknown=1", "K8S_POD_NAMESPACE=ns", "K8S_POD_NAME=pod-a", "K8S_POD_INFRA_CONTAINER_ID=a"] {
        assert!(args.split(';').any(|arg| arg == part), "{args}");
    }
    let input: Value = serde_json::from_str(&input).unwrap();
    assert_eq!((&input["name"], &input["cniVersion"]), (&json!("net"), &json!("1.1.0")));
    assert_eq!(input["prevResult"]["ips"][1]["address"], "10.77.0.1/24", "what the plugin before answered: {input}");
    // a restart: what is connected stays so, if its plugins still find it as they made it
    network = world.set_up();
    assert_eq!(network.pods()["a"], a);
    fs::remove_file(world.path("bin/calls")).unwrap();
    assert_eq!(world.inside(|| network.attach_pod(&pod("a"), &[])).unwrap(), a);
    assert_eq!(world.calls(), ["CHECK a", "CHECK a"]);
    // another configuration is no business of pods that are connected already
    fs::remove_file(world.path("net.d/10-net.conflist")).unwrap();
    network.reload_cni();
    world.inside(|| network.detach("a")).unwrap();
    assert_eq!(world.calls()[2..], ["DEL a", "DEL a"]);
    assert!(world.last_call()[4].contains("\"first\":true"), "in the opposite order");
    assert!(world.last_call()[4].contains("prevResult"));
    assert!(!a.netns.exists() && network.pods().is_empty());
    world.inside(|| network.detach("a")).unwrap();
    assert_eq!(world.calls().len(), 4, "nothing is asked about a pod that is not connected");
}

#[test]
fn failures_are_told_and_cleaned_up_after() {
    let world = World::new();
    world.configure("10-net.conflist", &list("1.0.0"));
    let network = world.set_up();
    fs::write(world.path("bin/fail-ADD"), "").unwrap();
    let refused = world.inside(|| network.attach_pod(&pod("a"), &[])).unwrap_err();
    let text = "network plugin script failed (ADD, code 11): try again later the daemon starts";
    assert_eq!(refused.to_string(), text);
    fs::remove_file(world.path("bin/fail-ADD")).unwrap();
    world.inside(|| network.attach_pod(&pod("a"), &[])).unwrap();
    assert_eq!(world.calls(), ["ADD a", "DEL a", "DEL a", "ADD a", "ADD a"], "a failed attempt is undone first");
    fs::write(world.path("bin/fail-DEL"), "").unwrap();
    assert!(world.inside(|| network.detach("a")).is_err());
    assert!(network.pods().contains_key("a"), "not forgotten: it is tried again");
    fs::remove_file(world.path("bin/fail-DEL")).unwrap();
    world.inside(|| network.cleanup_stale(&BTreeSet::new())).unwrap();
    assert!(network.pods().is_empty());
    world.configure("10-net.conflist", &json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "missing"}]}));
    network.reload_cni();
    let refused = world.inside(|| network.attach_pod(&pod("b"), &[])).unwrap_err();
    assert!(refused.to_string().starts_with("network plugin missing is in none of"), "{refused}");
}

#[test]
fn leftovers_are_collected() {
    let world = World::new();
    world.configure("10-net.conflist", &list("1.1.0"));
    let network = world.set_up();
    for uid in ["a", "b"] {
        world.inside(|| network.attach_pod(&pod(uid), &[])).unwrap();
    }
    world.inside(|| network.cleanup_stale(&BTreeSet::from(["a".to_owned()]))).unwrap();
    let calls = world.calls();
    assert_eq!(calls[calls.len() - 4..], ["DEL b", "DEL b", "GC ", "GC "]);
    let input: Value = serde_json::from_str(&world.last_call()[4]).unwrap();
    assert_eq!(input["cni.dev/valid-attachments"], json!([{"containerID": "a", "ifname": "eth0"}]));
}

/// The reference plugins, with real traffic.
#[test]
fn the_reference_plugins_connect_pods() {
    let world = World::new();
    if !Path::new(REFERENCE_PLUGINS).join("bridge").exists() {
        eprintln!("{REFERENCE_PLUGINS}/bridge is missing: not tested");
        return;
    }
    world.configure(
        "10-net.conflist",
        &json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {"type": "host-local",
                "dataDir": world.path("ipam"), "ranges": [[{"subnet": "10.77.1.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}]}}]}),
    );
    let network = world.set_up();
    assert!(ready(&network), "{:?}", network.readiness());
    let port = HostPort { host_ip: None, host_port: 8088, container_port: 8080, protocol: Protocol::Tcp };
    let a = world.inside(|| network.attach_pod(&pod("a"), &[port])).unwrap();
    let b = world.inside(|| network.attach_pod(&pod("b"), &[])).unwrap();
    assert_ne!(a.addresses, b.addresses);
    let listener = netns::run_in(&a.netns, || std::net::TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
    let connect = |from: &Path, to: std::net::SocketAddr| {
        let timeout = std::time::Duration::from_secs(5);
        netns::run_in(from, || std::net::TcpStream::connect_timeout(&to, timeout)).unwrap().unwrap()
    };
    let _direct = connect(&b.netns, (a.addresses[0], 8080).into());
    assert_eq!(listener.accept().unwrap().1.ip(), b.addresses[0]);
    let gateway = "10.77.1.1".parse().unwrap();
    let _by_host_port = connect(&b.netns, std::net::SocketAddr::new(gateway, 8088));
    assert_eq!(listener.accept().unwrap().1.ip(), b.addresses[0]);
    // the same after a restart
    let network = world.set_up();
    assert_eq!(world.inside(|| network.attach_pod(&pod("a"), &[port])).unwrap(), a);
    world.inside(|| network.cleanup_stale(&BTreeSet::new())).unwrap();
    let links = world.inside(|| Command::new("ip").arg("link").output().unwrap().stdout);
    assert!(!String::from_utf8_lossy(&links).contains("veth"));
}
