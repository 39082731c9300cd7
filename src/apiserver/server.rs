//! The server itself: what a request can reach, and the two ways in.

use crate::access::Access;
use crate::admission::{AdmissionControl, HookMetrics, Policies, Webhooks};
use crate::agents::{self, Routes, Tunnels};
use crate::aggregation::{self, Aggregation, FrontProxy};
use crate::audit::Audit;
use crate::body::Body;
use crate::chain::{self, Origin};
use crate::definitions::{Definitions, WebhookConverter};
use crate::discovery::{Offer, RemoteVersion, Row, Rows};
use crate::health::Component;
use crate::in_flight::Limits;
use crate::metrics::{Metrics, ObjectCount};
use crate::outgoing::Outgoing;
use crate::proxy::NodeDialer;
use crate::request_info::RequestInfo;
use crate::rights::Rights;
use crate::usage::{self, Usage};
use crate::{Options, bootstrap, listener};
use edge_api::{Object, Status, UserInfo};
use edge_auth::{Authenticator, Lookup, NodeAuthorizer, Rbac};
use edge_registry::{EventKind, ListOptions, Registry, ResourceInfo, Target, WatchOptions};
use futures::StreamExt;
use http::{Request, Response};
use parking_lot::RwLock;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// What a server is made of.
pub struct Parts {
    /// The cluster's objects.
    pub registry: Arc<Registry>,
    /// Tells whose bearer tokens are, and mints those of service accounts.
    pub authenticator: Arc<Authenticator>,
    /// The way to the kubelets of this process; those of other machines open a tunnel to the server.
    pub dialer: Arc<dyn NodeDialer>,
    /// Ends listeners, watches and proxied connections when it is cancelled.
    pub shutdown: CancellationToken,
    /// The control plane's other parts, which `componentstatuses` shows.
    pub components: Vec<Component>,
    /// The metrics of those parts, in Prometheus' text format.
    pub other_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// What extension API servers know this one by.
    pub front_proxy: FrontProxy,
    /// Who is told what about requests; nobody, where there is none.
    pub audit: Option<Arc<Audit>>,
    /// Facts and limits.
    pub options: Options,
}

/// The API server. Clones are handles of the same one.
#[derive(Clone)]
pub struct ApiServer(Arc<Server>);

/// What handlers see of the server.
pub(crate) struct Server {
    pub(crate) registry: Arc<Registry>,
    pub(crate) access: Access,
    pub(crate) dialer: Arc<dyn NodeDialer>,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) components: Vec<Component>,
    pub(crate) other_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    pub(crate) options: Options,
    pub(crate) metrics: Arc<Metrics>,
    /// What nodes and pods use.
    pub(crate) usage: Usage,
    /// The policies that writes must satisfy, compiled.
    pub(crate) policies: Policies,
    /// Other API servers behind this one.
    pub(crate) aggregation: Aggregation,
    pub(crate) audit: Option<Arc<Audit>>,
    /// The webhooks that writes are shown to.
    pub(crate) webhooks: Webhooks,
    /// Calls of those.
    pub(crate) hook_metrics: HookMetrics,
    /// The way to webhooks.
    pub(crate) outgoing: Outgoing,
    /// Where the server is reached at this moment.
    pub(crate) advertised: RwLock<IpAddr>,
    rights: OnceLock<Rights>,
    ready: AtomicBool,
}

/// The other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Whom the client certificate names, if one was shown (and verified), and until when it holds: connections may live
    /// longer than certificates.
    pub(crate) certificate_user: Option<(UserInfo, SystemTime)>,
}

impl ApiServer {
    /// Puts a server together and becomes the registry's admission control. Only `system:masters` may do anything until
    /// [`ApiServer::bootstrap`] has run.
    pub fn new(parts: Parts) -> Self {
        if !parts.options.metrics_api {
            parts.registry.catalog().remove_group(usage::GROUP);
        }
        let tunnels = Arc::new(Tunnels::default());
        let access = Access { authenticator: parts.authenticator, rbac: Rbac::new(), nodes: NodeAuthorizer::default() };
        let server = Arc::new_cyclic(|server| Server {
            access,
            registry: parts.registry,
            dialer: Arc::new(Routes { local: parts.dialer, tunnels: tunnels.clone() }),
            tunnels,
            shutdown: parts.shutdown,
            components: parts.components,
            other_metrics: parts.other_metrics,
            advertised: RwLock::new(parts.options.advertise_address),
            options: parts.options,
            metrics: Arc::new(Metrics::new()),
            usage: Usage::default(),
            policies: Policies::default(),
            aggregation: Aggregation::new(parts.front_proxy),
            audit: parts.audit,
            webhooks: Webhooks::default(),
            hook_metrics: HookMetrics::default(),
            outgoing: Outgoing::new(server.clone()),
            rights: OnceLock::new(),
            ready: AtomicBool::new(false),
        });
        server.registry.set_admission(Arc::new(AdmissionControl::new(&server)));
        server.registry.set_converter(Arc::new(WebhookConverter::new(&server)));
        Self(server)
    }

