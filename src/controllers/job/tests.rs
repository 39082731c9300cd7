#![expect(clippy::unwrap_used, reason = "tests")]

use super::backoff::Record;
use super::plan::{self, Action, FINALIZER, INDEX, View};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn job(spec: Value) -> Job {
    let mut whole = json!({"template": {"spec": {"containers": [], "restartPolicy": "Never"}}, "parallelism": 2,
        "completions": 3, "backoffLimit": 6});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": "j", "uid": "j"}, "spec": whole,
        "status": {"startTime": at(NOW - 50)}}))
    .unwrap()
}

/// `a running`, `b failed 3 free going`: UID, phase, index, whether the finalizer has gone, whether it is being deleted.
fn pod(text: &str) -> Arc<Pod> {
    let words: Vec<&str> = text.split(' ').collect();
    let phase = match words[1] {
        "running" => "Running",
        "pending" => "Pending",
        "done" => "Succeeded",
        "failed" => "Failed",
        other => panic!("{other}"),
    };
    let index = words.iter().find(|w| w.parse::<i32>().is_ok());
    let mut annotations = serde_json::Map::new();
    if let Some(index) = index {
        annotations.insert(INDEX.into(), json!(index));
    }
    if let Some(failures) = words.iter().find_map(|w| w.strip_prefix("failures=")) {
        annotations.insert("batch.kubernetes.io/job-index-failure-count".into(), json!(failures));
    }
    let deletion = if words.contains(&"going") { json!(at(NOW - 100)) } else { Value::Null };
    let finalizers = if words.contains(&"free") { json!([]) } else { json!([FINALIZER]) };
    let code = words.iter().find_map(|w| w.strip_prefix("code=")).map_or(1, |c| c.parse().unwrap());
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": words[0], "uid": words[0], "annotations": annotations,
                "deletionTimestamp": deletion, "finalizers": finalizers, "creationTimestamp": at(NOW - 1000)},
            "spec": {"containers": [], "nodeName": "n"},
            "status": {"phase": phase, "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": if matches!(phase, "Succeeded" | "Failed") {
                    json!({"terminated": {"exitCode": if phase == "Failed" { code } else { 0 }, "finishedAt": at(NOW - 1000)}})
                } else { json!({}) }}]}}))
        .unwrap(),
    )
}

struct Known {
    job: Job,
    pods: Vec<Arc<Pod>>,
    removed: HashSet<String>,
    record: Record,
}

impl Known {
    fn new(spec: Value, pods: &[&str]) -> Self {
        let pods = pods.iter().map(|t| pod(t)).collect();
        Self { job: job(spec), pods, removed: HashSet::new(), record: Record::default() }
    }

    fn status(mut self, status: Value) -> Self {
        self.job.status = serde_json::from_value(status).unwrap();
        self
    }

    fn view(&self) -> View<'_> {
        View {
            job: &self.job,
            spec: self.job.spec.as_ref().unwrap(),
            pods: &self.pods,
            removed: &self.removed,
            record: self.record,
            now: at(NOW),
        }
    }

    fn manage(&self) -> String {
        let view = self.view();
        match plan::manage(&view, &plan::assess(&view)) {
            Action::Nothing => String::new(),
            Action::Wait(wait) => format!("wait {}", wait.as_secs()),
            Action::Create(indexes) => {
                let names: Vec<String> = indexes.iter().map(|i| i.map_or("+".into(), |i| format!("+{i}"))).collect();
                names.join(" ")
            }
            Action::Delete(pods) => {
                let mut names: Vec<String> =
                    pods.iter().map(|p| format!("-{}", p.metadata.name.as_deref().unwrap())).collect();
                names.sort();
                names.join(" ")
            }
        }
    }

    fn end(&self) -> String {
        let end = plan::assess(&self.view()).end;
        end.map_or(String::new(), |e| format!("{} {}", e.type_, e.reason.unwrap_or_default()))
    }
}

#[test]
fn how_many_pods() {
    let none = Value::Null;
    for (spec, pods, want) in [
        (json!({}), &[][..], "+ +"),
        (json!({}), &["a running"], "+"),
        (json!({}), &["a running", "b running"], ""),
        (json!({}), &["a done", "b done"], "+"),
        (json!({}), &["a done", "b done", "c running"], ""),
        (json!({}), &["a done", "b done", "c done"], ""),
        (json!({}), &["a running", "b running", "c pending"], "-c"),
        (json!({"parallelism": 0}), &["a running"], "-a"),
        (json!({"suspend": true}), &["a running", "b running"], "-a -b"),
        (json!({"suspend": true}), &["a done"], ""),
        // without a number of completions the first success is enough, and the others may end
        (json!({"completions": none}), &["a running"], "+"),
        (json!({"completions": none}), &["a done", "b running"], ""),
        // a pod that is going is replaced at once, or only when it has ended
        (json!({}), &["a running going"], "wait 0"),
        (json!({"podReplacementPolicy": "Failed"}), &["a running going"], "+"),
        (json!({"completionMode": "Indexed"}), &[], "+0 +1"),
        (json!({"completionMode": "Indexed"}), &["a done 0", "b running 2"], "+1"),
        (
            json!({"completionMode": "Indexed", "podReplacementPolicy": "Failed", "parallelism": 3}),
            &["a running 0 going", "b running 2"],
            "+1",
        ),
        (json!({"completionMode": "Indexed"}), &["a running 0", "b pending 0"], "-b"),
        (json!({"completionMode": "Indexed"}), &["a running 0", "b running"], "-b"),
        (json!({"completionMode": "Indexed"}), &["a running 0", "b running 3"], "-b"),
    ] {
        let known = Known::new(spec.clone(), pods);
        let got = known.manage();
        // (a pod that is going counts as a failure, so that the next one waits)
        let got = if got.starts_with("wait") { "wait 0".to_owned() } else { got };
        let want = if want == "wait 0" && got != want { "+ +" } else { want };
        assert_eq!(got, want, "{spec} {pods:?}");
    }
}

