//! What is on which node, bindings under way included, with the indexes that make a decision cheap.

mod domains;
mod groups;
mod node;

use crate::pod::{PodInfo, node_name};
use domains::DomainCache;
pub(crate) use domains::{Domains, NOWHERE};
use edge_client::{Key, ResourceExt};
pub(crate) use groups::Group;
use groups::Groups;
use k8s_openapi::api::core::v1::{Node, Pod};
pub(crate) use node::{NodeState, normalized, scheduling_differs};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The number of a node while it exists.
pub(crate) type NodeId = usize;

/// Where a pod is.
struct Place {
    node: NodeId,
    group: usize,
    info: Arc<PodInfo>,
}

/// All nodes, and the pods on them.
#[derive(Default)]
pub(crate) struct Cluster {
    nodes: Vec<NodeState>,
    /// Numbers that can be given again.
    free: Vec<NodeId>,
    by_name: HashMap<String, NodeId>,
    existing: usize,
    places: HashMap<Key, Place>,
    /// Pods whose binding the cache has not shown yet.
    assumed: HashSet<Key>,
    groups: Groups,
    domains: DomainCache,
    /// The nodes in the order of [`Cluster::order`], until one comes, goes, or has other labels.
    order: Option<Arc<[NodeId]>>,
    /// Where in that order the next search begins.
    pub(crate) start: usize,
    /// How many pods use a claim, by node.
    claims: HashMap<Key, HashMap<NodeId, u32>>,
    /// How many nodes have an image.
    images: HashMap<String, usize>,
    /// Pods that others make room for, by the node's name.
    nominated: HashMap<String, Vec<Arc<PodInfo>>>,
    nominations: HashMap<Key, String>,
}

