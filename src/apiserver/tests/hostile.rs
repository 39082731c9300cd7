//! Input made to hurt: bombs, depths, odd bytes; and that no refused write leaves a trace.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use bytes::Bytes;
use common::{APPLY, Cluster, JSON, JSON_PATCH, MERGE, PROTOBUF, Request, STRATEGIC, user};
use edge_apiserver::Body;
use serde_json::{Value, json};
use std::convert::Infallible;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const YAML: &str = "application/yaml";

fn request(method: &str, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Request {
    Request::new(method, path).content_type(content_type).body(body)
}

fn deployment(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }})
}

/// Protobuf of a field with bytes.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::try_from(number << 3 | 2).unwrap()];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(bytes);
    out
}

/// A protobuf body of a kind.
fn protobuf(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let kind = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [b"k8s\0".to_vec(), field(1, &kind), field(2, raw)].concat()
}

#[tokio::test]
async fn no_refused_write_leaves_a_trace() {
    let c = Cluster::start().await;
    c.create(MAPS, &json!({"metadata": {"name": "a", "finalizers": ["example.com/f"]}, "data": {"k": "v"}})).await;
    c.create(DEPLOYMENTS, &deployment("d")).await;
    let (map, dep) = (format!("{MAPS}/a"), format!("{DEPLOYMENTS}/d"));
    let strict = |path: &str| format!("{path}?fieldValidation=Strict");
    let big = || "x".repeat(3 << 20);
    let before = [c.get(MAPS).await, c.get(DEPLOYMENTS).await, c.get("/api/v1/namespaces").await];
    let object = |v: Value| v.to_string();
    let refused: Vec<(u16, &str, Request)> = vec![
        // malformed
        (400, "BadRequest", request("PUT", &map, JSON, "{")),
        (400, "BadRequest", request("PUT", &map, YAML, "a: [")),
        (400, "BadRequest", request("PUT", &map, PROTOBUF, protobuf("v1", "ConfigMap", &[0xff; 9]))),
        (400, "BadRequest", request("PUT", &map, PROTOBUF, "k8s")),
        (400, "BadRequest", request("POST", MAPS, JSON, "\u{feff}{\"metadata\":{\"name\":\"x\"}}")),
        (400, "BadRequest", request("POST", MAPS, JSON, &b"{\"metadata\":{\"name\":\"\xff\xfe\"}}"[..])),
        (400, "BadRequest", request("POST", MAPS, JSON, "{\"metadata\":{\"name\":\"x\"}} {}")),
        (400, "BadRequest", request("POST", MAPS, YAML, "metadata: {name: x}\n---\nmetadata: {name: y}\n")),
        (400, "BadRequest", request("DELETE", &map, JSON, "{\"gracePeriodSeconds\": \"soon\"}")),
        (400, "BadRequest", request("DELETE", &map, JSON, "nonsense")),
        // of the wrong type, or out of range
        (400, "BadRequest", request("POST", MAPS, JSON, object(json!({"metadata": {"name": "x"}, "data": {"k": 1}})))),
        (400, "BadRequest", request("POST", MAPS, JSON, object(json!({"metadata": {"name": 7}})))),
        (
            400,
            "BadRequest",
            request("PUT", &dep, JSON, "{\"metadata\":{\"name\":\"d\"},\"spec\":{\"replicas\":99999999999}}"),
        ),
        (400, "BadRequest", request("PUT", &dep, JSON, "{\"metadata\":{\"name\":\"d\"},\"spec\":{\"replicas\":1.5}}")),
        (
            400,
            "BadRequest",
            request("POST", MAPS, JSON, object(json!({"metadata": {"name": "x"}, "binaryData": {"k": "no base64"}}))),
        ),
        // unknown and duplicate fields
        (400, "BadRequest", request("PUT", &strict(&map), YAML, "metadata: {name: a}\nfoo: 1\n")),
        (400, "BadRequest", request("PUT", &strict(&map), YAML, "metadata: {name: a}\ndata: {k: v}\ndata: {k: w}\n")),
        (400, "BadRequest", request("PATCH", &strict(&map), MERGE, "{\"foo\":1}")),
        (400, "BadRequest", request("PATCH", &strict(&map), MERGE, "{\"data\":{\"k\":\"w\",\"k\":\"x\"}}")),
        (400, "BadRequest", request("PATCH", &strict(&dep), STRATEGIC, "{\"spec\":{\"replcas\":2}}")),
        (
            400,
            "BadRequest",
            request(
                "PATCH",
                &format!("{map}?fieldManager=m&fieldValidation=Strict"),
                APPLY,
                "apiVersion: v1\nkind: ConfigMap\nfoo: 1\n",
            ),
        ),
        (
            422,
            "Invalid",
            request("PUT", &format!("{map}?fieldValidation=Perhaps"), JSON, "{\"metadata\":{\"name\":\"a\"}}"),
        ),
        // patches
        (400, "BadRequest", request("PATCH", &map, JSON_PATCH, "{}")),
        (400, "BadRequest", request("PATCH", &map, JSON_PATCH, "[{\"op\":\"frob\",\"path\":\"/data\"}]")),
        (
            422,
            "Invalid",
            request("PATCH", &map, JSON_PATCH, "[{\"op\":\"test\",\"path\":\"/data/k\",\"value\":\"w\"}]"),
        ),
        (422, "Invalid", request("PATCH", &map, JSON_PATCH, "[{\"op\":\"remove\",\"path\":\"/none\"}]")),
        (400, "BadRequest", request("PATCH", &map, MERGE, "[1]")),
        (400, "BadRequest", request("PATCH", &map, MERGE, "{\"data\":{\"k\":{\"deep\":1}}}")),
        (400, "BadRequest", request("PATCH", &map, MERGE, "{\"metadata\":{\"name\":\"b\"}}")),
        (422, "Invalid", request("PATCH", &map, APPLY, "apiVersion: v1\nkind: ConfigMap\n")),
        (400, "BadRequest", request("PATCH", &format!("{map}?fieldManager=m"), APPLY, "a: [")),
        (422, "Invalid", request("PATCH", &format!("{map}?force=true"), MERGE, "{}")),
        // media types
        (415, "UnsupportedMediaType", request("PUT", &map, "text/html", "<p>")),
        (415, "UnsupportedMediaType", request("PATCH", &map, "application/merge-patch", "{}")),
        (406, "NotAcceptable", request("PUT", &map, JSON, "{\"metadata\":{\"name\":\"a\"}}").accept("image/png")),
        // too large
        (
            413,
            "RequestEntityTooLarge",
            request("PUT", &map, JSON, object(json!({"metadata": {"name": "a"}, "data": {"k": big()}}))),
        ),
        (413, "RequestEntityTooLarge", request("PATCH", &map, MERGE, object(json!({"data": {"k": big()}})))),
        (
            413,
            "RequestEntityTooLarge",
            request("POST", MAPS, YAML, format!("metadata: {{name: x}}\ndata: {{k: {}}}", big())),
        ),
        (413, "RequestEntityTooLarge", request("DELETE", &map, JSON, object(json!({"kind": big()})))),
        // names
        (422, "Invalid", request("POST", MAPS, JSON, object(json!({"metadata": {"name": "a/b"}})))),
        (422, "Invalid", request("POST", MAPS, JSON, object(json!({"metadata": {"name": ".."}})))),
        (422, "Invalid", request("POST", MAPS, JSON, object(json!({"metadata": {"name": "x".repeat(254)}})))),
        (422, "Invalid", request("POST", MAPS, JSON, object(json!({"metadata": {"name": "x\0y"}})))),
        (
            422,
            "Invalid",
            request("POST", "/api/v1/namespaces", JSON, object(json!({"metadata": {"name": "no.label"}}))),
        ),
        (
            422,
            "Invalid",
            request("POST", "/api/v1/namespaces", JSON, object(json!({"metadata": {"name": "x".repeat(64)}}))),
        ),
        (
            422,
            "Invalid",
            request(
                "POST",
                "/api/v1/namespaces/default/services",
                JSON,
                object(json!({"metadata": {"name": "1st"}, "spec": {"ports": [{"port": 80}]}})),
            ),
        ),
        (422, "Invalid", request("PATCH", &map, MERGE, "{\"metadata\":{\"labels\":{\"not a label\":\"\"}}}")),
        (
            422,
            "Invalid",
            request("PATCH", &map, MERGE, object(json!({"metadata": {"annotations": {"a": "x".repeat(300_000)}}}))),
        ),
        // what may not change, or has changed
        (409, "Conflict", request("PUT", &map, JSON, object(json!({"metadata": {"name": "a", "uid": "another"}})))),
        (
            409,
            "Conflict",
            request("PUT", &map, JSON, object(json!({"metadata": {"name": "a", "resourceVersion": "1"}}))),
        ),
        (409, "Conflict", request("DELETE", &map, JSON, "{\"preconditions\":{\"resourceVersion\":\"1\"}}")),
        (
            422,
            "Invalid",
            request("PUT", &map, JSON, object(json!({"metadata": {"name": "a", "resourceVersion": "x"}}))),
        ),
        (409, "AlreadyExists", request("POST", MAPS, JSON, object(json!({"metadata": {"name": "a"}})))),
        (422, "Invalid", request("PATCH", &dep, MERGE, "{\"spec\":{\"selector\":{\"matchLabels\":{\"a\":\"c\"}}}}")),
        (
            404,
            "NotFound",
            request(
                "PUT",
                &format!("{MAPS}/none"),
                JSON,
                object(json!({"metadata": {"name": "none", "resourceVersion": "1"}})),
            ),
        ),
        // who may not
        (403, "Forbidden", request("DELETE", &map, JSON, "").from(user("jane"))),
        (403, "Forbidden", request("PATCH", &map, MERGE, "{\"data\":null}").from(user("jane"))),
        (401, "Unauthorized", request("DELETE", &map, JSON, "").header("authorization", "Bearer x").from(None)),
    ];
    for (i, (code, reason, request)) in refused.into_iter().enumerate() {
        let answer = c.send(request).await;
        assert_eq!(answer.code, code, "case {i} ({reason}): {}", String::from_utf8_lossy(&answer.bytes));
        let status = answer.status(code, reason);
        assert!(!status["message"].as_str().unwrap().is_empty(), "{status}");
    }
    let after = [c.get(MAPS).await, c.get(DEPLOYMENTS).await, c.get("/api/v1/namespaces").await];
    for (before, after) in before.iter().zip(&after) {
        // the lists have the revision of the whole store: nothing at all was written
        assert_eq!(before, after);
    }
}

