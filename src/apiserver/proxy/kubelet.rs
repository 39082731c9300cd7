//! Subresources that a kubelet answers: pods' log, exec, attach and portforward, nodes' proxy.

use super::NodeDialer;
use super::transport::{Onward, exchange, unreachable};
use crate::body::Body;
use crate::query::Query;
use edge_api::field::{ErrorList, Path};
use edge_api::{GroupKind, GroupResource, Object, Reason, Status};
use form_urlencoded::Serializer;
use http::{Request, Response, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Most bytes of the words with which a kubelet refuses.
const MOST_WORDS: usize = 50_000;
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The ways to attach to a pod's processes or ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// A new process in a container.
    Exec,
    /// The streams of a container's first process.
    Attach,
    /// Ports of the pod.
    PortForward,
}

/// Attaches to `pod` as the request's query says.
pub(crate) async fn attach(
    dialer: &dyn NodeDialer,
    stop: &CancellationToken,
    pod: &Object,
    how: Attachment,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let (uri, node) = attach_target(pod, how, &query)?;
    drop(query);
    forward(dialer, stop, &node, request, &uri).await
}

/// The kubelet's URI and the node's name.
fn attach_target(pod: &Object, how: Attachment, query: &Query<'_>) -> Result<(String, String), Status> {
    let mut onward = Serializer::new(String::new());
    let path = match how {
        Attachment::PortForward => {
            for p in query.all("ports") {
                onward.append_pair("port", p);
            }
            format!("/portForward/{}", pod_path(pod))
        }
        Attachment::Exec | Attachment::Attach => {
            // absent streams default to none but, as in Kubernetes' conversions, stdout and stderr to attached
            let (stdin, tty) = (query.flag("stdin"), query.flag("tty"));
            let stdout = query.optional_flag("stdout").unwrap_or(false);
            let stderr = query.optional_flag("stderr").unwrap_or(false);
            if !(stdin || stdout || stderr) {
                let kind = if how == Attachment::Exec { "PodExecOptions" } else { "PodAttachOptions" };
                let mut errors = ErrorList::new();
                let detail = "you must specify at least one of stdin, stdout, stderr";
                errors.required(&Path::root(), detail);
                return Err(Status::invalid(&GroupKind { group: String::new(), kind: kind.into() }, "", &errors));
            }
            if how == Attachment::Exec && query.all("command").next().is_none() {
                return Err(Status::bad_request("you must specify at least 1 command for the container"));
            }
            for (name, on) in [("input", stdin), ("output", stdout), ("error", stderr && !tty), ("tty", tty)] {
                if on {
                    onward.append_pair(name, "1");
                }
            }
            let verb = if how == Attachment::Exec {
                for c in query.all("command") {
                    onward.append_pair("command", c);
                }
                "exec"
            } else {
                "attach"
            };
            format!("/{verb}/{}/{}", pod_path(pod), segment(&container_of(pod, query)?))
        }
    };
    let node = pod.str_at("/spec/nodeName");
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", pod.name())));
    }
    Ok((with_query(path, &onward.finish()), node.to_owned()))
}

/// Reads a container's log.
pub(crate) async fn logs(
    dialer: &dyn NodeDialer,
    stop: &CancellationToken,
    pod: &Object,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let uri = logs_target(pod, &query)?;
    drop(query);
    let node = pod.str_at("/spec/nodeName").to_owned();
    // a pod that runs nowhere yet has said nothing yet
    if node.is_empty() {
        return Ok(Response::new(Body::empty()));
    }
    refused(forward(dialer, stop, &node, request, &uri).await?, pod).await
}

/// A kubelet says in plain words why there is no log; clients understand a status.
async fn refused(response: Response<Body>, pod: &Object) -> Result<Response<Body>, Status> {
    let code = response.status();
    if code.is_success() {
        return Ok(response);
    }
    let words = response.into_body().into_bytes(MOST_WORDS).await.unwrap_or_default();
    let words = String::from_utf8_lossy(&words);
    let words = words.trim();
    Err(match code {
        StatusCode::BAD_REQUEST => Status::bad_request(words),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(words),
        StatusCode::NOT_FOUND => {
            let logs = GroupResource { group: String::new(), resource: "pods/log".into() };
            Status::new(404, Reason::NotFound, words).about(&logs, pod.name())
        }
        other => Status::new(other.as_u16(), Reason::Unknown, format!("the kubelet answered with {other}: {words}")),
    })
}

