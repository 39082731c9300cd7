//! Watches: a stream of events until the client, the time-out or the server ends it.

use super::{Context, read, shape};
use crate::Server;
use crate::body::{Body, BoxError};
use crate::encode;
use crate::negotiate::{Encoding, MetaVersion, Shape};
use bytes::Bytes;
use edge_api::{Reason, Status};
use edge_registry::columns::{self, IncludeObject};
use edge_registry::{EventKind, ResourceInfo, Stored, Target, WatchEvent, WatchOptions};
use futures::stream::{self, Stream, StreamExt};
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

/// A watch without `timeoutSeconds` lasts between this and twice as long, so that clients do not all come back at once
/// (kube-apiserver's value).
const LEAST_SECONDS: u64 = 1800;

pub(super) async fn watch(context: &Context<'_>) -> Result<Response<Body>, Status> {
    let q = context.query;
    let encoding = context.accepted.encoding;
    let media_type = encoding.watch_media_type().ok_or_else(|| {
        Status::not_acceptable("only the following media types are accepted: application/json;stream=watch")
    })?;
    let options = WatchOptions {
        labels: q.label_selector()?,
        fields: q.field_selector()?,
        resource_version: q.get("resourceVersion").unwrap_or_default().to_owned(),
        bookmarks: q.flag("allowWatchBookmarks"),
        send_initial_events: q.optional_flag("sendInitialEvents"),
    };
    let framer = Framer {
        encoding,
        shape: context.accepted.shape,
        include: shape::include_object(q.get("includeObject"))?,
        server: context.server.clone(),
        row: context.row.clone(),
        definitions_sent: false,
    };
    let timeout = timeout(q.int("timeoutSeconds")?);
    // the name in a field selector has only told the authorizer what is watched; one in the path selects
    let name = if context.info.verb_in_path { context.info.name.as_str() } else { "" };
    let target = Target { name, ..context.target() };
    let events = match context.server.registry.watch(&target, &options).await {
        // as in Kubernetes, whose clients list anew only when the stream says so
        Err(status) if status.reason == Reason::Expired => {
            let frame = stream::iter([framer.error(&status).map(Frame::data)]);
            return Ok(respond(media_type, frame));
        }
        other => other?,
    };
    let stop = context.server.shutdown.clone().cancelled_owned();
    let ended = async move {
        tokio::select! {
            () = tokio::time::sleep(timeout) => {}
            () = stop => {}
        }
    };
    Ok(respond(media_type, framer.frames(events).take_until(Box::pin(ended))))
}

fn respond<S>(media_type: &'static str, frames: S) -> Response<Body>
where
    S: Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static,
{
    let mut response = Response::new(Body::stream(StreamBody::new(frames)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn timeout(asked: Option<i64>) -> Duration {
    match asked.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0) {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::from_secs(LEAST_SECONDS + RandomState::new().hash_one(0u8) % LEAST_SECONDS),
    }
}

/// Turns events into the bytes of the stream.
struct Framer {
    encoding: Encoding,
    shape: Shape,
    include: IncludeObject,
    server: Arc<Server>,
    row: Arc<ResourceInfo>,
    definitions_sent: bool,
}

impl Framer {
    /// One frame an event; a failure is told as an `ERROR` event, the last of the stream.
    fn frames<S>(self, events: S) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>>
    where
        S: Stream<Item = WatchEvent> + Unpin,
    {
        stream::unfold(Some((self, events)), |state| async {
            let (mut framer, mut events) = state?;
            let event = events.next().await?;
            Some(match framer.event(&event).await {
                Ok(bytes) => (Ok(Frame::data(bytes)), Some((framer, events))),
                Err(status) => (framer.error(&status).map(Frame::data), None),
            })
        })
    }

    async fn event(&mut self, event: &WatchEvent) -> Result<Bytes, Status> {
        let stored = &event.object;
        let object = match self.shape {
            Shape::Object => {
                let one = std::slice::from_ref(stored);
                let shown = self.server.registry.in_version(&self.row, one).await?;
                shown.first().unwrap_or(stored).bytes().clone()
            }
            Shape::Metadata(version) | Shape::MetadataList(version) => shape::metadata_only(version, stored.bytes())?,
            Shape::Table(version) => {
                let shown = read::for_table(&self.server, &self.row, std::slice::from_ref(stored)).await?;
                self.table(version, event.kind, shown.first().unwrap_or(stored))
            }
        };
        encode::watch_event(self.encoding, event.kind.as_str(), &object)
    }

    fn table(&mut self, version: MetaVersion, kind: EventKind, stored: &Stored) -> Bytes {
        let definitions = (!self.definitions_sent).then(|| columns::definitions(&self.row));
        self.definitions_sent = true;
        // a bookmark is about no object that could be shown
        let rows = match kind {
            EventKind::Bookmark => Vec::new(),
            _ => columns::rows(&self.row, std::slice::from_ref(stored), self.include),
        };
        let metadata = json!({"resourceVersion": stored.resource_version().to_string()});
        shape::table(version, &metadata, definitions.as_ref(), rows)
    }

    fn error(&self, status: &Status) -> Result<Bytes, BoxError> {
        let json = Bytes::from(serde_json::to_vec(status)?);
        Ok(encode::watch_event(self.encoding, "ERROR", &json)?)
    }
}
