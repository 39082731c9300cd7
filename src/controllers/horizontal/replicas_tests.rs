#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use serde_json::{Value, json};

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A pod that requests a processor (`cpu`), started at a second, with its Ready condition since another.
fn pod(name: &str, phase: &str, ready: (bool, i64), started: i64) -> Value {
    let condition =
        json!({"type": "Ready", "status": if ready.0 { "True" } else { "False" }, "lastTransitionTime": at(ready.1)});
    json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
        "status": {"phase": phase, "startTime": at(started), "conditions": [condition]},
    })
}

/// One that has been ready for long.
fn ready(name: &str) -> Value {
    pod(name, "Running", (true, 10), 1)
}

fn made(pods: &[Value]) -> Vec<Arc<Pod>> {
    pods.iter().map(|p| Arc::new(serde_json::from_value(p.clone()).unwrap())).collect()
}

fn circumstances(current: i32, pods: &[Arc<Pod>]) -> Circumstances<'_> {
    Circumstances {
        current,
        pods,
        tolerance: Tolerance { up: 0.1, down: 0.1 },
        initialization: Duration::from_secs(300),
        readiness_delay: Duration::from_secs(30),
        now: at(NOW),
    }
}

/// Measures of now, over ten seconds.
fn measures(values: &[(&str, i64)]) -> Measures {
    let measure = |value| Measure { value, at: at(NOW), window: Duration::from_secs(10) };
    values.iter().map(|(pod, value)| ((*pod).to_owned(), measure(*value))).collect()
}

#[test]
fn use_of_what_is_requested() {
    let three = [ready("a"), ready("b"), ready("c")];
    // pods, current, measured thousandths, target in percent, then: pods wanted, percent, average
    type Case<'a> = (&'a [Value], i32, &'a [(&'a str, i64)], i32, (i32, i32, i64));
    let cases: &[Case<'_>] = &[
        // twice as much as wanted
        (&three, 3, &[("a", 1000), ("b", 1000), ("c", 1000)], 50, (6, 100, 1000)),
        // half
        (&three, 3, &[("a", 250), ("b", 250), ("c", 250)], 50, (2, 25, 250)),
        // within the tolerance, upwards and downwards
        (&three, 3, &[("a", 550), ("b", 550), ("c", 550)], 50, (3, 55, 550)),
        (&three, 3, &[("a", 450), ("b", 450), ("c", 450)], 50, (3, 45, 450)),
        (&three, 3, &[("a", 600), ("b", 600), ("c", 600)], 50, (4, 60, 600)),
        // nothing is used
        (&three, 3, &[("a", 0), ("b", 0), ("c", 0)], 50, (0, 0, 0)),
        // one of whom nothing is known counts for nothing upwards: (2000 / 3000) / 0.5 * 3
        (&three, 3, &[("a", 1000), ("b", 1000)], 50, (4, 100, 1000)),
        // and for all it requests downwards, which is what there is
        (&three, 3, &[("a", 100), ("b", 100)], 50, (3, 10, 100)),
        // or for the target, where that is more
        (&three, 3, &[("a", 1500), ("b", 1500)], 200, (3, 150, 1500)),
        // it turns no rise into a fall
        (&three, 3, &[("a", 600), ("b", 600)], 50, (3, 60, 600)),
        // of pods that nobody knows of nothing is asked
        (&three, 3, &[("a", 1000), ("b", 1000), ("c", 1000), ("x", 9000)], 50, (6, 100, 1000)),
        // one that is being made counts for nothing upwards
        (&[ready("a"), pod("b", "Pending", (false, NOW), NOW)], 2, &[("a", 2000)], 50, (4, 200, 2000)),
        // and not at all downwards
        (&[ready("a"), pod("b", "Pending", (false, NOW), NOW)], 2, &[("a", 100)], 50, (1, 10, 100)),
        // one that failed is none
        (&[ready("a"), pod("b", "Failed", (false, NOW), 1)], 2, &[("a", 1000), ("b", 1000)], 50, (2, 100, 1000)),
    ];
    for (pods, current, measured, target, want) in cases {
        let pods = made(pods);
        let found = circumstances(*current, &pods).utilization(measures(measured), "cpu", None, *target).unwrap();
        let (replicas, percent, value) = *want;
        let want = Proposal { replicas, utilization: Some(percent), value };
        assert_eq!(found, want, "{measured:?} of {} pods, target {target} %", pods.len());
    }
}

