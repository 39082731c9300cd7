//! Pod networks of nodes: every node gets a part of each of the cluster's pod networks (`spec.podCIDRs`), which nobody
//! else has, and which is free again when the node goes.
//!
//! What is taken is read off the nodes themselves, so nothing is stored and nothing can leak; what was given out but is
//! not seen in the cache yet is remembered here. There is one worker, so no two nodes are given the same.

use crate::context::{Context, each, unless_changed};
use edge_client::{Api, Change, Error, EventType, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// Prefix lengths of nodes' networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMasks {
    /// Of IPv4, at least 1.
    pub ipv4: u8,
    /// Of IPv6, at least 1.
    pub ipv6: u8,
}

impl Default for NodeMasks {
    /// Those of kube-controller-manager: 254 and very many pods.
    fn default() -> Self {
        Self { ipv4: 24, ipv6: 64 }
    }
}

/// A network that nodes get parts of, or a node's part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    v6: bool,
    /// The first address, as a number.
    base: u128,
    prefix: u8,
}

impl Network {
    fn bits(self) -> u8 {
        if self.v6 { 128 } else { 32 }
    }

    /// The address after the last one; `None` where the numbers end with it.
    fn end(self) -> Option<u128> {
        self.base.checked_add(1_u128.checked_shl(u32::from(self.bits() - self.prefix))?)
    }
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        let prefix: u8 = prefix.parse().map_err(drop)?;
        let (v6, number) = match address.parse().map_err(drop)? {
            IpAddr::V4(v4) => (false, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (true, v6.to_bits()),
        };
        let bits = if v6 { 128 } else { 32 };
        if prefix > bits {
            return Err(());
        }
        let hosts = 1_u128.checked_shl(u32::from(bits - prefix)).map_or(u128::MAX, |size| size - 1);
        Ok(Self { v6, base: number & !hosts, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.v6 {
            write!(f, "{}/{}", Ipv6Addr::from_bits(self.base), self.prefix)
        } else {
            // a network of that family is below 2^32
            write!(f, "{}/{}", Ipv4Addr::from_bits(u32::try_from(self.base).unwrap_or(u32::MAX)), self.prefix)
        }
    }
}

/// One of the cluster's networks, cut into parts of equal size.
#[derive(Debug)]
struct Range {
    cluster: Network,
    mask: u8,
    /// The number of the part after the one that was given last: a part that is free again rests as long as possible.
    next: u64,
}

impl Range {
    fn new(cluster: Network, masks: NodeMasks) -> Self {
        // a network that is too small to be cut goes to the first node as a whole
        let mask = if cluster.v6 { masks.ipv6 } else { masks.ipv4 }.max(cluster.prefix);
        Self { cluster, mask, next: 0 }
    }

    fn part_size(&self) -> u128 {
        // masks of nodes are never 0
        1_u128 << (self.cluster.bits() - self.mask)
    }

    fn parts(&self) -> u64 {
        1_u64.checked_shl(u32::from(self.mask - self.cluster.prefix)).unwrap_or(u64::MAX)
    }

    /// The numbers of the parts that a network takes something of.
    fn parts_of(&self, taken: Network) -> std::ops::Range<u64> {
        let (size, most) = (self.part_size(), self.parts());
        if taken.v6 != self.cluster.v6 {
            return 0..0;
        }
        let number = |address: u128| u64::try_from(address.saturating_sub(self.cluster.base) / size).unwrap_or(most);
        let first = number(taken.base).min(most);
        // an end inside of a part takes that part too
        let last = taken.end().map_or(most, |end| number(end.saturating_add(size - 1))).min(most);
        let before = taken.end().is_some_and(|end| end <= self.cluster.base);
        if before { 0..0 } else { first..last }
    }

    /// A part that is not `taken`.
    fn allocate(&mut self, taken: impl IntoIterator<Item = Network>) -> Option<Network> {
        let taken: BTreeSet<u64> = taken.into_iter().flat_map(|network| self.parts_of(network)).collect();
        let number = (self.next..self.parts()).chain(0..self.next).find(|number| !taken.contains(number))?;
        self.next = (number + 1) % self.parts();
        Some(Network {
            prefix: self.mask,
            base: self.cluster.base + u128::from(number) * self.part_size(),
            ..self.cluster
        })
    }
}

struct Ranges {
    ranges: Vec<Range>,
    /// What each node has.
    taken: BTreeMap<String, Vec<Network>>,
    /// What no node may have: the services' addresses.
    reserved: Vec<Network>,
}

impl Ranges {
    fn new(cluster: &[String], reserved: &[String], masks: NodeMasks) -> Self {
        let parse = |list: &[String]| list.iter().filter_map(|text| text.parse().ok()).collect::<Vec<Network>>();
        let ranges = parse(cluster).into_iter().map(|network| Range::new(network, masks)).collect();
        Self { ranges, taken: BTreeMap::new(), reserved: parse(reserved) }
    }

    /// Remembers what a node has. False when another node has some of it, too.
    fn occupy(&mut self, node: &str, networks: Vec<Network>) -> bool {
        let others = self.taken.iter().filter(|(name, _)| *name != node).flat_map(|(_, networks)| networks);
        let apart = |a: Network, b: Network| {
            a.v6 != b.v6 || a.end().is_some_and(|end| end <= b.base) || b.end().is_some_and(|end| end <= a.base)
        };
        let alone = others.into_iter().all(|other| networks.iter().all(|own| apart(*own, *other)));
        self.taken.insert(node.to_owned(), networks);
        alone
    }

    /// One part of every network for a node, or none at all.
    fn allocate(&mut self, node: &str) -> Option<Vec<Network>> {
        let taken = || self.taken.values().flatten().chain(&self.reserved).copied();
        let parts: Option<Vec<Network>> = self.ranges.iter_mut().map(|range| range.allocate(taken())).collect();
        let parts = parts?;
        self.taken.insert(node.to_owned(), parts.clone());
        Some(parts)
    }
}

/// The pod networks of a node.
fn networks(node: &Node) -> Vec<Network> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let mut networks: Vec<Network> = all.filter_map(|text| text.parse().ok()).collect();
    networks.dedup();
    networks
}

fn is_assigned(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    spec.is_some_and(|s| s.pod_cidr.as_ref().is_some_and(|c| !c.is_empty()) || s.pod_cidrs.iter().flatten().count() > 0)
}

/// Runs for ever. `cluster` holds the cluster's pod networks in CIDR notation, one of a family, the primary one first;
/// `services` its services' networks, from which no node gets anything.
pub(crate) async fn run(context: Context, cluster: Vec<String>, services: Vec<String>, masks: NodeMasks) {
    let nodes = context.informers.of::<Node>();
    let queue = WorkQueue::<String>::new();
    let ranges = Arc::new(Mutex::new(Ranges::new(&cluster, &services, masks)));
    nodes.synced().await;
    // all that is taken is known before the first part is given
    for node in nodes.list().iter().filter(|node| is_assigned(node)) {
        let name = node.name_any();
        if !ranges.lock().occupy(&name, networks(node)) {
            tracing::error!(node = name, "two nodes have the same pod network");
        }
    }
    let watch = each(&nodes, |change| match change {
        Change::Applied { new, .. } if is_assigned(new) => {
            ranges.lock().occupy(&new.name_any(), networks(new));
        }
        Change::Applied { new, .. } => queue.add(new.name_any()),
        Change::Deleted(node) => {
            ranges.lock().taken.remove(&node.name_any());
            // what is free now may be what others wait for
            nodes.list().iter().filter(|n| !is_assigned(n)).for_each(|n| queue.add(n.name_any()));
        }
    });
    let work = run_workers("node-ipam", queue.clone(), 1, |name: String| {
        let (context, ranges, node) = (context.clone(), ranges.clone(), nodes.get("", &name));
        async move {
            let living = node.filter(|n| !is_assigned(n) && n.metadata.deletion_timestamp.is_none());
            let Some(node) = living else { return Ok(Outcome::Done) };
            assign(&context, &ranges, &node).await
        }
    });
    tokio::join!(watch, work);
}

async fn assign(context: &Context, ranges: &Mutex<Ranges>, node: &Node) -> Result<Outcome, Error> {
    let name = node.name_any();
    // what an earlier attempt took stays with the node
    let held = ranges.lock().taken.get(&name).cloned();
    let Some(parts) = held.or_else(|| ranges.lock().allocate(&name)) else {
        context.recorder.event(
            node,
            EventType::Warning,
            "CIDRNotAvailable",
            format!("Node {name} status is now: CIDRNotAvailable"),
        );
        tracing::error!(node = name, "no pod network is left for this node");
        return Ok(Outcome::Done);
    };
    let texts: Vec<String> = parts.iter().map(Network::to_string).collect();
    let patch = json!({"metadata": {"uid": node.uid()}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
    let api: Api<Node> = Api::all(context.client.clone());
    match unless_changed(api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)? {
        Some(_) => tracing::info!(node = name, networks = texts.join(","), "node has its pod networks"),
        // another node of that name, which comes by its own change
        None => {
            ranges.lock().taken.remove(&name);
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn texts(networks: &[Network]) -> Vec<String> {
        networks.iter().map(Network::to_string).collect()
    }

    fn ranges(cluster: &[&str], reserved: &[&str]) -> Ranges {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Ranges::new(&owned(cluster), &owned(reserved), NodeMasks::default())
    }

    #[test]
    fn nodes_of_many_pods_get_larger_parts() {
        let cluster = ["10.42.0.0/16".to_owned(), "fd42::/56".to_owned()];
        let mut ranges = Ranges::new(&cluster, &[], NodeMasks { ipv4: 21, ipv6: 80 });
        assert_eq!(texts(&ranges.allocate("a").unwrap()), ["10.42.0.0/21", "fd42::/80"]);
        assert_eq!(texts(&ranges.allocate("b").unwrap()), ["10.42.8.0/21", "fd42::1:0:0:0/80"]);
    }

    #[test]
    fn every_node_gets_a_part_of_each_family() {
        let mut ranges = ranges(&["10.42.0.0/16", "fd42::/56"], &[]);
        assert_eq!(texts(&ranges.allocate("a").unwrap()), ["10.42.0.0/24", "fd42::/64"]);
        assert_eq!(texts(&ranges.allocate("b").unwrap()), ["10.42.1.0/24", "fd42:0:0:1::/64"]);
        ranges.taken.remove("a");
        assert_eq!(texts(&ranges.allocate("c").unwrap()), ["10.42.2.0/24", "fd42:0:0:2::/64"], "a freed part rests");
    }

    #[test]
    fn what_nodes_and_services_have_is_not_given_again() {
        let mut ranges = ranges(&["10.42.0.0/21"], &["10.42.3.128/25", "10.43.0.0/16", "fd00::/112"]);
        // a node from before, with a network of another size, one that is elsewhere, and one that holds all
        assert!(ranges.occupy("old", vec![network("10.42.0.0/23")]));
        assert!(ranges.occupy("elsewhere", vec![network("10.9.0.0/24"), network("fd00::/64")]));
        assert!(ranges.occupy("far", vec![network("255.255.255.0/24")]));
        let mut given = Vec::new();
        while let Some(parts) = ranges.allocate(&format!("n{}", given.len())) {
            given.extend(texts(&parts));
        }
        assert_eq!(given, ["10.42.2.0/24", "10.42.4.0/24", "10.42.5.0/24", "10.42.6.0/24", "10.42.7.0/24"]);
        ranges.taken.remove("n1");
        assert_eq!(texts(&ranges.allocate("again").unwrap()), ["10.42.4.0/24"]);
        assert!(!ranges.occupy("thief", vec![network("10.42.4.128/25")]));
        ranges.taken.insert("all".into(), vec![network("0.0.0.0/0")]);
        ranges.taken.remove("n0");
        assert_eq!(ranges.allocate("none"), None);
    }

    #[test]
    fn exhausted_in_one_family_takes_nothing_of_the_other() {
        let mut ranges = ranges(&["10.42.0.0/16", "fd42::/64"], &[]);
        assert_eq!(texts(&ranges.allocate("a").unwrap()), ["10.42.0.0/24", "fd42::/64"]);
        assert_eq!(ranges.allocate("b"), None);
        assert_eq!(ranges.taken.len(), 1);
    }

    /// Random joins and leaves against a plain list: never two nodes with the same, never an error while something is free.
    #[test]
    fn churn_never_gives_a_network_twice() {
        let mut ranges = ranges(&["10.42.0.0/19", "fd42::/58"], &[]);
        let mut state = 3_u64;
        let mut random = |limit: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % limit
        };
        for _ in 0..5000 {
            let name = format!("n{}", random(40));
            if ranges.taken.remove(&name).is_some() {
                continue;
            }
            let before = ranges.taken.len();
            assert_eq!(ranges.allocate(&name).is_some(), before < 32);
            for family in 0..2 {
                let all: BTreeSet<u128> = ranges.taken.values().map(|networks| networks[family].base).collect();
                assert_eq!(all.len(), ranges.taken.len());
            }
        }
    }

    #[test]
    fn nonsense_is_no_network() {
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1"] {
            assert_eq!(bad.parse::<Network>(), Err(()), "{bad}");
        }
        assert_eq!(network("10.42.7.9/16").to_string(), "10.42.0.0/16");
        assert_eq!(network("::/0").end(), None);
    }
}
