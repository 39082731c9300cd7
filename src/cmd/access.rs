//! How commands reach a cluster: with a kubeconfig as `edge server` writes it.

use super::server::{Failure, doing};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use edge_client::{Client, Server, Servers, Uplink};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the cluster is, and who asks.
#[derive(Args)]
pub(crate) struct Access {
    /// The administrator's kubeconfig
    #[arg(long, env = "KUBECONFIG", default_value = "/etc/edge/edge.yaml", value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    /// URL of the server [default: that of the kubeconfig]
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
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
    pub(crate) fn open(access: &Access) -> Result<Self, Failure> {
        let what = "reading the kubeconfig";
        let text = std::fs::read_to_string(&access.kubeconfig)
            .map_err(|e| doing(what)(format!("{}: {e}", access.kubeconfig.display())))?;
        let config: Value = serde_yaml_ng::from_str(&text).map_err(doing(what))?;
        let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let data = |pointer: &str| STANDARD.decode(text(pointer)).map_err(doing(what));
        let ca = data("/clusters/0/cluster/certificate-authority-data")?;
        let certificate = data("/users/0/user/client-certificate-data")?;
        let key = data("/users/0/user/client-key-data")?;
        let identity = edge_pki::Identity::from_pem(&key, &certificate).map_err(doing(what))?;
        let shared = edge_pki::SharedIdentity::new(&identity).map_err(doing(what))?;
        let tls = edge_pki::remote_client_config(&ca, Some(&shared)).map_err(doing("preparing TLS"))?;
        let url = access.server.clone().unwrap_or_else(|| text("/clusters/0/cluster/server").to_owned());
        let server = Server::parse(&url).map_err(doing("reading the server's URL"))?;
        let servers = Servers::new(vec![server], &tls, watch::channel(0).1);
        Ok(Self { client: Uplink::new(servers).client(http::HeaderMap::new()), ca, url })
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