fn logs_target(pod: &Object, query: &Query<'_>) -> Result<String, Status> {
    let mut onward = Serializer::new(String::new());
    for name in ["follow", "previous", "timestamps"] {
        if query.flag(name) {
            onward.append_pair(name, "true");
        }
    }
    let mut errors = ErrorList::new();
    let mut number = |name: &str, least: i64, detail: &str| -> Result<Option<i64>, Status> {
        let n = query.int(name)?;
        if let Some(n) = n {
            if n < least {
                errors.invalid(&Path::new(name), &n.into(), detail);
            }
            onward.append_pair(name, &n.to_string());
        }
        Ok(n)
    };
    number("tailLines", 0, "must be greater than or equal to 0")?;
    number("limitBytes", 1, "must be greater than 0")?;
    let seconds = number("sinceSeconds", 1, "must be greater than 0")?;
    let time = query.get("sinceTime").filter(|t| !t.is_empty());
    if let Some(t) = time {
        if edge_api::meta::parse_time(t).is_none() {
            return Err(Status::bad_request(format!("sinceTime {t:?} is not an RFC 3339 time")));
        }
        onward.append_pair("sinceTime", t);
    }
    if seconds.is_some() && time.is_some() {
        errors.forbidden(&Path::root(), "at most one of `sinceTime` or `sinceSeconds` may be specified");
    }
    match query.get("stream") {
        None | Some("" | "All") => {}
        Some(stream @ ("Stdout" | "Stderr")) => {
            onward.append_pair("stream", stream);
        }
        Some(other) => errors.not_supported(&Path::new("stream"), &other.into(), &["All", "Stderr", "Stdout"]),
    }
    if !errors.is_empty() {
        return Err(Status::invalid(&GroupKind { group: String::new(), kind: "PodLogOptions".into() }, "", &errors));
    }
    let container = container_of(pod, query)?;
    Ok(with_query(format!("/containerLogs/{}/{}", pod_path(pod), segment(&container)), &onward.finish()))
}

/// Hands any request on to a node's kubelet: `nodes/proxy`.
pub(crate) async fn node(
    dialer: &dyn NodeDialer,
    stop: &CancellationToken,
    node: &str,
    rest: &str,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let uri = with_query(format!("/{rest}"), request.uri().query().unwrap_or_default());
    forward(dialer, stop, node, request, &uri).await
}

async fn forward(
    dialer: &dyn NodeDialer,
    stop: &CancellationToken,
    node: &str,
    request: Request<Body>,
    uri: &str,
) -> Result<Response<Body>, Status> {
    let uri: Uri = uri.parse().map_err(|e| Status::bad_request(format!("cannot proxy to {uri:?}: {e}")))?;
    let what = format!("the kubelet of node {node}");
    let stream = dialer.dial(node).await.map_err(|e| unreachable(&what, &e))?;
    exchange(stream, request, Onward::anonymous(uri, node, &what), stop).await
}

