//! What a request is about: from method, path and query to verb, resource, subresource, namespace and name.
//!
//! Follows `RequestInfoFactory` of Kubernetes to the letter, since authorization rules are written against its answers.

use crate::query::Query;
use edge_api::GroupResource;
use http::Method;
use std::borrow::Cow;

/// The meaning of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// Whether the path names a resource; otherwise only `path` and `verb` mean something.
    pub(crate) is_resource: bool,
    /// The decoded path.
    pub(crate) path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`, or the lower-case
    /// method of a non-resource request.
    pub(crate) verb: String,
    /// API group; empty for the core group.
    pub(crate) group: String,
    /// API version.
    pub(crate) version: String,
    /// Plural of the resource.
    pub(crate) resource: String,
    /// Subresource such as `status`; empty when there is none.
    pub(crate) subresource: String,
    /// Namespace; empty for cluster-scoped requests and for lists over all namespaces.
    pub(crate) namespace: String,
    /// Name of the object; empty for collections.
    pub(crate) name: String,
    /// The node whose pods a list or watch is limited to by its field selector (`spec.nodeName`); may be empty.
    pub(crate) selected_node: String,
    /// What follows the subresource (the path handed on by `proxy`), without its leading slash, still encoded.
    pub(crate) rest: String,
    /// Whether the verb stands in the path (`/api/v1/watch/...`, deprecated but served).
    pub(crate) verb_in_path: bool,
}

/// A path that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestInfoError {
    /// `/api/v1/watch` with nothing behind it.
    #[error("unable to determine kind and namespace from url, {0}")]
    NothingBehindVerb(String),
    /// The path's percent encoding is no UTF-8.
    #[error("path {0:?} is not valid UTF-8")]
    Encoding(String),
}

impl RequestInfo {
    /// Reads a request's line.
    ///
    /// # Errors
    /// [`RequestInfoError`] for a path that is like no resource's nor free of the API prefixes.
    pub(crate) fn parse(method: &Method, raw_path: &str, query: &Query<'_>) -> Result<Self, RequestInfoError> {
        let path = decode(raw_path)?.into_owned();
        let mut info = Self { verb: method.as_str().to_ascii_lowercase(), path, ..Self::default() };
        let raw: Vec<&str> = raw_path.split('/').filter(|p| !p.is_empty()).collect();
        let mut parts = raw.as_slice();
        match parts {
            ["api", _, _, ..] => parts = &parts[1..],
            ["apis", group, _, _, ..] => {
                info.group = decode(group)?.into_owned();
                parts = &parts[2..];
            }
            _ => return Ok(info),
        }
        info.is_resource = true;
        info.version = decode(parts[0])?.into_owned();
        parts = &parts[1..];
        if let verb @ ("proxy" | "watch") = parts[0] {
            if parts.len() < 2 {
                return Err(RequestInfoError::NothingBehindVerb(raw_path.to_owned()));
            }
            info.verb_in_path = true;
            info.verb = verb.into();
            parts = &parts[1..];
        } else {
            info.verb = verb_of(method).into();
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = decode(parts[1])?.into_owned();
            if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
                parts = &parts[2..];
            }
        }
        info.resource = decode(parts[0])?.into_owned();
        if let Some(name) = parts.get(1) {
            info.name = decode(name)?.into_owned();
        }
        if let Some(sub) = parts.get(2).filter(|_| info.verb != "proxy") {
            info.subresource = decode(sub)?.into_owned();
            info.rest = rest_after(raw_path, sub, &raw, parts);
        }
        info.settle_verb(query);
        Ok(info)
    }

    /// A verb on no name is one on the collection.
    fn settle_verb(&mut self, query: &Query<'_>) {
        if !self.name.is_empty() {
            return;
        }
        match self.verb.as_str() {
            "get" => {
                let watch = query.flag("watch");
                self.verb = if watch { "watch" } else { "list" }.into();
                let selector = query.get("fieldSelector").unwrap_or_default();
                self.name = exact(selector, "metadata.name").unwrap_or_default();
                self.selected_node = exact(selector, "spec.nodeName").unwrap_or_default();
            }
            "delete" => self.verb = "deletecollection".into(),
            _ => {}
        }
    }

    /// The resource without its version.
    pub(crate) fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.group.clone(), self.resource.clone())
    }

    /// Whether the request may go on for ever, and so does not count as in flight.
    pub(crate) fn is_long_running(&self) -> bool {
        matches!(self.verb.as_str(), "watch" | "proxy")
            || matches!(self.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
    }

    /// Whether the request changes nothing.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch" | "head")
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, RequestInfoError> {
    percent_encoding::percent_decode_str(text).decode_utf8().map_err(|_| RequestInfoError::Encoding(text.to_owned()))
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The path behind the subresource as the client wrote it (a proxied server may care for empty segments and a trailing
/// slash).
fn rest_after(raw_path: &str, subresource: &str, all: &[&str], parts: &[&str]) -> String {
    let mut to_skip = all.len() - parts.len() + 3;
    let mut rest = raw_path;
    while to_skip > 0 {
        rest = rest.trim_start_matches('/');
        rest = rest.find('/').map_or("", |i| &rest[i..]);
        to_skip -= 1;
    }
    debug_assert!(raw_path.contains(subresource));
    rest.strip_prefix('/').unwrap_or(rest).to_owned()
}

/// The name in a field that a field selector asks for, if it asks for exactly one: a role limited to one name may list
/// that one.
fn exact(selector: &str, field: &str) -> Option<String> {
    let selector = edge_api::selector::FieldSelector::parse(selector).ok()?;
    let name = &selector.0.iter().find(|r| r.field == field && r.equal)?.value;
    edge_api::names::path_segment(name).ok()?;
    (!name.is_empty()).then(|| name.clone())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(method: &str, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query)).unwrap()
    }

    #[test]
    fn resource_paths_mean_what_kubernetes_says() {
        // method, path => verb, group, version, namespace, resource, subresource, name
        let cases = [
            ("GET", "/api/v1/namespaces", "list", "", "v1", "", "namespaces", "", ""),
            ("GET", "/api/v1/namespaces/other", "get", "", "v1", "other", "namespaces", "", "other"),
            ("GET", "/api/v1/namespaces/other/pods", "list", "", "v1", "other", "pods", "", ""),
            ("GET", "/api/v1/namespaces/other/pods/foo", "get", "", "v1", "other", "pods", "", "foo"),
            ("HEAD", "/api/v1/namespaces/other/pods/foo", "get", "", "v1", "other", "pods", "", "foo"),
            ("GET", "/api/v1/pods", "list", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/namespaces/x/status", "get", "", "v1", "x", "namespaces", "status", "x"),
            ("PUT", "/api/v1/namespaces/x/finalize", "update", "", "v1", "x", "namespaces", "finalize", "x"),
            ("GET", "/api/v1/watch/pods", "watch", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/watch/namespaces/other/pods", "watch", "", "v1", "other", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=true", "watch", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=false", "list", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=0", "list", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch", "watch", "", "v1", "", "pods", "", ""),
            (
                "GET",
                "/api/v1/namespaces/o/pods?fieldSelector=metadata.name%3Da",
                "list",
                "",
                "v1",
                "o",
                "pods",
                "",
                "a",
            ),
            ("DELETE", "/api/v1/namespaces/other/pods", "deletecollection", "", "v1", "other", "pods", "", ""),
            ("DELETE", "/api/v1/namespaces/other/pods/foo", "delete", "", "v1", "other", "pods", "", "foo"),
            ("POST", "/apis/apps/v1/namespaces/a/deployments", "create", "apps", "v1", "a", "deployments", "", ""),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "patch",
                "apps",
                "v1",
                "a",
                "deployments",
                "scale",
                "d",
            ),
            ("GET", "/api/v1/proxy/namespaces/other/pods/foo", "proxy", "", "v1", "other", "pods", "", "foo"),
            ("GET", "/api/v1/nodes/n/proxy/metrics/cadvisor", "get", "", "v1", "", "nodes", "proxy", "n"),
            ("POST", "/api/v1/namespaces/a/pods/p/exec", "create", "", "v1", "a", "pods", "exec", "p"),
            ("OPTIONS", "/api/v1/pods", "", "", "v1", "", "pods", "", ""),
        ];
        for (method, uri, verb, group, version, namespace, resource, subresource, name) in cases {
            let i = parse(method, uri);
            assert!(i.is_resource, "{uri}");
            assert_eq!(
                (verb, group, version, namespace, resource, subresource, name),
                (
                    i.verb.as_str(),
                    i.group.as_str(),
                    i.version.as_str(),
                    i.namespace.as_str(),
                    i.resource.as_str(),
                    i.subresource.as_str(),
                    i.name.as_str()
                ),
                "{method} {uri}"
            );
        }
    }

    #[test]
    fn other_paths_are_no_resources() {
        for path in [
            "/",
            "/api",
            "/api/",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz",
            "/openapi/v3/apis/apps/v1",
        ] {
            let i = parse("GET", path);
            assert!(!i.is_resource, "{path}");
            assert_eq!((i.verb.as_str(), i.path.as_str()), ("get", path));
        }
    }

    #[test]
    fn the_proxied_path_is_kept_as_written() {
        for (uri, rest) in [
            ("/api/v1/nodes/n/proxy", ""),
            ("/api/v1/nodes/n/proxy/", ""),
            ("/api/v1/nodes/n/proxy/a%2Fb//c/", "a%2Fb//c/"),
            ("/api/v1/namespaces/ns/services/https:web:443/proxy/x/y", "x/y"),
        ] {
            assert_eq!(parse("GET", uri).rest, rest, "{uri}");
        }
        assert_eq!(parse("GET", "/api/v1/namespaces/ns/services/https:web:443/proxy/x").name, "https:web:443");
    }

    #[test]
    fn hostile_paths_do_no_harm() {
        let q = Query::parse("");
        assert!(RequestInfo::parse(&Method::GET, "/api/v1/watch", &q).is_err());
        assert!(RequestInfo::parse(&Method::GET, "/api/v1/pods/%ff%fe", &q).is_err());
        assert_eq!(parse("GET", "/api/v1/namespaces/..%2f../pods").namespace, "../..");
        let pieces = ["/", "api", "apis", "v1", "namespaces", "watch", "proxy", "%2f", "%", "..", "é", "status"];
        let mut seed = 7u64;
        for _ in 0..20_000 {
            let mut path = String::from("/");
            for _ in 0..(seed >> 33) % 12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                path.push_str(pieces[(seed >> 40) as usize % pieces.len()]);
                if seed & (1 << 35) != 0 {
                    path.push('/');
                }
            }
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let _ = RequestInfo::parse(&Method::GET, &path, &q);
        }
    }
}
