//! Extenders: programs beside the scheduler that are asked by HTTP about nodes (`k8s.io/kube-scheduler/extender/v1`).
//!
//! The fields of that protocol have the names that they have in Go (`NodeNames`); of an answer, whatever their case is, as Go reads it.

use crate::pod::Pending;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Node;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The longest answer that is read, in bytes.
const LONGEST: usize = 64 << 20;
/// How long an extender may take when its configuration does not say.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The highest score that an extender gives; it stands for the highest of a plugin.
const MAX_SCORE: i64 = 10;

/// An extender as the configuration file has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExtenderFile {
    url_prefix: String,
    #[serde(default)]
    filter_verb: String,
    #[serde(default)]
    prioritize_verb: String,
    #[serde(default)]
    preempt_verb: String,
    #[serde(default)]
    bind_verb: String,
    #[serde(default)]
    weight: i64,
    #[serde(rename = "enableHTTPS", default)]
    _enable_https: Option<IgnoredAny>,
    tls_config: Option<Value>,
    http_timeout: Option<String>,
    #[serde(default)]
    node_cache_capable: bool,
    #[serde(default)]
    managed_resources: Vec<Managed>,
    #[serde(default)]
    ignorable: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Managed {
    name: String,
    #[serde(default)]
    ignored_by_scheduler: bool,
}

impl ExtenderFile {
    /// Resources that the scheduler is not to count, since the extender does.
    pub(crate) fn counts_itself(&self) -> Vec<String> {
        self.managed_resources.iter().filter(|r| r.ignored_by_scheduler).map(|r| r.name.clone()).collect()
    }
}

type Http = Client<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>;

/// An extender.
#[derive(Clone)]
pub(crate) struct Extender {
    url: String,
    filter: String,
    prioritize: String,
    preempt: String,
    bind: String,
    weight: i64,
    timeout: Duration,
    /// It knows the nodes: their names are enough.
    knows_nodes: bool,
    /// It is only asked about pods that ask for one of these; empty: about all.
    resources: HashSet<String>,
    /// Pods are scheduled without it when it does not answer.
    pub(crate) is_ignorable: bool,
    http: Http,
}

impl fmt::Debug for Extender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extender({})", self.url)
    }
}

/// Why an extender was of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtenderError {
    #[error("extender {url}: the request cannot be made")]
    Request {
        url: String,
        #[source]
        source: http::Error,
    },
    #[error("extender {url} cannot be reached")]
    Unreachable {
        url: String,
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    #[error("extender {url} answered {status}")]
    Status { url: String, status: http::StatusCode },
    #[error("extender {url} did not answer within {} s", .after.as_secs_f32())]
    Timeout { url: String, after: Duration },
    #[error("the answer of extender {url} cannot be read: {reason}")]
    Answer { url: String, reason: String },
    #[error("extender {url}: {reason}")]
    Refused { url: String, reason: String },
}

/// What is left of the nodes.
#[derive(Debug, Default)]
pub(crate) struct Filtered {
    /// Names of the nodes that are possible.
    pub(crate) names: HashSet<String>,
    /// Why others are not.
    pub(crate) failed: HashMap<String, String>,
    /// Why others are not, and would not be if pods went.
    pub(crate) failed_for_good: HashMap<String, String>,
}

/// What is left of the victims on a node, or what is offered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Victims {
    /// UIDs of pods.
    pub(crate) uids: Vec<String>,
    /// How many of them a budget protects.
    pub(crate) violations: usize,
}

#[derive(Deserialize)]
struct FilterAnswer {
    nodes: Option<NodeList>,
    #[serde(rename = "nodenames")]
    node_names: Option<Vec<String>>,
    #[serde(rename = "failednodes", default)]
    failed_nodes: Option<HashMap<String, String>>,
    #[serde(rename = "failedandunresolvablenodes", default)]
    failed_and_unresolvable_nodes: Option<HashMap<String, String>>,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct NodeList {
    items: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
struct Priority {
    host: String,
    score: i64,
}

#[derive(Deserialize)]
struct PreemptAnswer {
    #[serde(rename = "nodenametometavictims", default)]
    victims: Option<HashMap<String, Option<MetaVictims>>>,
}

#[derive(Deserialize)]
struct MetaVictims {
    #[serde(default)]
    pods: Option<Vec<MetaPod>>,
    #[serde(rename = "numpdbviolations", default)]
    violations: i64,
}

#[derive(Deserialize)]
struct MetaPod {
    uid: String,
}

#[derive(Deserialize)]
struct BindAnswer {
    #[serde(default)]
    error: String,
}

/// The same with all names of fields in lower case. Names of nodes are so anyway.
fn lower(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), lower(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(lower).collect(),
        other => other,
    }
}

impl Extender {
    /// Checks what the configuration says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn new(file: ExtenderFile) -> Result<Self, String> {
        if file.tls_config.is_some() {
            return Err("tlsConfig: expected none; certificates are checked by the authorities of the system".into());
        }
        if !file.prioritize_verb.is_empty() && file.weight <= 0 {
            return Err("weight: expected more than 0 for an extender that prioritizes".into());
        }
        let timeout = match &file.http_timeout {
            None => TIMEOUT,
            Some(text) => {
                let nanos = edge_api::duration::parse(text).and_then(|n| u64::try_from(n).ok());
                Duration::from_nanos(nanos.ok_or("httpTimeout: expected a time such as 5s")?)
            }
        };
        let url = file.url_prefix.trim_end_matches('/').to_owned();
        let uri: http::Uri = url.parse().map_err(|e| format!("urlPrefix: {e}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err("urlPrefix: expected an http or https address".into());
        }
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|e| format!("the system's certificate authorities cannot be read: {e}"))?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            url,
            filter: file.filter_verb,
            prioritize: file.prioritize_verb,
            preempt: file.preempt_verb,
            bind: file.bind_verb,
            weight: file.weight,
            timeout,
            knows_nodes: file.node_cache_capable,
            resources: file.managed_resources.into_iter().map(|r| r.name).collect(),
            is_ignorable: file.ignorable,
            http: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// Whether it is to be asked about a pod.
    pub(crate) fn is_about(&self, pod: &Pending) -> bool {
        self.resources.is_empty() || self.resources.iter().any(|name| pod.info.requests.get(name) > 0)
    }