#[tokio::test]
async fn without_a_mode_unknown_fields_are_warned_of() {
    let c = Cluster::start().await;
    for (content_type, body) in [
        (JSON, "{\"metadata\":{\"name\":\"json\"},\"foo\":1}".as_bytes().to_vec()),
        (YAML, b"metadata: {name: yaml}\nfoo: 1\n".to_vec()),
    ] {
        let a = c.send(request("POST", MAPS, content_type, body)).await;
        assert_eq!((a.code, a.warnings()), (201, vec!["299 - \"unknown field \\\"foo\\\"\"".to_owned()]));
    }
    let a = c.send(request("PATCH", &format!("{MAPS}/json"), MERGE, "{\"foo\":1}")).await;
    assert_eq!((a.code, a.warnings().len()), (200, 1));
    assert!(a.json().get("foo").is_none());
    // protobuf skips what it does not know, as it was made for
    let meta = field(1, &field(1, b"proto"));
    let a =
        c.send(request("POST", MAPS, PROTOBUF, protobuf("v1", "ConfigMap", &[meta, field(15, b"new")].concat()))).await;
    assert_eq!((a.code, a.warnings().len()), (201, 0));
}

#[tokio::test]
async fn depth_and_expansion_are_bounded() {
    let c = Cluster::start().await;
    let nested = |open: &str, close: &str| format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
    let spec = |inner: &[u8]| {
        let meta = field(1, &field(1, b"x"));
        protobuf("apiextensions.k8s.io/v1", "CustomResourceDefinition", &[meta, inner.to_vec()].concat())
    };
    let mut deep = Vec::new();
    for _ in 0..5000 {
        deep = field(2, &deep);
    }
    let list = format!("a: &a [{}]\nb: [{}]\n", vec!["1"; 10_000].join(","), vec!["*a"; 10_000].join(","));
    let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 50_000].join(","));
    let layers: String = (b'b'..=b'z')
        .map(|l| format!("{0}: &{0} [{1}]\n", l as char, vec![format!("*{}", (l - 1) as char); 9].join(",")))
        .collect();
    for (content_type, body) in [
        (JSON, nested("[", "]").into_bytes()),
        (JSON, nested("{\"a\":", "}").into_bytes()),
        (YAML, nested("[", "]").into_bytes()),
        (YAML, list.into_bytes()),
        (YAML, text.into_bytes()),
        (YAML, format!("a: &a [1]\n{layers}").into_bytes()),
        (PROTOBUF, spec(&deep)),
        (PROTOBUF, protobuf("v1", "ConfigMap", &deep)),
    ] {
        let a = c.send(request("POST", MAPS, content_type, body)).await;
        a.status(400, "BadRequest");
    }
    c.create(MAPS, &json!({"metadata": {"name": "a"}, "data": {"k": "x".repeat(900_000)}})).await;
    let many: Vec<Value> = (0..10_001).map(|_| json!({"op": "test", "path": "/data", "value": {}})).collect();
    let a = c.send(request("PATCH", &format!("{MAPS}/a"), JSON_PATCH, json!(many).to_string())).await;
    a.status(413, "RequestEntityTooLarge");
    let copies: Vec<Value> =
        (0..5000).map(|i| json!({"op": "copy", "from": "/data/k", "path": format!("/data/k{i}")})).collect();
    let a = c.send(request("PATCH", &format!("{MAPS}/a"), JSON_PATCH, json!(copies).to_string())).await;
    assert!((400..=422).contains(&a.code), "{}", a.code);
    assert_eq!(c.count(MAPS).await, 1);
}

