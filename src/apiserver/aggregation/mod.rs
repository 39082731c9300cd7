//! The aggregation layer: group versions that other API servers answer for, as APIServices say.
//!
//! In: APIServices and the Services behind them. Out: requests are passed on (`pass`), discovery and OpenAPI show what is behind
//! (`documents`, `openapi_v2`), each APIService says whether its server answers (`check`), and what is served here has an APIService of
//! its own (`local`). One task follows all of it (`follow`); where no APIService names a Service, nothing else runs.
//!
//! What is built in is never answered by somebody else, whatever an APIService says.

mod check;
mod documents;
mod follow;
mod local;
mod metrics;
mod openapi_v2;
mod pass;
mod reach;
mod spec;

pub(crate) use documents::openapi_versions;
pub(crate) use follow::Follower;
pub(crate) use local::{SERVICES, wanted};
pub(crate) use openapi_v2::openapi_parts;
pub(crate) use pass::pass;

use crate::request_info::RequestInfo;
use documents::OpenApi;
use edge_pki::SharedIdentity;
use metrics::AggregationMetrics;
use openapi_v2::Known;
use parking_lot::RwLock;
use reach::Connections;
use serde_json::Value;
use spec::Spec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Mutex, Semaphore};

/// Requests that one server may have to answer at once, watches not counted: a slow one must not take all places of the others.
const AT_ONCE: usize = 100;

/// How the API server shows to extension API servers who it is, and what they are told to go by.
#[derive(Clone, Debug)]
pub struct FrontProxy {
    /// What it shows.
    pub identity: SharedIdentity,
    /// The authority (PEM) that signs it.
    pub authority: String,
    /// The authority (PEM) of the cluster's clients.
    pub client_authority: String,
}

/// All APIServices behind which there is another server.
pub(crate) struct Aggregation {
    pub(crate) front_proxy: FrontProxy,
    pub(crate) metrics: AggregationMetrics,
    remotes: RwLock<Arc<Vec<Arc<Remote>>>>,
}

/// A group version that another server answers for.
pub(crate) struct Remote {
    pub(crate) spec: Spec,
    /// The way to it, or what is wrong with the APIService.
    connections: Result<Connections, String>,
    available: AtomicBool,
    /// Its resources in the form of aggregated discovery, as of the last successful check.
    resources: RwLock<Option<Arc<Value>>>,
    openapi: OpenApi,
    openapi_v2: Mutex<Known>,
    slots: Arc<Semaphore>,
}

impl Remote {
    /// Whether its condition `Available` is true.
    pub(crate) fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    /// Its resources in the form of aggregated discovery; `None`: nobody knows at this moment.
    pub(crate) fn resources(&self) -> Option<Arc<Value>> {
        self.resources.read().clone().filter(|_| self.is_available())
    }
}

impl Aggregation {
    pub(crate) fn new(front_proxy: FrontProxy) -> Self {
        Self { front_proxy, metrics: AggregationMetrics::default(), remotes: RwLock::default() }
    }

    /// All of them as of now.
    pub(crate) fn remotes(&self) -> Arc<Vec<Arc<Remote>>> {
        self.remotes.read().clone()
    }

    fn of(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        self.remotes.read().iter().find(|r| r.spec.version == version && r.spec.group == group).cloned()
    }

    /// Who answers a request in the place of this server.
    pub(crate) fn answers(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        if self.remotes.read().is_empty() {
            return None;
        }
        if info.is_resource {
            return self.of(&info.group, &info.version);
        }
        let (group, version) = group_version(&info.path)?;
        self.of(group, version)
    }

    fn set(&self, remotes: Vec<Arc<Remote>>) {
        *self.remotes.write() = Arc::new(remotes);
    }
}

/// The group version whose discovery or OpenAPI document is at a path.
fn group_version(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
    let (group, version) = path.strip_prefix("/apis/")?.trim_end_matches('/').split_once('/')?;
    (!version.contains('/')).then_some((group, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_belong_to_group_versions() {
        for (path, expected) in [
            ("/apis/a.b/v1", Some(("a.b", "v1"))),
            ("/apis/a.b/v1/", Some(("a.b", "v1"))),
            ("/openapi/v3/apis/a.b/v1", Some(("a.b", "v1"))),
            ("/apis/a.b", None),
            ("/apis/a.b/v1/x", None),
            ("/openapi/v2", None),
            ("/api/v1", None),
            ("/apisx/a.b/v1", None),
        ] {
            assert_eq!(group_version(path), expected, "{path}");
        }
    }
}
