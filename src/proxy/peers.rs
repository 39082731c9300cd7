//! The nodes of the cluster, for this node's pod network: which networks this node's pods have, what the other nodes must
//! know of this one, and how the others are reached.
//!
//! Comes in: the informer of Nodes, and news of this machine's links. Goes out: the node's pod networks and its peers,
//! handed to the room `network`; annotations of the node's own object. Nodes tell each other by the annotations that k3s and
//! flannel use, so that tools that read them find what they expect.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use edge_client::{Api, Client, Informers, Patch, PatchParams, ResourceExt};
use edge_network::{Backend, Cidr, CniPaths, CniWatch, Error, Monitor, NodeNetwork, Peer, Reach, Reaches, Tunnel, VNI};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::memory;

/// How long to wait before what was refused is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Links and addresses often change in bursts: so long after the first news all of them are looked at together.
const SETTLE: Duration = Duration::from_millis(20);

/// How long at most before another network plugin that is not ready is asked again.
const PLUGIN_PATIENCE: Duration = Duration::from_secs(5);

/// What the names of annotations about a node's pod network begin with.
pub(crate) const PREFIX: &str = "flannel.alpha.coreos.com/";
const PUBLIC_IP: [&str; 2] = ["public-ip", "public-ipv6"];
/// Set by administrators, where other nodes reach a node by another address than it knows of (behind a NAT).
const PUBLIC_IP_OVERWRITE: [&str; 2] = ["public-ip-overwrite", "public-ipv6-overwrite"];
const BACKEND_TYPE: &str = "backend-type";
const BACKEND_DATA: &str = "backend-data";

/// What the nodes say, as this node needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Picture {
    /// The networks of this node's pods.
    networks: Vec<Cidr>,
    /// This node's addresses.
    addresses: Vec<IpAddr>,
    peers: Vec<Peer>,
}

