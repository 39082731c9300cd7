//! Admission webhooks behind real HTTPS: what they are shown, what is made of their answers, whatever these are.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use common::{APPLY, Answer, Cluster, JSON, MERGE, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_rustls::TlsAcceptor;

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
type Body = Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// A server of webhooks: what they do is the last part of their address.
struct Hooks {
    url: String,
    bundle: String,
    /// What it was asked, in order.
    asked: Arc<Mutex<Vec<Value>>>,
    connections: Arc<AtomicUsize>,
}

impl Hooks {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let bundle = BASE64_STANDARD.encode(made.cert.pem());
        let hooks = Self { url, bundle, asked: Arc::default(), connections: Arc::default() };
        let (asked, connections) = (hooks.asked.clone(), hooks.connections.clone());
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (acceptor, asked) = (acceptor.clone(), asked.clone());
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let serve = service_fn(|request: http::Request<hyper::body::Incoming>| {
                        let asked = asked.clone();
                        async move {
                            let path = request.uri().path().trim_start_matches('/').to_owned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let review: Value = serde_json::from_slice(&body).unwrap();
                            asked.lock().push(review.clone());
                            Ok::<_, Infallible>(reply(&path, &review).await)
                        }
                    });
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await;
                });
            }
        });
        hooks
    }

    fn hook(&self, does: &str, rule: (&str, &str), more: Value) -> Value {
        let (operation, resource) = rule;
        let rule =
            json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": [operation], "resources": [resource]});
        let config = json!({"url": format!("{}/{does}", self.url), "caBundle": self.bundle});
        let mut hook = json!({"name": format!("{}.hook.io", does.replace('/', "-")), "rules": [rule], "clientConfig": config,
            "sideEffects": "None", "admissionReviewVersions": ["v1"]});
        hook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        hook
    }

    /// What it was asked since the last time.
    fn told(&self) -> Vec<Value> {
        std::mem::take(&mut self.asked.lock())
    }
}

async fn reply(path: &str, review: &Value) -> http::Response<StreamBody<Body>> {
    let whole = |bytes: Vec<u8>| -> Body { Box::pin(futures::stream::iter([Ok(Frame::data(Bytes::from(bytes)))])) };
    let answer = |response: Value| {
        let mut response = response;
        response["uid"] = review["request"]["uid"].clone();
        json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
            .to_string()
            .into_bytes()
    };
    let patch = |patch: Value| {
        answer(json!({"allowed": true, "patchType": "JSONPatch", "patch": BASE64_STANDARD.encode(patch.to_string())}))
    };
    let object = &review["request"]["object"];
    let mut code = 200;
    let body = match path {
        "deny" => whole(answer(json!({"allowed": false, "status": {"message": "no way", "code": 403, "reason": "Forbidden"}}))),
        "warn" => whole(answer(json!({"allowed": true, "warnings": ["mind the gap", "mind the gap", "and \"this\"\r\nX: y"]}))),
        "label" if object["metadata"]["labels"].is_null() => {
            whole(patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"by": "hook"}}])))
        }
        "data" => whole(patch(json!([{"op": "add", "path": "/data", "value": {"by": "hook"}}]))),
        "sidecar" => whole(patch(json!([{"op": "add", "path": "/spec/initContainers", "value": [{"name": "added", "image": "i"}]}]))),
        "stage" => {
            let has = |stage: &str| object["data"][stage] == "yes";
            let next = if has("stage-1") { "stage-2" } else { "stage-1" };
            if has("start") && !has("stage-2") {
                whole(patch(json!([{"op": "add", "path": format!("/data/{next}"), "value": "yes"}])))
            } else {
                whole(answer(json!({"allowed": true})))
            }
        }
        "half" => whole(patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 1}]))),
        "status-500" => {
            code = 500;
            whole(b"boom".to_vec())
        }
        "status-404" => {
            code = 404;
            whole(Vec::new())
        }
        "moved" => {
            code = 302;
            whole(Vec::new())
        }
        "empty" => whole(Vec::new()),
        "text" => whole(b"hello".to_vec()),
        "deep" => whole("[".repeat(1_000_000).into_bytes()),
        "array" => whole(b"[]".to_vec()),
        "other-uid" => whole(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "x", "allowed": true}}).to_string().into_bytes()),
        "other-kind" => whole(json!({"apiVersion": "v1", "kind": "Pod", "response": {"uid": review["request"]["uid"], "allowed": true}}).to_string().into_bytes()),
        "bad-patch" => whole(patch(json!([{"op": "remove", "path": "/no/such/place"}]))),
        "big-patch" => whole(patch(json!([{"op": "add", "path": "/data", "value": {"a": "x".repeat(2 << 20)}}]))),
        "deep-patch" => whole(patch((0..200).fold(json!(1), |deep, _| json!([deep])))),
        "huge" => Box::pin(futures::stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![b' '; 64 << 10]))))),
        "drip" => Box::pin(futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok(Frame::data(Bytes::from_static(b" "))), ()))
        })),
        "hang" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            whole(Vec::new())
        }
        _ => whole(answer(json!({"allowed": true}))),
    };
    http::Response::builder().status(code).body(StreamBody::new(body)).unwrap()
}

