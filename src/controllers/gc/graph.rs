//! The graph of owners and dependents; pure: changes go in, actions come out.

use super::Resource;
use edge_client::{ApiResource, PropagationPolicy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The identity of an object.
pub(super) type Uid = String;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// A reference to an owner.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owner {
    pub(super) uid: Uid,
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) name: String,
    blocks: bool,
}

/// An object, as far as garbage collection is concerned.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) uid: Uid,
    pub(super) resource: Arc<Resource>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) resource_version: String,
    pub(super) finalizers: Vec<String>,
    references: Vec<OwnerReference>,
    terminating: bool,
}

impl Node {
    pub(super) fn new(resource: &Arc<Resource>, meta: &ObjectMeta) -> Self {
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource: resource.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            references: meta.owner_references.clone().unwrap_or_default(),
            terminating: meta.deletion_timestamp.is_some(),
        }
    }

    /// Whether nothing else has changed that matters here.
    fn is_as_before(&self, later: &Self) -> bool {
        self.terminating == later.terminating
            && self.finalizers == later.finalizers
            && self.references == later.references
            && self.resource == later.resource
    }

    /// Whether it has these owners.
    pub(super) fn has_owners_of(&self, other: &Self) -> bool {
        self.references == other.references
    }

    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }

    fn owners(&self) -> impl Iterator<Item = Owner> {
        self.references.iter().map(|r| Owner {
            uid: r.uid.clone(),
            api_version: r.api_version.clone(),
            kind: r.kind.clone(),
            name: r.name.clone(),
            blocks: r.block_owner_deletion.unwrap_or(false),
        })
    }
}

/// What a watch tells.
pub(super) enum Change {
    Seen(Node),
    Gone(Uid),
}

/// What has to be done.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Delete { node: Node, policy: PropagationPolicy },
    SetOwners { node: Node, owners: Vec<OwnerReference> },
    RemoveFinalizer { node: Node, finalizer: String },
}

/// All objects, and who depends on whom.
#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
    /// Owners that are known not to exist.
    absent: HashSet<Uid>,
    resources: HashMap<(String, String), Arc<Resource>>,
}

impl Graph {
    /// Takes a change in; gives the objects to look at again.
    pub(super) fn apply(&mut self, change: Change) -> Vec<Uid> {
        match change {
            Change::Seen(node) => {
                // a status that is written, a lease that is renewed: most changes are none here
                if let Some(known) = self.nodes.get_mut(&node.uid).filter(|known| known.is_as_before(&node)) {
                    known.resource_version = node.resource_version;
                    return Vec::new();
                }
                let kind = (node.resource.api.api_version.clone(), node.resource.api.kind.clone());
                self.resources.entry(kind).or_insert_with(|| node.resource.clone());
                let uid = node.uid.clone();
                // owners that wait for it to go, or have just released it, have to be looked at as well
                let former = self.nodes.get(&uid).into_iter().flat_map(Node::owners);
                let mut dirty: Vec<Uid> =
                    node.owners().chain(former).map(|o| o.uid).filter(|o| self.waits(o)).collect();
                self.unlink(&uid);
                for owner in node.owners() {
                    self.dependents.entry(owner.uid).or_default().insert(uid.clone());
                }
                let interesting = node.terminating || !node.references.is_empty();
                self.nodes.insert(uid.clone(), node);
                if interesting {
                    dirty.push(uid);
                }
                dirty
            }
            Change::Gone(uid) => {
                let owners: Vec<Uid> =
                    self.nodes.get(&uid).map(|n| n.owners().map(|o| o.uid).collect()).unwrap_or_default();
                self.unlink(&uid);
                self.nodes.remove(&uid);
                let mut dirty: Vec<Uid> = self.dependents.get(&uid).into_iter().flatten().cloned().collect();
                if !dirty.is_empty() {
                    self.absent.insert(uid);
                }
                dirty.extend(owners.into_iter().filter(|o| self.waits(o)));
                dirty
            }
        }
    }

    /// A kind is served as this resource, also in another version than that which is watched.
    pub(super) fn know(&mut self, api_version: &str, resource: &Arc<Resource>) {
        self.resources.insert((api_version.to_owned(), resource.api.kind.clone()), resource.clone());
    }

    /// A resource is not served any more: what was known of its objects is gone.
    pub(super) fn forget(&mut self, resource: &ApiResource) -> Vec<Uid> {
        self.resources.retain(|_, known| known.api != *resource);
        self.retain(resource, &HashSet::new())
    }