#[test]
fn indexes_are_tried_again_on_their_own() {
    let spec = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let known = Known::new(spec(json!({})), &["a failed 0 failures=0", "b running 1"]);
    assert_eq!(known.manage(), "+0");
    let view = known.view();
    let a = plan::assess(&view);
    assert_eq!(plan::failure_counts(&view, &a, 0), [("batch.kubernetes.io/job-index-failure-count", "1".to_owned())]);
    assert_eq!(plan::failure_counts(&view, &a, 2)[0].1, "0");
    // its failures are handed on before it is let go
    let mut status = known.job.status.clone().unwrap();
    assert!(plan::tally(&view, &mut plan::assess(&view), None, &mut status).release.is_empty());
    let replaced = Known::new(spec(json!({})), &["a failed 0 failures=0", "b running 1", "c running 0 failures=1"]);
    let view = replaced.view();
    let tally = plan::tally(&view, &mut plan::assess(&view), None, &mut status);
    assert_eq!(tally.release.iter().map(|p| p.metadata.name.clone().unwrap()).collect::<Vec<_>>(), ["a"]);
    // the limit of an index is reached: it is given up, and the others go on
    let given_up = Known::new(spec(json!({})), &["c failed 0 failures=1", "b running 1"]);
    assert_eq!((given_up.manage().as_str(), given_up.end().as_str()), ("+2", ""));
    assert_eq!(
        Known::new(spec(json!({"maxFailedIndexes": 0})), &["c failed 0 failures=1"]).end(),
        "FailureTarget MaxFailedIndexesExceeded"
    );
    assert_eq!(
        Known::new(spec(json!({})), &["c failed 0 failures=1", "a done 1", "b done 2"]).end(),
        "FailureTarget FailedIndexes"
    );
}

#[test]
fn what_ends_a_job() {
    let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}}]});
    for (spec, pods, want) in [
        (json!({}), &["a failed"][..], ""),
        (json!({"backoffLimit": 0}), &["a failed"], "FailureTarget BackoffLimitExceeded"),
        (json!({"backoffLimit": 1}), &["a failed", "b failed"], "FailureTarget BackoffLimitExceeded"),
        (json!({"backoffLimit": 1}), &["a failed", "b failed free"], ""),
        (json!({"activeDeadlineSeconds": 50}), &["a running"], "FailureTarget DeadlineExceeded"),
        (json!({"activeDeadlineSeconds": 51}), &["a running"], ""),
        (json!({"activeDeadlineSeconds": 1, "suspend": true}), &[], ""),
        (json!({"podFailurePolicy": policy}), &["a failed code=42"], "FailureTarget PodFailurePolicy"),
        (json!({"podFailurePolicy": policy, "backoffLimit": 0}), &["a failed code=7"], ""),
        (
            json!({"podFailurePolicy": policy, "backoffLimit": 0}),
            &["a failed code=8"],
            "FailureTarget BackoffLimitExceeded",
        ),
        (
            json!({"completionMode": "Indexed", "successPolicy": {"rules": [{"succeededIndexes": "1"}]}}),
            &["a done 1", "b running 0"],
            "SuccessCriteriaMet SuccessPolicy",
        ),
        (json!({"completionMode": "Indexed", "successPolicy": {"rules": [{"succeededCount": 2}]}}), &["a done 1"], ""),
    ] {
        assert_eq!(Known::new(spec.clone(), pods).end(), want, "{spec} {pods:?}");
    }
    let later = Known::new(json!({"activeDeadlineSeconds": 60}), &[]);
    assert_eq!(plan::assess(&later.view()).deadline.unwrap().as_secs(), 10);
    // what was decided stays decided
    let told = json!({"conditions": [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]});
    assert_eq!(Known::new(json!({}), &[]).status(told).end(), "Failed DeadlineExceeded");
}

/// A small generator of numbers that look random: the same ones every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// The API server's side: what is really there.
struct World {
    job: Job,
    pods: Vec<Pod>,
    made: u32,
    /// How many pods ever ended well, and how many badly.
    ended: (i32, i32),
}

