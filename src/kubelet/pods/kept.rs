//! What a pod was given at its start, kept in `<agent>/pods/<uid>/kept.json` (0600): a machine that boots while no server
//! can be reached starts its pods with it. Nobody else's objects are in it, and it goes with the pod.
//!
//! A write comes a moment after a change of content, never without one; a file that cannot be read counts as absent.

use crate::config::KubeletConfig;
use edge_sys::fsutil::{remove_file_if_exists, write_atomic};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const FILE: &str = "kept.json";
/// What comes together is written together.
const SETTLE: Duration = Duration::from_secs(1);
/// A token on disk is replaced at most that often, in seconds: most live for an hour, and renewing each on disk would be
/// a write that nobody asked for.
const TOKEN_AGE: i64 = 24 * 60 * 60;

/// Where the volume of a claim is on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClaimSource {
    pub(crate) path: String,
    /// The type of a hostPath volume; `None` is a local volume.
    pub(crate) host_path_type: Option<String>,
    pub(crate) read_only: bool,
    /// The directory is made by the kubelet, when a pod first needs it.
    #[serde(default)]
    pub(crate) made: bool,
}

/// A service-account token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptToken {
    audience: Option<String>,
    /// The life that the volume asks for, in seconds.
    life: i64,
    token: String,
}

/// All that is kept of a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Content {
    config_maps: BTreeMap<String, Arc<ConfigMap>>,
    secrets: BTreeMap<String, Arc<Secret>>,
    claims: BTreeMap<String, ClaimSource>,
    tokens: Vec<KeptToken>,
    /// Variables of services.
    services: BTreeMap<String, String>,
}

impl Content {
    /// What was kept in a pod's directory. Blocking.
    pub(crate) fn load(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "what was kept of the pod is not readable");
            }
            Self::default()
        })
    }

    fn without_secrets(mut self) -> Self {
        self.secrets.clear();
        self.tokens.clear();
        self
    }

    /// Objects without what changes although their content does not.
    fn plain(mut self) -> Self {
        for object in self.config_maps.values_mut() {
            let (data, binary_data) = (object.data.clone(), object.binary_data.clone());
            *object = Arc::new(ConfigMap { data, binary_data, ..ConfigMap::default() });
        }
        for object in self.secrets.values_mut() {
            let (data, type_) = (object.data.clone(), object.type_.clone());
            *object = Arc::new(Secret { data, type_, ..Secret::default() });
        }
        self
    }
}

/// What is kept of one pod.
pub(crate) struct Kept {
    path: PathBuf,
    /// Secrets and tokens may be on disk.
    secrets: bool,
    content: Mutex<Content>,
    changed: Notify,
    /// Nothing is written any more. Held while the file is written.
    closed: Mutex<bool>,
}

impl Kept {
    pub(crate) fn new(config: &KubeletConfig, uid: &str, loaded: Content) -> Arc<Self> {
        let secrets = config.offline_secrets;
        Arc::new(Self {
            path: config.pod_dir(uid).join(FILE),
            secrets,
            content: Mutex::new(if secrets { loaded } else { loaded.without_secrets() }),
            changed: Notify::new(),
            closed: Mutex::new(false),
        })
    }

