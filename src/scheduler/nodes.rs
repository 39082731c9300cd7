//! What is on which node, bindings under way included.

use crate::requests::{self, Amounts};
use edge_client::{Key, ResourceExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// A host port in use: protocol, address (`0.0.0.0` for all), port.
pub(crate) type HostPort = (String, String, i32);

/// A node with the pods on it.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) name: String,
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) allocatable: Amounts,
    pub(crate) requested: Amounts,
    /// CPU and memory as they count for spreading load.
    pub(crate) load: (i64, i64),
    pub(crate) pods: HashMap<Key, Arc<Pod>>,
    pub(crate) images: HashMap<String, i64>,
}

impl NodeState {
    /// Which resources are short for a pod.
    pub(crate) fn short_of(&self, need: &Amounts) -> Vec<String> {
        let mut out = Vec::new();
        let limit = self.allocatable.get("pods").copied().unwrap_or(0);
        if self.pods.len() as i64 + 1 > limit {
            out.push("Too many pods".to_owned());
        }
        for (name, n) in need.iter().filter(|(_, n)| **n > 0) {
            let free =
                self.allocatable.get(name).copied().unwrap_or(0) - self.requested.get(name).copied().unwrap_or(0);
            if *n > free {
                out.push(format!("Insufficient {name}"));
            }
        }
        out
    }

    /// The pods of lower priority to be deleted for room, as few and as unimportant as possible; `None`: not even all
    /// would do.
    pub(crate) fn room_by_eviction(&self, need: &Amounts, priority: i32) -> Option<Vec<Arc<Pod>>> {
        let mut lower: Vec<&Arc<Pod>> = self.pods.values().filter(|p| crate::priority(p) < priority).collect();
        if lower.is_empty() {
            return None;
        }
        let mut state = Self {
            allocatable: self.allocatable.clone(),
            requested: self.requested.clone(),
            pods: self.pods.clone(),
            ..Self::default()
        };
        for p in &lower {
            state.take(&Key::of(&***p));
        }
        if !state.short_of(need).is_empty() {
            return None;
        }
        // the important ones come back first, as long as there is room
        lower.sort_by_key(|p| (-crate::priority(p), p.metadata.creation_timestamp.clone().map(|t| t.0)));
        let mut victims = Vec::new();
        for p in lower {
            let key = Key::of(&**p);
            state.put(key.clone(), p.clone());
            if !state.short_of(need).is_empty() {
                state.take(&key);
                victims.push(p.clone());
            }
        }
        // pods that are going already make room by themselves
        (victims.iter().any(|v| v.metadata.deletion_timestamp.is_none())).then_some(victims)
    }

    fn put(&mut self, key: Key, pod: Arc<Pod>) {
        requests::add(&mut self.requested, &requests::of(&pod));
        let (cpu, memory) = requests::for_scoring(&pod);
        self.load = (self.load.0 + cpu, self.load.1 + memory);
        self.pods.insert(key, pod);
    }

    fn take(&mut self, key: &Key) -> Option<Arc<Pod>> {
        let pod = self.pods.remove(key)?;
        requests::subtract(&mut self.requested, &requests::of(&pod));
        let (cpu, memory) = requests::for_scoring(&pod);
        self.load = (self.load.0 - cpu, self.load.1 - memory);
        Some(pod)
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: BTreeMap<String, NodeState>,
    /// Node of each known pod.
    places: HashMap<Key, String>,
    /// Pods whose binding the cache has not shown yet.
    assumed: HashSet<Key>,
}

impl Cluster {
    /// The nodes that exist (and not only pods that claim to be on them).
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeState> {
        self.nodes.values().filter(|n| n.node.is_some())
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes().count()
    }

    /// All pods that have a node.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (&NodeState, &Arc<Pod>)> {
        self.nodes().flat_map(|n| n.pods.values().map(move |p| (n, p)))
    }

    pub(crate) fn knows(&self, key: &Key) -> bool {
        self.places.contains_key(key)
    }

