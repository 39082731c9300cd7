//! How commands reach a cluster: with a kubeconfig as `edge server` writes it.

use super::places;
use super::server::{Failure, doing};
use clap::Args;
use edge_client::Client;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the cluster is, and who asks.
#[derive(Args)]
pub(crate) struct Access {
    /// The administrator's kubeconfig
    #[arg(long, env = "KUBECONFIG", default_value = "/etc/edge/edge.yaml", value_name = "FILE")]
    kubeconfig: PathBuf,
    /// URL of the server [default: that of the kubeconfig]
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
}

impl Access {
    /// Where the kubeconfig is: in its other place when it is not where it usually is.
    pub(crate) fn kubeconfig(&self) -> Cow<'_, Path> {
        match self.kubeconfig == Path::new(places::KUBECONFIG) {
            true => places::kubeconfig().into(),
            false => self.kubeconfig.as_path().into(),
        }
    }
}

/// The cluster of a kubeconfig.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// The authority, PEM.
    pub(crate) ca: Vec<u8>,
    pub(crate) url: String,
}

impl Cluster {
    /// Reads the kubeconfig; asks nobody yet.
    pub(crate) async fn open(access: &Access) -> Result<Self, Failure> {
        let cluster = edge_client::from_kubeconfig(&access.kubeconfig(), None, access.server.as_deref()).await;
        let cluster = cluster.map_err(doing("reading the kubeconfig"))?;
        Ok(Self { client: cluster.client, ca: cluster.ca, url: cluster.url })
    }

    /// Waits for an answer, but not for ever.
    pub(crate) async fn call<T>(
        &self,
        request: impl Future<Output = Result<T, edge_client::Error>>,
    ) -> Result<T, Failure> {
        let what = "asking the server";
        let answer = tokio::time::timeout(PATIENCE, request).await.map_err(doing(what))?;
        answer.map_err(|e| match e {
            edge_client::Error::Api(status) => doing(what)(status.message.clone()),
            other => doing(what)(super::with_causes(&other)),
        })
    }
}
