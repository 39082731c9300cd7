//! The audit log: who asked for what, and what came of it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Cluster, JSON, MERGE, PROTOBUF, Request, admin, user};
use edge_apiserver::{Audit, AuditOptions, LogOptions};
use edge_schema::{Schema, proto};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

struct Log {
    dir: tempfile::TempDir,
}

impl Log {
    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    /// All events so far.
    async fn events(&self, c: &Cluster) -> Vec<Value> {
        c.api.flush_audit(Duration::from_secs(10)).await;
        let text = std::fs::read_to_string(self.path()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Those of one request, by what it asked for.
    async fn of(&self, c: &Cluster, verb: &str, uri: &str) -> Vec<Value> {
        self.events(c).await.into_iter().filter(|e| e["verb"] == verb && e["requestURI"] == uri).collect()
    }
}

fn options(path: &Path) -> AuditOptions {
    let log = LogOptions { path: path.to_owned(), max_age: 0, max_backups: 0, max_size: 0, truncation: None };
    AuditOptions { log: Some(log), webhook: None }
}

async fn cluster(rules: &str) -> (Cluster, Log) {
    let log = Log { dir: tempfile::tempdir().unwrap() };
    let policy = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}");
    let audit = Audit::open(&policy, options(&log.path())).unwrap();
    (Cluster::start_audited(audit).await, log)
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn post(path: &str, object: &Value) -> Request {
    Request::new("POST", path).content_type(JSON).body(object.to_string())
}

#[tokio::test]
async fn each_level_tells_what_it_promises() {
    let rules = r#"
rules:
- {level: None, users: [quiet]}
- {level: Metadata, namespaces: [default], resources: [{group: "", resources: [secrets]}]}
- {level: Request, resources: [{group: "", resources: [configmaps]}], verbs: [create]}
- {level: RequestResponse, resources: [{group: "", resources: [configmaps]}], omitManagedFields: true}
- {level: Metadata, nonResourceURLs: [/version]}
"#;
    let (c, log) = cluster(rules).await;

    // who, what and when, in two stages
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}});
    let secrets = "/api/v1/namespaces/default/secrets";
    let request = post(secrets, &secret).header("user-agent", "tester/1").header("audit-id", "my-id");
    assert_eq!(c.send(request.header("x-forwarded-for", "192.0.2.7, nonsense")).await.code, 201);
    let told = log.of(&c, "create", secrets).await;
    let stages: Vec<&Value> = told.iter().map(|e| &e["stage"]).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseComplete"]);
    let end = &told[1];
    for (field, want) in [
        ("kind", json!("Event")),
        ("apiVersion", json!("audit.k8s.io/v1")),
        ("level", json!("Metadata")),
        ("auditID", json!("my-id")),
        ("user", json!({"username": "admin", "groups": ["system:masters", "system:authenticated"]})),
        ("sourceIPs", json!(["192.0.2.7", "127.0.0.1"])),
        ("userAgent", json!("tester/1")),
        ("objectRef", json!({"resource": "secrets", "namespace": "default", "name": "s", "apiVersion": "v1"})),
        ("responseStatus", json!({"metadata": {}, "code": 201})),
    ] {
        assert_eq!(end[field], want, "{field}");
    }
    assert_eq!(end["annotations"]["authorization.k8s.io/decision"], "allow");
    assert!(told[0]["objectRef"].get("name").is_none(), "not known yet: {}", told[0]);
    assert_eq!(told[0]["requestReceivedTimestamp"], told[0]["stageTimestamp"]);
    let time = end["stageTimestamp"].as_str().unwrap();
    assert!(time.len() == "2026-11-27T10:00:00.000000Z".len() && time.ends_with('Z'), "{time}");
    let text = std::fs::read_to_string(log.path()).unwrap();
    assert!(!text.contains("hunter2"), "secrets are not told");
    let order = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"my-id","stage":"RequestReceived","requestURI":"#;
    assert!(text.lines().any(|line| line.starts_with(order)), "the fields are in Kubernetes' order");

    // what was submitted, whatever its encoding
    let bytes = proto::encode(Schema::builtin(), &map("p")).unwrap();
    let request = Request::new("POST", MAPS).content_type(PROTOBUF).accept(PROTOBUF).body(bytes);
    assert_eq!(c.send(request).await.code, 201);
    let told = &log.of(&c, "create", MAPS).await[1];
    assert_eq!((&told["requestObject"]["data"], told.get("responseObject")), (&json!({"k": "v"}), None));
    assert_eq!(told["requestObject"]["kind"], "ConfigMap");

    // and what was answered
    let uri = format!("{MAPS}/p");
    let patch = Request::new("PATCH", &uri).content_type(MERGE).accept(PROTOBUF).body(r#"{"data":{"k":"w"}}"#);
    assert_eq!(c.send(patch).await.code, 200);
    let told = &log.of(&c, "patch", &uri).await[1];
    assert_eq!(
        (&told["requestObject"], &told["responseObject"]["data"]["k"]),
        (&json!({"data": {"k": "w"}}), &json!("w"))
    );
    assert!(told["responseObject"]["metadata"].get("managedFields").is_none(), "{told}");
    let delete = Request::new("DELETE", &uri).content_type(JSON).body(r#"{"gracePeriodSeconds":0}"#);
    assert_eq!(c.send(delete).await.code, 200);
    let told = &log.of(&c, "delete", &uri).await[1];
    assert_eq!(told["requestObject"]["gracePeriodSeconds"], 0);
    assert_eq!(told["responseObject"]["kind"], "Status");

    // failures
    assert_eq!(c.send(Request::new("GET", &uri)).await.code, 404);
    let told = &log.of(&c, "get", &uri).await[1];
    let status = &told["responseStatus"];
    assert_eq!(
        (&status["status"], &status["reason"], &status["code"]),
        (&json!("Failure"), &json!("NotFound"), &json!(404))
    );
    assert_eq!(status["details"], json!({"name": "p", "kind": "configmaps"}));
    assert_eq!(told["responseObject"]["message"], "configmaps \"p\" not found");

    // paths, and what nobody wants to know
    assert_eq!(c.send(Request::new("GET", "/version")).await.code, 200);
    assert_eq!(log.of(&c, "get", "/version").await.len(), 2);
    c.send(Request::new("GET", "/healthz")).await;
    assert!(log.of(&c, "get", "/healthz").await.is_empty());
    c.send(Request::new("GET", MAPS).from(user("quiet"))).await;
    assert!(log.of(&c, "list", MAPS).await.is_empty());
    let metrics = c.send(Request::new("GET", "/metrics")).await;
    let metrics = String::from_utf8_lossy(&metrics.bytes).into_owned();
    assert!(metrics.contains("apiserver_audit_error_total{plugin=\"log\"} 0\n"), "{metrics}");
    assert!(!metrics.contains("apiserver_audit_event_total 0\n"));
}

#[tokio::test]
async fn watches_are_told_of_when_they_begin_and_when_they_end() {
    let (c, log) = cluster("omitStages: [RequestReceived]\nrules: [{level: Metadata}]").await;
    let uri = format!("{MAPS}?watch=1");
    let stages = async || -> Vec<String> {
        log.of(&c, "watch", &uri).await.iter().map(|e| e["stage"].as_str().unwrap().to_owned()).collect()
    };
    let mut body = c.open(Request::new("GET", &uri)).await.into_body();
    assert_eq!(stages().await, ["ResponseStarted"]);
    c.create(MAPS, &map("w")).await;
    body.frame().await.unwrap().unwrap();
    assert_eq!(stages().await, ["ResponseStarted"], "it goes on");
    drop(body);
    assert_eq!(stages().await, ["ResponseStarted", "ResponseComplete"]);
    assert_eq!(log.of(&c, "watch", &uri).await[1]["responseStatus"]["code"], 200);
}

#[tokio::test]
async fn refusals_and_disguises_are_told_of() {
    let (c, log) = cluster("omitStages: [RequestReceived]\nrules: [{level: Metadata}]").await;
    // no rights
    assert_eq!(c.send(Request::new("GET", MAPS).from(user("jane"))).await.code, 403);
    let told = &log.of(&c, "list", MAPS).await[0];
    assert_eq!(told["user"]["username"], "jane");
    assert_eq!(
        told["annotations"],
        json!({"authorization.k8s.io/decision": "forbid", "authorization.k8s.io/reason": ""})
    );
    assert_eq!(
        (&told["responseStatus"]["reason"], &told["responseStatus"]["code"]),
        (&json!("Forbidden"), &json!(403))
    );
    // nobody's token
    let secrets = "/api/v1/secrets";
    let request = Request::new("GET", secrets).from(None).header("authorization", "Bearer nonsense");
    assert_eq!(c.send(request).await.code, 401);
    let told = log.of(&c, "list", secrets).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["stage"], &told[0]["user"]), (&json!("ResponseStarted"), &json!({})));
    assert_eq!(told[0]["responseStatus"]["message"], "Authentication failed, attempted: bearer");
    assert_eq!(told[0]["responseStatus"]["code"], 401);
    // somebody else
    let request =
        Request::new("GET", "/api/v1/pods").header("impersonate-user", "jane").header("impersonate-group", "dev");
    assert_eq!(c.send(request).await.code, 403);
    let told = &log.of(&c, "list", "/api/v1/pods").await[0];
    assert_eq!(told["user"]["username"], "admin");
    let jane = json!({"username": "jane", "groups": ["dev", "system:authenticated"]});
    assert_eq!(told["impersonatedUser"], jane);
    // rights that come from somewhere
    let role = json!({"metadata": {"name": "reader"}, "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]});
    c.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let binding = json!({"metadata": {"name": "readers"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    c.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    assert_eq!(c.send(Request::new("GET", "/api/v1/nodes").from(user("jane"))).await.code, 200);
    let told = &log.of(&c, "list", "/api/v1/nodes").await[0];
    let reason = told["annotations"]["authorization.k8s.io/reason"].as_str().unwrap();
    assert!(reason.contains("readers") && reason.contains("reader"), "{reason}");
}

#[tokio::test]
async fn policies_tell_what_they_find() {
    let (c, log) = cluster("omitStages: [RequestReceived]\nrules: [{level: Metadata, verbs: [create]}]").await;
    let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]});
    let policy = json!({"metadata": {"name": "small"}, "spec": {"matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "true"}, {"expression": "size(object.data) < 2", "message": "too many"}],
        "auditAnnotations": [{"key": "size", "valueExpression": "string(size(object.data))"}]}});
    let api = "/apis/admissionregistration.k8s.io/v1";
    c.create(&format!("{api}/validatingadmissionpolicies"), &policy).await;
    let binding = json!({"metadata": {"name": "watched"}, "spec": {"policyName": "small", "validationActions": ["Audit", "Warn"]}});
    c.create(&format!("{api}/validatingadmissionpolicybindings"), &binding).await;
    let object = json!({"metadata": {"name": "large"}, "data": {"a": "1", "b": "2"}});
    let answer = c.send(post(MAPS, &object)).await;
    assert_eq!((answer.code, answer.warnings().len()), (201, 1));
    let told = &log.of(&c, "create", MAPS).await[0];
    assert_eq!(told["annotations"]["small/size"], "2");
    let found = told["annotations"]["validation.policy.admission.k8s.io/validation_failure"].as_str().unwrap();
    let found: Value = serde_json::from_str(found).unwrap();
    let want = json!([{"message": "too many", "policy": "small", "binding": "watched", "expressionIndex": 1, "validationActions": ["Audit", "Warn"]}]);
    assert_eq!(found, want);
    // what is in order has no failure
    assert_eq!(c.send(post(MAPS, &map("little"))).await.code, 201);
    let told = log.of(&c, "create", MAPS).await;
    let annotations = &told[1]["annotations"];
    assert_eq!(annotations["small/size"], "1");
    assert!(annotations.get("validation.policy.admission.k8s.io/validation_failure").is_none());
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nobody() {
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: RequestResponse}]";
    let c = Cluster::start_audited(Audit::open(policy, options(Path::new("/dev/full"))).unwrap()).await;
    for i in 0..20 {
        c.create(MAPS, &map(&format!("m{i}"))).await;
    }
    c.api.flush_audit(Duration::from_secs(10)).await;
    let metrics = c.send(Request::new("GET", "/metrics").from(admin())).await;
    let metrics = String::from_utf8_lossy(&metrics.bytes).into_owned();
    let failed = metrics.lines().find_map(|l| l.strip_prefix("apiserver_audit_error_total{plugin=\"log\"} ")).unwrap();
    assert!(failed.parse::<u64>().unwrap() >= 40, "{failed}");
    assert!(metrics.contains("apiserver_audit_requests_rejected_total 0\n"));
}
