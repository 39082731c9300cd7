//! Random clusters that change at random: after every step the kernel's tables mean what a node would write that is told
//! everything at once, and a new process finds and leaves them so.
//!
//! The seeds are fixed; `EDGE_CHURN_SEED` takes others. A failure names its seed and step.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_client::{Change, Key};
use edge_network::{Backend, Cidr, NodeConfig, NodeNetwork};
use edge_sys::netns;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Model, Node, policy};

const SEEDS: [u64; 3] = [1, 2, 3];
const STEPS: usize = 48;
const APPS: [&str; 4] = ["red", "green", "blue", "gray"];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    fn namespace(&mut self) -> &'static str {
        self.of(&NAMESPACES)
    }

    fn node(&mut self) -> &'static str {
        self.of(&["here", "there", "elsewhere"])
    }

    fn endpoint(&mut self, kind: &str) -> Value {
        let last = 2 + self.below(20);
        let address = if kind == "IPv4" { format!("10.42.1.{last}") } else { format!("fd42:0:0:1::{last:x}") };
        let (ready, serving, terminating) = match self.below(4) {
            0 => (false, self.one_in(2), true),
            1 => (false, false, false),
            _ => (true, true, false),
        };
        let mut endpoint = json!({"addresses": [address], "nodeName": self.node(),
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
        if self.one_in(2) {
            endpoint["hints"] = json!({"forZones": [{"name": self.of(&["east", "west"])}]});
        }
        endpoint
    }

    fn slice(&mut self, namespace: &str, number: usize) -> Value {
        let kind = self.of(&["IPv4", "IPv6"]);
        let endpoints: Vec<Value> = (0..self.below(5)).map(|_| self.endpoint(kind)).collect();
        let service = format!("s{}", self.below(8));
        json!({"metadata": {"namespace": namespace, "name": format!("slice-{number}"),
                "labels": {"kubernetes.io/service-name": service}},
            "addressType": kind, "endpoints": endpoints,
            "ports": [{"name": "one", "port": 8080 + self.below(2), "protocol": "TCP"}, {"name": "two", "port": 53, "protocol": "UDP"}]})
    }

    fn service(&mut self, namespace: &str, number: usize) -> Value {
        let id = 16 * NAMESPACES.iter().position(|n| *n == namespace).unwrap() + number;
        let kind = self.of(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "headless"]);
        let mut ports = Vec::new();
        for (i, (name, protocol)) in [("one", "TCP"), ("two", "UDP"), ("three", "SCTP")].into_iter().enumerate() {
            if self.one_in(4) {
                continue;
            }
            let mut port = json!({"name": name, "protocol": protocol, "port": 80 + self.below(2)});
            if ["NodePort", "LoadBalancer"].contains(&kind) {
                // sometimes one that another service has
                port["nodePort"] = json!(30000 + if self.one_in(5) { 0 } else { 4 * id + i });
            }
            ports.push(port);
        }
        let policy = |random: &mut Self| random.of(&["Cluster", "Local"]).to_owned();
        let mut spec = json!({"type": kind, "ports": ports, "externalTrafficPolicy": policy(self),
            "internalTrafficPolicy": policy(self), "sessionAffinity": self.of(&["None", "ClientIP"])});
        match kind {
            "headless" => {
                spec["type"] = json!("ClusterIP");
                spec["clusterIP"] = json!("None");
            }
            "ExternalName" => {}
            _ => {
                let both = [format!("10.43.1.{id}"), format!("fd43::1:{id:x}")];
                spec["clusterIPs"] = json!(both[..1 + self.below(2)]);
                spec["clusterIP"] = spec["clusterIPs"][0].clone();
                if self.one_in(3) {
                    spec["externalIPs"] = json!([format!("198.51.100.{}", self.below(3))]);
                }
            }
        }
        let mut service = json!({"metadata": {"namespace": namespace, "name": format!("s{number}")}, "spec": spec});
        if kind == "LoadBalancer" {
            service["status"] = json!({"loadBalancer": {"ingress": [{"ip": format!("203.0.113.{}", self.below(4))}]}});
            if self.one_in(2) {
                service["spec"]["loadBalancerSourceRanges"] =
                    json!([self.of(&["192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32"])]);
            }
        }
        service
    }

    fn selector(&mut self) -> Value {
        if self.one_in(3) { json!({}) } else { json!({"matchLabels": {"app": self.of(&APPS)}}) }
    }

    fn peer(&mut self) -> Value {
        match self.below(4) {
            0 => json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": [format!("10.{}.0.0/16", self.below(3))]}}),
            1 => json!({"podSelector": self.selector()}),
            2 => json!({"namespaceSelector": {"matchLabels": {"name": self.namespace()}}}),
            _ => json!({"namespaceSelector": {}, "podSelector": self.selector()}),
        }
    }

    fn rule(&mut self, peers: &str) -> Value {
        let mut rule = json!({});
        if !self.one_in(3) {
            rule[peers] = (0..1 + self.below(2)).map(|_| self.peer()).collect();
        }
        if self.one_in(2) {
            let port = [json!("web"), json!(80), json!(8080)][self.below(3)].clone();
            rule["ports"] = json!([{"port": port, "protocol": self.of(&["TCP", "UDP"])}]);
        }
        rule
    }

    fn policy(&mut self, namespace: &str, number: usize) -> Value {
        let ingress: Vec<Value> = (0..self.below(3)).map(|_| self.rule("from")).collect();
        let egress: Vec<Value> = (0..self.below(3)).map(|_| self.rule("to")).collect();
        let types: &[&str] = [&["Ingress"][..], &["Egress"], &["Ingress", "Egress"]][self.below(3)];
        json!({"metadata": {"namespace": namespace, "name": format!("p{number}")},
            "spec": {"podSelector": self.selector(), "policyTypes": types, "ingress": ingress, "egress": egress}})
    }
}

