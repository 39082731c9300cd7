//! The configMaps and secrets that one pod refers to: the newest that the API has told, or, on a machine that has not
//! heard of the API since its start, those with which the pod was started before.

use super::kept::Kept;
use super::record::spec_containers;
use crate::context::Context;
use crate::objects::{Known, Watchable, Watched};
use edge_client::ResourceExt;
use futures::FutureExt;
use futures::future::select_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long the API may take to show an object before that is told as a failure.
const OBJECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The API has not told whether an object exists.
#[derive(Debug, thiserror::Error)]
#[error("timed out waiting for {kind} \"{name}\"")]
pub(crate) struct Unanswered {
    kind: &'static str,
    name: String,
}

/// The objects of one pod, watched for as long as this lives.
pub(crate) struct PodObjects {
    cx: Arc<Context>,
    kept: Arc<Kept>,
    namespace: String,
    config_maps: BTreeMap<String, Arc<Watched<ConfigMap>>>,
    secrets: BTreeMap<String, Arc<Watched<Secret>>>,
}

/// Names of the configMaps and of the secrets that a pod refers to.
fn references(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    let spec = pod.spec.as_ref();
    for volume in spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        config_maps.extend(volume.config_map.iter().map(|s| s.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            config_maps.extend(source.config_map.iter().map(|s| s.name.clone()));
            secrets.extend(source.secret.iter().map(|s| s.name.clone()));
        }
    }
    for (_, container) in spec_containers(pod) {
        for from in container.env_from.iter().flatten() {
            config_maps.extend(from.config_map_ref.iter().map(|s| s.name.clone()));
            secrets.extend(from.secret_ref.iter().map(|s| s.name.clone()));
        }
        for from in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            config_maps.extend(from.config_map_key_ref.iter().map(|s| s.name.clone()));
            secrets.extend(from.secret_key_ref.iter().map(|s| s.name.clone()));
        }
    }
    secrets.extend(spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten().map(|r| r.name.clone())));
    for names in [&mut config_maps, &mut secrets] {
        names.remove("");
    }
    (config_maps, secrets)
}

impl PodObjects {
    /// Begins to watch what the pod refers to.
    pub(crate) fn new(cx: Arc<Context>, pod: &Pod, kept: Arc<Kept>) -> Self {
        let namespace = pod.namespace().unwrap_or_default();
        let (config_maps, secrets) = references(pod);
        Self {
            config_maps: config_maps.into_iter().map(|n| (n.clone(), cx.objects.watch(&namespace, &n))).collect(),
            secrets: secrets.into_iter().map(|n| (n.clone(), cx.objects.watch(&namespace, &n))).collect(),
            cx,
            kept,
            namespace,
        }
    }

    /// A configMap; `None` when there is none.
    pub(crate) async fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, Unanswered> {
        self.object(&self.config_maps, "configmap", name, || self.kept.config_map(name)).await
    }

    /// A secret; `None` when there is none.
    pub(crate) async fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>, Unanswered> {
        self.object(&self.secrets, "secret", name, || self.kept.secret(name)).await
    }

    async fn object<K: Watchable>(
        &self,
        watched: &BTreeMap<String, Arc<Watched<K>>>,
        kind: &'static str,
        name: &str,
        kept: impl Fn() -> Option<Arc<K>>,
    ) -> Result<Option<Arc<K>>, Unanswered> {
        let watched = watched.get(name).cloned().unwrap_or_else(|| self.cx.objects.watch(&self.namespace, name));
        let mut known = watched.subscribe();
        let told = async {
            let told = known.wait_for(|k| !matches!(k, Known::NotYet)).await;
            told.map(|known| known.clone()).unwrap_or(Known::NotYet)
        };
        let unanswered = || Unanswered { kind, name: name.to_owned() };
        let told = timeout(OBJECT_TIMEOUT, self.cx.unless_alone(told)).await.map_err(|_| unanswered())?;
        match told {
            Some(Known::Present(object)) => Ok(Some(object)),
            Some(Known::Absent) => Ok(None),
            Some(Known::NotYet) => Err(unanswered()),
            None => {
                let kept = kept().ok_or_else(unanswered)?;
                tracing::info!(
                    kind,
                    name,
                    namespace = self.namespace,
                    "no server answers, using what was known before"
                );
                Ok(Some(kept))
            }
        }
    }

    /// Follows all of them.
    pub(crate) fn follow(&self) -> Following {
        let config_maps = self.config_maps.values().map(|w| w.subscribe()).collect();
        Following { config_maps, secrets: self.secrets.values().map(|w| w.subscribe()).collect() }
    }

    /// Keeps what the API tells for a start without it, for ever.
    pub(crate) async fn keep(&self) {
        let mut following = self.follow();
        loop {
            following.mark_seen();
            let config_maps = newest(&self.config_maps, |name| self.kept.config_map(name));
            self.kept.put_objects(config_maps, newest(&self.secrets, |name| self.kept.secret(name)));
            following.changed().await;
        }
    }
}

/// What is there; what the API has not told yet stays as it was.
fn newest<K>(
    watched: &BTreeMap<String, Arc<Watched<K>>>,
    kept: impl Fn(&str) -> Option<Arc<K>>,
) -> BTreeMap<String, Arc<K>> {
    let one = |(name, watched): (&String, &Arc<Watched<K>>)| {
        let object = match &*watched.subscribe().borrow() {
            Known::Present(object) => object.clone(),
            Known::Absent => return None,
            Known::NotYet => kept(name)?,
        };
        Some((name.clone(), object))
    };
    watched.iter().filter_map(one).collect()
}

/// Waits for changes of a pod's objects.
pub(crate) struct Following {
    config_maps: Vec<watch::Receiver<Known<ConfigMap>>>,
    secrets: Vec<watch::Receiver<Known<Secret>>>,
}

impl Following {
    /// Whatever has changed until now is no change any more.
    pub(crate) fn mark_seen(&mut self) {
        self.config_maps.iter_mut().for_each(|r| r.mark_unchanged());
        self.secrets.iter_mut().for_each(|r| r.mark_unchanged());
    }

    /// Waits until any of the objects changes, for ever when there are none.
    pub(crate) async fn changed(&mut self) {
        let maps = self.config_maps.iter_mut().map(|r| changed(r).boxed());
        let secrets = self.secrets.iter_mut().map(|r| changed(r).boxed());
        let all: Vec<_> = maps.chain(secrets).collect();
        if all.is_empty() {
            return std::future::pending().await;
        }
        select_all(all).await;
    }
}

async fn changed<K: Send + Sync>(receiver: &mut watch::Receiver<Known<K>>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_that_a_pod_refers_to() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "configMap": {"name": "c1"}}, {"name": "b", "secret": {"secretName": "s1"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "c2"}}, {"secret": {"name": "s2"}}]}}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "c3"}}, {"secretRef": {"name": "s3"}}]}],
            "containers": [{"name": "m", "env": [
                {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c4", "key": "k"}}},
                {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "s4", "key": "k"}}},
                {"name": "Z", "valueFrom": {"configMapKeyRef": {"key": "k"}}}]}],
        }}))
        .unwrap();
        let (config_maps, secrets) = references(&pod);
        assert_eq!(config_maps.into_iter().collect::<Vec<_>>(), ["c1", "c2", "c3", "c4"]);
        assert_eq!(secrets.into_iter().collect::<Vec<_>>(), ["pull", "s1", "s2", "s3", "s4"]);
    }
}
