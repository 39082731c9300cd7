//! `componentstatuses`: a view of the control plane that is stored nowhere.
//!
//! All components live in this process, so whoever can ask finds those that the server has started with healthy.

use super::{Context, shape};
use crate::body::Body;
use crate::encode;
use crate::negotiate::{MetaVersion, Shape};
use bytes::Bytes;
use edge_api::Status;
use edge_registry::columns;
use http::{Response, StatusCode};
use serde_json::{Value, json};

const NAMES: [&str; 3] = ["controller-manager", "etcd-0", "scheduler"];

pub(super) async fn read(context: &Context<'_>) -> Result<Response<Body>, Status> {
    let name = context.info.name.as_str();
    let is_list = context.info.verb == "list";
    if !is_list && !NAMES.contains(&name) {
        return Err(Status::not_found(&context.row.group_resource(), name));
    }
    let selected: Vec<&str> = NAMES.into_iter().filter(|n| name.is_empty() || *n == name).collect();
    let objects: Vec<Value> = selected.iter().map(|n| component(n, context.server.is_ready())).collect();
    let metadata = json!({"resourceVersion": context.server.registry.revision().to_string()});
    let bytes: Vec<Bytes> = objects.iter().map(|o| Bytes::from(o.to_string())).collect();
    let answer = match (context.accepted.shape, bytes.as_slice()) {
        (Shape::Table(version), _) => table(context, version, &metadata, &objects),
        (Shape::Metadata(version) | Shape::MetadataList(version), _) => {
            let items: Result<Vec<Bytes>, Status> = bytes.iter().map(|b| shape::metadata_only(version, b)).collect();
            let items = items?;
            match items.as_slice() {
                [one] if !is_list => one.clone(),
                _ => shape::list(version.api_version(), "PartialObjectMetadataList", &metadata, items.iter()),
            }
        }
        (Shape::Object, [one]) if !is_list => one.clone(),
        (Shape::Object, _) => shape::list("v1", "ComponentStatusList", &metadata, bytes.iter()),
    };
    Ok(encode::respond(&context.accepted, StatusCode::OK, answer).await)
}

fn component(name: &str, well: bool) -> Value {
    let condition = if well {
        json!({"type": "Healthy", "status": "True", "message": "ok"})
    } else {
        json!({"type": "Healthy", "status": "False", "message": "", "error": "the server is starting"})
    };
    json!({
        "apiVersion": "v1", "kind": "ComponentStatus",
        "metadata": {"name": name, "creationTimestamp": null},
        "conditions": [condition],
    })
}

fn table(context: &Context<'_>, version: MetaVersion, metadata: &Value, objects: &[Value]) -> Bytes {
    let text = |o: &Value, pointer: &str| o.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let row = |o: &Value| {
        let healthy = text(o, "/conditions/0/status") == "True";
        let status = if healthy { "Healthy" } else { "Unhealthy" };
        let name = text(o, "/metadata/name");
        json!({
            "cells": [name, status, text(o, "/conditions/0/message"), text(o, "/conditions/0/error")],
            "object": {
                "kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": {"name": name},
            },
        })
    };
    let definitions = columns::definitions(context.row);
    shape::table(version, metadata, Some(&definitions), objects.iter().map(row).collect())
}
