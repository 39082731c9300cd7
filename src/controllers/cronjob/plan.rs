//! When a CronJob starts Jobs, and which ended ones it keeps: pure functions.

use edge_api::cron::Schedule;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// From so many missed starts on people are told.
const MANY: i64 = 100;

/// A start that is due, and how many were missed before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) at: Timestamp,
    pub(super) many_missed: bool,
}

/// Since when starts count: since the last one, or the creation; not before the deadline of starting late.
fn since(cron: &CronJob, spec: &CronJobSpec, now: Timestamp) -> Timestamp {
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref()).map(|t| t.0);
    let since = last.unwrap_or(created);
    let deadline = spec.starting_deadline_seconds.and_then(|s| now.checked_sub(SignedDuration::from_secs(s)).ok());
    deadline.map_or(since, |d| since.max(d))
}

/// The newest start that is due and was not made yet.
pub(super) fn due(
    cron: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
) -> Option<Start> {
    let since = since(cron, spec, now);
    let at = schedule.latest(since, now, zone)?;
    let first = schedule.next(since, zone)?;
    let second = schedule.next(first, zone).map_or(i64::MAX, Timestamp::as_second);
    // an estimate: they are not counted one by one
    let missed = (now.as_second() - first.as_second()) / second.saturating_sub(first.as_second()).max(1);
    Some(Start { at, many_missed: missed >= MANY })
}

