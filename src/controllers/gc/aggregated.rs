//! Resources of other API servers in the owner graph: watched while the servers answer. What was known of them stays while they do not.

use super::{ApiResource, Collector, Resource, watch};
use edge_client::{Api, Client, DynamicObject, ListParams};
use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::task::{AbortHandle, JoinSet};

fn api_services() -> ApiResource {
    ApiResource {
        group: "apiregistration.k8s.io".into(),
        version: "v1".into(),
        api_version: "apiregistration.k8s.io/v1".into(),
        kind: "APIService".into(),
        plural: "apiservices".into(),
    }
}

/// The group version that another server answers for, as `apiVersion`, and whether it does.
fn of_another(service: &Value) -> Option<(String, bool)> {
    service.pointer("/spec/service").filter(|s| s.is_object())?;
    let text = |field: &str| service.pointer(&format!("/spec/{field}")).and_then(Value::as_str);
    let version = format!("{}/{}", text("group")?, text("version")?);
    let conditions = service.pointer("/status/conditions").and_then(Value::as_array);
    let available = |c: &Value| c["type"] == "Available" && c["status"] == "True";
    Some((version, conditions.is_some_and(|c| c.iter().any(available))))
}

/// All group versions that other servers answer for, as `apiVersion`.
pub(super) async fn versions(client: &Client) -> HashSet<String> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &api_services());
    match api.list(&ListParams::default()).await {
        Ok(list) => list.items.iter().filter_map(|s| Some(of_another(&s.data)?.0)).collect(),
        // then some are watched twice, which does no harm
        Err(error) => {
            tracing::debug!(%error, "APIServices cannot be listed");
            HashSet::new()
        }
    }
}

/// Follows the APIServices, and with each whose server answers its objects.
pub(super) async fn follow(collector: Arc<Collector>) {
    let api: Api<DynamicObject> = Api::all_with(collector.client.clone(), &api_services());
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut watches = Watches { collector, tasks: JoinSet::new(), running: HashMap::new(), known: HashMap::new() };
    let mut listed = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(service)) => {
                listed.insert(service.metadata.name.clone().unwrap_or_default());
                watches.take(&service).await;
            }
            Ok(watcher::Event::InitDone) => {
                let gone: Vec<String> = watches.known.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| watches.forget(name));
            }
            Ok(watcher::Event::Apply(service)) => watches.take(&service).await,
            Ok(watcher::Event::Delete(service)) => watches.forget(service.metadata.name.as_deref().unwrap_or_default()),
            Err(error) => tracing::debug!(%error, "watch of APIServices broke, starting again"),
        }
    }
}

/// By the names of APIServices.
struct Watches {
    collector: Arc<Collector>,
    tasks: JoinSet<()>,
    running: HashMap<String, Vec<AbortHandle>>,
    /// Whose objects are in the graph.
    known: HashMap<String, Vec<ApiResource>>,
}

impl Watches {
    async fn take(&mut self, service: &DynamicObject) {
        let name = service.metadata.name.clone().unwrap_or_default();
        let Some((version, is_available)) = of_another(&service.data) else { return self.forget(&name) };
        if !is_available {
            return self.pause(&name);
        }
        if self.running.contains_key(&name) {
            return;
        }
        let list = match self.collector.client.list_api_group_resources(&version).await {
            Ok(list) => list,
            // the next change of its condition comes when it answers again
            Err(error) => {
                tracing::debug!(version, %error, "resources of an API server are not known");
                return;
            }
        };
        let (group, of_group) = version.split_once('/').unwrap_or_default();
        let (mut handles, mut known) = (Vec::new(), Vec::new());
        for r in list.resources.into_iter().filter(|r| !r.name.contains('/')) {
            let has = |verb: &str| r.verbs.iter().any(|v| v == verb);
            if !(has("list") && has("watch") && has("delete")) {
                continue;
            }
            let api = ApiResource {
                group: group.to_owned(),
                version: of_group.to_owned(),
                api_version: version.clone(),
                kind: r.kind,
                plural: r.name,
            };
            let resource = Resource { api, namespaced: r.namespaced, deletable: true, watchable: true };
            known.push(resource.api.clone());
            handles.push(self.tasks.spawn(watch(self.collector.clone(), resource)));
        }
        let before = self.known.insert(name.clone(), known.clone());
        for resource in before.into_iter().flatten().filter(|r| !known.contains(r)) {
            self.forget_objects(&resource);
        }
        self.running.insert(name, handles);
    }

    /// Ends the watches.
    fn pause(&mut self, name: &str) {
        self.running.remove(name).into_iter().flatten().for_each(|task| task.abort());
        // what has ended need not be kept
        while self.tasks.try_join_next().is_some() {}
    }

    /// The server does not answer for it any more.
    fn forget(&mut self, name: &str) {
        self.pause(name);
        for resource in self.known.remove(name).into_iter().flatten() {
            self.forget_objects(&resource);
        }
    }

    fn forget_objects(&self, resource: &ApiResource) {
        let dirty = self.collector.graph.lock().forget(resource);
        dirty.into_iter().for_each(|uid| self.collector.queue.add(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_those_of_other_servers_count() {
        let service = |service: Value, status: &str| {
            json!({"spec": {"group": "a.b", "version": "v1", "service": service},
                "status": {"conditions": [{"type": "Available", "status": status}]}})
        };
        let there = json!({"name": "s"});
        assert_eq!(of_another(&service(there.clone(), "True")), Some(("a.b/v1".into(), true)));
        assert_eq!(of_another(&service(there.clone(), "False")), Some(("a.b/v1".into(), false)));
        assert_eq!(of_another(&service(Value::Null, "True")), None);
        for nonsense in [json!(null), json!({"spec": 1}), json!({"spec": {"service": {}}})] {
            assert_eq!(of_another(&nonsense), None);
        }
    }
}
