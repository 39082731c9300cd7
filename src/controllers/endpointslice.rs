//! EndpointSlices (and classic Endpoints) of Services with a selector: which pods answer, and how.

mod plan;

use crate::context::Context;
use crate::owners::controller_reference;
use edge_api::selector::LabelSelector;
use edge_client::{
    Api, Change, DeleteParams, Error, Informer, Key, ObjectMeta, Outcome, PostParams, ResourceExt, WorkQueue,
    run_workers,
};
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use plan::MANAGER;
pub(crate) use plan::{SERVICE_LABEL, Step, diff};
use std::sync::Arc;

const WORKERS: usize = 4;
/// Label of a slice with the name of the controller that makes it.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

struct Controller {
    context: Context,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    endpoints: Arc<Informer<Endpoints>>,
    queue: Arc<WorkQueue<Key>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        services: context.informers.of(),
        pods: context.informers.of(),
        nodes: context.informers.of(),
        slices: context.informers.of(),
        endpoints: context.informers.of(),
        queue: WorkQueue::new(),
        context,
    });
    let (mut services, mut pods) = (controller.services.subscribe(), controller.pods.subscribe());
    let (mut slices, mut nodes) = (controller.slices.subscribe(), controller.nodes.subscribe());
    controller.services.synced().await;
    controller.pods.synced().await;
    controller.nodes.synced().await;
    controller.slices.synced().await;
    controller.endpoints.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = services.recv() => controller.queue.add(Key::of(&**change.object())),
                Some(change) = pods.recv() => controller.pod_changed(&change),
                Some(change) = slices.recv() => controller.slice_changed(change.object()),
                Some(change) = nodes.recv() => controller.node_changed(&change),
                else => return,
            }
        }
    };
    let worker = controller.clone();
    let work = run_workers("endpointslice", controller.queue.clone(), WORKERS, move |key| {
        let controller = worker.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(watch, work);
}

fn service_selector(service: &Service) -> Option<LabelSelector> {
    let labels = service.spec.as_ref()?.selector.as_ref().filter(|s| !s.is_empty())?;
    Some(LabelSelector::from_map(labels.iter().map(|(k, v)| (k.as_str(), v.as_str()))))
}

impl Controller {
    fn pod_changed(&self, change: &Change<Pod>) {
        let (old, new) = match change {
            Change::Applied { old, new } => (old.as_deref(), new),
            Change::Deleted(pod) => (None, pod),
        };
        if let (Some(old), Change::Applied { .. }) = (old, change)
            && plan::same_to_services(old, new)
        {
            return;
        }
        for service in self.services.list_namespace(new.metadata.namespace.as_deref().unwrap_or_default()) {
            let Some(selector) = service_selector(&service) else { continue };
            let selects = |p: &Pod| crate::owners::matches(&selector, p);
            if selects(new) || old.is_some_and(selects) {
                self.queue.add(Key::of(&*service));
            }
        }
    }

    /// Endpoints tell in which zone they are.
    fn node_changed(&self, change: &Change<Node>) {
        let same = match change {
            Change::Applied { old, new } => old.as_deref().and_then(plan::zone) == plan::zone(new),
            // Its pods go too.
            Change::Deleted(_) => true,
        };
        if !same {
            self.services.list().iter().for_each(|service| self.queue.add(Key::of(&**service)));
        }
    }

    fn slice_changed(&self, slice: &EndpointSlice) {
        if slice.labels().get(MANAGED_BY).is_some_and(|m| m == MANAGER)
            && let Some(name) = slice.labels().get(SERVICE_LABEL)
        {
            self.queue.add(Key::new(slice.namespace().unwrap_or_default(), name));
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let mine: Vec<Arc<EndpointSlice>> = self
            .slices
            .list_labelled(&key.namespace, SERVICE_LABEL, &key.name)
            .into_iter()
            .filter(|s| s.labels().get(MANAGED_BY).is_some_and(|m| m == MANAGER))
            .collect();
        let service = self.services.get_key(key).filter(|s| s.metadata.deletion_timestamp.is_none());
        if service.is_none() {
            self.delete_endpoints(key).await?;
        }
        let Some((service, selector)) = service.and_then(|s| service_selector(&s).map(|sel| (s, sel))) else {
            // without its service (or its selector) a slice has no reason to be
            for slice in mine {
                self.delete_slice(&slice).await?;
            }
            return Ok(Outcome::Done);
        };
        let mut pods: Vec<Arc<Pod>> = self
            .pods
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|p| crate::owners::matches(&selector, &**p))
            .collect();
        pods.sort_by_key(|p| p.name_any());
        let zones = |node: &str| self.nodes.get("", node).and_then(|node| plan::zone(&node).map(str::to_owned));
        let wanted = plan::slices(&service, &pods, zones);
        self.sync_slices(&service, mine, wanted).await?;
        self.sync_endpoints(&service, &pods).await?;
        Ok(Outcome::Done)
    }

    async fn sync_slices(
        &self,
        service: &Service,
        known: Vec<Arc<EndpointSlice>>,
        wanted: Vec<EndpointSlice>,
    ) -> Result<(), Error> {
        let namespace = service.namespace().unwrap_or_default();
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), &namespace);
        for step in diff(known, wanted) {
            let result = match step {
                Step::Create(mut slice) => {
                    slice.metadata = ObjectMeta {
                        generate_name: Some(format!("{}-", service.name_any())),
                        namespace: Some(namespace.clone()),
                        labels: Some(plan::labels(service)),
                        owner_references: Some(vec![controller_reference(service)]),
                        ..ObjectMeta::default()
                    };
                    api.create(&PostParams::default(), &slice).await.map(drop)
                }
                Step::Update(slice) => api.replace(&slice.name_any(), &PostParams::default(), &slice).await.map(drop),
                Step::Delete(slice) => self.delete_slice(&slice).await,
            };
            match result {
                Err(e) if !edge_client::is_not_found(&e) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    async fn delete_slice(&self, slice: &EndpointSlice) -> Result<(), Error> {
        let namespace = slice.namespace().unwrap_or_default();
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), &namespace);
        match api.delete(&slice.name_any(), &DeleteParams::default()).await {
            Err(e) if !edge_client::is_not_found(&e) => Err(e),
            _ => Ok(()),
        }
    }

    /// The classic form of a service that is gone.
    async fn delete_endpoints(&self, key: &Key) -> Result<(), Error> {
        if self.endpoints.get_key(key).is_none() {
            return Ok(());
        }
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match api.delete(&key.name, &DeleteParams::default()).await {
            Err(e) if !edge_client::is_not_found(&e) => Err(e),
            _ => Ok(()),
        }
    }

    /// The classic form, for clients of old.
    async fn sync_endpoints(&self, service: &Service, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let key = Key::of(service);
        let mut wanted = plan::endpoints(service, pods);
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let result = match self.endpoints.get_key(&key) {
            Some(known) if known.subsets == wanted.subsets => Ok(()),
            Some(known) => {
                wanted.metadata = known.metadata.clone();
                api.replace(&key.name, &PostParams::default(), &wanted).await.map(drop)
            }
            None => match api.create(&PostParams::default(), &wanted).await.map(drop) {
                // made by an earlier round that the cache has not seen
                Err(e) if edge_client::is_conflict(&e) => Err(e),
                other => other,
            },
        };
        match result {
            Err(e) if !edge_client::is_not_found(&e) => Err(e),
            _ => Ok(()),
        }
    }
}
