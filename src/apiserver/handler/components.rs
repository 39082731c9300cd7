//! `componentstatuses`: a view of the control plane that is stored nowhere.
//!
//! The store is asked, and the components that live in this process tell by themselves.

use super::{Context, shape};
use crate::body::Body;
use crate::encode;
use crate::negotiate::{MetaVersion, Shape};
use bytes::Bytes;
use edge_api::Status;
use edge_registry::columns;
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// The name under which users look for the store.
const STORE: &str = "etcd-0";

pub(super) async fn read(context: &Context<'_>) -> Result<Response<Body>, Status> {
    let name = context.info.name.as_str();
    let is_list = context.info.verb == "list";
    let mut objects = Vec::new();
    for component in &context.server.components {
        objects.push(status(component.name, (component.problem)()));
    }
    objects.push(status(STORE, context.server.registry.check_store().await.err()));
    objects.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    objects.retain(|o| name.is_empty() || name_of(o) == name);
    if !is_list && objects.is_empty() {
        return Err(Status::not_found(&context.row.group_resource(), name));
    }
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

fn name_of(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

fn status(name: &str, problem: Option<String>) -> Value {
    let condition = match problem {
        None => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Some(error) => json!({"type": "Healthy", "status": "False", "message": "", "error": error}),
    };
    json!({
        "apiVersion": "v1", "kind": "ComponentStatus",
        "metadata": {"name": name},
        "conditions": [condition],
    })
}

fn table(context: &Context<'_>, version: MetaVersion, metadata: &Value, objects: &[Value]) -> Bytes {
    let text = |o: &Value, pointer: &str| o.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let row = |o: &Value| {
        let healthy = text(o, "/conditions/0/status") == "True";
        let status = if healthy { "Healthy" } else { "Unhealthy" };
        let name = name_of(o);
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
