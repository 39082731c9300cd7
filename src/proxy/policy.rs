//! NetworkPolicies: what the pods of this node may exchange, and who their peers are.
//!
//! [`Model`] is pure: it notes changes and gives what is new. [`Enforcement`] is the effect: from [`Enforcement::start`] on a new
//! pod is closed until this room has told what it may do, so policies are in force before its first packet.
//!
//! What the specification leaves open: pods with the host's network are not told from their node, so no selector finds
//! them; traffic between a pod and its own node is always allowed; established connections go on. The cluster's DNS,
//! which each node answers itself, counts as a pod of `kube-system` with the label `k8s-app=kube-dns`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use edge_api::selector::LabelSelector;
use edge_client::{Change, Informers, Key, Resource, ResourceExt};
use edge_network::{Allow, Cidr, Group, Isolation, Member, NodeNetwork, Peers, PolicyChanges, Ports, Protocol};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::compile::parse_protocol;
use crate::{Node, Retry, blocking, drain, memory};

type Labels = BTreeMap<String, String>;

/// The namespace and the label of the cluster's DNS as everybody's policies know it.
const DNS_NAMESPACE: &str = "kube-system";
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");
/// No pod can have this name.
const DNS_NAME: &str = "<dns>";

/// What policies need to know of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
struct PodInfo {
    uid: String,
    labels: Labels,
    addresses: BTreeSet<IpAddr>,
    /// Its named ports.
    ports: BTreeMap<(String, Protocol), u16>,
    /// Whether it runs on this node, in a network of its own.
    here: bool,
}

/// A set of pods, or of a named port of pods.
#[derive(Clone, Debug, PartialEq)]
struct Selection {
    namespaces: Namespaces,
    pods: LabelSelector,
    port: Option<(String, Protocol)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Namespaces {
    One(String),
    Matching(LabelSelector),
}

#[derive(Clone, Debug, PartialEq)]
enum Peer {
    Selected(Namespaces, LabelSelector),
    Block(Cidr, Vec<Cidr>),
}

#[derive(Clone, Debug, PartialEq)]
enum Port {
    Number(Ports),
    Name(String, Protocol),
}

/// What a rule allows. `None` is everything.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    peers: Option<Vec<Peer>>,
    ports: Option<Vec<Port>>,
}

/// A policy, parsed.
#[derive(Clone, Debug, PartialEq)]
struct Policy {
    pods: LabelSelector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

/// A group that a pod of this node refers to.
#[derive(Debug)]
struct Membership {
    selection: Selection,
    members: HashMap<Key, BTreeSet<Member>>,
}

/// The policies of the cluster and whom they concern on this node.
#[derive(Debug)]
pub struct Model {
    node: String,
    policies: HashMap<Key, Policy>,
    pods: HashMap<Key, PodInfo>,
    namespaces: HashMap<String, Labels>,
    /// The addresses of this node's pods, known before the API knows them.
    attached: HashMap<String, BTreeSet<IpAddr>>,
    by_uid: HashMap<String, Key>,
    groups: HashMap<Group, Membership>,
    isolation: BTreeMap<String, Isolation>,
    changed_pods: BTreeSet<Key>,
    changed_groups: BTreeSet<Group>,
    ended: BTreeSet<String>,
}

fn selector(selector: &ApiSelector) -> LabelSelector {
    // What the API server has let through is valid; what it has not selects nothing.
    let value = serde_json::to_value(selector).unwrap_or_default();
    LabelSelector::from_value(&value).unwrap_or_else(|_| LabelSelector::nothing())
}

fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.matches(|key| labels.get(key).map(String::as_str))
}

