//! What a driver's volume is: out of a PersistentVolume or a pod's own words, where it is mounted, and what its driver's object says of it.
//! Pure.

use super::client::{Capabilities, Capability};
use crate::config::KubeletConfig;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod, SecretReference, Volume};
use k8s_openapi::api::storage::v1::CSIDriver;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Namespace and name of a secret.
pub(super) type SecretName = (String, String);

/// A volume of a driver, as a pod wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// The name of the PersistentVolume, or the pod's for a volume of its own.
    pub(crate) name: String,
    pub(crate) driver: String,
    /// What the driver calls it.
    pub(crate) handle: String,
    pub(super) fs_type: String,
    pub(super) read_only: bool,
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) access_modes: Vec<String>,
    pub(super) mount_options: Vec<String>,
    pub(super) stage_secret: Option<SecretName>,
    pub(super) publish_secret: Option<SecretName>,
    pub(super) expand_secret: Option<SecretName>,
    pub(crate) is_block: bool,
    /// It lives and dies with the pod.
    pub(super) is_inline: bool,
    /// The size of the PersistentVolume, as written.
    pub(super) capacity: String,
}

fn hex(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut out, byte| {
        // writing to a string cannot fail
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn secret(reference: Option<&SecretReference>) -> Option<SecretName> {
    reference.map(|r| (r.namespace.clone().unwrap_or_default(), r.name.clone().unwrap_or_default()))
}

impl Source {
    /// The volume behind a claim; `None` when it is no driver's. `read_only` is what the pod says.
    pub(crate) fn of_persistent(volume: &PersistentVolume, read_only: bool) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        let capacity = spec.capacity.as_ref().and_then(|c| c.get("storage")).map(|q| q.0.clone());
        Some(Self {
            name: volume.metadata.name.clone().unwrap_or_default(),
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            read_only,
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            stage_secret: secret(csi.node_stage_secret_ref.as_ref()),
            publish_secret: secret(csi.node_publish_secret_ref.as_ref()),
            expand_secret: secret(csi.node_expand_secret_ref.as_ref()),
            is_block: spec.volume_mode.as_deref() == Some("Block"),
            is_inline: false,
            capacity: capacity.unwrap_or_default(),
        })
    }

    /// The volume that a pod describes itself; `None` when it is no driver's.
    pub(crate) fn of_pod(pod: &Pod, volume: &Volume) -> Option<Self> {
        let csi = volume.csi.as_ref()?;
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        Some(Self {
            name: volume.name.clone(),
            driver: csi.driver.clone(),
            handle: format!("csi-{}", hex(&format!("{uid}{}", volume.name))),
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            read_only: csi.read_only.unwrap_or(false),
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            publish_secret: csi.node_publish_secret_ref.as_ref().map(|r| (namespace, r.name.clone())),
            is_inline: true,
            ..Self::default()
        })
    }

    /// What identifies it on the node.
    pub(super) fn key(&self) -> Key {
        (self.driver.clone(), self.handle.clone())
    }

    /// Where it is staged for all pods.
    pub(super) fn staging(&self, config: &KubeletConfig) -> PathBuf {
        let csi = config.kubelet_dir.join("plugins/kubernetes.io/csi");
        match self.is_block {
            true => csi.join("volumeDevices/staging").join(&self.name),
            false => csi.join(&self.driver).join(hex(&self.handle)).join("globalmount"),
        }
    }

    /// Where it is published for a pod.
    pub(super) fn target(&self, config: &KubeletConfig, uid: &str) -> PathBuf {
        match self.is_block {
            true => {
                let devices = config.kubelet_dir.join("plugins/kubernetes.io/csi/volumeDevices/publish");
                devices.join(&self.name).join(uid)
            }
            false => volumes_of(&config.kubelet_dir, uid).join(&self.name).join("mount"),
        }
    }

    /// What is told to the driver of how it is used.
    pub(super) fn capability(&self, driver: Capabilities, group: Option<u32>) -> Capability {
        let mode = self.access_modes.first().map_or("ReadWriteOnce", String::as_str);
        Capability {
            is_block: self.is_block,
            fs_type: self.fs_type.clone(),
            mount_options: self.mount_options.clone(),
            group: group.filter(|_| driver.mounts_for_group),
            access_mode: access_mode(mode, driver.several_writers),
        }
    }

    /// Whether the kubelet gives its files to the pod's group.
    pub(super) fn is_for_group(&self, policy: &str) -> bool {
        if self.is_block || self.read_only {
            return false;
        }
        match policy {
            "None" => false,
            "File" => true,
            // a volume of the pod's own is always its alone
            _ => {
                let alone = |mode: &String| matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod");
                !self.fs_type.is_empty() && (self.is_inline || self.access_modes.iter().any(alone))
            }
        }
    }
}

/// Name of a driver, and what it calls a volume.
pub(super) type Key = (String, String);

/// The name by which node and controller speak of a volume.
pub(super) fn unique_name(key: &Key) -> String {
    format!("kubernetes.io/csi/{}^{}", key.0, key.1)
}

/// The object that says whether a volume is attached to a node.
pub(super) fn attachment_name(key: &Key, node: &str) -> String {
    format!("csi-{}", hex(&format!("{}{}{node}", key.1, key.0)))
}

/// Where the volumes of drivers are for a pod.
fn volumes_of(kubelet_dir: &Path, uid: &str) -> PathBuf {
    kubelet_dir.join("pods").join(uid).join("volumes/kubernetes.io~csi")
}

/// CSI's number of an access mode. Drivers that cannot tell one writer from several are told the older mode.
fn access_mode(mode: &str, several_writers: bool) -> u64 {
    match (mode, several_writers) {
        ("ReadWriteOnce", true) => 7,
        ("ReadWriteOncePod", true) => 6,
        ("ReadWriteOnce" | "ReadWriteOncePod", false) => 1,
        ("ReadOnlyMany", _) => 3,
        ("ReadWriteMany", _) => 5,
        _ => 0,
    }
}

/// What the object of a driver says; without one what Kubernetes takes for granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(super) must_attach: bool,
    pub(super) pod_info: bool,
    pub(super) fs_group: String,
    pub(super) modes: Vec<String>,
    pub(crate) republishes: bool,
    /// Audience and life in seconds of the tokens of the pod's account that it gets.
    pub(crate) tokens: Vec<(String, Option<i64>)>,
    /// The tokens are among the secrets, and not in the volume's context.
    pub(super) tokens_in_secrets: bool,
}