/// Keeps the pod network in step with the cluster's nodes. `client` has the identity of the node `node`. Does not end; drop
/// the future to stop. What is in the kernel stays there then.
pub async fn run(informers: Informers, client: Client, network: Arc<NodeNetwork>, node: String) {
    if let Some(paths) = network.cni_paths().cloned() {
        return follow_plugin(network, &paths).await;
    }
    let nodes = informers.of::<Node>();
    let mut changes = nodes.subscribe();
    let mut links = Monitor::open()
        .inspect_err(|error| {
            tracing::warn!(error = error as &dyn std::error::Error, "changes of links are not noticed")
        })
        .ok();
    memory::enough(&nodes, &network).await;
    let mut follower = Follower { network, client, node, applied: None, reaches: Reaches::new() };
    let mut retry: Option<Duration> = None;
    loop {
        while changes.try_recv().is_ok() {}
        let all = nodes.list();
        retry = match follower.follow(&all).await {
            Ok(()) => None,
            Err(Trouble(what, error)) => {
                tracing::error!(error = &*error, "{what}");
                Some(retry.map_or(RETRY.0, |delay| (delay * 2).min(RETRY.1)))
            }
        };
        let retry_is_due = async {
            match retry {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(_) = changes.recv() => {}
            () = link_news(&mut links) => follower.applied = None,
            () = retry_is_due => follower.applied = None,
        }
    }
}

/// Notices when another network plugin is configured, and when it is ready.
async fn follow_plugin(network: Arc<NodeNetwork>, paths: &CniPaths) {
    let mut watch = CniWatch::open(paths)
        .inspect_err(|error| tracing::error!(error = error as &dyn std::error::Error, "CNI configuration not watched"))
        .ok();
    let mut delay = None;
    loop {
        let plugin = network.clone();
        let again = match tokio::task::spawn_blocking(move || plugin.reload_cni()).await {
            Ok(again) => again,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        // plugins say that they are not ready, but not when they are
        delay = again.then(|| delay.map_or(RETRY.0, |delay: Duration| (delay * 2).min(PLUGIN_PATIENCE)));
        let ask_again = async {
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            let Some(watched) = &mut watch else { return std::future::pending().await };
            if let Err(error) = watched.changed().await {
                tracing::error!(error = &error as &dyn std::error::Error, "CNI configuration not watched any more");
                watch = None;
            }
        };
        tokio::select! {
            () = changed => {}
            () = ask_again => {}
        }
    }
}

/// Ends when something about this machine's links has changed.
async fn link_news(links: &mut Option<Monitor>) {
    let Some(watched) = links else { return std::future::pending().await };
    let told = watched.news().await;
    tokio::time::sleep(SETTLE).await;
    // what came in meanwhile is looked at with the rest
    if let Err(error) = told.and_then(|()| watched.changed().map(drop)) {
        tracing::warn!(error = &error as &dyn std::error::Error, "changes of links are not noticed any more");
        *links = None;
    }
}

/// What could not be done, and why.
struct Trouble(&'static str, Box<dyn std::error::Error + Send + Sync>);

struct Follower {
    network: Arc<NodeNetwork>,
    client: Client,
    node: String,
    /// What is in the kernel; `None` when that has to be looked at.
    applied: Option<Picture>,
    reaches: Reaches,
}

impl Follower {
    async fn follow(&mut self, nodes: &[Arc<Node>]) -> Result<(), Trouble> {
        let Some(own) = nodes.iter().find(|node| node.name_any() == self.node) else { return Ok(()) };
        let picture = Picture {
            networks: pod_networks(own),
            addresses: internal_addresses(own),
            peers: nodes.iter().filter(|node| node.name_any() != self.node).map(|node| peer(node)).collect(),
        };
        if picture.networks.is_empty() || self.applied.as_ref() == Some(&picture) {
            return Ok(());
        }
        let network = self.network.clone();
        let (networks, addresses, peers) = (picture.networks.clone(), picture.addresses.clone(), picture.peers.clone());
        let work = move || -> Result<Reaches, Error> {
            network.assign(&networks, &addresses)?;
            network.apply_peers(&addresses, &peers)
        };
        let applied = match tokio::task::spawn_blocking(work).await {
            Ok(applied) => applied,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        // others must learn of this node even when it does not reach all of them
        let published = self.publish(own, &picture.addresses).await;
        let reaches = applied.map_err(|error| Trouble("pod network refused", error.into()))?;
        self.tell(reaches);
        published.map_err(|error| Trouble("the node's annotations were not written", error.into()))?;
        self.applied = Some(picture);
        Ok(())
    }

    /// Logs how the ways to other nodes have changed.
    fn tell(&mut self, reaches: Reaches) {
        for (peer, reach) in &reaches {
            match reach {
                same if self.reaches.get(peer) == Some(same) => {}
                Reach::Unreachable(why) => tracing::warn!(peer, why, "pods of the node are not reached"),
                way => tracing::info!(peer, ?way, "pods of the node are reached"),
            }
        }
        self.reaches = reaches;
    }

    /// Writes what the other nodes must know of this one into the annotations of its object, if that is not there.
    async fn publish(&self, own: &Node, addresses: &[IpAddr]) -> Result<(), edge_client::Error> {
        let wanted = annotations(self.network.backend(), self.network.tunnel(), addresses);
        let has = own.annotations();
        let change: BTreeMap<String, Value> = wanted
            .into_iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), value))
            .filter(|(name, value)| has.get(name) != value.as_ref())
            .map(|(name, value)| (name, value.map_or(Value::Null, Value::String)))
            .collect();
        if change.is_empty() {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"metadata": {"annotations": change}}));
        match api.patch(&self.node, &PatchParams::default(), &patch).await {
            // it comes back with a change of its own
            Err(error) if edge_client::is_not_found(&error) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// What the other nodes must know of this one; `None` removes an annotation.
fn annotations(
    backend: Backend,
    tunnel: Option<Tunnel>,
    addresses: &[IpAddr],
) -> BTreeMap<&'static str, Option<String>> {
    let (type_, data) = match tunnel {
        Some(Tunnel::Vxlan(mac)) => {
            let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            ("vxlan".to_owned(), json!({"VNI": VNI, "VtepMAC": mac.join(":")}))
        }
        Some(Tunnel::WireGuard(key)) => ("wireguard".to_owned(), json!({"PublicKey": BASE64_STANDARD.encode(key)})),
        None => (backend.to_string(), Value::Null),
    };
    let mut wanted = BTreeMap::from([(BACKEND_TYPE, Some(type_)), (BACKEND_DATA, Some(data.to_string()))]);
    for (name, ipv4) in PUBLIC_IP.into_iter().zip([true, false]) {
        let address = addresses.iter().find(|address| address.is_ipv4() == ipv4);
        wanted.insert(name, address.map(IpAddr::to_string));
    }
    wanted
}

/// Another node as its object describes it.
fn peer(node: &Node) -> Peer {
    let annotation = |name: &str| node.annotations().get(&format!("{PREFIX}{name}")).map(String::as_str);
    let mut addresses = internal_addresses(node);
    for family in 0..2 {
        let told = [PUBLIC_IP_OVERWRITE[family], PUBLIC_IP[family]];
        let told = told.into_iter().filter_map(annotation).find_map(|text| text.parse::<IpAddr>().ok());
        if let Some(told) = told.filter(|ip| ip.is_ipv4() == (family == 0)) {
            match addresses.iter_mut().find(|ip| ip.is_ipv4() == told.is_ipv4()) {
                Some(known) => *known = told,
                None => addresses.push(told),
            }
        }
    }
    Peer {
        name: node.name_any(),
        pod_networks: pod_networks(node),
        addresses,
        tunnel: annotation(BACKEND_TYPE).zip(annotation(BACKEND_DATA)).and_then(|(type_, data)| tunnel(type_, data)),
    }
}

/// The tunnel that annotations describe; `None` where they describe none that is understood.
fn tunnel(type_: &str, data: &str) -> Option<Tunnel> {
    let data: Value = serde_json::from_str(data).ok()?;
    match type_ {
        "vxlan" => {
            // VXLAN packets of another network would not be heard
            if data.get("VNI").is_some_and(|vni| vni.as_u64() != Some(u64::from(VNI))) {
                return None;
            }
            let bytes = data.get("VtepMAC")?.as_str()?.split(':').map(|byte| u8::from_str_radix(byte, 16));
            let mac: [u8; 6] = bytes.collect::<Result<Vec<u8>, _>>().ok()?.try_into().ok()?;
            // a group's address would be flooded
            (mac[0] & 1 == 0 && mac != [0; 6]).then_some(Tunnel::Vxlan(mac))
        }
        "wireguard" => {
            let key = BASE64_STANDARD.decode(data.get("PublicKey")?.as_str()?).ok()?;
            Some(Tunnel::WireGuard(key.try_into().ok()?))
        }
        _ => None,
    }
}

/// The addresses in a node's status, one of a family, the primary one first.
fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let status = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let all = status.filter(|address| address.type_ == "InternalIP").filter_map(|a| a.address.parse().ok());
    one_of_a_family(all, IpAddr::is_ipv4)
}