fn labels<K: Resource<DynamicType = ()>>(object: &K) -> Labels {
    object.meta().labels.clone().unwrap_or_default()
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

impl PodInfo {
    /// `None` for a pod without addresses of its own: with the host's network, or ended.
    fn of(pod: &Pod, node: &str) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let ended =
            status.and_then(|status| status.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed");
        if spec.host_network == Some(true) || ended {
            return None;
        }
        let ips = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
        let port = |port: &k8s_openapi::api::core::v1::ContainerPort| {
            let protocol = parse_protocol(port.protocol.as_deref())?;
            Some(((port.name.clone()?, protocol), number(port.container_port)?))
        };
        Some(Self {
            uid: pod.uid().unwrap_or_default(),
            labels: labels(pod),
            addresses: ips.filter_map(|ip| ip.ip.parse().ok()).collect(),
            ports: ports.filter_map(port).collect(),
            here: spec.node_name.as_deref() == Some(node),
        })
    }
}

impl Peer {
    fn parse(namespace: &str, peer: &NetworkPolicyPeer) -> Option<Self> {
        if let Some(block) = &peer.ip_block {
            let except = block.except.iter().flatten().filter_map(|text| text.parse().ok()).collect();
            return Some(Self::Block(block.cidr.parse().ok()?, except));
        }
        let namespaces = match (&peer.namespace_selector, &peer.pod_selector) {
            (None, None) => return None,
            (None, Some(_)) => Namespaces::One(namespace.to_owned()),
            (Some(namespaces), _) => Namespaces::Matching(selector(namespaces)),
        };
        Some(Self::Selected(namespaces, peer.pod_selector.as_ref().map_or_else(LabelSelector::everything, selector)))
    }
}

impl Port {
    fn parse(port: &NetworkPolicyPort) -> Option<Self> {
        let protocol = parse_protocol(port.protocol.as_deref())?;
        Some(match &port.port {
            None => Self::Number(Ports { protocol, range: None }),
            Some(IntOrString::Int(first)) => {
                let first = number(*first)?;
                let last = port.end_port.map_or(Some(first), number).filter(|last| *last >= first)?;
                Self::Number(Ports { protocol, range: Some((first, last)) })
            }
            Some(IntOrString::String(name)) => match name.parse() {
                Ok(number) => Self::Number(Ports { protocol, range: Some((number, number)) }),
                Err(_) => Self::Name(name.clone(), protocol),
            },
        })
    }
}

impl Rule {
    fn parse(namespace: &str, peers: &[NetworkPolicyPeer], ports: &[NetworkPolicyPort]) -> Self {
        Self {
            peers: (!peers.is_empty()).then(|| peers.iter().filter_map(|peer| Peer::parse(namespace, peer)).collect()),
            ports: (!ports.is_empty()).then(|| ports.iter().filter_map(Port::parse).collect()),
        }
    }
}

impl Policy {
    fn parse(policy: &NetworkPolicy) -> Self {
        let namespace = policy.namespace().unwrap_or_default();
        let spec = policy.spec.clone().unwrap_or_default();
        let listed = |name: &str| spec.policy_types.as_ref().map(|types| types.iter().any(|kind| kind == name));
        let ingress = spec.ingress.iter().flatten().map(|rule| {
            Rule::parse(&namespace, rule.from.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default())
        });
        let egress = spec.egress.iter().flatten().map(|rule| {
            Rule::parse(&namespace, rule.to.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default())
        });
        Self {
            pods: spec.pod_selector.as_ref().map_or_else(LabelSelector::everything, selector),
            ingress: listed("Ingress").unwrap_or(true).then(|| ingress.collect()),
            egress: listed("Egress").unwrap_or(spec.egress.is_some()).then(|| egress.collect()),
        }
    }
}

impl Selection {
    /// Names the group by what it selects, so that equal ones are one.
    fn group(&self) -> Group {
        let text = format!("{self:?}");
        let half = |seed: u8| {
            let mut hasher = DefaultHasher::new();
            (seed, &text).hash(&mut hasher);
            hasher.finish()
        };
        let name = format!("{:016x}{:016x}", half(0), half(1));
        if self.port.is_some() { Group::Ports(name) } else { Group::Addresses(name) }
    }

    fn members(&self, key: &Key, pod: &PodInfo, namespaces: &HashMap<String, Labels>) -> BTreeSet<Member> {
        let in_namespace = match &self.namespaces {
            Namespaces::One(name) => *name == key.namespace,
            Namespaces::Matching(selector) => {
                namespaces.get(&key.namespace).is_some_and(|labels| matches(selector, labels))
            }
        };
        if !in_namespace || !matches(&self.pods, &pod.labels) {
            return BTreeSet::new();
        }
        let port = match &self.port {
            None => None,
            Some(named) => match pod.ports.get(named) {
                Some(number) => Some((named.1, *number)),
                None => return BTreeSet::new(),
            },
        };
        pod.addresses.iter().map(|address| Member { address: *address, port }).collect()
    }
}

impl Model {
    /// A cluster without policies, as `node` sees it.
    pub fn new(node: &Node) -> Self {
        let mut model = Self {
            node: node.name.clone(),
            policies: HashMap::new(),
            pods: HashMap::new(),
            namespaces: HashMap::new(),
            attached: HashMap::new(),
            by_uid: HashMap::new(),
            groups: HashMap::new(),
            isolation: BTreeMap::new(),
            changed_pods: BTreeSet::new(),
            changed_groups: BTreeSet::new(),
            ended: BTreeSet::new(),
        };
        let dns = PodInfo {
            labels: Labels::from([(DNS_LABEL.0.to_owned(), DNS_LABEL.1.to_owned())]),
            addresses: node.dns_addresses.iter().copied().collect(),
            ports: [("dns", Protocol::Udp), ("dns-tcp", Protocol::Tcp)]
                .map(|(name, protocol)| ((name.to_owned(), protocol), 53))
                .into(),
            ..PodInfo::default()
        };
        model.pods.insert(Key::new(DNS_NAMESPACE, DNS_NAME), dns);
        model
    }

    /// Notes a change of a policy.
    pub fn policy_changed(&mut self, change: &Change<NetworkPolicy>) {
        let key = Key::of(change.object().as_ref());
        match change {
            Change::Applied { new, .. } => self.policies.insert(key.clone(), Policy::parse(new)),
            Change::Deleted(_) => self.policies.remove(&key),
        };
        let here = self.pods.iter().filter(|(pod, info)| info.here && pod.namespace == key.namespace);
        self.changed_pods.extend(here.map(|(pod, _)| pod.clone()));
    }

    /// Notes a change of a namespace.
    pub fn namespace_changed(&mut self, change: &Change<Namespace>) {
        let name = change.object().name_any();
        let labels = match change {
            Change::Applied { new, .. } => Some(labels(new.as_ref())),
            Change::Deleted(_) => None,
        };
        if self.namespaces.get(&name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.clone(), labels),
            None => self.namespaces.remove(&name),
        };
        let inside: Vec<Key> = self.pods.keys().filter(|key| key.namespace == name).cloned().collect();
        for key in inside {
            self.update_groups(&key);
        }
    }

    /// Notes a change of a pod.
    pub fn pod_changed(&mut self, change: &Change<Pod>) {
        let pod = change.object();
        let key = Key::of(pod.as_ref());
        let info = match change {
            Change::Applied { new, .. } => PodInfo::of(new, &self.node),
            Change::Deleted(_) => None,
        };
        self.set_pod(key, info);
        if let (Change::Deleted(_), Some(uid)) = (change, pod.uid()) {
            // An ended pod stays isolated until it is gone.
            self.end(uid);
        }
    }

    /// Notes the addresses that a pod of this node has been given.
    pub fn pod_attached(&mut self, uid: &str, addresses: &[IpAddr]) {
        self.attached.insert(uid.to_owned(), addresses.iter().copied().collect());
        if let Some(key) = self.by_uid.get(uid).cloned() {
            let info = self.pods.get(&key).cloned();
            self.set_pod(key, info);
        }
    }

    fn end(&mut self, uid: String) {
        self.attached.remove(&uid);
        if self.isolation.contains_key(&uid) {
            self.ended.insert(uid);
        }
    }

    fn set_pod(&mut self, key: Key, mut info: Option<PodInfo>) {
        if let Some(info) = &mut info {
            info.addresses.extend(self.attached.get(&info.uid).into_iter().flatten());
        }
        let old = self.pods.remove(&key);
        if let Some(old) = old.as_ref().filter(|old| old.here)
            && info.as_ref().is_none_or(|info| info.uid != old.uid)
        {
            self.by_uid.remove(&old.uid);
            if info.is_some() {
                // Another one has its name by now.
                self.end(old.uid.clone());
            }
        }
        if old == info {
            if let Some(info) = info {
                self.pods.insert(key, info);
            }
            return;
        }
        if let Some(info) = info {
            if info.here {
                self.by_uid.insert(info.uid.clone(), key.clone());
                let same = |old: &PodInfo| {
                    (old.here, &old.uid, &old.labels, &old.ports) == (true, &info.uid, &info.labels, &info.ports)
                };
                if !old.as_ref().is_some_and(same) {
                    self.changed_pods.insert(key.clone());
                }
            }
            self.pods.insert(key.clone(), info);
        }
        self.update_groups(&key);
    }

    /// Sees to it that a pod is in the groups that it belongs to and in no others.
    fn update_groups(&mut self, key: &Key) {
        for (group, membership) in &mut self.groups {
            let now = match self.pods.get(key) {
                Some(pod) => membership.selection.members(key, pod, &self.namespaces),
                None => BTreeSet::new(),
            };
            let before = if now.is_empty() {
                membership.members.remove(key).unwrap_or_default()
            } else {
                membership.members.insert(key.clone(), now.clone()).unwrap_or_default()
            };
            if before != now {
                self.changed_groups.insert(group.clone());
            }
        }
    }

    fn isolation_of(&self, key: &Key, pod: &PodInfo, selections: &mut Vec<Selection>) -> Isolation {
        let mut isolation = Isolation::default();
        let selecting = self
            .policies
            .iter()
            .filter(|(of, policy)| of.namespace == key.namespace && matches(&policy.pods, &pod.labels));
        for (_, policy) in selecting {
            if let Some(rules) = &policy.ingress {
                let allowed = isolation.ingress.get_or_insert_default();
                rules.iter().for_each(|rule| allow_ingress(rule, pod, allowed, selections));
            }
            if let Some(rules) = &policy.egress {
                let allowed = isolation.egress.get_or_insert_default();
                rules.iter().for_each(|rule| allow_egress(rule, allowed, selections));
            }
        }
        isolation
    }

    /// What is new since the last time.
    pub fn refresh(&mut self) -> PolicyChanges {
        let mut changes = PolicyChanges::default();
        let mut selections = Vec::new();
        for key in std::mem::take(&mut self.changed_pods) {
            let Some(pod) = self.pods.get(&key).filter(|pod| pod.here) else { continue };
            let isolation = self.isolation_of(&key, pod, &mut selections);
            if self.isolation.get(&pod.uid) != Some(&isolation) {
                changes.pods.insert(pod.uid.clone(), Some(isolation.clone()));
                self.isolation.insert(pod.uid.clone(), isolation);
            }
        }
        for uid in std::mem::take(&mut self.ended) {
            self.isolation.remove(&uid);
            changes.pods.insert(uid, None);
        }
        for selection in selections {
            let group = selection.group();
            if !self.groups.contains_key(&group) {
                let member = |(key, pod): (&Key, &PodInfo)| {
                    let members = selection.members(key, pod, &self.namespaces);
                    (!members.is_empty()).then(|| (key.clone(), members))
                };
                let members = self.pods.iter().filter_map(member).collect();
                self.groups.insert(group.clone(), Membership { selection, members });
                self.changed_groups.insert(group);
            }
        }
        if !changes.pods.is_empty() {
            let all = self.isolation.values().flat_map(|i| i.ingress.iter().chain(&i.egress)).flatten();
            let used: BTreeSet<&Group> = all
                .filter_map(|allow| match &allow.peers {
                    Peers::Group(group) => Some(group),
                    _ => None,
                })
                .collect();
            let unused: Vec<Group> = self.groups.keys().filter(|group| !used.contains(group)).cloned().collect();
            for group in unused {
                self.groups.remove(&group);
                self.changed_groups.remove(&group);
                changes.groups.insert(group, None);
            }
        }
        for group in std::mem::take(&mut self.changed_groups) {
            let members = self.groups.get(&group).map(|g| g.members.values().flatten().copied().collect());
            changes.groups.insert(group, members);
        }
        changes
    }

    /// Everything, as one change.
    pub fn all(&self) -> PolicyChanges {
        let members = |membership: &Membership| Some(membership.members.values().flatten().copied().collect());
        PolicyChanges {
            pods: self.isolation.iter().map(|(uid, isolation)| (uid.clone(), Some(isolation.clone()))).collect(),
            groups: self.groups.iter().map(|(group, membership)| (group.clone(), members(membership))).collect(),
            complete: true,
        }
    }
}

