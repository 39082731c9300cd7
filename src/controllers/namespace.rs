//! The deletion of namespaces: first all that is in them, then the namespace itself.

use crate::context::Context;
use crate::gc::resources;
use edge_client::{
    Api, Change, DeleteParams, DynamicObject, Error, ListParams, Outcome, Patch, PatchParams, WorkQueue, run_workers,
};
use edge_client::{ApiResource, Client, ResourceExt};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;

/// Runs the controller. `queue` is also fed by the garbage collector, with the namespace of every object that goes.
pub(crate) async fn run(context: Context, queue: Arc<WorkQueue<String>>) {
    let namespaces = context.informers.of::<Namespace>();
    let mut changes = namespaces.subscribe();
    namespaces.synced().await;
    let watch = async {
        while let Some(change) = changes.recv().await {
            if let Change::Applied { new, .. } = change
                && new.metadata.deletion_timestamp.is_some()
            {
                queue.add(new.name_any());
            }
        }
    };
    let work = run_workers("namespace", queue.clone(), 4, |name: String| {
        let (namespace, client) = (namespaces.get("", &name), context.client.clone());
        async move {
            match namespace.filter(|n| n.metadata.deletion_timestamp.is_some()) {
                Some(namespace) => terminate(&client, &namespace).await,
                None => Ok(Outcome::Done),
            }
        }
    });
    tokio::join!(watch, work);
}

/// What is left in a namespace.
#[derive(Default)]
struct Remains {
    /// `pods has 2 resource instances`
    kinds: Vec<String>,
    finalizers: Vec<String>,
}

async fn terminate(client: &Client, namespace: &Namespace) -> Result<Outcome, Error> {
    let name = namespace.name_any();
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|f| f == "kubernetes") {
        return Ok(Outcome::Done);
    }
    let mut remains = Remains::default();
    for resource in resources(client).await?.into_iter().filter(|r| r.namespaced && r.deletable) {
        let left = match empty(client, &resource.api, &name).await {
            // a custom resource whose definition has gone meanwhile
            Err(e) if edge_client::is_not_found(&e) => continue,
            other => other?,
        };
        if left.is_empty() {
            continue;
        }
        remains.kinds.push(format!("{} has {} resource instances", resource.api.plural, left.len()));
        remains.finalizers.extend(left.iter().flat_map(|o| o.metadata.finalizers.clone().unwrap_or_default()));
    }
    if remains.kinds.is_empty() {
        return finalize(client, namespace).await;
    }
    tell(client, namespace, &remains).await?;
    // the garbage collector brings us back when something goes
    Ok(Outcome::Done)
}

/// Deletes all objects of a resource in a namespace; gives those that are still there.
async fn empty(client: &Client, resource: &ApiResource, namespace: &str) -> Result<Vec<DynamicObject>, Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let present = api.list(&ListParams::default()).await?.items;
    if present.is_empty() {
        return Ok(present);
    }
    if present.iter().any(|o| o.metadata.deletion_timestamp.is_none()) {
        match api.delete_collection(&DeleteParams::background(), &ListParams::default()).await {
            // not every resource can be deleted as a collection
            Err(e) if edge_client::status_code(&e) == Some(405) => {
                for object in &present {
                    match api.delete(&object.name_any(), &DeleteParams::background()).await {
                        Err(e) if !edge_client::is_not_found(&e) => return Err(e),
                        _ => {}
                    }
                }
            }
            other => drop(other?),
        }
    }
    Ok(api.list(&ListParams::default()).await?.items)
}

/// Takes the finalizer away, upon which the API server removes the namespace.
async fn finalize(client: &Client, namespace: &Namespace) -> Result<Outcome, Error> {
    let mut last = namespace.clone();
    if let Some(f) = last.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        f.retain(|f| f != "kubernetes");
    }
    let body = serde_json::to_vec(&last).map_err(Error::SerdeError)?;
    let request = http::Request::put(format!("/api/v1/namespaces/{}/finalize", namespace.name_any()))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| Error::Service(Box::new(e)))?;
    match client.request::<serde_json::Value>(request).await {
        Err(e) if !edge_client::is_not_found(&e) => Err(e),
        _ => Ok(Outcome::Done),
    }
}

/// Says in the namespace's conditions what its deletion waits for.
async fn tell(client: &Client, namespace: &Namespace, remains: &Remains) -> Result<(), Error> {
    let known = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut finalizers: Vec<String> = remains.finalizers.clone();
    finalizers.sort();
    finalizers.dedup();
    let mut wanted = vec![(
        "NamespaceContentRemaining",
        "SomeResourcesRemain",
        format!("Some resources are remaining: {}", remains.kinds.join(", ")),
    )];
    if !finalizers.is_empty() {
        let text = format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", "));
        wanted.push(("NamespaceFinalizersRemaining", "SomeFinalizersRemain", text));
    }
    let conditions: Vec<NamespaceCondition> = wanted
        .into_iter()
        .map(|(kind, reason, message)| NamespaceCondition {
            last_transition_time: known
                .iter()
                .find(|c| c.type_ == kind)
                .and_then(|c| c.last_transition_time.clone())
                .or_else(|| Some(Time(Timestamp::now()))),
            message: Some(message),
            reason: Some(reason.into()),
            status: "True".into(),
            type_: kind.into(),
        })
        .collect();
    if known == conditions {
        return Ok(());
    }
    let api: Api<Namespace> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"status": {"phase": "Terminating", "conditions": conditions}}));
    match api.patch_status(&namespace.name_any(), &PatchParams::default(), &patch).await {
        Err(e) if !edge_client::is_not_found(&e) => Err(e),
        _ => Ok(()),
    }
}
