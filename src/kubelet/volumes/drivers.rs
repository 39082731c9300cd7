//! A pod's volumes of drivers ([`crate::csi`]): what they are made with, and what is done about them while the pod runs.

use super::{Claimed, PodVolumes, Ready, VolumeError, says_read_only};
use crate::csi::{Growth, Source, Use};
use crate::objects::{Known, Watched};
use crate::plugins::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::pods::kept::validity;
use crate::pods::record::spec_containers;
use edge_client::{EventType, claims};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ServiceAccountTokenProjection, Volume};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How often drivers that want it so publish a volume once more: how often the kubelet of Kubernetes looks at a pod.
const REPUBLISH: Duration = Duration::from_secs(60);
/// Life of a token when the driver does not say, in seconds.
const TOKEN_LIFE: i64 = 3600;

/// A volume is used as what it is: a directory that is mounted, or a device.
fn check_mode(pod: &Pod, volume: &str, is_block: bool) -> Result<(), VolumeError> {
    let wrong = |mode, place| Err(VolumeError::Mode { volume: volume.to_owned(), mode, place });
    for (_, container) in spec_containers(pod) {
        if is_block && container.volume_mounts.iter().flatten().any(|mount| mount.name == volume) {
            return wrong("Block", "volumeMounts");
        }
        if !is_block && container.volume_devices.iter().flatten().any(|device| device.name == volume) {
            return wrong("Filesystem", "volumeDevices");
        }
    }
    Ok(())
}

impl PodVolumes {
    /// Makes a volume of a driver.
    pub(super) async fn of_driver(
        &self,
        pod: &Pod,
        volume: &Volume,
        source: &Source,
        claim: Option<&PersistentVolumeClaim>,
    ) -> Result<Ready, VolumeError> {
        check_mode(pod, &volume.name, source.is_block)?;
        let cx = &*self.context;
        let policy = cx.csi.policy(cx, &source.driver).await;
        let (tokens, publish_context) = (None, BTreeMap::new());
        let mut wanted = Use { cx, pod, name: &volume.name, source, policy: &policy, tokens, publish_context };
        wanted.publish_context = cx.csi.attach(&wanted).await?;
        // it may have taken long to get here
        wanted.tokens = self.tokens_for(pod, &policy.tokens).await?;
        let ready = cx.csi.mount(&wanted).await?;
        if let Some(claim) = claim {
            // one that does not grow now is tried again while the pod runs
            let _ = cx.csi.grow(&wanted, claim).await;
        }
        Ok(ready)
    }

    /// Tokens of the pod's account for a driver, as it wants them.
    async fn tokens_for(&self, pod: &Pod, wanted: &[(String, Option<i64>)]) -> Result<Option<String>, VolumeError> {
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut all = serde_json::Map::new();
        for (audience, life) in wanted {
            let source = ServiceAccountTokenProjection {
                audience: Some(audience.clone()).filter(|a| !a.is_empty()),
                expiration_seconds: Some(life.unwrap_or(TOKEN_LIFE)),
                path: String::new(),
            };
            let token = self.driver_tokens.lock().await.get(&self.context, &self.kept, pod, &source).await?;
            let end = validity(&token).and_then(|(_, end)| Timestamp::from_second(end).ok());
            let end = end.map(|end| end.to_string());
            all.insert(audience.clone(), json!({"token": token, "expirationTimestamp": end}));
        }
        Ok(Some(serde_json::Value::Object(all).to_string()))
    }

    /// Publishes volumes of drivers again where these want it so, and has them grow with their claims; for ever, if there are any.
    pub(crate) async fn keep_drivers_current(&self) {
        let pod = self.pod.borrow().clone();
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let of_drivers = volumes.filter(|volume| self.context.csi.ready(&self.uid, &volume.name).is_some());
        join_all(of_drivers.map(|volume| self.keep_driver(volume))).await;
    }

