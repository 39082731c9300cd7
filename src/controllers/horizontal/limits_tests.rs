#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use serde_json::{Value, json};

/// A behaviour as the API fills it up.
fn behavior(up: Value, down: Value) -> HorizontalPodAutoscalerBehavior {
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    let mut whole = json!({
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [pods, percent]},
        "scaleDown": {"selectPolicy": "Max", "policies": [percent]},
    });
    for (direction, given) in [("scaleUp", up), ("scaleDown", down)] {
        whole[direction].as_object_mut().unwrap().extend(given.as_object().cloned().unwrap_or_default());
    }
    serde_json::from_value(whole).unwrap()
}

fn wish(current: i32, desired: i32, behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Wish<'_> {
    Wish { current, desired, least: 1, most: 100, behavior, window: Duration::from_secs(300) }
}

fn policies_of(list: &[(&str, i32, i32)], select: &str) -> Value {
    let policy =
        |(kind, value, period): &(&str, i32, i32)| json!({"type": kind, "value": value, "periodSeconds": period});
    json!({"policies": list.iter().map(policy).collect::<Vec<_>>(), "selectPolicy": select})
}

#[test]
fn without_a_behaviour() {
    // current, desired, then: granted, whether it is limited, why
    for (current, desired, replicas, limited, why) in [
        (3, 5, 5, false, "DesiredWithinRange"),
        (1, 10, 4, true, "ScaleUpLimit"),
        (3, 10, 6, true, "ScaleUpLimit"),
        (60, 300, 100, true, "TooManyReplicas"),
        (60, 100, 100, false, "DesiredWithinRange"),
        (3, 0, 1, true, "TooFewReplicas"),
        (3, 2, 2, false, "DesiredWithinRange"),
    ] {
        let granted = Memory::default().grant(Instant::now(), &wish(current, desired, None));
        assert_eq!(
            (granted.replicas, granted.limited.0, granted.limited.1.0),
            (replicas, limited, why),
            "{current} {desired}"
        );
        assert_eq!(granted.able.0, "ReadyForNewScale");
    }
}

#[test]
fn the_highest_recommendation_of_the_last_time_holds() {
    let start = Instant::now();
    let after = |seconds: u64| start + Duration::from_secs(seconds);
    let mut memory = Memory::default();
    memory.begin(start, 5);
    memory.begin(start, 9);
    let mut grant = |seconds: u64, current: i32, desired: i32| {
        let granted = memory.grant(after(seconds), &wish(current, desired, None));
        (granted.replicas, granted.able.0)
    };
    assert_eq!(grant(1, 5, 2), (5, "ScaleDownStabilized"), "as many as there were at the beginning");
    assert_eq!(grant(100, 5, 8), (8, "ReadyForNewScale"));
    assert_eq!(grant(200, 8, 3), (8, "ScaleDownStabilized"));
    assert_eq!(grant(399, 8, 3), (8, "ScaleDownStabilized"));
    assert_eq!(grant(401, 8, 3), (3, "ReadyForNewScale"), "five minutes after the 8");
    assert!(memory.recommendations.len() <= 5);
}

#[test]
fn windows_of_a_behaviour() {
    let start = Instant::now();
    let after = |seconds: u64| start + Duration::from_secs(seconds);
    let b = behavior(json!({"stabilizationWindowSeconds": 60}), json!({"stabilizationWindowSeconds": 30}));
    let mut memory = Memory::default();
    memory.begin(start, 4);
    let mut grant = |seconds: u64, current: i32, desired: i32| {
        let granted = memory.grant(after(seconds), &wish(current, desired, Some(&b)));
        (granted.replicas, granted.able.0)
    };
    assert_eq!(grant(10, 4, 8), (4, "ScaleUpStabilized"), "not so many were wanted before");
    assert_eq!(grant(40, 4, 7), (4, "ScaleUpStabilized"));
    assert_eq!(grant(61, 4, 6), (6, "ReadyForNewScale"), "the least of the last minute");
    assert_eq!(grant(70, 6, 2), (6, "ScaleDownStabilized"));
    assert_eq!(grant(80, 6, 2), (6, "ScaleDownStabilized"));
    assert_eq!(grant(95, 6, 2), (2, "ReadyForNewScale"));
    // at once where the behaviour says so, five minutes where it says nothing
    let at_once = behavior(json!({}), json!({"stabilizationWindowSeconds": 0}));
    let mut memory = Memory::default();
    memory.begin(start, 9);
    assert_eq!(memory.grant(after(1), &wish(9, 2, Some(&at_once))).replicas, 2);
    let silent = behavior(json!({}), json!({}));
    let mut memory = Memory::default();
    memory.begin(start, 9);
    assert_eq!(memory.grant(after(2), &wish(9, 2, Some(&silent))).replicas, 9);
    assert_eq!(memory.grant(after(400), &wish(9, 2, Some(&silent))).replicas, 2);
}