    async fn ask<T: DeserializeOwned>(&self, verb: &str, body: &Value) -> Result<T, ExtenderError> {
        let url = format!("{}/{verb}", self.url);
        let request = http::Request::post(&url)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|source| ExtenderError::Request { url: url.clone(), source })?;
        let answer = async {
            let response = self.http.request(request).await;
            let response = response.map_err(|source| ExtenderError::Unreachable { url: url.clone(), source })?;
            let status = response.status();
            if status != http::StatusCode::OK {
                return Err(ExtenderError::Status { url: url.clone(), status });
            }
            let unreadable = |reason: String| ExtenderError::Answer { url: url.clone(), reason };
            let body = Limited::new(response.into_body(), LONGEST).collect().await;
            let body = body.map_err(|e| unreadable(e.to_string()))?.to_bytes();
            let value = serde_json::from_slice(&body).map(lower);
            value.and_then(serde_json::from_value).map_err(|e| unreadable(e.to_string()))
        };
        let late = ExtenderError::Timeout { url: url.clone(), after: self.timeout };
        tokio::time::timeout(self.timeout, answer).await.unwrap_or(Err(late))
    }

    fn args(&self, pod: &Pending, nodes: &[Arc<Node>]) -> Value {
        let names: Vec<&str> = nodes.iter().filter_map(|n| n.metadata.name.as_deref()).collect();
        if self.knows_nodes {
            json!({"Pod": *pod.pod, "NodeNames": names})
        } else {
            let items: Vec<&Node> = nodes.iter().map(|n| &**n).collect();
            json!({"Pod": *pod.pod, "Nodes": {"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": items}})
        }
    }

    /// Asks which of the nodes are possible; `None`: it does not filter.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn filter(&self, pod: &Pending, nodes: &[Arc<Node>]) -> Result<Option<Filtered>, ExtenderError> {
        if self.filter.is_empty() {
            return Ok(None);
        }
        let answer: FilterAnswer = self.ask(&self.filter, &self.args(pod, nodes)).await?;
        if !answer.error.is_empty() {
            return Err(ExtenderError::Refused { url: self.url.clone(), reason: answer.error });
        }
        let of_list = |list: NodeList| list.items.into_iter().map(|n| n.metadata.name).collect();
        let names = answer.node_names.map(|names| names.into_iter().collect()).or(answer.nodes.map(of_list));
        Ok(Some(Filtered {
            names: names.unwrap_or_default(),
            failed: answer.failed_nodes.unwrap_or_default(),
            failed_for_good: answer.failed_and_unresolvable_nodes.unwrap_or_default(),
        }))
    }

    /// Asks how good nodes are: by name, already weighted and on the scale of plugins.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn scores(
        &self,
        pod: &Pending,
        nodes: &[Arc<Node>],
    ) -> Result<HashMap<String, i64>, ExtenderError> {
        if self.prioritize.is_empty() {
            return Ok(HashMap::new());
        }
        let answer: Vec<Priority> = self.ask(&self.prioritize, &self.args(pod, nodes)).await?;
        let scale = crate::plugins::MAX_SCORE / MAX_SCORE;
        Ok(answer.into_iter().map(|p| (p.host, p.score.clamp(0, MAX_SCORE) * self.weight * scale)).collect())
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Whether it has a say in which pods go for another.
    pub(crate) fn preempts(&self) -> bool {
        !self.preempt.is_empty()
    }

    /// Whether it knows nodes and their pods, so that names and UIDs are enough.
    pub(crate) fn knows_nodes(&self) -> bool {
        self.knows_nodes
    }

    /// Asks who is to go on which node, of the victims that are offered by the names of their nodes.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn victims(
        &self,
        pod: &Pending,
        offered: serde_json::Map<String, Value>,
    ) -> Result<HashMap<String, Victims>, ExtenderError> {
        let field = if self.knows_nodes { "NodeNameToMetaVictims" } else { "NodeNameToVictims" };
        let answer: PreemptAnswer = self.ask(&self.preempt, &json!({"Pod": *pod.pod, field: offered})).await?;
        let of = |(node, victims): (String, Option<MetaVictims>)| {
            let (pods, violations) = victims.map(|v| (v.pods.unwrap_or_default(), v.violations)).unwrap_or_default();
            let uids = pods.into_iter().map(|pod| pod.uid).collect();
            (node, Victims { uids, violations: usize::try_from(violations).unwrap_or(0) })
        };
        Ok(answer.victims.unwrap_or_default().into_iter().map(of).collect())
    }

    /// Whether it binds the pods that it is about.
    pub(crate) fn binds(&self) -> bool {
        !self.bind.is_empty()
    }

    /// Asks to give a pod its node.
    ///
    /// # Errors
    /// Why it was not done.
    pub(crate) async fn bind(&self, pod: &Pending, node: &str) -> Result<(), ExtenderError> {
        let key = pod.key();
        let args = json!({"PodName": key.name, "PodNamespace": key.namespace, "PodUID": pod.info.uid, "Node": node});
        let answer: BindAnswer = self.ask(&self.bind, &args).await?;
        if answer.error.is_empty() {
            return Ok(());
        }
        Err(ExtenderError::Refused { url: self.url.clone(), reason: answer.error })
    }
}