    pub(crate) fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
        self.content.lock().config_maps.get(name).cloned()
    }

    pub(crate) fn secret(&self, name: &str) -> Option<Arc<Secret>> {
        self.content.lock().secrets.get(name).cloned()
    }

    pub(crate) fn claim(&self, name: &str) -> Option<ClaimSource> {
        self.content.lock().claims.get(name).cloned()
    }

    pub(crate) fn token(&self, audience: Option<&str>, life: i64) -> Option<String> {
        let content = self.content.lock();
        let found = content.tokens.iter().find(|t| t.audience.as_deref() == audience && t.life == life);
        found.map(|t| t.token.clone())
    }

    pub(crate) fn services(&self) -> BTreeMap<String, String> {
        self.content.lock().services.clone()
    }

    /// Replaces the objects.
    pub(crate) fn put_objects(
        &self,
        config_maps: BTreeMap<String, Arc<ConfigMap>>,
        secrets: BTreeMap<String, Arc<Secret>>,
    ) {
        let mut content = self.content.lock();
        let same = content.config_maps.len() == config_maps.len()
            && content.secrets.len() == secrets.len()
            && config_maps.iter().all(|(name, new)| {
                let old = content.config_maps.get(name);
                old.is_some_and(|old| (&old.data, &old.binary_data) == (&new.data, &new.binary_data))
            })
            && secrets.iter().all(|(name, new)| {
                let old = content.secrets.get(name);
                old.is_some_and(|old| (&old.data, &old.type_) == (&new.data, &new.type_))
            });
        // replaced in any case: so the memory is shared with the watch
        content.config_maps = config_maps;
        content.secrets = if self.secrets { secrets } else { BTreeMap::new() };
        drop(content);
        if !same {
            self.changed.notify_one();
        }
    }

    pub(crate) fn put_claim(&self, name: &str, source: &ClaimSource) {
        let old = self.content.lock().claims.insert(name.to_owned(), source.clone());
        self.tell(old.as_ref() != Some(source));
    }

    pub(crate) fn put_services(&self, variables: &BTreeMap<String, String>) {
        let mut content = self.content.lock();
        let is_new = content.services != *variables;
        content.services.clone_from(variables);
        drop(content);
        self.tell(is_new);
    }

    pub(crate) fn put_token(&self, audience: Option<&str>, life: i64, token: &str) {
        if !self.secrets {
            return;
        }
        let mut content = self.content.lock();
        let old = content.tokens.iter().position(|t| t.audience.as_deref() == audience && t.life == life);
        if let Some(old) = old {
            if !is_worth_writing(&content.tokens[old].token, token) {
                return;
            }
            content.tokens.swap_remove(old);
        }
        content.tokens.push(KeptToken { audience: audience.map(str::to_owned), life, token: token.to_owned() });
        drop(content);
        self.tell(true);
    }

    fn tell(&self, is_new: bool) {
        if is_new {
            self.changed.notify_one();
        }
    }

    /// Writes what changes, for ever.
    pub(crate) async fn write(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SETTLE).await;
            let kept = self.clone();
            match tokio::task::spawn_blocking(move || kept.write_now()).await {
                Ok(Ok(())) => {}
                // tried again with the next change
                Ok(Err(error)) => {
                    tracing::warn!(path = %self.path.display(), %error, "not kept for a start without the server");
                }
                Err(error) => tracing::error!(%error, "not kept for a start without the server"),
            }
            self.changed.notified().await;
        }
    }

    /// Blocking.
    fn write_now(&self) -> io::Result<()> {
        let closed = self.closed.lock();
        if *closed {
            return Ok(());
        }
        let content = self.content.lock().clone().plain();
        let bytes = serde_json::to_vec(&content)?;
        if fs::read(&self.path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        write_atomic(&self.path, &bytes, 0o600)
    }

    /// Removes the file, for a pod that will not be started again. Blocking.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(crate) fn discard(&self) -> io::Result<()> {
        let mut closed = self.closed.lock();
        *closed = true;
        *self.content.lock() = Content::default();
        remove_file_if_exists(&self.path)
    }
}

/// Begin and end of a token, in seconds since 1970; `None` when it is not one that tells.
pub(crate) fn validity(token: &str) -> Option<(i64, i64)> {
    use base64::Engine as _;
    #[derive(Deserialize)]
    struct Claims {
        iat: i64,
        exp: i64,
    }
    let payload = token.split('.').nth(1)?;
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    Some((claims.iat, claims.exp))
}