async fn configure(c: &Cluster, kind: &str, name: &str, hooks: &[Value]) {
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": hooks});
    c.create(&format!("{CONFIGURATIONS}/{}s", kind.to_lowercase()), &object).await;
}

async fn judging(c: &Cluster, name: &str, hooks: &[Value]) {
    configure(c, "ValidatingWebhookConfiguration", name, hooks).await;
}

async fn changing(c: &Cluster, name: &str, hooks: &[Value]) {
    configure(c, "MutatingWebhookConfiguration", name, hooks).await;
}

async fn forget(c: &Cluster, name: &str) {
    for kind in ["validatingwebhookconfigurations", "mutatingwebhookconfigurations"] {
        c.send(Request::new("DELETE", &format!("{CONFIGURATIONS}/{kind}/{name}"))).await;
    }
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

async fn post(c: &Cluster, path: &str, object: &Value) -> Answer {
    c.send(Request::new("POST", path).content_type(JSON).body(object.to_string())).await
}

/// Operation, resource, subresource, name, kinds of the object and of the old one.
fn facts(reviews: &[Value]) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    reviews
        .iter()
        .map(|review| {
            let r = &review["request"];
            [
                &r["operation"],
                &r["resource"]["resource"],
                &r["subResource"],
                &r["name"],
                &r["object"]["kind"],
                &r["oldObject"]["kind"],
            ]
            .map(text)
            .join(" ")
        })
        .collect()
}

