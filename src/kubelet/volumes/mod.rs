//! The volumes of pods: made before the containers start, kept up to date while they run, removed after they ended.
//!
//! Comes in: the pod, the configMaps and secrets it refers to, tokens. Goes out: directories below
//! `<agent>/pods/<uid>/volumes/<plugin>/<name>`. What holds secrets lives in memory only.

pub(crate) mod atomic;
pub(crate) mod local;
pub(crate) mod payload;
pub(crate) mod subpath;
mod token;

use crate::context::Context;
use crate::pods::kept::{ClaimSource, Kept};
use crate::pods::objects::{PodObjects, Unanswered};
use crate::pods::record::RETRY;
use atomic::{FileContent, Payload};
use edge_client::{Api, EventType, ResourceExt, claims};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, ProjectedVolumeSource, Volume,
};
use payload::{DEFAULT_MODE, config_map_data, secret_data};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use token::Tokens;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

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
            objects,
            kept,
            context,
            pod,
        }
    }

    /// Makes all volumes. Failures are told in events and tried again when an object of the pod changes, or after a while;
    /// so this ends only when all is well.
    pub(crate) async fn set_up(&self) -> ReadyVolumes {
        loop {
            let mut following = self.objects.follow();
            following.mark_seen();
            let pod = self.pod.borrow().clone();
            let volumes: Vec<Volume> = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten().cloned()).collect();
            let results = join_all(volumes.iter().map(|v| self.make(&pod, v))).await;
            let mut ready = ReadyVolumes::new();
            let mut failed = false;
            for (volume, result) in volumes.iter().zip(results) {
                match result {
                    Ok(made) => {
                        ready.insert(volume.name.clone(), made);
                    }
                    Err(error) => {
                        failed = true;
                        let cause = edge_runtime::error::chain(&error);
                        let message = format!("MountVolume.SetUp failed for volume \"{}\" : {cause}", volume.name);
                        self.context.recorder.event(&*pod, EventType::Warning, "FailedMount", message);
                    }
                }
            }
            if !failed {
                return ready;
            }
            // whatever is missing may come at any moment
            let _ = timeout(RETRY, following.changed()).await;
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
            return Ok(Ready { path, read_only: true });
        }
        if let Some(source) = &volume.empty_dir {
            return self.empty_dir(pod, volume, source).await;
        }
        if let Some(source) = &volume.host_path {
            let (path, kind) = (source.path.clone(), source.type_.clone().unwrap_or_default());
            return host_path(path, kind).await;
        }
        if let Some(name) = claims::claim_name(pod, volume) {
            let read_only = volume.persistent_volume_claim.as_ref().and_then(|source| source.read_only);
            return self.claim(pod, &name, read_only.unwrap_or(false)).await;
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
        Ok(Ready { path, read_only: false })
    }

    async fn claim(&self, pod: &Pod, name: &str, read_only: bool) -> Result<Ready, VolumeError> {
        let source = match self.context.unless_alone(self.claim_source(name)).await {
            Some(source) => {
                let source = source?;
                self.kept.put_claim(name, &source);
                source
            }
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
        let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let only_if_needed = context.and_then(|c| c.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
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
        Ok(Ready { path, read_only })
    }

    /// Where the volume of a claim is, as the API says.
    async fn claim_source(&self, name: &str) -> Result<ClaimSource, VolumeError> {
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
        let made = volume.annotations().get(claims::PROVISIONED_BY).is_some_and(|by| by == claims::LOCAL_PATH);
        let spec = volume.spec.unwrap_or_default();
        if spec.claim_ref.as_ref().and_then(|r| r.uid.as_ref()) != claim.metadata.uid.as_ref() {
            return Err(VolumeError::BoundElsewhere { claim: name.to_owned(), volume: volume_name });
        }
        let read_only = spec.access_modes.as_deref().is_some_and(|m| m.len() == 1 && m[0] == "ReadOnlyMany");
        if let Some(source) = spec.host_path {
            let host_path_type = Some(source.type_.unwrap_or_default());
            return Ok(ClaimSource { path: source.path, host_path_type, read_only, made: false });
        }
        let source =
            spec.local.ok_or(VolumeError::Unsupported("persistentVolume that is neither local nor hostPath"))?;
        Ok(ClaimSource { path: source.path, host_path_type: None, read_only, made })
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
        Volume { csi: Some(_), .. } => "csi",
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
    Ok(Ready { path: PathBuf::from(path), read_only: false })
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

/// Removes the volumes of a pod. Blocking; what was removed already is fine.
pub(crate) fn tear_down(pod_dir: &std::path::Path) -> std::io::Result<()> {
    local::unmount_below(pod_dir)?;
    for part in ["volumes", "volume-subpaths"] {
        edge_sys::fsutil::remove_dir_all_if_exists(&pod_dir.join(part))?;
    }
    Ok(())
}
