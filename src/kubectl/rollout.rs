//! `rollout`: status, restart, undo, history.

use crate::apply::text;
use crate::cli::{RolloutArgs, RolloutCommand};
use crate::error::Error;
use crate::print;
use crate::resources::Object;
use crate::session::{FIELD_MANAGER, JSON_PATCH, STRATEGIC_MERGE_PATCH, Session, query};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;

const REVISION: &str = "deployment.kubernetes.io/revision";

pub(crate) async fn run(session: &Session, args: RolloutArgs) -> Result<(), Error> {
    match args.command {
        RolloutCommand::Status { objects, timeout } => {
            let object = session.object(&objects)?;
            let limit =
                duration(&timeout).ok_or_else(|| Error::Usage(format!("{timeout:?} is no time such as 60s or 5m")))?;
            let follow = status(session, &object);
            if limit.is_zero() {
                return follow.await;
            }
            let late = || Error::Usage("timed out waiting for the condition".into());
            tokio::time::timeout(limit, follow).await.map_err(|_| late())?
        }
        RolloutCommand::Restart { objects } => {
            let object = session.object(&objects)?;
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
            let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
            change(session, &object, STRATEGIC_MERGE_PATCH, &patch, "restarted").await
        }
        RolloutCommand::Undo { objects, to_revision } => undo(session, &session.object(&objects)?, to_revision).await,
        RolloutCommand::History { objects } => history(session, &session.object(&objects)?).await,
    }
}

fn duration(text: &str) -> Option<Duration> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return None,
    };
    let number: u64 = text[..text.len() - 1].parse().ok()?;
    Some(Duration::from_secs(number.checked_mul(unit)?))
}

async fn change(session: &Session, object: &Object, kind: &str, patch: &Value, done: &str) -> Result<(), Error> {
    let query = query(&[("fieldManager", Some(FIELD_MANAGER))]);
    session.patch(&format!("{}?{query}", session.path(object)), kind, patch).await?;
    print::line(&format!("{} {done}", object.resource.display(&object.name)))
}

/// Follows an object until its rollout is done.
async fn status(session: &Session, object: &Object) -> Result<(), Error> {
    let mut said = String::new();
    loop {
        let known = session.get(&session.path(object)).await?;
        if tell(object, &known, &mut said)? {
            return Ok(());
        }
        let mut events = session.follow(object, &session.namespace, &known).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            match event["type"].as_str() {
                Some("DELETED") => {
                    return Err(Error::Usage(format!("{} was deleted", object.resource.display(&object.name))));
                }
                Some("ADDED" | "MODIFIED") if tell(object, &event["object"], &mut said)? => return Ok(()),
                // after an error, and after the end, all is looked at anew
                _ => {}
            }
        }
    }
}

/// Prints where the rollout is, when that is news; gives whether it is done.
fn tell(object: &Object, known: &Value, said: &mut String) -> Result<bool, Error> {
    let (news, done) = progress(&object.resource.kind, &object.name, known)?;
    if news != *said {
        print::line(&news)?;
        *said = news;
    }
    Ok(done)
}

/// Where a rollout is, in kubectl's words, and whether it is done.
fn progress(kind: &str, name: &str, object: &Value) -> Result<(String, bool), Error> {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64);
    let status = |key: &str| number(&format!("/status/{key}")).unwrap_or(0);
    if number("/metadata/generation").unwrap_or(0) > status("observedGeneration") {
        return Ok((format!("Waiting for {} spec update to be observed...", kind.to_lowercase()), false));
    }
    let wanted = number("/spec/replicas").unwrap_or(1);
    Ok(match kind {
        "Deployment" => {
            let conditions =
                object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
            if conditions.iter().any(|c| c["type"] == "Progressing" && c["reason"] == "ProgressDeadlineExceeded") {
                return Err(Error::Usage(format!("deployment {name:?} exceeded its progress deadline")));
            }
            let (updated, all, available) =
                (status("updatedReplicas"), status("replicas"), status("availableReplicas"));
            let wait = |what: String| (format!("Waiting for deployment {name:?} rollout to finish: {what}..."), false);
            if updated < wanted {
                wait(format!("{updated} out of {wanted} new replicas have been updated"))
            } else if all > updated {
                wait(format!("{} old replicas are pending termination", all - updated))
            } else if available < updated {
                wait(format!("{available} of {updated} updated replicas are available"))
            } else {
                (format!("deployment {name:?} successfully rolled out"), true)
            }
        }
        "DaemonSet" => {
            let (wanted, updated) = (status("desiredNumberScheduled"), status("updatedNumberScheduled"));
            let available = status("numberAvailable");
            let wait = |what: String| (format!("Waiting for daemon set {name:?} rollout to finish: {what}..."), false);
            if updated < wanted {
                wait(format!("{updated} out of {wanted} new pods have been updated"))
            } else if available < wanted {
                wait(format!("{available} of {wanted} updated pods are available"))
            } else {
                (format!("daemon set {name:?} successfully rolled out"), true)
            }
        }
        "StatefulSet" => {
            let ready = status("readyReplicas");
            let partition = number("/spec/updateStrategy/rollingUpdate/partition").unwrap_or(0);
            if ready < wanted {
                (format!("Waiting for {} pods to be ready...", wanted - ready), false)
            } else if partition > 0 && status("updatedReplicas") < wanted - partition {
                let updated = status("updatedReplicas");
                (
                    format!(
                        "Waiting for partitioned roll out to finish: {updated} out of {} new pods have been updated...",
                        wanted - partition
                    ),
                    false,
                )
            } else if partition == 0 && object["status"]["updateRevision"] != object["status"]["currentRevision"] {
                (
                    format!(
                        "waiting for statefulset rolling update to complete {} pods at revision {}...",
                        status("updatedReplicas"),
                        text(object, "/status/updateRevision")
                    ),
                    false,
                )
            } else {
                (
                    format!(
                        "statefulset rolling update complete {} pods at revision {}...",
                        status("currentReplicas"),
                        text(object, "/status/currentRevision")
                    ),
                    true,
                )
            }
        }
        _ => return Err(Error::Usage(format!("a {kind} has no rollout"))),
    })
}