#[tokio::test]
async fn a_body_without_a_length_ends_at_the_limit() {
    let c = Cluster::start().await;
    let chunk = Bytes::from(vec![b' '; 64 << 10]);
    let read = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let endless = futures::stream::repeat_with({
        let read = read.clone();
        move || {
            read.fetch_add(chunk.len(), std::sync::atomic::Ordering::Relaxed);
            Ok::<_, Infallible>(http_body::Frame::data(chunk.clone()))
        }
    });
    let body = Body::stream(http_body_util::StreamBody::new(endless));
    let request = http::Request::builder().method("POST").uri(MAPS).header("content-type", JSON).body(body).unwrap();
    let answer = c.api.call(common::admin(), request).await;
    assert_eq!(answer.status(), 413);
    assert!(read.load(std::sync::atomic::Ordering::Relaxed) <= (3 << 20) + (128 << 10));
}

#[tokio::test]
async fn odd_paths_and_queries_are_answered() {
    let c = Cluster::start().await;
    let long = "x".repeat(8000);
    for (path, codes) in [
        (format!("{MAPS}/a%2Fb"), &[400u16, 404][..]),
        (format!("{MAPS}/..%2F..%2Fsecrets"), &[400, 404]),
        ("/api/v1/namespaces/kube-system%2Fx/configmaps/y".into(), &[400, 404]),
        (format!("{MAPS}/%00"), &[400, 404]),
        (format!("{MAPS}/%ff"), &[400, 404]),
        (format!("{MAPS}/{long}"), &[400, 404]),
        ("/api/v1/namespaces/default/configmaps/a/b/c/d".into(), &[404]),
        ("//api//v1//namespaces".into(), &[200, 404]),
        ("/apis/".into(), &[200, 404]),
        (format!("{MAPS}?fieldSelector=metadata.nme%3Dx"), &[400]),
        (format!("{MAPS}?fieldSelector=%3D%3D%3D"), &[400]),
        (format!("{MAPS}?labelSelector={}", "a%21%21"), &[400]),
        (format!("{MAPS}?limit=-1"), &[200, 400, 422]),
        (format!("{MAPS}?limit=99999999999999999999"), &[400]),
        (format!("{MAPS}?continue=%00%01"), &[400]),
        (format!("{MAPS}?resourceVersion=-1"), &[400]),
        (format!("{MAPS}?resourceVersion=18446744073709551615"), &[504]),
        (format!("{MAPS}?resourceVersionMatch=Sometimes&resourceVersion=1"), &[400, 422]),
        (format!("{MAPS}?watch=1&timeoutSeconds=x"), &[400]),
        (format!("{MAPS}?{}", "a=b&".repeat(2000)), &[200]),
    ] {
        let a = c.send(Request::new("GET", &path)).await;
        assert!(codes.contains(&a.code), "{path}: {} {}", a.code, String::from_utf8_lossy(&a.bytes));
        if a.code >= 400 {
            assert_eq!(a.json()["kind"], "Status", "{path}");
        }
    }
    let a = c.send(Request::new("GET", MAPS).header("authorization", "Basic !!!").from(None)).await;
    a.status(401, "Unauthorized");
    let a = c.send(Request::new("GET", MAPS).header("authorization", &format!("Bearer {long}")).from(None)).await;
    a.status(401, "Unauthorized");
    let a = c.send(Request::new("GET", MAPS).header("authorization", "Bearer a.b.c").from(None)).await;
    a.status(401, "Unauthorized");
}