/// All objects of a cluster, and where they are told.
#[derive(Default)]
struct Objects {
    services: BTreeMap<Key, Arc<Service>>,
    slices: BTreeMap<Key, Arc<EndpointSlice>>,
    policies: BTreeMap<Key, Arc<NetworkPolicy>>,
    pods: BTreeMap<Key, Arc<Pod>>,
    namespaces: BTreeMap<Key, Arc<Namespace>>,
    zone: Option<String>,
}

/// Puts an object in the place of the one with its name, or takes that one away.
fn change<K>(all: &mut BTreeMap<Key, Arc<K>>, key: Key, new: Option<Value>) -> Option<Change<K>>
where
    K: DeserializeOwned,
{
    match new {
        Some(value) => {
            let new = Arc::new(serde_json::from_value::<K>(value).unwrap());
            let old = all.insert(key, new.clone());
            Some(Change::Applied { old, new })
        }
        None => all.remove(&key).map(Change::Deleted),
    }
}

/// A node's view of the cluster, as one process has it.
struct Process {
    network: NodeNetwork,
    services: Model,
    policies: policy::Model,
}

fn node() -> Node {
    Node { name: "here".into(), dns_addresses: vec!["10.43.0.10".parse().unwrap(), "fd43::a".parse().unwrap()] }
}

impl Process {
    fn start(run_dir: &Path) -> Self {
        let cidrs = |texts: [&str; 2]| texts.map(|text| text.parse::<Cidr>().unwrap()).to_vec();
        let network = NodeNetwork::set_up(NodeConfig {
            run_dir: run_dir.to_owned(),
            cluster_cidrs: cidrs(["10.42.0.0/16", "fd42::/56"]),
            service_cidrs: cidrs(["10.43.0.0/16", "fd43::/112"]),
            dns_addresses: node().dns_addresses,
            node_port_networks: Vec::new(),
            node_addresses: Vec::new(),
            wireguard_key: run_dir.join("wireguard.key"),
            backend: Backend::HostGw,
            cni: Default::default(),
        })
        .unwrap();
        network.assign(&cidrs(["10.42.0.0/24", "fd42::/64"]), &[]).unwrap();
        Self { network, services: Model::new(node()), policies: policy::Model::new(&node()) }
    }

    /// Tells a process that knows nothing everything at once.
    fn learn(&mut self, objects: &Objects) {
        self.services.set_zone(objects.zone.clone());
        for new in objects.slices.values().cloned() {
            self.services.slice_changed(&Change::Applied { old: None, new });
        }
        for new in objects.services.values().cloned() {
            self.services.service_changed(&Change::Applied { old: None, new });
        }
        self.services.refresh();
        self.network.apply_services(self.services.table()).unwrap();
        for new in objects.namespaces.values().cloned() {
            self.policies.namespace_changed(&Change::Applied { old: None, new });
        }
        for new in objects.policies.values().cloned() {
            self.policies.policy_changed(&Change::Applied { old: None, new });
        }
        for new in objects.pods.values().cloned() {
            self.policies.pod_changed(&Change::Applied { old: None, new });
        }
        for (uid, pod) in self.network.pods() {
            self.policies.pod_attached(&uid, &pod.addresses);
        }
        self.policies.refresh();
        self.network.change_policies(&self.policies.all()).unwrap();
    }

