//! A clock that jumps, as those of small machines do when they learn the time: what depends on the date ends as it is documented, what
//! does not goes on, and nobody is kept busy.

use crate::harness::{Clock, Cluster, eventually};
use crate::hollow::{Fleet, Options, Wire};
use crate::hot_loops::{RETRIES, calms_down, ordinary};
use std::time::Duration;

/// A year, as long as the certificate of the test's own client holds.
const JUMP: &str = "+364d";
const JUMP_BACK: &str = "-364d";

const DATED: &str = r#"
{apiVersion: batch/v1, kind: Job, metadata: {name: to-go}, spec: {ttlSecondsAfterFinished: 3600, template: {metadata: {annotations: {hollow/runs-for: "10"}},
  spec: {restartPolicy: Never, containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: too-long}, spec: {activeDeadlineSeconds: 3600, template: {spec: {restartPolicy: Never,
  containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: goes-on}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: often}, spec: {schedule: "0 * * * *", jobTemplate: {spec: {template: {metadata: {annotations:
  {hollow/runs-for: "10"}}, spec: {restartPolicy: Never, containers: [{name: c, image: "i:1"}]}}}}}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_by_a_year_keeps_nobody_busy() {
    let mut cluster = Cluster::prepare(&["--disable-agent"]);
    let clock = Clock::new(&cluster.dir, "+0");
    cluster.environment = clock.environment();
    cluster.launch();
    let client = crate::common::connect(&cluster).await;
    let fleet = Fleet::start(client.clone(), Options::default(), 3).await;
    let wire = Wire::new(client);
    for number in 0..10 {
        wire.create("/apis/apps/v1/namespaces/default/deployments", &ordinary(number)).await.unwrap();
    }
    tokio::task::block_in_place(|| {
        cluster.apply(DATED);
        cluster.kubectl(&["wait", "--for=condition=Complete", "job/to-go", "--timeout=60s"]);
    });
    // those of the Deployments and of the two jobs that do not end
    fleet.until(|counts| counts.running == 22).await;

    jump(&cluster, &clock, JUMP);
    tokio::task::block_in_place(|| {
        // Timers go by the time that passes, as in Kubernetes: who is not woken by a change learns of the date when his timer ends. The
        // kernel's telling that the clock was set does not come from libfaketime.
        cluster.kubectl(&["annotate", "jobs,cronjobs", "--all", "look=again"]);
        let reason = ["get", "job/too-long", "-o", r#"jsonpath={.status.conditions[?(@.type=="Failed")].reason}"#];
        eventually("the job has run for too long", || match cluster.kubectl(&reason).as_str() {
            "DeadlineExceeded" => Ok(()),
            other => Err(other.to_owned()),
        });
        eventually("the finished job goes", || {
            let jobs = cluster.kubectl(&["get", "jobs", "-o", "name"]);
            if jobs.contains("job.batch/to-go") { Err(jobs) } else { Ok(()) }
        });
        eventually("times that were missed are told of", || {
            let events = cluster.kubectl(&["get", "events", "--field-selector=involvedObject.name=often"]);
            if events.contains("TooManyMissedTimes") { Ok(()) } else { Err(events) }
        });
    });
    fleet.until(|counts| counts.running == 21).await;
    calms_down(&wire, RETRIES, "a year later").await;
    all_is_well(&cluster, &fleet, &wire, 21).await;

    // by two years: what has happened lies in the future now
    jump(&cluster, &clock, JUMP_BACK);
    calms_down(&wire, RETRIES, "two years earlier").await;
    all_is_well(&cluster, &fleet, &wire, 23).await;
    jump(&cluster, &clock, "+0");
    calms_down(&wire, RETRIES, "at the right time again").await;
    all_is_well(&cluster, &fleet, &wire, 25).await;
}

/// Sets the clock, and waits until the server goes by it.
fn jump(cluster: &Cluster, clock: &Clock, offset: &str) {
    let made = |n: u32| {
        let name = format!("at{offset}.{n}").replace('-', "minus").replace('+', "plus");
        cluster.kubectl(&["create", "configmap", &name, "-o", "jsonpath={.metadata.creationTimestamp}"])
    };
    tokio::task::block_in_place(|| {
        // the same month of another year is enough to tell
        let before = made(0)[..7].to_owned();
        clock.set(offset);
        let mut n = 0;
        eventually("the server goes by the clock", || {
            n += 1;
            let now = made(n);
            if now.starts_with(&before) { Err(now) } else { Ok(()) }
        });
    });
}

/// No node was given up and no pod went; new ones start.
async fn all_is_well(cluster: &Cluster, fleet: &Fleet, wire: &Wire, running: usize) {
    let counts = *fleet.counts().borrow();
    assert_eq!(counts.running, running, "{counts:?}");
    let number = 100 + running;
    wire.create("/apis/apps/v1/namespaces/default/deployments", &ordinary(number)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), fleet.until(|counts| counts.running == running + 2)).await.unwrap();
    tokio::task::block_in_place(|| {
        let ready = r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#;
        assert_eq!(cluster.kubectl(&["get", "nodes", "-o", ready]), "True True True");
        cluster.kubectl(&["wait", "--for=condition=Available", &format!("deployment/app-{number}"), "--timeout=60s"]);
    });
}
