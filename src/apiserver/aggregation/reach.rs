//! The way to an extension API server: from the Service to one of its endpoints, by TLS with the front proxy's certificate.

use super::spec::{ServiceRef, Spec};
use super::{FrontProxy, Remote};
use crate::Server;
use crate::body::Body;
use crate::proxy::{self, Onward, Stream};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use edge_api::selector::LabelSelector;
use edge_api::{Object, Status, UserInfo};
use edge_pki::Trust;
use edge_registry::{ListOptions, Stored, Target};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a connection may take to be there, its handshake included.
const DIAL: Duration = Duration::from_secs(10);

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
pub(super) fn tls(spec: &Spec, front_proxy: &FrontProxy) -> Result<Arc<rustls::ClientConfig>, String> {
    let trust = if spec.insecure {
        Trust::Nobody
    } else if spec.ca_bundle.is_empty() {
        // those of the machine
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Trust::Roots(roots)
    } else {
        let pem = STANDARD.decode(&spec.ca_bundle).map_err(|e| e.to_string())?;
        Trust::in_pem(&pem).map_err(|e| e.to_string())?
    };
    edge_pki::front_proxy_config(trust, &front_proxy.identity).map(Arc::new).map_err(|e| e.to_string())
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

/// Where the server is at this moment: one of its endpoints, or all addresses of a name outside of the cluster.
async fn resolve(server: &Server, to: &ServiceRef) -> Result<Vec<SocketAddr>, String> {
    let port = u16::try_from(to.port).map_err(|_| format!("{} is no port", to.port))?;
    let service = server.stored_object("", "services", &to.namespace, &to.name);
    let service = service.ok_or_else(|| format!("service {:?} not found", to.name))?;
    if service.str_at("/spec/type") == "ExternalName" {
        let name = service.str_at("/spec/externalName");
        let found = tokio::net::lookup_host((name, port)).await.map_err(|e| e.to_string())?;
        return Ok(found.collect());
    }
    let slices = slices(server, to).await.map_err(|e| e.message)?;
    let endpoint = proxy::ready_endpoint(&service, &slices, port);
    endpoint.map(|one| vec![one]).ok_or_else(|| format!("no endpoints available for service {:?}", to.name))
}

/// Opens a connection.
///
/// # Errors
/// Why there is none.
pub(super) async fn dial(server: &Server, remote: &Remote) -> Result<Box<dyn Stream>, String> {
    let service = remote.spec.service.as_ref().ok_or("there is no service")?;
    let config = remote.tls.clone()?;
    let dial = async {
        let addresses = resolve(server, service).await?;
        let name = ServerName::try_from(service.host()).map_err(|e| e.to_string())?;
        let socket = TcpStream::connect(addresses.as_slice()).await.map_err(|e| e.to_string())?;
        // both sides write whole messages
        socket.set_nodelay(true).map_err(|e| e.to_string())?;
        let stream = TlsConnector::from(config).connect(name, socket).await.map_err(|e| e.to_string())?;
        Ok(Box::new(stream) as Box<dyn Stream>)
    };
    tokio::time::timeout(DIAL, dial).await.unwrap_or_else(|_| Err("connection timed out".to_owned()))
}

/// Sends a request on behalf of somebody over a fresh connection.
///
/// # Errors
/// 503 where the server cannot be talked to.
pub(super) async fn send(
    server: &Server,
    remote: &Remote,
    user: &UserInfo,
    request: Request<Body>,
) -> Result<http::Response<Body>, Status> {
    // the words of kube-apiserver's proxy
    let what = "service";
    let identity = identity(user)?;
    let stream = dial(server, remote).await.map_err(|e| proxy::unreachable(what, &e))?;
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let uri: Uri = path.parse().map_err(|e| Status::bad_request(format!("bad path: {e}")))?;
    let host = remote.spec.service.as_ref().map(ServiceRef::host).unwrap_or_default();
    let onward = Onward { uri, host: &host, what, identity };
    proxy::exchange(stream, request, onward, &server.shutdown).await
}

/// Reads a whole document of the server.
///
/// # Errors
/// Why it cannot be had, in words.
pub(super) async fn fetch(
    server: &Server,
    remote: &Remote,
    path: &str,
    user: &UserInfo,
    (limit, patience): (usize, Duration),
) -> Result<(StatusCode, Bytes), String> {
    let request =
        Request::get(path).header(ACCEPT, "application/json").body(Body::empty()).map_err(|e| e.to_string())?;
    let whole = async {
        let response = send(server, remote, user, request).await.map_err(|e| e.message)?;
        let (parts, body) = response.into_parts();
        let body = body.into_bytes(limit).await.map_err(|_| format!("no answer of at most {limit} bytes"))?;
        Ok((parts.status, body))
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