/// The peers of a rule. Those that are selected become a group, of the named port when there is one.
fn peers(rule: &Rule, port: Option<&(String, Protocol)>, selections: &mut Vec<Selection>) -> Vec<Peers> {
    let mut select = |namespaces: Namespaces, pods: LabelSelector| {
        let selection = Selection { namespaces, pods, port: port.cloned() };
        let group = selection.group();
        selections.push(selection);
        Peers::Group(group)
    };
    match &rule.peers {
        None if port.is_none() => vec![Peers::Any],
        None => vec![select(Namespaces::Matching(LabelSelector::everything()), LabelSelector::everything())],
        Some(peers) => peers
            .iter()
            .filter_map(|peer| match peer {
                Peer::Selected(namespaces, pods) => Some(select(namespaces.clone(), pods.clone())),
                // Only pods have named ports.
                Peer::Block(..) if port.is_some() => None,
                Peer::Block(network, except) => Some(Peers::Block(*network, except.clone())),
            })
            .collect(),
    }
}

/// Named ports are those of the pod itself.
fn allow_ingress(rule: &Rule, pod: &PodInfo, allowed: &mut BTreeSet<Allow>, selections: &mut Vec<Selection>) {
    let ports = rule.ports.as_ref().map(|ports| {
        let number = |port: &Port| match port {
            Port::Number(ports) => Some(*ports),
            Port::Name(name, protocol) => {
                let number = *pod.ports.get(&(name.clone(), *protocol))?;
                Some(Ports { protocol: *protocol, range: Some((number, number)) })
            }
        };
        ports.iter().filter_map(number).collect::<Vec<_>>()
    });
    if ports.as_ref().is_some_and(Vec::is_empty) {
        return;
    }
    let peers = peers(rule, None, selections);
    allowed.extend(peers.into_iter().map(|peers| Allow { peers, ports: ports.clone() }));
}