    /// After a new list: whatever of the resource is not in it is gone.
    pub(super) fn retain(&mut self, resource: &ApiResource, listed: &HashSet<Uid>) -> Vec<Uid> {
        let gone: Vec<Uid> = self
            .nodes
            .values()
            .filter(|n| n.resource.api == *resource && !listed.contains(&n.uid))
            .map(|n| n.uid.clone())
            .collect();
        gone.into_iter().flat_map(|uid| self.apply(Change::Gone(uid))).collect()
    }

    fn unlink(&mut self, uid: &Uid) {
        let owners: Vec<Uid> = self.nodes.get(uid).map(|n| n.owners().map(|o| o.uid).collect()).unwrap_or_default();
        for owner in owners {
            if let Some(set) = self.dependents.get_mut(&owner) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&owner);
                    self.absent.remove(&owner);
                }
            }
        }
    }

    /// Whether an object is being deleted and waits for its dependents.
    fn waits(&self, uid: &Uid) -> bool {
        self.nodes.get(uid).is_some_and(|n| n.terminating && (n.has(FOREGROUND) || n.has(ORPHAN)))
    }

    pub(super) fn get(&self, uid: &Uid) -> Option<Node> {
        self.nodes.get(uid).cloned()
    }

    /// The resource of an owner's kind, when an object of it was ever seen.
    pub(super) fn resource_of(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.resources.get(&(api_version.to_owned(), kind.to_owned())).cloned()
    }

    /// Owners of an object about which nothing is known.
    pub(super) fn unknown_owners(&self, uid: &Uid) -> Vec<Owner> {
        let Some(node) = self.nodes.get(uid) else { return Vec::new() };
        node.owners().filter(|o| !self.nodes.contains_key(&o.uid) && !self.absent.contains(&o.uid)).collect()
    }

    /// An owner does not exist.
    pub(super) fn note_absent(&mut self, uid: &str) {
        self.absent.insert(uid.to_owned());
    }

    fn dependents_of(&self, uid: &Uid) -> Vec<&Node> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|d| self.nodes.get(d)).collect()
    }

    /// What has to be done about an object.
    pub(super) fn plan(&self, uid: &Uid) -> Vec<Action> {
        let Some(node) = self.nodes.get(uid) else { return Vec::new() };
        if node.terminating {
            return self.plan_terminating(node);
        }
        if node.references.is_empty() {
            return Vec::new();
        }
        let gone = |r: &&OwnerReference| self.absent.contains(&r.uid);
        let waiting = |r: &&OwnerReference| self.nodes.get(&r.uid).is_some_and(|o| o.terminating && o.has(FOREGROUND));
        let solid: Vec<OwnerReference> = node.references.iter().filter(|r| !gone(r) && !waiting(r)).cloned().collect();
        if !solid.is_empty() {
            if solid.len() < node.references.len() {
                return vec![Action::SetOwners { node: node.clone(), owners: solid }];
            }
            return Vec::new();
        }
        let foreground = node.references.iter().any(|r| waiting(&r)) && !self.dependents_of(uid).is_empty();
        let policy = if foreground { PropagationPolicy::Foreground } else { super::BACKGROUND };
        vec![Action::Delete { node: node.clone(), policy }]
    }

    fn plan_terminating(&self, node: &Node) -> Vec<Action> {
        let dependents = self.dependents_of(&node.uid);
        if node.has(ORPHAN) {
            let mut actions: Vec<Action> = dependents
                .into_iter()
                .map(|d| Action::SetOwners {
                    node: d.clone(),
                    owners: d.references.iter().filter(|r| r.uid != node.uid).cloned().collect(),
                })
                .collect();
            // the finalizer goes when the releases were seen
            if actions.is_empty() {
                actions.push(Action::RemoveFinalizer { node: node.clone(), finalizer: ORPHAN.into() });
            }
            return actions;
        }
        if !node.has(FOREGROUND) {
            return Vec::new();
        }
        let blocked = dependents.iter().any(|d| d.owners().any(|o| o.uid == node.uid && o.blocks));
        let mut actions: Vec<Action> =
            dependents.iter().filter(|d| !d.terminating).flat_map(|d| self.plan(&d.uid)).collect();
        if !blocked {
            actions.push(Action::RemoveFinalizer { node: node.clone(), finalizer: FOREGROUND.into() });
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource() -> Arc<Resource> {
        Arc::new(Resource {
            api: ApiResource {
                group: String::new(),
                version: "v1".into(),
                api_version: "v1".into(),
                kind: "ConfigMap".into(),
                plural: "configmaps".into(),
            },
            namespaced: true,
            deletable: true,
            watchable: true,
        })
    }

    fn node(uid: &str, owners: &[(&str, bool)], finalizers: &[&str], terminating: bool) -> Node {
        Node {
            uid: uid.into(),
            resource: resource(),
            namespace: "ns".into(),
            name: uid.into(),
            resource_version: "1".into(),
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            references: owners
                .iter()
                .map(|(o, blocks)| OwnerReference {
                    uid: (*o).into(),
                    name: (*o).into(),
                    block_owner_deletion: Some(*blocks),
                    ..OwnerReference::default()
                })
                .collect(),
            terminating,
        }
    }

    fn told(graph: &mut Graph, changes: Vec<Change>) -> Vec<String> {
        let mut dirty: Vec<Uid> = changes.into_iter().flat_map(|c| graph.apply(c)).collect();
        dirty.sort();
        dirty.dedup();
        dirty.iter().flat_map(|u| graph.plan(u)).map(|a| describe(&a)).collect()
    }

    fn describe(action: &Action) -> String {
        match action {
            Action::Delete { node, policy } => format!("delete {} {policy:?}", node.uid),
            Action::SetOwners { node, owners } => {
                format!("owners {} {:?}", node.uid, owners.iter().map(|o| o.uid.as_str()).collect::<Vec<_>>())
            }
            Action::RemoveFinalizer { node, finalizer } => format!("finalizer {} {finalizer}", node.uid),
        }
    }

    #[test]
    fn background_deletion_follows_the_last_owner() {
        let mut g = Graph::default();
        let seen = vec![
            Change::Seen(node("a", &[], &[], false)),
            Change::Seen(node("b", &[], &[], false)),
            Change::Seen(node("child", &[("a", true), ("b", true)], &[], false)),
        ];
        assert!(told(&mut g, seen).is_empty());
        assert_eq!(told(&mut g, vec![Change::Gone("a".into())]), ["owners child [\"b\"]"]);
        let released = vec![Change::Seen(node("child", &[("b", true)], &[], false)), Change::Gone("b".into())];
        assert_eq!(told(&mut g, released), ["delete child Background"]);
    }

    #[test]
    fn an_owner_that_never_was_is_asked_for() {
        let mut g = Graph::default();
        assert!(told(&mut g, vec![Change::Seen(node("child", &[("ghost", false)], &[], false))]).is_empty());
        assert_eq!(g.unknown_owners(&"child".into()).len(), 1);
        g.note_absent("ghost");
        assert!(matches!(&g.plan(&"child".into())[..], [Action::Delete { .. }]));
    }

    #[test]
    fn foreground_deletion_waits_for_blockers_only() {
        let mut g = Graph::default();
        told(
            &mut g,
            vec![
                Change::Seen(node("owner", &[], &[], false)),
                Change::Seen(node("child", &[("owner", true)], &[], false)),
            ],
        );
        let out = told(&mut g, vec![Change::Seen(node("owner", &[], &[FOREGROUND], true))]);
        assert_eq!(out, ["delete child Background"]);
        assert_eq!(told(&mut g, vec![Change::Gone("child".into())]), ["finalizer owner foregroundDeletion"]);
    }

    #[test]
    fn orphans_are_released_first() {
        let mut g = Graph::default();
        told(
            &mut g,
            vec![
                Change::Seen(node("owner", &[], &[], false)),
                Change::Seen(node("child", &[("owner", true)], &[], false)),
            ],
        );
        let out = told(&mut g, vec![Change::Seen(node("owner", &[], &[ORPHAN], true))]);
        assert_eq!(out, ["owners child []"]);
        let out = told(&mut g, vec![Change::Seen(node("child", &[], &[], false))]);
        assert_eq!(out, ["finalizer owner orphan"]);
    }

    #[test]
    fn a_relist_finds_what_went_unseen() {
        let mut g = Graph::default();
        told(
            &mut g,
            vec![
                Change::Seen(node("owner", &[], &[], false)),
                Change::Seen(node("child", &[("owner", true)], &[], false)),
            ],
        );
        let dirty = g.retain(&resource().api, &HashSet::from(["child".to_owned()]));
        assert_eq!(dirty, ["child"]);
        assert!(matches!(&g.plan(&"child".into())[..], [Action::Delete { .. }]));
    }
}