    /// Makes what has been noted the kernel's.
    fn write(&mut self) {
        let changes = self.services.refresh();
        self.network.change_services(changes).unwrap();
        let changes = self.policies.refresh();
        self.network.change_policies(&changes).unwrap();
    }
}

/// Namespaces of the network and their directories, which end with the test.
struct Places(tempfile::TempDir);

impl Places {
    fn namespace(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        if !path.exists() {
            netns::create(&path).unwrap();
        }
        path
    }

    fn end(&self, name: &str) {
        netns::delete(&self.0.path().join(name)).unwrap();
    }

    fn run_dir(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}-run"))
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for name in ["churned", "fresh"] {
            let _ = netns::delete(&self.0.path().join(name));
        }
    }
}

/// Every chain of the tables with its rules, as nft prints them: what chains hold is not what their names promise unless
/// somebody looks.
fn chains() -> BTreeSet<String> {
    let mut chains = BTreeSet::new();
    for family in ["ip", "ip6"] {
        let out = std::process::Command::new("nft").args(["-s", "list", "table", family, "edge"]).output();
        let out = out.expect("scripts/setup installs nftables");
        assert!(out.status.success(), "nft: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.trim_start().starts_with("chain ") {
                let body: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "}").map(str::trim).collect();
                chains.insert(format!("{family} {} {body:?}", line.trim()));
            }
        }
    }
    chains
}

struct Test {
    places: Places,
    random: Random,
    objects: Objects,
    process: Process,
    attached: BTreeSet<String>,
}

