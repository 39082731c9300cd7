//! The volumes of pods: made before the containers start, kept up to date while they run, removed after they ended.
//!
//! Comes in: the pod, the configMaps and secrets it refers to, tokens. Goes out: directories below
//! `<agent>/pods/<uid>/volumes/<plugin>/<name>`. What holds secrets lives in memory only.

pub(crate) mod atomic;
mod drivers;
pub(crate) mod local;
pub(crate) mod payload;
pub(crate) mod subpath;
mod token;

use crate::context::Context;
use crate::objects::Watched;
use crate::plugins::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::pods::kept::{ClaimSource, Kept};
use crate::pods::objects::{PodObjects, Unanswered};
use crate::pods::record::RETRY;
use atomic::{FileContent, Payload};
use edge_client::{Api, EventType, ResourceExt, claims};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, ProjectedVolumeSource, Volume,
};
use parking_lot::Mutex;
use payload::{DEFAULT_MODE, config_map_data, secret_data};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use token::Tokens;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// After how long it is told which volumes are still missing (Kubernetes' value).
const SLOW: Duration = Duration::from_secs(123);

/// Why a volume cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    #[error("no server answers, and {0} is not known from before")]
    Alone(String),
    #[error(transparent)]
    Payload(#[from] payload::PayloadError),
    #[error(transparent)]
    Write(#[from] atomic::WriteError),
    #[error(transparent)]
    HostPath(#[from] local::HostPathError),
    #[error("failed to fetch token")]
    Token(#[source] edge_client::Error),
    #[error("cannot read {0}")]
    Api(String, #[source] edge_client::Error),
    #[error("persistentvolumeclaim \"{0}\" is not bound")]
    NotBound(String),
    #[error("persistentvolumeclaim \"{claim}\" is not bound to persistentvolume \"{volume}\"")]
    BoundElsewhere { claim: String, volume: String },
    #[error("volumes of this type are not supported by edge: {0}")]
    Unsupported(&'static str),
    #[error(transparent)]
    Driver(#[from] crate::csi::MountError),
    #[error("volume {volume} has volumeMode {mode}, but is specified in {place}")]
    Mode { volume: String, mode: &'static str, place: &'static str },
    #[error("cannot make {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A volume that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Where it is on this machine.
    pub(crate) path: PathBuf,
    /// Containers cannot write to it, whatever their mounts say.
    pub(crate) read_only: bool,
    /// It is a block device, and no directory.
    pub(crate) is_device: bool,
}

impl Ready {
    fn directory(path: PathBuf, read_only: bool) -> Self {
        Self { path, read_only, is_device: false }
    }
}

/// What is behind a claim.
enum Claimed {
    /// A directory of this machine.
    Here(ClaimSource),
    /// A volume of a driver.
    Driver(Box<crate::csi::Source>),
}

/// The volumes of a pod by their names.
pub(crate) type ReadyVolumes = HashMap<String, Ready>;

/// The volumes of one pod.
pub(crate) struct PodVolumes {
    context: Arc<Context>,
    pod: watch::Receiver<Arc<Pod>>,
    uid: String,
    namespace: String,
    objects: Arc<PodObjects>,
    kept: Arc<Kept>,
    tokens: tokio::sync::Mutex<Tokens>,
    /// Tokens for drivers of volumes, which get new ones when they are asked again.
    driver_tokens: tokio::sync::Mutex<Tokens>,
}

impl PodVolumes {
    /// The volumes of a pod, out of its objects, or out of what was kept of them.
    pub(crate) fn new(
        context: Arc<Context>,
        pod: watch::Receiver<Arc<Pod>>,
        objects: Arc<PodObjects>,
        kept: Arc<Kept>,
    ) -> Self {
        let now = pod.borrow().clone();
        Self {
            uid: now.uid().unwrap_or_default(),
            namespace: now.namespace().unwrap_or_default(),
            tokens: tokio::sync::Mutex::default(),
            driver_tokens: tokio::sync::Mutex::default(),
            objects,
            kept,
            context,
            pod,
        }
    }

    /// Makes all volumes. Failures are told in events and tried again; so this ends only when all is well.
    pub(crate) async fn set_up(&self) -> ReadyVolumes {
        let pod = self.pod.borrow().clone();
        let volumes: Vec<&Volume> = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).collect();
        let missing = Mutex::new(volumes.iter().map(|v| v.name.clone()).collect::<BTreeSet<_>>());
        let work = join_all(volumes.into_iter().map(async |volume| {
            let made = self.until_made(volume).await;
            missing.lock().remove(&volume.name);
            (volume.name.clone(), made)
        }));
        tokio::pin!(work);
        loop {
            tokio::select! {
                ready = &mut work => return ready.into_iter().collect(),
                () = sleep(SLOW) => {
                    let missing = missing.lock().iter().cloned().collect::<Vec<_>>().join(" ");
                    let message = format!(
                        "Unable to attach or mount volumes: unmounted volumes=[{missing}], unattached volumes=[], failed to process \
                         volumes=[]: context deadline exceeded"
                    );
                    self.context.recorder.event(&*pod, EventType::Warning, "FailedMount", message);
                }
            }
        }
    }

    /// Makes a volume; tries again when what it depends on changes, and after growing pauses.
    async fn until_made(&self, volume: &Volume) -> Ready {
        let mut pause = FIRST_PAUSE;
        let mut claim: Option<Arc<Watched<PersistentVolumeClaim>>> = None;
        loop {
            let mut following = self.objects.follow();
            following.mark_seen();
            let mut drivers = self.context.csi.driver_changes();
            let mut told = claim.as_ref().map(|claim| claim.subscribe());
            told.iter_mut().for_each(|told| told.mark_unchanged());
            let pod = self.pod.borrow().clone();
            let error = match self.make(&pod, volume).await {
                Ok(made) => return made,
                Err(error) => error,
            };
            let waits_for_driver = matches!(&error, VolumeError::Driver(error) if error.waits_for_driver);
            let message = match &error {
                VolumeError::Driver(error) => error.to_string(),
                _ => {
                    let cause = edge_runtime::error::chain(&error);
                    format!("MountVolume.SetUp failed for volume \"{}\" : {cause}", volume.name)
                }
            };
            self.context.recorder.event(&*pod, EventType::Warning, "FailedMount", message);
            if let (None, Some(name)) = (&claim, claims::claim_name(&pod, volume)) {
                claim = Some(self.context.objects.watch(&self.namespace, &name));
                told = claim.as_ref().map(|claim| claim.subscribe());
            }
            let claim_changed = async {
                let Some(told) = &mut told else { return std::future::pending().await };
                if told.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let longest = if matches!(error, VolumeError::Driver(_)) { LONGEST_PAUSE } else { RETRY };
            let is_alone = !self.context.node.has_synced();
            // whatever is missing may come at any moment
            tokio::select! {
                () = following.changed() => {}
                () = claim_changed => {}
                _ = drivers.changed() => {}
                () = self.context.answered(), if is_alone => {}
                () = sleep(pause), if !waits_for_driver => pause = (pause * 2).min(longest),
            }
        }
    }

    /// Keeps the files of the volumes up to date, for ever.
    pub(crate) async fn keep_current(&self) {
        let mut pod_changes = self.pod.clone();
        let mut following = self.objects.follow();
        following.mark_seen();
        let mut clock = self.context.clock.clone();
        loop {
            let pod = pod_changes.borrow_and_update().clone();
            for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
                if let Some((plugin, _)) = file_plugin(volume)
                    && let Err(error) = self.write_files(&pod, volume, plugin).await
                {
                    let error = edge_runtime::error::chain(&error);
                    tracing::warn!(pod = %pod.name_any(), volume = %volume.name, error, "volume not updated");
                }
            }
            let (due, old) = {
                let tokens = self.tokens.lock().await;
                (tokens.next_renewal(), tokens.are_old())
            };
            tokio::select! {
                () = following.changed() => {}
                changed = pod_changes.changed() => if changed.is_err() { return },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                () = self.context.answered(), if old => self.tokens.lock().await.renew_old(),
                Ok(()) = clock.changed(), if due.is_some() => self.tokens.lock().await.clock_was_set(),
            }
        }
    }

    fn path(&self, plugin: &str, name: &str) -> PathBuf {
        self.context.config.pod_dir(&self.uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
    }

    async fn make(&self, pod: &Pod, volume: &Volume) -> Result<Ready, VolumeError> {
        if let Some((plugin, in_memory)) = file_plugin(volume) {
            let path = self.path(plugin, &volume.name);
            let dir = path.clone();
            blocking(
                &path,
                move || {
                    if in_memory { local::tmpfs(&dir, None, 0o755) } else { std::fs::create_dir_all(&dir) }
                },
            )
            .await?;
            self.write_files(pod, volume, plugin).await?;
            return Ok(Ready::directory(path, true));
        }
        if let Some(ready) = self.context.csi.ready(&self.uid, &volume.name) {
            return Ok(ready);
        }
        if let Some(source) = crate::csi::Source::of_pod(pod, volume) {
            return self.of_driver(pod, volume, &source, None).await;
        }
        if let Some(source) = &volume.empty_dir {
            return self.empty_dir(pod, volume, source).await;
        }
        if let Some(source) = &volume.host_path {
            let (path, kind) = (source.path.clone(), source.type_.clone().unwrap_or_default());
            return host_path(path, kind).await;
        }
        if let Some(name) = claims::claim_name(pod, volume) {
            return self.claim(pod, volume, &name).await;
        }
        Err(VolumeError::Unsupported(unsupported(volume)))
    }

    async fn empty_dir(&self, pod: &Pod, volume: &Volume, source: &EmptyDirVolumeSource) -> Result<Ready, VolumeError> {
        let path = self.path("empty-dir", &volume.name);
        let in_memory = source.medium.as_deref() == Some("Memory");
        let limit = source.size_limit.as_ref().and_then(|q| edge_api::Quantity::parse(&q.0).ok()).map(|q| q.value());
        let limit = limit.and_then(|l| u64::try_from(l).ok()).filter(|l| *l > 0);
        let memory = crate::containers::qos::pod_resources(pod).memory_limit.and_then(|l| u64::try_from(l).ok());
        let size = limit.into_iter().chain(memory).min();
        let group = crate::containers::security::fs_group(pod);
        let dir = path.clone();
        blocking(&path, move || {
            if in_memory {
                local::tmpfs(&dir, size, 0o777)?;
            } else {
                local::empty_dir(&dir)?;
            }
            group.map_or(Ok(()), |group| local::set_group(&dir, group, true))
        })
        .await?;
        Ok(Ready::directory(path, false))
    }

    async fn claim(&self, pod: &Pod, volume: &Volume, name: &str) -> Result<Ready, VolumeError> {
        let read_only = says_read_only(volume);
        let source = match self.context.unless_alone(self.claim_source(name, read_only)).await {
            Some(found) => match found? {
                (claim, Claimed::Driver(source)) => return self.of_driver(pod, volume, &source, Some(&claim)).await,
                (_, Claimed::Here(source)) => {
                    self.kept.put_claim(name, &source);
                    source
                }
            },
            None => {
                let kept = self.kept.claim(name);
                kept.ok_or_else(|| VolumeError::Alone(format!("persistentvolumeclaim \"{name}\"")))?
            }
        };
        let read_only = read_only || source.read_only;
        if let Some(kind) = source.host_path_type {
            let ready = host_path(source.path, kind).await?;
            return Ok(Ready { read_only, ..ready });
        }
        let path = PathBuf::from(source.path);
        let only_if_needed = crate::containers::security::changes_group_if_needed(pod);
        let group = crate::containers::security::fs_group(pod).filter(|_| !read_only);
        let (dir, made) = (path.clone(), source.made);
        blocking(&path, move || {
            if made {
                local::storage_directory(&dir)?;
            }
            std::fs::metadata(&dir)?;
            group.map_or(Ok(()), |group| local::set_group(&dir, group, only_if_needed))
        })
        .await?;
        Ok(Ready::directory(path, read_only))
    }

    /// Where the volume of a claim is, as the API says; `read_only` is what the pod says.
    async fn claim_source(&self, name: &str, read_only: bool) -> Result<(PersistentVolumeClaim, Claimed), VolumeError> {
        let client = &self.context.client;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &self.namespace);
        let api_error = |error| VolumeError::Api(format!("persistentvolumeclaim \"{name}\""), error);
        let claim = claims.get_opt(name).await.map_err(api_error)?;
        let claim = claim.ok_or(VolumeError::NotFound { kind: "persistentvolumeclaim", name: name.to_owned() })?;
        let bound =
            claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound") || claims::is_fully_bound(&claim);
        let volume_name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|_| bound);
        let volume_name = volume_name.ok_or_else(|| VolumeError::NotBound(name.to_owned()))?;
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let api_error = |error| VolumeError::Api(format!("persistentvolume \"{volume_name}\""), error);
        let volume = volumes.get_opt(&volume_name).await.map_err(api_error)?;
        let volume =
            volume.ok_or_else(|| VolumeError::NotFound { kind: "persistentvolume", name: volume_name.clone() })?;
        let of_driver = crate::csi::Source::of_persistent(&volume, read_only);
        let made = volume.annotations().get(claims::PROVISIONED_BY).is_some_and(|by| by == claims::LOCAL_PATH);
        let spec = volume.spec.unwrap_or_default();
        if spec.claim_ref.as_ref().and_then(|r| r.uid.as_ref()) != claim.metadata.uid.as_ref() {
            return Err(VolumeError::BoundElsewhere { claim: name.to_owned(), volume: volume_name });
        }
        if let Some(source) = of_driver {
            return Ok((claim, Claimed::Driver(Box::new(source))));
        }
        let read_only = spec.access_modes.as_deref().is_some_and(|m| m.len() == 1 && m[0] == "ReadOnlyMany");
        if let Some(source) = spec.host_path {
            let host_path_type = Some(source.type_.unwrap_or_default());
            let source = ClaimSource { path: source.path, host_path_type, read_only, made: false };
            return Ok((claim, Claimed::Here(source)));
        }
        let other = "persistentVolume that is neither a driver's, nor local, nor hostPath";
        let source = spec.local.ok_or(VolumeError::Unsupported(other))?;
        let source = ClaimSource { path: source.path, host_path_type: None, read_only, made };
        Ok((claim, Claimed::Here(source)))
    }

    /// Writes what a configMap, secret, downwardAPI or projected volume should hold now.
    async fn write_files(&self, pod: &Pod, volume: &Volume, plugin: &'static str) -> Result<(), VolumeError> {
        let files = self.files(pod, volume).await?;
        let path = self.path(plugin, &volume.name);
        let group = crate::containers::security::fs_group(pod);
        tokio::task::spawn_blocking(move || atomic::write(&path, &files, group))
            .await
            .map_err(|error| worker_died(plugin, error))??;
        Ok(())
    }

    async fn files(&self, pod: &Pod, volume: &Volume) -> Result<Payload, VolumeError> {
        if let Some(source) = &volume.config_map {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            return self.config_map_files(&source.name, source.items.as_deref(), mode, source.optional).await;
        }
        if let Some(source) = &volume.secret {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let name = source.secret_name.as_deref().unwrap_or_default();
            return self.secret_files(name, source.items.as_deref(), mode, source.optional).await;
        }
        if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            return Ok(payload::downward(pod, source.items.as_deref(), mode, &self.context.facts(&[]))?);
        }
        match &volume.projected {
            Some(source) => self.projected(pod, source).await,
            None => Ok(Payload::new()),
        }
    }

    async fn config_map_files(
        &self,
        name: &str,
        items: Option<&[k8s_openapi::api::core::v1::KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
    ) -> Result<Payload, VolumeError> {
        let optional = optional.unwrap_or(false);
        match self.objects.config_map(name).await? {
            Some(object) => Ok(payload::keys("config", &config_map_data(&object), items, mode, optional)?),
            None if optional => Ok(Payload::new()),
            None => Err(VolumeError::NotFound { kind: "configmap", name: name.to_owned() }),
        }
    }

    async fn secret_files(
        &self,
        name: &str,
        items: Option<&[k8s_openapi::api::core::v1::KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
    ) -> Result<Payload, VolumeError> {
        let optional = optional.unwrap_or(false);
        match self.objects.secret(name).await? {
            Some(object) => Ok(payload::keys("secret", &secret_data(&object), items, mode, optional)?),
            None if optional => Ok(Payload::new()),
            None => Err(VolumeError::NotFound { kind: "secret", name: name.to_owned() }),
        }
    }

    async fn projected(&self, pod: &Pod, source: &ProjectedVolumeSource) -> Result<Payload, VolumeError> {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let mut files = Payload::new();
        for source in source.sources.iter().flatten() {
            if let Some(s) = &source.config_map {
                files.extend(self.config_map_files(&s.name, s.items.as_deref(), mode, s.optional).await?);
            }
            if let Some(s) = &source.secret {
                files.extend(self.secret_files(&s.name, s.items.as_deref(), mode, s.optional).await?);
            }
            if let Some(s) = &source.downward_api {
                files.extend(payload::downward(pod, s.items.as_deref(), mode, &self.context.facts(&[]))?);
            }
            if let Some(s) = &source.service_account_token {
                let token = self.tokens.lock().await.get(&self.context, &self.kept, pod, s).await?;
                let mode = u32::try_from(mode).unwrap_or(0o600);
                files.insert(s.path.clone(), FileContent { data: token.into_bytes(), mode });
            }
            if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
                return Err(VolumeError::Unsupported("projected clusterTrustBundle and podCertificate"));
            }
        }
        Ok(files)
    }
}

/// The plugin of a volume that is made of files, and whether it must not touch the disk.
fn file_plugin(volume: &Volume) -> Option<(&'static str, bool)> {
    match volume {
        Volume { config_map: Some(_), .. } => Some(("configmap", false)),
        Volume { secret: Some(_), .. } => Some(("secret", true)),
        Volume { projected: Some(_), .. } => Some(("projected", true)),
        Volume { downward_api: Some(_), .. } => Some(("downward-api", false)),
        _ => None,
    }
}

fn unsupported(volume: &Volume) -> &'static str {
    match volume {
        Volume { nfs: Some(_), .. } => "nfs",
        Volume { image: Some(_), .. } => "image",
        Volume { iscsi: Some(_), .. } => "iscsi",
        Volume { git_repo: Some(_), .. } => "gitRepo",
        _ => "other than configMap, secret, downwardAPI, projected, emptyDir, hostPath, persistentVolumeClaim",
    }
}

async fn host_path(path: String, kind: String) -> Result<Ready, VolumeError> {
    let checked = path.clone();
    tokio::task::spawn_blocking(move || local::host_path(&checked, &kind))
        .await
        .map_err(|error| worker_died("host-path", error))??;
    Ok(Ready::directory(PathBuf::from(path), false))
}

/// Whether a pod wants the volume of a claim only to read.
fn says_read_only(volume: &Volume) -> bool {
    volume.persistent_volume_claim.as_ref().and_then(|source| source.read_only).unwrap_or(false)
}

fn worker_died(plugin: &str, error: tokio::task::JoinError) -> VolumeError {
    VolumeError::Io { path: PathBuf::from(plugin), source: std::io::Error::other(error) }
}

async fn blocking<F>(path: &std::path::Path, work: F) -> Result<(), VolumeError>
where
    F: FnOnce() -> std::io::Result<()> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|source| VolumeError::Io { path: path.to_owned(), source })
}

/// Unmounts what containers have of parts of a pod's volumes. Blocking.
pub(crate) fn unmount_parts(pod_dir: &std::path::Path) -> std::io::Result<()> {
    local::unmount_below(&pod_dir.join("volume-subpaths"))
}

/// Removes the volumes of a pod; drivers have taken theirs back already. Blocking; what was removed already is fine.
pub(crate) fn tear_down(pod_dir: &std::path::Path) -> std::io::Result<()> {
    local::unmount_below(pod_dir)?;
    let of_drivers = pod_dir.join("volumes/kubernetes.io~csi");
    if of_drivers.exists() {
        // what a driver has put there is not edge's to delete: only what is empty goes
        remove_empty(&of_drivers)?;
    }
    for part in ["volumes", "volume-subpaths"] {
        edge_sys::fsutil::remove_dir_all_if_exists(&pod_dir.join(part))?;
    }
    Ok(())
}

fn remove_empty(dir: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        }
    }
    std::fs::remove_dir(dir)
}
