//! `ServiceAccount`: every pod runs as an existing service account and, unless told otherwise, holds a token of it.

use super::{AttributesExt, Cluster, array_mut};
use edge_api::{Object, Status};
use edge_registry::Attributes;
use serde_json::{Map, Value, json};
use std::hash::{BuildHasher, RandomState};

const MIRROR: &str = "kubernetes.io/config.mirror";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Kubelets renew tokens well before they expire; the odd value is Kubernetes' mark of tokens mounted by default.
const TOKEN_SECONDS: u32 = 3607;

pub(super) fn admit(cluster: &dyn Cluster, a: &Attributes<'_>, pod: &mut Object) -> Result<(), Status> {
    if pod.annotation(MIRROR).is_some() {
        return admit_mirror(a, pod);
    }
    let mut name = pod.str_at("/spec/serviceAccountName").to_owned();
    if name.is_empty() {
        name = pod.str_at("/spec/serviceAccount").to_owned();
    }
    if name.is_empty() {
        name = "default".into();
    }
    let Some(account) = cluster.get("", "serviceaccounts", a.namespace, &name) else {
        let why =
            format!("error looking up service account {}/{name}: serviceaccount \"{name}\" not found", a.namespace);
        return Err(a.forbidden(Some(pod), &why));
    };
    let spec = pod.section_mut("spec");
    // the first is the name that counts, the second its deprecated twin, which Kubernetes keeps equal
    spec.insert("serviceAccountName".into(), name.clone().into());
    spec.insert("serviceAccount".into(), name.into());
    let automount = spec
        .get("automountServiceAccountToken")
        .and_then(Value::as_bool)
        .or_else(|| account.get("automountServiceAccountToken").as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(spec);
    }
    let has_secrets = spec.get("imagePullSecrets").and_then(Value::as_array).is_some_and(|s| !s.is_empty());
    if let (false, Some(secrets)) = (has_secrets, account.get("imagePullSecrets").as_array()) {
        spec.insert("imagePullSecrets".into(), secrets.clone().into());
    }
    Ok(())
}

/// A mirror pod stands for a file on the node: the API server must not lend it rights.
fn admit_mirror(a: &Attributes<'_>, pod: &Object) -> Result<(), Status> {
    if !pod.str_at("/spec/serviceAccountName").is_empty() {
        return Err(a.forbidden(Some(pod), "a mirror pod may not reference service accounts"));
    }
    let volumes = || pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    for (field, what) in [("secret", "secrets"), ("configMap", "configmaps")] {
        if volumes().any(|v| v.get(field).is_some_and(|s| !s.is_null())) {
            return Err(a.forbidden(Some(pod), &format!("a mirror pod may not reference {what}")));
        }
    }
    if volumes().any(|v| v.get("projected").is_some_and(|s| !s.is_null())) {
        return Err(a.forbidden(Some(pod), "a mirror pod may not use projected service account tokens"));
    }
    Ok(())
}

fn mount_token(spec: &mut Map<String, Value>) {
    let volumes = spec.get("volumes").and_then(Value::as_array);
    let existing = volumes
        .into_iter()
        .flatten()
        .filter_map(|v| v.get("name")?.as_str())
        .find(|n| n.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let volume = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", suffix()));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(mounts) = container.as_object_mut().and_then(|c| array_mut(c, "volumeMounts")) else { continue };
            if mounts.iter().any(|m| m.get("mountPath").and_then(Value::as_str) == Some(MOUNT_PATH)) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            used = true;
        }
    }
    if existing.is_none()
        && used
        && let Some(volumes) = array_mut(spec, "volumes")
    {
        volumes.push(token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    })
}

/// Five characters that spell no word. They need to differ, not to be secret.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut n = RandomState::new().hash_one(0u8);
    (0..5)
        .map(|_| {
            let c = ALPHABET[(n % ALPHABET.len() as u64) as usize];
            n /= ALPHABET.len() as u64;
            char::from(c)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, POD, attributes};
    use super::*;
    use edge_registry::Operation;

    fn admit(account: Value, spec: Value) -> Result<Value, Status> {
        let cluster = Fake::default().with("/serviceaccounts/ns/default", account);
        let mut pod = Object::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        attributes(Operation::Create, POD, "ns", "p", |a| super::admit(&cluster, a, &mut pod))?;
        Ok(pod.into_value())
    }

    #[test]
    fn mounts_a_token_once_in_every_container() {
        let own = json!([{"name": "own", "mountPath": MOUNT_PATH}]);
        let pod = admit(
            json!({"imagePullSecrets": [{"name": "reg"}]}),
            json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b", "volumeMounts": own}]}),
        )
        .unwrap();
        let spec = &pod["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["serviceAccount"], "default");
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "reg"}]));
        let name = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5, "{name}");
        assert_eq!(spec["volumes"][0]["projected"]["sources"].as_array().unwrap().len(), 3);
        for c in [&spec["initContainers"][0], &spec["containers"][0]] {
            assert_eq!(c["volumeMounts"], json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}]));
        }
        assert_eq!(spec["containers"][1]["volumeMounts"], own, "an own mount at the path is respected");
    }

    #[test]
    fn respects_opting_out_and_refuses_absent_accounts() {
        let pod = admit(json!({"automountServiceAccountToken": false}), json!({"containers": [{}]})).unwrap();
        assert!(pod["spec"].get("volumes").is_none());
        let spec = json!({"containers": [{}], "automountServiceAccountToken": true});
        let pod = admit(json!({"automountServiceAccountToken": false}), spec).unwrap();
        assert!(pod["spec"]["volumes"].is_array(), "the pod's word counts more than the account's");
        let e = admit(json!({}), json!({"serviceAccountName": "x"})).unwrap_err();
        assert_eq!(
            e.message,
            "pods \"p\" is forbidden: error looking up service account ns/x: serviceaccount \"x\" not found"
        );
    }

    #[test]
    fn malformed_specs_do_no_harm() {
        for spec in [
            json!(null),
            json!(3),
            json!({"containers": 3}),
            json!({"containers": [3, {"volumeMounts": 1}], "volumes": "x"}),
        ] {
            let _ = admit(json!({}), spec);
        }
    }
}