impl Test {
    fn new(seed: u64) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let places = Places(tempfile::tempdir().unwrap());
        let (namespace, run_dir) = (places.namespace("churned"), places.run_dir("churned"));
        let mut process = netns::run_in(&namespace, || Process::start(&run_dir)).unwrap();
        netns::run_in(&namespace, || process.learn(&Objects::default())).unwrap();
        Self { places, random: Random(seed), objects: Objects::default(), process, attached: BTreeSet::new() }
    }

    /// One random change.
    fn change(&mut self) {
        let (random, objects, process) = (&mut self.random, &mut self.objects, &mut self.process);
        let namespace = random.namespace();
        let key = |name: String| Key::new(namespace, name);
        let there = !random.one_in(4);
        match random.below(12) {
            0..=3 => {
                let number = random.below(8);
                let new = there.then(|| random.service(namespace, number));
                let change = change(&mut objects.services, key(format!("s{number}")), new);
                change.iter().for_each(|change| process.services.service_changed(change));
            }
            4..=6 => {
                let number = random.below(12);
                let new = there.then(|| random.slice(namespace, number));
                let change = change(&mut objects.slices, key(format!("slice-{number}")), new);
                change.iter().for_each(|change| process.services.slice_changed(change));
            }
            7 | 8 => {
                let number = random.below(4);
                let new = there.then(|| random.policy(namespace, number));
                let change = change(&mut objects.policies, key(format!("p{number}")), new);
                change.iter().for_each(|change| process.policies.policy_changed(change));
            }
            9 => {
                let new = json!({"metadata": {"name": namespace, "labels": if there { json!({"name": namespace}) } else { json!({}) }}});
                let change = change(&mut objects.namespaces, Key::new("", namespace), Some(new));
                change.iter().for_each(|change| process.policies.namespace_changed(change));
            }
            10 => self.change_pod(there),
            _ => {
                objects.zone = random.one_in(2).then(|| random.of(&["east", "west"]).to_owned());
                process.services.set_zone(objects.zone.clone());
            }
        }
    }

    /// A pod of this node or of another one comes, changes its labels, or goes.
    fn change_pod(&mut self, there: bool) {
        let number = self.random.below(8);
        let (here, namespace) = (number < 5, NAMESPACES[number % NAMESPACES.len()]);
        let (name, uid) = (format!("pod-{number}"), format!("uid-{number}"));
        let key = Key::new(namespace, name.as_str());
        if !there {
            let gone = change(&mut self.objects.pods, key, None);
            gone.iter().for_each(|change| self.process.policies.pod_changed(change));
            if self.attached.remove(&uid) {
                self.process.network.detach(&uid).unwrap();
            }
            return;
        }
        let addresses: Vec<IpAddr> = if here {
            let addresses = self.process.network.attach(&uid, &[]).unwrap().addresses;
            if self.attached.insert(uid.clone()) {
                self.process.policies.pod_attached(&uid, &addresses);
            }
            addresses
        } else {
            vec![format!("10.42.9.{number}").parse().unwrap()]
        };
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let pod = json!({
            "metadata": {"namespace": namespace, "name": name, "uid": uid, "labels": {"app": self.random.of(&APPS)}},
            "spec": {"nodeName": if here { "here" } else { "there" }, "containers": [{"name": "c", "ports": [
                {"name": "web", "containerPort": 8000 + self.random.below(2)}]}]},
            "status": {"podIPs": ips},
        });
        let change = change(&mut self.objects.pods, key, Some(pod));
        change.iter().for_each(|change| self.process.policies.pod_changed(change));
    }

    /// What a node would write that has the same pods and is told everything at once, in a network of its own.
    fn fresh(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (namespace, run_dir) = (self.places.namespace("fresh"), self.places.run_dir("fresh"));
        let leases = run_dir.join("leases");
        fs::create_dir_all(&leases).unwrap();
        for entry in fs::read_dir(self.places.run_dir("churned").join("leases")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), leases.join(entry.file_name())).unwrap();
        }
        let written = netns::run_in(&namespace, || {
            let mut process = Process::start(&run_dir);
            process.learn(&self.objects);
            (process.network.rules_in_kernel().unwrap(), chains())
        })
        .unwrap();
        self.places.end("fresh");
        fs::remove_dir_all(run_dir).unwrap();
        written
    }

    fn step(&mut self, name: &str, with_chains: bool) {
        let namespace = self.places.namespace("churned");
        netns::run_in(&namespace, || {
            for _ in 0..=self.random.below(6) {
                self.change();
            }
            self.process.write();
        })
        .unwrap();
        self.compare(name, with_chains);
    }

    fn compare(&self, name: &str, with_chains: bool) {
        let namespace = self.places.namespace("churned");
        let kernel = netns::run_in(&namespace, || self.process.network.rules_in_kernel().unwrap()).unwrap();
        let (wanted, wanted_chains) = self.fresh();
        let (more, less) = (kernel.difference(&wanted), wanted.difference(&kernel));
        let (more, less): (Vec<_>, Vec<_>) = (more.collect(), less.collect());
        assert!(more.is_empty() && less.is_empty(), "{name}: too much {more:#?}, missing {less:#?}");
        if with_chains {
            let found = netns::run_in(&namespace, chains).unwrap();
            let differing: Vec<_> = found.symmetric_difference(&wanted_chains).collect();
            assert!(differing.is_empty(), "{name}: {differing:#?}");
        }
    }

    /// A new process: what it finds serves before it is told anything, and is what it would write itself.
    fn restart(&mut self, name: &str) {
        let (namespace, run_dir) = (self.places.namespace("churned"), self.places.run_dir("churned"));
        netns::run_in(&namespace, || {
            let before = self.process.network.rules_in_kernel().unwrap();
            self.process = Process::start(&run_dir);
            assert_eq!(self.process.network.rules_in_kernel().unwrap(), before, "{name}: as it was");
            self.process.learn(&self.objects);
        })
        .unwrap();
        self.compare(name, true);
    }
}

#[test]
fn the_kernel_follows_a_random_cluster() {
    let given = std::env::var("EDGE_CHURN_SEED").ok().map(|seed| vec![seed.parse().expect("a number")]);
    for seed in given.unwrap_or(SEEDS.to_vec()) {
        let mut test = Test::new(seed);
        for step in 0..STEPS {
            let name = format!("seed {seed}, step {step}");
            test.step(&name, step % 10 == 5);
            if step % 12 == 11 {
                test.restart(&name);
            }
        }
        // Everything goes.
        let namespace = test.places.namespace("churned");
        netns::run_in(&namespace, || {
            let objects = std::mem::take(&mut test.objects);
            for old in objects.services.into_values() {
                test.process.services.service_changed(&Change::Deleted(old));
            }
            for old in objects.slices.into_values() {
                test.process.services.slice_changed(&Change::Deleted(old));
            }
            for old in objects.policies.into_values() {
                test.process.policies.policy_changed(&Change::Deleted(old));
            }
            for old in objects.pods.into_values() {
                test.process.policies.pod_changed(&Change::Deleted(old));
            }
            for uid in std::mem::take(&mut test.attached) {
                test.process.network.detach(&uid).unwrap();
            }
            test.process.write();
        })
        .unwrap();
        let left = netns::run_in(&namespace, || test.process.network.rules_in_kernel().unwrap()).unwrap();
        assert!(left.is_empty(), "seed {seed}, at the end: {left:#?}");
    }
}
