//! What a node may do: its own objects, and what the pods that are bound to it refer to.
//!
//! The graph is kept by events (pods, volumes, attachments); a decision is a few look-ups, whatever the size of the
//! cluster. Rules of Kubernetes' Node authorizer.

use crate::rbac::{Attributes, Decision};
use crate::rules::PolicyRule;
use edge_api::UserInfo;
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The group of all nodes.
pub const NODES: &str = "system:nodes";
const LEASES: &str = "kube-node-lease";

/// The node that a user is, if he is one.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    let name = user.username.strip_prefix("system:node:").filter(|n| !n.is_empty())?;
    user.in_group(NODES).then_some(name)
}

/// What pods refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Secret,
    ConfigMap,
    Claim,
    ResourceClaim,
    Account,
}

/// Namespace and name follow.
type Reference = (Kind, String, String);
/// Namespace and name.
type Id = (String, String);

struct Pod {
    node: String,
    /// Shared by all who refer to the same: most pods refer to the same few objects, and there may be very many pods.
    references: Box<[Arc<Reference>]>,
}

#[derive(Default)]
struct Volume {
    claim: Option<Id>,
    secrets: BTreeSet<Id>,
}

#[derive(Default)]
struct Graph {
    pods: HashMap<Id, Pod>,
    /// How many pods of a node refer to an object.
    referrers: HashMap<Arc<Reference>, HashMap<String, usize>>,
    volumes: HashMap<String, Volume>,
    volumes_by_secret: HashMap<Id, BTreeSet<String>>,
    /// Nodes by the names of volume attachments.
    attachments: HashMap<String, String>,
}

/// Decides about requests of nodes.
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    /// What is the same for all nodes: the rules of the role `system:node`.
    rules: Vec<PolicyRule>,
}

impl Default for NodeAuthorizer {
    fn default() -> Self {
        let role = crate::bootstrap_policy().into_iter().find(|o| {
            o["kind"] == "ClusterRole" && o.pointer("/metadata/name").and_then(Value::as_str) == Some("system:node")
        });
        let rules = role.as_ref().and_then(|r| r["rules"].as_array()).map(Vec::as_slice).unwrap_or_default();
        Self { graph: RwLock::default(), rules: rules.iter().filter_map(|r| PolicyRule::deserialize(r).ok()).collect() }
    }
}

impl NodeAuthorizer {
    /// The kinds that the graph is made of: API group and plural.
    pub const FOLLOWS: [(&str, &str); 3] =
        [("", "pods"), ("", "persistentvolumes"), ("storage.k8s.io", "volumeattachments")];

