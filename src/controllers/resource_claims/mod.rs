//! Claims to devices (`resource-claim-controller`): made from templates for pods, and free again when nobody uses them.
//!
//! The scheduler sets devices aside for a claim and notes the pod among its users. Here claims come into being, users that have gone
//! are struck out, and with the last of them the devices are given back.

mod plan;

pub(crate) use plan::{claim_names, is_reserved_for};

use crate::context::{Context, unless_changed, unless_gone};
use crate::finalizers;
use edge_client::{
    Api, Change, DeleteParams, Error, EventType, Informer, Key, Outcome, Patch, PatchParams, PostParams, Preconditions,
    ResourceExt, WorkQueue, run_workers,
};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use parking_lot::Mutex;
use plan::Named;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

const WORKERS: usize = 4;

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Pod(Key),
    Claim(Key),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "pod {key}"),
            Self::Claim(key) => write!(f, "claim {key}"),
        }
    }
}

struct Controller {
    context: Context,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<ResourceClaim>>,
    templates: Arc<Informer<ResourceClaimTemplate>>,
    queue: Arc<WorkQueue<Work>>,
    /// Claims that were made for pods: by UID of the pod and name of the entry the claim's name, until the cache shows it. Without it one
    /// would be made again when the pod's status could not be written at once.
    made: Mutex<HashMap<(String, String), String>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        pods: context.informers.of(),
        claims: context.informers.of(),
        templates: context.informers.of(),
        queue: WorkQueue::new(),
        made: Mutex::default(),
        context,
    });
    let c = &controller;
    let (mut pods, mut claims, mut templates) = (c.pods.subscribe(), c.claims.subscribe(), c.templates.subscribe());
    c.pods.synced().await;
    c.claims.synced().await;
    c.templates.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = pods.recv() => c.pod_changed(&change),
                Some(change) = claims.recv() => c.claim_changed(&change),
                Some(change) = templates.recv() => c.template_changed(change.object()),
                else => return,
            }
        }
    };
    let worker = controller.clone();
    let work = run_workers("resource-claim", controller.queue.clone(), WORKERS, move |work: Work| {
        let controller = worker.clone();
        async move {
            match work {
                Work::Pod(key) => controller.reconcile_pod(&key).await,
                Work::Claim(key) => controller.reconcile_claim(&key).await,
            }
        }
    });
    tokio::join!(watch, work);
}

