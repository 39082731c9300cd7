#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use k8s_openapi::api::autoscaling::v2::MetricSpec;

fn answer(replicas: i32) -> Result<(Proposal, String), Failure> {
    Ok((Proposal { replicas, utilization: None, value: 0 }, format!("metric of {replicas}")))
}

fn failure(text: &str) -> Result<(Proposal, String), Failure> {
    Err(Failure { reason: "FailedGetPodsMetric", text: text.to_owned(), whole: format!("whole {text}") })
}

#[test]
fn the_metric_that_wants_most_pods_counts() {
    let asked = |answers, current| weigh(answers, current).map(|a| (a.replicas, a.name, a.trouble));
    let of = |n: i32| format!("metric of {n}");
    assert_eq!(asked(vec![answer(3), answer(5), answer(4)], 4), Ok((5, of(5), None)));
    assert_eq!(asked(vec![answer(0), answer(0)], 4), Ok((0, of(0), None)));
    let (first, text) = asked(vec![failure("a"), failure("b")], 4).unwrap_err();
    assert_eq!(first.unwrap().text, "a");
    assert_eq!(text, "invalid metrics (2 invalid out of 2), first error is: whole a");
    // those that failed might want more than the others, unless these want more already
    let partial = "invalid metrics (1 invalid out of 2), first error is: whole a".to_owned();
    assert_eq!(asked(vec![failure("a"), answer(5)], 4), Ok((5, of(5), Some(partial.clone()))));
    assert_eq!(asked(vec![failure("a"), answer(4)], 4), Ok((4, of(4), Some(partial.clone()))));
    assert_eq!(asked(vec![answer(3), failure("a")], 4).unwrap_err().1, partial);
    assert!(asked(vec![], 4).is_err());
}

#[test]
fn two_that_go_by_the_same_pods() {
    let pod = |labels: Value| Arc::new(serde_json::from_value::<Pod>(json!({"metadata": {"labels": labels}})).unwrap());
    let pods = [pod(json!({"app": "a", "tier": "x"})), pod(json!({"app": "a"}))];
    let selectors =
        [("ns", "one", "app=a"), ("ns", "two", "tier=x"), ("ns", "other", "app=b"), ("elsewhere", "three", "app=a")];
    let selectors: HashMap<Key, LabelSelector> =
        selectors.iter().map(|(ns, name, s)| (Key::new(*ns, *name), LabelSelector::parse(s).unwrap())).collect();
    let names = |pods: &[Arc<Pod>]| rivals(&selectors, "ns", pods).into_iter().map(|k| k.name).collect::<Vec<_>>();
    assert_eq!(names(&pods), ["one", "two"]);
    assert_eq!(names(&pods[1..]), ["one"]);
    assert!(names(&[]).is_empty());
}

#[test]
fn tolerances_and_news() {
    let autoscaler = |generation: i64, behavior: Value| -> Arc<HorizontalPodAutoscaler> {
        let spec =
            json!({"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "behavior": behavior});
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "a", "generation": generation}, "spec": spec})).unwrap(),
        )
    };
    let of = |behavior: Value| {
        let t = tolerance(&autoscaler(1, behavior), 0.1);
        (t.up, t.down)
    };
    assert_eq!(of(Value::Null), (0.1, 0.1));
    assert_eq!(of(json!({"scaleUp": {"tolerance": "50m"}, "scaleDown": {}})), (0.05, 0.1));
    assert_eq!(of(json!({"scaleDown": {"tolerance": "0"}})), (0.1, 0.0));
    let change = |old: Option<i64>, new: i64| Change::Applied {
        old: old.map(|g| autoscaler(g, Value::Null)),
        new: autoscaler(new, Value::Null),
    };
    assert!(is_news(&change(None, 1)) && is_news(&change(Some(1), 2)));
    assert!(!is_news(&change(Some(2), 2)), "its own writes must not wake the controller");
    assert!(is_news(&Change::Deleted(autoscaler(1, Value::Null))), "what is remembered goes");
}

#[test]
fn what_a_status_says_of_metrics() {
    let spec = |value: Value| serde_json::from_value::<MetricSpec>(value).unwrap();
    let found = Proposal { replicas: 3, utilization: Some(55), value: 550 };
    let of = |value: Value| serde_json::to_value(status::metric(&spec(value), &found)).unwrap();
    let current = json!({"averageUtilization": 55, "averageValue": "550m"});
    let target = json!({"type": "Utilization", "averageUtilization": 50});
    assert_eq!(
        of(
            json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": target}})
        ),
        json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "current": current}})
    );
    let plain = Proposal { utilization: None, ..found };
    let of = |value: Value| serde_json::to_value(status::metric(&spec(value), &plain)).unwrap();
    for (target, current) in [
        (json!({"type": "Value", "value": "1"}), json!({"value": "550m"})),
        (json!({"type": "AverageValue", "averageValue": "1"}), json!({"averageValue": "550m"})),
    ] {
        let external = json!({"type": "External", "external": {"metric": {"name": "m"}, "target": target}});
        assert_eq!(of(external)["external"]["current"], current);
        let described = json!({"kind": "Service", "name": "s"});
        let object = json!({"type": "Object", "object": {"metric": {"name": "m"}, "describedObject": described, "target": target}});
        assert_eq!(
            of(object)["object"],
            json!({"metric": {"name": "m"}, "describedObject": described, "current": current})
        );
    }
}

#[test]
fn conditions_keep_their_time_until_they_turn() {
    let at = |s: i64| Timestamp::from_second(s).unwrap();
    let mut conditions = Conditions { list: Vec::new(), now: at(1) };
    conditions.set("AbleToScale", true, "A", "a");
    conditions.now = at(2);
    conditions.set("AbleToScale", true, "B", "b");
    conditions.set("ScalingActive", false, "C", "c");
    conditions.now = at(3);
    conditions.set("ScalingActive", true, "D", "d");
    let told: Vec<_> = conditions
        .list
        .iter()
        .map(|c| {
            (c.type_.as_str(), c.status.as_str(), c.reason.as_deref(), c.last_transition_time.as_ref().map(|t| t.0))
        })
        .collect();
    let want = [("AbleToScale", "True", Some("B"), Some(at(1))), ("ScalingActive", "True", Some("D"), Some(at(3)))];
    assert_eq!(told, want);
}
