//! What other servers have to say in the OpenAPI v2 document.
//!
//! Unlike v3, which has a document for each group version, v2 is one document of everything. Servers are asked for theirs when
//! somebody wants the whole, and not more often than every minute; what cannot be had or used changes nothing, so a server that is
//! away for a while is described as before, as by kube-apiserver.

use super::Remote;
use super::reach::{By, fetch, get};
use crate::Server;
use edge_api::{GroupVersion, UserInfo};
use edge_schema::openapi::Foreign;
use futures::stream::{self, StreamExt};
use http::header::{ETAG, IF_NONE_MATCH};
use http::{HeaderValue, StatusCode};
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a document is believed to be what it was.
const FRESH: Duration = Duration::from_secs(60);
/// A document has at most so many bytes, and comes so soon, or is done without.
const LIMITS: (usize, Duration) = (8 << 20, Duration::from_secs(10));
/// So many documents are read at once: each takes memory while it is.
const AT_ONCE: usize = 4;

/// What is known of a server's document.
#[derive(Default)]
pub(super) struct Known {
    /// When it was asked for last.
    asked: Option<Instant>,
    etag: Option<HeaderValue>,
    part: Option<Part>,
}

/// What one server says of its group version.
#[derive(Clone)]
pub(crate) struct Part {
    /// The APIService.
    pub(crate) name: String,
    pub(crate) content: Arc<Foreign>,
    /// Since when it is this.
    pub(crate) since: Instant,
}

/// The parts of all other servers, in the order of their priorities.
pub(crate) async fn openapi_parts(server: &Server) -> Vec<Part> {
    let mut remotes = server.aggregation.remotes().to_vec();
    let order =
        |r: &Arc<Remote>| (Reverse(r.spec.group_priority_minimum), Reverse(r.spec.version_priority), r.spec.name());
    remotes.sort_by_cached_key(order);
    let parts = stream::iter(remotes).map(|remote| async move { part(server, &remote).await });
    parts.buffered(AT_ONCE).filter_map(std::future::ready).collect().await
}

async fn part(server: &Server, remote: &Remote) -> Option<Part> {
    let mut known = remote.openapi_v2.lock().await;
    let is_fresh = known.asked.is_some_and(|at| at.elapsed() < FRESH);
    if !is_fresh && remote.is_available() {
        if let Err(error) = ask(server, remote, &mut known).await {
            tracing::debug!(api_service = remote.spec.name(), error, "no OpenAPI v2 document");
        }
        known.asked = Some(Instant::now());
    }
    known.part.clone()
}

async fn ask(server: &Server, remote: &Remote, known: &mut Known) -> Result<(), String> {
    let user = UserInfo::new("system:aggregator", Vec::<String>::new());
    let mut request = get("/openapi/v2")?;
    if let Some(etag) = &known.etag {
        request.headers_mut().insert(IF_NONE_MATCH, etag.clone());
    }
    let answer = fetch(server, remote, &user, request, By::Kept, LIMITS).await?;
    match answer.status() {
        StatusCode::NOT_MODIFIED if known.etag.is_some() => return Ok(()),
        StatusCode::OK => {}
        other => return Err(format!("status {other}")),
    }
    let (head, body) = answer.into_parts();
    let gv = GroupVersion::new(&remote.spec.group, &remote.spec.version);
    // which takes its time
    let read = tokio::task::spawn_blocking(move || Foreign::read(&body, &gv)).await.map_err(|e| e.to_string())?;
    let content = read.map_err(|e| e.to_string())?;
    known.etag = head.headers.get(ETAG).cloned();
    if known.part.as_ref().is_none_or(|part| *part.content != content) {
        known.part = Some(Part { name: remote.spec.name(), content: Arc::new(content), since: Instant::now() });
    }
    Ok(())
}
