//! What the API knows of a node's drivers of volumes: the CSINode, and the node's annotation and labels.

use super::client::NodeInfo;
use crate::context::Context;
use edge_client::{
    Api, DeleteParams, Error, Patch, PatchParams, PostParams, Preconditions, is_already_exists, is_conflict,
    is_not_found,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// On a node: what its drivers call it, as JSON.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// Why a driver is not told of.
#[derive(Debug)]
pub(super) enum Refused {
    /// The node already is somewhere else.
    Collision(String),
    Api(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Api(error)
    }
}

/// How often it is tried at once to have a CSINode, while somebody else deletes the one before.
const ATTEMPTS: usize = 5;

/// The CSINode of this very node, which is made if there is none. That of a node of the same name that was deleted goes: the garbage collector
/// is about to delete it by its UID, whatever it says meanwhile.
pub(super) async fn own(cx: &Context, node: &Node) -> Result<CSINode, Error> {
    let (api, name): (Api<CSINode>, _) = (Api::all(cx.client.clone()), &cx.config.node_name);
    let metadata =
        ObjectMeta { name: Some(name.clone()), owner_references: Some(vec![owner(node)]), ..ObjectMeta::default() };
    let fresh = CSINode { metadata, spec: CSINodeSpec { drivers: Vec::new() } };
    for _ in 0..ATTEMPTS {
        let known = match api.get(name).await {
            Err(error) if is_not_found(&error) => match api.create(&PostParams::default(), &fresh).await {
                Err(error) if is_already_exists(&error) => continue,
                other => return other,
            },
            other => other?,
        };
        let owners = known.metadata.owner_references.as_deref().unwrap_or_default();
        let is_anothers = owners.iter().any(|o| o.kind == "Node" && Some(&o.uid) != node.metadata.uid.as_ref());
        if !is_anothers {
            return Ok(known);
        }
        let preconditions = Some(Preconditions { uid: known.metadata.uid, resource_version: None });
        match api.delete(name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => return Err(error),
            _ => {}
        }
    }
    api.create(&PostParams::default(), &fresh).await
}

fn owner(node: &Node) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    }
}

/// Tells of a driver.
pub(super) async fn add(cx: &Context, name: &str, info: &NodeInfo) -> Result<(), Refused> {
    let nodes: Api<Node> = Api::all(cx.client.clone());
    let node = nodes.get(&cx.config.node_name).await?;
    if let Some(change) = node_change(&node, name, Some(info)).map_err(Refused::Collision)? {
        nodes.patch(&cx.config.node_name, &PatchParams::default(), &Patch::Merge(change)).await?;
    }
    let allocatable = i32::try_from(info.max_volumes).unwrap_or(i32::MAX);
    let entry = CSINodeDriver {
        name: name.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: Some(info.topology.keys().cloned().collect()).filter(|keys: &Vec<_>| !keys.is_empty()),
        allocatable: (allocatable > 0).then_some(VolumeNodeResources { count: Some(allocatable) }),
    };
    Ok(put(cx, &node, name, Some(entry)).await?)
}

/// Tells that a driver has gone. Where the node is stays known, as in Kubernetes.
pub(super) async fn remove(cx: &Context, name: &str) -> Result<(), Error> {
    let nodes: Api<Node> = Api::all(cx.client.clone());
    let node = match nodes.get(&cx.config.node_name).await {
        Err(error) if is_not_found(&error) => return Ok(()),
        other => other?,
    };
    if let Ok(Some(change)) = node_change(&node, name, None) {
        nodes.patch(&cx.config.node_name, &PatchParams::default(), &Patch::Merge(change)).await?;
    }
    put(cx, &node, name, None).await
}

async fn put(cx: &Context, node: &Node, name: &str, entry: Option<CSINodeDriver>) -> Result<(), Error> {
    let api: Api<CSINode> = Api::all(cx.client.clone());
    let mut object = own(cx, node).await?;
    let others = object.spec.drivers.iter().filter(|known| known.name != name).cloned();
    let drivers: Vec<_> = others.chain(entry.clone()).collect();
    let same = match &entry {
        Some(entry) => object.spec.drivers.contains(entry),
        None => drivers.len() == object.spec.drivers.len(),
    };
    let owners = Some(vec![owner(node)]);
    if same && object.metadata.owner_references == owners {
        return Ok(());
    }
    object.metadata.owner_references = owners;
    object.spec.drivers = drivers;
    // with its resourceVersion: nobody else's change is lost
    api.replace(&cx.config.node_name, &PostParams::default(), &object).await.map(drop)
}

/// What is to change in the node's object, for a driver that has come or gone.
fn node_change(node: &Node, name: &str, info: Option<&NodeInfo>) -> Result<Option<Value>, String> {
    let annotation = node.metadata.annotations.as_ref().and_then(|a| a.get(NODE_IDS));
    let before: BTreeMap<String, String> =
        annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut ids = before.clone();
    let mut labels = BTreeMap::new();
    match info {
        Some(info) => {
            ids.insert(name.to_owned(), info.node_id.clone());
            let has = node.metadata.labels.clone().unwrap_or_default();
            for (key, value) in &info.topology {
                match has.get(key) {
                    Some(known) if known == value => {}
                    Some(known) => {
                        return Err(format!(
                            "detected topology value collision: driver reported {key:?}:{value:?} but existing label is {key:?}:{known:?}"
                        ));
                    }
                    None => drop(labels.insert(key, value)),
                }
            }
        }
        None => drop(ids.remove(name)),
    }
    if ids == before && labels.is_empty() {
        return Ok(None);
    }
    // plain data always serializes
    let text = (!ids.is_empty()).then(|| serde_json::to_string(&ids).unwrap_or_default());
    let metadata =
        json!({"resourceVersion": node.metadata.resource_version, "annotations": {NODE_IDS: text}, "labels": labels});
    Ok(Some(json!({ "metadata": metadata })))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn node(annotation: Value) -> Node {
        let metadata = json!({"name": "n", "labels": {"zone": "a"}, "annotations": {NODE_IDS: annotation}});
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn info(zone: &str) -> NodeInfo {
        NodeInfo {
            node_id: "id".into(),
            topology: BTreeMap::from([("zone".to_owned(), zone.to_owned()), ("rack".to_owned(), "r".to_owned())]),
            ..NodeInfo::default()
        }
    }

    #[test]
    fn a_node_learns_what_its_drivers_say() {
        let change = node_change(&node(json!(r#"{"other": "x"}"#)), "d", Some(&info("a"))).unwrap().unwrap();
        let metadata = &change["metadata"];
        assert_eq!(metadata["annotations"][NODE_IDS], r#"{"d":"id","other":"x"}"#);
        assert_eq!(metadata["labels"], json!({"rack": "r"}), "what it has already is left alone");
        let why = node_change(&node(json!("{}")), "d", Some(&info("b"))).unwrap_err();
        assert!(why.starts_with("detected topology value collision: driver reported \"zone\":\"b\""), "{why}");
    }

    #[test]
    fn a_driver_that_goes_takes_its_id_with_it() {
        let of = |annotation: Value| node_change(&node(annotation), "d", None).unwrap();
        assert_eq!(of(json!(r#"{"d":"id"}"#)).unwrap()["metadata"]["annotations"][NODE_IDS], Value::Null);
        assert_eq!(of(json!(r#"{"other":"id"}"#)), None);
        assert_eq!(of(json!("garbage")), None);
    }
}
