//! From a volume that a pod wants to one that its containers can use: attached, staged, published.

use super::Csi;
use super::client::{Client, Request};
use super::drivers::{Driver, DriverError};
use super::state::Volume;
use super::volume::{Policy, SecretName, Source, attachment_name, unique_name};
use crate::context::Context;
use crate::volumes::{Ready, local};
use edge_client::Api;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

/// What the driver gets tokens as.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Why a volume is not there yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation} failed for volume {volume:?} : {why}")]
pub(crate) struct MountError {
    /// What was attempted, in Kubernetes' words.
    pub(crate) operation: &'static str,
    volume: String,
    why: String,
    /// Asking again is of no use before the driver has come.
    pub(crate) waits_for_driver: bool,
}

/// What a pod's volume is made with.
pub(crate) struct Use<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) pod: &'a Pod,
    /// What the pod calls the volume.
    pub(crate) name: &'a str,
    pub(crate) source: &'a Source,
    pub(crate) policy: &'a Policy,
    /// Tokens of the pod's account for the driver, as JSON.
    pub(crate) tokens: Option<String>,
    /// What the attacher has found out.
    pub(crate) publish_context: BTreeMap<String, String>,
}

impl Use<'_> {
    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Somebody else has to attach it to the node first.
    fn is_attached(&self) -> bool {
        self.policy.must_attach && !self.source.is_inline
    }

    fn failed(&self, is_staged: bool, why: impl ToString) -> MountError {
        let operation = match (self.source.is_block, is_staged) {
            (false, false) => "MountVolume.MountDevice",
            (false, true) => "MountVolume.SetUp",
            (true, false) => "MapVolume.SetUpDevice",
            (true, true) => "MapVolume.MapPodDevice",
        };
        let (volume, why) = (self.source.name.clone(), why.to_string());
        MountError { operation, volume, why, waits_for_driver: false }
    }

    /// The first failure of a volume of the pod's own is one of its set-up: it has no other step.
    fn early(&self, error: DriverError) -> MountError {
        let waits_for_driver = matches!(error, DriverError::Unknown(_));
        MountError { waits_for_driver, ..self.failed(self.source.is_inline, error) }
    }

    pub(super) async fn secrets(
        &self,
        name: Option<&SecretName>,
        what: &str,
    ) -> Result<BTreeMap<String, String>, String> {
        let Some((namespace, name)) = name else { return Ok(BTreeMap::new()) };
        let api: Api<Secret> = Api::namespaced(self.cx.client.clone(), namespace);
        let found = api.get(name).await;
        let secret = found.map_err(|error| format!("fetching {what} {namespace}/{name} failed: {error}"))?;
        let text = |(key, value): (String, k8s_openapi::ByteString)| (key, String::from_utf8_lossy(&value.0).into());
        Ok(secret.data.unwrap_or_default().into_iter().map(text).collect())
    }
}

impl Csi {
    /// Notes that a pod wants a volume, and waits until that is attached to the node; gives what the attacher has found out.
    ///
    /// # Errors
    /// When the driver is not here, or does not serve such volumes.
    pub(crate) async fn attach(&self, wanted: &Use<'_>) -> Result<BTreeMap<String, String>, MountError> {
        let (source, key) = (wanted.source, wanted.source.key());
        wanted.policy.check(source).map_err(|why| wanted.failed(true, why))?;
        self.drivers.of(&source.driver).map_err(|error| wanted.early(error))?;
        let noted = self.change(|volumes| {
            let volume = volumes.0.entry(key.clone()).or_default();
            volume.name.clone_from(&source.name);
            (volume.is_block, volume.is_attached) = (source.is_block, wanted.is_attached());
            let published = volume.pods.entry(wanted.uid().to_owned()).or_default();
            if !published.names.iter().any(|name| name == wanted.name) {
                published.names.push(wanted.name.to_owned());
            }
        });
        noted.await.map_err(|why| wanted.failed(source.is_inline, why))?;
        self.publish_context(wanted).await
    }

