//! Whether the server behind an APIService answers: its condition `Available`.
//!
//! Looked at when the Service or its endpoints change, and every half minute, since a server may stop to answer without anything
//! changing in the cluster (kube-aggregator's value); more often at first while it does not.

use super::documents::resources;
use super::reach::{self, By, fetch, get, of_service};
use super::spec::ServiceRef;
use super::{Remote, SERVICES};
use crate::Server;
use crate::admission::Cluster;
use edge_api::{Object, Status, UserInfo};
use edge_registry::strategy::definition::set_condition;
use edge_registry::{Target, WatchOptions, WatchStream};
use futures::{FutureExt, StreamExt, future};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two looks at a server that answers, and the longest between two at one that does not.
const PERIOD: Duration = Duration::from_secs(30);
/// Between the first two looks at one that does not answer.
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// How long it may take to list its resources, and how long the list may be in bytes.
const LIMITS: (usize, Duration) = (4 << 20, Duration::from_secs(5));
/// Attempts of which one has to succeed: a Service may have endpoints that do not answer.
const ATTEMPTS: usize = 5;

/// Why a server is not available: reason and message.
type Refusal = (&'static str, String);

/// Looks after one APIService, for ever.
pub(super) async fn keep(server: Arc<Server>, remote: Arc<Remote>) {
    let Some(service) = remote.spec.service.clone() else { return };
    loop {
        match follow(&server, &service).await {
            Ok(changes) => keep_until_end(&server, &remote, &service, changes).await,
            Err(error) => {
                tracing::warn!(%error, "the Service of an APIService cannot be followed, trying again");
                tokio::time::sleep(PERIOD).await;
            }
        }
    }
}

/// The changes of the Service and of its EndpointSlices, from now on.
async fn follow(server: &Server, service: &ServiceRef) -> Result<Changes, Status> {
    let catalog = server.registry.catalog();
    let row = |group: &str, plural: &str| catalog.preferred(group, plural).ok_or_else(Status::unknown_path);
    let version = server.registry.revision().to_string();
    let options = WatchOptions { resource_version: version, ..WatchOptions::default() };
    let services = row("", "services")?;
    let target = Target { info: &services, namespace: &service.namespace, name: &service.name, subresource: "" };
    let own = server.registry.watch(&target, &options).await?;
    let slices = row("discovery.k8s.io", "endpointslices")?;
    let target = Target { info: &slices, namespace: &service.namespace, name: "", subresource: "" };
    let endpoints =
        server.registry.watch(&target, &WatchOptions { labels: of_service(&service.name), ..options }).await?;
    Ok((own, endpoints))
}

/// Services and EndpointSlices.
type Changes = (WatchStream, WatchStream);

async fn keep_until_end(server: &Server, remote: &Remote, service: &ServiceRef, (mut own, mut slices): Changes) {
    let mut retry = FIRST_RETRY;
    loop {
        let verdict = look(server, remote, service).await;
        let written = tell(server, remote, &verdict).await;
        if let Err(error) = &written {
            tracing::warn!(api_service = remote.spec.name(), %error, "the status of an APIService could not be written");
        }
        let pause = if verdict.is_ok() && written.is_ok() { PERIOD } else { retry };
        tokio::select! {
            changed = future::select(own.next(), slices.next()) => {
                let (future::Either::Left((event, _)) | future::Either::Right((event, _))) = changed;
                if event.is_none() {
                    return;
                }
                // what came with it is looked at together
                while own.next().now_or_never().flatten().is_some() {}
                while slices.next().now_or_never().flatten().is_some() {}
                retry = FIRST_RETRY;
            }
            () = tokio::time::sleep(pause) => retry = if verdict.is_ok() { FIRST_RETRY } else { PERIOD.min(retry * 2) },
        }
    }
}

/// Asks the server for its resources, if it can be there at all.
async fn look(server: &Server, remote: &Remote, service: &ServiceRef) -> Result<(), Refusal> {
    let object = server.stored_object("", "services", &service.namespace, &service.name);
    let slices = reach::slices(server, service).await;
    let slices = slices.map_err(|e| ("EndpointsAccessError", cannot_check(service, &e.message)))?;
    reachable(service, object.as_ref(), &slices)?;
    let attempt = || ask(server, remote, service);
    let mut answer = attempt().await;
    if answer.is_err() {
        let more = future::join_all((1..ATTEMPTS).map(|_| attempt())).await;
        answer = more.into_iter().fold(answer, Result::or);
    }
    let list = answer.map_err(|message| ("FailedDiscoveryCheck", message))?;
    *remote.resources.write() = list.map(Arc::new);
    Ok(())
}

fn cannot_check(service: &ServiceRef, error: &str) -> String {
    format!("service/{} in {:?} cannot be checked due to: {error}", service.name, service.namespace)
}

/// What the cluster knows of the Service.
fn reachable(to: &ServiceRef, service: Option<&Object>, slices: &[Object]) -> Result<(), Refusal> {
    let what = format!("service/{} in {:?}", to.name, to.namespace);
    let Some(service) = service else { return Err(("ServiceNotFound", format!("{what} is not present"))) };
    if !matches!(service.str_at("/spec/type"), "" | "ClusterIP") {
        return Ok(());
    }
    let mut ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let port = ports.find(|p| p.get("port").and_then(Value::as_i64) == Some(to.port));
    let Some(port) = port else {
        return Err(("ServicePortError", format!("{what} is not listening on port {}", to.port)));
    };
    if slices.is_empty() {
        return Err(("EndpointsNotFound", format!("cannot find endpointslices for {what}")));
    }
    let name = port.get("name").and_then(Value::as_str).unwrap_or_default();
    if slices.iter().any(|slice| has_endpoint(slice, name)) {
        return Ok(());
    }
    Err(("MissingEndpoints", format!("endpointslices for {what} have no addresses with port name {name:?}")))
}

/// Whether a slice has something ready behind a port.
fn has_endpoint(slice: &Object, port: &str) -> bool {
    let items = |list: &str| slice.get(list).as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ready = |e: &Value| e.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true);
    let is_port = |p: &Value| {
        p.get("name").and_then(Value::as_str).unwrap_or_default() == port && p.get("port").is_some_and(Value::is_u64)
    };
    items("endpoints").iter().any(is_ready) && items("ports").iter().any(is_port)
}

