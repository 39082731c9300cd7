//! What nodes and pods use, found out when somebody asks.
//!
//! In: names of nodes. Out: for each that answers a [`View`], two moments of its kubelet's counters, from which rates follow.
//! Nothing is fetched unless somebody asks, and then what was fetched a moment ago serves all who ask. Who asks regularly (an
//! autoscaler every 15 s) gets rates over the time between his questions; who asks for the first time waits for a second.

mod history;
mod sample;

pub(crate) use history::View;
pub(crate) use sample::Rate;

use crate::Server;
use crate::body::Body;
use crate::proxy;
use futures::StreamExt;
use futures::stream;
use history::{History, SHORTEST};
use http::{Request, StatusCode};
use parking_lot::Mutex;
use sample::Sample;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The API group that is answered by it.
pub(crate) const GROUP: &str = "metrics.k8s.io";

/// How many kubelets are asked at once.
const AT_ONCE: usize = 64;
/// A kubelet that has not answered after this time does not count (metrics-server's time).
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read, in bytes: some 500 pods of many containers.
const LONGEST: usize = 16 << 20;
/// What is asked of a kubelet.
const PATH: &str = "stats/summary";
const QUERY: &str = "/?only_cpu_and_memory=true";

/// Why a kubelet's figures are not there.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("{0}")]
    Refused(String),
    #[error("the kubelet answered {0}")]
    Answer(StatusCode),
    #[error("the kubelet's answer could not be read")]
    Body(#[from] crate::body::BodyError),
    #[error("the kubelet's answer is not the summary of its figures")]
    Form(#[from] serde_json::Error),
    #[error("the kubelet did not answer in time")]
    Late,
    #[error("the kubelet did not answer somebody else a moment ago")]
    Lately,
}

/// What is known of a node; whoever fetches holds it.
type Node = Arc<tokio::sync::Mutex<History>>;

/// What is known of all nodes that somebody has asked about.
#[derive(Default)]
pub(crate) struct Usage {
    nodes: Mutex<HashMap<String, Node>>,
}

impl Usage {
    /// Asks these nodes, all at once. Those that do not answer are left out, which is logged.
    pub(crate) async fn ask<'n>(&self, server: &Server, nodes: impl Iterator<Item = &'n str>) -> HashMap<String, View> {
        let names: BTreeSet<&str> = nodes.filter(|name| !name.is_empty()).collect();
        let asked: Vec<(String, Node)> = {
            let mut known = self.nodes.lock();
            known.retain(|name, node| names.contains(name.as_str()) || !is_stale(node));
            names.into_iter().map(|n| (n.to_owned(), known.entry(n.to_owned()).or_default().clone())).collect()
        };
        let answers = stream::iter(asked).map(|(name, node)| async move {
            let mut history = node.lock().await;
            match view(server, &name, &mut history).await {
                Ok(view) => Some((name, view)),
                Err(error) => {
                    tracing::debug!(node = name, %error, "nothing is known of what the node uses");
                    None
                }
            }
        });
        answers.buffer_unordered(AT_ONCE).filter_map(|found| async { found }).collect().await
    }
}

/// Whether a node has not been asked about for so long that it may be forgotten. It may be gone.
fn is_stale(node: &Node) -> bool {
    node.try_lock().is_ok_and(|history| history.is_stale(Instant::now()))
}

async fn view(server: &Server, node: &str, history: &mut History) -> Result<View, Missing> {
    if let Some(view) = history.recent(Instant::now()) {
        return Ok(view);
    }
    if history.has_failed(Instant::now()) {
        return Err(Missing::Lately);
    }
    loop {
        let fetched = tokio::time::timeout(PATIENCE, fetch(server, node)).await.unwrap_or(Err(Missing::Late));
        let sample = fetched.inspect_err(|_| history.fail(Instant::now()))?;
        if let Some(view) = history.add(Instant::now(), sample) {
            return Ok(view);
        }
        tokio::time::sleep(SHORTEST).await;
    }
}

async fn fetch(server: &Server, node: &str) -> Result<Sample, Missing> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = http::Uri::from_static(QUERY);
    let answer = proxy::node(server.dialer.as_ref(), &server.shutdown, node, PATH, request).await;
    let answer = answer.map_err(|status| Missing::Refused(status.message))?;
    if answer.status() != StatusCode::OK {
        return Err(Missing::Answer(answer.status()));
    }
    Ok(Sample::read(&answer.into_body().into_bytes(LONGEST).await?)?)
}