/// The pod networks of a node, one of a family, the primary one first.
fn pod_networks(node: &Node) -> Vec<Cidr> {
    let texts = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    one_of_a_family(texts.filter_map(|text| text.parse().ok()), |network: &Cidr| network.base().is_ipv4())
}

fn one_of_a_family<T>(all: impl Iterator<Item = T>, is_ipv4: impl Fn(&T) -> bool) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for item in all {
        if !kept.iter().any(|known| is_ipv4(known) == is_ipv4(&item)) {
            kept.push(item);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn node(annotations: Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "b", "annotations": annotations},
            "spec": {"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24", "fd42:0:0:1::/64"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "b"}, {"type": "InternalIP", "address": "192.0.2.2"},
                {"type": "InternalIP", "address": "192.0.2.3"}, {"type": "InternalIP", "address": "2001:db8::2"}]},
        }))
        .unwrap()
    }

    /// What one node writes is what the others read.
    #[test]
    fn told_and_understood() {
        let addresses: Vec<IpAddr> = vec!["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()];
        for tunnel in [Tunnel::Vxlan([0x0a, 0x58, 10, 42, 1, 1]), Tunnel::WireGuard([7; 32])] {
            let written = annotations(Backend::Auto, Some(tunnel), &addresses);
            let written: BTreeMap<String, _> = written.into_iter().map(|(k, v)| (format!("{PREFIX}{k}"), v)).collect();
            let read = peer(&node(json!(written)));
            let networks: Vec<Cidr> = vec!["10.42.1.0/24".parse().unwrap(), "fd42:0:0:1::/64".parse().unwrap()];
            let addresses = addresses.clone();
            assert_eq!(read, Peer { name: "b".into(), pod_networks: networks, addresses, tunnel: Some(tunnel) });
        }
        let none = annotations(Backend::HostGw, None, &addresses[..1]);
        assert_eq!(none[BACKEND_TYPE].as_deref(), Some("host-gw"));
        assert_eq!(none["public-ipv6"], None, "an address that is gone is taken back");
    }

    #[test]
    fn flannels_annotations_are_understood() {
        let read = peer(&node(json!({
            "flannel.alpha.coreos.com/backend-data": r#"{"VNI":1,"VtepMAC":"2e:0e:d2:5c:7a:52"}"#,
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": "198.51.100.2",
            "flannel.alpha.coreos.com/public-ip-overwrite": "203.0.113.7",
        })));
        assert_eq!(read.tunnel, Some(Tunnel::Vxlan([0x2e, 0x0e, 0xd2, 0x5c, 0x7a, 0x52])));
        let addresses: Vec<String> = read.addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["203.0.113.7", "2001:db8::2"]);
    }

    #[test]
    fn nonsense_is_no_tunnel() {
        for (type_, data) in [
            ("vxlan", ""),
            ("vxlan", "null"),
            ("vxlan", r#"{"VtepMAC":"2e:0e:d2:5c:7a"}"#),
            ("vxlan", r#"{"VtepMAC":"01:00:5e:00:00:01"}"#),
            ("vxlan", r#"{"VtepMAC":"00:00:00:00:00:00"}"#),
            ("vxlan", r#"{"VNI":2,"VtepMAC":"2e:0e:d2:5c:7a:52"}"#),
            ("wireguard", r#"{"PublicKey":"AAAA"}"#),
            ("wireguard", r#"{"PublicKey":7}"#),
            ("udp", "{}"),
        ] {
            assert_eq!(tunnel(type_, data), None, "{type_} {data}");
        }
    }
}
