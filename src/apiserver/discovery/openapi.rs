//! `/openapi/v2` and `/openapi/v3`: written when somebody asks, and not kept.

use super::Row;
use super::serve::with_etag;
use crate::Server;
use crate::aggregation::{openapi_parts, openapi_versions};
use crate::body::Body;
use crate::query::Query;
use bytes::Bytes;
use edge_api::{GroupVersion, GroupVersionKind, Status};
use edge_schema::Schema;
use edge_schema::openapi::{self, ApiResourceInfo, Document, Foreign};
use http::header::{ACCEPT, CACHE_CONTROL, HeaderValue};
use http::{HeaderMap, Response};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

/// How clients of old ask for the protobuf form. It is no valid media type, so it is never answered with.
const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// How long a document may be kept whose URL names its content.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// The rows as the schema room takes them.
fn resources(rows: &[Row]) -> Vec<ApiResourceInfo<'_>> {
    let schema = Schema::builtin();
    let mut out = Vec::new();
    for r in rows {
        let own = ApiResourceInfo {
            group: &r.group,
            version: &r.version,
            plural: &r.plural,
            subresource: None,
            namespaced: r.namespaced,
            verbs: &r.verbs,
            kind: GroupVersionKind::new(&r.group, &r.version, &r.kind),
            schema,
            published: r.schema.of().map(|custom| custom as &dyn openapi::Published),
        };
        for s in &r.subresources {
            out.push(ApiResourceInfo {
                subresource: Some(&s.name),
                verbs: &s.verbs,
                kind: GroupVersionKind::new(&s.group, &s.version, &s.kind),
                published: own.published.filter(|_| s.kind == r.kind),
                ..own.clone()
            });
        }
        out.push(own);
    }
    out
}

/// Writing a document takes milliseconds, so it is done beside the async threads.
async fn write(
    server: &Server,
    rows: Rows,
    make: impl FnOnce(&[ApiResourceInfo<'_>], &str) -> Document + Send + 'static,
) -> Result<Bytes, Status> {
    let version = server.options.git_version.clone();
    let work = move || make(&resources(&rows), &version).body;
    tokio::task::spawn_blocking(work).await.map(Bytes::from).map_err(Status::internal)
}

pub(super) async fn v2(server: &Server, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let protobuf = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|r| r.split(';').next().unwrap_or_default().trim())
        .find_map(|kind| match kind {
            V2_PROTOBUF_ASKED | openapi::V2_PROTOBUF => Some(true),
            "application/json" | "*/*" => Some(false),
            _ => None,
        })
        .unwrap_or(false);
    let parts = openapi_parts(server).await;
    let begun = Instant::now();
    let contents: Vec<Arc<Foreign>> = parts.iter().map(|part| part.content.clone()).collect();
    let make = move |resources: &[ApiResourceInfo<'_>], version: &str| {
        let others: Vec<&Foreign> = contents.iter().map(|content| &**content).collect();
        let make = if protobuf { openapi::v2_protobuf } else { openapi::v2_json };
        make(resources, &others, version)
    };
    // without the rows that others answer for
    let bytes = write(server, server.offer().rows, make).await?;
    server.aggregation.metrics.merged(&parts, begun.elapsed());
    Ok(with_etag(headers, if protobuf { openapi::V2_PROTOBUF } else { "application/json" }, bytes).await)
}

/// The group versions with a hash of what their documents are made from.
fn documents(rows: &[Row], version: &str) -> Vec<(GroupVersion, String)> {
    let mut out: Vec<(GroupVersion, DefaultHasher)> = Vec::new();
    for r in rows {
        let gv = GroupVersion::new(&r.group, &r.version);
        let at = out.iter().position(|(other, _)| *other == gv).unwrap_or_else(|| {
            let mut hasher = DefaultHasher::new();
            version.hash(&mut hasher);
            out.push((gv, hasher));
            out.len() - 1
        });
        r.hash(&mut out[at].1);
    }
    out.into_iter().map(|(gv, hasher)| (gv, format!("{:016X}", hasher.finish()))).collect()
}

pub(super) async fn v3_index(server: &Server, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let mut documents = documents(&server.rows(), &server.options.git_version);
    let remotes = server.aggregation.remotes();
    documents.retain(|(gv, _)| !remotes.iter().any(|r| r.spec.version == gv.version && r.spec.group == gv.group));
    documents.extend(openapi_versions(server).await);
    let index = openapi::v3_index(documents.iter().map(|(gv, hash)| (gv, hash.as_str())));
    Ok(with_etag(headers, "application/json", index.body.into()).await)
}

/// `path` is `api/v1` or `apis/<group>/<version>`.
pub(super) async fn v3(
    server: &Server,
    path: &str,
    headers: &HeaderMap,
    query: &Query<'_>,
) -> Result<Response<Body>, Status> {
    let parts: Vec<&str> = path.split('/').collect();
    let gv = match *parts.as_slice() {
        ["api", version] => GroupVersion::new("", version),
        ["apis", group, version] => GroupVersion::new(group, version),
        _ => return Err(Status::unknown_path()),
    };
    let documents = documents(&server.rows(), &server.options.git_version);
    let (gv, hash) = documents.into_iter().find(|(other, _)| *other == gv).ok_or_else(Status::unknown_path)?;
    let make = move |resources: &[ApiResourceInfo<'_>], version: &str| openapi::v3_document(&gv, resources, version);
    let bytes = write(server, server.rows(), make).await?;
    let mut response = with_etag(headers, "application/json", bytes).await;
    if query.get("hash") == Some(&hash) {
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(IMMUTABLE));
    }
    Ok(response)
}

/// The rows are shared with the thread that writes.
pub(crate) type Rows = Arc<[Row]>;
