//! Get and list.

use super::Context;
use super::shape;
use crate::Server;
use crate::body::Body;
use crate::encode;
use crate::negotiate::Shape;
use bytes::Bytes;
use edge_api::Status;
use edge_registry::options::VersionMatch;
use edge_registry::{List, ListOptions, ResourceInfo, Stored, columns};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

pub(super) async fn get(context: &Context<'_>) -> Result<Response<Body>, Status> {
    let version = context.query.get("resourceVersion").unwrap_or_default();
    let stored = context.server.registry.get_at(&context.target(), version).await?;
    object(context, StatusCode::OK, &stored).await
}

/// Answers with one object in the shape asked for.
pub(super) async fn object(context: &Context<'_>, code: StatusCode, stored: &Stored) -> Result<Response<Body>, Status> {
    let bytes = match context.accepted.shape {
        Shape::Object => served(context, stored).await?,
        Shape::Metadata(version) | Shape::MetadataList(version) => shape::metadata_only(version, stored.bytes())?,
        Shape::Table(version) => {
            let include = shape::include_object(context.query.get("includeObject"))?;
            let metadata = json!({"resourceVersion": stored.resource_version().to_string()});
            let shown = for_table(context.server, context.row, std::slice::from_ref(stored)).await?;
            let rows = columns::rows(context.row, &shown, include);
            shape::table(version, &metadata, Some(&columns::definitions(context.row)), rows)
        }
    };
    Ok(encode::respond(&context.accepted, code, bytes).await)
}

/// An object's JSON in the version that the row serves. Only what is stored in another version is rebuilt.
async fn served(context: &Context<'_>, stored: &Stored) -> Result<Bytes, Status> {
    if context.info.subresource == "scale" {
        return Ok(stored.bytes().clone());
    }
    let items = context.server.registry.in_version(context.row, std::slice::from_ref(stored)).await?;
    Ok(items.first().unwrap_or(stored).bytes().clone())
}

/// Objects as their table's columns take them: those of custom resources in the served version, others as they are stored.
pub(super) async fn for_table<'s>(
    server: &Server,
    row: &ResourceInfo,
    items: &'s [Stored],
) -> Result<Cow<'s, [Stored]>, Status> {
    match row.custom {
        Some(_) => server.registry.in_version(row, items).await,
        None => Ok(Cow::Borrowed(items)),
    }
}

pub(super) async fn list(context: &Context<'_>) -> Result<Response<Body>, Status> {
    let options = list_options(context)?;
    let list = context.server.registry.list(&context.target(), &options).await?;
    let bytes = list_bytes(context, &list).await?;
    Ok(encode::respond(&context.accepted, StatusCode::OK, bytes).await)
}

/// A list in the shape asked for.
pub(super) async fn list_bytes(context: &Context<'_>, list: &List) -> Result<Bytes, Status> {
    let row = context.row;
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), list.resource_version.to_string().into());
    if !list.continue_token.is_empty() {
        metadata.insert("continue".into(), list.continue_token.as_str().into());
    }
    if let Some(n) = list.remaining.filter(|n| *n > 0) {
        metadata.insert("remainingItemCount".into(), n.into());
    }
    let metadata = Value::Object(metadata);
    match context.accepted.shape {
        Shape::Object => {
            let items = context.server.registry.in_version(row, &list.items).await?;
            Ok(shape::list(&row.api_version(), &row.list_kind, &metadata, items.iter().map(Stored::bytes)))
        }
        Shape::Metadata(version) | Shape::MetadataList(version) => {
            let items: Result<Vec<Bytes>, Status> =
                list.items.iter().map(|s| shape::metadata_only(version, s.bytes())).collect();
            Ok(shape::list(version.api_version(), "PartialObjectMetadataList", &metadata, items?.iter()))
        }
        Shape::Table(version) => {
            let include = shape::include_object(context.query.get("includeObject"))?;
            let shown = for_table(context.server, row, &list.items).await?;
            let rows = columns::rows(row, &shown, include);
            Ok(shape::table(version, &metadata, Some(&columns::definitions(row)), rows))
        }
    }
}

/// The options of a list (or of the selection of a collection's deletion).
///
/// # Errors
/// 400 for what cannot be read.
pub(super) fn list_options(context: &Context<'_>) -> Result<ListOptions, Status> {
    let q = context.query;
    let version_match = match q.get("resourceVersionMatch") {
        None | Some("") => None,
        Some("NotOlderThan") => Some(VersionMatch::NotOlderThan),
        Some("Exact") => Some(VersionMatch::Exact),
        Some(other) => {
            return Err(Status::bad_request(format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
            )));
        }
    };
    Ok(ListOptions {
        labels: q.label_selector()?,
        fields: q.field_selector()?,
        limit: q.int("limit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
        continue_token: q.get("continue").unwrap_or_default().to_owned(),
        resource_version: q.get("resourceVersion").unwrap_or_default().to_owned(),
        version_match,
    })
}