fn pod_path(pod: &Object) -> String {
    format!("{}/{}", segment(pod.namespace()), segment(pod.name()))
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

fn with_query(path: String, query: &str) -> String {
    if query.is_empty() { path } else { format!("{path}?{query}") }
}

fn names(pod: &Object, list: &str) -> Vec<String> {
    pod.pointer(&format!("/spec/{list}"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|c| c.get("name")?.as_str().map(str::to_owned))
        .collect()
}

/// The container that is meant: the one named, else the only one, else the one that the pod's annotation names.
fn container_of(pod: &Object, query: &Query<'_>) -> Result<String, Status> {
    let (containers, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let ephemeral = names(pod, "ephemeralContainers");
    let known = |name: &str| [&containers, &init, &ephemeral].iter().any(|l| l.iter().any(|n| n == name));
    if let Some(name) = query.get("container").filter(|c| !c.is_empty()) {
        return if known(name) {
            Ok(name.to_owned())
        } else {
            Err(Status::bad_request(format!("container {name} is not valid for pod {}", pod.name())))
        };
    }
    if let Some(name) = pod.annotation(DEFAULT_CONTAINER).filter(|n| known(n)) {
        return Ok(name.to_owned());
    }
    match containers.as_slice() {
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {}", pod.name()))),
        [only] => Ok(only.clone()),
        many => {
            let mut text = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name(),
                many.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(text))
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn pod(containers: &[&str], init: &[&str], annotations: Value) -> Object {
        let list = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
        Object::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "annotations": annotations},
            "spec": {"nodeName": "n", "containers": list(containers), "initContainers": list(init)},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn what_a_kubelet_refuses_is_a_status() {
        let answer = async |code: u16, words: &str| {
            let response = Response::builder().status(code).body(Body::full(words.to_owned())).unwrap();
            refused(response, &pod(&["a"], &[], json!({}))).await.map(drop).map_err(|s| (s.code, s.reason, s.message))
        };
        assert_eq!(answer(200, "said").await, Ok(()));
        let waiting = "container \"a\" in pod \"p\" is waiting to start: ContainerCreating";
        assert_eq!(answer(400, waiting).await, Err((400, Reason::BadRequest, waiting.into())));
        assert_eq!(answer(404, "gone\n").await, Err((404, Reason::NotFound, "gone".into())));
        assert_eq!(answer(500, "x").await.unwrap_err().1, Reason::InternalError);
        assert_eq!(answer(403, "no").await.unwrap_err().0, 403);
    }

    #[test]
    fn the_container_is_chosen_as_kubernetes_does() {
        let choose = |pod: &Object, q: &str| container_of(pod, &Query::parse(q)).map_err(|s| s.message);
        assert_eq!(choose(&pod(&["a"], &["i"], json!({})), ""), Ok("a".into()));
        assert_eq!(choose(&pod(&["a"], &["i"], json!({})), "container=i"), Ok("i".into()));
        assert_eq!(
            choose(&pod(&["a", "b"], &["i"], json!({})), ""),
            Err(
                "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
                    .into()
            )
        );
        assert_eq!(choose(&pod(&["a", "b"], &[], json!({DEFAULT_CONTAINER: "b"})), ""), Ok("b".into()));
        assert_eq!(
            choose(&pod(&["a"], &[], json!({})), "container=x"),
            Err("container x is not valid for pod p".into())
        );
    }

    #[test]
    fn exec_and_logs_go_to_the_kubelets_paths() {
        let p = pod(&["a"], &[], json!({}));
        let q = Query::parse("command=sh&command=-c&command=echo+%26&stdin=true&stdout=1&stderr=true&tty=true");
        assert_eq!(
            attach_target(&p, Attachment::Exec, &q).unwrap(),
            ("/exec/ns/p/a?input=1&output=1&tty=1&command=sh&command=-c&command=echo+%26".into(), "n".into())
        );
        assert_eq!(
            attach_target(&p, Attachment::PortForward, &Query::parse("ports=80")).unwrap().0,
            "/portForward/ns/p?port=80"
        );
        assert_eq!(attach_target(&p, Attachment::Attach, &Query::parse("")).unwrap_err().code, 422);
        let q = Query::parse("follow=true&tailLines=5&sinceTime=2026-01-02T03:04:05Z");
        assert_eq!(
            logs_target(&p, &q).unwrap(),
            "/containerLogs/ns/p/a?follow=true&tailLines=5&sinceTime=2026-01-02T03%3A04%3A05Z"
        );
        for bad in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z",
            "stream=x",
        ] {
            assert_eq!(logs_target(&p, &Query::parse(bad)).unwrap_err().code, 422, "{bad}");
        }
        for bad in ["tailLines=x", "sinceTime=yesterday"] {
            assert_eq!(logs_target(&p, &Query::parse(bad)).unwrap_err().code, 400, "{bad}");
        }
    }
}
