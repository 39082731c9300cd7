//! What is known of one request, and when it is told.

use super::event::{Event, ObjectRef};
use super::policy::{Level, Stage, Verdict};
use super::{Audit, Seen, Stored};
use crate::encode::Payload;
use crate::request_info::RequestInfo;
use bytes::Bytes;
use edge_api::{Object, Status, UserInfo};
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request that is told of. When the last one lets it go, its end is told.
#[derive(Debug)]
pub(crate) struct Record {
    audit: Arc<Audit>,
    verdict: Verdict,
    is_resource: bool,
    received: jiff::Timestamp,
    state: Mutex<State>,
    is_closed: AtomicBool,
}

#[derive(Debug)]
struct State {
    event: Event,
    /// The JSON of what is answered, read when it is told.
    answer: Option<Bytes>,
}

fn micro(time: jiff::Timestamp) -> String {
    format!("{time:.6}")
}

impl Record {
    pub(super) fn new(
        audit: Arc<Audit>,
        verdict: Verdict,
        seen: Seen,
        user: Option<&UserInfo>,
        info: &RequestInfo,
    ) -> Self {
        let object_ref = info.is_resource.then(|| ObjectRef {
            resource: info.resource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            api_group: info.group.clone(),
            api_version: info.version.clone(),
            subresource: info.subresource.clone(),
            ..ObjectRef::default()
        });
        let received = micro(seen.received);
        let event = Event {
            level: verdict.level.name(),
            audit_id: seen.id,
            stage: "",
            request_uri: seen.uri,
            verb: info.verb.clone(),
            user: user.map(Into::into).unwrap_or_default(),
            impersonated_user: None,
            source_ips: seen.sources,
            user_agent: seen.agent,
            object_ref,
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: received.clone(),
            stage_timestamp: received,
            annotations: Default::default(),
        };
        let state = Mutex::new(State { event, answer: None });
        let is_resource = info.is_resource;
        Self { audit, verdict, is_resource, received: seen.received, state, is_closed: AtomicBool::new(false) }
    }

    /// Makes an event, unless the policy leaves this stage out.
    pub(crate) fn tell(&self, stage: Stage) -> Stored {
        if self.verdict.omitted.contains(&stage) {
            return Stored::Settled(true);
        }
        let mut state = self.state.lock();
        let State { event, answer } = &mut *state;
        if let Some(json) = answer.take() {
            event.response_object = serde_json::from_slice(&json).ok().map(|o| self.without_managed_fields(o));
        }
        event.stage = stage.name();
        let now = if stage == Stage::RequestReceived { self.received } else { jiff::Timestamp::now() };
        event.stage_timestamp = micro(now);
        self.audit.store(event)
    }

    /// Tells the end, and waits for whatever has to be waited for.
    pub(crate) async fn finish(self) {
        if !self.is_closed.swap(true, Ordering::Relaxed) {
            // too late to refuse anything
            let _ = self.tell(Stage::ResponseComplete).wait().await;
        }
    }

    /// Nothing more is told.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn impersonated(&self, user: &UserInfo) {
        self.state.lock().event.impersonated_user = Some(user.into());
    }

    pub(super) fn annotate(&self, key: &str, value: &str, also: bool) {
        let annotations = &mut self.state.lock().event.annotations;
        match annotations.get_mut(key) {
            None => drop(annotations.insert(key.to_owned(), value.to_owned())),
            Some(known) if also && !known.split(", ").any(|v| v == value) => {
                known.push_str(", ");
                known.push_str(value);
            }
            Some(_) => {}
        }
    }

    /// Adds to an annotation that is a list in JSON.
    pub(crate) fn annotate_item(&self, key: &str, item: Value) {
        let annotations = &mut self.state.lock().event.annotations;
        let known = annotations.get(key).and_then(|text| serde_json::from_str::<Vec<Value>>(text).ok());
        let mut all = known.unwrap_or_default();
        if !all.contains(&item) {
            all.push(item);
        }
        annotations.insert(key.to_owned(), Value::from(all).to_string());
    }

    pub(super) fn submitted(&self, object: &Object) {
        let mut state = self.state.lock();
        let place = state.event.object_ref.get_or_insert_default();
        let fill = |slot: &mut String, value: &str| {
            if slot.is_empty() {
                value.clone_into(slot);
            }
        };
        fill(&mut place.namespace, object.namespace());
        fill(&mut place.name, object.name());
        fill(&mut place.uid, object.uid());
        fill(&mut place.resource_version, object.str_at("/metadata/resourceVersion"));
        if self.verdict.level >= Level::Request {
            state.event.request_object = Some(self.without_managed_fields(object.clone().into_value()));
        }
    }

    pub(super) fn submitted_document(&self, document: Value) {
        if self.verdict.level >= Level::Request {
            self.state.lock().event.request_object = Some(document);
        }
    }

    pub(super) fn answered(&self, payload: &Payload) {
        if self.verdict.level < Level::RequestResponse || !self.is_resource {
            return;
        }
        self.state.lock().answer = Some(match payload {
            Payload::Json(bytes) => bytes.clone(),
            Payload::Value(value) => value.to_string().into(),
        });
    }

    /// Notes why the request is refused.
    pub(crate) fn failed(&self, status: &Status) {
        self.state.lock().event.response_status = Some(status.into());
        if let Ok(value) = serde_json::to_value(status) {
            self.answered(&value.into());
        }
    }

    /// Notes the code of the answer.
    pub(crate) fn code(&self, code: u16) {
        self.state.lock().event.response_status.get_or_insert_default().code = code;
    }

    fn without_managed_fields(&self, mut object: Value) -> Value {
        fn strip(object: &mut Value) {
            if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.remove("managedFields");
            }
        }
        if self.verdict.omit_managed_fields {
            strip(&mut object);
            object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(strip);
            // of a table
            let rows = object.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten();
            rows.filter_map(|row| row.get_mut("object")).for_each(strip);
        }
        object
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.is_closed.load(Ordering::Relaxed) {
            // nobody is there who could wait
            let _ = self.tell(Stage::ResponseComplete);
        }
    }
}