#[test]
fn the_time_of_a_start_does_not_count() {
    let long_ago = NOW - 10_000;
    // the second pod, whether its measure counts (with resource cpu, and with another)
    for (why, second, counts) in [
        ("it is ready for longer than was measured", pod("b", "Running", (true, NOW - 11), NOW - 100), true),
        ("it became ready while it was measured", pod("b", "Running", (true, NOW - 9), NOW - 100), false),
        ("it is not ready and young", pod("b", "Running", (false, NOW - 50), NOW - 100), false),
        ("it is old, and was ready before", pod("b", "Running", (false, NOW - 50), long_ago), true),
        ("it is old, and has never been ready", pod("b", "Running", (false, long_ago + 20), long_ago), false),
        (
            "it says nothing about being ready",
            json!({"metadata": {"name": "b"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1"}}}]},
            "status": {"phase": "Running", "startTime": at(1)}}),
            false,
        ),
    ] {
        let pods = made(&[ready("a"), second]);
        let of = |resource: &str| {
            let circumstances = circumstances(2, &pods);
            let (groups, values) = circumstances.group(measures(&[("a", 1), ("b", 1)]), resource).unwrap();
            (groups.ready, values.contains_key("b"), groups.unready.len())
        };
        assert_eq!(of("cpu"), if counts { (2, true, 0) } else { (1, false, 1) }, "{why}");
        assert_eq!(of("memory"), (2, true, 0), "{why}: memory counts from the beginning");
    }
}

#[test]
fn average_use() {
    let two = [ready("a"), ready("b")];
    for (pods, current, measured, target, (replicas, value)) in [
        (&two[..], 2, &[("a", 20_000), ("b", 10_000)][..], 10_000, (3, 15_000)),
        (&two, 2, &[("a", 10_500), ("b", 10_500)], 10_000, (2, 10_500)),
        (&two, 2, &[("a", 4_000), ("b", 4_000)], 10_000, (1, 4_000)),
        // the other one is assumed to be just as it should
        (&two, 2, &[("a", 1_000)], 10_000, (2, 1_000)),
        (&two, 2, &[("a", 50_000)], 10_000, (5, 50_000)),
    ] {
        let pods = made(pods);
        let found = circumstances(current, &pods).average(measures(measured), "", target).unwrap();
        assert_eq!((found.replicas, found.value, found.utilization), (replicas, value, None), "{measured:?}");
    }
}

#[test]
fn what_all_pods_share() {
    let pods =
        made(&[ready("a"), ready("b"), pod("c", "Running", (false, 10), 1), pod("d", "Pending", (false, 10), 1)]);
    for (current, used, target, replicas) in [
        (4, 20_000, 10_000, 4), // two are ready
        (4, 10_900, 10_000, 4),
        (4, 5_000, 10_000, 1),
        (4, i64::MAX, 1, i32::MAX),
        (0, 0, 10_000, 0),
        (0, 25_000, 10_000, 3),
    ] {
        let found = circumstances(current, &pods).total(used, target).unwrap();
        assert_eq!((found.replicas, found.value), (replicas, used), "{current} {used}/{target}");
    }
    assert_eq!(circumstances(4, &[]).total(20, 10), Err(Unknown::Pods));
    for (used, target, counted, replicas, value) in [
        (30_000, 10_000, 2, 3, 15_000),
        (21_000, 10_000, 2, 2, 10_500),
        (5_000, 10_000, 2, 1, 2_500),
        (0, 10_000, 2, 0, 0),
        (25_000, 10_000, 0, 3, 25_000),
        (i64::MAX, 1, 1, i32::MAX, i64::MAX),
    ] {
        let found = circumstances(counted, &pods).share(used, target, counted);
        assert_eq!((found.replicas, found.value), (replicas, value), "{used}/{target} by {counted}");
    }
}

#[test]
fn a_tolerance_for_each_direction() {
    let pods = made(&[ready("a"), ready("b")]);
    let mut circumstances = circumstances(2, &pods);
    circumstances.tolerance = Tolerance { up: 0.5, down: 0.01 };
    let of = |used: i64| {
        let found = circumstances.utilization(measures(&[("a", used), ("b", used)]), "cpu", None, 50).unwrap();
        found.replicas
    };
    assert_eq!((of(740), of(780), of(500), of(240)), (2, 4, 2, 1));
}

#[test]
fn what_pods_request() {
    let containers = json!([
        {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}},
        {"name": "b", "resources": {"requests": {"cpu": "1"}}},
    ]);
    let with = |more: Value| -> Pod {
        let mut spec = json!({"containers": containers});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    };
    let plain = with(json!({}));
    assert_eq!(request(&plain, "cpu", None), Ok(1100));
    assert_eq!(request(&plain, "cpu", Some("a")), Ok(100));
    assert_eq!(request(&plain, "memory", Some("a")), Ok((1 << 20) * 1000));
    let missing = request(&plain, "memory", None).unwrap_err().to_string();
    assert_eq!(missing, "missing request for memory in container b of Pod p");
    let missing = request(&plain, "cpu", Some("x")).unwrap_err().to_string();
    assert_eq!(missing, "container x not found in Pod p");
    let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "10m"}}});
    let init = json!({"name": "i", "resources": {"requests": {"cpu": "5"}}});
    let with_sidecar = with(json!({"initContainers": [init, sidecar]}));
    assert_eq!(request(&with_sidecar, "cpu", None), Ok(1110), "what only begins does not count");
    let of_pod = with(json!({"resources": {"requests": {"cpu": "3"}}}));
    assert_eq!((request(&of_pod, "cpu", None), request(&of_pod, "cpu", Some("b"))), (Ok(3000), Ok(1000)));
}

#[test]
fn what_cannot_be_told() {
    let pods = made(&[ready("a"), pod("b", "Pending", (false, NOW), NOW)]);
    let of = |measured: &[(&str, i64)], pods: &[Arc<Pod>]| {
        circumstances(2, pods).utilization(measures(measured), "cpu", None, 50).unwrap_err()
    };
    assert_eq!(of(&[("a", 1)], &[]), Unknown::Pods);
    assert_eq!(of(&[("b", 1)], &pods), Unknown::Measured, "only of one that does not count");
    assert_eq!(of(&[("x", 1)], &pods), Unknown::Requested, "only of one that nobody knows");
    assert!(circumstances(2, &pods).average(Measures::new(), "", 1).is_err());
}