    /// Waits until a volume is attached to the node; gives what the attacher has found out.
    async fn publish_context(&self, wanted: &Use<'_>) -> Result<BTreeMap<String, String>, MountError> {
        let (cx, key) = (wanted.cx, wanted.source.key());
        if !wanted.is_attached() {
            return Ok(BTreeMap::new());
        }
        let unique = unique_name(&key);
        // the controller must know first, so that it does not take the volume away
        let mut reported = self.reported.subscribe();
        if reported.wait_for(|told| told.contains(&unique)).await.is_err() {
            return std::future::pending().await;
        }
        told_attached(cx, &unique).await.map_err(|error| wanted.failed(false, error))?;
        let api: Api<VolumeAttachment> = Api::all(cx.client.clone());
        let name = attachment_name(&key, &cx.config.node_name);
        let found = api.get(&name).await.map_err(|error| wanted.failed(false, error))?;
        let stays = found.metadata.deletion_timestamp.is_none();
        match found.status {
            Some(status) if status.attached && stays => Ok(status.attachment_metadata.unwrap_or_default()),
            _ => Err(wanted.failed(false, format!("volume attachment {name} is not attached"))),
        }
    }

    /// Stages a volume, unless another pod has it already, and publishes it for the pod.
    ///
    /// # Errors
    /// What stood in the way, in the driver's words.
    pub(crate) async fn mount(&self, wanted: &Use<'_>) -> Result<Ready, MountError> {
        let (source, key) = (wanted.source, wanted.source.key());
        let _held = self.state.busy(&BTreeSet::from([key.clone()])).await;
        if let Some(ready) = self.ready(wanted.uid(), wanted.name) {
            return Ok(ready);
        }
        let known = self.state.look(|volumes| volumes.0.get(&key).cloned());
        let known = known.ok_or_else(|| wanted.failed(true, "nobody wants it any more"))?;
        let driver = self.drivers.of(&source.driver).map_err(|error| wanted.early(error))?;
        let client = driver.connect().await.map_err(|error| wanted.early(error.into()))?;
        self.stage(wanted, &driver, &client, &known).await.map_err(|why| wanted.failed(source.is_inline, why))?;
        self.publish(wanted, &driver, &client).await.map_err(|why| wanted.failed(true, why))?;
        let done = self.change(|volumes| {
            let published = volumes.0.get_mut(&key).and_then(|volume| volume.pods.get_mut(wanted.uid()));
            if let Some(published) = published {
                (published.is_done, published.read_only) = (true, source.read_only);
            }
        });
        done.await.map_err(|why| wanted.failed(true, why))?;
        self.ready(wanted.uid(), wanted.name).ok_or_else(|| wanted.failed(true, "nobody wants it any more"))
    }

    async fn stage(&self, wanted: &Use<'_>, driver: &Driver, client: &Client, known: &Volume) -> Result<(), String> {
        let (source, key) = (wanted.source, wanted.source.key());
        let capabilities = driver.capabilities().await.map_err(|error| error.to_string())?;
        if source.is_inline || !capabilities.stages || known.is_staged {
            return Ok(());
        }
        let secrets = wanted.secrets(source.stage_secret.as_ref(), "NodeStageSecretRef").await?;
        let staging = source.staging(&wanted.cx.config);
        make_dir(&staging).await?;
        let begun = staging.clone();
        self.change(|volumes| volumes.0.entry(key.clone()).or_default().staging = Some(begun)).await?;
        let group = crate::containers::security::fs_group(wanted.pod);
        let request = Request {
            handle: &source.handle,
            publish_context: wanted.publish_context.clone(),
            staging: Some(&staging),
            capability: source.capability(capabilities, group),
            secrets,
            context: source.attributes.clone(),
            ..Request::default()
        };
        client.stage(&request).await.map_err(|error| error.to_string())?;
        self.change(|volumes| volumes.0.entry(key).or_default().is_staged = true).await
    }