    /// Makes the objects that every cluster has (namespaces, the Services `kubernetes` and `kube-dns`, RBAC policy,
    /// priority classes), or brings them up to date, and starts following the RBAC objects. To be called once at each
    /// start, before anything else writes.
    ///
    /// # Errors
    /// The first object that could not be read or written.
    pub async fn bootstrap(&self) -> Result<(), Status> {
        bootstrap::run(&self.0).await?;
        let rights = Rights::start(&self.0).await?;
        // a second call finds the first one's task at work
        if self.0.rights.set(rights).is_ok() {
            tokio::spawn(Definitions::new(self.0.clone()).follow());
            tokio::spawn(aggregation::Follower::new(self.0.clone()).follow());
        }
        self.0.ready.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the audit log, if there is one, is written and sent, or the time is up.
    pub async fn flush_audit(&self, patience: Duration) {
        if let Some(audit) = &self.0.audit {
            audit.flush(patience).await;
        }
    }

    /// Tells the cluster that the server is reached at another address than before: the endpoints of the Service
    /// `kubernetes` follow.
    ///
    /// # Errors
    /// When the endpoints could not be written.
    pub async fn advertise(&self, address: IpAddr) -> Result<(), Status> {
        if std::mem::replace(&mut *self.0.advertised.write(), address) == address {
            return Ok(());
        }
        bootstrap::endpoints(&self.0).await
    }

    /// Says to the other servers of the store, if it can have any, that this one lives, and keeps the endpoints of the
    /// Service `kubernetes` to those that do, for ever.
    pub async fn keep_endpoints(&self) {
        let Some(mut servers) = self.0.registry.servers() else { return };
        let mut announced = None;
        loop {
            let own = *self.0.advertised.read();
            let moved = announced.is_some_and(|known| known != own);
            let work = async {
                if let Some(old) = announced.filter(|_| moved) {
                    servers.withdraw(old).await?;
                }
                if moved || servers.is_due() {
                    servers.announce(own).await?;
                    announced = Some(own);
                }
                bootstrap::endpoints(&self.0).await
            };
            if let Err(error) = work.await {
                tracing::warn!(error = error.message, "the endpoints of the servers are not up to date");
            }
            servers.changed().await;
        }
    }

    /// Says to the other servers that this one goes.
    ///
    /// # Errors
    /// When the store cannot be written; then they find out after 15 s.
    pub async fn withdraw(&self) -> Result<(), Status> {
        let own = *self.0.advertised.read();
        match self.0.registry.servers() {
            Some(servers) => servers.withdraw(own).await,
            None => Ok(()),
        }
    }

    /// Binds the name of this machine's node to its password, so that no other machine can join under that name.
    ///
    /// # Errors
    /// 403 when the name is bound to another password already.
    pub async fn claim_node(&self, node: &str, password: &str) -> Result<(), Status> {
        agents::claim(&self.0, node, password, true).await
    }

    /// Answers a request of a component of this process, acting as `user` (`None`: whom the request's own credentials
    /// name). It passes the same chain as any other, authorization included.
    pub async fn call(&self, user: Option<UserInfo>, request: Request<Body>) -> Response<Body> {
        chain::handle(&self.0, Origin::Component(user), request).await
    }

    /// Serves TLS clients on a listening socket until the shutdown token is cancelled, then lets open requests finish
    /// (for a few seconds at most). `tls` must ask for client certificates without demanding them, and offer `h2` and
    /// `http/1.1`; see `edge_pki::server_config`.
    ///
    /// # Errors
    /// Only when the listener cannot be used at all; what clients do is logged.
    pub async fn serve(&self, socket: std::net::TcpListener, tls: Arc<rustls::ServerConfig>) -> io::Result<()> {
        listener::serve(self.0.clone(), socket, tls).await
    }
}

impl Server {
    /// The row of the resource that a request names.
    pub(crate) fn row(&self, info: &RequestInfo) -> Option<Arc<ResourceInfo>> {
        self.registry.catalog().resource(&info.group, &info.version, &info.resource)
    }

