//! Audit events for a real HTTPS receiver, whatever he does with them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use bytes::Bytes;
use common::{Cluster, JSON, Request};
use edge_apiserver::{
    Audit, AuditOptions, BatchOptions, LogOptions, ThrottleOptions, Truncation, WebhookMode, WebhookOptions,
};
use edge_pki::{ClientName, ClusterPki, ServerNames};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const LONG: Duration = Duration::from_secs(3600);
/// Only what the tests themselves ask for.
const CREATIONS: &str = "omitStages: [RequestReceived]\nrules: [{level: Metadata, verbs: [create]}]";
const BOTH_STAGES: &str = "rules: [{level: Metadata, verbs: [create]}]";

/// What the receiver does with a request.
#[derive(Clone, Copy, PartialEq)]
enum Reply {
    Code(u16),
    /// The same, with the seconds of a Retry-After.
    After(u16, u64),
}

struct Received {
    list: Value,
    uri: String,
    authorization: String,
    has_certificate: bool,
    at: Instant,
}

/// Somebody who takes events.
struct Receiver {
    pki: ClusterPki,
    dir: tempfile::TempDir,
    port: u16,
    got: Arc<Mutex<Vec<Received>>>,
    arrived: Arc<Notify>,
    /// What he does next; and when that is done, ever after.
    replies: Arc<Mutex<(VecDeque<Reply>, Reply)>>,
    /// Answers that he may give.
    leave: Arc<Semaphore>,
}

impl Receiver {
    async fn start() -> Self {
        let receiver = Self::prepare().await;
        receiver.listen().await;
        receiver
    }

    /// Nobody is there yet.
    async fn prepare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = ClusterPki::load_or_create(&dir.path().join("tls")).unwrap();
        // free again at once, and nobody else takes it so soon
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let leave = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS / 2));
        let replies = Arc::new(Mutex::new((VecDeque::new(), Reply::Code(200))));
        Self { pki, dir, port, got: Arc::default(), arrived: Arc::default(), replies, leave }
    }

    async fn listen(&self) {
        let names = ServerNames::plain(&["audit.example".into()], &["127.0.0.1".parse().unwrap()]);
        let config = edge_pki::server_config(&self.pki.serving(&names).unwrap(), &self.pki.client_ca).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let (got, arrived, replies, leave) =
            (self.got.clone(), self.arrived.clone(), self.replies.clone(), self.leave.clone());
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                let (got, arrived, replies, leave) = (got.clone(), arrived.clone(), replies.clone(), leave.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let has_certificate = stream.get_ref().1.peer_certificates().is_some();
                    let serve = service_fn(|request: http::Request<hyper::body::Incoming>| {
                        let (got, arrived, replies, leave) = (&got, &arrived, &replies, &leave);
                        async move {
                            let (head, body) = request.into_parts();
                            assert_eq!(
                                (head.method.as_str(), &head.headers["content-type"]),
                                ("POST", &JSON.parse().unwrap())
                            );
                            let authorization = head.headers.get("authorization").map_or("", |v| v.to_str().unwrap());
                            let body = body.collect().await.unwrap().to_bytes();
                            got.lock().push(Received {
                                list: serde_json::from_slice(&body).unwrap(),
                                uri: head.uri.to_string(),
                                authorization: authorization.to_owned(),
                                has_certificate,
                                at: Instant::now(),
                            });
                            arrived.notify_waiters();
                            leave.acquire().await.unwrap().forget();
                            let (next, usual) = &mut *replies.lock();
                            let mut response = http::Response::builder();
                            let code = match next.pop_front().unwrap_or(*usual) {
                                Reply::Code(code) => code,
                                Reply::After(code, seconds) => {
                                    response = response.header("retry-after", seconds);
                                    code
                                }
                            };
                            let response = response.status(code).body(Full::new(Bytes::from_static(b"so be it")));
                            Ok::<_, Infallible>(response.unwrap())
                        }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), serve).await;
                });
            }
        });
    }

    fn will(&self, next: &[Reply], ever_after: Reply) {
        *self.replies.lock() = (next.iter().copied().collect(), ever_after);
    }

    /// From now on he answers only when he may.
    fn hang(&self) {
        self.leave.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn may_answer(&self, requests: usize) {
        self.leave.add_permits(requests);
    }

    /// Waits until so many requests are there.
    async fn requests(&self, number: usize) {
        let there = async {
            loop {
                let notified = self.arrived.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if self.got.lock().len() >= number {
                    return;
                }
                notified.await;
            }
        };
        let there = tokio::time::timeout(Duration::from_secs(20), there).await;
        assert!(there.is_ok(), "{} of {number} requests", self.got.lock().len());
    }

    /// The events of each request so far.
    fn lists(&self) -> Vec<Vec<Value>> {
        self.got.lock().iter().map(|r| r.list["items"].as_array().unwrap().clone()).collect()
    }

    fn sizes(&self) -> Vec<usize> {
        self.lists().iter().map(Vec::len).collect()
    }

    fn authority(&self) -> Value {
        json!({"server": format!("https://127.0.0.1:{}/events/", self.port), "certificate-authority": "tls/server-ca.crt"})
    }

    fn options(&self, mode: WebhookMode) -> WebhookOptions {
        self.options_with(self.authority(), json!({"token": "secret"}), mode)
    }

    fn options_with(&self, cluster: Value, user: Value, mode: WebhookMode) -> WebhookOptions {
        let file = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "there", "cluster": cluster}], "users": [{"name": "me", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "there", "user": "me"}}]});
        let config_file = self.dir.path().join("kubeconfig");
        std::fs::write(self.dir.path().join("tls/server-ca.crt"), self.pki.server_ca.pem()).unwrap();
        std::fs::write(&config_file, file.to_string()).unwrap();
        WebhookOptions { config_file, initial_backoff: Duration::from_millis(20), mode, truncation: None }
    }
}