/// The replica sets of a deployment with their revisions, the oldest first.
async fn revisions(session: &Session, object: &Object) -> Result<Vec<(i64, Value)>, Error> {
    if object.resource.kind != "Deployment" {
        return Err(Error::Usage(format!(
            "edge shows and undoes revisions of deployments only, not of a {}",
            object.resource.kind
        )));
    }
    let uid = text(&session.get(&session.path(object)).await?, "/metadata/uid").to_owned();
    let sets = session.get(&session.resource("replicasets.apps")?.path(Some(&session.namespace), None)).await?;
    let mut found: Vec<(i64, Value)> = sets["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|set| set["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|o| o["uid"] == *uid))
        .filter_map(|set| Some((set["metadata"]["annotations"][REVISION].as_str()?.parse().ok()?, set.clone())))
        .collect();
    found.sort_by_key(|(revision, _)| *revision);
    Ok(found)
}

async fn history(session: &Session, object: &Object) -> Result<(), Error> {
    let mut rows = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
    for (revision, set) in revisions(session, object).await? {
        rows.push(vec![
            revision.to_string(),
            print::cell(&set["metadata"]["annotations"]["kubernetes.io/change-cause"]),
        ]);
    }
    print::line(&object.resource.display(&object.name))?;
    print::raw(&print::columns(&rows))
}

async fn undo(session: &Session, object: &Object, to: i64) -> Result<(), Error> {
    let all = revisions(session, object).await?;
    let found = match to {
        0 => all.iter().rev().nth(1),
        to => all.iter().find(|(revision, _)| *revision == to),
    };
    let missing = || match to {
        0 => Error::Usage(format!("no rollout history found for deployment {:?}", object.name)),
        to => Error::Usage(format!("unable to find specified revision {to} in history")),
    };
    let mut template = found.ok_or_else(missing)?.1["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove("pod-template-hash");
    }
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    change(session, object, JSON_PATCH, &patch, "rolled back").await
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn deployments_are_done_when_the_last_old_pod_is_gone() {
        let at = |updated: i64, all: i64, available: i64| {
            let object = json!({"metadata": {"generation": 2}, "spec": {"replicas": 3},
                "status": {"observedGeneration": 2, "updatedReplicas": updated, "replicas": all, "availableReplicas": available}});
            progress("Deployment", "web", &object).unwrap()
        };
        assert!(at(1, 4, 3).0.contains("1 out of 3 new replicas have been updated"));
        assert!(at(3, 4, 3).0.contains("1 old replicas are pending termination"));
        assert!(at(3, 3, 2).0.contains("2 of 3 updated replicas are available"));
        assert_eq!(at(3, 3, 3), ("deployment \"web\" successfully rolled out".into(), true));
        let old = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}});
        assert!(!progress("Deployment", "web", &old).unwrap().1);
        let stuck = json!({"status": {"conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]}});
        assert!(progress("Deployment", "web", &stuck).is_err());
        assert!(progress("Pod", "web", &json!({})).is_err());
    }

    #[test]
    fn times() {
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Some(Duration::from_secs(300)));
        assert!(duration("").is_none() && duration("5").is_none() && duration("xs").is_none());
    }
}
