//! `metrics.k8s.io`: what nodes and pods use, as metrics-server tells it.

use super::{Context, computed, read, shape};
use crate::body::Body;
use crate::usage::{Rate, View};
use edge_api::{Object, Quantity, Status, duration, meta};
use edge_registry::{ListOptions, Target, columns};
use http::Response;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Answers a get or list of either resource.
///
/// # Errors
/// 404 for a node or pod that there is not, or of which nothing is known; 400 for what cannot be read.
pub(super) async fn read(context: &Context<'_>) -> Result<Response<Body>, Status> {
    let include = shape::include_object(context.query.get("includeObject"))?;
    let whose = subjects(context).await?;
    let is_node = context.row.plural == "nodes";
    let nodes = whose.iter().map(|o| if is_node { o.name() } else { o.str_at("/spec/nodeName") });
    let views = context.server.usage.ask(context.server.as_ref(), nodes).await;
    let describe = |o: &Object| if is_node { of_node(o, &views) } else { of_pod(o, &views) };
    let objects: Vec<Value> = whose.iter().filter_map(describe).collect();
    if objects.is_empty() && context.info.verb != "list" {
        let (namespace, name) = (context.info.namespace.as_str(), context.info.name.as_str());
        let name = if is_node { name.to_owned() } else { format!("{namespace}/{name}") };
        return Err(Status::not_found(&context.row.group_resource(), &name));
    }
    computed::answer(context, objects, |_, objects| {
        let objects = objects.into_iter().filter_map(|o| Object::from_value(o).ok()).collect();
        Ok(columns::rows_of_objects(context.row, objects, include))
    })
    .await
}

/// The nodes or pods that are asked about.
async fn subjects(context: &Context<'_>) -> Result<Vec<Object>, Status> {
    let catalog = context.server.registry.catalog();
    let Some(core) = catalog.preferred("", &context.row.plural) else { return Ok(Vec::new()) };
    let mut target = Target { info: &core, ..context.target() };
    if context.info.verb != "list" {
        return Ok(vec![context.server.registry.get(&target)?.object()?]);
    }
    target.name = "";
    let asked = read::list_options(context)?;
    // they are never too many for one page, and have no past
    let options = ListOptions { labels: asked.labels, fields: asked.fields, ..ListOptions::default() };
    let list = context.server.registry.list(&target, &options).await?;
    list.items.iter().map(edge_registry::Stored::object).collect()
}

fn of_node(node: &Object, views: &HashMap<String, View>) -> Option<Value> {
    let rate = views.get(node.name())?.node()?;
    let mut value = head(node, "NodeMetrics", &rate);
    value["usage"] = usage(&rate);
    Some(value)
}

/// Nothing of a pod one of whose containers has only begun: half of it would look like little.
fn of_pod(pod: &Object, views: &HashMap<String, View>) -> Option<Value> {
    let rates = views.get(pod.str_at("/spec/nodeName"))?.pod(pod.namespace(), pod.name())?;
    let (_, oldest) = rates.iter().min_by_key(|(_, rate)| rate.at)?;
    let mut value = head(pod, "PodMetrics", oldest);
    let containers = rates.iter().map(|(name, rate)| json!({"name": name, "usage": usage(rate)}));
    value["containers"] = containers.collect();
    Some(value)
}

fn head(whose: &Object, kind: &str, rate: &Rate) -> Value {
    let mut metadata = Map::from_iter([("name".to_owned(), whose.name().into())]);
    if !whose.namespace().is_empty() {
        metadata.insert("namespace".into(), whose.namespace().into());
    }
    metadata.insert("creationTimestamp".into(), meta::now().into());
    if let Some(labels) = whose.metadata().and_then(|m| m.get("labels")) {
        metadata.insert("labels".into(), labels.clone());
    }
    let at = Timestamp::from_nanosecond(rate.at.into()).unwrap_or_default();
    json!({
        "apiVersion": "metrics.k8s.io/v1beta1", "kind": kind, "metadata": metadata,
        "timestamp": meta::time(at), "window": duration::format(rate.window / 1_000_000 * 1_000_000),
    })
}

fn usage(rate: &Rate) -> Value {
    json!({
        "cpu": Quantity::from_nanos(rate.cpu).to_string(),
        "memory": Quantity::from_bytes(rate.memory).to_string(),
    })
}