/// Batches of so many events, which wait for each other for so long.
fn batches(max_size: usize, max_wait: Duration) -> WebhookMode {
    WebhookMode::Batch(BatchOptions { buffer_size: 10_000, max_size, max_wait, throttle: None })
}

async fn cluster(rules: &str, webhook: WebhookOptions) -> Cluster {
    start(rules, AuditOptions { log: None, webhook: Some(webhook) }).await
}

async fn start(rules: &str, options: AuditOptions) -> Cluster {
    let policy = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}");
    Cluster::start_audited(Audit::open(&policy, options).unwrap()).await
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn post(name: &str) -> Request {
    Request::new("POST", MAPS).content_type(JSON).body(map(name).to_string())
}

async fn flush(c: &Cluster) {
    c.api.flush_audit(Duration::from_secs(20)).await;
}

/// A number of the metrics.
async fn metric(c: &Cluster, name: &str) -> u64 {
    let text = c.send(Request::new("GET", "/metrics")).await;
    let text = String::from_utf8_lossy(&text.bytes).into_owned();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

async fn lost(c: &Cluster, plugin: &str) -> u64 {
    metric(c, &format!("apiserver_audit_error_total{{plugin=\"{plugin}\"}}")).await
}

#[tokio::test]
async fn events_are_sent_together_and_written_too() {
    let receiver = Receiver::start().await;
    let path = receiver.dir.path().join("audit.log");
    let log = LogOptions { path: path.clone(), max_age: 0, max_backups: 0, max_size: 0, truncation: None };
    let webhook = receiver.options(batches(10, LONG));
    let c = start(CREATIONS, AuditOptions { log: Some(log), webhook: Some(webhook) }).await;
    for i in 0..25 {
        c.create(MAPS, &map(&format!("m{i}"))).await;
    }
    // full ones go at once
    receiver.requests(2).await;
    assert_eq!(receiver.sizes(), [10, 10]);
    flush(&c).await;
    assert_eq!(receiver.sizes(), [10, 10, 5]);
    {
        let got = receiver.got.lock();
        assert!(got.iter().all(|r| r.list["kind"] == "EventList" && r.list["apiVersion"] == "audit.k8s.io/v1"));
        assert_eq!(got[0].list["metadata"], json!({}));
        assert_eq!((got[0].uri.as_str(), got[0].authorization.as_str()), ("/events?timeout=30s", "Bearer secret"));
    }
    let items: Vec<Value> = receiver.lists().concat();
    let names: Vec<&str> = items.iter().map(|e| e["objectRef"]["name"].as_str().unwrap()).collect();
    let want: Vec<String> = (0..25).map(|i| format!("m{i}")).collect();
    assert_eq!(names, want);
    // an item of a list has no kind; a line of the log does, and is the same otherwise
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let typed = items.into_iter().map(|mut item| {
        assert!(item.get("kind").is_none() && item.get("apiVersion").is_none(), "{item}");
        item["kind"] = "Event".into();
        item["apiVersion"] = "audit.k8s.io/v1".into();
        item
    });
    assert_eq!(lines, typed.collect::<Vec<_>>());
    for plugin in ["log", "webhook", "buffered"] {
        assert_eq!(lost(&c, plugin).await, 0, "{plugin}");
    }
}

#[tokio::test]
async fn an_event_waits_for_others_but_not_for_ever() {
    let receiver = Receiver::start().await;
    let wait = Duration::from_millis(300);
    let c = cluster(CREATIONS, receiver.options(batches(10, wait))).await;
    for round in 1..=2 {
        let start = Instant::now();
        c.create(MAPS, &map(&format!("a{round}"))).await;
        c.create(MAPS, &map(&format!("b{round}"))).await;
        receiver.requests(round).await;
        let took = receiver.got.lock().last().unwrap().at - start;
        assert!(took >= wait && took < wait * 10, "{took:?}");
        // the time counts from the first event on, also after a pause
        tokio::time::sleep(wait).await;
    }
    assert_eq!(receiver.sizes(), [2, 2], "nothing is sent when there is nothing to send");
}

#[tokio::test]
async fn batches_are_not_sent_faster_than_allowed() {
    let receiver = Receiver::start().await;
    let throttle = Some(ThrottleOptions { qps: 5.0, burst: 2 });
    let batch = BatchOptions { buffer_size: 100, max_size: 1, max_wait: LONG, throttle };
    let c = cluster(CREATIONS, receiver.options(WebhookMode::Batch(batch))).await;
    let start = Instant::now();
    for i in 0..4 {
        c.create(MAPS, &map(&format!("m{i}"))).await;
    }
    receiver.requests(4).await;
    let times: Vec<Duration> = receiver.got.lock().iter().map(|r| r.at - start).collect();
    assert!(times[2] >= Duration::from_millis(150) && times[3] >= Duration::from_millis(350), "{times:?}");
}

#[tokio::test]
async fn any_failure_may_pass() {
    let receiver = Receiver::start().await;
    receiver
        .will(&[Reply::Code(500), Reply::Code(400), Reply::After(429, 1), Reply::After(400, 100)], Reply::Code(200));
    let c = cluster(CREATIONS, receiver.options(batches(1, LONG))).await;
    c.create(MAPS, &map("m")).await;
    flush(&c).await;
    receiver.requests(5).await;
    let lists = receiver.lists();
    assert_eq!(lists.len(), 5, "it is taken, so it is not sent again");
    assert!(lists.windows(2).all(|pair| pair[0] == pair[1]), "the same each time");
    let times: Vec<Instant> = receiver.got.lock().iter().map(|r| r.at).collect();
    let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // longer each time; where the receiver says how long, that; and that only where a failure is one of the kind that passes
    for (pause, least) in pauses.iter().zip([20, 30, 1000, 45]) {
        let least = Duration::from_millis(least);
        assert!(*pause >= least && *pause < least + Duration::from_secs(5), "{pauses:?}");
    }
    assert_eq!(lost(&c, "webhook").await, 0);
}

#[tokio::test]
async fn too_many_failures_lose_a_batch_and_no_other() {
    let receiver = Receiver::start().await;
    receiver.will(&[Reply::Code(503); 5], Reply::Code(204));
    let c = cluster(CREATIONS, receiver.options(batches(2, LONG))).await;
    for name in ["a", "b"] {
        c.create(MAPS, &map(name)).await;
    }
    receiver.requests(5).await;
    flush(&c).await;
    assert_eq!(receiver.sizes(), [2; 5], "five attempts");
    assert_eq!((lost(&c, "webhook").await, lost(&c, "buffered").await), (2, 0));
    c.create(MAPS, &map("c")).await;
    flush(&c).await;
    assert_eq!((receiver.sizes().len(), lost(&c, "webhook").await), (6, 2));
}

#[tokio::test]
async fn a_receiver_who_is_not_there_yet_gets_what_happened_before() {
    let receiver = Receiver::prepare().await;
    let options = WebhookOptions { initial_backoff: Duration::from_millis(500), ..receiver.options(batches(1, LONG)) };
    let c = cluster(CREATIONS, options).await;
    c.create(MAPS, &map("early")).await;
    // the first attempt is refused by now
    tokio::time::sleep(Duration::from_millis(200)).await;
    receiver.listen().await;
    receiver.requests(1).await;
    assert_eq!(receiver.lists()[0][0]["objectRef"]["name"], "early");
}

#[tokio::test]
async fn what_is_too_large_loses_its_objects_or_is_left_out() {
    let receiver = Receiver::start().await;
    let path = receiver.dir.path().join("audit.log");
    let log = LogOptions { path: path.clone(), max_age: 0, max_backups: 0, max_size: 0, truncation: None };
    let truncation = Some(Truncation { max_batch: 4000, max_event: 2000 });
    let webhook = WebhookOptions { truncation, ..receiver.options(batches(100, LONG)) };
    let rules = "omitStages: [RequestReceived]\nrules: [{level: RequestResponse, verbs: [create]}]";
    let c = start(rules, AuditOptions { log: Some(log), webhook: Some(webhook) }).await;
    c.create(MAPS, &map("small")).await;
    let mut large = map("large");
    large["data"]["k"] = "x".repeat(3000).into();
    c.create(MAPS, &large).await;
    c.create(&format!("{MAPS}?x={}", "x".repeat(3000)), &map("long")).await;
    flush(&c).await;
    let items = receiver.lists().concat();
    let names: Vec<&Value> = items.iter().map(|e| &e["objectRef"]["name"]).collect();
    assert_eq!(names, ["small", "large"]);
    assert_eq!(
        (&items[0]["requestObject"]["data"]["k"], &items[0]["responseObject"]["data"]["k"]),
        (&json!("v"), &json!("v"))
    );
    assert!(items[0]["annotations"].get("audit.k8s.io/truncated").is_none());
    assert!(items[1].get("requestObject").is_none() && items[1].get("responseObject").is_none(), "{}", items[1]);
    assert_eq!(items[1]["annotations"]["audit.k8s.io/truncated"], "true");
    assert_eq!(items[1]["level"], "RequestResponse");
    assert_eq!((lost(&c, "truncate").await, lost(&c, "webhook").await), (1, 0));
    // the log, which has no such limit, has all of it
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[1]["requestObject"]["data"]["k"].as_str().unwrap().len(), 3000);
    assert!(!text.contains("audit.k8s.io/truncated"));
    // batches have a size, too
    let before = receiver.sizes().len();
    for i in 0..8 {
        c.create(MAPS, &map(&format!("m{i}"))).await;
    }
    flush(&c).await;
    let sizes = receiver.sizes().split_off(before);
    assert_eq!(sizes.iter().sum::<usize>(), 8);
    assert!(sizes.len() >= 3 && sizes.iter().all(|n| *n > 0), "{sizes:?}");
    let longest = receiver.got.lock().iter().map(|r| r.list.to_string().len()).max().unwrap();
    assert!(longest <= 4100, "{longest}");
}