/// Named ports are those of each peer.
fn allow_egress(rule: &Rule, allowed: &mut BTreeSet<Allow>, selections: &mut Vec<Selection>) {
    let mut numbers = Vec::new();
    for port in rule.ports.iter().flatten() {
        match port {
            Port::Number(ports) => numbers.push(*ports),
            Port::Name(name, protocol) => {
                let peers = peers(rule, Some(&(name.clone(), *protocol)), selections);
                allowed.extend(peers.into_iter().map(|peers| Allow { peers, ports: None }));
            }
        }
    }
    if rule.ports.is_none() || !numbers.is_empty() {
        let ports = rule.ports.as_ref().map(|_| numbers);
        let peers = peers(rule, None, selections);
        allowed.extend(peers.into_iter().map(|peers| Allow { peers, ports: ports.clone() }));
    }
}

/// Policies in force on this node.
#[derive(Debug)]
pub struct Enforcement {
    network: Arc<NodeNetwork>,
    attached: UnboundedReceiver<(String, Vec<IpAddr>)>,
}

impl Enforcement {
    /// From now on a new pod may exchange nothing until [`Self::run`] knows what it may. Call this before the first pod is
    /// attached.
    pub fn start(network: Arc<NodeNetwork>) -> Self {
        let (sender, attached) = unbounded_channel();
        network.enforce_policies(move |uid, addresses| {
            // Without a receiver the process is about to end.
            let _ = sender.send((uid.to_owned(), addresses.to_vec()));
        });
        Self { network, attached }
    }

