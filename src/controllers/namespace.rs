//! The deletion of namespaces: first all that is in them, then the namespace itself.

use crate::context::{Context, message};
use crate::gc::discover;
use edge_client::{
    Api, Change, DeleteParams, DynamicObject, Error, ListParams, Outcome, Patch, PatchParams, WorkQueue, run_workers,
};
use edge_client::{ApiResource, Client, ResourceExt};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Before another API server that does not answer is asked again.
const AGAIN: Duration = Duration::from_secs(5);

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

/// What is left in a namespace, and why.
#[derive(Default)]
struct Remains {
    /// Resources with the number of their objects.
    objects: BTreeMap<String, usize>,
    /// Finalizers with the number of objects that have them.
    finalizers: BTreeMap<String, usize>,
    /// Group versions of which nothing can be told, and why.
    unknown: Vec<(String, String)>,
    /// What could not be deleted, and why.
    failures: Vec<String>,
}

async fn terminate(client: &Client, namespace: &Namespace) -> Result<Outcome, Error> {
    let name = namespace.name_any();
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|f| f == "kubernetes") {
        return Ok(Outcome::Done);
    }
    let discovered = discover(client).await?;
    let mut remains = Remains { unknown: discovered.failed, ..Remains::default() };
    let mut failure = None;
    for resource in discovered.resources.into_iter().filter(|r| r.namespaced && r.deletable) {
        let left = match empty(client, &resource.api, &name).await {
            // a custom resource whose definition has gone meanwhile
            Err(e) if edge_client::is_not_found(&e) => continue,
            // whatever else there is goes all the same
            Err(e) => {
                remains.failures.push(message(&e));
                failure = Some(e);
                continue;
            }
            Ok(left) => left,
        };
        if left.is_empty() {
            continue;
        }
        remains.objects.insert(format!("{}.{}", resource.api.plural, resource.api.group), left.len());
        for finalizer in left.iter().flat_map(|o| o.metadata.finalizers.iter().flatten()) {
            *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
    let is_known = remains.unknown.is_empty() && remains.failures.is_empty();
    if remains.objects.is_empty() && is_known {
        return finalize(client, namespace).await;
    }
    tell(client, namespace, &remains).await?;
    match failure {
        Some(failure) => Err(failure),
        // no change in the cluster tells when another server answers again
        None if !is_known => Ok(Outcome::After(AGAIN)),
        // the garbage collector brings us back when something goes
        None => Ok(Outcome::Done),
    }
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
    let conditions = conditions(&known, remains, Timestamp::now());
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

/// The conditions of a namespace that is being deleted.
fn conditions(known: &[NamespaceCondition], remains: &Remains, now: Timestamp) -> Vec<NamespaceCondition> {
    let numbers = |all: &BTreeMap<String, usize>, what: &str| {
        all.iter().map(|(name, n)| format!("{name} {what} {n} resource instances")).collect::<Vec<_>>().join(", ")
    };
    let mut failures = remains.failures.clone();
    failures.sort();
    let unknown: Vec<String> = remains.unknown.iter().map(|(version, why)| format!("{version}: {why}")).collect();
    let wanted = [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("ResourcesDiscovered", "All resources successfully discovered"),
            "DiscoveryFailed",
            (!unknown.is_empty()).then(|| {
                format!(
                    "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
                    unknown.len(),
                    unknown.join(", ")
                )
            }),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            "",
            None,
        ),
        (
            "NamespaceDeletionContentFailure",
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            "ContentDeletionFailed",
            (!failures.is_empty()).then(|| {
                format!("Failed to delete all resource types, {} remaining: {}", failures.len(), failures.join(", "))
            }),
        ),
        (
            "NamespaceContentRemaining",
            ("ContentRemoved", "All content successfully removed"),
            "SomeResourcesRemain",
            (!remains.objects.is_empty())
                .then(|| format!("Some resources are remaining: {}", numbers(&remains.objects, "has"))),
        ),
        (
            "NamespaceFinalizersRemaining",
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            "SomeFinalizersRemain",
            (!remains.finalizers.is_empty()).then(|| {
                let finalizers = numbers(&remains.finalizers, "in");
                format!("Some content in the namespace has finalizers remaining: {finalizers}")
            }),
        ),
    ];
    let condition = |(kind, good, reason, problem): (&str, (&str, &str), &str, Option<String>)| {
        let status = if problem.is_some() { "True" } else { "False" };
        let reason = if problem.is_some() { reason } else { good.0 };
        let before = known.iter().find(|c| c.type_ == kind && c.status == status);
        NamespaceCondition {
            last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
            message: Some(problem.unwrap_or_else(|| good.1.to_owned())),
            reason: Some(reason.into()),
            status: status.into(),
            type_: kind.into(),
        }
    };
    wanted.into_iter().map(condition).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_a_deletion_waits_for_is_said_in_kubernetes_words() {
        let remains = Remains {
            objects: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            unknown: vec![("a.b/v1".into(), "service unavailable".into())],
            failures: vec!["no".into()],
        };
        let then: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let first = conditions(&[], &remains, then);
        let said: Vec<(&str, &str)> =
            first.iter().map(|c| (c.status.as_str(), c.message.as_deref().unwrap())).collect();
        assert_eq!(
            said,
            [
                (
                    "True",
                    "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: \
                     a.b/v1: service unavailable"
                ),
                ("False", "All legacy kube types successfully parsed"),
                ("True", "Failed to delete all resource types, 1 remaining: no"),
                ("True", "Some resources are remaining: pods. has 2 resource instances"),
                (
                    "True",
                    "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
                ),
            ]
        );
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        assert_eq!(conditions(&first, &remains, now), first, "nothing to write again");
        let better = conditions(&first, &Remains::default(), now);
        assert!(better.iter().all(|c| c.status == "False"));
        assert_eq!(better[0].last_transition_time, Some(Time(now)));
        assert_eq!(better[1].last_transition_time, Some(Time(then)));
    }
}