#[tokio::test]
async fn a_log_may_leave_out_what_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let truncation = Some(Truncation { max_batch: 2000, max_event: 2000 });
    let log = LogOptions { path: dir.path().join("audit.log"), max_age: 0, max_backups: 0, max_size: 0, truncation };
    let rules = "omitStages: [RequestReceived]\nrules: [{level: Request, verbs: [create]}]";
    let c = start(rules, AuditOptions { log: Some(log), webhook: None }).await;
    let mut large = map("large");
    large["data"]["k"] = "x".repeat(3000).into();
    c.create(MAPS, &large).await;
    flush(&c).await;
    let text = std::fs::read_to_string(dir.path().join("audit.log")).unwrap();
    let event: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&event["annotations"]["audit.k8s.io/truncated"], event.get("requestObject")), (&json!("true"), None));
    assert_eq!((lost(&c, "truncate").await, lost(&c, "log").await), (0, 0));
}

#[tokio::test]
async fn a_receiver_who_hangs_keeps_nobody_waiting() {
    let receiver = Receiver::start().await;
    receiver.hang();
    let batch = BatchOptions { buffer_size: 4, max_size: 1, max_wait: LONG, throttle: None };
    let c = cluster(CREATIONS, receiver.options(WebhookMode::Batch(batch))).await;
    let start = Instant::now();
    for i in 0..40 {
        c.create(MAPS, &map(&format!("m{i}"))).await;
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    receiver.requests(16).await;
    // sixteen are under way, one is the next, four wait
    let lost_ones = lost(&c, "buffered").await;
    assert!((19..40).contains(&lost_ones), "{lost_ones}");
    assert_eq!(receiver.sizes().len(), 16, "no more at once");
    // an end of the server waits no longer than it wants to
    let start = Instant::now();
    c.api.flush_audit(Duration::from_millis(200)).await;
    assert!(start.elapsed() < Duration::from_secs(5));
    receiver.may_answer(1000);
    flush(&c).await;
    assert_eq!(receiver.sizes().len() as u64 + lost_ones, 40, "every event is sent or counted");
    assert_eq!((lost(&c, "webhook").await, lost(&c, "buffered").await), (0, lost_ones));
}

#[tokio::test]
async fn requests_wait_for_their_events_where_that_is_wanted() {
    let receiver = Receiver::start().await;
    receiver.hang();
    let c = Arc::new(cluster(BOTH_STAGES, receiver.options(WebhookMode::Blocking)).await);
    let asking = tokio::spawn({
        let c = c.clone();
        async move { c.send(post("m")).await.code }
    });
    let is_there = async || c.send(Request::new("GET", &format!("{MAPS}/m"))).await.code == 200;
    receiver.requests(1).await;
    assert!(!is_there().await, "nothing is done before it is told that the request was received");
    receiver.may_answer(1);
    receiver.requests(2).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(is_there().await && !asking.is_finished(), "the answer waits until its end is told");
    receiver.may_answer(1);
    assert_eq!(asking.await.unwrap(), 201);
    let stages: Vec<Value> = receiver.lists().concat().iter().map(|e| e["stage"].clone()).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseComplete"]);
    assert_eq!(receiver.sizes(), [1, 1]);

    // who goes away changes nothing about what is told
    let gone = tokio::time::timeout(Duration::from_millis(100), c.send(post("gone"))).await;
    assert!(gone.is_err(), "it does wait");
    receiver.may_answer(1000);
    flush(&c).await;
    let stages: Vec<Value> = receiver.lists().concat().iter().map(|e| e["stage"].clone()).collect();
    assert_eq!(stages.len(), 4, "{stages:?}");

    // failures are counted, and that is all
    receiver.will(&[], Reply::Code(500));
    assert_eq!(c.send(post("told-in-vain")).await.code, 201);
    assert_eq!(lost(&c, "webhook").await, 2);
    assert_eq!(metric(&c, "apiserver_audit_requests_rejected_total").await, 0);
}

#[tokio::test]
async fn what_cannot_be_told_is_refused_where_that_is_wanted() {
    let receiver = Receiver::start().await;
    receiver.will(&[], Reply::Code(500));
    let c = cluster(BOTH_STAGES, receiver.options(WebhookMode::BlockingStrict)).await;
    let refused = c.send(post("m")).await;
    let status = refused.status(500, "InternalError");
    let message = format!("Internal Server Error: {MAPS:?}: failed to store audit event");
    assert_eq!(status["message"], message);
    assert_eq!(receiver.sizes(), [1; 5], "its end is not told, since it never began");
    assert_eq!(metric(&c, "apiserver_audit_requests_rejected_total").await, 1);
    assert_eq!(lost(&c, "webhook").await, 1);
    assert_eq!(c.send(Request::new("GET", &format!("{MAPS}/m"))).await.code, 404);
    // that it was received is told; its end is not, which is too late to refuse it
    receiver.will(&[Reply::Code(200)], Reply::Code(500));
    assert_eq!(c.send(post("m")).await.code, 201);
    assert_eq!(metric(&c, "apiserver_audit_requests_rejected_total").await, 1);
    assert_eq!(lost(&c, "webhook").await, 2);
    // credentials that do not hold are refused as ever
    let request = post("m").from(None).header("authorization", "Bearer nonsense");
    assert_eq!(c.send(request).await.code, 401);
    assert_eq!(metric(&c, "apiserver_audit_requests_rejected_total").await, 1);
}

#[tokio::test]
async fn receivers_and_senders_know_each_other_as_the_kubeconfig_says() {
    let receiver = Receiver::start().await;
    let with = |change: Value| {
        let mut cluster = receiver.authority();
        cluster.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        cluster.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        cluster
    };
    let admin = receiver.pki.client("admin", &ClientName::admin()).unwrap();
    std::fs::write(receiver.dir.path().join("me.crt"), admin.certificate_pem()).unwrap();
    std::fs::write(receiver.dir.path().join("me.key"), admin.key_pem()).unwrap();
    let certificate = json!({"client-certificate": "me.crt", "client-key": "me.key"});
    let by_name = json!({"server": format!("https://localhost:{}", receiver.port), "tls-server-name": "audit.example"});
    let anybody = json!({"insecure-skip-tls-verify": true, "certificate-authority": null});
    let machine = json!({"certificate-authority": null});
    let wrong_name = json!({"tls-server-name": "elsewhere.example"});
    for (number, (change, user, arrives, authorization, has_certificate)) in [
        (json!({}), certificate, true, "", true),
        (by_name, json!({"username": "u", "password": "p"}), true, "Basic dTpw", false),
        (anybody, json!({}), true, "", false),
        (machine, json!({}), false, "", false),
        (wrong_name, json!({}), false, "", false),
    ]
    .into_iter()
    .enumerate()
    {
        let before = receiver.sizes().len();
        let options = receiver.options_with(with(change.clone()), user, WebhookMode::Blocking);
        let c = cluster(CREATIONS, WebhookOptions { initial_backoff: Duration::ZERO, ..options }).await;
        assert_eq!(c.send(post(&format!("m{number}"))).await.code, 201);
        assert_eq!(receiver.sizes().len() - before, usize::from(arrives), "{change}");
        assert_eq!(lost(&c, "webhook").await, u64::from(!arrives), "{change}");
        if arrives {
            let got = receiver.got.lock();
            let last = got.last().unwrap();
            assert_eq!(
                (last.authorization.as_str(), last.has_certificate),
                (authorization, has_certificate),
                "{change}"
            );
        }
    }
}