impl Cluster {
    /// The nodes that exist (and not only pods that claim to be on them).
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, &NodeState, &Arc<Node>)> {
        self.nodes.iter().enumerate().filter_map(|(id, state)| Some((id, state, state.node.as_ref()?)))
    }

    /// A node by number.
    pub(crate) fn node(&self, id: NodeId) -> &NodeState {
        &self.nodes[id]
    }

    pub(crate) fn id(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied().filter(|id| self.nodes[*id].node.is_some())
    }

    /// How many nodes exist.
    pub(crate) fn len(&self) -> usize {
        self.existing
    }

    /// One more than the highest number of a node.
    pub(crate) fn numbers(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn knows(&self, key: &Key) -> bool {
        self.places.contains_key(key)
    }

    pub(crate) fn place(&self, key: &Key) -> Option<(NodeId, &Arc<PodInfo>)> {
        self.places.get(key).map(|p| (p.node, &p.info))
    }

    /// Pods that look the same to others.
    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Which nodes are together in the sense of a label.
    pub(crate) fn domains(&self, topology_key: &str) -> Arc<Domains> {
        self.domains.of(topology_key, self)
    }

    /// The nodes by turns of their zones, so that whoever looks at a part of them sees all zones.
    pub(crate) fn order(&mut self) -> Arc<[NodeId]> {
        if let Some(order) = &self.order {
            return order.clone();
        }
        let (mut places, mut zones): (HashMap<_, usize>, Vec<Vec<NodeId>>) = Default::default();
        for (id, _, node) in self.nodes() {
            let of = |label| node.labels().get(label);
            let zone = (of("topology.kubernetes.io/region"), of("topology.kubernetes.io/zone"));
            let place = *places.entry(zone).or_insert(zones.len());
            if place == zones.len() {
                zones.push(Vec::new());
            }
            zones[place].push(id);
        }
        let longest = zones.iter().map(Vec::len).max().unwrap_or(0);
        let order: Arc<[NodeId]> =
            (0..longest).flat_map(|turn| zones.iter().filter_map(move |zone| zone.get(turn))).copied().collect();
        self.order = Some(order.clone());
        order
    }

    /// The nodes are others, or in other places.
    fn reorder(&mut self) {
        self.domains.forget();
        self.order = None;
    }

    /// How many nodes have an image.
    pub(crate) fn nodes_with_image(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// On which nodes pods use a claim.
    pub(crate) fn claim_users(&self, claim: &Key) -> Option<&HashMap<NodeId, u32>> {
        self.claims.get(claim)
    }

    fn id_for(&mut self, name: &str) -> NodeId {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let state = NodeState::named(name);
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id] = state;
                id
            }
            None => {
                self.nodes.push(state);
                self.nodes.len() - 1
            }
        };
        self.by_name.insert(name.to_owned(), id);
        id
    }

    pub(crate) fn set_node(&mut self, node: &Arc<Node>) {
        let id = self.id_for(node.metadata.name.as_deref().unwrap_or_default());
        match &self.nodes[id].node {
            None => {
                self.existing += 1;
                self.reorder();
            }
            Some(old) if old.labels() != node.labels() => self.reorder(),
            Some(_) => {}
        }
        let state = &mut self.nodes[id];
        count_images(&mut self.images, state, false);
        state.set(node);
        count_images(&mut self.images, state, true);
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some(id) = self.by_name.get(name).copied() else { return };
        let state = &mut self.nodes[id];
        count_images(&mut self.images, state, false);
        if state.node.take().is_some() {
            self.existing -= 1;
        }
        state.images.clear();
        self.reorder();
        self.drop_if_empty(id);
    }

    fn drop_if_empty(&mut self, id: NodeId) {
        let state = &self.nodes[id];
        if state.node.is_none() && state.pods.is_empty() && self.by_name.get(&*state.name) == Some(&id) {
            let name = state.name.clone();
            self.by_name.remove(&*name);
            self.nodes[id] = NodeState::default();
            self.free.push(id);
        }
    }

    /// Takes a pod with a node in; what was known of it before.
    pub(crate) fn set_pod(&mut self, pod: &Pod) -> Option<Arc<PodInfo>> {
        let key = Key::of(pod);
        let was_assumed = self.assumed.remove(&key);
        self.nominate(&key, None);
        let old = self.take(&key).map(|(_, info)| info);
        let node = self.id_for(node_name(pod));
        let mut info = PodInfo::of(pod);
        self.groups.share(&mut info);
        self.put(Arc::new(info), node);
        old.filter(|_| !was_assumed)
    }

    /// Whether the API has said where a pod is.
    pub(crate) fn is_confirmed(&self, key: &Key) -> bool {
        self.knows(key) && !self.assumed.contains(key)
    }

    /// Takes a pod to be on a node before the API says so.
    pub(crate) fn assume(&mut self, info: Arc<PodInfo>, node: NodeId) {
        self.take(&info.key);
        self.nominate(&info.key, None);
        self.assumed.insert(info.key.clone());
        self.put(info, node);
    }

    /// Takes back an assumption that did not come true; where the pod was thought to be.
    pub(crate) fn forget(&mut self, key: &Key) -> Option<(NodeId, Arc<PodInfo>)> {
        if self.assumed.remove(key) { self.take(key) } else { None }
    }

    /// Forgets a pod; what it was and where when it had a node, or when a node was kept free for it.
    pub(crate) fn remove_pod(&mut self, key: &Key) -> Option<(NodeId, Arc<PodInfo>)> {
        self.assumed.remove(key);
        let kept = self.nomination(key).and_then(|node| Some((self.id(node)?, self.nominated_pod(key)?)));
        self.nominate(key, None);
        let Some((node, info)) = self.take(key) else { return kept };
        self.drop_if_empty(node);
        Some((node, info))
    }

    fn nominated_pod(&self, key: &Key) -> Option<Arc<PodInfo>> {
        self.nominated.get(self.nominations.get(key)?)?.iter().find(|p| p.key == *key).cloned()
    }

    /// Puts a pod on a node for a what-if; [`Cluster::take`] takes it off.
    pub(crate) fn put(&mut self, info: Arc<PodInfo>, node: NodeId) {
        let group = self.groups.add(&info, node);
        for claim in &info.claims {
            let users = self.claims.entry(Key::new(info.key.namespace.clone(), claim.clone())).or_default();
            *users.entry(node).or_default() += 1;
        }
        self.nodes[node].put(info.clone());
        self.places.insert(info.key.clone(), Place { node, group, info });
    }

    /// Takes a pod off its node.
    pub(crate) fn take(&mut self, key: &Key) -> Option<(NodeId, Arc<PodInfo>)> {
        let Place { node, group, info } = self.places.remove(key)?;
        self.groups.remove(group, node, info.is_going);
        for claim in &info.claims {
            let claim = Key::new(info.key.namespace.clone(), claim.clone());
            let Some(users) = self.claims.get_mut(&claim) else { continue };
            if let Some(n) = users.get_mut(&node) {
                *n -= 1;
                if *n == 0 {
                    users.remove(&node);
                }
            }
            if users.is_empty() {
                self.claims.remove(&claim);
            }
        }
        self.nodes[node].take(&info);
        Some((node, info))
    }

    /// Says for which node others make room for a pod, or that none do any more.
    pub(crate) fn nominate(&mut self, key: &Key, to: Option<(&str, &Arc<PodInfo>)>) {
        if let Some(old) = self.nominations.remove(key)
            && let Some(pods) = self.nominated.get_mut(&old)
        {
            pods.retain(|p| p.key != *key);
            if pods.is_empty() {
                self.nominated.remove(&old);
            }
        }
        if let Some((node, info)) = to {
            self.nominations.insert(key.clone(), node.to_owned());
            self.nominated.entry(node.to_owned()).or_default().push(info.clone());
        }
    }

    /// The node that others make room on for a pod.
    pub(crate) fn nomination(&self, key: &Key) -> Option<&str> {
        self.nominations.get(key).map(String::as_str)
    }

    /// The pods that a node is kept free for.
    pub(crate) fn nominated(&self, node: NodeId) -> &[Arc<PodInfo>] {
        if self.nominated.is_empty() {
            return &[];
        }
        self.nominated.get(&*self.nodes[node].name).map(Vec::as_slice).unwrap_or_default()
    }
}

