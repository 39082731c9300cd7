//! Custom resources in the owner graph: each is watched from the moment that its definition is established until it goes.

use super::{ApiResource, Collector, Resource, watch};
use edge_client::{Api, Client, DynamicObject, ListParams};
use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::task::{AbortHandle, JoinSet};

/// A custom resource that is served.
#[derive(Clone, Debug, PartialEq)]
struct Served {
    resource: Resource,
    /// All versions that it is served in, as `apiVersion`.
    versions: Vec<String>,
}

fn definitions() -> ApiResource {
    ApiResource {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        api_version: "apiextensions.k8s.io/v1".into(),
        kind: "CustomResourceDefinition".into(),
        plural: "customresourcedefinitions".into(),
    }
}

/// Group and plural of all definitions that there are, whether they are served or not.
pub(super) async fn groups_and_plurals(client: &Client) -> HashSet<(String, String)> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &definitions());
    let list = match api.list_metadata(&ListParams::default()).await {
        Ok(list) => list.items,
        // then some are watched twice, which does no harm
        Err(error) => {
            tracing::debug!(%error, "definitions cannot be listed");
            return HashSet::new();
        }
    };
    let names = list.into_iter().filter_map(|d| d.metadata.name);
    names.filter_map(|name| name.split_once('.').map(|(plural, group)| (group.to_owned(), plural.to_owned()))).collect()
}

/// Follows the definitions, and with each that is established its objects.
pub(super) async fn follow(collector: Arc<Collector>) {
    let api: Api<DynamicObject> = Api::all_with(collector.client.clone(), &definitions());
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut watches = Watches { collector, tasks: JoinSet::new(), running: HashMap::new() };
    let mut listed = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(definition)) => {
                listed.insert(definition.metadata.name.clone().unwrap_or_default());
                watches.take(&definition);
            }
            Ok(watcher::Event::InitDone) => watches.keep(&listed),
            Ok(watcher::Event::Apply(definition)) => watches.take(&definition),
            Ok(watcher::Event::Delete(definition)) => {
                watches.end(definition.metadata.name.as_deref().unwrap_or_default());
            }
            Err(error) => tracing::debug!(%error, "watch of definitions broke, starting again"),
        }
    }
}

struct Watches {
    collector: Arc<Collector>,
    tasks: JoinSet<()>,
    /// By the name of the definition.
    running: HashMap<String, (Served, AbortHandle)>,
}

impl Watches {
    fn take(&mut self, definition: &DynamicObject) {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let Some(served) = served(&definition.data) else { return self.end(&name) };
        let known = self.running.get(&name).map(|(known, _)| known.clone());
        if known.as_ref() == Some(&served) {
            return;
        }
        if let Some((_, task)) = self.running.remove(&name) {
            task.abort();
        }
        let resource = Arc::new(served.resource.clone());
        if let Some(before) = known.filter(|k| k.resource.api != resource.api) {
            self.forget(&before.resource.api);
        }
        for version in &served.versions {
            self.collector.graph.lock().know(version, &resource);
        }
        let task = self.tasks.spawn(watch(self.collector.clone(), served.resource.clone()));
        self.running.insert(name, (served, task));
        // what has ended need not be kept
        while self.tasks.try_join_next().is_some() {}
    }

    fn end(&mut self, name: &str) {
        if let Some((served, task)) = self.running.remove(name) {
            task.abort();
            self.forget(&served.resource.api);
        }
    }

    fn forget(&self, resource: &ApiResource) {
        let dirty = self.collector.graph.lock().forget(resource);
        dirty.into_iter().for_each(|uid| self.collector.queue.add(uid));
    }

    /// After a new list: definitions that are not in it are gone.
    fn keep(&mut self, listed: &HashSet<String>) {
        let gone: Vec<String> = self.running.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.end(name));
    }
}

/// What an established definition serves; the preferred version is that which is watched.
fn served(definition: &Value) -> Option<Served> {
    let conditions = definition.pointer("/status/conditions").and_then(Value::as_array);
    let established = |c: &Value| c["type"] == "Established" && c["status"] == "True";
    if !conditions.is_some_and(|c| c.iter().any(established)) {
        return None;
    }
    let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let group = text("/spec/group")?;
    let versions = definition.pointer("/spec/versions").and_then(Value::as_array)?;
    let mut versions: Vec<&str> =
        versions.iter().filter(|v| v["served"] == true).filter_map(|v| v["name"].as_str()).collect();
    versions.sort_by(|a, b| edge_api::gvk::version_order(a).cmp(&edge_api::gvk::version_order(b)));
    let version = (*versions.first()?).to_owned();
    let resource = Resource {
        api: ApiResource {
            api_version: format!("{group}/{version}"),
            version,
            kind: text("/status/acceptedNames/kind")?,
            plural: text("/status/acceptedNames/plural")?,
            group: group.clone(),
        },
        namespaced: text("/spec/scope")? == "Namespaced",
        deletable: true,
        watchable: true,
    };
    Some(Served { resource, versions: versions.iter().map(|v| format!("{group}/{v}")).collect() })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn established_definitions_are_watched_in_their_preferred_version() {
        let mut definition = json!({"spec": {"group": "a.b", "scope": "Namespaced", "versions": [
            {"name": "v1alpha1", "served": true}, {"name": "v2", "served": false}, {"name": "v1", "served": true}]},
            "status": {"acceptedNames": {"kind": "Foo", "plural": "foos"}, "conditions": [{"type": "Established", "status": "False"}]}});
        assert!(served(&definition).is_none());
        definition["status"]["conditions"][0]["status"] = "True".into();
        let found = served(&definition).unwrap();
        assert_eq!((found.resource.api.api_version.as_str(), found.resource.namespaced), ("a.b/v1", true));
        assert_eq!(found.versions, ["a.b/v1", "a.b/v1alpha1"]);
        for nonsense in [json!(null), json!({"spec": 1}), json!({"status": {"conditions": {}}})] {
            assert!(served(&nonsense).is_none());
        }
    }
}
