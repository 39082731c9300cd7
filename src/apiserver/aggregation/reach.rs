//! The way to an extension API server: from the Service to one of its endpoints, by TLS with the front proxy's certificate.
//!
//! Connections are kept for the next request to the same endpoint. Each request goes to what is an endpoint at that moment, so
//! nobody has to look after those of endpoints that are gone; they are closed when they have been idle for long enough.

use super::spec::{ServiceRef, Spec};
use super::{FrontProxy, Remote};
use crate::Server;
use crate::body::Body;
use crate::dial::{self, Dialer, KeptClient, Schemes};
use crate::outgoing;
use crate::proxy::{self, Onward};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use edge_api::selector::LabelSelector;
use edge_api::{Object, Status, UserInfo};
use edge_pki::{SharedIdentity, Trust};
use edge_registry::{ListOptions, Stored, Target};
use http::header::{ACCEPT, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What may stand in the name of a header (RFC 9110's `token`), but for `%`.
const TOKEN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

impl ServiceRef {
    /// The name that the server's certificate has to have.
    pub(super) fn host(&self) -> String {
        format!("{}.{}.svc", self.name, self.namespace)
    }
}

/// TLS as an APIService wants it.
///
/// # Errors
/// What is wrong with its authorities.
fn tls(spec: &Spec, front_proxy: &FrontProxy) -> Result<rustls::ClientConfig, String> {
    let trust = if spec.insecure {
        Trust::Nobody
    } else {
        let pem = STANDARD.decode(&spec.ca_bundle).map_err(|e| e.to_string())?;
        outgoing::trust(&pem)?
    };
    edge_pki::outgoing_config(trust, Some(&front_proxy.identity)).map_err(|e| e.to_string())
}

/// The connections to the server behind one APIService; another `spec` has others.
pub(super) struct Connections {
    tls: rustls::ClientConfig,
    /// What the server has to be called.
    name: ServerName<'static>,
    identity: SharedIdentity,
    stop: CancellationToken,
    /// With the generation of the identity that they have shown.
    kept: Mutex<Option<(u64, KeptClient<Body>)>>,
}

/// Over which connection a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// One that is there, if there is one.
    Kept,
    /// A new one, whose handshake has to succeed now.
    New,
}

impl Connections {
    /// None yet.
    ///
    /// # Errors
    /// What is wrong with the APIService's authorities, or its Service's name.
    pub(super) fn new(spec: &Spec, front_proxy: &FrontProxy, stop: CancellationToken) -> Result<Self, String> {
        let service = spec.service.as_ref().ok_or("there is no service")?;
        let name = ServerName::try_from(service.host()).map_err(|e| e.to_string())?;
        let tls = tls(spec, front_proxy)?;
        Ok(Self { tls, name, identity: front_proxy.identity.clone(), stop, kept: Mutex::default() })
    }

    /// Those that are kept are not used any more.
    pub(super) fn forget(&self) {
        *self.kept.lock() = None;
    }

    fn client(&self, by: By) -> KeptClient<Body> {
        if by == By::New {
            return self.connect(0);
        }
        let generation = self.identity.generation();
        let mut kept = self.kept.lock();
        if let Some((_, client)) = kept.as_ref().filter(|(of, _)| *of == generation) {
            return client.clone();
        }
        let client = self.connect(dial::KEPT);
        *kept = Some((generation, client.clone()));
        client
    }

    fn connect(&self, most: usize) -> KeptClient<Body> {
        let mut tls = self.tls.clone();
        // the other side knows by a resumed session who this was, not who it is
        tls.resumption = Resumption::default();
        dial::client(Dialer::of_names(), (tls, Schemes::Https), Some(self.name.clone()), most, self.stop.clone())
    }
}

/// The EndpointSlices of a Service.
///
/// # Errors
/// When they cannot be read.
pub(super) async fn slices(server: &Server, service: &ServiceRef) -> Result<Vec<Object>, Status> {
    let Some(row) = server.registry.catalog().preferred("discovery.k8s.io", "endpointslices") else {
        return Ok(Vec::new());
    };
    let target = Target { info: &row, namespace: &service.namespace, name: "", subresource: "" };
    // as this server knows them, without asking anybody
    let options =
        ListOptions { labels: of_service(&service.name), resource_version: "0".into(), ..ListOptions::default() };
    server.registry.list(&target, &options).await?.items.iter().map(Stored::object).collect()
}

/// Selects the EndpointSlices of a Service.
pub(super) fn of_service(name: &str) -> LabelSelector {
    LabelSelector::from_map([("kubernetes.io/service-name", name)])
}

/// Where the server is at this moment, as the authority of a URL: one of its endpoints, or a name outside of the cluster.
async fn resolve(server: &Server, to: &ServiceRef) -> Result<String, String> {
    let port = u16::try_from(to.port).map_err(|_| format!("{} is no port", to.port))?;
    let service = server.stored_object("", "services", &to.namespace, &to.name);
    let service = service.ok_or_else(|| format!("service {:?} not found", to.name))?;
    if service.str_at("/spec/type") == "ExternalName" {
        return Ok(format!("{}:{port}", service.str_at("/spec/externalName")));
    }
    let slices = slices(server, to).await.map_err(|e| e.message)?;
    let endpoint = proxy::ready_endpoint(&service, &slices, port);
    endpoint.map(|one| one.to_string()).ok_or_else(|| format!("no endpoints available for service {:?}", to.name))
}

/// Sends a request on behalf of somebody.
///
/// # Errors
/// 503 where the server cannot be talked to.
pub(super) async fn send(
    server: &Server,
    remote: &Remote,
    user: &UserInfo,
    request: Request<Body>,
    by: By,
) -> Result<Response<Body>, Status> {
    // the words of kube-apiserver's proxy
    let what = "service";
    let failed = |e: &str| proxy::unreachable(what, &e);
    let identity = identity(user)?;
    let service = remote.spec.service.as_ref().ok_or_else(|| failed("there is no service"))?;
    let connections = remote.connections.as_ref().map_err(|e| failed(e))?;
    let authority = resolve(server, service).await.map_err(|e| failed(&e))?;
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let uri = Uri::builder().scheme("https").authority(authority).path_and_query(path).build();
    let uri = uri.map_err(|e| Status::bad_request(format!("bad path: {e}")))?;
    let onward = Onward { uri, host: &service.host(), what, identity };
    let send = |request| async move { once_or_again(connections, request, by).await.map_err(|e| dial::root_cause(&e)) };
    proxy::relay(request, onward, &server.shutdown, send).await
}

/// Sends a request. The server may close a kept connection while the request is on its way: one that only reads is sent again then,
/// over a new connection; any other may have been done.
async fn once_or_again(
    connections: &Connections,
    request: Request<Body>,
    by: By,
) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
    let copy = reads_only(&request).then(|| {
        let mut copy = Request::new(Body::empty());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        copy
    });
    match (connections.client(by).request(request).await, copy) {
        (Err(error), Some(copy)) if by == By::Kept && !error.is_connect() => {
            connections.client(By::New).request(copy).await
        }
        (answer, _) => answer,
    }
}