/// How long it is to the next start after now.
pub(super) fn wait(schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Option<Duration> {
    let next = schedule.next(now, zone)?;
    Duration::try_from(next.duration_since(now)).ok()
}

/// Whether it is too late for a start.
pub(super) fn is_too_late(spec: &CronJobSpec, start: Timestamp, now: Timestamp) -> bool {
    let latest = spec.starting_deadline_seconds.and_then(|s| start.checked_add(SignedDuration::from_secs(s)).ok());
    latest.is_some_and(|latest| latest < now)
}

/// The name of the Job of a start: the same for the same start, so that it is made once.
pub(super) fn job_name(cron: &str, start: Timestamp) -> String {
    format!("{cron}-{}", start.as_second() / 60)
}

/// The ended Jobs beyond the limits of history: of those that succeeded and of those that failed the oldest.
pub(super) fn surplus(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let mut out = Vec::new();
    for (kind, limit, default) in
        [("Complete", spec.successful_jobs_history_limit, 3), ("Failed", spec.failed_jobs_history_limit, 1)]
    {
        let Ok(limit) = usize::try_from(limit.unwrap_or(default)) else { continue };
        let is = |j: &&Arc<Job>| crate::job::ended(j).is_some_and(|c| c.type_ == kind);
        let mut ended: Vec<_> = jobs.iter().filter(is).cloned().collect();
        ended.sort_by_key(|j| {
            (j.status.as_ref().and_then(|s| s.start_time.clone()).map(|t| t.0), j.metadata.name.clone())
        });
        let surplus = ended.len().saturating_sub(limit);
        out.extend(ended.into_iter().take(surplus));
    }
    out
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn cron(created: &str, last: Value, deadline: Value) -> CronJob {
        serde_json::from_value(json!({"metadata": {"name": "c", "creationTimestamp": created},
            "spec": {"schedule": "", "startingDeadlineSeconds": deadline, "jobTemplate": {}},
            "status": {"lastScheduleTime": last}}))
        .unwrap()
    }

    #[test]
    fn what_is_due() {
        let created = "2026-01-01T00:00:30Z";
        let at = |t: &str| json!(format!("2026-01-01T{t}Z"));
        for (line, last, deadline, now, want, many) in [
            ("0 * * * *", Value::Null, Value::Null, "00:59:59", None, false),
            ("0 * * * *", Value::Null, Value::Null, "01:00:00", Some("01:00:00"), false),
            ("0 * * * *", Value::Null, Value::Null, "01:59:00", Some("01:00:00"), false),
            ("0 * * * *", Value::Null, Value::Null, "03:10:00", Some("03:00:00"), false),
            ("0 * * * *", at("03:00:00"), Value::Null, "03:10:00", None, false),
            ("0 * * * *", at("01:00:00"), Value::Null, "03:10:00", Some("03:00:00"), false),
            ("0 * * * *", at("01:00:00"), json!(300), "03:10:00", None, false),
            ("0 * * * *", at("01:00:00"), json!(900), "03:10:00", Some("03:00:00"), false),
            ("* * * * *", Value::Null, Value::Null, "23:10:20", Some("23:10:00"), true),
            ("* * * * *", at("23:08:00"), Value::Null, "23:10:20", Some("23:10:00"), false),
            ("* * * * *", Value::Null, json!(200), "23:10:20", Some("23:10:00"), false),
            ("0,1 0,6,12 * * *", at("00:01:00"), Value::Null, "23:00:00", Some("12:01:00"), true),
            ("0,30 1,2 * * *", Value::Null, Value::Null, "02:45:00", Some("02:30:00"), false),
            ("0 0 30 2 *", Value::Null, Value::Null, "23:00:00", None, false),
        ] {
            let c = cron(created, last.clone(), deadline.clone());
            let now: Timestamp = format!("2026-01-01T{now}Z").parse().unwrap();
            let schedule = Schedule::parse(line).unwrap();
            let got = due(&c, &c.spec, &schedule, &TimeZone::UTC, now);
            let want = want.map(|t| Start { at: format!("2026-01-01T{t}Z").parse().unwrap(), many_missed: many });
            assert_eq!(got, want, "{line} last {last} deadline {deadline} now {now}");
        }
    }

    #[test]
    fn years_of_minutes_are_not_walked_through() {
        let c = cron("2020-01-01T00:00:00Z", Value::Null, Value::Null);
        let now: Timestamp = "2026-06-01T12:34:56Z".parse().unwrap();
        let schedule = Schedule::parse("* * * * *").unwrap();
        let start = due(&c, &c.spec, &schedule, &TimeZone::UTC, now).unwrap();
        assert_eq!((start.at.to_string().as_str(), start.many_missed), ("2026-06-01T12:34:00Z", true));
        assert_eq!(wait(&schedule, &TimeZone::UTC, now), Some(Duration::from_secs(4)));
        assert_eq!(job_name("c", start.at), format!("c-{}", start.at.as_second() / 60));
    }

    #[test]
    fn too_late_to_start() {
        let spec = cron("2026-01-01T00:00:00Z", Value::Null, json!(60)).spec;
        let at = |s| Timestamp::from_second(s).unwrap();
        assert!(!is_too_late(&spec, at(0), at(60)) && is_too_late(&spec, at(0), at(61)));
        let none = cron("2026-01-01T00:00:00Z", Value::Null, Value::Null).spec;
        assert!(!is_too_late(&none, at(0), at(1_000_000)));
    }

    #[test]
    fn history_is_short() {
        let job = |name: &str, kind: &str, start: i64| -> Arc<Job> {
            let start = Timestamp::from_second(start).unwrap();
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name}, "status": {"startTime": start,
                "conditions": [{"type": kind, "status": "True"}]}}))
                .unwrap(),
            )
        };
        let jobs = [
            job("a", "Complete", 1),
            job("b", "Complete", 3),
            job("c", "Complete", 2),
            job("d", "Complete", 4),
            job("e", "Failed", 1),
            job("f", "Failed", 2),
            job("g", "Suspended", 0),
        ];
        let names = |good: Value, bad: Value| -> Vec<String> {
            let spec: CronJobSpec = serde_json::from_value(json!({"schedule": "", "jobTemplate": {},
                "successfulJobsHistoryLimit": good, "failedJobsHistoryLimit": bad}))
            .unwrap();
            surplus(&spec, &jobs).iter().map(|j| j.metadata.name.clone().unwrap()).collect()
        };
        assert_eq!(names(Value::Null, Value::Null), ["a", "e"]);
        assert_eq!(names(json!(1), json!(0)), ["a", "c", "b", "e", "f"]);
        assert!(names(json!(9), json!(9)).is_empty());
    }
}
