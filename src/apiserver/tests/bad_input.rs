//! What clients do wrong, and the exact `Status` they get; the state stays as it was.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Cluster, JSON, MERGE, Request, anonymous, user};
use serde_json::json;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn post(path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Request {
    Request::new("POST", path).content_type(content_type).body(body)
}

#[tokio::test]
async fn malformed_bodies_are_400() {
    let c = Cluster::start().await;
    for (content_type, body, says) in [
        (JSON, &b"{\"metadata\": {"[..], "the object provided is unrecognized (must be of type ConfigMap)"),
        (JSON, b"", "the object provided is unrecognized (must be of type ConfigMap)"),
        (JSON, b"[1]", "(must be of type ConfigMap)"),
        (
            JSON,
            b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"data\":[1]}",
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap",
        ),
        (
            JSON,
            b"{\"apiVersion\":\"v1\",\"kind\":\"Secret\"}",
            "Secret in version \"v1\" cannot be handled as a ConfigMap",
        ),
        (
            JSON,
            b"{\"apiVersion\":\"apps/v1\",\"kind\":\"ConfigMap\"}",
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        ),
        ("application/yaml", b"a: [", "(must be of type ConfigMap)"),
        (PROTOBUF, b"k8s\0\xff\xff\xff", "(must be of type ConfigMap)"),
        (PROTOBUF, b"{}", "(must be of type ConfigMap)"),
    ] {
        let a = c.send(post(MAPS, content_type, body)).await;
        let status = a.status(400, "BadRequest");
        assert!(status["message"].as_str().unwrap().contains(says), "{status}");
    }
    assert_eq!(c.count(MAPS).await, 0);
}

#[tokio::test]
async fn wrong_media_types_are_415_and_406() {
    let c = Cluster::start().await;
    c.send(post(MAPS, "text/plain", "hello")).await.status(415, "UnsupportedMediaType");
    c.create(MAPS, &json!({"metadata": {"name": "a"}})).await;
    let patch = Request::new("PATCH", &format!("{MAPS}/a")).content_type(JSON).body("{}");
    c.send(patch).await.status(415, "UnsupportedMediaType");
    c.send(Request::new("GET", MAPS).accept("image/png")).await.status(406, "NotAcceptable");
    // the refusal is told in the encoding that was asked for, which watches do not have
    let a = c.send(Request::new("GET", &format!("{MAPS}?watch=1")).accept("application/yaml")).await;
    assert_eq!(a.code, 406);
    assert!(String::from_utf8_lossy(&a.bytes).contains("reason: NotAcceptable"));
}

#[tokio::test]
async fn unknown_and_duplicate_fields_follow_field_validation() {
    let c = Cluster::start().await;
    let body = |name: &str| {
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"{name}\"}},\"foo\":1,\"data\":{{}},\"data\":{{}}}}"
        )
    };
    let at = |mode: &str| format!("{MAPS}?fieldValidation={mode}");
    let a = c.send(post(&at("Strict"), JSON, body("strict"))).await;
    let message = a.status(400, "BadRequest")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("strict decoding error: ") && message.contains("unknown field \"foo\""), "{message}");
    assert!(message.contains("duplicate field \"data\""), "{message}");
    let a = c.send(post(&at("Warn"), JSON, body("warn"))).await;
    assert_eq!(a.code, 201);
    let warnings = a.warnings();
    assert!(warnings.contains(&"299 - \"unknown field \\\"foo\\\"\"".to_owned()), "{warnings:?}");
    assert!(warnings.contains(&"299 - \"duplicate field \\\"data\\\"\"".to_owned()), "{warnings:?}");
    assert!(a.json().get("foo").is_none());
    let a = c.send(post(&at("Ignore"), JSON, body("ignore"))).await;
    assert_eq!((a.code, a.warnings().len()), (201, 0));
    c.send(post(&at("Never"), JSON, body("never"))).await.status(422, "Invalid");
    assert_eq!(c.count(MAPS).await, 2);
}

#[tokio::test]
async fn bodies_over_three_mebibytes_are_413() {
    let c = Cluster::start().await;
    let big = json!({"metadata": {"name": "big"}, "data": {"a": "x".repeat(3 * 1024 * 1024)}}).to_string();
    let a = c.send(post(MAPS, JSON, big)).await;
    let status = a.status(413, "RequestEntityTooLarge");
    assert_eq!(status["message"], "Request entity too large: limit is 3145728");
    assert_eq!(c.count(MAPS).await, 0);
}

