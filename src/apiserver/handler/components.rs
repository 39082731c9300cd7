//! `componentstatuses`: a view of the control plane that is stored nowhere.
//!
//! The store is asked, and the components that live in this process tell by themselves.

use super::{Context, computed};
use crate::body::Body;
use crate::negotiate::MetaVersion;
use edge_api::Status;
use http::Response;
use serde_json::{Value, json};

/// The name under which users look for the store.
const STORE: &str = "etcd-0";

pub(super) async fn read(context: &Context<'_>) -> Result<Response<Body>, Status> {
    let name = context.info.name.as_str();
    let mut objects = Vec::new();
    for component in &context.server.components {
        objects.push(status(component.name, (component.problem)()));
    }
    objects.push(status(STORE, context.server.registry.check_store().await.err()));
    objects.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    objects.retain(|o| name.is_empty() || name_of(o) == name);
    computed::answer(context, objects, |version, objects| Ok(objects.iter().map(|o| row(version, o)).collect())).await
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

fn row(version: MetaVersion, object: &Value) -> Value {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let status = if text("/conditions/0/status") == "True" { "Healthy" } else { "Unhealthy" };
    let name = name_of(object);
    json!({
        "cells": [name, status, text("/conditions/0/message"), text("/conditions/0/error")],
        "object": {"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": {"name": name}},
    })
}
