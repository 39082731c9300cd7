//! Binds claims to volumes, has volumes made and reclaimed (`persistent-volume-binder`), and makes the claims of ephemeral volumes.
//!
//! One worker does both directions, so that no volume is given away twice; every write is on condition that the object is still as it was
//! when that was decided.

mod ephemeral;
mod expand;
mod local_path;
mod plan;

pub(crate) use ephemeral::run as run_ephemeral;
pub(crate) use expand::run as run_expand;

use crate::context::{Context, unless_changed, unless_gone};
use edge_client::claims::{
    BETA_PROVISIONER, BIND_COMPLETED, BOUND_BY_CONTROLLER, LOCAL_PATH, PROVISIONED_BY, PROVISIONER, class_of_claim,
    is_for, is_fully_bound, volume_name,
};
use edge_client::{
    Api, Change, Error, Informer, Key, Outcome, Patch, PatchParams, ResourceExt, WorkQueue, object_reference,
    run_workers,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use plan::{ClaimStep, Note, VolumeStep};
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Claim(Key),
    Volume(String),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(key) => write!(f, "claim {key}"),
            Self::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

/// Runs the binder. `local_path` is where nodes have the directories of volumes that it makes; nothing: it makes none.
pub(crate) async fn run(context: Context, local_path: Option<PathBuf>) {
    let binder = Binder {
        claims: context.informers.of(),
        volumes: context.informers.of(),
        classes: context.informers.of(),
        nodes: context.informers.of(),
        queue: WorkQueue::new(),
        local_path,
        context,
    };
    let (mut claims, mut volumes) = (binder.claims.subscribe(), binder.volumes.subscribe());
    let (mut classes, mut nodes) = (binder.classes.subscribe(), binder.nodes.subscribe());
    binder.claims.synced().await;
    binder.volumes.synced().await;
    binder.classes.synced().await;
    binder.nodes.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = claims.recv() => binder.claim_changed(&change),
                Some(change) = volumes.recv() => binder.volume_changed(&change),
                Some(change) = classes.recv() => binder.retry_claims_of(&change.object().name_any()),
                Some(change) = nodes.recv() => binder.node_changed(&change),
                else => return,
            }
        }
    };
    let work = run_workers("persistent-volume-binder", binder.queue.clone(), 1, |work: Work| {
        let binder = &binder;
        async move {
            match work {
                Work::Claim(key) => binder.reconcile_claim(&key).await,
                Work::Volume(name) => binder.reconcile_volume(&name).await,
            }
        }
    });
    tokio::join!(watch, work);
}

struct Binder {
    context: Context,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    nodes: Arc<Informer<Node>>,
    queue: Arc<WorkQueue<Work>>,
    local_path: Option<PathBuf>,
}

impl Binder {
    fn claim_changed(&self, change: &Change<PersistentVolumeClaim>) {
        let claim = change.object();
        self.queue.add(Work::Claim(Key::of(&**claim)));
        if !volume_name(claim).is_empty() {
            self.queue.add(Work::Volume(volume_name(claim).to_owned()));
        }
        if let Change::Deleted(claim) = change {
            let theirs = self.volumes.list().into_iter().filter(|volume| is_for(volume, claim));
            theirs.for_each(|volume| self.queue.add(Work::Volume(volume.name_any())));
        }
    }

