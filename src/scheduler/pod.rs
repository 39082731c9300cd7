//! Pods as the scheduler looks at them: what decisions read again and again, taken out of them once.

use crate::requests::{self, Amounts};
use crate::terms::{Labels, Terms};
use edge_client::claims::claim_name;
use edge_client::{Key, ResourceExt};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaimStatus, PodSpec};
use k8s_openapi::jiff::Timestamp;
use std::fmt::{self, Write};
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

/// A host port: protocol, address (`0.0.0.0` for all), port.
pub(crate) type HostPort = (String, String, i32);

/// What others see of a pod: its namespace, its labels, and its wishes about others as the API has them.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Look {
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
    pub(crate) wishes: String,
}

impl Look {
    fn of(pod: &Pod) -> Arc<Self> {
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let wishes = affinity.filter(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some());
        let wishes = wishes.and_then(|a| serde_json::to_string(&(&a.pod_affinity, &a.pod_anti_affinity)).ok());
        Arc::new(Self {
            namespace: pod.namespace().unwrap_or_default(),
            labels: pod.labels().clone(),
            wishes: wishes.unwrap_or_default(),
        })
    }
}

/// What a pod takes of a node and what others see of it. It does not hold on to the pod, of which there may be very many.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) look: Arc<Look>,
    pub(crate) requests: Amounts,
    /// CPU and memory as they count for spreading load.
    pub(crate) load: (i64, i64),
    pub(crate) ports: Vec<HostPort>,
    pub(crate) priority: i32,
    /// Names of the claims that it uses.
    pub(crate) claims: Vec<String>,
    /// Its wishes about other pods, when it has any.
    pub(crate) terms: Option<Arc<Terms>>,
    /// It has been asked to go.
    pub(crate) is_going: bool,
    pub(crate) started: Option<Timestamp>,
}

impl PodInfo {
    pub(crate) fn new(pod: &Pod) -> Arc<Self> {
        Arc::new(Self::of(pod))
    }

    pub(crate) fn of(pod: &Pod) -> Self {
        let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        Self {
            key: Key::of(pod),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            look: Look::of(pod),
            requests: requests::of(pod),
            load: requests::for_scoring(pod),
            ports: host_ports(pod),
            priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
            claims: volumes.iter().filter_map(|v| claim_name(pod, v)).collect(),
            terms: Terms::of(pod),
            is_going: pod.metadata.deletion_timestamp.is_some(),
            started: pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0),
        }
    }
}

/// A pod that waits for a node.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) pod: Arc<Pod>,
    pub(crate) info: Arc<PodInfo>,
}

impl Pending {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        Self { info: PodInfo::new(&pod), pod }
    }

    pub(crate) fn key(&self) -> &Key {
        &self.info.key
    }

    pub(crate) fn spec(&self) -> &PodSpec {
        static NONE: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&NONE)
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.info.key.namespace
    }

    pub(crate) fn labels(&self) -> &Labels {
        &self.info.look.labels
    }

    /// The node that lower pods make room on for it, as its status says.
    pub(crate) fn nominated(&self) -> Option<&str> {
        self.pod.status.as_ref()?.nominated_node_name.as_deref().filter(|n| !n.is_empty())
    }
}

/// What decides which changes may help a pod that fits nowhere (see `hints`): pods of one kind are helped by the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind([u64; 2]);

impl Kind {
    /// The kind of a pod; only within this process.
    pub(crate) fn of(pod: &Pending) -> Self {
        let (spec, info) = (pod.spec(), &pod.info);
        let may_have_devices =
            spec.resource_claims.is_some() || info.requests.others.iter().any(|(name, _)| name.contains('/'));
        // which claims are its own it may still learn
        let only = may_have_devices.then_some(&info.key.name);
        // containers and volumes count by what they take and use, and names are others in each pod
        let rules = PodSpec {
            containers: Vec::new(),
            init_containers: None,
            ephemeral_containers: None,
            volumes: None,
            hostname: None,
            subdomain: None,
            ..spec.clone()
        };
        let mut digest = Digest::default();
        let counts = (&info.look, &info.requests, &info.ports, &info.claims, pod.pod.owner_references());
        // what is written is never refused
        let _ = write!(digest, "{only:?} {counts:?} {rules:?}");
        Self(digest.0.map(|hasher| hasher.finish()))
    }
}

/// Takes the place of a text that is only ever compared.
struct Digest([DefaultHasher; 2]);

impl Default for Digest {
    fn default() -> Self {
        static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
        Self([KEYS[0].build_hasher(), KEYS[1].build_hasher()])
    }
}

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.iter_mut().for_each(|hasher| hasher.write(text.as_bytes()));
        Ok(())
    }
}

/// The node of a pod; empty when it has none yet.
pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether a pod waits for a node: `ours` tells by the name of its scheduler whether it is this one's business.
pub(crate) fn is_pending(pod: &Pod, ours: impl Fn(&str) -> bool) -> bool {
    let Some(spec) = &pod.spec else { return false };
    node_name(pod).is_empty()
        && pod.metadata.deletion_timestamp.is_none()
        && !is_finished(pod)
        && ours(spec.scheduler_name.as_deref().unwrap_or(crate::NAME))
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

/// Whether a pod that has a node has become another one for decisions about others.
pub(crate) fn looks_different(old: &Pod, new: &Pod) -> bool {
    old.metadata.uid != new.metadata.uid
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
        || old.spec != new.spec
        || old.labels() != new.labels()
        || old.status.as_ref().and_then(|s| s.start_time.as_ref())
            != new.status.as_ref().and_then(|s| s.start_time.as_ref())
}

/// Whether a pod that waits has become another one for a decision. What the scheduler itself writes into the status does not count.
pub(crate) fn differs(old: &Pod, new: &Pod) -> bool {
    old.metadata.uid != new.metadata.uid
        || old.spec != new.spec
        || old.labels() != new.labels()
        || old.owner_references() != new.owner_references()
        || generated_claims(old) != generated_claims(new)
}

/// The claims that were made for the pod's resource claims.
fn generated_claims(pod: &Pod) -> Option<&Vec<PodResourceClaimStatus>> {
    pod.status.as_ref()?.resource_claim_statuses.as_ref()
}

/// The host ports that a pod takes.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            let address = p.host_ip.clone().filter(|i| !i.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), address, port))
        })
        .collect()
}

/// Whether two host ports cannot both be taken.
pub(crate) fn clash(a: &HostPort, b: &HostPort) -> bool {
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1 == "0.0.0.0" || b.1 == "0.0.0.0")
}