/// Whether a new token is so much newer than the one on disk that it is to replace it.
fn is_worth_writing(old: &str, new: &str) -> bool {
    match (validity(old), validity(new)) {
        (Some((old, end)), Some((new, _))) => new < old || new - old >= TOKEN_AGE.max((end - old) / 2),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use base64::Engine as _;
    use k8s_openapi::ByteString;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn token(iat: i64, exp: i64) -> String {
        let payload = format!(r#"{{"iat":{iat},"exp":{exp}}}"#);
        format!("e.{}.s", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload))
    }

    fn kept(dir: &Path, secrets: bool) -> Kept {
        let loaded = Content::load(dir);
        Kept {
            path: dir.join(FILE),
            secrets,
            content: Mutex::new(if secrets { loaded } else { loaded.without_secrets() }),
            changed: Notify::new(),
            closed: Mutex::new(false),
        }
    }

    fn config_map(version: &str, value: &str) -> BTreeMap<String, Arc<ConfigMap>> {
        let mut object = ConfigMap::default();
        object.metadata.resource_version = Some(version.into());
        object.data = Some(BTreeMap::from([("k".to_owned(), value.to_owned())]));
        BTreeMap::from([("c".to_owned(), Arc::new(object))])
    }

    fn secret() -> BTreeMap<String, Arc<Secret>> {
        let data = BTreeMap::from([("k".to_owned(), ByteString(b"s3cret".to_vec()))]);
        BTreeMap::from([("s".to_owned(), Arc::new(Secret { data: Some(data), ..Secret::default() }))])
    }

    #[test]
    fn what_is_kept_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let before = kept(dir.path(), true);
        before.put_objects(config_map("1", "v"), secret());
        before.put_token(None, 3607, &token(10, 20));
        before.put_services(&BTreeMap::from([("A".to_owned(), "b".to_owned())]));
        let claim = ClaimSource { path: "/p".into(), host_path_type: None, read_only: true, made: false };
        before.put_claim("pvc", &claim);
        before.write_now().unwrap();
        let file = fs::metadata(dir.path().join(FILE)).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);

        let after = kept(dir.path(), true);
        assert_eq!(after.config_map("c").unwrap().data.as_ref().unwrap()["k"], "v");
        assert_eq!(after.secret("s").unwrap().data.as_ref().unwrap()["k"].0, b"s3cret");
        assert_eq!(after.token(None, 3607), Some(token(10, 20)));
        assert_eq!((after.token(Some("x"), 3607), after.token(None, 1)), (None, None));
        assert_eq!((after.services()["A"].as_str(), after.claim("pvc")), ("b", Some(claim)));

        // the same content is not written again, whatever its version
        after.put_objects(config_map("2", "v"), secret());
        after.write_now().unwrap();
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().ino(), file.ino());
        after.put_objects(config_map("3", "w"), BTreeMap::new());
        after.write_now().unwrap();
        assert!(kept(dir.path(), true).secret("s").is_none(), "what the pod does not refer to goes");
    }

    #[test]
    fn secrets_stay_off_the_disk_where_that_is_wished() {
        let dir = tempfile::tempdir().unwrap();
        let before = kept(dir.path(), true);
        before.put_objects(config_map("1", "v"), secret());
        before.put_token(None, 3607, &token(10, 20));
        before.write_now().unwrap();
        let after = kept(dir.path(), false);
        assert!(after.secret("s").is_none() && after.token(None, 3607).is_none());
        after.put_objects(config_map("1", "v"), secret());
        after.put_token(None, 3607, &token(10, 20));
        after.write_now().unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains("\"v\"") && !text.contains("czNjcmV0") && !text.contains("\"e."), "{text}");
    }

    #[test]
    fn damage_counts_as_absence_and_ended_pods_keep_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for damaged in [&b""[..], b"{\"configMaps\": {", b"[]", b"\xff\xfe"] {
            fs::write(dir.path().join(FILE), damaged).unwrap();
            assert_eq!(Content::load(dir.path()), Content::default());
        }
        let kept = kept(dir.path(), true);
        kept.put_objects(config_map("1", "v"), secret());
        kept.write_now().unwrap();
        kept.discard().unwrap();
        kept.write_now().unwrap();
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn tokens_on_disk_are_replaced_rarely() {
        let hour = 3600;
        assert!(!is_worth_writing(&token(0, hour), &token(hour, 2 * hour)));
        assert!(is_worth_writing(&token(0, hour), &token(TOKEN_AGE, TOKEN_AGE + hour)));
        assert!(!is_worth_writing(&token(0, 365 * TOKEN_AGE), &token(100 * TOKEN_AGE, 465 * TOKEN_AGE)));
        assert!(is_worth_writing(&token(0, 365 * TOKEN_AGE), &token(200 * TOKEN_AGE, 565 * TOKEN_AGE)));
        assert!(is_worth_writing(&token(100, 200), &token(50, 150)), "the clock was set back");
        assert!(is_worth_writing("opaque", &token(0, 1)));
        assert_eq!(validity("a.b"), None);
    }
}
