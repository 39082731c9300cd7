//! Subresources behind which somebody else answers: see [`crate::proxy`].

use crate::Server;
use crate::admission::{self, Cluster};
use crate::body::Body;
use crate::proxy::{self, Attachment};
use crate::query::Query;
use crate::request_info::RequestInfo;
use edge_api::selector::LabelSelector;
use edge_api::{GroupResource, Object, Status, UserInfo};
use edge_registry::{Attributes, Operation, ResourceInfo};
use http::{Request, Response};
use serde_json::Value;

/// Which of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Connection {
    Log,
    Attach(Attachment),
    PodProxy,
    ServiceProxy,
    NodeProxy,
}

impl Connection {
    pub(super) fn of(info: &RequestInfo) -> Option<Self> {
        if !info.group.is_empty() {
            return None;
        }
        match (info.resource.as_str(), info.subresource.as_str()) {
            ("pods", "log") => Some(Self::Log),
            ("pods", "exec") => Some(Self::Attach(Attachment::Exec)),
            ("pods", "attach") => Some(Self::Attach(Attachment::Attach)),
            ("pods", "portforward") => Some(Self::Attach(Attachment::PortForward)),
            ("pods", "proxy") => Some(Self::PodProxy),
            ("services", "proxy") => Some(Self::ServiceProxy),
            ("nodes", "proxy") => Some(Self::NodeProxy),
            _ => None,
        }
    }
}

/// Asks policies and webhooks about a connection. They are shown what was asked for as the options that Kubernetes makes of it; these they
/// may refuse, but not change.
///
/// # Errors
/// The first refusal.
pub(super) async fn admit(
    server: &Server,
    user: &UserInfo,
    info: &RequestInfo,
    row: &ResourceInfo,
    query: &Query<'_>,
) -> Result<(), Status> {
    let is_asked = server.policies().is_some() || server.webhooks().is_some();
    // logs are read
    let Some(sub) = row.subresource(&info.subresource).filter(|s| is_asked && s.name != "log") else { return Ok(()) };
    let a = Attributes {
        operation: Operation::Connect,
        info: row,
        subresource: &info.subresource,
        namespace: if row.namespaced { &info.namespace } else { "" },
        name: &info.name,
        user,
        dry_run: false,
        old: None,
        field_manager: "",
        deletion: None,
    };
    let mut options = options(&sub.kind, &info.rest, query);
    admission::mutate(server, &a, &mut options).await?;
    admission::validate(server, &a, Some(&options)).await
}

/// `PodExecOptions` and the like.
fn options(kind: &str, rest: &str, query: &Query<'_>) -> Object {
    let mut fields = serde_json::Map::from_iter([("apiVersion".into(), "v1".into()), ("kind".into(), kind.into())]);
    if kind.ends_with("ProxyOptions") {
        fields.insert("path".into(), format!("/{rest}").into());
    } else if kind == "PodPortForwardOptions" {
        let ports = query.all("ports").flat_map(|p| p.split(',')).filter_map(|p| p.trim().parse::<u16>().ok());
        let ports: Vec<Value> = ports.map(Value::from).collect();
        if !ports.is_empty() {
            fields.insert("ports".into(), ports.into());
        }
    } else {
        for name in ["stdin", "stdout", "stderr", "tty"] {
            if query.flag(name) {
                fields.insert(name.into(), true.into());
            }
        }
        if let Some(container) = query.get("container").filter(|c| !c.is_empty()) {
            fields.insert("container".into(), container.into());
        }
        let command: Vec<Value> = query.all("command").map(Value::from).collect();
        if !command.is_empty() {
            fields.insert("command".into(), command.into());
        }
    }
    Object::from_value(Value::Object(fields)).unwrap_or_default()
}

pub(super) async fn connect(
    server: &Server,
    user: &UserInfo,
    info: &RequestInfo,
    connection: Connection,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let (dialer, stop) = (server.dialer.as_ref(), &server.shutdown);
    match connection {
        Connection::Log => {
            if info.verb != "get" {
                return Err(Status::method_not_supported(&info.group_resource(), &info.verb));
            }
            let pod = object(server, "pods", &info.namespace, &info.name)?;
            proxy::logs(dialer, stop, &pod, request).await
        }
        Connection::Attach(how) => {
            may_create(server, user, info)?;
            let pod = object(server, "pods", &info.namespace, &info.name)?;
            proxy::attach(dialer, stop, &pod, how, request).await
        }
        Connection::NodeProxy => {
            let target = proxy::Target::parse(&info.name)
                .ok_or_else(|| Status::bad_request(format!("invalid node request {:?}", info.name)))?;
            let node = object(server, "nodes", "", target.name)?;
            let kubelet = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(|p| p.as_u64());
            if !target.port.is_empty() && target.port.parse::<u64>().ok() != kubelet {
                return Err(Status::bad_request(format!("port {} of a node is not its kubelet's", target.port)));
            }
            proxy::node(dialer, stop, node.name(), &info.rest, request).await
        }
        Connection::PodProxy | Connection::ServiceProxy => {
            let target = proxy::Target::parse(&info.name)
                .ok_or_else(|| Status::bad_request(format!("invalid {} request {:?}", info.resource, info.name)))?;
            if let Some(redirect) = proxy::redirect_to_root(&info.rest, &request) {
                return Ok(redirect);
            }
            if matches!(connection, Connection::PodProxy) {
                let pod = object(server, "pods", &info.namespace, target.name)?;
                return proxy::pod(stop, &pod, &target, &info.rest, request).await;
            }
            let service = object(server, "services", &info.namespace, target.name)?;
            let selector = LabelSelector::from_map([("kubernetes.io/service-name", target.name)]);
            let slices = server.stored_objects("discovery.k8s.io", "endpointslices", &info.namespace, "").await?;
            let slices: Vec<Object> = slices.into_iter().filter(|s| selector.matches(|k| s.label(k))).collect();
            proxy::service(stop, &service, &slices, &target, &info.rest, request).await
        }
    }
}

/// WebSockets are opened with GET, whose verb is `get`; what they do is what `create` is needed for.
fn may_create(server: &Server, user: &UserInfo, info: &RequestInfo) -> Result<(), Status> {
    if info.verb == "create" {
        return Ok(());
    }
    let create = RequestInfo { verb: "create".into(), ..info.clone() };
    server.access.authorize(user, &create).map(|_| ())
}

fn object(server: &Server, resource: &str, namespace: &str, name: &str) -> Result<Object, Status> {
    server
        .stored_object("", resource, namespace, name)
        .ok_or_else(|| Status::not_found(&GroupResource::new("", resource), name))
}
