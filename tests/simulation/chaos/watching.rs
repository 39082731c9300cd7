//! The watches that feed the model.

use super::model::Model;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Feeds the model with all that happens in a namespace, and to nodes, until it is dropped.
pub(super) fn watch(client: &Client, namespace: &str, model: &Arc<Mutex<Model>>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let api = || client.clone();
    let deployments = Api::<Deployment>::namespaced(api(), namespace);
    tasks.spawn(follow(deployments, model.clone(), Model::deployment, Model::deployment_gone));
    let sets = Api::<ReplicaSet>::namespaced(api(), namespace);
    tasks.spawn(follow(sets, model.clone(), Model::set, Model::set_gone));
    tasks.spawn(follow(Api::<Pod>::namespaced(api(), namespace), model.clone(), Model::pod, Model::pod_gone));
    tasks.spawn(follow(Api::<Job>::namespaced(api(), namespace), model.clone(), Model::job, Model::job_gone));
    tasks.spawn(follow(Api::<Node>::all(api()), model.clone(), Model::node, Model::node_gone));
    tasks
}

async fn follow<K>(api: Api<K>, model: Arc<Mutex<Model>>, seen: fn(&mut Model, K), gone: fn(&mut Model, &str))
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events =
        std::pin::pin!(watcher(api, watcher::Config::default()).backoff(edge_client::WatchBackoff::default()));
    let mut listed: Vec<K> = Vec::new();
    let version = |object: &K| object.resource_version().unwrap().parse::<u64>().unwrap();
    let kind = K::kind(&());
    // before the next event a kind is as it was up to then
    let advance = |model: &mut Model, object: &K| {
        model.reached(&kind, version(object) - 1);
        model.check();
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => listed.push(object),
            Ok(watcher::Event::InitDone) => {
                let mut model = model.lock();
                let uids: HashSet<String> = listed.iter().filter_map(ResourceExt::uid).collect();
                model.retain(&kind, &uids);
                let newest = listed.iter().map(version).max().unwrap_or(0);
                listed.drain(..).for_each(|object| seen(&mut model, object));
                model.reached(&kind, newest);
                model.check();
            }
            Ok(watcher::Event::Apply(object)) => {
                let mut model = model.lock();
                advance(&mut model, &object);
                seen(&mut model, object);
                model.check();
            }
            Ok(watcher::Event::Delete(object)) => {
                let mut model = model.lock();
                advance(&mut model, &object);
                gone(&mut model, &object.uid().unwrap());
                model.check();
            }
            // the server is being started again
            Err(_) => {}
        }
    }
}
