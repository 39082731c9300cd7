//! Get and list.

use super::Context;
use super::shape;
use crate::body::Body;
use crate::encode;
use crate::negotiate::Shape;
use bytes::Bytes;
use edge_api::Status;
use edge_registry::options::VersionMatch;
use edge_registry::{List, ListOptions, ResourceInfo, Stored, columns};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

pub(super) async fn get(context: &Context<'_>) -> Result<Response<Body>, Status> {
    let version = context.query.get("resourceVersion").unwrap_or_default();
    let stored = context.server.registry.get_at(&context.target(), version).await?;
    object(context, StatusCode::OK, &stored).await
}

/// Answers with one object in the shape asked for.
pub(super) async fn object(context: &Context<'_>, code: StatusCode, stored: &Stored) -> Result<Response<Body>, Status> {
    let bytes = match context.accepted.shape {
        Shape::Object => served(context.row, &context.info.subresource, stored)?,
        Shape::Metadata(version) | Shape::MetadataList(version) => shape::metadata_only(version, stored.bytes())?,
        Shape::Table(version) => {
            let include = shape::include_object(context.query.get("includeObject"))?;
            let metadata = json!({"resourceVersion": stored.resource_version().to_string()});
            let rows = columns::rows(context.row, std::slice::from_ref(stored), include);
            shape::table(version, &metadata, Some(&columns::definitions(context.row)), rows)
        }
    };
    Ok(encode::respond(&context.accepted, code, bytes).await)
}

/// An object's JSON in the version that the row serves. Only rows that are stored in another version are rebuilt.
pub(super) fn served(row: &ResourceInfo, subresource: &str, stored: &Stored) -> Result<Bytes, Status> {
    match row.conversion {
        Some(conversion) if subresource != "scale" => {
            let mut object = stored.object()?;
            (conversion.from_stored)(&mut object);
            Ok(object.to_json().into())
        }
        _ => Ok(stored.bytes().clone()),
    }
}

pub(super) async fn list(context: &Context<'_>) -> Result<Response<Body>, Status> {
    let options = list_options(context)?;
    let list = context.server.registry.list(&context.target(), &options).await?;
    let bytes = list_bytes(context, &list)?;
    Ok(encode::respond(&context.accepted, StatusCode::OK, bytes).await)
}

/// A list in the shape asked for.
pub(super) fn list_bytes(context: &Context<'_>, list: &List) -> Result<Bytes, Status> {
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
        Shape::Object if row.conversion.is_none() => {
            Ok(shape::list(&row.api_version(), &row.list_kind, &metadata, list.items.iter().map(Stored::bytes)))
        }
        Shape::Object => {
            let items: Result<Vec<Bytes>, Status> = list.items.iter().map(|s| served(row, "", s)).collect();
            Ok(shape::list(&row.api_version(), &row.list_kind, &metadata, items?.iter()))
        }
        Shape::Metadata(version) | Shape::MetadataList(version) => {
            let items: Result<Vec<Bytes>, Status> =
                list.items.iter().map(|s| shape::metadata_only(version, s.bytes())).collect();
            Ok(shape::list(version.api_version(), "PartialObjectMetadataList", &metadata, items?.iter()))
        }
        Shape::Table(version) => {
            let include = shape::include_object(context.query.get("includeObject"))?;
            let rows = columns::rows(row, &list.items, include);
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