    async fn keep_driver(&self, volume: &Volume) {
        let cx = &*self.context;
        cx.answered().await;
        let pod = self.pod.borrow().clone();
        let name = claims::claim_name(&pod, volume);
        let watched: Option<Arc<Watched<PersistentVolumeClaim>>> =
            name.as_ref().map(|name| cx.objects.watch(&self.namespace, name));
        let mut told = watched.as_ref().map(|watched| watched.subscribe());
        let (mut retry, mut pause) = (None, FIRST_PAUSE);
        let mut republish = Instant::now() + REPUBLISH;
        loop {
            let Ok((claim, source)) = self.source_of(volume, name.as_deref()).await else {
                // the claim is about to go, or the server does not answer
                retry = Some(Instant::now() + pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
                if !self.wait(&mut told, retry, None).await {
                    return;
                }
                continue;
            };
            let pod = self.pod.borrow().clone();
            let policy = cx.csi.policy(cx, &source.driver).await;
            let (tokens, publish_context) = (None, BTreeMap::new());
            let mut used =
                Use { cx, pod: &pod, name: &volume.name, source: &source, policy: &policy, tokens, publish_context };
            match &claim {
                Some(claim) if retry.is_none_or(|at| at <= Instant::now()) => {
                    retry = match cx.csi.grow(&used, claim).await {
                        Growth::Settled => {
                            pause = FIRST_PAUSE;
                            None
                        }
                        Growth::Failed => {
                            let at = Instant::now() + pause;
                            pause = (pause * 2).min(LONGEST_PAUSE);
                            Some(at)
                        }
                    };
                }
                _ => {}
            }
            if policy.republishes && republish <= Instant::now() {
                republish = Instant::now() + REPUBLISH;
                let done = async {
                    used.tokens = self.tokens_for(&pod, &policy.tokens).await?;
                    Ok::<_, VolumeError>(cx.csi.republish(&mut used).await?)
                };
                if let Err(error) = done.await {
                    let message = edge_runtime::error::chain(&error);
                    cx.recorder.event(&*pod, EventType::Warning, "FailedMount", message);
                }
            }
            if !self.wait(&mut told, retry, policy.republishes.then_some(republish)).await {
                return;
            }
        }
    }

    async fn source_of(
        &self,
        volume: &Volume,
        claim: Option<&str>,
    ) -> Result<(Option<PersistentVolumeClaim>, Source), VolumeError> {
        let pod = self.pod.borrow().clone();
        match claim {
            Some(name) => match self.claim_source(name, says_read_only(volume)).await? {
                (claim, Claimed::Driver(source)) => Ok((Some(claim), *source)),
                (_, Claimed::Here(_)) => Err(VolumeError::NotBound(name.to_owned())),
            },
            None => Source::of_pod(&pod, volume).map(|source| (None, source)).ok_or(VolumeError::Unsupported("csi")),
        }
    }

    /// Waits until there is something to do; false when there never will be.
    async fn wait(
        &self,
        told: &mut Option<tokio::sync::watch::Receiver<Known<PersistentVolumeClaim>>>,
        retry: Option<Instant>,
        republish: Option<Instant>,
    ) -> bool {
        let due = retry.into_iter().chain(republish).min();
        match told {
            Some(told) => tokio::select! {
                changed = told.changed() => changed.is_ok(),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => true,
            },
            None => match due {
                Some(due) => {
                    sleep_until(due).await;
                    true
                }
                None => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn directories_are_mounted_and_devices_are_not() {
        let pod = |container: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [container]}})).unwrap()
        };
        let mounts = pod(json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
        let devices = pod(json!({"name": "c", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}));
        check_mode(&mounts, "v", false).unwrap();
        check_mode(&devices, "v", true).unwrap();
        check_mode(&devices, "other", false).unwrap();
        let why = check_mode(&mounts, "v", true).unwrap_err().to_string();
        assert_eq!(why, "volume v has volumeMode Block, but is specified in volumeMounts");
        let why = check_mode(&devices, "v", false).unwrap_err().to_string();
        assert_eq!(why, "volume v has volumeMode Filesystem, but is specified in volumeDevices");
    }
}
