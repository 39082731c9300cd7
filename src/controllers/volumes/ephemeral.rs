//! The claims of generic ephemeral volumes: made for a pod, named after it, gone with it.

use crate::context::{Context, each};
use edge_client::claims::claim_name;
use edge_client::{Api, Change, Error, EventType, Key, Outcome, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimTemplate, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub(crate) async fn run(context: Context) {
    let pods = context.informers.of::<Pod>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let queue = WorkQueue::<Key>::new();
    pods.synced().await;
    claims.synced().await;
    let watch_pods = each(&pods, |change| {
        if let Change::Applied { new, .. } = change
            && wanted(new).next().is_some()
        {
            queue.add(Key::of(&**new));
        }
    });
    // one that was deleted is made again
    let watch_claims = each(&claims, |change| {
        if let Change::Deleted(claim) = change
            && let Some(owner) = crate::owners::controller_of(&**claim).filter(|owner| owner.kind == "Pod")
        {
            queue.add(Key::new(claim.namespace().unwrap_or_default(), owner.name.clone()));
        }
    });
    let work = run_workers("ephemeral-volume", queue.clone(), 1, |key: Key| {
        let pod = pods.get_key(&key);
        let (context, claims) = (&context, &claims);
        async move {
            let Some(pod) = pod else { return Ok::<_, Error>(Outcome::Done) };
            for (name, template) in wanted(&pod) {
                if let Some(known) = claims.get(&key.namespace, &name) {
                    if !is_owned(&known, &pod) {
                        refuse(context, &pod, &name);
                    }
                    continue;
                }
                let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &key.namespace);
                match api.create(&Default::default(), &claim(&pod, &name, template)).await {
                    Ok(_) => {}
                    // the cache was behind: its change brings the pod's claims here again if they are somebody else's
                    Err(error) if edge_client::is_already_exists(&error) => {
                        if !is_owned(&api.get(&name).await?, &pod) {
                            refuse(context, &pod, &name);
                        }
                    }
                    Err(error) => {
                        let message = format!("PVC creation failed: {error}");
                        context.recorder.event(&*pod, EventType::Warning, "FailedCreate", message);
                        return Err(error);
                    }
                }
            }
            Ok(Outcome::Done)
        }
    });
    tokio::join!(watch_pods, watch_claims, work);
}

/// The claims that a pod which is not going needs to have made, by name.
fn wanted(pod: &Pod) -> impl Iterator<Item = (String, &PersistentVolumeClaimTemplate)> {
    let lives = pod.metadata.deletion_timestamp.is_none() && !crate::pods::is_finished(pod);
    let volumes = pod.spec.as_ref().filter(|_| lives).and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(|volume| {
        Some((claim_name(pod, volume)?, volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?))
    })
}

fn is_owned(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    crate::owners::controller_of(claim).is_some_and(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
}

fn refuse(context: &Context, pod: &Pod, name: &str) {
    let message = format!("PVC \"{name}\" was not created for pod \"{}\" (pod is not owner)", pod.name_any());
    context.recorder.event(pod, EventType::Warning, "FailedBinding", message);
}

fn claim(pod: &Pod, name: &str, template: &PersistentVolumeClaimTemplate) -> PersistentVolumeClaim {
    let metadata = template.metadata.clone().unwrap_or_default();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: pod.namespace(),
            labels: metadata.labels,
            annotations: metadata.annotations,
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_that_lives_gets_claims_of_its_own() {
        let pod = |deleted: Value, phase: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "deletionTimestamp": deleted},
                "status": {"phase": phase}, "spec": {"containers": [], "volumes": [{"name": "plain", "emptyDir": {}},
                    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}},
                        "spec": {"resources": {"requests": {"storage": "1Gi"}}}}}}]}}),
            )
            .unwrap()
        };
        let living = pod(Value::Null, "Pending");
        let all: Vec<_> = wanted(&living).collect();
        assert_eq!(all.len(), 1);
        let made = claim(&living, &all[0].0, all[0].1);
        assert_eq!(made.name_any(), "p-scratch");
        assert_eq!(made.labels()["a"], "b");
        assert!(is_owned(&made, &living));
        assert_eq!(wanted(&pod(json!("2026-01-01T00:00:00Z"), "Running")).count(), 0);
        assert_eq!(wanted(&pod(Value::Null, "Succeeded")).count(), 0);
    }
}
