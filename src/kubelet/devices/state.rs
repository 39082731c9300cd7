//! What drivers have prepared on this node, kept in `<agent>/devices.json`: a claim that was prepared is given up once its last pod has gone,
//! whatever happens in between.
//!
//! The file is written before a driver is asked to prepare something and after it has done so. After a reboot everything has to be prepared
//! anew. A file that cannot be read is put aside.

use super::driver::{ClaimId, Prepared};
use crate::records::{Content, Records};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

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
struct File {
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
}

impl Content for Claims {
    type Key = Name;
    const FILE: &'static str = "devices.json";
    const LOST: &'static str = "devices in use are not known any more";

    fn read(bytes: &[u8], boot: &str) -> serde_json::Result<Self> {
        let content: File = serde_json::from_slice(bytes)?;
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
        serde_json::to_vec(&File { boot: boot.to_owned(), claims: self.0.iter().map(entry).collect() })
    }
}

/// How drivers know a claim.
pub(super) fn id(name: &Name, claim: &Claim) -> ClaimId {
    ClaimId { namespace: name.0.clone(), name: name.1.clone(), uid: claim.uid.clone() }
}

/// The claims, on disk too.
pub(super) type State = Records<Claims>;

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
        let bytes = std::fs::read(dir.path().join(Claims::FILE)).unwrap();
        let later = Claims::read(&bytes, "another boot").unwrap();
        assert_eq!(later.0[&name], Claim { is_prepared: false, ..claim() });
    }
}
