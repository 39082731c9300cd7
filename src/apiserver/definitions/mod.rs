//! CustomResourceDefinitions at work: names are accepted, definitions established, and their objects deleted before them.
//!
//! As in Kubernetes these run in the API server and not among the controllers: they need the catalog's built-in names, delete objects
//! whatever is served of them, and the hub has the definitions already (an informer would keep each a second time). Every server of
//! several does the same; who comes second finds nothing left to do. Serving itself follows the stored definitions, in the registry.

mod cleanup;
mod conditions;
mod webhook;

pub(crate) use webhook::WebhookConverter;

use crate::Server;
use crate::admission::Cluster;
use conditions::{Head, Taken};
use edge_api::{Object, Status};
use edge_registry::custom::{CLEANUP, DEFINITIONS};
use edge_registry::{EventKind, ListOptions, Target, WatchEvent, WatchOptions, WatchStream};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows all definitions.
pub(crate) struct Definitions {
    server: Arc<Server>,
    /// What is known of each, by its name.
    known: BTreeMap<String, Head>,
    /// Deletions under way; they give the UID back.
    cleaning: JoinSet<String>,
    /// Which those are, by UID: a name can be another's before the task that freed it is heard of.
    busy: BTreeSet<String>,
    /// Those whose status could not be written.
    again: BTreeSet<String>,
}

impl Definitions {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self { server, known: BTreeMap::new(), cleaning: JoinSet::new(), busy: BTreeSet::new(), again: BTreeSet::new() }
    }

    /// Follows until the server stops.
    pub(crate) async fn follow(mut self) {
        let stop = self.server.shutdown.clone();
        loop {
            let run = async {
                let mut events = match self.begin().await {
                    Ok(events) => events,
                    Err(error) => {
                        tracing::error!(%error, "definitions cannot be followed, trying again");
                        return tokio::time::sleep(RETRY).await;
                    }
                };
                loop {
                    let event = tokio::select! {
                        event = events.next() => event,
                        Some(done) = self.cleaning.join_next() => {
                            self.busy.remove(&done.unwrap_or_default());
                            continue;
                        }
                        () = tokio::time::sleep(RETRY), if !self.again.is_empty() => {
                            for name in std::mem::take(&mut self.again) {
                                self.reconcile(&name).await;
                            }
                            continue;
                        }
                    };
                    let Some(event) = event else { return };
                    self.take(&event).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = run => {}
            }
        }
    }

    /// Takes in what is there, and gives what comes.
    async fn begin(&mut self) -> Result<WatchStream, Status> {
        let registry = &self.server.registry;
        let row = registry.catalog().preferred(DEFINITIONS.0, DEFINITIONS.1).ok_or_else(Status::unknown_path)?;
        let target = Target { info: &row, namespace: "", name: "", subresource: "" };
        let list = registry.list(&target, &ListOptions::default()).await?;
        self.known = list.items.iter().filter_map(|s| Some((s.name().to_owned(), Head::read(s.bytes())?))).collect();
        let options = WatchOptions { resource_version: list.resource_version.to_string(), ..WatchOptions::default() };
        let events = registry.watch(&target, &options).await?;
        let names: Vec<String> = self.known.keys().cloned().collect();
        for name in names {
            self.reconcile(&name).await;
        }
        Ok(events)
    }

    async fn take(&mut self, event: &WatchEvent) {
        let name = event.object.name().to_owned();
        let before = match event.kind {
            EventKind::Added | EventKind::Modified => {
                let Some(head) = Head::read(event.object.bytes()) else { return };
                self.known.insert(name.clone(), head)
            }
            EventKind::Deleted => self.known.remove(&name),
            EventKind::Bookmark => return,
        };
        self.reconcile(&name).await;
        let Some(before) = before else { return };
        let has_released = self.known.get(&name).is_none_or(|now| now.accepted() != before.accepted());
        if has_released {
            // others may wait for the names
            let waiting = self.known.iter().filter(|(_, h)| h.group() == before.group() && !h.has_all_names());
            for other in waiting.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                self.reconcile(&other).await;
            }
        }
    }

    /// Brings one definition's status up to date, and begins its end if that has come.
    async fn reconcile(&mut self, name: &str) {
        let Some(head) = self.known.get(name) else { return };
        if head.is_terminating() {
            if head.has_finalizer(CLEANUP) && self.busy.insert(head.uid().to_owned()) {
                let uid = head.uid().to_owned();
                self.clean(name, uid);
            }
            return;
        }
        let taken = self.taken_by_others(name, head.group());
        if head.judged(&taken).is_none() {
            return;
        }
        let change = |mut live: Object| {
            if let Some(judgement) = Head::read(&live.to_json()).and_then(|head| head.judged(&taken)) {
                judgement.write(&mut live);
            }
            Ok(live)
        };
        match update_status(&self.server, name, &change).await {
            // its names are taken from now on, whenever the event comes
            Ok(()) => {
                if let Some(head) = self.known.get_mut(name)
                    && let Some(judgement) = head.judged(&taken)
                {
                    head.accept(judgement);
                }
            }
            Err(error) => {
                tracing::warn!(definition = name, %error, "the names of a definition could not be accepted, trying again");
                self.again.insert(name.to_owned());
            }
        }
    }

    /// Names that a definition cannot have: those of the others, and the built-in ones.
    fn taken_by_others(&self, name: &str, group: &str) -> Taken {
        let mut taken = Taken::default();
        for (other, head) in &self.known {
            if other != name && head.group() == group {
                taken.add(head.accepted());
            }
        }
        let rows = self.server.registry.catalog().rows();
        for row in rows.iter().filter(|r| r.custom.is_none() && r.group == group) {
            taken.resources.extend([row.plural.to_string(), row.singular.to_string()]);
            taken.resources.extend(row.short_names.iter().map(ToString::to_string));
            taken.kinds.extend([row.kind.to_string(), row.list_kind.to_string()]);
        }
        taken
    }

    fn clean(&mut self, name: &str, uid: String) {
        let (server, name) = (self.server.clone(), name.to_owned());
        self.cleaning.spawn(async move {
            while let Err(error) = cleanup::run(&server, &name, &uid).await {
                tracing::warn!(definition = name, %error, "objects of a definition could not be deleted, trying again");
                tokio::time::sleep(RETRY).await;
            }
            uid
        });
    }
}

/// Changes the status (and the finalizers) of a definition; one that is gone needs no change.
async fn update_status(
    server: &Server,
    name: &str,
    change: &(dyn Fn(Object) -> Result<Object, Status> + Send + Sync),
) -> Result<(), Status> {
    match server.update_status(DEFINITIONS.0, DEFINITIONS.1, "", name, change).await {
        Err(error) if error.reason == edge_api::Reason::NotFound => Ok(()),
        other => other,
    }
}
