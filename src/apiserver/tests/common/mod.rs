//! A whole API server over a fresh store, called in process.
#![allow(dead_code, reason = "each test binary uses its part")]
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use edge_api::UserInfo;
use edge_apiserver::{ApiServer, Audit, Body, Component, FrontProxy, NodeDialer, Options, Parts, Stream};
use edge_pki::{ClientName, ClusterPki, ServerNames, SharedIdentity};
use rustls::ServerConfig;
use serde_json::Value;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

pub(crate) const JSON: &str = "application/json";
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const JSON_PATCH: &str = "application/json-patch+json";
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(crate) const APPLY: &str = "application/apply-patch+yaml";
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A user in no group of note.
pub(crate) fn user(name: &str) -> Option<UserInfo> {
    Some(UserInfo::new(name, ["testers"]))
}

pub(crate) fn anonymous() -> Option<UserInfo> {
    Some(UserInfo::anonymous())
}

pub(crate) fn admin() -> Option<UserInfo> {
    Some(UserInfo::new("admin", [UserInfo::MASTERS]))
}

/// A request under construction; by the administrator unless told otherwise.
pub(crate) struct Request {
    user: Option<UserInfo>,
    builder: http::request::Builder,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self { user: admin(), builder: http::Request::builder().method(method).uri(path), body: Vec::new() }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    pub(crate) fn content_type(self, value: &str) -> Self {
        self.header("content-type", value)
    }

    pub(crate) fn accept(self, value: &str) -> Self {
        self.header("accept", value)
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn from(mut self, user: Option<UserInfo>) -> Self {
        self.user = user;
        self
    }
}

/// An answer that was read to its end.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    /// Asserts that it is a failure of this code and reason.
    #[track_caller]
    pub(crate) fn status(&self, code: u16, reason: &str) -> Value {
        let status = self.json();
        assert_eq!((self.code, status["reason"].as_str()), (code, Some(reason)), "{status}");
        assert_eq!((&status["kind"], &status["code"]), (&"Status".into(), &code.into()), "{status}");
        status
    }

    /// Asserts success.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert!((200..300).contains(&self.code), "{}: {}", self.code, String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.headers.get_all("warning").iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }
}

pub(crate) struct NoNode;

#[async_trait::async_trait]
impl NodeDialer for NoNode {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn Stream>> {
        Err(io::Error::new(io::ErrorKind::NotConnected, format!("node {node} is not connected")))
    }
}

