//! Custom resources in the hub: their definitions are read before anybody is told of them, so that what is said to be established is served.

use super::{DEFINITIONS_KEY, Hub, RETRY, ROOT, ResourceHub};
use crate::custom::{DEFINITIONS_PREFIX, Defined};
use crate::stored::Stored;
use bytes::Bytes;
use edge_storage::{Error, Event, EventBatch, KeyValue, ListRequest, Storage};
use std::collections::HashSet;
use std::sync::Arc;

/// What a change of definitions does.
#[derive(Debug)]
pub(super) enum Redefinition {
    /// Nothing that objects depend on: only the rows are made anew.
    Rows(Box<str>),
    /// The resource comes into being, or changes: its objects were read.
    Loaded(Box<str>, Defined, Vec<(String, KeyValue)>),
    /// It is not served any more.
    Gone(Box<str>),
}

impl Hub {
    /// Finds out what the definitions among some changes do, and reads the objects of what is new. To be called before the changes are taken in.
    pub(super) async fn redefinitions(&self, storage: &dyn Storage, batch: &EventBatch) -> Vec<Redefinition> {
        let mut out = Vec::new();
        for event in &batch.events {
            let Some(name) = definition_of(event.key()) else { continue };
            let known = self.catalog.defined(name);
            let defined = match event {
                Event::Put(kv) => Stored::new(name, &kv.value, batch.revision, &crate::scan::Paths::new(&[]))
                    .ok()
                    .and_then(|source| Defined::read(&source, known.as_deref())),
                Event::Delete { .. } => None,
            };
            out.push(match (defined, known) {
                (None, None) => continue,
                (None, Some(_)) => Redefinition::Gone(name.into()),
                (Some(new), Some(known)) if new.fingerprint == known.fingerprint => Redefinition::Rows(name.into()),
                (Some(_), _) if self.is_taken(name) => continue,
                (Some(new), _) => {
                    let items = load(storage, &new, batch.revision).await;
                    Redefinition::Loaded(name.into(), new, items)
                }
            });
        }
        out
    }

    /// Whether the objects' place in the store is that of a built-in resource.
    fn is_taken(&self, definition: &str) -> bool {
        let Some((plural, group)) = definition.split_once('.') else { return true };
        let prefix = format!("{group}/{plural}");
        self.catalog.rows().iter().any(|row| row.custom.is_none() && row.prefix == prefix)
    }

    /// Serves what has been defined; to be called when the definitions are taken in and before anybody is told of them.
    pub(super) fn redefine(&self, redefinitions: Vec<Redefinition>, revision: u64) {
        for redefinition in redefinitions {
            match redefinition {
                Redefinition::Rows(name) => {
                    // the rows share the bytes of the definition with the hub
                    let known = self.catalog.defined(&name);
                    let defined = self.definition(&name).and_then(|s| Defined::read(&s, known.as_deref()));
                    if let Some(defined) = &defined
                        && let Some(resource) = self.of(&defined.storage)
                    {
                        resource.renew(&defined.storage);
                    }
                    self.catalog.define(&name, defined);
                }
                Redefinition::Loaded(name, read, items) => {
                    let known = self.catalog.defined(&name);
                    let defined = self.definition(&name).and_then(|s| Defined::read(&s, known.as_deref()));
                    let defined = defined.unwrap_or(read);
                    self.replace(&defined, items, revision);
                    self.catalog.define(&name, Some(defined));
                }
                Redefinition::Gone(name) => self.undefine(&name),
            }
        }
    }

    /// Puts a new part of the hub in the place of the one that there was: whoever watches that one has to list anew.
    fn replace(&self, defined: &Defined, items: Vec<(String, KeyValue)>, revision: u64) {
        let resource = Arc::new(ResourceHub::custom(defined, items, revision));
        self.resources.write().insert(defined.storage.prefix.as_ref().into(), resource);
    }

    fn undefine(&self, name: &str) {
        if let Some(known) = self.catalog.defined(name) {
            self.catalog.define(name, None);
            self.resources.write().remove(known.storage.prefix.as_ref());
        }
    }

    /// A definition as it is now.
    fn definition(&self, name: &str) -> Option<Stored> {
        self.definitions()?.get(name)
    }

    fn definitions(&self) -> Option<Arc<ResourceHub>> {
        self.resources.read().get(DEFINITIONS_PREFIX).cloned()
    }

    /// Takes in all definitions when everything is read, before the objects of the resources.
    pub(super) fn define_all(&self, items: Vec<(String, KeyValue)>, revision: u64) {
        let Some(definitions) = self.definitions() else { return };
        definitions.reset(items, revision, |_| {});
        let mut gone: HashSet<Box<str>> = self.catalog.definitions().into_iter().collect();
        for source in definitions.all() {
            let name = source.name();
            let known = self.catalog.defined(name);
            let Some(defined) = Defined::read(&source, known.as_deref()).filter(|_| !self.is_taken(name)) else {
                continue;
            };
            gone.remove(name);
            if known.is_none_or(|known| known.fingerprint != defined.fingerprint) {
                self.replace(&defined, Vec::new(), 0);
            }
            self.catalog.define(name, Some(defined));
        }
        gone.iter().for_each(|name| self.undefine(name));
    }
}

/// The name of the definition that a key of the store is of.
fn definition_of(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()?.strip_prefix(DEFINITIONS_KEY)
}

/// The stored objects of a resource up to a revision. Goes on trying: whoever waits for his write to become visible waits for this.
async fn load(storage: &dyn Storage, defined: &Defined, revision: u64) -> Vec<(String, KeyValue)> {
    let prefix = format!("{ROOT}{}/", defined.storage.prefix);
    loop {
        let request = ListRequest { prefix: Bytes::from(prefix.clone()), ..ListRequest::default() };
        match storage.list(request).await {
            Ok(list) => {
                let key = |kv: &KeyValue| Some(std::str::from_utf8(&kv.key).ok()?.strip_prefix(&prefix)?.to_owned());
                // what is newer comes as a change
                let of_then = list.items.into_iter().filter(|kv| kv.mod_revision <= revision);
                return of_then.filter_map(|kv| Some((key(&kv)?, kv))).collect();
            }
            Err(Error::Closed) => return Vec::new(),
            Err(error) => tracing::error!(%error, prefix, "objects cannot be read, trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