#[tokio::test]
async fn every_kind_of_write_is_shown() {
    let c = Cluster::start().await;
    let hooks = Hooks::start().await;
    let both = |name: &'static str| (name, hooks.hook("allow", ("*", "*/*"), json!({})));
    let (name, hook) = both("all");
    changing(&c, name, std::slice::from_ref(&hook)).await;
    // a second kind of webhook is asked the same, after the first
    judging(&c, name, &[hook]).await;
    hooks.told();
    let twice = |facts: &str| vec![facts.to_owned(), facts.to_owned()];
    c.create(MAPS, &map("m", json!({}))).await;
    let told = hooks.told();
    assert_eq!(facts(&told), twice("CREATE configmaps - m ConfigMap -"));
    let request = &told[0]["request"];
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!((&request["namespace"], &request["dryRun"]), (&json!("default"), &json!(false)));
    assert_ne!(told[0]["request"]["uid"], told[1]["request"]["uid"]);
    let one = format!("{MAPS}/m");
    let changed = map("m", json!({"a": "b"})).to_string();
    c.send(Request::new("PUT", &one).content_type(JSON).body(changed)).await.ok();
    assert_eq!(facts(&hooks.told()), twice("UPDATE configmaps - m ConfigMap ConfigMap"));
    c.send(Request::new("PATCH", &one).content_type(MERGE).body(r#"{"data":{"c":"d"}}"#)).await.ok();
    let told = hooks.told();
    assert_eq!(facts(&told), twice("UPDATE configmaps - m ConfigMap ConfigMap"));
    assert_eq!(
        (&told[0]["request"]["object"]["data"]["c"], &told[0]["request"]["oldObject"]["data"]["c"]),
        (&json!("d"), &Value::Null)
    );
    let applied = map("applied", json!({"a": "b"})).to_string();
    c.send(Request::new("PATCH", &format!("{MAPS}/applied?fieldManager=me")).content_type(APPLY).body(applied))
        .await
        .ok();
    let told = hooks.told();
    assert_eq!(facts(&told), twice("CREATE configmaps - applied ConfigMap -"));
    assert_eq!(told[0]["request"]["options"]["fieldManager"], "me");
    c.send(
        Request::new("DELETE", &one)
            .content_type(JSON)
            .body(r#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0}"#),
    )
    .await
    .ok();
    let told = hooks.told();
    assert_eq!(facts(&told), twice("DELETE configmaps - m - ConfigMap"));
    assert_eq!(told[0]["request"]["options"]["gracePeriodSeconds"], 0);
    c.create(MAPS, &map("n", json!({}))).await;
    hooks.told();
    c.send(Request::new("DELETE", MAPS)).await.ok();
    let mut told = facts(&hooks.told());
    told.sort();
    assert_eq!(
        told,
        [twice("DELETE configmaps - applied - ConfigMap"), twice("DELETE configmaps - n - ConfigMap")].concat()
    );
    // subresources
    let labels = json!({"app": "web"});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 3, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    c.create(deployments, &deployment).await;
    hooks.told();
    c.send(
        Request::new("PATCH", &format!("{deployments}/web/status"))
            .content_type(MERGE)
            .body(r#"{"status":{"replicas":1}}"#),
    )
    .await
    .ok();
    assert_eq!(facts(&hooks.told()), twice("UPDATE deployments status web Deployment Deployment"));
    c.send(
        Request::new("PATCH", &format!("{deployments}/web/scale"))
            .content_type(MERGE)
            .body(r#"{"spec":{"replicas":2}}"#),
    )
    .await
    .ok();
    let told = hooks.told();
    assert_eq!(facts(&told), twice("UPDATE deployments scale web Scale Scale"));
    let replicas = |field: &str| told[0]["request"][field]["spec"]["replicas"].clone();
    assert_eq!((replicas("object"), replicas("oldObject")), (json!(2), json!(3)));
    assert_eq!(told[0]["request"]["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["a"]}});
    post(&c, "/api/v1/namespaces/default/serviceaccounts/default/token", &token).await.ok();
    assert_eq!(facts(&hooks.told()), twice("CREATE serviceaccounts token default TokenRequest -"));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    c.create(pods, &pod).await;
    c.create("/api/v1/nodes", &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}})).await;
    hooks.told();
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "node"}});
    post(&c, &format!("{pods}/p/binding"), &binding).await.ok();
    assert_eq!(facts(&hooks.told()), twice("CREATE pods binding p Binding -"));
    c.send(Request::new("POST", &format!("{pods}/p/exec?command=ls&command=-l&container=c&stdout=true"))).await;
    let told = hooks.told();
    assert_eq!(facts(&told), twice("CONNECT pods exec p PodExecOptions -"));
    assert_eq!(
        told[0]["request"]["object"],
        json!({"apiVersion": "v1", "kind": "PodExecOptions", "command": ["ls", "-l"], "container": "c", "stdout": true})
    );
    assert_eq!(told[0]["request"]["options"], Value::Null);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    post(&c, &format!("{pods}/p/eviction"), &eviction).await.ok();
    assert_eq!(facts(&hooks.told()), twice("CREATE pods eviction p Eviction -"));
    // a namespace is in itself
    c.create("/api/v1/namespaces", &json!({"metadata": {"name": "new"}})).await;
    assert_eq!(hooks.told()[0]["request"]["namespace"], "new");
    // reads, and what sets webhooks up, are nobody's business
    c.get(MAPS).await;
    forget(&c, "all").await;
    assert_eq!(facts(&hooks.told()), Vec::<String>::new());
}

#[tokio::test]
async fn objects_are_changed_before_they_are_judged() {
    let c = Cluster::start().await;
    let hooks = Hooks::start().await;
    let stage = |n: usize| hooks.hook("stage", ("*", "configmaps"), json!({"name": format!("stage-{n}.hook.io")}));
    changing(&c, "stages", &[stage(1), stage(2)]).await;
    judging(&c, "look", &[hooks.hook("allow", ("*", "configmaps"), json!({}))]).await;
    let made = c.create(MAPS, &map("m", json!({"start": "yes"}))).await;
    assert_eq!(made["data"], json!({"start": "yes", "stage-1": "yes", "stage-2": "yes"}));
    let told = hooks.told();
    assert_eq!(told.last().unwrap()["request"]["object"]["data"], made["data"]);
    // what was applied and what webhooks made of it
    let config = map("applied", json!({"start": "yes"})).to_string();
    let apply = |config: &str| {
        Request::new("PATCH", &format!("{MAPS}/applied?fieldManager=me")).content_type(APPLY).body(config.to_owned())
    };
    let first = c.send(apply(&config)).await.ok();
    assert_eq!(first["data"]["stage-2"], "yes");
    let second = c.send(apply(&config)).await.ok();
    assert_eq!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"], "{second}");
    // a dry run asks, and stores nothing
    let dry = post(&c, &format!("{MAPS}?dryRun=All"), &map("dry", json!({"start": "yes"}))).await.ok();
    assert_eq!(dry["data"]["stage-2"], "yes");
    assert_eq!(hooks.told().last().unwrap()["request"]["dryRun"], true);
    c.send(Request::new("GET", &format!("{MAPS}/dry"))).await.status(404, "NotFound");
    forget(&c, "stages").await;
    // what a webhook adds gets its defaults, and what the built-in plugins give
    changing(&c, "sidecar", &[hooks.hook("sidecar", ("CREATE", "pods"), json!({}))]).await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let made = c.create("/api/v1/namespaces/default/pods", &pod).await;
    let added = &made["spec"]["initContainers"][0];
    assert_eq!((&added["name"], &added["terminationMessagePolicy"]), (&json!("added"), &json!("File")));
    assert!(added["volumeMounts"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"), "{added}");
    assert_eq!(made["spec"]["volumes"].as_array().unwrap().len(), 1);
    // the number of replicas by way of a Scale
    let labels = json!({"app": "web"});
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"}, "spec": {"replicas": 3, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    c.create(sets, &set).await;
    changing(&c, "half", &[hooks.hook("half", ("UPDATE", "*/scale"), json!({}))]).await;
    let scaled = c
        .send(
            Request::new("PATCH", &format!("{sets}/web/scale")).content_type(MERGE).body(r#"{"spec":{"replicas":8}}"#),
        )
        .await
        .ok();
    assert_eq!(scaled["spec"]["replicas"], 1);
    assert_eq!(c.get(&format!("{sets}/web")).await["spec"]["replicas"], 1);
}

#[tokio::test]
async fn refusals_warnings_and_numbers_reach_the_client() {
    let c = Cluster::start().await;
    let hooks = Hooks::start().await;
    judging(&c, "warn", &[hooks.hook("warn", ("CREATE", "configmaps"), json!({}))]).await;
    let answer = post(&c, MAPS, &map("m", json!({}))).await;
    assert_eq!(answer.code, 201);
    assert_eq!(answer.warnings(), [r#"299 - "mind the gap""#, r#"299 - "and \"this\"X: y""#]);
    judging(&c, "deny", &[hooks.hook("deny", ("*", "configmaps"), json!({}))]).await;
    let denied = "admission webhook \"deny.hook.io\" denied the request: no way";
    let status = post(&c, MAPS, &map("n", json!({}))).await.status(403, "Forbidden");
    assert_eq!(status["message"], denied);
    let one = format!("{MAPS}/m");
    for request in [
        Request::new("PATCH", &one).content_type(MERGE).body(r#"{"data":{"a":"b"}}"#),
        Request::new("DELETE", &one),
        Request::new("DELETE", MAPS),
    ] {
        assert_eq!(c.send(request).await.status(403, "Forbidden")["message"], denied);
    }
    assert_eq!(c.get(&one).await["data"], Value::Null);
    // connections
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    c.create("/api/v1/namespaces/default/pods", &pod).await;
    judging(&c, "attach", &[hooks.hook("deny", ("CONNECT", "pods/attach"), json!({}))]).await;
    let attach = |what: &str| Request::new("POST", &format!("/api/v1/namespaces/default/pods/p/{what}?container=c"));
    assert_eq!(c.send(attach("attach")).await.status(403, "Forbidden")["message"], denied);
    assert_ne!(c.send(attach("exec")).await.code, 403);
    let metrics = c.send(Request::new("GET", "/metrics")).await.bytes;
    let metrics = String::from_utf8_lossy(&metrics);
    let line = r#"apiserver_admission_webhook_rejection_count{name="deny.hook.io",type="validating",operation="CONNECT",error_type="no_error",rejection_code="403"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    // configurations are nobody's business: they can always be taken away
    judging(&c, "all", &[hooks.hook("deny", ("*", "*/*"), json!({}))]).await;
    for name in ["all", "deny", "attach", "warn"] {
        forget(&c, name).await;
    }
    c.create(MAPS, &map("n", json!({}))).await;
}

#[tokio::test]
async fn hostile_answers_are_failures_and_nothing_worse() {
    let c = Cluster::start().await;
    let hooks = Hooks::start().await;
    let nobody = "https://127.0.0.1:1/x";
    let failed = "failed to call webhook: ";
    let invalid = "received invalid webhook response: ";
    for (does, why) in [
        ("status-500", format!("{failed}an error on the server (\"boom\") has prevented the request from succeeding")),
        ("status-404", format!("{failed}the server could not find the requested resource")),
        ("moved", format!("{failed}the server responded with the status code 302")),
        ("empty", format!("{failed}couldn't get version/kind; json parse error")),
        ("text", format!("{failed}couldn't get version/kind; json parse error")),
        ("deep", format!("{failed}couldn't get version/kind; json parse error")),
        ("array", format!("{invalid}webhook response was absent")),
        ("other-uid", format!("{invalid}expected response.uid=")),
        (
            "other-kind",
            format!(
                "{invalid}expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got v1, Kind=Pod"
            ),
        ),
        ("huge", format!("{failed}the answer is longer than 8388608 bytes")),
        ("deep-patch", "received undecodable patch in webhook response: ".to_owned()),
        ("drip", format!("{failed}Post \"{}/drip?timeout=1s\": context deadline exceeded", hooks.url)),
        ("hang", format!("{failed}Post \"{}/hang?timeout=1s\": context deadline exceeded", hooks.url)),
        ("nobody", format!("{failed}Post \"{nobody}?timeout=1s\": dial tcp 127.0.0.1:1: connect: Connection refused")),
        (
            "stranger",
            format!(
                "{failed}Post \"{}/allow?timeout=1s\": tls: failed to verify certificate: x509: certificate signed by unknown authority",
                hooks.url
            ),
        ),
        ("nonsense", "could not get REST client: ".to_owned()),
    ] {
        for policy in ["Fail", "Ignore"] {
            let mut hook =
                hooks.hook(does, ("CREATE", "configmaps"), json!({"failurePolicy": policy, "timeoutSeconds": 1}));
            let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap().cert.pem();
            match does {
                "nobody" => hook["clientConfig"]["url"] = nobody.into(),
                "stranger" => {
                    hook["clientConfig"] =
                        json!({"url": format!("{}/allow", hooks.url), "caBundle": BASE64_STANDARD.encode(stranger)});
                }
                "nonsense" => {
                    hook["clientConfig"]["caBundle"] = BASE64_STANDARD.encode("-----BEGIN CERTIFICATE-----\nx").into()
                }
                _ => {}
            }
            changing(&c, "hostile", &[hook]).await;
            let answer = post(&c, MAPS, &map(does, json!({}))).await;
            if policy == "Ignore" {
                answer.ok();
            } else {
                let message = answer.status(500, "InternalError")["message"].as_str().unwrap().to_owned();
                let by = format!("Internal error occurred: failed calling webhook \"{does}.hook.io\": {why}");
                assert!(message.starts_with(&by), "{message}\nis not\n{by}");
            }
            forget(&c, "hostile").await;
        }
    }
    // patches that do not fit are no failure to ask
    for (does, code) in [("bad-patch", 500), ("big-patch", 422)] {
        changing(
            &c,
            "hostile",
            &[hooks.hook(does, ("CREATE", "configmaps"), json!({"failurePolicy": "Ignore", "timeoutSeconds": 30}))],
        )
        .await;
        let answer = post(&c, MAPS, &map(&format!("{does}-2"), json!({}))).await;
        assert_eq!(answer.code, code, "{}", String::from_utf8_lossy(&answer.bytes).get(..500).unwrap_or_default());
        forget(&c, "hostile").await;
    }
    c.create(MAPS, &map("still-here", json!({}))).await;
}

#[tokio::test]
async fn connections_are_kept() {
    let c = Cluster::start().await;
    let hooks = Hooks::start().await;
    let all: Vec<Value> =
        (0..3).map(|n| hooks.hook("allow", ("*", "configmaps"), json!({"name": format!("n{n}.hook.io")}))).collect();
    changing(&c, "change", &all).await;
    for n in 0..20 {
        c.create(MAPS, &map(&format!("m{n}"), json!({}))).await;
    }
    assert_eq!(hooks.told().len(), 60);
    let connections = hooks.connections.load(Ordering::Relaxed);
    assert!((1..=3).contains(&connections), "{connections}");
    // who is asked at the same time needs more, and these are kept as well
    judging(&c, "judge", &all).await;
    for n in 20..40 {
        c.create(MAPS, &map(&format!("m{n}"), json!({}))).await;
    }
    assert_eq!(hooks.told().len(), 120);
    let connections = hooks.connections.load(Ordering::Relaxed);
    assert!((1..=8).contains(&connections), "{connections}");
}

#[tokio::test]
async fn custom_resources_are_changed_and_pruned() {
    let c = Cluster::start().await;
    let hooks = Hooks::start().await;
    let text = json!({"type": "string"});
    let pruning = json!({"type": "object", "properties": {"data": {"type": "object", "properties": {"start": text, "stage-1": text}}}});
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    for (plural, kind, schema) in [("tabs", "Tab", pruning), ("opens", "Open", open)] {
        let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema}});
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("{plural}.a.b")},
            "spec": {"group": "a.b", "scope": "Namespaced", "names": {"plural": plural, "kind": kind}, "versions": [version("v1", true), version("v2", false)]}});
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        c.create(definitions, &definition).await;
        let one = format!("{definitions}/{plural}.a.b");
        while c.get(&one).await["status"]["conditions"]
            .as_array()
            .is_none_or(|c| !c.iter().any(|c| c["type"] == "Established" && c["status"] == "True"))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stage = |n: usize| hooks.hook("stage", ("*", plural), json!({"name": format!("stage-{n}.hook.io")}));
        changing(&c, plural, &[stage(1), stage(2)]).await;
        let path = format!("/apis/a.b/v1/namespaces/default/{plural}");
        let object = json!({"apiVersion": "a.b/v1", "kind": kind, "metadata": {"name": "x"}, "data": {"start": "yes"}});
        let made = c.create(&path, &object).await;
        let mut want = json!({"start": "yes", "stage-1": "yes"});
        if plural == "opens" {
            want["stage-2"] = "yes".into();
        }
        assert_eq!(made["data"], want);
        // a rule for one version is one for all, and the webhook sees that one
        let only = json!({"name": "v1.hook.io", "rules": [{"apiGroups": ["a.b"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": [plural]}]});
        judging(&c, plural, &[hooks.hook("allow", ("*", "*"), only)]).await;
        hooks.told();
        let second = format!("/apis/a.b/v2/namespaces/default/{plural}/x");
        c.send(Request::new("PATCH", &second).content_type(MERGE).body(r#"{"metadata":{"labels":{"a":"b"}}}"#))
            .await
            .ok();
        let told = hooks.told();
        let request = &told.last().unwrap()["request"];
        assert_eq!((&request["kind"]["version"], &request["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
        assert_eq!(
            (&request["object"]["apiVersion"], &request["oldObject"]["apiVersion"]),
            (&json!("a.b/v1"), &json!("a.b/v1"))
        );
        // the stored version changes
        let turn = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false}, {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
        c.send(Request::new("PATCH", &one).content_type(common::JSON_PATCH).body(turn.to_string())).await.ok();
        let patched = c
            .send(Request::new("PATCH", &second).content_type(MERGE).body(r#"{"metadata":{"labels":{"c":"d"}}}"#))
            .await
            .ok();
        assert_eq!((&patched["data"], &patched["metadata"]["labels"]["c"]), (&want, &json!("d")));
        forget(&c, plural).await;
    }
}

/// A webhook for everything whose backend is gone: writes fail, as they should, but not the server, and it can be repaired.
#[tokio::test]
async fn a_dead_webhook_for_everything_can_be_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let c = Cluster::start_in(dir).await;
    let everything = json!({"name": "all.hook.io", "failurePolicy": "Fail", "clientConfig": {"url": "https://127.0.0.1:1/"}, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]}]});
    judging(&c, "dead", std::slice::from_ref(&everything)).await;
    changing(&c, "dead", &[everything]).await;
    post(&c, MAPS, &map("m", json!({}))).await.status(500, "InternalError");
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "node"}});
    post(&c, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", &lease).await.status(500, "InternalError");
    let copy = tempfile::tempdir().unwrap();
    copy_all(&path, copy.path());
    drop(c);
    let c = Cluster::start_again(copy).await;
    post(&c, MAPS, &map("m", json!({}))).await.status(500, "InternalError");
    forget(&c, "dead").await;
    c.create(MAPS, &map("m", json!({}))).await;
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn questions_are_shown_too() {
    let c = Cluster::start().await;
    let hooks = Hooks::start().await;
    judging(&c, "questions", &[hooks.hook("deny", ("CREATE", "subjectaccessreviews"), json!({}))]).await;
    judging(&c, "others", &[hooks.hook("allow", ("CREATE", "tokenreviews"), json!({}))]).await;
    hooks.told();
    let question = json!({"spec": {"user": "jane", "nonResourceAttributes": {"path": "/x", "verb": "get"}}});
    let answer = post(&c, "/apis/authorization.k8s.io/v1/subjectaccessreviews", &question).await;
    let status = answer.status(403, "Forbidden");
    assert!(status["message"].as_str().unwrap().contains("no way"), "{status}");
    assert_eq!(facts(&hooks.told()), ["CREATE subjectaccessreviews -  SubjectAccessReview -"]);
    let answer = post(&c, "/apis/authentication.k8s.io/v1/tokenreviews", &json!({"spec": {"token": "x"}})).await.ok();
    assert_eq!(answer["status"]["user"], json!({}), "{answer}");
    assert_eq!(facts(&hooks.told()), ["CREATE tokenreviews -  TokenReview -"]);
    // one that nobody asked for
    post(&c, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await.ok();
    assert_eq!(hooks.told().len(), 0);
}
