//! What the cluster must have become in the end.

use super::driver::Driver;
use super::objects::{self, GUARDED, GUARDED_REPLICAS, NAMESPACE};
use crate::hollow::Wire;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long the end may take: Jobs wait for ten seconds and more after pods that were taken from them.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nothing that must never be was seen.
pub(super) fn no_faults(driver: &Driver<'_>) {
    let mut faults = driver.fleet.faults();
    {
        let mut model = driver.model.lock();
        faults.extend(model.faults.clone());
        if model.outage {
            model.calm = false;
            model.calm_faults.clear();
        }
        faults.extend(model.calm_faults.clone());
    }
    assert!(faults.is_empty(), "{faults:#?}\nafter {:#?}", driver.done);
}

/// Waits until everything is as it was wanted at first.
pub(super) async fn settled(driver: &Driver<'_>) {
    let begun = Instant::now();
    while let Err(what) = state(driver).await {
        assert!(begun.elapsed() < PATIENCE, "{what:#?}\nafter {:#?}", driver.done);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until everything is as it is wanted now, and looks at what is left over.
pub(super) async fn converges(driver: &mut Driver<'_>, seed: u64, round: u64) {
    let begun = Instant::now();
    settled(driver).await;
    eprintln!("round {round} of seed {seed} settled after {:.1} s", begun.elapsed().as_secs_f64());
    no_faults(driver);
    let leftovers = leftovers(&driver.wire).await;
    assert!(leftovers.is_empty(), "{leftovers:#?}\nafter {:#?}", driver.done);
    jobs_were_exact(driver).await;
}

async fn list(wire: &Wire, kind: &str) -> Vec<Value> {
    let list: Value = wire.get(&objects::path(kind)).await.unwrap();
    list["items"].as_array().unwrap().clone()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap_or(0).try_into().unwrap()
}

/// What is not yet as wanted.
async fn state(driver: &Driver<'_>) -> Result<(), Vec<String>> {
    let mut wrong = Vec::new();
    let pods = list(&driver.wire, "pods").await;
    deployments(driver, &pods, &mut wrong).await;
    stateful_sets(driver, &pods, &mut wrong).await;
    daemons(driver, &mut wrong).await;
    for job in list(&driver.wire, "jobs").await {
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if !conditions.iter().any(|c| c["type"] == "Complete" && c["status"] == "True") {
            wrong.push(format!("{} is not complete: {}", name(&job), job["status"]));
        }
    }
    let going = pods.iter().filter(|p| !p["metadata"]["deletionTimestamp"].is_null());
    wrong.extend(going.map(|p| format!("{} is going", name(p))));
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Pods of an app that run, and whether all have the same image, which is this one if it is known.
fn check_pods(pods: &[Value], app: &str, replicas: usize, image: &Value, wrong: &mut Vec<String>) {
    let of: Vec<&Value> = pods.iter().filter(|p| p["metadata"]["labels"]["app"] == app).collect();
    let running = of.iter().filter(|p| p["status"]["phase"] == "Running").count();
    let right = of.iter().filter(|p| p["spec"]["containers"][0]["image"] == *image).count();
    if (of.len(), running, right) != (replicas, replicas, replicas) {
        let found = format!("{} pods, {running} running, {right} with {image}", of.len());
        wrong.push(format!("{app} has {found}, and not {replicas}"));
    }
}

async fn deployments(driver: &Driver<'_>, pods: &[Value], wrong: &mut Vec<String>) {
    let wanted = driver.wanted().into_iter().chain([(GUARDED.name, GUARDED_REPLICAS, 0)]);
    let all = list(&driver.wire, "deployments").await;
    for (app, replicas, image) in wanted {
        let Some(found) = all.iter().find(|d| name(d) == app) else {
            wrong.push(format!("{app} is not there"));
            continue;
        };
        let status = &found["status"];
        let counts = ["replicas", "updatedReplicas", "availableReplicas"].map(|field| number(&status[field]));
        let observed = status["observedGeneration"] == found["metadata"]["generation"];
        if counts != [replicas; 3] || !observed || number(&found["spec"]["replicas"]) != replicas {
            wrong.push(format!("{app} (observed: {observed}) has {status}, and not {replicas}"));
        }
        check_pods(pods, app, replicas, &objects::image(image).into(), wrong);
    }
}

async fn stateful_sets(driver: &Driver<'_>, pods: &[Value], wrong: &mut Vec<String>) {
    for set in list(&driver.wire, "statefulsets").await {
        let (replicas, status) = (number(&set["spec"]["replicas"]), &set["status"]);
        let counts = ["replicas", "readyReplicas", "currentReplicas", "availableReplicas"].map(|f| number(&status[f]));
        if counts != [replicas; 4] || status["currentRevision"] != status["updateRevision"] {
            wrong.push(format!("{} has {status}, and not {replicas}", name(&set)));
        }
        check_pods(pods, name(&set), replicas, &set["spec"]["template"]["spec"]["containers"][0]["image"], wrong);
    }
}

async fn daemons(driver: &Driver<'_>, wrong: &mut Vec<String>) {
    let nodes = driver.fleet.nodes().len();
    for set in list(&driver.wire, "daemonsets").await {
        let status = &set["status"];
        let counts =
            ["desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable"].map(|f| number(&status[f]));
        if counts != [nodes; 3] {
            wrong.push(format!("{} has {status}, and not {nodes}", name(&set)));
        }
    }
}

/// Objects that nobody owns any more, or that wait for somebody who does not come.
async fn leftovers(wire: &Wire) -> Vec<String> {
    let (mut uids, mut all) = (HashSet::new(), Vec::new());
    for kind in ["deployments", "statefulsets", "daemonsets", "jobs", "replicasets", "pods"] {
        let items = list(wire, kind).await;
        uids.extend(items.iter().map(|o| o["metadata"]["uid"].as_str().unwrap().to_owned()));
        if kind == "replicasets" || kind == "pods" {
            all.extend(items);
        }
    }
    let mut left = Vec::new();
    for object in &all {
        let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        if !owners.iter().any(|o| uids.contains(o["uid"].as_str().unwrap())) {
            left.push(format!("nobody owns {} of {NAMESPACE}", name(object)));
        }
        let finalizers = object["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        if finalizers > 0 {
            left.push(format!("{} keeps {}", name(object), object["metadata"]["finalizers"]));
        }
    }
    left
}

/// Each index of each Job has succeeded once, and the others as often as they had to. A pod that was told to go and succeeded all the same
/// may have been counted as stopped, and replaced.
async fn jobs_were_exact(driver: &Driver<'_>) {
    /// How many of a place have succeeded, and how many of those had been told to go.
    type Successes = HashMap<(String, Option<String>), (usize, usize)>;
    let mut succeeded = Successes::new();
    for ended in driver.fleet.ended().into_values().filter(|e| e.exit_code == 0) {
        let (all, going) = succeeded.entry(ended.owner).or_default();
        *all += 1;
        *going += usize::from(ended.was_going);
    }
    let found: BTreeMap<String, Value> =
        list(&driver.wire, "jobs").await.into_iter().map(|job| (name(&job).to_owned(), job)).collect();
    for wanted in driver.jobs() {
        let job = &found[name(wanted)];
        let (uid, completions) = (job["metadata"]["uid"].as_str().unwrap(), number(&wanted["spec"]["completions"]));
        assert_eq!(number(&job["status"]["succeeded"]), completions, "{job:#}");
        let counts: BTreeMap<&Option<String>, (usize, usize)> =
            succeeded.iter().filter(|((owner, _), _)| owner == uid).map(|((_, index), n)| (index, *n)).collect();
        let is_exact = |(all, going): (usize, usize), wanted: usize| (all - going..=all).contains(&wanted);
        let exact = if wanted["spec"]["completionMode"] == "Indexed" {
            counts.len() == completions && counts.values().all(|n| is_exact(*n, 1))
        } else {
            let sum = counts.values().fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
            is_exact(sum, completions)
        };
        assert!(exact, "{counts:?} and not {completions} of {job:#}\nafter {:#?}", driver.done);
    }
}
