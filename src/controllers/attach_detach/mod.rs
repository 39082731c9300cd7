//! Volumes of drivers are attached to the nodes whose pods use them, and taken away when nobody does (`attachdetach-controller`).
//!
//! An attachment is an object that the driver's attacher fulfils; nodes are told in their status what is attached, and mount nothing
//! else. What a node has mounted stays attached: a volume at two nodes is a volume lost.

mod plan;

use crate::context::{Context, unless_changed, unless_gone};
use edge_client::claims::volume_name;
use edge_client::{
    Api, Change, DeleteParams, Error, EventType, Informer, Outcome, Patch, PatchParams, PostParams, Preconditions,
    ResourceExt, WorkQueue, run_workers,
};
use k8s_openapi::api::core::v1::{AttachedVolume, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use plan::Detach;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::time::Instant;

const WORKERS: usize = 4;

struct Controller {
    context: Context,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    drivers: Arc<Informer<CSIDriver>>,
    attachments: Arc<Informer<VolumeAttachment>>,
    /// Names of nodes.
    queue: Arc<WorkQueue<String>>,
    /// Since when nobody needs an attachment, by its name.
    unneeded: Mutex<HashMap<String, Instant>>,
    /// Attachments that were asked for and that the cache does not show yet: by name the volume and the node.
    making: Mutex<HashMap<String, (String, String)>>,
}

/// A volume that pods need at a node.
struct Wanted {
    volume: Arc<PersistentVolume>,
    pods: Vec<Arc<Pod>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        pods: context.informers.of(),
        nodes: context.informers.of(),
        claims: context.informers.of(),
        volumes: context.informers.of(),
        drivers: context.informers.of(),
        attachments: context.informers.of(),
        queue: WorkQueue::new(),
        unneeded: Mutex::default(),
        making: Mutex::default(),
        context,
    });
    let c = &controller;
    let (mut pods, mut nodes, mut claims) = (c.pods.subscribe(), c.nodes.subscribe(), c.claims.subscribe());
    let (mut volumes, mut drivers) = (c.volumes.subscribe(), c.drivers.subscribe());
    let mut attachments = c.attachments.subscribe();
    c.pods.synced().await;
    c.nodes.synced().await;
    c.claims.synced().await;
    c.volumes.synced().await;
    c.drivers.synced().await;
    c.attachments.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = pods.recv() => c.pod_changed(&change),
                Some(change) = nodes.recv() => c.node_changed(&change),
                Some(change) = claims.recv() => c.claim_changed(change.object()),
                Some(change) = volumes.recv() => c.add_users(change.object()),
                Some(change) = drivers.recv() => c.driver_changed(&change.object().name_any()),
                Some(change) = attachments.recv() => c.attachment_changed(&change),
                else => return,
            }
        }
    };
    let worker = controller.clone();
    let work = run_workers("attach-detach", controller.queue.clone(), WORKERS, move |node: String| {
        let controller = worker.clone();
        async move { controller.reconcile(&node).await }
    });
    tokio::join!(watch, work);
}

/// What a driver says went wrong.
fn attach_error(attachment: &VolumeAttachment) -> Option<&String> {
    attachment.status.as_ref()?.attach_error.as_ref()?.message.as_ref()
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|s| s.attached)
}

