//! EndpointSlices of Endpoints that somebody wrote by hand, for a Service without a selector: whoever reads slices sees them too.

use crate::context::{Context, unless_changed};
use crate::endpointslice::{MANAGED_BY, SERVICE_LABEL, Step, diff};
use crate::owners::controller_reference;
use edge_client::{
    Api, DeleteParams, Error, Informer, Key, ObjectMeta, Outcome, PostParams, ResourceExt, WorkQueue, run_workers,
};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// No slice has more endpoints, and no more of one subset are looked at.
const MAX_ENDPOINTS: usize = 1000;

struct Controller {
    context: Context,
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        services: context.informers.of(),
        endpoints: context.informers.of(),
        slices: context.informers.of(),
        context,
    });
    let queue = WorkQueue::<Key>::new();
    let (mut services, mut endpoints) = (controller.services.subscribe(), controller.endpoints.subscribe());
    let mut slices = controller.slices.subscribe();
    tokio::join!(controller.services.synced(), controller.endpoints.synced(), controller.slices.synced());
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = services.recv() => queue.add(Key::of(&**change.object())),
                Some(change) = endpoints.recv() => queue.add(Key::of(&**change.object())),
                Some(change) = slices.recv() => {
                    let slice = change.object();
                    if let Some(name) = slice.labels().get(SERVICE_LABEL).filter(|_| is_mine(slice)) {
                        queue.add(Key::new(slice.namespace().unwrap_or_default(), name));
                    }
                }
                else => return,
            }
        }
    };
    let work = run_workers("endpointslice-mirroring", queue.clone(), 2, |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(watch, work);
}

fn is_mine(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

/// Whether nobody else makes slices of these endpoints.
fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let selects = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|s| !s.is_empty());
    let skips = endpoints.labels().get(SKIP).is_some_and(|value| value == "true");
    !selects
        && !skips
        && !endpoints.annotations().contains_key(LEADER)
        && service.metadata.deletion_timestamp.is_none()
        && endpoints.metadata.deletion_timestamp.is_none()
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let mine = self.slices.list_labelled(&key.namespace, SERVICE_LABEL, &key.name).into_iter();
        let mine: Vec<Arc<EndpointSlice>> = mine.filter(|slice| is_mine(slice)).collect();
        let endpoints = self.endpoints.get_key(key).zip(self.services.get_key(key));
        let endpoints = endpoints.filter(|(endpoints, service)| is_mirrored(endpoints, service)).map(|(e, _)| e);
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let wanted = endpoints.as_ref().map(|endpoints| slices(endpoints)).unwrap_or_default();
        for step in diff(mine, wanted) {
            let result = match step {
                Step::Create(mut slice) => {
                    let Some(owner) = &endpoints else { continue };
                    slice.metadata = metadata(owner);
                    api.create(&PostParams::default(), &slice).await.map(drop)
                }
                Step::Update(slice) => api.replace(&slice.name_any(), &PostParams::default(), &slice).await.map(drop),
                Step::Delete(slice) => api.delete(&slice.name_any(), &DeleteParams::default()).await.map(drop),
            };
            unless_changed(result)?;
        }
        Ok(Outcome::Done)
    }
}

fn metadata(endpoints: &Endpoints) -> ObjectMeta {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_LABEL.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| key != "kubectl.kubernetes.io/last-applied-configuration");
    ObjectMeta {
        generate_name: Some(format!("{}-", endpoints.name_any())),
        namespace: endpoints.namespace(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![controller_reference(endpoints)]),
        ..ObjectMeta::default()
    }
}

/// The slices of endpoints, without metadata: one for each family and set of ports.
fn slices(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut all = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut by_family: BTreeMap<&'static str, Vec<Endpoint>> = BTreeMap::new();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready).take(MAX_ENDPOINTS) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            by_family.entry(family).or_default().push(endpoint(address, ready));
        }
        all.extend(by_family.into_iter().map(|(family, endpoints)| EndpointSlice {
            address_type: family.into(),
            endpoints: Some(endpoints),
            ports: Some(ports(subset)),
            metadata: ObjectMeta::default(),
        }));
    }
    all
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let port = |port: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: port.protocol.clone().or_else(|| Some("TCP".into())),
        app_protocol: port.app_protocol.clone(),
    };
    subset.ports.iter().flatten().map(port).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn families_and_readiness() {
        let endpoints: Endpoints = serde_json::from_value(json!({
        "metadata": {"namespace": "d", "name": "db", "labels": {"a": "b"}},
        "subsets": [{
            "addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1", "hostname": "h"}, {"ip": "bad"}],
            "notReadyAddresses": [{"ip": "192.0.2.2"}],
            "ports": [{"name": "sql", "port": 5432}],
        }]}))
        .unwrap();
        let all = slices(&endpoints);
        assert_eq!(all.len(), 2);
        let four = all.iter().find(|slice| slice.address_type == "IPv4").unwrap();
        let ready: Vec<_> =
            four.endpoints.as_ref().unwrap().iter().map(|e| e.conditions.as_ref().unwrap().ready).collect();
        assert_eq!(ready, [Some(true), Some(false)]);
        assert_eq!(four.ports.as_ref().unwrap()[0].protocol.as_deref(), Some("TCP"));
        let labels = metadata(&endpoints).labels.unwrap();
        assert_eq!(
            (labels["a"].as_str(), labels[SERVICE_LABEL].as_str(), labels[MANAGED_BY].as_str()),
            ("b", "db", MANAGER)
        );
    }

    #[test]
    fn only_endpoints_that_nobody_else_makes_slices_of() {
        let endpoints =
            |meta: serde_json::Value| -> Endpoints { serde_json::from_value(json!({"metadata": meta})).unwrap() };
        let service = |spec: serde_json::Value| -> Service { serde_json::from_value(json!({"spec": spec})).unwrap() };
        assert!(is_mirrored(&endpoints(json!({})), &service(json!({}))));
        assert!(!is_mirrored(&endpoints(json!({})), &service(json!({"selector": {"a": "b"}}))));
        assert!(!is_mirrored(&endpoints(json!({"labels": {SKIP: "true"}})), &service(json!({}))));
        assert!(!is_mirrored(&endpoints(json!({"annotations": {LEADER: "x"}})), &service(json!({}))));
    }
}
