//! What the kubelet says to a driver of devices: `DRAPlugin` of Kubernetes, version v1 or v1beta1.

use crate::plugins::Introduction;
use bytes::Bytes;
use edge_grpc::wire::{Fields, Malformed, Message, Value};
use edge_grpc::{CallError, Channel};
use std::collections::{BTreeMap, BTreeSet};

/// How drivers register as.
pub(super) const KIND: &str = "DRAPlugin";
/// What drivers that tell of their devices' health say they serve.
const HEALTH: [&str; 2] = ["v1alpha1.DRAResourceHealth", "v1beta1.DRAResourceHealth"];

/// What a driver serves of what the kubelet asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    V1,
    V1Beta1,
}

impl Service {
    fn method(self, name: &str) -> String {
        let version = if self == Self::V1 { "v1" } else { "v1beta1" };
        format!("/k8s.io.kubelet.pkg.apis.dra.{version}.DRAPlugin/{name}")
    }
}

/// Which service is spoken with a plugin, and the service that tells of health, if it has one.
///
/// # Errors
/// Why it is of no use.
pub(super) fn judge(plugin: &Introduction) -> Result<(Service, Option<&'static str>), String> {
    let lists = |version: &str| plugin.versions.iter().any(|v| v == version);
    if plugin.name.is_empty() {
        return Err("DRA driver name is empty".to_owned());
    }
    let service = match (lists("v1.DRAPlugin"), lists("v1beta1.DRAPlugin")) {
        (true, _) => Service::V1,
        (false, true) => Service::V1Beta1,
        (false, false) => {
            return Err(format!(
                "invalid supported gRPC versions of DRA driver plugin {} at endpoint {}: none of the supported \
                 services is provided",
                plugin.name,
                plugin.endpoint.display()
            ));
        }
    };
    Ok((service, HEALTH.into_iter().find(|service| lists(service))))
}

/// A claim, as drivers know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClaimId {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// A device that a driver has prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Prepared {
    /// The requests that it is for; none: all.
    #[serde(default)]
    pub(super) requests: Vec<String>,
    pub(super) pool: String,
    pub(super) device: String,
    /// Names of the Container Device Interface.
    #[serde(default)]
    pub(super) cdi: Vec<String>,
}

/// Has claims prepared: for each of them its devices.
///
/// # Errors
/// Also when the driver leaves one of them out.
pub(super) async fn prepare(
    channel: &Channel,
    service: Service,
    claims: &[ClaimId],
) -> Result<BTreeMap<String, Vec<Prepared>>, String> {
    let mut out = BTreeMap::new();
    let results = ask(channel, service, "NodePrepareResources", claims).await?;
    for (uid, result) in results {
        let (devices, error) = prepared(result).map_err(|error| format!("NodePrepareResources: {error}"))?;
        check("NodePrepareResources", claims, &uid, &error)?;
        out.insert(uid, devices);
    }
    complete("NodePrepareResources", claims, &out.keys().cloned().collect())?;
    Ok(out)
}

/// Has claims given up.
///
/// # Errors
/// Also when the driver leaves one of them out.
pub(super) async fn unprepare(channel: &Channel, service: Service, claims: &[ClaimId]) -> Result<(), String> {
    let mut done = BTreeSet::new();
    for (uid, mut result) in ask(channel, service, "NodeUnprepareResources", claims).await? {
        let mut error = String::new();
        while let Some((field, value)) = result.next().map_err(|e| format!("NodeUnprepareResources: {e}"))? {
            if field == 1 {
                error = value.text().map_err(|e| format!("NodeUnprepareResources: {e}"))?;
            }
        }
        check("NodeUnprepareResources", claims, &uid, &error)?;
        done.insert(uid);
    }
    complete("NodeUnprepareResources", claims, &done)
}

async fn ask(
    channel: &Channel,
    service: Service,
    method: &str,
    claims: &[ClaimId],
) -> Result<Vec<(String, Fields)>, String> {
    let question = claims.iter().fold(Message::default(), |all, claim| {
        let one = Message::default().text(1, &claim.namespace).text(2, &claim.uid).text(3, &claim.name);
        all.message(1, &one)
    });
    let failed = |error: CallError| format!("{method}: {error}");
    let answer = channel.call(&service.method(method), question).await.map_err(failed)?;
    by_claim(answer).map_err(|error| failed(error.into()))
}

/// A map from claims to results: field 1, each entry a message of key and value.
fn by_claim(answer: Bytes) -> Result<Vec<(String, Fields)>, Malformed> {
    let (mut fields, mut out) = (Fields::of(answer), Vec::new());
    while let Some((field, value)) = fields.next()? {
        if field != 1 {
            continue;
        }
        let (mut entry, mut uid, mut result) = (value.fields(), String::new(), Fields::of(Bytes::new()));
        while let Some((field, value)) = entry.next()? {
            match field {
                1 => uid = value.text()?,
                2 => result = value.fields(),
                _ => {}
            }
        }
        out.push((uid, result));
    }
    Ok(out)
}

fn prepared(mut result: Fields) -> Result<(Vec<Prepared>, String), Malformed> {
    let (mut devices, mut error) = (Vec::new(), String::new());
    while let Some((field, value)) = result.next()? {
        match field {
            1 => devices.push(device(value)?),
            2 => error = value.text()?,
            _ => {}
        }
    }
    Ok((devices, error))
}

