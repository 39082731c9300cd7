//! `pods/proxy` and `services/proxy`: HTTP and HTTPS to a pod's port.

use super::Stream;
use super::links::Links;
use super::transport::{Onward, exchange, unreachable};
use crate::body::Body;
use edge_api::{Object, Status};
use http::header::{ACCEPT, ACCEPT_ENCODING, HOST, LOCATION, UPGRADE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Tells the server by which path the client came to it.
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// `[scheme:]name[:port]`, as the name of a proxied pod or service is written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// `http` or `https`; empty when not said.
    pub(crate) scheme: &'a str,
    /// The object's name.
    pub(crate) name: &'a str,
    /// Port number or name; empty when not said.
    pub(crate) port: &'a str,
}

impl<'a> Target<'a> {
    /// Splits the name of a request.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let target = match *parts.as_slice() {
            [name] => Self { scheme: "", name, port: "" },
            [name, port] => Self { scheme: "", name, port },
            [scheme @ ("http" | "https" | ""), name, port] => Self { scheme, name, port },
            _ => return None,
        };
        (!target.name.is_empty()).then_some(target)
    }
}

/// Proxies to a pod.
pub(crate) async fn pod(
    stop: &CancellationToken,
    pod: &Object,
    target: &Target<'_>,
    rest: &str,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let ip = pod.str_at("/status/podIP");
    let Ok(ip) = ip.parse::<IpAddr>() else {
        return Err(Status::bad_request(format!("address not allowed: pod {} has no IP", pod.name())));
    };
    let port = pod_port(pod, target.port)
        .ok_or_else(|| Status::bad_request(format!("pod {} has no port {:?}", pod.name(), target.port)))?;
    to_address(stop, SocketAddr::new(ip, port), target.scheme, rest, request).await
}

fn pod_port(pod: &Object, port: &str) -> Option<u16> {
    let ports = || {
        pod.pointer("/spec/containers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|c| c.get("ports")?.as_array())
            .flatten()
    };
    let number = |p: &Value| p.get("containerPort")?.as_u64().and_then(|n| u16::try_from(n).ok());
    if port.is_empty() {
        return Some(ports().next().and_then(number).unwrap_or(80));
    }
    port.parse().ok().or_else(|| ports().find(|p| p.get("name").and_then(Value::as_str) == Some(port)).and_then(number))
}

/// Proxies to one of a service's ready endpoints; `slices` are the service's EndpointSlices.
pub(crate) async fn service(
    stop: &CancellationToken,
    service: &Object,
    slices: &[Object],
    target: &Target<'_>,
    rest: &str,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let port_name = service_port(service, target.port).ok_or_else(|| {
        Status::unavailable(format!("no service port {:?} found for service {:?}", target.port, service.name()))
    })?;
    let address = endpoint(slices, &port_name)
        .ok_or_else(|| Status::unavailable(format!("no endpoints available for service {:?}", service.name())))?;
    to_address(stop, address, target.scheme, rest, request).await
}

/// One of the ready endpoints of a service's port; `slices` are those of its namespace.
pub(crate) fn ready_endpoint(service: &Object, slices: &[Object], port: u16) -> Option<SocketAddr> {
    let name = service_port(service, &port.to_string())?;
    let own = |slice: &&Object| slice.label("kubernetes.io/service-name") == Some(service.name());
    let slices: Vec<Object> = slices.iter().filter(own).cloned().collect();
    endpoint(&slices, &name)
}

/// Sends clients that ask for the root of a server without its slash to the one with it, where relative links work.
pub(crate) fn redirect_to_root(rest: &str, request: &Request<Body>) -> Option<Response<Body>> {
    let path = request.uri().path();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !rest.is_empty() || path.ends_with('/') || !reads || request.headers().contains_key(UPGRADE) {
        return None;
    }
    let query = request.uri().query().map_or(String::new(), |query| format!("?{query}"));
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
    answer.headers_mut().insert(LOCATION, HeaderValue::from_str(&format!("{path}/{query}")).ok()?);
    Some(answer)
}

/// The name of the service port that is meant (endpoints name their ports alike).
fn service_port(service: &Object, port: &str) -> Option<String> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array)?;
    let name = |p: &Value| p.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if port.is_empty() {
        return match ports.as_slice() {
            [only] => Some(name(only)),
            _ => ports.iter().map(name).find(String::is_empty),
        };
    }
    let number = port.parse::<u64>().ok();
    ports
        .iter()
        .find(|p| name(p) == port || (number.is_some() && p.get("port").and_then(Value::as_u64) == number))
        .map(name)
}

/// One of the ready endpoints of a port, each in turn.
fn endpoint(slices: &[Object], port_name: &str) -> Option<SocketAddr> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let mut ready = Vec::new();
    for slice in slices {
        let port = slice.get("ports").as_array().into_iter().flatten().find_map(|p| {
            let name = p.get("name").and_then(Value::as_str).unwrap_or_default();
            let number = p.get("port")?.as_u64()?;
            (name == port_name).then(|| u16::try_from(number).ok()).flatten()
        });
        let Some(port) = port else { continue };
        for e in slice.get("endpoints").as_array().into_iter().flatten() {
            let is_ready = e.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true);
            let ip = e.pointer("/addresses/0").and_then(Value::as_str).and_then(|a| a.parse().ok());
            ready.extend(ip.filter(|_| is_ready).map(|ip: IpAddr| SocketAddr::new(ip, port)));
        }
    }
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    (!ready.is_empty()).then(|| ready[turn % ready.len()])
}

