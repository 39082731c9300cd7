//! Who may do what: bindings, impersonation, reviews, tokens, escalation; and what a new cluster has.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Cluster, JSON, Request, admin, user};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

async fn bind(c: &Cluster, role: &str, who: &str) {
    let binding = json!({
        "metadata": {"name": format!("{who}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": who, "apiGroup": "rbac.authorization.k8s.io"}],
    });
    c.create(&format!("{RBAC}/clusterrolebindings"), &binding).await;
}

fn post(path: &str, body: &Value) -> Request {
    Request::new("POST", path).content_type(JSON).body(body.to_string())
}

#[tokio::test]
async fn a_binding_holds_for_the_next_request() {
    let c = Cluster::start().await;
    c.create(
        &format!("{RBAC}/clusterroles"),
        &json!({"metadata": {"name": "maps"}, "rules": [
        {"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}]}),
    )
    .await;
    let read = || Request::new("GET", MAPS).from(user("jane"));
    for _ in 0..20 {
        c.send(read()).await.status(403, "Forbidden");
        bind(&c, "maps", "jane").await;
        assert_eq!(c.send(read()).await.code, 200);
        c.send(Request::new("DELETE", &format!("{RBAC}/clusterrolebindings/jane-maps"))).await.ok();
    }
}

#[tokio::test]
async fn impersonation_needs_the_right_and_changes_the_user() {
    let c = Cluster::start().await;
    let me = |as_whom: Option<&str>, by| {
        let r = post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).from(by);
        as_whom.map_or_else(
            || post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})),
            |w| r.header("impersonate-user", w),
        )
    };
    let v = c.send(me(Some("jane"), admin())).await.ok();
    assert_eq!(v["status"]["userInfo"]["username"], "jane");
    let status = c.send(me(Some("root"), user("jane"))).await.status(403, "Forbidden");
    assert_eq!(
        status["message"],
        "users \"root\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    c.send(Request::new("GET", MAPS).header("impersonate-user", "jane")).await.status(403, "Forbidden");
    c.send(Request::new("GET", MAPS).header("impersonate-group", "x")).await.status(500, "InternalError");
}

#[tokio::test]
async fn reviews_answer() {
    let c = Cluster::start().await;
    bind(&c, "view", "jane").await;
    let review = |verb: &str| json!({"spec": {"user": "jane", "resourceAttributes": {"namespace": "default", "verb": verb, "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let v = c.create(path, &review("delete")).await;
    assert_eq!(v["status"]["allowed"], false);
    c.send(post(path, &json!({"spec": {"user": "jane"}}))).await.status(422, "Invalid");
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let v = c
        .send(
            post(path, &json!({"spec": {"nonResourceAttributes": {"path": "/version", "verb": "get"}}}))
                .from(user("jane")),
        )
        .await
        .ok();
    assert_eq!(v["status"]["allowed"], true);
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let v = c.create(path, &json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(v["status"]["resourceRules"][0]["verbs"], json!(["*"]));
}

#[tokio::test]
async fn tokens_are_minted_bound_and_reviewed() {
    let c = Cluster::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = c
        .create(pods, &json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}))
        .await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let spec = json!({"spec": {"audiences": [], "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod["metadata"]["uid"]}}});
    let minted = c.create(accounts, &spec).await;
    let token = minted["status"]["token"].as_str().unwrap().to_owned();
    assert!(minted["status"]["expirationTimestamp"].is_string());
    let me = || {
        post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({}))
            .from(None)
            .header("authorization", &format!("Bearer {token}"))
    };
    let v = c.send(me()).await.ok();
    assert_eq!(v["status"]["userInfo"]["username"], "system:serviceaccount:default:default");
    assert_eq!(v["status"]["userInfo"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    let v = c.create("/apis/authentication.k8s.io/v1/tokenreviews", &json!({"spec": {"token": token}})).await;
    assert_eq!(v["status"]["authenticated"], true);
    c.send(Request::new("DELETE", &format!("{pods}/p?gracePeriodSeconds=0"))).await.ok();
    c.send(me()).await.status(401, "Unauthorized");
    c.send(post(accounts, &json!({"spec": {"expirationSeconds": 5}}))).await.status(422, "Invalid");
}

#[tokio::test]
async fn nobody_gives_what_he_does_not_have() {
    let c = Cluster::start().await;
    c.create(&format!("{RBAC}/clusterroles"), &json!({"metadata": {"name": "role-maker"}, "rules": [
        {"verbs": ["create"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"]}]})).await;
    bind(&c, "role-maker", "jane").await;
    let role = json!({"metadata": {"name": "more"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}]});
    let status = c.send(post(&format!("{RBAC}/clusterroles"), &role).from(user("jane"))).await.status(403, "Forbidden");
    assert!(
        status["message"].as_str().unwrap().contains("is attempting to grant RBAC permissions not currently held:\n"),
        "{status}"
    );
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]});
    c.send(post(&format!("{RBAC}/clusterrolebindings"), &binding).from(user("jane"))).await.status(403, "Forbidden");
}

#[tokio::test]
async fn a_new_cluster_is_furnished_and_a_second_start_changes_nothing() {
    let c = Cluster::start().await;
    for path in [
        "/api/v1/namespaces/kube-node-lease",
        "/api/v1/namespaces/default/endpoints/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
    ] {
        c.get(path).await;
    }
    assert_eq!(c.get("/api/v1/namespaces/default/services/kubernetes").await["spec"]["clusterIP"], "10.43.0.1");
    assert_eq!(c.get("/api/v1/namespaces/kube-system/services/kube-dns").await["spec"]["clusterIP"], "10.43.0.10");
    let before = c.get("/apis/rbac.authorization.k8s.io/v1/clusterroles").await;
    c.api.bootstrap().await.unwrap();
    assert_eq!(c.get("/apis/rbac.authorization.k8s.io/v1/clusterroles").await["items"], before["items"]);
    c.send(Request::new("DELETE", "/api/v1/namespaces/default")).await.status(403, "Forbidden");
}

#[tokio::test]
async fn discovery_health_and_documents_are_served() {
    let c = Cluster::start().await;
    assert_eq!(c.get("/version").await["minor"], "36");
    let form = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let a = c.send(Request::new("GET", "/apis").accept(&format!("{form},application/json"))).await;
    assert_eq!(
        (&a.headers["content-type"], &a.json()["kind"]),
        (&form.parse().unwrap(), &json!("APIGroupDiscoveryList"))
    );
    let etag = a.headers["etag"].to_str().unwrap().to_owned();
    let a = c.send(Request::new("GET", "/apis").accept(form).header("if-none-match", &etag)).await;
    assert_eq!((a.code, a.bytes.len()), (304, 0));
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping"] {
        assert_eq!(c.send(Request::new("GET", path).from(common::anonymous())).await.bytes, "ok", "{path}");
    }
    let index = c.get("/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert!(c.get(url).await["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    assert!(c.get("/openapi/v2").await["definitions"].is_object());
    let text = String::from_utf8(c.send(Request::new("GET", "/metrics")).await.bytes.to_vec()).unwrap();
    assert!(
        text.contains("apiserver_request_total{")
            && text.contains("apiserver_storage_objects{resource=\"namespaces\"} 4")
            && text.contains("of_another_part 1"),
        "{text}"
    );
    let components = c.get("/api/v1/componentstatuses").await;
    let told: Vec<_> =
        components["items"].as_array().unwrap().iter().map(|o| (&o["metadata"]["name"], &o["conditions"][0])).collect();
    let well = json!({"type": "Healthy", "status": "True", "message": "ok"});
    let ill = json!({"type": "Healthy", "status": "False", "message": "", "error": "it sleeps"});
    assert_eq!(told, [(&json!("controller-manager"), &well), (&json!("etcd-0"), &well), (&json!("scheduler"), &ill)]);
}
