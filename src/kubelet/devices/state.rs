//! What drivers have prepared on this node, kept in `<agent>/devices.json`: a claim that was prepared is given up once its last pod has gone,
//! whatever happens in between.
//!
//! The file is written before a driver is asked to prepare something and after it has done so. After a reboot everything has to be prepared
//! anew. A file that cannot be read is put aside.

use super::driver::{ClaimId, Prepared};
use edge_sys::fsutil::write_atomic;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE: &str = "devices.json";
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A claim that has been prepared, or is about to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Claim {
    pub(super) uid: String,
    /// UIDs of the pods here that use it.
    pub(super) pods: BTreeSet<String>,
    /// All drivers have done their part.
    pub(super) is_prepared: bool,
    /// What each driver has prepared.
    pub(super) drivers: BTreeMap<String, Vec<Prepared>>,
}

/// Namespace and name of a claim.
pub(super) type Name = (String, String);

/// The claims of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims(pub(super) BTreeMap<Name, Claim>);

#[derive(Serialize, Deserialize)]
struct Content {
    boot: String,
    claims: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    namespace: String,
    name: String,
    #[serde(flatten)]
    claim: Claim,
}

impl Claims {
    /// The names of the claims of a pod.
    pub(super) fn of_pod(&self, uid: &str) -> Vec<Name> {
        self.0.iter().filter(|(_, claim)| claim.pods.contains(uid)).map(|(name, _)| name.clone()).collect()
    }

    fn read(bytes: &[u8], boot: &str) -> serde_json::Result<Self> {
        let content: Content = serde_json::from_slice(bytes)?;
        let same_boot = content.boot == boot;
        let entries = content.claims.into_iter().map(|Entry { namespace, name, mut claim }| {
            claim.is_prepared &= same_boot;
            ((namespace, name), claim)
        });
        Ok(Self(entries.collect()))
    }

    fn write(&self, boot: &str) -> serde_json::Result<Vec<u8>> {
        let entry = |(name, claim): (&Name, &Claim)| Entry {
            namespace: name.0.clone(),
            name: name.1.clone(),
            claim: claim.clone(),
        };
        serde_json::to_vec(&Content { boot: boot.to_owned(), claims: self.0.iter().map(entry).collect() })
    }
}

/// How drivers know a claim.
pub(super) fn id(name: &Name, claim: &Claim) -> ClaimId {
    ClaimId { namespace: name.0.clone(), name: name.1.clone(), uid: claim.uid.clone() }
}

/// The claims, on disk too.
pub(super) struct State {
    path: PathBuf,
    boot: String,
    claims: Mutex<Claims>,
    /// What was written last. One write at a time, and each writes the newest.
    written: tokio::sync::Mutex<Claims>,
    /// Those that somebody works on, whoever else wants to waits.
    busy: Mutex<BTreeMap<Name, Arc<tokio::sync::Mutex<()>>>>,
}

impl State {
    /// Reads what is on disk. Blocking.
    pub(super) fn open(agent_dir: &Path) -> Self {
        let path = agent_dir.join(FILE);
        let boot = fs::read_to_string(BOOT).unwrap_or_default().trim().to_owned();
        let read = match fs::read(&path) {
            Ok(bytes) => Claims::read(&bytes, &boot).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Claims::default()),
            Err(error) => Err(error),
        };
        let claims = read.unwrap_or_else(|error| {
            let aside = path.with_extension("damaged");
            tracing::error!(file = %path.display(), aside = %aside.display(), %error, "devices in use are not known any more");
            if let Err(error) = fs::rename(&path, &aside) {
                tracing::warn!(file = %path.display(), %error, "file not put aside");
            }
            Claims::default()
        });
        Self {
            path,
            boot,
            written: tokio::sync::Mutex::new(claims.clone()),
            claims: Mutex::new(claims),
            busy: Mutex::default(),
        }
    }

    /// Looks at the claims.
    pub(super) fn look<T>(&self, at: impl FnOnce(&Claims) -> T) -> T {
        at(&self.claims.lock())
    }

    /// Changes the claims, also on disk.
    pub(super) async fn change<T>(&self, change: impl FnOnce(&mut Claims) -> T) -> io::Result<T> {
        let result = change(&mut self.claims.lock());
        let mut written = self.written.lock().await;
        let now = self.claims.lock().clone();
        if *written != now {
            let (path, bytes) = (self.path.clone(), now.write(&self.boot).map_err(io::Error::from)?);
            let write = tokio::task::spawn_blocking(move || write_atomic(&path, &bytes, 0o600));
            write.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
            *written = now;
        }
        Ok(result)
    }

    /// Waits until nobody else works on any of these claims.
    pub(super) async fn busy(&self, names: &BTreeSet<Name>) -> Vec<tokio::sync::OwnedMutexGuard<()>> {
        let mut held = Vec::new();
        // always in the same order, so that nobody waits for somebody who waits
        for name in names {
            let lock = {
                let mut busy = self.busy.lock();
                busy.retain(|other, lock| other == name || Arc::strong_count(lock) > 1);
                busy.entry(name.clone()).or_default().clone()
            };
            held.push(lock.lock_owned().await);
        }
        held
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn claim() -> Claim {
        let device =
            Prepared { pool: "p".into(), device: "d".into(), cdi: vec!["v/c=d".into()], ..Prepared::default() };
        Claim {
            uid: "u".into(),
            pods: BTreeSet::from(["pod".to_owned()]),
            is_prepared: true,
            drivers: BTreeMap::from([("d.io".to_owned(), vec![device])]),
        }
    }

    #[tokio::test]
    async fn claims_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let name = ("ns".to_owned(), "c".to_owned());
        let state = State::open(dir.path());
        state.change(|claims| claims.0.insert(name.clone(), claim())).await.unwrap();
        let again = State::open(dir.path());
        assert_eq!(again.look(|claims| claims.0.get(&name).cloned()), Some(claim()));
        assert_eq!(again.look(|claims| claims.of_pod("pod")), std::slice::from_ref(&name));
        assert!(again.look(|claims| claims.of_pod("other")).is_empty());
        // after a reboot the devices are not prepared any more
        let bytes = fs::read(dir.path().join(FILE)).unwrap();
        let later = Claims::read(&bytes, "another boot").unwrap();
        assert_eq!(later.0[&name], Claim { is_prepared: false, ..claim() });
    }

    #[tokio::test]
    async fn damage_is_put_aside() {
        for damage in ["", "{", "[]", r#"{"boot": "x", "claims": [{"name": 1}]}"#] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), damage).unwrap();
            let state = State::open(dir.path());
            assert_eq!(state.look(Claims::clone), Claims::default());
            assert!(dir.path().join("devices.damaged").exists());
        }
    }

    #[tokio::test]
    async fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path());
        let names = |list: &[&str]| list.iter().map(|n| ("ns".to_owned(), (*n).to_owned())).collect::<BTreeSet<_>>();
        let held = state.busy(&names(&["a", "b"])).await;
        let other = state.busy(&names(&["c"])).await;
        let both = names(&["b", "c"]);
        let mut waits = std::pin::pin!(state.busy(&both));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        drop(held);
        assert!(futures::poll!(waits.as_mut()).is_pending());
        drop(other);
        assert_eq!(waits.await.len(), 2);
    }
}