    /// Takes in a new or changed object of one of the kinds of [`Self::FOLLOWS`].
    pub fn upsert(&self, object: &Value) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let mut graph = self.graph.write();
        match text("/kind") {
            "Pod" => {
                let node = text("/spec/nodeName");
                if node.is_empty() {
                    return;
                }
                let id = (namespace.to_owned(), name.to_owned());
                graph.put_pod(id, node, references(object, namespace, name));
            }
            "PersistentVolume" => graph.put_volume(name, volume(object)),
            "VolumeAttachment" => {
                graph.attachments.insert(name.to_owned(), text("/spec/nodeName").to_owned());
            }
            _ => {}
        }
    }

    /// Forgets an object.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let mut graph = self.graph.write();
        match kind {
            "Pod" => graph.remove_pod(&(namespace.to_owned(), name.to_owned())),
            "PersistentVolume" => graph.remove_volume(name),
            "VolumeAttachment" => drop(graph.attachments.remove(name)),
            _ => {}
        }
    }

    /// Decides about a request of a node; no opinion about anybody else's.
    pub fn authorize(&self, a: &Attributes<'_>) -> Decision {
        let Some(node) = node_of(a.user) else { return Decision::NoOpinion };
        if self.allows(node, a) { Decision::Allow(String::new()) } else { Decision::NoOpinion }
    }

    fn allows(&self, node: &str, a: &Attributes<'_>) -> bool {
        if !a.is_resource {
            return self.rules.iter().any(|r| r.allows_path(a.verb, a.path));
        }
        let reads = matches!(a.verb, "get" | "list" | "watch");
        let plain = a.subresource.is_empty();
        let refers = |kind| !a.name.is_empty() && self.graph.read().refers(node, kind, a.namespace, a.name);
        match (a.group, a.resource) {
            // lists and watches of one object carry its name
            ("", "secrets") => {
                let graph = || self.graph.read().reaches_secret(node, a.namespace, a.name);
                reads && plain && !a.name.is_empty() && graph()
            }
            ("", "configmaps") => reads && plain && refers(Kind::ConfigMap),
            ("", "persistentvolumeclaims") => {
                // watched one by one: the kubelet has volumes grow when their claims say so
                let verbs = if plain { &["get", "list", "watch"][..] } else { &["get", "update", "patch"] };
                (plain || a.subresource == "status") && verbs.contains(&a.verb) && refers(Kind::Claim)
            }
            ("", "persistentvolumes") => a.verb == "get" && plain && self.graph.read().reaches_volume(node, a.name),
            ("resource.k8s.io", "resourceclaims") => a.verb == "get" && plain && refers(Kind::ResourceClaim),
            ("storage.k8s.io", "volumeattachments") => {
                let at = |name| self.graph.read().attachments.get(name).is_some_and(|n| n == node);
                a.verb == "get" && plain && at(a.name)
            }
            ("", "serviceaccounts") => {
                let verb = if a.subresource == "token" { "create" } else { "get" };
                a.verb == verb && (plain || a.subresource == "token") && refers(Kind::Account)
            }
            ("", "nodes") => {
                let own = a.name == node;
                match (a.verb, a.subresource) {
                    // admission sees to it that it is the node's own
                    ("create", "") => true,
                    ("get" | "list" | "watch" | "update" | "patch" | "delete", "") => own,
                    ("get" | "update" | "patch", "status") => own,
                    _ => false,
                }
            }
            ("", "pods") => self.allows_pod(node, a),
            ("coordination.k8s.io", "leases") => {
                let known = matches!(a.verb, "get" | "create" | "update" | "patch" | "delete");
                known && plain && a.namespace == LEASES && (a.verb == "create" || a.name == node)
            }
            ("storage.k8s.io", "csinodes") => {
                let known = matches!(a.verb, "get" | "create" | "update" | "patch" | "delete");
                known && plain && (a.verb == "create" || a.name == node)
            }
            _ => self.rules.iter().any(|r| r.allows_resource(a.verb, a.group, a.resource, a.subresource, a.name)),
        }
    }

    fn allows_pod(&self, node: &str, a: &Attributes<'_>) -> bool {
        let bound = || {
            let graph = self.graph.read();
            graph.pods.get(&(a.namespace.to_owned(), a.name.to_owned())).is_some_and(|p| p.node == node)
        };
        match (a.verb, a.subresource) {
            ("list" | "watch", "") => a.node == node || bound(),
            ("get", "" | "status") => bound(),
            // admission looks at the pod itself
            ("create" | "delete", "") | ("update" | "patch", "status") | ("create", "eviction") => true,
            _ => false,
        }
    }
}

impl Graph {
    fn put_pod(&mut self, id: Id, node: &str, references: BTreeSet<Reference>) {
        self.remove_pod(&id);
        let mut share = |reference: Reference| {
            let known = self.referrers.get_key_value(&reference).map(|(known, _)| known.clone());
            let reference = known.unwrap_or_else(|| Arc::new(reference));
            let nodes = self.referrers.entry(reference.clone()).or_default();
            *nodes.entry(node.to_owned()).or_default() += 1;
            reference
        };
        let references = references.into_iter().map(&mut share).collect();
        self.pods.insert(id, Pod { node: node.to_owned(), references });
    }