    /// The same; where several servers share a store, another one may have defined the resource a moment ago.
    ///
    /// # Errors
    /// 404, and when the store cannot be asked.
    pub(crate) async fn row_as_of_now(&self, info: &RequestInfo) -> Result<Arc<ResourceInfo>, Status> {
        if let Some(row) = self.row(info) {
            return Ok(row);
        }
        if info.group.contains('.') {
            self.registry.catch_up().await?;
        }
        self.row(info).ok_or_else(Status::unknown_path)
    }

    /// Whether a request's resource exists.
    pub(crate) fn serves(&self, info: &RequestInfo) -> bool {
        info.is_resource && self.row(info).is_some()
    }

    /// The rows as discovery shows them, custom resources among them.
    pub(crate) fn rows(&self) -> Rows {
        self.registry.catalog().rows().iter().map(Row::from).collect()
    }

    /// What discovery shows: the rows, and what other servers answer for.
    pub(crate) fn offer(&self) -> Offer {
        let remotes = self.aggregation.remotes();
        let remotes = remotes.iter().map(|remote| RemoteVersion {
            group: remote.spec.group.clone(),
            version: remote.spec.version.clone(),
            group_priority: remote.spec.group_priority_minimum,
            version_priority: remote.spec.version_priority,
            resources: remote.resources(),
        });
        Offer::new(self.rows(), remotes.collect())
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { read_only: self.options.max_read_only_in_flight, mutating: self.options.max_mutating_in_flight }
    }

    /// Where clients reach the server, `host:port`.
    pub(crate) fn address(&self) -> String {
        SocketAddr::new(*self.advertised.read(), self.options.advertise_port).to_string()
    }

    /// Whether the bootstrap is done.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Returns when all visible changes of RBAC objects hold.
    pub(crate) async fn settle_rights(&self) {
        if let Some(rights) = self.rights.get() {
            rights.settle().await;
        }
    }

    /// A stored object; `None` when there is none.
    pub(crate) fn stored_object(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Object> {
        let row = self.registry.catalog().preferred(group, resource)?;
        let target = Target { info: &row, namespace, name, subresource: "" };
        self.registry.get(&target).ok()?.object().ok()
    }

    /// The stored objects of a namespace, or (with the empty one) of the cluster: those that may have a text in their JSON.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) async fn stored_objects(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        text: &str,
    ) -> Result<Vec<Object>, Status> {
        let Some(row) = self.registry.catalog().preferred(group, resource) else { return Ok(Vec::new()) };
        let target = Target { info: &row, namespace, name: "", subresource: "" };
        let list = self.registry.list(&target, &ListOptions::default()).await?;
        list.items.iter().filter(|stored| stored.may_have(text)).map(edge_registry::Stored::object).collect()
    }

    /// Returns when a core object exists.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub(crate) async fn appears(&self, resource: &str, namespace: &str, name: &str) -> Result<(), Status> {
        let Some(row) = self.registry.catalog().preferred("", resource) else { return Ok(()) };
        let target = Target { info: &row, namespace, name, subresource: "" };
        let mut events = self.registry.watch(&target, &WatchOptions::default()).await?;
        while let Some(event) = events.next().await {
            if event.kind == EventKind::Added {
                break;
            }
        }
        Ok(())
    }

    /// How many objects of each resource there are.
    pub(crate) async fn object_counts(&self) -> Vec<ObjectCount> {
        let mut counts = Vec::new();
        for row in self.registry.catalog().rows().iter().filter(|r| r.is_stored() && r.is_stored_version()) {
            let target = Target { info: row, namespace: "", name: "", subresource: "" };
            if let Ok(list) = self.registry.list(&target, &ListOptions::default()).await {
                counts.push(ObjectCount { resource: row.group_resource().to_string(), count: list.items.len() });
            }
        }
        counts
    }
}

impl Lookup for Server {
    fn uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String> {
        self.stored_object("", resource, namespace, name).map(|o| o.uid().to_owned())
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<serde_json::Value> {
        self.stored_object("", "secrets", namespace, name).map(Object::into_value)
    }
}