impl Controller {
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let has_claims = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        if let Some(node) = crate::pods::node(pod)
            && has_claims.into_iter().any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some())
        {
            self.queue.add(node.to_owned());
        }
    }

    fn node_changed(&self, change: &Change<Node>) {
        type Facts<'a> = (&'a [String], &'a [AttachedVolume], bool, bool);
        fn facts(node: &Node) -> Facts<'_> {
            (plan::in_use(node), plan::told_attached(node), plan::is_healthy(node), plan::is_out_of_service(node))
        }
        let same = match change {
            Change::Applied { old: Some(old), new } => facts(old) == facts(new),
            Change::Applied { old: None, .. } | Change::Deleted(_) => false,
        };
        if !same {
            self.queue.add(change.object().name_any());
        }
    }

    fn claim_changed(&self, claim: &PersistentVolumeClaim) {
        if let Some(volume) = self.volumes.get("", volume_name(claim)) {
            self.add_users(&volume);
        }
    }

    fn driver_changed(&self, driver: &str) {
        for volume in self.volumes.list() {
            if plan::driver_part(&volume).is_some_and(|part| part.driver == driver) {
                self.add_users(&volume);
            }
        }
    }

    fn attachment_changed(&self, change: &Change<VolumeAttachment>) {
        let attachment = change.object();
        self.making.lock().remove(&attachment.name_any());
        if let Change::Applied { old, new } = change {
            self.tell_outcome(old.as_deref(), new);
        }
        self.queue.add(attachment.spec.node_name.clone());
        if let Change::Deleted(_) = change {
            self.unneeded.lock().remove(&attachment.name_any());
            // others may have waited for it
            let volume = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
            if let Some(volume) = self.volumes.get("", volume) {
                self.add_users(&volume);
            }
        }
    }

    /// Tells those who wait for a volume what its driver said.
    fn tell_outcome(&self, old: Option<&VolumeAttachment>, new: &VolumeAttachment) {
        let name = new.spec.source.persistent_volume_name.clone().unwrap_or_default();
        let attached = is_attached(new) && !old.is_some_and(is_attached);
        let error = attach_error(new).filter(|error| old.and_then(attach_error) != Some(error));
        // what was so before edge started is no news
        let (Some(_), Some(volume)) = (old, self.volumes.get("", &name).filter(|_| plan::is_made_here(new))) else {
            return;
        };
        for pod in self.users(&volume).iter().filter(|pod| plan::needs_at(pod) == Some(new.spec.node_name.as_str())) {
            if attached {
                let message = format!("AttachVolume.Attach succeeded for volume \"{name}\" ");
                self.context.recorder.event(&**pod, EventType::Normal, "SuccessfulAttachVolume", message);
            } else if let Some(error) = error {
                let message = format!("AttachVolume.Attach failed for volume \"{name}\" : {error}");
                self.context.recorder.event(&**pod, EventType::Warning, "FailedAttachVolume", message);
            }
        }
    }

    fn add_users(&self, volume: &PersistentVolume) {
        for pod in self.users(volume) {
            if let Some(node) = crate::pods::node(&pod) {
                self.queue.add(node.to_owned());
            }
        }
    }

    /// The pods that use a driver's volume.
    fn users(&self, volume: &PersistentVolume) -> Vec<Arc<Pod>> {
        let claim = plan::driver_part(volume).and_then(|_| volume.spec.as_ref()?.claim_ref.as_ref());
        let Some((namespace, name)) = claim.and_then(|r| Some((r.namespace.as_ref()?, r.name.as_ref()?))) else {
            return Vec::new();
        };
        if !self.claims.get(namespace, name).is_some_and(|claim| plan::is_bound(volume, &claim)) {
            return Vec::new();
        }
        self.pods.list_namespace(namespace).into_iter().filter(|pod| plan::uses(pod, name)).collect()
    }

    /// What pods need at a node, by the name of the attachment.
    fn wanted(&self, node: &str) -> HashMap<String, Wanted> {
        let mut wanted = HashMap::new();
        for volume in self.volumes.list() {
            let Some(part) = plan::driver_part(&volume) else { continue };
            if !plan::must_attach(self.drivers.get("", &part.driver).as_deref()) {
                continue;
            }
            let users = self.users(&volume).into_iter();
            let pods: Vec<_> = users.filter(|pod| plan::needs_at(pod) == Some(node)).collect();
            if !pods.is_empty() {
                let name = plan::attachment_name(part, node);
                wanted.insert(name, Wanted { volume, pods });
            }
        }
        wanted
    }

    async fn reconcile(&self, name: &str) -> Result<Outcome, Error> {
        let node = self.nodes.get("", name);
        if node.as_ref().is_some_and(|node| plan::attaches_itself(node)) {
            return Ok(Outcome::Done);
        }
        let mut wanted = self.wanted(name);
        let here = |a: &Arc<VolumeAttachment>| a.spec.node_name == name && plan::is_made_here(a);
        let attachments: Vec<_> = self.attachments.list().into_iter().filter(here).collect();
        let (mut leaving, mut attached, mut soonest) = (Vec::new(), Vec::new(), None);
        for attachment in attachments {
            let needed = wanted.remove(&attachment.name_any()).is_some();
            if attachment.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let volume = attachment.spec.source.persistent_volume_name.as_deref();
            let volume = volume.and_then(|volume| self.volumes.get("", volume));
            let known = volume.as_deref().and_then(plan::driver_part).map(plan::unique_name).unwrap_or_default();
            if needed {
                self.unneeded.lock().remove(&attachment.name_any());
            } else {
                let since = *self.unneeded.lock().entry(attachment.name_any()).or_insert_with(Instant::now);
                match plan::detach(node.as_deref(), &known, since.elapsed()) {
                    Detach::Now => {
                        leaving.push(attachment);
                        continue;
                    }
                    Detach::In(left) => soonest = soonest.into_iter().chain([left]).min(),
                    Detach::Wait => {}
                }
            }
            if is_attached(&attachment) && !known.is_empty() {
                attached.push(known);
            }
        }
        // first the node must know that it may mount them no longer
        if let Some(node) = &node {
            self.tell_node(node, attached).await?;
        }
        for attachment in leaving {
            self.remove(&attachment).await?;
        }
        if node.is_some() {
            for (attachment, wanted) in wanted {
                self.attach(name, &attachment, &wanted).await?;
            }
        }
        Ok(soonest.map_or(Outcome::Done, Outcome::After))
    }

    /// Says in a node's status which volumes it has.
    async fn tell_node(&self, node: &Node, mut attached: Vec<String>) -> Result<(), Error> {
        attached.sort();
        let mut told: Vec<&str> = plan::told_attached(node).iter().map(|volume| volume.name.as_str()).collect();
        told.sort_unstable();
        if told == attached {
            return Ok(());
        }
        let list: Vec<_> = attached.iter().map(|name| json!({"name": name, "devicePath": ""})).collect();
        let list = if list.is_empty() { serde_json::Value::Null } else { list.into() };
        let patch = json!({"metadata": {"uid": node.uid()}, "status": {"volumesAttached": list}});
        let api: Api<Node> = Api::all(self.context.client.clone());
        unless_gone(api.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)?;
        Ok(())
    }

    async fn remove(&self, attachment: &VolumeAttachment) -> Result<(), Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: attachment.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        let api: Api<VolumeAttachment> = Api::all(self.context.client.clone());
        unless_changed(api.delete(&attachment.name_any(), &params).await)?;
        Ok(())
    }

    async fn attach(&self, node: &str, name: &str, wanted: &Wanted) -> Result<(), Error> {
        let volume = wanted.volume.name_any();
        let Some(part) = plan::driver_part(&wanted.volume) else { return Ok(()) };
        if !self.take(name, wanted, node) {
            // its going brings the node back
            let message = format!(
                "Multi-Attach error for volume \"{volume}\" Volume is already exclusively attached to one node and can't be attached to another"
            );
            for pod in &wanted.pods {
                self.context.recorder.event(&**pod, EventType::Warning, "FailedAttachVolume", message.clone());
            }
            return Ok(());
        }
        let attachment = VolumeAttachment {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            spec: VolumeAttachmentSpec {
                attacher: part.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource { persistent_volume_name: Some(volume), inline_volume_spec: None },
            },
            status: None,
        };
        let api: Api<VolumeAttachment> = Api::all(self.context.client.clone());
        match api.create(&PostParams::default(), &attachment).await {
            Ok(_) => Ok(()),
            // the cache was behind
            Err(error) if edge_client::is_already_exists(&error) => Ok(()),
            Err(error) => {
                self.making.lock().remove(name);
                Err(error)
            }
        }
    }

    /// Notes that a volume is about to be attached to a node, unless it is at another one and can be at one only.
    fn take(&self, attachment: &str, wanted: &Wanted, node: &str) -> bool {
        let volume = wanted.volume.name_any();
        let mut making = self.making.lock();
        let elsewhere = |a: &Arc<VolumeAttachment>| {
            a.spec.source.persistent_volume_name.as_ref() == Some(&volume)
                && a.spec.node_name != node
                && plan::is_made_here(a)
        };
        let taken = making.values().any(|(other, at)| *other == volume && at != node)
            || self.attachments.list().iter().any(elsewhere);
        if taken && plan::is_exclusive(&wanted.volume) {
            return false;
        }
        making.insert(attachment.to_owned(), (volume, node.to_owned()));
        true
    }
}
