//! `NodeRestriction`: a node writes its own objects and the status of its own pods, and cannot label itself into places
//! where others expect trusted nodes.

use super::{AttributesExt, Cluster, certificates};
use edge_api::names::is_node_own_label;
use edge_api::{Object, Status};
use edge_auth::node_of;
use edge_registry::{Attributes, Operation};
use serde_json::Value;

const MIRROR: &str = "kubernetes.io/config.mirror";
const LEASES: &str = "kube-node-lease";
pub(super) fn validate(cluster: &dyn Cluster, a: &Attributes<'_>, object: Option<&Object>) -> Result<(), Status> {
    let Some(node) = node_of(a.user) else { return Ok(()) };
    let refuse = |why: String| Err(a.forbidden(object.or(a.old), &why));
    let of = |o: &Object| if a.name.is_empty() { o.name().to_owned() } else { a.name.to_owned() };
    let name = object.or(a.old).map(of).unwrap_or_default();
    match (a.info.group.as_ref(), a.info.plural.as_ref(), a.subresource) {
        ("", "pods", "") => match (a.operation, object) {
            (Operation::Create, Some(pod)) => mirror_pod(node, pod).or_else(|why| refuse(why.to_owned())),
            (Operation::Delete, _) if a.old.is_none_or(|p| runs_at(p, node)) => Ok(()),
            (Operation::Delete, _) => {
                refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
            }
            _ => refuse(format!("unexpected operation on pods by node {node:?}")),
        },
        ("", "pods", "status") => {
            let Some(old) = a.old else { return Ok(()) };
            if !runs_at(old, node) {
                return refuse(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            let labels = |o: &Object| o.metadata().and_then(|m| m.get("labels")).cloned().filter(|l| *l != Value::Null);
            if object.is_some_and(|new| labels(new) != labels(old)) {
                return refuse(format!("node {node:?} cannot update labels through pod status"));
            }
            Ok(())
        }
        ("", "pods", "eviction") => match cluster.get("", "pods", a.namespace, a.name) {
            Some(pod) if !runs_at(&pod, node) => {
                refuse(format!("node {node:?} can only evict pods with spec.nodeName set to itself"))
            }
            _ => Ok(()),
        },
        ("", "nodes", _) => {
            if name != node {
                return refuse(format!("node {node:?} is not allowed to modify node {name:?}"));
            }
            object.map_or(Ok(()), |new| own_node(a, node, new).or_else(refuse))
        }
        ("coordination.k8s.io", "leases", _) if a.namespace != LEASES || name != node => {
            refuse(format!("can only access node lease with the same name as the requesting node {node:?}"))
        }
        ("storage.k8s.io", "csinodes", _) if name != node => {
            refuse(format!("can only access CSINode with the same name as the requesting node {node:?}"))
        }
        ("resource.k8s.io", "resourceslices", _) => {
            let its = object.or(a.old).map(|o| o.str_at("/spec/nodeName").to_owned()).unwrap_or_default();
            if its == node { Ok(()) } else { refuse("can only modify ResourceSlices of its own node".to_owned()) }
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") if a.operation == Operation::Create => {
            let Some(request) = object else { return Ok(()) };
            let signer = request.str_at("/spec/signerName");
            let is_nodes =
                matches!(signer, "kubernetes.io/kube-apiserver-client-kubelet" | "kubernetes.io/kubelet-serving");
            let its = certificates::facts(request).is_ok_and(|f| f.common_name == a.user.username);
            if is_nodes && !its {
                return refuse(format!("can only create a node CSR with CN={}", a.user.username));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn runs_at(pod: &Object, node: &str) -> bool {
    pod.str_at("/spec/nodeName") == node
}

/// What a node may create: the image of a pod that it runs anyway, which refers to nothing in the cluster.
fn mirror_pod(node: &str, pod: &Object) -> Result<(), &'static str> {
    if pod.annotation(MIRROR).is_none() {
        return Err("pod does not have \"kubernetes.io/config.mirror\" annotation, nodes can only create mirror pods");
    }
    if !runs_at(pod, node) {
        return Err("nodes can only create pods with spec.nodeName set to themselves");
    }
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
    let refers = |v: &Value| {
        ["secret", "configMap", "persistentVolumeClaim", "projected", "ephemeral"].iter().any(|k| !v[*k].is_null())
    };
    if !pod.str_at("/spec/serviceAccountName").is_empty() || volumes.is_some_and(|v| v.iter().any(refers)) {
        return Err("nodes can not create pods that reference service accounts, secrets, configmaps or claims");
    }
    Ok(())
}

fn own_node(a: &Attributes<'_>, node: &str, new: &Object) -> Result<(), String> {
    let labels = |o: &Object| -> Vec<(String, Value)> {
        let map = o.metadata().and_then(|m| m.get("labels")).and_then(Value::as_object);
        map.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let (before, after) = (a.old.map(labels).unwrap_or_default(), labels(new));
    let only_in = |a: &[(String, Value)], b: &[(String, Value)]| -> Vec<String> {
        a.iter().filter(|e| !b.contains(e)).map(|(k, _)| k.clone()).collect()
    };
    let mut changed = only_in(&before, &after);
    changed.extend(only_in(&after, &before));
    changed.sort();
    changed.dedup();
    changed.retain(|key| !is_node_own_label(key));
    if !changed.is_empty() {
        return Err(format!("is not allowed to modify labels: {}", changed.join(", ")));
    }
    if let Some(old) = a.old {
        let taints = |o: &Object| o.pointer("/spec/taints").cloned().filter(|t| !t.is_null());
        if taints(old) != taints(new) {
            return Err(format!("node {node:?} is not allowed to modify taints"));
        }
        let owners = |o: &Object| o.metadata().and_then(|m| m.get("ownerReferences")).cloned();
        if owners(old) != owners(new) {
            return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, POD, attributes};
    use super::*;
    use edge_api::UserInfo;
    use edge_auth::NODES;
    use serde_json::json;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    fn judge(
        operation: Operation,
        resource: (&str, &str, &str),
        subresource: &str,
        (namespace, name): (&str, &str),
        old: Option<Value>,
        new: Option<Value>,
    ) -> Result<(), String> {
        let user = UserInfo::new("system:node:a", [NODES]);
        let (old, new) = (old.map(object), new.map(object));
        attributes(operation, resource, namespace, name, |a| {
            let a = Attributes { user: &user, subresource, old: old.as_ref(), ..*a };
            validate(&Fake::default(), &a, new.as_ref()).map_err(|s| s.message)
        })
    }

    const NODE: (&str, &str, &str) = ("", "nodes", "Node");

    #[test]
    fn a_node_writes_itself_only() {
        let node = |labels: Value, taints: Value| json!({"metadata": {"name": "a", "labels": labels}, "spec": {"taints": taints}});
        let plain = node(json!({"x": "y", "kubernetes.io/hostname": "a"}), json!([]));
        judge(Operation::Create, NODE, "", ("", ""), None, Some(plain.clone())).unwrap();
        let other = json!({"metadata": {"name": "b"}});
        assert!(judge(Operation::Create, NODE, "", ("", ""), None, Some(other)).is_err());
        assert!(judge(Operation::Delete, NODE, "", ("", "b"), Some(json!({"metadata": {"name": "b"}})), None).is_err());
        for label in ["node-role.kubernetes.io/control-plane", "x.node-restriction.kubernetes.io/y", "foo.k8s.io/z"] {
            let mut labels = json!({"x": "y", "kubernetes.io/hostname": "a"});
            labels[label] = "true".into();
            let labelled = node(labels, json!([]));
            let why = judge(Operation::Update, NODE, "", ("", "a"), Some(plain.clone()), Some(labelled.clone()));
            assert!(why.unwrap_err().contains(label));
            // what somebody else has put there does no harm
            judge(Operation::Update, NODE, "status", ("", "a"), Some(labelled.clone()), Some(labelled)).unwrap();
        }
        let tainted = node(json!({"x": "y", "kubernetes.io/hostname": "a"}), json!([{"key": "k"}]));
        assert!(judge(Operation::Update, NODE, "", ("", "a"), Some(tainted), Some(plain)).is_err());
    }

    #[test]
    fn a_node_touches_its_own_pods_only() {
        let pod = |node: &str| json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"nodeName": node}});
        let (mine, theirs) = (pod("a"), pod("b"));
        let at = ("ns", "p");
        judge(Operation::Update, POD, "status", at, Some(mine.clone()), Some(mine.clone())).unwrap();
        assert!(judge(Operation::Update, POD, "status", at, Some(theirs.clone()), Some(theirs.clone())).is_err());
        let relabelled = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a"}});
        assert!(judge(Operation::Update, POD, "status", at, Some(mine.clone()), Some(relabelled)).is_err());
        judge(Operation::Delete, POD, "", at, Some(mine.clone()), None).unwrap();
        assert!(judge(Operation::Delete, POD, "", at, Some(theirs), None).is_err());
        assert!(judge(Operation::Create, POD, "", ("ns", ""), None, Some(mine.clone())).is_err());
        assert!(judge(Operation::Update, POD, "", at, Some(mine.clone()), Some(mine)).is_err());
    }

    #[test]
    fn leases_of_others_are_out_of_reach() {
        const LEASE: (&str, &str, &str) = ("coordination.k8s.io", "leases", "Lease");
        let lease = |name: &str| Some(json!({"metadata": {"name": name}}));
        judge(Operation::Create, LEASE, "", (LEASES, ""), None, lease("a")).unwrap();
        assert!(judge(Operation::Create, LEASE, "", (LEASES, ""), None, lease("b")).is_err());
        assert!(judge(Operation::Update, LEASE, "", ("ns", "a"), lease("a"), lease("a")).is_err());
    }
}
