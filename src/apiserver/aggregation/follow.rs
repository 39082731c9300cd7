//! Follows APIServices, what is served here, and the ConfigMap by which extension API servers go.

use super::local::{Action, SERVICES, action, is_built_in, wanted};
use super::reach::Connections;
use super::spec::Head;
use super::{AT_ONCE, Remote, check};
use crate::Server;
use crate::admission::Cluster;
use crate::bootstrap;
use edge_api::{Object, Reason, Status, UserInfo};
use edge_registry::custom::DEFINITIONS;
use edge_registry::strategy::api_service::set_local;
use edge_registry::{
    DeleteOptions, EventKind, ListOptions, ResourceInfo, Target, UpdateKind, WatchEvent, WatchOptions, WatchStream,
    WriteOptions,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use parking_lot::RwLock;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

/// Before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Writes under way at once: they share the store's commits.
const WRITES: usize = 16;

/// What is followed.
struct Changes {
    services: WatchStream,
    definitions: WatchStream,
    authentication: WatchStream,
}

/// The task's state.
pub(crate) struct Follower {
    server: Arc<Server>,
    /// What is known of each APIService, by its name.
    known: BTreeMap<String, Head>,
    /// Those behind which there is another server, each with the task that looks after it.
    remotes: BTreeMap<String, (Arc<Remote>, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Follower {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self { server, known: BTreeMap::new(), remotes: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Follows until the server stops.
    pub(crate) async fn follow(mut self) {
        let stop = self.server.shutdown.clone();
        loop {
            let run = async {
                match self.begin().await {
                    Ok(changes) => self.go_on(changes).await,
                    Err(error) => {
                        tracing::error!(%error, "APIServices cannot be followed, trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = run => {}
            }
        }
    }

    /// Takes in what is there, and gives what comes.
    async fn begin(&mut self) -> Result<Changes, Status> {
        let server = self.server.clone();
        let row = row(&server)?;
        let list = server.registry.list(&all(&row), &ListOptions::default()).await?;
        let options = WatchOptions { resource_version: list.resource_version.to_string(), ..WatchOptions::default() };
        let services = server.registry.watch(&all(&row), &options).await?;
        let row = server.registry.catalog().preferred(DEFINITIONS.0, DEFINITIONS.1).ok_or_else(Status::unknown_path)?;
        let definitions = server.registry.watch(&all(&row), &options).await?;
        let row = server.registry.catalog().preferred("", "configmaps").ok_or_else(Status::unknown_path)?;
        let (namespace, name) = bootstrap::AUTHENTICATION;
        let target = Target { namespace, name, ..all(&row) };
        let authentication = server.registry.watch(&target, &options).await?;
        self.known = list.items.iter().filter_map(|s| Some((s.name().to_owned(), Head::read(s.bytes())?))).collect();
        let metrics = &self.server.aggregation.metrics;
        metrics.retain(|name| self.known.contains_key(name));
        self.known.iter().for_each(|(name, head)| metrics.observe(name, head.is_available(), head.reason()));
        let gone: Vec<String> = self.remotes.keys().filter(|name| !self.known.contains_key(*name)).cloned().collect();
        for name in gone.into_iter().chain(self.known.keys().cloned().collect::<Vec<_>>()) {
            self.connect(&name);
        }
        self.publish();
        Ok(Changes { services, definitions, authentication })
    }

    async fn go_on(&mut self, mut changes: Changes) {
        let mut is_settled = self.settle().await;
        loop {
            let name = tokio::select! {
                event = changes.services.next() => match event {
                    Some(event) => self.take(&event),
                    None => return,
                },
                event = changes.definitions.next() => match event {
                    Some(_) => None,
                    None => return,
                },
                event = changes.authentication.next() => match event {
                    Some(_) => None,
                    None => return,
                },
                () = tokio::time::sleep(RETRY), if !is_settled => None,
                // what has ended need not be kept
                Some(_) = self.tasks.join_next() => continue,
            };
            is_settled = match name {
                Some(name) => self.settle_one(&name).await && is_settled,
                None => self.settle().await,
            };
        }
    }

    /// Takes in a change; gives the APIService's name.
    fn take(&mut self, event: &WatchEvent) -> Option<String> {
        let name = event.object.name().to_owned();
        match event.kind {
            EventKind::Added | EventKind::Modified => {
                let head = Head::read(event.object.bytes())?;
                self.server.aggregation.metrics.observe(&name, head.is_available(), head.reason());
                self.known.insert(name.clone(), head);
            }
            EventKind::Deleted => {
                self.server.aggregation.metrics.forget(&name);
                self.known.remove(&name);
            }
            EventKind::Bookmark => return Some(name),
        }
        if self.connect(&name) {
            self.publish();
        }
        Some(name)
    }

    /// Begins or ends to pass requests on to a server; whether anything is another one now.
    fn connect(&mut self, name: &str) -> bool {
        let catalog = self.server.registry.catalog();
        let head = self
            .known
            .get(name)
            .filter(|head| head.spec.service.is_some() && !is_built_in(catalog, &head.spec.group, &head.spec.version));
        let before = self.remotes.get(name).map(|(remote, _)| &remote.spec);
        if head.map(|h| &h.spec) == before {
            return false;
        }
        let resources = self.remotes.remove(name).and_then(|(remote, task)| {
            task.abort();
            remote.resources()
        });
        let Some(head) = head else { return true };
        let remote = Arc::new(Remote {
            connections: Connections::new(
                &head.spec,
                &self.server.aggregation.front_proxy,
                self.server.shutdown.clone(),
            ),
            spec: head.spec.clone(),
            // until it is known better
            available: AtomicBool::new(head.is_available()),
            resources: RwLock::new(resources),
            openapi: Default::default(),
            openapi_v2: Default::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        });
        let task = self.tasks.spawn(check::keep(self.server.clone(), remote.clone()));
        self.remotes.insert(name.to_owned(), (remote, task));
        true
    }

    fn publish(&self) {
        self.server.aggregation.set(self.remotes.values().map(|(remote, _)| remote.clone()).collect());
    }

    /// Brings all APIServices of what is served here up to date; whether that succeeded.
    async fn settle(&mut self) -> bool {
        let wanted = wanted(self.server.registry.catalog());
        let names: BTreeSet<&String> = self.known.keys().chain(wanted.keys()).collect();
        let mut work: Vec<BoxFuture<'static, bool>> = Vec::new();
        for name in names {
            let action = action(wanted.get(name), self.known.get(name));
            if action != Action::Nothing {
                work.push(act(self.server.clone(), name.clone(), wanted.get(name).cloned(), action).boxed());
            }
        }
        let server = self.server.clone();
        work.push(
            async move { done("extension-apiserver-authentication", bootstrap::authentication(&server).await) }.boxed(),
        );
        let all: Vec<bool> = stream::iter(work).buffer_unordered(WRITES).collect().await;
        all.into_iter().all(|done| done)
    }

    /// The same for one of them.
    async fn settle_one(&mut self, name: &str) -> bool {
        let wanted = wanted(self.server.registry.catalog()).remove(name);
        let action = action(wanted.as_ref(), self.known.get(name));
        act(self.server.clone(), name.to_owned(), wanted, action).await
    }
}

fn row(server: &Server) -> Result<Arc<ResourceInfo>, Status> {
    server.registry.catalog().preferred(SERVICES.0, SERVICES.1).ok_or_else(Status::unknown_path)
}

fn all(row: &ResourceInfo) -> Target<'_> {
    Target { info: row, namespace: "", name: "", subresource: "" }
}

/// Does what there is to do about an APIService; whether it is done, be it by somebody else.
async fn act(server: Arc<Server>, name: String, wanted: Option<Value>, action: Action) -> bool {
    done(&name, write(&server, &name, wanted.as_ref(), action).await)
}

fn done(name: &str, written: Result<(), Status>) -> bool {
    match written {
        Err(error) if !matches!(error.reason, Reason::NotFound | Reason::AlreadyExists) => {
            tracing::warn!(name, %error, "what belongs to the aggregation layer could not be written, trying again");
            false
        }
        _ => true,
    }
}

async fn write(server: &Server, name: &str, wanted: Option<&Value>, action: Action) -> Result<(), Status> {
    let row = row(server)?;
    let user = UserInfo::new("system:apiserver", [UserInfo::MASTERS]);
    let options = WriteOptions { user: &user, field_manager: "kube-apiserver", dry_run: false };
    let target = Target { name, ..all(&row) };
    let object = || wanted.cloned().and_then(|v| Object::from_value(v).ok()).ok_or_else(Status::unknown_path);
    match action {
        Action::Nothing => Ok(()),
        Action::Create => server.registry.create(&all(&row), &options, object()?).await.map(drop),
        Action::Restore => {
            let spec = object()?.get("spec").clone();
            let change = |live: Option<&Object>| {
                let mut live = live.ok_or_else(|| Status::not_found(&row.group_resource(), name))?.clone();
                live.fields_mut().insert("spec".into(), spec.clone());
                Ok(live)
            };
            server.registry.update(&target, &options, UpdateKind::Patch, &change).await.map(drop)
        }
        Action::Delete => server.registry.delete(&target, &options, &DeleteOptions::default()).await.map(drop),
        Action::Tell => {
            let change = |mut live: Object| {
                set_local(&mut live);
                Ok(live)
            };
            server.update_status(SERVICES.0, SERVICES.1, "", name, &change).await
        }
    }
}