#[tokio::test]
async fn bad_names_and_places_are_refused() {
    let c = Cluster::start().await;
    let a = c.send(post(MAPS, JSON, json!({"metadata": {"name": "Not_A_Name"}}).to_string())).await;
    let status = a.status(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "metadata.name");
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .starts_with("ConfigMap \"Not_A_Name\" is invalid: metadata.name: Invalid value: \"Not_A_Name\": "),
        "{status}"
    );
    c.send(post(MAPS, JSON, "{}")).await.status(422, "Invalid");
    let a = c.send(post(MAPS, JSON, json!({"metadata": {"name": "a", "namespace": "other"}}).to_string())).await;
    assert_eq!(
        a.status(400, "BadRequest")["message"],
        "the namespace of the provided object does not match the namespace sent on the request"
    );
    let a = c
        .send(post("/api/v1/namespaces/absent/configmaps", JSON, json!({"metadata": {"name": "a"}}).to_string()))
        .await;
    assert_eq!(a.status(404, "NotFound")["message"], "namespaces \"absent\" not found");
    let put = Request::new("PUT", &format!("{MAPS}/a"))
        .content_type(JSON)
        .body(json!({"metadata": {"name": "b"}}).to_string());
    assert_eq!(
        c.send(put).await.status(400, "BadRequest")["message"],
        "the name of the object (b) does not match the name on the URL (a)"
    );
    assert_eq!(c.count(MAPS).await, 0);
}

#[tokio::test]
async fn stale_versions_conflict() {
    let c = Cluster::start().await;
    let old = c.create(MAPS, &json!({"metadata": {"name": "a"}, "data": {"n": "1"}})).await;
    let path = format!("{MAPS}/a");
    let put = |body: &serde_json::Value| Request::new("PUT", &path).content_type(JSON).body(body.to_string());
    let mut new = old.clone();
    new["data"]["n"] = "2".into();
    assert_eq!(c.send(put(&new)).await.code, 200);
    new["data"]["n"] = "3".into();
    let a = c.send(put(&new)).await;
    assert_eq!(
        a.status(409, "Conflict")["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let stale = json!({"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}, "data": {"n": "4"}});
    let patch = Request::new("PATCH", &path).content_type(MERGE).body(stale.to_string());
    c.send(patch).await.status(409, "Conflict");
    let delete = json!({"preconditions": {"uid": "another"}}).to_string();
    c.send(Request::new("DELETE", &path).content_type(JSON).body(delete)).await.status(409, "Conflict");
    assert_eq!(c.get(&path).await["data"]["n"], "2");
}

#[tokio::test]
async fn strangers_are_kept_out() {
    let c = Cluster::start().await;
    let a = c.send(Request::new("GET", MAPS).header("authorization", "Bearer nonsense").from(None)).await;
    assert_eq!(a.status(401, "Unauthorized")["message"], "Unauthorized");
    let a = c.send(Request::new("GET", MAPS).from(anonymous())).await;
    assert_eq!(
        a.status(403, "Forbidden")["message"],
        "configmaps is forbidden: User \"system:anonymous\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let a = c.send(Request::new("GET", "/").from(anonymous())).await;
    assert_eq!(a.status(403, "Forbidden")["message"], "forbidden: User \"system:anonymous\" cannot get path \"/\"");
    assert_eq!(c.send(Request::new("GET", "/version").from(anonymous())).await.code, 200);
    let a = c.send(post(MAPS, JSON, json!({"metadata": {"name": "a"}}).to_string()).from(user("jane"))).await;
    assert_eq!(
        a.status(403, "Forbidden")["message"],
        "configmaps is forbidden: User \"jane\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(c.count(MAPS).await, 0);
}

#[tokio::test]
async fn absent_things_are_404_and_405() {
    let c = Cluster::start().await;
    let a = c.send(Request::new("GET", &format!("{MAPS}/nothing"))).await;
    assert_eq!(a.status(404, "NotFound")["message"], "configmaps \"nothing\" not found");
    for path in [
        "/api/v1/nothings",
        "/apis/none/v1/pods",
        "/api/v2/pods",
        "/nothing",
        "/apis/apps/v1/namespaces/default/deployments/d/none",
    ] {
        let a = c.send(Request::new("GET", path)).await;
        assert_eq!(a.status(404, "NotFound")["message"], "the server could not find the requested resource", "{path}");
    }
    c.send(Request::new("POST", "/version")).await.status(405, "MethodNotAllowed");
    c.send(Request::new("GET", "/apis/authorization.k8s.io/v1/subjectaccessreviews"))
        .await
        .status(405, "MethodNotAllowed");
    c.send(Request::new("GET", &format!("{MAPS}?limit=x"))).await.status(400, "BadRequest");
    c.send(Request::new("GET", &format!("{MAPS}?labelSelector=a%20in%20("))).await.status(400, "BadRequest");
    c.send(Request::new("GET", "/api/v1/watch")).await.status(400, "BadRequest");
}
