#![expect(clippy::unwrap_used, reason = "tests")]

use super::driver::Prepared;
use super::*;
use serde_json::{Value, json};

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "status": status, "spec": {
        "resourceClaims": [{"name": "own", "resourceClaimTemplateName": "t"}, {"name": "shared", "resourceClaimName": "s"}],
        "containers": [
            {"name": "a", "resources": {"claims": [{"name": "own", "request": "one"}, {"name": "shared"}]}},
            {"name": "b", "resources": {"requests": {"d.io/gpu": "1"}}}]}}))
    .unwrap()
}

#[test]
fn the_claims_of_pods_and_containers() {
    let unknown = pod(json!({}));
    assert_eq!(claims_of(&unknown).unwrap_err(), "pod claim \"own\": ResourceClaim not created yet");
    let not_needed = pod(json!({"resourceClaimStatuses": [{"name": "own"}]}));
    assert_eq!(claims_of(&not_needed).unwrap(), [("shared", "s".to_owned(), false)]);
    let known = pod(json!({"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own"}],
        "extendedResourceClaimStatus": {"resourceClaimName": "x", "requestMappings": [
            {"containerName": "b", "requestName": "container-1-request-0", "resourceName": "d.io/gpu"}]}}));
    let all = claims_of(&known).unwrap();
    assert_eq!(
        all,
        [("own", "p-own".to_owned(), true), ("shared", "s".to_owned(), false), ("", "x".to_owned(), false)]
    );
    let of = |i: usize| wanted(&known, &known.spec.as_ref().unwrap().containers[i]).unwrap();
    assert_eq!(of(0), [("p-own".to_owned(), "one".to_owned()), ("s".to_owned(), String::new())]);
    assert_eq!(of(1), [("x".to_owned(), "container-1-request-0".to_owned())]);
    assert!(claims_any(&known) && !claims_any(&Pod::default()));
}

#[test]
fn who_may_use_a_claim() {
    let user = json!({"resource": "pods", "name": "p", "uid": "u"});
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true});
    let allocation = json!({"devices": {"results": [{"request": "r", "driver": "d.io", "pool": "p", "device": "g"}]}});
    let claim = |owners: Value, status: Value| -> ResourceClaim {
        let meta = json!({"name": "c", "uid": "c1", "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": meta, "spec": {}, "status": status})).unwrap()
    };
    let pod = pod(json!({}));
    for (owners, status, is_own, want) in [
        (json!([owner]), json!({"reservedFor": [user], "allocation": allocation}), true, Ok(vec!["d.io"])),
        (json!([]), json!({"reservedFor": [user], "allocation": allocation}), false, Ok(vec!["d.io"])),
        (json!([]), json!({"reservedFor": [user], "allocation": {}}), false, Ok(vec![])),
        (json!([]), json!({"reservedFor": [user], "allocation": allocation}), true, Err("was not created for pod p")),
        (json!([]), json!({"allocation": allocation}), false, Err("pod p (u) is not allowed to use ResourceClaim c")),
        (json!([]), json!({"reservedFor": [user]}), false, Err("not allocated")),
    ] {
        let got = new_claim(&pod, &claim(owners, status), is_own);
        match (got, want) {
            (Ok(got), Ok(want)) => assert_eq!(got.drivers.keys().collect::<Vec<_>>(), want),
            (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
            (got, want) => panic!("{got:?} {want:?}"),
        }
    }
}

#[test]
fn devices_of_requests_and_the_last_user() {
    let device = |name: &str, requests: &[&str]| Prepared {
        requests: requests.iter().map(|r| (*r).to_owned()).collect(),
        device: name.to_owned(),
        ..Prepared::default()
    };
    let drivers = BTreeMap::from([(
        "d.io".to_owned(),
        vec![device("a", &["one/small"]), device("b", &["two"]), device("c", &[])],
    )]);
    let claim = Claim { drivers, pods: BTreeSet::from(["p".to_owned(), "q".to_owned()]), ..Claim::default() };
    let of = |request: &str| devices(&claim, request).map(|(_, d)| d.device.clone()).collect::<String>();
    assert_eq!((of(""), of("one"), of("two"), of("three")), ("abc".into(), "ac".into(), "bc".into(), "c".into()));
    let name = ("ns".to_owned(), "c".to_owned());
    let mut claims = Claims(BTreeMap::from([(name.clone(), claim)]));
    let names = BTreeSet::from([name.clone()]);
    forget(&mut claims, &names, "p");
    assert_eq!(claims.of_pod("q"), [name]);
    forget(&mut claims, &names, "q");
    assert!(claims.0.is_empty());
}