/// A server with what a new cluster has, and the default service account that a controller would make.
pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    shutdown: CancellationToken,
    front_proxy: SharedIdentity,
    dir: tempfile::TempDir,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    /// The same with its state in a certain directory.
    pub(crate) async fn start_in(dir: tempfile::TempDir) -> Self {
        Self::start_with(dir, Arc::new(NoNode), true).await
    }

    /// One whose state is in the directory already.
    pub(crate) async fn start_again(dir: tempfile::TempDir) -> Self {
        Self::assemble(dir, Arc::new(NoNode), true, None).await
    }

    /// The same with an audit log.
    pub(crate) async fn start_audited(audit: Audit) -> Self {
        Self::assemble(tempfile::tempdir().unwrap(), Arc::new(NoNode), true, Some(Arc::new(audit))).await
    }

    /// The same with kubelets, or without the API of what they use.
    pub(crate) async fn start_with(dir: tempfile::TempDir, dialer: Arc<dyn NodeDialer>, metrics_api: bool) -> Self {
        let cluster = Self::assemble(dir, dialer, metrics_api, None).await;
        let account = serde_json::json!({"metadata": {"name": "default"}});
        cluster.create("/api/v1/namespaces/default/serviceaccounts", &account).await;
        cluster
    }

    async fn assemble(
        dir: tempfile::TempDir,
        dialer: Arc<dyn NodeDialer>,
        metrics_api: bool,
        audit: Option<Arc<Audit>>,
    ) -> Self {
        let storage = edge_storage::Lmdb::open(&dir.path().join("db")).unwrap();
        let options = edge_registry::Options {
            service_networks: vec![("10.43.0.0".parse().unwrap(), 16)],
            node_ports: 30000..=32767,
        };
        let registry = edge_registry::Registry::open(Arc::new(storage), options).await.unwrap();
        let key = edge_pki::ServiceAccountKey::load_or_create(&dir.path().join("service.key")).unwrap();
        let issuer = "https://kubernetes.default.svc.cluster.local".to_owned();
        let audiences = vec![issuer.clone()];
        let authenticator =
            edge_auth::Authenticator::new(Arc::new(key), edge_auth::AuthenticatorOptions { issuer, audiences });
        let shutdown = CancellationToken::new();
        let pki = ClusterPki::load_or_create(&dir.path().join("tls")).unwrap();
        let identity = SharedIdentity::new(&pki.front_proxy().unwrap()).unwrap();
        let front_proxy = FrontProxy {
            identity: identity.clone(),
            authority: pki.request_header_ca.pem().to_owned(),
            client_authority: pki.client_ca.pem().to_owned(),
        };
        let api = ApiServer::new(Parts {
            registry,
            authenticator: Arc::new(authenticator),
            dialer,
            shutdown: shutdown.clone(),
            components: vec![
                Component { name: "controller-manager", problem: Arc::new(|| None) },
                Component { name: "scheduler", problem: Arc::new(|| Some("it sleeps".into())) },
            ],
            other_metrics: Arc::new(|| "of_another_part 1\n".into()),
            front_proxy,
            audit,
            options: Options {
                git_version: "v1.36.0+edge1".into(),
                git_commit: String::new(),
                build_date: "2026-11-24T00:00:00Z".into(),
                advertise_address: "192.0.2.1".parse().unwrap(),
                advertise_port: 6443,
                service_ip: "10.43.0.1".parse().unwrap(),
                service_cidrs: vec!["10.43.0.0/16".into()],
                dns_ips: vec!["10.43.0.10".parse().unwrap()],
                local_storage: true,
                metrics_api,
                cluster_ca_pem: Bytes::from_static(b"-----BEGIN CERTIFICATE-----\n"),
                max_connections: 64,
                cluster_facts: Arc::default(),
                max_read_only_in_flight: 400,
                max_mutating_in_flight: 200,
            },
        });
        api.bootstrap().await.unwrap();
        Self { api, shutdown, front_proxy: identity, dir }
    }

    /// The front proxy shows another certificate from now on.
    pub(crate) fn renew_front_proxy(&self) {
        let pki = ClusterPki::load_or_create(&self.dir.path().join("tls")).unwrap();
        self.front_proxy.replace(&pki.front_proxy().unwrap()).unwrap();
    }

    /// A socket to serve on with its TLS, and the way to it for the administrator, in HTTP/1.1.
    pub(crate) fn listener(&self) -> (std::net::TcpListener, Arc<ServerConfig>, TlsConnector) {
        let pki = ClusterPki::load_or_create(&self.dir.path().join("tls")).unwrap();
        let names = ServerNames::new("cluster.local", &[Ipv4Addr::LOCALHOST.into()], &[]);
        let server = edge_pki::server_config(&pki.serving(&names).unwrap(), &pki.client_ca).unwrap();
        let admin = pki.client("admin", &ClientName::admin()).unwrap();
        let mut client = edge_pki::client_config(&pki.server_ca, Some(&admin)).unwrap();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        (socket, Arc::new(server), TlsConnector::from(Arc::new(client)))
    }

    /// Sends a request and gives back the answer with its body unread.
    pub(crate) async fn open(&self, request: Request) -> http::Response<Body> {
        self.api.call(request.user, request.builder.body(Body::from(request.body)).unwrap()).await
    }

    pub(crate) async fn send(&self, request: Request) -> Answer {
        let (parts, body) = self.open(request).await.into_parts();
        let bytes = body.into_bytes(usize::MAX).await.unwrap();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    #[track_caller]
    pub(crate) fn create<'a>(&'a self, path: &'a str, object: &'a Value) -> impl Future<Output = Value> + 'a {
        let request = Request::new("POST", path).content_type(JSON).body(object.to_string());
        async move {
            let answer = self.send(request).await;
            assert_eq!(answer.code, 201, "{path}: {}", String::from_utf8_lossy(&answer.bytes));
            answer.json()
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.send(Request::new("GET", path)).await.ok()
    }

    /// How many objects a collection holds, not counting what every namespace has.
    pub(crate) async fn count(&self, path: &str) -> usize {
        self.get(path).await["items"].as_array().unwrap().len()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
