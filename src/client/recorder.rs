//! Events: what the components tell people about objects (`kubectl describe`, `kubectl get events`).

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use tokio::sync::mpsc;

/// How many different events are remembered to count their repetitions.
const REMEMBERED: usize = 512;
/// How many events may wait to be written; more are dropped, as events are only hints.
const WAITING: usize = 1024;

/// Whether an event tells of normal operation or of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Normal operation.
    Normal,
    /// Something a person may have to look at.
    Warning,
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        })
    }
}

struct Record {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    uid: String,
    field_path: String,
    kind: EventType,
    reason: String,
    message: String,
}

/// Writes events in the background. Repetitions raise the count of one Event instead of making new ones.
#[derive(Clone)]
pub struct EventRecorder {
    records: mpsc::Sender<Record>,
}

impl EventRecorder {
    /// A recorder for `component` (for instance `kubelet`) on `host` (a node name, or empty).
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let (records, rx) = mpsc::channel(WAITING);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: Some(host.to_owned()).filter(|h| !h.is_empty()),
        };
        tokio::spawn(Writer { client, source, known: HashMap::new(), order: VecDeque::new() }.run(rx));
        Self { records }
    }

    /// Tells something about an object. Never waits and never fails: events are hints.
    pub fn event<K>(&self, object: &K, kind: EventType, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.event_ref(object_reference(object), kind, reason, message);
    }

    /// Tells something about the object that a reference names (with `fieldPath` for a container).
    pub fn event_ref(&self, about: ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let record = Record { about, kind, reason: reason.to_owned(), message: message.into() };
        if self.records.try_send(record).is_err() {
            tracing::debug!(reason, "event dropped: too many wait to be written");
        }
    }
}

/// The reference by which an event names its object.
pub fn object_reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: object.meta().name.clone(),
        namespace: object.meta().namespace.clone(),
        uid: object.meta().uid.clone(),
        resource_version: object.meta().resource_version.clone(),
        field_path: None,
    }
}

/// The reference by which a node's own components name it in events: by its name in place of its UID, as every kubelet
/// does, and as `kubectl describe node` looks for them.
pub fn node_reference(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

struct Writer {
    client: Client,
    source: EventSource,
    known: HashMap<Identity, (String, i32)>,
    order: VecDeque<Identity>,
}

impl Writer {
    async fn run(mut self, mut records: mpsc::Receiver<Record>) {
        while let Some(record) = records.recv().await {
            let reason = record.reason.clone();
            if let Err(error) = self.write(record).await {
                tracing::debug!(reason, %error, "event not written");
            }
        }
    }

    async fn write(&mut self, record: Record) -> Result<(), kube::Error> {
        let namespace = record.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let id = Identity {
            uid: record.about.uid.clone().unwrap_or_default(),
            field_path: record.about.field_path.clone().unwrap_or_default(),
            kind: record.kind,
            reason: record.reason.clone(),
            message: record.message.clone(),
        };
        if let Some((name, count)) = self.known.get_mut(&id) {
            *count += 1;
            let change = serde_json::json!({"count": *count, "lastTimestamp": Time(Timestamp::now())});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await {
                // it expired meanwhile: tell it anew
                Err(error) if crate::is_not_found(&error) => {}
                other => return other.map(drop),
            }
        }
        let event = self.event(record, &namespace);
        let written = api.create(&PostParams::default(), &event).await?;
        self.remember(id, written.name_any());
        Ok(())
    }

    fn event(&self, record: Record, namespace: &str) -> Event {
        let now = Timestamp::now();
        let name = format!("{}.{:x}", record.about.name.as_deref().unwrap_or_default(), now.as_nanosecond());
        Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() },
            involved_object: record.about,
            type_: Some(record.kind.to_string()),
            reason: Some(record.reason),
            message: Some(record.message),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            source: Some(self.source.clone()),
            ..Event::default()
        }
    }

    fn remember(&mut self, id: Identity, name: String) {
        if self.known.insert(id.clone(), (name, 1)).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}