impl Policy {
    pub(super) fn of(driver: Option<&CSIDriver>) -> Self {
        let spec = driver.map(|d| d.spec.clone()).unwrap_or_default();
        let tokens = spec.token_requests.unwrap_or_default();
        Self {
            must_attach: spec.attach_required.unwrap_or(true),
            pod_info: spec.pod_info_on_mount.unwrap_or(false),
            fs_group: spec.fs_group_policy.unwrap_or_else(|| "ReadWriteOnceWithFSType".to_owned()),
            modes: spec.volume_lifecycle_modes.unwrap_or_else(|| vec!["Persistent".to_owned()]),
            republishes: spec.requires_republish.unwrap_or(false),
            tokens: tokens.into_iter().map(|t| (t.audience, t.expiration_seconds)).collect(),
            tokens_in_secrets: spec.service_account_token_in_secrets.unwrap_or(false),
        }
    }

    /// Whether a driver serves volumes of this kind.
    ///
    /// # Errors
    /// Kubernetes' words for that it does not.
    pub(super) fn check(&self, source: &Source) -> Result<(), String> {
        let mode = if source.is_inline { "Ephemeral" } else { "Persistent" };
        if self.modes.iter().any(|m| m == mode) {
            return Ok(());
        }
        let driver = &source.driver;
        Err(format!("volume mode {mode:?} not supported by driver {driver} (only supports {:?})", self.modes))
    }