async fn to_address(
    stop: &CancellationToken,
    address: SocketAddr,
    scheme: &str,
    rest: &str,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    if !is_proxyable(address.ip()) {
        return Err(Status::bad_request("address not allowed"));
    }
    let query = request.uri().query().map_or(String::new(), |q| format!("?{q}"));
    let uri: Uri = format!("/{rest}{query}").parse().map_err(|e| Status::bad_request(format!("bad path: {e}")))?;
    let what = address.to_string();
    let path = request.uri().path();
    let asked = request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let asked = asked.or_else(|| request.uri().authority().map(ToString::to_string));
    let links = Links {
        prefix: path.strip_suffix(rest).unwrap_or(path).trim_end_matches('/').to_owned(),
        hosts: asked.into_iter().chain([what.clone()]).collect(),
    };
    let forwarded = HeaderValue::from_str(path).map_err(Status::internal)?;
    request.headers_mut().insert(FORWARDED_URI, forwarded);
    let wants_page = request.headers().get_all(ACCEPT).iter().filter_map(|kinds| kinds.to_str().ok());
    if wants_page.into_iter().any(|kinds| kinds.contains("text/html")) {
        // the links in a page have to be read
        request.headers_mut().remove(ACCEPT_ENCODING);
    }
    let socket = TcpStream::connect(address).await.map_err(|e| unreachable(&what, &e))?;
    let stream: Box<dyn Stream> = match scheme {
        "https" => Box::new(encrypted(socket, address.ip()).await.map_err(|e| unreachable(&what, &e))?),
        _ => Box::new(socket),
    };
    Ok(links.rewrite(exchange(stream, request, Onward::anonymous(uri, &what, &what), stop).await?).await)
}

/// TLS to a pod. Nobody vouches for its certificate, as it is in Kubernetes: who asked for the pod's address has been told
/// it by the API server itself.
async fn encrypted(socket: TcpStream, ip: IpAddr) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut config = edge_pki::unverified_client_config().map_err(std::io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config)).connect(ServerName::from(ip), socket).await
}

/// A pod chooses the address in its status: the server must not be talked into reaching its own host with it.
fn is_proxyable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some_and(|v4| !is_proxyable(v4.into())),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn names_carry_scheme_and_port() {
        let t = |s| Target::parse(s).map(|t| (t.scheme, t.name, t.port));
        assert_eq!(t("web"), Some(("", "web", "")));
        assert_eq!(t("web:http"), Some(("", "web", "http")));
        assert_eq!(t("https:web:443"), Some(("https", "web", "443")));
        assert_eq!(t("ftp:web:21"), None);
        assert_eq!(t(""), None);
        assert_eq!(t("a:b:c:d"), None);
    }

    #[test]
    fn ports_are_found_by_name_number_or_default() {
        let obj = |v| Object::from_value(v).unwrap();
        let pod = obj(json!({"spec": {"containers": [{"ports": [{"name": "w", "containerPort": 8080}]}]}}));
        assert_eq!(pod_port(&pod, ""), Some(8080));
        assert_eq!(pod_port(&pod, "w"), Some(8080));
        assert_eq!(pod_port(&pod, "99"), Some(99));
        assert_eq!(pod_port(&pod, "x"), None);
        let svc = obj(json!({"spec": {"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}}));
        assert_eq!(service_port(&svc, "81").as_deref(), Some("b"));
        assert_eq!(service_port(&svc, "a").as_deref(), Some("a"));
        assert_eq!(service_port(&svc, ""), None);
        let slice = obj(json!({"ports": [{"name": "b", "port": 9000}], "endpoints": [
            {"addresses": ["10.42.0.1"], "conditions": {"ready": false}}, {"addresses": ["10.42.0.2"]}]}));
        assert_eq!(endpoint(&[slice], "b"), Some("10.42.0.2:9000".parse().unwrap()));
    }

    #[test]
    fn ready_endpoints_take_turns() {
        let slice = |ips: &[&str]| {
            let endpoints: Vec<Value> = ips.iter().map(|ip| json!({"addresses": [ip]})).collect();
            Object::from_value(json!({"ports": [{"port": 80}], "endpoints": endpoints})).unwrap()
        };
        let slices = [slice(&["10.42.0.1", "10.42.0.2"]), slice(&["10.42.0.3"])];
        let seen: std::collections::BTreeSet<_> = (0..9).filter_map(|_| endpoint(&slices, "")).collect();
        assert_eq!(seen.len(), 3);
        assert_eq!(endpoint(&[], ""), None);
    }

    #[test]
    fn the_root_has_a_slash_at_its_end() {
        let ask = |method: Method, uri: &str, rest: &str| {
            let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
            redirect_to_root(rest, &request).map(|answer| answer.headers()[LOCATION].to_str().unwrap().to_owned())
        };
        assert_eq!(ask(Method::GET, "/p/proxy?a=b", "").as_deref(), Some("/p/proxy/?a=b"));
        assert_eq!(ask(Method::HEAD, "/p/proxy", "").as_deref(), Some("/p/proxy/"));
        assert_eq!(ask(Method::POST, "/p/proxy", ""), None);
        assert_eq!(ask(Method::GET, "/p/proxy/", ""), None);
        assert_eq!(ask(Method::GET, "/p/proxy/x", "x"), None);
    }

    #[test]
    fn the_servers_own_host_is_out_of_reach() {
        for ip in ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1"] {
            assert!(!is_proxyable(ip.parse().unwrap()), "{ip}");
        }
        assert!(is_proxyable("10.42.0.7".parse().unwrap()));
    }
}