    fn volume_changed(&self, change: &Change<PersistentVolume>) {
        let volume = change.object();
        self.queue.add(Work::Volume(volume.name_any()));
        match volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
            Some(r) => {
                let key = Key::new(r.namespace.clone().unwrap_or_default(), r.name.clone().unwrap_or_default());
                self.queue.add(Work::Claim(key));
            }
            None => self.retry_claims_of(edge_client::claims::class_of_volume(volume)),
        }
    }

    /// Something has come that claims of a class may have waited for.
    fn retry_claims_of(&self, class: &str) {
        for claim in self.claims.list() {
            if !is_fully_bound(&claim) && class_of_claim(&claim) == class {
                self.queue.add(Work::Claim(Key::of(&*claim)));
            }
        }
    }

    /// A node that is ready again, or gone for good, lets its volumes be reclaimed.
    fn node_changed(&self, change: &Change<Node>) {
        let helps = match change {
            Change::Applied { old, new } => {
                local_path::is_ready(new) && old.as_ref().is_none_or(|old| !local_path::is_ready(old))
            }
            Change::Deleted(_) => true,
        };
        if helps {
            let name = change.object().name_any();
            let theirs = self.volumes.list().into_iter().filter(|v| local_path::node_of(v) == Some(&name));
            theirs.for_each(|volume| self.queue.add(Work::Volume(volume.name_any())));
        }
    }

    async fn reconcile_claim(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(Outcome::Done) };
        let class = self.classes.get("", class_of_claim(&claim));
        match plan::claim(&claim, &self.volumes.list(), class.as_deref()) {
            ClaimStep::Nothing => {}
            ClaimStep::Wait(note) => {
                self.note(&claim, note);
                self.claim_status(&claim, json!({"phase": "Pending"})).await?;
            }
            ClaimStep::Lose(note) => {
                self.note(&claim, note);
                self.claim_status(&claim, json!({"phase": "Lost"})).await?;
            }
            ClaimStep::Bind(volume) => self.bind(&volume, &claim).await?,
            ClaimStep::Provision => {
                if let Some(class) = class {
                    self.provision(&claim, &class).await?;
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// The volume is told of its claim, the claim of its volume; what is said already is not said again. When somebody else was faster, his
    /// change brings this one back.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
        let mut volume = volume.clone();
        let known = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if known.and_then(|r| r.uid.as_ref()) != claim.metadata.uid.as_ref() {
            let mut patch = on_condition(&volume, json!({"spec": {"claimRef": object_reference(claim)}}));
            if known.is_none() {
                patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
            }
            let params = PatchParams::default();
            match unless_changed(volumes.patch(&volume.name_any(), &params, &Patch::Merge(patch)).await)? {
                Some(written) => volume = written,
                None => return Ok(()),
            }
        }
        self.volume_phase(&volume, "Bound", None).await?;

        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.client.clone(), &claim.namespace().unwrap_or_default());
        let mut claim = claim.clone();
        if !is_fully_bound(&claim) {
            let mut annotations = json!({BIND_COMPLETED: "yes"});
            if volume_name(&claim).is_empty() {
                annotations[BOUND_BY_CONTROLLER] = "yes".into();
            }
            let mut patch = on_condition(&claim, json!({"spec": {"volumeName": volume.name_any()}}));
            patch["metadata"]["annotations"] = annotations;
            let params = PatchParams::default();
            match unless_changed(claims.patch(&claim.name_any(), &params, &Patch::Merge(patch)).await)? {
                Some(written) => claim = written,
                None => return Ok(()),
            }
        }
        let spec = volume.spec.as_ref();
        let mut status = json!({"phase": "Bound", "accessModes": spec.and_then(|s| s.access_modes.as_ref()),
            "capacity": spec.and_then(|s| s.capacity.as_ref())});
        // what a running claim has may have grown beyond what its volume began with
        if claim.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Bound") && s.capacity.is_some()) {
            status["capacity"] = json!(claim.status.as_ref().and_then(|s| s.capacity.as_ref()));
        }
        if let Some(class) = spec.and_then(|s| s.volume_attributes_class_name.as_ref()) {
            status["currentVolumeAttributesClassName"] = class.clone().into();
        }
        self.claim_status(&claim, status).await
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<(), Error> {
        let provisioner = class.provisioner.as_str();
        if claim.annotations().get(PROVISIONER).map(String::as_str) != Some(provisioner) {
            let mut patch = on_condition(claim, json!({}));
            patch["metadata"]["annotations"] = json!({PROVISIONER: provisioner, BETA_PROVISIONER: provisioner});
            let claims: Api<PersistentVolumeClaim> =
                Api::namespaced(self.context.client.clone(), &claim.namespace().unwrap_or_default());
            let params = PatchParams::default();
            // the change brings the claim back
            return unless_changed(claims.patch(&claim.name_any(), &params, &Patch::Merge(patch)).await).map(drop);
        }
        match &self.local_path {
            Some(root) if provisioner == LOCAL_PATH => match local_path::volume_for(claim, class, &self.nodes, root) {
                Ok(volume) => {
                    let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
                    match volumes.create(&Default::default(), &volume).await {
                        Err(error) if !edge_client::is_already_exists(&error) => return Err(error),
                        _ => {}
                    }
                    let message = format!("Successfully provisioned volume {}", volume.name_any());
                    self.note(claim, Note::normal("ProvisioningSucceeded", message));
                    return Ok(());
                }
                Err(why) => {
                    let message =
                        format!("failed to provision volume with StorageClass \"{}\": {why}", class.name_any());
                    self.note(claim, Note::warning("ProvisioningFailed", message));
                }
            },
            _ => {
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
                );
                self.note(claim, Note::normal("ExternalProvisioning", message));
            }
        }
        self.claim_status(claim, json!({"phase": "Pending"})).await
    }

    async fn reconcile_volume(&self, name: &str) -> Result<Outcome, Error> {
        let Some(volume) = self.volumes.get("", name) else { return Ok(Outcome::Done) };
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        let key = reference
            .map(|r| Key::new(r.namespace.clone().unwrap_or_default(), r.name.clone().unwrap_or_default()))
            .unwrap_or_else(|| Key::new("", ""));
        let claim = self.claims.get_key(&key);
        match plan::volume(&volume, claim.as_deref()) {
            VolumeStep::Phase(phase) => {
                self.volume_phase(&volume, phase, None).await?;
                // one that is deleted without ever having been used
                if phase == "Available" && volume.metadata.deletion_timestamp.is_some() {
                    return self.reclaim(&volume).await;
                }
            }
            VolumeStep::TellClaim => self.queue.add(Work::Claim(key)),
            VolumeStep::Unbind => self.unbind(&volume).await?,
            VolumeStep::Reclaim => {
                // the cache of claims may be behind that of volumes
                let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), &key.namespace);
                let live = unless_gone(claims.get(&key.name).await)?;
                let uid = reference.and_then(|r| r.uid.as_ref());
                if live.is_some_and(|c| c.metadata.uid.as_ref() == uid && volume_name(&c) == name) {
                    return Ok(Outcome::Done);
                }
                return self.reclaim(&volume).await;
            }
        }
        Ok(Outcome::Done)
    }

    async fn unbind(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let mut patch = if plan::chosen_by_controller(volume) {
            on_condition(volume, json!({"spec": {"claimRef": null}}))
        } else {
            // the reservation was a user's
            on_condition(volume, json!({"spec": {"claimRef": {"uid": null, "resourceVersion": null}}}))
        };
        patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: null});
        let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
        unless_changed(volumes.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await).map(drop)
    }

    /// Deals with what was written to a volume whose claim is gone, as its policy says.
    async fn reclaim(&self, volume: &PersistentVolume) -> Result<Outcome, Error> {
        let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        let failed = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed");
        if !failed && volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some()) {
            self.volume_phase(volume, "Released", None).await?;
        }
        let by = volume.annotations().get(PROVISIONED_BY).map(String::as_str);
        match (policy, by) {
            (Some("Delete"), Some(LOCAL_PATH)) if self.local_path.is_some() => {
                match local_path::remove(&self.context.client, &self.nodes, volume).await {
                    Ok(done) => return Ok(done),
                    Err(why) => self.reclaim_failed(volume, "VolumeFailedDelete", &why.to_string()).await?,
                }
                // tried again when the node is ready the next time, and now and then
                Err(Error::Service("the directory of a volume was not removed".into()))
            }
            // whoever has made it removes it
            (Some("Delete"), Some(_)) => Ok(Outcome::Done),
            (Some("Delete"), None) => {
                let why = format!(
                    "error getting deleter volume plugin for volume \"{}\": no deletable volume plugin matched",
                    volume.name_any()
                );
                self.reclaim_failed(volume, "VolumeFailedDelete", &why).await?;
                Ok(Outcome::Done)
            }
            (Some("Recycle"), _) => {
                self.reclaim_failed(volume, "VolumeFailedRecycle", "No recycler plugin found for the volume!").await?;
                Ok(Outcome::Done)
            }
            // kept; but what stays when the object goes must not hold it
            _ => local_path::let_go(&self.context.client, volume).await,
        }
    }

    async fn reclaim_failed(&self, volume: &PersistentVolume, reason: &'static str, why: &str) -> Result<(), Error> {
        let known = volume.status.as_ref();
        if known.is_some_and(|s| s.phase.as_deref() == Some("Failed") && s.message.as_deref() == Some(why)) {
            return Ok(());
        }
        self.context.recorder.event(volume, edge_client::EventType::Warning, reason, why);
        self.volume_phase(volume, "Failed", Some(why)).await
    }

    fn note(&self, claim: &PersistentVolumeClaim, note: Note) {
        self.context.recorder.event(claim, note.kind, note.reason, note.message);
    }

    async fn volume_phase(&self, volume: &PersistentVolume, phase: &str, message: Option<&str>) -> Result<(), Error> {
        let known = volume.status.as_ref();
        if known.is_some_and(|s| s.phase.as_deref() == Some(phase) && s.message.as_deref() == message) {
            return Ok(());
        }
        let mut status = json!({"phase": phase, "message": message, "reason": null});
        if known.and_then(|s| s.phase.as_deref()) != Some(phase) {
            status["lastPhaseTransitionTime"] = json!(k8s_openapi::jiff::Timestamp::now().to_string());
        }
        let patch = Patch::Merge(json!({"metadata": {"uid": volume.uid()}, "status": status}));
        let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
        unless_changed(volumes.patch_status(&volume.name_any(), &PatchParams::default(), &patch).await).map(drop)
    }

    async fn claim_status(&self, claim: &PersistentVolumeClaim, status: Value) -> Result<(), Error> {
        let known = serde_json::to_value(&claim.status).map_err(Error::SerdeError)?;
        let same = status.as_object().into_iter().flatten().all(|(key, value)| known.get(key) == Some(value));
        if same {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"metadata": {"uid": claim.uid()}, "status": status}));
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.client.clone(), &claim.namespace().unwrap_or_default());
        unless_changed(claims.patch_status(&claim.name_any(), &PatchParams::default(), &patch).await).map(drop)
    }
}

/// A merge patch that is refused once the object has changed.
fn on_condition(object: &impl ResourceExt, mut patch: Value) -> Value {
    patch["metadata"] = json!({"uid": object.uid(), "resourceVersion": object.resource_version()});
    patch
}