#[test]
fn rates_of_policies() {
    let two = [("Pods", 3, 60), ("Percent", 50, 60)];
    // current, desired, rules upwards and downwards, then: granted, why
    let cases = [
        (10, 50, policies_of(&two, "Max"), json!({}), 15, "ScaleUpLimit"),
        (10, 50, policies_of(&two, "Min"), json!({}), 13, "ScaleUpLimit"),
        (10, 12, policies_of(&two, "Min"), json!({}), 12, "DesiredWithinRange"),
        (1, 50, policies_of(&two[1..], "Max"), json!({}), 2, "ScaleUpLimit"),
        (10, 50, policies_of(&two, "Disabled"), json!({}), 10, "ScaleUpLimit"),
        (99, 500, json!({}), json!({}), 100, "TooManyReplicas"),
        (10, 1, json!({}), policies_of(&two, "Max"), 5, "ScaleDownLimit"),
        (10, 1, json!({}), policies_of(&two, "Min"), 7, "ScaleDownLimit"),
        (10, 8, json!({}), policies_of(&two, "Min"), 8, "DesiredWithinRange"),
        (10, 1, json!({}), policies_of(&two, "Disabled"), 10, "ScaleDownLimit"),
        (10, 0, json!({}), json!({}), 1, "TooFewReplicas"),
        (10, 10, json!({}), json!({}), 10, "DesiredWithinRange"),
    ];
    for (current, desired, up, mut down, replicas, why) in cases {
        down["stabilizationWindowSeconds"] = 0.into();
        let b = behavior(up.clone(), down.clone());
        let granted = Memory::default().grant(Instant::now(), &wish(current, desired, Some(&b)));
        assert_eq!((granted.replicas, granted.limited.1.0), (replicas, why), "{current} to {desired}: {up} {down}");
        assert_eq!(granted.limited.0, replicas != desired);
    }
}

#[test]
fn what_was_done_within_a_period_counts() {
    let start = Instant::now();
    let after = |seconds: u64| start + Duration::from_secs(seconds);
    let mut down = policies_of(&[("Pods", 2, 60)], "Max");
    down["stabilizationWindowSeconds"] = 0.into();
    let b = behavior(policies_of(&[("Pods", 5, 60)], "Max"), down);
    let mut memory = Memory::default();
    let mut step = |seconds: u64, current: i32, desired: i32| {
        let granted = memory.grant(after(seconds), &wish(current, desired, Some(&b))).replicas;
        if granted != current {
            memory.done(after(seconds), current, granted, Some(&b));
        }
        granted
    };
    assert_eq!(step(0, 10, 12), 12);
    assert_eq!(step(10, 12, 50), 15, "five more than a minute ago");
    assert_eq!(step(20, 15, 50), 15);
    assert_eq!(step(61, 15, 50), 17, "the two of the beginning are a minute old");
    assert_eq!(step(71, 17, 50), 20);
    assert_eq!(step(200, 20, 1), 18);
    assert_eq!(step(210, 18, 1), 18);
    assert_eq!(step(215, 18, 50), 25, "what was taken away a moment ago may come back besides");
    assert_eq!(step(261, 25, 1), 16, "two less than were there a minute ago");
    assert_eq!((memory.raised.len(), memory.lowered.len()), (1, 1), "what is too old is forgotten");
    memory.done(after(999), 1, 2, None);
    assert_eq!(memory.raised.len(), 1, "without a behaviour nothing is remembered");
}