    fn remove_pod(&mut self, id: &Id) {
        let Some(pod) = self.pods.remove(id) else { return };
        for reference in &pod.references {
            let Some(nodes) = self.referrers.get_mut(reference) else { continue };
            if let Some(count) = nodes.get_mut(&pod.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&pod.node);
                }
            }
            if nodes.is_empty() {
                self.referrers.remove(reference);
            }
        }
    }

    fn put_volume(&mut self, name: &str, volume: Volume) {
        self.remove_volume(name);
        for secret in &volume.secrets {
            self.volumes_by_secret.entry(secret.clone()).or_default().insert(name.to_owned());
        }
        self.volumes.insert(name.to_owned(), volume);
    }

    fn remove_volume(&mut self, name: &str) {
        let Some(volume) = self.volumes.remove(name) else { return };
        for secret in volume.secrets {
            let Some(names) = self.volumes_by_secret.get_mut(&secret) else { continue };
            names.remove(name);
            if names.is_empty() {
                self.volumes_by_secret.remove(&secret);
            }
        }
    }

    fn refers(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let key = (kind, namespace.to_owned(), name.to_owned());
        self.referrers.get(&key).is_some_and(|nodes| nodes.contains_key(node))
    }

    fn reaches_volume(&self, node: &str, name: &str) -> bool {
        let claim = self.volumes.get(name).and_then(|v| v.claim.as_ref());
        claim.is_some_and(|(namespace, name)| self.refers(node, Kind::Claim, namespace, name))
    }

    fn reaches_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        let id = (namespace.to_owned(), name.to_owned());
        self.refers(node, Kind::Secret, namespace, name)
            || self.volumes_by_secret.get(&id).is_some_and(|v| v.iter().any(|v| self.reaches_volume(node, v)))
    }
}

fn list<'o>(object: &'o Value, pointer: &str) -> impl Iterator<Item = &'o Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// Everything in the namespace that a pod refers to.
fn references(pod: &Value, namespace: &str, pod_name: &str) -> BTreeSet<Reference> {
    let mut out = BTreeSet::new();
    let mut add = |kind: Kind, name: Option<&Value>| {
        if let Some(name) = name.and_then(Value::as_str).filter(|n| !n.is_empty()) {
            out.insert((kind, namespace.to_owned(), name.to_owned()));
        }
    };
    add(Kind::Account, pod.pointer("/spec/serviceAccountName"));
    for secret in list(pod, "/spec/imagePullSecrets") {
        add(Kind::Secret, secret.get("name"));
    }
    let lists = ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];
    for container in lists.into_iter().flat_map(|l| list(pod, l)) {
        for env in list(container, "/env") {
            add(Kind::Secret, env.pointer("/valueFrom/secretKeyRef/name"));
            add(Kind::ConfigMap, env.pointer("/valueFrom/configMapKeyRef/name"));
        }
        for from in list(container, "/envFrom") {
            add(Kind::Secret, from.pointer("/secretRef/name"));
            add(Kind::ConfigMap, from.pointer("/configMapRef/name"));
        }
    }
    for volume in list(pod, "/spec/volumes") {
        add(Kind::ConfigMap, volume.pointer("/configMap/name"));
        add(Kind::Claim, volume.pointer("/persistentVolumeClaim/claimName"));
        for source in list(volume, "/projected/sources") {
            add(Kind::Secret, source.pointer("/secret/name"));
            add(Kind::ConfigMap, source.pointer("/configMap/name"));
        }
        for pointer in [
            "/secret/secretName",
            "/azureFile/secretName",
            "/csi/nodePublishSecretRef/name",
            "/cephfs/secretRef/name",
            "/cinder/secretRef/name",
            "/flexVolume/secretRef/name",
            "/iscsi/secretRef/name",
            "/rbd/secretRef/name",
            "/scaleIO/secretRef/name",
            "/storageos/secretRef/name",
        ] {
            add(Kind::Secret, volume.pointer(pointer));
        }
        if volume.get("ephemeral").is_some_and(|e| !e.is_null()) {
            let name = volume.get("name").and_then(Value::as_str).unwrap_or_default();
            add(Kind::Claim, Some(&format!("{pod_name}-{name}").into()));
        }
    }
    for status in list(pod, "/status/resourceClaimStatuses") {
        add(Kind::ResourceClaim, status.get("resourceClaimName"));
    }
    add(Kind::ResourceClaim, pod.pointer("/status/extendedResourceClaimStatus/resourceClaimName"));
    for claim in list(pod, "/spec/resourceClaims") {
        add(Kind::ResourceClaim, claim.get("resourceClaimName"));
    }
    out
}

