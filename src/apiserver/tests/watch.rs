//! Watches: order, resumption, shapes, encodings, their end.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use bytes::{Bytes, BytesMut};
use common::{Cluster, JSON, MERGE, PROTOBUF, Request};
use edge_apiserver::Body;
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::Duration;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Reads the JSON lines of a watch.
struct Events {
    body: Body,
    rest: BytesMut,
}

impl Events {
    async fn open(c: &Cluster, query: &str) -> Self {
        let response = c.open(Request::new("GET", &format!("{MAPS}?watch=true{query}"))).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], JSON);
        Self { body: response.into_body(), rest: BytesMut::new() }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                return Some(serde_json::from_slice(&self.rest.split_to(end + 1)).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("an event");
            let data: Bytes = frame?.unwrap().into_data().unwrap();
            self.rest.extend_from_slice(&data);
        }
    }

    async fn expect(&mut self, kind: &str, name: &str) -> Value {
        let event = self.next().await.unwrap();
        assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!(kind), &json!(name)), "{event}");
        event["object"].clone()
    }
}

async fn label(c: &Cluster, name: &str, value: Value) {
    let body = json!({"metadata": {"labels": {"a": value}}}).to_string();
    c.send(Request::new("PATCH", &format!("{MAPS}/{name}")).content_type(MERGE).body(body)).await.ok();
}

#[tokio::test]
async fn changes_arrive_in_order_and_can_be_resumed() {
    let c = Cluster::start().await;
    let list = c.get(MAPS).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut live = Events::open(&c, &format!("&resourceVersion={from}")).await;
    let made = c.create(MAPS, &json!({"metadata": {"name": "x"}})).await;
    label(&c, "x", json!("1")).await;
    c.send(Request::new("DELETE", &format!("{MAPS}/x"))).await.ok();
    live.expect("ADDED", "x").await;
    live.expect("MODIFIED", "x").await;
    live.expect("DELETED", "x").await;
    let after = made["metadata"]["resourceVersion"].as_str().unwrap();
    let mut resumed = Events::open(&c, &format!("&resourceVersion={after}")).await;
    resumed.expect("MODIFIED", "x").await;
    let last = resumed.expect("DELETED", "x").await;
    assert_ne!(last["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let a = c.send(Request::new("GET", &format!("{MAPS}?watch=1&resourceVersion=x"))).await;
    a.status(400, "BadRequest");
}

#[tokio::test]
async fn a_selector_turns_changes_into_coming_and_going() {
    let c = Cluster::start().await;
    c.create(MAPS, &json!({"metadata": {"name": "x"}})).await;
    let mut events = Events::open(&c, "&labelSelector=a%3D1").await;
    label(&c, "x", json!("1")).await;
    events.expect("ADDED", "x").await;
    label(&c, "x", json!("2")).await;
    events.expect("DELETED", "x").await;
}

#[tokio::test]
async fn initial_events_end_with_a_marked_bookmark() {
    let c = Cluster::start().await;
    c.create(MAPS, &json!({"metadata": {"name": "x"}})).await;
    let query = "&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut events = Events::open(&c, query).await;
    events.expect("ADDED", "x").await;
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    c.create(MAPS, &json!({"metadata": {"name": "y"}})).await;
    events.expect("ADDED", "y").await;
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_up() {
    let c = Cluster::start().await;
    c.create(MAPS, &json!({"metadata": {"name": "x"}})).await;
    let mut events = Events::open(&c, "&timeoutSeconds=1").await;
    events.expect("ADDED", "x").await;
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn watches_come_in_protobuf_and_as_tables() {
    let c = Cluster::start().await;
    c.create(MAPS, &json!({"metadata": {"name": "x"}})).await;
    let request = Request::new("GET", &format!("{MAPS}?watch=1&timeoutSeconds=1"));
    let a = c.send(request.accept("application/vnd.kubernetes.protobuf;stream=watch")).await;
    assert_eq!(a.headers["content-type"], format!("{PROTOBUF};stream=watch"));
    let length = u32::from_be_bytes(a.bytes[..4].try_into().unwrap()) as usize;
    assert_eq!(length + 4, a.bytes.len(), "one frame with its length");
    let request = Request::new("GET", &format!("{MAPS}?watch=1&timeoutSeconds=1"));
    let a = c.send(request.accept("application/json;as=Table;v=v1;g=meta.k8s.io")).await;
    assert_eq!(
        (&a.json()["object"]["kind"], &a.json()["object"]["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("x"))
    );
}

/// Makes so many maps; gives their versions.
async fn churn(c: &Cluster, prefix: &str, times: usize) -> Vec<u64> {
    let writes = (0..times).map(|i| async move {
        let name = format!("{prefix}-{i}");
        let made = c.create(MAPS, &json!({"metadata": {"name": name}})).await;
        made["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
    });
    // no more at once than a server would take
    let mut versions: Vec<u64> = futures::stream::iter(writes).buffer_unordered(200).collect().await;
    versions.sort_unstable();
    versions
}

#[tokio::test]
async fn what_is_too_old_is_410_and_not_a_version_earlier() {
    let c = Cluster::start().await;
    let first = churn(&c, "first", 3).await;
    let page = c.get(&format!("{MAPS}?limit=1")).await;
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    // the changes that are remembered, and the list as it was is one more
    let versions = churn(&c, "more", 8192).await;
    let oldest = *first.last().unwrap();
    let mut events = Events::open(&c, &format!("&resourceVersion={oldest}")).await;
    let next = events.next().await.unwrap();
    assert_eq!(next["object"]["metadata"]["resourceVersion"], versions[0].to_string(), "{next}");
    let next_page = c.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!(next_page["metadata"]["resourceVersion"], oldest.to_string());
    let exact = |v: u64| format!("{MAPS}?resourceVersion={v}&resourceVersionMatch=Exact&limit=2");
    assert_eq!(c.get(&exact(oldest)).await["items"].as_array().unwrap().len(), 2);

    churn(&c, "last", 1).await;
    let gone = |path: String| {
        let c = &c;
        async move {
            let status = c.send(Request::new("GET", &path)).await.status(410, "Expired");
            status["message"].as_str().unwrap().to_owned()
        }
    };
    // a watch tells it in its stream, or clients would ask for the same version again and again
    let too_old = |version: u64| {
        let c = &c;
        async move {
            let mut events = Events::open(c, &format!("&resourceVersion={version}")).await;
            let event = events.next().await.unwrap();
            assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)), "{event}");
            assert_eq!(event["object"]["reason"], "Expired");
            assert_eq!(events.next().await, None);
            event["object"]["message"].as_str().unwrap().to_owned()
        }
    };
    assert_eq!(too_old(oldest).await, format!("too old resource version: {oldest} ({})", versions[0]));
    let message = gone(format!("{MAPS}?limit=1&continue={token}")).await;
    assert!(message.starts_with("The provided continue parameter is too old"), "{message}");
    gone(exact(oldest)).await;
    too_old(1).await;
    // one later, everything is there
    let mut events = Events::open(&c, &format!("&resourceVersion={}", versions[0])).await;
    let next = events.next().await.unwrap();
    assert_eq!(next["object"]["metadata"]["resourceVersion"], versions[1].to_string());
}
