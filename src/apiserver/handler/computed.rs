//! Answers with objects that are stored nowhere.

use super::{Context, shape};
use crate::body::Body;
use crate::encode;
use crate::negotiate::{MetaVersion, Shape};
use bytes::Bytes;
use edge_api::Status;
use edge_registry::columns;
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// Answers a get or list with these objects, which are whole; `rows` makes the rows of their table.
///
/// # Errors
/// 404 when one was asked for and there is none.
pub(super) async fn answer(
    context: &Context<'_>,
    objects: Vec<Value>,
    rows: impl FnOnce(MetaVersion, Vec<Value>) -> Result<Vec<Value>, Status>,
) -> Result<Response<Body>, Status> {
    let is_list = context.info.verb == "list";
    if !is_list && objects.is_empty() {
        return Err(Status::not_found(&context.row.group_resource(), &context.info.name));
    }
    let metadata = json!({"resourceVersion": context.server.registry.revision().to_string()});
    let bytes = || objects.iter().map(|o| Bytes::from(o.to_string())).collect::<Vec<Bytes>>();
    let answer = match context.accepted.shape {
        Shape::Table(version) => {
            let definitions = columns::definitions(context.row);
            shape::table(version, &metadata, Some(&definitions), rows(version, objects)?)
        }
        Shape::Metadata(version) | Shape::MetadataList(version) => {
            let items: Result<Vec<Bytes>, Status> = bytes().iter().map(|b| shape::metadata_only(version, b)).collect();
            let items = items?;
            match items.as_slice() {
                [one] if !is_list => one.clone(),
                _ => shape::list(version.api_version(), "PartialObjectMetadataList", &metadata, items.iter()),
            }
        }
        Shape::Object => match bytes().as_slice() {
            [one] if !is_list => one.clone(),
            all => shape::list(&context.row.api_version(), &context.row.list_kind, &metadata, all.iter()),
        },
    };
    Ok(encode::respond(&context.accepted, StatusCode::OK, answer).await)
}