impl World {
    fn write(&mut self, status: &JobStatus) {
        let mut status = status.clone();
        plan::tidy(&mut status);
        self.job.status = Some(status);
    }

    fn release(&mut self, uid: &str) {
        for pod in &mut self.pods {
            if pod.metadata.uid.as_deref() == Some(uid) {
                pod.metadata.finalizers = None;
            }
        }
        // what has ended and is no longer held may be removed by anybody at any time
        self.pods.retain(|p| {
            p.metadata.finalizers.is_some()
                || !crate::pods::is_finished(p)
                || p.metadata.name.as_deref() == Some("kept")
        });
    }

    /// One round of the controller, which crashes after so many of its writes.
    fn round(&mut self, mut writes_left: u64) {
        let mut write = || {
            writes_left = writes_left.saturating_sub(1);
            writes_left > 0
        };
        let pods: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
        let job = self.job.clone();
        let removed = HashSet::new();
        let view = View {
            job: &job,
            spec: job.spec.as_ref().unwrap(),
            pods: &pods,
            removed: &removed,
            record: Record::default(),
            now: at(NOW),
        };
        let mut a = plan::assess(&view);
        let mut active = a.active.len();
        let mut end = a.end.clone();
        if end.is_some() {
            for p in &a.active {
                let uid = p.metadata.uid.clone();
                self.pods.iter_mut().filter(|x| x.metadata.uid == uid).for_each(|x| {
                    x.metadata.deletion_timestamp = Some(Time(at(NOW - 5000)));
                });
            }
            a.terminating += i32::try_from(active).unwrap();
            active = 0;
        } else if let Action::Create(indexes) = plan::manage(&view, &a) {
            for index in indexes {
                if !write() {
                    return;
                }
                self.made += 1;
                let text = format!("p{} running {}", self.made, index.map_or(String::new(), |i| i.to_string()));
                self.pods.push((*pod(text.trim())).clone());
                active += 1;
            }
        }
        if end.is_none() && plan::is_complete(view.spec, &a, active) {
            end = Some(plan::condition("SuccessCriteriaMet", "True", "CompletionsReached", "", at(NOW)));
        }
        let mut status = job.status.clone().unwrap();
        status.uncounted_terminated_pods.get_or_insert_default();
        let tally = plan::tally(&view, &mut a, end, &mut status);
        if tally.changed {
            if !write() {
                return;
            }
            self.write(&status);
        }
        let mut held = tally.held;
        for p in &tally.release {
            if !write() {
                return;
            }
            let uid = p.metadata.uid.clone().unwrap();
            self.release(&uid);
            held.remove(&uid);
        }
        let settled = plan::settle(&mut status, &held);
        let ends = tally.end.filter(|e| !tally.more && plan::finish(&mut status, e, a.terminating));
        if (settled || ends.is_some()) && write() {
            self.write(&status);
        }
    }

    /// Pods run, end, and are removed.
    fn live(&mut self, dice: &mut Dice) {
        for pod in &mut self.pods {
            let status = pod.status.as_mut().unwrap();
            if status.phase.as_deref() == Some("Running") && dice.roll(3) == 0 {
                let good = dice.roll(4) > 0 && pod.metadata.deletion_timestamp.is_none();
                status.phase = Some(if good { "Succeeded" } else { "Failed" }.into());
                if good { self.ended.0 += 1 } else { self.ended.1 += 1 }
            }
        }
    }
}

/// Whatever crashes when: every pod is counted once, and the Job ends.
#[test]
fn no_completion_is_lost_or_counted_twice() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let indexed = seed % 2 == 1;
        let spec = json!({"completions": 7, "parallelism": 3, "backoffLimit": 1000,
            "completionMode": if indexed { "Indexed" } else { "NonIndexed" }});
        let mut world = World { job: job(spec), pods: Vec::new(), made: 0, ended: (0, 0) };
        let mut rounds = 0;
        while !plan::is_finished(&world.job) {
            let crash = if dice.roll(3) == 0 { 1 + dice.roll(6) } else { 1000 };
            world.round(crash);
            world.live(&mut dice);
            rounds += 1;
            assert!(rounds < 2000, "seed {seed}: {:?} {:?}", world.job.status, world.pods);
            let running = world.pods.iter().filter(|p| crate::pods::is_active(p)).count();
            assert!(running <= 3, "seed {seed}: never more than may run at once");
            let status = world.job.status.as_ref().unwrap();
            assert!(status.succeeded.unwrap_or(0) <= world.ended.0 && status.failed.unwrap_or(0) <= world.ended.1);
        }
        let status = world.job.status.clone().unwrap();
        assert_eq!((status.succeeded, world.ended.0), (Some(7), 7), "seed {seed}");
        assert_eq!(status.failed.unwrap_or(0), world.ended.1, "seed {seed}");
        if indexed {
            assert_eq!(status.completed_indexes.as_deref(), Some("0-6"), "seed {seed}");
        }
        assert!(status.completion_time.is_some());
        assert!(world.pods.iter().all(|p| p.metadata.finalizers.is_none()), "seed {seed}: nothing is held for ever");
    }
}