/// One attempt; gives its resources in the form of aggregated discovery, where it lists any. Unlike kube-aggregator's, it goes by the
/// authorities that requests go by, so a server that no request could reach is not called available.
async fn ask(server: &Server, remote: &Remote, service: &ServiceRef) -> Result<Option<Value>, String> {
    let (group, version) = (&remote.spec.group, &remote.spec.version);
    let path = format!("/apis/{group}/{version}");
    // not the address, which is another one at each attempt
    let url = format!("https://{}:{}{path}", service.host(), service.port);
    let user = UserInfo::new("system:kube-aggregator", [UserInfo::MASTERS]);
    // over a connection of its own: that one of before still works says nothing of the next
    let asked = async { fetch(server, remote, &user, get(&path)?, By::New, LIMITS).await };
    let answer = asked.await.map_err(|e| format!("failing or missing response from {url}: {e}"))?;
    if !answer.status().is_success() {
        let code = answer.status().as_u16();
        return Err(format!("failing or missing response from {url}: bad status from {url}: {code}"));
    }
    Ok(resources(answer.body(), group, version))
}

/// Writes the condition, unless it is so already.
async fn tell(server: &Server, remote: &Remote, verdict: &Result<(), Refusal>) -> Result<(), Status> {
    let (status, reason, message) = match verdict {
        Ok(()) => (true, "Passed", "all checks passed"),
        Err((reason, message)) => (false, *reason, message.as_str()),
    };
    let change = |mut live: Object| {
        set_condition(&mut live, "Available", status, reason, message);
        Ok(live)
    };
    // before anybody can see it
    remote.available.store(status, Ordering::Relaxed);
    if let (false, Ok(connections)) = (status, &remote.connections) {
        connections.forget();
    }
    match server.update_status(SERVICES.0, SERVICES.1, "", &remote.spec.name(), &change).await {
        Err(error) if error.reason != edge_api::Reason::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_cluster_knows_is_said_in_kubernetes_words() {
        let object = |v: Value| Object::from_value(v).unwrap();
        let to = ServiceRef { namespace: "ns".into(), name: "api".into(), port: 443 };
        let service = object(json!({"spec": {"type": "ClusterIP", "ports": [{"name": "x", "port": 443}]}}));
        let other = object(json!({"spec": {"type": "ClusterIP", "ports": [{"name": "x", "port": 80}]}}));
        let balanced = object(json!({"spec": {"type": "LoadBalancer"}}));
        let slice = |ready: Value, port: &str| {
            object(json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}],
                "ports": [{"name": port, "port": 8443}]}))
        };
        let none: &[Object] = &[];
        for (service, slices, reason, message) in [
            (None, none, "ServiceNotFound", "service/api in \"ns\" is not present"),
            (Some(&other), none, "ServicePortError", "service/api in \"ns\" is not listening on port 443"),
            (Some(&service), none, "EndpointsNotFound", "cannot find endpointslices for service/api in \"ns\""),
            (
                Some(&service),
                &[slice(false.into(), "x"), slice(true.into(), "y")],
                "MissingEndpoints",
                "endpointslices for service/api in \"ns\" have no addresses with port name \"x\"",
            ),
        ] {
            assert_eq!(reachable(&to, service, slices), Err((reason, message.to_owned())));
        }
        assert_eq!(reachable(&to, Some(&service), &[slice(Value::Null, "x")]), Ok(()));
        assert_eq!(reachable(&to, Some(&balanced), none), Ok(()), "what is outside cannot be known");
    }
}
