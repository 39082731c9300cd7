//! Jobs that are deleted some time after they have ended.

use crate::context::{Context, each, unless_changed, unless_gone};
use crate::job::ended;
use edge_client::{
    Api, Change, DeleteParams, Error, Key, Outcome, Preconditions, PropagationPolicy, ResourceExt, WorkQueue,
    run_workers,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::time::Duration;

pub(crate) async fn run(context: Context) {
    let jobs = context.informers.of::<Job>();
    let queue = WorkQueue::<Key>::new();
    jobs.synced().await;
    let watch = each(&jobs, |change| {
        if let Change::Applied { new, .. } = change
            && due(new, Timestamp::now()).is_some()
        {
            queue.add(Key::of(&**new));
        }
    });
    let work = run_workers("ttl-after-finished", queue.clone(), 2, |key: Key| {
        let (job, client) = (jobs.get_key(&key), context.client.clone());
        async move {
            let Some(left) = job.and_then(|j| due(&j, Timestamp::now())) else { return Ok::<_, Error>(Outcome::Done) };
            if !left.is_zero() {
                return Ok(Outcome::After(left));
            }
            let api: Api<Job> = Api::namespaced(client, &key.namespace);
            // the time may have been prolonged just now
            let Some(live) = unless_gone(api.get(&key.name).await)? else { return Ok(Outcome::Done) };
            match due(&live, Timestamp::now()) {
                None => return Ok(Outcome::Done),
                Some(left) if !left.is_zero() => return Ok(Outcome::After(left)),
                Some(_) => {}
            }
            let params = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Foreground),
                preconditions: Some(Preconditions { uid: live.uid(), resource_version: live.resource_version() }),
                ..DeleteParams::default()
            };
            unless_changed(api.delete(&key.name, &params).await)?;
            Ok(Outcome::Done)
        }
    });
    tokio::join!(watch, work);
}

/// How long an ended Job may still stay; `None` for one that has not ended, may stay for ever or is going already.
fn due(job: &Job, now: Timestamp) -> Option<Duration> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let at = ended(job)?.last_transition_time.as_ref()?.0;
    let due = at.checked_add(SignedDuration::from_secs(ttl.into())).ok()?;
    Some(Duration::try_from(due.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn when_a_job_goes() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        for (ttl, condition, deleted, want) in [
            (json!(10), "Complete", false, Some(7)),
            (json!(10), "Failed", false, Some(7)),
            (json!(1), "Complete", false, Some(0)),
            (json!(0), "Complete", false, Some(0)),
            (json!(10), "SuccessCriteriaMet", false, None),
            (Value::Null, "Complete", false, None),
            (json!(10), "Complete", true, None),
        ] {
            let deletion = if deleted { json!(at(1)) } else { Value::Null };
            let job: Job = serde_json::from_value(json!({"metadata": {"deletionTimestamp": deletion},
                "spec": {"template": {}, "ttlSecondsAfterFinished": ttl},
                "status": {"conditions": [{"type": condition, "status": "True", "lastTransitionTime": at(100)}]}}))
            .unwrap();
            assert_eq!(due(&job, at(103)).map(|d| d.as_secs()), want, "{ttl} {condition} {deleted}");
        }
    }
}