impl Controller {
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let gone = matches!(change, Change::Deleted(_));
        let names = claim_names(pod);
        if names.is_empty() && plan::entries(pod).is_empty() {
            return;
        }
        let key = Key::of(&**pod);
        if gone || !plan::needs_claims(pod) {
            names.into_iter().for_each(|name| self.queue.add(Work::Claim(Key::new(&key.namespace, name))));
        }
        if gone {
            let uid = pod.uid().unwrap_or_default();
            self.made.lock().retain(|(owner, _), _| *owner != uid);
        } else {
            self.queue.add(Work::Pod(key));
        }
    }

    fn claim_changed(&self, change: &Change<ResourceClaim>) {
        let claim = change.object();
        let key = Key::of(&**claim);
        let users = self.pods.list_namespace(&key.namespace).into_iter();
        for pod in users.filter(|p| plan::is_made_for(claim, p) || claim_names(p).contains(&key.name)) {
            self.queue.add(Work::Pod(Key::of(&*pod)));
        }
        if let Change::Applied { .. } = change {
            self.queue.add(Work::Claim(key));
        }
    }

    /// Pods may have waited for a template.
    fn template_changed(&self, template: &ResourceClaimTemplate) {
        let name = template.name_any();
        for pod in self.pods.list_namespace(&template.namespace().unwrap_or_default()) {
            let waits = |entry: &PodResourceClaim| {
                entry.resource_claim_template_name.as_ref() == Some(&name) && plan::named(&pod, entry) == Named::NotYet
            };
            if plan::entries(&pod).iter().any(waits) {
                self.queue.add(Work::Pod(Key::of(&*pod)));
            }
        }
    }

    async fn reconcile_pod(&self, key: &Key) -> Result<Outcome, Error> {
        let lives = |p: &Arc<Pod>| p.metadata.deletion_timestamp.is_none() && !crate::pods::is_finished(p);
        let Some(pod) = self.pods.get_key(key).filter(lives) else { return Ok(Outcome::Done) };
        let mut notes = Vec::new();
        for entry in plan::entries(&pod) {
            match self.claim_for(&pod, entry).await {
                Ok(Some(name)) if plan::named(&pod, entry) != Named::Claim(name.clone()) => {
                    notes.push(json!({"name": entry.name, "resourceClaimName": name}));
                }
                Ok(_) => {}
                Err(error) => {
                    let message = format!("PodResourceClaim {}: {error}", entry.name);
                    self.context.recorder.event(&*pod, EventType::Warning, "FailedResourceClaimCreation", message);
                    return Err(error);
                }
            }
        }
        if !notes.is_empty() {
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"resourceClaimStatuses": notes}});
            let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
            unless_changed(api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
            // its change brings the pod back
            return Ok(Outcome::Done);
        }
        if crate::pods::node(&pod).is_some() {
            self.reserve(&pod).await?;
        }
        Ok(Outcome::Done)
    }

    /// The name of the claim of an entry that is to be made of a template, after making it if need be; nothing where nothing is to be
    /// noted, or where a template is missing, whose coming brings the pod back.
    async fn claim_for(&self, pod: &Pod, entry: &PodResourceClaim) -> Result<Option<String>, Error> {
        let Some(template) = &entry.resource_claim_template_name else { return Ok(None) };
        let namespace = pod.namespace().unwrap_or_default();
        match plan::named(pod, entry) {
            Named::NotNeeded => return Ok(None),
            Named::Claim(name) if self.is_theirs(pod, &namespace, &name) => return Ok(None),
            Named::Claim(_) | Named::NotYet => {}
        }
        let place = (pod.uid().unwrap_or_default(), entry.name.clone());
        if let Some(known) = self.made_claim(pod, &namespace, &entry.name) {
            self.made.lock().remove(&place);
            return Ok(Some(known));
        }
        if let Some(name) = self.made.lock().get(&place) {
            return Ok(Some(name.clone()));
        }
        let Some(template) = self.templates.get(&namespace, template) else {
            let message = format!(
                "PodResourceClaim {}: resource claim template {template:?}: resourceclaimtemplates.resource.k8s.io {template:?} not found",
                entry.name
            );
            self.context.recorder.event(pod, EventType::Warning, "FailedResourceClaimCreation", message);
            return Ok(None);
        };
        let api: Api<ResourceClaim> = Api::namespaced(self.context.client.clone(), &namespace);
        let claim = plan::claim_from(&template, pod, &entry.name);
        let name = api.create(&PostParams::default(), &claim).await?.name_any();
        self.made.lock().insert(place, name.clone());
        Ok(Some(name))
    }

    /// Whether the claim of a name is there and was made for the pod, or has been made so recently that the cache does not show it.
    fn is_theirs(&self, pod: &Pod, namespace: &str, name: &str) -> bool {
        match self.claims.get(namespace, name) {
            Some(claim) => plan::is_made_for(&claim, pod),
            None => self.made.lock().values().any(|made| made == name),
        }
    }

    fn made_claim(&self, pod: &Pod, namespace: &str, entry: &str) -> Option<String> {
        let claims = self.claims.list_namespace(namespace).into_iter();
        let mut theirs = claims.filter(|claim| {
            claim.metadata.deletion_timestamp.is_none()
                && claim.annotations().get(plan::ENTRY).is_some_and(|name| name == entry)
                && plan::is_made_for(claim, pod)
        });
        theirs.next().map(|claim| claim.name_any())
    }

    /// A pod that somebody else than the scheduler has put on a node uses what has been set aside already.
    async fn reserve(&self, pod: &Pod) -> Result<(), Error> {
        let namespace = pod.namespace().unwrap_or_default();
        for name in claim_names(pod) {
            let Some(claim) = self.claims.get(&namespace, &name) else { continue };
            if !plan::is_allocated(&claim) || is_reserved_for(&claim, pod) {
                continue;
            }
            let mut users = plan::reservations(&claim).to_vec();
            users.push(ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".into(),
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
            });
            self.write_status(&claim, json!({"reservedFor": users})).await?;
        }
        Ok(())
    }

    async fn reconcile_claim(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(Outcome::Done) };
        self.made.lock().retain(|_, name| *name != key.name);
        let mut valid = Vec::new();
        for user in plan::reservations(&claim) {
            if self.still_uses(&key.namespace, user).await? {
                valid.push(user.clone());
            }
        }
        let owner = crate::owners::controller_of_kind::<Pod>(&*claim);
        let owner = owner.and_then(|owner| self.pods.get(&key.namespace, &owner.name));
        let step = plan::claim(&claim, &valid, owner.as_deref());
        let mut current = (*claim).clone();
        if let Some(status) = step.status {
            match self.write_status(&claim, status).await? {
                Some(written) => current = written,
                None => return Ok(Outcome::Done),
            }
        }
        let api: Api<ResourceClaim> = Api::namespaced(self.context.client.clone(), &key.namespace);
        if step.release {
            let patch = Patch::Merge(finalizers::without(&current, plan::FINALIZER));
            if unless_changed(api.patch(&key.name, &PatchParams::default(), &patch).await)?.is_none() {
                return Ok(Outcome::Done);
            }
        }
        if step.delete {
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: claim.uid(), resource_version: None }),
                ..DeleteParams::default()
            };
            unless_changed(api.delete(&key.name, &params).await)?;
        }
        Ok(Outcome::Done)
    }

    /// Whether a user of a claim is a pod that still needs it. A kind that is not known is left alone.
    async fn still_uses(&self, namespace: &str, user: &ResourceClaimConsumerReference) -> Result<bool, Error> {
        if user.resource != "pods" || user.api_group.as_deref().is_some_and(|group| !group.is_empty()) {
            return Ok(true);
        }
        let is_it = |pod: &Pod| pod.metadata.uid.as_ref() == Some(&user.uid);
        if let Some(pod) = self.pods.get(namespace, &user.name).filter(|pod| is_it(pod)) {
            return Ok(plan::needs_claims(&pod));
        }
        // the cache may not have seen the newest pods yet
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), namespace);
        let live = unless_gone(api.get(&user.name).await)?;
        Ok(live.is_some_and(|pod| is_it(&pod) && plan::needs_claims(&pod)))
    }

    /// Writes a status, on condition that the claim is still as it was; nothing when it is not.
    async fn write_status(&self, claim: &ResourceClaim, status: Value) -> Result<Option<ResourceClaim>, Error> {
        let api: Api<ResourceClaim> =
            Api::namespaced(self.context.client.clone(), &claim.namespace().unwrap_or_default());
        let patch =
            json!({"metadata": {"uid": claim.uid(), "resourceVersion": claim.resource_version()}, "status": status});
        unless_changed(api.patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)
    }
}