    pub(crate) fn set_node(&mut self, node: &Arc<Node>) {
        let name = node.name_any();
        let state = self.nodes.entry(name.clone()).or_default();
        state.name = name;
        let status = node.status.as_ref();
        state.allocatable = status
            .and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()))
            .map(requests::amounts)
            .unwrap_or_default();
        state.images = status
            .and_then(|s| s.images.as_ref())
            .into_iter()
            .flatten()
            .flat_map(|i| i.names.iter().flatten().map(|n| (n.clone(), i.size_bytes.unwrap_or(0))))
            .collect();
        state.node = Some(node.clone());
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Some(state) = self.nodes.get_mut(name) {
            state.node = None;
            if state.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Takes a pod with a node in; whether it is new or changed what others may look at.
    pub(crate) fn set_pod(&mut self, key: Key, pod: Arc<Pod>) -> bool {
        self.assumed.remove(&key);
        let node = crate::node_name(&pod).to_owned();
        let old = self.take(&key);
        let news = old.as_ref().is_none_or(|o| o.metadata.labels != pod.metadata.labels || crate::node_name(o) != node);
        self.put(key, pod, node);
        news
    }

    /// Takes a pod to be on a node before the API says so.
    pub(crate) fn assume(&mut self, key: Key, pod: Arc<Pod>, node: &str) {
        self.take(&key);
        self.assumed.insert(key.clone());
        self.put(key, pod, node.to_owned());
    }

    /// Takes back an assumption that did not come true.
    pub(crate) fn forget(&mut self, key: &Key) {
        if self.assumed.remove(key) {
            self.take(key);
        }
    }

    /// Forgets a pod; whether it had a node.
    pub(crate) fn remove_pod(&mut self, key: &Key) -> bool {
        self.assumed.remove(key);
        self.take(key).is_some()
    }

    fn put(&mut self, key: Key, pod: Arc<Pod>, node: String) {
        let state = self.nodes.entry(node.clone()).or_default();
        state.name.clone_from(&node);
        state.put(key.clone(), pod);
        self.places.insert(key, node);
    }

    fn take(&mut self, key: &Key) -> Option<Arc<Pod>> {
        let node = self.places.remove(key)?;
        let state = self.nodes.get_mut(&node)?;
        let pod = state.take(key);
        if state.node.is_none() && state.pods.is_empty() {
            self.nodes.remove(&node);
        }
        pod
    }
}

/// Whether a change of a node can matter to a pod that waits.
pub(crate) fn scheduling_differs(old: &Node, new: &Node) -> bool {
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    let spec = |n: &Node| n.spec.as_ref().map(|s| (s.unschedulable, s.taints.clone()));
    old.metadata.labels != new.metadata.labels || spec(old) != spec(new) || allocatable(old) != allocatable(new)
}

/// The host ports that a pod takes.
pub(crate) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let spec = pod.spec.as_ref();
    spec.into_iter()
        .flat_map(|s| {
            s.containers
                .iter()
                .chain(s.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always")))
        })
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            let address = p.host_ip.clone().filter(|i| !i.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), address, port))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn node(name: &str) -> Arc<Node> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "3"}}})).unwrap())
    }

    fn pod(name: &str, node: &str, cpu: &str, priority: i32) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"nodeName": node, "priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})).unwrap())
    }

    #[test]
    fn assumptions_count_until_they_fail() {
        let mut c = Cluster::default();
        c.set_node(&node("a"));
        let p = pod("p", "", "600m", 0);
        let key = Key::of(&*p);
        c.assume(key.clone(), p.clone(), "a");
        let need = requests::of(&pod("q", "", "600m", 0));
        assert_eq!(c.nodes().next().unwrap().short_of(&need), ["Insufficient cpu"]);
        c.forget(&key);
        assert!(c.nodes().next().unwrap().short_of(&need).is_empty());
        c.assume(key.clone(), p, "a");
        assert!(!c.set_pod(key.clone(), pod("p", "a", "600m", 0)) || c.knows(&key));
        c.forget(&key);
        assert!(c.knows(&key), "what the API says is no assumption");
        assert!(c.remove_pod(&key) && !c.remove_pod(&key));
    }

    #[test]
    fn the_fewest_and_least_important_make_room() {
        let mut c = Cluster::default();
        c.set_node(&node("a"));
        for (name, cpu, priority) in [("low", "400m", 1), ("mid", "300m", 5), ("high", "300m", 50)] {
            let p = pod(name, "a", cpu, priority);
            c.set_pod(Key::of(&*p), p);
        }
        let state = c.nodes().next().unwrap();
        let names = |need: &str, priority| {
            let need = requests::of(&pod("q", "", need, priority));
            state.room_by_eviction(&need, priority).map(|v| v.iter().map(|p| p.name_any()).collect::<Vec<_>>())
        };
        assert_eq!(names("300m", 10), Some(vec!["low".to_owned()]));
        assert_eq!(names("600m", 10), Some(vec!["mid".to_owned(), "low".to_owned()]));
        assert_eq!(names("900m", 10), None);
        assert_eq!(names("300m", 1), None);
    }
}