    async fn publish(&self, wanted: &Use<'_>, driver: &Driver, client: &Client) -> Result<(), String> {
        let (cx, source, key) = (wanted.cx, wanted.source, wanted.source.key());
        let target = source.target(&cx.config, wanted.uid());
        make_dir(target.parent().unwrap_or(&target)).await?;
        let begun = target.clone();
        let noted = self.change(|volumes| {
            let published = volumes.0.get_mut(&key).and_then(|volume| volume.pods.get_mut(wanted.uid()));
            published.map(|published| published.target = Some(begun)).is_some()
        });
        if !noted.await? {
            return Err("nobody wants it any more".to_owned());
        }
        self.call_publish(wanted, driver, client).await?;
        if source.is_block {
            let file = std::fs::metadata(&target).map_err(|error| format!("{}: {error}", target.display()))?;
            let is_device = file.file_type().is_block_device();
            return if is_device { Ok(()) } else { Err(format!("{} is not a block device", target.display())) };
        }
        let capabilities = driver.capabilities().await.map_err(|error| error.to_string())?;
        let group = crate::containers::security::fs_group(wanted.pod);
        let group = group.filter(|_| !capabilities.mounts_for_group && source.is_for_group(&wanted.policy.fs_group));
        let Some(group) = group else { return Ok(()) };
        let only_if_needed = crate::containers::security::changes_group_if_needed(wanted.pod);
        let given = tokio::task::spawn_blocking(move || local::set_group(&target, group, only_if_needed)).await;
        let given = given.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        given.map_err(|error| format!("applyFSGroup failed for vol {}: {error}", source.handle))
    }

    async fn call_publish(&self, wanted: &Use<'_>, driver: &Driver, client: &Client) -> Result<(), String> {
        let (cx, source) = (wanted.cx, wanted.source);
        let capabilities = driver.capabilities().await.map_err(|error| error.to_string())?;
        let mut secrets = wanted.secrets(source.publish_secret.as_ref(), "NodePublishSecretRef").await?;
        let mut context = source.attributes.clone();
        context.extend(wanted.policy.about(wanted.pod, source));
        if let Some(tokens) = wanted.tokens.clone() {
            let to = if wanted.policy.tokens_in_secrets { &mut secrets } else { &mut context };
            to.insert(TOKENS.to_owned(), tokens);
        }
        let staging = source.staging(&cx.config);
        let target = source.target(&cx.config, wanted.uid());
        let group = crate::containers::security::fs_group(wanted.pod);
        let request = Request {
            handle: &source.handle,
            publish_context: wanted.publish_context.clone(),
            staging: Some(staging.as_path()).filter(|_| capabilities.stages && !source.is_inline),
            target: Some(&target),
            capability: source.capability(capabilities, group),
            read_only: source.read_only,
            secrets,
            context,
        };
        client.publish(&request).await.map_err(|error| error.to_string())
    }

    /// Publishes a volume once more, for a driver that wants it so.
    ///
    /// # Errors
    /// The driver's words.
    pub(crate) async fn republish(&self, wanted: &mut Use<'_>) -> Result<(), MountError> {
        wanted.publish_context = self.publish_context(wanted).await?;
        let _held = self.state.busy(&BTreeSet::from([wanted.source.key()])).await;
        if self.ready(wanted.uid(), wanted.name).is_none() {
            return Ok(());
        }
        let driver: Arc<Driver> = self.drivers.of(&wanted.source.driver).map_err(|error| wanted.early(error))?;
        let client = driver.connect().await.map_err(|error| wanted.early(error.into()))?;
        self.call_publish(wanted, &driver, &client).await.map_err(|why| wanted.failed(true, why))
    }
}

/// Waits until the node is told that a volume is attached.
async fn told_attached(cx: &Context, unique: &str) -> Result<(), edge_client::Error> {
    let told = |node: &Node| {
        let attached = node.status.as_ref().and_then(|s| s.volumes_attached.as_deref()).unwrap_or_default();
        attached.iter().any(|volume| volume.name == unique)
    };
    let mut changes = cx.node.subscribe();
    let api: Api<Node> = Api::all(cx.client.clone());
    loop {
        // the cache may be behind: it may have been taken away just before the controller heard that it is used
        let known = cx.node.get("", &cx.config.node_name).is_some_and(|node| told(&node));
        if known && told(&api.get(&cx.config.node_name).await?) {
            return Ok(());
        }
        if changes.recv().await.is_none() {
            return std::future::pending().await;
        }
    }
}

async fn make_dir(path: &Path) -> Result<(), String> {
    let dir = path.to_owned();
    let made = tokio::task::spawn_blocking(move || edge_sys::fsutil::create_dir_all_mode(&dir, 0o750)).await;
    let made = made.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    made.map_err(|error| format!("kubernetes.io/csi: failed to create dir {}: {error}", path.display()))
}