    /// What the driver is told of the pod.
    pub(super) fn about(&self, pod: &Pod, source: &Source) -> BTreeMap<String, String> {
        if !self.pod_info {
            return BTreeMap::new();
        }
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
        [
            ("pod.name", pod.metadata.name.clone().unwrap_or_default()),
            ("pod.namespace", pod.metadata.namespace.clone().unwrap_or_default()),
            ("pod.uid", pod.metadata.uid.clone().unwrap_or_default()),
            ("serviceAccount.name", account.unwrap_or_default()),
            ("ephemeral", source.is_inline.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn names_are_those_that_the_controller_uses() {
        let key = ("d.io".to_owned(), "h".to_owned());
        assert_eq!(unique_name(&key), "kubernetes.io/csi/d.io^h");
        // printf hd.ionode-1 | sha256sum
        let digest = "1458639045ea13f2852c495998ff8b77e2361171a7aee0eb2e024b96f10e177e";
        assert_eq!(attachment_name(&key, "node-1"), format!("csi-{digest}"));
    }

    #[test]
    fn access_modes_depend_on_what_the_driver_can_tell_apart() {
        for (mode, old, new) in
            [("ReadWriteOnce", 1, 7), ("ReadWriteOncePod", 1, 6), ("ReadOnlyMany", 3, 3), ("ReadWriteMany", 5, 5)]
        {
            assert_eq!((access_mode(mode, false), access_mode(mode, true)), (old, new), "{mode}");
        }
    }

    fn policy(spec: Value) -> Policy {
        let driver = json!({"metadata": {"name": "d.io"}, "spec": spec});
        Policy::of(Some(&serde_json::from_value(driver).unwrap()))
    }

    #[test]
    fn a_driver_without_an_object_attaches_persistent_volumes() {
        let usual = Policy::of(None);
        assert_eq!(usual, policy(json!({})));
        assert!(usual.must_attach && !usual.pod_info && !usual.republishes);
        let inline = Source { is_inline: true, driver: "d.io".into(), ..Source::default() };
        let why = usual.check(&inline).unwrap_err();
        assert_eq!(why, "volume mode \"Ephemeral\" not supported by driver d.io (only supports [\"Persistent\"])");
        usual.check(&Source::default()).unwrap();
        policy(json!({"volumeLifecycleModes": ["Ephemeral"]})).check(&inline).unwrap();
    }

    #[test]
    fn groups_get_what_is_one_nodes_alone() {
        let volume =
            |fs: &str, mode: &str| Source { fs_type: fs.into(), access_modes: vec![mode.into()], ..Source::default() };
        for (source, policy, want) in [
            (volume("ext4", "ReadWriteOnce"), "ReadWriteOnceWithFSType", true),
            (volume("ext4", "ReadWriteOncePod"), "ReadWriteOnceWithFSType", true),
            (volume("", "ReadWriteOnce"), "ReadWriteOnceWithFSType", false),
            (volume("ext4", "ReadWriteMany"), "ReadWriteOnceWithFSType", false),
            (volume("", "ReadWriteMany"), "File", true),
            (volume("ext4", "ReadWriteOnce"), "None", false),
            (Source { read_only: true, ..volume("ext4", "ReadWriteOnce") }, "File", false),
            (Source { is_block: true, ..volume("", "ReadWriteOnce") }, "File", false),
            (Source { is_inline: true, fs_type: "ext4".into(), ..Source::default() }, "ReadWriteOnceWithFSType", true),
        ] {
            assert_eq!(source.is_for_group(policy), want, "{source:?} {policy}");
        }
    }

    #[test]
    fn volumes_of_claims_and_of_pods() {
        let pv = json!({"metadata": {"name": "pv"}, "spec": {"volumeMode": "Block", "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"], "csi": {"driver": "d.io", "volumeHandle": "h",
                "nodeStageSecretRef": {"namespace": "ns", "name": "s"}}}});
        let source = Source::of_persistent(&serde_json::from_value(pv).unwrap(), true).unwrap();
        assert!(source.is_block && source.read_only && !source.is_inline);
        assert_eq!(source.stage_secret, Some(("ns".into(), "s".into())));
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"serviceAccountName": "sa", "containers": [], "volumes": [{"name": "v", "csi": {"driver": "d.io"}}]}}))
        .unwrap();
        let own = Source::of_pod(&pod, &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0]).unwrap();
        // printf uv | sha256sum
        assert!(own.handle.starts_with("csi-") && own.handle.len() == 68);
        let told = policy(json!({"podInfoOnMount": true})).about(&pod, &own);
        assert_eq!(told["csi.storage.k8s.io/ephemeral"], "true");
        assert_eq!(told["csi.storage.k8s.io/serviceAccount.name"], "sa");
        assert!(Policy::of(None).about(&pod, &own).is_empty());
    }
}