fn reads_only(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request.body().is_end_stream()
        && !request.headers().contains_key(UPGRADE)
}

/// Asks for a JSON document.
///
/// # Errors
/// When that is no path.
pub(super) fn get(path: &str) -> Result<Request<Body>, String> {
    Request::get(path).header(ACCEPT, "application/json").body(Body::empty()).map_err(|e| e.to_string())
}

/// Reads a whole document of the server.
///
/// # Errors
/// Why it cannot be had, in words.
pub(super) async fn fetch(
    server: &Server,
    remote: &Remote,
    user: &UserInfo,
    request: Request<Body>,
    by: By,
    (limit, patience): (usize, Duration),
) -> Result<Response<Bytes>, String> {
    let whole = async {
        let response = send(server, remote, user, request, by).await.map_err(|e| e.message)?;
        let (parts, body) = response.into_parts();
        let body = body.into_bytes(limit).await.map_err(|_| format!("no answer of at most {limit} bytes"))?;
        Ok(Response::from_parts(parts, body))
    };
    tokio::time::timeout(patience, whole).await.unwrap_or_else(|_| Err("request timed out".to_owned()))
}

/// The headers that say who asks.
fn identity(user: &UserInfo) -> Result<HeaderMap, Status> {
    let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).map_err(Status::internal);
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("x-remote-user"), value(&user.username)?);
    if !user.uid.is_empty() {
        headers.insert(HeaderName::from_static("x-remote-uid"), value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append(HeaderName::from_static("x-remote-group"), value(group)?);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", utf8_percent_encode(key, TOKEN));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(Status::internal)?;
        for text in values {
            headers.append(&name, value(text)?);
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn who_asks_is_told_as_it_was_found_out() {
        let mut user = UserInfo::new("jané", ["dev", "ops"]);
        user.uid = "u-1".into();
        user.extra.insert("example.com/scopes %".into(), vec!["a".into(), "b".into()]);
        let headers = identity(&user).unwrap();
        let all = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().map(|v| String::from_utf8(v.as_bytes().to_vec()).unwrap()).collect()
        };
        assert_eq!(all("x-remote-user"), ["jané"]);
        assert_eq!(all("x-remote-uid"), ["u-1"]);
        assert_eq!(all("x-remote-group"), ["dev", "ops", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2fscopes%20%25"), ["a", "b"]);
        assert!(identity(&UserInfo::new("a\nx-remote-group: system:masters", [""])).is_err());
    }
}