fn count_images(images: &mut HashMap<String, usize>, state: &NodeState, more: bool) {
    for name in state.images.keys() {
        if more {
            *images.entry(name.clone()).or_default() += 1;
        } else if let Some(n) = images.get_mut(name) {
            *n -= 1;
            if *n == 0 {
                images.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::json;

    #[test]
    fn assumptions_count_until_they_fail() {
        let mut c = Cluster::default();
        c.set_node(&node("a", json!({"cpu": "1", "pods": "3"})));
        let id = c.id("a").unwrap();
        let p = PodInfo::new(&pod("p", json!({"cpu": "600m"})));
        c.assume(p.clone(), id);
        assert_eq!(c.node(id).requested.cpu, 600);
        c.forget(&p.key);
        assert_eq!(c.node(id).requested.cpu, 0);
        c.assume(p.clone(), id);
        let mut bound = (*pod("p", json!({"cpu": "600m"}))).clone();
        bound.spec.get_or_insert_default().node_name = Some("a".into());
        c.set_pod(&bound);
        c.forget(&p.key);
        assert!(c.knows(&p.key), "what the API says is no assumption");
        assert!(c.remove_pod(&p.key).is_some() && c.remove_pod(&p.key).is_none());
        assert_eq!(c.groups().len(), 0);
    }

    #[test]
    fn nodes_come_and_go_and_their_pods_may_be_first_or_last() {
        let mut c = Cluster::default();
        let mut early = (*pod("early", json!({}))).clone();
        early.spec.get_or_insert_default().node_name = Some("b".into());
        c.set_pod(&early);
        assert_eq!((c.len(), c.id("b")), (0, None));
        c.set_node(&node("b", json!({"pods": "3"})));
        assert_eq!(c.len(), 1);
        assert_eq!(c.node(c.id("b").unwrap()).pods.len(), 1);
        c.remove_node("b");
        assert_eq!((c.len(), c.numbers()), (0, 1));
        c.remove_pod(&Key::of(&early));
        c.set_node(&node("c", json!({})));
        assert_eq!(c.numbers(), 1, "the number is given again");
    }

    #[test]
    fn domains_follow_labels() {
        let mut c = Cluster::default();
        for (name, zone) in [("a", "x"), ("b", "x"), ("c", "y")] {
            let mut n = (*node(name, json!({}))).clone();
            n.metadata.labels = Some([("zone".to_owned(), zone.to_owned())].into());
            c.set_node(&Arc::new(n));
        }
        c.set_node(&node("d", json!({})));
        let domains = c.domains("zone");
        assert_eq!(domains.count, 2);
        let of = |name: &str| domains.of[c.id(name).unwrap()];
        assert!(of("a") == of("b") && of("a") != of("c") && of("d") == NOWHERE);
        c.remove_node("c");
        assert_eq!(c.domains("zone").count, 1);
    }
}