/// The claim that a volume is bound to, and the secrets it takes to mount it.
fn volume(object: &Value) -> Volume {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).filter(|t| !t.is_empty());
    let claim = text("/spec/claimRef/name")
        .map(|name| (text("/spec/claimRef/namespace").unwrap_or_default().to_owned(), name.to_owned()));
    let claim_namespace = claim.as_ref().map(|c| c.0.clone()).unwrap_or_default();
    let mut secrets = BTreeSet::new();
    if let Some(name) = text("/spec/azureFile/secretName") {
        let namespace = text("/spec/azureFile/secretNamespace").unwrap_or(&claim_namespace);
        secrets.insert((namespace.to_owned(), name.to_owned()));
    }
    for source in [
        "/spec/csi/nodePublishSecretRef",
        "/spec/csi/nodeStageSecretRef",
        "/spec/csi/nodeExpandSecretRef",
        "/spec/cephfs/secretRef",
        "/spec/cinder/secretRef",
        "/spec/flexVolume/secretRef",
        "/spec/iscsi/secretRef",
        "/spec/rbd/secretRef",
        "/spec/scaleIO/secretRef",
        "/spec/storageos/secretRef",
    ] {
        if let Some(name) = text(&format!("{source}/name")) {
            let namespace = text(&format!("{source}/namespace")).unwrap_or(&claim_namespace);
            secrets.insert((namespace.to_owned(), name.to_owned()));
        }
    }
    Volume { claim, secrets }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask<'a>(
        user: &'a UserInfo,
        verb: &'a str,
        resource: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (group, resource) = resource.rsplit_once(':').unwrap_or(("", resource));
        Attributes { user, verb, is_resource: true, group, resource, subresource, namespace, name, path: "", node: "" }
    }

    fn authorizer() -> NodeAuthorizer {
        let nodes = NodeAuthorizer::default();
        nodes.upsert(&json!({"kind": "Pod", "metadata": {"namespace": "ns", "name": "p"}, "spec": {
            "nodeName": "a", "serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "cm"}}],
                "env": [{"valueFrom": {"secretKeyRef": {"name": "key"}}}]}],
            "volumes": [{"projected": {"sources": [{"secret": {"name": "proj"}}]}},
                {"persistentVolumeClaim": {"claimName": "claim"}}, {"name": "scratch", "ephemeral": {}}]}}));
        nodes.upsert(&json!({"kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": {
            "claimRef": {"namespace": "ns", "name": "claim"},
            "csi": {"nodePublishSecretRef": {"namespace": "other", "name": "mount"}}}}));
        nodes.upsert(&json!({"kind": "VolumeAttachment", "metadata": {"name": "va"}, "spec": {"nodeName": "a"}}));
        nodes
    }

    const REFERRED: [(&str, &str, &str, &str); 14] = [
        ("get", "secrets", "ns", "pull"),
        ("watch", "secrets", "ns", "key"),
        ("list", "secrets", "ns", "proj"),
        ("get", "secrets", "other", "mount"),
        ("get", "configmaps", "ns", "cm"),
        ("get", "persistentvolumeclaims", "ns", "claim"),
        ("get", "persistentvolumeclaims", "ns", "p-scratch"),
        ("watch", "persistentvolumeclaims", "ns", "claim"),
        ("patch", "persistentvolumeclaims/status", "ns", "claim"),
        ("get", "persistentvolumes", "", "pv"),
        ("get", "storage.k8s.io:volumeattachments", "", "va"),
        ("create", "serviceaccounts/token", "ns", "sa"),
        ("get", "serviceaccounts", "ns", "sa"),
        ("get", "pods", "ns", "p"),
    ];

    #[test]
    fn a_node_reaches_what_its_pods_refer_to_and_nothing_else() {
        let nodes = authorizer();
        let (a, b) = (UserInfo::new("system:node:a", [NODES]), UserInfo::new("system:node:b", [NODES]));
        let impostor = UserInfo::new("system:node:a", ["others"]);
        let may = |user: &UserInfo, (verb, resource, namespace, name): (&str, &str, &str, &str)| {
            nodes.authorize(&ask(user, verb, resource, namespace, name)) != Decision::NoOpinion
        };
        for what in REFERRED {
            assert!(may(&a, what), "{what:?}");
            assert!(!may(&b, what) && !may(&impostor, what), "{what:?}");
        }
        for what in [
            ("get", "secrets", "ns", "other"),
            ("get", "secrets", "other", "pull"),
            ("list", "secrets", "ns", ""),
            ("list", "secrets", "", ""),
            ("watch", "configmaps", "ns", ""),
            ("update", "secrets", "ns", "pull"),
            ("delete", "configmaps", "ns", "cm"),
            ("get", "nodes", "", "b"),
            ("list", "nodes", "", ""),
            ("patch", "nodes/status", "", "b"),
            ("get", "coordination.k8s.io:leases", LEASES, "b"),
            ("get", "coordination.k8s.io:leases", "ns", "a"),
            ("get", "storage.k8s.io:csinodes", "", "b"),
            ("list", "pods", "", ""),
            ("create", "pods/exec", "ns", "p"),
            ("create", "serviceaccounts", "ns", "x"),
            ("list", "rbac.authorization.k8s.io:roles", "", ""),
        ] {
            assert!(!may(&a, what), "{what:?}");
        }
        for what in [
            ("get", "nodes", "", "a"),
            ("create", "nodes", "", ""),
            ("patch", "nodes/status", "", "a"),
            ("watch", "nodes", "", "a"),
            ("patch", "coordination.k8s.io:leases", LEASES, "a"),
            ("create", "coordination.k8s.io:leases", LEASES, ""),
            ("list", "services", "", ""),
            ("create", "certificates.k8s.io:certificatesigningrequests", "", ""),
            ("create", "events", "ns", ""),
        ] {
            assert!(may(&a, what), "{what:?}");
        }
        let own = Attributes { node: "a", ..ask(&a, "watch", "pods", "", "") };
        assert_ne!(nodes.authorize(&own), Decision::NoOpinion);
        assert_eq!(nodes.authorize(&Attributes { node: "b", ..own }), Decision::NoOpinion);
    }

    #[test]
    fn what_is_gone_is_not_reached_any_more() {
        let nodes = authorizer();
        let a = UserInfo::new("system:node:a", [NODES]);
        // a second pod that refers to the same keeps the way open
        nodes.upsert(&json!({"kind": "Pod", "metadata": {"namespace": "ns", "name": "q"}, "spec": {
            "nodeName": "a", "imagePullSecrets": [{"name": "pull"}]}}));
        nodes.remove("Pod", "ns", "p");
        let may = |name: &str| nodes.authorize(&ask(&a, "get", "secrets", "ns", name)) != Decision::NoOpinion;
        assert!(may("pull") && !may("key"));
        nodes.remove("Pod", "ns", "q");
        nodes.remove("PersistentVolume", "", "pv");
        nodes.remove("VolumeAttachment", "", "va");
        for (verb, resource, namespace, name) in REFERRED {
            assert_eq!(
                nodes.authorize(&ask(&a, verb, resource, namespace, name)),
                Decision::NoOpinion,
                "{resource} {name}"
            );
        }
        let graph = nodes.graph.read();
        assert!(graph.referrers.is_empty() && graph.volumes_by_secret.is_empty() && graph.pods.is_empty());
    }
}