fn device(value: Value) -> Result<Prepared, Malformed> {
    let (mut fields, mut out) = (value.fields(), Prepared::default());
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => out.requests.push(value.text()?),
            2 => out.pool = value.text()?,
            3 => out.device = value.text()?,
            4 => out.cdi.push(value.text()?),
            _ => {}
        }
    }
    Ok(out)
}

fn check(method: &str, claims: &[ClaimId], uid: &str, error: &str) -> Result<(), String> {
    let claim = claims.iter().find(|claim| claim.uid == uid);
    let claim = claim.ok_or_else(|| format!("{method} returned result for unknown claim UID {uid}"))?;
    if error.is_empty() { Ok(()) } else { Err(format!("{method} failed for ResourceClaim {}: {error}", claim.name)) }
}

fn complete(method: &str, claims: &[ClaimId], done: &BTreeSet<String>) -> Result<(), String> {
    let missing = claims.iter().filter(|claim| !done.contains(&claim.uid)).count();
    if missing == 0 { Ok(()) } else { Err(format!("{method} skipped {missing} ResourceClaims")) }
}

/// How a device is, as its driver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) pool: String,
    pub(super) device: String,
    /// `Healthy`, `Unhealthy` or `Unknown`.
    pub(super) state: &'static str,
    /// For how long that may be believed, in seconds; 0: as long as usual.
    pub(super) lasts: u64,
}

/// The method with which a driver tells of health.
pub(super) fn health_method(service: &str) -> String {
    format!("/{service}/NodeWatchResources")
}

/// One message of a driver about its devices.
pub(super) fn health(message: Bytes) -> Result<Vec<Health>, Malformed> {
    let (mut fields, mut out) = (Fields::of(message), Vec::new());
    while let Some((field, value)) = fields.next()? {
        if field != 1 {
            continue;
        }
        let mut one = Health { pool: String::new(), device: String::new(), state: "Unknown", lasts: 0 };
        let mut of = value.fields();
        while let Some((field, value)) = of.next()? {
            match (field, value.number()) {
                (1, _) => {
                    let mut id = value.fields();
                    while let Some((field, value)) = id.next()? {
                        match field {
                            1 => one.pool = value.text()?,
                            2 => one.device = value.text()?,
                            _ => {}
                        }
                    }
                }
                (2, 1) => one.state = "Healthy",
                (2, 2) => one.state = "Unhealthy",
                // a negative number of seconds is a very large one here, and means nothing
                (4, seconds) => {
                    one.lasts = i64::try_from(seconds).ok().and_then(|s| u64::try_from(s).ok()).unwrap_or(0)
                }
                _ => {}
            }
        }
        out.push(one);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn who_is_of_use() {
        let plugin = |name: &str, versions: &[&str]| Introduction {
            kind: KIND.into(),
            name: name.into(),
            versions: versions.iter().map(|v| (*v).to_owned()).collect(),
            ..Introduction::default()
        };
        for (name, versions, want) in [
            ("d.io", &["v1.DRAPlugin"][..], Ok((Service::V1, None))),
            ("d.io", &["v1beta1.DRAPlugin"], Ok((Service::V1Beta1, None))),
            (
                "d.io",
                &["v1beta1.DRAPlugin", "v1.DRAPlugin", "v1alpha1.DRAResourceHealth"],
                Ok((Service::V1, Some("v1alpha1.DRAResourceHealth"))),
            ),
            ("d.io", &["v9.DRAPlugin"], Err("none of the supported services")),
            ("d.io", &[], Err("none of the supported services")),
            ("", &["v1.DRAPlugin"], Err("name is empty")),
        ] {
            let plugin = plugin(name, versions);
            match (judge(&plugin), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => panic!("{plugin:?}: {got:?} {want:?}"),
            }
        }
    }

    #[test]
    fn results_are_those_of_the_claims() {
        let claims = [ClaimId { namespace: "ns".into(), name: "c".into(), uid: "u".into() }];
        assert_eq!(check("M", &claims, "u", ""), Ok(()));
        assert_eq!(check("M", &claims, "u", "no").unwrap_err(), "M failed for ResourceClaim c: no");
        assert_eq!(check("M", &claims, "v", "").unwrap_err(), "M returned result for unknown claim UID v");
        assert_eq!(complete("M", &claims, &BTreeSet::new()).unwrap_err(), "M skipped 1 ResourceClaims");
        for garbage in [&[0x0a, 9, 1][..], &[0x0a, 2, 0x0a, 9], &[0xff; 20]] {
            assert!(by_claim(Bytes::copy_from_slice(garbage)).is_err());
        }
        assert!(by_claim(Bytes::from_static(&[0x12, 1, 1])).unwrap().is_empty());
    }

    #[test]
    fn health_of_devices() {
        // device {pool "p", device "d"}, unhealthy, for 5 s
        let one = [0x0a, 6, 0x0a, 1, b'p', 0x12, 1, b'd', 0x10, 2, 0x20, 5];
        let message = [&[0x0a, one.len() as u8][..], &one].concat();
        let told = health(message.into()).unwrap();
        let [h] = &told[..] else { panic!("{told:?}") };
        assert_eq!((h.pool.as_str(), h.device.as_str(), h.state), ("p", "d", "Unhealthy"));
        assert_eq!(h.lasts, 5);
        assert!(health(Bytes::from_static(&[0x0a, 200])).is_err());
    }
}