    /// Keeps the kernel in step with the cluster's policies. Does not end; drop the future to stop. What is in force stays so.
    pub async fn run(mut self, informers: Informers, node: Node) {
        let (policies, pods) = (informers.of::<NetworkPolicy>(), informers.of::<Pod>());
        let namespaces = informers.of::<Namespace>();
        let (mut policy_changes, mut pod_changes) = (policies.subscribe(), pods.subscribe());
        let mut namespace_changes = namespaces.subscribe();
        // An incomplete picture would open what an earlier process closed.
        let network = &self.network;
        tokio::join!(
            memory::enough(&policies, network),
            memory::enough(&pods, network),
            memory::enough(&namespaces, network)
        );
        let mut model = Model::new(&node);
        let mut retry = Retry::default();
        let mut first = true;
        loop {
            while let Ok((uid, addresses)) = self.attached.try_recv() {
                model.pod_attached(&uid, &addresses);
            }
            drain(&mut namespace_changes, |change| model.namespace_changed(change));
            drain(&mut policy_changes, |change| model.policy_changed(change));
            drain(&mut pod_changes, |change| model.pod_changed(change));
            let mut changes = model.refresh();
            if std::mem::take(&mut first) {
                changes = model.all();
            }
            if changes != PolicyChanges::default() || retry.is_due() {
                let network = self.network.clone();
                retry.note(blocking(move || network.change_policies(&changes)).await, "policy rules refused");
            }
            tokio::select! {
                Some((uid, addresses)) = self.attached.recv() => model.pod_attached(&uid, &addresses),
                Some(change) = namespace_changes.recv() => model.namespace_changed(&change),
                Some(change) = policy_changes.recv() => model.policy_changed(&change),
                Some(change) = pod_changes.recv() => model.pod_changed(&change),
                () = retry.wait() => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
